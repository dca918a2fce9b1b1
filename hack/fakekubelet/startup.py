"""The way of one pod from bound to running: sandbox, images, init containers, containers."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from fakekubelet import nodes as node_objects
from fakekubelet import podstatus, probes, texts
from fakekubelet.behaviour import Behaviour, ContainerRun, Exit
from fakekubelet.cache import TRANSIENT
from fakekubelet.client import ApiError, Client
from fakekubelet.events import EventRecorder
from fakekubelet.model import Container, Pod, RuntimeClass
from fakekubelet.nodes import FakeNode
from fakekubelet.podstatus import Stage
from fakekubelet.writing import Worker, write_pod

CLASSES = "/apis/node.k8s.io/v1/runtimeclasses"

# A start that takes longer than this is announced as ContainerCreating first.
_ANNOUNCE_SECONDS = 0.5
_POLL_SECONDS = 0.1
# By which part of itself the pause before the next try grows at most, as a real kubelet's.
_JITTER = 0.5
# gVisor's own words; a VM would name a real one.
_GUEST_KERNEL = "Linux version 4.19.0-gvisor #1 SMP Sun Jan 10 15:06:54 PST 2016"


class _Refused(Exception):  # not an error of ours: what a container runtime says
    """No sandbox: the text says why."""


@dataclass
class Startup:
    """How pods are started.

    Attributes:
        client: The API server.
        behaviour: What the container runtimes do.
        events: Posts what fails.
        runtime_class: Looks a RuntimeClass up by name, without asking the API server.
        retry_seconds: How long after a failed try the next one comes, before jitter.
    """

    client: Client
    behaviour: Behaviour
    events: EventRecorder
    runtime_class: Callable[[str], RuntimeClass | None]
    retry_seconds: float
    _addresses: int = field(default=0, init=False)

    async def run(self, worker: Worker, node: FakeNode) -> None:
        """Takes a pod from bound to running, however long that takes."""
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
            await write_pod(self.client, worker, status)
        if exits:
            await asyncio.sleep(lasting)
            await alive(node)
            status = podstatus.started(pod, host, ip, stage, init, exits)
            await write_pod(self.client, worker, status)

    async def _sandbox(self, worker: Worker, node: FakeNode) -> None:
        """Returns once the pod's sandbox is there."""
        pod = worker.pod
        host = node_objects.host_ip(node.name)
        announced = False

        async def announce() -> None:
            nonlocal announced
            if not announced:
                await write_pod(self.client, worker, podstatus.creating(pod, host))
                announced = True

        while True:
            await alive(node)
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
                await alive(node)
            return

    def _try_sandbox(self, worker: Worker, node: FakeNode) -> None:
        handler, spec = worker.handler, worker.pod.spec
        images = [container.image for container in spec.init_containers + spec.containers]
        if not node.has(handler):
            text = texts.NO_RUNTIME if node.handlers is not None else texts.NO_RUNTIME_CONTAINERD_1
        elif (failure := self.behaviour.failure(node.name, handler, images)) is not None:
            text = failure
        else:
            return
        name = spec.runtime_class_name
        raise _Refused(texts.render(text, handler=handler, runtime_class=name))

    async def _images(self, worker: Worker, node: FakeNode, stage: Stage) -> None:
        """Returns once every image is there."""
        pod = worker.pod
        containers = pod.spec.init_containers + pod.spec.containers
        backing_off = False
        while image := self.behaviour.missing_image(c.image for c in containers):
            host = node_objects.host_ip(node.name)
            text = f'Failed to pull image "{image}": {podstatus.pull_error(image)}'
            status = podstatus.image_missing(pod, host, image, stage, backing_off=backing_off)
            await write_pod(self.client, worker, status)
            await self._emit(pod, node, "Failed", text)
            backing_off = True
            await self._pause()
            await alive(node)

    async def _init_containers(
        self, worker: Worker, node: FakeNode, stage: Stage
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
                await write_pod(self.client, worker, status)
            if end is None:
                await asyncio.Event().wait()
                raise AssertionError("nothing sets that event")
            await asyncio.sleep(end.after)
            await alive(node)
            if end.code == 0:
                done.append(end)
                continue
            status = podstatus.initializing(pod, host, stage, [*done, end], failed=True)
            await write_pod(self.client, worker, status)
            if pod.spec.restart_policy == "Never":
                return None
            await self._pause()
        return done

    def _exit(
        self, worker: Worker, node: FakeNode, container: Container, *, default: Exit | None
    ) -> Exit | None:
        isolated = self.behaviour.isolates(node.name, worker.handler)
        run = ContainerRun(
            pod=worker.pod,
            container=container,
            node=node.name,
            handler=worker.handler,
            boot_id=str(uuid.uuid4()) if isolated else node.boot_id,
            kernel=_GUEST_KERNEL if isolated else f"Linux version {node_objects.KERNEL}",
        )
        end = self.behaviour.run(run, default=probes.read(run) or default)
        if end is not None and not self.behaviour.messages_arrive(node.name, worker.handler):
            return replace(end, message="")
        return end

    async def _handler(self, pod: Pod) -> str:
        name = pod.spec.runtime_class_name
        if not name:
            return ""
        known = self.runtime_class(name)
        if known is not None:
            return known.handler
        try:
            # The watch may be a moment behind a class that was just made.
            answer = await self.client.get(f"{CLASSES}/{name}")
        except ApiError as error:
            if error.status != 404:
                raise
            text = texts.render(texts.CLASS_NOT_FOUND, handler="", runtime_class=name)
            raise _Refused(text) from None
        return str(answer["handler"])

    async def _emit(self, pod: Pod, node: FakeNode, reason: str, text: str) -> None:
        with contextlib.suppress(*TRANSIENT):  # A real kubelet drops those too, in the end.
            await self.events.emit(pod, node.name, reason, text)

    async def _pause(self) -> None:
        factor = 1 + self.behaviour.random.uniform(0, _JITTER)
        await asyncio.sleep(self.retry_seconds * factor)

    def _address(self) -> str:
        self._addresses += 1
        return self.behaviour.address(self._addresses)


async def alive(node: FakeNode) -> None:
    """Waits as long as a node is dead."""
    while not node.alive:  # noqa: ASYNC110  # nodes change under any thread
        await asyncio.sleep(_POLL_SECONDS)
