"""What seems to be of no use, and what takes its place."""

from dataclasses import replace
from typing import Any

import pytest

from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.pools.decide import decide
from sandboxpool.pools.plan import PoolPlan
from sandboxpool.pools.replacement import (
    STUCK_SECONDS,
    UNACKNOWLEDGED_SECONDS,
    UNREADY_GRACE_SECONDS,
)
from sandboxpool.runtimes.diagnosis import Failure
from sandboxpool.runtimes.evidence import Isolation
from sandboxpool.runtimes.verdict import Verdict
from support.builders import facts, member, members, pool_input

PULLING = Failure(Reason.IMAGE_PULL_FAILED, "main: ErrImagePull", self_healing=True)
SERVED = Verdict(serving=("node-1", "node-2", "node-3"))
LONG = STUCK_SECONDS + 1.0
STUCK: dict[str, Any] = {"failure": PULLING, "age": LONG, "node": facts("node-1")}


def going(plan: PoolPlan) -> list[str]:
    return [deletion.member.state.value for deletion in plan.delete]


# --- Ready once ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("age", "create"), [(UNREADY_GRACE_SECONDS - 9.0, 0), (LONG, 1)])
def test_what_was_ready_is_waited_for_before_another_is_made(age: float, create: int) -> None:
    plan = decide(pool_input(members(SandboxState.UNREADY, 6, age=age), replicas=6))
    assert (plan.create, plan.delete) == (create, ())


def test_what_was_ready_is_deleted_when_another_is_warm_in_its_place() -> None:
    unready = members(SandboxState.UNREADY, 3, age=LONG)
    warm = members(SandboxState.WARM, 1)
    plan = decide(pool_input([*unready, *warm], replicas=3))
    assert going(plan) == ["unready"]
    assert plan.delete[0].member.created == min(m.created for m in unready), "the oldest"


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_no_more_are_replaced_at_once_than_may_be_missing(at_once: int) -> None:
    unready = members(SandboxState.UNREADY, 5, age=LONG)
    plan = decide(pool_input(unready, replicas=5, update={"maxUnavailable": at_once}))
    assert (plan.create, plan.delete) == (at_once, ())
    starting = members(SandboxState.STARTING, at_once, age=1.0)
    plan = decide(pool_input([*unready, *starting], replicas=5, update={"maxUnavailable": at_once}))
    assert (plan.create, plan.delete) == (0, ())


def test_at_the_ceiling_one_that_is_not_ready_makes_room_and_counts_as_a_failure() -> None:
    plan = decide(
        pool_input(members(SandboxState.UNREADY, 3, age=LONG), replicas=3, maxSandboxes=3)
    )
    assert (plan.create, going(plan)) == (0, ["unready"])
    assert plan.delete[0].failed


def test_at_the_ceiling_nothing_makes_room_for_what_may_not_start_yet() -> None:
    stuck = member("stuck", SandboxState.STARTING, **STUCK)
    plan = decide(
        pool_input(
            [stuck, member("other", SandboxState.STARTING, age=1.0)],
            replicas=2,
            maxSandboxes=2,
            startup={"maxStarting": 1},
            verdict=SERVED,
        )
    )
    assert (plan.create, plan.delete) == (0, ())
    assert plan.blocked_by is Reason.CLAMPED_BY_MAX_SANDBOXES


def test_at_the_ceiling_room_is_made_in_the_same_plan_that_uses_up_the_rest() -> None:
    stuck = member("stuck", SandboxState.STARTING, **STUCK)
    other = member("other", SandboxState.STARTING, age=1.0)
    given = pool_input([stuck, other], replicas=3, maxSandboxes=3, verdict=SERVED)
    plan = decide(given)
    assert (plan.create, going(plan)) == (1, ["starting"])
    assert plan.delete[0].member is stuck


# --- Waiting for the kubelet ---------------------------------------------------------------------


def test_a_stuck_pod_is_replaced_on_another_node() -> None:
    plan = decide(
        pool_input(members(SandboxState.STARTING, 3, **STUCK), replicas=3, verdict=SERVED)
    )
    assert (plan.create, plan.delete) == (1, ())
    assert plan.avoid == (("node-1", PULLING.message),)


def test_stuck_pods_do_not_count_towards_max_starting() -> None:
    stuck = members(SandboxState.STARTING, 2, **STUCK)
    given = pool_input(stuck, replicas=4, verdict=SERVED, startup={"maxStarting": 2})
    assert decide(given).create == 2


