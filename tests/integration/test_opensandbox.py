"""The bridge to OpenSandbox on a real API server, with the rights that the chart grants it.

OpenSandbox's server is played by the test: it posts a BatchSandbox as the server does and reads
what the server reads. Sandboxes are stand-ins on loopback addresses.
"""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fakekubelet import FakeNodes
from localcluster.controlplane import ControlPlane
from sandboxpool.api.opensandbox import LABEL_OPENSANDBOX
from sandboxpool.opensandbox import names
from support import Api, chart, condition, eventually, objects
from support.faultproxy import FaultProxy
from support.opensandbox.executor import REFUSES, FakeSandboxes, Manner, Reply
from support.opensandbox.kinds import ensure_opensandbox_crds
from support.operator_process import Operator
from support.rights import sent
from support.sandboxes import gvisor_class, pool_status

SYSTEM = "bridge-system"
BRIDGE = f"{chart.RELEASE}-opensandbox"
PAST = "2026-01-01T00:00:00.000001+00:00"

Object = dict[str, Any]


@dataclass
class OpenSandbox:
    """What OpenSandbox's server does on the API, and the processes under test."""

    api: Api
    proxy: FaultProxy
    sandboxes: FakeSandboxes
    bridge: Operator

    def __post_init__(self) -> None:
        self._before = len(self.sandboxes.requests())

    def asked(self) -> list[str]:
        """The paths of what sandboxes were asked in this test."""
        return [request.path for request in self.sandboxes.requests()[self._before :]]

    def open_pool(self, mode: str = "Executor", **spec: Any) -> Object:
        """Creates a warm gVisor pool that OpenSandbox may use, and waits for its Pool."""
        gvisor_class(self.api)
        body = objects.pool("pool", **{"replicas": 2, **spec})
        body["metadata"]["labels"] = {LABEL_OPENSANDBOX: mode}
        made = self.api.create(body)
        eventually(lambda: self.api.find("Pool", "pool") is not None, message="the Pool is there")
        return made

    def request(self, *, annotations: dict[str, str] | None = None, **spec: Any) -> str:
        """Posts a BatchSandbox; returns its name."""
        name = str(uuid.uuid4())
        command = ["/bin/sh", "-c", "exec /opt/opensandbox/bootstrap.sh tail -f /dev/null"]
        process = {"command": command, "env": [{"name": "OPENSANDBOX_ID", "value": name}]}
        self.api.create(
            {
                "apiVersion": names.API_VERSION,
                "kind": "BatchSandbox",
                "metadata": {"name": name, "annotations": annotations or {}},
                "spec": {
                    "replicas": 1,
                    "poolRef": "pool",
                    "taskTemplate": {"spec": {"process": process}},
                    **spec,
                },
            }
        )
        return name

    def get(self, name: str) -> Object:
        return self.api.get("BatchSandbox", name)

    def phase(self, name: str, wanted: str, timeout: float = 20.0) -> Object:
        """Waits for a phase; returns the object."""
        return eventually(
            partial(self.get, name),
            until=lambda seen: seen.get("status", {}).get("phase") == wanted,
            message=f"{name} is {wanted}",
            timeout=timeout,
        )

    def serve(self, **given: Any) -> Object:
        """Requests a sandbox and waits until it is running."""
        return self.phase(self.request(**given), "Succeed")

    def cause(self, name: str) -> tuple[str, str]:
        """Waits until a request has failed; returns reason and message."""
        failed = condition(self.phase(name, "Failed"), "PodFailed")
        assert failed is not None
        return failed["reason"], failed["message"]

    def gone(self, kind: str, name: str) -> None:
        eventually(
            lambda: self.api.find(kind, name) is None, message=f"{kind} {name} is gone", timeout=30
        )


def address_of(sandbox: Object) -> str:
    (endpoint,) = json.loads(sandbox["metadata"]["annotations"][names.ANNOTATION_ENDPOINTS])
    return str(endpoint)


@pytest.fixture(scope="module")
def loopback() -> Iterator[FakeSandboxes]:
    with FakeSandboxes() as running:
        yield running


@pytest.fixture
def system(admin: Api, namespace: str) -> Iterator[str]:
    """The bridge's own namespace; OpenSandbox's kinds are there, too."""
    ensure_opensandbox_crds(admin)
    name = f"{namespace}-bridge"
    admin.create(objects.namespace(name))
    yield name
    admin.delete("Namespace", name)


