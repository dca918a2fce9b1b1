"""A pool's reconcile against an API server that refuses, breaks and forgets."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from sandboxpool.allocation.allocator import Allocator
from sandboxpool.allocation.candidate_tracker import CandidateTracker
from sandboxpool.allocation.refusal import Refusal
from sandboxpool.api import names
from sandboxpool.api.core import Pod
from sandboxpool.api.reasons import Reason
from sandboxpool.api.times import timestamp
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.pool import Pool
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.kube.errors import ApiError, KubeError
from sandboxpool.kube.events import EventRecorder
from sandboxpool.pools.expectations import (
    UNKNOWN_CREATE_SECONDS,
    UNKNOWN_DELETE_SECONDS,
    VERIFY_AFTER_SECONDS,
)
from sandboxpool.pools.plan import CreateBackoff
from sandboxpool.pools.reconcile import BINDING_RECHECK_SECONDS, PoolReconciler
from sandboxpool.pools.state import PoolStates
from sandboxpool.pools.writer import WRITES_AT_ONCE
from sandboxpool.runtimes.exclusion import INSTALL_GRACE_SECONDS
from sandboxpool.runtimes.probe import ProbeImage
from sandboxpool.sandboxes.members import Member, classify_pod
from sandboxpool.sandboxes.template import ClaimRef, pod_name
from support.builders import NAMESPACE, POOL_UID, node, pod_body, pool_body, runtime
from support.inquiries import NoInquiry
from support.scriptedapi import BROKEN, CONFLICT, QUOTA, REFUSED, UNDECIDED, UNKNOWN, ScriptedApi

pytestmark = pytest.mark.looptime

PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
POOL = f"/apis/sandboxpool.io/v1alpha1/namespaces/{NAMESPACE}/sandboxpools/pool"
START = 1_700_000_000.0


class Observer:
    def __init__(self) -> None:
        self.failures: list[str] = []

    def sandbox_failed(self, pool: Pool, reason: str) -> None:
        del pool
        self.failures.append(reason)


class World:
    """A pool reconciler with its caches, fed by the scripted API; time is the event loop's."""

    def __init__(self, *pods: str, **spec: Any) -> None:
        self.cluster = ClusterCache()
        # Nobody labels nodes here.
        self.cluster.nodes.set_by_hostname(True)
        self.pools = PoolStore(lambda old, new: None)
        self.states = PoolStates(lambda: asyncio.get_running_loop().time())
        self.allocator = Allocator(self.states.mark_dirty)
        self.observer = Observer()
        self.given_up: list[str] = []
        self.watching = True
        self.echo: Callable[[Any], Any] = lambda status: status
        # Of the wall clock, which may be set.
        self.shift = 0.0
        self.woken: list[str] = []
        self.deleted_claims: set[str] = set()
        self.api = ScriptedApi(self.wall, self._changed)
        self.candidate_tracker = CandidateTracker(
            self.cluster,
            self.pools,
            self.allocator,
            is_deleting=self.states.is_deleting,
            on_allocated=lambda claim: None,
        )
        self.events = EventRecorder(self.api, "test", "test")
        self.reconciler = PoolReconciler(
            client=self.api,
            cluster=self.cluster,
            pools=self.pools,
            states=self.states,
            allocator=self.allocator,
            candidate_tracker=self.candidate_tracker,
            events=self.events,
            observer=self.observer,
            on_start_timeout=self.given_up.append,
            probe=ProbeImage("registry.example/probe:1"),
            event_reader=NoInquiry(),
            on_startup_sample=lambda pool, stage, seconds: None,
            wall=self.wall,
            clock=lambda: asyncio.get_running_loop().time(),
            enqueue_claim=self._wake_claim,
        )
        self.cluster.classes["gvisor"] = runtime()
        self.cluster.nodes.put(None, node())
        self.api.put(POOL, pool_body(**spec))
        for name in pods:
            self.put_pod(name)

    def _wake_claim(self, uid: str) -> bool:
        self.woken.append(uid)
        return uid not in self.deleted_claims

    @property
    def pool(self) -> Pool:
        found = self.pools.get((NAMESPACE, "pool"))
        assert found is not None
        return found

    def wall(self) -> float:
        return START + self.shift + asyncio.get_running_loop().time()

    def _changed(self, path: str, old: Any, new: Any) -> None:
        if not self.watching:
            return
        if path == POOL:
            if new is not None and new.get("status"):
                new["status"] = self.echo(new["status"])
            self.pools.observe(new or old, deleted=new is None)
        elif "/pods/" in path:
            before, after = (msgspec.convert(b, Pod | None) for b in (old, new))
            self.cluster.pods.put(before, after)
            self.reconciler.observe_pod(POOL_UID, before, after)
            if after is None:
                self.allocator.release(old["metadata"]["uid"])
            else:
                self.candidate_tracker.refresh([after])

    def put_pod(self, name: str, **given: Any) -> None:
        self.api.put(f"{PODS}/{name}", pod_body(name, now=self.wall(), **given))

    async def reconcile(self) -> float | None:
        return await self.reconciler.reconcile((NAMESPACE, "pool"))

    def make_all_ready(self) -> None:
        for path, body in list(self.api.objects.items()):
            if "/pods/" in path and not body.get("status"):
                name = path.rpartition("/")[2]
                new = pod_body(name, version=int(body["metadata"]["resourceVersion"]) + 1)
                new["metadata"]["creationTimestamp"] = body["metadata"]["creationTimestamp"]
                self.api.put(path, new)

    @property
    def pods(self) -> list[str]:
        return [path for path in self.api.objects if "/pods/" in path]

    @property
    def posted(self) -> int:
        return len(self.api.sent("POST", "/pods"))

    @property
    def status(self) -> dict[str, Any]:
        return dict(self.api.objects[POOL]["status"])

    def condition(self, type_: str) -> tuple[str, str]:
        (found,) = [c for c in self.status["conditions"] if c["type"] == type_]
        return found["status"], found["reason"]


