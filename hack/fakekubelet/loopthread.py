"""An event loop in a thread of its own, for code that blocking callers drive."""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_STOP_SECONDS = 10.0
_GOODBYE_SECONDS = 5.0
_STEP_SECONDS = 0.01


class LoopThread:
    """Runs coroutines in a background thread and hands their results to blocking callers."""

    def __init__(self, name: str) -> None:
        self._selector = selectors.DefaultSelector()
        self._loop = asyncio.SelectorEventLoop(self._selector)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T], timeout: float = 30.0) -> T:
        """Runs a coroutine in the thread and waits for its result.

        Args:
            work: The coroutine.
            timeout: How long to wait, in seconds; the coroutine is cancelled after that.

        Raises:
            TimeoutError: If there is no result in time.
        """
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout)
        except TimeoutError:
            future.cancel()
            raise

    def soon(self, callback: Callable[[], object]) -> None:
        """Calls a plain function in the thread, without waiting for it."""
        self._loop.call_soon_threadsafe(callback)

    def stop(self) -> None:
        """Cancels what still runs and ends the thread."""
        if not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._see_connections_off()
        self._loop.close()

    def _see_connections_off(self) -> None:
        """Waits for TLS connections that were closed: they exchange goodbyes with the server."""
        deadline = self._loop.time() + _GOODBYE_SECONDS
        # One file is left that wakes the loop.
        while len(self._selector.get_map()) > 1 and self._loop.time() < deadline:
            self._loop.run_until_complete(asyncio.sleep(_STEP_SECONDS))
        # What no longer listens is closed by a callback of its own.
        self._loop.run_until_complete(asyncio.sleep(_STEP_SECONDS))
