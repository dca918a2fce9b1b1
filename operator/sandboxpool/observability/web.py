"""The operator's two doors: probes on one port, metrics on another.

Whoever can reach the pods' network can knock, sandboxes included. So a connection serves one
request and ends after some seconds whatever it does, there are never more than so many, and what an
answer costs does not grow with those who ask.
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
# A request is a line and some headers; the longest is a token.
MAX_LINE_BYTES = 1024
MAX_FIELD_BYTES = 8190
MAX_HEADERS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one door bears.

    Attributes:
        connections: how many there are at most.
        seconds: for how long each of them lives at most.
        drop_oldest: beyond the limit, the oldest connection makes room; else the newest is told to
            come back.
        backlog: how many connections the loop takes in at a time.
    """

    connections: int
    seconds: float
    drop_oldest: bool
    backlog: int


# Prometheus gives a scrape up after 10 seconds, unless told otherwise.
METRICS_LIMITS = Limits(connections=32, seconds=10.0, drop_oldest=False, backlog=16)
# Who holds connections must not keep the kubelet out, for it would kill the operator. A probe is
# answered at once, so that the oldest connection is none of the kubelet's.
HEALTH_LIMITS = Limits(connections=64, seconds=5.0, drop_oldest=True, backlog=64)

_BUSY = b"%d requests are in progress, which is the most that are served at a time; try again\n"


class ListenError(Exception):
    """An address cannot be listened on; the message names it and says why."""


class HttpServer:
    """One listening port and its connections."""

    def __init__(self, handler: Handler, limits: Limits) -> None:
        self.limits = limits
        # In the order in which they came.
        self.open: dict[_Connection, None] = {}
        self.refused: set[asyncio.BaseTransport] = set()
        self._http = web.Server(handler, handler_cancellation=True)
        self._listening: asyncio.Server | None = None

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens."""
        assert self._listening is not None
        return [listener.getsockname()[:2] for listener in self._listening.sockets]

    async def listen(self, host: str | None, port: int) -> "HttpServer":
        """Begin to listen, on all addresses of all families when no host is given.

        Raises:
            ListenError: it is in use, or none of this machine's.
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
                "SANDBOXPOOL_HEALTH_LISTEN (Helm: port, healthPort) to what is free"
            ) from error
        return self

    async def close(self) -> None:
        """Listen no longer, and end what is there."""
        if self._listening is not None:
            self._listening.close()
        for transport in list(self.refused):
            transport.close()
        await self._http.shutdown(CLOSE_SECONDS)


def _on_all_families(port: int) -> socket.socket:
    """One socket for IPv6 and IPv4; for IPv4 alone where the kernel has no IPv6.

    The kubelet probes the pod's primary address, whose family the cluster decides.
    """
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            # Compiled in, and switched off by sysctl.
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
    return socket.create_server(("0.0.0.0", port))  # noqa: S104 - on purpose, see above


class _Connection(web.RequestHandler):
    """One connection, from its first byte to its last or until its time is over."""

    def __init__(
        self, http_server: HttpServer, manager: web.Server, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(
            manager,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # None: it keeps none
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_FIELD_BYTES,
            max_headers=MAX_HEADERS,
            lingering_time=0.0,
        )
        self._http_server = http_server
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        door, limits = self._http_server, self._http_server.limits
        if len(door.open) >= limits.connections:
            if not limits.drop_oldest:
                _refuse(door, transport)
                return
            oldest = next(iter(door.open))
            del door.open[oldest]
            if oldest.transport is not None:
                oldest.transport.abort()
        door.open[self] = None
        loop = asyncio.get_running_loop()
        self._end = loop.call_later(limits.seconds, self._time_is_over)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._http_server.open.pop(self, None)
        if self._end is not None:
            self._end.cancel()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if isinstance(exc, HttpProcessingError):
            # aiohttp would write a traceback for each, and so would whoever knocks.
            response = _plain(400, "this is no request that can be read")
            response.force_close()
            return response
        return super().handle_error(request, status, exc, message)

    def _time_is_over(self) -> None:
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
    """Tells one that is too many to come back; there is a limit to those as well."""

    SECONDS = 1.0

    def __init__(self, http_server: HttpServer) -> None:
        self._http_server = http_server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._http_server.refused.add(transport)
        # If it were closed before the request is here, its sender would see a reset.
        self._end = asyncio.get_running_loop().call_later(self.SECONDS, transport.abort)

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
        self._end.cancel()
        self._http_server.refused.discard(self._transport)


def _only(pages: dict[str, Handler]) -> Handler:
    """Serve some paths, one request a connection."""

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


async def serve_health(host: str | None, port: int, missing: Callable[[], list[str]]) -> HttpServer:
    """Serve /healthz and /readyz; the caller closes the returned door.

    Args:
        host: address to listen on; all of them if None.
        port: port to listen on.
        missing: what cannot be seen of the cluster; /readyz is 200 when it is empty.
    """

    async def healthz(request: web.BaseRequest) -> web.Response:
        # Answering at all is the proof: the loop runs. A task that dies ends the process.
        del request
        return _plain(200, "ok")

    async def readyz(request: web.BaseRequest) -> web.Response:
        del request
        waiting = missing()
        if waiting:
            return _plain(503, f"not synced: {', '.join(waiting)}")
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
    """Serve /metrics; the caller closes the returned door.

    Args:
        host: address to listen on; all of them if None.
        port: port to listen on.
        exposition: the text.
        reviewer: says who may read it; everybody if None.
        limits: what the door bears.
    """

    async def metrics(request: web.BaseRequest) -> web.StreamResponse:
        if reviewer is not None:
            answer = await reviewer.authorize(request.headers.get("Authorization"))
            if answer is not Decision.ALLOWED:
                return _denial(answer)
        text = await exposition.text()
        if not text:
            return _plain(500, "the metrics cannot be computed; the operator's log says why")
        return await _send(request, text)

    return await HttpServer(_only({"/metrics": metrics}), limits).listen(host, port)


_DENIALS = {
    Decision.UNKNOWN: "a bearer token is needed that the API server knows",
    Decision.FORBIDDEN: 'the user needs the right to "get" the non-resource URL /metrics',
    Decision.UNDECIDED: "the API server cannot be asked about the token; try again",
}


def _denial(answer: Decision) -> web.Response:
    response = _plain(answer.value, _DENIALS[answer])
    if answer is Decision.UNKNOWN:
        response.headers["WWW-Authenticate"] = "Bearer"
    elif answer is Decision.UNDECIDED:
        response.headers["Retry-After"] = "1"
    return response


async def _send(request: web.BaseRequest, text: bytes) -> web.StreamResponse:
    """Send a long text piece by piece: a slow reader must not hold a copy of it."""
    response = web.StreamResponse(headers={"Content-Type": CONTENT_TYPE_LATEST})
    response.content_length = len(text)
    response.force_close()
    await response.prepare(request)
    view = memoryview(text)
    for start in range(0, len(text), CHUNK_BYTES):
        await response.write(view[start : start + CHUNK_BYTES])
        # A fast reader never makes us wait, and all of them together would keep the loop for long.
        await asyncio.sleep(0)
    await response.write_eof()
    return response
