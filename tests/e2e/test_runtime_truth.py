"""Whether runtimes work and isolate, found out on real nodes: quarantine, recovery, evidence.

The kata-qemu of this cluster is an entry in one node's containerd with no shim behind it. Where a
test mends it, a stand-in takes the shim's place: runc's, by a link. No Kata virtual machine ran.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from localcluster import containerd, nodes
from sandboxpool.api import names
from sandboxpool.api.times import epoch
from support import Api, condition, eventually, objects
from support.deployed import DeployedOperator
from support.history import PodHistory
from support.realnodes import (
    GVISOR,
    WITH_BROKEN_KATA,
    WITH_GVISOR,
    pool,
    proc_version,
    template,
)
from support.sandboxes import claim_pod, live_pods, phase, pool_status, wait_for_pool_condition

Object = dict[str, Any]

KATA = "kata-qemu"
RUNSC = "runsc"
# Every node of kind has it, and it is runc.
PRETENDER = "test-handler"
GVISOR_KERNEL = "4.19.0-gvisor"
QUARANTINED = "sandboxpool_quarantined_nodes"
PROBE_CONTAINER = "sandboxpool-probe"

DIAGNOSED_SECONDS = 15.0
RECOVERED_SECONDS = 60.0


# --- Steps ---------------------------------------------------------------------------------------


def wait_for_runtime(
    api: Api, name: str, until: Callable[[Object], bool], message: str, timeout: float = 20.0
) -> Object:
    """Waits until the status of a SandboxRuntime is as wanted; returns it."""
    return eventually(
        lambda: dict(api.get("SandboxRuntime", name)["status"]),
        until=until,
        message=f"SandboxRuntime {name}: {message}",
        timeout=timeout,
    )


def reason_of(status: Object, kind: str) -> tuple[str, str]:
    """Status and reason of a condition."""
    found = condition({"status": status}, kind)
    assert found is not None, status
    return found["status"], found["reason"]


def unquarantined(deployed: DeployedOperator, handler: str) -> None:
    """A quarantine that has begun before is tried ever later: start from scratch if one has."""
    if any(
        handler in (r["quarantines"] or {}).get("handlers", {}) for r in deployed.records().values()
    ):
        deployed.forget()


def unprobed(deployed: DeployedOperator, handler: str) -> None:
    """What is known of a handler is not asked again: start from scratch if something is."""
    if any(handler in (record["evidence"] or {}) for record in deployed.records().values()):
        deployed.forget()


def first_failure(api: Api) -> float:
    """The time of the first failed sandbox of the test's namespace, in seconds since the epoch."""
    events = api.list("Event", fieldSelector="reason=FailedCreatePodSandBox")
    return min(epoch(event["firstTimestamp"]) for event in events)


def event_about(api: Api, obj: Object, reason: str) -> Object:
    """Waits for an event about an object; returns the newest."""
    message = f"{reason} of {obj['kind']} {obj['metadata']['name']}"
    return eventually(lambda: api.events_for(obj, reason), message=message)[-1]


def on_node(pods: list[Object], node: str) -> set[str]:
    """The uids of the pods that are bound to a node."""
    return {pod["metadata"]["uid"] for pod in pods if pod["spec"].get("nodeName") == node}


# --- Broken, quarantined, mended -----------------------------------------------------------------


