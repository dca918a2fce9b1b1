"""The composition root: builds the parts of the operator and connects them.

Nothing else knows all the parts. The event router exists first; every other part is given what it
needs when it is made, and the router is connected last.
"""

import logging
import socket
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import kopf

from sandboxpool.allocation.allocator import Allocator
from sandboxpool.allocation.candidate_tracker import CandidateTracker
from sandboxpool.api import names
from sandboxpool.api.core import Event, Node, Pod
from sandboxpool.api.v1alpha1 import SandboxClaim, SandboxRuntime
from sandboxpool.app.settings import Settings
from sandboxpool.app.watches import Watches
from sandboxpool.claims.reconcile import ClaimReconciler
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.classes import RuntimeClassStore
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.fleet.gather import RuntimeStatusGatherer
from sandboxpool.fleet.health import Health
from sandboxpool.fleet.prober import Prober
from sandboxpool.fleet.publish import NodePublisher
from sandboxpool.fleet.reconcile import RuntimeReconciler
from sandboxpool.fleet.records import NodeRecords
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.clock import ServerClock
from sandboxpool.kube.events import EventRecorder
from sandboxpool.kube.informer import Informer
from sandboxpool.kube.lease import LeaderElector
from sandboxpool.kube.workqueue import WorkQueue
from sandboxpool.observability.exposition import Exposition
from sandboxpool.observability.metrics import ClusterCollector, Metrics
from sandboxpool.pools.reconcile import PoolReconciler
from sandboxpool.pools.state import PoolStates
from sandboxpool.routing import Destinations, EventRouter, Queues
from sandboxpool.runtimes.diagnosis import FAILED_CREATE_SANDBOX
from sandboxpool.runtimes.failure_history import FailureHistory
from sandboxpool.runtimes.probe import LABEL_PROBE
from sandboxpool.sandboxes.event_reader import PodEventReader
from sandboxpool.util.references import ObjectReference

logger = logging.getLogger(__name__)

USER_AGENT = "sandboxpool-operator"
# Nodes labelled at once: a pool's first sandboxes wait for those that are not to be used.
NODE_WORKERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """What speaks to the API server, and what says whether it may write.

    Attributes:
        client: refuses writes of a process that does not hold the lease.
        lease_client: renews the lease, so that no other request delays that.
        clock: the API server's time, in seconds since the epoch.
    """

    metrics: Metrics
    client: ApiClient
    lease_client: ApiClient
    clock: ServerClock
    elector: LeaderElector
    watches: Watches


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """The parts of one operator process that the process itself starts, stops and asks."""

    connection: Connection
    cluster: ClusterCache
    pools: PoolStore
    classes: RuntimeClassStore
    pods: Informer[Pod]
    claims: Informer[SandboxClaim]
    nodes: Informer[Node]
    queues: Queues
    events: EventRecorder
    inquiry: PodEventReader
    records: NodeRecords
    health: Health
    prober: Prober
    publisher: NodePublisher
    pool_reconciler: PoolReconciler
    claim_reconciler: ClaimReconciler
    runtime_reconciler: RuntimeReconciler
    exposition: Exposition


