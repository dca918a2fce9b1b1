"""Where a runtime is served: a total function of a class, node constraints and the nodes.

A node that lists the handler is *serving*: the handler is configured, which does not prove that it
works. A node whose list lacks the handler is *not serving*. A node without a list is *unknown*. A
node on which the runtime has failed is *quarantined*, and one on which it does not isolate is
*not_isolating*, whatever its list says. A node that is cordoned or not Ready is *unavailable* if
the pods tolerate that: they would land there, and could not be allocated.
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
    """The state of a handler on a node: as the node lists it, unless more is known."""

    SERVING = "serving"
    NOT_SERVING = "notServing"
    UNKNOWN = "unknown"
    QUARANTINED = "quarantined"
    NOT_ISOLATING = "notIsolating"
    # Probes get no answer on this node, and do on others.
    UNPROVEN = "unproven"


# Nodes in these states are excluded. An unproven node is better than none, so it is not: the pools
# avoid it.
_EXCLUSION_OF_STATE = {
    HandlerState.NOT_SERVING: ExclusionReason.NOT_SERVING,
    HandlerState.QUARANTINED: ExclusionReason.QUARANTINED,
    HandlerState.NOT_ISOLATING: ExclusionReason.NOT_ISOLATING,
}
# The order of exclusion by hostname, where not all can be listed.
_HOSTNAMES_ORDER = (
    ExclusionReason.QUARANTINED,
    ExclusionReason.NOT_ISOLATING,
    ExclusionReason.UNAVAILABLE,
    ExclusionReason.NOT_SERVING,
    ExclusionReason.NO_USER_NAMESPACES,
)


def listed_handler_state(node: NodeFacts, handler: str) -> HandlerState:
    """Look up a handler in the list of a node."""
    if node.handlers is None:
        return HandlerState.UNKNOWN
    return HandlerState.SERVING if handler in node.handlers else HandlerState.NOT_SERVING


@dataclass(frozen=True, slots=True)
class NodeAssessment:
    """The assessment of one node for a handler and node constraints.

    Attributes:
        handler_state: as the node lists the handler, unless more is known.
        feasible: the scheduler may place a pod on the node now, by its labels and taints.
        exclusion_effective: the exclusion labels exclude the node, or it cannot be labelled.
        recently_joined: runtimes may still be installed on the node.
        listed: the node lists the handler, so other pools may use it.
    """

    node: NodeFacts
    handler_state: HandlerState
    feasible: bool
    exclusion_effective: bool = True
    recently_joined: bool = False
    listed: bool = False

    @property
    def eligible(self) -> bool:
        """A pod could be placed on the node now, and be allocated there."""
        return self.feasible and self.node.usable

    @property
    def exclusion_reason(self) -> ExclusionReason | None:
        """Why the node must be excluded; None if it need not be."""
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
    constraints: NodeConstraints,
    *,
    quarantined: bool,
    not_isolating: bool,
    unproven: bool = False,
    exclusion_effective: bool = True,
    recently_joined: bool = False,
) -> NodeAssessment | None:
    """Assess one node; None if the constraints rule it out for ever.

    Args:
        node: the node.
        handler: the handler of the pods' class.
        constraints: the node constraints of the class and the template.
        quarantined: the node is quarantined for the handler.
        not_isolating: proof of isolation is required, and a probe has refuted it.
        unproven: proof is required, this node has given none for long, and another node has.
        exclusion_effective: see `NodeAssessment`.
        recently_joined: see `NodeAssessment`.
    """
    if not is_feasible(constraints, node, now=False):
        return None
    state = listed_handler_state(node, handler)
    if constraints.user_namespaces and handler in node.without_user_namespaces:
        # The kubelet rejects sandboxes of this handler with a user namespace.
        state = HandlerState.NOT_SERVING
    if state is not HandlerState.NOT_SERVING:
        # A handler that is not listed explains more than a quarantine does.
        if quarantined:
            state = HandlerState.QUARANTINED
        elif not_isolating:
            state = HandlerState.NOT_ISOLATING
        elif unproven:
            state = HandlerState.UNPROVEN
    # The permanent constraints were checked above.
    needs_taint_check = node.taints or not node.usable
    feasible = not needs_taint_check or is_feasible(constraints, node, now=True)
    listed = node.handlers is not None and handler in node.handlers
    return NodeAssessment(node, state, feasible, exclusion_effective, recently_joined, listed)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The state of a pool's runtime on all nodes. Names are sorted.

    Attributes:
        serving: names of eligible nodes that list the handler.
        not_serving: names of eligible nodes that do not.
        unknown: names of eligible nodes that list no handlers at all.
        quarantined: names of eligible nodes on which the runtime has failed.
        not_isolating: names of eligible nodes on which a probe has refuted isolation.
        unproven: names of eligible nodes whose probes have had no answer for long.
        by_hostname: nodes cannot be labelled, so pods exclude nodes by hostname.
        excluded: the excluded hostnames; empty where nodes are labelled. It includes nodes that are
            not eligible now: they may become eligible while a pod is pending.
        exclusions_pending: how many feasible nodes still lack their exclusion label.
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
        """How many nodes could run a pod now, regardless of their runtime."""
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
    """What one node adds to a verdict, except for its labels.

    Attributes:
        state: of an eligible node; None for one that is not eligible.
        exclusion: why the node is excluded, if it is.
        hostname: of an excluded node.
        created: of an eligible node that does not serve, epoch seconds.
        exclusion_pending: pods may still be placed on the excluded node.
        last_resort: the node is excluded only while another node is a candidate.
    """

    state: HandlerState | None = None
    exclusion: ExclusionReason | None = None
    hostname: str | None = None
    created: float = 0.0
    exclusion_pending: bool = False
    last_resort: bool = False


_NOTHING = _Contribution()


def _contribution_of(assessment: NodeAssessment | None) -> _Contribution:
    if assessment is None:
        return _NOTHING
    node = assessment.node
    state = assessment.handler_state if assessment.eligible else None
    exclusion = assessment.exclusion_reason
    return _Contribution(
        state,
        exclusion,
        node.hostname if exclusion else None,
        node.created if state is HandlerState.NOT_SERVING else 0.0,
        exclusion_pending=exclusion is not None
        and assessment.feasible
        and not assessment.exclusion_effective,
        last_resort=(exclusion is ExclusionReason.NOT_SERVING and assessment.recently_joined)
        or (exclusion is ExclusionReason.UNAVAILABLE and node.maintenance_planned),
    )


class _SortedMultiset:
    """Strings in order, each as often as it was added."""

    def __init__(self) -> None:
        self._items: list[str] = []
        self._distinct: tuple[str, ...] | None = ()

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: str) -> None:
        insort(self._items, item)
        self._distinct = None

    def remove(self, item: str) -> None:
        del self._items[bisect_left(self._items, item)]
        self._distinct = None

    @property
    def distinct(self) -> tuple[str, ...]:
        """Each string once."""
        if self._distinct is None:
            self._distinct = tuple(dict.fromkeys(self._items))
        return self._distinct


class VerdictAggregator:
    """Keeps a verdict up to date node by node, at a cost that does not grow with the fleet.

    Only the advice, which few verdicts have, is computed again from all nodes when it may differ.
    """

    def __init__(self) -> None:
        self._assessments: dict[str, NodeAssessment] = {}
        self._by_state = {state: _SortedMultiset() for state in HandlerState}
        # Hostnames.
        self._excluded = {reason: _SortedMultiset() for reason in ExclusionReason}
        # Names of nodes.
        self._exclusions_pending: set[str] = set()
        self._last_resort: set[str] = set()
        self._by_hostname = False
        self._verdict: Verdict | None = None

    def set_by_hostname(self, by_hostname: bool) -> None:
        """Set whether pods exclude nodes by hostname."""
        self._by_hostname = by_hostname
        self._verdict = None

    @property
    def has_candidate_nodes(self) -> bool:
        """As in the verdict, without computing it."""
        return bool(
            len(self._by_state[HandlerState.SERVING]) or len(self._by_state[HandlerState.UNKNOWN])
        )

    def exclusion_reason(self, name: str) -> ExclusionReason | None:
        """Why a node must be excluded; None if it need not be.

        While there is no candidate node, nodes of last resort are not excluded. An autoscaler may
        have added a recently joined node for a pending pod, and its runtimes may still be
        installed. A node with planned maintenance is better than none.
        """
        assessment = self._assessments.get(name)
        if assessment is None or (name in self._last_resort and not self.has_candidate_nodes):
            return None
        return assessment.exclusion_reason

    def excluded_nodes(self) -> list[str]:
        """The names of the nodes to exclude, those of last resort included."""
        return [
            name
            for name, assessment in self._assessments.items()
            if assessment.exclusion_reason is not None
        ]

    def last_resort(self) -> list[str]:
        """The names of the nodes that are excluded only while there is a candidate node."""
        return list(self._last_resort)

    def put(self, name: str, new: NodeAssessment | None) -> bool:
        """Replace the assessment of a node, or remove it; return whether the verdict may differ."""
        old = self._assessments.get(name)
        if old == new:
            return False
        if new is not None:
            self._assessments[name] = new
        else:
            del self._assessments[name]
        before, after = _contribution_of(old), _contribution_of(new)
        if before == after:
            if not self._may_change_advice(name, old, new):
                return False
        else:
            self._apply(name, before, _SortedMultiset.remove)
            self._apply(name, after, _SortedMultiset.add)
            for names, belongs in (
                (self._exclusions_pending, after.exclusion_pending),
                (self._last_resort, after.last_resort),
            ):
                (names.add if belongs else names.discard)(name)
        self._verdict = None
        return True

    def _apply(
        self, name: str, share: _Contribution, change: Callable[[_SortedMultiset, str], None]
    ) -> None:
        if share.state is not None:
            change(self._by_state[share.state], name)
        if share.exclusion is not None and share.hostname is not None:
            change(self._excluded[share.exclusion], share.hostname)

    def _may_change_advice(
        self, name: str, old: NodeAssessment | None, new: NodeAssessment | None
    ) -> bool:
        """Whether new labels of a node in the same state may change the advice.

        The advised label is one of every serving node, so checking one serving node is enough.
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
        # Whether a label identifies the only serving node depends on the values of the others.
        keys = {key for key, _ in labels}
        return any(key in keys for key, _ in changed)

    def _separable(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return (
            self._by_state[HandlerState.SERVING].distinct,
            self._by_state[HandlerState.NOT_SERVING].distinct,
        )

    @property
    def verdict(self) -> Verdict:
        """The verdict; the same object until it changes."""
        if self._verdict is None:
            self._verdict = self._compute()
        return self._verdict

    def _compute(self) -> Verdict:
        serving, not_serving = self._separable()
        return Verdict(
            serving=serving,
            not_serving=not_serving,
            unknown=self._by_state[HandlerState.UNKNOWN].distinct,
            quarantined=self._by_state[HandlerState.QUARANTINED].distinct,
            not_isolating=self._by_state[HandlerState.NOT_ISOLATING].distinct,
            unproven=self._by_state[HandlerState.UNPROVEN].distinct,
            by_hostname=self._by_hostname,
            excluded=self._hostnames() if self._by_hostname else (),
            exclusions_pending=len(
                self._exclusions_pending
                if self.has_candidate_nodes
                else self._exclusions_pending - self._last_resort
            ),
            newest_not_serving=max((n.created for n in self._nodes(not_serving)), default=0.0),
            advice=separating_label(self._nodes(serving), self._nodes(not_serving))
            if serving and not_serving
            else None,
        )

    def _nodes(self, names: Iterable[str]) -> Iterator[NodeFacts]:
        return (self._assessments[name].node for name in names)

    def _hostnames(self) -> tuple[str, ...]:
        """The excluded hostnames, sorted; the most important ones if there are too many."""
        ranked = dict.fromkeys(
            host for reason in _HOSTNAMES_ORDER for host in self._excluded[reason].distinct
        )
        return tuple(sorted(islice(ranked, MAX_HOSTNAMES)))


def summarize(assessments: Iterable[NodeAssessment], *, by_hostname: bool = False) -> Verdict:
    """Summarize the assessments of all nodes, in any order."""
    aggregator = VerdictAggregator()
    aggregator.set_by_hostname(by_hostname)
    for assessment in assessments:
        aggregator.put(assessment.node.name, assessment)
    return aggregator.verdict
