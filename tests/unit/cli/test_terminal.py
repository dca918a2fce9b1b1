"""Signals, and the terminal that a command in a sandbox gets."""

from __future__ import annotations

import fcntl
import os
import pty
import queue
import signal
import struct
import sys
import termios
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from sandboxpool.cli import terminal
from sandboxpool.client.sync import Command
from sandboxpool.client.wire.remotecommand import V5
from support.scriptedcli import Cli
from support.scriptedcluster import CLAIMS, DELETED, claim
from support.scriptedio import Asked, Step, answer, exited, server_frame, upgraded

EXEC = "GET /api/v1/namespaces/ns/pods/pod/exec"


@pytest.fixture
def tty(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A terminal that is stdin."""
    outside, inside = pty.openpty()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(fileno=lambda: inside, isatty=lambda: True))
    yield inside
    os.close(outside)
    os.close(inside)


def set_size(file: int, columns: int) -> None:
    fcntl.ioctl(file, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))


def test_the_command_is_told_each_size_of_the_terminal(tty: int) -> None:
    sizes: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    running = cast(Command, SimpleNamespace(resize=lambda *size: sizes.put(size)))
    set_size(tty, 90)
    with terminal._sizes_sent(running):
        assert sizes.get(timeout=10) == (90, 24)
        set_size(tty, 70)
        os.kill(os.getpid(), signal.SIGWINCH)
        assert sizes.get(timeout=10) == (70, 24)


def test_the_terminal_is_raw_for_the_command_and_as_before_afterwards(tty: int) -> None:
    before = termios.tcgetattr(tty)

    def end() -> None:
        # Ctrl-C is a byte for the command, no signal for this process.
        assert not termios.tcgetattr(tty)[3] & (termios.ISIG | termios.ECHO)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), terminal._raw_mode(tty):
        end()
    assert termios.tcgetattr(tty) == before


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as in a terminal. Processes in the background of a shell ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["waiting", "running"])
def test_signals_release_the_claim(cli: Cli, number: signal.Signals, moment: str) -> None:
    def interrupt(asked: Asked) -> list[Step]:
        os.kill(os.getpid(), number)
        return upgraded(asked, V5, server_frame(b"\x01more"))

    cli.says(f"POST {CLAIMS}", answer(claim("Bound" if moment == "running" else "Pending")))
    cli.says(f"GET {CLAIMS}", interrupt)
    cli.says(EXEC, interrupt)
    cli.says(f"DELETE {CLAIMS}/c", DELETED)
    done = cli("claim", "p", "--", "sleep", "1000")
    assert done.exit_code == 128 + number
    assert cli.asked[-1] == f"DELETE {CLAIMS}/c"


def test_without_a_terminal_the_command_gets_none(cli: Cli) -> None:
    seen: list[dict[str, str]] = []

    def ends(asked: Asked) -> list[Step]:
        seen.append(asked.parameters)
        return upgraded(asked, V5, exited(0))

    cli.says(f"GET {CLAIMS}/c", answer(claim("Bound")))
    cli.says(EXEC, ends)
    done = cli("exec", "-t", "c", "--", "sh")
    assert (done.exit_code, seen[0]["tty"], seen[0]["stderr"]) == (0, "false", "true")
