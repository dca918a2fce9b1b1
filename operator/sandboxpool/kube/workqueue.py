"""A work queue with client-go's semantics.

A key that is added twice before it is taken is handed out once; a key that is added while it is
being worked on is handed out again afterwards, never twice at the same time. Delays and retries
are timers that add. ``forget`` ends a key's history of failures.
"""

import asyncio
import logging
import random
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, Protocol, TypeVar

from sandboxpool.kube.errors import KubeError

logger = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)

FIRST_RETRY_SECONDS = 0.05
LONGEST_RETRY_SECONDS = 60.0


class QueueObserver(Protocol):
    """Told what client-go's queue metrics need; times are seconds of the event loop's clock."""

    def added(self, depth: int) -> None:
        """A key entered the queue."""

    def taken(self, depth: int, waited: float) -> None:
        """A worker took a key that had waited so long."""

    def finished(self, worked: float) -> None:
        """A worker finished a key."""

    def retried(self) -> None:
        """A key failed and will be tried again."""


class _Silent:
    def added(self, depth: int) -> None: ...
    def taken(self, depth: int, waited: float) -> None: ...
    def finished(self, worked: float) -> None: ...
    def retried(self) -> None: ...


class WorkQueue(Generic[K]):
    """Keys to reconcile: in the order of their arrival within a lane, and lane by lane in turn.

    Args:
        name: for logs.
        observer: told what metrics need.
        lane_of: the lane of a key at its arrival; all stand in one unless told.
    """

    def __init__(
        self,
        name: str,
        observer: QueueObserver | None = None,
        lane_of: Callable[[K], Hashable] = lambda key: None,
    ) -> None:
        self.name = name
        self._observer: QueueObserver = observer or _Silent()
        self._lane_of = lane_of
        self._lanes: OrderedDict[Hashable, deque[K]] = OrderedDict()
        self._added_at: dict[K, float] = {}
        self._working: set[K] = set()
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._wakeup = asyncio.Event()

    def __len__(self) -> int:
        return len(self._added_at)

    def add(self, key: K) -> None:
        """Ask for a key to be worked on as soon as a worker is free."""
        if key in self._working:
            self._again.add(key)
        elif key not in self._added_at:
            self._added_at[key] = asyncio.get_running_loop().time()
            self._lanes.setdefault(self._lane_of(key), deque()).append(key)
            self._observer.added(len(self))
            self._wakeup.set()

    def add_after(self, key: K, seconds: float) -> None:
        """Ask for a key to be worked on after a delay; an earlier time already set stands."""
        if seconds <= 0:
            self.add(key)
            return
        loop = asyncio.get_running_loop()
        when = loop.time() + seconds
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= when:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(when, self._due, key)

    def _due(self, key: K) -> None:
        self._timers.pop(key, None)
        self.add(key)

    def retry(self, key: K) -> float:
        """Add a key after a delay that grows with its failures; return the delay in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = min(FIRST_RETRY_SECONDS * 2.0 ** min(failures, 16), LONGEST_RETRY_SECONDS)
        delay *= random.uniform(0.75, 1.0)  # noqa: S311 - no secret
        self.add_after(key, delay)
        self._observer.retried()
        return delay

    def forget(self, key: K) -> None:
        """A key was worked on with success: its next failure is its first."""
        self._failures.pop(key, None)

    async def take(self) -> K:
        """Wait for a key; the caller must call ``done`` with it afterwards."""
        while not self._lanes:
            self._wakeup.clear()
            await self._wakeup.wait()
        key = self._next()
        waited = asyncio.get_running_loop().time() - self._added_at.pop(key)
        self._working.add(key)
        self._observer.taken(len(self), waited)
        return key

    def _next(self) -> K:
        lane, keys = next(iter(self._lanes.items()))
        key = keys.popleft()
        if keys:
            self._lanes.move_to_end(lane)
        else:
            del self._lanes[lane]
        return key

    def done(self, key: K) -> None:
        """Work on a key has ended; if it was added meanwhile it goes back to the end."""
        self._working.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    async def work(self, reconcile: Callable[[K], Awaitable[float | None]]) -> None:
        """Be one worker, until cancelled.

        Args:
            reconcile: works on a key; a number that it returns is the delay in seconds after
                which the key is due again. What it raises is logged and the key is retried.
        """
        loop = asyncio.get_running_loop()
        while True:
            key = await self.take()
            started = loop.time()
            try:
                again = await reconcile(key)
                self.forget(key)
                if again is not None:
                    self.add_after(key, again)
            except KubeError as error:
                delay = self.retry(key)
                logger.warning("%s: %s: %s, next try in %.1f s", self.name, key, error, delay)
            except Exception:
                delay = self.retry(key)
                logger.exception("%s: %s failed, next try in %.1f s", self.name, key, delay)
            finally:
                self._observer.finished(loop.time() - started)
                self.done(key)

    def close(self) -> None:
        """Cancel the timers, so that nothing is added any more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
