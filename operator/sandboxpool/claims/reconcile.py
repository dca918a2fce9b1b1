"""A claim's way: reserve, two writes, watch over it, expire, retire.

Write 1 makes the pod the claim's (conditional on the pod's version), write 2 tells the claim
(conditional on the claim's). Whatever interrupts them, the label with the claim's uid on the
pod is the truth from which the next attempt goes on.
"""

import asyncio
import logging
from collections.abc import Callable
from enum import Enum
from typing import Protocol

import msgspec

from sandboxpool.api import names
from sandboxpool.api.core import Pod
from sandboxpool.api.times import epoch
from sandboxpool.cache import Cluster
from sandboxpool.claims import decide
from sandboxpool.claims.allocator import Allocator, Candidate
from sandboxpool.claims.claim import Claim, ClaimStatus
from sandboxpool.claims.offers import Offers
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.errors import ApiError, KubeError, UnknownOutcomeError
from sandboxpool.kube.events import EventRecorder
from sandboxpool.pools.members import owner_of
from sandboxpool.pools.pool import Pool
from sandboxpool.pools.store import PoolStore
from sandboxpool.pools.template import ClaimRef, handed_over
from sandboxpool.reasons import Reason
from sandboxpool.references import Reference
from sandboxpool.runtimes.diagnosis import cut

logger = logging.getLogger(__name__)

Key = tuple[str, str]

READ_BACK_ATTEMPTS = 8
STATUS_ATTEMPTS = 4
# A claim whose pod is on its way out is looked at again after this many seconds.
LEAVING_RECHECK_SECONDS = 2.0
# The longest pause between two looks at a claim that wants a sandbox to be started for it.
COLD_RECHECK_SECONDS = 30.0

_decode_pod = msgspec.json.Decoder(Pod).decode
_decode_claim = msgspec.json.Decoder(Claim).decode


class Written(Enum):
    """What became of the write of a claim's status."""

    DONE = "done"
    GONE = "gone"
    CHANGED = "changed"
    """The claim is not as it was seen. The watch brings it as it is, and has it looked at again."""


class ColdStarter(Protocol):
    """Makes a pod for one claim; kept by the pools, who own templates and ceilings."""

    def is_starting_cold(self, pool: Pool, claim_uid: str) -> bool:
        """Whether the claim's pod was asked for and is not seen yet."""

    def want_cold(self, pool: Pool, claim: ClaimRef) -> decide.Refusal | None:
        """Start a sandbox for a claim that is in line, in its turn; return why it has to wait."""

    def cold_failed(self, pool: Pool, message: str) -> None:
        """What was started for a claim is of no use to it."""


class ClaimObserver(Protocol):
    """Told how claims end, for metrics."""

    def bound(self, pool: Pool, source: str, seconds: float) -> None:
        """A claim was bound so many seconds after it was seen."""

    def finished(self, namespace: str, pool: str, phase: str, reason: str) -> None:
        """A claim failed, expired or lost its pod."""


