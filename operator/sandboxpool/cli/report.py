"""Several tables and lines under titles, printed once or shown live."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sandboxpool.cli.output import Output, Table, plain

if TYPE_CHECKING:
    from rich.console import RenderableType

REFRESH_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a report.

    Attributes:
        title: In capitals; empty for none.
        body: A table, or lines.
    """

    title: str
    body: Table | Sequence[str]


def show(out: Output, sections: Sequence[Section]) -> None:
    """Print a report."""
    if out.is_terminal:
        out.console().print(renderable(out, sections))
    else:
        print("\n".join(lines(sections, wide=out.wide)))


def watch(out: Output, read: Callable[[], Sequence[Section]]) -> None:
    """Show a report live until the command is interrupted.

    Where nobody sees it in a terminal, it is printed again whenever it has changed.
    """
    if out.is_terminal:
        from rich.live import Live

        with Live(renderable(out, read()), console=out.console(), auto_refresh=False) as live:
            while True:
                time.sleep(REFRESH_SECONDS)
                live.update(renderable(out, read()), refresh=True)
    before: list[str] = []
    while True:
        if (now := lines(read(), wide=out.wide)) != before:
            print("\n".join([*([""] if before else []), *now]), flush=True)
            before = now
        time.sleep(REFRESH_SECONDS)


def lines(sections: Sequence[Section], *, wide: bool) -> list[str]:
    """Return a report as it is printed where there is no terminal."""
    printed: list[str] = []
    for section in sections:
        printed += [""] if printed else []
        printed += [section.title] if section.title else []
        body = section.body
        printed += plain(body, wide=wide) if isinstance(body, Table) else list(body)
    return printed


def renderable(out: Output, sections: Sequence[Section]) -> Any:
    """Return a report for rich."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for section in sections:
        parts += [Text("")] if parts else []
        parts += [Text(section.title, style="bold")] if section.title else []
        body = section.body
        parts += (
            [out.renderable(body)] if isinstance(body, Table) else [Text(line) for line in body]
        )
    return Group(*parts)
