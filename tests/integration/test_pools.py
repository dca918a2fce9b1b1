"""Pools against a real API server: the runtime verdict, scaling, updates, and bad input."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fakekubelet import FakeNode, FakeNodes
from sandboxpool.api import names
from support import Api, consistently, eventually, objects
from support.faultproxy import FaultProxy
from support.operator_process import Operator, StartOperator
from support.sandboxes import (
    claim_pod,
    gvisor_class,
    live_pods,
    phase,
    pool_status,
    wait_for_pool_condition,
    warm_pool,
)

Object = dict[str, Any]
# Of objects in objects; the API server reads no JSON that is nested more than 10,000 deep.
DEEPEST = 9_900
PODS = r"/pods(\?|$)"
EXCLUDED = "excluded.sandboxpool.io/runsc"


def uids(pods: list[Object]) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods}


def creates(proxy: FaultProxy) -> int:
    """How many sandboxes were really asked for; dry runs and probes do not count."""
    asked = proxy.requests("POST", PODS)
    return sum("dryRun" not in seen.query and "-system/" not in seen.path for seen in asked)


@pytest.fixture
def reads_deeply() -> Iterator[None]:
    """Lets this process read and write what the operator has to."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(25_000)
    yield
    sys.setrecursionlimit(limit)


# --- The class -----------------------------------------------------------------------------------


def test_a_missing_class_causes_no_requests_and_its_appearance_is_acted_on(
    api: Api, start_operator: StartOperator, proxy: FaultProxy, nodes: FakeNodes
) -> None:
    start_operator(through=proxy)
    api.create(objects.pool(replicas=5))
    message = wait_for_pool_condition(api, "Ready", "False", "RuntimeClassNotFound")
    assert "'gvisor' does not exist" in message
    proxy.clear()
    time.sleep(2)
    assert proxy.requests("POST", PODS) == []
    gvisor_class(api)
    pool_status(api, warm=5)
    assert creates(proxy) == 5
    assert "runsc" in wait_for_pool_condition(api, "RuntimeResolved", "True", "RuntimeClassFound")


def test_a_pinned_handler_that_is_another_stops_creation(api: Api, operator: Operator) -> None:
    gvisor_class(api)
    api.create(objects.pool(expectedHandler="kata-fc"))
    message = wait_for_pool_condition(api, "Ready", "False", "HandlerMismatch")
    assert "'runsc'" in message
    assert "'kata-fc'" in message
    assert api.list("Pod") == []


def test_a_class_that_is_made_again_replaces_warm_pods_and_leaves_claimed_ones(
    api: Api, operator: Operator
) -> None:
    pool = warm_pool(api, replicas=2)
    claimed = claim_pod(api)["status"]["podUID"]
    pool_status(api, warm=2, claimed=1)
    before = uids(api.list("Pod"))
    api.delete("RuntimeClass", "gvisor")
    wait_for_pool_condition(api, "Ready", "False", "RuntimeClassNotFound")
    assert uids(live_pods(api)) == before, "nothing is deleted while the class is missing"
    api.create(objects.runtime_class("gvisor", "runc"))
    eventually(
        lambda: uids(live_pods(api)) & before == {claimed} and len(live_pods(api)) == 3,
        message="the warm pods are new ones",
        timeout=30,
    )
    message = wait_for_pool_condition(api, "RuntimeResolved", "True", "RuntimeChanged")
    assert "'runc'" in message
    # Events are posted behind everything else.
    (event,) = eventually(lambda: api.events_for(pool, reason="RuntimeChanged"))
    assert "'runsc'" in event["message"]
    assert "'runc'" in event["message"]
    assert api.get("SandboxClaim", "claim")["status"]["runtime"]["handler"] == "runsc"


def test_changing_the_pools_class_never_hands_out_the_former_one(
    api: Api, operator: Operator
) -> None:
    warm_pool(api, replicas=2)
    api.create(objects.runtime_class("plain", "runc"))
    api.patch_spec("SandboxPool", "pool", runtimeClassName="plain")
    api.create(objects.claim(runtimeClassName="plain"))
    claim = phase(api, "Bound")
    pod = api.get("Pod", claim["status"]["podName"])
    assert pod["spec"]["runtimeClassName"] == "plain"


# --- The nodes -----------------------------------------------------------------------------------


