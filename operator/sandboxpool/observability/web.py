"""Two HTTP servers: probes on one port, metrics on another.

Every client that reaches the pod network can connect, sandboxes included. So a connection serves
one request and is closed after some seconds, the number of connections is limited, and the cost of
a response does not grow with the number of clients.
"""

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from sandboxpool.observability.exposition import Exposition
from sandboxpool.observability.webauth import Decision, Reviewer

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

CHUNK_BYTES = 64 * 1024
CLOSE_SECONDS = 1.0
# A request has a line and some headers, the longest of which is a token.
MAX_LINE_BYTES = 1024
MAX_FIELD_BYTES = 8190
MAX_HEADERS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one server.

    Attributes:
        connections: the most open connections.
        seconds: the longest life of a connection.
        drop_oldest: whether a connection beyond the limit closes the oldest one; otherwise it gets
            a 503.
        backlog: how many connections the loop accepts at a time.
    """

    connections: int
    seconds: float
    drop_oldest: bool
    backlog: int


# Prometheus' default scrape timeout is 10 seconds.
METRICS_LIMITS = Limits(connections=32, seconds=10.0, drop_oldest=False, backlog=16)
# Clients that keep connections open must not lock out the kubelet, which would restart the
# operator. A probe is answered at once, so the oldest connection is not the kubelet's.
HEALTH_LIMITS = Limits(connections=64, seconds=5.0, drop_oldest=True, backlog=64)

_BUSY = b"%d requests are in progress, which is the limit; try again\n"


class ListenError(Exception):
    """The server cannot listen on an address; the message names it, the cause and the remedy."""


class HttpServer:
    """One listening port and its connections."""

    def __init__(self, handler: Handler, limits: Limits) -> None:
        self.limits = limits
        # In the order in which they were accepted.
        self.open: dict[_Connection, None] = {}
        self.refused: set[asyncio.BaseTransport] = set()
        self._http = web.Server(handler, handler_cancellation=True)
        self._listening: asyncio.Server | None = None

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The addresses and ports that the server listens on."""
        assert self._listening is not None
        return [listener.getsockname()[:2] for listener in self._listening.sockets]

    async def listen(self, host: str | None, port: int) -> "HttpServer":
        """Listen on a host's address; on all addresses of all families if the host is None.

        Raises:
            ListenError: the address is in use, or is not one of this machine.
        """
        loop = asyncio.get_running_loop()

        def connection() -> asyncio.Protocol:
            return _Connection(self, self._http, loop)

        backlog = self.limits.backlog
        try:
            if host is None:
                listener = _on_all_families(port)
                self._listening = await loop.create_server(
                    connection, sock=listener, backlog=backlog
                )
            else:
                self._listening = await loop.create_server(connection, host, port, backlog=backlog)
        except OSError as error:
            where = "all addresses" if host is None else host
            raise ListenError(
                f"cannot listen on port {port} of {where}: {error}; set SANDBOXPOOL_LISTEN and "
                "SANDBOXPOOL_HEALTH_LISTEN (Helm: port, healthPort) to free addresses"
            ) from error
        return self

    async def close(self) -> None:
        """Stop listening, and close all connections."""
        if self._listening is not None:
            self._listening.close()
        for transport in list(self.refused):
            transport.close()
        await self._http.shutdown(CLOSE_SECONDS)


def _on_all_families(port: int) -> socket.socket:
    """One socket for IPv6 and IPv4; for IPv4 alone if the kernel has no IPv6.

    The kubelet probes the pod's primary address, whose family depends on the cluster.
    """
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            # IPv6 is compiled in, but disabled by sysctl.
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
    return socket.create_server(("0.0.0.0", port))  # noqa: S104 - on purpose, see above


