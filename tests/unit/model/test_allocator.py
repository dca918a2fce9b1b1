"""The allocator against a model simple enough to be seen to be right."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sandboxpool.allocation.allocator import Allocator, Candidate
from support.simulation.effort import SIMULATIONS

POOLS = ["p", "q"]
NODES = ["n1", "n2", "n3"]
PODS = [f"pod-{i}" for i in range(8)]
CLAIMS = [f"claim-{i}" for i in range(6)]


@dataclass
class PoolModel:
    """One pool, as lists that are searched from end to end."""

    known: bool = False
    packed: bool = False
    free: dict[str, Candidate] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    reserved: dict[str, Candidate] = field(default_factory=dict)
    # Held without a reservation: a claim's for good, by its node.
    settled: dict[str, str] = field(default_factory=dict)

    def allocated_by_node(self) -> Counter[str]:
        return Counter([*(c.node for c in self.reserved.values()), *self.settled.values()])

    def best(self) -> set[str]:
        """The pods that may be given next: newest revision, then the node by placement."""
        pods = list(self.free.values())
        pods = [c for c in pods if c.current] or pods
        sign = -1 if self.packed else 1
        ranks = {c.uid: sign * self.allocated_by_node()[c.node] for c in pods}
        return {uid for uid, rank in ranks.items() if rank == min(ranks.values())}


class AllocatorMachine(RuleBasedStateMachine):
    """Two pools, pods that come and go, claims that ask, win, lose and leave."""

    def __init__(self) -> None:
        super().__init__()
        self.told_held: set[str] = set()
        self.real = Allocator(lambda pool, pod: self.told_held.symmetric_difference_update({pod}))
        self.pools = {name: PoolModel() for name in POOLS}
        self.outdated: dict[str, int] = {}
        self.pool_of: dict[str, str] = {}

    # --- The model -------------------------------------------------------------------------------

    def held(self) -> dict[str, str]:
        """The pods that are a claim's, or about to be, and their pools."""
        return {
            uid: name
            for name, pool in self.pools.items()
            for uid in (*(c.uid for c in pool.reserved.values()), *pool.settled)
        }

    def reserve(self, pool: str, claim: str, found: Candidate) -> None:
        assert found.uid not in self.held()
        self.pools[pool].free.pop(found.uid, None)
        self.pools[pool].reserved[claim] = found

    def known_pool(self, claim: str) -> str | None:
        """The pool that a claim waits for, or has something reserved of."""
        return next((n for n, p in self.pools.items() if claim in (*p.waiting, *p.reserved)), None)

    def reservations(self) -> list[tuple[str, str]]:
        return [(name, claim) for name, pool in self.pools.items() for claim in pool.reserved]

    # --- What happens ----------------------------------------------------------------------------

    @rule(
        pool=st.sampled_from(POOLS),
        uid=st.sampled_from(PODS),
        node=st.sampled_from(NODES),
        version=st.integers(1, 3),
        current=st.booleans(),
    )
    def add_candidate(self, pool: str, uid: str, node: str, version: int, current: bool) -> None:
        pool = self.pool_of.setdefault(uid, pool)
        candidate = Candidate(uid, "default", uid, str(version), node, current)
        granted = self.real.add_candidate(pool, candidate)
        if uid in self.held() or version <= self.outdated.get(uid, 0):
            assert granted is None
            return
        self.outdated.pop(uid, None)
        line = self.pools[pool].waiting
        if line:
            assert granted == line.pop(0)
            self.reserve(pool, granted, candidate)
        else:
            assert granted is None
            self.pools[pool].free[uid] = candidate

    @rule(uid=st.sampled_from(PODS))
    def remove_candidate(self, uid: str) -> None:
        assert self.real.remove_candidate(uid) == (uid not in self.held())
        for pool in self.pools.values():
            pool.free.pop(uid, None)

    @rule(uid=st.sampled_from(PODS), pool=st.sampled_from(POOLS), node=st.sampled_from(NODES))
    def is_seen_to_be_a_claims(self, uid: str, pool: str, node: str) -> None:
        pool = self.pool_of.setdefault(uid, pool)
        reserved = [c for c in self.pools[pool].reserved.values() if c.uid == uid]
        # A pod that can be reserved has a node, and stays there.
        node = reserved[0].node if reserved else node
        self.real.mark_allocated(pool, uid, node)
        if uid not in self.held() or uid in self.pools[pool].settled:
            self.pools[pool].free.pop(uid, None)
            self.pools[pool].settled[uid] = node

    @rule(pool=st.sampled_from(POOLS), claim=st.sampled_from(CLAIMS))
    def allocate(self, pool: str, claim: str) -> None:
        pool = self.known_pool(claim) or pool
        model = self.pools[pool]
        if claim in model.reserved:
            assert self.real.allocate(pool, claim) == model.reserved[claim]
            return
        may_get = model.best() if claim not in model.waiting else set()
        found = self.real.allocate(pool, claim)
        assert (found is None) == (not may_get)
        if found is not None:
            assert found.uid in may_get
            self.reserve(pool, claim, found)
        elif claim not in model.waiting:
            model.waiting.append(claim)

    @precondition(lambda self: self.reservations())
    @rule(data=st.data())
    def confirm_reservation(self, data: st.DataObject) -> None:
        pool, claim = data.draw(st.sampled_from(self.reservations()))
        found = self.pools[pool].reserved.pop(claim)
        self.pools[pool].settled[found.uid] = found.node
        self.real.confirm_reservation(claim)

    @precondition(lambda self: self.reservations())
    @rule(data=st.data())
    def replace_reservation(self, data: st.DataObject) -> None:
        pool, claim = data.draw(st.sampled_from(self.reservations()))
        model = self.pools[pool]
        model.reserved.pop(claim)
        may_get = model.best()
        found = self.real.replace_reservation(claim)
        if found is None:
            assert not may_get
            model.waiting.insert(0, claim)
        else:
            assert found.uid in may_get
            self.reserve(pool, claim, found)

    @rule(uid=st.sampled_from(PODS), version=st.integers(1, 3))
    def mark_stale(self, uid: str, version: int) -> None:
        self.real.mark_stale(uid, str(version))
        self.outdated[uid] = version

    @rule(claim=st.sampled_from(CLAIMS))
    def cancel_claim(self, claim: str) -> None:
        pool = self.known_pool(claim)
        freed = self.real.cancel_claim(claim)
        if pool is None:
            assert freed is None
            return
        model = self.pools[pool]
        found = model.reserved.pop(claim, None)
        assert freed == found
        if found is not None:
            self.outdated.pop(found.uid, None)
        if claim in model.waiting:
            model.waiting.remove(claim)

    @rule(uid=st.sampled_from(PODS))
    def pod_ends(self, uid: str) -> None:
        if any(c.uid == uid for pool in self.pools.values() for c in pool.reserved.values()):
            return  # the claim finds out by its write, and refuses it
        self.real.release(uid)
        self.outdated.pop(uid, None)
        for pool in self.pools.values():
            pool.free.pop(uid, None)
            pool.settled.pop(uid, None)

    @rule(pool=st.sampled_from(POOLS))
    def forget_pool(self, pool: str) -> None:
        model = self.pools[pool]
        assert self.real.forget_pool(pool) == model.waiting
        model.waiting.clear()
        model.free.clear()
        model.known = model.packed = False

    @rule(pool=st.sampled_from(POOLS), packed=st.booleans())
    def set_packed(self, pool: str, packed: bool) -> None:
        self.real.set_packed(pool, packed=packed)
        self.pools[pool].packed = packed
        self.pools[pool].known = True

    # --- What always holds -----------------------------------------------------------------------

    @invariant()
    def each_pod_is_at_most_one_claims(self) -> None:
        pods = [found.uid for found in self.real._reserved.values()]
        assert len(pods) == len(set(pods))
        assert (
            {uid for uid in PODS if self.real.is_allocated(uid)}
            == set(self.held())
            == self.told_held
        )

    @invariant()
    def free_pods_and_waiting_claims_exclude_each_other(self) -> None:
        for name, model in self.pools.items():
            assert self.real.free(name) == len(model.free)
            assert self.real.waiting(name) == len(model.waiting)
            assert self.real.binding(name) == len(model.reserved)
            assert not (model.free and model.waiting)

    @invariant()
    def heaps_stay_bounded(self) -> None:
        for stock in self.real._pool_states.values():
            for node_heap in stock.heaps.values():
                assert len(node_heap.heap) <= 4 * len(node_heap.nodes) + 65

    def teardown(self) -> None:
        """Whatever has happened: when all has ended, nothing is left of it."""
        for name, model in self.pools.items():
            if model.known:
                self.real.forget_pool(name)
        for claim in CLAIMS:
            self.real.cancel_claim(claim)
        for uid in PODS:
            self.real.release(uid)
        kept = {name: value for name, value in vars(self.real).items() if not callable(value)}
        assert not any(kept.values()), kept
        assert not self.told_held


AllocatorMachine.TestCase.settings = settings(max_examples=4 * SIMULATIONS, stateful_step_count=40)
TestAllocator = AllocatorMachine.TestCase
