"""KWOK beside the kubelets of this repository: what a pod costs each, and what Stages can express.

    PYTHONPATH=operator:hack:tests python -m bench.kwok --pods 200 2000

Each side gets a control plane of its own and the same pods at the same rate. Pods are bound when
they are created, except those of `bench.kubelet`, which binds them itself, and of `kwok+`, which
has the real kube-scheduler bind them.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import yaml

from bench import machine
from bench.counters import writes
from fakekubelet import nodes as node_objects
from fakekubelet.client import MERGE_PATCH, Access, ApiError, Client
from fakekubelet.nodes import FakeNode
from localcluster import builds, process
from localcluster.controlplane import ControlPlane
from support import Api, objects
from support.controllers import Controllers

Object = dict[str, Any]

STAGES = Path(__file__).with_suffix(".yaml")
SIDES = ("fakekubelet", "kwok", "bench.kubelet", "kwok+")
NAMESPACE = "trial"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
NODES = [FakeNode(f"n-{number}", {"runc", "runsc"}) for number in range(10)]
IDLE_SECONDS = 10.0
WAIT_SECONDS = 600.0


# --- What a pod costs ----------------------------------------------------------------------------


@contextmanager
def _child(command: list[str], log: Path, ready: str) -> Iterator[subprocess.Popen[bytes]]:
    child = process.spawn(command, log=log)
    try:
        _until(lambda: child.poll() is not None or ready in process.tail(log, 1000), 120)
        if child.poll() is not None:
            raise RuntimeError(process.tail(log))
        time.sleep(3)  # What it does at its start is not a pod's.
        yield child
    finally:
        process.terminate(child, grace=5)


def _command(side: str, kubeconfig: Path, config: Path) -> tuple[list[str], str]:
    """How a side is started, and what it says when it is ready."""
    if side == "kwok":
        kwok = str(builds.ensure(["kwok"])["kwok"])
        return [kwok, f"--kubeconfig={kubeconfig}", f"--config={config}"], "Watch all nodes"
    python = ["env", f"PYTHONPATH={os.environ['PYTHONPATH']}", sys.executable, "-m", side]
    ready = "kubelet: ready" if side == "bench.kubelet" else "nodes are up"
    options = [f"--kubeconfig={kubeconfig}", f"--nodes={len(NODES)}"]
    if side == "fakekubelet":
        options += ["--name=n", "--handlers=runc,runsc"]
    return [*python, *options], ready


def measure(side: str, pods: int, rate: float) -> Object:
    """Have one side start pods that come at a rate, and end them."""
    scheduled, name = side.endswith("+"), side.rstrip("+")
    with (
        tempfile.TemporaryDirectory(prefix="kwok-") as folder,
        ControlPlane() as plane,
        Api(plane.kubeconfig, NAMESPACE) as api,
    ):
        api.create(objects.namespace(NAMESPACE))
        api.create(objects.runtime_class("gvisor", "runsc"))
        access = Access.from_kubeconfig(plane.kubeconfig)
        if name == "kwok":
            asyncio.run(_register(access))
        command, ready = _command(name, plane.kubeconfig, STAGES)
        log = Path(folder, f"{name}.log")
        controllers = Controllers(plane.kubeconfig) if scheduled else None
        if controllers is not None:
            controllers.__enter__()
        try:
            with _child(command, log, ready) as child:
                bound = not scheduled and name != "bench.kubelet"
                figures = asyncio.run(_load(access, api, child.pid, pods, rate, bound=bound))
                figures["residentMiB"] = round(machine.resident_mib(child.pid))
        finally:
            if controllers is not None:
                controllers.__exit__()
    return {"side": side, "pods": pods, "load": round(os.getloadavg()[0], 1), **figures}


async def _register(access: Access) -> None:
    async with Client(access) as client:
        for node in NODES:
            await client.post("/api/v1/nodes", node_objects.manifest(node))
            await client.patch(f"/api/v1/nodes/{node.name}", {"spec": node_objects.spec(node)})


async def _load(
    access: Access, api: Api, pid: int, pods: int, rate: float, *, bound: bool
) -> Object:
    made: dict[str, float] = {}
    ready: dict[str, float] = {}
    async with Client(access, concurrency=16) as client:
        version = (await client.get(PODS))["metadata"]["resourceVersion"]

        async def watch() -> None:
            async for line in client.watch(PODS, version):
                event = msgspec.json.decode(line)
                name = event["object"]["metadata"].get("name", "")
                if name not in ready and _is_ready(event["object"]):
                    ready[name] = time.perf_counter()

        async def create(number: int) -> None:
            node = NODES[number % len(NODES)].name if bound else ""
            await client.send("POST", PODS, body=_pod(f"pod-{number}", node))
            made[f"pod-{number}"] = time.perf_counter()

        watching = asyncio.create_task(watch())
        used, sent = machine.cpu_seconds(pid), writes(str(api.raw("GET", "/metrics")))
        began = time.perf_counter()
        creating = []
        for number in range(pods):
            await asyncio.sleep(max(0, began + number / rate - time.perf_counter()))
            creating.append(asyncio.create_task(create(number)))
        await asyncio.gather(*creating)
        async with asyncio.timeout(WAIT_SECONDS):
            while len(ready) < pods:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        starts = machine.cpu_seconds(pid) - used
        statuses = _statuses(writes(str(api.raw("GET", "/metrics")))) - _statuses(sent)
        used = machine.cpu_seconds(pid)
        await asyncio.sleep(IDLE_SECONDS)
        idle = machine.cpu_seconds(pid) - used
        delays = sorted(1000 * max(0.0, ready[name] - made[name]) for name in made)
        figures = {
            "startCpuMs": round(1000 * starts / pods, 2),
            "p50Ms": round(delays[len(delays) // 2]),
            "p99Ms": round(delays[len(delays) * 99 // 100]),
            "statusWrites": round(statuses / pods, 2),
            "idlePercent": round(100 * idle / IDLE_SECONDS, 2),
        }
        if bound:
            used = machine.cpu_seconds(pid)
            await asyncio.gather(*(client.send("DELETE", f"{PODS}/{name}") for name in made))
            async with asyncio.timeout(WAIT_SECONDS):
                while (await client.get(PODS, limit="1"))["items"]:
                    await asyncio.sleep(0.05)
            figures["stopCpuMs"] = round(1000 * (machine.cpu_seconds(pid) - used) / pods, 2)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        return figures


def _statuses(counted: dict[tuple[str, str], float]) -> float:
    return counted.get(("PATCH", "pods/status"), 0)


def _pod(name: str, node: str = "n-0", **spec: Any) -> Object:
    container = {"name": "main", "image": "registry.example/sandbox:1"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            **({"nodeName": node} if node else {}),
            "automountServiceAccountToken": False,
            "containers": [container],
            **spec,
        },
    }


def _is_ready(pod: Object) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


# --- What Stages can express ---------------------------------------------------------------------


class Trial:
    """kwok with Stages that are changed while it runs, as tests change what nodes do."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        documents = [d for d in yaml.safe_load_all(STAGES.read_text()) if d["kind"] == "Stage"]
        self._stages: dict[str, Object] = {d["metadata"]["name"]: d for d in documents}

    def add(self, name: str, base: str = "", **spec: Any) -> None:
        """Create one of the file's Stages, or one like it under another name."""
        stage = copy.deepcopy(self._stages[base or name])
        stage["metadata"]["name"] = name
        stage["spec"].update(spec)
        self.plane.request("POST", _STAGES, stage)
        time.sleep(2)

    def drop(self, name: str) -> None:
        """Delete a Stage."""
        self.plane.request("DELETE", f"{_STAGES}/{name}")
        time.sleep(2)

    def start(self, name: str, **spec: Any) -> Object:
        """Create a pod on the only node."""
        made: Object = self.plane.request("POST", PODS, _pod(name, **spec))
        return made

    def find(self, name: str) -> Object | None:
        """The pod, if it is there."""
        try:
            found: Object = self.plane.request("GET", f"{PODS}/{name}")
        except urllib.error.HTTPError:
            return None
        return found

    def ready(self, name: str, seconds: float = 15) -> float | None:
        """After how many seconds a pod is ready; None if it is not by then."""
        return _until(lambda: _is_ready(self.find(name) or {"status": {}}), seconds)

    def events(self, name: str) -> list[Object]:
        """Source, count and message of the events of a pod."""
        found = self.plane.request("GET", f"/api/v1/namespaces/{NAMESPACE}/events")["items"]
        return [
            {key: event.get(key) for key in ("source", "count", "message")}
            for event in found
            if event["involvedObject"]["name"] == name
        ]


