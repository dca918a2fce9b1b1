"""What becomes of requests, and how long messages take."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import Enum

from support.simulation.apiserver import Place, Request


class Fate(Enum):
    """What becomes of a request."""

    FINE = "fine"
    # It never arrives, and its sender learns nothing.
    LOST = "lost"
    # It is carried out, and its sender learns nothing.
    UNHEARD = "unheard"
    # Its sender gives up, and then it arrives after all.
    LATE = "late"
    # Somebody else has changed the object a moment before.
    RIVAL = "rival"
    THROTTLED = "throttled"
    BROKEN = "broken"
    # The server says that it failed, and has carried it out.
    HALF_BROKEN = "half broken"
    UNAVAILABLE = "unavailable"
    # The operator's process dies: before it is sent, after it was carried out, or while it is on
    # its way, so that it arrives when the next process is at work.
    CRASH_BEFORE = "crash before"
    CRASH_AFTER = "crash after"
    CRASH_MEANWHILE = "crash meanwhile"


ROUGH = (
    Fate.LOST,
    Fate.UNHEARD,
    Fate.LATE,
    Fate.RIVAL,
    Fate.THROTTLED,
    Fate.BROKEN,
    Fate.HALF_BROKEN,
    Fate.UNAVAILABLE,
)

ANSWERS = {
    Fate.THROTTLED: (429, "TooManyRequests", 1.0),
    Fate.BROKEN: (500, "InternalError", None),
    Fate.HALF_BROKEN: (504, "Timeout", None),
    Fate.UNAVAILABLE: (503, "ServiceUnavailable", 1.0),
}


@dataclass
class NetworkFaults:
    """How bad it is.

    Attributes:
        rough: the part of all requests that meet some other fate than a good one.
        slow: the longest way in seconds, each way; also for what watches tell.
        next: what becomes of the next requests of a kind, before chance has its say.
    """

    random: random.Random
    rough: float = 0.0
    slow: float = 0.05
    next: dict[str, list[Fate]] = field(default_factory=dict)

    def fate(self, request: Request) -> Fate:
        """Decide about one request."""
        chosen = self.next.get(kind_of(request))
        if chosen:
            return chosen.pop(0)
        if self.random.random() >= self.rough:
            return Fate.FINE
        return self.random.choice(ROUGH)

    def way(self) -> float:
        """How long one message takes."""
        return self.random.uniform(0.001, self.slow)


def kind_of(request: Request) -> str:
    """A word for what a request is for."""
    place = Place.of(request.path)
    if "dryRun" in request.params:
        return "check"
    if request.method == "PATCH" and place.resource == "pods":
        return "bind"
    if request.method == "PATCH" and place.resource == "sandboxclaims":
        return "tell"
    if request.method == "PATCH" and place.resource == "batchsandboxes":
        return "answer" if place.subresource else "publish"
    verb = {"GET": "read", "POST": "create", "DELETE": "delete", "PATCH": "patch"}[request.method]
    return f"{verb} {place.resource}"
