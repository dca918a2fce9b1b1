"""A concurrency limit that slow holders cannot use up.

A webhook that hangs keeps a request open for ten seconds, and where many pools share a fixed number
of slots, the slowest pool would delay all. A slow holder therefore releases its slot and continues
without one, as Go's scheduler takes the processor from a blocked thread. The caller bounds the
number of slow holders by other means.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

SLOW_SECONDS = 1.0


class YieldingSemaphore:
    """A semaphore whose slots are acquired in the order of arrival.

    Args:
        limit: the number of slots.
        slow_seconds: how long a holder keeps its slot at most.
    """

    def __init__(self, limit: int, *, slow_seconds: float = SLOW_SECONDS) -> None:
        self._slots = asyncio.Semaphore(limit)
        self._slow_seconds = slow_seconds

    @asynccontextmanager
    async def acquire(self) -> AsyncGenerator[None]:
        """Wait for a slot, and hold it while the block runs, for at most ``slow_seconds``."""
        await self._slots.acquire()
        loop = asyncio.get_running_loop()
        held = True

        def release() -> None:
            nonlocal held
            if held:
                held = False
                self._slots.release()

        timer = loop.call_later(self._slow_seconds, release)
        try:
            yield
        finally:
            timer.cancel()
            release()
