"""Reconciles SandboxClaims: from pending to bound, and from finished to deleted."""

import logging
from collections.abc import Callable
from typing import Protocol

from sandboxpool.allocation.allocator import Allocator
from sandboxpool.allocation.candidate_tracker import CandidateTracker
from sandboxpool.api import names
from sandboxpool.api.core import Pod
from sandboxpool.api.times import epoch
from sandboxpool.api.v1alpha1 import ClaimPhase, ClaimSource, SandboxClaim
from sandboxpool.claims import decide
from sandboxpool.claims.api_reader import ApiReader
from sandboxpool.claims.attempt import Attempt, Attempts
from sandboxpool.claims.binding import Binder, BindingObserver
from sandboxpool.claims.pending import ColdStarter, PendingReconciler
from sandboxpool.claims.requests import ClaimRequests, about
from sandboxpool.claims.status_writer import ClaimStatusWriter, FinishObserver
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.ownership import claim_uid_of, controller_of
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.kube.client import ApiClient
from sandboxpool.kube.errors import UNREADABLE, KubeError
from sandboxpool.kube.events import EventRecorder
from sandboxpool.kube.workqueue import LONGEST_RETRY_SECONDS
from sandboxpool.runtimes.podevents import PodEvents
from sandboxpool.runtimes.termination import TerminationCause, lost_pod_cause, termination_cause
from sandboxpool.util.resource_version import parse_resource_version

logger = logging.getLogger(__name__)

Key = tuple[str, str]


class ClaimObserver(BindingObserver, FinishObserver, Protocol):
    """Observes claims, for metrics."""


