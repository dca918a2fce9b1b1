"""What the operator makes of runtimes on real nodes: where it puts pods, what it says and does."""

from __future__ import annotations

from typing import Any

import pytest

from sandboxpool.api import names
from sandboxpool.runtimes.exclusion import handler_key
from support import Api, eventually, objects
from support.history import PodHistory
from support.realnodes import (
    GVISOR,
    GVISOR_NODES,
    RUNC,
    WITHOUT_GVISOR,
    node_kernel,
    pool,
    proc_version,
)
from support.sandboxes import (
    bound_reason,
    claim_pod,
    live_pods,
    phase,
    pool_status,
    wait_for_pool_condition,
)

Object = dict[str, Any]


def uids(pods: list[Object]) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods}


def requires_no(pod: Object, label: str) -> bool:
    """Whether a pod goes to no node with this label; in every alternative, for these are ORed."""
    required = pod["spec"]["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    return all(
        any(expression["key"] == label for expression in term["matchExpressions"])
        for term in required["nodeSelectorTerms"]
    )


@pytest.mark.usefixtures("nodes_not_new")
def test_a_gvisor_pool_fills_only_where_gvisor_is(api: Api, history: PodHistory) -> None:
    api.create(pool(replicas=3))
    pool_status(api, warm=3, timeout=60)
    wait_for_pool_condition(api, "Ready", "True", "SandboxWarm")
    assert WITHOUT_GVISOR in wait_for_pool_condition(
        api, "NodesServing", "True", "SomeNodesNotServing"
    )
    nodes = api.get("SandboxPool", "pool")["status"]["runtime"]["nodes"]
    assert (nodes["eligible"], nodes["serving"], nodes["notServing"]) == (3, 2, 1)

    assert len(history.created()) == 3
    assert history.nodes() <= GVISOR_NODES
    away = handler_key("runsc")
    assert all(requires_no(pod, away) for pod in history.states())
    marked = {
        node["metadata"]["name"]: node["metadata"]["labels"][away]
        for node in api.list("Node")
        if away in node["metadata"]["labels"]
    }
    assert marked.get(WITHOUT_GVISOR) == "NotServing"
    assert not marked.keys() & GVISOR_NODES
    for pod in live_pods(api):
        assert "gvisor" in proc_version(pod)


def test_two_classes_side_by_side_and_an_asserted_class_that_is_another(api: Api) -> None:
    api.create(pool("inside", GVISOR))
    api.create(pool("beside", RUNC))
    for name in ("inside", "beside"):
        pool_status(api, name=name, warm=1, timeout=60)
    api.create(objects.claim("wrong", "beside", runtimeClassName=GVISOR))
    refused = phase(api, "Failed", "wrong")
    assert bound_reason(refused) == "RuntimeClassMismatch"
    assert "podName" not in refused["status"]
    assert all(names.LABEL_CLAIM_UID not in pod["metadata"]["labels"] for pod in live_pods(api))

    seen = {}
    for name, runtime_class in (("inside", GVISOR), ("beside", RUNC)):
        claim = claim_pod(api, name, name, runtimeClassName=runtime_class)
        pod = api.get("Pod", claim["status"]["podName"])
        seen[name] = proc_version(pod), node_kernel(api, pod["spec"]["nodeName"])
    version, kernel = seen["beside"]
    assert kernel in version
    version, kernel = seen["inside"]
    assert kernel not in version
    assert "gvisor" in version


def test_a_class_made_again_with_another_handler_replaces_warm_pods_only(
    api: Api, class_name: str, history: PodHistory
) -> None:
    api.create(objects.runtime_class(class_name, "runsc"))
    # The runtime that it comes to stand for isolates nothing.
    created = api.create(pool(runtime_class=class_name, replicas=2, isolationProof="None"))
    pool_status(api, warm=2, timeout=60)
    claimed = claim_pod(api)["status"]["podUID"]
    pool_status(api, warm=2, claimed=1, timeout=60)
    before = uids(live_pods(api))

    api.delete("RuntimeClass", class_name)
    assert class_name in wait_for_pool_condition(api, "Ready", "False", "RuntimeClassNotFound")
    assert uids(live_pods(api)) == before, "nothing is deleted while the class is missing"
    api.create(objects.runtime_class(class_name, "runc"))
    message = wait_for_pool_condition(api, "RuntimeResolved", "True", "RuntimeChanged")
    assert "'runc'" in message
    eventually(
        lambda: live_pods(api),
        until=lambda pods: len(pods) == 3 and uids(pods) & before == {claimed},
        message="two new warm pods, and the claimed one",
        timeout=60,
    )
    pool_status(api, warm=2, claimed=1, timeout=60)
    (event,) = eventually(lambda: api.events_for(created, "RuntimeChanged"))
    assert "'runsc'" in event["message"]
    assert "'runc'" in event["message"]

    claim = phase(api, "Bound")
    assert claim["status"]["podUID"] == claimed
    assert claim["status"]["runtime"]["handler"] == "runsc"
    for pod in live_pods(api):
        is_claimed = pod["metadata"]["uid"] == claimed
        assert ("gvisor" in proc_version(pod)) == is_claimed
    assert claimed not in history.deleted()
