"""Evidence that a runtime isolates: the boot id inside a sandbox compared with its node's. Pure.

A container that shares the node's kernel reads the node's boot id; the kernel of gVisor or of a
virtual machine has another one. A missing answer is no evidence and never counts as proof.
"""

import re
from dataclasses import dataclass

from sandboxpool.api import names
from sandboxpool.api.core import ContainerStatus, Pod, Terminated
from sandboxpool.api.times import epoch
from sandboxpool.api.v1alpha1 import Isolation as Isolation
from sandboxpool.runtimes.diagnosis import truncate
from sandboxpool.runtimes.nodes import Machine, NodeFacts
from sandboxpool.runtimes.probe import (
    ANNOTATION_BOOT_ID,
    ANNOTATION_NODE_UID,
    CONTROL,
    NODES_KERNEL,
    OWN_KERNEL,
    PROBE_CONTAINER,
    SANDBOX_PROBE_CONTAINER,
    UNREADABLE,
    architecture_hint,
)

MAX_KERNEL = 120
# Start times have whole seconds.
_GRAIN_SECONDS = 1.0

_BOOT_ID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Software:
    """The software of a node that evidence is about: evidence is void once any of it changes."""

    machine: Machine
    container_runtime: str
    kubelet: str
    handlers: frozenset[str] | None

    def is_on(self, node: NodeFacts) -> bool:
        """Whether the node still runs it; cheaper than comparing with ``software_of``."""
        return (
            self.machine.boot_id == node.boot_id
            and self.machine.uid == node.uid
            and self.container_runtime == node.container_runtime
            and self.kubelet == node.kubelet
            and self.handlers == node.handlers
        )


def software_of(node: NodeFacts) -> Software:
    """Return the software of a node."""
    return Software(node.machine, node.container_runtime, node.kubelet, node.handlers)


@dataclass(frozen=True, slots=True)
class Evidence:
    """The evidence about one handler on one node, or about one sandbox.

    Attributes:
        at: epoch seconds at which it was judged.
        software: the node's software at that time.
        class_uid: uid of the RuntimeClass of the sandbox.
        kernel: ``/proc/version`` inside the sandbox, truncated; empty if no message arrived.
        message: one sentence.
    """

    isolation: Isolation
    at: float
    software: Software
    class_uid: str
    kernel: str
    message: str


def no_evidence(node: NodeFacts, class_uid: str, now: float, message: str) -> Evidence:
    """Record that a probe got no answer, and why."""
    return Evidence(Isolation.UNAVAILABLE, now, software_of(node), class_uid, "", truncate(message))


def refutation(handler: str) -> Isolation:
    """The result that refutes a handler; a positive control must not see another kernel."""
    return Isolation.PROVEN if handler == CONTROL else Isolation.NOT_PROVEN


def started_at(pod: Pod) -> float | None:
    """Return the latest time at which the pod's sandbox was started; None if it is not certain.

    A container ends with its sandbox, so the sandbox is at least as old as the longest running
    container. The time is the node's; a node whose clock is behind the API server's is not trusted.

    Returns:
        Epoch seconds.
    """
    listed = (*pod.status.initContainerStatuses, *pod.status.containerStatuses)
    running = (status.state.running for status in listed)
    times = [at for state in running if state is not None and (at := epoch(state.startedAt or ""))]
    first = min(times, default=0.0)
    return first if first + _GRAIN_SECONDS >= epoch(pod.metadata.creationTimestamp) > 0 else None


def control_failure(control: Evidence) -> str:
    """Say why isolation cannot be proven on a node, by its positive control."""
    if control.isolation is Isolation.PROVEN:
        return (
            "the node publishes a boot id that is not its kernel's: a container without isolation "
            "also reads another one, so isolation cannot be proven on this node"
        )
    return f"the positive control, a container without isolation, gave no answer: {control.message}"


def has_run(pod: Pod) -> bool:
    """The script of a probe pod has completed, so the sandbox has started."""
    ended = _ended(pod.status.containerStatuses, PROBE_CONTAINER)
    return ended is not None and ended.exitCode in (OWN_KERNEL, NODES_KERNEL, UNREADABLE)