async def test_an_empty_pool_is_filled_and_then_left_alone() -> None:
    world = World(replicas=3)
    await world.reconcile()
    assert world.posted == 3
    await asyncio.sleep(2)
    world.make_all_ready()
    for _ in range(3):
        await world.reconcile()
        await asyncio.sleep(2)
    calls = len(world.api.calls)
    again = await world.reconcile()
    assert again is not None
    assert again > 600, "all that is left is to ask about the template now and then"
    assert len(world.api.calls) == calls
    assert world.posted == 3
    assert world.condition("Ready") == ("True", "SandboxWarm")


async def test_the_template_is_checked_once_and_strictly() -> None:
    world = World(replicas=2)
    for _ in range(3):
        await world.reconcile()
    asked = [call for call in world.api.calls if call.dry_run]
    assert len(asked) == 1
    assert asked[0].body["spec"]["runtimeClassName"] == "gvisor"


async def test_what_was_created_and_is_not_seen_yet_is_not_created_again() -> None:
    world = World(replicas=3)
    world.watching = False
    for _ in range(4):
        await world.reconcile()
    assert world.posted == 3


@pytest.mark.parametrize(("succeeded", "sent"), [(0, 1), (1, 3), (3, 7)])
async def test_a_slow_start_stops_at_the_first_refusal(succeeded: int, sent: int) -> None:
    world = World(replicas=50, startup={"maxStarting": 50})
    refused_from = succeeded

    def count(call: Any) -> None:
        if call.method == "POST" and not call.dry_run and world.posted > refused_from:
            raise QUOTA

    world.api.before = count
    await world.reconcile()
    assert world.posted == sent
    assert len(world.pods) == succeeded


async def test_what_changes_in_a_large_pool_costs_a_look_at_what_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(*(f"pod-{n}" for n in range(300)), replicas=300)
    await world.reconcile()
    looked_at: list[str] = []

    def count(pod: Pod, **given: Any) -> Member:
        looked_at.append(pod.metadata.name)
        return classify_pod(pod, **given)

    monkeypatch.setattr("sandboxpool.pools.member_index.classify_pod", count)
    world.put_pod("pod-7", version=2, claim="claim-uid")
    await world.reconcile()
    assert looked_at == ["pod-7"]
    # Its successor has come.
    await world.reconcile()
    assert looked_at == ["pod-7", world.pods[-1].rpartition("/")[2]]


async def test_refill_leaves_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(replicas=200, startup={"maxStarting": 200})
    send = world.api._send
    flying = most = 0

    async def slowly(*request: Any) -> bytes:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(0.01)
        flying -= 1
        return await send(*request)

    monkeypatch.setattr(world.api, "_send", slowly)
    await world.reconcile()
    assert world.posted == 200
    assert most == WRITES_AT_ONCE


async def test_an_exceeded_quota_is_reported_and_causes_no_storm() -> None:
    world = World(replicas=5)
    world.api.fail("POST", "/pods", QUOTA, times=10_000)
    end = world.wall() + 600
    while world.wall() < end:
        again = await world.reconcile()
        assert again is not None
        await asyncio.sleep(again)
    assert world.condition("Warm") == ("False", "QuotaExceeded")
    assert world.condition("TemplateAccepted") == ("True", "TemplateAccepted")
    assert world.posted < 40
    assert set(world.observer.failures) == {"QuotaExceeded"}


@pytest.mark.parametrize("dry_run", [True, False])
async def test_a_clock_that_is_set_back_does_not_make_a_pool_wait_longer(dry_run: bool) -> None:
    world = World(replicas=1)

    def refuse(call: Any) -> None:
        if call.method == "POST" and call.dry_run == dry_run:
            raise UNKNOWN

    world.api.before = refuse
    await world.reconcile()
    assert world.pods == []
    world.api.before = lambda call: None
    world.shift = -3600.0
    end = asyncio.get_running_loop().time() + 120
    while not world.pods and asyncio.get_running_loop().time() < end:
        again = await world.reconcile()
        await asyncio.sleep(1.0 if again is None else min(again, 5.0))
    assert len(world.pods) == 1


async def test_a_refused_batch_is_one_failure() -> None:
    world = World(replicas=15, startup={"maxStarting": 15})

    def refuse(call: Any) -> None:
        if call.method == "POST" and not call.dry_run and world.posted > 7:
            raise QUOTA

    world.api.before = refuse
    await world.reconcile()
    assert world.posted == 15
    assert world.reconciler._states[POOL_UID].backoff.failures == 1


