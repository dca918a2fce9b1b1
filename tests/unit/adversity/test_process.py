"""The process among slow webhooks, bad answers and wrong clocks: whole operators, virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest

from sandboxpool.kube.errors import ApiError
from support.simulation.apiserver import Object, Request
from support.simulation.network import Network, SimulatedClient
from support.simulation.world import World

WEBHOOK_SECONDS = 10.0
HEALTHY_POOL = 10


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Request], bool]], None]:
    """Let some requests wait for a webhook that does not answer, and fail after its timeout."""

    def those(which: Callable[[Request], bool]) -> None:
        send = Network.send

        async def late() -> bytes:
            await asyncio.sleep(WEBHOOK_SECONDS)
            raise ApiError(500, "InternalError", "failed calling webhook: deadline exceeded")

        def slow(self: Network, sender: SimulatedClient, request: Request) -> asyncio.Future[bytes]:
            if which(request):
                return asyncio.ensure_future(late())
            return send(self, sender, request)

        monkeypatch.setattr(Network, "send", slow)

    return those


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
def test_claims_whose_webhook_hangs_hold_up_no_other_pools_claims(
    pools: int, hang: Callable[[Callable[[Request], bool]], None]
) -> None:
    claims = 40 if pools == 1 else 4
    with World(seed=1, nodes=3) as world:
        world.make_pool("healthy", HEALTHY_POOL)
        for i in range(pools):
            world.make_pool(f"hanging-{i}", claims, startup={"maxStarting": 200})
        world.run(120.0)
        alone = seconds_to_bind(world, "alone")
        hang(lambda r: r.method == "PATCH" and "/pods/hanging-" in r.path)
        for i in range(pools):
            for j in range(claims):
                world.make_claim(f"{i}-{j}", f"hanging-{i}", bindTimeoutSeconds=3600)
        # Until it is known which ones are slow.
        world.run(5.0)
        took = []
        for i in range(6):
            took.append(seconds_to_bind(world, f"claim-{i}"))
            world.run(2.0)
        assert max(took) < max(alone, 0.5)
        world.watchdog.wrong.clear()


@pytest.mark.parametrize("pools", [8, 30])
def test_pools_whose_dry_run_hangs_hold_up_no_other_pools_refill(
    pools: int, hang: Callable[[Callable[[Request], bool]], None]
) -> None:
    with World(seed=1, nodes=3) as world:
        world.make_pool("healthy", 3)
        world.run(30.0)
        assert status(world.pool("healthy"))["warm"] == 3
        hang(lambda r: "dryRun" in r.params and b'"hanging-' in msgspec.json.encode(r.body))
        for i in range(pools):
            world.make_pool(f"hanging-{i}", 1)
        world.run(10.0)
        for size in (4, 5, 6):
            world.change_pool("healthy", replicas=size)
            there = seconds_until(world, lambda: pods_of(world, "healthy") == size, 120.0)  # noqa: B023
            assert there < 2.0
            world.run(3.0)
        world.watchdog.wrong.clear()


# --- Memory --------------------------------------------------------------------------------------


def test_claims_and_pools_that_are_gone_leave_no_timers() -> None:
    with World(seed=1) as world:
        world.make_pool(replicas=3)
        world.run(30.0)
        for i in range(12):
            world.make_claim(f"claim-{i}", ttlSeconds=86_400, bindTimeoutSeconds=86_400)
            world.make_claim(f"without-pool-{i}", f"never-made-{i}", bindTimeoutSeconds=86_400)
        world.run(10.0)
        queues = world.processes[0].operator._queues
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
