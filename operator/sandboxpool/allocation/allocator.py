"""Assigns warm pods to claims: a pure data structure, one per process.

A pod is *free*, or *allocated*: reserved for a claim or already bound. An allocated pod does not
become free because of an old watch event, but only when it ends or its binding is refused. While
claims wait, no pod is free: a new candidate is reserved for the claim at the head of the queue.

The cost of an allocation does not depend on the number of pods or pools: the nodes are in a heap by
their number of allocated sandboxes, and stale entries are dropped when they reach the top.
"""

import heapq
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from sandboxpool.util.resource_version import parse_resource_version


@dataclass(frozen=True, slots=True)
class Candidate:
    """A warm pod that is allocatable.

    Attributes:
        version: the resourceVersion at which the pod was observed.
        current: whether the pod is of the newest template revision.
    """

    uid: str
    namespace: str
    name: str
    version: str
    node: str
    current: bool


class _NodeHeap:
    """The free pods of one pool, of the newest revision or of older ones, by node."""

    def __init__(self) -> None:
        self.nodes: defaultdict[str, OrderedDict[str, Candidate]] = defaultdict(OrderedDict)
        self.heap: list[tuple[int, str]] = []

    def put(self, candidate: Candidate, pool_state: "_PoolState") -> None:
        pods = self.nodes[candidate.node]
        pods[candidate.uid] = candidate
        if len(pods) == 1:
            self.rerank(candidate.node, pool_state)

    def remove(self, candidate: Candidate) -> None:
        pods = self.nodes.get(candidate.node)
        if pods is not None:
            pods.pop(candidate.uid, None)
            if not pods:
                del self.nodes[candidate.node]

    def rerank(self, node: str, pool_state: "_PoolState") -> None:
        if node not in self.nodes:
            return
        if len(self.heap) > 4 * len(self.nodes) + 64:
            # Too many entries are stale: build the heap again.
            self.heap = [(pool_state.rank(name), name) for name in self.nodes]
            heapq.heapify(self.heap)
        else:
            heapq.heappush(self.heap, (pool_state.rank(node), node))


class _PoolState:
    """The free pods of a pool, its waiting claims, and its number of allocated pods per node.

    Allocated pods can outlive their pool, and after a restart the pool may never have been
    observed.
    """

    def __init__(self) -> None:
        self.packed = False
        self.known = False
        self.free: dict[str, Candidate] = {}
        self.heaps = {True: _NodeHeap(), False: _NodeHeap()}
        self.waiting: OrderedDict[str, None] = OrderedDict()
        # Unlike a defaultdict, a Counter does not insert a key when it is read.
        self.allocated_by_node: Counter[str] = Counter()

    def rank(self, node: str) -> int:
        return -self.allocated_by_node[node] if self.packed else self.allocated_by_node[node]

    def put(self, candidate: Candidate) -> None:
        self.drop(candidate.uid)
        self.free[candidate.uid] = candidate
        self.heaps[candidate.current].put(candidate, self)

    def drop(self, uid: str) -> Candidate | None:
        candidate = self.free.pop(uid, None)
        if candidate is not None:
            self.heaps[candidate.current].remove(candidate)
        return candidate

    def take(self) -> Candidate | None:
        for current in (True, False):
            node_heap = self.heaps[current]
            while node_heap.heap:
                rank, node = node_heap.heap[0]
                pods = node_heap.nodes.get(node)
                if not pods or rank != self.rank(node):
                    # The entry is stale: if the node still has pods, the heap has a newer one.
                    heapq.heappop(node_heap.heap)
                    continue
                candidate = next(iter(pods.values()))
                return self.drop(candidate.uid)
        return None

    def count(self, node: str, change: int) -> None:
        self.allocated_by_node[node] += change
        if not self.allocated_by_node[node]:
            del self.allocated_by_node[node]
        for node_heap in self.heaps.values():
            node_heap.rerank(node, self)

    def rebuild(self) -> None:
        """Build the heaps again, after a change of the placement."""
        candidates = list(self.free.values())
        self.free.clear()
        self.heaps = {True: _NodeHeap(), False: _NodeHeap()}
        for candidate in candidates:
            self.put(candidate)


