"""Command line: `python -m dashboards` writes the dashboards, `--check` only looks."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dashboards import fleet, operator, pools
from dashboards.board import to_json

REPOSITORY = Path(__file__).resolve().parents[2]
# In the chart, which can read no file outside of itself.
DIRECTORY = Path("charts", "sandboxpool", "dashboards")


def render() -> dict[str, str]:
    """Return the text of each dashboard by its file name."""
    return {
        f"{name}.json": to_json(build())
        for name, build in (
            ("fleet", fleet.build),
            ("pools", pools.build),
            ("operator", operator.build),
        )
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the dashboards or check them; returns the exit code."""
    parser = argparse.ArgumentParser(prog="dashboards", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing, fail when a file is stale"
    )
    parser.add_argument(
        "--root", type=Path, default=REPOSITORY, help="the repository (default: the one this is in)"
    )
    options = parser.parse_args(arguments)
    directory = options.root / DIRECTORY
    files = render()
    found = {path.name: path.read_text() for path in directory.glob("*.json")}
    stale = sorted(name for name in files | found if files.get(name) != found.get(name))
    if options.check:
        for name in stale:
            sys.stderr.write(
                f"{DIRECTORY / name} does not match hack/dashboards: run `make generate` and commit"
                " the result\n"
            )
        return 1 if stale else 0
    directory.mkdir(parents=True, exist_ok=True)
    for name in stale:
        if name in files:
            (directory / name).write_text(files[name])
            sys.stdout.write(f"wrote {DIRECTORY / name}\n")
        else:
            (directory / name).unlink()
            sys.stdout.write(f"removed {DIRECTORY / name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
