"""A bound on how much is done at once that one slow party cannot use up.

A webhook that hangs keeps a request open for ten seconds, and where many pools share a fixed number
of places, the slowest of them sets the pace of all. A holder that is slow therefore gives its place
to the next and goes on without one, as Go's scheduler takes the processor from a thread that is
blocked. Whoever uses this bounds by other means how many slow ones one party can have.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

SLOW_SECONDS = 1.0


class YieldingSemaphore:
    """So many places, taken in the order of arrival.

    Args:
        limit: how many hold a place at once.
        slow_seconds: how long a holder keeps its place at most.
    """

    def __init__(self, limit: int, *, slow_seconds: float = SLOW_SECONDS) -> None:
        self._places = asyncio.Semaphore(limit)
        self._slow_seconds = slow_seconds

    @asynccontextmanager
    async def acquire(self) -> AsyncGenerator[None]:
        """Wait for a place, and hold it while the block runs, but not for longer than is slow."""
        await self._places.acquire()
        loop = asyncio.get_running_loop()
        held = True

        def give_back() -> None:
            nonlocal held
            if held:
                held = False
                self._places.release()

        timer = loop.call_later(self._slow_seconds, give_back)
        try:
            yield
        finally:
            timer.cancel()
            give_back()
