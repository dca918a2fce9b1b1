"""Creating and deleting the pods of a pool, once each, whatever the API server answers."""

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
# Creates, and deletes, of all pools together: an API server that is busy with refill keeps claims
# waiting.
WRITES_AT_ONCE = 4


class PodAlteredError(KubeError):
    """A pod was made, and not as it was sent: it was deleted again."""


class FailureObserver(Protocol):
    """Told of sandboxes that did not start, for metrics."""

    def sandbox_failed(self, pool: Pool, reason: str) -> None:
        """A sandbox did not start, or could not be created."""


class PodWriter:
    """Sends creates and deletes; what it learns goes into the pool's state.

    ``on_start_timeout`` is told the uid of each pod that was given up without a known cause.
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
        """Delete pods; return what kept some from being deleted, to be tried again."""
        errors: list[KubeError] = []
        failed: list[Deletion] = []
        for start in range(0, len(deletions), DELETE_BATCH):
            batch = deletions[start : start + DELETE_BATCH]
            done = await asyncio.gather(*(self._delete_one(pool, state, d) for d in batch))
            errors += [e for e in done if e is not None and not (e.conflict or e.not_found)]
            # One that was not deleted is met again, and counts when it goes.
            gone = (error is None or error.not_found for error in done)
            failed += [d for d, is_gone in zip(batch, gone, strict=True) if d.failed and is_gone]
        for deletion in failed:
            self._observer.sandbox_failed(pool, str(deletion.reason))
            self._avoid(pool, deletion)
        if failed:
            state.back_off(failed[0].reason, failed[0].message, self._wall())
        return errors

    def _avoid(self, pool: Pool, deletion: Deletion) -> None:
        """The runtime fails this pool's sandbox on a node that it is not quarantined on."""
        member, failure = deletion.member, deletion.member.failure
        if not member.node_name or failure is None or not failure.blames_runtime:
            return
        if member.host_state.quarantined or not member.host_state.handler_served:
            return
        self.avoid(pool, member.node_name, failure.message)

    def avoid(self, pool: Pool, node: str, why: str) -> None:
        """Make the next sandboxes of a pool elsewhere, because on this node they do not start."""
        if self._cluster.avoided_nodes.add(pool.uid, node, self._wall()):
            text = (
                f"the next sandboxes of this pool keep away from node {node} for "
                f"{AVOID_SECONDS / 60:.0f} minutes: {why}"
            )
            self._events.warning(pool.reference, str(Reason.NODE_AVOIDED), text)

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
                async with self._deletes.take(pool.uid):
                    await self._client.delete(path, uid=member.uid, resource_version=member.version)
            except ApiError as error:
                if attempt > 1 and (error.conflict or error.not_found):
                    # By an attempt whose answer was lost.
                    return None
                state.expectations.deletion_observed(member.uid)
                pod = self._cluster.pods.get(member.uid)
                if pod is not None:
                    # It has changed since it was judged: judge it again, and meanwhile offer it.
                    self._candidate_tracker.refresh([pod])
                return error
            except UnknownOutcomeError as error:
                # Perhaps it is being deleted: it stays withdrawn until the watch or a look tells.
                # No other pod has its uid and version, so it may be sent again.
                logger.warning("%s", error, extra=pool.reference.log)
                await asyncio.sleep(0.2 * attempt)
            else:
                return None
        state.expectations.deletion_unknown(member.uid)
        return None

    async def create(
        self, pool: Pool, state: PoolState, bodies: Sequence[Mapping[str, Any]]
    ) -> list[str]:
        """Create pods by slow start, 1, 2, 4, ..., and stop after the first batch with a refusal.

        The names must be expected already; those that certainly are not made no longer are.

        Returns:
            The names that were taken already.
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
                    # It was in doubt, and had been made, or somebody has taken the name.
                    taken.append(body["metadata"]["name"])
                elif error is not None:
                    refused.append(error)
            if refused:
                self._refused(pool, state, refused[0])
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
                # It was in doubt, and had been made, or somebody has taken the name.
                state.expectations.creation_succeeded(name)
                return error
            state.expectations.creation_observed(name)
            return error
        except KubeError as error:
            # An expectation that stands: if it was made after all, the watch shows it under this
            # name.
            return error
        return None

    async def _post(self, pool: Pool, state: PoolState, body: Mapping[str, Any]) -> None:
        """POST a pod; repeated under the same name, so an unknown outcome cannot double it.

        The name must be expected: once the watch has shown the pod nothing is repeated, for it may
        have ended since, and its place may have been given to another.

        Raises:
            ApiError: it was refused; AlreadyExists if the name was taken before.
            PodAlteredError: it was made otherwise than it was sent, and deleted again.
            UnknownOutcomeError: nobody can say whether it exists.
        """
        path = resource_path("v1", "pods", pool.namespace)
        name = body["metadata"]["name"]
        for attempt in range(1, CREATE_ATTEMPTS + 1):
            try:
                async with self._creates.take(pool.uid):
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
                await self._made(pool, state, body, answer, began)
                return
            await asyncio.sleep(0.2 * attempt)
            if not state.expectations.is_creating(name):
                return

    def _is_last(self, attempt: int, began: float) -> bool:
        """Whether no further attempt is worth while: what has taken long will do so again."""
        return attempt == CREATE_ATTEMPTS or self._clock() - began >= SLOW_SECONDS

    async def _made(
        self, pool: Pool, state: PoolState, body: Mapping[str, Any], answer: bytes, began: float
    ) -> None:
        """The API server has made a pod: see what came of it."""
        name = body["metadata"]["name"]
        try:
            created = msgspec.json.decode(answer, type=Pod)
            altered = forbidden_mutation(body, answer)
            self._checker.observe(pool.uid, answer)
        except UNREADABLE as error:
            # Something between us and the API server answered in its place.
            state.expectations.creation_unknown(name)
            raise UnknownOutcomeError(f"POST of pod {name}: no pod: {error}") from error
        state.expectations.creation_succeeded(name)
        if altered:
            await self._discard(pool, state, created)
            raise PodAlteredError(altered)
        self._tracker.track(created.metadata.uid, began)

    async def _discard(self, pool: Pool, state: PoolState, pod: Pod) -> None:
        """Delete a pod that perhaps no watch will ever show; if that fails it takes its room."""
        name, uid = pod.metadata.name, pod.metadata.uid
        path = resource_path("v1", "pods", pool.namespace, name)
        state.expectations.expect_deletion(uid)
        for attempt in range(1, DELETE_ATTEMPTS + 1):
            try:
                async with self._deletes.take(pool.uid):
                    await self._client.delete(path, uid=uid)
            except KubeError as error:
                gone = isinstance(error, ApiError) and (error.not_found or error.conflict)
                if not gone:
                    logger.warning("pod %s: %s", name, error, extra=pool.reference.log)
                    await asyncio.sleep(0.2 * attempt)
                    continue
            state.expectations.creation_observed(name)
            return
        state.expectations.deletion_unknown(uid)

    def _refused(self, pool: Pool, state: PoolState, error: KubeError) -> None:
        reason, message = create_failure_reason(error), str(error)
        if reason is Reason.NAMESPACE_TERMINATING:
            # Nobody's failure.
            state.back_off(reason, NAMESPACE_TERMINATING, self._wall())
            return
        if (
            isinstance(error, ApiError)
            and reason is Reason.CREATE_FAILED
            and not (error.status >= 500 or error.conflict)
        ):
            # The dry run had accepted it: have it looked at again.
            self._checker.invalidate(pool.uid)
        self._observer.sandbox_failed(pool, str(reason))
        state.back_off(reason, message, self._wall())
        logger.warning("%s: a pod was refused: %s", reason, error, extra=pool.reference.log)


def create_failure_reason(error: KubeError) -> Reason:
    """Name the cause of a create that was refused."""
    if isinstance(error, PodAlteredError):
        return Reason.POD_ALTERED
    if isinstance(error, ApiError) and error.namespace_terminating:
        return Reason.NAMESPACE_TERMINATING
    if isinstance(error, ApiError) and is_quota_exceeded(error):
        return Reason.QUOTA_EXCEEDED
    return Reason.CREATE_FAILED
