"""Probe pods against an API server that refuses, breaks and forgets, in virtual time."""

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from typing import Any, cast

import msgspec
import pytest

from sandboxpool.api import names
from sandboxpool.api.core import Pod
from sandboxpool.api.reasons import Reason
from sandboxpool.app.settings import load
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.fleet import probe_backoff, probe_request, prober
from sandboxpool.fleet.health import Health
from sandboxpool.fleet.probe_request import ProbeRequest, ProbeResult, outcome_of
from sandboxpool.fleet.prober import Prober
from sandboxpool.kube.errors import ApiError
from sandboxpool.runtimes import probe
from sandboxpool.runtimes.evidence import Isolation
from sandboxpool.runtimes.failure_history import FailureHistory
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.podevents import PodEvent, PodEvents
from sandboxpool.runtimes.probe import ProbeImage, build_probe
from sandboxpool.runtimes.resolve import Runtime
from sandboxpool.sandboxes.event_reader import PodEventReader
from sandboxpool.util.environment import SettingsError
from support.builders import NOW, evidence, facts, node, pod, pool_body, runtime
from support.inquiries import NoInquiry, ScriptedInquiry
from support.scriptedapi import BROKEN, QUOTA, REFUSED, UNKNOWN, Call, ScriptedApi

OURS = "sandboxpool-system"
PODS = f"/api/v1/namespaces/{OURS}/pods"
START = 1_700_000_000.0
NOT_CONFIGURED = (
    "Failed to create pod sandbox: rpc error: code = Unknown desc = unable to get OCI runtime for "
    f'sandbox "{"d" * 64}": no runtime for "runsc" is configured'
)
STRANGE = "Failed to create pod sandbox: rpc error: something that nobody has seen before"
NO_NETWORK = (
    "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to setup network for "
    'sandbox "x": plugin type="calico" failed (add): no ip'
)
FULL = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes are available: 1 Insufficient memory.",
}
SCHEDULED = {"type": "PodScheduled", "status": "True"}

looptime = pytest.mark.looptime


class World:
    """A prober in a cluster of one class; a pending probe stays pending until it has a result."""

    def __init__(self, event_reader: PodEventReader | None = None) -> None:
        self.api = ScriptedApi(self.wall, self._changed)
        self.nodes: dict[str, NodeFacts] = {}
        self.classes: dict[str, Runtime] = {"gvisor": runtime()}
        self.events: dict[str, str] = {}
        self.wanted: list[ProbeRequest] = []
        self.taken: list[ProbeRequest] = []
        self.results: list[tuple[str, str, ProbeResult]] = []
        self.watching = True
        self.kubelets: tuple[int, float] | None = None
        self.asked = 0
        self.room = False
        self.full: list[ProbeRequest] = []
        self.stuck: list[tuple[tuple[str, str], str | None]] = []
        seeds = itertools.count()
        self.prober = Prober(
            client=self.api,
            namespace=OURS,
            image=ProbeImage("registry.example/probe:1"),
            pending_probes=self._pending_probes,
            nodes=self.nodes.get,
            classes=self.classes.get,
            sandbox_event=lambda pod: self.events.get(pod.metadata.uid),
            event_reader=event_reader or NoInquiry(),
            on_started=self.taken.append,
            on_result=self._ended,
            make_room=self._asked_for_room,
            on_stuck=lambda *told: self.stuck.append(told),
            wall=self.wall,
            seed=lambda: f"seed-{next(seeds)}",
        )

    def _asked_for_room(self, probe_request: ProbeRequest) -> bool:
        self.full.append(probe_request)
        return self.room

    def time(self) -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        return START + self.time()

    def _pending_probes(self) -> Iterable[ProbeRequest]:
        self.asked += 1
        return iter(self.wanted)

    def _ended(self, probe_request: ProbeRequest, result: ProbeResult) -> None:
        self.results.append((*probe_request.pair, result))
        evidence = result.evidence
        if evidence is not None and evidence.isolation is Isolation.PROVEN:
            self.wanted = [w for w in self.wanted if w.pair != probe_request.pair]

    def _changed(self, path: str, old: Any, new: Any) -> None:
        assert path.startswith(PODS)
        if self.watching:
            before, after = (msgspec.convert(body, Pod | None) for body in (old, new))
            self.prober.observe(before, after)
        if old is None:
            self._run(path)

    def want(
        self, *nodes: str, why: probe_request.ProbePurpose = "evidence", of: Runtime | None = None
    ) -> None:
        for name in nodes:
            node = self.nodes.setdefault(name, facts(name))
            runtime = None if why == "control" else of or self.classes["gvisor"]
            self.wanted.append(ProbeRequest(node, runtime, why))
        self.prober.wake()

    def breaks(self, path: str, message: str) -> None:
        """Let the kubelet say that it could not make the sandbox."""
        self.events[self.api.objects[path]["metadata"]["uid"]] = message

    def leftover(self, name: str, node: str = "node-1", **metadata: Any) -> None:
        body = build_probe(name, OURS, facts(node), runtime(), ProbeImage("image"))
        body["metadata"] |= {"uid": f"{name}-uid", "resourceVersion": "1", **metadata}
        self.api.put(f"{PODS}/{name}", body)

    def update(self, path: str, *, spec: dict[str, Any] | None = None, **status: Any) -> None:
        """Let the cluster report on a pod."""
        body = self.api.objects[path]
        body = {**body, "spec": {**body["spec"], **(spec or {})}, "status": status}
        version = str(int(body["metadata"]["resourceVersion"]) + 1)
        self.api.put(path, {**body, "metadata": {**body["metadata"], "resourceVersion": version}})

    def end(self, path: str, code: int, message: str = "", node: str = "") -> None:
        ended = {"terminated": {"exitCode": code, "message": message}}
        node = node or self.api.objects[path]["metadata"]["annotations"][probe.ANNOTATION_NODE]
        self.update(
            path,
            spec={"nodeName": node},
            phase="Failed" if code else "Succeeded",
            containerStatuses=[{"name": probe.PROBE_CONTAINER, "state": ended}],
        )

    def serve(self, code: int = probe.OWN_KERNEL, after: float = 0.5) -> None:
        """Let the kubelets end each probe with a code after so many seconds."""
        self.kubelets = code, after

    def _run(self, path: str) -> None:
        if self.kubelets is not None:
            code, after = self.kubelets
            later = asyncio.get_running_loop().call_later
            later(after, lambda: self.end(path, code) if path in self.api.objects else None)

    @property
    def pods(self) -> list[str]:
        return list(self.api.objects)

    @property
    def posted(self) -> list[Call]:
        return self.api.sent("POST")

    @property
    def last(self) -> ProbeResult:
        return self.results[-1][2]

    @property
    def isolation(self) -> Isolation | None:
        evidence = self.last.evidence
        return evidence.isolation if evidence is not None else None

    @property
    def message(self) -> str:
        assert self.last.evidence is not None
        return self.last.evidence.message

    @contextlib.asynccontextmanager
    async def running(self, *more: Any) -> AsyncIterator[None]:
        tasks = [asyncio.ensure_future(self.prober.run()), *map(asyncio.ensure_future, more)]
        try:
            yield
            for task in tasks:
                assert not task.done() or task.result() is None
            assert not tasks[0].done()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


