"""Which pods of a pool are of no use, and which seem to be, each by itself. Pure.

What never can be handed out goes whatever the target is. What was ready may be so again, and what
waits for its image may yet get it: such a pod goes when another has taken its place.
"""

from itertools import chain

from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.sandbox_state import State
from sandboxpool.pools.plan import Deletion, PoolInput, foreign
from sandboxpool.runtimes.exclusion import INSTALL_GRACE_SECONDS
from sandboxpool.runtimes.podevents import nothing_said
from sandboxpool.sandboxes.members import Member, Members, oldest_first

# A readiness probe that fails is given this long to pass again: a probe fails three times, ten
# seconds apart, before it counts, and passes as it failed.
UNREADY_GRACE_SECONDS = 60.0
# What waits for the kubelet for this long, for an image or a ConfigMap, is tried on another node.
STUCK_SECONDS = 60.0
# What its node's kubelet has not taken up within this many seconds of standing there, because the
# node is not Ready, is tried again.
NOT_TAKEN_UP_SECONDS = 60.0
# Not more sandboxes than so many times `maxStarting` lie on nodes whose kubelets are silent: those
# that were starting when it fell silent, and as many that were tried again.
MAX_ROUNDS_IN_VAIN = 2
# A node that is not known, though a pod is on it, counts as gone once the pod is this old.
NEW_NODE_SECONDS = 60.0
# An unschedulable pod that names hostnames which are out of date is replaced after so long.
STALE_HOSTNAMES_SECONDS = 300.0
_PUT_THERE = (
    "if others are put there again, tolerations of the template or its RuntimeClass let them be, "
    "such as `operator: Exists` without a key: name the taints that are meant"
)
# What may have to go for its own sake.
_PERISHABLE = (State.FAILED, State.STRANDED, State.STARTING, State.COLD)


def stuck_members(given: PoolInput) -> list[Member]:
    """Those that wait for their kubelet, for an image or a ConfigMap, and have done so for long."""
    return [m for m in given.members.of(State.STARTING, State.COLD) if _is_stuck(m, given)]


def another_may_start(given: PoolInput, stuck: list[Member]) -> bool:
    """There is a node on which none of the pool's is stuck, nor was of late."""
    bad = {member.node_name for member in stuck} | given.stuck_nodes
    return bool({*given.verdict.serving, *given.verdict.unknown} - bad)


def nodes_to_avoid(stuck: list[Member], faltering: list[Member]) -> tuple[tuple[str, str], ...]:
    """The nodes on which others may be stuck too, or get no proof, and why; sorted."""
    found = {m.node_name: m.failure.message for m in stuck if m.failure is not None}
    silent = (m for m in faltering if m.state is State.UNPROVEN)
    found |= {m.node_name: f"no probe gives proof there: {m.ground.evidence}" for m in silent}
    return tuple(sorted(found.items()))


def faltering_members(given: PoolInput, stuck: list[Member]) -> list[Member]:
    """What counts as stock and seems not to become warm, the oldest first."""
    unready = [
        m for m in given.members.of(State.UNREADY) if given.clock - m.since > UNREADY_GRACE_SECONDS
    ]
    # Only while there is proof on other nodes: elsewhere another would wait as long.
    silent = set(given.verdict.unproven)
    unproven = [m for m in given.members.of(State.UNPROVEN) if m.node_name in silent]
    return sorted([*unready, *unproven, *stuck], key=oldest_first)


def giving_way(given: PoolInput) -> list[Deletion]:
    """Those that cannot be handed out without a probe's answer, and make room for the probe."""
    text = "it makes room for the probe of its node, which is full"
    return [
        Deletion(member, Reason.EVIDENCE_PENDING, text)
        for member in (given.members.of(State.UNPROVEN) if given.giving_way else ())
        if member.uid in given.giving_way
    ]


def in_the_way(given: PoolInput) -> list[Deletion]:
    """Those that wait for room on any node, and would take the place that is made for a probe."""
    text = "it waits for room, and a probe needs the next"
    return [
        Deletion(member, Reason.EVIDENCE_PENDING, text)
        for member in (given.members.of(State.STARTING) if given.giving_way else ())
        if not member.node_name
        and member.failure is not None
        and member.failure.reason is Reason.UNSCHEDULABLE
    ]


def _is_stuck(member: Member, given: PoolInput) -> bool:
    """The kubelet goes on trying, has done so for long, and another one may do better."""
    failure = member.failure
    return (
        failure is not None
        and failure.heals
        and not failure.everywhere
        and failure.reason is not Reason.UNSCHEDULABLE
        and bool(member.node_name)
        and given.clock - member.since > STUCK_SECONDS
    )


def replaced_by_another(member: Member, stock: Members) -> Deletion:
    """Another takes its place. Where none is warm that may fare the same, so it is a failure."""
    failure = member.failure
    if member.state is State.UNPROVEN:
        text = f"node {member.node_name} gives no proof, and others do: {member.ground.evidence}"
        return Deletion(member, Reason.EVIDENCE_UNAVAILABLE, text)
    reason = failure.reason if failure else Reason.POD_NOT_READY
    text = failure.message if failure else "it is not ready any more"
    return Deletion(member, reason, text, failed=not stock.count(State.WARM))


