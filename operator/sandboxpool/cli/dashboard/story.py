"""The story of one sandbox, from its creation to its end. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sandboxpool.api import names
from sandboxpool.cli import reading, times
from sandboxpool.cli.cluster import Object

_CONDITIONS = {
    "PodScheduled": "Scheduled",
    "PodReadyToStartContainers": "Sandbox and network are there",
    "Initialized": "Init containers are done",
    "ContainersReady": "Containers are ready",
    "Ready": "Ready",
}
_BAD_PHASES = ("Failed", "Lost", "Expired")


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happened.

    Attributes:
        at: When, as the API has it.
        after: How long after the first step; empty for what is yet to come.
        what: What happened.
        detail: What else the API says of it.
        source: Which object says so.
        tone: `good`, `bad`, or empty.
    """

    at: str
    after: str
    what: str
    detail: str
    source: str
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Story:
    """What the API knows of a sandbox.

    Attributes:
        facts: Names and values.
        steps: In the order of time.
    """

    facts: Sequence[tuple[str, str]]
    steps: Sequence[Step]


@dataclass(frozen=True, slots=True)
class _Told:
    at: datetime
    text: str
    what: str
    detail: str
    source: str
    tone: str = ""


def story(
    claim: Object | None, pod: Object | None, events: Sequence[Object], now: datetime
) -> Story:
    """Return the story of a sandbox.

    Args:
        claim: The claim that has it, if one has.
        pod: The pod; None if it is gone or may not be read.
        events: The events of both.
        now: What is later is yet to come.
    """
    told = [*_of_claim(claim), *_of_pod(pod), *_of_events(events)]
    told.sort(key=lambda one: one.at)
    first = told[0].at if told else now
    steps = [
        Step(
            one.text,
            times.span((one.at - first).total_seconds()) if one.at <= now else "",
            one.what,
            one.detail,
            one.source,
            one.tone,
        )
        for one in told
    ]
    return Story([(name, value) for name, value in _facts(claim, pod) if value], steps)


def _facts(claim: Object | None, pod: Object | None) -> Iterator[tuple[str, str]]:
    labels = reading.mapping(pod, "metadata", "labels")
    annotations = reading.mapping(pod, "metadata", "annotations")
    runtime = reading.mapping(claim, "status", "runtime")
    yield "Pool", reading.text(claim, "spec", "poolName") or reading.text(labels, names.LABEL_POOL)
    yield "Claim", reading.name(claim or {}) or reading.text(labels, names.LABEL_CLAIM)
    yield "Claim's phase", reading.text(claim, "status", "phase")
    yield "Pod", reading.name(pod or {}) or reading.text(claim, "status", "podName")
    yield "Pod's phase", reading.text(pod, "status", "phase")
    yield "Node", reading.text(pod, "spec", "nodeName") or reading.text(claim, "status", "nodeName")
    class_ = reading.text(pod, "spec", "runtimeClassName") or reading.text(runtime, "className")
    yield "RuntimeClass", class_
    handler = reading.text(annotations, names.ANNOTATION_HANDLER)
    yield "Handler", handler or reading.text(runtime, "handler")
    yield "Evidence", reading.text(runtime, "evidence")


def _of_claim(claim: Object | None) -> Iterator[_Told]:
    if claim is None:
        return
    name = f"claim {reading.name(claim)}"
    phase = reading.text(claim, "status", "phase")
    source = reading.text(claim, "status", "source")
    cause = next((one for one in reading.conditions(claim) if one.status == "False"), None)
    why = f"{cause.reason}: {cause.message}" if cause else ""
    bad = phase in _BAD_PHASES
    for key, what, detail, tone in (
        (("metadata", "creationTimestamp"), "Claimed", "", ""),
        (("status", "boundAt"), f"Bound ({source})" if source else "Bound", "", "good"),
        (("status", "finishedAt"), phase, why, "bad" if bad else ""),
        (("metadata", "deletionTimestamp"), "Claim is being deleted", "", ""),
    ):
        yield from _told(claim, key, what, detail, name, tone)
    if not bad:
        yield from _told(claim, ("status", "expiresAt"), "Expires", "", name)
        if phase == "Pending" and cause is not None and cause.since:
            yield from _told({"at": cause.since}, ("at",), "Waits", why, name)


def _of_pod(pod: Object | None) -> Iterator[_Told]:
    if pod is None:
        return
    name = f"pod {reading.name(pod)}"
    yield from _told(pod, ("metadata", "creationTimestamp"), "Created", "", name)
    for one in reading.conditions(pod):
        what = _CONDITIONS.get(one.type)
        if what is None or not one.since:
            continue
        detail = f"on {reading.text(pod, 'spec', 'nodeName')}" if one.type == "PodScheduled" else ""
        if one.status != "True":
            what, detail = f"Not: {what.lower()}", f"{one.reason}: {one.message}".strip(": ")
        tone = "" if one.status != "True" else "good" if one.type == "Ready" else ""
        yield from _told({"at": one.since}, ("at",), what, detail, name, tone)
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in reading.objects(pod, "status", kind):
            yield from _of_container(container, name)
    yield from _told(pod, ("metadata", "deletionTimestamp"), "Deletion ends", "", name)


def _of_container(container: Object, pod: str) -> Iterator[_Told]:
    name = f"container {reading.text(container, 'name')} of {pod}"
    for state in ("lastState", "state"):
        running = reading.mapping(container, state, "running")
        ended = reading.mapping(container, state, "terminated")
        yield from _told(running, ("startedAt",), "Container started", "", name)
        yield from _told(ended, ("startedAt",), "Container started", "", name)
        code = reading.number(ended, "exitCode")
        said = f"{reading.text(ended, 'reason')}, exit code {code}"
        if message := reading.text(ended, "message"):
            said += f": {message}"
        yield from _told(
            ended, ("finishedAt",), "Container ended", said, name, "bad" if code else ""
        )


def _of_events(events: Sequence[Object]) -> Iterator[_Told]:
    for event in events:
        count = reading.number(event, "series", "count") or reading.number(event, "count") or 1
        often = f" ({count} times)" if count > 1 else ""
        kind = reading.text(event, "involvedObject", "kind").lower() or "object"
        at = next(
            (
                path
                for path in (
                    ("firstTimestamp",),
                    ("eventTime",),
                    ("metadata", "creationTimestamp"),
                )
                if reading.moment(event, *path) is not None
            ),
            ("firstTimestamp",),
        )
        tone = "bad" if reading.text(event, "type") == "Warning" else ""
        source = f"event of {kind} {reading.text(event, 'involvedObject', 'name')}"
        what = f"{reading.text(event, 'reason')}{often}"
        yield from _told(event, at, what, reading.text(event, "message"), source, tone)


def _told(
    obj: Object, path: Sequence[str], what: str, detail: str, source: str, tone: str = ""
) -> Iterator[_Told]:
    at = reading.moment(obj, *path)
    if at is not None:
        yield _Told(at, reading.text(obj, *path), what, detail, source, tone)
