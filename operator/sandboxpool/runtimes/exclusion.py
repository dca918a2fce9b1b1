"""Excludes nodes from the scheduling of sandboxes by labels on these nodes.

The node affinity of a pod requires that the node does not have the label. Its size is constant, the
scheduler evaluates it again whenever the node changes, and cluster autoscalers support it, whereas
Karpenter ignores pods that name hostnames. Hostnames are used only where the operator is not
allowed to label nodes.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from sandboxpool.api import names

PREFIX = names.EXCLUSION_PREFIX
AVOIDED = "Avoided"
# A pod that lists hostnames grows with them, in etcd and in every watch.
MAX_HOSTNAMES = 500
# Runtimes may be installed after a node is Ready. A node that does not serve the handler this long
# after it joined is not expected to do so any more.
INSTALL_GRACE_SECONDS = 300.0


class ExclusionReason(StrEnum):
    """Why a node is excluded for a handler: the value of the label, the most severe first.

    A reason that excludes the node only for some pools never hides one that does so for all.
    """

    NOT_SERVING = "NotServing"
    QUARANTINED = "Quarantined"
    UNAVAILABLE = "Unavailable"
    NEITHER = "NotIsolatingNoUserNamespaces"
    NOT_ISOLATING = "NotIsolating"
    NO_USER_NAMESPACES = "NoUserNamespaces"


_FOR_SOME_POOLS = frozenset({ExclusionReason.NOT_ISOLATING, ExclusionReason.NO_USER_NAMESPACES})
_SEVERITY = {reason: rank for rank, reason in enumerate(ExclusionReason)}


def handler_key(handler: str) -> str:
    """The label key of nodes that are excluded for a handler."""
    return PREFIX + handler


def pool_key(pool_uid: str) -> str:
    """The label key of nodes that one pool avoids."""
    return f"{PREFIX}pool-{pool_uid}"


def most_severe(reason: ExclusionReason, other: ExclusionReason | None) -> ExclusionReason:
    """Return the label value for a node that has two reasons."""
    if {reason, other} == _FOR_SOME_POOLS:
        return ExclusionReason.NEITHER
    return min(reason, other or reason, key=_SEVERITY.__getitem__)


def _excluding_values(*, proof_wanted: bool, user_namespaces: bool) -> list[str]:
    """The label values that exclude a node for a pool."""
    tolerated = {ExclusionReason.NEITHER, *_FOR_SOME_POOLS}
    if proof_wanted:
        tolerated -= {ExclusionReason.NEITHER, ExclusionReason.NOT_ISOLATING}
    if user_namespaces:
        tolerated -= {ExclusionReason.NEITHER, ExclusionReason.NO_USER_NAMESPACES}
    return [reason.value for reason in ExclusionReason if reason not in tolerated]


def is_excluded(
    node: Mapping[str, str], handler: str, *, proof_wanted: bool, user_namespaces: bool
) -> bool:
    """Whether the exclusion labels of a node exclude it for a pool.

    Args:
        node: the node's labels under `PREFIX`.
        handler: the pods' handler.
        proof_wanted: the pool requires proof of isolation.
        user_namespaces: the pods have user namespaces of their own.
    """
    value = node.get(handler_key(handler))
    return value is not None and value in _excluding_values(
        proof_wanted=proof_wanted, user_namespaces=user_namespaces
    )


def by_label(
    handler: str, pool_uid: str, *, proof_wanted: bool, user_namespaces: bool
) -> list[dict[str, Any]]:
    """Node selector requirements of every pod of a pool."""
    values = _excluding_values(proof_wanted=proof_wanted, user_namespaces=user_namespaces)
    of_handler = {"key": handler_key(handler), "operator": "NotIn", "values": values}
    return [of_handler, {"key": pool_key(pool_uid), "operator": "DoesNotExist"}]


def hostname_requirements(hostnames: Sequence[str]) -> list[dict[str, Any]]:
    """The same requirements where nodes cannot be labelled."""
    if not hostnames:
        return []
    return [{"key": names.HOSTNAME_LABEL, "operator": "NotIn", "values": list(hostnames)}]


def require_node_affinity(
    affinity: Mapping[str, Any] | None, requirements: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Add requirements to the node affinity of a pod.

    The terms of a node affinity are alternatives, so each of them gets the requirements. A term
    without requirements matches no node and stays as it is.
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
