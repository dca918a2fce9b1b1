"""The client over asyncio."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Generic, Literal, Self, TypeVar, Unpack

from sandboxpool.client import binding, claims, commands, config, core, files, forward
from sandboxpool.client.api import Api
from sandboxpool.client.claims import SandboxInfo
from sandboxpool.client.commands import Chunk, Input, Result, Target
from sandboxpool.client.core import ClaimOptions
from sandboxpool.client.errors import SandboxPoolError
from sandboxpool.client.nonblocking import AsyncIo

Claimed = TypeVar("Claimed", bound="AsyncSandbox | AsyncSandboxes")


class Claiming(Generic[Claimed]):
    """A claim on its way: await it, or enter it by `async with`, whose end releases it."""

    def __init__(self, work: Coroutine[Any, Any, Claimed]) -> None:
        self._work = work
        self._claimed: Claimed | None = None

    def __await__(self) -> Generator[Any, None, Claimed]:
        return self._work.__await__()

    async def __aenter__(self) -> Claimed:
        self._claimed = await self._work
        return self._claimed

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._claimed is not None:
            await self._claimed.__aexit__(kind, error, traceback)


class AsyncSandboxPools:
    """The pools of a cluster, to claim sandboxes from. Tasks of one event loop may share it.

    A context manager, which closes idle connections; it does not release what was claimed.
    """

    def __init__(self, settings: config.Settings) -> None:
        """Use a cluster; see `from_config` for the usual way."""
        self._api = Api(AsyncIo(), settings)

    @classmethod
    def from_config(
        cls,
        context: str | None = None,
        *,
        kubeconfig: str | os.PathLike[str] | None = None,
        namespace: str | None = None,
    ) -> Self:
        """Find the cluster as kubectl does, or as the pod that this runs in.

        Args:
            context: The context of the kubeconfig; its current one if unset.
            kubeconfig: The file; `$KUBECONFIG`, then `~/.kube/config` if unset.
            namespace: Where claims are made if they do not say; that of the context, or of the
                pod, if unset.

        Raises:
            ConfigurationError: There is nothing to go by.
        """
        return cls(config.load(context, kubeconfig, namespace))

    def claim(
        self, pool: str, name: str | None = None, **options: Unpack[ClaimOptions]
    ) -> "Claiming[AsyncSandbox]":
        """Claim a sandbox: `async with pools.claim(...) as sandbox`, or `await pools.claim(...)`.

        Args:
            pool: The SandboxPool.
            name: The claim's name. With a name, a claim that is made again is the same claim, and
                an application that was interrupted finds its sandbox again. The API server makes
                a name if unset.
            **options: See `ClaimOptions`.

        Raises:
            PoolNotFound: The namespace has no such pool.
            NoWarmSandbox: No sandbox is warm, or the pool is full, and the claim does not wait.
            BindTimeout: No sandbox became ready in time.
            RuntimeMismatch: The pool has another runtime than asserted.
            ClaimRefused: The pool does not allow what is asked.
            ClaimConflict: The name is taken by another claim.
            AccessDenied: The rights do not suffice.
        """

        async def work() -> AsyncSandbox:
            target = await core.claim(self._api, pool, name, options)
            return AsyncSandbox(target, keep=options.get("keep", False))

        return Claiming(work())

    def claim_many(
        self, pool: str, count: int, *, timeout: float = 300.0, **options: Unpack[ClaimOptions]
    ) -> "Claiming[AsyncSandboxes]":
        """Claim several sandboxes: all of them within the timeout, or none.

        To be awaited, or entered by `async with`.

        Args:
            pool: The SandboxPool.
            count: How many.
            timeout: Seconds, instead of `bind_timeout`.
            **options: See `ClaimOptions`.

        Raises:
            ClaimError: Not all of them got a sandbox in time; none is left.
        """

        async def work() -> AsyncSandboxes:
            keep = options.get("keep", False)
            targets = await core.claim_many(self._api, pool, count, timeout, options)
            return AsyncSandboxes([AsyncSandbox(target, keep=keep) for target in targets])

        return Claiming(work())

    async def attach(
        self, claim: str, *, namespace: str | None = None, container: str | None = None
    ) -> "AsyncSandbox":
        """Return the sandbox of a claim that somebody else has made; `async with` leaves it.

        Raises:
            ApiError: There is no such claim.
            SandboxLost: Its sandbox is no more.
        """
        bound = await binding.attach(self._api, namespace or self._api.settings.namespace, claim)
        return AsyncSandbox(Target(self._api, bound, container or ""), keep=True)

    async def close(self) -> None:
        """Close idle connections."""
        self._api.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncSandbox:
    """A sandbox that a claim has. Tasks may share it, and run commands at once.

    A context manager: the end of the block releases the sandbox, also after an exception and when
    the task is cancelled, unless it is to be kept.
    """

    def __init__(self, target: Target, *, keep: bool = False) -> None:
        self._target = target
        self._keep = keep

    @property
    def info(self) -> SandboxInfo:
        """What is known of the sandbox, as of the claim or the last `refresh` or `extend`."""
        return claims.info(self._target.claim)

    async def refresh(self) -> SandboxInfo:
        """Ask again what is known of the sandbox.

        Raises:
            SandboxLost: It is no more.
        """
        await self._target.refresh()
        return self.info

    async def run(
        self,
        command: Sequence[str],
        *,
        stdin: Input | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the same as without asyncio
        limit: int = commands.DEFAULT_OUTPUT_LIMIT,
    ) -> Result:
        """Run a command to its end.

        Args:
            command: Program and arguments. They are part of a URL and may stand in audit logs;
                what is secret goes by stdin.
            stdin: What the command reads: bytes, a binary file, or an iterable of bytes.
                A command that leaves more unread than a pipe holds may never be seen to
                end, with kubectl as well: give a timeout where that may be.
            timeout: Seconds; the command itself is not ended by it, as Kubernetes has no way to.
            limit: The most bytes of output to keep.

        Raises:
            CommandNotStarted: The sandbox has no such program, or cannot run it.
            CommandTimeout: It took longer. What it had written is on the error.
            OutputLimitExceeded: It wrote more. What it had written is on the error.
            SandboxLost: The sandbox went away.
            ConnectionLost: The API server went away.
        """
        return await commands.run(self._target, command, stdin=stdin, within=timeout, limit=limit)

    def stream(
        self,
        command: Sequence[str],
        *,
        stdin: Input | Literal[True] | None = None,
        timeout: float | None = None,
        tty: bool = False,
    ) -> "AsyncCommand":
        """Run a command and read its output while it runs, by `async for` over what is returned.

        The command starts with the iteration, or with `async with` for one that is sent input.

        Args:
            command: Program and arguments.
            stdin: What the command reads; True to send it piece by piece with `AsyncCommand.send`.
            timeout: Seconds, of all of it.
            tty: Give it a terminal; all output is then stdout.
        """

        async def start() -> commands.Running:
            running = await commands.start(
                self._target, command, stdin=stdin is not None, tty=tty, within=timeout
            )
            if stdin is not None and stdin is not True:
                running.feed(stdin)
            return running

        return AsyncCommand(start)

    async def write(
        self, path: files.RemotePath, source: files.Source, *, mode: int | None = None
    ) -> None:
        """Write a file or a folder into the sandbox. Directories on the way are made.

        Args:
            path: The file's path there, or the folder's.
            source: Bytes, a binary file, or the `pathlib.Path` of a local file or folder. Of a
                folder, what is there already stays beside it.
            mode: The file's mode; that of the local file, or 0644, if unset.

        Raises:
            FileError: The sandbox could not write it.
            FilesUnsupported: The image has neither tar nor a shell.
        """
        await files.write(self._target, path, source, mode=mode)

    async def read(
        self,
        path: files.RemotePath,
        into: BinaryIO | Path | None = None,
        *,
        limit: int | None = None,
    ) -> bytes:
        """Read a file of the sandbox, or copy a file or folder out of it.

        Args:
            path: The file or folder in the sandbox.
            into: A binary file to write to, or the local path that the copy is to have. Of a
                folder, the contents are put there. Nothing is written outside of it.
            limit: The most bytes to read; unset: 256 MiB without `into`, else whatever there is.

        Returns:
            The content; empty where it went into `into`.

        Raises:
            FileError: There is no such file, it cannot be read, or it is larger than the limit.
            FilesUnsupported: The image has nothing that could read it.
        """
        return await files.read(self._target, path, into, limit=limit)

    def forward(self, port: int, *, local_port: int = 0, host: str = "127.0.0.1") -> "AsyncForward":
        """Forward a local port to one of the sandbox, for `async with`.

        Args:
            port: The port in the sandbox.
            local_port: The local port; 0 takes a free one.
            host: The local address to listen on.
        """
        return AsyncForward(forward.Forwarding(self._target, port), host, local_port)

    async def extend(self, seconds: int) -> SandboxInfo:
        """Let the sandbox live longer by so many seconds, within the pool's `maxTTLSeconds`.

        Returns:
            What is known now; `expires_at` tells what came of it.

        Raises:
            SandboxLost: It is no more.
        """
        target, info = self._target, self.info
        work = binding.extend(target.api, target.namespace, info.claim, info.claim_uid, seconds)
        target.claim = await work
        return self.info

    async def release(self) -> None:
        """Delete the claim, and the sandbox with it. It is never given to anybody else."""
        await binding.release(self._target.api, self._target.claim)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._keep:
            return
        try:
            await self.release()
        except SandboxPoolError:
            # The error on its way says more; the sandbox goes by its ttl.
            if error is None:
                raise

    def __repr__(self) -> str:
        info = self.info
        return f"<AsyncSandbox {info.namespace}/{info.claim}: pod {info.pod}>"


class AsyncSandboxes(list[AsyncSandbox]):
    """Sandboxes that were claimed together; a context manager that releases all of them."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        failed: SandboxPoolError | None = None
        for sandbox in self:
            try:
                await sandbox.__aexit__(kind, error, traceback)
            except SandboxPoolError as problem:
                failed = failed or problem
        if failed is not None:
            raise failed


