"""The runtime handlers in the containerd configuration of a node."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

from localcluster import builds, host
from localcluster.engine import Engine

CONFIG = "/etc/containerd/config.toml"
RUNSC_CONFIG = "/etc/containerd/runsc.toml"
RUNSC_SHIM = "/usr/local/bin/containerd-shim-runsc-v1"
RUNC_SHIM = "/usr/local/bin/containerd-shim-runc-v2"
# Where the broken handlers' shim should be.
KATA_SHIM = "/opt/kata/bin/containerd-shim-kata-v2"
RESTART_SECONDS = 120.0

# The table of a CRI runtime in containerd's configuration, in the form that kind uses.
_TABLE = 'plugins."io.containerd.grpc.v1.cri".containerd.runtimes'
_GVISOR = """
[{table}.{name}]
  runtime_type = "io.containerd.runsc.v1"
  [{table}.{name}.options]
    TypeUrl = "io.containerd.runsc.v1.options"
    ConfigPath = "/etc/containerd/runsc.toml"
"""
_RUNSC = """\
[runsc_config]
  platform = "systrap"
"""
_BROKEN = """
[{table}.{name}]
  runtime_type = "io.containerd.kata.v2"
  runtime_path = "{shim}"
"""
GVISOR = "runsc"
# What every node of kind reports; all are runc.
BUILT_IN = {"", "runc", "test-handler"}


def handlers_in(text: str) -> list[str]:
    """Return the runtime handlers that a containerd configuration defines."""
    found = re.findall(r'^\s*\[.*\.runtimes\.["\']?([\w-]+)["\']?\]\s*$', text, re.MULTILINE)
    return sorted(set(found))


def edit_handlers(text: str, *, add: Iterable[str], remove: Iterable[str]) -> str:
    """Return a containerd configuration with runtime handlers added and removed.

    The handler `runsc` works; any other that is added is listed by the node, but its shim does
    not exist, so pods fail with it: that is what it is for.
    """
    gone = {*remove, *add}
    kept: list[str] = []
    skipping = False
    for line in text.splitlines():
        if re.match(r"\s*\[", line):
            table = re.search(r'\.runtimes\.["\']?([\w-]+)["\']?(\.|\])', line)
            skipping = table is not None and table.group(1) in gone
        if not skipping:
            kept.append(line)
    blocks = [
        (_GVISOR if name == GVISOR else _BROKEN).format(table=_TABLE, name=name, shim=KATA_SHIM)
        for name in add
    ]
    return "\n".join(kept) + "\n" + "".join(blocks)


def change(
    engine: Engine, node: str, *, add: Iterable[str] = (), remove: Iterable[str] = ()
) -> None:
    """Change the handlers of a node and restart its containerd; pods go on running."""
    add = list(add)
    if GVISOR in add:
        _install_gvisor(engine, node)
    text = edit_handlers(read(engine, node), add=add, remove=list(remove))
    engine.docker("exec", "-i", node, "sh", "-c", f"cat > {CONFIG}", stdin=text)
    engine.docker("exec", node, "systemctl", "restart", "containerd")
    deadline = time.monotonic() + RESTART_SECONDS
    probe = "ctr version >/dev/null 2>&1 && echo up"
    while not engine.docker("exec", node, "sh", "-c", probe, check=False):
        if time.monotonic() > deadline:
            raise TimeoutError(f"containerd on {node} does not answer after its restart")
        time.sleep(0.2)


def _install_gvisor(engine: Engine, node: str) -> None:
    """Put what the handler needs into a node, also into one that was made without it."""
    if not engine.owned:
        # A node image of our own has the programs; kind's has not.
        for name, path in builds.ensure(["runsc", "containerd-shim-runsc-v1"]).items():
            engine.docker("cp", str(path), f"{node}:/usr/local/bin/{name}")
    text = _RUNSC
    if host.cgroup_v1():
        # Nested groups of version 1 cannot be made from inside; limits then go unenforced.
        text += '  ignore-cgroups = "true"\n'
    engine.docker("exec", "-i", node, "sh", "-c", f"cat > {RUNSC_CONFIG}", stdin=text)


def read(engine: Engine, node: str) -> str:
    """Return the containerd configuration of a node."""
    return engine.docker("exec", node, "cat", CONFIG)
