"""Verdicts that are kept up to date node by node, and what kubelets have said of pods."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxpool.api import names
from sandboxpool.api.core import Event, EventSource, InvolvedObject, Metadata, Node, Pod, Taint
from sandboxpool.api.reasons import Reason
from sandboxpool.api.times import timestamp
from sandboxpool.api.v1alpha1 import IsolationProof
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.events import MAX_SANDBOX_EVENTS, SandboxEvents
from sandboxpool.cluster.nodes import MAX_UNREAD_CONSTRAINTS, VIEW_REVIEW_CHANGES, NodeIndex, Reader
from sandboxpool.runtimes.evidence import Isolation
from sandboxpool.runtimes.evidence_store import EvidenceStore
from sandboxpool.runtimes.node_constraints import NodeConstraints, node_constraints_of
from sandboxpool.runtimes.nodes import node_facts
from sandboxpool.runtimes.probe import CONTROL
from sandboxpool.runtimes.quarantine import Quarantines
from sandboxpool.runtimes.verdict import Verdict
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

NAMES = ["a", "b", "c"]
HANDLERS = ["runsc", "kata"]
PLACEMENTS = [
    node_constraints_of(spec, runtime())
    for spec in (
        {},
        {"nodeSelector": {"zone": "a"}},
        {"tolerations": [{"key": "team", "value": "a"}]},
        {"tolerations": [{"key": "team", "value": "a"}, {"key": "team", "value": "b"}]},
        {"tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoExecute"}]},
        {"tolerations": [{"operator": "Exists"}]},
    )
]
VIEWS = [
    (handler, placement, wanted)
    for handler in HANDLERS
    for placement in PLACEMENTS
    for wanted in (False, True)
]


class Fleet:
    """An index that is told of each change, and the same computed from what is true now."""

    def __init__(self) -> None:
        self.quarantines = Quarantines(lambda: 0.5)
        self.evidence = EvidenceStore()
        self.index = NodeIndex(self.quarantines, self.evidence)
        self.nodes: dict[str, Node] = {}
        self.now = NOW
        # What each view was at the last look at it, by whom it is read.
        self.read: dict[Reader, tuple[tuple[str, NodeConstraints, bool], Verdict]] = {}

    def put(self, new: Node) -> None:
        self.now += 10
        name = new.metadata.name
        if self.index.put(self.nodes.get(name), new):
            self.evidence.observe_node(name, node_facts(new), NOW)
            if self.quarantines.observe_node(name, node_facts(new)):
                self.index.reevaluate(name)
        self.nodes[name] = new

    def remove(self, name: str) -> None:
        old = self.nodes.pop(name, None)
        if old is not None:
            self.index.put(old, None)
            self.quarantines.observe_node(name, None)
            self.evidence.observe_node(name, None, NOW)

    def strike(self, name: str, handler: str) -> None:
        self.now += 10
        known = self.index.get(name)
        if known is not None:
            self.quarantines.record_failure(
                known, handler, Reason.SHIM_MISSING, "no shim", now=self.now
            )
            self.index.reevaluate(name)

    def succeed(self, name: str, handler: str) -> None:
        self.now += 10
        known = self.index.get(name)
        if known is not None:
            self.quarantines.record_success(known, handler, now=self.now)
            self.index.reevaluate(name)

    def learn(self, name: str, handler: str, isolation: Isolation) -> None:
        known = self.index.get(name)
        if known is not None:
            self.evidence.put(name, handler, evidence(isolation, known))
            self.index.reevaluate(name)

    def silence(self, name: str, handler: str) -> None:
        self.learn(name, handler, Isolation.UNAVAILABLE)
        self.evidence.expire(NOW + 10_000)
        self.index.reevaluate(name)

    def forget(self, name: str, handler: str) -> None:
        self.evidence.forget(name, handler, NOW)
        self.index.reevaluate(name)

    def truth(self, view: tuple[str, NodeConstraints, bool]) -> Verdict:
        fresh = NodeIndex(self.quarantines, self.evidence)
        for known in self.nodes.values():
            fresh.put(None, known)
        handler, placement, wanted = view
        return fresh.verdict(handler, placement, proof_wanted=wanted)

    def check(self, view: tuple[str, NodeConstraints, bool]) -> None:
        handler, placement, wanted = view
        reader: Reader = ("pool", f"{VIEWS.index(view)}")
        told = self.index.verdict(handler, placement, proof_wanted=wanted, reader=reader)
        assert told == self.truth(view)
        self.read[reader] = view, told

    def check_told(self) -> None:
        """Whoever has read what is no longer so is told, and reads it again."""
        told = self.index.drain_changed()
        for reader, (view, verdict) in list(self.read.items()):
            if reader in told:
                self.check(view)
            else:
                assert verdict == self.truth(view)


TAINTS = [
    Taint("team", "NoSchedule", "a"),
    Taint("team", "NoSchedule", "b"),
    Taint("gpu", "NoExecute"),
    Taint("gpu", "NoSchedule", "big"),
    Taint("node.kubernetes.io/unreachable", "NoExecute"),
]
a_name, a_handler = st.sampled_from(NAMES), st.sampled_from(HANDLERS)
a_node = st.builds(
    lambda name, **given: node(name, **given),
    a_name,
    handlers=st.sampled_from([None, [], ["runsc"], ["runsc", "kata"], ["kata"]]),
    labels=st.sampled_from(
        [
            {},
            {"zone": "a"},
            {"zone": "a", "kubernetes.io/hostname": "h"},
            {"sandbox": "yes"},
            {"sandbox": "yes", "rack-id": "1"},
            {"rack-id": "2"},
        ]
    ),
    ready=st.sampled_from([True, True, False]),
    unschedulable=st.sampled_from([False, False, True]),
    taints=st.sampled_from([[], [], *([taint] for taint in TAINTS), TAINTS[1:3]]),
    boot_id=st.sampled_from(["boot-1", "boot-1", "boot-2"]),
    container_runtime=st.sampled_from(["containerd://2.1.9", "containerd://2.2.0"]),
    joined=st.sampled_from([1000.0, 2000.0]),
)
a_change = st.one_of(
    st.tuples(st.just("put"), a_node),
    st.tuples(st.just("put"), a_node),
    st.tuples(st.just("remove"), a_name),
    st.tuples(st.just("strike"), a_name, a_handler),
    st.tuples(st.just("succeed"), a_name, a_handler),
    st.tuples(st.just("learn"), a_name, a_handler, st.sampled_from(Isolation)),
    st.tuples(st.just("forget"), a_name, a_handler),
    st.tuples(st.just("check"), st.sampled_from(VIEWS)),
)


@settings(max_examples=60)
@given(st.lists(a_change, max_size=25))
def test_a_cached_verdict_equals_one_computed_from_scratch_and_changes_are_reported(
    changes: list[tuple[Any, ...]],
) -> None:
    fleet = Fleet()
    for name in NAMES:
        fleet.put(node(name))
    for view in VIEWS[::3]:
        # Some views know of all that follows, the others begin later.
        fleet.check(view)
    for what, *about in changes:
        getattr(fleet, what)(*about)
        fleet.check_told()
    for view in VIEWS:
        fleet.check(view)


def test_an_update_without_news_leaves_the_verdict_as_it_is() -> None:
    """Not only an equal one: it was not summed up again."""
    fleet = Fleet()
    fleet.put(node("a"))
    verdict = fleet.index.verdict("runsc", NodeConstraints(), proof_wanted=True)
    fleet.put(node("a", version=2))
    fleet.learn("a", "runsc", Isolation.PROVEN)
    fleet.strike("a", "kata")
    assert not fleet.index.reevaluate("a")
    assert not fleet.index.reevaluate("unknown")
    assert fleet.index.verdict("runsc", NodeConstraints(), proof_wanted=True) is verdict
    fleet.evidence.put("a", "runsc", evidence(Isolation.NOT_PROVEN, facts("a")))
    assert fleet.index.reevaluate("a")
    assert fleet.index.verdict("runsc", NodeConstraints(), proof_wanted=True).not_isolating == (
        "a",
    )


def test_who_wants_no_proof_is_not_told_of_any() -> None:
    fleet = Fleet()
    fleet.put(node("a"))
    fleet.learn("a", "runsc", Isolation.NOT_PROVEN)
    assert fleet.index.verdict("runsc", NodeConstraints(), proof_wanted=False).serving == ("a",)


def test_a_machine_under_an_old_name_starts_clean() -> None:
    fleet = Fleet()
    fleet.put(node("a"))
    fleet.strike("a", "runsc")
    fleet.learn("a", "runsc", Isolation.NOT_PROVEN)
    told = fleet.index.verdict("runsc", NodeConstraints(), proof_wanted=True)
    assert told.quarantined == ("a",)
    fleet.put(node("a", uid="another", version=2))
    told = fleet.index.verdict("runsc", NodeConstraints(), proof_wanted=True)
    assert told.serving == ("a",)


def test_views_that_nobody_reads_are_dropped() -> None:
    """Each belongs to a placement, and placements go with their pools."""
    fleet = Fleet()
    fleet.put(node("a", ready=False))
    left = node_constraints_of({"nodeSelector": {"zone": "gone"}}, runtime())
    fleet.index.verdict("runsc", left, proof_wanted=False)
    for i in range(2 * VIEW_REVIEW_CHANGES):
        fleet.index.verdict("runsc", NodeConstraints(), proof_wanted=False)
        fleet.put(node("a", ready=bool(i % 2), version=i + 2))
    assert set(fleet.index._views) == {("runsc", NodeConstraints(), False)}
    told = fleet.index.verdict("runsc", left, proof_wanted=False)
    assert told == fleet.truth(("runsc", left, False))


def test_tolerations_of_what_no_node_has_cost_nothing() -> None:
    """A toleration for each team, and each team's nodes somewhere else."""
    fleet = Fleet()
    fleet.put(node("a"))
    teams = [
        node_constraints_of({"tolerations": [{"key": "team", "value": f"{i}"}]}, runtime())
        for i in range(100)
    ]
    for i, team in enumerate(teams):
        fleet.index.verdict("runsc", team, proof_wanted=False, reader=("pool", f"{i}"))
    assert len(fleet.index._views) == 1
    fleet.put(node("b", taints=[Taint("team", "NoSchedule", "7")]))
    assert fleet.index.drain_changed() == [("pool", "7")]
    told = fleet.index.verdict("runsc", teams[7], proof_wanted=False, reader=("pool", "7"))
    assert told.serving == ("a", "b")
    assert len(fleet.index._views) == 2


