"""The harness itself: fake nodes behave like nodes, the proxy fails as it was told to."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from fakekubelet import Access, Client, ContainerRun, Exit, FakeNode, FakeNodes, texts
from localcluster.controlplane import ControlPlane
from sandboxpool.runtimes.probe import NODES_KERNEL, OWN_KERNEL
from support import Api, ApiError, condition, consistently, eventually, invariants, is_true, objects
from support.controllers import Controllers
from support.faultproxy import FaultProxy
from support.operator_process import StartOperator

FAILED_SANDBOX = "FailedCreatePodSandBox"


def start(api: Api, name: str, **fields: Any) -> dict[str, Any]:
    return api.create(objects.pod(name, **fields))


def ready(api: Api, name: str) -> dict[str, Any]:
    def attempt() -> dict[str, Any] | None:
        pod = api.get("Pod", name)
        return pod if is_true(pod, "Ready") else None

    return eventually(attempt, message=f"pod {name} is Ready") or {}


def waiting_reason(pod: dict[str, Any]) -> str | None:
    statuses = pod["status"].get("containerStatuses") or [{}]
    reason = statuses[0].get("state", {}).get("waiting", {}).get("reason")
    return reason if reason is None else str(reason)


# Nodes.


def test_nodes_say_which_handlers_they_have(nodes: FakeNodes, api: Api) -> None:
    def handlers(name: str) -> list[str] | None:
        listed = api.get("Node", name)["status"].get("runtimeHandlers")
        return None if listed is None else [entry["name"] for entry in listed]

    assert handlers("gvisor-0") == ["", "runc", "runsc"]
    assert handlers("plain-0") == ["", "runc"]

    nodes.set_handlers("plain-0", {"runc", "kata-qemu"})
    assert handlers("plain-0") == ["", "kata-qemu", "runc"]

    nodes.set_handlers("plain-0", None)
    assert handlers("plain-0") is None

    nodes.add(FakeNode("old", handlers=None))
    assert handlers("old") is None


def test_nodes_are_schedulable_from_the_start(nodes: FakeNodes, api: Api) -> None:
    node = api.get("Node", "gvisor-0")
    assert is_true(node, "Ready")
    assert not node["spec"].get("taints")
    assert node["metadata"]["labels"]["kubernetes.io/hostname"] == "gvisor-0"
    assert node["status"]["allocatable"]["pods"] == "1k"  # 1000, as the API writes it


def test_nodes_change_at_run_time(nodes: FakeNodes, api: Api) -> None:
    def node() -> dict[str, Any]:
        return api.get("Node", "gvisor-0")

    def taints() -> set[str]:
        return {taint["key"] for taint in node()["spec"].get("taints", [])}

    nodes.cordon("gvisor-0")
    assert node()["spec"]["unschedulable"] is True
    nodes.set_taints("gvisor-0", [{"key": "dedicated", "value": "x", "effect": "NoSchedule"}])
    assert taints() == {"dedicated", "node.kubernetes.io/unschedulable"}
    nodes.cordon("gvisor-0", on=False)
    nodes.set_taints("gvisor-0", [])
    assert taints() == set()

    nodes.set_ready("gvisor-0", "False")
    assert condition(node(), "Ready")["status"] == "False"  # type: ignore[index]
    assert taints() == {"node.kubernetes.io/not-ready"}
    nodes.set_ready("gvisor-0", "True")
    assert taints() == set()

    nodes.set_labels("gvisor-0", {"zone": "a", "kubernetes.io/hostname": "other"})
    assert node()["metadata"]["labels"]["kubernetes.io/hostname"] == "other"
    nodes.set_labels("gvisor-0", {})
    assert "zone" not in node()["metadata"]["labels"]
    assert node()["metadata"]["labels"]["kubernetes.io/hostname"] == "gvisor-0"

    before = node()["status"]["nodeInfo"]["bootID"]
    assert nodes.reboot("gvisor-0") == node()["status"]["nodeInfo"]["bootID"] != before

    uid = node()["metadata"]["uid"]
    nodes.upgrade("gvisor-0", runtime="containerd://2.2.0", kubelet="v1.37.0")
    info = node()["status"]["nodeInfo"]
    assert info["containerRuntimeVersion"] == "containerd://2.2.0"
    assert info["kubeletVersion"] == "v1.37.0"

    again = nodes["gvisor-0"]
    nodes.remove("gvisor-0")
    assert api.find("Node", "gvisor-0") is None
    nodes.add(again)
    assert node()["metadata"]["uid"] != uid


# Pods.


def test_a_pod_whose_handler_is_served_becomes_ready(nodes: FakeNodes, api: Api) -> None:
    api.create(objects.runtime_class("gvisor", "runsc"))
    writes = nodes.writes
    start(api, "p", runtime_class="gvisor", node="gvisor-1")

    pod = ready(api, "p")

    assert pod["status"]["phase"] == "Running"
    assert pod["status"]["podIP"] == pod["status"]["podIPs"][0]["ip"]
    assert {c["type"] for c in pod["status"]["conditions"] if c["status"] == "True"} == {
        "PodScheduled",
        "PodReadyToStartContainers",
        "Initialized",
        "ContainersReady",
        "Ready",
    }
    assert pod["status"]["containerStatuses"][0]["ready"] is True
    assert pod["status"]["qosClass"] == "BestEffort"
    api.delete("Pod", "p")
    eventually(lambda: api.find("Pod", "p") is None, message="the pod is gone")
    assert nodes.writes - writes == 2


def test_a_pod_whose_handler_is_not_served_hangs_with_the_exact_event(
    nodes: FakeNodes, api: Api
) -> None:
    api.create(objects.runtime_class("gvisor", "runsc"))
    pod = start(api, "p", runtime_class="gvisor", node="plain-0")

    event = eventually(lambda: api.events_for(pod, FAILED_SANDBOX), message="an event")[0]

    assert re.fullmatch(
        r"Failed to create pod sandbox: rpc error: code = Unknown desc = unable to get OCI runtime "
        r'for sandbox "[0-9a-f]{64}": no runtime for "runsc" is configured',
        event["message"],
    )
    assert event["type"] == "Warning"
    assert event["source"] == {"component": "kubelet", "host": "plain-0"}
    pod = api.get("Pod", "p")
    assert pod["status"]["phase"] == "Pending"
    assert pod["status"]["containerStatuses"][0]["state"] == {
        "waiting": {"reason": "ContainerCreating"}
    }
    assert condition(pod, "PodReadyToStartContainers")["status"] == "False"  # type: ignore[index]
    assert is_true(pod, "Initialized")

    # Each try says it with another sandbox id: another Event, and in the end they are folded.
    eventually(lambda: len(api.events_for(pod, FAILED_SANDBOX)) > 1, message="a second event")
    eventually(
        lambda: any(
            event["message"].startswith("(combined from similar events): ")
            and event["count"] > 1
            and "no runtime for" in event["message"]
            for event in api.events_for(pod, FAILED_SANDBOX)
        ),
        message="folded events",
    )

    nodes.set_handlers("plain-0", {"runc", "runsc"})
    ready(api, "p")


def test_containerd_1_counts_one_event_up(nodes: FakeNodes, api: Api) -> None:
    nodes.set_handlers("plain-0", None, serves={"runc"})
    api.create(objects.runtime_class("gvisor", "runsc"))
    pod = start(api, "p", runtime_class="gvisor", node="plain-0")

    def counted() -> bool:
        events = api.events_for(pod, FAILED_SANDBOX)
        return len(events) == 1 and events[0]["count"] >= 3

    eventually(counted, message="one event with a count of 3")
    assert api.events_for(pod)[0]["message"] == (
        "Failed to create pod sandbox: rpc error: code = Unknown desc = "
        'failed to get sandbox runtime: no runtime for "runsc" is configured'
    )


def test_failures_and_hangs_hold_where_they_were_set(nodes: FakeNodes, api: Api) -> None:
    api.create(objects.runtime_class("gvisor", "runsc"))
    nodes.fail("runsc", texts.SHIM_MISSING, nodes=["gvisor-0"])
    nodes.hang("runsc", nodes=["gvisor-1"])
    broken = start(api, "broken", runtime_class="gvisor", node="gvisor-0")
    hung = start(api, "hung", runtime_class="gvisor", node="gvisor-1")
    start(api, "plain", node="gvisor-0")
    start(api, "well", runtime_class="gvisor", node="gvisor-2")

    ready(api, "well")
    ready(api, "plain")
    message = eventually(lambda: api.events_for(broken), message="an event")[0]["message"]
    assert "binary not installed" in message
    assert "containerd-shim-runsc-v1" in message
    assert waiting_reason(api.get("Pod", "hung")) == "ContainerCreating"
    assert api.events_for(hung) == []

    nodes.heal("runsc")
    ready(api, "broken")
    ready(api, "hung")


def test_a_class_that_is_gone_when_the_sandbox_is_made(nodes: FakeNodes, api: Api) -> None:
    api.create(objects.runtime_class("gvisor", "runsc"))
    nodes.lose("gvisor-0")
    pod = start(api, "p", runtime_class="gvisor", node="gvisor-0")
    consistently(lambda: "containerStatuses" not in api.get("Pod", "p")["status"], seconds=0.3)
    api.delete("RuntimeClass", "gvisor")
    nodes.recover("gvisor-0")

    event = eventually(lambda: api.events_for(pod), message="an event")[0]

    assert event["message"] == (
        'Failed to create pod sandbox: runtimeclass.node.k8s.io "gvisor" not found'
    )
    api.create(objects.runtime_class("gvisor", "runc"))
    ready(api, "p")


def test_starts_take_as_long_as_they_are_told_to(nodes: FakeNodes, api: Api) -> None:
    api.create(objects.runtime_class("gvisor", "runsc"))
    nodes.delay("runsc", (1.2, 1.3))
    began = time.monotonic()
    start(api, "p", runtime_class="gvisor", node="gvisor-0")
    eventually(
        lambda: waiting_reason(api.get("Pod", "p")) == "ContainerCreating", message="announced"
    )
    ready(api, "p")
    assert 1.2 <= time.monotonic() - began < 5


def test_an_image_that_cannot_be_pulled(nodes: FakeNodes, api: Api) -> None:
    nodes.lack_image("registry.example/typo:1")
    start(api, "p", image="registry.example/typo:1", node="plain-0")

    eventually(
        lambda: waiting_reason(api.get("Pod", "p")) == "ImagePullBackOff", message="a back-off"
    )
    pod = api.get("Pod", "p")
    waiting = pod["status"]["containerStatuses"][0]["state"]["waiting"]
    assert 'Back-off pulling image "registry.example/typo:1"' in waiting["message"]
    assert is_true(pod, "PodReadyToStartContainers")

    nodes.lack_image("registry.example/typo:1", missing=False)
    ready(api, "p")


def test_a_container_that_dies(nodes: FakeNodes, api: Api) -> None:
    start(api, "never", node="plain-0", restartPolicy="Never")
    start(api, "always", node="plain-0", restartPolicy="Always")
    namespace = ready(api, "never")["metadata"]["namespace"]
    ready(api, "always")

    nodes.kill_container(namespace, "never", reason="OOMKilled")
    nodes.kill_container(namespace, "always")

    never = api.get("Pod", "never")
    assert never["status"]["phase"] == "Failed"
    ended = never["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")
    assert not is_true(never, "Ready")
    always = api.get("Pod", "always")
    assert always["status"]["phase"] == "Running"
    assert always["status"]["containerStatuses"][0]["restartCount"] == 1
    assert is_true(always, "Ready")


def test_a_container_that_cannot_restart_because_the_handler_is_gone(
    nodes: FakeNodes, api: Api
) -> None:
    api.create(objects.runtime_class("gvisor", "runsc"))
    start(api, "p", runtime_class="gvisor", node="gvisor-0", restartPolicy="Always")
    namespace = ready(api, "p")["metadata"]["namespace"]
    nodes.set_handlers("gvisor-0", {"runc"})
    nodes.kill_container(namespace, "p")

    pod = api.get("Pod", "p")
    waiting = pod["status"]["containerStatuses"][0]["state"]["waiting"]
    assert waiting["reason"] == "CreateContainerError"
    assert waiting["message"] == (
        'failed to get sandbox runtime: no runtime for "runsc" is configured'
    )
    assert not is_true(pod, "Ready")


@pytest.mark.parametrize(("runtime", "shares"), [("runc", True), ("gvisor", False)])
def test_init_containers_can_tell_whose_kernel_they_run_on(
    nodes: FakeNodes, api: Api, runtime: str, shares: bool
) -> None:
    def probe(run: ContainerRun) -> Exit:
        same = run.boot_id == run.env["NODE_BOOT_ID"]
        return Exit(1 if same else 0, message=run.boot_id)

    nodes.program("probe:1", probe)
    api.create_all(objects.runtime_class("gvisor", "runsc"), objects.runtime_class("runc", "runc"))
    boot_id = nodes["gvisor-0"].boot_id
    container = {
        "name": "probe",
        "image": "probe:1",
        "env": [{"name": "NODE_BOOT_ID", "value": boot_id}],
    }
    start(
        api, "p", runtime_class=runtime, node="gvisor-0", restartPolicy="Never",
        initContainers=[container],
    )  # fmt: skip

    if shares:
        eventually(
            lambda: api.get("Pod", "p")["status"]["phase"] == "Failed", message="the pod failed"
        )
    else:
        ready(api, "p")
    status = api.get("Pod", "p")["status"]["initContainerStatuses"][0]
    assert status["state"]["terminated"]["exitCode"] == (1 if shares else 0)
    assert (status["state"]["terminated"]["message"] == boot_id) is shares


@pytest.mark.parametrize(
    ("isolates", "arrives", "code", "message"),
    [
        (True, True, OWN_KERNEL, r"[0-9a-f-]{36}\nLinux version 4\.19\.0-gvisor .*\n"),
        (False, True, NODES_KERNEL, r"{boot_id}\nLinux version 6\.12\.0-fake\n"),
        (True, False, OWN_KERNEL, ""),
    ],
    ids=["isolates", "pretends", "says nothing"],
)
def test_probes_answer_as_their_script_would(
    nodes: FakeNodes, api: Api, isolates: bool, arrives: bool, code: int, message: str
) -> None:
    nodes.isolate("runsc", isolates, ["gvisor-0"])
    nodes.swallow_messages("runsc", ["gvisor-0"], on=not arrives)
    api.create(objects.runtime_class("gvisor", "runsc"))
    boot_id = nodes["gvisor-0"].boot_id
    pod = objects.pod("p", runtime_class="gvisor", node="gvisor-0", restartPolicy="Never")
    (container,) = pod["spec"]["containers"]
    container |= {"name": "probe", "env": [{"name": "EXPECTED_BOOT_ID", "value": boot_id}]}
    api.create(pod)

    def ended() -> dict[str, Any]:
        (status,) = api.get("Pod", "p")["status"]["containerStatuses"]
        return dict(status["state"]["terminated"])

    end = eventually(ended, message="the probe has ended")
    assert end["exitCode"] == code
    expected = message.replace("{boot_id}", boot_id)
    assert re.fullmatch(expected, end.get("message", "")), end


def test_failures_can_be_those_of_one_image(nodes: FakeNodes, api: Api) -> None:
    nodes.fail("runsc", texts.SHIM_MISSING, image="bad:1")
    api.create(objects.runtime_class("gvisor", "runsc"))
    start(api, "bad", runtime_class="gvisor", node="gvisor-0", image="bad:1")
    start(api, "good", runtime_class="gvisor", node="gvisor-0")
    ready(api, "good")
    bad = api.get("Pod", "bad")
    eventually(lambda: api.events_for(bad, FAILED_SANDBOX), message="the other one fails")


def test_pods_that_run_to_their_end(nodes: FakeNodes, api: Api) -> None:
    nodes.program("job:1", lambda _: Exit(0, "done", after=0.3))
    start(api, "p", image="job:1", node="plain-0", restartPolicy="Never")
    eventually(
        lambda: api.get("Pod", "p")["status"]["phase"] == "Succeeded", message="the pod succeeded"
    )


def test_a_lost_node_keeps_its_pods(nodes: FakeNodes, api: Api) -> None:
    start(api, "p", node="plain-0")
    ready(api, "p")
    nodes.lose("plain-0")

    assert not is_true(api.get("Pod", "p"), "Ready")
    assert condition(api.get("Node", "plain-0"), "Ready")["status"] == "Unknown"  # type: ignore[index]
    api.delete("Pod", "p")
    consistently(lambda: api.find("Pod", "p") is not None, seconds=0.5, message="it stays")

    nodes.recover("plain-0")
    eventually(lambda: api.find("Pod", "p") is None, message="the pod is gone")


def test_pods_that_take_their_time_to_go(nodes: FakeNodes, api: Api) -> None:
    nodes.delay_stop("", 0.6)
    start(api, "p", node="plain-0")
    ready(api, "p")
    api.delete("Pod", "p")
    assert api.get("Pod", "p")["metadata"]["deletionTimestamp"]
    consistently(lambda: api.find("Pod", "p") is not None, seconds=0.3, message="it stays")
    eventually(lambda: api.find("Pod", "p") is None, message="the pod is gone")


# The real controllers.


def test_the_scheduler_honours_selectors_taints_and_cordons(
    controllers: Controllers, nodes: FakeNodes, api: Api
) -> None:
    nodes.set_labels("plain-1", {"pool": "x"})
    start(api, "selected", nodeSelector={"pool": "x"})
    assert ready(api, "selected")["spec"]["nodeName"] == "plain-1"

    nodes.cordon("plain-1")
    start(api, "late", nodeSelector={"pool": "x"})
    eventually(lambda: condition(api.get("Pod", "late"), "PodScheduled"), message="a verdict")
    assert not is_true(api.get("Pod", "late"), "PodScheduled")
    nodes.cordon("plain-1", on=False)
    ready(api, "late")

    term = {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": nodes.names()[1:]}
    selection = {"nodeSelectorTerms": [{"matchExpressions": [term]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": selection}}
    start(api, "excluding", affinity=affinity)
    assert ready(api, "excluding")["spec"]["nodeName"] == nodes.names()[0]


def test_fake_nodes_survive_a_restart_of_the_api_server(
    control_plane: ControlPlane, nodes: FakeNodes, api: Api
) -> None:
    start(api, "before", node="plain-0")
    ready(api, "before")
    control_plane.restart_apiserver(kill=True)
    start(api, "after", node="plain-0")
    ready(api, "after")
    api.delete("Pod", "before")
    eventually(lambda: api.find("Pod", "before") is None, message="the pod is gone")


def test_the_garbage_collector_takes_pods_whose_owner_is_gone(
    controllers: Controllers, nodes: FakeNodes, api: Api
) -> None:
    owner = api.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owner"}})
    start(api, "p", owner=owner)
    ready(api, "p")
    api.delete("ConfigMap", "owner")
    eventually(lambda: api.find("Pod", "p") is None, message="the pod is gone")


def test_the_garbage_collector_knows_our_kinds(
    controllers: Controllers, nodes: FakeNodes, api: Api, served: Callable[[str], bool]
) -> None:
    assert served("SandboxPool")
    api.create(objects.runtime_class())
    pool = api.create(objects.pool(replicas=0))
    start(api, "p", owner=pool)
    ready(api, "p")
    api.delete("SandboxPool", "pool")
    eventually(lambda: api.find("Pod", "p") is None, message="the pod is gone")


# The operator's process.

_STUB = """
import http.server, os, signal, sys, threading, time
begun = time.monotonic()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        ready = self.path != "/readyz" or time.monotonic() - begun > 0.3
        self.send_response(200 if ready else 503)
        self.end_headers()
        if self.path == "/metrics":
            self.wfile.write(b'# TYPE x counter\\nx_total{pool="a"} 2\\nx_total{pool="b"} 3\\n')
    def log_message(self, *_): pass
