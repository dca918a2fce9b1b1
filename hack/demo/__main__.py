"""The command line: ``python -m demo up|down``."""

from __future__ import annotations

import argparse
import sys

from demo import terminal, tour
from demo.kube import DemoError
from localcluster import kindcluster, process, progress


def main() -> int:
    """Run the demo, or remove its cluster, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("up", help="make the local cluster, install the operator and show it")
    commands.add_parser("down", help="remove the local cluster and all that is in it")
    command = parser.parse_args().command
    try:
        if command == "up":
            tour.show()
        else:
            kindcluster.down()
    except (DemoError, progress.StepError, process.CommandError, OSError) as error:
        terminal.failure(str(error), getattr(error, "output", ""))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
