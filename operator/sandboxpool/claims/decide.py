"""Decides on claims without I/O: whether a pool serves a claim, its deadlines and its status."""

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

_encode = msgspec.json.Encoder(order="deterministic").encode

# The proofs that a claim may assert, by the proof that its pool requires.
_ASSERTABLE: dict[IsolationProof, tuple[AssertedProof, ...]] = {
    IsolationProof.NONE: (),
    IsolationProof.PER_NODE: (AssertedProof.PER_NODE,),
    IsolationProof.PER_SANDBOX: (AssertedProof.PER_NODE, AssertedProof.PER_SANDBOX),
}


def refusal_for(claim: SandboxClaim, spec: SandboxPoolSpec) -> Refusal | None:
    """Why this pool will never serve this claim; None if it may."""
    asserted = claim.spec.runtimeClassName
    if asserted is not None and asserted != spec.runtime_class_name:
        return Refusal(
            Reason.RUNTIME_CLASS_MISMATCH,
            f"spec.runtimeClassName asserts {asserted!r}, but pool {claim.spec.poolName!r} has "
            f"{spec.runtime_class_name!r}: name a pool of the asserted class in spec.poolName",
        )
    proof = claim.spec.isolationProof
    if proof is not None and proof not in _ASSERTABLE[spec.isolation_proof]:
        return Refusal(
            Reason.ISOLATION_PROOF_MISMATCH,
            f"spec.isolationProof asserts at least {proof.value!r}, but pool "
            f"{claim.spec.poolName!r} has {spec.isolation_proof.value!r}: name a pool that "
            "requires as much proof in spec.poolName, or assert less",
        )
    if claim.spec.config and not spec.claims.config_path:
        return Refusal(
            Reason.CONFIG_NOT_MOUNTED,
            f"spec.config is set, but the sandboxes of pool {claim.spec.poolName!r} have no place "
            "for it: remove it, name another pool in spec.poolName, or have the pool's owner set "
            "spec.claims.configPath",
        )
    allowed = spec.claims.allowed_metadata_prefixes
    for field in ("labels", "annotations"):
        fixed = getattr(spec.template.metadata, field)
        for key in getattr(claim.spec.metadata, field):
            if is_reserved_metadata_key(key) or not key.startswith(allowed or ("\0",)):
                return Refusal(
                    Reason.METADATA_NOT_ALLOWED,
                    f"spec.metadata.{field}[{key!r}] is not allowed: pool "
                    f"{claim.spec.poolName!r} allows keys that begin with "
                    f"{', '.join(allowed) or '(nothing: claims.allowedMetadataPrefixes is empty)'}",
                )
            if key in fixed:
                return Refusal(
                    Reason.METADATA_NOT_ALLOWED,
                    f"spec.metadata.{field}[{key!r}] is not allowed: the template of pool "
                    f"{claim.spec.poolName!r} sets it, and a claim cannot override that; remove "
                    "it, or use another key",
                )
    return None


def reference(claim: SandboxClaim) -> ClaimRef:
    """The claim as the metadata of its pod refers to it."""
    return ClaimRef(
        name=claim.metadata.name,
        uid=claim.uid,
        labels=tuple(sorted(claim.spec.metadata.labels.items())),
        annotations=tuple(sorted(claim.spec.metadata.annotations.items())),
        config=_encode(claim.spec.config).decode() if claim.spec.config else "",
    )


def lacks_config_volume(claim: SandboxClaim, pod: Pod) -> bool:
    """Whether the claim has a configuration that this pod would never show.

    Such a pod was made while the pool's `configPath` was empty, or before there was one.
    """
    return bool(claim.spec.config) and not pod.metadata.annotations.get(
        names.ANNOTATION_CONFIG_PATH
    )


def minimum_wait(claim: SandboxClaim, now: float) -> float:
    """The least number of seconds for which the claim has existed.

    The creation time has whole seconds. One in the future, or none, counts as now.
    """
    created = epoch(claim.metadata.creationTimestamp)
    return max(0.0, now - created - 1.0) if created else 0.0


