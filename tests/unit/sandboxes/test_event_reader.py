"""Reading the events of single pods, in virtual time: limits, turns, and what is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec
import pytest

from sandboxpool.api.core import Pod
from sandboxpool.kube.client import ApiClient
from sandboxpool.kube.errors import ApiError
from sandboxpool.sandboxes import event_reader as inquiry
from sandboxpool.sandboxes.event_reader import (
    BURST,
    MAX_KNOWN,
    MAX_PENDING_SECONDS,
    MAX_WAITING,
    MAX_WAITING_OF_POOL,
    QPS,
    READ_TIMEOUT_SECONDS,
    PodEventReader,
)
from support.builders import pod

pytestmark = pytest.mark.looptime


class Server:
    """Answers lists of events after a while."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.error: Exception | None = None
        self.items: list[dict[str, Any]] = []
        self.asked: list[tuple[float, str, str]] = []

    async def get(self, path: str, params: Mapping[str, str]) -> bytes:
        self.asked.append((now(), path, params["fieldSelector"]))
        assert int(params["limit"]) <= 100
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return msgspec.json.encode({"items": self.items})


def now() -> float:
    return asyncio.get_running_loop().time()


def failing(name: str, namespace: str = "default") -> Pod:
    found = pod(name, ready=False, phase="Pending")
    metadata = msgspec.structs.replace(found.metadata, namespace=namespace)
    return msgspec.structs.replace(found, metadata=metadata)


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[tuple[PodEventReader, list[str]]]:
    told: list[str] = []
    asks = PodEventReader(cast(ApiClient, server), lambda pod: told.append(pod.metadata.name))
    task = asyncio.create_task(asks.run())
    try:
        yield asks, told
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_one_pod_is_read_once_a_stage_by_its_name_and_uid() -> None:
    server = Server()
    async with running(server) as (asks, told):
        slow = failing("slow", "tenant")
        assert asks.events_of(slow) is None
        for _ in range(3):
            asks.enqueue(slow, "pool", "slow")
        assert asks.is_reading(slow)
        await asyncio.sleep(1)
        asks.enqueue(slow, "pool", "slow")
        await asyncio.sleep(1)
        (asked,) = server.asked
        assert asked[1] == "/api/v1/namespaces/tenant/events"
        assert asked[2] == "involvedObject.uid=slow-uid,involvedObject.name=slow"
        assert not asks.is_reading(slow)
        assert asks.events_of(slow) is not None
        assert told == ["slow"]
        asks.enqueue(slow, "pool", "overdue")
        await asyncio.sleep(1)
        assert len(server.asked) == 2


async def test_all_looks_together_are_limited() -> None:
    server = Server()
    async with running(server) as (asks, told):
        for index in range(60):
            asks.enqueue(failing(f"pod-{index}"), f"pool-{index % 20}", "slow")
        await asyncio.sleep(5)
        assert len(told) <= BURST + 5 * QPS + 1
        await asyncio.sleep(10)
        assert len(told) == 60


async def test_slow_answers_keep_no_more_than_a_few_requests_open_and_end() -> None:
    server = Server()
    server.seconds = 1000.0
    async with running(server) as (asks, told):
        for index in range(20):
            asks.enqueue(failing(f"pod-{index}"), "pool", "slow")
        await asyncio.sleep(READ_TIMEOUT_SECONDS - 1)
        assert len(server.asked) == inquiry.AT_ONCE
        await asyncio.sleep(2)
        assert len(told) == inquiry.AT_ONCE
        found = asks.events_of(failing("pod-0"))
        assert found is not None
        assert "did not answer" in found.problem