def build(
    settings: Settings,
    info: kopf.ConnectionInfo,
    *,
    client: ApiClient | None,
    wall: Callable[[], float],
    clock: Callable[[], float],
) -> Components:
    """Build the parts of one operator process; none of them runs yet.

    Args:
        settings: how it runs.
        info: where the API server is.
        client: speaks to it; made from ``info`` unless given.
        wall: this machine's own clock, in seconds since the epoch.
        clock: a monotonic clock, in seconds, that counts the time of a suspension too.
    """
    router = EventRouter()
    pools = PoolStore(_logging_errors(router.pool_changed))
    connection = _connect(settings, info, pools, client=client, wall=wall, clock=clock)
    client, metrics, wall = connection.client, connection.metrics, connection.clock

    cluster = ClusterCache(settings.proof_max_age, wall, on_exclusion_change=router.enqueue_node)
    cluster.nodes.set_by_hostname(not settings.exclusion_labels)
    classes = RuntimeClassStore(cluster.classes, _logging_errors(router.runtime_class_changed))
    issues = FailureHistory()
    records = NodeRecords(client, settings.namespace, clock)
    events = EventRecorder(
        client,
        "sandboxpool",
        socket.gethostname(),
        rank=_rank,
        on_drop=metrics.dropped_events.inc,
        wall=wall,
    )
    inquiry = PodEventReader(client, router.pod_events_read)
    fleet = RuntimeStatusGatherer(
        cluster=cluster, pools=pools, issues=issues, wall=wall, clock=clock
    )
    health = Health(
        cluster=cluster, issues=issues, records=records, listener=router, pools=pools, wall=wall
    )
    prober = Prober(
        client=client,
        namespace=settings.namespace,
        image=settings.to_probe_image(),
        options=settings.to_probe_options(),
        pending_probes=health.pending_probes,
        nodes=cluster.nodes.get,
        classes=cluster.classes.get,
        sandbox_event=cluster.events.message,
        event_reader=inquiry,
        on_started=health.observe_probe_started,
        on_result=health.observe_probe,
        make_room=health.make_room,
        on_stuck=health.observe_stuck,
        wall=wall,
        seed=lambda: uuid.uuid4().hex,
    )

    # In the order in which a new leader takes their objects in.
    watch = _Watcher(connection)
    nodes = watch("nodes", "v1", "nodes", Node, router.node_changed)
    watch(
        "events",
        "v1",
        "events",
        Event,
        router.sandbox_event,
        field_selector=f"reason={FAILED_CREATE_SANDBOX},involvedObject.kind=Pod",
    )
    pods = watch("pods", "v1", "pods", Pod, router.pod_changed, label_selector=names.LABEL_POOL_UID)
    watch(
        "probe pods",
        "v1",
        "pods",
        Pod,
        prober.observe,
        namespace=settings.namespace,
        label_selector=LABEL_PROBE,
    )
    claims = watch(
        "sandboxclaims", names.API_VERSION, names.CLAIMS, SandboxClaim, router.claim_changed
    )
    watch(
        "sandboxruntimes",
        names.API_VERSION,
        names.RUNTIMES,
        SandboxRuntime,
        router.runtime_changed,
    )

    queues = _queues(settings, metrics, claims)
    allocator = Allocator(router.pod_hold_changed)
    states = PoolStates(clock)
    candidate_tracker = CandidateTracker(
        cluster, pools, allocator, is_deleting=states.is_deleting, on_allocated=router.claim_granted
    )
    pool_reconciler = PoolReconciler(
        client=client,
        cluster=cluster,
        pools=pools,
        states=states,
        allocator=allocator,
        candidate_tracker=candidate_tracker,
        events=events,
        observer=metrics,
        on_startup_sample=router.startup_measured,
        on_start_timeout=health.observe_timeout,
        enqueue=queues.pools.add,
        enqueue_claim=router.enqueue_claim,
        event_reader=inquiry,
        probe=settings.to_probe_image(),
        guarded=settings.admission_policy,
        pods_cache_age=pods.staleness,
        wall=wall,
        clock=clock,
    )
    claim_reconciler = ClaimReconciler(
        client=client,
        get=claims.get,
        cluster=cluster,
        pools=pools,
        allocator=allocator,
        candidate_tracker=candidate_tracker,
        cold=pool_reconciler,
        events=events,
        observer=metrics,
        pod_events=inquiry.events_of,
        wall=wall,
        clock=clock,
    )
    runtime_reconciler = RuntimeReconciler(
        client=client, gather=fleet.gather, events=events, clock=clock
    )
    publisher = NodePublisher(
        client=client,
        cluster=cluster,
        get=lambda name: nodes.get("", name),
        wall=wall,
        clock=clock,
        exclude=settings.exclusion_labels,
        publish=settings.publish_on_nodes,
        on_change=router.labels_changed,
    )
    router.connect(
        Destinations(
            cluster=cluster,
            pools=pools,
            allocator=allocator,
            candidate_tracker=candidate_tracker,
            pool_reconciler=pool_reconciler,
            claim_reconciler=claim_reconciler,
            runtime_reconciler=runtime_reconciler,
            fleet=fleet,
            health=health,
            prober=prober,
            inquiry=inquiry,
            events=events,
            metrics=metrics,
            queues=queues,
        )
    )
    collector = ClusterCollector(cluster, pools, allocator, candidate_tracker, wall)
    metrics.registry.register(collector)
    return Components(
        connection=connection,
        cluster=cluster,
        pools=pools,
        classes=classes,
        pods=pods,
        claims=claims,
        nodes=nodes,
        queues=queues,
        events=events,
        inquiry=inquiry,
        records=records,
        health=health,
        prober=prober,
        publisher=publisher,
        pool_reconciler=pool_reconciler,
        claim_reconciler=claim_reconciler,
        runtime_reconciler=runtime_reconciler,
        exposition=Exposition(metrics.registry, collector.refresh),
    )


