"""What commands print: tables for people, objects for programs.

In a terminal tables are rich's. Elsewhere, and with NO_COLOR for the colours, they are as kubectl
prints them: columns that are never cut, so that awk and grep see everything.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Object = dict[str, Any]

# As kubectl's own tables have it.
_GAP = 3
NONE = "<none>"


class Format(StrEnum):
    """What `-o` can be."""

    JSON = "json"
    YAML = "yaml"
    NAME = "name"
    WIDE = "wide"


class Tone(StrEnum):
    """What a cell means; terminals show it by colour, never by colour alone."""

    PLAIN = ""
    GOOD = "green"
    WARNING = "yellow"
    BAD = "red"


@dataclass(frozen=True, slots=True)
class Cell:
    """A text with what it means."""

    text: str
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: In capitals, as kubectl has it.
        wide: Shown with `-o wide` only.
        right: Numbers, which are aligned at the right in a terminal.
        fold: Long text; in a terminal it is folded before any other column is.
    """

    title: str
    wide: bool = False
    right: bool = False
    fold: bool = False


@dataclass(slots=True)
class Table:
    """Rows of cells, one cell for each column; an empty one is shown as `<none>`."""

    columns: Sequence[Column]
    rows: list[Sequence[str | Cell]] = field(default_factory=list)

    def add(self, *cells: str | Cell) -> None:
        """Add a row.

        Raises:
            ValueError: It has not as many cells as there are columns.
        """
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns")
        self.rows.append(cells)


class Output:
    """Where a command prints to.

    Attributes:
        format: What `-o` says, if anything.
    """

    def __init__(self, chosen: Format | None = None) -> None:
        self.format = chosen

    @property
    def wide(self) -> bool:
        """All columns are wanted."""
        return self.format is Format.WIDE

    @property
    def is_terminal(self) -> bool:
        """Somebody sees the output as it comes."""
        return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"

    def console(self) -> "Console":
        """Return rich's console on stdout; it has no colour with NO_COLOR or where it is piped."""
        from rich.console import Console

        return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)

    def objects(
        self,
        found: Sequence[Object],
        table: Callable[[], Table],
        *,
        single: bool = False,
        nothing: str = "",
    ) -> None:
        """Print objects, as `-o` says.

        Args:
            found: The objects, as the API server has them.
            table: The table of them, where that is wanted.
            single: It is one that was named; otherwise json and yaml are a List.
            nothing: What is said, on stderr, where a table would be empty.
        """
        if self.format in (Format.JSON, Format.YAML):
            self.document(
                found[0] if single else {"apiVersion": "v1", "kind": "List", "items": list(found)}
            )
        elif self.format is Format.NAME:
            for obj in found:
                print(qualified_name(obj))
        elif not found and nothing:
            print(nothing, file=sys.stderr)
        else:
            self.table(table())

    def document(self, value: Any) -> None:
        """Print a value as `-o json` or `-o yaml` says."""
        if self.format is Format.YAML:
            import yaml

            yaml.safe_dump(value, sys.stdout, sort_keys=False, allow_unicode=True, width=1_000_000)
        else:
            print(json.dumps(value, indent=4, ensure_ascii=False))

    def table(self, table: Table) -> None:
        """Print a table."""
        if self.is_terminal:
            self.console().print(self.renderable(table))
        else:
            for line in plain(table, wide=self.wide):
                print(line)

    def renderable(self, table: Table) -> Any:
        """Return a table for rich, as it is shown in a terminal or in a live display."""
        from rich.table import Table as RichTable
        from rich.text import Text

        shown = _shown(table, self.wide)
        made = RichTable(
            box=None,
            pad_edge=False,
            # At the left: rich cuts text of a last column that is padded at the right.
            padding=(0, 0, 0, _GAP),
            header_style="bold",
        )
        for at in shown:
            column = table.columns[at]
            made.add_column(
                column.title,
                justify="right" if column.right else "left",
                overflow="fold",
                min_width=None if column.fold else _longest_word(table, at),
            )
        for row in table.rows:
            made.add_row(*(Text(_text(row[at]), style=_tone(row[at])) for at in shown))
        return made


def plain(table: Table, *, wide: bool) -> list[str]:
    """Return the lines of a table as kubectl prints it."""
    shown = _shown(table, wide)
    rows = [[table.columns[at].title for at in shown]]
    rows += [[" ".join(_text(row[at]).split()) for at in shown] for row in table.rows]
    widths = [max(len(row[at]) for row in rows) + _GAP for at in range(len(shown))]
    return [
        "".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def qualified_name(obj: Object) -> str:
    """Return what `-o name` prints: the kind with its group, and the name."""
    group, slash, _ = str(obj["apiVersion"]).partition("/")
    kind, name = str(obj["kind"]).lower(), obj["metadata"]["name"]
    return f"{kind}.{group}/{name}" if slash else f"{kind}/{name}"


def _shown(table: Table, wide: bool) -> list[int]:
    return [at for at, column in enumerate(table.columns) if wide or not column.wide]


def _text(cell: str | Cell) -> str:
    return (cell.text if isinstance(cell, Cell) else cell) or NONE


def _tone(cell: str | Cell) -> str:
    return cell.tone if isinstance(cell, Cell) else ""


def _longest_word(table: Table, at: int) -> int:
    texts = [table.columns[at].title, *(_text(row[at]) for row in table.rows)]
    return max((len(word) for text in texts for word in text.split()), default=0)
