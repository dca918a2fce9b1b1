"""What kubelets said of sandboxes that they could not make."""

from collections import OrderedDict, defaultdict
from dataclasses import dataclass

from sandboxpool.api.core import Event, Pod
from sandboxpool.api.times import epoch

MAX_SANDBOX_EVENTS = 5000


@dataclass(frozen=True, slots=True)
class SandboxEvent:
    """What the kubelet said when it could not make a sandbox, and when (epoch seconds)."""

    message: str
    at: float


# Namespace, name and uid of the pod, and the node whose kubelet speaks.
_About = tuple[str, str, str, str]


class SandboxEvents:
    """The last FailedCreatePodSandBox event of each pod from its own node's kubelet, bounded.

    Anybody who may create Events in a namespace can write any uid, name and source into one. So an
    event is about a pod only if all of them are the pod's, in the event's own namespace; and where
    there is no room, the namespace with the most gives way.
    """

    def __init__(self) -> None:
        self._events: defaultdict[str, OrderedDict[_About, SandboxEvent]] = defaultdict(OrderedDict)
        self._size = 0

    def put(self, event: Event) -> bool:
        """Take in an event; return whether it is the first about its pod.

        A list has the events of a pod in any order: an older one does not replace a newer.
        """
        about, namespace = event.involvedObject, event.metadata.namespace
        if about.namespace != namespace:
            return False
        host = event.source.host or event.reportingInstance
        key = namespace, about.name, about.uid, host
        events = self._events[namespace]
        known = events.get(key)
        at = epoch(event.lastTimestamp or event.metadata.creationTimestamp)
        if known is None or at >= known.at:
            events[key] = SandboxEvent(event.message, at)
            events.move_to_end(key)
        if known is None:
            self._size += 1
        if self._size > MAX_SANDBOX_EVENTS:
            most = max(self._events, key=lambda name: len(self._events[name]))
            self._drop(most, next(iter(self._events[most])))
        return known is None

    def get(self, pod: Pod) -> SandboxEvent | None:
        """The last event about a pod."""
        key = _about(pod)
        return self._events[key[0]].get(key) if key[0] in self._events else None

    def message(self, pod: Pod) -> str | None:
        """What the last event about a pod says."""
        event = self.get(pod)
        return event.message if event is not None else None

    def forget(self, pod: Pod) -> None:
        """The pod is gone."""
        key = _about(pod)
        if key in self._events.get(key[0], ()):
            self._drop(key[0], key)

    def _drop(self, namespace: str, key: _About) -> None:
        del self._events[namespace][key]
        self._size -= 1
        if not self._events[namespace]:
            del self._events[namespace]


def _about(pod: Pod) -> _About:
    metadata = pod.metadata
    return metadata.namespace, metadata.name, metadata.uid, pod.spec.nodeName
