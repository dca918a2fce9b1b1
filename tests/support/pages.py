"""The commands and the code of pages, as they stand there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from localcluster.paths import REPOSITORY

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND_SECONDS = 150


def blocks(name: str) -> list[tuple[str, str]]:
    """The language and the text of each block of a page of `docs`."""
    return _BLOCK.findall((REPOSITORY / "docs" / name).read_text())


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
