"""From what happens to sandboxes to what is known of nodes, and who is told."""

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxpool.api.core import Event, InvolvedObject, Metadata, Pod
from sandboxpool.api.times import timestamp
from sandboxpool.cache import Cluster, NodeIndex
from sandboxpool.fleet.health import Health, HealthListener
from sandboxpool.fleet.prober import ProbeResult
from sandboxpool.fleet.records import NodeRecords
from sandboxpool.pools.pool import Pool
from sandboxpool.reasons import Reason
from sandboxpool.runtimes.breaker import STRIKES_TO_OPEN
from sandboxpool.runtimes.diagnosis import Failure
from sandboxpool.runtimes.evidence import Evidence, Isolation
from sandboxpool.runtimes.issues import IssueBook
from sandboxpool.runtimes.placement import Placement
from support.builders import (
    NOW,
    OWN_BOOT_ID,
    evidence,
    facts,
    node,
    pod,
    pod_body,
    pool,
    probed,
    runtime,
)

SAID = "Failed to create pod sandbox: rpc error: code = Unknown desc = "
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

    def node_changed(self, node: str, handler: str, *, stands_otherwise: bool) -> None:
        self.told.append(("changed", node, handler, stands_otherwise))

    def quarantined(self, node: str, handler: str, reason: Reason, message: str) -> None:
        assert message
        self.told.append(("quarantined", node, handler, str(reason)))

    def released(self, node: str, handler: str) -> None:
        self.told.append(("released", node, handler))

    def not_isolating(self, node: str, handler: str, evidence: Evidence) -> None:
        assert evidence.message
        self.told.append(("not isolating", node, handler))

    def probed(self, handler: str, result: ProbeResult) -> None:
        self.told.append(("probed", handler, result.outcome))

    def take(self) -> list[str]:
        """What was told since the last time, in one word each."""
        told, self.told = self.told, []
        return [what for what, *_ in told]


