"""Creates probe pods within limits, watches them, judges their results and deletes them.

At most ``PER_SECOND`` probes start a second, and one at a time runs for each node and handler. Each
purpose has its own concurrency limit, beyond which each handler may still run one probe, so that
probes without an answer, which last for minutes, do not block other runtimes. The prober asks for
the next probe whenever one may start, so that it always starts the most urgent one. Every probe
ends: with an answer, with a failure, or at its deadline. Nothing is kept across restarts: probe
pods that the operator does not know are deleted.
"""

import asyncio
import contextlib
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sandboxpool.api import names
from sandboxpool.api.core import Pod
from sandboxpool.api.reasons import Reason
from sandboxpool.fleet.probe_backoff import ProbeBackoffs
from sandboxpool.fleet.probe_request import (
    DEADLINE_SECONDS,
    MAX_RUNNING_PROBES,
    ProbeRequest,
    ProbeResult,
    outcome_of,
)
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.errors import ApiError, UnknownOutcomeError
from sandboxpool.runtimes.diagnosis import Failure, diagnose
from sandboxpool.runtimes.evidence import (
    has_run,
    judge_probe,
    no_evidence,
    software_of,
)
from sandboxpool.runtimes.nodes import NodeFacts, NodeHandler
from sandboxpool.runtimes.podevents import PodEvents, no_cause_message
from sandboxpool.runtimes.probe import (
    ANNOTATION_NODE,
    NO_OPTIONS,
    ProbeImage,
    ProbeOptions,
    build_probe,
    probe_name,
)
from sandboxpool.runtimes.resolve import Runtime
from sandboxpool.sandboxes.event_reader import PodEventReader
from sandboxpool.util.backoff import delay_after

logger = logging.getLogger(__name__)

PER_SECOND = 5.0
# A full node stays full while a probe waits, unless a sandbox is preempted for it.
UNSCHEDULABLE_SECONDS = 15.0
# A pod that is Terminating for this long is stuck, which is reported at this interval.
STUCK_SECONDS = 120.0
STUCK_REPORT_SECONDS = 600.0
# The pause before another probe on a node with stuck pods; it grows with their number.
FIRST_STUCK_PAUSE_SECONDS = 900.0
LONGEST_STUCK_PAUSE_SECONDS = 6 * 3600.0
# A failure that may be transient counts once it has lasted this long: the kubelet has tried again
# by then.
FAILING_SECONDS = 8.0
# How long after its start the events of a probe without a known failure are read, once each.
EVENT_READ_SECONDS = {"slow": 10.0, "overdue": DEADLINE_SECONDS - 20.0}
# Events about a probe pod do not wake its probe, so it polls.
POLL_SECONDS = 1.0
# Probes also become due by time alone.
IDLE_SECONDS = 5.0
CREATE_ATTEMPTS = 3
# The scheduler's messages that a node is full.
_FULL = re.compile(r"\bInsufficient |\bToo many pods")


