"""What to create and what to delete, as a pure function of what is known.

``decide`` is total and deterministic. It writes nothing, logs nothing and reads no clock; what
it refuses to do it says with a reason, which becomes the condition, the event and the metric.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import chain, dropwhile, islice, takewhile

from sandboxpool.api.v1alpha1 import IsolationProof, SandboxPoolSpec, UpdateType
from sandboxpool.pools.members import STOCK, Member, Members, State, oldest_first
from sandboxpool.reasons import Reason
from sandboxpool.runtimes.quarantine import Quarantine
from sandboxpool.runtimes.resolve import Resolution
from sandboxpool.runtimes.verdict import Verdict

# Creation times have whole seconds: what seems so old may be this much younger.
CLOCK_GRAIN_SECONDS = 1.0
# A readiness probe that fails is given this long to pass again: a probe fails three times, ten
# seconds apart, before it counts, and passes as it failed.
UNREADY_GRACE_SECONDS = 60.0
# What waits for the kubelet for this long, for an image or a ConfigMap, is tried on another node.
STUCK_SECONDS = 60.0
# A node that is not known, though a pod is on it, counts as gone once the pod is this old.
NEW_NODE_SECONDS = 60.0
# After so many failures in a row a pool tries one sandbox at a time.
CAUTIOUS_AFTER_FAILURES = 2
# An unschedulable pod whose exclusion is out of date is replaced after this many seconds, so
# that a node that flaps does not cause churn.
STALE_EXCLUSION_SECONDS = 10.0
# Runtimes are installed after a node is Ready: so long after it joined, a node that still does not
# serve the handler never will by itself.
INSTALL_GRACE_SECONDS = 300.0


class TemplateState(Enum):
    """What the API server's dry run said."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, slots=True)
class TemplateVerdict:
    """The dry run's outcome, for the template and class of this moment."""

    state: TemplateState
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why creating is held off for a while.

    Attributes:
        failures: how many rounds failed in a row, without a success between.
        until: epoch seconds before which nothing is created.
        reason: of the last failure.
        message: of the last failure.
    """

    failures: int = 0
    until: float = 0.0
    reason: Reason = Reason.OK
    message: str = ""


@dataclass(frozen=True, slots=True)
class PoolInput:
    """Everything that the decision depends on.

    Attributes:
        revision: the template's revision now.
        exclusion: fingerprint of the nodes to keep away from now.
        quarantines: the quarantines of the nodes that the verdict calls quarantined.
        creating: pods that were asked for and are not yet seen.
        creating_cold: the same, for claims: they are not of the stock.
        line: the claims that wait, the first in line at the front: whether each wants a sandbox to
            be started for it.
        stuck_nodes: nodes on which sandboxes of this pool were stuck of late.
        guarded: an admission policy lets nobody else forge what stands on the pool's pods.
        now: seconds since the epoch, by the API server's clock.
        clock: seconds of our own monotonic clock.
        blind: the cache of pods is too old to create anything by.
    """

    spec: SandboxPoolSpec
    revision: str
    resolution: Resolution
    verdict: Verdict
    exclusion: str
    template: TemplateVerdict
    members: Members
    quarantines: tuple[tuple[str, Quarantine], ...]
    creating: int
    creating_cold: int
    line: tuple[bool, ...]
    stuck_nodes: frozenset[str]
    trouble: Trouble
    guarded: bool
    now: float
    clock: float
    blind: bool = False


@dataclass(frozen=True, slots=True)
class Deletion:
    """A pod to delete, and why.

    Attributes:
        failed: it goes because it did not work, so the next ones are made with care.
    """

    member: Member
    reason: Reason
    message: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """What to do now.

    Attributes:
        target: how many warm sandboxes are aimed at: replicas, clamped by maxSandboxes.
        create: how many pods to create.
        delete: the pods to delete.
        held: why fewer are created than are missing; None if nothing holds.
        recheck: epoch seconds at which the answer may change by itself; None for never.
        cold: for how many of the claims that want it a pod is to be created, the first in line.
        cold_held: why not for all of them; None if for all.
        stuck_nodes: nodes on which sandboxes of this pool are stuck now.
        avoid: those of them that others shall keep away from, and why.
    """

    target: int
    create: int
    delete: tuple[Deletion, ...]
    held: Reason | None
    recheck: float | None
    cold: int = 0
    cold_held: Reason | None = None
    stuck_nodes: frozenset[str] = frozenset()
    avoid: tuple[tuple[str, str], ...] = ()


# What may have to go for its own sake.
_PERISHABLE = (State.FAILED, State.STRANDED, State.STARTING, State.COLD)
# What its node has freed takes no room under the ceiling.
_ROOMLESS = (State.FAILED, State.ENDED)


def outdated(member: Member, given: PoolInput) -> bool:
    """The pod is of an older template, or was made with another overhead of its class.

    The same for all of its kind, as is `foreign`.
    """
    runtime = given.resolution.runtime
    return member.revision != given.revision or (
        runtime is not None
        and member.runtime_uid == runtime.uid
        and member.overhead != runtime.overhead
    )


def foreign(member: Member, given: PoolInput) -> bool:
    """The pod is of another class than the pool's of now: it must never be handed out."""
    runtime = given.resolution.runtime
    return runtime is not None and (
        member.runtime_uid != runtime.uid or member.class_name != runtime.class_name
    )