# --- Answers -------------------------------------------------------------------------------------


@looptime
@pytest.mark.parametrize(
    ("code", "isolation"),
    [
        (probe.OWN_KERNEL, Isolation.PROVEN),
        (probe.NODES_KERNEL, Isolation.NOT_PROVEN),
        (probe.UNREADABLE, Isolation.UNAVAILABLE),
    ],
)
async def test_a_probe_is_made_judged_and_removed(code: int, isolation: Isolation) -> None:
    world = World()
    world.want("node-1")
    world.serve(code)
    async with world.running():
        await asyncio.sleep(3)
    ((node, handler, result),) = world.results
    assert (node, handler, world.isolation) == ("node-1", "runsc", isolation)
    assert result.failure is None
    assert result.started
    assert START <= result.made_at <= START + 1
    assert world.pods == []
    assert len(world.posted) == len(world.api.sent("DELETE")) == 1


@looptime
async def test_the_pod_is_what_the_cluster_was_asked_for() -> None:
    world = World()
    world.want("node-1")
    async with world.running():
        await asyncio.sleep(1)
        (pod,) = world.api.objects.values()
    assert pod["metadata"]["namespace"] == OURS
    assert pod["metadata"]["annotations"][probe.ANNOTATION_NODE] == "node-1"
    assert pod["metadata"]["annotations"][probe.ANNOTATION_BOOT_ID] == "node-1-boot"
    assert pod["spec"]["containers"][0]["image"] == "registry.example/probe:1"


@looptime
async def test_a_failure_without_doubt_ends_a_probe_at_once() -> None:
    world = World()
    world.want("node-1")
    async with world.running():
        await asyncio.sleep(1)
        (path,) = world.pods
        pending = {"type": "PodReadyToStartContainers", "status": "False"}
        world.update(path, phase="Pending", conditions=[SCHEDULED, pending])
        world.events[world.api.objects[path]["metadata"]["uid"]] = NOT_CONFIGURED
        await asyncio.sleep(1.5)
        assert world.pods == []
    failure = world.last.failure
    assert failure is not None
    assert failure.reason is Reason.HANDLER_NOT_CONFIGURED
    assert failure.blames_runtime
    assert world.isolation is Isolation.UNAVAILABLE
    assert "no runtime for" in world.message
    assert not world.last.started


@looptime
async def test_a_failure_that_proves_nothing_ends_a_probe_once_it_has_stood_for_a_while() -> None:
    world = World()
    world.want("node-1")
    async with world.running():
        await asyncio.sleep(20)
        (path,) = world.pods
        world.update(path, phase="Pending", conditions=[SCHEDULED])
        world.breaks(path, STRANGE)
        await asyncio.sleep(prober.FAILING_SECONDS - 1)
        assert world.results == []
        await asyncio.sleep(3)
        assert len(world.results) == 1
    failure = world.last.failure
    assert failure is not None
    assert (failure.reason, failure.proves_broken) == (Reason.SANDBOX_CREATE_FAILED, False)
    assert world.last.works is False
    assert world.isolation is Isolation.UNAVAILABLE
    assert "nobody has seen" in world.message


@looptime
async def test_a_failure_that_passes_is_not_held_against_the_runtime() -> None:
    """The kubelet has tried again: what was said before counts no more."""
    world = World()
    world.want("node-1")
    pending: dict[str, Any] = {"phase": "Pending", "conditions": [SCHEDULED]}
    async with world.running():
        await asyncio.sleep(1)
        (path,) = world.pods
        world.update(path, spec={"nodeName": "node-1"}, **pending)
        for message in (STRANGE, NO_NETWORK, STRANGE, NO_NETWORK):
            world.breaks(path, message)
            await asyncio.sleep(prober.FAILING_SECONDS - 2)
        assert world.results == []
        world.end(path, probe.OWN_KERNEL)
        await asyncio.sleep(1)
    assert (world.last.works, world.isolation) == (True, Isolation.PROVEN)


