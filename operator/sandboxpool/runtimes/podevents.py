"""Explains from a pod's own events why it is not ready. Pure.

A user who may create Events in a namespace can set any uid, name and source in them. An event
counts only if all of them match the pod, in its own namespace, and its source is a component that
reports on pods. That excludes mistakes, but no forgery. So an explanation from events only affects
pods of that namespace, and never counts for or against a node or its runtime.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sandboxpool.api.core import Event, Pod
from sandboxpool.api.reasons import Reason
from sandboxpool.api.times import epoch

MAX_POD_EVENTS = 16
MAX_EVENT_TEXT = 400
# Messages of one reason that share this prefix are the same; the rest may be a time or an id.
_PREFIX_LENGTH = 64

_KUBELET = "kubelet"
# Other components that report on pods.
_CONTROLLERS = frozenset({"default-scheduler", "attachdetach-controller"})
_CONTAINER = re.compile(r"spec\.(?:initContainers|containers)\{([^{}]{1,63})\}")

_VOLUME = frozenset(
    {"FailedMount", "FailedMapVolume", "FailedAttachVolume", "FailedMountOnFilesystemMismatch"}
)
# Events after the volumes were mounted and the sandbox was created.
_LATER = frozenset({"Pulling", "Pulled", "Created", "Started", "BackOff", "ErrImageNeverPull"})
# The kubelet's summary, besides the cause of each volume.
_SUMMARY = "Unable to attach or mount volumes"
# An object of the template does not exist or is not available, on every node alike.
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
    """One event, or the last of several with the same message.

    Attributes:
        reason: the event's reason, as its source spells it.
        text: its message, truncated.
        container: the container that it is about; empty for the whole pod.
        at: epoch seconds of the last occurrence.
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
    """The events of one pod.

    Attributes:
        events: different ones, the newest first.
        count: how many events about the pod were read.
        problem: why they could not be read; empty if they were.
    """

    events: tuple[PodEvent, ...] = ()
    count: int = 0
    problem: str = ""

    def last(self, predicate: Callable[[PodEvent], bool]) -> PodEvent | None:
        """The newest event that satisfies the predicate."""
        return next((event for event in self.events if predicate(event)), None)


@dataclass(frozen=True, slots=True)
class Explanation:
    """A cause found in events.

    Attributes:
        text: what to do, where that is known, and the event's message.
        self_healing: the component that reported it keeps retrying.
        cluster_wide: another node would not do better.
    """

    reason: Reason
    text: str
    self_healing: bool = False
    cluster_wide: bool = False


def read(pod: Pod, events: Iterable[Event]) -> PodEvents:
    """Select and deduplicate the events about a pod, keeping the newest of equal ones."""
    about = [event for event in events if _is_about(pod, event)]
    about.sort(key=_time_of, reverse=True)
    distinct: dict[tuple[str, str, str], PodEvent] = {}
    for event in about:
        found = _CONTAINER.fullmatch(event.involvedObject.fieldPath)
        container = found[1] if found else ""
        text = " ".join(event.message[: 4 * MAX_EVENT_TEXT].split())[:MAX_EVENT_TEXT]
        known = PodEvent(event.reason[:128], text, container, _time_of(event))
        distinct.setdefault((known.reason, container, text[:_PREFIX_LENGTH]), known)
        if len(distinct) == MAX_POD_EVENTS:
            break
    return PodEvents(tuple(distinct.values()), len(about))


def _is_about(pod: Pod, event: Event) -> bool:
    of, about = pod.metadata, event.involvedObject
    component = event.source.component or event.reportingComponent
    host = event.source.host or event.reportingInstance
    trusted = component in _CONTROLLERS or (component == _KUBELET and host == pod.spec.nodeName)
    return trusted and (
        (of.namespace, of.name, of.uid) == (about.namespace, about.name, about.uid)
        and event.metadata.namespace == of.namespace
    )


def _time_of(event: Event) -> float:
    return epoch(event.lastTimestamp or event.metadata.creationTimestamp)


def is_lacking(text: str) -> bool:
    """Whether an object that the template names is missing, and so on every node."""
    return _LACKING.search(text) is not None


def is_exhausted(text: str) -> bool:
    """Whether the node has run out of disk, memory, processes or file handles."""
    return _EXHAUSTED.search(text) is not None


