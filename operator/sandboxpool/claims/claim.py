"""SandboxClaims as the hot path reads and writes them.

The pydantic models of the API are the source of the schema; here the same fields are decoded
into structs, because a claim is read some ten times on its way and must cost microseconds.
A test holds the two against each other.
"""

from typing import Any

import msgspec

from sandboxpool.api.core import Condition, Metadata

FINISHED = frozenset({"Failed", "Expired", "Lost"})


class ClaimMetadata(msgspec.Struct, frozen=True, omit_defaults=True):
    """Labels and annotations that the claim wants on its pod."""

    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class ClaimSpec(msgspec.Struct, frozen=True):
    """What the application asks for."""

    poolName: str
    runtimeClassName: str | None = None
    isolationProof: str | None = None
    ttlSeconds: int | None = None
    bindTimeoutSeconds: int = 300
    onEmpty: str = "Wait"
    metadata: ClaimMetadata = ClaimMetadata()


class ClaimRuntime(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the claim got."""

    className: str
    handler: str
    evidence: str | None = None


class ClaimStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of the claim; without a phase it is pending."""

    observedGeneration: int = 0
    phase: str = ""
    podName: str | None = None
    podUID: str | None = None
    podIP: str | None = None
    podIPs: list[str] = []
    nodeName: str | None = None
    runtime: ClaimRuntime | None = None
    source: str | None = None
    boundAt: str | None = None
    expiresAt: str | None = None
    finishedAt: str | None = None
    conditions: list["ClaimCondition"] = []

    def body(self) -> dict[str, Any]:
        """The status as it is sent."""
        builtins: dict[str, Any] = msgspec.to_builtins(self)
        return builtins


class ClaimCondition(Condition, frozen=True, gc=False):
    """A condition with the generation that it is about."""

    observedGeneration: int | None = None


class _ClaimMeta(Metadata, frozen=True):
    generation: int = 0


class Claim(msgspec.Struct, frozen=True):
    """One SandboxClaim."""

    metadata: _ClaimMeta
    spec: ClaimSpec
    status: ClaimStatus = ClaimStatus()

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.metadata.namespace, self.metadata.name

    @property
    def identity(self) -> tuple[str, str]:
        """Namespace and uid."""
        return self.metadata.namespace, self.metadata.uid

    @property
    def uid(self) -> str:
        """The claim's uid: a claim made again under the same name is another one."""
        return self.metadata.uid

    @property
    def deleting(self) -> bool:
        """The claim is on its way out."""
        return self.metadata.deletionTimestamp is not None

    @property
    def finished(self) -> bool:
        """Nothing will be handed to this claim any more."""
        return self.status.phase in FINISHED

    @property
    def bound(self) -> bool:
        """The claim says which pod it has."""
        return self.status.phase == "Bound" and self.status.podUID is not None
