"""A claim's way: reserve, two writes, watch over it, expire, retire.

Write 1 makes the pod the claim's (conditional on the pod's version), write 2 tells the claim
(conditional on the claim's). Whatever interrupts them, the label with the claim's uid on the
pod is the truth from which the next attempt goes on.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from sandboxpool.allocation.allocator import Allocator, Candidate
from sandboxpool.allocation.candidate_tracker import CandidateTracker
from sandboxpool.allocation.refusal import Refusal
from sandboxpool.api import names
from sandboxpool.api.core import Pod
from sandboxpool.api.reasons import Reason
from sandboxpool.api.times import epoch
from sandboxpool.api.v1alpha1 import ClaimPhase, ClaimSource, OnEmpty, SandboxClaim
from sandboxpool.claims import decide
from sandboxpool.claims.api_reader import ApiReader
from sandboxpool.claims.attempt import Attempt, new_attempt
from sandboxpool.claims.requests import ClaimRequests, WriteOutcome, about
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.ownership import claim_uid_of, controller_of
from sandboxpool.cluster.pool import Pool
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.kube.client import ApiClient
from sandboxpool.kube.errors import UNREADABLE, ApiError, KubeError
from sandboxpool.kube.events import EventRecorder
from sandboxpool.kube.workqueue import LONGEST_RETRY_SECONDS
from sandboxpool.runtimes.diagnosis import diagnose, truncate
from sandboxpool.runtimes.podevents import PodEvents
from sandboxpool.runtimes.termination import TerminationCause, lost_pod_cause, termination_cause
from sandboxpool.sandboxes.template import ClaimRef
from sandboxpool.util.resource_version import parse_resource_version

logger = logging.getLogger(__name__)

Key = tuple[str, str]

# So often the binding to one pod that others change is sent, and so many pods are tried in a row.
TAKE_ATTEMPTS = 2
BINDING_ATTEMPTS = 16
# A claim whose binding was refused so often gives its pod back while it waits for its next try.
KEEPING_REFUSALS = 1
# Where only the words of a condition would change, they stand for so long.
MESSAGE_UPDATE_SECONDS = 60.0
# What a cache does not show yet is looked for again after this many seconds.
STALE_CACHE_RECHECK_SECONDS = 1.0
# A claim whose pods have to be told apart is looked at again after this many seconds.
DUPLICATE_RECHECK_SECONDS = 2.0
# The longest pause between two looks at a claim that wants a sandbox to be started for it.
COLD_RECHECK_SECONDS = 30.0
STARTING_COLD_TEXT = "no sandbox was warm: one is being started"


class ColdStarter(Protocol):
    """Makes a pod for one claim; kept by the pools, who own templates and ceilings."""

    def is_starting_cold(self, pool: Pool, claim_uid: str) -> bool:
        """Whether the claim's pod was asked for and is not seen yet."""

    def request_cold_start(self, pool: Pool, claim: ClaimRef) -> Refusal | None:
        """Start a sandbox for a claim that is in line, in its turn; return why it has to wait."""

    def cold_start_failed(self, pool: Pool, message: str) -> None:
        """What was started for a claim is of no use to it."""


class ClaimObserver(Protocol):
    """Told how claims end, for metrics."""

    def claim_bound(self, pool: Pool, source: str, seconds: float) -> None:
        """A claim was bound so many seconds after it was seen."""

    def claim_finished(self, namespace: str, pool: str, phase: str, reason: str) -> None:
        """A claim failed, expired or lost its pod."""


