"""The quota of docs/how-to/tenants.md, kept by the real controllers."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from localcluster.paths import REPOSITORY
from support import Api, ApiError, eventually, objects
from support.controllers import Controllers
from support.operator_process import StartOperator
from support.sandboxes import claim_pod, phase, pool_status, wait_for_pool_condition, warm_pool

PAGE = (REPOSITORY / "docs" / "how-to" / "tenants.md").read_text()
CLAIMS = "count/sandboxclaims.sandboxpool.io"
POOLS = "count/sandboxpools.sandboxpool.io"


@pytest.fixture
def quota(api: Api, controllers: Controllers) -> dict[str, Any]:
    """The page's quota on numbers of objects, with smaller numbers, in force."""
    blocks = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    documents = [document for block in blocks for document in yaml.safe_load_all(block)]
    quota: dict[str, Any]
    (quota,) = [document for document in documents if document["kind"] == "ResourceQuota"]
    assert quota["spec"]["hard"].keys() >= {CLAIMS, POOLS, "pods"}
    quota["spec"]["hard"] = {CLAIMS: "2", POOLS: "1", "pods": "3"}
    name = quota["metadata"]["name"]
    del quota["metadata"]["namespace"]
    api.create(quota)
    eventually(
        lambda: api.get("ResourceQuota", name).get("status", {}).get("hard"),
        until=lambda hard: hard == quota["spec"]["hard"],
        message="the quota is in force",
        timeout=60,
    )
    return quota


def refused(api: Api, obj: dict[str, Any]) -> str:
    """What the API server says as it refuses an object."""
    with pytest.raises(ApiError) as caught:
        api.create(obj)
    assert caught.value.status == 403
    return caught.value.body


@pytest.mark.usefixtures("nodes")
def test_a_namespace_gets_no_more_than_its_quota(
    api: Api, quota: dict[str, Any], start_operator: StartOperator
) -> None:
    start_operator()
    warm_pool(api, 2)
    assert f"limited: {POOLS}=1" in refused(api, objects.pool("another"))
    claim_pod(api, "claim-0")
    claim_pod(api, "claim-1")
    assert f"limited: {CLAIMS}=2" in refused(api, objects.claim("claim-2"))
    # Two claimed sandboxes and one warm one are all the pods.
    pool_status(api, warm=1, claimed=2)
    assert "pods" in wait_for_pool_condition(api, "Warm", "False", "QuotaExceeded")

    api.delete("SandboxClaim", "claim-0")
    eventually(lambda: api.create(objects.claim("claim-2")), message="there is room for another")
    phase(api, "Bound", "claim-2")
