"""Gathers what a pool's decision needs, applies the plan, writes the status.

Everything between the template's check and the registration of what is about to be created runs
without an await, so that two decisions never count on the same room.
"""

import uuid
from collections.abc import Callable

import msgspec

from sandboxpool.api import names
from sandboxpool.api.core import Pod
from sandboxpool.cache import Cluster
from sandboxpool.claims.allocator import Allocator
from sandboxpool.claims.decide import Refusal
from sandboxpool.claims.offers import Offers
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.errors import ApiError
from sandboxpool.kube.events import EventRecorder
from sandboxpool.pools.book import Facts
from sandboxpool.pools.check import TemplateChecker
from sandboxpool.pools.decide import (
    PoolInput,
    PoolPlan,
    TemplateState,
    TemplateVerdict,
    decide,
)
from sandboxpool.pools.members import Members, claim_uid_of
from sandboxpool.pools.pool import Pool
from sandboxpool.pools.publish import StatusPublisher
from sandboxpool.pools.startup import StartupTracker
from sandboxpool.pools.state import PoolState, PoolStates
from sandboxpool.pools.status import invalid_status, pool_status
from sandboxpool.pools.store import PoolStore
from sandboxpool.pools.template import ClaimRef, build_pod, fingerprint, pod_name
from sandboxpool.pools.unseen import UnseenPods
from sandboxpool.pools.writer import FailureObserver, PodWriter, refusal_reason
from sandboxpool.reasons import Reason
from sandboxpool.runtimes.diagnosis import cut
from sandboxpool.runtimes.placement import PlacementError
from sandboxpool.runtimes.probe import ProbeImage
from sandboxpool.runtimes.quarantine import Quarantine
from sandboxpool.runtimes.resolve import Resolution
from sandboxpool.runtimes.verdict import Verdict

Key = tuple[str, str]

# A pool some of whose pods are just being handed out is looked at again after this many seconds.
BINDING_RECHECK_SECONDS = 5.0
# A cache of pods that has made no progress for so long shows what may be true no more: a healthy
# watch has bookmarks every minute.
BLIND_SECONDS = 120.0
BLIND_RECHECK_SECONDS = 10.0


