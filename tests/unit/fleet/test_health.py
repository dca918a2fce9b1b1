"""From what probes find, and sandboxes hint at, to what is known of nodes, and who is told."""

import asyncio
import itertools
from collections.abc import Mapping
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxpool.api.core import (
    Event,
    EventSource,
    InvolvedObject,
    Metadata,
    Pod,
    Taint,
    Toleration,
)
from sandboxpool.api.reasons import Reason
from sandboxpool.api.times import timestamp
from sandboxpool.api.v1alpha1 import IsolationProof
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.nodes import NodeIndex
from sandboxpool.cluster.pool import Pool
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.fleet.health import Health, HealthListener
from sandboxpool.fleet.probe_request import ProbePurpose, ProbeRequest, ProbeResult
from sandboxpool.fleet.records import NodeRecords
from sandboxpool.runtimes.diagnosis import Failure
from sandboxpool.runtimes.evidence import Evidence, Isolation
from sandboxpool.runtimes.evidence_store import MAX_AGE_SECONDS
from sandboxpool.runtimes.failure_history import FailureHistory
from sandboxpool.runtimes.node_constraints import NodeConstraints
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.probe import CONTROL
from sandboxpool.runtimes.quarantine import FIRST_DELAY_SECONDS, FIRST_WITNESSED_DELAY_SECONDS
from sandboxpool.runtimes.resolve import Runtime
from support.builders import (
    NOW,
    OWN_BOOT_ID,
    evidence,
    facts,
    node,
    pod,
    pool,
    pool_body,
    probed,
    runtime,
)

SAID = "Failed to create pod sandbox: rpc error: code = Unknown desc = "
NO_SHIM_FOUND = Failure(Reason.SHIM_MISSING, "no shim", "node-1", False, True, True)
KATA = {"class_name": "kata", "runtime_uid": "kata-uid", "handler": "kata"}
# One that leaves no doubt, one that does, and one that is not the runtime's.
NO_SHIM = (
    SAID + 'failed to start sandbox "x": failed to create containerd task: failed to start shim: '
    'failed to resolve runtime path: runtime "io.containerd.runsc.v1" binary not installed '
    '"containerd-shim-runsc-v1": file does not exist'
)
STRANGE = SAID + "something that nobody has seen before"
NO_NETWORK = (
    SAID + 'failed to setup network for sandbox "x": plugin type="calico" failed (add): no ip'
)


class Records:
    """What was written down, and how often it said something new."""

    def __init__(self, kept: Mapping[str, Any] | None = None) -> None:
        self.kept: dict[str, Any] = dict(kept or {})
        self.puts = 0

    async def load(self) -> dict[str, Any]:
        return dict(self.kept)

    def put(self, name: str, record: Any) -> None:
        if self.kept.get(name) == record:
            return
        self.puts += 1
        if record is None:
            del self.kept[name]
        else:
            self.kept[name] = record


class Listener:
    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def handler_changed(self, node: str, handler: str) -> None:
        self.told.append(("changed", node, handler))

    def probe_hinted(self) -> None:
        self.told.append(("hinted",))

    def quarantined(self, node: str, handler: str, reason: Reason, message: str) -> None:
        assert message
        self.told.append(("quarantined", node, handler, str(reason)))

    def released(self, node: str, handler: str) -> None:
        self.told.append(("released", node, handler))

    def not_isolating(self, node: str, handler: str, evidence: Evidence) -> None:
        assert evidence.message
        self.told.append(("not isolating", node, handler))

    def probed(self, handler: str, outcome: str) -> None:
        self.told.append(("probed", handler, outcome))

    def room_changed(self, pool_uid: str) -> None:
        self.told.append(("room changed", pool_uid))

    def take(self) -> list[str]:
        """What was told since the last time, in one word each."""
        told, self.told = self.told, []
        return [what for what, *_ in told]


def store_of(*pools: Pool) -> PoolStore:
    store = PoolStore(lambda old, new: None)
    for known in pools:
        store._put(known.key, known)
    return store


class World:
    def __init__(
        self, *pools: Pool, nodes: tuple[str, ...] = ("node-1",), kept: Any = None
    ) -> None:
        self.now = NOW
        self.cluster = ClusterCache()
        self.cluster.classes["gvisor"] = runtime()
        self.cluster.classes["kata"] = runtime("kata", "kata", "kata-uid")
        self.issues = FailureHistory()
        self.records = Records(kept)
        self.listener = Listener()
        self.pods: dict[str, Pod] = {}
        self.born: dict[str, float] = {}
        self.pools = store_of(*(pools or (pool(),)))
        self.health = Health(
            cluster=self.cluster,
            issues=self.issues,
            records=cast(NodeRecords, self.records),
            listener=cast(HealthListener, self.listener),
            pools=self.pools,
            wall=lambda: self.now,
        )
        for name in nodes:
            self.node(name)

    def node(self, name: str, **given: Any) -> None:
        given = {"handlers": ["runc", "runsc", "kata"], **given}
        self.cluster.nodes.put(None, node(name, **given))
        self.health.observe_node(name, self.cluster.nodes.get(name))

    def remove(self, name: str) -> None:
        if self.cluster.nodes.get(name) is not None:
            self.cluster.nodes.put(node(name), None)
            self.health.observe_node(name, None)

    def pod(self, name: str, namespace: str = "default", **given: Any) -> None:
        """A pod's event, as the watch brings it; new ones are made now."""
        old = self.pods.get(name)
        born = self.born.setdefault(name, self.now - given.pop("age", 0.0))
        new = pod(name, age=self.now - born, now=self.now, **given)
        metadata = msgspec.structs.replace(new.metadata, namespace=namespace)
        new = msgspec.structs.replace(new, metadata=metadata)
        self.pods[name] = new
        self.cluster.pods.put(old, new)
        self.health.observe_sandbox(new)

    def fails(self, name: str, message: str = STRANGE, **given: Any) -> None:
        """A pod that was made now, and of which the kubelet says this a second later."""
        self.pod(name, ready=False, phase="Pending", **given)
        self.now += 1
        self.post_event(name, message)

    def post_event(self, name: str, message: str) -> None:
        it = self.pods[name]
        namespace = it.metadata.namespace
        meta = Metadata(name="e", uid="e", resourceVersion="1", namespace=namespace)
        about = InvolvedObject("Pod", namespace, name, it.metadata.uid)
        source = EventSource(it.spec.nodeName)
        last = timestamp(self.now)
        self.cluster.events.put(
            Event(meta, about, message=message, source=source, lastTimestamp=last)
        )
        self.health.observe_sandbox(it)

    def at(self, name: str = "node-1") -> NodeFacts:
        known = self.cluster.nodes.get(name)
        assert known is not None
        return known

    def probe(
        self,
        isolation: Isolation | None = Isolation.PROVEN,
        *,
        node: str = "node-1",
        of: Runtime | None = None,
        why: ProbePurpose = "evidence",
        started: bool = True,
        failure: Failure | None = None,
        message: str = "as seen",
    ) -> None:
        """A probe that was sent now, and has ended a second later."""
        known = self.cluster.nodes.get(node)
        at = known or facts(node)
        request = ProbeRequest(at, None if why == "control" else of or runtime(), why)
        self.health.observe_probe_started(request)
        made_at = self.now
        self.now += 1
        found = None
        if isolation is not None:
            found = evidence(isolation, known, message=message, at=self.now)
        self.health.observe_probe(request, ProbeResult(found, failure, made_at, started))

    def control(
        self, *nodes: str, isolation: Isolation = Isolation.NOT_PROVEN, message: str = "as seen"
    ) -> None:
        for name in nodes or ("node-1",):
            self.probe(isolation, node=name, why="control", message=message)

    def breaks(self, node: str = "node-1", **given: Any) -> None:
        """A probe that could not start a sandbox."""
        given = {"failure": NO_SHIM_FOUND, "why": "hint", **given}
        self.probe(Isolation.UNAVAILABLE, node=node, started=False, **given)

    def unanswered(self, node: str = "node-1", **given: Any) -> None:
        """A probe that could not tell."""
        given = {"why": "hint", "message": "no room", **given}
        self.probe(Isolation.UNAVAILABLE, node=node, started=False, **given)

    @property
    def hints(self) -> list[tuple[str, str]]:
        return self.cluster.hints.next_probes(self.now + 60)

    def is_open(self, name: str = "node-1", handler: str = "runsc") -> bool:
        return self.cluster.quarantines.is_open(name, handler)

    def rows(self) -> list[tuple[str, int]]:
        return [(str(row.reason), row.count) for row in self.issues.summaries("runsc", self.now)]

    def known(self, name: str = "node-1", handler: str = "runsc") -> Isolation | None:
        found = self.cluster.evidence.current(self.at(name), handler)
        return found.isolation if found is not None else None

    def state(self) -> Any:
        """Whatever a sandbox must not change."""
        return (
            list(self.cluster.quarantines.open()),
            {
                n.name: dict(self.cluster.evidence._nodes.get(n.name, {}))
                for n in self.cluster.nodes
            },
            list(self.issues._order),
            self.records.puts,
            dict(self.records.kept),
        )


