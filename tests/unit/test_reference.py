"""The pages of docs/reference."""

import shutil
from pathlib import Path

import pytest

from refgen import __main__ as refgen
from refgen import plugin
from sandboxpool import client
from sandboxpool.cli.main import COMMANDS


def test_the_page_has_all_that_the_client_exports() -> None:
    page = refgen.render(refgen.REPOSITORY)["client.md"]
    headings = {line[3:] for line in page.splitlines() if line.startswith("## ")}
    rows = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    assert (headings - {"Errors"}) | rows == set(client.__all__)
    assert not headings & rows
    for expected in (
        "\n### AsyncSandbox.run\n\n```python\nasync def run(\n    command: Sequence[str],\n",
        "\n### Sandbox.info\n\nProperty: `SandboxInfo`.\n",
        "\n- `ttl` (`int | None`): Seconds from binding",
        "\n| `BindTimeout` | `ClaimError`, `TimeoutError` | No sandbox",
        "\n- `CommandNotStarted`: The sandbox has no such program, or cannot run it.\n",
    ):
        assert expected in page


def test_the_page_of_the_plugin_has_the_help_of_each_command() -> None:
    page = plugin.render()
    headings = [line[3:] for line in page.splitlines() if line.startswith("## ")]
    assert headings == sorted(command.name for command in COMMANDS)
    assert "Usage: kubectl sandboxpool [OPTIONS]" in page
    assert "Usage: kubectl sandboxpool claim [OPTIONS]" in page
    assert max(map(len, page.splitlines())) <= 120


def test_the_page_for_applications_says_what_to_do_about_each_error() -> None:
    page = (refgen.REPOSITORY / "docs" / "client.md").read_text()
    rows = {
        word for line in page.splitlines() if line.startswith("| `") for word in line.split("`")
    }
    errors = {
        item
        for name in client.__all__
        if isinstance(item := getattr(client, name), type)
        and issubclass(item, client.SandboxPoolError)
    }
    # What others are derived from is raised as one of these, or says it all by itself.
    bases = {base for error in errors for base in error.__bases__}
    assert {error.__name__ for error in errors - bases} <= rows


def test_a_page_that_is_not_that_of_the_docstrings_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(
        refgen.REPOSITORY / "operator",
        tmp_path / "operator",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    at = ["--root", str(tmp_path)]
    page = tmp_path / refgen.DIRECTORY / "client.md"
    assert refgen.main([*at, "--check"]) == 1
    assert not page.exists()
    assert refgen.main(at) == 0
    assert refgen.main([*at, "--check"]) == 0
    page.write_text(page.read_text() + "By hand.\n")
    assert refgen.main([*at, "--check"]) == 1
    assert "docs/reference/client.md does not match" in capsys.readouterr().err