@looptime
async def test_a_failure_of_others_than_the_runtime_is_waited_for_and_blames_nobody() -> None:
    world = World()
    world.want("node-1")
    async with world.running():
        await asyncio.sleep(1)
        (path,) = world.pods
        world.update(path, phase="Pending", conditions=[SCHEDULED])
        world.breaks(path, NO_NETWORK)
        await asyncio.sleep(probe_request.DEADLINE_SECONDS - 5)
        assert world.results == []
        await asyncio.sleep(8)
    assert world.last.works is None
    assert "no ip" in world.message


@looptime
async def test_a_probe_that_ends_otherwise_than_by_its_own_codes_tells_nothing() -> None:
    world = World()
    world.want("node-1")
    world.serve(0)
    async with world.running():
        await asyncio.sleep(3)
    assert (world.last.works, world.last.started) == (None, False)
    assert world.isolation is Isolation.UNAVAILABLE
    assert "exit code 0" in world.message


@looptime
@pytest.mark.parametrize(
    ("kubelet", "condition", "blames"),
    [
        ("v1.36.0", "False", True),
        ("v1.37.2+k3s1", "False", True),
        ("v2.0.0", "False", True),
        # Before, the condition turns true only after the images are pulled.
        ("v1.35.9", "False", False),
        ("", "False", False),
        ("v1.36.0", "True", False),
        ("v1.36.0", None, False),
    ],
)
async def test_a_probe_without_a_result_ends_at_its_deadline_and_blames_the_cause(
    kubelet: str, condition: str | None, blames: bool
) -> None:
    world = World()
    world.nodes["node-1"] = replace(facts(), kubelet=kubelet)
    world.want("node-1")
    async with world.running():
        await asyncio.sleep(1)
        (path,) = world.pods
        made = {"type": "PodReadyToStartContainers", "status": condition}
        listed = [SCHEDULED, made] if condition is not None else [SCHEDULED]
        world.update(path, spec={"nodeName": "node-1"}, phase="Pending", conditions=listed)
        await asyncio.sleep(probe_request.DEADLINE_SECONDS - 2)
        assert world.results == []
        await asyncio.sleep(3)
        assert world.pods == []
    failure = world.last.failure
    assert failure is not None
    assert (failure.reason, failure.blames_runtime) == (Reason.SANDBOX_START_TIMEOUT, blames)
    assert world.last.works is (False if blames else None)
    assert world.isolation is Isolation.UNAVAILABLE


@looptime
@pytest.mark.parametrize(
    ("word", "stages", "in_message", "blames"),
    [
        (
            PodEvent("FailedMount", 'secret "a" not found', "", START),
            ["slow"],
            'secret "a" not found',
            False,
        ),
        (
            PodEvent("Scheduled", "assigned", "", START),
            ["slow", "overdue"],
            "conditions, containers and 1 event; the last event was Scheduled: assigned",
            True,
        ),
    ],
    ids=["a volume", "nothing"],
)
async def test_the_events_of_a_probe_that_takes_long_are_read_before_a_runtime_is_blamed(
    word: PodEvent, stages: list[str], in_message: str, blames: bool
) -> None:
    asks = ScriptedInquiry(PodEvents((word,), 1))
    world = World(event_reader=asks)
    world.nodes["node-1"] = replace(facts(), kubelet="v1.36.0")
    world.want("node-1")
    async with world.running():
        await asyncio.sleep(1)
        (path,) = world.pods
        unmade = {"type": "PodReadyToStartContainers", "status": "False"}
        listed = [SCHEDULED, unmade]
        world.update(path, spec={"nodeName": "node-1"}, phase="Pending", conditions=listed)
        await asyncio.sleep(prober.EVENT_READ_SECONDS["slow"] - 3)
        assert asks.stages == []
        await asyncio.sleep(probe_request.DEADLINE_SECONDS)
    assert asks.stages == stages
    assert world.last.failure is not None
    assert in_message in world.last.failure.message
    assert world.last.failure.blames_runtime is blames


@looptime
async def test_a_full_node_does_not_hold_the_others_up() -> None:
    world = World()
    world.want("node-1")
    async with world.running():
        await asyncio.sleep(1)
        (path,) = world.pods
        world.update(path, phase="Pending", conditions=[FULL])
        await asyncio.sleep(prober.UNSCHEDULABLE_SECONDS - 2)
        assert world.results == []
        await asyncio.sleep(4)
        assert world.pods == []
    assert world.isolation is Isolation.UNAVAILABLE
    assert "Insufficient memory" in world.message


@looptime
async def test_a_probe_waits_for_the_room_that_is_made_for_it() -> None:
    world = World()
    world.room = True
    world.want("node-1")
    async with world.running():
        await asyncio.sleep(1)
        (path,) = world.pods
        world.update(path, phase="Pending", conditions=[FULL])
        await asyncio.sleep(60)
        assert len(world.full) == 1, "it is asked for once"
        assert world.results == []
        world.end(path, probe.OWN_KERNEL)
        await asyncio.sleep(2)
        assert world.isolation is Isolation.PROVEN


@looptime
async def test_no_room_is_asked_for_where_the_node_is_not_full() -> None:
    world = World()
    world.want("node-1")
    async with world.running():
        await asyncio.sleep(1)
        (path,) = world.pods
        text = "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."
        world.update(path, phase="Pending", conditions=[{**FULL, "message": text}])
        await asyncio.sleep(30)
    assert world.full == []
    assert world.isolation is Isolation.UNAVAILABLE


