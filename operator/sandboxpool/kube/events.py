"""Posts Events in the background, rate-limited and in a bounded queue.

Anyone who can create an object that fails can cause more events than may be posted. Events with the
lowest rank are posted first, and within a rank namespaces take turns. A namespace with many events
therefore waits longest for them, and loses its latest ones when the queue is full.
"""

import asyncio
import datetime
import logging
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.errors import ApiError, KubeError
from sandboxpool.util.references import ObjectReference

logger = logging.getLogger(__name__)

MAX_QUEUED = 1000
REPEAT_SECONDS = 600.0
MAX_REMEMBERED = 4096
MAX_MESSAGE = 1024
# An event's name has at most 253 characters: the object's name and a suffix.
MAX_NAME = 230
# Events per second, after an initial burst.
BURST = 25
PER_SECOND = 5.0
# Events of cluster-scoped objects need a namespace; kubectl looks for them in this one.
NAMESPACE_OF_CLUSTER_SCOPED = "default"


@dataclass(frozen=True, slots=True)
class _Pending:
    regarding: ObjectReference
    type: str
    reason: str
    message: str
    at: datetime.datetime
    rank: int

    @property
    def key(self) -> tuple[str, str, str]:
        """Events with the same key are not posted again for a while."""
        return self.regarding.uid, self.reason, self.message


class _Queue:
    """Queued events: the lowest rank first, and within a rank the namespaces in turn."""

    def __init__(self) -> None:
        self._ranks: dict[int, OrderedDict[str, deque[_Pending]]] = {}
        self._length = 0
        self._filled = asyncio.Event()

    def empty(self) -> bool:
        """Whether no event is queued."""
        return not self._length

    def put(self, event: _Pending) -> _Pending | None:
        """Add an event; return the one that was dropped for it, if any, perhaps this one."""
        namespaces = self._ranks.setdefault(event.rank, OrderedDict())
        namespaces.setdefault(event.regarding.namespace, deque()).append(event)
        self._length += 1
        self._filled.set()
        return self._drop() if self._length > MAX_QUEUED else None

    def _drop(self) -> _Pending:
        namespaces = self._ranks[max(self._ranks)]
        namespace = max(namespaces, key=lambda name: len(namespaces[name]))
        return self._remove(max(self._ranks), namespace, -1)

    def _remove(self, rank: int, namespace: str, index: int) -> _Pending:
        namespaces = self._ranks[rank]
        events = namespaces[namespace]
        event = events[index]
        del events[index]
        self._length -= 1
        if not events:
            del namespaces[namespace]
        if not namespaces:
            del self._ranks[rank]
        return event

    def get_nowait(self) -> _Pending:
        """Remove and return the next event; the queue must not be empty."""
        rank = min(self._ranks)
        namespaces = self._ranks[rank]
        namespace = next(iter(namespaces))
        namespaces.move_to_end(namespace)
        return self._remove(rank, namespace, 0)

    async def wait(self) -> None:
        """Wait until an event is queued."""
        while self.empty():
            self._filled.clear()
            await self._filled.wait()


class EventRecorder:
    """Records events without blocking, posts them in the background, drops some on overload.

    Args:
        client: the API client.
        component: the reporting component.
        instance: the reporting instance.
        rank: returns the rank of events about an object; the lowest are posted first.
        cluster_scoped: whether to post events about cluster-scoped objects.
        on_drop: called for each event that is dropped.
        wall: seconds since the epoch.
    """

    def __init__(
        self,
        client: ApiClient,
        component: str,
        instance: str,
        *,
        rank: Callable[[ObjectReference], int] = lambda regarding: 0,
        cluster_scoped: bool = True,
        on_drop: Callable[[], None] = lambda: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._component = component
        self._instance = instance
        self._rank = rank
        self._cluster_scoped = cluster_scoped
        self._on_drop = on_drop
        self._wall = wall
        self._queue = _Queue()
        self._recent: OrderedDict[tuple[str, str, str], float] = OrderedDict()

    def normal(self, regarding: ObjectReference, reason: str, message: str) -> None:
        """Record an event of type Normal."""
        self._record(regarding, "Normal", reason, message)

    def warning(self, regarding: ObjectReference, reason: str, message: str) -> None:
        """Record an event of type Warning."""
        self._record(regarding, "Warning", reason, message)

    def _record(self, regarding: ObjectReference, type_: str, reason: str, message: str) -> None:
        if not (regarding.namespace or self._cluster_scoped):
            return
        now = asyncio.get_running_loop().time()
        at = datetime.datetime.fromtimestamp(self._wall(), datetime.UTC)
        event = _Pending(regarding, type_, reason, message[:MAX_MESSAGE], at, self._rank(regarding))
        last = self._recent.get(event.key)
        if last is not None and now - last < REPEAT_SECONDS:
            return
        self._recent[event.key] = now
        self._recent.move_to_end(event.key)
        if len(self._recent) > MAX_REMEMBERED:
            self._recent.popitem(last=False)
        dropped = self._queue.put(event)
        if dropped is not None:
            # Not posted, so it may be recorded again.
            self._recent.pop(dropped.key, None)
            self._on_drop()

    async def run(self) -> None:
        """Post the recorded events until cancelled."""
        tokens = float(BURST)
        loop = asyncio.get_running_loop()
        refilled = loop.time()
        while True:
            await self._queue.wait()
            tokens = min(BURST, tokens + (loop.time() - refilled) * PER_SECOND)
            refilled = loop.time()
            if tokens < 1:
                await asyncio.sleep((1 - tokens) / PER_SECOND)
            tokens -= 1
            # Taken only now, after the wait: an event with a lower rank may have been recorded.
            event = self._queue.get_nowait()
            namespace = event.regarding.namespace or NAMESPACE_OF_CLUSTER_SCOPED
            try:
                await self._client.create(
                    resource_path("v1", "events", namespace), self._body(event, namespace)
                )
            except ApiError as error:
                if not error.namespace_terminating:
                    logger.warning("event %s was rejected: %s", event.reason, error)
            except KubeError as error:
                logger.warning("event %s was not posted: %s", event.reason, error)

    def _body(self, event: _Pending, namespace: str) -> dict[str, object]:
        at = event.at.strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{event.regarding.name[:MAX_NAME].rstrip('-.')}.{uuid.uuid4().hex[:16]}",
                "namespace": namespace,
            },
            "involvedObject": {
                "apiVersion": event.regarding.api_version,
                "kind": event.regarding.kind,
                "namespace": event.regarding.namespace,
                "name": event.regarding.name,
                "uid": event.regarding.uid,
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
