"""Which nodes a pool's pods could land on, judged as the scheduler judges it.

Only what decides about a node for ever is looked at: selectors, required node affinity and
taints. Resources, ports and topology come and go; they are the scheduler's business.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from sandboxpool.api.core import Taint, Toleration
from sandboxpool.runtimes.nodes import CORDON_TAINT, TRANSIENT_TAINT_PREFIX, NodeFacts
from sandboxpool.runtimes.resolve import Runtime


@dataclass(frozen=True, slots=True)
class Requirement:
    """One requirement of a node selector term; ``by_name`` says that it is a matchFields one."""

    key: str
    operator: str
    values: frozenset[str]
    by_name: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """Everything in a template and its class that limits the nodes; hashable, to cache by."""

    selector: frozenset[tuple[str, str]] = frozenset()
    # Terms are alternatives, the requirements of a term must all hold; None: no affinity.
    terms: tuple[tuple[Requirement, ...], ...] | None = None
    tolerations: tuple[Toleration, ...] = field(default=())
    # The handler has to support user namespaces on the node (hostUsers: false).
    user_namespaces: bool = False


class PlacementError(Exception):
    """A template's constraints are not of the API's form."""


def placement_of(pod_spec: Mapping[str, Any], runtime: Runtime) -> Placement:
    """Merge a template's constraints with those of the class, as admission will.

    Raises:
        PlacementError: the template's constraints are not of the API's form; the API server's dry
            run says so better, so callers treat it as a rejected template.
    """
    try:
        return _merged(pod_spec, runtime)
    except (msgspec.ValidationError, AttributeError, TypeError, ValueError) as error:
        raise PlacementError(str(error)) from error


def _merged(pod_spec: Mapping[str, Any], runtime: Runtime) -> Placement:
    selector = {**(pod_spec.get("nodeSelector") or {}), **dict(runtime.node_selector)}
    tolerations = msgspec.convert(pod_spec.get("tolerations") or [], list[Toleration])
    node_affinity = (pod_spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = node_affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    terms = None
    if required is not None:
        parsed = msgspec.convert(required, _NodeSelector)
        terms = tuple(_requirements(term) for term in parsed.nodeSelectorTerms)
    return Placement(
        selector=frozenset(selector.items()),
        terms=terms,
        tolerations=(*tolerations, *runtime.tolerations),
        user_namespaces=wants_user_namespace(pod_spec),
    )


def wants_user_namespace(pod_spec: Mapping[str, Any]) -> bool:
    """Whether a pod is to have a user namespace of its own, which its handler must support."""
    return pod_spec.get("hostUsers") is False


def allows(placement: Placement, node: NodeFacts, *, now: bool) -> bool:
    """Whether the scheduler may put such a pod on the node.

    Args:
        placement: the constraints.
        node: the node.
        now: also ask that the node takes pods at this moment (Ready, not cordoned, none of the
            taints that come and go); False asks whether it could, once it is well.
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
    if now:
        if not node.ready:
            return False
        if not node.schedulable:
            cordon = Taint(key=CORDON_TAINT, effect="NoSchedule")
            if not any(_tolerates(toleration, cordon) for toleration in placement.tolerations):
                return False
    return not taints or all(
        any(_tolerates(toleration, taint) for toleration in placement.tolerations)
        for taint in taints
    )


# Key and value of a taint, or of what tolerates it; None stands for every value.
Mark = tuple[str, str | None]


class Taints:
    """The taints of a fleet: what no node has nobody needs to tolerate.

    Pools whose tolerations differ only in what no node has stand alike to all nodes.
    """

    def __init__(self) -> None:
        # A cordon is none of a node's own taints, and can come at any time.
        self._marks: Counter[Mark] = Counter(_marks_of([Taint(CORDON_TAINT, "NoSchedule")]))

    def change(self, before: Iterable[Taint], after: Iterable[Taint]) -> set[Mark]:
        """A node has other taints; return the marks that no node has had before."""
        was, is_now = _marks_of(before), _marks_of(after)
        new = {mark for mark in is_now if mark not in self._marks}
        self._marks.update(is_now)
        for mark in was:
            self._marks[mark] -= 1
            if not self._marks[mark]:
                del self._marks[mark]
        return new

    def split(self, placement: Placement) -> tuple[Placement, set[Mark]]:
        """Leave out the tolerations that no node needs; return their marks as well."""
        needed: dict[Toleration, None] = {}
        unneeded = set()
        for toleration in placement.tolerations:
            mark = toleration.key, None if toleration.operator == "Exists" else toleration.value
            if not toleration.key or mark in self._marks:
                needed[toleration] = None
            else:
                unneeded.add(mark)
        return replace(placement, tolerations=tuple(needed)), unneeded


def _marks_of(taints: Iterable[Taint]) -> list[Mark]:
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
    try:
        difference = int(value or "") - int(next(iter(values), ""))
    except ValueError:
        return 0
    return (difference > 0) - (difference < 0)


def _tolerates(toleration: Toleration, taint: Taint) -> bool:
    if toleration.effect and toleration.effect != taint.effect:
        return False
    if toleration.key and toleration.key != taint.key:
        return False
    if toleration.operator == "Exists":
        return True
    return bool(toleration.key) and toleration.value == taint.value
