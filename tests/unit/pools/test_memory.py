"""What is remembered: expectations, pools, start-up times, and the sorting of pods."""

import copy
import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxpool.api.core import Event, EventSource, InvolvedObject, Metadata, Pod
from sandboxpool.api.reasons import Reason
from sandboxpool.api.times import epoch
from sandboxpool.api.v1alpha1 import StageTiming
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.events import MAX_SANDBOX_EVENTS, SandboxEvents
from sandboxpool.cluster.ownership import claim_uid_of, pool_uid_of
from sandboxpool.cluster.pool import Pool
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.kube.errors import ApiError
from sandboxpool.pools.expectations import (
    LONGEST_VERIFY_SECONDS,
    UNKNOWN_CREATE_SECONDS,
    VERIFY_AFTER_SECONDS,
    Expectations,
)
from sandboxpool.pools.plan import TemplateState
from sandboxpool.pools.template_check import result_of
from sandboxpool.runtimes.host_state import HostState
from sandboxpool.runtimes.node_constraints import NodeConstraints
from sandboxpool.sandboxes.members import classify_pod
from sandboxpool.sandboxes.startup import MAX_SAMPLES, WINDOW_SECONDS, StartupTimes, StartupTracker
from support.builders import NOW, facts, node, pod, pod_body, pool, pool_body
from support.lists import replace

# --- Expectations --------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_expectation_counts_until_it_is_observed() -> None:
    clock = Clock()
    expected = Expectations(clock)
    expected.expect_creation("a")
    expected.expect_creation("b")
    expected.expect_creation("cold", cold=True)
    expected.expect_deletion("uid")
    assert expected.count_creating() == (2, 1)
    assert expected.next_deadline() == VERIFY_AFTER_SECONDS
    expected.creation_observed("a")
    expected.creation_observed("never heard of")
    assert expected.count_creating() == (1, 1)
    assert expected.is_deleting("uid")
    clock.now = 1_000_000.0
    assert expected.is_creating("b")
    assert expected.is_deleting("uid")
    assert expected.count_creating() == (1, 1)
    for name in ("b", "cold"):
        expected.creation_observed(name)
    expected.deletion_observed("uid")
    assert expected.count_creating() == (0, 0)
    assert expected.next_deadline() is None


def test_expectations_are_verified_at_growing_intervals() -> None:
    clock = Clock()
    expected = Expectations(clock)
    expected.expect_creation("made")
    expected.creation_succeeded("made")
    expected.expect_creation("under way")
    asked = []
    while clock.now < 2000.0:
        if expected.creations_to_verify() == ["made"]:
            asked.append(clock.now)
            expected.defer_verification("made")
        clock.now += 1.0
        expected.expect_creation("under way")
    pauses = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert asked[0] == VERIFY_AFTER_SECONDS
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_VERIFY_SECONDS


def test_a_create_of_unknown_outcome_counts_and_may_be_sent_again() -> None:
    clock = Clock()
    expected = Expectations(clock)
    expected.expect_creation("a", cold=True)
    assert not expected.is_creation_unknown("a")
    expected.creation_unknown("a")
    assert expected.is_creation_unknown("a")
    assert expected.is_creating("a")
    assert expected.count_creating() == (0, 1)
    expected.expect_creation("a", cold=True)
    assert not expected.is_creation_unknown("a")
    expected.creation_unknown("a")
    clock.now = UNKNOWN_CREATE_SECONDS
    assert expected.creations_to_verify() == ["a"], "the API server knows by now"
    assert expected.count_creating() == (0, 1)
    expected.creation_succeeded("a")
    assert not expected.is_creation_unknown("a")


def test_a_settled_delete_is_no_longer_expected() -> None:
    expected = Expectations(Clock())
    expected.expect_deletion("uid")
    expected.deletion_observed("uid")
    assert not expected.is_deleting("uid")


# --- The pools that exist ------------------------------------------------------------------------

Change = tuple[Pool | None, Pool | None]


@pytest.fixture
def changes() -> list[Change]:
    return []


@pytest.fixture
def store(changes: list[Change]) -> PoolStore:
    return PoolStore(lambda old, new: changes.append((old, new)))


def test_the_same_state_again_is_no_change(store: PoolStore, changes: list[Change]) -> None:
    store.observe(pool_body())
    store.observe(pool_body())
    assert len(changes) == 1
    assert store.by_uid("pool-uid") is store.get(("default", "pool"))