class PoolReconciler:
    """Works on one pool at a time.

    ``pods_age`` says how many seconds ago the pods' cache last made progress; ``wake`` is called
    with the key of each pool to be looked at again.
    """

    def __init__(
        self,
        *,
        client: ApiClient,
        cluster: Cluster,
        pools: PoolStore,
        allocator: Allocator,
        offers: Offers,
        events: EventRecorder,
        observer: FailureObserver,
        on_startup_sample: Callable[[Pool, str, float], None],
        on_start_timeout: Callable[[str], None],
        probe: ProbeImage,
        wall: Callable[[], float],
        clock: Callable[[], float],
        guarded: bool = False,
        pods_age: Callable[[], float] = lambda: 0.0,
        wake: Callable[[Key], None] = lambda key: None,
    ) -> None:
        self._client = client
        self._cluster = cluster
        self._pools = pools
        self._allocator = allocator
        self._offers = offers
        self._on_startup_sample = on_startup_sample
        self._wall = wall
        self._clock = clock
        self._states = PoolStates(clock)
        self._probe = probe
        self._guarded = guarded
        self._pods_age = pods_age
        self._wake = wake
        # Pools whose creates were refused by a quota, by namespace.
        self._at_quota: dict[str, set[str]] = {}
        self._checker = TemplateChecker(client, probe, clock, wake)
        self._unseen = UnseenPods(client, cluster, offers, wall)
        self._tracker = StartupTracker(self._sampled, clock)
        self._publisher = StatusPublisher(client, pools, events, clock)
        self._writer = PodWriter(
            client=client,
            cluster=cluster,
            offers=offers,
            events=events,
            observer=observer,
            checker=self._checker,
            tracker=self._tracker,
            on_start_timeout=on_start_timeout,
            wall=wall,
            clock=clock,
        )

    # --- Told by the caches --------------------------------------------------------------------

    def observe_pod(self, pool_uid: str, old: Pod | None, new: Pod | None) -> None:
        """A pod of a pool has changed in the cache; None if it is gone, or no longer the pool's."""
        if old is not None and _is_starting(old) and (new is None or not _is_staying(new)):
            self._states.note_taken(pool_uid, old, self._wall())
        if old is not None and (new is None or (new.finished and not old.finished)):
            self._use_room(old.metadata.namespace)
        if new is None:
            if old is not None:
                self.stir(pool_uid, old.metadata.uid)
                self._states.settle_delete(pool_uid, old.metadata.uid)
                self._tracker.forget(old.metadata.uid)
            return
        self.stir(pool_uid, new.metadata.uid)
        self._states.settle_create(pool_uid, new.metadata.name)
        if new.metadata.deletionTimestamp is not None:
            self._states.settle_delete(pool_uid, new.metadata.uid)
        self._tracker.observe(pool_uid, new)

    def _use_room(self, namespace: str) -> None:
        """A pod has ended: those that wait for a quota of its namespace need not wait on."""
        for pool_uid in self._at_quota.pop(namespace, ()):
            pool = self._pools.by_uid(pool_uid)
            if pool is not None and self._states[pool_uid].note_room(self._wall()):
                self._wake(pool.key)

    def stir(self, pool_uid: str, pod_uid: str) -> None:
        """A pod, its ground, what was said of it or whether it is held may have changed."""
        self._states.stir(pool_uid, pod_uid)

    def is_leaving(self, pool_uid: str, pod_uid: str) -> bool:
        """Whether the pod's deletion was asked for."""
        return self._states.is_leaving(pool_uid, pod_uid)

    def forget(self, pool_uid: str) -> None:
        """The pool is gone."""
        self._states.forget(pool_uid)
        for waiting in self._at_quota.values():
            waiting.discard(pool_uid)
        self._cluster.avoidance.forget_pool(pool_uid)
        self._checker.forget(pool_uid)
        self._publisher.forget(pool_uid)

    def close(self) -> None:
        """End what is under way beside the reconciles."""
        self._checker.close()

    def _sampled(self, pool_uid: str, stage: str, seconds: float) -> None:
        pool = self._pools.by_uid(pool_uid)
        if pool is not None:
            self._states[pool_uid].times.add(stage, seconds, self._clock())
            self._on_startup_sample(pool, stage, seconds)

    # --- The reconcile -------------------------------------------------------------------------

    async def reconcile(self, key: Key) -> float | None:
        """Bring a pool one step on; return the seconds until time alone will change it."""
        pool = self._pools.get(key)
        if pool is None or pool.deleting:
            # The garbage collector takes its unclaimed pods; claimed ones belong to claims.
            return None
        if pool.spec is None:
            return await self._publisher.publish(pool, invalid_status(pool, self._wall()))
        resolution = self._cluster.resolution(pool)
        assert resolution is not None, "a pool with a spec resolves to something"
        usable = resolution.runtime if resolution.usable else None
        await self._unseen.look(pool, self._states[pool.uid])
        template = await self._checker.check(pool, usable)
        if self._pools.get(key) is not pool:
            # It has changed, or gone, while the API server was asked: start anew.
            return 0.0

        self._cluster.avoidance.expire(pool.uid, self._wall())
        verdict, template = self._judge(pool, resolution, template)
        given = self._gather(pool, resolution, verdict, template)
        plan = decide(given)
        state = self._states[pool.uid]
        # What is in doubt has its room already, and is made up for under the same name.
        new = state.expectations.doubted()[: plan.create]
        new += [pod_name(pool.name, uuid.uuid4().hex) for _ in range(plan.create - len(new))]
        for name in new:
            state.expectations.creating(name)
        going = [
            deletion for deletion in plan.delete if self._allocator.withdraw(deletion.member.uid)
        ]
        for deletion in going:
            state.expectations.deleting(deletion.member.uid)

        errors = await self._writer.delete(pool, state, going)
        if resolution.runtime is not None:
            bodies = [
                build_pod(pool, resolution.runtime, verdict, name, probe=self._probe)
                for name in new
            ]
            await self._writer.create(pool, state, bodies)
            if state.trouble.reason is Reason.QUOTA_EXCEEDED:
                self._at_quota.setdefault(pool.namespace, set()).add(pool.uid)
        # To sum up a large pool costs more than to decide about it.
        status_due: float | None = self._publisher.due(pool.uid)
        if not status_due:
            status = pool_status(pool, given, plan, state.times.summary(self._clock()))
            status_due = await self._publisher.publish(pool, status)
        if errors:
            # Everything else is done; the queue tries the deletions again, ever more slowly.
            raise errors[0]
        return self._next_look(pool, plan, status_due)

    def _judge(
        self, pool: Pool, resolution: Resolution, template: TemplateVerdict
    ) -> tuple[Verdict, TemplateVerdict]:
        if resolution.runtime is None:
            return Verdict(), template
        try:
            return self._cluster.verdict(pool, resolution.runtime), template
        except PlacementError as error:
            rejected = TemplateVerdict(
                TemplateState.REJECTED,
                Reason.TEMPLATE_REJECTED,
                f"spec.template.spec: its nodeSelector, affinity or tolerations are malformed: "
                f"{cut(str(error))}",
            )
            return Verdict(), (
                rejected if template.state is not TemplateState.REJECTED else template
            )

    def _gather(
        self, pool: Pool, resolution: Resolution, verdict: Verdict, template: TemplateVerdict
    ) -> PoolInput:
        assert pool.spec is not None, "asked before"
        state = self._states[pool.uid]
        members = self._sort(pool, state)
        now = self._wall()
        state.note_time(now)
        state.note_success(members, resolution.runtime)
        creating, creating_cold = state.expectations.count_creating()
        return PoolInput(
            spec=pool.spec,
            revision=pool.revision,
            resolution=resolution,
            verdict=verdict,
            exclusion=fingerprint(verdict.excluded),
            template=template,
            members=members,
            quarantines=self._quarantines(resolution, verdict),
            creating=creating - len(state.expectations.doubted()),
            creating_cold=creating_cold,
            trouble=state.trouble,
            guarded=self._guarded,
            blind=self._is_blind(),
            now=now,
        )

    def _is_blind(self) -> bool:
        return self._pods_age() > BLIND_SECONDS

    def _sort(self, pool: Pool, state: PoolState) -> Members:
        ground = self._cluster.grounds(pool.proof)
        pods = self._cluster.pods.of_pool(*pool.identity)

        def facts_of(uid: str) -> Facts | None:
            pod = pods.get(uid)
            return (
                None
                if pod is None
                else (
                    pod,
                    ground(pod),
                    self._cluster.events.message(pod),
                    state.expectations.is_deleting(uid),
                    self._allocator.is_held(uid),
                )
            )

        return state.book.sort(
            facts_of,
            pods,
            passing=state.expectations.leaving(),
            anew=state.is_due_anew(pool.proof, self._clock()),
        )

    def _quarantines(
        self, resolution: Resolution, verdict: Verdict
    ) -> tuple[tuple[str, Quarantine], ...]:
        if resolution.runtime is None:
            return ()
        handler = resolution.runtime.handler
        found = (
            (name, self._cluster.quarantines.get(name, handler)) for name in verdict.quarantined
        )
        return tuple((name, known) for name, known in found if known is not None)

    def _next_look(self, pool: Pool, plan: PoolPlan, status_due: float | None) -> float | None:
        now = self._wall()
        times = [plan.recheck - now] if plan.recheck is not None else []
        asked = self._checker.recheck_at(pool.uid)
        if asked is not None:
            times.append(asked - self._clock())
        state = self._states[pool.uid]
        if state.trouble.until > now:
            times.append(state.trouble.until - now)
        overdue = state.expectations.next_deadline()
        if overdue is not None:
            times.append(overdue)
        if status_due is not None:
            times.append(status_due)
        if self._is_blind():
            # Its recovery need not change any pod.
            times.append(BLIND_RECHECK_SECONDS)
        if self._allocator.binding(pool.uid):
            # Should it fail, no event of the pod would tell.
            times.append(BINDING_RECHECK_SECONDS)
        return max(0.05, min(times)) if times else None

    # --- Cold starts ---------------------------------------------------------------------------

    def is_starting_cold(self, pool: Pool, claim_uid: str) -> bool:
        """Whether the claim's pod was asked for and is not seen yet."""
        name = pod_name(pool.name, claim_uid)
        return self._states[pool.uid].expectations.is_creating(name)

    async def create_cold(self, pool: Pool, claim: ClaimRef) -> Refusal | None:
        """Create the pod of one claim; return why it cannot be done now, if so."""
        resolution = self._cluster.resolution(pool)
        if pool.spec is None or resolution is None or resolution.runtime is None:
            message = resolution.message if resolution else pool.problem
            return Refusal(Reason.RUNTIME_CLASS_NOT_FOUND, message)
        if not resolution.usable:
            return Refusal(resolution.reason, resolution.message)
        template = await self._checker.check(pool, resolution.runtime)
        verdict, template = self._judge(pool, resolution, template)
        if template.state is not TemplateState.ACCEPTED:
            return Refusal(template.reason, template.message)
        state = self._states[pool.uid]
        name = pod_name(pool.name, claim.uid)
        again = self.is_starting_cold(pool, claim.uid)
        known = again and not state.expectations.is_doubted(name)
        if known or self._cluster.pods.of_claim(pool.namespace, claim.uid):
            return None
        if not again and pool.spec.max_sandboxes is not None:
            existing = self._cluster.pods.count_of_pool(*pool.identity)
            if existing + sum(state.expectations.count_creating()) >= pool.spec.max_sandboxes:
                return Refusal(
                    Reason.MAX_SANDBOXES_REACHED,
                    f"pool {pool.name!r} has reached spec.maxSandboxes "
                    f"({pool.spec.max_sandboxes}): waiting for room, or for a warm sandbox",
                )
        state.expectations.creating(name, cold=True)
        body = build_pod(
            pool,
            resolution.runtime,
            verdict,
            name,
            probe=self._probe,
            claim=claim,
        )
        try:
            await self._writer.post(pool, state, body)
        except ApiError as error:
            if not error.already_exists:
                state.expectations.settle_create(name)
                return Refusal(refusal_reason(error), cut(error.message))
            # If it is the claim's, it takes its room until a watch shows it.
            state.expectations.doubt(name)
            refusal = await self._meet(pool, name, claim)
            if refusal is not None:
                state.expectations.settle_create(name)
            return refusal
        return None

    async def _meet(self, pool: Pool, name: str, claim: ClaimRef) -> Refusal | None:
        """The name of a claim's pod is taken: by its pod, made before, or by somebody else's."""
        path = resource_path("v1", "pods", pool.namespace, name)
        pod = msgspec.json.decode(await self._client.get(path), type=Pod)
        metadata, owner = pod.metadata, pod.metadata.controller
        if owner is None or owner.uid != claim.uid:
            return Refusal(
                Reason.CREATE_FAILED,
                f"a pod named {name!r} exists and is not this claim's: delete it",
            )
        if names.LABEL_POOL_UID in metadata.labels:
            return None
        # No watch of ours will ever show it. It was never bound, so another may take its place.
        if metadata.deletionTimestamp is None:
            await self._client.delete(
                path, uid=metadata.uid, resource_version=metadata.resourceVersion
            )
        return Refusal(
            Reason.CREATE_FAILED, f"pod {name!r} has lost its labels, and another one is made"
        )


def _is_staying(pod: Pod) -> bool:
    return pod.metadata.deletionTimestamp is None


def _is_starting(pod: Pod) -> bool:
    unready = not pod.ready and not pod.finished
    return unready and _is_staying(pod) and claim_uid_of(pod) is None
