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
import uuid
from pathlib import Path

from bench.stats import summarise
from fakekubelet import nodes as node_objects
from fakekubelet import podstatus, probes
from fakekubelet.behaviour import ContainerRun, Exit
from fakekubelet.cache import Reflector
from fakekubelet.client import MERGE_PATCH, Access, ApiError, Client
from fakekubelet.model import Pod
from fakekubelet.nodes import FakeNode
from sandboxpool.runtimes.probe import ANNOTATION_NODE

READY = "kubelet: ready"
WORKERS = 16


class Kubelets:
    """All nodes of one benchmark.

    Attributes:
        lags_ms: for each pod, from the watch showing it to its being ready in the API.
    """

    def __init__(self, client: Client, nodes: list[FakeNode]) -> None:
        self._client = client
        self._nodes = {node.name: node for node in nodes}
        self._turn = itertools.cycle(nodes)
        self._addresses = itertools.count(1)
        self._pods: asyncio.Queue[tuple[float, Pod]] = asyncio.Queue()
        # A pod that is bound leaves the selected set; whether it was told of twice does not matter.
        self._unbound = Reflector(
            client,
            "/api/v1/pods",
            Pod,
            changed=lambda pod: self._pods.put_nowait((time.perf_counter(), pod)),
            fieldSelector="spec.nodeName=,status.phase=Pending",
        )
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

        await asyncio.gather(*map(one, self._nodes.values()))

    async def run(self) -> None:
        """Start pods until cancelled."""
        async with asyncio.TaskGroup() as parts:
            for _ in range(WORKERS):
                parts.create_task(self._work())
            parts.create_task(self._unbound.run())
            await self._unbound.synced.wait()
            print(READY, flush=True)

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

    async def _start(self, pod: Pod) -> None:
        pinned = pod.metadata.annotations.get(ANNOTATION_NODE)
        node = self._nodes[pinned] if pinned else next(self._turn)
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": pod.metadata.name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node.name},
        }
        await self._client.send("POST", f"{pod.path}/binding", body=binding)
        number = next(self._addresses)
        address = f"10.{64 + (number >> 16) % 128}.{number >> 8 & 255}.{number & 255}"
        now = podstatus.now()
        status = podstatus.started(
            pod,
            node_objects.host_ip(node.name),
            address,
            podstatus.Stage(now, now, now),
            [Exit() for _ in pod.spec.init_containers],
            _exits(pod, node),
        )
        # A merge patch: what the API server put into the status itself stays.
        await self._client.send(
            "PATCH", f"{pod.path}/status", body={"status": status}, content_type=MERGE_PATCH
        )


def _exits(pod: Pod, node: FakeNode) -> dict[str, Exit]:
    """How the containers of a probe end, by name: only the control shares the node's kernel."""
    boot_id = str(uuid.uuid4()) if pod.spec.runtime_class_name else node.boot_id
    runs = (ContainerRun(pod, c, node.name, "", boot_id, "") for c in pod.spec.containers)
    return {run.container.name: end for run in runs if (end := probes.read(run)) is not None}


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