@looptime
async def test_an_evicted_probe_reports_why_there_is_no_result() -> None:
    world = World()
    world.want("node-1")
    async with world.running():
        await asyncio.sleep(1)
        spec = {"nodeName": "node-1"}
        said = {"reason": "Evicted", "message": "low on memory"}
        world.update(world.pods[0], spec=spec, phase="Failed", **said)
        await asyncio.sleep(1)
    assert world.last.failure is not None
    assert not world.last.started
    assert "low on memory" in world.message


@looptime
async def test_a_probe_that_somebody_deletes_is_over() -> None:
    world = World()
    world.want("node-1")
    async with world.running():
        await asyncio.sleep(1)
        world.api.remove(world.pods[0])
        await asyncio.sleep(1)
    assert world.isolation is Isolation.UNAVAILABLE
    assert world.last.failure is None
    assert world.api.sent("DELETE") == []


@looptime
async def test_a_probe_of_another_class_than_was_asked_for_proves_nothing() -> None:
    world = World()
    world.want("node-1")
    async with world.running():
        await asyncio.sleep(1)
        (path,) = world.pods
        world.api.objects[path]["spec"]["runtimeClassName"] = "kata"
        world.end(path, probe.OWN_KERNEL)
        await asyncio.sleep(1)
    assert world.isolation is Isolation.UNAVAILABLE
    assert "'kata'" in world.message


@looptime
@pytest.mark.parametrize("ended", [True, False])
async def test_a_probe_that_came_to_another_node_tells_nothing_of_either(ended: bool) -> None:
    world = World()
    world.want("node-1")
    async with world.running():
        await asyncio.sleep(1)
        (path,) = world.pods
        if ended:
            world.end(path, probe.OWN_KERNEL, node="node-2")
        else:
            world.update(path, spec={"nodeName": "node-2"}, phase="Pending")
            world.breaks(path, NOT_CONFIGURED)
        await asyncio.sleep(1)
        assert world.pods == []
    assert (world.last.works, world.last.failure) == (None, None)
    assert world.isolation is Isolation.UNAVAILABLE
    assert "'node-2'" in world.message


@looptime
async def test_the_positive_control_has_no_class_and_finds_the_nodes_kernel() -> None:
    world = World()
    world.classes.clear()
    world.want("node-1", why="control")
    async with world.running():
        await asyncio.sleep(1)
        (path,) = world.pods
        pod = world.api.objects[path]
        assert "runtimeClassName" not in pod["spec"]
        assert pod["metadata"]["annotations"][names.ANNOTATION_HANDLER] == probe.CONTROL
        world.end(path, probe.NODES_KERNEL)
        await asyncio.sleep(0.1)
        assert world.isolation is Isolation.NOT_PROVEN
        await asyncio.sleep(3)
        assert len(world.posted) > 1, "that is what it is to find: it sets no pause"


@looptime
async def test_a_positive_control_that_was_given_a_class_tells_nothing() -> None:
    world = World()
    world.want("node-1", why="control")
    async with world.running():
        await asyncio.sleep(1)
        (path,) = world.pods
        world.api.objects[path]["spec"]["runtimeClassName"] = "gvisor"
        world.end(path, probe.OWN_KERNEL)
        await asyncio.sleep(1)
    assert world.isolation is Isolation.UNAVAILABLE
    assert "'gvisor'" in world.message


@looptime
async def test_each_probe_is_told_when_it_is_sent_and_when_it_ends() -> None:
    world = World()
    world.want("node-1", "node-2")
    world.serve(after=2)
    async with world.running():
        await asyncio.sleep(1)
        assert [request.pair for request in world.taken] == [
            ("node-1", "runsc"),
            ("node-2", "runsc"),
        ]
        assert world.results == []
        await asyncio.sleep(4)
    assert len(world.taken) == len(world.results) == 2


# --- What it is about changes --------------------------------------------------------------------


@looptime
@pytest.mark.parametrize(
    "change",
    [
        {"boot_id": "another"},
        {"uid": "another"},
        {"container_runtime": "containerd://2.2.0"},
        {"kubelet": "v1.37.0"},
        {"handlers": frozenset({"runc"})},
        None,
    ],
)
async def test_an_answer_about_what_is_no_more_is_none(change: dict[str, Any] | None) -> None:
    world = World()
    world.want("node-1")
    async with world.running():
        await asyncio.sleep(1)
        (path,) = world.pods
        node = world.nodes.pop("node-1")
        if change is not None:
            world.nodes["node-1"] = replace(node, **change)
        world.end(path, probe.OWN_KERNEL)
        world.wanted.clear()
        await asyncio.sleep(1)
        assert world.pods == []
    assert (world.last.evidence, world.last.failure) == (None, None)
    assert outcome_of(ProbeRequest(facts(), runtime(), "evidence"), world.last) == "Superseded"


@pytest.mark.parametrize(
    ("why", "isolation", "outcome"),
    [
        ("evidence", Isolation.PROVEN, "Proven"),
        ("scout", Isolation.NOT_PROVEN, "NotProven"),
        ("control", Isolation.NOT_PROVEN, "ControlPassed"),
        ("control", Isolation.PROVEN, "ControlFailed"),
        ("control", Isolation.UNAVAILABLE, "Unavailable"),
    ],
)
def test_a_control_that_sees_the_nodes_kernel_has_passed(
    why: probe_request.ProbePurpose, isolation: Isolation, outcome: str
) -> None:
    request = ProbeRequest(facts(), None if why == "control" else runtime(), why)
    assert outcome_of(request, ProbeResult(evidence(isolation), None, NOW)) == outcome


