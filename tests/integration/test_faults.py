"""Faults between operator and API server, and crashes: nothing is lost, doubled or leaked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fakekubelet import FakeNodes
from localcluster.controlplane import ControlPlane
from support import Api, consistently, eventually, objects
from support.faultproxy import FaultProxy
from support.operator_process import Operator, StartOperator
from support.sandboxes import bound_reason, claim_pod, phase, pool_status, quiet, warm_pool

POD = r"/pods/pool-"
POD_CREATE = r"/pods$"
CLAIM_STATUS = r"/sandboxclaims/claim/status"


@pytest.fixture
def faulty(
    start_operator: StartOperator, proxy: FaultProxy, nodes: FakeNodes, api: Api
) -> Iterator[Operator]:
    """An operator behind the proxy and a warm pool of three."""
    operator = start_operator(through=proxy)
    warm_pool(api, replicas=3)
    proxy.clear()
    yield operator
    proxy.reset()


def come_through(proxy: FaultProxy, pattern: str) -> None:
    """Waits until a write that was held has been carried out."""
    eventually(lambda: proxy.requests("PATCH", pattern), message="the write has come through")


def test_a_claim_costs_exactly_two_writes_of_its_own(
    api: Api, faulty: Operator, proxy: FaultProxy
) -> None:
    api.patch_spec("SandboxPool", "pool", paused=True)
    pool_status(api, warm=3, observedGeneration=2)
    proxy.clear()
    claim = claim_pod(api, config={"task": "7"})
    pool_status(api, warm=2, claimed=1)
    assert api.events_for(claim) == []
    # The pool's own status and events are gathered, the lease is renewed: no claim costs that.
    others = ("/sandboxpools/", "/events", "/leases")
    written = [seen for seen in proxy.writes() if not any(part in seen.path for part in others)]
    assert [(seen.method, seen.path.split("/")[-2]) for seen in written] == [
        ("PATCH", "pods"),
        ("PATCH", "claim"),
    ]


def test_a_claim_deleted_before_its_pod_is_written_leaks_nothing(
    api: Api, faulty: Operator, proxy: FaultProxy
) -> None:
    held = proxy.hold("PATCH", POD)
    api.create(objects.claim())
    held.wait_reached()
    api.delete("SandboxClaim", "claim")
    eventually(lambda: api.find("SandboxClaim", "claim") is None, message="the claim is gone")
    held.release()
    come_through(proxy, POD)
    quiet(api)


def test_a_claim_deleted_before_it_is_told_gives_its_pod_back_to_nobody(
    api: Api, faulty: Operator, proxy: FaultProxy
) -> None:
    held = proxy.hold("PATCH", CLAIM_STATUS)
    api.create(objects.claim())
    held.wait_reached()
    (taken,) = [p for p in api.list("Pod") if p["metadata"]["labels"].get("sandboxpool.io/claim")]
    api.delete("SandboxClaim", "claim")
    eventually(lambda: api.find("SandboxClaim", "claim") is None, message="the claim is gone")
    held.release()
    come_through(proxy, CLAIM_STATUS)
    quiet(api)
    assert taken["metadata"]["uid"] not in {p["metadata"]["uid"] for p in api.list("Pod")}


def test_a_claim_made_again_under_its_name_while_it_is_bound_gets_a_pod_of_its_own(
    api: Api, faulty: Operator, proxy: FaultProxy
) -> None:
    held = proxy.hold("PATCH", CLAIM_STATUS)
    first = api.create(objects.claim())
    held.wait_reached()
    api.delete("SandboxClaim", "claim")
    second = api.create(objects.claim())
    held.release()
    claim = phase(api, "Bound")
    assert claim["metadata"]["uid"] == second["metadata"]["uid"]
    pod = api.get("Pod", claim["status"]["podName"])
    assert pod["metadata"]["ownerReferences"][0]["uid"] == second["metadata"]["uid"]
    assert first["metadata"]["uid"] not in str(pod["metadata"])
    quiet(api, claimed=1)


@pytest.mark.parametrize("fault", ["lose_response", "lose_request"])
@pytest.mark.parametrize("pattern", [POD, CLAIM_STATUS], ids=["pod", "claim"])
def test_a_lost_write_still_gives_one_pod(
    api: Api, faulty: Operator, proxy: FaultProxy, pattern: str, fault: str
) -> None:
    rule = getattr(proxy, fault)("PATCH", pattern)
    claim_pod(api)
    # What was carried out may be seen before its answer is lost.
    rule.wait_reached()
    assert rule.hits == 1
    quiet(api, claimed=1)


@pytest.mark.parametrize("status", [409, 429, 500, 503, 504])
def test_a_refused_binding_ends_with_one_pod(
    api: Api, faulty: Operator, proxy: FaultProxy, status: int
) -> None:
    rule = proxy.refuse("PATCH", POD, status, times=2)
    claim_pod(api)
    assert rule.hits == 2
    quiet(api, claimed=1)


def test_a_pod_that_changes_under_the_binding_is_left_for_the_next(
    api: Api, faulty: Operator, proxy: FaultProxy
) -> None:
    held = proxy.hold("PATCH", POD)
    api.create(objects.claim())
    held.wait_reached()
    for pod in api.list("Pod"):
        api.patch("Pod", pod["metadata"]["name"], {"metadata": {"annotations": {"x": "1"}}})
    held.release()
    phase(api, "Bound")
    quiet(api, claimed=1)


@pytest.mark.parametrize("fault", ["lose_response", "lose_request"])
def test_a_lost_answer_to_a_create_does_not_double_the_pod(
    api: Api, faulty: Operator, proxy: FaultProxy, fault: str
) -> None:
    rule = getattr(proxy, fault)("POST", POD_CREATE)
    api.scale("SandboxPool", "pool", 4)
    rule.wait_reached()
    quiet(api, warm=4)
    assert rule.hits == 1


def test_watches_that_are_cut_lose_nothing(api: Api, faulty: Operator, proxy: FaultProxy) -> None:
    for number in range(6):
        proxy.cut_watches()
        api.create(objects.claim(f"claim-{number}"))
    for number in range(6):
        phase(api, "Bound", f"claim-{number}", timeout=30)
    quiet(api, claimed=6)


def test_what_vanished_while_the_watches_were_stalled_is_noticed(
    api: Api, faulty: Operator, proxy: FaultProxy
) -> None:
    kept = claim_pod(api)
    quiet(api, claimed=1)
    stall = proxy.stall_watches()
    api.delete("Pod", kept["status"]["podName"], gracePeriodSeconds=0)
    proxy.cut_watches()
    stall.release()
    phase(api, "Lost")


def test_a_crash_in_a_burst_loses_and_doubles_nothing(
    api: Api, start_operator: StartOperator, nodes: FakeNodes
) -> None:
    operator = start_operator()
    warm_pool(api, replicas=20)
    for number in range(30):
        api.create(objects.claim(f"claim-{number}"))
        if number == 15:
            operator.kill()
    operator.start()
    for number in range(30):
        phase(api, "Bound", f"claim-{number}", timeout=40)
    pods = {api.get("SandboxClaim", f"claim-{n}")["status"]["podUID"] for n in range(30)}
    assert len(pods) == 30
    quiet(api, warm=20, claimed=30)


def test_a_crash_between_the_two_writes_is_made_good(
    api: Api, faulty: Operator, proxy: FaultProxy
) -> None:
    held = proxy.hold("PATCH", CLAIM_STATUS)
    api.create(objects.claim())
    held.wait_reached()
    (taken,) = [p for p in api.list("Pod") if p["metadata"]["labels"].get("sandboxpool.io/claim")]
    faulty.kill()
    held.cancel()
    faulty.start()
    # Its own former lease has to run out first.
    assert phase(api, "Bound", timeout=40)["status"]["podUID"] == taken["metadata"]["uid"]
    quiet(api, claimed=1)


def test_an_api_server_that_restarts_in_a_burst_costs_time_and_nothing_else(
    api: Api, operator: Operator, control_plane: ControlPlane
) -> None:
    warm_pool(api, replicas=5)
    for number in range(10):
        api.create(objects.claim(f"claim-{number}"))
        if number == 5:
            control_plane.restart_apiserver(kill=True)
    for number in range(10):
        phase(api, "Bound", f"claim-{number}", timeout=60)
    quiet(api, warm=5, claimed=10)
    assert operator.running


def test_no_pod_is_bound_by_a_pool_that_is_being_deleted(
    api: Api, faulty: Operator, proxy: FaultProxy
) -> None:
    held = proxy.hold("PATCH", POD)
    api.create(objects.claim(bindTimeoutSeconds=3))
    held.wait_reached()
    api.delete("SandboxPool", "pool")
    eventually(lambda: api.find("SandboxPool", "pool") is None, message="the pool is gone")
    held.release()

    def settled() -> bool:
        return api.get("SandboxClaim", "claim")["status"]["phase"] in ("Bound", "Failed")

    eventually(settled, message="the claim has its pod or none")
    claim = api.get("SandboxClaim", "claim")
    kept = int(claim["status"]["phase"] == "Bound")
    assert kept or bound_reason(claim) == "BindTimeout"
    eventually(lambda: len(api.list("Pod")) == kept, message="nothing else is left")
    consistently(lambda: len(api.list("Pod")) == kept)