class ClaimReconciler:
    """Reconciles one claim a call; different claims concurrently."""

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
        self._get = get
        self._cluster = cluster
        self._pools = pools
        self._candidate_tracker = candidate_tracker
        self._wall = wall
        self._clock = clock
        self._requests = ClaimRequests(client)
        self._api_reader = ApiReader(client, cluster)
        self._attempts = Attempts(get, wall=wall, clock=clock)
        self._status_writer = ClaimStatusWriter(
            requests=self._requests,
            attempts=self._attempts,
            candidate_tracker=candidate_tracker,
            events=events,
            observer=observer,
            wall=wall,
            clock=clock,
        )
        binder = Binder(
            requests=self._requests,
            attempts=self._attempts,
            cluster=cluster,
            pools=pools,
            allocator=allocator,
            candidate_tracker=candidate_tracker,
            observer=observer,
            wall=wall,
            clock=clock,
        )
        self._pending = PendingReconciler(
            requests=self._requests,
            api_reader=self._api_reader,
            attempts=self._attempts,
            binder=binder,
            status_writer=self._status_writer,
            cluster=cluster,
            pools=pools,
            allocator=allocator,
            candidate_tracker=candidate_tracker,
            cold=cold,
            clock=clock,
            pod_events=pod_events,
        )

    def observe_claim(self, old: SandboxClaim | None, new: SandboxClaim | None) -> None:
        """The cached claim has changed; called before the claim is enqueued."""
        if new is not None:
            self._attempts.of(new)
        gone = old if new is None else new if new.deleting else None
        if gone is not None and not self._attempts.is_binding_in_flight(gone.uid):
            self._candidate_tracker.cancel_claim(gone.uid)
            if new is None:
                self._attempts.forget(gone.uid)

    def observe_pod_deleted(self, pod: Pod) -> None:
        """A pod was deleted: its last state tells its claim why it ended."""
        attempt = self._attempts.get(claim_uid_of(pod) or "")
        if attempt is not None:
            attempt.last_pod = pod

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile a claim; return the seconds after which to requeue it, if any."""
        claim = self._get(*key)
        if claim is None:
            # The garbage collector deletes its pod, by the owner reference.
            return None
        attempt = self._attempts.of(claim)
        if claim.deleting or claim.finished or claim.bound:
            # Another process may have bound it while it waited here.
            self._candidate_tracker.cancel_claim(claim.uid)
        if claim.finished:
            return await self._reconcile_finished(claim, attempt)
        if claim.deleting:
            return await self._reconcile_deleting(claim, attempt)
        if claim.bound:
            return await self._reconcile_bound(claim, attempt)
        if parse_resource_version(claim.metadata.resourceVersion) < attempt.written_version:
            return None
        try:
            return await self._pending.reconcile(claim, attempt)
        except KubeError as error:
            left = attempt.deadline - self._clock()
            if left > LONGEST_RETRY_SECONDS:
                raise
            # The queue's own backoff might end only after the deadline.
            delay = attempt.fail() if left <= 0 else min(attempt.fail(), left)
            logger.warning("%s; retried in %.1f s", error, delay, extra=about(claim).log)
            return delay

    # --- Bound ---------------------------------------------------------------------------------

    async def _reconcile_bound(self, claim: SandboxClaim, attempt: Attempt) -> float | None:
        pool = self._pools.get((claim.metadata.namespace, claim.spec.poolName))
        now = self._wall()
        limits = pool
        if decide.is_edited(claim):
            # The owner may rely on a limit of the pool that the cache does not show yet.
            limits = await self._pending.live_pool(claim)
        expires = decide.expiry(claim, limits.spec if limits is not None else None)
        left = None
        if expires is not None:
            left = attempt.expiration.left(expires, wall=now, clock=self._clock())
            if left <= 0:
                message = "spec.ttlSeconds, or the pool's limit, has passed since the binding"
                await self._status_writer.expire(claim, message)
                return None
        pod = self._cluster.pods.get(claim.status.podUID or "")
        if pod is None:
            pod = await self._requests.find_pod(claim)
        if pod is None or pod.finished:
            cause = await self._termination_cause(claim, attempt, pod)
            message = f"{cause.message}. Its state is lost; create a new claim"
            await self._status_writer.finish(claim, ClaimPhase.LOST, cause.reason, message)
            return None
        for other in self._cluster.pods.of_claim(*claim.identity):
            if other.metadata.uid != pod.metadata.uid:
                await self._requests.delete_pod(other, "its claim has another pod")
        was = claim.status
        status = decide.bound_status(
            claim,
            pod,
            self._candidate_tracker.host_state(pod, pool),
            source=was.source or ClaimSource.WARM,
            bound_at=epoch(was.boundAt or "") or now,
            expires=expires,
            # The evidence is that of the binding.
            evidence=was.runtime.evidence if was.runtime is not None else None,
            now=now,
        )
        if status == was:
            return left
        if decide.differ_only_in_messages(was, status):
            hold = attempt.message_hold_seconds(self._clock())
            if hold > 0:
                return hold if left is None else min(left, hold)
        await self._requests.write_status(claim, status)
        attempt.message_written_at = self._clock()
        return left

    async def _termination_cause(
        self, claim: SandboxClaim, attempt: Attempt, pod: Pod | None
    ) -> TerminationCause:
        """Why a claim has lost its pod, by the pod's last known state."""
        last = attempt.last_pod if pod is None else pod
        if last is not None and last.metadata.uid == claim.status.podUID:
            cause = termination_cause(last)
            if cause is not None:
                return cause
        # Another process may have observed the cause and reported it in the status.
        reported = decide.reported_cause(claim)
        if reported is not None:
            return reported
        node = claim.status.nodeName or ""
        return lost_pod_cause(node, node_gone=await self._api_reader.is_node_gone(node))

    async def _reconcile_deleting(self, claim: SandboxClaim, attempt: Attempt) -> float | None:
        """Delete the pod of a deleted claim that finalizers keep.

        A pod that no status has named is deleted at once. A bound pod is left to the finalizers
        for a while, but never beyond the claim's expiry.
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
            live = await self._pending.live_pool(claim)
            until = decide.finalizer_deadline(claim, live.spec if live is not None else None)
            left = attempt.expiration.left(until, wall=self._wall(), clock=self._clock())
        if left > 0:
            return left
        await self._status_writer.expire(
            claim, "the claim was deleted, and its finalizers were not removed in time"
        )
        return None

    # --- Finished ------------------------------------------------------------------------------

    async def _reconcile_finished(self, claim: SandboxClaim, attempt: Attempt) -> float | None:
        """Delete the pod of a finished claim, and the claim itself when its retention ends."""
        pool = self._pools.get((claim.metadata.namespace, claim.spec.poolName))
        until = decide.cleanup_time(claim, pool.spec if pool is not None else None)
        left = attempt.retention.left(until, wall=self._wall(), clock=self._clock())
        if left <= 0 and not claim.deleting:
            live = await self._pending.live_pool(claim)
            until = decide.cleanup_time(claim, live.spec if live is not None else None)
            left = attempt.retention.left(until, wall=self._wall(), clock=self._clock())
        if claim.status.phase is not ClaimPhase.LOST or left <= 0:
            # The pod of a lost claim is kept for its logs, which say why it ended.
            for pod in self._cluster.pods.of_claim(*claim.identity):
                await self._requests.delete_pod(pod, f"its claim is {claim.status.phase}")
        if left > 0:
            return left
        if not claim.deleting:
            await self._requests.delete_claim(claim)
        return None

    async def sweep(self) -> None:
        """Delete pods whose claim no longer exists, where the garbage collector has not done so.

        Only pods of known pools are deleted: anybody who may create pods can name an owner that
        never existed.
        """
        for pod in self._cluster.pods.claimed():
            owner = controller_of(pod, names.CLAIM_KIND)
            if (
                owner is None
                or self._attempts.is_binding_in_flight(owner.uid)
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
                # Go on with the other pods; this one is tried again by the next sweep.
                logger.warning(
                    "sweep: pod %s of claim %s/%s: %s; retried by the next sweep",
                    pod.metadata.name,
                    namespace,
                    owner.name,
                    error,
                )