def test_pods_keep_away_from_nodes_that_lack_the_handler(api: Api, operator: Operator) -> None:
    warm_pool(api, replicas=6)
    message = wait_for_pool_condition(api, "NodesServing", "True", "SomeNodesNotServing")
    assert "plain-0, plain-1" in message
    status = api.get("SandboxPool", "pool")["status"]["runtime"]
    assert status["nodes"] == {
        "eligible": 5,
        "serving": 3,
        "notServing": 2,
        "unknown": 0,
        "unproven": 0,
        "quarantined": 0,
        "notIsolating": 0,
    }
    for pod in api.list("Pod"):
        assert pod["spec"]["nodeName"].startswith("gvisor-")
        (term,) = pod["spec"]["affinity"]["nodeAffinity"][
            "requiredDuringSchedulingIgnoredDuringExecution"
        ]["nodeSelectorTerms"]
        keys = [requirement["key"] for requirement in term["matchExpressions"]]
        assert names.HOSTNAME_LABEL not in keys, "cluster autoscalers drop such pods"
        assert EXCLUDED in keys
    labels = {
        n["metadata"]["name"]: n["metadata"]["labels"].get(EXCLUDED) for n in api.list("Node")
    }
    assert labels == dict.fromkeys(("gvisor-0", "gvisor-1", "gvisor-2")) | {
        "plain-0": "NotServing",
        "plain-1": "NotServing",
    }


def test_one_scout_is_made_where_no_node_serves_and_the_pool_fills_when_one_does(
    api: Api, operator: Operator, nodes: FakeNodes
) -> None:
    api.create(objects.runtime_class("kata", "kata-qemu"))
    api.create(objects.pool(runtime_class="kata", replicas=3))
    message = wait_for_pool_condition(api, "Ready", "False", "NoNodeServes")
    assert "'kata-qemu'" in message
    consistently(lambda: len(api.list("Pod")) == 1, message="one scout", seconds=2)
    nodes.set_handlers("plain-0", {"runc", "kata-qemu"})
    pool_status(api, warm=3, timeout=40)
    assert {pod["spec"]["nodeName"] for pod in live_pods(api)} == {"plain-0"}


def test_nodes_that_cannot_say_are_unknown_and_used(
    api: Api, operator: Operator, nodes: FakeNodes
) -> None:
    nodes.remove(*nodes.names())
    nodes.add(FakeNode("old-0", None, serves={"runc", "runsc"}))
    warm_pool(api, replicas=2)
    wait_for_pool_condition(api, "NodesServing", "Unknown", "HandlersUnknown")
    wait_for_pool_condition(api, "Ready", "True", "SandboxWarm")


def test_warm_pods_of_a_cordoned_node_are_replaced_elsewhere(
    api: Api, operator: Operator, nodes: FakeNodes
) -> None:
    warm_pool(api, replicas=3)
    node = api.list("Pod")[0]["spec"]["nodeName"]
    nodes.cordon(node)
    eventually(
        lambda: {pod["spec"]["nodeName"] for pod in live_pods(api)},
        until=lambda used: node not in used,
        message="no pod on the cordoned node",
    )
    pool_status(api, warm=3)


def test_pods_of_a_lost_node_are_not_handed_out_and_stand_ins_are_made(
    api: Api, operator: Operator, nodes: FakeNodes
) -> None:
    warm_pool(api, replicas=3)
    node = api.list("Pod")[0]["spec"]["nodeName"]
    nodes.lose(node)
    pool_status(api, warm=3)
    for number in range(3):
        claim = claim_pod(api, f"claim-{number}")
        assert claim["status"]["nodeName"] != node
    nodes.recover(node)
    pool_status(api, warm=3)


def test_a_handler_that_a_node_loses_takes_its_warm_pods_off_it(
    api: Api, operator: Operator, nodes: FakeNodes
) -> None:
    warm_pool(api, replicas=3)
    node = api.list("Pod")[0]["spec"]["nodeName"]
    nodes.set_handlers(node, {"runc"})
    eventually(
        lambda: {pod["spec"]["nodeName"] for pod in live_pods(api)},
        until=lambda used: node not in used,
        message="no pod on the node that lost the handler",
    )
    pool_status(api, warm=3)


