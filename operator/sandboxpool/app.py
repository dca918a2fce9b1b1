"""The composition root: builds the parts, connects them, runs them, stops them.

Nothing else knows all the parts. What a change of an object sets in motion is in ``reactions``.
"""

import asyncio
import logging
import os
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import kopf

from sandboxpool import handlers, preflight, web
from sandboxpool.api import names
from sandboxpool.api.core import Event, Node, Pod
from sandboxpool.api.v1alpha1 import SandboxClaim, SandboxRuntime
from sandboxpool.cache import Cluster
from sandboxpool.claims.allocator import Allocator
from sandboxpool.claims.offers import Offers
from sandboxpool.claims.reconcile import ClaimReconciler
from sandboxpool.exposition import Exposition
from sandboxpool.fleet.gather import FleetGatherer
from sandboxpool.fleet.health import Health
from sandboxpool.fleet.prober import Prober
from sandboxpool.fleet.publish import NodePublisher
from sandboxpool.fleet.reconcile import RuntimeReconciler
from sandboxpool.fleet.records import NodeRecords
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.clock import ServerClock
from sandboxpool.kube.credentials import connection_info
from sandboxpool.kube.errors import UNREADABLE, KubeError, NotLeaderError
from sandboxpool.kube.events import EventRecorder
from sandboxpool.kube.informer import BLIND_SECONDS, Informer
from sandboxpool.kube.lease import Elector, boot_clock
from sandboxpool.kube.workqueue import WorkQueue
from sandboxpool.listing import take_list
from sandboxpool.metrics import ClusterCollector, Metrics
from sandboxpool.pools.inquiry import Inquiry
from sandboxpool.pools.pool import Pool
from sandboxpool.pools.reconcile import PoolReconciler
from sandboxpool.pools.store import PoolStore
from sandboxpool.reactions import Queues, Reactions
from sandboxpool.references import Reference
from sandboxpool.runtimes.diagnosis import FAILED_CREATE_SANDBOX
from sandboxpool.runtimes.issues import IssueBook
from sandboxpool.runtimes.probe import LABEL_PROBE
from sandboxpool.runtimes.store import RuntimeStore
from sandboxpool.settings import Settings
from sandboxpool.webauth import Reviewer

logger = logging.getLogger(__name__)

LIST_SECONDS = 60.0
# A new leader labels no node before it has looked at all pools; it asks so often, and goes on then.
FIRST_LOOKS = 300
FIRST_LOOK_SECONDS = 0.2
# Nodes labelled at once: a pool's first sandboxes wait for those that are not to be used.
NODE_WORKERS = 4
SWEEP_SECONDS = 60.0
LAG_PROBE_SECONDS = 0.5
LAG_WINDOW = 20
FLUSH_SECONDS = 1.0
LEASE_LOST_EXIT_CODE = 3
# A part that fails is started anew after a pause, which grows unless it has run for a while.
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
STEADY_SECONDS = 300.0
USER_AGENT = "sandboxpool-operator"

POOLS_PATH = resource_path(names.API_VERSION, names.POOLS)
CLASSES_PATH = resource_path("node.k8s.io/v1", "runtimeclasses")


