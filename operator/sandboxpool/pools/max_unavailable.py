"""Resolves update.maxUnavailable. Pure."""

from sandboxpool.api.v1alpha1 import Update


def max_unavailable(update: Update, target: int) -> int:
    """How many warm sandboxes below the target a pool may be while sandboxes are replaced.

    Args:
        update: the update strategy; a percentage is rounded down, as in a Deployment.
        target: the number of warm sandboxes that a percentage refers to.

    Returns:
        At least 1: otherwise nothing would ever be replaced.
    """
    value = update.max_unavailable
    if isinstance(value, int):
        return value
    return max(1, target * int(value.removesuffix("%")) // 100)
