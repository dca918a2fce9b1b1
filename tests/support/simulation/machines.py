"""Nodes and pods as a kubelet shows them: pure functions of objects, and what a node is like."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from sandboxpool.api.names import HOSTNAME_LABEL

Object = dict[str, Any]

ENDED = ("Failed", "Succeeded")


class Start(Enum):
    """What becomes of a sandbox that is to start on a node."""

    FINE = "fine"
    FAILS = "fails"
    HANGS = "hangs"


@dataclass
class FakeNode:
    """A node's kubelet and its container runtime.

    Attributes:
        alive: its kubelet does something, and says so.
        starts: what becomes of sandboxes on it.
        seconds: how long a start takes, at least and at most.
        isolates: its runtime gives a sandbox a kernel of its own.
        pulls: it reaches the registry of images.
        unpullable: the images that it cannot pull even so.
        room: how many pods fit; None for any number.
    """

    name: str
    alive: bool = True
    starts: Start = Start.FINE
    seconds: tuple[float, float] = (0.1, 2.0)
    isolates: bool = True
    pulls: bool = True
    unpullable: set[str] = field(default_factory=set)
    room: int | None = None

    @property
    def healthy(self) -> bool:
        """Sandboxes start on it, and soon."""
        fine = self.alive and self.starts is Start.FINE and self.pulls and not self.unpullable
        return fine and self.isolates and self.seconds[1] <= 10.0

    def mend(self) -> None:
        """Nothing is wrong with it any more, but whether it is alive."""
        self.starts, self.seconds, self.isolates = Start.FINE, (0.1, 2.0), True
        self.pulls, self.room = True, None
        self.unpullable.clear()


def node_body(name: str, boot: int, handlers: Iterable[str]) -> Object:
    """A node that has just joined and is ready."""
    return {
        "metadata": {"name": name, "labels": {HOSTNAME_LABEL: name}},
        "spec": {},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "nodeInfo": {
                "bootID": f"boot-{boot}",
                "containerRuntimeVersion": "containerd://2.1.4",
                "kubeletVersion": "v1.36.2",
            },
            "runtimeHandlers": [{"name": handler} for handler in handlers],
        },
    }


def images_of(pod: Object) -> set[str]:
    """The images of a pod's containers."""
    return {str(container.get("image")) for container in containers_of(pod)}


def containers_of(pod: Object) -> list[Object]:
    """A pod's containers; a template may hold anything, and this skips what is none."""
    listed = pod["spec"].get("containers") or ()
    return [container for container in listed if isinstance(container, dict)]


def is_true(obj: Object, type_: str) -> bool:
    """Whether a condition is True."""
    listed = obj["status"].get("conditions") or ()
    return any(c["type"] == type_ and c["status"] == "True" for c in listed)


def with_condition(status: Object, type_: str, value: bool, now: str, **more: str) -> Object:
    """A status with one condition set; the time of its transition stays if it is as it was."""
    wanted = "True" if value else "False"
    listed = status.get("conditions") or ()
    old: Object = next((c for c in listed if c["type"] == type_), {})
    since = old.get("lastTransitionTime", now) if old.get("status") == wanted else now
    new = {"type": type_, "status": wanted, "lastTransitionTime": since, **more}
    return {**status, "conditions": [*(c for c in listed if c["type"] != type_), new]}
