"""What lies between the operator and the API server, and everything that can go wrong there."""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from sandboxpool.kube.client import WATCH_SILENCE_SECONDS, ApiClient
from sandboxpool.kube.errors import ApiError, KubeError, UnknownOutcomeError
from support.simulation.apiserver import ApiServer, Object, Place, Request, encode

TIMEOUT_SECONDS = 30.0
BOOKMARK_SECONDS = 60.0


class Fate(Enum):
    """What becomes of a request."""

    FINE = "fine"
    # It never arrives, and its sender learns nothing.
    LOST = "lost"
    # It is carried out, and its sender learns nothing.
    UNHEARD = "unheard"
    # Its sender gives up, and then it arrives after all.
    LATE = "late"
    # Somebody else has changed the object a moment before.
    RIVAL = "rival"
    THROTTLED = "throttled"
    BROKEN = "broken"
    # The server says that it failed, and has carried it out.
    HALF_BROKEN = "half broken"
    UNAVAILABLE = "unavailable"
    # The operator's process dies: before it is sent, after it was carried out, or while it is on
    # its way, so that it arrives when the next process is at work.
    CRASH_BEFORE = "crash before"
    CRASH_AFTER = "crash after"
    CRASH_MEANWHILE = "crash meanwhile"


ROUGH = (
    Fate.LOST,
    Fate.UNHEARD,
    Fate.LATE,
    Fate.RIVAL,
    Fate.THROTTLED,
    Fate.BROKEN,
    Fate.HALF_BROKEN,
    Fate.UNAVAILABLE,
)

ANSWERS = {
    Fate.THROTTLED: (429, "TooManyRequests", 1.0),
    Fate.BROKEN: (500, "InternalError", None),
    Fate.HALF_BROKEN: (504, "Timeout", None),
    Fate.UNAVAILABLE: (503, "ServiceUnavailable", 1.0),
}


@dataclass
class Weather:
    """How bad it is.

    Attributes:
        rough: the part of all requests that meet some other fate than a good one.
        slow: the longest way in seconds, each way; also for what watches tell.
        next: what becomes of the next requests of a kind, before chance has its say.
    """

    random: random.Random
    rough: float = 0.0
    slow: float = 0.05
    next: dict[str, list[Fate]] = field(default_factory=dict)

    def fate(self, request: Request) -> Fate:
        """Decide about one request."""
        chosen = self.next.get(kind_of(request))
        if chosen:
            return chosen.pop(0)
        if self.random.random() >= self.rough:
            return Fate.FINE
        return self.random.choice(ROUGH)

    def way(self) -> float:
        """How long one message takes."""
        return self.random.uniform(0.001, self.slow)


def kind_of(request: Request) -> str:
    """A word for what a request is for."""
    place = Place.of(request.path)
    if "dryRun" in request.params:
        return "check"
    if request.method == "PATCH" and place.resource == "pods":
        return "bind"
    if request.method == "PATCH" and place.resource == "sandboxclaims":
        return "tell"
    verb = {"GET": "read", "POST": "create", "DELETE": "delete", "PATCH": "patch"}[request.method]
    return f"{verb} {place.resource}"


class Stream:
    """One watch on its way to the client: lines in their order, each with its delay."""

    def __init__(self, resource: str, way: Callable[[], float]) -> None:
        self.resource = resource
        self.stalled = False
        self._way = way
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[bytes | KubeError | None] = asyncio.Queue()
        self._under_way: deque[bytes | KubeError | None] = deque()
        self._last = 0.0

    def tell(self, line: bytes | KubeError | None) -> None:
        """Send a line, an error, or the end, behind all that was sent before."""
        if not self.stalled:
            self._last = max(self._last, self._loop.time() + self._way())
            self._under_way.append(line)
            self._loop.call_at(self._last, self._arrive)

    def _arrive(self) -> None:
        # Timers of one moment ring in any order; lines come in theirs.
        self._lines.put_nowait(self._under_way.popleft())

    def cut(self) -> None:
        """The connection breaks: what is on its way does not arrive."""
        self.stalled = True
        self._lines.put_nowait(UnknownOutcomeError("watch: connection reset"))

    async def lines(self) -> AsyncIterator[bytes]:
        """What arrives, until it ends.

        Raises:
            UnknownOutcomeError: the connection broke, or nothing came for too long.
        """
        while True:
            try:
                async with asyncio.timeout(WATCH_SILENCE_SECONDS):
                    line = await self._lines.get()
            except TimeoutError as error:
                raise UnknownOutcomeError("watch: silence") from error
            if line is None:
                return
            if isinstance(line, KubeError):
                raise line
            yield line


