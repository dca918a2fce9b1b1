"""Which changes enqueue which keys, and that most changes enqueue nothing."""

from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxpool.allocation.allocator import Allocator
from sandboxpool.allocation.candidate_tracker import CandidateTracker
from sandboxpool.api.core import Event, EventSource, InvolvedObject, Metadata, Node, Pod, Taint
from sandboxpool.api.reasons import Reason
from sandboxpool.api.times import timestamp
from sandboxpool.api.v1alpha1 import SandboxClaim
from sandboxpool.claims.reconcile import ClaimReconciler
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.classes import RuntimeClassStore
from sandboxpool.cluster.ownership import pool_uid_of
from sandboxpool.cluster.pool import Pool
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.fleet.gather import RuntimeStatusGatherer
from sandboxpool.fleet.health import Health
from sandboxpool.fleet.probe_request import ProbeRequest, ProbeResult
from sandboxpool.fleet.prober import Prober
from sandboxpool.fleet.reconcile import RuntimeReconciler
from sandboxpool.fleet.records import NodeRecords
from sandboxpool.kube.events import EventRecorder
from sandboxpool.kube.workqueue import WorkQueue
from sandboxpool.observability.metrics import Metrics
from sandboxpool.pools.reconcile import PoolReconciler
from sandboxpool.routing import Destinations, EventRouter, Queues
from sandboxpool.runtimes.diagnosis import Failure
from sandboxpool.runtimes.evidence import Isolation
from sandboxpool.runtimes.failure_history import FailureHistory
from sandboxpool.runtimes.node_constraints import NodeConstraints, node_constraints_of
from sandboxpool.util.references import ObjectReference
from support.builders import (
    NOW,
    claim,
    evidence,
    node,
    pod,
    pool_body,
    probed,
    runtime,
    runtime_class,
)
from support.inquiries import NoInquiry
from support.lists import replace

NO_SHIM = 'binary not installed "containerd-shim-runsc-v1": file does not exist'


class Queue:
    """Records keys in the order in which they were added."""

    def __init__(self) -> None:
        self.keys: list[Any] = []
        self.dropped: list[Any] = []

    def add(self, key: Any) -> None:
        self.keys.append(key)

    def add_after(self, key: Any, seconds: float) -> None:
        assert 0 < seconds < 1, "bursts are gathered for a moment, and no longer"
        self.keys.append(key)

    def drop(self, key: Any) -> None:
        self.dropped.append(key)

    def close(self) -> None:
        self.keys.append("closed")


class Parts:
    """Records the calls of the components that decide and write."""

    def __init__(self) -> None:
        self.told: Counter[str] = Counter()
        self.events: list[tuple[str, str, str, str]] = []
        self.marked_dirty: set[tuple[str, str]] = set()

    def mark_dirty(self, pool_uid: str, pod_uid: str) -> None:
        self.marked_dirty.add((pool_uid, pod_uid))

    def observe_pod(self, pool_uid: str, _old: Pod | None, new: Pod | None) -> None:
        self.told[f"{pool_uid}: {'gone' if new is None else 'pod'}"] += 1

    def forget(self, pool_uid: str) -> None:
        self.told[f"forget {pool_uid}"] += 1

    def forget_pool(self, pool: Any) -> None:
        self.told[f"no metrics of {pool.name}"] += 1

    def observe_claim(self, *_: Any) -> None:
        self.told["claim seen"] += 1

    def observe_pod_deleted(self, pod: Pod) -> None:
        self.told[f"{pod.metadata.name} gone"] += 1

    def wake(self) -> None:
        self.told["prober woken"] += 1

    def quarantine_changed(self, handler: str, to: str) -> None:
        self.told[f"breaker {handler} {to}"] += 1

    def probed(self, handler: str, outcome: str) -> None:
        self.told[f"probed {handler} {outcome}"] += 1

    def warning(self, about: ObjectReference, reason: str, message: str) -> None:
        self.events.append(("Warning", about.name, reason, message))

    def normal(self, about: ObjectReference, reason: str, message: str) -> None:
        self.events.append(("Normal", about.name, reason, message))


class Records:
    def put(self, name: str, record: Any) -> None: ...