def judge_probe(pod: Pod, node: NodeFacts, now: float) -> Evidence | None:
    """Judge a probe pod by its exit code.

    Returns:
        None while the pod has not ended, or if the node was rebooted or replaced since.
    """
    annotations = pod.metadata.annotations
    made_for = Machine(
        uid=annotations.get(ANNOTATION_NODE_UID, ""),
        boot_id=annotations.get(ANNOTATION_BOOT_ID, ""),
    )
    if made_for != node.machine:
        return None
    class_uid = annotations.get(names.ANNOTATION_RUNTIME_UID, "")
    ended = _ended(pod.status.containerStatuses, PROBE_CONTAINER)
    if ended is None and not pod.finished:
        return None
    if has_run(pod) and pod.spec.nodeName != node.name:
        # Admission can change the affinity; the probe compared with the boot id of its own node.
        cause = (
            f"the probe pod ran on node {pod.spec.nodeName!r} instead of {node.name!r}: an "
            "admission webhook or a scheduler ignores or changes its node affinity"
        )
        return no_evidence(node, class_uid, now, cause)
    if ended is None or not has_run(pod):
        status = pod.status
        cause = f"{status.reason or status.phase} {status.message}"
        if ended is not None:
            cause = f"exit code {ended.exitCode} {ended.reason} {ended.message}"
            cause += architecture_hint(cause)
        return no_evidence(node, class_uid, now, f"the probe ended before it could answer: {cause}")
    if ended.exitCode == UNREADABLE:
        return no_evidence(node, class_uid, now, _unreadable(node))
    _, kernel = _read(ended)
    return _judged(ended.exitCode == OWN_KERNEL, kernel, node, class_uid, now)


def judge_sandbox(pod: Pod, node: NodeFacts, now: float) -> Evidence | None:
    """Judge one sandbox, and no other, by its own probe container.

    Returns:
        None while the probe container has not ended, or if the pod has none.
    """
    ended = _ended(pod.status.initContainerStatuses, SANDBOX_PROBE_CONTAINER)
    if ended is None or pod.spec.nodeName != node.name:
        return None
    class_uid = pod.metadata.annotations.get(names.ANNOTATION_RUNTIME_UID, "")
    seen, kernel = _read(ended)
    if ended.exitCode != 0:
        cause = f"exit code {ended.exitCode} {ended.reason} {ended.message}"
        cause += architecture_hint(cause)
        return no_evidence(node, class_uid, now, f"the sandbox's probe container failed: {cause}")
    if not node.boot_id:
        return no_evidence(node, class_uid, now, _unreadable(node))
    if seen != node.boot_id and not _BOOT_ID.fullmatch(seen):
        # Also the kubelet's own message when it cannot read the file.
        return no_evidence(
            node,
            class_uid,
            now,
            "the sandbox's probe container ran, but its termination message has no boot id: if the "
            "runtime does not support termination messages, set isolationProof: PerNode in the "
            f"pool; the message is: {ended.message}",
        )
    return _judged(seen != node.boot_id, kernel, node, class_uid, now)


def _judged(isolated: bool, kernel: str, node: NodeFacts, class_uid: str, now: float) -> Evidence:
    if isolated:
        isolation, message = Isolation.PROVEN, "the sandbox has a kernel of its own"
    else:
        isolation = Isolation.NOT_PROVEN
        message = "the sandbox runs on the node's own kernel: inside, the boot id is the node's"
    if kernel:
        message += f" ({kernel})"
    return Evidence(isolation, now, software_of(node), class_uid, kernel, message)


def _unreadable(node: NodeFacts) -> str:
    if not node.boot_id:
        return f"node {node.name} does not publish its boot id (status.nodeInfo.bootID)"
    return "the sandbox started, but /proc/sys/kernel/random/boot_id could not be read in it"


def _ended(statuses: list[ContainerStatus], name: str) -> Terminated | None:
    return next((status.state.terminated for status in statuses if status.name == name), None)


def _read(ended: Terminated) -> tuple[str, str]:
    """The boot id and kernel of a probe's termination message; empty if they are missing."""
    seen, _, kernel = ended.message.partition("\n")
    return seen.strip(), kernel.strip()[:MAX_KERNEL]
