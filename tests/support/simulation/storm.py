"""One seed, one storm: claims and people hurry while the network and the operator fail.

Where the state machine of `unit/model` searches broadly, a storm is all on the way of claims, and
so dense that a guard which is taken out is soon missed.
"""

from __future__ import annotations

import random
from typing import Any

from support.simulation.faults import FAULTS, OTHER_IMAGE
from support.simulation.network import Fate
from support.simulation.world import World

STEPS = 60
CLAIMS = [f"claim-{i}" for i in range(5)]
# What the operator's next request of a kind may meet, and which kinds there are.
FATES = (
    Fate.UNHEARD,
    Fate.LOST,
    Fate.LATE,
    Fate.RIVAL,
    Fate.HALF_BROKEN,
    Fate.CRASH_AFTER,
    Fate.CRASH_MEANWHILE,
    Fate.CRASH_MEANWHILE,
)
OTHER_CLASSES = ("gvisor-2", "gvisor-3")
# What may happen to what the operator is told.
NEWS = ("late_news", "unordered_news", "unordered_news", "sees_again")
KINDS = ("bind", "bind", "tell", "create pods", "delete pods", "delete pods")


def storm(seed: int) -> None:
    """Play it, let it pass, and look at what is left.

    Raises:
        AssertionError: an invariant did not hold, or in the end not all is well.
    """
    chance = random.Random(seed)
    with World(seed) as world:
        world.weather.slow = chance.choice((0.02, 0.3))
        if seed % 2:
            FAULTS["unordered_news"](world, chance)
        world.make_pool(replicas=chance.randint(1, 3), maxSandboxes=chance.choice((4, 6)))
        world.run(3.0)
        for _ in range(STEPS):
            _step(world, chance)
            world.run(chance.choice((0.0, 0.01, 0.05, 0.2, 0.2, 1.0, 1.0, 20.0)))
        world.converge()


def hand_over(seed: int) -> None:
    """The last request of a leader that dies arrives when the next one is long at work.

    Raises:
        AssertionError: as for a storm.
    """
    chance = random.Random(seed)
    with World(seed) as world:
        world.make_pool(replicas=3)
        world.run(5.0)
        kind = chance.choice(("bind", "delete pods"))
        world.weather.next[kind] = [Fate.CRASH_MEANWHILE]
        if kind == "bind":
            world.make_claim("first")
        else:
            world.change_pool("pool", replicas=2)
        world.run(1.0)
        if kind == "bind":
            world.delete("sandboxclaims", world.claim("first") or {})
        for name in CLAIMS[:3]:
            world.make_claim(name)
            world.run(chance.uniform(0.0, 10.0))
        world.run(60.0)
        world.converge()


def lost_answer(seed: int) -> None:
    """A pod is made, or made a claim's, and nobody hears of it; perhaps not even by the watch.

    Raises:
        AssertionError: as for a storm.
    """
    chance = random.Random(seed)
    with World(seed) as world:
        world.make_pool(replicas=chance.choice((0, 3)))
        world.run(5.0)
        fates = [chance.choice((Fate.UNHEARD, Fate.HALF_BROKEN)) for _ in range(3)]
        world.weather.next = {"bind": fates, "create pods": [*fates]}
        if chance.random() < 0.5:
            world.break_watches("pods", "stall")
        for name in CLAIMS[:3]:
            world.make_claim(name, onEmpty="Create")
            world.run(chance.uniform(0.0, 10.0))
        world.converge()


def last_words(seed: int) -> None:
    """A leader dies as it asks for a claim's pod, which is made when the next one is at work.

    Raises:
        AssertionError: as for a storm.
    """
    chance = random.Random(seed)
    with World(seed) as world:
        world.make_pool(replicas=0)
        world.run(5.0)
        made: set[str] = set()
        world.server.listeners.append(
            lambda c: made.add(c.object["metadata"]["uid"]) if c.resource == "pods" else None
        )
        world.weather.next["create pods"] = [Fate.CRASH_MEANWHILE]
        world.make_claim("first", onEmpty="Create")
        world.run(chance.uniform(20.0, 60.0))
        world.converge()
        assert len(made) == 1, f"{len(made)} pods were made for one claim"


