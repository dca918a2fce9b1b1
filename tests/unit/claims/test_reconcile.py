"""The reconciliation of claims: binding in two writes, failures of each, expiry and end."""

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
from sandboxpool.api.v1alpha1 import SandboxClaim
from sandboxpool.claims.reconcile import ClaimReconciler
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.pool import Pool
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.kube.errors import ApiError, KubeError
from sandboxpool.kube.events import EventRecorder
from sandboxpool.runtimes.evidence import Isolation
from sandboxpool.runtimes.probe import CONTROL
from sandboxpool.sandboxes.template import ClaimRef
from support.builders import (
    NAMESPACE,
    NOW,
    OWN_BOOT_ID,
    claim_body,
    evidence,
    node,
    pod_body,
    pool_body,
    probed,
    runtime,
    runtime_class,
)
from support.scriptedapi import BROKEN, CONFLICT, REFUSED, UNKNOWN, Call, ScriptedApi

pytestmark = pytest.mark.looptime

PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
CLAIMS = f"/apis/sandboxpool.io/v1alpha1/namespaces/{NAMESPACE}/sandboxclaims"
CLASSES = "/apis/node.k8s.io/v1/runtimeclasses"
NODE = "/api/v1/nodes/node-1"
POOL = f"/apis/sandboxpool.io/v1alpha1/namespaces/{NAMESPACE}/sandboxpools/pool"


class Cold:
    """Records requests for cold starts, and refuses them as a test says."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failed: list[str] = []
        self.starting: set[str] = set()
        self.refusal: Refusal | None = None

    def is_starting_cold(self, pool: Pool, claim_uid: str) -> bool:
        del pool
        return claim_uid in self.starting

    def request_cold_start(self, pool: Pool, claim: ClaimRef) -> Refusal | None:
        self.asked.append(f"{pool.name}/{claim.name}")
        return self.refusal

    def cold_start_failed(self, pool: Pool, message: str) -> None:
        self.failed.append(f"{pool.name}: {message}")


class Observer:
    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []

    def claim_bound(self, pool: Pool, source: str, seconds: float) -> None:
        del pool, seconds
        self.told.append(("bound", source))

    def claim_finished(self, namespace: str, pool: str, phase: str, reason: str) -> None:
        del namespace, pool
        self.told.append((phase, reason))


class World:
    """A claim reconciler with its caches, fed by the scripted API unless the watch is cut."""

    def __init__(self, *pods: str, **spec: Any) -> None:
        self.cluster = ClusterCache()
        self.claims: dict[tuple[str, str], SandboxClaim] = {}
        self.pools = PoolStore(lambda old, new: None)
        self.allocator = Allocator()
        self.granted: list[str] = []
        self.cold = Cold()
        self.observer = Observer()
        self.watching = True
        self.now = NOW
        self.api = ScriptedApi(lambda: self.now, self._changed)
        self.candidate_tracker = CandidateTracker(
            self.cluster,
            self.pools,
            self.allocator,
            is_deleting=lambda pool, pod: False,
            on_allocated=self.granted.append,
        )
        self.events = EventRecorder(self.api, "test", "test")
        self.reconciler = ClaimReconciler(
            client=self.api,
            get=lambda namespace, name: self.claims.get((namespace, name)),
            cluster=self.cluster,
            pools=self.pools,
            allocator=self.allocator,
            candidate_tracker=self.candidate_tracker,
            cold=self.cold,
            events=self.events,
            observer=self.observer,
            wall=lambda: self.now,
            clock=lambda: self.now,
        )
        self.cluster.classes["gvisor"] = runtime()
        self.cluster.nodes.put(None, node())
        self.api.objects[NODE] = msgspec.to_builtins(node())
        self.seeing_classes = True
        self.put_pool(**spec)
        for name in pods:
            self.put_pod(name)

    def _changed(self, path: str, old: Any, new: Any) -> None:
        if not self.watching:
            return
        if "/pods/" in path:
            before, after = _pod(old), _pod(new)
            self.cluster.pods.put(before, after)
            if after is None:
                self.allocator.release(old["metadata"]["uid"])
            else:
                self.candidate_tracker.refresh([after])
        elif "/sandboxclaims/" in path:
            was, is_now = _claim(old), _claim(new)
            key = (NAMESPACE, path.rpartition("/")[2])
            if is_now is None:
                self.claims.pop(key, None)
            else:
                self.claims[key] = is_now
            self.reconciler.observe_claim(was, is_now)

    def put_pool(self, **given: Any) -> None:
        self.pools.observe(self.api.put(POOL, pool_body(**given)))

    def change_pool_unseen(self, **given: Any) -> None:
        """The pool's spec changes, and the cache of pools does not show it."""
        self.api.put(POOL, pool_body(version=2, generation=2, **given))

    def put_pod(self, name: str, **given: Any) -> None:
        self.api.put(f"{PODS}/{name}", pod_body(name, **given))

    def put_claim(self, name: str = "claim", **given: Any) -> None:
        self.api.put(f"{CLAIMS}/{name}", claim_body(name, **given))

    async def reconcile(self, name: str = "claim") -> float | None:
        if self.seeing_classes:
            for known in self.cluster.classes.values():
                body = runtime_class(known.class_name, known.handler, uid=known.uid)
                self.api.objects[f"{CLASSES}/{known.class_name}"] = body
        return await self.reconciler.reconcile((NAMESPACE, name))

    def status(self, name: str = "claim") -> dict[str, Any]:
        return dict(self.api.objects[f"{CLAIMS}/{name}"]["status"])

    def pod(self, name: str) -> Any:
        return self.api.objects.get(f"{PODS}/{name}")

    def owner(self, name: str) -> str:
        (owner,) = self.pod(name)["metadata"]["ownerReferences"]
        return str(owner["name"])

    def condition(self, type_: str = "Bound", name: str = "claim") -> tuple[str, str]:
        (found,) = [c for c in self.status(name)["conditions"] if c["type"] == type_]
        return found["status"], found["reason"]


def _pod(body: Any) -> Pod | None:
    return None if body is None else msgspec.convert(body, Pod)


def _claim(body: Any) -> SandboxClaim | None:
    return None if body is None else msgspec.convert(body, SandboxClaim)


def claim_bound(pod: str = "pod-1", **more: Any) -> dict[str, Any]:
    return {
        "phase": "Bound",
        "podName": pod,
        "podUID": f"{pod}-uid",
        "source": "Warm",
        "boundAt": timestamp(NOW),
        **more,
    }


# --- The two writes ------------------------------------------------------------------------------


async def test_a_warm_claim_costs_exactly_two_writes_and_no_read() -> None:
    world = World("pod-1")
    world.put_claim()
    assert await world.reconcile() is None
    assert [(c.method, c.path) for c in world.api.calls] == [
        ("PATCH", f"{PODS}/pod-1"),
        ("PATCH", f"{CLAIMS}/claim/status"),
    ]
    assert world.owner("pod-1") == "claim"
    status = world.status()
    assert (status["phase"], status["podName"], status["source"]) == ("Bound", "pod-1", "Warm")
    assert status["runtime"] == {"className": "gvisor", "handler": "runsc"}
    assert world.observer.told == [("bound", "Warm")]


