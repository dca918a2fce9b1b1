"""Hooks for MkDocs: the README is the home page, and the site has what pages link to.

Nothing lists these files: they are found by following the links. Diagrams become pictures.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docsite import diagrams, links

_REPOSITORY = Path(__file__).resolve().parents[2]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README, and the files outside of docs that pages link to, directly or not."""
    unread = [_source(file) for file in files.documentation_pages()]
    for path in _with_linked([links.INDEX, *unread]):
        if path.startswith(links.DOCS):
            continue
        uri = links.site_path(path)
        if uri in files.src_uris:
            raise PluginError(f"{path} and {links.DOCS}{uri} have the same place on the site")
        files.append(File.generated(config, uri, abs_src_path=str(_REPOSITORY / path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Make the links of a page those of the site, and its diagrams pictures."""
    document = _source(page.file)
    return links.for_site(diagrams.for_site(markdown, document), document, _exists)


def _with_linked(paths: list[str]) -> set[str]:
    found: set[str] = set()
    while paths:
        path = paths.pop()
        if path in found:
            continue
        found.add(path)
        if path.endswith(".md"):
            paths += links.targets((_REPOSITORY / path).read_text(), path, _exists)
    return found


def _source(file: File) -> str:
    """Return the path of a file in the repository."""
    assert file.abs_src_path is not None, f"{file.src_uri} is no file"
    return Path(file.abs_src_path).relative_to(_REPOSITORY).as_posix()


def _exists(path: str) -> bool:
    return (_REPOSITORY / path).is_file()