def test_a_broken_runtime_is_diagnosed_by_name_and_node_and_quarantined(
    api: Api, deployed: DeployedOperator, class_name: str, history: PodHistory
) -> None:
    unquarantined(deployed, KATA)
    api.create(objects.runtime_class(class_name, KATA))
    # Without probes of its own, so that a sandbox is the first to fail.
    created = api.create(pool(runtime_class=class_name, isolationProof="None"))
    said = wait_for_pool_condition(api, "NodesServing", "False", "ShimMissing", timeout=60)
    status = wait_for_runtime(api, class_name, lambda s: s["issues"], "there is an issue")
    assert time.time() - first_failure(api) < DIAGNOSED_SECONDS

    assert containerd.KATA_SHIM in said
    assert WITH_BROKEN_KATA in said
    wait_for_pool_condition(api, "Ready", "False", "ShimMissing")
    (issue,) = status["issues"]
    assert (issue["reason"], issue["nodes"]) == ("ShimMissing", [WITH_BROKEN_KATA])
    assert containerd.KATA_SHIM in issue["message"]
    assert status["nodes"]["quarantined"] == 1
    assert status["servingOfEligible"] == "0/3"
    assert reason_of(status, "Ready") == ("False", "ShimMissing")
    assert deployed.metric(QUARANTINED, handler=KATA) == 1
    for about, reason in (
        (created, "ShimMissing"),
        (api.get("SandboxRuntime", class_name), "ShimMissing"),
        (api.get("Node", WITH_BROKEN_KATA), "NodeQuarantined"),
    ):
        assert containerd.KATA_SHIM in event_about(api, about, reason)["message"]

    stuck = on_node(history.states(), WITH_BROKEN_KATA)
    assert len(stuck) == 1
    eventually(lambda: stuck <= history.deleted(), message="the stuck pod is gone", timeout=30)
    # What stays pending in its place shows the demand, and goes nowhere near that node.
    (scout,) = eventually(lambda: live_pods(api), until=lambda pods: len(pods) == 1)
    assert "nodeName" not in scout["spec"]
    assert on_node(history.states(), WITH_BROKEN_KATA) == stuck


@pytest.mark.usefixtures("shims_restored")
def test_a_mended_runtime_is_used_again_by_itself_and_believed_only_with_proof(
    api: Api, deployed: DeployedOperator, class_name: str
) -> None:
    """The stand-in starts sandboxes and isolates nothing: the one is seen, and the other."""
    unquarantined(deployed, KATA)
    api.create(objects.runtime_class(class_name, KATA))
    api.create(pool("starts", class_name, isolationProof="None"))
    wait_for_pool_condition(api, "Ready", "False", "ShimMissing", name="starts", timeout=60)

    nodes.give_kata_shim(WITH_BROKEN_KATA)
    wait_for_pool_condition(
        api, "Ready", "True", "SandboxWarm", name="starts", timeout=RECOVERED_SECONDS
    )
    status = wait_for_runtime(api, class_name, lambda s: not s["issues"], "no issue is left")
    assert (status["nodes"]["quarantined"], status["nodes"]["serving"]) == (0, 1)
    assert reason_of(status, "Ready")[0] == "True"
    assert deployed.metric(QUARANTINED, handler=KATA) == 0
    lifted = event_about(api, api.get("Node", WITH_BROKEN_KATA), "QuarantineLifted")
    assert KATA in lifted["message"]
    claim = claim_pod(api, pool="starts")
    assert claim["status"]["nodeName"] == WITH_BROKEN_KATA

    api.create(pool("isolates", class_name))
    said = wait_for_pool_condition(
        api, "Ready", "False", "IsolationNotProven", name="isolates", timeout=60
    )
    assert WITH_BROKEN_KATA in said
    pool_status(api, name="isolates", warm=0)


def test_what_is_known_of_a_broken_node_outlives_the_operators_pod(
    api: Api, deployed: DeployedOperator, class_name: str
) -> None:
    api.create(objects.runtime_class(class_name, KATA))
    api.create(pool(runtime_class=class_name))
    wait_for_pool_condition(api, "Ready", "False", "ShimMissing", timeout=60)

    # Without pools there are no sandboxes and no probes: nothing can fail again.
    api.delete("SandboxPool", "pool")
    eventually(lambda: not api.list("Pod"), message="nothing is left", timeout=30)

    def opened() -> float:
        quarantine = deployed.records()[WITH_BROKEN_KATA]["quarantines"]["handlers"][KATA]
        return float(quarantine["changedAt"])

    since = opened()
    deployed.replace()
    assert deployed.metric(QUARANTINED, handler=KATA) == 1
    assert opened() == since
    status = wait_for_runtime(
        api, class_name, lambda s: s["nodes"]["quarantined"] == 1 and s["issues"], "it knows"
    )
    assert reason_of(status, "Ready") == ("False", "ShimMissing")
    assert status["issues"][0]["nodes"] == [WITH_BROKEN_KATA]

    # Nor does a pool made now begin with a sandbox on that node.
    api.create(pool(runtime_class=class_name))
    assert containerd.KATA_SHIM in wait_for_pool_condition(api, "Ready", "False", "ShimMissing")
    eventually(lambda: live_pods(api), message="one waits")
    assert not on_node(api.list("Pod"), WITH_BROKEN_KATA)


