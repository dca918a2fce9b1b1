"""Serves BatchSandboxes: claim, task, address, status."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import msgspec

from sandboxpool.api import names as own_names
from sandboxpool.api.opensandbox import LABEL_OPENSANDBOX, OptIn
from sandboxpool.api.reasons import Reason
from sandboxpool.api.v1alpha1 import ClaimPhase, SandboxClaim
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.errors import ApiError, KubeError
from sandboxpool.kube.events import EventRecorder
from sandboxpool.opensandbox import decide, names, status
from sandboxpool.opensandbox.collection import Collection
from sandboxpool.opensandbox.executor import DeliveryError, Executor, TaskEndedError
from sandboxpool.opensandbox.kinds import (
    BatchSandbox,
    BatchSandboxStatus,
    Mirror,
    SandboxPool,
)
from sandboxpool.opensandbox.metrics import BridgeMetrics
from sandboxpool.opensandbox.mirror import about as about_pool
from sandboxpool.opensandbox.mirror import is_mirror_of
from sandboxpool.opensandbox.outlook import DEFECT_SECONDS, Outlook, outlook_of
from sandboxpool.opensandbox.reasons import BridgeReason
from sandboxpool.util.references import ObjectReference
from sandboxpool.util.resource_version import parse_resource_version

logger = logging.getLogger(__name__)

# A claim that was created and does not appear in the cache is created again after this time.
CLAIM_UNSEEN_SECONDS = 10.0
# The garbage collector deletes the claims of deleted BatchSandboxes; afterwards the bridge does.
COLLECT_SECONDS = 10.0
QUOTA_RETRY_SECONDS = 2.0
RECHECK_SECONDS = 1.0

Key = tuple[str, str]


@dataclass(slots=True)
class _Request:
    """What is remembered of a BatchSandbox; losing it is harmless.

    Attributes:
        first_seen: when it was first observed, on the monotonic clock.
        claim_requested_at: when its claim was created; None if the cache has shown the claim.
        bound: whether its claim was seen bound.
    """

    first_seen: float
    claim_requested_at: float | None = None
    bound: bool = False


class _ChangedError(KubeError):
    """A write was refused, as the BatchSandbox has changed since it was looked at."""


class SandboxReconciler:
    """Reconciles BatchSandboxes.

    Args:
        client: the API client.
        sandboxes: the BatchSandboxes.
        claims: the claims of the bridge.
        pools: the SandboxPools.
        mirrors: OpenSandbox's Pools.
        executor: delivers tasks.
        events: records what an SRE has to know.
        metrics: observes requests.
        enqueue: adds a BatchSandbox to the work queue.
        exclusive: whether no other controller serves BatchSandboxes.
        wall: the API server's time, in seconds since the epoch.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        *,
        client: ApiClient,
        sandboxes: Collection[BatchSandbox],
        claims: Collection[SandboxClaim],
        pools: Collection[SandboxPool],
        mirrors: Collection[Mirror],
        executor: Executor,
        events: EventRecorder,
        metrics: BridgeMetrics,
        enqueue: Callable[[Key], None],
        exclusive: bool,
        wall: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._sandboxes = sandboxes
        self._claims = claims
        self._pools = pools
        self._mirrors = mirrors
        self._executor = executor
        self._events = events
        self._metrics = metrics
        self._enqueue = enqueue
        self._exclusive = exclusive
        self._wall = wall
        self._clock = clock
        self._requests: dict[str, _Request] = {}
        # Objects as the API server returned them after our writes, until the watch shows them.
        self._written: dict[Key, BatchSandbox] = {}
        # BatchSandboxes without an answer, by their pool.
        self._unsettled: defaultdict[Key, set[Key]] = defaultdict(set)
        # Since when requests to a pool fail.
        self._defect_since: dict[Key, float] = {}
        self._gone_since: dict[Key, float] = {}
        self._knows_capacity_condition = True

    # --- Watch events ----------------------------------------------------------------------------

    def sandbox_changed(self, old: BatchSandbox | None, new: BatchSandbox | None) -> None:
        """A BatchSandbox was created, changed or deleted."""
        current = new or old
        assert current is not None, "a change has a state before or after it"
        key = current.key
        if new is None:
            self._requests.pop(current.uid, None)
            latest = self._written.pop(key, current)
            if not (latest.settled or current.settled):
                self._metrics.withdrawn(current.pool_key)
            self._gone_since[key] = self._clock()
        else:
            self._requests.setdefault(new.uid, _Request(self._clock()))
            self._gone_since.pop(key, None)
            known = self._written.get(key)
            if known is not None and not _is_newer(known, new):
                del self._written[key]
        if old is not None:
            self._settle(old)
        if new is not None and not new.settled:
            self._unsettled[new.pool_key].add(key)
        self._enqueue(key)

    def claim_changed(self, old: SandboxClaim | None, new: SandboxClaim | None) -> None:
        """A claim of the bridge was created, changed or deleted."""
        current = new or old
        assert current is not None, "a change has a state before or after it"
        owner = current.metadata.controller
        request = self._requests.get(owner.uid) if owner is not None else None
        if request is not None:
            request.claim_requested_at = None
        self._enqueue(current.key)

    def pool_changed(self, old: SandboxPool | None, new: SandboxPool | None) -> None:
        """A SandboxPool was created, changed or deleted."""
        current = new or old
        assert current is not None, "a change has a state before or after it"
        if outlook_of(current.metadata.name, new).defect:
            self._defect_since.setdefault(current.key, self._clock())
        else:
            self._defect_since.pop(current.key, None)
        if new is None or new.mode is None:
            self._metrics.close_pool(current.key)
        else:
            self._metrics.open_pool(current.key)
        self._enqueue_unsettled(current.key)

    def mirror_changed(self, old: Mirror | None, new: Mirror | None) -> None:
        """One of OpenSandbox's Pools was created, changed or deleted."""
        current = new or old
        assert current is not None, "a change has a state before or after it"
        self._enqueue_unsettled((current.metadata.namespace, current.metadata.name))

    def waiting(self) -> Iterator[Key]:
        """The pool of each BatchSandbox that has no answer."""
        for pool, keys in self._unsettled.items():
            for _ in keys:
                yield pool

    def _enqueue_unsettled(self, pool: Key) -> None:
        for key in self._unsettled.get(pool, ()):
            self._enqueue(key)

    def _settle(self, sandbox: BatchSandbox) -> None:
        keys = self._unsettled[sandbox.pool_key]
        keys.discard(sandbox.key)
        if not keys:
            del self._unsettled[sandbox.pool_key]

    # --- One BatchSandbox ------------------------------------------------------------------------

    async def reconcile(self, key: Key) -> float | None:
        """Take the next step of one BatchSandbox; return when to look at it again."""
        sandbox = self._latest(key)
        if sandbox is None:
            return await self._collect(key)
        self._report_other_controller(sandbox)
        seconds = await self._carry_out(decide.next_step(self._view(sandbox)), sandbox)
        expires = decide.expiry(sandbox)
        if expires is None:
            return seconds
        left = max(expires - self._wall(), RECHECK_SECONDS)
        return left if seconds is None else min(left, seconds)

    def _latest(self, key: Key) -> BatchSandbox | None:
        return self._written.get(key) or self._sandboxes.get(*key)

    def _view(self, sandbox: BatchSandbox) -> decide.View:
        pool = self._pools.get(*sandbox.pool_key)
        mirrored = pool is not None and is_mirror_of(self._mirrors.get(*pool.key), pool)
        outlook = outlook_of(sandbox.spec.poolRef, pool)
        request = self._requests.setdefault(sandbox.uid, _Request(self._clock()))
        claim = self._claims.get(*sandbox.key)
        if claim is not None and claim.bound and not request.bound:
            request.bound = True
            self._metrics.step("claim", self._clock() - request.first_seen)
        requested = request.claim_requested_at
        return decide.View(
            sandbox=sandbox,
            pool=pool,
            mirrored=mirrored,
            claim=claim,
            claim_requested=requested is not None
            and self._clock() - requested < CLAIM_UNSEEN_SECONDS,
            outlook=outlook,
            waiting_since=self._waiting_since(sandbox, request, outlook),
            clock=self._clock(),
            now=self._wall(),
            exclusive=self._exclusive,
        )

    def _waiting_since(self, sandbox: BatchSandbox, request: _Request, outlook: Outlook) -> float:
        since = request.first_seen
        if outlook.defect:
            return max(since, self._defect_since.get(sandbox.pool_key, since))
        return since

    async def _carry_out(self, step: decide.Step, sandbox: BatchSandbox) -> float | None:
        match step:
            case decide.Nothing(seconds):
                return seconds
            case decide.CreateClaim(mode):
                return await self._claim(sandbox, mode)
            case decide.Serve(claim):
                return await self._serve(sandbox, claim)
            case decide.Await(reason, message):
                await self._report_waiting(sandbox, reason, message)
                return CLAIM_UNSEEN_SECONDS
            case decide.Fail(reason, message):
                await self._fail(sandbox, reason, message)
            case decide.Lose(reason, message, verify):
                return await self._lose(sandbox, reason, message, verify=verify)
            case decide.Delete(message):
                await self._delete(sandbox, message)
            case decide.Release(claim):
                await self._delete_claim(claim)
            case decide.AnswerPause():
                had_task = sandbox.status.taskRunning > 0
                await self._write_status(
                    sandbox, status.running(sandbox, with_task=had_task, now=self._wall())
                )
        return None

    # --- Claims ----------------------------------------------------------------------------------

    async def _claim(self, sandbox: BatchSandbox, mode: OptIn) -> float | None:
        try:
            await self._client.create(
                _path(own_names.API_VERSION, own_names.CLAIMS, sandbox.key[0]),
                _claim_of(sandbox, mode),
            )
        except ApiError as error:
            if error.namespace_terminating:
                return None
            if error.already_exists:
                return await self._claim_exists(sandbox)
            if error.status == 403 and "exceeded quota" in error.message:
                await self._report_waiting(sandbox, Reason.QUOTA_EXCEEDED, error.message)
                return QUOTA_RETRY_SECONDS
            if not error.refused:
                raise
            await self._fail(
                sandbox, BridgeReason.CLAIM_REFUSED, f"the SandboxClaim is refused: {error.message}"
            )
            return None
        self._note_claim(sandbox)
        return DEFECT_SECONDS

    def _note_claim(self, sandbox: BatchSandbox) -> None:
        request = self._requests.get(sandbox.uid)
        if request is not None and self._claims.get(*sandbox.key) is None:
            request.claim_requested_at = self._clock()

    async def _claim_exists(self, sandbox: BatchSandbox) -> float | None:
        """A claim of this name exists that the cache does not show."""
        claim = await self._find_claim(sandbox)
        if claim is None:
            # It was deleted meanwhile.
            return RECHECK_SECONDS
        if _owner_uid(claim) != sandbox.uid:
            return await self._carry_out(decide.with_foreign_claim(sandbox, claim), sandbox)
        self._note_claim(sandbox)
        return await self._with_unseen_claim(sandbox, claim)

    async def _find_claim(self, sandbox: BatchSandbox) -> SandboxClaim | None:
        body = await self._client.find(_path(own_names.API_VERSION, own_names.CLAIMS, *sandbox.key))
        return msgspec.json.decode(body, type=SandboxClaim) if body is not None else None

    async def _with_unseen_claim(self, sandbox: BatchSandbox, claim: SandboxClaim) -> float:
        """Go on with a claim that the cache does not show: not yet, or as it lost its labels."""
        step = decide.next_step(replace(self._view(sandbox), claim=claim))
        seconds = await self._carry_out(step, sandbox)
        return CLAIM_UNSEEN_SECONDS if seconds is None else min(seconds, CLAIM_UNSEEN_SECONDS)

    async def _delete_claim(self, claim: SandboxClaim) -> None:
        try:
            await self._client.delete(
                _path(own_names.API_VERSION, own_names.CLAIMS, *claim.key), uid=claim.uid
            )
        except ApiError as error:
            if not error.not_found and not error.conflict:
                raise

    async def _collect(self, key: Key) -> float | None:
        """Delete the claim of a BatchSandbox that was deleted, if it is still there."""
        claim = self._claims.get(*key)
        owner = claim.metadata.controller if claim is not None else None
        if (
            claim is None
            or claim.deleting
            or (owner is not None and owner.kind != names.BATCH_SANDBOX_KIND)
        ):
            self._gone_since.pop(key, None)
            return None
        left = self._gone_since.setdefault(key, self._clock()) + COLLECT_SECONDS - self._clock()
        if left > 0:
            return left
        body = await self._client.find(_path(names.API_VERSION, names.BATCH_SANDBOXES, *key))
        if body is not None and owner is not None:
            found = msgspec.json.decode(body, type=BatchSandbox)
            if found.uid == owner.uid:
                # The watch will show it.
                return COLLECT_SECONDS
        await self._delete_claim(claim)
        return None

    # --- The sandbox -----------------------------------------------------------------------------

    async def _serve(self, sandbox: BatchSandbox, claim: SandboxClaim) -> float | None:
        address = claim.status.podIP or ""
        prestarted = claim.metadata.labels.get(LABEL_OPENSANDBOX) == OptIn.PRESTARTED
        task = None if prestarted else sandbox.task
        if task is not None:
            try:
                await self._start_task(address, f"{sandbox.metadata.name}-0", task)
            except (DeliveryError, TaskEndedError) as error:
                return await self._task_failed(sandbox, error)
        began = self._clock()
        published = await self._annotate(sandbox, _published(sandbox, claim))
        if published is None:
            return None
        written = await self._write_status(
            published, status.running(published, with_task=task is not None, now=self._wall())
        )
        if written:
            self._metrics.step("publish", self._clock() - began)
            request = self._requests.get(sandbox.uid)
            since = request.first_seen if request is not None else began
            self._metrics.served(sandbox.pool_key, self._clock() - since)
        return None

    async def _start_task(self, address: str, name: str, process: msgspec.Raw) -> None:
        began = self._clock()
        await self._executor.deliver(address, name, process)
        delivered = self._clock()
        self._metrics.step("task", delivered - began)
        answers = await self._executor.wait_until_ready(address, name)
        self._metrics.step("execd", self._clock() - delivered)
        self._metrics.task("Delivered" if answers else "NotAnswering")

    async def _task_failed(
        self, sandbox: BatchSandbox, error: DeliveryError | TaskEndedError
    ) -> float | None:
        claim = self._claims.get(*sandbox.key)
        if claim is not None and claim.status.phase is not ClaimPhase.BOUND:
            # The sandbox was lost meanwhile: the claim says why.
            return 0.0
        reason = (
            BridgeReason.TASK_FAILED
            if isinstance(error, TaskEndedError)
            else BridgeReason.TASK_NOT_DELIVERED
        )
        self._metrics.task(reason)
        await self._fail(sandbox, reason, str(error))
        return None

    async def _lose(
        self, sandbox: BatchSandbox, reason: str, message: str, *, verify: bool
    ) -> float | None:
        if verify:
            claim = await self._find_claim(sandbox)
            if claim is not None and _owner_uid(claim) == sandbox.uid:
                return await self._with_unseen_claim(sandbox, claim)
        await self._fail(sandbox, reason, message)
        return None

    # --- Writes ----------------------------------------------------------------------------------

    async def _report_waiting(self, sandbox: BatchSandbox, reason: str, message: str) -> None:
        known = sandbox.status.condition(status.CAPACITY_PENDING)
        if known is not None and known.reason == reason:
            # Only the reason is worth a write: the server passes no message on.
            return
        wanted = status.pending(sandbox, reason, message, self._wall())
        if not self._knows_capacity_condition:
            wanted = status.without_capacity_condition(wanted)
        try:
            await self._write_status(sandbox, wanted)
        except ApiError as error:
            if error.status != 422 or not self._knows_capacity_condition:
                raise
            await self._write_status(sandbox, status.without_capacity_condition(wanted))
            self._knows_capacity_condition = False
            logger.warning(
                "the installed CRD of BatchSandboxes does not know the condition %s: without"
                " capacity, applications get a time-out instead of 429; update OpenSandbox's CRDs",
                status.CAPACITY_PENDING,
            )

    async def _fail(self, sandbox: BatchSandbox, reason: str, message: str) -> None:
        if sandbox.endpoints not in (None, names.NO_ENDPOINTS):
            # First the address: it may soon be that of another sandbox.
            no_address: dict[str, str | None] = {names.ANNOTATION_ENDPOINTS: names.NO_ENDPOINTS}
            annotated = await self._annotate(sandbox, no_address)
            if annotated is None:
                return
            sandbox = annotated
        wanted = status.failed(sandbox, reason, message, self._wall())
        if await self._write_status(sandbox, wanted):
            count = self._metrics.lost if sandbox.published else self._metrics.answered
            count(sandbox.pool_key, reason)

    async def _annotate(
        self, sandbox: BatchSandbox, annotations: dict[str, str | None]
    ) -> BatchSandbox | None:
        """Patch annotations; return the object, or None if it does not exist any more."""
        metadata = {"uid": sandbox.uid, "resourceVersion": sandbox.metadata.resourceVersion}
        body = {"metadata": {**metadata, "annotations": annotations}}
        try:
            answer = await self._client.merge_patch(_path_of(sandbox), body)
        except ApiError as error:
            if error.not_found:
                return None
            if error.conflict:
                await self._raise_if_changed(sandbox)
            raise
        return self._remember(answer)

    async def _write_status(self, sandbox: BatchSandbox, wanted: BatchSandboxStatus) -> bool:
        """Replace the status if it differs; return whether it was written.

        On condition of the version: what a former leader sent may arrive late.
        """
        if wanted == sandbox.status:
            return False
        try:
            answer = await self._client.replace_status(
                _path_of(sandbox),
                sandbox.uid,
                wanted.to_wire(),
                version=sandbox.metadata.resourceVersion,
            )
        except ApiError as error:
            if error.not_found:
                return False
            if error.status == 422:
                # A failed test of the version and an invalid status both give a 422.
                await self._raise_if_changed(sandbox)
            raise
        self._remember(answer)
        return True

    async def _raise_if_changed(self, sandbox: BatchSandbox) -> None:
        """Read a BatchSandbox whose write was refused, so that the next try knows its state."""
        body = await self._client.find(_path_of(sandbox))
        found = self._remember(body) if body is not None else None
        if found is None or _is_newer(found, sandbox):
            raise _ChangedError(f"BatchSandbox {sandbox.metadata.name!r} has changed meanwhile")

    def _remember(self, answer: bytes) -> BatchSandbox:
        written = msgspec.json.decode(answer, type=BatchSandbox)
        cached = self._sandboxes.get(*written.key)
        if cached is not None and cached.uid == written.uid and _is_newer(written, cached):
            self._written[written.key] = written
        return written

    async def _delete(self, sandbox: BatchSandbox, message: str) -> None:
        try:
            await self._client.delete(
                _path_of(sandbox),
                uid=sandbox.uid,
                # A renewal in the meantime wins.
                resource_version=sandbox.metadata.resourceVersion,
            )
        except ApiError as error:
            if error.not_found or error.conflict:
                return
            raise
        self._events.normal(_about(sandbox), BridgeReason.EXPIRED, f"deleted: {message}")

    def _report_other_controller(self, sandbox: BatchSandbox) -> None:
        if names.FOREIGN_FINALIZER not in sandbox.metadata.finalizers:
            return
        pool = self._pools.get(*sandbox.pool_key)
        if pool is None or pool.mode is None:
            return
        self._events.warning(
            about_pool(pool),
            BridgeReason.OTHER_CONTROLLER,
            f"OpenSandbox's own controller works in this namespace too: it has put the finalizer"
            f" {names.FOREIGN_FINALIZER} on BatchSandbox {sandbox.metadata.name!r} of this pool;"
            " remove the controller, or take this namespace out of the ones that it serves",
        )


