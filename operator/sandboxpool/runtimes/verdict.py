"""Where a runtime is served: a total function of a class, a placement and the nodes.

A node that lists the handler is *serving*: configured, which is not yet proof that it works.
One whose list lacks it is *not serving*. One without a list is *unknown*, never missing. A node on
which the runtime has failed is *quarantined*, one on which it does not isolate is *not_isolating*,
whatever its list says. One that pods would be put on although nothing there may be handed out,
because they tolerate that it is cordoned or not Ready, is *unavailable*.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import islice

from sandboxpool.api.v1alpha1 import NodeCounts
from sandboxpool.runtimes.advice import separating_label
from sandboxpool.runtimes.exclusion import MAX_HOSTNAMES, ExclusionReason
from sandboxpool.runtimes.node_constraints import NodeConstraints, is_feasible
from sandboxpool.runtimes.nodes import NodeFacts


class HandlerState(Enum):
    """What a node says of a handler, and what we know better."""

    SERVING = "serving"
    NOT_SERVING = "notServing"
    UNKNOWN = "unknown"
    QUARANTINED = "quarantined"
    NOT_ISOLATING = "notIsolating"
    # Its probes get no answer, and on other nodes they do.
    UNPROVEN = "unproven"


# Nodes with these answers are kept out. One that gives no proof is better than none: a pool keeps
# away from it by itself.
_EXCLUSION_OF_STATE = {
    HandlerState.NOT_SERVING: ExclusionReason.NOT_SERVING,
    HandlerState.QUARANTINED: ExclusionReason.QUARANTINED,
    HandlerState.NOT_ISOLATING: ExclusionReason.NOT_ISOLATING,
}
# Whom to name first, where not all can be named.
_NAMED_FIRST = (
    ExclusionReason.QUARANTINED,
    ExclusionReason.NOT_ISOLATING,
    ExclusionReason.UNAVAILABLE,
    ExclusionReason.NOT_SERVING,
    ExclusionReason.NO_USER_NAMESPACES,
)


def listed_handler_state(node: NodeFacts, handler: str) -> HandlerState:
    """Ask a node's list for a handler."""
    if node.handlers is None:
        return HandlerState.UNKNOWN
    return HandlerState.SERVING if handler in node.handlers else HandlerState.NOT_SERVING


@dataclass(frozen=True, slots=True)
class NodeAssessment:
    """How one node stands to a runtime.

    Attributes:
        answer: its list's word, or what we know better.
        feasible: the scheduler may put a pod on it at this moment, by its labels and taints.
        marked: its exclusion labels keep the pods away, or it cannot be labelled.
        young: it joined a moment ago, so that its runtimes may yet be installed.
        listed: it lists the handler, so that it may serve others.
    """

    node: NodeFacts
    handler_state: HandlerState
    feasible: bool
    exclusion_effective: bool = True
    recently_joined: bool = False
    listed: bool = False

    @property
    def eligible(self) -> bool:
        """It could take a pod at this moment that may be handed out."""
        return self.feasible and self.node.usable

    @property
    def exclusion_reason(self) -> ExclusionReason | None:
        """Why pods must keep away from it, if they must."""
        unsupported = self.handler_state is HandlerState.NOT_SERVING and self.listed
        if (
            self.handler_state in (HandlerState.NOT_SERVING, HandlerState.QUARANTINED)
            and not unsupported
        ):
            return _EXCLUSION_OF_STATE[self.handler_state]
        if self.feasible and not self.node.usable:
            return ExclusionReason.UNAVAILABLE
        if unsupported:
            return ExclusionReason.NO_USER_NAMESPACES
        return _EXCLUSION_OF_STATE.get(self.handler_state)


