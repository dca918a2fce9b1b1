"""The API server: requests, watches and WebSockets over few connections."""

import json
import re
from collections.abc import Sequence
from typing import Any

from sandboxpool.api import names
from sandboxpool.client.config import Endpoint, Settings
from sandboxpool.client.errors import AccessDenied, ApiError, ConnectionLost, NotInstalled
from sandboxpool.client.io import Channel, Io, Task
from sandboxpool.client.requests import Request
from sandboxpool.client.wire import websocket
from sandboxpool.client.wire.http1 import Head, ProtocolError, ResponseReader, encode_request
from sandboxpool.client.wire.websocket import FrameReader, Opcode

Object = dict[str, Any]

CONNECT_SECONDS = 10.0
REQUEST_SECONDS = 30.0
# Load balancers forget connections after a minute or more without saying so.
_IDLE_SECONDS = 45.0
_MAX_IDLE = 32
_MAX_RETRY_AFTER = 5.0
_RETRIES = 4
_MAX_LINE = 16 * 1024 * 1024
_USER_AGENT = "sandboxpool-client"
_FORBIDDEN = re.compile(r'cannot (\S+) resource "([^"]+)"(?: in API group "([^"]*)")?')


class Api:
    """A cluster's API server."""

    def __init__(self, io: Io, settings: Settings) -> None:
        self.io = io
        self.settings = settings
        self._idle: list[tuple[Channel, float]] = []
        self._closed = False

    def close(self) -> None:
        """Close the idle connections; those in use are closed when they are given back."""
        self._closed = True
        while self._idle:
            self._idle.pop()[0].close()

    async def call(self, request: Request, within: float = REQUEST_SECONDS) -> Object:
        """Make a request and return the object that answers it.

        Raises:
            ApiError: The API server refuses it.
            ConnectionLost: It cannot be reached.
        """
        retries = 0
        while True:
            exchange = await self._send(request, within=within)
            try:
                body = await exchange.read_body(within)
            except BaseException:
                exchange.channel.close()
                raise
            self._give_back(exchange)
            pause = _retry_after(exchange.head) if retries < _RETRIES else None
            if pause is None:
                return _object_or_error(request, exchange.head, body)
            retries += 1
            await self.io.sleep(pause)

    async def watch(self, request: Request) -> "Watch":
        """Begin a watch, on a connection of its own.

        A connection that is idle is left to what comes next: it saves that a handshake, while here
        the operator needs its time anyway.
        """
        exchange = await self._send(request, fresh=True)
        if exchange.head.status != 200:
            body = await self._read_and_close(exchange)
            raise _error(request, exchange.head, body)
        return Watch(exchange)

    async def stream(self, request: Request) -> "Body":
        """Begin to read an answer that is no object, such as a log, piece by piece.

        Raises:
            ApiError: The API server refuses the request.
            ConnectionLost: It cannot be reached.
        """
        exchange = await self._send(request)
        if exchange.head.status != 200:
            body = await self._read_and_close(exchange)
            raise _error(request, exchange.head, body)
        return Body(exchange)

    async def websocket(self, request: Request, protocols: tuple[str, ...]) -> "WebSocket":
        """Change a connection to WebSocket.

        Raises:
            ApiError: The API server refuses it.
            ConnectionLost: It cannot be reached, or something on the way knows no WebSocket.
        """
        key = websocket.new_key()
        exchange = await self._send(request, websocket.upgrade_headers(key, protocols))
        if exchange.head.status != 101:
            body = await self._read_and_close(exchange)
            if exchange.head.status < 300:
                raise ConnectionLost("the API server, or a proxy before it, knows no WebSocket")
            raise _error(request, exchange.head, body)
        try:
            protocol = websocket.accepted_protocol(exchange.head, key, protocols)
        except ProtocolError as error:
            exchange.channel.close()
            raise ConnectionLost(f"no WebSocket to the API server: {error}") from error
        return WebSocket(self.io, exchange.channel, protocol, exchange.reader.take_rest())

    async def _read_and_close(self, exchange: "_Exchange") -> bytes:
        try:
            return await exchange.read_body(REQUEST_SECONDS)
        finally:
            exchange.channel.close()

    async def _send(
        self,
        request: Request,
        headers: Sequence[tuple[str, str]] = (),
        *,
        fresh: bool = False,
        within: float = REQUEST_SECONDS,
    ) -> "_Exchange":
        settings, server = self.settings, self.settings.server
        if settings.may_block:
            authorization = await self.io.call_blocking(settings.authorization)
        else:
            authorization = settings.authorization()
        lines = [
            ("Host", _authority(server)),
            ("User-Agent", _USER_AGENT),
            # Where a connection is changed, the API server wants nothing less than anything.
            ("Accept", "*/*" if headers else "application/json"),
            *headers,
        ]
        if authorization:
            lines.append(("Authorization", authorization))
        if request.content_type:
            lines.append(("Content-Type", request.content_type))
        data = encode_request(request.method, server.path + request.target, lines, request.body)
        channel = None if fresh else self._take_idle()
        while True:
            reused = channel is not None
            channel = channel or await self._connect()
            exchange = _Exchange(channel, ResponseReader(request.method))
            try:
                await channel.send(data)
                await exchange.read_head(within)
            except ConnectionLost:
                channel.close()
                # An idle connection may end just when it is used; that says nothing of the server.
                if not (reused and not exchange.answered and request.repeatable):
                    raise
            except OSError as error:
                channel.close()
                if not (reused and request.repeatable):
                    raise ConnectionLost(f"{self._server()}: {_text(error)}") from error
            except BaseException:
                channel.close()
                raise
            else:
                return exchange
            channel = None

    def _take_idle(self) -> Channel | None:
        while self._idle:
            try:
                channel, since = self._idle.pop()
            except IndexError:  # another thread was faster
                return None
            if self.io.monotonic() - since < _IDLE_SECONDS and not channel.is_stale():
                return channel
            channel.close()
        return None

    def _give_back(self, exchange: "_Exchange") -> None:
        if self._closed or not exchange.reader.reusable or len(self._idle) >= _MAX_IDLE:
            exchange.channel.close()
        else:
            self._idle.append((exchange.channel, self.io.monotonic()))

    async def _connect(self) -> Channel:
        settings, server, proxy = self.settings, self.settings.server, self.settings.proxy
        first = proxy or server
        try:
            channel = await self.io.connect(first.host, first.port, CONNECT_SECONDS)
            if proxy is not None:
                channel = await self._through(channel, proxy)
            if server.https:
                channel = await self.io.start_tls(
                    channel, settings.ssl_context(), settings.hostname, CONNECT_SECONDS
                )
        except OSError as error:
            by = f" by the proxy {proxy.host}:{proxy.port}" if proxy else ""
            raise ConnectionLost(
                f"{self._server()} cannot be reached{by}: {_text(error)}"
            ) from error
        return channel

    async def _through(self, channel: Channel, proxy: Endpoint) -> Channel:
        if proxy.https:
            channel.close()
            raise OSError("proxies that want TLS themselves are not supported")
        target = _authority(self.settings.server, always_port=True)
        headers = [("Host", target), ("User-Agent", _USER_AGENT), *self.settings.proxy_headers]
        if proxy.authorization:
            headers.append(("Proxy-Authorization", proxy.authorization))
        exchange = _Exchange(channel, ResponseReader("CONNECT"))
        try:
            await channel.send(encode_request("CONNECT", target, headers))
            await exchange.read_head(CONNECT_SECONDS)
        except BaseException:
            channel.close()
            raise
        if exchange.head.status >= 300:
            channel.close()
            raise OSError(f"it says {exchange.head.status} {exchange.head.phrase}")
        return channel

    def _server(self) -> str:
        return f"the API server {_authority(self.settings.server)}"


