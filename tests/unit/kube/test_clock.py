"""The API server's time, read from answers that are late and cut to whole seconds."""

import math
import random

import kopf
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from sandboxpool.kube.client import ApiClient
from sandboxpool.kube.clock import WINDOW_SECONDS, ServerClock

START = 1_700_000_000.0


class Clocks:
    """True time, a monotonic clock, a local clock, and an API server's."""

    def __init__(self, local: float = 0.0) -> None:
        self.now = 1000.0
        self.local = local
        self.server = 0.0
        self.random = random.Random(1)
        self.clock = ServerClock(lambda: START + self.now + self.local, lambda: self.now)

    @property
    def true(self) -> float:
        return START + self.now + self.server

    @property
    def error(self) -> float:
        """How many seconds the clock is ahead of the API server's."""
        return self.clock() - self.true

    def answer(self, late: float = 0.01, server: float | None = None) -> None:
        ahead = self.server if server is None else server
        date = math.floor(START + self.now + ahead)
        self.now += late
        self.clock.observe(date)

    def answers(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.answer(self.random.choice((0.005, 0.02, 0.3, 5.0)))
            self.now += self.random.uniform(0.1, 2.0)


def test_before_the_first_answer_it_is_the_local_clock() -> None:
    clocks = Clocks(local=7.0)
    assert clocks.error == 7.0
    clocks.answer()
    assert -1.1 < clocks.error <= 0.0


@pytest.mark.parametrize("local", [0.0, 86_400.0, -86_400.0])
def test_it_is_behind_by_a_second_at_most_and_never_ahead(local: float) -> None:
    clocks = Clocks(local)
    clocks.answers(10.0)
    for _ in range(1000):
        clocks.answers(1.0)
        assert -1.1 < clocks.error <= 1e-6
        clocks.now += 1.0


def test_a_jump_of_the_local_clock_changes_nothing() -> None:
    clocks = Clocks()
    clocks.answers(60.0)
    before = clocks.error
    clocks.local = 86_400.0
    assert clocks.error == before
    clocks.answers(60.0)
    assert -1.1 < clocks.error <= 1e-6


def test_it_goes_on_when_nothing_is_heard_for_long() -> None:
    clocks = Clocks()
    clocks.answers(60.0)
    clocks.now += 86_400.0
    assert -1.1 < clocks.error <= 1e-6
    clocks.answer(late=20.0)
    assert -21.1 < clocks.error <= 1e-6


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_a_jump_of_the_servers_clock_is_followed_after_the_window(jump: float) -> None:
    clocks = Clocks()
    clocks.answers(60.0)
    clocks.server = jump
    clocks.answers(0.8 * WINDOW_SECONDS)
    assert clocks.error == pytest.approx(-jump, abs=2.0)
    clocks.answers(0.4 * WINDOW_SECONDS)
    assert -1.1 < clocks.error <= 1e-6


def test_one_of_several_servers_whose_clock_is_ahead_is_not_followed() -> None:
    clocks = Clocks()
    clocks.answers(60.0)
    for _ in range(500):
        clocks.answer(server=7200.0)
        clocks.answer()
        clocks.now += 1.0
        assert -1.1 < clocks.error <= 1e-6


def test_a_first_answer_that_was_late_is_corrected_by_the_next() -> None:
    clocks = Clocks()
    clocks.answer(late=29.0)
    assert clocks.error < -28.0
    clocks.answer()
    assert -1.1 < clocks.error <= 1e-6


def test_what_it_remembers_is_bounded() -> None:
    clocks = Clocks()
    for _ in range(10_000):
        clocks.answer(late=clocks.random.uniform(0.0, 0.01))
    assert len(clocks.clock._seen) < 1000


async def test_the_client_tells_of_the_date_of_every_kind_of_answer() -> None:
    dates = iter(["Tue, 14 Nov 2023 22:13:20 GMT", "nonsense", "", "Tue, 14 Nov 2023 22:13:25 GMT"])

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=b"{}\n", headers={"Date": next(dates)})

    told: list[float] = []
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        info = kopf.ConnectionInfo(server=str(server.make_url("")))
        async with ApiClient(info, user_agent="test", on_date=told.append) as client:
            await client.get("/things")
            await client.create("/things", {})
            await client.get("/things")
            async with client.watch("/things", {}) as lines:
                assert [line async for line in lines] == [b"{}"]
    assert told == [START, START + 5.0]
