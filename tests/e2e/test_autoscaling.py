"""The HorizontalPodAutoscaler of docs/autoscaling.md, by a metric of the operator in Prometheus."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from localcluster import kindcluster
from localcluster.paths import REPOSITORY
from support import Api, eventually, externalmetrics, is_true, objects, prometheus
from support.deployed import DeployedOperator
from support.realnodes import pool
from support.sandboxes import phase, pool_status, wait_for_pool_condition
from support.survivors import Survivor

Object = dict[str, Any]

PAGE = (REPOSITORY / "docs" / "autoscaling.md").read_text()
METRIC = "claimed-sandboxes"
# One warm sandbox for every two that are claimed.
CLAIMS = 6
CEILING = 8
# The HPA controller looks every 15 seconds.
SCALED_SECONDS = 60.0


def block(language: str) -> str:
    """The only block of the page in a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture
def autoscaler(
    admin: Api, deployed: DeployedOperator, api: Api, namespace: str
) -> Iterator[Object]:
    """The page's HPA for the pool `pool`, with its metric."""
    replacements = {'"default"': f'"{namespace}"', '"python"': '"pool"'}
    expression = block("promql").strip()
    for there, here in replacements.items():
        assert there in expression
        expression = expression.replace(there, here)
    autoscaler = yaml.safe_load(block("yaml"))
    autoscaler["metadata"] = {"name": "pool"}
    autoscaler["spec"]["scaleTargetRef"]["name"] = "pool"
    # The page waits a minute before it scales down.
    autoscaler["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] = 0
    with (
        prometheus.running(admin, {}),
        externalmetrics.served(admin, {METRIC: expression}),
    ):
        yield autoscaler


def wanted(api: Api) -> int:
    """What the HPA has written to the pool."""
    return int(api.get("SandboxPool", "pool")["spec"]["replicas"])


def test_an_autoscaler_follows_the_claims_within_the_ceiling(
    api: Api, namespace: str, autoscaler: Object
) -> None:
    api.create(pool(replicas=1, maxSandboxes=CEILING))
    pool_status(api, warm=1, timeout=90)
    survivor = Survivor.claimed(api, "claim-0")
    api.create(autoscaler)
    others = [f"claim-{number}" for number in range(1, CLAIMS)]
    api.create_all(*(objects.claim(name) for name in others))
    for name in others:
        phase(api, "Bound", name, 60)

    eventually(
        lambda: wanted(api),
        until=lambda replicas: replicas == CLAIMS // 2,
        message="the HPA asks for a warm sandbox for every two claims",
        timeout=SCALED_SECONDS,
    )
    # It writes its own status after the pool.
    found = eventually(
        lambda: api.get("HorizontalPodAutoscaler", "pool"),
        until=lambda seen: is_true(seen, "AbleToScale") and is_true(seen, "ScalingActive"),
        message="the HPA is able to scale",
    )
    (metric,) = found["status"]["currentMetrics"]
    assert metric["external"]["metric"]["name"] == METRIC
    # The ceiling of all sandboxes leaves less than that, and the HPA goes on.
    said = wait_for_pool_condition(api, "Warm", "False", "ClampedByMaxSandboxes", timeout=60)
    assert f"spec.maxSandboxes ({CEILING})" in said
    pool_status(api, warm=CEILING - CLAIMS, claimed=CLAIMS, timeout=60)
    table = kindcluster.kubectl("-n", namespace, "get", "hpa", "pool")
    assert "SandboxPool/pool" in table

    for name in others:
        api.delete("SandboxClaim", name)
    eventually(
        lambda: wanted(api),
        until=lambda replicas: replicas == 1,
        message="the HPA goes back to one",
        timeout=SCALED_SECONDS,
    )
    pool_status(api, warm=1, claimed=1, timeout=60)
    survivor.check()
