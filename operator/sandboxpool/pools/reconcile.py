"""Gathers what a pool's decision needs, applies the plan, writes the status.

Everything between the template's check and the registration of what is about to be created runs
without an await, so that two decisions never count on the same room.
"""

import asyncio
import logging
import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from sandboxpool.api import names
from sandboxpool.api.core import Pod
from sandboxpool.cache import Cluster
from sandboxpool.claims.allocator import Allocator
from sandboxpool.claims.decide import Refusal
from sandboxpool.claims.offers import Offers
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.errors import ApiError, KubeError, UnknownOutcomeError
from sandboxpool.kube.events import EventRecorder, Reference
from sandboxpool.pools.check import TemplateChecker
from sandboxpool.pools.decide import (
    Deletion,
    PoolInput,
    PoolPlan,
    TemplateState,
    TemplateVerdict,
    Trouble,
    decide,
)
from sandboxpool.pools.expectations import Expectations
from sandboxpool.pools.members import State, member_of
from sandboxpool.pools.pool import Pool
from sandboxpool.pools.startup import StartupTimes, StartupTracker
from sandboxpool.pools.status import former_runtime, invalid_status, pool_status
from sandboxpool.pools.store import PoolStore
from sandboxpool.pools.template import ClaimRef, build_pod, fingerprint, pod_name
from sandboxpool.reasons import Reason
from sandboxpool.runtimes.diagnosis import cut
from sandboxpool.runtimes.placement import placement_of
from sandboxpool.runtimes.resolve import Resolution, Runtime
from sandboxpool.runtimes.verdict import Verdict

logger = logging.getLogger(__name__)

Key = tuple[str, str]

FIRST_BACKOFF_SECONDS = 1.0
LONGEST_BACKOFF_SECONDS = 300.0
STATUS_INTERVAL_SECONDS = 1.0
CREATE_ATTEMPTS = 3
DELETE_BATCH = 20

# Reasons that come and go while a pool does its ordinary work: no event is posted for them.
_QUIET = frozenset(
    {
        Reason.FILLING,
        Reason.AT_TARGET,
        Reason.SCALED_TO_ZERO,
        Reason.OK,
        Reason.WAITING_FOR_CLAIMS,
        # Announced when the class's uid changes, with both handlers.
        Reason.RUNTIME_CHANGED,
    }
)


class PoolObserver(Protocol):
    """Told what the metrics need."""

    def failure(self, pool: Pool, reason: str) -> None:
        """A sandbox did not start, or could not be created."""


@dataclass
class _PoolState:
    """What the operator remembers of one pool between decisions."""

    expectations: Expectations
    times: StartupTimes = field(default_factory=StartupTimes)
    trouble: Trouble = field(default_factory=Trouble)
    failed_at: float = 0.0
    status_written_at: float = float("-inf")
    status_sent: dict[str, Any] | None = None
    status_echo: Any = None


