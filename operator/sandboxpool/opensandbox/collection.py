"""Objects of one kind in some namespaces, each with a watch of its own."""

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from sandboxpool.kube.informer import Informer, Object

T = TypeVar("T", bound=Object)


class Collection(Generic[T]):
    """The cached objects of one kind.

    Args:
        informers: the informers by namespace.
    """

    def __init__(self, informers: Mapping[str, Informer[T]]) -> None:
        self._informers = dict(informers)

    def __iter__(self) -> Iterator[T]:
        for informer in self._informers.values():
            yield from informer

    def get(self, namespace: str, name: str) -> T | None:
        """Return the cached object, or None."""
        informer = self._informers.get(namespace)
        return informer.get(namespace, name) if informer is not None else None

    async def relist(self) -> None:
        """List again; return when the cache is no older than this call."""
        for informer in self._informers.values():
            await informer.relist()
