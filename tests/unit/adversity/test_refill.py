"""Refill while requests hang, are refused or are altered, and while the caches show nothing."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from sandboxpool.api import names
from sandboxpool.kube.errors import ApiError
from sandboxpool.kube.informer import MAX_STALENESS_SECONDS
from sandboxpool.pools.reconcile import PoolReconciler
from support.simulation.admission import (
    CHECK,
    CREATE,
    Plugin,
    drops_labels,
    drops_owner,
    hangs,
    quota,
    refuses,
    sets_class,
)
from support.simulation.apiserver import Object, labels
from support.simulation.network import SimulatedClient
from support.simulation.sight import Listing
from support.simulation.world import World


def is_create(method: str, path: str) -> bool:
    return method == "POST" and path.endswith("/pods")


def lose_pods(world: World) -> None:
    """Lists of pods fail from now on, and watches of them have to begin with one."""
    world.network.sight.lose(("pods",), watching=None, listing=Listing.REFUSED)
    world.break_watches("pods", "expire")


def condition(world: World, type_: str, pool: str = "pool") -> tuple[str, str, str]:
    found = world.pool(pool)
    assert found is not None
    (one,) = [c for c in found["status"]["conditions"] if c["type"] == type_]
    return one["status"], one["reason"], one["message"]


def stock(world: World, pool: str = "pool") -> list[Object]:
    """The pods made for a pool and handed to nobody, whatever became of their labels."""
    return [
        pod
        for pod in world.server.all("pods")
        if pod["metadata"]["name"].rpartition("-")[0] == pool
        and names.LABEL_CLAIM_UID not in labels(pod)
    ]


def creates(world: World) -> int:
    return sum(is_create(request.method, request.path) for _, request in world.network.writes)


def is_bound(world: World, claim: str) -> bool:
    found = world.claim(claim)
    return found is not None and (found.get("status") or {}).get("phase") == "Bound"


def let_pass(world: World, seconds: float) -> None:
    """Let time pass where the world's own checks do not hold: pods are not as they were sent."""
    world.loop.run_until_complete(asyncio.sleep(seconds))


def excuse(world: World) -> None:
    """What the watchdog found is what the test has caused."""
    world.watchdog.wrong.clear()


def until(world: World, holds: Callable[[], bool], longest: float) -> float:
    """Seconds until something holds; fails after the longest."""
    began = world.loop.time()
    while not holds():
        assert world.loop.time() - began < longest, "it took too long"
        world.run(0.25)
    return world.loop.time() - began


# --- A webhook that hangs ------------------------------------------------------------------------


@pytest.mark.parametrize(("dry_run", "others"), [(True, 30), (False, 6)])
def test_pods_of_other_pools_that_hang_do_not_delay_a_refill(dry_run: bool, others: int) -> None:
    with World(seed=1) as world:
        world.make_pool("healthy", 5)
        world.run(20)
        on = frozenset({CHECK if dry_run else CREATE})
        for index in range(others):
            world.server.admission.add(hangs(pool=f"hang-{index}", on=on))
            world.make_pool(f"hang-{index}", 8)
        world.run(45)
        for turn in range(3):
            world.make_claim(f"claim-{turn}", pool="healthy")
            until(world, lambda turn=turn: is_bound(world, f"claim-{turn}"), 1)  # type: ignore[misc]
            until(world, lambda: len(stock(world, "healthy")) == 5, 3)
            world.run(4)
        reason = "TemplateNotChecked" if dry_run else "CreateFailed"
        assert condition(world, "Warm", "hang-0")[:2] == ("False", reason)


@dataclass
class DryRuns:
    """Dry runs are never answered while they hang; when each began, and was given up."""

    hang: bool = True
    began: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)


@pytest.fixture
def dry_runs(monkeypatch: pytest.MonkeyPatch) -> DryRuns:
    state, send = DryRuns(), SimulatedClient._send

    async def never(
        client: SimulatedClient,
        method: str,
        path: str,
        data: bytes | None,
        params: Mapping[str, str] | None,
        content_type: str,
    ) -> bytes:
        if state.hang and "dryRun" in (params or {}):
            state.began.append(asyncio.get_running_loop().time())
            try:
                await asyncio.sleep(3600)
            finally:
                state.ended.append(asyncio.get_running_loop().time())
        return await send(client, method, path, data, params, content_type)

    monkeypatch.setattr(SimulatedClient, "_send", never)
    return state


