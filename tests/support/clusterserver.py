"""An API server in memory that lists and watches over HTTP, and can fail in all ways."""

from __future__ import annotations

import asyncio
import copy
import json
import socket
import threading
from collections.abc import AsyncIterator, Mapping
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sandboxpool.cli.cluster import (
    CLAIMS,
    CLASSES,
    DEPLOYMENTS,
    EVENTS,
    LEASES,
    NODES,
    PODS,
    POOLS,
    RUNTIMES,
)
from support.waiting import eventually

Object = dict[str, Any]
_KINDS = {
    one.kind: one
    for one in (CLAIMS, CLASSES, DEPLOYMENTS, EVENTS, LEASES, NODES, PODS, POOLS, RUNTIMES)
}
_LOOK_SECONDS = 0.02


class ClusterServer:
    """Serves objects on the loopback address.

    Attributes:
        denied: Resources that nobody may read in all namespaces.
        denied_everywhere: Resources that nobody may read at all.
        absent: Resources that the server does not know.
        requests: The requests, as verb and resource.
    """

    def __init__(self) -> None:
        self.denied: set[str] = set()
        self.denied_everywhere: set[str] = set()
        self.absent: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        self._objects: dict[str, dict[tuple[str, str], Object]] = {}
        self._log: list[tuple[int, str, str, Object]] = []
        self._version = 100
        self._oldest = 0
        self._generation = 0
        self._lock = threading.Lock()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        if self._socket.fileno() < 0:
            self._socket = socket.create_server(("127.0.0.1", self.port))
        app = Starlette(routes=[Route("/{path:path}", self._answer)])
        configuration = uvicorn.Config(
            app, log_level="critical", access_log=False, timeout_graceful_shutdown=1, ws="none"
        )
        self._server = uvicorn.Server(configuration)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )
        self._thread.start()
        eventually(lambda: self._server is not None and self._server.started)

    def stop(self) -> None:
        """Be unreachable."""
        self.drop_watches()
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(10)
        self._socket.close()

    # What the cluster does.

    def put(self, *objects: Mapping[str, Any]) -> None:
        """Create or replace objects."""
        with self._lock:
            for obj in objects:
                made = copy.deepcopy(dict(obj))
                plural = _KINDS[made["kind"]].plural
                known = self._objects.setdefault(plural, {})
                type_ = "MODIFIED" if _key(made) in known else "ADDED"
                self._record(type_, plural, made)
                known[_key(made)] = made

    def delete(self, kind: str, name: str, namespace: str = "") -> None:
        with self._lock:
            plural = _KINDS[kind].plural
            self._record("DELETED", plural, self._objects[plural].pop((namespace, name)))

    def drop_watches(self) -> None:
        """Break the connections of all watches."""
        self._generation += 1

    def forget_history(self) -> None:
        """Answer watches from earlier versions with 410 Gone."""
        with self._lock:
            self._oldest = self._version
            self._log.clear()

    def _record(self, type_: str, plural: str, obj: Object) -> None:
        self._version += 1
        obj["metadata"]["resourceVersion"] = str(self._version)
        self._log.append((self._version, plural, type_, copy.deepcopy(obj)))

    # What is asked.

    async def _answer(self, request: Request) -> Response:
        # Whatever is dropped from here on is dropped for this request too.
        generation = self._generation
        parts = request.url.path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        namespace = ""
        if len(parts) > 2 and parts[0] == "namespaces":
            namespace, parts = parts[1], parts[2:]
        plural, name = parts[0], parts[1] if len(parts) > 1 else ""
        query = request.query_params
        verb = "get" if name else "watch" if query.get("watch") else "list"
        self.requests.append((verb, plural))
        if plural in self.absent:
            return _status(404, "the server could not find the requested resource", "NotFound")
        if plural in self.denied_everywhere or (plural in self.denied and not namespace):
            group = next(kind.group for kind in _KINDS.values() if kind.plural == plural)
            return _status(
                403,
                f'{plural}.{group} is forbidden: User "sre" cannot {verb} resource "{plural}" in'
                f' API group "{group}"',
                "Forbidden",
            )
        if name:
            with self._lock:
                found = self._objects.get(plural, {}).get((namespace, name))
            if found is None:
                return _status(404, f'{plural} "{name}" not found', "NotFound", name=name)
            return JSONResponse(found)
        if verb == "list":
            return self._list(plural, namespace, query)
        since = int(query["resourceVersion"])
        if since < self._oldest:
            return _status(410, "too old resource version", "Expired")
        return StreamingResponse(self._watch(plural, namespace, since, generation))

    def _list(self, plural: str, namespace: str, query: Mapping[str, str]) -> Response:
        with self._lock:
            found = [
                obj
                for (where, _), obj in sorted(self._objects.get(plural, {}).items())
                if (not namespace or where == namespace) and _selected(obj, query)
            ]
            version = str(self._version)
        start = int(query.get("continue", "0"))
        end = start + int(query.get("limit", len(found) or 1))
        metadata = {"resourceVersion": version}
        if end < len(found):
            metadata |= {"continue": str(end)}
        return JSONResponse({"metadata": metadata, "items": found[start:end]})

    async def _watch(
        self, plural: str, namespace: str, since: int, generation: int
    ) -> AsyncIterator[bytes]:
        while True:
            if self._generation != generation:
                # The answer ends in the middle, as when a load balancer forgets a connection.
                raise ConnectionAbortedError
            with self._lock:
                news = [one for one in self._log if one[0] > since]
            for version, of, type_, obj in news:
                since = version
                if of == plural and (not namespace or obj["metadata"]["namespace"] == namespace):
                    yield json.dumps({"type": type_, "object": obj}).encode() + b"\n"
            await asyncio.sleep(_LOOK_SECONDS)


def _selected(obj: Object, query: Mapping[str, str]) -> bool:
    for part in filter(None, query.get("labelSelector", "").split(",")):
        key, _, value = part.partition("=")
        if obj["metadata"].get("labels", {}).get(key) != value:
            return False
    for part in filter(None, query.get("fieldSelector", "").split(",")):
        path, _, value = part.partition("=")
        at: Any = obj
        for step in path.split("."):
            at = (at or {}).get(step)
        if at != value:
            return False
    return True


def _key(obj: Object) -> tuple[str, str]:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def _status(code: int, message: str, reason: str, **details: str) -> Response:
    body = {"kind": "Status", "message": message, "reason": reason, "details": details}
    return JSONResponse(body, code)
