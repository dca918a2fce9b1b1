"""Prometheus metrics.

Gauges are counted from the caches at a scrape, so the series of a deleted pool disappear with it.
The caches belong to the event loop, which also binds claims, so the count yields to it every few
milliseconds.
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
from sandboxpool.api.v1alpha1 import SandboxRuntime
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.pool import Pool
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.observability.runtime_gauges import UNKNOWN, VALUE_OF_STATUS, runtime_gauges
from sandboxpool.pools.member_index import MemberFacts, MemberIndex
from sandboxpool.pools.status import former_runtime
from sandboxpool.runtimes.verdict import HandlerState
from sandboxpool.sandboxes.members import Members
from sandboxpool.util.cooperative import CooperativeYield

CLAIM_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)
STARTUP_BUCKETS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 30, 60, 120, 300)
QUEUE_BUCKETS = (0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60)

# Pods that are counted before the loop is yielded to, if it is time.
PODS_PER_SLICE = 50

Key = tuple[str, str]
M = TypeVar("M", Counter, Histogram)

# No object has an empty name.
NO_POOL = "", ""


class Metrics:
    """All metrics of the operator, in one registry.

    Args:
        has_pool: whether a pool of this namespace and name exists. Only existing pools have series:
            a claim may name any pool, and can outlive its pool.
    """

    def __init__(self, has_pool: Callable[[Key], bool] = lambda key: True) -> None:
        self.registry = CollectorRegistry()
        self._has_pool = has_pool
        # The series of each pool, which are removed with it.
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
            "From the first observation of a claim to the write of its bound status.",
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
            "Seconds since a watch received anything; above 120 the process does not lead.",
            ("resource",),
            registry=self.registry,
        )
        self.dropped_events = Counter(
            "sandboxpool_events_dropped",
            "Events that were dropped because too many were queued.",
            registry=self.registry,
        )
        self.restarts = Counter(
            "sandboxpool_restarts",
            "Restarts of components of the process that had ended or failed.",
            ("part",),
            registry=self.registry,
        )
        self.leader = Gauge(
            "sandboxpool_leader",
            "1 in the leader, 0 in a standby.",
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

    # --- Observers of the components -----------------------------------------------------------

    def request(self, verb: str, code: str, seconds: float) -> None:
        """One request to the API server."""
        self._requests.labels(verb, code).inc()
        if verb != "WATCH":
            self._request_seconds.labels(verb).observe(seconds)

    def watch_restarted(self, resource: str, cause: str) -> None:
        """A watch is restarted."""
        self._watch_restarts.labels(resource, cause).inc()

    def claim_bound(self, pool: Pool, source: str, seconds: float) -> None:
        """A claim was bound this many seconds after it was first observed."""
        self._series(self._claims, pool.key, "Bound", source).inc()
        self._series(self._claim_seconds, pool.key, source).observe(seconds)

    def claim_finished(self, namespace: str, pool: str, phase: str, reason: str) -> None:
        """A claim has failed, has expired or has lost its pod."""
        del phase
        self._series(self._claims, (namespace, pool), reason, "").inc()

    def sandbox_failed(self, pool: Pool, reason: str) -> None:
        """A sandbox did not start, or could not be created."""
        name = pool.spec.runtime_class_name if pool.spec else ""
        self._series(self._failures, pool.key, name, reason).inc()

    def startup(self, pool: Pool, handler: str, stage: str, seconds: float) -> None:
        """A sandbox reached a start-up stage."""
        name = pool.spec.runtime_class_name if pool.spec else ""
        self._startup_seconds.labels(name, handler, stage).observe(seconds)

    def quarantine_changed(self, handler: str, to: str) -> None:
        """A node was quarantined for a handler (``open``), or released (``closed``)."""
        self._breakers.labels(handler, to).inc()

    def probed(self, handler: str, outcome: str) -> None:
        """A probe has finished."""
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
        """Remove the series of a deleted pool."""
        for metric, labels in self._of_pool.pop(pool.key, ()):
            metric.remove(*pool.key, *labels)

    def _series(self, metric: M, pool: Key, *labels: str) -> M:
        """A pool's series of a metric; one with empty names for all pools that do not exist."""
        if not self._has_pool(pool):
            return metric.labels(*NO_POOL, *labels)
        self._of_pool[pool].add((metric, labels))
        return metric.labels(*pool, *labels)


class QueueMetrics:
    """The metrics of one work queue, named as those of client-go."""

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
        """A worker took a key that had waited this long."""
        self._depth.set(depth)
        self._waited.observe(waited)

    def finished(self, worked: float) -> None:
        """A worker finished a key after this long."""
        self._worked.observe(worked)

    def retried(self) -> None:
        """A key failed and is requeued."""
        self._retries.inc()


