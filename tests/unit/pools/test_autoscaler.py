"""A pool that no node serves, and what an autoscaler makes of its one waiting sandbox."""

import dataclasses
from typing import Any

import pytest

from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.pools.decide import TIMESTAMP_RESOLUTION_SECONDS, decide
from sandboxpool.pools.expectations import Expectations
from sandboxpool.pools.plan import CreateBackoff, PoolPlan
from sandboxpool.pools.replacement import NEW_NODE_SECONDS
from sandboxpool.pools.state import (
    FIRST_AUTOSCALER_BACKOFF_SECONDS,
    LONGEST_AUTOSCALER_BACKOFF_SECONDS,
    MIN_READY_SECONDS,
    PoolState,
)
from sandboxpool.runtimes.avoidance import AVOID_SECONDS
from sandboxpool.runtimes.diagnosis import Failure
from sandboxpool.runtimes.exclusion import INSTALL_GRACE_SECONDS
from sandboxpool.runtimes.node_constraints import NodeConstraints
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.verdict import Verdict, assess_node, summarize
from sandboxpool.sandboxes.members import Member, Members
from support.builders import NOW, SERVED, facts, member, members, pool_input, runtime

UNSCHEDULABLE = Failure(Reason.UNSCHEDULABLE, "0/3 nodes are available", self_healing=True)
PULLING = Failure(Reason.IMAGE_PULL_FAILED, "main: ErrImagePull", self_healing=True)
NOT_CONFIGURED = Failure(
    Reason.HANDLER_NOT_CONFIGURED, 'no runtime for "runsc" is configured', "new", False, True, True
)
WRONG = Reason.AUTOSCALER_ADDS_WRONG_NODES
GRACE = INSTALL_GRACE_SECONDS


def joined(at: float, **given: Any) -> Verdict:
    """No node serves, and the newest that does not has joined at this time."""
    return Verdict(not_serving=("new",), newest_not_serving=at, **given)


def waiting(age: float, **given: Any) -> Member:
    """The one sandbox that shows the demand; it can be put nowhere."""
    return member("waiting", SandboxState.STARTING, age=age, **{"failure": UNSCHEDULABLE, **given})


def reasons(plan: PoolPlan) -> list[Reason]:
    return [deletion.reason for deletion in plan.delete]


# --- The decision --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pod", "verdict", "withdrawn"),
    [
        (waiting(1000), joined(NOW - GRACE - 1), True),
        (waiting(1000), joined(NOW - GRACE), False),
        (waiting(1000), joined(NOW - 10), False),
        # It was there before, so nobody has added it for this pod.
        (waiting(1000), joined(NOW - 1000), False),
        (waiting(1000), joined(NOW - 5000), False),
        (waiting(1000), Verdict(), False),
        # Others can take it: it waits for room.
        (waiting(1000), joined(NOW - GRACE - 1, serving=("a",)), False),
        (waiting(1000), joined(NOW - GRACE - 1, unknown=("a",)), False),
        (waiting(1000, failure=PULLING), joined(NOW - GRACE - 1), False),
    ],
)
def test_a_waiting_sandbox_is_withdrawn_when_what_joins_for_it_is_wrong(
    pod: Member, verdict: Verdict, withdrawn: bool
) -> None:
    plan = decide(pool_input([pod], verdict=verdict))
    assert reasons(plan) == ([WRONG] if withdrawn else [])
    assert all(deletion.failed for deletion in plan.delete)
    assert plan.create == 0


def test_a_node_that_joins_does_not_make_the_waiting_one_begin_anew() -> None:
    """Its successor would have been made after the node, which had then not joined for it."""
    plan = decide(pool_input([waiting(600)], verdict=joined(NOW - 30), hostnames_since=NOW - 30))
    assert (reasons(plan), plan.create) == ([], 0)


def test_once_a_node_serves_the_waiting_one_is_made_anew_to_reach_it() -> None:
    given = pool_input([waiting(600)], hostnames_since=NOW - 30)
    assert reasons(decide(given)) == [Reason.SANDBOX_REPLACED]


def on_new_node(age: float, node_age: float, **given: Any) -> Member:
    node = facts("new", handlers=["runc"], joined=NOW - node_age)
    given = {"ready": False, "node": node, "failure": NOT_CONFIGURED, **given}
    return member("waiting", SandboxState.STRANDED, age=age, **given)


