"""Diagnoses from the last state of a pod why it has ended or is terminating. Pure.

The component that ends a pod records it before: controllers in the condition DisruptionTarget, the
kubelet in the pod's reason, the container runtime in the containers' states. They are evaluated in
this order, because the containers of an evicted pod exit as well, with the code of a signal.
"""

from dataclasses import dataclass

from sandboxpool.api.core import ContainerStatus, Pod, Terminated
from sandboxpool.api.reasons import Reason
from sandboxpool.runtimes.diagnosis import truncate

# The limit of messages of other components.
_MAX_DETAIL = 300

# By the reason of the condition DisruptionTarget. That of kubelets is less specific than the pod's
# own reason, which is looked up first.
_DISRUPTIONS: dict[str, tuple[Reason, str]] = {
    "EvictionByEvictionAPI": (
        Reason.EVICTION_BY_EVICTION_API,
        "it was evicted through the Eviction API, as by a drain, an autoscaler or a descheduler. "
        "Set claims.disruption: Protect in the pool to protect claimed sandboxes from evictions",
    ),
    "PreemptionByScheduler": (
        Reason.PREEMPTION_BY_SCHEDULER,
        "the scheduler preempted it to make room for a pod of higher priority. Set a higher "
        "priorityClassName in the pool's template to avoid it",
    ),
    "DeletionByTaintManager": (
        Reason.DELETION_BY_TAINT_MANAGER,
        "its node got a NoExecute taint that it does not tolerate, or not for that long: the node "
        "was not ready or not reachable, or it was tainted by a user. Set tolerations with "
        "tolerationSeconds in the pool's template to keep sandboxes for longer",
    ),
    "DeletionByDeviceTaintManager": (
        Reason.DELETION_BY_TAINT_MANAGER,
        "a device that it uses got a NoExecute taint",
    ),
    "DeletionByPodGC": (
        Reason.DELETION_BY_POD_GC,
        "the pod garbage collector removed it, as it does after its node was deleted",
    ),
}

# By the pod's own reason, which the kubelet writes.
_KUBELET: dict[str, tuple[Reason, str]] = {
    "Evicted": (
        Reason.EVICTED,
        "the kubelet evicted it. Set requests and limits in the pool's "
        "template to what sandboxes really use",
    ),
    "Terminated": (Reason.NODE_SHUTDOWN, "its node was shut down"),
    "NodeShutdown": (Reason.NODE_SHUTDOWN, "its node was shut down"),
    "Preempting": (
        Reason.PREEMPTION_BY_KUBELET,
        "the kubelet preempted it to make room for a critical pod on its node",
    ),
    "DeadlineExceeded": (
        Reason.DEADLINE_EXCEEDED,
        "it exceeded activeDeadlineSeconds of the pool's template",
    ),
}


# Every reason that `termination_cause` can return.
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
    """Why a pod has ended or is terminating.

    Attributes:
        reason: the diagnosis.
        message: the cause, how to avoid it, and the message of the component.
    """

    reason: Reason
    message: str


def termination_cause(pod: Pod) -> TerminationCause | None:
    """Diagnose the end of a pod by its last known state; None if it is neither ended nor ending."""
    ending = pod.finished or pod.metadata.deletionTimestamp is not None
    target = pod.condition("DisruptionTarget")
    status = pod.status
    disrupted = target is not None and target.status == "True"
    if pod.finished and status.reason in _KUBELET:
        return _cause(pod, *_KUBELET[status.reason], detail=status.message)
    if disrupted and target is not None:
        # The condition is set right before the deletion.
        reason, text = _DISRUPTIONS.get(
            target.reason, (Reason.DISRUPTED, f"it was disrupted ({target.reason})")
        )
        return _cause(pod, reason, text, detail=target.message)
    if not ending:
        return None
    failed = _failed_container(pod)
    if pod.finished and failed is not None and failed[1].reason == "OOMKilled":
        name, state = failed
        text = (
            f"container {name} used more memory than its limit, or than its node had, and was "
            f"killed (exit code {state.exitCode}). Raise the memory limit in the pool's template"
        )
        return _cause(pod, Reason.OOM_KILLED, text, detail=state.message)
    if pod.metadata.deletionTimestamp is not None:
        text = (
            "it was deleted through the API by a user or a controller; only the API server's audit "
            "log has the name"
        )
        return _cause(pod, Reason.POD_DELETED, text)
    return _exited(pod, failed)


def lost_pod_cause(node: str, *, node_gone: bool) -> TerminationCause:
    """Explain the loss of a pod whose end was not observed.

    Args:
        node: its node; empty if that is not known.
        node_gone: the node does not exist any more according to the API server.
    """
    if node_gone:
        return TerminationCause(
            Reason.NODE_LOST, f"the pod does not exist any more, nor does its node {node}"
        )
    where = f" on node {node}" if node else ""
    text = (
        f"the pod{where} does not exist any more, and its end was not observed, so the cause is "
        "not known: it was deleted immediately or while no watch was running; the API server's "
        "audit log may have the cause"
    )
    return TerminationCause(Reason.POD_LOST, text)


def restart_cause(container: ContainerStatus) -> str:
    """Say how a restarted container had ended, such as `main (OOMKilled, exit code 137)`."""
    state = container.lastState.terminated
    return container.name if state is None else f"{container.name} ({_code(state)})"


def _exited(pod: Pod, failed: tuple[str, Terminated] | None) -> TerminationCause:
    status = pod.status
    if failed is not None:
        name, state = failed
        text = f"container {name} exited by itself ({_code(state)})"
        return _cause(pod, Reason.CONTAINERS_EXITED, text, detail=status.message or state.message)
    cause = status.reason or status.phase
    if status.phase == "Succeeded":
        text = "all of its containers exited by themselves (exit code 0)"
        return _cause(pod, Reason.CONTAINERS_EXITED, text, detail=status.message)
    return _cause(pod, Reason.POD_FAILED, f"it has ended ({cause})", detail=status.message)


def _failed_container(pod: Pod) -> tuple[str, Terminated] | None:
    """The most relevant ended container: OOM killed, else failed, else the first one."""
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
    specific = state.reason not in ("", "Error", "Completed")
    return f"{state.reason}, {code}" if specific else code


def _cause(pod: Pod, reason: Reason, text: str, *, detail: str = "") -> TerminationCause:
    where = f" on node {pod.spec.nodeName}" if pod.spec.nodeName else ""
    quoted = f' ("{truncate(detail, _MAX_DETAIL)}")' if detail else ""
    return TerminationCause(reason, f"pod {pod.metadata.name}{where}: {text}{quoted}")
