"""A claimed sandbox that must outlive what happens to the operator."""

import uuid
from dataclasses import dataclass
from typing import Any, Self

from support.api import Api
from support.realnodes import run_in
from support.sandboxes import claim_pod

_FILE = "/tmp/state"  # noqa: S108 - in the sandbox


@dataclass(frozen=True)
class Survivor:
    """A bound claim, its pod, and a text in the pod's memory."""

    api: Api
    claim: dict[str, Any]
    container: str
    text: str

    @classmethod
    def claimed(cls, api: Api, name: str, pool: str = "pool") -> Self:
        """Claims a sandbox and writes a text into it."""
        claim_pod(api, name, pool)
        return cls.of(api, name)

    @classmethod
    def of(cls, api: Api, name: str) -> Self:
        """Writes a text into the sandbox of a claim that is bound."""
        claim = api.get("SandboxClaim", name)
        pod = api.get("Pod", claim["status"]["podName"])
        text = uuid.uuid4().hex
        run_in(pod, "sh", "-c", f"echo {text} > {_FILE}")
        (container,) = pod["status"]["containerStatuses"]
        return cls(api, claim, container["containerID"], text)

    def check(self) -> None:
        """Sees that the claim is bound to the same pod, whose program was never restarted."""
        claim = self.api.get("SandboxClaim", self.claim["metadata"]["name"])
        assert claim["metadata"]["uid"] == self.claim["metadata"]["uid"]
        for field in ("phase", "podName", "podUID", "boundAt"):
            assert claim["status"][field] == self.claim["status"][field]
        pod = self.api.get("Pod", claim["status"]["podName"])
        assert pod["metadata"]["uid"] == claim["status"]["podUID"]
        assert "deletionTimestamp" not in pod["metadata"]
        (container,) = pod["status"]["containerStatuses"]
        assert (container["containerID"], container["ready"]) == (self.container, True)
        assert run_in(pod, "cat", _FILE).strip() == self.text
