"""Who gets which warm pod: a pure data structure, one per process, with no awaits inside.

A pod is *free*, or *held*: reserved for a claim or already a claim's. A held pod is never
offered again, whatever an old watch event says; only its end, or a refused write, frees it. As
long as claims wait, no pod is free: a pod that is offered goes to the first in line.

The cost of a request does not depend on the number of pods or pools: nodes stand in a heap by
the number of sandboxes claimed on them, entries that are out of date are dropped when they
surface.
"""

import heapq
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from sandboxpool.util.resource_version import parse_resource_version


@dataclass(frozen=True, slots=True)
class Candidate:
    """A warm pod that may be handed out.

    Attributes:
        version: the resourceVersion that it was seen at.
        current: it is of the newest template revision.
    """

    uid: str
    namespace: str
    name: str
    version: str
    node: str
    current: bool


class _NodeHeap:
    """Free pods of one pool and one kind (newest revision or not), by node."""

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
            # Too many entries out of date lie below the surface: start anew.
            self.heap = [(pool_state.rank(name), name) for name in self.nodes]
            heapq.heapify(self.heap)
        else:
            heapq.heappush(self.heap, (pool_state.rank(node), node))


class _PoolState:
    """One pool: its free pods, its waiting claims, and how many sandboxes it has where.

    Claimed pods outlive their pool, and after a restart are seen without ever having seen it.
    """

    def __init__(self) -> None:
        self.packed = False
        self.known = False
        self.free: dict[str, Candidate] = {}
        self.heaps = {True: _NodeHeap(), False: _NodeHeap()}
        self.waiting: OrderedDict[str, None] = OrderedDict()
        # A Counter, which does not keep what it is only asked for.
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
                    # Out of date: if the node still has pods, a fresher entry stands in the heap.
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
        """Order all shelves anew, after the placement has changed."""
        candidates = list(self.free.values())
        self.free.clear()
        self.heaps = {True: _NodeHeap(), False: _NodeHeap()}
        for candidate in candidates:
            self.put(candidate)


class Allocator:
    """Free pods, waiting claims, reservations.

    Args:
        on_allocation_changed: told the pool and the pod whenever one becomes allocated, or no
            longer is.
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
        # Versions up to which pods are known to be out of date, by uid.
        self._stale_versions: dict[str, int] = {}

    def _pool_state(self, pool: str) -> _PoolState:
        return self._pool_states.setdefault(pool, _PoolState())

    def set_packed(self, pool: str, *, packed: bool) -> None:
        """Set whether a pool's claims go to the node with the most or with the fewest."""
        pool_state = self._pool_state(pool)
        pool_state.known = True
        if pool_state.packed != packed:
            pool_state.packed = packed
            pool_state.rebuild()

    def add_candidate(self, pool: str, candidate: Candidate) -> str | None:
        """A pod may be handed out. Return the uid of the waiting claim that got it, if any."""
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
        """A pod may not be handed out now. Return False if it is already held for a claim."""
        pool = self._pool_of_free.pop(pod, None)
        if pool is not None:
            self._pool_states[pool].drop(pod)
            self._clean_up(pool)
        return pod not in self._allocated

    def allocate(self, pool: str, claim: str) -> Candidate | None:
        """Reserve a pod for a claim, or put the claim in line; asking again changes nothing."""
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
        """The uids of the claims that wait for a pod of a pool, the first in line at the front."""
        pool_state = self._pool_states.get(pool)
        return list(pool_state.waiting) if pool_state else []

    def requeue_first(self, pool: str, claim: str) -> None:
        """Put a claim that had its turn in vain at the front of the line."""
        if self.allocate(pool, claim) is None:
            self._pool_state(pool).waiting.move_to_end(claim, last=False)

    def _reserve(self, pool: str, claim: str, candidate: Candidate) -> None:
        self._pool_of_free.pop(candidate.uid, None)
        self._reserved[claim] = candidate
        self._pool_of_claim[claim] = pool
        self.mark_allocated(pool, candidate.uid, candidate.node)

    def mark_allocated(self, pool: str, pod: str, node: str) -> None:
        """A pod is a claim's, or about to be: never offer it, and count it on its node.

        A pod that was made for a claim has no node at first.
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
        """A pod has ended, or was certainly not handed out."""
        self._stale_versions.pop(pod, None)
        self._deallocate(pod)

    def _deallocate(self, pod: str) -> None:
        self.remove_candidate(pod)
        held = self._allocated.pop(pod, None)
        if held is not None:
            pool, node = held
            self._pool_state(pool).count(node, -1)
            self._clean_up(pool)
            self._on_allocation_changed(pool, pod)

    def mark_stale(self, pod: str, version: str) -> None:
        """The pod is known to have changed since this version, which the watch has yet to show.

        Until then it is not offered: a binding would only be refused.
        """
        self._stale_versions[pod] = parse_resource_version(version)

    def confirm_reservation(self, claim: str) -> None:
        """The reserved pod is the claim's now; it stays held until it ends."""
        self._reserved.pop(claim, None)
        self._pool_of_claim.pop(claim, None)

    def replace_reservation(self, claim: str) -> Candidate | None:
        """The reserved pod could not be had: reserve the next one instead.

        Without another free pod the claim is put first in line: it had its turn.
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

    def cancel_claim(self, claim: str) -> tuple[str, Candidate] | None:
        """A claim wants nothing any more. Return its pool and reserved pod, to be offered again."""
        pool = self._pool_of_claim.pop(claim, None)
        if pool is None:
            return None
        self._pool_state(pool).waiting.pop(claim, None)
        candidate = self._reserved.pop(claim, None)
        if candidate is None:
            self._clean_up(pool)
            return None
        self.release(candidate.uid)
        return pool, candidate

    def pool_of(self, claim: str) -> str | None:
        """The pool that a claim waits for, or has something reserved of."""
        return self._pool_of_claim.get(claim)

    def is_allocated(self, pod: str) -> bool:
        """The pod is reserved for a claim, or a claim's."""
        return pod in self._allocated

    def forget_pool(self, pool: str) -> list[str]:
        """A pool is gone. Return the uids of the claims that waited for it."""
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
        """A pool may be gone, or never have been there: the last of what it had takes it along."""
        pool_state = self._pool_states.get(pool)
        if pool_state and not (
            pool_state.known
            or pool_state.allocated_by_node
            or pool_state.free
            or pool_state.waiting
        ):
            del self._pool_states[pool]

    def free(self, pool: str) -> int:
        """How many pods of a pool could be handed out now."""
        pool_state = self._pool_states.get(pool)
        return len(pool_state.free) if pool_state else 0

    def binding(self, pool: str) -> int:
        """How many claims are being given a pod of a pool at this moment."""
        return sum(self._pool_of_claim[claim] == pool for claim in self._reserved)

    def waiting(self, pool: str) -> int:
        """How many claims wait for a pod of a pool."""
        pool_state = self._pool_states.get(pool)
        return len(pool_state.waiting) if pool_state else 0