def test_an_older_state_is_ignored(store: PoolStore) -> None:
    store.observe(pool_body(version=10, replicas=3, generation=2))
    store.observe(pool_body(version=9, replicas=2))
    store.observe(pool_body(version=9), deleted=True)
    (known,) = store
    assert known.spec is not None
    assert known.spec.replicas == 3


def test_versions_are_compared_as_numbers(store: PoolStore) -> None:
    store.observe(pool_body(version=10, replicas=3, generation=2))
    store.observe(pool_body(version=9, replicas=2))
    store.observe(pool_body(version=100, replicas=5, generation=3))
    (known,) = store
    assert known.version == 100


def test_a_pool_made_again_under_its_name_is_another(
    store: PoolStore, changes: list[Change]
) -> None:
    store.observe(pool_body(uid="first", version=1))
    store.observe(pool_body(uid="second", version=2))
    store.observe(pool_body(uid="first", version=3), deleted=True)
    assert store.by_uid("first") is None
    assert [p.uid for p in store] == ["second"]
    assert len(changes) == 2


def test_a_list_replaces_what_was_not_told_since_it_was_asked_for(store: PoolStore) -> None:
    store.observe(pool_body("gone", uid="a", version=3))
    store.observe(pool_body("stays", uid="d", version=3))

    def meanwhile() -> None:
        store.observe(pool_body("newer", uid="b", version=12))
        store.observe(pool_body("older", uid="e", version=9))
        store.observe(pool_body("stays", uid="d", version=13, replicas=5, generation=2))

    bodies = [pool_body("listed", uid="c", version=4), pool_body("stays", uid="d", version=3)]
    replace(store, bodies, "10", meanwhile)
    assert sorted(p.name for p in store) == ["listed", "newer", "stays"]
    assert store.by_uid("a") is None
    stays = store.by_uid("d")
    assert stays is not None
    assert stays.version == 13


def test_a_list_does_not_bring_back_what_was_deleted_since_it_was_asked_for(
    store: PoolStore,
) -> None:
    store.observe(pool_body(version=3))
    gone = pool_body(version=11)
    replace(store, [pool_body(version=3)], "10", lambda: store.observe(gone, deleted=True))
    assert not len(store)


def test_a_list_is_the_truth_even_where_versions_count_from_a_backup(store: PoolStore) -> None:
    store.observe(pool_body("kept", uid="a", version=1000, replicas=3, generation=4))
    store.observe(pool_body("made later", uid="b", version=1001))
    store.observe(pool_body("deleted later", uid="c", version=1002))
    store.observe(pool_body("deleted later", uid="c", version=1003), deleted=True)
    bodies = [
        pool_body("kept", uid="a", version=50, replicas=1, generation=2),
        pool_body("deleted later", uid="c", version=51),
    ]
    replace(store, bodies, "60")
    assert {pool.name: pool.version for pool in store} == {"kept": 50, "deleted later": 51}
    store.observe(pool_body("kept", uid="a", version=61, replicas=2, generation=3))
    store.observe(pool_body("kept", uid="a", version=55, replicas=9, generation=9))
    kept = store.by_uid("a")
    assert kept is not None
    assert kept.spec is not None
    assert kept.spec.replicas == 2, "a watch goes on from the list, and not behind what is known"


def test_a_late_event_does_not_bring_back_a_pool_that_a_list_no_longer_held(
    store: PoolStore,
) -> None:
    store.observe(pool_body(version=3))
    replace(store, [], "10")
    store.observe(pool_body(version=3))
    assert not len(store)


def test_a_parsed_spec_is_kept_while_the_generation_stands(store: PoolStore) -> None:
    store.observe(pool_body(version=1))
    (first,) = store
    store.observe(pool_body(version=2, status={"warm": 1}))
    (second,) = store
    assert second.spec is first.spec
    store.observe(pool_body(version=3, generation=2, replicas=7))
    (third,) = store
    assert third.spec is not None
    assert third.spec.replicas == 7


