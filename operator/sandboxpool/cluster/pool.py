"""A SandboxPool in the cache: identity, parsed spec and current status."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from sandboxpool.api import names
from sandboxpool.api.conditions import stored_conditions
from sandboxpool.api.core import Condition
from sandboxpool.api.v1alpha1 import IsolationProof, SandboxPoolSpec
from sandboxpool.util.references import ObjectReference

_encode = msgspec.json.Encoder(order="deterministic").encode


@dataclass(frozen=True, slots=True)
class Pool:
    """One SandboxPool.

    Attributes:
        spec: None if the spec is invalid; ``spec_error`` says why.
        template: the pod template as the user wrote it.
        status: the status on the server, possibly changed by others.
        version: the resourceVersion of the object.
    """

    namespace: str
    name: str
    uid: str
    generation: int
    version: int
    deleting: bool
    spec: SandboxPoolSpec | None
    template: Mapping[str, Any]
    status: Mapping[str, Any]
    spec_error: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.namespace, self.name

    @property
    def identity(self) -> tuple[str, str]:
        """Namespace and uid."""
        return self.namespace, self.uid

    @property
    def proof(self) -> IsolationProof:
        """The proof of isolation that the pool requires."""
        return self.spec.isolation_proof if self.spec is not None else IsolationProof.PER_NODE

    @property
    def config_path(self) -> str:
        """Where the sandboxes find the configuration of their claim; empty for nowhere."""
        return self.spec.claims.config_path if self.spec is not None else ""

    @property
    def revision(self) -> str:
        """Short hash of the pod template: pods of another revision are outdated."""
        per_sandbox = self.proof is IsolationProof.PER_SANDBOX
        return revision_of(self.template, per_sandbox=per_sandbox, config_path=self.config_path)

    @property
    def conditions(self) -> list[Condition]:
        """The conditions in the status; malformed ones are left out."""
        return stored_conditions(self.status)

    def ready_message(self) -> str:
        """The message of the condition Ready, for claims that wait for the pool."""
        ready = (c.message for c in self.conditions if c.type == "Ready")
        return next(ready, "no condition Ready is set yet")

    @property
    def reference(self) -> ObjectReference:
        """The reference for events and log lines."""
        return ObjectReference(
            names.API_VERSION, names.POOL_KIND, self.namespace, self.name, self.uid
        )


def revision_of(
    template: Mapping[str, Any], *, per_sandbox: bool = False, config_path: str = ""
) -> str:
    """Hash a template and what is added to it; the order of keys is ignored.

    Args:
        template: the pod template.
        per_sandbox: whether a probe container is added.
        config_path: where the volume with the claim's configuration is mounted; empty for nowhere.
    """
    probe = b"+probe" if per_sandbox else b""
    config = f"+config:{config_path}".encode() if config_path else b""
    return hashlib.sha256(_encode(template) + probe + config).hexdigest()[:10]
