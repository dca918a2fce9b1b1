"""Where a runtime is served: a total function of a class, a placement and the nodes.

A node that lists the handler is *serving*: configured, which is not yet proof that it works.
One whose list lacks it is *not serving*. One without a list is *unknown*, never missing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.placement import Placement, allows

# A pod carries the exclusion in its spec; beyond this many names it stops growing.
EXCLUSION_CAP = 500


class Answer(Enum):
    """What a node says of a handler."""

    SERVING = "serving"
    NOT_SERVING = "notServing"
    UNKNOWN = "unknown"


def answer_of(node: NodeFacts, handler: str) -> Answer:
    """Ask a node's list for a handler."""
    if node.handlers is None:
        return Answer.UNKNOWN
    return Answer.SERVING if handler in node.handlers else Answer.NOT_SERVING


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a fleet stands to a pool's runtime.

    Attributes:
        serving: names of eligible nodes that list the handler, sorted.
        not_serving: names of eligible nodes that do not.
        unknown: names of eligible nodes that cannot say.
        excluded: hostname labels of the nodes that pods must keep away from, sorted. It also
            holds those not eligible at this moment: they may become so while a pod waits.
        not_excluded: how many more would be in it but for the cap.
    """

    serving: tuple[str, ...] = ()
    not_serving: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    not_excluded: int = 0

    @property
    def eligible(self) -> int:
        """How many nodes could take a pod now."""
        return len(self.serving) + len(self.not_serving) + len(self.unknown)

    @property
    def hopeful(self) -> bool:
        """At least one eligible node serves the handler or may do so."""
        return bool(self.serving or self.unknown)


def judge(handler: str, placement: Placement, nodes: Iterable[NodeFacts]) -> Verdict:
    """Sort the nodes by what they say of the handler."""
    answers: dict[Answer, list[str]] = {answer: [] for answer in Answer}
    excluded: set[str] = set()
    for node in nodes:
        if not allows(placement, node, now=False):
            continue
        answer = answer_of(node, handler)
        if answer is Answer.NOT_SERVING and (hostname := node.hostname) is not None:
            excluded.add(hostname)
        if allows(placement, node, now=True):
            answers[answer].append(node.name)
    return Verdict(
        serving=tuple(sorted(answers[Answer.SERVING])),
        not_serving=tuple(sorted(answers[Answer.NOT_SERVING])),
        unknown=tuple(sorted(answers[Answer.UNKNOWN])),
        excluded=tuple(sorted(excluded))[:EXCLUSION_CAP],
        not_excluded=max(0, len(excluded) - EXCLUSION_CAP),
    )
