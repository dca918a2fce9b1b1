"""Which nodes a pool's pods could land on, judged as the scheduler judges it.

Only what decides about a node for ever is looked at: selectors, required node affinity and
taints. Resources, ports and topology come and go; they are the scheduler's business.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from sandboxpool.api.core import Taint, Toleration
from sandboxpool.api.names import EXCLUSION_PREFIX
from sandboxpool.runtimes.nodes import CORDON_TAINT, TRANSIENT_TAINT_PREFIX, NodeFacts
from sandboxpool.runtimes.resolve import Runtime

_CORDON = Taint(key=CORDON_TAINT, effect="NoSchedule")
# The plugin DefaultTolerationSeconds has every pod tolerate these for a while, once it runs.
_DEFAULT_TOLERATED = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
# What Go's strconv.ParseInt takes.
_NUMBER = re.compile(r"[+-]?[0-9]{1,40}", re.ASCII)
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Requirement:
    """One requirement of a node selector term; ``by_name`` says that it is a matchFields one."""

    key: str
    operator: str
    values: frozenset[str]
    by_name: bool = False


@dataclass(frozen=True, slots=True)
class NodeConstraints:
    """Everything in a template and its class that limits the nodes; hashable, to cache by."""

    selector: frozenset[tuple[str, str]] = frozenset()
    # Terms are alternatives, the requirements of a term must all hold; None: no affinity.
    terms: tuple[tuple[Requirement, ...], ...] | None = None
    tolerations: tuple[Toleration, ...] = field(default=())
    # The handler has to support user namespaces on the node (hostUsers: false).
    user_namespaces: bool = False


class NodeConstraintsError(Exception):
    """A template's constraints are not of the API's form."""


def node_constraints_of(pod_spec: Mapping[str, Any], runtime: Runtime) -> NodeConstraints:
    """Merge a template's constraints with those of the class, as admission most likely will.

    Raises:
        NodeConstraintsError: the template's constraints are not of the API's form; the API server's
            dry run says so better, so callers treat it as a rejected template.
    """
    try:
        return _merged(pod_spec, runtime)
    except (msgspec.ValidationError, AttributeError, TypeError, ValueError) as error:
        raise NodeConstraintsError(str(error)) from error


def admitted_node_constraints(answer: bytes) -> NodeConstraints:
    """What limits the nodes of a pod as admission has left it.

    A namespace's node selector, webhooks and the class's own scheduling are in it by then. What
    keeps its pods off nodes is left out: that a node is kept out must not make it a stranger.

    Args:
        answer: the pod that came back.

    Raises:
        msgspec.DecodeError: the answer is no pod. Also the other errors of unreadable bytes.
    """
    spec = msgspec.json.decode(answer, type=_Admitted).spec
    affinity = spec.affinity.nodeAffinity if spec.affinity is not None else None
    required = affinity.requiredDuringSchedulingIgnoredDuringExecution if affinity else None
    terms = None if required is None else tuple(map(_requirements, required.nodeSelectorTerms))
    if any(term and not _not_ours(term) for term in terms or ()):
        # A term of ours alone stands for every node.
        terms = None
    return NodeConstraints(
        selector=frozenset(spec.nodeSelector.items()),
        terms=None if terms is None else tuple(map(_not_ours, terms)),
        tolerations=_needed(spec.tolerations),
        user_namespaces=spec.hostUsers is False,
    )


def _not_ours(term: tuple[Requirement, ...]) -> tuple[Requirement, ...]:
    return tuple(r for r in term if not r.key.startswith(EXCLUSION_PREFIX))


def _needed(tolerations: Sequence[Toleration]) -> tuple[Toleration, ...]:
    """Tolerations in one order, each once, without those that every pod is given.

    A node that is not Ready has a taint that forbids new pods beside the one that ends old ones, so
    whoever does not tolerate the former need not tolerate the latter.
    """
    rest = [t for t in tolerations if not _is_default(t)]
    forbidding = [Taint(key, "NoSchedule") for key in _DEFAULT_TOLERATED]
    if any(_tolerates_any(rest, taint) for taint in forbidding):
        rest = list(tolerations)
    return tuple(sorted(set(rest), key=lambda t: (t.key, t.operator, t.value, t.effect)))


def _is_default(toleration: Toleration) -> bool:
    return toleration.effect == "NoExecute" and toleration.key in _DEFAULT_TOLERATED


def _merged(pod_spec: Mapping[str, Any], runtime: Runtime) -> NodeConstraints:
    selector = {**(pod_spec.get("nodeSelector") or {}), **dict(runtime.node_selector)}
    tolerations = msgspec.convert(pod_spec.get("tolerations") or [], list[Toleration])
    node_affinity = (pod_spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = node_affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    terms = None
    if required is not None:
        parsed = msgspec.convert(required, _NodeSelector)
        terms = tuple(_requirements(term) for term in parsed.nodeSelectorTerms)
    return NodeConstraints(
        selector=frozenset(selector.items()),
        terms=terms,
        tolerations=_needed([*tolerations, *runtime.tolerations]),
        user_namespaces=wants_user_namespace(pod_spec),
    )


def wants_user_namespace(pod_spec: Mapping[str, Any]) -> bool:
    """Whether a pod is to have a user namespace of its own, which its handler must support."""
    return pod_spec.get("hostUsers") is False


def is_feasible(placement: NodeConstraints, node: NodeFacts, *, now: bool) -> bool:
    """Whether the scheduler may put such a pod on the node.

    Args:
        placement: the constraints.
        node: the node.
        now: as the node is at this moment (cordoned, with taints that come and go); False asks
            whether it may once it is well. Whether it is Ready the scheduler does not ask: only
            taints keep a pod away, and what tolerates them goes to a node that is not.
    """
    if not placement.selector <= node.labels:
        return False
    if placement.terms is not None:
        labels = dict(node.labels)
        if not any(
            term and all(_holds(requirement, node, labels) for requirement in term)
            for term in placement.terms
        ):
            return False
    taints = [
        taint
        for taint in node.taints
        if taint.effect in ("NoSchedule", "NoExecute")
        and (now or not taint.key.startswith(TRANSIENT_TAINT_PREFIX))
    ]
    if now and node.cordoned and not _tolerates_any(placement.tolerations, _CORDON):
        return False
    return all(_tolerates_any(placement.tolerations, taint) for taint in taints)


# Key and value of a taint, or of what tolerates it; None stands for every value.
TaintKey = tuple[str, str | None]


class TaintIndex:
    """The taints of a fleet: what no node has nobody needs to tolerate.

    Pools whose tolerations differ only in what no node has stand alike to all nodes.
    """

    def __init__(self) -> None:
        # A cordon is none of a node's own taints, and can come at any time.
        self._marks: Counter[TaintKey] = Counter(_marks_of([_CORDON]))

    def change(self, before: Iterable[Taint], after: Iterable[Taint]) -> set[TaintKey]:
        """A node has other taints; return the marks that no node has had before."""
        was, is_now = _marks_of(before), _marks_of(after)
        new = {mark for mark in is_now if mark not in self._marks}
        self._marks.update(is_now)
        for mark in was:
            self._marks[mark] -= 1
            if not self._marks[mark]:
                del self._marks[mark]
        return new

    def split(self, placement: NodeConstraints) -> tuple[NodeConstraints, set[TaintKey]]:
        """Leave out the tolerations that no node needs; return their marks as well."""
        needed: dict[Toleration, None] = {}
        unneeded = set()
        for toleration in placement.tolerations:
            by_value = toleration.operator in ("Equal", "")
            mark = toleration.key, toleration.value if by_value else None
            if not toleration.key or mark in self._marks:
                needed[toleration] = None
            else:
                unneeded.add(mark)
        return replace(placement, tolerations=tuple(needed)), unneeded


def _marks_of(taints: Iterable[Taint]) -> list[TaintKey]:
    return [mark for taint in taints for mark in ((taint.key, taint.value), (taint.key, None))]


class _SelectorRequirement(msgspec.Struct):
    key: str
    operator: str
    values: list[str] = []


class _Term(msgspec.Struct):
    matchExpressions: list[_SelectorRequirement] = []
    matchFields: list[_SelectorRequirement] = []


class _NodeSelector(msgspec.Struct):
    nodeSelectorTerms: list[_Term] = []


class _NodeAffinity(msgspec.Struct):
    requiredDuringSchedulingIgnoredDuringExecution: _NodeSelector | None = None


class _Affinity(msgspec.Struct):
    nodeAffinity: _NodeAffinity | None = None


class _AdmittedSpec(msgspec.Struct):
    nodeSelector: dict[str, str] = {}
    affinity: _Affinity | None = None
    tolerations: list[Toleration] = []
    hostUsers: bool | None = None


class _Admitted(msgspec.Struct):
    spec: _AdmittedSpec


def _requirements(term: _Term) -> tuple[Requirement, ...]:
    return tuple(
        Requirement(r.key, r.operator, frozenset(r.values), by_name)
        for group, by_name in ((term.matchExpressions, False), (term.matchFields, True))
        for r in group
    )


_OPERATORS: dict[str, Callable[[str | None, frozenset[str]], bool]] = {
    "In": lambda value, values: value in values,
    "NotIn": lambda value, values: value not in values,
    "Exists": lambda value, values: value is not None,
    "DoesNotExist": lambda value, values: value is None,
    "Gt": lambda value, values: _compared(value, values) > 0,
    "Lt": lambda value, values: _compared(value, values) < 0,
}


def _holds(requirement: Requirement, node: NodeFacts, labels: Mapping[str, str]) -> bool:
    value = node.name if requirement.by_name else labels.get(requirement.key)
    test = _OPERATORS.get(requirement.operator)
    return test is not None and test(value, requirement.values)


def _compared(value: str | None, values: frozenset[str]) -> int:
    """Return the sign of value minus bound; 0, which satisfies nothing, if one is no number."""
    number, bound = _number(value), _number(next(iter(values), None))
    if number is None or bound is None:
        return 0
    return (number > bound) - (number < bound)


def _number(text: str | None) -> int | None:
    """Read what Go takes for a whole number of 64 bits."""
    if text is None or not _NUMBER.fullmatch(text) or int(text) not in _INT64:
        return None
    return int(text)


def _tolerates_any(tolerations: Iterable[Toleration], taint: Taint) -> bool:
    return any(_tolerates(toleration, taint) for toleration in tolerations)


def _tolerates(toleration: Toleration, taint: Taint) -> bool:
    if toleration.effect and toleration.effect != taint.effect:
        return False
    if toleration.key and toleration.key != taint.key:
        return False
    if toleration.operator == "Exists":
        return True
    if toleration.operator in ("Gt", "Lt"):
        return _OPERATORS[toleration.operator](taint.value, frozenset({toleration.value}))
    return bool(toleration.key) and toleration.value == taint.value