# --- Sandboxes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("message", [NO_SHIM, STRANGE])
def test_a_sandbox_that_fails_orders_a_probe_and_changes_nothing_else(message: str) -> None:
    world = World()
    before = world.state()
    for i in range(20):
        world.fails(f"pod-{i}", message, namespace=f"ns-{i}")
        world.now += 60
    assert set(world.listener.take()) == {"hinted"}
    assert world.hints == [("node-1", "runsc")]
    assert world.state() == before
    assert not world.is_open()


def test_a_sandbox_that_works_lifts_nothing() -> None:
    world = World()
    world.control()
    world.breaks()
    world.probe(Isolation.NOT_PROVEN, of=runtime(handler="runc"))
    world.listener.take()
    before = world.state()
    world.now += 30
    running = {"name": "main", "state": {"running": {"startedAt": timestamp(world.now)}}}
    made = {"PodReadyToStartContainers": "True"}
    world.pod("young", ready=False, containerStatuses=[running])
    world.pod("young", version=2, conditions=made, initContainerStatuses=[probed()])
    world.pod("young", version=3, conditions=made, claim="c")
    assert world.is_open()
    assert world.state() == before
    assert (world.listener.take(), world.hints) == ([], [])


@pytest.mark.parametrize(
    ("read", "hints"),
    [
        (OWN_BOOT_ID, []),
        (facts().boot_id, [("node-1", "runsc")]),
        ("nothing that is a boot id", []),
    ],
)
def test_a_sandbox_that_reads_its_nodes_boot_id_orders_a_probe_and_is_not_believed(
    read: str, hints: Any
) -> None:
    world = World()
    world.control()
    before = world.state()
    world.pod("pod-1", ready=False)
    world.pod("pod-1", version=2, ready=False, initContainerStatuses=[probed(read)])
    assert world.hints == hints
    assert world.state() == before
    assert world.known() is None


@pytest.mark.parametrize(
    ("message", "given"),
    [
        (NO_NETWORK, {}),
        (NO_SHIM, {"conditions": {"PodReadyToStartContainers": "True"}}),
        (NO_SHIM, {"node": ""}),
        (NO_SHIM, {"node": "unseen"}),
        # What a pod says of its class does not agree with itself.
        (NO_SHIM, {"runtime_uid": "another"}),
        (NO_SHIM, {"runtime_uid": "kata-uid"}),
        (NO_SHIM, {"handler": "kata"}),
        (NO_SHIM, {"handler": ""}),
        (NO_SHIM, {"class_name": "kata"}),
        (NO_SHIM, {"class_name": ""}),
        (NO_SHIM, {"class_name": "missing"}),
    ],
)
def test_what_does_not_speak_against_the_runtime_orders_nothing(message: str, given: Any) -> None:
    world = World()
    given = {"initContainerStatuses": [], **given}
    world.fails("pod-1", message, **given)
    if message == NO_SHIM:
        world.pod("pod-2", ready=False, **{**given, "initContainerStatuses": [probed("x")]})
    assert (world.hints, world.listener.take()) == ([], [])


def test_a_pod_that_agrees_with_itself_speaks_for_its_own_handler() -> None:
    world = World()
    world.fails("pod-1", NO_SHIM, **KATA)
    assert world.hints == [("node-1", "kata")]


@pytest.mark.parametrize(("handlers", "hints"), [(["runc"], 0), (["runc", "runsc"], 1), (None, 1)])
def test_a_node_that_does_not_list_the_handler_is_not_put_to_the_test(
    handlers: Any, hints: int
) -> None:
    world = World()
    world.node("node-1", handlers=handlers, version=2)
    world.fails("pod-1", NO_SHIM)
    world.pod("pod-2", ready=False)
    world.health.observe_timeout("pod-2-uid")
    assert len(world.hints) == hints


def test_what_others_say_of_a_pod_is_not_heard() -> None:
    """Whoever may write events in a namespace of his own can write anything into them."""
    world = World()
    world.pod("pod-1", ready=False, phase="Pending")
    last = timestamp(world.now)
    uid = "pod-1-uid"
    for about_namespace, name, about_uid, namespace, host in [
        ("default", "pod-1", uid, "other", "node-1"),
        ("other", "pod-1", uid, "other", "node-1"),
        ("default", "pod-2", uid, "default", "node-1"),
        ("default", "pod-1", "another", "default", "node-1"),
        ("default", "pod-1", uid, "default", "node-2"),
        ("default", "pod-1", uid, "default", ""),
    ]:
        meta = Metadata(name="e", uid="e", resourceVersion="1", namespace=namespace)
        about = InvolvedObject("Pod", about_namespace, name, about_uid)
        source = EventSource(host)
        event = Event(meta, about, message=NO_SHIM, source=source, lastTimestamp=last)
        world.cluster.events.put(event)
    world.health.observe_sandbox(world.pods["pod-1"])
    assert world.hints == []
    world.post_event("pod-1", NO_SHIM)
    assert world.hints == [("node-1", "runsc")]


def test_a_failure_that_stands_on_the_pod_itself_orders_a_probe() -> None:
    """The handler was taken away from under it: that is in its status, and no event says so."""
    text = 'failed to get sandbox runtime: no runtime for "runsc" is configured'
    waiting = {"waiting": {"reason": "CreateContainerError", "message": text}}
    world = World()
    world.pod("pod-1", ready=False, containerStatuses=[{"name": "main", "state": waiting}])
    assert world.hints == [("node-1", "runsc")]


