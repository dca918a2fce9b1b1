"""The verdict over a fleet, as properties."""

import dataclasses
import random
from collections.abc import Collection, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxpool.api.core import Taint
from sandboxpool.runtimes.exclusion import MAX_HOSTNAMES, ExclusionReason
from sandboxpool.runtimes.node_constraints import NodeConstraints, is_feasible, node_constraints_of
from sandboxpool.runtimes.nodes import NodeFacts, node_facts
from sandboxpool.runtimes.verdict import (
    HandlerState,
    NodeAssessment,
    Verdict,
    VerdictAggregator,
    assess_node,
    listed_handler_state,
    summarize,
)
from support.builders import facts, node, runtime

moderate = settings(max_examples=30)
HANDLERS = ["", "runc", "runsc", "kata-qemu"]
HOSTNAME = "kubernetes.io/hostname"
PLACEMENT = node_constraints_of({"nodeSelector": {"zone": "a"}}, runtime())


def verdict_of(
    placement: NodeConstraints,
    fleet: Iterable[NodeFacts],
    quarantined: Collection[str] = (),
    not_isolating: Collection[str] = (),
) -> Verdict:
    standings = (
        assess_node(
            n,
            "runsc",
            placement,
            quarantined=n.name in quarantined,
            not_isolating=n.name in not_isolating,
        )
        for n in fleet
    )
    return summarize((s for s in standings if s is not None), by_hostname=True)


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
    assert verdict_of(PLACEMENT, shuffled) == verdict_of(PLACEMENT, fleet)


@moderate
@given(fleets())
def test_each_node_that_takes_pods_now_has_exactly_one_answer(fleet: list[NodeFacts]) -> None:
    verdict = verdict_of(PLACEMENT, fleet)
    eligible = sorted(n.name for n in fleet if n.usable and is_feasible(PLACEMENT, n, now=True))
    assert sorted([*verdict.serving, *verdict.not_serving, *verdict.unknown]) == eligible
    assert verdict.eligible == len(eligible)
    assert verdict.has_candidate_nodes == any(
        listed_handler_state(n, "runsc") is not HandlerState.NOT_SERVING
        for n in fleet
        if n.name in eligible
    )


@moderate
@given(fleets())
def test_a_node_without_a_list_is_never_said_not_to_serve(fleet: list[NodeFacts]) -> None:
    verdict = verdict_of(NodeConstraints(), fleet)
    silent = {n for n in fleet if n.handlers is None and n.usable}
    assert not {n.name for n in silent} & {*verdict.serving, *verdict.not_serving}
    assert not {n.hostname for n in silent} & set(verdict.excluded)


@moderate
@given(fleets())
def test_the_hostnames_are_those_of_every_candidate_that_must_not_be_used_and_of_no_other(
    fleet: list[NodeFacts],
) -> None:
    verdict = verdict_of(PLACEMENT, fleet)
    wanted = {
        n.hostname
        for n in fleet
        if is_feasible(PLACEMENT, n, now=False)
        and (
            listed_handler_state(n, "runsc") is HandlerState.NOT_SERVING
            or (not n.usable and is_feasible(PLACEMENT, n, now=True))
        )
        and n.hostname is not None
    }
    assert set(verdict.excluded) == wanted
    assert list(verdict.excluded) == sorted(verdict.excluded)


@moderate
@given(fleets())
def test_what_passes_does_not_change_the_hostnames(fleet: list[NodeFacts]) -> None:
    """A node that is cordoned and released must not put every pending pod out of date."""
    calm = [
        facts(n.name, handlers=n.handlers, labels=dict(n.labels), taints=n.taints) for n in fleet
    ]
    placement = dataclasses.replace(PLACEMENT, tolerations=())
    cordoned = [facts(n.name, handlers=n.handlers, unschedulable=True) for n in calm]
    assert verdict_of(placement, cordoned).excluded == (
        verdict_of(placement, [facts(n.name, handlers=n.handlers) for n in calm]).excluded
    )


def test_the_hostnames_are_bounded() -> None:
    fleet = [facts(f"node-{i:04}", handlers=["runc"]) for i in range(MAX_HOSTNAMES + 7)]
    verdict = verdict_of(NodeConstraints(), fleet)
    assert (len(verdict.excluded), len(verdict.not_serving)) == (MAX_HOSTNAMES, len(fleet))


