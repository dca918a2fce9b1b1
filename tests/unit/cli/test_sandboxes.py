"""`claim`, `exec`, `cp`, `port-forward` and `logs` of the plugin."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from sandboxpool.cli.copy import split
from sandboxpool.cli.portforward import ports
from sandboxpool.client.wire.remotecommand import V5
from support.scriptedcli import Cli
from support.scriptedcluster import CLAIMS, DELETED, claim, pod
from support.scriptedio import (
    Asked,
    Step,
    answer,
    event,
    exited,
    failure,
    server_frame,
    stream,
    upgraded,
)

Object = dict[str, Any]
EXEC = "GET /api/v1/namespaces/ns/pods/pod/exec"
LOG = "GET /api/v1/namespaces/ns/pods/pod/log"
WAITING = "no sandbox is warm: 2 are starting"


def command(*steps: bytes, code: int = 0) -> Callable[[Asked], Sequence[Step]]:
    return lambda asked: upgraded(asked, V5, *map(server_frame, steps), exited(code))


@pytest.fixture(autouse=True)
def cluster(cli: Cli) -> None:
    """A pool whose claims wait for a moment and are bound then."""
    waits = claim(reason="NoWarmSandbox", message=WAITING, version=2)
    states = stream(event("MODIFIED", waits), event("MODIFIED", claim("Bound", 3)))
    cli.says(f"POST {CLAIMS}", answer(claim()))
    cli.says(f"GET {CLAIMS}", states)
    cli.says(f"GET {CLAIMS}/c", answer(claim("Bound")))
    cli.says(f"DELETE {CLAIMS}/c", DELETED)
    cli.says("GET /api/v1/namespaces/ns/pods/pod", answer(pod()))
    cli.says(EXEC, command(b"\x01out\xff", b"\x02err"))


def posted(cli: Cli) -> Object:
    spec: Object = next(asked.body["spec"] for asked in cli.io.asked if asked.method == "POST")
    return spec


def test_claim_runs_the_command_and_releases_the_sandbox(cli: Cli) -> None:
    cli.says(EXEC, command(b"\x01out\xff", b"\x02err", code=7))
    done = cli("claim", "p", "--ttl", "90s", "--runtime-class=gvisor", "--", "ls", "-l", "--", "x")
    assert done.exit_code == 7
    assert done.stdout_bytes == b"out\xff"
    assert done.stderr == (f"waiting: {WAITING}\nclaim c has pod pod\nerrreleased claim c\n")
    assert posted(cli) == {"poolName": "p", "ttlSeconds": 90, "runtimeClassName": "gvisor"}
    run = next(asked for asked in cli.io.asked if asked.path.endswith("/exec"))
    assert [value for key, value in run.query if key == "command"] == ["ls", "-l", "--", "x"]
    assert run.parameters["stdin"] == "false"
    assert cli.asked[-1] == f"DELETE {CLAIMS}/c"


def test_quiet_prints_what_the_command_writes_and_nothing_else(cli: Cli) -> None:
    done = cli("claim", "p", "-q", "--", "ls")
    assert (done.exit_code, done.stderr) == (0, "err")


def test_keep_leaves_the_sandbox_with_the_pools_ttl_and_shows_it(
    cli: Cli, golden: Callable[[str, str], None]
) -> None:
    golden("claim-keep", cli("claim", "p", "--keep").stdout)
    assert posted(cli) == {"poolName": "p"}
    assert not any(asked.startswith("DELETE") for asked in cli.asked)
    assert cli("exec", "c", "--", "ls").stdout_bytes == b"out\xff"


@pytest.mark.parametrize(
    ("said", "code"),
    [("exec: nope: executable file not found in $PATH", 127), ("exec: permission denied", 126)],
)
def test_a_command_that_cannot_be_run_has_the_exit_codes_of_shells(
    cli: Cli, said: str, code: int
) -> None:
    ended = json.dumps({"status": "Failure", "reason": "InternalError", "message": said}).encode()
    cli.says(EXEC, lambda asked: upgraded(asked, V5, server_frame(b"\x03" + ended)))
    done = cli("claim", "p", "-q", "--", "nope")
    assert done.exit_code == code
    assert done.stderr.startswith("error: command 'nope' in pod pod could not be run: exec: ")
    assert cli.asked[-1] == f"DELETE {CLAIMS}/c"


def test_no_sandbox_is_125_and_the_cure_names_flags(cli: Cli) -> None:
    failed = claim("Failed", 2, reason="NoWarmSandbox", message="none is warm")
    cli.says(f"GET {CLAIMS}", stream(event("MODIFIED", failed)))
    done = cli("claim", "p", "--on-empty=Fail", "--", "ls")
    assert done.exit_code == 125
    assert done.stderr == (
        "error: claim 'c' of pool 'p' failed: none is warm; try again later, wait with"
        " --on-empty=Wait, or raise the pool's spec.replicas\n"
    )


def test_a_sandbox_that_cannot_be_released_is_named(cli: Cli) -> None:
    cli.says(
        f"DELETE {CLAIMS}/c", failure(403, 'User "app" cannot delete resource "sandboxclaims"')
    )
    done = cli("claim", "p", "--", "ls")
    assert done.exit_code == 0
    assert "warning: claim c is not released: no right to delete sandboxclaims" in done.stderr
    assert "kubectl delete sbc c -n ns" in done.stderr


@pytest.mark.parametrize("wrong", [["--ttl", "soon"], ["--ttl", "0"], ["--on-empty", "Perhaps"]])
def test_wrong_values_are_refused_before_anything_is_asked(cli: Cli, wrong: list[str]) -> None:
    done = cli("claim", "p", *wrong, "--", "ls")
    assert (done.exit_code, cli.asked) == (2, [])


def test_logs_are_printed_as_they_are(cli: Cli) -> None:
    cli.says(
        LOG, [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na\xffb\r\n0\r\n\r\n"]
    )
    assert cli("logs", "c", "-f", "--tail", "2", "--since=5m").stdout_bytes == b"a\xffb"
    query = next(asked.parameters for asked in cli.io.asked if asked.path.endswith("/log"))
    assert query == {"follow": "true", "tailLines": "2", "sinceSeconds": "300"}


def test_a_claim_that_is_not_there_is_an_error_of_one_line(cli: Cli) -> None:
    done = cli("logs", "nope")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)


def test_a_place_is_in_a_sandbox_where_a_name_and_a_colon_stand_before_it() -> None:
    assert split("c:/a:b") == ("c", "/a:b")
    assert split("./c:d") == ("", "./c:d")
    assert split("plain") == ("", "plain")


@pytest.mark.parametrize("places", [("a", "b"), ("c:/a", "d:/b"), ("c:", "b")])
def test_cp_wants_one_place_in_a_sandbox(cli: Cli, places: tuple[str, str]) -> None:
    assert cli("cp", *places).exit_code == 2
    assert cli.asked == []


def test_cp_puts_a_file_into_a_directory_that_is_there(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    assert cli("cp", str(tmp_path / "f"), "c:/dir").exit_code == 0
    runs = [
        [value for key, value in asked.query if key == "command"]
        for asked in cli.io.asked
        if asked.path.endswith("/exec")
    ]
    assert runs[0] == ["test", "-d", "/dir"]
    assert any(b"dir/f" in message for channel in cli.io.channels for message in channel.messages)


def test_ports_are_read_as_kubectl_does() -> None:
    assert [ports(text) for text in ("80", "8080:80", ":80")] == [(80, 80), (8080, 80), (0, 80)]
    for wrong in ("x", "80:", "0", "1:70000"):
        with pytest.raises(typer.BadParameter):
            ports(wrong)
