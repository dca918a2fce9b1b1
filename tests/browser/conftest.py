"""Fixtures of the tests in a real browser: Debian's Chromium, and the page of a cluster in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from browser import chromium
from support.clusterserver import ClusterServer
from support.dashboard import serving

NARROW, WIDE = 400, 1600
SCHEMES = ("light", "dark")


@pytest.fixture(scope="session")
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
    server.start()
    yield server
    server.stop()


@pytest.fixture
def url(cluster: ClusterServer) -> Iterator[str]:
    """The page of the cluster."""
    with serving(cluster) as served:
        yield served.url


@pytest.fixture
def visit(chrome: Browser, url: str) -> Iterator[Callable[..., Page]]:
    """Opens the page; at the end, nothing may have gone wrong in it or been asked from outside."""
    with ExitStack() as contexts:
        faults: list[str] = []

        def opened(path: str = "", *, width: int = WIDE, scheme: str = "light") -> Page:
            context = contexts.enter_context(
                chrome.new_context(
                    viewport={"width": width, "height": 900},
                    color_scheme=scheme,
                    reduced_motion="reduce",
                    timezone_id="UTC",
                    locale="en-GB",
                )
            )
            page = context.new_page()
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("console", lambda said: said.type == "error" and faults.append(said.text))
            page.on(
                "request",
                lambda asked: asked.url.startswith((url, "data:")) or faults.append(asked.url),
            )
            page.goto(url + path)
            return page

        yield opened
        assert not faults
