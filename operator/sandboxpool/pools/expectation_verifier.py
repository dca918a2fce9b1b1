"""Verifies with live reads the creates and deletes that no watch event has confirmed.

A watch may be late or down, and does not show a pod that has lost its labels. A pod that the cache
does not show may exist all the same; until a live read says which, it counts towards the limits.
"""

import logging
from collections.abc import Callable

import msgspec

from sandboxpool.allocation.candidate_tracker import CandidateTracker
from sandboxpool.api import names
from sandboxpool.api.core import Pod
from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.pool import Pool
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.errors import UNREADABLE, KubeError
from sandboxpool.pools.state import PoolState

logger = logging.getLogger(__name__)

# Bounds the live reads of one reconcile, so that other pools are not kept waiting.
MAX_READS_PER_RECONCILE = 10


class ExpectationVerifier:
    """Reads unconfirmed pods from the API server and updates the expectations.

    Args:
        client: the API client.
        cluster: the informer caches.
        candidate_tracker: refreshed with each pod whose deletion did not happen.
        wall: seconds since the epoch.
    """

    def __init__(
        self,
        client: ApiClient,
        cluster: ClusterCache,
        candidate_tracker: CandidateTracker,
        wall: Callable[[], float],
    ) -> None:
        self._client = client
        self._cluster = cluster
        self._candidate_tracker = candidate_tracker
        self._wall = wall

    async def verify(self, pool: Pool, state: PoolState) -> None:
        """Verify the expectations that are due; failed reads are retried at a later reconcile."""
        expected = state.expectations
        for name in expected.creations_to_verify()[:MAX_READS_PER_RECONCILE]:
            expected.defer_verification(name)
            try:
                await self._verify_creation(pool, state, name)
            except (KubeError, *UNREADABLE) as error:
                text = "cannot verify the creation of pod %s: %s"
                logger.warning(text, name, error, extra=pool.reference.log)
        for uid in expected.deletions_to_verify()[:MAX_READS_PER_RECONCILE]:
            expected.defer_verification(uid)
            try:
                await self._verify_deletion(pool, state, uid)
            except (KubeError, *UNREADABLE) as error:
                text = "cannot verify the deletion of the pod with uid %s: %s"
                logger.warning(text, uid, error, extra=pool.reference.log)

    async def _verify_creation(self, pool: Pool, state: PoolState, name: str) -> None:
        """Check whether a pod was created."""
        expected = state.expectations
        pod = await self.read(pool.namespace, name)
        if not expected.is_creating(name):
            # The watch has shown the pod in the meantime.
            return
        if pod is None:
            if expected.has_creation_succeeded(name) and not expected.is_cold(name):
                text = f"pod {name} was deleted by another client right after its creation"
                state.note_failure(Reason.POD_LOST, text, self._wall())
            expected.creation_observed(name)
            return
        owner = pod.metadata.controller
        is_own = owner is not None and (
            owner.uid == pool.uid or state.cold.pod_name_of(owner.uid) == name
        )
        if is_own and names.LABEL_POOL_UID in pod.metadata.labels:
            # The pod counts towards the limits until the watch shows it.
            if expected.is_creation_unknown(name):
                expected.creation_succeeded(name)
            return
        if is_own:
            path = resource_path("v1", "pods", pool.namespace, name)
            await self._client.delete(path, uid=pod.metadata.uid)
            text = f"pod {name} has lost its label {names.LABEL_POOL_UID}, which selects the pods"
            state.note_failure(Reason.POD_ALTERED, text, self._wall())
        elif not expected.is_cold(name):
            state.note_failure(Reason.POD_LOST, f"pod {name} has another owner", self._wall())
        expected.creation_observed(name)

    async def _verify_deletion(self, pool: Pool, state: PoolState, uid: str) -> None:
        """Check whether a pod is deleted or terminating."""
        cached = self._cluster.pods.get(uid)
        if cached is None:
            state.expectations.deletion_observed(uid)
            return
        pod = await self.read(pool.namespace, cached.metadata.name)
        if pod is None or pod.metadata.uid != uid or pod.metadata.deletionTimestamp is not None:
            # The cache is stale: the pod must not be allocated.
            return
        state.expectations.deletion_observed(uid)
        state.member_index.mark_dirty(uid)
        known = self._cluster.pods.get(uid)
        if known is not None:
            self._candidate_tracker.refresh([known])

    async def read(self, namespace: str, name: str) -> Pod | None:
        """Read a pod from the API server; None if it does not exist."""
        answer = await self._client.find(resource_path("v1", "pods", namespace, name))
        return msgspec.json.decode(answer, type=Pod) if answer is not None else None
