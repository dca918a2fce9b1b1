"""What an event or a log line is about."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ObjectReference:
    """One object, as Kubernetes refers to it."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str

    @property
    def log(self) -> dict[str, Any]:
        """For ``extra`` of a log call: the line then names the object in fields of its own."""
        about = {"kind": self.kind, "namespace": self.namespace, "name": self.name, "uid": self.uid}
        return {"object": about}