async def test_the_status_of_a_bound_claim_is_written_once() -> None:
    world = World("pod-1")
    world.put_claim()
    await world.reconcile()
    before = len(world.api.calls)
    for _ in range(3):
        assert await world.reconcile() is None
    assert len(world.api.calls) == before


async def test_the_first_write_is_conditional_on_the_observed_version_of_the_pod() -> None:
    world = World("pod-1")
    world.put_claim()
    await world.reconcile()
    (patch,) = world.api.sent("PATCH", "/pods/")
    assert patch.body["metadata"]["resourceVersion"] == "1"
    assert len(patch.body["metadata"]["ownerReferences"]) == 1


async def test_a_claim_adds_to_a_warm_pod_and_replaces_nothing_on_it() -> None:
    """The pod is of an older template with keys that the current one lacks."""
    world = World(claims={"allowedMetadataPrefixes": ["example.com/"]}, update={"type": "OnClaim"})
    older = pod_body("pod-1", revision="older")
    older["metadata"]["labels"]["example.com/network"] = "isolated"
    world.api.put(f"{PODS}/pod-1", older)
    wanted = {"example.com/network": "open", "example.com/job": "7"}
    world.put_claim(metadata={"labels": wanted, "annotations": wanted})
    await world.reconcile()
    assert world.status()["phase"] == "Bound"
    metadata = world.pod("pod-1")["metadata"]
    assert metadata["labels"].items() >= (wanted | {"example.com/network": "isolated"}).items()
    assert metadata["annotations"].items() >= wanted.items()


async def test_a_configuration_is_part_of_the_first_write() -> None:
    world = World()
    body = pod_body("pod-1")
    body["metadata"]["annotations"][names.ANNOTATION_CONFIG_PATH] = "/run/sandbox"
    world.api.put(f"{PODS}/pod-1", body)
    world.put_claim(config={"task": "7"})
    await world.reconcile()
    assert world.status()["phase"] == "Bound"
    assert [c.method for c in world.api.calls] == ["PATCH", "PATCH"]
    annotations = world.pod("pod-1")["metadata"]["annotations"]
    assert annotations[names.ANNOTATION_CONFIG] == '{"task":"7"}'


async def test_a_pod_that_never_shows_a_configuration_is_left_to_claims_without_one() -> None:
    """It was made before the pool had a place for it, and OnClaim keeps it."""
    world = World("pod-1", update={"type": "OnClaim"})
    world.put_claim(config={"task": "7"}, bindTimeoutSeconds=30)
    delay = await world.reconcile()
    assert delay is not None
    assert delay <= 2.0
    assert world.owner("pod-1") == "pool"
    (waits, _) = world.status()["conditions"]
    assert (world.status()["phase"], waits["reason"]) == ("Pending", "ConfigNotMounted")
    world.put_claim("plain")
    await world.reconcile("plain")
    assert world.owner("pod-1") == "plain"
    world.put_pod("pod-2")
    world.now += 31
    await world.reconcile()
    failed = world.status()
    assert (failed["phase"], failed["conditions"][0]["reason"]) == ("Failed", "BindTimeout")
    assert "made without the volume" in failed["conditions"][0]["message"]


async def test_after_a_conflict_the_binding_is_retried_on_the_current_pod() -> None:
    world = World("pod-1", "pod-2")
    world.api.touch(f"{PODS}/pod-1")
    world.put_claim()
    await world.reconcile()
    assert [c.path for c in world.api.sent("GET")] == [f"{PODS}/pod-1"]
    assert world.status()["podName"] == "pod-1"
    assert world.owner("pod-2") == "pool"


async def test_after_repeated_conflicts_the_next_pod_is_tried() -> None:
    world = World("pod-1", "pod-2")

    def touch(call: Call) -> None:
        if call.method == "PATCH" and call.path.endswith("/pod-1"):
            world.api.touch(f"{PODS}/pod-1")

    world.api.before = touch
    world.put_claim()
    await world.reconcile()
    assert len(world.api.sent("PATCH", "/pod-1")) == 2
    assert world.status()["podName"] == "pod-2"
    assert world.owner("pod-1") == "pool"
    assert world.allocator.free("pool-uid") == 0, "the watch has not shown what it is now"
    world.put_pod("pod-1", version=9999)
    assert world.allocator.free("pool-uid") == 1


async def test_for_a_pod_that_has_become_unready_the_next_pod_is_tried() -> None:
    world = World("pod-1", "pod-2")
    world.api.objects[f"{PODS}/pod-1"] = pod_body("pod-1", ready=False, version=9)
    world.put_claim()
    await world.reconcile()
    assert len(world.api.sent("PATCH", "/pod-1")) == 1
    assert world.status()["podName"] == "pod-2"


async def test_a_change_of_the_reserved_pod_in_the_queue_costs_no_request() -> None:
    world = World()
    world.put_claim()
    await world.reconcile()
    world.put_pod("pod-1")
    assert world.granted == ["claim-uid"]
    world.put_pod("pod-1", version=7)
    await world.reconcile()
    assert world.status()["podName"] == "pod-1"
    assert [c.method for c in world.api.calls] == ["PATCH", "PATCH"]


async def test_an_unknown_outcome_that_was_a_success_keeps_the_pod() -> None:
    world = World("pod-1", "pod-2")
    world.api.fail("PATCH", "/pods/", UNKNOWN, applied=True)
    world.put_claim()
    await world.reconcile()
    assert world.status()["podName"] == "pod-1"
    assert world.owner("pod-2") == "pool"
    assert len(world.api.sent("PATCH", "/pods/")) == 1


@pytest.mark.parametrize("error", [UNKNOWN, BROKEN])
@pytest.mark.parametrize("on_empty", ["Wait", "Fail"])
async def test_while_a_binding_may_still_arrive_no_other_pod_is_tried(
    error: KubeError, on_empty: str
) -> None:
    world = World("pod-1", "pod-2")
    world.api.fail("PATCH", "/pods/", error, times=2)
    world.put_claim(onEmpty=on_empty)
    for _ in range(2):
        with pytest.raises(KubeError):
            await world.reconcile()
    await world.reconcile()
    assert {c.path for c in world.api.sent("PATCH", "/pods/")} == {f"{PODS}/pod-1"}
    assert world.status()["podName"] == "pod-1"
    assert world.owner("pod-2") == "pool"


async def test_the_next_attempt_finds_a_binding_that_arrived_late() -> None:
    world = World("pod-1", "pod-2")
    world.api.fail("PATCH", "/pods/", UNKNOWN)
    world.put_claim()
    with pytest.raises(KubeError):
        await world.reconcile()
    (late,) = world.api.sent("PATCH", "/pods/")
    await world.api.merge_patch(late.path, late.body)
    await world.reconcile()
    assert world.status()["podName"] == "pod-1"
    assert world.owner("pod-2") == "pool"


