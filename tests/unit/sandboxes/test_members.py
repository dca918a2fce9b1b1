"""The sorting of a pool's pods, by what they stand on."""

from typing import Any

import pytest

from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.runtimes.evidence import Isolation
from sandboxpool.runtimes.host_state import HostState
from sandboxpool.sandboxes.members import Member, classify_pod, is_ready_on_host
from support.builders import facts, pod

WELL = HostState(facts(), "runsc")
NOT_SERVED = HostState(facts(handlers=["runc"]), "runsc")
QUARANTINED = HostState(facts(), "runsc", quarantined=True)
NO_RUNTIME = (
    "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to get sandbox "
    'runtime: no runtime for "runsc" is configured'
)


def proof(isolation: Isolation | None, **given: Any) -> HostState:
    return HostState(facts(**given), "runsc", isolation=isolation, proof_wanted=True)


def sorted_(of_pod: dict[str, Any], host_state: HostState, event: str | None = None) -> Member:
    return classify_pod(
        pod(**of_pod), host_state=host_state, sandbox_event=event, deleting=False, being_bound=False
    )


STARTING: dict[str, Any] = {"ready": False}
PENDING: dict[str, Any] = {"ready": False, "node": ""}
FAILED: dict[str, Any] = {"ready": False, "phase": "Failed"}
CLAIMED: dict[str, Any] = {"claim": "c"}


@pytest.mark.parametrize(
    ("of_pod", "host_state", "state", "handed_out"),
    [
        ({}, WELL, SandboxState.WARM, True),
        ({}, proof(Isolation.PROVEN), SandboxState.WARM, True),
        ({}, proof(None), SandboxState.UNPROVEN, False),
        ({}, proof(Isolation.UNAVAILABLE), SandboxState.UNPROVEN, False),
        ({}, proof(Isolation.NOT_PROVEN), SandboxState.STRANDED, False),
        ({}, HostState(facts(), "runsc", isolation=Isolation.NOT_PROVEN), SandboxState.WARM, True),
        ({}, QUARANTINED, SandboxState.STRANDED, False),
        ({}, NOT_SERVED, SandboxState.STRANDED, False),
        ({}, proof(Isolation.PROVEN, ready=False), SandboxState.STRANDED, False),
        (STARTING, WELL, SandboxState.STARTING, False),
        (STARTING, proof(None), SandboxState.STARTING, False),
        (STARTING, QUARANTINED, SandboxState.STRANDED, False),
        (STARTING, proof(Isolation.NOT_PROVEN), SandboxState.STRANDED, False),
        (PENDING, HostState(None, "runsc"), SandboxState.STARTING, False),
        (PENDING, HostState(None, "runsc", proof_wanted=True), SandboxState.STARTING, False),
        (FAILED, QUARANTINED, SandboxState.FAILED, False),
        (FAILED, WELL, SandboxState.FAILED, False),
        (CLAIMED, QUARANTINED, SandboxState.CLAIMED, False),
        (CLAIMED, proof(Isolation.NOT_PROVEN), SandboxState.CLAIMED, False),
        ({"deleting": True}, WELL, SandboxState.STOPPING, False),
    ],
)
def test_the_host_state_decides_about_ready_sandboxes(
    of_pod: dict[str, Any], host_state: HostState, state: SandboxState, handed_out: bool
) -> None:
    assert sorted_(of_pod, host_state).state is state
    assert is_ready_on_host(pod(**of_pod), host_state) is handed_out


@pytest.mark.parametrize(
    ("of_pod", "host_state", "pod_events"),
    [
        (STARTING, WELL, True),
        (STARTING, QUARANTINED, True),
        ({}, WELL, False),
        ({}, proof(None), False),
        (CLAIMED | STARTING, WELL, False),
        (STARTING | {"deleting": True}, WELL, False),
    ],
)
def test_only_pods_that_may_fail_are_diagnosed(
    of_pod: dict[str, Any], host_state: HostState, pod_events: bool
) -> None:
    found = sorted_(of_pod, host_state, NO_RUNTIME)
    assert (found.failure is not None) == pod_events
    if found.failure is not None:
        assert found.failure.reason is Reason.HANDLER_NOT_CONFIGURED


def test_a_member_knows_what_it_was_made_with() -> None:
    made = pod(overhead={"memory": "130Mi", "cpu": "250m"}, runtime_uid="uid-1")
    found = classify_pod(
        made, host_state=WELL, sandbox_event=None, deleting=False, being_bound=False
    )
    assert found.overhead == (("cpu", "250m"), ("memory", "130Mi")), "sorted, as the class's is"
    assert (found.runtime_uid, found.class_name) == ("uid-1", "gvisor")
    assert (found.ready, found.node) == (True, WELL.node)


@pytest.mark.parametrize(
    ("state", "alive", "unclaimed"),
    [
        (SandboxState.STARTING, True, True),
        (SandboxState.WARM, True, True),
        (SandboxState.UNPROVEN, True, True),
        (SandboxState.STRANDED, False, True),
        (SandboxState.FAILED, False, True),
        (SandboxState.CLAIMED, False, False),
        (SandboxState.STOPPING, False, False),
    ],
)
def test_what_counts_as_stock(state: SandboxState, alive: bool, unclaimed: bool) -> None:
    of_pods: dict[SandboxState, tuple[dict[str, Any], HostState]] = {
        SandboxState.STARTING: (STARTING, WELL),
        SandboxState.WARM: ({}, WELL),
        SandboxState.UNPROVEN: ({}, proof(None)),
        SandboxState.STRANDED: ({}, QUARANTINED),
        SandboxState.FAILED: (FAILED, WELL),
        SandboxState.CLAIMED: (CLAIMED, WELL),
        SandboxState.STOPPING: ({"deleting": True}, WELL),
    }
    found = sorted_(*of_pods[state])
    assert (found.state, found.in_stock, found.unclaimed) == (state, alive, unclaimed)
