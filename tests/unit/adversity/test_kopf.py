"""The real kopf against a few lines of an API server: nothing that ends it ends more than it."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import kopf
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from sandboxpool.app import handlers
from sandboxpool.app.operator import Operator
from sandboxpool.app.settings import Settings

SOON_SECONDS = 10.0
WATCHED = {
    "/api/v1": ("namespaces", "Namespace", False),
    "/apis/sandboxpool.io/v1alpha1": ("sandboxpools", "SandboxPool", True),
    "/apis/node.k8s.io/v1": ("runtimeclasses", "RuntimeClass", False),
}
POOL = {
    "apiVersion": "sandboxpool.io/v1alpha1",
    "kind": "SandboxPool",
    "metadata": {"name": "pool", "namespace": "team", "uid": "u", "resourceVersion": "5"},
    "spec": {},
}


def discovery(path: str) -> dict[str, Any] | None:
    if path == "/api":
        return {"versions": ["v1"]}
    if path == "/apis":
        groups = [p.split("/")[2:] for p in WATCHED if p.startswith("/apis")]
        return {
            "groups": [
                {"name": group, "preferredVersion": {"version": v}, "versions": [{"version": v}]}
                for group, v in groups
            ]
        }
    if path in WATCHED:
        name, kind, namespaced = WATCHED[path]
        resource = {
            "name": name,
            "singularName": kind.lower(),
            "namespaced": namespaced,
            "kind": kind,
            "verbs": ["get", "list", "watch"],
        }
        return {"resources": [resource]}
    return None


class ApiServer:
    """Answers discovery, lists and watches; the first watch of pools meets a fault."""

    def __init__(self) -> None:
        self.url = ""
        self.fault = ""
        self.logins = 0
        self.watches = 0
        self.refused: set[str] = set()
        self.asked: list[str] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path.rstrip("/")
        found = discovery(path)
        if found is not None:
            return web.json_response(found)
        self.asked.append(path)
        if any(f"/namespaces/{namespace}/" in path for namespace in self.refused):
            refusal = {"kind": "Status", "code": 403, "reason": "Forbidden", "message": "no"}
            return web.json_response(refusal, status=403)
        if not request.query.get("watch"):
            items = [POOL] if "sandboxpools" in path else []
            return web.json_response({"metadata": {"resourceVersion": "10"}, "items": items})
        fault = ""
        if "sandboxpools" in path:
            self.watches += 1
            fault, self.fault = self.fault, ""
        if fault == "401":
            refusal = {"kind": "Status", "code": 401, "reason": "Unauthorized", "message": "no"}
            return web.json_response(refusal, status=401)
        stream = web.StreamResponse()
        await stream.prepare(request)
        if fault == "500":
            failure = {"kind": "Status", "code": 500, "message": "etcdserver: no leader"}
            await stream.write(json.dumps({"type": "ERROR", "object": failure}).encode() + b"\n")
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        return stream


@pytest.fixture
async def api(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ApiServer]:
    api = ApiServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", api.answer)
    server = TestServer(app)
    await server.start_server()
    api.url = str(server.make_url(""))

    def connection() -> kopf.ConnectionInfo:
        api.logins += 1
        return kopf.ConnectionInfo(server=api.url, token="always the same")

    monkeypatch.setattr("sandboxpool.app.operator.connection_info", connection)
    monkeypatch.setattr("sandboxpool.util.supervision.FIRST_RESTART_SECONDS", 0.05)
    yield api
    await server.close()


async def soon(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_SECONDS):
        while not holds():  # noqa: ASYNC110 - a thread is at work
            await asyncio.sleep(0.02)


def threads() -> int:
    return sum(thread.name == "kopf" for thread in threading.enumerate())


async def ended(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task], timeout=SOON_SECONDS)
    await soon(lambda: not threads())


@pytest.fixture
async def operator(api: ApiServer) -> AsyncIterator[Operator]:
    operator = Operator(
        Settings(probe_image="image"), kopf.ConnectionInfo(server="http://127.0.0.1:9")
    )
    yield operator
    operator.components.queues.close()


def restarts(operator: Operator) -> float:
    return float(operator.components.connection.metrics.restarts.labels("kopf")._value.get())


@pytest.fixture
async def kept(operator: Operator) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(operator._supervise("kopf", operator._kopf))
    yield task
    assert not task.done()
    await ended(task)


@pytest.mark.parametrize("fault", ["500", "401"])
async def test_when_kopf_fails_it_restarts_and_nothing_else_ends(
    fault: str, api: ApiServer, operator: Operator, kept: asyncio.Task[None]
) -> None:
    del kept
    api.fault = fault
    other = asyncio.create_task(asyncio.sleep(3600))
    await soon(lambda: len(operator.components.pools) == 1)
    await soon(lambda: restarts(operator) >= 1)
    await soon(lambda: api.logins >= 2)
    await soon(lambda: api.watches >= 2)
    assert not other.done()
    other.cancel()


async def test_kopf_is_told_to_end_and_nobody_waits_for_it(api: ApiServer) -> None:
    del api
    seen: list[Any] = []
    watching = asyncio.create_task(
        handlers.watch(
            connection=lambda: kopf.ConnectionInfo(server="http://127.0.0.1:9"),
            on_pool=lambda body, deleted: seen.append(body),
            on_class=lambda body, deleted: seen.append(body),
        )
    )
    await soon(lambda: threads() == 1)
    watching.cancel()
    async with asyncio.timeout(0.5):
        await asyncio.wait([watching])
    await soon(lambda: not threads())


async def test_credentials_that_cannot_be_found_end_only_kopf(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> kopf.ConnectionInfo:
        raise OSError("no such file")

    monkeypatch.setattr("sandboxpool.app.operator.connection_info", none)
    kept = asyncio.create_task(operator._supervise("kopf", operator._kopf))
    await asyncio.sleep(0.3)
    assert not kept.done()
    await ended(kept)


async def test_a_namespace_that_is_refused_keeps_no_other_from_being_watched(
    api: ApiServer,
) -> None:
    """And kopf asks for pools of no other namespace, nor of all."""
    pools: list[Any] = []
    api.refused = {"later"}
    watching = asyncio.create_task(
        handlers.watch(
            connection=lambda: kopf.ConnectionInfo(server=api.url, token="always the same"),
            on_pool=lambda body, deleted: pools.append(body),
            on_class=lambda body, deleted: None,
            namespaces=("team", "later"),
        )
    )
    collection = "/apis/sandboxpool.io/v1alpha1/namespaces/{}/sandboxpools"
    await soon(lambda: len(pools) == 1)
    await soon(lambda: api.asked.count(collection.format("later")) >= 2)
    assert not watching.done()
    api.refused.clear()
    await soon(lambda: len(pools) == 2)
    asked = {path for path in api.asked if path.endswith("sandboxpools")}
    assert asked == {collection.format("team"), collection.format("later")}
    assert "/apis/node.k8s.io/v1/runtimeclasses" in api.asked
    await ended(watching)
