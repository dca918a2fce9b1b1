"""Waiting for something to become true, always with a deadline."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TypeVar

from fakekubelet import ApiError

T = TypeVar("T")

_PAUSE_SECONDS = 0.05
_SHOWN_CHARACTERS = 4000


def eventually(
    attempt: Callable[[], T],
    *,
    timeout: float = 15.0,
    message: str = "",
    until: Callable[[T], bool] = bool,
) -> T:
    """Calls a function until its result is good and returns that result.

    Args:
        attempt: What to look at. An AssertionError, ApiError or LookupError in it counts as "not
            yet".
        timeout: When to give up, in seconds.
        message: What is waited for, for the report.
        until: What a good result is; by default a true one.

    Raises:
        AssertionError: If it is not good in time; the text shows the last result.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            last: object = attempt()
            if until(last):  # type: ignore[arg-type]
                return last  # type: ignore[return-value]
        except (AssertionError, LookupError, ApiError) as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {message}\nlast seen: {_show(last)}")
        time.sleep(_PAUSE_SECONDS)


def consistently(attempt: Callable[[], object], *, seconds: float = 1.0, message: str = "") -> None:
    """Calls a function for a while and fails as soon as its result is not true.

    Args:
        attempt: What to look at.
        seconds: For how long.
        message: What has to stay so, for the report.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        seen = attempt()
        assert seen, f"it did not stay so: {message}\nseen: {_show(seen)}"
        time.sleep(_PAUSE_SECONDS)


def _show(value: object) -> str:
    if isinstance(value, Exception):
        return f"{type(value).__name__}: {value}"[:_SHOWN_CHARACTERS]
    return json.dumps(value, indent=1, default=repr)[:_SHOWN_CHARACTERS]
