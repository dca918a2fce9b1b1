"""Decides when the events of a pool's sandboxes are read. Pure.

For each read the API server scans all events of the namespace. So events are read once for each
stage of a failing start: when the start is slow for its pool, when it is about to time out, and,
at growing intervals, while the sandbox is kept because its events name a self-healing failure.
"""

from collections.abc import Iterator

from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.pools.plan import PoolInput
from sandboxpool.sandboxes.members import Member

# The least duration of a slow start, and the only one until start-up times are known.
SLOW_SECONDS = 10.0
# A start is slow if it takes this many times the pool's 95th percentile.
SLOW_FACTOR = 3.0
# The first interval after which events are read again; it doubles each time.
REREAD_SECONDS = 60.0
_UNEXPLAINED = (Reason.POD_FAILED, Reason.LIFECYCLE_HOOK_FAILED)

_STARTING = (SandboxState.STARTING, SandboxState.COLD)


def slow_after(p95: float | None, limit: float) -> float:
    """The seconds after which a start is slow.

    Args:
        p95: the 95th percentile of the pool's start-up times, in seconds; None if unknown.
        limit: the start-up timeout, in seconds.
    """
    return min(max(SLOW_SECONDS, SLOW_FACTOR * (p95 or 0.0)), limit)


def members_to_read(given: PoolInput) -> Iterator[tuple[Member, str]]:
    """The members whose events should be read now, each with the stage of its failing start."""
    for member in given.members.of(*_STARTING, SandboxState.UNREADY, SandboxState.FAILED):
        stage = _stage(member, given)
        if stage:
            yield member, stage


def _stage(member: Member, given: PoolInput) -> str:
    failure = member.failure
    if member.state is SandboxState.FAILED:
        return "ended" if failure is not None and failure.reason in _UNEXPLAINED else ""
    waited = given.clock - member.since
    if member.state is SandboxState.UNREADY:
        return "unready" if waited > SLOW_SECONDS else ""
    if not member.node_name or (failure is not None and not failure.from_events):
        # The pod's status already names the cause.
        return ""
    if failure is not None and failure.self_healing:
        times = int(waited / REREAD_SECONDS)
        return f"held {times.bit_length()}" if times else ""
    if waited > given.spec.startup.timeout_seconds:
        return "overdue"
    return "slow" if waited > given.slow_seconds else ""


def next_read_in(given: PoolInput) -> float | None:
    """Seconds until the next member enters a new stage; None if none does."""
    found = [
        due - (given.clock - member.since)
        for member in given.members.of(*_STARTING, SandboxState.UNREADY)
        for due in _due(member, given)
    ]
    # A stage begins strictly after its limit.
    return min((seconds + 0.05 for seconds in found if seconds >= 0), default=None)


def _due(member: Member, given: PoolInput) -> tuple[float, ...]:
    failure = member.failure
    if member.state is SandboxState.UNREADY:
        return (SLOW_SECONDS,)
    if not member.node_name or (failure is not None and not failure.from_events):
        return ()
    if failure is not None and failure.self_healing:
        times = max(0, int((given.clock - member.since) / REREAD_SECONDS))
        return (REREAD_SECONDS * 2 ** times.bit_length(),)
    return (given.slow_seconds, given.spec.startup.timeout_seconds)
