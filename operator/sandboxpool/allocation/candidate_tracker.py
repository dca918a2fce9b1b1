"""Decides which pods are allocatable, and keeps the allocator's candidates in step with the caches.

A pod is a candidate if it is ready, unclaimed, of the pool's current RuntimeClass, and on a healthy
node. It is evaluated again when the pod, its node, its pool or the class changes.
"""

from collections.abc import Callable, Iterable

from sandboxpool.allocation.allocator import Allocator, Candidate
from sandboxpool.api import names
from sandboxpool.api.core import Pod
from sandboxpool.api.v1alpha1 import IsolationProof, Placement
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.ownership import claim_uid_of, pool_identity_of
from sandboxpool.cluster.pool import Pool
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.runtimes.host_state import HostState
from sandboxpool.runtimes.node_constraints import NodeConstraintsError
from sandboxpool.sandboxes.members import is_ready_on_host


class CandidateTracker:
    """Keeps the allocator in step with the caches.

    Args:
        is_deleting: whether the deletion of a pod was requested, by the uids of pool and pod.
        on_allocated: called with the uid of a waiting claim for which a pod was reserved.
    """

    def __init__(
        self,
        cluster: ClusterCache,
        pools: PoolStore,
        allocator: Allocator,
        *,
        is_deleting: Callable[[str, str], bool],
        on_allocated: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._pools = pools
        self._allocator = allocator
        self._is_deleting = is_deleting
        self._on_allocated = on_allocated

    def is_allocatable(self, pod: Pod, pool: Pool) -> bool:
        """Whether this pod may be bound to a claim of this pool now."""
        return (
            not pool.deleting
            and pool_identity_of(pod) == pool.identity
            and claim_uid_of(pod) is None
            and self._is_of_class(pod, pool)
            and self._has_allocatable_host(pod, pool)
            and not self._is_deleting(pool.uid, pod.metadata.uid)
        )

    def _has_allocatable_host(self, pod: Pod, pool: Pool) -> bool:
        """Ready on a healthy node; or on a cordoned one, if the pool has no candidate nodes."""
        host_state = self.host_state(pod, pool)
        if is_ready_on_host(pod, host_state):
            return True
        return is_ready_on_host(
            pod, host_state.ignoring_cordon()
        ) and not self._pool_has_candidate_nodes(pool)

    def _pool_has_candidate_nodes(self, pool: Pool) -> bool:
        resolution = self._cluster.resolution(pool)
        runtime = resolution.runtime if resolution is not None else None
        if runtime is None:
            return True
        try:
            return self._cluster.verdict(pool, runtime).has_candidate_nodes
        except NodeConstraintsError:
            return True

    def _is_of_class(self, pod: Pod, pool: Pool) -> bool:
        """Whether the pod is of the pool's current class, and the class is usable."""
        resolution = self._cluster.resolution(pool)
        return (
            resolution is not None
            and resolution.usable
            and resolution.runtime is not None
            and self._cluster.runtime_of(pod) is resolution.runtime
        )

    def host_state(self, pod: Pod, pool: Pool | None) -> HostState:
        """The state of the pod's host; for a deleted pool with the default isolation proof."""
        proof = pool.proof if pool is not None else IsolationProof.PER_NODE
        return self._cluster.host_state(pod, proof)

    def is_ready_for_claim(self, pod: Pod, pool: Pool | None) -> bool:
        """Whether a pod that was started for a claim may be bound to it.

        No other claim gets the pod, so a node that was cordoned meanwhile is no obstacle.
        """
        if pool is not None and not self._is_of_class(pod, pool):
            return False
        return is_ready_on_host(pod, self.host_state(pod, pool).ignoring_cordon())

    def should_replace_cold_pod(self, pod: Pod, pool: Pool | None) -> bool:
        """Whether a pod that was started for a claim should be replaced by another one.

        It is on a node whose handler is quarantined or does not isolate, or the pool has another
        class now.
        """
        if pool is not None and self._is_of_another_class(pod, pool):
            return True
        host_state = self.host_state(pod, pool)
        return host_state.node is not None and (
            host_state.quarantined or host_state.isolation_failed
        )

    def is_invalid_binding(self, pod: Pod, pool: Pool | None) -> bool:
        """Whether the operator would never have bound this pod to a claim that owns it.

        A node that has become unready, or whose proof has expired, since the binding does not make
        the binding invalid. Nothing is known of the pods of a deleted pool.
        """
        if pool is None:
            return False
        if pool_identity_of(pod) != pool.identity or self._is_of_another_class(pod, pool):
            return True
        return self.host_state(pod, pool).isolation_failed

    def _is_of_another_class(self, pod: Pod, pool: Pool) -> bool:
        """Whether the pool's class exists and the pod is not of it."""
        resolution = self._cluster.resolution(pool)
        runtime = resolution.runtime if resolution is not None else None
        return runtime is not None and self._cluster.runtime_of(pod) is not runtime

    def evidence(self, pod: Pod, pool: Pool | None) -> str | None:
        """The message that says what proves the pod's isolation, if its pool requires proof."""
        return self.host_state(pod, pool).isolation_message or None

    def refresh(self, pods: Iterable[Pod]) -> None:
        """Evaluate pods again, after a change of the pods or of their hosts."""
        for pod in pods:
            self._refresh(pod)

    def refresh_uid(self, pod_uid: str) -> None:
        """Evaluate the pod with this uid again, if it exists."""
        pod = self._cluster.pods.get(pod_uid)
        if pod is not None:
            self._refresh(pod)

    def cancel_claim(self, claim_uid: str) -> None:
        """Dequeue a claim, and make the pod that was reserved for it a candidate again."""
        released = self._allocator.cancel_claim(claim_uid)
        if released is not None:
            self.refresh_uid(released.uid)

    def _refresh(self, pod: Pod) -> None:
        pool_uid = self._pools.uid_of(pod)
        uid = pod.metadata.uid
        if pool_uid is None:
            self._allocator.remove_candidate(uid)
            return
        if claim_uid_of(pod) is not None:
            if pod.finished:
                # The pod is kept for its logs and no longer counts on its node.
                self._allocator.release(uid)
            else:
                self._allocator.mark_allocated(pool_uid, uid, pod.spec.nodeName)
            return
        pool = self._pools.by_uid(pool_uid)
        if pool is None or not self.is_allocatable(pod, pool):
            self._allocator.remove_candidate(uid)
            return
        candidate = Candidate(
            uid=uid,
            namespace=pod.metadata.namespace,
            name=pod.metadata.name,
            version=pod.metadata.resourceVersion,
            node=pod.spec.nodeName,
            current=pod.metadata.labels.get(names.LABEL_REVISION) == pool.revision,
        )
        allocated_claim = self._allocator.add_candidate(pool_uid, candidate)
        if allocated_claim is not None:
            self._on_allocated(allocated_claim)

    def refresh_pool(self, pool: Pool) -> None:
        """Evaluate all pods of a pool again, after a change of the pool or its class."""
        if pool.spec is not None:
            self._allocator.set_packed(pool.uid, packed=pool.spec.placement is Placement.PACKED)
        self.refresh(list(self._cluster.pods.of_pool(*pool.identity).values()))
