"""The statuses that the bridge writes on BatchSandboxes."""

from collections.abc import Iterable

import msgspec

from sandboxpool.api import core
from sandboxpool.api.conditions import MAX_MESSAGE
from sandboxpool.api.times import timestamp
from sandboxpool.opensandbox.kinds import BatchSandbox, BatchSandboxStatus, Phase
from sandboxpool.opensandbox.reasons import BridgeReason

CAPACITY_PENDING = "PoolAllocationPending"
_TASK_REASONS = frozenset({BridgeReason.TASK_FAILED, BridgeReason.TASK_NOT_DELIVERED})


def pending(sandbox: BatchSandbox, reason: str, message: str, now: float) -> BatchSandboxStatus:
    """There is no sandbox yet."""
    return BatchSandboxStatus(
        phase=Phase.PENDING,
        observedGeneration=sandbox.metadata.generation,
        replicas=1,
        conditions=_conditions(sandbox, [(CAPACITY_PENDING, reason, message)], now),
    )


def without_capacity_condition(status: BatchSandboxStatus) -> BatchSandboxStatus:
    """The same for CRDs older than August 2026, which do not know the condition."""
    kept = [c for c in status.conditions if c.type != CAPACITY_PENDING]
    return msgspec.structs.replace(status, conditions=kept)


def failed(sandbox: BatchSandbox, reason: str, message: str, now: float) -> BatchSandboxStatus:
    """The request has failed, or its sandbox is gone."""
    of_task = reason in _TASK_REASONS
    # The server passes this message on to the application, and nothing else.
    said = message if reason in message else f"{reason}: {message}"
    return BatchSandboxStatus(
        phase=Phase.FAILED,
        observedGeneration=sandbox.metadata.generation,
        replicas=1,
        taskFailed=int(of_task),
        taskLastErrorMessage=message[:MAX_MESSAGE] if of_task else None,
        conditions=_conditions(sandbox, [("PodFailed", reason, said)], now),
    )


def running(sandbox: BatchSandbox, *, with_task: bool, now: float) -> BatchSandboxStatus:
    """The application has its sandbox; a pause of it is answered."""
    wanted = [("Ready", str(BridgeReason.PODS_READY), "the sandbox is bound and its address known")]
    generation = sandbox.metadata.generation
    paused = bool(sandbox.spec.pause)
    if paused:
        text = "a sandbox of a SandboxPool cannot be paused: it goes on running"
        wanted.append(("PauseFailed", BridgeReason.PAUSE_NOT_SUPPORTED, text))
    return BatchSandboxStatus(
        phase=Phase.SUCCEED,
        observedGeneration=generation,
        pauseObservedGeneration=generation if paused else None,
        replicas=1,
        allocated=1,
        ready=1,
        taskRunning=int(with_task),
        conditions=_conditions(sandbox, wanted, now),
    )


def _conditions(
    sandbox: BatchSandbox, wanted: Iterable[tuple[str, str, str]], now: float
) -> list[core.Condition]:
    """Conditions that are True; OpenSandbox removes a condition instead of writing False."""
    known = {c.type: c for c in sandbox.status.conditions if c.status == "True"}
    return [
        core.Condition(
            type=type_,
            status="True",
            reason=str(reason),
            message=message[:MAX_MESSAGE],
            lastTransitionTime=(type_ in known and known[type_].lastTransitionTime)
            or timestamp(now),
        )
        for type_, reason, message in wanted
    ]