class _Exchange:
    """A request on its connection, and the response."""

    def __init__(self, channel: Channel, reader: ResponseReader) -> None:
        self.channel = channel
        self.reader = reader
        self.answered = False

    @property
    def head(self) -> Head:
        head = self.reader.head
        assert head is not None, "the head is read first"
        return head

    async def read_head(self, within: float) -> None:
        while self.reader.head is None:
            await self._read(within)

    async def read_body(self, within: float) -> bytes:
        parts = [self.reader.take_body()]
        while not self.reader.complete:
            await self._read(within)
            parts.append(self.reader.take_body())
        return b"".join(parts)

    async def read_part(self, within: float | None) -> bytes | None:
        """Return some of the body; None at its end.

        Raises:
            TimeoutError: Nothing came in time.
        """
        while True:
            if part := self.reader.take_body():
                return part
            if self.reader.complete:
                return None
            await self._feed(within)

    async def _read(self, within: float) -> None:
        try:
            await self._feed(within)
        except TimeoutError:
            raise ConnectionLost(f"the API server has not answered for {within:g} s") from None

    async def _feed(self, within: float | None) -> None:
        try:
            data = await self.channel.receive(within)
            self.answered = self.answered or bool(data)
            self.reader.feed(data)
        except TimeoutError:
            raise
        except (OSError, ProtocolError) as error:
            raise ConnectionLost(f"the API server's answer broke off: {_text(error)}") from error


