"""Commands as they are typed, on a scripted API server."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sandboxpool.cli import cluster, output, times
from sandboxpool.client import config
from sandboxpool.client.api import Api
from support.scriptedcli import Cli
from support.scriptedcluster import settings

NOW = "2026-01-01T00:10:00Z"
GOLDEN = Path(__file__).resolve().parent / "golden"


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Commands on an API server in memory, in namespace `ns`, at a fixed time."""
    made = Cli()

    def load(context: str | None, kubeconfig: Path | None, namespace: str | None) -> Any:
        found = settings()
        found.namespace = namespace or found.namespace
        return found

    monkeypatch.setattr(config, "load", load)
    monkeypatch.setattr(cluster, "connect", lambda found, within: Api(made.io, found))
    at = times.moment(NOW)
    monkeypatch.setattr(times, "now", lambda: at)
    return made


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes stdout a terminal of so many columns."""

    def be(columns: int) -> None:
        monkeypatch.setattr(output.Output, "is_terminal", True)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.delenv("NO_COLOR", raising=False)

    return be


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """Compares a text with a file; SANDBOXPOOL_GOLDEN=1 writes the file instead."""

    def compare(name: str, text: str) -> None:
        file = GOLDEN / f"{name}.txt"
        # Escapes are written in a way that people can read.
        shown = re.sub(r" +$", "", text.replace("\x1b", "␛"), flags=re.MULTILINE)
        if os.environ.get("SANDBOXPOOL_GOLDEN"):
            file.parent.mkdir(exist_ok=True)
            file.write_text(shown)
        assert shown == file.read_text()

    return compare
