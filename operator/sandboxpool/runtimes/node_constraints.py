"""Which nodes a pool's pods could be scheduled to, by the rules of the scheduler.

Only constraints that do not depend on the other pods are evaluated: selectors, required node
affinity and taints. Resources, ports and topology are left to the scheduler.
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
# The admission plugin DefaultTolerationSeconds adds NoExecute tolerations of these to every pod.
_DEFAULT_TOLERATED = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
# The syntax of Go's strconv.ParseInt.
_NUMBER = re.compile(r"[+-]?[0-9]{1,40}", re.ASCII)
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Requirement:
    """One requirement of a node selector term; ``by_name`` marks one of matchFields."""

    key: str
    operator: str
    values: frozenset[str]
    by_name: bool = False


@dataclass(frozen=True, slots=True)
class NodeConstraints:
    """The constraints of a template and its class on nodes; hashable, as a cache key."""

    selector: frozenset[tuple[str, str]] = frozenset()
    # Terms are alternatives, and all requirements of a term must hold; None: no affinity.
    terms: tuple[tuple[Requirement, ...], ...] | None = None
    tolerations: tuple[Toleration, ...] = field(default=())
    # The handler must support user namespaces on the node (hostUsers: false).
    user_namespaces: bool = False


class NodeConstraintsError(Exception):
    """The node constraints of a template are malformed."""


def node_constraints_of(pod_spec: Mapping[str, Any], runtime: Runtime) -> NodeConstraints:
    """Merge the constraints of a template with those of the class, as admission usually does.

    Raises:
        NodeConstraintsError: the template's constraints are malformed. The API server's dry run has
            a better message, so callers treat the template as rejected.
    """
    try:
        return _merged(pod_spec, runtime)
    except (msgspec.ValidationError, AttributeError, TypeError, ValueError) as error:
        raise NodeConstraintsError(str(error)) from error


def admitted_node_constraints(answer: bytes, runtime: Runtime) -> NodeConstraints:
    """The node constraints of a pod after admission.

    They include those of the namespace's node selector, of webhooks and of the class. Those of the
    class are added once more: right after a change of the class, admission may still apply the
    former ones. The operator's own exclusions are left out, so that excluded nodes still count as
    the pool's nodes.

    Args:
        answer: the pod as the API server's dry run returned it.
        runtime: the pod's class.

    Raises:
        msgspec.DecodeError: the answer is not a pod. Also the other errors of unreadable bytes.
    """
    spec = msgspec.json.decode(answer, type=_Admitted).spec
    affinity = spec.affinity.nodeAffinity if spec.affinity is not None else None
    required = affinity.requiredDuringSchedulingIgnoredDuringExecution if affinity else None
    terms = None if required is None else tuple(map(_requirements, required.nodeSelectorTerms))
    if any(term and not _without_exclusions(term) for term in terms or ()):
        # A term with nothing but exclusions admits every node.
        terms = None
    return NodeConstraints(
        selector=frozenset(spec.nodeSelector.items()) | frozenset(runtime.node_selector),
        terms=None if terms is None else tuple(map(_without_exclusions, terms)),
        tolerations=_relevant([*spec.tolerations, *runtime.tolerations]),
        user_namespaces=spec.hostUsers is False,
    )


def _without_exclusions(term: tuple[Requirement, ...]) -> tuple[Requirement, ...]:
    return tuple(r for r in term if not r.key.startswith(EXCLUSION_PREFIX))


def _relevant(tolerations: Sequence[Toleration]) -> tuple[Toleration, ...]:
    """Sort and deduplicate tolerations, without the default ones where these have no effect.

    A node that is not Ready has a NoSchedule taint besides the NoExecute one. The default
    tolerations of the latter have no effect for a pod that does not tolerate the former.
    """
    rest = [t for t in tolerations if not _is_default(t)]
    no_schedule = [Taint(key, "NoSchedule") for key in _DEFAULT_TOLERATED]
    if any(_tolerates_any(rest, taint) for taint in no_schedule):
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
        tolerations=_relevant([*tolerations, *runtime.tolerations]),
        user_namespaces=wants_user_namespace(pod_spec),
    )


def wants_user_namespace(pod_spec: Mapping[str, Any]) -> bool:
    """Whether the pod has a user namespace of its own, which its handler must support."""
    return pod_spec.get("hostUsers") is False


def is_feasible(constraints: NodeConstraints, node: NodeFacts, *, now: bool) -> bool:
    """Whether the scheduler may place such a pod on the node.

    The Ready condition is not evaluated, as in the scheduler: only its taints repel pods.

    Args:
        constraints: the constraints.
        node: the node.
        now: evaluate the node as it is now; False ignores a cordon and transient taints.
    """
    if not constraints.selector <= node.labels:
        return False
    if constraints.terms is not None:
        labels = dict(node.labels)
        if not any(
            term and all(_holds(requirement, node, labels) for requirement in term)
            for term in constraints.terms
        ):
            return False
    taints = [
        taint
        for taint in node.taints
        if taint.effect in ("NoSchedule", "NoExecute")
        and (now or not taint.key.startswith(TRANSIENT_TAINT_PREFIX))
    ]
    if now and node.cordoned and not _tolerates_any(constraints.tolerations, _CORDON):
        return False
    return all(_tolerates_any(constraints.tolerations, taint) for taint in taints)


# Key and value of a taint or of a toleration; None stands for every value.
TaintKey = tuple[str, str | None]


class TaintIndex:
    """The taints of all nodes, to drop the tolerations that no node needs.

    Pools whose constraints differ only in dropped tolerations have the same verdict.
    """

    def __init__(self) -> None:
        # A cordon is not among the taints of NodeFacts, and any node may be cordoned.
        self._keys: Counter[TaintKey] = Counter(_keys_of([_CORDON]))

    def change(self, before: Iterable[Taint], after: Iterable[Taint]) -> set[TaintKey]:
        """Replace the taints of a node; return the keys that no node had before."""
        removed, added = _keys_of(before), _keys_of(after)
        new = {key for key in added if key not in self._keys}
        self._keys.update(added)
        for key in removed:
            self._keys[key] -= 1
            if not self._keys[key]:
                del self._keys[key]
        return new

    def split(self, constraints: NodeConstraints) -> tuple[NodeConstraints, set[TaintKey]]:
        """Drop the tolerations that no node needs; return their keys as well."""
        needed: dict[Toleration, None] = {}
        dropped = set()
        for toleration in constraints.tolerations:
            by_value = toleration.operator in ("Equal", "")
            key = toleration.key, toleration.value if by_value else None
            if not toleration.key or key in self._keys:
                needed[toleration] = None
            else:
                dropped.add(key)
        return replace(constraints, tolerations=tuple(needed)), dropped


def _keys_of(taints: Iterable[Taint]) -> list[TaintKey]:
    return [key for taint in taints for key in ((taint.key, taint.value), (taint.key, None))]


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
    """Return the sign of value minus bound; 0, which satisfies neither, if one is not a number."""
    number, bound = _number(value), _number(next(iter(values), None))
    if number is None or bound is None:
        return 0
    return (number > bound) - (number < bound)


def _number(text: str | None) -> int | None:
    """Parse a 64-bit integer as Go does."""
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