@pytest.mark.parametrize(
    ("verdict", "before"),
    [(Verdict(serving=("node-1",)), ()), (SERVED, ("node-2", "node-3"))],
    ids=["the only node", "the others were no better of late"],
)
def test_where_every_node_is_as_bad_what_waits_is_held(
    verdict: Verdict, before: tuple[str, ...]
) -> None:
    stuck = members(SandboxState.STARTING, 3, **STUCK)
    plan = decide(pool_input(stuck, replicas=3, verdict=verdict, stuck_nodes=before))
    assert (plan.create, plan.delete, plan.avoid) == (0, (), ())
    assert plan.stuck_nodes == {"node-1"}, "it is remembered all the same"


def test_a_stuck_cold_pod_is_deleted_at_once_if_another_node_may_start_it() -> None:
    cold = member("cold", SandboxState.COLD, **STUCK)
    assert going(decide(pool_input([cold], replicas=0, verdict=SERVED))) == ["cold"]
    alone = Verdict(serving=("node-1",))
    assert decide(pool_input([cold], replicas=0, verdict=alone)).delete == ()


# --- Not on a node yet ---------------------------------------------------------------------------


@pytest.mark.parametrize("state", [SandboxState.STARTING, SandboxState.COLD])
def test_what_has_no_node_is_not_late(state: SandboxState) -> None:
    waiting = member("waiting", state, age=9999.0, node_name="")
    assert decide(pool_input([waiting])).delete == ()
    late = member("late", state, age=301.0)
    assert going(decide(pool_input([late]))) == [state.value]


# --- Cordoned ------------------------------------------------------------------------------------


def test_ready_pods_on_a_cordoned_node_are_relocated_within_the_budget() -> None:
    cordoned = facts("node-1", unschedulable=True)
    there = members(SandboxState.STRANDED, 3, node=cordoned, ready=True)
    elsewhere = members(SandboxState.WARM, 6, node=facts("node-2"))
    plan = decide(pool_input([*there, *elsewhere], replicas=9, verdict=SERVED))
    assert (going(plan), plan.create) == (["stranded"], 3)
    assert plan.delete[0].reason is Reason.SANDBOX_REPLACED
    nowhere = Verdict()
    plan = decide(pool_input(there, replicas=3, verdict=nowhere))
    assert (plan.delete, plan.create) == ((), 1), "one waits, for an autoscaler to see"


# --- Put where it cannot be handed out -----------------------------------------------------------

CORDONED = facts("node-1", unschedulable=True)
NOT_READY = facts("node-1", ready=False)
NOWHERE = Verdict()


def test_a_pod_scheduled_to_a_cordoned_node_is_deleted_as_a_failure() -> None:
    put = member("put", SandboxState.STRANDED, node=CORDONED, age=1.0, misplaced=True)
    plan = decide(pool_input([put], replicas=1, verdict=SERVED))
    (deletion,) = plan.delete
    assert deletion.failed
    assert plan.create == 0, "the next one waits for the delay that follows"
    for word in ("cordoned", "operator: Exists"):
        assert word in deletion.message
    was_ready = member("was", SandboxState.STRANDED, node=CORDONED, age=LONG, was_ready=True)
    (deletion,) = decide(pool_input([was_ready], replicas=1, verdict=SERVED)).delete
    assert not deletion.failed


def test_a_pod_that_became_ready_on_a_cordoned_node_is_a_failure_too() -> None:
    put = members(SandboxState.STRANDED, 2, node=CORDONED, ready=True, misplaced=True)
    (deletion,) = decide(pool_input(put, replicas=1, verdict=NOWHERE)).delete
    assert deletion.failed
    stranded = members(SandboxState.STRANDED, 2, node=CORDONED, ready=True)
    (deletion,) = decide(pool_input(stranded, replicas=1, verdict=NOWHERE)).delete
    assert not deletion.failed


@pytest.mark.parametrize(
    ("age", "create", "gone"),
    [(UNACKNOWLEDGED_SECONDS - 1.0, 0, []), (UNACKNOWLEDGED_SECONDS + 1.0, 0, ["stranded"])],
)
@pytest.mark.parametrize("verdict", [SERVED, NOWHERE])
def test_a_pod_unacknowledged_on_a_lost_node_is_a_failure_after_a_while(
    verdict: Verdict, age: float, create: int, gone: list[str]
) -> None:
    put = member("put", SandboxState.STRANDED, node=NOT_READY, age=age, acknowledged=False)
    plan = decide(pool_input([put], replicas=1, verdict=verdict))
    assert (plan.create, going(plan)) == (create, gone)
    assert all(deletion.failed for deletion in plan.delete)
    assert gone or plan.requeue_at is not None


