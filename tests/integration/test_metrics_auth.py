"""Metrics for those only whom a real API server knows and lets read them."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from support import Api
from support.faultproxy import FaultProxy
from support.operator_process import Operator, StartOperator

RBAC = "/apis/rbac.authorization.k8s.io/v1"
ENVIRONMENT = {"SANDBOXPOOL_METRICS_AUTH": "true"}


def token_of(admin: Api, namespace: str, account: str) -> str:
    """A fresh token of a fresh service account."""
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    admin.raw("POST", path, {"metadata": {"name": account}})
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    return str(admin.raw("POST", f"{path}/{account}/token", body)["status"]["token"])


@pytest.fixture
def reader(admin: Api, namespace: str) -> Iterator[str]:
    """The token of an account that may read metrics."""
    name = f"{namespace}-metrics-reader"
    rule = {"nonResourceURLs": ["/metrics"], "verbs": ["get"]}
    admin.raw("POST", f"{RBAC}/clusterroles", {"metadata": {"name": name}, "rules": [rule]})
    binding = {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": namespace}],
    }
    admin.raw("POST", f"{RBAC}/clusterrolebindings", binding)
    yield token_of(admin, namespace, "reader")
    admin.raw("DELETE", f"{RBAC}/clusterrolebindings/{name}")
    admin.raw("DELETE", f"{RBAC}/clusterroles/{name}")


def scrape(operator: Operator, token: str | None) -> int:
    """The status of a scrape with this token."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{operator.url}/metrics", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=15) as answer:
            assert b"sandboxpool_leader" in answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_the_api_server_decides_who_may_scrape_a_leader_and_a_standby(
    start_operator: StartOperator, admin: Api, namespace: str, reader: str
) -> None:
    stranger = token_of(admin, namespace, "stranger")
    for name in ("first", "second"):
        operator = start_operator(name=name, env=ENVIRONMENT)
        assert operator.healthy(), "probes need no token"
        assert scrape(operator, None) == 401
        assert scrape(operator, "made-up") == 401
        assert scrape(operator, stranger) == 403
        assert scrape(operator, reader) == 200


def test_without_an_api_server_nobody_new_may_scrape(
    start_operator: StartOperator, proxy: FaultProxy, admin: Api, namespace: str, reader: str
) -> None:
    operator = start_operator(through=proxy, env=ENVIRONMENT)
    assert scrape(operator, reader) == 200
    stranger = token_of(admin, namespace, "stranger")
    proxy.lose_request("POST", r"/tokenreviews", times=None)
    assert scrape(operator, stranger) == 503
    assert scrape(operator, reader) == 200, "what it said a moment ago still counts"
