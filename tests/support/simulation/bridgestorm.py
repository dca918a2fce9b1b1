"""One seed, one storm over the bridge: users of OpenSandbox hurry while everything around fails."""

from __future__ import annotations

import random

from support.simulation.apiserver import Object
from support.simulation.bridgejudge import expires_at
from support.simulation.bridgeworld import OPEN, BridgeWorld
from support.simulation.executors import Mood
from support.simulation.network import Fate

STEPS = 50
NAMES = [f"sandbox-{i}" for i in range(5)]
FATES = (
    Fate.UNHEARD,
    Fate.LOST,
    Fate.LATE,
    Fate.RIVAL,
    Fate.HALF_BROKEN,
    Fate.CRASH_BEFORE,
    Fate.CRASH_AFTER,
    Fate.CRASH_MEANWHILE,
    Fate.CRASH_MEANWHILE,
)
KINDS = (
    "create sandboxclaims",
    "publish",
    "publish",
    "answer",
    "answer",
    "answer",
    "delete batchsandboxes",
    "delete sandboxclaims",
    "read sandboxclaims",
    "create pools",
    "bind",
    "tell",
)
WATCHED = ("batchsandboxes", "sandboxclaims", "sandboxpools", "pools", "pods")
MOODS = (Mood.WELL,), tuple(Mood)
CLOCKS = (0.0, -86400.0, -20.0, 20.0, 360.0, 86400.0)


def bridge_storm(seed: int) -> None:
    """Play it, let it pass, and look at what is left.

    Raises:
        AssertionError: an invariant did not hold, or in the end not all is well.
    """
    chance = random.Random(seed)
    with BridgeWorld(seed, bridges=chance.choice((1, 1, 2))) as world:
        world.weather.slow = chance.choice((0.02, 0.3))
        world.sandboxes.moods = chance.choice(MOODS)
        if chance.random() < 0.3:
            unordered_news(world, chance)
        world.make_pool(replicas=chance.randint(1, 3), maxSandboxes=6, labels=OPEN)
        world.run(5.0)
        for _ in range(STEPS):
            _step(world, chance)
            world.run(chance.choice((0.0, 0.01, 0.05, 0.2, 0.2, 1.0, 1.0, 20.0)))
        world.converge()


def bridge_hand_over(seed: int) -> None:
    """A bridge dies with a request under way, which arrives when the next one is long at work.

    Raises:
        AssertionError: as for a storm.
    """
    chance = random.Random(seed)
    with BridgeWorld(seed, bridges=chance.choice((1, 2))) as world:
        world.make_pool(replicas=chance.choice((0, 2)), labels=OPEN)
        world.run(5.0)
        kind = chance.choice(("create sandboxclaims", "publish", "answer", "answer"))
        world.weather.next[kind] = [Fate.CRASH_MEANWHILE]
        world.post("first", keeps=chance.random() < 0.7)
        for _ in range(4):
            world.run(chance.uniform(0.0, 8.0))
            match chance.randrange(5):
                case 0:
                    end_sandbox(world, "first")
                case 1:
                    world.change_pool("pool", replicas=chance.randint(0, 3))
                case 2:
                    delete_claim(world, "first")
                case 3:
                    world.post("first")
                case 4:
                    world.post("second")
        world.run(60.0)
        world.converge()


def renewals(seed: int) -> None:
    """Users renew at the last moment, and what they write meets the bridge's deletion.

    Raises:
        AssertionError: as for a storm.
    """
    chance = random.Random(seed)
    with BridgeWorld(seed) as world:
        world.make_pool(replicas=3, labels=OPEN)
        world.run(5.0)
        for name in NAMES[:3]:
            world.post(name, seconds=5.0)
        for _ in range(6):
            world.network.sight.delay["batchsandboxes"] = 0.0, chance.choice((0.0, 0.5, 3.0))
            for name in NAMES[:3]:
                _renew_late(world, chance, name)
            world.run(chance.uniform(0.0, 2.0))
        world.converge()


def _renew_late(world: BridgeWorld, chance: random.Random, name: str) -> None:
    """Within a second of the end, perhaps behind it."""
    found = world.opensandbox.find(name)
    if found is None:
        world.post(name, seconds=chance.uniform(3.0, 6.0))
        return
    end = expires_in(world, found)
    if end is not None and end < 5.0:
        world.run(max(end + chance.uniform(-1.0, 0.5), 0.0))
        world.renew(name, chance.uniform(3.0, 6.0))


def expires_in(world: BridgeWorld, sandbox: Object) -> float | None:
    """In how many seconds a BatchSandbox expires."""
    at = expires_at(sandbox)
    return None if at == float("inf") else at - world.wall()


