"""The SandboxRuntimes against an API server that forgets, and people who interfere."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from sandboxpool.api.reasons import Reason
from sandboxpool.api.v1alpha1 import SandboxRuntime
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.fleet.reconcile import (
    RESTLESS_INTERVAL_SECONDS,
    WINDOW_CHECK_SECONDS,
    WRITE_INTERVAL_SECONDS,
    RuntimeReconciler,
)
from sandboxpool.fleet.status import RuntimeStatusInput
from sandboxpool.kube.errors import ApiError, KubeError
from sandboxpool.kube.events import EventRecorder
from sandboxpool.kube.workqueue import WorkQueue
from sandboxpool.runtimes.failure_history import FailureSummary
from sandboxpool.runtimes.resolve import Runtime
from sandboxpool.runtimes.verdict import Verdict
from support.builders import runtime_class
from support.scriptedapi import BROKEN, UNKNOWN, ScriptedApi

pytestmark = pytest.mark.looptime

RUNTIMES = "/apis/sandboxpool.io/v1alpha1/sandboxruntimes"
CLASSES = "/apis/node.k8s.io/v1/runtimeclasses"
GVISOR = f"{RUNTIMES}/gvisor"
START = 1_700_000_000.0


class World:
    """A reconciler and its informer; time is the event loop's."""

    def __init__(self) -> None:
        self.api = ScriptedApi(self.wall, self._changed)
        self.events = EventRecorder(self.api, "test", "test")
        self.reconciler = RuntimeReconciler(
            client=self.api,
            gather=lambda name: self.given(name),
            events=self.events,
            clock=lambda: asyncio.get_running_loop().time(),
        )
        self.watching = True
        self.news: list[bool] = []
        self.echo: Callable[[Any], Any] = lambda status: status
        self.wanted = True
        self.known: dict[str, Any] = {
            "runtime": Runtime("gvisor", "class-uid", "runsc"),
            "verdict": Verdict(serving=("a",)),
            "pools": ("team/pool",),
        }

    def wall(self) -> float:
        return START + asyncio.get_running_loop().time()

    def given(self, name: str) -> RuntimeStatusInput | None:
        return (
            RuntimeStatusInput(class_name=name, now=self.wall(), **self.known)
            if self.wanted
            else None
        )

    def _changed(self, path: str, old: Any, new: Any) -> None:
        if not path.startswith(RUNTIMES):
            return
        if new is not None and "status" in new:
            new["status"] = self.echo(new["status"])
        if self.watching:
            before, after = (msgspec.convert(b, SandboxRuntime | None) for b in (old, new))
            self.news.append(self.reconciler.observe(before, after))

    async def reconcile(self) -> float | None:
        return await self.reconciler.reconcile("gvisor")

    async def settle(self) -> None:
        """Reconcile until nothing is due before the next check of the windows."""
        for _ in range(10):
            again = await self.reconcile()
            if again is None or again >= WINDOW_CHECK_SECONDS:
                return
            await asyncio.sleep(again)
        raise AssertionError("it does not settle")

    @property
    def status(self) -> dict[str, Any]:
        return dict(self.api.objects[GVISOR]["status"])

    def condition(self, type_: str) -> tuple[str, str]:
        (found,) = [c for c in self.status["conditions"] if c["type"] == type_]
        return found["status"], found["reason"]

    async def posted(self) -> list[tuple[str, str]]:
        """The events so far."""
        task = asyncio.create_task(self.events.run())
        await asyncio.sleep(5)
        task.cancel()
        await asyncio.wait([task])
        return [(c.body["type"], c.body["reason"]) for c in self.api.sent("POST", "/events")]


def trouble(at: float) -> dict[str, Any]:
    row = FailureSummary(Reason.SHIM_MISSING, "runsc", 1, ("a",), at - 5, at, f"text of {at}")
    return {"issues": (row,)}


async def test_a_class_gets_its_object_and_is_then_left_alone() -> None:
    world = World()
    assert await world.reconcile() is None
    assert (world.status["handler"], world.condition("Ready")[0]) == ("runsc", "True")
    assert [call.method for call in world.api.writes] == ["POST", "PATCH"]
    calls = len(world.api.calls)
    for _ in range(3):
        await asyncio.sleep(100)
        assert await world.reconcile() is None
    assert len(world.api.calls) == calls


async def test_a_class_that_nobody_names_is_none_of_our_business() -> None:
    world = World()
    world.wanted = False
    assert await world.reconcile() is None
    assert world.api.calls == []


async def test_a_class_that_is_gone_loses_its_object_once_no_pool_names_it() -> None:
    world = World()
    await world.settle()
    world.known |= {"runtime": None, "verdict": Verdict()}
    await asyncio.sleep(5)
    await world.settle()
    assert (world.status["exists"], world.status["handler"]) == (False, "runsc")
    assert world.condition("Ready") == ("False", "RuntimeClassNotFound")
    world.wanted = False
    assert await world.reconcile() is None
    assert world.api.objects == {}
    (delete,) = world.api.sent("DELETE")
    assert delete.body["preconditions"] == {"uid": "gvisor-uid"}
    assert await world.reconcile() is None
    assert len(world.api.sent("DELETE")) == 1


