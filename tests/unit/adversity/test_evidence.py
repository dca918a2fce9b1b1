"""Proof where nodes are full, are upgraded below their sandboxes, or give no answer."""

from __future__ import annotations

from typing import Any

import pytest

from sandboxpool.api import names
from support.simulation.apiserver import Object, labels
from support.simulation.machines import Start
from support.simulation.process import PROBE_IMAGE
from support.simulation.world import World

PROBE = f"{names.GROUP}/probe"


def status(world: World, pool: str = "pool") -> dict[str, Any]:
    found = world.pool(pool)
    assert found is not None
    return dict(found["status"])


def isolation(world: World, pool: str = "pool") -> tuple[str, str, str]:
    (one,) = [c for c in status(world, pool)["conditions"] if c["type"] == "IsolationProven"]
    return one["status"], one["reason"], one["message"]


def is_probe(pod: Object) -> bool:
    return PROBE in labels(pod)


def uids(world: World) -> set[str]:
    return {pod["metadata"]["uid"] for pod in world.pods()}


def made(world: World) -> int:
    """How many sandboxes have been made so far."""
    posts = (r for _, r in world.network.writes if r.method == "POST" and r.path.endswith("/pods"))
    return sum("/namespaces/default/" in request.path for request in posts)


def proven_pool(world: World, replicas: int, **spec: Any) -> None:
    """A pool whose sandboxes are warm, long ago, on nodes that have no room for more."""
    world.make_pool("pool", replicas, isolationProof="PerNode", **spec)
    world.run(400)
    assert status(world)["warm"] == replicas


def fill(world: World, *nodes: str) -> None:
    for name in nodes or list(world.controllers.nodes):
        world.controllers.nodes[name].room = world.controllers.load_of(name)


UPGRADES: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "one more handler": (("kata",), {}),
    "another kubelet": ((), {"kubeletVersion": "v1.37.0"}),
    "another container runtime": ((), {"containerRuntimeVersion": "containerd://2.2.0"}),
}


@pytest.mark.parametrize("how", UPGRADES)
def test_an_upgrade_below_full_nodes_costs_no_sandbox_and_the_next_ones_get_their_proof(
    how: str,
) -> None:
    with World(seed=3, nodes=2) as world:
        proven_pool(world, 4)
        fill(world)
        before = uids(world)
        handlers, info = UPGRADES[how]
        for name in list(world.controllers.nodes):
            world.nature("upgrade", name, *handlers, **info)
        world.run(60)
        assert status(world)["warm"] == 4, "what runs keeps its proof"
        world.make_claim("claim")
        world.run(1)
        assert world.phase("claim") == "Bound"
        assert uids(world) >= before, "and nothing that can be handed out gives way"

        # The next one finds room, waits for its proof, and gives way to the probe that brings it.
        for node in world.controllers.nodes.values():
            node.room = (node.room or 0) + (node.name == "node-0")
        world.run(240)
        assert status(world)["warm"] == 4
        assert status(world)["unproven"] == 0
        assert uids(world) >= before
        assert not any(map(is_probe, world.server.all("pods")))
        world.make_claim("another")
        world.run(1)
        assert world.phase("another") == "Bound"


def test_an_operator_that_is_restarted_knows_what_keeps_its_proof() -> None:
    with World(seed=4, nodes=2) as world:
        proven_pool(world, 4)
        fill(world)
        for name in list(world.controllers.nodes):
            world.nature("upgrade", name, kubeletVersion="v1.37.0")
        world.run(30)
        world.crash()
        world.run(30)
        assert status(world)["warm"] == 4


def test_a_reboot_makes_every_proof_void() -> None:
    with World(seed=4, nodes=2) as world:
        proven_pool(world, 4)
        fill(world)
        for name in list(world.controllers.nodes):
            world.nature("upgrade", name, bootID=f"another-{name}")
        world.run(5)
        assert status(world)["warm"] == 0
        world.run(300)
        assert status(world)["warm"] == 4


