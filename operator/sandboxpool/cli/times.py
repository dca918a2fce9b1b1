"""Times as people read them."""

from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def now() -> datetime:
    """Return the time of this machine."""
    return datetime.now(UTC)


def moment(text: str | None) -> datetime | None:
    """Read a time as Kubernetes writes it; None where there is none."""
    return datetime.fromisoformat(text) if text else None


def age(text: str | None, at: datetime | None = None) -> str:
    """Return how long ago a time was, as kubectl shows it; empty where there is none."""
    then = moment(text)
    return "" if then is None else span(((at or now()) - then).total_seconds())


def span(seconds: float) -> str:
    """Return a length of time as kubectl shows it: `5s`, `2m30s`, `25h`, `3d4h`.

    The clock of this machine may be behind: what seems to be yet to come is `0s`.
    """
    whole = max(0, int(seconds))
    minutes, hours, days = whole // _MINUTE, whole // _HOUR, whole // _DAY
    if whole < 2 * _MINUTE:
        return f"{whole}s"
    if minutes < 10:
        return _joined(minutes, "m", whole % _MINUTE, "s")
    if minutes < 3 * 60:
        return f"{minutes}m"
    if hours < 8:
        return _joined(hours, "h", minutes % 60, "m")
    if hours < 2 * 24:
        return f"{hours}h"
    if days < 8:
        return _joined(days, "d", hours % 24, "h")
    return f"{days}d" if days < 2 * 365 else _joined(days // 365, "y", days % 365, "d")


def _joined(first: int, unit: str, second: int, smaller: str) -> str:
    return f"{first}{unit}{second}{smaller}" if second else f"{first}{unit}"
