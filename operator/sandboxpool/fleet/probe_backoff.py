"""When a probe that brought no proof may run again. Pure: callers give the time."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

from sandboxpool.fleet.probe_request import (
    DEADLINE_SECONDS,
    MAX_RUNNING_PROBES,
    ProbePurpose,
    ProbeRequest,
    ProbeResult,
)
from sandboxpool.runtimes.evidence import Evidence, Isolation, Software
from sandboxpool.runtimes.nodes import NodeFacts, NodeHandler
from sandboxpool.util.backoff import delay_after

# The backoff after a probe that brought no proof.
FIRST_BACKOFF_SECONDS = 30.0
LONGEST_BACKOFF_SECONDS = 600.0
LONGEST_BACKOFF_OF_MANY_SECONDS = 6 * 3600.0
MAX_BACKOFFS = 10_000


@dataclass(frozen=True, slots=True)
class _Backoff:
    """No such probe before ``until``, by the event loop's clock, unless the software changes."""

    software: Software
    tries: int
    until: float
    group: tuple[ProbePurpose, str]
    unanswered: bool


class ProbeBackoffs:
    """The backoffs of probes, by node, handler and purpose.

    Args:
        nodes: returns the facts of a node.
    """

    def __init__(self, nodes: Callable[[str], NodeFacts | None]) -> None:
        self._nodes = nodes
        self._backoffs: dict[tuple[NodeHandler, ProbePurpose], _Backoff] = {}

    def is_backing_off(self, probe_request: ProbeRequest, now: float) -> bool:
        """Whether it is too early for this probe, by the event loop's clock."""
        backoff = self._backoffs.get((probe_request.pair, probe_request.purpose))
        return (
            backoff is not None
            and backoff.software.is_on(probe_request.node)
            and now < backoff.until
        )

    def record(
        self, probe_request: ProbeRequest, result: ProbeResult, evidence: Evidence, now: float
    ) -> None:
        """A probe has ended at this time of the event loop's clock."""
        key = probe_request.pair, probe_request.purpose
        # Removed even if it is added again, so that the oldest come first.
        old = self._backoffs.pop(key, None)
        if evidence.isolation is Isolation.PROVEN:
            return
        if probe_request.purpose != "evidence" and result.works is not None:
            # Hints and quarantines have a backoff of their own.
            return
        again = old is not None and old.software == evidence.software
        tries = old.tries + 1 if old is not None and again else 1
        unanswered = self._count_unanswered(probe_request.group) if result.works is None else 0
        pause = _backoff_seconds(probe_request, tries, unanswered)
        self._backoffs[key] = _Backoff(
            evidence.software, tries, now + pause, probe_request.group, result.works is None
        )
        if len(self._backoffs) > MAX_BACKOFFS:
            del self._backoffs[next(iter(self._backoffs))]

    def _count_unanswered(self, group: tuple[ProbePurpose, str]) -> int:
        """How many probes of the group got no answer, on nodes that exist."""
        for key in [key for key in self._backoffs if self._nodes(key[0][0]) is None]:
            del self._backoffs[key]
        return sum(
            backoff.unanswered and backoff.group == group for backoff in self._backoffs.values()
        )


def _backoff_seconds(probe_request: ProbeRequest, tries: int, unanswered: int) -> float:
    """Seconds until the next probe, spread by node and handler so that a fleet's are not in step.

    Each unanswered probe runs until its deadline. The backoff grows with their number, so that
    together they take about half of the concurrency limit.
    """
    longest = delay_after(tries - 1, FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS)
    of_many = 2 * DEADLINE_SECONDS / MAX_RUNNING_PROBES[probe_request.purpose] * unanswered
    of_many = min(of_many, LONGEST_BACKOFF_OF_MANY_SECONDS)
    longest = max(longest, of_many)
    share = zlib.crc32(f"{probe_request.pair}{tries}".encode()) / 2**32
    return longest * (0.5 + share / 2)
