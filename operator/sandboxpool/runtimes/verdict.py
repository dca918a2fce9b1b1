"""Where a runtime is served: a total function of a class, a placement and the nodes.

A node that lists the handler is *serving*: configured, which is not yet proof that it works.
One whose list lacks it is *not serving*. One without a list is *unknown*, never missing. A node on
which the runtime has failed is *quarantined*, one on which it does not isolate is *not_isolating*,
whatever its list says. One that pods would be put on although nothing there may be handed out,
because they tolerate that it is cordoned or not Ready, is *unavailable*.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import islice

from sandboxpool.api.v1alpha1 import NodeCounts
from sandboxpool.runtimes.advice import separating_label
from sandboxpool.runtimes.exclusion import MAX_HOSTNAMES, Why
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.placement import Placement, allows


class Answer(Enum):
    """What a node says of a handler, and what we know better."""

    SERVING = "serving"
    NOT_SERVING = "notServing"
    UNKNOWN = "unknown"
    QUARANTINED = "quarantined"
    NOT_ISOLATING = "notIsolating"
    # Its probes get no answer, and on other nodes they do.
    UNPROVEN = "unproven"


# Nodes with these answers are kept out. One that gives no proof is better than none: a pool keeps
# away from it by itself.
_KEPT_OUT = {
    Answer.NOT_SERVING: Why.NOT_SERVING,
    Answer.QUARANTINED: Why.QUARANTINED,
    Answer.NOT_ISOLATING: Why.NOT_ISOLATING,
}
# Whom to name first, where not all can be named.
_NAMED_FIRST = (
    Why.QUARANTINED,
    Why.NOT_ISOLATING,
    Why.UNAVAILABLE,
    Why.NOT_SERVING,
    Why.NO_USER_NAMESPACES,
)


def answer_of(node: NodeFacts, handler: str) -> Answer:
    """Ask a node's list for a handler."""
    if node.handlers is None:
        return Answer.UNKNOWN
    return Answer.SERVING if handler in node.handlers else Answer.NOT_SERVING


@dataclass(frozen=True, slots=True)
class Standing:
    """How one node stands to a runtime.

    Attributes:
        answer: its list's word, or what we know better.
        lands: the scheduler may put a pod on it at this moment, by its labels and taints.
        marked: its exclusion labels keep the pods away, or it cannot be labelled.
        young: it joined a moment ago, so that its runtimes may yet be installed.
        listed: it lists the handler, so that it may serve others.
    """

    node: NodeFacts
    answer: Answer
    lands: bool
    marked: bool = True
    young: bool = False
    listed: bool = False

    @property
    def eligible(self) -> bool:
        """It could take a pod at this moment that may be handed out."""
        return self.lands and self.node.usable

    @property
    def why(self) -> Why | None:
        """Why pods must keep away from it, if they must."""
        unsupported = self.answer is Answer.NOT_SERVING and self.listed
        if self.answer in (Answer.NOT_SERVING, Answer.QUARANTINED) and not unsupported:
            return _KEPT_OUT[self.answer]
        if self.lands and not self.node.usable:
            return Why.UNAVAILABLE
        if unsupported:
            return Why.NO_USER_NAMESPACES
        return _KEPT_OUT.get(self.answer)