@looptime
@pytest.mark.parametrize("uid", ["another", None])
async def test_an_answer_about_a_class_that_is_no_more_is_none(uid: str | None) -> None:
    world = World()
    world.want("node-1")
    async with world.running():
        await asyncio.sleep(1)
        (path,) = world.pods
        del world.classes["gvisor"]
        if uid is not None:
            world.classes["gvisor"] = runtime(handler="runc", uid=uid)
        world.end(path, probe.NODES_KERNEL)
        world.wanted.clear()
        await asyncio.sleep(1)
    assert (world.last.evidence, world.last.failure) == (None, None)


@looptime
async def test_after_a_reboot_it_is_asked_again_without_a_pause() -> None:
    world = World()
    world.want("node-1")
    world.serve(probe.NODES_KERNEL)
    async with world.running():
        await asyncio.sleep(3)
        assert len(world.results) == 1
        rebooted = replace(world.nodes["node-1"], boot_id="another")
        world.nodes["node-1"] = rebooted
        world.wanted = [ProbeRequest(rebooted, world.classes["gvisor"], "evidence")]
        world.prober.wake()
        await asyncio.sleep(3)
    assert len(world.results) == 2


# --- Limits --------------------------------------------------------------------------------------


@looptime
async def test_however_many_probes_are_pending_the_limits_hold() -> None:
    world = World()
    sent: list[float] = []
    most = 0

    def before(call: Call) -> None:
        nonlocal most
        if call.method == "POST":
            sent.append(world.time())
        most = max(most, len(world.pods))

    world.api.before = before
    world.want(*(f"node-{i:03}" for i in range(100)))
    world.serve(after=20)
    async with world.running():
        await asyncio.sleep(600)
        assert len(world.results) == 100
    assert most == probe_request.MAX_RUNNING_PROBES["evidence"]
    for i, j in itertools.combinations(range(0, 100, 7), 2):
        assert j - i <= (sent[j] - sent[i]) * prober.PER_SECOND + 1e-6
    assert max(Counter(node for node, _, _ in world.results).values()) == 1
    assert [node for node, _, _ in world.results[:10]] == [f"node-{i:03}" for i in range(10)]


@looptime
@pytest.mark.parametrize("why", ["hint", "scout", "control", "evidence"])
async def test_each_purpose_has_places_of_its_own_and_each_handler_one_of_them(
    why: probe_request.ProbePurpose,
) -> None:
    world = World()
    places = probe_request.MAX_RUNNING_PROBES[why]
    world.want(*(f"node-{i:02}" for i in range(30)), why=why)
    async with world.running():
        await asyncio.sleep(20)
        assert len(world.taken) == places
        if why != "control":
            kata = world.classes["kata"] = runtime("kata", "kata-qemu", "kata-uid")
            world.want("node-97", "node-98", why=why, of=kata)
            await asyncio.sleep(5)
            assert [request.pair for request in world.taken[places:]] == [("node-97", "kata-qemu")]
            places += 1
        other: probe_request.ProbePurpose = "scout" if why != "scout" else "hint"
        world.want("node-99", why=other)
        await asyncio.sleep(5)
        assert [request.pair for request in world.taken[places:]] == [("node-99", "runsc")]


@looptime
async def test_there_is_one_probe_for_each_node_and_handler() -> None:
    world = World()
    world.want("node-1", "node-1", "node-1")
    world.classes["kata"] = runtime("kata", "kata-qemu", "kata-uid")
    world.want("node-1", of=world.classes["kata"])
    async with world.running():
        await asyncio.sleep(30)
        assert len(world.pods) == 2


@looptime
async def test_no_pending_probe_costs_next_to_nothing_and_a_new_one_starts_soon() -> None:
    world = World()
    world.serve()
    async with world.running():
        await asyncio.sleep(100)
        assert world.asked <= 100 / prober.IDLE_SECONDS + 1
        assert world.api.calls == []
        world.want("node-1")
        await asyncio.sleep(2)
        assert len(world.results) == 1


@looptime
async def test_being_woken_all_the_time_is_no_reason_to_ask_all_the_time() -> None:
    world = World()

    async def nag() -> None:
        while True:
            world.prober.wake()
            await asyncio.sleep(0.05)

    async with world.running(nag()):
        await asyncio.sleep(10)
    assert world.asked <= 10 * prober.PER_SECOND + 2


@looptime
@pytest.mark.parametrize("code", [probe.NODES_KERNEL, probe.UNREADABLE])
async def test_without_proof_it_is_asked_again_each_time_later(code: int) -> None:
    world = World()
    world.want("node-1")
    world.serve(code)
    async with world.running():
        await asyncio.sleep(3600)
    made = [result.made_at for _, _, result in world.results]
    pauses = [later - earlier for earlier, later in itertools.pairwise(made)]
    assert pauses[0] <= probe_backoff.FIRST_BACKOFF_SECONDS + 10
    assert max(pauses) <= probe_backoff.LONGEST_BACKOFF_SECONDS + 10
    assert pauses[-1] >= probe_backoff.LONGEST_BACKOFF_SECONDS / 2
    assert 8 <= len(made) <= 25


@looptime
async def test_a_fleet_does_not_ask_all_at_once() -> None:
    pending_probes = (ProbeRequest(facts(f"node-{i}"), runtime(), "evidence") for i in range(100))
    pauses = {probe_backoff._backoff_seconds(request, 5, 0) for request in pending_probes}
    assert len(pauses) > 90
    assert max(pauses) - min(pauses) > probe_backoff.LONGEST_BACKOFF_SECONDS / 4


@looptime
@pytest.mark.parametrize("why", ["evidence", "hint", "scout"])
async def test_quarantines_pace_the_scouts_that_have_told(why: probe_request.ProbePurpose) -> None:
    world = World()
    world.want("node-1", why=why)

    async def break_all() -> None:
        while True:
            for path in world.pods:
                world.events.setdefault(f"{path.rpartition('/')[2]}-uid", NOT_CONFIGURED)
            await asyncio.sleep(0.1)

    async with world.running(break_all()):
        await asyncio.sleep(20)
    assert (len(world.results) > 5) == (why != "evidence")


