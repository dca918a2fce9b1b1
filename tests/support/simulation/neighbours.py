"""Two tenants: what becomes of the one may not depend on what goes wrong for the other.

The same seed is played twice, with and without what goes wrong, and virtual times are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from support.invariants import claim_uids
from support.simulation.people import People
from support.simulation.world import World

HEALTHY = "healthy"
STOCK = 5
CLAIMS = 6
STEP_SECONDS = 0.05
PAUSE_SECONDS = 15.0
# Longer than any of this may last.
LONGEST_SECONDS = 600.0
# As many times as long as alone, and a grain: a single message takes part of a second.
FACTOR = 2.0
GRAIN_SECONDS = 1.0


@dataclass
class Times:
    """Seconds, one for each claim of the healthy tenant.

    Attributes:
        bound: until it was bound.
        refilled: from then until the sandbox was asked for that takes its sandbox's place.
    """

    bound: list[float] = field(default_factory=list)
    refilled: list[float] = field(default_factory=list)


def compare(
    seed: int, others: Callable[[World], None], adversity: Callable[[World], None]
) -> list[str]:
    """Play both; return what took longer than it may.

    Args:
        seed: of everything that is left to chance.
        others: makes what the other tenants have; nothing is wrong with it yet.
        adversity: has something go wrong for them.
    """
    alone = _play(seed, others, lambda world: None)
    beside = _play(seed, others, adversity)
    found = []
    for name, before, after in (
        ("a claim is bound", alone.bound, beside.bound),
        ("the stock is made up", alone.refilled, beside.refilled),
    ):
        allowed = FACTOR * max(before) + GRAIN_SECONDS
        if max(after) > allowed:
            found.append(f"{name} after {max(after):.1f} s, alone after {max(before):.1f} s")
    return found


def _play(seed: int, others: Callable[[World], None], adversity: Callable[[World], None]) -> Times:
    times = Times()
    with World(seed) as world:
        world.make_pool(HEALTHY, STOCK, namespace=HEALTHY)
        others(world)
        world.run(60.0)
        adversity(world)
        world.run(60.0)
        for index in range(CLAIMS):
            name = f"claim-{index}"
            world.make_claim(name, HEALTHY, namespace=HEALTHY)
            is_bound = partial(_is_bound, world, name)
            times.bound.append(wait_for(world, is_bound))
            times.refilled.append(wait_for(world, lambda: _stock(world) >= STOCK))
            world.run(PAUSE_SECONDS)
    return times


def _is_bound(world: People, name: str) -> bool:
    return world.phase(name, HEALTHY) == "Bound"


def _stock(world: People) -> int:
    """The pods of the healthy pool that are no claim's, ready or not."""
    return sum(
        p["metadata"]["namespace"] == HEALTHY
        and not claim_uids(p)
        and "deletionTimestamp" not in p["metadata"]
        for p in world.pods()
    )


def wait_for(
    world: World,
    holds: Callable[[], bool],
    most: float = LONGEST_SECONDS,
    step: float = STEP_SECONDS,
) -> float:
    """Let time pass until something holds; return how long it took, or the most there is."""
    began = world.loop.time()
    while not holds() and world.loop.time() - began < most:
        world.run(step)
    return world.loop.time() - began
