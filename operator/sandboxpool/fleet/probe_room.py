"""Makes room for probes on full nodes by preempting sandboxes that wait for the probe's answer."""

import logging
from collections.abc import Callable, Iterator

from sandboxpool.api import names
from sandboxpool.api.core import Pod
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.ownership import claim_uid_of
from sandboxpool.cluster.pool import Pool
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.fleet.class_usage import wants_proof
from sandboxpool.fleet.probe_request import ProbeRequest, ProbeResult
from sandboxpool.runtimes.evidence import Isolation, software_of
from sandboxpool.runtimes.nodes import NodeHandler

logger = logging.getLogger(__name__)


class ProbeRoom:
    """Reserves a sandbox's place on a node for a probe, and returns it to the pool.

    Args:
        wall: seconds since the epoch.
        on_change: called with the uid of a pool when one of its places is reserved or returned.
    """

    def __init__(
        self,
        cluster: ClusterCache,
        pools: PoolStore,
        wall: Callable[[], float],
        on_change: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._pools = pools
        self._wall = wall
        self._on_change = on_change

    def make(self, probe_request: ProbeRequest) -> bool:
        """Preempt a sandbox for a probe whose node is full.

        Returns:
            Whether the probe has a place reserved, so that it should wait for it.
        """
        if probe_request.purpose not in ("evidence", "control"):
            return False
        reservations, now = self._cluster.probe_reservations, self._wall()
        pair = _reservation_key(probe_request)
        if reservations.is_reserved(pair):
            return True
        software = software_of(probe_request.node)
        waiting = sorted(
            self._waiting_on(*pair), key=lambda found: found[0].metadata.creationTimestamp or ""
        )
        if not waiting or not reservations.may_preempt(pair, software, now):
            return False
        pod, pool = waiting[-1]
        logger.info(
            "node %s is full: pod %s/%s is preempted by the probe of handler %s",
            pair[0],
            pod.metadata.namespace,
            pod.metadata.name,
            pair[1],
        )
        reservations.preempt(pair, software, pool.uid, pod.metadata.uid, now)
        self._on_change(pool.uid)
        return True

    def reclaim(self, probe_request: ProbeRequest, result: ProbeResult) -> None:
        """Return the place to its pool after the probe has ended."""
        isolation = result.evidence.isolation if result.evidence is not None else None
        if probe_request.purpose == "control" and isolation is Isolation.NOT_PROVEN:
            # The control passed: the evidence probe that follows needs the place.
            return
        if probe_request.purpose in ("evidence", "control"):
            proven = probe_request.purpose == "evidence" and isolation is Isolation.PROVEN
            pool_uid = self._cluster.probe_reservations.end(
                _reservation_key(probe_request), proven=proven
            )
            if pool_uid is not None:
                self._on_change(pool_uid)

    def expire(self, now: float) -> None:
        """Return the places whose reservation has expired."""
        for pool_uid in self._cluster.probe_reservations.expire(now):
            self._on_change(pool_uid)

    def forget_node(self, name: str) -> None:
        """Return the places on a node that no longer exists."""
        for pool_uid in self._cluster.probe_reservations.forget_node(name):
            self._on_change(pool_uid)

    def _waiting_on(self, name: str, handler: str) -> Iterator[tuple[Pod, Pool]]:
        """The sandboxes on a node that claims cannot get only because proof is missing."""
        for pod in self._cluster.pods.on_node(name):
            pool, metadata = self._pools.of(pod), pod.metadata
            if (
                pool is None
                or pool.spec is None
                or pool.spec.paused
                or not wants_proof(pool)
                or not pod.ready
                or metadata.deletionTimestamp is not None
                or claim_uid_of(pod) is not None
                or metadata.annotations.get(names.ANNOTATION_HANDLER) != handler
            ):
                continue
            host_state = self._cluster.host_state(pod, pool.proof)
            if host_state.allocatable and not host_state.isolation_proven:
                yield pod, pool


def _reservation_key(probe_request: ProbeRequest) -> NodeHandler:
    """The node and handler that a probe needs a place for."""
    return probe_request.node.name, probe_request.waiting or probe_request.handler
