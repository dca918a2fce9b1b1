"""Nodes that one pool avoids because its own sandboxes fail or wait there.

A runtime can work on a node and still fail some sandboxes, such as those that are too large or
request devices. The operator's probe passes, so no other pool is concerned. The pool creates its
next sandboxes on other nodes. It avoids at most half of its usable nodes, and each for at most half
an hour. A pool also avoids nodes on which its sandboxes wait for a proof that no probe delivers.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from sandboxpool.runtimes.exclusion import pool_key
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.verdict import Verdict

AVOID_SECONDS = 1800.0
MAX_NODES = 16


class AvoidedNodes:
    """The nodes that each pool avoids, by the pool's uid."""

    def __init__(self) -> None:
        # Expiry in epoch seconds, by the node's name.
        self._pools: dict[str, OrderedDict[str, float]] = {}

    def add(self, pool: str, node: str, now: float) -> bool:
        """Avoid the node after a failure of the pool's sandbox; return whether that is new."""
        nodes = self._pools.setdefault(pool, OrderedDict())
        is_new = node not in nodes
        nodes[node] = now + AVOID_SECONDS
        nodes.move_to_end(node)
        if len(nodes) > MAX_NODES:
            nodes.popitem(last=False)
        return is_new

    def expire(self, pool: str, now: float) -> None:
        """Drop expired entries, and those too far ahead: the clock was set back meanwhile."""
        nodes = self._pools.get(pool)
        for node, until in list(nodes.items()) if nodes else ():
            if not now < until <= now + AVOID_SECONDS:
                self._remove(pool, node)

    def forget_node(self, node: str) -> None:
        """Drop a node that was repaired, replaced or deleted."""
        for pool in [pool for pool, nodes in self._pools.items() if node in nodes]:
            self._remove(pool, node)

    def forget_pool(self, pool: str) -> None:
        """Drop a deleted pool."""
        self._pools.pop(pool, None)

    def of(self, pool: str) -> list[str]:
        """The nodes that a pool avoids, the latest first."""
        return list(reversed(self._pools.get(pool, ())))

    def next_expiry(self, pool: str) -> float | None:
        """When the pool's first entry expires, in epoch seconds."""
        return min(self._pools.get(pool, {}).values(), default=None)

    def _remove(self, pool: str, node: str) -> None:
        del self._pools[pool][node]
        if not self._pools[pool]:
            del self._pools[pool]


def chosen(verdict: Verdict, nodes: Iterable[NodeFacts]) -> list[NodeFacts]:
    """Select the nodes to avoid, at most half of the usable ones.

    Unproven nodes are avoided without a limit: they are listed only while others are proven.
    """
    usable = {*verdict.serving, *verdict.unknown}
    nodes = list(nodes)
    avoided = [node for node in nodes if node.name in usable][: len(usable) // 2]
    return avoided + [node for node in nodes if node.name in verdict.unproven]


def exclude_nodes(
    verdict: Verdict, nodes: Sequence[NodeFacts], pool: str, unlabelable: frozenset[str]
) -> Verdict:
    """Add avoided nodes to the exclusions of a verdict.

    Args:
        verdict: the verdict of the pool.
        nodes: the nodes that were chosen.
        pool: the uid of the pool that avoids them.
        unlabelable: the names of nodes whose labels cannot be set, so that no pod waits for them.
    """
    if verdict.by_hostname:
        hosts = {node.hostname for node in nodes if node.hostname is not None}
        return replace(verdict, excluded=tuple(sorted(hosts.union(verdict.excluded))))
    key = pool_key(pool)
    exclusions_pending = [n for n in nodes if key not in n.exclusions and n.name not in unlabelable]
    return (
        replace(verdict, exclusions_pending=verdict.exclusions_pending + len(exclusions_pending))
        if exclusions_pending
        else verdict
    )