def decide(given: PoolInput) -> PoolPlan:
    """Compare what is with what should be."""
    spec = given.spec
    claimed = given.members.count(State.CLAIMED, State.COLD)
    target = spec.replicas
    if spec.max_sandboxes is not None:
        target = max(0, min(target, spec.max_sandboxes - claimed))
    if spec.paused:
        cold_held = Reason.PAUSED if any(given.line) else None
        return PoolPlan(target, 0, (), Reason.PAUSED, None, cold_held=cold_held)

    stuck = [m for m in given.members.of(State.STARTING, State.COLD) if _is_stuck(m, given)]
    stuck_nodes = frozenset(member.node_name for member in stuck)
    if not {*given.verdict.serving, *given.verdict.unknown} - stuck_nodes - given.stuck_nodes:
        # Another would fare no better, wherever it came to.
        stuck = []
    avoid = {m.node_name: m.failure.message for m in stuck if m.failure is not None}
    faltering = _faltering(given, stuck)
    deletions = _hopeless(given, faltering)
    left = _without(deletions, given.members)
    moved = _moved(given, left, target)
    stock = _stock(given, left)
    rolled = _superseded(given, stock, target)
    stock = _without(rolled, stock)
    going = {deletion.member.uid for deletion in (*deletions, *rolled)}
    faltering = [m for m in faltering if m.state is not State.COLD and m.uid not in going]
    surplus = _surplus(given, stock, target, faltering)
    stock = _without(surplus, stock)
    going = {deletion.member.uid for deletion in surplus}
    faltering = [member for member in faltering if member.uid not in going]
    deletions += moved + rolled + surplus

    wanted = target + min(len(faltering), _replaced_at_once(given))
    missing = wanted - len(stock) - given.creating
    cold = left.count(State.COLD) + given.creating_cold
    creation = _creatable(given, stock, faltering, missing, cold)
    create, held = creation.stock, creation.held
    failed = [deletion for deletion in deletions if deletion.failed]
    if failed and create:
        # Their successors wait for the delay that this failure brings.
        create, held = max(0, create - len(failed)), failed[0].reason
    replacing = 0 < missing <= len(faltering) and not create
    if replacing and held is Reason.CLAMPED_BY_MAX_SANDBOXES:
        # What is of no use makes room for what may be.
        deletions.append(_replaced(faltering[0], stock))
    return PoolPlan(
        target,
        create,
        tuple(deletions),
        held,
        _recheck(given, stock),
        cold=creation.cold,
        cold_held=creation.cold_held,
        stuck_nodes=stuck_nodes,
        avoid=tuple(sorted(avoid.items())),
    )


def _without(deletions: list[Deletion], members: Members) -> Members:
    return members.without([deletion.member for deletion in deletions])


def _stock(given: PoolInput, members: Members) -> Members:
    """Those that count towards the target: they are warm, or may yet become so."""
    stock = members.only(*STOCK)
    for member in members.of(State.STRANDED):
        if _waits_for_installer(member, given):
            stock.put(member)
    return stock


def _faltering(given: PoolInput, stuck: list[Member]) -> list[Member]:
    """What counts as stock and seems not to become warm, the oldest first.

    A sandbox that was ready may be so again, and one that waits for its image may yet get it, so
    they stay until others are warm in their place.
    """
    unready = [
        m for m in given.members.of(State.UNREADY) if given.clock - m.since > UNREADY_GRACE_SECONDS
    ]
    return sorted([*unready, *stuck], key=oldest_first)