class Allocator:
    """Free pods, waiting claims, reservations.

    Args:
        on_allocation_changed: called with the uids of pool and pod when the pod becomes allocated
            or ceases to be.
    """

    def __init__(
        self, on_allocation_changed: Callable[[str, str], None] = lambda pool, pod: None
    ) -> None:
        self._on_allocation_changed = on_allocation_changed
        self._pool_states: dict[str, _PoolState] = {}
        self._pool_of_free: dict[str, str] = {}
        self._allocated: dict[str, tuple[str, str]] = {}
        self._reserved: dict[str, Candidate] = {}
        self._pool_of_claim: dict[str, str] = {}
        # The versions up to which pods are known to be stale, by uid.
        self._stale_versions: dict[str, int] = {}

    def _pool_state(self, pool: str) -> _PoolState:
        return self._pool_states.setdefault(pool, _PoolState())

    def set_packed(self, pool: str, *, packed: bool) -> None:
        """Set whether claims get pods of the node with the most or the fewest allocated pods."""
        pool_state = self._pool_state(pool)
        pool_state.known = True
        if pool_state.packed != packed:
            pool_state.packed = packed
            pool_state.rebuild()

    def add_candidate(self, pool: str, candidate: Candidate) -> str | None:
        """Add an allocatable pod; return the uid of the waiting claim that got it, if any."""
        if candidate.uid in self._allocated:
            return None
        if parse_resource_version(candidate.version) <= self._stale_versions.get(candidate.uid, -1):
            return None
        self._stale_versions.pop(candidate.uid, None)
        pool_state = self._pool_state(pool)
        if pool_state.waiting:
            claim, _ = pool_state.waiting.popitem(last=False)
            pool_state.drop(candidate.uid)
            self._reserve(pool, claim, candidate)
            return claim
        pool_state.put(candidate)
        self._pool_of_free[candidate.uid] = pool
        return None

    def remove_candidate(self, pod: str) -> bool:
        """Remove a pod that is not allocatable now; return False if it is allocated."""
        pool = self._pool_of_free.pop(pod, None)
        if pool is not None:
            self._pool_states[pool].drop(pod)
            self._clean_up(pool)
        return pod not in self._allocated

    def allocate(self, pool: str, claim: str) -> Candidate | None:
        """Reserve a pod for a claim, or enqueue the claim; a repeated call changes nothing."""
        if claim in self._reserved:
            return self._reserved[claim]
        pool_state = self._pool_state(pool)
        self._pool_of_claim[claim] = pool
        if claim in pool_state.waiting:
            return None
        candidate = pool_state.take()
        if candidate is None:
            pool_state.waiting[claim] = None
            return None
        self._pool_of_free.pop(candidate.uid, None)
        self._reserve(pool, claim, candidate)
        return candidate

    def waiting_claims(self, pool: str) -> list[str]:
        """The uids of the claims that wait for a pod of a pool, the head of the queue first."""
        pool_state = self._pool_states.get(pool)
        return list(pool_state.waiting) if pool_state else []

    def requeue_first(self, pool: str, claim: str) -> None:
        """Reserve a pod for a claim, or put the claim at the head of the queue."""
        if self.allocate(pool, claim) is None:
            self._pool_state(pool).waiting.move_to_end(claim, last=False)

    def _reserve(self, pool: str, claim: str, candidate: Candidate) -> None:
        self._pool_of_free.pop(candidate.uid, None)
        self._reserved[claim] = candidate
        self._pool_of_claim[claim] = pool
        self.mark_allocated(pool, candidate.uid, candidate.node)

    def mark_allocated(self, pool: str, pod: str, node: str) -> None:
        """Record that a pod is bound or reserved: it is no candidate, and counts on its node.

        A pod that was created for a claim has no node at first.
        """
        self.remove_candidate(pod)
        was = self._allocated.get(pod)
        if was == (pool, node):
            return
        self._allocated[pod] = pool, node
        if was is not None:
            self._pool_state(was[0]).count(was[1], -1)
        self._pool_state(pool).count(node, 1)
        if was is None:
            self._on_allocation_changed(pool, pod)
        elif was[0] != pool:
            self._clean_up(was[0])

    def release(self, pod: str) -> None:
        """Release a pod that has ended, or that certainly was not bound."""
        self._stale_versions.pop(pod, None)
        self._deallocate(pod)

    def _deallocate(self, pod: str) -> None:
        self.remove_candidate(pod)
        allocation = self._allocated.pop(pod, None)
        if allocation is not None:
            pool, node = allocation
            self._pool_state(pool).count(node, -1)
            self._clean_up(pool)
            self._on_allocation_changed(pool, pod)

    def mark_stale(self, pod: str, version: str) -> None:
        """Record that a pod has changed since this version, though the cache does not show it yet.

        Until it does, the pod is no candidate: a binding would be refused.
        """
        self._stale_versions[pod] = parse_resource_version(version)

    def confirm_reservation(self, claim: str) -> None:
        """Record that the reserved pod is bound; it stays allocated until it ends."""
        self._reserved.pop(claim, None)
        self._pool_of_claim.pop(claim, None)

    def replace_reservation(self, claim: str) -> Candidate | None:
        """Reserve another pod for a claim that could not be bound to its reserved one.

        If no pod is free, the claim goes to the head of the queue.
        """
        candidate = self._reserved.pop(claim)
        pool = self._pool_of_claim[claim]
        self._deallocate(candidate.uid)
        pool_state = self._pool_state(pool)
        following = pool_state.take()
        if following is None:
            pool_state.waiting[claim] = None
            pool_state.waiting.move_to_end(claim, last=False)
            return None
        self._reserve(pool, claim, following)
        return following

    def cancel_claim(self, claim: str) -> Candidate | None:
        """Dequeue a claim; return the pod that was reserved for it, to be evaluated again."""
        pool = self._pool_of_claim.pop(claim, None)
        if pool is None:
            return None
        self._pool_state(pool).waiting.pop(claim, None)
        candidate = self._reserved.pop(claim, None)
        if candidate is None:
            self._clean_up(pool)
            return None
        self.release(candidate.uid)
        return candidate

    def pool_of(self, claim: str) -> str | None:
        """The pool for whose pods a claim waits, or of which it has a reserved pod."""
        return self._pool_of_claim.get(claim)

    def is_allocated(self, pod: str) -> bool:
        """Whether the pod is reserved for a claim or bound."""
        return pod in self._allocated

    def forget_pool(self, pool: str) -> list[str]:
        """Drop a deleted pool; return the uids of the claims that waited for it."""
        pool_state = self._pool_states.get(pool)
        if pool_state is None:
            return []
        for uid in list(pool_state.free):
            self.remove_candidate(uid)
        waiting = list(pool_state.waiting)
        pool_state.waiting.clear()
        for claim in waiting:
            self._pool_of_claim.pop(claim, None)
        pool_state.known = pool_state.packed = False
        self._clean_up(pool)
        return waiting

    def _clean_up(self, pool: str) -> None:
        """Drop the state of an unknown pool that has no pods and no claims left."""
        pool_state = self._pool_states.get(pool)
        if pool_state and not (
            pool_state.known
            or pool_state.allocated_by_node
            or pool_state.free
            or pool_state.waiting
        ):
            del self._pool_states[pool]

    def free(self, pool: str) -> int:
        """The number of free pods of a pool."""
        pool_state = self._pool_states.get(pool)
        return len(pool_state.free) if pool_state else 0

    def binding(self, pool: str) -> int:
        """The number of claims that are being bound to a pod of a pool."""
        return sum(self._pool_of_claim[claim] == pool for claim in self._reserved)

    def waiting(self, pool: str) -> int:
        """The number of claims that wait for a pod of a pool."""
        pool_state = self._pool_states.get(pool)
        return len(pool_state.waiting) if pool_state else 0
