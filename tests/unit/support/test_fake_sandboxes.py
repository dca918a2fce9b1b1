"""The stand-ins for task-executor and execd keep to the wire, and misbehave as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from support.opensandbox.executor import (
    BROKEN,
    CUT,
    ENDLESS,
    EXECD_PORT,
    EXECUTOR_PORT,
    NO_HTTP,
    REFUSES,
    SILENT,
    TRICKLES,
    FakeSandboxes,
    Manner,
    Reply,
)

TASK = {"name": "id-0", "process": {"command": ["/bin/sh", "-c", "true"], "env": []}}
_SECONDS = 0.4
_MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def running() -> Iterator[FakeSandboxes]:
    with FakeSandboxes() as fake:
        yield fake


@pytest.fixture
def fake(running: FakeSandboxes) -> FakeSandboxes:
    running.behave(Manner())
    return running


async def ask(address: str, port: int, path: str, body: Any = None) -> Any:
    """Returns the JSON of an answer, of which it reads a mebibyte."""
    method = "GET" if body is None else "POST"
    limit = aiohttp.ClientTimeout(total=_SECONDS)
    async with (
        aiohttp.ClientSession(timeout=limit, raise_for_status=True) as session,
        session.request(
            method, f"http://{address}:{port}{path}", json=body, allow_redirects=False
        ) as answer,
    ):
        if answer.status != 200:
            raise aiohttp.ClientResponseError(answer.request_info, (), status=answer.status)
        if answer.content_type != "application/json":
            return len(await answer.content.readexactly(_MEBIBYTE)) if path != "/ping" else None
        return await answer.json()


async def await_execd(address: str) -> None:
    async with asyncio.timeout(5):
        while await refused(address):  # noqa: ASYNC110  # nothing says when
            await asyncio.sleep(0.01)


async def refused(address: str) -> bool:
    try:
        await ask(address, EXECD_PORT, "/ping")
    except aiohttp.ClientConnectorError:
        return True
    return False


async def test_a_task_is_started_once_and_execd_listens_after_it(fake: FakeSandboxes) -> None:
    address = fake.address(1)
    with pytest.raises(aiohttp.ClientConnectorError):
        await ask(address, EXECD_PORT, "/ping")
    for _ in range(2):
        answer = await ask(address, EXECUTOR_PORT, "/setTasks", [TASK])
        assert list(answer[0]["processStatus"]) == ["running"]
    assert fake.started(address) == ["id-0"]
    await await_execd(address)
    assert await ask(address, EXECUTOR_PORT, "/getTasks") == answer
    asked = fake.requests(address, "/setTasks")
    assert [(r.method, r.port, r.body) for r in asked] == [("POST", EXECUTOR_PORT, [TASK])] * 2
    assert fake.started(fake.address(2)) == [], "each address is a sandbox of its own"


async def test_a_task_may_end_at_once(fake: FakeSandboxes) -> None:
    address = fake.address(3)
    fake.behave(Manner(exit_code=127, message="no such file"), address)
    (task,) = await ask(address, EXECUTOR_PORT, "/setTasks", [TASK])
    assert task["processStatus"]["terminated"]["exitCode"] == 127
    with pytest.raises(aiohttp.ClientConnectorError):
        await ask(address, EXECD_PORT, "/ping")


async def test_a_sandbox_without_task_executor_refuses(fake: FakeSandboxes) -> None:
    address = fake.address(4)
    fake.behave(Manner(executor=REFUSES, prestarted=True), address)
    with pytest.raises(aiohttp.ClientConnectorError):
        await ask(address, EXECUTOR_PORT, "/setTasks", [TASK])
    assert await ask(address, EXECD_PORT, "/ping") is None
    fake.behave(Manner(), address)
    assert await ask(address, EXECUTOR_PORT, "/health") == {"status": "healthy"}


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (BROKEN, aiohttp.ClientResponseError),
        (Reply(location="http://127.0.0.1:1/"), aiohttp.ClientResponseError),
        (SILENT, TimeoutError),
        (TRICKLES, TimeoutError),
        (NO_HTTP, aiohttp.ClientError),
        (CUT, aiohttp.ClientError),
        (Reply(text="no JSON"), asyncio.IncompleteReadError),
    ],
)
async def test_bad_manners(fake: FakeSandboxes, reply: Reply, error: type[Exception]) -> None:
    address = fake.address(5)
    fake.behave(Manner(executor=reply), address)
    with pytest.raises(error):
        await ask(address, EXECUTOR_PORT, "/setTasks", [TASK])
    assert fake.started(address) == ["id-0"], "the task runs, whatever was answered"


async def test_an_endless_body_is_more_than_anybody_reads(fake: FakeSandboxes) -> None:
    address = fake.address(6)
    fake.behave(Manner(executor=ENDLESS), address)
    assert await ask(address, EXECUTOR_PORT, "/setTasks", [TASK]) == _MEBIBYTE
    assert fake.sent_bytes >= _MEBIBYTE
