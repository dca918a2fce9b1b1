"""OpenSandbox's own server and SDK, unmodified, with sandboxes of SandboxPools.

Upstream's task-executor and execd cannot be had where these tests run. The sandboxes have stand-ins
of this project, see `hack/localcluster/components/opensandbox-standin`; the code interpreter, which
needs upstream's image, is not shown.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo import install
from localcluster import opensandbox, tools
from localcluster.opensandbox import OpenSandboxImages
from localcluster.paths import REPOSITORY
from sandboxpool.api import names
from support import Api, eventually, objects, pages
from support.deployed import DeployedOperator
from support.opensandbox import server as servers
from support.opensandbox.kinds import ensure_opensandbox_crds
from support.opensandbox.server import Server, executor_template, opened
from support.realnodes import GVISOR, RUNC, node_kernel, pool, template
from support.releases import SHARED_VALUES
from support.sandboxes import live_pods, pool_status

Object = dict[str, Any]

# The one of a run before may still be on its way out.
NAMESPACE = f"e2e-opensandbox-{uuid.uuid4().hex[:6]}"
BRIDGE = f"{install.RELEASE}-opensandbox"
GVISOR_KERNEL = "4.19.0-gvisor"
BURST = 24
KILLS = 5
POOL_SECONDS = 90.0


@pytest.fixture(scope="module")
def images(admin: Api) -> OpenSandboxImages:
    return opensandbox.build_images()


@pytest.fixture(scope="module")
def bridge(admin: Api, deployed: DeployedOperator, kubeconfig: Path) -> Iterator[DeployedOperator]:
    """The bridge, for a namespace that is gone when the tests are over."""
    ensure_opensandbox_crds(admin)
    admin.create(objects.namespace(NAMESPACE))
    values = {"opensandbox": {"enabled": True, "namespaces": [NAMESPACE]}}
    install.install_operator(kubeconfig, {**SHARED_VALUES, **values})
    bridge = DeployedOperator(admin, BRIDGE, BRIDGE, "sandboxpool_opensandbox")
    bridge.wait_ready()
    yield bridge
    for kind in ("BatchSandbox", "SandboxClaim", "SandboxPool"):
        for found in admin.list(kind, NAMESPACE):
            admin.delete(kind, found["metadata"]["name"], NAMESPACE)
    admin.delete("Namespace", NAMESPACE)
    install.install_operator(kubeconfig, SHARED_VALUES)
    deployed.wait_ready()


@pytest.fixture(scope="module")
def api(admin: Api, bridge: DeployedOperator) -> Api:
    """A client whose default namespace is the one that the bridge serves."""
    return admin.within(NAMESPACE)


@pytest.fixture(scope="module")
def server(api: Api, images: OpenSandboxImages) -> Server:
    """OpenSandbox's server, as the samples configure it, and two pools of two classes."""
    make_pool(api, images, "gvisor", GVISOR, replicas=2)
    make_pool(api, images, "plain", RUNC, replicas=2)
    server = servers.deploy(api, NAMESPACE, images)
    pool_status(api, name="gvisor", warm=2, timeout=POOL_SECONDS)
    pool_status(api, name="plain", warm=2, timeout=POOL_SECONDS)
    return server


def make_pool(
    api: Api,
    images: OpenSandboxImages,
    name: str,
    runtime_class: str,
    *,
    mode: str = "Executor",
    pod: Object | None = None,
    **spec: Any,
) -> None:
    made = pool(name, runtime_class, pod=pod or executor_template(images.sandbox), **spec)
    api.create(opened(made, mode))
    eventually(lambda: api.find("Pool", name), message=f"OpenSandbox's Pool {name} is there")


def pods_of(api: Api, pool: str) -> set[str]:
    """The uids of a pool's pods that are not on their way out."""
    owned = [
        pod
        for pod in live_pods(api)
        if pod["metadata"].get("labels", {}).get(names.LABEL_POOL) == pool
    ]
    return {pod["metadata"]["uid"] for pod in owned}


