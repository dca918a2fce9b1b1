"""How many warm sandboxes a pool may lack while others take their place. Pure."""

from sandboxpool.api.v1alpha1 import Update


def max_unavailable(update: Update, target: int) -> int:
    """Resolve ``update.maxUnavailable``.

    Args:
        update: a percentage is rounded down, as in a Deployment.
        target: what a percentage is of.

    Returns:
        At least 1: with less nothing would ever be replaced.
    """
    value = update.max_unavailable
    if isinstance(value, int):
        return value
    return max(1, target * int(value.removesuffix("%")) // 100)
