"""What we know of the cluster: pods, nodes, classes and sandbox failures, indexed in memory.

Fed by the informers, read by the reconcilers; it writes nothing and decides nothing. Every index
is kept up to date by the change itself, so no reader ever scans what is not its own.
"""

from collections import OrderedDict, defaultdict

from sandboxpool.api.core import Event, Node, Pod
from sandboxpool.pools.members import claim_uid_of, pool_uid_of
from sandboxpool.runtimes.nodes import NodeFacts, facts_of
from sandboxpool.runtimes.placement import Placement
from sandboxpool.runtimes.resolve import Runtime
from sandboxpool.runtimes.verdict import Verdict, judge

MAX_SANDBOX_EVENTS = 5000


class PodIndex:
    """Pods by pool, by claim and by node."""

    def __init__(self) -> None:
        self._by_uid: dict[str, Pod] = {}
        self._by_pool: defaultdict[str, dict[str, Pod]] = defaultdict(dict)
        self._by_claim: defaultdict[str, dict[str, Pod]] = defaultdict(dict)
        self._by_node: defaultdict[str, dict[str, Pod]] = defaultdict(dict)

    def put(self, old: Pod | None, new: Pod | None) -> None:
        """Take in a change of one pod."""
        if old is not None:
            uid = old.metadata.uid
            self._by_uid.pop(uid, None)
            for index, key in self._places(old):
                index[key].pop(uid, None)
                if not index[key]:
                    del index[key]
        if new is not None:
            self._by_uid[new.metadata.uid] = new
            for index, key in self._places(new):
                index[key][new.metadata.uid] = new

    def _places(self, pod: Pod) -> list[tuple[defaultdict[str, dict[str, Pod]], str]]:
        keys = (
            (self._by_pool, pool_uid_of(pod)),
            (self._by_claim, claim_uid_of(pod)),
            (self._by_node, pod.spec.nodeName),
        )
        return [(index, key) for index, key in keys if key]

    def get(self, uid: str) -> Pod | None:
        """The pod with this uid."""
        return self._by_uid.get(uid)

    def all(self) -> list[Pod]:
        """Every pod."""
        return list(self._by_uid.values())

    def of_pool(self, uid: str) -> list[Pod]:
        """The pods of a pool, claimed ones included."""
        return list(self._by_pool.get(uid, {}).values())

    def of_claim(self, uid: str) -> list[Pod]:
        """The pods that carry a claim's uid: one, if all is well."""
        return list(self._by_claim.get(uid, {}).values())

    def on_node(self, name: str) -> list[Pod]:
        """The pods on a node."""
        return list(self._by_node.get(name, {}).values())

    def claims(self) -> list[str]:
        """The uids of all claims that pods carry."""
        return list(self._by_claim)


class NodeIndex:
    """The facts of all nodes, and verdicts over them, computed once for each change."""

    def __init__(self) -> None:
        self._facts: dict[str, NodeFacts] = {}
        self._verdicts: dict[tuple[str, Placement], Verdict] = {}

    def get(self, name: str) -> NodeFacts | None:
        """The node's facts; None if there is no such node."""
        return self._facts.get(name)

    def put(self, old: Node | None, new: Node | None) -> bool:
        """Take in a change of one node; return whether anything that matters has changed."""
        name = (new or old).metadata.name  # type: ignore[union-attr]
        before = self._facts.get(name)
        after = facts_of(new) if new is not None else None
        if before == after:
            return False
        if after is None:
            del self._facts[name]
        else:
            self._facts[name] = after
        self._verdicts.clear()
        return True

    def verdict(self, handler: str, placement: Placement) -> Verdict:
        """Judge a handler over all nodes; pools of one class and placement share the answer."""
        key = handler, placement
        if key not in self._verdicts:
            self._verdicts[key] = judge(handler, placement, self._facts.values())
        return self._verdicts[key]


class SandboxEvents:
    """The last FailedCreatePodSandBox message of each pod, bounded."""

    def __init__(self) -> None:
        self._messages: OrderedDict[str, str] = OrderedDict()

    def put(self, event: Event) -> bool:
        """Take in an event; return whether it says anything new about its pod."""
        uid = event.involvedObject.uid
        first = uid not in self._messages
        self._messages[uid] = event.message
        self._messages.move_to_end(uid)
        if len(self._messages) > MAX_SANDBOX_EVENTS:
            self._messages.popitem(last=False)
        return first

    def get(self, pod_uid: str) -> str | None:
        """The last message about a pod."""
        return self._messages.get(pod_uid)

    def forget(self, pod_uid: str) -> None:
        """The pod is gone."""
        self._messages.pop(pod_uid, None)


class Cluster:
    """All caches of the cluster's own kinds."""

    def __init__(self) -> None:
        self.pods = PodIndex()
        self.nodes = NodeIndex()
        self.events = SandboxEvents()
        self.classes: dict[str, Runtime] = {}

    def node_of(self, pod: Pod) -> NodeFacts | None:
        """The facts of a pod's node."""
        return self.nodes.get(pod.spec.nodeName) if pod.spec.nodeName else None
