"""The names that the shell offers."""

from __future__ import annotations

import shlex

import pytest
from typer.testing import CliRunner

from sandboxpool.cli import main
from support.scriptedcli import Cli
from support.scriptedio import failure

GROUP = "/apis/sandboxpool.io/v1alpha1"
VARIABLE = "_KUBECTL_SANDBOXPOOL_COMPLETE"


def offered(*words: str) -> list[str]:
    line = ["kubectl-sandboxpool", *words]
    environment = {
        VARIABLE: "complete_bash",
        "COMP_WORDS": shlex.join(line),
        "COMP_CWORD": str(len(line) - 1),
    }
    done = CliRunner().invoke(
        main.build(),
        env=environment,
        prog_name="kubectl-sandboxpool",
        complete_var=VARIABLE,
        catch_exceptions=False,
    )
    assert done.stderr == ""
    return done.stdout.split()


def named(*names: str) -> list[dict[str, dict[str, str]]]:
    return [{"metadata": {"name": name}} for name in names]


@pytest.fixture(autouse=True)
def _objects(cli: Cli) -> None:
    cli.has(f"{GROUP}/namespaces/ns/sandboxpools", *named("python", "pypy", "node"))
    cli.has(f"{GROUP}/namespaces/other/sandboxpools", *named("pascal"))
    cli.has(f"{GROUP}/namespaces/ns/sandboxclaims", *named("mine"))
    cli.has(f"{GROUP}/sandboxruntimes", *named("gvisor", "kata-fc"))


@pytest.mark.parametrize("command", [["claim"], ["status"]])
def test_pools_are_offered_by_their_first_letters(command: list[str]) -> None:
    assert offered(*command, "p") == ["pypy", "python"]
    assert offered("-n", "other", *command, "p") == ["pascal"]
    assert offered(*command, "-n", "other", "p") == ["pascal"]


@pytest.mark.parametrize("command", ["exec", "logs", "port-forward"])
def test_claims_are_offered(command: str) -> None:
    assert offered(command, "") == ["mine"]


def test_classes_are_offered() -> None:
    assert offered("runtimes", "kata") == ["kata-fc"]


def test_nothing_is_offered_where_the_rights_do_not_suffice(cli: Cli) -> None:
    cli.says(f"GET {GROUP}/namespaces/ns/sandboxpools", failure(403, "forbidden", "Forbidden"))
    assert offered("status", "p") == []