@dataclass(slots=True)
class _RunningProbe:
    """A probe that runs; ``began`` is in seconds of the event loop's clock."""

    request: ProbeRequest
    name: str
    made_at: float
    began: float
    pod: Pod | None = None
    gone: bool = False
    failing_since: float | None = None
    # Whether a sandbox is preempted for it; None while that was not asked for.
    has_room: bool | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Prober:
    """Runs probes.

    Args:
        client: the API client.
        namespace: the operator's namespace, in which probe pods are created.
        image: the image and command of probe pods.
        options: further settings of probe pods.
        pending_probes: returns the probes that are due, the most urgent first.
        nodes: returns the facts of a node.
        classes: returns a RuntimeClass by name.
        sandbox_event: returns the last FailedCreatePodSandBox message of a pod.
        event_reader: reads the events of probe pods that take long.
        on_started: called for each probe before its pod is created.
        on_result: called with the result of each probe.
        make_room: called once for a probe whose node is full; returns whether to wait for room.
        on_stuck: called at intervals with node and handler, and the name of their probe pod that
            is stuck Terminating; with None once no such pod is left.
        wall: seconds since the epoch.
        seed: returns a unique string, for names.
    """

    def __init__(
        self,
        *,
        client: ApiClient,
        namespace: str,
        image: ProbeImage,
        pending_probes: Callable[[], Iterable[ProbeRequest]],
        nodes: Callable[[str], NodeFacts | None],
        classes: Callable[[str], Runtime | None],
        sandbox_event: Callable[[Pod], str | None],
        event_reader: PodEventReader,
        on_started: Callable[[ProbeRequest], None],
        on_result: Callable[[ProbeRequest, ProbeResult], None],
        make_room: Callable[[ProbeRequest], bool] = lambda request: False,
        on_stuck: Callable[[NodeHandler, str | None], None] = lambda pair, name: None,
        wall: Callable[[], float],
        seed: Callable[[], str],
        options: ProbeOptions = NO_OPTIONS,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._image = image
        self._options = options
        self._pending_probes = pending_probes
        self._nodes = nodes
        self._classes = classes
        self._sandbox_event = sandbox_event
        self._event_reader = event_reader
        self._on_started = on_started
        self._on_result = on_result
        self._make_room = make_room
        self._on_stuck = on_stuck
        self._wall = wall
        self._seed = seed
        self._woken = asyncio.Event()
        self._running_probes: dict[str, _RunningProbe] = {}
        self._pods: dict[str, Pod] = {}
        self._deleted: set[str] = set()
        # Since when pods are Terminating, and when that was last reported, by uid.
        self._terminating_since: dict[str, float] = {}
        self._stuck_reported_at: dict[str, float] = {}
        self._backoffs = ProbeBackoffs(nodes)

    def wake(self) -> None:
        """Look for pending probes now."""
        self._woken.set()

    def observe(self, old: Pod | None, new: Pod | None) -> None:
        """A probe pod has changed."""
        pod = new or old
        assert pod is not None, "a change has a before or an after"
        if new is not None:
            self._pods[new.metadata.uid] = new
            if new.metadata.deletionTimestamp is not None:
                now = asyncio.get_running_loop().time()
                self._terminating_since.setdefault(new.metadata.uid, now)
        else:
            self._forget(pod)
            self._event_reader.forget(pod)
        running_probe = self._running_probes.get(pod.metadata.name)
        if running_probe is None:
            self.wake()
        else:
            running_probe.pod, running_probe.gone = pod, new is None
            running_probe.changed.set()

    def _forget(self, pod: Pod) -> None:
        uid, pair = pod.metadata.uid, _pair_of(pod)
        self._pods.pop(uid, None)
        self._deleted.discard(uid)
        self._terminating_since.pop(uid, None)
        was_reported = self._stuck_reported_at.pop(uid, None) is not None
        if was_reported and not any(
            _pair_of(self._pods[other]) == pair for other in self._stuck_reported_at
        ):
            self._on_stuck(pair, None)

    async def run(self) -> None:
        """Probe until cancelled; the next process deletes the pods of probes that run then."""
        async with asyncio.TaskGroup() as probes:
            while True:
                self._woken.clear()
                await self._sweep()
                request = self._next_request()
                if request is not None:
                    running_probe = self._start_probe(request)
                    probes.create_task(self._run_probe(running_probe))
                else:
                    await _within(IDLE_SECONDS, self._woken)
                # Also after a wake-up: these come in bursts.
                await asyncio.sleep(1 / PER_SECOND)

    # --- What to probe ---------------------------------------------------------------------------

    def _next_request(self) -> ProbeRequest | None:
        now = asyncio.get_running_loop().time()
        busy = {running_probe.request.pair for running_probe in self._running_probes.values()}
        busy |= self._occupied()
        running = Counter(
            running_probe.request.purpose for running_probe in self._running_probes.values()
        )
        running_groups = {
            running_probe.request.group for running_probe in self._running_probes.values()
        }

        def may_start(probe_request: ProbeRequest) -> bool:
            return (
                running[probe_request.purpose] < MAX_RUNNING_PROBES[probe_request.purpose]
                or probe_request.group not in running_groups
            )

        return next(
            (
                request
                for request in self._pending_probes()
                if may_start(request)
                and request.pair not in busy
                and not self._backoffs.is_backing_off(request, now)
            ),
            None,
        )

    def _occupied(self) -> set[NodeHandler]:
        """The nodes and handlers that have a probe pod, Terminating ones included.

        Where a pod is stuck Terminating, this is reported, and no other probe runs for a long time.
        """
        now = asyncio.get_running_loop().time()
        occupied, stuck = set(), defaultdict[NodeHandler, list[float]](list)
        for uid, pod in self._pods.items():
            since, pair = self._terminating_since.get(uid), _pair_of(pod)
            if since is None or now - since < STUCK_SECONDS:
                occupied.add(pair)
                continue
            stuck[pair].append(since)
            if (
                now - self._stuck_reported_at.get(uid, -STUCK_REPORT_SECONDS)
                >= STUCK_REPORT_SECONDS
            ):
                self._stuck_reported_at[uid] = now
                self._on_stuck(pair, pod.metadata.name)
        for pair, times in stuck.items():
            pause = delay_after(
                len(times) - 1, FIRST_STUCK_PAUSE_SECONDS, LONGEST_STUCK_PAUSE_SECONDS
            )
            if now - max(times) < pause:
                occupied.add(pair)
        return occupied

    def _conclude(self, probe_request: ProbeRequest, result: ProbeResult) -> None:
        what = (
            f"handler {probe_request.handler}"
            if probe_request.runtime is not None
            else "the positive control"
        )
        outcome = outcome_of(probe_request, result)
        logger.info("probe of %s on node %s: %s", what, probe_request.node.name, outcome)
        if result.evidence is not None:
            now = asyncio.get_running_loop().time()
            self._backoffs.record(probe_request, result, result.evidence, now)
        self._on_result(probe_request, result)

    # --- One probe -------------------------------------------------------------------------------

    def _start_probe(self, probe_request: ProbeRequest) -> _RunningProbe:
        name = probe_name(self._seed())
        began = asyncio.get_running_loop().time()
        running_probe = _RunningProbe(probe_request, name, made_at=self._wall(), began=began)
        self._running_probes[name] = running_probe
        self._on_started(probe_request)
        return running_probe

    async def _run_probe(self, running_probe: _RunningProbe) -> None:
        try:
            rejection = await self._create(running_probe)
            if rejection is None:
                result = await self._wait_for_result(running_probe)
            else:
                text = f"the API server rejected the probe pod: {rejection}"
                result = self._unanswered(running_probe, running_probe.request.node, text)
            self._conclude(running_probe.request, result)
            if running_probe.pod is not None and not running_probe.gone:
                await self._delete(running_probe.pod)
        finally:
            del self._running_probes[running_probe.name]
            self.wake()

    async def _create(self, running_probe: _RunningProbe) -> str | None:
        """Create the pod; return why the API server rejected it, if it did."""
        path = resource_path("v1", "pods", self._namespace)
        request = running_probe.request
        body = build_probe(
            running_probe.name,
            self._namespace,
            request.node,
            request.runtime,
            self._image,
            self._options,
        )
        for attempt in range(1, CREATE_ATTEMPTS + 1):
            try:
                await self._client.create(path, body)
            except ApiError as error:
                if error.already_exists:
                    # An earlier attempt with an unknown outcome created it.
                    return None
                if error.status < 500 or attempt == CREATE_ATTEMPTS:
                    return str(error)
            except UnknownOutcomeError as error:
                logger.warning("%s", error)
            else:
                return None
            await asyncio.sleep(0.2 * attempt)
        # If the pod was created after all, the watch shows it.
        return None

    async def _wait_for_result(self, running_probe: _RunningProbe) -> ProbeResult:
        while True:
            running_probe.changed.clear()
            result = self._evaluate(running_probe)
            if result is not None:
                return result
            await _within(POLL_SECONDS, running_probe.changed)

    def _evaluate(self, running_probe: _RunningProbe) -> ProbeResult | None:
        """Judge a probe; None while it has no result yet."""
        request, pod = running_probe.request, running_probe.pod
        node = self._nodes(request.node.name)
        if node is None or not software_of(request.node).is_on(node):
            return ProbeResult(None, None, running_probe.made_at)
        if not self._is_current(request.runtime):
            return ProbeResult(None, None, running_probe.made_at)
        if running_probe.gone:
            return self._unanswered(
                running_probe, node, "the probe pod was deleted by another client"
            )
        failure, events = None, None
        if pod is not None:
            change = _change_by_admission(pod, request)
            if change:
                return self._unanswered(running_probe, node, change)
            evidence = judge_probe(pod, node, self._wall())
            if evidence is not None and has_run(pod):
                return ProbeResult(evidence, None, running_probe.made_at, started=True)
            events = self._event_reader.events_of(pod)
            failure = diagnose(pod, self._sandbox_event(pod), events)
            if evidence is not None:
                return ProbeResult(evidence, failure, running_probe.made_at)
        now = asyncio.get_running_loop().time()
        waited = now - running_probe.began
        if failure is None or not failure.blames_runtime:
            running_probe.failing_since = None
        elif running_probe.failing_since is None:
            running_probe.failing_since = now
        if failure is not None and (
            failure.proves_broken
            or (
                running_probe.failing_since is not None
                and now - running_probe.failing_since >= FAILING_SECONDS
            )
        ):
            return self._unanswered(
                running_probe, node, f"{failure.reason}: {failure.message}", failure
            )
        if pod is not None and pod.spec.nodeName and failure is None:
            # Neither its status nor its events show a failure so far.
            for stage, seconds in EVENT_READ_SECONDS.items():
                if waited >= seconds:
                    self._event_reader.enqueue(pod, "", stage)
        limit = DEADLINE_SECONDS
        if failure is not None and failure.reason is Reason.UNSCHEDULABLE:
            if waited < UNSCHEDULABLE_SECONDS:
                return None
            if running_probe.has_room is None and _FULL.search(failure.message):
                running_probe.has_room = self._make_room(request)
            limit = DEADLINE_SECONDS if running_probe.has_room else UNSCHEDULABLE_SECONDS
        if waited < limit:
            return None
        if failure is None and pod is not None:
            failure = _timeout_failure(pod, node, events)
        cause = f"{failure.reason}: {failure.message}" if failure else "its pod was never seen"
        return self._unanswered(
            running_probe, node, f"no answer after {limit:.0f} s: {cause}", failure
        )

    def _is_current(self, runtime: Runtime | None) -> bool:
        """Whether the class is still the one that the probe was created for."""
        if runtime is None:
            return True
        now = self._classes(runtime.class_name)
        return now is not None and now.uid == runtime.uid

    def _unanswered(
        self,
        running_probe: _RunningProbe,
        node: NodeFacts,
        message: str,
        failure: Failure | None = None,
    ) -> ProbeResult:
        evidence = no_evidence(node, running_probe.request.class_uid, self._wall(), message)
        return ProbeResult(evidence, failure, running_probe.made_at)

    # --- Leftovers -------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        """Delete the probe pods that belong to no running probe."""
        for pod in list(self._pods.values()):
            known = pod.metadata.name in self._running_probes or pod.metadata.uid in self._deleted
            if known or pod.metadata.deletionTimestamp is not None:
                continue
            if not await self._delete(pod):
                return

    async def _delete(self, pod: Pod) -> bool:
        """Delete a probe pod; return False if it failed, so that the sweep deletes it later."""
        path = resource_path("v1", "pods", self._namespace, pod.metadata.name)
        try:
            await self._client.delete(path, uid=pod.metadata.uid)
        except ApiError as error:
            if not (error.not_found or error.conflict):
                logger.warning("probe pod %s was not deleted: %s", pod.metadata.name, error)
                return False
        except UnknownOutcomeError as error:
            logger.warning("%s", error)
            return False
        if pod.metadata.uid in self._pods:
            self._deleted.add(pod.metadata.uid)
        return True


def _change_by_admission(pod: Pod, request: ProbeRequest) -> str:
    """What admission has changed about a probe pod so that it cannot answer; empty if nothing."""
    wanted = request.runtime.class_name if request.runtime is not None else ""
    if pod.spec.runtimeClassName != wanted:
        return f"admission gave the probe pod the RuntimeClass {pod.spec.runtimeClassName!r}"
    if pod.spec.nodeName not in ("", request.node.name):
        return f"the probe pod runs on node {pod.spec.nodeName!r}: admission changed its node"
    return ""


def _pair_of(pod: Pod) -> NodeHandler:
    annotations = pod.metadata.annotations
    return annotations.get(ANNOTATION_NODE, ""), annotations.get(names.ANNOTATION_HANDLER, "")


def _timeout_failure(pod: Pod, node: NodeFacts, events: PodEvents | None) -> Failure:
    """The failure of a probe that reached its deadline without a known cause."""
    made = pod.condition("PodReadyToStartContainers")
    no_sandbox = made is not None and made.status == "False" and node.tells_of_sandboxes
    text = "the sandbox was not created" if no_sandbox else "no container ran"
    return Failure(
        Reason.SANDBOX_START_TIMEOUT,
        f"{text}, and {no_cause_message(events)}",
        pod.spec.nodeName,
        # A slow image pull is not the runtime's fault; the sandbox is created before any pull.
        blames_runtime=no_sandbox,
    )


async def _within(seconds: float, event: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
