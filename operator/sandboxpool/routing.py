"""Routes watch events to the caches, the work queues and the components that observe them.

The informers and stores call the router after each change. It does not wait, makes no decision and
writes nothing.
"""

import logging
from dataclasses import dataclass

from sandboxpool.allocation.allocator import Allocator
from sandboxpool.allocation.candidate_tracker import CandidateTracker
from sandboxpool.api.core import Event, Node, Pod
from sandboxpool.api.reasons import Reason
from sandboxpool.api.v1alpha1 import SandboxClaim, SandboxRuntime
from sandboxpool.claims.index import ClaimIndex
from sandboxpool.claims.reconcile import ClaimReconciler
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.ownership import claim_uid_of
from sandboxpool.cluster.pool import Pool
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.fleet.gather import RuntimeStatusGatherer
from sandboxpool.fleet.health import Health
from sandboxpool.fleet.prober import Prober
from sandboxpool.fleet.reconcile import RuntimeReconciler
from sandboxpool.kube.events import EventRecorder
from sandboxpool.kube.workqueue import WorkQueue
from sandboxpool.observability.metrics import Metrics
from sandboxpool.pools.reconcile import PoolReconciler
from sandboxpool.runtimes.evidence import Evidence, software_of
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.sandboxes.event_reader import PodEventReader
from sandboxpool.util.references import ObjectReference

logger = logging.getLogger(__name__)

Key = tuple[str, str]

# Changes come in bursts. A key is enqueued after a delay, so that one reconciliation covers many.
POD_BURST_SECONDS = 0.05
NODE_BURST_SECONDS = 0.1
# A pod mostly changes by itself within this time after it was allocated or released.
ALLOCATION_SECONDS = 0.5


@dataclass
class Queues:
    """The work queues: keys of pools and claims are namespace and name, all others the name."""

    pools: WorkQueue[Key]
    claims: WorkQueue[Key]
    # None if the operator does not manage SandboxRuntimes.
    runtimes: WorkQueue[str] | None
    # None if nodes are neither labelled nor published on.
    nodes: WorkQueue[str] | None

    def close(self) -> None:
        """Cancel all timers."""
        for queue in (self.pools, self.claims, self.runtimes, self.nodes):
            if queue is not None:
                queue.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Destinations:
    """The caches that changes are applied to, and the components that observe them."""

    cluster: ClusterCache
    pools: PoolStore
    allocator: Allocator
    candidate_tracker: CandidateTracker
    pool_reconciler: PoolReconciler
    claim_reconciler: ClaimReconciler
    runtime_reconciler: RuntimeReconciler
    fleet: RuntimeStatusGatherer
    health: Health
    prober: Prober
    event_reader: PodEventReader
    events: EventRecorder
    metrics: Metrics
    queues: Queues


