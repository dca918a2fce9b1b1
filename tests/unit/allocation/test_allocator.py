"""What the allocator does, case by case; the model of all cases is in `unit/model`."""

import pytest

from sandboxpool.allocation.allocator import Allocator, Candidate


def candidate(uid: str, node: str = "n1", version: int = 1, *, current: bool = True) -> Candidate:
    return Candidate(uid, "default", uid, str(version), node, current)


def filled(*pods: Candidate) -> Allocator:
    allocator = Allocator()
    for pod in pods:
        allocator.add_candidate("p", pod)
    return allocator


def taken(allocator: Allocator, claim: str) -> str:
    found = allocator.allocate("p", claim)
    assert found is not None
    return found.uid


def test_claims_are_served_in_the_order_of_their_asking() -> None:
    allocator = Allocator()
    for claim in ("a", "b", "c"):
        assert allocator.allocate("p", claim) is None
        assert allocator.allocate("p", claim) is None
    assert [allocator.add_candidate("p", candidate(f"pod-{i}")) for i in range(4)] == [
        "a",
        "b",
        "c",
        None,
    ]


def test_the_newest_revision_goes_first() -> None:
    allocator = filled(candidate("old", current=False), candidate("new"))
    assert [taken(allocator, "a"), taken(allocator, "b")] == ["new", "old"]


def test_spread_takes_from_the_emptiest_node_and_packed_from_the_fullest() -> None:
    for packed, expected in ((False, ["n1", "n2", "n1", "n2"]), (True, ["n1", "n1", "n2", "n2"])):
        allocator = filled(*(candidate(f"{n}-{i}", n) for i in range(2) for n in ("n1", "n2")))
        allocator.set_packed("p", packed=packed)
        assert [taken(allocator, f"claim-{i}")[:2] for i in range(4)] == expected


def test_changing_the_placement_reorders_what_is_free() -> None:
    allocator = filled(*(candidate(f"{n}-{i}", n) for i in range(3) for n in ("n1", "n2")))
    allocator.mark_allocated("p", "claimed", "n2")
    assert taken(allocator, "a").startswith("n1")
    allocator.mark_allocated("p", "another", "n2")
    allocator.set_packed("p", packed=True)
    assert taken(allocator, "b").startswith("n2")


def test_a_held_pod_is_never_offered_again() -> None:
    allocator = filled(candidate("pod"))
    assert taken(allocator, "a") == "pod"
    assert allocator.add_candidate("p", candidate("pod", version=2)) is None
    assert allocator.allocate("p", "b") is None
    allocator.confirm_reservation("a")
    assert allocator.add_candidate("p", candidate("pod", version=3)) is None
    assert not allocator.remove_candidate("pod")


def test_a_pod_that_is_out_of_date_waits_for_a_newer_state_and_its_claim_keeps_its_turn() -> None:
    allocator = filled(candidate("pod"))
    taken(allocator, "a")
    allocator.allocate("p", "b")
    allocator.mark_stale("pod", "2")
    assert allocator.replace_reservation("a") is None
    for version in (1, 2):
        assert allocator.add_candidate("p", candidate("pod", version=version)) is None
    assert allocator.add_candidate("p", candidate("pod", version=3)) == "a"


def test_a_pod_that_could_not_be_had_may_be_offered_again_as_it_is() -> None:
    allocator = filled(candidate("pod"))
    taken(allocator, "a")
    assert allocator.replace_reservation("a") is None
    assert allocator.add_candidate("p", candidate("pod")) == "a"


def test_a_held_pod_counts_on_the_node_where_it_was_seen_last() -> None:
    """A pod that is made for a claim has no node at first."""
    allocator = filled(candidate("one", "n1"), candidate("two", "n2"))
    allocator.set_packed("p", packed=True)
    for node in ("", "n2"):
        allocator.mark_allocated("p", "cold", node)
    assert taken(allocator, "a") == "two"
    allocator.release("cold")
    assert dict(allocator._pool_states["p"].allocated_by_node) == {"n2": 1}


def test_forgetting_a_pool_frees_nothing_that_is_a_claims() -> None:
    allocator = filled(candidate("one"), candidate("two"))
    taken(allocator, "a")
    assert allocator.forget_pool("p") == []
    assert allocator.free("p") == 0
    assert allocator.is_allocated("one")
    assert allocator.forget_pool("unknown") == []


@pytest.mark.parametrize("claims", [0, 1])
def test_a_pod_that_is_seen_again_and_again_costs_no_memory(claims: int) -> None:
    allocator = Allocator()
    for i in range(3000):
        allocator.add_candidate("p", candidate("pod", "n1", i))
        allocator.add_candidate("p", candidate("other", "n2", i))
        if claims and i % 500 == 0:
            taken(allocator, f"claim-{i}")
            allocator.cancel_claim(f"claim-{i}")
    (stock,) = allocator._pool_states.values()
    assert len(stock.heaps[True].heap) < 200


def test_a_pool_that_went_before_its_claims_leaves_nothing_behind() -> None:
    allocator = filled(candidate("pod"))
    taken(allocator, "a")
    allocator.confirm_reservation("a")
    allocator.forget_pool("p")
    allocator.release("pod")
    assert not allocator._pool_states


def test_the_claimed_pods_of_a_pool_that_was_never_seen_leave_nothing_behind() -> None:
    allocator = Allocator()
    allocator.mark_allocated("gone", "pod", "n1")
    allocator.release("pod")
    assert not allocator._pool_states


def test_a_pool_leaves_nothing_behind_though_its_free_pods_were_ranked() -> None:
    allocator = filled(candidate("pod"))
    allocator.forget_pool("p")
    assert not allocator._pool_states
