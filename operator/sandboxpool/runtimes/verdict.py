"""Where a runtime is served: a total function of a class, a placement and the nodes.

A node that lists the handler is *serving*: configured, which is not yet proof that it works.
One whose list lacks it is *not serving*. One without a list is *unknown*, never missing. A node on
which the runtime has failed is *quarantined*, one on which it does not isolate is *unproven*,
whatever its list says.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from sandboxpool.runtimes.advice import separating_label
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.placement import Placement, allows

# A pod carries the exclusion in its spec; beyond this many names it stops growing.
EXCLUSION_CAP = 500


class Answer(Enum):
    """What a node says of a handler, and what we know better."""

    SERVING = "serving"
    NOT_SERVING = "notServing"
    UNKNOWN = "unknown"
    QUARANTINED = "quarantined"
    UNPROVEN = "unproven"


# Nodes with these answers are kept out, and the first of them before the last.
KEPT_OUT = (Answer.QUARANTINED, Answer.UNPROVEN, Answer.NOT_SERVING)


def answer_of(node: NodeFacts, handler: str) -> Answer:
    """Ask a node's list for a handler."""
    if node.handlers is None:
        return Answer.UNKNOWN
    return Answer.SERVING if handler in node.handlers else Answer.NOT_SERVING


@dataclass(frozen=True, slots=True)
class Standing:
    """How one node stands to a runtime.

    Attributes:
        answer: its list's word, or what we know better.
        eligible: it could take a pod at this moment.
    """

    node: NodeFacts
    answer: Answer
    eligible: bool


def stand(
    node: NodeFacts, handler: str, placement: Placement, *, quarantined: bool, unproven: bool
) -> Standing | None:
    """Judge one node; None if the placement rules it out for ever.

    Args:
        node: the node.
        handler: what the pods' class resolves to.
        placement: what the class and the template demand of a node.
        quarantined: the quarantine of this node and handler is open.
        unproven: proof of isolation is wanted, and the node has shown the opposite.
    """
    if not allows(placement, node, now=False):
        return None
    answer = answer_of(node, handler)
    if answer is not Answer.NOT_SERVING:
        # A node that does not list the handler at all has a simpler story to tell.
        if quarantined:
            answer = Answer.QUARANTINED
        elif unproven:
            answer = Answer.UNPROVEN
    return Standing(node, answer, allows(placement, node, now=True))


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a fleet stands to a pool's runtime. Names are sorted.

    Attributes:
        serving: names of eligible nodes that list the handler.
        not_serving: names of eligible nodes that do not.
        unknown: names of eligible nodes that cannot say.
        quarantined: names of eligible nodes on which the runtime has failed.
        unproven: names of eligible nodes on which the runtime was seen not to isolate.
        excluded: hostname labels of the nodes that pods must keep away from, sorted. It also
            holds those not eligible at this moment: they may become so while a pod waits.
        not_excluded: how many more would be in it but for the cap.
        preferred: hostname labels of serving nodes, as many as can be named, where the exclusion is
            past its cap: the scheduler is to look there first.
        newest_not_serving: epoch seconds at which the newest of ``not_serving`` joined.
        advice: the label that separates the serving nodes from the others, if there is one.
    """

    serving: tuple[str, ...] = ()
    not_serving: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    quarantined: tuple[str, ...] = ()
    unproven: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    not_excluded: int = 0
    preferred: tuple[str, ...] = ()
    newest_not_serving: float = 0.0
    advice: tuple[str, str] | None = None

    @property
    def eligible(self) -> int:
        """How many nodes could take a pod now, if their runtime is left out of account."""
        return sum(
            len(nodes)
            for nodes in (
                self.serving,
                self.not_serving,
                self.unknown,
                self.quarantined,
                self.unproven,
            )
        )

    @property
    def hopeful(self) -> bool:
        """At least one eligible node serves the handler or may do so."""
        return bool(self.serving or self.unknown)


def judge(standings: Iterable[Standing]) -> Verdict:
    """Sum up how the nodes stand; their order does not matter."""
    by_answer: dict[Answer, list[NodeFacts]] = {answer: [] for answer in Answer}
    excluded: dict[Answer, set[str]] = {answer: set() for answer in KEPT_OUT}
    for standing in standings:
        node, answer = standing.node, standing.answer
        if answer in excluded and node.hostname is not None:
            excluded[answer].add(node.hostname)
        if standing.eligible:
            by_answer[answer].append(node)
    # Under the cap the worst offenders come first, each kind in the order of names.
    ranked = list(dict.fromkeys(name for answer in KEPT_OUT for name in sorted(excluded[answer])))
    serving, not_serving = by_answer[Answer.SERVING], by_answer[Answer.NOT_SERVING]
    not_excluded = max(0, len(ranked) - EXCLUSION_CAP)
    hosts = [node.hostname for node in serving if node.hostname is not None]
    # Not the first by name: those may stand in one rack.
    spread = sorted(hosts, key=lambda host: (zlib.crc32(host.encode()), host))
    return Verdict(
        serving=_names(serving),
        not_serving=_names(not_serving),
        unknown=_names(by_answer[Answer.UNKNOWN]),
        quarantined=_names(by_answer[Answer.QUARANTINED]),
        unproven=_names(by_answer[Answer.UNPROVEN]),
        excluded=tuple(sorted(ranked[:EXCLUSION_CAP])),
        not_excluded=not_excluded,
        preferred=tuple(spread[:EXCLUSION_CAP]) if not_excluded else (),
        newest_not_serving=max((node.created for node in not_serving), default=0.0),
        advice=separating_label(serving, not_serving) if serving and not_serving else None,
    )


def _names(nodes: list[NodeFacts]) -> tuple[str, ...]:
    return tuple(sorted(node.name for node in nodes))
