"""A Harbor environment whose trials run in sandboxes of a SandboxPool. README.md shows its use."""

import asyncio
import shlex
from pathlib import Path
from typing import Any

from harbor.environments.base import BaseEnvironment, ExecResult

from sandboxpool.client import AsyncSandbox, AsyncSandboxPools, CommandTimeout

DEFAULT_TTL_SECONDS = 4 * 3600
OUTPUT_BYTES = 64 * 1024 * 1024


class SandboxPoolEnvironment(BaseEnvironment):
    """One claim for each trial. The pool's template has the task's image: nothing is built.

    Args:
        pool: The SandboxPool to claim from (`--ek pool=NAME`).
        namespace: The pool's namespace; that of the kubeconfig's context if unset.
        ttl: Seconds after which the sandbox is deleted if Harbor dies before it stops it.
    """

    def __init__(
        self,
        *args: Any,
        pool: str,
        namespace: str | None = None,
        ttl: int | str = DEFAULT_TTL_SECONDS,
        **kwargs: Any,
    ) -> None:
        self._pool = pool
        self._namespace = namespace
        self._ttl = int(ttl)
        self._pools: AsyncSandboxPools | None = None
        self._sandbox: AsyncSandbox | None = None
        super().__init__(*args, **kwargs)

    @staticmethod
    def type() -> str:
        """Return the name that Harbor shows."""
        return "sandboxpool"

    def _validate_definition(self) -> None:
        """Accept any task: its image is the pool's matter."""

    async def start(self, force_build: bool) -> None:
        """Claim a sandbox.

        Raises:
            ValueError: A build was forced; a warm sandbox has its image already.
        """
        if force_build:
            raise ValueError(
                "a pool's image is not built by Harbor: put it into the pool's template, and leave"
                " --force-build away"
            )
        self._pools = AsyncSandboxPools.from_config(namespace=self._namespace)
        # Released by stop() and not at the end of a block; the ttl ends it otherwise.
        self._sandbox = await self._pools.claim(self._pool, ttl=self._ttl)
        # Where Harbor expects agents and verifiers to leave their output.
        if folders := self._mount_targets():
            (await self._claimed.run(["mkdir", "-p", *folders])).check()
        await self._upload_environment_dir_after_start()

    async def stop(self, delete: bool) -> None:
        """Release the sandbox; without `delete` it stays until its ttl has passed."""
        if self._sandbox is not None and delete:
            await self._sandbox.release()
        if self._pools is not None:
            await self._pools.close()
        self._sandbox = self._pools = None

    async def exec(
        self,
        command: str,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        timeout_sec: int | None = None,
        user: str | int | None = None,
    ) -> ExecResult:
        """Run a line of shell. A command that takes too long has return code 124, as `timeout`'s.

        Raises:
            SandboxLost: The sandbox is gone, with the cause.
        """
        if (chosen := self._resolve_user(user)) not in (None, 0, "root"):
            command = f"exec su {shlex.quote(str(chosen))} -s /bin/sh -c {shlex.quote(command)}"
        settings = (self._merge_env(env) or {}).items()
        script = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in settings)
        if place := cwd or self.task_env_config.workdir:
            script += f"cd {shlex.quote(place)} || exit\n"
        script += command
        try:
            # As input and not as an argument: the environment may have keys of models, and
            # arguments are in the API server's audit log. The command itself reads no input.
            result = await self._claimed.run(
                ["sh", "-c", 'eval "$(cat)"'],
                stdin=script.encode(),
                timeout=timeout_sec,
                limit=OUTPUT_BYTES,
            )
        except CommandTimeout as error:
            return ExecResult(
                stdout=error.stdout.decode(errors="replace"),
                stderr=f"{error.stderr.decode(errors='replace')}\n{error}",
                return_code=124,
            )
        return ExecResult(
            stdout=result.text,
            stderr=result.stderr.decode(errors="replace"),
            return_code=result.exit_code,
        )

    async def upload_file(self, source_path: Path | str, target_path: str) -> None:
        """Copy a local file into the sandbox."""
        await self._claimed.write(target_path, Path(source_path))

    async def upload_dir(self, source_dir: Path | str, target_dir: str) -> None:
        """Copy a local folder's contents into a folder of the sandbox."""
        await self._claimed.write(target_dir, Path(source_dir))

    async def download_file(self, source_path: str, target_path: Path | str) -> None:
        """Copy a file of the sandbox to this machine."""
        target = Path(target_path)
        await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
        await self._claimed.read(source_path, target)

    async def download_dir(self, source_dir: str, target_dir: Path | str) -> None:
        """Copy the contents of a folder of the sandbox into a local folder."""
        target = Path(target_dir)
        await asyncio.to_thread(target.mkdir, parents=True, exist_ok=True)
        await self._claimed.read(source_dir, target)

    @property
    def _claimed(self) -> AsyncSandbox:
        if self._sandbox is None:
            raise RuntimeError("the environment was not started")
        return self._sandbox
