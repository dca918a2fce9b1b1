"""The stand-in for OpenSandbox's task-executor and execd keeps to their wire."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from localcluster import builds
from localcluster.opensandbox import STANDIN
from support.opensandbox.executor import EXECD_PORT, EXECUTOR_PORT

_SECONDS = 10.0


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where both listen, as in one sandbox."""
    binary = builds.ensure([STANDIN])[STANDIN]
    pick = random.SystemRandom()
    address = f"127.{pick.randrange(16, 240)}.{pick.randrange(256)}.1"
    running = [
        subprocess.Popen(
            [binary, program, "-address", address],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for program in ("task-executor", "execd")
    ]
    yield address
    for process in running:
        process.terminate()
        assert process.wait(_SECONDS) == 0, "it ends when it is told to"


@pytest.fixture
async def session(address: str) -> Any:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_SECONDS)) as session:
        deadline = time.monotonic() + _SECONDS
        for url in (
            f"http://{address}:{EXECUTOR_PORT}/health",
            f"http://{address}:{EXECD_PORT}/ping",
        ):
            while True:
                try:
                    async with session.get(url) as answer:
                        assert answer.status == 200
                    break
                except aiohttp.ClientConnectorError:
                    assert time.monotonic() < deadline, f"{url} does not listen"
                    await asyncio.sleep(0.02)
        yield session


def task(name: str, *command: str, **env: str) -> dict[str, Any]:
    variables = [{"name": key, "value": value} for key, value in env.items()]
    return {"name": name, "process": {"command": list(command), "env": variables}}


async def tasks(
    session: aiohttp.ClientSession, address: str, *wanted: dict[str, Any], status: int = 200
) -> Any:
    """Sets tasks and returns what is said of them."""
    url = f"http://{address}:{EXECUTOR_PORT}/setTasks"
    async with session.post(url, json=list(wanted)) as answer:
        assert answer.status == status
        return await answer.json()


async def state_of(session: aiohttp.ClientSession, address: str, name: str, state: str) -> Any:
    """Waits until a task is in a state."""
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        async with session.get(f"http://{address}:{EXECUTOR_PORT}/getTasks") as answer:
            (found,) = [t for t in await answer.json() if t["name"] == name]
        if state in found["processStatus"]:
            return found["processStatus"][state]
        await asyncio.sleep(0.02)
    raise AssertionError(f"{name} is not {state}")


async def test_a_task_is_started_once_with_its_environment(
    session: aiohttp.ClientSession, address: str, tmp_path: Path
) -> None:
    starts = tmp_path / "starts"
    wanted = task("once-0", "/bin/sh", "-c", f'echo "$WHO" >> {starts}; sleep 60', WHO="me")
    (first,) = await tasks(session, address, wanted)
    assert first["processStatus"]["running"]["startedAt"]
    for _ in range(2):
        assert await tasks(session, address, wanted) == [first], "a known one is left alone"
    deadline = time.monotonic() + _SECONDS
    while not starts.exists():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert starts.read_text() == "me\n"
    assert await tasks(session, address) == [], "what is not wanted is stopped"


async def test_how_a_task_has_ended(session: aiohttp.ClientSession, address: str) -> None:
    await tasks(session, address, task("ends-0", "/bin/sh", "-c", "exit 3"))
    ended = await state_of(session, address, "ends-0", "terminated")
    assert (ended["exitCode"], ended["reason"]) == (3, "Failed")
    missing = task("missing-0", "/no/such/program")
    refused = await tasks(session, address, missing, status=500)
    assert "no such file" in refused["message"]
    (kept,) = await tasks(session, address, missing)
    assert kept["processStatus"]["terminated"]["exitCode"] == 127, "it is not tried again"


async def events(session: aiohttp.ClientSession, address: str, **asked: Any) -> list[Any]:
    async with session.post(f"http://{address}:{EXECD_PORT}/command", json=asked) as answer:
        assert answer.content_type == "text/event-stream"
        frames = (await answer.text()).split("\n\n")
    assert frames[-1] == "", "each frame ends with an empty line"
    return [json.loads(frame) for frame in frames[:-1]]


async def test_a_command_streams_its_output_and_exit_code(
    session: aiohttp.ClientSession, address: str
) -> None:
    seen = await events(session, address, command="echo $A; pwd", envs={"A": "b"}, cwd="/")
    assert [event["type"] for event in seen] == ["init", "stdout", "stdout", "execution_complete"]
    assert [event.get("text") for event in seen[1:3]] == ["b\n", "/\n"]
    assert seen[0]["text"], "the id of the execution"
    assert all(event["timestamp"] > 1.6e12 for event in seen), "in milliseconds"
    failed = await events(session, address, argv=["/bin/sh", "-c", "echo bad >&2; exit 7"])
    assert [event["type"] for event in failed] == ["init", "stderr", "error"]
    assert failed[2]["error"]["evalue"] == "7"
    began = time.monotonic()
    late = await events(session, address, command="sleep 60; true", timeout=200)
    assert late[-1]["type"] == "error"
    assert time.monotonic() - began < _SECONDS / 2


async def test_files_go_up_and_down(
    session: aiohttp.ClientSession, address: str, tmp_path: Path
) -> None:
    base = f"http://{address}:{EXECD_PORT}/files"
    form = aiohttp.FormData()
    for name, mode in (("a", 640), ("deep/b", 755)):
        metadata = json.dumps({"path": str(tmp_path / name), "mode": mode})
        form.add_field("metadata", metadata, filename="metadata", content_type="application/json")
        form.add_field("file", name.encode() * 3, filename=name)
    async with session.post(f"{base}/upload", data=form) as answer:
        assert answer.status == 200, await answer.text()
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    async with session.get(f"{base}/download", params={"path": str(tmp_path / "deep/b")}) as answer:
        assert await answer.read() == b"deep/b" * 3
    async with session.get(f"{base}/download", params={"path": "/no/such/file"}) as answer:
        assert answer.status == 404


async def test_metrics(session: aiohttp.ClientSession, address: str) -> None:
    async with session.get(f"http://{address}:{EXECD_PORT}/metrics") as answer:
        metrics = await answer.json()
    assert metrics["cpu_count"] >= 1
    assert 0 < metrics["mem_used_mib"] < metrics["mem_total_mib"]
    assert 0 <= metrics["cpu_used_pct"] <= 100
