"""Decides for each pod whether it is irrecoverable or stalled, and why. Pure.

Irrecoverable pods can never be allocated and are deleted whatever the target is. Stalled pods, such
as those that are no longer ready or wait for an image, may recover: they are deleted once another
pod has replaced them.
"""

from itertools import chain

from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.pools.plan import Deletion, PoolInput, of_other_runtime
from sandboxpool.runtimes.exclusion import INSTALL_GRACE_SECONDS
from sandboxpool.runtimes.podevents import no_cause_message
from sandboxpool.sandboxes.members import Member, Members, oldest_first

# How long a pod may be unready before it is stalled. By default a pod becomes unready after three
# failures of its readiness probe, ten seconds apart.
UNREADY_GRACE_SECONDS = 60.0
# A pod that waits for an image or a ConfigMap for this long is replaced on another node.
STUCK_SECONDS = 60.0
# A pod on a node that is not Ready is replaced if the kubelet has not acknowledged it by then.
UNACKNOWLEDGED_SECONDS = 60.0
# The limit of unacknowledged pods on lost nodes, as a multiple of `maxStarting`: the pods that were
# starting when the node was lost, and one replacement of each.
MAX_UNACKNOWLEDGED_ROUNDS = 2
# A pod's node that is not in the cache counts as deleted after this time.
NEW_NODE_SECONDS = 60.0
# An unschedulable pod that excludes outdated hostnames is replaced after this time.
STALE_HOSTNAMES_SECONDS = 300.0
_TOLERATION_ADVICE = (
    "if other sandboxes are scheduled there again, tolerations of the template or its RuntimeClass "
    "allow it, such as `operator: Exists` without a key: name the taints that they are meant for"
)
# The states in which a pod may be irrecoverable.
_PERISHABLE = (SandboxState.FAILED, SandboxState.STRANDED, SandboxState.STARTING, SandboxState.COLD)


def stuck_members(given: PoolInput) -> list[Member]:
    """The pods whose kubelet has been waiting for an image or a ConfigMap for too long."""
    return [
        m for m in given.members.of(SandboxState.STARTING, SandboxState.COLD) if _is_stuck(m, given)
    ]


def has_other_candidate_node(given: PoolInput, stuck: list[Member]) -> bool:
    """Whether there is a node on which no pod of the pool is or was recently stuck."""
    bad = {member.node_name for member in stuck} | given.stuck_nodes
    return bool({*given.verdict.serving, *given.verdict.unknown} - bad)


def nodes_to_avoid(stuck: list[Member], stalled: list[Member]) -> tuple[tuple[str, str], ...]:
    """The nodes on which other pods may get stuck or stay unproven, and why; sorted."""
    found = {m.node_name: m.failure.message for m in stuck if m.failure is not None}
    unproven = (m for m in stalled if m.state is SandboxState.UNPROVEN)
    found |= {
        m.node_name: f"no probe proves isolation there: {m.host_state.isolation_message}"
        for m in unproven
    }
    return tuple(sorted(found.items()))


def stalled_members(given: PoolInput, stuck: list[Member]) -> list[Member]:
    """The members that count as stock and are unlikely to become warm, the oldest first."""
    unready = [
        m
        for m in given.members.of(SandboxState.UNREADY)
        if given.clock - m.since > UNREADY_GRACE_SECONDS
    ]
    # The verdict lists these nodes only while other nodes have proof.
    nodes = set(given.verdict.unproven)
    unproven = [m for m in given.members.of(SandboxState.UNPROVEN) if m.node_name in nodes]
    return sorted([*unready, *unproven, *stuck], key=oldest_first)


def preempted_by_probes(given: PoolInput) -> list[Deletion]:
    """The unproven pods that a probe preempts on their node."""
    text = "preempted by the probe of its node, which has no room for both"
    return [
        Deletion(member, Reason.EVIDENCE_PENDING, text)
        for member in (given.members.of(SandboxState.UNPROVEN) if given.preempted else ())
        if member.uid in given.preempted
    ]


def competing_with_probes(given: PoolInput) -> list[Deletion]:
    """The unschedulable pods, which would take the room that a probe has preempted."""
    text = "unschedulable, and would take the room that a probe needs"
    return [
        Deletion(member, Reason.EVIDENCE_PENDING, text)
        for member in (given.members.of(SandboxState.STARTING) if given.preempted else ())
        if not member.node_name
        and member.failure is not None
        and member.failure.reason is Reason.UNSCHEDULABLE
    ]


def _is_stuck(member: Member, given: PoolInput) -> bool:
    """Whether the kubelet has been retrying for too long and another node may succeed."""
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
    """Delete a stalled pod; a failure if no pod is warm, because its replacement may stall too."""
    failure = member.failure
    if member.state is SandboxState.UNPROVEN:
        cause = member.host_state.isolation_message
        text = f"isolation is proven on other nodes but not on {member.node_name}: {cause}"
        return Deletion(member, Reason.EVIDENCE_UNAVAILABLE, text)
    reason = failure.reason if failure else Reason.POD_NOT_READY
    text = failure.message if failure else "it is no longer ready"
    return Deletion(member, reason, text, failed=not stock.count(SandboxState.WARM))


def irrecoverable(given: PoolInput, stalled: list[Member]) -> list[Deletion]:
    """The deletions of all pods that can never be allocated, and of stalled cold pods."""
    usable = given.resolution.usable
    # A cold pod is not replaced first, because its claim has no other.
    cold = [replacement_deletion(m, given.members) for m in stalled if m.state is SandboxState.COLD]
    candidates = given.members.where(
        lambda m: m.state in _PERISHABLE or (m.unclaimed and usable and of_other_runtime(m, given))
    )
    known = {deletion.member.uid for deletion in cold}
    found = (
        _irrecoverable_deletion(member, given) for member in candidates if member.uid not in known
    )
    return sorted(
        chain(cold, (deletion for deletion in found if deletion is not None)),
        key=lambda deletion: oldest_first(deletion.member),
    )


