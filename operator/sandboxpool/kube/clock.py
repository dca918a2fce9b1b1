"""The API server's time, with which the timestamps of API objects are compared.

The local clock may be minutes or days off, or be set. Each response of the API server has a
``Date``, which has whole seconds and is as old as the response took to arrive. It is never ahead of
the server's time, so the observation that is furthest ahead is the most accurate.
"""

import logging
from collections import deque
from collections.abc import Callable

from sandboxpool.kube.client import REQUEST_TIMEOUT_SECONDS

logger = logging.getLogger(__name__)

# Older observations are discarded: clocks drift, and are set.
WINDOW_SECONDS = 300.0
# No response is older than this. A larger step means that the server's clock was set, or that
# another server answers.
LARGEST_DELAY_SECONDS = REQUEST_TIMEOUT_SECONDS + 1.0
# A larger difference to the local clock is logged.
NOTABLE_SECONDS = 5.0


class ServerClock:
    """Returns the API server's time when called, in seconds since the epoch.

    It lags by about a second at most. Between responses it advances by a monotonic clock, so
    setting the local clock has no effect. If the server's clock is set, it follows after one window
    without a response that shows the former time. Before the first response it is the local clock.

    Args:
        wall: the local clock, in seconds since the epoch.
        clock: a monotonic clock, in seconds, that counts the time of a suspension too.
    """

    def __init__(self, wall: Callable[[], float], clock: Callable[[], float]) -> None:
        self._wall = wall
        self._clock = clock
        # When each difference between the two clocks was observed; differences decrease.
        self._seen: deque[tuple[float, float]] = deque()
        self._ahead_since: float | None = None

    def __call__(self) -> float:
        """Return the time."""
        if not self._seen:
            return self._wall()
        return self._clock() + self._seen[0][1]

    def observe(self, date: float) -> None:
        """Observe the Date, in seconds since the epoch, of a response that arrives now."""
        now = self._clock()
        offset = date - now
        if not self._seen:
            ahead = self._wall() - date
            if abs(ahead) > NOTABLE_SECONDS:
                logger.warning(
                    "the local clock and the API server's differ by %.0f s; the operator uses the "
                    "API server's",
                    ahead,
                )
        elif offset > self._seen[0][1] + LARGEST_DELAY_SECONDS:
            if self._ahead_since is None:
                self._ahead_since = now
            if now - self._ahead_since < WINDOW_SECONDS:
                return
            self._seen.clear()
        self._ahead_since = None
        while self._seen and self._seen[-1][1] <= offset:
            self._seen.pop()
        self._seen.append((now, offset))
        while now - self._seen[0][0] > WINDOW_SECONDS:
            self._seen.popleft()
