"""What lies between the operator and the API server, and everything that can go wrong there."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import msgspec

from sandboxpool.kube.client import ApiClient
from sandboxpool.kube.errors import ApiError, KubeError, UnknownOutcomeError
from support.simulation.apiserver import ApiServer, Object, Place, Request
from support.simulation.sight import Listing, WatchFaults
from support.simulation.stream import Stream
from support.simulation.weather import ANSWERS, NetworkFaults
from support.simulation.weather import Fate as Fate

TIMEOUT_SECONDS = 30.0
# The server says from time to time how far a watch has come, and a moment before its end; never at
# its beginning. Where it has no watch cache it never does.
BOOKMARK_SECONDS = 60.0
LAST_BOOKMARK_SECONDS = 2.0
WITHOUT_BOOKMARKS = frozenset({"events"})
# A network in which a message takes longer is not well.
WELL_SECONDS = 0.3


class Network:
    """Carries requests and watches.

    Args:
        on_crash: ends the process that has sent something.
    """

    def __init__(
        self,
        server: ApiServer,
        weather: NetworkFaults,
        on_crash: Callable[[SimulatedClient], None],
    ) -> None:
        self.server = server
        self.weather = weather
        self.streams: list[Stream] = []
        self.writes: list[tuple[float, Request]] = []
        # What everybody sees; `sight_of` is what one client sees beside.
        self.sight = WatchFaults()
        self.troubled_at = float("-inf")
        # Messages under way of which something is known already to go wrong.
        self._amiss = 0
        self._sights: dict[SimulatedClient, WatchFaults] = {}
        self._on_crash = on_crash
        self._under_way: set[asyncio.Task[None]] = set()

    def sight_of(self, client: SimulatedClient) -> WatchFaults:
        """What is wrong with what this client sees, and no other."""
        return self._sights.setdefault(client, WatchFaults())

    def see_again(self) -> None:
        """Everybody sees everything again, and is told of what happened meanwhile."""
        for sight in (self.sight, *self._sights.values()):
            sight.recover()
        for stream in self.streams:
            stream.catch_up()

    def trouble(self) -> None:
        """Something has gone wrong with a message or a watch."""
        self.troubled_at = asyncio.get_running_loop().time()

    def seconds_well(self, now: float) -> float:
        """For how long nothing has been wrong with messages and watches."""
        weather = self.weather
        amiss = (
            weather.rough > 0.0
            or weather.slow > WELL_SECONDS
            or self._amiss > 0
            or any(set(fates) - {Fate.FINE, Fate.RIVAL} for fates in weather.next.values())
            or not all(sight.good for sight in (self.sight, *self._sights.values()))
            or any(s.stalled or s.seconds_behind > WELL_SECONDS for s in self.streams)
        )
        if amiss:
            self.troubled_at = now
        return now - self.troubled_at

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
        fate = self.weather.fate(request)
        amiss = fate not in (Fate.FINE, Fate.RIVAL)
        self._amiss += amiss
        try:
            await self._carry_to(sender, request, answer, fate)
        finally:
            self._amiss -= amiss
            if amiss:
                self.trouble()

    async def _carry_to(
        self,
        sender: SimulatedClient,
        request: Request,
        answer: asyncio.Future[bytes],
        fate: Fate,
    ) -> None:
        weather = self.weather
        if fate is Fate.CRASH_BEFORE:
            self._on_crash(sender)
            return
        if fate is Fate.CRASH_MEANWHILE:
            self._on_crash(sender)
            await asyncio.sleep(weather.random.uniform(0.5, 60.0))
        await asyncio.sleep(weather.way())
        if await self._is_unlisted(sender, request, answer):
            return
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
        if seconds := self.server.judging_seconds(request):
            await asyncio.sleep(seconds)
        result: bytes | ApiError
        try:
            result = self.server.handle(request, by=sender.name, late=sender.dead or answer.done())
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

    async def _is_unlisted(
        self, sender: SimulatedClient, request: Request, answer: asyncio.Future[bytes]
    ) -> bool:
        """Whether it is a list that cannot be had now; if so it is answered, or given up."""
        place = Place.of(request.path)
        if request.method != "GET" or place.name:
            return False
        sights = (self.sight, self.sight_of(sender))
        how = {sight.listing.get(place.resource) for sight in sights}
        if Listing.LOST in how:
            await asyncio.sleep(TIMEOUT_SECONDS)
            _fail(answer, UnknownOutcomeError(f"GET {request.path}: lost"))
        elif Listing.REFUSED in how:
            text = "the server was unable to return a response in the time allotted"
            _fail(answer, ApiError(504, "Timeout", text))
        else:
            return False
        return True

    def _rival(self, request: Request) -> None:
        place = Place.of(request.path)
        found = self.server.find(place.resource, place.name, place.namespace)
        if found is not None:
            noted = {"annotations": {"rival": str(self.server.version)}}
            self.server.update(
                place.resource, found, "rival", metadata=_noted(found["metadata"], noted)
            )

    def open(
        self, client: SimulatedClient, path: str, params: Mapping[str, str]
    ) -> tuple[Stream, Callable[[], None]]:
        """Open a watch; return the stream and what closes it.

        Raises:
            ApiError: the server refuses it.
        """
        loop = asyncio.get_running_loop()
        resource = Place.of(path).resource
        sights = (self.sight, self.sight_of(client))
        stream = Stream(
            resource, params["resourceVersion"], lambda: self._way(resource, sights), sights
        )
        end = self.server.watch(path, params, stream.tell)
        self.streams.append(stream)
        ends_at = loop.time() + float(params.get("timeoutSeconds", "300"))
        timers = [loop.call_at(ends_at, stream.end)]

        def bookmark() -> None:
            stream.bookmark(self.server.version)
            remind()

        def remind() -> None:
            last, now = ends_at - LAST_BOOKMARK_SECONDS, loop.time()
            then = now + BOOKMARK_SECONDS
            timers.append(loop.call_at(last if now < last < then else then, bookmark))

        def close() -> None:
            end()
            self.streams.remove(stream)
            for timer in timers:
                timer.cancel()

        if params.get("allowWatchBookmarks") and resource not in WITHOUT_BOOKMARKS:
            remind()
        return stream, close

    def _way(self, resource: str, sights: tuple[WatchFaults, ...]) -> float:
        seconds = self.weather.way()
        for sight in sights:
            if resource in sight.delay:
                seconds += self.weather.random.uniform(*sight.delay[resource])
        return seconds

    async def finish(self) -> None:
        """Cancel whatever is still under way; for the end of a test."""
        tasks = list(self._under_way)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class SimulatedClient(ApiClient):
    """The operator's own client, with the simulated network in the place of the wire.

    Args:
        network: carries its requests.
        name: what the process is, such as the operator.
    """

    def __init__(self, network: Network, name: str = "operator") -> None:
        self.name = name
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
        stream, close = self._network.open(self, path, params)
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
