"""Restarts components of a process that end or fail."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

logger = logging.getLogger(__name__)

# A component that fails is restarted with a backoff, which is reset after it has run for a while.
FIRST_RESTART_SECONDS = 1.0
LONGEST_RESTART_SECONDS = 60.0
RESTART_RESET_SECONDS = 300.0


async def supervise(
    name: str,
    component: Callable[[], Coroutine[Any, Any, None]],
    *,
    on_restart: Callable[[str], object],
    expected: tuple[type[Exception], ...] = (),
) -> None:
    """Run a component until cancelled; restart it whenever it ends or fails.

    No response of the API server, and no object of a tenant, may end the process.

    Args:
        name: the component's name, for logs.
        component: starts the component.
        on_restart: called with the name before each restart.
        expected: exceptions whose message is the cause; of others the traceback is logged.
    """
    loop = asyncio.get_running_loop()
    pause = FIRST_RESTART_SECONDS
    while True:
        began, cause = loop.time(), "it has ended"
        try:
            await component()
        except expected as error:
            cause = str(error)
        except Exception as error:
            logger.exception("%s failed", name)
            cause = repr(error)
        if loop.time() - began >= RESTART_RESET_SECONDS:
            pause = FIRST_RESTART_SECONDS
        logger.warning("%s: %s; it is restarted in %.0f s", name, cause, pause)
        on_restart(name)
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_RESTART_SECONDS)
