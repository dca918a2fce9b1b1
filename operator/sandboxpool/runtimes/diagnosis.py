"""Why a pod does not start: from its conditions, its containers and its events to a reason.

The kubelet says why a sandbox could not be made only in an event, and pods have a budget of
events, so the absence of one proves nothing. What a text means stands in ``patterns``, or is read
from its ``structure``. A text that nobody understands yet is kept raw: it is worth more than a
guess.

Only what kubelets, runtimes and schedulers say is looked up there, never what a container left as
its last message: that is the application's.

What is usual while a pod starts, an init container that runs or a probe that has not passed yet, is
a cause only once the pod has taken so long that its events were read.
"""

import re
from dataclasses import dataclass

from sandboxpool.api.core import Condition, ContainerStatus, Pod
from sandboxpool.api.reasons import Reason
from sandboxpool.runtimes import podevents
from sandboxpool.runtimes.heuristics import cause_of
from sandboxpool.runtimes.patterns import Cause, match
from sandboxpool.runtimes.podevents import Explanation, PodEvents
from sandboxpool.runtimes.probe import SANDBOX_PROBE_CONTAINER

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
    Reason.REJECTED_BY_KUBELET,
    Reason.CONTAINER_START_ERROR,
    Reason.LIFECYCLE_HOOK_FAILED,
    Reason.STARTUP_PROBE_FAILING,
    Reason.READINESS_PROBE_FAILING,
    Reason.LIVENESS_PROBE_FAILING,
    Reason.INIT_CONTAINER_RUNNING,
    Reason.CONTAINER_FAILED,
    Reason.POD_FAILED,
    Reason.EVICTED,
    Reason.POD_NOT_READY,
    Reason.VOLUME_MOUNT_FAILED,
    Reason.CONTAINER_CONFIG_ERROR,
    Reason.RUNTIME_CLASS_NOT_FOUND,
    Reason.IMAGE_PULL_FAILED,
    Reason.RUNTIME_RESTARTING,
    Reason.UNSCHEDULABLE,
    Reason.SCHEDULING_GATED,
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
# Why a container waits that was made but could not be started, or could not even be made.
_START_REASONS = frozenset(
    {"CreateContainerError", "RunContainerError", "PreCreateHookError", "PreStartHookError"}
)
# Of one that has ended without having run.
_NOT_STARTED = frozenset({"StartError", "ContainerCannotRun"})
# How kubelets say that they do not take a pod that the scheduler gave them.
_REJECTED = "Pod was rejected: "
_REJECTIONS = frozenset(
    {
        "AppArmor",
        "EmptyPodSharedPoolError",
        "InitContainerRestartPolicyForbidden",
        "InvalidNodeInfo",
        "NodeAffinity",
        "NodeName",
        "NodePorts",
        "NodeShutdown",
        "NodeUnschedulable",
        "PodFeatureUnsupported",
        "PodLevelResourcesNotSupported",
        "PodOSNotSupported",
        "PodOSSelectorNodeLabelDoesNotMatch",
        "SMTAlignmentError",
        "SupplementalGroupsPolicyNotSupported",
        "SysctlForbidden",
        "TaintToleration",
        "TopologyAffinityError",
        "UnexpectedAdmissionError",
        "UnexpectedPredicateFailureType",
        "UnknownReason",
        "VolumeAttachmentLimitExceeded",
    }
)
# The kubelet has ended it for another pod's sake, or because the node shuts down.
_ENDED_BY_KUBELET = frozenset({"Preempting", "Terminated"})
# Init containers that have not done their work, in the condition Initialized. What has a restart
# policy of its own need not end, and is not listed once it has started.
_INCOMPLETE = re.compile(r"containers with incomplete status: \[([^\]]{1,4096})\]")
# The node is under pressure: it takes no pods of this kind for now.
_NODE_PRESSURE = "The node had condition"


@dataclass(frozen=True, slots=True)
class Failure:
    """One pod's trouble.

    Attributes:
        reason: from the shared vocabulary.
        message: what Kubernetes said, cut to a bound, after what to do where that is known.
        node: where it happened; empty if the pod has no node.
        self_healing: the kubelet or the scheduler goes on trying, so that replacing the pod would
            win nothing.
        blames_runtime: it may be the runtime's fault: a probe is to tell.
        proves_broken: the text leaves no doubt that the runtime cannot work on this node.
        cluster_wide: it heals, if at all, on every node alike: there is no use in trying another.
        from_events: it was found in the pod's events when the pod had taken long: it may be over.
    """

    reason: Reason
    message: str
    node: str = ""
    self_healing: bool = False
    blames_runtime: bool = False
    proves_broken: bool = False
    cluster_wide: bool = False
    from_events: bool = False


