"""Publishes what is known of the runtimes on each node as labels and conditions of the Node.

*Exclusion labels* keep sandboxes off a node by the pods' node affinity; they are kept on every
node, Ready or not. Labels and conditions for others are optional: for each handler that a
RuntimeClass names, a node gets a *label* if its container runtime lists the handler, and a
*condition* that shows whether it works. A RuntimeClass's ``scheduling.nodeSelector`` can select by
the label. The label does not depend on failures, because probes obey that selector too and could
not find out that a node works again. Controllers can taint nodes by the condition; probes tolerate
such taints.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from sandboxpool.api import names
from sandboxpool.api.conditions import ConditionResult, conditions
from sandboxpool.api.core import Node
from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.errors import UNREADABLE, ApiError, UnknownOutcomeError
from sandboxpool.runtimes.evidence import Isolation
from sandboxpool.runtimes.exclusion import PREFIX
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.verdict import HandlerState, listed_handler_state

logger = logging.getLogger(__name__)

LABEL_PREFIX = f"runtime.{names.GROUP}/"
CONDITION_PREFIX = f"{names.GROUP}/"

# Changes that other clients (or a late write of a former leader) make to our labels and conditions
# do not enqueue the node: the resync corrects them. It is spread over the nodes.
LOOK_AGAIN_SECONDS = (300.0, 900.0)
# Labelling a large fleet must leave the API server capacity for claims.
PAUSE_SECONDS = 0.01
# Backoff where RBAC does not allow patching nodes.
DENIED_SECONDS = 300.0


class _Metadata(msgspec.Struct, frozen=True):
    labels: dict[str, str] = {}


class _Patched(msgspec.Struct):
    metadata: _Metadata = _Metadata()


def handler_labels(node: NodeFacts, handlers: set[str]) -> dict[str, str]:
    """The labels for the handlers that a node lists."""
    return {
        LABEL_PREFIX + handler: "true"
        for handler in handlers
        if listed_handler_state(node, handler) is HandlerState.SERVING
    }


def label_changes(node: NodeFacts, prefix: str, wanted: Mapping[str, str]) -> dict[str, str | None]:
    """The changes that a node's labels under a prefix need; None removes one."""
    present = {key: value for key, value in node.labels if key.startswith(prefix)}
    changes: dict[str, str | None] = {k: v for k, v in wanted.items() if present.get(k) != v}
    return changes | dict.fromkeys(present.keys() - wanted.keys())


