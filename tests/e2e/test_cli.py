"""The kubectl plugin in real gVisor sandboxes, piped and in a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from localcluster import paths
from support import Api, eventually
from support.realnodes import pool
from support.sandboxes import pool_status

Object = dict[str, Any]

PLUGIN = (sys.executable, "-c", "from sandboxpool.cli.main import main; main()")
_SECONDS = 60


@pytest.fixture
def environment(kubeconfig: Path, namespace: str) -> dict[str, str]:
    """Of somebody who uses this cluster."""
    made = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    source = str(paths.REPOSITORY / "operator")
    return made | {"KUBECONFIG": str(kubeconfig), "PYTHONPATH": source, "TERM": "xterm-256color"}


@pytest.fixture(autouse=True)
def warm(api: Api) -> None:
    api.create(pool("python", replicas=1))
    pool_status(api, name="python", warm=1, timeout=90)


def take_terminal(file: int) -> None:
    """Make it this session's terminal: Ctrl-C and changes of its size are signals to it."""
    fcntl.ioctl(file, termios.TIOCSCTTY, 0)
    # Processes in the background of a shell ignore SIGINT, and so do those that they start.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Plugin:
    """The plugin, in the test's namespace."""

    def __init__(self, namespace: str, environment: dict[str, str]) -> None:
        self.namespace = namespace
        self.environment = environment

    def command(self, name: str, *arguments: str) -> list[str]:
        return [*PLUGIN, name, "-n", self.namespace, *arguments]

    def __call__(
        self, name: str, *arguments: str, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.command(name, *arguments),
            input=stdin,
            env=self.environment,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )

    @contextmanager
    def started(self, name: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        command = self.command(name, *arguments)
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=self.environment) as process:
            try:
                yield process
            finally:
                process.kill()

    @contextmanager
    def in_terminal(self, name: str, *arguments: str, columns: int = 80) -> Iterator[Terminal]:
        main, other = pty.openpty()
        terminal = Terminal(main)
        terminal.resize(columns)
        process = subprocess.Popen(
            self.command(name, *arguments),
            stdin=other,
            stdout=other,
            stderr=other,
            env=self.environment,
            start_new_session=True,
            preexec_fn=lambda: take_terminal(other),
        )
        os.close(other)
        terminal.process = process
        try:
            yield terminal
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(10)
            os.close(main)


class Terminal:
    """What somebody types and sees."""

    process: subprocess.Popen[bytes]

    def __init__(self, file: int) -> None:
        self.seen = ""
        self._file = file

    def resize(self, columns: int, rows: int = 24) -> None:
        fcntl.ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._file, text.encode())

    def expect(self, pattern: str, within: float = _SECONDS) -> None:
        """Waits until what is new on the screen matches, and forgets it up to there."""
        deadline = time.monotonic() + within
        while (found := re.search(pattern, self.seen)) is None:
            left = deadline - time.monotonic()
            assert left > 0, f"{pattern!r} does not come: {self.seen[-2000:]!r}"
            if select.select([self._file], [], [], min(left, 1.0))[0]:
                try:
                    self.seen += os.read(self._file, 65536).decode(errors="replace")
                except OSError:
                    pytest.fail(f"it ended without {pattern!r}: {self.seen[-2000:]!r}")
        self.seen = self.seen[found.end() :]

    def ended(self) -> int:
        return self.process.wait(_SECONDS)


@pytest.fixture
def plugin(namespace: str, environment: dict[str, str]) -> Plugin:
    return Plugin(namespace, environment)


def released(api: Api) -> None:
    eventually(
        lambda: api.list("SandboxClaim"),
        until=lambda found: not found,
        message="the claim is gone",
        timeout=60,
    )


def test_claim_runs_a_command_with_its_input_output_and_exit_code(api: Api, plugin: Plugin) -> None:
    data = bytes(range(256)) * 512
    script = "cat; echo to-stderr >&2; exit 7"
    done = plugin("claim", "python", "-i", "--", "sh", "-c", script, stdin=data)
    assert done.returncode == 7, done.stderr
    assert done.stdout == data
    assert b"to-stderr\n" in done.stderr
    assert b"RuntimeClass e2e-gvisor" in done.stderr
    assert b"\x1b" not in done.stderr
    released(api)


def test_a_command_that_is_not_there_is_127_and_leaves_no_claim(api: Api, plugin: Plugin) -> None:
    done = plugin("claim", "python", "-q", "--", "no-such-program")
    assert (done.returncode, done.stdout) == (127, b""), done.stderr
    assert done.stderr.startswith(b"error: command 'no-such-program'")
    assert done.stderr.count(b"\n") == 1
    released(api)


