"""Alerts on a real cluster: a real Prometheus scrapes the operator, and each cause is real.

The rules are the chart's, but they wait and look back for seconds instead of minutes. The alerts of
a slow start, a stale watch and throttled requests need what cannot be caused here: a week, an API
server that falls silent, and one that is overloaded. promtool makes those fire.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from demo.install import NAMESPACE
from sandboxpool.api.names import DEFAULT_RELEASE as LEASE
from support import Api, eventually, objects, rules
from support.deployed import DeployedOperator
from support.prometheus import JOB, Prometheus, running
from support.realnodes import GVISOR, pool, template
from support.sandboxes import phase, pool_status

# A condition of a pool may change once in some seconds, and a leader that died is waited for.
FIRES_SECONDS = 60.0
PRETENDER = "test-handler"
HIT_RATE_CLAIMS = 25


@pytest.fixture(scope="module")
def prometheus(admin: Api, deployed: DeployedOperator) -> Iterator[Prometheus]:
    with running(admin, hasty_rules()) as prometheus:
        yield prometheus


def hasty_rules() -> dict[str, str]:
    """The chart's rules with seconds for minutes."""
    return {
        file.name: re.sub(
            r"\[(5m|30m|1h)\]", "[20s]", re.sub(r"for: \d+m\b", "for: 3s", file.read_text())
        )
        for file in (rules.RECORDING, rules.ALERTS)
    }


def fires(prometheus: Prometheus, name: str, **labels: str) -> str:
    """Waits until an alert fires; returns its description."""
    (alert,) = eventually(
        lambda: prometheus.alerts(name, **labels),
        message=f"{name} fires",
        timeout=FIRES_SECONDS,
    )
    return str(alert["annotations"]["description"])


def resolves(prometheus: Prometheus, *names: str, **labels: str) -> None:
    """Waits until none of some alerts fires."""
    for name in names:
        eventually(
            lambda name=name: not prometheus.alerts(name, **labels),  # type: ignore[misc]
            message=f"{name} resolves",
            timeout=FIRES_SECONDS,
        )


def test_the_leader_alone_reports_pools(
    api: Api, namespace: str, deployed: DeployedOperator, prometheus: Prometheus
) -> None:
    """Rules need not tell replicas apart; else each pool would be counted twice."""
    api.create(pool(replicas=1))
    pool_status(api, warm=1, timeout=60)
    eventually(
        lambda: prometheus.targets_up() == len(deployed.pods()), message="each replica is scraped"
    )
    of_pool = f'sandboxpool_pods{{job="{JOB}", namespace="{namespace}", pool="pool", state="warm"}}'
    eventually(
        lambda: prometheus.query(of_pool),
        until=lambda found: [sample.value for sample in found] == [1.0],
        message="one series, of the leader",
    )
    (sample,) = prometheus.query(of_pool)
    assert sample.labels["pod"] == deployed.leader()["metadata"]["name"]


def test_a_missing_class_leaves_a_pool_dry_and_its_claims_waiting(
    api: Api, namespace: str, class_name: str, prometheus: Prometheus
) -> None:
    api.create_all(pool("pool", class_name, 1), objects.claim())
    of_pool = {"namespace": namespace, "pool": "pool"}
    assert "RuntimeClassNotFound" in fires(prometheus, "SandboxPoolNotReady", **of_pool)
    fires(prometheus, "SandboxPoolDry", **of_pool)
    fires(prometheus, "SandboxPoolClaimsWaiting", **of_pool)
    fires(prometheus, "SandboxPoolRefillFailing", **of_pool)

    api.create(objects.runtime_class(class_name, "runsc"))
    phase(api, "Bound", timeout=60)
    resolves(
        prometheus,
        "SandboxPoolNotReady",
        "SandboxPoolDry",
        "SandboxPoolClaimsWaiting",
        "SandboxPoolRefillFailing",
        **of_pool,
    )


def test_sandboxes_that_end_keep_a_pool_from_refilling(
    api: Api, namespace: str, prometheus: Prometheus
) -> None:
    ends = template()
    ends["spec"]["containers"][0]["command"] = ["false"]
    api.create(pool(pod=ends))
    fires(prometheus, "SandboxPoolRefillFailing", namespace=namespace, pool="pool")
    api.patch_spec("SandboxPool", "pool", template=template())
    pool_status(api, warm=1, timeout=90)
    resolves(prometheus, "SandboxPoolRefillFailing", namespace=namespace)


def test_a_quota_keeps_a_pool_from_refilling(
    api: Api, namespace: str, prometheus: Prometheus
) -> None:
    api.create(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "pods"},
            "spec": {"hard": {"count/pods": "1"}},
        }
    )
    api.create(pool(replicas=2))
    fires(prometheus, "SandboxPoolQuotaExceeded", namespace=namespace, pool="pool")
    assert not prometheus.alerts("SandboxPoolRefillFailing", namespace=namespace)
    api.delete("ResourceQuota", "pods")
    pool_status(api, warm=2, timeout=60)
    resolves(prometheus, "SandboxPoolQuotaExceeded", namespace=namespace)


def test_a_runtime_that_only_pretends_is_told(
    api: Api, namespace: str, class_name: str, prometheus: Prometheus
) -> None:
    api.create(objects.runtime_class(class_name, PRETENDER))
    api.create(pool("pool", class_name))
    said = fires(prometheus, "SandboxPoolIsolationNotProven", namespace=namespace, pool="pool")
    assert "IsolationNotProven" in said
    api.delete("SandboxPool", "pool")
    resolves(prometheus, "SandboxPoolIsolationNotProven", namespace=namespace)


def test_claims_that_fail_lower_the_hit_rate(
    api: Api, namespace: str, prometheus: Prometheus
) -> None:
    api.create(pool("dry", GVISOR, 0))
    # A rate begins with the second scrape of a series.
    api.create(objects.claim("first", "dry", onEmpty="Fail"))
    of_claims = f'sandboxpool_claims_total{{namespace="{namespace}"}}'
    eventually(lambda: prometheus.query(of_claims), message="claims are counted")
    for number in range(HIT_RATE_CLAIMS):
        api.create(objects.claim(f"claim-{number}", "dry", onEmpty="Fail"))
    fires(prometheus, "SandboxPoolHitRateLow", namespace=namespace, pool="dry")
    resolves(prometheus, "SandboxPoolHitRateLow", namespace=namespace)


def test_an_operator_that_does_not_run_or_does_not_lead_is_told(
    admin: Api, deployed: DeployedOperator, prometheus: Prometheus
) -> None:
    deployed.stop()
    try:
        fires(prometheus, "SandboxPoolOperatorDown")
        # Somebody else holds the Lease, and never renews it.
        held = {
            "holderIdentity": "somebody",
            "leaseDurationSeconds": 3600,
            "renewTime": datetime.now(UTC).isoformat(timespec="microseconds"),
        }
        admin.patch_spec("Lease", LEASE, NAMESPACE, **held)
        admin.scale("Deployment", deployed.deployment, 2, NAMESPACE)
        fires(prometheus, "SandboxPoolNoLeader")
        resolves(prometheus, "SandboxPoolOperatorDown")
    finally:
        admin.patch_spec("Lease", LEASE, NAMESPACE, holderIdentity="")
        deployed.start()
    resolves(prometheus, "SandboxPoolNoLeader")
