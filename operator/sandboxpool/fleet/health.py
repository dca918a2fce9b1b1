"""What is known of the runtimes on each node, and how it comes to be known.

Only the operator's own probes judge: they open and close quarantines and bring evidence. What
happens to sandboxes is heard as hints, which order probes; nothing that a sandbox does, says or
leaves behind changes what is known of a node. Whatever changes is written down for the next start,
and told to whom it concerns.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Protocol

from sandboxpool.api.core import Pod
from sandboxpool.api.v1alpha1 import IsolationProof
from sandboxpool.cache import Cluster
from sandboxpool.fleet.prober import ProbeResult, Why, Wish, outcome_of
from sandboxpool.fleet.records import NodeRecords
from sandboxpool.pools.pool import Pool
from sandboxpool.pools.store import PoolStore
from sandboxpool.reasons import Reason
from sandboxpool.runtimes.diagnosis import diagnose
from sandboxpool.runtimes.evidence import (
    Evidence,
    Isolation,
    judge_sandbox,
    no_evidence,
    uncontrolled,
)
from sandboxpool.runtimes.issues import IssueBook
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.placement import PlacementError, allows, placement_of
from sandboxpool.runtimes.probe import CONTROL
from sandboxpool.runtimes.resolve import Runtime
from sandboxpool.runtimes.verdict import Answer, Verdict, answer_of

logger = logging.getLogger(__name__)

# Where no probe can answer, so many namespaces must have had sandboxes fail.
WITNESSES = 2


class HealthListener(Protocol):
    """Told of what changes, for work, events and metrics."""

    def node_changed(self, node: str, handler: str) -> None:
        """What is known of a handler on a node is not what it was, and perhaps some verdict."""

    def hinted(self) -> None:
        """A sandbox has failed in a way that may be its runtime's fault: there is more to probe."""

    def quarantined(self, node: str, handler: str, reason: Reason, message: str) -> None:
        """A quarantine has begun."""

    def released(self, node: str, handler: str) -> None:
        """A quarantine has ended, or its machine is gone."""

    def not_isolating(self, node: str, handler: str, evidence: Evidence) -> None:
        """A runtime was seen not to isolate."""

    def probed(self, handler: str, outcome: str) -> None:
        """A probe has ended; of no handler, if it was a positive control."""