def test_placements_that_nobody_has_are_forgotten() -> None:
    fleet = Fleet()
    for i in range(MAX_UNREAD_CONSTRAINTS + 10):
        left = node_constraints_of({"tolerations": [{"key": "team", "value": f"{i}"}]}, runtime())
        fleet.index.verdict("runsc", left, proof_wanted=False, reader=("pool", "one"))
    for i in range(VIEW_REVIEW_CHANGES):
        fleet.put(node("a", ready=bool(i % 2), version=i + 2))
    assert set(fleet.index._normalized) == {left}
    fleet.put(node("b", taints=[Taint("team", "NoSchedule", "0")]))
    fleet.index.drain_changed()
    last = f"{MAX_UNREAD_CONSTRAINTS + 9}"
    fleet.put(node("c", taints=[Taint("team", "NoSchedule", last)]))
    assert fleet.index.drain_changed() == [("pool", "one")]


# --- The host state of a pod ---------------------------------------------------------------------

NODES_BOOT_ID = facts().boot_id


@pytest.fixture
def cluster() -> ClusterCache:
    cluster = ClusterCache()
    cluster.nodes.put(None, node())
    return cluster


@pytest.mark.parametrize(
    ("proof", "of_node", "read", "isolation"),
    [
        ("None", Isolation.NOT_PROVEN, NODES_BOOT_ID, None),
        ("PerNode", None, OWN_BOOT_ID, None),
        ("PerNode", Isolation.PROVEN, NODES_BOOT_ID, Isolation.PROVEN),
        ("PerNode", Isolation.NOT_PROVEN, None, Isolation.NOT_PROVEN),
        ("PerSandbox", None, None, None),
        ("PerSandbox", Isolation.PROVEN, None, None),
        ("PerSandbox", None, OWN_BOOT_ID, Isolation.PROVEN),
        ("PerSandbox", Isolation.PROVEN, NODES_BOOT_ID, Isolation.NOT_PROVEN),
        ("PerSandbox", Isolation.PROVEN, "no boot id", Isolation.UNAVAILABLE),
        # One that does not isolate there speaks against all.
        ("PerSandbox", Isolation.NOT_PROVEN, OWN_BOOT_ID, Isolation.NOT_PROVEN),
    ],
)
def test_a_pod_has_the_evidence_that_its_pool_wants(
    cluster: ClusterCache,
    proof: str,
    of_node: Isolation | None,
    read: str | None,
    isolation: Isolation | None,
) -> None:
    if of_node is not None:
        cluster.evidence.put("node-1", "runsc", evidence(of_node))
    cluster.evidence.put("node-1", CONTROL, evidence(Isolation.NOT_PROVEN))
    told = [probed(read)] if read is not None else []
    host_state = cluster.host_state(pod(initContainerStatuses=told), IsolationProof(proof))
    assert host_state.isolation is isolation
    assert host_state.proof_wanted == (proof != "None")
    assert bool(host_state.isolation_message) == (isolation is not None)


