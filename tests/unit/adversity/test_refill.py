"""Refill while requests hang, are refused or are altered, and while the caches show nothing."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sandboxpool.api import names
from sandboxpool.kube.errors import ApiError
from sandboxpool.kube.informer import BLIND_SECONDS
from sandboxpool.pools.reconcile import PoolReconciler
from support.simulation.apiserver import ApiServer, Key, Object, labels
from support.simulation.network import SimulatedClient
from support.simulation.world import World

WEBHOOK_SECONDS = 10.0
HANGS = ApiError(
    500,
    "InternalError",
    'Internal error occurred: failed calling webhook "x": context deadline exceeded',
)
PODS = "/api/v1/pods"

Refuse = Callable[[Object], None]


def is_create(method: str, path: str) -> bool:
    return method == "POST" and path.endswith("/pods")


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> list[Refuse]:
    """What looks at each pod that is to be made, and may raise, dry runs included."""
    checks: list[Refuse] = []
    admissible = ApiServer._admissible

    def check(server: ApiServer, resource: str, key: Key, body: Object) -> None:
        admissible(server, resource, key, body)
        if resource == "pods":
            for one in checks:
                one(body)

    monkeypatch.setattr(ApiServer, "_admissible", check)
    return checks


@pytest.fixture
def alter(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[Object], Object]]:
    """What mutates each pod that is really made."""
    changes: list[Callable[[Object], Object]] = []
    fresh = ApiServer._fresh

    def make(server: ApiServer, resource: str, body: Object) -> Object:
        made = fresh(server, resource, body)
        if resource == "pods":
            for change in changes:
                made = change(made)
        return made

    monkeypatch.setattr(ApiServer, "_fresh", make)
    return changes


class Blindness:
    """Lists and watches of pods fail while it is on; other requests do not."""

    def __init__(self) -> None:
        self.on = False

    def begin(self, world: World) -> None:
        self.on = True
        world.break_watches("pods", "expire")


@pytest.fixture
def blindness(monkeypatch: pytest.MonkeyPatch) -> Blindness:
    state = Blindness()
    send, watch = SimulatedClient._send, SimulatedClient.watch

    async def see_nothing(client: SimulatedClient, method: str, path: str, *rest: Any) -> bytes:
        if state.on and method == "GET" and path == PODS:
            raise ApiError(504, "Timeout", "the server was unable to return a response in time")
        return await send(client, method, path, *rest)

    @asynccontextmanager
    async def hear_nothing(
        client: SimulatedClient, path: str, params: Mapping[str, str]
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        if state.on and path == PODS:
            raise ApiError(410, "Expired", "too old resource version")
        async with watch(client, path, params) as lines:
            yield lines

    monkeypatch.setattr(SimulatedClient, "_send", see_nothing)
    monkeypatch.setattr(SimulatedClient, "watch", hear_nothing)
    return state


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
def test_pods_of_other_pools_that_hang_do_not_delay_a_refill(
    monkeypatch: pytest.MonkeyPatch, dry_run: bool, others: int
) -> None:
    send, hangs = SimulatedClient._send, False

    async def slowly(
        client: SimulatedClient,
        method: str,
        path: str,
        data: bytes | None,
        params: Mapping[str, str] | None,
        content_type: str,
    ) -> bytes:
        ours = is_create(method, path) and data is not None and b'"hang-' in data
        if hangs and ours and ("dryRun" in (params or {})) == dry_run:
            await asyncio.sleep(WEBHOOK_SECONDS)
            raise HANGS
        return await send(client, method, path, data, params, content_type)

    monkeypatch.setattr(SimulatedClient, "_send", slowly)
    with World(seed=1) as world:
        world.make_pool("healthy", 5)
        world.run(20)
        hangs = True
        for index in range(others):
            world.make_pool(f"hang-{index}", 8)
        world.run(45)
        for turn in range(3):
            world.make_claim(f"claim-{turn}", pool="healthy")
            until(world, lambda turn=turn: is_bound(world, f"claim-{turn}"), 1)  # type: ignore[misc]
            until(world, lambda: len(stock(world, "healthy")) == 5, 3)
            world.run(4)
        reason = "TemplateNotChecked" if dry_run else "CreateFailed"
        assert condition(world, "Warm", "hang-0")[:2] == ("False", reason)


def test_a_dry_run_that_hangs_is_told_and_asked_again_ever_more_slowly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send, hangs, asked = SimulatedClient._send, True, []

    async def slowly(
        client: SimulatedClient,
        method: str,
        path: str,
        data: bytes | None,
        params: Mapping[str, str] | None,
        content_type: str,
    ) -> bytes:
        if hangs and "dryRun" in (params or {}):
            asked.append(world.loop.time())
            await asyncio.sleep(3600)
        return await send(client, method, path, data, params, content_type)

    monkeypatch.setattr(SimulatedClient, "_send", slowly)
    with World(seed=1) as world:
        world.make_pool("pool", 1)
        world.run(3)
        status, reason, message = condition(world, "TemplateAccepted")
        assert (status, reason) == ("Unknown", "TemplateNotChecked")
        assert "awaited" in message
        world.run(1800)
        assert 6 <= len(asked) <= 14
        pauses = [later - earlier for earlier, later in itertools.pairwise(asked)]
        assert pauses[-1] > 4 * pauses[0]
        assert "no answer within" in condition(world, "TemplateAccepted")[2]
        hangs = False
        until(world, lambda: world.pool()["status"].get("warm") == 1, 340)  # type: ignore[index]


def test_a_hanging_dry_run_ends_with_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    send, ended = SimulatedClient._send, []

    async def never(
        client: SimulatedClient,
        method: str,
        path: str,
        data: bytes | None,
        params: Mapping[str, str] | None,
        content_type: str,
    ) -> bytes:
        if "dryRun" in (params or {}):
            try:
                await asyncio.sleep(3600)
            finally:
                ended.append(path)
        return await send(client, method, path, data, params, content_type)

    monkeypatch.setattr(SimulatedClient, "_send", never)
    with World(seed=1) as world:
        world.make_pool("pool", 1)
        world.run(5)
        assert not ended
        world.crash()
        world.run(0.5)
        assert len(ended) == 1


# --- Pods that are not what was sent -------------------------------------------------------------


def without_label(pod: Object) -> Object:
    left = {k: v for k, v in labels(pod).items() if k != names.LABEL_POOL_UID}
    return {**pod, "metadata": {**pod["metadata"], "labels": left}}


def without_owner(pod: Object) -> Object:
    return {**pod, "metadata": {**pod["metadata"], "ownerReferences": []}}


def without_annotations(pod: Object) -> Object:
    return {**pod, "metadata": {**pod["metadata"], "annotations": {}}}


def of_another_class(pod: Object) -> Object:
    return {**pod, "spec": {**pod["spec"], "runtimeClassName": "runc"}}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (without_label, "metadata.labels"),
        (without_owner, "metadata.ownerReferences"),
        (without_annotations, "metadata.annotations"),
        (of_another_class, "spec.runtimeClassName"),
    ],
)
def test_a_pod_that_admission_alters_is_deleted_at_once_and_said(
    alter: list[Callable[[Object], Object]], change: Callable[[Object], Object], field: str
) -> None:
    alter.append(change)
    with World(seed=1) as world:
        world.make_pool("pool", 3, maxSandboxes=5)
        for _ in range(120):
            let_pass(world, 30)
            assert len(stock(world)) <= 1
        assert creates(world) < 30
        status, reason, message = condition(world, "Warm")
        assert (status, reason) == ("False", "PodAltered")
        assert field in message
        excuse(world)
        alter.clear()
        until(world, lambda: len(stock(world)) == 3, 360)


# --- Pods that nobody sees -----------------------------------------------------------------------


def test_what_was_made_and_is_not_seen_is_not_made_again(blindness: Blindness) -> None:
    with World(seed=1) as world:
        world.make_pool("pool", 2, maxSandboxes=10)
        world.run(20)
        blindness.begin(world)
        world.change_pool("pool", replicas=10)
        let_pass(world, 3600)
        assert len(world.pods()) == 10
        excuse(world)
        blindness.on = False
        let_pass(world, 60)
        assert len(world.pods()) == 10
        world.make_claim("claim")
        world.run(5)
        assert is_bound(world, "claim")


def test_what_was_made_and_taken_away_unseen_is_made_again_ever_more_slowly(
    blindness: Blindness,
) -> None:
    with World(seed=1) as world:
        world.make_pool("pool", 2)
        world.run(20)
        blindness.begin(world)
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
        init(reconciler, **{**parts, "pods_age": lambda: age})

    monkeypatch.setattr(PoolReconciler, "__init__", build)
    with World(seed=1) as world:
        world.make_pool("pool", 2)
        world.run(20)
        age = BLIND_SECONDS + 1
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
    refuse: list[Refuse], cause: str
) -> None:
    def missing(body: Object) -> None:
        text = f'pods "{body["metadata"]["name"]}" is forbidden: {cause}'
        raise ApiError(403, "Forbidden", text)

    with World(seed=1) as world:
        world.run(20)
        refuse.append(missing)
        world.make_pool("pool", 3)
        world.run(1.5)
        status, reason, message = condition(world, "TemplateAccepted")
        assert (status, reason) == ("Unknown", "TemplateNotChecked")
        assert cause in message
        assert "correct spec.template" not in message
        refuse.clear()
        until(world, lambda: world.pool()["status"].get("warm") == 3, 8)  # type: ignore[index]


def test_a_policy_that_is_mended_soon_is_asked_about_soon(refuse: list[Refuse]) -> None:
    def deny(_: Object) -> None:
        raise ApiError(403, "Forbidden", 'admission webhook "p" denied the request: not signed')

    with World(seed=1) as world:
        world.run(20)
        refuse.append(deny)
        world.make_pool("pool", 1)
        world.run(6)
        assert condition(world, "TemplateAccepted")[:2] == ("False", "TemplateRejected")
        refuse.clear()
        until(world, lambda: world.pool()["status"].get("warm") == 1, 12)  # type: ignore[index]


# --- A namespace that is being deleted -----------------------------------------------------------


def test_in_a_namespace_that_ends_nothing_is_made_and_nobody_is_blamed(
    refuse: list[Refuse],
) -> None:
    def ending(body: Object) -> None:
        text = (
            f'pods "{body["metadata"]["name"]}" is forbidden: unable to create new content in '
            "namespace default because it is being terminated"
        )
        raise ApiError(403, "Forbidden", text)

    with World(seed=1) as world:
        world.make_pool("pool", 12)
        world.run(30)
        refuse.append(ending)
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


def at_most(world: World, limit: int) -> Refuse:
    def check(body: Object) -> None:
        used = len(world.server.all("pods"))
        if used >= limit:
            text = (
                f'pods "{body["metadata"]["name"]}" is forbidden: exceeded quota: team, '
                f"requested: pods=1, used: pods={used}, limited: pods={limit}"
            )
            raise ApiError(403, "Forbidden", text)

    return check


def test_room_under_a_quota_is_used_as_soon_as_a_pod_has_ended(refuse: list[Refuse]) -> None:
    with World(seed=1) as world:
        refuse.append(at_most(world, 4))
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


def test_room_that_others_leave_under_a_quota_is_found_within_half_a_minute(
    refuse: list[Refuse],
) -> None:
    with World(seed=1) as world:
        refuse.append(at_most(world, 2))
        world.make_pool("pool", 2)
        world.run(20)
        for more in range(1, 5):
            world.change_pool("pool", replicas=2 + more)
            world.run(800)
            refuse[:] = [at_most(world, 2 + more)]
            until(world, lambda more=more: len(world.pods()) == 2 + more, 31)  # type: ignore[misc]
