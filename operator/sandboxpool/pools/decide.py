"""What to create and what to delete, as a pure function of what is known.

``decide`` is total and deterministic. It writes nothing, logs nothing and reads no clock; what
it refuses to do it says with a reason, which becomes the condition, the event and the metric.
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

# Creation times have whole seconds: what seems so old may be this much younger.
TIMESTAMP_RESOLUTION_SECONDS = 1.0
# After so many failures in a row a pool tries one sandbox at a time.
CAUTIOUS_AFTER_FAILURES = 2
# What its node has freed takes no room under the ceiling.
_ROOMLESS = (SandboxState.FAILED, SandboxState.ENDED)


def decide(given: PoolInput) -> PoolPlan:
    """Compare what is with what should be."""
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
    faltering = stalled_members(given, replaceable)
    avoid = nodes_to_avoid(replaceable, faltering)
    deletions = irrecoverable(given, faltering)
    known = {deletion.member.uid for deletion in deletions}
    waiting = [d for d in competing_with_probes(given) if d.member.uid not in known]
    deletions += [d for d in preempted_by_probes(given) if d.member.uid not in known] + waiting
    left = _without(deletions, given.members)
    moved = _to_relocate(given, left, target)
    stock = _stock(given, left)
    rolled = _to_roll(given, stock, target)
    stock = _without(rolled, stock)
    going = {deletion.member.uid for deletion in (*deletions, *rolled)}
    faltering = [m for m in faltering if m.state is not SandboxState.COLD and m.uid not in going]
    surplus = _excess(given, stock, target, faltering)
    stock = _without(surplus, stock)
    going = {deletion.member.uid for deletion in surplus}
    faltering = [member for member in faltering if member.uid not in going]
    deletions += moved + rolled + surplus

    # Beyond the target, to take the place of what seems not to become warm.
    wanted = target + min(len(faltering), max_unavailable(spec.update, target))
    # Whatever takes the place of one that gives way would take the probe's.
    missing = wanted - len(stock) - given.creating - len(given.preempted)
    if waiting or given.awaits_probe:
        # There is no room for others anyway.
        missing = 0
    cold = left.count(SandboxState.COLD) + given.creating_cold
    creation = _creatable(given, stock, faltering, missing, cold)
    failed = [deletion for deletion in deletions if deletion.failed]
    if failed:
        # Their successors wait for the delay that this failure brings.
        creation = creation.after_failures(len(failed), failed[0].reason)
    asked_about = [
        m for m in given.members.of(SandboxState.FAILED) if m.uid in given.pending_event_reads
    ]
    if asked_about:
        # So do those of the ones that have failed and are kept until it is known why.
        creation = creation.after_failures(len(asked_about), Reason.POD_FAILED)
    create, held = creation.stock, creation.blocked_by
    replacing = 0 < missing <= len(faltering) and not create
    if replacing and held is Reason.CLAMPED_BY_MAX_SANDBOXES:
        # What is of no use makes room for what may be.
        deletions.append(replacement_deletion(faltering[0], stock))
    return PoolPlan(
        target,
        create,
        tuple(deletions),
        held,
        _requeue_at(given, stock),
        cold=creation.cold,
        cold_blocked_by=creation.cold_blocked_by,
        stuck_nodes=frozenset(member.node_name for member in stuck),
        avoid=avoid,
        awaits_probe=bool(waiting),
    )


def _without(deletions: list[Deletion], members: Members) -> Members:
    return members.without([deletion.member for deletion in deletions])


def _stock(given: PoolInput, members: Members) -> Members:
    """Those that count towards the target: they are warm, or may yet become so."""
    stock = members.only(*STOCK)
    for member in members.of(SandboxState.STRANDED):
        if counts_as_starting(member, given):
            stock.put(member)
    return stock


def _replaceable(given: PoolInput) -> bool:
    """Pods can be made that take the place of others."""
    return given.resolution.usable and given.template.state is TemplateState.ACCEPTED


def _to_relocate(given: PoolInput, left: Members, target: int) -> list[Deletion]:
    """Ready pods on doubtful nodes, as others become warm, within the budget.

    Where nothing can take their place they stay, for their nodes may be released; only those that
    the target has no use for go.
    """
    doubtful = sorted(filter(_is_to_relocate, left.of(SandboxState.STRANDED)), key=oldest_first)
    floor = target
    if _replaceable(given) and given.verdict.has_candidate_nodes:
        ceiling = given.spec.max_sandboxes
        if ceiling is not None:
            # What stays and cannot be handed out leaves no room to make others first.
            staying = left.count(
                SandboxState.CLAIMED,
                SandboxState.COLD,
                SandboxState.UNPROVEN,
                SandboxState.STRANDED,
            )
            floor = min(floor, ceiling - (staying - len(doubtful)))
        floor -= max_unavailable(given.spec.update, target)
    budget = max(0, left.count(SandboxState.WARM) + len(doubtful) - max(0, floor))
    # Where one was put on such a node, the next may be: were that no failure, it would never end.
    failed = any(member.misplaced for member in doubtful)
    return [
        Deletion(member, *relocation_reason(member), failed=failed) for member in doubtful[:budget]
    ]


def _is_to_relocate(member: Member) -> bool:
    """Ready, on a node that is well, but cordoned or not to be trusted with it."""
    node, host_state = member.node, member.host_state
    return (
        member.state is SandboxState.STRANDED
        and member.ready
        and node is not None
        and node.ready
        and host_state.handler_served
    )


def _to_roll(given: PoolInput, stock: Members, target: int) -> list[Deletion]:
    """The pods of an older template, or too old, as the update strategy allows."""
    if not _replaceable(given):
        return []
    update = given.spec.update
    text = "it is of an older revision of the template"
    if update.type is UpdateType.RECREATE:
        rolled = sorted(stock.where(lambda m: outdated(m, given)), key=oldest_first)
        if rolled:
            return [Deletion(member, Reason.ROLLING, text) for member in rolled]
    useless = stock.where(lambda m: m.state is not SandboxState.WARM and outdated(m, given))
    rolls = True
    if update.type is UpdateType.ON_CLAIM:
        # They wait to be claimed; one that was made without its probe never can be.
        per_sandbox = given.spec.isolation_proof is IsolationProof.PER_SANDBOX
        useless = (m for m in useless if per_sandbox and m.state is SandboxState.UNPROVEN)
        rolls = False
    found = [Deletion(m, Reason.ROLLING, text) for m in sorted(useless, key=oldest_first)]
    warm = stock.count(SandboxState.WARM)
    budget = max(0, warm - max(0, target - max_unavailable(update, target)))
    # Of a large pool no more are looked at than may go: the oldest are the first in any case.
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
    """The warm ones that are too old, the oldest first."""
    limit = given.spec.max_age_seconds
    if limit is None:
        return iter(())
    return takewhile(lambda m: given.now - m.created > limit, stock.warm_by_age())


def _excess(given: PoolInput, stock: Members, target: int, stalled: list[Member]) -> list[Deletion]:
    """More than the target: first what is not ready, then what is outdated, then the newest."""
    # What was asked for and is not seen yet is the first to go as soon as it is: no warm one goes
    # on its account.
    excess = len(stock) - target
    kept: set[str] = set()
    if stalled:
        # Those that are to take their place may start.
        given_up = {member.uid for member in stalled}
        starting = [m for m in stock.of(SandboxState.STARTING) if m.uid not in given_up]
        starting = sorted(starting, key=oldest_first)[: max_unavailable(given.spec.update, target)]
        kept = {member.uid for member in starting}
        excess -= len(kept)
    if excess <= 0:
        return []
    going = [replacement_deletion(member, stock) for member in stalled[:excess]]
    known = kept | {member.uid for member in stalled}
    ranked = sorted(
        (member for member in stock if member.uid not in known),
        key=lambda m: (m.state is SandboxState.WARM, not outdated(m, given), -m.created, m.name),
    )
    text = "the pool has more than its target"
    left = excess - len(going)
    return going + [Deletion(m, Reason.AT_TARGET, text) for m in ranked[:left]]


def _is_backing_off(given: PoolInput) -> bool:
    """It waits after a failure; not for an autoscaler, once a node serves the runtime."""
    trouble = given.backoff
    answered = (
        trouble.reason is Reason.AUTOSCALER_ADDS_WRONG_NODES and given.verdict.has_candidate_nodes
    )
    return trouble.until > given.now and not answered


@dataclass(frozen=True, slots=True)
class _Creation:
    """How many pods to create for the stock and for claims, and why not more of each."""

    stock: int = 0
    blocked_by: Reason | None = None
    cold: int = 0
    cold_blocked_by: Reason | None = None

    def after_failures(self, count: int, reason: Reason) -> "_Creation":
        """What is left where so many of those that go have failed."""
        return _Creation(
            max(0, self.stock - count),
            reason if self.stock else self.blocked_by,
            max(0, self.cold - count),
            reason if self.cold else self.cold_blocked_by,
        )


def _create_blocked_by(given: PoolInput) -> Reason | None:
    """Why nothing at all can be created now."""
    if given.cache_stale:
        return Reason.CACHE_STALE
    if not given.resolution.usable:
        return given.resolution.reason
    if given.template.state is not TemplateState.ACCEPTED:
        return given.template.reason
    if _is_backing_off(given):
        return given.backoff.reason
    # For the moment until the last node that would take a pod, and must not, has its label.
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
    lie_in_vain = sum(
        map(
            unacknowledged_on_lost_node,
            members.of(SandboxState.STRANDED, SandboxState.COLD, SandboxState.STOPPING),
        )
    )
    if lie_in_vain >= MAX_UNACKNOWLEDGED_ROUNDS * spec.startup.max_starting:
        lost = Reason.HELD_BY_LOST_NODES
        return _Creation(
            blocked_by=lost if missing else None, cold_blocked_by=lost if demand else None
        )
    room = missing + demand
    if spec.max_sandboxes is not None:
        taken = len(members) - members.count(*_ROOMLESS)
        room = max(0, spec.max_sandboxes - taken - given.creating - given.creating_cold)
    held = _ceiling_reason(given) if room < missing else None
    stuck = sum(member.state is SandboxState.STARTING for member in stalled)
    starting = stock.count(SandboxState.STARTING, SandboxState.STRANDED) - stuck + given.creating
    limit = spec.startup.max_starting
    if not given.verdict.has_candidate_nodes:
        # One pod stays pending, so that an autoscaler sees the demand, and no more than one.
        limit, held = 1, no_candidate_node_reason(given.verdict)
    elif given.backoff.failures >= CAUTIOUS_AFTER_FAILURES:
        limit = 1
    places = max(0, limit - starting - starting_cold)
    cold = _cold_start_count(given.claim_queue, starting, missing, min(places, room))
    cold_blocked_by = None
    if cold < demand:
        cold_blocked_by = held or Reason.MAX_STARTING_REACHED
        if room < demand and given.verdict.has_candidate_nodes:
            cold_blocked_by = Reason.MAX_SANDBOXES_REACHED
    return _Creation(
        max(0, min(missing, room - cold, places - cold)),
        held,
        cold,
        cold_blocked_by,
    )


def _cold_start_count(line: tuple[bool, ...], starting: int, missing: int, places: int) -> int:
    """For how many claims to start a sandbox of their own, so that the first in line come first.

    Args:
        line: the claims in line: whether each wants a sandbox of its own.
        starting: how many sandboxes of the stock are on their way to the first in line.
        missing: how many of the stock would be made if there were places enough.
        places: how many sandboxes can be started now.
    """
    cold = reserved = 0
    for wants_cold in line:
        if cold + reserved >= places:
            break
        if wants_cold:
            cold += 1
        elif starting:
            starting -= 1
        elif reserved < missing:
            reserved += 1
    return cold


def no_candidate_node_reason(verdict: Verdict) -> Reason:
    """Why no node can take a pod."""
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
    """When time alone can change the decision."""
    times = []
    if given.backoff.until > given.now:
        times.append(given.backoff.until)
    passing = given.members.of(
        SandboxState.STRANDED, SandboxState.UNREADY, SandboxState.STARTING, SandboxState.COLD
    )
    times += [at for member in passing if (at := member_deadline(member, given)) is not None]
    limit = given.spec.max_age_seconds
    if limit is not None:
        # Those that are too old already go as others become warm.
        young = dropwhile(lambda m: given.now - m.created > limit, stock.warm_by_age())
        times += [member.created + limit for member in islice(young, 1)]
    moments = (when + TIMESTAMP_RESOLUTION_SECONDS for when in times)
    # At the very moment itself nothing is due yet, and another look must follow.
    return min((when for when in moments if when >= given.now), default=None)
