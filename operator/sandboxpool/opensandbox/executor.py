"""Delivers tasks to sandboxes: the only connections of the product to sandboxes.

A sandbox runs code that nobody trusts, and answers what it likes. So connections go to two fixed
ports of the address in the claim's status, which the operator writes; redirects, proxies and
cookies are not followed; and answers are bounded in time and size. What comes back is text for
messages.
"""

import asyncio
import ipaddress
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

import aiohttp
import msgspec

from sandboxpool.opensandbox.names import EXECD_PORT, EXECUTOR_PORT

REQUEST_SECONDS: Final = 3.0
CONNECT_SECONDS: Final = 1.0
# An executor that does not answer is asked again, and execd waited for, for this long.
DELIVERY_SECONDS: Final = 10.0
READY_SECONDS: Final = 10.0
MAX_ANSWER_BYTES: Final = 64 * 1024
MAX_TEXT: Final = 300
FIRST_PAUSE_SECONDS: Final = 0.01
LONGEST_PAUSE_SECONDS: Final = 0.25
PAUSE_FACTOR: Final = 1.3
# While execd does not answer, the executor is asked this often whether the task has ended.
TASK_CHECK_SECONDS: Final = 1.0
MAX_CONNECTIONS: Final = 256


class DeliveryError(Exception):
    """The task was not delivered; the message says where, and what was answered."""


class TaskEndedError(Exception):
    """The task has ended before the sandbox was published; the message has its exit code."""


class _Terminated(msgspec.Struct):
    exitCode: int = 0
    reason: str = ""
    message: str = ""


class _ProcessStatus(msgspec.Struct):
    terminated: _Terminated | None = None


class _Task(msgspec.Struct):
    name: str = ""
    processStatus: _ProcessStatus | None = None


class _AnswerError(Exception):
    """A request without the expected answer; ``final`` if another would not get it either."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class Executor:
    """Requests to sandboxes; use as an async context manager.

    Args:
        clock: a monotonic clock, in seconds.
        executor_port: the port of the task-executor.
        execd_port: the port of execd.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        executor_port: int = EXECUTOR_PORT,
        execd_port: int = EXECD_PORT,
    ) -> None:
        self._clock = clock
        self._executor_port = executor_port
        self._execd_port = execd_port
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Executor":
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS, limit_per_host=2),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS, connect=CONNECT_SECONDS),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def deliver(self, address: str, name: str, process: msgspec.Raw) -> None:
        """Deliver a task: a repetition starts nothing twice.

        Args:
            address: the sandbox's IP address.
            name: the task's name.
            process: the task's process, as a JSON object.

        Raises:
            DeliveryError: the executor does not take it.
            TaskEndedError: it has ended already, or did not start.
        """
        body = msgspec.json.encode([{"name": name, "process": process}])
        url = f"http://{_host(address)}:{self._executor_port}/setTasks"
        deadline = self._clock() + DELIVERY_SECONDS
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                _raise_if_ended(await self._request("POST", url, body), name)
            except _AnswerError as error:
                if error.final or self._clock() + pause >= deadline:
                    raise DeliveryError(
                        f"task-executor on port {self._executor_port}: {error}"
                    ) from error
            else:
                return
            await asyncio.sleep(pause)
            pause = min(pause * PAUSE_FACTOR, LONGEST_PAUSE_SECONDS)

    async def wait_until_ready(self, address: str, name: str) -> bool:
        """Wait until execd answers; return False if it does not in time.

        Raises:
            TaskEndedError: the task has ended.
        """
        host = _host(address)
        url = f"http://{host}:{self._execd_port}/ping"
        began = checked = self._clock()
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                await self._request("GET", url)
            except _AnswerError:
                now = self._clock()
            else:
                return True
            over = now + pause >= began + READY_SECONDS
            if over or now - checked >= TASK_CHECK_SECONDS:
                checked = now
                await self._check_task(host, name)
            if over:
                return False
            await asyncio.sleep(pause)
            pause = min(pause * PAUSE_FACTOR, LONGEST_PAUSE_SECONDS)

    async def _check_task(self, host: str, name: str) -> None:
        try:
            answer = await self._request("GET", f"http://{host}:{self._executor_port}/getTasks")
        except _AnswerError:
            return
        _raise_if_ended(answer, name)

    async def _request(self, method: str, url: str, body: bytes | None = None) -> bytes:
        assert self._session is not None, "use the executor as a context manager"
        headers = {"Content-Type": "application/json"} if body is not None else None
        try:
            async with self._session.request(
                method, url, data=body, headers=headers, allow_redirects=False
            ) as response:
                answer = await _bounded(response)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise _AnswerError(_why(error)) from error
        if response.status == 200:
            return answer
        # A server that cannot start the task answers 500 and keeps it as terminated.
        text = _text(answer.decode("utf-8", "replace"))
        raise _AnswerError(
            f"it answered {response.status}: {text}", final=300 <= response.status < 500
        )


def _why(error: Exception) -> str:
    match error:
        case TimeoutError():
            return f"no answer within {REQUEST_SECONDS:g} s"
        case aiohttp.ClientConnectorError():
            return f"cannot connect: {error.os_error.strerror or error.os_error}"
        case aiohttp.ServerDisconnectedError():
            return "it closed the connection without an answer"
    return f"its answer is not HTTP: {_text(str(error))}"


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    answer = b""
    while chunk := await response.content.read(MAX_ANSWER_BYTES + 1 - len(answer)):
        answer += chunk
        if len(answer) > MAX_ANSWER_BYTES:
            response.close()
            raise _AnswerError(f"it answered more than {MAX_ANSWER_BYTES} bytes", final=True)
    return answer


def _raise_if_ended(answer: bytes, name: str) -> None:
    try:
        tasks = msgspec.json.decode(answer, type=list[_Task])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        # What the answer says is used for messages only.
        return
    for task in tasks:
        ended = task.processStatus.terminated if task.processStatus is not None else None
        if task.name == name and ended is not None:
            cause = " ".join(filter(None, (ended.reason, ended.message)))
            raise TaskEndedError(
                f"the task ended with exit code {ended.exitCode} before execd answered"
                f" on port {EXECD_PORT}" + (f": {_text(cause)}" if cause else "")
            )


def _host(address: str) -> str:
    """The address as a URL's host.

    Raises:
        DeliveryError: it is not an IP address.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError as error:
        raise DeliveryError(f"the sandbox has no IP address: {_text(repr(address))}") from error
    return f"[{parsed}]" if parsed.version == 6 else str(parsed)


def _text(given: str) -> str:
    """Text of a sandbox for a message: printable, on one line, and cut."""
    line = " ".join("".join(c if c.isprintable() else " " for c in given).split())
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 1] + "…"
