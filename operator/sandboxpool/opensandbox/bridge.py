"""Runs one process of the bridge: as a standby, at the take-over and as the leader."""

import asyncio
import logging
import os
import signal
import socket
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import kopf

from sandboxpool.api import names as own_names
from sandboxpool.api.opensandbox import LABEL_OPENSANDBOX
from sandboxpool.api.v1alpha1 import SandboxClaim
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.clock import ServerClock
from sandboxpool.kube.credentials import connection_info
from sandboxpool.kube.errors import NotLeaderError
from sandboxpool.kube.events import EventRecorder
from sandboxpool.kube.informer import Informer, Object
from sandboxpool.kube.lease import LeaderElector, boot_clock
from sandboxpool.kube.watches import Watches
from sandboxpool.kube.workqueue import WorkQueue
from sandboxpool.observability import web
from sandboxpool.observability.exposition import Exposition
from sandboxpool.opensandbox import names
from sandboxpool.opensandbox.collection import Collection
from sandboxpool.opensandbox.executor import Executor
from sandboxpool.opensandbox.kinds import BatchSandbox, Mirror, SandboxPool
from sandboxpool.opensandbox.metrics import BridgeMetrics
from sandboxpool.opensandbox.mirror import MirrorReconciler
from sandboxpool.opensandbox.reconcile import SandboxReconciler
from sandboxpool.opensandbox.settings import Settings
from sandboxpool.util.supervision import supervise

logger = logging.getLogger(__name__)

USER_AGENT = "sandboxpool-opensandbox"
LEASE_LOST_EXIT_CODE = 3
MIRROR_WORKERS = 4

Key = tuple[str, str]
T = TypeVar("T", bound=Object)