async def test_the_object_of_a_class_that_no_cache_shows_yet_is_kept() -> None:
    world = World()
    await world.settle()
    world.api.objects[f"{CLASSES}/gvisor"] = runtime_class()
    world.wanted = False
    assert await world.reconcile() == RESTLESS_INTERVAL_SECONDS
    assert GVISOR in world.api.objects
    del world.api.objects[f"{CLASSES}/gvisor"]
    assert await world.reconcile() is None
    assert GVISOR not in world.api.objects


async def test_the_object_of_somebody_else_is_not_deleted_in_its_place() -> None:
    world = World()
    await world.settle()
    world.api.touch(GVISOR, uid="another")
    world.wanted = False
    assert await world.reconcile() is None
    assert GVISOR in world.api.objects


async def test_nothing_is_written_more_than_once_a_second() -> None:
    world = World()
    await world.settle()
    before = len(world.api.writes)
    queue: WorkQueue[str] = WorkQueue("runtimes")
    worker = asyncio.create_task(queue.run(world.reconciler.reconcile))
    for i in range(100):
        world.known["verdict"] = Verdict(serving=tuple(map(str, range(i))))
        queue.add("gvisor")
        await asyncio.sleep(0.1)
    await asyncio.sleep(2)
    worker.cancel()
    assert 8 <= len(world.api.writes) - before <= 12
    assert world.status["nodes"]["serving"] == 99


async def test_what_changes_all_the_time_is_written_now_and_then() -> None:
    world = World()
    world.known |= trouble(START)
    await world.settle()
    before = len(world.api.writes)
    seconds = round(4 * RESTLESS_INTERVAL_SECONDS)
    for i in range(seconds):
        world.known |= trouble(START + i)
        world.known |= {
            "sandboxes": {SandboxState.WARM: i},
            "startup": {"stages": {"ready": {"p50Milliseconds": i}}, "windowSeconds": 3600},
        }
        await world.reconcile()
        await asyncio.sleep(1)
    assert 3 <= len(world.api.writes) - before <= 4
    await asyncio.sleep(RESTLESS_INTERVAL_SECONDS)
    await world.reconcile()
    assert world.status["sandboxes"]["warm"] == seconds - 1
    assert world.status["issues"][0]["message"] == f"text of {START + seconds - 1}"


async def test_a_restless_change_waits_for_its_turn_and_a_real_one_does_not() -> None:
    world = World()
    await world.settle()
    await asyncio.sleep(WRITE_INTERVAL_SECONDS)
    world.known["sandboxes"] = {SandboxState.WARM: 5}
    again = await world.reconcile()
    assert again == pytest.approx(RESTLESS_INTERVAL_SECONDS - WRITE_INTERVAL_SECONDS)
    assert world.status["sandboxes"]["warm"] == 0
    world.known["verdict"] = Verdict(serving=("a",), quarantined=("b",))
    assert await world.reconcile() is None
    assert world.status["sandboxes"]["warm"] == 5
    assert world.condition("Healthy") == ("False", "NodeQuarantined")


async def test_the_windows_are_looked_at_while_there_is_something_in_them() -> None:
    world = World()
    assert await world.reconcile() is None
    world.known |= trouble(START)
    await asyncio.sleep(5)
    assert await world.reconcile() == WINDOW_CHECK_SECONDS
    assert await world.reconcile() == WINDOW_CHECK_SECONDS
    del world.known["issues"]
    await asyncio.sleep(5)
    assert await world.reconcile() is None
    assert world.status["issues"] == []


async def test_what_others_write_is_overwritten() -> None:
    world = World()
    await world.settle()
    world.news.clear()
    edited = {**world.api.objects[GVISOR], "status": {**world.status, "sandboxes": {"warm": 99}}}
    edited["metadata"] = {**edited["metadata"], "resourceVersion": "5000"}
    world.api.put(GVISOR, edited)
    assert world.news == [True]
    await asyncio.sleep(WRITE_INTERVAL_SECONDS)
    await world.reconcile()
    assert world.status["sandboxes"]["warm"] == 0


async def test_what_others_delete_is_made_again() -> None:
    world = World()
    await world.settle()
    world.news.clear()
    world.api.remove(GVISOR)
    assert world.news == [True]
    assert await world.reconcile() == pytest.approx(WRITE_INTERVAL_SECONDS)
    await asyncio.sleep(WRITE_INTERVAL_SECONDS)
    assert await world.reconcile() is None
    assert world.condition("Ready") == ("True", "HandlerServed")


async def test_a_deletion_that_was_not_seen_is_met_by_the_next_try() -> None:
    world = World()
    await world.settle()
    world.watching = False
    world.api.remove(GVISOR)
    world.known["verdict"] = Verdict(serving=("a", "b"))
    await asyncio.sleep(WRITE_INTERVAL_SECONDS)
    with pytest.raises(KubeError):
        await world.reconcile()
    assert await world.reconcile() is None
    assert world.status["nodes"]["serving"] == 2


