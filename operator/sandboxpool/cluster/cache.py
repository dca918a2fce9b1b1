"""What we know of the cluster: pods, nodes, classes and sandbox failures, indexed in memory.

Fed by the informers, read by the reconcilers; it writes nothing and decides nothing. Every index
is kept up to date by the change itself, so no reader ever scans what is not its own.
"""

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from sandboxpool.api import names
from sandboxpool.api.core import Pod
from sandboxpool.api.v1alpha1 import IsolationProof
from sandboxpool.cluster.events import SandboxEvents
from sandboxpool.cluster.nodes import NodeIndex
from sandboxpool.cluster.pods import PodIndex
from sandboxpool.cluster.pool import Pool
from sandboxpool.runtimes.avoidance import AvoidedNodes, chosen, exclude_nodes
from sandboxpool.runtimes.evidence import (
    MAX_AGE_SECONDS,
    Evidence,
    EvidenceStore,
    Isolation,
    control_failure,
    judge_sandbox,
    no_evidence,
)
from sandboxpool.runtimes.exclusion import AVOIDED, handler_key, pool_key
from sandboxpool.runtimes.hints import Hints
from sandboxpool.runtimes.host_state import HostState
from sandboxpool.runtimes.node_constraints import NodeConstraints, node_constraints_of
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.probe import CONTROL
from sandboxpool.runtimes.probe_reservations import ProbeReservations
from sandboxpool.runtimes.quarantine import Quarantines
from sandboxpool.runtimes.resolve import Resolution, Runtime, resolve
from sandboxpool.runtimes.verdict import Verdict

MAX_HOST_STATES = 50_000


