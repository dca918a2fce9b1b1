"""A probe to run, how it ended, and the limits that all probes share. Pure."""

from dataclasses import dataclass
from typing import Literal

from sandboxpool.runtimes.diagnosis import Failure
from sandboxpool.runtimes.evidence import Evidence, Isolation
from sandboxpool.runtimes.nodes import NodeFacts, NodeHandler
from sandboxpool.runtimes.probe import CONTROL
from sandboxpool.runtimes.resolve import Runtime

ProbePurpose = Literal["hint", "scout", "control", "evidence"]
# How many may run at once for each purpose; beyond that, one for each handler.
MAX_RUNNING_PROBES: dict[ProbePurpose, int] = {"hint": 4, "scout": 4, "control": 6, "evidence": 10}
# Virtual machines take long to start, above all many at once.
DEADLINE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """A probe to run.

    Attributes:
        node: the node as it is now.
        runtime: the class to start a sandbox of; None for the positive control.
        purpose: what to find out: whether the runtime caused a sandbox's failure (hint), whether
            it works again (scout), whether the node's boot id is its kernel's (control), or
            whether the runtime isolates (evidence).
        waiting: of a positive control, the handler whose evidence waits for it.
    """

    node: NodeFacts
    runtime: Runtime | None
    purpose: ProbePurpose
    waiting: str = ""

    @property
    def group(self) -> tuple[ProbePurpose, str]:
        """The purpose and handler, by which concurrency is limited."""
        return self.purpose, self.waiting or self.handler

    @property
    def handler(self) -> str:
        """The handler to probe; ``CONTROL`` for the positive control."""
        return self.runtime.handler if self.runtime is not None else CONTROL

    @property
    def class_uid(self) -> str:
        """The class's uid; empty for the positive control."""
        return self.runtime.uid if self.runtime is not None else ""

    @property
    def pair(self) -> NodeHandler:
        """Node and handler."""
        return self.node.name, self.handler


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """How a probe ended.

    Attributes:
        evidence: what the probe showed; None if its node or class no longer exists as it was.
        failure: why no sandbox started, as far as that is known.
        made_at: when the probe was created, in epoch seconds; it shows nothing of the time before.
        started: a sandbox started, and a container ran in it.
    """

    evidence: Evidence | None
    failure: Failure | None
    made_at: float
    started: bool = False

    @property
    def works(self) -> bool | None:
        """Whether the runtime starts sandboxes there; None if the probe could not tell."""
        if self.started:
            return True
        return False if self.failure is not None and self.failure.blames_runtime else None


def outcome_of(probe_request: ProbeRequest, result: ProbeResult) -> str:
    """One word for logs and metrics. A positive control passes if it sees the node's kernel."""
    if result.evidence is None:
        return "Superseded"
    isolation = result.evidence.isolation
    if probe_request.purpose == "control" and isolation is not Isolation.UNAVAILABLE:
        return "ControlPassed" if isolation is Isolation.NOT_PROVEN else "ControlFailed"
    return isolation.value
