"""Which pods of a pool are of no use, and which seem to be, each by itself. Pure.

What never can be handed out goes whatever the target is. What was ready may be so again, and what
waits for its image may yet get it: such a pod goes when another has taken its place.
"""

from itertools import chain

from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.pools.plan import Deletion, PoolInput, of_other_runtime
from sandboxpool.runtimes.exclusion import INSTALL_GRACE_SECONDS
from sandboxpool.runtimes.podevents import no_cause_message
from sandboxpool.sandboxes.members import Member, Members, oldest_first

# A readiness probe that fails is given this long to pass again: a probe fails three times, ten
# seconds apart, before it counts, and passes as it failed.
UNREADY_GRACE_SECONDS = 60.0
# What waits for the kubelet for this long, for an image or a ConfigMap, is tried on another node.
STUCK_SECONDS = 60.0
# What its node's kubelet has not taken up within this many seconds of standing there, because the
# node is not Ready, is tried again.
UNACKNOWLEDGED_SECONDS = 60.0
# Not more sandboxes than so many times `maxStarting` lie on nodes whose kubelets are silent: those
# that were starting when it fell silent, and as many that were tried again.
MAX_UNACKNOWLEDGED_ROUNDS = 2
# A node that is not known, though a pod is on it, counts as gone once the pod is this old.
NEW_NODE_SECONDS = 60.0
# An unschedulable pod that names hostnames which are out of date is replaced after so long.
STALE_HOSTNAMES_SECONDS = 300.0
_TOLERATION_ADVICE = (
    "if others are put there again, tolerations of the template or its RuntimeClass let them be, "
    "such as `operator: Exists` without a key: name the taints that are meant"
)
# What may have to go for its own sake.
_PERISHABLE = (SandboxState.FAILED, SandboxState.STRANDED, SandboxState.STARTING, SandboxState.COLD)


def stuck_members(given: PoolInput) -> list[Member]:
    """Those that wait for their kubelet, for an image or a ConfigMap, and have done so for long."""
    return [
        m for m in given.members.of(SandboxState.STARTING, SandboxState.COLD) if _is_stuck(m, given)
    ]


def has_other_candidate_node(given: PoolInput, stuck: list[Member]) -> bool:
    """There is a node on which none of the pool's is stuck, nor was of late."""
    bad = {member.node_name for member in stuck} | given.stuck_nodes
    return bool({*given.verdict.serving, *given.verdict.unknown} - bad)


def nodes_to_avoid(stuck: list[Member], stalled: list[Member]) -> tuple[tuple[str, str], ...]:
    """The nodes on which others may be stuck too, or get no proof, and why; sorted."""
    found = {m.node_name: m.failure.message for m in stuck if m.failure is not None}
    silent = (m for m in stalled if m.state is SandboxState.UNPROVEN)
    found |= {
        m.node_name: f"no probe gives proof there: {m.host_state.isolation_message}" for m in silent
    }
    return tuple(sorted(found.items()))


def stalled_members(given: PoolInput, stuck: list[Member]) -> list[Member]:
    """What counts as stock and seems not to become warm, the oldest first."""
    unready = [
        m
        for m in given.members.of(SandboxState.UNREADY)
        if given.clock - m.since > UNREADY_GRACE_SECONDS
    ]
    # Only while there is proof on other nodes: elsewhere another would wait as long.
    silent = set(given.verdict.unproven)
    unproven = [m for m in given.members.of(SandboxState.UNPROVEN) if m.node_name in silent]
    return sorted([*unready, *unproven, *stuck], key=oldest_first)


def preempted_by_probes(given: PoolInput) -> list[Deletion]:
    """Those that cannot be handed out without a probe's answer, and make room for the probe."""
    text = "it makes room for the probe of its node, which is full"
    return [
        Deletion(member, Reason.EVIDENCE_PENDING, text)
        for member in (given.members.of(SandboxState.UNPROVEN) if given.preempted else ())
        if member.uid in given.preempted
    ]


def competing_with_probes(given: PoolInput) -> list[Deletion]:
    """Those that wait for room on any node, and would take the place that is made for a probe."""
    text = "it waits for room, and a probe needs the next"
    return [
        Deletion(member, Reason.EVIDENCE_PENDING, text)
        for member in (given.members.of(SandboxState.STARTING) if given.preempted else ())
        if not member.node_name
        and member.failure is not None
        and member.failure.reason is Reason.UNSCHEDULABLE
    ]


def _is_stuck(member: Member, given: PoolInput) -> bool:
    """The kubelet goes on trying, has done so for long, and another one may do better."""
    failure = member.failure
    return (
        failure is not None
        and failure.self_healing
        and not failure.cluster_wide
        and failure.reason is not Reason.UNSCHEDULABLE
        and bool(member.node_name)
        and given.clock - member.since > STUCK_SECONDS
    )


