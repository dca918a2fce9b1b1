"""Two operators with one lease: one leads, the other stands by and takes over.

What the former leader has sent may arrive at any time: the proxy in front of it keeps its last
requests back and delivers them when the next one leads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from fakekubelet import FakeNodes, texts
from localcluster.controlplane import ControlPlane
from sandboxpool.api import names
from sandboxpool.app.operator import LEASE_LOST_EXIT_CODE
from sandboxpool.cluster.sandbox_state import SandboxState
from support import Api, consistently, eventually, objects
from support.faultproxy import FaultProxy
from support.history import PodHistory
from support.operator_process import Operator, StartOperator
from support.sandboxes import gvisor_class, phase, pool_status, quiet, warm_pool

# Of a leader that dies nothing is heard; a test should not wait for that longer than it must.
ENVIRONMENT = {"SANDBOXPOOL_LEASE": "8/6/1"}
TAKE_OVER_SECONDS = 40.0

POD = r"/pods/pool-"
POD_CREATE = r"/pods$"
CLAIM_STATUS = r"/sandboxclaims/claim/status"
POOL_STATUS = r"/sandboxpools/pool/status"
LEASE = r"/leases"


@dataclass(frozen=True)
class Pair:
    """The leader and its standby, each behind a proxy of its own."""

    leader: Operator
    standby: Operator
    leaders_way: FaultProxy
    standbys_way: FaultProxy


def leads(operator: Operator) -> bool:
    return operator.metric("sandboxpool_leader") == 1


def await_leader(operator: Operator) -> None:
    eventually(lambda: leads(operator), message=f"{operator.name} leads", timeout=TAKE_OVER_SECONDS)


StartPair = Callable[..., Pair]


@pytest.fixture
def start_pair(
    start_operator: StartOperator, proxy: FaultProxy, control_plane: ControlPlane, nodes: FakeNodes
) -> Iterator[StartPair]:
    """Starts a leader, whose code may be changed, and a standby."""
    with FaultProxy(control_plane.url, control_plane.ca_file) as other:
        started: list[Operator] = []

        def start(*changes: str) -> Pair:
            leader = start_operator(through=proxy, name="first", env=ENVIRONMENT, changes=changes)
            started.append(leader)
            await_leader(leader)
            standby = start_operator(through=other, name="second", env=ENVIRONMENT)
            started.append(standby)
            return Pair(leader, standby, proxy, other)

        yield start
        for operator in started:
            operator.kill()


@pytest.fixture
def pair(start_pair: StartPair, api: Api) -> Pair:
    """A leader and a standby, and a warm pool of three."""
    started = start_pair()
    warm_pool(api, replicas=3)
    return started


def bind_all(api: Api, number: int, at_half: Callable[[], object]) -> None:
    """Creates claims, does something when half of them are there, and waits for all."""
    for i in range(number):
        api.create(objects.claim(f"claim-{i}"))
        if i == number // 2:
            at_half()
    claims = [phase(api, "Bound", f"claim-{i}", TAKE_OVER_SECONDS) for i in range(number)]
    assert len({claim["status"]["podUID"] for claim in claims}) == number


def holder(api: Api, namespace: str) -> str:
    found = api.get("Lease", names.DEFAULT_RELEASE, f"{namespace}-system")
    return str(found["spec"]["holderIdentity"])


def transitions(api: Api, namespace: str) -> int:
    found = api.get("Lease", names.DEFAULT_RELEASE, f"{namespace}-system")
    return int(found["spec"]["leaseTransitions"])


# --- Who leads -----------------------------------------------------------------------------------


def test_a_standby_is_ready_and_writes_nothing(api: Api, pair: Pair) -> None:
    assert pair.standby.ready()
    assert not leads(pair.standby)
    bind_all(api, 5, lambda: None)
    quiet(api, claimed=5)
    # At the start it asks for its rights, and whether its namespace is there: by a dry run.
    asked = ("/selfsubjectaccessreviews", "/leases")
    writes = [w for w in pair.standbys_way.writes() if not w.path.endswith(asked)]
    leases = [w for w in pair.standbys_way.writes(r"/leases$") if "dryRun=All" not in w.query]
    assert writes == leases == []
    # What it shows of pools would be counted twice by whoever adds up all replicas.
    assert pair.standby.metric("sandboxpool_pods") == 0
    assert pair.leader.metric("sandboxpool_pods", state=SandboxState.WARM.value) == 3


def test_of_two_that_start_together_one_leads(
    start_operator: StartOperator, nodes: FakeNodes, api: Api
) -> None:
    both = [start_operator(name=name, env=ENVIRONMENT, ready=False) for name in ("a", "b")]
    for operator in both:
        operator.wait_ready()
    eventually(lambda: sum(map(leads, both)) == 1, message="one leads")
    warm_pool(api)
    consistently(lambda: sum(map(leads, both)) == 1, seconds=3)
    assert all(operator.running for operator in both)


# --- Handing over --------------------------------------------------------------------------------


def test_a_leader_that_is_stopped_hands_over(api: Api, namespace: str, pair: Pair) -> None:
    first = holder(api, namespace)

    def stop() -> None:
        assert pair.leader.terminate() == 0
        # It was given back, so that nobody has to wait for its end.
        assert holder(api, namespace) != first

    bind_all(api, 20, stop)
    assert leads(pair.standby)
    assert transitions(api, namespace) == 1
    quiet(api, claimed=20)


def test_a_killed_leader_is_followed(api: Api, namespace: str, pair: Pair) -> None:
    bind_all(api, 20, pair.leader.kill)
    assert leads(pair.standby)
    assert transitions(api, namespace) == 1
    quiet(api, claimed=20)


def test_the_lease_goes_to_and_fro(api: Api, namespace: str, pair: Pair) -> None:
    operators = [pair.leader, pair.standby]
    for turn in range(4):
        leading, following = operators[turn % 2], operators[1 - turn % 2]
        leading.restart()
        await_leader(following)
        api.create(objects.claim(f"claim-{turn}"))
        phase(api, "Bound", f"claim-{turn}")
    assert transitions(api, namespace) == 4
    quiet(api, claimed=4)


def test_what_was_known_of_nodes_is_known_to_the_next(
    api: Api, start_pair: StartPair, nodes: FakeNodes
) -> None:
    pair = start_pair()
    warm_pool(api, replicas=3, template=objects.large_template())
    nodes.fail("runsc", texts.SHIM_MISSING, ["gvisor-0"])
    api.scale("SandboxPool", "pool", 6)

    def quarantined(operator: Operator) -> bool:
        return operator.metric("sandboxpool_quarantined_nodes", handler="runsc") == 1

    eventually(lambda: quarantined(pair.leader), message="the node is in quarantine")
    pair.leader.terminate()
    await_leader(pair.standby)
    eventually(lambda: quarantined(pair.standby), message="it still is")
    pool_status(api, warm=6, timeout=30)


# --- Losing the lease ----------------------------------------------------------------------------


def give_reasons_to_write(api: Api) -> None:
    """Whatever the leader of before learns of this, it would answer by writing."""
    for i in range(3):
        api.create(objects.claim(f"late-{i}"))
    api.scale("SandboxPool", "pool", 5)
    for i in range(3):
        phase(api, "Bound", f"late-{i}", TAKE_OVER_SECONDS)


def freeze_across_the_leases_end(api: Api, pair: Pair) -> None:
    """SIGSTOP, until another leads and has work; then SIGCONT."""
    warm_pool(api, replicas=3)
    pair.leader.pause()
    await_leader(pair.standby)
    give_reasons_to_write(api)
    pair.leaders_way.clear()
    pair.leader.resume()


def test_a_leader_that_was_frozen_writes_nothing_and_ends(api: Api, start_pair: StartPair) -> None:
    pair = start_pair()
    freeze_across_the_leases_end(api, pair)
    eventually(lambda: not pair.leader.running, message="it has ended")
    assert pair.leader.terminate() == LEASE_LOST_EXIT_CODE
    assert pair.leaders_way.writes() == []
    quiet(api, warm=5, claimed=3)


def test_a_frozen_leader_writes_nothing_even_if_it_does_not_end(
    api: Api, start_pair: StartPair
) -> None:
    pair = start_pair("lost_leases_are_ignored")
    freeze_across_the_leases_end(api, pair)
    consistently(lambda: pair.leaders_way.writes() == [] and pair.leader.running, seconds=5)
    quiet(api, warm=5, claimed=3)


def test_without_its_gate_a_frozen_leader_would_write(api: Api, start_pair: StartPair) -> None:
    pair = start_pair("lost_leases_are_ignored", "writes_need_no_lease")
    freeze_across_the_leases_end(api, pair)
    eventually(lambda: pair.leaders_way.writes(), message="it writes")


def test_who_cannot_renew_has_ended_when_the_next_begins(api: Api, pair: Pair) -> None:
    pair.leaders_way.refuse("PATCH", LEASE, 503, times=None)
    await_leader(pair.standby)
    assert not pair.leader.running
    assert pair.leader.terminate() == LEASE_LOST_EXIT_CODE
    bind_all(api, 3, lambda: None)
    quiet(api, claimed=3)


def test_who_is_overthrown_ends(api: Api, namespace: str, pair: Pair) -> None:
    usurped = {"spec": {"holderIdentity": "somebody", "leaseDurationSeconds": 5}}
    api.patch("Lease", names.DEFAULT_RELEASE, usurped, f"{namespace}-system")
    eventually(lambda: not pair.leader.running, message="it has ended")
    assert pair.leader.terminate() == LEASE_LOST_EXIT_CODE
    await_leader(pair.standby)
    bind_all(api, 3, lambda: None)
    quiet(api, claimed=3)


# --- Requests that arrive late -------------------------------------------------------------------


def replace(pair: Pair) -> None:
    """The leader dies; the next one leads."""
    pair.leader.kill()
    await_leader(pair.standby)


@pytest.mark.parametrize("late", [POD, CLAIM_STATUS], ids=["pod", "claim"])
def test_a_late_binding_gives_no_claim_a_second_pod(api: Api, pair: Pair, late: str) -> None:
    held = pair.leaders_way.hold("PATCH", late)
    api.create(objects.claim())
    held.wait_reached()
    replace(pair)
    told = phase(api, "Bound", timeout=TAKE_OVER_SECONDS)["status"]
    seen = len(pair.leaders_way.requests("PATCH", late))
    held.release()
    eventually(lambda: len(pair.leaders_way.requests("PATCH", late)) > seen, message="it arrives")
    quiet(api, claimed=1)
    assert api.get("SandboxClaim", "claim")["status"]["podUID"] == told["podUID"]


def test_a_late_binding_of_a_pod_that_another_claim_has_changes_nothing(
    api: Api, pair: Pair
) -> None:
    held = pair.leaders_way.hold("PATCH", POD)
    api.create(objects.claim())
    held.wait_reached()
    replace(pair)
    for i in range(6):
        api.create(objects.claim(f"other-{i}"))
    claims = [phase(api, "Bound", name) for name in ("claim", *(f"other-{i}" for i in range(6)))]
    seen = len(pair.leaders_way.requests("PATCH", POD))
    held.release()
    (late,) = eventually(
        lambda: pair.leaders_way.requests("PATCH", POD)[seen:], message="it arrives"
    )
    assert late.status == 409
    quiet(api, claimed=7)
    for claim in claims:
        now = api.get("SandboxClaim", claim["metadata"]["name"])["status"]
        assert now["podUID"] == claim["status"]["podUID"]


def test_a_late_status_does_not_revive_a_claim_that_has_ended(api: Api, pair: Pair) -> None:
    held = pair.leaders_way.hold("PATCH", CLAIM_STATUS)
    api.create(objects.claim(ttlSeconds=1))
    held.wait_reached()
    replace(pair)
    phase(api, "Expired", timeout=TAKE_OVER_SECONDS)
    seen = len(pair.leaders_way.requests("PATCH", CLAIM_STATUS))
    held.release()
    (late,) = eventually(
        lambda: pair.leaders_way.requests("PATCH", CLAIM_STATUS)[seen:], message="it arrives"
    )
    assert late.status == 422
    assert api.get("SandboxClaim", "claim")["status"]["phase"] == "Expired"
    quiet(api)


def test_a_late_delete_takes_no_pod_that_a_claim_has(api: Api, pair: Pair) -> None:
    held = pair.leaders_way.hold("DELETE", POD)
    api.scale("SandboxPool", "pool", 2)
    held.wait_reached()
    replace(pair)
    for i in range(3):
        api.create(objects.claim(f"claim-{i}"))
    claims = [phase(api, "Bound", f"claim-{i}") for i in range(3)]
    held.release()
    eventually(lambda: pair.leaders_way.requests("DELETE", POD), message="it arrives")
    quiet(api, warm=2, claimed=3)
    for claim in claims:
        now = api.get("SandboxClaim", claim["metadata"]["name"])["status"]
        assert (now["phase"], now["podUID"]) == ("Bound", claim["status"]["podUID"])


def test_late_creates_pass_the_target_by_no_more_than_was_starting(
    api: Api, start_pair: StartPair, control_plane: ControlPlane, namespace: str
) -> None:
    replicas = at_once = 7
    pair = start_pair()
    gvisor_class(api)
    # By slow start the first two batches go through, of one and of two; the third is of four.
    creates = rf"/{namespace}{POD_CREATE}"
    pair.leaders_way.delay("POST", creates, 0.0, times=3)
    held = pair.leaders_way.hold("POST", creates, times=None)
    with PodHistory(control_plane.kubeconfig, namespace) as history:
        startup = {"maxStarting": at_once}
        api.create(objects.pool(replicas=replicas, startup=startup))
        eventually(lambda: held.hits == 4, message="four creates are under way")
        replace(pair)
        pool_status(api, warm=replicas, timeout=TAKE_OVER_SECONDS)
        held.release()
        eventually(lambda: len(history.created()) >= replicas + 4, message="they arrive")
        quiet(api, warm=replicas)
        living, most = set[str](), 0
        for change in history.changes():
            (living.discard if change.deleted else living.add)(change.uid)
            most = max(most, len(living))
    assert most <= replicas + at_once


def test_a_late_status_of_a_pool_is_put_right(api: Api, pair: Pair) -> None:
    held = pair.leaders_way.hold("PATCH", POOL_STATUS)
    api.create(objects.claim())
    held.wait_reached()
    replace(pair)
    for i in range(3):
        api.create(objects.claim(f"claim-{i}"))
    quiet(api, claimed=4)
    seen = len(pair.leaders_way.requests("PATCH", POOL_STATUS))
    held.release()
    eventually(
        lambda: len(pair.leaders_way.requests("PATCH", POOL_STATUS)) > seen, message="it arrives"
    )
    quiet(api, claimed=4)