class Watch:
    """A stream of changes."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange
        self._buffer = bytearray()

    async def next_event(self, within: float) -> tuple[str, Object] | None:
        """Return the type of the next change and its object.

        None when the watch has ended, or nothing has changed within so many seconds.

        Raises:
            ConnectionLost: The connection broke.
        """
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                if not line.strip():
                    continue
                try:
                    event = json.loads(line)
                    return str(event["type"]), event["object"]
                except (ValueError, KeyError, TypeError) as error:
                    raise ConnectionLost(f"a watch brought no event: {error}") from error
            if len(self._buffer) > _MAX_LINE:
                raise ConnectionLost("an event of a watch does not end")
            try:
                part = await self._exchange.read_part(within)
            except TimeoutError:
                return None
            if part is None:
                return None
            self._buffer += part

    def close(self) -> None:
        """End the watch."""
        self._exchange.channel.close()


class Body:
    """The rest of an answer."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    async def next_part(self) -> bytes | None:
        """Return what comes next, however long it takes; None at the end.

        Raises:
            ConnectionLost: The connection broke.
        """
        return await self._exchange.read_part(None)

    def close(self) -> None:
        """Read no more."""
        self._exchange.channel.close()


class WebSocket:
    """A WebSocket; one side may send while the other receives.

    Attributes:
        protocol: What both sides agreed on.
    """

    def __init__(self, io: Io, channel: Channel, protocol: str, received: bytes) -> None:
        self.protocol = protocol
        self._channel = channel
        self._frames = FrameReader()
        self._frames.feed(received)
        self._sending = io.lock()
        self._io = io
        self._control: list[bytes] = []
        self._flushing = False
        self._flusher: Task | None = None

    async def send(self, *parts: bytes) -> None:
        """Send a message, for as long as the peer takes.

        Raises:
            ConnectionLost: The connection broke, or was closed.
        """
        await self._send(websocket.encode_frame(Opcode.BINARY, *parts))

    async def ping(self) -> None:
        """Show whatever is on the way that the connection is in use."""
        await self._send_control(Opcode.PING, b"")

    async def receive(self, within: float | None) -> bytes | None:
        """Return the next message; None when the peer has closed.

        Raises:
            TimeoutError: Nothing came within so many seconds.
            ConnectionLost: The connection broke.
        """
        while True:
            try:
                message = self._frames.next_message()
                if message is None:
                    data = await self._channel.receive(within)
            except TimeoutError:
                raise
            except (OSError, ProtocolError) as error:
                raise ConnectionLost(
                    f"the connection to the API server broke: {_text(error)}"
                ) from error
            if message is None:
                if not data:
                    raise ConnectionLost("the connection to the API server ended")
                self._frames.feed(data)
            elif message.opcode is Opcode.CLOSE:
                return None
            elif message.opcode is Opcode.PING:
                await self._send_control(Opcode.PONG, message.payload)
            elif message.opcode is not Opcode.PONG:
                return message.payload

    async def close(self) -> None:
        """Close at once."""
        self._channel.close()
        if self._flusher is not None:
            await self._flusher.stop()

    async def _send(self, frame: bytes) -> None:
        async with self._sending:
            try:
                control, self._control = self._control, []
                await self._channel.send(b"".join([*control, frame]))
            except OSError as error:
                raise ConnectionLost(
                    f"the connection to the API server broke: {_text(error)}"
                ) from error

    async def _send_control(self, opcode: Opcode, payload: bytes) -> None:
        # Beside whoever receives: the peer may take it only when its own output is read.
        self._control.append(websocket.encode_frame(opcode, payload))
        if not self._flushing:
            self._flushing = True
            self._flusher = self._io.start(self._flush())

    async def _flush(self) -> None:
        try:
            await self._send(b"")
        except ConnectionLost:
            # Whoever receives reports it.
            return
        finally:
            self._flushing = False