def owner_of(obj: Object) -> str:
    """The one owner of an object; empty if it has none."""
    owners = [f"{o['kind']}/{o['name']}" for o in obj["metadata"].get("ownerReferences", ())]
    assert len(owners) <= 1
    return "".join(owners)


def nothing_left(api: Api, *sandboxes: str) -> None:
    """Waits until nothing is left of sandboxes that have ended."""

    def left() -> list[str]:
        kinds = ("BatchSandbox", "SandboxClaim")
        found = [f"{kind}/{name}" for kind in kinds for name in sandboxes if api.find(kind, name)]
        owned = {f"SandboxClaim/{name}" for name in sandboxes}
        pods = [pod for pod in live_pods(api) if owner_of(pod) in owned]
        return found + [pod["metadata"]["name"] for pod in pods]

    eventually(lambda: not left(), message=f"nothing is left of {sandboxes}", timeout=30)


# --- The page ------------------------------------------------------------------------------------


@pytest.fixture
def on_the_path(kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kubectl and Helm, for this cluster, with files of their own."""
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    programs = [str(Path(tools.path(name)).parent) for name in ("kubectl", "helm")]
    monkeypatch.setenv("PATH", os.pathsep.join([*programs, os.environ["PATH"]]))
    for kind in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"HELM_{kind}_HOME", str(tmp_path / kind))


@pytest.mark.usefixtures("on_the_path")
def test_every_block_of_the_page_does_what_it_says(
    api: Api, server: Server, images: OpenSandboxImages
) -> None:
    found = pages.blocks("opensandbox.md")
    assert {language for language, _ in found} == {"sh", "python", "none"}
    # What differs between the page's cluster and this one.
    here = {
        "team-a": NAMESPACE,
        "registry.example/opensandbox-sandbox:1": images.sandbox,
        "opensandbox-server:8080": "127.0.0.1:8080",
        "Name: gvisor": f"Name: {GVISOR}",
        '": "gvisor"': f'": "{GVISOR}"',
        "gvisor runsc": f"{GVISOR} runsc",
        "Name: runc": f"Name: {RUNC}",
        "runc runc": f"{RUNC} runc",
    }
    begin = printed = ""
    for language, text in found:
        for there, name in here.items():
            text = text.replace(there, name)
        if language == "none":
            assert printed == text
        elif language == "sh":
            printed = pages.run_shell(text, REPOSITORY)
        elif not begin:
            begin = text
        else:
            printed = server.exec("application", "python3", "-c", begin + text)
    for name in ("isolated", "trusted"):
        api.delete("SandboxPool", name)


# --- What applications do ------------------------------------------------------------------------


def test_one_server_gives_sandboxes_of_two_runtime_classes(api: Api, server: Server) -> None:
    warm = pods_of(api, "gvisor")
    seen = server.run("""
import time
sandboxes = {}
for pool in ("gvisor", "plain"):
    began = time.monotonic()
    sandbox = create(pool)
    seconds = time.monotonic() - began
    info = sandbox.get_info()
    sandboxes[pool] = {
        "id": sandbox.id,
        "seconds": seconds,
        "kernel": sandbox.commands.run("cat /proc/version").text,
        "state": info.status.state,
        "extensions": info.extensions,
    }
tell(sandboxes)
""")
    gvisor, plain = seen["gvisor"], seen["plain"]
    assert GVISOR_KERNEL in gvisor["kernel"]
    pod = next(p for p in live_pods(api) if owner_of(p) == f"SandboxClaim/{plain['id']}")
    assert node_kernel(api, pod["spec"]["nodeName"]) in plain["kernel"]
    assert (gvisor["state"], plain["state"]) == ("Running", "Running")
    assert min(gvisor["seconds"], plain["seconds"]) < 2
    # The application learns what its sandbox runs with.
    prefix = "opensandbox.extensions."
    assert gvisor["extensions"][f"{prefix}runtime-class"] == GVISOR
    assert gvisor["extensions"][f"{prefix}runtime-handler"] == "runsc"
    assert plain["extensions"][f"{prefix}runtime-class"] == RUNC
    # It was warm, and what owns what says who ends with whom.
    pod = next(p for p in live_pods(api) if owner_of(p) == f"SandboxClaim/{gvisor['id']}")
    assert pod["metadata"]["uid"] in warm
    claim = api.get("SandboxClaim", gvisor["id"])
    assert owner_of(claim) == f"BatchSandbox/{gvisor['id']}"
    server.run(f"""
for id in ({gvisor["id"]!r}, {plain["id"]!r}):
    SandboxSync.connect(id, connection_config=connection()).kill()
tell(None)
""")
    nothing_left(api, gvisor["id"], plain["id"])
    pool_status(api, name="gvisor", warm=2, timeout=POOL_SECONDS)


@pytest.mark.parametrize("proxied", [False, True], ids=["direct", "through the server"])
def test_environment_entrypoint_commands_files_and_metrics(
    api: Api, server: Server, proxied: bool
) -> None:
    seen = server.run(f"""
sandbox = create(
    "gvisor",
    env={{"GREETING": "hello there"}},
    entrypoint=["sh", "-c", 'echo "$GREETING, $0" > /tmp/greeting; exec tail -f /dev/null', "me"],
    connection_config=connection(use_server_proxy={proxied}),
)
failed = sandbox.commands.run("echo out; echo err >&2; exit 7")
sandbox.files.write_file("/tmp/a/file", "written \\u00e4", mode=640)
metrics = sandbox.get_metrics()
tell({{
    "id": sandbox.id,
    "greeting": sandbox.files.read_file("/tmp/greeting"),
    "exit_code": failed.exit_code,
    "stdout": [message.text for message in failed.logs.stdout],
    "stderr": [message.text for message in failed.logs.stderr],
    "file": sandbox.files.read_file("/tmp/a/file"),
    "mode": sandbox.commands.run("stat -c %a /tmp/a/file").text,
    "memory": metrics.memory_total_in_mib,
}})
sandbox.kill()
""")
    assert seen["greeting"] == "hello there, me\n"
    assert (seen["exit_code"], seen["stdout"], seen["stderr"]) == (7, ["out\n"], ["err\n"])
    assert (seen["file"], seen["mode"]) == ("written ä", "640")
    assert seen["memory"] > 0
    nothing_left(api, seen["id"])


def test_lists_metadata_diagnostics_and_what_is_not_supported(api: Api, server: Server) -> None:
    seen = server.run("""
import time
import httpx
from opensandbox import SandboxManagerSync
from opensandbox.models.sandboxes import SandboxFilter

sandbox = create("gvisor", metadata={"team": "a"})
sandbox.patch_metadata({"purpose": "test", "team": None})
manager = SandboxManagerSync.create(connection_config=connection())
listed = manager.list_sandbox_infos(SandboxFilter(metadata={"purpose": "test"}))
sandbox.pause()
time.sleep(1)
try:
    sandbox.create_snapshot("snapshot")
    snapshot = None
except SandboxApiException as error:
    snapshot = error.status_code
url = f"http://{SERVER}/v1/sandboxes/{sandbox.id}/diagnostics/"
tell({
    "id": sandbox.id,
    "listed": [found.id for found in listed.sandbox_infos],
    "metadata": sandbox.get_info().metadata,
    "after pause": sandbox.get_info().status.state,
    "works": sandbox.commands.run("echo yes").text,
    "snapshot": snapshot,
    "logs": sandbox.get_diagnostic_logs("container").content,
    "events": sandbox.get_diagnostic_events("runtime").content,
    "inspect": httpx.get(url + "inspect").text,
})
""")
    assert seen["listed"] == [seen["id"]]
    assert seen["metadata"] == {"purpose": "test"}
    assert (seen["after pause"], seen["works"]) == ("Running", "yes")
    assert seen["snapshot"] is not None
    assert seen["snapshot"] >= 400
    assert api.list("SandboxSnapshot") == []
    assert f"task {seen['id']}-0 runs" in seen["logs"]
    assert f"Runtime Class: {GVISOR}" in " ".join(seen["inspect"].split())
    sandbox = api.get("BatchSandbox", seen["id"])
    conditions = {c["type"]: c.get("reason") for c in sandbox["status"]["conditions"]}
    assert conditions["PauseFailed"] == "PauseNotSupported"
    api.delete("BatchSandbox", seen["id"])
    nothing_left(api, seen["id"])


# --- What they are told when there is no sandbox -------------------------------------------------


def test_a_pool_that_is_not_there_or_not_open_is_not_found(api: Api, server: Server) -> None:
    api.create(pool("closed", RUNC, replicas=0))
    seen = server.run("tell([refusal('no-such-pool'), refusal('closed')])")
    assert [refusal["status"] for refusal in seen] == [404, 404]
    assert "Pool 'no-such-pool' not found" in seen[0]["message"]
    api.delete("SandboxPool", "closed")


def test_a_class_that_the_application_asserts_is_checked(api: Api, server: Server) -> None:
    pool_status(api, name="gvisor", warm=2, timeout=POOL_SECONDS)
    before = pods_of(api, "gvisor")
    name = "opensandbox.extensions.runtime-class"
    seen = server.run(f"tell(refusal('gvisor', extensions={{{name!r}: 'kata-qemu'}}))")
    assert (seen["status"], seen["code"]) == (500, "KUBERNETES::POD_FAILED")
    assert "RuntimeClassMismatch" in seen["message"]
    assert pods_of(api, "gvisor") == before
    right = server.run(f"""
sandbox = create("gvisor", extensions={{{name!r}: {GVISOR!r}}})
tell(sandbox.id)
sandbox.kill()
""")
    nothing_left(api, right)


def test_a_pool_whose_class_is_missing_says_so_until_the_class_is_there(
    api: Api, server: Server, images: OpenSandboxImages
) -> None:
    missing = "e2e-opensandbox-later"
    make_pool(api, images, "later", missing)
    eventually(
        lambda: "RuntimeClassNotFound" in json.dumps(api.get("SandboxPool", "later")["status"]),
        message="the pool knows that its class is missing",
    )
    seen = server.run("""
import time
began = time.monotonic()
seen = refusal("later")
tell({**seen, "seconds": time.monotonic() - began})
""")
    assert seen["status"] == 500
    assert "RuntimeClassNotFound" in seen["message"]
    assert seen["seconds"] < 3
    api.create(objects.runtime_class(missing, "runsc"))
    try:
        pool_status(api, name="later", warm=1, timeout=POOL_SECONDS)
        assert GVISOR_KERNEL in server.run("""
sandbox = create("later")
tell(sandbox.commands.run("cat /proc/version").text)
sandbox.kill()
""")
    finally:
        api.delete("SandboxPool", "later")
        api.delete("RuntimeClass", missing)


def test_a_full_pool_makes_applications_wait_or_come_again(
    api: Api, server: Server, images: OpenSandboxImages
) -> None:
    make_pool(api, images, "small", RUNC, maxSandboxes=1)
    pool_status(api, name="small", warm=1, timeout=POOL_SECONDS)
    seen = server.run("""
import time
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor() as workers:
    first = create("small")
    refused = refusal("small")
    waiting = workers.submit(create, "small")
    time.sleep(3)
    assert not waiting.done()
    first.kill()
    second = waiting.result()
    tell({**refused, "works": second.commands.run("echo yes").text})
    second.kill()
""")
    assert (seen["type"], seen["status"]) == ("SandboxRateLimitException", 429)
    assert seen["retry_after"] > 0
    assert seen["works"] == "yes"
    api.delete("SandboxPool", "small")


def test_a_template_without_executor_is_named_as_the_cause(
    api: Api, server: Server, images: OpenSandboxImages
) -> None:
    make_pool(api, images, "bare", RUNC, pod=template())
    pool_status(api, name="bare", warm=1, timeout=POOL_SECONDS)
    seen = server.run("tell(refusal('bare'))")
    assert (seen["status"], seen["code"]) == (500, "KUBERNETES::POD_FAILED")
    assert "TaskNotDelivered" in seen["message"]
    assert "5758" in seen["message"]
    api.delete("SandboxPool", "bare")


def test_a_prestarted_pool_takes_no_task_and_drops_none_silently(
    api: Api, server: Server, images: OpenSandboxImages
) -> None:
    pod = executor_template(images.sandbox)
    container = pod["spec"]["containers"][0]
    container["command"] = ["/opt/opensandbox/execd"]
    container["readinessProbe"]["httpGet"] = {"path": "/ping", "port": 44772}
    make_pool(api, images, "prestarted", RUNC, mode="Prestarted", pod=pod)
    pool_status(api, name="prestarted", warm=1, timeout=POOL_SECONDS)
    seen = server.run("""
refused = [
    refusal("prestarted", env={"A": "b"}),
    refusal("prestarted", entrypoint=["sleep", "60"]),
]
sandbox = create("prestarted")
tell({"refused": refused, "works": sandbox.commands.run("echo yes").text})
sandbox.kill()
""")
    assert [refusal["status"] for refusal in seen["refused"]] == [500, 500]
    assert all("TaskNotSupported" in refusal["message"] for refusal in seen["refused"])
    assert seen["works"] == "yes"
    api.delete("SandboxPool", "prestarted")


# --- How sandboxes end ---------------------------------------------------------------------------


def test_a_sandbox_expires_unless_it_is_renewed(api: Api, server: Server) -> None:
    renewed, expired = server.run("""
import time
from datetime import timedelta
sandboxes = [create("plain"), create("plain")]
for sandbox in sandboxes:
    sandbox.renew(timedelta(seconds=4))
time.sleep(2)
sandboxes[0].renew(timedelta(minutes=5))
tell([sandbox.id for sandbox in sandboxes])
""")
    nothing_left(api, expired)
    assert (
        server.run(f"""
sandbox = SandboxSync.connect({renewed!r}, connection_config=connection())
tell(sandbox.commands.run("echo yes").text)
sandbox.kill()
""")
        == "yes"
    )
    nothing_left(api, renewed)


def test_a_sandbox_whose_pod_is_gone_has_failed_and_has_no_address(
    api: Api, server: Server
) -> None:
    pool_status(api, name="plain", warm=2, timeout=POOL_SECONDS)
    lost = server.run("tell(create('plain').id)")
    pod = api.get("SandboxClaim", lost)["status"]["podName"]
    api.delete("Pod", pod, gracePeriodSeconds=0)
    eventually(
        lambda: api.get("BatchSandbox", lost)["status"]["phase"] == "Failed",
        message="the sandbox has failed",
    )
    seen = server.run(f"""
from opensandbox import SandboxManagerSync
import httpx
url = f"http://{{SERVER}}/v1/sandboxes/{lost}"
manager = SandboxManagerSync.create(connection_config=connection())
info = manager.get_sandbox_info({lost!r})
tell({{
    "state": info.status.state,
    "message": info.status.message,
    "endpoint": httpx.get(f"{{url}}/endpoints/44772").status_code,
    "proxied": httpx.get(f"{{url}}/proxy/44772/ping").status_code,
}})
manager.kill_sandbox({lost!r})
""")
    assert seen["state"] == "Failed"
    assert "PodLost" in seen["message"] or pod in seen["message"]
    assert seen["endpoint"] == 404
    assert seen["proxied"] >= 400, "no other sandbox answers in its place"
    nothing_left(api, lost)


def test_sandboxes_outlive_their_pool(api: Api, server: Server, images: OpenSandboxImages) -> None:
    make_pool(api, images, "ends", RUNC)
    pool_status(api, name="ends", warm=1, timeout=POOL_SECONDS)
    kept = server.run("tell(create('ends').id)")
    api.delete("SandboxPool", "ends")
    eventually(lambda: api.find("Pool", "ends") is None, message="OpenSandbox's Pool is gone")
    seen = server.run(f"""
sandbox = SandboxSync.connect({kept!r}, connection_config=connection())
tell([sandbox.commands.run("echo yes").text, refusal("ends")["status"]])
sandbox.kill()
""")
    assert seen == ["yes", 404]
    nothing_left(api, kept)


def test_no_create_fails_while_the_bridge_is_killed_again_and_again(
    api: Api, server: Server, bridge: DeployedOperator, images: OpenSandboxImages
) -> None:
    make_pool(api, images, "burst", RUNC, replicas=BURST)
    pool_status(api, name="burst", warm=BURST, timeout=POOL_SECONDS)

    def burst() -> Any:
        return server.run(f"""
import time
from concurrent.futures import ThreadPoolExecutor
def one(number):
    time.sleep(number * 0.6)
    sandbox = create("burst")
    return [sandbox.id, sandbox.get_endpoint(44772).endpoint, sandbox.commands.run("hostname").text]
with ThreadPoolExecutor({BURST}) as workers:
    tell(list(workers.map(one, range({BURST}))))
""")

    with ThreadPoolExecutor(max_workers=1) as workers:
        creating: Future[Any] = workers.submit(burst)
        for kill in range(KILLS):
            victim = bridge.process()
            eventually(
                lambda: len(api.list("BatchSandbox")) >= 4 * kill,  # noqa: B023  # called at once
                message="the next creates have begun",
                timeout=60,
            )
            victim.kill()
            eventually(
                lambda: bridge.restarts(victim) > victim.restarts,  # noqa: B023
                message="the kubelet has started the bridge again",
                timeout=60,
            )
        seen = creating.result(timeout=90)
    for position, what in enumerate(("sandboxes", "addresses", "pods")):
        assert len({each[position] for each in seen}) == BURST, f"each has its own of the {what}"
    for each in seen:
        api.delete("BatchSandbox", each[0])
    api.delete("SandboxPool", "burst")
    nothing_left(api, *(each[0] for each in seen))


def test_the_sample_of_a_network_policy_names_the_right_pods(
    api: Api, server: Server, bridge: DeployedOperator
) -> None:
    """This cluster's network plugin enforces no policies: what is shown is whom it selects."""
    text = (servers.SAMPLES / "network-policy.yaml").read_text()
    policy = api.create(yaml.safe_load(text), dryRun="All", fieldValidation="Strict")

    def selected(selector: Object, namespace: str | None = None) -> set[str]:
        labels = ",".join(f"{key}={value}" for key, value in selector["matchLabels"].items())
        pods = api.list("Pod", namespace, labelSelector=labels)
        return {pod["metadata"]["uid"] for pod in pods}

    pools = pods_of(api, "gvisor") | pods_of(api, "plain")
    assert pools <= selected(policy["spec"]["podSelector"])
    servers_rule, bridge_rule = policy["spec"]["ingress"]
    (peer,) = servers_rule["from"]
    server_uid = api.get("Pod", servers.NAME)["metadata"]["uid"]
    assert selected(peer["podSelector"]) == {server_uid}
    assert [port["port"] for port in servers_rule["ports"]] == [44772]
    (peer,) = bridge_rule["from"]
    namespace = peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    uids = {pod["metadata"]["uid"] for pod in bridge.pods()}
    assert selected(peer["podSelector"], namespace) == uids
    assert [port["port"] for port in bridge_rule["ports"]] == [44772, 5758]


def test_nothing_that_the_bridge_did_was_forbidden(bridge: DeployedOperator) -> None:
    log = bridge.log()
    assert log
    assert [line for line in log.splitlines() if "forbidden" in line] == []
