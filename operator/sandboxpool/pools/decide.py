"""What to create and what to delete, as a pure function of what is known.

``decide`` is total and deterministic. It writes nothing, logs nothing and reads no clock; what
it refuses to do it says with a reason, which becomes the condition, the event and the metric.
"""

from dataclasses import dataclass
from enum import Enum

from sandboxpool.api.v1alpha1 import IsolationProof, SandboxPoolSpec, UpdateType
from sandboxpool.pools.members import Member, Members, State, oldest_first
from sandboxpool.reasons import Reason
from sandboxpool.runtimes.quarantine import Quarantine
from sandboxpool.runtimes.resolve import Resolution
from sandboxpool.runtimes.verdict import Verdict

# Creation times have whole seconds: what seems so old may be this much younger.
CLOCK_GRAIN_SECONDS = 1.0
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
        creating_cold: the same, for claims: they count against the ceiling only.
        guarded: an admission policy lets nobody else forge what stands on the pool's pods.
        now: seconds since the epoch.
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
    trouble: Trouble
    guarded: bool
    now: float
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
    """

    target: int
    create: int
    delete: tuple[Deletion, ...]
    held: Reason | None
    recheck: float | None


# What of the unclaimed may have to go for its own sake.
_PERISHABLE = (State.FAILED, State.STRANDED, State.STARTING)


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
    claimed = given.members.count(State.CLAIMED)
    target = spec.replicas
    if spec.max_sandboxes is not None:
        target = max(0, min(target, spec.max_sandboxes - claimed))
    if spec.paused:
        return PoolPlan(target, 0, (), Reason.PAUSED, None)

    deletions = _hopeless(given)
    left = _without(deletions, given.members)
    moved = _moved(given, left, target)
    stock = _stock(given, left)
    rolled = _superseded(given, stock, target)
    stock = _without(rolled, stock)
    surplus = _surplus(given, stock, target)
    stock = _without(surplus, stock)
    deletions += moved + rolled + surplus

    missing = target - len(stock) - given.creating
    create, held = _creatable(given, stock, missing)
    failed = [deletion for deletion in deletions if deletion.failed]
    if failed and create:
        # Their successors wait for the delay that this failure brings.
        create, held = max(0, create - len(failed)), failed[0].reason
    return PoolPlan(target, create, tuple(deletions), held, _recheck(given, stock))


def _without(deletions: list[Deletion], members: Members) -> Members:
    return members.without([deletion.member for deletion in deletions])


def _stock(given: PoolInput, members: Members) -> Members:
    """Those that count towards the target: they are warm, or may yet become so."""
    stock = members.only(State.STARTING, State.WARM, State.UNPROVEN)
    for member in members.of(State.STRANDED):
        if _waits_for_installer(member, given):
            stock.put(member)
    return stock


def _hopeless(given: PoolInput) -> list[Deletion]:
    """The pods that will never be handed out, whatever the target is."""
    usable = given.resolution.usable
    doubtful = given.members.where(
        lambda m: m.state in _PERISHABLE or (m.unclaimed and usable and foreign(m, given))
    )
    found = (_hopeless_one(member, given) for member in doubtful)
    return sorted(
        (deletion for deletion in found if deletion is not None),
        key=lambda deletion: oldest_first(deletion.member),
    )


def _hopeless_one(member: Member, given: PoolInput) -> Deletion | None:
    failure = member.failure
    if given.resolution.usable and foreign(member, given):
        return _of_another_class(member, given)
    if member.state is State.FAILED:
        reason = failure.reason if failure else Reason.POD_FAILED
        return Deletion(member, reason, failure.message if failure else "it ended", failed=True)
    if member.state is State.STRANDED:
        return _stranded(member, given)
    if member.state is not State.STARTING:
        return None
    age = given.now - member.created
    if failure is not None and failure.heals:
        if failure.reason is not Reason.UNSCHEDULABLE:
            # The kubelet goes on trying: another pod would meet the same trouble.
            return None
        if wrong_nodes_join(member, given):
            text = "the nodes that joined while it waited do not serve its runtime"
            return Deletion(member, Reason.AUTOSCALER_ADDS_WRONG_NODES, text, failed=True)
        # Where no node is hopeful another pod would fare no better, and would seem to have been
        # made after the nodes that joined for this one.
        stale = member.exclusion != given.exclusion and given.verdict.hopeful
        if stale and age > STALE_EXCLUSION_SECONDS:
            text = "the nodes that serve its runtime have changed"
            return Deletion(member, Reason.SANDBOX_REPLACED, text)
        return None
    limit = given.spec.startup.timeout_seconds
    if age > limit + CLOCK_GRAIN_SECONDS:
        reason = failure.reason if failure else Reason.SANDBOX_START_TIMEOUT
        text = failure.message if failure else "no cause was reported"
        return Deletion(member, reason, f"not ready after {limit} s: {text}", failed=True)
    return None


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
        if given.now - member.created < NEW_NODE_SECONDS:
            # Pods and nodes are watched apart: one that has just joined may not be seen yet.
            return None
        return Deletion(member, Reason.NODE_LOST, f"node {member.node_name} is gone")
    if not node.ready:
        # A node that comes back brings its pods back; until then a replacement stands in.
        return None
    if not node.schedulable:
        text = f"node {member.node_name} is cordoned or being drained"
        return Deletion(member, Reason.SANDBOX_REPLACED, text)
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
            staying = left.count(State.CLAIMED, State.UNPROVEN, State.STRANDED)
            floor = min(floor, ceiling - (staying - len(doubtful)))
        floor -= given.spec.update.max_unavailable
    budget = max(0, left.count(State.WARM) + len(doubtful) - max(0, floor))
    return [Deletion(member, *_doubt(member)) for member in doubtful[:budget]]


def _doubtful(member: Member) -> bool:
    """Ready, on a node that is well, but not to be trusted with it."""
    node, ground = member.node, member.ground
    return (
        member.state is State.STRANDED
        and member.ready
        and node is not None
        and node.usable
        and ground.served
    )


def _superseded(given: PoolInput, stock: Members, target: int) -> list[Deletion]:
    """The pods of an older template, or too old, as the update strategy allows."""
    if not _replaceable(given):
        return []
    update = given.spec.update
    rolled = sorted(stock.where(lambda m: outdated(m, given)), key=oldest_first)
    if update.type is UpdateType.ON_CLAIM:
        # They wait to be claimed; one that was made without its probe never can be.
        per_sandbox = given.spec.isolation_proof is IsolationProof.PER_SANDBOX
        rolled = [m for m in rolled if per_sandbox and m.state is State.UNPROVEN]
    text = "it is of an older revision of the template"
    if update.type is UpdateType.RECREATE and rolled:
        return [Deletion(member, Reason.ROLLING, text) for member in rolled]
    found = [Deletion(m, Reason.ROLLING, text) for m in rolled if m.state is not State.WARM]
    candidates = [(m, text) for m in rolled if m.state is State.WARM]
    known = {member.uid for member in rolled}
    aged = (member for member in _aged(given, stock) if member.uid not in known)
    candidates += [(member, "it is older than maxAgeSeconds") for member in aged]
    warm = stock.count(State.WARM)
    budget = max(0, warm - max(0, target - update.max_unavailable))
    found += [Deletion(m, Reason.ROLLING, why) for m, why in candidates[:budget]]
    return found


def _aged(given: PoolInput, stock: Members) -> list[Member]:
    """The warm ones that are too old, the oldest first."""
    limit = given.spec.max_age_seconds
    if limit is None:
        return []
    aged = (m for m in stock.of(State.WARM) if given.now - m.created > limit)
    return sorted(aged, key=oldest_first)


def _surplus(given: PoolInput, stock: Members, target: int) -> list[Deletion]:
    """More than the target: first what is not ready, then what is outdated, then the newest."""
    # What was asked for and is not seen yet is the first to go as soon as it is: no warm one goes
    # on its account.
    excess = len(stock) - target
    if excess <= 0:
        return []
    ranked = sorted(
        stock,
        key=lambda m: (m.state is State.WARM, not outdated(m, given), -m.created, m.name),
    )
    return [Deletion(m, Reason.AT_TARGET, "the pool was scaled down") for m in ranked[:excess]]


def _held_off(given: PoolInput) -> bool:
    """It waits after a failure; not for an autoscaler, once a node serves the runtime."""
    trouble = given.trouble
    answered = trouble.reason is Reason.AUTOSCALER_ADDS_WRONG_NODES and given.verdict.hopeful
    return trouble.until > given.now and not answered


def _creatable(given: PoolInput, stock: Members, missing: int) -> tuple[int, Reason | None]:
    if missing <= 0:
        return 0, None
    if given.blind:
        return 0, Reason.CACHE_STALE
    if not given.resolution.usable:
        return 0, given.resolution.reason
    if given.template.state is not TemplateState.ACCEPTED:
        return 0, given.template.reason
    if _held_off(given):
        return 0, given.trouble.reason
    room = missing
    held: Reason | None = None
    spec = given.spec
    if spec.max_sandboxes is not None:
        room = spec.max_sandboxes - len(given.members) - given.creating - given.creating_cold
        held = _ceiling_reason(given) if room < missing else None
    starting = len(stock) - stock.count(State.WARM, State.UNPROVEN) + given.creating
    limit = spec.startup.max_starting
    if not given.verdict.hopeful:
        # One pod stays pending, so that an autoscaler sees the demand, and no more than one.
        limit, held = 1, hopeless_reason(given.verdict)
    elif given.trouble.failures >= CAUTIOUS_AFTER_FAILURES:
        limit = 1
    return max(0, min(missing, room, limit - starting)), held


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
    times = [
        member.created + NEW_NODE_SECONDS
        for member in given.members.of(State.STRANDED)
        if member.node is None
    ]
    if given.trouble.until > given.now:
        times.append(given.trouble.until)
    ageless = given.spec.max_age_seconds is None
    watched = stock.of(State.STRANDED, State.STARTING) if ageless else stock
    times += [at for member in watched if (at := _due(member, given)) is not None]
    due = (when + CLOCK_GRAIN_SECONDS for when in times)
    # At the very moment itself nothing is due yet, and another look must follow.
    return min((when for when in due if when >= given.now), default=None)


def _due(member: Member, given: PoolInput) -> float | None:
    """When time alone decides about one pod of the stock."""
    failure, verdict = member.failure, given.verdict
    if member.state is State.STRANDED:
        return member.node.created + INSTALL_GRACE_SECONDS if member.node is not None else None
    if member.state is not State.STARTING:
        limit = given.spec.max_age_seconds
        return member.created + limit if limit is not None else None
    if failure is None or not failure.heals:
        return member.created + given.spec.startup.timeout_seconds
    if failure.reason is not Reason.UNSCHEDULABLE:
        return None
    if verdict.hopeful:
        stale = member.exclusion != given.exclusion
        return member.created + STALE_EXCLUSION_SECONDS if stale else None
    joined = verdict.newest_not_serving
    return joined + INSTALL_GRACE_SECONDS if joined > member.created else None