def _is_stuck(member: Member, given: PoolInput) -> bool:
    """The kubelet goes on trying, and has done so for long."""
    failure = member.failure
    return (
        failure is not None
        and failure.heals
        and failure.reason is not Reason.UNSCHEDULABLE
        and bool(member.node_name)
        and given.clock - member.since > STUCK_SECONDS
    )


def _replaced_at_once(given: PoolInput) -> int:
    """How many are made beyond the target to take the place of what seems not to become warm."""
    return max(1, given.spec.update.max_unavailable)


def _replaced(member: Member, stock: Members) -> Deletion:
    """Another takes its place. Where none is warm that may fare the same, so it is a failure."""
    failure = member.failure
    reason = failure.reason if failure else Reason.POD_NOT_READY
    text = failure.message if failure else "it is not ready any more"
    return Deletion(member, reason, text, failed=not stock.count(State.WARM))


def _hopeless(given: PoolInput, faltering: list[Member]) -> list[Deletion]:
    """The pods that will never be handed out, whatever the target is."""
    usable = given.resolution.usable
    # What is started for a claim is alone: there is nothing to wait for.
    waiting = [_replaced(m, given.members) for m in faltering if m.state is State.COLD]
    doubtful = given.members.where(
        lambda m: m.state in _PERISHABLE or (m.unclaimed and usable and foreign(m, given))
    )
    known = {deletion.member.uid for deletion in waiting}
    found = (_hopeless_one(member, given) for member in doubtful if member.uid not in known)
    return sorted(
        chain(waiting, (deletion for deletion in found if deletion is not None)),
        key=lambda deletion: oldest_first(deletion.member),
    )


def _hopeless_one(member: Member, given: PoolInput) -> Deletion | None:
    failure = member.failure
    if member.unclaimed and given.resolution.usable and foreign(member, given):
        return _of_another_class(member, given)
    if member.state is State.FAILED:
        reason = failure.reason if failure else Reason.POD_FAILED
        return Deletion(member, reason, failure.message if failure else "it ended", failed=True)
    if member.state is State.STRANDED:
        return _stranded(member, given)
    if member.state not in (State.STARTING, State.COLD):
        return None
    if member.node_name and member.node is None and member.state is State.COLD:
        return _node_lost(member, given)
    waited = given.clock - member.since
    if failure is not None and failure.heals:
        if failure.reason is not Reason.UNSCHEDULABLE:
            # The kubelet goes on trying: see _faltering.
            return None
        if wrong_nodes_join(member, given):
            text = "the nodes that joined while it waited do not serve its runtime"
            return Deletion(member, Reason.AUTOSCALER_ADDS_WRONG_NODES, text, failed=True)
        # Where no node is hopeful another pod would fare no better, and would seem to have been
        # made after the nodes that joined for this one.
        stale = member.exclusion != given.exclusion and given.verdict.hopeful
        if stale and waited > STALE_EXCLUSION_SECONDS:
            text = "the nodes that serve its runtime have changed"
            return Deletion(member, Reason.SANDBOX_REPLACED, text)
        return None
    limit = given.spec.startup.timeout_seconds
    # Without a node it does not start yet: whatever keeps it from one, another would meet the same.
    if member.node_name and waited > limit:
        reason = failure.reason if failure else Reason.SANDBOX_START_TIMEOUT
        text = failure.message if failure else "no cause was reported"
        return Deletion(member, reason, f"not ready after {limit} s: {text}", failed=True)
    return None


def _node_lost(member: Member, given: PoolInput) -> Deletion | None:
    if given.clock - member.since < NEW_NODE_SECONDS:
        # Pods and nodes are watched apart: one that has just joined may not be seen yet.
        return None
    return Deletion(member, Reason.NODE_LOST, f"node {member.node_name} is gone")


def _of_another_class(member: Member, given: PoolInput) -> Deletion:
    runtime = given.resolution.runtime
    if runtime is None or member.runtime_uid != runtime.uid:
        text = "it was made of another RuntimeClass than the pool's of now"
        return Deletion(member, Reason.RUNTIME_CHANGED, text)
    # The next one may well fare the same, so it counts as a failure.
    text = (
        f"it was asked for with RuntimeClass {runtime.class_name!r} and has "
        f"{member.class_name!r}: an admission plugin has changed it"
    )
    return Deletion(member, Reason.RUNTIME_CHANGED, text, failed=True)


