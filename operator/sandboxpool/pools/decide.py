"""Decides which pods of a pool to create and which to delete. Pure.

``decide`` is total and deterministic: no I/O, no logging, no clock. It names a reason for what it
does not create, which becomes the condition, the event and the metric.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import dropwhile, islice, takewhile

from sandboxpool.api.reasons import Reason
from sandboxpool.api.v1alpha1 import IsolationProof, UpdateType
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.pools.max_unavailable import max_unavailable
from sandboxpool.pools.plan import Deletion, PoolInput, PoolPlan, TemplateState, outdated
from sandboxpool.pools.replacement import (
    MAX_UNACKNOWLEDGED_ROUNDS,
    competing_with_probes,
    counts_as_starting,
    has_other_candidate_node,
    irrecoverable,
    member_deadline,
    nodes_to_avoid,
    preempted_by_probes,
    relocation_reason,
    replacement_deletion,
    stalled_members,
    stuck_members,
    unacknowledged_on_lost_node,
)
from sandboxpool.runtimes.verdict import Verdict
from sandboxpool.sandboxes.members import STOCK, Member, Members, oldest_first

# Creation timestamps have whole seconds: a pod may be this much younger than it seems.
TIMESTAMP_RESOLUTION_SECONDS = 1.0
# After this many consecutive failures a pool starts one sandbox at a time.
CAUTIOUS_AFTER_FAILURES = 2
# Pods whose containers have ended do not count towards maxSandboxes.
_NOT_COUNTED = (SandboxState.FAILED, SandboxState.ENDED)


def decide(given: PoolInput) -> PoolPlan:
    """Compare the pool's pods with its spec and return the changes to make."""
    spec = given.spec
    claimed = given.members.count(SandboxState.CLAIMED, SandboxState.COLD)
    target = spec.replicas
    if spec.max_sandboxes is not None:
        target = max(0, min(target, spec.max_sandboxes - claimed))
    if spec.paused:
        cold_blocked_by = Reason.PAUSED if any(given.claim_queue) else None
        return PoolPlan(target, 0, (), Reason.PAUSED, None, cold_blocked_by=cold_blocked_by)

    stuck = stuck_members(given)
    replaceable = stuck if has_other_candidate_node(given, stuck) else []
    stalled = stalled_members(given, replaceable)
    avoid = nodes_to_avoid(replaceable, stalled)
    deletions = irrecoverable(given, stalled)
    known = _uids(deletions)
    competing = [d for d in competing_with_probes(given) if d.member.uid not in known]
    deletions += [d for d in preempted_by_probes(given) if d.member.uid not in known] + competing
    left = _without(deletions, given.members)
    relocated = _to_relocate(given, left, target)
    stock = _stock(given, left)
    rolled = _to_roll(given, stock, target)
    stock = _without(rolled, stock)
    known = _uids([*deletions, *rolled])
    stalled = [m for m in stalled if m.state is not SandboxState.COLD and m.uid not in known]
    excess = _excess(given, stock, target, stalled)
    stock = _without(excess, stock)
    known = _uids(excess)
    stalled = [member for member in stalled if member.uid not in known]
    deletions += relocated + rolled + excess

    # Stalled pods count as stock, and are replaced beyond the target.
    wanted = target + min(len(stalled), max_unavailable(spec.update, target))
    # A replacement of a preempted pod would take the probe's room.
    missing = wanted - len(stock) - given.creating - len(given.preempted)
    if competing or given.awaits_probe:
        missing = 0
    cold = left.count(SandboxState.COLD) + given.creating_cold
    creation = _creatable(given, stock, stalled, missing, cold)
    failed = [deletion for deletion in deletions if deletion.failed]
    if failed:
        # Their replacements wait for the backoff of this failure.
        creation = creation.after_failures(len(failed), failed[0].reason)
    unexplained = [
        m for m in given.members.of(SandboxState.FAILED) if m.uid in given.pending_event_reads
    ]
    if unexplained:
        # So do those of failed pods that are kept until their events are read.
        creation = creation.after_failures(len(unexplained), Reason.POD_FAILED)
    create, blocked_by = creation.stock, creation.blocked_by
    if creation.only_ceiling_blocks and 0 < missing - create <= len(stalled):
        # At the limit a stalled pod is deleted before its replacement is created.
        deletions.append(replacement_deletion(stalled[0], stock))
    return PoolPlan(
        target,
        create,
        tuple(deletions),
        blocked_by,
        _requeue_at(given, stock),
        cold=creation.cold,
        cold_blocked_by=creation.cold_blocked_by,
        stuck_nodes=frozenset(member.node_name for member in stuck),
        avoid=avoid,
        awaits_probe=bool(competing),
    )


