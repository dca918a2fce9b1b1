"""Input and output of the client without a network: a scripted API server, in virtual time."""

from __future__ import annotations

import json
import ssl
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from typing_extensions import override

from sandboxpool.client.blocking import run
from sandboxpool.client.io import Channel, Io, Listener, Task
from sandboxpool.client.wire.websocket import FrameReader, Opcode, accept

T = TypeVar("T")
# What a connection does next: brings bytes, is silent for so many seconds, breaks, or (None) ends.
Step = bytes | float | BaseException | None


@dataclass(frozen=True)
class Asked:
    """A request as the API server sees it."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    headers: Mapping[str, str]
    body: Any
    connection: int

    @property
    def parameters(self) -> dict[str, str]:
        return dict(self.query)


Answer = Callable[[Asked], Sequence[Step]]


def answer(body: Mapping[str, Any], status: int = 200, **headers: str) -> list[Step]:
    """A response with an object."""
    data = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(data)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ["\r\n".join(lines).encode() + b"\r\n\r\n" + data]


def failure(status: int, message: str, reason: str = "", **details: Any) -> list[Step]:
    """A response that refuses."""
    said = {"kind": "Status", "message": message, "reason": reason, "details": details}
    return answer(said, status)


def stream(*steps: Mapping[str, Any] | Step) -> list[Step]:
    """A watch: each event is a chunk; other steps are as they are. It then ends orderly."""
    begun: list[Step] = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]
    for step in steps:
        if isinstance(step, Mapping):
            data = json.dumps(step).encode() + b"\n"
            begun.append(b"%x\r\n%s\r\n" % (len(data), data))
        else:
            begun.append(step)
    ended = any(isinstance(step, BaseException) or step is None for step in steps)
    return begun if ended else [*begun, b"0\r\n\r\n"]


def event(kind: str, obj: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": kind, "object": obj}


def server_frame(payload: bytes, opcode: Opcode = Opcode.BINARY) -> bytes:
    """A frame as servers send it: without a mask."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 1 << 16:
        return bytes((0x80 | opcode, 126)) + size.to_bytes(2, "big") + payload
    return bytes((0x80 | opcode, 127)) + size.to_bytes(8, "big") + payload


def exited(code: int) -> bytes:
    """How the API server says that a command has ended."""
    ended: dict[str, Any] = {"status": "Success"}
    if code:
        causes = [{"reason": "ExitCode", "message": str(code)}]
        ended = {"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": causes}}
    return server_frame(b"\x03" + json.dumps(ended).encode())


def upgraded(asked: Asked, protocol: str, *steps: Step) -> list[Step]:
    """The change to WebSocket, and what comes then."""
    head = (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept(asked.headers['sec-websocket-key'])}\r\n"
        f"Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
    )
    return [head.encode(), *steps]


class ScriptedChannel(Channel):
    """One connection."""

    def __init__(self, io: ScriptedIo, number: int) -> None:
        self.stale = False
        self.closed = False
        self.number = number
        self.messages: list[bytes] = []
        self.steps: deque[Step] = deque()
        self._io = io
        self._buffer = bytearray()
        self._frames: FrameReader | None = None

    async def send(self, data: bytes) -> None:
        if self.closed:
            raise ConnectionAbortedError("closed")
        self._buffer += data
        if self._frames is not None:
            # A server reads frames with a mask; only their payloads matter here.
            self.messages += _unmasked(bytes(self._buffer))
            self._buffer.clear()
            return
        head, end, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        if not end:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }
        if len(rest) < int(headers.get("content-length", 0)):
            return
        self._buffer.clear()
        method, target, _ = first.split(" ")
        parts = urlsplit(target if target.startswith("/") else f"//{target}")
        body = json.loads(rest) if rest else None
        asked = Asked(
            method, parts.path or target, tuple(parse_qsl(parts.query)), headers, body, self.number
        )
        self._io.asked.append(asked)
        self.steps.extend(self._io.server(asked))
        if "upgrade" in headers:
            self._frames = FrameReader()

    async def receive(self, within: float | None) -> bytes:
        if self.closed:
            raise ConnectionAbortedError("closed")
        if not self.steps:
            assert within is not None, "it would wait for ever"
            self._io.now += within
            raise TimeoutError
        step = self.steps.popleft()
        if isinstance(step, float):
            if within is not None and within < step:
                self._io.now += within
                self.steps.appendleft(step - within)
                raise TimeoutError
            self._io.now += step
            return await self.receive(None if within is None else within - step)
        if isinstance(step, BaseException):
            raise step
        return b"" if step is None else step

    def is_stale(self) -> bool:
        return self.stale or self.closed

    def finish(self) -> None:
        self.closed = True

    def close(self) -> None:
        self.closed = True


def _unmasked(data: bytes) -> list[bytes]:
    payloads = []
    while data:
        size, start = data[1] & 0x7F, 2
        if size > 125:
            start = 4 if size == 126 else 10
            size = int.from_bytes(data[2:start], "big")
        mask, payload = data[start : start + 4], data[start + 4 : start + 4 + size]
        payloads.append(bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)))
        data = data[start + 4 + size :]
    return payloads


class _Done:
    async def stop(self) -> None:
        pass


@dataclass
class ScriptedIo(Io):
    """Connections to a scripted server. What is begun beside is done at once."""

    server: Answer
    now: float = 1000.0
    asked: list[Asked] = field(default_factory=list)
    channels: list[ScriptedChannel] = field(default_factory=list)
    refusing: int = 0

    @override
    async def connect(self, host: str, port: int, within: float) -> ScriptedChannel:
        if self.refusing:
            self.refusing -= 1
            raise ConnectionRefusedError("refused")
        channel = ScriptedChannel(self, len(self.channels))
        self.channels.append(channel)
        return channel

    @override
    async def start_tls(
        self, channel: Channel, context: ssl.SSLContext, hostname: str, within: float
    ) -> Channel:
        return channel

    @override
    def monotonic(self) -> float:
        return self.now

    @override
    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    @override
    async def call_blocking(self, function: Callable[[], T]) -> T:
        return function()

    @override
    def start(self, work: Coroutine[Any, Any, None]) -> Task:
        run(work)
        return _Done()

    @override
    async def gather(
        self, jobs: Sequence[Callable[[], Coroutine[Any, Any, T]]], limit: int
    ) -> list[T | Exception]:
        results: list[T | Exception] = []
        for job in jobs:
            try:
                results.append(await job())
            except Exception as error:
                results.append(error)
        return results

    @override
    async def listen(
        self, host: str, port: int, handler: Callable[[Channel], Coroutine[Any, Any, None]]
    ) -> Listener:
        raise NotImplementedError

    @override
    def lock(self) -> AbstractAsyncContextManager[Any]:
        return nullcontext()