def bridge_process(
    proxy: FaultProxy, token: str, folder: Path, system: str, env: dict[str, str]
) -> Operator:
    """The bridge; its lease is short, so that a killed one is soon followed by another."""
    settings = {"SANDBOXPOOL_LEASE": "3/2/1", **env}
    kubeconfig = proxy.kubeconfig(token)
    return Operator(
        kubeconfig, folder, system, settings, "bridge", module="sandboxpool.opensandbox"
    )


@pytest.fixture
def bridge(
    control_plane: ControlPlane, proxy: FaultProxy, system: str, namespace: str, tmp_path: Path
) -> Iterator[Operator]:
    """The bridge of the test's namespace, which is not started yet."""
    env = {"SANDBOXPOOL_OPENSANDBOX_NAMESPACES": namespace}
    made = bridge_process(proxy, control_plane.admin_token, tmp_path, system, env)
    yield made
    made.kill()


@contextmanager
def playing(
    api: Api, proxy: FaultProxy, nodes: FakeNodes, loopback: FakeSandboxes, bridge: Operator
) -> Iterator[OpenSandbox]:
    """Starts the bridge, and leaves no BatchSandbox."""
    nodes.behaviour.addresses_from(loopback.network)
    loopback.behave(Manner())
    bridge.start()
    try:
        yield OpenSandbox(api, proxy, loopback, bridge)
    finally:
        bridge.kill()
        for sandbox in api.list("BatchSandbox"):
            api.delete("BatchSandbox", sandbox["metadata"]["name"])


@pytest.fixture
def osb(
    bridge: Operator,
    proxy: FaultProxy,
    operator: Operator,
    nodes: FakeNodes,
    api: Api,
    loopback: FakeSandboxes,
) -> Iterator[OpenSandbox]:
    with playing(api, proxy, nodes, loopback, bridge) as running:
        yield running


def test_a_request_gets_a_warm_sandbox_and_learns_its_runtime(osb: OpenSandbox) -> None:
    osb.open_pool()
    pool_status(osb.api, warm=2)
    warm = {pod["metadata"]["name"] for pod in osb.api.list("Pod")}
    served = osb.serve()
    name = served["metadata"]["name"]

    claim = osb.api.get("SandboxClaim", name)
    assert claim["status"]["podName"] in warm
    assert claim["metadata"]["ownerReferences"][0]["uid"] == served["metadata"]["uid"]
    assert address_of(served) == claim["status"]["podIP"]
    annotations = served["metadata"]["annotations"]
    assert annotations[names.ANNOTATION_RUNTIME_CLASS] == "gvisor"
    assert annotations[names.ANNOTATION_RUNTIME_HANDLER] == "runsc"
    assert json.loads(annotations[names.ANNOTATION_ALLOC_STATUS])["pods"] == [
        claim["status"]["podName"]
    ]
    status = served["status"]
    assert (status["ready"], status["allocated"], status["taskRunning"]) == (1, 1, 1)
    (task,) = osb.sandboxes.requests(claim["status"]["podIP"], "/setTasks")
    assert task.body[0]["name"] == f"{name}-0"
    assert task.body[0]["process"]["env"] == [{"name": "OPENSANDBOX_ID", "value": name}]

    osb.api.delete("BatchSandbox", name)
    osb.gone("SandboxClaim", name)
    osb.gone("Pod", claim["status"]["podName"])


def test_the_pool_is_mirrored_without_capacity_and_follows(osb: OpenSandbox) -> None:
    pool = osb.open_pool()
    mirror = eventually(
        lambda: osb.api.get("Pool", "pool"),
        until=lambda seen: seen.get("status", {}).get("available") == 2,
        message="the numbers are there",
    )
    assert "template" not in mirror["spec"]
    assert set(mirror["spec"]["capacitySpec"].values()) == {0}
    assert mirror["metadata"]["ownerReferences"][0]["uid"] == pool["metadata"]["uid"]
    running = osb.serve()
    eventually(
        lambda: osb.api.get("Pool", "pool")["status"]["allocated"],
        until=lambda allocated: allocated == 1,
    )
    osb.api.patch("SandboxPool", "pool", {"metadata": {"labels": {LABEL_OPENSANDBOX: None}}})
    osb.gone("Pool", "pool")
    assert osb.get(running["metadata"]["name"])["status"]["phase"] == "Succeed"


