"""Stores the evidence of isolation of each handler on each node. Pure.

A running sandbox keeps its kernel when the kubelet or the container runtime is upgraded. Evidence
that such an upgrade has made obsolete for new sandboxes still holds for the sandboxes that were
started before it, as far as their start time is certain.
"""

import contextlib
import heapq
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from sandboxpool.api.core import Pod
from sandboxpool.runtimes.evidence import Evidence, Isolation, refutation, started_at
from sandboxpool.runtimes.nodes import Machine, NodeFacts, NodeHandler
from sandboxpool.runtimes.probe import CONTROL

MAX_KINDS = 8
MAX_AGE_SECONDS = 86_400.0
# A change of software is seen within this time: kubelets report their container runtime within
# seconds, a watch may be stuck for two minutes, and clocks differ.
UNSEEN_CHANGE_SECONDS = 180.0
# A node counts as unanswered once its probes have had no answer for this long.
PROBE_UNANSWERED_SECONDS = 300.0

_WORST_FIRST = (Isolation.NOT_PROVEN, Isolation.UNAVAILABLE, Isolation.PROVEN)


@dataclass(frozen=True, slots=True)
class SupersededEvidence:
    """Evidence about earlier software, which holds for the sandboxes that were started under it.

    Attributes:
        before: epoch seconds; the sandboxes were started earlier than this.
        evidence: the evidence.
    """

    before: float
    evidence: Evidence


_KindKey = tuple[str, str, Isolation, str]


@dataclass(frozen=True, slots=True)
class EvidenceSummary:
    """The evidence on nodes with the same software and result.

    Attributes:
        nodes: how many nodes.
        example: one of the nodes.
        at: epoch seconds of the newest evidence.
        message: the message of the example.
    """

    container_runtime: str
    kubelet: str
    isolation: Isolation
    kernel: str
    nodes: int
    example: str
    at: float
    message: str