@pytest.mark.parametrize("gone_at_once", [True, False])
async def test_what_somebody_deletes_as_it_is_made_is_made_ever_more_slowly(
    gone_at_once: bool,
) -> None:
    """As the garbage collector does with the pods of a pool whose end was not seen."""
    world = World(replicas=4)
    end = asyncio.get_running_loop().time() + 60
    while asyncio.get_running_loop().time() < end:
        again = await world.reconcile()
        for path in world.pods:
            if gone_at_once:
                world.api.remove(path)
                continue
            body = world.api.objects[path]
            gone = {"deletionTimestamp": timestamp(world.wall()), "resourceVersion": "999999"}
            world.api.put(path, {**body, "metadata": {**body["metadata"], **gone}})
        await asyncio.sleep(1.0 if again is None else min(again, 1.0))
    assert 4 < world.posted <= 4 + 4 + 6
    assert world.condition("Warm") == ("False", "PodLost")


async def test_what_is_deleted_when_it_is_warm_or_by_the_operator_is_no_failure() -> None:
    world = World("pod-1", replicas=2)
    await world.reconcile()
    world.api.remove(f"{PODS}/pod-1")
    world.api.put(POOL, pool_body(version=9999, generation=2, replicas=0))
    await world.reconcile()
    assert world.api.sent("DELETE")
    assert world.reconciler._states[POOL_UID].backoff == CreateBackoff()


async def test_a_sandbox_of_another_class_is_no_success() -> None:
    world = World(replicas=1)
    world.api.fail("POST", "/pods", QUOTA)
    await world.reconcile()
    world.put_pod("altered", class_name="runc", age=-2.0)
    await world.reconcile()
    assert world.reconciler._states[POOL_UID].backoff.failures == 2, "the next waits longer"


async def test_a_rejected_create_repeats_the_dry_run() -> None:
    world = World(replicas=1)
    world.api.fail("POST", "/pods", REFUSED)
    await world.reconcile()
    world.api.fail("POST", "/pods", REFUSED, dry_run=True)
    await asyncio.sleep(3)
    await world.reconcile()
    assert world.condition("TemplateAccepted") == ("False", "TemplateRejected")
    assert world.posted == 1


async def test_an_unanswered_create_is_repeated_under_its_name() -> None:
    world = World(replicas=1)
    world.api.fail("POST", "/pods", UNKNOWN, applied=True)
    await world.reconcile()
    assert len(world.pods) == 1
    posted = {c.body["metadata"]["name"] for c in world.api.sent("POST", "/pods")}
    assert len(posted) == 1


async def test_a_pool_is_requeued_while_its_pods_are_being_bound() -> None:
    world = World("pod-1", replicas=1)
    assert (await world.reconcile() or 0) > 600
    world.allocator.allocate(POOL_UID, "claim")
    again = await world.reconcile()
    # Whether the binding succeeds or not: its failure would be no event.
    assert again is not None
    assert again <= BINDING_RECHECK_SECONDS
    await asyncio.sleep(1.0)


async def test_the_create_of_an_observed_pod_is_not_retried_though_it_has_ended_since() -> None:
    world = World(replicas=1)
    world.api.fail("POST", "/pods", UNKNOWN, applied=True)
    making = asyncio.ensure_future(world.reconcile())
    await asyncio.sleep(0.1)
    (made,) = world.pods
    world.api.remove(made)
    await making
    # Its place may be another's by now.
    assert world.posted == 1


@pytest.mark.parametrize(
    ("error", "made_again"), [(UNKNOWN, False), (UNDECIDED, False), (BROKEN, True)]
)
async def test_a_create_that_may_have_been_carried_out_takes_its_room(
    error: ApiError, made_again: bool
) -> None:
    world = World(replicas=1, maxSandboxes=1)
    world.watching = False
    world.api.fail("POST", "/pods", error, times=2)
    world.api.fail("POST", "/pods", error, applied=not made_again)
    await world.reconcile()
    await asyncio.sleep(5)
    await world.reconcile()
    names_asked = {c.body["metadata"]["name"] for c in world.api.sent("POST", "/pods")}
    assert len(names_asked) == (2 if made_again else 1)
    assert len(world.pods) == 1


@pytest.mark.parametrize("made", [False, True])
async def test_a_create_of_unknown_outcome_is_sent_again_under_its_name(made: bool) -> None:
    world = World(replicas=2, maxSandboxes=2)
    world.watching = False
    world.api.fail("POST", "/pods", UNKNOWN, times=2)
    world.api.fail("POST", "/pods", UNKNOWN, applied=made)
    again: float | None = await world.reconcile()
    while len(world.pods) < 2:
        assert again is not None, "nothing would wake the pool"
        assert again < UNKNOWN_CREATE_SECONDS
        await asyncio.sleep(again)
        again = await world.reconcile()
    first, *_ = (call.body["metadata"]["name"] for call in world.api.sent("POST", "/pods"))
    assert f"{PODS}/{first}" in world.pods
    assert world.observer.failures == ["CreateFailed"]


async def test_a_create_of_unknown_outcome_is_not_sent_again_if_nothing_is_missing() -> None:
    world = World(replicas=1)
    world.api.fail("POST", "/pods", UNKNOWN, times=3)
    await world.reconcile()
    world.api.put(POOL, pool_body(version=9999, generation=2, replicas=0))
    await asyncio.sleep(5)
    await world.reconcile()
    assert world.posted == 3


async def test_deletes_name_the_very_pod_that_was_judged() -> None:
    world = World(replicas=0)
    world.put_pod("pod-1", version=7)
    await world.reconcile()
    (delete,) = world.api.sent("DELETE")
    assert delete.body["preconditions"] == {"uid": "pod-1-uid", "resourceVersion": "7"}
    assert not world.pods


