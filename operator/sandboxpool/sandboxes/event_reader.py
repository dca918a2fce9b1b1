"""Reads the events of single pods, beside all other work and within limits.

Events have no watch cache: each look makes the API server walk over all events of a namespace. So
there are at most ``PER_SECOND`` looks a second, for all pools together. Namespaces take turns, and
within each its pools do: however many pods of one fail, another's waits for no more than its turn.
A look that is not answered in time is given up; the next stage of the pod's trouble brings another.
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
# A kubelet has a budget of 25 events for each pod, and a few others speak of it too.
MAX_EVENTS = 100
# What waits for longer is not waited for: a pod is given up without a word of its events.
MAX_PENDING_SECONDS = 60.0
MAX_WAITING_OF_POOL = 50
MAX_WAITING = 2000
MAX_KNOWN = 5000
_MAX_PROBLEM = 200


class _Events(msgspec.Struct):
    items: list[Event] = []


@dataclass
class _TrackedPod:
    """One pod: what was asked for, and what is known.

    Attributes:
        stages: those for which its events were asked for.
        asked_at: seconds of the event loop's clock since when an answer is due; None if none is.
        told: the last answer.
    """

    pod: Pod
    stages: set[str] = field(default_factory=set)
    asked_at: float | None = None
    result: PodEvents | None = None


class PodEventReader:
    """Asks for the events of pods, and remembers what was told until a pod is forgotten.

    Args:
        client: the API client.
        on_result: told of each pod of which more is known now.
    """

    def __init__(self, client: ApiClient, on_result: Callable[[Pod], None]) -> None:
        self._client = client
        self._on_told = on_result
        # By namespace and uid, those of which was asked longest ago first.
        self._known: dict[str, OrderedDict[str, _TrackedPod]] = {}
        self._size = 0
        # By namespace and pool, in the order of their turns.
        self._queues: OrderedDict[str, OrderedDict[str, deque[_TrackedPod]]] = OrderedDict()
        self._waiting_count = 0
        self._woken = asyncio.Event()

    def events_of(self, pod: Pod) -> PodEvents | None:
        """What the pod's events said when they were read last; None if they were not."""
        known = self._find(pod)
        return known.result if known is not None else None

    def is_reading(self, pod: Pod) -> bool:
        """Whether an answer is under way that is worth waiting for."""
        known = self._find(pod)
        if known is None or known.asked_at is None:
            return False
        return asyncio.get_running_loop().time() - known.asked_at < MAX_PENDING_SECONDS

    def enqueue(self, pod: Pod, line: str, stage: str) -> None:
        """Have a pod's events read, once for each stage, unless too many of its pool wait.

        Args:
            pod: the pod as it is now.
            line: what it shares its turn with, such as the uid of its pool.
            stage: of its trouble; any word.
        """
        known = self._find(pod)
        if known is not None and (stage in known.stages or known.asked_at is not None):
            return
        namespace = pod.metadata.namespace
        lines = self._queues.setdefault(namespace, OrderedDict())
        waiting = lines.setdefault(line, deque())
        if len(waiting) >= MAX_WAITING_OF_POOL:
            return
        if known is None:
            known = self._remember(pod)
        known.stages.add(stage)
        known.asked_at = asyncio.get_running_loop().time()
        waiting.append(known)
        self._waiting_count += 1
        if self._waiting_count > MAX_WAITING:
            self._turn_away()
        self._woken.set()

    def forget(self, pod: Pod) -> None:
        """The pod is gone, or is ready and has nothing to be asked about."""
        known = self._find(pod)
        if known is not None:
            # If it waits it is skipped when its turn comes.
            self._drop(pod.metadata.namespace, pod.metadata.uid)

    async def run(self) -> None:
        """Read until cancelled."""
        places = asyncio.Semaphore(AT_ONCE)
        loop = asyncio.get_running_loop()
        tokens, filled_at = float(BURST), loop.time()
        async with asyncio.TaskGroup() as looks:
            while True:
                self._woken.clear()
                known = self._next()
                if known is None:
                    await self._woken.wait()
                    continue
                await places.acquire()
                now = loop.time()
                tokens = min(float(BURST), tokens + (now - filled_at) * QPS)
                filled_at = now
                if tokens < 1.0:
                    await asyncio.sleep((1.0 - tokens) / QPS)
                    tokens, filled_at = 1.0, loop.time()
                tokens -= 1.0
                task = looks.create_task(self._look(known))
                task.add_done_callback(lambda _: places.release())

    # --- One look --------------------------------------------------------------------------------

    async def _look(self, known: _TrackedPod) -> None:
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
            told = read(pod, msgspec.json.decode(body, type=_Events).items)
        except asyncio.CancelledError:
            known.asked_at = None
            raise
        except TimeoutError:
            told = PodEvents(
                problem=f"the API server did not answer within {READ_TIMEOUT_SECONDS:.0f} s"
            )
        except (KubeError, *UNREADABLE) as error:
            text = error.message if isinstance(error, ApiError) else str(error)
            told = PodEvents(problem=truncate(text, _MAX_PROBLEM))
        if told.problem:
            logger.warning("events of pod %s: %s", pod.metadata.name, told.problem)
        if self._find(pod) is known:
            known.result, known.asked_at = told, None
            self._on_told(pod)

    def _next(self) -> _TrackedPod | None:
        """Whose turn it is: the next namespace's, and there the next pool's."""
        while self._queues:
            namespace, lines = self._queues.popitem(last=False)
            line, waiting = lines.popitem(last=False)
            known = waiting.popleft() if waiting else None
            if waiting:
                lines[line] = waiting
            if lines:
                self._queues[namespace] = lines
            if known is not None:
                self._waiting_count -= 1
                if self._find(known.pod) is known:
                    return known
        return None

    def _turn_away(self) -> None:
        """Too many wait: the last of the longest line of all does not."""
        lines = max(self._queues.values(), key=lambda some: sum(map(len, some.values())))
        longest = max(lines.values(), key=len)
        known = longest.pop()
        self._waiting_count -= 1
        if self._find(known.pod) is known and known.result is None:
            self._drop(known.pod.metadata.namespace, known.pod.metadata.uid)
        known.asked_at = None

    # --- What is known ---------------------------------------------------------------------------

    def _find(self, pod: Pod) -> _TrackedPod | None:
        of_namespace = self._known.get(pod.metadata.namespace)
        return of_namespace.get(pod.metadata.uid) if of_namespace is not None else None

    def _remember(self, pod: Pod) -> _TrackedPod:
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
