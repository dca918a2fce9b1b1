"""What this process knows of one claim beside the claim itself: one record, dropped as one.

Nothing here survives the process: the next one learns from the claim and its pods. All times are
of the monotonic clock, so that no jump of the wall clock ends anything.
"""

from dataclasses import dataclass, field

from sandboxpool.api.core import Pod
from sandboxpool.api.v1alpha1 import SandboxClaim
from sandboxpool.claims.decide import minimum_wait
from sandboxpool.util.backoff import delay_after

FIRST_REFUSAL_SECONDS = 0.25
LONGEST_REFUSAL_SECONDS = 60.0
FIRST_FAILURE_SECONDS = 0.05
LONGEST_FAILURE_SECONDS = 5.0


@dataclass(slots=True)
class MonotonicDeadline:
    """A time of the API, turned into one of our own clock when it was first seen.

    Attributes:
        at: seconds since the epoch, as the API says; None before it was seen.
        due: the same moment on the monotonic clock.
    """

    at: float | None = None
    due: float = 0.0

    def left(self, at: float, *, wall: float, clock: float) -> float:
        """Seconds until then.

        Args:
            at: the moment, in seconds since the epoch; if it is another than before, the
                difference counts, and not what the wall clock says now.
            wall: seconds since the epoch, now.
            clock: the monotonic clock, now.
        """
        if self.at is None:
            self.due = clock + at - wall
        else:
            self.due += at - self.at
        self.at = at
        return self.due - clock


@dataclass(slots=True)
class Attempt:
    """One claim's attempt to get a sandbox, and when what it has ends.

    Attributes:
        first_seen: when this process saw the claim first.
        deadline: when the claim's bindTimeoutSeconds is over.
        tried_late: its deadline has passed, and what was there was tried once more.
        sending: its binding is on its way.
        taken: the pod that was made the claim's, where the cache may not show it yet.
        told: the version at which its binding or its end was written; until the cache shows it,
            the claim only seems to wait.
        failures: how often the API server has failed it shortly before its deadline, or since.
        refusals: how often its binding was refused, without a success since.
        refusal: the words of the last refusal.
        not_before: when its binding may be tried again after a refusal.
        worded: when a condition was last written.
        started: a sandbox was started for it, and has not become its own.
        unfit_since: since when what was started for it is ready, and may not be handed out.
        last_seen: the pod that was its own, as it was last, once it is no more.
        ends: when its sandbox ends.
        goes: when the claim, having ended, is deleted.
    """

    first_seen: float
    deadline: float
    tried_late: bool = False
    binding_in_flight: bool = False
    bound_pod: Pod | None = None
    written_version: int = 0
    failures: int = 0
    refusals: int = 0
    refusal: str = ""
    not_before: float = float("-inf")
    message_written_at: float = float("-inf")
    cold_start_requested: bool = False
    unallocatable_since: float | None = None
    last_pod: Pod | None = None
    expiration: MonotonicDeadline = field(default_factory=MonotonicDeadline)
    retention: MonotonicDeadline = field(default_factory=MonotonicDeadline)

    def fail(self) -> float:
        """The API server has failed it; return the seconds until it is tried again."""
        delay = delay_after(self.failures, FIRST_FAILURE_SECONDS, LONGEST_FAILURE_SECONDS)
        self.failures += 1
        return delay

    def record_refusal(self, words: str, now: float) -> float:
        """Its binding was refused; return the seconds until it may be tried again."""
        delay = delay_after(
            self.refusals, FIRST_REFUSAL_SECONDS, LONGEST_REFUSAL_SECONDS, factor=4.0
        )
        self.refusals += 1
        self.refusal = words
        self.not_before = now + delay
        return delay


def new_attempt(claim: SandboxClaim, *, wall: float, clock: float) -> Attempt:
    """Begin with a claim that this process has not seen before."""
    left = claim.spec.bindTimeoutSeconds - minimum_wait(claim, wall)
    return Attempt(first_seen=clock, deadline=clock + left)