class ClaimReconciler:
    """Works on one claim at a time; claims of all pools, concurrently."""

    def __init__(
        self,
        *,
        client: ApiClient,
        get: Callable[[str, str], Claim | None],
        cluster: Cluster,
        pools: PoolStore,
        allocator: Allocator,
        offers: Offers,
        cold: ColdStarter,
        events: EventRecorder,
        observer: ClaimObserver,
        wall: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._get = get
        self._cluster = cluster
        self._pools = pools
        self._allocator = allocator
        self._offers = offers
        self._cold = cold
        self._events = events
        self._observer = observer
        self._wall = wall
        self._clock = clock
        self._seen: dict[str, float] = {}
        # Claims whose binding was written and not yet seen in the cache, by uid.
        self._written: set[str] = set()
        # Pods that were made a claim's and are perhaps not yet so in the cache, by claim uid.
        self._taken: dict[str, Pod] = {}
        self._sending: set[str] = set()
        # Since when what was started for a claim is ready and may not be handed out, by claim.
        self._unfit_since: dict[str, float] = {}

    def seen(self, old: Claim | None, new: Claim | None) -> None:
        """The cache has changed; called before the claim is queued."""
        if new is not None:
            if new.status.phase not in ("", "Pending"):
                self._written.discard(new.uid)
                self._seen.pop(new.uid, None)
            elif old is None:
                self._seen[new.uid] = self._clock()
        if old is not None and (new is None or new.deleting) and old.uid not in self._sending:
            self._abandon(old.uid)

    def _abandon(self, uid: str) -> None:
        self._seen.pop(uid, None)
        self._written.discard(uid)
        self._taken.pop(uid, None)
        self._unfit_since.pop(uid, None)
        self._step_back(uid)

    def _step_back(self, uid: str) -> None:
        """Take a claim out of the line, and offer to others what it had reserved."""
        freed = self._allocator.abandon(uid)
        if freed is not None:
            pod = self._cluster.pods.get(freed[1].uid)
            if pod is not None:
                self._offers.refresh([pod])

    async def reconcile(self, key: Key) -> float | None:
        """Bring a claim one step on; return the seconds until time alone will change it."""
        claim = self._get(*key)
        if claim is None or claim.deleting:
            # Its pod goes with it: the garbage collector follows the owner reference.
            return None
        if claim.finished:
            return await self._retire(claim)
        if claim.bound:
            return await self._watch_over(claim)
        if claim.uid in self._written:
            return None
        return await self._serve(claim)

    # --- Not bound yet -------------------------------------------------------------------------

    async def _serve(self, claim: Claim) -> float | None:
        pool = self._pools.get((claim.metadata.namespace, claim.spec.poolName))
        own = self._cluster.pods.of_claim(*claim.identity)
        if not own and claim.uid in self._taken:
            own = [self._taken[claim.uid]]
        if own:
            return await self._continue(claim, pool, own)
        left = decide.bind_deadline(claim) - self._wall()
        if left <= 0:
            await self._finish(claim, "Failed", Reason.BIND_TIMEOUT, self._why_waiting(claim, pool))
            return None
        if pool is None or pool.deleting or pool.spec is None:
            self._step_back(claim.uid)
            await self._say_pending(claim, Reason.POOL_NOT_FOUND, self._why_waiting(claim, pool))
            return left
        refusal = decide.refuse(claim, pool.spec)
        if refusal is not None:
            await self._finish(claim, "Failed", refusal.reason, refusal.message)
            return None
        cold = claim.spec.onEmpty == "Create"
        if cold and self._cold.is_starting_cold(pool, claim.uid):
            # The watch is late: whatever is warm meanwhile would be a second one.
            return await self._start_cold(claim, pool, left)
        candidate = self._allocator.request(pool.uid, claim.uid)
        if candidate is not None:
            try:
                bound = await self._bind(claim, pool, candidate)
            except ApiError as error:
                if error.status < 500:
                    message = f"the API server refuses to give this claim a pod: {error.message}"
                    await self._say_pending(claim, Reason.BINDING_REFUSED, cut(message))
                raise
            if bound or not self._still_wanted(claim):
                return None
        return await self._none_warm(claim, pool, left)

    async def _none_warm(self, claim: Claim, pool: Pool, left: float) -> float | None:
        match claim.spec.onEmpty:
            case "Fail":
                await self._finish(
                    claim,
                    "Failed",
                    Reason.NO_WARM_SANDBOX,
                    f"pool {pool.name!r} has no warm sandbox and spec.onEmpty is Fail: raise the "
                    "pool's replicas, or use onEmpty Wait or Create",
                )
                return None
            case "Create":
                return await self._start_cold(claim, pool, left)
            case _:
                # In line: the offer of a pod wakes it. Waiting costs no write.
                return left

    async def _start_cold(self, claim: Claim, pool: Pool, left: float) -> float | None:
        """The pool decides whose turn it is; each change of its mind wakes the claim."""
        if self._cold.is_starting_cold(pool, claim.uid):
            # Out of the line: a warm pod, even one that came meanwhile, would be a second one.
            self._step_back(claim.uid)
            await self._say_pending(
                claim, Reason.STARTING_COLD, "no sandbox was warm: one is being started"
            )
        else:
            refusal = self._cold.want_cold(pool, decide.reference(claim))
            if refusal is not None:
                await self._say_pending(claim, refusal.reason, refusal.message)
        return min(left, COLD_RECHECK_SECONDS)

    def _why_waiting(self, claim: Claim, pool: Pool | None) -> str:
        waited = f"not bound within spec.bindTimeoutSeconds ({claim.spec.bindTimeoutSeconds} s)"
        if pool is None or pool.deleting:
            return f"SandboxPool {claim.spec.poolName!r} does not exist in this namespace"
        if pool.spec is None:
            return f"SandboxPool {claim.spec.poolName!r} does not fit the API: {pool.problem}"
        return f"{waited}; pool {pool.name!r} says: {pool.says()}"

    async def _continue(self, claim: Claim, pool: Pool | None, own: list[Pod]) -> float | None:
        """A pod carries the claim already: an earlier attempt came that far, or it starts cold."""
        self._step_back(claim.uid)
        pod, others = decide.choose(claim, own)
        for other in others:
            await self._delete_pod(other, "the claim has another one")
        if pod.metadata.deletionTimestamp is not None:
            return LEAVING_RECHECK_SECONDS
        cold = pod.metadata.annotations.get(names.ANNOTATION_SOURCE) == "Cold"
        if cold and not self._offers.is_fit(pod, pool):
            return await self._await_cold(claim, pool, pod)
        if not cold and self._offers.is_wrong(pod, pool):
            # Its owner says that it was bound, which an author of pods in this namespace can say.
            await self._delete_pod(pod, "it is not of the claim's pool, class and proof")
            return LEAVING_RECHECK_SECONDS
        await self._tell(claim, pool, pod, source="Cold" if cold else "Warm")
        return None

    async def _await_cold(self, claim: Claim, pool: Pool | None, pod: Pod) -> float | None:
        """Wait for it. What does not start the pool replaces, as it does with its own."""
        left = decide.bind_deadline(claim) - self._wall()
        if left <= 0:
            # Once the claim has failed its pod goes.
            await self._finish(claim, "Failed", Reason.BIND_TIMEOUT, self._why_waiting(claim, pool))
            return None
        why = self._useless_because(claim, pool, pod)
        if why is not None:
            # Never bound, so another may be made.
            if pool is not None:
                self._cold.cold_failed(pool, f"{pod.metadata.name}: {why}")
            await self._delete_pod(pod, why)
        return min(left, COLD_RECHECK_SECONDS)

    def _useless_because(self, claim: Claim, pool: Pool | None, pod: Pod) -> str | None:
        """Why a claim should not wait any longer for what was started for it."""
        if pod.finished:
            return decide.lost_because(pod).message
        if self._offers.is_doubtful(pod, pool):
            return "it stands where its runtime cannot be trusted, or is not of the pool's class"
        if pod.ready and pool is not None and pool.spec is not None:
            # What it lacks may come, such as a proof of its node; elsewhere it may be there.
            since = self._unfit_since.setdefault(claim.uid, self._clock())
            if self._clock() - since > pool.spec.startup.timeout_seconds:
                return "it is ready, and still may not be handed out"
        return None

    # --- The two writes ------------------------------------------------------------------------

    async def _bind(self, claim: Claim, pool: Pool, first: Candidate) -> bool:
        """Hand out pods until one write succeeds; False if none is left or the claim is gone."""
        self._sending.add(claim.uid)
        try:
            candidate: Candidate | None = first
            while candidate is not None and self._still_wanted(claim):
                pod = await self._take(claim, pool, candidate)
                if pod is not None:
                    self._allocator.settle(claim.uid)
                    self._taken[claim.uid] = pod
                    await self._tell(claim, pool, pod, source="Warm")
                    return True
                candidate = self._allocator.refuse(claim.uid)
            return False
        finally:
            self._sending.discard(claim.uid)
            if not self._still_wanted(claim):
                self._abandon(claim.uid)

    def _still_wanted(self, claim: Claim) -> bool:
        current = self._get(*claim.key)
        return current is not None and current.uid == claim.uid and not current.deleting

    async def _take(self, claim: Claim, pool: Pool, candidate: Candidate) -> Pod | None:
        """Write 1; None if the pod is no longer what it was."""
        cached = self._cluster.pods.get(candidate.uid)
        if cached is None or not self._offers.may_hand_out(cached, pool):
            return None
        body = {
            "metadata": {
                "resourceVersion": candidate.version,
                **handed_over(
                    decide.reference(claim),
                    labels=cached.metadata.labels,
                    annotations=cached.metadata.annotations,
                ),
            }
        }
        path = resource_path("v1", "pods", candidate.namespace, candidate.name)
        try:
            return _decode_pod(await self._client.merge_patch(path, body))
        except ApiError as error:
            if error.not_found:
                return None
            if error.status < 500 and not error.conflict:
                # A policy refuses what this claim puts on its pod: no other pod would do better.
                # Pod and claim stay together, and it is tried again ever more slowly.
                raise
            failure: KubeError = error
        except UnknownOutcomeError as error:
            logger.warning("binding: %s", error, extra=_about(claim).log)
            failure = error
        return await self._read_back(claim, path, candidate, failure)

    async def _read_back(
        self, claim: Claim, path: str, candidate: Candidate, failure: KubeError
    ) -> Pod | None:
        """After a conflict or an unknown outcome only the pod itself can say whose it is.

        Where it is nobody's, as it was, the write may still be on its way: pod and claim stay
        together, as another pod would be the claim's second one then.
        """
        for attempt in range(READ_BACK_ATTEMPTS):
            try:
                pod = _decode_pod(await self._client.get(path))
            except ApiError as error:
                if error.not_found:
                    return None
            except UnknownOutcomeError:
                pass
            else:
                if pod.metadata.uid != candidate.uid:
                    return None
                owner = pod.metadata.controller
                if owner is not None and owner.uid == claim.uid:
                    return pod
                conflict = isinstance(failure, ApiError) and failure.conflict
                if pod.metadata.resourceVersion == candidate.version and not conflict:
                    raise failure
                return None
            await asyncio.sleep(min(0.1 * 2**attempt, 5.0))
        raise UnknownOutcomeError(f"{path}: nobody can say whether it was given to {claim.key}")

    async def _tell(self, claim: Claim, pool: Pool | None, pod: Pod, *, source: str) -> None:
        """Write 2: the claim's status; a claim that is gone gives its pod back to nobody."""
        now = self._wall()
        # Read before the write: the watch may show its effect before its answer is here.
        began = self._seen.get(claim.uid)
        spec = pool.spec if pool is not None else None
        ttl = decide.ttl_seconds(claim, spec)
        status = decide.bound_status(
            claim,
            pod,
            self._offers.ground(pod, pool),
            source=source,
            bound_at=now,
            expires=None if ttl is None else now + ttl,
            evidence=self._offers.evidence(pod, pool),
            now=now,
        )
        written = await self._write_status(claim, status)
        self._taken.pop(claim.uid, None)
        if written is Written.GONE:
            await self._delete_pod(pod, "its claim was deleted while it was being bound")
            return
        self._remember(claim)
        if written is Written.DONE and pool is not None and began is not None:
            self._observer.bound(pool, source, self._clock() - began)

    def _remember(self, claim: Claim) -> None:
        """That it was written is known until the watch shows it, if it has not done so already."""
        current = self._get(*claim.key)
        if current is None or current.uid != claim.uid:
            return
        if current.status.phase in ("", "Pending"):
            self._written.add(claim.uid)

    async def _write_status(self, claim: Claim, status: ClaimStatus) -> Written:
        """Write a claim's status, if it is as it was seen: nothing newer is ever overwritten."""
        path = _path(claim)
        version = claim.metadata.resourceVersion
        for attempt in range(1, STATUS_ATTEMPTS + 1):
            try:
                await self._client.replace_status(path, claim.uid, status.body(), version=version)
            except ApiError as error:
                if error.not_found:
                    return Written.GONE
                if error.status == 422:
                    # A failed test and an invalid status look alike: ask.
                    now = await self._read(*claim.key, claim.uid)
                    if now is None:
                        return Written.GONE
                    if now.status == status:
                        # By an attempt whose answer was lost.
                        return Written.DONE
                    if now.metadata.resourceVersion == version or attempt == STATUS_ATTEMPTS:
                        raise
                    if status.phase != "Bound" or now.status.phase not in ("", "Pending"):
                        return Written.CHANGED
                    # Whatever has changed, it has its pod already.
                    version = now.metadata.resourceVersion
                    continue
                if error.status < 500:
                    raise
                failure: Exception = error
            except UnknownOutcomeError as error:
                # Guarded by the version and the same every time, so it may be sent again.
                failure = error
            else:
                return Written.DONE
            if attempt == STATUS_ATTEMPTS:
                raise failure
            await asyncio.sleep(0.05 * 2**attempt)
        raise AssertionError("unreachable: the last attempt returns or raises")

    # --- Bound ---------------------------------------------------------------------------------

    async def _watch_over(self, claim: Claim) -> float | None:
        pool = self._pools.get((claim.metadata.namespace, claim.spec.poolName))
        spec = pool.spec if pool is not None else None
        now = self._wall()
        expires = decide.expiry(claim, spec)
        if expires is not None and expires <= now:
            await self._expire(claim)
            return None
        pod = self._cluster.pods.get(claim.status.podUID or "")
        if pod is None:
            pod = await self._find(claim)
        if pod is None or pod.finished:
            lost = decide.lost_because(pod)
            await self._finish(claim, "Lost", lost.reason, lost.message)
            return None
        for other in self._cluster.pods.of_claim(*claim.identity):
            if other.metadata.uid != pod.metadata.uid:
                await self._delete_pod(other, "the claim has another one")
        was = claim.status
        status = decide.bound_status(
            claim,
            pod,
            self._offers.ground(pod, pool),
            source=was.source or "Warm",
            bound_at=epoch(was.boundAt or "") or now,
            expires=expires,
            # What was known when it was handed out.
            evidence=was.runtime.evidence if was.runtime is not None else None,
            now=now,
        )
        if status != claim.status:
            await self._write_status(claim, status)
        return None if expires is None else expires - now

    async def _find(self, claim: Claim) -> Pod | None:
        """A pod that the watch no longer shows may only have lost its labels: ask the server."""
        path = resource_path(
            "v1", "pods", claim.metadata.namespace, claim.status.podName or "unknown"
        )
        try:
            pod = _decode_pod(await self._client.get(path))
        except ApiError as error:
            if error.not_found:
                return None
            raise
        return pod if pod.metadata.uid == claim.status.podUID else None

    async def _expire(self, claim: Claim) -> None:
        """Expired first, and only if nobody has changed the claim since; then the pod goes."""
        message = "spec.ttlSeconds, or the pool's limit, has passed since the binding"
        status = decide.finished_status(claim, "Expired", Reason.TTL_EXPIRED, message, self._wall())
        if await self._write_status(claim, status) is Written.DONE:
            self._report(claim, "Expired", Reason.TTL_EXPIRED, message)

    # --- Finished ------------------------------------------------------------------------------

    async def _finish(self, claim: Claim, phase: str, reason: Reason, message: str) -> None:
        self._abandon(claim.uid)
        status = decide.finished_status(claim, phase, reason, message, self._wall())
        if await self._write_status(claim, status) is Written.DONE:
            self._remember(claim)
            self._report(claim, phase, reason, message)

    def _report(self, claim: Claim, phase: str, reason: Reason, message: str) -> None:
        self._observer.finished(claim.metadata.namespace, claim.spec.poolName, phase, str(reason))
        post = self._events.normal if phase == "Expired" else self._events.warning
        post(_about(claim), str(reason), message)

    async def _retire(self, claim: Claim) -> float | None:
        """Take back the pod of a claim that has ended, and in time the claim itself."""
        if claim.status.phase != "Lost":
            # A lost claim's pod is kept: its logs say why it ended.
            for pod in self._cluster.pods.of_claim(*claim.identity):
                await self._delete_pod(pod, f"its claim is {claim.status.phase}")
        pool = self._pools.get((claim.metadata.namespace, claim.spec.poolName))
        left = decide.retain_until(claim, pool.spec if pool is not None else None) - self._wall()
        if left > 0:
            return left
        try:
            await self._client.delete(_path(claim), uid=claim.uid)
        except ApiError as error:
            if not (error.not_found or error.conflict):
                raise
        return None

    # --- Small things --------------------------------------------------------------------------

    async def _say_pending(self, claim: Claim, reason: Reason, message: str) -> None:
        status = decide.pending_status(claim, reason, message, self._wall())
        if status.conditions != claim.status.conditions:
            await self._write_status(claim, status)

    async def _delete_pod(self, pod: Pod, why: str) -> None:
        """Delete exactly this pod, if it still carries what we saw on it."""
        if pod.metadata.deletionTimestamp is not None:
            return
        about = Reference("v1", "Pod", pod.metadata.namespace, pod.metadata.name, pod.metadata.uid)
        logger.info("deleting the pod: %s", why, extra=about.log)
        try:
            await self._client.delete(
                resource_path("v1", "pods", pod.metadata.namespace, pod.metadata.name),
                uid=pod.metadata.uid,
                resource_version=pod.metadata.resourceVersion,
            )
        except ApiError as error:
            # A conflict says that it has changed since: the watch brings the new state, and with
            # it this claim again.
            if not (error.conflict or error.not_found):
                raise

    async def sweep(self) -> None:
        """Delete pods whose claim no longer exists, where no collector has done so.

        Only those of a pool that is there: anybody can name an owner that never was.
        """
        for pod in self._cluster.pods.claimed():
            owner = owner_of(pod, names.CLAIM_KIND)
            if owner is None or owner.uid in self._sending or self._pools.of(pod) is None:
                continue
            namespace = pod.metadata.namespace
            claim = self._get(namespace, owner.name)
            if claim is not None and claim.uid == owner.uid:
                continue
            if await self._read(namespace, owner.name, owner.uid) is None:
                await self._delete_pod(pod, "its claim does not exist any more")

    async def _read(self, namespace: str, name: str, uid: str) -> Claim | None:
        """This very claim by a live read; None if it is gone."""
        path = resource_path(names.API_VERSION, names.CLAIMS, namespace, name)
        try:
            claim = _decode_claim(await self._client.get(path))
        except ApiError as error:
            if error.not_found:
                return None
            raise
        return claim if claim.uid == uid else None


def _path(claim: Claim) -> str:
    return resource_path(
        names.API_VERSION, names.CLAIMS, claim.metadata.namespace, claim.metadata.name
    )


def _about(claim: Claim) -> Reference:
    return Reference(
        names.API_VERSION,
        names.CLAIM_KIND,
        claim.metadata.namespace,
        claim.metadata.name,
        claim.uid,
    )