class Network:
    """Carries requests and watches.

    Args:
        on_crash: ends the process that has sent something.
    """

    def __init__(
        self,
        server: ApiServer,
        weather: Weather,
        on_crash: Callable[[SimulatedClient], None],
    ) -> None:
        self.server = server
        self.weather = weather
        self.streams: list[Stream] = []
        self.writes: list[tuple[float, Request]] = []
        self._on_crash = on_crash
        self._under_way: set[asyncio.Task[None]] = set()

    def send(self, sender: SimulatedClient, request: Request) -> asyncio.Future[bytes]:
        """Send a request; what becomes of it does not depend on whether its sender lives on."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()
        # Nobody may be there to hear of a failure.
        answer.add_done_callback(lambda f: f.cancelled() or f.exception())
        if request.write and request.resource != "leases":
            self.writes.append((loop.time(), request))
        task = loop.create_task(self._carry(sender, request, answer))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return answer

    async def _carry(
        self, sender: SimulatedClient, request: Request, answer: asyncio.Future[bytes]
    ) -> None:
        weather, fate = self.weather, self.weather.fate(request)
        if fate is Fate.CRASH_BEFORE:
            self._on_crash(sender)
            return
        if fate is Fate.CRASH_MEANWHILE:
            self._on_crash(sender)
            await asyncio.sleep(weather.random.uniform(0.5, 60.0))
        await asyncio.sleep(weather.way())
        if fate in (Fate.LOST, Fate.LATE):
            await asyncio.sleep(weather.random.choice((0.0, TIMEOUT_SECONDS)))
            _fail(answer, UnknownOutcomeError(f"{request.method} {request.path}: lost"))
            if fate is Fate.LOST:
                return
            await asyncio.sleep(weather.random.uniform(0.0, 20.0))
        if fate in ANSWERS and fate is not Fate.HALF_BROKEN:
            status, reason, after = ANSWERS[fate]
            _fail(answer, ApiError(status, reason, "so it is", after))
            return
        if fate is Fate.RIVAL:
            self._rival(request)
        result: bytes | ApiError
        try:
            result = self.server.handle(request, late=sender.dead or answer.done())
        except ApiError as error:
            result = error
        if fate is Fate.CRASH_AFTER:
            self._on_crash(sender)
            return
        await asyncio.sleep(weather.way())
        if fate is Fate.UNHEARD:
            await asyncio.sleep(weather.random.choice((0.0, TIMEOUT_SECONDS)))
            _fail(answer, UnknownOutcomeError(f"{request.method} {request.path}: unheard"))
        elif fate is Fate.HALF_BROKEN:
            _fail(answer, ApiError(504, "Timeout", "the server was unable to return a response"))
        elif isinstance(result, ApiError):
            _fail(answer, result)
        elif not answer.done():
            answer.set_result(result)

    def _rival(self, request: Request) -> None:
        place = Place.of(request.path)
        found = self.server.find(place.resource, place.name, place.namespace)
        if found is not None:
            noted = {"annotations": {"rival": str(self.server.version)}}
            self.server.update(
                place.resource, found, "rival", metadata=_noted(found["metadata"], noted)
            )

    def open(self, path: str, params: Mapping[str, str]) -> tuple[Stream, Callable[[], None]]:
        """Open a watch; return the stream and what closes it.

        Raises:
            ApiError: the server refuses it.
        """
        loop = asyncio.get_running_loop()
        stream = Stream(Place.of(path).resource, self.weather.way)
        end = self.server.watch(path, params, stream.tell)
        self.streams.append(stream)

        def bookmark() -> None:
            metadata = {"resourceVersion": str(self.server.version)}
            stream.tell(encode({"type": "BOOKMARK", "object": {"metadata": metadata}}))
            timers.append(loop.call_later(BOOKMARK_SECONDS, bookmark))

        def close() -> None:
            end()
            self.streams.remove(stream)
            for timer in timers:
                timer.cancel()

        seconds = float(params.get("timeoutSeconds", "300"))
        timers = [loop.call_later(seconds, stream.tell, None)]
        if params.get("allowWatchBookmarks"):
            bookmark()
        return stream, close

    async def finish(self) -> None:
        """Cancel whatever is still under way; for the end of a test."""
        tasks = list(self._under_way)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class SimulatedClient(ApiClient):
    """The operator's own client, with the simulated network in the place of the wire."""

    def __init__(self, network: Network) -> None:
        self.dead = False
        self.permit: Callable[[], None] = lambda: None
        self.on_date: Callable[[float], None] = lambda date: None
        self._network = network

    async def __aenter__(self) -> SimulatedClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def _send(
        self,
        method: str,
        path: str,
        data: bytes | None,
        params: Mapping[str, str] | None,
        content_type: str,
    ) -> bytes:
        if self.dead:
            # A process that was killed sends nothing any more, whatever its code says.
            raise asyncio.CancelledError
        request = Request(
            method,
            path,
            None if data is None else msgspec.json.decode(data),
            params or {},
            content_type,
        )
        if method != "GET" and request.resource != "leases":
            self.permit()
        answer = await self._network.send(self, request)
        # The server has answered no longer ago than the longest way takes.
        self.on_date(math.floor(self._network.server.wall() - self._network.weather.slow))
        return answer

    @asynccontextmanager
    async def watch(
        self, path: str, params: Mapping[str, str]
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        await asyncio.sleep(self._network.weather.way())
        stream, close = self._network.open(path, params)
        try:
            yield stream.lines()
        finally:
            close()


def _fail(answer: asyncio.Future[bytes], error: KubeError) -> None:
    if not answer.done():
        answer.set_exception(error)


def _noted(metadata: Object, change: Object) -> Object:
    annotations = {**(metadata.get("annotations") or {}), **change["annotations"]}
    return {**metadata, "annotations": annotations}