def _is_newer(one: BatchSandbox, other: BatchSandbox) -> bool:
    return parse_resource_version(one.metadata.resourceVersion) > parse_resource_version(
        other.metadata.resourceVersion
    )


def _claim_of(sandbox: BatchSandbox, mode: OptIn) -> dict[str, object]:
    namespace, name = sandbox.key
    spec: dict[str, object] = {"poolName": sandbox.spec.poolRef}
    asserted = sandbox.metadata.annotations.get(names.ANNOTATION_RUNTIME_CLASS)
    if asserted is not None:
        spec["runtimeClassName"] = asserted
    return {
        "apiVersion": own_names.API_VERSION,
        "kind": own_names.CLAIM_KIND,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {
                names.LABEL_MANAGED_BY: names.MANAGED_BY,
                LABEL_OPENSANDBOX: str(mode),
            },
            "ownerReferences": [
                {
                    "apiVersion": names.API_VERSION,
                    "kind": names.BATCH_SANDBOX_KIND,
                    "name": name,
                    "uid": sandbox.uid,
                    "controller": True,
                    "blockOwnerDeletion": False,
                }
            ],
        },
        "spec": spec,
    }


def _owner_uid(claim: SandboxClaim) -> str:
    owner = claim.metadata.controller
    return owner.uid if owner is not None else ""


