"""The life of one operator process: it stands by, takes over, leads and ends."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
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
from sandboxpool.kube.listing import list_into
from sandboxpool.kube.workqueue import WorkQueue
from sandboxpool.observability import web
from sandboxpool.observability.webauth import Reviewer

logger = logging.getLogger(__name__)

LIST_SECONDS = 60.0
# A new leader labels no node before it has looked at all pools; it asks so often, and goes on then.
FIRST_LOOKS = 300
FIRST_LOOK_SECONDS = 0.2
SWEEP_SECONDS = 60.0
LAG_PROBE_SECONDS = 0.5
LAG_WINDOW = 20
FLUSH_SECONDS = 1.0
LEASE_LOST_EXIT_CODE = 3
# A part that fails is started anew after a pause, which grows unless it has run for a while.
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
HEALTHY_WATCH_SECONDS = 300.0

POOLS_PATH = resource_path(names.API_VERSION, names.POOLS)
CLASSES_PATH = resource_path("node.k8s.io/v1", "runtimeclasses")


class Operator:
    """One operator process, connected to one cluster.

    Args:
        settings: how it runs.
        info: where the API server is.
        client: speaks to it; made from ``info`` unless given.
        wall: this machine's own clock, in seconds since the epoch.
        clock: a monotonic clock, in seconds, that counts the time of a suspension too.
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
        self._main: asyncio.Task[Any] | None = None
        # The pools and classes are complete.
        self._listed = asyncio.Event()

    async def _survive(self, name: str, part: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a part of the process until cancelled, and begin anew whenever it ends.

        Nothing that the API server says, and no object of a tenant, may end the process.
        """
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE_SECONDS
        while True:
            began, cause = loop.time(), "has ended"
            try:
                await part()
            except handlers.KopfEndedError as error:
                cause = str(error)
            except Exception as error:
                logger.exception("%s failed", name)
                cause = repr(error)
            if loop.time() - began >= HEALTHY_WATCH_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            logger.warning("%s: %s; it is started anew in %.0f s", name, cause, pause)
            self._metrics.restarts.labels(name).inc()
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _list_what_kopf_watches(self) -> None:
        """List pools and classes every minute: kopf never says what vanished behind its back."""
        while True:
            try:
                await list_into(self._client, CLASSES_PATH, self.components.classes)
                await list_into(self._client, POOLS_PATH, self.components.pools)
                self._listed.set()
                wait = LIST_SECONDS
            except (KubeError, *UNREADABLE) as error:
                # Also where something between us and the API server answers in its place.
                logger.warning("list of pools and classes: %r", error)
                wait = LIST_SECONDS if self._listed.is_set() else 1.0
            await asyncio.sleep(wait)

    async def _sweep(self) -> None:
        while True:
            try:
                await self.components.claim_reconciler.sweep()
            except (KubeError, *UNREADABLE) as error:
                logger.warning("sweep: %s", error)
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
        """Know what the last process knew before anything is judged."""
        while True:
            try:
                await self.components.health.load()
            except (KubeError, *UNREADABLE) as error:
                logger.warning("records of the nodes: %s", error)
                await asyncio.sleep(1.0)
            else:
                return

    async def _elect(self) -> None:
        try:
            await self._elector.run()
        except NotLeaderError as error:
            # Another may lead by now. All that this process knows, and has under way, ends here.
            self._give_up(str(error))

    def _give_up(self, why: str) -> None:
        """End at once; the next process begins as a standby."""
        logger.critical("%s: the process ends", why)
        logging.shutdown()
        os._exit(LEASE_LOST_EXIT_CODE)

    async def _take_over(self) -> None:
        """Become as a process that has just been started, with full caches.

        The former leader has written until a moment ago. What decides about sandboxes must be no
        older than our lease: its bindings, and what it has kept of the nodes.

        Raises:
            TimeoutError: it cannot be read within two durations of the lease. Another may be able
                to, but not while we hold the lease.
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
        """Decide, now that every cache is complete: a partial view creates and deletes."""
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
            "runtimes": lambda: queues.runtimes.run(self.components.runtime_reconciler.reconcile),
            "prober": self.components.prober.run,
            "inquiry": self.components.inquiry.run,
            "records": self.components.records.run,
            "sweep": self._sweep,
            "kopf": self._kopf,
        }
        if (nodes := queues.nodes) is not None:
            running["nodes"] = lambda: self._keep_nodes(nodes)
        async with asyncio.TaskGroup() as parts:
            for name, part in running.items():
                parts.create_task(self._survive(name, part))

    async def _keep_nodes(self, nodes: WorkQueue[str]) -> None:
        """Keep what is ours on nodes, once every pool was looked at: none of it goes by mistake."""
        for _ in range(FIRST_LOOKS):
            if not any(map(self.components.cluster.lacks_verdict, self.components.pools)):
                break
            await asyncio.sleep(FIRST_LOOK_SECONDS)
        await nodes.run(self.components.publisher.reconcile)

    async def run(self) -> None:
        """Run until a signal comes, or the lease is lost.

        Raises:
            ListenError: metrics or probes cannot be served.
            StartError: the cluster lacks what cannot be done without.
        """
        self._main = asyncio.current_task()
        self._take_signals()
        async with self._serving():
            with suppress(asyncio.CancelledError):
                async with bare_client(self._info, self._metrics) as client:
                    await preflight.check(client, self._settings)
                await self.operate()

    @asynccontextmanager
    async def _serving(self) -> AsyncGenerator[None]:
        """Answer probes and scrapes, whether we lead or stand by."""
        settings = self._settings
        async with AsyncExitStack() as doors:
            reviewer = None
            if settings.metrics_auth:
                # A client of its own: one that stands by may ask too, and no renewal of the lease
                # waits for whoever scrapes.
                reviewer = Reviewer(
                    await doors.enter_async_context(bare_client(self._info, self._metrics))
                )
            health = await web.serve_health(*settings.health_listen, self._watches.blind)
            doors.push_async_callback(health.close)
            metrics = await web.serve_metrics(
                *settings.listen, self.components.exposition, reviewer
            )
            doors.push_async_callback(metrics.close)
            doors.callback(self.components.exposition.close)
            yield

    def _take_signals(self) -> None:
        """Let a signal end everything at once, so that the next leader need not wait."""
        if self._main is not None:
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, self._main.cancel)

    async def operate(self) -> None:
        """Do all but answer probes and scrapes."""
        try:
            async with self._connected(), asyncio.TaskGroup() as parts:
                for name, informer in self._watches:
                    parts.create_task(self._survive(f"watch of {name}", informer.run))
                parts.create_task(self._survive("measurement", self._measure_loop))
                await self._watches.synced()
                async with self._leading(parts):
                    await self._lead()
        finally:
            self.components.queues.close()
            self.components.pool_reconciler.close()

    async def _lead(self) -> None:
        try:
            await self._take_over()
        except TimeoutError:
            # Nothing was written yet, so the next one need not wait.
            await self._elector.release()
            self._give_up("what the former leader has left cannot be read in time")
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
    async def _leading(self, parts: asyncio.TaskGroup) -> AsyncGenerator[None]:
        """Wait for the lease, hold it, and give it back when all has been said."""
        background = [parts.create_task(self._elect())]
        try:
            await self._elector.leading.wait()
            background += [
                parts.create_task(self._survive("list", self._list_what_kopf_watches)),
                parts.create_task(self._survive("events", self.components.events.run)),
            ]
            yield
        finally:
            for task in background:
                task.cancel()
            await self._elector.release()

    async def _kopf(self) -> None:
        """Watch pools and classes; what is missed while it is down the minute's list tells."""
        await handlers.watch(
            # Asked anew at each start: a token is often refused because it is old.
            connection=connection_info,
            on_pool=lambda body, deleted: self.components.pools.observe(body, deleted=deleted),
            on_class=lambda body, deleted: self.components.classes.observe(body, deleted=deleted),
        )


async def run(settings: Settings) -> None:
    """Run one operator until it is told to stop."""
    await Operator(settings, connection_info()).run()
