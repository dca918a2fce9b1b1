"""What a pod's own events say, in the very words of kubelets and controllers."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sandboxpool.api.core import Condition, Event, Pod
from sandboxpool.api.reasons import Reason
from sandboxpool.api.times import timestamp
from sandboxpool.runtimes.diagnosis import MAX_TEXT, Failure, diagnose
from sandboxpool.runtimes.podevents import MAX_POD_EVENTS, PodEvents, no_cause_message, read
from support.builders import NAMESPACE, NOW, pod

NO_SECRET = 'MountVolume.SetUp failed for volume "v" : secret "absent-1" not found'
UNMOUNTED = (
    "Unable to attach or mount volumes: unmounted volumes=[v], unattached volumes=[], "
    "failed to process volumes=[]: timed out waiting for the condition"
)
READINESS = "Readiness probe failed: cat: can't open '/absent': No such file or directory"
STARTUP = "Startup probe failed: dial tcp 10.0.0.7:80: connect: connection refused"
HOOK = "PostStartHook failed"


def event(
    reason: str, message: str, *, container: str = "", at: float = NOW, **changed: Any
) -> Event:
    body: dict[str, Any] = {
        "metadata": {"name": "e", "uid": "e", "resourceVersion": "1", "namespace": NAMESPACE},
        "involvedObject": {
            "kind": "Pod",
            "namespace": NAMESPACE,
            "name": "pod-1",
            "uid": "pod-1-uid",
            "fieldPath": f"spec.containers{{{container}}}" if container else "",
        },
        "reason": reason,
        "message": message,
        "source": {"component": "kubelet", "host": "node-1"},
        "lastTimestamp": timestamp(at),
    }
    for key, value in changed.items():
        body[key] = {**body[key], **value} if isinstance(value, dict) else value
    return msgspec.convert(body, Event)


def unmade() -> Pod:
    waiting = {"waiting": {"reason": "ContainerCreating"}}
    return pod(
        ready=False,
        phase="Pending",
        conditions={"PodReadyToStartContainers": "False"},
        containerStatuses=[{"name": "sandbox", "state": waiting}],
    )


def running(**status: Any) -> Pod:
    state = {"running": {"startedAt": timestamp(NOW)}}
    return pod(
        ready=False,
        conditions={"PodReadyToStartContainers": "True", "Initialized": "True"},
        containerStatuses=[{"name": "sandbox", "started": True, "state": state, **status}],
    )


def found(pod: Pod, *events: Event, sandbox_event: str | None = None) -> Failure:
    failure = diagnose(pod, sandbox_event, read(pod, events))
    assert failure is not None
    # Nothing that is read here orders, opens or closes anything for others.
    assert (failure.blames_runtime, failure.proves_broken) == (False, False)
    assert len(failure.message) <= MAX_TEXT
    return failure


# --- Whose events count --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {"involvedObject": {"uid": "another"}},
        {"involvedObject": {"name": "another"}},
        {"involvedObject": {"namespace": "another"}},
        {"metadata": {"namespace": "another"}},
        {"source": {"host": "node-2"}},
        {"source": {"component": "somebody"}},
        {"source": {"component": "", "host": ""}},
    ],
)
def test_only_what_those_say_of_this_pod_who_may_know_counts(changed: dict[str, Any]) -> None:
    other = event("FailedMount", NO_SECRET, **changed)
    assert read(unmade(), [other]) == PodEvents()
    assert read(unmade(), [event("FailedMount", NO_SECRET)]).count == 1


def test_sources_that_are_told_in_the_newer_fields_count_too() -> None:
    newer = event(
        "FailedMount",
        NO_SECRET,
        source={"component": "", "host": ""},
        reportingComponent="kubelet",
        reportingInstance="node-1",
    )
    attach = event("FailedAttachVolume", "m", source={"component": "attachdetach-controller"})
    assert read(unmade(), [newer, attach]).count == 2


def test_what_is_kept_is_bounded_and_the_newest() -> None:
    many = [event("R", f"{i} {'x' * 5000}", at=NOW + i) for i in range(100)]
    told = read(unmade(), many)
    assert told.count == 100
    assert len(told.events) == MAX_POD_EVENTS
    assert told.events[0].text.startswith("99 ")
    assert all(len(word.text) <= 400 for word in told.events)


# --- Volumes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        NO_SECRET,
        'MountVolume.SetUp failed for volume "v" : configmap "absent" not found',
        'MountVolume.SetUp failed for volume "v" : references non-existent secret key: a',
        'MountVolume.SetUp failed for volume "v" : object "default"/"absent" not registered',
        "Unable to attach or mount volumes: unmounted volumes=[v], unattached volumes=[], failed "
        "to process volumes=[v]: error processing PVC default/a: failed to fetch PVC from API "
        'server: persistentvolumeclaims "a" not found',
        'Multi-Attach error for volume "pvc-1" Volume is already exclusively attached to one node',
    ],
)
def test_what_is_missing_everywhere_is_waited_for_and_not_tried_elsewhere(said: str) -> None:
    failure = found(unmade(), event("FailedMount", said))
    assert failure.reason is Reason.VOLUME_MOUNT_FAILED
    assert (failure.self_healing, failure.cluster_wide, failure.node) == (True, True, "node-1")
    assert failure.message.endswith(said)


def test_what_one_node_cannot_mount_another_may() -> None:
    said = 'MountVolume.MountDevice failed for volume "pvc-1" : driver name a.b not found'
    failure = found(unmade(), event("FailedMount", said))
    assert (failure.reason, failure.self_healing) == (Reason.VOLUME_MOUNT_FAILED, True)
    assert not failure.cluster_wide


def test_of_the_words_about_volumes_the_one_that_names_the_cause_is_told() -> None:
    events = [event("FailedMount", NO_SECRET, at=NOW - 60), event("FailedMount", UNMOUNTED)]
    assert found(unmade(), *events).message.endswith(NO_SECRET)
    assert found(unmade(), events[1]).message.endswith(UNMOUNTED)


def test_a_volume_that_was_mounted_in_the_end_is_history() -> None:
    told = [event("FailedMount", NO_SECRET, at=NOW - 60), event("Pulling", "Pulling image")]
    assert diagnose(unmade(), None, read(unmade(), told)) is None
    assert diagnose(running(ready=True), None, read(unmade(), told[:1])) is None


def test_a_node_without_room_is_at_fault_and_another_is_tried() -> None:
    said = 'MountVolume.SetUp failed for volume "v" : write /var/x: no space left on device'
    failure = found(unmade(), event("FailedMount", said))
    assert failure.reason is Reason.NODE_RESOURCE_EXHAUSTED
    assert (failure.self_healing, failure.cluster_wide) == (True, False)


# --- Containers ----------------------------------------------------------------------------------


def test_a_readiness_probe_is_named_with_its_container_and_its_words() -> None:
    failure = found(running(), event("Unhealthy", READINESS, container="sandbox"))
    assert failure.reason is Reason.READINESS_PROBE_FAILING
    assert failure.message == f"container sandbox: {READINESS}"
    assert not failure.self_healing


def test_a_readiness_probe_that_has_not_been_heard_of_is_named_all_the_same() -> None:
    failure = found(running())
    assert failure.reason is Reason.READINESS_PROBE_FAILING
    assert failure.message.startswith("container sandbox is running")


def test_a_startup_probe_comes_before_a_readiness_probe() -> None:
    events = [
        event("Unhealthy", STARTUP, container="sandbox"),
        event("Unhealthy", READINESS, container="sandbox"),
    ]
    failure = found(running(started=False), *events)
    assert failure.reason is Reason.STARTUP_PROBE_FAILING
    assert failure.message == f"container sandbox: {STARTUP}"
    assert found(running(), *events).reason is Reason.READINESS_PROBE_FAILING


def test_another_containers_probe_is_not_this_ones() -> None:
    failure = found(running(), event("Unhealthy", READINESS, container="other"))
    assert "no event has the probe's output" in failure.message


def initializing(name: str, incomplete: str = "", **status: Any) -> Pod:
    # Kubelets call every init container started that runs.
    state = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
    made = pod(
        ready=False,
        phase="Pending",
        conditions={"PodReadyToStartContainers": "True"},
        initContainerStatuses=[
            {"name": "sidecar", "started": True, "state": state},
            {"name": name, "started": True, "state": state, **status},
        ],
    )
    message = f"containers with incomplete status: [{incomplete or name} later]"
    initialized = Condition("Initialized", "False", "ContainersNotInitialized", message)
    made.status.conditions.append(initialized)
    return made


def test_an_init_container_that_does_not_end_is_named_once_it_has_taken_long() -> None:
    failure = found(initializing("wait"))
    assert failure.reason is Reason.INIT_CONTAINER_RUNNING
    assert failure.message.startswith("the template's init container wait has been running")
    assert not failure.self_healing
    assert diagnose(initializing("wait"), None) is None
    own = found(initializing("sandboxpool-probe"))
    assert own.message.startswith("the operator's own init container sandboxpool-probe")


def test_what_need_not_end_is_not_waited_for() -> None:
    assert diagnose(initializing("other", "later"), None, PodEvents()) is None


def test_a_readiness_gate_is_named() -> None:
    made = running(ready=True)
    gates = {"type": "Ready", "status": "False", "reason": "ReadinessGatesNotReady"}
    body = msgspec.to_builtins(made)
    body["status"]["conditions"] = [gates | {"message": 'readiness gate "example.com/lb"'}]
    failure = found(msgspec.convert(body, Pod))
    assert failure.reason is Reason.POD_NOT_READY
    assert "example.com/lb" in failure.message


def test_nothing_is_said_against_a_pod_whose_events_were_not_read() -> None:
    assert diagnose(running(), None) is None
    assert diagnose(unmade(), None) is None


# --- Ends ----------------------------------------------------------------------------------------


def ended(code: int = 143, **terminated: Any) -> Pod:
    state = {"terminated": {"exitCode": code, "reason": "Error", **terminated}}
    return pod(ready=False, phase="Failed", containerStatuses=[{"name": "sandbox", "state": state}])


def test_a_container_that_was_ended_for_its_hook_is_reported() -> None:
    failure = found(ended(), event("FailedPostStartHook", HOOK, container="sandbox"))
    assert failure.reason is Reason.LIFECYCLE_HOOK_FAILED
    for word in ("postStart", "container sandbox", HOOK, "exit code 143"):
        assert word in failure.message


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("startup", Reason.STARTUP_PROBE_FAILING),
        ("liveness", Reason.LIVENESS_PROBE_FAILING),
    ],
)
def test_a_container_that_was_ended_for_a_probe_is_reported(kind: str, reason: Reason) -> None:
    said = f"{kind.capitalize()} probe failed: HTTP probe failed with statuscode: 500"
    failure = found(
        ended(137),
        event("Killing", f"Container sandbox failed {kind} probe", container="sandbox"),
        event("Unhealthy", said, container="sandbox"),
    )
    assert failure.reason is reason
    assert said in failure.message


def test_a_program_that_ends_by_itself_is_a_pod_that_failed() -> None:
    failure = found(ended(3), event("Started", "Started container sandbox", container="sandbox"))
    assert failure == Failure(Reason.POD_FAILED, "Error, exit code 3", "node-1")


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("UnexpectedAdmissionError", "Pod was rejected: Allocate failed due to no devices"),
        ("OutOfcpu", "Pod was rejected: Node didn't have enough resource: cpu"),
        ("OutOfnvidia.com/gpu", "Node didn't have enough resource: nvidia.com/gpu"),
        ("NodeAffinity", "Pod was rejected: Predicate NodeAffinity failed"),
        ("SysctlForbidden", 'Pod was rejected: forbidden sysctl: "net.core.somaxconn"'),
        ("NodeShutdown", "Pod was rejected as the node is shutting down."),
        ("AReasonOfALaterRelease", "Pod was rejected: whatever"),
    ],
)
def test_a_pod_that_the_kubelet_rejects_is_reported(reason: str, message: str) -> None:
    failure = found(pod(ready=False, phase="Failed", reason=reason, message=message))
    assert failure.reason is Reason.REJECTED_BY_KUBELET
    assert failure.message == f"{reason}, {message}"
    assert not failure.self_healing


def test_a_node_under_pressure_is_short_of_something_of_its_own() -> None:
    said = "Pod was rejected: The node had condition: [DiskPressure]. "
    failure = found(pod(ready=False, phase="Failed", reason="Evicted", message=said))
    assert failure.reason is Reason.NODE_RESOURCE_EXHAUSTED


@pytest.mark.parametrize("reason", ["StartError", "ContainerCannotRun"])
def test_a_container_that_never_ran_is_told_from_one_that_ended(reason: str) -> None:
    text = 'exec: "/absent": no such file or directory'
    assert found(ended(128, reason=reason, message=text)).reason is Reason.CONTAINER_START_ERROR
    full = "write /x: no space left on device"
    assert found(ended(128, reason=reason, message=full)).reason is Reason.NODE_RESOURCE_EXHAUSTED


# --- Silence -------------------------------------------------------------------------------------


def test_without_a_failure_the_message_names_what_was_checked() -> None:
    told = read(unmade(), [event("Pulling", 'Pulling image "a"'), event("Scheduled", "s", at=NOW)])
    assert diagnose(unmade(), None, told) is None
    assert no_cause_message(told) == (
        "no cause was found in the pod's conditions, containers and 2 events; the "
        'last event was Pulling: Pulling image "a"'
    )
    assert "conditions, containers and 0 events" in no_cause_message(PodEvents())
    assert "could not be read: so it is" in no_cause_message(PodEvents(problem="so it is"))
    assert "were not read" in no_cause_message(None)
