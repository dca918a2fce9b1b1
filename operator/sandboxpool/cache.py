"""What we know of the cluster: pods, nodes, classes and sandbox failures, indexed in memory.

Fed by the informers, read by the reconcilers; it writes nothing and decides nothing. Every index
is kept up to date by the change itself, so no reader ever scans what is not its own.
"""

import random
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sandboxpool.api import names
from sandboxpool.api.core import Event, Node, Pod
from sandboxpool.api.times import epoch
from sandboxpool.api.v1alpha1 import IsolationProof
from sandboxpool.pools.members import claim_uid_of, pool_uid_of
from sandboxpool.pools.pool import Pool
from sandboxpool.runtimes.avoidance import Avoidance, chosen, keep_away
from sandboxpool.runtimes.evidence import (
    MAX_AGE_SECONDS,
    Evidence,
    EvidenceBook,
    Isolation,
    judge_sandbox,
    no_evidence,
    uncontrolled,
)
from sandboxpool.runtimes.exclusion import (
    AVOIDED,
    INSTALL_GRACE_SECONDS,
    Why,
    handler_key,
    keeps_away,
    pool_key,
    worst,
)
from sandboxpool.runtimes.ground import Ground
from sandboxpool.runtimes.hints import Hints
from sandboxpool.runtimes.nodes import NodeFacts, facts_of, runs_linux
from sandboxpool.runtimes.placement import Mark, Placement, Taints, placement_of
from sandboxpool.runtimes.probe import CONTROL
from sandboxpool.runtimes.quarantine import Quarantines
from sandboxpool.runtimes.resolve import Resolution, Runtime, resolve
from sandboxpool.runtimes.room import Room
from sandboxpool.runtimes.verdict import Answer, Tally, Verdict, stand

MAX_SANDBOX_EVENTS = 5000
VIEW_REVIEW_CHANGES = 1000
MAX_UNREAD_PLACEMENTS = 1000
MAX_GROUNDS = 50_000


_Owner = tuple[str, str]


class PodIndex:
    """Pods by pool, by claim and by node.

    An owner is a uid in the pod's own namespace: an owner reference to an object of another
    namespace, which anybody can write, leads nowhere.
    """

    def __init__(self) -> None:
        self._by_uid: dict[str, Pod] = {}
        self._by_pool: defaultdict[_Owner, dict[str, Pod]] = defaultdict(dict)
        self._by_claim: defaultdict[_Owner, dict[str, Pod]] = defaultdict(dict)
        self._by_node: defaultdict[str, dict[str, Pod]] = defaultdict(dict)

    def put(self, old: Pod | None, new: Pod | None) -> None:
        """Take in a change of one pod."""
        if old is not None:
            uid = old.metadata.uid
            self._by_uid.pop(uid, None)
            for index, key in self._owners(old):
                _take_out(index, key, uid)
            _take_out(self._by_node, old.spec.nodeName, uid)
        if new is not None:
            self._by_uid[new.metadata.uid] = new
            for index, key in self._owners(new):
                index[key][new.metadata.uid] = new
            if new.spec.nodeName:
                self._by_node[new.spec.nodeName][new.metadata.uid] = new

    def _owners(self, pod: Pod) -> list[tuple[defaultdict[_Owner, dict[str, Pod]], _Owner]]:
        uids = ((self._by_pool, pool_uid_of(pod)), (self._by_claim, claim_uid_of(pod)))
        return [(index, (pod.metadata.namespace, uid)) for index, uid in uids if uid]

    def get(self, uid: str) -> Pod | None:
        """The pod with this uid."""
        return self._by_uid.get(uid)

    def all(self) -> list[Pod]:
        """Every pod."""
        return list(self._by_uid.values())

    def of_pool(self, namespace: str, uid: str) -> Mapping[str, Pod]:
        """The pods of a pool by uid, claimed ones included; not to be kept across an await."""
        return self._by_pool.get((namespace, uid), {})

    def of_claim(self, namespace: str, uid: str) -> list[Pod]:
        """The pods that a claim owns: one, if all is well."""
        return list(self._by_claim.get((namespace, uid), {}).values())

    def on_node(self, name: str) -> list[Pod]:
        """The pods on a node."""
        return list(self._by_node.get(name, {}).values())

    def claimed(self) -> list[Pod]:
        """The pods that claims own."""
        return [pod for pods in self._by_claim.values() for pod in pods.values()]


