"""Why a pod does not start, in the very words of kubelets, container runtimes and schedulers."""

import inspect
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from sandboxpool.api.core import Pod, SchedulingGate
from sandboxpool.api.reasons import Reason
from sandboxpool.runtimes import diagnosis, podevents
from sandboxpool.runtimes.diagnosis import MAX_TEXT, SEVERITY, Failure, diagnose, truncate
from sandboxpool.runtimes.fault_causes import REASONS
from sandboxpool.runtimes.patterns import TABLE
from support.builders import pod, pod_body

PREFIX = "Failed to create pod sandbox: "
FOLDED = "(combined from similar events): "
RPC = "rpc error: code = Unknown desc = "
NO_HANDLER = f'{RPC}failed to get sandbox runtime: no runtime for "runsc" is configured'
NEW = f"{RPC}failed to create containerd task: something that nobody has seen before"


def starting(**given: Any) -> Pod:
    return pod(
        ready=False,
        phase="Pending",
        conditions={"PodReadyToStartContainers": "False"},
        containerStatuses=[{"name": "main", "state": {"waiting": {"reason": "ContainerCreating"}}}],
        **given,
    )


def found(pod: Pod, event: str | None = None) -> Failure:
    failure = diagnose(pod, event)
    assert failure is not None
    return failure


def flags(failure: Failure) -> tuple[bool, bool, bool]:
    return failure.blames_runtime, failure.proves_broken, failure.self_healing


@pytest.mark.parametrize("before", ["", PREFIX, FOLDED + PREFIX])
def test_a_known_text_brings_its_reason_and_its_cure(before: str) -> None:
    failure = found(starting(), before + NO_HANDLER)
    assert failure.reason is Reason.HANDLER_NOT_CONFIGURED
    assert failure.node == "node-1"
    assert flags(failure) == (True, True, False)
    assert failure.message == (
        "configure the handler in the node's container runtime and restart it; the node said: "
        + NO_HANDLER
    )


@pytest.mark.parametrize("before", ["", PREFIX, FOLDED + PREFIX])
def test_an_unknown_text_is_kept_raw_and_speaks_against_the_runtime(before: str) -> None:
    failure = found(starting(), before + NEW)
    assert failure == Failure(
        Reason.SANDBOX_CREATE_FAILED, NEW, "node-1", blames_runtime=True, proves_broken=False
    )


def test_the_flags_of_a_cause_reach_the_failure() -> None:
    away = 'rpc error: code = Unavailable desc = connection error: desc = "transport: Error"'
    assert flags(found(starting(), PREFIX + away)) == (False, False, True)
    network = f'{RPC}failed to setup network for sandbox "1": no runtime for "runsc" is configured'
    failure = found(starting(), PREFIX + network)
    assert (failure.reason, flags(failure)) == (Reason.POD_NETWORK_FAILED, (False, False, False))


def test_a_class_that_vanished_under_a_pod_heals_when_it_is_back() -> None:
    failure = found(starting(), PREFIX + 'runtimeclass.node.k8s.io "gvisor" not found')
    assert failure.reason is Reason.RUNTIME_CLASS_NOT_FOUND
    assert flags(failure) == (False, False, True)


@pytest.mark.parametrize("text", [NEW, NO_HANDLER])
def test_a_long_text_is_cut_and_its_cure_is_not(text: str) -> None:
    failure = found(starting(), f"{PREFIX}{text} {'x' * 5000} the end")
    assert len(failure.message) <= MAX_TEXT
    assert failure.message.endswith("the end")
    if text == NO_HANDLER:
        assert failure.message.startswith("configure the handler")


def test_lines_become_one() -> None:
    text = 'Others("failed to handle it\n\nCaused by:\n    0: init runtime\n    1: start it")'
    assert found(starting(), PREFIX + RPC + text).message == (
        f'{RPC}Others("failed to handle it Caused by: 0: init runtime 1: start it")'
    )


