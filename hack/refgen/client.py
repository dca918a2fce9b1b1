"""The reference of the Python client, from its docstrings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe

PACKAGE = "sandboxpool.client"
_HEAD = """\
# Reference: Python client

Generated from docstrings by `make generate`: do not edit. Everything here is imported from
`sandboxpool.client`. First steps: [client.md](../client.md).
"""
_FIRST = ("SandboxPools", "ClaimOptions", "Sandbox", "SandboxInfo", "Result", "Command", "Chunk")


def render(source: Path) -> str:
    """Return the page, as Markdown.

    Args:
        source: The directory that the package `sandboxpool` is in.
    """
    package: Any = griffe.load(PACKAGE, search_paths=[source], docstring_parser="google")
    exported = {name: package[name].final_target for name in package.exports}
    errors = {name for name, item in exported.items() if _is_error(item, exported)}
    classes = [name for name in exported if name not in errors]
    parts = [_HEAD]
    for name in sorted(classes, key=_position):
        parts += _class(name, exported[name])
    parts.append("## Errors\n")
    parts += ["| Error | Is a | Meaning |", "|---|---|---|"]
    parts += [_error(name, exported[name]) for name in sorted(errors)]
    for name in sorted(errors):
        for section in _sections(exported[name], "attributes"):
            parts.append(f"\n`{name}` has:\n")
            parts += [_field(item) for item in section.value]
    return "\n".join(parts).rstrip() + "\n"


def _position(name: str) -> tuple[bool, int, str]:
    """Order what one needs first before the rest, and asyncio last."""
    place = _FIRST.index(name) if name in _FIRST else len(_FIRST)
    return name.startswith("Async"), place, name


def _is_error(item: Any, exported: dict[str, Any]) -> bool:
    names = [str(base) for base in item.bases]
    return "Exception" in names or any(
        name in exported and _is_error(exported[name], exported) for name in names
    )


def _class(name: str, item: Any) -> Iterator[str]:
    yield f"## {name}\n"
    yield from _text(item)
    for section in _sections(item, "attributes"):
        yield from (_field(field) for field in section.value)
        yield ""
    for member in item.members.values():
        if member.name.startswith("_") or member.docstring is None:
            continue
        if "property" in member.labels:
            yield f"### {name}.{member.name}\n"
            yield f"Property: `{member.annotation}`.\n"
            yield from _text(member)
        elif member.is_function:
            yield f"### {name}.{member.name}\n"
            yield from _function(member)


def _function(item: Any) -> Iterator[str]:
    word = "async def" if "async" in item.labels else "def"
    yield f"```python\n{word} {_signature(item)}\n```\n"
    yield from _text(item)
    for kind, title in (("parameters", "Arguments"), ("returns", "Returns"), ("raises", "Raises")):
        for section in _sections(item, kind):
            yield f"{title}:\n"
            for entry in section.value:
                name = str(entry.annotation) if kind == "raises" else getattr(entry, "name", "")
                yield _entry(name, entry.description)
            yield ""


def _signature(item: Any) -> str:
    text = str(item.signature())
    if len(text) <= 88:
        return text
    return _wrapped(text)


def _wrapped(text: str) -> str:
    """Put each parameter on a line of its own."""
    head, _, rest = text.partition("(")
    inner, _, result = rest.rpartition(")")
    parts, depth, start = [], 0, 0
    for place, sign in enumerate(inner):
        depth += (sign in "([{") - (sign in ")]}")
        if sign == "," and depth == 0:
            parts.append(inner[start:place].strip())
            start = place + 1
    parts.append(inner[start:].strip())
    lines = "".join(f"    {part},\n" for part in parts)
    return f"{head}(\n{lines}){result}"


def _sections(item: Any, kind: str) -> list[Any]:
    found = item.docstring.parsed if item.docstring is not None else []
    return [section for section in found if section.kind.value == kind]


def _text(item: Any) -> Iterator[str]:
    for section in _sections(item, "text"):
        yield f"{section.value}\n"


def _field(entry: Any) -> str:
    kind = f" (`{entry.annotation}`)" if entry.annotation is not None else ""
    return f"- `{entry.name}`{kind}: {_line(entry.description)}"


def _entry(name: str, description: str) -> str:
    return f"- `{name}`: {_line(description)}" if name else f"- {_line(description)}"


def _error(name: str, item: Any) -> str:
    bases = ", ".join(f"`{base}`" for base in item.bases)
    (text,) = [section.value for section in _sections(item, "text")]
    return f"| `{name}` | {bases} | {_line(text)} |"


def _line(text: str) -> str:
    return " ".join(text.split())
