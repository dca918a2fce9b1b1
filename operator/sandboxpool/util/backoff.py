"""Exponential backoff."""

import random

# After this many steps every delay here has its maximum; more would overflow a float.
_MOST_STEPS = 16


def delay_after(failures: int, first: float, longest: float, *, factor: float = 2.0) -> float:
    """Return the seconds to wait after a failure.

    Args:
        failures: consecutive failures before this one.
        first: seconds after the first failure.
        longest: the maximum, in seconds.
        factor: the ratio of each delay to the one before.
    """
    return min(first * factor ** min(failures, _MOST_STEPS), longest)


def spread(seconds: float) -> float:
    """Shorten a delay at random, so that what failed together is not retried together."""
    return seconds * random.uniform(0.75, 1.0)  # noqa: S311 - no secret
