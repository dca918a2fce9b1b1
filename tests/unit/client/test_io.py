"""Real sockets on the loopback address, with and without asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest

from sandboxpool.client.api import WebSocket
from sandboxpool.client.blocking import BlockingChannel, BlockingIo, run
from sandboxpool.client.io import Channel, Io
from sandboxpool.client.nonblocking import AsyncIo
from sandboxpool.client.wire.remotecommand import V5
from support.scriptedio import server_frame

T = TypeVar("T")
LARGE = bytes(range(256)) * 32768


class Runner:
    """Runs coroutines in one way or the other."""

    def __init__(self, io: Io, loop: asyncio.Runner | None) -> None:
        self.io = io
        self._loop = loop

    def __call__(self, work: Coroutine[Any, Any, T]) -> T:
        return run(work) if self._loop is None else self._loop.run(work)


@pytest.fixture(params=["blocking", "asyncio"])
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    if request.param == "blocking":
        yield Runner(BlockingIo(), None)
        return
    with asyncio.Runner() as loop:
        yield Runner(AsyncIo(), loop)


async def echo(channel: Channel) -> None:
    while data := await channel.receive(None):
        await channel.send(data)
    channel.finish()


def test_both_directions_at_once(runner: Runner) -> None:
    io = runner.io

    async def work() -> bytes:
        listener = await io.listen("127.0.0.1", 0, echo)
        channel = await io.connect(*listener.address, 10)
        sending = io.start(channel.send(LARGE))
        got = bytearray()
        while len(got) < len(LARGE):
            got += await channel.receive(10)
        await sending.stop()
        assert not channel.is_stale()
        channel.close()
        assert channel.is_stale()
        await listener.close()
        return bytes(got)

    assert runner(work()) == LARGE


def test_the_end_of_a_connection(runner: Runner) -> None:
    io = runner.io

    async def farewell(channel: Channel) -> None:
        await channel.send(b"bye")
        channel.finish()

    async def work() -> None:
        listener = await io.listen("127.0.0.1", 0, farewell)
        channel = await io.connect(*listener.address, 10)
        assert await channel.receive(10) == b"bye"
        assert await channel.receive(10) == b""
        assert channel.is_stale()
        channel.close()
        with pytest.raises(OSError, match="closed"):
            await channel.send(b"x")
        await listener.close()

    runner(work())


def test_a_listener_that_closes_ends_its_connections_without_an_error(runner: Runner) -> None:
    """What a handler raises by then would end its thread with a traceback."""
    io = runner.io
    threads = set(threading.enumerate())

    async def work() -> None:
        listener = await io.listen("127.0.0.1", 0, echo)
        channel = await io.connect(*listener.address, 10)
        await channel.send(b"x")
        assert await channel.receive(10) == b"x"
        await listener.close()
        assert await channel.receive(10) == b""
        channel.close()

    runner(work())
    for thread in set(threading.enumerate()) - threads:
        thread.join(10)


def test_silence_leaves_a_connection_as_it_was(runner: Runner) -> None:
    io = runner.io

    async def work() -> None:
        listener = await io.listen("127.0.0.1", 0, echo)
        channel = await io.connect(*listener.address, 10)
        with pytest.raises(TimeoutError):
            await channel.receive(0.01)
        await channel.send(b"still there")
        assert await channel.receive(10) == b"still there"
        channel.close()
        await listener.close()

    runner(work())


def test_who_waits_for_a_connection_that_is_closed_hears_of_it() -> None:
    ours, theirs = socket.socketpair()
    channel = BlockingChannel(ours)
    ended = threading.Event()

    def wait() -> None:
        try:
            run(channel.receive(None))
        except OSError:
            ended.set()
        else:
            ended.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    channel.close()
    assert ended.wait(10)
    waiter.join()
    theirs.close()


def test_jobs_keep_their_order_and_their_errors(runner: Runner) -> None:
    async def job(number: int) -> int:
        if number == 2:
            raise ValueError("two")
        return number

    async def work() -> list[int | Exception]:
        return await runner.io.gather([lambda n=n: job(n) for n in range(4)], 2)  # type: ignore[misc]

    first, second, third, fourth = runner(work())
    assert (first, second, fourth) == (0, 1, 3)
    assert isinstance(third, ValueError)
    assert runner(runner.io.gather([], 2)) == []


def test_a_coroutine_that_would_wait_cannot_be_run_without_asyncio() -> None:
    with pytest.raises(RuntimeError, match="suspended"):
        run(asyncio.sleep(0))


def test_a_ping_does_not_wait_for_a_peer_that_takes_nothing() -> None:
    ours, theirs = socket.socketpair()
    channel = BlockingChannel(ours)
    for size in (65536, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(bytes(size))
    with theirs:
        websocket = WebSocket(BlockingIo(), channel, V5, b"")
        pinging = threading.Thread(target=run, args=(websocket.ping(),), daemon=True)
        pinging.start()
        pinging.join(5)
        assert not pinging.is_alive()
        theirs.sendall(server_frame(b"output"))
        assert run(websocket.receive(10)) == b"output"
        run(websocket.close())