@given(st.text(max_size=2000))
def test_a_text_is_bounded_and_keeps_both_its_ends(text: str) -> None:
    short = truncate(text)
    flat = " ".join(text.split())
    assert len(short) <= MAX_TEXT
    assert short == flat or (
        len(flat) > MAX_TEXT and short[:200] == flat[:200] and short[-200:] == flat[-200:]
    )


def test_no_event_proves_nothing() -> None:
    assert diagnose(starting(), None) is None


def test_a_sandbox_that_was_made_after_all_makes_its_event_history() -> None:
    made = pod(ready=False, conditions={"PodReadyToStartContainers": "True"})
    assert diagnose(made, PREFIX + NO_HANDLER) is None


def test_a_ready_pod_has_no_failure() -> None:
    made = pod(conditions={"PodReadyToStartContainers": "True"})
    assert diagnose(made, PREFIX + NO_HANDLER) is None


def unscheduled(reason: str) -> Pod:
    body = pod_body(node="", ready=False, phase="Pending")
    body["status"]["conditions"] = [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": reason,
            "message": "0/3 nodes are available: 3 node(s) didn't match",
        }
    ]
    return msgspec.convert(body, Pod)


def test_the_schedulers_words_are_kept_and_it_goes_on_trying() -> None:
    failure = diagnose(unscheduled("Unschedulable"), None)
    assert failure is not None
    assert (failure.reason, failure.self_healing, failure.node) == (Reason.UNSCHEDULABLE, True, "")
    assert failure.message == "0/3 nodes are available: 3 node(s) didn't match"


def test_a_gated_pod_is_held_and_its_gates_are_named() -> None:
    gated = unscheduled("SchedulingGated")
    gates = [SchedulingGate("example.com/quota"), SchedulingGate("example.com/other")]
    gated = replace(gated, spec=replace(gated.spec, schedulingGates=gates))
    failure = found(gated)
    assert failure.reason is Reason.SCHEDULING_GATED
    assert (failure.self_healing, failure.cluster_wide, failure.node) == (True, True, "")
    assert failure.message.endswith(": example.com/quota, example.com/other")


@pytest.mark.parametrize(
    ("waiting", "reason", "self_healing"),
    [
        ("ErrImagePull", Reason.IMAGE_PULL_FAILED, True),
        ("ImagePullBackOff", Reason.IMAGE_PULL_FAILED, True),
        ("ErrImageNeverPull", Reason.IMAGE_PULL_FAILED, True),
        ("InvalidImageName", Reason.IMAGE_PULL_FAILED, True),
        ("CreateContainerConfigError", Reason.CONTAINER_CONFIG_ERROR, True),
        ("CreateContainerError", Reason.CONTAINER_START_ERROR, False),
        ("RunContainerError", Reason.CONTAINER_START_ERROR, False),
        ("PreStartHookError", Reason.CONTAINER_START_ERROR, False),
        ("CrashLoopBackOff", Reason.CONTAINER_FAILED, False),
    ],
)
@pytest.mark.parametrize("kind", ["containerStatuses", "initContainerStatuses"])
def test_a_container_that_waits(
    waiting: str, reason: Reason, self_healing: bool, kind: str
) -> None:
    state = {"waiting": {"reason": waiting, "message": "what was said"}}
    containers: dict[str, Any] = {kind: [{"name": "main", "state": state}]}
    failure = diagnose(pod(ready=False, phase="Pending", **containers), None)
    assert failure is not None
    assert (failure.reason, failure.self_healing) == (reason, self_healing)
    assert failure.message == f"main: {waiting}: what was said"


def test_a_container_that_ended_reports_its_exit_code() -> None:
    state = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    failure = diagnose(pod(ready=False, containerStatuses=[{"name": "main", "state": state}]), None)
    assert failure is not None
    assert failure.reason is Reason.CONTAINER_FAILED
    assert "137" in failure.message
    assert "OOMKilled" in failure.message