@pytest.mark.parametrize(
    ("pod", "verdict", "reason"),
    [
        (on_new_node(60, 30), joined(NOW - 30), None),
        (on_new_node(400, GRACE), joined(NOW - GRACE), None),
        (on_new_node(400, GRACE + 1), joined(NOW - GRACE - 1), WRONG),
        # Made after the node had joined, which no label keeps it off as long as that is new.
        (on_new_node(30, 60), joined(NOW - 60), None),
        (on_new_node(30, GRACE + 1), joined(NOW - GRACE - 1), Reason.HANDLER_REMOVED),
        # It can be served elsewhere, and need not wait for an installer.
        (on_new_node(60, 30), SERVED, Reason.HANDLER_REMOVED),
        # It has run there, so the handler was there and is not any more.
        (on_new_node(60, 30, ready=True), joined(NOW - 30), Reason.HANDLER_REMOVED),
    ],
)
def test_one_that_came_to_a_new_node_waits_there_for_an_installer(
    pod: Member, verdict: Verdict, reason: Reason | None
) -> None:
    plan = decide(pool_input([pod], verdict=verdict, replicas=5))
    assert reasons(plan) == ([reason] if reason else [])
    if reason is None:
        assert plan.create == 0, "a second one would buy a second node"
    assert all(d.failed == (not d.member.ready) for d in plan.delete)


def test_a_pool_that_is_scaled_to_zero_waits_for_no_installer() -> None:
    given = pool_input([on_new_node(60, 30)], verdict=joined(NOW - 30), replicas=0)
    assert reasons(decide(given)) == [Reason.AT_TARGET]


@pytest.mark.parametrize("age", [0.0, 200.0])
@pytest.mark.parametrize("pod", [waiting(500), on_new_node(500, 0)], ids=["pending", "placed"])
def test_the_pool_is_woken_when_the_grace_is_over(pod: Member, age: float) -> None:
    at = NOW - age
    if pod.node is not None:
        pod = on_new_node(500, age)
    plan = decide(pool_input([pod], verdict=joined(at)))
    assert plan.requeue_at == at + GRACE + TIMESTAMP_RESOLUTION_SECONDS
    then = decide(pool_input([pod], verdict=joined(at), now=plan.requeue_at))
    assert reasons(then) == [WRONG]


def test_a_node_that_cannot_be_seen_yet_is_waited_for() -> None:
    pod = member("waiting", SandboxState.STRANDED, age=20, node_name="unseen", ready=False)
    plan = decide(pool_input([pod], verdict=joined(NOW)))
    assert (reasons(plan), plan.requeue_at) == ([], NOW - 20 + NEW_NODE_SECONDS + 1)


# --- The delay -----------------------------------------------------------------------------------


def held_off(times: int, reason: Reason = WRONG) -> PoolState:
    state = PoolState(Expectations(lambda: 0.0))
    for _ in range(times):
        state.back_off(reason, "wrong nodes", NOW)
    return state


@pytest.mark.parametrize(
    ("times", "longest"),
    [(1, 600), (2, 1200), (3, 2400), (6, 19_200), (7, 21_600), (40, 21_600), (2000, 21_600)],
)
def test_each_withdrawal_delays_the_next_try_twice_as_long_up_to_a_bound(
    times: int, longest: float
) -> None:
    assert (FIRST_AUTOSCALER_BACKOFF_SECONDS, LONGEST_AUTOSCALER_BACKOFF_SECONDS) == (600, 21_600)
    delay = held_off(times).backoff.until - NOW
    assert 0.75 * longest <= delay <= longest


def test_other_failures_before_do_not_make_the_first_delay_longer() -> None:
    state = held_off(20, Reason.SANDBOX_CREATE_FAILED)
    state.back_off(WRONG, "wrong nodes", NOW)
    assert state.backoff.until - NOW <= 600


def test_other_failures_meanwhile_have_their_own_delay_and_do_not_end_the_long_one() -> None:
    state = held_off(3)
    long_until = state.backoff.until
    for failures in (1, 2, 3):
        now = NOW + 10 * failures
        state.back_off(Reason.SANDBOX_CREATE_FAILED, "another failure", now)
        assert state.backoff.failures == failures
        assert state.backoff.until - now <= 4
        state.refresh_backoff(now + 5)
        assert (state.backoff.reason, state.backoff.until) == (WRONG, long_until)
    state.refresh_backoff(long_until)
    assert state.backoff.until <= long_until


def test_a_success_ends_every_delay() -> None:
    state = held_off(3)
    state.back_off(Reason.SANDBOX_CREATE_FAILED, "another failure", NOW)
    state.note_claim_succeeded(NOW + 1)
    state.refresh_backoff(NOW + 10)
    assert state.backoff == CreateBackoff()
    state.back_off(Reason.SANDBOX_CREATE_FAILED, "a failure", NOW + 20)
    state.refresh_backoff(NOW + 30)
    assert (state.backoff.reason, state.backoff.failures) == (Reason.SANDBOX_CREATE_FAILED, 1)