def wrong_nodes_join(member: Member, given: PoolInput) -> bool:
    """An autoscaler has answered this waiting pod with nodes that do not serve its runtime."""
    verdict = given.verdict
    return (
        not verdict.hopeful
        and verdict.newest_not_serving > member.created
        and given.now - verdict.newest_not_serving > INSTALL_GRACE_SECONDS
    )


def _waits_for_installer(member: Member, given: PoolInput) -> bool:
    """It has come to a node that joined for it, on which its runtime may yet be installed."""
    node = member.node
    return (
        member.state is State.STRANDED
        and not member.ready
        and not given.verdict.hopeful
        and node is not None
        and node.usable
        and not member.ground.served
        and node.created > member.created
    )


def _stranded(member: Member, given: PoolInput) -> Deletion | None:
    node, ground = member.node, member.ground
    if node is None:
        return _node_lost(member, given)
    if not node.ready:
        # A node that comes back brings its pods back; until then a replacement stands in.
        return None
    lost_it = member.was_ready and not member.ready
    if lost_it and given.clock - member.since <= UNREADY_GRACE_SECONDS:
        return None
    if not node.schedulable and ground.served:
        if member.ready or not given.verdict.hopeful:
            # It goes when another has taken its place, and may be all that there is until then.
            return None
        return Deletion(member, *_doubt(member))
    if _waits_for_installer(member, given):
        if given.now - node.created <= INSTALL_GRACE_SECONDS:
            return None
        text = f"node {member.node_name}, which joined while it waited, does not serve its runtime"
        return Deletion(member, Reason.AUTOSCALER_ADDS_WRONG_NODES, text, failed=True)
    if not ground.served:
        text = f"node {member.node_name} does not serve the handler any more"
        # One that never started was put where it never could: the next are made with care.
        return Deletion(member, Reason.HANDLER_REMOVED, text, failed=not member.ready)
    if member.ready:
        # It works, or seems to: it goes when another has taken its place.
        return None
    failure = member.failure
    if failure is not None and failure.blames_runtime:
        return Deletion(member, failure.reason, failure.message, failed=True)
    return Deletion(member, *_doubt(member), failed=True)


def _doubt(member: Member) -> tuple[Reason, str]:
    """Why the node of a member is not to be trusted with it."""
    if member.node is not None and not member.node.schedulable:
        text = f"node {member.node_name} is cordoned or being drained"
        return Reason.SANDBOX_REPLACED, text
    if member.ground.quarantined:
        return Reason.NODE_QUARANTINED, f"node {member.node_name} is quarantined"
    text = f"the runtime does not isolate on node {member.node_name}"
    return Reason.ISOLATION_NOT_PROVEN, text


def _replaceable(given: PoolInput) -> bool:
    """Pods can be made that take the place of others."""
    return given.resolution.usable and given.template.state is TemplateState.ACCEPTED


def _moved(given: PoolInput, left: Members, target: int) -> list[Deletion]:
    """Ready pods on doubtful nodes, as others become warm, within the budget.

    Where nothing can take their place they stay, for their nodes may be released; only those that
    the target has no use for go.
    """
    doubtful = sorted(filter(_doubtful, left.of(State.STRANDED)), key=oldest_first)
    floor = target
    if _replaceable(given) and given.verdict.hopeful:
        ceiling = given.spec.max_sandboxes
        if ceiling is not None:
            # What stays and cannot be handed out leaves no room to make others first.
            staying = left.count(State.CLAIMED, State.COLD, State.UNPROVEN, State.STRANDED)
            floor = min(floor, ceiling - (staying - len(doubtful)))
        floor -= given.spec.update.max_unavailable
    budget = max(0, left.count(State.WARM) + len(doubtful) - max(0, floor))
    return [Deletion(member, *_doubt(member)) for member in doubtful[:budget]]


def _doubtful(member: Member) -> bool:
    """Ready, on a node that is well, but cordoned or not to be trusted with it."""
    node, ground = member.node, member.ground
    return (
        member.state is State.STRANDED
        and member.ready
        and node is not None
        and node.ready
        and ground.served
    )


