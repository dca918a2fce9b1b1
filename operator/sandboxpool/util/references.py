"""References to objects, for events and log lines."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ObjectReference:
    """A reference to an object, as in Kubernetes' own ObjectReference."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str

    @property
    def log(self) -> dict[str, Any]:
        """The ``extra`` of a log call, so that the line has the object in structured fields."""
        about = {"kind": self.kind, "namespace": self.namespace, "name": self.name, "uid": self.uid}
        return {"object": about}
