"""How pods are kept off nodes that must not be used for a handler: by labels on these nodes.

A pod requires that its node does not have the label. That is constant in size, the scheduler looks
at it again whenever the node changes, and cluster autoscalers know how to read it: Karpenter drops
a pod that names hostnames. Where the operator may not label nodes, hostnames are what is left.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from sandboxpool.api import names

PREFIX = names.EXCLUSION_PREFIX
AVOIDED = "Avoided"
# A pod that names hostnames grows with them, in etcd and in every watch: no more than so many.
MAX_HOSTNAMES = 500
# Runtimes are installed after a node is Ready: so long after it joined, a node that still does not
# serve the handler never will by itself.
INSTALL_GRACE_SECONDS = 300.0


class ExclusionReason(StrEnum):
    """Why a node is not to be used for a handler: the label's value, the first before the last.

    Those that only some pools mind never hide another.
    """

    NOT_SERVING = "NotServing"
    QUARANTINED = "Quarantined"
    UNAVAILABLE = "Unavailable"
    NEITHER = "NotIsolatingNoUserNamespaces"
    NOT_ISOLATING = "NotIsolating"
    NO_USER_NAMESPACES = "NoUserNamespaces"


_OF_SOME = frozenset({ExclusionReason.NOT_ISOLATING, ExclusionReason.NO_USER_NAMESPACES})
_RANK = {why: rank for rank, why in enumerate(ExclusionReason)}


def handler_key(handler: str) -> str:
    """The label of nodes that are not to be used for a handler."""
    return PREFIX + handler


def pool_key(pool_uid: str) -> str:
    """The label of nodes that one pool keeps away from."""
    return f"{PREFIX}pool-{pool_uid}"


def most_severe(why: ExclusionReason, other: ExclusionReason | None) -> ExclusionReason:
    """What the label is to say of two."""
    if {why, other} == _OF_SOME:
        return ExclusionReason.NEITHER
    return min(why, other or why, key=_RANK.__getitem__)


def _excluding_values(*, proof_wanted: bool, user_namespaces: bool) -> list[str]:
    """The values that a pool minds."""
    spared = {ExclusionReason.NEITHER, *_OF_SOME}
    if proof_wanted:
        spared -= {ExclusionReason.NEITHER, ExclusionReason.NOT_ISOLATING}
    if user_namespaces:
        spared -= {ExclusionReason.NEITHER, ExclusionReason.NO_USER_NAMESPACES}
    return [why.value for why in ExclusionReason if why not in spared]


def is_excluded(
    node: Mapping[str, str], handler: str, *, proof_wanted: bool, user_namespaces: bool
) -> bool:
    """Whether these exclusion labels of a node keep a pool's pods away from it.

    Args:
        node: the node's labels under `PREFIX`.
        handler: the pods' handler.
        proof_wanted: the pool wants proof of isolation.
        user_namespaces: its pods want user namespaces of their own.
    """
    value = node.get(handler_key(handler))
    return value is not None and value in _excluding_values(
        proof_wanted=proof_wanted, user_namespaces=user_namespaces
    )


def by_label(
    handler: str, pool_uid: str, *, proof_wanted: bool, user_namespaces: bool
) -> list[dict[str, Any]]:
    """What every pod of a pool requires of its node's labels."""
    values = _excluding_values(proof_wanted=proof_wanted, user_namespaces=user_namespaces)
    of_handler = {"key": handler_key(handler), "operator": "NotIn", "values": values}
    return [of_handler, {"key": pool_key(pool_uid), "operator": "DoesNotExist"}]


def hostname_requirements(hostnames: Sequence[str]) -> list[dict[str, Any]]:
    """The same where nodes cannot be labelled."""
    if not hostnames:
        return []
    return [{"key": names.HOSTNAME_LABEL, "operator": "NotIn", "values": list(hostnames)}]


def require_node_affinity(
    affinity: Mapping[str, Any] | None, requirements: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Require something of a pod's node, on top of the affinity that the pod has.

    Terms of a node affinity are alternatives, so it goes into each of them; one without
    requirements, which matches nothing, must not begin to match.
    """
    affinity = dict(affinity or {})
    node_affinity = dict(affinity.get("nodeAffinity") or {})
    required = node_affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = [
        {**term, "matchExpressions": [*(term.get("matchExpressions") or []), *requirements]}
        if term.get("matchExpressions") or term.get("matchFields") or not required
        else term
        for term in required.get("nodeSelectorTerms") or [{}]
    ]
    node_affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": terms}
    affinity["nodeAffinity"] = node_affinity
    return affinity
