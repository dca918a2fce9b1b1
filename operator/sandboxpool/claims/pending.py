"""Reconciles pending claims: they get a warm pod, wait, get a pod of their own, or fail."""

import logging
from collections.abc import Callable
from typing import Protocol

from sandboxpool.allocation.allocator import Allocator
from sandboxpool.allocation.candidate_tracker import CandidateTracker
from sandboxpool.allocation.refusal import Refusal
from sandboxpool.api import names
from sandboxpool.api.core import Pod
from sandboxpool.api.reasons import Reason
from sandboxpool.api.v1alpha1 import ClaimPhase, ClaimSource, OnEmpty, SandboxClaim
from sandboxpool.claims import decide
from sandboxpool.claims.api_reader import ApiReader
from sandboxpool.claims.attempt import Attempt, Attempts
from sandboxpool.claims.binding import Binder, ConfigNotMountedError
from sandboxpool.claims.requests import ClaimRequests, about
from sandboxpool.claims.status_writer import ClaimStatusWriter
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.pool import Pool
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.kube.errors import ApiError
from sandboxpool.runtimes.diagnosis import diagnose, truncate
from sandboxpool.runtimes.podevents import PodEvents
from sandboxpool.runtimes.termination import termination_cause
from sandboxpool.sandboxes.template import ClaimRef

logger = logging.getLogger(__name__)

# A claim keeps its reserved pod for the first retry; after more refusals it releases the pod.
MAX_REFUSALS_WITH_POD = 1
STALE_CACHE_RECHECK_SECONDS = 1.0
# A claim for which there may be a second pod is requeued after this many seconds.
DUPLICATE_RECHECK_SECONDS = 2.0
# A claim with a configuration, for which the next warm pod has no volume, is requeued
# after this many seconds.
CONFIG_RECHECK_SECONDS = 2.0
# The longest interval between two reconciliations of a claim with onEmpty Create.
COLD_RECHECK_SECONDS = 30.0
STARTING_COLD_MESSAGE = "the pool has no warm sandbox: one is being started for this claim"


class ColdStarter(Protocol):
    """Starts sandboxes for single claims, within the limits of their pools."""

    def is_starting_cold(self, pool: Pool, claim_uid: str) -> bool:
        """Whether the claim's pod was requested and the cache does not show it yet."""

    def request_cold_start(self, pool: Pool, claim: ClaimRef) -> Refusal | None:
        """Queue a cold start for a waiting claim; return why it cannot start yet."""

    def cold_start_failed(self, pool: Pool, message: str) -> None:
        """The sandbox that was started for a claim cannot be bound to it."""


