"""Commands in a sandbox, in virtual time."""

from __future__ import annotations

import io as iolib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from sandboxpool.client import commands
from sandboxpool.client.blocking import run
from sandboxpool.client.commands import Chunk, Result, Target
from sandboxpool.client.errors import (
    AccessDenied,
    CommandFailed,
    CommandNotStarted,
    CommandTimeout,
    ConnectionLost,
    OutputLimitExceeded,
    SandboxError,
    SandboxLost,
)
from sandboxpool.client.wire.remotecommand import V4, V5
from sandboxpool.client.wire.websocket import Opcode
from support.scriptedcluster import CLAIMS, api_of, claim, pod
from support.scriptedio import (
    Asked,
    ScriptedIo,
    Step,
    answer,
    event,
    exited,
    failure,
    server_frame,
    stream,
    upgraded,
)

SUCCESS = exited(0)


class Node:
    """A server on which one command runs; claim and pod are as they are told to be."""

    def __init__(self, *steps: Step, protocol: str = V5) -> None:
        self.steps = steps
        self.protocol = protocol
        self.claim: list[Step] = answer(claim("Bound", 5))
        self.pod: list[Step] = answer(pod())
        self.watch: list[Step] = stream()
        self.looks = 0

    def __call__(self, asked: Asked) -> list[Step]:
        if asked.path.endswith("/exec"):
            return upgraded(asked, self.protocol, *self.steps)
        if asked.path.endswith("/pods/pod"):
            return self.pod
        if "watch" in asked.parameters:
            return self.watch
        assert asked.path == f"{CLAIMS}/c"
        self.looks += 1
        return self.claim

    def target(self) -> tuple[Target, ScriptedIo]:
        api, io = api_of(self)
        return Target(api, claim("Bound", 5)), io


def test_a_command_and_what_it_writes() -> None:
    node = Node(
        server_frame(b"\x01") + server_frame(b"\x01\x00\xff"),
        server_frame(b"\x02oops") + server_frame(b"\x01more"),
        exited(3),
    )
    target, io = node.target()
    target.container = "main"
    result = run(commands.run(target, ["ls", "a b", "ü&x=y"]))
    assert result == Result(b"\x00\xffmore", b"oops", 3)
    assert io.channels[0].closed
    asked = io.asked[0]
    assert [value for key, value in asked.query if key == "command"] == ["ls", "a b", "ü&x=y"]
    assert asked.parameters["container"] == "main"
    assert asked.parameters["stdin"] == "false"
    assert node.looks == 0
    with pytest.raises(CommandFailed, match="exit code 3: oops") as failed:
        result.check()
    assert failed.value.exit_code == 3


class Later:
    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"a"
        yield b""
        yield b"b"


def parts() -> Iterator[bytes]:
    yield b"a"
    yield b""
    yield b"b"


@pytest.mark.parametrize(
    "source", [b"ab", bytearray(b"ab"), iolib.BytesIO(b"ab"), parts(), Later()]
)
def test_input_of_every_kind_is_sent_and_ended(source: Any) -> None:
    target, io = Node(SUCCESS).target()
    run(commands.run(target, ["cat"], stdin=source))
    *sent, end = io.channels[0].messages
    assert end == b"\xff\x00"
    assert all(message[0] == 0 for message in sent)
    assert b"".join(message[1:] for message in sent) == b"ab"


def test_input_that_is_no_bytes_is_an_error() -> None:
    target, _ = Node(None).target()
    with pytest.raises(TypeError, match="encode"):
        run(commands.run(target, ["cat"], stdin="text"))  # type: ignore[arg-type]


def test_an_api_server_that_cannot_end_input_is_told_of() -> None:
    target, _ = Node(None, protocol=V4).target()
    with pytest.raises(SandboxError, match=r"1\.30"):
        run(commands.run(target, ["cat"], stdin=b"x"))
    target, _ = Node(SUCCESS, protocol=V4).target()
    assert run(commands.run(target, ["true"])).exit_code == 0


def test_a_program_that_is_not_there_is_told_of() -> None:
    status = {"status": "Failure", "reason": "InternalError", "message": "no such file"}
    node = Node(server_frame(b"\x03" + json.dumps(status).encode()))
    target, _ = node.target()
    with pytest.raises(CommandNotStarted, match=r"'nope'.*no such file"):
        run(commands.run(target, ["nope"]))
    assert node.looks == 1


@pytest.mark.parametrize("code", [137, 143])
def test_a_killed_command_may_be_a_sandbox_that_terminates(code: int) -> None:
    node = Node(exited(code))
    target, _ = node.target()
    assert run(commands.run(target, ["sh"])).exit_code == code
    node = Node(exited(code))
    node.pod = answer(pod(deletionTimestamp="2026-01-01T00:00:00Z"))
    lost = claim("Lost", 6, reason="EvictionByEvictionAPI", message="evicted")
    node.watch = stream(event("MODIFIED", lost))
    target, _ = node.target()
    with pytest.raises(SandboxLost, match="evicted") as raised:
        run(commands.run(target, ["sh"]))
    assert raised.value.reason == "EvictionByEvictionAPI"