class World:
    """Two pools of gVisor, one of Kata; a sandbox of each on a node of its own."""

    def __init__(self, *, publishes: bool = True) -> None:
        self.cluster = ClusterCache()
        self.parts = parts = Parts()
        self.claims: dict[tuple[str, str], SandboxClaim] = {}
        self.router = EventRouter()
        self.pools = PoolStore(self.router.pool_changed)
        self.classes = RuntimeClassStore(self.cluster.classes, self.router.runtime_class_changed)
        self.allocator = Allocator(parts.mark_dirty)
        self.candidate_tracker = CandidateTracker(
            self.cluster,
            self.pools,
            self.allocator,
            is_deleting=lambda pool, pod: False,
            on_allocated=self.router.claim_granted,
        )
        self.queues = {name: Queue() for name in ("pools", "claims", "runtimes", "nodes")}
        if not publishes:
            del self.queues["nodes"]
        self.now = NOW
        self.health = Health(
            cluster=self.cluster,
            issues=FailureHistory(),
            records=cast(NodeRecords, Records()),
            listener=self.router,
            pools=self.pools,
            wall=lambda: self.now,
        )
        self.router.connect(
            Destinations(
                cluster=self.cluster,
                pools=self.pools,
                allocator=self.allocator,
                candidate_tracker=self.candidate_tracker,
                pool_reconciler=cast(PoolReconciler, parts),
                claim_reconciler=cast(ClaimReconciler, parts),
                runtime_reconciler=cast(RuntimeReconciler, parts),
                fleet=cast(RuntimeStatusGatherer, parts),
                health=self.health,
                prober=cast(Prober, parts),
                event_reader=NoInquiry(),
                events=cast(EventRecorder, parts),
                metrics=cast(Metrics, parts),
                queues=Queues(
                    pools=cast(WorkQueue[tuple[str, str]], self.queues["pools"]),
                    claims=cast(WorkQueue[tuple[str, str]], self.queues["claims"]),
                    runtimes=cast(WorkQueue[str], self.queues["runtimes"]),
                    nodes=cast(WorkQueue[str] | None, self.queues.get("nodes")),
                ),
            )
        )
        self.pods: dict[str, Pod] = {}
        self.nodes: dict[str, Node] = {}
        self.classes.observe(runtime_class())
        self.classes.observe(runtime_class("kata", "kata", uid="kata-uid"))
        for name in ("a", "b"):
            self.pools.observe(pool_body(name, uid=f"{name}-uid"))
        self.pools.observe(pool_body("k", uid="k-uid", runtimeClassName="kata"))
        for name in ("node-a", "node-b", "node-k", "empty"):
            self.put_node(name)
        self.put_pod("pod-a", pool_uid="a-uid", node="node-a")
        self.put_pod("pod-b", pool_uid="b-uid", node="node-b")
        self.put_pod("pod-k", pool_uid="k-uid", node="node-k", **KATA)
        self.take()

    def take(self) -> dict[str, list[str]]:
        """What has been queued since the last time, sorted, each key once.

        All of it is looked at, so that each pool and class knows how the nodes stand to it.
        """
        self._read_verdicts()
        found = {}
        for name, queue in self.queues.items():
            keys = {key if isinstance(key, str) else key[1] for key in queue.keys}
            if keys:
                found[name] = sorted(keys)
            queue.keys.clear()
        self.parts.told.clear()
        return found

    def _read_verdicts(self) -> None:
        for pool in self.pools:
            resolution = self.cluster.resolution(pool)
            if resolution is not None and resolution.runtime is not None:
                self.cluster.verdict(pool, resolution.runtime)
        for name, known in self.cluster.classes.items():
            self.cluster.nodes.verdict(
                known.handler,
                node_constraints_of({}, known),
                proof_wanted=False,
                reader=("class", name),
            )

    def put_node(self, name: str, **given: Any) -> None:
        new = node(name, **{"handlers": ["runsc", "kata"], **given})
        old = self.nodes.get(name)
        self.nodes[name] = new
        self.router.node_changed(old, new)

    def put_pod(self, name: str, **given: Any) -> None:
        new = pod(name, **given)
        old = self.pods.get(name)
        self.pods[name] = new
        self.router.pod_changed(old, new)

    def remove_pod(self, name: str) -> None:
        self.router.pod_changed(self.pods.pop(name), None)

    def put_claim(self, name: str, **given: Any) -> None:
        new = claim(name, **given)
        old = self.claims.get(new.key)
        self.claims[new.key] = new
        self.router.claim_changed(old, new)

    def post_event(self, pod_uid: str, message: str = NO_SHIM) -> None:
        about = next((p for p in self.pods.values() if p.metadata.uid == pod_uid), pod("unknown"))
        where = about.metadata.namespace
        event = Event(
            Metadata("e", "e", "1", where),
            InvolvedObject("Pod", where, about.metadata.name, pod_uid),
            message=message,
            source=EventSource(about.spec.nodeName),
            lastTimestamp=timestamp(NOW),
        )
        self.router.sandbox_event(None, event)

    def probe(self, name: str, *, works: bool) -> None:
        at = self.cluster.nodes.get(name)
        assert at is not None
        failure = Failure(Reason.SHIM_MISSING, NO_SHIM, name, blames_runtime=True)
        learned = evidence(Isolation.UNAVAILABLE, at)
        result = ProbeResult(learned, None if works else failure, NOW, started=works)
        self.health.observe_probe(ProbeRequest(at, runtime(), "hint"), result)

    def free(self, pool_uid: str) -> int:
        return self.allocator.free(pool_uid)