class _Connection(web.RequestHandler):
    """One connection, closed after its request or after the limit of seconds."""

    def __init__(
        self, http_server: HttpServer, manager: web.Server, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(
            manager,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # None disables the access log
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_FIELD_BYTES,
            max_headers=MAX_HEADERS,
            lingering_time=0.0,
        )
        self._http_server = http_server
        self._timeout: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        server, limits = self._http_server, self._http_server.limits
        if len(server.open) >= limits.connections:
            if not limits.drop_oldest:
                _refuse(server, transport)
                return
            oldest = next(iter(server.open))
            del server.open[oldest]
            if oldest.transport is not None:
                oldest.transport.abort()
        server.open[self] = None
        loop = asyncio.get_running_loop()
        self._timeout = loop.call_later(limits.seconds, self._time_out)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._http_server.open.pop(self, None)
        if self._timeout is not None:
            self._timeout.cancel()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if isinstance(exc, HttpProcessingError):
            # aiohttp would log a traceback for each, so that clients could fill the log.
            response = _plain(400, "the HTTP request is malformed or too large")
            response.force_close()
            return response
        return super().handle_error(request, status, exc, message)

    def _time_out(self) -> None:
        if self.transport is not None:
            self.transport.abort()


def _refuse(http_server: HttpServer, transport: asyncio.BaseTransport) -> None:
    assert isinstance(transport, asyncio.Transport)
    if len(http_server.refused) >= http_server.limits.connections:
        transport.abort()
        return
    refusal = _Refusal(http_server)
    transport.set_protocol(refusal)
    refusal.connection_made(transport)


class _Refusal(asyncio.Protocol):
    """Responds with 503 to a connection beyond the limit; there is a limit to refusals, too."""

    SECONDS = 1.0

    def __init__(self, http_server: HttpServer) -> None:
        self._http_server = http_server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._http_server.refused.add(transport)
        # If the connection were closed before the request arrives, the client would see a reset.
        self._timeout = asyncio.get_running_loop().call_later(self.SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        del data
        text = _BUSY % self._http_server.limits.connections
        self._transport.write(
            b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
            b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n\r\n%s"
            % (len(text), text)
        )
        self._transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        del exc
        self._timeout.cancel()
        self._http_server.refused.discard(self._transport)


def _only(pages: dict[str, Handler]) -> Handler:
    """Serve only these paths, one request a connection."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        page = pages.get(request.path)
        if page is None:
            response: web.StreamResponse = _plain(404, "not found")
        elif request.method != "GET":
            response = _plain(405, "only GET is served")
            response.headers["Allow"] = "GET"
        else:
            response = await page(request)
        response.force_close()
        return response

    return handle


def _plain(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=f"{text}\n")


async def serve_health(
    host: str | None, port: int, not_synced: Callable[[], list[str]]
) -> HttpServer:
    """Serve /healthz and /readyz; the caller closes the returned server.

    Args:
        host: address to listen on; all of them if None.
        port: port to listen on.
        not_synced: returns the watches that are not synced; /readyz is 200 if there are none.
    """

    async def healthz(request: web.BaseRequest) -> web.Response:
        # A response proves that the event loop runs. A task that fails ends the process.
        del request
        return _plain(200, "ok")

    async def readyz(request: web.BaseRequest) -> web.Response:
        del request
        watches = not_synced()
        if watches:
            return _plain(503, f"not synced: {', '.join(watches)}")
        return _plain(200, "ok")

    pages: dict[str, Handler] = {"/healthz": healthz, "/readyz": readyz}
    return await HttpServer(_only(pages), HEALTH_LIMITS).listen(host, port)


async def serve_metrics(
    host: str | None,
    port: int,
    exposition: Exposition,
    reviewer: Reviewer | None = None,
    limits: Limits = METRICS_LIMITS,
) -> HttpServer:
    """Serve /metrics; the caller closes the returned server.

    Args:
        host: address to listen on; all of them if None.
        port: port to listen on.
        exposition: the text.
        reviewer: authorizes the clients; all are allowed if None.
        limits: the limits of the server.
    """

    async def metrics(request: web.BaseRequest) -> web.StreamResponse:
        if reviewer is not None:
            decision = await reviewer.authorize(request.headers.get("Authorization"))
            if decision is not Decision.ALLOWED:
                return _denial(decision)
        text = await exposition.text()
        if not text:
            return _plain(500, "the metrics cannot be rendered; the operator's log says why")
        return await _send(request, text)

    return await HttpServer(_only({"/metrics": metrics}), limits).listen(host, port)


_DENIALS = {
    Decision.UNKNOWN: "send a bearer token that the API server accepts",
    Decision.FORBIDDEN: 'the user needs the permission to "get" the non-resource URL /metrics',
    Decision.UNDECIDED: "the API server cannot review the token now; try again",
}


def _denial(decision: Decision) -> web.Response:
    response = _plain(decision.value, _DENIALS[decision])
    if decision is Decision.UNKNOWN:
        response.headers["WWW-Authenticate"] = "Bearer"
    elif decision is Decision.UNDECIDED:
        response.headers["Retry-After"] = "1"
    return response


async def _send(request: web.BaseRequest, text: bytes) -> web.StreamResponse:
    """Send a long text in chunks: a slow client must not hold a copy of it."""
    response = web.StreamResponse(headers={"Content-Type": CONTENT_TYPE_LATEST})
    response.content_length = len(text)
    response.force_close()
    await response.prepare(request)
    view = memoryview(text)
    for start in range(0, len(text), CHUNK_BYTES):
        await response.write(view[start : start + CHUNK_BYTES])
        # A write to a fast client does not wait, so that many of them would block the loop.
        await asyncio.sleep(0)
    await response.write_eof()
    return response
