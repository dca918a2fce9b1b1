"""A proxy between a client and the API server that fails on request.

    with FaultProxy(upstream, ca_file) as proxy:
        hold = proxy.hold("PATCH", r"/pods/warm-1$")
        ...start something that patches that pod through proxy.kubeconfig(token)...
        hold.wait_reached()
        ...change the world behind its back...
        hold.release()

Patterns are regular expressions, searched in the path with its query. A rule acts `times` times
and is then spent; the oldest rule that matches goes first. The proxy runs in a thread of its own,
so blocking and asynchronous tests use it alike.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import ssl
import tempfile
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import aiohttp
import yaml
from aiohttp import web
from yarl import URL

from fakekubelet.loopthread import LoopThread

# Connection headers concern one hop only; the rest passes as it is, Authorization included.
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "host", "te", "trailer"}
_REQUEST_SECONDS = 60.0

Where = Literal["request", "response"]


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that came by.

    Attributes:
        method: The HTTP method.
        path: The path without the query.
        query: The query string.
        status: What the API server, or a refusing rule, answered; 0 if nobody was asked or there
            was no answer.
        delivered: Whether the client got the answer.
    """

    method: str
    path: str
    query: str
    status: int
    delivered: bool = True


class Rule:
    """What happens to the next requests that match.

    Attributes:
        hits: How many requests it has acted on.
    """

    def __init__(
        self, method: str, pattern: str, times: int | None, chance: Callable[[], bool] | None = None
    ) -> None:
        self._method = method
        self._pattern = re.compile(pattern)
        self._left = times
        self._chance = chance
        self._body = b""
        self.hits = 0
        self._hit = threading.Event()

    def matches(self, method: str, target: str) -> bool:
        return (
            self._left != 0
            and self._method in {"*", method}
            and self._pattern.search(target) is not None
            and (self._chance is None or self._chance())
        )

    def concerns(self, body: bytes) -> bool:
        """Whether it acts on a request with this body, given that the rest matches."""
        return self._body in body

    def take(self) -> None:
        """Reserves one of the rule's times, so that no second request gets it."""
        if self._left is not None:
            self._left -= 1

    def act(self) -> None:
        """Says that it happens now."""
        self.hits += 1
        self._hit.set()

    def wait_reached(self, timeout: float = 15.0) -> None:
        """Waits until the rule has acted on a request.

        Raises:
            TimeoutError: If it has not in time.
        """
        if not self._hit.wait(timeout):
            raise TimeoutError(
                f"no {self._method} request matched {self._pattern.pattern!r} within {timeout} s"
            )

    async def reached(self, timeout: float = 15.0) -> None:  # noqa: ASYNC109  # same as above
        """Waits like `wait_reached`, without blocking the event loop."""
        await asyncio.to_thread(self.wait_reached, timeout)

    def cancel(self) -> None:
        """Ends the rule."""
        self._left = 0


R = TypeVar("R", bound=Rule)


class Hold(Rule):
    """Keeps requests back, before they are sent on or before they are answered."""

    def __init__(
        self,
        method: str,
        pattern: str,
        times: int | None,
        where: Where,
        body: str,
        *,
        hang_up: bool,
    ) -> None:
        super().__init__(method, pattern, times)
        self.where = where
        self.hang_up = hang_up
        self._body = body.encode()
        self._released = threading.Event()

    def release(self) -> None:
        """Lets go what is held, and what comes later."""
        self._released.set()
        self.cancel()

    async def pause(self) -> None:
        while not self._released.is_set():  # noqa: ASYNC110  # set by another thread
            await asyncio.sleep(0.005)


class Stall:
    """Watches of which nothing gets through for a while. What they said comes late, in order."""

    def __init__(self, pattern: str, only: Collection[int] | None) -> None:
        self._pattern = re.compile(pattern)
        self._only = only
        self._released = threading.Event()

    def matches(self, watch: int, target: str) -> bool:
        return (
            not self._released.is_set()
            and (self._only is None or watch in self._only)
            and self._pattern.search(target) is not None
        )

    def release(self) -> None:
        """Lets everything through again."""
        self._released.set()


class _Lose(Rule):
    def __init__(
        self,
        method: str,
        pattern: str,
        times: int | None,
        where: Where,
        chance: Callable[[], bool] | None,
    ) -> None:
        super().__init__(method, pattern, times, chance)
        self.where = where


