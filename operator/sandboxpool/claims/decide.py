"""What may be said of a claim without I/O: whether it may have a pod, and its status. Pure."""

import math

import msgspec

from sandboxpool.allocation.refusal import Refusal
from sandboxpool.api import names
from sandboxpool.api.conditions import ConditionResult, conditions
from sandboxpool.api.core import Pod
from sandboxpool.api.reasons import Reason
from sandboxpool.api.times import epoch, timestamp
from sandboxpool.api.v1alpha1 import (
    AssertedProof,
    ClaimPhase,
    ClaimRuntime,
    ClaimSource,
    Condition,
    IsolationProof,
    SandboxClaim,
    SandboxClaimStatus,
    SandboxPoolSpec,
    is_reserved_metadata_key,
)
from sandboxpool.runtimes.diagnosis import diagnose
from sandboxpool.runtimes.host_state import HostState
from sandboxpool.runtimes.termination import (
    TERMINATION_REASONS,
    TerminationCause,
    restart_cause,
    termination_cause,
)
from sandboxpool.sandboxes.template import ClaimRef

DEFAULT_TTL_AFTER_FINISHED_SECONDS = 3600

# What a claim may assert of a pool that wants so much proof.
_ASSERTABLE: dict[IsolationProof, tuple[AssertedProof, ...]] = {
    IsolationProof.NONE: (),
    IsolationProof.PER_NODE: (AssertedProof.PER_NODE,),
    IsolationProof.PER_SANDBOX: (AssertedProof.PER_NODE, AssertedProof.PER_SANDBOX),
}


def refusal_for(claim: SandboxClaim, spec: SandboxPoolSpec) -> Refusal | None:
    """Say why this pool will never serve this claim, if so."""
    asserted = claim.spec.runtimeClassName
    if asserted is not None and asserted != spec.runtime_class_name:
        return Refusal(
            Reason.RUNTIME_CLASS_MISMATCH,
            f"spec.runtimeClassName asserts {asserted!r}, but pool {claim.spec.poolName!r} has "
            f"{spec.runtime_class_name!r}: claim from a pool of that class",
        )
    proof = claim.spec.isolationProof
    if proof is not None and proof not in _ASSERTABLE[spec.isolation_proof]:
        return Refusal(
            Reason.ISOLATION_PROOF_MISMATCH,
            f"spec.isolationProof asserts at least {proof.value!r}, but pool "
            f"{claim.spec.poolName!r} has {spec.isolation_proof.value!r}: claim from a "
            "pool that wants as much proof",
        )
    allowed = spec.claims.allowed_metadata_prefixes
    for field in ("labels", "annotations"):
        fixed = getattr(spec.template.metadata, field)
        for key in getattr(claim.spec.metadata, field):
            if is_reserved_metadata_key(key) or not key.startswith(allowed or ("\0",)):
                return Refusal(
                    Reason.METADATA_NOT_ALLOWED,
                    f"spec.metadata.{field}[{key!r}] is not allowed: pool "
                    f"{claim.spec.poolName!r} takes keys that begin with "
                    f"{', '.join(allowed) or '(nothing: claims.allowedMetadataPrefixes is empty)'}",
                )
            if key in fixed:
                return Refusal(
                    Reason.METADATA_NOT_ALLOWED,
                    f"spec.metadata.{field}[{key!r}] is not allowed: the template of pool "
                    f"{claim.spec.poolName!r} sets it, and a claim cannot replace that; leave it "
                    "out, or use another key",
                )
    return None


def reference(claim: SandboxClaim) -> ClaimRef:
    """The claim as it stands on its pod."""
    return ClaimRef(
        name=claim.metadata.name,
        uid=claim.uid,
        labels=tuple(sorted(claim.spec.metadata.labels.items())),
        annotations=tuple(sorted(claim.spec.metadata.annotations.items())),
    )


def minimum_wait(claim: SandboxClaim, now: float) -> float:
    """Seconds that a claim has certainly waited: its creation time is cut to whole seconds.

    A creation time in the future, or none, says nothing of the past.
    """
    created = epoch(claim.metadata.creationTimestamp)
    return max(0.0, now - created - 1.0) if created else 0.0