class ClaimReconciler:
    """Works on one claim at a time; claims of all pools, concurrently."""

    def __init__(
        self,
        *,
        client: ApiClient,
        get: Callable[[str, str], SandboxClaim | None],
        cluster: ClusterCache,
        pools: PoolStore,
        allocator: Allocator,
        candidate_tracker: CandidateTracker,
        cold: ColdStarter,
        events: EventRecorder,
        observer: ClaimObserver,
        wall: Callable[[], float],
        clock: Callable[[], float],
        pod_events: Callable[[Pod], PodEvents | None] = lambda pod: None,
    ) -> None:
        self._pod_events = pod_events
        self._requests = ClaimRequests(client)
        self._api_reader = ApiReader(client, cluster)
        self._get = get
        self._cluster = cluster
        self._pools = pools
        self._allocator = allocator
        self._candidate_tracker = candidate_tracker
        self._cold = cold
        self._events = events
        self._observer = observer
        self._wall = wall
        self._clock = clock
        self._attempts: dict[str, Attempt] = {}

    def observe_claim(self, old: SandboxClaim | None, new: SandboxClaim | None) -> None:
        """The cache has changed; called before the claim is queued."""
        if new is not None:
            self._attempt(new)
        gone = old if new is None else new if new.deleting else None
        if gone is not None and not self._is_binding_in_flight(gone.uid):
            self._cancel_allocation(gone.uid)
            if new is None:
                self._forget(gone.uid)

    def observe_pod_deleted(self, pod: Pod) -> None:
        """A pod is no more: what it said of its end is all that its claim will ever know."""
        attempt = self._attempts.get(claim_uid_of(pod) or "")
        if attempt is not None:
            attempt.last_pod = pod

    def _attempt(self, claim: SandboxClaim) -> Attempt:
        """What is known of a claim; it is kept for as long as the cache has the claim."""
        known = self._attempts.get(claim.uid)
        if known is None:
            known = new_attempt(claim, wall=self._wall(), clock=self._clock())
            if self._current(claim) is not None:
                self._attempts[claim.uid] = known
        return known

    def _forget(self, uid: str) -> None:
        self._attempts.pop(uid, None)

    def _is_binding_in_flight(self, uid: str) -> bool:
        attempt = self._attempts.get(uid)
        return attempt is not None and attempt.binding_in_flight

    def _current(self, claim: SandboxClaim) -> SandboxClaim | None:
        """This very claim as the cache has it now; None if it is gone."""
        current = self._get(*claim.key)
        return current if current is not None and current.uid == claim.uid else None

    def _cancel_allocation(self, uid: str) -> None:
        """Take a claim out of the line, and offer to others what it had reserved."""
        freed = self._allocator.cancel_claim(uid)
        if freed is not None:
            self._reconsider_candidate(freed[1].uid)

    def _reconsider_candidate(self, pod_uid: str) -> None:
        pod = self._cluster.pods.get(pod_uid)
        if pod is not None:
            self._candidate_tracker.refresh([pod])

    async def reconcile(self, key: Key) -> float | None:
        """Bring a claim one step on; return the seconds until time alone will change it."""
        claim = self._get(*key)
        if claim is None:
            # Its pod goes with it: the garbage collector follows the owner reference.
            return None
        attempt = self._attempt(claim)
        if claim.deleting or claim.finished or claim.bound:
            # Perhaps by another process, while it waited here.
            self._cancel_allocation(claim.uid)
        if claim.finished:
            return await self._reconcile_finished(claim, attempt)
        if claim.deleting:
            return await self._reconcile_deleting(claim, attempt)
        if claim.bound:
            return await self._reconcile_bound(claim, attempt)
        if parse_resource_version(claim.metadata.resourceVersion) < attempt.written_version:
            return None
        try:
            return await self._reconcile_pending(claim, attempt)
        except KubeError as error:
            left = attempt.deadline - self._clock()
            if left > LONGEST_RETRY_SECONDS:
                raise
            # The queue might try again only after the deadline.
            delay = attempt.fail() if left <= 0 else min(attempt.fail(), left)
            logger.warning("%s, next try in %.1f s", error, delay, extra=about(claim).log)
            return delay

    # --- Not bound yet -------------------------------------------------------------------------

    async def _reconcile_pending(self, claim: SandboxClaim, attempt: Attempt) -> float | None:
        """Give the claim what there is for it; in any case it fails once its time is up.

        Its time may have passed while nobody was there to serve it: what can be handed out then is
        tried once all the same.
        """
        pool = self._pools.get((claim.metadata.namespace, claim.spec.poolName))
        left = attempt.deadline - self._clock()
        if left <= 0:
            if attempt.tried_late:
                return await self._time_out(claim, pool)
            attempt.tried_late, attempt.failures = True, 0
        elif attempt.not_before > self._clock():
            return min(left, attempt.not_before - self._clock())
        own = self._cluster.pods.of_claim(*claim.identity)
        if own:
            attempt.bound_pod = None
        elif attempt.bound_pod is not None:
            own = [attempt.bound_pod]
        staying = [pod for pod in own if pod.metadata.deletionTimestamp is None]
        if staying:
            return await self._resume_binding(claim, attempt, pool, staying)
        if pool is None or pool.deleting or pool.spec is None:
            self._cancel_allocation(claim.uid)
            if left <= 0:
                return await self._time_out(claim, pool)
            await self._set_pending(claim, Reason.POOL_NOT_FOUND, self._why_waiting(claim, pool))
            return left
        if decide.refusal_for(claim, pool.spec) is not None:
            return await self._fail_refused(claim, left)
        cold = claim.spec.onEmpty is OnEmpty.CREATE
        if cold and self._cold.is_starting_cold(pool, claim.uid):
            # The watch is late: whatever is warm meanwhile would be a second one.
            if left <= 0:
                return await self._time_out(claim, pool)
            return await self._start_cold(claim, attempt, pool, left)
        if self._allocator.pool_of(claim.uid) not in (None, pool.uid):
            # It waited for a pool of this name that is gone.
            self._cancel_allocation(claim.uid)
        candidate = self._allocator.allocate(pool.uid, claim.uid)
        if candidate is not None:
            try:
                bound = await self._bind(claim, attempt, pool, candidate)
            except ApiError as error:
                return await self._back_off(claim, attempt, error)
            if bound or not self._is_pending(claim):
                return None
            if self._pools.get(pool.key) is not pool:
                # It has changed, or gone, meanwhile: start anew.
                return 0.0
        if left <= 0:
            return await self._time_out(claim, pool)
        return await self._none_warm(claim, attempt, pool, left)

    async def _fail_refused(self, claim: SandboxClaim, left: float) -> float | None:
        """The pool will never serve the claim, says the cache: only the server's word is final."""
        pool = await self._live_pool(claim)
        spec = pool.spec if pool is not None and not pool.deleting else None
        refusal = decide.refusal_for(claim, spec) if spec is not None else None
        if refusal is not None:
            await self._finish(claim, ClaimPhase.FAILED, refusal.reason, refusal.message)
            return None
        if left <= 0:
            return await self._time_out(claim, pool)
        return min(left, STALE_CACHE_RECHECK_SECONDS)

    async def _back_off(
        self, claim: SandboxClaim, attempt: Attempt, error: ApiError
    ) -> float | None:
        """Say that the binding is refused, and try it again ever more slowly.

        No other pod would do better, so at first pod and claim stay together; then others get it,
        and the claim goes to the end of the line.

        Raises:
            ApiError: it was no refusal.
        """
        if not (error.refused or error.conflict):
            raise error
        delay = attempt.record_refusal(truncate(error.message), self._clock())
        logger.warning("binding: %s, next try in %.1f s", error, delay, extra=about(claim).log)
        if attempt.refusals > KEEPING_REFUSALS:
            self._cancel_allocation(claim.uid)
        left = attempt.deadline - self._clock()
        if left <= 0:
            pool = self._pools.get((claim.metadata.namespace, claim.spec.poolName))
            return await self._time_out(claim, pool)
        await self._set_pending(claim, Reason.BINDING_REFUSED, _refused(attempt))
        return min(left, delay)

    async def _time_out(self, claim: SandboxClaim, pool: Pool | None) -> float | None:
        if pool is None or pool.deleting or pool.spec is None:
            # Perhaps so says only the cache.
            pool = await self._live_pool(claim)
        await self._finish(
            claim, ClaimPhase.FAILED, Reason.BIND_TIMEOUT, self._why_waiting(claim, pool)
        )
        return None

    async def _none_warm(
        self, claim: SandboxClaim, attempt: Attempt, pool: Pool, left: float
    ) -> float | None:
        match claim.spec.onEmpty:
            case OnEmpty.FAIL:
                if not await self._api_reader.confirms_no_warm(pool, self._allocator.is_allocated):
                    # A cache is behind: perhaps there is a sandbox, or another pool.
                    return min(left, STALE_CACHE_RECHECK_SECONDS)
                if self._allocator.allocate(pool.uid, claim.uid) is not None:
                    return 0.0
                await self._finish(
                    claim,
                    ClaimPhase.FAILED,
                    Reason.NO_WARM_SANDBOX,
                    f"pool {pool.name!r} has no warm sandbox and spec.onEmpty is Fail: raise the "
                    "pool's replicas, or use onEmpty Wait or Create",
                )
                return None
            case OnEmpty.CREATE:
                return await self._start_cold(claim, attempt, pool, left)
            case _:
                # In line: the offer of a pod wakes it. Waiting costs no write.
                return left

    async def _start_cold(
        self, claim: SandboxClaim, attempt: Attempt, pool: Pool, left: float
    ) -> float | None:
        """The pool decides whose turn it is; each change of its mind wakes the claim."""
        if self._cold.is_starting_cold(pool, claim.uid):
            attempt.cold_start_requested = True
            # Out of the line: a warm pod, even one that came meanwhile, would be a second one.
            self._cancel_allocation(claim.uid)
            await self._set_pending(claim, Reason.STARTING_COLD, STARTING_COLD_TEXT)
        else:
            if attempt.cold_start_requested:
                # What was started for it is gone, perhaps because the claim itself is.
                if not await self._requests.is_claim_current(claim):
                    return min(left, DUPLICATE_RECHECK_SECONDS)
                attempt.cold_start_requested = False
                self._cold.cold_start_failed(
                    pool, "a sandbox for a claim went away before it was ready"
                )
            refusal = self._cold.request_cold_start(pool, decide.reference(claim))
            if refusal is not None:
                await self._set_pending(claim, refusal.reason, refusal.message)
        return min(left, COLD_RECHECK_SECONDS)

    def _why_waiting(self, claim: SandboxClaim, pool: Pool | None) -> str:
        waited = f"not bound within spec.bindTimeoutSeconds ({claim.spec.bindTimeoutSeconds} s)"
        if pool is None or pool.deleting:
            return f"SandboxPool {claim.spec.poolName!r} does not exist in this namespace"
        if pool.spec is None:
            return f"SandboxPool {claim.spec.poolName!r} does not fit the API: {pool.spec_error}"
        attempt = self._attempts.get(claim.uid)
        if attempt is not None and attempt.refusals:
            return f"{waited}; {_refused(attempt)}"
        return f"{waited}; pool {pool.name!r} says: {pool.ready_message()}"

    async def _resume_binding(
        self, claim: SandboxClaim, attempt: Attempt, pool: Pool | None, own: list[Pod]
    ) -> float | None:
        """A pod carries the claim already: an earlier attempt came that far, or it starts cold."""
        self._cancel_allocation(claim.uid)
        pod, others = decide.choose(claim, own)
        if others and not await self._requests.is_claim_current(claim):
            # Perhaps it was told of one of them by another process: the watch will show which.
            return DUPLICATE_RECHECK_SECONDS
        for other in others:
            await self._requests.delete_pod(other, "the claim has another one")
        cold = pod.metadata.annotations.get(names.ANNOTATION_SOURCE) == ClaimSource.COLD
        fit = (
            self._candidate_tracker.is_ready_for_claim(pod, pool)
            if cold
            else not self._candidate_tracker.is_invalid_binding(pod, pool)
        )
        if not fit and attempt.deadline <= self._clock():
            # Once the claim says so, its pod goes.
            return await self._time_out(claim, pool)
        if not fit and cold:
            return await self._await_cold(claim, attempt, pool, pod)
        if not fit:
            # Its owner says that it was bound, which an author of pods in this namespace can say.
            if await self._requests.is_claim_current(claim) and await self._is_pool_current(pool):
                await self._requests.delete_pod(
                    pod, "it is not of the claim's pool, class and proof"
                )
            return DUPLICATE_RECHECK_SECONDS
        try:
            await self._write_bound_status(
                claim, pool, pod, source=ClaimSource.COLD if cold else ClaimSource.WARM
            )
        except ApiError as error:
            return await self._back_off(claim, attempt, error)
        return None

    async def _await_cold(
        self, claim: SandboxClaim, attempt: Attempt, pool: Pool | None, pod: Pod
    ) -> float | None:
        """Wait for it. What does not start the pool replaces, as it does with its own."""
        why = self._useless_because(attempt, pool, pod)
        if (
            why is not None
            and await self._requests.is_claim_current(claim)
            and await self._is_pool_current(pool)
        ):
            # Never bound, so another may be made.
            if pool is not None:
                self._cold.cold_start_failed(pool, f"{pod.metadata.name}: {why}")
            await self._requests.delete_pod(pod, why)
        elif why is None and not pod.ready:
            failure = diagnose(pod, self._cluster.events.message(pod), self._pod_events(pod))
            if failure is not None:
                text = f"{pod.metadata.name}, started for this claim, is not ready: "
                await self._set_pending(claim, failure.reason, text + failure.message)
            elif claim.status.conditions:
                await self._set_pending(claim, Reason.STARTING_COLD, STARTING_COLD_TEXT)
        return min(attempt.deadline - self._clock(), COLD_RECHECK_SECONDS)

    def _useless_because(self, attempt: Attempt, pool: Pool | None, pod: Pod) -> str | None:
        """Why a claim should not wait any longer for what was started for it."""
        ending = termination_cause(pod) if pod.finished else None
        if ending is not None:
            return ending.message
        if self._candidate_tracker.should_replace_cold_pod(pod, pool):
            return "it stands where its runtime cannot be trusted, or is not of the pool's class"
        if pod.ready and pool is not None and pool.spec is not None:
            # What it lacks may come, such as a proof of its node; elsewhere it may be there.
            if attempt.unallocatable_since is None:
                attempt.unallocatable_since = self._clock()
            if self._clock() - attempt.unallocatable_since > pool.spec.startup.timeout_seconds:
                return "it is ready, and still may not be handed out"
        return None

    async def _live_pool(self, claim: SandboxClaim) -> Pool | None:
        """The claim's pool as the server has it: its cache may be behind that of claims."""
        return await self._api_reader.pool(claim.metadata.namespace, claim.spec.poolName)

    async def _is_pool_current(self, pool: Pool | None) -> bool:
        """Whether what the caches say of a pool and its class is so; of none they say nothing."""
        return pool is None or await self._api_reader.is_pool_current(pool)

    # --- The two writes ------------------------------------------------------------------------

    async def _bind(
        self, claim: SandboxClaim, attempt: Attempt, pool: Pool, first: Candidate
    ) -> bool:
        """Hand out pods until one write succeeds; False if none is left or the claim is gone.

        Raises:
            ApiError: the API server refuses it, or cannot say.
            KubeError: all that was tried has changed too fast.
        """
        attempt.binding_in_flight = True
        try:
            candidate: Candidate | None = first
            for _ in range(BINDING_ATTEMPTS):
                if candidate is None or self._same_pool(pool) is None:
                    return False
                if not self._is_pending(claim):
                    return False
                pod = await self._try_candidate(claim, pool, candidate)
                if pod is not None:
                    self._allocator.confirm_reservation(claim.uid)
                    attempt.bound_pod = pod
                    await self._write_bound_status(claim, pool, pod, source=ClaimSource.WARM)
                    return True
                self._allocator.replace_reservation(claim.uid)
                # The watch may have shown its newer state while it was held.
                self._reconsider_candidate(candidate.uid)
                candidate = self._allocator.allocate(pool.uid, claim.uid)
            raise KubeError(f"{BINDING_ATTEMPTS} pods changed while they were being bound")
        finally:
            attempt.binding_in_flight = False
            current = self._current(claim)
            if current is None or current.deleting:
                self._cancel_allocation(claim.uid)
            if current is None:
                self._forget(claim.uid)

    def _is_pending(self, claim: SandboxClaim) -> bool:
        current = self._current(claim)
        settled = current is None or current.deleting or current.bound or current.finished
        return not settled

    def _same_pool(self, pool: Pool) -> Pool | None:
        """The pool as it is now; None if it is gone, or was made again."""
        now = self._pools.get(pool.key)
        return now if now is not None and now.uid == pool.uid else None

    async def _try_candidate(
        self, claim: SandboxClaim, pool: Pool, candidate: Candidate
    ) -> Pod | None:
        """Write 1, on the pod as it is known now; None if the claim cannot have it.

        Somebody may have changed it a moment ago, such as its kubelet: then it is tried once more
        on the state that the server has.
        """
        known = self._cluster.pods.get(candidate.uid)
        failure: KubeError | None = None
        version = ""
        for _ in range(TAKE_ATTEMPTS):
            now = self._same_pool(pool)
            if (
                known is None
                or now is None
                or not self._candidate_tracker.is_allocatable(known, now)
            ):
                break
            if not self._is_pending(claim):
                break
            version = known.metadata.resourceVersion
            seen = replace(candidate, version=version)
            pod, failure = await self._requests.bind_pod(claim, seen, known)
            if pod is not None and _is_owned_by(pod, claim):
                return pod
            known = pod
        if failure is None:
            return None
        if known is None or known.metadata.resourceVersion != version:
            if self._cluster.pods.get(candidate.uid) is not None:
                self._allocator.mark_stale(candidate.uid, version)
        elif self._is_pending(claim):
            # Nobody has changed it: the API server has other reasons.
            raise failure
        return None

    async def _write_bound_status(
        self, claim: SandboxClaim, pool: Pool | None, pod: Pod, *, source: ClaimSource
    ) -> None:
        """Write 2: the claim's status; a claim that is gone gives its pod back to nobody."""
        now = self._wall()
        attempt = self._attempt(claim)
        spec = pool.spec if pool is not None else None
        ttl = decide.ttl_seconds(claim, spec)
        status = decide.bound_status(
            claim,
            pod,
            self._candidate_tracker.host_state(pod, pool),
            source=source,
            bound_at=now,
            expires=None if ttl is None else now + ttl,
            evidence=self._candidate_tracker.evidence(pod, pool),
            now=now,
        )
        written, version = await self._requests.write_status(claim, status)
        attempt.bound_pod = None
        if written is WriteOutcome.GONE:
            await self._requests.delete_pod(pod, "its claim was deleted while it was being bound")
            return
        attempt.refusals = 0
        self._record_written_version(attempt, version)
        if written is WriteOutcome.DONE and pool is not None:
            self._observer.claim_bound(pool, source, self._clock() - attempt.first_seen)

    def _record_written_version(self, attempt: Attempt, version: str) -> None:
        """Until the watch shows what was written at this version, the claim only seems to wait."""
        attempt.written_version = parse_resource_version(version)

    # --- Bound ---------------------------------------------------------------------------------

    async def _reconcile_bound(self, claim: SandboxClaim, attempt: Attempt) -> float | None:
        pool = self._pools.get((claim.metadata.namespace, claim.spec.poolName))
        now = self._wall()
        limits = pool
        if decide.is_edited(claim):
            # It may have been prolonged because the pool allows more now.
            limits = await self._live_pool(claim)
        expires = decide.expiry(claim, limits.spec if limits is not None else None)
        left = None
        if expires is not None:
            left = attempt.expiration.left(expires, wall=now, clock=self._clock())
            if left <= 0:
                message = "spec.ttlSeconds, or the pool's limit, has passed since the binding"
                await self._expire(claim, message)
                return None
        pod = self._cluster.pods.get(claim.status.podUID or "")
        if pod is None:
            pod = await self._requests.find_pod(claim)
        if pod is None or pod.finished:
            lost = await self._ending(claim, attempt, pod)
            message = f"{lost.message}. Its state is lost; create a new claim"
            await self._finish(claim, ClaimPhase.LOST, lost.reason, message)
            return None
        for other in self._cluster.pods.of_claim(*claim.identity):
            if other.metadata.uid != pod.metadata.uid:
                await self._requests.delete_pod(other, "the claim has another one")
        was = claim.status
        status = decide.bound_status(
            claim,
            pod,
            self._candidate_tracker.host_state(pod, pool),
            source=was.source or ClaimSource.WARM,
            bound_at=epoch(was.boundAt or "") or now,
            expires=expires,
            # What was known when it was handed out.
            evidence=was.runtime.evidence if was.runtime is not None else None,
            now=now,
        )
        if status == claim.status:
            return left
        stands = (
            self._message_hold_seconds(attempt)
            if decide.differ_only_in_messages(was, status)
            else 0.0
        )
        if stands > 0:
            return stands if left is None else min(left, stands)
        await self._requests.write_status(claim, status)
        attempt.message_written_at = self._clock()
        return left

    async def _ending(
        self, claim: SandboxClaim, attempt: Attempt, pod: Pod | None
    ) -> TerminationCause:
        """Why a claim has lost its pod, by what was seen of it last."""
        last = attempt.last_pod if pod is None else pod
        if last is not None and last.metadata.uid == claim.status.podUID:
            known = termination_cause(last)
            if known is not None:
                return known
        # Perhaps another process has seen it, and said so.
        told = decide.reported_ending(claim)
        if told is not None:
            return told
        node = claim.status.nodeName or ""
        return lost_pod_cause(node, node_gone=await self._api_reader.is_node_gone(node))

    def _message_hold_seconds(self, attempt: Attempt) -> float:
        """Seconds for which the words of the claim's conditions are not to be changed yet."""
        return attempt.message_written_at + MESSAGE_UPDATE_SECONDS - self._clock()

    async def _reconcile_deleting(self, claim: SandboxClaim, attempt: Attempt) -> float | None:
        """A claim was deleted, and somebody's finalizer keeps it: its pod does not run for ever.

        What was never told to anybody goes at once. A sandbox in use is left to the finalizer for
        a while, and no longer than its claim was promised.
        """
        pods = self._cluster.pods.of_claim(*claim.identity)
        if not claim.bound:
            if pods and await self._requests.is_claim_current(claim):
                for pod in pods:
                    await self._requests.delete_pod(pod, "its claim is being deleted")
            return None
        if not pods:
            return None
        pool = self._pools.get((claim.metadata.namespace, claim.spec.poolName))
        until = decide.finalizer_deadline(claim, pool.spec if pool is not None else None)
        left = attempt.expiration.left(until, wall=self._wall(), clock=self._clock())
        if left <= 0:
            live = await self._live_pool(claim)
            until = decide.finalizer_deadline(claim, live.spec if live is not None else None)
            left = attempt.expiration.left(until, wall=self._wall(), clock=self._clock())
        if left > 0:
            return left
        await self._expire(claim, "it was deleted, and its finalizers have kept it for too long")
        return None

    async def _expire(self, claim: SandboxClaim, message: str) -> None:
        """Expired first, and only if nobody has changed the claim since; then the pod goes."""
        status = decide.finished_status(
            claim, ClaimPhase.EXPIRED, Reason.TTL_EXPIRED, message, self._wall()
        )
        written, _ = await self._requests.write_status(claim, status)
        if written is WriteOutcome.DONE:
            self._report(claim, ClaimPhase.EXPIRED, Reason.TTL_EXPIRED, message)

    # --- Finished ------------------------------------------------------------------------------

    async def _finish(
        self, claim: SandboxClaim, phase: ClaimPhase, reason: Reason, message: str
    ) -> None:
        """End a claim that has no pod, or has lost it; a pod that carries it goes afterwards."""
        attempt = self._attempt(claim)
        self._cancel_allocation(claim.uid)
        status = decide.finished_status(claim, phase, reason, message, self._wall())
        written, version = await self._requests.write_status(claim, status)
        if written is WriteOutcome.DONE:
            self._record_written_version(attempt, version)
            self._report(claim, phase, reason, message)

    def _report(self, claim: SandboxClaim, phase: ClaimPhase, reason: Reason, message: str) -> None:
        self._observer.claim_finished(
            claim.metadata.namespace, claim.spec.poolName, phase, str(reason)
        )
        post = self._events.normal if phase is ClaimPhase.EXPIRED else self._events.warning
        post(about(claim), str(reason), message)

    async def _reconcile_finished(self, claim: SandboxClaim, attempt: Attempt) -> float | None:
        """Take back the pod of a claim that has ended, and in time the claim itself."""
        pool = self._pools.get((claim.metadata.namespace, claim.spec.poolName))
        until = decide.cleanup_time(claim, pool.spec if pool is not None else None)
        left = attempt.retention.left(until, wall=self._wall(), clock=self._clock())
        if left <= 0 and not claim.deleting:
            live = await self._live_pool(claim)
            until = decide.cleanup_time(claim, live.spec if live is not None else None)
            left = attempt.retention.left(until, wall=self._wall(), clock=self._clock())
        if claim.status.phase is not ClaimPhase.LOST or left <= 0:
            # Until then a lost claim's pod is kept: its logs say why it ended.
            for pod in self._cluster.pods.of_claim(*claim.identity):
                await self._requests.delete_pod(pod, f"its claim is {claim.status.phase}")
        if left > 0:
            return left
        if claim.deleting:
            # Only its finalizers keep it.
            return None
        await self._requests.delete_claim(claim)
        return None

    # --- Small things --------------------------------------------------------------------------

    async def _set_pending(self, claim: SandboxClaim, reason: Reason, message: str) -> None:
        attempt = self._attempt(claim)
        status = decide.pending_status(claim, reason, message, self._wall())
        if status.conditions == claim.status.conditions:
            return
        if (
            decide.differ_only_in_messages(claim.status, status)
            and self._message_hold_seconds(attempt) > 0
        ):
            # Not for each new word: this very write has the claim looked at again.
            return
        written, _ = await self._requests.write_status(claim, status)
        if written is WriteOutcome.DONE:
            attempt.message_written_at = self._clock()

    async def sweep(self) -> None:
        """Delete pods whose claim no longer exists, where no collector has done so.

        Only those of a pool that is there: anybody can name an owner that never was.
        """
        for pod in self._cluster.pods.claimed():
            owner = controller_of(pod, names.CLAIM_KIND)
            if (
                owner is None
                or self._is_binding_in_flight(owner.uid)
                or self._pools.of(pod) is None
            ):
                continue
            namespace = pod.metadata.namespace
            claim = self._get(namespace, owner.name)
            if claim is not None and claim.uid == owner.uid:
                continue
            try:
                if await self._requests.read(namespace, owner.name, owner.uid) is None:
                    await self._requests.delete_pod(pod, "its claim does not exist any more")
            except (KubeError, *UNREADABLE) as error:
                # What holds for one pod keeps the sweep from no other.
                logger.warning("sweep: claim %s/%s: %s", namespace, owner.name, error)


def _is_owned_by(pod: Pod, claim: SandboxClaim) -> bool:
    owner = pod.metadata.controller
    return owner is not None and owner.uid == claim.uid


def _refused(attempt: Attempt) -> str:
    return f"the API server refuses to give this claim a pod: {attempt.refusal}"
