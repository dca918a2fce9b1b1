"""Computes which probes would add to what is known of the nodes, the most urgent first."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.fleet.class_usage import ClassUsage, may_run_on, may_use, wants_proof
from sandboxpool.fleet.probe_request import ProbePurpose, ProbeRequest
from sandboxpool.runtimes.evidence import Evidence, Isolation, control_failure, no_evidence
from sandboxpool.runtimes.node_constraints import NodeConstraintsError
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.probe import CONTROL
from sandboxpool.runtimes.resolve import Runtime
from sandboxpool.runtimes.verdict import Verdict


class PendingProbes:
    """The probes that are due.

    Args:
        wall: seconds since the epoch.
        record_evidence: called with node, handler and evidence where no probe can prove anything,
            because the node's positive control failed.
    """

    def __init__(
        self,
        cluster: ClusterCache,
        pools: PoolStore,
        usage: ClassUsage,
        wall: Callable[[], float],
        record_evidence: Callable[[NodeFacts, str, Evidence], None],
    ) -> None:
        self._cluster = cluster
        self._pools = pools
        self._usage = usage
        self._wall = wall
        self._record_evidence = record_evidence
        # No evidence was missing when last computed, and nothing has changed since.
        self._nothing_missing = False

    def invalidate(self) -> None:
        """Compute again which evidence is missing: nodes, classes, pools or evidence changed."""
        self._nothing_missing = False

    def __iter__(self) -> Iterator[ProbeRequest]:
        classes = self._usage.in_use()
        for name, handler in self._cluster.hints.next_probes(self._wall()):
            if not self._cluster.quarantines.is_open(name, handler):
                yield from self._build_request(name, handler, classes, "hint")
        nothing_missing = self._nothing_missing
        if not nothing_missing:
            nothing_missing = True
            for request in self._evidence_requests(self._with_waiting_sandboxes()):
                nothing_missing = False
                yield request
        for name, handler in self._cluster.quarantines.due(self._wall()):
            yield from self._build_request(name, handler, classes, "scout")
        if not self._nothing_missing:
            for request in self._evidence_requests(self._candidates()):
                nothing_missing = False
                yield request
        self._nothing_missing = nothing_missing

    def _build_request(
        self, name: str, handler: str, classes: Iterable[Runtime], purpose: ProbePurpose
    ) -> Iterator[ProbeRequest]:
        """A probe of the first class that may run on the node, if any may."""
        node = self._cluster.nodes.get(name)
        if node is None or not node.usable:
            return
        for runtime in classes:
            if may_run_on(runtime, handler, node):
                yield ProbeRequest(node, runtime, purpose)
                return

    def _evidence_requests(
        self, targets: Iterable[tuple[NodeFacts, Runtime]]
    ) -> Iterator[ProbeRequest]:
        """Request what each node lacks: its positive control, then evidence of the runtime."""
        for node, runtime in targets:
            if not self._needs_evidence(node, runtime):
                continue
            evidence = self._cluster.evidence
            control = evidence.current(node, CONTROL)
            if control is None or control.isolation is Isolation.UNAVAILABLE:
                yield ProbeRequest(node, None, "control", waiting=runtime.handler)
            elif control.isolation is Isolation.NOT_PROVEN:
                yield ProbeRequest(node, runtime, "evidence")
            elif evidence.current(node, runtime.handler) is None:
                self._record_evidence(
                    node, runtime.handler, evidence_without_control(node, runtime, control)
                )

    def _with_waiting_sandboxes(self) -> Iterator[tuple[NodeFacts, Runtime]]:
        """The nodes with sandboxes that wait for the node's evidence or positive control.

        Few nodes lack evidence as a rule, so only the sandboxes on these are looked at.
        """
        for runtime in self._usage.wanting_proof():
            for node in list(self._cluster.nodes):
                if self._needs_evidence(node, runtime) and self._is_waited_for(node, runtime):
                    yield node, runtime

    def _is_waited_for(self, node: NodeFacts, runtime: Runtime) -> bool:
        """Whether a sandbox of a pool that wants proof of this class is on the node."""
        pools = (self._pools.of(pod) for pod in self._cluster.pods.on_node(node.name))
        return any(
            pool is not None and may_use(pool, runtime) and wants_proof(pool) for pool in pools
        )

    def _candidates(self) -> Iterator[tuple[NodeFacts, Runtime]]:
        """The nodes on which new sandboxes may be scheduled."""
        verdicts: dict[int, tuple[Verdict, Runtime]] = {}
        for runtime in self._usage.wanting_proof():
            for pool in self._usage.pools_wanting_proof(runtime):
                with contextlib.suppress(NodeConstraintsError):
                    # Pools with the same class and constraints share a verdict.
                    verdict = self._cluster.verdict(pool, runtime)
                    verdicts[id(verdict)] = verdict, runtime
        for verdict, runtime in verdicts.values():
            for name in (
                *verdict.serving,
                *verdict.unknown,
                *verdict.not_isolating,
                *verdict.unproven,
            ):
                node = self._cluster.nodes.get(name)
                if node is not None:
                    yield node, runtime

    def _needs_evidence(self, node: NodeFacts, runtime: Runtime) -> bool:
        evidence = self._cluster.evidence
        known = evidence.current(node, runtime.handler)
        unproven = known is None or known.isolation is not Isolation.PROVEN
        return (
            node.usable
            and (unproven or evidence.is_renewal_due(node.name, runtime.handler))
            and not self._cluster.quarantines.is_open(node.name, runtime.handler)
        )


def evidence_without_control(node: NodeFacts, runtime: Runtime, control: Evidence) -> Evidence:
    """What is known of a runtime on a node whose positive control failed: nothing."""
    return no_evidence(node, runtime.uid, control.at, control_failure(control))
