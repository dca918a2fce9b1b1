"""What the process knows of each claim beside the claim itself: one record a claim.

The records do not survive the process: the next process learns what it needs from the claims and
their pods. All times are of the monotonic clock, so that a jump of the wall clock expires nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from sandboxpool.api.core import Pod
from sandboxpool.api.v1alpha1 import SandboxClaim
from sandboxpool.claims.decide import minimum_wait
from sandboxpool.util.backoff import delay_after
from sandboxpool.util.resource_version import parse_resource_version

FIRST_REFUSAL_SECONDS = 0.25
LONGEST_REFUSAL_SECONDS = 60.0
FIRST_FAILURE_SECONDS = 0.05
LONGEST_FAILURE_SECONDS = 5.0
# A condition whose message alone has changed is not written again within this time.
MESSAGE_UPDATE_SECONDS = 60.0


@dataclass(slots=True)
class MonotonicDeadline:
    """A time of the API, converted to the monotonic clock when it was first observed.

    Attributes:
        at: seconds since the epoch, as the API says; None before it was observed.
        due: the same moment on the monotonic clock.
    """

    at: float | None = None
    due: float = 0.0

    def left(self, at: float, *, wall: float, clock: float) -> float:
        """Seconds until the deadline.

        Args:
            at: the deadline, in seconds since the epoch. If it has changed since the last call,
                the deadline moves by the difference, whatever the wall clock says now.
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
    """The attempt to bind one claim, and the deadlines of the claim after that.

    Attributes:
        first_seen: when this process first observed the claim.
        deadline: when the claim's bindTimeoutSeconds have passed.
        tried_late: whether a pod was allocated once more after the deadline.
        binding_in_flight: whether a binding is being sent.
        bound_pod: the pod whose owner is the claim now, where the cache may not show that yet.
        written_version: the version at which the binding or the end was written. Until the cache
            shows that version, the claim only seems to be pending.
        failures: failed requests to the API server shortly before the deadline, or since.
        refusals: refused bindings since the last success.
        refusal: the message of the last refusal.
        not_before: when the binding may be tried again after a refusal.
        message_written_at: when a condition was last written.
        cold_start_requested: whether a sandbox was requested for the claim and is not bound yet.
        unallocatable_since: since when that sandbox is ready, but must not be bound.
        last_pod: the last state of the claim's pod, if the pod was deleted.
        expiration: when the claim expires.
        retention: when the claim, having finished, is deleted.
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
        """Record a failed request; return the seconds until the claim is retried."""
        delay = delay_after(self.failures, FIRST_FAILURE_SECONDS, LONGEST_FAILURE_SECONDS)
        self.failures += 1
        return delay

    def record_refusal(self, message: str, now: float) -> float:
        """Record a refused binding; return the seconds until it may be tried again."""
        delay = delay_after(
            self.refusals, FIRST_REFUSAL_SECONDS, LONGEST_REFUSAL_SECONDS, factor=4.0
        )
        self.refusals += 1
        self.refusal = message
        self.not_before = now + delay
        return delay

    def record_written_version(self, version: str) -> None:
        """Record the version at which the claim was bound or finished."""
        self.written_version = parse_resource_version(version)

    def message_hold_seconds(self, now: float) -> float:
        """Seconds for which a change of messages alone is not to be written."""
        return self.message_written_at + MESSAGE_UPDATE_SECONDS - now


class Attempts:
    """The attempts of all claims.

    Args:
        get: the cached claim of a namespace and name.
        wall: the API server's time, in seconds since the epoch.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        get: Callable[[str, str], SandboxClaim | None],
        *,
        wall: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._get = get
        self._wall = wall
        self._clock = clock
        self._attempts: dict[str, Attempt] = {}

    def of(self, claim: SandboxClaim) -> Attempt:
        """The attempt of a claim; it is kept for as long as the cache has the claim."""
        attempt = self._attempts.get(claim.uid)
        if attempt is None:
            left = claim.spec.bindTimeoutSeconds - minimum_wait(claim, self._wall())
            now = self._clock()
            attempt = Attempt(first_seen=now, deadline=now + left)
            if self.current(claim) is not None:
                self._attempts[claim.uid] = attempt
        return attempt

    def get(self, uid: str) -> Attempt | None:
        """The attempt of the claim with this uid, if there is one."""
        return self._attempts.get(uid)

    def is_binding_in_flight(self, uid: str) -> bool:
        """Whether a binding of the claim with this uid is being sent."""
        attempt = self._attempts.get(uid)
        return attempt is not None and attempt.binding_in_flight

    def forget(self, uid: str) -> None:
        """Drop the attempt of a claim that was deleted."""
        self._attempts.pop(uid, None)

    def current(self, claim: SandboxClaim) -> SandboxClaim | None:
        """The claim as the cache has it now; None if it was deleted."""
        current = self._get(*claim.key)
        return current if current is not None and current.uid == claim.uid else None

    def is_pending(self, claim: SandboxClaim) -> bool:
        """Whether the claim, as the cache has it now, still waits for a sandbox."""
        current = self.current(claim)
        settled = current is None or current.deleting or current.bound or current.finished
        return not settled