async def test_an_object_that_is_there_already_is_taken_over() -> None:
    world = World()
    world.watching = False
    body = {"metadata": {"name": "gvisor", "uid": "old", "resourceVersion": "3"}}
    world.api.put(GVISOR, body)
    assert await world.reconcile() is None
    assert world.api.objects[GVISOR]["metadata"]["uid"] == "old"
    assert world.condition("Ready") == ("True", "HandlerServed")


async def test_our_own_writes_are_no_news() -> None:
    world = World()
    world.watching = False
    await world.settle()
    stored = msgspec.convert(world.api.objects[GVISOR], SandboxRuntime)
    assert world.reconciler.observe(None, stored) is False
    older = msgspec.structs.replace(
        stored, metadata=msgspec.structs.replace(stored.metadata, resourceVersion="1")
    )
    assert world.reconciler.observe(None, older) is False
    another = msgspec.structs.replace(
        stored, metadata=msgspec.structs.replace(stored.metadata, uid="an-earlier-one")
    )
    assert world.reconciler.observe(another, None) is False
    assert world.reconciler.observe(stored, None) is True


async def test_an_older_crd_that_drops_fields_causes_no_endless_writing() -> None:
    world = World()
    world.echo = lambda status: {k: v for k, v in status.items() if k != "evidence"}
    await world.settle()
    writes = len(world.api.writes)
    for _ in range(3):
        await asyncio.sleep(100)
        assert await world.reconcile() is None
    assert len(world.api.writes) == writes


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("error", [UNKNOWN, BROKEN])
@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_a_write_that_fails_is_made_good(
    method: str, error: KubeError, applied: bool
) -> None:
    world = World()
    world.api.fail(method, RUNTIMES, error, applied=applied)
    with pytest.raises(KubeError):
        await world.reconcile()
    await world.settle()
    assert world.condition("Ready") == ("True", "HandlerServed")
    assert len([path for path in world.api.objects if path.startswith(RUNTIMES)]) == 1


async def test_a_delete_that_comes_too_late_is_no_error() -> None:
    world = World()
    await world.settle()
    world.wanted = False
    world.api.fail("DELETE", RUNTIMES, ApiError(404, "NotFound", "gone"))
    assert await world.reconcile() is None
    await world.settle()
    world.api.fail("DELETE", RUNTIMES, BROKEN)
    world.wanted = True
    await world.settle()
    world.wanted = False
    with pytest.raises(ApiError):
        await world.reconcile()
    assert await world.reconcile() is None
    assert world.api.objects == {}


# --- Events --------------------------------------------------------------------------------------


async def test_transitions_are_announced_once_for_each_cause() -> None:
    world = World()
    await world.settle()
    assert await world.posted() == []
    world.known["verdict"] = Verdict(quarantined=("a",))
    await world.settle()
    assert await world.posted() == [("Warning", "AllNodesQuarantined")]
    world.known["verdict"] = Verdict(serving=("a",))
    await world.settle()
    assert (await world.posted())[1:] == [("Normal", "HandlerServed"), ("Normal", "AsExpected")]
    (event, *_) = world.api.sent("POST", "/events")
    assert event.path == "/api/v1/namespaces/default/events"
    assert event.body["involvedObject"] == {
        "apiVersion": "sandboxpool.io/v1alpha1",
        "kind": "SandboxRuntime",
        "namespace": "",
        "name": "gvisor",
        "uid": "gvisor-uid",
    }


async def test_a_changing_worst_cause_is_announced_once() -> None:
    world = World()
    await world.settle()
    for reason in (Reason.SHIM_MISSING, Reason.KVM_UNAVAILABLE, Reason.SHIM_MISSING):
        await asyncio.sleep(5)
        row = FailureSummary(reason, "runsc", 1, ("a",), START, START, "text")
        world.known["issues"] = (row,)
        await world.settle()
    assert await world.posted() == [("Warning", "ShimMissing")]


async def test_a_class_made_again_is_announced() -> None:
    world = World()
    await world.settle()
    await asyncio.sleep(5)
    world.known["runtime"] = Runtime("gvisor", "another-uid", "runc")
    await world.settle()
    assert await world.posted() == [("Warning", "RuntimeChanged")]
    (event,) = world.api.sent("POST", "/events")
    assert "its handler was 'runsc' and is 'runc' now" in event.body["message"]


async def test_no_event_is_posted_about_a_class_that_nobody_uses() -> None:
    world = World()
    world.known |= {"pools": (), "verdict": Verdict(not_serving=("a",))}
    await world.settle()
    assert world.condition("Ready") == ("False", "NoNodeServes")
    assert await world.posted() == []


async def test_a_new_operator_does_not_announce_what_was_announced() -> None:
    world = World()
    world.known["verdict"] = Verdict(not_serving=("a",))
    await world.settle()
    assert await world.posted() == [("Warning", "NoNodeServes")]
    after = World()
    after.known = world.known
    after.api.put(GVISOR, world.api.objects[GVISOR])
    await after.settle()
    assert await after.posted() == []
