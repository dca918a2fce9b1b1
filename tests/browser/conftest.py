"""Fixtures of the tests in Debian's Chromium: the page of a cluster in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Literal

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

from browser import chromium
from support.clusterserver import ClusterServer
from support.dashboard import serving
from support.fleetobjects import operator

WIDE = 1600


# Not of the session: playwright's event loop would run while asynchronous tests want theirs.
@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    """Chromium, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium.find(),
            # As root it has no sandbox of its own; it only sees pages of these tests.
            args=["--no-sandbox", "--font-render-hinting=none"],
        )
        yield browser
        browser.close()


@pytest.fixture
def cluster() -> Iterator[ClusterServer]:
    server = ClusterServer()
    server.put(*operator())
    server.start()
    yield server
    server.stop()


@pytest.fixture
def url(cluster: ClusterServer) -> Iterator[str]:
    """The page of the cluster."""
    with serving(cluster) as served:
        yield served.url


class Visits:
    """Opens pages, and notes what goes wrong in them.

    Attributes:
        faults: Errors of scripts, and requests to anywhere but the server.
    """

    def __init__(self, chrome: Browser, url: str) -> None:
        self.faults: list[str] = []
        self._chrome = chrome
        self._url = url
        self._contexts = ExitStack()

    def __call__(
        self,
        path: str = "",
        *,
        width: int = WIDE,
        scheme: Literal["light", "dark"] = "light",
        at: str | None = None,
    ) -> Page:
        context = self._chrome.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            timezone_id="UTC",
            locale="en-GB",
        )
        self._contexts.enter_context(context)
        page = context.new_page()
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", self._said)
        page.on("request", self._asked)
        if at is not None:
            page.clock.set_fixed_time(at)
        page.goto(self._url + path)
        return page

    def close(self) -> None:
        self._contexts.close()

    def _said(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.faults.append(message.text)

    def _asked(self, request: Request) -> None:
        if not request.url.startswith((self._url, "data:")):
            self.faults.append(request.url)


@pytest.fixture
def visit(chrome: Browser, url: str) -> Iterator[Callable[..., Page]]:
    """Opens the page; at the end, nothing may have gone wrong in it or been asked from outside."""
    visits = Visits(chrome, url)
    yield visits
    visits.close()
    assert not [one for one in visits.faults if "ERR_CONNECTION_REFUSED" not in one]
