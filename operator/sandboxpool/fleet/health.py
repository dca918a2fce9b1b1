"""Turns what happens to sandboxes into what is known of the runtimes on their nodes.

Pods that fail or work, probes and nodes are observed here; breakers, evidence and issues are the
memory. Whatever changes is written down for the next start, and told to whom it concerns.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from sandboxpool.api import names
from sandboxpool.api.core import Pod
from sandboxpool.api.times import epoch
from sandboxpool.api.v1alpha1 import IsolationProof
from sandboxpool.cache import Cluster
from sandboxpool.fleet.prober import ProbeResult, Wish
from sandboxpool.fleet.records import NodeRecords
from sandboxpool.pools.members import pool_uid_of
from sandboxpool.pools.pool import Pool
from sandboxpool.reasons import Reason
from sandboxpool.runtimes.breaker import Strike
from sandboxpool.runtimes.diagnosis import Failure, diagnose
from sandboxpool.runtimes.evidence import Evidence, Isolation, judge_sandbox
from sandboxpool.runtimes.issues import IssueBook
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.placement import Placement, PlacementError
from sandboxpool.runtimes.resolve import Runtime
from sandboxpool.runtimes.verdict import Answer, Verdict, answer_of

logger = logging.getLogger(__name__)


class HealthListener(Protocol):
    """Told of what changes, for work, events and metrics."""

    def node_changed(self, node: str, handler: str, *, stands_otherwise: bool) -> None:
        """What is known of a handler on a node is not what it was, and perhaps some verdict."""

    def quarantined(self, node: str, handler: str, reason: Reason, message: str) -> None:
        """A breaker has opened."""

    def released(self, node: str, handler: str) -> None:
        """A breaker has closed, or its machine is gone."""

    def not_isolating(self, node: str, handler: str, evidence: Evidence) -> None:
        """A runtime was seen not to isolate."""

    def probed(self, handler: str, result: ProbeResult) -> None:
        """A probe has ended."""


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
        pools: Iterable[Pool],
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
            self._cluster.breakers.load(name, record.get("breakers") or {})
            evidence = record.get("evidence")
            self._cluster.evidence.load(name, evidence if isinstance(evidence, dict) else {})
            self._loaded.add(name)
        for (name, handler), breaker in self._cluster.breakers.open():
            # What is kept out stands, whenever it was last tried.
            self._issues.record(handler, name, breaker.reason, breaker.message, self._wall())

    def forget_missing(self) -> None:
        """All nodes are known now: drop what was kept of others."""
        for name in self._loaded:
            if self._cluster.nodes.get(name) is None:
                self.observe_node(name, None)
        self._loaded.clear()

    # --- Observed ------------------------------------------------------------------------------

    def observe_node(self, name: str, node: NodeFacts | None) -> None:
        """A node has changed in what matters, or is gone."""
        for handler in self._cluster.breakers.observe_node(name, node):
            self._issues.clear(handler, name)
            self._listener.released(name, handler)
        self._cluster.evidence.observe_node(name, node)
        if node is None:
            self._issues.forget_node(name)
        self._cluster.nodes.reconsider(name)
        self._write_down(name)

    def observe_pod(self, old: Pod | None, pod: Pod) -> None:
        """A sandbox, or what was said of it, has changed: does its runtime work and isolate?

        Args:
            old: what it was before; None if that is not known.
            pod: what it is now.
        """
        node = self._node_of(pod)
        if node is None:
            return
        handler = _handler_of(pod)
        now = self._wall()
        if old is not None and judge_sandbox(old, node, now) is None:
            # It speaks for its node when it has just answered, not whenever it is listed again.
            own = judge_sandbox(pod, node, now)
            if own is not None and own.isolation is not Isolation.UNAVAILABLE:
                self._learn(node, handler, own)
        event = self._cluster.events.get(pod.metadata.uid)
        if _works(pod):
            # Whatever was said of its sandbox was said before there was one.
            event = None
            made_at = epoch(pod.metadata.creationTimestamp)
            self._succeeded(node, handler, made_at, _template_of(pod))
            if old is not None and not _works(old):
                # One that has worked for long says nothing of what fails now.
                self._clear_issues(node, handler)
        failure = diagnose(pod, event.message if event is not None else None)
        if failure is not None and failure.blames_runtime:
            ready = pod.condition("Ready")
            since = epoch(ready.lastTransitionTime or "") if ready is not None else 0.0
            at = event.at if event is not None else since
            if at:
                # Without a time nobody could tell that it is not an old story told again.
                self._failed(pod, node, failure, at)

    def observe_timeout(self, pod_uid: str) -> None:
        """A sandbox is given up, and nobody has said why it did not start."""
        pod = self._cluster.pods.get(pod_uid)
        node = self._node_of(pod) if pod is not None else None
        made = pod.condition("PodReadyToStartContainers") if pod is not None else None
        if pod is None or node is None or (made is not None and made.status == "True"):
            return
        failure = Failure(
            Reason.SANDBOX_START_TIMEOUT,
            "the sandbox was not made in time, and no cause was reported",
            node.name,
            blames_runtime=True,
        )
        self._failed(pod, node, failure, self._wall())

    def observe_probe(self, name: str, handler: str, runtime: Runtime, result: ProbeResult) -> None:
        """A probe has ended."""
        del runtime
        self._listener.probed(handler, result)
        node = self._cluster.nodes.get(name)
        if node is None:
            return
        if result.started:
            self._succeeded(node, handler, result.made_at, template="")
            self._clear_issues(node, handler)
        if result.evidence is not None:
            self._learn(node, handler, result.evidence)
        failure = result.failure
        if failure is not None and failure.blames_runtime:
            at, proves = self._wall(), failure.proves_broken
            strike = Strike("", "", at, failure.reason, failure.message, proves)
            self._strike(node, handler, strike)

    # --- Learned -------------------------------------------------------------------------------

    def _failed(self, pod: Pod, node: NodeFacts, failure: Failure, at: float) -> None:
        if answer_of(node, _handler_of(pod)) is Answer.NOT_SERVING:
            # The node says so itself: there is nothing to find out by a quarantine.
            return
        strike = Strike(
            pod.metadata.uid,
            _template_of(pod),
            at,
            failure.reason,
            failure.message,
            failure.proves_broken,
        )
        self._strike(node, _handler_of(pod), strike)

    def _strike(self, node: NodeFacts, handler: str, strike: Strike) -> None:
        now = self._wall()
        self._issues.record(handler, node.name, strike.reason, strike.message, strike.at)
        opened = self._cluster.breakers.strike(
            node, handler, strike, serving=self._serving(handler), now=now
        )
        if opened:
            logger.warning(
                "node %s is quarantined for handler %s: %s: %s",
                node.name,
                handler,
                strike.reason,
                strike.message,
            )
            self._changed(node.name, handler)
            self._listener.quarantined(node.name, handler, strike.reason, strike.message)
        self._write_down(node.name)

    def _succeeded(self, node: NodeFacts, handler: str, made_at: float, template: str) -> None:
        breakers = self._cluster.breakers
        if breakers.succeed(node, handler, made_at=made_at, template=template, now=self._wall()):
            logger.info("node %s is no longer quarantined for handler %s", node.name, handler)
            # What was mended may be another runtime than before.
            self._cluster.evidence.forget(node.name, handler)
            self._changed(node.name, handler)
            self._listener.released(node.name, handler)
            self._write_down(node.name)
            self._clear_issues(node, handler)

    def _clear_issues(self, node: NodeFacts, handler: str) -> None:
        """The runtime works, unless its breaker says otherwise."""
        if not self._cluster.breakers.is_open(node.name, handler):
            self._issues.clear(handler, node.name)

    def _learn(self, node: NodeFacts, handler: str, evidence: Evidence) -> None:
        if not self._cluster.evidence.put(node.name, handler, evidence):
            return
        self._write_down(node.name)
        self._changed(node.name, handler)
        if evidence.isolation is Isolation.NOT_PROVEN:
            logger.warning("handler %s on node %s: %s", handler, node.name, evidence.message)
            self._listener.not_isolating(node.name, handler, evidence)

    def _changed(self, node: str, handler: str) -> None:
        stands_otherwise = self._cluster.nodes.reconsider(node)
        self._listener.node_changed(node, handler, stands_otherwise=stands_otherwise)

    def _write_down(self, node: str) -> None:
        breakers = self._cluster.breakers.dump(node)
        evidence = self._cluster.evidence.dump(node)
        known = {"breakers": breakers, "evidence": evidence}
        self._records.put(node, known if breakers or evidence else None)

    def _serving(self, handler: str) -> int:
        verdict = self._cluster.nodes.verdict(handler, Placement(), proof_wanted=False)
        return len(verdict.serving) + len(verdict.unknown) + len(verdict.quarantined)

    def _node_of(self, pod: Pod) -> NodeFacts | None:
        return self._cluster.nodes.get(pod.spec.nodeName) if pod.spec.nodeName else None

    # --- Wanted --------------------------------------------------------------------------------

    def unsettle(self) -> None:
        """Nodes, classes, pools or evidence have changed: look again for what lacks evidence."""
        self._satisfied = False

    def wishes(self) -> Iterator[Wish]:
        """Probes that would tell something new, the most urgent first.

        First the nodes on which sandboxes wait for evidence, then scouts, then all other nodes.
        """
        runtimes: dict[str, Runtime] = {}
        wanting: list[tuple[Pool, Runtime]] = []
        for pool in self._pools:
            resolution = self._cluster.resolution(pool)
            if resolution is None or resolution.runtime is None or not resolution.usable:
                continue
            runtimes.setdefault(resolution.runtime.handler, resolution.runtime)
            if pool.proof is not IsolationProof.OFF and not pool.deleting:
                wanting.append((pool, resolution.runtime))
        satisfied = self._satisfied
        if not satisfied:
            satisfied = True
            for wish in self._evidence_of(self._with_sandboxes(wanting)):
                satisfied = False
                yield wish
        for name, handler in self._cluster.breakers.due(self._wall()):
            node, runtime = self._cluster.nodes.get(name), runtimes.get(handler)
            if node is None or runtime is None or not node.usable:
                continue
            if answer_of(node, handler) is not Answer.NOT_SERVING:
                yield Wish(node, runtime, "scout")
        if not self._satisfied:
            for wish in self._evidence_of(self._candidates(wanting)):
                satisfied = False
                yield wish
        self._satisfied = satisfied

    def _evidence_of(self, where: Iterable[tuple[NodeFacts, Runtime]]) -> Iterator[Wish]:
        for node, runtime in where:
            if self._wants_evidence(node, runtime):
                yield Wish(node, runtime, "evidence")

    def _with_sandboxes(
        self, wanting: list[tuple[Pool, Runtime]]
    ) -> Iterator[tuple[NodeFacts, Runtime]]:
        """The nodes with sandboxes that their proof stands for."""
        for pool, runtime in wanting:
            if pool.proof is IsolationProof.PER_NODE:
                for pod in list(self._cluster.pods.of_pool(pool.uid).values()):
                    node = self._node_of(pod)
                    if node is not None:
                        yield node, runtime

    def _candidates(
        self, wanting: list[tuple[Pool, Runtime]]
    ) -> Iterator[tuple[NodeFacts, Runtime]]:
        """The nodes that the next sandboxes may come to.

        Where each sandbox is proven by itself, only the nodes that a sandbox has spoken against:
        nothing else would ever come to them again.
        """
        verdicts: dict[int, tuple[Verdict, Runtime, bool]] = {}
        for pool, runtime in wanting:
            with contextlib.suppress(PlacementError):
                # Pools of one class and placement share theirs.
                verdict = self._cluster.verdict(pool, runtime)
                known = verdicts.get(id(verdict))
                probed = pool.proof is IsolationProof.PER_NODE or (known is not None and known[2])
                verdicts[id(verdict)] = verdict, runtime, probed
        for verdict, runtime, probed in verdicts.values():
            others = (*verdict.serving, *verdict.unknown) if probed else ()
            for name in (*others, *verdict.unproven):
                node = self._cluster.nodes.get(name)
                if node is not None:
                    yield node, runtime

    def _wants_evidence(self, node: NodeFacts, runtime: Runtime) -> bool:
        known = self._cluster.evidence.current(node, runtime.handler)
        return (
            node.usable
            and (known is None or known.isolation is not Isolation.PROVEN)
            and not self._cluster.breakers.is_open(node.name, runtime.handler)
        )


def _handler_of(pod: Pod) -> str:
    return pod.metadata.annotations.get(names.ANNOTATION_HANDLER, "")


def _template_of(pod: Pod) -> str:
    return f"{pool_uid_of(pod) or ''}/{pod.metadata.labels.get(names.LABEL_REVISION, '')}"


def _works(pod: Pod) -> bool:
    """A container has begun to run: the runtime has made a sandbox and something in it."""
    return pod.ready or any(
        c.state.running is not None
        for c in (*pod.status.initContainerStatuses, *pod.status.containerStatuses)
    )
