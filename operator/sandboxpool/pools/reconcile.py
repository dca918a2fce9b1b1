"""Gathers what a pool's decision needs, applies the plan, writes the status.

Everything between the template's check and the registration of what is about to be created runs
without an await, so that two decisions never count on the same room.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace

from sandboxpool.allocation.allocator import Allocator
from sandboxpool.allocation.candidate_tracker import CandidateTracker
from sandboxpool.allocation.refusal import Refusal
from sandboxpool.api import names
from sandboxpool.api.conditions import ConditionResult
from sandboxpool.api.core import Pod
from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.ownership import claim_uid_of
from sandboxpool.cluster.pool import Pool
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.events import EventRecorder
from sandboxpool.kube.informer import MAX_STALENESS_SECONDS
from sandboxpool.pools import event_reads as looks
from sandboxpool.pools.cold_start import cold_start_refusal
from sandboxpool.pools.decide import decide
from sandboxpool.pools.disruption_budget import DisruptionBudgets
from sandboxpool.pools.expectation_verifier import ExpectationVerifier
from sandboxpool.pools.member_index import MemberFacts
from sandboxpool.pools.plan import PoolInput, PoolPlan, TemplateCheckResult, TemplateState
from sandboxpool.pools.state import MIN_READY_SECONDS, PoolState, PoolStates
from sandboxpool.pools.status import invalid_status, pool_status
from sandboxpool.pools.status_publisher import StatusPublisher
from sandboxpool.pools.template_check import TemplateChecker
from sandboxpool.pools.writer import FailureObserver, PodWriter
from sandboxpool.runtimes.diagnosis import truncate
from sandboxpool.runtimes.node_constraints import NodeConstraintsError
from sandboxpool.runtimes.probe import ProbeImage
from sandboxpool.runtimes.quarantine import Quarantine
from sandboxpool.runtimes.resolve import Resolution
from sandboxpool.runtimes.verdict import Verdict
from sandboxpool.sandboxes.event_reader import PodEventReader
from sandboxpool.sandboxes.members import Members
from sandboxpool.sandboxes.startup import StartupTracker
from sandboxpool.sandboxes.template import ClaimRef, build_pod, pod_name

Key = tuple[str, str]

# A pool some of whose pods are just being handed out is looked at again after this many seconds.
BINDING_RECHECK_SECONDS = 5.0
STALE_CACHE_REQUEUE_SECONDS = 10.0
ASKING_RECHECK_SECONDS = 10.0


class PoolReconciler:
    """Works on one pool at a time.

    ``look_at`` has a pool looked at soon; ``wake_claim`` has a claim looked at, by its uid;
    ``pods_cache_age`` says how many seconds ago the pods' cache last made progress.
    """

    def __init__(
        self,
        *,
        client: ApiClient,
        cluster: ClusterCache,
        pools: PoolStore,
        states: PoolStates,
        allocator: Allocator,
        candidate_tracker: CandidateTracker,
        events: EventRecorder,
        observer: FailureObserver,
        on_startup_sample: Callable[[Pool, str, float], None],
        on_start_timeout: Callable[[str], None],
        probe: ProbeImage,
        event_reader: PodEventReader,
        wall: Callable[[], float],
        clock: Callable[[], float],
        enqueue: Callable[[Key], None] = lambda key: None,
        enqueue_claim: Callable[[str], object] = lambda uid: None,
        guarded: bool = False,
        pods_cache_age: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._look_at = enqueue
        self._wake_claim = enqueue_claim
        self._client = client
        self._cluster = cluster
        self._pools = pools
        self._allocator = allocator
        self._candidate_tracker = candidate_tracker
        self._on_startup_sample = on_startup_sample
        self._wall = wall
        self._clock = clock
        self._states = states
        self._probe = probe
        self._event_reader = event_reader
        self._guarded = guarded
        self._pods_age = pods_cache_age
        # Pools whose creates were refused by a quota, by namespace.
        self._at_quota: dict[str, set[str]] = {}
        self._checker = TemplateChecker(client, probe, clock, enqueue)
        self._unseen = ExpectationVerifier(client, cluster, candidate_tracker, wall)
        self._budgets = DisruptionBudgets(client, clock)
        self._tracker = StartupTracker(self._sampled, clock)
        self._publisher = StatusPublisher(client, pools, events, clock)
        self._writer = PodWriter(
            client=client,
            cluster=cluster,
            candidate_tracker=candidate_tracker,
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
        if old is not None and _is_starting(old) and (new is None or not _is_not_terminating(new)):
            self._states.note_external_deletion(pool_uid, old, self._wall())
        if old is not None and (new is None or (new.finished and not old.finished)):
            self._enqueue_at_quota(old.metadata.namespace)
        if old is not None and _is_in_use(old) and (new is None or not _is_not_terminating(new)):
            self._states.note_claim_succeeded(pool_uid, old)
        if new is None:
            if old is not None:
                self.mark_dirty(pool_uid, old.metadata.uid)
                self._states.deletion_observed(pool_uid, old.metadata.uid)
                self._tracker.forget(old.metadata.uid)
            return
        self.mark_dirty(pool_uid, new.metadata.uid)
        if new.ready and (old is None or not old.ready):
            self._states.note_started(pool_uid, new)
        self._states.creation_observed(pool_uid, new.metadata.name)
        if new.metadata.deletionTimestamp is not None:
            self._states.deletion_observed(pool_uid, new.metadata.uid)
        self._tracker.observe(pool_uid, new)

    def _enqueue_at_quota(self, namespace: str) -> None:
        """A pod has ended: those that wait for a quota of its namespace need not wait on."""
        for pool_uid in self._at_quota.pop(namespace, ()):
            pool = self._pools.by_uid(pool_uid)
            if pool is not None and self._states[pool_uid].note_quota_freed(self._wall()):
                self._look_at(pool.key)

    def mark_dirty(self, pool_uid: str, pod_uid: str) -> None:
        """A pod, its ground, what was said of it or whether it is held may have changed."""
        self._states.mark_dirty(pool_uid, pod_uid)

    def forget(self, pool_uid: str) -> None:
        """The pool is gone."""
        self._states.forget(pool_uid)
        for waiting in self._at_quota.values():
            waiting.discard(pool_uid)
        self._cluster.avoided_nodes.forget_pool(pool_uid)
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
        await self._unseen.verify(pool, self._states[pool.uid])
        budget_condition = await self._budgets.reconcile(pool)
        template = await self._checker.check(pool, usable)
        if self._pools.get(key) is not pool:
            # It has changed, or gone, while the API server was asked: start anew.
            return 0.0

        if usable is not None:
            self._cluster.note_admitted(pool, usable, template.placement)
        self._cluster.avoided_nodes.expire(pool.uid, self._wall())
        verdict, template = self._node_verdict(pool, resolution, template)
        state = self._states[pool.uid]
        if state.had_candidate_nodes is not verdict.has_candidate_nodes:
            # While no node can take a sandbox, those on cordoned ones are handed out.
            state.had_candidate_nodes = verdict.has_candidate_nodes
            self._candidate_tracker.refresh_pool(pool)
        line = self._claim_queue(pool, state)
        given = self._build_input(pool, resolution, verdict, template, line, budget_condition)
        given = self._read_events(pool, given)
        plan = decide(given)
        if plan.awaits_probe:
            self._cluster.probe_reservations.hold_back(pool.uid)
        state.note_stuck(plan.stuck_nodes, self._clock())
        if plan.avoid:
            for node, why in plan.avoid:
                self._writer.avoid(pool, node, why)
            verdict, _ = self._node_verdict(pool, resolution, template)
        new, asked = self._expect(pool, state, plan, line)
        self._report_cold_starts(state, given, plan, pool)
        # Only a claim holds what is started for it, and does so from the beginning.
        going = [
            deletion
            for deletion in plan.delete
            if self._allocator.remove_candidate(deletion.member.uid)
            or deletion.member.state is SandboxState.COLD
        ]
        for deletion in going:
            state.expectations.expect_deletion(deletion.member.uid)

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
            if state.backoff.reason is Reason.QUOTA_EXCEEDED:
                self._at_quota.setdefault(pool.namespace, set()).add(pool.uid)
            await self._finish_cold_starts(pool, state, asked, taken)
        # To sum up a large pool costs more than to decide about it.
        status_due: float | None = self._publisher.due(pool.uid)
        if not status_due:
            status = pool_status(pool, given, plan, state.times.summary(self._clock()))
            status_due = await self._publisher.publish(pool, status)
        if errors:
            # Everything else is done; the queue tries the deletions again, ever more slowly.
            raise errors[0]
        return self._requeue_after(pool, given, plan, status_due)

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
        new = state.expectations.unknown_creations()[: plan.create]
        new += [pod_name(pool.name, uuid.uuid4().hex) for _ in range(plan.create - len(new))]
        for name in new:
            state.expectations.expect_creation(name)
        asked: dict[str, ClaimRef] = {}
        for claim in [claim for _, claim in line if claim is not None][: plan.cold]:
            name = self._cold_name(pool, state, claim.uid)
            asked[name] = claim
            # Out of the line: a warm pod, even one that comes meanwhile, would be a second one.
            self._allocator.cancel_claim(claim.uid)
            state.cold.start(claim, name)
            state.expectations.expect_creation(name, cold=True)
        return new, asked

    def _node_verdict(
        self, pool: Pool, resolution: Resolution, template: TemplateCheckResult
    ) -> tuple[Verdict, TemplateCheckResult]:
        if resolution.runtime is None:
            return Verdict(), template
        try:
            return self._cluster.verdict(pool, resolution.runtime), template
        except NodeConstraintsError as error:
            rejected = TemplateCheckResult(
                TemplateState.REJECTED,
                Reason.TEMPLATE_REJECTED,
                f"spec.template.spec: its nodeSelector, affinity or tolerations are malformed: "
                f"{truncate(str(error))}",
            )
            return Verdict(), (
                rejected if template.state is not TemplateState.REJECTED else template
            )

    def _build_input(
        self,
        pool: Pool,
        resolution: Resolution,
        verdict: Verdict,
        template: TemplateCheckResult,
        line: Sequence[tuple[str, ClaimRef | None]],
        budget_condition: ConditionResult | None,
    ) -> PoolInput:
        assert pool.spec is not None, "asked before"
        state = self._states[pool.uid]
        members = self._refresh_members(pool, state)
        now, clock = self._wall(), self._clock()
        state.refresh_backoff(now)
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
            creating=creating - len(state.expectations.unknown_creations()),
            creating_cold=creating_cold,
            claim_queue=tuple(claim is not None for _, claim in line),
            stuck_nodes=state.stuck_nodes(clock),
            backoff=state.backoff,
            preempted=self._cluster.probe_reservations.of(pool.uid),
            awaits_probe=self._cluster.probe_reservations.is_held_back(pool.uid),
            guarded=self._guarded,
            cache_stale=self._is_cache_stale(),
            slow_seconds=self._slow_seconds(state, members, pool.spec.startup.timeout_seconds),
            budget_condition=budget_condition,
            now=now,
            clock=clock,
        )

    def _read_events(self, pool: Pool, given: PoolInput) -> PoolInput:
        """Have the events of those read that are in trouble, and say of whom that is under way."""
        pods = self._cluster.pods
        for member, stage in looks.members_to_read(given):
            pod = pods.get(member.uid)
            if pod is not None:
                self._event_reader.enqueue(pod, pool.uid, stage)
        doubtful = given.members.of(SandboxState.STARTING, SandboxState.COLD, SandboxState.FAILED)
        found = ((member.uid, pods.get(member.uid)) for member in doubtful)
        asking = {
            uid for uid, pod in found if pod is not None and self._event_reader.is_reading(pod)
        }
        return replace(given, pending_event_reads=frozenset(asking)) if asking else given

    def _slow_seconds(self, state: PoolState, members: Members, limit: float) -> float:
        if not members.count(SandboxState.STARTING, SandboxState.COLD):
            return limit
        return looks.slow_after(state.times.p95("ready", self._clock()), limit)

    def _is_cache_stale(self) -> bool:
        return self._pods_age() > MAX_STALENESS_SECONDS

    def _refresh_members(self, pool: Pool, state: PoolState) -> Members:
        host_state = self._cluster.host_state_lookup(pool.proof)
        pods = self._cluster.pods.of_pool(*pool.identity)

        def facts_of(uid: str) -> MemberFacts | None:
            pod = pods.get(uid)
            return (
                None
                if pod is None
                else (
                    pod,
                    host_state(pod),
                    self._cluster.events.message(pod),
                    state.expectations.is_deleting(uid),
                    self._allocator.is_allocated(uid),
                    self._event_reader.events_of(pod),
                )
            )

        return state.member_index.refresh(
            facts_of,
            pods,
            transient=state.expectations.pending_deletions(),
            resync=state.start_resync_if_due(pool.proof, self._clock()),
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

    def _requeue_after(
        self, pool: Pool, given: PoolInput, plan: PoolPlan, status_due: float | None
    ) -> float | None:
        now = self._wall()
        times = [plan.requeue_at - now] if plan.requeue_at is not None else []
        asked = self._checker.recheck_at(pool.uid)
        if asked is not None:
            times.append(asked - self._clock())
        state = self._states[pool.uid]
        if state.backoff.until > now:
            times.append(state.backoff.until - now)
        avoided = self._cluster.avoided_nodes.next_expiry(pool.uid)
        if avoided is not None:
            times.append(avoided - now)
        if state.backoff.failures:
            # What is ready may have lasted long enough by then.
            times.append(MIN_READY_SECONDS)
        overdue = state.expectations.next_deadline()
        if overdue is not None:
            times.append(overdue)
        if status_due is not None:
            times.append(status_due)
        slow_in = looks.next_read_in(given)
        if slow_in is not None:
            times.append(slow_in)
        if given.pending_event_reads:
            # No answer is waited for without end.
            times.append(ASKING_RECHECK_SECONDS)
        budget_due = self._budgets.due(pool.uid)
        if budget_due is not None:
            times.append(budget_due)
        if self._is_cache_stale():
            # Its recovery need not change any pod.
            times.append(STALE_CACHE_REQUEUE_SECONDS)
        if self._allocator.binding(pool.uid):
            # Should it fail, no event of the pod would tell.
            times.append(BINDING_RECHECK_SECONDS)
        return max(0.05, min(times)) if times else None

    # --- Cold starts ---------------------------------------------------------------------------

    def request_cold_start(self, pool: Pool, claim: ClaimRef) -> Refusal | None:
        """A claim in the pool's line wants a sandbox to be started for it; say why it waits.

        The pool's next decision says whether it is its turn, and the claim is told of that.
        """
        demand = self._states[pool.uid].cold
        if demand.request_start(claim):
            self._look_at(pool.key)
        return demand.refusal

    def is_starting_cold(self, pool: Pool, claim_uid: str) -> bool:
        """Whether the claim's pod was asked for and is not seen yet."""
        state = self._states[pool.uid]
        name = state.cold.pod_name_of(claim_uid)
        return name is not None and state.expectations.is_creating(name)

    def cold_start_failed(self, pool: Pool, message: str) -> None:
        """What was started for a claim is of no use to it: the next one waits a little longer."""
        self._states[pool.uid].note_failure(Reason.POD_FAILED, message, self._wall())

    def _cold_name(self, pool: Pool, state: PoolState, claim_uid: str) -> str:
        former = self._cluster.pods.of_claim(pool.namespace, claim_uid)
        seed = state.cold.seed(claim_uid, (pod.metadata.uid for pod in former))
        return pod_name(pool.name, seed)

    def _claim_queue(self, pool: Pool, state: PoolState) -> list[tuple[str, ClaimRef | None]]:
        """The claims in line, but for those that have a pod."""
        for uid in state.cold.pop_finished(state.expectations.is_creating):
            # Made, and seen, or certainly not made.
            self._wake_claim(uid)
        if not state.cold.pending:
            return []
        found = state.cold.in_queue(self._allocator.waiting_claims(pool.uid))
        pods = self._cluster.pods
        return [
            (uid, ref)
            for uid, ref in found
            if ref is None or not any(map(_is_not_terminating, pods.of_claim(pool.namespace, uid)))
        ]

    def _report_cold_starts(
        self, state: PoolState, given: PoolInput, plan: PoolPlan, pool: Pool
    ) -> None:
        """Have those that still wait say why, if that is not what they say already."""
        refusal = cold_start_refusal(given, plan, pool.name)
        if refusal != state.cold.refusal:
            state.cold.refusal = refusal
            for uid in state.cold.pending:
                self._wake_claim(uid)

    async def _finish_cold_starts(
        self, pool: Pool, state: PoolState, asked: dict[str, ClaimRef], taken: list[str]
    ) -> None:
        """Tell each claim what became of its pod; one that got none keeps its place in line."""
        for name in set(taken) & asked.keys():
            await self._resolve_name_conflict(pool, state, name, asked[name])
        for name, claim in reversed(asked.items()):
            wanted = self._wake_claim(claim.uid)
            made = state.expectations.is_creating(name) or any(
                map(_is_not_terminating, self._cluster.pods.of_claim(pool.namespace, claim.uid))
            )
            if wanted and not made:
                self._allocator.requeue_first(pool.uid, claim.uid)

    async def _resolve_name_conflict(
        self, pool: Pool, state: PoolState, name: str, claim: ClaimRef
    ) -> None:
        """The name of a claim's pod is taken: by its pod, made before, or by somebody else's."""
        pod = await self._unseen.read(pool.namespace, name)
        if pod is None:
            state.expectations.creation_observed(name)
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
        state.expectations.creation_observed(name)
        state.cold.name_taken(claim.uid)


def _is_not_terminating(pod: Pod) -> bool:
    return pod.metadata.deletionTimestamp is None


def _is_starting(pod: Pod) -> bool:
    unready = not pod.ready and not pod.finished
    return unready and _is_not_terminating(pod) and claim_uid_of(pod) is None


def _is_in_use(pod: Pod) -> bool:
    return (
        claim_uid_of(pod) is not None
        and pod.ready
        and not pod.finished
        and _is_not_terminating(pod)
    )
