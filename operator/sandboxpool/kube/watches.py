"""The informers of the process, and whether all of them are synced."""

from collections.abc import Iterator
from typing import Any

from sandboxpool.kube.informer import MAX_STALENESS_SECONDS, Informer


class Watches:
    """Named informers, in the order in which a new leader processes their objects."""

    def __init__(self) -> None:
        self._informers: dict[str, Informer[Any]] = {}

    def add(self, name: str, informer: Informer[Any]) -> None:
        """Add an informer under a name for logs and /readyz."""
        self._informers[name] = informer

    def __iter__(self) -> Iterator[tuple[str, Informer[Any]]]:
        return iter(self._informers.items())

    def not_synced(self) -> list[str]:
        """The informers that are not listed or stale, with the reason: none may be to lead."""
        found = []
        for name, informer in self._informers.items():
            if not informer.synced.is_set():
                found.append(f"{name} (not listed yet)")
            elif (age := informer.staleness()) > MAX_STALENESS_SECONDS:
                found.append(f"{name} (nothing received from its watch for {age:.0f} s)")
        return found

    def not_ready_reason(self) -> str:
        """Why the process must not lead; empty if it may."""
        return "; ".join(self.not_synced())

    async def wait_for_sync(self) -> None:
        """Wait until every informer has listed its collection."""
        for informer in self._informers.values():
            await informer.synced.wait()
