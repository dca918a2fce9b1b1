"""What the documents for developers name is there."""

import re
from pathlib import Path

import pytest

from crdgen.__main__ import REPOSITORY
from refgen import values
from sandboxpool.api.reasons import Reason
from support.documents import documents

PACKAGE = REPOSITORY / "operator" / "sandboxpool"
DOCUMENTS = [
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "SECURITY.md",
    *(path for path in documents() if path != REPOSITORY / "docs" / "benchmarks.md"),
]
# A link to a file, and a path in code: of directories that the repository has, or of a module.
_LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")
_CODE = re.compile(r"`([\w.-]+(?:/[\w.-]+)*/?)(?: [^`]*)?`")
# The domain of labels and annotations, with its slash.
_DOMAIN = re.compile(r"[\w-]+(?:\.[\w-]+)+/$")
# A value of the chart: on a command line, or in code.
_SET = re.compile(r"--set(?:-string|-json)? ([A-Za-z]+(?:\.[A-Za-z]+)*)=")
_DOTTED = re.compile(r"`([a-z][A-Za-z]*(?:\.[A-Za-z]+)+)(?:[:=][^`]*)?`")
# Of a status, and not of the chart: nodes.unproven.
_NOT_OF_THE_CHART = ("unproven", "notIsolating")
# A link to a reason, by its own name.
_REASON = re.compile(r"\[`?([A-Z][A-Za-z]+)`?\]\([^)#]*reference/reasons\.md#([a-z]+)\)")
_ROOTS = ("charts/", "crds/", "docs/", "hack/", "operator/", "samples/", "tests/")


def named_paths(text: str, document: Path) -> dict[str, tuple[Path, ...]]:
    """Each path that a document names, with the places where it may be."""
    found: dict[str, tuple[Path, ...]] = {
        link: (document.parent / link,) for link in _LINK.findall(text)
    }
    for code in _CODE.findall(text):
        if code.startswith(_ROOTS):
            found[code] = (REPOSITORY / code,)
        elif "/" in code and code.endswith((".py", "/")) and not _DOMAIN.match(code):
            found[code] = (PACKAGE / code,)
    return found


@pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: path.relative_to(REPOSITORY).as_posix()
)
def test_the_paths_that_a_document_names_exist(document: Path) -> None:
    paths = named_paths(document.read_text(), document)
    assert [path for path, places in paths.items() if not any(map(Path.exists, places))] == []


def test_most_documents_name_paths() -> None:
    """Else the pattern is not right."""
    # Runbooks name what is in a cluster.
    others = [document for document in DOCUMENTS if document.parent.name != "runbooks"]
    named = [bool(named_paths(document.read_text(), document)) for document in others]
    assert named.count(False) <= 3


@pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: path.relative_to(REPOSITORY).as_posix()
)
def test_the_chart_values_that_a_document_names_exist(document: Path) -> None:
    known = {value.name: value for value in values.read(REPOSITORY / values.CHART)}
    assert [name for name in named_values(document.read_text()) if not _exists(name, known)] == []


def named_values(text: str) -> set[str]:
    """Each value of the chart that a document sets, or names by a path of two or more words."""
    groups = {value.name for value in values.read(REPOSITORY / values.CHART) if value.is_group}
    found = set(_SET.findall(text))
    for name in _DOTTED.findall(text):
        group, _, rest = name.partition(".")
        if group in groups and not rest.startswith(_NOT_OF_THE_CHART):
            found.add(name)
    return found


def _exists(name: str, known: dict[str, values.Value]) -> bool:
    """Whether the chart has the value, or a mapping or list that it is in."""
    while name not in known:
        name, _, last = name.rpartition(".")
        if not last or (name in known and known[name].is_group):
            return False
    return True


def test_a_value_that_the_chart_does_not_have_is_found() -> None:
    known = {value.name: value for value in values.read(REPOSITORY / values.CHART)}
    text = "`probe.image`, `probe.imag`, --set replica=3, --set podLabels.x=y, `spec.probe.imag`"
    named = named_values(text)
    assert named == {"probe.image", "probe.imag", "replica", "podLabels.x"}
    assert {name for name in named if not _exists(name, known)} == {"probe.imag", "replica"}


def test_the_reasons_that_documents_link_to_exist() -> None:
    headings = {reason.lower() for reason in Reason}
    linked = {
        (text, anchor)
        for document in DOCUMENTS
        for text, anchor in _REASON.findall(document.read_text())
    }
    assert len(linked) > 20
    assert [
        text for text, anchor in linked if anchor not in headings or text.lower() != anchor
    ] == []


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