class _Families:
    """The gauges of all pools."""

    def __init__(self) -> None:
        self.pods = GaugeMetricFamily(
            "sandboxpool_pods",
            "Pods of a pool, by state.",
            labels=("namespace", "pool", "runtime_class", "handler", "state"),
        )
        self.target = GaugeMetricFamily(
            "sandboxpool_target", "Warm sandboxes wanted.", labels=("namespace", "pool")
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
            "Eligible nodes of a pool, by the state of its handler on them.",
            labels=("namespace", "pool", "runtime_class", "handler", "answer"),
        )
        self.ready = GaugeMetricFamily(
            "sandboxpool_pool_condition",
            "Conditions of a pool: 1 if True, 0 if False, -1 if Unknown.",
            labels=("namespace", "pool", "condition", "reason"),
        )

    def all(self) -> tuple[Metric, ...]:
        """All families, in the order of the exposition."""
        return self.pods, self.target, self.lag, self.waiting, self.nodes, self.ready


def _quarantined_nodes() -> GaugeMetricFamily:
    return GaugeMetricFamily(
        "sandboxpool_quarantined_nodes",
        "Nodes that are quarantined for a handler, because sandboxes failed there.",
        labels=("handler",),
    )


def cluster_families() -> tuple[Metric, ...]:
    """Return what `ClusterCollector` shows, without values, for the reference of metrics."""
    return (*_Families().all(), _quarantined_nodes(), *runtime_gauges(()))


class ClusterCollector(Collector):
    """Gauges that ``refresh`` counts from the caches; a scrape shows the last count."""

    def __init__(
        self,
        cluster: ClusterCache,
        pools: PoolStore,
        allocator: Allocator,
        candidate_tracker: CandidateTracker,
        wall: Callable[[], float],
        clock: Callable[[], float] = time.perf_counter,
        runtimes: Iterable[SandboxRuntime] = (),
    ) -> None:
        self._runtimes = runtimes
        self._wall = wall
        self._clock = clock
        self._cluster = cluster
        self._pools = pools
        self._allocator = allocator
        self._candidate_tracker = candidate_tracker
        # Kept between scrapes, since few pods change from one to the next.
        self._member_indexes: dict[str, tuple[MemberIndex, set[str]]] = {}
        self._families: tuple[Metric, ...] = ()

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the caches may be empty when the collector is registered."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Return the last count; safe to call from any thread."""
        return self._families

    async def refresh(self) -> None:
        """Count, and yield to the event loop between slices; calls must not overlap."""
        cooperative = CooperativeYield(self._clock)
        families = _Families()
        # Pools may be created, changed and deleted between two slices.
        for uid in [pool.uid for pool in self._pools]:
            pool = self._pools.by_uid(uid)
            if pool is not None:
                await self._count(pool, families, cooperative)
                await cooperative.maybe_yield()
        existing = {pool.uid for pool in self._pools}
        self._member_indexes = {
            uid: index for uid, index in self._member_indexes.items() if uid in existing
        }
        self._families = (
            *families.all(),
            self._quarantined(),
            *runtime_gauges(self._runtimes),
        )

    async def _count(self, pool: Pool, families: _Families, cooperative: CooperativeYield) -> None:
        resolution = self._cluster.resolution(pool)
        if resolution is None or pool.spec is None:
            return
        states = await self._states(pool, cooperative)
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
            holds = VALUE_OF_STATUS.get(condition.status, UNKNOWN)
            families.ready.add_metric([*at, condition.type, condition.reason], holds)

    def _quarantined(self) -> Metric:
        quarantined = _quarantined_nodes()
        open_by_handler = Tally(handler for (_, handler), _ in self._cluster.quarantines.open())
        for handler in {r.handler for r in self._cluster.classes.values()} | set(open_by_handler):
            quarantined.add_metric([handler], open_by_handler[handler])
        return quarantined

    def _lag(self, pool: Pool) -> float:
        for condition in pool.conditions:
            if condition.type == "Warm" and condition.status == "False":
                return max(0.0, self._wall() - epoch(condition.lastTransitionTime or ""))
        return 0.0

    async def _states(self, pool: Pool, cooperative: CooperativeYield) -> dict[SandboxState, int]:
        index, known = self._member_indexes.setdefault(pool.uid, (MemberIndex(), set()))
        pods = self._cluster.pods.of_pool(*pool.identity)
        remaining = iter({*pods, *known})
        known.clear()
        known.update(pods)
        members = self._refresh_members(pool, index, ())
        while uids := list(islice(remaining, PODS_PER_SLICE)):
            members = self._refresh_members(pool, index, uids)
            await cooperative.maybe_yield()
        return {state: members.count(state) for state in SandboxState}

    def _refresh_members(self, pool: Pool, index: MemberIndex, uids: Iterable[str]) -> Members:
        host_state = self._cluster.host_state_lookup(pool.proof)
        pods = self._cluster.pods.of_pool(*pool.identity)

        def facts_of(uid: str) -> MemberFacts | None:
            pod = pods.get(uid)
            allocated = self._allocator.is_allocated(uid)
            return None if pod is None else (pod, host_state(pod), None, False, allocated, None)

        for uid in uids:
            index.mark_dirty(uid)
        return index.refresh(facts_of, ())
