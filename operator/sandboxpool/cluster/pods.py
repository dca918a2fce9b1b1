"""The pods of the cluster that are ours, indexed in memory."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from sandboxpool.api.core import Pod
from sandboxpool.cluster.ownership import claim_uid_of, pool_uid_of

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
