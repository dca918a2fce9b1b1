"""The work queue, in virtual time."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator

import pytest

from sandboxpool.kube.workqueue import (
    LONGEST_RETRY_SECONDS,
    SLOW_AT_ONCE,
    SLOW_MEMORY_SECONDS,
    SLOW_PER_LANE,
    WorkQueue,
)
from sandboxpool.kube.yielding_semaphore import SLOW_SECONDS

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
        key = await queue.get()
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
    assert await queue.get() == "a"
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

    worker = asyncio.create_task(queue.run(reconcile))
    queue.add("a")
    await asyncio.sleep(20)
    assert not worker.done()
    worker.cancel()
    assert rounds == 10


async def test_of_two_delays_the_earlier_stands(queue: WorkQueue[str]) -> None:
    queue.add_after("a", 5)
    queue.add_after("a", 2)
    queue.add_after("a", 9)
    assert await queue.get() == "a"
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
        delays.append(queue.add_rate_limited("a"))
        await queue.get()
        queue.done("a")
    assert 0.03 < delays[0] <= 0.05
    assert all(later > earlier for earlier, later in itertools.pairwise(delays[:10]))
    assert 0.7 * LONGEST_RETRY_SECONDS < delays[-1] <= LONGEST_RETRY_SECONDS
    queue.forget("a")
    assert queue.add_rate_limited("a") <= 0.05


async def test_a_worker_retries_what_raises_and_resets_with_the_first_success(
    queue: WorkQueue[str],
) -> None:
    times: list[float] = []

    async def reconcile(key: str) -> float | None:
        times.append(now())
        if len(times) in (1, 2, 3, 5):
            raise RuntimeError(key)
        return 100.0 if len(times) == 4 else None

    worker = asyncio.create_task(queue.run(reconcile))
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

    worker = asyncio.create_task(queue.run(reconcile))
    queue.add("a")
    await asyncio.sleep(1)
    worker.cancel()
    await asyncio.wait([worker])
    assert await drained(queue) == ["a"]


async def test_a_waiting_worker_is_woken(queue: WorkQueue[str]) -> None:
    takers = [asyncio.create_task(queue.get()) for _ in range(2)]
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
    assert [await queue.get() for _ in range(6)] == ["a1", "b1", "c1", "a2", "b2", "a3"]


async def test_a_lane_that_comes_back_stands_behind_the_others() -> None:
    queue: WorkQueue[str] = WorkQueue("test", lane_of=lambda key: key[0])
    queue.add("a1")
    queue.add("b1")
    assert await queue.get() == "a1"
    queue.add("a2")
    assert [await queue.get(), await queue.get()] == ["b1", "a2"]
    assert len(queue) == 0


class Bench:
    """Works on keys for as long as it is told, and keeps count."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.began: list[tuple[str, float]] = []
        self.at_once: dict[str, int] = {}
        self.most: dict[str, int] = {}

    async def reconcile(self, key: str) -> None:
        lane = key[0]
        self.began.append((key, now()))
        self.at_once[lane] = self.at_once.get(lane, 0) + 1
        self.most[lane] = max(self.most.get(lane, 0), self.at_once[lane])
        try:
            await asyncio.sleep(self.seconds.get(lane, 0.01))
        finally:
            self.at_once[lane] -= 1

    def waited_for(self, key: str, since: float) -> float:
        return next(at for k, at in self.began if k == key and at >= since) - since


async def test_no_more_keys_than_there_are_places_are_worked_on_at_once() -> None:
    queue: WorkQueue[str] = WorkQueue("test", max_concurrent=3)
    bench = Bench({"a": 0.5})
    worker = asyncio.create_task(queue.run(bench.reconcile))
    for i in range(7):
        queue.add(f"a{i}")
    await asyncio.sleep(10)
    worker.cancel()
    assert bench.most == {"a": 3}
    assert bench.waited_for("a6", 0.0) == pytest.approx(1.0)


async def test_a_slow_lane_keeps_no_place_and_few_of_its_keys_are_worked_on() -> None:
    queue: WorkQueue[str] = WorkQueue("test", lane_of=lambda key: key[0], max_concurrent=4)
    bench = Bench({"s": 10.0})
    worker = asyncio.create_task(queue.run(bench.reconcile))
    for i in range(20):
        queue.add(f"s{i}")
    await asyncio.sleep(0.5)
    queue.add("q0")
    await asyncio.sleep(20)
    assert bench.waited_for("q0", 0.5) == pytest.approx(SLOW_SECONDS - 0.5)
    bench.most.clear()
    for i in range(20):
        began = now()
        queue.add(f"q{i}")
        await asyncio.sleep(1)
        assert bench.waited_for(f"q{i}", began) == 0
    assert bench.most["s"] == SLOW_PER_LANE
    worker.cancel()