class Health:
    """What is known of each node's runtimes beyond their lists.

    Args:
        pools: all pools.
        wall: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        cluster: Cluster,
        issues: IssueBook,
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
        self._satisfied = False

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
            evidence = record.get("evidence")
            self._cluster.evidence.load(name, evidence if isinstance(evidence, dict) else {})
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
        self._cluster.evidence.observe_node(name, node)
        if node is None:
            self._issues.forget_node(name)
            self._cluster.hints.forget_node(name)
            self._cluster.avoidance.forget_node(name)
        self._cluster.nodes.reconsider(name)
        self._write_down(name)

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
        if answer_of(node, runtime.handler) is Answer.NOT_SERVING:
            # The node says so itself: there is nothing to find out.
            return
        pair = node.name, runtime.handler
        self._cluster.hints.add(pod.metadata.namespace, pair, self._wall())
        self._listener.hinted()

    # --- Probed --------------------------------------------------------------------------------

    def observe_wish(self, wish: Wish) -> None:
        """A probe is sent."""
        self._cluster.hints.take(wish.pair, self._wall())

    def observe_probe(self, wish: Wish, result: ProbeResult) -> None:
        """A probe has ended."""
        self._listener.probed(wish.handler, outcome_of(wish, result))
        node = self._cluster.nodes.get(wish.node.name)
        if node is None or result.evidence is None:
            # What it was to tell of is no more.
            return
        if wish.why == "control":
            self._learn_control(node, result.evidence)
            return
        handler, now = wish.handler, self._wall()
        works = result.works
        right = None if works is None else not works
        self._cluster.hints.answer(wish.pair, result.made_at, right=right, now=now)
        if works:
            self._work(node, handler)
        if result.evidence.isolation is not Isolation.PROVEN or (
            self._cluster.evidence.is_controlled(node)
        ):
            self._learn(node, handler, result.evidence)
        if works is False and result.failure is not None:
            self._quarantine(node, handler, result.failure.reason, result.failure.message)
        elif works is None and wish.why in ("hint", "scout"):
            self._ask_witnesses(node, wish, result.evidence)

    def _work(self, node: NodeFacts, handler: str) -> None:
        if self._cluster.quarantines.work(node, handler, now=self._wall()):
            logger.info("node %s is no longer quarantined for handler %s", node.name, handler)
            # What was mended may be another runtime than before.
            self._cluster.evidence.forget(node.name, handler)
            self._cluster.avoidance.forget_node(node.name)
            self._changed(node.name, handler)
            self._listener.released(node.name, handler)
            self._write_down(node.name)
        self._issues.clear(handler, node.name)

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
        opened = self._cluster.quarantines.fail(
            node, handler, reason, message, now=now, witnessed=witnessed
        )
        if opened:
            logger.warning(
                "node %s is quarantined for handler %s: %s: %s", node.name, handler, reason, message
            )
            self._changed(node.name, handler)
            self._listener.quarantined(node.name, handler, reason, message)
        self._write_down(node.name)

    def _ask_witnesses(self, node: NodeFacts, wish: Wish, evidence: Evidence) -> None:
        """No probe can answer: sandboxes of several namespaces may, for half of the nodes."""
        handler, runtime = wish.handler, wish.runtime
        self._issues.record(
            handler, node.name, Reason.PROBE_UNANSWERED, evidence.message, self._wall()
        )
        seen = self._cluster.hints.count_witnesses(wish.pair, self._wall())
        if runtime is None or seen < WITNESSES:
            return
        # As the class's own selectors and tolerations see the fleet.
        verdict = self._cluster.nodes.verdict(
            handler, placement_of({}, runtime), proof_wanted=False
        )
        nodes = len(verdict.serving) + len(verdict.unknown) + len(verdict.quarantined)
        if self._cluster.quarantines.count_witnessed(handler) < nodes // 2:
            text = f"sandboxes of {seen} namespaces failed, and no probe can tell: "
            self._quarantine(
                node, handler, Reason.PROBE_UNANSWERED, text + evidence.message, witnessed=True
            )

    # --- Learned -------------------------------------------------------------------------------

    def _learn(self, node: NodeFacts, handler: str, evidence: Evidence) -> None:
        if not self._cluster.evidence.put(node.name, handler, evidence):
            return
        self._write_down(node.name)
        self._changed(node.name, handler)
        if evidence.isolation is Isolation.NOT_PROVEN:
            logger.warning("handler %s on node %s: %s", handler, node.name, evidence.message)
            self._listener.not_isolating(node.name, handler, evidence)

    def _learn_control(self, node: NodeFacts, evidence: Evidence) -> None:
        if not self._cluster.evidence.put(node.name, CONTROL, evidence):
            return
        self._write_down(node.name)
        if self._cluster.evidence.is_controlled(node):
            # The next to be asked for is the evidence itself; sandboxes that bring their own have
            # it now.
            self.unsettle()
            self._changed(node.name, CONTROL)
            return
        logger.warning("node %s: %s", node.name, uncontrolled(evidence))
        wanted = (runtime for runtime in self._classes() if any(self._wanting(runtime)))
        runtimes = {runtime.handler: runtime for runtime in wanted}
        for handler, runtime in runtimes.items():
            self._learn(node, handler, _without_control(node, runtime, evidence))
        self._changed(node.name, CONTROL)

    def _changed(self, node: str, handler: str) -> None:
        self._cluster.nodes.reconsider(node)
        self._listener.node_changed(node, handler)

    def _write_down(self, node: str) -> None:
        quarantines = self._cluster.quarantines.dump(node)
        evidence = self._cluster.evidence.dump(node)
        known = {"quarantines": quarantines, "evidence": evidence}
        self._records.put(node, known if quarantines or evidence else None)

    def _node_of(self, pod: Pod) -> NodeFacts | None:
        return self._cluster.nodes.get(pod.spec.nodeName) if pod.spec.nodeName else None

    def _let_time_pass(self) -> None:
        """What ends by itself: witnessed quarantines, and proofs that are too old."""
        now = self._wall()
        for name, handler in self._cluster.quarantines.expire(now):
            logger.info("node %s is tried again for handler %s", name, handler)
            self._issues.clear(handler, name)
            self._changed(name, handler)
            self._listener.released(name, handler)
            self._write_down(name)
        for name, handler in self._cluster.evidence.age(now):
            self.unsettle()
            self._changed(name, handler)
            self._write_down(name)

    # --- Wanted --------------------------------------------------------------------------------

    def unsettle(self) -> None:
        """Nodes, classes, pools or evidence have changed: look again for what lacks evidence."""
        self._satisfied = False

    def wishes(self) -> Iterator[Wish]:
        """Probes that would tell something new, the most urgent first.

        First what sandboxes have hinted at, then the nodes on which sandboxes wait for evidence,
        then scouts, then all other nodes.
        """
        self._let_time_pass()
        classes = [runtime for runtime in self._classes() if any(self._usable(runtime))]
        for name, handler in self._cluster.hints.wanted(self._wall()):
            if not self._cluster.quarantines.is_open(name, handler):
                yield from self._wish(name, handler, classes, "hint")
        satisfied = self._satisfied
        if not satisfied:
            satisfied = True
            for wish in self._evidence_of(self._with_sandboxes()):
                satisfied = False
                yield wish
        for name, handler in self._cluster.quarantines.due(self._wall()):
            yield from self._wish(name, handler, classes, "scout")
        if not self._satisfied:
            for wish in self._evidence_of(self._candidates()):
                satisfied = False
                yield wish
        self._satisfied = satisfied

    def _classes(self) -> list[Runtime]:
        return list(self._cluster.classes.values())

    def _usable(self, runtime: Runtime) -> Iterator[Pool]:
        """The pools of a class that may use it."""
        pools = self._pools.of_class(runtime.class_name).pools.values()
        return (pool for pool in pools if _may_use(pool, runtime))

    def _wanting(self, runtime: Runtime) -> Iterator[Pool]:
        """Those of them that want proof."""
        return (pool for pool in self._usable(runtime) if _wants_proof(pool))

    def _wish(
        self, name: str, handler: str, classes: Iterable[Runtime], why: Why
    ) -> Iterator[Wish]:
        """A probe of one of the handler's classes, if the pods of any may go to the node."""
        node = self._cluster.nodes.get(name)
        if node is None or not node.usable or answer_of(node, handler) is Answer.NOT_SERVING:
            return
        # Probes tolerate every taint, as templates may.
        untainted = replace(node, taints=())
        for runtime in classes:
            # Two classes of one handler may be for different nodes.
            if runtime.handler == handler and allows(
                placement_of({}, runtime), untainted, now=False
            ):
                yield Wish(node, runtime, why)
                return

    def _evidence_of(self, where: Iterable[tuple[NodeFacts, Runtime]]) -> Iterator[Wish]:
        """What a node lacks: first its positive control, then evidence of the runtime."""
        for node, runtime in where:
            if not self._wants_evidence(node, runtime):
                continue
            evidence = self._cluster.evidence
            control = evidence.current(node, CONTROL)
            if control is None or control.isolation is Isolation.UNAVAILABLE:
                yield Wish(node, None, "control", waiting=runtime.handler)
            elif control.isolation is Isolation.NOT_PROVEN:
                yield Wish(node, runtime, "evidence")
            elif evidence.current(node, runtime.handler) is None:
                # No probe could prove anything there.
                self._learn(node, runtime.handler, _without_control(node, runtime, control))

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
                with contextlib.suppress(PlacementError):
                    # Pools of one class and placement share theirs.
                    verdict = self._cluster.verdict(pool, runtime)
                    verdicts[id(verdict)] = verdict, runtime
        for verdict, runtime in verdicts.values():
            for name in (*verdict.serving, *verdict.unknown, *verdict.not_isolating):
                node = self._cluster.nodes.get(name)
                if node is not None:
                    yield node, runtime

    def _wants_evidence(self, node: NodeFacts, runtime: Runtime) -> bool:
        evidence = self._cluster.evidence
        known = evidence.current(node, runtime.handler)
        lacks = known is None or known.isolation is not Isolation.PROVEN
        return (
            node.usable
            and (lacks or evidence.is_old(node.name, runtime.handler))
            and not self._cluster.quarantines.is_open(node.name, runtime.handler)
        )


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
    return no_evidence(node, runtime.uid, control.at, uncontrolled(control))
