"""An inquiry for parts that are tested without one."""

from __future__ import annotations

from typing import Any, cast

from sandboxpool.api.core import Pod
from sandboxpool.runtimes.podevents import PodEvents
from sandboxpool.sandboxes.event_reader import PodEventReader


class NoInquiry(PodEventReader):
    """Reads nothing: every pod is given up by what its status says."""

    def __init__(self) -> None:
        super().__init__(cast(Any, None), lambda pod: None)

    def enqueue(self, pod: Pod, line: str, stage: str) -> None:
        """Read nothing."""


class ScriptedInquiry(NoInquiry):
    """Tells the same of every pod, as soon as it is asked.

    Attributes:
        stages: for which it was asked, in order.
    """

    def __init__(self, answer: PodEvents) -> None:
        super().__init__()
        self.stages: list[str] = []
        self._answer = answer

    def enqueue(self, pod: Pod, line: str, stage: str) -> None:
        """Note the stage, if it is a new one."""
        del pod, line
        if stage not in self.stages:
            self.stages.append(stage)

    def events_of(self, pod: Pod) -> PodEvents | None:
        """The answer, if anybody has asked."""
        del pod
        return self._answer if self.stages else None