def test_an_init_container_that_did_its_work_is_no_failure() -> None:
    done = {"name": "init", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
    assert diagnose(pod(ready=False, initContainerStatuses=[done]), None) is None


def ended(code: int, reason: str) -> dict[str, Any]:
    return {"name": reason.lower(), "state": {"terminated": {"exitCode": code, "reason": reason}}}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"reason": "DeadlineExceeded", "message": "Pod was active"}, "DeadlineExceeded"),
        ({"containerStatuses": [ended(3, "Error")]}, "exit code 3"),
        ({"containerStatuses": [ended(0, "Completed"), ended(3, "Error")]}, "exit code 3"),
        ({"initContainerStatuses": [ended(9, "Error")]}, "exit code 9"),
        ({}, "Failed"),
    ],
)
def test_a_pod_that_ended_reports_its_cause(found: dict[str, Any], said: str) -> None:
    failure = diagnose(pod(ready=False, phase="Failed", **found), None)
    assert failure is not None
    assert failure.reason is Reason.POD_FAILED
    assert said in failure.message


def test_an_evicted_pod_is_said_to_be() -> None:
    text = "The node was low on resource: memory. "
    failure = found(pod(ready=False, phase="Failed", reason="Evicted", message=text))
    assert failure == Failure(
        Reason.EVICTED, "Evicted, The node was low on resource: memory.", "node-1"
    )


def waiting(reason: str, message: str) -> dict[str, Any]:
    return {"name": "main", "state": {"waiting": {"reason": reason, "message": message}}}


def test_a_handler_taken_away_under_a_sandbox_is_the_runtimes_fault() -> None:
    """As it was seen with containerd 2.1.9: only the container's state says so."""
    text = 'failed to get sandbox runtime: no runtime for "gone" is configured'
    failure = found(
        pod(
            ready=False,
            phase="Pending",
            conditions={"PodReadyToStartContainers": "True"},
            containerStatuses=[waiting("CreateContainerError", text)],
        )
    )
    assert failure.reason is Reason.HANDLER_NOT_CONFIGURED
    assert flags(failure) == (True, True, False)
    assert failure.message.endswith(f"main: CreateContainerError: {text}")


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        # What an image or a template can bring about blames nobody's runtime.
        ("RunContainerError", 'exec: "no runtime for \\"x\\" is configured": not found'),
        ("CrashLoopBackOff", 'no runtime for "x" is configured'),
        ("CreateContainerError", "error opening KVM device file (/dev/kvm)"),
    ],
)
def test_other_words_of_a_container_do_not_blame_the_runtime(reason: str, message: str) -> None:
    failure = found(pod(ready=False, containerStatuses=[waiting(reason, message)]))
    assert not failure.blames_runtime
    assert failure.reason in (Reason.CONTAINER_FAILED, Reason.CONTAINER_START_ERROR)


def test_an_applications_last_message_is_never_looked_up() -> None:
    last = {"exitCode": 1, "reason": "Error", "message": 'no runtime for "x" is configured'}
    status = [{"name": "main", "state": {"terminated": last}}]
    for phase, reason in (
        ("Failed", Reason.POD_FAILED),
        ("Running", Reason.CONTAINER_FAILED),
    ):
        failure = found(pod(ready=False, phase=phase, containerStatuses=status))
        assert (failure.reason, failure.blames_runtime) == (reason, False)


def test_every_reason_of_a_failure_has_its_place_in_the_order_of_severity() -> None:
    """Whoever sorts by it must not stumble over a reason that it does not know."""
    code = inspect.getsource(diagnosis).split("_IMAGE_REASONS = ", 1)[1]
    code += inspect.getsource(podevents)
    used = {Reason[name] for name in re.findall(r"Reason\.([A-Z_]+)", code)}
    assert used >= {Reason.SANDBOX_CREATE_FAILED, Reason.EVICTED, Reason.UNSCHEDULABLE}
    assert len(set(SEVERITY)) == len(SEVERITY)
    # The last two come from a pool that gives up waiting, and from what is not ready any more.
    assert set(SEVERITY) == (
        used
        | {row.cause.reason for row in TABLE}
        | REASONS
        | {Reason.SANDBOX_START_TIMEOUT, Reason.POD_NOT_READY}
    )