def _superseded(given: PoolInput, stock: Members, target: int) -> list[Deletion]:
    """The pods of an older template, or too old, as the update strategy allows."""
    if not _replaceable(given):
        return []
    update = given.spec.update
    text = "it is of an older revision of the template"
    if update.type is UpdateType.RECREATE:
        rolled = sorted(stock.where(lambda m: outdated(m, given)), key=oldest_first)
        if rolled:
            return [Deletion(member, Reason.ROLLING, text) for member in rolled]
    useless = stock.where(lambda m: m.state is not State.WARM and outdated(m, given))
    rolls = True
    if update.type is UpdateType.ON_CLAIM:
        # They wait to be claimed; one that was made without its probe never can be.
        per_sandbox = given.spec.isolation_proof is IsolationProof.PER_SANDBOX
        useless = (m for m in useless if per_sandbox and m.state is State.UNPROVEN)
        rolls = False
    found = [Deletion(m, Reason.ROLLING, text) for m in sorted(useless, key=oldest_first)]
    warm = stock.count(State.WARM)
    budget = max(0, warm - max(0, target - update.max_unavailable))
    # Of a large pool no more are looked at than may go: the oldest are the first in any case.
    some = rolls and any(stock.where(lambda m: m.state is State.WARM and outdated(m, given)))
    by_age = stock.warm_by_age() if some else iter(())
    rolled_warm = (m for m in by_age if outdated(m, given))
    found += [Deletion(m, Reason.ROLLING, text) for m in islice(rolled_warm, budget)]
    known = {deletion.member.uid for deletion in found}
    aged = (member for member in _aged(given, stock) if member.uid not in known)
    text = "it is older than maxAgeSeconds"
    left = budget - sum(deletion.member.state is State.WARM for deletion in found)
    return found + [Deletion(m, Reason.ROLLING, text) for m in islice(aged, left)]


def _aged(given: PoolInput, stock: Members) -> Iterator[Member]:
    """The warm ones that are too old, the oldest first."""
    limit = given.spec.max_age_seconds
    if limit is None:
        return iter(())
    return takewhile(lambda m: given.now - m.created > limit, stock.warm_by_age())


def _surplus(
    given: PoolInput, stock: Members, target: int, faltering: list[Member]
) -> list[Deletion]:
    """More than the target: first what is not ready, then what is outdated, then the newest."""
    # What was asked for and is not seen yet is the first to go as soon as it is: no warm one goes
    # on its account.
    excess = len(stock) - target
    kept: set[str] = set()
    if faltering:
        # Those that are to take their place may start.
        given_up = {member.uid for member in faltering}
        starting = [m for m in stock.of(State.STARTING) if m.uid not in given_up]
        starting = sorted(starting, key=oldest_first)[: _replaced_at_once(given)]
        kept = {member.uid for member in starting}
        excess -= len(kept)
    if excess <= 0:
        return []
    going = [_replaced(member, stock) for member in faltering[:excess]]
    known = kept | {member.uid for member in faltering}
    ranked = sorted(
        (member for member in stock if member.uid not in known),
        key=lambda m: (m.state is State.WARM, not outdated(m, given), -m.created, m.name),
    )
    text = "the pool has more than its target"
    left = excess - len(going)
    return going + [Deletion(m, Reason.AT_TARGET, text) for m in ranked[:left]]


def _held_off(given: PoolInput) -> bool:
    """It waits after a failure; not for an autoscaler, once a node serves the runtime."""
    trouble = given.trouble
    answered = trouble.reason is Reason.AUTOSCALER_ADDS_WRONG_NODES and given.verdict.hopeful
    return trouble.until > given.now and not answered


@dataclass(frozen=True, slots=True)
class _Creation:
    """How many pods to create for the stock and for claims, and why not more of each."""

    stock: int = 0
    held: Reason | None = None
    cold: int = 0
    cold_held: Reason | None = None


def _blocked(given: PoolInput) -> Reason | None:
    """Why nothing at all can be created now."""
    if given.blind:
        return Reason.CACHE_STALE
    if not given.resolution.usable:
        return given.resolution.reason
    if given.template.state is not TemplateState.ACCEPTED:
        return given.template.reason
    return given.trouble.reason if _held_off(given) else None


