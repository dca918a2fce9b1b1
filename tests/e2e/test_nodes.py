"""Nodes that change while pools use them."""

from __future__ import annotations

from typing import Any

import pytest

from localcluster import nodes
from sandboxpool.api import names
from support import Api, consistently, eventually
from support.api import is_true
from support.deployed import DeployedOperator
from support.history import PodHistory
from support.realnodes import (
    GVISOR_NODES,
    WITH_GVISOR,
    WITHOUT_GVISOR,
    cordon,
    pool,
    proc_version,
    run_in,
    template,
)
from support.sandboxes import claim_pod, live_pods, pool_status, wait_for_pool_condition

Object = dict[str, Any]

pytestmark = pytest.mark.usefixtures("nodes_restored")


def test_readiness_that_fails_for_a_while_costs_no_sandbox(api: Api, history: PodHistory) -> None:
    """For longer than a start may take, so that it is not taken for one."""
    pod = template()
    pod["spec"]["containers"][0] |= {
        "command": ["sh", "-c", "touch /ready && exec sleep infinity"],
        "readinessProbe": {
            "exec": {"command": ["test", "-e", "/ready"]},
            "periodSeconds": 1,
            "failureThreshold": 1,
        },
    }
    api.create(pool(replicas=2, pod=pod, startup={"timeoutSeconds": 10}))
    pool_status(api, warm=2, timeout=60)
    before = history.created()
    one = live_pods(api)[0]
    run_in(one, "rm", "/ready")
    pool_status(api, warm=1, unready=1)
    consistently(lambda: history.created() == before, seconds=15, message="none is made")
    assert len(live_pods(api)) == 2
    run_in(one, "touch", "/ready")
    pool_status(api, warm=2, unready=0)
    assert {p["metadata"]["uid"] for p in live_pods(api)} == set(before)


@pytest.mark.usefixtures("nodes_not_new")
def test_a_handler_that_a_node_gets_is_seen_and_used(api: Api, history: PodHistory) -> None:
    only_there = template(nodeSelector={names.HOSTNAME_LABEL: WITHOUT_GVISOR})
    api.create(pool(replicas=2, pod=only_there))
    assert "'runsc'" in wait_for_pool_condition(api, "Ready", "False", "NoNodeServes")
    eventually(lambda: len(history.created()) == 1, message="one scout")
    consistently(lambda: len(history.created()) == 1, seconds=3, message="no more than one")
    assert history.nodes() == set()

    nodes.set_handlers(WITHOUT_GVISOR, add=["runsc"])
    wait_for_pool_condition(api, "NodesServing", "True", "HandlerServed", timeout=60)
    pool_status(api, warm=2, timeout=60)
    assert history.nodes() == {WITHOUT_GVISOR}
    for pod in live_pods(api):
        assert "gvisor" in proc_version(pod)


def milli(cpu: str) -> int:
    return int(cpu[:-1]) if cpu.endswith("m") else 1000 * int(cpu)


def fill_with(api: Api, node: str, count: int) -> Object:
    """A template of sandboxes of which so many leave a node no room for a probe."""
    free = milli(api.get("Node", node)["status"]["allocatable"]["cpu"])
    for pod in api.list("Pod", everywhere=True, fieldSelector=f"spec.nodeName={node}"):
        for container in pod["spec"]["containers"]:
            free -= milli(container.get("resources", {}).get("requests", {}).get("cpu", "0"))
    filling = template(nodeSelector={names.HOSTNAME_LABEL: node})
    filling["spec"]["containers"][0]["resources"] = {"requests": {"cpu": f"{free // count}m"}}
    return filling


def settled(api: Api, without: str) -> list[Object]:
    """The pods of the pool if this one is gone, all are ready and the status says: all are warm."""
    pods = live_pods(api)
    status = api.get("SandboxPool", "pool")["status"]
    counts = [status[key] for key in ("warm", "claimed", "unproven", "starting", "stopping")]
    gone = all(pod["metadata"]["uid"] != without for pod in pods)
    ready = all(is_true(pod, "Ready") for pod in pods)
    return pods if gone and ready and counts == [len(pods), 0, 0, 0, 0] else []


def test_one_more_handler_on_a_full_node_costs_nothing_and_the_next_get_their_proof(
    api: Api, deployed: DeployedOperator
) -> None:
    api.create(pool(replicas=3, pod=fill_with(api, WITH_GVISOR, 3)))
    pool_status(api, warm=3, timeout=90)
    # Nothing is known of the node: one gives way to the probe that asks, the others ran before.
    deployed.forget()
    pool_status(api, warm=3, unproven=0, timeout=150)
    nodes.set_handlers(WITH_GVISOR, add=["kata-qemu"])
    consistently(
        lambda: api.get("SandboxPool", "pool")["status"]["warm"] >= 2,
        seconds=5,
        message="what was started before the proof keeps it",
    )
    claimed = claim_pod(api)["status"]
    assert claimed["nodeName"] == WITH_GVISOR
    api.delete("SandboxClaim", "claim")
    # Both the status and the pods may still be as before the claim.
    pods = eventually(
        lambda: settled(api, without=claimed["podUID"]),
        until=lambda pods: len(pods) == 3,
        message="three sandboxes are ready, and proven",
        timeout=150,
    )
    for pod in pods:
        assert "gvisor" in proc_version(pod)


def test_pods_of_a_cordoned_node_are_not_handed_out_and_replaced_elsewhere(api: Api) -> None:
    api.create(pool(replicas=2))
    pool_status(api, warm=2, timeout=60)
    node = live_pods(api)[0]["spec"]["nodeName"]
    (other,) = GVISOR_NODES - {node}

    def eligible() -> int:
        return int(api.get("SandboxPool", "pool")["status"]["runtime"]["nodes"]["eligible"])

    assert eligible() == 3
    cordon(api, node)
    eventually(lambda: eligible() == 2, message="the cordon is seen")
    for number in range(2):
        assert claim_pod(api, f"claim-{number}")["status"]["nodeName"] == other
    eventually(
        lambda: {pod["spec"].get("nodeName") for pod in live_pods(api)},
        until=lambda used: used == {other},
        message="no live pod on the cordoned node",
        timeout=60,
    )
    pool_status(api, warm=2, claimed=2, timeout=60)

    cordon(api, node, unschedulable=False)
    eventually(lambda: eligible() == 3, message="the end of the cordon is seen")
    cordon(api, other)
    eventually(lambda: eligible() == 2, message="the cordon of the other is seen")
    pool_status(api, warm=2, claimed=2, timeout=60)
    assert claim_pod(api, "last")["status"]["nodeName"] == node
