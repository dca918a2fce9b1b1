"""What one namespace does changes nothing for another: hostile and clumsy tenants."""

from __future__ import annotations

import random

import pytest

from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.runtimes.evidence import Isolation
from support.simulation.controllers import Start
from support.simulation.effort import SIMULATIONS
from support.simulation.tenants import Attacker, make_clumsy_pool, of_victims
from support.simulation.world import NAMESPACE, World

# Of a crowd: each makes a pool that never starts anything. The large one takes minutes.
CROWDS = [(40, 30), *([(200, 500)] if SIMULATIONS >= 500 else [])]


def known(world: World) -> ClusterCache:
    """What the operator that leads knows."""
    (process,) = [p for p in world.processes if not p.dead and p.operator.leads]
    return process.operator.components.cluster


def bound_wrongly(world: World) -> list[str]:
    """The claims that are bound to a pod that is not of their namespace, pool and class."""
    pods = {pod["metadata"]["uid"]: pod for pod in world.server.all("pods")}
    wrong = []
    for claim in world.server.all("sandboxclaims"):
        status = claim.get("status") or {}
        pod = pods.get(status.get("podUID", ""))
        if status.get("phase") != "Bound" or pod is None:
            continue
        owners = [o["uid"] for o in pod["metadata"]["ownerReferences"]]
        if (
            pod["metadata"]["namespace"] != NAMESPACE
            or pod["spec"].get("runtimeClassName") != "gvisor"
            or owners != [claim["metadata"]["uid"]]
        ):
            wrong.append(f"{claim['metadata']['name']}: {pod['metadata']}")
    return wrong


@pytest.mark.parametrize("seed", range(min(SIMULATIONS, 200)))
def test_who_may_only_create_pods_elsewhere_changes_nothing(seed: int) -> None:
    chance = random.Random(seed)
    with World(seed) as world:
        world.make_pool(replicas=3, isolationProof="PerNode", maxSandboxes=6)
        world.run(30.0)
        before = of_victims(world.pods())
        assert len(before) == 3
        attacker = Attacker(world, chance)
        for _ in range(30):
            attacker.act()
            world.run(chance.choice((0.0, 0.5, 3.0)))
            attacker.lie()
            world.run(chance.choice((0.0, 0.5, 3.0)))
            assert not list(known(world).quarantines.open())
        assert of_victims(world.pods()).keys() == before.keys(), "no sandbox was touched"
        for node in known(world).nodes:
            seen = known(world).evidence.current(node, "runsc")
            assert seen is not None
            assert seen.isolation is Isolation.PROVEN
        world.make_claim("claim", runtimeClassName="gvisor")
        attacker.act()
        world.run(20.0)
        status = (world.claim("claim") or {})["status"]
        assert status["phase"] == "Bound"
        assert status["podUID"] in before
        assert not bound_wrongly(world)


@pytest.mark.parametrize("seed", range(min(SIMULATIONS, 200)))
def test_a_runtime_that_does_not_isolate_stays_refused_whatever_tenants_forge(seed: int) -> None:
    chance = random.Random(seed)
    with World(seed) as world:
        for node in world.controllers.nodes.values():
            node.isolates = False
        world.make_pool(replicas=2, isolationProof="PerNode")
        world.make_claim("victim", runtimeClassName="gvisor", bindTimeoutSeconds=3600)
        world.run(60.0)
        attacker = Attacker(world, chance)
        for _ in range(30):
            attacker.act()
            attacker.lie()
            world.run(chance.choice((0.5, 3.0)))
        status = (world.claim("victim") or {}).get("status") or {}
        assert status.get("phase") in (None, "Pending")


@pytest.mark.parametrize(("tenants", "nodes"), CROWDS)
def test_a_crowd_of_broken_templates_costs_nobody_else_anything(tenants: int, nodes: int) -> None:
    with World(nodes=nodes) as world:
        world.make_pool(replicas=10, isolationProof="PerNode")
        # Every node is probed twice, at five a second.
        world.run(60.0 + nodes / 2)
        before = of_victims(world.pods())
        assert len(before) == 10
        for number in range(tenants):
            make_clumsy_pool(world, f"tenant-{number}")
        world.run(60.0)
        begun = len(world.network.writes)
        for _ in range(9):
            # Each of the broken pools may try once a minute.
            world.watchdog.cause(tenants)
            world.run(60.0)
        assert not list(known(world).quarantines.open())
        assert of_victims(world.pods()).keys() == before.keys()
        # Each pool tries ever more slowly; five probes a second would be 2,700, with their deletes.
        assert len(world.network.writes) - begun < 9 * 60 * tenants / 4 + 2 * 2700
        # Nodes that break in truth are found as soon as if the crowd were not there.
        broken = {f"node-{number}" for number in range(5)}
        for name in broken:
            world.controllers.nodes[name].starts = Start.FAILS
        world.change_pool("pool", replicas=10 + 2 * nodes)
        world.watchdog.cause(2 * nodes)
        world.run(20.0)
        found = {node for (node, _), _ in known(world).quarantines.open()}
        assert found
        assert found <= broken
