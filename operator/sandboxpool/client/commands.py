"""Commands in a sandbox."""

from collections.abc import AsyncIterable, Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal, cast

from sandboxpool.api.reasons import Reason
from sandboxpool.client import claims, requests
from sandboxpool.client.api import Api, Object, WebSocket
from sandboxpool.client.errors import (
    ApiError,
    CommandError,
    CommandFailed,
    CommandNotStarted,
    CommandTimeout,
    ConnectionLost,
    OutputLimitExceeded,
    SandboxError,
    SandboxLost,
    SandboxPoolError,
)
from sandboxpool.client.io import CHUNK, Io, Task
from sandboxpool.client.wire import remotecommand
from sandboxpool.client.wire.remotecommand import Channel, Ending

DEFAULT_OUTPUT_LIMIT = 16 * 1024 * 1024
Input = bytes | bytearray | BinaryIO | Iterable[bytes] | AsyncIterable[bytes]

# Silence after which is asked whether the sandbox is still there.
_QUIET_SECONDS = 10.0
# What the operator has for saying why a pod is gone.
_CAUSE_SECONDS = 5.0
# A command that was killed: perhaps with its sandbox. 128 + SIGKILL, 128 + SIGTERM.
_KILLED = (137, 143)


@dataclass(frozen=True, slots=True)
class Result:
    """What a command wrote and how it ended."""

    stdout: bytes
    stderr: bytes
    exit_code: int

    @property
    def text(self) -> str:
        """Standard output as text; what is no UTF-8 is replaced."""
        return self.stdout.decode(errors="replace")

    def check(self) -> "Result":
        """Return the result of a command that succeeded.

        Raises:
            CommandFailed: The exit code is not 0.
        """
        if self.exit_code == 0:
            return self
        said = self.stderr[-1000:].decode(errors="replace").strip()
        raise CommandFailed(
            f"the command ended with exit code {self.exit_code}: {said}",
            self.exit_code,
            stdout=self.stdout,
            stderr=self.stderr,
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some output of a command that runs."""

    stream: Literal["stdout", "stderr"]
    data: bytes


class Target:
    """A sandbox to run commands in.

    Attributes:
        claim: Its claim, as it was read last.
        container: The container; empty for the pod's default one.
    """

    def __init__(self, api: Api, claim: Object, container: str = "") -> None:
        self.api = api
        self.claim = claim
        self.container = container

    @property
    def namespace(self) -> str:
        """Where the sandbox is."""
        return str(self.claim["metadata"]["namespace"])

    @property
    def pod(self) -> str:
        """The pod that is the sandbox."""
        return str(self.claim["status"]["podName"])

    async def refresh(self) -> Object:
        """Read the claim again.

        Raises:
            SandboxLost: It has no sandbox any more.
        """
        name = self.claim["metadata"]["name"]
        try:
            claim = await self.api.call(requests.get_claim(self.namespace, name))
        except ApiError as error:
            if error.status == 404:
                raise self._deleted() from None
            raise
        if claim["metadata"]["uid"] != self.claim["metadata"]["uid"]:
            raise self._deleted()
        claims.is_bound(claim)
        self.claim = claim
        return claim

    async def check_alive(self) -> None:
        """See that the sandbox is still there.

        Raises:
            SandboxLost: It is not, with the cause.
        """
        claim = await self.refresh()
        try:
            pod = await self.api.call(requests.get_pod(self.namespace, self.pod))
        except ApiError as error:
            if error.status == 404:
                await self._cause(claim)
            return
        if claims.pod_is_ending(pod, claim["status"]["podUID"]):
            await self._cause(claim)

    async def _cause(self, claim: Object) -> None:
        """Wait for the operator to say why the sandbox is going, and raise it."""
        metadata = claim["metadata"]
        deadline = self.api.io.monotonic() + _CAUSE_SECONDS
        request = requests.watch_claims(
            self.namespace,
            metadata["resourceVersion"],
            name=metadata["name"],
            seconds=int(_CAUSE_SECONDS),
        )
        try:
            watch = await self.api.watch(request)
            try:
                while event := await watch.next_event(max(0.0, deadline - self.api.io.monotonic())):
                    kind, claim = event
                    if kind == "DELETED":
                        raise self._deleted()
                    if kind in ("ADDED", "MODIFIED"):
                        claims.is_bound(claim)
            finally:
                watch.close()
        except (ConnectionLost, ApiError):
            pass
        reason, message = claims.condition(claim, "Ready")
        said = f": {message}" if message else ""
        raise SandboxLost(
            f"pod {self.pod} of claim {metadata['name']!r} is ending{said}; claim another sandbox",
            reason or Reason.POD_DELETED,
        )

    def _deleted(self) -> SandboxLost:
        name = self.claim["metadata"]["name"]
        return SandboxLost(
            f"claim {name!r} was deleted, and its sandbox with it; claim another one",
            Reason.POD_DELETED,
        )


class Running:
    """A command that runs.

    Attributes:
        exit_code: Its exit code, once it has ended.
    """

    def __init__(
        self,
        target: Target,
        socket: WebSocket,
        command: Sequence[str],
        within: float | None = None,
    ) -> None:
        self.exit_code: int | None = None
        self._io = target.api.io
        self._deadline = None if within is None else self._io.monotonic() + within
        self._target = target
        self._socket = socket
        self._command = list(command)
        self._feeder: Task | None = None
        self._input_error: Exception | None = None
        self._ended = False

    async def next_chunk(self) -> Chunk | None:
        """Return what the command writes next; None when it has ended.

        Raises:
            CommandNotStarted: The sandbox has no such program, or cannot run it.
            CommandTimeout: It has taken longer than it may.
            ConnectionLost: The API server went away; what the command does is unknown.
            SandboxLost: The sandbox went away.
        """
        while not self._ended:
            wait = _QUIET_SECONDS
            if self._deadline is not None:
                wait = min(wait, self._deadline - self._io.monotonic())
                if wait <= 0:
                    raise CommandTimeout(
                        f"{self._named()} has not ended in time. It may go on: releasing the"
                        " sandbox ends it"
                    )
            try:
                message = await self._socket.receive(wait)
            except TimeoutError:
                if self._deadline is None or self._io.monotonic() < self._deadline:
                    await self._still_there()
                continue
            except ConnectionLost as error:
                if self._input_error is not None:
                    raise self._input_error from error
                raise await self._broken(error) from error
            if message is None:
                raise await self._broken(None)
            if not message:
                continue
            channel, payload = message[0], message[1:]
            if channel == Channel.ERROR:
                await self._end(remotecommand.decode_ending(payload))
            elif payload and channel in (Channel.STDOUT, Channel.STDERR):
                return Chunk("stdout" if channel == Channel.STDOUT else "stderr", payload)
        return None

    async def send(self, data: bytes) -> None:
        """Give the command input, for as long as it takes it."""
        for start in range(0, len(data), CHUNK):
            await self._socket.send(*remotecommand.stdin(data[start : start + CHUNK]))

    async def end_input(self) -> None:
        """Tell the command that its input has ended.

        Raises:
            SandboxError: The API server is too old for that.
        """
        if self._socket.protocol != remotecommand.V5:
            raise SandboxError(
                f"the API server speaks {self._socket.protocol}, which cannot end a command's"
                " input: that takes Kubernetes 1.30 or later",
            )
        await self._socket.send(remotecommand.end_of_stdin())

    async def resize(self, columns: int, rows: int) -> None:
        """Say how large the terminal is."""
        await self._socket.send(remotecommand.resize(columns, rows))

    def feed(self, source: Input) -> None:
        """Give the command all of the input, beside whatever else goes on."""
        self._feeder = self._io.start(self._feed(source))

    async def close(self) -> None:
        """Let go of the command; it goes on where it has not ended."""
        self._ended = True
        await self._socket.close()
        if self._feeder is not None:
            await self._feeder.stop()

    async def _feed(self, source: Input) -> None:
        try:
            reader = InputReader(self._io, source)
            while part := await reader.next_part():
                await self.send(part)
            await self.end_input()
        except ConnectionLost:
            # The command has ended, or whoever reads its output says why it broke.
            return
        except Exception as error:
            self._input_error = error
            await self._socket.close()

    async def _still_there(self) -> None:
        await self._socket.ping()
        try:
            await self._target.check_alive()
        except SandboxLost:
            raise
        except SandboxPoolError:
            # It is the command's connection that counts.
            return

    async def _broken(self, error: ConnectionLost | None) -> SandboxPoolError:
        try:
            await self._target.check_alive()
        except SandboxLost as lost:
            return lost
        except SandboxPoolError:
            pass
        why = error.message if error is not None else "the connection was closed"
        return ConnectionLost(
            f"{self._named()}: {why}, before the command had ended. It may go on in the sandbox;"
            " what became of it is unknown"
        )

    async def _end(self, ending: Ending) -> None:
        self._ended = True
        if ending.exit_code is None or ending.exit_code in _KILLED:
            try:
                await self._target.check_alive()
            except SandboxLost:
                raise
            except SandboxPoolError:
                pass
        if ending.exit_code is None:
            raise _not_started(self._named(), ending)
        self.exit_code = ending.exit_code

    def _named(self) -> str:
        return f"command {self._command[0]!r} in pod {self._target.pod}"


def _not_started(command: str, ending: Ending) -> CommandError:
    return CommandNotStarted(
        f"{command} could not be run: {ending.message or ending.reason}", ending.reason
    )


class InputReader:
    """Reads a command's input piece by piece."""

    def __init__(self, io: Io, source: Input) -> None:
        self._io = io
        self._file: BinaryIO | None = None
        self._later: AsyncIterable[bytes] | None = None
        parts: Iterable[bytes] = ()
        if isinstance(source, bytes | bytearray | memoryview):
            data = bytes(source)
            parts = (data[start : start + CHUNK] for start in range(0, len(data), CHUNK))
        elif isinstance(source, str):
            raise TypeError("input is bytes: encode the text first")
        elif hasattr(source, "read"):
            self._file = cast(BinaryIO, source)
        elif isinstance(source, AsyncIterable):
            self._later = source
        else:
            parts = source
        self._parts = iter(parts)
        self._blocks = not isinstance(source, bytes | bytearray | memoryview)
        self._iterator = self._later.__aiter__() if self._later is not None else None

    async def next_part(self) -> bytes:
        """Return the next piece; an empty one at the end."""
        while True:
            if self._iterator is not None:
                try:
                    part = await self._iterator.__anext__()
                except StopAsyncIteration:
                    return b""
            elif self._file is not None:
                return await self._io.call_blocking(self._read)
            elif self._blocks:
                following = await self._io.call_blocking(self._next)
                if following is None:
                    return b""
                part = following
            else:
                return self._next() or b""
            if part:
                return part

    def _read(self) -> bytes:
        file = self._file
        assert file is not None
        # What a terminal or a pipe has, not only what fills a buffer.
        read = getattr(file, "read1", file.read)
        part = read(CHUNK)
        if isinstance(part, str):
            raise TypeError("input is bytes: open the file with mode 'rb'")
        return part or b""

    def _next(self) -> bytes | None:
        return next(self._parts, None)


async def start(
    target: Target,
    command: Sequence[str],
    *,
    stdin: bool = False,
    tty: bool = False,
    within: float | None = None,
) -> Running:
    """Start a command that is to end within so many seconds.

    Raises:
        SandboxLost: The sandbox is no more.
        TypeError: The command is one string.
    """
    if isinstance(command, str | bytes):
        raise TypeError(
            "a command is a list of arguments; for a shell's syntax: ['sh', '-c', command]"
        )
    if not command:
        raise ValueError("the command is empty")
    request = requests.execute(
        *(target.namespace, target.pod, command),
        container=target.container,
        stdin=stdin,
        tty=tty,
    )
    try:
        socket = await target.api.websocket(request, remotecommand.PROTOCOLS)
    except ApiError as error:
        if error.status in (404, 500, 502, 503, 504) or "not running" in error.message:
            await target.check_alive()
        raise
    return Running(target, socket, command, within)


async def run(
    target: Target,
    command: Sequence[str],
    *,
    stdin: Input | None = None,
    within: float | None = None,
    limit: int = DEFAULT_OUTPUT_LIMIT,
) -> Result:
    """Run a command to its end, within so many seconds.

    Raises:
        OutputLimitExceeded: It wrote more than the limit.
    """
    stdout, stderr = bytearray(), bytearray()
    running = await start(target, command, stdin=stdin is not None, within=within)
    try:
        if stdin is not None:
            running.feed(stdin)
        while (chunk := await running.next_chunk()) is not None:
            (stdout if chunk.stream == "stdout" else stderr).extend(chunk.data)
            if len(stdout) + len(stderr) > limit:
                raise OutputLimitExceeded(
                    f"{running._named()} wrote more than {limit} bytes: raise limit=, or read it"
                    " piece by piece with stream()"
                )
    except CommandError as error:
        error.stdout, error.stderr = bytes(stdout), bytes(stderr)
        raise
    finally:
        await running.close()
    assert running.exit_code is not None
    return Result(bytes(stdout), bytes(stderr), running.exit_code)