def ttl_seconds(claim: SandboxClaim, spec: SandboxPoolSpec | None) -> int | None:
    """How long the claim may live from its binding; None for as long as it likes."""
    wanted = claim.spec.ttlSeconds
    if spec is None:
        return wanted
    if wanted is None:
        wanted = spec.claims.default_ttl_seconds
    longest = spec.claims.max_ttl_seconds
    if longest is not None:
        wanted = longest if wanted is None else min(wanted, longest)
    return wanted


def is_edited(claim: SandboxClaim) -> bool:
    """The ttlSeconds of a bound claim are not those that were last looked at.

    Nothing else of a claim's spec can be changed.
    """
    return claim.status.observedGeneration != claim.metadata.generation


def expiry(claim: SandboxClaim, spec: SandboxPoolSpec | None) -> float | None:
    """Epoch seconds at which a bound claim expires; None if it lives until it is deleted.

    What was promised at the binding stands, whatever has become of the pool's limits. Only the
    claim's owner changes it, by its ttlSeconds: within the limit of the pool as it is now, which
    takes nothing back that was promised. Of a pool that is gone there is no limit.
    """
    bound = epoch(claim.status.boundAt or "")
    if not bound:
        return None
    promised = epoch(claim.status.expiresAt or "") or None
    wanted = claim.spec.ttlSeconds
    if not is_edited(claim) or (spec is None and wanted is None):
        return promised
    longest = None
    if spec is not None:
        wanted = spec.claims.default_ttl_seconds if wanted is None else wanted
        longest = spec.claims.max_ttl_seconds
    own = math.inf if wanted is None else bound + wanted
    limit = math.inf if longest is None else bound + longest
    ends = min(own, max(limit, promised or math.inf))
    return None if math.isinf(ends) else ends


def bound_status(
    claim: SandboxClaim,
    pod: Pod,
    host_state: HostState,
    *,
    source: ClaimSource,
    bound_at: float,
    expires: float | None,
    evidence: str | None,
    now: float,
) -> SandboxClaimStatus:
    """The status of a claim that has this pod."""
    annotations = pod.metadata.annotations
    return SandboxClaimStatus(
        observedGeneration=claim.metadata.generation,
        phase=ClaimPhase.BOUND,
        podName=pod.metadata.name,
        podUID=pod.metadata.uid,
        podIP=pod.status.podIP or None,
        podIPs=[address.ip for address in pod.status.podIPs],
        nodeName=pod.spec.nodeName or None,
        runtime=ClaimRuntime(
            className=pod.spec.runtimeClassName,
            handler=annotations.get(names.ANNOTATION_HANDLER, ""),
            evidence=evidence,
        ),
        source=source,
        boundAt=timestamp(bound_at),
        expiresAt=None if expires is None else timestamp(expires),
        conditions=_conditions(
            claim,
            now,
            ConditionResult("Bound", True, Reason.BOUND, f"sandbox {pod.metadata.name}"),
            ConditionResult("Ready", *_readiness(pod, host_state)),
        ),
    )


def _readiness(pod: Pod, host_state: HostState) -> tuple[bool, Reason, str]:
    restarted = [restart_cause(c) for c in pod.status.containerStatuses if c.restartCount > 0]
    ending = termination_cause(pod) if pod.metadata.deletionTimestamp is not None else None
    if ending is not None:
        return False, ending.reason, ending.message
    if host_state.node is not None and host_state.node.ready and not host_state.handler_served:
        return (
            False,
            Reason.HANDLER_REMOVED,
            f"node {host_state.node.name} no longer has the handler {host_state.handler!r}: what "
            "runs goes on, but nothing can be executed or restarted in it",
        )
    if not pod.ready:
        failure = diagnose(pod, None)
        return False, Reason.POD_NOT_READY, failure.message if failure else "the pod is not ready"
    if restarted:
        return (
            False,
            Reason.POD_RESTARTED,
            f"container {', '.join(restarted)} was restarted: what was in it is lost",
        )
    return True, Reason.POD_READY, "the pod is ready"