def test_an_object_that_does_not_fit_is_held_with_what_is_wrong(store: PoolStore) -> None:
    store.observe(pool_body(replicas="many"))
    (known,) = store
    assert known.spec is None
    assert "spec.replicas" in known.spec_error


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@settings(max_examples=100)
@given(
    st.sampled_from(["spec", "status", "spec.template", "spec.startup", "metadata.generation"]),
    junk,
)
def test_no_junk_in_an_object_stops_the_others(where: str, value: Any) -> None:
    store = PoolStore(lambda old, new: None)
    damaged = copy.deepcopy(pool_body("damaged", uid="damaged"))
    *path, last = where.split(".")
    inside = damaged
    for key in path:
        inside = inside[key]
    inside[last] = value
    replace(store, [damaged, pool_body("good", uid="good")], "10")
    assert store.by_uid("good") is not None
    known = store.by_uid("damaged")
    assert known is not None
    assert known.ready_message()


@pytest.mark.parametrize("body", [{}, {"metadata": []}, {"metadata": {"name": 1}}, None, "x"])
def test_what_is_no_object_at_all_stops_no_other(body: Any) -> None:
    store = PoolStore(lambda old, new: None)
    replace(store, [body, pool_body("good", uid="good")], "10")
    assert store.by_uid("good") is not None


# --- Members -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of_pod", "of_node", "state"),
    [
        ({}, {}, SandboxState.WARM),
        ({"ready": False}, {}, SandboxState.STARTING),
        ({"node": "", "ready": False}, None, SandboxState.STARTING),
        ({"phase": "Failed", "ready": False}, {}, SandboxState.FAILED),
        ({"phase": "Succeeded", "ready": False}, {}, SandboxState.FAILED),
        ({}, {"ready": False}, SandboxState.STRANDED),
        ({}, {"unschedulable": True}, SandboxState.STRANDED),
        ({}, {"handlers": ["runc"]}, SandboxState.STRANDED),
        ({}, {"handlers": None}, SandboxState.WARM),
        ({}, None, SandboxState.STRANDED),
        ({"ready": False}, {"handlers": ["runc"]}, SandboxState.STRANDED),
        ({"claim": "c"}, {"ready": False}, SandboxState.CLAIMED),
        ({"claim": "c", "phase": "Failed", "ready": False}, {}, SandboxState.ENDED),
        ({"claim": "c", "ready": False}, {}, SandboxState.CLAIMED),
        ({"claim": "c", "ready": False, "source": "Cold"}, {}, SandboxState.COLD),
        ({"claim": "c", "ready": True, "source": "Cold"}, {}, SandboxState.CLAIMED),
        ({"claim": "c", "phase": "Failed", "deleting": True}, {}, SandboxState.ENDED),
        ({"claim": "c", "deleting": True}, {}, SandboxState.STOPPING),
        ({"deleting": True}, None, SandboxState.STOPPING),
    ],
)
def test_each_pod_has_one_state(of_pod: Any, of_node: Any, state: SandboxState) -> None:
    node_facts = None if of_node is None else facts(**of_node)
    found = classify_pod(
        pod(**of_pod),
        host_state=HostState(node_facts, "runsc"),
        sandbox_event=None,
        deleting=False,
        being_bound=False,
    )
    assert found.state is state


def test_what_was_put_on_a_bad_node_before_it_was_ready_is_known_until_it_leaves() -> None:
    """A pod that became ready there says nothing any more of how it came to be there."""
    good, bad = HostState(facts(), "runsc"), HostState(facts(unschedulable=True), "runsc")

    def follow(*steps: tuple[HostState, bool]) -> list[tuple[bool, bool]]:
        seen, former = [], None
        for host_state, ready in steps:
            former = classify_pod(
                pod(ready=ready),
                host_state=host_state,
                sandbox_event=None,
                deleting=False,
                being_bound=False,
                previous=former,
            )
            seen.append((former.misplaced, former.acknowledged))
        return seen

    assert [m for m, _ in follow((bad, False), (bad, True), (good, True))] == [True, True, False]
    assert [m for m, _ in follow((good, False), (bad, True))] == [False, True]
    assert [m for m, _ in follow((good, True), (bad, True), (bad, False))] == [False] * 3
    assert [m for m, _ in follow((bad, True))] == [False], "nobody has seen how it came there"