class NodePublisher:
    """Writes labels and conditions of one node at a time, only where they differ.

    Args:
        get: returns the cached Node of this name.
        wall: seconds since the epoch.
        clock: seconds of a monotonic clock.
        exclude: whether to write exclusion labels.
        publish: whether to write the other labels and the conditions.
        on_change: called when verdicts may have changed.
    """

    def __init__(
        self,
        *,
        client: ApiClient,
        cluster: ClusterCache,
        get: Callable[[str], Node | None],
        wall: Callable[[], float],
        clock: Callable[[], float],
        exclude: bool,
        publish: bool,
        on_change: Callable[[], None],
    ) -> None:
        self._client = client
        self._cluster = cluster
        self._get = get
        self._wall = wall
        self._clock = clock
        self._exclude = exclude
        self._publish = publish
        self._on_change = on_change
        # By the clock; None unless the last patch was forbidden.
        self._denied_until: float | None = None

    async def reconcile(self, name: str) -> float | None:
        """Update one node's labels and conditions; return the seconds until the resync."""
        node, facts = self._get(name), self._cluster.nodes.get(name)
        if node is None or facts is None:
            return None
        # A node that has just joined has another verdict, which ends by time.
        if self._cluster.nodes.reevaluate(name):
            self._on_change()
        handlers = {runtime.handler for runtime in self._cluster.classes.values()}
        # What a NotReady node reports may be stale: it keeps its labels and conditions.
        publishes = self._publish and facts.ready
        path = resource_path("v1", "nodes", name=name)
        labels: dict[str, str | None] = {}
        if self._exclude:
            labels |= label_changes(facts, PREFIX, self._cluster.exclusion_labels(name))
        if publishes:
            labels |= label_changes(facts, LABEL_PREFIX, handler_labels(facts, handlers))
        try:
            if labels:
                await self._label(name, path, labels)
            changed = self._changed_conditions(node, facts, handlers) if publishes else []
            if changed:
                await self._client.strategic_patch(
                    path + "/status", {"status": {"conditions": changed}}
                )
        except ApiError as error:
            if not error.not_found:
                raise
            return None
        pause = random.uniform(*LOOK_AGAIN_SECONDS)  # noqa: S311 - no secret
        young = self._cluster.nodes.install_grace_left(facts)
        return min(pause, young + 1.0) if young and self._exclude else pause

    async def _label(self, name: str, path: str, labels: Mapping[str, str | None]) -> None:
        if self._denied_until is not None and self._clock() < self._denied_until:
            return
        try:
            answer = await self._client.merge_patch(path, {"metadata": {"labels": labels}})
        except (ApiError, UnknownOutcomeError) as error:
            if isinstance(error, ApiError) and _is_denied(error):
                self._denied(error)
                return
            # The write is retried, but pools do not wait: one node must not keep them empty.
            self._note(name, str(error))
            raise
        self._permitted()
        try:
            left = msgspec.json.decode(answer, type=_Patched).metadata.labels
        except UNREADABLE as error:
            self._note(name, f"the response to the patch is not a Node: {error}")
            return
        lost = sorted(key for key, value in labels.items() if left.get(key) != value)
        self._note(name, f"an admission plugin reverts {', '.join(lost)}" if lost else "")
        await asyncio.sleep(PAUSE_SECONDS)

    def _denied(self, error: ApiError) -> None:
        self._denied_until = self._clock() + DENIED_SECONDS
        if self._exclude and not self._cluster.nodes.by_hostname:
            logger.warning(
                "RBAC does not allow the operator to label nodes, so sandboxes exclude nodes by "
                "hostname: allow it to patch nodes, or set SANDBOXPOOL_EXCLUSION_LABELS to false "
                "(nodes.exclusionLabels of the chart): %s",
                error,
            )
            self._cluster.nodes.set_by_hostname(True)
            self._on_change()

    def _permitted(self) -> None:
        if self._denied_until is None:
            return
        self._denied_until = None
        if self._exclude:
            logger.info("the operator may label nodes again: sandboxes exclude them by label")
            self._cluster.nodes.set_by_hostname(False)
            for node in self._cluster.nodes:
                self._cluster.nodes.on_exclusion_change(node.name)
            self._on_change()

    def _note(self, name: str, trouble: str) -> None:
        """Record whether a node can be labelled; pools do not wait for one that cannot."""
        if trouble:
            logger.warning(
                "node %s could not be labelled, so sandboxes may be scheduled there: %s",
                name,
                trouble,
            )
        if self._exclude and self._cluster.nodes.get(name) is not None:
            self._cluster.nodes.set_labelable(name, not trouble)
            self._on_change()

    def _changed_conditions(
        self, node: Node, facts: NodeFacts, handlers: set[str]
    ) -> list[dict[str, Any]]:
        before = {c.type: c for c in node.status.conditions}
        findings = [self._finding(facts, handler) for handler in sorted(handlers)]
        changed = []
        for new in conditions(findings, node.status.conditions, None, self._wall()):
            old = before.get(new.type)
            if old is None or (old.status, old.reason) != (new.status, new.reason):
                changed.append(new.to_wire())
        # Conditions of handlers that no class names any more are deleted, by their merge key.
        of_classes = {finding.type for finding in findings}
        gone = {t for t in before if t.startswith(CONDITION_PREFIX)} - of_classes
        return changed + [{"$patch": "delete", "type": type_} for type_ in sorted(gone)]

    def _finding(self, node: NodeFacts, handler: str) -> ConditionResult:
        type_ = CONDITION_PREFIX + handler
        answer = listed_handler_state(node, handler)
        if answer is HandlerState.NOT_SERVING:
            return ConditionResult(
                type_, False, Reason.NO_NODE_SERVES, f"the node does not list handler {handler!r}"
            )
        quarantine = self._cluster.quarantines.get(node.name, handler)
        if quarantine is not None and quarantine.open:
            return ConditionResult(type_, False, quarantine.reason, quarantine.message)
        evidence = self._cluster.evidence.current(node, handler)
        if evidence is None and answer is HandlerState.UNKNOWN:
            text = "the node does not report its runtime handlers"
            return ConditionResult(type_, None, Reason.HANDLERS_UNKNOWN, text)
        if evidence is None:
            text = f"the node lists handler {handler!r}; it has not been probed yet"
            return ConditionResult(type_, None, Reason.EVIDENCE_PENDING, text)
        reasons = {
            Isolation.PROVEN: (True, Reason.ISOLATION_PROVEN),
            Isolation.NOT_PROVEN: (False, Reason.ISOLATION_NOT_PROVEN),
            Isolation.UNAVAILABLE: (None, Reason.EVIDENCE_UNAVAILABLE),
        }
        holds, reason = reasons[evidence.isolation]
        return ConditionResult(type_, holds, reason, evidence.message)


def _is_denied(error: ApiError) -> bool:
    """Whether RBAC forbids patching nodes, rather than admission this one."""
    return error.status == 403 and 'cannot patch resource "nodes"' in error.message
