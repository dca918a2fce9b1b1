"""Informers of one kind in several namespaces, read as one cache."""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from sandboxpool.kube.informer import Informer, Object

T = TypeVar("T", bound=Object)
T_co = TypeVar("T_co", bound=Object, covariant=True)


class ObjectCache(Protocol[T_co]):
    """The cached objects of one kind, of one informer or of several."""

    def __iter__(self) -> Iterator[T_co]: ...

    def __len__(self) -> int: ...

    def get(self, namespace: str, name: str) -> T_co | None:
        """Return the cached object, or None."""

    def staleness(self) -> float:
        """Seconds since the API server last confirmed that all of the cache is current."""

    async def relist(self) -> None:
        """List again; return when the cache is no older than this call."""


class InformerGroup(Generic[T]):
    """One informer for each namespace.

    Each lists and watches by itself: a relist in one namespace replaces only the objects of that
    namespace, and a namespace that cannot be read does not concern the others.
    """

    def __init__(self, informers: Mapping[str, Informer[T]]) -> None:
        self._informers = dict(informers)

    def __iter__(self) -> Iterator[T]:
        for informer in self._informers.values():
            yield from informer

    def __len__(self) -> int:
        return sum(map(len, self._informers.values()))

    def get(self, namespace: str, name: str) -> T | None:
        """Return the cached object, or None."""
        informer = self._informers.get(namespace)
        return informer.get(namespace, name) if informer is not None else None

    def staleness(self) -> float:
        """The greatest staleness of any namespace."""
        return max(informer.staleness() for informer in self._informers.values())

    async def relist(self) -> None:
        """List all namespaces again; return when no cache is older than this call."""
        await asyncio.gather(*(informer.relist() for informer in self._informers.values()))