class World:
    def __init__(
        self, *pools: Pool, nodes: tuple[str, ...] = ("node-1",), kept: Any = None
    ) -> None:
        self.now = NOW
        self.cluster = Cluster()
        self.cluster.classes["gvisor"] = runtime()
        self.issues = IssueBook()
        self.records = Records(kept)
        self.listener = Listener()
        self.pods: dict[str, Pod] = {}
        self.born: dict[str, float] = {}
        self.health = Health(
            cluster=self.cluster,
            issues=self.issues,
            records=cast(NodeRecords, self.records),
            listener=cast(HealthListener, self.listener),
            pools=list(pools) or [pool()],
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

    def pod(self, name: str, **given: Any) -> None:
        """A pod's event, as the watch brings it; new ones are made now."""
        old = self.pods.get(name)
        born = self.born.setdefault(name, self.now - given.pop("age", 0.0))
        new = pod(name, age=self.now - born, now=self.now, **given)
        self.pods[name] = new
        self.cluster.pods.put(old, new)
        self.health.observe_pod(old, new)

    def fails(self, name: str, message: str = STRANGE, **given: Any) -> None:
        """A pod that was made now, and of which the kubelet says this a second later."""
        self.pod(name, ready=False, phase="Pending", **given)
        self.now += 1
        self.says(name, message)

    def says(self, name: str, message: str) -> None:
        it = self.pods[name]
        meta = Metadata(name="e", uid="e", resourceVersion="1")
        about = InvolvedObject(uid=it.metadata.uid)
        last = timestamp(self.now)
        self.cluster.events.put(Event(meta, about, message=message, lastTimestamp=last))
        self.health.observe_pod(None, it)

    def probe(
        self,
        isolation: Isolation | None = Isolation.PROVEN,
        *,
        node: str = "node-1",
        started: bool = True,
        failure: Failure | None = None,
    ) -> None:
        known = self.cluster.nodes.get(node)
        found = evidence(isolation, known, at=self.now) if isolation is not None else None
        result = ProbeResult(found, failure, self.now, started)
        self.health.observe_probe(node, "runsc", runtime(), result)

    def is_open(self, name: str = "node-1", handler: str = "runsc") -> bool:
        return self.cluster.breakers.is_open(name, handler)

    def rows(self) -> list[tuple[str, int]]:
        return [(str(row.reason), row.count) for row in self.issues.rows("runsc", self.now)]

    def known(self, name: str = "node-1") -> Isolation | None:
        at = self.cluster.nodes.get(name)
        assert at is not None
        found = self.cluster.evidence.current(at, "runsc")
        return found.isolation if found is not None else None


# --- Failures ------------------------------------------------------------------------------------


def test_a_text_that_leaves_no_doubt_quarantines_at_once_and_is_told_once() -> None:
    world = World()
    world.fails("pod-1", NO_SHIM)
    assert world.is_open()
    assert world.listener.told == [
        ("changed", "node-1", "runsc", True),
        ("quarantined", "node-1", "runsc", "ShimMissing"),
    ]
    world.listener.take()
    for _ in range(5):
        world.now += 10
        world.says("pod-1", NO_SHIM)
    assert world.listener.take() == []
    assert world.rows() == [("ShimMissing", 1)]


def test_doubtful_texts_quarantine_when_enough_pods_have_failed_and_none_has_worked() -> None:
    world = World(nodes=("node-1", "node-2", "node-3", "node-4"))
    for i in range(STRIKES_TO_OPEN - 1):
        world.fails(f"pod-{i}")
        world.says(f"pod-{i}", STRANGE)
    assert not world.is_open()
    world.pod("good")
    for i in range(STRIKES_TO_OPEN - 1):
        world.fails(f"later-{i}")
    assert not world.is_open()
    assert world.listener.take() == []
    world.fails("last")
    assert world.is_open()
    assert world.listener.take() == ["changed", "quarantined"]


@pytest.mark.parametrize(
    ("message", "given"),
    [
        (NO_NETWORK, {}),
        (NO_SHIM, {"conditions": {"PodReadyToStartContainers": "True"}}),
        (NO_SHIM, {"node": ""}),
        (NO_SHIM, {"node": "unseen"}),
    ],
)
def test_what_is_not_the_runtimes_fault_does_not_count(message: str, given: Any) -> None:
    world = World()
    for i in range(10):
        world.fails(f"pod-{i}", message, **given)
    assert not world.is_open()
    assert (world.listener.take(), world.rows(), world.records.puts) == ([], [], 0)


def test_a_node_that_does_not_list_the_handler_is_not_put_to_the_test() -> None:
    world = World()
    world.node("node-1", handlers=["runc"], version=2)
    world.fails("pod-1", NO_SHIM)
    assert not world.is_open()
    world.pod("pod-2", ready=False)
    world.health.observe_timeout("pod-2-uid")
    assert world.rows() == []


def test_a_failure_that_stands_on_the_pod_itself_counts_from_its_condition() -> None:
    """The handler was taken away from under it: that is in its status, and no event says so."""
    text = 'failed to get sandbox runtime: no runtime for "runsc" is configured'
    waiting = {"waiting": {"reason": "CreateContainerError", "message": text}}
    given: dict[str, Any] = {
        "ready": False,
        "containerStatuses": [{"name": "main", "state": waiting}],
    }
    world = World()
    world.pod("timeless", **given)
    assert not world.is_open()
    assert not len(world.issues)
    body = pod_body("dated", age=60.0, **given)
    for condition in body["status"]["conditions"]:
        condition["lastTransitionTime"] = timestamp(NOW - 5)
    world.health.observe_pod(None, msgspec.convert(body, Pod))
    assert world.is_open()


def test_what_is_told_again_after_the_release_is_not_held_against_the_node() -> None:
    world = World()
    world.fails("pod-1", NO_SHIM)
    world.now += 30
    world.probe()
    assert not world.is_open()
    world.listener.take()
    world.health.observe_pod(None, world.pods["pod-1"])
    assert not world.is_open()
    assert world.listener.take() == []


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        ({}, True),
        ({"conditions": {"PodReadyToStartContainers": "False"}}, True),
        ({"conditions": {"PodReadyToStartContainers": "True"}}, False),
        ({"node": ""}, False),
    ],
)
def test_a_sandbox_that_is_given_up_counts_unless_it_was_made(given: Any, counts: bool) -> None:
    world = World()
    for i in range(STRIKES_TO_OPEN):
        world.pod(f"pod-{i}", ready=False, **given)
        world.now += 300
        world.health.observe_timeout(f"pod-{i}-uid")
    world.health.observe_timeout("unheard-of")
    assert world.is_open() == counts
    assert world.rows() == ([("SandboxStartTimeout", 1)] if counts else [])