def of_no_use(given: PoolInput, faltering: list[Member]) -> list[Deletion]:
    """The pods that will never be handed out, whatever the target is."""
    usable = given.resolution.usable
    # What is started for a claim is alone: there is nothing to wait for.
    waiting = [replaced_by_another(m, given.members) for m in faltering if m.state is State.COLD]
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
        if member.uid in given.asking:
            # Only its events may tell why it has ended.
            return None
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
            # The kubelet goes on trying: see faltering_members.
            return None
        if wrong_nodes_join(member, given):
            text = "the nodes that joined while it waited do not serve its runtime"
            return Deletion(member, Reason.AUTOSCALER_ADDS_WRONG_NODES, text, failed=True)
        # Where no node is hopeful another pod would fare no better, and would seem to have been
        # made after the nodes that joined for this one.
        stale = member.created < given.hostnames_since and given.verdict.hopeful
        if stale and waited > STALE_HOSTNAMES_SECONDS:
            text = "the nodes that serve its runtime have changed"
            return Deletion(member, Reason.SANDBOX_REPLACED, text)
        return None
    limit = given.spec.startup.timeout_seconds
    # Without a node it does not start yet: whatever keeps it from one, another would meet the same.
    if member.node_name and waited > limit and member.uid not in given.asking:
        reason = failure.reason if failure else Reason.SANDBOX_START_TIMEOUT
        text = failure.message if failure else member.silence or nothing_said(None)
        return Deletion(member, reason, f"not ready after {limit} s: {text}", failed=True)
    return None


def _node_lost(member: Member, given: PoolInput) -> Deletion | None:
    if given.clock - member.since < NEW_NODE_SECONDS:
        # Pods and nodes are watched apart: one that has just joined may not be seen yet.
        return None
    text = f"node {member.node_name} is gone"
    return Deletion(member, Reason.NODE_LOST, text, failed=in_vain(member))


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


def waits_for_installer(member: Member, given: PoolInput) -> bool:
    """It has come to a node that joined for it, on which its runtime may yet be installed.

    One that was made after the node has come to it, too, for no other node takes it.
    """
    node = member.node
    return (
        member.state is State.STRANDED
        and not member.ready
        and not given.verdict.hopeful
        and node is not None
        and node.usable
        and not member.ground.served
        and (node.created > member.created or given.now - node.created <= INSTALL_GRACE_SECONDS)
    )


def in_vain(member: Member) -> bool:
    """It lies on a node whose kubelet is silent and has never taken it up.

    It was put there because it tolerates that, and even its deletion waits for the kubelet.
    """
    silent = member.node is None or not member.node.ready
    return bool(member.node_name) and silent and not member.taken_up and not member.was_ready


def counts_as_starting(member: Member, given: PoolInput) -> bool:
    """It has come to where it cannot be handed out, and for a while none is made in its place.

    Its node may yet be well again, and the next one might only be put there, too.
    """
    if member.state is not State.STRANDED or member.was_ready:
        return False
    if waits_for_installer(member, given):
        return True
    node, waited = member.node, given.clock - member.since
    if node is None or not node.ready:
        return not member.taken_up and waited <= NOT_TAKEN_UP_SECONDS
    return not node.schedulable and waited <= given.spec.startup.timeout_seconds


def _stranded(member: Member, given: PoolInput) -> Deletion | None:
    node, ground = member.node, member.ground
    if node is None:
        return _node_lost(member, given)
    waited = given.clock - member.since
    if not node.ready:
        if in_vain(member) and waited > NOT_TAKEN_UP_SECONDS:
            text = f"node {node.name} is not Ready and has not taken it up; {_PUT_THERE}"
            return Deletion(member, Reason.PUT_ON_LOST_NODE, text, failed=True)
        # A node that comes back brings its pods back; until then a replacement stands in.
        return None
    lost_it = member.was_ready and not member.ready
    if lost_it and waited <= UNREADY_GRACE_SECONDS:
        return None
    if not node.schedulable and ground.served:
        # It goes when another has taken its place, and may be all that there is until then.
        if member.ready:
            return None
        late = not member.was_ready and waited > given.spec.startup.timeout_seconds
        if not given.verdict.hopeful and not late:
            return None
        reason, text = doubt(member)
        if member.was_ready:
            return Deletion(member, reason, text)
        return Deletion(member, reason, f"{text}; {_PUT_THERE}", failed=True)
    if waits_for_installer(member, given):
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
    return Deletion(member, *doubt(member), failed=True)


def doubt(member: Member) -> tuple[Reason, str]:
    """Why the node of a member is not to be trusted with it."""
    if member.node is not None and not member.node.schedulable:
        return Reason.SANDBOX_REPLACED, f"node {member.node_name} {member.node.notice}"
    if member.ground.quarantined:
        return Reason.NODE_QUARANTINED, f"node {member.node_name} is quarantined"
    text = f"the runtime does not isolate on node {member.node_name}"
    return Reason.ISOLATION_NOT_PROVEN, text


def due_at(member: Member, given: PoolInput) -> float | None:
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
        if member.node is not None and not member.node.ready:
            return since + NOT_TAKEN_UP_SECONDS
        if member.node is not None and not member.node.schedulable:
            return since + given.spec.startup.timeout_seconds
        return member.node.created + INSTALL_GRACE_SECONDS if member.node is not None else None
    if failure is None or not failure.heals:
        return since + given.spec.startup.timeout_seconds if member.node_name else None
    if failure.reason is not Reason.UNSCHEDULABLE:
        return since + STUCK_SECONDS
    if verdict.hopeful:
        stale = member.created < given.hostnames_since
        return since + STALE_HOSTNAMES_SECONDS if stale else None
    joined = verdict.newest_not_serving
    return joined + INSTALL_GRACE_SECONDS if joined > member.created else None