@pytest.mark.parametrize(
    ("status", "acknowledged"),
    [
        ({}, False),
        ({"podIP": "10.0.0.1"}, True),
        ({"containerStatuses": [{"name": "main"}]}, True),
        ({"initContainerStatuses": [{"name": "first"}]}, True),
    ],
)
def test_a_kubelet_that_has_begun_with_a_pod_has_written_its_status(
    status: Any, acknowledged: bool
) -> None:
    body = pod_body(ready=False)
    body["status"] = {"phase": "Pending", **status}
    found = classify_pod(
        msgspec.convert(body, Pod),
        host_state=HostState(facts(ready=False), "runsc"),
        sandbox_event=None,
        deleting=False,
        being_bound=False,
    )
    assert found.acknowledged is acknowledged


def test_requested_changes_count_before_they_are_observed() -> None:
    asked: Any = {"host_state": HostState(facts(), "runsc"), "sandbox_event": None}
    leaving = classify_pod(pod(), **asked, deleting=True, being_bound=True)
    assert leaving.state is SandboxState.STOPPING
    bound = classify_pod(pod(), **asked, deleting=False, being_bound=True)
    assert bound.state is SandboxState.CLAIMED


def test_a_pod_is_a_pools_by_its_owner_and_a_claims_by_label_too() -> None:
    assert (pool_uid_of(pod()), claim_uid_of(pod())) == ("pool-uid", None)
    claimed = pod(claim="c")
    assert (pool_uid_of(claimed), claim_uid_of(claimed)) == ("pool-uid", "c-uid")


@pytest.mark.parametrize("text", ["", "soon", "2024-13-01T00:00:00Z", "None"])
def test_what_is_no_time_is_the_beginning_of_time(text: str) -> None:
    assert epoch(text) == 0.0


@given(st.text(max_size=30))
def test_no_text_breaks_the_reading_of_times(text: str) -> None:
    epoch(text)


# --- Start-up times ------------------------------------------------------------------------------


def test_percentiles_of_a_window() -> None:
    times = StartupTimes()
    assert times.summary(0.0) is None
    for i in range(1, 101):
        times.add("ready", i / 1000, 0.0)
    found = times.summary(10.0)
    assert found is not None
    assert found.stages["ready"] == StageTiming(
        p50Milliseconds=50, p95Milliseconds=95, p99Milliseconds=99, samples=100
    )
    assert times.summary(WINDOW_SECONDS + 1.0) is None


def test_samples_are_bounded() -> None:
    times = StartupTimes()
    for i in range(MAX_SAMPLES + 10):
        times.add("ready", float(i), 0.0)
    found = times.summary(0.0)
    assert found is not None
    assert found.stages["ready"].samples == MAX_SAMPLES


def test_each_stage_is_measured_once_from_the_creation() -> None:
    clock = Clock()
    samples: list[tuple[str, str, float]] = []
    tracker = StartupTracker(lambda *sample: samples.append(sample), clock)
    tracker.observe("pool", pod())
    tracker.track("pod-1-uid", 0.0)
    for now, conditions in ((1.0, {}), (2.0, {"PodReadyToStartContainers": "True"}), (3.0, {})):
        clock.now = now
        tracker.observe("pool", pod(ready=False, conditions=conditions))
    clock.now = 4.0
    tracker.observe("pool", pod())
    tracker.observe("pool", pod())
    assert samples == [
        ("pool", "scheduled", 1.0),
        ("pool", "sandbox", 2.0),
        ("pool", "ready", 4.0),
    ]
    assert not tracker._began


# --- The dry run's answer ------------------------------------------------------------------------

FORBIDDEN = 'pods "pool-x" is forbidden:'


