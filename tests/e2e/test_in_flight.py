"""Writes that are under way when the world changes, and answers that are lost.

The operator runs on this machine here, so that a proxy stands between it and the API server; it
has the rights of the chart's service account all the same.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml

from demo.install import NAMESPACE, RELEASE
from localcluster.images import OPERATOR_IMAGE
from sandboxpool.api import names
from support import Api, eventually, invariants, is_true, objects
from support.deployed import DeployedOperator
from support.faultproxy import FaultProxy, Where
from support.history import PodHistory
from support.operator_process import Operator
from support.realnodes import pool
from support.sandboxes import live_pods, phase, pool_status

from .conftest import OPERATOR

POD = r"/pods/[^/]+$"
CLAIM_STATUS = r"/sandboxclaims/claim/status$"
TOKEN_SECONDS = 3600


@pytest.fixture(scope="module")
def stopped(deployed: DeployedOperator) -> Iterator[DeployedOperator]:
    """No operator in the cluster."""
    deployed.stop()
    yield deployed
    deployed.start()


@pytest.fixture(scope="module")
def token(admin: Api) -> str:
    """A token of the chart's service account, as its pod would be given one."""
    path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{RELEASE}/token"
    kind = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
    request = {**kind, "spec": {"expirationSeconds": TOKEN_SECONDS}}
    return str(admin.raw("POST", path, request)["status"]["token"])


@pytest.fixture
def proxy(kubeconfig: Path, tmp_path: Path) -> Iterator[FaultProxy]:
    """A proxy to the API server that fails on request."""
    cluster = yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]
    ca_file = tmp_path / "ca.crt"
    ca_file.write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
    with FaultProxy(cluster["server"], ca_file) as running:
        yield running


@pytest.fixture(autouse=True)
def operator(
    stopped: DeployedOperator,
    proxy: FaultProxy,
    token: str,
    tmp_path: Path,
    api: Api,
    request: pytest.FixtureRequest,
) -> Iterator[Operator]:
    """The operator, behind the proxy, and a pool of two."""
    # The same probe image as in the cluster.
    env = {"SANDBOXPOOL_PROBE_IMAGE": OPERATOR_IMAGE}
    operator = Operator(proxy.kubeconfig(token), tmp_path, NAMESPACE, env)
    request.node.stash[OPERATOR] = operator
    operator.start()
    api.create(pool(replicas=2))
    pool_status(api, warm=2, timeout=60)
    yield operator
    operator.terminate()
    stopped.keep(operator.log.read_text())


@pytest.mark.parametrize("write", [POD, CLAIM_STATUS], ids=["the pod", "the claim's status"])
@pytest.mark.parametrize("where", get_args(Where))
def test_a_claim_deleted_while_it_is_being_bound_leaks_nothing(
    api: Api, proxy: FaultProxy, history: PodHistory, write: str, where: Where
) -> None:
    held = proxy.hold("PATCH", write, where=where)
    uid = api.create(objects.claim())["metadata"]["uid"]
    held.wait_reached()
    api.delete("SandboxClaim", "claim")
    eventually(lambda: api.find("SandboxClaim", "claim") is None, message="the claim is gone")
    held.release()
    eventually(lambda: proxy.requests("PATCH", write), message="the write has come through")

    def held_by() -> set[str]:
        return {
            state["metadata"]["uid"]
            for state in history.states()
            if state["metadata"]["labels"].get(names.LABEL_CLAIM_UID) == uid
        }

    eventually(held_by, message="a pod was the claim's")
    eventually(
        lambda: held_by() <= history.deleted(), message="the claim's pod is gone", timeout=60
    )
    eventually(
        lambda: [pod for pod in live_pods(api) if is_true(pod, "Ready")],
        until=lambda pods: len(pods) == 2,
        message="the stock has recovered",
        timeout=60,
    )
    pool_status(api, warm=2, claimed=0, stopping=0, timeout=60)
    assert len(held_by()) == 1
    assert len(history.created()) == 3
    invariants.check(api)


def test_a_lost_answer_to_a_pods_patch_binds_one_pod(
    api: Api, proxy: FaultProxy, history: PodHistory
) -> None:
    rule = proxy.lose_response("PATCH", POD)
    api.create(objects.claim())
    claim = phase(api, "Bound")
    assert rule.hits == 1
    pool_status(api, warm=2, claimed=1, timeout=60)
    held = {
        state["metadata"]["uid"]
        for state in history.states()
        if names.LABEL_CLAIM_UID in state["metadata"]["labels"]
    }
    assert held == {claim["status"]["podUID"]}
    assert len(history.created()) == 3
    invariants.check(api)
