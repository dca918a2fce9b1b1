"""The process among slow webhooks, bad answers and wrong clocks: whole operators, virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from sandboxpool.api import names
from sandboxpool.api.times import epoch
from sandboxpool.util.references import ObjectReference
from support.simulation.admission import CHANGE, CHECK, hangs
from support.simulation.apiserver import Object
from support.simulation.network import SimulatedClient
from support.simulation.process import Process
from support.simulation.sight import Listing, Watching
from support.simulation.world import World

HEALTHY_POOL = 10


def status(obj: Object | None) -> Mapping[str, Any]:
    return (obj or {}).get("status") or {}


def pods_of(world: World, pool: str) -> int:
    return sum(p["metadata"]["name"].startswith(f"{pool}-") for p in world.pods())


def seconds_until(world: World, holds: Callable[[], bool], limit: float) -> float:
    """Let time pass until something holds, or the limit is reached; return how long it took."""
    began = world.loop.time()
    while not holds() and world.loop.time() - began < limit:
        world.run(0.05)
    return world.loop.time() - began


# --- A webhook that hangs for some pools ---------------------------------------------------------


def seconds_to_bind(world: World, claim: str) -> float:
    world.make_claim(claim, "healthy")
    return seconds_until(world, lambda: status(world.claim(claim)).get("phase") == "Bound", 60.0)


@pytest.mark.parametrize("pools", [1, 8, 30])
def test_claims_whose_webhook_hangs_hold_up_no_other_pools_claims(pools: int) -> None:
    claims = 40 if pools == 1 else 4
    with World(seed=1, nodes=3) as world:
        world.make_pool("healthy", HEALTHY_POOL)
        for i in range(pools):
            world.make_pool(f"hanging-{i}", claims, startup={"maxStarting": 200})
        world.run(120.0)
        alone = seconds_to_bind(world, "alone")
        for i in range(pools):
            world.server.admission.add(hangs(pool=f"hanging-{i}", on=frozenset({CHANGE})))
            for j in range(claims):
                world.make_claim(f"{i}-{j}", f"hanging-{i}", bindTimeoutSeconds=3600)
        # Until it is known which ones are slow.
        world.run(5.0)
        took = []
        for i in range(6):
            took.append(seconds_to_bind(world, f"claim-{i}"))
            world.run(2.0)
        assert max(took) < max(alone, 0.5)


@pytest.mark.parametrize("pools", [8, 30])
def test_pools_whose_dry_run_hangs_hold_up_no_other_pools_refill(pools: int) -> None:
    with World(seed=1, nodes=3) as world:
        world.make_pool("healthy", 3)
        world.run(30.0)
        assert status(world.pool("healthy"))["warm"] == 3
        for i in range(pools):
            world.server.admission.add(hangs(pool=f"hanging-{i}", on=frozenset({CHECK})))
            world.make_pool(f"hanging-{i}", 1)
        world.run(10.0)
        for size in (4, 5, 6):
            world.change_pool("healthy", replicas=size)
            there = seconds_until(world, lambda: pods_of(world, "healthy") == size, 120.0)  # noqa: B023
            assert there < 2.0
            world.run(3.0)


# --- Who leads -----------------------------------------------------------------------------------


def lose_pods(world: World, process: Process) -> None:
    """A replica cannot list or watch pods: large answers do not reach it."""
    world.sight_of(process).lose(("pods",), Watching.NOTHING, Listing.LOST)
    world.break_watches("pods", "cut")


def leaders(world: World) -> list[Process]:
    return [p for p in world.processes if not p.dead and p.operator.leads]


def standbys(world: World) -> list[Process]:
    return [p for p in world.processes if not p.dead and not p.operator.leads]


def seconds_of_a_claim(world: World, name: str) -> float:
    world.make_claim(name, bindTimeoutSeconds=3600)
    return seconds_until(world, lambda: status(world.claim(name)).get("phase") == "Bound", 600.0)


def test_a_standby_that_sees_nothing_leaves_the_lease_to_one_that_does() -> None:
    with World(seed=1, replicas=2) as world:
        world.make_pool(replicas=3)
        world.run(60.0)
        (blind,) = standbys(world)
        lose_pods(world, blind)
        world.run(200.0)
        assert any("pods" in what for what in blind.operator.not_synced()), "it is not ready"
        assert not leaders(world)[0].operator.not_synced()
        world.crash()
        world.run(30.0)
        assert blind in standbys(world)
        assert seconds_of_a_claim(world, "task") < 1.0


def test_a_standby_that_cannot_take_over_gives_the_lease_back() -> None:
    with World(seed=1, replicas=2) as world:
        world.make_pool(replicas=3)
        world.run(60.0)
        (blind,) = standbys(world)
        # It still has its watch, and cannot list again.
        world.sight_of(blind).lose(("pods",), watching=None)
        world.restart_seconds = 20.0
        world.crash()
        assert seconds_of_a_claim(world, "task") < 90.0
        assert blind.dead


def test_a_leader_that_sees_nothing_for_minutes_gives_the_lease_up() -> None:
    with World(seed=1, replicas=2) as world:
        world.make_pool(replicas=3)
        world.run(60.0)
        (blind,), (well,) = leaders(world), standbys(world)
        lose_pods(world, blind)
        world.run(180.0)
        assert blind.dead
        assert leaders(world) == [well]
        assert seconds_of_a_claim(world, "task") < 1.0


def test_a_quiet_cluster_is_not_taken_for_blindness() -> None:
    with World(seed=1, replicas=2) as world:
        world.run(60.0)
        before = list(world.processes)
        for _ in range(40):
            world.run(30.0)
            assert all(not p.operator.not_synced() for p in world.processes)
        for resource in ("pods", "nodes", "events", "sandboxclaims"):
            world.break_watches(resource, "stall")
            for _ in range(30):
                world.run(10.0)
                assert all(not p.operator.not_synced() for p in world.processes)
        assert world.processes == before


# --- What cannot be read -------------------------------------------------------------------------


def test_an_odd_claim_ends_no_process_and_keeps_no_leftover_from_the_sweep() -> None:
    with World(seed=1) as world:
        world.make_pool(replicas=3)
        world.run(30.0)
        uids = {}
        # Whatever the order, something odd comes before what is gone.
        for name in ("odd", "gone", "odder"):
            world.make_claim(name)
            world.run(10.0)
            claim = world.claim(name)
            assert claim is not None
            uids[name] = claim["metadata"]["uid"]
            if name != "gone":
                world.change("sandboxclaims", claim, spec={**claim["spec"], "ttlSeconds": 3600.5})
        world.crash()
        world.controllers.collects = False
        claim = world.claim("gone")
        assert claim is not None
        world.delete("sandboxclaims", claim)
        world.run(300.0)
        claimed = {p["metadata"]["labels"].get(names.LABEL_CLAIM_UID) for p in world.pods()}
        assert {uids["odd"], uids["odder"]} < claimed, "what cannot be read may be in use"
        assert uids["gone"] not in claimed
        assert len([p for p in world.processes if not p.dead]) == 1
        assert sum(p.dead for p in world.processes) == 1


def test_an_answer_that_is_none_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    send, pages = SimulatedClient._send, 0

    async def page(client: SimulatedClient, method: str, path: str, *request: Any) -> bytes:
        nonlocal pages
        if world.loop.time() > 30.0 and "leases" not in path and world.random.random() < 0.2:
            pages += 1
            return b"<html>please log in</html>"
        return await send(client, method, path, *request)

    monkeypatch.setattr(SimulatedClient, "_send", page)
    with World(seed=1) as world:
        world.make_pool(replicas=3)
        world.run(30.0)
        for i in range(10):
            world.make_claim(f"claim-{i}")
            world.loop.run_until_complete(asyncio.sleep(60.0))
        assert pages > 10
        assert [p.dead or p.task.done() for p in world.processes] == [False]
        world.watchdog.wrong.clear()
        world.logged.records.clear()


# --- Events --------------------------------------------------------------------------------------


def test_claims_that_fail_do_not_keep_the_fleets_events_waiting() -> None:
    with World(seed=1) as world:
        world.run(30.0)
        for i in range(300):
            world.make_claim(f"claim-{i}", "never-made", bindTimeoutSeconds=1)
        world.run(10.0)
        (process,) = world.processes
        node = ObjectReference("v1", "Node", "", "node-0", "uid-node-0")
        world._do(process.operator.components.events.warning, node, "NodeQuarantined", "text")
        world.run(1.0)
        posted = [event.get("reason") for event in world.server.all("events")]
        assert len(posted) < 150, "the claims' own still wait"
        assert "NodeQuarantined" in posted


# --- Clocks --------------------------------------------------------------------------------------


class SkewedWorld(World):
    """Operators that start from now on run on a machine whose clock is wrong by so many seconds."""

    skew = 0.0

    def _start(self) -> None:
        skew = self.skew
        self.processes.append(Process(self.network, lambda: self.wall() + skew, self._end))


@pytest.mark.parametrize("skew", [86_400.0, -86_400.0])
def test_a_leader_whose_clock_is_a_day_wrong_expires_nothing(skew: float) -> None:
    with SkewedWorld(seed=1) as world:
        world.make_pool(replicas=4, claims={"defaultTTLSeconds": 43_200})
        world.run(30.0)
        for i in range(3):
            world.make_claim(f"claim-{i}")
        world.make_claim("waiting", "later", bindTimeoutSeconds=7200)
        world.run(10.0)
        world.skew = skew
        world.crash()
        world.run(120.0)
        assert [status(world.claim(f"claim-{i}"))["phase"] for i in range(3)] == ["Bound"] * 3
        assert status(world.claim("waiting")).get("phase") in (None, "Pending")
        assert seconds_of_a_claim(world, "next") < 1.0
        found = status(world.claim("next"))
        assert abs(epoch(found["boundAt"]) - world.wall()) < 5.0


@pytest.mark.parametrize("skew", [360.0, -360.0])
def test_sandboxes_start_in_time_whatever_the_leaders_clock_shows(skew: float) -> None:
    world = SkewedWorld(seed=1)
    world.skew = skew
    with world:
        for node in world.controllers.nodes.values():
            node.seconds = (2, 4)
        world.make_pool(replicas=3)
        world.run(60.0)
        assert status(world.pool())["warm"] == 3
        assert len(world.pods()) == 3


def test_a_claim_has_its_whole_patience_although_the_leaders_clock_is_ahead() -> None:
    world = SkewedWorld(seed=1)
    world.skew = 20.0
    with world:
        world.make_pool(replicas=3)
        world.run(30.0)
        world.make_claim("task", bindTimeoutSeconds=15)
        world.run(2.0)
        assert status(world.claim("task"))["phase"] == "Bound"


# --- Memory --------------------------------------------------------------------------------------


def test_claims_and_pools_that_are_gone_leave_no_timers() -> None:
    with World(seed=1) as world:
        world.make_pool(replicas=3)
        world.run(30.0)
        for i in range(12):
            world.make_claim(f"claim-{i}", ttlSeconds=86_400, bindTimeoutSeconds=86_400)
            world.make_claim(f"without-pool-{i}", f"never-made-{i}", bindTimeoutSeconds=86_400)
        world.run(10.0)
        queues = world.processes[0].operator.components.queues
        assert len(queues.claims._timers) >= 20
        for claim in world.server.all("sandboxclaims"):
            world.delete("sandboxclaims", claim)
        world.run(120.0)
        assert not queues.claims._timers
        assert not queues.claims._failures
        pool = world.pool()
        assert pool is not None
        world.delete("sandboxpools", pool)
        world.run(600.0)
        assert not queues.pools._timers
