"""Stand-ins for what runs in OpenSandbox's sandboxes, which record what they are asked.

In a sandbox, task-executor takes the command to run, and that command starts execd, which serves
the SDK. Here both listen on loopback addresses, one address for each sandbox, so that the bridge's
fixed ports are free on each. Nothing is run: a task is what it was told to be.
"""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

from fakekubelet.loopthread import LoopThread

EXECUTOR_PORT = 5758
EXECD_PORT = 44772

_HOSTS = range(1, 251)
_HUGE_CHUNK = bytes(64 * 1024)
_NEVER_SECONDS = 3600.0
_CLOSE_SECONDS = 0.2
_STARTED_AT = "2026-01-01T00:00:00Z"


@dataclass(frozen=True)
class Reply:
    """How a service answers.

    Attributes:
        status: The status code.
        text: A body in place of the right one.
        location: Where it redirects to; the status is 307 then, which keeps method and body.
        after: For how many seconds it says nothing.
        endless: Its body never ends, and comes as fast as it is read.
        trickles: Its body never ends, and comes a byte at a time.
        refuses: It does not listen at all.
        no_http: It answers with what is not HTTP.
        cut: It closes the connection once it has read the request.
    """

    status: int = 200
    text: str | None = None
    location: str | None = None
    after: float = 0.0
    endless: bool = False
    trickles: bool = False
    refuses: bool = False
    no_http: bool = False
    cut: bool = False


GOOD = Reply()
REFUSES = Reply(refuses=True)
SILENT = Reply(after=_NEVER_SECONDS)
BROKEN = Reply(status=500, text="it is broken")
ENDLESS = Reply(endless=True)
TRICKLES = Reply(trickles=True)
NO_HTTP = Reply(no_http=True)
CUT = Reply(cut=True)


@dataclass(frozen=True)
class Manner:
    """How the two services of a sandbox behave.

    Attributes:
        executor: How task-executor answers. It starts the task also where the answer is lost.
        execd: How execd answers.
        exit_code: How the task ends at once; None if it goes on.
        message: What task-executor says of a task that has ended.
        prestarted: execd listens without a task, as in a template that starts it.
        execd_after: How many seconds after the start of its task execd listens.
    """

    executor: Reply = GOOD
    execd: Reply = GOOD
    exit_code: int | None = None
    message: str = ""
    prestarted: bool = False
    execd_after: float = 0.02


@dataclass(frozen=True)
class Request:
    """What a sandbox was asked."""

    address: str
    port: int
    method: str
    path: str
    body: Any


@dataclass
class _Sandbox:
    manner: Manner
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    sites: dict[int, web.SockSite] = field(default_factory=dict)