def stand(
    node: NodeFacts,
    handler: str,
    placement: Placement,
    *,
    quarantined: bool,
    not_isolating: bool,
    unproven: bool = False,
    marked: bool = True,
    young: bool = False,
) -> Standing | None:
    """Judge one node; None if the placement rules it out for ever.

    Args:
        node: the node.
        handler: what the pods' class resolves to.
        placement: what the class and the template demand of a node.
        quarantined: the quarantine of this node and handler is open.
        not_isolating: proof of isolation is wanted, and the node has shown the opposite.
        unproven: proof is wanted, this node has given none for long, and another node has.
        marked: see `Standing`.
        young: see `Standing`.
    """
    if not allows(placement, node, now=False):
        return None
    answer = answer_of(node, handler)
    if placement.user_namespaces and handler in node.without_user_namespaces:
        # Its kubelet refuses such a sandbox of this handler.
        answer = Answer.NOT_SERVING
    if answer is not Answer.NOT_SERVING:
        # A node that does not list the handler at all has a simpler story to tell.
        if quarantined:
            answer = Answer.QUARANTINED
        elif not_isolating:
            answer = Answer.NOT_ISOLATING
        elif unproven:
            answer = Answer.UNPROVEN
    # What neither comes nor goes was asked for already.
    passing = node.taints or not node.usable
    lands = not passing or allows(placement, node, now=True)
    listed = node.handlers is not None and handler in node.handlers
    return Standing(node, answer, lands, marked, young, listed)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a fleet stands to a pool's runtime. Names are sorted.

    Attributes:
        serving: names of eligible nodes that list the handler.
        not_serving: names of eligible nodes that do not.
        unknown: names of eligible nodes that cannot say.
        quarantined: names of eligible nodes on which the runtime has failed.
        not_isolating: names of eligible nodes on which the runtime was seen not to isolate.
        unproven: names of eligible nodes whose probes have had no answer for long.
        by_hostname: nodes cannot be labelled, so that pods name the hostnames that they keep away
            from.
        excluded: these hostnames, sorted; empty where nodes are labelled. It also holds those not
            eligible at this moment: they may become so while a pod waits.
        unmarked: how many nodes pods must keep away from, and would not yet: they lack the label.
        newest_not_serving: epoch seconds at which the newest of ``not_serving`` joined.
        advice: the label that separates the serving nodes from the others, if there is one.
    """

    serving: tuple[str, ...] = ()
    not_serving: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    quarantined: tuple[str, ...] = ()
    not_isolating: tuple[str, ...] = ()
    unproven: tuple[str, ...] = ()
    by_hostname: bool = False
    excluded: tuple[str, ...] = ()
    unmarked: int = 0
    newest_not_serving: float = 0.0
    advice: tuple[str, str] | None = None

    @property
    def counts(self) -> NodeCounts:
        """How many nodes stand how, as statuses show it."""
        return NodeCounts(
            eligible=self.eligible,
            serving=len(self.serving),
            notServing=len(self.not_serving),
            unknown=len(self.unknown),
            quarantined=len(self.quarantined),
            notIsolating=len(self.not_isolating),
            unproven=len(self.unproven),
        )

    @property
    def eligible(self) -> int:
        """How many nodes could take a pod now, if their runtime is left out of account."""
        return sum(
            len(nodes)
            for nodes in (
                self.serving,
                self.not_serving,
                self.unknown,
                self.quarantined,
                self.not_isolating,
                self.unproven,
            )
        )

    @property
    def hopeful(self) -> bool:
        """At least one eligible node serves the handler or may do so."""
        return bool(self.serving or self.unknown)


@dataclass(frozen=True, slots=True)
class _Share:
    """What one node adds to a verdict, but for its labels.

    Attributes:
        listed: where an eligible node is listed; None for one that is not eligible.
        kept_out: why pods must keep away, if they must.
        hostname: the label of nodes that are kept out.
        created: of an eligible node that does not serve, epoch seconds.
        unmarked: pods may land on it that must keep away.
        spared: it is kept out only where another node can take a pod.
    """

    listed: Answer | None = None
    kept_out: Why | None = None
    hostname: str | None = None
    created: float = 0.0
    unmarked: bool = False
    spared: bool = False


_NOTHING = _Share()


def _share_of(standing: Standing | None) -> _Share:
    if standing is None:
        return _NOTHING
    node, answer = standing.node, standing.answer
    listed = answer if standing.eligible else None
    kept_out = standing.why
    return _Share(
        listed,
        kept_out,
        node.hostname if kept_out else None,
        node.created if listed is Answer.NOT_SERVING else 0.0,
        unmarked=kept_out is not None and standing.lands and not standing.marked,
        spared=(kept_out is Why.NOT_SERVING and standing.young)
        or (kept_out is Why.UNAVAILABLE and node.announced),
    )


class _Sorted:
    """Strings in order, each as often as it was added."""

    def __init__(self) -> None:
        self._items: list[str] = []
        self._told: tuple[str, ...] | None = ()

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: str) -> None:
        insort(self._items, item)
        self._told = None

    def remove(self, item: str) -> None:
        del self._items[bisect_left(self._items, item)]
        self._told = None

    @property
    def all(self) -> tuple[str, ...]:
        """Each once."""
        if self._told is None:
            self._told = tuple(dict.fromkeys(self._items))
        return self._told


class Tally:
    """How a fleet stands, summed up node by node: one that changes costs the same in any fleet.

    What few verdicts need, the advice, is looked for anew when a change may have changed it.
    """

    def __init__(self) -> None:
        self._standings: dict[str, Standing] = {}
        self._listed = {answer: _Sorted() for answer in Answer}
        self._kept_out = {why: _Sorted() for why in Why}
        self._unmarked: set[str] = set()
        self._spared: set[str] = set()
        self._by_hostname = False
        self._verdict: Verdict | None = None

    def name_hostnames(self, by_hostname: bool) -> None:
        """Whether pods name the hostnames that they keep away from."""
        self._by_hostname = by_hostname
        self._verdict = None

    @property
    def hopeful(self) -> bool:
        """What the verdict says of it, at no cost."""
        return bool(len(self._listed[Answer.SERVING]) or len(self._listed[Answer.UNKNOWN]))

    def why(self, name: str) -> Why | None:
        """Why pods must keep away from a node, if they must.

        Where no node can take a pod, one that joined a moment ago may be the answer to the one that
        waits: it is left to that, until what installs runtimes has had its time. And one that is to
        be maintained some day is better than none.
        """
        standing = self._standings.get(name)
        if standing is None or (name in self._spared and not self.hopeful):
            return None
        return standing.why

    def kept_out(self) -> list[str]:
        """The names of the nodes that pods must keep away from."""
        return [name for name, standing in self._standings.items() if standing.why is not None]

    def spared(self) -> list[str]:
        """The names of those that are kept out only where another node can take a pod."""
        return list(self._spared)

    def put(self, name: str, new: Standing | None) -> bool:
        """A node stands otherwise, or is none any more; return whether the verdict may differ."""
        old = self._standings.get(name)
        if old == new:
            return False
        if new is not None:
            self._standings[name] = new
        else:
            del self._standings[name]
        before, after = _share_of(old), _share_of(new)
        if before == after:
            if not self._advises_otherwise(name, old, new):
                return False
        else:
            self._take(name, before, _Sorted.remove)
            self._take(name, after, _Sorted.add)
            self._note(name, after)
        self._verdict = None
        return True

    def _take(self, name: str, share: _Share, what: Callable[[_Sorted, str], None]) -> None:
        if share.listed is not None:
            what(self._listed[share.listed], name)
        if share.kept_out is not None and share.hostname is not None:
            what(self._kept_out[share.kept_out], share.hostname)

    def _note(self, name: str, share: _Share) -> None:
        for names, belongs in ((self._unmarked, share.unmarked), (self._spared, share.spared)):
            (names.add if belongs else names.discard)(name)

    def _advises_otherwise(self, name: str, old: Standing | None, new: Standing | None) -> bool:
        """Whether the labels of a node that is listed as before may have changed the advice.

        What is advised is a label of every serving node, so it is enough to look at one of those.
        """
        serving, others = self._separable()
        if old is None or new is None or not new.eligible or not serving or not others:
            return False
        if new.answer not in (Answer.SERVING, Answer.NOT_SERVING):
            return False
        changed = old.node.labels ^ new.node.labels
        example = next((one for one in serving[:2] if one != name), None)
        if example is None:
            return bool(changed)
        labels = self._standings[example].node.labels
        if len(serving) > 1:
            return not changed.isdisjoint(labels)
        # Which label is the one node's own depends on what values the others have.
        keys = {key for key, _ in labels}
        return any(key in keys for key, _ in changed)

    def _separable(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return self._listed[Answer.SERVING].all, self._listed[Answer.NOT_SERVING].all

    @property
    def verdict(self) -> Verdict:
        """The same object as long as it is the same."""
        if self._verdict is None:
            self._verdict = self._sum_up()
        return self._verdict

    def _sum_up(self) -> Verdict:
        serving, not_serving = self._separable()
        return Verdict(
            serving=serving,
            not_serving=not_serving,
            unknown=self._listed[Answer.UNKNOWN].all,
            quarantined=self._listed[Answer.QUARANTINED].all,
            not_isolating=self._listed[Answer.NOT_ISOLATING].all,
            unproven=self._listed[Answer.UNPROVEN].all,
            by_hostname=self._by_hostname,
            excluded=self._hostnames() if self._by_hostname else (),
            unmarked=len(self._unmarked if self.hopeful else self._unmarked - self._spared),
            newest_not_serving=max((n.created for n in self._nodes(not_serving)), default=0.0),
            advice=separating_label(self._nodes(serving), self._nodes(not_serving))
            if serving and not_serving
            else None,
        )

    def _nodes(self, names: Iterable[str]) -> Iterator[NodeFacts]:
        return (self._standings[name].node for name in names)

    def _hostnames(self) -> tuple[str, ...]:
        """What is kept out, sorted; under the bound the worst offenders come first."""
        ranked = dict.fromkeys(host for why in _NAMED_FIRST for host in self._kept_out[why].all)
        return tuple(sorted(islice(ranked, MAX_HOSTNAMES)))


def judge(standings: Iterable[Standing], *, by_hostname: bool = False) -> Verdict:
    """Sum up how the nodes stand; their order does not matter."""
    tally = Tally()
    tally.name_hostnames(by_hostname)
    for standing in standings:
        tally.put(standing.node.name, standing)
    return tally.verdict
