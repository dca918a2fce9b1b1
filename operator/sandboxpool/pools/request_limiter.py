"""Limits concurrent requests about pods, and isolates the pools whose requests are slow.

An admission webhook that hangs affects only some pools. Quick pools share a few slots, and a slow
request releases its slot early. A pool whose last request was slow has a small limit of its own,
and all slow pools together use only a part of the client's connections.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from sandboxpool.kube.yielding_semaphore import SLOW_SECONDS, YieldingSemaphore

# Concurrent requests of one slow pool, and of all slow pools.
SLOW_EACH = 4
SLOW_AT_ONCE = 16
# Concurrent requests of quick pools, including those that have just turned out to be slow.
QUICK_AT_ONCE = 32
# A slow pool that sends no request for this long is forgotten.
REMEMBER_SECONDS = 3600.0


class RequestLimiter:
    """Gives slots to requests: shared ones to quick pools, separate ones to each slow pool.

    Args:
        limit: the number of concurrent requests of quick pools, not counting slow requests.
    """

    def __init__(self, limit: int) -> None:
        self._slots = YieldingSemaphore(limit)
        self._quick = asyncio.Semaphore(QUICK_AT_ONCE)
        self._slow = asyncio.Semaphore(SLOW_AT_ONCE)
        # By the uid of each slow pool: its slots, and when it was last slow.
        self._lanes: dict[str, tuple[asyncio.Semaphore, float]] = {}

    @asynccontextmanager
    async def acquire(self, pool_uid: str) -> AsyncGenerator[None]:
        """Wait for a slot and hold it for a single request."""
        while pool_uid not in self._lanes:
            async with self._quick, self._slots.acquire():
                # The pool may have become slow while this request waited.
                if pool_uid not in self._lanes:
                    async with self._watched(pool_uid):
                        yield
                    return
        own, _ = self._lanes[pool_uid]
        async with own, self._slow, self._watched(pool_uid):
            yield

    @asynccontextmanager
    async def _watched(self, pool_uid: str) -> AsyncGenerator[None]:
        """Mark the pool as slow as soon as its request is, and as quick after a quick request."""
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
