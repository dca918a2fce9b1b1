"""Which pods may be handed out: the bridge from the caches to the allocator.

A pod is offered when it is ready, unclaimed, of the pool's runtime of this moment, and on a node
that is well; any change of the pod, its node, its pool or its class asks again.
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
        is_deleting: whether the deletion of the pod with this uid was asked for.
        on_allocated: told the uid of a waiting claim that has just been given a pod.
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
        self._is_leaving = is_deleting
        self._on_allocated = on_allocated

    def is_allocatable(self, pod: Pod, pool: Pool) -> bool:
        """Whether a claim of this pool may be given this pod now."""
        return (
            not pool.deleting
            and pool_identity_of(pod) == pool.identity
            and claim_uid_of(pod) is None
            and self._is_of_class(pod, pool)
            and self._has_allocatable_host(pod, pool)
            and not self._is_leaving(pool.uid, pod.metadata.uid)
        )

    def _has_allocatable_host(self, pod: Pod, pool: Pool) -> bool:
        """Ready, on a node that is well; a cordoned one will do where no other node serves."""
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
        """The pod is of the pool's class of this moment, and the pool may use that."""
        resolution = self._cluster.resolution(pool)
        return (
            resolution is not None
            and resolution.usable
            and resolution.runtime is not None
            and self._cluster.runtime_of(pod) is resolution.runtime
        )

    def host_state(self, pod: Pod, pool: Pool | None) -> HostState:
        """What the pod stands on; a pool that is gone wants what a pool wants unless told."""
        proof = pool.proof if pool is not None else IsolationProof.PER_NODE
        return self._cluster.host_state(pod, proof)

    def is_ready_for_claim(self, pod: Pod, pool: Pool | None) -> bool:
        """Whether a pod that was made for a claim is ready for it, with the proof it needs.

        It has nowhere else to go, so a node that was cordoned meanwhile will do.
        """
        if pool is not None and not self._is_of_class(pod, pool):
            return False
        return is_ready_on_host(pod, self.host_state(pod, pool).ignoring_cordon())

    def should_replace_cold_pod(self, pod: Pod, pool: Pool | None) -> bool:
        """Whether a pod made for a claim should not be its: another one might do better.

        It stands where none of its kind should, or the pool is of another class now.
        """
        if pool is not None and self._is_of_another_class(pod, pool):
            return True
        host_state = self.host_state(pod, pool)
        return host_state.node is not None and (
            host_state.quarantined or host_state.isolation_failed
        )

    def is_invalid_binding(self, pod: Pod, pool: Pool | None) -> bool:
        """Whether a pod that a claim owns is none that the operator would have bound to it.

        Only what does not pass counts: a pod whose node has become doubtful since the binding is
        the claim's all the same. A pool that is gone can say nothing.
        """
        if pool is None:
            return False
        if pool_identity_of(pod) != pool.identity or self._is_of_another_class(pod, pool):
            return True
        return self.host_state(pod, pool).isolation_failed

    def _is_of_another_class(self, pod: Pod, pool: Pool) -> bool:
        """The pool's class is there, and the pod was not made of it."""
        resolution = self._cluster.resolution(pool)
        runtime = resolution.runtime if resolution is not None else None
        return runtime is not None and self._cluster.runtime_of(pod) is not runtime

    def evidence(self, pod: Pod, pool: Pool | None) -> str | None:
        """What proves the pod's isolation, in words, where its pool wants proof."""
        return self.host_state(pod, pool).isolation_message or None

    def refresh(self, pods: Iterable[Pod]) -> None:
        """Look at pods again, after they or something around them has changed."""
        for pod in pods:
            self._refresh(pod)

    def _refresh(self, pod: Pod) -> None:
        pool_uid = self._pools.uid_of(pod)
        uid = pod.metadata.uid
        if pool_uid is None:
            self._allocator.remove_candidate(uid)
            return
        if claim_uid_of(pod) is not None:
            if pod.finished:
                # Kept for its logs, and no load on its node.
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
        """A pool, or its class, has changed."""
        if pool.spec is not None:
            self._allocator.set_packed(pool.uid, packed=pool.spec.placement is Placement.PACKED)
        self.refresh(list(self._cluster.pods.of_pool(*pool.identity).values()))
