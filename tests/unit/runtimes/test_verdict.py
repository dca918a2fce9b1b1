"""The verdict over a fleet, as properties."""

import random
from collections.abc import Collection, Iterable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxpool.api.core import Taint
from sandboxpool.runtimes.nodes import NodeFacts, facts_of
from sandboxpool.runtimes.placement import Placement, allows, placement_of
from sandboxpool.runtimes.verdict import (
    EXCLUSION_CAP,
    Answer,
    Verdict,
    answer_of,
    judge,
    stand,
)
from support.builders import facts, node, runtime

moderate = settings(max_examples=30, deadline=None)
HANDLERS = ["", "runc", "runsc", "kata-qemu"]
HOSTNAME = "kubernetes.io/hostname"
PLACEMENT = placement_of({"nodeSelector": {"zone": "a"}}, runtime())


def verdict_of(
    placement: Placement,
    fleet: Iterable[NodeFacts],
    quarantined: Collection[str] = (),
    not_isolating: Collection[str] = (),
) -> Verdict:
    standings = (
        stand(
            n,
            "runsc",
            placement,
            quarantined=n.name in quarantined,
            not_isolating=n.name in not_isolating,
        )
        for n in fleet
    )
    return judge(standing for standing in standings if standing is not None)


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
    eligible = sorted(n.name for n in fleet if allows(PLACEMENT, n, now=True))
    assert sorted([*verdict.serving, *verdict.not_serving, *verdict.unknown]) == eligible
    assert verdict.eligible == len(eligible)
    assert verdict.hopeful == any(
        answer_of(n, "runsc") is not Answer.NOT_SERVING for n in fleet if n.name in eligible
    )


@moderate
@given(fleets())
def test_a_node_without_a_list_is_never_said_not_to_serve(fleet: list[NodeFacts]) -> None:
    verdict = verdict_of(Placement(), fleet)
    silent = {n for n in fleet if n.handlers is None}
    assert not {n.name for n in silent} & {*verdict.serving, *verdict.not_serving}
    assert not {n.hostname for n in silent} & set(verdict.excluded)


@moderate
@given(fleets())
def test_the_exclusion_holds_every_candidate_known_not_to_serve_and_no_other(
    fleet: list[NodeFacts],
) -> None:
    verdict = verdict_of(PLACEMENT, fleet)
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
    assert verdict_of(PLACEMENT, fleet).excluded == verdict_of(PLACEMENT, calm).excluded


def test_the_exclusion_stops_at_its_cap_and_counts_the_rest() -> None:
    fleet = [facts(f"node-{i:04}", handlers=["runc"]) for i in range(EXCLUSION_CAP + 7)]
    verdict = verdict_of(Placement(), fleet)
    assert len(verdict.excluded) == EXCLUSION_CAP
    assert verdict.not_excluded == 7
    assert verdict_of(Placement(), fleet[:EXCLUSION_CAP]).not_excluded == 0


def test_an_empty_list_is_an_answer() -> None:
    assert answer_of(facts(handlers=[]), "runsc") is Answer.NOT_SERVING
    assert answer_of(facts(handlers=None), "runsc") is Answer.UNKNOWN


def test_no_node_at_all_is_no_hope_and_no_exclusion() -> None:
    verdict = verdict_of(Placement(), [])
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
    fleet = [facts(f"node-{i:04}", handlers=["runc"]) for i in range(EXCLUSION_CAP)]
    fleet += [facts("node-9998"), facts("node-9999")]
    verdict = verdict_of(Placement(), fleet, quarantined={"node-9999"}, not_isolating={"node-9998"})
    assert {"node-9998", "node-9999"} <= set(verdict.excluded)
    assert (len(verdict.excluded), verdict.not_excluded) == (EXCLUSION_CAP, 2)


def test_serving_nodes_are_named_only_past_the_cap_and_as_many_as_it_holds() -> None:
    lacking = [facts(f"node-{i:04}", handlers=["runc"]) for i in range(EXCLUSION_CAP + 1)]
    few = [facts("yes-1"), facts("yes-2")]
    assert set(verdict_of(Placement(), [*lacking, *few]).preferred) == {"yes-1", "yes-2"}
    assert verdict_of(Placement(), [*lacking[1:], *few]).preferred == ()
    many = [facts(f"yes-{i:04}") for i in range(EXCLUSION_CAP + 1)]
    named = verdict_of(Placement(), [*lacking, *many]).preferred
    assert len(named) == EXCLUSION_CAP
    assert set(named) < {node.name for node in many}
    assert verdict_of(Placement(), [*many[::-1], *lacking]).preferred == named


def test_the_label_of_exactly_the_serving_nodes_is_the_advice() -> None:
    fleet = [
        facts("a", labels={HOSTNAME: "a", "sandbox": "gvisor", "zone": "1"}),
        facts("b", labels={HOSTNAME: "b", "sandbox": "gvisor", "zone": "2"}),
        facts("c", labels={HOSTNAME: "c", "zone": "2"}, handlers=["runc"]),
    ]
    assert verdict_of(Placement(), fleet).advice == ("sandbox", "gvisor")
    assert verdict_of(Placement(), fleet[:2]).advice is None, "nothing to separate"


def test_of_several_stories_about_a_node_the_simplest_is_told() -> None:
    fleet = [facts("both"), facts("without", handlers=["runc"])]
    doubted = {"both", "without"}
    verdict = verdict_of(Placement(), fleet, quarantined=doubted, not_isolating=doubted)
    assert verdict.not_serving == ("without",), "it does not even list the handler"
    assert (verdict.quarantined, verdict.not_isolating) == (("both",), ())
    assert not verdict.hopeful


def test_the_newest_node_that_does_not_serve_is_told_of_if_it_could_take_a_pod() -> None:
    fleet = [
        facts("old", handlers=["runc"], joined=1000.0),
        facts("new", handlers=["runc"], joined=2000.0),
        facts("serves", joined=3000.0),
        facts("lost", handlers=["runc"], joined=4000.0, ready=False),
        facts("silent", handlers=None, joined=5000.0),
    ]
    assert verdict_of(Placement(), fleet).newest_not_serving == 2000.0
    assert verdict_of(Placement(), fleet[2:]).newest_not_serving == 0.0
