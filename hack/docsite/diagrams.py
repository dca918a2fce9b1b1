"""Diagrams of documents: Mermaid in the repository, where GitHub draws it, pictures on the site.

A picture is named by the digest of the diagram's source, so one that is out of date is not found.
Pure.
"""

import hashlib
import posixpath
import re
from collections.abc import Iterator

DIRECTORY = "docs/images/diagrams"
_BLOCK = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r"^\s*accTitle: (.+)$", re.MULTILINE)


def sources(text: str) -> Iterator[str]:
    """Yield the source of each diagram of a document."""
    for match in _BLOCK.finditer(text):
        yield match[1]


def picture(source: str) -> str:
    """Return the path, in the repository, of a diagram's picture."""
    return f"{DIRECTORY}/{hashlib.sha256(source.encode()).hexdigest()[:12]}.svg"


def title(source: str) -> str:
    """Return what a diagram is called, for those who cannot see it.

    Raises:
        ValueError: It has no title.
    """
    if (match := _TITLE.search(source)) is None:
        raise ValueError(f"a diagram needs a line `accTitle: what it shows`:\n{source}")
    return match[1]


def for_site(text: str, document: str) -> str:
    """Return the document with pictures in the places of its diagrams.

    Args:
        text: The document, as Markdown.
        document: Its path in the repository.
    """

    def replace(match: re.Match[str]) -> str:
        path = posixpath.relpath(picture(match[1]), posixpath.dirname(document) or ".")
        return f"![{title(match[1])}]({path})"

    return _BLOCK.sub(replace, text)