def test_a_pool_that_is_not_there_is_125(plugin: Plugin) -> None:
    done = plugin("claim", "absent", "--", "true")
    assert done.returncode == 125
    assert b"kubectl get sandboxpools.sandboxpool.io" in done.stderr


def test_a_claim_is_kept_and_used(api: Api, plugin: Plugin, tmp_path: Path) -> None:
    kept = plugin("claim", "python", "--keep", "--ttl", "10m", "--name", "mine", "-o", "name")
    assert (kept.returncode, kept.stdout) == (0, b"sandboxclaim.sandboxpool.io/mine\n"), kept.stderr
    assert api.get("SandboxClaim", "mine")["spec"]["ttlSeconds"] == 600
    (tmp_path / "a file").write_bytes(b"\x00content")
    assert plugin("cp", str(tmp_path / "a file"), "mine:/tmp/").returncode == 0
    inside = "/tmp/a file"  # noqa: S108 - in the sandbox
    assert plugin("exec", "mine", "--", "cat", inside).stdout == b"\x00content"
    back = plugin("cp", "mine:/tmp/a file", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == b"\x00content", back.stderr
    events = plugin("events", "mine")
    assert events.returncode == 0, events.stderr
    assert plugin("exec", "mine", "--", "sh", "-c", "exit 3").returncode == 3


def test_a_port_is_forwarded_until_a_signal(api: Api, plugin: Plugin) -> None:
    assert plugin("claim", "python", "--keep", "--name", "web").returncode == 0
    serve = "mkdir -p /tmp/www; echo hello >/tmp/www/index.html; httpd -p 8080 -h /tmp/www"
    assert plugin("exec", "web", "--", "sh", "-c", serve).returncode == 0
    with plugin.started("port-forward", "web", ":8080") as forward:
        assert forward.stdout is not None
        line = forward.stdout.readline().decode()
        found = re.fullmatch(r"Forwarding from 127\.0\.0\.1:(\d+) -> 8080\n", line)
        assert found is not None, line
        for _ in range(3):
            with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/", timeout=20) as answer:
                assert answer.read() == b"hello\n"
        forward.send_signal(signal.SIGTERM)
        assert forward.wait(_SECONDS) == 128 + signal.SIGTERM


def test_a_shell_in_a_terminal_follows_its_size_and_gets_ctrl_c(api: Api, plugin: Plugin) -> None:
    with plugin.in_terminal("claim", "python", "-it", "--", "sh", columns=90) as terminal:
        terminal.expect(r"claim python-\w+ has pod")
        terminal.type("stty size; echo do''ne\r")
        terminal.expect(r"24 90\s+done")
        terminal.resize(70)
        os.kill(terminal.process.pid, signal.SIGWINCH)
        terminal.type("sleep 1; stty size\r")
        terminal.expect(r"\n24 70")
        terminal.type("sleep 100\r")
        time.sleep(1)
        terminal.type("\x03")
        terminal.type("echo st''ill\r")
        terminal.expect("still")
        terminal.type("exit 5\r")
        assert terminal.ended() == 5
    released(api)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_release_the_claim(api: Api, plugin: Plugin, number: signal.Signals) -> None:
    with plugin.in_terminal("claim", "python", "--", "sleep", "1000") as terminal:
        terminal.expect("has pod")
        time.sleep(1)
        if number == signal.SIGINT:
            terminal.type("\x03")
        else:
            os.kill(terminal.process.pid, number)
        terminal.expect("released claim")
        assert terminal.ended() == 128 + number
    released(api)


def test_ctrl_c_gives_up_a_claim_that_waits(api: Api, plugin: Plugin) -> None:
    api.create(pool("empty", replicas=0))
    with plugin.in_terminal("claim", "empty", "--", "true") as terminal:
        # The spinner is in colour, and says what the operator says.
        terminal.expect("\x1b\\[[0-9;]*m")
        terminal.expect("(?i)warm|sandbox")
        eventually(lambda: api.list("SandboxClaim"), message="the claim is there", timeout=30)
        terminal.type("\x03")
        assert terminal.ended() == 130
    released(api)


def test_tables_have_colours_in_a_terminal_and_none_when_piped(plugin: Plugin) -> None:
    with plugin.in_terminal("events") as terminal:
        terminal.expect("\x1b\\[1mLAST SEEN")
        assert terminal.ended() == 0
    assert b"\x1b" not in plugin("events").stdout
