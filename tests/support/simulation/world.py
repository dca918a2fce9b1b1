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
from sandboxpool.pools.book import Facts, MemberBook
from sandboxpool.pools.members import Member, Members, State
from support.builders import NOW
from support.invariants import Snapshot, claim_uids, unsettled
from support.simulation.apiserver import ApiServer, Object, Place, Request, labels
from support.simulation.clock import VirtualLoop
from support.simulation.controllers import Controllers, Start
from support.simulation.network import Network, SimulatedClient, Weather
from support.simulation.process import Process
from support.simulation.watchdog import Watchdog

NAMESPACE = "default"
GVISOR = {"metadata": {"name": "gvisor"}, "handler": "runsc"}
CONTAINERS = [{"name": "main", "image": "registry.example/a:1"}]
STEP_SECONDS = 20.0
# At rest nothing is written for so long.
QUIET_SECONDS = 400.0
# A breaker's longest delay, some claims' whole patience, a pool's longest pause, one after another.
LONGEST_CONVERGENCE_SECONDS = 2400.0


_sort = MemberBook.sort


def _sort_and_check(
    book: MemberBook,
    facts_of: Callable[[str], Facts | None],
    everything: Iterable[str],
    **how: Any,
) -> Members:
    """Sort what has changed, and see that to sort everything would have found the same."""
    everything = list(everything)
    found = _sort(book, facts_of, everything, **how)
    truth = _sort(MemberBook(), facts_of, everything, anew=True)
    assert _timeless(found) == _timeless(truth), "a change was not told of"
    return found


def _timeless(members: Members) -> dict[str, Member]:
    """Without what only a book remembers that has seen the past."""
    once = {State.UNREADY: State.STARTING, State.COLD: State.CLAIMED}
    return {
        m.uid: replace(
            m,
            state=once.get(m.state, m.state),
            failure=None,
            since=0.0,
            ready_since=None,
            was_ready=False,
        )
        for m in members
    }


