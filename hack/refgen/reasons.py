"""The reference of reasons, from the docstrings of their enumeration.

The comments between the members are the headings. They are no part of the syntax tree, so the
source is read by lines, and the docstrings are what the tree has after each member.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from refgen.text import head, paragraph

SOURCE = Path("operator/sandboxpool/api/reasons.py")
_HEAD = (
    head("Reference: reasons", f"`{SOURCE}`")
    + """
A reason is the same in conditions, events, logs, and the labels of metrics and alerts. The message
beside it names the objects concerned. `kubectl describe` shows the conditions and events of a
SandboxPool, a SandboxClaim or a SandboxRuntime.
"""
)


@dataclass
class _Group:
    """Reasons under one comment."""

    comment: str
    reasons: list[tuple[str, str]] = field(default_factory=list)


class UndocumentedReasonError(ValueError):
    """A reason has no docstring that says what it means."""


def render(source: str) -> str:
    """Return the page, as Markdown.

    Args:
        source: The module that declares the reasons.

    Raises:
        UndocumentedReasonError: A reason has no docstring.
    """
    parts = [_HEAD]
    for group in _groups(source):
        title, _, rest = group.comment.partition(".")
        parts.append(f"## {title}\n")
        if rest.strip():
            parts.append(f"{rest.strip()}\n")
        for reason, docstring in group.reasons:
            meaning, _, cure = docstring.partition("\n\n")
            parts.append(f"### {reason}\n\n{paragraph(meaning)}\n")
            if cure:
                parts.append(f"**What to do:** {paragraph(cure)}\n")
    return "\n".join(parts)


def _groups(source: str) -> list[_Group]:
    lines = source.splitlines()
    groups: list[_Group] = []
    for line, reason, docstring in _members(source):
        if comment := _comment_above(lines, line):
            groups.append(_Group(comment))
        groups[-1].reasons.append((reason, docstring))
    return groups


def _members(source: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the value and the docstring of each member."""
    (enumeration,) = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == "Reason"
    ]
    following = [*enumeration.body[1:], None]
    for node, after in zip(enumeration.body, following, strict=True):
        if not isinstance(node, ast.Assign):
            continue
        reason = ast.literal_eval(node.value)
        docstring = (
            ast.literal_eval(after.value)
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            else None
        )
        if not isinstance(docstring, str):
            raise UndocumentedReasonError(
                f"{SOURCE}: {reason} has no docstring: say what it means and, in a second"
                " paragraph, what to do"
            )
        yield node.lineno, reason, docstring


def _comment_above(lines: list[str], line: int) -> str:
    """Return the comment that ends right above a line, counted from 1."""
    first = line - 1
    while lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return " ".join(text.lstrip(" #") for text in lines[first : line - 1])