@pytest.mark.parametrize("lost", [1, 2])
@pytest.mark.parametrize("applied", [False, True])
async def test_a_delete_that_nobody_answered_for_is_sent_again(lost: int, applied: bool) -> None:
    world = World("pod-1", replicas=0)
    world.watching = False
    world.api.fail("DELETE", "/pods", UNKNOWN, times=lost - 1)
    world.api.fail("DELETE", "/pods", UNKNOWN, applied=applied)
    await world.reconcile()
    assert len(world.api.sent("DELETE")) == lost + 1
    assert not world.pods
    assert world.allocator.free(POOL_UID) == 0


async def test_a_pod_that_changed_since_the_decision_is_not_deleted_and_is_a_candidate_again() -> (
    None
):
    world = World(replicas=0)
    world.put_pod("pod-1")
    world.api.touch(f"{PODS}/pod-1")
    await world.reconcile()
    assert len(world.pods) == 1
    assert world.allocator.free(POOL_UID) == 1


async def test_a_node_is_lost_only_when_the_api_server_has_none() -> None:
    world = World(replicas=1)
    world.put_pod("pod-1", node="unseen")
    # Pods and nodes have watches of their own, and that of nodes may be silent for long.
    world.api.objects["/api/v1/nodes/unseen"] = {"metadata": {"name": "unseen"}}
    await world.reconcile()
    await asyncio.sleep(120)
    await world.reconcile()
    world.api.fail("GET", "/nodes/unseen", BROKEN)
    await world.reconcile()
    assert len(world.api.sent("GET", "/nodes/unseen")) == 2
    assert f"{PODS}/pod-1" in world.pods
    del world.api.objects["/api/v1/nodes/unseen"]
    await world.reconcile()
    assert f"{PODS}/pod-1" not in world.pods


async def test_a_failure_counts_once_however_often_its_pod_changes_before_its_deletion() -> None:
    world = World()
    world.put_pod("pod-1", phase="Failed", ready=False)
    world.api.touch(f"{PODS}/pod-1")
    await world.reconcile()
    assert not world.observer.failures, "it was not deleted, for it has changed"
    latest = int(world.api.objects[f"{PODS}/pod-1"]["metadata"]["resourceVersion"])
    world.put_pod("pod-1", phase="Failed", ready=False, version=latest)
    await world.reconcile()
    assert world.observer.failures == ["PodFailed"]


async def test_a_pod_being_deleted_is_no_candidate() -> None:
    world = World(replicas=0)
    world.put_pod("pod-1")
    world.api.fail("DELETE", "/pods", UNKNOWN, times=3)
    await world.reconcile()
    assert world.allocator.allocate(POOL_UID, "claim") is None
    assert world.states.is_deleting(POOL_UID, "pod-1-uid")


@pytest.mark.parametrize("wanted", [False, True])
async def test_a_pod_whose_delete_was_lost_is_soon_a_candidate_or_deleted_again(
    wanted: bool,
) -> None:
    world = World("pod-1", replicas=0)
    world.api.fail("DELETE", "/pods", UNKNOWN, times=3)
    again = await world.reconcile()
    assert again is not None
    assert again <= UNKNOWN_DELETE_SECONDS
    if wanted:
        world.api.put(POOL, pool_body(version=9999, generation=2, replicas=1))
    await asyncio.sleep(UNKNOWN_DELETE_SECONDS)
    await world.reconcile()
    assert len(world.pods) == int(wanted)
    assert world.allocator.free(POOL_UID) == int(wanted)


async def test_a_deleted_pod_that_a_stale_cache_shows_is_no_candidate() -> None:
    world = World("pod-1", replicas=0)
    world.watching = False
    await world.reconcile()
    assert not world.pods
    for _ in range(30):
        await asyncio.sleep(60)
        await world.reconcile()
        assert world.allocator.allocate(POOL_UID, "claim") is None
    assert len(world.api.sent("GET", "/pods/pod-1")) < 12


async def test_a_create_that_was_slow_to_fail_is_not_repeated_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(replicas=1)
    send = world.api._send

    async def slowly(method: str, path: str, data: Any, params: Any, *rest: Any) -> bytes:
        if method == "POST" and not params:
            await asyncio.sleep(2)
        return await send(method, path, data, params, *rest)

    monkeypatch.setattr(world.api, "_send", slowly)
    world.api.fail("POST", "/pods", BROKEN, times=1000)
    await world.reconcile()
    assert world.posted == 1


async def test_a_quota_that_was_being_written_is_no_refusal() -> None:
    world = World(replicas=1)
    world.api.fail("POST", "/pods", CONFLICT)
    await world.reconcile()
    assert len(world.pods) == 1
    assert world.observer.failures == []


async def test_a_response_that_is_no_pod_leaves_the_outcome_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(replicas=1, maxSandboxes=1)
    world.watching = False
    send, junk = world.api._send, True

    async def answer(method: str, path: str, data: Any, params: Any, *rest: Any) -> bytes:
        answer = await send(method, path, data, params, *rest)
        return b"<html>" if junk and method == "POST" and not params else answer

    monkeypatch.setattr(world.api, "_send", answer)
    await world.reconcile()
    junk = False
    await asyncio.sleep(5)
    await world.reconcile()
    assert len(world.pods) == 1


