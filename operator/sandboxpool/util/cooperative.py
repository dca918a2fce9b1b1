"""Long work on the event loop, which binds claims: it gives way every few milliseconds."""

import asyncio
import time
from collections.abc import Callable

# Work keeps the event loop no longer than this at a time, give or take what it does between two
# looks at the clock.
SLICE_SECONDS = 0.002


class CooperativeYield:
    """Gives the event loop a turn whenever a piece of work has kept it for long enough."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._began = clock()

    async def maybe_yield(self) -> None:
        """To be called wherever the work can wait."""
        if self._clock() - self._began >= SLICE_SECONDS:
            await asyncio.sleep(0)
            self._began = self._clock()
