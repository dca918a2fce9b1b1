"""What goes wrong outside of the operator, one thing at a time: each has its bounds.

Where nothing else is said, the simulation's own watchdog is the judge: see `watchdog`, `deletions`,
`patience` and `reasons` of `support.simulation`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from sandboxpool.api import names
from sandboxpool.kube.errors import ApiError
from support.invariants import claim_uids
from support.simulation import admission
from support.simulation.admission import CHANGE, CHECK, CREATE, Plugin
from support.simulation.apiserver import Change, Object, labels
from support.simulation.controllers import Start
from support.simulation.footprint import footprint, growth
from support.simulation.neighbours import compare, wait_for
from support.simulation.network import Fate
from support.simulation.sight import Listing, Watching
from support.simulation.world import NAMESPACE, World

HOUR = 3600
IMAGE = "registry.example/other:1"


def deleted_by_operator(world: World) -> list[str]:
    """The names of pods whose deletion the operator asks for, from now on."""
    found: list[str] = []

    def see(change: Change) -> None:
        was = change.old
        if change.resource != "pods" or change.by != "operator" or was is None:
            return
        goes = change.new is None or "deletionTimestamp" in change.new["metadata"]
        if goes and "deletionTimestamp" not in was["metadata"]:
            found.append(was["metadata"]["name"])

    world.server.listeners.append(see)
    return found


def named_after(world: World, pool: str) -> list[Object]:
    """The pods that were made for a pool, whatever became of their labels."""
    pods = world.server.all("pods")
    return [p for p in pods if p["metadata"]["name"].rpartition("-")[0] == pool]


def posts_of_pods(world: World, since: int) -> int:
    """How many pods were asked for, dry runs not counted."""
    sent = world.network.writes[since:]
    return sum(request.method == "POST" and request.resource == "pods" for _, request in sent)


# --- What is seen --------------------------------------------------------------------------------


@pytest.mark.parametrize("late", ["pods", "sandboxclaims", "nodes", "sandboxpools"])
def test_news_of_one_kind_may_come_after_those_of_all_others(late: str) -> None:
    with World() as world:
        world.make_pool(replicas=3, maxSandboxes=5)
        world.run(10.0)
        world.network.sight.delay[late] = (0.0, 4.0)
        for index in range(6):
            world.make_claim(f"claim-{index}", onEmpty="Create")
            world.run(2.0)
            if index % 2:
                world.delete("sandboxclaims", world.claim(f"claim-{index - 1}") or {})
        world.nature("cordon", "node-0")
        world.run(20.0)
        world.nature("cordon", "node-0", cordoned=False)
        world.converge()


@pytest.mark.parametrize(
    ("watching", "listing"),
    [(Watching.BOOKMARKS, Listing.REFUSED), (Watching.NOTHING, Listing.LOST)],
)
def test_who_does_not_see_pods_does_not_make_them_for_ever(
    watching: Watching, listing: Listing
) -> None:
    with World() as world:
        world.make_pool(replicas=2, maxSandboxes=10)
        world.run(30.0)
        world.network.sight.lose(["pods"], watching, listing)
        world.change_pool("pool", replicas=10)
        world.run(1200.0)
        assert len(world.pods()) <= 10
        world.see_again()
        world.run(180.0)
        assert len(world.ready()) == 10


def test_a_replica_that_cannot_list_pods_leaves_the_work_to_the_other() -> None:
    with World(replicas=2) as world:
        world.make_pool(replicas=3)
        world.run(60.0)
        (standby,) = [p for p in world.processes if not p.operator.leads]
        world.sight_of(standby).listing["pods"] = Listing.LOST
        world.restart_seconds = 20.0
        world.crash()
        world.run(60.0)
        world.make_claim("claim", bindTimeoutSeconds=HOUR)
        assert wait_for(world, lambda: world.phase("claim") == "Bound", 300.0, 1.0) < 300.0


def test_somebody_watches_a_quiet_kind_almost_all_the_time() -> None:
    with World() as world:
        world.make_pool(replicas=2)
        world.run(60.0)
        unwatched, longest = 0, 0.0
        for _ in range(900):
            world.run(1.0)
            watched = any(stream.resource == "events" for stream in world.network.streams)
            unwatched = 0 if watched else unwatched + 1
            longest = max(longest, unwatched)
        assert longest <= 5


# --- Clocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [86400.0, 360.0, -86400.0])
def test_a_wrong_clock_of_the_leader_ends_nothing(ahead: float) -> None:
    with World() as world:
        world.make_pool(replicas=4, claims={"defaultTTLSeconds": 43200})
        world.run(60.0)
        for index in range(2):
            world.make_claim(f"claim-{index}")
        world.run(5.0)
        deleted = deleted_by_operator(world)
        world.skew = ahead
        world.crash()
        world.run(300.0)
        assert [world.phase(f"claim-{index}") for index in range(2)] == ["Bound", "Bound"]
        assert not deleted
        world.delete("pods", world.ready()[0])
        assert wait_for(world, lambda: len(world.ready()) == 4, 120.0, 1.0) < 120.0


def test_a_clock_that_is_twenty_seconds_ahead_costs_no_claim_its_patience() -> None:
    with World() as world:
        world.skew = 20.0
        world.set_clock(20.0)
        world.make_pool(replicas=3)
        world.run(60.0)
        world.make_claim("claim", bindTimeoutSeconds=10)
        world.run(5.0)
        assert world.phase("claim") == "Bound"


@pytest.mark.parametrize("ahead", [86400.0, -86400.0])
def test_a_clock_that_jumps_ends_nothing(ahead: float) -> None:
    for whose in ("leader", "API server"):
        with World() as world:
            world.make_pool(replicas=3, claims={"defaultTTLSeconds": 43200})
            world.run(60.0)
            world.make_claim("claim")
            world.run(10.0)
            deleted = deleted_by_operator(world)
            for jump in (ahead, 0.0):
                if whose == "leader":
                    world.set_clock(jump)
                else:
                    world.server_clock.offset = jump
                world.run(90.0)
            assert world.phase("claim") == "Bound", whose
            assert not deleted, whose


# --- Admission -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plugin",
    [
        admission.drops_labels(names.LABEL_POOL_UID),
        admission.drops_owner(),
        admission.sets_class(None),
        admission.sets_class("kata"),
    ],
    ids=["no label", "no owner", "no class", "another class"],
)
def test_pods_that_admission_alters_are_few_and_never_handed_out(plugin: Plugin) -> None:
    with World() as world:
        kata = {"metadata": {"name": "kata"}, "handler": "runsc"}
        world._do(lambda: world.server.create("runtimeclasses", kata, by="user"))
        world.run(5.0)
        world.server.admission.add(plugin)
        made: list[str] = []
        world.server.listeners.append(
            lambda change: (
                made.append(change.object["metadata"]["name"])
                if change.resource == "pods" and change.old is None
                else None
            )
        )
        world.make_pool(replicas=3, maxSandboxes=5)
        world.make_claim("claim", bindTimeoutSeconds=HOUR)
        world.loop.run_until_complete(asyncio.sleep(HOUR))
        # Nobody owns what has lost its label or its owner, so that these are not judged for it.
        known = "has no owner", "has 0 controllers"
        world.watchdog.wrong = [w for w in world.watchdog.wrong if not any(k in w for k in known)]
        world.check()
        assert world.phase("claim") != "Bound"
        assert len(named_after(world, "pool")) <= 5
        assert len(made) <= 40
        world.server.admission.remove(plugin)
        assert wait_for(world, lambda: len(world.ready()) == 3, 400.0, 5.0) < 400.0


def test_a_refusal_in_new_words_each_time_is_met_ever_more_seldom() -> None:
    with World() as world:
        world.make_pool()
        world.run(20.0)
        world.server.admission.add(admission.refuses(on=frozenset({CHANGE})))
        world.make_claim("claim", bindTimeoutSeconds=HOUR)
        before = len(world.network.writes)
        world.run(120.0)
        assert len(world.network.writes) - before < 100


@pytest.mark.parametrize(
    ("status", "reason", "what"), [(403, "Forbidden", CREATE), (400, "BadRequest", CHECK)]
)
def test_a_pool_whose_pods_are_refused_asks_ever_more_seldom(
    status: int, reason: str, what: str
) -> None:
    with World() as world:
        plugin = admission.refuses(status, reason, on=frozenset({what}))
        world.server.admission.add(plugin)
        world.make_pool(replicas=3)
        before = len(world.network.writes)
        world.run(HOUR / 2)
        assert posts_of_pods(world, before) < 60
        world.server.admission.remove(plugin)
        assert wait_for(world, lambda: len(world.ready()) == 3, 400.0, 5.0) < 400.0


def test_claims_that_a_policy_refuses_leave_the_stock_to_others() -> None:
    def answer(pod: Object) -> Object:
        if labels(pod).get(names.LABEL_CLAIM, "").startswith("bad-"):
            raise ApiError(403, "Forbidden", "admission webhook denied the request")
        return pod

    with World() as world:
        world.make_pool(replicas=3)
        world.run(30.0)
        world.server.admission.add(Plugin(answer, on=frozenset({CHANGE})))
        for index in range(6):
            world.make_claim(f"bad-{index}", bindTimeoutSeconds=86400)
        world.run(30.0)
        world.make_claim("good", bindTimeoutSeconds=86400)
        assert wait_for(world, lambda: world.phase("good") == "Bound", 120.0, 0.5) < 120.0
        world.run(600.0)
        assert len(world.pods()) <= 4


def test_a_service_account_that_comes_later_costs_a_pool_little() -> None:
    with World() as world:
        plugin = world.server.admission.add(admission.lacks_service_account())
        world.make_pool(replicas=3)
        world.run(2.0)
        world.server.admission.remove(plugin)
        assert wait_for(world, lambda: len(world.ready()) == 3, 300.0, 1.0) < 30.0


def test_room_under_a_quota_is_used_soon() -> None:
    with World() as world:
        pods = world.server.all
        world.server.admission.add(admission.quota(6, lambda: pods("pods"), NAMESPACE))
        world.make_pool(replicas=3)
        world.run(30.0)
        for index in range(6):
            world.make_claim(f"claim-{index}", bindTimeoutSeconds=86400)
            world.run(10.0)
        assert world.phase("claim-5") == "Bound"
        world.run(900.0)
        for index in range(3):
            world.delete("sandboxclaims", world.claim(f"claim-{index}") or {})
            assert wait_for(world, lambda: bool(world.ready()), 300.0, 0.5) < 40.0
            world.make_claim(f"next-{index}", bindTimeoutSeconds=86400)
            world.run(120.0)


# --- Neighbours ----------------------------------------------------------------------------------


def pools(count: int, replicas: int) -> Callable[[World], None]:
    """The others have so many pools."""

    def make(world: World) -> None:
        for number in range(count):
            starts = {"maxStarting": 200}
            world.make_pool(f"other-{number}", replicas, namespace="others", startup=starts)

    return make


def hang(what: str) -> Callable[[World], None]:
    """Whatever the others do next waits for a webhook that does not answer."""

    def adversity(world: World) -> None:
        plugin = admission.hangs(namespace="others", on=frozenset({what}))
        world.server.admission.add(plugin)
        for pool in world.server.all("sandboxpools"):
            if pool["metadata"]["namespace"] != "others":
                continue
            name, replicas = pool["metadata"]["name"], pool["spec"]["replicas"]
            if what == CHANGE:
                for index in range(replicas):
                    world.make_claim(f"{name}-{index}", name, namespace="others")
            elif what == CREATE:
                world.change_pool(name, namespace="others", replicas=replicas + 2)
            else:
                template = {"spec": {"containers": [{"name": "main", "image": IMAGE}]}}
                world.change_pool(name, namespace="others", template=template)

    return adversity


@pytest.mark.parametrize(
    ("count", "replicas", "what"), [(4, 12, CHANGE), (12, 0, CREATE), (12, 1, CHECK)]
)
def test_a_webhook_that_hangs_for_one_tenant_costs_another_nothing(
    count: int, replicas: int, what: str
) -> None:
    assert not compare(1, pools(count, replicas), hang(what))


def test_a_tenant_whose_programs_end_at_once_costs_another_nothing() -> None:
    def others(world: World) -> None:
        world.make_pool("other", 20, namespace="others", image=IMAGE)

    def adversity(world: World) -> None:
        world.controllers.short_lived[IMAGE] = (1.0, 3.0)
        for pod in world.ready("other", "others"):
            world.nature("end", pod)

    assert not compare(2, others, adversity)


# --- Nodes ---------------------------------------------------------------------------------------


def test_a_node_without_a_registry_does_not_take_in_the_refill() -> None:
    with World() as world:
        world.make_pool(replicas=4, startup={"maxStarting": 3})
        world.run(60.0)
        world.controllers.nodes["node-0"].pulls = False
        for index in range(40):
            world.make_claim(f"claim-{index}", bindTimeoutSeconds=HOUR)
            world.run(20.0)
        assert wait_for(world, lambda: world.phase("claim-39") == "Bound", 120.0, 5.0) < 120.0
        assert {world.phase(f"claim-{index}") for index in range(40)} == {"Bound"}


@pytest.mark.parametrize("image", ["", IMAGE])
def test_images_that_no_node_can_pull_are_waited_for(image: str) -> None:
    with World() as world:
        for node in world.controllers.nodes.values():
            node.pulls = bool(image)
            node.unpullable |= {image} - {""}
        world.make_pool(replicas=3)
        world.make_pool("other", 3, image=IMAGE)
        world.run(1800.0)
        assert len(named_after(world, "other")) <= 4
        assert len(world.ready()) == (3 if image else 0)
        for node in world.controllers.nodes.values():
            node.mend()
        assert wait_for(world, lambda: len(world.ready("other")) == 3, 300.0, 5.0) < 300.0


def test_what_waited_for_an_autoscaler_starts_where_it_is_put() -> None:
    with World(nodes=1) as world:
        world.controllers.nodes["node-0"].room = 3
        world.controllers.autoscales = 360.0, 400.0
        deleted = deleted_by_operator(world)
        for number in range(3):
            world.make_pool(f"pool-{number}", 3)
        world.run(330.0)
        assert sum(not p["spec"].get("nodeName") for p in world.pods()) >= 5
        world.run(300.0)
        assert not deleted
        for number in range(3):
            assert len(world.ready(f"pool-{number}")) == 3


def test_a_cordon_of_all_nodes_leaves_the_stock_until_there_is_another() -> None:
    with World() as world:
        world.make_pool(replicas=6)
        world.run(60.0)
        world.nature("cordon")
        world.run(120.0)
        assert len(world.ready()) >= 5
        for number in range(3):
            world.nature("add_node", f"green-{number}")
        took = wait_for(world, lambda: _all_on(world, "green"), 600.0, 5.0)
        assert took < 600.0


def test_while_every_node_is_cordoned_claims_are_given_what_is_there() -> None:
    with World() as world:
        world.make_pool(replicas=3)
        world.run(60.0)
        world.nature("cordon")
        world.run(30.0)
        world.make_claim("claim")
        world.run(5.0)
        assert world.phase("claim") == "Bound"


def _all_on(world: World, prefix: str) -> bool:
    ready = world.ready()
    return len(ready) == 6 and all(p["spec"]["nodeName"].startswith(prefix) for p in ready)


def test_a_node_that_leaves_takes_no_more_with_it_than_it_must() -> None:
    with World() as world:
        world.make_pool(replicas=6)
        world.run(60.0)
        world.nature("drain_node", "node-0")
        world.run(60.0)
        world.make_claim("claim")
        world.run(5.0)
        assert world.phase("claim") == "Bound"
        world.run(120.0)
        assert len(world.ready()) == 6


def test_readiness_that_fails_for_a_moment_deletes_nothing() -> None:
    with World() as world:
        world.make_pool(replicas=6)
        world.run(HOUR)
        deleted = deleted_by_operator(world)
        world.nature("flap", 2.0)
        world.run(60.0)
        assert not deleted
        assert len(world.ready()) == 6


def test_a_node_that_comes_back_before_its_pods_are_reported_costs_no_others() -> None:
    with World() as world:
        world.make_pool(replicas=6)
        world.run(HOUR)
        deleted = deleted_by_operator(world)
        name = world.ready()[0]["spec"]["nodeName"]
        on_it = [p for p in world.ready() if p["spec"]["nodeName"] == name]
        world.nature("lose_node", name)
        world.run(60.0)
        world.nature("bring_back", name, pods_after=5.0)
        world.run(120.0)
        assert len(deleted) <= len(on_it), "others stand in for them by now"
        assert len(world.ready()) == 6


@pytest.mark.parametrize(("seconds", "replicas"), [(2.0, 3), (5.0, 20)])
def test_programs_that_end_soon_are_started_ever_more_seldom(seconds: float, replicas: int) -> None:
    with World() as world:
        world.controllers.short_lived[IMAGE] = (seconds, seconds + 1.0)
        world.make_pool(replicas=replicas, image=IMAGE)
        world.run(1.2 * HOUR)


def test_a_cold_sandbox_on_a_lost_node_does_not_keep_its_claim_waiting() -> None:
    with World() as world:
        world.make_pool(replicas=0, startup={"timeoutSeconds": 60})
        world.run(20.0)
        for node in world.controllers.nodes.values():
            node.starts = Start.HANGS
        world.make_claim("claim", onEmpty="Create", bindTimeoutSeconds=300)
        world.run(20.0)
        world.nature("lose_node", world.pods()[0]["spec"]["nodeName"])
        world.run(60.0)
        for node in world.controllers.nodes.values():
            node.starts = Start.FINE
        world.change_pool("pool", replicas=3)
        world.run(400.0)
        assert world.phase("claim") != "Pending"


# --- Claims --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_a_pod_that_somebody_edits_as_it_is_bound_is_bound_all_the_same(seed: int) -> None:
    with World(seed) as world:
        world.make_pool(replicas=1, maxSandboxes=1)
        world.run(30.0)
        world.weather.next["bind"] = [Fate.RIVAL]
        world.make_claim("claim", bindTimeoutSeconds=600)
        world.run(30.0)
        assert world.phase("claim") == "Bound"


@pytest.mark.parametrize("on_empty", ["Wait", "Create"])
def test_at_the_ceiling_who_came_first_is_served_first(on_empty: str) -> None:
    with World() as world:
        replicas = 0 if on_empty == "Create" else 2
        world.make_pool(replicas=replicas, maxSandboxes=3)
        world.run(10.0)

        def see(change: Change) -> None:
            was, now = change.old, change.new
            if change.resource != "sandboxclaims" or was is None or now is None:
                return
            phases = [(o.get("status") or {}).get("phase") for o in (was, now)]
            if phases[0] != "Bound" == phases[1]:
                # Its application works for two seconds and lets go.
                world.watchdog.cause()
                world.loop.call_later(2.0, let_go, now["metadata"]["name"])

        def let_go(name: str) -> None:
            claim = world.claim(name)
            if claim is not None:
                world.server.delete("sandboxclaims", claim, by="user")

        world.server.listeners.append(see)
        for index in range(90):
            world.make_claim(f"claim-{index}", onEmpty=on_empty, bindTimeoutSeconds=HOUR)
            world.run(1.0)
        world.run(300.0)
        assert not any(world.phase(f"claim-{index}") for index in range(90)), "all were served"


def test_a_claim_whose_end_is_not_seen_is_not_served_over_and_over() -> None:
    with World() as world:
        for node in world.controllers.nodes.values():
            node.seconds = 20.0, 30.0
        world.make_pool(replicas=0)
        world.run(10.0)
        world.make_claim("claim", onEmpty="Create")
        world.run(2.0)
        world.network.sight.lose(["sandboxclaims"], Watching.BOOKMARKS, None)
        before = len(world.network.writes)
        world.delete("sandboxclaims", world.claim("claim") or {})
        # The garbage collector takes away whatever is made for it.
        world.run(60.0)
        assert posts_of_pods(world, before) <= 8


def test_nothing_is_left_of_what_is_gone() -> None:
    with World() as world:
        sizes = []
        for _ in range(2):
            _live_and_go(world)
            leader = world.leader()
            assert leader is not None
            sizes.append(footprint(leader.operator))
        assert len(world.processes) == 1
        grown = growth(*sizes)
        assert not grown, "\n".join(grown)


def _live_and_go(world: World) -> None:
    """Pools and claims of all kinds come, and hours after they have gone time has passed."""
    turn = len(world.network.writes)
    for number in range(3):
        claims = {"defaultTTLSeconds": 86400}
        proof = "PerNode" if number else "None"
        world.make_pool(f"pool-{turn}-{number}", 3, claims=claims, isolationProof=proof)
    world.run(60.0)
    for number in range(3):
        for index in range(8):
            name = f"{turn}-{number}-{index}"
            world.make_claim(f"claim-{name}", f"pool-{turn}-{number}", onEmpty="Create")
            world.make_claim(f"lost-{name}", f"none-{name}", bindTimeoutSeconds=5)
        world.run(30.0)
    world.nature("end", next(p for p in world.pods() if claim_uids(p)))
    world.run(60.0)
    for claim in world.server.all("sandboxclaims"):
        world.delete("sandboxclaims", claim)
    for number in range(3):
        world.delete("sandboxpools", world.pool(f"pool-{turn}-{number}") or {})
    world.run(2 * HOUR)
    assert not world.pods()
