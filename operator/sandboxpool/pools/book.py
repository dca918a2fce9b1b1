"""A pool's members as they were sorted last: only what has changed is sorted anew.

Of a large pool few pods change between two looks, and each of those follows the other.
"""

from collections.abc import Callable, Collection, Iterable

from sandboxpool.api.core import Pod
from sandboxpool.runtimes.ground import Ground
from sandboxpool.runtimes.podevents import PodEvents
from sandboxpool.sandboxes.members import Member, Members, member_of

# What a member is made of: the arguments of member_of, in order.
Facts = tuple[Pod, Ground, str | None, bool, bool, PodEvents | None]


class MemberBook:
    """Sorts the pods of one pool, and remembers how."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Facts, Member]] = {}
        self._members = Members()
        self._stirred: set[str] = set()
        self._passing: Collection[str] = ()

    def stir(self, uid: str) -> None:
        """A pod, or something that it is judged by, has changed, or may have."""
        self._stirred.add(uid)

    def sort(
        self,
        facts_of: Callable[[str], Facts | None],
        everything: Iterable[str],
        *,
        passing: Collection[str] = (),
        anew: bool = False,
        clock: float = 0.0,
    ) -> Members:
        """Sort what was stirred; return all members, which stay as they are until the next call.

        Args:
            facts_of: what is known of a pod by its uid; None if it is none of the pool.
            everything: the uids of all the pool's pods.
            passing: what needs a look now and, when it is no longer named, once more.
            anew: look at everything, whether it was stirred or not.
            clock: seconds of our own monotonic clock.
        """
        looked = {*everything, *self._known} if anew else {*self._stirred, *self._passing, *passing}
        self._stirred.clear()
        self._passing = passing
        for uid in looked:
            self._place(uid, facts_of(uid), clock)
        return self._members

    def _place(self, uid: str, facts: Facts | None, clock: float) -> None:
        entry = self._known.get(uid)
        # A cached pod is never changed, only replaced. Tuples compare by identity first.
        if entry is not None:
            if facts is not None and entry[0][0] is facts[0] and entry[0] == facts:
                return
            self._members.remove(entry[1])
            del self._known[uid]
        if facts is not None:
            pod, ground, sandbox_event, deleting, claimed, told = facts
            member = member_of(
                pod,
                ground=ground,
                sandbox_event=sandbox_event,
                deleting=deleting,
                claimed=claimed,
                told=told,
                former=entry[1] if entry is not None else None,
                clock=clock,
            )
            self._known[uid] = facts, member
            self._members.put(member)
