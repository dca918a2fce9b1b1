"""Reconciles a pool: collects the input of the decision, applies the plan, writes the status.

No await comes between the template check and the expectation of the creates, so that two decisions
never use the same capacity.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace

from sandboxpool.allocation.allocator import Allocator
from sandboxpool.allocation.candidate_tracker import CandidateTracker
from sandboxpool.api.conditions import ConditionResult
from sandboxpool.api.core import Pod
from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.ownership import claim_uid_of
from sandboxpool.cluster.pool import Pool
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.kube.client import ApiClient
from sandboxpool.kube.events import EventRecorder
from sandboxpool.kube.informer import MAX_STALENESS_SECONDS
from sandboxpool.pools import event_reads
from sandboxpool.pools.cold_starter import ClaimQueue, PoolColdStarter
from sandboxpool.pools.decide import decide
from sandboxpool.pools.disruption_budget import DisruptionBudgets
from sandboxpool.pools.expectation_verifier import ExpectationVerifier
from sandboxpool.pools.member_index import MemberFacts
from sandboxpool.pools.plan import Deletion, PoolInput, PoolPlan, TemplateCheckResult, TemplateState
from sandboxpool.pools.state import MIN_READY_SECONDS, PoolState, PoolStates
from sandboxpool.pools.status import invalid_status, pool_status
from sandboxpool.pools.status_publisher import StatusPublisher
from sandboxpool.pools.template_check import TemplateChecker
from sandboxpool.pools.writer import FailureObserver, PodWriter
from sandboxpool.runtimes.diagnosis import truncate
from sandboxpool.runtimes.node_constraints import NodeConstraintsError
from sandboxpool.runtimes.probe import ProbeImage
from sandboxpool.runtimes.quarantine import Quarantine
from sandboxpool.runtimes.resolve import Resolution, Runtime
from sandboxpool.runtimes.verdict import Verdict
from sandboxpool.sandboxes.event_reader import PodEventReader
from sandboxpool.sandboxes.members import Members
from sandboxpool.sandboxes.startup import StartupTracker
from sandboxpool.sandboxes.template import ClaimRef, build_pod, pod_name

Key = tuple[str, str]

# Requeue intervals while pods are being bound, the cache is stale, or events are being read.
BINDING_RECHECK_SECONDS = 5.0
STALE_CACHE_REQUEUE_SECONDS = 10.0
EVENT_READ_RECHECK_SECONDS = 10.0


class PoolReconciler:
    """The reconciler of SandboxPools.

    ``enqueue`` enqueues a pool; ``enqueue_claim`` enqueues a claim by its uid and returns whether
    the claim still exists; ``pods_cache_age`` returns the seconds since the pod informer last made
    progress. ``cold_starter`` takes the claims' requests for cold starts.
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
        self._enqueue = enqueue
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
        self._pods_cache_age = pods_cache_age
        # By namespace, the uids of the pools whose creates exceeded a quota.
        self._at_quota: dict[str, set[str]] = {}
        self._template_checker = TemplateChecker(client, probe, clock, enqueue)
        self._verifier = ExpectationVerifier(client, cluster, candidate_tracker, wall)
        self.cold_starter = PoolColdStarter(
            client=client,
            cluster=cluster,
            states=states,
            allocator=allocator,
            verifier=self._verifier,
            enqueue=enqueue,
            enqueue_claim=enqueue_claim,
            wall=wall,
        )
        self._budgets = DisruptionBudgets(client, clock)
        self._startup_tracker = StartupTracker(self._sampled, clock)
        self._publisher = StatusPublisher(client, pools, events, clock)
        self._writer = PodWriter(
            client=client,
            cluster=cluster,
            candidate_tracker=candidate_tracker,
            events=events,
            observer=observer,
            checker=self._template_checker,
            tracker=self._startup_tracker,
            on_start_timeout=on_start_timeout,
            wall=wall,
            clock=clock,
        )

    # --- Notifications from the caches ---------------------------------------------------------

    def observe_pod(self, pool_uid: str, old: Pod | None, new: Pod | None) -> None:
        """Observe a change of a pool's pod; ``new`` is None if it is no longer the pool's."""
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
                self._startup_tracker.forget(old.metadata.uid)
            return
        self.mark_dirty(pool_uid, new.metadata.uid)
        if new.ready and (old is None or not old.ready):
            self._states.note_started(pool_uid, new)
        self._states.creation_observed(pool_uid, new.metadata.name)
        if new.metadata.deletionTimestamp is not None:
            self._states.deletion_observed(pool_uid, new.metadata.uid)
        self._startup_tracker.observe(pool_uid, new)

    def _enqueue_at_quota(self, namespace: str) -> None:
        """Enqueue the pools that wait for a quota of the namespace, after a pod has ended."""
        for pool_uid in self._at_quota.pop(namespace, ()):
            pool = self._pools.by_uid(pool_uid)
            if pool is not None and self._states[pool_uid].note_quota_freed(self._wall()):
                self._enqueue(pool.key)

    def mark_dirty(self, pool_uid: str, pod_uid: str) -> None:
        """A pod, its host, its events or its allocation may have changed."""
        self._states.mark_dirty(pool_uid, pod_uid)

    def forget(self, pool_uid: str) -> None:
        """Forget a deleted pool."""
        self._states.forget(pool_uid)
        for waiting in self._at_quota.values():
            waiting.discard(pool_uid)
        self._cluster.avoided_nodes.forget_pool(pool_uid)
        self._template_checker.forget(pool_uid)
        self._budgets.forget(pool_uid)
        self._publisher.forget(pool_uid)

    def close(self) -> None:
        """Cancel the tasks that run beside the reconciles."""
        self._template_checker.close()

    def _sampled(self, pool_uid: str, stage: str, seconds: float) -> None:
        pool = self._pools.by_uid(pool_uid)
        if pool is not None:
            self._states[pool_uid].times.add(stage, seconds, self._clock())
            self._on_startup_sample(pool, stage, seconds)

    # --- The reconcile -------------------------------------------------------------------------

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile a pool; return the seconds after which to requeue it, or None."""
        pool = self._pools.get(key)
        if pool is None or pool.deleting:
            # The garbage collector deletes its unclaimed pods; claims own the others.
            return None
        if pool.spec is None:
            return await self._publisher.publish(pool, invalid_status(pool, self._wall()))
        resolution = self._cluster.resolution(pool)
        assert resolution is not None, "every pool with a spec has a resolution"
        usable = resolution.runtime if resolution.usable else None
        await self._verifier.verify(pool, self._states[pool.uid])
        budget_condition = await self._budgets.reconcile(pool)
        template = await self._template_checker.check(pool, usable)
        if self._pools.get(key) is not pool:
            # The pool was changed or deleted during the requests: start again.
            return 0.0

        if usable is not None:
            self._cluster.note_admitted(pool, usable, template.node_constraints)
        self._cluster.avoided_nodes.expire(pool.uid, self._wall())
        verdict, template = self._node_verdict(pool, resolution, template)
        state = self._states[pool.uid]
        if state.had_candidate_nodes is not verdict.has_candidate_nodes:
            # Sandboxes on cordoned nodes are candidates while no node can run new ones.
            state.had_candidate_nodes = verdict.has_candidate_nodes
            self._candidate_tracker.refresh_pool(pool)
        queue = self.cold_starter.queue(pool, state)
        given = self._build_input(pool, resolution, verdict, template, queue, budget_condition)
        given = self._read_events(pool, given)
        plan = decide(given)
        if plan.awaits_probe:
            self._cluster.probe_reservations.hold_back(pool.uid)
        state.note_stuck(plan.stuck_nodes, self._clock())
        if plan.avoid:
            for node, why in plan.avoid:
                self._writer.avoid(pool, node, why)
            verdict, _ = self._node_verdict(pool, resolution, template)
        new = self._expect_creations(pool, state, plan)
        cold = self.cold_starter.expect(pool, state, queue, plan.cold)
        self.cold_starter.report(state, given, plan, pool)
        deletions = self._expect_deletions(state, plan)

        errors = await self._writer.delete(pool, state, deletions)
        if resolution.runtime is not None:
            await self._create(pool, state, resolution.runtime, verdict, new, cold)
        # The status of a large pool costs more than the decision: compute it only to write it.
        status_due: float | None = self._publisher.due(pool.uid)
        if not status_due:
            status = pool_status(pool, given, plan, state.times.summary(self._clock()))
            status_due = await self._publisher.publish(pool, status)
        if errors:
            # Everything else is done; the work queue retries the deletions with backoff.
            raise errors[0]
        return self._requeue_after(pool, given, plan, status_due)

    def _expect_creations(self, pool: Pool, state: PoolState, plan: PoolPlan) -> list[str]:
        """Name the pods to create for the stock, and expect them from now on."""
        # Creates of unknown outcome are sent again first, under the same names.
        new = state.expectations.unknown_creations()[: plan.create]
        new += [pod_name(pool.name, uuid.uuid4().hex) for _ in range(plan.create - len(new))]
        for name in new:
            state.expectations.expect_creation(name)
        return new

    def _expect_deletions(self, state: PoolState, plan: PoolPlan) -> list[Deletion]:
        """Expect the plan's deletions, except of pods that have been allocated since."""
        deletions = [
            deletion
            for deletion in plan.delete
            if self._allocator.remove_candidate(deletion.member.uid)
            # A cold pod is never a candidate.
            or deletion.member.state is SandboxState.COLD
        ]
        for deletion in deletions:
            state.expectations.expect_deletion(deletion.member.uid)
        return deletions

    async def _create(
        self,
        pool: Pool,
        state: PoolState,
        runtime: Runtime,
        verdict: Verdict,
        new: Sequence[str],
        cold: dict[str, ClaimRef],
    ) -> None:
        """Create the expected pods: cold ones first, by their claims, then those of the stock."""
        bodies = [
            build_pod(pool, runtime, verdict, name, probe=self._probe, claim=cold.get(name))
            for name in (*cold, *new)
        ]
        taken = await self._writer.create(pool, state, bodies)
        if state.backoff.reason is Reason.QUOTA_EXCEEDED:
            self._at_quota.setdefault(pool.namespace, set()).add(pool.uid)
        await self.cold_starter.finish(pool, state, cold, taken)

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
                "correct spec.template.spec: nodeSelector, affinity or tolerations are malformed: "
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
        queue: ClaimQueue,
        budget_condition: ConditionResult | None,
    ) -> PoolInput:
        assert pool.spec is not None, "checked by the caller"
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
            claim_queue=tuple(claim is not None for _, claim in queue),
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
        """Enqueue reads of the events of failing pods, and add the pending reads to the input."""
        pods = self._cluster.pods
        for member, stage in event_reads.members_to_read(given):
            pod = pods.get(member.uid)
            if pod is not None:
                self._event_reader.enqueue(pod, pool.uid, stage)
        unready = given.members.of(SandboxState.STARTING, SandboxState.COLD, SandboxState.FAILED)
        found = ((member.uid, pods.get(member.uid)) for member in unready)
        pending = {
            uid for uid, pod in found if pod is not None and self._event_reader.is_reading(pod)
        }
        return replace(given, pending_event_reads=frozenset(pending)) if pending else given

    def _slow_seconds(self, state: PoolState, members: Members, limit: float) -> float:
        if not members.count(SandboxState.STARTING, SandboxState.COLD):
            return limit
        return event_reads.slow_after(state.times.p95("ready", self._clock()), limit)

    def _is_cache_stale(self) -> bool:
        return self._pods_cache_age() > MAX_STALENESS_SECONDS

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
        recheck_at = self._template_checker.recheck_at(pool.uid)
        if recheck_at is not None:
            times.append(recheck_at - self._clock())
        state = self._states[pool.uid]
        if state.backoff.until > now:
            times.append(state.backoff.until - now)
        avoided = self._cluster.avoided_nodes.next_expiry(pool.uid)
        if avoided is not None:
            times.append(avoided - now)
        if state.backoff.failures:
            # A ready sandbox may count as a success by then.
            times.append(MIN_READY_SECONDS)
        verify_in = state.expectations.next_deadline()
        if verify_in is not None:
            times.append(verify_in)
        if status_due is not None:
            times.append(status_due)
        slow_in = event_reads.next_read_in(given)
        if slow_in is not None:
            times.append(slow_in)
        if given.pending_event_reads:
            # A pending read stops blocking the decision after a while.
            times.append(EVENT_READ_RECHECK_SECONDS)
        budget_due = self._budgets.due(pool.uid)
        if budget_due is not None:
            times.append(budget_due)
        if self._is_cache_stale():
            # A recovered watch need not change any pod.
            times.append(STALE_CACHE_REQUEUE_SECONDS)
        if self._allocator.binding(pool.uid):
            # A binding that fails causes no event of the pod.
            times.append(BINDING_RECHECK_SECONDS)
        return max(0.05, min(times)) if times else None


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