class FakeSandboxes:
    """Sandboxes at `NETWORK.1` to `NETWORK.250`, driven by plain calls.

    A second run of the tests on this machine has another network.

    Attributes:
        network: The first three numbers of the addresses, for `Behaviour.addresses_from`.
    """

    def __init__(self) -> None:
        pick = random.SystemRandom()
        self.network = f"127.{pick.randrange(16, 240)}.{pick.randrange(256)}"
        self._thread = LoopThread("fake-sandboxes")
        self._lock = threading.Lock()
        self._requests: list[Request] = []
        self._sent = 0
        self._default = Manner()
        self._sandboxes: dict[str, _Sandbox] = {}
        self._runner: web.AppRunner | None = None
        self._starting: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.call(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.call(self._close())
        self._thread.stop()

    def address(self, number: int) -> str:
        """The address of a sandbox, from 1 to 250."""
        return f"{self.network}.{number}"

    def behave(self, manner: Manner, address: str | None = None) -> None:
        """Says how a sandbox behaves from now on, or all of them; tasks are forgotten."""
        self._thread.call(self._behave(manner, address))

    def requests(self, address: str | None = None, path: str | None = None) -> list[Request]:
        """What was asked so far, in order, of one or all, for one path or any."""
        with self._lock:
            return [
                request
                for request in self._requests
                if address in {None, request.address} and path in {None, request.path}
            ]

    def started(self, address: str) -> list[str]:
        """The names of the tasks that were started in a sandbox, in order."""
        return list(self._sandboxes[address].started)

    @property
    def sent_bytes(self) -> int:
        """How much of endless bodies was sent; what nobody reads is not sent."""
        return self._sent

    # In the thread.

    async def _open(self) -> None:
        application = web.Application(client_max_size=2**20)
        application.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(
            application, access_log=None, handle_signals=False, shutdown_timeout=_CLOSE_SECONDS
        )
        await self._runner.setup()
        await self._behave(Manner(), None)

    async def _close(self) -> None:
        for task in self._starting:
            task.cancel()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _behave(self, manner: Manner, address: str | None) -> None:
        if address is None:
            self._default = manner
        for chosen in [address] if address else [self.address(host) for host in _HOSTS]:
            sandbox = self._sandboxes.setdefault(chosen, _Sandbox(manner))
            sandbox.manner = manner
            sandbox.tasks.clear()
            sandbox.started.clear()
            await self._listen(chosen, EXECUTOR_PORT, not manner.executor.refuses)
            await self._listen(chosen, EXECD_PORT, manner.prestarted and not manner.execd.refuses)

    async def _listen(self, address: str, port: int, wanted: bool) -> None:
        sites = self._sandboxes[address].sites
        if not wanted and port in sites:
            await sites.pop(port).stop()
        if wanted and port not in sites and self._runner is not None:
            opened = socket.create_server((address, port), backlog=128)
            sites[port] = web.SockSite(self._runner, opened)
            await sites[port].start()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if request.transport is None:
            raise web.HTTPServiceUnavailable
        address, port = request.transport.get_extra_info("sockname")[:2]
        sandbox = self._sandboxes[address]
        body = await request.json() if request.can_read_body else None
        with self._lock:
            self._requests.append(Request(address, port, request.method, request.path, body))
        if port == EXECUTOR_PORT:
            right = self._task_answer(address, request.method, request.path, body)
            return await self._reply(request, sandbox.manner.executor, right)
        if request.path != "/ping":
            raise web.HTTPNotFound
        return await self._reply(request, sandbox.manner.execd, None)

    def _task_answer(self, address: str, method: str, path: str, body: Any) -> Any:
        sandbox = self._sandboxes[address]
        match method, path:
            case "GET", "/health":
                return {"status": "healthy"}
            case "GET", "/getTasks":
                return list(sandbox.tasks.values())
            case "POST", "/setTasks":
                self._set_tasks(address, body or [])
                return list(sandbox.tasks.values())
        raise web.HTTPNotFound

    def _set_tasks(self, address: str, wanted: list[dict[str, Any]]) -> None:
        sandbox = self._sandboxes[address]
        names = {task["name"] for task in wanted}
        for name in sandbox.tasks.keys() - names:
            del sandbox.tasks[name]
        for task in wanted:
            if task["name"] in sandbox.tasks:
                continue  # A known one is not started again.
            sandbox.started.append(task["name"])
            sandbox.tasks[task["name"]] = {**task, "processStatus": _status(sandbox.manner)}
            if sandbox.manner.exit_code is None and not sandbox.manner.execd.refuses:
                starting = asyncio.create_task(self._start_execd(address))
                self._starting.add(starting)
                starting.add_done_callback(self._starting.discard)

    async def _start_execd(self, address: str) -> None:
        sandbox = self._sandboxes[address]
        await asyncio.sleep(sandbox.manner.execd_after)
        # Its manner may have changed meanwhile, which ends its tasks.
        if sandbox.tasks and not sandbox.manner.execd.refuses:
            await self._listen(address, EXECD_PORT, wanted=True)

    async def _reply(self, request: web.Request, reply: Reply, right: Any) -> web.StreamResponse:
        await asyncio.sleep(reply.after)
        if request.transport is not None and (reply.no_http or reply.cut):
            if reply.no_http:
                request.transport.write(b"SSH-2.0-OpenSSH_9.2\r\n")
            request.transport.close()
            return web.Response()
        if reply.location is not None:
            return web.Response(status=307, headers={"Location": reply.location})
        if reply.endless or reply.trickles:
            return await self._without_end(request, reply)
        if reply.text is not None:
            return web.Response(status=reply.status, text=reply.text)
        if right is None:
            return web.Response(status=reply.status)
        return web.json_response(right, status=reply.status)

    async def _without_end(self, request: web.Request, reply: Reply) -> web.StreamResponse:
        response = web.StreamResponse(status=reply.status)
        await response.prepare(request)
        chunk = b" " if reply.trickles else _HUGE_CHUNK
        while True:
            await response.write(chunk)
            self._sent += len(chunk)
            await asyncio.sleep(0.1 if reply.trickles else 0)


def _status(manner: Manner) -> dict[str, Any]:
    if manner.exit_code is None:
        return {"running": {"startedAt": _STARTED_AT}}
    ended = {
        "exitCode": manner.exit_code,
        "reason": "Succeeded" if manner.exit_code == 0 else "Failed",
        "message": manner.message,
        "startedAt": _STARTED_AT,
        "finishedAt": _STARTED_AT,
    }
    return {"terminated": ended}
