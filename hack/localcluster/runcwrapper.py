"""An OCI runtime: runc for machines whose root lacks CAP_SYS_RESOURCE.

A privileged container asks for every capability, and runc fails on one that it cannot give. This
program takes the capability, the resource limits and negative OOM scores out of the container's
configuration and becomes runc. The engine runs it once per container and per exec, hence plain
functions and nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

RUNC = "/usr/sbin/runc"
MISSING = "CAP_SYS_RESOURCE"


def soften(process: dict[str, Any]) -> None:
    """Take out of an OCI process what cannot be granted."""
    for names in (process.get("capabilities") or {}).values():
        if names and MISSING in names:
            names.remove(MISSING)
    if (process.get("oomScoreAdj") or 0) < 0:
        del process["oomScoreAdj"]
    process.pop("rlimits", None)


def rewrite(arguments: list[str]) -> None:
    """Edit the file that a create, run or exec names."""
    words = [word for word in arguments if not word.startswith("-")]
    if "create" in words or "run" in words:
        file = Path(_option(arguments, "--bundle", "-b") or ".") / "config.json"
    elif "exec" in words and (named := _option(arguments, "--process", "-p")):
        file = Path(named)
    else:
        return
    content = json.loads(file.read_text())
    soften(content["process"] if file.name == "config.json" else content)
    file.write_text(json.dumps(content))


def _option(arguments: list[str], *names: str) -> str | None:
    for position, word in enumerate(arguments):
        for name in names:
            if word == name and position + 1 < len(arguments):
                return arguments[position + 1]
            if word.startswith(f"{name}="):
                return word.partition("=")[2]
    return None


if __name__ == "__main__":
    rewrite(sys.argv[1:])
    os.execv(RUNC, [RUNC, *sys.argv[1:]])