async def test_a_pool_whose_pods_all_fail_keeps_no_other_waiting() -> None:
    server = Server()
    async with running(server) as (asks, _):
        for index in range(1000):
            asks.enqueue(failing(f"noisy-{index}", "noisy"), "noisy", "slow")
        for index in range(300):
            # A tenant with many pools has no more turns than one with one.
            asks.enqueue(failing(f"many-{index}", "many"), f"pool-{index}", "slow")
        await asyncio.sleep(0.01)
        asks.enqueue(failing("quiet", "quiet"), "quiet", "slow")
        asks.enqueue(failing("sibling", "noisy"), "sibling", "slow")
        before = len(server.asked)
        await asyncio.sleep(10)
        names = [fields.rpartition("=")[2] for _, _, fields in server.asked]
        assert names.index("quiet") - before <= 4
        assert names.index("sibling") - before <= 8
        assert sum(name.startswith("noisy") for name in names) <= MAX_WAITING_OF_POOL


async def test_those_that_find_no_place_in_line_may_ask_again_and_are_not_waited_for() -> None:
    server = Server()
    async with running(server) as (asks, _):
        pods = [failing(f"pod-{index}") for index in range(MAX_WAITING_OF_POOL + 1)]
        for one in pods:
            asks.enqueue(one, "pool", "ended")
        assert asks.is_reading(pods[-2])
        assert not asks.is_reading(pods[-1])
        await asyncio.sleep(30)
        asks.enqueue(pods[-1], "pool", "ended")
        await asyncio.sleep(1)
        assert asks.events_of(pods[-1]) is not None


async def test_nobody_waits_for_ever() -> None:
    asks = PodEventReader(cast(ApiClient, Server()), lambda pod: None)
    one = failing("pod")
    asks.enqueue(one, "pool", "ended")
    await asyncio.sleep(MAX_PENDING_SECONDS - 1)
    assert asks.is_reading(one)
    await asyncio.sleep(2)
    assert not asks.is_reading(one)


async def test_what_waits_and_what_is_known_is_bounded_and_the_greatest_gives_way() -> None:
    server = Server()
    async with running(server) as (asks, _):
        small = failing("small", "small")
        asks.enqueue(small, "small", "slow")
        await asyncio.sleep(1)
        for index in range(MAX_WAITING + 500):
            asks.enqueue(failing(f"pod-{index}", "large"), f"pool-{index // 40}", "slow")
        assert asks._waiting_count <= MAX_WAITING
        await asyncio.sleep(3 * MAX_WAITING / QPS)
        for wave in range(4):
            for index in range(MAX_WAITING):
                one = failing(f"pod-{wave}-{index}", "large")
                asks.enqueue(one, f"pool-{index // 40}", "slow")
            await asyncio.sleep(2 * MAX_WAITING / QPS)
        assert asks._size <= MAX_KNOWN
        assert sum(map(len, asks._known.values())) == asks._size
        assert asks.events_of(small) is not None
        assert not asks._waiting_count


async def test_what_is_gone_is_forgotten_even_while_it_is_read() -> None:
    server = Server()
    server.seconds = 2.0
    async with running(server) as (asks, told):
        read, waiting = failing("read"), failing("waiting")
        asks.enqueue(read, "pool", "slow")
        await asyncio.sleep(0.1)
        asks.forget(read)
        asks.enqueue(waiting, "pool", "slow")
        asks.forget(waiting)
        await asyncio.sleep(5)
        assert told == []
        assert asks.events_of(read) is None
        assert len(server.asked) == 1
        assert asks._size == 0
        assert not asks._known


async def test_what_cannot_be_read_is_said_and_ends_nothing() -> None:
    server = Server()
    server.error = ApiError(403, "Forbidden", "events is forbidden: " + "x" * 5000)
    async with running(server) as (asks, told):
        one = failing("pod")
        asks.enqueue(one, "pool", "slow")
        await asyncio.sleep(1)
        found = asks.events_of(one)
        assert found is not None
        assert found.problem.startswith("events is forbidden")
        assert len(found.problem) <= 300
        server.error = None
        asks.enqueue(one, "pool", "overdue")
        await asyncio.sleep(1)
        assert told == ["pod", "pod"]
        found = asks.events_of(one)
        assert found is not None
        assert found.problem == ""
