"""Conversion between API timestamps (UTC, whole seconds) and seconds since the epoch."""

import datetime


def timestamp(now: float) -> str:
    """Format seconds since the epoch as an API timestamp."""
    return datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def epoch(timestamp: str) -> float:
    """Parse an API timestamp to seconds since the epoch; 0 if it is malformed."""
    try:
        return datetime.datetime.fromisoformat(timestamp).timestamp()
    except (ValueError, OverflowError):
        return 0.0
