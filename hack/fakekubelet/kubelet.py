"""Fake nodes and their kubelets over a real API server.

One watch on the pods that are bound to a node, one small task for each pod that is on its way up
or down, none for those that just run. A pod costs two writes: a status and a deletion.

What is not imitated: probes, volumes, resource limits, readiness gates, static pods, the network.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from fakekubelet import nodes as node_objects
from fakekubelet import podstatus, texts
from fakekubelet.behaviour import Behaviour, Exit
from fakekubelet.cache import Reflector
from fakekubelet.client import ApiError, Client
from fakekubelet.events import EventRecorder
from fakekubelet.model import Pod, RuntimeClass
from fakekubelet.nodes import FakeNode
from fakekubelet.startup import CLASSES, Startup, alive
from fakekubelet.writing import Worker, retry_until_answered, write_pod

_log = logging.getLogger(__name__)

_PODS = "/api/v1/pods"


@dataclass
class FakeKubelet:
    """Every fake node and its kubelet.

    Attributes:
        client: The API server.
        behaviour: What the container runtimes do.
        retry_seconds: How long after a failed try the next one comes, before jitter.
        event_burst: How many events a pod gets before they are rationed.
        nodes: The nodes by name.
    """

    client: Client
    behaviour: Behaviour = field(default_factory=Behaviour)
    retry_seconds: float = 10.0
    event_burst: int = 25
    nodes: dict[str, FakeNode] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._workers: dict[str, Worker] = {}
        self._events = EventRecorder(self.client, burst=self.event_burst)
        self._pods = Reflector(
            self.client,
            _PODS,
            Pod,
            changed=self._sync,
            gone=self._forget,
            fieldSelector="spec.nodeName!=",
        )
        self._classes = Reflector(self.client, CLASSES, RuntimeClass)
        self._startup = Startup(
            self.client,
            self.behaviour,
            self._events,
            self._class,
            self.retry_seconds,
        )

    async def run(self) -> None:
        """Plays every kubelet until cancelled."""
        following = [asyncio.create_task(f.run()) for f in (self._pods, self._classes)]
        try:
            await asyncio.gather(*following)
        finally:
            tasks = following + [w.task for w in self._workers.values() if w.task]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def synced(self) -> None:
        """Waits until pods and RuntimeClasses were listed once."""
        await self._pods.synced.wait()
        await self._classes.synced.wait()

    # Nodes.

    async def add_node(self, node: FakeNode) -> None:
        """Creates a Node, or a deleted one again, and starts its kubelet."""
        self.nodes[node.name] = node
        try:
            await self.client.post("/api/v1/nodes", node_objects.manifest(node))
        except ApiError as error:
            if error.status != 409:
                raise
        # Admission taints every new node as not ready; who would lift that is not running here.
        await self._write_spec(node)
        await self._write_status(node)
        for pod in [p for p in self._pods.objects.values() if p.spec.node_name == node.name]:
            self._sync(pod)

    async def remove_node(self, name: str) -> None:
        """Deletes a Node; its pods stay in the API as they are."""
        self.nodes.pop(name)
        for worker in self._workers.values():
            if worker.pod.spec.node_name == name and worker.task:
                worker.task.cancel()
        await retry_until_answered(lambda: self.client.delete(f"/api/v1/nodes/{name}"))

    async def set_handlers(
        self, name: str, handlers: set[str] | None, *, serves: set[str] | None = None
    ) -> None:
        """Changes a node's container runtime: what it says it has and what it really has."""
        node = self.nodes[name]
        node.handlers, node.serves = handlers, serves
        await self._write_status(node)

    async def set_ready(self, name: str, ready: str) -> None:
        """Sets the Ready condition of a node to True, False or Unknown.

        The taint and the Ready conditions of its pods follow, as the node lifecycle controller
        would have it.
        """
        node = self.nodes[name]
        node.ready = ready
        await self._write_status(node)
        await self._write_spec(node)
        for worker in list(self._workers.values()):
            if worker.pod.spec.node_name == name and worker.status.get("phase") == "Running":
                up = ready == "True" and all(
                    c["ready"] for c in worker.status.get("containerStatuses", [])
                )
                status = podstatus.with_ready(worker.status, ready=up, containers_too=False)
                await write_pod(self.client, worker, status)

    async def lose(self, name: str) -> None:
        """Kills a node: its kubelet does nothing any more, Ready becomes Unknown."""
        self.nodes[name].alive = False
        await self.set_ready(name, "Unknown")

    async def recover(self, name: str) -> None:
        """Brings a lost node back with everything that ran on it."""
        self.nodes[name].alive = True
        await self.set_ready(name, "True")

    async def cordon(self, name: str, *, on: bool = True) -> None:
        """Makes a node unschedulable, or schedulable again."""
        self.nodes[name].unschedulable = on
        await self._write_spec(self.nodes[name])

    async def set_labels(self, name: str, labels: dict[str, str]) -> None:
        """Replaces the labels of a node, except those that a kubelet always sets."""
        node = self.nodes[name]
        old = node_objects.all_labels(node)
        node.labels = dict(labels)
        new: dict[str, str | None] = dict(node_objects.all_labels(node))
        removed = {key: None for key in old if key not in new}
        patch = {"metadata": {"labels": {**removed, **new}}}
        await retry_until_answered(lambda: self.client.patch(f"/api/v1/nodes/{name}", patch))

    async def set_taints(self, name: str, taints: list[dict[str, str]]) -> None:
        """Replaces the taints that were put on a node by hand."""
        self.nodes[name].taints = list(taints)
        await self._write_spec(self.nodes[name])

    async def reboot(self, name: str) -> str:
        """Gives a node another boot id and returns it. Its pods are not touched."""
        node = self.nodes[name]
        node.boots += 1
        await self._write_status(node)
        return node.boot_id

    async def upgrade(self, name: str, *, runtime: str | None, kubelet: str | None) -> None:
        """Changes a node's software. Its pods are not touched."""
        node = self.nodes[name]
        node.runtime = runtime or node.runtime
        node.kubelet = kubelet or node.kubelet
        await self._write_status(node)

    async def _write_spec(self, node: FakeNode) -> None:
        patch = {"spec": node_objects.spec(node)}
        await retry_until_answered(lambda: self.client.patch(f"/api/v1/nodes/{node.name}", patch))

    async def _write_status(self, node: FakeNode) -> None:
        patch = {"status": node_objects.status(node)}
        await retry_until_answered(
            lambda: self.client.patch(f"/api/v1/nodes/{node.name}/status", patch)
        )

    # Containers that end.

    async def kill_container(
        self, namespace: str, name: str, end: Exit, *, container: str | None = None
    ) -> None:
        """Ends a container of a running pod; the pod's restart policy says what follows.

        Args:
            namespace: The pod's namespace.
            name: The pod's name.
            end: How the container ends.
            container: Which one; by default the first.

        Raises:
            LookupError: If no such pod runs on a fake node.
        """
        worker = next(
            (
                w
                for w in self._workers.values()
                if (w.pod.metadata.namespace, w.pod.metadata.name) == (namespace, name)
                and w.status.get("phase") == "Running"
            ),
            None,
        )
        if worker is None:
            raise LookupError(f"no pod {namespace}/{name} runs on a fake node")
        spec = worker.pod.spec
        policy = spec.restart_policy
        restart = policy == "Always" or (policy == "OnFailure" and end.code != 0)
        error = None
        node = self.nodes[spec.node_name]
        if restart and not node.has(worker.handler):
            # Unlike the sandbox's, this failure stands in the pod's status.
            error, restart = texts.container_error(worker.handler), False
        elif restart and spec.runtime_class_name and self._class(spec.runtime_class_name) is None:
            # The kubelet needs the class for the sandbox's options and fails without an event.
            restart = False
        status = podstatus.container_ended(
            worker.status,
            container or spec.containers[0].name,
            end,
            restart=restart,
            error=error,
        )
        if not restart and policy == "Always":
            status["phase"] = "Running"
        await write_pod(self.client, worker, status)

    # Pods.

    def _sync(self, pod: Pod) -> None:
        node = self.nodes.get(pod.spec.node_name)
        if node is None:
            return
        uid = pod.metadata.uid
        worker = self._workers.get(uid)
        if worker is None:
            worker = self._workers[uid] = Worker(pod, pod.status)
            if pod.metadata.deletion_timestamp is None:
                worker.task = self._spawn(self._startup.run(worker, node))
        worker.pod = pod
        if pod.metadata.deletion_timestamp and not worker.stopping:
            worker.stopping = True
            if worker.task:
                worker.task.cancel()
            worker.task = self._spawn(self._take_down(worker, node))
        elif worker.task is not None and worker.task.cancelled() and not worker.stopping:
            # Its node was deleted and made again while the pod was on its way up.
            worker.task = self._spawn(self._startup.run(worker, node))

    def _forget(self, pod: Pod) -> None:
        worker = self._workers.pop(pod.metadata.uid, None)
        if worker and worker.task:
            worker.task.cancel()
        self._events.forget(pod.metadata.uid)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(_report)
        return task

    async def _take_down(self, worker: Worker, node: FakeNode) -> None:
        await alive(node)
        await asyncio.sleep(self.behaviour.stop_seconds(node.name, worker.handler))
        await alive(node)
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": worker.pod.metadata.uid},
        }
        await retry_until_answered(lambda: self.client.delete(worker.pod.path, options))

    def _class(self, name: str) -> RuntimeClass | None:
        return next((c for c in self._classes.objects.values() if c.metadata.name == name), None)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("a pod's task failed", exc_info=error)
