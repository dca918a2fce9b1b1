"""When the events of a sandbox are read, and what waits for that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.pools.decide import decide
from sandboxpool.pools.event_reads import SLOW_SECONDS, members_to_read, next_read_in, slow_after
from sandboxpool.runtimes.diagnosis import Failure
from sandboxpool.sandboxes.members import Member
from sandboxpool.sandboxes.startup import WINDOW_SECONDS, StartupTimes
from support.builders import NOW, member, pool_input

UNMOUNTED = Failure(
    Reason.VOLUME_MOUNT_FAILED,
    "no secret",
    "node-1",
    self_healing=True,
    cluster_wide=True,
    from_events=True,
)
ENDED = Failure(Reason.POD_FAILED, "exit code 143", "node-1")
UNREADY = Failure(Reason.READINESS_PROBE_FAILING, "it said no", "node-1", from_events=True)
NO_IMAGE = Failure(Reason.IMAGE_PULL_FAILED, "no such host", "node-1", self_healing=True)


def stage(one: Member, **given: Any) -> str:
    found = [stage for _, stage in members_to_read(pool_input([one], **given))]
    return found[0] if found else ""


def starting(waited: float, failure: Failure | None = None, **given: Any) -> Member:
    return member("one", SandboxState.STARTING, age=waited, failure=failure, **given)


def test_slow_is_what_is_slow_for_the_pool_and_never_later_than_the_end() -> None:
    assert slow_after(None, 300) == SLOW_SECONDS
    assert slow_after(1.0, 300) == SLOW_SECONDS
    assert slow_after(20.0, 300) == 60.0
    assert slow_after(200.0, 300) == 300.0
    assert slow_after(None, 5) == 5.0


def test_how_long_starts_take_is_known_for_an_hour() -> None:
    times = StartupTimes()
    assert times.p95("ready", 0.0) is None
    for seconds in range(1, 101):
        times.add("ready", float(seconds), 0.0)
    assert times.p95("ready", 10.0) == 95.0
    assert times.p95("ready", WINDOW_SECONDS + 1.0) is None


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (starting(5), ""),
        (starting(11), "slow"),
        (starting(999), "overdue"),
        (starting(11, UNREADY), "slow"),
        (starting(999, UNREADY), "overdue"),
        # Its own status says what it waits for.
        (starting(999, NO_IMAGE), ""),
        (starting(999, node_name=""), ""),
        (starting(59, UNMOUNTED), ""),
        (starting(61, UNMOUNTED), "held 1"),
        (starting(130, UNMOUNTED), "held 2"),
        (starting(230, UNMOUNTED), "held 2"),
        (starting(250, UNMOUNTED), "held 3"),
        (member("one", SandboxState.FAILED, failure=ENDED), "ended"),
        (member("one", SandboxState.FAILED, failure=replace(ENDED, reason=Reason.EVICTED)), ""),
        (member("one", SandboxState.UNREADY, age=5), ""),
        (member("one", SandboxState.UNREADY, age=11), "unready"),
        (member("one", SandboxState.WARM, age=999), ""),
    ],
)
def test_events_are_read_once_for_each_stage_of_a_sandboxes_trouble(
    one: Member, expected: str
) -> None:
    assert stage(one) == expected


@pytest.mark.parametrize("waited", [0.0, 5.0, 11.0, 59.0, 61.0, 130.0, 299.0])
@pytest.mark.parametrize("failure", [None, UNREADY, UNMOUNTED])
def test_a_pool_is_looked_at_when_the_next_stage_begins(
    waited: float, failure: Failure | None
) -> None:
    one = starting(waited, failure)
    given = pool_input([one])
    seconds = next_read_in(given)
    assert seconds is not None
    before, after = (
        [stage for _, stage in members_to_read(replace(given, clock=NOW + seconds + step))]
        for step in (-0.1, 0.0)
    )
    assert after
    assert before != after


def test_what_has_ended_is_kept_until_its_events_are_read_and_nothing_takes_its_place() -> None:
    failed = member("failed", SandboxState.FAILED, failure=ENDED)
    given = pool_input([failed], replicas=1)
    plan = decide(replace(given, pending_event_reads=frozenset([failed.uid])))
    assert (plan.delete, plan.create) == ((), 0)
    plan = decide(given)
    assert [deletion.member for deletion in plan.delete] == [failed]


def test_what_is_overdue_is_kept_until_its_events_are_read() -> None:
    late = starting(999)
    given = pool_input([late], replicas=1)
    assert decide(replace(given, pending_event_reads=frozenset([late.uid]))).delete == ()
    (deletion,) = decide(given).delete
    assert deletion.reason is Reason.SANDBOX_START_TIMEOUT
    silent = replace(late, no_cause_message="nobody said a word")
    (deletion,) = decide(pool_input([silent], replicas=1)).delete
    assert deletion.message == "not ready after 300 s: nobody said a word"


def test_what_is_missing_everywhere_is_held_for_ever_and_tried_nowhere_else() -> None:
    held = starting(99_999, UNMOUNTED)
    plan = decide(pool_input([held], replicas=1))
    assert (plan.delete, plan.create, plan.avoid, plan.stuck_nodes) == ((), 0, (), frozenset())
    elsewhere = starting(99_999, replace(UNMOUNTED, cluster_wide=False))
    plan = decide(pool_input([elsewhere], replicas=1))
    assert (plan.create, [node for node, _ in plan.avoid]) == (1, ["node-1"])
