"""Renders the text of /metrics, at most once a second for any number of requests.

Gauges of cached objects are counted on the event loop, which owns the caches, in slices. The text,
megabytes in a large cluster, is rendered by a thread. All that the thread reads is either guarded
by the metrics' own locks or immutable.
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
# The loop releases the interpreter lock at each of its system calls. While a text is rendered, it
# would wait up to Python's default of 5 ms each time to get the lock back.
SWITCH_SECONDS = 0.0005


class Exposition:
    """The text of one registry.

    Args:
        registry: the metrics to render.
        refresh: updates the metrics that are counted from the caches.
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
        self._rendering: asyncio.Task[bytes] | None = None

    async def text(self) -> bytes:
        """The text, no older than a second plus the time to render it; empty if that has failed.

        Concurrent callers share one text.
        """
        if self._rendering is None:
            if self._clock() < self._fresh_until:
                return self._text
            self._rendering = asyncio.create_task(self._update(), name="exposition")
            self._rendering.add_done_callback(self._done)
        # The cancellation of one caller does not cancel the text of the others.
        return await asyncio.shield(self._rendering)

    def close(self) -> None:
        """Cancel rendering in progress."""
        if self._rendering is not None:
            self._rendering.cancel()

    async def _update(self) -> bytes:
        try:
            await self._refresh()
            self._text = await asyncio.to_thread(self._render)
        except Exception:
            # Logged at most once a second, not once a request.
            logger.exception("the metrics cannot be rendered; /metrics responds with 500")
            self._text = b""
        finally:
            self._fresh_until = self._clock() + FRESH_SECONDS
        return self._text

    def _render(self) -> bytes:
        default = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_SECONDS)
        try:
            return generate_latest(self._registry)
        finally:
            sys.setswitchinterval(default)

    def _done(self, task: asyncio.Task[bytes]) -> None:
        del task
        self._rendering = None
