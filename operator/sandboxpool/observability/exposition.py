"""The text of /metrics, computed at most once a second, whoever asks and however many.

What is counted from the caches is counted on the event loop, which owns them, in slices. What is
made of that, megabytes of text in a large cluster, is made by a thread: all that it reads is either
guarded by the metrics' own locks or never changed again.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

logger = logging.getLogger(__name__)

FRESH_SECONDS = 1.0
# The loop lets go of the interpreter at each of its system calls, and would wait for it for as long
# as Python's usual 5 ms each time while a text is made.
SWITCH_SECONDS = 0.0005


class Exposition:
    """The text of one registry.

    Args:
        registry: what is shown.
        refresh: brings up to date what the registry does not count by itself.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        refresh: Callable[[], Awaitable[None]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._refresh = refresh
        self._clock = clock
        self._text = b""
        self._fresh_until = float("-inf")
        self._under_way: asyncio.Task[bytes] | None = None

    async def text(self) -> bytes:
        """The text, no older than a second and a computation; all who wait share that one.

        It is empty if it cannot be computed.
        """
        if self._under_way is None:
            if self._clock() < self._fresh_until:
                return self._text
            self._under_way = asyncio.create_task(self._compute(), name="exposition")
            self._under_way.add_done_callback(self._ended)
        # Whoever goes away takes nothing from the others.
        return await asyncio.shield(self._under_way)

    def close(self) -> None:
        """End a computation under way."""
        if self._under_way is not None:
            self._under_way.cancel()

    async def _compute(self) -> bytes:
        try:
            await self._refresh()
            self._text = await asyncio.to_thread(self._render)
        except Exception:
            # Once a second, and not once for each who asks.
            logger.exception("the metrics cannot be computed")
            self._text = b""
        finally:
            self._fresh_until = self._clock() + FRESH_SECONDS
        return self._text

    def _render(self) -> bytes:
        usual = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_SECONDS)
        try:
            return generate_latest(self._registry)
        finally:
            sys.setswitchinterval(usual)

    def _ended(self, task: asyncio.Task[bytes]) -> None:
        del task
        self._under_way = None
