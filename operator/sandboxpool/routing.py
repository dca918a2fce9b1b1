"""Routes changes of objects to the caches, to the work queues and to whoever is told of them.

The informers and stores call the router after a change, and it never waits; it decides and writes
nothing.
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

# Changes that come in bursts are gathered for a moment before a pool is looked at.
POD_BURST_SECONDS = 0.05
NODE_BURST_SECONDS = 0.1
# A pod that is held for a claim, or so no longer, mostly changes by itself within this time.
HELD_SECONDS = 0.5


@dataclass
class Queues:
    """The keys to be worked on: pools and claims by namespace and name, all else by name."""

    pools: WorkQueue[Key]
    claims: WorkQueue[Key]
    runtimes: WorkQueue[str]
    # Nodes to label, or to publish on; None if neither is wanted.
    nodes: WorkQueue[str] | None

    def close(self) -> None:
        """Cancel all timers."""
        for queue in (self.pools, self.claims, self.runtimes, self.nodes):
            if queue is not None:
                queue.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Destinations:
    """The caches that changes are applied to, and the parts that are told of them."""

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
    inquiry: PodEventReader
    events: EventRecorder
    metrics: Metrics
    queues: Queues


class EventRouter:
    """One method for each kind of change.

    It exists before all that it routes from and to, so that each of these can be given its methods
    when it is made. ``connect`` comes after that, and before the first change.
    """

    _to: Destinations

    def __init__(self) -> None:
        self._claims = ClaimIndex()

    def connect(self, destinations: Destinations) -> None:
        """Set where changes are routed to."""
        self._to = destinations

    # --- Objects ---------------------------------------------------------------------------------

    def pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        """A pod of ours has changed."""
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
                    "pod %s/%s has left its pool: somebody else has changed its owner",
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
            # There is nothing to be asked about any more.
            self._to.inquiry.forget(new or old)  # type: ignore[arg-type]
        for state in (old, new):
            if state is not None:
                self._enqueue_claim_of(state)

    def node_changed(self, old: Node | None, new: Node | None) -> None:
        """A node has changed; its heartbeats end here."""
        name = (new or old).metadata.name  # type: ignore[union-attr]
        before = self._to.cluster.nodes.get(name)
        if not self._to.cluster.nodes.put(old, new):
            return
        after = self._to.cluster.nodes.get(name)
        self._to.health.observe_node(name, after)
        if old is None:
            # Its pods may have come before it.
            for pod in self._to.cluster.pods.on_node(name):
                self._observe_sandbox(pod)
        self._enqueue_pods_on(name)
        verdicts_changed = self._enqueue_readers()
        # What was learned of it may have gone, or have to be asked for.
        changed = not _is_alike(before, after)
        if changed:
            for class_name in self._to.cluster.classes:
                self._to.queues.runtimes.add_after(class_name, NODE_BURST_SECONDS)
        if changed or verdicts_changed:
            self._request_probes()
        for pool_uid in self._to.cluster.pools_avoiding(name):
            # They may have waited for the node's label.
            pool = self._to.pools.by_uid(pool_uid)
            if pool is not None:
                self._to.queues.pools.add_after(pool.key, NODE_BURST_SECONDS)
        self.enqueue_node(name)

    def sandbox_event(self, old: Event | None, new: Event | None) -> None:
        """The kubelet has said why a sandbox could not be made."""
        del old
        if new is None:
            return
        cluster = self._to.cluster
        is_news = cluster.events.put(new)
        pod = cluster.pods.get(new.involvedObject.uid)
        if pod is None:
            return
        pool = self._to.pools.of(pod)
        if pool is None:
            return
        self._to.health.observe_sandbox(pod)
        self._to.pool_reconciler.mark_dirty(pool.uid, pod.metadata.uid)
        if is_news:
            self._to.queues.pools.add(pool.key)
            self._enqueue_claim_of(pod)

    def pod_events_read(self, pod: Pod) -> None:
        """What a pod's events say was read."""
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
        # A change of the status alone, which is mostly our own, offers nothing new to anybody.
        changed = gone or old is None or new is None or old.generation != new.generation
        for state in (old, new):
            if state is not None and state.spec is not None:
                self._to.queues.runtimes.add_after(
                    state.spec.runtime_class_name, NODE_BURST_SECONDS
                )
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
        """A class has appeared, changed or vanished."""
        for pool in list(self._to.pools.by_class(name).pools.values()):
            self._to.candidate_tracker.refresh_pool(pool)
            self._to.queues.pools.add(pool.key)
        self._to.queues.runtimes.add(name)
        for node in self._to.cluster.nodes:
            self.enqueue_node(node.name)
        self._request_probes()

    def claim_granted(self, claim_uid: str) -> None:
        """A waiting claim has been given a pod; one that is gone leaves it to the next."""
        if self.enqueue_claim(claim_uid):
            return
        freed = self._to.allocator.cancel_claim(claim_uid)
        pod = self._to.cluster.pods.get(freed[1].uid) if freed is not None else None
        if pod is not None:
            self._to.candidate_tracker.refresh([pod])

    def pod_hold_changed(self, pool_uid: str, pod_uid: str) -> None:
        """A pod is held for a claim, or no longer, which the pod itself may never show."""
        self._to.pool_reconciler.mark_dirty(pool_uid, pod_uid)
        pool = self._to.pools.by_uid(pool_uid)
        if pool is not None:
            self._to.queues.pools.add_after(pool.key, HELD_SECONDS)

    def runtime_changed(self, old: SandboxRuntime | None, new: SandboxRuntime | None) -> None:
        """A SandboxRuntime has changed; what is our own write needs no work."""
        if self._to.runtime_reconciler.observe(old, new):
            self._to.queues.runtimes.add((new or old).metadata.name)  # type: ignore[union-attr]

    def startup_measured(self, pool: Pool, stage: str, seconds: float) -> None:
        """A sandbox of the pool has reached a stage of its start, seconds after its creation."""
        resolution = self._to.cluster.resolution(pool)
        if resolution is not None and resolution.runtime is not None:
            runtime = resolution.runtime
            self._to.metrics.startup(pool, runtime.handler, stage, seconds)
            self._to.fleet.measured(runtime.class_name, stage, seconds)

    # --- The runtimes' health --------------------------------------------------------------------

    def handler_changed(self, node: str, handler: str) -> None:
        """What is known of a handler on a node is not what it was; perhaps verdicts are not."""
        self._enqueue_pods_on(node)
        self._enqueue_readers()
        for runtime in self._to.cluster.classes.values():
            if runtime.handler == handler:
                self._to.queues.runtimes.add_after(runtime.class_name, NODE_BURST_SECONDS)
        self.enqueue_node(node)
        self._request_probes()

    def probe_hinted(self) -> None:
        """A sandbox has failed in a way that may be its runtime's fault: there is more to probe."""
        self._to.prober.wake()

    def quarantined(self, node: str, handler: str, reason: Reason, message: str) -> None:
        """A quarantine has begun."""
        self._to.metrics.quarantine_changed(handler, "open")
        text = f"no sandbox of handler {handler} is put on this node: {reason}: {message}"
        self._to.events.warning(self._about_node(node), str(Reason.NODE_QUARANTINED), text)

    def released(self, node: str, handler: str) -> None:
        """A quarantine has ended, or its machine is gone."""
        self._to.metrics.quarantine_changed(handler, "closed")
        text = f"sandboxes of handler {handler} may be put on this node again"
        self._to.events.normal(self._about_node(node), str(Reason.QUARANTINE_LIFTED), text)

    def not_isolating(self, node: str, handler: str, evidence: Evidence) -> None:
        """A runtime was seen not to isolate."""
        text = f"handler {handler}: {evidence.message}"
        self._to.events.warning(self._about_node(node), str(Reason.ISOLATION_NOT_PROVEN), text)

    def probed(self, handler: str, outcome: str) -> None:
        """A probe has ended; of no handler, if it was a positive control."""
        self._to.metrics.probed(handler, outcome)

    def room_changed(self, pool_uid: str) -> None:
        """A sandbox of the pool is to give way to a probe, or its place is the pool's again."""
        pool = self._to.pools.by_uid(pool_uid)
        if pool is not None:
            self._to.queues.pools.add(pool.key)

    def labels_changed(self) -> None:
        """Which nodes can be labelled has changed, and so perhaps have verdicts."""
        self._enqueue_readers()

    # --- Small things ----------------------------------------------------------------------------

    def _enqueue_readers(self) -> bool:
        """Wake those whose verdict may be another one; return whether there are any."""
        readers = self._to.cluster.nodes.drain_changed()
        for kind, name in readers:
            if kind == "class":
                self._to.queues.runtimes.add_after(name, NODE_BURST_SECONDS)
                continue
            pool = self._to.pools.by_uid(name)
            if pool is not None:
                self._to.queues.pools.add_after(pool.key, NODE_BURST_SECONDS)
            else:
                # It was being worked on as it went.
                self._to.cluster.forget_pool(name)
        return bool(readers)

    def _request_probes(self) -> None:
        self._to.health.invalidate()
        self._to.prober.wake()

    def enqueue_node(self, node: str) -> None:
        """What stands on a node of ours may have to be something else."""
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
        """Have a claim looked at; return whether there is one of this uid."""
        key = self._claims.get(uid) if uid is not None else None
        if key is not None:
            self._to.queues.claims.add(key)
        return key is not None

    def _enqueue_claim_of(self, pod: Pod) -> None:
        """The claim that owns the pod, if it is one of the pod's own namespace."""
        uid = claim_uid_of(pod)
        key = self._claims.get(uid) if uid is not None else None
        if key is not None and key[0] == pod.metadata.namespace:
            self._to.queues.claims.add(key)

    def _observe_sandbox(self, pod: Pod) -> None:
        """Only what a known pool of the same namespace owns may speak of a runtime."""
        if self._to.pools.of(pod) is not None:
            self._to.health.observe_sandbox(pod)

    def _enqueue_claims_bound_to(self, pod_uid: str) -> None:
        """A pod is gone before any watch has shown that it was handed out."""
        for claim in self._claims.of_pod(pod_uid):
            self._to.queues.claims.add(claim)

    def _about_node(self, name: str) -> ObjectReference:
        node = self._to.cluster.nodes.get(name)
        return ObjectReference("v1", "Node", "", name, node.uid if node is not None else "")


def _is_alike(before: NodeFacts | None, after: NodeFacts | None) -> bool:
    """Whether nothing about a node has changed but which pods it takes."""
    return (
        before is not None
        and after is not None
        and before.usable == after.usable
        and software_of(before) == software_of(after)
    )
