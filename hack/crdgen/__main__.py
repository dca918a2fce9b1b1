"""Command line: `python -m crdgen` writes the CRDs, `--check` only looks."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from crdgen.output import render, stale, write

REPOSITORY = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the CRDs or check them; returns the exit code."""
    parser = argparse.ArgumentParser(prog="crdgen", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing, fail when a file is stale"
    )
    parser.add_argument(
        "--root", type=Path, default=REPOSITORY, help="the repository (default: the one this is in)"
    )
    options = parser.parse_args(arguments)
    files = render()
    if options.check:
        problems = stale(options.root, files)
        if problems:
            sys.stderr.write(
                "The CRDs do not match the models; run `python -m crdgen` and commit the result:\n"
                + "".join(f"  {problem}\n" for problem in problems)
            )
        return 1 if problems else 0
    write(options.root, files)
    sys.stdout.writelines(f"wrote {path}\n" for path in files)
    return 0


if __name__ == "__main__":
    sys.exit(main())
