"""An event loop whose time passes only when nothing is left to do."""

from __future__ import annotations

import asyncio
from typing import Any


class NothingToDo(Exception):
    """Nobody will ever wake anybody."""


class VirtualLoop(asyncio.BaseEventLoop):
    """No files, no sockets, no threads: callbacks and timers, on a clock that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector: Any = self

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        """What a selector does; here no file is ever ready, so only time can pass."""
        if timeout is None:
            raise NothingToDo
        self._now += timeout
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        assert not event_list

    def _write_to_self(self) -> None:
        """What wakes a selector up; this one never sleeps."""
