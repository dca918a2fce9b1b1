"""Nodes that one pool keeps away from by itself, because its sandboxes fail or wait there.

A runtime can work on a node and yet fail some sandboxes: those that are too large, or ask for
devices. The operator's probe passes, so the node is nobody else's concern. The pool whose sandboxes
fail makes its next ones elsewhere; never so that it avoids more than half of the nodes that it
could use, and never for longer than half an hour. The same goes for nodes on which its sandboxes
wait for a proof that no probe gives.
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
    """What each pool keeps away from, by the pool's uid."""

    def __init__(self) -> None:
        # Until when, in epoch seconds, by the node's name.
        self._pools: dict[str, OrderedDict[str, float]] = {}

    def add(self, pool: str, node: str, now: float) -> bool:
        """A sandbox of the pool was given up on the node; return whether that is new."""
        nodes = self._pools.setdefault(pool, OrderedDict())
        is_new = node not in nodes
        nodes[node] = now + AVOID_SECONDS
        nodes.move_to_end(node)
        if len(nodes) > MAX_NODES:
            nodes.popitem(last=False)
        return is_new

    def expire(self, pool: str, now: float) -> None:
        """Forget what is over; further ahead than it can be means that the clock was put back."""
        nodes = self._pools.get(pool)
        for node, until in list(nodes.items()) if nodes else ():
            if not now < until <= now + AVOID_SECONDS:
                self._remove(pool, node)

    def forget_node(self, node: str) -> None:
        """The node was mended, is another machine, or gone."""
        for pool in [pool for pool, nodes in self._pools.items() if node in nodes]:
            self._remove(pool, node)

    def forget_pool(self, pool: str) -> None:
        """The pool is gone."""
        self._pools.pop(pool, None)

    def of(self, pool: str) -> list[str]:
        """The nodes that a pool keeps away from, the latest first."""
        return list(reversed(self._pools.get(pool, ())))

    def next_expiry(self, pool: str) -> float | None:
        """When the first of a pool's is over, in epoch seconds."""
        return min(self._pools.get(pool, {}).values(), default=None)

    def _remove(self, pool: str, node: str) -> None:
        del self._pools[pool][node]
        if not self._pools[pool]:
            del self._pools[pool]


def chosen(verdict: Verdict, nodes: Iterable[NodeFacts]) -> list[NodeFacts]:
    """Which of these nodes to keep away from: half of those that can be used are left.

    Those that give no proof are none that can be used, as long as others give it.
    """
    usable = {*verdict.serving, *verdict.unknown}
    nodes = list(nodes)
    left = [node for node in nodes if node.name in usable][: len(usable) // 2]
    return left + [node for node in nodes if node.name in verdict.unproven]


def exclude_nodes(
    verdict: Verdict, nodes: Sequence[NodeFacts], pool: str, unlabelable: frozenset[str]
) -> Verdict:
    """Exclude these nodes too.

    Args:
        verdict: how the fleet stands.
        nodes: the nodes that were chosen.
        pool: the uid of the pool that keeps away from them.
        unlabelable: the names of nodes for whose label nobody shall wait.
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