def test_an_empty_list_is_an_answer() -> None:
    assert listed_handler_state(facts(handlers=[]), "runsc") is HandlerState.NOT_SERVING
    assert listed_handler_state(facts(handlers=None), "runsc") is HandlerState.UNKNOWN


def test_no_node_at_all_is_no_hope_and_no_exclusion() -> None:
    verdict = verdict_of(NodeConstraints(), [])
    assert (verdict.eligible, verdict.has_candidate_nodes, verdict.excluded) == (0, False, ())


@given(st.lists(st.sampled_from(HANDLERS)), st.randoms(use_true_random=False))
def test_heartbeats_and_the_order_of_handlers_leave_a_nodes_facts_equal(
    handlers: list[str], order: random.Random
) -> None:
    shuffled = [*handlers, *handlers]
    order.shuffle(shuffled)
    before, after = node(handlers=handlers, version=1), node(handlers=shuffled, version=2)
    assert node_facts(before) == node_facts(after)


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


@moderate
@given(fleets(), st.sets(st.sampled_from([f"node-{i}" for i in range(8)])))
def test_what_is_known_better_than_the_list_keeps_a_node_out(
    fleet: list[NodeFacts], doubted: set[str]
) -> None:
    plain = verdict_of(PLACEMENT, fleet)
    for verdict, kept_out in (
        ((v := verdict_of(PLACEMENT, fleet, quarantined=doubted)), v.quarantined),
        ((v := verdict_of(PLACEMENT, fleet, not_isolating=doubted)), v.not_isolating),
    ):
        assert set(kept_out) == doubted & {*plain.serving, *plain.unknown}
        assert verdict.eligible == plain.eligible
        assert verdict.not_serving == plain.not_serving
        hosts = {n.hostname for n in fleet if n.name in kept_out and n.hostname is not None}
        assert hosts | set(plain.excluded) <= set(verdict.excluded)


def test_under_the_cap_the_worst_offenders_come_first() -> None:
    fleet = [facts(f"node-{i:04}", handlers=["runc"]) for i in range(MAX_HOSTNAMES)]
    fleet += [facts("node-9998"), facts("node-9999")]
    verdict = verdict_of(
        NodeConstraints(), fleet, quarantined={"node-9999"}, not_isolating={"node-9998"}
    )
    assert {"node-9998", "node-9999"} <= set(verdict.excluded)
    assert len(verdict.excluded) == MAX_HOSTNAMES


def test_the_label_of_exactly_the_serving_nodes_is_the_advice() -> None:
    fleet = [
        facts("a", labels={HOSTNAME: "a", "sandbox": "gvisor", "zone": "1"}),
        facts("b", labels={HOSTNAME: "b", "sandbox": "gvisor", "zone": "2"}),
        facts("c", labels={HOSTNAME: "c", "zone": "2"}, handlers=["runc"]),
    ]
    assert verdict_of(NodeConstraints(), fleet).advice == ("sandbox", "gvisor")
    assert verdict_of(NodeConstraints(), fleet[:2]).advice is None, "nothing to separate"


def test_of_several_stories_about_a_node_the_simplest_is_told() -> None:
    fleet = [facts("both"), facts("without", handlers=["runc"])]
    doubted = {"both", "without"}
    verdict = verdict_of(NodeConstraints(), fleet, quarantined=doubted, not_isolating=doubted)
    assert verdict.not_serving == ("without",), "it does not even list the handler"
    assert (verdict.quarantined, verdict.not_isolating) == (("both",), ())
    assert not verdict.has_candidate_nodes


def test_the_newest_node_that_does_not_serve_is_told_of_if_it_could_take_a_pod() -> None:
    fleet = [
        facts("old", handlers=["runc"], joined=1000.0),
        facts("new", handlers=["runc"], joined=2000.0),
        facts("serves", joined=3000.0),
        facts("lost", handlers=["runc"], joined=4000.0, ready=False),
        facts("silent", handlers=None, joined=5000.0),
    ]
    assert verdict_of(NodeConstraints(), fleet).newest_not_serving == 2000.0
    assert verdict_of(NodeConstraints(), fleet[2:]).newest_not_serving == 0.0


