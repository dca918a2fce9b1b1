"""What all commands of the plugin have in common."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import typer

from sandboxpool.cli import errors, main, times
from sandboxpool.cli.command import duration
from sandboxpool.cli.errors import CommandFailure, in_flags, reported
from sandboxpool.cli.output import Column, Table, plain
from sandboxpool.client import claims
from support.scriptedcli import Cli

NAMES = [command.name for command in main.COMMANDS]


@pytest.mark.parametrize("name", NAMES)
def test_each_command_has_kubectls_options_and_an_example(cli: Cli, name: str) -> None:
    shown = cli(name, "--help")
    assert shown.exit_code == 0
    for option in ("-n, --namespace", "--context", "--kubeconfig", "--request-timeout"):
        assert option in shown.stdout
    assert re.search(rf"Examples:\n  # .+\n  kubectl sandboxpool {name}", shown.stdout)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30.0), ("5s", 5.0), ("1m30s", 90.0), ("250ms", 0.25), ("2h", 7200.0), ("0", 0.0)],
)
def test_durations_are_read_as_kubectl_does(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5 s", "-1s", "1x", "s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        duration(text)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-5, "0s"),
        (119, "119s"),
        (120, "2m"),
        (150, "2m30s"),
        (3599, "59m"),
        (3 * 3600 + 60, "3h1m"),
        (47 * 3600, "47h"),
        (3 * 86400 + 3600, "3d1h"),
        (800 * 86400, "2y70d"),
    ],
)
def test_ages_are_shown_as_kubectl_does(seconds: float, shown: str) -> None:
    assert times.span(seconds) == shown


def test_the_cures_of_the_client_name_flags(capsys: pytest.CaptureFixture[str]) -> None:
    for cure in claims._CURES.values():
        assert not re.search(r"\w=(?!Wait)", in_flags(cure)), cure
    lost = claims.ended({"metadata": {"name": "c"}, "status": {"phase": "Expired"}, "spec": {}})
    assert in_flags(lost.message).endswith("claim with a longer --ttl")


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (CommandFailure("it is\nso", 3), 3, "error: it is so\n"),
        (FileNotFoundError(2, "No such file or directory", "f"), 9, "error: f: No such file"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, shown: str
) -> None:
    with pytest.raises(typer.Exit) as ended, reported(9):
        raise error
    assert ended.value.exit_code == code
    err = capsys.readouterr().err
    assert err.startswith(shown)
    assert err.count("\n") == bool(shown)


def test_a_usage_error_is_2(cli: Cli) -> None:
    assert cli("events", "--nonsense").exit_code == errors.ExitCode.USAGE


def test_plain_tables_never_cut_and_keep_a_row_a_line() -> None:
    table = Table([Column("A"), Column("B", wide=True), Column("C")])
    table.add("x" * 200, "hidden", "two\nlines")
    table.add("", "", "")
    assert plain(table, wide=False) == [
        "A" + " " * 202 + "C",
        "x" * 200 + "   two lines",
        "<none>" + " " * 197 + "<none>",
    ]
    assert "hidden" in plain(table, wide=True)[1]


def test_the_plugin_imports_nothing_of_the_operator() -> None:
    code = (
        "import sys; from sandboxpool.cli import main; main.build()\n"
        "print(*sorted(m for m in sys.modules if m.partition('.')[0] in"
        " {'kopf', 'aiohttp', 'msgspec', 'kubernetes'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        check=True,
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("words", "offered"), [(["ev"], "events"), (["events", "--all"], "--all-namespaces")]
)
def test_kubectl_gets_its_completions(words: list[str], offered: str) -> None:
    code = "from sandboxpool.cli.main import complete; complete()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        check=False,
    )
    assert done.stdout.decode().split() == [offered, ":4"], done.stderr