def _published(sandbox: BatchSandbox, claim: SandboxClaim) -> dict[str, str | None]:
    """The annotations that tell the server, and the application, of the sandbox."""
    allocated = {
        "pods": [claim.status.podName],
        "poolRef": sandbox.spec.poolRef,
        "generation": sandbox.metadata.generation,
    }
    runtime = claim.status.runtime
    return {
        names.ANNOTATION_SERVED: "served",
        names.ANNOTATION_ENDPOINTS: decide.endpoints_of(claim),
        names.ANNOTATION_ALLOC_STATUS: _json(allocated),
        names.ANNOTATION_RUNTIME_CLASS: runtime.className if runtime else None,
        names.ANNOTATION_RUNTIME_HANDLER: runtime.handler if runtime else None,
        names.ANNOTATION_EVIDENCE: runtime.evidence if runtime else None,
    }


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _about(sandbox: BatchSandbox) -> ObjectReference:
    return ObjectReference(names.API_VERSION, names.BATCH_SANDBOX_KIND, *sandbox.key, sandbox.uid)


def _path_of(sandbox: BatchSandbox) -> str:
    return _path(names.API_VERSION, names.BATCH_SANDBOXES, *sandbox.key)


def _path(api_version: str, plural: str, namespace: str, name: str | None = None) -> str:
    return resource_path(api_version, plural, namespace, name)
