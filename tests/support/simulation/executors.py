"""What runs in the sandboxes of OpenSandbox, as the bridge meets it: a task-executor and execd."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from enum import Enum
from types import TracebackType
from typing import Self

import msgspec

from sandboxpool.opensandbox.executor import (
    DELIVERY_SECONDS,
    READY_SECONDS,
    DeliveryError,
    Executor,
    TaskEndedError,
)
from support.simulation.apiserver import ApiServer, Object

RETRY_SECONDS = 0.25


class Mood(Enum):
    """How a sandbox behaves towards the bridge."""

    WELL = "takes the task, and its execd answers in a moment"
    SLOW = "takes the task after seconds"
    ABSENT = "has no task-executor"
    ENDS = "takes the task, which ends at once"
    SILENT = "takes the task, and its execd does not answer"


class Executors:
    """All sandboxes' executors.

    Args:
        server: where their pods are.
        random: decides what is left to chance.
        way: how many seconds a message takes.

    Attributes:
        moods: what sandboxes are drawn from, at their first task.
        delivered: the tasks that each pod was given, by its uid: their names.
        on_delivery: told of each task that arrives: the pod, its name and its process.
    """

    def __init__(self, server: ApiServer, random: random.Random, way: Callable[[], float]) -> None:
        self.moods: tuple[Mood, ...] = (Mood.WELL,)
        self.delivered: dict[str, list[str]] = {}
        self.on_delivery: list[Callable[[Object, str, Object], None]] = []
        self._server = server
        self.random = random
        self.way = way
        self._moods: dict[str, Mood] = {}

    def at(self, address: str) -> Object | None:
        """The pod at an address, if it runs."""
        for pod in self._server.all("pods"):
            if pod["status"].get("podIP") == address and pod["status"].get("phase") == "Running":
                return pod
        return None

    def mood_of(self, pod: Object) -> Mood:
        """How a sandbox behaves; it stays so."""
        uid = pod["metadata"]["uid"]
        if uid not in self._moods:
            self._moods[uid] = self.random.choice(self.moods)
        return self._moods[uid]

    def arrive(self, address: str, name: str, process: Object) -> None:
        """A task has come, whether its sender still lives or not."""
        pod = self.at(address)
        if pod is None or self.mood_of(pod) is Mood.ABSENT:
            return
        for told in self.on_delivery:
            told(pod, name, process)
        tasks = self.delivered.setdefault(pod["metadata"]["uid"], [])
        if name not in tasks:
            tasks.append(name)


class SimulatedExecutor(Executor):
    """One bridge's requests to sandboxes.

    Args:
        sandboxes: the other side.
        dead: whether the bridge was killed.
    """

    def __init__(self, sandboxes: Executors, dead: Callable[[], bool]) -> None:
        self._sandboxes = sandboxes
        self._dead = dead

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    async def deliver(self, address: str, name: str, process: msgspec.Raw) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DELIVERY_SECONDS
        while True:
            if self._dead():
                raise asyncio.CancelledError
            way = self._sandboxes.way()
            task = msgspec.json.decode(process)
            loop.call_later(way, self._sandboxes.arrive, address, name, task)
            await asyncio.sleep(2 * way)
            pod = self._sandboxes.at(address)
            mood = self._sandboxes.mood_of(pod) if pod is not None else Mood.ABSENT
            if mood is Mood.SLOW:
                await asyncio.sleep(self._sandboxes.random.uniform(0.5, 8.0))
            if mood is Mood.ENDS and self._sandboxes.random.random() < 0.5:
                raise TaskEndedError("the task ended with exit code 2 before execd answered")
            if mood is not Mood.ABSENT:
                return
            if loop.time() + RETRY_SECONDS >= deadline:
                raise DeliveryError("task-executor on port 5758: connection refused")
            await asyncio.sleep(RETRY_SECONDS)

    async def wait_until_ready(self, address: str, name: str) -> bool:
        del name
        pod = self._sandboxes.at(address)
        mood = self._sandboxes.mood_of(pod) if pod is not None else Mood.SILENT
        await asyncio.sleep(2 * self._sandboxes.way())
        if mood is Mood.ENDS:
            raise TaskEndedError("the task ended with exit code 2 before execd answered")
        if mood is Mood.SILENT:
            await asyncio.sleep(READY_SECONDS)
        return mood is not Mood.SILENT
