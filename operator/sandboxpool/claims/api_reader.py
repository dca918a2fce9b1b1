"""Reads from the API server before irreversible decisions on claims.

Each kind has a watch of its own, so that the cache of one kind may lag far behind another. A
decision by the caches alone must be reversible. One that is not is made only when the API server
has the objects that it depends on as the caches do.
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

# The most nodes that are read for one pool; the cache is trusted for the others.
MAX_NODES = 10


class _Pods(msgspec.Struct):
    items: list[Pod]


_decode_pods = msgspec.json.Decoder(_Pods).decode


class ApiReader:
    """Compares the caches with the API server.

    All methods raise KubeError if the API server does not respond.
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
        """Whether the caches of a pool's spec and of its RuntimeClass are current."""
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
        """Whether the caches are current enough to say that a pool has no warm sandbox.

        If the cache has a ready pod in the server's version, the pod is not a candidate for a known
        reason. The reason may be its node, so the nodes of such pods are read, too. Concurrent
        calls for the same pool share their reads.

        Args:
            pool: the pool.
            is_allocated: whether the pod with this uid is reserved or bound.
        """
        key = pool.uid, pool.generation
        return await self._single_flight.do(key, partial(self._read_no_warm, pool, is_allocated))

    async def _read_no_warm(self, pool: Pool, is_allocated: Callable[[str], bool]) -> bool:
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
        for name in list(nodes)[:MAX_NODES]:
            if not await self._is_node_current(name):
                return False
        return True

    async def _is_node_current(self, name: str) -> bool:
        node = await self._node(name)
        return (node_facts(node) if node is not None else None) == self._cluster.nodes.get(name)

    async def is_node_gone(self, name: str) -> bool:
        """Whether no node of this name exists; False for an empty name."""
        return bool(name) and await self._node(name) is None

    async def _node(self, name: str) -> Node | None:
        answer = await self._client.find(resource_path("v1", "nodes", name=name))
        return msgspec.json.decode(answer, type=Node) if answer is not None else None


def _is_free(pod: Pod, pool: Pool) -> bool:
    """Whether the pod is ready and unclaimed."""
    return (
        pod.ready
        and pod.metadata.deletionTimestamp is None
        and claim_uid_of(pod) is None
        and pool_identity_of(pod) == pool.identity
    )
