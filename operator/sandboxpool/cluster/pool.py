"""A pool as the operator holds it: identity, parsed spec, and what its status says now."""

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
        spec: None if the object does not fit the API; ``problem`` says how then.
        template: the pod template as it was written, for the pods that we make.
        status: the status as it stands on the server, possibly damaged by others.
        version: the resourceVersion that this was read at.
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
        """How much proof of isolation the pool wants."""
        return self.spec.isolation_proof if self.spec is not None else IsolationProof.PER_NODE

    @property
    def revision(self) -> str:
        """Short hash of what its pods are made from: pods of another revision are outdated."""
        per_sandbox = self.proof is IsolationProof.PER_SANDBOX
        return revision_of(self.template, per_sandbox=per_sandbox)

    @property
    def conditions(self) -> list[Condition]:
        """The conditions as they stand in the status; damage counts as absence."""
        return stored_conditions(self.status)

    def ready_message(self) -> str:
        """The message of its condition Ready, for whoever waits for it."""
        ready = (c.message for c in self.conditions if c.type == "Ready")
        return next(ready, "nothing yet")

    @property
    def reference(self) -> ObjectReference:
        """What events and log lines are about."""
        return ObjectReference(
            names.API_VERSION, names.POOL_KIND, self.namespace, self.name, self.uid
        )


def revision_of(template: Mapping[str, Any], *, per_sandbox: bool = False) -> str:
    """Hash a template, and whether a probe goes before it; the order of keys does not matter."""
    probe = b"+probe" if per_sandbox else b""
    return hashlib.sha256(_encode(template) + probe).hexdigest()[:10]
