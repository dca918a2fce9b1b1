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

from sandboxpool.util.versions import number_of


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


class _Shelf:
    """Free pods of one pool and one kind (newest revision or not), by node."""

    def __init__(self) -> None:
        self.nodes: defaultdict[str, OrderedDict[str, Candidate]] = defaultdict(OrderedDict)
        self.heap: list[tuple[int, str]] = []

    def put(self, candidate: Candidate, stock: "_Stock") -> None:
        pods = self.nodes[candidate.node]
        pods[candidate.uid] = candidate
        if len(pods) == 1:
            self.rerank(candidate.node, stock)

    def remove(self, candidate: Candidate) -> None:
        pods = self.nodes.get(candidate.node)
        if pods is not None:
            pods.pop(candidate.uid, None)
            if not pods:
                del self.nodes[candidate.node]

    def rerank(self, node: str, stock: "_Stock") -> None:
        if node not in self.nodes:
            return
        if len(self.heap) > 4 * len(self.nodes) + 64:
            # Too many entries out of date lie below the surface: start anew.
            self.heap = [(stock.rank(name), name) for name in self.nodes]
            heapq.heapify(self.heap)
        else:
            heapq.heappush(self.heap, (stock.rank(node), node))


class _Stock:
    """One pool: its free pods, its waiting claims, and how many sandboxes it has where.

    Claimed pods outlive their pool, and after a restart are seen without ever having seen it.
    """

    def __init__(self) -> None:
        self.packed = False
        self.known = False
        self.free: dict[str, Candidate] = {}
        self.shelves = {True: _Shelf(), False: _Shelf()}
        self.waiting: OrderedDict[str, None] = OrderedDict()
        # A Counter, which does not keep what it is only asked for.
        self.held_on: Counter[str] = Counter()

    def rank(self, node: str) -> int:
        return -self.held_on[node] if self.packed else self.held_on[node]

    def put(self, candidate: Candidate) -> None:
        self.drop(candidate.uid)
        self.free[candidate.uid] = candidate
        self.shelves[candidate.current].put(candidate, self)

    def drop(self, uid: str) -> Candidate | None:
        candidate = self.free.pop(uid, None)
        if candidate is not None:
            self.shelves[candidate.current].remove(candidate)
        return candidate

    def take(self) -> Candidate | None:
        for current in (True, False):
            shelf = self.shelves[current]
            while shelf.heap:
                rank, node = shelf.heap[0]
                pods = shelf.nodes.get(node)
                if not pods or rank != self.rank(node):
                    # Out of date: if the node still has pods, a fresher entry stands in the heap.
                    heapq.heappop(shelf.heap)
                    continue
                candidate = next(iter(pods.values()))
                return self.drop(candidate.uid)
        return None

    def count(self, node: str, change: int) -> None:
        self.held_on[node] += change
        if not self.held_on[node]:
            del self.held_on[node]
        for shelf in self.shelves.values():
            shelf.rerank(node, self)

    def rebuild(self) -> None:
        """Order all shelves anew, after the placement has changed."""
        candidates = list(self.free.values())
        self.free.clear()
        self.shelves = {True: _Shelf(), False: _Shelf()}
        for candidate in candidates:
            self.put(candidate)