def replacement_deletion(member: Member, stock: Members) -> Deletion:
    """Another takes its place. Where none is warm that may fare the same, so it is a failure."""
    failure = member.failure
    if member.state is SandboxState.UNPROVEN:
        said = member.host_state.isolation_message
        text = f"node {member.node_name} gives no proof, and others do: {said}"
        return Deletion(member, Reason.EVIDENCE_UNAVAILABLE, text)
    reason = failure.reason if failure else Reason.POD_NOT_READY
    text = failure.message if failure else "it is not ready any more"
    return Deletion(member, reason, text, failed=not stock.count(SandboxState.WARM))


def irrecoverable(given: PoolInput, stalled: list[Member]) -> list[Deletion]:
    """The pods that will never be handed out, whatever the target is."""
    usable = given.resolution.usable
    # What is started for a claim is alone: there is nothing to wait for.
    waiting = [
        replacement_deletion(m, given.members) for m in stalled if m.state is SandboxState.COLD
    ]
    doubtful = given.members.where(
        lambda m: m.state in _PERISHABLE or (m.unclaimed and usable and of_other_runtime(m, given))
    )
    known = {deletion.member.uid for deletion in waiting}
    found = (
        _irrecoverable_deletion(member, given) for member in doubtful if member.uid not in known
    )
    return sorted(
        chain(waiting, (deletion for deletion in found if deletion is not None)),
        key=lambda deletion: oldest_first(deletion.member),
    )


def _irrecoverable_deletion(member: Member, given: PoolInput) -> Deletion | None:
    failure = member.failure
    if member.unclaimed and given.resolution.usable and of_other_runtime(member, given):
        return _other_runtime_deletion(member, given)
    if member.state is SandboxState.FAILED:
        if member.uid in given.pending_event_reads:
            # Only its events may tell why it has ended.
            return None
        reason = failure.reason if failure else Reason.POD_FAILED
        return Deletion(member, reason, failure.message if failure else "it ended", failed=True)
    if member.state is SandboxState.STRANDED:
        return _stranded(member, given)
    if member.state not in (SandboxState.STARTING, SandboxState.COLD):
        return None
    if member.node_name and member.node is None and member.state is SandboxState.COLD:
        return _node_lost(member, given)
    waited = given.clock - member.since
    if failure is not None and failure.self_healing:
        if failure.reason is not Reason.UNSCHEDULABLE:
            # The kubelet goes on trying: see faltering_members.
            return None
        if autoscaler_added_wrong_nodes(member, given):
            text = "the nodes that joined while it waited do not serve its runtime"
            return Deletion(member, Reason.AUTOSCALER_ADDS_WRONG_NODES, text, failed=True)
        # Where no node is hopeful another pod would fare no better, and would seem to have been
        # made after the nodes that joined for this one.
        stale = member.created < given.hostnames_since and given.verdict.has_candidate_nodes
        if stale and waited > STALE_HOSTNAMES_SECONDS:
            text = "the nodes that serve its runtime have changed"
            return Deletion(member, Reason.SANDBOX_REPLACED, text)
        return None
    limit = given.spec.startup.timeout_seconds
    # Without a node it does not start yet: whatever keeps it from one, another would meet the same.
    if member.node_name and waited > limit and member.uid not in given.pending_event_reads:
        reason = failure.reason if failure else Reason.SANDBOX_START_TIMEOUT
        text = failure.message if failure else member.no_cause_message or no_cause_message(None)
        return Deletion(member, reason, f"not ready after {limit} s: {text}", failed=True)
    return None


def _node_lost(member: Member, given: PoolInput) -> Deletion | None:
    if given.clock - member.since < NEW_NODE_SECONDS:
        # Pods and nodes are watched apart: one that has just joined may not be seen yet.
        return None
    text = f"node {member.node_name} is gone"
    return Deletion(member, Reason.NODE_LOST, text, failed=unacknowledged_on_lost_node(member))


def _other_runtime_deletion(member: Member, given: PoolInput) -> Deletion:
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


def autoscaler_added_wrong_nodes(member: Member, given: PoolInput) -> bool:
    """An autoscaler has answered this waiting pod with nodes that do not serve its runtime."""
    verdict = given.verdict
    return (
        not verdict.has_candidate_nodes
        and verdict.newest_not_serving > member.created
        and given.now - verdict.newest_not_serving > INSTALL_GRACE_SECONDS
    )


def waits_for_installer(member: Member, given: PoolInput) -> bool:
    """It has come to a node that joined for it, on which its runtime may yet be installed.

    One that was made after the node has come to it, too, for no other node takes it.
    """
    node = member.node
    return (
        member.state is SandboxState.STRANDED
        and not member.ready
        and not given.verdict.has_candidate_nodes
        and node is not None
        and node.usable
        and not member.host_state.handler_served
        and (node.created > member.created or given.now - node.created <= INSTALL_GRACE_SECONDS)
    )


