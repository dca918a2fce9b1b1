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


class Book:
    """A book, and the pool that it is about."""

    def __init__(self, *pods: Pod) -> None:
        self.book = MemberIndex()
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
        self.book.mark_dirty(pod.metadata.uid)

    def change(self, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(self, name, value)
        for uid in self.pods:
            self.book.mark_dirty(uid)

    def sort(self, **how: Any) -> dict[str, Member]:
        self.asked.clear()
        return {m.name: m for m in self.book.refresh(self.facts_of, self.pods, **how)}

    def states(self, **how: Any) -> dict[str, SandboxState]:
        return {name: m.state for name, m in self.sort(**how).items()}


def filled(*pods: Pod) -> Book:
    book = Book(*pods)
    book.sort(resync=True)
    return book


def test_only_what_was_stirred_is_looked_at() -> None:
    book = filled(pod("one"), pod("two"))
    before = book.sort()
    assert book.asked == []
    two = pod("two", ready=False)
    book.put(two)
    after = book.sort()
    assert book.asked == [two.metadata.uid]
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
def test_what_stands_otherwise_is_sorted_anew(changed: dict[str, Any], state: SandboxState) -> None:
    book = filled(pod("one"))
    book.change(**changed)
    assert book.states() == {"one": state}
    book.change(host_state=WELL, deleting=False, claimed=False)
    assert book.states() == {"one": SandboxState.WARM}


def test_what_keeps_a_pod_from_starting_is_learned() -> None:
    book = filled(pod("one", ready=False))
    assert book.sort()["one"].failure is None
    book.change(event=NO_RUNTIME)
    failure = book.sort()["one"].failure
    assert failure is not None
    assert failure.reason is Reason.HANDLER_NOT_CONFIGURED


def test_a_pod_that_is_gone_is_forgotten_when_that_is_told_or_all_is_sorted_anew() -> None:
    for anew in (False, True):
        book = filled(pod("one"), pod("two"))
        uid = next(iter(book.pods))
        del book.pods[uid]
        if not anew:
            book.book.mark_dirty(uid)
        assert list(book.states(resync=anew)) == ["two"]


def test_what_passes_is_looked_at_once_more_when_it_has_passed() -> None:
    book = filled(pod("one"))
    (uid,) = book.pods
    book.deleting = True
    assert book.states(transient={uid}) == {"one": SandboxState.STOPPING}
    book.deleting = False
    assert book.states() == {"one": SandboxState.WARM}
    book.sort()
    assert book.asked == []


def test_all_is_sorted_anew_when_asked_to_be() -> None:
    book = filled(pod("one"))
    book.host_state = QUARANTINED
    assert book.states() == {"one": SandboxState.WARM}
    assert book.states(resync=True) == {"one": SandboxState.STRANDED}


# --- Groups ----------------------------------------------------------------------------------


def test_members_are_asked_as_groups() -> None:
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


def test_what_is_taken_from_members_leaves_them_as_they_were() -> None:
    one, two, starting = member("one"), member("two"), member("starting", SandboxState.STARTING)
    stock = Members([one, two, starting])
    assert list(stock.without([one])) == [two, starting]
    warm = stock.only(SandboxState.WARM)
    warm.put(member("three"))
    assert (len(warm), len(stock)) == (3, 3)
