"""Breakers, told of what happens as in the operator, against what its history justifies."""

from __future__ import annotations

import asyncio
import json
import math
import random
from dataclasses import dataclass, field
from typing import Any, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sandboxpool.api.core import Event, InvolvedObject, Metadata, Pod
from sandboxpool.api.times import timestamp
from sandboxpool.cache import Cluster
from sandboxpool.fleet.health import Health, HealthListener
from sandboxpool.fleet.prober import ProbeResult
from sandboxpool.fleet.records import NodeRecords
from sandboxpool.reasons import Reason
from sandboxpool.runtimes.diagnosis import Failure
from sandboxpool.runtimes.issues import IssueBook
from support.builders import NOW, node, pod, runtime
from support.simulation.effort import SIMULATIONS

NODES = [f"node-{i}" for i in range(5)]
CLASSES = {"runsc": "gvisor", "kata": "kata-qemu"}
HANDLERS = list(CLASSES)
POOLS = ["a", "b"]
PICKS = st.integers(0, 30)
# Most happens in one place: three failures make a breaker open.
PLACES = st.sampled_from([0, 0, 0, 0, 1, 2, 3, 4])
KINDS = st.sampled_from(["runsc", "runsc", "runsc", "kata"])
PICKED_POOLS = st.sampled_from(POOLS)
SOON = st.sampled_from([0.0, 1.0, 1.5, 4.0, 30.0])

SAID = "Failed to create pod sandbox: rpc error: code = Unknown desc = "
# What leaves no doubt, what does, and what is not the runtime's fault.
PROOF = (
    SAID + 'failed to start sandbox "x": failed to create containerd task: failed to start shim: '
    'failed to resolve runtime path: runtime "io.containerd.runsc.v1" binary not installed '
    '"containerd-shim-runsc-v1": file does not exist'
)
DOUBT = SAID + "something that nobody has seen before"
BLAMELESS = [
    SAID + 'failed to setup network for sandbox "x": plugin type="calico" failed (add): no ip',
    SAID + 'failed to get sandbox image "registry.example/pause:3.10": failed to pull image',
]

# The contract, in numbers of its own.
ENOUGH_PODS = 3
QUIET = 3600.0
LONGEST = 1800.0
STRETCH = 1.25
# Scouts in six hours without end: the doubling up to the cap, and one for each half hour or so.
HOURS_OF_FAILURE = 6
MOST_SCOUTS = 12 + HOURS_OF_FAILURE * 3
# One that finds the clock put back may be taken for an old one.
SCOUTS_UNTIL_CLOSED = 2

Key = tuple[str, str]


@dataclass
class Sandbox:
    """A pod on a node, and the last that was said of it."""

    name: str
    key: Key
    pool: str
    made: float
    works: bool = False
    said: str = ""
    said_at: float = 0.0


@dataclass
class Judged:
    """What is known of one handler on one node, and what follows from it.

    Attributes:
        since: the last opening or closing.
        level: openings and failed scouts in a row.
        due: the earliest and the latest time of the next scout.
        worked: the creation of the youngest that worked.
        counted: failures that leave doubt, each pod's first, by pod: when and whose.
        heard: the same, each pod's last.
    """

    since: float = 0.0
    open: bool = False
    proven: bool = False
    level: int = 0
    due: tuple[float, float] = (0.0, 0.0)
    worked: float = 0.0
    counted: dict[str, tuple[float, str]] = field(default_factory=dict)
    heard: dict[str, float] = field(default_factory=dict)

    def put_off(self, now: float) -> None:
        """The next scout waits twice as long as the last, after proof longer, and not for ever."""
        least = min(
            (5.0 if self.proven else 1.0) * 2.0 ** min(self.level - 1, 32), LONGEST / STRETCH
        )
        self.due = now + least, now + least * STRETCH

    def opens(self, now: float, *, proven: bool) -> None:
        quiet = now - self.since > QUIET
        self.level = 1 if quiet else self.level + 1
        self.open, self.proven, self.since = True, proven, now
        self.counted.clear()
        self.heard.clear()
        self.put_off(now)

    def closes(self, now: float) -> None:
        self.open, self.proven, self.since = False, False, now

    def works(self, made: float) -> None:
        self.worked = max(self.worked, made)
        self.counted = {pod: (at, by) for pod, (at, by) in self.counted.items() if at > made}
        self.heard = {pod: at for pod, at in self.heard.items() if at > made}

    def clock_was_put_back(self, now: float) -> None:
        """Nothing has happened in the future."""
        self.since, self.worked = min(self.since, now), min(self.worked, now)
        self.counted = {pod: (min(at, now), by) for pod, (at, by) in self.counted.items()}
        self.heard = {pod: min(at, now) for pod, at in self.heard.items()}


