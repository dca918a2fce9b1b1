"""A work queue with client-go's semantics, in which slow keys do not hold up quick ones.

A key that is added twice before it is taken is handed out once; a key that is added while it is
being worked on is handed out again afterwards, never twice at the same time. Delays and retries
are timers that add. ``forget`` ends a key's history of failures, and ``drop`` all that is known
of it.

Keys stand in lanes, such as one for each pool, and a webhook that hangs makes all keys of a lane
slow. A key that turns out to be slow gives its place to the next and goes on without one. For a
while its lane counts as slow: few of its keys are worked on at once, and they take no place. So a
slow lane holds up other lanes once, for as long as it takes to notice.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from sandboxpool.kube.errors import UNREADABLE, KubeError
from sandboxpool.kube.yielding_semaphore import SLOW_SECONDS
from sandboxpool.util.backoff import delay_after, spread

logger = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)

FIRST_RETRY_SECONDS = 0.05
LONGEST_RETRY_SECONDS = 60.0
# How many keys of a lane that is slow are worked on at once ...
SLOW_PER_LANE = 4
# ... and of all such lanes together. Each may keep a connection to the API server busy.
SLOW_AT_ONCE = 64
# A lane counts as slow for so long after its last slow key, and until it has shown otherwise.
SLOW_MEMORY_SECONDS = 10.0


class QueueObserver(Protocol):
    """Told what client-go's queue metrics need; times are seconds of the event loop's clock."""

    def added(self, depth: int) -> None:
        """A key entered the queue."""

    def taken(self, depth: int, waited: float) -> None:
        """Work on a key begins, which had waited so long."""

    def finished(self, worked: float) -> None:
        """Work on a key has ended."""

    def retried(self) -> None:
        """A key failed and will be tried again."""


class _Silent:
    def added(self, depth: int) -> None: ...
    def taken(self, depth: int, waited: float) -> None: ...
    def finished(self, worked: float) -> None: ...
    def retried(self) -> None: ...


@dataclass(slots=True)
class _Processing:
    """A key that is being worked on.

    Attributes:
        lane: the lane that it was taken from.
        timer: rings when the key has become slow.
        has_place: whether it holds one of the queue's places.
        slow: it has been worked on for as long as is slow.
        dropped: what it was about is gone, so that no delay that it asks for counts.
    """

    lane: Hashable
    timer: asyncio.TimerHandle
    has_place: bool
    slow: bool = False
    dropped: bool = False


class WorkQueue(Generic[K]):
    """Keys to reconcile: in the order of their arrival within a lane, and lane by lane in turn.

    Args:
        name: for logs.
        observer: told what metrics need.
        lane_of: the lane of a key at its arrival; each key is a lane of its own unless told.
        max_concurrent: how many keys are worked on at once, those that are slow not counted.
    """

    def __init__(
        self,
        name: str,
        observer: QueueObserver | None = None,
        lane_of: Callable[[K], Hashable] = lambda key: key,
        max_concurrent: int = 16,
    ) -> None:
        self.name = name
        self._observer: QueueObserver = observer or _Silent()
        self._lane_of = lane_of
        self._max_concurrent = max_concurrent
        # What waits, by lane; and the lanes of which a key may be taken, in turn.
        self._waiting: dict[Hashable, deque[K]] = {}
        self._quick: OrderedDict[Hashable, None] = OrderedDict()
        self._slow: OrderedDict[Hashable, None] = OrderedDict()
        # The lanes that count as slow, and when each was so for the last time, in that order.
        self._slow_at: OrderedDict[Hashable, float] = OrderedDict()
        self._added_at: dict[K, float] = {}
        self._processing: dict[K, _Processing] = {}
        self._processing_in: dict[Hashable, int] = {}
        self._with_place = 0
        self._dirty: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._wakeup = asyncio.Event()

    def __len__(self) -> int:
        return len(self._added_at)

    # --- Asking for work -------------------------------------------------------------------------

    def add(self, key: K) -> None:
        """Ask for a key to be worked on as soon as there is a place."""
        if key in self._processing:
            self._dirty.add(key)
        elif key not in self._added_at:
            self._added_at[key] = asyncio.get_running_loop().time()
            lane = self._lane_of(key)
            if self._is_idle(lane) and self._is_over(lane):
                del self._slow_at[lane]
            self._waiting.setdefault(lane, deque()).append(key)
            self._observer.added(len(self))
            self._sort_in(lane)

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

    def add_rate_limited(self, key: K) -> float:
        """Add a key after a delay that grows with its failures; return the delay in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = spread(delay_after(failures, FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS))
        self.add_after(key, delay)
        self._observer.retried()
        return delay

    def forget(self, key: K) -> None:
        """A key was worked on with success: its next failure is its first."""
        self._failures.pop(key, None)

    def drop(self, key: K) -> None:
        """What the key is about is gone: nothing is remembered of it, and no delay adds it."""
        self._failures.pop(key, None)
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        work = self._processing.get(key)
        if work is not None:
            work.dropped = True

    # --- Lanes -----------------------------------------------------------------------------------

    def _is_over(self, lane: Hashable) -> bool:
        """Whether the lane was slow so long ago that it may count as quick."""
        at = self._slow_at.get(lane)
        return at is not None and asyncio.get_running_loop().time() - at >= SLOW_MEMORY_SECONDS

    def _is_idle(self, lane: Hashable) -> bool:
        return lane not in self._waiting and lane not in self._processing_in

    def _was_slow(self, lane: Hashable) -> None:
        self._slow_at[lane] = asyncio.get_running_loop().time()
        self._slow_at.move_to_end(lane)
        while self._is_over(oldest := next(iter(self._slow_at))) and self._is_idle(oldest):
            del self._slow_at[oldest]

    def _sort_in(self, lane: Hashable) -> None:
        """See whether a key of the lane may be taken, and in which turn; it keeps its turn."""
        slow, working = lane in self._slow_at, self._processing_in.get(lane, 0)
        may_go_on = lane in self._waiting and (not slow or working < SLOW_PER_LANE)
        for turns, belongs in ((self._quick, not slow), (self._slow, slow)):
            if may_go_on and belongs:
                turns.setdefault(lane)
            else:
                turns.pop(lane, None)
        self._wakeup.set()

    def _next_lane(self) -> Hashable | None:
        """The lane whose turn it is; None while nothing may be taken."""
        if self._slow and len(self._processing) - self._with_place < SLOW_AT_ONCE:
            return next(iter(self._slow))
        if self._quick and self._with_place < self._max_concurrent:
            return next(iter(self._quick))
        return None

    # --- Working ---------------------------------------------------------------------------------

    async def get(self) -> K:
        """Wait for a key; the caller must call ``done`` with it afterwards."""
        while (lane := self._next_lane()) is None:
            self._wakeup.clear()
            await self._wakeup.wait()
        loop = asyncio.get_running_loop()
        keys = self._waiting[lane]
        key = keys.popleft()
        if not keys:
            del self._waiting[lane]
        waited = loop.time() - self._added_at.pop(key)
        has_place = lane in self._quick
        self._with_place += has_place
        timer = loop.call_later(SLOW_SECONDS, self._became_slow, key)
        self._processing[key] = _Processing(lane, timer, has_place)
        self._processing_in[lane] = self._processing_in.get(lane, 0) + 1
        # To the end of its turn.
        self._quick.pop(lane, None)
        self._slow.pop(lane, None)
        self._sort_in(lane)
        self._observer.taken(len(self), waited)
        return key

    def _became_slow(self, key: K) -> None:
        work = self._processing[key]
        work.slow = True
        self._with_place -= work.has_place
        work.has_place = False
        self._was_slow(work.lane)
        self._sort_in(work.lane)

    def done(self, key: K) -> None:
        """Work on a key has ended; if it was added meanwhile it goes back to the end."""
        work = self._processing.pop(key)
        work.timer.cancel()
        self._with_place -= work.has_place
        self._processing_in[work.lane] -= 1
        if not self._processing_in[work.lane]:
            del self._processing_in[work.lane]
        if work.slow:
            self._was_slow(work.lane)
        elif self._is_over(work.lane):
            del self._slow_at[work.lane]
        self._sort_in(work.lane)
        if key in self._dirty:
            self._dirty.discard(key)
            self.add(key)

    async def run(self, reconcile: Callable[[K], Awaitable[float | None]]) -> None:
        """Work on keys, each in a task of its own, until cancelled.

        Args:
            reconcile: works on a key; a number that it returns is the delay in seconds after
                which the key is due again. What it raises is logged and the key is retried.
        """
        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(self._work_on(await self.get(), reconcile))

    async def _work_on(self, key: K, reconcile: Callable[[K], Awaitable[float | None]]) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            again = await reconcile(key)
            self.forget(key)
            if again is not None and not self._processing[key].dropped:
                self.add_after(key, again)
        except (KubeError, *UNREADABLE) as error:
            # Also where something between us and the API server answers in its place.
            delay = self.add_rate_limited(key)
            logger.warning("%s: %s: %s, next try in %.1f s", self.name, key, error, delay)
        except Exception:
            delay = self.add_rate_limited(key)
            logger.exception("%s: %s failed, next try in %.1f s", self.name, key, delay)
        finally:
            self._observer.finished(loop.time() - started)
            self.done(key)

    def close(self) -> None:
        """Cancel the timers, so that nothing is added any more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
