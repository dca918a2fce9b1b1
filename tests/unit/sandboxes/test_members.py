"""The sorting of a pool's pods, by what they stand on."""

from typing import Any

import pytest

from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.sandbox_state import State
from sandboxpool.runtimes.evidence import Isolation
from sandboxpool.runtimes.ground import Ground
from sandboxpool.sandboxes.members import Member, can_be_handed_out, member_of
from support.builders import facts, pod

WELL = Ground(facts(), "runsc")
NOT_SERVED = Ground(facts(handlers=["runc"]), "runsc")
QUARANTINED = Ground(facts(), "runsc", quarantined=True)
NO_RUNTIME = (
    "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to get sandbox "
    'runtime: no runtime for "runsc" is configured'
)


def proof(isolation: Isolation | None, **given: Any) -> Ground:
    return Ground(facts(**given), "runsc", isolation=isolation, proof_wanted=True)


def sorted_(of_pod: dict[str, Any], ground: Ground, event: str | None = None) -> Member:
    return member_of(
        pod(**of_pod), ground=ground, sandbox_event=event, deleting=False, claimed=False
    )


STARTING: dict[str, Any] = {"ready": False}
PENDING: dict[str, Any] = {"ready": False, "node": ""}
FAILED: dict[str, Any] = {"ready": False, "phase": "Failed"}
CLAIMED: dict[str, Any] = {"claim": "c"}


@pytest.mark.parametrize(
    ("of_pod", "ground", "state", "handed_out"),
    [
        ({}, WELL, State.WARM, True),
        ({}, proof(Isolation.PROVEN), State.WARM, True),
        ({}, proof(None), State.UNPROVEN, False),
        ({}, proof(Isolation.UNAVAILABLE), State.UNPROVEN, False),
        ({}, proof(Isolation.NOT_PROVEN), State.STRANDED, False),
        ({}, Ground(facts(), "runsc", isolation=Isolation.NOT_PROVEN), State.WARM, True),
        ({}, QUARANTINED, State.STRANDED, False),
        ({}, NOT_SERVED, State.STRANDED, False),
        ({}, proof(Isolation.PROVEN, ready=False), State.STRANDED, False),
        (STARTING, WELL, State.STARTING, False),
        (STARTING, proof(None), State.STARTING, False),
        (STARTING, QUARANTINED, State.STRANDED, False),
        (STARTING, proof(Isolation.NOT_PROVEN), State.STRANDED, False),
        (PENDING, Ground(None, "runsc"), State.STARTING, False),
        (PENDING, Ground(None, "runsc", proof_wanted=True), State.STARTING, False),
        (FAILED, QUARANTINED, State.FAILED, False),
        (FAILED, WELL, State.FAILED, False),
        (CLAIMED, QUARANTINED, State.CLAIMED, False),
        (CLAIMED, proof(Isolation.NOT_PROVEN), State.CLAIMED, False),
        ({"deleting": True}, WELL, State.STOPPING, False),
    ],
)
def test_the_ground_decides_about_what_is_ready(
    of_pod: dict[str, Any], ground: Ground, state: State, handed_out: bool
) -> None:
    assert sorted_(of_pod, ground).state is state
    assert can_be_handed_out(pod(**of_pod), ground) is handed_out


@pytest.mark.parametrize(
    ("of_pod", "ground", "told"),
    [
        (STARTING, WELL, True),
        (STARTING, QUARANTINED, True),
        ({}, WELL, False),
        ({}, proof(None), False),
        (CLAIMED | STARTING, WELL, False),
        (STARTING | {"deleting": True}, WELL, False),
    ],
)
def test_only_what_the_pool_waits_for_is_asked_what_is_wrong(
    of_pod: dict[str, Any], ground: Ground, told: bool
) -> None:
    found = sorted_(of_pod, ground, NO_RUNTIME)
    assert (found.failure is not None) == told
    if found.failure is not None:
        assert found.failure.reason is Reason.HANDLER_NOT_CONFIGURED


def test_a_member_knows_what_it_was_made_with() -> None:
    made = pod(overhead={"memory": "130Mi", "cpu": "250m"}, runtime_uid="uid-1")
    found = member_of(made, ground=WELL, sandbox_event=None, deleting=False, claimed=False)
    assert found.overhead == (("cpu", "250m"), ("memory", "130Mi")), "sorted, as the class's is"
    assert (found.runtime_uid, found.class_name) == ("uid-1", "gvisor")
    assert (found.ready, found.node) == (True, WELL.node)


@pytest.mark.parametrize(
    ("state", "alive", "unclaimed"),
    [
        (State.STARTING, True, True),
        (State.WARM, True, True),
        (State.UNPROVEN, True, True),
        (State.STRANDED, False, True),
        (State.FAILED, False, True),
        (State.CLAIMED, False, False),
        (State.STOPPING, False, False),
    ],
)
def test_what_counts_as_stock(state: State, alive: bool, unclaimed: bool) -> None:
    of_pods: dict[State, tuple[dict[str, Any], Ground]] = {
        State.STARTING: (STARTING, WELL),
        State.WARM: ({}, WELL),
        State.UNPROVEN: ({}, proof(None)),
        State.STRANDED: ({}, QUARANTINED),
        State.FAILED: (FAILED, WELL),
        State.CLAIMED: (CLAIMED, WELL),
        State.STOPPING: ({"deleting": True}, WELL),
    }
    found = sorted_(*of_pods[state])
    assert (found.state, found.alive, found.unclaimed) == (state, alive, unclaimed)
