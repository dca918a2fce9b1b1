"""The whole simulation: a cluster, its people, an operator, and time that a test lets pass."""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Self
from unittest import mock

from sandboxpool.api import names
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.pools.member_index import MemberFacts, MemberIndex
from sandboxpool.sandboxes.members import Member, Members
from support.builders import NOW
from support.invariants import Snapshot, claim_uids, not_converged
from support.simulation.apiserver import ApiServer, Place, Request, labels
from support.simulation.clock import VirtualLoop
from support.simulation.controllers import Controllers
from support.simulation.deletions import Deletions
from support.simulation.network import Network, SimulatedClient
from support.simulation.patience import WaitChecker
from support.simulation.people import NAMESPACE as NAMESPACE
from support.simulation.people import People
from support.simulation.process import Life, Process
from support.simulation.reasons import DeletionLog
from support.simulation.sight import WatchFaults
from support.simulation.verdicts import Verdicts
from support.simulation.wallclock import WallClock
from support.simulation.watchdog import Watchdog
from support.simulation.weather import NetworkFaults

GVISOR = {"metadata": {"name": "gvisor"}, "handler": "runsc"}
STEP_SECONDS = 20.0
# A breaker's longest delay, some claims' whole patience, a pool's longest pause, one after another.
LONGEST_CONVERGENCE_SECONDS = 2400.0


_refresh = MemberIndex.refresh


def _refresh_and_check(
    index: MemberIndex,
    facts_of: Callable[[str], MemberFacts | None],
    all_uids: Iterable[str],
    **how: Any,
) -> Members:
    """Refresh what has changed, and check that a refresh of everything finds the same."""
    all_uids = list(all_uids)
    found = _refresh(index, facts_of, all_uids, **how)
    truth = _refresh(MemberIndex(), facts_of, all_uids, resync=True)
    assert _timeless(found) == _timeless(truth), "a change was not marked"
    return found


def _timeless(members: Members) -> dict[str, Member]:
    """Without what only an index that has seen the past can know."""
    once = {SandboxState.UNREADY: SandboxState.STARTING, SandboxState.COLD: SandboxState.CLAIMED}
    return {
        m.uid: replace(
            m,
            state=once.get(m.state, m.state),
            failure=None,
            since=0.0,
            ready_since=None,
            was_ready=False,
            misplaced=False,
        )
        for m in members
    }


