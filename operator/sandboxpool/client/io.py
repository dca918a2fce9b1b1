"""What the client needs of the world: connections, time and work side by side.

Everything above is written once, as coroutines. Over asyncio they are awaited. The blocking
implementation never suspends, so that a coroutine runs from its start to its end in one step; see
`blocking.run`.
"""

import ssl
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
CHUNK = 64 * 1024


class Channel(Protocol):
    """A connection that carries bytes. One side may send while the other receives."""

    async def send(self, data: bytes) -> None:
        """Send all of the bytes, for as long as the peer takes.

        Raises:
            OSError: The connection broke, or was closed meanwhile.
        """

    async def receive(self, within: float | None) -> bytes:
        """Return some bytes, or none at the end.

        Raises:
            TimeoutError: Nothing came within so many seconds; the connection is as it was.
            OSError: The connection broke, or was closed meanwhile.
        """

    def is_stale(self) -> bool:
        """Tell whether an idle connection has ended, or holds what nobody asked for."""

    def finish(self) -> None:
        """Close when what was sent is on its way."""

    def close(self) -> None:
        """Close at once; whoever waits for the connection gets an error."""


class Task(Protocol):
    """Work that goes on beside its caller's."""

    async def stop(self) -> None:
        """End it, or leave it alone where it cannot be ended: nobody waits for it."""


class Listener(Protocol):
    """A local port that is listened on."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""

    async def close(self) -> None:
        """Listen no longer, and close the connections that there are."""


class Io(Protocol):
    """What is done differently with and without asyncio."""

    async def connect(self, host: str, port: int, within: float) -> Channel:
        """Open a TCP connection.

        Raises:
            OSError: Also where it takes longer than so many seconds.
        """

    async def start_tls(
        self, channel: Channel, context: ssl.SSLContext, hostname: str, within: float
    ) -> Channel:
        """Begin TLS on a connection, which is used up by it.

        Raises:
            OSError: The peer is not who it should be, or does not answer.
        """

    def monotonic(self) -> float:
        """Return the seconds of a clock that nobody sets."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    async def call_blocking(self, function: Callable[[], T]) -> T:
        """Call what may block."""

    def start(self, work: Coroutine[Any, Any, None]) -> Task:
        """Begin work beside the caller's. It reports its own errors."""

    async def gather(
        self, jobs: Sequence[Callable[[], Coroutine[Any, Any, T]]], limit: int
    ) -> list[T | Exception]:
        """Do all jobs, so many at a time, and return their results or errors in order."""

    async def listen(
        self, host: str, port: int, handler: Callable[[Channel], Coroutine[Any, Any, None]]
    ) -> Listener:
        """Handle each connection to a local port beside all else; port 0 takes a free one."""

    def lock(self) -> AbstractAsyncContextManager[Any]:
        """Return a lock, for `async with`."""
