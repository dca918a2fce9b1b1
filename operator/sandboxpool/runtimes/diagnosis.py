"""Why a pod does not start: from its conditions, its containers and its events to a reason.

The kubelet says why a sandbox could not be made only in an event, and pods have a budget of
events, so the absence of one proves nothing. What a text means stands in ``patterns``, or is read
from its ``structure``. A text that nobody understands yet is kept raw: it is worth more than a
guess.

Only what kubelets, runtimes and schedulers say is looked up there, never what a container left as
its last message: that is the application's.
"""

from dataclasses import dataclass

from sandboxpool.api.core import ContainerStatus, Pod
from sandboxpool.reasons import Reason
from sandboxpool.runtimes.patterns import Cause, match
from sandboxpool.runtimes.structure import understand

MAX_TEXT = 512
FAILED_CREATE_SANDBOX = "FailedCreatePodSandBox"
_EVENT_PREFIX = "Failed to create pod sandbox: "

# Every reason that a Failure can have, the one an SRE should hear of first at the front: nodes
# that need a hand, then what may pass or concerns one pod, then what heals.
SEVERITY: tuple[Reason, ...] = (
    Reason.HANDLER_NOT_CONFIGURED,
    Reason.SHIM_MISSING,
    Reason.OCI_RUNTIME_MISSING,
    Reason.GUEST_IMAGE_MISSING,
    Reason.KVM_UNAVAILABLE,
    Reason.VSOCK_UNAVAILABLE,
    Reason.SNAPSHOTTER_MISSING,
    Reason.CGROUP_DRIVER_MISMATCH,
    Reason.RUNTIME_MISCONFIGURED,
    Reason.SNAPSHOTTER_FAILED,
    Reason.VMM_START_FAILED,
    Reason.VM_LOST,
    Reason.SANDBOX_DIED,
    Reason.VM_START_TIMEOUT,
    Reason.SANDBOX_CREATE_FAILED,
    Reason.SANDBOX_START_TIMEOUT,
    Reason.NODE_RESOURCE_EXHAUSTED,
    Reason.KUBELET_FAILED,
    Reason.POD_NETWORK_FAILED,
    Reason.USER_NAMESPACES_UNSUPPORTED,
    Reason.CONTAINER_FAILED,
    Reason.POD_FAILED,
    Reason.EVICTED,
    Reason.POD_NOT_READY,
    Reason.CONTAINER_CONFIG_ERROR,
    Reason.RUNTIME_CLASS_NOT_FOUND,
    Reason.IMAGE_PULL_FAILED,
    Reason.RUNTIME_RESTARTING,
    Reason.UNSCHEDULABLE,
)

_IMAGE_REASONS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ErrImageNeverPull",
        "InvalidImageName",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)
_CONTAINER_REASONS = frozenset({"CreateContainerError", "CrashLoopBackOff", "RunContainerError"})


@dataclass(frozen=True, slots=True)
class Failure:
    """One pod's trouble.

    Attributes:
        reason: from the shared vocabulary.
        message: what Kubernetes said, cut to a bound, after what to do where that is known.
        node: where it happened; empty if the pod has no node.
        heals: the kubelet or the scheduler goes on trying by itself, so that replacing the pod
            would win nothing.
        blames_runtime: it may be the runtime's fault: a probe is to tell.
        proves_broken: the text leaves no doubt that the runtime cannot work on this node.
    """

    reason: Reason
    message: str
    node: str = ""
    heals: bool = False
    blames_runtime: bool = False
    proves_broken: bool = False


def cut(text: str, limit: int = MAX_TEXT) -> str:
    """Bound a text that came from outside, keeping both ends: the cause is often the last part."""
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2 - 3]} ... {text[-(limit // 2) + 2 :]}"


def diagnose(pod: Pod, sandbox_event: str | None) -> Failure | None:
    """Say what keeps a pod from being ready; None if nothing is known to be wrong.

    Args:
        pod: the pod.
        sandbox_event: the message of its last FailedCreatePodSandBox event, if one was seen.
    """
    node = pod.spec.nodeName
    if pod.finished:
        return _ended(pod)
    scheduled = pod.condition("PodScheduled")
    if scheduled is not None and scheduled.status == "False":
        if scheduled.reason == "Unschedulable":
            return Failure(Reason.UNSCHEDULABLE, cut(scheduled.message), heals=True)
        return None
    for container in (*pod.status.initContainerStatuses, *pod.status.containerStatuses):
        failure = _container_failure(container, node)
        if failure is not None:
            return failure
    sandbox = pod.condition("PodReadyToStartContainers")
    made = sandbox is not None and sandbox.status == "True"
    if sandbox_event is None or made:
        return None
    _, prefixed, rest = sandbox_event.partition(_EVENT_PREFIX)
    said = rest if prefixed else sandbox_event
    cause = understand(sandbox_event)
    if cause is None:
        return Failure(Reason.SANDBOX_CREATE_FAILED, cut(said), node, blames_runtime=True)
    return _explained(cause, said, node)


def _explained(cause: Cause, said: str, node: str) -> Failure:
    cure = f"{cause.cure}; the node said: "
    return Failure(
        cause.reason,
        cure + cut(said, MAX_TEXT - len(cure)),
        node,
        heals=cause.heals,
        blames_runtime=cause.blames_runtime,
        proves_broken=cause.proves_broken,
    )


def _ended(pod: Pod) -> Failure:
    status = pod.status
    all_ended = [
        c.state.terminated
        for c in (*status.initContainerStatuses, *status.containerStatuses)
        if c.state.terminated
    ]
    # One that failed says more than one that did its work.
    ended = min(all_ended, key=lambda state: state.exitCode == 0, default=None)
    text = status.message or (ended.message if ended else "")
    exit_code = f"exit code {ended.exitCode}" if ended else ""
    cause = status.reason or (ended.reason if ended else "") or status.phase
    said = ", ".join(part for part in (cause, exit_code, text) if part)
    reason = Reason.EVICTED if status.reason == "Evicted" else Reason.POD_FAILED
    return Failure(reason, cut(said), pod.spec.nodeName)


def _container_failure(container: ContainerStatus, node: str) -> Failure | None:
    waiting, terminated = container.state.waiting, container.state.terminated
    if waiting is not None:
        said = f"{container.name}: {waiting.reason}: {waiting.message}"
        if waiting.reason in _IMAGE_REASONS:
            return Failure(Reason.IMAGE_PULL_FAILED, cut(said), node, heals=True)
        if waiting.reason == "CreateContainerConfigError":
            return Failure(Reason.CONTAINER_CONFIG_ERROR, cut(said), node, heals=True)
        if waiting.reason == "CreateContainerError":
            # The handler can be taken away from under a sandbox. Nothing else that is known of
            # runtimes shows only here, and much that concerns the image or the template does.
            known = match(waiting.message)
            if known is not None and known.cause.reason is Reason.HANDLER_NOT_CONFIGURED:
                return _explained(known.cause, said, node)
        if waiting.reason in _CONTAINER_REASONS:
            return Failure(Reason.CONTAINER_FAILED, cut(said), node)
    if terminated is not None and terminated.exitCode != 0:
        said = f"{container.name}: exit code {terminated.exitCode} {terminated.reason} "
        return Failure(Reason.CONTAINER_FAILED, cut(said + terminated.message), node)
    return None