@pytest.mark.parametrize(
    ("given", "hints"),
    [
        ({}, [("node-1", "runsc")]),
        ({"conditions": {"PodReadyToStartContainers": "False"}}, [("node-1", "runsc")]),
        ({"node": ""}, []),
        ({"node": "unseen"}, []),
        ({"runtime_uid": "another"}, []),
    ],
)
def test_a_sandbox_that_is_given_up_orders_a_probe_and_no_more(given: Any, hints: Any) -> None:
    world = World()
    before = world.state()
    world.pod("pod-1", ready=False, **given)
    world.now += 300
    world.health.observe_timeout("pod-1-uid")
    world.health.observe_timeout("unheard-of")
    assert world.hints == hints
    assert world.listener.take() == ["hinted"] * len(hints)
    assert world.state() == before


def test_a_sandbox_that_is_well_costs_nothing() -> None:
    """However many events there are of it, whether its node was probed or not."""
    for isolation in (None, Isolation.PROVEN):
        world = World()
        if isolation is not None:
            world.control()
            world.probe(isolation)
        world.pod("pod-1", ready=False, node="")
        world.pod("pod-1", version=2, ready=False)
        world.listener.take()
        before = world.state()
        made = {"PodReadyToStartContainers": "True"}
        for version in range(3, 60):
            world.now += 1
            world.pod("pod-1", version=version, conditions=made)
            world.post_event("pod-1", "(an event from before it worked)")
        world.pod("pod-1", version=60, conditions=made, claim="c")
        assert world.listener.take() == []
        assert world.state() == before
        assert world.hints == []


# --- Probes --------------------------------------------------------------------------------------


def test_a_failed_probe_quarantines_and_is_told_once() -> None:
    world = World()
    world.cluster.nodes.verdict("runsc", NodeConstraints(), proof_wanted=False)
    world.breaks()
    assert world.is_open()
    assert world.rows() == [("ShimMissing", 1)]
    told = [what for what in world.listener.told if what[0] == "quarantined"]
    assert told == [("quarantined", "node-1", "runsc", "ShimMissing")]
    assert ("changed", "node-1", "runsc") in world.listener.told
    world.listener.take()
    world.now += 10
    world.breaks(why="scout")
    assert world.listener.take() == ["probed"]
    assert world.rows() == [("ShimMissing", 1)]


@pytest.mark.parametrize("why", ["hint", "scout", "evidence"])
def test_whatever_a_probe_was_for_its_failure_quarantines_and_its_success_releases(
    why: ProbePurpose,
) -> None:
    world = World()
    world.breaks(why=why)
    assert world.is_open()
    world.now += 30
    world.probe(Isolation.UNAVAILABLE, why=why)
    assert not world.is_open()


def test_a_probe_that_works_releases_the_node_and_clears_its_issues() -> None:
    world = World()
    world.control()
    world.probe()
    assert world.known() is Isolation.PROVEN
    world.breaks()
    world.listener.take()
    world.now += 5
    world.probe(Isolation.UNAVAILABLE, why="scout")
    assert not world.is_open()
    assert world.listener.take() == ["probed", "changed", "released", "changed"]
    assert world.known() is Isolation.UNAVAILABLE, "what was mended may be another runtime"
    assert world.rows() == []


def test_a_failed_probe_of_one_runtime_is_no_evidence_about_another() -> None:
    world = World(nodes=("node-1", "node-2"))
    world.breaks()
    world.breaks("node-2", of=world.cluster.classes["kata"])
    assert world.is_open("node-1", "runsc")
    assert world.is_open("node-2", "kata")
    assert not world.is_open("node-1", "kata")
    assert not world.is_open("node-2", "runsc")
    world.probe(of=world.cluster.classes["kata"])
    assert world.is_open("node-1", "runsc")


def test_a_failed_control_is_no_evidence_about_any_runtime() -> None:
    world = World()
    world.breaks(why="control")
    assert list(world.cluster.quarantines.open()) == []
    assert len(world.issues) == 0


def test_a_scout_that_fails_is_written_down_and_told_to_nobody() -> None:
    """Nothing has changed for any pool, but the next process must not send the next too soon."""
    world = World()
    world.breaks()
    world.listener.take()
    before = dict(world.records.kept["node-1"]["quarantines"]["handlers"]["runsc"])
    world.now += 10
    world.breaks(why="scout")
    assert world.is_open()
    after = world.records.kept["node-1"]["quarantines"]["handlers"]["runsc"]
    assert after["retryAt"] > before["retryAt"]
    assert "quarantined" not in world.listener.take()


def test_a_probe_of_a_node_that_is_gone_teaches_nothing() -> None:
    world = World()
    world.probe(node="gone")
    world.breaks("gone")
    assert world.listener.take() == ["probed", "probed"]
    assert (world.records.puts, len(world.issues)) == (0, 0)


def test_a_probe_of_what_is_no_more_teaches_nothing() -> None:
    world = World()
    world.breaks()
    world.listener.take()
    world.probe(isolation=None, started=False)
    assert world.listener.take() == ["probed"]
    assert world.is_open()


def test_a_probe_answers_the_hints_that_ordered_it() -> None:
    world = World()
    world.fails("pod-1")
    world.probe(Isolation.UNAVAILABLE, why="hint")
    world.now += 60
    assert world.hints == []
    world.post_event("pod-1", STRANGE)
    assert world.hints == [("node-1", "runsc")]


# --- Witnesses -----------------------------------------------------------------------------------


def hints_unanswered(world: World, name: str, *namespaces: str, of: str = "gvisor") -> None:
    """Sandboxes of these namespaces fail on a node, and the probe gives no answer."""
    given = KATA if of == "kata" else {}
    for namespace in namespaces:
        world.fails(f"{name}-{namespace}", node=name, namespace=namespace, **given)
        world.unanswered(name, of=world.cluster.classes[of])


def test_where_no_probe_can_answer_two_namespaces_quarantine() -> None:
    world = World(nodes=("node-1", "node-2"))
    hints_unanswered(world, "node-1", "a")
    assert not world.is_open()
    assert world.rows() == [("ProbeUnanswered", 1)]
    world.listener.take()
    hints_unanswered(world, "node-1", "b")
    assert world.is_open()
    assert len(world.cluster.quarantines.witnessed("runsc")) == 1
    assert ("quarantined", "node-1", "runsc", "ProbeUnanswered") in world.listener.told
    found = world.cluster.quarantines.get("node-1", "runsc")
    assert found is not None
    assert "2 namespaces" in found.message
    assert "no room" in found.message


def test_one_namespace_never_quarantines_however_often_its_sandboxes_fail() -> None:
    world = World(nodes=("node-1", "node-2"))
    for i in range(20):
        world.fails(f"pod-{i}", namespace="a")
        world.unanswered(why="scout" if i % 2 else "hint")
        world.now += 30
    assert not world.is_open()


@pytest.mark.parametrize("why", ["evidence", "control"])
def test_evidence_that_gets_no_answer_asks_no_witnesses(why: ProbePurpose) -> None:
    world = World(nodes=("node-1", "node-2"))
    for namespace in ("a", "b"):
        world.fails(f"pod-{namespace}", namespace=namespace)
        world.unanswered(why=why)
    assert not world.is_open()


