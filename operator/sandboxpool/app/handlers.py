"""kopf's part: the watches of what people edit, as handlers that hand over and return.

kopf is the shell here, not the engine: no handler that keeps state, patches, or needs a
finalizer is registered, so kopf writes nothing to the cluster.

It runs in a thread and an event loop of its own. One bad answer of the API server ends it, and at
its end it waits for, and cancels, every task of its loop that was made after its start: it must not
take ours with it, and where it waits in vain nobody must wait for it.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import kopf

from sandboxpool.api import names

Observe = Callable[[Mapping[str, Any], bool], None]

# As much as the main thread has. A template may be nested as deep as the API server reads it, and
# a thread's own default is smaller with some C libraries.
STACK_BYTES = 8 * 1024 * 1024
# What is left of kopf after its end has so long to close what it has opened.
CLOSE_SECONDS = 1.0


class KopfEndedError(Exception):
    """kopf runs no longer, and nobody has asked it to end; the cause is its own error, if any."""


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
    # It would kill the process some time after its own end.
    result.process.ultimate_exiting_timeout = None
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


async def watch(
    *, connection: Callable[[], kopf.ConnectionInfo], on_pool: Observe, on_class: Observe
) -> None:
    """Run kopf until it ends, or until cancelled.

    Args:
        connection: where the API server is; asked at the start, and when a credential is refused.
        on_pool: told of each pool, in the caller's event loop, and whether it was deleted.
        on_class: told of each RuntimeClass in the same way.

    Raises:
        KopfEndedError: it has ended by itself.
    """
    ours = asyncio.get_running_loop()
    ended: asyncio.Future[BaseException | None] = ours.create_future()

    def hand_over(call: Callable[..., None], *args: Any) -> None:
        # When our loop is closed the process is about to end.
        with suppress(RuntimeError):
            ours.call_soon_threadsafe(call, *args)

    def end(cause: BaseException | None) -> None:
        if not ended.done():
            ended.set_result(cause)

    registry = kopf.OperatorRegistry()
    register(
        registry,
        connection=connection,
        on_pool=lambda body, deleted: hand_over(on_pool, body, deleted),
        on_class=lambda body, deleted: hand_over(on_class, body, deleted),
    )
    thread = _Thread(registry, lambda cause: hand_over(end, cause))
    thread.start_with_stack()
    try:
        cause = await ended
    finally:
        thread.stop()
    raise KopfEndedError(f"kopf has ended: {cause!r}") from cause


class _Thread(threading.Thread):
    """Runs kopf; as a daemon it keeps no process from its end."""

    def __init__(
        self, registry: kopf.OperatorRegistry, on_end: Callable[[BaseException | None], None]
    ) -> None:
        super().__init__(name="kopf", daemon=True)
        self._registry = registry
        self._on_end = on_end
        self._lock = threading.Lock()
        self._stopped = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    def start_with_stack(self) -> None:
        """Start with a stack of a size that is known."""
        former = threading.stack_size(STACK_BYTES)
        try:
            self.start()
        finally:
            threading.stack_size(former)

    def run(self) -> None:
        cause: BaseException | None = None
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(self._main(loop))
        except BaseException as error:
            cause = error
        self._on_end(cause)
        _abandon(loop)

    async def _main(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            if self._stopped:
                return
            self._loop, self._task = loop, asyncio.current_task()
        tasks = await kopf.spawn_tasks(
            registry=self._registry,
            settings=settings(),
            clusterwide=True,
            standalone=True,
            # Unless told, kopf looks its user up, and the uid of a container need not have a name.
            identity=socket.gethostname(),  # type: ignore[arg-type]  # a str that it gives a name
        )
        # All of them are to run for ever. `kopf.run_tasks` would wait for the end of each once one
        # has ended, and some wait for credentials that nobody gets any more.
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    def stop(self) -> None:
        """Ask it to end, and do not wait for that."""
        with self._lock:
            self._stopped = True
            if self._loop is not None and self._task is not None:
                with suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._task.cancel)


def _abandon(loop: asyncio.AbstractEventLoop) -> None:
    """End what is left, as far as it lets itself be ended."""
    with suppress(Exception):
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=CLOSE_SECONDS))
        # Whatever has not ended by now would be told of when it is collected.
        loop.set_exception_handler(lambda loop, context: None)
        loop.close()