def test_on_a_full_node_one_sandbox_at_a_time_gives_way_to_the_probe() -> None:
    with World(seed=5, nodes=1) as world:
        world.controllers.nodes["node-0"].pulls = False
        world.make_pool("pool", 4, isolationProof="PerNode")
        world.run(20)
        world.controllers.nodes["node-0"].room = 4
        for pod in filter(is_probe, world.server.all("pods")):
            world.delete("pods", pod, grace=0)
        world.controllers.nodes["node-0"].pulls = True
        # Four of the stock, and no probe.
        world.run(600)
        assert status(world)["warm"] == 4
        assert made(world) == 5, "one has given way"


def test_what_waits_for_room_does_not_take_the_place_that_is_made_for_a_probe() -> None:
    with World(seed=10, nodes=1) as world:
        node = world.controllers.nodes["node-0"]
        node.unpullable.add(PROBE_IMAGE)
        world.make_pool("pool", 4, isolationProof="PerNode")
        world.run(20)
        node.room = 4
        world.change_pool("pool", replicas=6)
        world.run(10)
        for pod in filter(is_probe, world.server.all("pods")):
            world.delete("pods", pod, grace=0)
        node.unpullable.clear()
        world.run(600)
        assert status(world)["warm"] == 4
        assert status(world)["starting"] == 2, "and two wait for room as before"


def test_what_never_gets_its_probe_in_is_given_up_ever_more_seldom() -> None:
    with World(seed=6, nodes=1) as world:
        world.make_pool("pool", 4, isolationProof="PerNode")
        node = world.controllers.nodes["node-0"]
        fits = world.controllers._fits
        # Whatever makes room for them: others are quicker.
        world.controllers._fits = lambda pod, name: not is_probe(pod) and fits(pod, name)  # type: ignore[method-assign]
        world.run(20)
        node.room = 4
        world.run(3600)
        first = made(world) - 4
        assert 1 <= first <= 4
        world.run(3 * 3600)
        assert made(world) - 4 - first <= 3
        assert isolation(world)[:2] == ("False", "EvidenceUnavailable")
        assert status(world)["unproven"] == 4


def silence(world: World, *nodes: str) -> None:
    """No probe can run on these nodes, which is not the runtime's fault."""
    for name in nodes:
        world.controllers.nodes[name].unpullable.add(PROBE_IMAGE)


def test_what_a_silent_node_keeps_from_claims_is_replaced_where_there_is_proof() -> None:
    with World(seed=7, nodes=3) as world:
        silence(world, "node-0")
        world.make_pool("pool", 6, isolationProof="PerNode")
        world.run(60)
        unproven = status(world)["unproven"]
        assert unproven
        assert status(world)["runtime"]["nodes"]["unproven"] == 0
        world.run(900)
        assert status(world)["warm"] == 6
        assert status(world)["unproven"] == 0
        assert status(world)["runtime"]["nodes"]["unproven"] == 1
        assert {p["spec"]["nodeName"] for p in world.pods()} == {"node-1", "node-2"}
        assert made(world) == 6 + unproven, "one for each"


def test_where_no_node_gives_proof_nothing_is_replaced() -> None:
    with World(seed=8, nodes=3) as world:
        silence(world, "node-0", "node-1", "node-2")
        world.make_pool("pool", 6, isolationProof="PerNode")
        world.run(60)
        before = uids(world)
        world.run(3600)
        assert made(world) == 6
        assert uids(world) == before
        assert status(world)["runtime"]["nodes"]["unproven"] == 0
        assert isolation(world)[:2] == ("False", "EvidenceUnavailable")


def test_a_quarantine_that_concerns_no_pool_any_more_ends() -> None:
    with World(seed=9, nodes=1) as world:
        world.controllers.nodes["node-0"].starts = Start.FAILS
        world.make_pool("pool", 1, isolationProof="PerNode")
        world.run(60)
        assert status(world)["runtime"]["nodes"]["quarantined"] == 1
        pool = world.pool()
        assert pool is not None
        world.delete("sandboxpools", pool)

        def runtime() -> Object:
            (found,) = world.server.all("sandboxruntimes")
            return dict(found["status"])

        world.run(120)
        assert runtime()["nodes"]["quarantined"] == 1, "who comes back soon finds it"
        world.run(900)
        assert runtime()["nodes"]["quarantined"] == 0
        assert runtime()["issues"] == []

        # A pool that needs it again finds out by a probe.
        world.make_pool("pool", 1, isolationProof="PerNode")
        world.run(60)
        assert status(world)["runtime"]["nodes"]["quarantined"] == 1