def pending_status(
    claim: SandboxClaim, reason: Reason, message: str, now: float
) -> SandboxClaimStatus:
    """The status of a claim that has to wait for something it should be told about."""
    return SandboxClaimStatus(
        observedGeneration=claim.metadata.generation,
        phase=ClaimPhase.PENDING,
        conditions=_conditions(claim, now, *_neither(reason, message)),
    )


def finished_status(
    claim: SandboxClaim, phase: ClaimPhase, reason: Reason, message: str, now: float
) -> SandboxClaimStatus:
    """The status of a claim that has come to its end; what it had stays readable."""
    was = claim.status
    return SandboxClaimStatus(
        observedGeneration=claim.metadata.generation,
        phase=phase,
        podName=was.podName,
        podUID=was.podUID,
        nodeName=was.nodeName,
        runtime=was.runtime,
        source=was.source,
        boundAt=was.boundAt,
        expiresAt=was.expiresAt,
        finishedAt=timestamp(now),
        conditions=_conditions(claim, now, *_neither(reason, message)),
    )


def cleanup_time(claim: SandboxClaim, spec: SandboxPoolSpec | None) -> float:
    """Epoch seconds after which a finished claim is deleted."""
    finished_at = epoch(claim.status.finishedAt or claim.metadata.creationTimestamp)
    return finished_at + _ttl_after_finished(spec)


def finalizer_deadline(claim: SandboxClaim, spec: SandboxPoolSpec | None) -> float:
    """Epoch seconds until which a bound claim that was deleted keeps its pod for its finalizers.

    As long as a finished claim is kept, and never longer than it was promised.
    """
    limit = epoch(claim.metadata.deletionTimestamp or "") + _ttl_after_finished(spec)
    expires = expiry(claim, spec)
    return limit if expires is None else min(limit, expires)


def _ttl_after_finished(spec: SandboxPoolSpec | None) -> int:
    """Seconds for which what a claim has left is kept."""
    if spec is None:
        return DEFAULT_TTL_AFTER_FINISHED_SECONDS
    return spec.claims.ttl_seconds_after_finished


def differ_only_in_messages(old: SandboxClaimStatus, new: SandboxClaimStatus) -> bool:
    """Whether two statuses say the same, but for the messages of their conditions."""
    return old != new and _without_messages(old) == _without_messages(new)


def _without_messages(status: SandboxClaimStatus) -> SandboxClaimStatus:
    without_message = [
        msgspec.structs.replace(condition, message="") for condition in status.conditions
    ]
    return msgspec.structs.replace(status, conditions=without_message)


def reported_ending(claim: SandboxClaim) -> TerminationCause | None:
    """Why the claim's pod goes, if the claim says so already."""
    told = (
        TerminationCause(Reason(c.reason), c.message)
        for c in claim.status.conditions
        if _reports_ending(c)
    )
    return next(told, None)


def _reports_ending(condition: Condition) -> bool:
    return (
        condition.type == "Ready"
        and condition.status == "False"
        and condition.reason in TERMINATION_REASONS
    )


def choose(claim: SandboxClaim, pods: list[Pod]) -> tuple[Pod, list[Pod]]:
    """Of several pods that carry one claim, keep one: the one it names, else the oldest."""
    ranked = sorted(
        pods,
        key=lambda pod: (
            pod.metadata.name != claim.status.podName,
            pod.metadata.deletionTimestamp is not None,
            pod.metadata.creationTimestamp,
            pod.metadata.name,
        ),
    )
    return ranked[0], ranked[1:]


def _neither(reason: Reason, message: str) -> tuple[ConditionResult, ConditionResult]:
    return ConditionResult("Bound", False, reason, message), ConditionResult(
        "Ready", False, reason, message
    )


def _conditions(claim: SandboxClaim, now: float, *findings: ConditionResult) -> list[Condition]:
    return conditions(findings, claim.status.conditions, claim.metadata.generation, now)