def _take_out(index: dict[Any, dict[str, Pod]], key: Any, uid: str) -> None:
    if key in index:
        index[key].pop(uid, None)
        if not index[key]:
            del index[key]


# Who reads a verdict: a pool, by its uid, or a class, by its name.
Reader = tuple[Literal["pool", "class"], str]


class _View:
    """One handler and placement over all nodes, kept up to date node by node."""

    def __init__(self, handler: str, placement: Placement, *, proof_wanted: bool) -> None:
        self.handler = handler
        self.placement = placement
        self.proof_wanted = proof_wanted
        self.tally = Tally()
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

    ``on_mark`` is told the name of a node whose exclusion labels may have to be others, unless it
    is the node's own change that says so.
    """

    def __init__(
        self,
        quarantines: Quarantines,
        evidence: EvidenceBook,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._quarantines = quarantines
        self._evidence = evidence
        self._wall = wall
        self.on_mark: Callable[[str], None] = lambda name: None
        self.by_hostname = False
        # Nodes that cannot be labelled, and those that have joined a moment ago.
        self._unlabelled: frozenset[str] = frozenset()
        self._young: set[str] = set()
        self._facts: dict[str, NodeFacts] = {}
        self._views: dict[tuple[str, Placement, bool], _View] = {}
        self._readers: dict[Reader, tuple[Placement, _View]] = {}
        self._changed: dict[Reader, None] = {}
        self._taints = Taints()
        # Each placement without the tolerations that no node needs, and by these the placements.
        self._needed: dict[Placement, Placement] = {}
        self._shortened: defaultdict[Mark, set[Placement]] = defaultdict(set)
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
        after = facts_of(new) if new is not None and runs_linux(new) else None
        if before == after:
            return False
        if after is None:
            del self._facts[name]
            self._young.discard(name)
            self._unlabelled -= {name}
        else:
            self._facts[name] = after
            if self.seconds_young(after) > 0:
                self._young.add(name)
        self._lengthen(
            self._taints.change(before.taints if before else (), after.taints if after else ())
        )
        self.reconsider(name)
        self._changes += 1
        if self._changes % VIEW_REVIEW_CHANGES == 0:
            self._review()
        return True

    def reconsider(self, name: str) -> bool:
        """A node has changed, or what is known of it; return whether any verdict has."""
        if name in self._young and self.seconds_young(self._facts[name]) <= 0:
            self._young.discard(name)
        changed = False
        for view in self._views.values():
            hopeful = view.tally.hopeful
            if not self._stand(view, name):
                continue
            changed = True
            self._changed |= view.readers
            if view.pools and view.tally.hopeful is not hopeful:
                self._mark(view.tally.spared())
        return changed

    def _stand(self, view: _View, name: str) -> bool:
        had_proof = bool(view.proven)
        changed = self._stand_alone(view, name)
        if bool(view.proven) != had_proof:
            # Whether a silent node will do depends on whether another is better.
            found = [self._stand_alone(view, silent) for silent in list(view.silent)]
            changed = changed or any(found)
        return changed

    def _stand_alone(self, view: _View, name: str) -> bool:
        node = self._facts.get(name)
        standing, isolation, silent = None, None, False
        if node is not None:
            if view.proof_wanted:
                seen = self._evidence.current(node, view.handler)
                isolation = seen.isolation if seen is not None else None
                silent = self._evidence.is_silent(name, view.handler)
            standing = stand(
                node,
                view.handler,
                view.placement,
                quarantined=self._quarantines.is_open(name, view.handler),
                not_isolating=isolation is Isolation.NOT_PROVEN,
                unproven=silent and bool(view.proven),
                marked=self._is_marked(node, view),
                young=name in self._young,
            )
        proven = (
            isolation is Isolation.PROVEN
            and standing is not None
            and standing.eligible
            and standing.answer in (Answer.SERVING, Answer.UNKNOWN)
        )
        for names_of, holds in ((view.proven, proven), (view.silent, silent)):
            (names_of.add if holds else names_of.discard)(name)
        return view.tally.put(name, standing)

    # --- Exclusion labels ------------------------------------------------------------------------

    def _is_marked(self, node: NodeFacts, view: _View) -> bool:
        if self.by_hostname or node.name in self._unlabelled:
            return True
        return bool(node.exclusions) and keeps_away(
            node.exclusions,
            view.handler,
            proof_wanted=view.proof_wanted,
            user_namespaces=view.placement.user_namespaces,
        )

    def _mark(self, nodes: Iterable[str]) -> None:
        for name in nodes:
            self.on_mark(name)

    def marks(self, name: str) -> dict[str, Why]:
        """The handlers of pools that a node is not to be used for, and why."""
        found: dict[str, Why] = {}
        for view in self._views.values():
            why = view.tally.why(name) if view.pools else None
            if why is not None:
                found[view.handler] = worst(why, found.get(view.handler))
        return found

    @property
    def unlabelled(self) -> frozenset[str]:
        """The names of nodes that cannot be labelled."""
        return self._unlabelled

    def note_labelled(self, name: str, possible: bool) -> None:
        """Whether the labels of a node can be written; pods wait for no label that cannot."""
        if possible is (name in self._unlabelled):
            self._unlabelled ^= {name}
            self.reconsider(name)

    def name_hostnames(self, by_hostname: bool) -> None:
        """Whether pods have to name the hostnames that they keep away from."""
        if self.by_hostname is by_hostname:
            return
        self.by_hostname = by_hostname
        for view in self._views.values():
            view.tally.name_hostnames(by_hostname)
            self._changed |= view.readers
            for name in self._facts:
                self._stand(view, name)

    def seconds_young(self, node: NodeFacts) -> float:
        """For how long a node's runtimes may yet be installed."""
        age = self._wall() - node.created
        return max(0.0, INSTALL_GRACE_SECONDS - max(0.0, age))

    def verdict(
        self,
        handler: str,
        placement: Placement,
        *,
        proof_wanted: bool,
        reader: Reader | None = None,
    ) -> Verdict:
        """Judge a handler over all nodes; whoever stands alike to them shares the answer.

        Args:
            handler: what the pods' class resolves to.
            placement: what the class and the template demand of a node.
            proof_wanted: nodes on which the handler was seen not to isolate are told apart.
            reader: is told of by ``take_changed`` once the answer may be another one, for as long
                as it asks for no other and is not forgotten.
        """
        known = self._readers.get(reader) if reader is not None else None
        if known is not None and known[0] is placement and known[1].is_of(handler, proof_wanted):
            return known[1].tally.verdict
        needed = self._shorten(placement)
        key = handler, needed, proof_wanted
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = _View(handler, needed, proof_wanted=proof_wanted)
            view.tally.name_hostnames(self.by_hostname)
            for name in self._facts:
                self._stand(view, name)
        view.read = True
        if reader is not None:
            self.forget(reader)
            self._readers[reader] = placement, view
            view.readers[reader] = None
            if reader[0] == "pool":
                view.pools += 1
                if view.pools == 1:
                    self._mark(view.tally.kept_out())
        return view.tally.verdict

    def take_changed(self) -> list[Reader]:
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
                self._mark(view.tally.kept_out())

    def is_read_by(self, reader: Reader) -> bool:
        """Whether a reader has asked for a verdict."""
        return reader in self._readers

    # --- Tolerations -----------------------------------------------------------------------------

    def _shorten(self, placement: Placement) -> Placement:
        """The same without the tolerations that no node needs now."""
        needed = self._needed.get(placement)
        if needed is None:
            needed, unneeded = self._taints.split(placement)
            self._needed[placement] = needed
            for mark in unneeded:
                self._shortened[mark].add(placement)
        return needed

    def _lengthen(self, marks: set[Mark]) -> None:
        """A node has taints that none had: whoever tolerates them stands otherwise to it."""
        longer = {p for mark in marks for p in self._shortened.pop(mark, ())}
        if not longer:
            return
        for placement in longer:
            self._needed.pop(placement, None)
        for reader in [r for r, (placement, _) in self._readers.items() if placement in longer]:
            self._changed[reader] = None
            # It has to ask for another view.
            self.forget(reader)

    def _review(self) -> None:
        """Drop the views that nobody has read for long, and the placements that nobody has."""
        self._views = {k: view for k, view in self._views.items() if view.read or view.readers}
        for view in self._views.values():
            view.read = False
        if len(self._needed) > 2 * len(self._readers) + MAX_UNREAD_PLACEMENTS:
            self._needed.clear()
            self._shortened.clear()
            for placement, _ in self._readers.values():
                self._shorten(placement)


