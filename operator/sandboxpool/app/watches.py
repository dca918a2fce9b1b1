"""The informers of one process, as one thing that is complete, or blind, or neither."""

from collections.abc import Iterator
from typing import Any

from sandboxpool.kube.informer import MAX_STALENESS_SECONDS, Informer


class Watches:
    """Named informers, in the order in which a new leader takes their objects in."""

    def __init__(self) -> None:
        self._informers: dict[str, Informer[Any]] = {}

    def add(self, name: str, informer: Informer[Any]) -> None:
        """Add an informer under a name for people to read."""
        self._informers[name] = informer

    def __iter__(self) -> Iterator[tuple[str, Informer[Any]]]:
        return iter(self._informers.items())

    def blind(self) -> list[str]:
        """What cannot be seen at this moment; a process can neither lead nor take over then."""
        found = []
        for name, informer in self._informers.items():
            if not informer.synced.is_set():
                found.append(f"{name} (not listed yet)")
            elif (age := informer.staleness()) > MAX_STALENESS_SECONDS:
                found.append(f"{name} (its watch shows no sign of life for {age:.0f} s)")
        return found

    def unfit(self) -> str:
        """Why the process is not fit to lead; empty if it is."""
        return "; ".join(self.blind())

    async def synced(self) -> None:
        """Wait until every informer has listed its collection."""
        for informer in self._informers.values():
            await informer.synced.wait()
