"""The simulation with OpenSandbox in it: its server, bridges, and what runs in the sandboxes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from sandboxpool.api.opensandbox import LABEL_OPENSANDBOX
from sandboxpool.opensandbox.bridge import Bridge
from sandboxpool.opensandbox.settings import Settings
from support.simulation.apiserver import Object, Place
from support.simulation.bridgejudge import BridgeJudge
from support.simulation.executors import Executors, Mood, SimulatedExecutor
from support.simulation.network import Network, SimulatedClient
from support.simulation.opensandbox import OpenSandbox
from support.simulation.people import NAMESPACE
from support.simulation.process import LEASE, NOWHERE, Life
from support.simulation.wallclock import WallClock
from support.simulation.world import World

SETTINGS = Settings(
    namespace="sandboxpool-system", opensandbox_namespaces=(NAMESPACE,), lease=LEASE
)
OPEN = {LABEL_OPENSANDBOX: "Executor"}


class SimulatedBridge(Bridge):
    """The bridge without its web server."""

    on_lease_lost: Callable[[], None]

    def _exit(self, why: str) -> None:
        """A process that cannot lead ends at once; here it is not the test's."""
        del why
        self.on_lease_lost()

    @property
    def leads(self) -> bool:
        """Whether it holds the lease."""
        return self._elector.is_leader

    def permit(self) -> None:
        """Called right before each write, as the bridge's own client does."""
        self._elector.require_leadership()

    def on_date(self, date: float) -> None:
        """Called with the Date of an answer, as the bridge's own client does."""
        self._server_clock.observe(date)


class BridgeProcess(Life):
    """A bridge.

    Args:
        network: between it and the API server.
        sandboxes: what it delivers tasks to.
        wall: seconds since the epoch.
        on_lease_lost: told, with the process, that it has to end for want of a lease.
    """

    def __init__(
        self,
        network: Network,
        sandboxes: Executors,
        wall: Callable[[], float],
        on_lease_lost: Callable[[BridgeProcess], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        client = self.client = SimulatedClient(network, "bridge")
        self.bridge = SimulatedBridge(
            SETTINGS,
            NOWHERE,
            executor=SimulatedExecutor(sandboxes, lambda: client.dead),
            client=client,
            wall=wall,
            clock=loop.time,
        )
        client.permit = self.bridge.permit
        client.on_date = self.bridge.on_date
        self.bridge.on_lease_lost = lambda: on_lease_lost(self)
        self.task = loop.create_task(self.bridge.operate())


class BridgeWorld(World):
    """A world with OpenSandbox.

    Args:
        seed: of everything that is left to chance.
        bridges: how many bridges run, one of which leads.
        world: as for a world.
    """

    # The bridge's longest wait is a tenth of it.
    quiet_seconds = 100.0

    def __init__(self, seed: int = 0, *, bridges: int = 1, **world: Any) -> None:
        super().__init__(seed, **world)
        self.opensandbox = OpenSandbox(self.server, NAMESPACE, self.loop.time, self.wall)
        self.sandboxes = Executors(self.server, random.Random(seed + 4), self.weather.way)
        self.judge = BridgeJudge(
            self.server,
            self.opensandbox,
            self.loop.time,
            self.server_clock,
            self._bridge_well,
            self.watchdog.is_spoiled,
        )
        self.watchdog.judges.append(self.judge.see)
        self.sandboxes.on_delivery.append(
            lambda *task: self.watchdog.say(self.judge.see_task(*task))
        )
        self.bridges: list[BridgeProcess] = []
        self._bridge_led_since: tuple[BridgeProcess | None, float] = None, 0.0
        self._bridges = bridges

    def _begin(self) -> None:
        super()._begin()
        for _ in range(self._bridges):
            self._start_bridge()

    async def _finish(self) -> None:
        for process in self.bridges:
            await process.finish()
        await super()._finish()

    # --- The bridge ------------------------------------------------------------------------------

    def _start_bridge(self) -> None:
        clock = WallClock(self.wall, self.skew)
        process = BridgeProcess(self.network, self.sandboxes, clock, self._end_bridge)
        self._clocks[process] = clock
        self.bridges.append(process)

    def _end_bridge(self, process: BridgeProcess) -> None:
        if not process.dead:
            process.kill()
            self._clocks.pop(process, None)
            self.loop.call_later(self.restart_seconds, self._start_bridge)

    def _crash(self, sender: SimulatedClient) -> None:
        super()._crash(sender)
        for process in self.bridges:
            if process.client is sender:
                self._end_bridge(process)

    def leading_bridge(self) -> BridgeProcess | None:
        """The bridge that leads, if one does."""
        return next((p for p in self.bridges if not p.dead and p.bridge.leads), None)

    def crash_bridge(self) -> None:
        """The bridge that leads is killed, and in a moment there is another one."""
        leader = self.leading_bridge()
        if leader is not None:
            self._do(self._end_bridge, leader)

    def _bridge_well(self) -> float:
        now, leader = self.loop.time(), self.leading_bridge()
        if leader is None or leader is not self._bridge_led_since[0]:
            self._bridge_led_since = leader, now
        collected_for = now if self.controllers.collects else 0.0
        return min(now - self._bridge_led_since[1], self.seconds_well(), collected_for)

    def check(self) -> None:
        for process in self.bridges:
            if process.task.done() and not process.dead:
                raise AssertionError(f"the bridge has died: {process.task!r}")
        self.watchdog.say(self.judge.look())
        super().check()

    # --- People ----------------------------------------------------------------------------------

    def post(self, name: str, pool: str = "pool", **how: Any) -> bool:
        """A user asks for a sandbox, after his old one of this name is gone."""
        self.watchdog.cause(3)
        self.kill(name)
        return self._do(lambda: self.opensandbox.post(name, pool, **how)) is not None

    def kill(self, name: str) -> None:
        """A user ends his sandbox."""
        self.watchdog.cause(2)
        self._do(self.opensandbox.kill, name)

    def renew(self, name: str, seconds: float) -> None:
        """A user prolongs the life of his sandbox."""
        self._do(self.opensandbox.renew, name, seconds)

    def set_pause(self, name: str, paused: bool) -> None:
        """A user asks for a pause, or ends it."""
        self._do(self.opensandbox.set_pause, name, paused)

    def relabel(self, name: str, mode: str | None) -> None:
        """An SRE opens a pool to OpenSandbox, or closes it."""
        pool = self.pool(name)
        if pool is None:
            return
        given = {k: v for k, v in labels_of(pool).items() if k != LABEL_OPENSANDBOX}
        if mode is not None:
            given[LABEL_OPENSANDBOX] = mode
        metadata = {**pool["metadata"], "labels": given}
        self._do(lambda: self.server.update("sandboxpools", pool, "user", metadata=metadata))

    # --- Rest ------------------------------------------------------------------------------------

    def calm(self) -> None:
        self.sandboxes.moods = (Mood.WELL,)
        super().calm()

    def not_converged(self) -> list[str]:
        since = self.loop.time() - self.quiet_seconds
        recent = (r for at, r in self.network.writes[-20:] if at > since)
        told = [f"{r.method} {r.path}" for r in recent if _about_opensandbox(r.path)]
        return [*super().not_converged(), *told, *self.judge.not_converged(NAMESPACE)]


def labels_of(obj: Object) -> dict[str, str]:
    """The labels of an object."""
    return dict(obj["metadata"].get("labels") or {})


def _about_opensandbox(path: str) -> bool:
    return Place.of(path).resource in ("batchsandboxes", "pools")
