"""Thousands of pools, nodes and claims: what one change costs does not grow with what it leaves.

Everything runs on the event loop that binds claims. What is done is counted, and nothing is timed:
counts do not depend on the machine.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast
from unittest import mock

import msgspec
import pytest
from prometheus_client.exposition import generate_latest

from sandboxpool.api.core import Taint
from sandboxpool.api.v1alpha1 import IsolationProof
from sandboxpool.claims.index import ClaimIndex
from sandboxpool.cluster import nodes as node_index
from sandboxpool.cluster import pools as store
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.classes import RuntimeClassStore
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.kube import listing
from sandboxpool.kube.client import ApiClient
from sandboxpool.kube.errors import ApiError
from sandboxpool.kube.listing import list_into
from sandboxpool.observability.metrics import Metrics
from sandboxpool.pools import reconcile
from sandboxpool.runtimes import verdict as verdicts
from sandboxpool.runtimes.resolve import Runtime
from sandboxpool.util.cooperative import SLICE_SECONDS, CooperativeYield
from support.builders import claim, node, pool, pool_body, runtime, runtime_class
from support.simulation.world import World

FEW, MANY = 20, 100
SETTLE_SECONDS = 60.0
# The list of pools comes every minute.
LISTS = 3
LIST_SECONDS = 60.0


@contextmanager
def counting(module: Any, name: str) -> Iterator[Callable[[], int]]:
    """Count the calls of a module's function."""
    real, calls = getattr(module, name), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return real(*args, **kwargs)

    with mock.patch.object(module, name, counted):
        yield lambda: calls


def label(world: World, name: str, **labels: str) -> None:
    """Somebody labels a node."""
    known = world.server.find("nodes", name)
    assert known is not None
    metadata = {**known["metadata"], "labels": {**known["metadata"]["labels"], **labels}}
    world._do(lambda: world.server.update("nodes", known, "user", metadata=metadata))


def restored(world: World, resource: str, backup: Mapping[Any, Any], version: int) -> None:
    """A kind's objects are as a backup has them, and versions count on from there."""
    objects = world.server._objects[resource]
    objects.clear()
    objects.update(copy.deepcopy(dict(backup)))
    world.server.version = version
    world.break_watches(resource, "expire")


# --- Nodes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pools", [FEW, MANY])
def test_a_nodes_label_concerns_no_pool_without_sandboxes_there(pools: int) -> None:
    with World() as world:
        world.make_pool("at-home", 1)
        for i in range(pools):
            world.make_pool(f"pool-{i}", 0)
        world.run(SETTLE_SECONDS)
        (sandbox,) = world.pods()
        with counting(reconcile, "decide") as looks:
            for name in ("node-0", "node-1", "node-2"):
                label(world, name, who="me")
            world.run(SETTLE_SECONDS)
            assert looks() == 1, f"only the pool on {sandbox['spec']['nodeName']}"


def test_a_node_that_is_lost_concerns_all_pools_that_could_use_it() -> None:
    with World() as world:
        for i in range(FEW):
            world.make_pool(f"pool-{i}", 0)
        world.run(SETTLE_SECONDS)
        world.nature("lose_node", "node-0")
        world.run(5 * SETTLE_SECONDS)
        told = {
            p["status"]["runtime"]["nodes"]["serving"] for p in world.server.all("sandboxpools")
        }
        assert told == {2}