KATA: dict[str, Any] = {"class_name": "kata", "runtime_uid": "kata-uid", "handler": "kata"}
ALL = ["a", "b", "k"]


@pytest.fixture
def world() -> World:
    return World()


# --- Nodes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"handlers": ["kata", "runsc"]}], ids=["beat", "shuffle"])
def test_a_heartbeat_enqueues_nothing(world: World, given: Any) -> None:
    world.put_node("node-a", version=2, **given)
    assert world.take() == {}
    assert not world.parts.told


@pytest.mark.parametrize(
    "given",
    [
        {"handlers": []},
        {"ready": False},
        {"unschedulable": True},
    ],
    ids=str,
)
def test_a_changed_node_enqueues_all_whose_verdict_it_changes(
    world: World, given: dict[str, Any]
) -> None:
    world.put_claim("bound")
    world.put_pod("claimed", pool_uid="a-uid", node="node-a", claim="bound")
    world.put_claim("elsewhere")
    world.put_pod("other", pool_uid="b-uid", node="node-b", claim="elsewhere")
    world.take()
    world.put_node("node-a", version=2, **given)
    told = dict(world.parts.told)
    assert told == {"prober woken": 1}
    assert world.take() == {
        "pools": ALL,
        "runtimes": ["gvisor", "kata"],
        "nodes": ["node-a"],
        # Only those with a sandbox there: they may have to say something about it.
        "claims": ["bound"],
    }


@pytest.mark.parametrize(
    ("given", "runtimes"),
    [
        ({"labels": {"kubernetes.io/hostname": "node-a", "zone": "a"}}, []),
        ({"uid": "another machine"}, ["gvisor", "kata"]),
        ({"boot_id": "after a reboot"}, ["gvisor", "kata"]),
        ({"container_runtime": "containerd://2.2.0"}, ["gvisor", "kata"]),
    ],
    ids=str,
)
def test_a_node_change_without_a_new_verdict_enqueues_the_pools_with_pods_there(
    world: World, given: dict[str, Any], runtimes: list[str]
) -> None:
    world.put_node("node-a", version=2, **given)
    # What was known of a class there may be about other software.
    assert world.parts.told == ({"prober woken": 1} if runtimes else {})
    taken = world.take()
    assert taken.pop("runtimes", []) == runtimes
    assert taken == {"pools": ["a"], "nodes": ["node-a"]}


def test_a_node_enqueues_only_those_whose_verdict_depends_on_it(world: World) -> None:
    picky = {"spec": {"nodeSelector": {"zone": "x"}}}
    tolerant = {"spec": {"tolerations": [{"key": "team", "value": "t", "operator": "Equal"}]}}
    world.pools.observe(pool_body("picky", uid="picky-uid", template=picky))
    world.pools.observe(pool_body("tolerant", uid="tolerant-uid", template=tolerant))
    world.take()
    tainted: dict[str, Any] = {"taints": [Taint("team", "NoSchedule", "t")]}
    world.put_node("theirs", **tainted)
    assert world.take()["pools"] == ["tolerant"]
    world.put_node("theirs", version=2, labels={"zone": "x"}, **tainted)
    assert "picky" not in world.take().get("pools", [])
    world.put_node("another", labels={"zone": "x"}, handlers=["kata"])
    assert world.take()["pools"] == [*ALL, "picky", "tolerant"]
    world.put_node("theirs", version=3, handlers=["kata"], **tainted)
    assert world.take()["pools"] == ["tolerant"]