def test_a_pool_of_somebody_else_is_left_alone_and_said(osb: OpenSandbox) -> None:
    capacity = dict.fromkeys(("bufferMin", "bufferMax", "poolMin", "poolMax"), 1)
    osb.api.create(
        {
            "apiVersion": names.API_VERSION,
            "kind": "Pool",
            "metadata": {"name": "pool"},
            "spec": {"capacitySpec": capacity},
        }
    )
    pool = osb.open_pool(replicas=0)
    eventually(lambda: osb.api.events_for(pool, "NameTaken"), message="it is said")
    assert osb.api.get("Pool", "pool")["spec"]["capacitySpec"] == capacity


def test_an_asserted_class_that_the_pool_has_not_fails_with_the_cause(osb: OpenSandbox) -> None:
    osb.open_pool()
    asserted = {names.ANNOTATION_RUNTIME_CLASS: "kata-qemu"}
    reason, message = osb.cause(osb.request(annotations=asserted))
    assert reason == "RuntimeClassMismatch"
    assert "kata-qemu" in message
    assert osb.asked() == []


def test_a_missing_class_is_the_cause_and_its_creation_the_cure(osb: OpenSandbox) -> None:
    body = objects.pool("pool", replicas=1)
    body["metadata"]["labels"] = {LABEL_OPENSANDBOX: "Executor"}
    osb.api.create(body)
    eventually(lambda: osb.api.find("Pool", "pool") is not None)
    failed = osb.request()
    reason, message = osb.cause(failed)
    assert reason == "RuntimeClassNotFound"
    assert "SandboxPool 'pool' cannot serve" in message
    osb.gone("SandboxClaim", failed)
    gvisor_class(osb.api)
    pool_status(osb.api, warm=1)
    osb.serve()


def test_a_full_pool_is_a_lack_of_capacity_and_a_release_ends_it(osb: OpenSandbox) -> None:
    osb.open_pool(replicas=1, maxSandboxes=1)
    first = osb.serve()["metadata"]["name"]
    second = osb.request()
    waiting = osb.phase(second, "Pending")
    pending = condition(waiting, "PoolAllocationPending")
    assert pending is not None
    assert pending["status"] == "True"
    osb.api.delete("BatchSandbox", first)
    served = osb.phase(second, "Succeed")
    assert condition(served, "PoolAllocationPending") is None


def test_expiry_deletes_all_and_a_renewal_in_time_wins(osb: OpenSandbox) -> None:
    osb.open_pool()
    kept = osb.serve(expireTime="2030-01-01T00:00:00+00:00")["metadata"]["name"]
    ended = osb.serve(expireTime="2030-01-01T00:00:00+00:00")["metadata"]["name"]
    pod = osb.api.get("SandboxClaim", ended)["status"]["podName"]
    osb.api.patch("BatchSandbox", ended, {"spec": {"expireTime": PAST}})
    for kind, name in (("BatchSandbox", ended), ("SandboxClaim", ended), ("Pod", pod)):
        osb.gone(kind, name)
    assert osb.get(kept)["status"]["phase"] == "Succeed"


def test_a_lost_sandbox_takes_its_address_with_it(osb: OpenSandbox) -> None:
    osb.open_pool()
    name = osb.serve()["metadata"]["name"]
    osb.api.delete("Pod", osb.api.get("SandboxClaim", name)["status"]["podName"])
    osb.cause(name)
    lost = osb.get(name)
    assert lost["metadata"]["annotations"][names.ANNOTATION_ENDPOINTS] == "[]"
    assert lost["status"]["ready"] == 0


def test_the_outcome_of_a_request_is_counted_once_and_a_later_loss_apart(
    osb: OpenSandbox, namespace: str
) -> None:
    osb.open_pool(replicas=1, maxSandboxes=1)
    of = {"namespace": namespace, "pool": "pool"}

    def outcomes() -> dict[str, float]:
        return {
            dict(labels)["outcome"]: value
            for (name, labels), value in osb.bridge.metrics().items()
            if name == "sandboxpool_opensandbox_requests_total"
            and of.items() <= dict(labels).items()
        }

    mismatched = osb.request(annotations={names.ANNOTATION_RUNTIME_CLASS: "kata-qemu"})
    osb.cause(mismatched)
    served = osb.serve()["metadata"]["name"]
    waiting = osb.request()
    osb.phase(waiting, "Pending")
    osb.api.delete("BatchSandbox", waiting)
    wanted = {"RuntimeClassMismatch": 1, "Served": 1, "Withdrawn": 1}
    eventually(outcomes, until=lambda seen: seen == wanted, message="each is counted")

    osb.api.delete("Pod", osb.api.get("SandboxClaim", served)["status"]["podName"])
    reason, _ = osb.cause(served)
    assert osb.bridge.metric("sandboxpool_opensandbox_lost_total", **of, reason=reason) == 1
    for name in (mismatched, served):
        osb.api.delete("BatchSandbox", name)
        osb.gone("BatchSandbox", name)
    eventually(
        lambda: osb.bridge.metrics().get(
            ("sandboxpool_opensandbox_waiting", frozenset(of.items())), 0
        ),
        until=lambda number: number == 0,
    )
    assert outcomes() == wanted, "an answered request is not withdrawn"


