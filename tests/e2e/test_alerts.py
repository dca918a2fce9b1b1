"""Alerts on a real cluster: a real Prometheus scrapes the operator, and each cause is real."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support import Api, eventually
from support.deployed import DeployedOperator
from support.prometheus import JOB, Prometheus, running
from support.realnodes import pool
from support.sandboxes import pool_status


@pytest.fixture(scope="module")
def prometheus(admin: Api, deployed: DeployedOperator) -> Iterator[Prometheus]:
    with running(admin, {}) as prometheus:
        yield prometheus


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