def test_witnesses_of_different_nodes_or_runtimes_are_not_added_up() -> None:
    world = World(nodes=("node-1", "node-2"))
    hints_unanswered(world, "node-1", "a")
    hints_unanswered(world, "node-2", "b")
    hints_unanswered(world, "node-1", "c", of="kata")
    assert list(world.cluster.quarantines.open()) == []


def test_at_most_half_of_the_nodes_are_quarantined_without_a_probes_word() -> None:
    names = ("a", "b", "c", "d", "e")
    world = World(nodes=names)
    for name in names:
        hints_unanswered(world, name, "x", "y")
    assert [name for name in names if world.is_open(name)] == ["a", "b"]


@pytest.mark.parametrize("nodes", [("node-1",), ("node-1", "node-2")])
def test_the_only_node_of_a_runtime_is_not_quarantined_without_a_probes_word(nodes: Any) -> None:
    world = World(nodes=nodes)
    for name in nodes[1:]:
        world.node(name, handlers=["runc"], version=2)
    hints_unanswered(world, "node-1", "a", "b", "c")
    assert not world.is_open()


def test_nodes_that_only_the_classs_own_tolerations_reach_are_counted() -> None:
    dedicated = Taint("sandboxes", "NoSchedule", "only")
    tolerates = Toleration("sandboxes", "Equal", "only", "NoSchedule")
    for tolerations, opens in (([], False), ([tolerates], True)):
        world = World(nodes=())
        world.cluster.classes["gvisor"] = runtime(tolerations=tolerations)
        for name in ("a", "b", "c", "d"):
            world.node(name, taints=[dedicated])
        hints_unanswered(world, "a", "x", "y")
        assert world.is_open("a") == opens


def two_zones(**more: Any) -> World:
    """Two classes of one handler for two zones of four nodes each, and a pool of each."""
    pools = [pool(zone, uid=zone, runtimeClassName=f"gvisor-{zone}", **more) for zone in "ab"]
    world = World(*pools, nodes=())
    del world.cluster.classes["gvisor"]
    for zone in "ab":
        world.cluster.classes[f"gvisor-{zone}"] = runtime(
            f"gvisor-{zone}", uid=zone, selector={"zone": zone}
        )
        for i in range(4):
            world.node(f"{zone}-{i}", labels={"zone": zone})
    return world


def witnesses_of(world: World, name: str) -> None:
    """Sandboxes of two namespaces fail on a node of a zone, and the probe gives no answer."""
    of = world.cluster.classes[f"gvisor-{name[0]}"]
    for namespace in ("x", "y"):
        world.fails(
            f"{name}-{namespace}",
            node=name,
            namespace=namespace,
            class_name=of.class_name,
            runtime_uid=of.uid,
            pool_uid=name[0],
        )
        world.unanswered(name, of=of)


def test_each_class_of_a_handler_has_half_of_its_own_nodes_left() -> None:
    world = two_zones()
    for name in ("a-0", "a-1", "a-2", "b-0", "b-1", "b-2"):
        witnesses_of(world, name)
    is_open = sorted(name for (name, _), _ in world.cluster.quarantines.open())
    assert is_open == ["a-0", "a-1", "b-0", "b-1"]


def test_a_class_for_many_nodes_does_not_take_all_of_those_of_another_class() -> None:
    world = two_zones()
    world.cluster.classes["gvisor-a"] = runtime("gvisor-a", uid="a")
    everywhere = world.cluster.classes["gvisor-a"]
    for i in range(4):
        for namespace in ("x", "y"):
            world.fails(
                f"{i}-{namespace}",
                node=f"b-{i}",
                namespace=namespace,
                class_name="gvisor-a",
                runtime_uid="a",
                pool_uid="a",
            )
            world.unanswered(f"b-{i}", of=everywhere)
    is_open = sorted(name for (name, _), _ in world.cluster.quarantines.open())
    assert is_open == ["b-0", "b-1"]


def test_a_node_without_a_positive_control_is_silent_for_the_runtimes_it_is_for() -> None:
    world = two_zones(isolationProof="PerNode")
    world.cluster.classes["gvisor-b"] = runtime("gvisor-b", "kata", uid="b", selector={"zone": "b"})
    world.control("a-0", isolation=Isolation.UNAVAILABLE, message="no room")
    assert world.known("a-0") is Isolation.UNAVAILABLE
    assert world.known("a-0", "kata") is None


def test_a_quarantine_ends_when_nobody_has_used_it_for_a_while() -> None:
    world = World(pool(), nodes=("node-1", "node-2"))
    world.breaks()
    world.breaks(of=world.cluster.classes["kata"])
    world.health.invalidate()
    for _ in range(30):
        world.now += 30
        list(world.health.pending_probes())
    assert world.is_open()
    assert not world.is_open(handler="kata"), "no pool uses it"
    assert ("released", "node-1", "kata") in world.listener.told
    assert world.issues.summaries("kata", world.now) == ()
    assert world.rows() == [("ShimMissing", 1)]
    assert "open" not in world.records.kept["node-1"]["quarantines"]["handlers"]["kata"]


@pytest.mark.parametrize("how", ["selector", "handler", "class", "comes back"])
def test_a_quarantine_that_no_class_leads_to_any_more_ends_too(how: str) -> None:
    world = World(pool())
    world.breaks()
    known = world.cluster.classes["gvisor"]
    list(world.health.pending_probes())
    if how == "handler":
        world.node("node-1", handlers=["runc"], version=2)
    elif how == "class":
        del world.cluster.classes["gvisor"]
    else:
        world.cluster.classes["gvisor"] = runtime(selector={"zone": "x"})
    for turn in range(30):
        world.now += 30
        list(world.health.pending_probes())
        if how == "comes back" and turn == 15:
            world.cluster.classes["gvisor"] = known
    assert world.is_open() == (how == "comes back")


# --- Probes that do not go -----------------------------------------------------------------------


def test_a_probe_that_stays_is_told_with_its_node_and_pod_and_ends_the_waiting() -> None:
    world = World(pool(isolationProof="PerNode"))
    world.control()
    world.health.observe_stuck(("node-1", "runsc"), "probe-1")
    (row,) = world.issues.summaries("runsc", world.now)
    assert (row.reason, row.nodes) == (Reason.PROBE_TERMINATING, ("node-1",))
    assert "probe-1" in row.message
    assert ("changed", "node-1", "runsc") in world.listener.told
    found = world.cluster.evidence.current(world.at(), "runsc")
    assert found is not None
    assert (found.isolation, "probe-1" in found.message) == (Isolation.UNAVAILABLE, True)
    assert next_probes(world) == [("node-1", "runsc", "evidence")], "it is asked as before"
    world.health.observe_stuck(("node-1", "runsc"), None)
    assert world.rows() == []


def test_a_control_that_stays_is_told_of_each_runtime_that_waits_for_it() -> None:
    world = World(
        pool(isolationProof="PerNode"),
        pool("kata", uid="k", runtimeClassName="kata", isolationProof="PerNode"),
    )
    world.health.observe_stuck(("node-1", CONTROL), "probe-1")
    for handler in ("runsc", "kata"):
        (row,) = world.issues.summaries(handler, world.now)
        assert row.reason is Reason.PROBE_TERMINATING
        assert world.known(handler=handler) is Isolation.UNAVAILABLE
    world.health.observe_stuck(("node-1", CONTROL), None)
    assert world.rows() == []