def test_each_node_and_handler_has_a_breaker_of_its_own() -> None:
    world = World(nodes=("node-1", "node-2"))
    world.fails("pod-1", NO_SHIM)
    world.fails("kata", NO_SHIM, handler="kata", node="node-2")
    assert world.is_open("node-1", "runsc")
    assert world.is_open("node-2", "kata")
    assert not world.is_open("node-1", "kata")
    assert not world.is_open("node-2", "runsc")


# --- Success -------------------------------------------------------------------------------------


def test_a_sandbox_made_after_the_opening_releases_the_node_and_asks_for_evidence_anew() -> None:
    world = World()
    world.probe()
    world.fails("pod-1", NO_SHIM)
    world.listener.take()
    world.pod("old", age=600.0)
    assert world.is_open()
    assert world.listener.take() == []
    world.now += 30
    world.pod("young")
    assert not world.is_open()
    assert world.listener.take() == ["changed", "released"]
    assert world.known() is None, "what was mended may be another runtime"
    assert world.rows() == []


def test_a_container_that_runs_is_a_sandbox_that_works() -> None:
    world = World()
    world.fails("pod-1", NO_SHIM)
    world.now += 30
    running = {"name": "main", "state": {"running": {"startedAt": timestamp(world.now)}}}
    world.pod("young", ready=False, containerStatuses=[running])
    assert not world.is_open()


def test_an_issue_goes_when_a_sandbox_begins_to_work_and_not_because_an_old_one_does() -> None:
    world = World(nodes=("node-1", "node-2", "node-3"))
    world.pod("old")
    world.now += 600
    world.fails("pod-1")
    world.pod("old", version=2)
    world.pod("old", version=3, claim="c")
    assert world.rows() == [("SandboxCreateFailed", 1)]
    world.pod("young", ready=False)
    assert world.rows() == [("SandboxCreateFailed", 1)]
    world.pod("young", version=2)
    assert world.rows() == []


def test_an_issue_stands_while_its_node_is_quarantined() -> None:
    world = World()
    world.pod("before", ready=False)
    world.now += 1
    world.fails("pod-1", NO_SHIM)
    world.pod("before", version=2)
    assert world.is_open()
    assert world.rows() == [("ShimMissing", 1)]


def test_half_of_the_fleet_may_be_quarantined_without_proof() -> None:
    names = ("a", "b", "c", "d")
    world = World(nodes=names)
    for name in names:
        for i in range(STRIKES_TO_OPEN):
            world.fails(f"{name}-{i}", node=name, revision=f"template-{i}")
    assert [name for name in names if world.is_open(name)] == ["a", "b"]


def test_a_scout_that_works_releases_the_node() -> None:
    world = World()
    world.fails("pod-1", NO_SHIM)
    world.listener.take()
    world.now += 5
    world.probe(isolation=None)
    assert not world.is_open()
    assert world.listener.take() == ["probed", "changed", "released"]


