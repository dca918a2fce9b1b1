"""Questions that are asked at once share a read, which is never older than any of them."""

import asyncio
from typing import Any

import pytest

from sandboxpool.claims.single_flight import SingleFlight


class Server:
    """Counts reads; each takes a moment, and fails while ``fails`` is set."""

    def __init__(self) -> None:
        self.value = False
        self.reads = 0
        self.fails = False

    async def read(self) -> bool:
        self.reads += 1
        seen = self.value
        await asyncio.sleep(1)
        if self.fails:
            raise OSError("no answer")
        return seen


@pytest.mark.asyncio(loop_scope="function")
@pytest.mark.looptime
async def test_concurrent_callers_share_a_read_and_later_ones_share_the_next() -> None:
    server, joint = Server(), SingleFlight()

    def do(question: str = "pool") -> asyncio.Task[bool]:
        return asyncio.create_task(joint.do(question, server.read))

    first = [do() for _ in range(5)]
    await asyncio.sleep(0.5)
    server.value = True
    later = [do() for _ in range(5)]
    other = do("another pool")
    assert await asyncio.gather(*first) == [False] * 5
    assert await asyncio.gather(*later) == [True] * 5, "no answer is older than its question"
    assert await other is True
    assert server.reads == 3
    assert await do() is True
    assert server.reads == 4, "nothing is remembered"


@pytest.mark.asyncio(loop_scope="function")
@pytest.mark.looptime
async def test_a_failure_reaches_all_callers_and_a_cancellation_only_its_own() -> None:
    server, joint = Server(), SingleFlight()
    impatient, patient = (asyncio.create_task(joint.do("pool", server.read)) for _ in range(2))
    await asyncio.sleep(0.1)
    impatient.cancel()
    assert await patient is False
    server.fails = True
    found: list[Any] = await asyncio.gather(
        *(joint.do("pool", server.read) for _ in range(3)), return_exceptions=True
    )
    assert [type(one) for one in found] == [OSError] * 3
    server.fails = False
    assert await joint.do("pool", server.read) is False, "the next caller causes a new request"