async def test_a_pod_with_an_unknown_binding_is_free_when_its_claim_is_deleted() -> None:
    world = World("pod-1")
    world.api.fail("PATCH", "/pods/", UNKNOWN)
    world.put_claim()
    with pytest.raises(KubeError):
        await world.reconcile()
    assert world.allocator.is_allocated("pod-1-uid")
    world.api.remove(f"{CLAIMS}/claim")
    assert world.allocator.free("pool-uid") == 1


async def test_a_pod_that_another_claim_owns_is_not_taken() -> None:
    world = World("pod-1")
    world.watching = False
    world.api.objects[f"{PODS}/pod-1"] = pod_body("pod-1", claim="other", version=9)
    world.watching = True
    world.put_claim()
    await world.reconcile()
    assert world.owner("pod-1") == "other"
    assert world.allocator.waiting("pool-uid") == 1


async def test_while_the_owner_of_the_pod_is_unknown_the_reservation_is_kept() -> None:
    world = World("pod-1", "pod-2")
    world.api.fail("PATCH", "/pods/", UNKNOWN)
    world.api.fail("GET", "/pods/", UNKNOWN, times=99)
    world.put_claim()
    with pytest.raises(KubeError):
        await world.reconcile()
    assert world.allocator.is_allocated("pod-1-uid")
    assert world.pod("pod-2")["metadata"]["resourceVersion"] == "1"
    assert world.status() == {}


@pytest.mark.parametrize("remade", [False, True])
async def test_the_pod_of_a_claim_that_is_deleted_before_the_second_write_is_deleted(
    remade: bool,
) -> None:
    world = World("pod-1")
    world.put_claim()

    def vanish(call: Call) -> None:
        if call.path.endswith("/status"):
            world.watching = False
            del world.api.objects[f"{CLAIMS}/claim"]
            if remade:
                world.api.objects[f"{CLAIMS}/claim"] = claim_body(uid="another")
            world.watching = True

    world.api.before = vanish
    await world.reconcile()
    (delete,) = world.api.sent("DELETE")
    assert delete.path == f"{PODS}/pod-1"
    assert set(delete.body["preconditions"]) == {"uid", "resourceVersion"}
    assert world.pod("pod-1") is None
    if remade:
        assert world.status() == {}


async def test_a_claim_that_is_deleted_during_the_first_write_gets_no_second_pod() -> None:
    world = World("pod-1", "pod-2")
    world.put_claim()

    def delete_claim(call: Call) -> None:
        if call.method == "PATCH" and "/pods/" in call.path:
            world.api.before = lambda call: None
            world.api.remove(f"{CLAIMS}/claim")

    world.api.before = delete_claim
    world.api.fail("PATCH", "/pods/", CONFLICT)
    await world.reconcile()
    assert len(world.api.sent("PATCH", "/pods/")) == 1
    assert not world.allocator.is_allocated("pod-1-uid")
    assert world.owner("pod-2") == "pool"


async def test_after_a_crash_between_the_writes_the_same_pod_is_bound() -> None:
    world = World("pod-2")
    world.put_pod("pod-1", claim="claim")
    world.put_claim()
    await world.reconcile()
    assert world.status()["podName"] == "pod-1"
    assert not world.api.sent("PATCH", "/pods/")


@pytest.mark.parametrize("watching", [True, False])
async def test_a_failed_second_write_never_costs_a_second_pod(watching: bool) -> None:
    world = World("pod-1", "pod-2")
    world.put_claim()
    world.api.fail("PATCH", "/status", BROKEN, times=4)
    world.watching = watching
    with pytest.raises(ApiError):
        await world.reconcile()
    await world.reconcile()
    assert world.owner("pod-2") == "pool"
    assert world.status()["podName"] == "pod-1"


async def test_a_second_pod_of_a_claim_is_deleted_and_the_named_one_kept() -> None:
    world = World()
    world.put_pod("pod-1", claim="claim", age=10)
    world.put_pod("pod-2", claim="claim", age=99)
    world.put_claim(status=claim_bound("pod-1"))
    await world.reconcile()
    assert world.pod("pod-1") is not None
    assert world.pod("pod-2") is None


# --- Nothing newer is overwritten ----------------------------------------------------------------


def meanwhile(world: World, change: Callable[[], None]) -> None:
    """Apply a change right before the next write of the claim's status arrives."""

    def before(call: Call) -> None:
        if call.write and call.path.endswith("/status"):
            world.api.before = lambda call: None
            change()

    world.api.before = before


def told_by_another(world: World, **status: Any) -> None:
    """Write as another process, before the cache shows it."""
    path = f"{CLAIMS}/claim"
    world.api.touch(path)
    world.api.objects[path]["status"] = status


async def test_an_edit_by_the_owner_does_not_prevent_the_bound_status() -> None:
    world = World("pod-1", "pod-2")
    world.put_claim()
    meanwhile(world, lambda: world.api.touch(f"{CLAIMS}/claim", labels={"a": "b"}))
    await world.reconcile()
    assert world.status()["podName"] == "pod-1"
    assert world.owner("pod-2") == "pool"
    assert world.observer.told == [("bound", "Warm")]


@pytest.mark.parametrize("pod", ["pod-1", "pod-9"], ids=["same", "other"])
async def test_a_status_that_another_process_has_written_is_kept(pod: str) -> None:
    world = World("pod-1")
    world.put_claim()
    theirs = claim_bound(pod, boundAt=timestamp(NOW - 5))
    meanwhile(world, lambda: told_by_another(world, **theirs))
    await world.reconcile()
    assert world.status() == theirs
    # Which of two it keeps is decided with both in sight.
    assert world.owner("pod-1") == "claim"
    assert world.observer.told == []


@pytest.mark.parametrize("amiss", [{}, {"class_name": "runc"}])
async def test_no_pod_is_deleted_that_another_process_has_just_bound(
    amiss: dict[str, str],
) -> None:
    """One of two pods, or one that would not be bound now."""
    world = World()
    if not amiss:
        world.put_pod("pod-1", claim="claim", age=99)
    world.put_pod("pod-2", claim="claim", age=10, **amiss)
    world.put_claim()
    told_by_another(world, **claim_bound("pod-2"))
    assert await world.reconcile() == 2
    assert world.pod("pod-2") is not None


async def test_a_claim_that_another_process_has_bound_does_not_fail() -> None:
    world = World()
    world.put_claim(bindTimeoutSeconds=10)
    world.now += 11
    meanwhile(world, lambda: told_by_another(world, **claim_bound()))
    await world.reconcile()
    assert world.status() == claim_bound()
    assert world.observer.told == []


async def test_a_claim_that_another_process_has_bound_does_not_wait() -> None:
    world = World()
    world.put_claim(onEmpty="Create")
    world.cold.refusal = Refusal(Reason.MAX_SANDBOXES_REACHED, "no room: wait")
    meanwhile(world, lambda: told_by_another(world, **claim_bound()))
    await world.reconcile()
    assert world.status() == claim_bound()