def test_evidence_of_another_handler_or_of_former_software_is_none(cluster: ClusterCache) -> None:
    cluster.evidence.put("node-1", "kata", evidence())
    assert cluster.host_state(pod(), IsolationProof.PER_NODE).isolation is None
    cluster.evidence.put("node-1", "runsc", evidence())
    assert cluster.host_state(pod(), IsolationProof.PER_NODE).isolation_proven
    cluster.nodes.put(node(), node(container_runtime="containerd://2.2.0", version=2))
    assert cluster.host_state(pod(), IsolationProof.PER_NODE).isolation is None


@pytest.mark.parametrize("proof", list(IsolationProof))
def test_pods_of_one_moment_stand_where_each_would_alone(
    cluster: ClusterCache, proof: IsolationProof
) -> None:
    pods = [
        pod("a"),
        pod("b", initContainerStatuses=[probed()]),
        pod("c", handler="kata"),
        pod("d", node=""),
        pod("e", node="unseen"),
    ]
    host_state = cluster.host_state_lookup(proof)
    assert [host_state(it) for it in pods] == [cluster.host_state(it, proof) for it in pods]


def test_pods_stand_otherwise_once_their_node_does(cluster: ClusterCache) -> None:
    before = cluster.host_state_lookup(IsolationProof.NONE)(pod())
    assert cluster.host_state_lookup(IsolationProof.NONE)(pod()) is before
    cluster.nodes.put(node(), node(version=2, unschedulable=True))
    after = cluster.host_state_lookup(IsolationProof.NONE)(pod())
    assert (before.allocatable, after.allocatable) == (True, False)


