"""A whole list at once, for the stores that take lists in slices."""

from collections.abc import Callable, Iterable
from typing import Any

from sandboxpool.kube.listing import ListTarget


def replace(
    store: ListTarget,
    bodies: Iterable[Any],
    version: str,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Have a store take in a list in which everything can be read, and of which nothing is known.

    Args:
        bodies: the objects of the list, possibly damaged.
        version: the resourceVersion of the list.
        meanwhile: what watches tell while the list is on its way.
    """
    store.begin_list()
    meanwhile()
    for body in bodies:
        metadata = body.get("metadata") if isinstance(body, dict) else None
        if isinstance(metadata, dict) and isinstance(metadata.get("name"), str):
            store.is_known(metadata.get("namespace", ""), metadata["name"], "", "")
        store.put_listed(body)
    store.end_list(version)