def _uids(deletions: list[Deletion]) -> set[str]:
    return {deletion.member.uid for deletion in deletions}


def _without(deletions: list[Deletion], members: Members) -> Members:
    return members.without([deletion.member for deletion in deletions])


def _stock(given: PoolInput, members: Members) -> Members:
    """The members that count towards the target: they are warm or may become warm."""
    stock = members.only(*STOCK)
    for member in members.of(SandboxState.STRANDED):
        if counts_as_starting(member, given):
            stock.put(member)
    return stock


def _can_create(given: PoolInput) -> bool:
    """Whether the class and the template allow the creation of replacements."""
    return given.resolution.usable and given.template.state is TemplateState.ACCEPTED


def _to_relocate(given: PoolInput, left: Members, target: int) -> list[Deletion]:
    """Ready pods on unsuitable nodes, within maxUnavailable, as others become warm.

    Where they cannot be replaced, only those beyond the target are deleted, because their nodes may
    be uncordoned or released.
    """
    candidates = sorted(filter(_is_to_relocate, left.of(SandboxState.STRANDED)), key=oldest_first)
    floor = target
    if _can_create(given) and given.verdict.has_candidate_nodes:
        ceiling = given.spec.max_sandboxes
        if ceiling is not None:
            # Pods that stay and cannot be allocated leave less room for warm ones.
            staying = left.count(
                SandboxState.CLAIMED,
                SandboxState.COLD,
                SandboxState.UNPROVEN,
                SandboxState.STRANDED,
            )
            floor = min(floor, ceiling - (staying - len(candidates)))
        floor -= max_unavailable(given.spec.update, target)
    budget = max(0, left.count(SandboxState.WARM) + len(candidates) - max(0, floor))
    # A pod that was scheduled to such a node counts as a failure, because the next may be, too.
    failed = any(member.misplaced for member in candidates)
    return [
        Deletion(member, *relocation_reason(member), failed=failed)
        for member in candidates[:budget]
    ]


def _is_to_relocate(member: Member) -> bool:
    """Whether a pod is ready on a Ready node that is cordoned, quarantined or not isolating."""
    node, host_state = member.node, member.host_state
    return (
        member.state is SandboxState.STRANDED
        and member.ready
        and node is not None
        and node.ready
        and host_state.handler_served
    )


def _to_roll(given: PoolInput, stock: Members, target: int) -> list[Deletion]:
    """The outdated and expired pods to delete now, by the update strategy."""
    if not _can_create(given):
        return []
    update = given.spec.update
    text = "it is of an older revision of the template"
    if update.type is UpdateType.RECREATE:
        rolled = sorted(stock.where(lambda m: outdated(m, given)), key=oldest_first)
        if rolled:
            return [Deletion(member, Reason.ROLLING, text) for member in rolled]
    not_warm = stock.where(lambda m: m.state is not SandboxState.WARM and outdated(m, given))
    rolls = True
    if update.type is UpdateType.ON_CLAIM:
        # Outdated pods wait to be claimed; a pod without its probe container never can be.
        per_sandbox = given.spec.isolation_proof is IsolationProof.PER_SANDBOX
        not_warm = (m for m in not_warm if per_sandbox and m.state is SandboxState.UNPROVEN)
        rolls = False
    found = [Deletion(m, Reason.ROLLING, text) for m in sorted(not_warm, key=oldest_first)]
    warm = stock.count(SandboxState.WARM)
    budget = max(0, warm - max(0, target - max_unavailable(update, target)))
    # Iterating by age visits no more pods of a large pool than are deleted.
    some = rolls and any(stock.where(lambda m: m.state is SandboxState.WARM and outdated(m, given)))
    by_age = stock.warm_by_age() if some else iter(())
    rolled_warm = (m for m in by_age if outdated(m, given))
    found += [Deletion(m, Reason.ROLLING, text) for m in islice(rolled_warm, budget)]
    known = {deletion.member.uid for deletion in found}
    aged = (member for member in _expired(given, stock) if member.uid not in known)
    text = "it is older than maxAgeSeconds"
    left = budget - sum(deletion.member.state is SandboxState.WARM for deletion in found)
    return found + [Deletion(m, Reason.ROLLING, text) for m in islice(aged, left)]