async def test_slow_lanes_together_are_bounded_and_hold_up_no_quick_one() -> None:
    queue: WorkQueue[str] = WorkQueue("test", max_concurrent=4)
    busy = most = 0

    async def reconcile(key: str) -> float | None:
        nonlocal busy, most
        if key == "quick":
            return None
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(10)
        busy -= 1
        return 0.1

    worker = asyncio.create_task(queue.run(reconcile))
    for i in range(3 * SLOW_AT_ONCE):
        queue.add(f"slow-{i}")
    # Until all are known as slow: four a second.
    await asyncio.sleep(3 * SLOW_AT_ONCE)
    most = 0
    for _ in range(20):
        queue.add("quick")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert "quick" not in queue._added_at
        await asyncio.sleep(1)
    worker.cancel()
    assert most == SLOW_AT_ONCE


async def test_a_lane_that_is_quick_again_gets_all_places_again() -> None:
    queue: WorkQueue[str] = WorkQueue("test", lane_of=lambda key: key[0], max_concurrent=4)
    bench = Bench({"s": 10.0})
    worker = asyncio.create_task(queue.run(bench.reconcile))
    queue.add("s0")
    await asyncio.sleep(10)
    bench.seconds["s"] = 0.5
    await asyncio.sleep(SLOW_MEMORY_SECONDS)
    for i in range(8):
        queue.add(f"s{i}")
    await asyncio.sleep(5)
    worker.cancel()
    assert bench.most == {"s": 4}


async def test_keys_of_a_slow_lane_that_wait_are_quick_in_the_end() -> None:
    queue: WorkQueue[str] = WorkQueue("test", lane_of=lambda key: key[0], max_concurrent=1)
    queue.add("a0")
    assert await queue.get() == "a0"
    await asyncio.sleep(2 * SLOW_SECONDS)
    queue.done("a0")
    for i in range(SLOW_PER_LANE + 1):
        queue.add(f"a{i}")
    taken = [await queue.get() for _ in range(SLOW_PER_LANE)]
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0.5 * SLOW_SECONDS)
    assert not waiting.done()
    queue.done(taken[0])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert waiting.done()


async def test_a_slow_key_that_fails_is_tried_again() -> None:
    queue: WorkQueue[str] = WorkQueue("test", max_concurrent=1)
    times: list[float] = []

    async def reconcile(key: str) -> None:
        times.append(now())
        await asyncio.sleep(10)
        raise RuntimeError(key)

    worker = asyncio.create_task(queue.run(reconcile))
    queue.add("a")
    await asyncio.sleep(35)
    worker.cancel()
    assert [round(at) for at in times] == [0, 10, 20, 30]


async def test_whatever_is_added_is_worked_on_and_nothing_is_kept() -> None:
    chance = random.Random(1)
    queue: WorkQueue[str] = WorkQueue("test", lane_of=lambda key: key[0], max_concurrent=3)
    added: dict[str, float] = {}
    done: dict[str, float] = {}
    busy: set[str] = set()

    async def reconcile(key: str) -> float | None:
        assert key not in busy
        busy.add(key)
        done[key] = now()
        try:
            await asyncio.sleep(chance.choice((0.0, 0.1, 0.5, 3.0, 10.0)))
        finally:
            busy.discard(key)
        if chance.random() < 0.2:
            raise RuntimeError(key)
        return chance.choice((None, None, None, 0.5))

    worker = asyncio.create_task(queue.run(reconcile))
    for _ in range(2000):
        key = chance.choice("abcdefgh") + chance.choice("0123456789")
        added[key] = now()
        queue.add(key)
        if chance.random() < 0.1:
            queue.drop(chance.choice(list(added)))
        await asyncio.sleep(chance.choice((0.0, 0.05, 0.5)))
    await asyncio.sleep(3000)
    assert not worker.done()
    worker.cancel()
    assert all(done[key] >= at for key, at in added.items())
    for kept in (
        "_waiting",
        "_quick",
        "_slow",
        "_processing",
        "_processing_in",
        "_added_at",
        "_dirty",
    ):
        assert not getattr(queue, kept), kept
    assert not queue._timers
    assert not queue._failures
    assert queue._with_place == 0
    assert len(queue._slow_at) <= 8


async def test_of_a_dropped_key_nothing_is_remembered(queue: WorkQueue[str]) -> None:
    queue.add_after("a", 86_400)
    for _ in range(5):
        queue.add_rate_limited("b")
    queue.drop("a")
    queue.drop("b")
    await asyncio.sleep(100_000)
    assert not len(queue)
    assert queue.add_rate_limited("b") <= 0.05


async def test_a_key_dropped_during_the_work_on_it_is_due_no_more(queue: WorkQueue[str]) -> None:
    rounds = 0

    async def reconcile(key: str) -> float:
        nonlocal rounds
        del key
        rounds += 1
        await asyncio.sleep(0.5)
        return 100.0

    worker = asyncio.create_task(queue.run(reconcile))
    queue.add("a")
    await asyncio.sleep(0.1)
    queue.drop("a")
    await asyncio.sleep(1000)
    assert rounds == 1
    queue.add("a")
    await asyncio.sleep(250)
    worker.cancel()
    assert rounds == 4


async def test_a_key_that_comes_back_after_it_was_dropped_is_worked_on(
    queue: WorkQueue[str],
) -> None:
    queue.add("a")
    assert await queue.get() == "a"
    queue.drop("a")
    queue.add("a")
    queue.done("a")
    assert await drained(queue) == ["a"]