def unordered_news(world: BridgeWorld, chance: random.Random) -> None:
    """What the watches of each kind tell takes a time of its own."""
    for kind in WATCHED:
        world.network.sight.delay[kind] = 0.0, chance.choice((0.0, 0.2, 1.0, 5.0))


def end_sandbox(world: BridgeWorld, name: str) -> None:
    """The sandbox of a BatchSandbox ends, is deleted, or is gone at once."""
    claim = world.claim(name)
    uid = ((claim or {}).get("status") or {}).get("podUID")
    for pod in world.pods():
        if pod["metadata"]["uid"] != uid:
            continue
        if world.random.random() < 0.3 and pod["status"].get("phase") == "Running":
            world.nature("end", pod)
        else:
            world.delete("pods", pod, world.random.choice((None, 0)))


def delete_claim(world: BridgeWorld, name: str) -> None:
    """Somebody deletes the claim of a BatchSandbox."""
    claim = world.claim(name)
    if claim is not None:
        world.delete("sandboxclaims", claim)


def hide_claim(world: BridgeWorld, name: str) -> None:
    """Somebody takes the labels off the claim of a BatchSandbox, so that the bridge loses sight."""
    claim = world.claim(name)
    if claim is None:
        return
    metadata = {**claim["metadata"], "labels": {}}
    world._do(lambda: world.server.update("sandboxclaims", claim, "user", metadata=metadata))


def change_pool(world: BridgeWorld, chance: random.Random) -> None:
    """An SRE changes, closes, opens, deletes or makes the pool."""
    pool = world.pool()
    if pool is None:
        world.make_pool(replicas=chance.randint(1, 3), labels=OPEN)
        return
    match chance.randrange(6):
        case 0 | 1:
            world.change_pool("pool", replicas=chance.randint(0, 3))
        case 2:
            world.change_pool("pool", paused=chance.choice((True, None)))
        case 3:
            world.relabel("pool", None)
            world.run(chance.choice((0.0, 0.1, 2.0)))
            world.relabel("pool", chance.choice(("Executor", "Executor", "Prestarted")))
        case 4:
            world.delete("sandboxpools", pool)
            world.run(chance.choice((0.0, 0.1, 5.0)))
            world.make_pool(replicas=2, labels=OPEN)
        case 5:
            mirror = world.server.find("pools", "pool", "default")
            if mirror is not None:
                world.delete("pools", mirror)


def change_class(world: BridgeWorld, chance: random.Random) -> None:
    """An SRE deletes the pool's class, or makes it again."""
    found = world.server.find("runtimeclasses", "gvisor")
    world.watchdog.cause(10)
    if found is None:
        world.make_class("gvisor")
    else:
        world.delete("runtimeclasses", found)
        if chance.random() < 0.7:
            world.run(chance.choice((0.0, 0.3, 3.0)))
            world.make_class("gvisor")


def ask(world: BridgeWorld, chance: random.Random, name: str) -> None:
    """A user asks for a sandbox."""
    world.post(
        name,
        seconds=chance.choice((None, None, 5.0, 60.0)),
        asserts=chance.choice((None, None, None, "gvisor", "kata")),
        env=chance.choice(({}, {"KEY": "value"})),
        replicas=chance.choice((1,) * 9 + (2,)),
        keeps=chance.random() < 0.5,
    )


def _step(world: BridgeWorld, chance: random.Random) -> None:
    name = chance.choice(NAMES)
    match chance.randrange(18):
        case 0 | 1 | 2 | 3:
            ask(world, chance, name)
        case 4:
            world.kill(name)
        case 5:
            world.renew(name, chance.choice((1.0, 5.0, 60.0)))
        case 6 | 16 | 17:
            chance.choice((end_sandbox, delete_claim, hide_claim))(world, name)
        case 7:
            world.set_pause(name, chance.random() < 0.7)
        case 8 | 9 | 10:
            world.weather.next.setdefault(chance.choice(KINDS), []).append(chance.choice(FATES))
        case 11:
            how = chance.choice(("stall", "cut", "end", "expire"))
            world.break_watches(chance.choice(WATCHED), how)
        case 12:
            world.restart_seconds = chance.choice((0.0, 1.0, 20.0))
            chance.choice((world.crash_bridge, world.crash_bridge, world.crash))()
        case 13:
            change_pool(world, chance)
        case 14:
            world.sandboxes.moods = chance.choice(MOODS)
            if chance.random() < 0.3:
                change_class(world, chance)
        case 15:
            if chance.random() < 0.5:
                world.set_clock(
                    chance.choice(CLOCKS), chance.choice((None, world.leading_bridge()))
                )
            else:
                unordered_news(world, chance)