def test_a_clock_that_is_set_back_makes_no_delay_longer() -> None:
    state = held_off(3)
    state.back_off(Reason.SANDBOX_CREATE_FAILED, "another failure", NOW)
    state.refresh_backoff(NOW - 3600)
    assert state.backoff.until - (NOW - 3600) <= 1
    state.refresh_backoff(NOW - 3500)
    assert (state.backoff.reason, state.backoff.until - NOW < -1200) == (WRONG, True)


def test_a_node_on_which_sandboxes_were_stuck_counts_again_once_one_has_started_there() -> None:
    state = held_off(1)
    state.note_stuck(["node-1", "node-2"], NOW)
    assert state.stuck_nodes(NOW + 1.0) == {"node-1", "node-2"}
    state.note_started("node-1")
    assert state.stuck_nodes(NOW + 1.0) == {"node-2"}
    assert state.stuck_nodes(NOW + AVOID_SECONDS) == set()


def test_a_warm_sandbox_ends_the_trouble_once_it_has_lasted() -> None:
    state = held_off(3)
    warm = members(SandboxState.WARM, 1, age=-1.0)
    state.note_success(Members(warm), runtime(), NOW + MIN_READY_SECONDS)
    assert state.backoff != CreateBackoff()
    state.note_success(Members(warm), runtime(), NOW + 1.0 + MIN_READY_SECONDS)
    assert state.backoff == CreateBackoff()


@pytest.mark.parametrize(
    ("verdict", "creates"),
    [
        (joined(NOW), 0),
        (Verdict(), 0),
        (Verdict(quarantined=("a",)), 0),
        (SERVED, 1),
        (Verdict(unknown=("a",)), 1),
    ],
)
def test_the_delay_ends_at_once_when_a_node_serves(verdict: Verdict, creates: int) -> None:
    trouble = held_off(4).backoff
    plan = decide(pool_input([], verdict=verdict, trouble=trouble))
    assert plan.create == creates
    if not creates:
        assert (plan.blocked_by, plan.requeue_at) == (
            WRONG,
            trouble.until + TIMESTAMP_RESOLUTION_SECONDS,
        )


def test_no_other_delay_ends_because_a_node_serves() -> None:
    assert decide(pool_input(trouble=held_off(3, Reason.QUOTA_EXCEEDED).backoff)).create == 0


# --- Over a day ----------------------------------------------------------------------------------


class Cloud:
    """A pool, and an autoscaler that answers its waiting pod with a node that does not serve.

    Args:
        binds: the scheduler puts the pod on the new node; else something else keeps it from there.
    """

    def __init__(self, *, binds: bool) -> None:
        self.now = NOW
        self.binds = binds
        self.given = pool_input(replicas=3)
        self.nodes: list[NodeFacts] = []
        self.pod: Member | None = None
        self.made = 0
        self.state = PoolState(Expectations(lambda: 0.0))

    def step(self) -> None:
        standings = (
            assess_node(n, "runsc", NodeConstraints(), quarantined=False, not_isolating=False)
            for n in self.nodes
        )
        verdict = summarize(s for s in standings if s is not None)
        given = dataclasses.replace(
            self.given,
            members=Members([self.pod] if self.pod is not None else ()),
            verdict=verdict,
            backoff=self.state.backoff,
            now=self.now,
        )
        plan = decide(given)
        for deletion in plan.delete:
            self.pod = None
            if deletion.failed:
                self.state.back_off(deletion.reason, deletion.message, self.now)
        self.now += 120
        if plan.create:
            assert (plan.create, self.pod) == (1, None), "one shows the demand, and no more"
            self.made += 1
            self.pod = self._bought_for()

    def _bought_for(self) -> Member:
        new = facts(f"node-{len(self.nodes):03}", handlers=["runc"], joined=self.now)
        self.nodes.append(new)
        given: dict[str, Any] = {"age": 120, "now": self.now}
        if self.binds:
            given |= {"node": new, "failure": NOT_CONFIGURED}
            return member(f"made-{self.made}", SandboxState.STRANDED, ready=False, **given)
        return member(f"made-{self.made}", SandboxState.STARTING, failure=UNSCHEDULABLE, **given)


@pytest.mark.parametrize("binds", [True, False])
def test_an_autoscaler_that_buys_wrong_nodes_is_soon_asked_for_few(binds: bool) -> None:
    cloud = Cloud(binds=binds)
    bought = []
    for day in range(1, 3):
        while cloud.now < NOW + day * 86_400:
            cloud.step()
        bought.append(len(cloud.nodes))
    assert cloud.state.backoff.reason is WRONG
    assert 5 <= bought[0] <= 12
    assert 4 <= bought[1] - bought[0] <= 6
