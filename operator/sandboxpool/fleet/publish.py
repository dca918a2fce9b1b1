"""Tells the rest of the cluster, on the nodes themselves, what is known of their runtimes.

For each handler that a RuntimeClass names a node gets a *label* if its container runtime lists the
handler, and a *condition* that says whether it works there. The label is what a RuntimeClass's
``scheduling.nodeSelector`` can select by; it says nothing of failures, because a probe has to obey
that selector too, and could never find out that a node works again. The condition is for rules that
taint nodes by it, which probes tolerate.
"""

import random
from collections.abc import Callable
from typing import Any

from sandboxpool.api import names
from sandboxpool.api.conditions import Finding, conditions
from sandboxpool.api.core import Node
from sandboxpool.cache import Cluster
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.errors import ApiError
from sandboxpool.reasons import Reason
from sandboxpool.runtimes.evidence import Isolation
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.verdict import Answer, answer_of

LABEL_PREFIX = f"runtime.{names.GROUP}/"
CONDITION_PREFIX = f"{names.GROUP}/"

# What somebody else changes in our conditions, perhaps a former leader by a late write, is no news
# of the node: it is put right when the node is looked at again. Each has a time of its own.
LOOK_AGAIN_SECONDS = (300.0, 900.0)


def handler_labels(node: NodeFacts, handlers: set[str]) -> dict[str, str | None]:
    """The changes that the node's labels need; None removes one."""
    wanted = {
        LABEL_PREFIX + handler: "true"
        for handler in handlers
        if answer_of(node, handler) is Answer.SERVING
    }
    present = {key: value for key, value in node.labels if key.startswith(LABEL_PREFIX)}
    changes: dict[str, str | None] = {k: v for k, v in wanted.items() if present.get(k) != v}
    return changes | dict.fromkeys(present.keys() - wanted.keys())


class NodePublisher:
    """Writes labels and conditions of one node at a time, only where they differ.

    Args:
        get: the Node of this name as the API server has it.
        wall: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        client: ApiClient,
        cluster: Cluster,
        get: Callable[[str], Node | None],
        wall: Callable[[], float],
    ) -> None:
        self._client = client
        self._cluster = cluster
        self._get = get
        self._wall = wall

    async def reconcile(self, name: str) -> float | None:
        """Bring one node's labels and conditions up to date; return when to look again."""
        node, facts = self._get(name), self._cluster.nodes.get(name)
        if node is None or facts is None or not facts.ready:
            # A node that is not Ready is not believed, and keeps what was last known of it.
            return None
        handlers = {runtime.handler for runtime in self._cluster.classes.values()}
        path = resource_path("v1", "nodes", name=name)
        try:
            labels = handler_labels(facts, handlers)
            if labels:
                await self._client.merge_patch(path, {"metadata": {"labels": labels}})
            changed = self._changed_conditions(node, facts, handlers)
            if changed:
                await self._client.strategic_patch(
                    path + "/status", {"status": {"conditions": changed}}
                )
        except ApiError as error:
            if not error.not_found:
                raise
            return None
        return random.uniform(*LOOK_AGAIN_SECONDS)  # noqa: S311 - no secret

    def _changed_conditions(
        self, node: Node, facts: NodeFacts, handlers: set[str]
    ) -> list[dict[str, Any]]:
        before = {c.type: c for c in node.status.conditions}
        former = {
            "conditions": [
                {"type": c.type, "status": c.status, "lastTransitionTime": c.lastTransitionTime}
                for c in node.status.conditions
            ]
        }
        findings = [self._finding(facts, handler) for handler in sorted(handlers)]
        changed = []
        for condition in conditions(findings, former, 0, self._wall()):
            del condition["observedGeneration"]
            old = before.get(condition["type"])
            if old is None or (old.status, old.reason) != (
                condition["status"],
                condition["reason"],
            ):
                changed.append(condition)
        # One of a handler that no class names any more goes; a merge by type removes it so.
        of_classes = {finding.type for finding in findings}
        gone = {t for t in before if t.startswith(CONDITION_PREFIX)} - of_classes
        return changed + [{"$patch": "delete", "type": type_} for type_ in sorted(gone)]

    def _finding(self, node: NodeFacts, handler: str) -> Finding:
        type_ = CONDITION_PREFIX + handler
        answer = answer_of(node, handler)
        if answer is Answer.NOT_SERVING:
            return Finding(
                type_, False, Reason.NO_NODE_SERVES, f"the node does not list handler {handler!r}"
            )
        quarantine = self._cluster.quarantines.get(node.name, handler)
        if quarantine is not None and quarantine.open:
            return Finding(type_, False, quarantine.reason, quarantine.message)
        evidence = self._cluster.evidence.current(node, handler)
        if evidence is None and answer is Answer.UNKNOWN:
            text = "the node does not report its handlers"
            return Finding(type_, None, Reason.HANDLERS_UNKNOWN, text)
        if evidence is None:
            text = f"the node lists handler {handler!r}; it was not probed"
            return Finding(type_, None, Reason.EVIDENCE_PENDING, text)
        reasons = {
            Isolation.PROVEN: (True, Reason.ISOLATION_PROVEN),
            Isolation.NOT_PROVEN: (False, Reason.ISOLATION_NOT_PROVEN),
            Isolation.UNAVAILABLE: (None, Reason.EVIDENCE_UNAVAILABLE),
        }
        holds, reason = reasons[evidence.isolation]
        return Finding(type_, holds, reason, evidence.message)
