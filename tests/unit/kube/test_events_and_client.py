"""Events, bounded; and the client's errors and what it repeats."""

import asyncio
import dataclasses
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import kopf
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from sandboxpool.kube import events
from sandboxpool.kube.client import ApiClient, error_of, resource_path
from sandboxpool.kube.errors import ApiError, UnknownOutcomeError
from sandboxpool.kube.events import EventRecorder
from sandboxpool.util.references import ObjectReference
from support.scriptedapi import UNKNOWN, ScriptedApi

ABOUT = ObjectReference("sandboxpool.io/v1alpha1", "SandboxPool", "default", "pool", "pool-uid")


async def posted(recorder: EventRecorder, api: ScriptedApi, seconds: float = 5) -> list[Any]:
    task = asyncio.create_task(recorder.run())
    await asyncio.sleep(seconds)
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])
    return [call.body for call in api.sent("POST", "/events")]


def recorder(**more: Any) -> tuple[EventRecorder, ScriptedApi]:
    api = ScriptedApi(lambda: 0.0)
    return EventRecorder(api, "sandboxpool", "replica-1", **more), api


@pytest.mark.looptime
async def test_an_event_is_about_its_object() -> None:
    events_, api = recorder()
    events_.warning(ABOUT, "QuotaExceeded", "x" * 5000)
    (body,) = await posted(events_, api)
    assert body["involvedObject"]["uid"] == "pool-uid"
    assert (body["type"], body["reason"]) == ("Warning", "QuotaExceeded")
    assert body["metadata"]["namespace"] == "default"
    assert len(body["message"]) == 1024


@pytest.mark.looptime
async def test_an_event_about_a_cluster_scoped_object_goes_where_kubectl_looks() -> None:
    events_, api = recorder()
    events_.warning(dataclasses.replace(ABOUT, namespace=""), "NodeQuarantined", "text")
    (body,) = await posted(events_, api)
    assert body["metadata"]["namespace"] == "default"
    # The API server holds the two against each other: a cluster-scoped object has none.
    assert body["involvedObject"]["namespace"] == ""
    assert api.sent("POST", "/api/v1/namespaces/default/events")


@pytest.mark.looptime
async def test_an_event_about_an_object_with_a_long_name_has_a_valid_one() -> None:
    events_, api = recorder()
    long = "a" * (events.MAX_NAME - 1) + "-" + "b" * 20
    events_.warning(dataclasses.replace(ABOUT, name=long), "NodeQuarantined", "text")
    (body,) = await posted(events_, api)
    assert re.fullmatch(r"a+\.[0-9a-f]{16}", body["metadata"]["name"])
    assert len(body["metadata"]["name"]) <= 253
    assert body["involvedObject"]["name"] == long


@pytest.mark.looptime
async def test_the_same_event_is_posted_once_in_a_while() -> None:
    events_, api = recorder()
    for _ in range(3):
        events_.normal(ABOUT, "Same", "text")
        events_.normal(ABOUT, "Same", "another text")
    assert len(await posted(events_, api)) == 2
    await asyncio.sleep(events.REPEAT_SECONDS)
    events_.normal(ABOUT, "Same", "text")
    assert len(await posted(events_, api)) == 3


@pytest.mark.looptime
@pytest.mark.parametrize(("seconds", "least", "most"), [(2, 30, 36), (20, 100, 100)])
async def test_a_burst_is_slowed_down(seconds: float, least: int, most: int) -> None:
    events_, api = recorder()
    for i in range(100):
        events_.normal(ABOUT, "Reason", str(i))
    assert least <= len(await posted(events_, api, seconds)) <= most


@pytest.mark.looptime
async def test_what_is_too_much_is_dropped_and_counted_and_nothing_is_remembered_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "MAX_QUEUED", 100)
    monkeypatch.setattr(events, "MAX_REMEMBERED", 400)
    dropped: list[None] = []
    events_, api = recorder(on_drop=lambda: dropped.append(None))
    for i in range(600):
        events_.normal(ABOUT, "Reason", str(i))
    assert len(dropped) == 500
    assert len(events_._recent) == 100
    for i in range(8):
        for j in range(100):
            events_.normal(ABOUT, f"Reason{i}", str(j))
        await posted(events_, api, 100)
    assert len(events_._recent) == 400
    assert not events_._queue._ranks