def test_a_deleted_pool_is_not_enqueued(world: World) -> None:
    """Not even if it was deleted while it was being reconciled."""
    pool, gvisor = world.pools.by_uid("b-uid"), runtime()
    assert pool is not None
    world.pools.observe(pool_body("b", uid="b-uid", version=2), deleted=True)
    world.take()
    world.cluster.verdict(pool, gvisor)
    world.put_node("new")
    assert world.take()["pools"] == ["a", "k"]
    assert ("pool", "b-uid") not in world.cluster.nodes._readers


def test_the_pods_of_a_node_are_candidates_only_if_the_node_is_usable(world: World) -> None:
    assert (world.free("a-uid"), world.free("b-uid")) == (1, 1)
    world.put_node("node-a", version=2, unschedulable=True)
    assert (world.free("a-uid"), world.free("b-uid")) == (0, 1)
    assert world.parts.marked_dirty == {("a-uid", "pod-a-uid")}
    world.put_node("node-a", version=3)
    assert world.free("a-uid") == 1


def test_a_deleted_node_removes_its_candidates(world: World) -> None:
    world.router.node_changed(world.nodes.pop("node-a"), None)
    assert world.free("a-uid") == 0
    assert world.take()["pools"] == ALL


def test_a_node_that_is_observed_after_its_pods_has_them_evaluated(world: World) -> None:
    world.put_pod("early", pool_uid="a-uid", node="late", ready=False)
    world.post_event("early-uid")
    assert not world.cluster.hints.next_probes(NOW)
    world.put_node("late")
    assert world.cluster.hints.next_probes(NOW) == [("late", "runsc")]


@pytest.mark.parametrize(
    "change",
    [
        lambda world: world.put_node("node-a", version=2, container_runtime="containerd://2.2.0"),
        lambda world: world.pools.observe(
            pool_body("new", uid="new-uid", runtimeClassName="kata", isolationProof="PerNode")
        ),
        lambda world: world.classes.observe(runtime_class(handler="kata", uid="x", version=2)),
    ],
    ids=["node", "pool", "class"],
)
def test_a_change_that_may_void_evidence_requests_probes(
    world: World, change: Callable[[World], None]
) -> None:
    body = pool_body("a", uid="a-uid", version=2, generation=2, isolationProof="PerNode")
    world.pools.observe(body)
    for name in world.nodes:
        at = world.cluster.nodes.get(name)
        assert at is not None
        shared = ProbeResult(evidence(Isolation.NOT_PROVEN, at), None, NOW, started=True)
        world.health.observe_probe(ProbeRequest(at, None, "control"), shared)
        result = ProbeResult(evidence(Isolation.PROVEN, at), None, NOW, started=True)
        world.health.observe_probe(ProbeRequest(at, runtime(), "evidence"), result)
    assert not list(world.health.pending_probes())
    change(world)
    assert list(world.health.pending_probes())


def test_nodes_are_not_enqueued_if_nothing_is_published_on_them() -> None:
    quiet = World(publishes=False)
    quiet.put_node("node-a", version=2, ready=False)
    assert quiet.take() == {"pools": ALL, "runtimes": ["gvisor", "kata"]}


# --- Pods ----------------------------------------------------------------------------------------


def test_a_changed_pod_enqueues_its_pool_and_its_claim(world: World) -> None:
    world.put_pod("pod-a", pool_uid="a-uid", node="node-a", version=2, ready=False)
    assert world.parts.told == {"a-uid: pod": 1}
    assert world.take() == {"pools": ["a"]}
    assert world.free("a-uid") == 0
    world.put_claim("claim")
    world.take()
    world.put_pod("pod-a", pool_uid="a-uid", node="node-a", version=3, claim="claim")
    assert world.take() == {"pools": ["a"], "claims": ["claim"]}
    world.parts.marked_dirty.clear()
    world.remove_pod("pod-a")
    assert world.parts.marked_dirty == {("a-uid", "pod-a-uid")}
    assert world.parts.told == {"a-uid: gone": 1, "pod-a gone": 1}
    assert world.take() == {"pools": ["a"], "claims": ["claim"]}


def test_a_pod_that_names_a_pool_of_another_namespace_enqueues_nothing(world: World) -> None:
    """It could fulfil an expectation of the pool, under a name that its author chose."""
    known = pod("forged", pool_uid="a-uid", node="node-a")
    elsewhere = msgspec.structs.replace(known.metadata, namespace="attacker")
    world.router.pod_changed(None, msgspec.structs.replace(known, metadata=elsewhere))
    assert world.parts.told == {}
    assert world.take() == {}
    assert world.free("a-uid") == 1


