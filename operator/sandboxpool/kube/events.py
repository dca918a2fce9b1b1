"""Posting Events: one for each transition, bounded, and never in the way of anything else."""

import asyncio
import datetime
import logging
import uuid
from collections import OrderedDict
from dataclasses import dataclass

from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.errors import ApiError, KubeError
from sandboxpool.references import Reference

logger = logging.getLogger(__name__)

MAX_QUEUED = 1000
REPEAT_SECONDS = 600.0
MAX_REMEMBERED = 4096
MAX_MESSAGE = 1024
# An event's name holds 253 characters, of which we add some to its object's.
MAX_NAME = 230
# client-go's spam filter lets a component post this many at once and this many a second.
BURST = 25
PER_SECOND = 5.0
# Events have a namespace even where their object has none; this is where kubectl looks for them.
NAMESPACE_OF_CLUSTER_SCOPED = "default"


@dataclass(frozen=True, slots=True)
class _Pending:
    about: Reference
    type: str
    reason: str
    message: str
    at: datetime.datetime


class EventRecorder:
    """Takes events at once, posts them in the background, drops them under pressure."""

    def __init__(self, client: ApiClient, component: str, instance: str) -> None:
        self._client = client
        self._component = component
        self._instance = instance
        self._queue: asyncio.Queue[_Pending] = asyncio.Queue(MAX_QUEUED)
        self._recent: OrderedDict[tuple[str, str, str], float] = OrderedDict()
        self.dropped = 0

    def normal(self, about: Reference, reason: str, message: str) -> None:
        """Say that something went as it should."""
        self._record(about, "Normal", reason, message)

    def warning(self, about: Reference, reason: str, message: str) -> None:
        """Say that something needs attention."""
        self._record(about, "Warning", reason, message)

    def _record(self, about: Reference, type_: str, reason: str, message: str) -> None:
        now = asyncio.get_running_loop().time()
        key = (about.uid, reason, message)
        last = self._recent.get(key)
        if last is not None and now - last < REPEAT_SECONDS:
            return
        self._recent[key] = now
        self._recent.move_to_end(key)
        if len(self._recent) > MAX_REMEMBERED:
            self._recent.popitem(last=False)
        at = datetime.datetime.now(datetime.UTC)
        try:
            self._queue.put_nowait(_Pending(about, type_, reason, message[:MAX_MESSAGE], at))
        except asyncio.QueueFull:
            self.dropped += 1

    async def run(self) -> None:
        """Post what was recorded, until cancelled."""
        tokens = float(BURST)
        loop = asyncio.get_running_loop()
        refilled = loop.time()
        while True:
            event = await self._queue.get()
            tokens = min(BURST, tokens + (loop.time() - refilled) * PER_SECOND)
            refilled = loop.time()
            if tokens < 1:
                await asyncio.sleep((1 - tokens) / PER_SECOND)
            tokens -= 1
            namespace = event.about.namespace or NAMESPACE_OF_CLUSTER_SCOPED
            try:
                await self._client.create(
                    resource_path("v1", "events", namespace), self._body(event, namespace)
                )
            except ApiError as error:
                if not error.namespace_terminating:
                    logger.warning("event %s was refused: %s", event.reason, error)
            except KubeError as error:
                logger.warning("event %s was not posted: %s", event.reason, error)

    def _body(self, event: _Pending, namespace: str) -> dict[str, object]:
        at = event.at.strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{event.about.name[:MAX_NAME].rstrip('-.')}.{uuid.uuid4().hex[:16]}",
                "namespace": namespace,
            },
            "involvedObject": {
                "apiVersion": event.about.api_version,
                "kind": event.about.kind,
                "namespace": event.about.namespace,
                "name": event.about.name,
                "uid": event.about.uid,
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message,
            "action": event.reason,
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "reportingInstance": self._instance,
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
        }