def unacknowledged_on_lost_node(member: Member) -> bool:
    """It lies on a node whose kubelet is silent and has never taken it up.

    It was put there because it tolerates that, and even its deletion waits for the kubelet.
    """
    silent = member.node is None or not member.node.ready
    return bool(member.node_name) and silent and not member.acknowledged and not member.was_ready


def counts_as_starting(member: Member, given: PoolInput) -> bool:
    """It has come to where it cannot be handed out, and for a while none is made in its place.

    Its node may yet be well again, and the next one might only be put there, too.
    """
    if member.state is not SandboxState.STRANDED or member.was_ready:
        return False
    if waits_for_installer(member, given):
        return True
    node, waited = member.node, given.clock - member.since
    if node is None or not node.ready:
        return not member.acknowledged and waited <= UNACKNOWLEDGED_SECONDS
    return not node.schedulable and waited <= given.spec.startup.timeout_seconds


def _stranded(member: Member, given: PoolInput) -> Deletion | None:
    node, host_state = member.node, member.host_state
    if node is None:
        return _node_lost(member, given)
    waited = given.clock - member.since
    if not node.ready:
        if unacknowledged_on_lost_node(member) and waited > UNACKNOWLEDGED_SECONDS:
            text = f"node {node.name} is not Ready and has not taken it up; {_TOLERATION_ADVICE}"
            return Deletion(member, Reason.PUT_ON_LOST_NODE, text, failed=True)
        # A node that comes back brings its pods back; until then a replacement stands in.
        return None
    lost_it = member.was_ready and not member.ready
    if lost_it and waited <= UNREADY_GRACE_SECONDS:
        return None
    if not node.schedulable and host_state.handler_served:
        # It goes when another has taken its place, and may be all that there is until then.
        if member.ready:
            return None
        late = not member.was_ready and waited > given.spec.startup.timeout_seconds
        if not given.verdict.has_candidate_nodes and not late:
            return None
        reason, text = relocation_reason(member)
        if member.was_ready:
            return Deletion(member, reason, text)
        return Deletion(member, reason, f"{text}; {_TOLERATION_ADVICE}", failed=True)
    if waits_for_installer(member, given):
        if given.now - node.created <= INSTALL_GRACE_SECONDS:
            return None
        text = f"node {member.node_name}, which joined while it waited, does not serve its runtime"
        return Deletion(member, Reason.AUTOSCALER_ADDS_WRONG_NODES, text, failed=True)
    if not host_state.handler_served:
        text = f"node {member.node_name} does not serve the handler any more"
        # One that never started was put where it never could: the next are made with care.
        return Deletion(member, Reason.HANDLER_REMOVED, text, failed=not member.ready)
    if member.ready:
        # It works, or seems to: it goes when another has taken its place.
        return None
    failure = member.failure
    if failure is not None and failure.blames_runtime:
        return Deletion(member, failure.reason, failure.message, failed=True)
    return Deletion(member, *relocation_reason(member), failed=True)


def relocation_reason(member: Member) -> tuple[Reason, str]:
    """Why the node of a member is not to be trusted with it."""
    if member.node is not None and not member.node.schedulable:
        return (
            Reason.SANDBOX_REPLACED,
            f"node {member.node_name} {member.node.unschedulable_reason}",
        )
    if member.host_state.quarantined:
        return Reason.NODE_QUARANTINED, f"node {member.node_name} is quarantined"
    text = f"the runtime does not isolate on node {member.node_name}"
    return Reason.ISOLATION_NOT_PROVEN, text


def member_deadline(member: Member, given: PoolInput) -> float | None:
    """When time alone decides about one pod."""
    failure, verdict = member.failure, given.verdict
    # Where our own clock stands for the API server's.
    since = given.now - (given.clock - member.since)
    if member.state is SandboxState.UNREADY:
        return since + UNREADY_GRACE_SECONDS
    if member.node_name and member.node is None:
        return since + NEW_NODE_SECONDS
    if member.state is SandboxState.STRANDED:
        if member.was_ready and not member.ready:
            return since + UNREADY_GRACE_SECONDS
        if member.node is not None and not member.node.ready:
            return since + UNACKNOWLEDGED_SECONDS
        if member.node is not None and not member.node.schedulable:
            return since + given.spec.startup.timeout_seconds
        return member.node.created + INSTALL_GRACE_SECONDS if member.node is not None else None
    if failure is None or not failure.self_healing:
        return since + given.spec.startup.timeout_seconds if member.node_name else None
    if failure.reason is not Reason.UNSCHEDULABLE:
        return since + STUCK_SECONDS
    if verdict.has_candidate_nodes:
        stale = member.created < given.hostnames_since
        return since + STALE_HOSTNAMES_SECONDS if stale else None
    joined = verdict.newest_not_serving
    return joined + INSTALL_GRACE_SECONDS if joined > member.created else None
