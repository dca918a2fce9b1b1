"""The pod statuses that a kubelet writes, as pure functions of what happened.

Each takes the status that the pod has and returns a whole new one: the fake writes it in one
request, where a real kubelet would need several.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fakekubelet.behaviour import Exit
from fakekubelet.model import Container, Pod

Status = dict[str, Any]


def now() -> str:
    """The time as Kubernetes writes it: with no fraction of a second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class Stage:
    """How far a pod has come.

    Attributes:
        sandbox_at: When its sandbox was there; None as long as it is not.
        initialized_at: When the init containers had ended.
        started_at: When the containers ran.
    """

    sandbox_at: str | None = None
    initialized_at: str | None = None
    started_at: str | None = None


def creating(pod: Pod, host: str, stage: Stage | None = None) -> Status:
    """The pod waits for its sandbox: ContainerCreating, and not a word why."""
    waiting = _waiting("ContainerCreating")
    # With init containers a kubelet says PodInitializing of the others until those have ended.
    held = _waiting("PodInitializing") if pod.spec.init_containers else waiting
    return _status(
        pod,
        host,
        stage or Stage(initialized_at=None if pod.spec.init_containers else now()),
        phase="Pending",
        init=[_container(c, waiting) for c in pod.spec.init_containers],
        main=[_container(c, held) for c in pod.spec.containers],
    )


def image_missing(pod: Pod, host: str, image: str, stage: Stage, *, backing_off: bool) -> Status:
    """An image cannot be pulled."""
    text = (
        f'Back-off pulling image "{image}": ErrImagePull: {pull_error(image)}'
        if backing_off
        else pull_error(image)
    )
    bad = _waiting("ImagePullBackOff" if backing_off else "ErrImagePull", text)
    in_init = any(c.image == image for c in pod.spec.init_containers)
    other = _waiting("PodInitializing" if in_init else "ContainerCreating")
    return _status(
        pod,
        host,
        stage,
        phase="Pending",
        init=[
            _container(c, (bad if c.image == image else _waiting("PodInitializing")))
            if in_init
            else _container(c, _terminated(Exit(), stage.initialized_at))
            for c in pod.spec.init_containers
        ],
        main=[_container(c, bad if c.image == image else other) for c in pod.spec.containers],
    )


def pull_error(image: str) -> str:
    """What containerd says of an image that is not there."""
    return (
        f'rpc error: code = NotFound desc = failed to pull and unpack image "{image}": '
        f'failed to resolve reference "{image}": {image}: not found'
    )


def initializing(pod: Pod, host: str, stage: Stage, exits: list[Exit], *, failed: bool) -> Status:
    """Some init containers ended; the next one runs, or the last one failed.

    Args:
        pod: The pod.
        host: The node's address.
        stage: How far the pod has come.
        exits: How the init containers so far ended, in order.
        failed: Whether the last of these was a failure that the pod cannot or will not survive.
    """
    crash_loops = failed and pod.spec.restart_policy != "Never"
    init: list[Status] = []
    for index, container in enumerate(pod.spec.init_containers):
        if index < len(exits):
            ended = _terminated(exits[index], stage.sandbox_at)
            if crash_loops and index == len(exits) - 1:
                init.append(_crash_looping(container, ended))
            else:
                init.append(_container(container, ended))
        elif index == len(exits) and not failed:
            init.append(_container(container, _running(stage.sandbox_at), alive=True))
        else:
            init.append(_container(container, _waiting("PodInitializing")))
    return _status(
        pod,
        host,
        stage,
        phase="Failed" if failed and not crash_loops else "Pending",
        init=init,
        main=[_container(c, _waiting("PodInitializing")) for c in pod.spec.containers],
    )


def started(
    pod: Pod, host: str, ip: str, stage: Stage, init: list[Exit], exits: dict[str, Exit]
) -> Status:
    """The containers were started; some of them may have ended since.

    Args:
        pod: The pod.
        host: The node's address.
        ip: The pod's address.
        stage: How far the pod has come; all of it.
        init: How the init containers ended.
        exits: How containers ended, by name; those not in it run.
    """
    restarts = pod.spec.restart_policy
    main: list[Status] = []
    for container in pod.spec.containers:
        end = exits.get(container.name)
        if end is None:
            main.append(_container(container, _running(stage.started_at), alive=True))
        elif restarts == "Always" or (restarts == "OnFailure" and end.code):
            main.append(_crash_looping(container, _terminated(end, stage.started_at)))
        else:
            main.append(_container(container, _terminated(end, stage.started_at)))
    return _status(
        pod,
        host,
        stage,
        phase=_phase(main),
        init=[
            _container(c, _running(stage.sandbox_at), alive=True)
            if c.restart_policy == "Always"
            else _container(c, _terminated(end, stage.sandbox_at), ready=True)
            for c, end in zip(pod.spec.init_containers, init, strict=False)
        ],
        main=main,
        ip=ip,
    )


