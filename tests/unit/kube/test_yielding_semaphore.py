"""A slow holder keeps nobody waiting, and a place is given back once."""

import asyncio

from sandboxpool.kube.yielding_semaphore import SLOW_SECONDS, YieldingSemaphore
from support.simulation.clock import VirtualLoop


def test_no_more_than_the_limit_hold_a_place_at_once() -> None:
    slots, at_once, most = YieldingSemaphore(2), 0, 0

    async def work() -> None:
        nonlocal at_once, most
        async with slots.acquire():
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(0.5)
            at_once -= 1

    async def everybody() -> None:
        await asyncio.gather(*(work() for _ in range(7)))

    loop = VirtualLoop()
    loop.run_until_complete(everybody())
    assert most == 2
    assert loop.time() == 2.0
    loop.close()


def test_a_slow_holder_gives_its_place_to_the_next_once() -> None:
    slots, order = YieldingSemaphore(1), []

    async def work(name: str, seconds: float) -> None:
        async with slots.acquire():
            order.append((name, asyncio.get_running_loop().time()))
            await asyncio.sleep(seconds)

    async def everybody() -> None:
        await asyncio.gather(work("slow", 30.0), work("second", 0.5), work("third", 0.5))

    loop = VirtualLoop()
    loop.run_until_complete(everybody())
    assert order == [("slow", 0.0), ("second", SLOW_SECONDS), ("third", SLOW_SECONDS + 0.5)]
    loop.close()


def test_a_holder_that_fails_gives_its_place_back() -> None:
    slots = YieldingSemaphore(1)

    async def fail() -> None:
        async with slots.acquire():
            raise LookupError

    async def everybody() -> None:
        results = await asyncio.gather(fail(), fail(), return_exceptions=True)
        assert all(isinstance(result, LookupError) for result in results)

    loop = VirtualLoop()
    loop.run_until_complete(everybody())
    loop.close()