def _creatable(
    given: PoolInput, stock: Members, faltering: list[Member], missing: int, starting_cold: int
) -> _Creation:
    missing = max(0, missing)
    demand = sum(given.line)
    if not missing and not demand:
        return _Creation()
    blocked = _blocked(given)
    if blocked is not None:
        return _Creation(held=blocked if missing else None, cold_held=blocked if demand else None)
    members, spec = given.members, given.spec
    room = missing + demand
    if spec.max_sandboxes is not None:
        taken = len(members) - members.count(*_ROOMLESS)
        room = max(0, spec.max_sandboxes - taken - given.creating - given.creating_cold)
    held = _ceiling_reason(given) if room < missing else None
    stuck = sum(member.state is State.STARTING for member in faltering)
    starting = stock.count(State.STARTING, State.STRANDED) - stuck + given.creating
    limit = spec.startup.max_starting
    if not given.verdict.hopeful:
        # One pod stays pending, so that an autoscaler sees the demand, and no more than one.
        limit, held = 1, hopeless_reason(given.verdict)
    elif given.trouble.failures >= CAUTIOUS_AFTER_FAILURES:
        limit = 1
    places = max(0, limit - starting - starting_cold)
    cold = _started_cold(given.line, starting, missing, min(places, room))
    cold_held = None
    if cold < demand:
        cold_held = held or Reason.MAX_STARTING_REACHED
        if room < demand and given.verdict.hopeful:
            cold_held = Reason.MAX_SANDBOXES_REACHED
    return _Creation(
        max(0, min(missing, room - cold, places - cold)),
        held,
        cold,
        cold_held,
    )


def _started_cold(line: tuple[bool, ...], starting: int, missing: int, places: int) -> int:
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


def hopeless_reason(verdict: Verdict) -> Reason:
    """Why no node can take a pod."""
    if verdict.quarantined:
        return Reason.ALL_NODES_QUARANTINED
    if verdict.unproven:
        return Reason.ISOLATION_NOT_PROVEN
    return Reason.NO_NODE_SERVES if verdict.eligible else Reason.NO_ELIGIBLE_NODE


def _ceiling_reason(given: PoolInput) -> Reason:
    lost = any(
        m.node is None or not m.node.ready
        for m in given.members.of(State.STOPPING, State.STRANDED)
        if m.node_name
    )
    return Reason.CEILING_HELD_BY_LOST_NODE if lost else Reason.CLAMPED_BY_MAX_SANDBOXES


def _recheck(given: PoolInput, stock: Members) -> float | None:
    """When time alone can change the decision."""
    times = []
    if given.trouble.until > given.now:
        times.append(given.trouble.until)
    passing = given.members.of(State.STRANDED, State.UNREADY, State.STARTING, State.COLD)
    times += [at for member in passing if (at := _due(member, given)) is not None]
    limit = given.spec.max_age_seconds
    if limit is not None:
        # Those that are too old already go as others become warm.
        young = dropwhile(lambda m: given.now - m.created > limit, stock.warm_by_age())
        times += [member.created + limit for member in islice(young, 1)]
    due = (when + CLOCK_GRAIN_SECONDS for when in times)
    # At the very moment itself nothing is due yet, and another look must follow.
    return min((when for when in due if when >= given.now), default=None)


def _due(member: Member, given: PoolInput) -> float | None:
    """When time alone decides about one pod."""
    failure, verdict = member.failure, given.verdict
    # Where our own clock stands for the API server's.
    since = given.now - (given.clock - member.since)
    if member.state is State.UNREADY:
        return since + UNREADY_GRACE_SECONDS
    if member.node_name and member.node is None:
        return since + NEW_NODE_SECONDS
    if member.state is State.STRANDED:
        if member.was_ready and not member.ready:
            return since + UNREADY_GRACE_SECONDS
        return member.node.created + INSTALL_GRACE_SECONDS if member.node is not None else None
    if failure is None or not failure.heals:
        return since + given.spec.startup.timeout_seconds if member.node_name else None
    if failure.reason is not Reason.UNSCHEDULABLE:
        return since + STUCK_SECONDS
    if verdict.hopeful:
        stale = member.exclusion != given.exclusion
        return since + STALE_EXCLUSION_SECONDS if stale else None
    joined = verdict.newest_not_serving
    return joined + INSTALL_GRACE_SECONDS if joined > member.created else None