def pools_with_tolerations(count: int) -> list[Any]:
    """Each tolerates the nodes of a team of its own."""
    return [
        pool(
            f"pool-{i}",
            uid=f"uid-{i}",
            template={
                "spec": {"containers": [], "tolerations": [{"key": "team", "value": f"{i}"}]}
            },
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("dedicated", [False, True])
def test_a_toleration_for_each_team_does_not_make_verdicts_dearer(dedicated: bool) -> None:
    cluster, gvisor = ClusterCache(), runtime()
    for i in range(MANY):
        # The team's own, if it has one.
        taints = [Taint("team", "NoSchedule", f"{i}")] if dedicated and i < FEW else []
        cluster.nodes.put(None, node(f"node-{i}", taints=taints))
    pools = pools_with_tolerations(MANY)
    with counting(node_index, "assess_node") as looks:
        for one in pools:
            serving = MANY - FEW + (one.name in {f"pool-{i}" for i in range(FEW)})
            assert len(cluster.verdict(one, gvisor).serving) == (serving if dedicated else MANY)
        # Once for each that differ in what they tolerate of any node.
        different = FEW + 1 if dedicated else 1
        assert looks() == different * MANY
    with counting(node_index, "assess_node") as looks, counting(verdicts, "Verdict") as summed_up:
        last = f"node-{MANY - 1}"
        labels = {"kubernetes.io/hostname": last, "who": "me"}
        cluster.nodes.put(node(last), node(last, version=2, labels=labels))
        assert not cluster.nodes.drain_changed()
        for one in pools:
            cluster.verdict(one, gvisor)
        assert (looks(), summed_up()) == (different, 0)
        cluster.nodes.put(node(last), node(last, version=3, labels=labels, ready=False))
        assert len(cluster.nodes.drain_changed()) == MANY
        for one in pools:
            cluster.verdict(one, gvisor)
        assert summed_up() == different


# --- The list of every minute --------------------------------------------------------------------


@pytest.mark.parametrize("pools", [FEW, MANY])
def test_a_list_in_which_nothing_is_new_is_not_read(pools: int) -> None:
    with World() as world:
        for i in range(pools):
            world.make_pool(f"pool-{i}", 0)
        world.run(SETTLE_SECONDS)
        with counting(store, "_parse") as parsed, counting(reconcile, "decide") as looks:
            world.run(LISTS * LIST_SECONDS)
            assert (parsed(), looks()) == (0, 0)


class Pages:
    """An API server of one collection."""

    def __init__(self, bodies: list[Any], page: int = 10, version: int = 1000) -> None:
        self.bodies, self.page, self.version = bodies, page, version
        self.expires = False
        self.asked = 0

    async def get(self, path: str, params: Mapping[str, str]) -> bytes:
        del path
        self.asked += 1
        begin = int(params.get("continue", "0"))
        if begin and self.expires:
            raise ApiError(410, "Expired", "too old")
        end = begin + min(self.page, int(params["limit"]))
        metadata: dict[str, Any] = {"resourceVersion": str(self.version)}
        if end < len(self.bodies):
            metadata["continue"] = str(end)
        return msgspec.json.encode({"metadata": metadata, "items": self.bodies[begin:end]})

    async def into(self, what: Any) -> None:
        await list_into(cast(ApiClient, self), "/pools", what)


def bodies(count: int) -> list[Any]:
    return [pool_body(f"pool-{i}", uid=f"uid-{i}", version=i + 1) for i in range(count)]


async def test_a_list_gives_way_to_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def clock() -> float:
        # At each look a little less than half of a slice has passed.
        nonlocal now
        now += SLICE_SECONDS * 0.45
        return now

    monkeypatch.setattr(listing, "CooperativeYield", lambda: CooperativeYield(clock))
    taken: list[str] = []
    pools = PoolStore(lambda old, new: taken.append(new.name if new else ""))
    sizes: list[int] = []

    async def other_work() -> None:
        while True:
            sizes.append(len(taken))
            taken.clear()
            await asyncio.sleep(0)

    task = asyncio.create_task(other_work())
    await Pages(bodies(MANY), page=MANY).into(pools)
    task.cancel()
    assert len(pools) == MANY
    assert max(sizes) <= 3


async def test_nothing_is_gone_before_the_last_page_is_read() -> None:
    pools = PoolStore(lambda old, new: None)
    server = Pages(bodies(MANY))
    await server.into(pools)
    assert (len(pools), server.asked) == (MANY, MANY // 10)
    server.bodies, server.expires = bodies(FEW), True
    with pytest.raises(ApiError):
        await server.into(pools)
    assert len(pools) == MANY
    server.expires = False
    await server.into(pools)
    assert len(pools) == FEW


async def test_what_cannot_be_read_is_not_gone() -> None:
    pools = PoolStore(lambda old, new: None)
    known: dict[str, Runtime] = {}
    classes = RuntimeClassStore(known, lambda name: None)
    for what, body in ((pools, pool_body()), (classes, runtime_class())):
        server = Pages([body])
        await server.into(what)
        server.bodies = [{**body, "metadata": {**body["metadata"], "resourceVersion": "2"}}]
        server.bodies[0] |= {"spec": {"text": msgspec.Raw(b'"\xff"')}}
        await server.into(what)
    assert len(pools) == len(known) == 1


# --- Classes -------------------------------------------------------------------------------------


def test_what_the_pools_of_a_class_say_is_summed_up_as_it_changes() -> None:
    pools = PoolStore(lambda old, new: None)
    chance = random.Random(1)
    with counting(store, "sandbox_counts") as counted:
        for version in range(1, 20 * MANY):
            name = f"pool-{chance.randrange(MANY)}"
            body = pool_body(
                name,
                uid=f"{name}-{version // MANY % 3}",
                version=version,
                generation=version,
                status={"warm": chance.randrange(5), "replicas": chance.randrange(9)},
                runtimeClassName=chance.choice(["gvisor", "kata"]),
                isolationProof=chance.choice(["None", "PerNode"]),
            )
            pools.observe(body, deleted=chance.random() < 0.2)
        assert counted() <= 2 * 20 * MANY, "the one that was, and the one that is"
    for class_name in ("gvisor", "kata"):
        known = [p for p in pools if p.spec and p.spec.runtime_class_name == class_name]
        told = pools.by_class(class_name)
        assert set(told.pools) == {p.uid for p in known}
        assert told.names == sorted(f"{p.namespace}/{p.name}" for p in known)
        assert told.wanting_proof == sum(p.proof is not IsolationProof.NONE for p in known)
        wanting = [p for p in known if p.proof is not IsolationProof.NONE]
        assert told.warm_with_proof == sum(p.status["warm"] for p in wanting)
        for state in SandboxState:
            assert told.sandboxes[state] == sum(store.sandbox_counts(p)[state] for p in known)


# --- What a restored backup holds ----------------------------------------------------------------


def test_pools_and_classes_are_as_a_restored_backup_has_them() -> None:
    with World() as world:
        world.make_pool("pool", 1)
        world.run(SETTLE_SECONDS)
        backups = {
            kind: copy.deepcopy(world.server._objects[kind])
            for kind in ("sandboxpools", "runtimeclasses")
        }
        at = world.server.version
        world.change_pool("pool", replicas=4)
        world.run(SETTLE_SECONDS)
        assert len(world.pods()) == 4
        for kind, backup in backups.items():
            restored(world, kind, backup, at)
        world.watchdog.cause(10)
        world.run(2 * LIST_SECONDS)
        assert len(world.pods()) == 1
        # From here on changes are seen as they come, although their numbers were there before.
        world.change_pool("pool", replicas=2)
        world.run(10.0)
        assert len(world.pods()) == 2


# --- Metrics -------------------------------------------------------------------------------------


def samples(metrics: Metrics, name: str) -> Counter[tuple[str, str]]:
    """The sums of a counter by namespace and pool."""
    found: Counter[tuple[str, str]] = Counter()
    for family in metrics.registry.collect():
        for sample in family.samples:
            if sample.name == name:
                found[sample.labels["namespace"], sample.labels["pool"]] += int(sample.value)
    return found


class Series(dict[Any, Any]):
    """The series of a metric, which counts those that are looked through."""

    looked_at = 0

    def __iter__(self) -> Iterator[Any]:
        for one in super().__iter__():
            self.looked_at += 1
            yield one


def test_a_deleted_pool_removes_no_series_but_its_own() -> None:
    metrics, pools = Metrics(), [pool(f"pool-{i}", uid=f"uid-{i}") for i in range(MANY)]
    for one in pools:
        metrics.claim_bound(one, "Warm", 0.1)
        metrics.claim_finished(*one.key, "Lost", "PodLost")
        metrics.sandbox_failed(one, "PodFailed")
    watched = [metrics._claims, metrics._claim_seconds, metrics._failures]
    for metric in watched:
        metric._metrics = Series(metric._metrics)
    for one in pools[1:]:
        metrics.forget_pool(one)
    assert sum(cast(Series, metric._metrics).looked_at for metric in watched) == 0
    for name in ("sandboxpool_claims_total", "sandboxpool_failures_total"):
        assert set(samples(metrics, name)) == {pools[0].key}


def test_only_pools_that_exist_have_series() -> None:
    with World() as world:
        world.make_pool("real", 1)
        world.run(SETTLE_SECONDS)
        world.make_claim("served", pool="real", ttlSeconds=600)
        for i in range(FEW):
            world.make_claim(f"lost-{i}", pool=f"no-such-pool-{i}", bindTimeoutSeconds=1)
        world.run(SETTLE_SECONDS)
        metrics = world.processes[0].operator.metrics
        counted = samples(metrics, "sandboxpool_claims_total")
        assert counted == {("default", "real"): 1, ("", ""): FEW}, "and each claim once"
        # The pool goes, and after it, by and by, its claim.
        known = world.pool("real")
        assert known is not None
        world.delete("sandboxpools", known)
        world.run(SETTLE_SECONDS)
        assert set(samples(metrics, "sandboxpool_claims_total")) == {("", "")}
        world.run(900.0)
        assert samples(metrics, "sandboxpool_claims_total") == {("", ""): FEW + 1}
        text = generate_latest(metrics.registry).decode()
        assert '"real"' not in text
        assert "no-such-pool" not in text


# --- Claims --------------------------------------------------------------------------------------


def test_a_change_of_a_pool_or_a_pod_finds_its_claims_without_a_look_at_others() -> None:
    index = ClaimIndex()
    for i in range(MANY):
        index.put(None, claim(f"claim-{i}", pool=f"pool-{i % 10}"))
    assert len(index.of_pool(("default", "pool-3"))) == MANY // 10
    waiting = claim("claim-3", pool="pool-3")
    bound = claim("claim-3", pool="pool-3", status={"phase": "Bound", "podUID": "pod"})
    index.put(waiting, bound)
    assert index.of_pod("pod") == [("default", "claim-3")]
    assert ("default", "claim-3") in index.of_pool(("default", "pool-3"))
    ended = claim("claim-3", pool="pool-3", status={"phase": "Lost", "podUID": "pod"})
    index.put(bound, ended)
    assert ("default", "claim-3") not in index.of_pool(("default", "pool-3"))
    index.put(ended, None)
    assert index.of_pod("pod") == []
    assert index.get(ended.uid) is None
    for i in range(MANY):
        index.put(claim(f"claim-{i}", pool=f"pool-{i % 10}"), None)
    assert not index._by_name
    assert not index._by_uid
