"""Runtimes that break, are mended, change and vanish: quarantine, drift, guidance, their truth."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from fakekubelet import FakeNodes, texts
from localcluster.controlplane import ControlPlane
from sandboxpool.api import names
from sandboxpool.fleet.prober import FAILING_SECONDS
from sandboxpool.fleet.reconcile import RESTLESS_INTERVAL_SECONDS
from support import Api, condition, consistently, eventually, invariants, objects
from support.history import PodHistory
from support.operator_process import Operator
from support.sandboxes import (
    bound_reason,
    claim_pod,
    gvisor_class,
    live_pods,
    phase,
    pool_status,
    wait_for_pool_condition,
    wait_for_runtime_condition,
    warm_pool,
)

Object = dict[str, Any]

GVISOR_NODES = {"gvisor-0", "gvisor-1", "gvisor-2"}
# A text that no row of the table knows: it proves nothing.
UNKNOWN = "rpc error: code = Unknown desc = failed to start shim: exec format error"
NETWORK = (
    'rpc error: code = Unknown desc = failed to setup network for sandbox "{id}": '
    'plugin type="calico" failed (add): stat /var/lib/calico/nodename: no such file or directory'
)
BROKEN_IMAGE = "registry.example/broken:1"


def quarantined(operator: Operator, handler: str = "runsc") -> float:
    return operator.metric("sandboxpool_quarantined_nodes", handler=handler)


def is_quarantined(operator: Operator, *, count: int = 1, timeout: float = 15.0) -> None:
    eventually(
        lambda: quarantined(operator),
        until=lambda now: now == count,
        message=f"{count} nodes are quarantined",
        timeout=timeout,
    )


def nodes_of(pods: Iterable[Object]) -> set[str]:
    return {node for pod in pods if (node := pod["spec"].get("nodeName"))}


def uids(pods: Iterable[Object]) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods}


def of_pool(pods: Iterable[Object], pool: Object) -> list[Object]:
    uid = pool["metadata"]["uid"]
    return [p for p in pods if p["metadata"].get("labels", {}).get(names.LABEL_POOL_UID) == uid]


def is_failing(api: Api, reason: str, count: int) -> None:
    """Waits until so many sandboxes of the pool fail for this reason."""
    eventually(
        lambda: {
            issue["reason"]: issue["count"]
            for issue in api.get("SandboxPool", "pool")["status"]["runtime"]["issues"]
        },
        until=lambda issues: issues.get(reason) == count,
        message=f"{count} sandboxes fail: {reason}",
    )


# --- Quarantine ----------------------------------------------------------------------------------


def test_a_node_whose_runtime_is_gone_is_quarantined_at_once_and_used_again_once_mended(
    api: Api, operator: Operator, nodes: FakeNodes
) -> None:
    warm_pool(api, replicas=3, template=objects.large_template())
    assert nodes_of(live_pods(api)) == GVISOR_NODES
    broken = api.get("Node", "gvisor-0")
    nodes.fail("runsc", texts.SHIM_MISSING, ["gvisor-0"])
    api.scale("SandboxPool", "pool", 6)
    eventually(
        lambda: api.list("Event", fieldSelector=f"reason={texts.REASON}"), message="it has failed"
    )
    is_quarantined(operator, timeout=5)

    seen = wait_for_runtime_condition(api, "Healthy", "False", "NodeQuarantined")
    assert "gvisor-0" in seen["said"]
    assert seen["nodes"]["quarantined"] == 1
    (issue,) = seen["issues"]
    assert (issue["reason"], issue["nodes"]) == ("ShimMissing", ["gvisor-0"])
    assert "binary not installed" in issue["message"]
    pool_status(api, warm=6)
    # The sandbox that still ran there is replaced, too.
    eventually(
        lambda: nodes_of(live_pods(api)),
        until=lambda used: used == GVISOR_NODES - {"gvisor-0"},
        message="all pods are on the other nodes",
    )
    message = wait_for_pool_condition(api, "NodesServing", "True", "NodeQuarantined")
    assert "gvisor-0" in message
    assert "ShimMissing" in message
    wait_for_pool_condition(api, "Ready", "True", "SandboxWarm")
    (event,) = eventually(lambda: api.events_for(broken, "NodeQuarantined"))
    assert "ShimMissing" in event["message"]

    nodes.heal("runsc")
    is_quarantined(operator, count=0, timeout=30)
    eventually(lambda: api.events_for(broken, "QuarantineLifted"), message="an event says it")
    wait_for_runtime_condition(api, "Healthy", "True", "AsExpected")
    api.scale("SandboxPool", "pool", 9)
    pool_status(api, warm=9)
    assert "gvisor-0" in nodes_of(live_pods(api))


def test_a_text_that_proves_nothing_counts_when_the_probe_meets_it(
    api: Api, operator: Operator, nodes: FakeNodes
) -> None:
    warm_pool(api, replicas=1, template=objects.pinned_template("gvisor-0"))
    nodes.fail("runsc", UNKNOWN)
    api.scale("SandboxPool", "pool", 2)
    is_failing(api, "RuntimeMisconfigured", 1)
    is_quarantined(operator, timeout=FAILING_SECONDS + 7)
    wait_for_pool_condition(api, "NodesServing", "False", "RuntimeMisconfigured")
    nodes.heal("runsc")
    is_quarantined(operator, count=0, timeout=30)
    api.scale("SandboxPool", "pool", 4)
    pool_status(api, warm=4, timeout=30)


def test_a_network_that_fails_never_speaks_against_a_runtime(
    api: Api, operator: Operator, nodes: FakeNodes
) -> None:
    warm_pool(api, replicas=1, template=objects.pinned_template("gvisor-0"))
    nodes.fail("runsc", NETWORK)
    api.scale("SandboxPool", "pool", 5)
    is_failing(api, "PodNetworkFailed", 4)
    consistently(lambda: quarantined(operator) == 0, seconds=3, message="it is not the runtime")
    assert "calico" in wait_for_pool_condition(api, "Warm", "False", "PodNetworkFailed")
    assert api.get("SandboxRuntime", "gvisor")["status"]["issues"] == []


def test_an_event_that_was_folded_into_others_counts(
    api: Api, operator: Operator, nodes: FakeNodes
) -> None:
    gvisor_class(api)
    nodes.hang("runsc")
    api.create(objects.pool(template=objects.pinned_template("gvisor-0")))
    (pod,) = eventually(
        lambda: [p for p in api.list("Pod") if p["spec"].get("nodeName")], message="it has a node"
    )
    # A second later than the node's own creation: an event's time has whole seconds.
    time.sleep(1.1)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    text = texts.render(texts.SHIM_MISSING, handler="runsc", runtime_class="gvisor")
    metadata = pod["metadata"]
    api.create(
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": "folded"},
            "involvedObject": {
                "kind": "Pod",
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
            "type": "Warning",
            "reason": texts.REASON,
            "message": f"(combined from similar events): {text}",
            "source": {"component": "kubelet", "host": "gvisor-0"},
            "count": 3,
            "firstTimestamp": now,
            "lastTimestamp": now,
        }
    )
    is_failing(api, "ShimMissing", 1)
    eventually(
        lambda: nodes_of(api.list("Pod", operator.namespace)) == {"gvisor-0"},
        message="it has ordered a probe there",
    )
    assert quarantined(operator) == 0, "an event is a hint, and no more"


def test_a_template_that_fails_everywhere_takes_no_fleet_with_it(
    api: Api, operator: Operator, nodes: FakeNodes, control_plane: ControlPlane, namespace: str
) -> None:
    warm_pool(api, replicas=3, name="good", template=objects.large_template())
    nodes.fail("runsc", UNKNOWN, image=BROKEN_IMAGE)
    with PodHistory(control_plane.kubeconfig, namespace) as history:
        bad = api.create(
            objects.pool(
                "bad",
                replicas=9,
                template=objects.large_template(BROKEN_IMAGE),
                startup={"timeoutSeconds": 3},
            )
        )
        began = time.monotonic()
        number = 0
        while time.monotonic() - began < 20:
            assert quarantined(operator) == 0, "a template condemns no node"
            if time.monotonic() - began > 4 * number:
                number += 1
                api.create(objects.claim(f"claim-{number}", "good"))
                phase(api, "Bound", f"claim-{number}", timeout=5)
            time.sleep(0.1)
        made = {p["metadata"]["uid"] for p in of_pool(history.states(), bad)}
        gone = made & history.deleted()
    assert api.get("SandboxRuntime", "gvisor")["status"]["issues"] == []
    # Twice its nine, and then one at a time, ever more slowly.
    assert 9 <= len(made) <= 24
    assert len(gone) <= len(made)
    wait_for_pool_condition(api, "Warm", "False", "RuntimeMisconfigured", name="bad")
    pool_status(api, name="good", warm=3)


def test_a_pool_whose_sandboxes_alone_fail_on_a_node_keeps_away_from_it_by_itself(
    api: Api, operator: Operator, nodes: FakeNodes
) -> None:
    gvisor_class(api)
    nodes.fail("runsc", UNKNOWN, ["gvisor-0"], image=BROKEN_IMAGE)
    api.create(
        objects.pool(
            replicas=6,
            template=objects.large_template(BROKEN_IMAGE),
            startup={"timeoutSeconds": 3},
        )
    )
    api.create(objects.pool("other", replicas=3, template=objects.large_template()))
    pool_status(api, warm=6, timeout=40)
    assert nodes_of(of_pool(live_pods(api), api.get("SandboxPool", "pool"))) == {
        "gvisor-1",
        "gvisor-2",
    }
    (event,) = eventually(
        lambda: api.events_for(api.get("SandboxPool", "pool"), "NodeAvoided"),
        message="the pool says so",
    )
    assert "gvisor-0" in event["message"]
    assert operator.metric("sandboxpool_breaker_transitions_total", to="open") == 0
    pool_status(api, name="other", warm=3)


def test_a_new_machine_under_an_old_name_starts_clean(
    api: Api, operator: Operator, nodes: FakeNodes
) -> None:
    warm_pool(api, replicas=3, template=objects.large_template())
    nodes.fail("runsc", texts.KVM_MISSING, ["gvisor-0"])
    # One more for each node: which of them gets the first is left to chance.
    api.scale("SandboxPool", "pool", 6)
    is_quarantined(operator)
    pool_status(api, warm=6)
    eventually(lambda: "gvisor-0" not in nodes_of(api.list("Pod")), message="nothing runs there")
    again = nodes["gvisor-0"]
    nodes.remove("gvisor-0")
    is_quarantined(operator, count=0)
    nodes.add(again)
    pool = eventually(
        lambda: api.get("SandboxPool", "pool"),
        until=lambda pool: pool["status"]["runtime"]["nodes"]["serving"] == 3,
        message="the new machine is in use",
    )
    assert pool["status"]["runtime"]["nodes"]["quarantined"] == 0
    # And what happens on it counts.
    api.scale("SandboxPool", "pool", 8)
    is_quarantined(operator)
    pool_status(api, warm=8)


# --- Drift ---------------------------------------------------------------------------------------


def test_a_handler_taken_from_under_sandboxes_replaces_warm_ones_and_is_told_to_claims(
    api: Api, operator: Operator, nodes: FakeNodes
) -> None:
    warm_pool(api, replicas=3, template=objects.large_template())
    claim = claim_pod(api)
    node, pod_uid = claim["status"]["nodeName"], claim["status"]["podUID"]
    api.scale("SandboxPool", "pool", 5)
    pool_status(api, warm=5, claimed=1)
    there = {p["metadata"]["uid"] for p in live_pods(api) if p["spec"]["nodeName"] == node}
    assert len(there) >= 2, "a warm one is next to the claimed one"

    nodes.set_handlers(node, {"runc"})
    told = eventually(
        lambda: condition(api.get("SandboxClaim", "claim"), "Ready"),
        until=lambda ready: ready is not None and ready["reason"] == "HandlerRemoved",
        message="the claim is told",
    )
    assert told is not None
    assert told["status"] == "False"
    assert node in told["message"]
    eventually(
        lambda: uids(live_pods(api)) & there,
        until=lambda left: left == {pod_uid},
        message="the warm ones are replaced, the claimed one stays",
    )
    pool_status(api, warm=5, claimed=1)
    assert api.get("SandboxClaim", "claim")["status"]["phase"] == "Bound"
    nodes.set_handlers(node, {"runc", "runsc"})
    eventually(
        lambda: condition(api.get("SandboxClaim", "claim"), "Ready"),
        until=lambda ready: ready is not None and ready["status"] == "True",
        message="the claim is ready again",
    )


def test_heartbeats_and_handlers_in_another_order_cause_no_work(
    api: Api, operator: Operator, nodes: FakeNodes
) -> None:
    warm_pool(api, replicas=2)
    wait_for_runtime_condition(api, "Healthy", "True", "AsExpected")

    def work() -> dict[str, float]:
        queues = ("pools", "claims", "runtimes")
        return {q: operator.metric("workqueue_adds_total", name=q) for q in queues}

    def quiet() -> bool:
        before = work()
        # Counts of sandboxes are written so late.
        time.sleep(RESTLESS_INTERVAL_SECONDS + 1)
        return work() == before

    eventually(quiet, message="nothing is left to do", timeout=40)
    before = work()
    for _ in range(5):
        for name in nodes.names():
            status = api.get("Node", name)["status"]
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            ready = {**status["conditions"][0], "lastHeartbeatTime": now}
            handlers = status["runtimeHandlers"][::-1]
            api.patch_status("Node", name, {"conditions": [ready], "runtimeHandlers": handlers})
    time.sleep(2)
    assert work() == before
    # A change that concerns no pool wakes none.
    nodes.set_handlers("plain-0", {"runc", "crun"})
    time.sleep(3)
    assert work()["pools"] == before["pools"]
    # That the nodes are heard at all: this is a change of what serves the pool.
    nodes.set_handlers("plain-0", {"runc", "runsc"})
    eventually(lambda: work()["pools"] > before["pools"], message="the change is acted on")
    assert work()["claims"] == before["claims"]


def test_another_overhead_makes_warm_sandboxes_outdated(api: Api, operator: Operator) -> None:
    warm_pool(api, replicas=2)
    claimed = claim_pod(api)["status"]["podUID"]
    pool_status(api, warm=2, claimed=1)
    before = uids(live_pods(api))
    api.patch("RuntimeClass", "gvisor", {"overhead": {"podFixed": {"memory": "64Mi"}}})
    eventually(
        lambda: uids(live_pods(api)) & before == {claimed} and len(live_pods(api)) == 3,
        message="the warm ones are new, the claimed one stays",
        timeout=30,
    )
    fresh = [p for p in live_pods(api) if p["metadata"]["uid"] != claimed]
    assert [p["spec"]["overhead"] for p in fresh] == [{"memory": "64Mi"}] * 2
    pool_status(api, warm=2, outdated=0)
    wait_for_pool_condition(api, "UpToDate", "True", "AsExpected")


def test_a_label_that_a_node_loses_makes_it_ineligible_and_leaves_its_sandboxes(
    api: Api, operator: Operator, nodes: FakeNodes
) -> None:
    label = {"example.com/sandboxes": "yes"}
    for name in GVISOR_NODES:
        nodes.set_labels(name, label)
    api.create(objects.runtime_class(scheduling={"nodeSelector": label}))
    warm_pool(api, replicas=3, template=objects.large_template())
    wait_for_pool_condition(api, "NodesServing", "True", "HandlerServed")
    assert nodes_of(live_pods(api)) == GVISOR_NODES
    before = uids(live_pods(api))
    nodes.set_labels("gvisor-0", {})
    eventually(
        lambda: api.get("SandboxPool", "pool")["status"]["runtime"]["nodes"]["eligible"] == 2,
        message="two nodes are left",
    )
    consistently(lambda: uids(api.list("Pod")) == before, seconds=2, message="its sandbox stays")
    pool_status(api, warm=3)


# --- Guidance ------------------------------------------------------------------------------------


def test_a_label_that_tells_serving_nodes_apart_is_named_and_does_what_was_promised(
    api: Api, operator: Operator, nodes: FakeNodes
) -> None:
    label = {"example.com/gvisor": "installed"}
    for name in nodes.names():
        nodes.set_labels(name, {"example.com/zone": "a", **(label if "gvisor" in name else {})})
    warm_pool(api, replicas=2)
    message = wait_for_pool_condition(api, "NodesServing", "True", "SomeNodesNotServing")
    assert "example.com/gvisor: 'installed'" in message
    assert "scheduling.nodeSelector" in message
    seen = wait_for_runtime_condition(api, "Ready", "True", "SomeNodesNotServing")
    assert seen["advice"] == {"nodeSelector": label}

    api.patch("RuntimeClass", "gvisor", {"scheduling": {"nodeSelector": label}})
    wait_for_pool_condition(api, "NodesServing", "True", "HandlerServed")
    seen = wait_for_runtime_condition(api, "Ready", "True", "HandlerServed")
    assert "advice" not in seen
    assert seen["servingOfEligible"] == "3/3"


# --- SandboxRuntimes -----------------------------------------------------------------------------


def test_a_sandboxruntime_comes_and_goes_with_its_class_and_the_pools_that_name_it(
    api: Api, operator: Operator
) -> None:
    gvisor_class(api)
    first = eventually(
        lambda: api.get("SandboxRuntime", "gvisor"),
        until=lambda runtime: runtime.get("status", {}).get("exists") is True,
        message="it appears",
    )
    assert first["status"]["handler"] == "runsc"
    assert first["status"]["classUID"] == api.get("RuntimeClass", "gvisor")["metadata"]["uid"]
    assert first["status"]["nodes"]["serving"] == 3

    api.patch_status("SandboxRuntime", "gvisor", {"handler": "evil", "nodes": None, "poolCount": 9})
    eventually(
        lambda: api.get("SandboxRuntime", "gvisor")["status"],
        until=lambda status: status == first["status"],
        message="what others wrote is overwritten",
    )
    api.delete("SandboxRuntime", "gvisor")
    eventually(
        lambda: api.get("SandboxRuntime", "gvisor"),
        until=lambda runtime: (
            runtime["metadata"]["uid"] != first["metadata"]["uid"]
            and runtime.get("status", {}).get("handler") == "runsc"
        ),
        message="it is made again",
    )

    warm_pool(api, replicas=1)
    eventually(
        lambda: api.get("SandboxRuntime", "gvisor")["status"],
        until=lambda status: status["poolCount"] == 1,
        message="its pool is counted",
    )
    claim = claim_pod(api)
    pool_status(api, warm=1, claimed=1)
    api.delete("RuntimeClass", "gvisor")
    missing = wait_for_runtime_condition(api, "Ready", "False", "RuntimeClassNotFound")
    assert missing["exists"] is False
    assert missing["handler"] == "runsc"
    assert "/pool" in missing["said"]
    assert missing["sandboxes"]["claimed"] == 1
    # What runs goes on running.
    assert api.get("SandboxClaim", "claim")["status"]["phase"] == "Bound"
    assert api.get("Pod", claim["status"]["podName"])
    api.delete("SandboxPool", "pool")
    eventually(lambda: api.find("SandboxRuntime", "gvisor") is None, message="it goes")

    api.create(objects.runtime_class("unused", "runc"))
    eventually(lambda: api.find("SandboxRuntime", "unused"), message="it appears")
    api.delete("RuntimeClass", "unused")
    eventually(lambda: api.find("SandboxRuntime", "unused") is None, message="it goes")


# --- No fallback ---------------------------------------------------------------------------------


def test_no_claim_is_ever_given_a_sandbox_of_another_class(
    api: Api, operator: Operator, nodes: FakeNodes, control_plane: ControlPlane, namespace: str
) -> None:
    api.create(objects.runtime_class("plain", "runc"))
    fast = api.create(objects.pool("fast", "plain", replicas=4))
    pool_status(api, name="fast", warm=4)
    safe = warm_pool(api, replicas=2, name="safe", expectedHandler="runsc")
    claims = iter(range(100))

    def claim(pool: str, **spec: Any) -> str:
        name = f"claim-{next(claims)}"
        api.create(objects.claim(name, pool, **spec))
        return name

    with PodHistory(control_plane.kubeconfig, namespace) as history:
        # More than are warm; half of them say what they expect, some would start their own.
        waiting = [claim("safe", runtimeClassName="gvisor") for _ in range(2)]
        waiting += [claim("safe") for _ in range(2)]
        waiting += [claim("safe", onEmpty="Create")]
        refused = [
            claim("safe", runtimeClassName="plain"),
            claim("fast", runtimeClassName="gvisor"),
        ]
        for name in refused:
            assert bound_reason(phase(api, "Failed", name)) == "RuntimeClassMismatch"

        nodes.fail("runsc", texts.SHIM_MISSING)
        # However far the refill has come: some are to be made now.
        api.scale("SandboxPool", "safe", 4)
        is_quarantined(operator, count=3)
        waiting += [claim("safe"), claim("safe", onEmpty="Create")]
        for name in [claim("fast"), claim("fast", runtimeClassName="plain")]:
            phase(api, "Bound", name)

        api.delete("RuntimeClass", "gvisor")
        wait_for_pool_condition(api, "Ready", "False", "RuntimeClassNotFound", name="safe")
        waiting += [claim("safe"), claim("safe", onEmpty="Create")]
        phase(api, "Bound", claim("fast"))
        api.create(objects.runtime_class("gvisor", "runc"))
        wait_for_pool_condition(api, "Ready", "False", "HandlerMismatch", name="safe")
        waiting += [claim("safe"), claim("safe", onEmpty="Create")]
        phase(api, "Bound", claim("fast"))
        consistently(
            lambda: (
                {api.get("SandboxClaim", n)["status"]["phase"] for n in waiting[-4:]} == {"Pending"}
            ),
            seconds=2,
            message="none of them is served",
        )

        nodes.heal("runsc")
        api.delete("RuntimeClass", "gvisor")
        gvisor_class(api)
        is_quarantined(operator, count=0, timeout=40)
        for name in waiting:
            phase(api, "Bound", name, timeout=40)
        wanted = {safe["metadata"]["uid"]: "gvisor", fast["metadata"]["uid"]: "plain"}
        for pod in history.states():
            assert (
                pod["spec"]["runtimeClassName"]
                == wanted[pod["metadata"]["labels"][names.LABEL_POOL_UID]]
            )
    for name in waiting:
        given = api.get("SandboxClaim", name)["status"]["runtime"]
        assert (given["className"], given["handler"]) == ("gvisor", "runsc")
    invariants.check(api, namespace)
