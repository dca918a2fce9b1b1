"""The composition root: creates the components of the operator and connects them.

The event router is created first. Every other component gets its dependencies at its creation, and
the router is connected last.
"""

import logging
import socket
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import kopf

from sandboxpool.allocation.allocator import Allocator
from sandboxpool.allocation.candidate_tracker import CandidateTracker
from sandboxpool.api import names
from sandboxpool.api.core import Event, Node, Pod
from sandboxpool.api.v1alpha1 import SandboxClaim, SandboxRuntime
from sandboxpool.app.namespaces import WatchedNamespaces
from sandboxpool.app.settings import Settings
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
from sandboxpool.kube.informers import InformerGroup, ObjectCache
from sandboxpool.kube.lease import LeaderElector
from sandboxpool.kube.watches import Watches
from sandboxpool.kube.workqueue import WorkQueue
from sandboxpool.observability.exposition import Exposition
from sandboxpool.observability.metrics import ClusterCollector, Metrics
from sandboxpool.pools.reconcile import PoolReconciler
from sandboxpool.pools.state import PoolStates
from sandboxpool.routing import Destinations, EventRouter, Queues
from sandboxpool.runtimes.diagnosis import FAILED_CREATE_SANDBOX
from sandboxpool.runtimes.failure_history import FailureHistory
from sandboxpool.runtimes.probe import probe_selector
from sandboxpool.sandboxes.event_reader import PodEventReader
from sandboxpool.util.references import ObjectReference

logger = logging.getLogger(__name__)

