"""What was asked of the API server and is not yet seen in the caches.

A decision that forgot it would create a pod twice. A create is expected under the name that we
chose, a delete under the pod's uid; the watch ends both. No time alone does: what is not seen may
exist all the same, so after a while the API server itself is to be asked, ever more seldom.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sandboxpool.util.backoff import delay_after

# What is done and not seen is asked about after so long, then after twice as long, and so on.
UNSEEN_SECONDS = 15.0
LONGEST_UNSEEN_SECONDS = 300.0
# A create in doubt may be carried out as long as the API server works on a request: a minute.
DOUBTED_SECONDS = 60.0
# A delete in doubt is done again. One that is late meets its precondition: it does no harm.
DOUBTED_DELETE_SECONDS = 5.0
# A create whose sender has not said what became of it; all attempts together are shorter.
UNANSWERED_SECONDS = 300.0


@dataclass(slots=True)
class _Expected:
    """One create or delete.

    Attributes:
        look_at: when to ask the API server, by the clock.
        cold: it is made for a claim and not for the stock.
        made: the API server has said that it made it.
        doubted: nobody can say whether it was made.
        looks: how often it was asked about.
    """

    look_at: float
    cold: bool = False
    made: bool = False
    doubted: bool = False
    looks: int = 0


class Expectations:
    """Of one pool.

    Args:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._creating: dict[str, _Expected] = {}
        self._deleting: dict[str, _Expected] = {}

    # --- Creates ---------------------------------------------------------------------------------

    def creating(self, name: str, *, cold: bool = False) -> None:
        """A pod of this name is being asked for; a cold one is a claim's and not of the stock."""
        self._creating[name] = _Expected(self._clock() + UNANSWERED_SECONDS, cold)

    def made(self, name: str) -> None:
        """The API server says that the pod exists."""
        expected = self._creating.get(name)
        if expected is not None:
            expected.made, expected.doubted, expected.looks = True, False, 0
            expected.look_at = self._clock() + UNSEEN_SECONDS

    def doubt(self, name: str) -> None:
        """Nobody can say whether a pod was made: it takes room, and may be asked for again."""
        expected = self._creating.get(name)
        if expected is not None:
            expected.made, expected.doubted = False, True
            expected.look_at = self._clock() + DOUBTED_SECONDS

    def settle_create(self, name: str) -> None:
        """The pod was seen, or does certainly not exist."""
        self._creating.pop(name, None)

    def is_creating(self, name: str) -> bool:
        """A pod of this name was asked for and is not seen yet."""
        return name in self._creating

    def is_made(self, name: str) -> bool:
        """The API server has said that the pod exists, and it is not seen yet."""
        expected = self._creating.get(name)
        return expected is not None and expected.made

    def is_cold(self, name: str) -> bool:
        """What is expected under this name is a claim's."""
        expected = self._creating.get(name)
        return expected is not None and expected.cold

    def is_doubted(self, name: str) -> bool:
        """What was asked for under this name may be asked for again."""
        expected = self._creating.get(name)
        return expected is not None and expected.doubted

    def doubted(self) -> list[str]:
        """The names of the stock's pods that are in doubt, oldest first."""
        return [
            n for n, expected in self._creating.items() if expected.doubted and not expected.cold
        ]

    def count_creating(self) -> tuple[int, int]:
        """How many pods were asked for and not seen: for the stock, and cold ones for claims."""
        cold = sum(expected.cold for expected in self._creating.values())
        return len(self._creating) - cold, cold

    # --- Deletes ---------------------------------------------------------------------------------

    def deleting(self, uid: str) -> None:
        """This pod's deletion is being asked for."""
        self._deleting[uid] = _Expected(self._clock() + UNSEEN_SECONDS)

    def doubt_delete(self, uid: str) -> None:
        """Nobody can say whether the pod's deletion was taken in."""
        expected = self._deleting.get(uid)
        if expected is not None:
            expected.look_at = self._clock() + DOUBTED_DELETE_SECONDS

    def settle_delete(self, uid: str) -> None:
        """The pod's end was seen, or its deletion was certainly not taken in."""
        self._deleting.pop(uid, None)

    def is_deleting(self, uid: str) -> bool:
        """The pod's deletion was asked for."""
        return uid in self._deleting

    def leaving(self) -> frozenset[str]:
        """The uids of all pods whose deletion was asked for."""
        return frozenset(self._deleting)

    # --- What is not seen ------------------------------------------------------------------------

    def unseen_creates(self) -> list[str]:
        """The names that the API server is to be asked about now."""
        return [name for name, expected in self._creating.items() if self._is_due(expected)]

    def unseen_deletes(self) -> list[str]:
        """The uids that the API server is to be asked about now."""
        return [uid for uid, expected in self._deleting.items() if self._is_due(expected)]

    def _is_due(self, expected: _Expected) -> bool:
        return expected.look_at <= self._clock()

    def look_later(self, name_or_uid: str) -> None:
        """It was asked about, and goes on being expected."""
        expected = self._creating.get(name_or_uid) or self._deleting.get(name_or_uid)
        if expected is not None:
            expected.looks += 1
            pause = delay_after(expected.looks, UNSEEN_SECONDS, LONGEST_UNSEEN_SECONDS)
            expected.look_at = self._clock() + pause

    def next_deadline(self) -> float | None:
        """Seconds until something is to be asked about; None if nothing is expected."""
        every = [*self._creating.values(), *self._deleting.values()]
        if not every:
            return None
        return max(0.0, min(expected.look_at for expected in every) - self._clock())
