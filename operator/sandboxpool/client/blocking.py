"""Input and output without asyncio."""

import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from typing_extensions import override

from sandboxpool.client.io import CHUNK, Channel, Io, Task

T = TypeVar("T")

# Seconds after which the kernel asks a silent peer whether it is there, and between its questions.
_KEEPALIVE = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 4))
_READ, _WRITE = 1, 4


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, because its input and output block."""
    try:
        work.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    work.close()
    raise RuntimeError("a coroutine was suspended without asyncio")


def configure(sock: socket.socket) -> None:
    """Send small messages at once, and have the kernel notice a peer that is gone."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class BlockingChannel(Channel):
    """A socket, with or without TLS.

    OpenSSL allows no two threads in one connection, and a thread that waits inside it would lock
    the other out. So nothing waits inside: the socket does not block, and threads wait for it
    outside the lock.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._socket.setblocking(False)
        self._lock = threading.Lock()
        self._closed = False

    @override
    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._attempt(partial(self._socket.send, view[:CHUNK]), _WRITE, None) :]

    @override
    async def receive(self, within: float | None) -> bytes:
        try:
            return self._attempt(partial(self._socket.recv, CHUNK), _READ, within)
        except ssl.SSLEOFError:
            return b""

    @override
    def is_stale(self) -> bool:
        with self._lock:
            try:
                return self._closed or self._socket.recv(1) is not None
            except (BlockingIOError, ssl.SSLWantReadError):
                # A TLS 1.3 server's tickets may have come; they are nothing to worry about.
                return False
            except OSError:
                return True

    @override
    def finish(self) -> None:
        self.close()

    @override
    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            # Whoever waits for the socket wakes up; the file goes when the last has let go of it.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()

    def detach(self) -> socket.socket:
        """Give the socket up, for TLS to begin on it."""
        with self._lock:
            self._closed = True
        return self._socket

    def _attempt(self, operation: Callable[[], T], wants: int, within: float | None) -> T:
        deadline = None if within is None else time.monotonic() + within
        while True:
            with self._lock:
                if self._closed:
                    raise ConnectionAbortedError("the connection was closed")
                try:
                    return operation()
                except (BlockingIOError, InterruptedError):
                    event = wants
                except ssl.SSLWantReadError:
                    event = _READ
                except ssl.SSLWantWriteError:
                    event = _WRITE
                waited_for = self._socket.fileno()
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError("nothing came in time")
            _wait_for(waited_for, event, left)


def _wait_for(file: int, event: int, within: float | None) -> None:
    # A limit, for a socket that another thread closes just before: its number may wait for nothing.
    seconds = 1.0 if within is None else min(within, 1.0)
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(file, select.POLLIN if event == _READ else select.POLLOUT)
        poll.poll(seconds * 1000)
        return
    readers, writers = ([file], []) if event == _READ else ([], [file])
    select.select(readers, writers, [], seconds)


class _Thread:
    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        threading.Thread(target=run, args=(work,), daemon=True, name="sandboxpool-client").start()

    async def stop(self) -> None:
        # What it waits for is closed by whoever stops it, or is the caller's own input.
        pass


class _Listener:
    def __init__(
        self, server: socket.socket, handler: Callable[[Channel], Coroutine[Any, Any, None]]
    ) -> None:
        self._server = server
        self._handler = handler
        self._channels: set[BlockingChannel] = set()
        self._lock = threading.Lock()
        self._closed = False
        threading.Thread(target=self._accept, daemon=True, name="sandboxpool-forward").start()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._server.getsockname()[:2]
        return str(host), int(port)

    async def close(self) -> None:
        with self._lock:
            self._closed = True
            channels = list(self._channels)
        # Closing a socket does not wake up who waits for it everywhere.
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for channel in channels:
            channel.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._server.accept()
            except OSError:
                return
            channel = BlockingChannel(sock)
            with self._lock:
                if self._closed:
                    channel.close()
                    return
                self._channels.add(channel)
            _Thread(self._handle(channel))

    async def _handle(self, channel: BlockingChannel) -> None:
        try:
            await self._handler(channel)
        except OSError:
            # `close` has closed the connection, too, while the handler used it.
            if not self._closed:
                raise
        finally:
            with self._lock:
                self._channels.discard(channel)


class _Lock:
    def __init__(self) -> None:
        self._lock = threading.Lock()

    async def __aenter__(self) -> None:
        self._lock.acquire()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()


class BlockingIo(Io):
    """Sockets that block, and threads."""

    @override
    async def connect(self, host: str, port: int, within: float) -> BlockingChannel:
        sock = socket.create_connection((host, port), within)
        configure(sock)
        return BlockingChannel(sock)

    @override
    async def start_tls(
        self, channel: Channel, context: ssl.SSLContext, hostname: str, within: float
    ) -> BlockingChannel:
        if not isinstance(channel, BlockingChannel):
            raise TypeError(f"not a blocking channel: {channel!r}")
        sock = channel.detach()
        try:
            sock.settimeout(within)
            return BlockingChannel(context.wrap_socket(sock, server_hostname=hostname))
        except BaseException:
            sock.close()
            raise

    @override
    def monotonic(self) -> float:
        return time.monotonic()

    @override
    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - blocking is what this is for

    @override
    async def call_blocking(self, function: Callable[[], T]) -> T:
        return function()

    @override
    def start(self, work: Coroutine[Any, Any, None]) -> Task:
        return _Thread(work)

    @override
    async def gather(
        self, jobs: Sequence[Callable[[], Coroutine[Any, Any, T]]], limit: int
    ) -> list[T | Exception]:
        if not jobs:
            return []

        def attempt(job: Callable[[], Coroutine[Any, Any, T]]) -> T | Exception:
            try:
                return run(job())
            except Exception as error:
                return error

        with ThreadPoolExecutor(min(limit, len(jobs)), "sandboxpool-client") as threads:
            return list(threads.map(attempt, jobs))

    @override
    async def listen(
        self, host: str, port: int, handler: Callable[[Channel], Coroutine[Any, Any, None]]
    ) -> _Listener:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return _Listener(socket.create_server((host, port), family=family), handler)

    @override
    def lock(self) -> _Lock:
        return _Lock()
