"""An event loop in a thread of its own, for code that blocking callers drive."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_STOP_SECONDS = 10.0
_GOODBYE_SECONDS = 0.1


class LoopThread:
    """Runs coroutines in a background thread and hands their results to blocking callers."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
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
        # TLS connections that were closed a moment ago need the loop to say goodbye.
        self._loop.run_until_complete(asyncio.sleep(_GOODBYE_SECONDS))
        self._loop.close()
