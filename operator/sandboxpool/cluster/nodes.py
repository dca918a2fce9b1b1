"""The nodes of the cluster, and verdicts over them that are kept up to date node by node."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from sandboxpool.api.core import Node
from sandboxpool.runtimes.evidence import EvidenceStore, Isolation
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
MAX_UNREAD_PLACEMENTS = 1000

# Who reads a verdict: a pool, by its uid, or a class, by its name.
Reader = tuple[Literal["pool", "class"], str]


class _View:
    """One handler and placement over all nodes, kept up to date node by node."""

    def __init__(self, handler: str, placement: NodeConstraints, *, proof_wanted: bool) -> None:
        self.handler = handler
        self.placement = placement
        self.proof_wanted = proof_wanted
        self.aggregator = VerdictAggregator()
        # Where there is proof, if it is wanted, and where probes have had no answer for long.
        self.proven: set[str] = set()
        self.silent: set[str] = set()
        # A set that keeps an order.
        self.readers: dict[Reader, None] = {}
        self.pools = 0
        self.read = True

    def is_of(self, handler: str, proof_wanted: bool) -> bool:
        return self.handler == handler and self.proof_wanted == proof_wanted


class NodeIndex:
    """The facts of all nodes, and verdicts over them.

    A change of one node costs one look at it for each view, however large the fleet is, and
    concerns only those who have read a verdict that it has changed. Whoever stands alike to all
    nodes shares a view: tolerations of what no node has are left out.

    ``on_exclusion_change`` is told the name of a node whose exclusion labels may have to change,
    unless it is the node's own change that says so.
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
        # Nodes that cannot be labelled, and those that have joined a moment ago.
        self._unlabelable: frozenset[str] = frozenset()
        self._recently_joined: set[str] = set()
        self._facts: dict[str, NodeFacts] = {}
        self._views: dict[tuple[str, NodeConstraints, bool], _View] = {}
        self._readers: dict[Reader, tuple[NodeConstraints, _View]] = {}
        self._changed: dict[Reader, None] = {}
        self._taints = TaintIndex()
        # Each placement without the tolerations that no node needs, and by these the placements.
        self._normalized: dict[NodeConstraints, NodeConstraints] = {}
        self._by_dropped_taint: defaultdict[TaintKey, set[NodeConstraints]] = defaultdict(set)
        self._changes = 0

    def __iter__(self) -> Iterator[NodeFacts]:
        return iter(self._facts.values())

    def get(self, name: str) -> NodeFacts | None:
        """The node's facts; None if there is no such node."""
        return self._facts.get(name)

    def put(self, old: Node | None, new: Node | None) -> bool:
        """Take in a change of one node; return whether anything that matters has changed.

        A node that does not run Linux is none: nothing of ours can be there.
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
            if self.seconds_young(after) > 0:
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
        """A node has changed, or what is known of it; return whether any verdict has."""
        if name in self._recently_joined and self.seconds_young(self._facts[name]) <= 0:
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
        changed = self._stand_alone(view, name)
        if bool(view.proven) != had_proof:
            # Whether a silent node will do depends on whether another is better.
            found = [self._stand_alone(view, silent) for silent in list(view.silent)]
            changed = changed or any(found)
        return changed

    def _stand_alone(self, view: _View, name: str) -> bool:
        node = self._facts.get(name)
        assessment, isolation, silent = None, None, False
        if node is not None:
            if view.proof_wanted:
                seen = self._evidence.current(node, view.handler)
                isolation = seen.isolation if seen is not None else None
                silent = self._evidence.is_unanswered(name, view.handler)
            assessment = assess_node(
                node,
                view.handler,
                view.placement,
                quarantined=self._quarantines.is_open(name, view.handler),
                not_isolating=isolation is Isolation.NOT_PROVEN,
                unproven=silent and bool(view.proven),
                marked=self._is_exclusion_effective(node, view),
                young=name in self._recently_joined,
            )
        proven = (
            isolation is Isolation.PROVEN
            and assessment is not None
            and assessment.eligible
            and assessment.handler_state in (HandlerState.SERVING, HandlerState.UNKNOWN)
        )
        for names_of, holds in ((view.proven, proven), (view.silent, silent)):
            (names_of.add if holds else names_of.discard)(name)
        return view.aggregator.put(name, assessment)

    # --- Exclusion labels ------------------------------------------------------------------------

    def _is_exclusion_effective(self, node: NodeFacts, view: _View) -> bool:
        if self.by_hostname or node.name in self._unlabelable:
            return True
        return bool(node.exclusions) and is_excluded(
            node.exclusions,
            view.handler,
            proof_wanted=view.proof_wanted,
            user_namespaces=view.placement.user_namespaces,
        )

    def _notify_exclusion_change(self, nodes: Iterable[str]) -> None:
        for name in nodes:
            self.on_exclusion_change(name)

    def exclusion_reasons(self, name: str) -> dict[str, ExclusionReason]:
        """The handlers of pools that a node is not to be used for, and why."""
        found: dict[str, ExclusionReason] = {}
        for view in self._views.values():
            why = view.aggregator.exclusion_reason(name) if view.pools else None
            if why is not None:
                found[view.handler] = most_severe(why, found.get(view.handler))
        return found

    @property
    def unlabelable(self) -> frozenset[str]:
        """The names of nodes that cannot be labelled."""
        return self._unlabelable

    def set_labelable(self, name: str, possible: bool) -> None:
        """Whether the labels of a node can be written; pods wait for no label that cannot."""
        if possible is (name in self._unlabelable):
            self._unlabelable ^= {name}
            self.reevaluate(name)

    def set_by_hostname(self, by_hostname: bool) -> None:
        """Whether pods have to name the hostnames that they keep away from."""
        if self.by_hostname is by_hostname:
            return
        self.by_hostname = by_hostname
        for view in self._views.values():
            view.aggregator.set_by_hostname(by_hostname)
            self._changed |= view.readers
            for name in self._facts:
                self._assess(view, name)

    def seconds_young(self, node: NodeFacts) -> float:
        """For how long a node's runtimes may yet be installed."""
        age = self._wall() - node.created
        return max(0.0, INSTALL_GRACE_SECONDS - max(0.0, age))

    def verdict(
        self,
        handler: str,
        placement: NodeConstraints,
        *,
        proof_wanted: bool,
        reader: Reader | None = None,
    ) -> Verdict:
        """Judge a handler over all nodes; whoever stands alike to them shares the answer.

        Args:
            handler: what the pods' class resolves to.
            placement: what the class and the template demand of a node.
            proof_wanted: nodes on which the handler was seen not to isolate are told apart.
            reader: is told of by ``drain_changed`` once the answer may be another one, for as long
                as it asks for no other and is not forgotten.
        """
        known = self._readers.get(reader) if reader is not None else None
        if known is not None and known[0] is placement and known[1].is_of(handler, proof_wanted):
            return known[1].aggregator.verdict
        needed = self._normalize(placement)
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
            self._readers[reader] = placement, view
            view.readers[reader] = None
            if reader[0] == "pool":
                view.pools += 1
                if view.pools == 1:
                    self._notify_exclusion_change(view.aggregator.excluded_nodes())
        return view.aggregator.verdict

    def drain_changed(self) -> list[Reader]:
        """Whose verdict may be another one than at the last call, each once."""
        changed, self._changed = self._changed, {}
        return list(changed)

    def forget(self, reader: Reader) -> None:
        """A reader is gone, or asks for something else."""
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
        """Whether a reader has asked for a verdict."""
        return reader in self._readers

    # --- Tolerations -----------------------------------------------------------------------------

    def _normalize(self, placement: NodeConstraints) -> NodeConstraints:
        """The same without the tolerations that no node needs now."""
        needed = self._normalized.get(placement)
        if needed is None:
            needed, unneeded = self._taints.split(placement)
            self._normalized[placement] = needed
            for mark in unneeded:
                self._by_dropped_taint[mark].add(placement)
        return needed

    def _invalidate_normalized(self, marks: set[TaintKey]) -> None:
        """A node has taints that none had: whoever tolerates them stands otherwise to it."""
        longer = {p for mark in marks for p in self._by_dropped_taint.pop(mark, ())}
        if not longer:
            return
        for placement in longer:
            self._normalized.pop(placement, None)
        for reader in [r for r, (placement, _) in self._readers.items() if placement in longer]:
            self._changed[reader] = None
            # It has to ask for another view.
            self.forget(reader)

    def _review(self) -> None:
        """Drop the views that nobody has read for long, and the placements that nobody has."""
        self._views = {k: view for k, view in self._views.items() if view.read or view.readers}
        for view in self._views.values():
            view.read = False
        if len(self._normalized) > 2 * len(self._readers) + MAX_UNREAD_PLACEMENTS:
            self._normalized.clear()
            self._by_dropped_taint.clear()
            for placement, _ in self._readers.values():
                self._normalize(placement)