class EventRouter:
    """Has one method for each kind of change.

    The router is created before all other components, so that each of them can be given the
    router's methods at its creation. ``connect`` is called after that, before the first change.
    """

    _to: Destinations

    def __init__(self) -> None:
        self._claims = ClaimIndex()

    def connect(self, destinations: Destinations) -> None:
        """Set the destinations of all changes."""
        self._to = destinations

    # --- Objects ---------------------------------------------------------------------------------

    def pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        """A sandbox's pod has changed."""
        self._to.cluster.pods.put(old, new)
        was, is_now = (
            self._to.pools.uid_of(state) if state is not None else None for state in (old, new)
        )
        for pool_uid in {was, is_now} - {None}:
            assert pool_uid is not None
            self._to.pool_reconciler.observe_pod(pool_uid, old, new if pool_uid == is_now else None)
            pool = self._to.pools.by_uid(pool_uid)
            if pool is not None:
                self._to.queues.pools.add_after(pool.key, POD_BURST_SECONDS)
        if new is not None:
            if was is not None and is_now is None:
                logger.warning(
                    "pod %s/%s does not belong to its pool any more: its controller owner or "
                    "labels were changed by another client; the pool replaces it",
                    new.metadata.namespace,
                    new.metadata.name,
                )
            self._observe_sandbox(new)
            self._to.candidate_tracker.refresh([new])
        elif old is not None:
            if claim_uid_of(old) is None and self._to.allocator.is_allocated(old.metadata.uid):
                self._enqueue_claims_bound_to(old.metadata.uid)
            self._to.allocator.release(old.metadata.uid)
            self._to.claim_reconciler.observe_pod_deleted(old)
            self._to.cluster.events.forget(old)
        if new is None or (new.ready and (old is None or not old.ready)):
            # No further events of the pod are read.
            self._to.event_reader.forget(new or old)  # type: ignore[arg-type]
        for state in (old, new):
            if state is not None:
                self._enqueue_claim_of(state)

    def node_changed(self, old: Node | None, new: Node | None) -> None:
        """A node has changed; mere heartbeats are not routed."""
        name = (new or old).metadata.name  # type: ignore[union-attr]
        before = self._to.cluster.nodes.get(name)
        if not self._to.cluster.nodes.put(old, new):
            return
        after = self._to.cluster.nodes.get(name)
        self._to.health.observe_node(name, after)
        if old is None:
            # Its pods may have been delivered before it.
            for pod in self._to.cluster.pods.on_node(name):
                self._observe_sandbox(pod)
        self._enqueue_pods_on(name)
        verdicts_changed = self._enqueue_readers()
        # Evidence of the node may be void now, or may have to be probed for.
        changed = not _same_usability(before, after)
        if changed:
            for class_name in self._to.cluster.classes:
                self._enqueue_runtime(class_name)
        if changed or verdicts_changed:
            self._request_probes()
        for pool_uid in self._to.cluster.pools_avoiding(name):
            # The pool may have waited for the node's label.
            pool = self._to.pools.by_uid(pool_uid)
            if pool is not None:
                self._to.queues.pools.add_after(pool.key, NODE_BURST_SECONDS)
        self.enqueue_node(name)

    def sandbox_event(self, old: Event | None, new: Event | None) -> None:
        """The kubelet has reported why a sandbox could not be created."""
        del old
        if new is None:
            return
        cluster = self._to.cluster
        changed = cluster.events.put(new)
        pod = cluster.pods.get(new.involvedObject.uid)
        if pod is None:
            return
        pool = self._to.pools.of(pod)
        if pool is None:
            return
        self._to.health.observe_sandbox(pod)
        self._to.pool_reconciler.mark_dirty(pool.uid, pod.metadata.uid)
        if changed:
            self._to.queues.pools.add(pool.key)
            self._enqueue_claim_of(pod)

    def pod_events_read(self, pod: Pod) -> None:
        """The events of a pod were read."""
        pool = self._to.pools.of(pod)
        if pool is None:
            return
        self._to.pool_reconciler.mark_dirty(pool.uid, pod.metadata.uid)
        self._to.queues.pools.add(pool.key)
        self._enqueue_claim_of(pod)

    def claim_changed(self, old: SandboxClaim | None, new: SandboxClaim | None) -> None:
        """A claim has changed."""
        self._to.claim_reconciler.observe_claim(old, new)
        self._claims.put(old, new)
        if new is not None:
            self._to.queues.claims.add(new.key)
        elif old is not None:
            self._to.queues.claims.drop(old.key)

    def pool_changed(self, old: Pool | None, new: Pool | None) -> None:
        """A pool has changed."""
        gone = old is not None and (new is None or new.deleting or new.uid != old.uid)
        if old is not None and gone:
            self._to.allocator.forget_pool(old.uid)
            if new is None or new.uid != old.uid:
                self._to.pool_reconciler.forget(old.uid)
                self._to.cluster.forget_pool(old.uid)
                self._to.metrics.forget_pool(old)
        # A change of the status alone, mostly by the operator itself, affects no claim.
        changed = gone or old is None or new is None or old.generation != new.generation
        for state in (old, new):
            if state is not None and state.spec is not None:
                self._enqueue_runtime(state.spec.runtime_class_name)
        if new is not None:
            if changed:
                self._to.candidate_tracker.refresh_pool(new)
            self._to.queues.pools.add(new.key)
        elif old is not None:
            self._to.queues.pools.drop(old.key)
        if changed:
            self._request_probes()
            key = (new or old).key  # type: ignore[union-attr]
            for claim in self._claims.of_pool(key):
                self._to.queues.claims.add(claim)

    def runtime_class_changed(self, name: str) -> None:
        """A RuntimeClass was added, changed or deleted."""
        for pool in list(self._to.pools.by_class(name).pools.values()):
            self._to.candidate_tracker.refresh_pool(pool)
            self._to.queues.pools.add(pool.key)
        self._enqueue_runtime(name, at_once=True)
        for node in self._to.cluster.nodes:
            self.enqueue_node(node.name)
        self._request_probes()

    def claim_granted(self, claim_uid: str) -> None:
        """A pod was reserved for a waiting claim; a deleted claim leaves it to the next one."""
        if not self.enqueue_claim(claim_uid):
            self._to.candidate_tracker.cancel_claim(claim_uid)

    def pod_hold_changed(self, pool_uid: str, pod_uid: str) -> None:
        """A pod was allocated or released, which the pod itself may never show."""
        self._to.pool_reconciler.mark_dirty(pool_uid, pod_uid)
        pool = self._to.pools.by_uid(pool_uid)
        if pool is not None:
            self._to.queues.pools.add_after(pool.key, ALLOCATION_SECONDS)

    def runtime_changed(self, old: SandboxRuntime | None, new: SandboxRuntime | None) -> None:
        """A SandboxRuntime has changed; the operator's own writes are not enqueued."""
        if self._to.runtime_reconciler.observe(old, new):
            self._enqueue_runtime((new or old).metadata.name, at_once=True)  # type: ignore[union-attr]

    def startup_measured(self, pool: Pool, stage: str, seconds: float) -> None:
        """A sandbox of the pool reached a start-up stage this many seconds after its creation."""
        resolution = self._to.cluster.resolution(pool)
        if resolution is not None and resolution.runtime is not None:
            runtime = resolution.runtime
            self._to.metrics.startup(pool, runtime.handler, stage, seconds)
            self._to.fleet.measured(runtime.class_name, stage, seconds)

    # --- The runtimes' health --------------------------------------------------------------------

    def handler_changed(self, node: str, handler: str) -> None:
        """The state of a handler on a node has changed, and so verdicts may have."""
        self._enqueue_pods_on(node)
        self._enqueue_readers()
        for runtime in self._to.cluster.classes.values():
            if runtime.handler == handler:
                self._enqueue_runtime(runtime.class_name)
        self.enqueue_node(node)
        self._request_probes()

    def probe_hinted(self) -> None:
        """A sandbox has failed, perhaps because of its runtime: there is a new probe to run."""
        self._to.prober.wake()

    def quarantined(self, node: str, handler: str, reason: Reason, message: str) -> None:
        """A quarantine has begun."""
        self._to.metrics.quarantine_changed(handler, "open")
        text = f"no new sandbox of handler {handler} is scheduled to this node: {reason}: {message}"
        self._to.events.warning(self._about_node(node), str(Reason.NODE_QUARANTINED), text)

    def released(self, node: str, handler: str) -> None:
        """A quarantine has ended, or its machine does not exist any more."""
        self._to.metrics.quarantine_changed(handler, "closed")
        text = f"sandboxes of handler {handler} may be scheduled to this node again"
        self._to.events.normal(self._about_node(node), str(Reason.QUARANTINE_LIFTED), text)

    def not_isolating(self, node: str, handler: str, evidence: Evidence) -> None:
        """A runtime was observed not to isolate."""
        text = f"handler {handler}: {evidence.message}"
        self._to.events.warning(self._about_node(node), str(Reason.ISOLATION_NOT_PROVEN), text)

    def probed(self, handler: str, outcome: str) -> None:
        """A probe has finished; the handler of a positive control is empty."""
        self._to.metrics.probed(handler, outcome)

    def room_changed(self, pool_uid: str) -> None:
        """A sandbox of the pool is to be preempted by a probe, or its place is free again."""
        pool = self._to.pools.by_uid(pool_uid)
        if pool is not None:
            self._to.queues.pools.add(pool.key)

    def labels_changed(self) -> None:
        """The set of nodes that can be labelled has changed, and so verdicts may have."""
        self._enqueue_readers()

    # --- Enqueueing ------------------------------------------------------------------------------

    def _enqueue_readers(self) -> bool:
        """Enqueue pools and classes whose verdict may have changed; return whether any has."""
        readers = self._to.cluster.nodes.drain_changed()
        for kind, name in readers:
            if kind == "class":
                self._enqueue_runtime(name)
                continue
            pool = self._to.pools.by_uid(name)
            if pool is not None:
                self._to.queues.pools.add_after(pool.key, NODE_BURST_SECONDS)
            else:
                # The pool was deleted while it was being reconciled.
                self._to.cluster.forget_pool(name)
        return bool(readers)

    def _request_probes(self) -> None:
        self._to.health.invalidate()
        self._to.prober.wake()

    def _enqueue_runtime(self, class_name: str, *, at_once: bool = False) -> None:
        """The SandboxRuntime of a class may be stale."""
        if self._to.queues.runtimes is None:
            return
        if at_once:
            self._to.queues.runtimes.add(class_name)
        else:
            self._to.queues.runtimes.add_after(class_name, NODE_BURST_SECONDS)

    def enqueue_node(self, node: str) -> None:
        """The labels or conditions that the operator keeps on a node may be stale."""
        if self._to.queues.nodes is not None:
            self._to.queues.nodes.add_after(node, NODE_BURST_SECONDS)

    def _enqueue_pods_on(self, node: str) -> None:
        pods = self._to.cluster.pods.on_node(node)
        self._to.candidate_tracker.refresh(pods)
        for pod in pods:
            pool = self._to.pools.of(pod)
            if pool is not None:
                self._to.queues.pools.add_after(pool.key, NODE_BURST_SECONDS)
            self._to.pool_reconciler.mark_dirty(self._to.pools.uid_of(pod) or "", pod.metadata.uid)
            self._enqueue_claim_of(pod)

    def enqueue_claim(self, uid: str | None) -> bool:
        """Enqueue the claim with this uid; return whether there is one."""
        key = self._claims.get(uid) if uid is not None else None
        if key is not None:
            self._to.queues.claims.add(key)
        return key is not None

    def _enqueue_claim_of(self, pod: Pod) -> None:
        """Enqueue the claim that owns the pod, if it is in the pod's namespace."""
        uid = claim_uid_of(pod)
        key = self._claims.get(uid) if uid is not None else None
        if key is not None and key[0] == pod.metadata.namespace:
            self._to.queues.claims.add(key)

    def _observe_sandbox(self, pod: Pod) -> None:
        """Use a pod as evidence of its runtime, if a known pool of its namespace owns it."""
        if self._to.pools.of(pod) is not None:
            self._to.health.observe_sandbox(pod)

    def _enqueue_claims_bound_to(self, pod_uid: str) -> None:
        """Enqueue the claims of a pod that was deleted before its cache showed an owner."""
        for claim in self._claims.of_pod(pod_uid):
            self._to.queues.claims.add(claim)

    def _about_node(self, name: str) -> ObjectReference:
        node = self._to.cluster.nodes.get(name)
        return ObjectReference("v1", "Node", "", name, node.uid if node is not None else "")


def _same_usability(before: NodeFacts | None, after: NodeFacts | None) -> bool:
    """Whether a node's usability and software are the same; its labels and taints may differ."""
    return (
        before is not None
        and after is not None
        and before.usable == after.usable
        and software_of(before) == software_of(after)
    )
