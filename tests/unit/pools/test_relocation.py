"""Sandboxes on nodes whose runtime fails or does not isolate: what goes, when, and how many."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.pools.decide import decide
from sandboxpool.pools.max_unavailable import max_unavailable
from sandboxpool.pools.plan import CreateBackoff, PoolInput, PoolPlan
from sandboxpool.runtimes.diagnosis import Failure
from sandboxpool.runtimes.evidence import Isolation
from sandboxpool.runtimes.verdict import Verdict
from sandboxpool.sandboxes.members import Member, Members
from support.builders import (
    MISMATCH,
    MISSING,
    NOT_CHECKED,
    NOW,
    REJECTED,
    SERVED,
    facts,
    member,
    members,
    pool_input,
)

W, S, U, C = SandboxState.WARM, SandboxState.STARTING, SandboxState.UNPROVEN, SandboxState.CLAIMED
STOPPING, STRANDED = SandboxState.STOPPING, SandboxState.STRANDED

BAD = facts("bad")
WITHOUT = facts("without", handlers=["runc"])
LOST = facts("lost", ready=False)
QUARANTINED = Verdict(quarantined=("bad",))
NOT_ISOLATING = Verdict(not_isolating=("bad",))
NO_SHIM = Failure(Reason.SHIM_MISSING, "no shim binary", "bad", blames_runtime=True)
PULLING = Failure(Reason.IMAGE_PULL_FAILED, "main: ErrImagePull", "bad", self_healing=True)


def unallocatable(name: str = "pod", *, refuted: bool = False, **given: Any) -> Member:
    """Ready, on a node that is well but quarantined, or where the runtime does not isolate."""
    given = {"ready": True, "node": BAD, **given}
    if refuted:
        given |= {"isolation": Isolation.NOT_PROVEN, "proof_wanted": True}
    else:
        given["quarantined"] = True
    return member(name, STRANDED, **given)


def several(count: int, **given: Any) -> list[Member]:
    return [unallocatable(f"unallocatable-{i}", age=30.0 + i, **given) for i in range(count)]


def names(plan: PoolPlan) -> list[str]:
    return [deletion.member.name for deletion in plan.delete]


# --- What goes at once ---------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", [SERVED, QUARANTINED, NOT_ISOLATING])
@pytest.mark.parametrize(
    ("stuck", "reason"),
    [
        (unallocatable(ready=False, failure=NO_SHIM), Reason.SHIM_MISSING),
        (unallocatable(ready=False), Reason.NODE_QUARANTINED),
        (unallocatable(ready=False, failure=PULLING), Reason.NODE_QUARANTINED),
        (unallocatable(ready=False, refuted=True), Reason.ISOLATION_NOT_PROVEN),
    ],
)
def test_a_pod_stuck_on_an_unsuitable_node_is_deleted_at_once_as_a_failure(
    stuck: Member, reason: Reason, verdict: Verdict
) -> None:
    (deletion,) = decide(pool_input([stuck], verdict=verdict)).delete
    assert (deletion.reason, deletion.failed) == (reason, True)
    assert deletion.message


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize("quarantined", [True, False])
def test_what_has_lost_its_handler_is_deleted_at_once(ready: bool, quarantined: bool) -> None:
    """Nothing can be executed in it any more, whatever else is held against its node.

    One that was never ready may have been put where it never could be, because more nodes lack the
    handler than it could be told to avoid: the next are made with care.
    """
    stock = [member(state=STRANDED, node=WITHOUT, ready=ready, quarantined=quarantined)]
    (deletion,) = decide(pool_input(stock)).delete
    assert (deletion.reason, deletion.failed) == (Reason.HANDLER_REMOVED, not ready)
    assert "without" in deletion.message


def test_the_successors_of_stuck_ones_wait_for_the_delay_that_their_failure_brings() -> None:
    stock = [unallocatable(f"stuck-{i}", ready=False, failure=NO_SHIM) for i in range(2)]
    plan = decide(pool_input(stock, replicas=3))
    assert (plan.create, plan.blocked_by) == (1, Reason.SHIM_MISSING)


# --- What waits for its successor ----------------------------------------------------------------


@pytest.mark.parametrize("refuted", [False, True])
@pytest.mark.parametrize(
    ("warm", "count", "unavailable", "relocated"),
    [
        (5, 0, 1, 0),
        (0, 5, 1, 1),
        (0, 5, 2, 2),
        (3, 2, 1, 1),
        (4, 1, 1, 1),
        (4, 5, 1, 5),
        (2, 2, 1, 0),  # one is missing as it is
        (1, 2, 2, 0),
    ],
)
def test_ready_pods_are_relocated_as_others_become_warm(
    warm: int, count: int, unavailable: int, relocated: int, refuted: bool
) -> None:
    stock = [*members(W, warm), *several(count, refuted=refuted)]
    plan = decide(pool_input(stock, replicas=5, update={"maxUnavailable": unavailable}))
    assert names(plan) == [
        f"unallocatable-{i}" for i in range(count - 1, count - 1 - relocated, -1)
    ]
    reason = Reason.ISOLATION_NOT_PROVEN if refuted else Reason.NODE_QUARANTINED
    assert {(d.reason, d.failed) for d in plan.delete} <= {(reason, False)}
    assert plan.create == 5 - warm, "they are of no use meanwhile"


@pytest.mark.parametrize(
    "given",
    [
        {"verdict": QUARANTINED},
        {"verdict": NOT_ISOLATING},
        {"verdict": Verdict()},
        {"resolution": MISSING},
        {"resolution": MISMATCH},
        {"template": REJECTED},
        {"template": NOT_CHECKED},
        {"paused": True},
    ],
    ids=str,
)
def test_no_pod_is_relocated_that_cannot_be_replaced(given: dict[str, Any]) -> None:
    assert not decide(pool_input(several(3), replicas=3, **given)).delete


@pytest.mark.parametrize(("replicas", "left"), [(3, 3), (2, 2), (0, 0)])
@pytest.mark.parametrize(
    "given", [{"verdict": QUARANTINED}, {"resolution": MISMATCH}, {"template": REJECTED}], ids=str
)
def test_a_pool_that_is_scaled_down_gives_them_up_even_so(
    given: dict[str, Any], replicas: int, left: int
) -> None:
    assert len(decide(pool_input(several(3), replicas=replicas, **given)).delete) == 3 - left


def test_those_on_a_lost_node_may_come_back_with_it() -> None:
    stock = [unallocatable(node=LOST), unallocatable("refuted", node=LOST, refuted=True)]
    assert not decide(pool_input(stock)).delete


def test_a_sandbox_is_deleted_once_even_for_two_reasons() -> None:
    plan = decide(pool_input([unallocatable(runtime_uid="former"), unallocatable("own")]))
    assert sorted((d.member.name, d.reason) for d in plan.delete) == [
        ("own", Reason.NODE_QUARANTINED),
        ("pod", Reason.RUNTIME_CHANGED),
    ]


def test_a_move_comes_before_a_rollout_and_both_share_the_budget() -> None:
    stock = [*members(W, 4, revision="old"), unallocatable()]
    first = decide(pool_input(stock, replicas=5))
    assert names(first) == ["pod"]
    second = decide(pool_input([*stock[:4], *members(W, 1, "new")], replicas=5))
    assert names(second) == ["warm-3"]


@pytest.mark.parametrize("type_", ["RollingUpdate", "OnClaim", "Recreate"])
def test_pods_are_relocated_under_every_update_strategy(type_: str) -> None:
    stock = [*members(W, 2), unallocatable(revision="old")]
    assert names(decide(pool_input(stock, replicas=3, update={"type": type_}))) == ["pod"]


def test_released_nodes_give_their_sandboxes_back_and_the_successors_go() -> None:
    """What is ready is worth more than what only starts."""
    stock = [*members(W, 3), *members(S, 3, node=facts())]
    assert set(names(decide(pool_input(stock, replicas=3)))) == {f"starting-{i}" for i in range(3)}


# --- Without proof -------------------------------------------------------------------------------


def test_unproven_ones_are_of_the_stock_and_are_waited_for() -> None:
    stock = members(U, 3, age=99_999)
    plan = decide(pool_input(stock, replicas=4, isolationProof="PerNode"))
    assert (names(plan), plan.create, plan.requeue_at) == ([], 1, None)


def test_unproven_ones_are_not_starting() -> None:
    plan = decide(pool_input(members(U, 4), replicas=8, startup={"maxStarting": 4}))
    assert plan.create == 4


def test_unproven_ones_are_the_first_to_go_when_a_pool_is_scaled_down() -> None:
    stock = [*members(W, 2, age=1), *members(U, 1, age=99)]
    assert names(decide(pool_input(stock, replicas=2))) == ["unproven-0"]


@pytest.mark.parametrize(
    ("proof", "type_", "goes"),
    [
        ("PerSandbox", "OnClaim", True),
        ("PerNode", "OnClaim", False),
        ("PerSandbox", "RollingUpdate", True),
        ("PerNode", "RollingUpdate", True),
    ],
)
def test_an_outdated_one_that_can_never_be_proven_does_not_wait_for_a_claim(
    proof: str, type_: str, goes: bool
) -> None:
    """Made before each sandbox was to be proven, it has no probe that could tell."""
    stock = [member("warm", W, revision="old"), member("unproven", U, revision="old")]
    given = pool_input(stock, replicas=2, isolationProof=proof, update={"type": type_})
    assert ("unproven" in names(decide(given))) == goes
    assert "warm" not in names(decide(given)) or type_ == "RollingUpdate"


# --- Under a ceiling -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("others", "replicas"),
    [
        ([], 3),
        (members(C, 2), 3),
        ([member("lost", STRANDED, node=LOST, ready=True)], 3),
        (members(U, 1), 3),
    ],
    ids=["alone", "claims", "a lost node", "without proof"],
)
def test_a_full_pool_makes_room_for_successors(others: list[Member], replicas: int) -> None:
    """The ceiling leaves no room to make them first, and those here are of no use."""
    stock = [*several(2), *others]
    given = pool_input(stock, replicas=replicas, maxSandboxes=len(stock))
    plan = decide(given)
    assert (names(plan), plan.create) == (["unallocatable-1"], 0)
    stopping = [*several(1), member("gone", STOPPING), *others]
    assert not decide(dataclasses.replace(given, members=Members(stopping))).delete
    made_room = decide(dataclasses.replace(given, members=Members([*several(1), *others])))
    assert (names(made_room), made_room.create) == ([], 1)


# --- Over time -----------------------------------------------------------------------------------


class Fleet:
    """A pool over time: what is created becomes warm after a step, or not, as a test says."""

    def __init__(self, given: PoolInput, *, never_warm: bool = False) -> None:
        self.given = given
        self.never_warm = never_warm
        self.serial: Iterator[int] = iter(range(10_000))
        self.plans: list[PoolPlan] = []

    def step(self) -> PoolPlan:
        plan = decide(self.given)
        self.plans.append(plan)
        going = set(names(plan))
        left = []
        for m in self.given.members:
            if m.state is STOPPING:
                continue
            if m.name in going:
                left.append(dataclasses.replace(m, state=STOPPING, ready=False))
            elif m.state is S and m.node is not None and not self.never_warm:
                left.append(dataclasses.replace(m, state=W, ready=True))
            else:
                left.append(m)
        made = [
            member(f"made-{next(self.serial)}", S, age=0, node=facts("well"))
            for _ in range(plan.create)
        ]
        self.given = dataclasses.replace(
            self.given,
            members=Members([*left, *made]),
            backoff=CreateBackoff(),
            now=self.given.now + 1,
        )
        return plan

    @property
    def warm(self) -> int:
        return sum(m.state is W for m in self.given.members)

    @property
    def ready(self) -> int:
        return sum(m.ready for m in self.given.members if m.state in (W, STRANDED))

    @property
    def at_rest(self) -> bool:
        following = decide(self.given)
        moving = any(m.state in (S, STOPPING) for m in self.given.members)
        return not (following.create or following.delete or moving)


@st.composite
def half_broken(draw: st.DrawFn) -> PoolInput:
    replicas = draw(st.integers(1, 6))
    stock = [
        *members(W, draw(st.integers(0, 3)), node=facts("well")),
        *several(draw(st.integers(0, 6)), refuted=draw(st.booleans())),
        *members(C, draw(st.integers(0, 2))),
    ]
    ceiling = draw(st.none() | st.integers(replicas, 12))
    return pool_input(
        stock,
        replicas=replicas,
        maxSandboxes=ceiling,
        update={"maxUnavailable": draw(st.integers(1, 3) | st.sampled_from(["30%", "50%"]))},
        startup={"maxStarting": draw(st.integers(1, 5))},
    )


@settings(max_examples=40)
@given(half_broken())
def test_every_move_comes_to_its_end_within_its_budget(given: PoolInput) -> None:
    fleet = Fleet(given)
    for _ in range(60):
        before = fleet.ready
        plan = fleet.step()
        if any(d.reason is not Reason.AT_TARGET for d in plan.delete):
            assert fleet.ready >= min(
                before, plan.target - max_unavailable(given.spec.update, plan.target)
            )
        if fleet.at_rest:
            break
    else:
        pytest.fail("it does not come to rest")
    assert not [m for m in fleet.given.members if m.state is STRANDED]
    assert fleet.warm == plan.target
    made = sum(p.create for p in fleet.plans)
    gone = sum(len(p.delete) for p in fleet.plans)
    assert made <= plan.target, "nothing that was made is thrown away"
    assert gone <= len(given.members)


@settings(max_examples=20)
@given(half_broken())
def test_while_no_successor_becomes_warm_only_what_may_be_missing_is_given_up(
    given: PoolInput,
) -> None:
    fleet = Fleet(given, never_warm=True)
    first = decide(given)
    floor = max(0, first.target - max_unavailable(given.spec.update, first.target))
    for _ in range(20):
        fleet.step()
    assert fleet.ready >= min(Fleet(given).ready, floor)
    assert sum(p.create for p in fleet.plans) <= first.target


def test_time_is_not_what_moves_them() -> None:
    assert decide(pool_input(several(2), replicas=2, now=NOW + 86_400)).requeue_at is None
