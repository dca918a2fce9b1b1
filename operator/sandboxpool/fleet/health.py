"""What is known of the runtimes on each node, and how it comes to be known.

Only the operator's own probes judge: they open and close quarantines and bring evidence. What
happens to sandboxes is heard as hints, which order probes; nothing that a sandbox does, says or
leaves behind changes what is known of a node. Whatever changes is written down for the next start,
and told to whom it concerns.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from sandboxpool.api import names
from sandboxpool.api.core import Pod
from sandboxpool.api.reasons import Reason
from sandboxpool.api.v1alpha1 import IsolationProof
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.ownership import claim_uid_of
from sandboxpool.cluster.pool import Pool
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.fleet.prober import (
    NodeHandler,
    ProbePurpose,
    ProbeRequest,
    ProbeResult,
    outcome_of,
)
from sandboxpool.fleet.records import NodeRecords
from sandboxpool.runtimes.diagnosis import diagnose
from sandboxpool.runtimes.evidence import (
    Evidence,
    Isolation,
    control_failure,
    judge_sandbox,
    no_evidence,
    software_of,
)
from sandboxpool.runtimes.failure_history import FailureHistory
from sandboxpool.runtimes.node_constraints import NodeConstraintsError, node_constraints_of
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.probe import CONTROL
from sandboxpool.runtimes.resolve import Runtime
from sandboxpool.runtimes.verdict import HandlerState, Verdict, listed_handler_state

logger = logging.getLogger(__name__)

# Where no probe can answer, so many namespaces must have had sandboxes fail.
WITNESSES = 2
# A quarantine that concerns no pool is ended after so long, which is looked for so often.
UNUSED_SECONDS = 600.0
LOOK_FOR_UNUSED_SECONDS = 30.0


class HealthListener(Protocol):
    """Told of what changes, for work, events and metrics."""

    def handler_changed(self, node: str, handler: str) -> None:
        """What is known of a handler on a node is not what it was, and perhaps some verdict."""

    def probe_hinted(self) -> None:
        """A sandbox has failed in a way that may be its runtime's fault: there is more to probe."""

    def quarantined(self, node: str, handler: str, reason: Reason, message: str) -> None:
        """A quarantine has begun."""

    def released(self, node: str, handler: str) -> None:
        """A quarantine has ended, or its machine is gone."""

    def not_isolating(self, node: str, handler: str, evidence: Evidence) -> None:
        """A runtime was seen not to isolate."""

    def probed(self, handler: str, outcome: str) -> None:
        """A probe has ended; of no handler, if it was a positive control."""

    def room_changed(self, pool_uid: str) -> None:
        """A sandbox of the pool is to give way to a probe, or its place is the pool's again."""


