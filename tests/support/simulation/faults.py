"""What goes wrong around the operator while the network itself is well: one fault at a time.

Each is drawn with its details from a seed, and stays until another one ends it or the world is
calmed. What becomes of single requests is `weather`'s, and what people do is `storm`'s.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from sandboxpool.api import names
from support.simulation import admission
from support.simulation.admission import CHANGE, CHECK, CREATE, Plugin
from support.simulation.machines import FakeNode, is_true
from support.simulation.people import NAMESPACE
from support.simulation.sight import Listing, Watching
from support.simulation.world import World

KINDS = ("pods", "sandboxclaims", "sandboxpools", "runtimeclasses", "nodes", "events")
# Of a pool beside the others, whose programs or pulls may fail on every node.
OTHER_IMAGE = "registry.example/other:1"

DISRUPTIONS = ("EvictionByEvictionAPI", "PreemptionByScheduler", "DeletionByTaintManager")

Fault = Callable[[World, random.Random], None]


def late_news(world: World, chance: random.Random) -> None:
    """The news of one kind come later than all others."""
    world.network.sight.delay[chance.choice(KINDS)] = 0.0, chance.choice((1.0, 5.0, 20.0))


def unordered_news(world: World, chance: random.Random) -> None:
    """The news of each kind take a time of their own, so that they come in any order."""
    for kind in KINDS:
        world.network.sight.delay[kind] = 0.0, chance.choice((0.0, 0.2, 1.0, 5.0, 20.0))


def blind(world: World, chance: random.Random) -> None:
    """One replica, or all of them, sees nothing of one kind any more."""
    sights = [world.network.sight]
    sights += [world.sight_of(process) for process in world.processes if not process.dead]
    watching = chance.choice((None, *Watching))
    listing = chance.choice(tuple(Listing) if watching is None else (None, *Listing))
    chance.choice(sights).lose([chance.choice(KINDS)], watching, listing)


def sees_again(world: World, chance: random.Random) -> None:
    """Everybody sees everything again."""
    del chance
    world.see_again()


def wrong_clock(world: World, chance: random.Random) -> None:
    """The clock of one replica jumps, or that of all, or is right again."""
    alive = [process for process in world.processes if not process.dead]
    ahead = chance.choice((0.0, 0.0, -86400.0, -20.0, 20.0, 360.0, 86400.0))
    world.set_clock(ahead, chance.choice((None, *alive)))


def plugin(world: World, chance: random.Random) -> None:
    """An admission plugin changes, refuses or holds up what is written."""
    what = frozenset({chance.choice((CREATE, CHECK, CHANGE))})
    namespace = chance.choice(("", NAMESPACE))
    makers: tuple[Callable[[], Plugin], ...] = (
        lambda: admission.drops_labels(names.LABEL_POOL_UID, on=frozenset({CREATE, CHECK})),
        lambda: admission.sets_class(None),
        lambda: admission.refuses(
            *chance.choice(((403, "Forbidden"), (400, "BadRequest"))), on=what
        ),
        lambda: admission.hangs(fails=chance.random() < 0.5, on=what, namespace=namespace),
        lambda: admission.lacks_service_account(namespace=namespace),
        lambda: admission.quota(chance.randint(2, 8), lambda: world.server.all("pods"), NAMESPACE),
    )
    world.watchdog.cause(10)
    world.server.admission.add(chance.choice(makers)())


def no_plugin(world: World, chance: random.Random) -> None:
    """All plugins are taken out of force."""
    del chance
    world.watchdog.cause(10)
    world.server.admission.plugins.clear()


def _node(world: World, chance: random.Random) -> FakeNode | None:
    nodes = world.controllers.nodes
    return nodes[chance.choice(sorted(nodes))] if nodes else None


def no_image(world: World, chance: random.Random) -> None:
    """One node, or each of them, pulls nothing, or not one image."""
    node = _node(world, chance)
    world.watchdog.cause(10)
    for one in world.controllers.nodes.values() if chance.random() < 0.3 else [node]:
        if one is not None and chance.random() < 0.5:
            one.pulls = False
        elif one is not None:
            one.unpullable.add(OTHER_IMAGE)


def little_room(world: World, chance: random.Random) -> None:
    """A node is full, and perhaps others join some minutes later."""
    node = _node(world, chance)
    if node is not None:
        node.room = chance.randint(0, 4)
    world.watchdog.cause(10)
    world.controllers.autoscales = chance.choice((None, (60.0, 400.0)))


def mended(world: World, chance: random.Random) -> None:
    """Nothing is wrong with a node any more."""
    node = _node(world, chance)
    if node is not None:
        world.watchdog.cause(10)
        node.mend()


def unready(world: World, chance: random.Random) -> None:
    """Readiness probes fail for a while, of some pods or of all."""
    pods = [pod for pod in world.pods() if is_true(pod, "Ready")]
    chosen = pods if chance.random() < 0.3 else pods[: chance.randint(0, 3)]
    world.nature("flap", chance.choice((0.5, 2.0, 20.0, 90.0)), chosen)


def cordon(world: World, chance: random.Random) -> None:
    """One node is cordoned, or all of them."""
    node = _node(world, chance)
    if node is not None:
        world.nature("cordon", *([] if chance.random() < 0.3 else [node.name]))


def uncordon(world: World, chance: random.Random) -> None:
    """No node is cordoned."""
    del chance
    world.nature("cordon", cordoned=False)


def drain(world: World, chance: random.Random) -> None:
    """A node leaves in good order."""
    node = _node(world, chance)
    if node is not None:
        world.nature("drain_node", node.name, chance.choice((5.0, 30.0, 200.0)))


def lose(world: World, chance: random.Random) -> None:
    """A node is cut off."""
    node = _node(world, chance)
    if node is not None and node.alive:
        world.nature("lose_node", node.name)


def bring_back(world: World, chance: random.Random) -> None:
    """A node that was cut off is back, and its pods are reported some seconds later."""
    for node in list(world.controllers.nodes.values()):
        if not node.alive:
            world.nature("bring_back", node.name, pods_after=chance.choice((0.0, 1.0, 10.0)))


def join(world: World, chance: random.Random) -> None:
    """A node joins."""
    name = f"node-{chance.randint(0, 5)}"
    if name not in world.controllers.nodes:
        world.nature("add_node", name)


def ended(world: World, chance: random.Random) -> None:
    """A sandbox that runs is ended by a controller, by its kubelet, or by itself."""
    running = [p for p in world.pods() if p["status"]["phase"] == "Running"]
    if not running:
        return
    pod = chance.choice(running)
    how = chance.choice(("disrupt", "disrupt", "relieve", "run_out_of_memory", "end"))
    why = [chance.choice(DISRUPTIONS), chance.choice((None, 0))] if how == "disrupt" else []
    world.nature(how, pod, *why)


def short_lives(world: World, chance: random.Random) -> None:
    """The other pool's programs end by themselves, or no longer do."""
    lives = world.controllers.short_lived
    seconds = chance.choice((1.0, 5.0, 30.0))
    world.watchdog.cause(10)
    if lives.pop(OTHER_IMAGE, None) is None:
        lives[OTHER_IMAGE] = seconds, 2 * seconds


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        late_news,
        unordered_news,
        blind,
        sees_again,
        wrong_clock,
        plugin,
        no_plugin,
        no_image,
        little_room,
        mended,
        unready,
        cordon,
        uncordon,
        drain,
        lose,
        bring_back,
        join,
        ended,
        short_lives,
    )
}
