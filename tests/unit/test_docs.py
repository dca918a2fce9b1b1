"""What the documents for developers name is there."""

import re
from pathlib import Path

import pytest

from crdgen.__main__ import REPOSITORY

PACKAGE = REPOSITORY / "operator" / "sandboxpool"
DOCUMENTS = (
    "CONTRIBUTING.md",
    "SECURITY.md",
    "README.md",
    "docs/architecture.md",
    "docs/client.md",
    "docs/dashboards.md",
    "docs/kubectl-sandboxpool.md",
    "docs/failure-texts.md",
    "docs/glossary.md",
    "docs/upgrading.md",
)
# A link to a file, and a path in code: of directories that the repository has, or of a module.
_LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")
_CODE = re.compile(r"`([\w.-]+(?:/[\w.-]+)*/?)(?: [^`]*)?`")
_ROOTS = ("charts/", "crds/", "docs/", "hack/", "operator/", "samples/", "tests/")


def named_paths(text: str, document: Path) -> dict[str, tuple[Path, ...]]:
    """Each path that a document names, with the places where it may be."""
    found: dict[str, tuple[Path, ...]] = {
        link: (document.parent / link,) for link in _LINK.findall(text)
    }
    for code in _CODE.findall(text):
        if code.startswith(_ROOTS):
            found[code] = (REPOSITORY / code,)
        elif "/" in code and code.endswith((".py", "/")):
            found[code] = (PACKAGE / code,)
    return found


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_paths_that_a_document_names_exist(name: str) -> None:
    document = REPOSITORY / name
    paths = named_paths(document.read_text(), document)
    assert paths, "the document names no path: is the pattern right?"
    assert [path for path, places in paths.items() if not any(map(Path.exists, places))] == []


def test_the_glossary_names_what_the_code_has() -> None:
    code = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    rows = re.findall(r"^\|[^|]*\|[^|]*\|([^|]*)\|", _glossary(), re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert len(names) > 20
    packages = {path.stem for path in PACKAGE.rglob("*") if path.suffix in ("", ".py")}
    assert [
        name
        for name in sorted(names - packages)
        if not re.search(rf"^\s*(?:class |(?:async )?def )?{name}\b[:( =]", code, re.MULTILINE)
    ] == []


def _glossary() -> str:
    return (REPOSITORY / "docs" / "glossary.md").read_text()
