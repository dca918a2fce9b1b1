"""Why a pod does not start: from its conditions, its containers and its events to a reason.

The kubelet says why a sandbox could not be made only in an event, and pods have a budget of
events, so the absence of one proves nothing. The raw text is kept, cut to a bound: a text that
nobody understands yet is worth more than a guess.
"""

from dataclasses import dataclass

from sandboxpool.api.core import Pod
from sandboxpool.reasons import Reason

MAX_TEXT = 512
FAILED_CREATE_SANDBOX = "FailedCreatePodSandBox"
_EVENT_PREFIX = "Failed to create pod sandbox: "

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
        message: what Kubernetes said, cut to a bound.
        node: where it happened; empty if the pod has no node.
        heals: the kubelet or the scheduler goes on trying by itself, so that replacing the pod
            would win nothing.
        blames_runtime: it speaks against the node's runtime: enough of them open its breaker.
        proves_broken: the text leaves no doubt that the runtime cannot work on this node.
    """

    reason: Reason
    message: str
    node: str = ""
    heals: bool = False
    blames_runtime: bool = False
    proves_broken: bool = False


def cut(text: str) -> str:
    """Bound a text that came from outside, keeping both ends: the cause is often the last part."""
    text = " ".join(text.split())
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[: MAX_TEXT // 2 - 3]} ... {text[-MAX_TEXT // 2 + 2 :]}"


def sandbox_failure(event_message: str) -> str:
    """Take the container runtime's words out of a FailedCreatePodSandBox event."""
    _, found, rest = event_message.partition(_EVENT_PREFIX)
    return cut(rest if found else event_message)


def diagnose(pod: Pod, sandbox_event: str | None) -> Failure | None:
    """Say what keeps a pod from being ready; None if nothing is known to be wrong.

    Args:
        pod: the pod.
        sandbox_event: the message of its last FailedCreatePodSandBox event, if one was seen.
    """
    status = pod.status
    node = pod.spec.nodeName
    if pod.finished:
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
        return Failure(Reason.POD_FAILED, cut(said), node)
    scheduled = pod.condition("PodScheduled")
    if scheduled is not None and scheduled.status == "False":
        if scheduled.reason == "Unschedulable":
            return Failure(Reason.UNSCHEDULABLE, cut(scheduled.message), heals=True)
        return None
    for container in (*status.initContainerStatuses, *status.containerStatuses):
        state = container.state
        if state.waiting is not None:
            words = cut(f"{container.name}: {state.waiting.reason}: {state.waiting.message}")
            if state.waiting.reason in _IMAGE_REASONS:
                return Failure(Reason.IMAGE_PULL_FAILED, words, node, heals=True)
            if state.waiting.reason == "CreateContainerConfigError":
                return Failure(Reason.CONTAINER_CONFIG_ERROR, words, node, heals=True)
            if state.waiting.reason in _CONTAINER_REASONS:
                return Failure(Reason.CONTAINER_FAILED, words, node)
        if state.terminated is not None and state.terminated.exitCode != 0:
            words = cut(
                f"{container.name}: exit code {state.terminated.exitCode} "
                f"{state.terminated.reason} {state.terminated.message}"
            )
            return Failure(Reason.CONTAINER_FAILED, words, node)
    sandbox = pod.condition("PodReadyToStartContainers")
    if sandbox_event is not None and not (sandbox is not None and sandbox.status == "True"):
        return Failure(Reason.SANDBOX_CREATE_FAILED, sandbox_failure(sandbox_event), node)
    return None
