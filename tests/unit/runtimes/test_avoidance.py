"""A pool keeps away from nodes by itself: bounded, for a while, and nobody else does."""

from dataclasses import replace

import pytest

from sandboxpool.runtimes.avoidance import (
    AVOID_SECONDS,
    MAX_NODES,
    AvoidedNodes,
    chosen,
    exclude_nodes,
)
from sandboxpool.runtimes.verdict import Verdict
from support.builders import NOW, facts


def test_only_the_pool_whose_sandboxes_failed_keeps_away() -> None:
    avoidance = AvoidedNodes()
    assert avoidance.add("a", "node-1", NOW)
    assert not avoidance.add("a", "node-1", NOW + 1), "that is no news"
    assert (avoidance.of("a"), avoidance.of("b")) == (["node-1"], [])


def test_it_is_over_after_a_while_and_goes_on_with_each_failure() -> None:
    avoidance = AvoidedNodes()
    avoidance.add("a", "node-1", NOW)
    avoidance.add("a", "node-1", NOW + 60)
    avoidance.expire("a", NOW + AVOID_SECONDS + 59)
    assert avoidance.of("a") == ["node-1"]
    avoidance.expire("a", NOW + AVOID_SECONDS + 60)
    assert avoidance.of("a") == []
    avoidance.expire("a", NOW)


def test_a_clock_that_is_put_back_ends_it() -> None:
    avoidance = AvoidedNodes()
    avoidance.add("a", "node-1", NOW)
    avoidance.expire("a", NOW - 1)
    assert avoidance.of("a") == []


def test_the_oldest_give_way() -> None:
    avoidance = AvoidedNodes()
    for number in range(MAX_NODES + 2):
        avoidance.add("a", f"node-{number}", NOW + number)
    assert len(avoidance.of("a")) == MAX_NODES
    assert avoidance.of("a")[0] == f"node-{MAX_NODES + 1}"
    assert "node-1" not in avoidance.of("a")


def test_what_is_gone_or_mended_is_forgotten() -> None:
    avoidance = AvoidedNodes()
    for pool in ("a", "b"):
        avoidance.add(pool, "node-1", NOW)
        avoidance.add(pool, "node-2", NOW)
    avoidance.forget_node("node-1")
    avoidance.forget_pool("b")
    assert (avoidance.of("a"), avoidance.of("b")) == (["node-2"], [])
    avoidance.forget_node("node-2")
    assert avoidance._pools == {}


@pytest.mark.parametrize(("usable", "kept_away"), [(1, 0), (2, 1), (3, 1), (5, 2)])
def test_half_of_the_usable_nodes_stay_whatever_failed(usable: int, kept_away: int) -> None:
    names = tuple(f"node-{number}" for number in range(usable))
    verdict = Verdict(serving=names[:1], unknown=names[1:])
    found = chosen(verdict, [facts(name) for name in ("elsewhere", *names)])
    assert [node.name for node in found] == list(names[:kept_away])


def test_nothing_is_made_before_the_nodes_that_are_kept_away_from_have_the_pools_label() -> None:
    verdict = Verdict(serving=("a", "b", "c"), exclusions_pending=1)
    label = {"excluded.sandboxpool.io/pool-uid": "Avoided"}
    nodes = [facts("a", labels=label), facts("b"), facts("c")]
    given = exclude_nodes(verdict, nodes, "uid", frozenset({"c"}))
    assert given == replace(verdict, exclusions_pending=2), (
        "of c's label nobody knows when it comes"
    )
    assert exclude_nodes(verdict, nodes, "other", frozenset()).exclusions_pending == 4


def test_where_nodes_cannot_be_labelled_their_hostnames_are_named() -> None:
    verdict = Verdict(serving=("a", "b"), by_hostname=True, excluded=("other",))
    given = exclude_nodes(verdict, [facts("a")], "uid", frozenset())
    assert given == replace(verdict, excluded=("a", "other"))
