"""The composition root: builds the parts, connects them, runs them, stops them.

Nothing else knows all the parts. The wiring of changes to work is here, and only here: which
change of which object puts which key into which queue.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

import kopf
import msgspec

from sandboxpool import handlers, web
from sandboxpool.api import names
from sandboxpool.api.core import Event, Node, Pod
from sandboxpool.cache import Cluster
from sandboxpool.claims.allocator import Allocator
from sandboxpool.claims.claim import Claim
from sandboxpool.claims.offers import Offers
from sandboxpool.claims.reconcile import ClaimReconciler
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.credentials import connection_info
from sandboxpool.kube.errors import KubeError
from sandboxpool.kube.events import EventRecorder
from sandboxpool.kube.informer import Informer
from sandboxpool.kube.workqueue import WorkQueue
from sandboxpool.metrics import ClusterCollector, Metrics
from sandboxpool.pools.members import claim_uid_of, pool_uid_of
from sandboxpool.pools.pool import Pool
from sandboxpool.pools.reconcile import PoolReconciler
from sandboxpool.pools.store import PoolStore
from sandboxpool.runtimes.diagnosis import FAILED_CREATE_SANDBOX
from sandboxpool.runtimes.store import RuntimeStore
from sandboxpool.settings import Settings

logger = logging.getLogger(__name__)

Key = tuple[str, str]

# Changes that come in bursts are gathered for a moment before a pool is looked at.
POD_BURST_SECONDS = 0.05
NODE_BURST_SECONDS = 0.1
LIST_SECONDS = 60.0
SWEEP_SECONDS = 60.0
LAG_PROBE_SECONDS = 0.5
LAG_WINDOW = 20

POOLS_PATH = resource_path(names.API_VERSION, names.POOLS)
CLASSES_PATH = resource_path("node.k8s.io/v1", "runtimeclasses")


class Operator:
    """One operator process, connected to one cluster."""

    def __init__(self, settings: Settings, info: kopf.ConnectionInfo) -> None:
        self._settings = settings
        self._metrics = Metrics()
        self._client = ApiClient(
            info, user_agent="sandboxpool-operator", observe=self._metrics.request
        )
        self._cluster = Cluster()
        self._allocator = Allocator()
        self._pool_queue: WorkQueue[Key] = WorkQueue("pools", self._metrics.queue("pools"))
        self._claim_queue: WorkQueue[Key] = WorkQueue("claims", self._metrics.queue("claims"))
        self._pools = PoolStore(self._on_pool)
        self._classes = RuntimeStore(self._cluster.classes, self._on_class)
        self._offers = Offers(
            self._cluster,
            self._pools,
            self._allocator,
            is_leaving=lambda pool, pod: self._pool_reconciler.is_leaving(pool, pod),
            on_granted=self._on_granted,
        )
        self._events = EventRecorder(self._client, "sandboxpool", socket.gethostname())
        self._pool_reconciler = PoolReconciler(
            client=self._client,
            cluster=self._cluster,
            pools=self._pools,
            allocator=self._allocator,
            offers=self._offers,
            events=self._events,
            observer=self._metrics,
            on_startup_sample=self._on_startup_sample,
            wall=time.time,
            clock=time.monotonic,
        )
        self._pods = self._informer(
            "v1", "pods", Pod, self._on_pod, label_selector=names.LABEL_POOL_UID
        )
        self._nodes = self._informer("v1", "nodes", Node, self._on_node)
        self._sandbox_events = self._informer(
            "v1",
            "events",
            Event,
            self._on_event,
            field_selector=f"reason={FAILED_CREATE_SANDBOX},involvedObject.kind=Pod",
        )
        self._claims = self._informer(names.API_VERSION, names.CLAIMS, Claim, self._on_claim)
        self._claim_names: dict[str, Key] = {}
        self._claim_reconciler = ClaimReconciler(
            client=self._client,
            get=self._claims.get,
            cluster=self._cluster,
            pools=self._pools,
            allocator=self._allocator,
            offers=self._offers,
            cold=self._pool_reconciler,
            events=self._events,
            observer=self._metrics,
            wall=time.time,
            clock=time.monotonic,
        )
        self._listed = asyncio.Event()
        self._metrics.registry.register(
            ClusterCollector(self._cluster, self._pools, self._allocator, self._offers, time.time)
        )

    def _informer(
        self,
        api_version: str,
        resource: str,
        type_: type[Any],
        on_change: Callable[[Any, Any], None],
        **selectors: str,
    ) -> Informer[Any]:
        return Informer(
            self._client,
            resource_path(api_version, resource),
            type_,
            on_change,
            on_restart=lambda cause: self._metrics.watch_restarted(resource, cause),
            **selectors,
        )

    # --- What a change of an object sets in motion -----------------------------------------------

    def _on_pod(self, old: Pod | None, new: Pod | None) -> None:
        self._cluster.pods.put(old, new)
        pod = new or old
        assert pod is not None, "a change has a before or an after"
        was, is_now = (pool_uid_of(state) if state is not None else None for state in (old, new))
        for pool_uid in {was, is_now} - {None}:
            assert pool_uid is not None
            self._pool_reconciler.observe_pod(pool_uid, old, new if pool_uid == is_now else None)
            pool = self._pools.by_uid(pool_uid)
            if pool is not None:
                self._pool_queue.add_after(pool.key, POD_BURST_SECONDS)
        if new is None:
            self._allocator.release(pod.metadata.uid)
            self._cluster.events.forget(pod.metadata.uid)
        else:
            if was is not None and is_now is None:
                logger.warning(
                    "pod %s/%s has left its pool: somebody else has changed its owner",
                    pod.metadata.namespace,
                    pod.metadata.name,
                )
            self._offers.refresh([new])
        for state in (old, new):
            claim_uid = claim_uid_of(state) if state is not None else None
            key = self._claim_names.get(claim_uid) if claim_uid is not None else None
            if key is not None:
                self._claim_queue.add(key)

    def _on_node(self, old: Node | None, new: Node | None) -> None:
        if not self._cluster.nodes.put(old, new):
            return
        node = new or old
        assert node is not None, "a change has a before or an after"
        self._offers.refresh(self._cluster.pods.on_node(node.metadata.name))
        for pool in self._pools:
            self._pool_queue.add_after(pool.key, NODE_BURST_SECONDS)

    def _on_event(self, old: Event | None, new: Event | None) -> None:
        del old
        if new is None or not self._cluster.events.put(new):
            return
        pod = self._cluster.pods.get(new.involvedObject.uid)
        pool = self._pools.by_uid(pool_uid_of(pod) or "") if pod is not None else None
        if pool is not None:
            self._pool_queue.add(pool.key)

    def _on_claim(self, old: Claim | None, new: Claim | None) -> None:
        self._claim_reconciler.seen(old, new)
        if new is not None:
            self._claim_names[new.uid] = new.key
            self._claim_queue.add(new.key)
        elif old is not None:
            self._claim_names.pop(old.uid, None)

    def _on_pool(self, old: Pool | None, new: Pool | None) -> None:
        gone = old is not None and (new is None or new.deleting or new.uid != old.uid)
        if old is not None and gone:
            self._allocator.forget_pool(old.uid)
            if new is None or new.uid != old.uid:
                self._pool_reconciler.forget(old.uid)
                self._metrics.forget_pool(old)
        # A change of the status alone, which is mostly our own, offers nothing new to anybody.
        changed = gone or old is None or new is None or old.generation != new.generation
        if new is not None:
            if changed:
                self._offers.refresh_pool(new)
            self._pool_queue.add(new.key)
        if changed:
            key = (new or old).key  # type: ignore[union-attr]
            for claim in self._claims:
                if not claim.finished and (claim.metadata.namespace, claim.spec.poolName) == key:
                    self._claim_queue.add(claim.key)

    def _on_class(self, name: str) -> None:
        for pool in self._pools:
            if pool.spec is not None and pool.spec.runtime_class_name == name:
                self._offers.refresh_pool(pool)
                self._pool_queue.add(pool.key)

    def _on_granted(self, claim_uid: str) -> None:
        key = self._claim_names.get(claim_uid)
        if key is not None:
            self._claim_queue.add(key)
        else:
            self._allocator.abandon(claim_uid)

    def _on_startup_sample(self, pool: Pool, stage: str, seconds: float) -> None:
        resolution = self._offers.resolution(pool)
        handler = resolution.runtime.handler if resolution and resolution.runtime else ""
        self._metrics.startup(pool, handler, stage, seconds)

    # --- Running ---------------------------------------------------------------------------------

    def _not_synced(self) -> list[str]:
        synced = {
            "pods": self._pods.synced,
            "nodes": self._nodes.synced,
            "events": self._sandbox_events.synced,
            "sandboxclaims": self._claims.synced,
            "sandboxpools, runtimeclasses": self._listed,
        }
        return [name for name, event in synced.items() if not event.is_set()]

    async def _list_what_kopf_watches(self) -> None:
        """List pools and classes every minute: kopf never says what vanished behind its back."""
        while True:
            try:
                for path, store in ((CLASSES_PATH, self._classes), (POOLS_PATH, self._pools)):
                    listed = msgspec.json.decode(await self._client.get(path))
                    store.replace(listed["items"], listed["metadata"]["resourceVersion"])
                self._listed.set()
                wait = LIST_SECONDS
            except KubeError as error:
                logger.warning("%s", error)
                wait = LIST_SECONDS if self._listed.is_set() else 1.0
            await asyncio.sleep(wait)

    async def _sweep(self) -> None:
        while True:
            forgiven = (self._cluster.pods.get(uid) for uid in self._allocator.forgive())
            self._offers.refresh(pod for pod in forgiven if pod is not None)
            try:
                await self._claim_reconciler.sweep()
            except KubeError as error:
                logger.warning("sweep: %s", error)
            await asyncio.sleep(SWEEP_SECONDS)

    async def _measure_lag(self) -> None:
        loop = asyncio.get_running_loop()
        window: list[float] = []
        while True:
            began = loop.time()
            await asyncio.sleep(LAG_PROBE_SECONDS)
            window = [*window[1 - LAG_WINDOW :], loop.time() - began - LAG_PROBE_SECONDS]
            self._metrics.loop_lag.set(max(window))

    async def _all_synced(self) -> None:
        for cache in (self._pods, self._nodes, self._sandbox_events, self._claims):
            await cache.synced.wait()
        await self._listed.wait()

    async def _work(self) -> None:
        """Start to decide once every cache is complete: a partial view creates and deletes.

        kopf starts last. At its end it waits for, and cancels, every task made after its start,
        so that whatever is to be in our own hands must exist before.
        """
        await self._all_synced()
        logger.info(
            "caches synced: %d pools, %d claims, %d pods, %d nodes",
            len(self._pools),
            len(self._claims),
            len(self._pods),
            len(self._nodes),
        )
        async with asyncio.TaskGroup() as parts:
            workers = [
                *(
                    parts.create_task(self._claim_queue.work(self._claim_reconciler.reconcile))
                    for _ in range(self._settings.claim_workers)
                ),
                *(
                    parts.create_task(self._pool_queue.work(self._pool_reconciler.reconcile))
                    for _ in range(self._settings.pool_workers)
                ),
                parts.create_task(self._sweep()),
            ]
            await parts.create_task(self._kopf())
            for worker in workers:
                worker.cancel()

    async def run(self) -> None:
        """Run until a signal comes; any part that dies takes the whole process with it."""
        server = await web.serve(
            self._settings.host, self._settings.port, self._metrics.registry, self._not_synced
        )
        try:
            async with self._client, asyncio.TaskGroup() as parts:
                feeding = [
                    parts.create_task(part)
                    for part in (
                        self._pods.run(),
                        self._nodes.run(),
                        self._sandbox_events.run(),
                        self._claims.run(),
                        self._list_what_kopf_watches(),
                        self._events.run(),
                        self._measure_lag(),
                    )
                ]
                await parts.create_task(self._work())
                for task in feeding:
                    task.cancel()
        finally:
            self._claim_queue.close()
            self._pool_queue.close()
            await server.cleanup()

    async def _kopf(self) -> None:
        registry = kopf.OperatorRegistry()
        handlers.register(
            registry,
            connection=connection_info,
            on_pool=lambda body, deleted: self._pools.observe(body, deleted=deleted),
            on_class=lambda body, deleted: self._classes.observe(body, deleted=deleted),
        )
        await kopf.operator(
            registry=registry,
            settings=handlers.settings(),
            clusterwide=True,
            standalone=True,
            # Unless told, kopf looks its user up, and the uid of a container need not have a name.
            identity=socket.gethostname(),  # type: ignore[arg-type]  # a str that it gives a name
        )


async def run(settings: Settings) -> None:
    """Run one operator until it is told to stop."""
    await Operator(settings, connection_info()).run()