def bare_client(info: kopf.ConnectionInfo, metrics: Metrics) -> ApiClient:
    """A client that needs no lease for its writes: what it asks is a POST, and changes nothing."""
    return ApiClient(info, user_agent=USER_AGENT, observe=metrics.request)


def _connect(
    settings: Settings,
    info: kopf.ConnectionInfo,
    pools: PoolStore,
    *,
    client: ApiClient | None,
    wall: Callable[[], float],
    clock: Callable[[], float],
) -> Connection:
    metrics = Metrics(lambda key: pools.get(key) is not None)
    # Whatever is compared with times in API objects is reckoned in the API server's time.
    server_clock = ServerClock(wall, clock)
    watches = Watches()
    lease_client = client or ApiClient(
        info, user_agent=USER_AGENT, observe=metrics.request, on_date=server_clock.observe
    )
    elector = LeaderElector(
        lease_client,
        settings.namespace,
        # Not even the next process in the same container has the same.
        identity=f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}",
        times=settings.lease,
        clock=clock,
        wall=server_clock,
        not_ready_reason=watches.unfit,
    )
    client = client or ApiClient(
        info,
        user_agent=USER_AGENT,
        observe=metrics.request,
        before_write=elector.require_leadership,
        on_date=server_clock.observe,
    )
    return Connection(
        metrics=metrics,
        client=client,
        lease_client=lease_client,
        clock=server_clock,
        elector=elector,
        watches=watches,
    )


class _Watcher:
    """Makes the informers of a process, each known to its watches and its metrics."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __call__(
        self,
        name: str,
        api_version: str,
        resource: str,
        type_: type[Any],
        on_change: Callable[[Any, Any], None],
        namespace: str | None = None,
        **selectors: str,
    ) -> Informer[Any]:
        metrics = self._connection.metrics
        informer = Informer(
            self._connection.client,
            resource_path(api_version, resource, namespace),
            type_,
            on_change,
            on_restart=lambda cause: metrics.watch_restarted(resource, cause),
            **selectors,
        )
        metrics.watch_age.labels(name).set_function(informer.staleness)
        # A standby's caches are warm, and everything that remembers or decides is as new as in a
        # process that has just been started: it comes to life when the lease is ours.
        informer.hold_notifications()
        self._connection.watches.add(name, informer)
        return informer


def _queues(settings: Settings, metrics: Metrics, claims: Informer[SandboxClaim]) -> Queues:
    labels_nodes = settings.publish_on_nodes or settings.exclusion_labels
    return Queues(
        pools=WorkQueue("pools", metrics.queue("pools"), max_concurrent=settings.pool_workers),
        claims=WorkQueue(
            "claims", metrics.queue("claims"), partial(_lane_of, claims), settings.claim_workers
        ),
        runtimes=WorkQueue("runtimes", metrics.queue("runtimes"), max_concurrent=1),
        nodes=WorkQueue("nodes", metrics.queue("nodes"), max_concurrent=NODE_WORKERS)
        if labels_nodes
        else None,
    )


def _lane_of(claims: Informer[SandboxClaim], key: tuple[str, str]) -> tuple[str, str]:
    """The queue's lane of a claim: its pool, so that a burst on one holds up no other pool's."""
    claim = claims.get(*key)
    return key if claim is None else (key[0], claim.spec.poolName)


def _rank(about: ObjectReference) -> int:
    """Whose events go first: the fleet's are for many, and a claim's for its author alone."""
    if not about.namespace:
        return 0
    return 2 if about.kind == names.CLAIM_KIND else 1


def _logging_errors(handle: Callable[..., None]) -> Callable[..., None]:
    """The same handler, which logs what it raises: one change that fails must not stop others."""

    def safe(*states: Any) -> None:
        try:
            handle(*states)
        except Exception:
            keys = [getattr(state, "key", state) for state in states]
            logger.exception("a change could not be taken in: %s", keys)

    return safe