# --- Nodes that are kept out by their label ------------------------------------------------------

ANYWHERE = node_constraints_of({"tolerations": [{"operator": "Exists"}]}, runtime())
LOST = [Taint("node.kubernetes.io/unreachable", e) for e in ("NoSchedule", "NoExecute")]


PLAIN = NodeConstraints()


def tally_of(
    *fleet: NodeFacts, placement: NodeConstraints = PLAIN, **known: Any
) -> VerdictAggregator:
    tally = VerdictAggregator()
    how = {"quarantined": False, "not_isolating": False, **known}
    for n in fleet:
        assessment = assess_node(n, "runsc", placement, **how)
        if assessment is not None:
            tally.put(n.name, assessment)
    return tally


@pytest.mark.parametrize(
    "sick",
    [
        {"unschedulable": True},
        {"ready": False, "taints": LOST},
        {"ready": False},
        {"leaving": True},
        {"taints": [Taint("ToBeDeletedByClusterAutoscaler", "NoSchedule")]},
    ],
)
def test_whatever_a_template_tolerates_nothing_new_goes_where_it_could_not_be_handed_out(
    sick: dict[str, Any],
) -> None:
    tally = tally_of(
        facts("good"), facts("sick", **sick), placement=ANYWHERE, exclusion_effective=False
    )
    assert tally.verdict.serving == ("good",)
    assert tally.exclusion_reason("sick") is ExclusionReason.UNAVAILABLE
    assert tally.verdict.exclusions_pending == 1
    assert tally.exclusion_reason("good") is None


@pytest.mark.parametrize("sick", [{"unschedulable": True}, {"ready": False, "taints": LOST}])
def test_what_keeps_pods_away_by_itself_needs_no_label(sick: dict[str, Any]) -> None:
    """No write for each cordon of each node."""
    tally = tally_of(facts("sick", **sick), exclusion_effective=False)
    assert (tally.exclusion_reason("sick"), tally.verdict.exclusions_pending) == (None, 0)


def test_that_a_runtime_does_not_isolate_hides_no_other_reason() -> None:
    """Pools that want no proof do not mind that one."""
    cordoned = facts(unschedulable=True)
    assert tally_of(cordoned, placement=ANYWHERE, not_isolating=True).exclusion_reason(
        "node-1"
    ) is (ExclusionReason.UNAVAILABLE)
    assert (
        tally_of(facts(), not_isolating=True).exclusion_reason("node-1")
        is ExclusionReason.NOT_ISOLATING
    )
    assert (
        tally_of(facts(), not_isolating=True, quarantined=True).exclusion_reason("node-1")
        is ExclusionReason.QUARANTINED
    )


def test_a_node_without_a_hostname_or_with_a_shared_one_is_kept_out_alone() -> None:
    nameless = facts("nameless", handlers=["runc"], labels={"a": "b"})
    twins = [
        facts("good", labels={HOSTNAME: "x"}),
        facts("bad", handlers=["runc"], labels={HOSTNAME: "x"}),
    ]
    tally = tally_of(nameless, *twins)
    assert [n for n in ("nameless", "good", "bad") if tally.exclusion_reason(n)] == [
        "nameless",
        "bad",
    ]


def test_a_node_that_has_just_joined_is_left_to_the_sandbox_that_waits_for_it() -> None:
    """An autoscaler that has bought it for that sandbox would else buy another."""
    tally = tally_of(facts("old", handlers=["runc"]), exclusion_effective=False)
    assert tally.put("new", stand_of(facts("new", handlers=["runc"]), recently_joined=True))
    assert tally.exclusion_reason("old") is ExclusionReason.NOT_SERVING
    assert (tally.exclusion_reason("new"), tally.verdict.exclusions_pending) == (None, 1)
    tally.put("good", stand_of(facts("good")))
    assert tally.exclusion_reason("new") is ExclusionReason.NOT_SERVING, "others serve the handler"
    assert tally.verdict.exclusions_pending == 2


def stand_of(node: NodeFacts, *, recently_joined: bool = False) -> NodeAssessment | None:
    return assess_node(
        node,
        "runsc",
        NodeConstraints(),
        quarantined=False,
        not_isolating=False,
        exclusion_effective=False,
        recently_joined=recently_joined,
    )