def _expired(given: PoolInput, stock: Members) -> Iterator[Member]:
    """The warm members beyond maxAgeSeconds, the oldest first."""
    limit = given.spec.max_age_seconds
    if limit is None:
        return iter(())
    return takewhile(lambda m: given.now - m.created > limit, stock.warm_by_age())


def _excess(given: PoolInput, stock: Members, target: int, stalled: list[Member]) -> list[Deletion]:
    """The members beyond the target: not ready ones first, then outdated ones, then the newest."""
    # Expected pods are not counted: they are the first to be deleted once they are observed.
    excess = len(stock) - target
    kept: set[str] = set()
    if stalled:
        # The replacements of stalled pods may start.
        stalled_uids = {member.uid for member in stalled}
        starting = [m for m in stock.of(SandboxState.STARTING) if m.uid not in stalled_uids]
        starting = sorted(starting, key=oldest_first)[: max_unavailable(given.spec.update, target)]
        kept = {member.uid for member in starting}
        excess -= len(kept)
    if excess <= 0:
        return []
    deletions = [replacement_deletion(member, stock) for member in stalled[:excess]]
    known = kept | {member.uid for member in stalled}
    ranked = sorted(
        (member for member in stock if member.uid not in known),
        key=lambda m: (m.state is SandboxState.WARM, not outdated(m, given), -m.created, m.name),
    )
    text = "the pool has more than its target"
    left = excess - len(deletions)
    return deletions + [Deletion(m, Reason.AT_TARGET, text) for m in ranked[:left]]


def _is_backing_off(given: PoolInput) -> bool:
    """Whether creates are delayed; a serving node ends the delay for an autoscaler."""
    backoff = given.backoff
    answered = (
        backoff.reason is Reason.AUTOSCALER_ADDS_WRONG_NODES and given.verdict.has_candidate_nodes
    )
    return backoff.until > given.now and not answered


@dataclass(frozen=True, slots=True)
class _Creation:
    """The numbers of pods to create for the stock and for claims, and why not more of each."""

    stock: int = 0
    blocked_by: Reason | None = None
    cold: int = 0
    cold_blocked_by: Reason | None = None
    # One more pod of the stock could be created now if `maxSandboxes` allowed it.
    only_ceiling_blocks: bool = False

    def after_failures(self, count: int, reason: Reason) -> "_Creation":
        """The rest after the replacements of this many failed pods are delayed."""
        return _Creation(
            max(0, self.stock - count),
            reason if self.stock else self.blocked_by,
            max(0, self.cold - count),
            reason if self.cold else self.cold_blocked_by,
            self.only_ceiling_blocks,
        )


def _create_blocked_by(given: PoolInput) -> Reason | None:
    """Why no pod at all can be created now; None if pods can."""
    if given.cache_stale:
        return Reason.CACHE_STALE
    if not given.resolution.usable:
        return given.resolution.reason
    if given.template.state is not TemplateState.ACCEPTED:
        return given.template.reason
    if _is_backing_off(given):
        return given.backoff.reason
    # Until every node that must not run the pods has its exclusion label.
    return Reason.EXCLUSION_PENDING if given.verdict.exclusions_pending else None


