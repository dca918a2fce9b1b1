"""The commands and the code of pages, as they stand there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from localcluster.paths import REPOSITORY

_ALL_LINES = re.MULTILINE | re.DOTALL
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", _ALL_LINES)
_COMMAND_SECONDS = 150


def blocks(name: str) -> list[tuple[str, str]]:
    """The language and the text of each block of a page of `docs`."""
    return _BLOCK.findall(text(name))


def text(name: str) -> str:
    """A page of `docs`."""
    return (REPOSITORY / "docs" / name).read_text()


def section(name: str, heading: str) -> str:
    """The commands of a section of a page."""
    (body,) = re.findall(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", text(name), _ALL_LINES)
    return "".join(code for language, code in _BLOCK.findall(body) if language == "sh")


def command(name: str, start: str) -> str:
    """The first command of a page, in a line of its own, that starts so."""
    found: list[str] = re.findall(rf"^    ({re.escape(start)} .*)$", text(name), re.MULTILINE)
    return found[0]


def run_shell(script: str, folder: Path | None = None) -> str:
    """Runs a block of commands; returns what it prints.

    Args:
        script: The commands.
        folder: Where; here by default.
    """
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        capture_output=True,
        text=True,
        timeout=_COMMAND_SECONDS,
        cwd=folder,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    return done.stdout