def test_a_sandbox_that_cannot_be_created_is_reported_with_text_and_node(
    api: Api, operator: Operator, nodes: FakeNodes
) -> None:
    text = "rpc error: code = Unknown desc = failed to start shim: exec format error"
    nodes.fail("runsc", text)
    gvisor_class(api)
    pool = api.create(objects.pool(startup={"timeoutSeconds": 3}))
    message = wait_for_pool_condition(api, "Ready", "False", "RuntimeMisconfigured")
    assert text in message
    assert "gvisor-" in message
    (issue,) = api.get("SandboxPool", "pool")["status"]["runtime"]["issues"]
    assert issue["reason"] == "RuntimeMisconfigured"
    assert issue["nodes"]
    assert text in issue["message"]
    eventually(
        lambda: any(text in e["message"] for e in api.events_for(pool, "RuntimeMisconfigured")),
        message="an event says it",
    )
    eventually(
        lambda: operator.metric("sandboxpool_failures_total", reason="RuntimeMisconfigured") >= 1
    )
    nodes.heal("runsc")
    pool_status(api, warm=1, timeout=40)


# --- Numbers -------------------------------------------------------------------------------------


def test_a_pool_scales_up_and_down(api: Api, operator: Operator) -> None:
    warm_pool(api, replicas=2)
    api.scale("SandboxPool", "pool", 5)
    pool_status(api, warm=5, replicas=5)
    api.scale("SandboxPool", "pool", 1)
    pool_status(api, warm=1, replicas=1)
    api.scale("SandboxPool", "pool", 0)
    pool_status(api, warm=0, replicas=0)
    wait_for_pool_condition(api, "Ready", "True", "ScaledToZero")


def test_replicas_beyond_the_ceiling_are_clamped_and_reported(api: Api, operator: Operator) -> None:
    gvisor_class(api)
    api.create(objects.pool(replicas=5, maxSandboxes=3))
    pool_status(api, warm=3, target=3)
    message = wait_for_pool_condition(api, "Warm", "False", "ClampedByMaxSandboxes")
    assert "spec.maxSandboxes (3)" in message
    claim_pod(api)
    consistently(lambda: len(api.list("Pod")) <= 3, message="never above the ceiling")


def test_never_more_than_max_starting_start_at_once(
    api: Api, operator: Operator, nodes: FakeNodes
) -> None:
    nodes.delay("runsc", 0.5)
    gvisor_class(api)
    api.create(objects.pool(replicas=6, startup={"maxStarting": 2}))

    def starting() -> int:
        return sum(pod["status"]["phase"] == "Pending" for pod in api.list("Pod"))

    most = 0
    deadline = time.monotonic() + 30
    while api.get("SandboxPool", "pool").get("status", {}).get("warm") != 6:
        assert time.monotonic() < deadline, "the pool does not fill"
        most = max(most, starting())
    assert 1 <= most <= 2


def test_a_paused_pool_creates_and_deletes_nothing_but_serves_claims(
    api: Api, operator: Operator
) -> None:
    warm_pool(api, replicas=3)
    api.patch_spec("SandboxPool", "pool", paused=True, replicas=1)
    wait_for_pool_condition(api, "Warm", "True", "AtTarget")
    consistently(lambda: len(api.list("Pod")) == 3, message="nothing is deleted")
    for number in range(3):
        claim_pod(api, f"claim-{number}")
    wait_for_pool_condition(api, "Warm", "False", "Paused")
    consistently(lambda: len(api.list("Pod")) == 3, message="nothing is created")
    api.patch_spec("SandboxPool", "pool", paused=False)
    pool_status(api, warm=1)


# --- Updates -------------------------------------------------------------------------------------


def outdate(api: Api) -> None:
    template = objects.pod_template()
    template["metadata"] = {"annotations": {"example.com/version": "2"}}
    api.patch_spec("SandboxPool", "pool", template=template)


def is_new(pod: Object) -> bool:
    annotations = pod["metadata"].get("annotations", {})
    return bool(annotations.get("example.com/version") == "2")