class Health:
    """What is known of each node's runtimes beyond their lists.

    Args:
        pools: all pools.
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
        self._pools = pools
        self._wall = wall
        self._loaded: set[str] = set()
        # Nothing lacked evidence at the last look, and nothing has changed since.
        self._nothing_missing = False
        # Since when nobody uses a handler on a node that is quarantined for it.
        self._unused_since: dict[NodeHandler, float] = {}
        self._looked_for_unused = 0.0

    async def load(self) -> None:
        """Take over what an earlier process knew; to be called before anything is observed.

        Raises:
            KubeError: it could not be read.
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
            # What is kept out stands, whenever it was last tried.
            self._issues.record(handler, name, quarantine.reason, quarantine.message, self._wall())

    def forget_missing(self) -> None:
        """All nodes are known now: drop what was kept of others."""
        for name in self._loaded:
            if self._cluster.nodes.get(name) is None:
                self.observe_node(name, None)
        self._loaded.clear()

    # --- Observed ------------------------------------------------------------------------------

    def observe_node(self, name: str, node: NodeFacts | None) -> None:
        """A node has changed in what matters, or is gone."""
        for handler in self._cluster.quarantines.observe_node(name, node):
            self._issues.clear(handler, name)
            self._listener.released(name, handler)
        self._cluster.evidence.observe_node(name, node, self._wall())
        if node is None:
            for pool_uid in self._cluster.probe_reservations.forget_node(name):
                self._listener.room_changed(pool_uid)
            self._issues.forget_node(name)
            self._cluster.hints.forget_node(name)
            self._cluster.avoided_nodes.forget_node(name)
        self._cluster.nodes.reevaluate(name)
        self._persist(name)

    def observe_sandbox(self, pod: Pod) -> None:
        """A sandbox of a pool, or what was said of it, has changed: does it speak for a probe?"""
        node, runtime = self._node_of(pod), self._cluster.runtime_of(pod)
        if node is None or runtime is None:
            return
        failure = diagnose(pod, self._cluster.events.message(pod))
        own = judge_sandbox(pod, node, self._wall())
        fails = failure is not None and failure.blames_runtime
        if fails or (own is not None and own.isolation is Isolation.NOT_PROVEN):
            self._hint(pod, node, runtime)

    def observe_timeout(self, pod_uid: str) -> None:
        """A sandbox is given up, and nobody has said why it did not start."""
        pod = self._cluster.pods.get(pod_uid)
        node = self._node_of(pod) if pod is not None else None
        runtime = self._cluster.runtime_of(pod) if pod is not None else None
        if pod is not None and node is not None and runtime is not None:
            self._hint(pod, node, runtime)

    def _hint(self, pod: Pod, node: NodeFacts, runtime: Runtime) -> None:
        if listed_handler_state(node, runtime.handler) is HandlerState.NOT_SERVING:
            # The node says so itself: there is nothing to find out.
            return
        pair = node.name, runtime.handler
        self._cluster.hints.add(pod.metadata.namespace, pair, self._wall())
        self._listener.probe_hinted()

    # --- Probed --------------------------------------------------------------------------------

    def observe_probe_started(self, probe_request: ProbeRequest) -> None:
        """A probe is sent."""
        self._cluster.hints.probe_started(probe_request.pair, self._wall())

    def observe_probe(self, probe_request: ProbeRequest, result: ProbeResult) -> None:
        """A probe has ended."""
        self._listener.probed(probe_request.handler, outcome_of(probe_request, result))
        self._take_room_back(probe_request, result)
        node = self._cluster.nodes.get(probe_request.node.name)
        if node is None or result.evidence is None:
            # What it was to tell of is no more.
            return
        if probe_request.purpose == "control":
            self._record_control(node, result.evidence)
            return
        handler, now = probe_request.handler, self._wall()
        works = result.works
        right = None if works is None else not works
        self._cluster.hints.probe_finished(
            probe_request.pair, result.made_at, confirmed=right, now=now
        )
        if works:
            self._work(node, handler)
        if result.evidence.isolation is not Isolation.PROVEN or (
            self._cluster.evidence.has_positive_control(node)
        ):
            self._record_evidence(node, handler, result.evidence)
        if works is False and result.failure is not None:
            self._quarantine(node, handler, result.failure.reason, result.failure.message)
        elif works is None and probe_request.purpose in ("hint", "scout"):
            self._quarantine_if_witnessed(node, probe_request, result.evidence)

    def _work(self, node: NodeFacts, handler: str) -> None:
        if self._cluster.quarantines.record_success(node, handler, now=self._wall()):
            logger.info("node %s is no longer quarantined for handler %s", node.name, handler)
            self._cluster.avoided_nodes.forget_node(node.name)
            self._release(node.name, handler)
        self._issues.clear(handler, node.name)

    def _release(self, node: str, handler: str) -> None:
        # What was mended may be another runtime than before.
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
        """No probe can answer: sandboxes of several namespaces may, for half of the nodes."""
        handler = probe_request.handler
        self._issues.record(
            handler, node.name, Reason.PROBE_UNANSWERED, evidence.message, self._wall()
        )
        seen = self._cluster.hints.count_witnesses(probe_request.pair, self._wall())
        if seen >= WITNESSES and self._leaves_half_of_nodes(node, probe_request):
            text = f"sandboxes of {seen} namespaces failed, and no probe can tell: "
            self._quarantine(
                node, handler, Reason.PROBE_UNANSWERED, text + evidence.message, witnessed=True
            )

    def _leaves_half_of_nodes(self, node: NodeFacts, probe_request: ProbeRequest) -> bool:
        """Whether each class that the node is for has half of its nodes left without this one.

        As the class's own selectors and tolerations see the fleet.
        """
        handler = probe_request.handler
        witnessed = set(self._cluster.quarantines.witnessed(handler))
        concerned = [r for r in self._classes_in_use() if _is_for(r, handler, node)]
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
        """A probe's pod has been Terminating for long; None: none is any more.

        Nobody learns anything of the node meanwhile, so it has to be said.
        """
        name, handler = pair
        node, now = self._cluster.nodes.get(name), self._wall()
        classes = [r for r in self._classes_in_use() if handler in (CONTROL, r.handler)]
        handlers = {r.handler for r in classes if node is None or _is_for(r, r.handler, node)}
        if pod_name is None:
            for known in handlers:
                self._issues.clear(known, name, Reason.PROBE_TERMINATING)
                self._listener.handler_changed(name, known)
            return
        if node is None or not node.ready:
            # That its pods stay is what is to be expected.
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
            if runtime.handler in handlers and any(self._wanting(runtime)):
                self._record_evidence(node, handler, no_evidence(node, runtime.uid, now, text))

    # --- Room for probes -----------------------------------------------------------------------

    def make_room(self, probe_request: ProbeRequest) -> bool:
        """A probe finds its node full: have one of the sandboxes that wait for it give way.

        Returns:
            Whether one does, so that it is worth waiting for its place.
        """
        if probe_request.purpose not in ("evidence", "control"):
            return False
        room, now, pair = self._cluster.probe_reservations, self._wall(), _room_of(probe_request)
        if room.is_reserved(pair):
            return True
        software = software_of(probe_request.node)
        waiting = sorted(
            self._waiting_on(*pair), key=lambda found: found[0].metadata.creationTimestamp or ""
        )
        if not waiting or not room.may_preempt(pair, software, now):
            return False
        pod, pool = waiting[-1]
        logger.info(
            "node %s is full: %s/%s gives way to the probe of handler %s",
            pair[0],
            pod.metadata.namespace,
            pod.metadata.name,
            pair[1],
        )
        room.preempt(pair, software, pool.uid, pod.metadata.uid, now)
        self._listener.room_changed(pool.uid)
        return True

    def _waiting_on(self, name: str, handler: str) -> Iterator[tuple[Pod, Pool]]:
        """The sandboxes on a node that are kept from claims by nothing but the lack of proof."""
        for pod in self._cluster.pods.on_node(name):
            pool, metadata = self._pools.of(pod), pod.metadata
            if (
                pool is None
                or pool.spec is None
                or pool.spec.paused
                or not _wants_proof(pool)
                or not pod.ready
                or metadata.deletionTimestamp is not None
                or claim_uid_of(pod) is not None
                or metadata.annotations.get(names.ANNOTATION_HANDLER) != handler
            ):
                continue
            host_state = self._cluster.host_state(pod, pool.proof)
            if host_state.allocatable and not host_state.isolation_proven:
                yield pod, pool

    def _take_room_back(self, probe_request: ProbeRequest, result: ProbeResult) -> None:
        isolation = result.evidence.isolation if result.evidence is not None else None
        if probe_request.purpose == "control" and isolation is Isolation.NOT_PROVEN:
            # The place is needed for the evidence itself now.
            return
        if probe_request.purpose in ("evidence", "control"):
            proven = probe_request.purpose == "evidence" and isolation is Isolation.PROVEN
            pool_uid = self._cluster.probe_reservations.end(_room_of(probe_request), proven=proven)
            if pool_uid is not None:
                self._listener.room_changed(pool_uid)

    # --- Learned -------------------------------------------------------------------------------

    def _record_evidence(self, node: NodeFacts, handler: str, evidence: Evidence) -> None:
        is_news = self._cluster.evidence.put(node.name, handler, evidence)
        if is_news or evidence.isolation is Isolation.PROVEN:
            # The next process is not to take a proof for older than it is.
            self._persist(node.name)
        if not is_news:
            return
        if evidence.isolation is Isolation.PROVEN:
            # Pools keep away from nodes that give no proof.
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
            # The next to be asked for is the evidence itself; sandboxes that bring their own have
            # it now.
            self.invalidate()
            self._changed(node.name, CONTROL)
            return
        logger.warning("node %s: %s", node.name, control_failure(evidence))
        wanted = (runtime for runtime in self._classes() if any(self._wanting(runtime)))
        runtimes = {r.handler: r for r in wanted if _is_for(r, r.handler, node)}
        for handler, runtime in runtimes.items():
            self._record_evidence(node, handler, _without_control(node, runtime, evidence))
        self._changed(node.name, CONTROL)

    def _changed(self, node: str, handler: str) -> None:
        self._cluster.nodes.reevaluate(node)
        self._listener.handler_changed(node, handler)

    def _persist(self, node: str) -> None:
        quarantines = self._cluster.quarantines.dump(node)
        evidence = self._cluster.evidence.dump(node)
        former = self._cluster.evidence.dump_former(node)
        known = {"quarantines": quarantines, "evidence": evidence}
        if former:
            known["former"] = former
        self._records.put(node, known if quarantines or evidence or former else None)

    def _node_of(self, pod: Pod) -> NodeFacts | None:
        return self._cluster.nodes.get(pod.spec.nodeName) if pod.spec.nodeName else None

    def _expire_by_age(self) -> None:
        """What ends by itself: witnessed and unused quarantines, proofs that are too old."""
        now = self._wall()
        for name, handler in self._cluster.quarantines.expire(now):
            logger.info("node %s is tried again for handler %s", name, handler)
            self._issues.clear(handler, name)
            self._changed(name, handler)
            self._listener.released(name, handler)
            self._persist(name)
        for name, handler in self._cluster.evidence.expire(now):
            self.invalidate()
            self._changed(name, handler)
            self._persist(name)
        for pool_uid in self._cluster.probe_reservations.expire(now):
            self._listener.room_changed(pool_uid)
        if not 0 <= now - self._looked_for_unused < LOOK_FOR_UNUSED_SECONDS:
            self._looked_for_unused = now
            self._end_unused(now)

    def _end_unused(self, now: float) -> None:
        """End the quarantines that no scout will ever lift, because nobody uses the node so."""
        classes = self._classes_in_use()
        unused = {}
        for pair, _ in self._cluster.quarantines.open():
            node = self._cluster.nodes.get(pair[0])
            if node is not None and not any(_is_for(r, pair[1], node) for r in classes):
                unused[pair] = self._unused_since.get(pair, now)
        self._unused_since = unused
        for (name, handler), since in unused.items():
            if now - since >= UNUSED_SECONDS:
                logger.info("nobody uses handler %s on node %s any more", handler, name)
                self._cluster.quarantines.lift(name, handler, now=now)
                self._issues.clear(handler, name)
                self._release(name, handler)

    # --- Wanted --------------------------------------------------------------------------------

    def invalidate(self) -> None:
        """Nodes, classes, pools or evidence have changed: look again for what lacks evidence."""
        self._nothing_missing = False

    def pending_probes(self) -> Iterator[ProbeRequest]:
        """Probes that would tell something new, the most urgent first.

        First what sandboxes have hinted at, then the nodes on which sandboxes wait for evidence,
        then scouts, then all other nodes.
        """
        self._expire_by_age()
        classes = self._classes_in_use()
        for name, handler in self._cluster.hints.next_probes(self._wall()):
            if not self._cluster.quarantines.is_open(name, handler):
                yield from self._build_probe_request(name, handler, classes, "hint")
        satisfied = self._nothing_missing
        if not satisfied:
            satisfied = True
            for wish in self._evidence_of(self._with_sandboxes()):
                satisfied = False
                yield wish
        for name, handler in self._cluster.quarantines.due(self._wall()):
            yield from self._build_probe_request(name, handler, classes, "scout")
        if not self._nothing_missing:
            for wish in self._evidence_of(self._candidates()):
                satisfied = False
                yield wish
        self._nothing_missing = satisfied

    def _classes(self) -> list[Runtime]:
        return list(self._cluster.classes.values())

    def _classes_in_use(self) -> list[Runtime]:
        return [runtime for runtime in self._classes() if any(self._usable(runtime))]

    def _usable(self, runtime: Runtime) -> Iterator[Pool]:
        """The pools of a class that may use it."""
        pools = self._pools.by_class(runtime.class_name).pools.values()
        return (pool for pool in pools if _may_use(pool, runtime))

    def _wanting(self, runtime: Runtime) -> Iterator[Pool]:
        """Those of them that want proof."""
        return (pool for pool in self._usable(runtime) if _wants_proof(pool))

    def _build_probe_request(
        self, name: str, handler: str, classes: Iterable[Runtime], why: ProbePurpose
    ) -> Iterator[ProbeRequest]:
        """A probe of one of the handler's classes, if the pods of any may go to the node."""
        node = self._cluster.nodes.get(name)
        if node is None or not node.usable:
            return
        for runtime in classes:
            if _is_for(runtime, handler, node):
                yield ProbeRequest(node, runtime, why)
                return

    def _evidence_of(self, where: Iterable[tuple[NodeFacts, Runtime]]) -> Iterator[ProbeRequest]:
        """What a node lacks: first its positive control, then evidence of the runtime."""
        for node, runtime in where:
            if not self._wants_evidence(node, runtime):
                continue
            evidence = self._cluster.evidence
            control = evidence.current(node, CONTROL)
            if control is None or control.isolation is Isolation.UNAVAILABLE:
                yield ProbeRequest(node, None, "control", waiting=runtime.handler)
            elif control.isolation is Isolation.NOT_PROVEN:
                yield ProbeRequest(node, runtime, "evidence")
            elif evidence.current(node, runtime.handler) is None:
                # No probe could prove anything there.
                self._record_evidence(
                    node, runtime.handler, _without_control(node, runtime, control)
                )

    def _with_sandboxes(self) -> Iterator[tuple[NodeFacts, Runtime]]:
        """The nodes with sandboxes that wait for their node's evidence or positive control.

        Mostly few nodes lack any, so it is only their sandboxes that are looked at.
        """
        for runtime in self._classes():
            if not any(self._wanting(runtime)):
                continue
            for node in list(self._cluster.nodes):
                if self._wants_evidence(node, runtime) and self._is_waited_for(node, runtime):
                    yield node, runtime

    def _is_waited_for(self, node: NodeFacts, runtime: Runtime) -> bool:
        """Whether a sandbox of a pool that wants proof of this class is on the node."""
        pools = (self._pools.of(pod) for pod in self._cluster.pods.on_node(node.name))
        return any(
            pool is not None and _may_use(pool, runtime) and _wants_proof(pool) for pool in pools
        )

    def _candidates(self) -> Iterator[tuple[NodeFacts, Runtime]]:
        """The nodes that the next sandboxes may come to."""
        verdicts: dict[int, tuple[Verdict, Runtime]] = {}
        for runtime in self._classes():
            for pool in self._wanting(runtime):
                with contextlib.suppress(NodeConstraintsError):
                    # Pools of one class and placement share theirs.
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

    def _wants_evidence(self, node: NodeFacts, runtime: Runtime) -> bool:
        evidence = self._cluster.evidence
        known = evidence.current(node, runtime.handler)
        lacks = known is None or known.isolation is not Isolation.PROVEN
        return (
            node.usable
            and (lacks or evidence.is_renewal_due(node.name, runtime.handler))
            and not self._cluster.quarantines.is_open(node.name, runtime.handler)
        )


def _is_for(runtime: Runtime, handler: str, node: NodeFacts) -> bool:
    """The class is one of the handler, which the node does not lack, and may use the node.

    Two classes of one handler may be for different nodes.
    """
    return (
        runtime.handler == handler
        and runtime.admits(node.labels)
        and listed_handler_state(node, handler) is not HandlerState.NOT_SERVING
    )


def _room_of(probe_request: ProbeRequest) -> NodeHandler:
    """For which node and handler a probe needs room."""
    return probe_request.node.name, probe_request.waiting or probe_request.handler


def _may_use(pool: Pool, runtime: Runtime) -> bool:
    """The class is the pool's, and its handler is the pool's pin, if that has one."""
    spec = pool.spec
    return (
        spec is not None
        and spec.runtime_class_name == runtime.class_name
        and spec.expected_handler in (None, runtime.handler)
    )


def _wants_proof(pool: Pool) -> bool:
    return pool.proof is not IsolationProof.NONE and not pool.deleting


def _without_control(node: NodeFacts, runtime: Runtime, control: Evidence) -> Evidence:
    return no_evidence(node, runtime.uid, control.at, control_failure(control))
