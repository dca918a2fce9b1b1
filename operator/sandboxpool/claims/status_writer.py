"""Writes the status of claims that wait or have finished, with their events and metrics."""

from collections.abc import Callable
from typing import Protocol

from sandboxpool.allocation.candidate_tracker import CandidateTracker
from sandboxpool.api.reasons import Reason
from sandboxpool.api.v1alpha1 import ClaimPhase, SandboxClaim
from sandboxpool.claims import decide
from sandboxpool.claims.attempt import Attempts
from sandboxpool.claims.requests import ClaimRequests, WriteOutcome, about
from sandboxpool.kube.events import EventRecorder


class FinishObserver(Protocol):
    """Observes how claims finish, for metrics."""

    def claim_finished(self, namespace: str, pool: str, phase: str, reason: str) -> None:
        """A claim has failed, has expired or has lost its pod."""


class ClaimStatusWriter:
    """Writes each status at most once, and reports the end of a claim when it is written."""

    def __init__(
        self,
        *,
        requests: ClaimRequests,
        attempts: Attempts,
        candidate_tracker: CandidateTracker,
        events: EventRecorder,
        observer: FinishObserver,
        wall: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._requests = requests
        self._attempts = attempts
        self._candidate_tracker = candidate_tracker
        self._events = events
        self._observer = observer
        self._wall = wall
        self._clock = clock

    async def set_pending(self, claim: SandboxClaim, reason: Reason, message: str) -> None:
        """Write why a claim waits; a message that changes alone is written once a minute."""
        attempt = self._attempts.of(claim)
        status = decide.pending_status(claim, reason, message, self._wall())
        if status.conditions == claim.status.conditions:
            return
        if (
            decide.differ_only_in_messages(claim.status, status)
            and attempt.message_hold_seconds(self._clock()) > 0
        ):
            # Each write of a status has the claim reconciled again.
            return
        written, _ = await self._requests.write_status(claim, status)
        if written is WriteOutcome.DONE:
            attempt.message_written_at = self._clock()

    async def finish(
        self, claim: SandboxClaim, phase: ClaimPhase, reason: Reason, message: str
    ) -> None:
        """Finish a claim that has no pod or has lost it; its pod, if any, is deleted later."""
        attempt = self._attempts.of(claim)
        self._candidate_tracker.cancel_claim(claim.uid)
        status = decide.finished_status(claim, phase, reason, message, self._wall())
        written, version = await self._requests.write_status(claim, status)
        if written is WriteOutcome.DONE:
            attempt.record_written_version(version)
            self._report(claim, phase, reason, message)

    async def expire(self, claim: SandboxClaim, message: str) -> None:
        """Set Expired, unless the claim has changed meanwhile; its pod is deleted after that."""
        status = decide.finished_status(
            claim, ClaimPhase.EXPIRED, Reason.TTL_EXPIRED, message, self._wall()
        )
        written, _ = await self._requests.write_status(claim, status)
        if written is WriteOutcome.DONE:
            self._report(claim, ClaimPhase.EXPIRED, Reason.TTL_EXPIRED, message)

    def _report(self, claim: SandboxClaim, phase: ClaimPhase, reason: Reason, message: str) -> None:
        self._observer.claim_finished(
            claim.metadata.namespace, claim.spec.poolName, phase, str(reason)
        )
        post = self._events.normal if phase is ClaimPhase.EXPIRED else self._events.warning
        post(about(claim), str(reason), message)
