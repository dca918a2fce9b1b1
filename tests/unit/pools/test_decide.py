"""What a pool creates and deletes: cases first, then properties that hold for any input."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.pools.decide import CAUTIOUS_AFTER_FAILURES, decide
from sandboxpool.pools.max_unavailable import max_unavailable
from sandboxpool.pools.plan import CreateBackoff, PoolInput, PoolPlan, of_other_runtime, outdated
from sandboxpool.runtimes.diagnosis import Failure
from sandboxpool.runtimes.evidence import Isolation
from sandboxpool.runtimes.resolve import resolve
from sandboxpool.runtimes.verdict import Verdict
from sandboxpool.sandboxes.members import Member, Members
from support.builders import (
    ACCEPTED,
    FOUND,
    MISMATCH,
    MISSING,
    NOT_CHECKED,
    NOW,
    REJECTED,
    REVISION,
    SERVED,
    facts,
    member,
    members,
    pool_input,
    runtime,
)

W, S, C, F = SandboxState.WARM, SandboxState.STARTING, SandboxState.CLAIMED, SandboxState.FAILED
STOPPING, STRANDED, UNPROVEN = SandboxState.STOPPING, SandboxState.STRANDED, SandboxState.UNPROVEN
UNSCHEDULABLE = Failure(Reason.UNSCHEDULABLE, "0/3 nodes", self_healing=True)
PULLING = Failure(Reason.IMAGE_PULL_FAILED, "main: ErrImagePull", self_healing=True)
NO_SANDBOX = Failure(Reason.SANDBOX_CREATE_FAILED, "no runtime for runsc is configured")


def names(plan: PoolPlan) -> list[str]:
    return [deletion.member.name for deletion in plan.delete]


# --- Creating ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stock", "fields", "create", "target", "held"),
    [
        pytest.param([], {"replicas": 3}, 3, 3, None, id="an empty pool is filled"),
        pytest.param(members(W, 3), {"replicas": 3}, 0, 3, None, id="a full one is left"),
        pytest.param(members(S, 3), {"replicas": 3}, 0, 3, None, id="starting ones count"),
        pytest.param([], {"replicas": 3, "creating": 2}, 1, 3, None, id="asked for ones count"),
        pytest.param(
            members(C, 3), {"replicas": 2}, 2, 2, None, id="claimed ones are not of the stock"
        ),
        pytest.param(
            members(STOPPING, 3), {"replicas": 2}, 2, 2, None, id="nor are terminating ones"
        ),
        pytest.param(
            [], {"replicas": 9, "startup": {"maxStarting": 4}}, 4, 9, None, id="maxStarting"
        ),
        pytest.param(
            members(S, 3),
            {"replicas": 9, "creating": 1, "startup": {"maxStarting": 4}},
            0,
            9,
            None,
            id="maxStarting counts what is asked for",
        ),
        pytest.param(
            members(C, 4),
            {"replicas": 5, "maxSandboxes": 6},
            2,
            2,
            None,
            id="the target is clamped by what is claimed",
        ),
        pytest.param(
            members(C, 7), {"replicas": 5, "maxSandboxes": 6}, 0, 0, None, id="over the ceiling"
        ),
        pytest.param(
            members(STOPPING, 2),
            {"replicas": 3, "maxSandboxes": 3},
            1,
            3,
            Reason.CLAMPED_BY_MAX_SANDBOXES,
            id="terminating ones hold their room",
        ),
        pytest.param(
            [],
            {"replicas": 3, "maxSandboxes": 3, "creating_cold": 1, "creating": 1},
            1,
            3,
            Reason.CLAMPED_BY_MAX_SANDBOXES,
            id="cold ones that are asked for hold their room",
        ),
        pytest.param(
            [member("lost", STRANDED, node=facts(ready=False))],
            {"replicas": 1, "maxSandboxes": 1},
            0,
            1,
            Reason.CEILING_HELD_BY_LOST_NODE,
            id="so do those on a lost node, and it is said",
        ),
        pytest.param([], {"paused": True, "replicas": 3}, 0, 3, Reason.PAUSED, id="paused"),
        pytest.param(
            [],
            {"resolution": MISSING, "verdict": Verdict()},
            0,
            1,
            Reason.RUNTIME_CLASS_NOT_FOUND,
            id="no class",
        ),
        pytest.param(
            [], {"resolution": MISMATCH}, 0, 1, Reason.HANDLER_MISMATCH, id="another handler"
        ),
        pytest.param(
            [], {"template": REJECTED}, 0, 1, Reason.TEMPLATE_REJECTED, id="a refused template"
        ),
        pytest.param(
            [], {"template": NOT_CHECKED}, 0, 1, Reason.TEMPLATE_NOT_CHECKED, id="an unchecked one"
        ),
        pytest.param(
            [],
            {"backoff": CreateBackoff(2, NOW + 1, Reason.QUOTA_EXCEEDED, "")},
            0,
            1,
            Reason.QUOTA_EXCEEDED,
            id="backoff",
        ),
        pytest.param(
            [],
            {"backoff": CreateBackoff(CAUTIOUS_AFTER_FAILURES, NOW, Reason.QUOTA_EXCEEDED, "")}
            | {"replicas": 5},
            1,
            5,
            None,
            id="after several failures one at a time",
        ),
        pytest.param(
            [],
            {"verdict": Verdict(not_serving=("a",)), "replicas": 5},
            1,
            5,
            Reason.NO_NODE_SERVES,
            id="without a serving node one waits, so that an autoscaler sees it",
        ),
        pytest.param(
            members(S, 1),
            {"verdict": Verdict(), "replicas": 5},
            0,
            5,
            Reason.NO_ELIGIBLE_NODE,
            id="and no more than one",
        ),
        pytest.param(
            [], {"verdict": Verdict(unknown=("a",)), "replicas": 5}, 5, 5, None, id="unknown nodes"
        ),
    ],
)
def test_creating(
    stock: list[Member], fields: dict[str, Any], create: int, target: int, held: Reason | None
) -> None:
    plan = decide(pool_input(stock, **fields))
    assert (plan.create, plan.target, plan.blocked_by) == (create, target, held)


# --- Deleting what will never be handed out ------------------------------------------------------


@pytest.mark.parametrize(
    ("pod", "reason"),
    [
        (member(state=W), None),
        (member(state=F), Reason.POD_FAILED),
        (member(state=S, age=299), None),
        (member(state=S, age=302), Reason.SANDBOX_START_TIMEOUT),
        (member(state=S, age=302, failure=NO_SANDBOX), Reason.SANDBOX_CREATE_FAILED),
        (member(state=S, age=20, failure=NO_SANDBOX), None),
        (member(state=S, age=9999, failure=PULLING), None),
        (member(state=S, age=9999, failure=UNSCHEDULABLE), None),
        (member(state=STRANDED, node_name="gone", age=62), Reason.NODE_LOST),
        (member(state=STRANDED, node_name="new", age=9), None),
        (member(state=STRANDED, node=facts(ready=False)), None),
        (member(state=STRANDED, node=facts(unschedulable=True)), Reason.SANDBOX_REPLACED),
        (member(state=STRANDED, node=facts(handlers=["runc"])), Reason.HANDLER_REMOVED),
        (member(state=W, runtime_uid="former"), Reason.RUNTIME_CHANGED),
        (member(state=S, runtime_uid="former"), Reason.RUNTIME_CHANGED),
        (member(state=C, runtime_uid="former"), None),
        (member(state=STOPPING, runtime_uid="former"), None),
    ],
)
def test_irrecoverable_pods_are_deleted(pod: Member, reason: Reason | None) -> None:
    plan = decide(pool_input([pod]))
    assert [d.reason for d in plan.delete] == ([reason] if reason else [])


@pytest.mark.parametrize(
    ("age", "since", "replaced"),
    [(302, NOW - 301, True), (302, NOW - 303, False), (302, 0.0, False), (299, NOW, False)],
)
def test_a_pending_pod_with_outdated_hostnames_is_replaced(
    age: float, since: float, replaced: bool
) -> None:
    waiting = member(state=S, age=age, failure=UNSCHEDULABLE)
    pulling = member("pulling", S, age=9999, failure=PULLING)
    plan = decide(pool_input([waiting, pulling, member("warm", W)], hostnames_since=since))
    assert [(d.member, d.failed) for d in plan.delete if d.reason is Reason.SANDBOX_REPLACED] == (
        [(waiting, False)] if replaced else []
    )


def test_no_pod_is_created_before_excluded_nodes_have_their_labels() -> None:
    """It would go to the very node, and be given up there."""
    verdict = Verdict(serving=("node-1",), not_serving=("new",), exclusions_pending=1)
    plan = decide(pool_input(verdict=verdict, replicas=3, claim_queue=[True]))
    assert (plan.create, plan.blocked_by) == (0, Reason.EXCLUSION_PENDING)
    assert (plan.cold, plan.cold_blocked_by) == (0, Reason.EXCLUSION_PENDING)
    assert decide(
        pool_input(verdict=dataclasses.replace(verdict, exclusions_pending=0), replicas=3)
    ).create


@pytest.mark.parametrize("resolution", [MISSING, MISMATCH])
def test_while_the_class_is_unusable_the_warm_stock_is_kept(resolution: Any) -> None:
    stock = [member(runtime_uid="former"), member("old", revision="old")]
    assert not decide(pool_input(stock, resolution=resolution, replicas=2)).delete


def test_the_message_of_a_timeout_names_the_cause() -> None:
    (deletion,) = decide(pool_input([member(state=S, age=400, failure=NO_SANDBOX)])).delete
    assert "300 s" in deletion.message
    assert NO_SANDBOX.message in deletion.message
    assert deletion.failed


@pytest.mark.parametrize(
    ("pod", "failed"),
    [
        (member(state=F), True),
        (member(state=S, age=400), True),
        (member(state=STRANDED, node_name="gone", age=62), False),
        (member(state=W, runtime_uid="former"), False),
    ],
)
def test_only_what_did_not_work_slows_the_next_ones_down(pod: Member, failed: bool) -> None:
    (deletion,) = decide(pool_input([pod])).delete
    assert deletion.failed is failed


# --- Scaling down and rolling --------------------------------------------------------------------


def test_scaling_down_takes_the_unready_then_the_outdated_then_the_newest() -> None:
    stock = [
        member("old-warm", W, age=50),
        member("new-warm", W, age=10),
        member("outdated", W, age=99, revision="old"),
        member("starting", S, age=5, node=facts()),
    ]
    fields: dict[str, Any] = {"update": {"type": "OnClaim"}}
    order = [names(decide(pool_input(stock, replicas=r, **fields))) for r in (4, 3, 2, 1, 0)]
    assert order == [
        [],
        ["starting"],
        ["starting", "outdated"],
        ["starting", "outdated", "new-warm"],
        ["starting", "outdated", "new-warm", "old-warm"],
    ]


def old(count: int, state: SandboxState = W, **given: Any) -> list[Member]:
    return members(state, count, prefix=f"old-{state.value}", revision="old", **given)


def test_rolling_replaces_the_oldest_within_the_budget_and_all_that_start() -> None:
    stock = [*old(4), *old(2, S, node=facts())]
    plan = decide(pool_input(stock, replicas=6, update={"maxUnavailable": 3}))
    assert set(names(plan)[:2]) == {"old-starting-1", "old-starting-0"}
    assert names(plan)[2:] == ["old-warm-3"]
    assert plan.create == 3


WITH_OVERHEAD = resolve("gvisor", None, {"gvisor": runtime(overhead=[("memory", "130Mi")])})


def test_a_class_with_another_overhead_makes_what_it_has_made_outdated() -> None:
    """The kubelet reserves for a pod what its class added when the pod was made."""
    new = members(W, 1, "new", overhead=(("memory", "130Mi"),))
    given: dict[str, Any] = {"resolution": WITH_OVERHEAD, "replicas": 4}
    plan = decide(pool_input([*members(W, 3, age=90), *new], **given))
    assert [(d.member.name, d.reason) for d in plan.delete] == [("warm-2", Reason.ROLLING)]
    assert not decide(pool_input(members(W, 4, overhead=(("memory", "130Mi"),)), **given)).delete
    assert not decide(pool_input([*new, *members(C, 3)], **given | {"replicas": 1})).delete


def test_the_overhead_of_another_class_is_ignored() -> None:
    """It is replaced for its class, at once; it need not be outdated too."""
    stock = [member("former", W, runtime_uid="former")]
    given = pool_input(stock, resolution=WITH_OVERHEAD)
    assert [d.reason for d in decide(given).delete] == [Reason.RUNTIME_CHANGED]
    assert not outdated(stock[0], given)


def test_a_sandbox_that_admission_gave_another_class_is_deleted_as_a_failure() -> None:
    """It carries the uid of the class that it was asked for with, and its successor may too."""
    (deletion,) = decide(pool_input([member(class_name="runc")])).delete
    assert (deletion.reason, deletion.failed) == (Reason.RUNTIME_CHANGED, True)
    assert "'gvisor'" in deletion.message
    assert "'runc'" in deletion.message


def test_on_claim_keeps_what_is_outdated_and_creates_the_new() -> None:
    plan = decide(pool_input(old(2), replicas=3, update={"type": "OnClaim"}))
    assert (names(plan), plan.create) == ([], 1)


def test_recreate_deletes_all_that_is_outdated() -> None:
    stock = [*old(3), *old(1, S, node=facts()), *members(W, 1), *old(2, C)]
    plan = decide(pool_input(stock, replicas=5, update={"type": "Recreate"}))
    assert sorted(names(plan)) == ["old-starting-0", "old-warm-0", "old-warm-1", "old-warm-2"]


@pytest.mark.parametrize("template", [REJECTED, NOT_CHECKED])
@pytest.mark.parametrize("type_", ["RollingUpdate", "Recreate"])
def test_what_is_outdated_stays_while_nothing_could_take_its_place(
    template: Any, type_: str
) -> None:
    given = pool_input(old(3), replicas=3, template=template, update={"type": type_})
    assert not decide(given).delete


@pytest.mark.parametrize("type_", ["RollingUpdate", "OnClaim", "Recreate"])
def test_too_old_pods_are_replaced_a_few_at_a_time(type_: str) -> None:
    stock = [*members(W, 4, age=1000), *members(W, 1, prefix="young")]
    fields: dict[str, Any] = {
        "replicas": 5,
        "maxAgeSeconds": 600,
        "update": {"type": type_, "maxUnavailable": 2},
    }
    assert len(decide(pool_input(stock, **fields)).delete) == 2


def test_too_old_pods_wait_while_the_pool_is_not_full() -> None:
    stock = [*members(W, 4, age=1000), *members(S, 1, node=facts())]
    assert not decide(pool_input(stock, replicas=5, maxAgeSeconds=600)).delete


# --- When to look again --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stock", "fields", "expected"),
    [
        ([], {}, None),
        (members(W, 1), {}, None),
        ([member(state=S, age=0)], {}, NOW + 301),
        # At that very moment it is not due yet: another look must follow.
        ([member(state=S, age=301)], {}, NOW),
        ([member(state=S, age=0, failure=PULLING)], {}, NOW + 61),
        ([member(state=S, age=0, failure=UNSCHEDULABLE)], {}, None),
        (
            [member(state=S, age=0, failure=UNSCHEDULABLE)],
            {"hostnames_since": NOW + 1},
            NOW + 301,
        ),
        ([member(age=0)], {"maxAgeSeconds": 100}, NOW + 101),
        ([], {"backoff": CreateBackoff(1, NOW + 4, Reason.CREATE_FAILED, "")}, NOW + 5),
    ],
)
def test_time_alone_wakes_a_pool_when_it_can_change_the_answer(
    stock: list[Member], fields: dict[str, Any], expected: float | None
) -> None:
    assert decide(pool_input(stock, **fields)).requeue_at == expected


# --- Properties ----------------------------------------------------------------------------------

DOUBTS: list[dict[str, Any]] = [
    {"node": facts("lost", ready=False)},
    {"node": facts("cordoned", unschedulable=True)},
    {"node": facts("without", handlers=["runc"])},
    {"node": facts("new", handlers=["runc"], joined=NOW - 50)},
    {"node_name": "gone"},
    {"node": facts("well"), "quarantined": True},
    {"node": facts("well"), "isolation": Isolation.NOT_PROVEN, "proof_wanted": True},
    {"node": facts("lost", ready=False), "quarantined": True},
]
SERVED_BY_NONE = [
    Verdict(),
    Verdict(not_serving=("a",)),
    Verdict(not_serving=("a",), newest_not_serving=NOW - 50),
    Verdict(quarantined=("a",), not_isolating=("b",)),
]


@st.composite
def any_members(draw: st.DrawFn) -> tuple[Member, ...]:
    found = []
    for i in range(draw(st.integers(0, 10))):
        state = draw(st.sampled_from(SandboxState))
        where: dict[str, Any] = {"node": facts("well")}
        if state is STRANDED:
            where = draw(st.sampled_from(DOUBTS)) | {"ready": draw(st.booleans())}
        failure = None
        if state is F:
            failure = Failure(Reason.POD_FAILED, "exit code 1", "well")
        elif state is S:
            failure = draw(st.sampled_from([None, UNSCHEDULABLE, PULLING, NO_SANDBOX]))
        found.append(
            member(
                f"pod-{i}",
                state,
                age=draw(st.sampled_from([1.0, 30.0, 120.0, 1000.0])),
                failure=failure,
                revision=draw(st.sampled_from([REVISION, REVISION, "old"])),
                runtime_uid=draw(st.sampled_from(["class-uid"] * 3 + ["former"])),
                overhead=draw(st.sampled_from([(), (), (("memory", "130Mi"),)])),
                **where,
            )
        )
    return tuple(found)


@st.composite
def any_input(draw: st.DrawFn) -> PoolInput:
    return pool_input(
        draw(any_members()),
        resolution=draw(st.sampled_from([FOUND] * 3 + [WITH_OVERHEAD, MISSING, MISMATCH])),
        template=draw(st.sampled_from([ACCEPTED, ACCEPTED, REJECTED, NOT_CHECKED])),
        verdict=draw(st.sampled_from([SERVED] * 5 + SERVED_BY_NONE)),
        creating=draw(st.integers(0, 3)),
        creating_cold=draw(st.integers(0, 3)),
        backoff=draw(
            st.builds(
                CreateBackoff,
                failures=st.integers(0, 5),
                until=st.sampled_from([0.0, NOW, NOW + 5]),
                reason=st.sampled_from([Reason.CREATE_FAILED, Reason.AUTOSCALER_ADDS_WRONG_NODES]),
            )
        ),
        isolationProof=draw(st.sampled_from(["None", "PerNode", "PerSandbox"])),
        replicas=draw(st.integers(0, 8)),
        maxSandboxes=draw(st.none() | st.integers(1, 12)),
        paused=draw(st.sampled_from([False, False, False, True])),
        startup={"timeoutSeconds": 100, "maxStarting": draw(st.integers(1, 5))},
        update={
            "type": draw(st.sampled_from(["RollingUpdate", "OnClaim", "Recreate"])),
            "maxUnavailable": draw(st.integers(1, 4) | st.sampled_from(["25%", "60%", "100%"])),
        },
        maxAgeSeconds=draw(st.sampled_from([None, 60, 600])),
    )


several = settings(max_examples=40)
DOUBTED = (Reason.NODE_QUARANTINED, Reason.ISOLATION_NOT_PROVEN)


def kept(given_: PoolInput, plan: PoolPlan, state: SandboxState) -> list[Member]:
    going = set(names(plan))
    return [m for m in given_.members if m.state is state and m.name not in going]


@several
@given(any_input())
def test_the_bounds_hold_for_any_input(pool: PoolInput) -> None:
    plan = decide(pool)
    spec = pool.spec
    assert 0 <= plan.create <= plan.target
    assert len(set(names(plan))) == len(plan.delete)
    assert {d.member.state for d in plan.delete}.isdisjoint({C, STOPPING})
    if plan.create:
        if spec.max_sandboxes is not None:
            asked = pool.creating + pool.creating_cold + plan.create
            assert len(pool.members) + asked <= spec.max_sandboxes
        starting = len(kept(pool, plan, S)) + pool.creating + plan.create
        assert starting <= (spec.startup.max_starting if pool.verdict.has_candidate_nodes else 1)
        ready = kept(pool, plan, W) + kept(pool, plan, UNPROVEN)
        assert starting + len(ready) <= plan.target
        assert pool.resolution.usable
        assert pool.template is ACCEPTED
        answered = pool.backoff.reason is Reason.AUTOSCALER_ADDS_WRONG_NODES
        assert pool.backoff.until <= pool.now or (answered and pool.verdict.has_candidate_nodes)
    if spec.paused:
        assert (plan.create, plan.delete) == (0, ())


def doubted(m: Member) -> bool:
    """Ready on a node that is well, and yet of no use."""
    return m.state is STRANDED and m.ready and m.node is not None and m.node.usable


@several
@given(any_input())
def test_no_move_takes_more_than_may_be_missing(pool: PoolInput) -> None:
    plan = decide(pool)
    relocated = [d for d in plan.delete if d.member.ready and d.reason in DOUBTED]
    if not relocated or pool.spec.max_sandboxes is not None:
        return
    nowhere = (
        not pool.verdict.has_candidate_nodes
        or not pool.resolution.usable
        or pool.template is not ACCEPTED
    )
    floor = plan.target - (0 if nowhere else max_unavailable(pool.spec.update, plan.target))
    waiting = [m for m in kept(pool, plan, STRANDED) if doubted(m)]
    usable = pool.resolution.usable
    warm = [m for m in pool.members if m.state is W and not (usable and of_other_runtime(m, pool))]
    assert len(waiting) + len(warm) >= floor


@several
@given(any_input())
def test_a_sandbox_of_another_runtime_is_never_kept_as_warm(pool: PoolInput) -> None:
    plan = decide(pool)
    if pool.resolution.usable and not pool.spec.paused:
        assert not [
            m
            for m in pool.members
            if m.name not in names(plan) and m.unclaimed and of_other_runtime(m, pool)
        ]


@several
@given(any_input())
def test_a_rollout_itself_leaves_at_most_max_unavailable_missing(pool: PoolInput) -> None:
    plan = decide(pool)
    rolled = [d for d in plan.delete if d.reason is Reason.ROLLING and d.member.state is W]
    if rolled and pool.spec.update.type != "Recreate":
        assert len(kept(pool, plan, W)) >= plan.target - max_unavailable(
            pool.spec.update, plan.target
        )
    if pool.spec.update.type == "OnClaim":
        for_age = [d for d in plan.delete if "revision" in d.message]
        assert {d.member.state for d in for_age} <= {UNPROVEN}
        assert not for_age or pool.spec.isolation_proof == "PerSandbox"


@several
@given(any_input())
def test_a_decision_is_the_same_whatever_the_order_of_the_pods(pool: PoolInput) -> None:
    turned = dataclasses.replace(pool, members=Members(reversed(list(pool.members))))
    first, second = decide(pool), decide(turned)
    assert first.create == second.create
    assert sorted(names(first)) == sorted(names(second))


def applied(pool: PoolInput, plan: PoolPlan, serial: Iterator[int]) -> PoolInput:
    """The pool a while later: what was deleted is gone, what was created is warm and proven."""
    going = set(names(plan))
    rest = [
        dataclasses.replace(m, state=W, ready=True)
        if m.state is UNPROVEN or (m.state is S and m.failure is None)
        else m
        for m in pool.members
        if m.name not in going and m.state is not STOPPING
    ]
    runtime_now = pool.resolution.runtime
    new: dict[str, Any] = {"age": 0, "node": facts("well")}
    new["overhead"] = runtime_now.overhead if runtime_now is not None else ()
    made = [member(f"made-{next(serial)}", **new) for _ in range(plan.create)]
    made += [member(f"asked-{next(serial)}", **new) for _ in range(pool.creating)]
    return dataclasses.replace(
        pool, members=Members([*rest, *made]), creating=0, creating_cold=0, backoff=CreateBackoff()
    )


@several
@given(any_input())
def test_a_plan_applied_again_and_again_comes_to_rest(pool: PoolInput) -> None:
    serial = itertools.count()
    for _ in range(40):
        pool = applied(pool, decide(pool), serial)
        plan = decide(pool)
        assert not [n for n in names(plan) if n.startswith("made")], "made to be thrown away"
        on_the_way = [m for m in pool.members if m.state is S and m.failure is None]
        if not plan.create and not plan.delete and not on_the_way:
            break
    else:
        pytest.fail(f"does not come to rest: {plan}")
    stuck = sum(m.state is S for m in pool.members)
    full = all(m.state is W for m in pool.members if m.in_stock)
    served = plan.blocked_by is None and pool.verdict.has_candidate_nodes
    # What is started for claims, or was put where it cannot be handed out, has places too.
    places = sum(m.state in (S, SandboxState.COLD) or m.misplaced for m in pool.members)
    if served and places < pool.spec.startup.max_starting:
        # One that is not ready any more stays until the one that is to take its place is ready.
        unready = sum(m.state is SandboxState.UNREADY for m in pool.members)
        beyond = min(stuck, unready, max_unavailable(pool.spec.update, plan.target))
        assert 0 <= sum(m.in_stock for m in pool.members) - plan.target <= beyond
        assert not full or not [m for m in pool.members if doubted(m)]
    free = pool.resolution.usable and pool.template is ACCEPTED and not pool.spec.paused
    if full and free and pool.verdict is SERVED and pool.spec.update.type != "OnClaim":
        assert not [m for m in pool.members if m.state is W and outdated(m, pool)]


@settings(max_examples=30)
@given(any_input())
def test_whatever_time_alone_will_change_a_pool_is_woken_for(pool: PoolInput) -> None:
    """Follow the times to look again: whatever happens in a day must happen on the way."""
    usual = decide(pool)
    assume(not usual.create and not usual.delete)

    def differs(now: float) -> bool:
        plan = decide(dataclasses.replace(pool, now=now))
        return (plan.create, names(plan)) != (usual.create, names(usual))

    if not differs(NOW + 86_400):
        return
    now = usual.requeue_at
    for _ in range(50):
        # A timer never fires early.
        assert now is not None, "nothing would wake the pool"
        if differs(now + 0.01):
            return
        now = decide(dataclasses.replace(pool, now=now + 0.01)).requeue_at
