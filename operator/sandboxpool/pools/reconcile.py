"""Gathers what a pool's decision needs, applies the plan, writes the status.

Everything between the template's check and the registration of what is about to be created runs
without an await, so that two decisions never count on the same room.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace

from sandboxpool.allocation.allocator import Allocator
from sandboxpool.allocation.offers import Offers
from sandboxpool.allocation.refusal import Refusal
from sandboxpool.api import names
from sandboxpool.api.conditions import Finding
from sandboxpool.api.core import Pod
from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.cache import Cluster
from sandboxpool.cluster.ownership import claim_uid_of
from sandboxpool.cluster.pool import Pool
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.cluster.sandbox_state import State
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.events import EventRecorder
from sandboxpool.kube.informer import BLIND_SECONDS
from sandboxpool.pools import looks
from sandboxpool.pools.book import Facts
from sandboxpool.pools.check import TemplateChecker
from sandboxpool.pools.cold import why_held
from sandboxpool.pools.decide import decide
from sandboxpool.pools.disruption import Budgets
from sandboxpool.pools.plan import PoolInput, PoolPlan, TemplateState, TemplateVerdict
from sandboxpool.pools.publish import StatusPublisher
from sandboxpool.pools.state import LASTING_SECONDS, PoolState, PoolStates
from sandboxpool.pools.status import invalid_status, pool_status
from sandboxpool.pools.unseen import UnseenPods
from sandboxpool.pools.writer import FailureObserver, PodWriter
from sandboxpool.runtimes.diagnosis import cut
from sandboxpool.runtimes.placement import PlacementError
from sandboxpool.runtimes.probe import ProbeImage
from sandboxpool.runtimes.quarantine import Quarantine
from sandboxpool.runtimes.resolve import Resolution
from sandboxpool.runtimes.verdict import Verdict
from sandboxpool.sandboxes.inquiry import Inquiry
from sandboxpool.sandboxes.members import Members
from sandboxpool.sandboxes.startup import StartupTracker
from sandboxpool.sandboxes.template import ClaimRef, build_pod, pod_name

Key = tuple[str, str]

# A pool some of whose pods are just being handed out is looked at again after this many seconds.
BINDING_RECHECK_SECONDS = 5.0
BLIND_RECHECK_SECONDS = 10.0
ASKING_RECHECK_SECONDS = 10.0


class PoolReconciler:
    """Works on one pool at a time.

    ``look_at`` has a pool looked at soon; ``wake_claim`` has a claim looked at, by its uid;
    ``pods_age`` says how many seconds ago the pods' cache last made progress.
    """

    def __init__(
        self,
        *,
        client: ApiClient,
        cluster: Cluster,
        pools: PoolStore,
        states: PoolStates,
        allocator: Allocator,
        offers: Offers,
        events: EventRecorder,
        observer: FailureObserver,
        on_startup_sample: Callable[[Pool, str, float], None],
        on_start_timeout: Callable[[str], None],
        probe: ProbeImage,
        inquiry: Inquiry,
        wall: Callable[[], float],
        clock: Callable[[], float],
        look_at: Callable[[Key], None] = lambda key: None,
        wake_claim: Callable[[str], object] = lambda uid: None,
        guarded: bool = False,
        pods_age: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._look_at = look_at
        self._wake_claim = wake_claim
        self._client = client
        self._cluster = cluster
        self._pools = pools
        self._allocator = allocator
        self._offers = offers
        self._on_startup_sample = on_startup_sample
        self._wall = wall
        self._clock = clock
        self._states = states
        self._probe = probe
        self._inquiry = inquiry
        self._guarded = guarded
        self._pods_age = pods_age
        # Pools whose creates were refused by a quota, by namespace.
        self._at_quota: dict[str, set[str]] = {}
        self._checker = TemplateChecker(client, probe, clock, look_at)
        self._unseen = UnseenPods(client, cluster, offers, wall)
        self._budgets = Budgets(client, clock)
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
        if old is not None and _is_in_use(old) and (new is None or not _is_staying(new)):
            self._states.note_used(pool_uid, old)
        if new is None:
            if old is not None:
                self.stir(pool_uid, old.metadata.uid)
                self._states.settle_delete(pool_uid, old.metadata.uid)
                self._tracker.forget(old.metadata.uid)
            return
        self.stir(pool_uid, new.metadata.uid)
        if new.ready and (old is None or not old.ready):
            self._states.note_started(pool_uid, new)
        self._states.settle_create(pool_uid, new.metadata.name)
        if new.metadata.deletionTimestamp is not None:
            self._states.settle_delete(pool_uid, new.metadata.uid)
        self._tracker.observe(pool_uid, new)

    def _use_room(self, namespace: str) -> None:
        """A pod has ended: those that wait for a quota of its namespace need not wait on."""
        for pool_uid in self._at_quota.pop(namespace, ()):
            pool = self._pools.by_uid(pool_uid)
            if pool is not None and self._states[pool_uid].note_room(self._wall()):
                self._look_at(pool.key)

    def stir(self, pool_uid: str, pod_uid: str) -> None:
        """A pod, its ground, what was said of it or whether it is held may have changed."""
        self._states.stir(pool_uid, pod_uid)

    def forget(self, pool_uid: str) -> None:
        """The pool is gone."""
        self._states.forget(pool_uid)
        for waiting in self._at_quota.values():
            waiting.discard(pool_uid)
        self._cluster.avoidance.forget_pool(pool_uid)
        self._checker.forget(pool_uid)
        self._budgets.forget(pool_uid)
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
        protection = await self._budgets.keep(pool)
        template = await self._checker.check(pool, usable)
        if self._pools.get(key) is not pool:
            # It has changed, or gone, while the API server was asked: start anew.
            return 0.0

        if usable is not None:
            self._cluster.note_admitted(pool, usable, template.placement)
        self._cluster.avoidance.expire(pool.uid, self._wall())
        verdict, template = self._judge(pool, resolution, template)
        state = self._states[pool.uid]
        if state.was_hopeful is not verdict.hopeful:
            # While no node can take a sandbox, those on cordoned ones are handed out.
            state.was_hopeful = verdict.hopeful
            self._offers.refresh_pool(pool)
        line = self._in_line(pool, state)
        given = self._gather(pool, resolution, verdict, template, line, protection)
        given = self._inquire(pool, given)
        plan = decide(given)
        if plan.held_back:
            self._cluster.room.hold_back(pool.uid)
        state.note_stuck(plan.stuck_nodes, self._clock())
        if plan.avoid:
            for node, why in plan.avoid:
                self._writer.avoid(pool, node, why)
            verdict, _ = self._judge(pool, resolution, template)
        new, asked = self._expect(pool, state, plan, line)
        self._tell_cold(state, given, plan, pool)
        # Only a claim holds what is started for it, and does so from the beginning.
        going = [
            deletion
            for deletion in plan.delete
            if self._allocator.withdraw(deletion.member.uid) or deletion.member.state is State.COLD
        ]
        for deletion in going:
            state.expectations.deleting(deletion.member.uid)

        errors = await self._writer.delete(pool, state, going)
        if resolution.runtime is not None:
            bodies = [
                build_pod(
                    pool,
                    resolution.runtime,
                    verdict,
                    name,
                    probe=self._probe,
                    claim=asked.get(name),
                )
                for name in (*asked, *new)
            ]
            taken = await self._writer.create(pool, state, bodies)
            if state.trouble.reason is Reason.QUOTA_EXCEEDED:
                self._at_quota.setdefault(pool.namespace, set()).add(pool.uid)
            await self._answer_cold(pool, state, asked, taken)
        # To sum up a large pool costs more than to decide about it.
        status_due: float | None = self._publisher.due(pool.uid)
        if not status_due:
            status = pool_status(pool, given, plan, state.times.summary(self._clock()))
            status_due = await self._publisher.publish(pool, status)
        if errors:
            # Everything else is done; the queue tries the deletions again, ever more slowly.
            raise errors[0]
        return self._next_look(pool, given, plan, status_due)

    def _expect(
        self,
        pool: Pool,
        state: PoolState,
        plan: PoolPlan,
        line: Sequence[tuple[str, ClaimRef | None]],
    ) -> tuple[list[str], dict[str, ClaimRef]]:
        """Name the pods that are about to be created, and count on them from now on.

        Return the names of those for the stock, and of those for claims with their claims.
        """
        # What is in doubt has its room already, and is made up for under the same name.
        new = state.expectations.doubted()[: plan.create]
        new += [pod_name(pool.name, uuid.uuid4().hex) for _ in range(plan.create - len(new))]
        for name in new:
            state.expectations.creating(name)
        asked: dict[str, ClaimRef] = {}
        for claim in [claim for _, claim in line if claim is not None][: plan.cold]:
            name = self._cold_name(pool, state, claim.uid)
            asked[name] = claim
            # Out of the line: a warm pod, even one that comes meanwhile, would be a second one.
            self._allocator.abandon(claim.uid)
            state.cold.ask(claim, name)
            state.expectations.creating(name, cold=True)
        return new, asked

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
        self,
        pool: Pool,
        resolution: Resolution,
        verdict: Verdict,
        template: TemplateVerdict,
        line: Sequence[tuple[str, ClaimRef | None]],
        protection: Finding | None,
    ) -> PoolInput:
        assert pool.spec is not None, "asked before"
        state = self._states[pool.uid]
        members = self._sort(pool, state)
        now, clock = self._wall(), self._clock()
        state.note_time(now)
        state.note_success(members, resolution.runtime, clock)
        creating, creating_cold = state.expectations.count_creating()
        return PoolInput(
            spec=pool.spec,
            revision=pool.revision,
            resolution=resolution,
            verdict=verdict,
            hostnames_since=state.note_hostnames(verdict.excluded, now)
            if verdict.by_hostname
            else 0.0,
            template=template,
            members=members,
            quarantines=self._quarantines(resolution, verdict),
            creating=creating - len(state.expectations.doubted()),
            creating_cold=creating_cold,
            line=tuple(claim is not None for _, claim in line),
            stuck_nodes=state.stuck_nodes(clock),
            trouble=state.trouble,
            giving_way=self._cluster.room.of(pool.uid),
            held_back=self._cluster.room.is_held_back(pool.uid),
            guarded=self._guarded,
            blind=self._is_blind(),
            slow_seconds=self._slow_seconds(state, members, pool.spec.startup.timeout_seconds),
            protection=protection,
            now=now,
            clock=clock,
        )

    def _inquire(self, pool: Pool, given: PoolInput) -> PoolInput:
        """Have the events of those read that are in trouble, and say of whom that is under way."""
        pods = self._cluster.pods
        for member, stage in looks.wanted(given):
            pod = pods.get(member.uid)
            if pod is not None:
                self._inquiry.ask(pod, pool.uid, stage)
        doubtful = given.members.of(State.STARTING, State.COLD, State.FAILED)
        found = ((member.uid, pods.get(member.uid)) for member in doubtful)
        asking = {uid for uid, pod in found if pod is not None and self._inquiry.is_asking(pod)}
        return replace(given, asking=frozenset(asking)) if asking else given

    def _slow_seconds(self, state: PoolState, members: Members, limit: float) -> float:
        if not members.count(State.STARTING, State.COLD):
            return limit
        return looks.slow_after(state.times.p95("ready", self._clock()), limit)

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
                    self._inquiry.told(pod),
                )
            )

        return state.book.sort(
            facts_of,
            pods,
            passing=state.expectations.leaving(),
            anew=state.is_due_anew(pool.proof, self._clock()),
            clock=self._clock(),
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

    def _next_look(
        self, pool: Pool, given: PoolInput, plan: PoolPlan, status_due: float | None
    ) -> float | None:
        now = self._wall()
        times = [plan.recheck - now] if plan.recheck is not None else []
        asked = self._checker.recheck_at(pool.uid)
        if asked is not None:
            times.append(asked - self._clock())
        state = self._states[pool.uid]
        if state.trouble.until > now:
            times.append(state.trouble.until - now)
        avoided = self._cluster.avoidance.next_expiry(pool.uid)
        if avoided is not None:
            times.append(avoided - now)
        if state.trouble.failures:
            # What is ready may have lasted long enough by then.
            times.append(LASTING_SECONDS)
        overdue = state.expectations.next_deadline()
        if overdue is not None:
            times.append(overdue)
        if status_due is not None:
            times.append(status_due)
        slow_in = looks.next_in(given)
        if slow_in is not None:
            times.append(slow_in)
        if given.asking:
            # No answer is waited for without end.
            times.append(ASKING_RECHECK_SECONDS)
        budget_due = self._budgets.due(pool.uid)
        if budget_due is not None:
            times.append(budget_due)
        if self._is_blind():
            # Its recovery need not change any pod.
            times.append(BLIND_RECHECK_SECONDS)
        if self._allocator.binding(pool.uid):
            # Should it fail, no event of the pod would tell.
            times.append(BINDING_RECHECK_SECONDS)
        return max(0.05, min(times)) if times else None

    # --- Cold starts ---------------------------------------------------------------------------

    def want_cold(self, pool: Pool, claim: ClaimRef) -> Refusal | None:
        """A claim in the pool's line wants a sandbox to be started for it; say why it waits.

        The pool's next decision says whether it is its turn, and the claim is told of that.
        """
        demand = self._states[pool.uid].cold
        if demand.want(claim):
            self._look_at(pool.key)
        return demand.refusal

    def is_starting_cold(self, pool: Pool, claim_uid: str) -> bool:
        """Whether the claim's pod was asked for and is not seen yet."""
        state = self._states[pool.uid]
        name = state.cold.asked(claim_uid)
        return name is not None and state.expectations.is_creating(name)

    def cold_failed(self, pool: Pool, message: str) -> None:
        """What was started for a claim is of no use to it: the next one waits a little longer."""
        self._states[pool.uid].note_failure(Reason.POD_FAILED, message, self._wall())

    def _cold_name(self, pool: Pool, state: PoolState, claim_uid: str) -> str:
        former = self._cluster.pods.of_claim(pool.namespace, claim_uid)
        seed = state.cold.seed(claim_uid, (pod.metadata.uid for pod in former))
        return pod_name(pool.name, seed)

    def _in_line(self, pool: Pool, state: PoolState) -> list[tuple[str, ClaimRef | None]]:
        """The claims in line, but for those that have a pod."""
        for uid in state.cold.settle(state.expectations.is_creating):
            # Made, and seen, or certainly not made.
            self._wake_claim(uid)
        if not state.cold.wanting:
            return []
        found = state.cold.in_line(self._allocator.line(pool.uid))
        pods = self._cluster.pods
        return [
            (uid, ref)
            for uid, ref in found
            if ref is None or not any(map(_is_staying, pods.of_claim(pool.namespace, uid)))
        ]

    def _tell_cold(self, state: PoolState, given: PoolInput, plan: PoolPlan, pool: Pool) -> None:
        """Have those that still wait say why, if that is not what they say already."""
        refusal = why_held(given, plan, pool.name)
        if refusal != state.cold.refusal:
            state.cold.refusal = refusal
            for uid in state.cold.wanting:
                self._wake_claim(uid)

    async def _answer_cold(
        self, pool: Pool, state: PoolState, asked: dict[str, ClaimRef], taken: list[str]
    ) -> None:
        """Tell each claim what became of its pod; one that got none keeps its place in line."""
        for name in set(taken) & asked.keys():
            await self._meet(pool, state, name, asked[name])
        for name, claim in reversed(asked.items()):
            wanted = self._wake_claim(claim.uid)
            made = state.expectations.is_creating(name) or any(
                map(_is_staying, self._cluster.pods.of_claim(pool.namespace, claim.uid))
            )
            if wanted and not made:
                self._allocator.put_first(pool.uid, claim.uid)

    async def _meet(self, pool: Pool, state: PoolState, name: str, claim: ClaimRef) -> None:
        """The name of a claim's pod is taken: by its pod, made before, or by somebody else's."""
        pod = await self._unseen.read(pool.namespace, name)
        if pod is None:
            state.expectations.settle_create(name)
            return
        metadata, owner = pod.metadata, pod.metadata.controller
        is_own = owner is not None and owner.uid == claim.uid
        if is_own and names.LABEL_POOL_UID in metadata.labels:
            # A watch shows it, and until then it takes its room.
            return
        if is_own and metadata.deletionTimestamp is None:
            # It has lost its labels, so no watch of ours will ever show it; it was never bound.
            await self._client.delete(
                resource_path("v1", "pods", pool.namespace, name),
                uid=metadata.uid,
                resource_version=metadata.resourceVersion,
            )
        state.expectations.settle_create(name)
        state.cold.name_taken(claim.uid)


def _is_staying(pod: Pod) -> bool:
    return pod.metadata.deletionTimestamp is None


def _is_starting(pod: Pod) -> bool:
    unready = not pod.ready and not pod.finished
    return unready and _is_staying(pod) and claim_uid_of(pod) is None


def _is_in_use(pod: Pod) -> bool:
    return claim_uid_of(pod) is not None and pod.ready and not pod.finished and _is_staying(pod)