@looptime
@pytest.mark.parametrize("why", ["hint", "scout", "control"])
async def test_probes_that_could_not_tell_are_held_whatever_they_were_for(
    why: probe_request.ProbePurpose,
) -> None:
    world = World()
    world.api.fail("POST", "/pods", QUOTA, times=1000)
    world.want("node-1", why=why)
    async with world.running():
        await asyncio.sleep(600)
    assert 2 <= len(world.results) <= 12


@looptime
@pytest.mark.parametrize("nodes", [1, 40])
async def test_the_more_nodes_give_no_answer_the_longer_each_is_left_alone(nodes: int) -> None:
    """Together they hold no more than about half of the places."""
    world = World()
    world.want(*(f"node-{i:03}" for i in range(nodes)))
    async with world.running():
        # Each has had its turn.
        await asyncio.sleep(1200)
        before = len(world.taken)
        await asyncio.sleep(2400)
        held = (len(world.taken) - before) * probe_request.DEADLINE_SECONDS / 2400
    assert held <= (0.5 if nodes == 1 else 0.75 * probe_request.MAX_RUNNING_PROBES["evidence"])


@looptime
async def test_pauses_of_many_silent_nodes_grow_no_longer_than_a_bound() -> None:
    request = ProbeRequest(facts(), runtime(), "evidence")
    pauses = [probe_backoff._backoff_seconds(request, 1, n) for n in (0, 20, 200, 100_000)]
    assert pauses == sorted(pauses)
    assert pauses[0] <= probe_backoff.FIRST_BACKOFF_SECONDS
    assert pauses[2] > probe_backoff.LONGEST_BACKOFF_SECONDS
    assert pauses[3] <= probe_backoff.LONGEST_BACKOFF_OF_MANY_SECONDS


@looptime
async def test_nodes_that_answer_again_do_not_make_the_others_wait() -> None:
    world = World()
    world.api.fail("POST", "/pods", QUOTA, times=200)
    world.want(*(f"node-{i:03}" for i in range(100)))
    async with world.running():
        await asyncio.sleep(60)
        assert len(world.prober._backoffs._backoffs) == 100
        world.serve()
        await asyncio.sleep(2 * 3600)
    assert world.wanted == []
    assert world.prober._backoffs._backoffs == {}


@looptime
async def test_silent_nodes_that_are_gone_do_not_make_the_others_wait() -> None:
    world = World()
    world.api.fail("POST", "/pods", QUOTA, times=1000)
    world.want(*(f"node-{i:03}" for i in range(100)))
    async with world.running():
        await asyncio.sleep(60)
        assert len(world.results) >= 100
        world.wanted.clear()
        world.nodes.clear()
        await asyncio.sleep(3600)
        before = len(world.taken)
        world.want("new")
        await asyncio.sleep(300)
        assert len(world.taken) - before >= 3


@looptime
async def test_the_memory_of_pauses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_backoff, "MAX_BACKOFFS", 10)
    world = World()
    world.api.fail("POST", "/pods", REFUSED, times=50)
    world.want(*(f"node-{i}" for i in range(50)))
    async with world.running():
        await asyncio.sleep(15)
    assert len({node for node, _, _ in world.results}) > 10
    assert len(world.prober._backoffs._backoffs) == 10


# --- The API server ------------------------------------------------------------------------------


@looptime
@pytest.mark.parametrize("error", [QUOTA, REFUSED, ApiError(422, "Invalid", "spec: wrong")])
async def test_a_refusal_is_told_in_the_api_servers_words(error: ApiError) -> None:
    world = World()
    world.api.fail("POST", "/pods", error)
    world.want("node-1")
    async with world.running():
        await asyncio.sleep(5)
    assert world.isolation is Isolation.UNAVAILABLE
    assert error.message in world.message
    assert world.last.failure is None
    assert len(world.posted) == 1


@looptime
async def test_an_api_server_that_fails_is_tried_a_few_times() -> None:
    world = World()
    world.api.fail("POST", "/pods", BROKEN, times=100)
    world.want("node-1")
    async with world.running():
        await asyncio.sleep(5)
    assert len(world.posted) == prober.CREATE_ATTEMPTS
    assert "a webhook is away" in world.message


@looptime
@pytest.mark.parametrize("error", [UNKNOWN, BROKEN])
async def test_an_unknown_outcome_makes_no_second_pod(error: Any) -> None:
    world = World()
    world.api.fail("POST", "/pods", error, applied=True)
    world.want("node-1")
    world.serve(after=5)
    async with world.running():
        await asyncio.sleep(3)
        assert len(world.posted) == 2
        assert len(world.pods) == 1
        await asyncio.sleep(5)
    assert world.isolation is Isolation.PROVEN
    assert len(world.results) == 1


@looptime
async def test_a_pod_that_is_never_seen_is_waited_for_no_longer_than_any() -> None:
    world = World()
    world.api.fail("POST", "/pods", UNKNOWN, times=prober.CREATE_ATTEMPTS)
    world.want("node-1")
    async with world.running():
        await asyncio.sleep(probe_request.DEADLINE_SECONDS + 3)
    assert world.last.failure is None
    assert "never seen" in world.message


@looptime
async def test_a_pod_that_is_seen_too_late_is_swept_away() -> None:
    world = World()
    world.want("node-1")
    world.watching = False
    async with world.running():
        await asyncio.sleep(probe_request.DEADLINE_SECONDS + 3)
        world.wanted.clear()
        world.watching = True
        (path,) = world.pods
        world.update(path)
        await asyncio.sleep(2)
        assert world.pods == []


