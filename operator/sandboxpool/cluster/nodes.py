"""The index of nodes, and the verdicts over them, kept up to date node by node."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from sandboxpool.api.core import Node
from sandboxpool.runtimes.evidence import Isolation
from sandboxpool.runtimes.evidence_store import EvidenceStore
from sandboxpool.runtimes.exclusion import (
    INSTALL_GRACE_SECONDS,
    ExclusionReason,
    is_excluded,
    most_severe,
)
from sandboxpool.runtimes.node_constraints import NodeConstraints, TaintIndex, TaintKey
from sandboxpool.runtimes.nodes import NodeFacts, node_facts, runs_linux
from sandboxpool.runtimes.quarantine import Quarantines
from sandboxpool.runtimes.verdict import HandlerState, Verdict, VerdictAggregator, assess_node

VIEW_REVIEW_CHANGES = 1000
MAX_UNREAD_CONSTRAINTS = 1000

# The reader of a verdict: a pool, by its uid, or a class, by its name.
Reader = tuple[Literal["pool", "class"], str]


class _View:
    """The verdict of one handler and node constraints, kept up to date node by node."""

    def __init__(self, handler: str, constraints: NodeConstraints, *, proof_wanted: bool) -> None:
        self.handler = handler
        self.constraints = constraints
        self.proof_wanted = proof_wanted
        self.aggregator = VerdictAggregator()
        # Nodes with proof, if it is required, and nodes whose probes have had no answer for long.
        self.proven: set[str] = set()
        self.unanswered: set[str] = set()
        # An ordered set.
        self.readers: dict[Reader, None] = {}
        self.pools = 0
        self.read = True

    def is_of(self, handler: str, proof_wanted: bool) -> bool:
        return self.handler == handler and self.proof_wanted == proof_wanted


class NodeIndex:
    """The facts of all nodes, and the verdicts over them.

    A change of one node is assessed once for each view, whatever the number of nodes, and only the
    readers of changed verdicts are reported. Pools with the same constraints share a view, after
    the tolerations that no node needs have been dropped.

    ``on_exclusion_change`` is called with the name of a node whose exclusion labels may have to
    change, except for changes of that node itself.
    """

    def __init__(
        self,
        quarantines: Quarantines,
        evidence: EvidenceStore,
        wall: Callable[[], float] = time.time,
        on_exclusion_change: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._quarantines = quarantines
        self._evidence = evidence
        self._wall = wall
        self.on_exclusion_change = on_exclusion_change
        self.by_hostname = False
        # The names of nodes that cannot be labelled, and of recently joined nodes.
        self._unlabelable: frozenset[str] = frozenset()
        self._recently_joined: set[str] = set()
        self._facts: dict[str, NodeFacts] = {}
        self._views: dict[tuple[str, NodeConstraints, bool], _View] = {}
        self._readers: dict[Reader, tuple[NodeConstraints, _View]] = {}
        self._changed: dict[Reader, None] = {}
        self._taints = TaintIndex()
        # Constraints without the tolerations that no node needs, by the original ones; and the
        # originals by the keys of the tolerations that were dropped.
        self._normalized: dict[NodeConstraints, NodeConstraints] = {}
        self._by_dropped_taint: defaultdict[TaintKey, set[NodeConstraints]] = defaultdict(set)
        self._changes = 0

    def __iter__(self) -> Iterator[NodeFacts]:
        return iter(self._facts.values())

    def get(self, name: str) -> NodeFacts | None:
        """The node's facts; None if there is no such node."""
        return self._facts.get(name)

    def put(self, old: Node | None, new: Node | None) -> bool:
        """Apply a change of one node; return whether its facts have changed.

        Nodes that do not run Linux are ignored: no sandbox can run there.
        """
        name = (new or old).metadata.name  # type: ignore[union-attr]
        before = self._facts.get(name)
        after = node_facts(new) if new is not None and runs_linux(new) else None
        if before == after:
            return False
        if after is None:
            del self._facts[name]
            self._recently_joined.discard(name)
            self._unlabelable -= {name}
        else:
            self._facts[name] = after
            if self.install_grace_left(after) > 0:
                self._recently_joined.add(name)
        self._invalidate_normalized(
            self._taints.change(before.taints if before else (), after.taints if after else ())
        )
        self.reevaluate(name)
        self._changes += 1
        if self._changes % VIEW_REVIEW_CHANGES == 0:
            self._review()
        return True

    def reevaluate(self, name: str) -> bool:
        """Assess a node again in all views; return whether any verdict has changed."""
        if name in self._recently_joined and self.install_grace_left(self._facts[name]) <= 0:
            self._recently_joined.discard(name)
        changed = False
        for view in self._views.values():
            has_candidate_nodes = view.aggregator.has_candidate_nodes
            if not self._assess(view, name):
                continue
            changed = True
            self._changed |= view.readers
            if view.pools and view.aggregator.has_candidate_nodes is not has_candidate_nodes:
                self._notify_exclusion_change(view.aggregator.last_resort())
        return changed

    def _assess(self, view: _View, name: str) -> bool:
        had_proof = bool(view.proven)
        changed = self._assess_alone(view, name)
        if bool(view.proven) != had_proof:
            # Unanswered nodes count as unproven only while another node is proven.
            found = [self._assess_alone(view, unanswered) for unanswered in list(view.unanswered)]
            changed = changed or any(found)
        return changed

    def _assess_alone(self, view: _View, name: str) -> bool:
        node = self._facts.get(name)
        assessment, isolation, unanswered = None, None, False
        if node is not None:
            if view.proof_wanted:
                seen = self._evidence.current(node, view.handler)
                isolation = seen.isolation if seen is not None else None
                unanswered = self._evidence.is_unanswered(name, view.handler)
            assessment = assess_node(
                node,
                view.handler,
                view.constraints,
                quarantined=self._quarantines.is_open(name, view.handler),
                not_isolating=isolation is Isolation.NOT_PROVEN,
                unproven=unanswered and bool(view.proven),
                exclusion_effective=self._is_exclusion_effective(node, view),
                recently_joined=name in self._recently_joined,
            )
        proven = (
            isolation is Isolation.PROVEN
            and assessment is not None
            and assessment.eligible
            and assessment.handler_state in (HandlerState.SERVING, HandlerState.UNKNOWN)
        )
        for names, holds in ((view.proven, proven), (view.unanswered, unanswered)):
            (names.add if holds else names.discard)(name)
        return view.aggregator.put(name, assessment)

    # --- Exclusion labels ------------------------------------------------------------------------

    def _is_exclusion_effective(self, node: NodeFacts, view: _View) -> bool:
        if self.by_hostname or node.name in self._unlabelable:
            return True
        return bool(node.exclusions) and is_excluded(
            node.exclusions,
            view.handler,
            proof_wanted=view.proof_wanted,
            user_namespaces=view.constraints.user_namespaces,
        )

    def _notify_exclusion_change(self, nodes: Iterable[str]) -> None:
        for name in nodes:
            self.on_exclusion_change(name)

    def exclusion_reasons(self, name: str) -> dict[str, ExclusionReason]:
        """The handlers of pools for which a node is excluded, and why."""
        found: dict[str, ExclusionReason] = {}
        for view in self._views.values():
            reason = view.aggregator.exclusion_reason(name) if view.pools else None
            if reason is not None:
                found[view.handler] = most_severe(reason, found.get(view.handler))
        return found

    @property
    def unlabelable(self) -> frozenset[str]:
        """The names of nodes that cannot be labelled."""
        return self._unlabelable

    def set_labelable(self, name: str, possible: bool) -> None:
        """Record whether a node can be labelled; no pod waits for a label that cannot be set."""
        if possible is (name in self._unlabelable):
            self._unlabelable ^= {name}
            self.reevaluate(name)

    def set_by_hostname(self, by_hostname: bool) -> None:
        """Set whether pods exclude nodes by hostname."""
        if self.by_hostname is by_hostname:
            return
        self.by_hostname = by_hostname
        for view in self._views.values():
            view.aggregator.set_by_hostname(by_hostname)
            self._changed |= view.readers
            for name in self._facts:
                self._assess(view, name)

    def install_grace_left(self, node: NodeFacts) -> float:
        """For how many seconds the node's runtimes may still be installed."""
        age = self._wall() - node.created
        return max(0.0, INSTALL_GRACE_SECONDS - max(0.0, age))

    def verdict(
        self,
        handler: str,
        constraints: NodeConstraints,
        *,
        proof_wanted: bool,
        reader: Reader | None = None,
    ) -> Verdict:
        """The verdict on a handler over all nodes; readers with equal constraints share it.

        Args:
            handler: the handler of the pods' class.
            constraints: the node constraints of the class and the template.
            proof_wanted: proof of isolation is required.
            reader: ``drain_changed`` reports it when the verdict may have changed, until it reads
                another verdict or is forgotten.
        """
        known = self._readers.get(reader) if reader is not None else None
        if known is not None and known[0] is constraints and known[1].is_of(handler, proof_wanted):
            return known[1].aggregator.verdict
        needed = self._normalize(constraints)
        key = handler, needed, proof_wanted
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = _View(handler, needed, proof_wanted=proof_wanted)
            view.aggregator.set_by_hostname(self.by_hostname)
            for name in self._facts:
                self._assess(view, name)
        view.read = True
        if reader is not None:
            self.forget(reader)
            self._readers[reader] = constraints, view
            view.readers[reader] = None
            if reader[0] == "pool":
                view.pools += 1
                if view.pools == 1:
                    self._notify_exclusion_change(view.aggregator.excluded_nodes())
        return view.aggregator.verdict

    def drain_changed(self) -> list[Reader]:
        """Return the readers whose verdict may have changed since the last call, each once."""
        changed, self._changed = self._changed, {}
        return list(changed)

    def forget(self, reader: Reader) -> None:
        """Unregister a reader that is deleted or reads another verdict."""
        known = self._readers.pop(reader, None)
        if known is None:
            return
        view = known[1]
        del view.readers[reader]
        if reader[0] == "pool":
            view.pools -= 1
            if not view.pools:
                self._notify_exclusion_change(view.aggregator.excluded_nodes())

    def is_read_by(self, reader: Reader) -> bool:
        """Whether a reader is registered for a verdict."""
        return reader in self._readers

    # --- Tolerations -----------------------------------------------------------------------------

    def _normalize(self, constraints: NodeConstraints) -> NodeConstraints:
        """Drop the tolerations that no node needs now."""
        needed = self._normalized.get(constraints)
        if needed is None:
            needed, dropped = self._taints.split(constraints)
            self._normalized[constraints] = needed
            for key in dropped:
                self._by_dropped_taint[key].add(constraints)
        return needed

    def _invalidate_normalized(self, new: set[TaintKey]) -> None:
        """Normalize again the constraints whose dropped tolerations match new taints."""
        stale = {c for key in new for c in self._by_dropped_taint.pop(key, ())}
        if not stale:
            return
        for constraints in stale:
            self._normalized.pop(constraints, None)
        for reader in [r for r, (constraints, _) in self._readers.items() if constraints in stale]:
            self._changed[reader] = None
            # The reader needs another view.
            self.forget(reader)

    def _review(self) -> None:
        """Drop the views that nobody has read lately, and constraints without a reader."""
        self._views = {k: view for k, view in self._views.items() if view.read or view.readers}
        for view in self._views.values():
            view.read = False
        if len(self._normalized) > 2 * len(self._readers) + MAX_UNREAD_CONSTRAINTS:
            self._normalized.clear()
            self._by_dropped_taint.clear()
            for constraints, _ in self._readers.values():
                self._normalize(constraints)
