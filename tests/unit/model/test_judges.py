"""The simulation's judges bark: what they are to find is done here on purpose."""

from __future__ import annotations

import asyncio

import pytest

from sandboxpool.api.v1alpha1 import SandboxClaim
from sandboxpool.claims.api_reader import ApiReader
from sandboxpool.claims.pending import PendingReconciler
from sandboxpool.cluster.pool import Pool
from support.invariants import overtaken, waits
from support.simulation.footprint import footprint, growth
from support.simulation.sight import Listing, Watching
from support.simulation.world import World


def wrong(world: World) -> str:
    """What the watchdog has found, which then is forgotten."""
    found = "\n".join(world.watchdog.wrong)
    world.watchdog.wrong.clear()
    return found


def test_a_ready_sandbox_is_not_deleted_without_a_message() -> None:
    with World() as world:
        world.make_pool(replicas=3)
        world.run(120.0)
        pod = world.ready()[0]
        world._do(lambda: world.server.delete("pods", pod, by="operator"))
        assert "was ready once and is deleted: nothing was said" in wrong(world)


def test_a_ready_sandbox_does_not_go_beyond_the_budget() -> None:
    with World() as world:
        world.make_pool(replicas=3)
        world.run(120.0)
        for pod in world.ready()[:2]:
            name = pod["metadata"]["name"]
            world._said._said[name] = "Rolling", "it is said to be old"
            world._do(lambda pod=pod: world.server.delete("pods", pod, by="operator"))
        found = wrong(world)
        assert found.count("is deleted: it is said to be old") == 1, "one may be missing"


def test_a_claim_that_waits_beside_a_warm_sandbox_is_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with World() as world:
        world.make_pool(replicas=1)
        world.run(60.0)
        # The news of the claim take long, and the judge does not know.
        for stream in world.network.streams:
            if stream.resource == "sandboxclaims":
                stream._way = lambda: 30.0
                monkeypatch.setattr(type(stream), "seconds_behind", 0.0)
        world.make_claim("claim")
        with pytest.raises(AssertionError, match="beside a warm sandbox"):
            world.run(20.0)
        world.watchdog.wrong.clear()


@pytest.mark.parametrize("looks", [True, False])
def test_a_claim_that_fails_for_want_of_a_sandbox_that_is_there_is_missed(
    looks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none(*_: object) -> bool:
        return True

    if not looks:
        monkeypatch.setattr(ApiReader, "confirms_no_warm", none)
    with World() as world:
        world.make_pool(replicas=1)
        world.run(60.0)
        # A sandbox is made in the place of this one, and nobody sees that it is ready.
        world.delete("pods", world.ready()[0], 0)
        world.run(0.5)
        world.network.sight.delay["pods"] = 30.0, 30.0
        world.loop.run_until_complete(asyncio.sleep(10.0))
        assert len(world.ready()) == 1
        world.make_claim("claim", onEmpty="Fail")
        world.loop.run_until_complete(asyncio.sleep(5.0))
        assert world.phase("claim") == ("Pending" if looks else "Failed")
        assert ("NoWarmSandbox, which never was" in wrong(world)) != looks
        world.run(60.0)
        assert world.phase("claim") == ("Bound" if looks else "Failed")


def test_a_claim_that_fails_for_what_its_pool_was_is_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def cached(self: PendingReconciler, claim: SandboxClaim) -> Pool | None:
        return self._pools.get((claim.metadata.namespace, claim.spec.poolName))

    monkeypatch.setattr(PendingReconciler, "live_pool", cached)
    with World() as world:
        world.make_class("other")
        world.make_pool(replicas=1)
        world.run(60.0)
        world.network.sight.delay["sandboxpools"] = 10.0, 10.0
        world.change_pool("pool", runtimeClassName="other")
        world.make_claim("claim", runtimeClassName="other")
        world.loop.run_until_complete(asyncio.sleep(5.0))
        assert "RuntimeClassMismatch, which never was" in wrong(world)


def test_more_than_a_pool_may_try_in_an_hour_is_missed() -> None:
    with World() as world:
        world.make_pool(replicas=1)
        world.run(60.0)
        body = {"metadata": {"namespace": "default", "labels": {}}, "spec": {}}
        for index in range(40):
            pod = {**body, "metadata": {**body["metadata"], "name": f"pool-{index}"}}
            world._do(lambda pod=pod: world.server.create("pods", pod, by="operator"))
        assert "pods made within an hour" in wrong(world)


def test_what_has_grown_is_named() -> None:
    with World() as world:
        world.make_pool(replicas=1)
        world.run(60.0)
        leader = world.leader()
        assert leader is not None
        before = footprint(leader.operator)
        assert not growth(before, footprint(leader.operator))
        queues = leader.operator.components.queues
        world._do(lambda: queues.claims.add_after(("default", "gone"), 3600.0))
        grown = growth(before, footprint(leader.operator))
        assert grown == ["components.queues.claims._timers: 0 -> 1"]


def claim(name: str, second: int, **spec: object) -> dict[str, object]:
    return {
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": name,
            "creationTimestamp": f"2026-01-01T00:00:{second:02d}Z",
        },
        "spec": {"poolName": "pool", **spec},
    }


def test_who_came_first_and_waits_is_overtaken() -> None:
    first, second = claim("first", 0), claim("second", 10)
    assert overtaken(second, [first, second], []) == [first]
    assert not overtaken(first, [first, second], [])
    assert not overtaken(second, [claim("as old", 9), second], [])
    assert not overtaken(second, [{**first, "status": {"phase": "Bound"}}, second], [])
    assert not overtaken(second, [claim("other", 0, poolName="other"), second], [])


def test_a_claim_that_is_refused_stands_in_no_line() -> None:
    refused = {"phase": "Pending", "conditions": [{"reason": "BindingRefused"}]}
    assert not waits({**claim("claim", 0), "status": refused})
    assert waits(claim("claim", 0))


def test_who_sees_nothing_is_told_when_he_sees_again() -> None:
    with World() as world:
        world.make_pool(replicas=1)
        world.run(60.0)
        world.network.sight.lose(["sandboxclaims"], Watching.BOOKMARKS, Listing.REFUSED)
        world.make_claim("claim")
        world.run(40.0)
        assert world.phase("claim") == "Pending"
        world.see_again()
        world.run(1.0)
        assert world.phase("claim") == "Bound"
