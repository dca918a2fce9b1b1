"""Every pod that was ever seen in a namespace, in every state it was seen in."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import Any, Self

import msgspec

from fakekubelet import Access, Client
from fakekubelet.loopthread import LoopThread

Object = dict[str, Any]


class PodHistory:
    """A watch that forgets nothing, for what must never have happened.

    What a test reads afterwards cannot say that no pod was made in between, nor where one that
    is gone had been. A watch sees each write, so neither escapes it.
    """

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        self._access = Access.from_kubeconfig(kubeconfig)
        self._path = f"/api/v1/namespaces/{namespace}/pods"
        self._thread = LoopThread("pod-history")
        self._lock = threading.Lock()
        self._states: dict[str, list[Object]] = {}
        self._deleted: set[str] = set()
        self._broken: BaseException | None = None
        self._began = threading.Event()
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        """Begins with what is there."""
        self._thread.call(self._begin())
        if not self._began.wait(15):
            raise TimeoutError(f"the pods cannot be watched: {self._broken}")
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.call(self._end())
        self._thread.stop()

    def states(self) -> list[Object]:
        """All pods in all their states, oldest first for each pod.

        Raises:
            AssertionError: If the watch broke, so that something may have been missed.
        """
        assert self._broken is None, f"the history has a gap: {self._broken}"
        with self._lock:
            return [state for states in self._states.values() for state in states]

    def created(self) -> set[str]:
        """The uids of all pods that have ever been."""
        return {state["metadata"]["uid"] for state in self.states()}

    def nodes(self) -> set[str]:
        """The names of all nodes that a pod was ever bound to."""
        return {node for state in self.states() if (node := state["spec"].get("nodeName"))}

    def deleted(self) -> set[str]:
        """The uids of the pods that are gone."""
        with self._lock:
            return set(self._deleted)

    async def _begin(self) -> None:
        self._task = asyncio.create_task(self._follow())

    async def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _follow(self) -> None:
        try:
            async with Client(self._access) as client:
                listed = await client.get(self._path)
                version = listed["metadata"]["resourceVersion"]
                for pod in listed["items"]:
                    self._add(pod)
                self._began.set()
                while True:
                    async for line in client.watch(self._path, version):
                        version = self._took(msgspec.json.decode(line))
        except Exception as error:
            self._broken = error
            raise

    def _took(self, change: Object) -> str:
        """Takes one change in and returns the version to go on from."""
        pod = change["object"]
        if change["type"] == "ERROR":
            raise RuntimeError(f"the watch ended with {pod}")
        if change["type"] == "DELETED":
            with self._lock:
                self._deleted.add(pod["metadata"]["uid"])
        elif change["type"] != "BOOKMARK":
            self._add(pod)
        return str(pod["metadata"]["resourceVersion"])

    def _add(self, pod: Object) -> None:
        with self._lock:
            self._states.setdefault(pod["metadata"]["uid"], []).append(pod)