@looptime
async def test_a_pod_that_cannot_be_deleted_is_deleted_later() -> None:
    world = World()
    world.want("node-1")
    world.api.fail("DELETE", "/pods", BROKEN, times=2)
    world.api.fail("DELETE", "/pods", UNKNOWN, times=2)
    world.serve()
    async with world.running():
        await asyncio.sleep(30)
    assert world.isolation is Isolation.PROVEN
    assert world.pods == []
    assert len(world.api.sent("DELETE")) == 5


# --- Starting and stopping -----------------------------------------------------------------------


@looptime
async def test_what_another_process_left_is_deleted_before_its_node_is_probed() -> None:
    world = World()
    world.leftover("old-1")
    world.leftover("old-2", node="node-2")
    world.want("node-1")
    order: list[tuple[str, str]] = []
    world.api.before = lambda call: order.append((call.method, call.path.rpartition("/")[2]))
    world.serve()
    async with world.running():
        await asyncio.sleep(5)
    assert order[:3] == [("DELETE", "old-1"), ("DELETE", "old-2"), ("POST", "pods")]
    assert len(world.results) == 1
    assert world.pods == []


@looptime
async def test_a_node_that_cannot_get_rid_of_a_probe_gets_no_other() -> None:
    world = World()
    world.leftover("old", deletionTimestamp="2026-11-24T00:00:00Z")
    world.want("node-1", "node-2")
    world.serve(after=1e9)
    async with world.running():
        await asyncio.sleep(5)
        (call,) = world.posted
        assert call.body["metadata"]["annotations"][probe.ANNOTATION_NODE] == "node-2"
        assert world.api.sent("DELETE") == []
        world.api.remove(f"{PODS}/old")
        await asyncio.sleep(2)
        assert len(world.posted) == 2


@looptime
async def test_a_pod_that_stays_terminating_is_told_and_seldom_another_is_tried() -> None:
    world = World()
    world.leftover("old", deletionTimestamp="2026-11-24T00:00:00Z")
    world.want("node-1")
    async with world.running():
        await asyncio.sleep(prober.STUCK_SECONDS - 10)
        assert world.stuck == []
        await asyncio.sleep(30)
        assert world.stuck == [(("node-1", "runsc"), "old")]
        await asyncio.sleep(prober.STUCK_REPORT_SECONDS)
        assert world.stuck == [(("node-1", "runsc"), "old")] * 2
        assert world.posted == []
        await asyncio.sleep(prober.FIRST_STUCK_PAUSE_SECONDS - prober.STUCK_REPORT_SECONDS - 100)
        (call,) = world.posted
        name = call.body["metadata"]["name"]
        assert name != "old"
        world.stuck.clear()
        world.api.remove(f"{PODS}/old")
        assert world.stuck == [(("node-1", "runsc"), None)]


@looptime
async def test_the_more_pods_stay_the_later_another_is_tried() -> None:
    world = World()
    for name in ("old", "second"):
        world.leftover(name, deletionTimestamp="2026-11-24T00:00:00Z")
    world.want("node-1")
    async with world.running():
        await asyncio.sleep(2 * prober.FIRST_STUCK_PAUSE_SECONDS - 10)
        assert world.posted == []
        await asyncio.sleep(30)
        assert len(world.posted) == 1
        world.stuck.clear()
        world.api.remove(f"{PODS}/old")
        assert world.stuck == [], "one is still there"


@looptime
async def test_what_is_deleted_is_deleted_once_however_late_the_watch_is() -> None:
    world = World()
    world.leftover("old")
    world.watching = False
    async with world.running():
        await asyncio.sleep(60)
        assert len(world.api.sent("DELETE")) == 1


@looptime
async def test_when_it_is_stopped_it_leaves_its_pods_to_the_next_start() -> None:
    world = World()
    world.want("node-1")
    async with world.running():
        await asyncio.sleep(1)
    (left,) = world.pods
    assert world.results == []
    world.serve(after=5)
    async with world.running():
        await asyncio.sleep(3)
        assert left not in world.pods
        assert len(world.pods) == 1
        await asyncio.sleep(5)
    assert world.isolation is Isolation.PROVEN


# --- Settings ------------------------------------------------------------------------------------


def test_the_settings_of_probes() -> None:
    settings = load(
        {
            "SANDBOXPOOL_PROBE_IMAGE": "registry.example/probe:1",
            "SANDBOXPOOL_PROBE_PULL_POLICY": "Always",
            "SANDBOXPOOL_PROBE_PULL_SECRETS": "one, two,,",
        }
    )
    image = settings.to_probe_image()
    assert image == ProbeImage("registry.example/probe:1", "Always", ("one", "two"))
    wrong = {"SANDBOXPOOL_PROBE_IMAGE": "image", "SANDBOXPOOL_PROBE_PULL_POLICY": "Sometimes"}
    with pytest.raises(SettingsError, match="SANDBOXPOOL_PROBE_PULL_POLICY"):
        load(wrong)


# --- Together with what makes them pending -------------------------------------------------------


