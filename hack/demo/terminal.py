"""What the demo looks like: headings, commands as a user would type them, their real output."""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections.abc import Sequence

WIDTH = 96
_BOLD, _DIM, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"


def _styled(text: str, style: str) -> str:
    return f"{style}{text}{_PLAIN}" if sys.stdout.isatty() else text


def heading(number: int, title: str, proves: str) -> None:
    """Begin a step: its title, and what it proves."""
    print(f"\n{_styled(f'=== {number}. {title}', _BOLD)}", flush=True)
    say(proves)


def say(text: str) -> None:
    """Print a paragraph."""
    print(textwrap.fill(text, WIDTH, break_long_words=False), flush=True)


def command(line: Sequence[str]) -> None:
    """Show a command before it is run."""
    print(f"\n{_styled(f'$ {_typed(line)}', _BOLD)}", flush=True)


def output(text: str) -> None:
    """Show what a command printed, as it is."""
    print(text.rstrip("\n"), flush=True)


def aside(text: str) -> None:
    """Print what is only of interest while it happens."""
    print(_styled(f"    {text}", _DIM), flush=True)


def failure(text: str, detail: str = "") -> None:
    """Say on the standard error why the demo ends here."""
    sys.stdout.flush()
    print(f"\nerror: {text}", file=sys.stderr)
    if detail:
        print(detail, file=sys.stderr)


def _typed(line: Sequence[str]) -> str:
    """Quote as a person would: only where the shell needs it."""
    return " ".join(word if word == "--" else shlex.quote(word) for word in line)
