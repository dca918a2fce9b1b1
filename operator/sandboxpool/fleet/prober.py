"""Probe pods: made within limits, watched, judged and removed.

At most ``PER_SECOND`` a second, and one for each node and handler. Each purpose has places of its
own, and of these each handler has one that no other takes, so that probes without an answer, which
last for minutes, keep no other runtime waiting. What to probe next is asked for whenever there is
room, so it is always what is most urgent then. Every probe ends: with an answer, with a failure, or
at its deadline. The operator keeps nothing for its next start: probe pods that it does not know are
deleted.
"""

import asyncio
import contextlib
import logging
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from sandboxpool.api import names
from sandboxpool.api.core import Pod
from sandboxpool.api.reasons import Reason
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.errors import ApiError, UnknownOutcomeError
from sandboxpool.runtimes.diagnosis import Failure, diagnose
from sandboxpool.runtimes.evidence import (
    Evidence,
    Isolation,
    Software,
    has_run,
    judge_probe,
    no_evidence,
    software_of,
)
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.podevents import PodEvents, no_cause_message
from sandboxpool.runtimes.probe import (
    ANNOTATION_NODE,
    CONTROL,
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

ProbePurpose = Literal["hint", "scout", "control", "evidence"]
# How many may be under way for each purpose, besides one for each handler.
MAX_RUNNING_PROBES: dict[ProbePurpose, int] = {"hint": 4, "scout": 4, "control": 6, "evidence": 10}
PER_SECOND = 5.0
# Virtual machines take long to start, above all many at once.
DEADLINE_SECONDS = 120.0
# Nothing that a probe waits for makes room on a full node, unless a sandbox gives way to it.
UNSCHEDULABLE_SECONDS = 15.0
# A pod that has been Terminating for so long will not go by itself, and that is told so often.
STUCK_SECONDS = 120.0
STUCK_AGAIN_SECONDS = 600.0
# After such a pod another is made on the node once it has stayed for so long, each time longer.
FIRST_STUCK_PAUSE_SECONDS = 900.0
LONGEST_STUCK_PAUSE_SECONDS = 6 * 3600.0
# A text that does not prove that the runtime is broken speaks against it once it has stood so long:
# the kubelet has tried again by then.
FAILING_SECONDS = 8.0
# When the events of a probe that nothing is known of are read, each time once.
LOOKS = {"slow": 10.0, "overdue": DEADLINE_SECONDS - 20.0}
# Events about a probe's pod do not wake it, so it looks by itself.
LOOK_SECONDS = 1.0
# Wishes come with time, too.
IDLE_SECONDS = 5.0
CREATE_ATTEMPTS = 3
# Where a probe brought no proof the next one waits, each time longer.
FIRST_PAUSE_SECONDS = 30.0
LONGEST_PAUSE_SECONDS = 600.0
LONGEST_PAUSE_OF_MANY_SECONDS = 6 * 3600.0
MAX_BACKOFFS = 10_000

NodeHandler = tuple[str, str]

# As the scheduler says that a node is full.
_FULL = re.compile(r"\bInsufficient |\bToo many pods")


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """A probe that would tell something new.

    Attributes:
        node: the node as it is now.
        runtime: the class to start a sandbox of; None for the positive control.
        why: whether a sandbox's failure is the runtime's (hint), whether the runtime works again
            (scout), whether the node's boot id is its kernel's (control), or whether the runtime
            isolates there (evidence).
        waiting: of a positive control, the handler whose evidence waits for it.
    """

    node: NodeFacts
    runtime: Runtime | None
    purpose: ProbePurpose
    waiting: str = ""

    @property
    def line(self) -> tuple[ProbePurpose, str]:
        """With which others it stands in one line for a place."""
        return self.purpose, self.waiting or self.handler

    @property
    def handler(self) -> str:
        """What the runtime stands for."""
        return self.runtime.handler if self.runtime is not None else CONTROL

    @property
    def class_uid(self) -> str:
        """The class's uid; empty for the positive control."""
        return self.runtime.uid if self.runtime is not None else ""

    @property
    def pair(self) -> NodeHandler:
        """Node and handler."""
        return self.node.name, self.handler


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """How a probe ended.

    Attributes:
        evidence: what was learned; None if what it was to tell of is no more.
        failure: why no sandbox started, as far as that is known.
        made_at: epoch seconds; it says nothing of the time before.
        started: a sandbox started, and a container ran in it.
    """

    evidence: Evidence | None
    failure: Failure | None
    made_at: float
    started: bool = False

    @property
    def works(self) -> bool | None:
        """Whether the runtime starts sandboxes there; None if the probe could not tell."""
        if self.started:
            return True
        return False if self.failure is not None and self.failure.blames_runtime else None


OnResult = Callable[[ProbeRequest, ProbeResult], None]


def outcome_of(probe_request: ProbeRequest, result: ProbeResult) -> str:
    """One word for logs and metrics; a positive control is to see what a sandbox must not."""
    if result.evidence is None:
        return "Superseded"
    isolation = result.evidence.isolation
    if probe_request.purpose == "control" and isolation is not Isolation.UNAVAILABLE:
        return "ControlPassed" if isolation is Isolation.NOT_PROVEN else "ControlFailed"
    return isolation.value


@dataclass(slots=True)
class _RunningProbe:
    """A probe under way; ``began`` is in seconds of the event loop's clock."""

    wish: ProbeRequest
    name: str
    made_at: float
    began: float
    pod: Pod | None = None
    gone: bool = False
    failing_since: float | None = None
    # Whether somebody makes room for it on its node; None while nobody was asked.
    room: bool | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class _Backoff:
    """No such probe before this time of the event loop's clock, unless the software changes."""

    software: Software
    tries: int
    until: float
    line: tuple[ProbePurpose, str]
    silent: bool


class Prober:
    """Runs probes.

    Args:
        client: the API client.
        namespace: the operator's own, in which probe pods are made.
        image: what they run.
        options: what else their pods have.
        pending_probes: asked whenever there is room for another probe; the most urgent come first.
        nodes: the facts of a node now.
        classes: a RuntimeClass now, by name.
        sandbox_event: the last FailedCreatePodSandBox message of a pod.
        inquiry: reads the events of probe pods that take long.
        on_started: told of each probe that is sent.
        on_result: told of each probe's end.
        make_room: asked once of a probe that finds its node full; whether it is worth waiting.
        on_stuck: told of the node and handler of a probe pod, and its name, that has been
            Terminating for long, now and then; without a name once it is gone.
        wall: seconds since the epoch.
        seed: a string that was never given before, for names.
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
        on_result: OnResult,
        make_room: Callable[[ProbeRequest], bool] = lambda wish: False,
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
        # Since when pods are Terminating, and when that was told last, by uid.
        self._leaving: dict[str, float] = {}
        self._told: dict[str, float] = {}
        self._backoffs: dict[tuple[NodeHandler, ProbePurpose], _Backoff] = {}

    def wake(self) -> None:
        """There may be new wishes."""
        self._woken.set()

    def observe(self, old: Pod | None, new: Pod | None) -> None:
        """A probe pod has changed."""
        pod = new or old
        assert pod is not None, "a change has a before or an after"
        if new is not None:
            self._pods[new.metadata.uid] = new
            if new.metadata.deletionTimestamp is not None:
                now = asyncio.get_running_loop().time()
                self._leaving.setdefault(new.metadata.uid, now)
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
        self._leaving.pop(uid, None)
        was_told = self._told.pop(uid, None) is not None
        if was_told and not any(_pair_of(self._pods[told]) == pair for told in self._told):
            self._on_stuck(pair, None)

    async def run(self) -> None:
        """Probe until cancelled; probes that are under way then are left to the next start."""
        async with asyncio.TaskGroup() as flights:
            while True:
                self._woken.clear()
                await self._sweep()
                wish = self._next_request()
                if wish is not None:
                    running_probe = self._start_probe(wish)
                    flights.create_task(self._run_probe(running_probe))
                else:
                    await _within(IDLE_SECONDS, self._woken)
                # Also after waking up: what wakes us comes in bursts.
                await asyncio.sleep(1 / PER_SECOND)

    # --- What to probe ---------------------------------------------------------------------------

    def _next_request(self) -> ProbeRequest | None:
        busy = {running_probe.wish.pair for running_probe in self._running_probes.values()}
        busy |= self._occupied()
        taken = Counter(
            running_probe.wish.purpose for running_probe in self._running_probes.values()
        )
        own = {running_probe.wish.line for running_probe in self._running_probes.values()}

        def has_place(probe_request: ProbeRequest) -> bool:
            return (
                taken[probe_request.purpose] < MAX_RUNNING_PROBES[probe_request.purpose]
                or probe_request.line not in own
            )

        return next(
            (
                wish
                for wish in self._pending_probes()
                if has_place(wish) and wish.pair not in busy and not self._is_backing_off(wish)
            ),
            None,
        )

    def _occupied(self) -> set[NodeHandler]:
        """Where a probe's pod is still there, be it on its way out.

        A node that cannot get rid of one gets no other for a long time, and that is told.
        """
        now = asyncio.get_running_loop().time()
        occupied, stuck = set(), defaultdict[NodeHandler, list[float]](list)
        for uid, pod in self._pods.items():
            since, pair = self._leaving.get(uid), _pair_of(pod)
            if since is None or now - since < STUCK_SECONDS:
                occupied.add(pair)
                continue
            stuck[pair].append(since)
            if now - self._told.get(uid, -STUCK_AGAIN_SECONDS) >= STUCK_AGAIN_SECONDS:
                self._told[uid] = now
                self._on_stuck(pair, pod.metadata.name)
        for pair, times in stuck.items():
            pause = delay_after(
                len(times) - 1, FIRST_STUCK_PAUSE_SECONDS, LONGEST_STUCK_PAUSE_SECONDS
            )
            if now - max(times) < pause:
                occupied.add(pair)
        return occupied

    def _is_backing_off(self, probe_request: ProbeRequest) -> bool:
        pause = self._backoffs.get((probe_request.pair, probe_request.purpose))
        return (
            pause is not None
            and pause.software.is_on(probe_request.node)
            and asyncio.get_running_loop().time() < pause.until
        )

    def _conclude(self, probe_request: ProbeRequest, result: ProbeResult) -> None:
        what = (
            f"handler {probe_request.handler}"
            if probe_request.runtime is not None
            else "the positive control"
        )
        outcome = outcome_of(probe_request, result)
        logger.info("probe of %s on node %s: %s", what, probe_request.node.name, outcome)
        if result.evidence is not None:
            self._set_backoff(probe_request, result, result.evidence)
        self._on_result(probe_request, result)

    def _set_backoff(
        self, probe_request: ProbeRequest, result: ProbeResult, evidence: Evidence
    ) -> None:
        key = probe_request.pair, probe_request.purpose
        # Taken out even if it comes back: the oldest stand first.
        old = self._backoffs.pop(key, None)
        if evidence.isolation is Isolation.PROVEN:
            return
        if probe_request.purpose != "evidence" and result.works is not None:
            # Whoever wished for it says when the next one is due.
            return
        again = old is not None and old.software == evidence.software
        tries = old.tries + 1 if old is not None and again else 1
        silent = self._count_silent(probe_request.line) if result.works is None else 0
        pause = _backoff_seconds(probe_request, tries, silent)
        until = asyncio.get_running_loop().time() + pause
        self._backoffs[key] = _Backoff(
            evidence.software, tries, until, probe_request.line, result.works is None
        )
        if len(self._backoffs) > MAX_BACKOFFS:
            del self._backoffs[next(iter(self._backoffs))]

    def _count_silent(self, line: tuple[ProbePurpose, str]) -> int:
        """How many nodes give such probes no answer."""
        for key in [key for key in self._backoffs if self._nodes(key[0][0]) is None]:
            del self._backoffs[key]
        return sum(pause.silent and pause.line == line for pause in self._backoffs.values())

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
            refusal = await self._create(running_probe)
            if refusal is None:
                result = await self._wait_for_result(running_probe)
            else:
                text = f"the probe pod was refused: {refusal}"
                result = self._unanswered(running_probe, running_probe.wish.node, text)
            self._conclude(running_probe.wish, result)
            if running_probe.pod is not None and not running_probe.gone:
                await self._delete(running_probe.pod)
        finally:
            del self._running_probes[running_probe.name]
            self.wake()

    async def _create(self, running_probe: _RunningProbe) -> str | None:
        """Create the pod; return why the API server refused it, if it did."""
        path = resource_path("v1", "pods", self._namespace)
        wish = running_probe.wish
        body = build_probe(
            running_probe.name, self._namespace, wish.node, wish.runtime, self._image, self._options
        )
        for attempt in range(1, CREATE_ATTEMPTS + 1):
            try:
                await self._client.create(path, body)
            except ApiError as error:
                if error.already_exists:
                    # By an attempt before this one, whose outcome was unknown.
                    return None
                if error.status < 500 or attempt == CREATE_ATTEMPTS:
                    return str(error)
            except UnknownOutcomeError as error:
                logger.warning("%s", error)
            else:
                return None
            await asyncio.sleep(0.2 * attempt)
        # If it was made after all, the watch shows it.
        return None

    async def _wait_for_result(self, running_probe: _RunningProbe) -> ProbeResult:
        while True:
            running_probe.changed.clear()
            result = self._evaluate(running_probe)
            if result is not None:
                return result
            await _within(LOOK_SECONDS, running_probe.changed)

    def _evaluate(self, running_probe: _RunningProbe) -> ProbeResult | None:
        """Judge a probe as it is now; None while it is worth waiting for."""
        wish, pod = running_probe.wish, running_probe.pod
        node = self._nodes(wish.node.name)
        if node is None or not software_of(wish.node).is_on(node):
            return ProbeResult(None, None, running_probe.made_at)
        if not self._is_current(wish.runtime):
            return ProbeResult(None, None, running_probe.made_at)
        if running_probe.gone:
            return self._unanswered(
                running_probe, node, "the probe pod was deleted by somebody else"
            )
        failure, told = None, None
        if pod is not None:
            wanted = wish.runtime.class_name if wish.runtime is not None else ""
            if pod.spec.runtimeClassName != wanted:
                text = f"admission gave the probe pod the class {pod.spec.runtimeClassName!r}"
                return self._unanswered(running_probe, node, text)
            if pod.spec.nodeName not in ("", node.name):
                text = f"the probe pod came to node {pod.spec.nodeName!r}: admission changed it"
                return self._unanswered(running_probe, node, text)
            evidence = judge_probe(pod, node, self._wall())
            if evidence is not None and has_run(pod):
                return ProbeResult(evidence, None, running_probe.made_at, started=True)
            told = self._event_reader.events_of(pod)
            failure = diagnose(pod, self._sandbox_event(pod), told)
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
            # Nobody has said yet what it waits for.
            for stage, seconds in LOOKS.items():
                if waited >= seconds:
                    self._event_reader.enqueue(pod, "", stage)
        limit = DEADLINE_SECONDS
        if failure is not None and failure.reason is Reason.UNSCHEDULABLE:
            if waited < UNSCHEDULABLE_SECONDS:
                return None
            if running_probe.room is None and _FULL.search(failure.message):
                running_probe.room = self._make_room(wish)
            limit = DEADLINE_SECONDS if running_probe.room else UNSCHEDULABLE_SECONDS
        if waited < limit:
            return None
        if failure is None and pod is not None:
            failure = _silent(pod, node, told)
        cause = f"{failure.reason}: {failure.message}" if failure else "its pod was never seen"
        return self._unanswered(
            running_probe, node, f"no answer after {limit:.0f} s: {cause}", failure
        )

    def _is_current(self, runtime: Runtime | None) -> bool:
        """The class is still the one that the probe was made for."""
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
        evidence = no_evidence(node, running_probe.wish.class_uid, self._wall(), message)
        return ProbeResult(evidence, failure, running_probe.made_at)

    # --- Leftovers -------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        """Delete the probe pods that belong to no probe under way."""
        for pod in list(self._pods.values()):
            known = pod.metadata.name in self._running_probes or pod.metadata.uid in self._deleted
            if known or pod.metadata.deletionTimestamp is not None:
                continue
            if not await self._delete(pod):
                return

    async def _delete(self, pod: Pod) -> bool:
        """Delete a probe pod; return whether that is done. If not, the sweep does it again."""
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


def _pair_of(pod: Pod) -> NodeHandler:
    annotations = pod.metadata.annotations
    return annotations.get(ANNOTATION_NODE, ""), annotations.get(names.ANNOTATION_HANDLER, "")


def _silent(pod: Pod, node: NodeFacts, told: PodEvents | None) -> Failure:
    """A probe has run out of time, and nobody has said why."""
    made = pod.condition("PodReadyToStartContainers")
    no_sandbox = made is not None and made.status == "False" and node.tells_of_sandboxes
    text = "the sandbox was not made" if no_sandbox else "no container ran"
    return Failure(
        Reason.SANDBOX_START_TIMEOUT,
        f"{text}, and {no_cause_message(told)}",
        pod.spec.nodeName,
        # An image that is pulled slowly blames nobody; a sandbox is made before any is pulled.
        blames_runtime=no_sandbox,
    )


def _backoff_seconds(probe_request: ProbeRequest, tries: int, silent: int) -> float:
    """Spread by node and handler, so that a fleet does not ask all at once.

    Nodes that give no answer hold their places for a deadline each: together, about half of them.
    """
    longest = delay_after(tries - 1, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
    of_many = 2 * DEADLINE_SECONDS / MAX_RUNNING_PROBES[probe_request.purpose] * silent
    of_many = min(of_many, LONGEST_PAUSE_OF_MANY_SECONDS)
    longest = max(longest, of_many)
    share = zlib.crc32(f"{probe_request.pair}{tries}".encode()) / 2**32
    return longest * (0.5 + share / 2)


async def _within(seconds: float, event: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
