"""Tells the rest of the cluster, on the nodes themselves, what is known of their runtimes.

What a node must not be used for is said by *exclusion labels*, which pods require not to be there;
they are kept on every node, whatever state it is in. The rest is told only where that is wanted:
for each handler that a RuntimeClass names a node gets a *label* if its container runtime lists the
handler, and a *condition* that says whether it works there. The label is what a RuntimeClass's
``scheduling.nodeSelector`` can select by; it says nothing of failures, because a probe has to obey
that selector too, and could never find out that a node works again. The condition is for rules that
taint nodes by it, which probes tolerate.
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

# What somebody else changes in what is ours, perhaps a former leader by a late write, is no news
# of the node: it is put right when the node is looked at again. Each has a time of its own.
LOOK_AGAIN_SECONDS = (300.0, 900.0)
# A large fleet's labels leave the API server room for claims.
PAUSE_SECONDS = 0.01
# Where nodes may not be patched it is tried again after so long.
DENIED_SECONDS = 300.0


class _Metadata(msgspec.Struct, frozen=True):
    labels: dict[str, str] = {}


class _Patched(msgspec.Struct):
    metadata: _Metadata = _Metadata()


def handler_labels(node: NodeFacts, handlers: set[str]) -> dict[str, str]:
    """The labels that say which handlers a node lists."""
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
        get: the Node of this name as the API server has it.
        wall: seconds since the epoch.
        clock: seconds of a monotonic clock.
        exclude: whether exclusion labels are wanted.
        publish: whether the other labels and the conditions are.
        on_change: told that what nodes can be labelled with may have changed verdicts.
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
        # By the clock; None as long as nodes may be patched, for all we know.
        self._denied_until: float | None = None

    async def reconcile(self, name: str) -> float | None:
        """Bring one node's labels and conditions up to date; return when to look again."""
        node, facts = self._get(name), self._cluster.nodes.get(name)
        if node is None or facts is None:
            return None
        # That it joined a moment ago may be over.
        if self._cluster.nodes.reevaluate(name):
            self._on_change()
        handlers = {runtime.handler for runtime in self._cluster.classes.values()}
        # A node that is not Ready is not believed, and keeps what was last known of it.
        tells = self._publish and facts.ready
        path = resource_path("v1", "nodes", name=name)
        labels: dict[str, str | None] = {}
        if self._exclude:
            labels |= label_changes(facts, PREFIX, self._cluster.exclusion_labels(name))
        if tells:
            labels |= label_changes(facts, LABEL_PREFIX, handler_labels(facts, handlers))
        try:
            if labels:
                await self._label(name, path, labels)
            changed = self._changed_conditions(node, facts, handlers) if tells else []
            if changed:
                await self._client.strategic_patch(
                    path + "/status", {"status": {"conditions": changed}}
                )
        except ApiError as error:
            if not error.not_found:
                raise
            return None
        pause = random.uniform(*LOOK_AGAIN_SECONDS)  # noqa: S311 - no secret
        young = self._cluster.nodes.seconds_young(facts)
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
            # It is tried again, and nobody waits for that: one node must not keep pools empty.
            self._note(name, str(error))
            raise
        self._permitted()
        try:
            left = msgspec.json.decode(answer, type=_Patched).metadata.labels
        except UNREADABLE as error:
            self._note(name, f"no node came back: {error}")
            return
        lost = sorted(key for key, value in labels.items() if left.get(key) != value)
        self._note(name, f"an admission plugin changes {', '.join(lost)}" if lost else "")
        await asyncio.sleep(PAUSE_SECONDS)

    def _denied(self, error: ApiError) -> None:
        self._denied_until = self._clock() + DENIED_SECONDS
        if self._exclude and not self._cluster.nodes.by_hostname:
            logger.warning(
                "sandboxes name the hostnames of nodes to keep away from, because nodes may not be "
                "labelled: give the operator the right to patch nodes, or set "
                "SANDBOXPOOL_EXCLUSION_LABELS to false (nodes.exclusionLabels of the chart): %s",
                error,
            )
            self._cluster.nodes.set_by_hostname(True)
            self._on_change()

    def _permitted(self) -> None:
        if self._denied_until is None:
            return
        self._denied_until = None
        if self._exclude:
            logger.info("nodes may be labelled again")
            self._cluster.nodes.set_by_hostname(False)
            for node in self._cluster.nodes:
                self._cluster.nodes.on_exclusion_change(node.name)
            self._on_change()

    def _note(self, name: str, trouble: str) -> None:
        """A node has its labels, or does not get them: then no pool waits for that."""
        if trouble:
            logger.warning(
                "node %s is not labelled, so that sandboxes may be put on it: %s", name, trouble
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
        # One of a handler that no class names any more goes; a merge by type removes it so.
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
            text = "the node does not report its handlers"
            return ConditionResult(type_, None, Reason.HANDLERS_UNKNOWN, text)
        if evidence is None:
            text = f"the node lists handler {handler!r}; it was not probed"
            return ConditionResult(type_, None, Reason.EVIDENCE_PENDING, text)
        reasons = {
            Isolation.PROVEN: (True, Reason.ISOLATION_PROVEN),
            Isolation.NOT_PROVEN: (False, Reason.ISOLATION_NOT_PROVEN),
            Isolation.UNAVAILABLE: (None, Reason.EVIDENCE_UNAVAILABLE),
        }
        holds, reason = reasons[evidence.isolation]
        return ConditionResult(type_, holds, reason, evidence.message)


def _is_denied(error: ApiError) -> bool:
    """Whether no node may be patched, not this one alone."""
    return error.status == 403 and 'cannot patch resource "nodes"' in error.message
