"""The plugin's commands as they are typed, on a scripted API server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from typer.testing import CliRunner, Result

from sandboxpool.cli import main
from support.scriptedio import Answer, Asked, ScriptedIo, Step, answer, failure


@dataclass
class Cli:
    """Runs commands; what the API server answers is by method and path."""

    answers: dict[str, Answer | Sequence[Step]] = field(default_factory=dict)
    io: ScriptedIo = field(init=False)

    def __post_init__(self) -> None:
        self.io = ScriptedIo(self._answer)

    def has(self, path: str, *items: Mapping[str, Any]) -> None:
        """The API server lists these objects."""
        self.answers[f"GET {path}"] = answer({"metadata": {}, "items": list(items)})

    def says(self, request: str, steps: Answer | Sequence[Step]) -> None:
        """The API server answers to METHOD PATH."""
        self.answers[request] = steps

    def __call__(self, *arguments: str, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(
            main.build(), arguments, input=stdin, prog_name=main.NAME, catch_exceptions=False
        )

    @property
    def asked(self) -> list[str]:
        """What was asked, in order."""
        return [f"{asked.method} {asked.path}" for asked in self.io.asked]

    def _answer(self, asked: Asked) -> Sequence[Step]:
        found = self.answers.get(f"{asked.method} {asked.path}")
        if found is None:
            details = {"name": asked.path.rpartition("/")[2]}
            return failure(404, f"{asked.path} not found", "NotFound", **details)
        return found(asked) if callable(found) else found
