"""Prometheus metrics.

What can be counted from the caches is counted when it is scraped, so the series of a deleted pool
disappear with it. The caches belong to the event loop, which binds claims: the count gives way to
it every few milliseconds.
"""

import time
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import islice
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sandboxpool.allocation.allocator import Allocator
from sandboxpool.allocation.candidate_tracker import CandidateTracker
from sandboxpool.api.times import epoch
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.pool import Pool
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.pools.member_index import MemberFacts, MemberIndex
from sandboxpool.pools.status import former_runtime
from sandboxpool.runtimes.verdict import HandlerState
from sandboxpool.sandboxes.members import Members
from sandboxpool.util.cooperative import CooperativeYield

CLAIM_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)
STARTUP_BUCKETS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 30, 60, 120, 300)
QUEUE_BUCKETS = (0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60)

# Pods that are counted between two looks at the clock.
PODS_A_LOOK = 50


Key = tuple[str, str]
M = TypeVar("M", Counter, Histogram)

# No object has an empty name.
NO_POOL = "", ""


class Metrics:
    """All metrics of the operator, in one registry.

    Args:
        has_pool: whether there is a pool of this namespace and name. Only such have series of their
            own: the author of a claim may invent any name, and a claim can outlive its pool.
    """

    def __init__(self, has_pool: Callable[[Key], bool] = lambda key: True) -> None:
        self.registry = CollectorRegistry()
        self._has_pool = has_pool
        # What is counted of a pool goes with it.
        self._of_pool: defaultdict[Key, set[tuple[Counter | Histogram, tuple[str, ...]]]] = (
            defaultdict(set)
        )
        self._claims = Counter(
            "sandboxpool_claims",
            "Claims by how they ended: bound, or the reason of their failure. "
            "Those of pools that do not exist have an empty namespace and pool.",
            ("namespace", "pool", "result", "source"),
            registry=self.registry,
        )
        self._claim_seconds = Histogram(
            "sandboxpool_claim_duration_seconds",
            "From the moment a claim is seen to its bound status being written.",
            ("namespace", "pool", "source"),
            buckets=CLAIM_BUCKETS,
            registry=self.registry,
        )
        self._startup_seconds = Histogram(
            "sandboxpool_startup_duration_seconds",
            "From the creation of a sandbox to the end of a stage of its start.",
            ("runtime_class", "handler", "stage"),
            buckets=STARTUP_BUCKETS,
            registry=self.registry,
        )
        self._failures = Counter(
            "sandboxpool_failures",
            "Sandboxes that did not start, or could not be created, by reason.",
            ("namespace", "pool", "runtime_class", "reason"),
            registry=self.registry,
        )
        self._breakers = Counter(
            "sandboxpool_breaker_transitions",
            "Nodes that were quarantined for a handler, or released.",
            ("handler", "to"),
            registry=self.registry,
        )
        self._probes = Counter(
            "sandboxpool_probes",
            "Probe pods by what they showed; positive controls have no handler.",
            ("handler", "outcome"),
            registry=self.registry,
        )
        self._requests = Counter(
            "sandboxpool_api_requests",
            "Requests to the API server.",
            ("verb", "code"),
            registry=self.registry,
        )
        self._request_seconds = Histogram(
            "sandboxpool_api_request_duration_seconds",
            "Duration of requests to the API server, watches excluded.",
            ("verb",),
            buckets=CLAIM_BUCKETS,
            registry=self.registry,
        )
        self._watch_restarts = Counter(
            "sandboxpool_watch_restarts",
            "Watches that had to start again, by cause.",
            ("resource", "cause"),
            registry=self.registry,
        )
        self.watch_age = Gauge(
            "sandboxpool_watch_age_seconds",
            "Seconds since a watch has last shown a sign of life; above 120 nothing is decided.",
            ("resource",),
            registry=self.registry,
        )
        self.dropped_events = Counter(
            "sandboxpool_events_dropped",
            "Events that were not posted because too many waited.",
            registry=self.registry,
        )
        self.restarts = Counter(
            "sandboxpool_restarts",
            "Parts of the process that have ended or failed and were started anew.",
            ("part",),
            registry=self.registry,
        )
        self.leader = Gauge(
            "sandboxpool_leader",
            "1 in the process that leads, 0 in one that stands by.",
            registry=self.registry,
        )
        self.loop_lag = Gauge(
            "sandboxpool_loop_lag_seconds",
            "How late the event loop ran a timer, the worst of the last ten seconds.",
            registry=self.registry,
        )
        self.tasks = Gauge(
            "sandboxpool_asyncio_tasks",
            "Tasks of the event loop.",
            registry=self.registry,
        )
        self._depth = Gauge("workqueue_depth", "Keys that wait.", ("name",), registry=self.registry)
        self._adds = Counter(
            "workqueue_adds", "Keys that were added.", ("name",), registry=self.registry
        )
        self._retries = Counter(
            "workqueue_retries", "Keys that failed.", ("name",), registry=self.registry
        )
        self._waited = Histogram(
            "workqueue_queue_duration_seconds",
            "How long keys waited.",
            ("name",),
            buckets=QUEUE_BUCKETS,
            registry=self.registry,
        )
        self._worked = Histogram(
            "workqueue_work_duration_seconds",
            "How long keys were worked on.",
            ("name",),
            buckets=QUEUE_BUCKETS,
            registry=self.registry,
        )

    # --- Observers of the parts ----------------------------------------------------------------

    def request(self, verb: str, code: str, seconds: float) -> None:
        """One request to the API server."""
        self._requests.labels(verb, code).inc()
        if verb != "WATCH":
            self._request_seconds.labels(verb).observe(seconds)

    def watch_restarted(self, resource: str, cause: str) -> None:
        """A watch has to start again."""
        self._watch_restarts.labels(resource, cause).inc()

    def claim_bound(self, pool: Pool, source: str, seconds: float) -> None:
        """A claim was bound so many seconds after it was seen."""
        self._series(self._claims, pool.key, "Bound", source).inc()
        self._series(self._claim_seconds, pool.key, source).observe(seconds)

    def claim_finished(self, namespace: str, pool: str, phase: str, reason: str) -> None:
        """A claim failed, expired or lost its pod."""
        del phase
        self._series(self._claims, (namespace, pool), reason, "").inc()

    def sandbox_failed(self, pool: Pool, reason: str) -> None:
        """A sandbox did not start, or could not be created."""
        name = pool.spec.runtime_class_name if pool.spec else ""
        self._series(self._failures, pool.key, name, reason).inc()

    def startup(self, pool: Pool, handler: str, stage: str, seconds: float) -> None:
        """A sandbox reached a stage of its start."""
        name = pool.spec.runtime_class_name if pool.spec else ""
        self._startup_seconds.labels(name, handler, stage).observe(seconds)

    def quarantine_changed(self, handler: str, to: str) -> None:
        """A node was quarantined for a handler (``open``), or released (``closed``)."""
        self._breakers.labels(handler, to).inc()

    def probed(self, handler: str, outcome: str) -> None:
        """A probe has ended."""
        self._probes.labels(handler, outcome).inc()

    def queue(self, name: str) -> "QueueMetrics":
        """The observer of one work queue."""
        return QueueMetrics(
            self._depth.labels(name),
            self._adds.labels(name),
            self._retries.labels(name),
            self._waited.labels(name),
            self._worked.labels(name),
        )

    def forget_pool(self, pool: Pool) -> None:
        """Remove the series of a pool that is gone."""
        for metric, labels in self._of_pool.pop(pool.key, ()):
            metric.remove(*pool.key, *labels)

    def _series(self, metric: M, pool: Key, *labels: str) -> M:
        """A metric of one pool; of all that are no pools together, with empty names."""
        if not self._has_pool(pool):
            return metric.labels(*NO_POOL, *labels)
        self._of_pool[pool].add((metric, labels))
        return metric.labels(*pool, *labels)