class Allocator:
    """Free pods, waiting claims, reservations.

    Args:
        on_held: told the pool and the pod whenever one becomes held, or is so no longer.
    """

    def __init__(self, on_held: Callable[[str, str], None] = lambda pool, pod: None) -> None:
        self._on_held = on_held
        self._stocks: dict[str, _Stock] = {}
        self._pool_of_free: dict[str, str] = {}
        self._held: dict[str, tuple[str, str]] = {}
        self._reserved: dict[str, Candidate] = {}
        self._pool_of_claim: dict[str, str] = {}
        # Versions up to which pods are known to be out of date, by uid.
        self._outdated: dict[str, int] = {}

    def _stock(self, pool: str) -> _Stock:
        return self._stocks.setdefault(pool, _Stock())

    def place(self, pool: str, *, packed: bool) -> None:
        """Set whether a pool's claims go to the node with the most or with the fewest."""
        stock = self._stock(pool)
        stock.known = True
        if stock.packed != packed:
            stock.packed = packed
            stock.rebuild()

    def offer(self, pool: str, candidate: Candidate) -> str | None:
        """A pod may be handed out. Return the uid of the waiting claim that got it, if any."""
        if candidate.uid in self._held:
            return None
        if number_of(candidate.version) <= self._outdated.get(candidate.uid, -1):
            return None
        self._outdated.pop(candidate.uid, None)
        stock = self._stock(pool)
        if stock.waiting:
            claim, _ = stock.waiting.popitem(last=False)
            stock.drop(candidate.uid)
            self._reserve(pool, claim, candidate)
            return claim
        stock.put(candidate)
        self._pool_of_free[candidate.uid] = pool
        return None

    def withdraw(self, pod: str) -> bool:
        """A pod may not be handed out now. Return False if it is already held for a claim."""
        pool = self._pool_of_free.pop(pod, None)
        if pool is not None:
            self._stocks[pool].drop(pod)
            self._clean_up(pool)
        return pod not in self._held

    def request(self, pool: str, claim: str) -> Candidate | None:
        """Reserve a pod for a claim, or put the claim in line; asking again changes nothing."""
        if claim in self._reserved:
            return self._reserved[claim]
        stock = self._stock(pool)
        self._pool_of_claim[claim] = pool
        if claim in stock.waiting:
            return None
        candidate = stock.take()
        if candidate is None:
            stock.waiting[claim] = None
            return None
        self._pool_of_free.pop(candidate.uid, None)
        self._reserve(pool, claim, candidate)
        return candidate

    def line(self, pool: str) -> list[str]:
        """The uids of the claims that wait for a pod of a pool, the first in line at the front."""
        stock = self._stocks.get(pool)
        return list(stock.waiting) if stock else []

    def put_first(self, pool: str, claim: str) -> None:
        """Put a claim that had its turn in vain at the front of the line."""
        if self.request(pool, claim) is None:
            self._stock(pool).waiting.move_to_end(claim, last=False)

    def _reserve(self, pool: str, claim: str, candidate: Candidate) -> None:
        self._pool_of_free.pop(candidate.uid, None)
        self._reserved[claim] = candidate
        self._pool_of_claim[claim] = pool
        self.hold(pool, candidate.uid, candidate.node)

    def hold(self, pool: str, pod: str, node: str) -> None:
        """A pod is a claim's, or about to be: never offer it, and count it on its node.

        A pod that was made for a claim has no node at first.
        """
        self.withdraw(pod)
        was = self._held.get(pod)
        if was == (pool, node):
            return
        self._held[pod] = pool, node
        if was is not None:
            self._stock(was[0]).count(was[1], -1)
        self._stock(pool).count(node, 1)
        if was is None:
            self._on_held(pool, pod)
        elif was[0] != pool:
            self._clean_up(was[0])

    def release(self, pod: str) -> None:
        """A pod has ended, or was certainly not handed out."""
        self._outdated.pop(pod, None)
        self._let_go(pod)

    def _let_go(self, pod: str) -> None:
        self.withdraw(pod)
        held = self._held.pop(pod, None)
        if held is not None:
            pool, node = held
            self._stock(pool).count(node, -1)
            self._clean_up(pool)
            self._on_held(pool, pod)

    def outdate(self, pod: str, version: str) -> None:
        """The pod is known to have changed since this version, which the watch has yet to show.

        Until then it is not offered: a binding would only be refused.
        """
        self._outdated[pod] = number_of(version)

    def settle(self, claim: str) -> None:
        """The reserved pod is the claim's now; it stays held until it ends."""
        self._reserved.pop(claim, None)
        self._pool_of_claim.pop(claim, None)

    def refuse(self, claim: str) -> Candidate | None:
        """The reserved pod could not be had: reserve the next one instead.

        Without another free pod the claim is put first in line: it had its turn.
        """
        candidate = self._reserved.pop(claim)
        pool = self._pool_of_claim[claim]
        self._let_go(candidate.uid)
        stock = self._stock(pool)
        following = stock.take()
        if following is None:
            stock.waiting[claim] = None
            stock.waiting.move_to_end(claim, last=False)
            return None
        self._reserve(pool, claim, following)
        return following

    def abandon(self, claim: str) -> tuple[str, Candidate] | None:
        """A claim wants nothing any more. Return its pool and reserved pod, to be offered again."""
        pool = self._pool_of_claim.pop(claim, None)
        if pool is None:
            return None
        self._stock(pool).waiting.pop(claim, None)
        candidate = self._reserved.pop(claim, None)
        if candidate is None:
            self._clean_up(pool)
            return None
        self.release(candidate.uid)
        return pool, candidate

    def pool_of(self, claim: str) -> str | None:
        """The pool that a claim waits for, or has something reserved of."""
        return self._pool_of_claim.get(claim)

    def is_held(self, pod: str) -> bool:
        """The pod is reserved for a claim, or a claim's."""
        return pod in self._held

    def forget_pool(self, pool: str) -> list[str]:
        """A pool is gone. Return the uids of the claims that waited for it."""
        stock = self._stocks.get(pool)
        if stock is None:
            return []
        for uid in list(stock.free):
            self.withdraw(uid)
        waiting = list(stock.waiting)
        stock.waiting.clear()
        for claim in waiting:
            self._pool_of_claim.pop(claim, None)
        stock.known = stock.packed = False
        self._clean_up(pool)
        return waiting

    def _clean_up(self, pool: str) -> None:
        """A pool may be gone, or never have been there: the last of what it had takes it along."""
        stock = self._stocks.get(pool)
        if stock and not (stock.known or stock.held_on or stock.free or stock.waiting):
            del self._stocks[pool]

    def free(self, pool: str) -> int:
        """How many pods of a pool could be handed out now."""
        stock = self._stocks.get(pool)
        return len(stock.free) if stock else 0

    def binding(self, pool: str) -> int:
        """How many claims are being given a pod of a pool at this moment."""
        return sum(self._pool_of_claim[claim] == pool for claim in self._reserved)

    def waiting(self, pool: str) -> int:
        """How many claims wait for a pod of a pool."""
        stock = self._stocks.get(pool)
        return len(stock.waiting) if stock else 0
