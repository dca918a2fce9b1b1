"""Asking the API server about what was done and is shown by no watch.

A watch may be late, down, or blind to a pod that has lost its labels. "Not seen" is not "does not
exist": only the API server can say which, and until it has, what was asked for takes its room.
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

# One look at a pool asks about no more: there may be hundreds, and the others have their turn.
MAX_READS_PER_RECONCILE = 10


class ExpectationVerifier:
    """Settles what is expected, where the API server knows better than the caches.

    Args:
        client: the API client.
        cluster: the caches.
        candidate_tracker: told of a pod that stays after all.
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
        """Ask about what is due; an API server that does not answer is asked again later."""
        expected = state.expectations
        for name in expected.creations_to_verify()[:MAX_READS_PER_RECONCILE]:
            expected.defer_verification(name)
            try:
                await self._look_for(pool, state, name)
            except (KubeError, *UNREADABLE) as error:
                logger.warning("unseen pod %s: %s", name, error, extra=pool.reference.log)
        for uid in expected.deletions_to_verify()[:MAX_READS_PER_RECONCILE]:
            expected.defer_verification(uid)
            try:
                await self._look_after(pool, state, uid)
            except (KubeError, *UNREADABLE) as error:
                logger.warning("deleted pod %s: %s", uid, error, extra=pool.reference.log)

    async def _look_for(self, pool: Pool, state: PoolState, name: str) -> None:
        """A pod that was asked for: was it made?"""
        expected = state.expectations
        pod = await self.read(pool.namespace, name)
        if not expected.is_creating(name):
            # The watch has shown it meanwhile.
            return
        if pod is None:
            if expected.has_creation_succeeded(name) and not expected.is_cold(name):
                text = f"{name} was deleted by somebody else before it was seen"
                state.note_failure(Reason.POD_LOST, text, self._wall())
            expected.creation_observed(name)
            return
        owner = pod.metadata.controller
        is_own = owner is not None and (
            owner.uid == pool.uid or state.cold.pod_name_of(owner.uid) == name
        )
        if is_own and names.LABEL_POOL_UID in pod.metadata.labels:
            # It takes its room, and the watch will show it in the end.
            if expected.is_creation_unknown(name):
                expected.creation_succeeded(name)
            return
        if is_own:
            path = resource_path("v1", "pods", pool.namespace, name)
            await self._client.delete(path, uid=pod.metadata.uid)
            text = f"{name} has lost its label {names.LABEL_POOL_UID}, by which it is found"
            state.note_failure(Reason.POD_ALTERED, text, self._wall())
        elif not expected.is_cold(name):
            state.note_failure(
                Reason.POD_LOST, f"pod {name} belongs to somebody else", self._wall()
            )
        expected.creation_observed(name)

    async def _look_after(self, pool: Pool, state: PoolState, uid: str) -> None:
        """A pod whose deletion was asked for: is it going?"""
        cached = self._cluster.pods.get(uid)
        if cached is None:
            state.expectations.deletion_observed(uid)
            return
        pod = await self.read(pool.namespace, cached.metadata.name)
        if pod is None or pod.metadata.uid != uid or pod.metadata.deletionTimestamp is not None:
            # The cache is behind: what it shows must be handed to nobody.
            return
        state.expectations.deletion_observed(uid)
        state.member_index.mark_dirty(uid)
        known = self._cluster.pods.get(uid)
        if known is not None:
            self._candidate_tracker.refresh([known])

    async def read(self, namespace: str, name: str) -> Pod | None:
        """The pod of this name as the API server has it; None if there is none."""
        answer = await self._client.find(resource_path("v1", "pods", namespace, name))
        return msgspec.json.decode(answer, type=Pod) if answer is not None else None