class QueueMetrics:
    """client-go's metrics of one work queue."""

    def __init__(
        self, depth: Gauge, adds: Counter, retries: Counter, waited: Histogram, worked: Histogram
    ) -> None:
        self._depth = depth
        self._adds = adds
        self._retries = retries
        self._waited = waited
        self._worked = worked

    def added(self, depth: int) -> None:
        """A key entered the queue."""
        self._adds.inc()
        self._depth.set(depth)

    def taken(self, depth: int, waited: float) -> None:
        """A worker took a key that had waited so long."""
        self._depth.set(depth)
        self._waited.observe(waited)

    def finished(self, worked: float) -> None:
        """A worker finished a key."""
        self._worked.observe(worked)

    def retried(self) -> None:
        """A key failed and will be tried again."""
        self._retries.inc()


class _Families:
    """The gauges of one count of all pools."""

    def __init__(self) -> None:
        self.pods = GaugeMetricFamily(
            "sandboxpool_pods",
            "Pods of a pool, by state.",
            labels=("namespace", "pool", "runtime_class", "handler", "state"),
        )
        self.target = GaugeMetricFamily(
            "sandboxpool_target", "Warm sandboxes aimed at.", labels=("namespace", "pool")
        )
        self.lag = GaugeMetricFamily(
            "sandboxpool_refill_lag_seconds",
            "For how long a pool has had fewer warm sandboxes than spec.replicas; 0 at target.",
            labels=("namespace", "pool"),
        )
        self.waiting = GaugeMetricFamily(
            "sandboxpool_claims_waiting",
            "Claims that wait for a sandbox.",
            labels=("namespace", "pool"),
        )
        self.nodes = GaugeMetricFamily(
            "sandboxpool_runtime_nodes",
            "Eligible nodes of a pool, by what they say of its handler, and what is known better.",
            labels=("namespace", "pool", "runtime_class", "handler", "answer"),
        )
        self.ready = GaugeMetricFamily(
            "sandboxpool_pool_condition",
            "Conditions of a pool: 1 if True, 0 if False, -1 if Unknown.",
            labels=("namespace", "pool", "condition", "reason"),
        )

    def all(self) -> tuple[Metric, ...]:
        """In the order in which they are shown."""
        return self.pods, self.target, self.lag, self.waiting, self.nodes, self.ready


