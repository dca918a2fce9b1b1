"""The elector in virtual time, against an API server that fails where a test says so."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import kopf
import pytest
from aiohttp import web

from sandboxpool.kube import client as client_module
from sandboxpool.kube.client import ApiClient
from sandboxpool.kube.errors import ApiError, NotLeaderError, UnknownOutcomeError
from sandboxpool.kube.lease import LeaderElectionTimes, LeaderElector
from support.scriptedapi import BROKEN, UNKNOWN, Object, ScriptedApi

LEASES = "/apis/coordination.k8s.io/v1/namespaces/system/leases"
NAME = "team-a"
PATH = f"{LEASES}/{NAME}"
TIMES = LeaderElectionTimes(lease_duration=15, renew_deadline=10, retry_period=2)


class LeaseServer(ScriptedApi):
    """Holds leases and tells its watches of each change."""

    def __init__(self) -> None:
        super().__init__(lambda: 0.0, self._tell)
        self.deaf = False
        self.hanging = False
        self.nonsense: bytes | None = None
        self._watches: list[asyncio.Queue[bytes]] = []

    @property
    def lease(self) -> Object:
        """What the lease says now."""
        return dict(self.objects[PATH]["spec"])

    def take(self, **spec: Any) -> None:
        """Write the lease as somebody else does."""
        if PATH not in self.objects:
            self.objects[PATH] = {"metadata": {"name": NAME}, "spec": {}}
        self.touch(PATH)
        changed = self.objects[PATH]
        self.put(PATH, {**changed, "spec": {**changed["spec"], **spec}})

    def _tell(self, _: str, old: Object | None, new: Object | None) -> None:
        kind = "DELETED" if new is None else "MODIFIED"
        line = json.dumps({"type": kind, "object": new or old}).encode()
        for lines in self._watches:
            lines.put_nowait(line)

    async def _send(self, method: str, *request: Any) -> bytes:
        # On its way: whoever sends is not yet answered when another begins to send.
        await asyncio.sleep(0.01)
        if self.hanging and method != "GET":
            await asyncio.sleep(3600)
        if self.nonsense is not None:
            return self.nonsense
        return await super()._send(method, *request)

    @asynccontextmanager
    async def watch(
        self, path: str, params: Mapping[str, str]
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        assert (path, params["fieldSelector"]) == (LEASES, f"metadata.name={NAME}")
        lines: asyncio.Queue[bytes] = asyncio.Queue()
        if not self.deaf:
            self._watches.append(lines)
        try:
            yield _lines(lines)
        finally:
            if lines in self._watches:
                self._watches.remove(lines)


async def _lines(queue: asyncio.Queue[bytes]) -> AsyncIterator[bytes]:
    while True:
        yield await queue.get()


class Replica:
    """One process that wants to lead, with clocks of its own."""

    def __init__(self, server: LeaseServer, name: str, *, wall: float = 0.0) -> None:
        self.asleep = 0.0
        self.unfit = ""
        loop = asyncio.get_running_loop()
        self.elector = LeaderElector(
            server,
            "system",
            name=NAME,
            identity=name,
            times=TIMES,
            clock=lambda: loop.time() + self.asleep,
            wall=lambda: loop.time() + wall,
            not_ready_reason=lambda: self.unfit,
        )
        self.task = loop.create_task(self.elector.run())

    @property
    def leads(self) -> bool:
        """Whether it may write."""
        return self.elector.is_leader

    async def leading(self) -> float:
        """Wait until it leads; return when that was."""
        await self.elector.leading.wait()
        return asyncio.get_running_loop().time()

    async def kill(self) -> None:
        """End it without a word."""
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task

    async def lost(self) -> float:
        """Wait until it has lost the lease; return when that was."""
        with pytest.raises(NotLeaderError):
            await self.task
        return asyncio.get_running_loop().time()


@pytest.fixture
async def server() -> LeaseServer:
    return LeaseServer()


Start = Callable[..., Replica]


@pytest.fixture
async def start(server: LeaseServer) -> AsyncIterator[Start]:
    """Starts replicas, which end with the test."""
    started: list[Replica] = []

    def replica(name: str, **more: Any) -> Replica:
        started.append(Replica(server, name, **more))
        return started[-1]

    yield replica
    for one in started:
        one.task.cancel()
    await asyncio.gather(*(one.task for one in started), return_exceptions=True)


pytestmark = pytest.mark.looptime


def now() -> float:
    return asyncio.get_running_loop().time()


# --- Who cannot lead -----------------------------------------------------------------------------


async def test_who_cannot_lead_does_not_take_the_lease_until_it_can(
    server: LeaseServer, start: Start
) -> None:
    blind, well = start("blind"), start("well")
    blind.unfit = "it sees no pods"
    await well.leading()
    await well.kill()
    await asyncio.sleep(300)
    assert server.lease["holderIdentity"] == "well"
    blind.unfit = ""
    assert await blind.leading() < 303


async def test_who_can_lead_no_longer_gives_the_lease_up(server: LeaseServer, start: Start) -> None:
    first, second = start("a"), start("b")
    await first.leading()
    await asyncio.sleep(60)
    first.unfit = "it sees no pods"
    with pytest.raises(NotLeaderError, match="it sees no pods"):
        await first.task
    assert now() < 60 + TIMES.renew_deadline
    assert await second.leading() < 60 + TIMES.lease_duration + 2 * TIMES.retry_period
    del server


# --- Taking and keeping --------------------------------------------------------------------------


async def test_a_lease_that_nobody_has_is_taken_at_once(server: LeaseServer, start: Start) -> None:
    assert await start("a").leading() < 0.1
    assert server.lease["holderIdentity"] == "a"
    assert server.lease["leaseDurationSeconds"] == 15
    assert server.lease["leaseTransitions"] == 0


async def test_it_is_renewed_and_otherwise_left_as_it_is(server: LeaseServer, start: Start) -> None:
    leader = start("a")
    await leader.leading()
    taken = server.lease
    await asyncio.sleep(60)
    assert leader.leads
    assert 25 <= len(server.sent("PATCH")) <= 30
    assert server.lease["renewTime"] > taken["renewTime"]
    assert {**server.lease, "renewTime": ""} == {**taken, "renewTime": ""}


async def test_of_two_that_start_together_one_leads(server: LeaseServer, start: Start) -> None:
    replicas = [start("a"), start("b")]
    await asyncio.sleep(100)
    assert [one.leads for one in replicas].count(True) == 1
    assert len(server.sent("POST")) == 2
    assert server.lease["leaseTransitions"] == 0


async def test_a_standby_writes_nothing(server: LeaseServer, start: Start) -> None:
    leader = start("a")
    await leader.leading()
    standby = start("b")
    await asyncio.sleep(100)
    assert leader.leads
    assert not standby.elector.leading.is_set()
    assert {call.body["spec"]["holderIdentity"] for call in server.writes} == {"a"}


async def test_the_next_leads_when_the_leader_has_been_silent_for_so_long(
    server: LeaseServer, start: Start
) -> None:
    leader, standby = start("a"), None
    await leader.leading()
    standby = start("b")
    await asyncio.sleep(20.5)
    await leader.kill()
    last = max(now() - TIMES.retry_period, 0)
    took = await standby.leading()
    # The lease's end as seen by others comes after its end for the holder.
    assert not leader.leads
    assert (
        last + TIMES.lease_duration - 1
        < took
        <= now()
        <= last + 2 * TIMES.retry_period + TIMES.lease_duration
    )
    assert server.lease["holderIdentity"] == "b"
    assert server.lease["leaseTransitions"] == 1


async def test_a_lease_that_is_given_back_is_taken_at_once(
    server: LeaseServer, start: Start
) -> None:
    leader = start("a")
    await leader.leading()
    standby = start("b")
    await asyncio.sleep(20)
    await leader.kill()
    before = now()
    await leader.elector.release()
    assert not leader.leads
    assert await standby.leading() - before < 0.1
    assert server.lease["leaseTransitions"] == 1
    given_back = server.sent("PATCH")[-2].body["spec"]
    assert (given_back["holderIdentity"], given_back["leaseDurationSeconds"]) == ("", 1)


@pytest.mark.parametrize("hours", [-1, 1])
async def test_clocks_on_the_wall_do_not_matter(
    server: LeaseServer, start: Start, hours: int
) -> None:
    leader = start("a")
    await leader.leading()
    standby = start("b", wall=hours * 3600.0)
    await asyncio.sleep(100)
    assert leader.leads
    assert not standby.elector.leading.is_set()


async def test_a_lease_lasts_as_long_as_its_holder_has_set(
    server: LeaseServer, start: Start
) -> None:
    server.take(holderIdentity="other", leaseDurationSeconds=40, renewTime="t")
    assert 40 <= await start("a").leading() < 45


async def test_a_lease_without_times_lasts_as_long_as_ours(
    server: LeaseServer, start: Start
) -> None:
    server.take(holderIdentity="other")
    assert 15 <= await start("a").leading() < 20
    assert server.lease["leaseTransitions"] == 0


async def test_a_silent_watch_lets_nobody_take_a_held_lease(
    server: LeaseServer, start: Start
) -> None:
    leader = start("a")
    await leader.leading()
    server.deaf = True
    standby = start("b")
    await asyncio.sleep(200)
    assert leader.leads
    assert not standby.elector.leading.is_set()


async def test_a_lease_that_was_deleted_is_its_holders_still(
    server: LeaseServer, start: Start
) -> None:
    leader = start("a")
    await leader.leading()
    standby = start("b")
    await asyncio.sleep(21)
    server.remove(PATH)
    await asyncio.sleep(21)
    assert leader.leads
    assert not standby.elector.leading.is_set()
    assert server.lease["holderIdentity"] == "a"


async def test_a_deleted_lease_of_one_who_is_gone_is_free_after_its_time(
    server: LeaseServer, start: Start
) -> None:
    leader = start("a")
    await leader.leading()
    standby = start("b")
    await asyncio.sleep(21)
    await leader.kill()
    server.remove(PATH)
    began = now()
    assert (
        TIMES.lease_duration - TIMES.retry_period
        <= await standby.leading() - began
        <= TIMES.lease_duration + 4
    )


# --- Losing --------------------------------------------------------------------------------------


async def test_who_cannot_renew_stops_before_anybody_else_may_begin(
    server: LeaseServer, start: Start
) -> None:
    leader = start("a")
    began = await leader.leading()
    server.fail("PATCH", NAME, BROKEN, times=5)
    standby = start("b")
    await asyncio.sleep(TIMES.renew_deadline - 0.5)
    leader.elector.require_leadership()
    stopped = await leader.lost()
    assert stopped - began < TIMES.renew_deadline
    with pytest.raises(NotLeaderError):
        leader.elector.require_leadership()
    assert await standby.leading() - stopped > TIMES.lease_duration - TIMES.renew_deadline - 0.1


async def test_who_gets_no_answer_stops_in_time(server: LeaseServer, start: Start) -> None:
    leader = start("a")
    began = await leader.leading()
    server.hanging = True
    assert TIMES.renew_deadline - 1 < await leader.lost() - began <= TIMES.renew_deadline + 0.1


async def test_who_is_overthrown_stops(server: LeaseServer, start: Start) -> None:
    leader = start("a")
    await leader.leading()
    server.take(holderIdentity="other", leaseTransitions=7)
    before = now()
    assert await leader.lost() - before <= TIMES.retry_period + 0.1
    assert not leader.leads
    assert server.lease["holderIdentity"] == "other"
    assert server.lease["leaseTransitions"] == 7


async def test_an_edit_by_somebody_else_costs_nothing(server: LeaseServer, start: Start) -> None:
    leader = start("a")
    await leader.leading()
    for _ in range(5):
        server.touch(PATH, annotations={"x": "y"})
        await asyncio.sleep(7)
    assert leader.leads


@pytest.mark.parametrize("applied", [False, True], ids=["lost", "applied"])
async def test_an_unknown_outcome_of_a_renewal_is_looked_at(
    server: LeaseServer, start: Start, *, applied: bool
) -> None:
    leader = start("a")
    await leader.leading()
    for _ in range(5):
        server.fail("PATCH", NAME, UNKNOWN, applied=applied)
        await asyncio.sleep(7)
    assert leader.leads
    assert server.lease["leaseTransitions"] == 0


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_who_has_taken_it_without_hearing_of_it_leads_soon(
    server: LeaseServer, start: Start, method: str
) -> None:
    if method == "PATCH":
        server.take(holderIdentity="", leaseTransitions=3)
    server.fail(method, LEASES, UNKNOWN, applied=True)
    assert await start("a").leading() < 5
    assert server.lease["leaseTransitions"] == (4 if method == "PATCH" else 0)


@pytest.mark.parametrize("nonsense", [b"<html>", b"{}", b'{"metadata": {}, "spec": {}}'])
async def test_an_answer_that_is_no_lease_is_survived(
    server: LeaseServer, start: Start, nonsense: bytes
) -> None:
    """Something between us and the API server answers in its place."""
    leader = start("a")
    server.nonsense = nonsense
    await asyncio.sleep(5)
    assert not leader.leads
    server.nonsense = None
    await leader.leading()
    server.nonsense = nonsense
    await asyncio.sleep(5)
    server.nonsense = None
    await asyncio.sleep(20)
    assert leader.leads


async def test_time_that_the_machine_slept_counts(server: LeaseServer, start: Start) -> None:
    leader = start("a")
    await leader.leading()
    await asyncio.sleep(20.5)
    sent = len(server.writes)
    leader.asleep = TIMES.lease_duration
    # At once, before any timer of the process has run.
    assert not leader.leads
    await leader.lost()
    assert len(server.writes) == sent


# --- Giving back ---------------------------------------------------------------------------------


async def test_only_what_is_held_is_given_back(server: LeaseServer, start: Start) -> None:
    leader, standby = start("a"), start("b")
    await asyncio.sleep(20)
    holder, other = (leader, standby) if leader.leads else (standby, leader)
    sent = len(server.writes)
    await other.elector.release()
    assert len(server.writes) == sent
    assert holder.leads


@pytest.mark.parametrize("error", [BROKEN, UNKNOWN], ids=["refused", "unknown"])
async def test_what_cannot_be_given_back_ends_by_itself(
    server: LeaseServer, start: Start, error: Exception
) -> None:
    leader = start("a")
    await leader.leading()
    await leader.kill()
    server.fail("PATCH", NAME, error)  # type: ignore[arg-type]
    await leader.elector.release()
    assert not leader.leads
    assert await start("b").leading() >= TIMES.lease_duration


async def test_a_late_renewal_does_not_keep_the_lease_from_being_given_back(
    server: LeaseServer, start: Start
) -> None:
    leader = start("a")
    await leader.leading()
    await leader.kill()
    server.touch(PATH)
    await leader.elector.release()
    assert server.lease["holderIdentity"] == ""


# --- The gate ------------------------------------------------------------------------------------


class Gate:
    """Says whether writes may be sent."""

    def __init__(self) -> None:
        self.open = True

    def __call__(self) -> None:
        if not self.open:
            raise NotLeaderError("shut")


Serve = Callable[[Callable[[web.BaseRequest], Awaitable[web.Response]]], Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts an HTTP server on loopback; it ends with the test."""
    runners: list[web.ServerRunner] = []

    async def begin(handle: Callable[[web.BaseRequest], Awaitable[web.Response]]) -> str:
        runner = web.ServerRunner(web.Server(handle))
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        return f"http://{host}:{port}"

    yield begin
    for runner in runners:
        await runner.cleanup()


