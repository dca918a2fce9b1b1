"""Wall clocks that are wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class WallClock:
    """A clock of somebody's own: call it for the seconds since the epoch.

    Attributes:
        truth: the right time, in seconds since the epoch.
        offset: by how many seconds it is ahead; when it is set, the clock jumps.
    """

    truth: Callable[[], float]
    offset: float = 0.0

    def __call__(self) -> float:
        return self.truth() + self.offset
