"""The command line: ``python -m localcluster COMMAND``."""

from __future__ import annotations

import argparse
import sys

from localcluster import controlplane, images, kindcluster, process, progress, tools

COMMANDS = {
    "up": "make the cluster run and print the path of its kubeconfig",
    "down": "remove the cluster, and the engine if it was started by `up`",
    "status": "show what runs, and the runtime handlers of the nodes",
    "kubeconfig": "print the path of the kubeconfig",
    "load-image": "put an image of the engine into all nodes",
    "build-operator-image": "build the operator's image and put it into all nodes",
    "controlplane": "run kube-apiserver and etcd alone until interrupted",
    "path": "print the path of a binary such as kubectl or helm",
}
WITH_NAME = ("load-image", "path")


def main() -> int:
    """Run one command and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m localcluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if name in WITH_NAME:
            command.add_argument("name")
    arguments = parser.parse_args()
    try:
        text = _run(arguments.command, getattr(arguments, "name", ""))
    except (progress.StepError, process.CommandError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, process.CommandError) and error.output:
            print(error.output, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if text:
        print(text)
    return 0


def _run(command: str, name: str) -> str:
    match command:
        case "up":
            path = kindcluster.up()
            images.load_sample_image()
            return str(path)
        case "down":
            kindcluster.down()
        case "status":
            return kindcluster.status()
        case "kubeconfig":
            return str(kindcluster.kubeconfig())
        case "load-image":
            images.load_image(name)
        case "build-operator-image":
            return images.build_operator_image()
        case "controlplane":
            controlplane.run_in_foreground()
        case "path":
            return str(tools.path(name))
    return ""


if __name__ == "__main__":
    sys.exit(main())