def test_a_pod_without_a_node_stands_on_nothing(cluster: ClusterCache) -> None:
    for it in (pod(node=""), pod(node="unseen", initContainerStatuses=[probed()])):
        host_state = cluster.host_state(it, IsolationProof.PER_SANDBOX)
        assert (host_state.node, host_state.allocatable, host_state.isolation) == (
            None,
            False,
            None,
        )


def test_a_pod_is_quarantined_by_the_handler_that_it_was_made_with(cluster: ClusterCache) -> None:
    known = cluster.nodes.get("node-1")
    assert known is not None
    assert cluster.quarantines.record_failure(
        known, "runsc", Reason.SHIM_MISSING, "no shim", now=NOW
    )
    assert cluster.host_state(pod(), IsolationProof.NONE).quarantined
    assert not cluster.host_state(pod(handler="kata"), IsolationProof.NONE).quarantined


def test_a_pool_is_judged_by_its_class_its_template_and_the_proof_it_wants(
    cluster: ClusterCache,
) -> None:
    cluster.evidence.put("node-1", "runsc", evidence(Isolation.NOT_PROVEN))
    told = {
        proof: cluster.verdict(pool(isolationProof=proof), runtime())
        for proof in ("None", "PerNode", "PerSandbox")
    }
    assert told["None"].serving == ("node-1",)
    assert told["PerNode"].not_isolating == told["PerSandbox"].not_isolating == ("node-1",)
    elsewhere = runtime(selector={"zone": "b"})
    assert cluster.verdict(pool(), elsewhere).eligible == 0
    kata = runtime("kata", "kata")
    assert cluster.verdict(pool(), kata).not_serving == ("node-1",)