class Records:
    """What is written down for the next process."""

    def __init__(self, kept: dict[str, Any]) -> None:
        self.kept = kept

    async def load(self) -> dict[str, Any]:
        return self.kept

    def put(self, name: str, record: Any) -> None:
        self.kept.pop(name, None)
        if record is not None:
            self.kept[name] = record


class Listener:
    """Told of what changes; here nobody listens."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


class BreakerMachine(RuleBasedStateMachine):
    """Sandboxes fail and work on nodes that come and go, under operators that are replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.lives = dict.fromkeys(NODES, 0)
        self.present = set(NODES)
        # What happened up to then was in a former life of the node.
        self.since: dict[str, float] = dict.fromkeys(NODES, 0.0)
        self.known: set[str] = set()
        self.told_at = 0.0
        self.pods: dict[str, Sandbox] = {}
        self.judged: dict[Key, Judged] = {}
        self.serial = 0
        # Whose failures count for sure: the others may be under suspicion themselves.
        self.trusted: set[str] = set()
        self.failed: set[str] = set()
        self.start({})

    def start(self, kept: dict[str, Any]) -> None:
        """A new process, that knows what the last one has written down."""
        self.cluster = Cluster()
        for handler, class_name in CLASSES.items():
            self.cluster.classes[class_name] = runtime(class_name, handler)
        self.records = Records(kept)
        self.health = Health(
            cluster=self.cluster,
            issues=IssueBook(),
            records=cast(NodeRecords, self.records),
            listener=cast(HealthListener, Listener()),
            pools=[],
            wall=lambda: self.now,
        )
        asyncio.run(self.health.load())
        for name in sorted(self.present):
            self.show_node(name)
        self.health.forget_missing()

    def show_node(self, name: str) -> None:
        boot = f"{name}-boot-{self.lives[name]}"
        self.cluster.nodes.put(None, node(name, handlers=HANDLERS, boot_id=boot))
        self.health.observe_node(name, self.cluster.nodes.get(name))

    # --- The model -------------------------------------------------------------------------------

    def of(self, key: Key) -> Judged:
        judged = self.judged.setdefault(key, Judged())
        for handler in HANDLERS:
            if (key[0], handler) in self.judged:
                self.judged[key[0], handler].clock_was_put_back(self.now)
        self.since[key[0]] = min(self.since[key[0]], self.now)
        self.known.add(key[0])
        self.told_at = self.now
        return judged

    def is_open(self, key: Key) -> bool:
        return self.cluster.breakers.is_open(*key)

    def kept(self, key: Key) -> Any:
        """All that is held against a handler on a node; times follow the clock."""
        found = self.cluster.breakers.get(*key)
        if found is None:
            return None
        pods = tuple(strike.pod for strike in found.strikes)
        is_open = found.opened_at is not None
        return is_open, found.proven, found.trips, found.retry_at, found.reason, pods

    def has_budget(self, handler: str) -> bool:
        taken = sum(j.open and not j.proven for (_, h), j in self.judged.items() if h == handler)
        return taken < max(1, len(self.present) // 2)

    def is_news(self, key: Key, at: float) -> bool:
        judged = self.judged[key]
        return at > max(self.since[key[0]], judged.since, judged.worked)

    def tell(self, sandbox: Sandbox) -> None:
        """Have the operator see a pod, as it is."""
        if sandbox.works:
            self.tell_that_it_works(sandbox)
        elif sandbox.said in BLAMELESS:
            before = self.kept(sandbox.key)
            self.show(sandbox)
            assert self.kept(sandbox.key) == before, "no runtime's fault"
        elif sandbox.said:
            self.tell_that_it_fails(sandbox)
        else:
            self.show(sandbox)

    def show(self, sandbox: Sandbox) -> Pod:
        """What the watch brings."""
        name, handler = sandbox.key
        seen = pod(
            sandbox.name,
            pool_uid=sandbox.pool,
            node=name,
            handler=handler,
            ready=sandbox.works,
            phase="Running" if sandbox.works else "Pending",
            age=0.0,
            now=sandbox.made,
        )
        self.cluster.pods.put(self.cluster.pods.get(seen.metadata.uid), seen)
        if sandbox.said:
            meta = Metadata(name="e", uid="e", resourceVersion="1")
            about = InvolvedObject(uid=seen.metadata.uid)
            at = timestamp(sandbox.said_at)
            self.cluster.events.put(Event(meta, about, message=sandbox.said, lastTimestamp=at))
        self.health.observe_pod(None, seen)
        return seen

    def tell_that_it_works(self, sandbox: Sandbox) -> None:
        judged = self.of(sandbox.key)
        made = min(sandbox.made, self.now)
        closes = judged.open and made > judged.since
        self.show(sandbox)
        self.trusted |= {sandbox.pool} - self.failed
        self.has_worked(sandbox.key, made, closes)

    def has_worked(self, key: Key, made: float, closes: bool) -> None:
        judged = self.judged[key]
        assert self.is_open(key) == (judged.open and not closes)
        judged.works(made)
        if closes:
            judged.closes(self.now)
        elif not judged.open and self.now - judged.since > QUIET:
            judged.level = 0
            if self.kept(key) is None:
                # As if it had never been open.
                judged.since = 0.0

    def tell_that_it_fails(self, sandbox: Sandbox) -> None:
        key = sandbox.key
        judged = self.of(key)
        at, before = min(sandbox.said_at, self.now), self.kept(key)
        is_news = self.is_news(key, at)
        budget = self.has_budget(key[1])
        proof = sandbox.said == PROOF
        if is_news and not proof and not judged.open:
            judged.counted.setdefault(sandbox.name, (at, sandbox.pool))
            judged.heard[sandbox.name] = at
            self.failed.add(sandbox.pool)
        may_open, must_open = self.verdict_on(key, budget, sandbox.pool)
        self.show(sandbox)
        if judged.open or not is_news:
            assert self.kept(key) == before, "not of the runtime as it is now"
            return
        if proof:
            assert self.is_open(key)
        else:
            assert may_open or not self.is_open(key), "too few have failed"
            assert self.is_open(key) or not must_open, "enough have failed"
        if self.is_open(key):
            judged.opens(self.now, proven=proof)

    def verdict_on(self, key: Key, budget: bool, teller: str) -> tuple[bool, bool]:
        """Whether doubts are enough to open, and whether they are if nobody is suspected."""
        judged = self.judged[key]
        surely = [by for _, by in judged.counted.values() if by in self.trusted]
        certain = len(surely) >= ENOUGH_PODS and teller in self.trusted
        return budget and len(judged.heard) >= ENOUGH_PODS, budget and certain

    def forget_node(self, name: str) -> None:
        for handler in HANDLERS:
            self.judged.pop((name, handler), None)
        self.pods = {uid: p for uid, p in self.pods.items() if p.key[0] != name}

    # --- Time ------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 2.5, 15.0, 400.0, 4000.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(seconds=st.sampled_from([0.5, 10.0, 1000.0, 90_000.0]))
    def clock_is_put_back(self, seconds: float) -> None:
        self.now -= seconds
        due = self.cluster.breakers.due(self.now)
        for key, judged in self.judged.items():
            # It is due at once, or else within the longest delay, whatever the old clock said.
            most = judged.due[1]
            judged.due = -math.inf, most if key in due else min(most, self.now + LONGEST)

    # --- Sandboxes -------------------------------------------------------------------------------

    @precondition(lambda self: self.present)
    @rule(place=PLACES, handler=KINDS, pool=PICKED_POOLS, count=st.integers(1, 3), after=SOON)
    def doubt(self, place: int, handler: str, pool: str, count: int, after: float) -> None:
        for _ in range(count):
            self.see_one(place, handler, pool, DOUBT, after)

    @precondition(lambda self: self.present)
    @rule(
        place=PLACES,
        handler=KINDS,
        pool=PICKED_POOLS,
        what=st.sampled_from([PROOF, PROOF, *BLAMELESS]),
        after=SOON,
    )
    def fail(self, place: int, handler: str, pool: str, what: str, after: float) -> None:
        self.see_one(place, handler, pool, what, after)

    @precondition(lambda self: self.present)
    @rule(
        place=PLACES,
        handler=KINDS,
        pool=PICKED_POOLS,
        age=st.sampled_from([0.0, 0.0, 1.0, 20.0, 5000.0]),
        after=SOON,
    )
    def work(self, place: int, handler: str, pool: str, age: float, after: float) -> None:
        self.see_one(place, handler, pool, "", after, age)

    def see_one(
        self, place: int, handler: str, pool: str, said: str, after: float, age: float = 0.0
    ) -> None:
        """One is made, and is seen when it is known what became of it."""
        self.now += after
        name = sorted(self.present)[place % len(self.present)]
        self.serial += 1
        made = Sandbox(f"pod-{self.serial}", (name, handler), pool, math.floor(self.now - age))
        made.works, made.said, made.said_at = not said, said, float(math.floor(self.now))
        self.pods[made.name] = made
        self.tell(made)

    @precondition(lambda self: self.pods)
    @rule(pick=PICKS, again=st.booleans())
    def tell_again(self, pick: int, again: bool) -> None:
        """A relist, or the kubelet has tried again."""
        sandbox = list(self.pods.values())[pick % len(self.pods)]
        if again and sandbox.said:
            sandbox.said_at = max(sandbox.said_at, float(math.floor(self.now)))
        self.tell(sandbox)

    @precondition(lambda self: self.pods)
    @rule(pick=PICKS)
    def starts_after_all(self, pick: int) -> None:
        sandbox = list(self.pods.values())[pick % len(self.pods)]
        sandbox.works, sandbox.said = True, ""
        self.tell(sandbox)

    @precondition(lambda self: self.pods)
    @rule(pick=PICKS)
    def is_deleted(self, pick: int) -> None:
        name = list(self.pods)[pick % len(self.pods)]
        self.cluster.pods.put(self.cluster.pods.get(f"{name}-uid"), None)
        self.cluster.events.forget(f"{name}-uid")
        del self.pods[name]

    # --- Scouts ----------------------------------------------------------------------------------

    @precondition(lambda self: self.cluster.breakers.due(self.now))
    @rule(
        pick=PICKS,
        seconds=st.sampled_from([1.0, 2.5, 60.0]),
        what=st.sampled_from(["works", "fails", "fails", "proves", "network"]),
    )
    def scout(self, pick: int, seconds: float, what: str) -> None:
        due = self.cluster.breakers.due(self.now)
        self.send_scout(due[pick % len(due)], seconds, what)

    def send_scout(self, key: Key, seconds: float, what: str) -> None:
        made = self.now
        self.now += seconds
        judged = self.judged[key] if what == "network" else self.of(key)
        reason = Reason.SHIM_MISSING if what == "proves" else Reason.SANDBOX_CREATE_FAILED
        failure = Failure(
            reason, "said", key[0], blames_runtime=True, proves_broken=what == "proves"
        )
        if what == "network":
            failure = Failure(Reason.POD_NETWORK_FAILED, "no network", key[0])
        before = self.kept(key)
        kind = runtime(CLASSES[key[1]], key[1])
        if what == "works":
            closes = made > judged.since
            result = ProbeResult(None, None, made, started=True)
            self.health.observe_probe(*key, kind, result)
            if not judged.proven:
                # It speaks against the templates that had failed there.
                self.trusted.clear()
            self.has_worked(key, made, closes)
            return
        self.health.observe_probe(*key, kind, ProbeResult(None, failure, made))
        after = self.kept(key)
        if what == "network":
            assert after == before
            return
        assert self.is_open(key)
        if after == before:
            # Only the first after the clock was put back may be taken for an old one.
            assert judged.due[0] == -math.inf
            return
        judged.level += 1
        judged.proven = judged.proven or what == "proves"
        judged.put_off(self.now)

    @precondition(lambda self: any(j.open for j in self.judged.values()))
    @rule(pick=PICKS, proves=st.booleans())
    def scouts_fail_for_hours(self, pick: int, proves: bool) -> None:
        """Half open is a state that is seldom and bounded."""
        keys = sorted(key for key, judged in self.judged.items() if judged.open)
        key, sent = keys[pick % len(keys)], 0
        end = self.now + HOURS_OF_FAILURE * 3600
        while self.now < end:
            if key in self.cluster.breakers.due(self.now):
                self.send_scout(key, 2.0, "proves" if proves else "fails")
                sent += 1
            self.now += 5.0 if self.now + 5.0 < self.judged[key].due[0] else 1.0
        assert 1 <= sent <= MOST_SCOUTS

    # --- Nodes and processes ---------------------------------------------------------------------

    @rule(name=st.sampled_from(NODES))
    def reboot(self, name: str) -> None:
        if name not in self.present:
            return
        # Or a failure of the same second could not be told from one before.
        self.now += 1
        self.lives[name] += 1
        self.forget_node(name)
        # When it was is not known, but that it was later than anything that is.
        self.since[name] = self.told_at if name in self.known else 0.0
        self.show_node(name)

    @rule(name=st.sampled_from(NODES))
    def leave_or_join(self, name: str) -> None:
        if name in self.present:
            self.present.discard(name)
            self.cluster.nodes.put(node(name), None)
            self.health.observe_node(name, None)
            self.forget_node(name)
            self.since[name] = 0.0
            self.known.discard(name)
        else:
            self.present.add(name)
            self.lives[name] += 1
            self.show_node(name)

    @rule(seed=st.integers(0, 99))
    def restart(self, seed: int) -> None:
        """The next process has what was written down, and is shown all pods, in any order."""
        kept = json.loads(json.dumps(self.records.kept))
        self.start(kept)
        self.trusted.clear()
        self.failed.clear()
        self.since = dict.fromkeys(NODES, 0.0)
        self.known = set(kept)
        for key, judged in self.judged.items():
            found = self.cluster.breakers.get(*key)
            assert found is not None or not judged.level, "it was not written down"
            # That it is forgotten, or the clock was put back, is not until something changes.
            judged.level = judged.level or (found.trips if found is not None else 0)
            judged.since = found.changed_at if found is not None else 0.0
            judged.worked = 0.0
            judged.counted.clear()
            judged.heard.clear()
        told = list(self.pods.values())
        random.Random(seed).shuffle(told)
        for sandbox in told:
            self.tell(sandbox)

    # --- What always holds -----------------------------------------------------------------------

    @invariant()
    def what_is_open_is_what_should_be(self) -> None:
        breakers = self.cluster.breakers
        opened = {key for key, judged in self.judged.items() if judged.open}
        assert {key for key, _ in breakers.open()} == opened
        due = set(breakers.due(self.now))
        for key in opened:
            judged, found = self.judged[key], breakers.get(*key)
            assert found is not None
            assert found.proven == judged.proven
            if judged.due[0] != -math.inf:
                assert judged.due[0] <= found.retry_at <= judged.due[1], "of all delays another"
            assert key in due or self.now < judged.due[1], "it is never tried again"
            assert key not in due or self.now >= judged.due[0], "it is tried too soon"
            assert key in due or key in breakers.due(self.now + LONGEST)

    @invariant()
    def memory_is_bounded(self) -> None:
        for name in NODES:
            for handler in HANDLERS:
                found = self.cluster.breakers.get(name, handler)
                if found is not None:
                    assert found.trips or found.strikes
                    pods = [strike.pod for strike in found.strikes]
                    assert len(pods) == len(set(pods)) <= ENOUGH_PODS

    def teardown(self) -> None:
        """A runtime that works again is used again, and soon."""
        for key in sorted(key for key, judged in self.judged.items() if judged.open):
            for _ in range(SCOUTS_UNTIL_CLOSED):
                self.now += 1.0
                until = self.now + LONGEST
                while key not in self.cluster.breakers.due(self.now):
                    assert self.now < until, "no scout is sent"
                    self.now += 10.0
                self.send_scout(key, 2.0, "works")
                if not self.is_open(key):
                    break
            assert not self.is_open(key), "a node that is well stays out"


BreakerMachine.TestCase.settings = settings(
    max_examples=2 * SIMULATIONS, stateful_step_count=30, deadline=None
)
TestBreaker = BreakerMachine.TestCase
