"""Real drains and cordons, while sandboxes are warm and claimed."""

from __future__ import annotations

from typing import Any

import pytest

from localcluster import kindcluster, process
from sandboxpool.api import names
from support import Api, condition, consistently, eventually
from support.history import PodHistory
from support.realnodes import GVISOR_NODES, cordon, pool, run_in, template
from support.sandboxes import claim_pod, live_pods, phase, pool_status, wait_for_pool_condition

pytestmark = pytest.mark.usefixtures("nodes_restored")


def drain(node: str, seconds: int) -> str:
    """What `kubectl drain` says as it evicts the sandboxes of a node, and only those.

    Raises:
        CommandError: some are left after so many seconds.
    """
    only = f"--pod-selector={names.LABEL_POOL}"
    return kindcluster.kubectl("drain", node, only, f"--timeout={seconds}s", timeout=seconds + 30)


def on(api: Api, node: str) -> list[dict[str, Any]]:
    return [pod for pod in live_pods(api) if pod["spec"].get("nodeName") == node]


@pytest.fixture
def claimed(api: Api, request: pytest.FixtureRequest) -> tuple[dict[str, Any], str, str]:
    """A claimed sandbox with warm ones beside it; its claim, its node, and the other node."""
    api.create(pool(replicas=3, **request.param))
    pool_status(api, warm=3, timeout=60)
    if request.param:
        wait_for_pool_condition(api, "ClaimsProtected", "True", "DisruptionBudgetKept")
    claim = claim_pod(api, "claim")
    pool_status(api, warm=3, claimed=1, timeout=60)
    node = claim["status"]["nodeName"]
    (other,) = GVISOR_NODES - {node}
    return claim, node, other


@pytest.mark.parametrize("claimed", [{}], indirect=True)
def test_a_drain_evicts_claimed_sandboxes_where_the_pool_allows_it(
    api: Api, claimed: tuple[dict[str, Any], str, str]
) -> None:
    claim, node, other = claimed
    assert f"{claim['status']['podName']} evicted" in drain(node, 90)
    phase(api, "Lost", "claim")
    pool_status(api, warm=3, claimed=0, timeout=60)
    assert {pod["spec"]["nodeName"] for pod in live_pods(api)} == {other}


@pytest.mark.parametrize("claimed", [{"claims": {"disruption": "Protect"}}], indirect=True)
def test_a_drain_waits_for_the_claims_of_a_pool_that_protects_them(
    api: Api, claimed: tuple[dict[str, Any], str, str]
) -> None:
    claim, node, other = claimed
    name = claim["status"]["podName"]
    with pytest.raises(process.CommandError) as refused:
        drain(node, 20)
    said = refused.value.output
    assert "Cannot evict pod as it would violate the pod's disruption budget" in said
    assert f'pods/"{name}"' in said

    pool_status(api, warm=3, claimed=1, timeout=60)
    assert [pod["metadata"]["name"] for pod in on(api, node)] == [name], "the warm ones are gone"
    assert phase(api, "Bound", "claim")["status"]["podName"] == name
    assert run_in(api.get("Pod", name), "echo", "usable").strip() == "usable"

    api.delete("SandboxClaim", "claim")
    drain(node, 60)
    assert on(api, node) == []
    assert {pod["spec"]["nodeName"] for pod in live_pods(api)} == {other}

    budget = "poddisruptionbudget/pool-claims"
    where = ("-n", claim["metadata"]["namespace"])
    assert budget in kindcluster.kubectl(
        "get", *where, "poddisruptionbudgets", "-o", "name"
    ).replace(".policy", "")
    api.patch_spec("SandboxPool", "pool", claims={"disruption": "Allow"})
    eventually(
        lambda: kindcluster.kubectl("get", *where, "poddisruptionbudgets", "-o", "name"),
        until=lambda said: said.strip() == "",
        message="the budget is removed",
    )
    eventually(
        lambda: condition(api.get("SandboxPool", "pool"), "ClaimsProtected"),
        until=lambda seen: seen is None,
        message="nothing is said of it any more",
    )


def test_a_cordon_makes_no_storm_of_sandboxes_that_tolerate_everything(
    api: Api, history: PodHistory
) -> None:
    """The scheduler puts them on the cordoned node, and likes it best because it is empty."""
    cordon(api, min(GVISOR_NODES))
    everything = template(tolerations=[{"operator": "Exists"}])
    api.create(pool(replicas=4, pod=everything))
    eventually(lambda: len(history.created()) >= 4, message="the first are made")
    consistently(lambda: len(history.created()) <= 20, seconds=90, message="few are made")