async def test_a_template_whose_pods_are_altered_makes_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(replicas=1)
    send = world.api._send

    async def alter(method: str, path: str, data: Any, *rest: Any) -> bytes:
        body = await send(method, path, data, *rest)
        return body.replace(b'"gvisor"', b'"runc"') if method == "POST" else body

    monkeypatch.setattr(world.api, "_send", alter)
    await world.reconcile()
    assert world.posted == 0
    assert world.condition("TemplateAccepted") == ("False", "PodAltered")
    monkeypatch.setattr(world.api, "_send", send)
    again = await world.reconcile()
    assert again is not None
    assert again <= 1
    await asyncio.sleep(again)
    await world.reconcile()
    assert world.posted == 1


async def test_a_refused_create_does_not_withdraw_the_verdict_before_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(replicas=1)
    world.api.fail("POST", "/pods", REFUSED)
    await world.reconcile()
    send = world.api._send

    async def hang(method: str, path: str, data: Any, params: Any, *rest: Any) -> bytes:
        if params:
            await asyncio.sleep(20)
        return await send(method, path, data, params, *rest)

    monkeypatch.setattr(world.api, "_send", hang)
    await asyncio.sleep(3)
    await world.reconcile()
    assert world.condition("TemplateAccepted") == ("True", "TemplateAccepted")
    assert len(world.pods) == 1


async def test_a_reserved_pod_is_not_deleted() -> None:
    world = World(replicas=0)
    world.put_pod("pod-1")
    assert world.allocator.allocate(POOL_UID, "claim") is not None
    await world.reconcile()
    assert len(world.pods) == 1


@pytest.mark.parametrize("error", [BROKEN, REFUSED])
async def test_a_pod_that_cannot_be_deleted_does_not_keep_the_others_from_being_made(
    error: KubeError,
) -> None:
    world = World(replicas=2)
    world.put_pod("failed", phase="Failed", ready=False)
    world.api.fail("DELETE", "/pods", error, times=1000)
    for _ in range(5):
        with contextlib.suppress(KubeError):
            await world.reconcile()
        await asyncio.sleep(5)
    assert world.posted >= 1


async def test_the_status_is_written_once_and_then_only_when_it_changes() -> None:
    world = World("pod-1")
    for _ in range(4):
        await world.reconcile()
        await asyncio.sleep(5)
    assert len(world.api.sent("PATCH", "/status")) == 1
    world.put_pod("pod-1", version=2, ready=False)
    await world.reconcile()
    assert len(world.api.sent("PATCH", "/status")) == 2


async def test_the_status_is_written_at_most_once_a_second() -> None:
    world = World("pod-1")
    await world.reconcile()
    world.put_pod("pod-1", version=2, ready=False)
    again = await world.reconcile()
    assert len(world.api.sent("PATCH", "/status")) == 1
    assert again is not None
    assert again <= 1
    await asyncio.sleep(again)
    await world.reconcile()
    assert len(world.api.sent("PATCH", "/status")) == 2


@pytest.mark.parametrize("lost", ["target", "runtime", "warm"])
async def test_a_server_that_keeps_less_than_was_sent_causes_no_loop(lost: str) -> None:
    world = World("pod-1")
    world.echo = lambda status: {k: v for k, v in status.items() if k != lost}
    for _ in range(6):
        await world.reconcile()
        await asyncio.sleep(5)
    assert len(world.api.sent("PATCH", "/status")) == 1


async def test_a_status_write_that_failed_is_tried_again() -> None:
    world = World("pod-1")
    world.api.fail("PATCH", "/status", BROKEN)
    with pytest.raises(KubeError):
        await world.reconcile()
    await asyncio.sleep(2)
    await world.reconcile()
    assert world.status["warm"] == 1


async def test_a_pool_whose_class_went_away_sleeps_until_something_happens() -> None:
    """Not even an earlier, unanswered dry run may keep it awake."""
    world = World(replicas=1)
    world.api.fail("POST", "/pods", BROKEN, dry_run=True)
    await world.reconcile()
    del world.cluster.classes["gvisor"]
    waits = []
    for _ in range(10):
        again = await world.reconcile()
        waits.append(again)
        await asyncio.sleep(again or 60)
    assert waits[-1] is None or waits[-1] >= 1
    assert world.posted == 0
    assert world.condition("Ready") == ("False", "RuntimeClassNotFound")


async def test_a_pool_that_is_deleted_is_left_to_the_collector() -> None:
    world = World("pod-1", deleting=True)
    assert await world.reconcile() is None
    assert not world.api.calls


async def test_an_invalid_pool_is_reported_and_left_alone() -> None:
    world = World("pod-1", replicas=-1)
    await world.reconcile()
    assert [c.method for c in world.api.writes] == ["PATCH"]
    assert world.condition("Ready") == ("False", "InvalidObject")


async def test_constraints_that_are_malformed_are_a_refused_template() -> None:
    template = {"spec": {"containers": [{"name": "a"}], "tolerations": "all"}}
    world = World(template=template)
    await world.reconcile()
    assert world.posted == 0
    assert world.condition("TemplateAccepted") == ("False", "TemplateRejected")