async def test_a_finished_claim_is_not_bound_again() -> None:
    world = World()
    world.put_pod("pod-1", claim="claim", ready=False)
    world.put_claim(status=claim_bound())
    ended = {"phase": "Expired", "finishedAt": timestamp(NOW)}
    meanwhile(world, lambda: told_by_another(world, **ended))
    await world.reconcile()
    assert world.status() == ended


async def test_an_invalid_status_is_a_refusal() -> None:
    world = World("pod-1")
    world.put_claim()
    invalid = ApiError(422, "Invalid", "status.phase: unsupported value")
    world.api.fail("PATCH", "/status", invalid)
    again = await world.reconcile()
    assert world.status()["phase"] == "Pending"
    assert "unsupported value" in world.status()["conditions"][0]["message"]
    assert again is not None
    world.now += again
    await world.reconcile()
    assert world.status()["podName"] == "pod-1"


async def test_the_status_of_a_claim_that_changes_too_fast_is_written_later() -> None:
    world = World("pod-1", "pod-2")
    world.put_claim()

    def touch(call: Call) -> None:
        if call.write and call.path.endswith("/status"):
            world.api.touch(f"{CLAIMS}/claim")

    world.api.before = touch
    with pytest.raises(KubeError):
        await world.reconcile()
    world.api.before = lambda call: None
    await world.reconcile()
    assert world.status()["podName"] == "pod-1"
    assert world.owner("pod-2") == "pool"


async def test_an_end_whose_write_got_no_response_is_reported_once() -> None:
    world = World()
    world.put_claim(bindTimeoutSeconds=10)
    world.now += 11
    world.api.fail("PATCH", "/status", UNKNOWN, applied=True)
    await world.reconcile()
    assert world.observer.told == [("Failed", "BindTimeout")]


# --- Pods must not be lost to everybody ----------------------------------------------------------


async def next_claim_gets(world: World, pod: str) -> bool:
    world.put_claim("next")
    await world.reconcile("next")
    return world.status("next").get("podName") == pod


async def test_a_conflict_on_an_unchanged_pod_is_a_refusal() -> None:
    world = World("pod-1")
    world.put_claim(onEmpty="Fail")
    world.api.fail("PATCH", "/pods/", CONFLICT, times=2)
    again = await world.reconcile()
    assert world.condition() == ("False", "BindingRefused")
    assert again is not None
    world.now += again
    await world.reconcile()
    assert world.status()["podName"] == "pod-1"


async def refused(world: World, times: int) -> None:
    """Have the binding refused this many times, each time when its retry is due."""
    world.api.fail("PATCH", "/pods/", REFUSED, times=times)
    for _ in range(times):
        again = await world.reconcile()
        assert again is not None
        world.now += again


async def test_after_the_first_refusal_a_claim_keeps_its_pod() -> None:
    world = World("pod-1", "pod-2")
    world.put_claim()
    await refused(world, 1)
    assert world.allocator.free("pool-uid") == 1
    assert world.condition() == ("False", "BindingRefused")
    await world.reconcile()
    assert world.status()["phase"] == "Bound"


async def test_after_more_refusals_a_claim_releases_its_pod_to_the_next_claim() -> None:
    world = World("pod-1")
    world.put_claim()
    await refused(world, 1)
    world.put_claim("next")
    await world.reconcile("next")
    await refused(world, 1)
    assert world.granted == ["next-uid"]
    await world.reconcile("next")
    assert world.status("next")["podName"] == "pod-1"
    await world.reconcile()
    assert world.allocator.waiting("pool-uid") == 1, "it stands in line like all others"
    world.put_pod("pod-2")
    await world.reconcile()
    assert world.status()["podName"] == "pod-2"


async def test_a_refused_binding_backs_off_whatever_enqueues_the_claim() -> None:
    world = World("pod-1")
    world.put_claim(bindTimeoutSeconds=600)
    world.api.fail("PATCH", "/pods/", REFUSED, times=9)
    delays = []
    for tries in range(1, 6):
        delays.append(await world.reconcile())
        assert await world.reconcile() == delays[-1], "its own status has woken it"
        assert len(world.api.sent("PATCH", "/pods/")) == tries
        world.now += delays[-1] or 0
    assert delays == [0.25, 1, 4, 16, 60]
    assert len(world.api.sent("PATCH", "/status")) == 1


async def test_a_claim_whose_binding_is_refused_times_out_with_the_refusal() -> None:
    world = World("pod-1")
    world.put_claim(bindTimeoutSeconds=10)
    world.api.fail("PATCH", "/pods/", REFUSED, times=9)
    while world.status().get("phase") in (None, "Pending"):
        again = await world.reconcile()
        world.now += again or 0
    assert world.now == NOW + 10
    assert world.condition() == ("False", "BindTimeout")
    assert "denied by policy" in world.status()["conditions"][0]["message"]
    world.api._failures.clear()
    assert await next_claim_gets(world, "pod-1")


async def test_an_overload_is_not_a_refusal() -> None:
    world = World("pod-1")
    world.put_claim()
    world.api.fail("PATCH", "/pods/", ApiError(429, "TooManyRequests", "wait", 0.01), times=9)
    with pytest.raises(ApiError):
        await world.reconcile()
    assert world.status() == {}


async def test_a_pod_that_was_reserved_in_time_is_bound_after_the_deadline() -> None:
    world = World()
    world.put_claim(bindTimeoutSeconds=10)
    await world.reconcile()
    world.put_pod("pod-1")
    assert world.granted == ["claim-uid"]
    world.now += 11
    await world.reconcile()
    assert world.status()["podName"] == "pod-1"


async def test_after_the_deadline_one_binding_is_tried_and_the_pod_released() -> None:
    world = World("pod-1")
    world.put_claim(bindTimeoutSeconds=10)
    world.now += 11
    world.api.fail("PATCH", "/pods/", UNKNOWN, times=9)
    assert await world.reconcile() == 0.05
    await world.reconcile()
    assert world.status()["phase"] == "Failed"
    world.api._failures.clear()
    assert await next_claim_gets(world, "pod-1")


async def test_a_claim_whose_cold_pod_may_exist_gets_no_warm_pod() -> None:
    world = World("pod-1")
    world.cold.starting.add("claim-uid")
    world.put_claim(onEmpty="Create")
    await world.reconcile()
    assert world.cold.asked == []
    assert world.allocator.free("pool-uid") == 1


async def test_a_claim_that_has_a_pod_leaves_the_queue() -> None:
    world = World()
    world.put_claim()
    await world.reconcile()
    world.put_pod("pod-1", claim="claim")  # a write that arrived late
    await world.reconcile()
    assert world.status()["phase"] == "Bound"
    world.put_pod("pod-2")
    assert await next_claim_gets(world, "pod-2")


