"""What the pages of docs/reference share: text from code as Markdown."""

import re

_DOCUMENT = re.compile(r"`?\bdocs/([a-z-]+)\.md\b`?")


def head(title: str, source: str) -> str:
    """Return the first lines of a page: its title and where it comes from."""
    return f"# {title}\n\nGenerated from {source} by `make generate`: do not edit.\n"


def paragraph(text: str) -> str:
    """Return a text as one line of Markdown, with links to the documents that it names."""
    linked = _DOCUMENT.sub(r"[docs/\1.md](../\1.md)", " ".join(text.split()))
    # What is not code may look like an HTML tag or like emphasis.
    parts = linked.split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("*", r"\*") for part in parts[::2]]
    return "`".join(parts)


def cell(text: str) -> str:
    """Return a text as a cell of a table."""
    return paragraph(text).replace("|", "\\|")


def module_path(module: str) -> str:
    """Return the path of a module of the operator, as code."""
    return f"`operator/{module.replace('.', '/')}.py`"