@pytest.mark.parametrize(
    ("control", "isolation", "why"),
    [
        (None, None, ""),
        (Isolation.UNAVAILABLE, Isolation.UNAVAILABLE, "gave no answer"),
        (Isolation.PROVEN, Isolation.UNAVAILABLE, "publishes a boot id that is not its kernel's"),
    ],
)
def test_without_its_positive_control_a_node_proves_nothing(
    cluster: ClusterCache, control: Isolation | None, isolation: Isolation | None, why: str
) -> None:
    if control is not None:
        cluster.evidence.put("node-1", CONTROL, evidence(control))
    host_state = cluster.host_state(
        pod(initContainerStatuses=[probed(OWN_BOOT_ID)]), IsolationProof.PER_SANDBOX
    )
    assert host_state.isolation is isolation
    assert why in host_state.isolation_message


# --- Nodes that give no proof --------------------------------------------------------------------


def test_a_silent_node_is_kept_out_only_while_another_that_the_pods_may_use_is_proven() -> None:
    fleet = Fleet()
    for name, zone in (("a", "x"), ("b", "x"), ("c", "y")):
        fleet.put(node(name, labels={"zone": zone, names.HOSTNAME_LABEL: name}))
    in_x, in_y = (NodeConstraints(selector=frozenset({("zone", zone)})) for zone in "xy")

    def verdict(placement: NodeConstraints, wanted: bool = True) -> Verdict:
        return fleet.index.verdict("runsc", placement, proof_wanted=wanted)

    for placement in (in_x, in_y):
        verdict(placement)
    fleet.silence("a", "runsc")
    fleet.silence("c", "runsc")
    assert verdict(in_x).serving == ("a", "b")
    fleet.learn("b", "runsc", Isolation.PROVEN)
    assert (verdict(in_x).serving, verdict(in_x).unproven) == (("b",), ("a",))
    assert verdict(in_x).eligible == 2
    assert verdict(in_x, wanted=False).serving == ("a", "b")
    assert verdict(in_y).serving == ("c",), "no better one is in its zone"
    assert verdict(NodeConstraints()).unproven == ("a", "c")
    # The proven one takes no more pods.
    fleet.put(node("b", labels={"zone": "x"}, unschedulable=True, version=2))
    assert (verdict(in_x).serving, verdict(in_x).unproven) == (("a",), ())
    fleet.put(node("b", labels={"zone": "x"}, version=3))
    assert verdict(in_x).unproven == ("a",)
    fleet.learn("a", "runsc", Isolation.PROVEN)
    fleet.remove("b")
    assert (verdict(in_x).serving, verdict(in_x).unproven) == (("a",), ())


def test_sandboxes_of_one_node_may_stand_differently_after_its_software_has_changed(
    cluster: ClusterCache,
) -> None:
    known = cluster.nodes.get("node-1")
    assert known is not None
    cluster.evidence.put("node-1", "runsc", evidence())
    cluster.evidence.put("node-1", CONTROL, evidence(Isolation.NOT_PROVEN))
    new = node(version=2, container_runtime="containerd://2.2.0")
    cluster.nodes.put(node(), new)
    cluster.evidence.observe_node("node-1", node_facts(new), NOW + 60)

    def ran(name: str, at: float) -> Pod:
        running = {"running": {"startedAt": timestamp(at)}}
        statuses = [{"name": "main", "state": running}]
        read = [probed(OWN_BOOT_ID)]
        return pod(name, containerStatuses=statuses, initContainerStatuses=read)

    old, young = ran("old", NOW - 10), ran("young", NOW + 10)
    for proof in (IsolationProof.PER_NODE, IsolationProof.PER_SANDBOX):
        host_state = cluster.host_state_lookup(proof)
        assert [host_state(it).isolation_proven for it in (old, young)] == [True, False]


# --- What kubelets say ---------------------------------------------------------------------------


POD, OTHER = pod("one"), pod("other")


def said(
    message: str,
    at: float | None,
    *,
    about: Pod = POD,
    made: float = 0.0,
    namespace: str = "default",
    of: str = "default",
    host: str = "node-1",
    name: str = "",
) -> Event:
    meta = Metadata("e", "e", "1", namespace, creationTimestamp=timestamp(made))
    last = None if at is None else timestamp(at)
    involved = InvolvedObject("Pod", of, name or about.metadata.name, about.metadata.uid)
    source = EventSource(host)
    return Event(meta, involved, message=message, source=source, lastTimestamp=last)


