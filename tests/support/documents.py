"""What the documents show: manifests, values of the chart, and the names of both."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from localcluster.paths import REPOSITORY

# Pages of others, or that are generated: they show no manifests of ours by hand.
_NOT_READ = ("docs/benchmarks/", "docs/decisions/", "docs/reference/")
_FENCE = re.compile(r"^( *)```(\S+)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_HEREDOC = re.compile(r"<<'?(EO[FM])'?\n(.*?)^\1$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of YAML in a document.

    Attributes:
        document: The path of the document in the repository.
        line: Where it begins, from 1.
        text: Its text.
    """

    document: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def documents() -> list[Path]:
    """The README and the pages of docs that are written by hand."""
    pages = sorted((REPOSITORY / "docs").rglob("*.md"))
    return [
        path
        for path in (REPOSITORY / "README.md", *pages)
        if not path.relative_to(REPOSITORY).as_posix().startswith(_NOT_READ)
    ]


def yaml_blocks() -> Iterator[Block]:
    """The blocks of YAML in all documents, those in shell commands included."""
    for path in documents():
        text, name = path.read_text(), path.relative_to(REPOSITORY).as_posix()
        for fence in _FENCE.finditer(text):
            _, language, body = fence.groups()
            line = text.count("\n", 0, fence.start()) + 1
            if language == "yaml":
                yield Block(name, line, textwrap.dedent(body))
            elif language == "sh":
                for heredoc in _HEREDOC.finditer(textwrap.dedent(body)):
                    yield Block(name, line, heredoc.group(2))


def manifests(block: Block) -> list[dict[str, Any]]:
    """The objects in a block; none if it shows a part of one, or values."""
    loaded = [document for document in yaml.safe_load_all(block.text) if document]
    return [document for document in loaded if "kind" in document]


def is_values(block: Block) -> bool:
    """Whether a block shows values of the chart: its keys are those of values.yaml."""
    loaded = yaml.safe_load(block.text) if not manifests(block) else None
    return isinstance(loaded, dict) and set(loaded) <= _CHART_VALUES


_CHART_VALUES = set(yaml.safe_load((REPOSITORY / "charts/sandboxpool/values.yaml").read_text()))
