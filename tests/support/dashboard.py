"""The dashboard's server in a thread of the tests, on a cluster in memory."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sandboxpool.cli.dashboard import serve
from support.clusterserver import ClusterServer
from support.scriptedcluster import settings
from support.waiting import eventually


@contextmanager
def serving(cluster: ClusterServer, label: str | None = None) -> Iterator[serve.Served]:
    """Serve the page of a cluster until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = serve.prepare(settings(host=cluster.url), label, listener)
        thread = threading.Thread(target=made.run, daemon=True)
        thread.start()
        eventually(lambda: made.server.started)
        try:
            yield made
        finally:
            made.server.should_exit = True
            thread.join(10)
            assert not thread.is_alive(), "the server has not ended"
