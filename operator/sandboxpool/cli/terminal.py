"""A command in a sandbox, on this process' own input and output."""

import contextlib
import io
import os
import queue
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

from sandboxpool.cli.errors import CommandFailure, ExitCode
from sandboxpool.client.errors import CommandNotStarted, ConnectionLost
from sandboxpool.client.sync import Command, Sandbox

# What runtimes say of a program that is not there.
_ABSENT = ("not found", "no such file")


class Terminated(KeyboardInterrupt):
    """The process is asked to end, as by Ctrl-C, but by another signal.

    Attributes:
        exit_code: 128 and the signal's number, as shells have it.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, so that it can tidy up."""

    def end(number: int, _: FrameType | None) -> None:
        raise Terminated(number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_command(
    sandbox: Sandbox, command: Sequence[str], *, stdin: bool, tty: bool, quiet: bool = False
) -> int:
    """Run a command with this process' output, and its input where it is wanted.

    Args:
        sandbox: Where to run it.
        command: Program and arguments.
        stdin: Pass the input on.
        tty: Give the command a terminal; this one is put into raw mode.
        quiet: Do not say that there is no terminal here.

    Returns:
        The command's exit code.

    Raises:
        CommandFailure: It could not be run.
    """
    if tty and not (stdin and sys.stdin.isatty()):
        # As kubectl has it.
        if stdin and not quiet:
            print(
                "Unable to use a TTY - input is not a terminal or the right kind of file",
                file=sys.stderr,
            )
        tty = False
    # Without a buffer: nobody may be in it when the process ends.
    source = io.FileIO(sys.stdin.fileno(), closefd=False) if stdin else None
    raw = _raw_mode(sys.stdin.fileno()) if tty else contextlib.nullcontext()
    try:
        with sandbox.stream(command, stdin=source, tty=tty) as running:
            sizes = _sizes_sent(running) if tty else contextlib.nullcontext()
            with raw, sizes:
                for chunk in running:
                    out = sys.stdout if chunk.stream == "stdout" else sys.stderr
                    out.flush()
                    out.buffer.write(chunk.data)
                    out.buffer.flush()
    except CommandNotStarted as error:
        absent = any(text in error.message.lower() for text in _ABSENT)
        code = ExitCode.NOT_FOUND if absent else ExitCode.NOT_RUNNABLE
        raise CommandFailure(
            f"{error.message}; see what the pool's image has, and that `--` stands before the"
            " command",
            code,
        ) from error
    assert running.exit_code is not None, "it is there when the output has ended"
    return running.exit_code


@contextlib.contextmanager
def _raw_mode(file: int) -> Iterator[None]:
    """Pass each key on as it is pressed, Ctrl-C too."""
    import termios
    import tty

    before = termios.tcgetattr(file)
    tty.setraw(file, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _sizes_sent(running: Command) -> Iterator[None]:
    """Tell the command how large the terminal is, and each time that this changes."""
    changes: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def send() -> None:
        # Not in the signal's handler: it may have interrupted whoever sends.
        while changes.get():
            size = shutil.get_terminal_size()
            with contextlib.suppress(ConnectionLost):
                running.resize(*_size(size))

    before = signal.signal(signal.SIGWINCH, lambda *_: changes.put(True))
    threading.Thread(target=send, daemon=True, name="sandboxpool-resize").start()
    changes.put(True)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)
        changes.put(False)


def _size(fallback: os.terminal_size) -> tuple[int, int]:
    """Return columns and rows: of the terminal itself, as $COLUMNS does not change with it."""
    try:
        found = os.get_terminal_size(sys.stdin.fileno())
    except OSError:
        found = fallback
    return found.columns, found.lines
