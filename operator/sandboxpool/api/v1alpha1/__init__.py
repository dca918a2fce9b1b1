"""The kinds of `sandboxpool.io/v1alpha1`: what people write and what the operator answers.

These classes are the one source of the CRDs: types, bounds, defaults and descriptions come from
the fields and their docstrings, the rules that the API server evaluates from the CEL markers. They
are also what the operator reads and writes. What people write and the operator has to judge, the
spec of a pool, is a pydantic model: its bounds are checked again on parsing, so an object that
slipped in under an older CRD raises one `ValidationError` that names the field. Claims and all
statuses, which are decoded and written all the time, are msgspec structs.

Everything that a CEL rule reads is bounded: the API server refuses a CRD whose rules could cost too
much, and it reckons with the largest object that the schema allows.

A rule that is added or tightened must not block what exists. CEL rules pass over what an update
does not change, and those on a whole object judge it at creation only. The API server does the same
for the schema's own keywords, but not for a type or a `required`, and for none in a status.
"""

from sandboxpool.api.v1alpha1.claim import (
    AssertedProof,
    ClaimMetadata,
    ClaimPhase,
    ClaimRuntime,
    ClaimSource,
    OnEmpty,
    SandboxClaim,
    SandboxClaimSpec,
    SandboxClaimStatus,
)
from sandboxpool.api.v1alpha1.common import (
    Condition,
    Conditions,
    ConditionStatus,
    NodeCounts,
    PoolStartup,
    StageTiming,
)
from sandboxpool.api.v1alpha1.pool import (
    ClaimsPolicy,
    Disruption,
    IsolationProof,
    Placement,
    PodTemplate,
    PoolIssue,
    PoolRuntime,
    SandboxPool,
    SandboxPoolSpec,
    SandboxPoolStatus,
    Startup,
    TemplateMetadata,
    UnfitPoolStatus,
    Update,
    UpdateType,
)
from sandboxpool.api.v1alpha1.reserved import (
    is_reserved_metadata_key,
)
from sandboxpool.api.v1alpha1.runtime import (
    Isolation,
    IsolationEvidence,
    RuntimeAdvice,
    RuntimeIssue,
    SandboxCounts,
    SandboxRuntime,
    SandboxRuntimeStatus,
)

Kind = type[SandboxPool] | type[SandboxClaim] | type[SandboxRuntime]
KINDS: tuple[Kind, ...] = (SandboxPool, SandboxClaim, SandboxRuntime)

__all__ = [
    "KINDS",
    "AssertedProof",
    "ClaimMetadata",
    "ClaimPhase",
    "ClaimRuntime",
    "ClaimSource",
    "ClaimsPolicy",
    "Condition",
    "ConditionStatus",
    "Conditions",
    "Disruption",
    "Isolation",
    "IsolationEvidence",
    "IsolationProof",
    "Kind",
    "NodeCounts",
    "OnEmpty",
    "Placement",
    "PodTemplate",
    "PoolIssue",
    "PoolRuntime",
    "PoolStartup",
    "RuntimeAdvice",
    "RuntimeIssue",
    "SandboxClaim",
    "SandboxClaimSpec",
    "SandboxClaimStatus",
    "SandboxCounts",
    "SandboxPool",
    "SandboxPoolSpec",
    "SandboxPoolStatus",
    "SandboxRuntime",
    "SandboxRuntimeStatus",
    "StageTiming",
    "Startup",
    "TemplateMetadata",
    "UnfitPoolStatus",
    "Update",
    "UpdateType",
    "is_reserved_metadata_key",
]
