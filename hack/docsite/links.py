"""Where a link of a document leads, in the repository and on the site. Pure but for `exists`.

The documents are read in two places: in the repository, where a link is the path of a file, and on
the site, whose root is the directory `docs`. A file outside of `docs` has the same path on the site
as in the repository.
"""

import posixpath
import re
from collections.abc import Callable, Iterator

DOCS = "docs/"
INDEX = "README.md"
# The target of an inline link to a file, without its fragment.
_TARGET = re.compile(r"(?<=\]\()(?![a-z][a-z0-9+.-]*:|/|#)[^)#\s]+")

Exists = Callable[[str], bool]


def targets(text: str, document: str, exists: Exists) -> Iterator[str]:
    """Yield the files of the repository that a document links to.

    Args:
        text: The document, as Markdown.
        document: Its path in the repository.
        exists: Whether the repository has a file at a path.
    """
    for match in _TARGET.finditer(text):
        if (path := _resolve(match.group(), document, exists)) is not None:
            yield path


def for_site(text: str, document: str, exists: Exists) -> str:
    """Return the document with its links as they have to be on the site.

    Links to what the repository does not have stay: MkDocs reports them.
    """
    directory = posixpath.dirname(site_path(document))

    def replace(match: re.Match[str]) -> str:
        path = _resolve(match.group(), document, exists)
        if path is None:
            return match.group()
        return posixpath.relpath(site_path(path), directory or ".")

    return _TARGET.sub(replace, text)


def site_path(path: str) -> str:
    """Return where a file of the repository is on the site."""
    return path.removeprefix(DOCS)


def _resolve(link: str, document: str, exists: Exists) -> str | None:
    """Return the file that a link leads to; that of a directory is its README."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(document), link))
    for candidate in (path, posixpath.join(path, INDEX)):
        if exists(candidate):
            return candidate
    return None
