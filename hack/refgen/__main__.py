"""Command line: `python -m refgen` writes docs/reference, `--check` only looks."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from refgen import client, kinds, metrics, plugin, reasons, values

REPOSITORY = Path(__file__).resolve().parents[2]
DIRECTORY = Path("docs", "reference")


def render(root: Path) -> dict[str, str]:
    """Return the pages by their file names."""
    return {
        **kinds.render(),
        "chart-values.md": values.render(root / values.CHART),
        "client.md": client.render(root / "operator"),
        "kubectl-sandboxpool.md": plugin.render(),
        "metrics.md": metrics.render(),
        "reasons.md": reasons.render((root / reasons.SOURCE).read_text()),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages or check them; returns the exit code."""
    parser = argparse.ArgumentParser(prog="refgen", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing, fail when a page is stale"
    )
    parser.add_argument(
        "--root", type=Path, default=REPOSITORY, help="the repository (default: the one this is in)"
    )
    options = parser.parse_args(arguments)
    directory = options.root / DIRECTORY
    stale = 0
    for name, text in render(options.root).items():
        page = directory / name
        if page.exists() and page.read_text() == text:
            continue
        if options.check:
            sys.stderr.write(
                f"{DIRECTORY / name} does not match the code: run `make generate` and commit"
                " the result\n"
            )
            stale = 1
        else:
            directory.mkdir(parents=True, exist_ok=True)
            page.write_text(text)
            sys.stdout.write(f"wrote {DIRECTORY / name}\n")
    return stale


if __name__ == "__main__":
    sys.exit(main())
