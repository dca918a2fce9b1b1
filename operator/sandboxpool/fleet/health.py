"""Records what probes and sandboxes show about the runtimes on each node.

Only the operator's own probes open and close quarantines and bring evidence. Failures of sandboxes
are hints, which request probes; nothing that a sandbox does or reports changes what is known of a
node. Each change is persisted for the next process and reported to the listener.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Protocol

from sandboxpool.api.core import Pod
from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.fleet.class_usage import ClassUsage, may_run_on
from sandboxpool.fleet.pending_probes import PendingProbes, evidence_without_control
from sandboxpool.fleet.probe_request import ProbeRequest, ProbeResult, outcome_of
from sandboxpool.fleet.probe_room import ProbeRoom
from sandboxpool.fleet.records import NodeRecords
from sandboxpool.runtimes.diagnosis import diagnose
from sandboxpool.runtimes.evidence import (
    Evidence,
    Isolation,
    control_failure,
    judge_sandbox,
    no_evidence,
)
from sandboxpool.runtimes.failure_history import FailureHistory
from sandboxpool.runtimes.node_constraints import node_constraints_of
from sandboxpool.runtimes.nodes import NodeFacts, NodeHandler
from sandboxpool.runtimes.probe import CONTROL
from sandboxpool.runtimes.resolve import Runtime
from sandboxpool.runtimes.verdict import HandlerState, listed_handler_state

logger = logging.getLogger(__name__)

# Where probes give no answer, sandboxes of this many namespaces must fail to open a quarantine.
WITNESSES = 2
# A quarantine that concerns no pool is lifted after this time, which is checked at this interval.
UNUSED_SECONDS = 600.0
UNUSED_CHECK_SECONDS = 30.0


class HealthListener(Protocol):
    """Is notified of changes, for work queues, events and metrics."""

    def handler_changed(self, node: str, handler: str) -> None:
        """What is known of a handler on a node has changed, and with it perhaps verdicts."""

    def probe_hinted(self) -> None:
        """A sandbox failed, possibly because of its runtime: more probes may be pending."""

    def quarantined(self, node: str, handler: str, reason: Reason, message: str) -> None:
        """A quarantine has been opened."""

    def released(self, node: str, handler: str) -> None:
        """A quarantine has been lifted, or its machine no longer exists."""

    def not_isolating(self, node: str, handler: str, evidence: Evidence) -> None:
        """A probe has shown that a runtime does not isolate."""

    def probed(self, handler: str, outcome: str) -> None:
        """A probe has ended; the handler is that of the positive control for one of these."""

    def room_changed(self, pool_uid: str) -> None:
        """A place of the pool is reserved for a probe, or has been returned to the pool."""


class Health:
    """What is known of each node's runtimes beyond the handlers that the node lists.

    Args:
        wall: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        cluster: ClusterCache,
        issues: FailureHistory,
        records: NodeRecords,
        listener: HealthListener,
        pools: PoolStore,
        wall: Callable[[], float],
    ) -> None:
        self._cluster = cluster
        self._issues = issues
        self._records = records
        self._listener = listener
        self._wall = wall
        self._usage = ClassUsage(cluster, pools)
        self._room = ProbeRoom(cluster, pools, wall, listener.room_changed)
        self._pending_probes = PendingProbes(
            cluster, pools, self._usage, wall, self._record_evidence
        )
        self._loaded: set[str] = set()
        # Since when no pool has used a handler on a node that is quarantined for it.
        self._unused_since: dict[NodeHandler, float] = {}
        self._unused_checked_at = 0.0

    async def load(self) -> None:
        """Load what an earlier process recorded; call this before anything is observed.

        Raises:
            KubeError: the records could not be read.
        """
        for name, record in (await self._records.load()).items():
            quarantines = record.get("quarantines")
            self._cluster.quarantines.load(
                name, quarantines if isinstance(quarantines, dict) else {}
            )
            evidence, former = record.get("evidence"), record.get("former")
            self._cluster.evidence.load(
                name,
                evidence if isinstance(evidence, dict) else {},
                former if isinstance(former, dict) else {},
            )
            self._loaded.add(name)
        for (name, handler), quarantine in self._cluster.quarantines.open():
            # An open quarantine is a current failure, however old its last probe is.
            self._issues.record(handler, name, quarantine.reason, quarantine.message, self._wall())

    def forget_missing(self) -> None:
        """Drop loaded records of nodes that do not exist; call this once all nodes are known."""
        for name in self._loaded:
            if self._cluster.nodes.get(name) is None:
                self.observe_node(name, None)
        self._loaded.clear()

    # --- Observed ------------------------------------------------------------------------------

    def observe_node(self, name: str, node: NodeFacts | None) -> None:
        """A node has changed, or was deleted (None)."""
        for handler in self._cluster.quarantines.observe_node(name, node):
            self._issues.clear(handler, name)
            self._listener.released(name, handler)
        self._cluster.evidence.observe_node(name, node, self._wall())
        if node is None:
            self._room.forget_node(name)
            self._issues.forget_node(name)
            self._cluster.hints.forget_node(name)
            self._cluster.avoided_nodes.forget_node(name)
        self._cluster.nodes.reevaluate(name)
        self._persist(name)

    def observe_sandbox(self, pod: Pod) -> None:
        """A sandbox or its events have changed: request a probe if its runtime may have failed."""
        node, runtime = self._node_of(pod), self._cluster.runtime_of(pod)
        if node is None or runtime is None:
            return
        failure = diagnose(pod, self._cluster.events.message(pod))
        own = judge_sandbox(pod, node, self._wall())
        fails = failure is not None and failure.blames_runtime
        if fails or (own is not None and own.isolation is Isolation.NOT_PROVEN):
            self._hint(pod, node, runtime)

    def observe_timeout(self, pod_uid: str) -> None:
        """A sandbox did not start in time, and neither its status nor its events say why."""
        pod = self._cluster.pods.get(pod_uid)
        node = self._node_of(pod) if pod is not None else None
        runtime = self._cluster.runtime_of(pod) if pod is not None else None
        if pod is not None and node is not None and runtime is not None:
            self._hint(pod, node, runtime)

    def _hint(self, pod: Pod, node: NodeFacts, runtime: Runtime) -> None:
        if listed_handler_state(node, runtime.handler) is HandlerState.NOT_SERVING:
            # The node itself reports that it does not serve the handler: no probe is needed.
            return
        pair = node.name, runtime.handler
        self._cluster.hints.add(pod.metadata.namespace, pair, self._wall())
        self._listener.probe_hinted()

    # --- Probed --------------------------------------------------------------------------------

    def observe_probe_started(self, probe_request: ProbeRequest) -> None:
        """A probe pod is about to be created."""
        self._cluster.hints.probe_started(probe_request.pair, self._wall())

    def observe_probe(self, probe_request: ProbeRequest, result: ProbeResult) -> None:
        """A probe has ended."""
        self._listener.probed(probe_request.handler, outcome_of(probe_request, result))
        self._room.reclaim(probe_request, result)
        node = self._cluster.nodes.get(probe_request.node.name)
        if node is None or result.evidence is None:
            # The node, or the class, is no longer the one that was probed.
            return
        if probe_request.purpose == "control":
            self._record_control(node, result.evidence)
            return
        handler, now = probe_request.handler, self._wall()
        works = result.works
        self._cluster.hints.probe_finished(
            probe_request.pair,
            result.made_at,
            confirmed=None if works is None else not works,
            now=now,
        )
        if works:
            self._record_success(node, handler)
        if result.evidence.isolation is not Isolation.PROVEN or (
            self._cluster.evidence.has_positive_control(node)
        ):
            self._record_evidence(node, handler, result.evidence)
        if works is False and result.failure is not None:
            self._quarantine(node, handler, result.failure.reason, result.failure.message)
        elif works is None and probe_request.purpose in ("hint", "scout"):
            self._quarantine_if_witnessed(node, probe_request, result.evidence)

    def _record_success(self, node: NodeFacts, handler: str) -> None:
        if self._cluster.quarantines.record_success(node, handler, now=self._wall()):
            logger.info("node %s is no longer quarantined for handler %s", node.name, handler)
            self._cluster.avoided_nodes.forget_node(node.name)
            self._release(node.name, handler)
        self._issues.clear(handler, node.name)

    def _release(self, node: str, handler: str) -> None:
        # The repaired runtime may differ from the one that the evidence was about.
        self._cluster.evidence.forget(node, handler, self._wall())
        self._changed(node, handler)
        self._listener.released(node, handler)
        self._persist(node)

    def _quarantine(
        self,
        node: NodeFacts,
        handler: str,
        reason: Reason,
        message: str,
        *,
        witnessed: bool = False,
    ) -> None:
        now = self._wall()
        self._issues.record(handler, node.name, reason, message, now)
        opened = self._cluster.quarantines.record_failure(
            node, handler, reason, message, now=now, witnessed=witnessed
        )
        if opened:
            logger.warning(
                "node %s is quarantined for handler %s: %s: %s", node.name, handler, reason, message
            )
            self._changed(node.name, handler)
            self._listener.quarantined(node.name, handler, reason, message)
        self._persist(node.name)

    def _quarantine_if_witnessed(
        self, node: NodeFacts, probe_request: ProbeRequest, evidence: Evidence
    ) -> None:
        """Quarantine a node, of at most half, where probes give no answer but sandboxes fail."""
        handler = probe_request.handler
        self._issues.record(
            handler, node.name, Reason.PROBE_UNANSWERED, evidence.message, self._wall()
        )
        seen = self._cluster.hints.count_witnesses(probe_request.pair, self._wall())
        if seen >= WITNESSES and self._leaves_half_of_nodes(node, probe_request):
            text = f"sandboxes of {seen} namespaces failed, and the probe gave no answer: "
            self._quarantine(
                node, handler, Reason.PROBE_UNANSWERED, text + evidence.message, witnessed=True
            )

    def _leaves_half_of_nodes(self, node: NodeFacts, probe_request: ProbeRequest) -> bool:
        """Whether each class that admits the node keeps half of its nodes without it.

        The nodes of a class are those that satisfy its own selector and tolerations.
        """
        handler = probe_request.handler
        witnessed = set(self._cluster.quarantines.witnessed(handler))
        concerned = [r for r in self._usage.in_use() if may_run_on(r, handler, node)]
        if probe_request.runtime is not None:
            concerned.append(probe_request.runtime)
        for runtime in concerned:
            verdict = self._cluster.nodes.verdict(
                handler, node_constraints_of({}, runtime), proof_wanted=False
            )
            nodes = len(verdict.serving) + len(verdict.unknown) + len(verdict.quarantined)
            if len(witnessed.intersection(verdict.quarantined)) >= nodes // 2:
                return False
        return True

    def observe_stuck(self, pair: NodeHandler, pod_name: str | None) -> None:
        """A probe pod has been Terminating for long, which keeps other probes from the node.

        Args:
            pair: the node and the handler.
            pod_name: the pod; None once no such pod is left.
        """
        name, handler = pair
        node, now = self._cluster.nodes.get(name), self._wall()
        classes = [r for r in self._usage.in_use() if handler in (CONTROL, r.handler)]
        handlers = {r.handler for r in classes if node is None or may_run_on(r, r.handler, node)}
        if pod_name is None:
            for known in handlers:
                self._issues.clear(known, name, Reason.PROBE_TERMINATING)
                self._listener.handler_changed(name, known)
            return
        if node is None or not node.ready:
            # Pods stay Terminating on a node whose kubelet does not run.
            return
        text = (
            f"the probe pod {pod_name} stays Terminating on node {name}, which keeps other probes "
            "from it: see that node's kubelet and container runtime, or delete the pod with --force"
        )
        for known in sorted(handlers):
            self._issues.record(known, name, Reason.PROBE_TERMINATING, text, now)
            self._listener.handler_changed(name, known)
        if handler == CONTROL:
            self._record_control(node, no_evidence(node, "", now, text))
            return
        for runtime in classes:
            if runtime.handler in handlers and any(self._usage.pools_wanting_proof(runtime)):
                self._record_evidence(node, handler, no_evidence(node, runtime.uid, now, text))

    # --- Recorded ------------------------------------------------------------------------------

    def _record_evidence(self, node: NodeFacts, handler: str, evidence: Evidence) -> None:
        is_news = self._cluster.evidence.put(node.name, handler, evidence)
        if is_news or evidence.isolation is Isolation.PROVEN:
            # A renewed proof must not look older to the next process than it is.
            self._persist(node.name)
        if not is_news:
            return
        if evidence.isolation is Isolation.PROVEN:
            # Pools avoid nodes that give no proof.
            self._cluster.avoided_nodes.forget_node(node.name)
        self._changed(node.name, handler)
        if evidence.isolation is Isolation.NOT_PROVEN:
            logger.warning("handler %s on node %s: %s", handler, node.name, evidence.message)
            self._listener.not_isolating(node.name, handler, evidence)

    def _record_control(self, node: NodeFacts, evidence: Evidence) -> None:
        if not self._cluster.evidence.put(node.name, CONTROL, evidence):
            return
        self._persist(node.name)
        if self._cluster.evidence.has_positive_control(node):
            # Evidence probes are pending now, and evidence from sandboxes themselves counts now.
            self.invalidate()
            self._changed(node.name, CONTROL)
            return
        logger.warning("node %s: %s", node.name, control_failure(evidence))
        wanting = self._usage.wanting_proof()
        runtimes = {r.handler: r for r in wanting if may_run_on(r, r.handler, node)}
        for handler, runtime in runtimes.items():
            self._record_evidence(node, handler, evidence_without_control(node, runtime, evidence))
        self._changed(node.name, CONTROL)

    def _changed(self, node: str, handler: str) -> None:
        self._cluster.nodes.reevaluate(node)
        self._listener.handler_changed(node, handler)

    def _persist(self, node: str) -> None:
        quarantines = self._cluster.quarantines.dump(node)
        evidence = self._cluster.evidence.dump(node)
        former = self._cluster.evidence.dump_superseded(node)
        known = {"quarantines": quarantines, "evidence": evidence}
        if former:
            known["former"] = former
        self._records.put(node, known if quarantines or evidence or former else None)

    def _node_of(self, pod: Pod) -> NodeFacts | None:
        return self._cluster.nodes.get(pod.spec.nodeName) if pod.spec.nodeName else None

    def _expire_by_age(self) -> None:
        """End what has an age limit: quarantines without a probe, proofs, reservations."""
        now = self._wall()
        for name, handler in self._cluster.quarantines.expire(now):
            logger.info("quarantine of node %s for handler %s expired", name, handler)
            self._issues.clear(handler, name)
            self._changed(name, handler)
            self._listener.released(name, handler)
            self._persist(name)
        for name, handler in self._cluster.evidence.expire(now):
            self.invalidate()
            self._changed(name, handler)
            self._persist(name)
        self._room.expire(now)
        if not 0 <= now - self._unused_checked_at < UNUSED_CHECK_SECONDS:
            self._unused_checked_at = now
            self._lift_unused(now)

    def _lift_unused(self, now: float) -> None:
        """Lift the quarantines that no scout probe can lift, because no pool uses the handler."""
        classes = self._usage.in_use()
        unused = {}
        for pair, _ in self._cluster.quarantines.open():
            node = self._cluster.nodes.get(pair[0])
            if node is not None and not any(may_run_on(r, pair[1], node) for r in classes):
                unused[pair] = self._unused_since.get(pair, now)
        self._unused_since = unused
        for (name, handler), since in unused.items():
            if now - since >= UNUSED_SECONDS:
                logger.info(
                    "node %s is no longer quarantined for handler %s: no pool uses it",
                    name,
                    handler,
                )
                self._cluster.quarantines.lift(name, handler, now=now)
                self._issues.clear(handler, name)
                self._release(name, handler)

    # --- Probes that are due ---------------------------------------------------------------------

    def invalidate(self) -> None:
        """Nodes, classes, pools or evidence have changed, so evidence may be missing."""
        self._pending_probes.invalidate()

    def pending_probes(self) -> Iterator[ProbeRequest]:
        """Probes that would add to what is known, the most urgent first.

        Probes that hints request come first, then those of nodes on which sandboxes wait for
        evidence, then scouts, then all other nodes.
        """
        self._expire_by_age()
        yield from self._pending_probes

    def make_room(self, probe_request: ProbeRequest) -> bool:
        """Preempt a sandbox for a probe whose node is full; whether the probe should wait."""
        return self._room.make(probe_request)