class Silent:
    """Takes whatever it is told."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


class Fleet:
    """Kata nodes whose probes get no answer, and one node of a healthy gVisor."""

    def __init__(self, kata_nodes: int, *, control: bool) -> None:
        self.kata = [f"kata-{i:03}" for i in range(kata_nodes)]
        self.control = control
        self.cluster = cluster = ClusterCache()
        cluster.classes["gvisor"] = runtime()
        cluster.classes["kata"] = runtime("kata", "kata", uid="kata-uid")
        pools = PoolStore(lambda old, new: None)
        for name, class_name in (("g", "gvisor"), ("k", "kata")):
            body = pool_body(name, uid=name, runtimeClassName=class_name, isolationProof="PerNode")
            pools.observe(body)
        self.health = Health(
            cluster=cluster,
            issues=FailureHistory(),
            records=cast(Any, Silent()),
            listener=cast(Any, Silent()),
            pools=pools,
            wall=self.wall,
        )
        self.api = ScriptedApi(self.wall, self._changed)
        seeds = itertools.count()
        self.prober = Prober(
            client=self.api,
            namespace=OURS,
            image=ProbeImage("image"),
            pending_probes=self.health.pending_probes,
            nodes=cluster.nodes.get,
            classes=cluster.classes.get,
            sandbox_event=lambda pod: None,
            event_reader=NoInquiry(),
            on_started=self.health.observe_probe_started,
            on_result=self.health.observe_probe,
            wall=self.wall,
            seed=lambda: str(next(seeds)),
        )
        for i, name in enumerate(self.kata):
            cluster.nodes.put(None, node(name, handlers=["kata"]))
            given = {"class_name": "kata", "runtime_uid": "kata-uid", "handler": "kata"}
            cluster.pods.put(None, pod(f"pod-{i}", pool_uid="k", node=name, **given))
        cluster.nodes.put(None, node("gvisor-1", handlers=["runsc"]))

    def wall(self) -> float:
        return START + asyncio.get_running_loop().time()

    def _changed(self, path: str, old: Any, new: Any) -> None:
        before, after = (msgspec.convert(body, Pod | None) for body in (old, new))
        self.prober.observe(before, after)
        if old is None:
            class_name = new["spec"].get("runtimeClassName", "")
            name = new["metadata"]["annotations"][probe.ANNOTATION_NODE]
            if class_name == "gvisor" or (
                class_name == "" and (self.control or name == "gvisor-1")
            ):
                asyncio.get_running_loop().call_later(0.5, self._answer, path)

    def _answer(self, path: str) -> None:
        body = self.api.objects.get(path)
        if body is not None:
            control = "runtimeClassName" not in body["spec"]
            ended = {"exitCode": probe.NODES_KERNEL if control else probe.OWN_KERNEL}
            listed = [{"name": probe.PROBE_CONTAINER, "state": {"terminated": ended}}]
            name = body["metadata"]["annotations"][probe.ANNOTATION_NODE]
            body = {**body, "spec": {**body["spec"], "nodeName": name}}
            self.api.put(path, {**body, "status": {"phase": "Failed", "containerStatuses": listed}})

    def facts(self, name: str) -> NodeFacts:
        found = self.cluster.nodes.get(name)
        assert found is not None
        return found

    def record_failure(self, name: str, handler: str) -> None:
        self.cluster.quarantines.record_failure(
            self.facts(name), handler, Reason.SHIM_MISSING, "no shim", now=self.wall()
        )

    def hint(self, namespace: str, name: str, handler: str) -> None:
        self.cluster.hints.add(namespace, (name, handler), self.wall())
        self.prober.wake()

    def busy(self, why: probe_request.ProbePurpose) -> int:
        """How many probes without an answer are under way for a purpose."""
        return sum(
            running_probe.request.purpose == why
            for running_probe in self.prober._running_probes.values()
        )

    def sent(self, class_name: str) -> int:
        return sum(
            call.body["spec"].get("runtimeClassName") == class_name
            for call in self.api.sent("POST")
        )


@looptime
@pytest.mark.parametrize("victim", ["hint", "scout"])
@pytest.mark.parametrize("flood", ["evidence", "control", "hint", "scout"])
async def test_probes_without_an_answer_keep_no_other_runtime_waiting(
    flood: probe_request.ProbePurpose, victim: probe_request.ProbePurpose
) -> None:
    fleet = Fleet(150, control=flood != "control")
    task = asyncio.ensure_future(fleet.prober.run())
    try:
        await asyncio.sleep(600)
        for i, name in enumerate(fleet.kata):
            if flood == "hint":
                fleet.hint(f"flood-{i}", name, "kata")
            elif flood == "scout":
                fleet.record_failure(name, "kata")
        await asyncio.sleep(600)
        gvisor = fleet.sent("gvisor")
        assert fleet.busy(flood) >= probe_request.MAX_RUNNING_PROBES[flood], "no place is left"
        if victim == "hint":
            fleet.hint("honest", "gvisor-1", "runsc")
        else:
            fleet.record_failure("gvisor-1", "runsc")
        await asyncio.sleep(30)
        assert fleet.sent("gvisor") > gvisor
        assert not fleet.cluster.quarantines.is_open("gvisor-1", "runsc")
        assert fleet.cluster.hints.next_probes(fleet.wall() + 60) == [] or flood == "hint"
    finally:
        task.cancel()
        await asyncio.wait([task])


@looptime
async def test_a_node_that_gives_no_answer_does_not_hide_the_next_that_its_namespace_names() -> (
    None
):
    fleet = Fleet(1, control=True)
    task = asyncio.ensure_future(fleet.prober.run())
    try:
        fleet.hint("default", "kata-000", "kata")
        await asyncio.sleep(probe_request.DEADLINE_SECONDS + 10)
        fleet.hint("default", "kata-000", "kata")
        gvisor = fleet.sent("gvisor")
        fleet.hint("default", "gvisor-1", "runsc")
        # The first is paused by now, or under way again.
        await asyncio.sleep(20)
        assert fleet.sent("gvisor") > gvisor
    finally:
        task.cancel()
        await asyncio.wait([task])
