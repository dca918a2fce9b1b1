"""Runs the page's server until the command ends."""

import socket
from dataclasses import dataclass

import uvicorn

from sandboxpool.cli.dashboard.lookups import Lookups
from sandboxpool.cli.dashboard.pages import Pages
from sandboxpool.cli.dashboard.server import Site, new_token
from sandboxpool.cli.dashboard.watch import Watcher
from sandboxpool.client.api import Api
from sandboxpool.client.config import Settings
from sandboxpool.client.nonblocking import AsyncIo

# An open page keeps its stream open for ever.
_GOODBYE_SECONDS = 1


@dataclass(frozen=True, slots=True)
class Served:
    """A server that is about to run.

    Attributes:
        url: Where the page is.
        server: It ends when its `should_exit` is set, or by a signal.
    """

    url: str
    server: uvicorn.Server
    _listener: socket.socket

    def run(self) -> None:
        """Serve until the server is to end."""
        self.server.run(sockets=[self._listener])


def prepare(settings: Settings, label: str | None, listener: socket.socket) -> Served:
    """Return the server of the page.

    Args:
        settings: The cluster.
        label: The label that groups nodes; None chooses one.
        listener: The socket to serve on.
    """
    port = listener.getsockname()[1]
    token = new_token()
    api = Api(AsyncIo(), settings)
    watcher = Watcher(api, settings.namespace)
    cluster = f"{settings.server.host}:{settings.server.port}"
    site = Site(watcher, Pages(watcher, Lookups(api), cluster, label))
    configuration = uvicorn.Config(
        site.application(token, port),
        # Requests have the token in their path.
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_GOODBYE_SECONDS,
        ws="none",
    )
    return Served(f"http://127.0.0.1:{port}/{token}/", uvicorn.Server(configuration), listener)
