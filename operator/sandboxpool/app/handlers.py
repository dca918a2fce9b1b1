"""Watches pools and classes with kopf, whose handlers only pass the objects on.

No registered handler keeps state, patches or needs a finalizer, so kopf writes nothing to the
cluster.

kopf runs in a thread and an event loop of its own. One bad response of the API server ends it. At
its end it cancels and waits for every task of its loop that was created after its start, sometimes
for ever. The tasks of the operator must not be among them, and nothing may wait for kopf's end.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import kopf

from sandboxpool.api import names

Observe = Callable[[Mapping[str, Any], bool], None]

# As much as the main thread has. A template may be nested as deeply as the API server accepts, and
# the default of threads is smaller with some C libraries.
STACK_BYTES = 8 * 1024 * 1024
# How long kopf's remaining tasks have to close their connections.
CLOSE_SECONDS = 1.0


class KopfEndedError(Exception):
    """kopf has ended without being stopped; the cause is kopf's own error, if any."""


class EndlessBackoff:
    """Delays in seconds between attempts to reach the API server: growing, capped, endless.

    kopf ends the operator when its delays are exhausted; the operator must survive an outage of the
    API server of any length.
    """

    def __iter__(self) -> Iterator[float]:
        """Restart the delays, as kopf does for each request."""
        delay = 0.2
        while True:
            yield delay
            delay = min(delay * 2, 15.0)


class NoDiffBase(kopf.DiffBaseStorage):
    """Keeps no last-handled state: no handler needs differences."""

    def build(self, **_: Any) -> Any:
        """Keep nothing of the object."""
        return {}

    def fetch(self, **_: Any) -> None:
        """Return no earlier state."""

    def store(self, **_: Any) -> None:
        """Write nothing."""


class NoProgress(kopf.ProgressStorage):
    """Keeps no progress of handlers: the work queues own the retries."""

    def fetch(self, **_: Any) -> None:
        """Return no progress."""

    def store(self, **_: Any) -> None:
        """Write nothing."""

    def purge(self, **_: Any) -> None:
        """Nothing to remove."""

    def touch(self, **_: Any) -> None:
        """Write nothing."""

    def clear(self, *, essence: Any) -> Any:
        """Return the essence unchanged and uncopied."""
        return essence


def settings() -> kopf.OperatorSettings:
    """Kopf's settings: it writes nothing to the cluster and retries without end."""
    result = kopf.OperatorSettings()
    result.persistence.diffbase_storage = NoDiffBase()
    result.persistence.progress_storage = NoProgress()
    result.peering.standalone = True
    result.posting.enabled = False
    result.scanning.disabled = True
    result.networking.error_backoffs = EndlessBackoff()
    result.networking.request_timeout = 30
    # Otherwise kopf kills the process some time after its own end.
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
    """Register the handlers; each passes the object on, and whether it was deleted."""

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
    *,
    connection: Callable[[], kopf.ConnectionInfo],
    on_pool: Observe,
    on_class: Observe,
    namespaces: Sequence[str] = (),
) -> None:
    """Run kopf until it ends, or until cancelled.

    Args:
        connection: returns the address and credentials of the API server; called at the start and
            when a credential is refused.
        on_pool: called in the caller's event loop with each pool, and whether it was deleted.
        on_class: called in the same way with each RuntimeClass.
        namespaces: those whose pools are watched; empty for all. kopf tries again, without end,
            where it is refused.

    Raises:
        KopfEndedError: kopf has ended by itself.
    """
    operator_loop = asyncio.get_running_loop()
    ended: asyncio.Future[BaseException | None] = operator_loop.create_future()

    def pass_on(call: Callable[..., None], *args: Any) -> None:
        # The loop is closed when the process is about to end.
        with suppress(RuntimeError):
            operator_loop.call_soon_threadsafe(call, *args)

    def end(cause: BaseException | None) -> None:
        if not ended.done():
            ended.set_result(cause)

    registry = kopf.OperatorRegistry()
    register(
        registry,
        connection=connection,
        on_pool=lambda body, deleted: pass_on(on_pool, body, deleted),
        on_class=lambda body, deleted: pass_on(on_class, body, deleted),
    )
    thread = _Thread(registry, namespaces, lambda cause: pass_on(end, cause))
    thread.start_with_stack()
    try:
        cause = await ended
    finally:
        thread.stop()
    raise KopfEndedError(f"kopf has ended: {cause!r}") from cause


class _Thread(threading.Thread):
    """Runs kopf; a daemon, so that the process can exit while it still runs."""

    def __init__(
        self,
        registry: kopf.OperatorRegistry,
        namespaces: Sequence[str],
        on_end: Callable[[BaseException | None], None],
    ) -> None:
        super().__init__(name="kopf", daemon=True)
        self._registry = registry
        self._namespaces = namespaces
        self._on_end = on_end
        self._lock = threading.Lock()
        self._stopped = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    def start_with_stack(self) -> None:
        """Start the thread with a stack of ``STACK_BYTES``."""
        previous = threading.stack_size(STACK_BYTES)
        try:
            self.start()
        finally:
            threading.stack_size(previous)

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
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            standalone=True,
            # By default kopf looks up the user's name, and the uid of a container may have none.
            identity=socket.gethostname(),  # type: ignore[arg-type]  # kopf has a NewType of str
        )
        # None of the tasks should end. Once one has, `kopf.run_tasks` would wait for all others,
        # and some wait for credentials that never come.
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    def stop(self) -> None:
        """Cancel kopf's main task, without waiting for its end."""
        with self._lock:
            self._stopped = True
            if self._loop is not None and self._task is not None:
                with suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._task.cancel)


def _abandon(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel the tasks that kopf has left, and close its loop after ``CLOSE_SECONDS`` at most."""
    with suppress(Exception):
        remaining = asyncio.all_tasks(loop)
        for task in remaining:
            task.cancel()
        if remaining:
            loop.run_until_complete(asyncio.wait(remaining, timeout=CLOSE_SECONDS))
        # asyncio would log each task that has not ended when the task is garbage-collected.
        loop.set_exception_handler(lambda loop, context: None)
        loop.close()