def test_a_proof_stands_while_a_probe_stays() -> None:
    world = World(pool(isolationProof="PerNode"))
    world.control()
    world.probe()
    world.health.observe_stuck(("node-1", "runsc"), "probe-1")
    world.health.observe_stuck(("node-1", CONTROL), "probe-2")
    assert world.known() is Isolation.PROVEN
    assert world.cluster.evidence.has_positive_control(world.at())


def test_that_the_pods_of_a_lost_node_stay_is_no_news() -> None:
    world = World(pool(isolationProof="PerNode"))
    world.node("node-1", ready=False, version=2)
    world.health.observe_stuck(("node-1", "runsc"), "probe-1")
    world.health.observe_stuck(("node-9", "runsc"), "probe-2")
    assert world.rows() == []


# --- Room for probes -----------------------------------------------------------------------------


def waiting_world(**of_pool: Any) -> World:
    """Three sandboxes wait for their node's probe, the youngest is pod-3."""
    world = World(pool(isolationProof="PerNode", **of_pool))
    for i in range(1, 4):
        world.pod(f"pod-{i}", age=100.0 - i)
    return world


def full(world: World, why: ProbePurpose = "evidence") -> bool:
    runtime_ = None if why == "control" else world.cluster.classes["gvisor"]
    waiting = "runsc" if why == "control" else ""
    return world.health.make_room(ProbeRequest(world.at(), runtime_, why, waiting=waiting))


def gives_way(world: World) -> frozenset[str]:
    return world.cluster.probe_reservations.of("pool-uid")


@pytest.mark.parametrize("why", ["evidence", "control"])
def test_the_youngest_sandbox_that_waits_gives_way_to_a_probe(why: ProbePurpose) -> None:
    world = waiting_world()
    world.listener.take()
    assert full(world, why)
    assert gives_way(world) == {"pod-3-uid"}
    assert world.listener.take() == ["room changed"]
    assert full(world, why)
    assert gives_way(world) == {"pod-3-uid"}, "one is enough"


@pytest.mark.parametrize("why", ["hint", "scout"])
def test_nothing_gives_way_to_probes_that_nobody_waits_for(why: ProbePurpose) -> None:
    assert not full(waiting_world(), why)


@pytest.mark.parametrize(
    "given",
    [
        {"claim": "claim", "claim_uid": "c"},
        {"ready": False},
        {"deleting": True},
        {"handler": "kata"},
        {"pool_uid": "another"},
        {"node": "node-2"},
    ],
)
def test_what_is_claimed_or_does_not_wait_never_gives_way(given: Any) -> None:
    world = World(pool(isolationProof="PerNode"), nodes=("node-1", "node-2"))
    world.pod("pod-1", **given)
    assert not full(world)
    assert gives_way(world) == frozenset()


@pytest.mark.parametrize("of_pool", [{"paused": True}, {"deleting": True}])
def test_a_pool_that_is_left_alone_gives_nothing_up(of_pool: Any) -> None:
    assert not full(waiting_world(**of_pool))
    world = World(pool(isolationProof="None"))
    world.pod("pod-1")
    assert not full(world)


def test_what_can_be_handed_out_never_gives_way() -> None:
    world = waiting_world()
    world.control()
    world.probe()
    assert not full(world)
    # Nor what has kept its proof when the node's software has changed.
    started = timestamp(NOW - 50)
    ran = [{"name": "main", "state": {"running": {"startedAt": started}}}]
    for i in range(1, 4):
        world.pod(f"pod-{i}", version=2, containerStatuses=ran)
    world.node("node-1", container_runtime="containerd://2.2.0", version=2)
    assert world.known() is None
    assert not full(world)


def test_the_place_is_kept_until_the_evidence_is_there() -> None:
    world = waiting_world()
    assert full(world, "control")
    world.control()
    assert gives_way(world), "the next probe needs it, too"
    world.listener.take()
    world.probe()
    assert gives_way(world) == frozenset()
    assert "room changed" in world.listener.take()


@pytest.mark.parametrize("why", ["evidence", "control"])
def test_after_a_probe_that_brought_nothing_the_next_sandbox_waits_ever_longer(
    why: ProbePurpose,
) -> None:
    world = waiting_world()
    began = world.now
    gave: list[float] = []
    while world.now - began < 86_400:
        if full(world, why):
            gave.append(world.now - began)
            world.unanswered(why=why)
            if why == "control":
                world.cluster.probe_reservations.end(("node-1", "runsc"), proven=False)
        world.now += 60
    assert len(gave) <= 9
    waits = [later - before for before, later in itertools.pairwise(gave)]
    assert waits[0] >= 600
    assert waits == sorted(waits)
    world.node("node-1", container_runtime="containerd://2.2.0", version=2)
    assert full(world, why), "other software is another question"


def test_a_place_is_kept_no_longer_than_a_probe_lasts() -> None:
    world = waiting_world()
    assert full(world)
    world.now += 301
    list(world.health.pending_probes())
    assert gives_way(world) == frozenset()
    world = waiting_world()
    assert full(world)
    world.remove("node-1")
    assert gives_way(world) == frozenset()


def test_a_witnessed_quarantine_ends_by_itself_and_is_told() -> None:
    world = World(nodes=("node-1", "node-2"))
    hints_unanswered(world, "node-1", "a", "b")
    assert world.is_open()
    world.listener.take()
    list(world.health.pending_probes())
    assert world.is_open()
    world.now += FIRST_WITNESSED_DELAY_SECONDS
    list(world.health.pending_probes())
    assert not world.is_open()
    assert world.listener.take() == ["changed", "released"]
    assert world.rows() == []
    assert "open" not in world.records.kept["node-1"]["quarantines"]["handlers"]["runsc"]


def test_a_proven_quarantine_does_not_end_by_itself() -> None:
    world = World(nodes=("node-1", "node-2"))
    world.breaks()
    world.now += 7200
    list(world.health.pending_probes())
    assert world.is_open()


def test_a_probe_that_works_leaves_no_witnesses() -> None:
    world = World(nodes=("node-1", "node-2"))
    hints_unanswered(world, "node-1", "a")
    world.probe(Isolation.UNAVAILABLE, why="hint")
    assert world.rows() == []
    hints_unanswered(world, "node-1", "b")
    assert not world.is_open()


# --- Evidence ------------------------------------------------------------------------------------


def test_what_a_probe_has_shown_is_told_when_it_is_new() -> None:
    world = World()
    world.control()
    world.listener.take()
    world.probe(Isolation.PROVEN)
    assert world.listener.take() == ["probed", "changed"]
    world.now += 60
    world.probe(Isolation.PROVEN)
    assert world.listener.take() == ["probed"]
    world.probe(Isolation.NOT_PROVEN)
    assert world.listener.take() == ["probed", "changed", "not isolating"]
    world.probe(Isolation.NOT_PROVEN)
    world.probe(Isolation.UNAVAILABLE)
    assert world.listener.take() == ["probed", "probed"]
    assert world.known() is Isolation.NOT_PROVEN


@pytest.mark.parametrize("why", ["hint", "scout", "evidence"])
def test_a_proof_without_a_control_is_not_learned(why: ProbePurpose) -> None:
    world = World()
    world.probe(Isolation.PROVEN, why=why)
    assert world.known() is None
    assert world.records.kept == {}
    world.control()
    world.probe(Isolation.PROVEN, why=why)
    assert world.known() is Isolation.PROVEN


