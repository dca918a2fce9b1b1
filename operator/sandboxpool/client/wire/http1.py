"""HTTP/1.1 as an API server speaks it, without I/O.

One connection carries one exchange at a time. What is not needed of an API server (trailers,
content codings, redirects) is not here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MAX_HEAD = 64 * 1024
_MAX_CHUNK_LINE = 1024


class ProtocolError(Exception):
    """The peer does not speak HTTP/1.1 or WebSocket as the RFCs have it."""


@dataclass(frozen=True, slots=True)
class Head:
    """The first lines of a response; header names are in lower case."""

    status: int
    phrase: str
    headers: Mapping[str, str]


def encode_request(
    method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes = b""
) -> bytes:
    """Write a request; a length is added where there is a body.

    Raises:
        ValueError: A line break in the target or in a header would start a header of its own.
    """
    lines = [f"{method} {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body or method in ("POST", "PUT", "PATCH"):
        lines.append(f"Content-Length: {len(body)}")
    for line in lines:
        if "\r" in line or "\n" in line:
            raise ValueError(f"a line break in a request's head: {line!r}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


class ResponseReader:
    """Reads one response from the bytes that are fed to it.

    Attributes:
        head: The head, once it is complete; interim responses are passed over.
        complete: The whole response was read.
    """

    def __init__(self, method: str) -> None:
        self.head: Head | None = None
        self.complete = False
        self._method = method
        self._buffer = bytearray()
        self._body = bytearray()
        self._chunked = False
        self._left: int | None = None  # of the body or the chunk; None: until the end
        self._reusable = True
        self._in_chunk = False
        self._last_chunk = False

    @property
    def reusable(self) -> bool:
        """The connection can carry another exchange."""
        return self.complete and self._reusable and not self._buffer

    def feed(self, data: bytes) -> None:
        """Take bytes from the connection; empty bytes say that it has ended.

        Raises:
            ProtocolError: They are no response, or it ended in the middle.
        """
        if not data:
            self._ended()
            return
        self._buffer += data
        self._advance()

    def take_body(self) -> bytes:
        """Return what of the body has come since the last call."""
        body = bytes(self._body)
        self._body.clear()
        return body

    def take_rest(self) -> bytes:
        """Return what came behind the response: the first bytes of another protocol."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def _ended(self) -> None:
        if self.complete:
            return
        if self.head is not None and not self._chunked and self._left is None:
            self.complete = True
            return
        raise ProtocolError("the connection ended in the middle of a response")

    def _advance(self) -> None:
        while self.head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > MAX_HEAD:
                    raise ProtocolError("the head of the response does not end")
                return
            head = _decode_head(bytes(self._buffer[:end]))
            del self._buffer[: end + 4]
            if head.status >= 200 or head.status == 101:
                self.head = head
                self._frame(head)
        if self._chunked:
            self._advance_chunks()
        elif not self.complete:
            self._move(self._left)
            if self._left == 0:
                self.complete = True

    def _frame(self, head: Head) -> None:
        headers = head.headers
        if "close" in headers.get("connection", "").lower():
            self._reusable = False
        established = self._method == "CONNECT" and head.status < 300
        if head.status in (101, 204, 304) or self._method == "HEAD" or established:
            self._left = 0
        elif "chunked" in headers.get("transfer-encoding", "").lower():
            self._chunked = True
        elif "content-length" in headers:
            length = headers["content-length"]
            if not length.isdecimal():
                raise ProtocolError(f"the response has no length: {length[:40]!r}")
            self._left = int(length)
        else:
            self._reusable = False

    def _move(self, count: int | None) -> None:
        part = self._buffer if count is None else self._buffer[:count]
        self._body += part
        if self._left is not None:
            self._left -= len(part)
        del self._buffer[: len(part)]

    def _advance_chunks(self) -> None:
        while not self.complete:
            if self._in_chunk:
                self._move(self._left)
                if self._left or len(self._buffer) < 2:
                    return
                if self._buffer[:2] != b"\r\n":
                    raise ProtocolError("a chunk is longer than it says")
                del self._buffer[:2]
                self._in_chunk = False
            end = self._buffer.find(b"\r\n")
            if end < 0:
                if len(self._buffer) > _MAX_CHUNK_LINE:
                    raise ProtocolError("the length of a chunk does not end")
                return
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 2]
            if self._last_chunk:
                self.complete = not line
                continue
            try:
                self._left = int(line.split(b";")[0], 16)
            except ValueError:
                raise ProtocolError(f"a chunk has no length: {line[:40]!r}") from None
            self._last_chunk = self._left == 0
            self._in_chunk = not self._last_chunk


def _decode_head(data: bytes) -> Head:
    first, *lines = data.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    code, _, phrase = rest.partition(" ")
    if not version.startswith("HTTP/1.") or not code.isdecimal():
        raise ProtocolError(f"no HTTP/1.1 response: {first[:80]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise ProtocolError(f"no header: {line[:80]!r}")
        key, text = name.strip().lower(), value.strip()
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return Head(int(code), phrase, headers)