def ttl_seconds(claim: SandboxClaim, spec: SandboxPoolSpec | None) -> int | None:
    """Seconds after its binding at which the claim expires; None if it does not expire."""
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
    """Whether the ttlSeconds of a bound claim were changed: the rest of the spec is immutable."""
    return claim.status.observedGeneration != claim.metadata.generation


def expiry(claim: SandboxClaim, spec: SandboxPoolSpec | None) -> float | None:
    """Epoch seconds at which a bound claim expires; None if it lives until it is deleted.

    The time set at the binding does not change with the pool's limits. The claim's owner changes it
    by ttlSeconds, within the current limit of the pool, which never shortens what was set before. A
    deleted pool has no limit.
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
    """The status of a claim that is bound to this pod."""
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
    cause = termination_cause(pod) if pod.metadata.deletionTimestamp is not None else None
    if cause is not None:
        return False, cause.reason, cause.message
    if host_state.node is not None and host_state.node.ready and not host_state.handler_served:
        return (
            False,
            Reason.HANDLER_REMOVED,
            f"node {host_state.node.name} no longer has the handler {host_state.handler!r}: the "
            "sandbox keeps running, but kubectl exec and restarts of its containers fail",
        )
    if not pod.ready:
        failure = diagnose(pod, None)
        return False, Reason.POD_NOT_READY, failure.message if failure else "the pod is not ready"
    if restarted:
        return (
            False,
            Reason.POD_RESTARTED,
            f"container {', '.join(restarted)} was restarted: the state in it is lost",
        )
    return True, Reason.POD_READY, "the pod is ready"


def pending_status(
    claim: SandboxClaim, reason: Reason, message: str, now: float
) -> SandboxClaimStatus:
    """The status of a claim that waits, with the reason."""
    return SandboxClaimStatus(
        observedGeneration=claim.metadata.generation,
        phase=ClaimPhase.PENDING,
        conditions=_conditions(claim, now, *_neither(reason, message)),
    )


def finished_status(
    claim: SandboxClaim, phase: ClaimPhase, reason: Reason, message: str, now: float
) -> SandboxClaimStatus:
    """The status of a claim that has finished; it keeps what was bound."""
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
    """Epoch seconds until which a deleted claim keeps its pod for its finalizers.

    The pod is kept as long as a finished claim is, but not beyond the claim's expiry.
    """
    limit = epoch(claim.metadata.deletionTimestamp or "") + _ttl_after_finished(spec)
    expires = expiry(claim, spec)
    return limit if expires is None else min(limit, expires)


def _ttl_after_finished(spec: SandboxPoolSpec | None) -> int:
    """Seconds for which a finished claim is kept."""
    if spec is None:
        return DEFAULT_TTL_AFTER_FINISHED_SECONDS
    return spec.claims.ttl_seconds_after_finished


def differ_only_in_messages(old: SandboxClaimStatus, new: SandboxClaimStatus) -> bool:
    """Whether two statuses differ, and only in the messages of their conditions."""
    return old != new and _without_messages(old) == _without_messages(new)


def _without_messages(status: SandboxClaimStatus) -> SandboxClaimStatus:
    without_message = [
        msgspec.structs.replace(condition, message="") for condition in status.conditions
    ]
    return msgspec.structs.replace(status, conditions=without_message)


def reported_cause(claim: SandboxClaim) -> TerminationCause | None:
    """Why the claim's pod terminates, if the claim's status reports it already."""
    causes = (
        TerminationCause(Reason(c.reason), c.message)
        for c in claim.status.conditions
        if _reports_termination(c)
    )
    return next(causes, None)


def _reports_termination(condition: Condition) -> bool:
    return (
        condition.type == "Ready"
        and condition.status == "False"
        and condition.reason in TERMINATION_REASONS
    )


def choose(claim: SandboxClaim, pods: list[Pod]) -> tuple[Pod, list[Pod]]:
    """Split the pods of one claim: the one that its status names, else the oldest; the others."""
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