def assess_node(
    node: NodeFacts,
    handler: str,
    placement: NodeConstraints,
    *,
    quarantined: bool,
    not_isolating: bool,
    unproven: bool = False,
    marked: bool = True,
    young: bool = False,
) -> NodeAssessment | None:
    """Judge one node; None if the placement rules it out for ever.

    Args:
        node: the node.
        handler: what the pods' class resolves to.
        placement: what the class and the template demand of a node.
        quarantined: the quarantine of this node and handler is open.
        not_isolating: proof of isolation is wanted, and the node has shown the opposite.
        unproven: proof is wanted, this node has given none for long, and another node has.
        marked: see `NodeAssessment`.
        young: see `NodeAssessment`.
    """
    if not is_feasible(placement, node, now=False):
        return None
    answer = listed_handler_state(node, handler)
    if placement.user_namespaces and handler in node.without_user_namespaces:
        # Its kubelet refuses such a sandbox of this handler.
        answer = HandlerState.NOT_SERVING
    if answer is not HandlerState.NOT_SERVING:
        # A node that does not list the handler at all has a simpler story to tell.
        if quarantined:
            answer = HandlerState.QUARANTINED
        elif not_isolating:
            answer = HandlerState.NOT_ISOLATING
        elif unproven:
            answer = HandlerState.UNPROVEN
    # What neither comes nor goes was asked for already.
    needs_taint_check = node.taints or not node.usable
    feasible = not needs_taint_check or is_feasible(placement, node, now=True)
    listed = node.handlers is not None and handler in node.handlers
    return NodeAssessment(node, answer, feasible, marked, young, listed)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a fleet stands to a pool's runtime. Names are sorted.

    Attributes:
        serving: names of eligible nodes that list the handler.
        not_serving: names of eligible nodes that do not.
        unknown: names of eligible nodes that cannot say.
        quarantined: names of eligible nodes on which the runtime has failed.
        not_isolating: names of eligible nodes on which the runtime was seen not to isolate.
        unproven: names of eligible nodes whose probes have had no answer for long.
        by_hostname: nodes cannot be labelled, so that pods name the hostnames that they keep away
            from.
        excluded: these hostnames, sorted; empty where nodes are labelled. It also holds those not
            eligible at this moment: they may become so while a pod waits.
        exclusions_pending: how many nodes pods must keep away from, and would not yet: they lack
            the label.
        newest_not_serving: epoch seconds at which the newest of ``not_serving`` joined.
        advice: the label that separates the serving nodes from the others, if there is one.
    """

    serving: tuple[str, ...] = ()
    not_serving: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    quarantined: tuple[str, ...] = ()
    not_isolating: tuple[str, ...] = ()
    unproven: tuple[str, ...] = ()
    by_hostname: bool = False
    excluded: tuple[str, ...] = ()
    exclusions_pending: int = 0
    newest_not_serving: float = 0.0
    advice: tuple[str, str] | None = None

    @property
    def counts(self) -> NodeCounts:
        """How many nodes stand how, as statuses show it."""
        return NodeCounts(
            eligible=self.eligible,
            serving=len(self.serving),
            notServing=len(self.not_serving),
            unknown=len(self.unknown),
            quarantined=len(self.quarantined),
            notIsolating=len(self.not_isolating),
            unproven=len(self.unproven),
        )

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
                self.not_isolating,
                self.unproven,
            )
        )

    @property
    def has_candidate_nodes(self) -> bool:
        """At least one eligible node serves the handler or may do so."""
        return bool(self.serving or self.unknown)


@dataclass(frozen=True, slots=True)
class _Contribution:
    """What one node adds to a verdict, but for its labels.

    Attributes:
        listed: where an eligible node is listed; None for one that is not eligible.
        kept_out: why pods must keep away, if they must.
        hostname: the label of nodes that are kept out.
        created: of an eligible node that does not serve, epoch seconds.
        exclusions_pending: pods may land on it that must keep away.
        spared: it is kept out only where another node can take a pod.
    """

    listed: HandlerState | None = None
    kept_out: ExclusionReason | None = None
    hostname: str | None = None
    created: float = 0.0
    exclusions_pending: bool = False
    spared: bool = False


_NOTHING = _Contribution()


def _share_of(assessment: NodeAssessment | None) -> _Contribution:
    if assessment is None:
        return _NOTHING
    node, answer = assessment.node, assessment.handler_state
    listed = answer if assessment.eligible else None
    kept_out = assessment.exclusion_reason
    return _Contribution(
        listed,
        kept_out,
        node.hostname if kept_out else None,
        node.created if listed is HandlerState.NOT_SERVING else 0.0,
        exclusions_pending=kept_out is not None
        and assessment.feasible
        and not assessment.exclusion_effective,
        spared=(kept_out is ExclusionReason.NOT_SERVING and assessment.recently_joined)
        or (kept_out is ExclusionReason.UNAVAILABLE and node.maintenance_planned),
    )


class _Sorted:
    """Strings in order, each as often as it was added."""

    def __init__(self) -> None:
        self._items: list[str] = []
        self._told: tuple[str, ...] | None = ()

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: str) -> None:
        insort(self._items, item)
        self._told = None

    def remove(self, item: str) -> None:
        del self._items[bisect_left(self._items, item)]
        self._told = None

    @property
    def all(self) -> tuple[str, ...]:
        """Each once."""
        if self._told is None:
            self._told = tuple(dict.fromkeys(self._items))
        return self._told


class VerdictAggregator:
    """How a fleet stands, summed up node by node: one that changes costs the same in any fleet.

    What few verdicts need, the advice, is looked for anew when a change may have changed it.
    """

    def __init__(self) -> None:
        self._assessments: dict[str, NodeAssessment] = {}
        self._listed = {answer: _Sorted() for answer in HandlerState}
        self._excluded_nodes = {why: _Sorted() for why in ExclusionReason}
        self._unmarked: set[str] = set()
        self._spared: set[str] = set()
        self._by_hostname = False
        self._verdict: Verdict | None = None

    def set_by_hostname(self, by_hostname: bool) -> None:
        """Whether pods name the hostnames that they keep away from."""
        self._by_hostname = by_hostname
        self._verdict = None

    @property
    def has_candidate_nodes(self) -> bool:
        """What the verdict says of it, at no cost."""
        return bool(
            len(self._listed[HandlerState.SERVING]) or len(self._listed[HandlerState.UNKNOWN])
        )

    def exclusion_reason(self, name: str) -> ExclusionReason | None:
        """Why pods must keep away from a node, if they must.

        Where no node can take a pod, one that joined a moment ago may be the answer to the one that
        waits: it is left to that, until what installs runtimes has had its time. And one that is to
        be maintained some day is better than none.
        """
        assessment = self._assessments.get(name)
        if assessment is None or (name in self._spared and not self.has_candidate_nodes):
            return None
        return assessment.exclusion_reason

    def excluded_nodes(self) -> list[str]:
        """The names of the nodes that pods must keep away from."""
        return [
            name
            for name, assessment in self._assessments.items()
            if assessment.exclusion_reason is not None
        ]

    def last_resort(self) -> list[str]:
        """The names of those that are kept out only where another node can take a pod."""
        return list(self._spared)

    def put(self, name: str, new: NodeAssessment | None) -> bool:
        """A node stands otherwise, or is none any more; return whether the verdict may differ."""
        old = self._assessments.get(name)
        if old == new:
            return False
        if new is not None:
            self._assessments[name] = new
        else:
            del self._assessments[name]
        before, after = _share_of(old), _share_of(new)
        if before == after:
            if not self._advises_otherwise(name, old, new):
                return False
        else:
            self._take(name, before, _Sorted.remove)
            self._take(name, after, _Sorted.add)
            self._note(name, after)
        self._verdict = None
        return True

    def _take(self, name: str, share: _Contribution, what: Callable[[_Sorted, str], None]) -> None:
        if share.listed is not None:
            what(self._listed[share.listed], name)
        if share.kept_out is not None and share.hostname is not None:
            what(self._excluded_nodes[share.kept_out], share.hostname)

    def _note(self, name: str, share: _Contribution) -> None:
        for names, belongs in (
            (self._unmarked, share.exclusions_pending),
            (self._spared, share.spared),
        ):
            (names.add if belongs else names.discard)(name)

    def _advises_otherwise(
        self, name: str, old: NodeAssessment | None, new: NodeAssessment | None
    ) -> bool:
        """Whether the labels of a node that is listed as before may have changed the advice.

        What is advised is a label of every serving node, so it is enough to look at one of those.
        """
        serving, others = self._separable()
        if old is None or new is None or not new.eligible or not serving or not others:
            return False
        if new.handler_state not in (HandlerState.SERVING, HandlerState.NOT_SERVING):
            return False
        changed = old.node.labels ^ new.node.labels
        example = next((one for one in serving[:2] if one != name), None)
        if example is None:
            return bool(changed)
        labels = self._assessments[example].node.labels
        if len(serving) > 1:
            return not changed.isdisjoint(labels)
        # Which label is the one node's own depends on what values the others have.
        keys = {key for key, _ in labels}
        return any(key in keys for key, _ in changed)

    def _separable(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return self._listed[HandlerState.SERVING].all, self._listed[HandlerState.NOT_SERVING].all

    @property
    def verdict(self) -> Verdict:
        """The same object as long as it is the same."""
        if self._verdict is None:
            self._verdict = self._sum_up()
        return self._verdict

    def _sum_up(self) -> Verdict:
        serving, not_serving = self._separable()
        return Verdict(
            serving=serving,
            not_serving=not_serving,
            unknown=self._listed[HandlerState.UNKNOWN].all,
            quarantined=self._listed[HandlerState.QUARANTINED].all,
            not_isolating=self._listed[HandlerState.NOT_ISOLATING].all,
            unproven=self._listed[HandlerState.UNPROVEN].all,
            by_hostname=self._by_hostname,
            excluded=self._hostnames() if self._by_hostname else (),
            exclusions_pending=len(
                self._unmarked if self.has_candidate_nodes else self._unmarked - self._spared
            ),
            newest_not_serving=max((n.created for n in self._nodes(not_serving)), default=0.0),
            advice=separating_label(self._nodes(serving), self._nodes(not_serving))
            if serving and not_serving
            else None,
        )

    def _nodes(self, names: Iterable[str]) -> Iterator[NodeFacts]:
        return (self._assessments[name].node for name in names)

    def _hostnames(self) -> tuple[str, ...]:
        """What is kept out, sorted; under the bound the worst offenders come first."""
        ranked = dict.fromkeys(
            host for why in _NAMED_FIRST for host in self._excluded_nodes[why].all
        )
        return tuple(sorted(islice(ranked, MAX_HOSTNAMES)))


def summarize(standings: Iterable[NodeAssessment], *, by_hostname: bool = False) -> Verdict:
    """Sum up how the nodes stand; their order does not matter."""
    tally = VerdictAggregator()
    tally.set_by_hostname(by_hostname)
    for assessment in standings:
        tally.put(assessment.node.name, assessment)
    return tally.verdict
