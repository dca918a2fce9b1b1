"""Reads the events of single pods in the background, with a rate limit.

The API server has no watch cache for events: for each read it scans all events of a namespace. So
all pools together make at most ``QPS`` reads a second. Namespaces take turns, and so do the pools
within each, so that many failing pods of one do not delay another's. A read that times out is not
retried; the pod's next stage enqueues another.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from sandboxpool.api.core import Event, Pod
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.errors import UNREADABLE, ApiError, KubeError
from sandboxpool.runtimes.diagnosis import truncate
from sandboxpool.runtimes.podevents import PodEvents, read

logger = logging.getLogger(__name__)

QPS = 5.0
BURST = 10
AT_ONCE = 4
READ_TIMEOUT_SECONDS = 10.0
# A kubelet emits at most 25 events for each pod, and a few other components emit some.
MAX_EVENTS = 100
# Decisions wait this long for a read that is enqueued.
MAX_PENDING_SECONDS = 60.0
MAX_WAITING_OF_POOL = 50
MAX_WAITING = 2000
MAX_KNOWN = 5000
_MAX_PROBLEM = 200


class _Events(msgspec.Struct):
    items: list[Event] = []


@dataclass
class _TrackedPod:
    """One pod whose events are or were read.

    Attributes:
        stages: the stages for which a read was enqueued.
        enqueued_at: when the pending read was enqueued, in seconds of the event loop's clock; None
            if no read is pending.
        result: the result of the last read.
    """

    pod: Pod
    stages: set[str] = field(default_factory=set)
    enqueued_at: float | None = None
    result: PodEvents | None = None


class PodEventReader:
    """Reads the events of pods, and keeps the results until a pod is forgotten.

    Args:
        client: the API client.
        on_result: called with each pod whose events were read.
    """

    def __init__(self, client: ApiClient, on_result: Callable[[Pod], None]) -> None:
        self._client = client
        self._on_result = on_result
        # By namespace and uid, in the order of their first reads.
        self._known: dict[str, OrderedDict[str, _TrackedPod]] = {}
        self._size = 0
        # By namespace and pool, in the order of their turns.
        self._queues: OrderedDict[str, OrderedDict[str, deque[_TrackedPod]]] = OrderedDict()
        self._waiting_count = 0
        self._woken = asyncio.Event()

    def events_of(self, pod: Pod) -> PodEvents | None:
        """The result of the last read of the pod's events; None if they were not read."""
        known = self._find(pod)
        return known.result if known is not None else None

    def is_reading(self, pod: Pod) -> bool:
        """Whether a read is pending that a decision should wait for."""
        known = self._find(pod)
        if known is None or known.enqueued_at is None:
            return False
        return asyncio.get_running_loop().time() - known.enqueued_at < MAX_PENDING_SECONDS

    def enqueue(self, pod: Pod, queue: str, stage: str) -> None:
        """Enqueue a read of a pod's events, once for each stage, unless the queue is full.

        Args:
            pod: the current pod.
            queue: the key of the queue, such as the uid of the pod's pool.
            stage: any name of a stage of the pod's failure.
        """
        known = self._find(pod)
        if known is not None and (stage in known.stages or known.enqueued_at is not None):
            return
        namespace = pod.metadata.namespace
        queues = self._queues.setdefault(namespace, OrderedDict())
        waiting = queues.setdefault(queue, deque())
        if len(waiting) >= MAX_WAITING_OF_POOL:
            return
        if known is None:
            known = self._track(pod)
        known.stages.add(stage)
        known.enqueued_at = asyncio.get_running_loop().time()
        waiting.append(known)
        self._waiting_count += 1
        if self._waiting_count > MAX_WAITING:
            self._drop_last_of_longest_queue()
        self._woken.set()

    def forget(self, pod: Pod) -> None:
        """Forget a pod that is deleted, or is ready and has nothing to explain."""
        known = self._find(pod)
        if known is not None:
            # A queued read is skipped in its turn.
            self._drop(pod.metadata.namespace, pod.metadata.uid)

    async def run(self) -> None:
        """Read until cancelled."""
        slots = asyncio.Semaphore(AT_ONCE)
        loop = asyncio.get_running_loop()
        tokens, filled_at = float(BURST), loop.time()
        async with asyncio.TaskGroup() as reads:
            while True:
                self._woken.clear()
                known = self._next()
                if known is None:
                    await self._woken.wait()
                    continue
                await slots.acquire()
                now = loop.time()
                tokens = min(float(BURST), tokens + (now - filled_at) * QPS)
                filled_at = now
                if tokens < 1.0:
                    await asyncio.sleep((1.0 - tokens) / QPS)
                    tokens, filled_at = 1.0, loop.time()
                tokens -= 1.0
                task = reads.create_task(self._read(known))
                task.add_done_callback(lambda _: slots.release())

    # --- Reading ---------------------------------------------------------------------------------

    async def _read(self, known: _TrackedPod) -> None:
        pod = known.pod
        path = resource_path("v1", "events", pod.metadata.namespace)
        fields = {"involvedObject.uid": pod.metadata.uid, "involvedObject.name": pod.metadata.name}
        params = {
            "fieldSelector": ",".join(f"{name}={value}" for name, value in fields.items()),
            "limit": str(MAX_EVENTS),
        }
        try:
            async with asyncio.timeout(READ_TIMEOUT_SECONDS):
                body = await self._client.get(path, params)
            result = read(pod, msgspec.json.decode(body, type=_Events).items)
        except asyncio.CancelledError:
            known.enqueued_at = None
            raise
        except TimeoutError:
            result = PodEvents(
                problem=f"the API server did not answer within {READ_TIMEOUT_SECONDS:.0f} s"
            )
        except (KubeError, *UNREADABLE) as error:
            text = error.message if isinstance(error, ApiError) else str(error)
            result = PodEvents(problem=truncate(text, _MAX_PROBLEM))
        if result.problem:
            text = "cannot read the events of pod %s/%s: %s"
            logger.warning(text, pod.metadata.namespace, pod.metadata.name, result.problem)
        if self._find(pod) is known:
            known.result, known.enqueued_at = result, None
            self._on_result(pod)

    def _next(self) -> _TrackedPod | None:
        """The next pod, by namespaces in turn and within each by queues in turn."""
        while self._queues:
            namespace, queues = self._queues.popitem(last=False)
            queue, waiting = queues.popitem(last=False)
            known = waiting.popleft() if waiting else None
            if waiting:
                queues[queue] = waiting
            if queues:
                self._queues[namespace] = queues
            if known is not None:
                self._waiting_count -= 1
                if self._find(known.pod) is known:
                    return known
        return None

    def _drop_last_of_longest_queue(self) -> None:
        """Drop the last read of the longest queue in the namespace with the most queued reads."""
        queues = max(self._queues.values(), key=lambda some: sum(map(len, some.values())))
        longest = max(queues.values(), key=len)
        known = longest.pop()
        self._waiting_count -= 1
        if self._find(known.pod) is known and known.result is None:
            self._drop(known.pod.metadata.namespace, known.pod.metadata.uid)
        known.enqueued_at = None

    # --- Tracked pods ----------------------------------------------------------------------------

    def _find(self, pod: Pod) -> _TrackedPod | None:
        of_namespace = self._known.get(pod.metadata.namespace)
        return of_namespace.get(pod.metadata.uid) if of_namespace is not None else None

    def _track(self, pod: Pod) -> _TrackedPod:
        known = _TrackedPod(pod)
        of_namespace = self._known.setdefault(pod.metadata.namespace, OrderedDict())
        of_namespace[pod.metadata.uid] = known
        self._size += 1
        if self._size > MAX_KNOWN:
            most = max(self._known, key=lambda name: len(self._known[name]))
            self._drop(most, next(iter(self._known[most])))
        return known

    def _drop(self, namespace: str, uid: str) -> None:
        del self._known[namespace][uid]
        self._size -= 1
        if not self._known[namespace]:
            del self._known[namespace]