def test_that_a_runtime_does_not_isolate_needs_no_control() -> None:
    world = World()
    world.probe(Isolation.NOT_PROVEN, why="hint")
    assert world.known() is Isolation.NOT_PROVEN
    assert "not isolating" in world.listener.take()


def test_the_control_comes_first_and_then_the_evidence() -> None:
    world = World(pool(isolationProof="PerNode"))
    assert next_probes(world) == [("node-1", CONTROL, "control")]
    world.control()
    assert "not isolating" not in world.listener.take(), "it is to find that"
    assert next_probes(world) == [("node-1", "runsc", "evidence")]
    world.probe()
    assert next_probes(world) == []


def test_a_node_that_was_controlled_is_so_for_every_runtime_and_for_the_next_process() -> None:
    gvisor = pool("g", uid="g", isolationProof="PerNode")
    kata = pool("k", uid="k", isolationProof="PerNode", runtimeClassName="kata")
    world = World(gvisor, kata)
    assert set(next_probes(world)) == {("node-1", CONTROL, "control")}
    world.control()
    assert next_probes(world) == [("node-1", "runsc", "evidence"), ("node-1", "kata", "evidence")]
    assert CONTROL in world.records.kept["node-1"]["evidence"]


def test_after_a_reboot_the_control_comes_first_again() -> None:
    world = World(pool(isolationProof="PerNode"))
    world.control()
    world.probe()
    world.node("node-1", boot_id="after the reboot", version=2)
    world.health.invalidate()
    assert next_probes(world) == [("node-1", CONTROL, "control")]


def test_on_a_node_with_a_made_up_boot_id_nothing_is_proven_and_nothing_more_is_asked() -> None:
    gvisor = pool("g", uid="g", isolationProof="PerNode")
    kata = pool("k", uid="k", isolationProof="PerNode", runtimeClassName="kata")
    world = World(gvisor, kata, pool("off", uid="off", isolationProof="None"))
    world.control(isolation=Isolation.PROVEN)
    for handler in ("runsc", "kata"):
        found = world.cluster.evidence.current(world.at(), handler)
        assert found is not None
        assert found.isolation is Isolation.UNAVAILABLE
        assert "boot id that is not its kernel's" in found.message
    assert "changed" in world.listener.take()
    for _ in range(3):
        world.health.invalidate()
        assert next_probes(world) == []
    world.probe(Isolation.PROVEN, why="hint")
    assert world.known() is not Isolation.PROVEN


def test_a_runtime_that_is_wanted_later_on_such_a_node_is_told_the_cause_too() -> None:
    world = World(pool("g", uid="g", isolationProof="PerNode"))
    world.control(isolation=Isolation.PROVEN)
    world.pools.observe(pool_body("k", uid="k", isolationProof="PerNode", runtimeClassName="kata"))
    world.health.invalidate()
    list(world.health.pending_probes())
    of_kata = world.cluster.host_state(pod(**KATA), IsolationProof.PER_NODE)
    assert of_kata.isolation is Isolation.UNAVAILABLE
    assert "boot id that is not its kernel's" in of_kata.isolation_message


async def test_the_next_process_knows_the_cause_on_such_a_node_too() -> None:
    first = World(pool(isolationProof="PerNode"))
    first.control(isolation=Isolation.PROVEN)
    second = World(pool(isolationProof="PerNode"), nodes=(), kept=first.records.kept)
    await second.health.load()
    second.node("node-1")
    second.health.forget_missing()
    list(second.health.pending_probes())
    host_state = second.cluster.host_state(pod(), IsolationProof.PER_NODE)
    assert host_state.isolation is Isolation.UNAVAILABLE
    assert "boot id that is not its kernel's" in host_state.isolation_message


def test_a_control_without_a_result_is_reported_and_retried() -> None:
    world = World(pool(isolationProof="PerNode"))
    world.control(isolation=Isolation.UNAVAILABLE, message="no room")
    found = world.cluster.evidence.current(world.at(), "runsc")
    assert found is not None
    assert found.isolation is Isolation.UNAVAILABLE
    assert "no room" in found.message
    world.health.invalidate()
    assert next_probes(world) == [("node-1", CONTROL, "control")]
    world.control()
    assert next_probes(world) == [("node-1", "runsc", "evidence")]


def test_a_proof_that_grows_old_is_asked_for_again_and_void_in_the_end() -> None:
    world = World(pool(isolationProof="PerNode"))
    world.control()
    world.probe()
    proven_at = world.now
    assert next_probes(world) == next_probes(world) == []
    world.listener.take()
    world.now = proven_at + 0.96 * MAX_AGE_SECONDS
    assert next_probes(world) == [("node-1", "runsc", "evidence")]
    assert world.known() is Isolation.PROVEN
    assert world.listener.take() == ["changed"]
    world.now = proven_at + MAX_AGE_SECONDS
    assert next_probes(world) == [("node-1", "runsc", "evidence")]
    assert world.known() is None
    assert "runsc" not in world.records.kept["node-1"]["evidence"]
    world.probe()
    assert next_probes(world) == []


def test_a_node_that_changes_in_the_last_quarter_is_still_asked_again() -> None:
    world = World(pool(isolationProof="PerNode"))
    world.control()
    world.probe()
    world.now += 0.96 * MAX_AGE_SECONDS
    assert next_probes(world) == [("node-1", "runsc", "evidence")]
    world.node("node-1", labels={"zone": "a"}, version=2)
    world.health.invalidate()
    assert next_probes(world) == [("node-1", "runsc", "evidence")]


def test_evidence_is_about_the_software_of_its_day() -> None:
    world = World()
    world.control()
    world.probe()
    world.node("node-1", container_runtime="containerd://2.2.0", version=2)
    assert world.known() is None
    assert not world.records.kept["node-1"]["evidence"]
    assert set(world.records.kept["node-1"]["former"]) == {"", "runsc"}
    world.node("node-1", boot_id="another", version=3)
    assert "node-1" not in world.records.kept


# --- Nodes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [True, False])
def test_a_deleted_machine_takes_its_quarantine_and_its_issues_along(gone: bool) -> None:
    world = World(nodes=("node-1", "node-2"))
    world.breaks()
    world.breaks(of=world.cluster.classes["kata"])
    world.fails("pod-1")
    world.listener.take()
    world.cluster.nodes.verdict("runsc", NodeConstraints(), proof_wanted=False)
    if gone:
        world.remove("node-1")
    else:
        world.node("node-1", boot_id="after the reboot", version=2)
    assert sorted(world.listener.told) == [
        ("released", "node-1", "kata"),
        ("released", "node-1", "runsc"),
    ]
    assert not world.is_open()
    assert world.rows() == []
    assert world.records.kept == {}
    assert bool(world.hints) != gone
    told = world.cluster.nodes.verdict("runsc", NodeConstraints(), proof_wanted=False)
    assert told.serving == (("node-2",) if gone else ("node-1", "node-2"))


def test_what_failed_on_a_node_that_is_gone_is_no_issue_any_more() -> None:
    world = World()
    world.unanswered()
    assert world.rows() == [("ProbeUnanswered", 1)]
    world.remove("node-1")
    assert world.rows() == []


def test_a_change_that_leaves_the_machine_leaves_its_quarantine() -> None:
    world = World()
    world.breaks()
    world.listener.take()
    world.node("node-1", unschedulable=True, version=2)
    assert world.is_open()
    assert world.listener.take() == []