class PoolReconciler:
    """Works on one pool at a time."""

    def __init__(
        self,
        *,
        client: ApiClient,
        cluster: Cluster,
        pools: PoolStore,
        allocator: Allocator,
        offers: Offers,
        events: EventRecorder,
        observer: PoolObserver,
        on_startup_sample: Callable[[Pool, str, float], None],
        wall: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._cluster = cluster
        self._pools = pools
        self._allocator = allocator
        self._offers = offers
        self._events = events
        self._observer = observer
        self._on_startup_sample = on_startup_sample
        self._wall = wall
        self._clock = clock
        self._checker = TemplateChecker(client)
        self._states: dict[str, _PoolState] = {}
        self._tracker = StartupTracker(self._sampled, clock)

    # --- Told by the caches --------------------------------------------------------------------

    def observe_pod(self, pool_uid: str, old: Pod | None, new: Pod | None) -> None:
        """A pod of a pool has changed in the cache."""
        expectations = self._state(pool_uid).expectations
        if new is None:
            if old is not None:
                expectations.settle_delete(old.metadata.uid)
                self._tracker.forget(old.metadata.uid)
            return
        expectations.settle_create(new.metadata.name)
        if new.metadata.deletionTimestamp is not None:
            expectations.settle_delete(new.metadata.uid)
        self._tracker.observe(pool_uid, new)

    def is_leaving(self, pool_uid: str, pod_uid: str) -> bool:
        """Whether the pod's deletion was asked for."""
        state = self._states.get(pool_uid)
        return state is not None and state.expectations.is_deleting(pod_uid)

    def forget(self, pool_uid: str) -> None:
        """The pool is gone."""
        self._states.pop(pool_uid, None)
        self._checker.forget(pool_uid)

    def _state(self, pool_uid: str) -> _PoolState:
        state = self._states.get(pool_uid)
        if state is None:
            state = self._states[pool_uid] = _PoolState(Expectations(self._clock))
        return state

    def _sampled(self, pool_uid: str, stage: str, seconds: float) -> None:
        pool = self._pools.by_uid(pool_uid)
        if pool is not None:
            self._state(pool_uid).times.add(stage, seconds, self._clock())
            self._on_startup_sample(pool, stage, seconds)

    # --- The reconcile -------------------------------------------------------------------------

    async def reconcile(self, key: Key) -> float | None:
        """Bring a pool one step on; return the seconds until time alone will change it."""
        pool = self._pools.get(key)
        if pool is None or pool.deleting:
            # The garbage collector takes its unclaimed pods; claimed ones belong to claims.
            return None
        if pool.spec is None:
            return await self._write_status(pool, invalid_status(pool, self._wall()))
        resolution = self._offers.resolution(pool)
        assert resolution is not None, "a pool with a spec resolves to something"
        usable = resolution.runtime if resolution.usable else None
        template = await self._checker.check(pool, usable, self._wall())

        verdict, template = self._judge(pool, resolution, template)
        given = self._gather(pool, resolution, verdict, template)
        plan = decide(given)
        state = self._state(pool.uid)
        new = [pod_name(pool.name, uuid.uuid4().hex) for _ in range(plan.create)]
        for name in new:
            state.expectations.creating(name)
        going = [
            deletion for deletion in plan.delete if self._allocator.withdraw(deletion.member.uid)
        ]
        for deletion in going:
            state.expectations.deleting(deletion.member.uid)

        self._note_failures(pool, state, going, given)
        await self._delete(pool, state, going)
        if new and resolution.runtime is not None:
            await self._create(pool, resolution.runtime, verdict, state, new)
        again = await self._write_status(
            pool, pool_status(pool, given, plan, state.times.summary(self._clock()))
        )
        return self._next_look(pool, plan, again)

    def _judge(
        self, pool: Pool, resolution: Resolution, template: TemplateVerdict
    ) -> tuple[Verdict, TemplateVerdict]:
        if resolution.runtime is None:
            return Verdict(), template
        try:
            placement = placement_of(pool.template.get("spec") or {}, resolution.runtime)
        except (msgspec.ValidationError, AttributeError, TypeError, ValueError) as error:
            rejected = TemplateVerdict(
                TemplateState.REJECTED,
                Reason.TEMPLATE_REJECTED,
                f"spec.template.spec: its nodeSelector, affinity or tolerations are malformed: "
                f"{cut(str(error))}",
            )
            return Verdict(), (
                rejected if template.state is not TemplateState.REJECTED else template
            )
        return self._cluster.nodes.verdict(resolution.runtime.handler, placement), template

    def _gather(
        self, pool: Pool, resolution: Resolution, verdict: Verdict, template: TemplateVerdict
    ) -> PoolInput:
        assert pool.spec is not None, "asked before"
        state = self._state(pool.uid)
        members = tuple(
            member_of(
                pod,
                node=self._cluster.node_of(pod),
                sandbox_event=self._cluster.events.get(pod.metadata.uid),
                deleting=state.expectations.is_deleting(pod.metadata.uid),
                claimed=self._allocator.is_held(pod.metadata.uid),
            )
            for pod in self._cluster.pods.of_pool(pool.uid)
        )
        if any(m.state is State.WARM and m.created >= state.failed_at for m in members):
            state.trouble = Trouble()
        creating, creating_cold = state.expectations.count_creating()
        return PoolInput(
            spec=pool.spec,
            revision=pool.revision,
            resolution=resolution,
            verdict=verdict,
            exclusion=fingerprint(verdict.excluded),
            template=template,
            members=members,
            creating=creating,
            creating_cold=creating_cold,
            trouble=state.trouble,
            now=self._wall(),
        )

    def _next_look(self, pool: Pool, plan: PoolPlan, status_due: float | None) -> float | None:
        now = self._wall()
        times = [
            at - now for at in (plan.recheck, self._checker.recheck_at(pool.uid)) if at is not None
        ]
        trouble = self._state(pool.uid).trouble
        if trouble.until > now:
            times.append(trouble.until - now)
        if status_due is not None:
            times.append(status_due)
        return max(0.05, min(times)) if times else None

    # --- Deleting and creating -----------------------------------------------------------------

    def _note_failures(
        self, pool: Pool, state: _PoolState, going: Sequence[Deletion], given: PoolInput
    ) -> None:
        failed = [deletion for deletion in going if deletion.failed]
        for deletion in failed:
            self._observer.failure(pool, str(deletion.reason))
        if failed:
            self._hold_off(state, failed[0].reason, failed[0].message, given.now)

    def _hold_off(self, state: _PoolState, reason: Reason, message: str, now: float) -> None:
        failures = state.trouble.failures + 1
        delay = min(FIRST_BACKOFF_SECONDS * 2 ** min(failures - 1, 16), LONGEST_BACKOFF_SECONDS)
        delay *= random.uniform(0.75, 1.0)  # noqa: S311 - no secret
        state.failed_at = now
        state.trouble = Trouble(failures, now + delay, reason, cut(message))

    async def _delete(self, pool: Pool, state: _PoolState, deletions: Sequence[Deletion]) -> None:
        for start in range(0, len(deletions), DELETE_BATCH):
            batch = deletions[start : start + DELETE_BATCH]
            await asyncio.gather(*(self._delete_one(pool, state, d) for d in batch))

    async def _delete_one(self, pool: Pool, state: _PoolState, deletion: Deletion) -> None:
        member = deletion.member
        log = logger.warning if deletion.failed else logger.info
        log(
            "pool %s/%s: deleting pod %s: %s: %s",
            pool.namespace,
            pool.name,
            member.name,
            deletion.reason,
            deletion.message,
        )
        if deletion.failed:
            where = f" on node {member.node_name}" if member.node_name else ""
            self._events.warning(
                _about(pool), str(deletion.reason), f"{member.name}{where}: {deletion.message}"
            )
        try:
            await self._client.delete(
                resource_path("v1", "pods", pool.namespace, member.name),
                uid=member.uid,
                resource_version=member.version,
            )
        except ApiError as error:
            state.expectations.settle_delete(member.uid)
            pod = self._cluster.pods.get(member.uid)
            if pod is not None:
                # It has changed since it was judged: judge it again, and meanwhile offer it.
                self._offers.refresh([pod])
            if not (error.conflict or error.not_found):
                raise
        except UnknownOutcomeError as error:
            # Perhaps it is being deleted. It stays withdrawn until the watch or a deadline tells.
            logger.warning("%s", error)

    async def _create(
        self,
        pool: Pool,
        runtime: Runtime,
        verdict: Verdict,
        state: _PoolState,
        planned: Sequence[str],
    ) -> None:
        """Slow start: 1, 2, 4, ... and stop at the first refusal."""
        left = list(planned)
        batch = 1
        while left:
            now, left = left[:batch], left[batch:]
            done = await asyncio.gather(
                *(
                    self._create_one(pool, state, build_pod(pool, runtime, verdict.excluded, name))
                    for name in now
                )
            )
            if not all(done):
                break
            batch *= 2
        for name in left:
            state.expectations.settle_create(name)

    async def _create_one(self, pool: Pool, state: _PoolState, body: dict[str, Any]) -> bool:
        """Create a pod under the name that was chosen for it; True if it exists now."""
        name = body["metadata"]["name"]
        try:
            await self._post(pool, body)
        except ApiError as error:
            state.expectations.settle_create(name)
            if error.namespace_terminating:
                return False
            self._refused(pool, state, error)
            return False
        except KubeError as error:
            # The expectation stands: if it was made after all, the watch shows it under this name.
            self._hold_off(state, Reason.CREATE_FAILED, str(error), self._wall())
            return False
        return True

    async def _post(self, pool: Pool, body: dict[str, Any]) -> None:
        """POST a pod; repeated under the same name, so an unknown outcome cannot double it."""
        path = resource_path("v1", "pods", pool.namespace)
        for attempt in range(1, CREATE_ATTEMPTS + 1):
            began = self._clock()
            try:
                created = msgspec.json.decode(await self._client.create(path, body), type=Pod)
            except ApiError as error:
                if error.already_exists and attempt > 1:
                    return
                if error.status < 500 or attempt == CREATE_ATTEMPTS:
                    raise
            except UnknownOutcomeError:
                if attempt == CREATE_ATTEMPTS:
                    raise
            else:
                self._tracker.began(created.metadata.uid, began)
                return
            await asyncio.sleep(0.2 * attempt)

    def _refused(self, pool: Pool, state: _PoolState, error: ApiError) -> None:
        reason = Reason.CREATE_FAILED
        if "exceeded quota" in error.message:
            reason = Reason.QUOTA_EXCEEDED
        elif error.status in (400, 403, 422):
            # The dry run had accepted it: have it looked at again.
            self._checker.forget(pool.uid)
        self._observer.failure(pool, str(reason))
        self._hold_off(state, reason, error.message, self._wall())
        logger.warning(
            "pool %s/%s: %s: a pod was refused: %s", pool.namespace, pool.name, reason, error
        )

    async def create_cold(self, pool: Pool, claim: ClaimRef) -> Refusal | None:
        """Create the pod of one claim; return why it cannot be done now, if so."""
        resolution = self._offers.resolution(pool)
        if pool.spec is None or resolution is None or resolution.runtime is None:
            message = resolution.message if resolution else pool.problem
            return Refusal(Reason.RUNTIME_CLASS_NOT_FOUND, message)
        if not resolution.usable:
            return Refusal(resolution.reason, resolution.message)
        template = await self._checker.check(pool, resolution.runtime, self._wall())
        verdict, template = self._judge(pool, resolution, template)
        if template.state is not TemplateState.ACCEPTED:
            return Refusal(template.reason, template.message)
        state = self._state(pool.uid)
        name = pod_name(pool.name, claim.uid)
        if state.expectations.is_creating(name) or self._cluster.pods.of_claim(claim.uid):
            return None
        if pool.spec.max_sandboxes is not None:
            existing = len(self._cluster.pods.of_pool(pool.uid))
            if existing + sum(state.expectations.count_creating()) >= pool.spec.max_sandboxes:
                return Refusal(
                    Reason.MAX_SANDBOXES_REACHED,
                    f"pool {pool.name!r} has reached spec.maxSandboxes "
                    f"({pool.spec.max_sandboxes}): waiting for room, or for a warm sandbox",
                )
        state.expectations.creating(name, cold=True)
        body = build_pod(pool, resolution.runtime, verdict.excluded, name, claim)
        try:
            await self._post(pool, body)
        except ApiError as error:
            state.expectations.settle_create(name)
            if error.already_exists:
                return None if await self._is_claims(pool, name, claim) else _taken(name)
            reason = (
                Reason.QUOTA_EXCEEDED if "exceeded quota" in error.message else Reason.CREATE_FAILED
            )
            return Refusal(reason, cut(error.message))
        return None

    async def _is_claims(self, pool: Pool, name: str, claim: ClaimRef) -> bool:
        path = resource_path("v1", "pods", pool.namespace, name)
        pod = msgspec.json.decode(await self._client.get(path), type=Pod)
        owner = pod.metadata.controller
        return owner is not None and owner.uid == claim.uid

    # --- Status --------------------------------------------------------------------------------

    async def _write_status(self, pool: Pool, status: dict[str, Any]) -> float | None:
        """Write the status if it says something new; return when to try again, if not yet."""
        state = self._state(pool.uid)
        current = self._pools.by_uid(pool.uid)
        if current is None or status == current.status:
            return None
        if status == state.status_sent and current.status == state.status_echo:
            # The server holds what we sent, in its own words.
            return None
        wait = state.status_written_at + STATUS_INTERVAL_SECONDS - self._clock()
        if wait > 0:
            return wait
        state.status_written_at = self._clock()
        path = resource_path(names.API_VERSION, names.POOLS, pool.namespace, pool.name)
        try:
            answer = msgspec.json.decode(await self._client.replace_status(path, pool.uid, status))
        except ApiError as error:
            if error.not_found or (error.status == 422 and "test" in error.message):
                return None
            raise
        self._announce(pool, status)
        state.status_sent = status
        state.status_echo = answer.get("status")
        self._pools.observe(answer)
        return None

    def _announce(self, pool: Pool, status: dict[str, Any]) -> None:
        """Post an event for each condition that has changed its status or its reason."""
        was, now_is = former_runtime(pool), status.get("runtime", {})
        same_name = was.get("className") == now_is.get("className")
        if same_name and was.get("uid") and was["uid"] != now_is["uid"]:
            self._events.warning(
                _about(pool),
                str(Reason.RUNTIME_CHANGED),
                f"RuntimeClass {now_is['className']!r} was deleted and made again: its handler "
                f"was {was.get('handler')!r} and is {now_is['handler']!r} now",
            )
        listed = pool.status.get("conditions")
        before = {
            c.get("type"): (c.get("status"), c.get("reason"))
            for c in (listed if isinstance(listed, list) else ())
            if isinstance(c, dict)
        }
        for condition in status["conditions"]:
            type_, now = condition["type"], (condition["status"], condition["reason"])
            if type_ == "Ready" or before.get(type_) == now or now[1] in _QUIET:
                continue
            if now[0] == "True" and type_ not in before:
                continue
            post = self._events.normal if now[0] == "True" else self._events.warning
            post(_about(pool), now[1], condition["message"])


def _about(pool: Pool) -> Reference:
    return Reference(names.API_VERSION, names.POOL_KIND, pool.namespace, pool.name, pool.uid)


def _taken(name: str) -> Refusal:
    return Refusal(
        Reason.CREATE_FAILED,
        f"a pod named {name!r} exists and is not this claim's: delete it",
    )