def test_a_rolling_update_replaces_warm_pods_and_keeps_the_stock_up(
    api: Api, operator: Operator
) -> None:
    warm_pool(api, replicas=4, update={"type": "RollingUpdate", "maxUnavailable": 1})
    claimed = claim_pod(api)["status"]["podUID"]
    pool_status(api, warm=4, claimed=1)
    outdate(api)
    least = 4
    deadline = time.monotonic() + 40
    while not all(is_new(p) or p["metadata"]["uid"] == claimed for p in live_pods(api)):
        assert time.monotonic() < deadline, "the roll does not end"
        ready = [
            pod
            for pod in live_pods(api)
            if pod["metadata"]["uid"] != claimed
            and any(
                c["type"] == "Ready" and c["status"] == "True"
                for c in pod.get("status", {}).get("conditions", [])
            )
        ]
        least = min(least, len(ready))
    assert least >= 3
    wait_for_pool_condition(api, "UpToDate", "True", "AsExpected")
    assert claimed in uids(live_pods(api))


def test_on_claim_keeps_outdated_pods_until_they_are_handed_out(
    api: Api, operator: Operator
) -> None:
    warm_pool(api, replicas=2, update={"type": "OnClaim"})
    before = uids(api.list("Pod"))
    outdate(api)
    wait_for_pool_condition(api, "UpToDate", "False", "WaitingForClaims")
    assert uids(live_pods(api)) == before
    assert claim_pod(api)["status"]["podUID"] in before
    pool_status(api, warm=2, outdated=1)
    # The newest revision is handed out first.
    assert claim_pod(api, "second")["status"]["podUID"] not in before


def test_recreate_replaces_all_at_once(api: Api, operator: Operator) -> None:
    warm_pool(api, replicas=3, update={"type": "Recreate"})
    before = uids(api.list("Pod"))
    outdate(api)
    eventually(lambda: not uids(live_pods(api)) & before, message="all old ones are going")
    pool_status(api, warm=3, outdated=0)


# --- Bad input that only the cluster can judge ---------------------------------------------------


def test_a_template_with_an_unknown_field_is_reported_and_nothing_is_made(
    api: Api, start_operator: StartOperator, proxy: FaultProxy, nodes: FakeNodes
) -> None:
    start_operator(through=proxy)
    gvisor_class(api)
    template = objects.pod_template()
    template["spec"]["containers"][0]["imagePullPolice"] = "Never"
    api.create(objects.pool(template=template))
    message = wait_for_pool_condition(api, "TemplateAccepted", "False", "TemplateRejected")
    assert "imagePullPolice" in message
    time.sleep(2)
    assert creates(proxy) == 0
    # After a second, and then ever more seldom.
    assert len(proxy.requests("POST", PODS)) <= 3
    fixed = api.get("SandboxPool", "pool")
    fixed["spec"]["template"] = objects.pod_template()
    api.replace(fixed)
    pool_status(api, warm=1)


def test_a_template_of_a_wrong_type_is_reported(api: Api, operator: Operator) -> None:
    gvisor_class(api)
    api.create(objects.pool(template=objects.pod_template(nodeSelector="everywhere")))
    assert "nodeSelector" in wait_for_pool_condition(
        api, "TemplateAccepted", "False", "TemplateRejected"
    )


def test_a_quota_holds_the_pool_without_a_storm(
    api: Api, start_operator: StartOperator, proxy: FaultProxy, nodes: FakeNodes
) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "few"},
        "spec": {"hard": {"pods": "2"}},
    }
    api.create(quota)
    eventually(lambda: api.get("ResourceQuota", "few").get("status", {}).get("hard"))
    start_operator(through=proxy)
    gvisor_class(api)
    api.create(objects.pool(replicas=4))
    message = wait_for_pool_condition(api, "Warm", "False", "QuotaExceeded")
    assert "exceeded quota: few" in message
    wait_for_pool_condition(api, "Ready", "True", "SandboxWarm")
    wait_for_pool_condition(api, "TemplateAccepted", "True", "TemplateAccepted")
    proxy.clear()
    time.sleep(4)
    assert creates(proxy) <= 4
    api.delete("ResourceQuota", "few")
    pool_status(api, warm=4, timeout=40)


def test_an_image_that_does_not_exist_is_reported_and_nothing_churns(
    api: Api, operator: Operator, nodes: FakeNodes
) -> None:
    nodes.lack_image("registry.example/nosuch:1")
    gvisor_class(api)
    template = objects.pod_template("registry.example/nosuch:1")
    api.create(objects.pool(template=template, startup={"timeoutSeconds": 2}))
    message = wait_for_pool_condition(api, "Ready", "False", "ImagePullFailed")
    assert "registry.example/nosuch:1" in message
    before = uids(api.list("Pod"))
    consistently(lambda: uids(api.list("Pod")) == before, seconds=4, message="no churn")