@pytest.mark.looptime
async def test_what_matters_most_goes_first_and_namespaces_take_turns() -> None:
    events_, api = recorder(rank=lambda about: int(about.namespace != ""))
    for i in range(40):
        events_.normal(dataclasses.replace(ABOUT, namespace="busy"), "Reason", str(i))
    events_.normal(dataclasses.replace(ABOUT, namespace="calm"), "Reason", "a")
    events_.normal(dataclasses.replace(ABOUT, namespace=""), "Reason", "b")
    order = [(b["involvedObject"]["namespace"], b["message"]) for b in await posted(events_, api)]
    assert order[:4] == [("", "b"), ("busy", "0"), ("calm", "a"), ("busy", "1")]


@pytest.mark.looptime
async def test_an_important_event_overtakes_others_that_wait_for_their_time() -> None:
    events_, api = recorder(rank=lambda about: int(about.namespace != ""))
    for i in range(500):
        events_.normal(ABOUT, "Reason", str(i))
    task = asyncio.create_task(events_.run())
    await asyncio.sleep(30)
    events_.normal(dataclasses.replace(ABOUT, namespace=""), "Alarm", "now")
    await asyncio.sleep(1)
    assert "Alarm" in [call.body["reason"] for call in api.sent("POST", "/events")]
    task.cancel()


@pytest.mark.looptime
async def test_who_causes_too_many_events_loses_them_and_nobody_else_does() -> None:
    events_, api = recorder(rank=lambda about: int(about.namespace != ""))
    calm = dataclasses.replace(ABOUT, namespace="calm")
    for i in range(3 * events.MAX_QUEUED):
        events_.normal(ABOUT, "Reason", str(i))
        if i % 300 == 0:
            events_.normal(calm, "Calm", str(i))
            events_.normal(dataclasses.replace(ABOUT, namespace=""), "Fleet", str(i))
    reasons = [body["reason"] for body in await posted(events_, api, 300)]
    assert (reasons.count("Calm"), reasons.count("Fleet")) == (10, 10)
    assert len(reasons) == events.MAX_QUEUED
    # What was dropped may be said again at once.
    events_.normal(ABOUT, "Reason", str(3 * events.MAX_QUEUED - 1))
    assert len(await posted(events_, api)) == events.MAX_QUEUED + 1


@pytest.mark.looptime
async def test_an_event_that_cannot_be_posted_is_in_nobodys_way() -> None:
    events_, api = recorder()
    api.fail("POST", "/events", UNKNOWN)
    api.fail("POST", "/events", ApiError(403, "Forbidden", "because it is being terminated"))
    for i in range(3):
        events_.normal(ABOUT, "Reason", str(i))
    assert len(await posted(events_, api)) == 3
    assert len(api.objects) == 1


# --- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "header", "expected"),
    [
        (b'{"reason":"Conflict","message":"old"}', None, ("Conflict", "old", None)),
        (b'{"reason":"X","details":{"retryAfterSeconds":3}}', None, ("X", "", 3.0)),
        (b'{"reason":"X","details":{"retryAfterSeconds":3}}', "7", ("X", "", 7.0)),
        (b"upstream is away", None, ("", "upstream is away", None)),
        (b"upstream is away", "soon", ("", "upstream is away", None)),
        (b'"text"', None, ("", '"text"', None)),
        (b"\xff", None, ("", "\ufffd", None)),
        (b"", None, ("", "", None)),
    ],
)
def test_an_answer_becomes_an_error(
    body: bytes, header: str | None, expected: tuple[str, str, float | None]
) -> None:
    error = error_of(409, body, header)
    assert (error.reason, error.message, error.retry_after) == expected
    assert error.status == 409


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (ApiError(404, "NotFound", ""), "not_found"),
        (ApiError(409, "Conflict", ""), "conflict"),
        (ApiError(409, "AlreadyExists", ""), "already_exists"),
        (ApiError(410, "Expired", ""), "gone"),
        (ApiError(403, "Forbidden", "x because it is being terminated"), "namespace_terminating"),
        (ApiError(403, "Forbidden", "policy"), None),
        (ApiError(500, "InternalError", ""), None),
    ],
)
def test_errors_are_told_apart(error: ApiError, what: str | None) -> None:
    kinds = ("not_found", "conflict", "already_exists", "gone", "namespace_terminating")
    assert [kind for kind in kinds if getattr(error, kind)] == ([what] if what else [])