def test_a_scout_that_fails_is_written_down_and_told_to_nobody() -> None:
    """Nothing has changed for any pool, but the next process must not send the next too soon."""
    world = World()
    world.fails("pod-1", NO_SHIM)
    world.listener.take()
    before = dict(world.records.kept["node-1"]["breakers"]["handlers"]["runsc"])
    world.now += 10
    failure = Failure(Reason.SHIM_MISSING, "no shim", "node-1", False, True, True)
    world.probe(Isolation.UNAVAILABLE, started=False, failure=failure)
    assert world.is_open()
    after = world.records.kept["node-1"]["breakers"]["handlers"]["runsc"]
    assert after["retryAt"] > before["retryAt"]
    assert "quarantined" not in world.listener.take()


def test_a_probe_of_a_node_that_is_gone_teaches_nothing() -> None:
    world = World()
    at = facts("gone")
    result = ProbeResult(evidence(node=at), None, NOW, started=True)
    world.health.observe_probe("gone", "runsc", runtime(), result)
    assert world.listener.take() == ["probed"]
    assert world.records.puts == 0


# --- Evidence ------------------------------------------------------------------------------------


def test_what_a_probe_has_shown_is_told_when_it_is_new() -> None:
    world = World()
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


@pytest.mark.parametrize(
    ("read", "isolation"),
    [
        (OWN_BOOT_ID, Isolation.PROVEN),
        (facts().boot_id, Isolation.NOT_PROVEN),
        ("nothing that is a boot id", None),
    ],
)
def test_a_sandbox_speaks_for_its_node_when_it_has_just_answered(
    read: str, isolation: Isolation | None
) -> None:
    world = World()
    world.pod("pod-1", ready=False)
    world.pod("pod-1", version=2, ready=False, initContainerStatuses=[probed(read)])
    assert world.known() is isolation


def test_a_sandbox_that_is_only_listed_again_does_not_speak_for_its_node() -> None:
    """Its answer is about the kernel and the software of its own day."""
    world = World()
    world.pod("pod-1", initContainerStatuses=[probed()])
    world.health.observe_pod(None, world.pods["pod-1"])
    assert world.known() is None
    world.pod("pod-1", version=2, initContainerStatuses=[probed()])
    assert world.known() is None


def test_evidence_is_about_the_software_of_its_day() -> None:
    world = World()
    world.probe()
    world.node("node-1", container_runtime="containerd://2.2.0", version=2)
    assert world.known() is None
    assert "node-1" not in world.records.kept


# --- Nodes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [True, False])
def test_a_machine_that_goes_takes_its_quarantine_and_its_issues_along(gone: bool) -> None:
    world = World(nodes=("node-1", "node-2"))
    world.fails("pod-1", NO_SHIM)
    world.fails("kata", NO_SHIM, handler="kata")
    world.listener.take()
    world.cluster.nodes.verdict("runsc", Placement(), proof_wanted=False)
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
    told = world.cluster.nodes.verdict("runsc", Placement(), proof_wanted=False)
    assert told.serving == (("node-2",) if gone else ("node-1", "node-2"))


def test_what_failed_on_a_node_that_is_gone_is_no_issue_any_more() -> None:
    world = World()
    world.fails("pod-1")
    assert world.rows() == [("SandboxCreateFailed", 1)]
    world.remove("node-1")
    assert world.rows() == []


def test_a_change_that_leaves_the_machine_leaves_its_quarantine() -> None:
    world = World()
    world.fails("pod-1", NO_SHIM)
    world.listener.take()
    world.node("node-1", unschedulable=True, version=2)
    assert world.is_open()
    assert world.listener.take() == []


# --- What is written down ------------------------------------------------------------------------


def test_only_what_the_next_process_should_know_is_written_down_and_only_once() -> None:
    world = World(nodes=("node-1", "node-2", "node-3"))
    world.fails("pod-1")
    assert world.records.puts == 0, "failures alone are told again by their events"
    world.fails("pod-2", NO_SHIM)
    assert world.records.puts == 1
    for _ in range(5):
        world.says("pod-2", NO_SHIM)
        world.fails("pod-3", NO_SHIM)
    assert world.records.puts == 1
    world.now += 5
    world.probe()
    assert set(world.records.kept["node-1"]) == {"breakers", "evidence"}
    assert world.records.puts == 3, "released, then proven"
    world.now += 60
    world.probe()
    assert world.records.puts <= 4