print("namespace", os.environ["SANDBOXPOOL_NAMESPACE"], flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
def serve(variable):
    host, port = os.environ[variable].split(":")
    http.server.HTTPServer((host, int(port)), Handler).serve_forever()
threading.Thread(target=serve, args=("SANDBOXPOOL_HEALTH_LISTEN",), daemon=True).start()
serve("SANDBOXPOOL_LISTEN")
"""


def test_the_operators_process_is_driven_like_a_container(
    start_operator: StartOperator, tmp_path: Path, namespace: str
) -> None:
    package = tmp_path / "sandboxpool"
    package.mkdir()
    # Without it the folder is a namespace package, and the installed one wins over those.
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(_STUB)

    stub = start_operator(env={"PYTHONPATH": str(tmp_path)})
    assert stub.ready()
    assert stub.healthy()
    assert stub.metric("x_total") == 5
    assert stub.metric("x_total", pool="b") == 3
    assert stub.tail() == f"namespace {namespace}-system"

    first = stub.pid
    stub.restart(kill=True)
    assert stub.pid != first
    stub.pause()
    stub.resume()
    assert stub.terminate() == 7
    assert not stub.running
    assert not stub.ready()


# Invariants.


def test_the_invariants_see_what_is_wrong(nodes: FakeNodes, api: Api, namespace: str) -> None:
    claim = api.create(objects.claim("c"))
    uid = claim["metadata"]["uid"]
    labels = {"sandboxpool.io/claim-uid": uid, "sandboxpool.io/pool-uid": "u"}

    def owned(name: str) -> dict[str, Any]:
        pod = objects.pod(name, owner=claim)
        pod["metadata"]["labels"] = labels
        return pod

    api.create(owned("one"))
    invariants.check(api, namespace)

    api.create(owned("two"))
    stray = objects.pod("stray")
    stray["metadata"]["labels"] = {"sandboxpool.io/pool-uid": "u"}
    api.create(stray)
    wrong = "\n".join(invariants.violations(invariants.snapshot(api, namespace)))
    assert f"claim uid {uid} has 2 pods: {namespace}/one, {namespace}/two" in wrong
    assert f"pod {namespace}/stray has no owner" in wrong

    api.create(objects.runtime_class("other", "runc"))
    pool = api.create(objects.pool(runtime_class="gvisor"))
    api.create(objects.claim("asserts", runtimeClassName="gvisor"))
    owner = api.get("SandboxClaim", "asserts")
    mismatched = objects.pod("mismatched", owner=owner, runtime_class="other")
    mismatched["metadata"]["labels"] = {
        "sandboxpool.io/claim-uid": owner["metadata"]["uid"],
        "sandboxpool.io/pool-uid": pool["metadata"]["uid"],
    }
    api.create(mismatched)
    wrong = "\n".join(invariants.other_runtimes(invariants.snapshot(api, namespace)))
    assert "has class 'other', but its pool says 'gvisor'" in wrong
    assert "has class 'other', but its claim says 'gvisor'" in wrong
    with pytest.raises(AssertionError, match="invariants do not hold"):
        invariants.check(api, namespace)


# The proxy.


def through(proxy: FaultProxy, plane: ControlPlane) -> Path:
    return proxy.kubeconfig(plane.admin_token)


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def test_the_proxy_passes_on_and_counts(
    proxy: FaultProxy, control_plane: ControlPlane, namespace: str
) -> None:
    with Api(through(proxy, control_plane), namespace) as client:
        client.create(config_map("a", x="1"), fieldManager="me")
        client.patch("ConfigMap", "a", {"data": {"x": "2"}})
        assert client.get("ConfigMap", "a")["data"] == {"x": "2"}
        with pytest.raises(ApiError) as error:
            client.get("ConfigMap", "nope")
        assert error.value.status == 404
        client.delete("ConfigMap", "a")

    path = f"/api/v1/namespaces/{namespace}/configmaps"
    assert [(w.method, w.path, w.query, w.status) for w in proxy.writes()] == [
        ("POST", path, "fieldManager=me", 201),
        ("PATCH", f"{path}/a", "", 200),
        ("DELETE", f"{path}/a", "", 200),
    ]
    assert [r.status for r in proxy.requests("GET", r"/configmaps/")] == [200, 404]
    proxy.clear()
    assert proxy.requests() == []


def test_credentials_are_the_clients_own(proxy: FaultProxy, control_plane: ControlPlane) -> None:
    with Api(proxy.kubeconfig("wrong")) as client, pytest.raises(ApiError) as error:
        client.list("Node")
    assert error.value.status == 401


def test_a_held_request_reaches_the_server_only_after_its_release(
    proxy: FaultProxy, control_plane: ControlPlane, api: Api, namespace: str
) -> None:
    hold = proxy.hold("POST", "/configmaps$")
    with Api(through(proxy, control_plane), namespace) as client:
        sender = threading.Thread(target=lambda: client.create(config_map("a")), daemon=True)
        sender.start()
        hold.wait_reached()
        assert api.find("ConfigMap", "a") is None
        api.create(config_map("b"))  # Another way in is not held.
        hold.release()
        sender.join(10)
        assert api.find("ConfigMap", "a") is not None


def test_a_held_write_arrives_even_if_its_client_is_gone(
    proxy: FaultProxy, control_plane: ControlPlane, api: Api, namespace: str
) -> None:
    hold = proxy.hold("POST", "/configmaps$")

    async def send_and_hang_up() -> None:
        headers = {"Authorization": f"Bearer {control_plane.admin_token}"}
        url = f"{proxy.url}/api/v1/namespaces/{namespace}/configmaps"
        async with aiohttp.ClientSession(headers=headers) as session:
            sending = asyncio.ensure_future(session.post(url, json=config_map("late")))
            await hold.reached()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    asyncio.run(send_and_hang_up())
    assert api.find("ConfigMap", "late") is None
    hold.release()
    eventually(lambda: api.find("ConfigMap", "late"), message="the late write arrived")


def test_a_held_response_belongs_to_a_write_that_happened(
    proxy: FaultProxy, control_plane: ControlPlane, api: Api, namespace: str
) -> None:
    hold = proxy.hold("POST", "/configmaps$", where="response")
    with Api(through(proxy, control_plane), namespace) as client:
        sender = threading.Thread(target=lambda: client.create(config_map("a")), daemon=True)
        sender.start()
        hold.wait_reached()
        assert api.find("ConfigMap", "a") is not None
        assert sender.is_alive()
        hold.release()
        sender.join(10)
        assert not sender.is_alive()


def test_a_lost_response_is_a_dead_connection_after_the_fact(
    proxy: FaultProxy, control_plane: ControlPlane, api: Api, namespace: str
) -> None:
    rule = proxy.lose_response("POST", "/configmaps$")
    with Api(through(proxy, control_plane), namespace) as client:
        with pytest.raises(aiohttp.ClientError):
            client.create(config_map("a"))
        assert rule.hits == 1
        assert api.find("ConfigMap", "a") is not None
        assert [(w.status, w.delivered) for w in proxy.writes()] == [(201, False)]
        client.create(config_map("b"))  # The rule is spent.


def test_a_lost_request_never_reaches_the_server(
    proxy: FaultProxy, control_plane: ControlPlane, api: Api, namespace: str
) -> None:
    proxy.lose_request("POST", "/configmaps$")
    with (
        Api(through(proxy, control_plane), namespace) as client,
        pytest.raises(aiohttp.ClientError),
    ):
        client.create(config_map("a"))
    assert api.find("ConfigMap", "a") is None


def test_refusals_carry_their_status_headers_and_body(
    proxy: FaultProxy, control_plane: ControlPlane, namespace: str
) -> None:
    proxy.refuse("POST", "/configmaps", 429, times=2, headers={"Retry-After": "1"})
    with Api(through(proxy, control_plane), namespace) as client:
        for _ in range(2):
            with pytest.raises(ApiError) as error:
                client.create(config_map("a"))
            assert error.value.status == 429
            assert '"TooManyRequests"' in error.value.body
        client.create(config_map("a"))
    assert [w.status for w in proxy.writes()] == [429, 429, 201]


async def _names_seen(
    plane: ControlPlane, kubeconfig: Path, namespace: str, seen: list[str]
) -> None:
    """Watches ConfigMaps until the stream ends."""
    async with Client(Access.from_kubeconfig(kubeconfig)) as client:
        path = f"/api/v1/namespaces/{namespace}/configmaps"
        listed = await client.get(path)
        version = listed["metadata"]["resourceVersion"]
        async for line in client.watch(path, version):
            name = re.findall(r'"name":"([^"]*)"', line.decode())[0]
            seen.append(name)  # one at a time is the point


async def test_watches_stream_stall_and_are_cut(
    proxy: FaultProxy, control_plane: ControlPlane, api: Api, namespace: str
) -> None:
    seen: list[str] = []
    config = through(proxy, control_plane)
    watching = asyncio.create_task(_names_seen(control_plane, config, namespace, seen))

    async def until(met: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not met():  # noqa: ASYNC110  # the proxy has no event for it
                await asyncio.sleep(0.02)

    await until(lambda: proxy.open_watches("/configmaps") == 1)
    api.create(config_map("a"))
    await until(lambda: seen == ["a"])

    stall = proxy.stall_watches("/configmaps")
    api.create(config_map("b"))
    await asyncio.sleep(0.3)
    assert seen == ["a"]
    stall.release()
    await until(lambda: seen == ["a", "b"])

    assert proxy.cut_watches("/secrets") == 0
    assert proxy.cut_watches("/configmaps") == 1
    with pytest.raises(aiohttp.ClientError):
        await asyncio.wait_for(watching, 10)
    assert proxy.open_watches() == 0
