"""Starts sandboxes for single claims, within the queue and the limits of their pool."""

from collections.abc import Callable, Sequence

from sandboxpool.allocation.allocator import Allocator
from sandboxpool.allocation.refusal import Refusal
from sandboxpool.api import names
from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.pool import Pool
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.pools.cold_start import cold_start_refusal
from sandboxpool.pools.expectation_verifier import ExpectationVerifier
from sandboxpool.pools.plan import PoolInput, PoolPlan
from sandboxpool.pools.state import PoolState, PoolStates
from sandboxpool.sandboxes.template import ClaimRef, pod_name

Key = tuple[str, str]
# The uids of the queued claims, each with its request for a cold start if it has one.
ClaimQueue = Sequence[tuple[str, ClaimRef | None]]


class PoolColdStarter:
    """Takes requests from claims, and carries out those that the pool's plan allows.

    ``enqueue`` enqueues a pool; ``enqueue_claim`` enqueues a claim by its uid and returns whether
    the claim still exists.
    """

    def __init__(
        self,
        *,
        client: ApiClient,
        cluster: ClusterCache,
        states: PoolStates,
        allocator: Allocator,
        verifier: ExpectationVerifier,
        enqueue: Callable[[Key], None],
        enqueue_claim: Callable[[str], object],
        wall: Callable[[], float],
    ) -> None:
        self._client = client
        self._cluster = cluster
        self._states = states
        self._allocator = allocator
        self._verifier = verifier
        self._enqueue = enqueue
        self._enqueue_claim = enqueue_claim
        self._wall = wall

    # --- For claims ------------------------------------------------------------------------------

    def request_cold_start(self, pool: Pool, claim: ClaimRef) -> Refusal | None:
        """Request a cold start for a queued claim; return why it waits, as of the last decision."""
        requests = self._states[pool.uid].cold
        if requests.request_start(claim):
            self._enqueue(pool.key)
        return requests.refusal

    def is_starting_cold(self, pool: Pool, claim_uid: str) -> bool:
        """Whether the claim's pod is being created and is not observed yet."""
        state = self._states[pool.uid]
        name = state.cold.pod_name_of(claim_uid)
        return name is not None and state.expectations.is_creating(name)

    def cold_start_failed(self, pool: Pool, message: str) -> None:
        """Delay the next creates: the sandbox that was started for a claim has failed."""
        self._states[pool.uid].note_failure(Reason.POD_FAILED, message, self._wall())

    # --- For the pool's reconcile ----------------------------------------------------------------

    def queue(self, pool: Pool, state: PoolState) -> ClaimQueue:
        """The queued claims that have no pod; empty if none requests a cold start."""
        for uid in state.cold.pop_finished(state.expectations.is_creating):
            self._enqueue_claim(uid)
        if not state.cold.pending:
            return []
        found = state.cold.in_queue(self._allocator.waiting_claims(pool.uid))
        return [(uid, ref) for uid, ref in found if ref is None or not self._has_pod(pool, uid)]

    def expect(
        self, pool: Pool, state: PoolState, queue: ClaimQueue, count: int
    ) -> dict[str, ClaimRef]:
        """Expect the pods of the first requests in the queue; return their claims by pod name."""
        claims: dict[str, ClaimRef] = {}
        for claim in [claim for _, claim in queue if claim is not None][:count]:
            former = self._cluster.pods.of_claim(pool.namespace, claim.uid)
            seed = state.cold.seed(claim.uid, (pod.metadata.uid for pod in former))
            name = pod_name(pool.name, seed)
            claims[name] = claim
            # The claim leaves the queue, so that it is not given a warm pod as well.
            self._allocator.cancel_claim(claim.uid)
            state.cold.start(claim, name)
            state.expectations.expect_creation(name, cold=True)
        return claims

    def report(self, state: PoolState, given: PoolInput, plan: PoolPlan, pool: Pool) -> None:
        """Enqueue the claims whose requests wait if the cause has changed."""
        refusal = cold_start_refusal(given, plan, pool.name)
        if refusal != state.cold.refusal:
            state.cold.refusal = refusal
            for uid in state.cold.pending:
                self._enqueue_claim(uid)

    async def finish(
        self, pool: Pool, state: PoolState, claims: dict[str, ClaimRef], taken: list[str]
    ) -> None:
        """Enqueue each claim after its create; a claim without a pod is first in the queue again.

        Args:
            pool: the pool.
            state: its state.
            claims: the claims by the names of their pods.
            taken: the names of pods that existed already.
        """
        for name in set(taken) & claims.keys():
            await self._resolve_name_conflict(pool, state, name, claims[name])
        for name, claim in reversed(claims.items()):
            exists = self._enqueue_claim(claim.uid)
            has_pod = state.expectations.is_creating(name) or self._has_pod(pool, claim.uid)
            if exists and not has_pod:
                self._allocator.requeue_first(pool.uid, claim.uid)

    def _has_pod(self, pool: Pool, claim_uid: str) -> bool:
        """Whether the cache has a pod of the claim that is not terminating."""
        pods = self._cluster.pods.of_claim(pool.namespace, claim_uid)
        return any(pod.metadata.deletionTimestamp is None for pod in pods)

    async def _resolve_name_conflict(
        self, pool: Pool, state: PoolState, name: str, claim: ClaimRef
    ) -> None:
        """Find out whether the existing pod of this name is the claim's, created earlier."""
        pod = await self._verifier.read(pool.namespace, name)
        if pod is None:
            state.expectations.creation_observed(name)
            return
        metadata, owner = pod.metadata, pod.metadata.controller
        is_own = owner is not None and owner.uid == claim.uid
        if is_own and names.LABEL_POOL_UID in metadata.labels:
            # The pod counts towards the limits until the watch shows it.
            return
        if is_own and metadata.deletionTimestamp is None:
            # The pod has lost its labels, so the watch will never show it; it was never bound.
            await self._client.delete(
                resource_path("v1", "pods", pool.namespace, name),
                uid=metadata.uid,
                resource_version=metadata.resourceVersion,
            )
        state.expectations.creation_observed(name)
        state.cold.note_name_conflict(claim.uid)
