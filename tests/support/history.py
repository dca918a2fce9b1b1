"""Every object of a namespace in every state it was ever in, from a watch that forgets nothing.

What a test reads afterwards cannot say what never happened in between. A watch sees each write,
so nothing escapes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
import msgspec

from fakekubelet import Access, ApiError, Client
from fakekubelet.loopthread import LoopThread
from support.api import KINDS

Object = dict[str, Any]

_BEGIN_SECONDS = 15.0
# An API server that restarts is asked again so often; the watch goes on where it was.
_AGAIN_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Change:
    """One write, as the watch showed it.

    Attributes:
        version: Its resourceVersion: of all kinds together, these count up from write to write.
        kind: The object's kind.
        deleted: Whether the object is gone with it.
        object: The object afterwards; of one that is gone, its last state.
    """

    version: int
    kind: str
    deleted: bool
    object: Object

    @property
    def uid(self) -> str:
        """The object's uid."""
        return str(self.object["metadata"]["uid"])


class History:
    """Follows some kinds in one namespace; use as a context manager.

    An API server that has been restarted tells nothing of what was before. Where a test restarts
    it, `gaps` has a list go on from there: what was between is missed then.
    """

    def __init__(
        self,
        kubeconfig: Path,
        namespace: str,
        kinds: Sequence[str] = ("Pod",),
        *,
        gaps: bool = False,
    ) -> None:
        self._gaps = gaps
        self._access = Access.from_kubeconfig(kubeconfig)
        self._paths = {
            kind: f"{KINDS[kind].root}/namespaces/{namespace}/{KINDS[kind].plural}"
            for kind in kinds
        }
        self._thread = LoopThread("history")
        self._lock = threading.Lock()
        self._changes: list[Change] = []
        self._broken: BaseException | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def __enter__(self) -> Self:
        """Begins with what is there."""
        self._thread.call(self._begin(), _BEGIN_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.call(self._end())
        self._thread.stop()

    def changes(self, since: int = 0) -> list[Change]:
        """The changes after the first so many, in the order in which they were seen.

        Those of one kind come in the order of the writes, those of different kinds need not.

        Raises:
            AssertionError: If a watch broke, so that something may have been missed.
        """
        assert self._broken is None, f"the history has a gap: {self._broken}"
        with self._lock:
            return self._changes[since:]

    async def _begin(self) -> None:
        begun = []
        for kind in self._paths:
            begun.append(asyncio.Event())
            self._tasks.append(asyncio.create_task(self._follow(kind, begun[-1])))
        for event in begun:
            await event.wait()

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _follow(self, kind: str, begun: asyncio.Event) -> None:
        try:
            async with Client(self._access) as client:
                version = await self._list(client, kind)
                begun.set()
                while True:
                    try:
                        version = await self._watch(client, kind, version)
                    except ApiError as error:
                        if error.status != 410 or not self._gaps:
                            raise
                        version = await self._list(client, kind)
        except Exception as error:
            self._broken = error
            begun.set()

    async def _list(self, client: Client, kind: str) -> str:
        """Takes in what there is, and that the rest is gone; returns the version to go on from."""
        listed = await client.get(self._paths[kind])
        version = str(listed["metadata"]["resourceVersion"])
        last = {change.uid: change for change in self._changes if change.kind == kind}
        for obj in listed["items"]:
            known = last.pop(obj["metadata"]["uid"], None)
            if known is None or known.version != int(obj["metadata"]["resourceVersion"]):
                self._add(kind, obj, deleted=False)
        with self._lock:
            self._changes += [
                Change(int(version), kind, True, change.object)
                for change in last.values()
                if not change.deleted
            ]
        return version

    async def _watch(self, client: Client, kind: str, version: str) -> str:
        """Follows one watch to its end and returns the version to go on from."""
        try:
            async for line in client.watch(self._paths[kind], version):
                change = msgspec.json.decode(line)
                _check(change)
                version = change["object"]["metadata"]["resourceVersion"]
                if change["type"] != "BOOKMARK":
                    self._add(kind, change["object"], deleted=change["type"] == "DELETED")
        except (aiohttp.ClientError, OSError):
            await asyncio.sleep(_AGAIN_SECONDS)
        except ApiError as error:
            if error.status < 500 and error.status != 429:
                # Most likely 410: what happened since is not told any more.
                raise
            await asyncio.sleep(_AGAIN_SECONDS)
        return version

    def _add(self, kind: str, obj: Object, *, deleted: bool) -> None:
        version = int(obj["metadata"]["resourceVersion"])
        with self._lock:
            self._changes.append(Change(version, kind, deleted, obj))


def _check(event: Object) -> None:
    if event["type"] == "ERROR":
        raise ApiError(event["object"].get("code", 500), str(event["object"]))


class PodHistory(History):
    """The pods of a namespace."""

    def states(self) -> list[Object]:
        """All pods in all their states, oldest first for each pod."""
        states: dict[str, list[Object]] = {}
        for change in self.changes():
            if not change.deleted:
                states.setdefault(change.uid, []).append(change.object)
        return [state for of_one in states.values() for state in of_one]

    def created(self) -> set[str]:
        """The uids of all pods that have ever been."""
        return {state["metadata"]["uid"] for state in self.states()}

    def nodes(self) -> set[str]:
        """The names of all nodes that a pod was ever bound to."""
        return {node for state in self.states() if (node := state["spec"].get("nodeName"))}

    def deleted(self) -> set[str]:
        """The uids of the pods that are gone."""
        return {change.uid for change in self.changes() if change.deleted}
