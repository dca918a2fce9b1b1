"""Which pools may send the next request about pods, where some are answered slowly.

An admission webhook that hangs does so for the pools that it is asked about. Pools that are
answered quickly share a few places, and a slow request does not keep its place for long. A pool
whose last request was slow is in a lane apart: it has few requests under way at once, and all such
pools together have no more than a part of the client's connections.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from sandboxpool.kube.yielding_semaphore import SLOW_SECONDS, YieldingSemaphore

# Of one slow pool, and of all slow pools.
SLOW_EACH = 4
SLOW_AT_ONCE = 16
# Of the others, those included that turn out to be slow just now.
QUICK_AT_ONCE = 32
# A pool that sends so seldom is as good as unknown.
REMEMBER_SECONDS = 3600.0


class RequestLimiter:
    """Places for the requests of all pools, in lanes for the quick and for each that is slow.

    Args:
        limit: how many requests of quick pools are under way at once, as long as they are quick.
    """

    def __init__(self, limit: int) -> None:
        self._slots = YieldingSemaphore(limit)
        self._quick = asyncio.Semaphore(QUICK_AT_ONCE)
        self._slow = asyncio.Semaphore(SLOW_AT_ONCE)
        # Of each slow pool, by its uid: its own places, and when it was slow last.
        self._lanes: dict[str, tuple[asyncio.Semaphore, float]] = {}

    @asynccontextmanager
    async def take(self, pool_uid: str) -> AsyncGenerator[None]:
        """Wait for a place, and hold it for one request: not for several, nor for a pause."""
        while pool_uid not in self._lanes:
            async with self._quick, self._slots.acquire():
                # Another request of the pool may have been slow while this one waited.
                if pool_uid not in self._lanes:
                    async with self._watched(pool_uid):
                        yield
                    return
        own, _ = self._lanes[pool_uid]
        async with own, self._slow, self._watched(pool_uid):
            yield

    @asynccontextmanager
    async def _watched(self, pool_uid: str) -> AsyncGenerator[None]:
        """Note whether what is done meanwhile is slow; others need not wait for its end."""
        timer = asyncio.get_running_loop().call_later(SLOW_SECONDS, self._was_slow, pool_uid)
        began = asyncio.get_running_loop().time()
        try:
            yield
        finally:
            timer.cancel()
            if asyncio.get_running_loop().time() - began < SLOW_SECONDS:
                self._lanes.pop(pool_uid, None)

    def _was_slow(self, pool_uid: str) -> None:
        now = asyncio.get_running_loop().time()
        own, _ = self._lanes.get(pool_uid, (asyncio.Semaphore(SLOW_EACH), now))
        recent = {u: e for u, e in self._lanes.items() if now - e[1] < REMEMBER_SECONDS}
        self._lanes = {**recent, pool_uid: (own, now)}
