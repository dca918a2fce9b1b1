"""The API server's time, in which the times of API objects are to be reckoned.

A node's own clock may be minutes or days away from it, or be set. Each answer of the API server has
a ``Date``: whole seconds, and as late as the answer was under way. So it can only show less than
the server's time at its arrival, and the most that it has shown is closest to that.
"""

import logging
from collections import deque
from collections.abc import Callable

from sandboxpool.kube.client import REQUEST_TIMEOUT_SECONDS

logger = logging.getLogger(__name__)

# What was shown longer ago counts no more: clocks drift, and are set.
WINDOW_SECONDS = 300.0
# No answer is later than this. Whatever shows more time at once comes from a clock that was set, or
# from another clock.
LARGEST_DELAY_SECONDS = REQUEST_TIMEOUT_SECONDS + 1.0
# A difference to the local clock that is worth a line in the log.
NOTABLE_SECONDS = 5.0


class ServerClock:
    """Gives seconds since the epoch as the API server counts them; call it.

    It is behind by about a second at most. Between answers it goes on by a monotonic clock: that
    the local clock is set changes nothing, and that the server's is set is followed once nothing
    has shown the former time for as long as the window. Before the first answer it is the local
    clock.

    Args:
        wall: the local clock, in seconds since the epoch.
        clock: a monotonic clock, in seconds, that counts the time of a suspension too.
    """

    def __init__(self, wall: Callable[[], float], clock: Callable[[], float]) -> None:
        self._wall = wall
        self._clock = clock
        # When which difference between the two clocks was seen; each is greater than all later.
        self._seen: deque[tuple[float, float]] = deque()
        self._ahead_since: float | None = None

    def __call__(self) -> float:
        """Return the time."""
        if not self._seen:
            return self._wall()
        return self._clock() + self._seen[0][1]

    def observe(self, date: float) -> None:
        """Take in the Date, in seconds since the epoch, of an answer that arrives now."""
        now = self._clock()
        offset = date - now
        if not self._seen:
            ahead = self._wall() - date
            if abs(ahead) > NOTABLE_SECONDS:
                logger.warning(
                    "the clock of this machine and the API server's differ by %.0f s; "
                    "the API server's counts",
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
