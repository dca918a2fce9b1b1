"""Why a pod does not start, in the very words of kubelets, container runtimes and schedulers."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxpool.api.core import Pod
from sandboxpool.pools import status
from sandboxpool.reasons import Reason
from sandboxpool.runtimes.diagnosis import MAX_TEXT, cut, diagnose, sandbox_failure
from support.builders import pod, pod_body

PREFIX = "Failed to create pod sandbox: "
RPC = "rpc error: code = Unknown desc = "
SANDBOX = "d" * 64

# What follows the prefix, as it was seen: containerd 1.6, 1.7 and 2.x, CRI-O, shims, VMMs, runsc.
TEXTS = [
    f'{RPC}failed to get sandbox runtime: no runtime for "not-configured" is configured',
    f'{RPC}unable to get OCI runtime for sandbox "{SANDBOX}": '
    'no runtime for "not-configured" is configured',
    f"{RPC}failed to find runtime handler kata from runtime list map[crun:0xc0001 runc:0xc0002]",
    'RuntimeHandler "runsc" not supported',
    f'{RPC}failed to start sandbox "{SANDBOX}": failed to create containerd task: failed to start '
    'shim: failed to resolve runtime path: runtime "io.containerd.runsc.v1" binary not installed '
    '"containerd-shim-runsc-v1": file does not exist',
    f"{RPC}failed to create containerd task: failed to start shim: failed to resolve runtime path: "
    'runtime "io.containerd.runsc.v1" binary not installed "containerd-shim-runsc-v1": '
    "file does not exist: unknown",
    f"{RPC}failed to create containerd task: failed to start shim: failed to resolve runtime path: "
    "invalid custom binary path: stat /opt/kata/bin/containerd-shim-kata-v2: "
    "no such file or directory",
    'rpc error: code = Unavailable desc = connection error: desc = "transport: Error while '
    'dialing: dial unix /run/containerd/containerd.sock: connect: no such file or directory"',
    "rpc error: code = DeadlineExceeded desc = context deadline exceeded",
    "failed to create containerd task: failed to create shim: open /dev/vhost-vsock: "
    "no such device: unknown",
    'opening device file for platform "kvm": error opening KVM device file (/dev/kvm): '
    "no such file or directory",
]


def starting(**given: Any) -> Pod:
    return pod(
        ready=False,
        phase="Pending",
        conditions={"PodReadyToStartContainers": "False"},
        containerStatuses=[{"name": "main", "state": {"waiting": {"reason": "ContainerCreating"}}}],
        **given,
    )


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("before", ["", "(combined from similar events): "])
def test_a_failed_sandbox_keeps_the_runtimes_own_words(text: str, before: str) -> None:
    failure = diagnose(starting(), before + PREFIX + text)
    assert failure is not None
    assert failure.reason is Reason.SANDBOX_CREATE_FAILED
    assert failure.message == text
    assert failure.node == "node-1"
    assert not failure.heals


def test_a_text_without_the_prefix_is_kept_whole() -> None:
    assert sandbox_failure("something new") == "something new"


def test_runtime_rs_errors_of_several_lines_become_one() -> None:
    text = 'Others("failed to handler message\n\nCaused by:\n    0: init runtime\n    1: start vm")'
    assert sandbox_failure(PREFIX + text) == (
        'Others("failed to handler message Caused by: 0: init runtime 1: start vm")'
    )


@given(st.text(max_size=2000))
def test_a_text_is_bounded_and_keeps_both_its_ends(text: str) -> None:
    short = cut(text)
    flat = " ".join(text.split())
    assert len(short) <= MAX_TEXT
    assert short == flat or (
        len(flat) > MAX_TEXT and short[:200] == flat[:200] and short[-200:] == flat[-200:]
    )


def test_no_event_proves_nothing() -> None:
    assert diagnose(starting(), None) is None


def test_a_sandbox_that_was_made_after_all_makes_its_event_history() -> None:
    made = pod(ready=False, conditions={"PodReadyToStartContainers": "True"})
    assert diagnose(made, PREFIX + TEXTS[0]) is None


def test_a_ready_pod_has_no_failure() -> None:
    made = pod(conditions={"PodReadyToStartContainers": "True"})
    assert diagnose(made, PREFIX + TEXTS[0]) is None


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
    assert (failure.reason, failure.heals, failure.node) == (Reason.UNSCHEDULABLE, True, "")
    assert failure.message == "0/3 nodes are available: 3 node(s) didn't match"


def test_a_gated_pod_is_not_unschedulable() -> None:
    assert diagnose(unscheduled("SchedulingGated"), None) is None


@pytest.mark.parametrize(
    ("waiting", "reason", "heals"),
    [
        ("ErrImagePull", Reason.IMAGE_PULL_FAILED, True),
        ("ImagePullBackOff", Reason.IMAGE_PULL_FAILED, True),
        ("ErrImageNeverPull", Reason.IMAGE_PULL_FAILED, True),
        ("InvalidImageName", Reason.IMAGE_PULL_FAILED, True),
        ("CreateContainerConfigError", Reason.CONTAINER_CONFIG_ERROR, True),
        ("CreateContainerError", Reason.CONTAINER_FAILED, False),
        ("CrashLoopBackOff", Reason.CONTAINER_FAILED, False),
        ("RunContainerError", Reason.CONTAINER_FAILED, False),
    ],
)
@pytest.mark.parametrize("kind", ["containerStatuses", "initContainerStatuses"])
def test_a_container_that_waits(waiting: str, reason: Reason, heals: bool, kind: str) -> None:
    state = {"waiting": {"reason": waiting, "message": "what was said"}}
    containers: dict[str, Any] = {kind: [{"name": "main", "state": state}]}
    failure = diagnose(pod(ready=False, phase="Pending", **containers), None)
    assert failure is not None
    assert (failure.reason, failure.heals) == (reason, heals)
    assert failure.message == f"main: {waiting}: what was said"


def test_a_container_that_ended_says_its_exit_code() -> None:
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
        ({"reason": "Evicted", "message": "The node was low on memory."}, "Evicted"),
        ({"containerStatuses": [ended(3, "Error")]}, "exit code 3"),
        ({"containerStatuses": [ended(0, "Completed"), ended(3, "Error")]}, "exit code 3"),
        ({"initContainerStatuses": [ended(9, "Error")]}, "exit code 9"),
        ({}, "Failed"),
    ],
)
def test_a_pod_that_ended_says_what_of(found: dict[str, Any], said: str) -> None:
    failure = diagnose(pod(ready=False, phase="Failed", **found), None)
    assert failure is not None
    assert failure.reason is Reason.POD_FAILED
    assert said in failure.message


def test_every_reason_of_a_failure_has_its_place_in_the_order_of_severity() -> None:
    """The status sorts by it, and must not stumble over a reason that it does not know."""
    known = set(status._SEVERITY)
    assert {
        Reason.SANDBOX_CREATE_FAILED,
        Reason.CONTAINER_FAILED,
        Reason.POD_FAILED,
        Reason.CONTAINER_CONFIG_ERROR,
        Reason.IMAGE_PULL_FAILED,
        Reason.UNSCHEDULABLE,
    } <= known