async def test_a_claim_gets_no_pod_of_a_deleted_pool_of_the_same_name() -> None:
    world = World()
    world.put_claim()
    await world.reconcile()
    world.put_pod("former")
    assert world.granted == ["claim-uid"]
    world.put_pool(uid="pool-uid-2", version=50)
    world.allocator.forget_pool("pool-uid")
    await world.reconcile()
    assert not world.api.writes
    assert world.allocator.waiting("pool-uid-2") == 1
    assert list(world.allocator._pool_states) == ["pool-uid-2"]


async def test_a_pool_that_is_recreated_during_a_binding_is_detected() -> None:
    world = World("former", "former-2")
    world.put_claim()

    def make_again(call: Call) -> None:
        if call.method == "PATCH" and "/pods/" in call.path:
            world.api.touch(call.path)
            world.put_pool(uid="pool-uid-2", version=50)
            world.allocator.forget_pool("pool-uid")

    world.api.before = make_again
    assert await world.reconcile() == 0.0
    await world.reconcile()
    assert len(world.api.sent("PATCH", "/pods/")) == 1
    assert world.allocator.waiting("pool-uid-2") == 1
    assert list(world.allocator._pool_states) == ["pool-uid-2"]


# --- Caches that are behind ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asserted", "now"),
    [
        ({"runtimeClassName": "kata"}, {"runtimeClassName": "kata"}),
        ({"isolationProof": "PerSandbox"}, {"isolationProof": "PerSandbox"}),
        (
            {"metadata": {"labels": {"example.com/a": "b"}}},
            {"claims": {"allowedMetadataPrefixes": ["example.com/"]}},
        ),
        ({"runtimeClassName": "kata"}, {"deleting": True}),
    ],
    ids=["class", "proof", "metadata", "pool that goes"],
)
async def test_no_claim_fails_because_of_a_stale_pool(
    asserted: dict[str, Any], now: dict[str, Any]
) -> None:
    world = World("pod-1")
    world.change_pool_unseen(**now)
    world.put_claim(**asserted)
    assert await world.reconcile() == 1.0
    assert not world.api.writes


def _remake_class(world: World) -> None:
    world.seeing_classes = False
    world.api.objects[f"{CLASSES}/gvisor"] = runtime_class(uid="remade")


def _make_pod(world: World) -> None:
    world.watching = False
    world.put_pod("pod-1", version=2)
    world.watching = True


def _make_ready(world: World) -> None:
    world.put_pod("pod-1", ready=False)
    _make_pod(world)


def _mend_node(world: World) -> None:
    world.cluster.nodes.put(node(), node(ready=False, version=2))
    world.put_pod("pod-1")


@pytest.mark.parametrize(
    "behind",
    [
        lambda world: world.change_pool_unseen(replicas=5),
        _remake_class,
        _make_pod,
        _make_ready,
        _mend_node,
    ],
    ids=["pool", "class", "pods", "readiness", "node"],
)
async def test_no_claim_fails_because_a_cache_lacks_a_sandbox(
    behind: Callable[[World], object],
) -> None:
    world = World()
    behind(world)
    world.put_claim(onEmpty="Fail")
    assert await world.reconcile() == 1.0
    assert not world.api.writes


async def test_a_claim_that_is_deleted_while_sandboxes_are_looked_for_reserves_none() -> None:
    world = World()
    world.put_claim(onEmpty="Fail")

    def delete_claim_and_start_pod(call: Call) -> None:
        if call.path == PODS:
            world.api.before = lambda call: None
            world.api.remove(f"{CLAIMS}/claim")
            world.put_pod("pod-1")

    world.api.before = delete_claim_and_start_pod
    await world.reconcile()
    assert world.allocator.pool_of("claim-uid") is None
    world.put_claim("next", uid="next-uid")
    await world.reconcile("next")
    assert world.status("next")["podName"] == "pod-1"


@pytest.mark.parametrize(
    "given", [{"ready": False}, {"claim": "other"}, {"deleting": True}, {"pool_uid": "other"}]
)
async def test_a_sandbox_that_is_not_allocatable_is_not_waited_for(given: dict[str, Any]) -> None:
    world = World()
    world.watching = False
    world.put_pod("pod-1", **given)
    world.watching = True
    world.put_claim(onEmpty="Fail")
    await world.reconcile()
    assert world.condition() == ("False", "NoWarmSandbox")


async def test_a_sandbox_that_is_reserved_for_another_claim_is_not_waited_for() -> None:
    world = World("pod-1")
    world.allocator.allocate("pool-uid", "another")
    world.put_claim(onEmpty="Fail")
    await world.reconcile()
    assert world.condition() == ("False", "NoWarmSandbox")


@pytest.mark.parametrize("source", ["Warm", "Cold"])
async def test_no_pod_of_a_claim_is_deleted_because_of_a_stale_pool(source: str) -> None:
    world = World()
    world.put_claim(onEmpty="Create")
    world.put_pod("own", claim="claim", source=source, age=0)
    change_the_pools_class(world)
    # It was changed back, which the cache of pools does not show yet.
    world.api.put(POOL, pool_body(version=3, generation=3))
    await world.reconcile()
    assert world.pod("own") is not None
    assert not world.cold.failed


async def test_a_finished_claim_is_retained_by_its_current_pools_rule() -> None:
    world = World(claims={"ttlSecondsAfterFinished": 10})
    world.put_claim(status={"phase": "Failed", "finishedAt": timestamp(NOW)})
    world.change_pool_unseen(claims={"ttlSecondsAfterFinished": 100})
    world.now += 10
    assert await world.reconcile() == 90
    assert not world.api.writes


async def test_a_claim_may_be_prolonged_to_the_current_limit_of_its_pool() -> None:
    world = World("pod-1", claims={"maxTTLSeconds": 10})
    world.change_pool_unseen(claims={"maxTTLSeconds": 1000})
    prolonged = claim_bound(expiresAt=timestamp(NOW + 10), observedGeneration=0)
    world.put_claim(ttlSeconds=500, status=prolonged)
    world.now += 10
    assert await world.reconcile() == 490
    assert world.status()["phase"] == "Bound"
    assert world.status()["expiresAt"] == timestamp(NOW + 500)


async def test_a_claim_with_finalizers_keeps_its_pod_by_its_current_pools_rule() -> None:
    world = World(claims={"ttlSecondsAfterFinished": 10})
    world.put_pod("pod-1", claim="claim")
    world.put_claim(deleting=True, status=claim_bound(observedGeneration=1))
    world.change_pool_unseen(claims={"ttlSecondsAfterFinished": 100})
    world.now += 10
    assert await world.reconcile() == 90
    assert not world.api.writes


# --- An empty pool -------------------------------------------------------------------------------


async def test_waiting_costs_no_write_and_ends_with_the_first_pod() -> None:
    world = World()
    world.put_claim()
    assert await world.reconcile() == 300
    assert not world.api.calls
    world.put_pod("pod-1")
    assert world.granted == ["claim-uid"]
    await world.reconcile()
    assert world.status()["podName"] == "pod-1"