_STAGES = "/apis/kwok.x-k8s.io/v1alpha1/stages"
_GVISOR = {
    "matchExpressions": [
        {"jq": {"key": ".spec.runtimeClassName", "operator": "In", "values": ["gvisor"]}},
        {"jq": {"key": ".status.phase", "operator": "In", "values": ["Pending"]}},
    ]
}
_MESSAGE = "Failed to create pod sandbox: no runtime is configured"
_EVENT = """\
apiVersion: v1
kind: Event
metadata: {generateName: {{ .metadata.name }}-, namespace: {{ .metadata.namespace }}}
involvedObject:
  {apiVersion: v1, kind: Pod, name: {{ .metadata.name }}, namespace: {{ .metadata.namespace }},
   uid: {{ .metadata.uid }}}
type: Warning
reason: FailedCreatePodSandBox
message: "Failed to create pod sandbox: sandbox {{ uuidv4 }}"
source: {component: kubelet, host: {{ .spec.nodeName }}}
count: 1
"""


def express() -> Iterator[tuple[str, Any]]:
    """Try what the tests ask of the fake kubelet."""
    with tempfile.TemporaryDirectory(prefix="kwok-") as folder, ControlPlane() as plane:
        crd = builds.module_dir("kwok", "sigs.k8s.io/kwok") / _CRD
        crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        plane.request("POST", crds, yaml.safe_load(crd.read_text()))
        time.sleep(3)
        plane.request("POST", "/api/v1/namespaces", objects.namespace(NAMESPACE))
        classes = "/apis/node.k8s.io/v1/runtimeclasses"
        plane.request("POST", classes, objects.runtime_class("gvisor", "runsc"))
        plane.request("POST", "/api/v1/nodes", node_objects.manifest(NODES[0]))
        trial = Trial(plane)
        for stage in ("node", "probe-ends", "pod-delete"):
            trial.add(stage)
        config = next(yaml.safe_load_all(STAGES.read_text()))
        config["options"]["enableCRDs"] = ["Stage"]
        path = Path(folder, "config.yaml")
        path.write_text(yaml.safe_dump(config))
        command, ready = _command("kwok", plane.kubeconfig, path)
        with _child(command, Path(folder, "log"), ready):
            yield from _healing(trial)
            yield from _failing(trial)
            yield from _delaying(trial)
            yield from _named_again(trial)


