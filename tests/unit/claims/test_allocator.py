"""The allocator against a model simple enough to be seen to be right."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sandboxpool.claims.allocator import Allocator, Candidate

POOLS = ["p", "q"]
NODES = ["n1", "n2", "n3"]


def candidate(uid: str, node: str = "n1", version: int = 1, *, current: bool = True) -> Candidate:
    return Candidate(uid, "default", uid, str(version), node, current)


def filled(*pods: Candidate) -> Allocator:
    allocator = Allocator()
    for pod in pods:
        allocator.offer("p", pod)
    return allocator


def taken(allocator: Allocator, claim: str) -> str:
    found = allocator.request("p", claim)
    assert found is not None
    return found.uid


class AllocatorMachine(RuleBasedStateMachine):
    """Two pools, pods that come and go, claims that ask, win, lose and leave."""

    def __init__(self) -> None:
        super().__init__()
        self.real = Allocator()
        self.free: dict[str, dict[str, Candidate]] = {pool: {} for pool in POOLS}
        self.waiting: dict[str, list[str]] = {pool: [] for pool in POOLS}
        self.reserved: dict[str, tuple[str, Candidate]] = {}
        self.settled: dict[str, tuple[str, str, str]] = {}
        self.held_on: dict[str, Counter[str]] = {pool: Counter() for pool in POOLS}
        self.refused: dict[str, str] = {}
        self.packed = dict.fromkeys(POOLS, False)
        self.pool_of: dict[str, str] = {}

    # --- The model -------------------------------------------------------------------------------

    def held(self) -> set[str]:
        return {c.uid for _, c in self.reserved.values()} | set(self.settled)

    def best(self, pool: str) -> set[str]:
        """The pods that may be given next: newest revision, then the node by placement."""
        pods = list(self.free[pool].values())
        pods = [c for c in pods if c.current] or pods
        sign = -1 if self.packed[pool] else 1
        ranks = {c.uid: sign * self.held_on[pool][c.node] for c in pods}
        return {uid for uid, rank in ranks.items() if rank == min(ranks.values())}

    def reserve(self, pool: str, claim: str, found: Candidate) -> None:
        assert found.uid in self.free[pool] or found.uid not in self.held()
        self.free[pool].pop(found.uid, None)
        self.reserved[claim] = pool, found
        self.held_on[pool][found.node] += 1

    # --- What happens ----------------------------------------------------------------------------

    @rule(
        pool=st.sampled_from(POOLS),
        pod=st.integers(0, 7),
        node=st.sampled_from(NODES),
        version=st.integers(1, 3),
        current=st.booleans(),
    )
    def offer(self, pool: str, pod: int, node: str, version: int, current: bool) -> None:
        uid = f"pod-{pod}"
        pool = self.pool_of.setdefault(uid, pool)
        offered = candidate(uid, node, version, current=current)
        granted = self.real.offer(pool, offered)
        if uid in self.held() or self.refused.get(uid) == offered.version:
            assert granted is None
            return
        self.refused.pop(uid, None)
        if self.waiting[pool]:
            assert granted == self.waiting[pool].pop(0)
            self.reserve(pool, granted, offered)
        else:
            assert granted is None
            self.free[pool][uid] = offered

    @rule(pod=st.integers(0, 7))
    def withdraw(self, pod: int) -> None:
        uid = f"pod-{pod}"
        assert self.real.withdraw(uid) == (uid not in self.held())
        for pods in self.free.values():
            pods.pop(uid, None)

    @rule(pool=st.sampled_from(POOLS), claim=st.integers(0, 5))
    def request(self, pool: str, claim: int) -> None:
        uid = f"claim-{claim}"
        pool = next((p for p in POOLS if uid in self.waiting[p]), pool)
        if uid in self.reserved:
            pool = self.reserved[uid][0]
            assert self.real.request(pool, uid) == self.reserved[uid][1]
            return
        may_get = self.best(pool) if uid not in self.waiting[pool] else set()
        found = self.real.request(pool, uid)
        assert (found is None) == (not may_get)
        if found is not None:
            assert found.uid in may_get
            self.reserve(pool, uid, found)
        elif uid not in self.waiting[pool]:
            self.waiting[pool].append(uid)

    @precondition(lambda self: self.reserved)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(sorted(self.reserved)))
        pool, found = self.reserved.pop(claim)
        self.settled[found.uid] = pool, found.node, claim
        self.real.settle(claim)

    @precondition(lambda self: self.reserved)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(sorted(self.reserved)))
        pool, lost = self.reserved.pop(claim)
        self.held_on[pool][lost.node] -= 1
        self.refused[lost.uid] = lost.version
        may_get = self.best(pool)
        found = self.real.refuse(claim)
        if found is None:
            assert not may_get
            self.waiting[pool].insert(0, claim)
        else:
            assert found.uid in may_get
            self.reserve(pool, claim, found)

    @rule(claim=st.integers(0, 5))
    def abandon(self, claim: int) -> None:
        uid = f"claim-{claim}"
        freed = self.real.abandon(uid)
        for line in self.waiting.values():
            if uid in line:
                line.remove(uid)
        if uid in self.reserved:
            pool, found = self.reserved.pop(uid)
            self.held_on[pool][found.node] -= 1
            assert freed == (pool, found)
        else:
            assert freed is None

    @rule(pod=st.integers(0, 7))
    def pod_ends(self, pod: int) -> None:
        uid = f"pod-{pod}"
        if any(c.uid == uid for _, c in self.reserved.values()):
            return  # the claim finds out by its write, and refuses it
        self.real.release(uid)
        self.refused.pop(uid, None)
        for pods in self.free.values():
            pods.pop(uid, None)
        if uid in self.settled:
            pool, node, _ = self.settled.pop(uid)
            self.held_on[pool][node] -= 1

    @rule(pool=st.sampled_from(POOLS))
    def forget_pool(self, pool: str) -> None:
        assert self.real.forget_pool(pool) == self.waiting[pool]
        self.waiting[pool].clear()
        self.free[pool].clear()
        if not self.held_on[pool].total():
            self.packed[pool] = False

    @rule(pool=st.sampled_from(POOLS), packed=st.booleans())
    def place(self, pool: str, packed: bool) -> None:
        self.real.place(pool, packed=packed)
        self.packed[pool] = packed

    # --- What always holds -----------------------------------------------------------------------

    @invariant()
    def each_pod_is_at_most_one_claims(self) -> None:
        pods = [found.uid for found in self.real._reserved.values()]
        assert len(pods) == len(set(pods))
        assert {uid for uid in (f"pod-{i}" for i in range(8)) if self.real.is_held(uid)} == (
            self.held()
        )

    @invariant()
    def free_pods_and_waiting_claims_exclude_each_other(self) -> None:
        for pool in POOLS:
            assert self.real.free(pool) == len(self.free[pool])
            assert self.real.waiting(pool) == len(self.waiting[pool])
            assert not (self.real.free(pool) and self.real.waiting(pool))

    @invariant()
    def heaps_stay_bounded(self) -> None:
        for stock in self.real._stocks.values():
            for shelf in stock.shelves.values():
                assert len(shelf.heap) <= 4 * len(shelf.nodes) + 65


AllocatorMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
TestAllocator = AllocatorMachine.TestCase


def test_claims_are_served_in_the_order_of_their_asking() -> None:
    allocator = Allocator()
    for claim in ("a", "b", "c"):
        assert allocator.request("p", claim) is None
        assert allocator.request("p", claim) is None
    assert [allocator.offer("p", candidate(f"pod-{i}")) for i in range(4)] == ["a", "b", "c", None]


def test_the_newest_revision_goes_first() -> None:
    allocator = filled(candidate("old", current=False), candidate("new"))
    assert [taken(allocator, "a"), taken(allocator, "b")] == ["new", "old"]


def test_spread_takes_from_the_emptiest_node_and_packed_from_the_fullest() -> None:
    for packed, expected in ((False, ["n1", "n2", "n1", "n2"]), (True, ["n1", "n1", "n2", "n2"])):
        allocator = filled(*(candidate(f"{n}-{i}", n) for i in range(2) for n in ("n1", "n2")))
        allocator.place("p", packed=packed)
        assert [taken(allocator, f"claim-{i}")[:2] for i in range(4)] == expected


def test_changing_the_placement_reorders_what_is_free() -> None:
    allocator = filled(*(candidate(f"{n}-{i}", n) for i in range(3) for n in ("n1", "n2")))
    allocator.hold("p", "claimed", "n2")
    assert taken(allocator, "a").startswith("n1")
    allocator.hold("p", "another", "n2")
    allocator.place("p", packed=True)
    assert taken(allocator, "b").startswith("n2")


def test_a_held_pod_is_never_offered_again() -> None:
    allocator = filled(candidate("pod"))
    assert taken(allocator, "a") == "pod"
    assert allocator.offer("p", candidate("pod", version=2)) is None
    assert allocator.request("p", "b") is None
    allocator.settle("a")
    assert allocator.offer("p", candidate("pod", version=3)) is None
    assert not allocator.withdraw("pod")


def test_a_refused_pod_waits_for_a_newer_state_and_its_claim_keeps_its_turn() -> None:
    allocator = filled(candidate("pod"))
    taken(allocator, "a")
    allocator.request("p", "b")
    assert allocator.refuse("a") is None
    assert allocator.offer("p", candidate("pod")) is None
    assert allocator.offer("p", candidate("pod", version=2)) == "a"


def test_forgetting_a_pool_frees_nothing_that_is_a_claims() -> None:
    allocator = filled(candidate("one"), candidate("two"))
    taken(allocator, "a")
    assert allocator.forget_pool("p") == []
    assert allocator.free("p") == 0
    assert allocator.is_held("one")
    assert allocator.forget_pool("unknown") == []


@pytest.mark.parametrize("claims", [0, 1])
def test_a_pod_that_is_seen_again_and_again_costs_no_memory(claims: int) -> None:
    allocator = Allocator()
    for i in range(3000):
        allocator.offer("p", candidate("pod", "n1", i))
        allocator.offer("p", candidate("other", "n2", i))
        if claims and i % 500 == 0:
            taken(allocator, f"claim-{i}")
            allocator.abandon(f"claim-{i}")
    (stock,) = allocator._stocks.values()
    assert len(stock.shelves[True].heap) < 200


def test_a_pool_that_went_before_its_claims_leaves_nothing_behind() -> None:
    allocator = filled(candidate("pod"))
    taken(allocator, "a")
    allocator.settle("a")
    allocator.forget_pool("p")
    allocator.release("pod")
    assert not allocator._stocks
