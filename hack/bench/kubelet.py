"""A scheduler and kubelets in one, as lean as can be, so that a benchmark never waits for them.

    python -m bench.kubelet --kubeconfig FILE --nodes 10 --report FILE

Pods are bound to nodes in turn and said to be ready at once: two writes a pod, and nothing is
remembered. Probe pods end with the answer of a runtime that isolates. For behaviour (failures,
delays, restarts) there is `fakekubelet`; this one only has speed. At SIGTERM it writes down how
far behind it ever was.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import signal
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from bench.stats import summarise
from fakekubelet import nodes as node_objects
from fakekubelet.client import MERGE_PATCH, Access, ApiError, Client
from fakekubelet.nodes import FakeNode
from sandboxpool.api.names import ANNOTATION_HANDLER
from sandboxpool.runtimes.probe import (
    ANNOTATION_NODE,
    CONTROL,
    LABEL_PROBE,
    NODES_KERNEL,
    OWN_KERNEL,
)

READY = "kubelet: ready"
WORKERS = 16
PODS = "/api/v1/pods"


class _Container(msgspec.Struct, frozen=True):
    name: str
    image: str = ""


class _Meta(msgspec.Struct, frozen=True):
    name: str = ""
    namespace: str = ""
    resourceVersion: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class _Spec(msgspec.Struct, frozen=True):
    # A bookmark has none.
    containers: list[_Container] | None = None


class _Pod(msgspec.Struct, frozen=True):
    metadata: _Meta
    spec: _Spec = _Spec()


class _Event(msgspec.Struct, frozen=True):
    type: str
    object: _Pod


class _List(msgspec.Struct, frozen=True):
    metadata: _Meta
    items: list[_Pod] = []


class Kubelets:
    """All nodes of one benchmark.

    Attributes:
        lags_ms: for each pod, from the watch showing it to its being ready in the API.
    """

    def __init__(self, client: Client, nodes: list[FakeNode]) -> None:
        self._client = client
        self._nodes = nodes
        self._turn = itertools.cycle([node.name for node in nodes])
        self._addresses = itertools.count(1)
        self._pods: asyncio.Queue[tuple[float, _Pod]] = asyncio.Queue()
        self.lags_ms: list[float] = []

    async def register(self) -> None:
        """Create the nodes that do not exist."""

        async def one(node: FakeNode) -> None:
            try:
                await self._client.post("/api/v1/nodes", node_objects.manifest(node))
            except ApiError as error:
                if error.status != 409:
                    raise
            # An admission plugin taints each new node until somebody says that it is ready.
            await self._client.patch(
                f"/api/v1/nodes/{node.name}", {"spec": node_objects.spec(node)}
            )

        await asyncio.gather(*map(one, self._nodes))

    async def run(self) -> None:
        """Start pods until cancelled."""
        async with asyncio.TaskGroup() as parts:
            for _ in range(WORKERS):
                parts.create_task(self._work())
            parts.create_task(self._feed())

    async def _feed(self) -> None:
        # A pod that is bound leaves the selected set; whether it was told of twice does not matter.
        selector = "spec.nodeName=,status.phase=Pending"
        decode = msgspec.json.Decoder(_Event).decode
        version = ""
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                if not version:
                    data = await self._client.get_raw(PODS, fieldSelector=selector)
                    listed = msgspec.json.decode(data, type=_List)
                    version = listed.metadata.resourceVersion
                    for pod in listed.items:
                        self._pods.put_nowait((time.perf_counter(), pod))
                    print(READY, flush=True)
                async for line in self._client.watch(PODS, version, fieldSelector=selector):
                    event = decode(line)
                    version = event.object.metadata.resourceVersion
                    if event.type == "ADDED":
                        self._pods.put_nowait((time.perf_counter(), event.object))

    async def _work(self) -> None:
        while True:
            seen, pod = await self._pods.get()
            try:
                await self._start(pod)
            except ApiError as error:
                # Deleted, or bound before: no business of ours any more.
                if error.status not in (404, 409):
                    raise
            else:
                self.lags_ms.append(1000 * (time.perf_counter() - seen))

    async def _start(self, pod: _Pod) -> None:
        metadata = pod.metadata
        node = metadata.annotations.get(ANNOTATION_NODE) or next(self._turn)
        path = f"/api/v1/namespaces/{metadata.namespace}/pods/{metadata.name}"
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": metadata.name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        await self._client.send("POST", f"{path}/binding", body=binding)
        number = next(self._addresses)
        address = f"10.{64 + (number >> 16) % 128}.{number >> 8 & 255}.{number & 255}"
        ended = None
        if LABEL_PROBE in metadata.labels:
            control = metadata.annotations.get(ANNOTATION_HANDLER) == CONTROL
            ended = NODES_KERNEL if control else OWN_KERNEL
        status = status_of(pod, address, time.gmtime(), ended=ended)
        # A merge patch: what the API server put into the status itself stays.
        await self._client.send(
            "PATCH", f"{path}/status", body={"status": status}, content_type=MERGE_PATCH
        )


def status_of(
    pod: _Pod, address: str, at: time.struct_time, *, ended: int | None = None
) -> dict[str, Any]:
    """The status of a pod that runs, or whose only container has ended with a code."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", at)
    ready = "True" if ended is None else "False"
    state = (
        {"running": {"startedAt": now}}
        if ended is None
        else {"terminated": {"exitCode": ended, "reason": "Completed", "finishedAt": now}}
    )
    kinds = ("PodScheduled", "Initialized", "PodReadyToStartContainers")
    conditions = [*((kind, "True") for kind in kinds), ("ContainersReady", ready), ("Ready", ready)]
    return {
        "phase": "Running" if ended is None else "Succeeded",
        "startTime": now,
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [
            {"type": kind, "status": value, "lastTransitionTime": now} for kind, value in conditions
        ],
        "containerStatuses": [
            {
                "name": container.name,
                "image": container.image,
                "imageID": "sha256:0",
                "ready": ended is None,
                "started": ended is None,
                "restartCount": 0,
                "state": state,
            }
            for container in pod.spec.containers or ()
        ],
    }


async def run(access: Access, nodes: list[FakeNode]) -> list[float]:
    """Be the nodes until SIGTERM or SIGINT; return the lag of each pod in milliseconds."""
    async with Client(access, concurrency=WORKERS) as client:
        kubelets = Kubelets(client, nodes)
        await kubelets.register()
        running = asyncio.create_task(kubelets.run())
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, running.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await running
    return kubelets.lags_ms


def main() -> None:
    """Be the nodes of a benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench.kubelet")
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--handler", default="runsc")
    parser.add_argument("--report", type=Path)
    given = parser.parse_args()
    nodes = [FakeNode(f"bench-{n:04}", {"runc", given.handler}) for n in range(given.nodes)]
    lags_ms = asyncio.run(run(Access.from_kubeconfig(given.kubeconfig), nodes))
    if given.report is not None:
        given.report.write_text(json.dumps(summarise(lags_ms, 0).as_dict()))


if __name__ == "__main__":
    main()