def test_a_pod_that_disappears_without_a_cause_is_lost_too() -> None:
    node = Node(exited(137))
    node.pod = answer(pod(deletionTimestamp="2026-01-01T00:00:00Z"))
    node.watch = stream()[:-1]
    target, io = node.target()
    with pytest.raises(SandboxLost) as raised:
        run(commands.run(target, ["sh"]))
    assert raised.value.reason == "PodDeleted"
    assert io.now == 1005


@pytest.mark.parametrize(
    "step",
    [None, ConnectionResetError("reset"), server_frame(b"", Opcode.CLOSE), b"\x83\x00"],
)
def test_a_stream_that_breaks_is_never_a_success(step: Step) -> None:
    node = Node(server_frame(b"\x01out"), step)
    target, _ = node.target()
    with pytest.raises(ConnectionLost, match="unknown"):
        run(commands.run(target, ["sh"]))
    node = Node(server_frame(b"\x01out"), step)
    node.claim = answer(claim("Lost", 6, reason="NodeLost", message="the node is silent"))
    target, _ = node.target()
    with pytest.raises(SandboxLost, match="the node is silent"):
        run(commands.run(target, ["sh"]))
    node.claim = failure(404, "no c", "NotFound", name="c")
    target, _ = node.target()
    with pytest.raises(SandboxLost, match="was deleted"):
        run(commands.run(target, ["sh"]))


def test_silence_is_asked_about() -> None:
    node = Node(25.0, server_frame(b"\x01out"), SUCCESS)
    target, io = node.target()
    assert run(commands.run(target, ["sh"])).stdout == b"out"
    assert node.looks == 2
    assert io.now == 1025
    node = Node(1e9)
    node.claim = answer(claim("Lost", 6, reason="NodeLost", message="the node is silent"))
    target, io = node.target()
    with pytest.raises(SandboxLost):
        run(commands.run(target, ["sh"]))
    assert io.now == 1010


def test_a_command_that_takes_too_long() -> None:
    node = Node(server_frame(b"\x01begun"), server_frame(b"\x02err"), 1e9)
    target, io = node.target()
    with pytest.raises(CommandTimeout, match="may go on") as late:
        run(commands.run(target, ["sh"], within=2.5))
    assert (late.value.stdout, late.value.stderr) == (b"begun", b"err")
    assert io.now == 1002.5
    assert node.looks == 0
    assert io.channels[0].closed


def test_output_is_bounded_and_nothing_is_cut_silently() -> None:
    steps = [server_frame(b"\x01" + b"x" * 60), server_frame(b"\x02" + b"y" * 40), SUCCESS]
    target, _ = Node(*steps).target()
    assert len(run(commands.run(target, ["sh"], limit=100)).stdout) == 60
    target, io = Node(*steps).target()
    with pytest.raises(OutputLimitExceeded, match="more than 99 bytes") as much:
        run(commands.run(target, ["sh"], limit=99))
    assert (len(much.value.stdout), len(much.value.stderr)) == (60, 40)
    assert io.channels[0].closed


def test_a_ping_is_answered() -> None:
    target, io = Node(server_frame(b"hi", Opcode.PING), SUCCESS).target()
    run(commands.run(target, ["sh"]))
    assert io.channels[0].messages == [b"hi"]


def test_a_command_piece_by_piece() -> None:
    target, io = Node(server_frame(b"\x01a"), server_frame(b"\x02b"), exited(4)).target()
    running = run(commands.start(target, ["sh"], stdin=True, tty=True))
    assert io.asked[0].parameters["tty"] == "true"
    assert io.asked[0].parameters["stderr"] == "false"
    run(running.send(b"x" * 100_000))
    run(running.resize(80, 24))
    assert b"".join(m[1:] for m in io.channels[0].messages[:-1]) == b"x" * 100_000
    assert json.loads(io.channels[0].messages[-1][1:]) == {"Width": 80, "Height": 24}
    assert run(running.next_chunk()) == Chunk("stdout", b"a")
    assert run(running.next_chunk()) == Chunk("stderr", b"b")
    assert running.exit_code is None
    assert run(running.next_chunk()) is None
    assert run(running.next_chunk()) is None
    code: int | None = running.exit_code
    assert code == 4


@pytest.mark.parametrize("command", ["ls /", b"ls"])
def test_a_command_is_a_list(command: Any) -> None:
    target, _ = Node().target()
    with pytest.raises(TypeError, match="list of arguments"):
        run(commands.run(target, command))
    with pytest.raises(ValueError, match="empty"):
        run(commands.run(target, []))


def test_a_right_that_is_missing_is_named_where_the_stream_begins() -> None:
    said = 'User "u" cannot create resource "pods/exec" in API group "" in the namespace "ns"'
    api, _ = api_of(lambda asked: failure(403, said, "Forbidden"))
    with pytest.raises(AccessDenied) as denied:
        run(commands.run(Target(api, claim("Bound")), ["ls"]))
    assert (denied.value.verb, denied.value.resource) == ("create", "pods/exec")
