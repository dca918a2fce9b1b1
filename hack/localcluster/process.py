"""Running other programs: always with a deadline, never left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import textwrap
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TAIL_LINES = 20

# PR_SET_PDEATHSIG fires when the *thread* that forked ends. Children that must live as long as
# this process are therefore forked by one thread that ends only with the process.
_FORKER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="forker")


class CommandError(Exception):
    """A command failed, was not found, or ran out of time."""

    def __init__(self, command: Sequence[str], reason: str, output: str = "") -> None:
        """Keep the reason and the end of what the command said."""
        super().__init__(f"{command_line(command)}: {reason}")
        self.reason = reason
        self.output = output


def command_line(command: Sequence[str]) -> str:
    """Return a short printable form of a command."""
    line = " ".join(command).replace("\n", " ")
    return textwrap.shorten(line, 160, placeholder=" ...")


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """Return the last lines of a log file, or nothing when there is none."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def run(
    command: Sequence[str],
    *,
    timeout: float,
    log: Path | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
    stdin_file: Path | None = None,
    check: bool = True,
) -> str:
    """Run a command to its end and return its standard output.

    Args:
        command: Program and arguments.
        timeout: Seconds after which the whole process group is killed.
        log: File that gets the command, its output and its errors.
        env: Variables added to the environment.
        cwd: Working directory.
        stdin: Text for the standard input.
        stdin_file: File for the standard input, instead of `stdin`.
        check: Whether an exit status other than 0 is an error.

    Raises:
        CommandError: The program is missing, failed or took too long.
    """
    environment = {**os.environ, **(env or {})}
    source = stdin_file.open("rb") if stdin_file is not None else None
    try:
        child = subprocess.Popen(
            list(command),
            stdin=source or (subprocess.PIPE if stdin is not None else subprocess.DEVNULL),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=cwd,
            start_new_session=True,
        )
    except OSError as error:
        raise CommandError(command, str(error)) from error
    finally:
        if source is not None:
            source.close()
    late = ""
    try:
        out, err = child.communicate(stdin.encode() if stdin is not None else None, timeout)
    except subprocess.TimeoutExpired:
        late = f"still running after {timeout:.0f} s"
        _kill_group(child)
        out, err = child.communicate(timeout=10)
    except BaseException:
        _kill_group(child)
        raise
    stdout, stderr = out.decode(errors="replace"), err.decode(errors="replace")
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as stream:
            stream.write(f"$ {command_line(command)}\n{stdout}{stderr}{late}\n")
    last = "\n".join((stdout + stderr).splitlines()[-TAIL_LINES:])
    if late:
        raise CommandError(command, late, last)
    if check and child.returncode != 0:
        raise CommandError(command, f"exit status {child.returncode}", last)
    return stdout


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait(timeout=10)


def spawn(command: Sequence[str], *, log: Path) -> subprocess.Popen[bytes]:
    """Start a program that is killed by the kernel when this process ends, however it ends."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise CommandError(command, "setpriv (package util-linux) is not installed")
    log.parent.mkdir(parents=True, exist_ok=True)

    def fork() -> subprocess.Popen[bytes]:
        with log.open("ab") as stream:
            return subprocess.Popen(
                [setpriv, "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    return _FORKER.submit(fork).result(timeout=30)


def terminate(child: subprocess.Popen[bytes], *, grace: float) -> None:
    """End a child that `spawn` started: SIGTERM, and SIGKILL after the grace period."""
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(timeout=grace)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait(timeout=10)
