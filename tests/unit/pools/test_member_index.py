"""A pool's members as they were sorted last, and what is asked of them as groups."""

from typing import Any

import pytest

from sandboxpool.api.core import Pod
from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.pools.member_index import MemberFacts, MemberIndex
from sandboxpool.runtimes.host_state import HostState
from sandboxpool.sandboxes.members import Member, Members
from support.builders import facts, member, pod

WELL = HostState(facts(), "runsc")
QUARANTINED = HostState(facts(), "runsc", quarantined=True)
NO_RUNTIME = (
    "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to get sandbox "
    'runtime: no runtime for "runsc" is configured'
)


class IndexedPods:
    """A member index, and the pool that it is about."""

    def __init__(self, *pods: Pod) -> None:
        self.index = MemberIndex()
        self.pods = {pod.metadata.uid: pod for pod in pods}
        self.host_state = WELL
        self.event: str | None = None
        self.deleting = False
        self.claimed = False
        self.asked: list[str] = []

    def facts_of(self, uid: str) -> MemberFacts | None:
        self.asked.append(uid)
        found = self.pods.get(uid)
        if found is None:
            return None
        return found, self.host_state, self.event, self.deleting, self.claimed, None

    def put(self, pod: Pod) -> None:
        self.pods[pod.metadata.uid] = pod
        self.index.mark_dirty(pod.metadata.uid)

    def change(self, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(self, name, value)
        for uid in self.pods:
            self.index.mark_dirty(uid)

    def refresh(self, **how: Any) -> dict[str, Member]:
        self.asked.clear()
        return {m.name: m for m in self.index.refresh(self.facts_of, self.pods, **how)}

    def states(self, **how: Any) -> dict[str, SandboxState]:
        return {name: m.state for name, m in self.refresh(**how).items()}


def filled(*pods: Pod) -> IndexedPods:
    world = IndexedPods(*pods)
    world.refresh(resync=True)
    return world


def test_only_dirty_pods_are_reclassified() -> None:
    world = filled(pod("one"), pod("two"))
    before = world.refresh()
    assert world.asked == []
    two = pod("two", ready=False)
    world.put(two)
    after = world.refresh()
    assert world.asked == [two.metadata.uid]
    assert (after["one"], after["two"].state) == (before["one"], SandboxState.UNREADY)
    assert after["one"] is before["one"]


@pytest.mark.parametrize(
    ("changed", "state"),
    [
        ({"host_state": QUARANTINED}, SandboxState.STRANDED),
        ({"deleting": True}, SandboxState.STOPPING),
        ({"claimed": True}, SandboxState.CLAIMED),
    ],
)
def test_a_pod_with_other_facts_is_reclassified(
    changed: dict[str, Any], state: SandboxState
) -> None:
    world = filled(pod("one"))
    world.change(**changed)
    assert world.states() == {"one": state}
    world.change(host_state=WELL, deleting=False, claimed=False)
    assert world.states() == {"one": SandboxState.WARM}


def test_a_new_failure_reclassifies_a_pod() -> None:
    world = filled(pod("one", ready=False))
    assert world.refresh()["one"].failure is None
    world.change(event=NO_RUNTIME)
    failure = world.refresh()["one"].failure
    assert failure is not None
    assert failure.reason is Reason.HANDLER_NOT_CONFIGURED


def test_a_deleted_pod_is_removed_when_it_is_dirty_or_at_a_resync() -> None:
    for resync in (False, True):
        world = filled(pod("one"), pod("two"))
        uid = next(iter(world.pods))
        del world.pods[uid]
        if not resync:
            world.index.mark_dirty(uid)
        assert list(world.states(resync=resync)) == ["two"]


def test_a_transient_pod_is_reclassified_once_more_afterwards() -> None:
    world = filled(pod("one"))
    (uid,) = world.pods
    world.deleting = True
    assert world.states(transient={uid}) == {"one": SandboxState.STOPPING}
    world.deleting = False
    assert world.states() == {"one": SandboxState.WARM}
    world.refresh()
    assert world.asked == []


def test_a_resync_reclassifies_all_pods() -> None:
    world = filled(pod("one"))
    world.host_state = QUARANTINED
    assert world.states() == {"one": SandboxState.WARM}
    assert world.states(resync=True) == {"one": SandboxState.STRANDED}


# --- Groups ----------------------------------------------------------------------------------


def test_predicates_are_called_once_a_group() -> None:
    """However many there are, one of a kind answers for all."""
    asked: list[str] = []

    def is_old(one: Member) -> bool:
        asked.append(one.name)
        return one.revision == "old"

    stock = Members(
        [member(f"new-{n}") for n in range(50)]
        + [member(f"old-{n}", revision="old") for n in range(50)]
        + [member("starting", SandboxState.STARTING)]
    )
    assert len(list(stock.where(is_old))) == 50
    assert len(asked) == 3
    assert (len(stock), stock.count(SandboxState.WARM)) == (101, 100)
    assert [m.name for m in stock.of(SandboxState.STARTING)] == ["starting"]


def test_a_derived_collection_does_not_change_the_members() -> None:
    one, two, starting = member("one"), member("two"), member("starting", SandboxState.STARTING)
    stock = Members([one, two, starting])
    assert list(stock.without([one])) == [two, starting]
    warm = stock.only(SandboxState.WARM)
    warm.put(member("three"))
    assert (len(warm), len(stock)) == (3, 3)