async def test_a_template_that_mounts_where_the_configuration_goes_is_refused() -> None:
    mounts = [{"name": "x", "mountPath": "/run/sandbox"}]
    template = {"spec": {"containers": [{"name": "a", "volumeMounts": mounts}]}}
    world = World(template=template)
    await world.reconcile()
    assert world.posted == 0
    (found,) = [c for c in world.status["conditions"] if c["type"] == "TemplateAccepted"]
    assert (found["status"], found["reason"]) == ("False", "TemplateRejected")
    assert "containers[0].volumeMounts[0].mountPath" in found["message"]
    off = World(template=template, claims={"configPath": ""})
    await off.reconcile()
    assert off.condition("TemplateAccepted")[0] == "True"


async def test_a_recreated_class_is_announced_with_both_handlers() -> None:
    world = World("pod-1")
    await world.reconcile()
    world.cluster.classes["gvisor"] = runtime(uid="new", handler="kata")
    await asyncio.sleep(2)
    await world.reconcile()
    messages = []
    while not world.events._queue.empty():
        event = world.events._queue.get_nowait()
        messages.append((event.reason, event.message))
    (changed,) = [text for reason, text in messages if reason == "RuntimeChanged"]
    assert "'runsc'" in changed
    assert "'kata'" in changed


# --- Nodes to be left ----------------------------------------------------------------------------


def quarantine(world: World, name: str = "node-1", *, told: bool = True) -> None:
    at = world.cluster.nodes.get(name)
    assert at is not None
    now = world.wall()
    assert world.cluster.quarantines.record_failure(
        at, "runsc", Reason.SHIM_MISSING, "no shim binary", now=now
    )
    world.cluster.nodes.reevaluate(name)
    if told:
        for there in world.cluster.pods.on_node(name):
            world.reconciler.mark_dirty(POOL_UID, there.metadata.uid)