def _rank(about: Reference) -> int:
    """Whose events go first: the fleet's are for many, and a claim's for its author alone."""
    if not about.namespace:
        return 0
    return 2 if about.kind == names.CLAIM_KIND else 1


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
        # Whatever is compared with times in API objects is reckoned in the API server's time.
        wall = self._server_clock = ServerClock(wall, clock)
        self._main: asyncio.Task[Any] | None = None
        self._metrics = Metrics(lambda key: self._pools.get(key) is not None)
        self._client = client or ApiClient(
            info,
            user_agent=USER_AGENT,
            observe=self._metrics.request,
            permit=lambda: self._elector.require(),
            on_date=self._server_clock.observe,
        )
        self._lease_client = client or ApiClient(
            info,
            user_agent=USER_AGENT,
            observe=self._metrics.request,
            on_date=self._server_clock.observe,
        )
        self._elector = Elector(
            self._lease_client,
            settings.namespace,
            # Not even the next process in the same container has the same.
            identity=f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}",
            times=settings.lease,
            clock=clock,
            wall=wall,
            unfit=lambda: "; ".join(self._blind()),
        )
        self._cluster = Cluster(settings.proof_max_age, wall)
        self._cluster.nodes.on_mark = lambda node: self._reactions.mark(node)
        self._cluster.nodes.name_hostnames(not settings.exclusion_labels)
        self._allocator = Allocator(lambda *held: self._reactions.held(*held))
        self._queues = Queues(
            pools=WorkQueue("pools", self._metrics.queue("pools"), places=settings.pool_workers),
            claims=WorkQueue(
                "claims", self._metrics.queue("claims"), self._lane_of, settings.claim_workers
            ),
            runtimes=WorkQueue("runtimes", self._metrics.queue("runtimes"), places=1),
            nodes=WorkQueue("nodes", self._metrics.queue("nodes"), places=NODE_WORKERS)
            if settings.publish_on_nodes or settings.exclusion_labels
            else None,
        )
        # What the parts call when something has changed; each call comes long after this line.
        self._pools = PoolStore(lambda o, n: self._react(self._reactions.pool, o, n))
        self._classes = RuntimeStore(
            self._cluster.classes, lambda n: self._react(self._reactions.runtime_class, n)
        )
        self._offers = Offers(
            self._cluster,
            self._pools,
            self._allocator,
            is_leaving=lambda pool, pod: self._pool_reconciler.is_leaving(pool, pod),
            on_granted=lambda claim: self._reactions.granted(claim),
        )
        self._events = EventRecorder(
            self._client,
            "sandboxpool",
            socket.gethostname(),
            rank=_rank,
            on_drop=self._metrics.dropped_events.inc,
            wall=wall,
        )
        self._issues = IssueBook()
        self._records = NodeRecords(self._client, settings.namespace, clock)
        self._inquiry = Inquiry(self._client, lambda pod: self._reactions.told(pod))
        self._pool_reconciler = PoolReconciler(
            client=self._client,
            cluster=self._cluster,
            pools=self._pools,
            allocator=self._allocator,
            offers=self._offers,
            events=self._events,
            observer=self._metrics,
            on_startup_sample=self._on_startup_sample,
            on_start_timeout=lambda pod: self._health.observe_timeout(pod),
            look_at=self._queues.pools.add,
            wake_claim=lambda claim: self._reactions.wake_claim(claim),
            inquiry=self._inquiry,
            probe=settings.probe_image,
            guarded=settings.admission_policy,
            pods_age=lambda: self._pods.age(),
            wall=wall,
            clock=clock,
        )
        self._claims = self._informer(
            names.API_VERSION, names.CLAIMS, SandboxClaim, lambda o, n: self._reactions.claim(o, n)
        )
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
            told=self._inquiry.told,
            wall=wall,
            clock=clock,
        )
        self._prober = Prober(
            client=self._client,
            namespace=settings.namespace,
            image=settings.probe_image,
            options=settings.probe_options,
            wishes=lambda: self._health.wishes(),
            nodes=self._cluster.nodes.get,
            classes=self._cluster.classes.get,
            sandbox_event=self._cluster.events.message,
            inquiry=self._inquiry,
            on_taken=lambda wish: self._health.observe_wish(wish),
            on_result=lambda *result: self._health.observe_probe(*result),
            make_room=lambda wish: self._health.make_room(wish),
            on_stuck=lambda *stuck: self._health.observe_stuck(*stuck),
            wall=wall,
            seed=lambda: uuid.uuid4().hex,
        )
        self._reactions = Reactions(
            cluster=self._cluster,
            pools=self._pools,
            allocator=self._allocator,
            offers=self._offers,
            pool_reconciler=self._pool_reconciler,
            claim_reconciler=self._claim_reconciler,
            health=lambda: self._health,
            prober=self._prober,
            inquiry=self._inquiry,
            events=self._events,
            metrics=self._metrics,
            queues=self._queues,
        )
        self._health = Health(
            cluster=self._cluster,
            issues=self._issues,
            records=self._records,
            listener=self._reactions,
            pools=self._pools,
            wall=wall,
        )
        self._fleet = FleetGatherer(
            cluster=self._cluster,
            pools=self._pools,
            issues=self._issues,
            wall=wall,
            clock=clock,
        )
        self._runtime_reconciler = RuntimeReconciler(
            client=self._client,
            gather=self._fleet.gather,
            events=self._events,
            clock=clock,
        )
        self._pods = self._informer(
            "v1", "pods", Pod, self._reactions.pod, label_selector=names.LABEL_POOL_UID
        )
        self._probes = self._informer(
            "v1",
            "pods",
            Pod,
            self._prober.observe,
            namespace=settings.namespace,
            label_selector=LABEL_PROBE,
        )
        self._nodes = self._informer("v1", "nodes", Node, self._reactions.node)
        self._publisher = NodePublisher(
            client=self._client,
            cluster=self._cluster,
            get=lambda name: self._nodes.get("", name),
            wall=wall,
            clock=clock,
            exclude=settings.exclusion_labels,
            publish=settings.publish_on_nodes,
            on_change=self._reactions.labels_changed,
        )
        self._sandbox_events = self._informer(
            "v1",
            "events",
            Event,
            self._reactions.sandbox_event,
            field_selector=f"reason={FAILED_CREATE_SANDBOX},involvedObject.kind=Pod",
        )
        self._runtimes = self._informer(
            names.API_VERSION,
            names.RUNTIMES,
            SandboxRuntime,
            self._on_runtime,
        )
        # In the order in which a new leader takes their objects in.
        self._informers = {
            "nodes": self._nodes,
            "events": self._sandbox_events,
            "pods": self._pods,
            "probe pods": self._probes,
            "sandboxclaims": self._claims,
            "sandboxruntimes": self._runtimes,
        }
        for name, informer in self._informers.items():
            self._metrics.watch_age.labels(name).set_function(informer.age)
            # A standby's caches are warm, and everything that remembers or decides is as new as
            # in a process that has just been started: it comes to life when the lease is ours.
            informer.mute()
        self._listed = asyncio.Event()
        collector = ClusterCollector(
            self._cluster, self._pools, self._allocator, self._offers, wall
        )
        self._metrics.registry.register(collector)
        self._exposition = Exposition(self._metrics.registry, collector.refresh)

    def _informer(
        self,
        api_version: str,
        resource: str,
        type_: type[Any],
        on_change: Callable[[Any, Any], None],
        namespace: str | None = None,
        **selectors: str,
    ) -> Informer[Any]:
        return Informer(
            self._client,
            resource_path(api_version, resource, namespace),
            type_,
            on_change,
            on_restart=lambda cause: self._metrics.watch_restarted(resource, cause),
            **selectors,
        )

    def _lane_of(self, key: tuple[str, str]) -> tuple[str, str]:
        """Claims of one pool stand in one line: a burst on it holds up no other pool's."""
        claim = self._claims.get(*key)
        return key if claim is None else (key[0], claim.spec.poolName)

    def _on_startup_sample(self, pool: Pool, stage: str, seconds: float) -> None:
        resolution = self._cluster.resolution(pool)
        if resolution is not None and resolution.runtime is not None:
            runtime = resolution.runtime
            self._metrics.startup(pool, runtime.handler, stage, seconds)
            self._fleet.measured(runtime.class_name, stage, seconds)

    def _on_runtime(self, old: SandboxRuntime | None, new: SandboxRuntime | None) -> None:
        if self._runtime_reconciler.observe(old, new):
            self._queues.runtimes.add((new or old).metadata.name)  # type: ignore[union-attr]

    def _react(self, react: Callable[..., None], *states: Any) -> None:
        """Set in motion what follows from a change; if that fails, other changes still count."""
        try:
            react(*states)
        except Exception:
            names_of = [getattr(state, "key", state) for state in states]
            logger.exception("a change could not be taken in: %s", names_of)

    # --- Running ---------------------------------------------------------------------------------

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
            if loop.time() - began >= STEADY_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            logger.warning("%s: %s; it is started anew in %.0f s", name, cause, pause)
            self._metrics.restarts.labels(name).inc()
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _blind(self) -> list[str]:
        """What this process cannot see at this moment; it can neither lead nor take over then."""
        found = []
        for name, informer in self._informers.items():
            if not informer.synced.is_set():
                found.append(f"{name} (not listed yet)")
            elif (age := informer.age()) > BLIND_SECONDS:
                found.append(f"{name} (its watch shows no sign of life for {age:.0f} s)")
        return found

    async def _list_what_kopf_watches(self) -> None:
        """List pools and classes every minute: kopf never says what vanished behind its back."""
        while True:
            try:
                await take_list(self._client, CLASSES_PATH, self._classes)
                await take_list(self._client, POOLS_PATH, self._pools)
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
                await self._claim_reconciler.sweep()
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
                await self._health.load()
            except (KubeError, *UNREADABLE) as error:
                logger.warning("records of the nodes: %s", error)
                await asyncio.sleep(1.0)
            else:
                return

    async def _all_synced(self) -> None:
        for cache in self._informers.values():
            await cache.synced.wait()

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
        deadline = asyncio.get_running_loop().time() + 2 * self._settings.lease.duration
        async with asyncio.timeout_at(deadline), asyncio.TaskGroup() as reading:
            reading.create_task(self._pods.relist())
            reading.create_task(self._claims.relist())
            reading.create_task(self._load_records())
        for informer in self._informers.values():
            await informer.unmute()
        async with asyncio.timeout_at(deadline):
            await self._listed.wait()

    async def _work(self) -> None:
        """Decide, now that every cache is complete: a partial view creates and deletes."""
        logger.info(
            "caches synced: %d pools, %d claims, %d pods, %d nodes",
            len(self._pools),
            len(self._claims),
            len(self._pods),
            len(self._nodes),
        )
        self._health.forget_missing()
        queues = self._queues
        running: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "claims": lambda: queues.claims.work(self._claim_reconciler.reconcile),
            "pools": lambda: queues.pools.work(self._pool_reconciler.reconcile),
            "runtimes": lambda: queues.runtimes.work(self._runtime_reconciler.reconcile),
            "prober": self._prober.run,
            "inquiry": self._inquiry.run,
            "records": self._records.run,
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
            if not any(map(self._cluster.is_unjudged, self._pools)):
                break
            await asyncio.sleep(FIRST_LOOK_SECONDS)
        await nodes.work(self._publisher.reconcile)

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
                async with self._bare_client() as client:
                    await preflight.check(client, self._settings)
                await self.operate()

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        """Answer probes and scrapes, whether we lead or stand by."""
        settings = self._settings
        async with AsyncExitStack() as doors:
            reviewer = None
            if settings.metrics_auth:
                # A client of its own: one that stands by may ask too, and no renewal of the lease
                # waits for whoever scrapes.
                reviewer = Reviewer(await doors.enter_async_context(self._bare_client()))
            health = await web.serve_health(settings.health_host, settings.health_port, self._blind)
            doors.push_async_callback(health.close)
            metrics = await web.serve_metrics(
                settings.host, settings.port, self._exposition, reviewer
            )
            doors.push_async_callback(metrics.close)
            doors.callback(self._exposition.close)
            yield

    def _bare_client(self) -> ApiClient:
        """One that needs no lease for its writes: what it asks is a POST, and changes nothing."""
        return ApiClient(self._info, user_agent=USER_AGENT, observe=self._metrics.request)

    def _take_signals(self) -> None:
        """Let a signal end everything at once, so that the next leader need not wait."""
        if self._main is not None:
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, self._main.cancel)

    async def operate(self) -> None:
        """Do all but answer probes and scrapes."""
        try:
            async with self._connected(), asyncio.TaskGroup() as parts:
                for name, informer in self._informers.items():
                    parts.create_task(self._survive(f"watch of {name}", informer.run))
                parts.create_task(self._survive("measurement", self._measure_loop))
                await self._all_synced()
                async with self._leading(parts):
                    await self._lead()
        finally:
            self._queues.close()
            self._pool_reconciler.close()

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
            await self._records.flush(FLUSH_SECONDS)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as clients:
            for client in {self._client, self._lease_client}:
                await clients.enter_async_context(client)
            yield

    @asynccontextmanager
    async def _leading(self, parts: asyncio.TaskGroup) -> AsyncIterator[None]:
        """Wait for the lease, hold it, and give it back when all has been said."""
        background = [parts.create_task(self._elect())]
        try:
            await self._elector.leading.wait()
            background += [
                parts.create_task(self._survive("list", self._list_what_kopf_watches)),
                parts.create_task(self._survive("events", self._events.run)),
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
            on_pool=lambda body, deleted: self._pools.observe(body, deleted=deleted),
            on_class=lambda body, deleted: self._classes.observe(body, deleted=deleted),
        )


async def run(settings: Settings) -> None:
    """Run one operator until it is told to stop."""
    await Operator(settings, connection_info()).run()