class PendingReconciler:
    """Reconciles claims that are not bound yet."""

    def __init__(
        self,
        *,
        requests: ClaimRequests,
        api_reader: ApiReader,
        attempts: Attempts,
        binder: Binder,
        status_writer: ClaimStatusWriter,
        cluster: ClusterCache,
        pools: PoolStore,
        allocator: Allocator,
        candidate_tracker: CandidateTracker,
        cold: ColdStarter,
        clock: Callable[[], float],
        pod_events: Callable[[Pod], PodEvents | None],
    ) -> None:
        self._requests = requests
        self._api_reader = api_reader
        self._attempts = attempts
        self._binder = binder
        self._status_writer = status_writer
        self._cluster = cluster
        self._pools = pools
        self._allocator = allocator
        self._candidate_tracker = candidate_tracker
        self._cold = cold
        self._clock = clock
        self._pod_events = pod_events

    async def reconcile(self, claim: SandboxClaim, attempt: Attempt) -> float | None:
        """Bind the claim if there is a pod for it; fail it after its deadline.

        The deadline may have passed while no operator was running. So one allocation is tried
        after the deadline, too.
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
        remaining = [pod for pod in own if pod.metadata.deletionTimestamp is None]
        if remaining:
            return await self._resume_binding(claim, attempt, pool, remaining)
        if pool is None or pool.deleting or pool.spec is None:
            self._candidate_tracker.cancel_claim(claim.uid)
            if left <= 0:
                return await self._time_out(claim, pool)
            message = self._why_waiting(claim, pool)
            await self._status_writer.set_pending(claim, Reason.POOL_NOT_FOUND, message)
            return left
        if decide.refusal_for(claim, pool.spec) is not None:
            return await self._fail_refused(claim, left)
        cold = claim.spec.onEmpty is OnEmpty.CREATE
        if cold and self._cold.is_starting_cold(pool, claim.uid):
            # The cache does not show the claim's pod yet. A warm pod would be a second one.
            if left <= 0:
                return await self._time_out(claim, pool)
            return await self._start_cold(claim, attempt, pool, left)
        if self._allocator.pool_of(claim.uid) not in (None, pool.uid):
            # The claim waited for a deleted pool of the same name.
            self._candidate_tracker.cancel_claim(claim.uid)
        candidate = self._allocator.allocate(pool.uid, claim.uid)
        if candidate is not None:
            try:
                bound = await self._binder.bind(claim, attempt, pool, candidate)
            except ApiError as error:
                return await self._back_off(claim, attempt, error)
            except ConfigNotMountedError:
                return await self._await_config_volume(claim, pool, left)
            if bound or not self._attempts.is_pending(claim):
                return None
            if self._pools.get(pool.key) is not pool:
                # The pool was changed or deleted meanwhile: requeue.
                return 0.0
        if left <= 0:
            return await self._time_out(claim, pool)
        return await self._none_warm(claim, attempt, pool, left)

    async def _fail_refused(self, claim: SandboxClaim, left: float) -> float | None:
        """Fail a claim that the cached pool never serves, if the live pool refuses it, too."""
        pool = await self.live_pool(claim)
        spec = pool.spec if pool is not None and not pool.deleting else None
        refusal = decide.refusal_for(claim, spec) if spec is not None else None
        if refusal is not None:
            await self._status_writer.finish(
                claim, ClaimPhase.FAILED, refusal.reason, refusal.message
            )
            return None
        if left <= 0:
            return await self._time_out(claim, pool)
        return min(left, STALE_CACHE_RECHECK_SECONDS)

    async def _back_off(
        self, claim: SandboxClaim, attempt: Attempt, error: ApiError
    ) -> float | None:
        """Report that the binding is refused, and retry it with a growing delay.

        The API server would most likely refuse any other pod, too. So the claim keeps its pod at
        first; later it releases the pod to other claims and waits behind them.

        Raises:
            ApiError: the error is not a refusal.
        """
        if not (error.refused or error.conflict):
            raise error
        delay = attempt.record_refusal(truncate(error.message), self._clock())
        logger.warning(
            "the binding was refused: %s; it is retried in %.1f s",
            error,
            delay,
            extra=about(claim).log,
        )
        if attempt.refusals > MAX_REFUSALS_WITH_POD:
            self._candidate_tracker.cancel_claim(claim.uid)
        left = attempt.deadline - self._clock()
        if left <= 0:
            pool = self._pools.get((claim.metadata.namespace, claim.spec.poolName))
            return await self._time_out(claim, pool)
        await self._status_writer.set_pending(
            claim, Reason.BINDING_REFUSED, _refused_message(attempt)
        )
        return min(left, delay)

    async def _await_config_volume(
        self, claim: SandboxClaim, pool: Pool, left: float
    ) -> float | None:
        """Give the pod back, and wait until the pool has replaced it by one with the volume."""
        self._candidate_tracker.cancel_claim(claim.uid)
        message = (
            f"spec.config is set, but the warm sandbox that is next in pool {pool.name!r} was made "
            "without the volume for it; the pool replaces it, with update.type OnClaim only once "
            "another claim has taken it"
        )
        if left <= 0:
            message = f"{_not_bound_in_time(claim)}: {message}"
            await self._status_writer.finish(claim, ClaimPhase.FAILED, Reason.BIND_TIMEOUT, message)
            return None
        await self._status_writer.set_pending(claim, Reason.CONFIG_NOT_MOUNTED, message)
        return min(left, CONFIG_RECHECK_SECONDS)

    async def _time_out(self, claim: SandboxClaim, pool: Pool | None) -> float | None:
        if pool is None or pool.deleting or pool.spec is None:
            # The cache may be stale.
            pool = await self.live_pool(claim)
        message = self._why_waiting(claim, pool)
        await self._status_writer.finish(claim, ClaimPhase.FAILED, Reason.BIND_TIMEOUT, message)
        return None

    async def _none_warm(
        self, claim: SandboxClaim, attempt: Attempt, pool: Pool, left: float
    ) -> float | None:
        match claim.spec.onEmpty:
            case OnEmpty.FAIL:
                if not await self._api_reader.confirms_no_warm(pool, self._allocator.is_allocated):
                    # A cache is stale: there may be a warm sandbox, or the pool has changed.
                    return min(left, STALE_CACHE_RECHECK_SECONDS)
                if not self._attempts.is_pending(claim):
                    # Nothing would cancel what is reserved for a claim that is gone.
                    return None
                if self._allocator.allocate(pool.uid, claim.uid) is not None:
                    return 0.0
                await self._status_writer.finish(
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
                # The allocator enqueues the claim when it reserves a pod. Waiting costs no write.
                return left

    async def _start_cold(
        self, claim: SandboxClaim, attempt: Attempt, pool: Pool, left: float
    ) -> float | None:
        """Request a cold start; the pool enqueues the claim when its answer changes."""
        if self._cold.is_starting_cold(pool, claim.uid):
            attempt.cold_start_requested = True
            # A warm pod would be a second one from now on.
            self._candidate_tracker.cancel_claim(claim.uid)
            await self._status_writer.set_pending(
                claim, Reason.STARTING_COLD, STARTING_COLD_MESSAGE
            )
        else:
            if attempt.cold_start_requested:
                # The sandbox was deleted, perhaps because the claim itself was.
                if not await self._requests.is_claim_current(claim):
                    return min(left, DUPLICATE_RECHECK_SECONDS)
                attempt.cold_start_requested = False
                self._cold.cold_start_failed(
                    pool, "a sandbox that was started for a claim was deleted before it was ready"
                )
            refusal = self._cold.request_cold_start(pool, decide.reference(claim))
            if refusal is not None:
                await self._status_writer.set_pending(claim, refusal.reason, refusal.message)
        return min(left, COLD_RECHECK_SECONDS)

    def _why_waiting(self, claim: SandboxClaim, pool: Pool | None) -> str:
        waited = _not_bound_in_time(claim)
        if pool is None or pool.deleting:
            return f"SandboxPool {claim.spec.poolName!r} does not exist in this namespace"
        if pool.spec is None:
            return f"SandboxPool {claim.spec.poolName!r} does not fit the API: {pool.spec_error}"
        attempt = self._attempts.get(claim.uid)
        if attempt is not None and attempt.refusals:
            return f"{waited}; {_refused_message(attempt)}"
        return f"{waited}; pool {pool.name!r} says: {pool.ready_message()}"

    async def _resume_binding(
        self, claim: SandboxClaim, attempt: Attempt, pool: Pool | None, own: list[Pod]
    ) -> float | None:
        """Bind a pod that the claim owns: after an unfinished binding, or after a cold start."""
        self._candidate_tracker.cancel_claim(claim.uid)
        pod, others = decide.choose(claim, own)
        if others and not await self._requests.is_claim_current(claim):
            # Another process may have bound one of them: the watch will show which.
            return DUPLICATE_RECHECK_SECONDS
        for other in others:
            await self._requests.delete_pod(other, "its claim has another pod")
        cold = pod.metadata.annotations.get(names.ANNOTATION_SOURCE) == ClaimSource.COLD
        fit = (
            self._candidate_tracker.is_ready_for_claim(pod, pool)
            if cold
            else not self._candidate_tracker.is_invalid_binding(pod, pool)
        )
        if not fit and attempt.deadline <= self._clock():
            # The pod is deleted after the status is written.
            return await self._time_out(claim, pool)
        if not fit and cold:
            return await self._await_cold(claim, attempt, pool, pod)
        if not fit:
            # Anybody who may create pods in this namespace can name the claim as their owner.
            if await self._requests.is_claim_current(claim) and await self._is_pool_current(pool):
                await self._requests.delete_pod(
                    pod, "it is not of the claim's pool, class and proof"
                )
            return DUPLICATE_RECHECK_SECONDS
        try:
            await self._binder.write_bound_status(
                claim, pool, pod, source=ClaimSource.COLD if cold else ClaimSource.WARM
            )
        except ApiError as error:
            return await self._back_off(claim, attempt, error)
        return None

    async def _await_cold(
        self, claim: SandboxClaim, attempt: Attempt, pool: Pool | None, pod: Pod
    ) -> float | None:
        """Wait for a cold start. The pool replaces a pod that does not start."""
        why = self._why_unusable(attempt, pool, pod)
        if (
            why is not None
            and await self._requests.is_claim_current(claim)
            and await self._is_pool_current(pool)
        ):
            # The pod was never bound, so another one may be created.
            if pool is not None:
                self._cold.cold_start_failed(pool, f"{pod.metadata.name}: {why}")
            await self._requests.delete_pod(pod, why)
        elif why is None and not pod.ready:
            failure = diagnose(pod, self._cluster.events.message(pod), self._pod_events(pod))
            if failure is not None:
                text = f"{pod.metadata.name}, started for this claim, is not ready: "
                await self._status_writer.set_pending(claim, failure.reason, text + failure.message)
            elif claim.status.conditions:
                await self._status_writer.set_pending(
                    claim, Reason.STARTING_COLD, STARTING_COLD_MESSAGE
                )
        return min(attempt.deadline - self._clock(), COLD_RECHECK_SECONDS)

    def _why_unusable(self, attempt: Attempt, pool: Pool | None, pod: Pod) -> str | None:
        """Why a claim should not wait any longer for the pod that was started for it."""
        cause = termination_cause(pod) if pod.finished else None
        if cause is not None:
            return cause.message
        if self._candidate_tracker.should_replace_cold_pod(pod, pool):
            return "its node's runtime is not trusted, or it is not of the pool's class"
        if pod.ready and pool is not None and pool.spec is not None:
            # The pod may become allocatable, such as by a proof of its node.
            if attempt.unallocatable_since is None:
                attempt.unallocatable_since = self._clock()
            if self._clock() - attempt.unallocatable_since > pool.spec.startup.timeout_seconds:
                return "it has been ready for spec.startup.timeoutSeconds, but must not be bound"
        return None

    async def live_pool(self, claim: SandboxClaim) -> Pool | None:
        """The claim's pool, read from the API server: the pool cache may lag the claim cache."""
        return await self._api_reader.pool(claim.metadata.namespace, claim.spec.poolName)

    async def _is_pool_current(self, pool: Pool | None) -> bool:
        """Whether the caches of the pool and its class are current; True if there is no pool."""
        return pool is None or await self._api_reader.is_pool_current(pool)


def _not_bound_in_time(claim: SandboxClaim) -> str:
    return f"not bound within spec.bindTimeoutSeconds ({claim.spec.bindTimeoutSeconds} s)"


def _refused_message(attempt: Attempt) -> str:
    return f"the API server refuses to bind a pod to this claim: {attempt.refusal}"
