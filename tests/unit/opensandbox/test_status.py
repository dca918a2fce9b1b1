"""The statuses that are written, as OpenSandbox's CRD and server want them."""

import msgspec
import pytest

from sandboxpool.opensandbox import status
from sandboxpool.opensandbox.kinds import BatchSandbox, BatchSandboxStatus

NOW = 1_800_000_000.0
COUNTERS = {
    "replicas",
    "allocated",
    "ready",
    "taskFailed",
    "taskPending",
    "taskRunning",
    "taskSucceed",
    "taskUnknown",
}
# The enum of OpenSandbox's CRD; another type is refused.
TYPES = {
    "Ready",
    "Progressing",
    "Paused",
    "PauseFailed",
    "ResumeFailed",
    "PodFailed",
    "PoolAllocationPending",
}


def sandbox(*, pause: bool = False, former: BatchSandboxStatus | None = None) -> BatchSandbox:
    body = {
        "metadata": {
            "name": "s",
            "namespace": "n",
            "uid": "u",
            "resourceVersion": "1",
            "generation": 3,
        },
        "spec": {"pause": pause},
        "status": former.to_wire() if former else {},
    }
    return msgspec.json.decode(msgspec.json.encode(body), type=BatchSandbox)


ALL = {
    "pending": status.pending(sandbox(), "Filling", "m", NOW),
    "failed": status.failed(sandbox(), "RuntimeClassNotFound", "m", NOW),
    "task": status.failed(sandbox(), "TaskFailed", "exit code 3", NOW),
    "running": status.running(sandbox(), with_task=True, now=NOW),
    "paused": status.running(sandbox(pause=True), with_task=False, now=NOW),
}


@pytest.mark.parametrize("given", ALL.values(), ids=ALL)
def test_each_write_has_all_counters_and_only_known_conditions(given: BatchSandboxStatus) -> None:
    wire = given.to_wire()
    assert set(wire) >= COUNTERS
    assert None not in wire.values()
    assert wire["observedGeneration"] == 3
    assert {c.type for c in given.conditions} <= TYPES
    assert {c.status for c in given.conditions} == {"True"}


def test_the_server_takes_a_running_sandbox_for_ready() -> None:
    running = ALL["running"]
    assert (running.phase, running.ready, running.allocated, running.replicas) == (
        "Succeed",
        1,
        1,
        1,
    )
    assert running.taskRunning == 1
    assert ALL["paused"].taskRunning == 0


def test_a_pause_that_is_not_supported_leaves_the_sandbox_running() -> None:
    paused = ALL["paused"]
    assert paused.phase == "Succeed"
    assert paused.pauseObservedGeneration == 3
    condition = paused.condition("PauseFailed")
    assert condition is not None
    assert condition.reason == "PauseNotSupported"


def test_the_task_counts_as_failed_only_if_it_did() -> None:
    assert ALL["task"].taskFailed == 1
    assert ALL["task"].taskLastErrorMessage == "exit code 3"
    assert ALL["failed"].taskFailed == 0
    assert "taskLastErrorMessage" not in ALL["failed"].to_wire()


def test_the_message_has_the_reason_once() -> None:
    (condition,) = ALL["failed"].conditions
    assert condition.message == "RuntimeClassNotFound: m"
    told = "SandboxPool 'x' cannot serve: RuntimeClassNotFound: m"
    (condition,) = status.failed(sandbox(), "RuntimeClassNotFound", told, NOW).conditions
    assert condition.message == told


def test_a_condition_keeps_its_time_while_it_holds() -> None:
    later = status.pending(sandbox(former=ALL["pending"]), "QuotaExceeded", "m", NOW + 60)
    assert later.conditions[0].lastTransitionTime == ALL["pending"].conditions[0].lastTransitionTime
    failed = status.failed(sandbox(former=ALL["pending"]), "X", "m", NOW + 60)
    assert failed.conditions[0].lastTransitionTime == "2027-01-15T08:01:00Z"


def test_older_crds_get_the_status_without_the_condition_they_do_not_know() -> None:
    older = status.without_capacity_condition(ALL["pending"])
    assert older.conditions == []
    assert older.phase == "Pending"


def test_messages_fit() -> None:
    assert len(status.failed(sandbox(), "X", "m" * 5000, NOW).conditions[0].message) == 1024
