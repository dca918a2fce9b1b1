"""What the client is measured against: the same requests, made by hand with other libraries.

A claim is one POST and one watch, a command is one WebSocket, each on a connection of its own.
Nothing is retried, checked or released.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlencode

import websocket

from sandboxpool.client.config import Settings

_PROTOCOL = "v5.channel.k8s.io"
_STDOUT = 1
_SECONDS = 120.0

Object = dict[str, Any]


class Bare:
    """An API server to which a client certificate, or a token, is the way in."""

    def __init__(self, settings: Settings, namespace: str) -> None:
        self._settings = settings
        self._namespace = namespace
        self._context: ssl.SSLContext = settings.ssl_context()
        given = settings.authorization()
        self._headers = {"Authorization": given} if given else {}

    def create_and_await(self, path: str, obj: Object, done: Callable[[Object], bool]) -> Object:
        """Create an object and watch it until it is as wanted.

        Raises:
            OSError: The API server refuses it, or the watch ends before.
        """
        path = f"{path}/namespaces/{self._namespace}/{_plural(obj)}"
        with closing(self._connection()) as connection:
            headers = {**self._headers, "Content-Type": "application/json"}
            connection.request("POST", path, json.dumps(obj), headers)
            answer = connection.getresponse()
            made: Object = json.loads(answer.read())
            if answer.status != 201:
                raise OSError(f"{path}: {made.get('message')}")
        if done(made):
            return made
        query = {
            "watch": "true",
            "fieldSelector": f"metadata.name={made['metadata']['name']}",
            "resourceVersion": made["metadata"]["resourceVersion"],
            "timeoutSeconds": str(int(_SECONDS)),
        }
        with closing(self._connection()) as connection:
            connection.request("GET", f"{path}?{urlencode(query)}", headers=self._headers)
            for line in connection.getresponse():
                seen: Object = json.loads(line)["object"]
                if done(seen):
                    return seen
        raise OSError(f"{path}: the watch has ended")

    def first_output(self, pod: str, *command: str) -> bytes:
        """Run a command and return the first bytes that it writes."""
        with self.command(pod, *command) as chunks:
            return next(chunks)

    def first_log_line(self, pod: str) -> str:
        """Return the first line that a pod writes to its log, with its time, once it is there."""
        query = urlencode({"follow": "true", "timestamps": "true"})
        path = f"/api/v1/namespaces/{self._namespace}/pods/{pod}/log?{query}"
        with closing(self._connection()) as connection:
            connection.request("GET", path, headers=self._headers)
            return connection.getresponse().readline().decode()

    @contextmanager
    def command(self, pod: str, *command: str) -> Iterator[Iterator[bytes]]:
        """Run a command, for its output."""
        server = self._settings.server
        query = urlencode([("command", word) for word in command] + [("stdout", "true")])
        path = f"/api/v1/namespaces/{self._namespace}/pods/{pod}/exec?{query}"
        sock = websocket.create_connection(
            f"wss://{server.host}:{server.port}{path}",
            subprotocols=[_PROTOCOL],
            header=self._headers,
            sslopt={"context": self._context},
            timeout=_SECONDS,
            skip_utf8_validation=True,
        )
        with closing(sock):
            yield _stdout(sock)

    def _connection(self) -> http.client.HTTPSConnection:
        server = self._settings.server
        return http.client.HTTPSConnection(
            server.host, server.port, timeout=_SECONDS, context=self._context
        )


def _plural(obj: Object) -> str:
    return f"{str(obj['kind']).lower()}s"


def _stdout(sock: websocket.WebSocket) -> Iterator[bytes]:
    while True:
        message = sock.recv()
        data = message.encode() if isinstance(message, str) else message
        if not data:
            return
        if data[0] == _STDOUT and len(data) > 1:
            yield data[1:]
