"""Binds a claim to a pod in two writes.

Write 1 makes the claim the pod's controller owner, on condition of the pod's version. Write 2 puts
the pod into the claim's status, on condition of the claim's version. If the process ends between
the two, the label with the claim's uid on the pod tells the next process where to resume.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from sandboxpool.allocation.allocator import Allocator, Candidate
from sandboxpool.allocation.candidate_tracker import CandidateTracker
from sandboxpool.api.core import Pod
from sandboxpool.api.v1alpha1 import ClaimSource, SandboxClaim
from sandboxpool.claims import decide
from sandboxpool.claims.attempt import Attempt, Attempts
from sandboxpool.claims.requests import ClaimRequests, WriteOutcome
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.pool import Pool
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.kube.errors import KubeError

# Tries of write 1 on one pod that others change meanwhile, and pods tried in a row.
ATTEMPTS_PER_POD = 2
MAX_PODS = 16


class ConfigNotMountedError(Exception):
    """The reserved pod has no volume for the claim's configuration."""


class BindingObserver(Protocol):
    """Observes bindings, for metrics."""

    def claim_bound(self, pool: Pool, source: str, seconds: float) -> None:
        """A claim was bound this many seconds after it was first observed."""


class Binder:
    """Binds claims to the pods that the allocator reserves for them."""

    def __init__(
        self,
        *,
        requests: ClaimRequests,
        attempts: Attempts,
        cluster: ClusterCache,
        pools: PoolStore,
        allocator: Allocator,
        candidate_tracker: CandidateTracker,
        observer: BindingObserver,
        wall: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._requests = requests
        self._attempts = attempts
        self._cluster = cluster
        self._pools = pools
        self._allocator = allocator
        self._candidate_tracker = candidate_tracker
        self._observer = observer
        self._wall = wall
        self._clock = clock

    async def bind(
        self, claim: SandboxClaim, attempt: Attempt, pool: Pool, first: Candidate
    ) -> bool:
        """Try pods until one is bound; False if none is left or the claim is not pending any more.

        Raises:
            ApiError: the API server refuses the binding or fails.
            KubeError: every pod that was tried had changed.
            ConfigNotMountedError: the claim has a configuration that the pod would never show.
        """
        attempt.binding_in_flight = True
        try:
            candidate: Candidate | None = first
            for _ in range(MAX_PODS):
                if candidate is None or self._same_pool(pool) is None:
                    return False
                if not self._attempts.is_pending(claim):
                    return False
                pod = await self._try_candidate(claim, pool, candidate)
                if pod is not None:
                    self._allocator.confirm_reservation(claim.uid)
                    attempt.bound_pod = pod
                    await self.write_bound_status(claim, pool, pod, source=ClaimSource.WARM)
                    return True
                self._allocator.replace_reservation(claim.uid)
                # The watch may have delivered the pod's newer state while the pod was reserved.
                self._candidate_tracker.refresh_uid(candidate.uid)
                candidate = self._allocator.allocate(pool.uid, claim.uid)
            raise KubeError(f"{MAX_PODS} pods changed while they were being bound")
        finally:
            attempt.binding_in_flight = False
            current = self._attempts.current(claim)
            if current is None or current.deleting:
                self._candidate_tracker.cancel_claim(claim.uid)
            if current is None:
                self._attempts.forget(claim.uid)

    def _same_pool(self, pool: Pool) -> Pool | None:
        """The cached pool; None if it was deleted, or deleted and created again."""
        now = self._pools.get(pool.key)
        return now if now is not None and now.uid == pool.uid else None

    async def _try_candidate(
        self, claim: SandboxClaim, pool: Pool, candidate: Candidate
    ) -> Pod | None:
        """Send write 1; None if the claim cannot have this pod.

        If somebody has just changed the pod, such as its kubelet, the write is tried again on the
        state that the server has.
        """
        known = self._cluster.pods.get(candidate.uid)
        failure: KubeError | None = None
        version = ""
        for _ in range(ATTEMPTS_PER_POD):
            now = self._same_pool(pool)
            if (
                known is None
                or now is None
                or not self._candidate_tracker.is_allocatable(known, now)
            ):
                break
            if not self._attempts.is_pending(claim):
                break
            if decide.lacks_config_volume(claim, known):
                raise ConfigNotMountedError
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
        elif self._attempts.is_pending(claim):
            # The pod has not changed, so the API server refuses for another reason.
            raise failure
        return None

    async def write_bound_status(
        self, claim: SandboxClaim, pool: Pool | None, pod: Pod, *, source: ClaimSource
    ) -> None:
        """Send write 2; if the claim was deleted meanwhile, delete its pod: it may be in use."""
        now = self._wall()
        attempt = self._attempts.of(claim)
        ttl = decide.ttl_seconds(claim, pool.spec if pool is not None else None)
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
        attempt.record_written_version(version)
        if written is WriteOutcome.DONE and pool is not None:
            self._observer.claim_bound(pool, source, self._clock() - attempt.first_seen)


def _is_owned_by(pod: Pod, claim: SandboxClaim) -> bool:
    owner = pod.metadata.controller
    return owner is not None and owner.uid == claim.uid
