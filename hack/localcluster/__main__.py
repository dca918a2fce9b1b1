"""The command line: ``python -m localcluster COMMAND``."""

from __future__ import annotations

import argparse
import sys

from localcluster import controlplane, process, progress, tools


def main() -> int:
    """Run one command and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m localcluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("controlplane", help="run kube-apiserver and etcd alone until interrupted")
    commands.add_parser("path", help="print the path of a binary").add_argument("name")
    arguments = parser.parse_args()
    try:
        if arguments.command == "controlplane":
            controlplane.run_in_foreground()
        elif arguments.command == "path":
            print(tools.path(arguments.name))
    except (progress.StepError, process.CommandError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
