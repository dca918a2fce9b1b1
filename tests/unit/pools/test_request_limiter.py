"""A pool that is answered slowly costs the others nothing, and itself little."""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from sandboxpool.pools.request_limiter import QUICK_AT_ONCE, SLOW_AT_ONCE, SLOW_EACH, RequestLimiter
from support.simulation.clock import VirtualLoop

LIMIT = 4


class Sender:
    """Sends requests, and counts how many are under way."""

    def __init__(self) -> None:
        self.lanes = RequestLimiter(LIMIT)
        self.under_way: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.most_at_once = 0

    async def send(self, pool: str, seconds: float) -> float:
        """Send one; return how long it waited for its turn."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with self.lanes.take(pool):
            waited = loop.time() - began
            self.under_way[pool] += 1
            self.most[pool] = max(self.most[pool], self.under_way[pool])
            self.most_at_once = max(self.most_at_once, self.under_way.total())
            await asyncio.sleep(seconds)
            self.under_way[pool] -= 1
            return waited


def run(main: Coroutine[Any, Any, None]) -> None:
    loop = VirtualLoop()
    loop.run_until_complete(main)
    loop.close()


def test_quick_pools_share_the_places() -> None:
    sender = Sender()

    async def main() -> None:
        await asyncio.gather(*(sender.send(f"pool-{n}", 0.1) for n in range(50)))

    run(main())
    assert sender.most_at_once == LIMIT


def test_slow_pools_have_a_lane_of_their_own_and_no_more_than_their_part() -> None:
    sender = Sender()

    async def main() -> None:
        await asyncio.gather(*(sender.send(f"slow-{n}", 10.0) for n in range(100)))
        sender.most_at_once = 0
        slow = [
            asyncio.ensure_future(sender.send(f"slow-{n}", 10.0))
            for n in range(100)
            for _ in range(6)
        ]
        await asyncio.sleep(1)
        assert await sender.send("quick", 0.1) == 0
        assert sender.most_at_once == SLOW_AT_ONCE + 1
        assert max(sender.most.values()) <= SLOW_EACH
        for task in slow:
            task.cancel()

    run(main())


def test_pools_that_turn_out_to_be_slow_at_once_are_bounded_too() -> None:
    sender = Sender()

    async def main() -> None:
        await asyncio.gather(*(sender.send(f"slow-{n}", 60.0) for n in range(60)))

    run(main())
    assert sender.most_at_once == QUICK_AT_ONCE


def test_what_waited_while_its_pool_was_found_slow_waits_apart() -> None:
    sender = Sender()

    async def main() -> None:
        many = [asyncio.ensure_future(sender.send("slow", 30.0)) for _ in range(20)]
        await asyncio.sleep(2)
        assert await sender.send("quick", 0.1) == 0
        await asyncio.gather(*many)

    run(main())
    assert sender.most["slow"] <= LIMIT + SLOW_EACH


def test_a_pool_that_is_quick_again_is_like_the_others() -> None:
    sender = Sender()

    async def main() -> None:
        await sender.send("pool", 5.0)
        assert "pool" in sender.lanes._lanes
        await sender.send("pool", 0.1)
        assert not sender.lanes._lanes

    run(main())
