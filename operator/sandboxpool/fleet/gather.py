"""Gathers what is known of one RuntimeClass, from the caches and the pools' own counts."""

from collections import defaultdict
from collections.abc import Callable

from sandboxpool.api.v1alpha1 import PoolStartup
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.fleet.status import RuntimeStatusInput
from sandboxpool.runtimes.evidence import EvidenceSummary, Isolation
from sandboxpool.runtimes.failure_history import FailureHistory, FailureSummary
from sandboxpool.runtimes.node_constraints import node_constraints_of
from sandboxpool.runtimes.resolve import Runtime
from sandboxpool.runtimes.verdict import Verdict
from sandboxpool.sandboxes.startup import StartupTimes


class RuntimeStatusGatherer:
    """Knows where everything about a class is to be found.

    Args:
        wall: seconds since the epoch.
        clock: a monotonic clock, in seconds, for the start-up times.
    """

    def __init__(
        self,
        *,
        cluster: ClusterCache,
        pools: PoolStore,
        issues: FailureHistory,
        wall: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._cluster = cluster
        self._pools = pools
        self._issues = issues
        self._wall = wall
        self._clock = clock
        self._startups: defaultdict[str, StartupTimes] = defaultdict(StartupTimes)

    def measured(self, class_name: str, stage: str, seconds: float) -> None:
        """A sandbox of the class has reached a stage of its start."""
        self._startups[class_name].add(stage, seconds, self._clock())

    def gather(self, class_name: str) -> RuntimeStatusInput | None:
        """Everything about a class; None if it does not exist and no pool names it."""
        runtime = self._cluster.classes.get(class_name)
        by_class = self._pools.by_class(class_name)
        if runtime is None:
            self._cluster.nodes.forget(("class", class_name))
        if runtime is None and not by_class.pools:
            self._startups.pop(class_name, None)
            return None
        now = self._wall()
        proof_wanted = by_class.wanting_proof > 0
        verdict, issues, evidence = Verdict(), tuple[FailureSummary, ...](), list[EvidenceSummary]()
        proven = False
        if runtime is not None:
            verdict = self._cluster.nodes.verdict(
                runtime.handler,
                node_constraints_of({}, runtime),
                proof_wanted=proof_wanted,
                reader=("class", class_name),
            )
            concerns = self._concerning(runtime)
            issues = self._issues.rows(runtime.handler, now, concerns)
            evidence = self._cluster.evidence.summaries(runtime.handler, concerns)
            proven = by_class.warm_with_proof > 0 or self._proves(verdict, runtime.handler)
        return RuntimeStatusInput(
            class_name=class_name,
            runtime=runtime,
            verdict=verdict,
            now=now,
            issues=issues,
            evidence=evidence,
            pools=list(by_class.names),
            sandboxes=dict(by_class.sandboxes),
            startup=self._startup(class_name),
            proof_wanted=proof_wanted,
            proven=proven,
        )

    def _concerning(self, runtime: Runtime) -> Callable[[str], bool]:
        """Which nodes are the class's: another class of its handler may be for others."""

        def concerns(name: str) -> bool:
            node = self._cluster.nodes.get(name)
            return node is None or runtime.admits(node.labels)

        return concerns

    def _proves(self, verdict: Verdict, handler: str) -> bool:
        """Whether some node that may take a sandbox now was seen to isolate."""
        for name in (*verdict.serving, *verdict.unknown):
            node = self._cluster.nodes.get(name)
            seen = self._cluster.evidence.current(node, handler) if node is not None else None
            if seen is not None and seen.isolation is Isolation.PROVEN:
                return True
        return False

    def _startup(self, class_name: str) -> PoolStartup | None:
        times = self._startups.get(class_name)
        return times.summary(self._clock()) if times is not None else None