_CRD = "kustomize/crd/bases/kwok.x-k8s.io_stages.yaml"


def _healing(trial: Trial) -> Iterator[tuple[str, Any]]:
    trial.start("waits")
    time.sleep(1)
    trial.add("pod-ready")
    yield "a pod that waited for a Stage is ready after s", trial.ready("waits")
    trial.start("later")
    yield "a pod that came after the Stage is ready after s", trial.ready("later")


def _failing(trial: Trial) -> Iterator[tuple[str, Any]]:
    event = {"type": "Warning", "reason": "FailedCreatePodSandBox", "message": _MESSAGE}
    steps: dict[str, list[Object]] = {
        "event": [{"event": event}],
        "apply": [{"apply": {"template": _EVENT}}],
    }
    for kind, what in steps.items():
        trial.add(kind, "pod-ready", selector=_GVISOR, steps=what, weight=1000)
        trial.start(kind, runtimeClassName="gvisor")
        time.sleep(10)
        yield f"events of a failing pod after 10 s, by {kind}", trial.events(kind)
        trial.drop(kind)


def _delaying(trial: Trial) -> Iterator[tuple[str, Any]]:
    trial.drop("pod-ready")
    trial.add("slow", "pod-ready", delay={"durationMilliseconds": 2000})
    trial.start("slow")
    yield "a pod with a delay of 2 s is ready after s", trial.ready("slow")
    trial.start("touched")
    began = time.monotonic()
    asyncio.run(_annotate(Access.from_kubeconfig(trial.plane.kubeconfig), "touched"))
    trial.ready("touched")
    yield "the same, annotated each second four times", round(time.monotonic() - began, 1)
    trial.drop("slow")
    trial.add("pod-ready")


async def _annotate(access: Access, name: str) -> None:
    async with Client(access) as client:
        for turn in range(4):
            await asyncio.sleep(1)
            patch = {"metadata": {"annotations": {"turn": str(turn)}}}
            await client.patch(f"{PODS}/{name}", patch, MERGE_PATCH)


def _named_again(trial: Trial) -> Iterator[tuple[str, Any]]:
    """A pod is deleted, and another of its name created at once, which nobody deletes."""
    lost = tries = 0
    for number in range(80):
        name = f"again-{number}"
        trial.start(name)
        if trial.ready(name) is None:
            continue
        trial.plane.request("DELETE", f"{PODS}/{name}")
        made: list[Object] = []

        def again(name: str = name, made: list[Object] = made) -> bool:
            try:
                made.append(trial.start(name))
            except urllib.error.HTTPError:
                return False
            return True

        if _until(again, 15) is None:
            continue
        tries += 1
        time.sleep(0.5)
        found = trial.find(name)
        lost += found is None or found["metadata"]["uid"] != made[0]["metadata"]["uid"]
    yield "pods deleted in the place of one of their name", f"{lost} of {tries}"


def _until(done: Callable[[], bool], seconds: float) -> float | None:
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        if done():
            return round(time.monotonic() - began, 1)
        time.sleep(0.002)
    return None


def main() -> None:
    """Measure each side, then try what Stages can express; one JSON object a line."""
    parser = argparse.ArgumentParser(prog="python -m bench.kwok")
    parser.add_argument("--pods", type=int, nargs="*", default=[200, 2000])
    parser.add_argument("--rate", type=float, default=40.0, help="pods a second")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    kwok = builds.module_version("kwok", "sigs.k8s.io/kwok")
    print(json.dumps({**machine.describe(), "kwok": kwok}), flush=True)
    for _ in range(given.rounds):
        for pods in given.pods:
            for side in SIDES:
                try:
                    figures = measure(side, pods, given.rate)
                except (TimeoutError, ApiError) as error:
                    figures = {"side": side, "pods": pods, "failed": repr(error)}
                print(json.dumps(figures), flush=True)
    for what, found in express():
        print(json.dumps({what: found}), flush=True)


if __name__ == "__main__":
    main()