async def test_a_quarantined_node_is_left_within_the_budget_and_named() -> None:
    world = World("pod-1", "pod-2", replicas=2)
    world.cluster.nodes.put(None, node("node-2"))
    await world.reconcile()
    await asyncio.sleep(2)
    quarantine(world)
    await world.reconcile()
    assert [c.path.rpartition("/")[2] for c in world.api.sent("DELETE")] == ["pod-1"]
    made = [c.body for c in world.api.sent("POST", "/pods")]
    assert len(made) == 2
    terms = made[0]["spec"]["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]["nodeSelectorTerms"]
    assert terms[0]["matchExpressions"][1]["values"] == ["node-1"]
    assert world.condition("NodesServing") == ("True", "NodeQuarantined")
    ((issue),) = world.status["runtime"]["issues"]
    assert (issue["reason"], issue["nodes"], issue["message"]) == (
        "ShimMissing",
        ["node-1"],
        "no shim binary",
    )
    assert world.status["runtime"]["nodes"]["quarantined"] == 1
    assert world.observer.failures == []


async def test_with_all_nodes_quarantined_existing_pods_stay_and_one_is_pending() -> None:
    world = World("pod-1", "pod-2", replicas=2)
    await world.reconcile()
    await asyncio.sleep(2)
    quarantine(world)
    for _ in range(5):
        await world.reconcile()
        await asyncio.sleep(5)
    assert not world.api.sent("DELETE")
    assert world.posted == 1
    assert world.condition("NodesServing") == ("False", "ShimMissing")
    assert world.condition("Ready") == ("False", "ShimMissing")


async def test_a_missed_change_is_found_by_the_resync() -> None:
    world = World("pod-1", "pod-2", replicas=2)
    world.cluster.nodes.put(None, node("node-2"))
    await world.reconcile()
    quarantine(world, told=False)
    await asyncio.sleep(30)
    await world.reconcile()
    assert not world.api.sent("DELETE")
    await asyncio.sleep(31)
    await world.reconcile()
    assert len(world.api.sent("DELETE")) == 1


async def test_a_changed_isolation_proof_reclassifies_every_sandbox() -> None:
    world = World("pod-1", "pod-2", replicas=2, isolationProof="None")
    await world.reconcile()
    assert (world.status["warm"], world.status["unproven"]) == (2, 0)
    await asyncio.sleep(2)
    world.api.put(POOL, pool_body(version=9999, generation=2, replicas=2, isolationProof="PerNode"))
    await world.reconcile()
    assert (world.status["warm"], world.status["unproven"]) == (0, 2)


@pytest.mark.parametrize("told", [True, False])
async def test_the_health_of_nodes_hears_of_what_was_given_up_for_no_known_cause(
    told: bool,
) -> None:
    world = World(startup={"timeoutSeconds": 30})
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off"}
    statuses = [] if told else [{"name": "main", "state": {"waiting": waiting}}]
    world.put_pod("late", ready=False, phase="Pending", age=60, containerStatuses=statuses)
    await world.reconcile()
    assert not world.api.sent("DELETE"), "what was here before us is given its time"
    await asyncio.sleep(31)
    await world.reconcile()
    assert len(world.api.sent("DELETE")) == 1
    assert world.given_up == (["late-uid"] if told else [])


async def test_an_autoscaler_that_adds_wrong_nodes_sees_fewer_and_fewer_pending_pods() -> None:
    """Each waiting sandbox is answered with a node that does not serve."""
    world = World(replicas=3)
    world.cluster.nodes.put(node(), None)
    answered: set[str] = set()
    withdrawn = []
    end = world.wall() + 6 * 3600
    while world.wall() < end:
        sent = len(world.api.sent("DELETE"))
        again = await world.reconcile()
        if len(world.api.sent("DELETE")) > sent:
            withdrawn.append(world.wall())
        for path in world.pods:
            if path not in answered:
                answered.add(path)
                name = f"bought-{len(answered)}"
                await asyncio.sleep(60)
                bought = node(name, handlers=["runc"], joined=world.wall())
                world.cluster.nodes.put(None, bought)
                body = world.api.objects[path]
                bound = pod_body(
                    path.rpartition("/")[2], node=name, ready=False, phase="Pending", version=9
                )
                bound["metadata"]["creationTimestamp"] = body["metadata"]["creationTimestamp"]
                world.api.put(path, bound)
                again = 0.1
        assert again is not None, "nothing would wake the pool"
        await asyncio.sleep(min(again, 600))
    assert 3 <= len(answered) <= 6
    assert world.condition("NodesServing") == ("False", "AutoscalerAddsWrongNodes")
    pauses = [later - earlier for earlier, later in itertools.pairwise(withdrawn)]
    assert pauses == sorted(pauses)
    assert pauses[0] >= 450 + INSTALL_GRACE_SECONDS
    world.cluster.nodes.put(None, node("right", joined=world.wall()))
    await world.reconcile()
    assert len(world.pods) >= 1, "the delay ends at once"


# --- Cold pods -----------------------------------------------------------------------------------

CLAIM = ClaimRef("job", "job-uid")
OTHER = ClaimRef("other", "other-uid")


async def cold(world: World, *claims: ClaimRef) -> Refusal | None:
    """Have claims wait for a sandbox of their own; what they are told after the pool's look."""
    pool = world.pool
    for claim in claims or (CLAIM,):
        world.allocator.allocate(pool.uid, claim.uid)
        world.reconciler.cold_starter.request_cold_start(pool, claim)
    await world.reconcile()
    return world.reconciler.cold_starter.request_cold_start(pool, (*claims, CLAIM)[0])


async def test_a_cold_pod_has_its_name_from_its_claim_and_is_made_once() -> None:
    world = World(replicas=0)
    world.watching = False
    for _ in range(3):
        assert await cold(world) is None
        world.allocator.cancel_claim(CLAIM.uid)
    (path,) = world.pods
    assert path.endswith(pod_name("pool", "job-uid"))
    assert world.reconciler.cold_starter.is_starting_cold(world.pool, CLAIM.uid)
    assert "job-uid" in world.woken


async def test_a_cold_pod_keeps_to_max_sandboxes_and_its_claim_keeps_its_place_in_the_queue() -> (
    None
):
    world = World("pod-1", replicas=1, maxSandboxes=1)
    world.allocator.mark_allocated(POOL_UID, "pod-1-uid", "node-1")
    refusal = await cold(world)
    assert refusal is not None
    assert refusal.reason is Reason.MAX_SANDBOXES_REACHED
    assert world.posted == 0
    assert world.allocator.waiting_claims(POOL_UID) == ["job-uid"]
    assert world.woken == ["job-uid"], "it is to say why it waits"


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"paused": True}, Reason.PAUSED),
        ({"startup": {"maxStarting": 1}}, Reason.MAX_STARTING_REACHED),
        ({"maxSandboxes": 1}, Reason.MAX_SANDBOXES_REACHED),
    ],
)
async def test_what_is_started_for_claims_keeps_the_limits_of_the_pool(
    spec: dict[str, Any], reason: Reason
) -> None:
    world = World(replicas=0, **spec)
    refusal = await cold(world, CLAIM, OTHER)
    assert world.posted == (0 if reason is Reason.PAUSED else 1)
    assert world.allocator.waiting_claims(POOL_UID)[-1] == "other-uid", (
        "the first in line comes first"
    )
    for _ in range(2):
        await world.reconcile()
    refusal = world.reconciler.cold_starter.request_cold_start(world.pool, OTHER)
    assert refusal is not None
    assert refusal.reason is reason


async def test_a_cold_pod_that_exists_already_is_the_claims() -> None:
    world = World(replicas=0)
    world.watching = False
    world.put_pod(pod_name("pool", "job-uid"), claim="job")
    await cold(world)
    assert len(world.pods) == 1
    assert world.reconciler.cold_starter.is_starting_cold(world.pool, CLAIM.uid)


async def test_somebody_elses_pod_of_its_name_does_not_keep_a_claim_waiting() -> None:
    world = World(replicas=0)
    world.watching = False
    name = pod_name("pool", "job-uid")
    world.put_pod(name, claim="other")
    await cold(world)
    assert world.allocator.waiting_claims(POOL_UID) == ["job-uid"]
    await cold(world)
    assert len(world.pods) == 2
    assert world.reconciler.cold_starter.is_starting_cold(world.pool, CLAIM.uid)


async def test_a_cold_pod_that_no_watch_shows_any_more_is_made_again() -> None:
    world = World(replicas=0)
    world.watching = False
    await cold(world)
    (path,) = world.pods
    world.api.objects[path]["metadata"]["labels"] = {}
    await asyncio.sleep(VERIFY_AFTER_SECONDS + 1)
    await world.reconcile()
    assert not world.reconciler.cold_starter.is_starting_cold(world.pool, CLAIM.uid)
    assert world.pods == []
    await asyncio.sleep(2)
    await cold(world)
    (path,) = world.pods
    assert world.api.objects[path]["metadata"]["labels"]