def test_a_pod_acknowledged_before_its_node_was_lost_is_replaced_at_once() -> None:
    lost = members(SandboxState.STRANDED, 30, node=NOT_READY, age=1.0)
    plan = decide(pool_input(lost, replicas=30, verdict=SERVED, startup={"maxStarting": 5}))
    assert (plan.create, plan.delete) == (5, ())


@pytest.mark.parametrize("state", [SandboxState.STRANDED, SandboxState.STOPPING, SandboxState.COLD])
def test_unacknowledged_pods_on_lost_nodes_are_at_most_twice_max_starting(
    state: SandboxState,
) -> None:
    at_once = {"maxStarting": 2}
    for count, too_many in ((3, False), (4, True)):
        lie = members(state, count, node=NOT_READY, age=30.0, acknowledged=False, was_ready=False)
        plan = decide(
            pool_input(lie, replicas=9, verdict=SERVED, startup=at_once, claim_queue=[True])
        )
        held = {plan.blocked_by, plan.cold_blocked_by} == {Reason.HELD_BY_LOST_NODES}
        assert held is too_many
        assert not held or plan.create == plan.cold == 0
    had_run = members(state, 9, node=NOT_READY, age=30.0, ready=False, was_ready=False)
    given = pool_input(had_run, replicas=20, verdict=SERVED, startup={"maxStarting": 20})
    assert decide(given).create > 0


# --- Ended ---------------------------------------------------------------------------------------


def test_what_has_ended_takes_no_room() -> None:
    plan = decide(pool_input(members(SandboxState.ENDED, 4), replicas=2, maxSandboxes=4))
    assert (plan.target, plan.create) == (2, 2)


# --- Ready, and without proof --------------------------------------------------------------------

UNANSWERED: dict[str, Any] = {
    "node": facts("node-9"),
    "isolation": Isolation.UNAVAILABLE,
    "proof_wanted": True,
    "evidence": "no room",
}
WITHOUT_PROOF = replace(SERVED, unproven=("node-9",))


def test_what_a_silent_node_keeps_from_claims_is_replaced_one_at_a_time() -> None:
    unproven = members(SandboxState.UNPROVEN, 3, **UNANSWERED)
    warm = members(SandboxState.WARM, 3)
    plan = decide(pool_input([*unproven, *warm], replicas=6, verdict=WITHOUT_PROOF))
    assert (plan.create, plan.delete) == (1, ())
    plan = decide(pool_input([*unproven, *warm, member("next")], replicas=6, verdict=WITHOUT_PROOF))
    (deletion,) = plan.delete
    assert deletion.member in unproven
    assert (deletion.reason, deletion.failed) == (Reason.EVIDENCE_UNAVAILABLE, False)
    assert "node-9" in deletion.message
    assert "no room" in deletion.message


@pytest.mark.parametrize("verdict", [SERVED, replace(SERVED, unproven=("node-8",))])
def test_where_no_other_node_is_better_what_has_no_proof_stays(verdict: Verdict) -> None:
    unproven = members(SandboxState.UNPROVEN, 6, **UNANSWERED)
    plan = decide(pool_input(unproven, replicas=6, verdict=verdict))
    assert (plan.create, plan.delete) == (0, ())


def test_a_pod_preempted_by_a_probe_is_not_replaced_yet() -> None:
    unproven = members(SandboxState.UNPROVEN, 3, isolation=Isolation.UNAVAILABLE, proof_wanted=True)
    warm = members(SandboxState.WARM, 2)
    given = pool_input([*unproven, *warm], replicas=5)
    way = frozenset({unproven[1].uid})
    plan = decide(replace(given, preempted=way))
    assert [d.member for d in plan.delete] == [unproven[1]]
    assert plan.create == 0
    left = pool_input([unproven[0], unproven[2], *warm], replicas=5)
    assert decide(replace(left, preempted=way)).create == 0, "the place is the probe's"
    assert decide(left).create == 1
    # What waits for room would be quicker.
    full = Failure(
        Reason.UNSCHEDULABLE, "0/3 nodes are available: 3 Too many pods.", self_healing=True
    )
    pending = members(SandboxState.STARTING, 2, failure=full)
    crowded = replace(pool_input([*unproven, *pending], replicas=6), preempted=way)
    plan = decide(crowded)
    assert [d.member for d in plan.delete] == [unproven[1], *pending]
    assert (plan.create, plan.awaits_probe) == (0, True)
    left = pool_input([unproven[0], unproven[2]], replicas=6)
    assert decide(replace(left, preempted=way, awaits_probe=True)).create == 0
    assert decide(left).create == 4
    # It has its proof meanwhile.
    proven = frozenset({warm[0].uid})
    assert decide(replace(given, preempted=proven)).delete == ()