def adversity(seed: int) -> None:
    """Nothing happens to requests, and everything to what is around them; people go on.

    Raises:
        AssertionError: as for a storm.
    """
    chance = random.Random(seed)
    with World(seed, replicas=chance.choice((1, 1, 2))) as world:
        limit: dict[str, Any] = {"maxSandboxes": 8} if chance.random() < 0.5 else {}
        proof = chance.choice(("None", "PerNode"))
        world.make_pool(replicas=chance.randint(1, 5), isolationProof=proof, **limit)
        world.make_pool("other", 2, namespace="others", image=OTHER_IMAGE)
        world.run(chance.choice((1.0, 60.0)))
        for _ in range(STEPS // 2):
            FAULTS[chance.choice(sorted(FAULTS))](world, chance)
            for _ in range(chance.randint(0, 2)):
                _claim(world, chance)
            world.run(chance.choice((0.1, 1.0, 5.0, 5.0, 30.0, 90.0)))
        world.converge()


def mixed_news(seed: int) -> None:
    """Pools change what they are, and claims assert what they are now; news come in any order.

    Raises:
        AssertionError: as for a storm.
    """
    chance = random.Random(seed)
    with World(seed, replicas=chance.choice((1, 1, 2))) as world:
        for name in OTHER_CLASSES:
            world.make_class(name)
        world.make_pool(replicas=chance.randint(1, 3), runtimeClassName="gvisor")
        world.run(chance.choice((5.0, 60.0)))
        for _ in range(STEPS):
            chance.choice((_redefine, _assert, _assert, _assert, FAULTS["ended"]))(world, chance)
            if chance.random() < 0.2:
                FAULTS[chance.choice(NEWS)](world, chance)
            world.run(chance.choice((0.0, 0.05, 0.5, 2.0, 2.0, 30.0)))
        world.converge()


def _redefine(world: World, chance: random.Random) -> None:
    """Somebody changes a pool, or deletes and creates it or its class."""
    pool = world.pool()
    if pool is None:
        world.make_pool(replicas=chance.randint(1, 3))
        return
    match chance.randrange(8):
        case 0 | 1 | 2:
            class_name = chance.choice(("gvisor", *OTHER_CLASSES))
            world.change_pool("pool", runtimeClassName=class_name)
        case 3:
            world.change_pool("pool", isolationProof=chance.choice(("None", "PerNode")))
        case 4:
            prefixes = chance.choice(([], ["example.com/"]))
            world.change_pool("pool", claims={"allowedMetadataPrefixes": prefixes})
        case 5:
            world.change_pool("pool", replicas=chance.randint(0, 4))
        case 6:
            world.delete("sandboxpools", pool)
            if chance.random() < 0.7:
                world.make_pool(replicas=2, runtimeClassName=chance.choice(OTHER_CLASSES))
        case 7:
            name = pool["spec"]["runtimeClassName"]
            found = world.server.find("runtimeclasses", name)
            if found is not None:
                world.delete("runtimeclasses", found)
            world.make_class(name)


def _assert(world: World, chance: random.Random) -> None:
    """An application comes, and mostly knows what the pool is at this moment."""
    name, pool = chance.choice(CLAIMS), world.pool()
    claim = world.claim(name)
    if claim is not None:
        world.delete("sandboxclaims", claim)
    spec: dict[str, Any] = {"onEmpty": chance.choice(("Wait", "Create", "Fail"))}
    if pool is not None and chance.random() < 0.6:
        spec["runtimeClassName"] = pool["spec"]["runtimeClassName"]
        if pool["spec"]["isolationProof"] != "None":
            spec["isolationProof"] = "PerNode"
        if (pool["spec"].get("claims") or {}).get("allowedMetadataPrefixes"):
            spec["metadata"] = {"labels": {"example.com/a": "b"}}
    elif chance.random() < 0.2:
        spec["runtimeClassName"] = "kata"
    world.make_claim(name, bindTimeoutSeconds=chance.choice((15, 300)), **spec)


def _claim(world: World, chance: random.Random) -> None:
    """An application comes, or goes."""
    name = chance.choice(CLAIMS)
    claim = world.claim(name)
    if claim is not None:
        world.delete("sandboxclaims", claim)
    if claim is None or chance.random() < 0.3:
        limits: dict[str, Any] = {"ttlSeconds": 120} if chance.random() < 0.3 else {}
        patience = chance.choice((15, 300, 3600))
        on_empty = chance.choice(("Wait", "Create"))
        world.make_claim(name, onEmpty=on_empty, bindTimeoutSeconds=patience, **limits)


def _step(world: World, chance: random.Random) -> None:
    name = chance.choice(CLAIMS)
    claim = world.claim(name)
    match chance.randrange(8):
        case 0 | 1 | 2 | 3:
            if claim is not None:
                world.delete("sandboxclaims", claim)
            if claim is None or chance.random() < 0.5:
                # Made again under its old name, while what was done for it is under way.
                world.make_claim(name, onEmpty=chance.choice(("Wait", "Create")))
        case 4:
            world.weather.next.setdefault(chance.choice(KINDS), []).append(chance.choice(FATES))
        case 5:
            pods = world.pods()
            if pods and chance.random() < 0.5:
                world.touch("pods", chance.choice(pods))
            elif pods:
                world.delete("pods", chance.choice(pods))
        case 6:
            world.change_pool("pool", replicas=chance.randint(0, 4))
        case 7:
            how = chance.choice(("stall", "cut", "expire"))
            world.break_watches(chance.choice(("pods", "sandboxclaims")), how)