def test_a_deleted_pod_is_forgotten_everywhere(world: World) -> None:
    world.post_event("pod-a-uid", "a text")
    known = world.pods["pod-a"]
    assert world.cluster.events.get(known) is not None
    world.remove_pod("pod-a")
    assert world.cluster.events.get(known) is None
    assert world.cluster.pods.get("pod-a-uid") is None
    assert world.free("a-uid") == 0


def test_a_pod_that_is_deleted_before_its_owner_was_observed_enqueues_its_claim(
    world: World,
) -> None:
    """The watch was down, and delivers only the deletion of the pod."""
    world.put_claim("job", status={"phase": "Bound", "podUID": "pod-a-uid"}, pool="a")
    world.put_claim("other", status={"phase": "Bound", "podUID": "pod-b-uid"}, pool="b")
    assert world.allocator.allocate("a-uid", "job-uid") is not None
    world.allocator.confirm_reservation("job-uid")
    world.take()
    world.remove_pod("pod-a")
    assert world.take()["claims"] == ["job"]
    world.remove_pod("pod-b")
    assert "claims" not in world.take(), "it was nobody's"


def test_a_pod_that_changes_its_pool_is_removed_from_one_and_added_to_the_other(
    world: World,
) -> None:
    world.put_pod("pod-a", pool_uid="b-uid", node="node-a", version=2)
    assert world.parts.told == {"a-uid: gone": 1, "b-uid: pod": 1}
    assert world.take() == {"pools": ["a", "b"]}


def test_a_sandbox_that_sees_the_nodes_kernel_requests_a_probe_and_changes_nothing_else(
    world: World,
) -> None:
    for name, of_pool, runs in (("a", "a-uid", {}), ("k", "k-uid", KATA)):
        given: dict[str, Any] = {"pool_uid": of_pool, "node": "empty", "ready": False, **runs}
        world.put_pod(f"new-{name}", **given)
        world.take()
        read = [probed("empty-boot")]
        world.put_pod(f"new-{name}", **given, version=2, initContainerStatuses=read)
        assert world.parts.told["prober woken"] == 1
        assert world.take() == {"pools": [name]}
        world.remove_pod(f"new-{name}")
    assert not world.parts.events
    at = world.cluster.nodes.get("empty")
    assert at is not None
    assert world.cluster.evidence.current(at, "runsc") is None
    assert set(world.cluster.hints.next_probes(NOW)) == {("empty", "runsc"), ("empty", "kata")}


# --- What kubelets say ---------------------------------------------------------------------------


def test_an_event_of_the_kubelet_enqueues_the_pool_of_its_pod_once(world: World) -> None:
    world.put_pod("stuck", pool_uid="a-uid", node="empty", ready=False)
    world.take()
    world.parts.marked_dirty.clear()
    world.post_event("stuck-uid", "something strange")
    assert world.take() == {"pools": ["a"]}
    assert world.parts.marked_dirty == {("a-uid", "stuck-uid")}
    world.post_event("stuck-uid", "something strange")
    assert world.take() == {}
    world.post_event("of a pod that is not ours")
    world.router.sandbox_event(Event(Metadata(name="e", uid="e", resourceVersion="1")), None)
    assert world.take() == {}


def test_a_quarantine_enqueues_the_handlers_pools_and_the_pods_of_the_node(
    world: World,
) -> None:
    for handler in ("runsc", "kata"):
        world.cluster.nodes.verdict(handler, NodeConstraints(), proof_wanted=False)
    world.put_pod("stuck", pool_uid="a-uid", node="node-b", ready=False)
    world.take()
    world.parts.marked_dirty.clear()
    world.post_event("stuck-uid")
    assert world.parts.told == {"prober woken": 1}, "a sandbox's failure orders a probe"
    assert not world.cluster.quarantines.is_open("node-b", "runsc")
    world.take()
    world.probe("node-b", works=False)
    assert world.parts.marked_dirty == {("a-uid", "stuck-uid"), ("b-uid", "pod-b-uid")}
    assert world.parts.told["breaker runsc open"] == 1
    assert world.take() == {"pools": ["a", "b"], "runtimes": ["gvisor"], "nodes": ["node-b"]}
    assert (world.free("a-uid"), world.free("b-uid"), world.free("k-uid")) == (1, 0, 1)
    ((kind, about, reason, message),) = world.parts.events
    assert (kind, about, reason) == ("Warning", "node-b", "NodeQuarantined")
    assert "runsc" in message
    assert "ShimMissing" in message