class _Refuse(Rule):
    def __init__(
        self,
        method: str,
        pattern: str,
        times: int | None,
        answer: tuple[int, dict[str, str], str],
        chance: Callable[[], bool] | None,
    ) -> None:
        super().__init__(method, pattern, times, chance)
        self.status, self.headers, self.body = answer


class _Delay(Rule):
    def __init__(self, method: str, pattern: str, times: int | None, seconds: float) -> None:
        super().__init__(method, pattern, times)
        self.seconds = seconds


class _CutError(Exception):
    """The client's connection is to be cut."""


@dataclass
class _Exchange:
    """One request on its way."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes | None
    rule: Rule | None

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def is_watch(self) -> bool:
        query = self.target.partition("?")[2].split("&")
        return self.method == "GET" and ("watch=1" in query or "watch=true" in query)


@dataclass
class _Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class FaultProxy:
    """The proxy.

    Attributes:
        url: Where it listens: plain HTTP on loopback.
    """

    def __init__(self, upstream: str, ca_file: Path | str | None = None, *, seed: int = 0) -> None:
        """Prepares a proxy.

        Args:
            upstream: URL of the API server.
            ca_file: CA that the server's certificate is checked with; None trusts the system's.
            seed: Of the rules that act by chance.
        """
        self.url = ""
        self._random = random.Random(seed)
        self._page_size: int | None = None
        self._upstream = upstream.rstrip("/")
        self._tls = ssl.create_default_context(cafile=ca_file) if "https" in upstream else None
        self._thread = LoopThread("fault-proxy")
        self._stack = AsyncExitStack()
        self._session: aiohttp.ClientSession | None = None
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self._stalls: list[Stall] = []
        self._seen: list[Seen] = []
        self._watches: dict[int, tuple[web.BaseRequest, str]] = {}
        self._sending: set[asyncio.Task[_Answer]] = set()
        self._folder = tempfile.TemporaryDirectory(prefix="fault-proxy-")
        self._configs = itertools.count()

    def __enter__(self) -> Self:
        self._thread.call(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self.reset()
        self._thread.call(self._stop())
        self._thread.stop()
        self._folder.cleanup()

    def kubeconfig(self, token: str) -> Path:
        """Writes a kubeconfig that goes through the proxy, for the user of a token."""
        path = Path(self._folder.name, f"{next(self._configs)}.kubeconfig")
        path.touch(mode=0o600)
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "proxy", "cluster": {"server": self.url}}],
                    "users": [{"name": "user", "user": {"token": token}}],
                    "contexts": [
                        {"name": "proxy", "context": {"cluster": "proxy", "user": "user"}}
                    ],
                    "current-context": "proxy",
                }
            )
        )
        return path

    # Rules.

    def hold(
        self,
        method: str,
        pattern: str,
        *,
        times: int | None = 1,
        where: Where = "request",
        body: str = "",
        hang_up: bool = False,
    ) -> Hold:
        """Keeps requests back until released.

        A held write is sent on when it is released even if its client has gone since: that is
        what a request in flight does.

        Args:
            method: The HTTP method, or `*`.
            pattern: What the path with its query must match.
            times: How many requests are held; None means all until the release.
            where: `request` holds before the API server hears of it, `response` after it acted.
            body: What the request's body must contain.
            hang_up: Whether the client's connection is cut as soon as its write is held.
        """
        return self._add(Hold(method, pattern, times, where, body, hang_up=hang_up))

    def lose_response(
        self, method: str, pattern: str, times: int | None = 1, *, chance: float = 1.0
    ) -> Rule:
        """Sends requests on, then cuts the client's connection instead of answering.

        With a chance below 1 it acts on that share of them, drawn by the proxy's seed.
        """
        return self._add(_Lose(method, pattern, times, "response", self._draw(chance)))

    def lose_request(
        self, method: str, pattern: str, times: int | None = 1, *, chance: float = 1.0
    ) -> Rule:
        """Cuts the client's connection and sends nothing on; `chance` as above."""
        return self._add(_Lose(method, pattern, times, "request", self._draw(chance)))

    def refuse(
        self,
        method: str,
        pattern: str,
        status: int,
        times: int | None = 1,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | str | None = None,
        *,
        chance: float = 1.0,
    ) -> Rule:
        """Answers with an error, by default a Status object, and sends nothing on.

        `chance` as above.
        """
        content = body if body is not None else _status_object(status)
        text = content if isinstance(content, str) else json.dumps(content)
        all_headers = {"Content-Type": "application/json", **(headers or {})}
        answer = (status, all_headers, text)
        return self._add(_Refuse(method, pattern, times, answer, self._draw(chance)))

    def expire_watches(self, pattern: str = "", times: int | None = 1) -> Rule:
        """Tells new watches that their version is too old, as an API server does: by an event."""
        event = {"type": "ERROR", "object": _status_object(410)}
        return self.refuse("GET", rf"(?=.*watch=).*{pattern}", 200, times, body=event)

    def delay(self, method: str, pattern: str, seconds: float, *, times: int | None = None) -> Rule:
        """Makes requests slow: each is sent on only after so many seconds."""
        return self._add(_Delay(method, pattern, times, seconds))

    def page_lists(self, size: int | None) -> None:
        """Makes the pages of lists no longer than this, whatever the client asks for."""
        self._page_size = size

    def _draw(self, chance: float) -> Callable[[], bool] | None:
        return None if chance >= 1.0 else lambda: self._random.random() < chance

    def stall_watches(self, pattern: str = "", *, future: bool = True) -> Stall:
        """Keeps watches open but lets nothing through: present ones, and future ones if wanted."""
        stall = Stall(pattern, None if future else set(self._watches))
        with self._lock:
            self._stalls.append(stall)
        return stall

    def cut_watches(self, pattern: str = "") -> int:
        """Cuts the connections of the present watches that match and returns how many."""
        return self._thread.call(self._cut_watches(re.compile(pattern)))

    def open_watches(self, pattern: str = "") -> int:
        """How many watches that match are open now."""
        return sum(
            re.search(pattern, target) is not None for _, target in list(self._watches.values())
        )

    def reset(self) -> None:
        """Ends every rule and lets go everything that is held."""
        with self._lock:
            rules, self._rules = self._rules, []
            stalls, self._stalls = self._stalls, []
        for rule in rules:
            if isinstance(rule, Hold):
                rule.release()
            rule.cancel()
        for stall in stalls:
            stall.release()
        self._page_size = None

    # What came by.

    def requests(self, method: str = "*", pattern: str = "") -> list[Seen]:
        """The requests that were answered or cut since the last `clear`, oldest first.

        A watch counts when it begins.
        """
        with self._lock:
            seen = list(self._seen)
        expression = re.compile(pattern)
        return [
            s
            for s in seen
            if method in {"*", s.method} and expression.search(f"{s.path}?{s.query}".rstrip("?"))
        ]

    def writes(self, pattern: str = "") -> list[Seen]:
        """The requests among these that write, dry runs and leases included."""
        return [s for s in self.requests("*", pattern) if s.method not in {"GET", "HEAD"}]

    def clear(self) -> None:
        """Forgets what came by."""
        with self._lock:
            self._seen.clear()

    # The proxy itself.

    async def _start(self) -> None:
        connector = aiohttp.TCPConnector(limit=0, ssl=self._tls or True)
        self._session = await self._stack.enter_async_context(
            aiohttp.ClientSession(connector=connector, auto_decompress=False)
        )
        runner = web.ServerRunner(
            web.Server(self._handle, handler_cancellation=True), shutdown_timeout=0.5
        )
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def _stop(self) -> None:
        await self._cut_watches(re.compile(""))
        await self._stack.aclose()

    async def _cut_watches(self, pattern: re.Pattern[str]) -> int:
        cut = [request for request, target in self._watches.values() if pattern.search(target)]
        for request in cut:
            self._watches.pop(id(request), None)
            _abort(request)
        return len(cut)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        method, target = request.method, self._paged(request.path_qs)
        body = await request.read() if request.can_read_body else None
        exchange = _Exchange(
            method,
            target,
            {k: v for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP},
            body,
            self._match(method, target, body or b""),
        )
        try:
            if isinstance(exchange.rule, _Refuse):
                rule = exchange.rule
                self._note(exchange, rule.status)
                rule.act()
                return web.Response(status=rule.status, headers=rule.headers, text=rule.body)
            if method == "GET":
                return await self._stream(request, exchange)
            return await self._write(exchange)
        except (_CutError, aiohttp.ClientError, TimeoutError):
            # A server that cannot be reached looks like one: no answer, a dead connection.
            _abort(request)
            return web.Response()

    def _paged(self, target: str) -> str:
        if self._page_size is None:
            return target
        return re.sub(r"(?<=[?&]limit=)\d+", str(self._page_size), target)

    async def _write(self, exchange: _Exchange) -> web.Response:
        # A task of its own, which goes on when the client hangs up.
        task = asyncio.create_task(self._send(exchange))
        self._sending.add(task)
        task.add_done_callback(self._sent)
        if isinstance(exchange.rule, Hold) and exchange.rule.hang_up:
            raise _CutError
        answer = await asyncio.shield(task)
        if isinstance(exchange.rule, _Lose):
            raise _CutError
        return web.Response(status=answer.status, headers=answer.headers, body=answer.body)

    def _sent(self, task: asyncio.Task[_Answer]) -> None:
        self._sending.discard(task)
        if not task.cancelled():
            task.exception()  # Looked at, so that asyncio does not complain if nobody else does.

    async def _send(self, exchange: _Exchange) -> _Answer:
        await self._before(exchange)
        async with self._upstream_request(exchange) as response:
            body = await response.read()
            answer = _Answer(response.status, _passed_on(response), body)
        answer.headers.pop("Content-Length", None)
        self._note(exchange, answer.status)
        await self._after(exchange)
        return answer

    async def _stream(self, request: web.BaseRequest, exchange: _Exchange) -> web.StreamResponse:
        await self._before(exchange)
        if exchange.is_watch:
            self._watches[id(request)] = (request, exchange.target)
        try:
            async with self._upstream_request(exchange) as response:
                self._note(exchange, response.status)
                await self._after(exchange)
                if isinstance(exchange.rule, _Lose):
                    raise _CutError
                answer = web.StreamResponse(status=response.status, headers=_passed_on(response))
                await self._unstalled(request, exchange)
                await answer.prepare(request)
                async for chunk in response.content.iter_any():
                    await self._unstalled(request, exchange)
                    await answer.write(chunk)
                await answer.write_eof()
                return answer
        finally:
            self._watches.pop(id(request), None)

    def _upstream_request(self, exchange: _Exchange) -> aiohttp.client._RequestContextManager:
        if self._session is None:
            raise RuntimeError("the proxy is used outside of its `with`")
        seconds = None if exchange.is_watch else _REQUEST_SECONDS
        return self._session.request(
            exchange.method,
            URL(self._upstream + exchange.target, encoded=True),
            headers=exchange.headers,
            data=exchange.body,
            timeout=aiohttp.ClientTimeout(total=seconds),
        )

    async def _before(self, exchange: _Exchange) -> None:
        rule = exchange.rule
        if isinstance(rule, _Delay):
            rule.act()
            await asyncio.sleep(rule.seconds)
        if isinstance(rule, _Lose) and rule.where == "request":
            self._note(exchange, 0)
            rule.act()
            raise _CutError
        if isinstance(rule, Hold) and rule.where == "request":
            rule.act()
            await rule.pause()

    async def _after(self, exchange: _Exchange) -> None:
        rule = exchange.rule
        if isinstance(rule, _Lose):
            rule.act()
        if isinstance(rule, Hold) and rule.where == "response":
            rule.act()
            await rule.pause()

    async def _unstalled(self, request: web.BaseRequest, exchange: _Exchange) -> None:
        watch, target = id(request), exchange.target
        while exchange.is_watch and self._is_stalled(watch, target):  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    def _is_stalled(self, watch: int, target: str) -> bool:
        with self._lock:
            return any(stall.matches(watch, target) for stall in self._stalls)

    def _match(self, method: str, target: str, body: bytes) -> Rule | None:
        with self._lock:
            for rule in self._rules:
                if rule.concerns(body) and rule.matches(method, target):
                    rule.take()
                    return rule
        return None

    def _note(self, exchange: _Exchange, status: int) -> None:
        path, _, query = exchange.target.partition("?")
        with self._lock:
            delivered = not isinstance(exchange.rule, _Lose)
            self._seen.append(Seen(exchange.method, path, query, status, delivered))

    def _add(self, rule: R) -> R:
        with self._lock:
            self._rules.append(rule)
        return rule


def _abort(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()


def _passed_on(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {k: v for k, v in response.headers.items() if k.lower() not in _HOP_BY_HOP}


def _status_object(status: int) -> dict[str, Any]:
    reasons = {
        403: "Forbidden",
        404: "NotFound",
        409: "Conflict",
        410: "Expired",
        422: "Invalid",
        429: "TooManyRequests",
        500: "InternalError",
        503: "ServiceUnavailable",
        504: "Timeout",
    }
    return {
        "apiVersion": "v1",
        "kind": "Status",
        "metadata": {},
        "status": "Failure",
        "message": f"refused by the test with {status}",
        "reason": reasons.get(status, "Unknown"),
        "code": status,
    }
