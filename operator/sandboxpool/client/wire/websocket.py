"""The client's side of WebSocket (RFC 6455), without I/O."""

import base64
import hashlib
import os
from dataclasses import dataclass
from enum import IntEnum

from sandboxpool.client.wire.http1 import Head, ProtocolError

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# Kubelets send at most 32 KiB at a time.
MAX_MESSAGE = 16 * 1024 * 1024


class Opcode(IntEnum):
    """What a frame is."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


@dataclass(frozen=True, slots=True)
class Message:
    """A whole message, or a control frame."""

    opcode: Opcode
    payload: bytes


def new_key() -> str:
    """Return a nonce for the handshake."""
    return base64.b64encode(os.urandom(16)).decode()


def upgrade_headers(key: str, protocols: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return the headers that ask for the change to WebSocket, best protocol first."""
    return [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", key),
        ("Sec-WebSocket-Protocol", ", ".join(protocols)),
    ]


def accept(key: str) -> str:
    """Return what a server says to show that it has understood the nonce."""
    # The RFC wants SHA-1 for recognising the answer; nothing is kept secret by it.
    digest = hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


def accepted_protocol(head: Head, key: str, protocols: tuple[str, ...]) -> str:
    """Return the protocol that the server chose.

    Raises:
        ProtocolError: The answer does not belong to the request, or names none of the protocols.
    """
    if head.headers.get("sec-websocket-accept") != accept(key):
        raise ProtocolError("the answer to the WebSocket handshake does not belong to it")
    chosen = head.headers.get("sec-websocket-protocol", "")
    if chosen not in protocols:
        raise ProtocolError(f"the server speaks none of {', '.join(protocols)}")
    return chosen


def encode_frame(opcode: Opcode, *parts: bytes, mask: bytes | None = None) -> bytes:
    """Write one frame with a whole message; what clients send is masked."""
    payload = b"".join(parts)
    size = len(payload)
    mask = os.urandom(4) if mask is None else mask
    if size < 126:
        head = bytes((0x80 | opcode, 0x80 | size))
    elif size < 1 << 16:
        head = bytes((0x80 | opcode, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 0x80 | 127)) + size.to_bytes(8, "big")
    return head + mask + _masked(payload, mask)


def _masked(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    # One exclusive or of two long integers: a loop over the bytes would take 500 times as long.
    stretched = int.from_bytes((mask * (size // 4 + 1))[:size], "little")
    return (int.from_bytes(payload, "little") ^ stretched).to_bytes(size, "little")


class FrameReader:
    """Puts messages together from the bytes that are fed to it."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._opcode: Opcode | None = None
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> None:
        """Take bytes from the connection."""
        self._buffer += data

    def next_message(self) -> Message | None:
        """Return the next message, or None until more bytes have come.

        Raises:
            ProtocolError: The bytes are no frames, or a message is too long.
        """
        while (frame := self._next_frame()) is not None:
            final, opcode, payload = frame
            if opcode >= Opcode.CLOSE:
                return Message(opcode, payload)
            if (opcode is Opcode.CONTINUATION) is (self._opcode is None):
                raise ProtocolError("a WebSocket message is continued that has not begun")
            self._opcode = self._opcode or opcode
            self._parts.append(payload)
            self._size += len(payload)
            if self._size > MAX_MESSAGE:
                raise ProtocolError("a WebSocket message is too long")
            if final:
                message = Message(self._opcode, b"".join(self._parts))
                self._opcode, self._parts, self._size = None, [], 0
                return message
        return None

    def _next_frame(self) -> tuple[bool, Opcode, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        first, second = buffer[0], buffer[1]
        size, start = second & 0x7F, 2
        if size > 125:
            start = 4 if size == 126 else 10
            if len(buffer) < start:
                return None
            size = int.from_bytes(buffer[2:start], "big")
        if first & 0x70 or second & 0x80:
            raise ProtocolError("a WebSocket frame has bits that nobody agreed on")
        if size > MAX_MESSAGE:
            raise ProtocolError("a WebSocket message is too long")
        if len(buffer) < start + size:
            return None
        try:
            opcode = Opcode(first & 0x0F)
        except ValueError:
            raise ProtocolError(f"no WebSocket opcode: {first & 0x0F}") from None
        payload = bytes(buffer[start : start + size])
        del buffer[: start + size]
        return bool(first & 0x80), opcode, payload