def test_a_release_enqueues_the_same_keys_as_the_quarantine(world: World) -> None:
    world.cluster.nodes.verdict("runsc", NodeConstraints(), proof_wanted=False)
    world.put_pod("stuck", pool_uid="a-uid", node="node-b", ready=False)
    world.probe("node-b", works=False)
    world.take()
    world.probe("node-b", works=True)
    assert world.parts.told["breaker runsc closed"] == 1
    assert world.parts.told["probed runsc Unavailable"] == 1
    assert world.take() == {"pools": ["a", "b"], "runtimes": ["gvisor"], "nodes": ["node-b"]}
    assert world.free("b-uid") == 1
    assert world.parts.events[-1][:3] == ("Normal", "node-b", "QuarantineLifted")


def test_evidence_that_changes_no_verdict_enqueues_only_the_pools_on_the_node(
    world: World,
) -> None:
    """In a fleet of thousands of nodes, each probe would enqueue every pool."""
    world.cluster.nodes.verdict("runsc", NodeConstraints(), proof_wanted=True)
    for name, pools in (("empty", []), ("node-b", ["b"])):
        at = world.cluster.nodes.get(name)
        assert at is not None
        shared = ProbeResult(evidence(Isolation.NOT_PROVEN, at), None, NOW, started=True)
        world.health.observe_probe(ProbeRequest(at, None, "control"), shared)
        result = ProbeResult(evidence(Isolation.PROVEN, at), None, NOW, started=True)
        world.health.observe_probe(ProbeRequest(at, runtime(), "evidence"), result)
        assert world.take().get("pools", []) == pools


# --- Pools ---------------------------------------------------------------------------------------


def test_a_changed_pool_status_enqueues_the_pool_and_its_class(world: World) -> None:
    world.put_claim("waiting", pool="a")
    world.take()
    world.pools.observe(pool_body("a", uid="a-uid", version=2, status={"warm": 1}))
    assert not world.parts.told, "the operator's own writes cause nothing new"
    assert world.take() == {"pools": ["a"], "runtimes": ["gvisor"]}


def test_a_changed_pool_spec_enqueues_its_claims_and_both_classes(world: World) -> None:
    world.put_claim("waiting", pool="a")
    world.put_claim("of another", pool="b")
    world.put_claim("finished", pool="a", status={"phase": "Failed"})
    world.take()
    body = pool_body("a", uid="a-uid", version=2, generation=2, runtimeClassName="kata")
    world.pools.observe(body)
    assert world.parts.told == {"prober woken": 1}
    assert world.take() == {"pools": ["a"], "runtimes": ["gvisor", "kata"], "claims": ["waiting"]}
    assert world.free("a-uid") == 0, "its sandboxes are of the former class"


@pytest.mark.parametrize("how", ["deleted", "deleting", "remade"])
def test_a_deleted_pool_is_forgotten_and_its_claims_are_enqueued(world: World, how: str) -> None:
    world.put_claim("waiting", pool="a")
    world.take()
    match how:
        case "deleted":
            world.pools.observe(pool_body("a", uid="a-uid", version=2), deleted=True)
        case "deleting":
            world.pools.observe(pool_body("a", uid="a-uid", version=2, deleting=True))
        case "remade":
            world.pools.observe(pool_body("a", uid="new-uid", version=2))
    gone = {"forget a-uid": 1, "no metrics of a": 1} if how != "deleting" else {}
    assert world.parts.told == gone | {"prober woken": 1}
    taken = world.take()
    assert taken["claims"] == ["waiting"]
    assert taken.get("pools", []) == ([] if how == "deleted" else ["a"])
    assert world.free("a-uid") == 0


# --- Classes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda classes: classes.observe(runtime_class(uid="remade", version=2)),
        lambda classes: classes.observe(runtime_class(handler="kata", uid="x", version=2)),
        lambda classes: classes.observe(runtime_class(version=2), deleted=True),
        lambda classes: replace(classes, [], "9"),
    ],
)
def test_a_changed_class_enqueues_its_pools(
    world: World, change: Callable[[RuntimeClassStore], None]
) -> None:
    change(world.classes)
    assert world.parts.told["prober woken"] >= 1
    taken = world.take()
    assert taken["pools"][:2] == ["a", "b"]
    assert "gvisor" in taken["runtimes"]
    assert taken["nodes"] == ["empty", "node-a", "node-b", "node-k"]
    assert (world.free("a-uid"), world.free("b-uid")) == (0, 0)