def test_the_last_word_about_each_pod_is_kept_with_its_time() -> None:
    events = SandboxEvents()
    assert events.put(said("first", NOW))
    assert events.put(said("of another", NOW, about=OTHER))
    assert not events.put(said("second", NOW + 5))
    kept = events.get(POD)
    assert kept is not None
    assert (kept.message, kept.at) == ("second", NOW + 5)
    assert events.message(OTHER) == "of another"


def test_a_list_in_any_order_leaves_the_newest_word() -> None:
    """containerd 2 makes an event of each attempt, and a list has them in the order of names."""
    events = SandboxEvents()
    for at in (NOW + 5, NOW + 20, NOW + 10):
        events.put(said(f"at {at - NOW:.0f}", at))
    assert events.message(POD) == "at 20"


def test_an_event_without_a_last_time_counts_from_its_making() -> None:
    events = SandboxEvents()
    events.put(said("only", None, made=NOW))
    kept = events.get(POD)
    assert kept is not None
    assert kept.at == NOW


def test_what_was_said_of_a_pod_that_is_gone_is_forgotten() -> None:
    events = SandboxEvents()
    events.put(said("text", NOW))
    events.forget(POD)
    events.forget(pod("never-heard-of"))
    assert events.message(POD) is None
    assert events.put(said("again", NOW)), "the first about it, as far as anybody knows"


@pytest.mark.parametrize(
    "forged",
    [
        {"namespace": "attacker", "of": "attacker"},
        {"namespace": "attacker"},
        {"name": "another"},
        {"host": "node-2"},
        {"host": ""},
    ],
    ids=["of another namespace", "about another namespace", "name", "other node", "no kubelet"],
)
def test_an_event_that_is_not_of_the_pods_kubelet_is_ignored_and_hides_nothing(
    forged: dict[str, str],
) -> None:
    events = SandboxEvents()
    events.put(said("the truth", NOW))
    events.put(said("a lie", NOW + 5, **forged))  # type: ignore[arg-type]
    assert events.message(POD) == "the truth"


def test_a_flood_of_events_of_one_namespace_pushes_out_none_of_another() -> None:
    events = SandboxEvents()
    events.put(said("the truth", NOW))
    for i in range(MAX_SANDBOX_EVENTS + 10):
        events.put(said("noise", NOW, name=f"p{i}", namespace="attacker", of="attacker"))
    assert events.message(POD) == "the truth"
    assert events._size == MAX_SANDBOX_EVENTS


# --- Whose a pod is ------------------------------------------------------------------------------


def of_another_namespace(**given: Any) -> Pod:
    body = pod_body("forged", **given)
    body["metadata"]["namespace"] = "attacker"
    return msgspec.convert(body, Pod)


@pytest.mark.parametrize("given", [{}, {"claim": "c"}], ids=["of a pool", "of a claim"])
def test_an_owner_in_another_namespace_owns_nothing(given: dict[str, str]) -> None:
    pods = ClusterCache().pods
    pods.put(None, of_another_namespace(**given))
    assert not pods.of_pool("default", "pool-uid")
    assert len(pods.of_pool("default", "pool-uid")) == 0
    assert not pods.of_claim("default", "c-uid")


@pytest.mark.parametrize(
    "owners",
    [
        [],
        [{"apiVersion": "apps/v1", "kind": "SandboxClaim", "name": "c", "uid": "c-uid"}],
        [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "c", "uid": "c-uid"}],
    ],
    ids=["none", "of another group", "of another kind"],
)
def test_labels_own_nothing(owners: list[dict[str, Any]]) -> None:
    body = pod_body("forged", claim="c")
    body["metadata"]["ownerReferences"] = [{**owner, "controller": True} for owner in owners]
    forged = msgspec.convert(body, Pod)
    pods = ClusterCache().pods
    pods.put(None, forged)
    assert not pods.of_claim("default", "c-uid")
    assert not pods.of_pool("default", "pool-uid")
    assert not pods.claimed()


@pytest.mark.parametrize(
    "amiss", [{"class_name": "runc"}, {"runtime_uid": "other"}, {"handler": "kata"}]
)
def test_a_pod_whose_words_disagree_is_of_no_class(
    cluster: ClusterCache, amiss: dict[str, str]
) -> None:
    cluster.classes["gvisor"] = runtime()
    assert cluster.runtime_of(pod()) is cluster.classes["gvisor"]
    assert cluster.runtime_of(pod(**amiss)) is None
