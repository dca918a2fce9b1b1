"""Fake nodes and their kubelets over a real API server.

One watch on the pods that are bound to a node, one small task for each pod that is on its way up
or down, none for those that just run. A pod costs two writes: a status and a deletion.

What is not imitated: probes, volumes, resource limits, readiness gates, static pods, the network.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fakekubelet import nodes as node_objects
from fakekubelet import podstatus, texts
from fakekubelet.behaviour import Behaviour, ContainerRun, Exit
from fakekubelet.cache import TRANSIENT, Follower
from fakekubelet.client import JSON_PATCH, ApiError, Client
from fakekubelet.events import EventRecorder
from fakekubelet.model import Container, Pod, RuntimeClass
from fakekubelet.nodes import FakeNode
from fakekubelet.podstatus import Stage, Status

_log = logging.getLogger(__name__)
T = TypeVar("T")

_PODS = "/api/v1/pods"
_CLASSES = "/apis/node.k8s.io/v1/runtimeclasses"
# A start that takes longer than this is announced as ContainerCreating first.
_ANNOUNCE_SECONDS = 0.5
_POLL_SECONDS = 0.1
_WRITE_RETRY_SECONDS = (0.1, 0.3, 1.0, 3.0)
# The object is gone or is another one: nothing left to do. 422 is a failed test of the uid.
_GONE = {404, 409, 422}


class _Refused(Exception):  # not an error of ours: what a container runtime says
    """No sandbox: the text says why."""


@dataclass
class _Worker:
    """What the kubelet knows of one pod.

    Attributes:
        pod: The newest version seen.
        status: The last status written or seen; the watch may lag behind it.
        handler: The handler that its sandbox was made with.
        stopping: Whether its task is the one that takes it down.
        task: What is being done about it.
    """

    pod: Pod
    status: Status
    handler: str = ""
    stopping: bool = False
    task: asyncio.Task[None] | None = None


@dataclass
class FakeKubelet:
    """Every fake node and its kubelet.

    Attributes:
        client: The API server.
        behaviour: What the container runtimes do.
        retry_seconds: How long after a failed try the next one comes, before jitter.
        jitter: By which part of itself that grows at most; a real kubelet's is 0.5.
        event_burst: How many events a pod gets before they are rationed.
        nodes: The nodes by name.
    """

    client: Client
    behaviour: Behaviour = field(default_factory=Behaviour)
    retry_seconds: float = 10.0
    jitter: float = 0.5
    event_burst: int = 25
    nodes: dict[str, FakeNode] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._workers: dict[str, _Worker] = {}
        self._events = EventRecorder(self.client, burst=self.event_burst)
        self._addresses = 0
        self._pods = Follower(
            self.client,
            _PODS,
            Pod,
            changed=self._sync,
            gone=self._forget,
            fieldSelector="spec.nodeName!=",
        )
        self._classes = Follower(self.client, _CLASSES, RuntimeClass)

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
        await self._insist(lambda: self.client.delete(f"/api/v1/nodes/{name}"))

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
                await self._write_pod(worker, status)

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
        await self._insist(lambda: self.client.patch(f"/api/v1/nodes/{name}", patch))

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

    async def _write_spec(self, node: FakeNode) -> None:
        patch = {"spec": node_objects.spec(node)}
        await self._insist(lambda: self.client.patch(f"/api/v1/nodes/{node.name}", patch))

    async def _write_status(self, node: FakeNode) -> None:
        patch = {"status": node_objects.status(node)}
        await self._insist(lambda: self.client.patch(f"/api/v1/nodes/{node.name}/status", patch))

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
        await self._write_pod(worker, status)

    # Pods.

    def _sync(self, pod: Pod) -> None:
        node = self.nodes.get(pod.spec.node_name)
        if node is None:
            return
        uid = pod.metadata.uid
        worker = self._workers.get(uid)
        if worker is None:
            worker = self._workers[uid] = _Worker(pod, pod.status)
            if "containerStatuses" in pod.status and pod.status.get("phase") != "Pending":
                # Started before this process was; only its handler has to be found again.
                worker.handler = self._known_handler(pod)
            elif pod.metadata.deletion_timestamp is None:
                worker.task = self._spawn(self._bring_up(worker, node))
        worker.pod = pod
        if pod.metadata.deletion_timestamp and not worker.stopping:
            worker.stopping = True
            if worker.task:
                worker.task.cancel()
            worker.task = self._spawn(self._take_down(worker, node))
        elif worker.task is not None and worker.task.cancelled() and not worker.stopping:
            # Its node was deleted and made again while the pod was on its way up.
            worker.task = self._spawn(self._bring_up(worker, node))

    def _forget(self, pod: Pod) -> None:
        worker = self._workers.pop(pod.metadata.uid, None)
        if worker and worker.task:
            worker.task.cancel()
        self._events.forget(pod.metadata.uid)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(_report)
        return task

    async def _bring_up(self, worker: _Worker, node: FakeNode) -> None:
        pod = worker.pod
        host = node_objects.host_ip(node.name)
        await self._sandbox(worker, node)
        stage = Stage(sandbox_at=podstatus.now())
        await self._images(worker, node, stage)
        init = await self._init_containers(worker, node, stage)
        if init is None:
            return
        # An init container that took its time has been announced; the rest goes in one write.
        ip = self._address()
        stage = Stage(stage.sandbox_at, podstatus.now(), podstatus.now())
        exits = {
            container.name: end
            for container in pod.spec.containers
            if (end := self._exit(worker, node, container, default=None)) is not None
        }
        lasting = max((end.after for end in exits.values()), default=0.0)
        if lasting or not exits:
            status = podstatus.started(pod, host, ip, stage, init, {})
            await self._write_pod(worker, status)
        if exits:
            await asyncio.sleep(lasting)
            await self._alive(node)
            status = podstatus.started(pod, host, ip, stage, init, exits)
            await self._write_pod(worker, status)

    async def _sandbox(self, worker: _Worker, node: FakeNode) -> None:
        """Returns once the pod's sandbox is there."""
        pod = worker.pod
        host = node_objects.host_ip(node.name)
        announced = False

        async def announce() -> None:
            nonlocal announced
            if not announced:
                await self._write_pod(worker, podstatus.creating(pod, host))
                announced = True

        while True:
            await self._alive(node)
            try:
                worker.handler = await self._handler(pod)
                if self.behaviour.hangs(node.name, worker.handler):
                    await announce()
                    await asyncio.sleep(_POLL_SECONDS)
                    continue
                self._try_sandbox(worker, node)
            except _Refused as refused:
                await announce()
                await self._emit(pod, node, texts.REASON, str(refused))
                await self._pause()
                continue
            seconds = self.behaviour.start_seconds(node.name, worker.handler)
            if seconds >= _ANNOUNCE_SECONDS:
                await announce()
            if seconds:
                await asyncio.sleep(seconds)
                await self._alive(node)
            return

    def _try_sandbox(self, worker: _Worker, node: FakeNode) -> None:
        handler = worker.handler
        if not node.has(handler):
            text = texts.NO_RUNTIME if node.handlers is not None else texts.NO_RUNTIME_CONTAINERD_1
        elif (failure := self.behaviour.failure(node.name, handler)) is not None:
            text = failure
        else:
            return
        name = worker.pod.spec.runtime_class_name
        raise _Refused(texts.render(text, handler=handler, runtime_class=name))

    async def _images(self, worker: _Worker, node: FakeNode, stage: Stage) -> None:
        """Returns once every image is there."""
        pod = worker.pod
        containers = pod.spec.init_containers + pod.spec.containers
        backing_off = False
        while image := self.behaviour.missing_image(c.image for c in containers):
            host = node_objects.host_ip(node.name)
            text = f'Failed to pull image "{image}": {podstatus.pull_error(image)}'
            status = podstatus.image_missing(pod, host, image, stage, backing_off=backing_off)
            await self._write_pod(worker, status)
            await self._emit(pod, node, "Failed", text)
            backing_off = True
            await self._pause()
            await self._alive(node)

    async def _init_containers(
        self, worker: _Worker, node: FakeNode, stage: Stage
    ) -> list[Exit] | None:
        """Runs the init containers in order; returns how they ended, None if the pod ends there."""
        pod = worker.pod
        host = node_objects.host_ip(node.name)
        done: list[Exit] = []
        while len(done) < len(pod.spec.init_containers):
            container = pod.spec.init_containers[len(done)]
            if container.restart_policy == "Always":
                done.append(Exit())  # A sidecar: started is enough to go on.
                continue
            end = self._exit(worker, node, container, default=Exit())
            if end is None or end.after:
                status = podstatus.initializing(pod, host, stage, done, failed=False)
                await self._write_pod(worker, status)
            if end is None:
                await asyncio.Event().wait()
                raise AssertionError("nothing sets that event")
            await asyncio.sleep(end.after)
            await self._alive(node)
            if end.code == 0:
                done.append(end)
                continue
            status = podstatus.initializing(pod, host, stage, [*done, end], failed=True)
            await self._write_pod(worker, status)
            if pod.spec.restart_policy == "Never":
                return None
            await self._pause()
        return done

    def _exit(
        self, worker: _Worker, node: FakeNode, container: Container, *, default: Exit | None
    ) -> Exit | None:
        shares = worker.handler in self.behaviour.kernel_sharing
        run = ContainerRun(
            pod=worker.pod,
            container=container,
            node=node.name,
            handler=worker.handler,
            boot_id=node.boot_id if shares else str(uuid.uuid4()),
        )
        return self.behaviour.run(run, default=default)

    async def _take_down(self, worker: _Worker, node: FakeNode) -> None:
        await self._alive(node)
        await asyncio.sleep(self.behaviour.stop_seconds(node.name, worker.handler))
        await self._alive(node)
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": worker.pod.metadata.uid},
        }
        await self._insist(lambda: self.client.delete(worker.pod.path, options))

    async def _handler(self, pod: Pod) -> str:
        name = pod.spec.runtime_class_name
        if not name:
            return ""
        known = self._class(name)
        if known is not None:
            return known.handler
        try:
            # The watch may be a moment behind a class that was just made.
            answer = await self.client.get(f"{_CLASSES}/{name}")
        except ApiError as error:
            if error.status != 404:
                raise
            text = texts.render(texts.CLASS_NOT_FOUND, handler="", runtime_class=name)
            raise _Refused(text) from None
        return str(answer["handler"])

    def _class(self, name: str) -> RuntimeClass | None:
        return next((c for c in self._classes.objects.values() if c.metadata.name == name), None)

    def _known_handler(self, pod: Pod) -> str:
        known = self._class(pod.spec.runtime_class_name or "")
        return known.handler if known else ""

    async def _write_pod(self, worker: _Worker, status: Status) -> None:
        worker.status = status
        patch = [
            # A pod of the same name may have taken its place.
            {"op": "test", "path": "/metadata/uid", "value": worker.pod.metadata.uid},
            {"op": "replace", "path": "/status", "value": status},
        ]
        path = f"{worker.pod.path}/status"
        await self._insist(lambda: self.client.patch(path, patch, JSON_PATCH))

    async def _emit(self, pod: Pod, node: FakeNode, reason: str, text: str) -> None:
        with contextlib.suppress(*TRANSIENT):  # A real kubelet drops those too, in the end.
            await self._events.emit(pod, node.name, reason, text)

    async def _insist(self, send: Callable[[], Awaitable[T]]) -> T | None:
        """Sends a request until it is answered; None if its object is gone."""
        for delay in (*_WRITE_RETRY_SECONDS, None):
            try:
                return await send()
            except ApiError as error:
                if error.status in _GONE:
                    # Rare, and otherwise hard to tell from a status that the server finds invalid.
                    _log.debug("given up: %s", error)
                    if error.status == 422 and "test operation" not in error.body:
                        raise
                    return None
                if delay is None or (error.status < 500 and error.status != 429):
                    raise
            except TRANSIENT:
                if delay is None:
                    raise
            await asyncio.sleep(delay)
        return None

    async def _pause(self) -> None:
        factor = 1 + self.behaviour.random.uniform(0, self.jitter)
        await asyncio.sleep(self.retry_seconds * factor)

    @staticmethod
    async def _alive(node: FakeNode) -> None:
        while not node.alive:  # noqa: ASYNC110  # nodes change under any thread
            await asyncio.sleep(_POLL_SECONDS)

    def _address(self) -> str:
        self._addresses += 1
        count = self._addresses
        return f"10.{100 + (count >> 16) % 100}.{(count >> 8) & 255}.{count & 255}"


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("a pod's task failed", exc_info=error)
