"""Command line: `python -m diagrams` draws what has no picture yet, `--check` only looks."""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from browser import chromium, npm
from docsite import diagrams

REPOSITORY = Path(__file__).resolve().parents[2]
# The picture has to be the same whenever it is drawn, and complete without HTML in it, which not
# every viewer of SVG shows. Its background is its own, since pages may be dark.
_SETTINGS = {
    "startOnLoad": False,
    "theme": "neutral",
    "deterministicIds": True,
    "htmlLabels": False,
    "flowchart": {"htmlLabels": False},
}
_DRAW = """
async ([settings, name, source]) => {
  mermaid.initialize(settings);
  const { svg } = await mermaid.render(name, source);
  return svg.replace('style="', 'style="background: white; ');
}
"""


def wanted(root: Path) -> dict[str, str]:
    """Return the source of each diagram of the documents by the path of its picture."""
    pages = [path.read_text() for path in sorted((root / "docs").rglob("*.md"))]
    return {diagrams.picture(one): one for page in pages for one in diagrams.sources(page)}


def draw(sources: Mapping[str, str]) -> dict[str, str]:
    """Return the pictures of diagrams, as SVG, by the same keys."""
    # Needed to draw only, and slow to import.
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium.find(),
            # As root it has no sandbox of its own; it only sees our own diagrams.
            args=["--no-sandbox", "--font-render-hinting=none"],
        )
        page = browser.new_page()
        page.add_script_tag(content=npm.MERMAID.source())
        drawn = {
            path: page.evaluate(_DRAW, [_SETTINGS, f"d{Path(path).stem}", source])
            for path, source in sources.items()
        }
        browser.close()
    return drawn


def stale(root: Path, paths: Iterable[str]) -> tuple[set[str], set[str]]:
    """Return the pictures that are missing, and those that no document has any more."""
    found = {path.relative_to(root).as_posix() for path in (root / diagrams.DIRECTORY).glob("*")}
    return set(paths) - found, found - set(paths)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the diagrams or check them; returns the exit code."""
    parser = argparse.ArgumentParser(prog="diagrams", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing, fail when a picture is stale"
    )
    parser.add_argument(
        "--root", type=Path, default=REPOSITORY, help="the repository (default: the one this is in)"
    )
    options = parser.parse_args(arguments)
    sources = wanted(options.root)
    missing, unused = stale(options.root, sources)
    if options.check:
        for path in sorted(missing | unused):
            sys.stderr.write(f"{path} is not of the documents: run `make diagrams`\n")
        return int(bool(missing or unused))
    for path in sorted(unused):
        (options.root / path).unlink()
        sys.stdout.write(f"removed {path}\n")
    for path, picture in draw({path: sources[path] for path in sorted(missing)}).items():
        (options.root / path).parent.mkdir(parents=True, exist_ok=True)
        (options.root / path).write_text(picture + "\n")
        sys.stdout.write(f"wrote {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