WRITES: dict[str, Callable[[ApiClient], Awaitable[bytes]]] = {
    "create": lambda client: client.create("/x", {}),
    "merge_patch": lambda client: client.merge_patch("/x", {}),
    "strategic_patch": lambda client: client.strategic_patch("/x", {}),
    "json_patch": lambda client: client.json_patch("/x", []),
    "replace_status": lambda client: client.replace_status("/x", "uid", {}),
    "delete": lambda client: client.delete("/x", uid="uid"),
}


@pytest.mark.looptime(False)
@pytest.mark.parametrize("write", list(WRITES))
async def test_no_write_is_sent_without_leave_and_reads_need_none(serve: Serve, write: str) -> None:
    arrived: list[str] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        arrived.append(request.method)
        return web.Response(text="{}\n")

    gate = Gate()
    info = kopf.ConnectionInfo(server=await serve(handle))
    async with ApiClient(info, user_agent="test", before_write=gate) as client:
        await WRITES[write](client)
        gate.open = False
        with pytest.raises(NotLeaderError):
            await WRITES[write](client)
        await client.get("/x")
        async with client.watch("/x", {}) as lines:
            assert [line async for line in lines]
    assert arrived[1:] == ["GET", "GET"]


@pytest.mark.looptime(False)
async def test_leave_is_asked_for_when_the_connection_is_there(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that waits for its turn must not go out after the lease's end."""
    monkeypatch.setattr(client_module, "MAX_CONNECTIONS", 1)
    arrived, answered = asyncio.Event(), asyncio.Event()
    methods: list[str] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        methods.append(request.method)
        arrived.set()
        await answered.wait()
        return web.json_response({})

    gate = Gate()
    info = kopf.ConnectionInfo(server=await serve(handle))
    async with ApiClient(info, user_agent="test", before_write=gate) as client:
        first = asyncio.ensure_future(client.get("/x"))
        await arrived.wait()
        second = asyncio.ensure_future(client.delete("/x", uid="uid"))
        await asyncio.sleep(0)
        gate.open = False
        answered.set()
        await first
        with pytest.raises(NotLeaderError):
            await second
    assert methods == ["GET"]


@pytest.mark.looptime(False)
async def test_a_write_that_is_repeated_needs_leave_each_time(serve: Serve) -> None:
    gate = Gate()

    async def handle(request: web.BaseRequest) -> web.Response:
        gate.open = False
        return web.json_response({}, status=429, headers={"Retry-After": "0"})

    info = kopf.ConnectionInfo(server=await serve(handle))
    async with ApiClient(info, user_agent="test", before_write=gate) as client:
        with pytest.raises(NotLeaderError):
            await client.create("/x", {})


def test_a_refusal_is_no_answer_of_the_server() -> None:
    assert not issubclass(NotLeaderError, ApiError | UnknownOutcomeError)