class World:
    """Use as a context manager; `run` lets time pass.

    Args:
        seed: of everything that is left to chance.
        nodes: how many nodes there are at first.
        replicas: how many operators run, one of which leads.
    """

    def __init__(self, seed: int = 0, nodes: int = 3, replicas: int = 1) -> None:
        self.loop = VirtualLoop()
        self.random = random.Random(seed)
        self.server = ApiServer(self.wall)
        self.weather = Weather(random.Random(seed + 1))
        self.network = Network(self.server, self.weather, self._crash)
        self.controllers = Controllers(self.server, random.Random(seed + 2), self.wall)
        self.watchdog = Watchdog(self.server, self.loop.time)
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
            ("sandboxpool.app.boot_clock", self.loop.time),
            ("sandboxpool.pools.book.MemberBook.sort", _sort_and_check),
        ):
            self._undo.enter_context(mock.patch(name, fixed))
        logger = logging.getLogger("sandboxpool")
        self._undo.callback(logger.removeHandler, self.logged)
        self._undo.callback(logger.setLevel, logger.level)
        self._undo.callback(setattr, logger, "propagate", logger.propagate)
        logger.addHandler(self.logged)
        logger.setLevel(logging.ERROR)
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
        """Seconds since the epoch."""
        return NOW + self.loop.time()

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
        assert not self.watchdog.wrong, "\n".join(self.watchdog.wrong)

    # --- The operator ----------------------------------------------------------------------------

    def _start(self) -> None:
        self.processes.append(Process(self.network, self.wall, self._end))

    def _end(self, process: Process) -> None:
        if not process.dead:
            process.kill()
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

    # --- Its people ------------------------------------------------------------------------------

    def pool(self, name: str = "pool") -> Object | None:
        """The pool of this name, if there is one."""
        return self.server.find("sandboxpools", name, NAMESPACE)

    def claim(self, name: str) -> Object | None:
        """The claim of this name, if there is one."""
        return self.server.find("sandboxclaims", name, NAMESPACE)

    def pods(self) -> list[Object]:
        """The pods of all pools, claimed ones included, in the order of their making."""
        ours = (p for p in self.server.all("pods") if names.LABEL_POOL_UID in labels(p))
        return sorted(ours, key=lambda p: int(p["metadata"]["uid"].removeprefix("uid-")))

    def make_pool(self, name: str = "pool", replicas: int = 2, **spec: Any) -> None:
        """An SRE makes a pool; further fields of the spec by their API names."""
        self.watchdog.cause(replicas)
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.POOL_KIND,
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "runtimeClassName": "gvisor",
                "replicas": replicas,
                "template": {"spec": {"containers": CONTAINERS}},
                "isolationProof": "Off",
                **spec,
            },
        }
        self._do(lambda: self.server.create("sandboxpools", body, by="user"))

    def change_pool(self, name: str, **spec: Any) -> None:
        """An SRE changes fields of a pool's spec; None removes one."""
        pool = self.pool(name)
        assert pool is not None
        new = {k: v for k, v in {**pool["spec"], **spec}.items() if v is not None}
        self.watchdog.cause(2 * new["replicas"] + 2)
        self._do(lambda: self.server.update("sandboxpools", pool, "user", spec=new))

    def make_claim(self, name: str, pool: str = "pool", **spec: Any) -> None:
        """An application asks for a sandbox."""
        self.watchdog.cause()
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.CLAIM_KIND,
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"poolName": pool, **spec},
        }
        self._do(lambda: self.server.create("sandboxclaims", body, by="user"))

    def delete(self, resource: str, obj: Object, grace: int | None = None) -> None:
        """Somebody deletes an object."""
        self.watchdog.cause(2)
        self._do(lambda: self.server.delete(resource, obj, by="user", grace=grace))

    def change(self, resource: str, obj: Object, **parts: Any) -> None:
        """Somebody replaces parts of an object, which from then on is not judged any more."""
        self.watchdog.cause(2)
        self.watchdog.spoil(obj)
        if resource == "pods":
            self._counts_amiss.add(labels(obj)[names.LABEL_POOL_UID])
        self._do(lambda: self.server.update(resource, obj, "user", **parts))

    def touch(self, resource: str, obj: Object) -> None:
        """Somebody annotates an object, as many do, and nothing is wrong with that."""
        note = {**(obj["metadata"].get("annotations") or {}), "note": str(self.server.version)}
        metadata = {**obj["metadata"], "annotations": note}
        self._do(lambda: self.server.update(resource, obj, "user", metadata=metadata))

    # --- Nature ----------------------------------------------------------------------------------

    def nature(self, act: str, *args: Any, **kwargs: Any) -> None:
        """Have the controllers do something, such as `lose_node`."""
        self.watchdog.cause(len(self.pods()) + 2)
        self._do(lambda: getattr(self.controllers, act)(*args, **kwargs))

    def break_watches(self, resource: str, how: str) -> None:
        """Every watch of a kind is cut, stalls, ends, or must start anew from a list."""
        self._do(self._break_watches, resource, how)

    def _break_watches(self, resource: str, how: str) -> None:
        if how == "expire":
            self.server.compact()
        for stream in list(self.network.streams):
            if stream.resource != resource:
                continue
            if how == "stall":
                stream.stalled = True
            elif how == "end":
                stream.tell(None)
            else:
                stream.cut()

    # --- Rest ------------------------------------------------------------------------------------

    def calm(self) -> None:
        """All that was wrong with the network, the nodes and the class ends; no pool is paused."""
        self.weather.rough, self.weather.slow = 0.0, 0.05
        self.weather.next.clear()
        for pool in self.server.all("sandboxpools"):
            self.change_pool(pool["metadata"]["name"], paused=None)
        if self.server.find("runtimeclasses", "gvisor") is None:
            self._do(lambda: self.server.create("runtimeclasses", GVISOR, by="user"))
        for name, node in list(self.controllers.nodes.items()):
            node.starts, node.seconds, node.isolates = Start.FINE, (0.1, 2.0), True
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
        while found := self.unsettled():
            late = self.loop.time() - began > LONGEST_CONVERGENCE_SECONDS
            assert not late, "in the end it is not as it should be:\n  " + "\n  ".join(found)
            self.run(STEP_SECONDS)

    def unsettled(self) -> list[str]:
        """What is not yet as it should be, a sentence each; also what was written a while ago."""
        since = self.loop.time() - QUIET_SECONDS
        recent = (r for at, r in self.network.writes[-20:] if at > since)
        told = [f"{r.method} {r.path}" for r in recent if _about_sandboxes(r)]
        return [*told, *unsettled(self.snapshot()), *self._claims_in_limbo()]

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
