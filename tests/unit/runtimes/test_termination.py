"""Why a pod is no more, in the very words of Kubernetes' controllers and kubelets."""

from typing import Any

import msgspec
import pytest

from sandboxpool.api.core import ContainerState, ContainerStatus, Pod, Terminated
from sandboxpool.api.reasons import Reason
from sandboxpool.runtimes.termination import (
    TERMINATION_REASONS,
    TerminationCause,
    lost_pod_cause,
    restart_cause,
    termination_cause,
)
from support.builders import pod_body

EVICTING = "EvictionByEvictionAPI", "Eviction API: evicting"
PREEMPTING = (
    "PreemptionByScheduler",
    "default-scheduler: preempting to accommodate a higher priority pod",
)
TAINTED = "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint"
DEVICE = "DeletionByDeviceTaintManager", "Device Taint manager: deleting due to NoExecute taint"
ORPHANED = "DeletionByPodGC", "PodGC: node no longer exists"
KUBELET = "TerminationByKubelet", "The node was low on resource: memory."
FULL = (
    "The node was low on resource: ephemeral-storage. Threshold quantity: 10, available: 5. "
    "Container main was using 3Gi, request is 0, has larger consumption of ephemeral-storage."
)
SHUTDOWN = "Pod was terminated in response to imminent node shutdown."
TOLD_TO_STOP = {"exitCode": 143, "reason": "Error"}
KILLED = {"exitCode": 137, "reason": "Error"}
OOM = {"exitCode": 137, "reason": "OOMKilled"}


def last(
    target: tuple[str, str] | None = None,
    *ended: dict[str, Any],
    holds: str = "True",
    **given: Any,
) -> Pod:
    """A pod as it was seen last.

    Args:
        target: reason and message of its condition DisruptionTarget, if it has that.
        ended: how its containers have ended.
        holds: the status of that condition.
        given: what else a pod has.
    """
    names = ["main", "helper"]
    statuses = [{"name": n, "state": {"terminated": e}} for n, e in zip(names, ended, strict=False)]
    body = pod_body(ready=False, containerStatuses=statuses, **given)
    if target is not None:
        body["status"]["conditions"].append(
            {"type": "DisruptionTarget", "status": holds, "reason": target[0], "message": target[1]}
        )
    return msgspec.convert(body, Pod)


def found(pod: Pod) -> TerminationCause:
    ending = termination_cause(pod)
    assert ending is not None
    assert ending.reason in TERMINATION_REASONS
    return ending


@pytest.mark.parametrize(
    ("pod", "reason", "in_message"),
    [
        # Kubernetes' own controllers say why before they delete, and the deletion is seen, or not.
        (last(EVICTING, deleting=True), "EvictionByEvictionAPI", "claims.disruption: Protect"),
        (last(EVICTING), "EvictionByEvictionAPI", "Eviction API: evicting"),
        (last(PREEMPTING, deleting=True), "PreemptionByScheduler", "priorityClassName"),
        (last(TAINTED, deleting=True), "DeletionByTaintManager", "NoExecute"),
        (last(DEVICE, deleting=True), "DeletionByTaintManager", "device"),
        (last(ORPHANED, phase="Failed"), "DeletionByPodGC", "node no longer exists"),
        (last(("Karpenter", "spot"), deleting=True), "Disrupted", "(Karpenter)"),
        # What is told to stop exits, which is no cause.
        (last(EVICTING, TOLD_TO_STOP, phase="Failed"), "EvictionByEvictionAPI", "evicted"),
        (last(TAINTED, KILLED, phase="Failed", deleting=True), "DeletionByTaintManager", "taint"),
        # Kubelets say more in the pod's reason than in the condition.
        (
            last(KUBELET, KILLED, phase="Failed", reason="Evicted", message=FULL),
            "Evicted",
            "storage",
        ),
        (last(phase="Failed", reason="Evicted", message=FULL), "Evicted", "requests and limits"),
        (
            last(KUBELET, phase="Failed", reason="Terminated", message=SHUTDOWN),
            "NodeShutdown",
            "imminent",
        ),
        (last(KUBELET, phase="Failed", reason="Preempting"), "PreemptionByKubelet", "critical"),
        (
            last(None, KILLED, phase="Failed", reason="DeadlineExceeded"),
            "DeadlineExceeded",
            "active",
        ),
        # Then the containers.
        (last(None, OOM, phase="Failed"), "OOMKilled", "container main"),
        (last(None, TOLD_TO_STOP, OOM, phase="Failed"), "OOMKilled", "container helper"),
        (last(None, {"exitCode": 3}, phase="Failed"), "ContainersExited", "main exited by its"),
        (
            last(None, {"exitCode": 0}, {"exitCode": 3}, phase="Failed"),
            "ContainersExited",
            "helper",
        ),
        (last(None, {"exitCode": 0}, phase="Succeeded"), "ContainersExited", "exit code 0"),
        (
            last(None, {"exitCode": 137, "reason": "ContainerStatusUnknown"}, phase="Failed"),
            "ContainersExited",
            "ContainerStatusUnknown, exit code 137",
        ),
        (last(phase="Succeeded"), "ContainersExited", "exit code 0"),
        (last(phase="Failed", reason="UnexpectedAdmissionError"), "PodFailed", "UnexpectedAdm"),
        # A deletion that nobody explains, and what it brings with it.
        (last(deleting=True), "PodDeleted", "audit log"),
        (last(None, TOLD_TO_STOP, phase="Failed", deleting=True), "PodDeleted", "deleted through"),
        (last(None, OOM, deleting=True), "PodDeleted", "deleted through"),
        (last(None, OOM, phase="Failed", deleting=True), "OOMKilled", "memory"),
        # The controllers take it back if nothing came of it.
        (
            last(EVICTING, {"exitCode": 3}, phase="Failed", holds="False"),
            "ContainersExited",
            "code 3",
        ),
    ],
)
def test_what_was_seen_last_names_the_cause(pod: Pod, reason: str, in_message: str) -> None:
    ending = found(pod)
    assert ending.reason == reason
    assert in_message.lower() in ending.message.lower()
    assert ending.message.startswith("pod pod-1 on node node-1: ")


@pytest.mark.parametrize(
    "pod", [last(), last(EVICTING, holds="False"), last(None, OOM), last(None, {"exitCode": 0})]
)
def test_a_pod_that_goes_on_has_no_ending(pod: Pod) -> None:
    assert termination_cause(pod) is None


def test_what_others_have_written_is_cut() -> None:
    ending = found(last(("EvictionByEvictionAPI", "x" * 32768), deleting=True))
    assert len(ending.message) < 800


def test_of_an_end_that_was_not_seen_no_cause_is_made_up() -> None:
    unseen = lost_pod_cause("node-1", node_gone=False)
    assert unseen.reason is Reason.POD_LOST
    assert "the cause is not known" in unseen.message
    assert lost_pod_cause("", node_gone=False).reason is Reason.POD_LOST
    lost = lost_pod_cause("node-1", node_gone=True)
    assert lost.reason is Reason.NODE_LOST
    assert "node-1" in lost.message


def test_a_restart_reports_how_the_former_container_ended() -> None:
    former = ContainerState(terminated=Terminated(exitCode=137, reason="OOMKilled"))
    restarted = ContainerStatus("main", restartCount=1, lastState=former)
    assert restart_cause(restarted) == "main (OOMKilled, exit code 137)"
    assert restart_cause(ContainerStatus("main", restartCount=1)) == "main"