@dataclass(frozen=True, slots=True)
class SandboxEvent:
    """What the kubelet said when it could not make a sandbox, and when (epoch seconds)."""

    message: str
    at: float


# Namespace, name and uid of the pod, and the node whose kubelet speaks.
_About = tuple[str, str, str, str]


class SandboxEvents:
    """The last FailedCreatePodSandBox event of each pod from its own node's kubelet, bounded.

    Anybody who may create Events in a namespace can write any uid, name and source into one. So an
    event is about a pod only if all of them are the pod's, in the event's own namespace; and where
    there is no room, the namespace with the most gives way.
    """

    def __init__(self) -> None:
        self._events: defaultdict[str, OrderedDict[_About, SandboxEvent]] = defaultdict(OrderedDict)
        self._size = 0

    def put(self, event: Event) -> bool:
        """Take in an event; return whether it is the first about its pod.

        A list has the events of a pod in any order: an older one does not replace a newer.
        """
        about, namespace = event.involvedObject, event.metadata.namespace
        if about.namespace != namespace:
            return False
        host = event.source.host or event.reportingInstance
        key = namespace, about.name, about.uid, host
        events = self._events[namespace]
        known = events.get(key)
        at = epoch(event.lastTimestamp or event.metadata.creationTimestamp)
        if known is None or at >= known.at:
            events[key] = SandboxEvent(event.message, at)
            events.move_to_end(key)
        if known is None:
            self._size += 1
        if self._size > MAX_SANDBOX_EVENTS:
            most = max(self._events, key=lambda name: len(self._events[name]))
            self._drop(most, next(iter(self._events[most])))
        return known is None

    def get(self, pod: Pod) -> SandboxEvent | None:
        """The last event about a pod."""
        key = _about(pod)
        return self._events[key[0]].get(key) if key[0] in self._events else None

    def message(self, pod: Pod) -> str | None:
        """What the last event about a pod says."""
        event = self.get(pod)
        return event.message if event is not None else None

    def forget(self, pod: Pod) -> None:
        """The pod is gone."""
        key = _about(pod)
        if key in self._events.get(key[0], ()):
            self._drop(key[0], key)

    def _drop(self, namespace: str, key: _About) -> None:
        del self._events[namespace][key]
        self._size -= 1
        if not self._events[namespace]:
            del self._events[namespace]