async def test_with_on_empty_fail_a_claim_fails_at_once_and_is_not_queued() -> None:
    world = World()
    world.put_claim(onEmpty="Fail")
    await world.reconcile()
    assert world.status()["phase"] == "Failed"
    assert world.condition() == ("False", "NoWarmSandbox")
    assert world.allocator.waiting("pool-uid") == 0
    assert world.observer.told == [("Failed", "NoWarmSandbox")]


async def test_with_on_empty_create_a_cold_start_is_requested_and_reported_once() -> None:
    world = World()
    world.put_claim(onEmpty="Create")
    await world.reconcile()
    assert world.cold.asked == ["pool/claim"]
    assert world.allocator.waiting("pool-uid") == 1, "until the pool says that it is its turn"
    world.cold.starting.add("claim-uid")
    for _ in range(3):
        await world.reconcile()
    assert world.condition() == ("False", "StartingCold")
    assert len(world.api.writes) == 1
    assert world.allocator.waiting("pool-uid") == 0


async def test_a_cold_start_without_room_is_queued_and_reported() -> None:
    world = World()
    world.cold.refusal = Refusal(Reason.MAX_SANDBOXES_REACHED, "no room: wait")
    world.put_claim(onEmpty="Create")
    await world.reconcile()
    assert world.condition() == ("False", "MaxSandboxesReached")
    assert world.allocator.waiting("pool-uid") == 1


async def test_a_claim_that_waits_for_room_keeps_its_place_in_the_queue() -> None:
    world = World()
    world.cold.refusal = Refusal(Reason.MAX_SANDBOXES_REACHED, "no room: wait")
    world.put_claim("first", onEmpty="Create")
    world.put_claim("second")
    await world.reconcile("first")
    await world.reconcile("second")
    world.now += 10
    await world.reconcile("first")
    world.put_pod("pod-1")
    assert world.granted == ["first-uid"]


async def test_a_cold_pod_is_bound_when_it_is_ready() -> None:
    world = World()
    world.put_claim(onEmpty="Create")
    world.put_pod("cold", claim="claim", source="Cold", ready=False, phase="Pending", age=0)
    await world.reconcile()
    assert world.status() == {}
    world.put_pod("cold", claim="claim", source="Cold", version=2, age=0)
    await world.reconcile()
    assert (world.status()["phase"], world.status()["source"]) == ("Bound", "Cold")


async def test_a_cold_pod_that_ends_before_it_is_bound_is_replaced() -> None:
    world = World()
    world.put_claim(onEmpty="Create")
    world.put_pod("cold", claim="claim", source="Cold", ready=False, phase="Failed", age=25)
    await world.reconcile()
    assert world.pod("cold") is None
    assert len(world.cold.failed) == 1
    await world.reconcile()
    assert world.cold.asked == ["pool/claim"]


async def test_a_claim_that_times_out_fails_with_the_pools_ready_message() -> None:
    status = {"conditions": [{"type": "Ready", "status": "False", "message": "no node serves it"}]}
    world = World(status=status)
    world.put_claim(bindTimeoutSeconds=10)
    await world.reconcile()
    world.now += 11
    await world.reconcile()
    assert world.condition() == ("False", "BindTimeout")
    assert "no node serves it" in world.status()["conditions"][0]["message"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"runtimeClassName": "kata"}, "RuntimeClassMismatch"),
        ({"metadata": {"labels": {"example.com/a": "b"}}}, "MetadataNotAllowed"),
    ],
)
async def test_a_claim_that_the_pool_refuses_fails_and_gets_no_pod(
    fields: dict[str, Any], reason: str
) -> None:
    world = World("pod-1")
    world.put_claim(**fields)
    await world.reconcile()
    assert world.condition() == ("False", reason)
    assert world.allocator.free("pool-uid") == 1


async def test_a_claim_of_a_missing_pool_waits_for_it() -> None:
    world = World("pod-1")
    world.put_claim(pool="other")
    assert await world.reconcile() == 300
    assert world.condition() == ("False", "PoolNotFound")
    assert world.status()["phase"] == "Pending"


# --- What a sandbox stands on --------------------------------------------------------------------


def quarantine(world: World) -> None:
    at = world.cluster.nodes.get("node-1")
    assert at is not None
    assert world.cluster.quarantines.record_failure(
        at, "runsc", Reason.SHIM_MISSING, "no shim", now=NOW
    )


def learn(world: World, isolation: Isolation, message: str = "seen") -> None:
    world.cluster.evidence.put("node-1", CONTROL, evidence(Isolation.NOT_PROVEN))
    world.cluster.evidence.put("node-1", "runsc", evidence(isolation, message=message))


def remake_class(world: World) -> None:
    world.cluster.classes["gvisor"] = runtime(uid="remade")


def lose_class(world: World) -> None:
    del world.cluster.classes["gvisor"]


def pin_another(world: World) -> None:
    world.pools.observe(pool_body(version=2, generation=2, expectedHandler="kata"))


def change_the_pools_class(world: World) -> None:
    world.cluster.classes["runc"] = runtime("runc", "runc", "runc-uid")
    world.put_pool(version=2, generation=2, runtimeClassName="runc")


async def test_a_cold_pod_waits_for_the_proof_that_its_pool_requires() -> None:
    world = World(isolationProof="PerNode")
    world.put_claim(onEmpty="Create")
    world.put_pod("cold", claim="claim", source="Cold", age=0)
    for isolation in (None, Isolation.UNAVAILABLE):
        if isolation is not None:
            learn(world, isolation)
        await world.reconcile()
        assert world.status() == {}
    learn(world, Isolation.PROVEN, "a kernel of its own")
    await world.reconcile()
    assert world.status()["phase"] == "Bound"
    assert world.status()["runtime"]["evidence"] == "a kernel of its own"


@pytest.mark.parametrize("read", [OWN_BOOT_ID, "no boot id"])
async def test_a_cold_pod_may_need_a_proof_of_its_own(read: str) -> None:
    world = World(isolationProof="PerSandbox")
    learn(world, Isolation.PROVEN)
    world.put_claim(onEmpty="Create")
    world.put_pod("cold", claim="claim", source="Cold", age=0)
    await world.reconcile()
    assert world.status() == {}
    answer = [probed(read)]
    world.put_pod("cold", claim="claim", source="Cold", age=0, initContainerStatuses=answer)
    await world.reconcile()
    assert (world.status().get("phase") == "Bound") == (read == OWN_BOOT_ID)


async def test_a_cold_pod_without_proof_is_not_waited_for_for_ever() -> None:
    world = World(isolationProof="PerNode")
    world.put_claim(onEmpty="Create", bindTimeoutSeconds=30)
    world.put_pod("cold", claim="claim", source="Cold", age=0)
    again = await world.reconcile()
    assert again == 30
    world.now += again
    for _ in range(2):
        await world.reconcile()
    assert world.condition() == ("False", "BindTimeout")
    await world.reconcile()
    assert world.pod("cold") is None


