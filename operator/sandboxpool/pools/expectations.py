"""What was asked of the API server and is not yet seen in the caches.

A decision that forgot it would create a pod twice. A create is expected under the name that we
chose, a delete under the pod's uid; the watch ends both. No time alone does: what is not seen may
exist all the same, so after a while the API server itself is to be asked, ever more seldom.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sandboxpool.util.backoff import delay_after

# What is done and not seen is asked about after so long, then after twice as long, and so on.
VERIFY_AFTER_SECONDS = 15.0
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
        verify_at: when to ask the API server, by the clock.
        cold: it is made for a claim and not for the stock.
        made: the API server has said that it made it.
        doubted: nobody can say whether it was made.
        verifications: how often it was asked about.
    """

    verify_at: float
    cold: bool = False
    succeeded: bool = False
    outcome_unknown: bool = False
    verifications: int = 0


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

    def expect_creation(self, name: str, *, cold: bool = False) -> None:
        """A pod of this name is being asked for; a cold one is a claim's and not of the stock."""
        self._creating[name] = _Expected(self._clock() + UNANSWERED_SECONDS, cold)

    def creation_succeeded(self, name: str) -> None:
        """The API server says that the pod exists."""
        expected = self._creating.get(name)
        if expected is not None:
            expected.succeeded, expected.outcome_unknown, expected.verifications = True, False, 0
            expected.verify_at = self._clock() + VERIFY_AFTER_SECONDS

    def creation_unknown(self, name: str) -> None:
        """Nobody can say whether a pod was made: it takes room, and may be asked for again."""
        expected = self._creating.get(name)
        if expected is not None:
            expected.succeeded, expected.outcome_unknown = False, True
            expected.verify_at = self._clock() + DOUBTED_SECONDS

    def creation_observed(self, name: str) -> None:
        """The pod was seen, or does certainly not exist."""
        self._creating.pop(name, None)

    def is_creating(self, name: str) -> bool:
        """A pod of this name was asked for and is not seen yet."""
        return name in self._creating

    def has_creation_succeeded(self, name: str) -> bool:
        """The API server has said that the pod exists, and it is not seen yet."""
        expected = self._creating.get(name)
        return expected is not None and expected.succeeded

    def is_cold(self, name: str) -> bool:
        """What is expected under this name is a claim's."""
        expected = self._creating.get(name)
        return expected is not None and expected.cold

    def is_creation_unknown(self, name: str) -> bool:
        """What was asked for under this name may be asked for again."""
        expected = self._creating.get(name)
        return expected is not None and expected.outcome_unknown

    def unknown_creations(self) -> list[str]:
        """The names of the stock's pods that are in doubt, oldest first."""
        return [
            n
            for n, expected in self._creating.items()
            if expected.outcome_unknown and not expected.cold
        ]

    def count_creating(self) -> tuple[int, int]:
        """How many pods were asked for and not seen: for the stock, and cold ones for claims."""
        cold = sum(expected.cold for expected in self._creating.values())
        return len(self._creating) - cold, cold

    # --- Deletes ---------------------------------------------------------------------------------

    def expect_deletion(self, uid: str) -> None:
        """This pod's deletion is being asked for."""
        self._deleting[uid] = _Expected(self._clock() + VERIFY_AFTER_SECONDS)

    def deletion_unknown(self, uid: str) -> None:
        """Nobody can say whether the pod's deletion was taken in."""
        expected = self._deleting.get(uid)
        if expected is not None:
            expected.verify_at = self._clock() + DOUBTED_DELETE_SECONDS

    def deletion_observed(self, uid: str) -> None:
        """The pod's end was seen, or its deletion was certainly not taken in."""
        self._deleting.pop(uid, None)

    def is_deleting(self, uid: str) -> bool:
        """The pod's deletion was asked for."""
        return uid in self._deleting

    def pending_deletions(self) -> frozenset[str]:
        """The uids of all pods whose deletion was asked for."""
        return frozenset(self._deleting)

    # --- What is not seen ------------------------------------------------------------------------

    def creations_to_verify(self) -> list[str]:
        """The names that the API server is to be asked about now."""
        return [name for name, expected in self._creating.items() if self._is_due(expected)]

    def deletions_to_verify(self) -> list[str]:
        """The uids that the API server is to be asked about now."""
        return [uid for uid, expected in self._deleting.items() if self._is_due(expected)]

    def _is_due(self, expected: _Expected) -> bool:
        return expected.verify_at <= self._clock()

    def defer_verification(self, name_or_uid: str) -> None:
        """It was asked about, and goes on being expected."""
        expected = self._creating.get(name_or_uid) or self._deleting.get(name_or_uid)
        if expected is not None:
            expected.verifications += 1
            pause = delay_after(
                expected.verifications, VERIFY_AFTER_SECONDS, LONGEST_UNSEEN_SECONDS
            )
            expected.verify_at = self._clock() + pause

    def next_deadline(self) -> float | None:
        """Seconds until something is to be asked about; None if nothing is expected."""
        every = [*self._creating.values(), *self._deleting.values()]
        if not every:
            return None
        return max(0.0, min(expected.verify_at for expected in every) - self._clock())
