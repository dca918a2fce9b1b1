"""The documentation as a site, and what its links become."""

import html.parser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crdgen.__main__ import REPOSITORY
from diagrams import __main__ as drawing
from docsite import diagrams, links

FILES = {
    "README.md",
    "charts/values.yaml",
    "docs/client.md",
    "docs/decisions/README.md",
    "docs/reference/client.md",
    "examples/README.md",
    "examples/loop.py",
}
# What the site's pages may link to; what a page loads is its own.
_LOADED = {"script": "src", "img": "src", "iframe": "src", "link": "href"}


@pytest.mark.parametrize(
    ("document", "link", "on_site"),
    [
        ("docs/client.md", "reference/client.md", "reference/client.md"),
        ("docs/client.md", "../examples/README.md#run", "examples/README.md#run"),
        ("docs/client.md", "../README.md", "README.md"),
        ("docs/reference/client.md", "../client.md", "../client.md"),
        ("docs/reference/client.md", "../../charts/values.yaml", "../charts/values.yaml"),
        ("docs/client.md", "decisions", "decisions/README.md"),
        ("README.md", "docs/client.md", "client.md"),
        ("README.md", "docs/decisions/", "decisions/README.md"),
        ("examples/README.md", "../docs/client.md#rights", "../client.md#rights"),
        ("examples/README.md", "loop.py", "loop.py"),
        ("README.md", "https://example.com/docs/client.md", "https://example.com/docs/client.md"),
        ("README.md", "#docs/client.md", "#docs/client.md"),
        ("README.md", "docs/nothing.md", "docs/nothing.md"),
    ],
)
def test_a_link_leads_to_the_same_file_on_the_site(document: str, link: str, on_site: str) -> None:
    text = "See [this]({}) and `docs/client.md`."
    assert links.for_site(text.format(link), document, FILES.__contains__) == text.format(on_site)


def test_the_files_that_a_document_links_to_are_found() -> None:
    text = "[a](../README.md#x) [b](nothing.md) ![c](client.md) [d](https://example.com/) [e](#f)"
    found = links.targets(text, "docs/index.md", FILES.__contains__)
    assert list(found) == ["README.md", "docs/client.md"]


DIAGRAM = "```mermaid\nflowchart TB\n    accTitle: What is above\n    a --> b\n```\n"


def test_a_diagram_is_a_picture_on_the_site() -> None:
    (source,) = diagrams.sources(f"Before\n\n{DIAGRAM}\nAfter")
    assert source == "flowchart TB\n    accTitle: What is above\n    a --> b\n"
    picture = diagrams.picture(source).removeprefix("docs/")
    shown = diagrams.for_site(f"Before\n\n{DIAGRAM}\nAfter", "docs/how-to/a.md")
    assert shown == f"Before\n\n![What is above](../{picture})\n\nAfter"


def test_a_diagram_without_a_title_is_refused() -> None:
    with pytest.raises(ValueError, match="accTitle"):
        diagrams.for_site("```mermaid\nflowchart TB\n```\n", "docs/a.md")


def test_each_picture_is_of_a_diagram_as_it_is() -> None:
    sources = drawing.wanted(REPOSITORY)
    assert sources
    assert drawing.stale(REPOSITORY, sources) == (set(), set())
    for path, source in sources.items():
        picture = (REPOSITORY / path).read_text()
        assert f">{diagrams.title(source)}</title>" in picture
        # A picture in a page can load nothing and has to bring what it shows.
        assert re.search(r"""(?:href=["']|url\()(?!#|&quot;#)""", picture) is None


def test_a_change_of_a_diagram_makes_its_picture_stale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(REPOSITORY / "docs", tmp_path / "docs")
    assert drawing.main(["--check", "--root", str(tmp_path)]) == 0
    page = tmp_path / "docs" / "architecture.md"
    page.write_text(page.read_text().replace('app["app: ', 'app["App: '))
    assert drawing.main(["--check", "--root", str(tmp_path)]) == 1
    before, after = (
        diagrams.picture(next(diagrams.sources(root.read_text())))
        for root in (REPOSITORY / "docs" / "architecture.md", page)
    )
    assert before in (said := capsys.readouterr().err)
    assert after in said


class _Loads(html.parser.HTMLParser):
    """Collects what a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in _LOADED and values.get("rel") not in ("canonical", "next", "prev"):
            self.urls.append(values.get(_LOADED[tag]) or "")


def test_the_site_is_built_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    site = tmp_path / "site"
    done = _build(REPOSITORY, site)
    assert done.returncode == 0, done.stderr
    pages = list(site.rglob("*.html"))
    documents = [path.stem for path in (REPOSITORY / "docs").rglob("[!.]*.md")]
    assert {page.stem for page in pages} >= set(documents) - {"README", "findings"}
    assert "<h1" in (site / "index.html").read_text()
    for page in pages:
        loads = _Loads()
        loads.feed(page.read_text())
        assert any(url.endswith(".css") for url in loads.urls)
        assert [url for url in loads.urls if "//" in url] == [], page
    assert (site / "examples" / "agent_loop.py").is_file(), "a page links to it"
    architecture = (site / "architecture.html").read_text()
    assert "mermaid" not in architecture
    assert architecture.count('src="images/diagrams/') == 2


@pytest.mark.parametrize(
    ("link", "complaint"),
    [
        ("nothing.md", "contains a link 'nothing.md', but the target is not found"),
        ("glossary.md#nothing", "does not contain an anchor '#nothing'"),
        ("../charts/nothing.yaml", "contains a link '../charts/nothing.yaml'"),
    ],
)
def test_a_broken_link_fails_the_build(tmp_path: Path, link: str, complaint: str) -> None:
    for name in ("mkdocs.yml", "README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        shutil.copy(REPOSITORY / name, tmp_path)
    for name in ("docs", "examples", "hack/docsite"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    with (tmp_path / "docs" / "architecture.md").open("a") as page:
        page.write(f"\nSee [there]({link}).\n")
    done = _build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert complaint in done.stderr


def _build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=root,
        # The packages that hooks import, wherever the tests were started from.
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
    )
