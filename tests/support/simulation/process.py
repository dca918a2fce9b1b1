"""One life of the operator: its real parts, on the simulated clock, network and cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Any

import kopf
import msgspec

from sandboxpool.app.operator import CLASSES_PATH, POOLS_PATH, Operator
from sandboxpool.app.settings import Settings
from sandboxpool.kube.errors import UNREADABLE, KubeError
from sandboxpool.kube.lease import LeaderElectionTimes
from sandboxpool.observability.metrics import Metrics
from support.simulation.network import Network, SimulatedClient

# Seldom renewed, for the sake of the test's time.
LEASE = LeaderElectionTimes(lease_duration=15, renew_deadline=12, retry_period=5)
PROBE_IMAGE = "registry.example/probe:1"
KOPF_RETRY_SECONDS = 1.0
NOWHERE = kopf.ConnectionInfo(server="http://simulated")


class SimulatedOperator(Operator):
    """The operator without its web server, and with a watch of pools and classes like kopf's."""

    on_lease_lost: Callable[[], None]

    def _exit(self, why: str) -> None:
        """A process that cannot lead ends at once; here it is not the test's."""
        del why
        self.on_lease_lost()

    @property
    def leads(self) -> bool:
        """Whether it holds the lease."""
        return self._elector.is_leader

    @property
    def metrics(self) -> Metrics:
        """What it counts."""
        return self._metrics

    def not_synced(self) -> list[str]:
        """The watches that are not synced."""
        return self._watches.not_synced()

    def permit(self) -> None:
        """Called right before each write, as the operator's own client does."""
        self._elector.require_leadership()

    def on_date(self, date: float) -> None:
        """Called with the Date of an answer, as the operator's own client does."""
        self.components.connection.clock.observe(date)

    async def _kopf(self) -> None:
        async with asyncio.TaskGroup() as watches:
            for path, store in (
                (POOLS_PATH, self.components.pools),
                (CLASSES_PATH, self.components.classes),
            ):
                watches.create_task(self._watch_as_kopf_does(path, store.observe))

    async def _watch_as_kopf_does(self, path: str, observe: Callable[..., None]) -> None:
        """List, and watch on; what has vanished while the watch was down is never told.

        As in kopf, what a handler raises is nobody's business but the log's.
        """

        def handle(body: Mapping[str, Any], *, deleted: bool) -> None:
            with suppress(Exception):
                observe(body, deleted=deleted)

        while True:
            try:
                listed = msgspec.json.decode(await self._client.get(path))
                for body in listed["items"]:
                    handle(body, deleted=False)
                params = {
                    "resourceVersion": listed["metadata"]["resourceVersion"],
                    "timeoutSeconds": "270",
                }
                async with self._client.watch(path, params) as lines:
                    async for event in _events(lines):
                        handle(event["object"], deleted=event["type"] == "DELETED")
            except (KubeError, *UNREADABLE):
                pass
            await asyncio.sleep(KOPF_RETRY_SECONDS)


async def _events(lines: AsyncIterator[bytes]) -> AsyncIterator[Mapping[str, Any]]:
    async for line in lines:
        event = msgspec.json.decode(line)
        if event["type"] != "BOOKMARK":
            yield event


class Life:
    """Something that runs until it is killed; nothing of it is left then.

    Attributes:
        client: sends its requests.
        task: what runs.
    """

    client: SimulatedClient
    task: asyncio.Task[None]

    @property
    def dead(self) -> bool:
        """It was killed."""
        return self.client.dead

    def kill(self) -> None:
        """End it at once: not one request is sent from now on, whatever its code would do."""
        self.client.dead = True
        self.task.cancel()

    async def finish(self) -> None:
        """Kill it and wait for its end."""
        self.kill()
        await asyncio.gather(self.task, return_exceptions=True)


class Process(Life):
    """An operator.

    Args:
        network: between it and the API server.
        wall: seconds since the epoch.
        on_lease_lost: told, with the process, that it has to end for want of a lease.
    """

    def __init__(
        self,
        network: Network,
        wall: Callable[[], float],
        on_lease_lost: Callable[[Process], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.client = SimulatedClient(network)
        self.operator = SimulatedOperator(
            Settings(probe_image=PROBE_IMAGE, lease=LEASE),
            NOWHERE,
            client=self.client,
            wall=wall,
            clock=loop.time,
        )
        self.client.permit = self.operator.permit
        self.client.on_date = self.operator.on_date
        self.operator.on_lease_lost = lambda: on_lease_lost(self)
        self.task = loop.create_task(self.operator.operate())
