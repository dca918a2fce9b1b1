"""What a change sets in motion: which change of which object puts which key into which queue.

The caches call in here, after the fact and without waiting; nothing here decides or writes.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from sandboxpool.api.core import Event, Node, Pod
from sandboxpool.api.v1alpha1 import SandboxClaim
from sandboxpool.cache import Cluster
from sandboxpool.claims.allocator import Allocator
from sandboxpool.claims.index import ClaimIndex
from sandboxpool.claims.offers import Offers
from sandboxpool.claims.reconcile import ClaimReconciler
from sandboxpool.fleet.health import Health
from sandboxpool.fleet.prober import Prober
from sandboxpool.kube.events import EventRecorder
from sandboxpool.kube.workqueue import WorkQueue
from sandboxpool.metrics import Metrics
from sandboxpool.pools.inquiry import Inquiry
from sandboxpool.pools.members import claim_uid_of
from sandboxpool.pools.pool import Pool
from sandboxpool.pools.reconcile import PoolReconciler
from sandboxpool.pools.store import PoolStore
from sandboxpool.reasons import Reason
from sandboxpool.references import Reference
from sandboxpool.runtimes.evidence import Evidence, software_of
from sandboxpool.runtimes.nodes import NodeFacts

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


@dataclass(kw_only=True)
class Reactions:
    """One method for each kind of change."""

    cluster: Cluster
    pools: PoolStore
    allocator: Allocator
    offers: Offers
    pool_reconciler: PoolReconciler
    claim_reconciler: ClaimReconciler
    # Each of the two tells the other.
    health: Callable[[], Health]
    prober: Prober
    inquiry: Inquiry
    events: EventRecorder
    metrics: Metrics
    queues: Queues
    _claims: ClaimIndex = field(default_factory=ClaimIndex)

    # --- Objects ---------------------------------------------------------------------------------

    def pod(self, old: Pod | None, new: Pod | None) -> None:
        """A pod of ours has changed."""
        self.cluster.pods.put(old, new)
        was, is_now = (
            self.pools.uid_of(state) if state is not None else None for state in (old, new)
        )
        for pool_uid in {was, is_now} - {None}:
            assert pool_uid is not None
            self.pool_reconciler.observe_pod(pool_uid, old, new if pool_uid == is_now else None)
            pool = self.pools.by_uid(pool_uid)
            if pool is not None:
                self.queues.pools.add_after(pool.key, POD_BURST_SECONDS)
        if new is not None:
            if was is not None and is_now is None:
                logger.warning(
                    "pod %s/%s has left its pool: somebody else has changed its owner",
                    new.metadata.namespace,
                    new.metadata.name,
                )
            self._observe_sandbox(new)
            self.offers.refresh([new])
        elif old is not None:
            if claim_uid_of(old) is None and self.allocator.is_held(old.metadata.uid):
                self._wake_claims_bound_to(old.metadata.uid)
            self.allocator.release(old.metadata.uid)
            self.claim_reconciler.pod_gone(old)
            self.cluster.events.forget(old)
        if new is None or (new.ready and (old is None or not old.ready)):
            # There is nothing to be asked about any more.
            self.inquiry.forget(new or old)  # type: ignore[arg-type]
        for state in (old, new):
            if state is not None:
                self._wake_owner(state)

    def node(self, old: Node | None, new: Node | None) -> None:
        """A node has changed; its heartbeats end here."""
        name = (new or old).metadata.name  # type: ignore[union-attr]
        before = self.cluster.nodes.get(name)
        if not self.cluster.nodes.put(old, new):
            return
        after = self.cluster.nodes.get(name)
        self.health().observe_node(name, after)
        if old is None:
            # Its pods may have come before it.
            for pod in self.cluster.pods.on_node(name):
                self._observe_sandbox(pod)
        self._look_at_pods_on(name)
        verdicts_changed = self._wake_readers()
        # What was learned of it may have gone, or have to be asked for.
        changed = not _is_alike(before, after)
        if changed:
            for class_name in self.cluster.classes:
                self.queues.runtimes.add_after(class_name, NODE_BURST_SECONDS)
        if changed or verdicts_changed:
            self._look_for_wishes()
        for pool_uid in self.cluster.pools_keeping_away(name):
            # They may have waited for the node's label.
            pool = self.pools.by_uid(pool_uid)
            if pool is not None:
                self.queues.pools.add_after(pool.key, NODE_BURST_SECONDS)
        self.mark(name)

    def sandbox_event(self, old: Event | None, new: Event | None) -> None:
        """The kubelet has said why a sandbox could not be made."""
        del old
        if new is None:
            return
        cluster = self.cluster
        is_news = cluster.events.put(new)
        pod = cluster.pods.get(new.involvedObject.uid)
        if pod is None:
            return
        pool = self.pools.of(pod)
        if pool is None:
            return
        self.health().observe_sandbox(pod)
        self.pool_reconciler.stir(pool.uid, pod.metadata.uid)
        if is_news:
            self.queues.pools.add(pool.key)
            self._wake_owner(pod)

    def told(self, pod: Pod) -> None:
        """What a pod's events say was read."""
        pool = self.pools.of(pod)
        if pool is None:
            return
        self.pool_reconciler.stir(pool.uid, pod.metadata.uid)
        self.queues.pools.add(pool.key)
        self._wake_owner(pod)

    def claim(self, old: SandboxClaim | None, new: SandboxClaim | None) -> None:
        """A claim has changed."""
        self.claim_reconciler.seen(old, new)
        self._claims.put(old, new)
        if new is not None:
            self.queues.claims.add(new.key)
        elif old is not None:
            self.queues.claims.drop(old.key)

    def pool(self, old: Pool | None, new: Pool | None) -> None:
        """A pool has changed."""
        gone = old is not None and (new is None or new.deleting or new.uid != old.uid)
        if old is not None and gone:
            self.allocator.forget_pool(old.uid)
            if new is None or new.uid != old.uid:
                self.pool_reconciler.forget(old.uid)
                self.cluster.forget_pool(old.uid)
                self.metrics.forget_pool(old)
        # A change of the status alone, which is mostly our own, offers nothing new to anybody.
        changed = gone or old is None or new is None or old.generation != new.generation
        for state in (old, new):
            if state is not None and state.spec is not None:
                self.queues.runtimes.add_after(state.spec.runtime_class_name, NODE_BURST_SECONDS)
        if new is not None:
            if changed:
                self.offers.refresh_pool(new)
            self.queues.pools.add(new.key)
        elif old is not None:
            self.queues.pools.drop(old.key)
        if changed:
            self._look_for_wishes()
            key = (new or old).key  # type: ignore[union-attr]
            for claim in self._claims.of_pool(key):
                self.queues.claims.add(claim)

    def runtime_class(self, name: str) -> None:
        """A class has appeared, changed or vanished."""
        for pool in list(self.pools.of_class(name).pools.values()):
            self.offers.refresh_pool(pool)
            self.queues.pools.add(pool.key)
        self.queues.runtimes.add(name)
        for node in self.cluster.nodes:
            self.mark(node.name)
        self._look_for_wishes()

    def granted(self, claim_uid: str) -> None:
        """A waiting claim has been given a pod; one that is gone leaves it to the next."""
        if self.wake_claim(claim_uid):
            return
        freed = self.allocator.abandon(claim_uid)
        pod = self.cluster.pods.get(freed[1].uid) if freed is not None else None
        if pod is not None:
            self.offers.refresh([pod])

    def held(self, pool_uid: str, pod_uid: str) -> None:
        """A pod is held for a claim, or no longer, which the pod itself may never show."""
        self.pool_reconciler.stir(pool_uid, pod_uid)
        pool = self.pools.by_uid(pool_uid)
        if pool is not None:
            self.queues.pools.add_after(pool.key, HELD_SECONDS)

    # --- The runtimes' health --------------------------------------------------------------------

    def node_changed(self, node: str, handler: str) -> None:
        """What is known of a handler on a node is not what it was; perhaps verdicts are not."""
        self._look_at_pods_on(node)
        self._wake_readers()
        for runtime in self.cluster.classes.values():
            if runtime.handler == handler:
                self.queues.runtimes.add_after(runtime.class_name, NODE_BURST_SECONDS)
        self.mark(node)
        self._look_for_wishes()

    def hinted(self) -> None:
        """A sandbox has failed in a way that may be its runtime's fault: there is more to probe."""
        self.prober.wake()

    def quarantined(self, node: str, handler: str, reason: Reason, message: str) -> None:
        """A quarantine has begun."""
        self.metrics.breaker(handler, "open")
        text = f"no sandbox of handler {handler} is put on this node: {reason}: {message}"
        self.events.warning(self._about_node(node), str(Reason.NODE_QUARANTINED), text)

    def released(self, node: str, handler: str) -> None:
        """A quarantine has ended, or its machine is gone."""
        self.metrics.breaker(handler, "closed")
        text = f"sandboxes of handler {handler} may be put on this node again"
        self.events.normal(self._about_node(node), str(Reason.QUARANTINE_LIFTED), text)

    def not_isolating(self, node: str, handler: str, evidence: Evidence) -> None:
        """A runtime was seen not to isolate."""
        text = f"handler {handler}: {evidence.message}"
        self.events.warning(self._about_node(node), str(Reason.ISOLATION_NOT_PROVEN), text)

    def probed(self, handler: str, outcome: str) -> None:
        """A probe has ended; of no handler, if it was a positive control."""
        self.metrics.probed(handler, outcome)

    def room_changed(self, pool_uid: str) -> None:
        """A sandbox of the pool is to give way to a probe, or its place is the pool's again."""
        pool = self.pools.by_uid(pool_uid)
        if pool is not None:
            self.queues.pools.add(pool.key)

    def labels_changed(self) -> None:
        """Which nodes can be labelled has changed, and so perhaps have verdicts."""
        self._wake_readers()

    # --- Small things ----------------------------------------------------------------------------

    def _wake_readers(self) -> bool:
        """Wake those whose verdict may be another one; return whether there are any."""
        readers = self.cluster.nodes.take_changed()
        for kind, name in readers:
            if kind == "class":
                self.queues.runtimes.add_after(name, NODE_BURST_SECONDS)
                continue
            pool = self.pools.by_uid(name)
            if pool is not None:
                self.queues.pools.add_after(pool.key, NODE_BURST_SECONDS)
            else:
                # It was being worked on as it went.
                self.cluster.forget_pool(name)
        return bool(readers)

    def _look_for_wishes(self) -> None:
        self.health().unsettle()
        self.prober.wake()

    def mark(self, node: str) -> None:
        """What stands on a node of ours may have to be something else."""
        if self.queues.nodes is not None:
            self.queues.nodes.add_after(node, NODE_BURST_SECONDS)

    def _look_at_pods_on(self, node: str) -> None:
        pods = self.cluster.pods.on_node(node)
        self.offers.refresh(pods)
        for pod in pods:
            pool = self.pools.of(pod)
            if pool is not None:
                self.queues.pools.add_after(pool.key, NODE_BURST_SECONDS)
            self.pool_reconciler.stir(self.pools.uid_of(pod) or "", pod.metadata.uid)
            self._wake_owner(pod)

    def wake_claim(self, uid: str | None) -> bool:
        """Have a claim looked at; return whether there is one of this uid."""
        key = self._claims.get(uid) if uid is not None else None
        if key is not None:
            self.queues.claims.add(key)
        return key is not None

    def _wake_owner(self, pod: Pod) -> None:
        """The claim that owns the pod, if it is one of the pod's own namespace."""
        uid = claim_uid_of(pod)
        key = self._claims.get(uid) if uid is not None else None
        if key is not None and key[0] == pod.metadata.namespace:
            self.queues.claims.add(key)

    def _observe_sandbox(self, pod: Pod) -> None:
        """Only what a known pool of the same namespace owns may speak of a runtime."""
        if self.pools.of(pod) is not None:
            self.health().observe_sandbox(pod)

    def _wake_claims_bound_to(self, pod_uid: str) -> None:
        """A pod is gone before any watch has shown that it was handed out."""
        for claim in self._claims.of_pod(pod_uid):
            self.queues.claims.add(claim)

    def _about_node(self, name: str) -> Reference:
        node = self.cluster.nodes.get(name)
        return Reference("v1", "Node", "", name, node.uid if node is not None else "")


def _is_alike(before: NodeFacts | None, after: NodeFacts | None) -> bool:
    """Whether nothing about a node has changed but which pods it takes."""
    return (
        before is not None
        and after is not None
        and before.usable == after.usable
        and software_of(before) == software_of(after)
    )