@pytest.mark.usefixtures("shims_restored")
def test_sandboxes_move_away_from_a_node_whose_shim_is_gone_and_come_back(
    api: Api, deployed: DeployedOperator, history: PodHistory
) -> None:
    unquarantined(deployed, RUNSC)
    evenly = {
        "maxSkew": 1,
        "topologyKey": names.HOSTNAME_LABEL,
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {names.LABEL_POOL: "pool"}},
        # The control plane is not for sandboxes, so nobody waits for one there.
        "nodeTaintsPolicy": "Honor",
    }
    api.create(pool(replicas=2, pod=template(topologySpreadConstraints=[evenly])))
    pool_status(api, warm=2, timeout=60)
    before = on_node(history.states(), WITH_BROKEN_KATA)
    assert len(before) == 1

    nodes.take_gvisor_shim(WITH_BROKEN_KATA)
    api.patch_spec("SandboxPool", "pool", replicas=4)
    said = wait_for_pool_condition(api, "NodesServing", "True", "NodeQuarantined", timeout=60)
    assert time.time() - first_failure(api) < DIAGNOSED_SECONDS
    assert f"{WITH_BROKEN_KATA}: ShimMissing" in said
    assert deployed.metric(QUARANTINED, handler=RUNSC) == 1
    status = wait_for_runtime(api, GVISOR, lambda s: s["nodes"]["quarantined"] == 1, "quarantined")
    (issue,) = status["issues"]
    assert (issue["reason"], issue["nodes"]) == ("ShimMissing", [WITH_BROKEN_KATA])
    assert "containerd-shim-runsc-v1" in issue["message"]
    assert reason_of(status, "Ready")[0] == "True"
    assert reason_of(status, "Healthy") == ("False", "NodeQuarantined")

    pool_status(api, warm=4, timeout=60)
    eventually(
        lambda: {pod["spec"].get("nodeName") for pod in live_pods(api)},
        until=lambda used: used == {WITH_GVISOR},
        message="all live pods are on the healthy node",
        timeout=30,
    )
    eventually(lambda: before <= history.deleted(), message="the one there is gone", timeout=30)
    assert claim_pod(api)["status"]["nodeName"] == WITH_GVISOR

    nodes.restore_shims(WITH_BROKEN_KATA)
    wait_for_runtime(
        api,
        GVISOR,
        lambda s: s["nodes"]["quarantined"] == 0 and not s["issues"],
        "recovered",
        timeout=RECOVERED_SECONDS,
    )
    assert deployed.metric(QUARANTINED, handler=RUNSC) == 0
    api.patch_spec("SandboxPool", "pool", replicas=6)
    pool_status(api, warm=6, timeout=60)
    assert on_node(live_pods(api), WITH_BROKEN_KATA)


# --- Proof ---------------------------------------------------------------------------------------


def test_gvisor_is_proven_by_what_its_sandboxes_read(api: Api, deployed: DeployedOperator) -> None:
    unprobed(deployed, RUNSC)
    api.create(pool())
    pool_status(api, warm=1, timeout=60)
    assert wait_for_pool_condition(api, "IsolationProven", "True", "IsolationProven")
    node = live_pods(api)[0]["spec"]["nodeName"]
    status = wait_for_runtime(
        api,
        GVISOR,
        lambda s: s["evidence"] and s["evidence"][0]["nodes"] == 2,
        "both nodes are probed",
    )
    (evidence,) = status["evidence"]
    assert evidence["isolation"] == "Proven"
    assert GVISOR_KERNEL in evidence["kernel"]
    assert reason_of(status, "IsolationProven") == ("True", "IsolationProven")
    claim = claim_pod(api)
    assert claim["status"]["nodeName"] == node
    assert GVISOR_KERNEL in claim["status"]["runtime"]["evidence"]


