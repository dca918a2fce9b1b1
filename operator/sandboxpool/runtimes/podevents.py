"""What a pod's own events say of why it is not ready, read once and kept bounded. Pure.

Anybody who may create Events in a namespace can write any uid, name and source into one. So an
event counts only if all of them are this pod's, in its own namespace, and its source is one that
speaks of pods. That keeps mistakes out, not forgers: what is found here may name a cause and hold
a pod of the forger's own pool, and never speaks for or against a node or its runtime.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sandboxpool.api.core import Event, Pod
from sandboxpool.api.reasons import Reason
from sandboxpool.api.times import epoch

MAX_POD_EVENTS = 16
MAX_WORD_TEXT = 400
# So much of a text tells two messages of one reason apart; the rest may be a time or an id.
_ALIKE = 64

_KUBELET = "kubelet"
# Those that speak of pods and have no node.
_CONTROLLERS = frozenset({"default-scheduler", "attachdetach-controller"})
_CONTAINER = re.compile(r"spec\.(?:initContainers|containers)\{([^{}]{1,63})\}")

_VOLUME = frozenset(
    {"FailedMount", "FailedMapVolume", "FailedAttachVolume", "FailedMountOnFilesystemMismatch"}
)
# What the kubelet does with a pod whose volumes are mounted, and whose sandbox is made.
_LATER = frozenset({"Pulling", "Pulled", "Created", "Started", "BackOff", "ErrImageNeverPull"})
# Said beside the cause of each volume, when the kubelet gives up waiting for all of them.
_SUMMARY = "Unable to attach or mount volumes"
# What the template names does not exist, or cannot be had: the same on every node.
_LACKING = re.compile(
    r'(?:secret|configmap|persistentvolumeclaim)s? "[^"]{1,300}" not found'
    r'|object "[^"]{1,300}"(?:/"[^"]{1,300}")? not registered'
    r"|references non-existent (?:secret|config) key"
    r"|couldn't find key "
    r"|persistentvolumeclaim.{0,300} (?:is not bound|not bound)"
    r"|PVC is not bound"
    r"|Multi-Attach error"
    r"|runAsNonRoot",
    re.IGNORECASE,
)
_EXHAUSTED = re.compile(
    r"no space left on device|disk quota exceeded|cannot allocate memory|too many open files"
    r"|resource temporarily unavailable",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class PodEvent:
    """What was said once, or again and again.

    Attributes:
        reason: the event's reason, as its source spells it.
        text: its message, bounded.
        container: which container it is about; empty for the whole pod.
        at: epoch seconds at which it was said last.
    """

    reason: str
    text: str
    container: str
    at: float

    def __str__(self) -> str:
        about = f"container {self.container}: " if self.container else ""
        return f"{about}{self.text}"


@dataclass(frozen=True, slots=True)
class PodEvents:
    """What was read of one pod's events.

    Attributes:
        words: different ones, the newest first.
        count: how many events there were, those of others left out.
        problem: why they could not be read; empty if they were.
    """

    events: tuple[PodEvent, ...] = ()
    count: int = 0
    problem: str = ""

    def last(self, predicate: Callable[[PodEvent], bool]) -> PodEvent | None:
        """The newest word for which this holds."""
        return next((word for word in self.events if predicate(word)), None)


@dataclass(frozen=True, slots=True)
class Explanation:
    """A cause that events name.

    Attributes:
        text: what to do where that is known, and what was said.
        self_healing: whoever said it goes on trying.
        everywhere: another node would not do better.
    """

    reason: Reason
    text: str
    self_healing: bool = False
    cluster_wide: bool = False


def read(pod: Pod, events: Iterable[Event]) -> PodEvents:
    """Keep what those say who may know of this pod; of what was said again, the last."""
    about = [event for event in events if _is_about(pod, event)]
    about.sort(key=_said_at, reverse=True)
    words: dict[tuple[str, str, str], PodEvent] = {}
    for event in about:
        found = _CONTAINER.fullmatch(event.involvedObject.fieldPath)
        container = found[1] if found else ""
        text = " ".join(event.message[: 4 * MAX_WORD_TEXT].split())[:MAX_WORD_TEXT]
        word = PodEvent(event.reason[:128], text, container, _said_at(event))
        words.setdefault((word.reason, container, text[:_ALIKE]), word)
        if len(words) == MAX_POD_EVENTS:
            break
    return PodEvents(tuple(words.values()), len(about))


def _is_about(pod: Pod, event: Event) -> bool:
    of, about = pod.metadata, event.involvedObject
    component = event.source.component or event.reportingComponent
    host = event.source.host or event.reportingInstance
    speaks = component in _CONTROLLERS or (component == _KUBELET and host == pod.spec.nodeName)
    return speaks and (
        (of.namespace, of.name, of.uid) == (about.namespace, about.name, about.uid)
        and event.metadata.namespace == of.namespace
    )


def _said_at(event: Event) -> float:
    return epoch(event.lastTimestamp or event.metadata.creationTimestamp)


def is_lacking(text: str) -> bool:
    """What the template names is missing, so that it is so on every node."""
    return _LACKING.search(text) is not None


def is_exhausted(text: str) -> bool:
    """The node has run out of something of its own: disk, memory, processes, file handles."""
    return _EXHAUSTED.search(text) is not None


def exhausted(said: str) -> Explanation:
    """The node lacks something of its own; another one may have it."""
    text = (
        "the node has run out of disk, memory, processes or file handles of its own: make room "
        f"on it; it said: {said}"
    )
    return Explanation(Reason.NODE_RESOURCE_EXHAUSTED, text, self_healing=True)


def pre_sandbox_failure(pod_events: PodEvents) -> Explanation | None:
    """Why no sandbox was asked for yet."""
    volume = pod_events.last(lambda w: w.reason in _VOLUME and not w.text.startswith(_SUMMARY))
    volume = volume or pod_events.last(lambda w: w.reason in _VOLUME)
    later = pod_events.last(lambda w: w.reason in _LATER)
    if volume is not None and (later is None or later.at < volume.at):
        return _unmounted(str(volume))
    network = pod_events.last(lambda w: w.reason == "NetworkNotReady")
    if network is not None and later is None:
        text = f"see to the node's network plugin (CNI); the node said: {network}"
        return Explanation(Reason.POD_NETWORK_FAILED, text, self_healing=True)
    return None


def _unmounted(said: str) -> Explanation:
    if is_exhausted(said):
        return exhausted(said)
    if is_lacking(said):
        text = (
            "create what the template's volumes name, or correct the template: the kubelet goes "
            f"on trying and says: {said}"
        )
        return Explanation(Reason.VOLUME_MOUNT_FAILED, text, self_healing=True, cluster_wide=True)
    text = f"see to the volume and its driver: the kubelet goes on trying and says: {said}"
    return Explanation(Reason.VOLUME_MOUNT_FAILED, text, self_healing=True)


def hook_failed(pod_events: PodEvents) -> Explanation | None:
    """A postStart hook has failed, whereupon the kubelet ends its container."""
    hook = pod_events.last(lambda w: w.reason == "FailedPostStartHook")
    if hook is None:
        return None
    where = f"lifecycle.postStart of container {hook.container or '(not named)'}"
    text = (
        f"the postStart hook has failed and the kubelet has ended the container: correct {where} "
        f"in spec.template (what the hook printed is in the kubelet's log); it said: {hook.text}"
    )
    return Explanation(Reason.LIFECYCLE_HOOK_FAILED, text)


def killed_by_probe(pod_events: PodEvents) -> Explanation | None:
    """The kubelet has ended a container whose startup or liveness probe failed."""
    return _killed_by(pod_events, "Startup", Reason.STARTUP_PROBE_FAILING) or _killed_by(
        pod_events, "Liveness", Reason.LIVENESS_PROBE_FAILING
    )


def _killed_by(pod_events: PodEvents, kind: str, reason: Reason) -> Explanation | None:
    ending = f"failed {kind.lower()} probe"
    killed = pod_events.last(lambda word: word.reason == "Killing" and ending in word.text)
    if killed is None:
        return None
    said = probe_message(pod_events, kind, killed.container) or killed.text
    return Explanation(reason, f"the kubelet has ended container {killed.container}: {said}")


def probe_message(pod_events: PodEvents, kind: str, container: str) -> str:
    """What a container's probe said last when it failed.

    Args:
        pod_events: the pod's events.
        kind: ``Startup``, ``Readiness`` or ``Liveness``.
        container: the container's name.
    """
    word = pod_events.last(
        lambda w: (
            w.reason == "Unhealthy"
            and w.container == container
            and w.text.startswith(f"{kind} probe ")
        )
    )
    return word.text if word is not None else ""


def no_cause_message(pod_events: PodEvents | None) -> str:
    """That nobody named a cause, and what was looked at."""
    if pod_events is None:
        return (
            "no cause was reported by its conditions and its containers; its events were not "
            "read, because too many others wait for that"
        )
    if pod_events.problem:
        return (
            "no cause was reported by its conditions and its containers, and its events could "
            f"not be read: {pod_events.problem}"
        )
    events = f"{pod_events.count} event{'s' if pod_events.count != 1 else ''}"
    text = f"no cause was reported: its conditions, its containers and its {events} say nothing"
    if pod_events.events:
        last = pod_events.events[0]
        text += f"; the last event was {last.reason}: {last.text}"
    return text