USER_AGENT = "sandboxpool-operator"
# A pool's first sandboxes wait until the nodes that they must keep away from are labelled.
NODE_WORKERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """The clients of the API server, and the leader election that allows their writes.

    Attributes:
        client: refuses to write if the process does not hold the lease.
        lease_client: only renews the lease, so that no other request delays a renewal.
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
    """The components that the operator process starts, stops and reads."""

    connection: Connection
    cluster: ClusterCache
    pools: PoolStore
    classes: RuntimeClassStore
    namespaces: WatchedNamespaces
    pods: ObjectCache[Pod]
    claims: ObjectCache[SandboxClaim]
    nodes: Informer[Node]
    queues: Queues
    events: EventRecorder
    event_reader: PodEventReader
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
    """Create the components of one operator process; none of them runs yet.

    Args:
        settings: the operator's settings.
        info: the address and credentials of the API server.
        client: the client to use; created from ``info`` if None.
        wall: this machine's clock, in seconds since the epoch.
        clock: a monotonic clock, in seconds, that includes the time of a suspension.
    """
    router = EventRouter()
    pools = PoolStore(_logging_errors(router.pool_changed))
    connection = _connect(settings, info, pools, client=client, wall=wall, clock=clock)
    client, metrics, wall = connection.client, connection.metrics, connection.clock

    cluster = ClusterCache(settings.proof_max_age, wall, on_exclusion_change=router.enqueue_node)
    cluster.nodes.set_by_hostname(not settings.exclusion_labels)
    classes = RuntimeClassStore(cluster.classes, _logging_errors(router.runtime_class_changed))
    issues = FailureHistory()
    records = NodeRecords(client, settings.namespace, clock, settings.release)
    events = EventRecorder(
        client,
        "sandboxpool",
        socket.gethostname(),
        rank=_rank,
        cluster_scoped=settings.manage_runtimes,
        on_drop=metrics.dropped_events.inc,
        wall=wall,
    )
    event_reader = PodEventReader(client, router.pod_events_read)
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
        event_reader=event_reader,
        on_started=health.observe_probe_started,
        on_result=health.observe_probe,
        make_room=health.make_room,
        on_stuck=health.observe_stuck,
        wall=wall,
        seed=lambda: uuid.uuid4().hex,
    )

    # In the order in which a new leader processes their objects.
    namespaces = WatchedNamespaces(settings.watch_namespaces, pools.forget_namespace)
    watch = _Watcher(connection, namespaces)
    nodes = watch("nodes", "v1", "nodes", Node, router.node_changed)
    watch.in_namespaces(
        "events",
        "v1",
        "events",
        Event,
        router.sandbox_event,
        # Of the probes.
        besides=settings.namespace,
        field_selector=f"reason={FAILED_CREATE_SANDBOX},involvedObject.kind=Pod",
    )
    pods = watch.in_namespaces(
        "pods", "v1", "pods", Pod, router.pod_changed, label_selector=names.LABEL_POOL_UID
    )
    watch(
        "probe pods",
        "v1",
        "pods",
        Pod,
        prober.observe,
        namespace=settings.namespace,
        label_selector=probe_selector(settings.release),
    )
    claims = watch.in_namespaces(
        "sandboxclaims", names.API_VERSION, names.CLAIMS, SandboxClaim, router.claim_changed
    )
    runtimes: Iterable[SandboxRuntime] = ()
    if settings.manage_runtimes:
        runtimes = watch(
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
        event_reader=event_reader,
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
        cold=pool_reconciler.cold_starter,
        events=events,
        observer=metrics,
        pod_events=event_reader.events_of,
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
            event_reader=event_reader,
            events=events,
            metrics=metrics,
            queues=queues,
        )
    )
    collector = ClusterCollector(
        cluster, pools, allocator, candidate_tracker, wall, runtimes=runtimes
    )
    metrics.registry.register(collector)
    return Components(
        connection=connection,
        cluster=cluster,
        pools=pools,
        classes=classes,
        namespaces=namespaces,
        pods=pods,
        claims=claims,
        nodes=nodes,
        queues=queues,
        events=events,
        event_reader=event_reader,
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
    """A client that needs no lease for its writes: reviews and dry runs are POSTs, too."""
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
    # Times in API objects are compared with the API server's time.
    server_clock = ServerClock(wall, clock)
    watches = Watches()
    lease_client = client or ApiClient(
        info, user_agent=USER_AGENT, observe=metrics.request, on_date=server_clock.observe
    )
    elector = LeaderElector(
        lease_client,
        settings.namespace,
        name=settings.release,
        # Unique to this process: a restarted container keeps its host name.
        identity=f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}",
        times=settings.lease,
        clock=clock,
        wall=server_clock,
        not_ready_reason=watches.not_ready_reason,
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
    """Creates informers, and adds each of them to the watches and to the metrics."""

    def __init__(self, connection: Connection, namespaces: WatchedNamespaces) -> None:
        self._connection = connection
        self._namespaces = namespaces

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
        """Create an informer of a collection that must be available."""
        path = resource_path(api_version, resource, namespace)
        informer = self._create(name, path, resource, type_, on_change, **selectors)
        self._connection.metrics.watch_age.labels(name).set_function(informer.staleness)
        return informer

    def in_namespaces(
        self,
        name: str,
        api_version: str,
        resource: str,
        type_: type[Any],
        on_change: Callable[[Any, Any], None],
        *,
        besides: str = "",
        **selectors: str,
    ) -> ObjectCache[Any]:
        """Create an informer of all namespaces, or one for each that the operator is limited to.

        The namespace ``besides`` is watched in any case, and must be available.
        """
        watched = self._namespaces.names
        if not watched:
            return self(name, api_version, resource, type_, on_change, **selectors)
        informers = {}
        for namespace in dict.fromkeys((*watched, *filter(None, (besides,)))):
            path = resource_path(api_version, resource, namespace)
            update = partial(self._namespaces.update, namespace) if namespace in watched else None
            informer = self._create(
                f"{name} of {namespace}",
                path,
                resource,
                type_,
                on_change,
                on_availability=update,
                **selectors,
            )
            informers[namespace] = informer
            if update is not None:
                self._namespaces.add(namespace, informer)
        group = InformerGroup(informers)
        self._connection.metrics.watch_age.labels(name).set_function(group.staleness)
        return group

    def _create(
        self,
        name: str,
        path: str,
        resource: str,
        type_: type[Any],
        on_change: Callable[[Any, Any], None],
        **more: Any,
    ) -> Informer[Any]:
        informer = Informer(
            self._connection.client,
            path,
            type_,
            on_change,
            on_restart=partial(self._connection.metrics.watch_restarted, resource),
            **more,
        )
        # A standby keeps its caches warm, but delivers no change to the other components: they
        # start from scratch when the process acquires the lease.
        informer.hold_notifications()
        self._connection.watches.add(name, informer)
        return informer


def _queues(settings: Settings, metrics: Metrics, claims: ObjectCache[SandboxClaim]) -> Queues:
    labels_nodes = settings.publish_on_nodes or settings.exclusion_labels
    return Queues(
        pools=WorkQueue("pools", metrics.queue("pools"), max_concurrent=settings.pool_workers),
        claims=WorkQueue(
            "claims", metrics.queue("claims"), partial(_lane_of, claims), settings.claim_workers
        ),
        runtimes=WorkQueue("runtimes", metrics.queue("runtimes"), max_concurrent=1)
        if settings.manage_runtimes
        else None,
        nodes=WorkQueue("nodes", metrics.queue("nodes"), max_concurrent=NODE_WORKERS)
        if labels_nodes
        else None,
    )


def _lane_of(claims: ObjectCache[SandboxClaim], key: tuple[str, str]) -> tuple[str, str]:
    """The queue's lane of a claim: its pool, so that a burst on one pool delays no other pool."""
    claim = claims.get(*key)
    return key if claim is None else (key[0], claim.spec.poolName)


def _rank(regarding: ObjectReference) -> int:
    """The priority of an event, lowest first: cluster-scoped objects, pools, then claims."""
    if not regarding.namespace:
        return 0
    return 2 if regarding.kind == names.CLAIM_KIND else 1


def _logging_errors(handle: Callable[..., None]) -> Callable[..., None]:
    """Wrap a handler so that it logs what it raises: a failed change must not stop others."""

    def safe(*states: Any) -> None:
        try:
            handle(*states)
        except Exception:
            keys = [getattr(state, "key", state) for state in states]
            logger.exception("a change could not be processed: %s", keys)

    return safe