@pytest.mark.parametrize(
    ("status", "message", "state"),
    [
        (422, "Pod is invalid: spec.containers[0].image: Required value", TemplateState.REJECTED),
        (400, 'strict decoding error: unknown field "spec.foo"', TemplateState.REJECTED),
        (403, "violates PodSecurity", TemplateState.REJECTED),
        (
            403,
            "policy 'p' denied request: RuntimeClass kata is not for you",
            TemplateState.REJECTED,
        ),
        (403, f"{FORBIDDEN} exceeded quota: team, used: pods=3", TemplateState.ACCEPTED),
        (403, f"{FORBIDDEN} status unknown for quota: team", TemplateState.ACCEPTED),
        (403, f"{FORBIDDEN} failed quota: team: must specify limits.cpu", TemplateState.REJECTED),
        (403, f"{FORBIDDEN} maximum cpu usage per Pod is 1", TemplateState.REJECTED),
        (
            403,
            f'{FORBIDDEN} pod rejected: RuntimeClass "kata" not found',
            TemplateState.NOT_CHECKED,
        ),
        (
            403,
            f"{FORBIDDEN} error looking up service account default/default: "
            'serviceaccount "default" not found',
            TemplateState.NOT_CHECKED,
        ),
        (
            403,
            f"{FORBIDDEN} no PriorityClass with name urgent was found",
            TemplateState.NOT_CHECKED,
        ),
        (
            403,
            'admission webhook "p" denied the request: pods "x" is forbidden: no PriorityClass '
            "with name urgent was found",
            TemplateState.REJECTED,
        ),
        (
            403,
            f"{FORBIDDEN} unable to create new content in namespace a because it is being "
            "terminated",
            TemplateState.NOT_CHECKED,
        ),
        (
            403,
            'pods is forbidden: User "system:serviceaccount:a:b" cannot create resource "pods"',
            TemplateState.NOT_CHECKED,
        ),
        (404, 'namespaces "a" not found', TemplateState.NOT_CHECKED),
        (409, 'operation cannot be fulfilled on resourcequotas "a"', TemplateState.NOT_CHECKED),
        (403, "conflict: runtimeClass.scheduling.nodeSelector[rt] = kata", TemplateState.REJECTED),
        (500, "failed calling webhook", TemplateState.NOT_CHECKED),
        (429, "too many requests", TemplateState.NOT_CHECKED),
    ],
)
def test_a_refused_dry_run(status: int, message: str, state: TemplateState) -> None:
    verdict = result_of(ApiError(status, "", message))
    assert verdict.state is state
    if verdict.reason is Reason.NAMESPACE_TERMINATING:
        assert "is being deleted" in verdict.message
    elif state is not TemplateState.ACCEPTED:
        assert message in verdict.message


# --- The cache of the cluster --------------------------------------------------------------------


def test_a_pod_is_found_by_pool_claim_and_node_and_then_no_more() -> None:
    pods = ClusterCache().pods
    free, claimed = pod(version=1), pod(claim="c", version=2, node="node-2")
    pods.put(None, free)
    assert list(pods.of_pool("default", "pool-uid").values()) == [free]
    assert (pods.on_node("node-1"), pods.claimed()) == ([free], [])
    pods.put(free, claimed)
    assert pods.of_claim("default", "c-uid") == pods.claimed() == [claimed]
    assert not pods.on_node("node-1")
    pods.put(claimed, None)
    assert not pods.all()
    assert not pods._by_pool
    assert not pods._by_claim
    assert not pods._by_node


def test_a_heartbeat_is_no_change_and_a_handler_is() -> None:
    nodes = ClusterCache().nodes
    assert nodes.put(None, node(version=1))
    assert nodes.verdict("runsc", NodeConstraints(), proof_wanted=False).serving == ("node-1",)
    assert not nodes.put(node(version=1), node(version=2))
    assert nodes.put(node(version=2), node(version=3, handlers=["runc"]))
    assert nodes.verdict("runsc", NodeConstraints(), proof_wanted=False).not_serving == ("node-1",)
    assert nodes.put(node(version=3), None)
    assert nodes.verdict("runsc", NodeConstraints(), proof_wanted=False).eligible == 0


def test_messages_about_pods_are_bounded() -> None:
    events = SandboxEvents()
    for i in range(MAX_SANDBOX_EVENTS + 5):
        meta = Metadata(f"e{i}", f"e{i}", "1", "default")
        about = InvolvedObject(name=f"pod-{i}", uid=f"pod-{i}-uid", namespace="default")
        source = EventSource("node-1")
        assert events.put(Event(meta, about, message="text", source=source))
    last = pod(f"pod-{MAX_SANDBOX_EVENTS}")
    assert events.message(pod("pod-0")) is None
    assert events.message(last) == "text"
    events.forget(last)
    assert events.get(last) is None


def test_a_pool_posts_an_event_with_its_conditions_message() -> None:
    said = (("Ready", "no node"), ("Warm", "other"))
    listed = [{"type": type_, "status": "False", "message": text} for type_, text in said]
    assert pool(status={"conditions": listed}).ready_message() == "no node"
    assert pool(status={"conditions": "junk"}).ready_message()
    assert pool().ready_message()
    assert NOW