# --- What is written down ------------------------------------------------------------------------


def test_only_what_the_next_process_should_know_is_written_down_and_only_once() -> None:
    world = World(nodes=("node-1", "node-2", "node-3"))
    world.fails("pod-1")
    world.unanswered()
    assert world.records.puts == 0, (
        "hints are told again by events, and what is unanswered is asked"
    )
    world.control()
    world.breaks()
    assert world.records.puts == 2
    assert set(world.records.kept["node-1"]) == {"quarantines", "evidence"}
    world.now += 5
    world.probe()
    assert world.records.puts == 4, "released, then proven"
    world.now += 60
    world.probe()
    assert world.records.puts == 5, "a proof is as old for the next process as it is"
    world.probe(Isolation.NOT_PROVEN)
    world.probe(Isolation.NOT_PROVEN)
    assert world.records.puts == 6, "the age of what is no proof is not worth a write"


async def test_a_proof_that_was_confirmed_is_not_void_for_the_next_process() -> None:
    day = 86_400.0
    first = World(pool(isolationProof="PerNode"))
    first.control()
    first.probe()
    for _ in range(3):
        first.now += 0.96 * day
        list(first.health.pending_probes())
        assert next_probes(first) == [("node-1", "runsc", "evidence")], "it has become old"
        first.probe()
    first.now += 0.96 * day
    second = World(pool(isolationProof="PerNode"), kept=first.records.kept, nodes=())
    await second.health.load()
    second.now = first.now
    second.node("node-1")
    assert next_probes(second) == [("node-1", "runsc", "evidence")], "it is known to be old"
    assert second.known() is Isolation.PROVEN, "and it holds"


async def test_the_next_process_knows_what_the_last_one_wrote_down() -> None:
    first = World(nodes=("node-1", "node-2"))
    first.breaks()
    first.probe(Isolation.NOT_PROVEN, node="node-2")

    second = World(nodes=(), kept=first.records.kept)
    await second.health.load()
    for name in ("node-1", "node-2"):
        second.node(name)
    second.health.forget_missing()
    assert second.is_open("node-1")
    assert second.known("node-2") is Isolation.NOT_PROVEN
    assert second.records.kept == first.records.kept
    assert second.listener.take() == [], "nothing of that is news"
    assert second.rows() == [("ShimMissing", 1)], "though it still stands"
    view = second.cluster.nodes.verdict("runsc", NodeConstraints(), proof_wanted=True)
    assert (view.quarantined, view.not_isolating) == (("node-1",), ("node-2",))


async def test_what_was_kept_of_nodes_that_are_gone_is_dropped() -> None:
    first = World(nodes=("node-1", "node-2"))
    first.breaks()
    first.control("node-2")
    first.probe(node="node-2")
    second = World(nodes=(), kept=first.records.kept)
    await second.health.load()
    second.node("node-2")
    second.health.forget_missing()
    assert list(second.records.kept) == ["node-2"]
    assert not second.is_open("node-1")
    assert second.listener.take() == ["released"]
    assert second.rows() == []


async def test_what_was_kept_of_a_former_machine_is_dropped_with_it() -> None:
    first = World()
    first.breaks()
    first.probe(Isolation.NOT_PROVEN)
    second = World(nodes=(), kept=first.records.kept)
    await second.health.load()
    second.node("node-1", uid="another")
    assert not second.is_open()
    assert second.known() is None
    assert second.records.kept == {}


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=4,
)
saved = st.fixed_dictionaries(
    {}, optional={"quarantines": junk, "evidence": junk, "something else": junk}
)


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(["node-1", "node-2", ""]), saved, max_size=3))
def test_no_damage_to_what_was_kept_keeps_the_operator_from_starting(kept: Any) -> None:
    world = World(nodes=(), kept=kept)
    asyncio.run(world.health.load())
    world.node("node-1")
    world.health.forget_missing()
    world.breaks()
    assert world.is_open()


# --- Probes that are wanted ----------------------------------------------------------------------


def next_probes(world: World) -> list[tuple[str, str, str]]:
    return [(*request.pair, request.purpose) for request in world.health.pending_probes()]


def test_hints_come_first_then_sandboxes_that_wait_then_scouts_then_all_other_nodes() -> None:
    names = ("a", "b", "c", "d", "e")
    world = World(pool(isolationProof="PerNode"), nodes=names)
    world.control(*names)
    world.probe(node="d")
    world.breaks("b")
    world.pod("pod-2", node="c")
    world.pod("pod-3", node="d")
    world.now += 30
    world.fails("pod-4", node="e", pool_uid="of another pool")
    assert next_probes(world) == [
        ("e", "runsc", "hint"),
        ("c", "runsc", "evidence"),
        ("b", "runsc", "scout"),
        ("a", "runsc", "evidence"),
        ("c", "runsc", "evidence"),
        ("e", "runsc", "evidence"),
    ]


@pytest.mark.parametrize("first", ["gvisor", "gvisor-b"])
def test_of_two_classes_of_a_handler_the_one_whose_pods_may_go_to_the_node_is_tried(
    first: str,
) -> None:
    names = sorted(["gvisor", "gvisor-b"], key=lambda name: name != first)
    pools = [pool(name, uid=name, runtimeClassName=name) for name in names]
    world = World(*pools, nodes=())
    world.cluster.classes["gvisor"] = runtime(selector={"zone": "a"})
    world.cluster.classes["gvisor-b"] = runtime("gvisor-b", uid="b-uid", selector={"zone": "b"})
    # A template may tolerate what its class does not.
    taint = Taint(key="sandboxes", value="only", effect="NoSchedule")
    world.node("node-1", labels={"zone": "b"}, taints=[taint])
    world.node("node-2", labels={"zone": "c"})
    for name in ("node-1", "node-2"):
        world.breaks(name)
    world.now += 60
    (request,) = world.health.pending_probes()
    assert request.runtime is world.cluster.classes["gvisor-b"], "and nobody's pods go to node-2"


def test_a_node_that_is_quarantined_is_tried_by_scouts_alone() -> None:
    world = World()
    world.breaks()
    world.now += 1
    world.fails("pod-1")
    assert next_probes(world) == []
    world.now += FIRST_DELAY_SECONDS
    assert next_probes(world) == [("node-1", "runsc", "scout")]


@pytest.mark.parametrize("how", ["quarantined", "cordoned", "not listed", "unused"])
def test_a_hint_that_cannot_be_probed_does_not_hide_the_next_of_its_namespace(how: str) -> None:
    world = World(nodes=("node-1", "node-2"))
    given = KATA if how == "unused" else {}
    world.fails("pod-1", **given)
    if how == "quarantined":
        for _ in range(5):
            world.breaks()
        world.fails("pod-1", version=2)
    elif how == "cordoned":
        world.node("node-1", unschedulable=True, version=2)
    elif how == "not listed":
        world.node("node-1", handlers=["runc"], version=2)
    world.fails("pod-2", node="node-2")
    world.now += 20
    assert ("node-2", "runsc", "hint") in next_probes(world)


