"""A cluster over HTTP, and what follows it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from sandboxpool.cli.dashboard import watch
from sandboxpool.cli.dashboard.watch import Watcher
from sandboxpool.client.api import Api
from sandboxpool.client.nonblocking import AsyncIo
from support.clusterserver import ClusterServer
from support.scriptedcluster import settings


@pytest.fixture
def cluster() -> Iterator[ClusterServer]:
    server = ClusterServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures are retried soon."""
    for name in (
        "_FIRST_RETRY_SECONDS",
        "_LONGEST_RETRY_SECONDS",
        "_DENIED_SECONDS",
        "_POLL_SECONDS",
    ):
        monkeypatch.setattr(watch, name, 0.1)


@pytest.fixture
async def watcher(cluster: ClusterServer, quick: None) -> AsyncIterator[Watcher]:
    api = Api(AsyncIo(), settings(host=cluster.url))
    made = Watcher(api, "team")
    running = asyncio.create_task(made.run())
    yield made
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
