"""Why a pod that had started is no more, or is about to be: from its last state to a reason. Pure.

Who ends a pod says so on the pod before the end: Kubernetes' own controllers by the condition
DisruptionTarget, the kubelet by the pod's reason, the container runtime by the containers' states.
The first of these that speaks is the cause: what is evicted exits too, with a code that means only
that it was told to stop.
"""

from dataclasses import dataclass

from sandboxpool.api.core import ContainerStatus, Pod, Terminated
from sandboxpool.api.reasons import Reason
from sandboxpool.runtimes.diagnosis import truncate

# The longest part of a message that was written by others.
_MAX_SAID = 300

# By the reason of the condition DisruptionTarget. Kubelets set it to one that says less than the
# pod's own reason, which is looked up first.
_DISRUPTIONS: dict[str, tuple[Reason, str]] = {
    "EvictionByEvictionAPI": (
        Reason.EVICTION_BY_EVICTION_API,
        "it was evicted through the Eviction API, as drains, autoscalers and deschedulers do. "
        "claims.disruption: Protect in the pool has them leave sandboxes alone that are in use",
    ),
    "PreemptionByScheduler": (
        Reason.PREEMPTION_BY_SCHEDULER,
        "the scheduler preempted it to make room for a pod of higher priority. A "
        "priorityClassName in the pool's template has it preempted less easily",
    ),
    "DeletionByTaintManager": (
        Reason.DELETION_BY_TAINT_MANAGER,
        "its node got a NoExecute taint that it does not tolerate, or not for so long: the node "
        "was not ready or not reachable, or somebody tainted it. Tolerations with "
        "tolerationSeconds in the pool's template say for how long sandboxes stay",
    ),
    "DeletionByDeviceTaintManager": (
        Reason.DELETION_BY_TAINT_MANAGER,
        "a device that it uses got a NoExecute taint",
    ),
    "DeletionByPodGC": (
        Reason.DELETION_BY_POD_GC,
        "the garbage collector of pods removed it, as it does once a node is gone for good",
    ),
}

# By the pod's own reason, which the kubelet writes.
_KUBELET: dict[str, tuple[Reason, str]] = {
    "Evicted": (
        Reason.EVICTED,
        "the kubelet evicted it. Requests and limits in the pool's template that say what "
        "sandboxes really use keep nodes from running short",
    ),
    "Terminated": (Reason.NODE_SHUTDOWN, "its node was shut down"),
    "NodeShutdown": (Reason.NODE_SHUTDOWN, "its node was shut down"),
    "Preempting": (
        Reason.PREEMPTION_BY_KUBELET,
        "the kubelet preempted it to make room for a critical pod of its node",
    ),
    "DeadlineExceeded": (
        Reason.DEADLINE_EXCEEDED,
        "it ran for as long as activeDeadlineSeconds in the pool's template lets it",
    ),
}


# Every reason that an Ending can have which was seen on a pod.
TERMINATION_REASONS: frozenset[Reason] = frozenset(
    {
        *(reason for reason, _ in (*_DISRUPTIONS.values(), *_KUBELET.values())),
        Reason.DISRUPTED,
        Reason.OOM_KILLED,
        Reason.CONTAINERS_EXITED,
        Reason.POD_DELETED,
        Reason.POD_FAILED,
    }
)


@dataclass(frozen=True, slots=True)
class TerminationCause:
    """Why a pod is no more, or goes.

    Attributes:
        reason: from the shared vocabulary.
        message: the cause, how to keep it from happening again, and what was said of it.
    """

    reason: Reason
    message: str


def termination_cause(pod: Pod) -> TerminationCause | None:
    """Why a pod has ended or goes, by its last known state; None if that says nothing of an end."""
    goes = pod.finished or pod.metadata.deletionTimestamp is not None
    target = pod.condition("DisruptionTarget")
    status = pod.status
    disrupted = target is not None and target.status == "True"
    if pod.finished and status.reason in _KUBELET:
        return _cause(pod, *_KUBELET[status.reason], detail=status.message)
    if disrupted and target is not None:
        # It is set a moment before the deletion, which may be the next thing that is seen.
        reason, text = _DISRUPTIONS.get(
            target.reason, (Reason.DISRUPTED, f"it was disrupted ({target.reason})")
        )
        return _cause(pod, reason, text, detail=target.message)
    if not goes:
        return None
    failed = _failed_container(pod)
    if pod.finished and failed is not None and failed[1].reason == "OOMKilled":
        name, state = failed
        text = (
            f"container {name} used more memory than its limit, or than its node had, and was "
            f"killed (exit code {state.exitCode}). A higher memory limit in the pool's template "
            "gives it more"
        )
        return _cause(pod, Reason.OOM_KILLED, text, detail=state.message)
    if pod.metadata.deletionTimestamp is not None:
        text = (
            "it was deleted through the API, by a person or a controller: only the audit log of "
            "the API server can tell who"
        )
        return _cause(pod, Reason.POD_DELETED, text)
    return _exited(pod, failed)


def lost_pod_cause(node: str, *, node_gone: bool) -> TerminationCause:
    """Why a pod is no more of whose end nothing was seen.

    Args:
        node: where it ran; empty if that is not known.
        node_gone: there is no such node any more, says the API server.
    """
    if node_gone:
        return TerminationCause(Reason.NODE_LOST, f"the pod is gone, and so is its node {node}")
    where = f" from node {node}" if node else ""
    text = (
        f"the pod is gone{where}, and nothing was seen of its end: it was deleted at once, or "
        "while nobody watched, so that the cause is not known"
    )
    return TerminationCause(Reason.POD_LOST, text)


def restart_cause(container: ContainerStatus) -> str:
    """How a container that was restarted had ended, such as `main (OOMKilled, exit code 137)`."""
    state = container.lastState.terminated
    return container.name if state is None else f"{container.name} ({_code(state)})"


def _exited(pod: Pod, failed: tuple[str, Terminated] | None) -> TerminationCause:
    status = pod.status
    if failed is not None:
        name, state = failed
        text = f"container {name} has exited by itself ({_code(state)})"
        return _cause(pod, Reason.CONTAINERS_EXITED, text, detail=status.message or state.message)
    cause = status.reason or status.phase
    if status.phase == "Succeeded":
        text = "all of its containers have exited by themselves (exit code 0)"
        return _cause(pod, Reason.CONTAINERS_EXITED, text, detail=status.message)
    return _cause(pod, Reason.POD_FAILED, f"it has ended ({cause})", detail=status.message)


def _failed_container(pod: Pod) -> tuple[str, Terminated] | None:
    """The container whose end says most: killed for memory, else failed, else the first one."""
    status = pod.status
    ended = [
        (container.name, container.state.terminated)
        for container in (*status.initContainerStatuses, *status.containerStatuses)
        if container.state.terminated is not None
    ]
    return min(
        ended, key=lambda one: (one[1].reason != "OOMKilled", not one[1].exitCode), default=None
    )


def _code(state: Terminated) -> str:
    code = f"exit code {state.exitCode}"
    telling = state.reason not in ("", "Error", "Completed")
    return f"{state.reason}, {code}" if telling else code


def _cause(pod: Pod, reason: Reason, text: str, *, detail: str = "") -> TerminationCause:
    where = f" on node {pod.spec.nodeName}" if pod.spec.nodeName else ""
    words = f' ("{truncate(detail, _MAX_SAID)}")' if detail else ""
    return TerminationCause(reason, f"pod {pod.metadata.name}{where}: {text}{words}")
