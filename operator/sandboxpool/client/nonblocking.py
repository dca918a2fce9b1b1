"""Input and output over asyncio."""

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from typing_extensions import override

from sandboxpool.client.blocking import configure
from sandboxpool.client.io import CHUNK, Channel, Io, Task

T = TypeVar("T")


class AsyncChannel(Channel):
    """A stream of asyncio."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @override
    async def send(self, data: bytes) -> None:
        if self.writer.is_closing():
            raise ConnectionAbortedError("the connection was closed")
        self.writer.write(data)
        await self.writer.drain()

    @override
    async def receive(self, within: float | None) -> bytes:
        async with asyncio.timeout(within):
            return await self.reader.read(CHUNK)

    @override
    def is_stale(self) -> bool:
        # What has come shows as the end of the stream, or in the buffer, which a stream hides.
        return (
            self.writer.is_closing()
            or self.reader.at_eof()
            or self.reader.exception() is not None
            or bool(getattr(self.reader, "_buffer", b""))
        )

    @override
    def finish(self) -> None:
        self.writer.close()

    @override
    def close(self) -> None:
        # Without a farewell: TLS would wait for the peer's.
        self.writer.transport.abort()


class _AsyncTask:
    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.ensure_future(work)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()


class _AsyncListener:
    def __init__(self, handler: Callable[[Channel], Coroutine[Any, Any, None]]) -> None:
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, host: str, port: int) -> None:
        self._server = await asyncio.start_server(self._accept, host, port)

    @property
    def address(self) -> tuple[str, int]:
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return str(host), int(port)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._handle(AsyncChannel(reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, channel: AsyncChannel) -> None:
        try:
            await self._handler(channel)
        finally:
            channel.close()


class AsyncIo(Io):
    """The event loop that runs."""

    @override
    async def connect(self, host: str, port: int, within: float) -> AsyncChannel:
        async with asyncio.timeout(within):
            reader, writer = await asyncio.open_connection(host, port, limit=4 * CHUNK)
        sock = writer.get_extra_info("socket")
        if isinstance(sock, socket.socket) or hasattr(sock, "setsockopt"):
            configure(sock)
        return AsyncChannel(reader, writer)

    @override
    async def start_tls(
        self, channel: Channel, context: ssl.SSLContext, hostname: str, within: float
    ) -> AsyncChannel:
        if not isinstance(channel, AsyncChannel):
            raise TypeError(f"not a channel of asyncio: {channel!r}")
        try:
            await channel.writer.start_tls(
                context, server_hostname=hostname, ssl_handshake_timeout=within
            )
        except BaseException:
            channel.close()
            raise
        return channel

    @override
    def monotonic(self) -> float:
        return time.monotonic()

    @override
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @override
    async def call_blocking(self, function: Callable[[], T]) -> T:
        return await asyncio.to_thread(function)

    @override
    def start(self, work: Coroutine[Any, Any, None]) -> Task:
        return _AsyncTask(work)

    @override
    async def gather(
        self, jobs: Sequence[Callable[[], Coroutine[Any, Any, T]]], limit: int
    ) -> list[T | Exception]:
        turns = asyncio.Semaphore(limit)

        async def attempt(job: Callable[[], Coroutine[Any, Any, T]]) -> T | Exception:
            async with turns:
                try:
                    return await job()
                except Exception as error:
                    return error

        return list(await asyncio.gather(*map(attempt, jobs)))

    @override
    async def listen(
        self, host: str, port: int, handler: Callable[[Channel], Coroutine[Any, Any, None]]
    ) -> _AsyncListener:
        listener = _AsyncListener(handler)
        await listener.open(host, port)
        return listener

    @override
    def lock(self) -> asyncio.Lock:
        return asyncio.Lock()
