"""One watch on its way to the client."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from sandboxpool.kube.client import WATCH_SILENCE_SECONDS
from sandboxpool.kube.errors import KubeError, UnknownOutcomeError
from support.simulation.apiserver import encode
from support.simulation.sight import WatchFaults, Watching

Line = bytes | KubeError | None


class Stream:
    """Lines in their order, each with its delay.

    What is not to be seen now is kept, as by a watch cache that stands still: it comes when it can
    be seen, and no bookmark says before that it has come.

    Args:
        resource: what is watched.
        version: from where.
        way: how many seconds the next line takes.
        sights: what the client sees; it may change at any time.
    """

    def __init__(
        self, resource: str, version: str, way: Callable[[], float], sights: tuple[WatchFaults, ...]
    ) -> None:
        self.resource = resource
        self.stalled = False
        self._way = way
        self._sights = sights
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[Line] = asyncio.Queue()
        self._under_way: deque[Line] = deque()
        self._kept: list[Line] = []
        self._version = version
        self._last = 0.0

    @property
    def seconds_behind(self) -> float:
        """How long what was sent last is still under way."""
        return self._last - self._loop.time()

    def _sees(self, *but: Watching) -> bool:
        watching = {sight.watching.get(self.resource) for sight in self._sights}
        return not watching - {None, *but}

    def tell(self, line: Line) -> None:
        """Send an event or an error, behind all that was sent before."""
        if self._sees():
            self.catch_up()
            self._send(line)
        elif not self.stalled:
            self._kept.append(line)

    def bookmark(self, version: int) -> None:
        """Say how far the watch has come."""
        if self._sees():
            self.catch_up()
        if not self._kept:
            self._version = str(version)
        if self._sees(Watching.BOOKMARKS):
            metadata = {"resourceVersion": self._version}
            self._send(encode({"type": "BOOKMARK", "object": {"metadata": metadata}}))

    def end(self) -> None:
        """End it in good order."""
        if self._sees(Watching.BOOKMARKS):
            self._send(None)

    def catch_up(self) -> None:
        """Send what was kept, if it can be seen now."""
        if self._sees():
            kept, self._kept = self._kept, []
            for line in kept:
                self._send(line)

    def _send(self, line: Line) -> None:
        if not self.stalled:
            self._last = max(self._last, self._loop.time() + self._way())
            self._under_way.append(line)
            self._loop.call_at(self._last, self._arrive)

    def _arrive(self) -> None:
        # Timers of one moment ring in any order; lines come in theirs.
        self._lines.put_nowait(self._under_way.popleft())

    def cut(self) -> None:
        """The connection breaks: what is on its way does not arrive."""
        self.stalled = True
        self._lines.put_nowait(UnknownOutcomeError("watch: connection reset"))

    async def lines(self) -> AsyncIterator[bytes]:
        """What arrives, until it ends.

        Raises:
            UnknownOutcomeError: the connection broke, or nothing came for too long.
        """
        while True:
            try:
                async with asyncio.timeout(WATCH_SILENCE_SECONDS):
                    line = await self._lines.get()
            except TimeoutError as error:
                raise UnknownOutcomeError("watch: silence") from error
            if line is None:
                return
            if isinstance(line, KubeError):
                raise line
            yield line