def test_a_dry_run_that_hangs_is_told_and_asked_again_ever_more_slowly(
    dry_runs: DryRuns,
) -> None:
    with World(seed=1) as world:
        world.make_pool("pool", 1)
        world.run(3)
        status, reason, message = condition(world, "TemplateAccepted")
        assert (status, reason) == ("Unknown", "TemplateNotChecked")
        assert "is in progress" in message
        world.run(1800)
        assert 6 <= len(dry_runs.began) <= 14
        pauses = [later - earlier for earlier, later in itertools.pairwise(dry_runs.began)]
        assert pauses[-1] > 4 * pauses[0]
        assert "no answer within" in condition(world, "TemplateAccepted")[2]
        dry_runs.hang = False
        until(world, lambda: world.pool()["status"].get("warm") == 1, 340)  # type: ignore[index]


def test_a_hanging_dry_run_ends_with_the_operator(dry_runs: DryRuns) -> None:
    with World(seed=1) as world:
        world.make_pool("pool", 1)
        world.run(5)
        assert not dry_runs.ended
        world.crash()
        world.run(0.5)
        assert len(dry_runs.ended) == 1


# --- Pods that are not what was sent -------------------------------------------------------------


# What is really made, and not the dry run: that would tell it beforehand.
MADE = frozenset({CREATE})


def without_annotations(pod: Object) -> Object:
    return {**pod, "metadata": {**pod["metadata"], "annotations": {}}}


@pytest.mark.parametrize(
    ("plugin", "where"),
    [
        (drops_labels(names.LABEL_POOL_UID, on=MADE), "metadata.labels"),
        (drops_owner(on=MADE), "metadata.ownerReferences"),
        (Plugin(without_annotations, on=MADE), "metadata.annotations"),
        (sets_class("runc", on=MADE), "spec.runtimeClassName"),
    ],
)
def test_a_pod_that_admission_alters_is_deleted_at_once_and_said(
    plugin: Plugin, where: str
) -> None:
    with World(seed=1) as world:
        world.server.admission.add(plugin)
        world.make_pool("pool", 3, maxSandboxes=5)
        for _ in range(120):
            let_pass(world, 30)
            assert len(stock(world)) <= 1
        assert creates(world) < 30
        status, reason, message = condition(world, "Warm")
        assert (status, reason) == ("False", "PodAltered")
        assert where in message
        excuse(world)
        world.server.admission.remove(plugin)
        until(world, lambda: len(stock(world)) == 3, 360)


# --- Pods that nobody sees -----------------------------------------------------------------------


def test_what_was_made_and_is_not_seen_is_not_made_again() -> None:
    with World(seed=1) as world:
        world.make_pool("pool", 2, maxSandboxes=10)
        world.run(20)
        lose_pods(world)
        world.change_pool("pool", replicas=10)
        let_pass(world, 3600)
        assert len(world.pods()) == 10
        excuse(world)
        world.see_again()
        let_pass(world, 60)
        assert len(world.pods()) == 10
        world.make_claim("claim")
        world.run(5)
        assert is_bound(world, "claim")


def test_what_was_made_and_taken_away_unseen_is_made_again_ever_more_slowly() -> None:
    with World(seed=1) as world:
        world.make_pool("pool", 2)
        world.run(20)
        lose_pods(world)
        world.change_pool("pool", replicas=3)
        before = creates(world)

        def take_away(times: int) -> None:
            for _ in range(times):
                let_pass(world, 10)
                for pod in stock(world)[2:]:
                    world.delete("pods", pod, grace=0)

        take_away(6)
        assert creates(world) - before > 1
        assert condition(world, "Warm")[:2] == ("False", "PodLost")
        # Later it makes nothing, because its watch shows nothing.
        take_away(354)
        assert creates(world) - before < 25
        excuse(world)


def test_nothing_is_made_by_a_cache_that_has_stood_still(monkeypatch: pytest.MonkeyPatch) -> None:
    age = 0.0
    init = PoolReconciler.__init__

    def build(reconciler: PoolReconciler, **parts: Any) -> None:
        init(reconciler, **{**parts, "pods_cache_age": lambda: age})

    monkeypatch.setattr(PoolReconciler, "__init__", build)
    with World(seed=1) as world:
        world.make_pool("pool", 2)
        world.run(20)
        age = MAX_STALENESS_SECONDS + 1
        before = creates(world)
        world.change_pool("pool", replicas=4)
        world.run(300)
        assert creates(world) == before
        assert condition(world, "Warm")[:2] == ("False", "CacheStale")
        assert condition(world, "Ready")[:2] == ("True", "SandboxWarm")
        age = 0.0
        until(world, lambda: len(stock(world)) == 4, 15)