async def test_a_cold_pod_without_proof_is_replaced_like_one_that_does_not_start() -> None:
    world = World(isolationProof="PerNode", startup={"timeoutSeconds": 20})
    world.put_claim(onEmpty="Create")
    world.put_pod("cold", claim="claim", source="Cold", age=0)
    await world.reconcile()
    world.now += 20
    await world.reconcile()
    assert world.pod("cold") is not None
    world.now += 1
    await world.reconcile()
    assert world.pod("cold") is None
    assert len(world.cold.failed) == 1


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize(
    "happens",
    [
        quarantine,
        lambda world: learn(world, Isolation.NOT_PROVEN),
        remake_class,
        change_the_pools_class,
    ],
    ids=["quarantine", "not isolating", "class remade", "pool of another class"],
)
async def test_a_cold_pod_that_must_not_be_bound_is_replaced(
    happens: Callable[[World], None], ready: bool
) -> None:
    world = World(isolationProof="PerNode")
    learn(world, Isolation.PROVEN)
    world.put_claim(onEmpty="Create")
    world.put_pod("cold", claim="claim", source="Cold", ready=ready, age=0)
    happens(world)
    await world.reconcile()
    assert world.pod("cold") is None
    assert world.status().get("phase") != "Bound"
    assert len(world.cold.failed) == 1
    await world.reconcile()
    assert world.cold.asked == ["pool/claim"]


@pytest.mark.parametrize("happens", [lose_class, pin_another], ids=["class lost", "class pinned"])
async def test_while_its_class_is_not_usable_a_cold_pod_is_not_bound(
    happens: Callable[[World], None],
) -> None:
    """It is kept: the class may come back as it was."""
    world = World()
    world.put_claim(onEmpty="Create")
    world.put_pod("cold", claim="claim", source="Cold", age=0)
    happens(world)
    await world.reconcile()
    assert world.pod("cold") is not None
    assert world.status() == {}
    world.cluster.classes["gvisor"] = runtime()
    world.pools.observe(pool_body(version=3, generation=3))
    await world.reconcile()
    assert world.status()["phase"] == "Bound"


async def test_a_cold_pod_that_admission_gave_another_class_is_not_bound() -> None:
    world = World()
    world.put_claim(onEmpty="Create")
    world.put_pod("cold", claim="claim", source="Cold", class_name="runc", age=0)
    await world.reconcile()
    assert world.status().get("phase") != "Bound"
    assert world.pod("cold") is None


@pytest.mark.parametrize(
    "happens",
    [
        quarantine,
        lambda world: learn(world, Isolation.NOT_PROVEN),
        remake_class,
        lose_class,
        pin_another,
        change_the_pools_class,
    ],
)
async def test_a_reserved_pod_that_is_not_allocatable_any_more_is_not_bound(
    happens: Callable[[World], None],
) -> None:
    world = World(isolationProof="PerNode")
    learn(world, Isolation.PROVEN)
    world.put_pod("pod-1")
    world.put_claim()
    assert world.allocator.allocate("pool-uid", "claim-uid") is not None
    happens(world)
    await world.reconcile()
    assert not world.api.sent("PATCH", "/pods/")
    assert world.allocator.waiting("pool-uid") == 1


async def test_the_evidence_of_the_binding_stays_in_the_status() -> None:
    world = World(isolationProof="PerNode")
    learn(world, Isolation.PROVEN, "a kernel of its own")
    world.put_pod("pod-1")
    world.put_claim()
    await world.reconcile()
    assert world.status()["runtime"]["evidence"] == "a kernel of its own"
    learn(world, Isolation.NOT_PROVEN, "the node's kernel")
    world.pools.observe(pool_body(version=2, generation=2, isolationProof="None"))
    writes = len(world.api.writes)
    for _ in range(2):
        await world.reconcile()
    assert world.status()["runtime"]["evidence"] == "a kernel of its own"
    assert len(world.api.writes) == writes
    world.put_pod("pod-1", claim="claim", ready=False, version=99)
    await world.reconcile()
    assert world.status()["runtime"]["evidence"] == "a kernel of its own"


async def test_without_required_proof_the_status_has_no_evidence() -> None:
    world = World()
    learn(world, Isolation.PROVEN)
    world.put_pod("pod-1")
    world.put_claim()
    await world.reconcile()
    assert "evidence" not in world.status()["runtime"]


async def test_a_bound_claim_reports_the_loss_and_the_return_of_the_handler() -> None:
    world = World("pod-1")
    world.put_claim()
    await world.reconcile()
    world.cluster.nodes.put(node(), node(handlers=["runc"], version=2))
    await world.reconcile()
    assert world.condition("Ready") == ("False", "HandlerRemoved")
    assert world.condition("Bound")[0] == "True"
    assert world.pod("pod-1") is not None, "what runs in it may be of worth"
    world.cluster.nodes.put(node(version=2), node(version=3))
    await world.reconcile()
    assert world.condition("Ready") == ("True", "PodReady")


# --- Bound, expired, lost, retired ---------------------------------------------------------------


async def test_expiry_is_written_before_the_pod_is_deleted_and_on_the_observed_version() -> None:
    world = World()
    world.put_pod("pod-1", claim="claim")
    world.put_claim(ttlSeconds=60, status=claim_bound())
    due = await world.reconcile()
    assert due == 60
    world.now += 61
    world.api.calls.clear()
    await world.reconcile()
    (write,) = world.api.writes
    assert write.path.endswith("/claim/status")
    assert {step["path"] for step in write.body if step["op"] == "test"} == {
        "/metadata/uid",
        "/metadata/resourceVersion",
    }
    assert world.pod("pod-1") is not None
    await world.reconcile()
    assert world.status()["phase"] == "Expired"
    assert world.pod("pod-1") is None


async def test_a_claim_that_was_prolonged_meanwhile_does_not_expire() -> None:
    world = World()
    world.put_pod("pod-1", claim="claim")
    world.put_claim(ttlSeconds=60, status=claim_bound())
    world.api.touch(f"{CLAIMS}/claim")
    world.now += 61
    await world.reconcile()
    assert world.status()["phase"] == "Bound"
    assert world.observer.told == []


async def test_a_pod_that_only_lost_its_labels_is_not_lost() -> None:
    world = World()
    world.watching = False
    world.put_pod("pod-1")
    world.watching = True
    world.put_claim(status=claim_bound())
    await world.reconcile()
    assert world.status()["phase"] == "Bound"
    assert len(world.api.sent("GET", "/pods/")) == 1


@pytest.mark.parametrize("another", [False, True])
async def test_a_claim_is_lost_only_after_a_live_read(another: bool) -> None:
    world = World()
    if another:
        world.watching = False
        world.put_pod("pod-1", uid="another")
        world.watching = True
    world.put_claim(status=claim_bound())
    await world.reconcile()
    assert len(world.api.sent("GET", "/pods/pod-1")) == 1
    assert world.status()["phase"] == "Lost"
    assert world.status()["podName"] == "pod-1"


