"""One read that answers all who asked for it before it began."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable


class SingleFlight:
    """Has those who ask the same question at once share an answer.

    An answer is never older than the question: whoever asks while a read is under way waits for the
    next one, together with all others who do.
    """

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[bool]] = {}
        self._next: dict[Hashable, asyncio.Task[bool]] = {}

    async def do(self, question: Hashable, read: Callable[[], Awaitable[bool]]) -> bool:
        """Answer a question.

        Raises:
            Exception: whatever the read raises, to all who share it.
        """
        task = self._next.get(question)
        if task is None:
            task = asyncio.create_task(self._read(question, read))
            self._next[question] = task
        # Whoever gives up takes the answer from nobody else.
        return await asyncio.shield(task)

    async def _read(self, question: Hashable, read: Callable[[], Awaitable[bool]]) -> bool:
        while (running := self._running.get(question)) is not None:
            await asyncio.wait({running})
        task = self._running[question] = self._next.pop(question)
        try:
            return await read()
        finally:
            if self._running.get(question) is task:
                del self._running[question]
