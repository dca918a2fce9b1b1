"""The fake nodes for blocking callers: the same thing in a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

from fakekubelet.behaviour import Behaviour, Exit, Program, Seconds
from fakekubelet.client import Access, Client
from fakekubelet.kubelet import FakeKubelet
from fakekubelet.loopthread import LoopThread
from fakekubelet.nodes import FakeNode


class FakeNodes:
    """Fake nodes with kubelets, driven by plain calls that return once the API has the change.

    Attributes:
        behaviour: The rules about failures, delays, images and programs.
    """

    def __init__(
        self,
        kubeconfig: Path,
        *,
        retry_seconds: float = 10.0,
        event_burst: int = 25,
    ) -> None:
        self.behaviour = Behaviour()
        self._access = Access.from_kubeconfig(kubeconfig)
        self._retry_seconds = retry_seconds
        self._event_burst = event_burst
        self._thread = LoopThread("fake-kubelets")
        self._stack = AsyncExitStack()
        self._kubelet: FakeKubelet | None = None
        self._running: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._thread.call(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.call(self._stop())
        self._thread.stop()

    async def _start(self) -> None:
        client = await self._stack.enter_async_context(Client(self._access))
        self._kubelet = FakeKubelet(
            client,
            self.behaviour,
            retry_seconds=self._retry_seconds,
            event_burst=self._event_burst,
        )
        self._running = asyncio.create_task(self._kubelet.run())
        async with asyncio.timeout(20):
            await self._kubelet.synced()

    async def _stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await self._stack.aclose()

    @property
    def _live(self) -> FakeKubelet:
        if self._kubelet is None:
            raise RuntimeError("the fake nodes are used outside of their `with`")
        return self._kubelet

    def __getitem__(self, name: str) -> FakeNode:
        return self._live.nodes[name]

    def names(self) -> list[str]:
        """The names of all nodes, in order."""
        return sorted(self._live.nodes)

    def add(self, *nodes: FakeNode) -> None:
        """Creates nodes, also such as were deleted before."""
        for node in nodes:
            self._thread.call(self._live.add_node(node))

    def remove(self, *names: str) -> None:
        """Deletes nodes; their pods stay in the API."""
        for name in names:
            self._thread.call(self._live.remove_node(name))

    def set_handlers(
        self, name: str, handlers: set[str] | None, *, serves: set[str] | None = None
    ) -> None:
        """Changes what a node says of its runtime handlers, and what it really has."""
        self._thread.call(self._live.set_handlers(name, handlers, serves=serves))

    def set_ready(self, name: str, ready: str) -> None:
        """Sets a node's Ready condition to True, False or Unknown; its kubelet goes on."""
        self._thread.call(self._live.set_ready(name, ready))

    def lose(self, name: str) -> None:
        """Kills a node: Ready is Unknown and no kubelet starts or ends its pods."""
        self._thread.call(self._live.lose(name))

    def recover(self, name: str) -> None:
        """Brings a lost node back."""
        self._thread.call(self._live.recover(name))

    def cordon(self, name: str, *, on: bool = True) -> None:
        """Makes a node unschedulable, or schedulable again."""
        self._thread.call(self._live.cordon(name, on=on))

    def set_labels(self, name: str, labels: dict[str, str]) -> None:
        """Replaces a node's labels, except those that a kubelet always sets."""
        self._thread.call(self._live.set_labels(name, labels))

    def set_taints(self, name: str, taints: list[dict[str, str]]) -> None:
        """Replaces the taints put on a node by hand."""
        self._thread.call(self._live.set_taints(name, taints))

    def reboot(self, name: str) -> str:
        """Gives a node another boot id and returns it."""
        return self._thread.call(self._live.reboot(name))

    def upgrade(self, name: str, *, runtime: str | None = None, kubelet: str | None = None) -> None:
        """Changes the versions of a node's container runtime or kubelet."""
        self._thread.call(self._live.upgrade(name, runtime=runtime, kubelet=kubelet))

    def fail(
        self,
        handler: str | None,
        text: str,
        nodes: Iterable[str] | None = None,
        *,
        image: str | None = None,
    ) -> None:
        """See `Behaviour.fail`."""
        self.behaviour.fail(handler, text, nodes, image=image)

    def hang(self, handler: str | None, nodes: Iterable[str] | None = None) -> None:
        """See `Behaviour.hang`."""
        self.behaviour.hang(handler, nodes)

    def heal(self, handler: str | None = None, nodes: Iterable[str] | None = None) -> None:
        """See `Behaviour.heal`."""
        self.behaviour.heal(handler, nodes)

    def delay(
        self, handler: str | None, seconds: Seconds, nodes: Iterable[str] | None = None
    ) -> None:
        """See `Behaviour.delay`."""
        self.behaviour.delay(handler, seconds, nodes)

    def delay_stop(
        self, handler: str | None, seconds: Seconds, nodes: Iterable[str] | None = None
    ) -> None:
        """See `Behaviour.delay_stop`."""
        self.behaviour.delay_stop(handler, seconds, nodes)

    def isolate(self, handler: str, isolates: bool, nodes: Iterable[str] | None = None) -> None:
        """See `Behaviour.isolate`."""
        self.behaviour.isolate(handler, isolates, nodes)

    def swallow_messages(
        self, handler: str | None, nodes: Iterable[str] | None = None, *, on: bool = True
    ) -> None:
        """See `Behaviour.swallow_messages`."""
        self.behaviour.swallow_messages(handler, nodes, on=on)

    def lack_image(self, image: str, *, missing: bool = True) -> None:
        """See `Behaviour.lack_image`."""
        self.behaviour.lack_image(image, missing=missing)

    def program(self, image: str, program: Program) -> None:
        """See `Behaviour.program`."""
        self.behaviour.program(image, program)

    def kill_container(
        self,
        namespace: str,
        name: str,
        *,
        container: str | None = None,
        code: int = 137,
        reason: str | None = None,
        message: str = "",
    ) -> None:
        """Ends a container of a running pod; the pod's restart policy says what follows."""
        end = Exit(code, message, reason=reason)
        self._thread.call(self._live.kill_container(namespace, name, end, container=container))

    @property
    def writes(self) -> int:
        """How many requests that write the fake nodes have sent."""
        return self._live.client.writes