def exhausted(said: str) -> Explanation:
    """Explain a failure by a resource that the node has run out of; another node may have it."""
    text = (
        "the node has run out of disk, memory, processes or file handles: free some on it, or "
        f"raise its limits; the node said: {said}"
    )
    return Explanation(Reason.NODE_RESOURCE_EXHAUSTED, text, self_healing=True)


def pre_sandbox_failure(pod_events: PodEvents) -> Explanation | None:
    """Explain why the kubelet has not created the sandbox yet."""
    volume = pod_events.last(
        lambda event: event.reason in _VOLUME and not event.text.startswith(_SUMMARY)
    )
    volume = volume or pod_events.last(lambda event: event.reason in _VOLUME)
    later = pod_events.last(lambda event: event.reason in _LATER)
    if volume is not None and (later is None or later.at < volume.at):
        return _unmounted(str(volume))
    network = pod_events.last(lambda event: event.reason == "NetworkNotReady")
    if network is not None and later is None:
        text = f"check the node's network plugin (CNI); the node said: {network}"
        return Explanation(Reason.POD_NETWORK_FAILED, text, self_healing=True)
    return None


def _unmounted(said: str) -> Explanation:
    if is_exhausted(said):
        return exhausted(said)
    if is_lacking(said):
        text = (
            "create the objects that the template's volumes name, or correct the template; the "
            f"kubelet keeps retrying; the node said: {said}"
        )
        return Explanation(Reason.VOLUME_MOUNT_FAILED, text, self_healing=True, cluster_wide=True)
    text = f"check the volume and its driver; the kubelet keeps retrying; the node said: {said}"
    return Explanation(Reason.VOLUME_MOUNT_FAILED, text, self_healing=True)


def hook_failed(pod_events: PodEvents) -> Explanation | None:
    """Explain the end of a container by its failed postStart hook."""
    hook = pod_events.last(lambda event: event.reason == "FailedPostStartHook")
    if hook is None:
        return None
    where = f"lifecycle.postStart of container {hook.container or '(not named)'}"
    text = (
        f"the postStart hook failed and the kubelet killed the container: correct {where} in "
        f"spec.template (the hook's output is in the kubelet's log); the node said: {hook.text}"
    )
    return Explanation(Reason.LIFECYCLE_HOOK_FAILED, text)


def killed_by_probe(pod_events: PodEvents) -> Explanation | None:
    """Explain the end of a container by its failed startup or liveness probe."""
    return _killed_by(pod_events, "Startup", Reason.STARTUP_PROBE_FAILING) or _killed_by(
        pod_events, "Liveness", Reason.LIVENESS_PROBE_FAILING
    )


def _killed_by(pod_events: PodEvents, kind: str, reason: Reason) -> Explanation | None:
    ending = f"failed {kind.lower()} probe"
    killed = pod_events.last(lambda event: event.reason == "Killing" and ending in event.text)
    if killed is None:
        return None
    said = probe_message(pod_events, kind, killed.container) or killed.text
    return Explanation(reason, f"the kubelet killed container {killed.container}: {said}")


def probe_message(pod_events: PodEvents, kind: str, container: str) -> str:
    """The message of a container's last probe failure; empty if there is none.

    Args:
        pod_events: the pod's events.
        kind: ``Startup``, ``Readiness`` or ``Liveness``.
        container: the container's name.
    """
    found = pod_events.last(
        lambda event: (
            event.reason == "Unhealthy"
            and event.container == container
            and event.text.startswith(f"{kind} probe ")
        )
    )
    return found.text if found is not None else ""


def no_cause_message(pod_events: PodEvents | None) -> str:
    """Say that no cause was found, and where it was searched for."""
    if pod_events is None:
        return (
            "no cause was found in the pod's conditions and containers; its events were not read "
            "because too many pods are queued for that"
        )
    if pod_events.problem:
        return (
            "no cause was found in the pod's conditions and containers, and its events could not "
            f"be read: {pod_events.problem}"
        )
    events = f"{pod_events.count} event{'s' if pod_events.count != 1 else ''}"
    text = f"no cause was found in the pod's conditions, containers and {events}"
    if pod_events.events:
        last = pod_events.events[0]
        text += f"; the last event was {last.reason}: {last.text}"
    return text
