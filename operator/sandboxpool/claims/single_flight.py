"""Shares one read among all callers that asked before it began."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable


class SingleFlight:
    """Lets concurrent callers with the same key share a result.

    A result is never older than the call: a caller that comes while a read is in progress waits for
    the next read, together with all others that do.
    """

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[bool]] = {}
        self._next: dict[Hashable, asyncio.Task[bool]] = {}

    async def do(self, key: Hashable, read: Callable[[], Awaitable[bool]]) -> bool:
        """Return the result of a read that begins after this call.

        Raises:
            Exception: whatever the read raises, to all callers that share it.
        """
        task = self._next.get(key)
        if task is None:
            task = asyncio.create_task(self._read(key, read))
            self._next[key] = task
        # The cancellation of one caller does not cancel the read of the others.
        return await asyncio.shield(task)

    async def _read(self, key: Hashable, read: Callable[[], Awaitable[bool]]) -> bool:
        while (running := self._running.get(key)) is not None:
            await asyncio.wait({running})
        task = self._running[key] = self._next.pop(key)
        try:
            return await read()
        finally:
            if self._running.get(key) is task:
                del self._running[key]
