"""Creates and deletes the pods of a pool, each exactly once, with retries."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from sandboxpool.allocation.candidate_tracker import CandidateTracker
from sandboxpool.api.core import Pod
from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.pool import Pool
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.errors import UNREADABLE, ApiError, KubeError, UnknownOutcomeError
from sandboxpool.kube.events import EventRecorder
from sandboxpool.kube.yielding_semaphore import SLOW_SECONDS
from sandboxpool.pools.admission_errors import NAMESPACE_TERMINATING, is_quota_exceeded
from sandboxpool.pools.mutation import forbidden_mutation
from sandboxpool.pools.plan import Deletion
from sandboxpool.pools.request_limiter import RequestLimiter
from sandboxpool.pools.state import PoolState
from sandboxpool.pools.template_check import TemplateChecker
from sandboxpool.runtimes.avoidance import AVOID_SECONDS
from sandboxpool.sandboxes.startup import StartupTracker

logger = logging.getLogger(__name__)

CREATE_ATTEMPTS = 3
DELETE_ATTEMPTS = 3
DELETE_BATCH = 20
# Concurrent creates, and deletes, of all pools: refill must not slow down claims.
WRITES_AT_ONCE = 4


class PodAlteredError(KubeError):
    """Mutating admission changed protected fields of a created pod, which was deleted again."""


class FailureObserver(Protocol):
    """Counts sandboxes that did not start, for metrics."""

    def sandbox_failed(self, pool: Pool, reason: str) -> None:
        """A sandbox did not start, or could not be created."""


class PodWriter:
    """Sends creates and deletes, and records their outcomes in the pool's state.

    ``on_start_timeout`` is called with the uid of each pod whose start timed out without a cause.
    """

    def __init__(
        self,
        *,
        client: ApiClient,
        cluster: ClusterCache,
        candidate_tracker: CandidateTracker,
        events: EventRecorder,
        observer: FailureObserver,
        checker: TemplateChecker,
        tracker: StartupTracker,
        on_start_timeout: Callable[[str], None],
        wall: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._cluster = cluster
        self._candidate_tracker = candidate_tracker
        self._events = events
        self._observer = observer
        self._checker = checker
        self._tracker = tracker
        self._on_start_timeout = on_start_timeout
        self._wall = wall
        self._clock = clock
        self._creates = RequestLimiter(WRITES_AT_ONCE)
        self._deletes = RequestLimiter(WRITES_AT_ONCE)

    async def delete(
        self, pool: Pool, state: PoolState, deletions: Sequence[Deletion]
    ) -> list[KubeError]:
        """Delete pods; return the errors of the deletes that have to be retried."""
        errors: list[KubeError] = []
        failed: list[Deletion] = []
        for start in range(0, len(deletions), DELETE_BATCH):
            batch = await self._confirmed(state, deletions[start : start + DELETE_BATCH])
            done = await asyncio.gather(*(self._delete_one(pool, state, d) for d in batch))
            errors += [e for e in done if e is not None and not (e.conflict or e.not_found)]
            # A pod that was not deleted counts as a failure once it is.
            gone = (error is None or error.not_found for error in done)
            failed += [d for d, is_gone in zip(batch, gone, strict=True) if d.failed and is_gone]
        for deletion in failed:
            self._observer.sandbox_failed(pool, str(deletion.reason))
            self._avoid(pool, deletion)
        if failed:
            state.back_off(failed[0].reason, failed[0].message, self._wall())
        return errors

    def _avoid(self, pool: Pool, deletion: Deletion) -> None:
        """Avoid the node of a failed pod if the runtime is to blame and is not quarantined."""
        member, failure = deletion.member, deletion.member.failure
        if not member.node_name or failure is None or not failure.blames_runtime:
            return
        if member.host_state.quarantined or not member.host_state.handler_served:
            return
        self.avoid(pool, member.node_name, failure.message)

    def avoid(self, pool: Pool, node: str, why: str) -> None:
        """Keep the next sandboxes of a pool off a node, because they do not start there."""
        if self._cluster.avoided_nodes.add(pool.uid, node, self._wall()):
            text = (
                f"the next sandboxes of this pool avoid node {node} for "
                f"{AVOID_SECONDS / 60:.0f} minutes: {why}"
            )
            self._events.warning(pool.reference, str(Reason.NODE_AVOIDED), text)

    async def _confirmed(self, state: PoolState, batch: Sequence[Deletion]) -> list[Deletion]:
        """Leave out the pods of lost nodes that exist: the cache of nodes may lag behind."""
        names = sorted({d.member.node_name for d in batch if d.reason is Reason.NODE_LOST})
        gone = await asyncio.gather(*(self._is_node_gone(name) for name in names))
        existing = {name for name, is_gone in zip(names, gone, strict=True) if not is_gone}
        confirmed: list[Deletion] = []
        for deletion in batch:
            if deletion.reason is Reason.NODE_LOST and deletion.member.node_name in existing:
                self._keep(state, deletion)
            else:
                confirmed.append(deletion)
        return confirmed

    async def _is_node_gone(self, name: str) -> bool:
        try:
            return await self._client.find(resource_path("v1", "nodes", name=name)) is None
        except KubeError as error:
            logger.warning("node %s cannot be read: %s", name, error)
            return False

    def _keep(self, state: PoolState, deletion: Deletion) -> None:
        """Let a pod that is not deleted be a candidate until the next decision."""
        uid = deletion.member.uid
        state.expectations.deletion_observed(uid)
        pod = self._cluster.pods.get(uid)
        if pod is not None:
            self._candidate_tracker.refresh([pod])

    async def _delete_one(
        self, pool: Pool, state: PoolState, deletion: Deletion
    ) -> ApiError | None:
        member = deletion.member
        log = logger.warning if deletion.failed else logger.info
        log(
            "deleting pod %s: %s: %s",
            member.name,
            deletion.reason,
            deletion.message,
            extra=pool.reference.log,
        )
        if deletion.reason is Reason.SANDBOX_START_TIMEOUT:
            self._on_start_timeout(member.uid)
        if deletion.failed:
            where = f" on node {member.node_name}" if member.node_name else ""
            self._events.warning(
                pool.reference, str(deletion.reason), f"{member.name}{where}: {deletion.message}"
            )
        path = resource_path("v1", "pods", pool.namespace, member.name)
        for attempt in range(1, DELETE_ATTEMPTS + 1):
            try:
                async with self._deletes.acquire(pool.uid):
                    await self._client.delete(path, uid=member.uid, resource_version=member.version)
            except ApiError as error:
                if attempt > 1 and (error.conflict or error.not_found):
                    # Deleted by an attempt whose response was lost.
                    return None
                # The pod has changed since the decision.
                self._keep(state, deletion)
                return error
            except UnknownOutcomeError as error:
                # The pod may be terminating: it is no candidate until the watch or a live read
                # says so. The preconditions make a second delete safe.
                logger.warning("%s", error, extra=pool.reference.log)
                await asyncio.sleep(0.2 * attempt)
            else:
                return None
        state.expectations.deletion_unknown(member.uid)
        return None

    async def create(
        self, pool: Pool, state: PoolState, bodies: Sequence[Mapping[str, Any]]
    ) -> list[str]:
        """Create pods by slow start, 1, 2, 4, ..., and stop after the first batch with an error.

        The names must be expected. Pods that certainly are not created are no longer expected.

        Returns:
            The names that existed already.
        """
        left = list(bodies)
        batch = 1
        taken: list[str] = []
        while left:
            now, left = left[:batch], left[batch:]
            errors = await asyncio.gather(*(self._create_one(pool, state, body) for body in now))
            refused: list[KubeError] = []
            for body, error in zip(now, errors, strict=True):
                if isinstance(error, ApiError) and error.already_exists:
                    taken.append(body["metadata"]["name"])
                elif error is not None:
                    refused.append(error)
            if refused:
                self._create_failed(pool, state, refused[0])
                break
            batch *= 2
        for body in left:
            state.expectations.creation_observed(body["metadata"]["name"])
        return taken

    async def _create_one(
        self, pool: Pool, state: PoolState, body: Mapping[str, Any]
    ) -> KubeError | None:
        name = body["metadata"]["name"]
        try:
            await self._post(pool, state, body)
        except ApiError as error:
            if error.already_exists:
                # A create of unknown outcome had succeeded, or another pod has the name.
                state.expectations.creation_succeeded(name)
                return error
            state.expectations.creation_observed(name)
            return error
        except KubeError as error:
            # The expectation stays: if the pod exists after all, the watch shows it by its name.
            return error
        return None

    async def _post(self, pool: Pool, state: PoolState, body: Mapping[str, Any]) -> None:
        """POST a pod, with retries under the same name, so that no pod is created twice.

        The name must be expected. Once the watch has shown the pod, the POST is not retried: the
        pod may have ended since and been replaced.

        Raises:
            ApiError: the pod was rejected, or existed already (AlreadyExists).
            PodAlteredError: admission changed protected fields; the pod was deleted again.
            UnknownOutcomeError: the pod may or may not exist.
        """
        path = resource_path("v1", "pods", pool.namespace)
        name = body["metadata"]["name"]
        for attempt in range(1, CREATE_ATTEMPTS + 1):
            try:
                async with self._creates.acquire(pool.uid):
                    began = self._clock()
                    answer = await self._client.create(path, body)
            except ApiError as error:
                if error.already_exists and attempt > 1:
                    state.expectations.creation_succeeded(name)
                    return
                last = self._is_last(attempt, began)
                if last and error.outcome_unknown:
                    state.expectations.creation_unknown(name)
                    raise UnknownOutcomeError(f"POST {path}: {error}") from error
                if last or (error.status < 500 and not error.conflict):
                    raise
            except UnknownOutcomeError:
                if self._is_last(attempt, began):
                    state.expectations.creation_unknown(name)
                    raise
            else:
                await self._created(pool, state, body, answer, began)
                return
            await asyncio.sleep(0.2 * attempt)
            if not state.expectations.is_creating(name):
                return

    def _is_last(self, attempt: int, began: float) -> bool:
        """Whether to make no further attempt; a slow request is likely to be slow again."""
        return attempt == CREATE_ATTEMPTS or self._clock() - began >= SLOW_SECONDS

    async def _created(
        self, pool: Pool, state: PoolState, body: Mapping[str, Any], answer: bytes, began: float
    ) -> None:
        """Check the pod of a successful response and record it."""
        name = body["metadata"]["name"]
        try:
            created = msgspec.json.decode(answer, type=Pod)
            altered = forbidden_mutation(body, answer)
            self._checker.observe(pool.uid, answer)
        except UNREADABLE as error:
            # A proxy in front of the API server answered in its place.
            state.expectations.creation_unknown(name)
            text = f"POST of pod {name}: the response is not a pod: {error}"
            raise UnknownOutcomeError(text) from error
        state.expectations.creation_succeeded(name)
        if altered:
            await self._discard(pool, state, created)
            raise PodAlteredError(altered)
        self._tracker.track(created.metadata.uid, began)

    async def _discard(self, pool: Pool, state: PoolState, pod: Pod) -> None:
        """Delete a pod that may be in no watch; it counts towards the limits if that fails."""
        name, uid = pod.metadata.name, pod.metadata.uid
        path = resource_path("v1", "pods", pool.namespace, name)
        state.expectations.expect_deletion(uid)
        for attempt in range(1, DELETE_ATTEMPTS + 1):
            try:
                async with self._deletes.acquire(pool.uid):
                    await self._client.delete(path, uid=uid)
            except KubeError as error:
                gone = isinstance(error, ApiError) and (error.not_found or error.conflict)
                if not gone:
                    text = "cannot delete pod %s, which admission has changed: %s"
                    logger.warning(text, name, error, extra=pool.reference.log)
                    await asyncio.sleep(0.2 * attempt)
                    continue
            state.expectations.creation_observed(name)
            return
        state.expectations.deletion_unknown(uid)

    def _create_failed(self, pool: Pool, state: PoolState, error: KubeError) -> None:
        reason, message = create_failure_reason(error), str(error)
        if reason is Reason.NAMESPACE_TERMINATING:
            # Not a failure of the pool.
            state.back_off(reason, NAMESPACE_TERMINATING, self._wall())
            return
        if (
            isinstance(error, ApiError)
            and reason is Reason.CREATE_FAILED
            and not (error.status >= 500 or error.conflict)
        ):
            # The dry run had accepted the template: check it again.
            self._checker.invalidate(pool.uid)
        self._observer.sandbox_failed(pool, str(reason))
        state.back_off(reason, message, self._wall())
        logger.warning("cannot create pods: %s: %s", reason, error, extra=pool.reference.log)


def create_failure_reason(error: KubeError) -> Reason:
    """The reason of a failed create."""
    if isinstance(error, PodAlteredError):
        return Reason.POD_ALTERED
    if isinstance(error, ApiError) and error.namespace_terminating:
        return Reason.NAMESPACE_TERMINATING
    if isinstance(error, ApiError) and is_quota_exceeded(error):
        return Reason.QUOTA_EXCEEDED
    return Reason.CREATE_FAILED
