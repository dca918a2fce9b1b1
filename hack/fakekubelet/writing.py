"""Writes that a kubelet does not give up on, and what it remembers of the pods it writes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from fakekubelet.cache import TRANSIENT
from fakekubelet.client import JSON_PATCH, ApiError, Client
from fakekubelet.model import Pod
from fakekubelet.podstatus import Status

_log = logging.getLogger(__name__)
T = TypeVar("T")

_WRITE_RETRY_SECONDS = (0.1, 0.3, 1.0, 3.0)
# The object is gone or is another one: nothing left to do. 422 is a failed test of the uid.
_GONE = {404, 409, 422}


@dataclass
class Worker:
    """What the kubelet knows of one pod.

    Attributes:
        pod: The newest version seen.
        status: The last status written or seen; the watch may lag behind it.
        handler: The handler that its sandbox was made with.
        stopping: Whether its task is the one that takes it down.
        task: What is being done about it.
    """

    pod: Pod
    status: Status
    handler: str = ""
    stopping: bool = False
    task: asyncio.Task[None] | None = None


async def retry_until_answered(send: Callable[[], Awaitable[T]]) -> T | None:
    """Sends a request until it is answered; None if its object is gone."""
    for delay in (*_WRITE_RETRY_SECONDS, None):
        try:
            return await send()
        except ApiError as error:
            if error.status in _GONE:
                # Rare, and otherwise hard to tell from a status that the server finds invalid.
                _log.debug("given up: %s", error)
                if error.status == 422 and "test operation" not in error.body:
                    raise
                return None
            if delay is None or (error.status < 500 and error.status != 429):
                raise
        except TRANSIENT:
            if delay is None:
                raise
        await asyncio.sleep(delay)
    return None


async def write_pod(client: Client, worker: Worker, status: Status) -> None:
    """Writes a whole new status of a pod, and only of this pod."""
    worker.status = status
    patch = [
        # A pod of the same name may have taken its place.
        {"op": "test", "path": "/metadata/uid", "value": worker.pod.metadata.uid},
        {"op": "replace", "path": "/status", "value": status},
    ]
    path = f"{worker.pod.path}/status"
    await retry_until_answered(lambda: client.patch(path, patch, JSON_PATCH))