def truncate(text: str, limit: int = MAX_TEXT) -> str:
    """Bound a text that came from outside, keeping both ends: the cause is often the last part."""
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2 - 3]} ... {text[-(limit // 2) + 2 :]}"


def diagnose(
    pod: Pod, sandbox_event: str | None, pod_events: PodEvents | None = None
) -> Failure | None:
    """Say what keeps a pod from being ready; None if nothing is known to be wrong.

    Args:
        pod: the pod.
        sandbox_event: the message of its last FailedCreatePodSandBox event, if one was seen.
        pod_events: what its events said when it had taken long; None if they were not read. Never
            speaks against a runtime.
    """
    node = pod.spec.nodeName
    if pod.finished:
        return _ended(pod, pod_events)
    scheduled = pod.condition("PodScheduled")
    if scheduled is not None and scheduled.status == "False":
        return _unscheduled(pod, scheduled)
    for container in (*pod.status.initContainerStatuses, *pod.status.containerStatuses):
        failure = _container_failure(container, node)
        if failure is not None:
            return failure
    sandbox = pod.condition("PodReadyToStartContainers")
    made = sandbox is not None and sandbox.status == "True"
    if sandbox_event is not None and not made:
        return _no_sandbox(sandbox_event, node)
    if pod_events is None or pod.ready:
        return None
    return _slow(pod, pod_events)


def _no_sandbox(sandbox_event: str, node: str) -> Failure:
    _, prefixed, rest = sandbox_event.partition(_EVENT_PREFIX)
    said = rest if prefixed else sandbox_event
    cause = cause_of(sandbox_event)
    if cause is None:
        return Failure(Reason.SANDBOX_CREATE_FAILED, truncate(said), node, blames_runtime=True)
    return _explained(cause, said, node)


def _unscheduled(pod: Pod, scheduled: Condition) -> Failure | None:
    if scheduled.reason == "Unschedulable":
        return Failure(Reason.UNSCHEDULABLE, truncate(scheduled.message), self_healing=True)
    if scheduled.reason == "SchedulingGated":
        gates = ", ".join(gate.name for gate in pod.spec.schedulingGates) or "not named"
        text = (
            "the scheduler does not look at it before its scheduling gates are removed, by "
            f"whoever is responsible for them: {gates}"
        )
        return Failure(
            Reason.SCHEDULING_GATED, truncate(text), self_healing=True, cluster_wide=True
        )
    return None


def _slow(pod: Pod, pod_events: PodEvents) -> Failure | None:
    """What keeps a pod that has taken long, and in which nothing seems to be wrong."""
    status = pod.status
    begun = [*status.initContainerStatuses, *status.containerStatuses]
    if not any(c.state.running or c.state.terminated for c in begun):
        return _from_events(podevents.pre_sandbox_failure(pod_events), pod)
    hook = podevents.hook_failed(pod_events)
    if hook is not None and not any(c.state.running for c in status.containerStatuses):
        return _from_events(hook, pod)
    for container in begun:
        if container.state.running is not None and container.started is False:
            said = podevents.probe_message(pod_events, "Startup", container.name)
            if said:
                text = f"container {container.name}: {said}"
                return _from_events(Explanation(Reason.STARTUP_PROBE_FAILING, text), pod)
    initialized = pod.condition("Initialized")
    if initialized is not None and initialized.status == "False":
        return _initializing(pod, initialized.message)
    return _not_ready(pod, pod_events)


def _initializing(pod: Pod, said: str) -> Failure | None:
    """The pod's init containers have not all done their work; its condition lists those."""
    listed = _INCOMPLETE.search(said)
    names = listed[1].split() if listed else []
    for container in pod.status.initContainerStatuses:
        running = container.state.running
        if running is None or (container.started if not listed else container.name not in names):
            continue
        since = f" since {running.startedAt}" if running.startedAt else ""
        own = container.name == SANDBOX_PROBE_CONTAINER
        whose = "the operator's own" if own else "the template's"
        text = (
            f"{whose} init container {container.name} has been running{since} and has not ended: "
            "the other containers wait for it"
        )
        return Failure(Reason.INIT_CONTAINER_RUNNING, text, pod.spec.nodeName, from_events=True)
    return None


def _not_ready(pod: Pod, pod_events: PodEvents) -> Failure | None:
    waiting = [c for c in pod.status.containerStatuses if c.state.running and not c.ready]
    if not waiting:
        ready = pod.condition("Ready")
        if ready is not None and ready.reason == "ReadinessGatesNotReady":
            text = f"its readiness gates are not True: {ready.message}"
            return Failure(
                Reason.POD_NOT_READY, truncate(text), pod.spec.nodeName, from_events=True
            )
        return None
    for container in waiting:
        said = podevents.probe_message(pod_events, "Readiness", container.name)
        if said:
            text = f"container {container.name}: {said}"
            return _from_events(Explanation(Reason.READINESS_PROBE_FAILING, text), pod)
    first = waiting[0]
    startup = first.started is False
    kind = "startup" if startup else "readiness"
    text = (
        f"container {first.name} runs and its {kind} probe has not passed; no event says what it "
        "answers"
    )
    reason = Reason.STARTUP_PROBE_FAILING if startup else Reason.READINESS_PROBE_FAILING
    return Failure(reason, text, pod.spec.nodeName, from_events=True)


def _from_events(found: Explanation | None, pod: Pod) -> Failure | None:
    if found is None:
        return None
    return Failure(
        found.reason,
        truncate(found.text),
        pod.spec.nodeName,
        self_healing=found.self_healing,
        cluster_wide=found.cluster_wide,
        from_events=True,
    )


def _explained(cause: Cause, said: str, node: str) -> Failure:
    cure = f"{cause.cure}; the node said: "
    return Failure(
        cause.reason,
        cure + truncate(said, MAX_TEXT - len(cure)),
        node,
        self_healing=cause.self_healing,
        blames_runtime=cause.blames_runtime,
        proves_broken=cause.proves_broken,
    )


def _ended(pod: Pod, pod_events: PodEvents | None) -> Failure:
    status, node = pod.status, pod.spec.nodeName
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
    if status.reason:
        return Failure(_reason_of_end(pod), truncate(said), node)
    if ended is not None and ended.reason in _NOT_STARTED:
        return _start_failed(said, node, self_healing=False)
    found = (
        podevents.hook_failed(pod_events) or podevents.killed_by_probe(pod_events)
        if pod_events
        else None
    )
    if found is not None:
        return Failure(found.reason, truncate(f"{found.text} ({said})"), node, from_events=True)
    return Failure(Reason.POD_FAILED, truncate(said), node)


def _reason_of_end(pod: Pod) -> Reason:
    """What the kubelet's own reason for the end of a pod means."""
    status = pod.status
    if status.reason in _ENDED_BY_KUBELET:
        return Reason.EVICTED
    if status.reason == "Evicted":
        pressed = status.message.removeprefix(_REJECTED).startswith(_NODE_PRESSURE)
        return Reason.NODE_RESOURCE_EXHAUSTED if pressed else Reason.EVICTED
    rejected = (
        status.message.startswith(_REJECTED)
        or status.reason in _REJECTIONS
        or status.reason.startswith("OutOf")
    )
    return Reason.REJECTED_BY_KUBELET if rejected else Reason.POD_FAILED


def _start_failed(said: str, node: str, *, self_healing: bool) -> Failure:
    """A container could not be made or started."""
    if podevents.is_exhausted(said):
        found = podevents.exhausted(said)
        return Failure(found.reason, truncate(found.text), node, self_healing=self_healing)
    return Failure(Reason.CONTAINER_START_ERROR, truncate(said), node)


def _container_failure(container: ContainerStatus, node: str) -> Failure | None:
    waiting, terminated = container.state.waiting, container.state.terminated
    if waiting is not None:
        said = f"{container.name}: {waiting.reason}: {waiting.message}"
        if waiting.reason in _IMAGE_REASONS:
            return Failure(Reason.IMAGE_PULL_FAILED, truncate(said), node, self_healing=True)
        if waiting.reason == "CreateContainerConfigError":
            lacking = podevents.is_lacking(waiting.message)
            return Failure(
                Reason.CONTAINER_CONFIG_ERROR,
                truncate(said),
                node,
                self_healing=True,
                cluster_wide=lacking,
            )
        if waiting.reason == "CreateContainerError":
            # The handler can be taken away from under a sandbox. Nothing else that is known of
            # runtimes shows only here, and much that concerns the image or the template does.
            known = match(waiting.message)
            if known is not None and known.cause.reason is Reason.HANDLER_NOT_CONFIGURED:
                return _explained(known.cause, said, node)
        if waiting.reason in _START_REASONS:
            return _start_failed(said, node, self_healing=True)
        if waiting.reason == "PostStartHookError":
            text = f"the postStart hook has failed: {said}"
            return Failure(Reason.LIFECYCLE_HOOK_FAILED, truncate(text), node)
        if waiting.reason == "CrashLoopBackOff":
            return Failure(Reason.CONTAINER_FAILED, truncate(said), node)
    if terminated is not None and terminated.exitCode != 0:
        said = f"{container.name}: exit code {terminated.exitCode} {terminated.reason} "
        if terminated.reason in _NOT_STARTED:
            return _start_failed(said + terminated.message, node, self_healing=False)
        return Failure(Reason.CONTAINER_FAILED, truncate(said + terminated.message), node)
    return None
