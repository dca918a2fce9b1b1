"""Runs one operator process: as a standby, at the take-over and as the leader."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import kopf

from sandboxpool.api import names
from sandboxpool.app import handlers, preflight
from sandboxpool.app.build import bare_client, build
from sandboxpool.app.settings import Settings
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.credentials import connection_info
from sandboxpool.kube.errors import UNREADABLE, KubeError, NotLeaderError
from sandboxpool.kube.lease import boot_clock
from sandboxpool.kube.listing import list_into, list_namespaces_into
from sandboxpool.kube.workqueue import WorkQueue
from sandboxpool.observability import web
from sandboxpool.observability.webauth import Reviewer
from sandboxpool.util.supervision import supervise

logger = logging.getLogger(__name__)

LIST_SECONDS = 60.0
# A new leader labels no node before it has a verdict of every pool; it waits for this many polls at
# most.
VERDICT_POLLS = 300
VERDICT_POLL_SECONDS = 0.2
SWEEP_SECONDS = 60.0
LAG_PROBE_SECONDS = 0.5
LAG_WINDOW = 20
FLUSH_SECONDS = 1.0
LEASE_LOST_EXIT_CODE = 3

POOLS_PATH = resource_path(names.API_VERSION, names.POOLS)
CLASSES_PATH = resource_path("node.k8s.io/v1", "runtimeclasses")


class Operator:
    """One operator process, connected to one cluster.

    Args:
        settings: the operator's settings.
        info: the address and credentials of the API server.
        client: the client to use; created from ``info`` if None.
        wall: this machine's clock, in seconds since the epoch.
        clock: a monotonic clock, in seconds, that includes the time of a suspension.
    """

    def __init__(
        self,
        settings: Settings,
        info: kopf.ConnectionInfo,
        *,
        client: ApiClient | None = None,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        self._settings = settings
        self._info = info
        self.components = build(settings, info, client=client, wall=wall, clock=clock)
        self._client = self.components.connection.client
        self._metrics = self.components.connection.metrics
        self._elector = self.components.connection.elector
        self._watches = self.components.connection.watches
        self._namespaces = self.components.namespaces
        self._main: asyncio.Task[Any] | None = None
        # Set when the pools and classes were listed for the first time.
        self._listed = asyncio.Event()

    async def _supervise(
        self, name: str, component: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Run a component until cancelled; restart it whenever it ends or fails."""
        await supervise(
            name,
            component,
            on_restart=lambda part: self._metrics.restarts.labels(part).inc(),
            expected=(handlers.KopfEndedError,),
        )

    async def _relist_kopf_resources(self) -> None:
        """List pools and classes every minute: kopf misses what is deleted while it is down.

        The pools of a namespace that is opened are listed at once.
        """
        while True:
            try:
                await list_into(self._client, CLASSES_PATH, self.components.classes)
                await self._list_pools()
                self._listed.set()
                wait = LIST_SECONDS
            except (KubeError, *UNREADABLE) as error:
                # A proxy may respond instead of the API server.
                wait = LIST_SECONDS if self._listed.is_set() else 1.0
                logger.warning(
                    "pools and classes cannot be listed: %r; retried in %.0f s", error, wait
                )
            await self._namespaces.wait_until_opened(wait)

    async def _list_pools(self) -> None:
        if not self._namespaces.names:
            await list_into(self._client, POOLS_PATH, self.components.pools)
            return
        paths = {
            namespace: resource_path(names.API_VERSION, names.POOLS, namespace)
            for namespace in self._namespaces.open()
        }
        await list_namespaces_into(self._client, paths, self.components.pools)

    async def _sweep(self) -> None:
        while True:
            try:
                await self.components.claim_reconciler.sweep()
            except (KubeError, *UNREADABLE) as error:
                logger.warning("sweep: %s; retried in %.0f s", error, SWEEP_SECONDS)
            await asyncio.sleep(SWEEP_SECONDS)

    async def _measure_loop(self) -> None:
        loop = asyncio.get_running_loop()
        window: list[float] = []
        while True:
            began = loop.time()
            await asyncio.sleep(LAG_PROBE_SECONDS)
            window = [*window[1 - LAG_WINDOW :], loop.time() - began - LAG_PROBE_SECONDS]
            self._metrics.loop_lag.set(max(window))
            self._metrics.tasks.set(len(asyncio.all_tasks()))

    async def _load_records(self) -> None:
        """Load what the former leader knew of the nodes."""
        while True:
            try:
                await self.components.health.load()
            except (KubeError, *UNREADABLE) as error:
                logger.warning("the records of the nodes cannot be read: %s; retried in 1 s", error)
                await asyncio.sleep(1.0)
            else:
                return

    async def _elect(self) -> None:
        try:
            await self._elector.run()
        except NotLeaderError as error:
            # Another process may lead by now, so requests in flight must not be continued.
            self._exit(str(error))

    def _exit(self, why: str) -> None:
        """Exit at once; the restarted process is a standby."""
        logger.critical("%s: the process exits, and is a standby after its restart", why)
        logging.shutdown()
        os._exit(LEASE_LOST_EXIT_CODE)

    async def _take_over(self) -> None:
        """Refresh what the former leader has written until a moment ago.

        Pods, claims and records of the nodes must be no older than the lease, for decisions on
        sandboxes depend on them.

        Raises:
            TimeoutError: they cannot be read within two lease durations. Another process may be
                able to, but not while this one holds the lease.
        """
        deadline = asyncio.get_running_loop().time() + 2 * self._settings.lease.lease_duration
        async with asyncio.timeout_at(deadline), asyncio.TaskGroup() as reading:
            reading.create_task(self.components.pods.relist())
            reading.create_task(self.components.claims.relist())
            reading.create_task(self._load_records())
        for _, informer in self._watches:
            await informer.release_notifications()
        async with asyncio.timeout_at(deadline):
            await self._listed.wait()

    async def _work(self) -> None:
        """Reconcile; all caches must be complete, as partial ones lead to wrong deletions."""
        logger.info(
            "caches synced: %d pools, %d claims, %d pods, %d nodes",
            len(self.components.pools),
            len(self.components.claims),
            len(self.components.pods),
            len(self.components.nodes),
        )
        self.components.health.forget_missing()
        queues = self.components.queues
        running: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "claims": lambda: queues.claims.run(self.components.claim_reconciler.reconcile),
            "pools": lambda: queues.pools.run(self.components.pool_reconciler.reconcile),
            "prober": self.components.prober.run,
            "event reader": self.components.event_reader.run,
            "records": self.components.records.run,
            "sweep": self._sweep,
            "kopf": self._kopf,
        }
        if (runtimes := queues.runtimes) is not None:
            running["runtimes"] = lambda: runtimes.run(self.components.runtime_reconciler.reconcile)
        if (nodes := queues.nodes) is not None:
            running["nodes"] = lambda: self._publish_on_nodes(nodes)
        async with asyncio.TaskGroup() as tasks:
            for name, component in running.items():
                tasks.create_task(self._supervise(name, component))

    async def _publish_on_nodes(self, nodes: WorkQueue[str]) -> None:
        """Reconcile labels and conditions of nodes, once every pool has a verdict.

        Before that, labels that are still needed would be removed.
        """
        for _ in range(VERDICT_POLLS):
            if not any(map(self.components.cluster.lacks_verdict, self.components.pools)):
                break
            await asyncio.sleep(VERDICT_POLL_SECONDS)
        await nodes.run(self.components.publisher.reconcile)

    async def run(self) -> None:
        """Run until a signal arrives or the lease is lost.

        Raises:
            ListenError: metrics or probes cannot be served.
            StartError: the cluster lacks a prerequisite.
        """
        self._main = asyncio.current_task()
        self._handle_signals()
        async with self._serving():
            with suppress(asyncio.CancelledError):
                async with bare_client(self._info, self._metrics) as client:
                    await preflight.check(client, self._settings)
                await self.operate()

    @asynccontextmanager
    async def _serving(self) -> AsyncGenerator[None]:
        """Serve probes and metrics, as the leader and as a standby."""
        settings = self._settings
        async with AsyncExitStack() as servers:
            reviewer = None
            if settings.metrics_auth:
                # A client of its own: a standby may send reviews, too, and no renewal of the lease
                # waits for a review.
                reviewer = Reviewer(
                    await servers.enter_async_context(bare_client(self._info, self._metrics))
                )
            health = await web.serve_health(*settings.health_listen, self._watches.not_synced)
            servers.push_async_callback(health.close)
            metrics = await web.serve_metrics(
                *settings.listen, self.components.exposition, reviewer
            )
            servers.push_async_callback(metrics.close)
            servers.callback(self.components.exposition.close)
            yield

    def _handle_signals(self) -> None:
        """End on a signal at once and release the lease, so that the next leader need not wait."""
        if self._main is not None:
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, self._main.cancel)

    async def operate(self) -> None:
        """Watch, wait for the lease and lead; probes and metrics are served elsewhere."""
        try:
            async with self._connected(), asyncio.TaskGroup() as tasks:
                for name, informer in self._watches:
                    tasks.create_task(self._supervise(f"watch of {name}", informer.run))
                tasks.create_task(self._supervise("measurement", self._measure_loop))
                await self._watches.wait_for_sync()
                async with self._leading(tasks):
                    await self._lead()
        finally:
            self.components.queues.close()
            self.components.pool_reconciler.close()

    async def _lead(self) -> None:
        try:
            await self._take_over()
        except TimeoutError:
            # Nothing was written yet, so the next leader need not wait for the lease to expire.
            await self._elector.release()
            self._exit("pods, claims or records of the nodes cannot be read in time to lead")
            raise
        self._metrics.leader.set(1)
        try:
            await self._work()
        finally:
            await self.components.records.flush(FLUSH_SECONDS)

    @asynccontextmanager
    async def _connected(self) -> AsyncGenerator[None]:
        async with AsyncExitStack() as clients:
            for client in {self._client, self.components.connection.lease_client}:
                await clients.enter_async_context(client)
            yield

    @asynccontextmanager
    async def _leading(self, tasks: asyncio.TaskGroup) -> AsyncGenerator[None]:
        """Wait for the lease, hold it, and release it after the last write."""
        background = [tasks.create_task(self._elect())]
        try:
            await self._elector.leading.wait()
            background += [
                tasks.create_task(self._supervise("list", self._relist_kopf_resources)),
                tasks.create_task(self._supervise("events", self.components.events.run)),
            ]
            yield
        finally:
            for task in background:
                task.cancel()
            await self._elector.release()

    async def _kopf(self) -> None:
        """Watch pools and classes; the list of every minute covers what is missed meanwhile."""
        await handlers.watch(
            # Read again at each start: a refused token is often an expired one.
            connection=connection_info,
            on_pool=self._observe_pool,
            namespaces=self._namespaces.names,
            on_class=lambda body, deleted: self.components.classes.observe(body, deleted=deleted),
        )

    def _observe_pool(self, body: Mapping[str, Any], deleted: bool) -> None:
        if self._namespaces.is_open(body.get("metadata", {}).get("namespace", "")):
            self.components.pools.observe(body, deleted=deleted)


async def run(settings: Settings) -> None:
    """Run one operator until a signal arrives."""
    await Operator(settings, connection_info()).run()