class Bridge:
    """One process of the bridge, connected to one cluster.

    Args:
        settings: the bridge's settings.
        info: the address and credentials of the API server.
        executor: delivers tasks.
        client: the client to use; created from ``info`` if None.
        wall: this machine's clock, in seconds since the epoch.
        clock: a monotonic clock, in seconds, that includes the time of a suspension.
    """

    def __init__(
        self,
        settings: Settings,
        info: kopf.ConnectionInfo,
        *,
        executor: Executor | None = None,
        client: ApiClient | None = None,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        self._settings = settings
        self._executor = executor or Executor()
        self._main: asyncio.Task[Any] | None = None
        # Kinds whose lists were answered with 404.
        self._missing: dict[str, str] = {}
        self._server_clock = server_clock = ServerClock(wall, clock)
        self._watches = Watches()
        self.metrics = BridgeMetrics()
        connect = partial(
            ApiClient,
            info,
            user_agent=USER_AGENT,
            observe=self.metrics.request,
            on_date=server_clock.observe,
        )
        self._lease_client = client or connect()
        self._elector = LeaderElector(
            self._lease_client,
            settings.namespace,
            name=f"{settings.release}-opensandbox",
            identity=f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}",
            times=settings.lease,
            clock=clock,
            wall=server_clock,
            not_ready_reason=lambda: "; ".join(self.not_ready()),
        )
        self._client = client or connect(before_write=self._elector.require_leadership)
        self._events = EventRecorder(
            self._client, "sandboxpool-opensandbox", socket.gethostname(), wall=server_clock
        )
        self._sandbox_queue: WorkQueue[Key] = WorkQueue(
            "batchsandboxes", max_concurrent=settings.opensandbox_workers
        )
        self._mirror_queue: WorkQueue[Key] = WorkQueue("pools", max_concurrent=MIRROR_WORKERS)
        # In the order in which a new leader processes their objects.
        ours = own_names.API_VERSION
        pools = self._watch(ours, own_names.POOLS, SandboxPool, self._pool_changed)
        mirrors = self._watch(names.API_VERSION, names.POOLS, Mirror, self._mirror_changed)
        claims = self._watch(
            ours,
            own_names.CLAIMS,
            SandboxClaim,
            self._claim_changed,
            label_selector=LABEL_OPENSANDBOX,
        )
        sandboxes = self._watch(
            names.API_VERSION,
            names.BATCH_SANDBOXES,
            BatchSandbox,
            self._sandbox_changed,
        )
        self._mirrors = MirrorReconciler(
            client=self._client,
            pools=pools,
            mirrors=mirrors,
            events=self._events,
            clock=clock,
        )
        self._sandboxes = SandboxReconciler(
            client=self._client,
            sandboxes=sandboxes,
            claims=claims,
            pools=pools,
            mirrors=mirrors,
            executor=self._executor,
            events=self._events,
            metrics=self.metrics,
            enqueue=self._sandbox_queue.add,
            exclusive=settings.opensandbox_exclusive,
            wall=server_clock,
            clock=clock,
        )
        self._caches = (sandboxes, claims, pools, mirrors)

    def _watch(
        self,
        api_version: str,
        plural: str,
        type_: type[T],
        on_change: Callable[[T | None, T | None], None],
        *,
        label_selector: str | None = None,
    ) -> Collection[T]:
        informers = {}
        kind = f"{plural}.{api_version.partition('/')[0]}"
        for namespace in self._settings.opensandbox_namespaces:
            name = f"{kind} of {namespace}"
            informer = Informer(
                self._client,
                resource_path(api_version, plural, namespace),
                type_,
                on_change,
                label_selector=label_selector,
                on_restart=partial(self._watch_restarted, name, kind),
            )
            informer.hold_notifications()
            self._watches.add(name, informer)
            informers[namespace] = informer
        return Collection(informers)

    def _watch_restarted(self, name: str, kind: str, cause: str) -> None:
        if cause == "404":
            self._missing[name] = f"{kind} (its CustomResourceDefinition is not installed)"
        else:
            self._missing.pop(name, None)

    def not_ready(self) -> list[str]:
        """What keeps the process from serving, each with its reason."""
        return [
            self._missing.get(problem.partition(" (")[0], problem)
            for problem in self._watches.not_synced()
        ]

    def _pool_changed(self, old: SandboxPool | None, new: SandboxPool | None) -> None:
        self._sandboxes.pool_changed(old, new)
        pool = new or old
        if pool is not None:
            self._mirror_queue.add(pool.key)

    def _mirror_changed(self, old: Mirror | None, new: Mirror | None) -> None:
        self._sandboxes.mirror_changed(old, new)
        mirror = new or old
        if mirror is not None:
            self._mirror_queue.add((mirror.metadata.namespace, mirror.metadata.name))

    def _claim_changed(self, old: SandboxClaim | None, new: SandboxClaim | None) -> None:
        self._sandboxes.claim_changed(old, new)

    def _sandbox_changed(self, old: BatchSandbox | None, new: BatchSandbox | None) -> None:
        self._sandboxes.sandbox_changed(old, new)

    # --- The life of the process -----------------------------------------------------------------

    async def run(self) -> None:
        """Run until a signal arrives or the lease is lost.

        Raises:
            ListenError: metrics or probes cannot be served.
        """
        self._main = asyncio.current_task()
        assert self._main is not None, "a coroutine runs in a task"
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._main.cancel)
        with suppress(asyncio.CancelledError):
            async with self._serving():
                await self.operate()

    @asynccontextmanager
    async def _serving(self) -> AsyncGenerator[None]:
        exposition = Exposition(self.metrics.registry, self._refresh_metrics)
        async with AsyncExitStack() as servers:
            health = await web.serve_health(*self._settings.health_listen, self.not_ready)
            servers.push_async_callback(health.close)
            metrics = await web.serve_metrics(*self._settings.listen, exposition)
            servers.push_async_callback(metrics.close)
            servers.callback(exposition.close)
            yield

    async def _refresh_metrics(self) -> None:
        self.metrics.count_waiting(self._sandboxes.waiting())

    async def operate(self) -> None:
        """Watch, wait for the lease and lead; probes and metrics are served elsewhere."""
        try:
            async with (
                self._lease_client,
                self._client,
                self._executor,
                asyncio.TaskGroup() as tasks,
            ):
                for name, informer in self._watches:
                    tasks.create_task(self._supervise(f"watch of {name}", informer.run))
                await self._watches.wait_for_sync()
                electing = tasks.create_task(self._elect())
                try:
                    await self._elector.leading.wait()
                    await self._lead()
                finally:
                    electing.cancel()
                    await self._elector.release()
        finally:
            self._sandbox_queue.close()
            self._mirror_queue.close()

    async def _supervise(
        self, name: str, component: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        await supervise(
            name, component, on_restart=lambda part: self.metrics.restarts.labels(part).inc()
        )

    async def _elect(self) -> None:
        try:
            await self._elector.run()
        except NotLeaderError as error:
            # Another process may lead by now, so requests in flight must not be continued.
            self._exit(str(error))

    def _exit(self, why: str) -> None:
        logger.critical("%s: the process exits, and is a standby after its restart", why)
        logging.shutdown()
        os._exit(LEASE_LOST_EXIT_CODE)

    async def _lead(self) -> None:
        try:
            async with asyncio.timeout(2 * self._settings.lease.lease_duration):
                # What the former leader wrote until a moment ago.
                for cache in self._caches:
                    await cache.relist()
        except TimeoutError:
            await self._elector.release()
            self._exit("the objects cannot be read in time to lead")
            raise
        for _, informer in self._watches:
            await informer.release_notifications()
        self.metrics.leader.set(1)
        components: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "batchsandboxes": lambda: self._sandbox_queue.run(self._sandboxes.reconcile),
            "pools": lambda: self._mirror_queue.run(self._mirrors.reconcile),
            "events": self._events.run,
        }
        async with asyncio.TaskGroup() as tasks:
            for name, component in components.items():
                tasks.create_task(self._supervise(name, component))


async def run(settings: Settings) -> None:
    """Run one bridge until a signal arrives."""
    await Bridge(settings, connection_info()).run()
