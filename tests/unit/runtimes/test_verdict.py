"""The verdict over a fleet, as properties."""

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxpool.api.core import Taint
from sandboxpool.runtimes.nodes import NodeFacts, facts_of
from sandboxpool.runtimes.placement import Placement, allows, placement_of
from sandboxpool.runtimes.verdict import EXCLUSION_CAP, Answer, answer_of, judge
from support.builders import facts, node, runtime

moderate = settings(max_examples=30, deadline=None)
HANDLERS = ["", "runc", "runsc", "kata-qemu"]
HOSTNAME = "kubernetes.io/hostname"
PLACEMENT = placement_of({"nodeSelector": {"zone": "a"}}, runtime())


@st.composite
def fleets(draw: st.DrawFn) -> list[NodeFacts]:
    fleet = []
    for i in range(draw(st.integers(0, 8))):
        labels = {"zone": draw(st.sampled_from("ab"))}
        if draw(st.booleans()):
            labels[HOSTNAME] = f"host-{i}"
        fleet.append(
            facts(
                f"node-{i}",
                handlers=draw(st.none() | st.lists(st.sampled_from(HANDLERS))),
                labels=labels,
                ready=draw(st.booleans()),
                unschedulable=draw(st.booleans()),
                taints=draw(
                    st.sampled_from(
                        [
                            [],
                            [Taint(key="node.kubernetes.io/disk-pressure", effect="NoSchedule")],
                            [Taint(key="dedicated", effect="NoSchedule")],
                        ]
                    )
                ),
            )
        )
    return fleet


@moderate
@given(fleets(), st.randoms(use_true_random=False))
def test_the_order_of_nodes_does_not_matter(fleet: list[NodeFacts], order: random.Random) -> None:
    shuffled = list(fleet)
    order.shuffle(shuffled)
    assert judge("runsc", PLACEMENT, shuffled) == judge("runsc", PLACEMENT, fleet)


@moderate
@given(fleets())
def test_each_node_that_takes_pods_now_has_exactly_one_answer(fleet: list[NodeFacts]) -> None:
    verdict = judge("runsc", PLACEMENT, fleet)
    eligible = sorted(n.name for n in fleet if allows(PLACEMENT, n, now=True))
    assert sorted([*verdict.serving, *verdict.not_serving, *verdict.unknown]) == eligible
    assert verdict.eligible == len(eligible)
    assert verdict.hopeful == any(
        answer_of(n, "runsc") is not Answer.NOT_SERVING for n in fleet if n.name in eligible
    )


@moderate
@given(fleets())
def test_a_node_without_a_list_is_never_said_not_to_serve(fleet: list[NodeFacts]) -> None:
    verdict = judge("runsc", Placement(), fleet)
    silent = {n for n in fleet if n.handlers is None}
    assert not {n.name for n in silent} & {*verdict.serving, *verdict.not_serving}
    assert not {n.hostname for n in silent} & set(verdict.excluded)


@moderate
@given(fleets())
def test_the_exclusion_holds_every_candidate_known_not_to_serve_and_no_other(
    fleet: list[NodeFacts],
) -> None:
    verdict = judge("runsc", PLACEMENT, fleet)
    wanted = {
        n.hostname
        for n in fleet
        if allows(PLACEMENT, n, now=False)
        and answer_of(n, "runsc") is Answer.NOT_SERVING
        and n.hostname is not None
    }
    assert set(verdict.excluded) == wanted
    assert list(verdict.excluded) == sorted(verdict.excluded)


@moderate
@given(fleets())
def test_what_passes_does_not_change_the_exclusion(fleet: list[NodeFacts]) -> None:
    """A node that is cordoned and released must not make every pending pod's exclusion stale."""
    calm = [
        facts(n.name, handlers=n.handlers, labels=dict(n.labels), taints=n.taints) for n in fleet
    ]
    assert judge("runsc", PLACEMENT, fleet).excluded == judge("runsc", PLACEMENT, calm).excluded


def test_the_exclusion_stops_at_its_cap_and_counts_the_rest() -> None:
    fleet = [facts(f"node-{i:04}", handlers=["runc"]) for i in range(EXCLUSION_CAP + 7)]
    verdict = judge("runsc", Placement(), fleet)
    assert len(verdict.excluded) == EXCLUSION_CAP
    assert verdict.not_excluded == 7
    assert judge("runsc", Placement(), fleet[:EXCLUSION_CAP]).not_excluded == 0


def test_an_empty_list_is_an_answer() -> None:
    assert answer_of(facts(handlers=[]), "runsc") is Answer.NOT_SERVING
    assert answer_of(facts(handlers=None), "runsc") is Answer.UNKNOWN


def test_no_node_at_all_is_no_hope_and_no_exclusion() -> None:
    verdict = judge("runsc", Placement(), [])
    assert (verdict.eligible, verdict.hopeful, verdict.excluded) == (0, False, ())


@given(st.lists(st.sampled_from(HANDLERS)), st.randoms(use_true_random=False))
def test_heartbeats_and_the_order_of_handlers_leave_a_nodes_facts_equal(
    handlers: list[str], order: random.Random
) -> None:
    shuffled = [*handlers, *handlers]
    order.shuffle(shuffled)
    before, after = node(handlers=handlers, version=1), node(handlers=shuffled, version=2)
    assert facts_of(before) == facts_of(after)


def test_the_order_of_taints_leaves_a_nodes_facts_equal() -> None:
    a, b = Taint(key="a", effect="NoSchedule"), Taint(key="b", effect="NoSchedule")
    assert facts(taints=[a, b]) == facts(taints=[b, a])


def test_what_decides_makes_a_nodes_facts_differ() -> None:
    usual = facts()
    changes: list[dict[str, Any]] = [
        {"ready": False},
        {"unschedulable": True},
        {"leaving": True},
        {"handlers": None},
        {"handlers": ["runc"]},
        {"labels": {}},
        {"taints": [Taint(key="a", effect="NoSchedule")]},
        {"taints": [Taint(key="ToBeDeletedByClusterAutoscaler", effect="NoSchedule")]},
    ]
    for change in changes:
        assert facts(**change) != usual, change


def test_a_node_that_the_autoscaler_removes_is_not_usable() -> None:
    removed = Taint(key="ToBeDeletedByClusterAutoscaler", effect="NoSchedule")
    assert facts().usable
    assert not facts(taints=[removed]).usable