class ClusterCollector(Collector):
    """Gauges that are counted from the caches, by ``refresh``; a scrape shows the last count."""

    def __init__(
        self,
        cluster: ClusterCache,
        pools: PoolStore,
        allocator: Allocator,
        candidate_tracker: CandidateTracker,
        wall: Callable[[], float],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._wall = wall
        self._clock = clock
        self._cluster = cluster
        self._pools = pools
        self._allocator = allocator
        self._candidate_tracker = candidate_tracker
        # Scrapes come often, and most pods are as they were at the last one.
        self._member_indexes: dict[str, tuple[MemberIndex, set[str]]] = {}
        self._shown: tuple[Metric, ...] = ()

    def describe(self) -> Iterable[Metric]:
        """Name nothing beforehand: the caches may be empty when this is registered."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Show what was counted last; any thread may ask."""
        return self._shown

    async def refresh(self) -> None:
        """Count, in slices between which the event loop does other work; one at a time."""
        turns = CooperativeYield(self._clock)
        families = _Families()
        # Pools come and go, and change, between two slices.
        for uid in [pool.uid for pool in self._pools]:
            pool = self._pools.by_uid(uid)
            if pool is not None:
                await self._count(pool, families, turns)
                await turns.maybe_yield()
        living = {pool.uid for pool in self._pools}
        self._member_indexes = {
            uid: book for uid, book in self._member_indexes.items() if uid in living
        }
        self._shown = (*families.all(), self._quarantined())

    async def _count(self, pool: Pool, families: _Families, turns: CooperativeYield) -> None:
        resolution = self._cluster.resolution(pool)
        if resolution is None or pool.spec is None:
            return
        states = await self._states(pool, turns)
        handler = resolution.runtime.handler if resolution.runtime else ""
        at = [pool.namespace, pool.name]
        of = [*at, pool.spec.runtime_class_name, handler]
        for state in SandboxState:
            families.pods.add_metric([*of, state.value], states[state])
        families.target.add_metric(at, float(pool.status.get("target", 0)))
        families.waiting.add_metric(at, self._allocator.waiting(pool.uid))
        counts = former_runtime(pool).get("nodes", {})
        for answer in HandlerState:
            families.nodes.add_metric([*of, answer.value], float(counts.get(answer.value, 0)))
        families.lag.add_metric(at, self._lag(pool))
        for condition in pool.conditions:
            holds = {"True": 1.0, "False": 0.0}.get(condition.status, -1.0)
            families.ready.add_metric([*at, condition.type, condition.reason], holds)

    def _quarantined(self) -> Metric:
        quarantined = GaugeMetricFamily(
            "sandboxpool_quarantined_nodes",
            "Nodes that are kept out of a handler's use since sandboxes failed there.",
            labels=("handler",),
        )
        open_by_handler = Tally(handler for (_, handler), _ in self._cluster.quarantines.open())
        for handler in {r.handler for r in self._cluster.classes.values()} | set(open_by_handler):
            quarantined.add_metric([handler], open_by_handler[handler])
        return quarantined

    def _lag(self, pool: Pool) -> float:
        for condition in pool.conditions:
            if condition.type == "Warm" and condition.status == "False":
                return max(0.0, self._wall() - epoch(condition.lastTransitionTime or ""))
        return 0.0

    async def _states(self, pool: Pool, turns: CooperativeYield) -> dict[SandboxState, int]:
        book, seen = self._member_indexes.setdefault(pool.uid, (MemberIndex(), set()))
        pods = self._cluster.pods.of_pool(*pool.identity)
        looked = iter({*pods, *seen})
        seen.clear()
        seen.update(pods)
        members = self._sort(pool, book, ())
        while some := list(islice(looked, PODS_A_LOOK)):
            members = self._sort(pool, book, some)
            await turns.maybe_yield()
        return {state: members.count(state) for state in SandboxState}

    def _sort(self, pool: Pool, book: MemberIndex, uids: Iterable[str]) -> Members:
        host_state = self._cluster.host_state_lookup(pool.proof)
        pods = self._cluster.pods.of_pool(*pool.identity)

        def facts_of(uid: str) -> MemberFacts | None:
            pod = pods.get(uid)
            held = self._allocator.is_allocated(uid)
            return None if pod is None else (pod, host_state(pod), None, False, held, None)

        for uid in uids:
            book.mark_dirty(uid)
        return book.refresh(facts_of, ())
