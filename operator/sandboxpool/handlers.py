"""kopf's part: the watches of what people edit, as handlers that hand over and return.

kopf is the shell here, not the engine: no handler that keeps state, patches, or needs a
finalizer is registered, so kopf writes nothing to the cluster.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import kopf

from sandboxpool.api import names

Observe = Callable[[Mapping[str, Any], bool], None]


class EndlessBackoff:
    """Delays in seconds between attempts to reach the API server: growing, capped, endless.

    kopf gives up, and ends the operator, when they run out; an outage of the API server must
    be survived however long it lasts.
    """

    def __iter__(self) -> Iterator[float]:
        """Begin anew, as kopf does for each request."""
        delay = 0.2
        while True:
            yield delay
            delay = min(delay * 2, 15.0)


class NoDiffBase(kopf.DiffBaseStorage):
    """Keeps no last-handled state: nothing here reacts to differences."""

    def build(self, **_: Any) -> Any:
        """Keep nothing of the object."""
        return {}

    def fetch(self, **_: Any) -> None:
        """Know nothing of earlier states."""

    def store(self, **_: Any) -> None:
        """Write nothing."""


class NoProgress(kopf.ProgressStorage):
    """Keeps no progress of handlers: the work queues own the retries."""

    def fetch(self, **_: Any) -> None:
        """Know nothing."""

    def store(self, **_: Any) -> None:
        """Write nothing."""

    def purge(self, **_: Any) -> None:
        """Nothing to remove."""

    def touch(self, **_: Any) -> None:
        """Write nothing."""

    def clear(self, *, essence: Any) -> Any:
        """Leave the essence as it is, uncopied."""
        return essence


def settings() -> kopf.OperatorSettings:
    """Kopf's settings, so that it stays silent and never gives up."""
    result = kopf.OperatorSettings()
    result.persistence.diffbase_storage = NoDiffBase()
    result.persistence.progress_storage = NoProgress()
    result.peering.standalone = True
    result.posting.enabled = False
    result.scanning.disabled = True
    result.networking.error_backoffs = EndlessBackoff()
    result.networking.request_timeout = 30
    result.watching.server_timeout = 270
    return result


def register(
    registry: kopf.OperatorRegistry,
    *,
    connection: Callable[[], kopf.ConnectionInfo],
    on_pool: Observe,
    on_class: Observe,
) -> None:
    """Register the handlers; each gives the object on, and says whether it was deleted."""

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return connection()

    @kopf.on.event(names.GROUP, names.VERSION, names.POOLS, registry=registry)
    async def pool(event: Mapping[str, Any], **_: Any) -> None:
        on_pool(event["object"], event["type"] == "DELETED")

    @kopf.on.event("node.k8s.io", "v1", "runtimeclasses", registry=registry)
    async def runtime_class(event: Mapping[str, Any], **_: Any) -> None:
        on_class(event["object"], event["type"] == "DELETED")