async def test_a_quota_refuses_a_cold_pod_in_its_own_words() -> None:
    world = World(replicas=0)
    world.api.fail("POST", "/pods", QUOTA)
    await cold(world)
    refusal = await cold(world)
    assert refusal is not None
    assert refusal.reason is Reason.QUOTA_EXCEEDED
    await asyncio.sleep(5)
    assert await cold(world) is None
    assert len(world.pods) == 1


async def test_a_claim_that_is_deleted_while_its_cold_pod_is_refused_waits_no_longer() -> None:
    world = World(replicas=0)
    world.api.fail("POST", "/pods", QUOTA)
    world.deleted_claims.add(CLAIM.uid)
    await cold(world)
    assert world.allocator.waiting_claims(POOL_UID) == []


@pytest.mark.parametrize("error", [UNKNOWN, UNDECIDED])
@pytest.mark.parametrize("made", [False, True])
async def test_a_cold_create_that_nobody_answered_for_takes_its_room(
    error: KubeError, made: bool
) -> None:
    world = World(replicas=0, maxSandboxes=1)
    world.watching = False
    world.api.fail("POST", "/pods", error, times=2)
    world.api.fail("POST", "/pods", error, applied=made)
    await cold(world)
    assert world.reconciler.cold_starter.is_starting_cold(world.pool, CLAIM.uid)
    await asyncio.sleep(5)
    refusal = await cold(world, OTHER)
    assert refusal is not None
    assert refusal.reason is Reason.MAX_SANDBOXES_REACHED


# --- Rollouts in virtual time --------------------------------------------------------------------


class Kubelet:
    """Starts what was created, as a test says: after some seconds, with an end, or never."""

    def __init__(self, world: World, seconds: float | None, *, fails: bool = False) -> None:
        self.world = world
        self.seconds = seconds
        self.fails = fails
        self.born: dict[str, float] = {}

    def tick(self) -> None:
        now = self.world.wall()
        for path, body in list(self.world.api.objects.items()):
            if "/pods/" not in path or body.get("status") or self.seconds is None:
                continue
            if now - self.born.setdefault(path, now) < self.seconds:
                continue
            labels = body["metadata"]["labels"]
            outcome = {"phase": "Failed", "ready": False} if self.fails else {}
            new = pod_body(
                path.rpartition("/")[2],
                version=int(body["metadata"]["resourceVersion"]) + 100_000,
                revision=labels[names.LABEL_REVISION],
                **outcome,  # type: ignore[arg-type]
            )
            new["metadata"]["creationTimestamp"] = body["metadata"]["creationTimestamp"]
            self.world.api.put(path, new)


async def live(world: World, kubelet: Kubelet, seconds: float) -> list[int]:
    """Let time pass; return how many sandboxes were warm at each moment."""
    warm = []
    end = world.wall() + seconds
    due = world.wall()
    while world.wall() < end:
        kubelet.tick()
        if world.wall() >= due or world.pods:
            again = await world.reconcile()
            due = world.wall() + (again if again is not None else 5.0)
        warm.append(world.allocator.free(POOL_UID))
        await asyncio.sleep(1.0)
    return warm


def roll(world: World, **spec: Any) -> None:
    template = {"spec": {"containers": [{"name": "main", "image": "registry.example/a:2"}]}}
    body = pool_body(template=template, generation=2, version=900_000, **spec)
    body["status"] = world.api.objects[POOL].get("status", {})
    world.api.put(POOL, body)


@pytest.mark.parametrize(("unavailable", "floor"), [(1, 4), (2, 3)])
async def test_a_rollout_with_slow_starts_keeps_its_floor_and_ends(
    unavailable: int, floor: int
) -> None:
    fields: dict[str, Any] = {"replicas": 5, "update": {"maxUnavailable": unavailable}}
    world = World(**fields)
    kubelet = Kubelet(world, 10)
    await live(world, kubelet, 40)
    assert world.allocator.free(POOL_UID) == 5
    roll(world, **fields)
    warm = await live(world, kubelet, 240)
    assert min(warm) >= floor
    assert warm[-1] == 5
    assert world.condition("UpToDate")[0] == "True"
    assert (world.posted, len(world.api.sent("DELETE"))) == (10, 5)


@pytest.mark.parametrize(("seconds", "fails"), [(None, False), (0, True), (5, True)])
async def test_a_rollout_that_cannot_succeed_keeps_most_of_the_stock_and_is_no_storm(
    seconds: float | None, fails: bool
) -> None:
    fields: dict[str, Any] = {"replicas": 5, "startup": {"timeoutSeconds": 30}}
    world = World(**fields)
    await live(world, Kubelet(world, 0), 20)
    posted = world.posted
    roll(world, **fields)
    warm = await live(world, Kubelet(world, seconds, fails=fails), 600)
    assert min(warm) >= 4
    assert world.posted - posted < 40
    assert len(world.api.sent("DELETE")) < 40
    assert world.condition("Ready")[0] == "True"
    assert world.condition("Warm")[0] == "False"


async def test_a_pool_that_never_starts_anything_asks_for_little() -> None:
    world = World(replicas=20, startup={"timeoutSeconds": 30, "maxStarting": 10})
    await live(world, Kubelet(world, 1, fails=True), 600)
    assert world.posted < 60
    assert timestamp(world.wall())
    assert world.condition("Ready")[0] == "False"