EVICTED = {
    "type": "DisruptionTarget",
    "status": "True",
    "reason": "EvictionByEvictionAPI",
    "message": "Eviction API: evicting",
}


def evict(world: World, *, leaving: bool = True) -> None:
    body = pod_body("pod-1", claim="claim", ready=False, deleting=leaving)
    body["status"]["conditions"].append(EVICTED)
    world.api.put(f"{PODS}/pod-1", body)


async def lose(world: World) -> None:
    """Delete the pod and let the watch deliver that."""
    last = world.cluster.pods.get("pod-1-uid")
    world.api.remove(f"{PODS}/pod-1")
    if last is not None:
        world.reconciler.observe_pod_deleted(last)
    await world.reconcile()


async def test_the_last_state_of_a_deleted_pod_is_why_its_claim_is_lost() -> None:
    world = World()
    world.put_pod("pod-1", claim="claim")
    world.put_claim(status=claim_bound())
    evict(world)
    # Before the claim was looked at again.
    await lose(world)
    assert world.condition() == ("False", "EvictionByEvictionAPI")
    assert world.condition("Ready") == ("False", "EvictionByEvictionAPI")
    assert world.observer.told == [("Lost", "EvictionByEvictionAPI")]


async def test_a_claim_reports_why_its_pod_terminates_and_the_next_process_reads_it() -> None:
    world = World()
    world.put_pod("pod-1", claim="claim")
    world.put_claim(status=claim_bound())
    evict(world)
    await world.reconcile()
    assert world.condition() == ("True", "SandboxBound")
    assert world.condition("Ready") == ("False", "EvictionByEvictionAPI")
    # Another process, which has never seen the pod.
    world.watching = False
    world.api.remove(f"{PODS}/pod-1")
    again = World()
    again.api.objects |= {k: v for k, v in world.api.objects.items() if "/pods/" not in k}
    again.put_claim(status=world.status())
    await again.reconcile()
    assert again.condition() == ("False", "EvictionByEvictionAPI")


@pytest.mark.parametrize(("node_gone", "reason"), [(False, "PodLost"), (True, "NodeLost")])
async def test_an_unobserved_loss_gets_no_invented_cause(node_gone: bool, reason: str) -> None:
    world = World()
    world.put_claim(status=claim_bound(nodeName="node-1"))
    if node_gone:
        del world.api.objects[NODE]
    await world.reconcile()
    assert world.condition() == ("False", reason)
    if not node_gone:
        assert "the cause is not known" in world.status()["conditions"][0]["message"]


async def test_the_end_of_another_pod_does_not_concern_the_claim() -> None:
    world = World()
    world.put_pod("pod-1", claim="claim")
    evict(world)
    world.put_claim(status=claim_bound("pod-2", nodeName="node-1"))
    await lose(world)
    assert world.condition() == ("False", "PodLost")


async def test_a_failed_read_is_not_a_loss() -> None:
    world = World()
    world.put_claim(status=claim_bound())
    world.api.fail("GET", "/pods/", BROKEN)
    with pytest.raises(ApiError):
        await world.reconcile()
    assert world.status()["phase"] == "Bound"


async def test_a_finished_pod_is_reported_with_its_cause_and_kept_for_its_logs() -> None:
    world = World()
    ended = {"name": "main", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
    world.put_pod("pod-1", claim="claim", ready=False, phase="Failed", containerStatuses=[ended])
    world.put_claim(status=claim_bound())
    await world.reconcile()
    await world.reconcile()
    assert world.status()["phase"] == "Lost"
    assert world.condition() == ("False", "OOMKilled")
    assert world.observer.told == [("Lost", "OOMKilled")]
    assert world.status()["conditions"][0]["message"].endswith("create a new claim")
    assert world.pod("pod-1") is not None


async def test_a_finished_claim_is_deleted_after_its_retention() -> None:
    world = World(claims={"ttlSecondsAfterFinished": 100})
    world.put_claim(status={"phase": "Failed", "finishedAt": timestamp(NOW)})
    assert await world.reconcile() == 100
    world.now += 100
    await world.reconcile()
    (delete,) = world.api.sent("DELETE")
    assert delete.body["preconditions"] == {"uid": "claim-uid"}


async def test_a_terminating_claim_is_not_written() -> None:
    world = World("pod-1")
    world.put_claim(deleting=True)
    assert await world.reconcile() is None
    assert not world.api.calls


async def test_the_sweep_deletes_pods_of_claims_that_the_server_does_not_know() -> None:
    world = World()
    world.put_pod("orphan", claim="gone")
    world.put_pod("remade", claim="remade", claim_uid="former-uid")
    world.put_pod("kept", claim="claim")
    world.watching = False
    world.put_claim("unseen")
    world.watching = True
    world.put_pod("young", claim="unseen")
    world.put_claim()
    world.put_claim("remade")
    await world.reconciler.sweep()
    assert sorted(p.rpartition("/")[2] for p in world.api.objects if "/pods/" in p) == [
        "kept",
        "young",
    ]
    assert f"{CLAIMS}/claim" not in [c.path for c in world.api.sent("GET")]


# --- Whose a pod is ------------------------------------------------------------------------------


async def test_a_pod_of_another_namespace_never_belongs_to_the_claim() -> None:
    world = World()
    world.put_claim(runtimeClassName="gvisor")
    assert await world.reconcile() == 300
    body = pod_body("evil", claim="claim")
    body["metadata"]["namespace"] = "attacker"
    world.api.put("/api/v1/namespaces/attacker/pods/evil", body)
    await world.reconcile()
    assert world.status().get("phase") in (None, "Pending")
    assert len(world.cluster.pods.of_pool("default", "pool-uid")) == 0
    assert not world.api.sent("DELETE")


async def test_the_sweep_deletes_no_pod_without_an_owning_claim() -> None:
    """Otherwise anybody who may label pods could have them deleted."""
    world = World()
    body = pod_body("web-1", claim="gone")
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "rs"}
    body["metadata"]["ownerReferences"] = [{**owner, "controller": True}]
    world.api.put("/api/v1/namespaces/default/pods/web-1", body)
    await world.reconciler.sweep()
    assert not world.api.sent("DELETE")


@pytest.mark.parametrize(
    "amiss",
    [
        {"class_name": ""},
        {"class_name": "runc", "handler": "runc", "runtime_uid": "runc-uid"},
        {"runtime_uid": "another"},
        {"handler": "runc"},
        {"pool_uid": "another-pool"},
    ],
)
async def test_an_owner_reference_that_the_operator_would_not_have_written_is_not_trusted(
    amiss: dict[str, str],
) -> None:
    """Anybody who may create pods in this namespace can name the claim as owner."""
    world = World()
    world.put_claim(runtimeClassName="gvisor")
    world.put_pod("forged", claim="claim", **amiss)
    await world.reconcile()
    assert world.status().get("phase") in (None, "Pending")
    assert [c.path.rpartition("/")[2] for c in world.api.sent("DELETE")] == ["forged"]