def test_pods_that_fail_are_replaced_ever_more_slowly(
    api: Api, start_operator: StartOperator, proxy: FaultProxy, nodes: FakeNodes
) -> None:
    start_operator(through=proxy)
    nodes.hang("runsc")
    gvisor_class(api)
    api.create(objects.pool(replicas=3, startup={"timeoutSeconds": 1}))
    wait_for_pool_condition(api, "Warm", "False", "SandboxStartTimeout", timeout=30)
    proxy.clear()
    time.sleep(10)
    assert 1 <= creates(proxy) <= 5


# --- Damage by others ----------------------------------------------------------------------------


def test_a_damaged_status_is_restored(api: Api, operator: Operator) -> None:
    warm_pool(api)
    api.patch_status("SandboxPool", "pool", {"warm": 77, "conditions": None, "runtime": None})
    pool_status(api, warm=2)
    wait_for_pool_condition(api, "Ready", "True", "SandboxWarm")


def test_a_warm_pod_without_labels_leaves_the_pool_and_is_replaced(
    api: Api, operator: Operator
) -> None:
    warm_pool(api)
    stray = api.list("Pod")[0]["metadata"]["name"]
    labels = {names.LABEL_POOL_UID: None, names.LABEL_POOL: None}
    api.patch("Pod", stray, {"metadata": {"labels": labels}})
    eventually(lambda: len(live_pods(api)) == 3, message="a replacement is made")
    pool_status(api, warm=2)
    assert claim_pod(api)["status"]["podName"] != stray


def test_a_warm_pod_that_another_controller_took_is_never_handed_out(
    api: Api, operator: Operator
) -> None:
    warm_pool(api, replicas=1)
    other = api.create(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "rival"}, "data": {}}
    )
    taken = api.list("Pod")[0]["metadata"]["name"]
    owners = [objects.owner_reference(other)]
    api.patch("Pod", taken, {"metadata": {"ownerReferences": owners}})
    pool_status(api, warm=1, timeout=20)
    eventually(lambda: len(live_pods(api)) == 2, message="a replacement is made")
    assert claim_pod(api)["status"]["podName"] != taken


# --- Restarts, metrics ---------------------------------------------------------------------------


@pytest.mark.parametrize("kill", [False, True], ids=["terminated", "killed"])
def test_a_restart_changes_nothing(api: Api, operator: Operator, kill: bool) -> None:
    warm_pool(api, replicas=3)
    claim_pod(api)
    pool_status(api, warm=3, claimed=1)
    before = uids(api.list("Pod"))
    version = api.get("SandboxPool", "pool")["status"]["conditions"]
    operator.restart(kill=kill)
    time.sleep(2)
    assert uids(api.list("Pod")) == before
    assert api.get("SandboxPool", "pool")["status"]["conditions"] == version


def test_metrics_show_a_pool_and_forget_it_with_it(api: Api, operator: Operator) -> None:
    warm_pool(api)
    claim_pod(api)
    pool_status(api, warm=2, claimed=1)
    of = {"pool": "pool", "runtime_class": "gvisor", "handler": "runsc"}
    assert operator.metric("sandboxpool_pods", state="warm", **of) == 2
    assert operator.metric("sandboxpool_pods", state="claimed", **of) == 1
    assert operator.metric("sandboxpool_claims_total", pool="pool", result="Bound") == 1
    api.delete("SandboxClaim", "claim")
    api.delete("SandboxPool", "pool")
    eventually(
        lambda: not any(dict(labels).get("pool") == "pool" for _, labels in operator.metrics()),
        message="no series of the pool is left",
    )


def test_a_template_nested_as_deeply_as_the_api_server_takes_it_stops_no_other_pool(
    reads_deeply: None, api: Api, start_operator: StartOperator, nodes: FakeNodes
) -> None:
    nested: Object = {}
    for _ in range(DEEPEST):
        nested = {"a": nested}
    gvisor_class(api)
    api.create(objects.pool("deep", template=objects.pod_template(unknown=nested)))
    # Once it has to list it, and once it is told of it.
    operator = start_operator()
    warm_pool(api, replicas=1)
    api.patch_spec("SandboxPool", "deep", replicas=2)
    wait_for_pool_condition(api, "TemplateAccepted", "False", "TemplateRejected", name="deep")
    claim_pod(api)
    assert operator.running