def test_paths() -> None:
    assert resource_path("v1", "nodes") == "/api/v1/nodes"
    assert resource_path("g/v1", "things", "ns", "a", "status") == (
        "/apis/g/v1/namespaces/ns/things/a/status"
    )


# --- What is repeated ----------------------------------------------------------------------------

Answer = tuple[int, dict[str, str]]
Serve = Callable[[list[Answer]], Awaitable[tuple[ApiClient, list[str]]]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    open_: list[Any] = []

    async def start(answers: list[Answer]) -> tuple[ApiClient, list[str]]:
        seen: list[str] = []

        async def handle(request: web.Request) -> web.StreamResponse:
            seen.append(request.method)
            status, headers = answers.pop(0) if answers else (200, {})
            if status == 0:
                assert request.transport is not None
                request.transport.close()
            return web.Response(status=status or 200, headers=headers, body=b"{}")

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        server = TestServer(app)
        await server.start_server()
        client = ApiClient(kopf.ConnectionInfo(server=str(server.make_url("/"))), user_agent="test")
        await client.__aenter__()
        open_.extend([server, client])
        return client, seen

    yield start
    for thing in reversed(open_):
        await (thing.close() if isinstance(thing, TestServer) else thing.__aexit__())


async def test_a_throttled_write_is_repeated(serve: Serve) -> None:
    client, seen = await serve([(429, {"Retry-After": "0"}), (429, {})])
    await client.create("/things", {})
    assert seen == ["POST"] * 3


async def test_a_throttled_write_is_not_repeated_for_ever(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_time(seconds: float) -> None:
        assert 0 < seconds <= 10

    client, seen = await serve([(429, {"Retry-After": "60"})] * 20)
    monkeypatch.setattr("sandboxpool.kube.client.asyncio.sleep", no_time)
    with pytest.raises(ApiError) as caught:
        await client.create("/things", {})
    assert caught.value.status == 429
    assert len(seen) == 5


@pytest.mark.parametrize("status", [500, 502, 503, 504, 409, 403])
async def test_a_write_is_never_repeated_after_another_failure(serve: Serve, status: int) -> None:
    client, seen = await serve([(status, {})])
    for write in (
        client.create("/things", {}),
        client.merge_patch("/things/a", {}),
        client.replace_status("/things/a", "uid", {}),
        client.delete("/things/a", uid="uid"),
    ):
        del seen[:]
        if status:
            with pytest.raises(ApiError) as caught:
                await write
            assert caught.value.status == status
            assert len(seen) == 1
            status = 0
        else:
            await write


async def test_a_cut_connection_is_an_unknown_outcome_and_not_repeated(serve: Serve) -> None:
    client, seen = await serve([(0, {})])
    with pytest.raises(UnknownOutcomeError):
        await client.create("/things", {})
    assert seen == ["POST"]


@pytest.mark.looptime
async def test_an_operator_that_does_not_manage_runtimes_tells_of_no_node() -> None:
    events_, api = recorder(cluster_scoped=False)
    events_.warning(ObjectReference("v1", "Node", "", "node", "node-uid"), "NodeQuarantined", "x")
    events_.warning(ABOUT, "QuotaExceeded", "x")
    assert [body["reason"] for body in await posted(events_, api)] == ["QuotaExceeded"]
