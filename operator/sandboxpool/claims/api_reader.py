"""Live reads of what a final verdict on a claim rests on.

Each kind is watched by a connection of its own, so that the cache of one may be far behind that of
another. What is decided by the caches alone can be decided again; what cannot be taken back waits
until the API server has the other objects as the caches show them.
"""

from collections.abc import Callable
from functools import partial

import msgspec

from sandboxpool.api import names
from sandboxpool.api.core import Node, Pod, RuntimeClass
from sandboxpool.claims.single_flight import SingleFlight
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.ownership import claim_uid_of, pool_identity_of
from sandboxpool.cluster.pool import Pool
from sandboxpool.cluster.pools import parse
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.runtimes.nodes import node_facts
from sandboxpool.runtimes.resolve import runtime_from_class
from sandboxpool.util.resource_version import parse_resource_version

# Where ready sandboxes stand idle on more nodes than this, the cache of nodes is believed.
MOST_NODES = 10


class _Pods(msgspec.Struct):
    items: list[Pod]


_decode_pods = msgspec.json.Decoder(_Pods).decode


class ApiReader:
    """Asks the API server, and holds the caches against its answers.

    All methods raise KubeError where the API server does not answer: nothing is final then.
    """

    def __init__(self, client: ApiClient, cluster: ClusterCache) -> None:
        self._client = client
        self._cluster = cluster
        self._single_flight = SingleFlight()

    async def pool(self, namespace: str, name: str) -> Pool | None:
        """The pool of this name; None if there is none."""
        path = resource_path(names.API_VERSION, names.POOLS, namespace, name)
        answer = await self._client.find(path)
        return parse(msgspec.json.decode(answer), None) if answer is not None else None

    async def is_pool_current(self, pool: Pool) -> bool:
        """Whether the server has a pool's spec, and the class that it names, as the caches do."""
        live = await self.pool(pool.namespace, pool.name)
        if live is None or (live.uid, live.generation) != (pool.uid, pool.generation):
            return False
        return live.deleting == pool.deleting and (
            pool.spec is None or await self._is_class_current(pool.spec.runtime_class_name)
        )

    async def _is_class_current(self, name: str) -> bool:
        answer = await self._client.find(
            resource_path("node.k8s.io/v1", "runtimeclasses", name=name)
        )
        live = (
            runtime_from_class(msgspec.json.decode(answer, type=RuntimeClass)) if answer else None
        )
        return live == self._cluster.classes.get(name)

    async def confirms_no_warm(self, pool: Pool, is_allocated: Callable[[str], bool]) -> bool:
        """Whether a pool is as the caches show it, and has no sandbox of which they do not know.

        A sandbox that the cache shows as the server does was judged, and must not be handed out.
        That may be for its node's sake, so that the node is read then. However many claims find a
        pool empty at once, one look after another answers all of them.

        Args:
            pool: whose sandboxes are looked for.
            is_allocated: whether the pod with this uid is another claim's.
        """
        question = pool.uid, pool.generation
        return await self._single_flight.do(
            question, partial(self._look_for_warm, pool, is_allocated)
        )

    async def _look_for_warm(self, pool: Pool, is_allocated: Callable[[str], bool]) -> bool:
        if not await self.is_pool_current(pool):
            return False
        selector = f"{names.LABEL_POOL_UID}={pool.uid},!{names.LABEL_CLAIM_UID}"
        path = resource_path("v1", "pods", pool.namespace)
        answer = await self._client.get(path, {"labelSelector": selector})
        listed = [p for p in _decode_pods(answer).items if _is_free(p, pool)]
        ready = [p for p in listed if not is_allocated(p.metadata.uid)]
        for pod in ready:
            cached = self._cluster.pods.get(pod.metadata.uid)
            version = cached.metadata.resourceVersion if cached is not None else ""
            if parse_resource_version(version) < parse_resource_version(
                pod.metadata.resourceVersion
            ):
                return False
        nodes = dict.fromkeys(pod.spec.nodeName for pod in ready)
        for name in list(nodes)[:MOST_NODES]:
            if not await self._is_node_current(name):
                return False
        return True

    async def _is_node_current(self, name: str) -> bool:
        node = await self._node(name)
        return (node_facts(node) if node is not None else None) == self._cluster.nodes.get(name)

    async def is_node_gone(self, name: str) -> bool:
        """Whether there is no node of this name."""
        return bool(name) and await self._node(name) is None

    async def _node(self, name: str) -> Node | None:
        answer = await self._client.find(resource_path("v1", "nodes", name=name))
        return msgspec.json.decode(answer, type=Node) if answer is not None else None


def _is_free(pod: Pod, pool: Pool) -> bool:
    """Ready, and nobody's yet."""
    return (
        pod.ready
        and pod.metadata.deletionTimestamp is None
        and claim_uid_of(pod) is None
        and pool_identity_of(pod) == pool.identity
    )