def _irrecoverable_deletion(member: Member, given: PoolInput) -> Deletion | None:
    failure = member.failure
    if member.unclaimed and given.resolution.usable and of_other_runtime(member, given):
        return _other_runtime_deletion(member, given)
    if member.state is SandboxState.FAILED:
        if member.uid in given.pending_event_reads:
            # Its events may name the cause.
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
            # The kubelet retries: see stuck_members.
            return None
        if autoscaler_added_wrong_nodes(member, given):
            text = "the nodes that joined while it was pending do not serve its runtime"
            return Deletion(member, Reason.AUTOSCALER_ADDS_WRONG_NODES, text, failed=True)
        # Without a candidate node a replacement would not help, and its later creation would hide
        # that nodes joined for this pod.
        stale = member.created < given.hostnames_since and given.verdict.has_candidate_nodes
        if stale and waited > STALE_HOSTNAMES_SECONDS:
            text = "the nodes that serve its runtime have changed"
            return Deletion(member, Reason.SANDBOX_REPLACED, text)
        return None
    limit = given.spec.startup.timeout_seconds
    # The timeout does not apply to a pod without a node: a replacement would not be scheduled
    # either.
    if member.node_name and waited > limit and member.uid not in given.pending_event_reads:
        reason = failure.reason if failure else Reason.SANDBOX_START_TIMEOUT
        text = failure.message if failure else member.no_cause_message or no_cause_message(None)
        return Deletion(member, reason, f"not ready after {limit} s: {text}", failed=True)
    return None


def _node_lost(member: Member, given: PoolInput) -> Deletion | None:
    if given.clock - member.since < NEW_NODE_SECONDS:
        # Pods and nodes have separate watches: a new node may not be in the cache yet.
        return None
    text = f"node {member.node_name} does not exist any more"
    return Deletion(member, Reason.NODE_LOST, text, failed=unacknowledged_on_lost_node(member))


def _other_runtime_deletion(member: Member, given: PoolInput) -> Deletion:
    runtime = given.resolution.runtime
    if runtime is None or member.runtime_uid != runtime.uid:
        text = "it was created with another RuntimeClass than the pool has now"
        return Deletion(member, Reason.RUNTIME_CHANGED, text)
    # A failure, because admission may change the next pod, too.
    text = (
        f"it was created with RuntimeClass {runtime.class_name!r} and has "
        f"{member.class_name!r}: configure the mutating admission plugin that changed it to leave "
        "spec.runtimeClassName alone"
    )
    return Deletion(member, Reason.RUNTIME_CHANGED, text, failed=True)


def autoscaler_added_wrong_nodes(member: Member, given: PoolInput) -> bool:
    """Whether the nodes that joined for this pending pod do not serve its runtime."""
    verdict = given.verdict
    return (
        not verdict.has_candidate_nodes
        and verdict.newest_not_serving > member.created
        and given.now - verdict.newest_not_serving > INSTALL_GRACE_SECONDS
    )


def waits_for_installer(member: Member, given: PoolInput) -> bool:
    """Whether the pod is on a node that joined for it and may yet get its runtime installed.

    This includes pods that were created shortly after the node joined.
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
    """Whether the pod is on a lost node whose kubelet has never acknowledged it.

    The scheduler put the pod there because it tolerates the node's taints. Even its deletion waits
    for the kubelet.
    """
    lost = member.node is None or not member.node.ready
    return bool(member.node_name) and lost and not member.acknowledged and not member.was_ready


def counts_as_starting(member: Member, given: PoolInput) -> bool:
    """Whether a stranded pod still counts as starting, so that it is not replaced yet.

    Its node may recover, and the scheduler might put the replacement there, too.
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
            text = (
                f"node {node.name} is not Ready and its kubelet has not acknowledged the pod; "
                f"{_TOLERATION_ADVICE}"
            )
            return Deletion(member, Reason.PUT_ON_LOST_NODE, text, failed=True)
        # The pod may recover with its node; it does not count as stock until then.
        return None
    is_unready = member.was_ready and not member.ready
    if is_unready and waited <= UNREADY_GRACE_SECONDS:
        return None
    if not node.schedulable and host_state.handler_served:
        # A ready pod is relocated once it is replaced: until then it may be the only one.
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
        text = f"node {member.node_name}, which joined for it, does not serve its runtime"
        return Deletion(member, Reason.AUTOSCALER_ADDS_WRONG_NODES, text, failed=True)
    if not host_state.handler_served:
        text = f"node {member.node_name} does not serve the handler any more"
        # A failure if the pod was not ready: it may have been scheduled to the wrong node.
        return Deletion(member, Reason.HANDLER_REMOVED, text, failed=not member.ready)
    if member.ready:
        # A ready pod is relocated once it is replaced.
        return None
    failure = member.failure
    if failure is not None and failure.blames_runtime:
        return Deletion(member, failure.reason, failure.message, failed=True)
    return Deletion(member, *relocation_reason(member), failed=True)


def relocation_reason(member: Member) -> tuple[Reason, str]:
    """Why a member is to leave its node."""
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
    """Epoch seconds at which time alone may change the decision about one pod; None for never."""
    failure, verdict = member.failure, given.verdict
    # The member's time in the API server's clock.
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