def test_the_sandboxes_of_a_recreated_class_are_candidates_again(world: World) -> None:
    world.classes.observe(runtime_class(version=2), deleted=True)
    world.take()
    world.classes.observe(runtime_class(version=3))
    assert world.take()["pools"] == ["a", "b"]
    assert (world.free("a-uid"), world.free("b-uid"), world.free("k-uid")) == (1, 1, 1)


def test_an_unchanged_class_enqueues_nothing(world: World) -> None:
    world.classes.observe(runtime_class(version=5))
    assert world.take() == {}


# --- Claims --------------------------------------------------------------------------------------


def test_a_changed_claim_is_enqueued(world: World) -> None:
    world.put_claim("claim")
    assert world.take() == {"claims": ["claim"]}
    world.router.claim_changed(world.claims.pop(("default", "claim")), None)
    assert world.take() == {}


def test_a_reservation_enqueues_the_waiting_claim(world: World) -> None:
    world.put_claim("waiting", pool="a")
    assert world.allocator.allocate("a-uid", "first") is not None
    assert world.allocator.allocate("a-uid", "waiting-uid") is None
    world.take()
    world.put_pod("new", pool_uid="a-uid", node="node-a")
    assert world.take() == {"pools": ["a"], "claims": ["waiting"]}


def test_the_reservation_of_a_deleted_claim_is_released(world: World) -> None:
    """An unknown claim should never be queued; if one is, its sandbox must not be lost."""
    assert world.allocator.allocate("a-uid", "first") is not None
    assert world.allocator.allocate("a-uid", "unheard of") is None
    world.put_claim("waiting", pool="a")
    assert world.allocator.allocate("a-uid", "waiting-uid") is None
    world.put_pod("new", pool_uid="a-uid", node="node-a")
    assert "waiting" in world.take()["claims"]
    candidate = world.allocator.allocate("a-uid", "waiting-uid")
    assert candidate is not None
    assert candidate.name == "new"


def test_close_cancels_all_timers(world: World) -> None:
    world.router._to.queues.close()
    assert [queue.keys for queue in world.queues.values()] == [["closed"]] * 4


# --- No fallback ---------------------------------------------------------------------------------

CLASSES = {"gvisor": "runsc", "kata": "kata", "runc": "runc"}
POOLS = ["a", "b", "k"]
NODES = ["node-a", "node-b"]