def _about(pod: Pod) -> _About:
    metadata = pod.metadata
    return metadata.namespace, metadata.name, metadata.uid, pod.spec.nodeName


class Cluster:
    """All caches of the cluster's own kinds.

    Args:
        max_proof_age: seconds after which a proof of isolation is none any more.
        wall: seconds since the epoch.
    """

    def __init__(
        self, max_proof_age: float = MAX_AGE_SECONDS, wall: Callable[[], float] = time.time
    ) -> None:
        self.pods = PodIndex()
        self.quarantines = Quarantines(random.random)
        self.evidence = EvidenceBook(max_proof_age)
        self.hints = Hints()
        self.avoidance = Avoidance()
        self.room = Room()
        self.nodes = NodeIndex(self.quarantines, self.evidence, wall)
        self.events = SandboxEvents()
        self.classes: dict[str, Runtime] = {}
        self._grounds: dict[tuple[str, str, IsolationProof], Ground] = {}
        # By the pool's uid, with what they were made of.
        self._placements: dict[str, tuple[Mapping[str, Any], Runtime, Placement]] = {}
        # What the dry run has shown, by the pool's uid, with the revision and class of it.
        self._admitted: dict[str, tuple[str, Runtime, Placement]] = {}
        # The names of the nodes that each pool keeps away from, where it does so.
        self._kept_away: dict[str, tuple[str, ...]] = {}

    def resolution(self, pool: Pool) -> Resolution | None:
        """What the pool's class stands for now; None for a pool that does not fit the API."""
        if pool.spec is None:
            return None
        return resolve(pool.spec.runtime_class_name, pool.spec.expected_handler, self.classes)

    def verdict(self, pool: Pool, runtime: Runtime) -> Verdict:
        """How the fleet stands to a pool.

        Raises:
            PlacementError: its template is malformed.
        """
        verdict = self.nodes.verdict(
            runtime.handler,
            self._placement(pool, runtime),
            proof_wanted=pool.proof is not IsolationProof.NONE,
            reader=("pool", pool.uid),
        )
        avoided = self.avoidance.of(pool.uid)
        if not avoided and pool.uid not in self._kept_away:
            return verdict
        found = (self.nodes.get(name) for name in avoided)
        nodes = chosen(verdict, [node for node in found if node is not None])
        self._keep_away(pool.uid, tuple(sorted(node.name for node in nodes)))
        return keep_away(verdict, nodes, pool.uid, self.nodes.unlabelled) if nodes else verdict

    def _keep_away(self, pool_uid: str, nodes: tuple[str, ...]) -> None:
        before = self._kept_away.pop(pool_uid, ())
        if nodes:
            self._kept_away[pool_uid] = nodes
        for name in set(before) ^ set(nodes):
            self.nodes.on_mark(name)

    def pools_keeping_away(self, node: str) -> list[str]:
        """The uids of the pools that keep away from a node by themselves."""
        return [uid for uid, nodes in self._kept_away.items() if node in nodes]

    def exclusion_labels(self, node: str) -> dict[str, str]:
        """The labels that keep pods off a node."""
        handlers = {runtime.handler for runtime in self.classes.values()}
        marks = self.nodes.marks(node)
        labels = {handler_key(h): str(why) for h, why in marks.items() if h in handlers}
        return labels | {pool_key(uid): AVOIDED for uid in self.pools_keeping_away(node)}

    def note_admitted(self, pool: Pool, runtime: Runtime, placement: Placement | None) -> None:
        """What limits the nodes of a pool's pods, as admission leaves them; None: not known."""
        if placement is None:
            self._admitted.pop(pool.uid, None)
        elif self._admitted.get(pool.uid) != (pool.revision, runtime, placement):
            self._admitted[pool.uid] = pool.revision, runtime, placement

    def _placement(self, pool: Pool, runtime: Runtime) -> Placement:
        admitted = self._admitted.get(pool.uid)
        if admitted is not None and admitted[:2] == (pool.revision, runtime):
            return admitted[2]
        known = self._placements.get(pool.uid)
        # A template stays the same object for as long as nobody edits it.
        if known is not None and known[0] is pool.template and known[1] is runtime:
            return known[2]
        placement = placement_of(pool.template.get("spec") or {}, runtime)
        self._placements[pool.uid] = pool.template, runtime, placement
        return placement

    def is_unjudged(self, pool: Pool) -> bool:
        """Whether a pool that may make sandboxes has not been looked at yet."""
        resolution = self.resolution(pool)
        return (
            not pool.deleting
            and resolution is not None
            and resolution.runtime is not None
            and not self.nodes.is_read_by(("pool", pool.uid))
        )

    def forget_pool(self, uid: str) -> None:
        """The pool is gone, so that no verdict concerns it."""
        self._placements.pop(uid, None)
        self._admitted.pop(uid, None)
        self._keep_away(uid, ())
        self.nodes.forget(("pool", uid))

    def runtime_of(self, pod: Pod) -> Runtime | None:
        """The class that a pod was made of; None unless all that it says of it agrees."""
        runtime = self.classes.get(pod.spec.runtimeClassName)
        annotations = pod.metadata.annotations
        agrees = (
            runtime is not None
            and annotations.get(names.ANNOTATION_RUNTIME_UID) == runtime.uid
            and annotations.get(names.ANNOTATION_HANDLER) == runtime.handler
        )
        return runtime if agrees else None

    def ground(self, pod: Pod, proof: IsolationProof) -> Ground:
        """What a pod stands on, with as much proof as its pool wants."""
        handler = pod.metadata.annotations.get(names.ANNOTATION_HANDLER, "")
        node = self.nodes.get(pod.spec.nodeName) if pod.spec.nodeName else None
        found = self._evidence_for(pod, node, handler, proof) if node is not None else None
        return Ground(
            node=node,
            handler=handler,
            quarantined=node is not None and self.quarantines.is_open(node.name, handler),
            isolation=found.isolation if found is not None else None,
            proof_wanted=proof is not IsolationProof.NONE,
            evidence=found.message if found is not None else "",
        )

    def grounds(self, proof: IsolationProof) -> Callable[[Pod], Ground]:
        """Return ``ground`` for many pods of one moment.

        Pods of one node and handler share the answer, unless each has a proof of its own, or is
        judged by its age; and as long as it stays the same it is the same object, which is quick
        to compare.
        """
        shared: dict[tuple[str, str], Ground] = {}
        if len(self._grounds) > MAX_GROUNDS:
            # Of nodes that are gone, for the most part.
            self._grounds.clear()

        def ground(pod: Pod) -> Ground:
            if self.evidence.has_former(pod.spec.nodeName):
                return self.ground(pod, proof)
            key = pod.spec.nodeName, pod.metadata.annotations.get(names.ANNOTATION_HANDLER, "")
            found = shared.get(key)
            if found is None:
                found = self.ground(pod, proof)
                before = self._grounds.get((*key, proof))
                if found == before:
                    found = before
                shared[key] = self._grounds[*key, proof] = found
            return found

        if proof is IsolationProof.PER_SANDBOX:
            return lambda pod: self.ground(pod, proof)
        return ground

    def _evidence_for(
        self, pod: Pod, node: NodeFacts, handler: str, proof: IsolationProof
    ) -> Evidence | None:
        if proof is IsolationProof.NONE:
            return None
        of_node = self.evidence.about(pod, node, handler)
        refuted = of_node is not None and of_node.isolation is Isolation.NOT_PROVEN
        if proof is not IsolationProof.PER_SANDBOX or refuted:
            return of_node
        own = judge_sandbox(pod, node, now=0.0)
        if own is None or own.isolation is not Isolation.PROVEN:
            return own
        control = self.evidence.about(pod, node, CONTROL)
        if control is None:
            return None
        if control.isolation is Isolation.NOT_PROVEN:
            return own
        return no_evidence(node, own.class_uid, 0.0, uncontrolled(control))