def test_a_sandbox_that_is_well_costs_nothing() -> None:
    """However many events there are of it, whether its node was probed or not."""
    for isolation in (None, Isolation.PROVEN):
        world = World()
        if isolation is not None:
            world.probe(isolation)
        world.pod("pod-1", ready=False, node="")
        world.pod("pod-1", version=2, ready=False)
        puts = world.records.puts
        world.listener.take()
        for version in range(3, 60):
            world.now += 1
            world.pod("pod-1", version=version)
            world.says("pod-1", "(an event from before it worked)")
        world.pod("pod-1", version=60, claim="c")
        assert world.listener.take() == []
        assert world.records.puts == puts
        assert world.rows() == []


async def test_the_next_process_knows_what_the_last_one_wrote_down() -> None:
    first = World(nodes=("node-1", "node-2"))
    first.fails("pod-1", NO_SHIM)
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
    view = second.cluster.nodes.verdict("runsc", Placement(), proof_wanted=True)
    assert (view.quarantined, view.unproven) == (("node-1",), ("node-2",))


async def test_what_was_kept_of_nodes_that_are_gone_is_dropped() -> None:
    first = World(nodes=("node-1", "node-2"))
    first.fails("pod-1", NO_SHIM)
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
    first.fails("pod-1", NO_SHIM)
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
    {}, optional={"breakers": junk, "evidence": junk, "something else": junk}
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(["node-1", "node-2", ""]), saved, max_size=3))
def test_no_damage_to_what_was_kept_keeps_the_operator_from_starting(kept: Any) -> None:
    world = World(nodes=(), kept=kept)
    asyncio.run(world.health.load())
    world.node("node-1")
    world.health.forget_missing()
    world.fails("pod-1", NO_SHIM)
    assert world.is_open()


# --- Probes that are wanted ----------------------------------------------------------------------


def wanted(world: World) -> list[tuple[str, str, str]]:
    return [(*wish.pair, wish.why) for wish in world.health.wishes()]


def test_sandboxes_that_wait_come_first_then_scouts_then_all_other_nodes() -> None:
    names = ("a", "b", "c", "d")
    world = World(pool(isolationProof="PerNode"), nodes=names)
    world.probe(node="d")
    world.fails("pod-1", NO_SHIM, node="b")
    world.pod("pod-2", node="c")
    world.pod("pod-3", node="d")
    world.now += 30
    assert wanted(world) == [
        ("c", "runsc", "evidence"),
        ("b", "runsc", "scout"),
        ("a", "runsc", "evidence"),
        ("c", "runsc", "evidence"),
    ]


def test_nothing_is_probed_before_it_is_due_or_where_it_could_not_run() -> None:
    world = World(pool(isolationProof="PerNode"), nodes=("a", "b", "c", "d", "e"))
    for name in ("a", "b", "c"):
        world.fails(f"pod-{name}", NO_SHIM, node=name)
    assert "scout" not in [why for *_, why in wanted(world)]
    world.now += 60
    world.node("b", ready=False, version=2)
    world.node("c", handlers=["runc"], version=2)
    world.node("d", unschedulable=True, version=2)
    world.remove("e")
    assert wanted(world) == [("a", "runsc", "scout")]


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
    if isolation is not None:
        world.probe(isolation, started=False)
    assert wanted(world) == ([("node-1", "runsc", "evidence")] if wants else [])