class Anything(World):
    """Random changes of classes, pools, nodes and sandboxes."""

    def __init__(self) -> None:
        super().__init__()
        self.version = 100
        self.reserved = 0

    def next(self) -> int:
        self.version += 1
        return self.version

    def a_class(self, name: str, life: str | None) -> None:
        """It is deleted, or made again; in one of its lives it has another handler."""
        version = self.next()
        if life is None:
            known = self.cluster.classes.get(name)
            body = runtime_class(name, uid=known.uid if known else "", version=version)
            self.classes.observe(body, deleted=True)
        else:
            handler = "runc" if life == "weaker" else CLASSES[name]
            body = runtime_class(name, handler, uid=f"{name}-{life}", version=version)
            self.classes.observe(body)

    def a_pool(self, name: str, class_name: str, pin: str | None, proof: str) -> None:
        version = self.next()
        spec: dict[str, Any] = {"expectedHandler": pin} if pin else {}
        spec |= {"runtimeClassName": class_name, "isolationProof": proof}
        self.pools.observe(
            pool_body(name, uid=f"{name}-uid", version=version, generation=version, **spec)
        )

    def a_pod(self, name: str, of_pool: str, on: str, made_as: str | None, ready: bool) -> None:
        """Made of the pool's class of this moment, unless admission has given it another."""
        owner = self.pools.by_uid(f"{of_pool}-uid")
        assert owner is not None
        assert owner.spec is not None
        made_of = self.cluster.classes.get(owner.spec.runtime_class_name)
        old = self.pods.get(name)
        if old is None and made_of is not None:
            self.put_pod(
                name,
                pool_uid=owner.uid,
                node=on,
                ready=ready,
                class_name=made_as or made_of.class_name,
                runtime_uid=made_of.uid,
                handler=made_of.handler,
                version=self.next(),
            )
        elif old is not None:
            self.remove_pod(name)

    def a_node(self, name: str, given: dict[str, Any]) -> None:
        self.put_node(name, version=self.next(), **given)

    def a_word(self, name: str) -> None:
        self.post_event(f"{name}-uid")

    def a_probe(self, name: str, handler: str, isolation: Isolation | None) -> None:
        at = self.cluster.nodes.get(name)
        if at is None:
            return
        self.now = NOW + self.version
        control = evidence(Isolation.NOT_PROVEN, at)
        made_at = NOW + self.version
        self.health.observe_probe(
            ProbeRequest(at, None, "control"), ProbeResult(control, None, made_at, started=True)
        )
        # Where nothing was found the runtime fails.
        found = evidence(isolation or Isolation.UNAVAILABLE, at)
        failure = Failure(Reason.SHIM_MISSING, NO_SHIM, name, blames_runtime=True)
        result = ProbeResult(
            found, None if isolation else failure, made_at, started=isolation is not None
        )
        self.health.observe_probe(ProbeRequest(at, runtime(handler, handler), "hint"), result)

    def a_claim(self, of_pool: str) -> None:
        self.reserved += 1
        candidate = self.allocator.allocate(f"{of_pool}-uid", f"claim-{self.reserved}")
        if candidate is not None:
            given = self.cluster.pods.get(candidate.uid)
            owner = self.pools.by_uid(f"{of_pool}-uid")
            assert given is not None
            assert owner is not None
            self.check(given, owner)
            self.allocator.confirm_reservation(f"claim-{self.reserved}")

    def check(self, given: Pod, owner: Pool) -> None:
        """What the pool stands for at this very moment is what the pod was made of."""
        assert owner.spec is not None
        now = self.cluster.classes[owner.spec.runtime_class_name]
        made_of = given.metadata.annotations
        assert made_of["sandboxpool.io/runtime-class-uid"] == now.uid
        assert made_of["sandboxpool.io/handler"] == now.handler
        assert given.spec.runtimeClassName == now.class_name
        assert owner.spec.expected_handler in (None, now.handler)
        assert not self.cluster.quarantines.is_open(given.spec.nodeName, now.handler)

    def check_all(self) -> None:
        for owner in self.pools:
            may = {p.metadata.uid for p in self.pods.values() if self.may(p, owner)}
            free = (
                set(self.allocator._pool_states[owner.uid].free) if self.free(owner.uid) else set()
            )
            assert free <= may
            assert free == {
                uid
                for uid in may
                if pool_uid_of(self.cluster.pods.get(uid)) == owner.uid  # type: ignore[arg-type]
                and not self.allocator.is_allocated(uid)
            }

    def may(self, given: Pod, owner: Pool) -> bool:
        may = self.candidate_tracker.is_allocatable(given, owner)
        if may:
            self.check(given, owner)
        return may


a_class = st.sampled_from(sorted(CLASSES))
a_pod_is_added_or_deleted = st.tuples(
    st.just("a_pod"),
    st.sampled_from([f"new-{i}" for i in range(5)]),
    st.sampled_from(POOLS),
    st.sampled_from(NODES),
    st.sampled_from([None, None, None, "runc"]),
    st.sampled_from([True, True, False]),
)
happenings = st.one_of(
    st.tuples(
        st.just("a_class"),
        a_class,
        st.sampled_from([None, "first", "second", "weaker"]),
    ),
    st.tuples(
        st.just("a_pool"),
        st.sampled_from(POOLS),
        a_class,
        st.sampled_from([None, "runsc", "runc"]),
        st.sampled_from(["None", "PerNode"]),
    ),
    a_pod_is_added_or_deleted,
    a_pod_is_added_or_deleted,
    a_pod_is_added_or_deleted,
    st.tuples(
        st.just("a_node"),
        st.sampled_from(NODES),
        st.sampled_from([{}, {}, {"ready": False}, {"handlers": ["runc"]}, {"uid": "x"}]),
    ),
    st.tuples(st.just("a_word"), st.sampled_from([f"new-{i}" for i in range(5)])),
    st.tuples(
        st.just("a_probe"),
        st.sampled_from(NODES),
        st.sampled_from(sorted(CLASSES.values())),
        st.sampled_from([None, *Isolation]),
    ),
    st.tuples(st.just("a_claim"), st.sampled_from(POOLS)),
)


@settings(max_examples=60)
@given(st.lists(happenings, max_size=30))
def test_no_claim_ever_gets_a_sandbox_of_another_class(
    changes: list[tuple[Any, ...]],
) -> None:
    """If the pool's own class is not usable, the claim gets nothing."""
    world = Anything()
    for what, *about in changes:
        getattr(world, what)(*about)
        world.check_all()