def _creatable(
    given: PoolInput, stock: Members, stalled: list[Member], missing: int, starting_cold: int
) -> _Creation:
    missing = max(0, missing)
    demand = sum(given.claim_queue)
    if not missing and not demand:
        return _Creation()
    blocked = _create_blocked_by(given)
    if blocked is not None:
        return _Creation(
            blocked_by=blocked if missing else None, cold_blocked_by=blocked if demand else None
        )
    members, spec = given.members, given.spec
    unacknowledged = sum(
        map(
            unacknowledged_on_lost_node,
            members.of(SandboxState.STRANDED, SandboxState.COLD, SandboxState.STOPPING),
        )
    )
    if unacknowledged >= MAX_UNACKNOWLEDGED_ROUNDS * spec.startup.max_starting:
        lost = Reason.HELD_BY_LOST_NODES
        return _Creation(
            blocked_by=lost if missing else None, cold_blocked_by=lost if demand else None
        )
    room = missing + demand
    if spec.max_sandboxes is not None:
        taken = len(members) - members.count(*_NOT_COUNTED)
        room = max(0, spec.max_sandboxes - taken - given.creating - given.creating_cold)
    blocked_by = _ceiling_reason(given) if room < missing else None
    stuck = sum(member.state is SandboxState.STARTING for member in stalled)
    starting = stock.count(SandboxState.STARTING, SandboxState.STRANDED) - stuck + given.creating
    limit = spec.startup.max_starting
    if not given.verdict.has_candidate_nodes:
        # A single pending pod shows the demand to an autoscaler.
        limit, blocked_by = 1, no_candidate_node_reason(given.verdict)
    elif given.backoff.failures >= CAUTIOUS_AFTER_FAILURES:
        limit = 1
    slots = max(0, limit - starting - starting_cold)
    cold = _cold_start_count(given.claim_queue, starting, missing, min(slots, room))
    cold_blocked_by = None
    if cold < demand:
        cold_blocked_by = blocked_by or Reason.MAX_STARTING_REACHED
        if room < demand and given.verdict.has_candidate_nodes:
            cold_blocked_by = Reason.MAX_SANDBOXES_REACHED
    create = max(0, min(missing, room - cold, slots - cold))
    return _Creation(
        create,
        blocked_by,
        cold,
        cold_blocked_by,
        blocked_by is Reason.CLAMPED_BY_MAX_SANDBOXES and slots > cold + create,
    )


def _cold_start_count(queue: tuple[bool, ...], starting: int, missing: int, slots: int) -> int:
    """The number of cold starts to make so that the claims are served in the queue's order.

    Args:
        queue: the waiting claims in their order: whether each requests a cold start.
        starting: the number of starting sandboxes of the stock.
        missing: the number of sandboxes that the stock lacks.
        slots: the number of sandboxes that can be started now.
    """
    cold = reserved = 0
    for wants_cold in queue:
        if cold + reserved >= slots:
            break
        if wants_cold:
            cold += 1
        elif starting:
            starting -= 1
        elif reserved < missing:
            reserved += 1
    return cold


def no_candidate_node_reason(verdict: Verdict) -> Reason:
    """Why no node can run a pod."""
    if verdict.quarantined:
        return Reason.ALL_NODES_QUARANTINED
    if verdict.not_isolating:
        return Reason.ISOLATION_NOT_PROVEN
    return Reason.NO_NODE_SERVES if verdict.eligible else Reason.NO_ELIGIBLE_NODE


def _ceiling_reason(given: PoolInput) -> Reason:
    lost = any(
        m.node is None or not m.node.ready
        for m in given.members.of(SandboxState.STOPPING, SandboxState.STRANDED)
        if m.node_name
    )
    return Reason.CEILING_HELD_BY_LOST_NODE if lost else Reason.CLAMPED_BY_MAX_SANDBOXES


def _requeue_at(given: PoolInput, stock: Members) -> float | None:
    """Epoch seconds at which time alone may change the decision; None for never."""
    times = []
    if given.backoff.until > given.now:
        times.append(given.backoff.until)
    unready = given.members.of(
        SandboxState.STRANDED, SandboxState.UNREADY, SandboxState.STARTING, SandboxState.COLD
    )
    times += [at for member in unready if (at := member_deadline(member, given)) is not None]
    limit = given.spec.max_age_seconds
    if limit is not None:
        # Expired pods are deleted as others become warm, not by time.
        young = dropwhile(lambda m: given.now - m.created > limit, stock.warm_by_age())
        times += [member.created + limit for member in islice(young, 1)]
    moments = (when + TIMESTAMP_RESOLUTION_SECONDS for when in times)
    # A deadline passes strictly after its moment, so another reconcile must follow.
    return min((when for when in moments if when >= given.now), default=None)
