"""What a pool decides, step by step, in a world of pods, nodes and people that is seen late."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.pools.decide import decide
from sandboxpool.pools.max_unavailable import max_unavailable
from sandboxpool.pools.plan import PoolInput, PoolPlan
from sandboxpool.pools.replacement import STUCK_SECONDS, UNREADY_GRACE_SECONDS
from sandboxpool.sandboxes.members import Member, Members
from support.simulation.effort import SIMULATIONS
from support.simulation.poolworld import (
    ENDED,
    HOSTS,
    LONGEST_LAG_SECONDS,
    NO_SANDBOX,
    PULLING,
    Host,
    PoolWorld,
    Sandbox,
    Start,
)

PICKS = st.integers(0, 9)
# What does not start is given up after so many seconds.
TIMEOUT = 100
# The longest pause after failures, what was lost and is not waited for any more, a rollout of all
# pods one by one, an exclusion that is out of date, one after another.
LONGEST_CONVERGENCE_SECONDS = 900
QUIET_SECONDS = 700
NO_CLASS = "runc"
MOST_IN_LINE = 8
# Of the delays of pools/state.py: nobody who fails for so long tries more often than this.
HOPELESS_MINUTES = 25
TRIES_IN_A_MINUTE = 8
TRIES_IN_ALL = 20


class DecideMachine(RuleBasedStateMachine):
    """The operator looks whenever it is shown something, and when it has said that it would."""

    world: PoolWorld

    @initialize(
        replicas=st.integers(0, 5),
        ceiling=st.none() | st.integers(1, 8),
        at_once=st.integers(1, 4),
        update=st.sampled_from(["RollingUpdate", "RollingUpdate", "OnClaim", "Recreate"]),
        missing=st.integers(1, 3) | st.sampled_from(["40%", "100%"]),
        proof=st.sampled_from(["None", "None", "PerSandbox"]),
        starts=st.sampled_from(Start),
        seconds=st.sampled_from([0, 10, 10]),
    )
    def begin(
        self,
        replicas: int,
        ceiling: int | None,
        at_once: int,
        update: str,
        missing: int | str,
        proof: str,
        starts: Start,
        seconds: int,
    ) -> None:
        self.world = PoolWorld(
            replicas=replicas,
            maxSandboxes=ceiling,
            startup={"timeoutSeconds": TIMEOUT, "maxStarting": at_once},
            update={"type": update, "maxUnavailable": missing},
            isolationProof=proof,
        )
        # An autoscaler was answered in vain: nothing is asked of it before.
        self.bought_at: float | None = None
        self.world.hosts["node-0"].starts = starts
        self.look()
        self.pass_time(seconds)

    # --- The operator ----------------------------------------------------------------------------

    def look(self) -> None:
        """Decide, hold the plan against all that must hold, and carry it out."""
        world = self.world
        world.deliver()
        given = world.given()
        plan = decide(given)
        turned = replace(given, members=Members(reversed(list(given.members))))
        assert plan == decide(given) == decide(turned)
        self.check_deletions(given, plan)
        smooth = world.carry_out(given, plan)
        self.check_creations(given, plan, smooth=smooth)
        self.note_autoscaler(given, plan)
        if smooth:
            again = decide(world.given())
            assert (again.create, again.delete) == (0, ()), "what was asked for is forgotten"

    def check_deletions(self, given: PoolInput, plan: PoolPlan) -> None:
        world, spec = self.world, given.spec
        going = {deletion.member.uid for deletion in plan.delete}
        assert len(going) == len(plan.delete)
        assert not (spec.paused and going)
        for deletion in plan.delete:
            found = world.pods.get(deletion.member.uid)
            unused = found is not None and found.cold and not found.started
            assert found is None or not found.claimed or unused, "a claim's sandbox"
            assert not world.state.expectations.is_deleting(deletion.member.uid), "twice"
        # What could be handed out if its node were trusted is there, and of the right class.
        there = [m for m in given.members if self.is_available(m)]
        chosen = [m for m in there if m.uid in going]
        if not chosen or (spec.update.type == "Recreate" and self.are_outdated(chosen)):
            return
        floor = plan.target
        has_candidate_nodes = any(self.is_trusted(name) for name in world.hosts)
        replaceable = has_candidate_nodes and world.accepted and world.class_uid is not None
        if not replaceable:
            # Nothing would take the place of what goes.
            assert len(there) - len(chosen) >= floor, "more than is replaced"
            return
        if any(d.reason is not Reason.AT_TARGET for d in plan.delete if d.member in chosen):
            floor -= max_unavailable(spec.update, plan.target)
        if spec.max_sandboxes is not None and not all(map(self.is_usable, chosen)):
            # Where what stays holds all the room, what is of no use goes before others are made.
            staying = [m for m in given.members if m.state.value in self.STAYING]
            held = sum(not self.is_available(m) or m.state.value == "claimed" for m in staying)
            floor = min(
                floor, spec.max_sandboxes - held - max_unavailable(spec.update, plan.target)
            )
        assert len(there) - len(chosen) >= floor, "more than may be missing"
        if any(map(self.is_usable, chosen)):
            left = [m for m in there if m.uid not in going and self.is_usable(m)]
            assert len(left) >= plan.target - max_unavailable(spec.update, plan.target)

    STAYING = frozenset({"claimed", "unproven", "stranded"})

    def is_available(self, member: Member) -> bool:
        """Ready, on a node that is well and has the handler, of the class that the pool names."""
        world = self.world
        pod, host = world.seen[member.uid], world.hosts.get(member.node_name)
        return (
            member.unclaimed
            and world.is_ready(pod)
            and host is not None
            and not host.cordoned
            and host.serves
            and (pod.probed or not world.per_sandbox)
            and (world.class_uid is None or not world.of_other_runtime(pod))
        )

    def is_usable(self, member: Member) -> bool:
        """It is available, and its node is trusted."""
        pod = self.world.seen[member.uid]
        return self.is_available(member) and self.world.usable(pod)

    def are_outdated(self, members: list[Member]) -> bool:
        world = self.world
        overhead = (("memory", f"{world.overhead}Mi"),)
        return any(
            world.seen[m.uid].revision != world.revision or world.seen[m.uid].overhead != overhead
            for m in members
        )

    def check_creations(self, given: PoolInput, plan: PoolPlan, *, smooth: bool) -> None:
        """By what stands on the server, and by what may yet come to stand there."""
        if not (plan.create or plan.cold) or self.world.refuses:
            return
        world, spec = self.world, given.spec
        assert not spec.paused
        assert world.class_uid is not None
        assert world.accepted
        lost = sum(world.state.expectations.count_creating()) - self.unseen()
        assert lost >= 0
        if spec.max_sandboxes is not None:
            there = sum(not pod.ended for pod in world.pods.values())
            assert there + lost <= spec.max_sandboxes, "over the ceiling"
        if not smooth:
            # What was to go is still there, and goes at the next look.
            return
        stock = [p for p in world.pods.values() if not p.claimed and not p.leaving and not p.ended]
        good = [p for p in stock if not p.node or self.is_trusted(p.node)]
        useless = sum(self.seems_useless(p) for p in good)
        spare = min(useless, max(1, max_unavailable(spec.update, plan.target)))
        assert len(good) <= plan.target + spare, "more than the target"
        cold = [p for p in world.pods.values() if p.cold and not p.leaving and not p.ended]
        starting = sum(not p.started for p in (*good, *cold)) - useless
        has_candidate_nodes = any(self.is_trusted(name) for name in world.hosts)
        assert starting <= (spec.startup.max_starting if has_candidate_nodes else 1), (
            "too many at once"
        )

    def seems_useless(self, pod: Sandbox) -> bool:
        """It was ready a while ago, or waits for its image for long."""
        known = self.world.known(pod)
        if known is None or self.world.now - known.since <= min(
            STUCK_SECONDS, UNREADY_GRACE_SECONDS
        ):
            return False
        return known.state is SandboxState.UNREADY or (not pod.started and pod.failure is PULLING)

    def unseen(self) -> int:
        """Pods that were asked for, and made, and are not seen yet."""
        expected = self.world.state.expectations
        return sum(expected.is_creating(pod.name) for pod in self.world.pods.values())

    def is_trusted(self, name: str) -> bool:
        host = self.world.hosts.get(name)
        return (
            host is not None
            and host.ready
            and not host.cordoned
            and host.serves
            and not host.quarantined
        )

    def note_autoscaler(self, given: PoolInput, plan: PoolPlan) -> None:
        """Each pod that waits in vain may make it buy a node."""
        world = self.world
        if given.verdict.has_candidate_nodes:
            self.bought_at = None
        if plan.create and self.bought_at is not None:
            assert world.now >= self.bought_at + 400, "it buys wrong nodes again and again"
        failed = [deletion.reason for deletion in plan.delete if deletion.failed]
        if failed:
            # Of several failures the first has the word.
            bought = failed[0] is Reason.AUTOSCALER_ADDS_WRONG_NODES
            self.bought_at = world.now if bought else None

    def pass_time(self, seconds: int, until: Callable[[], bool] = lambda: False) -> bool:
        """Let nature move on; the operator looks when it is shown something, or has to."""
        world = self.world
        for _ in range(seconds):
            if until():
                return True
            world.tick()
            wake = world.wake
            told, served = world.deliver(), world.serve_line()
            if told or served or (wake is not None and wake <= world.now):
                self.look()
        return until()

    # --- Time and sight --------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 2, 3, 5, 15, 65, 130, 400]))
    def wait(self, seconds: int) -> None:
        self.pass_time(seconds)

    @rule(lag=st.sampled_from([0.0, 0.0, 3.0, 20.0, LONGEST_LAG_SECONDS]))
    def watch_is_late(self, lag: float) -> None:
        self.world.lag = lag

    @rule(count=st.integers(1, 3))
    def creates_are_lost(self, count: int) -> None:
        self.world.losing = count

    @rule(refuses=st.booleans())
    def creates_are_refused(self, refuses: bool) -> None:
        self.world.refuses = refuses

    # --- Claims ----------------------------------------------------------------------------------

    @rule(pick=PICKS)
    def claim(self, pick: int) -> None:
        warm = self.world.warm()
        if warm and self.world.claim(warm[pick % len(warm)]):
            self.look()

    @rule(kinds=st.lists(st.booleans(), min_size=1, max_size=4))
    def claims_wait(self, kinds: list[bool]) -> None:
        """Some of them want a sandbox to be started for them."""
        if len(self.world.claim_queue) < MOST_IN_LINE:
            self.world.claim_queue += kinds
            self.look()

    @rule()
    def the_line_gives_up(self) -> None:
        self.world.claim_queue.clear()
        self.look()

    @rule(pick=PICKS, seconds=st.sampled_from([2, 40, 70, 200]))
    def readiness_fails(self, pick: int, seconds: int) -> None:
        """Nothing that was ready goes for a failure that passes."""
        world = self.world
        ready = [p for p in world.pods.values() if world.is_ready(p) and not p.leaving]
        if not ready:
            return
        pod = ready[pick % len(ready)]
        world.put(replace(pod, unready=True))
        self.pass_time(seconds)
        now = world.pods.get(pod.uid)
        if now is not None and not now.leaving:
            world.put(replace(now, unready=False))
        self.look()

    @rule(pick=PICKS)
    def release(self, pick: int) -> None:
        claimed = [p for p in self.world.pods.values() if p.claimed and not p.leaving]
        if claimed:
            self.world.end(claimed[pick % len(claimed)])

    # --- SREs ------------------------------------------------------------------------------------

    @rule(replicas=st.integers(0, 6))
    def scale(self, replicas: int) -> None:
        self.edit(replicas=replicas)

    @rule(ceiling=st.none() | st.integers(1, 8))
    def limit(self, ceiling: int | None) -> None:
        self.edit(maxSandboxes=ceiling)

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        self.edit(paused=paused)

    @rule(proof=st.sampled_from(["None", "PerSandbox"]))
    def ask_for_proof(self, proof: str) -> None:
        self.edit(isolationProof=proof)

    @rule(age=st.sampled_from([None, 60, 300]))
    def replace_the_old(self, age: int | None) -> None:
        self.edit(maxAgeSeconds=age)

    def edit(self, **fields: Any) -> None:
        self.world.edit(**fields)
        self.look()

    @rule(template=st.integers(1, 3), accepted=st.sampled_from([True, True, False]))
    def change_template(self, template: int, accepted: bool) -> None:
        self.world.template, self.world.accepted = template, accepted
        self.look()

    @rule(uid=st.sampled_from([None, "class-1", "class-2", "class-2"]), overhead=st.integers(0, 1))
    def change_class(self, uid: str | None, overhead: int) -> None:
        self.world.class_uid, self.world.overhead = uid, overhead
        self.look()

    # --- Nodes -----------------------------------------------------------------------------------

    @rule(
        name=st.sampled_from(HOSTS),
        what=st.sampled_from(["lost", "back", "cordoned", "unlisted", "quarantined", "gone"]),
    )
    def change_node(self, name: str, what: str) -> None:
        world = self.world
        if what == "gone":
            world.hosts.pop(name, None)
        elif name not in world.hosts:
            # It comes back as another machine.
            world.hosts[name] = Host(joined=float(int(world.now)), serves=what != "unlisted")
        else:
            world.hosts[name] = Host(
                joined=world.hosts[name].joined,
                ready=what != "lost",
                cordoned=what == "cordoned",
                serves=what != "unlisted",
                quarantined=what == "quarantined",
            )
        self.look()

    @rule(name=st.sampled_from(HOSTS), starts=st.sampled_from(Start))
    def start_ups(self, name: str, starts: Start) -> None:
        if name in self.world.hosts:
            self.world.hosts[name].starts = starts

    @rule(what=st.sampled_from(["cordoned", "unlisted", "quarantined"]))
    def no_node_is_of_use(self, what: str) -> None:
        for host in self.world.hosts.values():
            host.cordoned = what == "cordoned"
            host.serves = what != "unlisted"
            host.quarantined = what == "quarantined"
        self.look()

    @rule(serves=st.booleans())
    def an_autoscaler_adds_a_node(self, serves: bool) -> None:
        name = f"added-{len(self.world.hosts)}"
        if len(self.world.hosts) < 6:
            self.world.hosts[name] = Host(joined=float(int(self.world.now)), serves=serves)
            self.look()

    @rule(serves=st.booleans())
    def only_wrong_nodes_are_bought(self, serves: bool) -> None:
        """Twice, and at last perhaps the right one."""
        world = self.world
        self.no_node_is_of_use("unlisted")
        for name in ("bought-1", "bought-2"):
            self.pass_time(5)
            world.hosts[name] = Host(joined=float(int(world.now)), serves=False)
            self.look()
            self.pass_time(320)
        if serves:
            world.hosts["bought-2"].serves = True
            self.look()

    # --- Pods ------------------------------------------------------------------------------------

    @rule(pick=PICKS, how=st.sampled_from([ENDED, ENDED, NO_SANDBOX, PULLING, None]))
    def trouble(self, pick: int, how: Any) -> None:
        """A pod ends, cannot start, waits, or is deleted by somebody."""
        stock = [p for p in self.world.pods.values() if not p.leaving]
        if not stock:
            return
        pod = stock[pick % len(stock)]
        if how is None:
            self.world.end(pod)
        elif pod.node and (how is ENDED or not pod.started):
            self.world.put(replace(pod, failure=how))

    # --- In the long run -------------------------------------------------------------------------

    @precondition(lambda self: not self.world.spec_fields.get("maxAgeSeconds"))
    @rule(how=st.sampled_from(["ends", "hangs", "breaks", "pulls", "refused", "altered"]))
    def nothing_ever_starts(self, how: str) -> None:
        """Even if no sandbox can start, attempts a minute are bounded, and soon they are few."""
        world = self.world
        world.lag = min(world.lag, 3.0)
        world.refuses, world.admission = how == "refused", NO_CLASS if how == "altered" else ""
        ways = {"ends": Start.ENDS, "hangs": Start.HANGS, "breaks": Start.BREAKS}
        world.starts = ways.get(how, Start.PULLS if how == "pulls" else Start.FINE)
        began, before = world.now, len(world.creates)
        self.pass_time(60 * HOPELESS_MINUTES)
        world.refuses, world.admission, world.starts = False, "", Start.FINE
        tried = world.creates[before:]
        at_first = 2 * world.spec_fields["startup"]["maxStarting"]
        assert len(tried) <= at_first + TRIES_IN_ALL
        minutes = Counter(int((at - began) // 60) for at in tried)
        assert all(count <= at_first + TRIES_IN_A_MINUTE for count in minutes.values())
        # Of what was there all may go, and of what is made each once.
        ends = sum(at > began for at in world.deletes)
        assert ends <= before + len(world.creates)

    def teardown(self) -> None:
        """When nothing is wrong any more all is as it should be, in time, and stays so."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.edit(maxAgeSeconds=None)
        world.well()
        self.look()
        world.claim_queue = [wants_own for wants_own in world.claim_queue if wants_own]
        if not self.pass_time(LONGEST_CONVERGENCE_SECONDS, lambda: not world.problems()):
            raise AssertionError(f"in the end: {world.problems()}, {decide(world.given())}")
        creates, deletes = len(world.creates), len(world.deletes)
        self.pass_time(QUIET_SECONDS)
        assert (len(world.creates), len(world.deletes)) == (creates, deletes), "no rest"
        assert not world.problems()


DecideMachine.TestCase.settings = settings(max_examples=2 * SIMULATIONS, stateful_step_count=30)
TestDecide = DecideMachine.TestCase
