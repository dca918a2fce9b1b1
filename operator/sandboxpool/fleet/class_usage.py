"""Which RuntimeClasses the pools use, and which of these pools want proof of isolation."""

from collections.abc import Iterator

from sandboxpool.api.v1alpha1 import IsolationProof
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.pool import Pool
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.resolve import Runtime
from sandboxpool.runtimes.verdict import HandlerState, listed_handler_state


class ClassUsage:
    """Relates RuntimeClasses to the pools that name them."""

    def __init__(self, cluster: ClusterCache, pools: PoolStore) -> None:
        self._cluster = cluster
        self._pools = pools

    def in_use(self) -> list[Runtime]:
        """The classes that at least one pool may use."""
        return [r for r in self._cluster.classes.values() if any(self._users(r))]

    def wanting_proof(self) -> list[Runtime]:
        """The classes of which at least one pool wants proof of isolation."""
        return [r for r in self._cluster.classes.values() if any(self.pools_wanting_proof(r))]

    def pools_wanting_proof(self, runtime: Runtime) -> Iterator[Pool]:
        """The pools that may use the class and want proof of isolation."""
        return (pool for pool in self._users(runtime) if wants_proof(pool))

    def _users(self, runtime: Runtime) -> Iterator[Pool]:
        pools = self._pools.by_class(runtime.class_name).pools.values()
        return (pool for pool in pools if may_use(pool, runtime))


def may_use(pool: Pool, runtime: Runtime) -> bool:
    """Whether the pool names the class, and the class has the handler that the pool expects."""
    spec = pool.spec
    return (
        spec is not None
        and spec.runtime_class_name == runtime.class_name
        and spec.expected_handler in (None, runtime.handler)
    )


def wants_proof(pool: Pool) -> bool:
    """Whether the pool binds only sandboxes whose isolation is proven."""
    return pool.proof is not IsolationProof.NONE and not pool.deleting


def may_run_on(runtime: Runtime, handler: str, node: NodeFacts) -> bool:
    """Whether the class has this handler, admits the node, and the node may serve the handler.

    Two classes with the same handler may admit different nodes.
    """
    return (
        runtime.handler == handler
        and runtime.admits(node.labels)
        and listed_handler_state(node, handler) is not HandlerState.NOT_SERVING
    )
