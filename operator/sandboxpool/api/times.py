"""Times as the API writes them, to the second and in UTC, and as we reckon with them."""

import datetime


def timestamp(now: float) -> str:
    """Write seconds since the epoch as the API does."""
    return datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def epoch(timestamp: str) -> float:
    """Turn an API timestamp into seconds since the epoch; 0 if it is none."""
    try:
        return datetime.datetime.fromisoformat(timestamp).timestamp()
    except (ValueError, OverflowError):
        return 0.0
