"""An index of a pool's members that reclassifies only the pods marked dirty.

In a large pool few pods change between two reconciles.
"""

from collections.abc import Callable, Collection, Iterable

from sandboxpool.api.core import Pod
from sandboxpool.runtimes.host_state import HostState
from sandboxpool.runtimes.podevents import PodEvents
from sandboxpool.sandboxes.members import Member, Members, classify_pod

# The arguments of classify_pod, in order.
MemberFacts = tuple[Pod, HostState, str | None, bool, bool, PodEvents | None]


class MemberIndex:
    """Classifies the pods of one pool and keeps the result."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[MemberFacts, Member]] = {}
        self._members = Members()
        self._dirty: set[str] = set()
        self._transient: Collection[str] = ()

    def mark_dirty(self, uid: str) -> None:
        """A pod, or something that its classification depends on, may have changed."""
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
        """Reclassify the dirty pods; return all members, which are valid until the next call.

        Args:
            facts_of: returns the facts of a pod by its uid; None if the pod is not the pool's.
            all_uids: the uids of all the pool's pods.
            transient: pods to reclassify now, and once more after the last call that names them.
            resync: reclassify all pods, whether they are dirty or not.
            clock: seconds of the operator's monotonic clock.
        """
        uids = {*all_uids, *self._known} if resync else {*self._dirty, *self._transient, *transient}
        self._dirty.clear()
        self._transient = transient
        for uid in uids:
            self._place(uid, facts_of(uid), clock)
        return self._members

    def _place(self, uid: str, facts: MemberFacts | None, clock: float) -> None:
        entry = self._known.get(uid)
        # A cached pod is never modified, only replaced. Tuples compare by identity first.
        if entry is not None:
            if facts is not None and entry[0][0] is facts[0] and entry[0] == facts:
                return
            self._members.remove(entry[1])
            del self._known[uid]
        if facts is not None:
            pod, host_state, sandbox_event, deleting, being_bound, pod_events = facts
            member = classify_pod(
                pod,
                host_state=host_state,
                sandbox_event=sandbox_event,
                deleting=deleting,
                being_bound=being_bound,
                pod_events=pod_events,
                previous=entry[1] if entry is not None else None,
                clock=clock,
            )
            self._known[uid] = facts, member
            self._members.put(member)