def test_every_gvisor_sandbox_proves_itself_where_that_is_wanted(api: Api) -> None:
    api.create(pool(replicas=2, isolationProof="PerSandbox"))
    pool_status(api, warm=2, timeout=60)
    wait_for_pool_condition(api, "IsolationProven", "True", "IsolationProven")
    for pod in live_pods(api):
        (probe,) = pod["status"]["initContainerStatuses"]
        assert probe["name"] == PROBE_CONTAINER
        assert GVISOR_KERNEL in probe["state"]["terminated"]["message"]
        boot_id = api.get("Node", pod["spec"]["nodeName"])["status"]["nodeInfo"]["bootID"]
        assert boot_id not in probe["state"]["terminated"]["message"]
    claim = claim_pod(api)
    assert GVISOR_KERNEL in claim["status"]["runtime"]["evidence"]
    assert "gvisor" in proc_version(api.get("Pod", claim["status"]["podName"]))


@pytest.mark.parametrize("proof", ["PerNode", "PerSandbox"])
def test_a_runtime_that_only_pretends_is_caught_and_never_handed_out(
    api: Api, deployed: DeployedOperator, class_name: str, history: PodHistory, proof: str
) -> None:
    unprobed(deployed, PRETENDER)
    api.create(objects.runtime_class(class_name, PRETENDER))
    api.create(objects.claim())
    created = api.create(pool(runtime_class=class_name, isolationProof=proof))
    said = wait_for_pool_condition(
        api, "IsolationProven", "False", "IsolationNotProven", timeout=60
    )
    assert "kernel" in said
    wait_for_pool_condition(api, "Ready", "False", "IsolationNotProven", timeout=60)
    status = wait_for_runtime(
        api,
        class_name,
        lambda s: reason_of(s, "IsolationProven") == ("False", "IsolationNotProven"),
        "it does not isolate",
        timeout=30,
    )
    assert status["nodes"]["notIsolating"] >= 1
    assert status["evidence"][0]["isolation"] == "NotProven"
    for about in (created, api.get("SandboxRuntime", class_name)):
        assert event_about(api, about, "IsolationNotProven")["type"] == "Warning"
    assert phase(api, "Pending")["status"].get("podName") is None
    labels = [state["metadata"]["labels"] for state in history.states()]
    assert labels
    assert not any(names.LABEL_CLAIM_UID in has for has in labels)

    # The same runtime is handed out where nobody asks for proof.
    api.create(pool("believes", class_name, isolationProof="None"))
    pool_status(api, name="believes", warm=1, timeout=60)
    assert claim_pod(api, "other", "believes")["status"]["runtime"].get("evidence") is None


# --- Drift ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nodes_restored")
def test_a_claim_is_told_when_its_node_loses_the_handler_and_when_it_is_back(api: Api) -> None:
    there = template(nodeSelector={names.HOSTNAME_LABEL: WITH_BROKEN_KATA})
    api.create(pool(pod=there))
    claim = claim_pod(api)
    pool_status(api, warm=1, claimed=1, timeout=60)
    warm = {pod["metadata"]["uid"] for pod in live_pods(api)} - {claim["status"]["podUID"]}

    def wait_for_claim_condition(status: str, reason: str) -> str:
        found = eventually(
            lambda: condition(api.get("SandboxClaim", "claim"), "Ready") or {},
            until=lambda c: (c.get("status"), c.get("reason")) == (status, reason),
            message=f"the claim says Ready={status} {reason}",
        )
        return str(found["message"])

    wait_for_claim_condition("True", "PodReady")
    nodes.set_handlers(WITH_BROKEN_KATA, remove=[RUNSC])
    said = wait_for_claim_condition("False", "HandlerRemoved")
    assert WITH_BROKEN_KATA in said
    assert "'runsc'" in said
    eventually(
        lambda: not warm & {pod["metadata"]["uid"] for pod in live_pods(api)},
        message="the warm one is gone",
    )
    assert phase(api, "Bound")["status"]["podUID"] == claim["status"]["podUID"]

    nodes.set_handlers(WITH_BROKEN_KATA, add=[RUNSC])
    wait_for_claim_condition("True", "PodReady")
    pool_status(api, warm=1, claimed=1, timeout=60)
    assert "gvisor" in proc_version(api.get("Pod", claim["status"]["podName"]))