class World(People):
    """Use as a context manager; `run` lets time pass.

    Args:
        seed: of everything that is left to chance.
        nodes: how many nodes there are at first.
        replicas: how many operators run, one of which leads.

    Attributes:
        quiet_seconds: at rest nothing is written for so long.
    """

    quiet_seconds = 400.0

    def __init__(self, seed: int = 0, nodes: int = 3, replicas: int = 1) -> None:
        self.loop = VirtualLoop()
        self.random = random.Random(seed)
        self.server_clock = WallClock(self.wall)
        self.server = ApiServer(self.server_clock)
        self.weather = NetworkFaults(random.Random(seed + 1))
        self.network = Network(self.server, self.weather, self._crash)
        self.controllers = Controllers(self.server, random.Random(seed + 2), self.wall)
        self.watchdog = Watchdog(self.server, self.loop.time, lambda: self.weather.slow)
        self._said = DeletionLog()
        self._deletions = Deletions(
            self.server, self.loop.time, self.seconds_well, self._said.of, self.watchdog.is_spoiled
        )
        self._patience = WaitChecker(
            self.server,
            self.controllers,
            self.loop.time,
            self.seconds_well,
            lambda obj: not self.watchdog.is_spoiled(obj),
        )
        self._verdicts = Verdicts(
            self.server,
            self.loop.time,
            self._patience.is_good,
            lambda obj: not self.watchdog.is_spoiled(obj),
        )
        self.watchdog.judges += [self._deletions.see, self._patience.see, self._verdicts.see]
        # By how many seconds the clocks of processes are ahead that start from now on.
        self.skew = 0.0
        self._clocks: dict[Life, WallClock] = {}
        self._led_since: tuple[Process | None, float] = None, 0.0
        self.processes: list[Process] = []
        self.restart_seconds = 1.0
        self.logged = _Errors()
        self._seed = seed
        self._nodes = nodes
        self._undo = ExitStack()
        self._replicas = replicas
        # Pools with pods that others have changed: what is theirs is a matter of opinion.
        self._counts_amiss: set[str] = set()

    # --- Its beginning and its end ---------------------------------------------------------------

    def __enter__(self) -> Self:
        bits = random.Random(self._seed + 3)
        self._undo.callback(random.setstate, random.getstate())
        random.seed(self._seed)
        for name, fixed in (
            ("uuid.uuid4", lambda: uuid.UUID(int=bits.getrandbits(128))),
            ("sandboxpool.app.operator.boot_clock", self.loop.time),
            ("sandboxpool.pools.member_index.MemberIndex.refresh", _refresh_and_check),
        ):
            self._undo.enter_context(mock.patch(name, fixed))
        logger = logging.getLogger("sandboxpool")
        self._undo.callback(logger.removeHandler, self.logged)
        self._undo.callback(logger.removeHandler, self._said)
        self._undo.callback(logger.setLevel, logger.level)
        self._undo.callback(setattr, logger, "propagate", logger.propagate)
        for handler in (self.logged, self._said):
            logger.addHandler(handler)
        # The log says why sandboxes are deleted.
        logger.setLevel(logging.INFO)
        logger.propagate = False
        self._undo.callback(self.loop.close)
        self._do(self._begin)
        return self

    def _begin(self) -> None:
        self.server.create("runtimeclasses", GVISOR, by="user")
        for index in range(self._nodes):
            self.controllers.add_node(f"node-{index}")
        for _ in range(self._replicas):
            self._start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._undo:
            self.loop.run_until_complete(self._finish())
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())

    async def _finish(self) -> None:
        for process in self.processes:
            await process.finish()
        await self.network.finish()

    def _do(self, act: Any, *args: Any) -> Any:
        """Call something within the event loop."""

        async def call() -> Any:
            return act(*args)

        return self.loop.run_until_complete(call())

    # --- Time ------------------------------------------------------------------------------------

    def wall(self) -> float:
        """Seconds since the epoch, by a clock that is right."""
        return NOW + self.loop.time()

    def set_clock(self, ahead: float, process: Life | None = None) -> None:
        """The clock of one replica is set: it is so many seconds ahead; of all, unless told."""
        for known, clock in self._clocks.items():
            if process in (None, known):
                clock.offset = ahead
        if process is None:
            self.skew = ahead

    def run(self, seconds: float) -> None:
        """Let time pass; the operator must not die of anything.

        Raises:
            AssertionError: an invariant did not hold, or the operator has died or logged an error.
        """
        self.loop.run_until_complete(asyncio.sleep(seconds))
        self.check()

    def check(self) -> None:
        """Fail with everything that was wrong up to now."""
        for process in self.processes:
            if process.task.done() and not process.dead:
                raise AssertionError(f"the operator has died: {process.task!r}")
        assert not self.logged.records, "\n".join(self.logged.records)
        self.watchdog.say(self._patience.look())
        assert not self.watchdog.wrong, "\n".join(self.watchdog.wrong)

    # --- The operator ----------------------------------------------------------------------------

    def _start(self) -> None:
        clock = WallClock(self.wall, self.skew)
        process = Process(self.network, clock, self._end)
        self._clocks[process] = clock
        self.processes.append(process)

    def leader(self) -> Process | None:
        """The process that leads, if one does."""
        alive = (p for p in self.processes if not p.dead)
        return next((p for p in alive if p.operator.leads), None)

    def seconds_well(self) -> float:
        """For how long one process has led and nothing has been wrong with network and clocks."""
        now, leader = self.loop.time(), self.leader()
        if leader is None or leader is not self._led_since[0]:
            self._led_since = leader, now
        right = not self.server_clock.offset and not any(c.offset for c in self._clocks.values())
        if not right:
            self.network.troubled_at = now
        return min(now - self._led_since[1], self.network.seconds_well(now))

    def _end(self, process: Process) -> None:
        if not process.dead:
            process.kill()
            self._clocks.pop(process, None)
            self.loop.call_later(self.restart_seconds, self._start)

    def _crash(self, sender: SimulatedClient) -> None:
        for process in self.processes:
            if process.client is sender:
                self._end(process)

    def crash(self) -> None:
        """The process that leads is killed, and in a moment there is another one."""
        for process in self.processes:
            if not process.dead and process.operator.leads:
                self._do(self._end, process)

    # --- The network -----------------------------------------------------------------------------

    def break_watches(self, resource: str, how: str) -> None:
        """Every watch of a kind is cut, stalls, ends, or must start again with a list."""
        self._do(self._break_watches, resource, how)

    def _break_watches(self, resource: str, how: str) -> None:
        self.network.trouble()
        if how == "expire":
            self.server.compact()
        for stream in list(self.network.streams):
            if stream.resource != resource:
                continue
            if how == "stall":
                stream.stalled = True
            elif how == "end":
                stream.end()
            else:
                stream.cut()

    def sight_of(self, process: Life) -> WatchFaults:
        """What one process does not see."""
        return self.network.sight_of(process.client)

    def see_again(self) -> None:
        """Every process sees everything again."""
        self._do(self.network.see_again)

    # --- Rest ------------------------------------------------------------------------------------

    def calm(self) -> None:
        """All that was wrong with the network, the nodes and the class ends; no pool is paused."""
        self.weather.rough, self.weather.slow = 0.0, 0.05
        self.weather.next.clear()
        self.see_again()
        self.set_clock(0.0)
        self.server_clock.offset = 0.0
        self.server.admission.plugins.clear()
        self.controllers.unstartable.clear()
        self.controllers.unmountable.clear()
        self.controllers.short_lived.clear()
        self.controllers.leaving.clear()
        for pool in self.server.all("sandboxpools"):
            metadata = pool["metadata"]
            self.change_pool(metadata["name"], namespace=metadata["namespace"], paused=None)
        if self.server.find("runtimeclasses", "gvisor") is None:
            self._do(lambda: self.server.create("runtimeclasses", GVISOR, by="user"))
        for name, node in list(self.controllers.nodes.items()):
            node.mend()
            if not node.alive:
                self.nature("bring_back", name)
            self.nature("set_node", name, cordoned=False)
        if not self.controllers.nodes:
            self.nature("add_node", "node-0")
        self.nature("collect_from_now_on")

    def converge(self) -> None:
        """Let the faults end: everything comes to rest in time, as it should be, and stays so.

        Raises:
            AssertionError: it does not.
        """
        self.calm()
        began = self.loop.time()
        while found := self.not_converged():
            late = self.loop.time() - began > LONGEST_CONVERGENCE_SECONDS
            assert not late, "in the end it is not as it should be:\n  " + "\n  ".join(found)
            self.run(STEP_SECONDS)

    def not_converged(self) -> list[str]:
        """What is not yet as it should be, a sentence each; also what was written a while ago."""
        since = self.loop.time() - self.quiet_seconds
        recent = (r for at, r in self.network.writes[-20:] if at > since)
        told = [f"{r.method} {r.path}" for r in recent if _about_sandboxes(r)]
        return [*told, *not_converged(self.snapshot()), *self._claims_in_limbo()]

    def snapshot(self) -> Snapshot:
        """What there is now, without what somebody has spoiled and whatever that concerns."""
        spoiled, all_of = self.watchdog.is_spoiled, self.server.all
        strange = [p for p in self.pods() if spoiled(p)]
        strange_claims = {
            c["metadata"]["uid"] for c in all_of("sandboxclaims") if spoiled(c)
        }.union(*map(claim_uids, strange))
        strange += [p for p in self.pods() if claim_uids(p) & strange_claims]
        strange_pools = {labels(p).get(names.LABEL_POOL_UID) for p in strange} | self._counts_amiss
        return Snapshot(
            [
                p
                for p in self.pods()
                if p not in strange and labels(p)[names.LABEL_POOL_UID] not in strange_pools
            ],
            [c for c in all_of("sandboxclaims") if c["metadata"]["uid"] not in strange_claims],
            [p for p in all_of("sandboxpools") if p["metadata"]["uid"] not in strange_pools],
        )

    def _claims_in_limbo(self) -> list[str]:
        pods = {pod["metadata"]["uid"]: pod for pod in self.server.all("pods")}
        found = []
        for claim in self.server.all("sandboxclaims"):
            name, status = claim["metadata"]["name"], claim.get("status") or {}
            if status.get("phase") == "Bound":
                pod = pods.get(status.get("podUID", ""))
                lost = pod is None or "deletionTimestamp" in pod["metadata"]
                if lost and not self.watchdog.is_spoiled(claim):
                    found.append(f"claim {name} is bound to a pod that is gone")
                if "expiresAt" in status:
                    found.append(f"claim {name} has yet to expire")
            elif status.get("phase") not in ("Failed", "Expired", "Lost"):
                found.append(f"claim {name} still waits: {status}")
        return found


def _about_sandboxes(request: Request) -> bool:
    """It is not about what is known of nodes and classes, which may still become more."""
    place = Place.of(request.path)
    return place.namespace == NAMESPACE and place.resource in ("pods", "sandboxclaims")


class _Errors(logging.Handler):
    """What the operator logs as an error is one of its own."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []
        self.setFormatter(logging.Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(self.format(record))