def test_nothing_is_probed_before_it_is_due_or_where_it_could_not_run() -> None:
    world = World(pool(isolationProof="PerNode"), nodes=("a", "b", "c", "d", "e"))
    for name in ("a", "b", "c"):
        world.breaks(name)
        world.now -= 1
    assert "scout" not in [why for *_, why in next_probes(world)]
    world.now += 60
    world.node("b", ready=False, version=2)
    world.node("c", handlers=["runc"], version=2)
    world.node("d", unschedulable=True, version=2)
    world.remove("e")
    assert next_probes(world) == [("a", "runsc", "scout")]


@pytest.mark.parametrize(
    ("isolation", "wants"),
    [
        (None, True),
        (Isolation.UNAVAILABLE, True),
        (Isolation.NOT_PROVEN, True),
        (Isolation.PROVEN, False),
    ],
)
def test_it_is_asked_until_there_is_proof(isolation: Isolation | None, wants: bool) -> None:
    world = World(pool(isolationProof="PerNode"))
    world.control()
    if isolation is not None:
        world.probe(isolation, started=False)
    assert next_probes(world) == ([("node-1", "runsc", "evidence")] if wants else [])


@pytest.mark.parametrize(
    ("of_pool", "spoken_against", "wants"),
    [
        ({"isolationProof": "None"}, True, False),
        ({"isolationProof": "PerSandbox"}, False, True),
        ({"isolationProof": "PerSandbox"}, True, True),
        ({"isolationProof": "PerNode", "deleting": True}, False, False),
        ({"isolationProof": "PerNode", "runtimeClassName": "missing"}, False, False),
        ({"isolationProof": "PerNode", "expectedHandler": "kata"}, False, False),
        ({"isolationProof": "PerNode", "replicas": -1}, False, False),
        ({"isolationProof": "PerNode", "replicas": 0}, False, True),
        (
            {
                "isolationProof": "PerNode",
                "template": {"spec": {"nodeSelector": {"zone": "elsewhere"}}},
            },
            False,
            False,
        ),
        (
            {"isolationProof": "PerNode", "template": {"spec": {"tolerations": "all"}}},
            False,
            False,
        ),
    ],
)
def test_only_pools_that_could_use_it_want_evidence(
    of_pool: Any, spoken_against: bool, wants: bool
) -> None:
    world = World(pool(**of_pool))
    world.control()
    if spoken_against:
        world.probe(Isolation.NOT_PROVEN)
    assert bool(next_probes(world)) == wants


@pytest.mark.parametrize("proof", ["PerNode", "PerSandbox"])
def test_the_nodes_that_sandboxes_are_on_come_before_all_others_whatever_the_proof(
    proof: str,
) -> None:
    world = World(pool(isolationProof=proof), nodes=("a", "b", "c"))
    world.pod("pod-1", node="c")
    controls = [(name, CONTROL, "control") for name in ("c", "a", "b", "c")]
    assert next_probes(world) == controls
    world.control("a", "b", "c")
    assert next_probes(world) == [(name, "runsc", "evidence") for name in ("c", "a", "b", "c")]


def test_while_nothing_changes_missing_evidence_is_not_searched_again() -> None:
    world = World(pool(isolationProof="PerNode"))
    world.control()
    world.probe()
    assert next_probes(world) == []
    world.cluster.evidence.forget("node-1", "runsc", NOW)
    assert next_probes(world) == []
    world.health.invalidate()
    assert next_probes(world) == [("node-1", "runsc", "evidence")]
    assert next_probes(world) == [("node-1", "runsc", "evidence")]
    world.probe()
    assert next_probes(world) == []


def test_scouts_are_sent_whatever_the_pools_think_of_proof() -> None:
    world = World(pool(isolationProof="None"))
    world.breaks()
    world.now += 60
    assert next_probes(world) == next_probes(world) == [("node-1", "runsc", "scout")]


# --- All together --------------------------------------------------------------------------------

a_node = st.sampled_from(["node-1", "node-2"])
steps = st.one_of(
    st.tuples(st.just("fails"), st.sampled_from([NO_SHIM, STRANGE, NO_NETWORK]), a_node),
    st.tuples(st.just("works"), st.sampled_from([None, OWN_BOOT_ID, "node-1-boot"]), a_node),
    st.tuples(st.just("probe"), st.sampled_from([None, *Isolation]), a_node),
    st.tuples(st.just("control"), st.sampled_from(Isolation), a_node),
    st.tuples(st.just("breaks"), st.sampled_from(["hint", "scout", "evidence"]), a_node),
    st.tuples(st.just("unanswered"), st.sampled_from(["hint", "scout", "evidence"]), a_node),
    st.tuples(st.just("time"), st.sampled_from([300, 7200, 80_000]), a_node),
    st.tuples(st.just("node"), st.sampled_from(["boot-1", "boot-2"]), a_node),
    st.tuples(st.just("remove"), st.none(), a_node),
)


def told(world: World, what: str) -> set[str]:
    return {said[1] for said in world.listener.told if said[0] == what}


def timeless(dumped: Any) -> Any:
    """What is written of evidence, without its age, which alone is no reason to write."""
    return {h: {k: v for k, v in e.items() if k != "at"} for h, e in (dumped or {}).items()}


def fresh_verdict(world: World, *, wanted: bool) -> Any:
    index = NodeIndex(world.cluster.quarantines, world.cluster.evidence)
    for known in world.cluster.nodes:
        index._facts[known.name] = known
    return index.verdict("runsc", NodeConstraints(), proof_wanted=wanted)


@settings(max_examples=40)
@given(st.lists(steps, max_size=14))
def test_whatever_is_observed_verdicts_follow_records_hold_it_and_each_change_is_told(
    changes: list[tuple[str, Any, str]],
) -> None:
    world = World(nodes=("node-1", "node-2"))
    for wanted_ in (True, False):
        world.cluster.nodes.verdict("runsc", NodeConstraints(), proof_wanted=wanted_)
    for i, (what, how, name) in enumerate(changes):
        world.now += 60
        was_open = {n for n in ("node-1", "node-2") if world.is_open(n)}
        world.listener.take()
        before = world.state()
        if what == "fails":
            world.fails(f"pod-{i}", how, node=name, namespace=f"ns-{i % 3}")
        elif what == "works":
            world.pod(f"pod-{i}", ready=False, node=name)
            read = [probed(how)] if how is not None else []
            world.pod(f"pod-{i}", version=2, node=name, initContainerStatuses=read)
        elif what == "control":
            world.control(name, isolation=how)
        elif what == "breaks":
            world.breaks(name, why=how)
        elif what == "unanswered":
            world.unanswered(name, why=how)
        elif what == "time":
            world.now += how
            list(world.health.pending_probes())
        elif what == "probe":
            world.probe(how, node=name, started=how is not None)
        elif what == "node":
            world.node(name, boot_id=how, version=i + 2)
        else:
            world.remove(name)
        if what in ("fails", "works"):
            assert world.state() == before, "sandboxes change nothing"
        for wanted_ in (True, False):
            kept = world.cluster.nodes.verdict("runsc", NodeConstraints(), proof_wanted=wanted_)
            assert kept == fresh_verdict(world, wanted=wanted_)
        is_open = {n for n in ("node-1", "node-2") if world.is_open(n)}
        assert told(world, "quarantined") == is_open - was_open
        assert told(world, "released") == was_open - is_open
        for n in ("node-1", "node-2"):
            record = world.records.kept.get(n) or {}
            assert record.get("quarantines") == world.cluster.quarantines.dump(n)
            assert timeless(record.get("evidence")) == timeless(world.cluster.evidence.dump(n))
