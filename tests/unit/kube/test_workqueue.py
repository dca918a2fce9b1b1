"""The work queue, in virtual time."""

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest

from sandboxpool.kube.workqueue import LONGEST_RETRY_SECONDS, WorkQueue

pytestmark = pytest.mark.looptime


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.fixture
async def queue() -> AsyncIterator[WorkQueue[str]]:
    queue = WorkQueue[str]("test")
    yield queue
    queue.close()


async def drained(queue: WorkQueue[str]) -> list[str]:
    keys = []
    while len(queue):
        key = await queue.take()
        keys.append(key)
        queue.done(key)
    return keys


async def test_keys_come_in_the_order_of_their_arrival_and_once(queue: WorkQueue[str]) -> None:
    for key in ("a", "b", "a", "c", "b"):
        queue.add(key)
    assert await drained(queue) == ["a", "b", "c"]


async def test_a_key_added_while_it_is_worked_on_comes_again_afterwards(
    queue: WorkQueue[str],
) -> None:
    queue.add("a")
    assert await queue.take() == "a"
    queue.add("a")
    queue.add("a")
    queue.add("b")
    assert len(queue) == 1
    queue.done("a")
    assert await drained(queue) == ["b", "a"]


async def test_a_key_is_never_worked_on_twice_at_once(queue: WorkQueue[str]) -> None:
    busy: set[str] = set()
    rounds = 0

    async def reconcile(key: str) -> None:
        nonlocal rounds
        assert key not in busy
        busy.add(key)
        rounds += 1
        if rounds < 10:
            queue.add(key)
        await asyncio.sleep(1)
        busy.discard(key)

    workers = [asyncio.create_task(queue.work(reconcile)) for _ in range(4)]
    queue.add("a")
    await asyncio.sleep(20)
    for worker in workers:
        assert not worker.done()
        worker.cancel()
    assert rounds == 10


async def test_of_two_delays_the_earlier_stands(queue: WorkQueue[str]) -> None:
    queue.add_after("a", 5)
    queue.add_after("a", 2)
    queue.add_after("a", 9)
    assert await queue.take() == "a"
    assert now() == pytest.approx(2)
    queue.done("a")
    await asyncio.sleep(20)
    assert not len(queue)


@pytest.mark.parametrize("seconds", [0, -1])
async def test_no_delay_is_at_once(queue: WorkQueue[str], seconds: float) -> None:
    queue.add_after("a", seconds)
    assert len(queue) == 1


async def test_retries_grow_are_capped_and_forgotten(queue: WorkQueue[str]) -> None:
    delays = []
    for _ in range(30):
        delays.append(queue.retry("a"))
        await queue.take()
        queue.done("a")
    assert 0.03 < delays[0] <= 0.05
    assert all(later > earlier for earlier, later in itertools.pairwise(delays[:10]))
    assert 0.7 * LONGEST_RETRY_SECONDS < delays[-1] <= LONGEST_RETRY_SECONDS
    queue.forget("a")
    assert queue.retry("a") <= 0.05


async def test_a_worker_retries_what_raises_and_resets_with_the_first_success(
    queue: WorkQueue[str],
) -> None:
    times: list[float] = []

    async def reconcile(key: str) -> float | None:
        times.append(now())
        if len(times) in (1, 2, 3, 5):
            raise RuntimeError(key)
        return 100.0 if len(times) == 4 else None

    worker = asyncio.create_task(queue.work(reconcile))
    queue.add("a")
    await asyncio.sleep(300)
    worker.cancel()
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(times) == 6
    assert gaps[0] < gaps[1] < gaps[2]
    assert gaps[3] == pytest.approx(100)
    assert gaps[4] <= 0.05


async def test_a_worker_that_is_cancelled_gives_its_key_back(queue: WorkQueue[str]) -> None:
    async def reconcile(key: str) -> None:
        queue.add(key)
        await asyncio.sleep(1000)

    worker = asyncio.create_task(queue.work(reconcile))
    queue.add("a")
    await asyncio.sleep(1)
    worker.cancel()
    await asyncio.wait([worker])
    assert await drained(queue) == ["a"]


async def test_a_waiting_worker_is_woken(queue: WorkQueue[str]) -> None:
    takers = [asyncio.create_task(queue.take()) for _ in range(2)]
    await asyncio.sleep(0)
    queue.add("a")
    queue.add("b")
    assert sorted([await taker for taker in takers]) == ["a", "b"]


async def test_after_closing_no_timer_adds() -> None:
    queue = WorkQueue[str]("test")
    queue.add_after("a", 1)
    queue.close()
    await asyncio.sleep(5)
    assert not len(queue)


async def test_lanes_take_turns_and_keep_their_own_order() -> None:
    queue: WorkQueue[str] = WorkQueue("test", lane_of=lambda key: key[0])
    for key in ("a1", "a2", "a3", "b1", "c1", "b2"):
        queue.add(key)
    assert len(queue) == 6
    assert [await queue.take() for _ in range(6)] == ["a1", "b1", "c1", "a2", "b2", "a3"]


async def test_a_lane_that_comes_back_stands_behind_the_others() -> None:
    queue: WorkQueue[str] = WorkQueue("test", lane_of=lambda key: key[0])
    queue.add("a1")
    queue.add("b1")
    assert await queue.take() == "a1"
    queue.add("a2")
    assert [await queue.take(), await queue.take()] == ["b1", "a2"]
    assert len(queue) == 0
