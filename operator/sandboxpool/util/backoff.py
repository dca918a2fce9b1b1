"""How long to wait after failures in a row: delays that grow from a first to a longest."""

import random

# By then every delay here is the longest; a float would overflow in the end.
_MOST_STEPS = 16


def delay_after(failures: int, first: float, longest: float, *, factor: float = 2.0) -> float:
    """Seconds to wait.

    Args:
        failures: how many came before the last one, without a success between; 0 gives the first.
        first: seconds after the first failure.
        longest: seconds that no delay exceeds.
        factor: by how much each delay is longer than the one before.
    """
    return min(first * factor ** min(failures, _MOST_STEPS), longest)


def spread(seconds: float) -> float:
    """A delay, by chance a little shorter: those that failed together do not try together."""
    return seconds * random.uniform(0.75, 1.0)  # noqa: S311 - no secret
