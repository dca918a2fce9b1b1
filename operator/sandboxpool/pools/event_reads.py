"""When the events of a pool's sandbox are to be read. Pure.

To read them costs the API server a walk over all events of the namespace, so it is done once for
each stage of a sandbox's trouble: when it is slow for its pool, when it is about to be given up,
and while it is held because of what was read, ever more seldom.
"""

from collections.abc import Iterator

from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.pools.plan import PoolInput
from sandboxpool.sandboxes.members import Member

# Where a pool has not shown yet how long its sandboxes take, and at least in any other.
SLOW_SECONDS = 10.0
# A start that takes so many times as long as 95 of 100 others is slow.
SLOW_FACTOR = 3.0
# What was read is read again after so long, twice as long, and so on.
REREAD_SECONDS = 60.0
_UNEXPLAINED = (Reason.POD_FAILED, Reason.LIFECYCLE_HOOK_FAILED)

_STARTING = (SandboxState.STARTING, SandboxState.COLD)


def slow_after(p95: float | None, limit: float) -> float:
    """How many seconds a start may take before it is slow.

    Args:
        p95: what 95 of 100 starts of the pool took at most; None if that is not known.
        limit: when a start is given up.
    """
    return min(max(SLOW_SECONDS, SLOW_FACTOR * (p95 or 0.0)), limit)


def members_to_read(given: PoolInput) -> Iterator[tuple[Member, str]]:
    """Whose events would tell something now, and in which stage of its trouble it is."""
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
        # The scheduler, or its own status, says what it waits for.
        return ""
    if failure is not None and failure.self_healing:
        times = int(waited / REREAD_SECONDS)
        return f"held {times.bit_length()}" if times else ""
    if waited > given.spec.startup.timeout_seconds:
        return "overdue"
    return "slow" if waited > given.slow_seconds else ""


def next_read_in(given: PoolInput) -> float | None:
    """Seconds until another look is due because time has passed; None if there is none."""
    found = [
        due - (given.clock - member.since)
        for member in given.members.of(*_STARTING, SandboxState.UNREADY)
        for due in _due(member, given)
    ]
    # At the very moment itself nothing is due yet.
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
