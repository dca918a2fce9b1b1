"""Proof of isolation: nothing is handed out without it, and what is known outlives the operator."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from fakekubelet import FakeNode, FakeNodes, texts
from localcluster.controlplane import ControlPlane
from sandboxpool.api import names
from sandboxpool.runtimes.probe import ANNOTATION_NODE, CONTROL
from support import Api, consistently, eventually, objects
from support.history import PodHistory
from support.operator_process import Operator
from support.sandboxes import (
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

OWN_KERNEL = "the sandbox has a kernel of its own (Linux version 4.19.0-gvisor"
GVISOR_NODES = ("gvisor-0", "gvisor-1", "gvisor-2")


def probed(history: PodHistory, handler: str = "runsc") -> Counter[str]:
    """How many probe pods of a handler each node has had; of no handler: positive controls."""
    by_uid = {p["metadata"]["uid"]: p["metadata"]["annotations"] for p in history.states()}
    return Counter(
        annotations[ANNOTATION_NODE]
        for annotations in by_uid.values()
        if annotations[names.ANNOTATION_HANDLER] == handler
    )


def handed_out(pods: list[Object]) -> list[str]:
    """The names of the claims that have a pod."""
    labels = (pod["metadata"]["labels"] for pod in pods)
    return [found[names.LABEL_CLAIM] for found in labels if names.LABEL_CLAIM in found]


# --- Proof ---------------------------------------------------------------------------------------


def test_no_sandbox_is_handed_out_before_its_node_was_probed(
    api: Api, operator: Operator, nodes: FakeNodes
) -> None:
    # Probes start, and do not end.
    nodes.lack_image(objects.PROBE_IMAGE)
    gvisor_class(api)
    api.create(objects.pool(replicas=2, isolationProof="PerNode"))
    pool_status(api, unproven=2, warm=0)
    message = wait_for_pool_condition(api, "IsolationProven", "Unknown", "EvidencePending")
    assert "wait for the probe" in message
    wait_for_pool_condition(api, "NodesServing", "True", "SomeNodesNotServing")
    api.create(objects.claim())
    consistently(
        lambda: api.get("SandboxClaim", "claim")["status"]["phase"] == "Pending", seconds=2
    )
    assert handed_out(api.list("Pod")) == []

    nodes.lack_image(objects.PROBE_IMAGE, missing=False)
    claim = phase(api, "Bound", timeout=30)
    assert claim["status"]["runtime"]["evidence"].startswith(OWN_KERNEL)
    pool_status(api, warm=2, unproven=0, claimed=1)
    assert len(handed_out(api.list("Pod"))) == 1, "it was bound once"
    wait_for_pool_condition(api, "IsolationProven", "True", "IsolationProven")
    wait_for_pool_condition(api, "Ready", "True", "SandboxWarm")
    seen = wait_for_runtime_condition(api, "IsolationProven", "True", "IsolationProven")
    evidence = seen["evidence"][0]
    assert evidence["isolation"] == "Proven"
    assert evidence["kernel"].startswith("Linux version 4.19.0-gvisor")
    assert evidence["exampleNode"] in GVISOR_NODES
    eventually(
        lambda: not api.list("Pod", operator.namespace), message="no probe pod is left", timeout=30
    )


def test_a_sandbox_that_proves_itself_waits_for_no_probe_but_the_positive_control(
    api: Api, operator: Operator, nodes: FakeNodes, control_plane: ControlPlane
) -> None:
    with PodHistory(control_plane.kubeconfig, operator.namespace) as probes:
        warm_pool(api, replicas=2, isolationProof="PerSandbox")
        assert claim_pod(api)["status"]["runtime"]["evidence"].startswith(OWN_KERNEL)
        wait_for_pool_condition(api, "IsolationProven", "True", "IsolationProven")
        wait_for_runtime_condition(api, "IsolationProven", "True", "IsolationProven")
        controls = probed(probes, CONTROL)
        assert set(controls) == set(GVISOR_NODES)
        assert set(controls.values()) == {1}, "one for each node, and none is repeated"


@pytest.mark.parametrize("proof", ["PerNode", "PerSandbox"])
def test_a_handler_that_only_pretends_is_caught_and_never_handed_out(
    api: Api, operator: Operator, nodes: FakeNodes, proof: str
) -> None:
    nodes.isolate("runsc", False)
    gvisor_class(api)
    api.create(objects.pool(replicas=2, isolationProof=proof))
    claims = {"warm": "Wait", "cold": "Create"}
    for name, on_empty in claims.items():
        api.create(objects.claim(name, onEmpty=on_empty))
    wait_for_pool_condition(api, "Ready", "False", "IsolationNotProven", timeout=30)
    message = wait_for_pool_condition(api, "IsolationProven", "False", "IsolationNotProven")
    assert "gvisor-" in message
    assert "spec.isolationProof" in message
    seen = wait_for_runtime_condition(api, "IsolationProven", "False", "IsolationNotProven")
    evidence = seen["evidence"][0]
    assert (evidence["isolation"], evidence["kernel"]) == ("NotProven", "Linux version 6.12.0-fake")
    caught = api.get("Node", evidence["exampleNode"])
    (event,) = eventually(lambda: api.events_for(caught, "IsolationNotProven"))
    assert "handler runsc" in event["message"]

    def pending() -> bool:
        found = [api.get("SandboxClaim", name)["status"]["phase"] for name in claims]
        return found == ["Pending", "Pending"] and "warm" not in handed_out(api.list("Pod"))

    consistently(pending, seconds=2, message="neither claim is served")
    pool_status(api, warm=0)

    # What is mended is probed again, and then they are served.
    nodes.isolate("runsc", True)
    for name in GVISOR_NODES:
        nodes.upgrade(name, runtime="containerd://2.2.0")
    for name in claims:
        claim = phase(api, "Bound", name, timeout=45)
        assert claim["status"]["runtime"]["evidence"].startswith(OWN_KERNEL)


def test_sandboxes_keep_away_from_the_node_that_does_not_isolate(
    api: Api, operator: Operator, nodes: FakeNodes
) -> None:
    nodes.isolate("runsc", False, ["gvisor-0"])
    gvisor_class(api)
    api.create(
        objects.pool(replicas=6, template=objects.large_template(), isolationProof="PerNode")
    )
    pool_status(api, warm=6, unproven=0, timeout=40)
    eventually(
        lambda: {p["spec"].get("nodeName") for p in live_pods(api)},
        until=lambda used: used == {"gvisor-1", "gvisor-2"},
        message="none is left there",
    )
    pool = eventually(
        lambda: api.get("SandboxPool", "pool"),
        until=lambda pool: pool["status"]["runtime"]["nodes"]["notIsolating"] == 1,
    )
    assert pool["status"]["runtime"]["nodes"]["serving"] == 2
    assert "gvisor-0" in wait_for_pool_condition(
        api, "IsolationProven", "False", "IsolationNotProven"
    )
    wait_for_pool_condition(api, "Ready", "True", "SandboxWarm")


# --- No answer -----------------------------------------------------------------------------------


def test_a_sandbox_whose_message_does_not_arrive_proves_nothing_and_a_probe_pod_does(
    api: Api, operator: Operator, nodes: FakeNodes
) -> None:
    nodes.swallow_messages("runsc")
    gvisor_class(api)
    api.create(objects.pool(isolationProof="PerSandbox"))
    api.create(objects.claim())
    message = wait_for_pool_condition(api, "Ready", "False", "EvidenceUnavailable")
    assert "isolationProof: PerNode" in message
    assert handed_out(api.list("Pod")) == []
    api.patch_spec("SandboxPool", "pool", isolationProof="PerNode")
    claim = phase(api, "Bound", timeout=30)
    assert claim["status"]["runtime"]["evidence"] == "the sandbox has a kernel of its own"


# --- Again, and not again ------------------------------------------------------------------------


def test_a_node_is_probed_again_when_what_was_proven_may_have_changed(
    api: Api, operator: Operator, nodes: FakeNodes, control_plane: ControlPlane
) -> None:
    changing = [f"gvisor-{number}" for number in range(5)]
    nodes.add(*(FakeNode(name, {"runc", "runsc"}) for name in changing[3:]))
    nodes.add(FakeNode("gvisor-5", {"runc", "runsc"}))
    with PodHistory(control_plane.kubeconfig, operator.namespace) as probes:
        warm_pool(api, replicas=1, isolationProof="PerNode")
        once = Counter([*changing, "gvisor-5"])
        eventually(lambda: probed(probes), until=lambda seen: seen == once, timeout=30)
        eventually(lambda: not api.list("Pod", operator.namespace), timeout=30)

        nodes.reboot("gvisor-0")
        nodes.upgrade("gvisor-1", runtime="containerd://2.1.10")
        nodes.upgrade("gvisor-2", kubelet="v1.36.4")
        nodes.set_handlers("gvisor-3", {"runc", "runsc", "crun"})
        again = nodes["gvisor-4"]
        nodes.remove("gvisor-4")
        nodes.add(again)
        twice = once + Counter(changing)
        eventually(lambda: probed(probes), until=lambda seen: seen == twice, timeout=30)
        consistently(lambda: probed(probes) == twice, seconds=2, message="and no other node")
    kinds = {
        ("containerd://2.1.9", "v1.36.3"): 4,
        ("containerd://2.1.10", "v1.36.3"): 1,
        ("containerd://2.1.9", "v1.36.4"): 1,
    }
    eventually(
        lambda: {
            (kind["containerRuntime"], kind["kubelet"]): kind["nodes"]
            for kind in api.get("SandboxRuntime", "gvisor")["status"]["evidence"]
        },
        until=lambda seen: seen == kinds,
        message="each kind of node has its evidence",
    )


def test_one_more_handler_on_a_full_node_costs_nothing_and_the_next_get_their_proof(
    api: Api, operator: Operator, nodes: FakeNodes
) -> None:
    """Ten sandboxes fill a node; the probe pod that waits for its image takes the tenth's room."""
    nodes.lack_image(objects.PROBE_IMAGE)
    gvisor_class(api)
    template = objects.large_template(nodeSelector={names.HOSTNAME_LABEL: "gvisor-0"})
    api.create(objects.pool(replicas=10, template=template, isolationProof="PerNode"))
    pool_status(api, unproven=9, timeout=30)
    nodes.lack_image(objects.PROBE_IMAGE, missing=False)
    pool_status(api, warm=10, timeout=60)

    nodes.set_handlers("gvisor-0", {"runc", "runsc", "crun"})
    consistently(
        lambda: api.get("SandboxPool", "pool")["status"]["warm"] >= 9,
        seconds=3,
        message="what was started before the proof keeps it",
    )
    assert OWN_KERNEL in claim_pod(api)["status"]["runtime"]["evidence"]
    api.delete("SandboxClaim", "claim")
    # Those that are started now wait for their proof, and one of them gives way to its probe.
    pool_status(api, warm=10, unproven=0, timeout=90)
    wait_for_pool_condition(api, "IsolationProven", "True", "IsolationProven")


