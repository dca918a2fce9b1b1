"""Cooperative yielding for long work on the event loop, which also binds claims."""

import asyncio
import time
from collections.abc import Callable

# Work blocks the event loop for about this long at a time.
SLICE_SECONDS = 0.002


class CooperativeYield:
    """Lets other tasks run when a piece of work has blocked the event loop for a slice."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._began = clock()

    async def maybe_yield(self) -> None:
        """Yield if the slice is used up; call this wherever the work may be interrupted."""
        if self._clock() - self._began >= SLICE_SECONDS:
            await asyncio.sleep(0)
            self._began = self._clock()
