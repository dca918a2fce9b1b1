"""Nodes that are about to go, are closed or are silent, and templates that tolerate all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sandboxpool.api.names import EXCLUSION_PREFIX
from sandboxpool.runtimes.lifecycle import PLANNED_CONDITION, REMOVAL_CONDITIONS, REMOVAL_TAINTS
from support.simulation.admission import keeps_nodes_as_they_are
from support.simulation.apiserver import Object
from support.simulation.people import template_of
from support.simulation.world import World

IMAGE = "registry.example/a:1"


def tolerant() -> Object:
    """A template whose pods go anywhere, as those for dedicated nodes often do."""
    template = template_of(IMAGE)
    template["spec"]["tolerations"] = [{"operator": "Exists"}]
    return template


def created(world: World) -> int:
    return sum(r.method == "POST" and r.path.endswith("/pods") for _, r in world.network.writes)


def on(world: World, node: str, pods: list[Object] | None = None) -> list[Object]:
    listed = world.pods() if pods is None else pods
    return [pod for pod in listed if pod["spec"].get("nodeName") == node]


def warm_reason(world: World) -> str:
    pool = world.pool()
    assert pool is not None
    (one,) = [c for c in pool["status"]["conditions"] if c["type"] == "Warm"]
    return str(one["reason"])


# --- Where a template's pods are put though they cannot be handed out ----------------------------


@pytest.mark.parametrize(
    ("act", "what"),
    [
        ("cordon", ()),
        ("taint", ("karpenter.sh/disrupted",)),
        ("announce", ("DrainInProgress",)),
        ("announce", (PLANNED_CONDITION,)),
    ],
)
def test_a_node_that_is_closed_makes_no_storm(act: str, what: tuple[str, ...]) -> None:
    """Whatever was put there goes, and leaves the scheduler's favourite behind: an empty node."""
    with World(seed=1, nodes=2) as world:
        world.controllers.prefers_empty = True
        world.controllers.stop_seconds = 0.0, 0.01
        world.nature(act, "node-0", *what)
        world.make_pool("pool", 4, template=tolerant())
        world.run(300)
        assert created(world) <= 16
        assert len(on(world, "node-1", world.ready())) >= 2


@pytest.mark.parametrize("labelled", [True, False])
def test_a_silent_node_beside_a_full_one_collects_no_sandboxes(labelled: bool) -> None:
    with World(seed=1, nodes=2) as world:
        if not labelled:
            world.server.admission.add(keeps_nodes_as_they_are(EXCLUSION_PREFIX))
        world.controllers.prefers_empty = True
        world.controllers.nodes["node-1"].room = 6
        world.nature("lose_node", "node-0")
        world.make_pool("pool", 10, template=tolerant())
        world.run(300)
        assert created(world) <= 22
        assert len(world.ready()) == 6
        world.run(6 * 3600)
        assert len(on(world, "node-0")) <= (0 if labelled else 20)
        assert warm_reason(world) == ("Unschedulable" if labelled else "HeldByLostNodes")
        # What was put there in vain is gone once the node can say so, and nothing is left to hold.
        world.nature("bring_back", "node-0")
        world.run(600)
        assert len(world.ready()) == 10


def test_where_a_whole_zone_is_silent_only_few_are_made() -> None:
    with World(seed=1, nodes=3) as world:
        for node in list(world.controllers.nodes):
            world.nature("lose_node", node)
        world.make_pool("pool", 3, template=tolerant())
        world.run(300)
        assert 1 <= created(world) <= 6
        world.run(6 * 3600)
        assert len(world.pods()) <= 20


def test_what_runs_on_a_node_that_falls_silent_is_replaced_at_once() -> None:
    """However many they are: nobody has put them there in vain."""
    with World(seed=1, nodes=2) as world:
        world.make_pool("pool", 30, startup={"maxStarting": 5}, template=tolerant())
        world.run(120)
        lost = len(on(world, "node-0"))
        assert lost > 10
        before = created(world)
        world.nature("lose_node", "node-0")
        world.nature("cordon", "node-0")
        world.crash()
        world.run(60)
        assert created(world) - before >= lost


# --- What is handed out --------------------------------------------------------------------------

ANNOUNCED = [
    *(("taint", key) for key in sorted(REMOVAL_TAINTS)),
    *(("announce", type_) for type_ in sorted({*REMOVAL_CONDITIONS, PLANNED_CONDITION})),
]


@pytest.mark.parametrize(("act", "what"), ANNOUNCED)
def test_nothing_is_handed_out_where_it_would_end_soon_and_others_take_its_place(
    act: str, what: str
) -> None:
    with World(seed=1, nodes=2) as world:
        world.make_pool("pool", 6)
        world.run(30)
        assert on(world, "node-0", world.ready())
        world.nature(act, "node-0", what)
        world.run(1)
        for index in range(2):
            world.make_claim(f"claim-{index}")
        world.run(3)
        for index in range(2):
            claim = world.claim(f"claim-{index}")
            assert claim is not None
            assert claim["status"]["nodeName"] == "node-1"
        world.run(60)
        assert len(on(world, "node-1", world.ready())) == 6
        assert not on(world, "node-0")


Say = Callable[[World, str], Any]


@pytest.mark.parametrize(
    ("say", "phase"),
    [
        (lambda w, n: w.nature("cordon", n), "Bound"),
        (lambda w, n: w.nature("announce", n, PLANNED_CONDITION), "Bound"),
        (lambda w, n: w.nature("taint", n, "example.com/dedicated"), "Bound"),
        (lambda w, n: w.nature("taint", n, "DeletionCandidateOfClusterAutoscaler"), "Bound"),
        (lambda w, n: w.nature("announce", n, "Drained"), "Bound"),
        (lambda w, n: w.nature("taint", n, "karpenter.sh/disrupted"), "Pending"),
        (lambda w, n: w.nature("announce", n, "MaintenanceInProgress"), "Pending"),
    ],
    ids=["cordoned", "planned", "dedicated", "candidate", "drained", "disrupted", "in progress"],
)
def test_where_every_node_is_to_be_left_only_those_about_to_go_are_excluded(
    say: Say, phase: str
) -> None:
    with World(seed=1, nodes=2) as world:
        world.make_pool("pool", 4)
        world.run(30)
        for node in ("node-0", "node-1"):
            say(world, node)
        world.run(5)
        world.make_claim("claim")
        world.run(5)
        assert world.phase("claim") == phase


def test_a_fleet_that_is_all_to_be_maintained_some_day_still_serves_and_is_at_rest() -> None:
    with World(seed=1, nodes=2) as world:
        for node in ("node-0", "node-1"):
            world.nature("announce", node, PLANNED_CONDITION)
        world.make_pool("pool", 3)
        world.run(120)
        for index in range(3):
            world.make_claim(f"claim-{index}")
            world.run(60)
            assert world.phase(f"claim-{index}") == "Bound"
        before = created(world)
        world.run(3600)
        assert created(world) - before <= 30
