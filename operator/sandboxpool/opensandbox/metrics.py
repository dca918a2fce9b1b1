"""The bridge's metrics."""

from collections import Counter as Tally
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS_BUCKETS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 15, 25, 60)

# Outcomes that are no reasons.
SERVED = "Served"
WITHDRAWN = "Withdrawn"

Key = tuple[str, str]


class BridgeMetrics:
    """All metrics of the bridge, in one registry.

    Only pools that are open to OpenSandbox have series: a BatchSandbox may name any pool.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._open: set[Key] = set()
        self._requests = Counter(
            "sandboxpool_opensandbox_requests",
            "BatchSandboxes by their outcome: Served, Withdrawn (deleted before they had an answer:"
            " the server gave up), or the reason for which they got no sandbox.",
            ("namespace", "pool", "outcome"),
            registry=self.registry,
        )
        self._lost = Counter(
            "sandboxpool_opensandbox_lost",
            "Sandboxes that were lost after they had been served, by the reason.",
            ("namespace", "pool", "reason"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "sandboxpool_opensandbox_request_duration_seconds",
            "From the first observation of a BatchSandbox to the write of its running status.",
            ("namespace", "pool"),
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self._step_seconds = Histogram(
            "sandboxpool_opensandbox_step_duration_seconds",
            "Duration of a step: claim (until it is bound), task (its delivery), execd (until it "
            "answers), publish (address and status).",
            ("step",),
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self._waiting = Gauge(
            "sandboxpool_opensandbox_waiting",
            "BatchSandboxes without a sandbox or a failure.",
            ("namespace", "pool"),
            registry=self.registry,
        )
        self._tasks = Counter(
            "sandboxpool_opensandbox_tasks",
            "Tasks by what became of their delivery.",
            ("outcome",),
            registry=self.registry,
        )
        self._api_requests = Counter(
            "sandboxpool_api_requests",
            "Requests to the API server.",
            ("verb", "code"),
            registry=self.registry,
        )
        self.restarts = Counter(
            "sandboxpool_restarts",
            "Restarts of components of the process that had ended or failed.",
            ("part",),
            registry=self.registry,
        )
        self.leader = Gauge(
            "sandboxpool_opensandbox_leader",
            "1 in the bridge that leads, 0 in a standby.",
            registry=self.registry,
        )

    def count_waiting(self, pools: Iterable[Key]) -> None:
        """Count the requests without an answer, given the pool of each."""
        self._waiting.clear()
        for key, number in Tally(map(self._named, pools)).items():
            self._waiting.labels(*key).set(number)

    def request(self, verb: str, code: str, seconds: float) -> None:
        """One request to the API server."""
        del seconds
        self._api_requests.labels(verb, code).inc()

    def answered(self, pool: Key, outcome: str) -> None:
        """A BatchSandbox got no sandbox, for this reason."""
        self._requests.labels(*self._named(pool), outcome).inc()

    def withdrawn(self, pool: Key) -> None:
        """A BatchSandbox was deleted before it had an answer.

        One that names no open pool says nothing: it may be another controller's.
        """
        if pool in self._open:
            self.answered(pool, WITHDRAWN)

    def lost(self, pool: Key, reason: str) -> None:
        """A BatchSandbox that was served has lost its sandbox, for this reason."""
        self._lost.labels(*self._named(pool), reason).inc()

    def served(self, pool: Key, seconds: float) -> None:
        """A BatchSandbox got its sandbox, this many seconds after it was first observed."""
        self.answered(pool, SERVED)
        self._seconds.labels(*self._named(pool)).observe(seconds)

    def step(self, name: str, seconds: float) -> None:
        """One step of a request took this long."""
        self._step_seconds.labels(name).observe(seconds)

    def task(self, outcome: str) -> None:
        """A task was delivered, or was not for this reason."""
        self._tasks.labels(outcome).inc()

    def open_pool(self, pool: Key) -> None:
        """A pool is open to OpenSandbox."""
        self._open.add(pool)

    def close_pool(self, pool: Key) -> None:
        """Remove the series of a pool that is not open any more."""
        self._open.discard(pool)
        for metric in (self._requests, self._seconds, self._lost):
            metric.remove_by_labels({"namespace": pool[0], "pool": pool[1]})

    def _named(self, pool: Key) -> Key:
        return pool if pool in self._open else ("", "")