def test_a_sandbox_without_an_executor_is_named_with_its_port(osb: OpenSandbox) -> None:
    osb.sandboxes.behave(Manner(executor=Reply(status=404, text="no such page")))
    osb.open_pool()
    reason, message = osb.cause(osb.request())
    assert reason == "TaskNotDelivered"
    assert "port 5758" in message
    assert "404: no such page" in message


def test_a_task_that_ends_at_once_fails_the_request(osb: OpenSandbox) -> None:
    osb.sandboxes.behave(Manner(exit_code=127, message="bootstrap.sh: not found"))
    osb.open_pool()
    failed = osb.request()
    reason, message = osb.cause(failed)
    assert reason == "TaskFailed"
    assert "exit code 127" in message
    assert osb.get(failed)["status"]["taskFailed"] == 1
    osb.gone("SandboxClaim", failed)


def test_a_prestarted_pool_is_never_connected_to(osb: OpenSandbox) -> None:
    osb.sandboxes.behave(Manner(executor=REFUSES, execd=REFUSES))
    osb.open_pool("Prestarted")
    served = osb.serve()
    assert served["status"]["taskRunning"] == 0
    assert osb.asked() == []
    env = [{"name": "TOKEN", "value": "secret"}]
    process = {"command": ["tail", "-f", "/dev/null"], "env": env}
    reason, message = osb.cause(osb.request(taskTemplate={"spec": {"process": process}}))
    assert reason == "TaskNotSupported"
    assert "TOKEN" in message
    assert "secret" not in message


def test_a_pause_is_answered_and_the_sandbox_runs_on(osb: OpenSandbox) -> None:
    osb.open_pool()
    name = osb.serve()["metadata"]["name"]
    osb.api.patch("BatchSandbox", name, {"spec": {"pause": True}})
    paused = eventually(
        partial(osb.get, name), until=lambda seen: condition(seen, "PauseFailed") is not None
    )
    assert paused["status"]["phase"] == "Succeed"
    assert paused["status"]["taskRunning"] == 1


def test_what_others_serve_is_not_touched(osb: OpenSandbox) -> None:
    osb.open_pool()
    template = {"spec": {"containers": [{"name": "main", "image": "image"}]}}
    foreign = osb.request(template=template, expireTime=PAST)
    elsewhere = osb.request(poolRef="other")
    osb.serve()
    for name in (foreign, elsewhere):
        seen = osb.get(name)
        assert "status" not in seen
        assert osb.api.find("SandboxClaim", name) is None


def test_a_crash_at_any_moment_loses_and_doubles_nothing(osb: OpenSandbox) -> None:
    osb.open_pool(replicas=8)
    pool_status(osb.api, warm=8)
    requested = []
    for _ in range(3):
        requested += [osb.request() for _ in range(4)]
        osb.bridge.kill()
        osb.bridge.start()
    pods = {}
    for name in requested:
        served = osb.phase(name, "Succeed", timeout=60)
        pods[name] = osb.api.get("SandboxClaim", name)["status"]["podName"]
        assert address_of(served) == osb.api.get("Pod", pods[name])["status"]["podIP"]
        assert osb.sandboxes.started(address_of(served)).count(f"{name}-0") == 1
    assert len(set(pods.values())) == len(requested)


def test_a_lost_answer_is_looked_up(osb: OpenSandbox) -> None:
    osb.open_pool()
    for method, pattern in (
        ("POST", "/sandboxclaims$"),
        ("PATCH", r"/batchsandboxes/[^/]+$"),
        ("PATCH", r"/batchsandboxes/[^/]+/status$"),
    ):
        osb.proxy.lose_response(method, pattern)
        served = osb.serve()
        osb.api.delete("BatchSandbox", served["metadata"]["name"])


