"""One pool in a pure world: pods, nodes and people, and a caller that carries out what is decided.

Nothing here knows of requests or event loops. What is decided is done at once, and seen only when
the watch brings it, which may be late; between the two stands what the operator remembers of its
own requests. Time is a number, and nature moves on by whole seconds.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.pools.expectations import Expectations
from sandboxpool.pools.plan import PoolInput, PoolPlan
from sandboxpool.pools.state import PoolState
from sandboxpool.runtimes.diagnosis import Failure
from sandboxpool.runtimes.host_state import HostState
from sandboxpool.runtimes.node_constraints import NodeConstraints
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.resolve import Resolution, resolve
from sandboxpool.runtimes.verdict import Verdict, assess_node, summarize
from sandboxpool.sandboxes.members import Member, Members
from support.builders import ACCEPTED, NOT_CHECKED, NOW, facts, member, pool_input, runtime

HANDLER = "runsc"
HOSTS = ("node-0", "node-1", "node-2")
SCHEDULE_SECONDS = 1.0
START_SECONDS = 2.0
STOP_SECONDS = 2.0
# Later than this the watch never is: less than what the operator waits for what it has asked for.
LONGEST_LAG_SECONDS = 60.0

UNSCHEDULABLE = Failure(Reason.UNSCHEDULABLE, "0/3 nodes are available", self_healing=True)
PULLING = Failure(Reason.IMAGE_PULL_FAILED, "main: ErrImagePull", self_healing=True)
NO_SANDBOX = Failure(Reason.SANDBOX_CREATE_FAILED, "no sandbox", blames_runtime=True)
STUCK = Failure(Reason.SANDBOX_CREATE_FAILED, "it will never start", blames_runtime=True)
ENDED = Failure(Reason.POD_FAILED, "exit code 1")


class Start(Enum):
    """What becomes of a sandbox that is to start."""

    FINE = "fine"
    ENDS = "ends at once"
    HANGS = "hangs, and nobody says why"
    BREAKS = "the runtime says why not"
    PULLS = "waits for its image"
    STICKS = "never starts, whatever becomes of the node"


# What is known of a sandbox that does not start.
FAILURES = {
    Start.ENDS: ENDED,
    Start.HANGS: None,
    Start.BREAKS: NO_SANDBOX,
    Start.PULLS: PULLING,
    Start.STICKS: STUCK,
}


@dataclass
class Host:
    """A node, and what is known of the runtime on it."""

    joined: float = 0.0
    ready: bool = True
    cordoned: bool = False
    serves: bool = True
    quarantined: bool = False
    starts: Start = Start.FINE


@dataclass(frozen=True)
class Sandbox:
    """A pod as it stands on the API server.

    Attributes:
        since: when it came to where it is: made, scheduled, or on its way out.
        excluded: the nodes that it keeps away from.
        probed: it has brought a probe of its own, which proves its isolation once it has started.
        started: its containers run; whether they are ready is for its node to say, and for its
            readiness probe.
        unready: its readiness probe fails.
        cold: it was made for a claim.
    """

    name: str
    created: float
    revision: str
    class_name: str
    runtime_uid: str
    overhead: tuple[tuple[str, str], ...]
    excluded: tuple[str, ...]
    probed: bool
    since: float
    node: str = ""
    started: bool = False
    failure: Failure | None = None
    claimed: bool = False
    leaving: bool = False
    unready: bool = False
    cold: bool = False

    @property
    def uid(self) -> str:
        """Names are never used twice, so one will do for both."""
        return f"{self.name}-uid"

    @property
    def ended(self) -> bool:
        """Its containers have ended."""
        return self.failure is ENDED


@functools.cache
def _facts(name: str, ready: bool, cordoned: bool, serves: bool, joined: float) -> NodeFacts:
    handlers = ["runc", HANDLER] if serves else ["runc"]
    return facts(name, ready=ready, unschedulable=cordoned, handlers=handlers, joined=joined)


class PoolWorld:
    """A pool, its pods and the nodes; people change its attributes.

    Attributes:
        lag: seconds until the watch shows what happens from now on.
        losing: so many of the next creates are lost, and nobody is told.
        refuses: the API server refuses to make pods.
        admission: the class that an admission plugin gives to pods, if any.
        starts: what becomes of new sandboxes on every node.
        line: the claims that wait: whether each wants a sandbox to be started for it.
    """

    def __init__(self, **spec: Any) -> None:
        # Not a whole second, as creation times are: timers do not ring at the very moment.
        self.now = NOW + 0.25
        self.hosts = {name: Host() for name in HOSTS}
        self.pods: dict[str, Sandbox] = {}
        self.seen: dict[str, Sandbox] = {}
        self.template = 1
        self.class_uid: str | None = "class-1"
        self.overhead = 0
        self.accepted = True
        self.lag = 0.0
        self.losing = 0
        self.refuses = False
        self.admission = ""
        self.starts = Start.FINE
        self.claim_queue: list[bool] = []
        self._avoided: set[str] = set()
        self._members: dict[str, Member] = {}
        self.creates: list[float] = []
        self.deletes: list[float] = []
        self.wake_at: float | None = None
        self._serials = itertools.count()
        self._events: deque[tuple[float, str, Sandbox | None]] = deque()
        self.state = PoolState(Expectations(lambda: self.now))
        self.spec_fields: dict[str, Any] = {}
        self.edit(**spec)

    # --- The API server --------------------------------------------------------------------------

    def put(self, pod: Sandbox) -> Sandbox:
        """Write a pod; the watch tells of it in time."""
        self.pods[pod.uid] = pod
        self._tell(pod.uid, pod)
        return pod

    def remove(self, pod: Sandbox) -> None:
        """A pod is gone."""
        del self.pods[pod.uid]
        self._tell(pod.uid, None)

    def end(self, pod: Sandbox) -> None:
        """Delete a pod; one on a node only begins to go."""
        if not pod.node:
            self.remove(pod)
        elif not pod.leaving:
            self.put(replace(pod, leaving=True, since=self.now))

    def _tell(self, uid: str, pod: Sandbox | None) -> None:
        due = self.now + self.lag
        if self._events:
            due = max(due, self._events[-1][0])
        self._events.append((due, uid, pod))

    def deliver(self) -> bool:
        """Show the operator what is due; whether there was anything."""
        some = False
        expected = self.state.expectations
        while self._events and self._events[0][0] <= self.now:
            _, uid, pod = self._events.popleft()
            some = True
            if pod is None:
                self.seen.pop(uid, None)
                expected.deletion_observed(uid)
                continue
            self.seen[uid] = pod
            expected.creation_observed(pod.name)
            if pod.leaving:
                expected.deletion_observed(uid)
        return some

    # --- What the operator knows -----------------------------------------------------------------

    def edit(self, **fields: Any) -> None:
        """Change fields of the spec; None removes one."""
        merged = {**self.spec_fields, **fields}
        self.spec_fields = {k: v for k, v in merged.items() if v is not None}
        self._base = pool_input(**self.spec_fields)

    @property
    def per_sandbox(self) -> bool:
        """Each sandbox brings its own probe."""
        return self.spec_fields.get("isolationProof") == "PerSandbox"

    @property
    def revision(self) -> str:
        """What pods are made from now."""
        return f"{self.template}{self.per_sandbox}"

    @property
    def resolution(self) -> Resolution:
        """What the pool's class stands for."""
        if self.class_uid is None:
            return resolve("gvisor", None, {})
        found = runtime(uid=self.class_uid, overhead=[("memory", f"{self.overhead}Mi")])
        return resolve("gvisor", None, {"gvisor": found})

    def facts_of(self, name: str) -> NodeFacts | None:
        """What is known of a node; None if there is none."""
        host = self.hosts.get(name)
        if host is None:
            return None
        return _facts(name, host.ready, host.cordoned, host.serves, host.joined)

    @property
    def verdict(self) -> Verdict:
        """How the nodes stand."""
        standings = []
        for name, host in self.hosts.items():
            known = self.facts_of(name)
            assert known is not None
            assessment = assess_node(
                known, HANDLER, NodeConstraints(), quarantined=host.quarantined, not_isolating=False
            )
            if assessment is not None:
                standings.append(assessment)
        return summarize(standings)

    def usable(self, pod: Sandbox) -> bool:
        """It could be handed out, if it is the pool's to hand out."""
        host = self.hosts.get(pod.node)
        return (
            host is not None
            and self.is_ready(pod)
            and not host.cordoned
            and host.serves
            and not host.quarantined
            and (pod.probed or not self.per_sandbox)
        )

    def is_ready(self, pod: Sandbox) -> bool:
        """Its containers are ready, and its node says so."""
        host = self.hosts.get(pod.node)
        return pod.started and not pod.ended and not pod.unready and host is not None and host.ready

    def _state_of(self, pod: Sandbox) -> SandboxState:
        if pod.leaving or self.state.expectations.is_deleting(pod.uid):
            return SandboxState.ENDED if pod.ended else SandboxState.STOPPING
        now = self.pods.get(pod.uid, pod)
        if now.claimed:
            # The operator has done it itself, so it need not be told.
            if pod.ended:
                return SandboxState.ENDED
            return SandboxState.COLD if pod.cold and not pod.started else SandboxState.CLAIMED
        if pod.ended:
            return SandboxState.FAILED
        host = self.hosts.get(pod.node)
        sound = host is not None and host.ready and not host.cordoned and host.serves
        if pod.node and (host is None or not sound or host.quarantined):
            return SandboxState.STRANDED
        if not pod.started:
            return SandboxState.STARTING
        if pod.unready:
            return SandboxState.UNREADY
        return SandboxState.WARM if pod.probed or not self.per_sandbox else SandboxState.UNPROVEN

    def _member(self, pod: Sandbox) -> Member:
        state = self._state_of(pod)
        settled = state in (
            SandboxState.WARM,
            SandboxState.UNPROVEN,
            SandboxState.CLAIMED,
            SandboxState.ENDED,
            SandboxState.STOPPING,
        )
        host = self.hosts.get(pod.node)
        made = member(
            pod.name,
            state,
            age=self.now - pod.created,
            now=self.now,
            node_name=pod.node,
            ready=self.is_ready(pod),
            overhead=pod.overhead,
            failure=None if settled else pod.failure,
            revision=pod.revision,
            class_name=pod.class_name,
            runtime_uid=pod.runtime_uid,
        )
        quarantined = host is not None and host.quarantined
        made = replace(made, host_state=HostState(self.facts_of(pod.node), HANDLER, quarantined))
        self._members[pod.uid] = made = self._remembered(made)
        return made

    def _remembered(self, made: Member) -> Member:
        """With what only those know who have seen the past."""
        former = self._members.get(made.uid)
        waits = made.failure is not None and made.failure.self_healing
        since = ready_since = self.now
        was_ready = made.ready
        if former is not None:
            was_waiting = former.failure is not None and former.failure.self_healing
            if (former.state, former.node_name, was_waiting) == (
                made.state,
                made.node_name,
                waits,
            ):
                since = former.since
            if former.ready_since is not None:
                ready_since = former.ready_since
            was_ready |= former.was_ready
        return replace(
            made,
            since=since,
            ready_since=ready_since if made.ready else None,
            was_ready=was_ready,
        )

    def given(self) -> PoolInput:
        """What the decision depends on, as the operator gathers it."""
        self._look_for_unseen()
        members = Members(self._member(pod) for pod in self.seen.values())
        self.state.refresh_backoff(self.now)
        self.state.note_success(members, self.resolution.runtime, self.now)
        creating, cold = self.state.expectations.count_creating()
        verdict = self.verdict
        return replace(
            self._base,
            revision=self.revision,
            resolution=self.resolution,
            verdict=verdict,
            hostnames_since=self.state.note_hostnames(verdict.excluded, self.now),
            template=ACCEPTED if self.accepted else NOT_CHECKED,
            members=members,
            creating=creating,
            creating_cold=cold,
            claim_queue=tuple(self.claim_queue) if any(self.claim_queue) else (),
            stuck_nodes=self.state.stuck_nodes(self.now),
            backoff=self.state.backoff,
            now=self.now,
            clock=self.now,
        )

    def _look_for_unseen(self) -> None:
        """Ask the API server about what was done and is not seen, as the operator does."""
        expected, made = self.state.expectations, {pod.name for pod in self.pods.values()}
        for name in expected.creations_to_verify():
            expected.defer_verification(name)
            if name not in made:
                expected.creation_observed(name)
        for uid in expected.deletions_to_verify():
            expected.defer_verification(uid)
            pod = self.pods.get(uid)
            if uid not in self.seen or (pod is not None and not pod.leaving):
                expected.deletion_observed(uid)

    # --- What the operator does ------------------------------------------------------------------

    def carry_out(self, given: PoolInput, plan: PoolPlan) -> bool:
        """Do what was decided, as the operator does; whether the API server let it all be done."""
        self._note_wake(given, plan)
        self.state.note_stuck(plan.stuck_nodes, self.now)
        self._avoided = {node for node, _ in plan.avoid}
        expected, smooth = self.state.expectations, True
        names = [self._new_name() for _ in range(plan.create)]
        for name in names:
            expected.expect_creation(name)
        cold = [self._new_name() for _ in range(plan.cold)]
        for name in cold:
            self.claim_queue.remove(True)
            expected.expect_creation(name, cold=True)
        for deletion in plan.delete:
            expected.expect_deletion(deletion.member.uid)
        failed = []
        for deletion in plan.delete:
            uid = deletion.member.uid
            now = self.pods.get(uid)
            if now is not None and now != self.seen[uid]:
                # Conflict: it has changed since it was judged.
                expected.deletion_observed(uid)
                smooth = False
                continue
            if now is None:
                expected.deletion_observed(uid)
                smooth = False
            else:
                self.deletes.append(self.now)
                self.end(now)
                if now.cold:
                    # Its claim still wants one.
                    self.claim_queue.append(True)
            if deletion.failed:
                failed.append(deletion)
        if failed:
            self.state.back_off(failed[0].reason, failed[0].message, self.now)
        for name in (*cold, *names):
            if self.refuses:
                # Who had their turn keep their place.
                refused = [*cold, *names][[*cold, *names].index(name) :]
                self.claim_queue[:0] = [True for left in refused if left in cold]
                for left in refused:
                    expected.creation_observed(left)
                self.creates.append(self.now)
                self.state.back_off(Reason.QUOTA_EXCEEDED, "exceeded quota", self.now)
                return False
            self._create(name, cold=name in cold)
        return smooth

    def _new_name(self) -> str:
        return f"pod-{next(self._serials)}"

    def _create(self, name: str, *, cold: bool) -> None:
        self.creates.append(self.now)
        self.state.expectations.creation_succeeded(name)
        if self.losing:
            self.losing -= 1
            return
        runtime_now = self.resolution.runtime
        assert runtime_now is not None, "nothing is made of a class that does not exist"
        self.put(
            Sandbox(
                name,
                # As the API server writes it.
                created=float(int(self.now)),
                revision=self.revision,
                class_name=self.admission or "gvisor",
                runtime_uid=runtime_now.uid,
                overhead=runtime_now.overhead,
                excluded=tuple(sorted({*self.verdict.excluded, *self._avoided})),
                probed=self.per_sandbox,
                since=self.now,
                claimed=cold,
                cold=cold,
            )
        )

    def _note_wake(self, given: PoolInput, plan: PoolPlan) -> None:
        times = [plan.requeue_at] if plan.requeue_at is not None else []
        if given.backoff.until > self.now:
            times.append(given.backoff.until)
        self.wake_at = min(times, default=None)

    @property
    def wake(self) -> float | None:
        """When time alone makes the operator look again."""
        times = [self.wake_at] if self.wake_at is not None else []
        if self.state.backoff.until > self.now:
            times.append(self.state.backoff.until)
        overdue = self.state.expectations.next_deadline()
        if overdue is not None:
            times.append(self.now + overdue)
        return min(times, default=None)

    # --- Claims ----------------------------------------------------------------------------------

    def known(self, pod: Sandbox) -> Member | None:
        """How the operator sorted a pod last."""
        return self._members.get(pod.uid)

    def warm(self) -> list[Sandbox]:
        """What may be handed out now."""
        return [p for p in self.seen.values() if self._state_of(p) is SandboxState.WARM]

    def claim(self, pod: Sandbox) -> bool:
        """Hand a pod out; False if it is not what it was when it was looked at."""
        if self.pods.get(pod.uid) != pod:
            return False
        self.put(replace(pod, claimed=True))
        return True

    def serve_line(self) -> bool:
        """Hand what is warm to the first in line; whether there was anything to hand out."""
        some = False
        for pod in self.warm():
            if self.claim_queue and self.claim(pod):
                self.claim_queue.pop(0)
                some = True
        return some

    # --- Nature ----------------------------------------------------------------------------------

    def tick(self) -> None:
        """A second passes."""
        self.now += 1.0
        for pod in list(self.pods.values()):
            self._move(pod)

    def _move(self, pod: Sandbox) -> None:
        host, waited = self.hosts.get(pod.node), self.now - pod.since
        if pod.leaving:
            if host is None or (host.ready and waited >= STOP_SECONDS):
                self.remove(pod)
        elif not pod.node:
            if waited >= SCHEDULE_SECONDS:
                self._schedule(pod)
        elif host is None or not host.ready or pod.started or pod.failure in (ENDED, STUCK):
            return
        elif waited >= START_SECONDS:
            self._start(pod, host)

    def _schedule(self, pod: Sandbox) -> None:
        fitting = [
            name
            for name, host in self.hosts.items()
            if host.ready and not host.cordoned and name not in pod.excluded
        ]
        if fitting:
            load = {name: sum(p.node == name for p in self.pods.values()) for name in fitting}
            chosen = min(fitting, key=lambda name: (load[name], name))
            self.put(replace(pod, node=chosen, since=self.now, failure=None))
        elif pod.failure is None:
            self.put(replace(pod, failure=UNSCHEDULABLE))

    def _start(self, pod: Sandbox, host: Host) -> None:
        starts = host.starts if self.starts is Start.FINE else self.starts
        if not host.serves:
            starts = Start.BREAKS
        if starts is Start.FINE:
            self.state.note_started(pod.node)
            self.put(replace(pod, started=True, failure=None))
        elif pod.failure != FAILURES[starts]:
            self.put(replace(pod, failure=FAILURES[starts]))

    # --- Rest ------------------------------------------------------------------------------------

    def well(self) -> None:
        """All that was wrong with the world ends."""
        self.hosts = {name: Host() for name in HOSTS}
        self.lag, self.losing, self.refuses, self.admission = 0.0, 0, False, ""
        self.starts, self.accepted = Start.FINE, True
        self.class_uid = self.class_uid or "class-again"
        for pod in list(self.pods.values()):
            if pod.unready:
                self.put(replace(pod, unready=False))
        self.edit(paused=None)

    def problems(self) -> list[str]:
        """What is not as it should be at rest, a sentence each, by what stands on the server."""
        claimed = sum(p.claimed and not p.leaving and not p.ended for p in self.pods.values())
        target, spec = self._base.spec.replicas, self._base.spec
        if spec.max_sandboxes is not None:
            target = max(0, min(target, spec.max_sandboxes - claimed))
        stock = [p for p in self.pods.values() if not p.claimed]
        found = [f"{p.name} is of no use" for p in stock if p.leaving or not self.usable(p)]
        if self._events:
            found.append("there is more to be seen")
        starting = [p for p in self.pods.values() if p.cold and not p.started and not p.ended]
        found += [f"{p.name} has yet to start for its claim" for p in starting]
        if any(self.claim_queue) and (spec.max_sandboxes is None or claimed < spec.max_sandboxes):
            found.append("a claim waits for a sandbox of its own, and there is room")
        if len(stock) != target:
            found.append(f"{len(stock)} pods where {target} are wanted")
        found += [f"{p.name} is of another class" for p in stock if self.of_other_runtime(p)]
        if spec.update.type != "OnClaim":
            overhead = (("memory", f"{self.overhead}Mi"),)
            found += [
                f"{p.name} is outdated"
                for p in stock
                if p.revision != self.revision or p.overhead != overhead
            ]
        return found

    def of_other_runtime(self, pod: Sandbox) -> bool:
        """It is not of the class that the pool names now."""
        return pod.runtime_uid != self.class_uid or pod.class_name != "gvisor"
