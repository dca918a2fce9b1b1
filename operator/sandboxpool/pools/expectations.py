"""Creates and deletes that were sent to the API server and are not yet observed in the cache.

Without expectations a decision could create a pod twice. A create is expected under the pod's name,
a delete under its uid, and a watch event ends both. Unlike client-go's, expectations do not expire,
because a pod that is not observed may exist: they are verified by live reads, at growing intervals.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sandboxpool.util.backoff import delay_after

# The first and the longest interval between live reads.
VERIFY_AFTER_SECONDS = 15.0
LONGEST_VERIFY_SECONDS = 300.0
# The API server may still carry out a create of unknown outcome until its request timeout (60 s).
UNKNOWN_CREATE_SECONDS = 60.0
# A delete of unknown outcome is sent again. Its preconditions make a late one harmless.
UNKNOWN_DELETE_SECONDS = 5.0
# For a create that is still being sent; longer than all attempts together.
UNANSWERED_SECONDS = 300.0


@dataclass(slots=True)
class _Expected:
    """One create or delete.

    Attributes:
        verify_at: when to read the pod from the API server, in seconds of the clock.
        cold: whether the pod is created for a claim and not for the stock.
        succeeded: whether the API server acknowledged the create.
        outcome_unknown: whether the create may or may not have been carried out.
        verifications: the number of live reads so far.
    """

    verify_at: float
    cold: bool = False
    succeeded: bool = False
    outcome_unknown: bool = False
    verifications: int = 0


class Expectations:
    """The expectations of one pool.

    Args:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._creating: dict[str, _Expected] = {}
        self._deleting: dict[str, _Expected] = {}

    # --- Creates ---------------------------------------------------------------------------------

    def expect_creation(self, name: str, *, cold: bool = False) -> None:
        """Expect a create that is about to be sent; a cold pod is a claim's, not of the stock."""
        self._creating[name] = _Expected(self._clock() + UNANSWERED_SECONDS, cold)

    def creation_succeeded(self, name: str) -> None:
        """The API server acknowledged that the pod exists."""
        expected = self._creating.get(name)
        if expected is not None:
            expected.succeeded, expected.outcome_unknown, expected.verifications = True, False, 0
            expected.verify_at = self._clock() + VERIFY_AFTER_SECONDS

    def creation_unknown(self, name: str) -> None:
        """The outcome is unknown: the pod counts towards the limits, and may be created again."""
        expected = self._creating.get(name)
        if expected is not None:
            expected.succeeded, expected.outcome_unknown = False, True
            expected.verify_at = self._clock() + UNKNOWN_CREATE_SECONDS

    def creation_observed(self, name: str) -> None:
        """The pod was observed, or certainly does not exist."""
        self._creating.pop(name, None)

    def is_creating(self, name: str) -> bool:
        """Whether a pod of this name is expected and not observed yet."""
        return name in self._creating

    def has_creation_succeeded(self, name: str) -> bool:
        """Whether the API server acknowledged the pod, and it is not observed yet."""
        expected = self._creating.get(name)
        return expected is not None and expected.succeeded

    def is_cold(self, name: str) -> bool:
        """Whether the pod that is expected under this name is a claim's."""
        expected = self._creating.get(name)
        return expected is not None and expected.cold

    def is_creation_unknown(self, name: str) -> bool:
        """Whether the create may be sent again because its outcome is unknown."""
        expected = self._creating.get(name)
        return expected is not None and expected.outcome_unknown

    def unknown_creations(self) -> list[str]:
        """The names of the stock's pods whose creation has an unknown outcome, oldest first."""
        return [
            n
            for n, expected in self._creating.items()
            if expected.outcome_unknown and not expected.cold
        ]

    def count_creating(self) -> tuple[int, int]:
        """The numbers of expected pods: those of the stock, and cold ones for claims."""
        cold = sum(expected.cold for expected in self._creating.values())
        return len(self._creating) - cold, cold

    # --- Deletes ---------------------------------------------------------------------------------

    def expect_deletion(self, uid: str) -> None:
        """Expect a delete that is about to be sent."""
        self._deleting[uid] = _Expected(self._clock() + VERIFY_AFTER_SECONDS)

    def deletion_unknown(self, uid: str) -> None:
        """The outcome of the delete is unknown."""
        expected = self._deleting.get(uid)
        if expected is not None:
            expected.verify_at = self._clock() + UNKNOWN_DELETE_SECONDS

    def deletion_observed(self, uid: str) -> None:
        """The deletion was observed, or certainly not accepted."""
        self._deleting.pop(uid, None)

    def is_deleting(self, uid: str) -> bool:
        """Whether the pod's deletion was requested."""
        return uid in self._deleting

    def pending_deletions(self) -> frozenset[str]:
        """The uids of all pods whose deletion was requested."""
        return frozenset(self._deleting)

    # --- Verification ----------------------------------------------------------------------------

    def creations_to_verify(self) -> list[str]:
        """The names of the expected pods to read from the API server now."""
        return [name for name, expected in self._creating.items() if self._is_due(expected)]

    def deletions_to_verify(self) -> list[str]:
        """The uids of the deleted pods to read from the API server now."""
        return [uid for uid, expected in self._deleting.items() if self._is_due(expected)]

    def _is_due(self, expected: _Expected) -> bool:
        return expected.verify_at <= self._clock()

    def defer_verification(self, name_or_uid: str) -> None:
        """The pod was read and stays expected: verify again after a longer interval."""
        expected = self._creating.get(name_or_uid) or self._deleting.get(name_or_uid)
        if expected is not None:
            expected.verifications += 1
            pause = delay_after(
                expected.verifications, VERIFY_AFTER_SECONDS, LONGEST_VERIFY_SECONDS
            )
            expected.verify_at = self._clock() + pause

    def next_deadline(self) -> float | None:
        """Seconds until the next verification; None if nothing is expected."""
        every = [*self._creating.values(), *self._deleting.values()]
        if not every:
            return None
        return max(0.0, min(expected.verify_at for expected in every) - self._clock())
