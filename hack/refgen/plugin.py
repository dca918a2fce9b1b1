"""The reference of the kubectl plugin: what `--help` of each command prints."""

import typer.main
from typer.testing import CliRunner

from sandboxpool.cli.main import NAME, build

_COLUMNS = "80"
_HEAD = f"""\
# Reference: kubectl plugin

Generated from the help of `{NAME}` by `make generate`: do not edit.
"""


def render() -> str:
    """Return the page, as Markdown.

    Raises:
        RuntimeError: A command prints no help.
    """
    app = build()
    group = typer.main.get_command(app)
    names = sorted(getattr(group, "commands", ()))
    parts = [_HEAD, _help(app)]
    parts += [f"## {name}\n\n{_help(app, name)}" for name in names]
    return "\n".join(parts)


def _help(app: typer.Typer, *command: str) -> str:
    # Neither the terminal's width nor its colours may show.
    shown = CliRunner(env={"COLUMNS": _COLUMNS, "NO_COLOR": "1", "TERMINAL_WIDTH": None}).invoke(
        app, [*command, "--help"], prog_name=NAME
    )
    if shown.exit_code != 0:
        raise RuntimeError(f"{NAME} {' '.join(command)} --help: {shown.output}{shown.exception}")
    lines = [line.rstrip() for line in shown.output.strip().splitlines()]
    return "```none\n" + "\n".join(lines) + "\n```\n"