def _authority(server: Endpoint, *, always_port: bool = False) -> str:
    host = f"[{server.host}]" if ":" in server.host else server.host
    usual = 443 if server.https else 80
    return host if server.port == usual and not always_port else f"{host}:{server.port}"


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _retry_after(head: Head) -> float | None:
    """Seconds after which a request that was not looked at should be made again."""
    if head.status not in (429, 503) or not head.headers.get("retry-after", "").isdecimal():
        return None
    return min(_MAX_RETRY_AFTER, max(0.1, float(head.headers["retry-after"])))


def _object_or_error(request: Request, head: Head, body: bytes) -> Object:
    if head.status >= 300:
        raise _error(request, head, body)
    try:
        answer = json.loads(body)
    except ValueError as error:
        raise ConnectionLost(f"the API server's answer is no JSON: {error}") from error
    if not isinstance(answer, dict):
        raise ConnectionLost("the API server's answer is no object")
    return answer


def _error(request: Request, head: Head, body: bytes) -> ApiError:
    try:
        status = json.loads(body)
        message, reason = str(status.get("message") or ""), str(status.get("reason") or "")
        named = bool((status.get("details") or {}).get("name"))
    except (ValueError, AttributeError, TypeError):
        text = body.decode(errors="replace").strip()
        message, reason, named = text[:1000] or head.phrase, "", False
    if head.status == 401:
        return ApiError(
            f"the API server does not know who this is: {message}; renew the credentials of the"
            " kubeconfig or the service account",
            reason,
            401,
        )
    if head.status == 403 and (found := _FORBIDDEN.search(message)):
        verb, resource, group = found.groups()
        resource = f"{resource}.{group}" if group else resource
        where, role = f"namespace {request.namespace!r}", "Role"
        if not request.namespace:
            where, role = "the whole cluster", "ClusterRole"
        return AccessDenied(
            f"no right to {verb} {resource} in {where}: bind a {role} with it to the user or"
            f" service account ({message})",
            verb=verb,
            resource=resource,
            namespace=request.namespace,
        )
    if head.status == 404 and not named and f".{names.GROUP}" in request.resource:
        return NotInstalled(
            f"the cluster has no {request.resource}: install SandboxPool and its CRDs ({message})",
            reason,
            404,
        )
    return ApiError(f"{request.verb} {request.resource}: {message}", reason, head.status)
