"""Clusters of other kinds: IPv6 only, with Windows nodes, and those that lack what is needed."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fakekubelet import FakeNode, FakeNodes
from localcluster.controlplane import ControlPlane
from support import Api, consistently, eventually, objects
from support.controllers import Controllers
from support.crds import apply_crds
from support.faultproxy import FaultProxy
from support.operator_process import Operator, StartOperator
from support.sandboxes import (
    gvisor_class,
    phase,
    pool_status,
    wait_for_runtime_condition,
    warm_pool,
)

SYSTEM = "sandboxpool-system"
REFUSED_SECONDS = 60.0


# --- IPv6 only -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ipv6_plane() -> Iterator[ControlPlane]:
    """A cluster whose API server is on ::1 and nowhere else."""
    with ControlPlane(address="::1") as plane:
        with Api(plane.kubeconfig) as api:
            apply_crds(api)
            api.create(objects.namespace(SYSTEM))
        yield plane


def free_port() -> int:
    with socket.socket(socket.AF_INET6) as listener:
        listener.bind(("::1", 0))
        return int(listener.getsockname()[1])


def test_on_a_cluster_of_ipv6_only_it_is_probed_and_hands_sandboxes_out(
    ipv6_plane: ControlPlane, tmp_path: Path
) -> None:
    assert ipv6_plane.url.startswith("https://[::1]:")
    port = free_port()
    # As the chart says it: a port, and no address.
    env = {
        "SANDBOXPOOL_PROBE_IMAGE": objects.PROBE_IMAGE,
        "SANDBOXPOOL_LISTEN": f":{free_port()}",
        "SANDBOXPOOL_HEALTH_LISTEN": f":{port}",
    }
    operator = Operator(ipv6_plane.kubeconfig, tmp_path, SYSTEM, env)
    with (
        Controllers(ipv6_plane.kubeconfig),
        FakeNodes(ipv6_plane.kubeconfig, retry_seconds=0.3) as nodes,
        Api(ipv6_plane.kubeconfig) as admin,
    ):
        nodes.add(FakeNode("gvisor-0", {"runc", "runsc"}))
        admin.create(objects.namespace("tenant"))
        api = admin.within("tenant")
        try:
            operator.start(ready=False)
            for address in ("[::1]", "127.0.0.1"):
                eventually(
                    partial(get, f"http://{address}:{port}/readyz"),
                    until=lambda status: status == 200,
                    message=f"it is ready at {address}",
                    timeout=60,
                )
            warm_pool(api, replicas=1, isolationProof="PerNode")
            api.create(objects.claim())
            phase(api, "Bound")
        finally:
            operator.kill()


def get(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except OSError:
        return 0


# --- Windows nodes -------------------------------------------------------------------------------


def test_windows_nodes_are_neither_counted_nor_probed_nor_used(
    api: Api, admin: Api, operator: Operator, nodes: FakeNodes
) -> None:
    nodes.add(FakeNode("windows-0", None, labels={"kubernetes.io/os": "windows"}))
    nodes.remove("gvisor-1", "gvisor-2", "plain-0", "plain-1")
    gvisor_class(api)
    # One node would hold ten of them.
    template = objects.large_template()
    api.create(objects.pool(replicas=12, template=template, isolationProof="PerNode"))
    pool = pool_status(api, warm=10, timeout=40)
    assert pool["status"]["runtime"]["nodes"]["eligible"] == 1
    assert (
        wait_for_runtime_condition(api, "Healthy", "True", "AsExpected")["nodes"]["eligible"] == 1
    )

    def is_unused() -> bool:
        pods = [*api.list("Pod"), *admin.list("Pod", operator.namespace)]
        return all(pod["spec"].get("nodeName") != "windows-0" for pod in pods)

    consistently(is_unused, message="nothing is on the Windows node", seconds=2)


# --- What is needed ------------------------------------------------------------------------------


def refusal(operator: Operator) -> str:
    """The last words of an operator that does not start: one line, and no traceback."""
    eventually(lambda: not operator.running, message="it has ended", timeout=REFUSED_SECONDS)
    assert operator.terminate() == 2
    lines = operator.log.read_text().splitlines()
    (line,) = [line for line in lines if "cannot start" in line or line.startswith("sandboxpool:")]
    assert line == lines[-1]
    assert "Traceback" not in operator.log.read_text()
    return line


def test_without_a_probe_image_it_does_not_start(start_operator: StartOperator) -> None:
    said = refusal(start_operator(env={"SANDBOXPOOL_PROBE_IMAGE": ""}, ready=False))
    assert "SANDBOXPOOL_PROBE_IMAGE" in said
    assert "probe.image" in said


def test_without_its_namespace_it_does_not_start(start_operator: StartOperator) -> None:
    said = refusal(start_operator(env={"SANDBOXPOOL_NAMESPACE": "nowhere"}, ready=False))
    assert "the namespace 'nowhere' does not exist" in said


def test_where_its_port_is_taken_it_does_not_start(start_operator: StartOperator) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        said = refusal(start_operator(env={"SANDBOXPOOL_LISTEN": taken}, ready=False))
    assert "SANDBOXPOOL_LISTEN" in said


def test_on_a_cluster_that_is_too_old_it_does_not_start(
    start_operator: StartOperator, proxy: FaultProxy
) -> None:
    old = {"major": "1", "minor": "29+", "gitVersion": "v1.29.3-eks-1"}
    proxy.refuse("GET", r"^/version$", 200, None, body=old)
    said = refusal(start_operator(through=proxy, ready=False))
    assert "v1.29.3-eks-1" in said
    assert "1.30 or newer" in said


def test_while_the_api_server_does_not_respond_it_waits_and_reports_it(
    start_operator: StartOperator, proxy: FaultProxy
) -> None:
    refused = proxy.refuse("GET", r"^/version$", 500, 2)
    operator = start_operator(through=proxy)
    assert refused.hits == 2
    assert "retried in" in operator.log.read_text()


@pytest.fixture(scope="module")
def bare_plane() -> Iterator[ControlPlane]:
    """A cluster without our CRDs, and with a user who may do nothing."""
    with ControlPlane(users={"nobody": []}) as plane:
        with Api(plane.kubeconfig) as api:
            api.create(objects.namespace(SYSTEM))
        yield plane


def start_on(kubeconfig: Path, folder: Path) -> Operator:
    env = {"SANDBOXPOOL_PROBE_IMAGE": objects.PROBE_IMAGE}
    operator = Operator(kubeconfig, folder, SYSTEM, env)
    operator.start(ready=False)
    return operator


def test_without_crds_or_rights_it_does_not_start(bare_plane: ControlPlane, tmp_path: Path) -> None:
    """In the order in which they are put right."""
    said = refusal(start_on(bare_plane.kubeconfig, tmp_path))
    assert "does not serve sandboxpools of sandboxpool.io/v1alpha1" in said
    assert "kubectl apply" in said
    with Api(bare_plane.kubeconfig) as api:
        apply_crds(api)
        crd = api.get("CustomResourceDefinition", "sandboxclaims.sandboxpool.io")
        schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        of_status = schema["properties"]["status"]["properties"]
        addresses = of_status.pop("podIPs")
        crd = api.replace(crd)
        (tmp_path / "old").mkdir()
        said = refusal(start_on(bare_plane.kubeconfig, tmp_path / "old"))
        assert "sandboxclaims.sandboxpool.io is older than the operator" in said
        assert "it has no status.podIPs;" in said
        schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        schema["properties"]["status"]["properties"]["podIPs"] = addresses
        api.replace(crd)
    (tmp_path / "nobody").mkdir()
    said = refusal(start_on(bare_plane.kubeconfig_for("nobody"), tmp_path / "nobody"))
    assert "no permission to get nodes, list nodes" in said, said
    assert "rbac.create" in said