def test_what_is_sent_is_granted_and_what_is_granted_is_sent(
    control_plane: ControlPlane,
    proxy: FaultProxy,
    operator: Operator,
    nodes: FakeNodes,
    api: Api,
    admin: Api,
    namespace: str,
    loopback: FakeSandboxes,
    tmp_path: Path,
) -> None:
    """With the rights and settings that the chart gives it, the bridge does all that it can do."""
    ensure_opensandbox_crds(admin)
    # The operator under test is not the chart's, whose pods alone the policies let pass.
    values = ("opensandbox.enabled=true", "admission.enabled=false")
    served = f"opensandbox.namespaces={{{namespace}}}"
    request = control_plane.request
    with chart.installed(control_plane, tmp_path, SYSTEM, *values, served):
        account = f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/{BRIDGE}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        token = request("POST", account, body)["status"]["token"]
        deployment = request("GET", f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/{BRIDGE}")
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        env = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
        for variable in ("LISTEN", "HEALTH_LISTEN", "LEASE"):
            del env[f"SANDBOXPOOL_{variable}"]
        bridge = bridge_process(proxy, token, tmp_path, SYSTEM, env)
        with playing(api, proxy, nodes, loopback, bridge) as osb:
            do_all(osb)
        rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces"
        paths = (f"{rbac}/{SYSTEM}/roles/{BRIDGE}", f"{rbac}/{namespace}/roles/{BRIDGE}-served")
        granted = {right for path in paths for right in chart.granted(request("GET", path))}
    admin.delete("Namespace", SYSTEM)
    assert [seen for seen in proxy.requests() if seen.status == 403] == []
    did = {s for seen in proxy.requests() if (s := sent(seen)) is not None}
    assert {s for s in did if not any(s.is_covered_by(right) for right in granted)} == set()
    unused = {right for right in granted if not any(s.is_covered_by(right) for s in did)}
    assert {str(right) for right in unused} == set()


def do_all(osb: OpenSandbox) -> None:
    """All that the bridge does, with a standby that takes over."""
    osb.open_pool(replicas=1)
    # The answer to the create is lost, and the watch does not show what was created.
    blind = osb.proxy.stall_watches("/sandboxclaims")
    osb.proxy.lose_response("POST", "/sandboxclaims$")
    name = osb.request()
    eventually(lambda: bool(osb.proxy.requests("GET", f"/sandboxclaims/{name}$")))
    blind.release()
    osb.phase(name, "Succeed")
    second = replace(osb.bridge, name="second")
    second.start()
    try:
        eventually(lambda: bool(osb.proxy.requests("GET", r"/leases\?.*watch=")))
        assert osb.bridge.terminate() == 0
        osb.api.patch("BatchSandbox", name, {"spec": {"expireTime": PAST}})
        osb.gone("BatchSandbox", name)
        # What the garbage collector leaves, the bridge deletes.
        orphan = osb.serve()["metadata"]["name"]
        osb.api.delete("BatchSandbox", orphan, propagationPolicy="Orphan")
        osb.gone("SandboxClaim", orphan)
        osb.api.patch("SandboxPool", "pool", {"metadata": {"labels": {LABEL_OPENSANDBOX: "on"}}})
        osb.gone("Pool", "pool")
        pool = osb.api.get("SandboxPool", "pool")
        eventually(lambda: osb.api.events_for(pool, "OpenSandboxLabelInvalid"))
    finally:
        second.kill()


def test_a_missing_crd_is_named_by_the_readiness_probe(bridge: Operator, proxy: FaultProxy) -> None:
    proxy.refuse("GET", r"/apis/sandbox\.opensandbox\.io/", 404, times=None)
    bridge.start(ready=False)
    named = "batchsandboxes.sandbox.opensandbox.io (its CustomResourceDefinition is not installed)"
    eventually(lambda: named in bridge.readiness(), message="the CRD is named", timeout=60)


def test_an_exclusive_bridge_answers_requests_without_a_pool(
    bridge: Operator, proxy: FaultProxy, nodes: FakeNodes, api: Api, loopback: FakeSandboxes
) -> None:
    bridge.env["SANDBOXPOOL_OPENSANDBOX_EXCLUSIVE"] = "true"
    with playing(api, proxy, nodes, loopback, bridge) as osb:
        reason, message = osb.cause(osb.request(poolRef="other"))
        assert reason == "PoolRefRequired"
        assert LABEL_OPENSANDBOX in message