# --- What is missing, and may still come ---------------------------------------------------------


@pytest.mark.parametrize(
    "cause",
    [
        'error looking up service account default/default: serviceaccount "default" not found',
        "no PriorityClass with name urgent was found",
    ],
)
def test_what_comes_a_moment_after_the_pool_is_waited_for_and_nobody_is_blamed(
    cause: str,
) -> None:
    def missing(body: Object) -> Object:
        text = f'pods "{body["metadata"]["name"]}" is forbidden: {cause}'
        raise ApiError(403, "Forbidden", text)

    with World(seed=1) as world:
        world.run(20)
        world.server.admission.add(Plugin(missing, on=frozenset({CREATE, CHECK})))
        world.make_pool("pool", 3)
        world.run(1.5)
        status, reason, message = condition(world, "TemplateAccepted")
        assert (status, reason) == ("Unknown", "TemplateNotChecked")
        assert cause in message
        assert "correct spec.template" not in message
        world.server.admission.plugins.clear()
        until(world, lambda: world.pool()["status"].get("warm") == 3, 8)  # type: ignore[index]


def test_a_policy_that_is_mended_soon_is_asked_about_soon() -> None:
    with World(seed=1) as world:
        world.run(20)
        world.server.admission.add(refuses())
        world.make_pool("pool", 1)
        world.run(6)
        assert condition(world, "TemplateAccepted")[:2] == ("False", "TemplateRejected")
        world.server.admission.plugins.clear()
        until(world, lambda: world.pool()["status"].get("warm") == 1, 12)  # type: ignore[index]


# --- A namespace that is being deleted -----------------------------------------------------------


def test_in_a_namespace_that_ends_nothing_is_made_and_nobody_is_blamed() -> None:
    def ending(body: Object) -> Object:
        text = (
            f'pods "{body["metadata"]["name"]}" is forbidden: unable to create new content in '
            "namespace default because it is being terminated"
        )
        raise ApiError(403, "Forbidden", text)

    with World(seed=1) as world:
        world.make_pool("pool", 12)
        world.run(30)
        world.server.admission.add(Plugin(ending, on=frozenset({CREATE, CHECK})))
        before = creates(world)
        for pod in world.pods():
            world.delete("pods", pod)
            world.run(5)
        assert creates(world) - before == 1
        assert condition(world, "Warm")[:2] == ("False", "NamespaceTerminating")
        container = {"name": "main", "image": "registry.example/a:2"}
        world.change_pool("pool", template={"spec": {"containers": [container]}})
        world.run(30)
        assert condition(world, "TemplateAccepted")[:2] == ("Unknown", "NamespaceTerminating")
        assert creates(world) - before == 1


# --- At a quota ----------------------------------------------------------------------------------


def limit(world: World, pods: int) -> None:
    """The namespace may hold so many pods from now on."""
    admission = world.server.admission
    admission.plugins[:] = [quota(pods, lambda: world.server.all("pods"), "default")]


def test_room_under_a_quota_is_used_as_soon_as_a_pod_has_ended() -> None:
    with World(seed=1) as world:
        limit(world, 4)
        world.make_pool("pool", 3)
        world.make_pool("other", 1)
        world.run(20)
        for index in range(4):
            world.make_claim(f"claim-{index}", pool="other" if index == 3 else "pool")
        world.run(1200)
        assert condition(world, "Warm")[:2] == ("False", "QuotaExceeded")
        for index in range(3):
            claim = world.claim(f"claim-{index}")
            assert claim is not None
            world.delete("sandboxclaims", claim)
            pod = claim["status"]["podName"]
            until(world, lambda pod=pod: not world.server.find("pods", pod, "default"), 60)  # type: ignore[misc]
            # Whichever pool's sandbox has ended: the room is the namespace's.
            until(world, lambda: len(world.pods()) == 4, 3)
            world.run(200)


def test_room_that_others_leave_under_a_quota_is_found_within_half_a_minute() -> None:
    with World(seed=1) as world:
        limit(world, 2)
        world.make_pool("pool", 2)
        world.run(20)
        for more in range(1, 5):
            world.change_pool("pool", replicas=2 + more)
            world.run(800)
            limit(world, 2 + more)
            until(world, lambda more=more: len(world.pods()) == 2 + more, 31)  # type: ignore[misc]
