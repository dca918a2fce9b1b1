"""A pool's members as they were sorted last: only what has changed is sorted anew.

Of a large pool few pods change between two looks, and each of those follows the other.
"""

from collections.abc import Callable, Collection, Iterable

from sandboxpool.api.core import Pod
from sandboxpool.runtimes.host_state import HostState
from sandboxpool.runtimes.podevents import PodEvents
from sandboxpool.sandboxes.members import Member, Members, classify_pod

# What a member is made of: the arguments of member_of, in order.
MemberFacts = tuple[Pod, HostState, str | None, bool, bool, PodEvents | None]


class MemberIndex:
    """Sorts the pods of one pool, and remembers how."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[MemberFacts, Member]] = {}
        self._members = Members()
        self._dirty: set[str] = set()
        self._passing: Collection[str] = ()

    def mark_dirty(self, uid: str) -> None:
        """A pod, or something that it is judged by, has changed, or may have."""
        self._dirty.add(uid)

    def refresh(
        self,
        facts_of: Callable[[str], MemberFacts | None],
        all_uids: Iterable[str],
        *,
        transient: Collection[str] = (),
        resync: bool = False,
        clock: float = 0.0,
    ) -> Members:
        """Sort what was stirred; return all members, which stay as they are until the next call.

        Args:
            facts_of: what is known of a pod by its uid; None if it is none of the pool.
            all_uids: the uids of all the pool's pods.
            transient: what needs a look now and, when it is no longer named, once more.
            resync: look at everything, whether it was stirred or not.
            clock: seconds of our own monotonic clock.
        """
        looked = {*all_uids, *self._known} if resync else {*self._dirty, *self._passing, *transient}
        self._dirty.clear()
        self._passing = transient
        for uid in looked:
            self._place(uid, facts_of(uid), clock)
        return self._members

    def _place(self, uid: str, facts: MemberFacts | None, clock: float) -> None:
        entry = self._known.get(uid)
        # A cached pod is never changed, only replaced. Tuples compare by identity first.
        if entry is not None:
            if facts is not None and entry[0][0] is facts[0] and entry[0] == facts:
                return
            self._members.remove(entry[1])
            del self._known[uid]
        if facts is not None:
            pod, host_state, sandbox_event, deleting, claimed, told = facts
            member = classify_pod(
                pod,
                host_state=host_state,
                sandbox_event=sandbox_event,
                deleting=deleting,
                being_bound=claimed,
                pod_events=told,
                previous=entry[1] if entry is not None else None,
                clock=clock,
            )
            self._known[uid] = facts, member
            self._members.put(member)