class ClusterCache:
    """All caches of the cluster's own kinds.

    Args:
        max_proof_age: seconds after which a proof of isolation is none any more.
        wall: seconds since the epoch.
        on_exclusion_change: told the name of a node whose exclusion labels may have to change.
    """

    def __init__(
        self,
        max_proof_age: float = MAX_AGE_SECONDS,
        wall: Callable[[], float] = time.time,
        on_exclusion_change: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.pods = PodIndex()
        self.quarantines = Quarantines(random.random)
        self.evidence = EvidenceStore(max_proof_age)
        self.hints = Hints()
        self.avoided_nodes = AvoidedNodes()
        self.probe_reservations = ProbeReservations()
        self.nodes = NodeIndex(self.quarantines, self.evidence, wall, on_exclusion_change)
        self.events = SandboxEvents()
        self.classes: dict[str, Runtime] = {}
        self._host_states: dict[tuple[str, str, IsolationProof], HostState] = {}
        # By the pool's uid, with what they were made of.
        self._constraints: dict[str, tuple[Mapping[str, Any], Runtime, NodeConstraints]] = {}
        # What the dry run has shown, by the pool's uid, with the revision and class of it.
        self._admitted: dict[str, tuple[str, Runtime, NodeConstraints]] = {}
        # The names of the nodes that each pool keeps away from, where it does so.
        self._avoided: dict[str, tuple[str, ...]] = {}

    def resolution(self, pool: Pool) -> Resolution | None:
        """What the pool's class stands for now; None for a pool that does not fit the API."""
        if pool.spec is None:
            return None
        return resolve(pool.spec.runtime_class_name, pool.spec.expected_handler, self.classes)

    def verdict(self, pool: Pool, runtime: Runtime) -> Verdict:
        """How the fleet stands to a pool.

        Raises:
            NodeConstraintsError: its template is malformed.
        """
        verdict = self.nodes.verdict(
            runtime.handler,
            self._constraints_of(pool, runtime),
            proof_wanted=pool.proof is not IsolationProof.NONE,
            reader=("pool", pool.uid),
        )
        avoided = self.avoided_nodes.of(pool.uid)
        if not avoided and pool.uid not in self._avoided:
            return verdict
        found = (self.nodes.get(name) for name in avoided)
        nodes = chosen(verdict, [node for node in found if node is not None])
        self._set_avoided(pool.uid, tuple(sorted(node.name for node in nodes)))
        return exclude_nodes(verdict, nodes, pool.uid, self.nodes.unlabelable) if nodes else verdict

    def _set_avoided(self, pool_uid: str, nodes: tuple[str, ...]) -> None:
        before = self._avoided.pop(pool_uid, ())
        if nodes:
            self._avoided[pool_uid] = nodes
        for name in set(before) ^ set(nodes):
            self.nodes.on_exclusion_change(name)

    def pools_avoiding(self, node: str) -> list[str]:
        """The uids of the pools that keep away from a node by themselves."""
        return [uid for uid, nodes in self._avoided.items() if node in nodes]

    def exclusion_labels(self, node: str) -> dict[str, str]:
        """The labels that keep pods off a node."""
        handlers = {runtime.handler for runtime in self.classes.values()}
        marks = self.nodes.exclusion_reasons(node)
        labels = {handler_key(h): str(why) for h, why in marks.items() if h in handlers}
        return labels | {pool_key(uid): AVOIDED for uid in self.pools_avoiding(node)}

    def note_admitted(
        self, pool: Pool, runtime: Runtime, placement: NodeConstraints | None
    ) -> None:
        """What limits the nodes of a pool's pods, as admission leaves them; None: not known."""
        if placement is None:
            self._admitted.pop(pool.uid, None)
        elif self._admitted.get(pool.uid) != (pool.revision, runtime, placement):
            self._admitted[pool.uid] = pool.revision, runtime, placement

    def _constraints_of(self, pool: Pool, runtime: Runtime) -> NodeConstraints:
        admitted = self._admitted.get(pool.uid)
        if admitted is not None and admitted[:2] == (pool.revision, runtime):
            return admitted[2]
        known = self._constraints.get(pool.uid)
        # A template stays the same object for as long as nobody edits it.
        if known is not None and known[0] is pool.template and known[1] is runtime:
            return known[2]
        placement = node_constraints_of(pool.template.get("spec") or {}, runtime)
        self._constraints[pool.uid] = pool.template, runtime, placement
        return placement

    def lacks_verdict(self, pool: Pool) -> bool:
        """Whether a pool that may make sandboxes has not been looked at yet."""
        resolution = self.resolution(pool)
        return (
            not pool.deleting
            and resolution is not None
            and resolution.runtime is not None
            and not self.nodes.is_read_by(("pool", pool.uid))
        )

    def forget_pool(self, uid: str) -> None:
        """The pool is gone, so that no verdict concerns it."""
        self._constraints.pop(uid, None)
        self._admitted.pop(uid, None)
        self._set_avoided(uid, ())
        self.nodes.forget(("pool", uid))

    def runtime_of(self, pod: Pod) -> Runtime | None:
        """The class that a pod was made of; None unless all that it says of it agrees."""
        runtime = self.classes.get(pod.spec.runtimeClassName)
        annotations = pod.metadata.annotations
        agrees = (
            runtime is not None
            and annotations.get(names.ANNOTATION_RUNTIME_UID) == runtime.uid
            and annotations.get(names.ANNOTATION_HANDLER) == runtime.handler
        )
        return runtime if agrees else None

    def host_state(self, pod: Pod, proof: IsolationProof) -> HostState:
        """What a pod stands on, with as much proof as its pool wants."""
        handler = pod.metadata.annotations.get(names.ANNOTATION_HANDLER, "")
        node = self.nodes.get(pod.spec.nodeName) if pod.spec.nodeName else None
        found = self._evidence_for(pod, node, handler, proof) if node is not None else None
        return HostState(
            node=node,
            handler=handler,
            quarantined=node is not None and self.quarantines.is_open(node.name, handler),
            isolation=found.isolation if found is not None else None,
            proof_wanted=proof is not IsolationProof.NONE,
            isolation_message=found.message if found is not None else "",
        )

    def host_state_lookup(self, proof: IsolationProof) -> Callable[[Pod], HostState]:
        """Return ``host_state`` for many pods of one moment.

        Pods of one node and handler share the answer, unless each has a proof of its own, or is
        judged by its age; and as long as it stays the same it is the same object, which is quick
        to compare.
        """
        shared: dict[tuple[str, str], HostState] = {}
        if len(self._host_states) > MAX_HOST_STATES:
            # Of nodes that are gone, for the most part.
            self._host_states.clear()

        def host_state(pod: Pod) -> HostState:
            if self.evidence.has_superseded(pod.spec.nodeName):
                return self.host_state(pod, proof)
            key = pod.spec.nodeName, pod.metadata.annotations.get(names.ANNOTATION_HANDLER, "")
            found = shared.get(key)
            if found is None:
                found = self.host_state(pod, proof)
                before = self._host_states.get((*key, proof))
                if found == before:
                    found = before
                shared[key] = self._host_states[*key, proof] = found
            return found

        if proof is IsolationProof.PER_SANDBOX:
            return lambda pod: self.host_state(pod, proof)
        return host_state

    def _evidence_for(
        self, pod: Pod, node: NodeFacts, handler: str, proof: IsolationProof
    ) -> Evidence | None:
        if proof is IsolationProof.NONE:
            return None
        of_node = self.evidence.evidence_for(pod, node, handler)
        refuted = of_node is not None and of_node.isolation is Isolation.NOT_PROVEN
        if proof is not IsolationProof.PER_SANDBOX or refuted:
            return of_node
        own = judge_sandbox(pod, node, now=0.0)
        if own is None or own.isolation is not Isolation.PROVEN:
            return own
        control = self.evidence.evidence_for(pod, node, CONTROL)
        if control is None:
            return None
        if control.isolation is Isolation.NOT_PROVEN:
            return own
        return no_evidence(node, own.class_uid, 0.0, control_failure(control))