class AsyncCommand:
    """A command that runs: iterate over its output.

    A context manager, which lets go of the command; a loop that reads to the end does, too.
    """

    def __init__(self, start: Callable[[], Awaitable[commands.Running]]) -> None:
        self._start = start
        self._running: commands.Running | None = None

    @property
    def exit_code(self) -> int | None:
        """The exit code, once all output was read."""
        return self._running.exit_code if self._running is not None else None

    async def send(self, data: bytes) -> None:
        """Give the command input.

        Raises:
            ConnectionLost: It has ended.
        """
        await (await self._started()).send(data)

    async def end_input(self) -> None:
        """Tell the command that its input has ended."""
        await (await self._started()).end_input()

    async def resize(self, columns: int, rows: int) -> None:
        """Say how large the terminal is."""
        await (await self._started()).resize(columns, rows)

    async def close(self) -> None:
        """Let go of the command; it goes on where it has not ended."""
        if self._running is not None:
            await self._running.close()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        running = await self._started()
        try:
            while (chunk := await running.next_chunk()) is not None:
                yield chunk
        finally:
            await running.close()

    async def __aenter__(self) -> Self:
        await self._started()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _started(self) -> commands.Running:
        if self._running is None:
            self._running = await self._start()
        return self._running


class AsyncForward:
    """A forwarded port, for `async with`, which gets the local address."""

    def __init__(self, forwarding: forward.Forwarding, host: str, port: int) -> None:
        self._forwarding = forwarding
        self._at = host, port

    @property
    def error(self) -> SandboxPoolError | None:
        """Why the last connection that failed did so."""
        return self._forwarding.error

    async def __aenter__(self) -> tuple[str, int]:
        return await self._forwarding.open(*self._at)

    async def __aexit__(self, *_: object) -> None:
        await self._forwarding.close()