class EvidenceStore:
    """The evidence about each handler on each node, from the operator's own probes only.

    Args:
        max_age: seconds after which a proof expires. It is renewed before.
    """

    def __init__(self, max_age: float = MAX_AGE_SECONDS) -> None:
        self._max_age = max_age
        self._nodes: defaultdict[str, dict[str, Evidence]] = defaultdict(dict)
        # A heap of times at which to check a node and handler.
        self._due: list[tuple[float, str, str]] = []
        self._renewal_due: set[NodeHandler] = set()
        # At most two for each node and handler: the refutation of sandboxes, and their proof.
        self._superseded: dict[str, dict[str, tuple[SupersededEvidence, ...]]] = {}
        # Since when this process has observed each node, in epoch seconds.
        self._seen_since: dict[str, float] = {}
        # Since when probes have got no answer, and the pairs for which that is long.
        self._unanswered_since: dict[NodeHandler, float] = {}
        self._unanswered: set[NodeHandler] = set()

    def put(self, node: str, handler: str, evidence: Evidence) -> bool:
        """Store evidence; return whether anything but its age has changed.

        A missing answer does not replace an answer about the same software.
        """
        old = self._nodes[node].get(handler)
        if (
            old is not None
            and evidence.isolation is Isolation.UNAVAILABLE
            and old.isolation is not Isolation.UNAVAILABLE
            and old.software == evidence.software
        ):
            return False
        if evidence.isolation is refutation(handler):
            # A refutation is about all sandboxes that run there, whatever was known of them.
            self._put_superseded(node, handler, ())
        elif old is not None and evidence.isolation is not Isolation.UNAVAILABLE:
            self._supersede_refutation(node, handler, old, evidence.at)
        self._put(node, handler, evidence)
        return old is None or replace(old, at=evidence.at) != evidence

    def _put(self, node: str, handler: str, evidence: Evidence) -> None:
        key = node, handler
        self._nodes[node][handler] = evidence
        self._renewal_due.discard(key)
        if evidence.isolation is Isolation.UNAVAILABLE:
            if key not in self._unanswered_since:
                self._unanswered_since[key] = evidence.at
                heapq.heappush(self._due, (evidence.at + PROBE_UNANSWERED_SECONDS, node, handler))
        else:
            self._clear_unanswered(key)
        if evidence.isolation is Isolation.PROVEN:
            # Renewals are spread, so that probes of a fleet do not coincide.
            share = zlib.crc32(f"{node} {handler}".encode()) / 2**32
            renew_at = evidence.at + self._max_age * (0.75 + 0.2 * share)
            heapq.heappush(self._due, (renew_at, node, handler))

    def _clear_unanswered(self, key: NodeHandler) -> None:
        self._unanswered_since.pop(key, None)
        self._unanswered.discard(key)

    def expire(self, now: float) -> list[NodeHandler]:
        """Process what is due by now; return the nodes and handlers that have changed.

        A proof becomes due for renewal or expires, or probes have been unanswered for long.
        """
        found = []
        while self._due and self._due[0][0] <= now:
            _, node, handler = heapq.heappop(self._due)
            evidence = self._nodes.get(node, {}).get(handler)
            since = self._unanswered_since.get((node, handler))
            if since is not None and since + PROBE_UNANSWERED_SECONDS <= now:
                self._unanswered.add((node, handler))
                found.append((node, handler))
            if evidence is None or evidence.isolation is not Isolation.PROVEN:
                continue
            age = now - evidence.at
            if age >= self._max_age:
                self.forget(node, handler, now)
            elif age >= 0.75 * self._max_age:
                self._renewal_due.add((node, handler))
                heapq.heappush(self._due, (evidence.at + self._max_age, node, handler))
            else:
                # Newer evidence has its own entry in the heap.
                continue
            found.append((node, handler))
        return found

    def is_renewal_due(self, node: str, handler: str) -> bool:
        """Whether a proof must be renewed, though it still holds."""
        return (node, handler) in self._renewal_due

    def is_unanswered(self, node: str, handler: str) -> bool:
        """Whether probes have had no answer for long."""
        return (node, handler) in self._unanswered

    def has_positive_control(self, node: NodeFacts) -> bool:
        """Whether a container without isolation has read the node's own boot id."""
        control = self.current(node, CONTROL)
        return control is not None and control.isolation is Isolation.NOT_PROVEN

    def current(self, node: NodeFacts, handler: str) -> Evidence | None:
        """The evidence about a handler on the node's current software, or None."""
        records = self._nodes.get(node.name)
        evidence = records.get(handler) if records is not None else None
        return evidence if evidence is not None and evidence.software.is_on(node) else None

    def has_superseded(self, node: str) -> bool:
        """Whether the evidence for a sandbox on the node may depend on its start time."""
        return node in self._superseded

    def evidence_for(self, pod: Pod, node: NodeFacts, handler: str) -> Evidence | None:
        """The evidence that applies to a pod, by the start time of its sandbox; None if none does.

        Args:
            pod: a pod on this node.
            node: the current facts of the node.
            handler: the handler of the pod, or the positive control.
        """
        current = self.current(node, handler)
        superseded = self._superseded.get(node.name, {}).get(handler, ())
        refuting = refutation(handler)
        if not superseded or (current is not None and current.isolation is refuting):
            return current
        started = started_at(pod)
        for known in superseded:
            refutes = known.evidence.isolation is refuting
            holds = started < known.before if started is not None else refutes
            if holds and known.evidence.software.machine == node.machine:
                return known.evidence
        return current

    def observe_node(self, name: str, node: NodeFacts | None, now: float) -> None:
        """Supersede the evidence about other software than the node's current one.

        Args:
            name: the node's name.
            node: its current facts; None if it is gone.
            now: epoch seconds.
        """
        records = self._nodes.pop(name, None) or {}
        if node is None:
            left: dict[str, Evidence] = {}
            self._seen_since.pop(name, None)
            self._superseded.pop(name, None)
        else:
            since = self._seen_since.setdefault(name, now)
            left = {h: known for h, known in records.items() if known.software.is_on(node)}
            unchanged_until = now - UNSEEN_CHANGE_SECONDS
            for handler in records.keys() - left.keys():
                old = records[handler]
                # Before this process observed the node, it may have changed right after the probe.
                until = max(old.at, unchanged_until) if since <= unchanged_until else old.at
                self._supersede(name, handler, old, until=until, now=now)
            self._drop_superseded_of_others(name, node.machine)
        for handler in records.keys() - left.keys():
            self._renewal_due.discard((name, handler))
            self._clear_unanswered((name, handler))
        if left:
            self._nodes[name] = left

    def _supersede(
        self, node: str, handler: str, old: Evidence, *, until: float, now: float
    ) -> None:
        """Keep evidence for the sandboxes started while its software certainly ran, ``until``."""
        if old.isolation is Isolation.UNAVAILABLE:
            return
        if old.isolation is refutation(handler):
            self._supersede_refutation(node, handler, old, now)
            return
        known = self._superseded.get(node, {}).get(handler, ())
        refuting = [one for one in known if one.evidence.isolation is refutation(handler)]
        # An older proof is about no other sandboxes than this one, and is dropped.
        self._put_superseded(node, handler, (*refuting, SupersededEvidence(until, old)))

    def _supersede_refutation(self, node: str, handler: str, old: Evidence, now: float) -> None:
        """Keep a refutation: no sandbox that was started until now is isolated."""
        if old.isolation is refutation(handler):
            self._put_superseded(node, handler, (SupersededEvidence(now, old),))

    def _put_superseded(
        self, node: str, handler: str, evidence: tuple[SupersededEvidence, ...]
    ) -> None:
        known = self._superseded.setdefault(node, {})
        known.pop(handler, None)
        if evidence:
            known[handler] = evidence
        if not known:
            del self._superseded[node]

    def _drop_superseded_of_others(self, node: str, machine: Machine) -> None:
        known = self._superseded.pop(node, {})
        left = {
            handler: evidence
            for handler, evidence in known.items()
            if evidence[0].evidence.software.machine == machine
        }
        if left:
            self._superseded[node] = left

    def forget(self, node: str, handler: str, now: float) -> None:
        """Drop evidence so that a new probe is due, as after a quarantine; refutations are kept."""
        self._renewal_due.discard((node, handler))
        self._clear_unanswered((node, handler))
        old = self._nodes[node].pop(handler, None) if node in self._nodes else None
        if old is not None:
            self._supersede_refutation(node, handler, old, now)

    def summaries(
        self, handler: str, include_node: Callable[[str], bool] = lambda node: True
    ) -> list[EvidenceSummary]:
        """Summarize by software and result, the worst first, bounded.

        Args:
            handler: the runtime.
            include_node: whether to count a node, by its name.
        """
        groups: defaultdict[_KindKey, list[tuple[str, Evidence]]] = defaultdict(list)
        for node, records in self._nodes.items():
            if (seen := records.get(handler)) is not None and include_node(node):
                software = seen.software
                key = software.container_runtime, software.kubelet, seen.isolation, seen.kernel
                groups[key].append((node, seen))
        kinds = []
        for key, members in groups.items():
            example, seen = min(members, key=lambda member: member[0])
            newest = max(evidence.at for _, evidence in members)
            kinds.append(EvidenceSummary(*key, len(members), example, newest, seen.message))
        kinds.sort(key=lambda k: (_WORST_FIRST.index(k.isolation), -k.nodes, k.example))
        return kinds[:MAX_KINDS]

    def dump(self, node: str) -> dict[str, Any]:
        """The evidence about a node as plain JSON, without missing answers."""
        return {
            handler: msgspec.to_builtins(evidence, order="deterministic")
            for handler, evidence in sorted(self._nodes.get(node, {}).items())
            if evidence.isolation is not Isolation.UNAVAILABLE
        }

    def dump_superseded(self, node: str) -> dict[str, Any]:
        """The superseded evidence about a node as plain JSON."""
        return {
            handler: msgspec.to_builtins(evidence, order="deterministic")
            for handler, evidence in sorted(self._superseded.get(node, {}).items())
        }

    def load(self, node: str, current: Mapping[str, Any], superseded: Mapping[str, Any]) -> None:
        """Restore what was dumped, where nothing is known yet; malformed entries are skipped."""
        for handler, dumped in current.items():
            with contextlib.suppress(msgspec.ValidationError):
                evidence = msgspec.convert(dumped, Evidence)
                if handler not in self._nodes[node]:
                    self._put(node, handler, evidence)
        for handler, dumped in superseded.items():
            with contextlib.suppress(msgspec.ValidationError):
                known = msgspec.convert(dumped, tuple[SupersededEvidence, ...])
                if known and handler not in self._superseded.get(node, {}):
                    self._put_superseded(node, handler, known)
