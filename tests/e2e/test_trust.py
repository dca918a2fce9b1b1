"""What other tenants do costs a healthy pool nothing, on real kubelets and gVisor."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from localcluster.nodeimage import SAMPLE_IMAGE
from sandboxpool.api import names
from support import Api, eventually, objects
from support.deployed import DeployedOperator
from support.realnodes import GVISOR, GVISOR_NODES, pool, template
from support.sandboxes import claim_pod, live_pods, pool_status, wait_for_pool_condition

Object = dict[str, Any]

POLICY = "sandboxpool-pods"
BROKEN_POOLS = 5
STARTUP_SECONDS = 10
QUARANTINED = "sandboxpool_quarantined_nodes"
RUNSC = "runsc"


def warm_pods(api: Api) -> set[str]:
    """The uids of the healthy pool's sandboxes."""
    return {
        pod["metadata"]["uid"]
        for pod in live_pods(api)
        if pod["metadata"]["labels"].get(names.LABEL_POOL) == "healthy"
    }


@pytest.fixture
def attacker(admin: Api) -> Iterator[Api]:
    """A namespace without pools, in which the chart's policy does not hold for once."""
    binding = admin.get("ValidatingAdmissionPolicyBinding", POLICY)
    admin.delete("ValidatingAdmissionPolicyBinding", POLICY)
    name = f"e2e-attacker-{uuid.uuid4().hex[:6]}"
    admin.create(objects.namespace(name))
    yield admin.within(name)
    admin.delete("Namespace", name)
    for field in ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields"):
        binding["metadata"].pop(field, None)
    admin.create(binding)


def missing_secret(number: int) -> Object:
    """A pool whose sandboxes never start: the kubelet looks for a Secret that is not there."""
    spec = template()
    spec["spec"]["containers"][0]["volumeMounts"] = [{"name": "v", "mountPath": "/v"}]
    spec["spec"]["volumes"] = [{"name": "v", "secret": {"secretName": f"absent-{number}"}}]
    startup = {"timeoutSeconds": STARTUP_SECONDS}
    return pool(f"no-secret-{number}", replicas=3, pod=spec, startup=startup)


def test_pools_with_a_missing_secret_cost_no_node_and_no_other_pool(
    api: Api, deployed: DeployedOperator
) -> None:
    api.create(pool("healthy", replicas=4))
    pool_status(api, name="healthy", warm=4, timeout=60)
    before = warm_pods(api)
    assert len(before) == 4
    for number in range(BROKEN_POOLS):
        api.create(missing_secret(number))
    # For longer than it would take to give up more than once.
    until = time.monotonic() + 4 * STARTUP_SECONDS + 10
    while time.monotonic() < until:
        assert deployed.metric(QUARANTINED, handler=RUNSC) == 0
        assert warm_pods(api) == before
        time.sleep(2)
    for number in range(BROKEN_POOLS):
        said = wait_for_pool_condition(
            api, "Warm", "False", "VolumeMountFailed", name=f"no-secret-{number}"
        )
        assert f"absent-{number}" in said
    status = api.get("SandboxRuntime", GVISOR)["status"]
    assert status["nodes"]["quarantined"] == 0
    assert status["issues"] == []
    claim_pod(api, pool="healthy")


def forged(number: int, node: str, owner: Object, said: str) -> Object:
    """A runc pod that says of itself whatever a sandbox would, and proves itself."""
    labels = {
        names.LABEL_POOL: "healthy",
        names.LABEL_POOL_UID: owner["uid"],
        names.LABEL_CLAIM_UID: owner["uid"],
    }
    answer = {
        "name": "sandboxpool-probe",
        "image": SAMPLE_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", f"printf '%s' '{said}' > /dev/termination-log"],
    }
    body = template(nodeSelector={names.HOSTNAME_LABEL: node}, initContainers=[answer])
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"forged-{number}",
            "labels": labels,
            "annotations": {names.ANNOTATION_HANDLER: RUNSC},
            "ownerReferences": [],
        },
        "spec": body["spec"],
    }


def test_forged_pods_of_another_namespace_change_nothing(
    api: Api, attacker: Api, deployed: DeployedOperator
) -> None:
    created = api.create(pool("healthy", replicas=2))
    pool_status(api, name="healthy", warm=2, timeout=60)
    before = warm_pods(api)
    seen = api.get("SandboxRuntime", GVISOR)["status"]["evidence"]

    lies = [
        (node, said)
        for node in sorted(GVISOR_NODES)
        for said in (
            api.get("Node", node)["status"]["nodeInfo"]["bootID"],
            "deadbeef-0000-4000-8000-00000000beef",
        )
    ]

    for number, (node, said) in enumerate(lies):
        body = forged(number, node, created["metadata"], said)
        # The policy goes on for a moment after its binding is gone.
        eventually(partial(attacker.create, body), message="it is forged")
    eventually(
        lambda: [p["status"]["phase"] for p in attacker.list("Pod")],
        until=lambda phases: phases == ["Running"] * len(lies),
        message="the forged pods run",
        timeout=60,
    )
    time.sleep(3)
    assert warm_pods(api) == before
    assert deployed.metric(QUARANTINED, handler=RUNSC) == 0
    after = api.get("SandboxRuntime", GVISOR)["status"]["evidence"]
    assert [(e["isolation"], e["nodes"]) for e in after] == [
        (e["isolation"], e["nodes"]) for e in seen
    ]
    assert api.get("SandboxPool", "healthy")["status"]["claimed"] == 0
    claim = claim_pod(api, pool="healthy", runtimeClassName=GVISOR)
    assert claim["status"]["podUID"] in before
    assert len(attacker.list("Pod")) == len(lies), "the operator has left them alone"