@pytest.mark.parametrize(
    ("of_pool", "spoken_against", "wants"),
    [
        ({"isolationProof": "Off"}, True, False),
        ({"isolationProof": "PerSandbox"}, False, False),
        # Nothing else would ever come to the node again.
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
    if spoken_against:
        world.probe(Isolation.NOT_PROVEN)
    assert bool(wanted(world)) == wants


def test_sandboxes_that_prove_themselves_want_no_probe_of_their_node() -> None:
    world = World(pool(isolationProof="PerSandbox"))
    world.pod("pod-1")
    assert wanted(world) == []


def test_while_nothing_changes_nobody_looks_again_for_what_lacks_evidence() -> None:
    world = World(pool(isolationProof="PerNode"))
    world.probe()
    assert wanted(world) == []
    world.cluster.evidence.forget("node-1", "runsc")
    assert wanted(world) == []
    world.health.unsettle()
    assert wanted(world) == [("node-1", "runsc", "evidence")]
    assert wanted(world) == [("node-1", "runsc", "evidence")]
    world.probe()
    assert wanted(world) == []


def test_scouts_are_sent_whatever_the_pools_think_of_proof() -> None:
    world = World(pool(isolationProof="Off"))
    world.fails("pod-1", NO_SHIM)
    world.now += 60
    assert wanted(world) == wanted(world) == [("node-1", "runsc", "scout")]


# --- All together --------------------------------------------------------------------------------

a_node = st.sampled_from(["node-1", "node-2"])
steps = st.one_of(
    st.tuples(st.just("fails"), st.sampled_from([NO_SHIM, STRANGE, NO_NETWORK]), a_node),
    st.tuples(st.just("works"), st.sampled_from([None, OWN_BOOT_ID, "node-1-boot"]), a_node),
    st.tuples(st.just("probe"), st.sampled_from([None, *Isolation]), a_node),
    st.tuples(st.just("node"), st.sampled_from(["boot-1", "boot-2"]), a_node),
    st.tuples(st.just("remove"), st.none(), a_node),
)


def told(world: World, what: str) -> set[str]:
    return {node for said, node, *_ in world.listener.told if said == what}


def timeless(dumped: Any) -> Any:
    """What is written of evidence, without its age, which alone is no reason to write."""
    return {h: {k: v for k, v in e.items() if k != "at"} for h, e in (dumped or {}).items()}


def fresh_verdict(world: World, *, wanted: bool) -> Any:
    index = NodeIndex(world.cluster.breakers, world.cluster.evidence)
    for known in world.cluster.nodes:
        index._facts[known.name] = known
    return index.verdict("runsc", Placement(), proof_wanted=wanted)


@settings(max_examples=40, deadline=None)
@given(st.lists(steps, max_size=14))
def test_whatever_is_observed_verdicts_follow_records_hold_it_and_each_change_is_told(
    changes: list[tuple[str, Any, str]],
) -> None:
    world = World(nodes=("node-1", "node-2"))
    for wanted_ in (True, False):
        world.cluster.nodes.verdict("runsc", Placement(), proof_wanted=wanted_)
    for i, (what, how, name) in enumerate(changes):
        world.now += 60
        was_open = {n for n in ("node-1", "node-2") if world.is_open(n)}
        world.listener.take()
        if what == "fails":
            world.fails(f"pod-{i}", how, node=name)
        elif what == "works":
            world.pod(f"pod-{i}", ready=False, node=name)
            read = [probed(how)] if how is not None else []
            world.pod(f"pod-{i}", version=2, node=name, initContainerStatuses=read)
        elif what == "probe":
            world.probe(how, node=name, started=how is not None)
        elif what == "node":
            world.node(name, boot_id=how, version=i + 2)
        else:
            world.remove(name)
        for wanted_ in (True, False):
            kept = world.cluster.nodes.verdict("runsc", Placement(), proof_wanted=wanted_)
            assert kept == fresh_verdict(world, wanted=wanted_)
        is_open = {n for n in ("node-1", "node-2") if world.is_open(n)}
        assert told(world, "quarantined") == is_open - was_open
        assert told(world, "released") == was_open - is_open
        for n in ("node-1", "node-2"):
            record = world.records.kept.get(n) or {}
            assert record.get("breakers") == world.cluster.breakers.dump(n)
            assert timeless(record.get("evidence")) == timeless(world.cluster.evidence.dump(n))