def test_a_crash_keeps_quarantine_and_evidence_and_repeats_no_probe(
    api: Api, operator: Operator, nodes: FakeNodes, control_plane: ControlPlane, namespace: str
) -> None:
    warm_pool(api, replicas=3, isolationProof="PerNode", template=objects.large_template())
    nodes.fail("runsc", texts.SHIM_MISSING, ["gvisor-0"])
    api.scale("SandboxPool", "pool", 6)
    seen = wait_for_runtime_condition(api, "Healthy", "False", "NodeQuarantined", timeout=30)
    assert seen["nodes"]["quarantined"] == 1
    pool_status(api, warm=6, timeout=30)
    # Nothing is left there that could tell the next process of it.
    eventually(
        lambda: "gvisor-0" not in {p["spec"].get("nodeName") for p in api.list("Pod")},
        message="no sandbox is on the broken node",
    )
    kept = eventually(
        lambda: records(api, operator),
        until=lambda found: len(found) == 3 and bool(found.get("gvisor-0", {}).get("quarantines")),
        message="what is known is written down",
    )
    assert kept["gvisor-0"]["quarantines"]["handlers"]["runsc"]["reason"] == "ShimMissing"
    assert kept["gvisor-1"]["evidence"]["runsc"]["isolation"] == "Proven"

    operator.kill()
    with (
        PodHistory(control_plane.kubeconfig, operator.namespace) as probes,
        PodHistory(control_plane.kubeconfig, namespace) as sandboxes,
    ):
        before = probed(probes)
        operator.start()
        eventually(
            lambda: operator.metric("sandboxpool_quarantined_nodes", handler="runsc") == 1,
            # Its own former lease has to run out first.
            timeout=40,
            message="it is still known",
        )
        assert OWN_KERNEL in claim_pod(api)["status"]["runtime"]["evidence"]
        api.scale("SandboxPool", "pool", 9)
        pool_status(api, warm=9, claimed=1)
        new = probed(probes) - before
        assert set(new) <= {"gvisor-0"}, "only the scout for the broken node"
        assert new["gvisor-0"] <= 3
        assert "gvisor-0" not in sandboxes.nodes()

    # What somebody deletes comes back with the next change.
    for name in record_names(api, operator):
        api.delete("ConfigMap", name, operator.namespace)
    boot_id = nodes.reboot("gvisor-1")
    eventually(
        lambda: boot_id in json.dumps(records(api, operator).get("gvisor-1")),
        message="the record of the node that changed is written again",
        timeout=30,
    )


def record_names(api: Api, operator: Operator) -> list[str]:
    found = [c["metadata"]["name"] for c in api.list("ConfigMap", operator.namespace)]
    return [name for name in found if name.startswith("sandboxpool-nodes-")]


def records(api: Api, operator: Operator) -> dict[str, Any]:
    """What is kept of each node."""
    found: dict[str, Any] = {}
    for name in record_names(api, operator):
        data = api.get("ConfigMap", name, operator.namespace).get("data") or {}
        found |= {node: json.loads(record) for node, record in data.items()}
    return found