def container_ended(
    status: Status, name: str, end: Exit, *, restart: bool, error: str | None = None
) -> Status:
    """A container of a running pod ended.

    Args:
        status: The pod's status.
        name: The container.
        end: How it ended.
        restart: Whether the kubelet starts it again.
        error: Why it cannot: the text of a CreateContainerError.
    """
    containers = []
    for old in status["containerStatuses"]:
        if old["name"] != name:
            containers.append(old)
            continue
        started_at = old["state"].get("running", {}).get("startedAt")
        ended = _terminated(end, started_at)
        new = {**old, "state": ended, "ready": False, "started": False}
        if restart:
            # The container is created again in the same sandbox.
            new |= {
                "state": _running(now()),
                "lastState": ended,
                "ready": True,
                "started": True,
                "restartCount": old["restartCount"] + 1,
                "containerID": _id(),
            }
        elif error is not None:
            new |= {"state": _waiting("CreateContainerError", error), "lastState": ended}
        containers.append(new)
    new_status = {**status, "containerStatuses": containers, "phase": _phase(containers)}
    return with_ready(new_status, ready=all(c["ready"] for c in containers))


def with_ready(status: Status, *, ready: bool, containers_too: bool = True) -> Status:
    """The same status with other Ready conditions.

    Args:
        status: The pod's status.
        ready: What Ready becomes.
        containers_too: Whether ContainersReady follows. The node lifecycle controller touches
            only Ready when a node is lost.
    """
    touched = {"Ready", "ContainersReady"} if containers_too else {"Ready"}
    conditions = [
        _condition(status, old["type"], ready=ready, reason=_not_ready_reason(status))
        if old["type"] in touched
        else old
        for old in status["conditions"]
    ]
    return {**status, "conditions": conditions}


def _status(
    pod: Pod,
    host: str,
    stage: Stage,
    *,
    phase: str,
    init: list[Status],
    main: list[Status],
    ip: str | None = None,
) -> Status:
    # What others wrote (qosClass, the scheduler's condition, gates) stays.
    base = dict(pod.status)
    status: Status = {
        **base,
        "phase": phase,
        "hostIP": host,
        "hostIPs": [{"ip": host}],
        "startTime": base.get("startTime") or now(),
        "containerStatuses": main,
    }
    if init:
        status["initContainerStatuses"] = init
    if ip:
        status |= {"podIP": ip, "podIPs": [{"ip": ip}]}
    ready = phase == "Running" and all(c["ready"] for c in main)
    reason = _not_ready_reason(status)
    own = [
        _condition(status, "PodReadyToStartContainers", ready=bool(stage.sandbox_at),
                   at=stage.sandbox_at),
        _condition(status, "Initialized", ready=bool(stage.initialized_at),
                   at=stage.initialized_at, reason="ContainersNotInitialized"),
        _condition(status, "Ready", ready=ready, at=stage.started_at, reason=reason),
        _condition(status, "ContainersReady", ready=ready, at=stage.started_at, reason=reason),
    ]  # fmt: skip
    mine = {condition["type"] for condition in own}
    others = [c for c in base.get("conditions", []) if c["type"] not in mine]
    if not any(c["type"] == "PodScheduled" for c in others):
        others.append(_condition(status, "PodScheduled", ready=True))
    status["conditions"] = own + others
    return status


def _condition(
    status: Status, kind: str, *, ready: bool, at: str | None = None, reason: str | None = None
) -> Status:
    value = "True" if ready else "False"
    old = next((c for c in status.get("conditions", []) if c["type"] == kind), None)
    if old is not None and old["status"] == value:
        return dict(old)
    condition = {
        "type": kind,
        "status": value,
        "lastProbeTime": None,
        "lastTransitionTime": at or now(),
    }
    if not ready and reason:
        condition["reason"] = reason
    return condition


def _not_ready_reason(status: Status) -> str:
    phases = {"Failed": "PodFailed", "Succeeded": "PodCompleted"}
    return phases.get(status["phase"], "ContainersNotReady")


def _phase(containers: list[Status]) -> str:
    ends = [c["state"].get("terminated") for c in containers]
    if not all(ends):
        return "Running"
    return "Failed" if any(end["exitCode"] for end in ends if end) else "Succeeded"


def _container(
    container: Container, state: Status, *, alive: bool = False, ready: bool | None = None
) -> Status:
    status: Status = {
        "name": container.name,
        "image": container.image,
        "imageID": "",
        "ready": alive if ready is None else ready,
        "started": alive,
        "restartCount": 0,
        "state": state,
        "lastState": {},
    }
    if "waiting" not in state:
        status |= {"imageID": f"sha256:{uuid.uuid5(uuid.NAMESPACE_URL, container.image).hex * 2}"}
        status |= {"containerID": _id()}
    return status


def _crash_looping(container: Container, ended: Status) -> Status:
    back_off = "back-off 10s restarting failed container"
    status = _container(container, _waiting("CrashLoopBackOff", back_off))
    return {**status, "lastState": ended, "restartCount": 1}


def _waiting(reason: str, message: str | None = None) -> Status:
    return {"waiting": {"reason": reason, **({"message": message} if message else {})}}


def _running(at: str | None) -> Status:
    return {"running": {"startedAt": at or now()}}


def _terminated(end: Exit, started_at: str | None) -> Status:
    state = {
        "exitCode": end.code,
        "reason": end.reason or ("Error" if end.code else "Completed"),
        "startedAt": started_at or now(),
        "finishedAt": now(),
        "containerID": _id(),
    }
    if end.message:
        # The kubelet keeps no more than this of a termination log.
        state["message"] = end.message[:4096]
    return {"terminated": state}


def _id() -> str:
    return f"containerd://{uuid.uuid4().hex}{uuid.uuid4().hex}"
