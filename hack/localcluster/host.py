"""What this machine is, and the Debian packages that it lacks."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from localcluster import progress

_CAP_SYS_RESOURCE = 24
_POLICY = Path("/usr/sbin/policy-rc.d")
APT_SECONDS = 1200


@cache
def has_sys_resource() -> bool:
    """Tell whether processes may raise resource limits and lower their OOM score."""
    status = Path("/proc/self/status").read_text()
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return match is not None and bool(int(match.group(1), 16) >> _CAP_SYS_RESOURCE & 1)


@cache
def cgroup_v1() -> bool:
    """Tell whether the machine has version 1 (or the hybrid layout) of control groups."""
    return not Path("/sys/fs/cgroup/cgroup.controllers").exists()


def require_root(why: str) -> None:
    """Raise an error that says why root is needed, unless this is root."""
    if os.geteuid() != 0:
        raise OSError(f"{why} needs root")


def ensure_commands(commands: Mapping[str, str]) -> None:
    """Install the Debian packages of the commands (command -> package) that are missing."""
    missing = sorted({package for name, package in commands.items() if not _which(name)})
    if not missing:
        return
    with progress.step(f"install {' '.join(missing)}") as step:
        if not shutil.which("apt-get"):
            raise OSError(f"please install {', '.join(missing)}")
        require_root(f"installing {', '.join(missing)}")
        with ExitStack() as stack:
            _forbid_daemons(stack)
            step.run(["apt-get", "update"], timeout=APT_SECONDS)
            step.run(
                ["apt-get", "install", "-y", "--no-install-recommends", *missing],
                timeout=APT_SECONDS,
                env={"DEBIAN_FRONTEND": "noninteractive"},
            )


def _which(command: str) -> str | None:
    # An ordinary PATH need not have the directories of the system's tools.
    return shutil.which(command, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _forbid_daemons(stack: ExitStack) -> None:
    # invoke-rc.d asks this program; 101 means "do not start", so no engine starts by itself.
    if _POLICY.exists():
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    stack.callback(_POLICY.unlink)


def debian_mirror() -> str | None:
    """Return the Debian mirror that this machine itself uses, or None where it is no Debian."""
    if not re.search(r"^ID=debian$", Path("/etc/os-release").read_text(), re.MULTILINE):
        return None
    lists = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    text = "\n\n".join(file.read_text(errors="replace") for file in lists if file.is_file())
    # Of all sources only those of Debian proper have a suite "NAME-updates".
    for line in re.findall(r"^deb\s+(?:\[[^]]*\]\s+)?(\S+ \S+)", text, re.MULTILINE):
        address, suite = line.split()
        if suite.endswith("-updates"):
            return str(address)
    for paragraph in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^(URIs|Suites):\s*(.*)$", paragraph, re.MULTILINE))
        if "-updates" in fields.get("Suites", ""):
            return str(fields["URIs"].split()[0])
    return None
