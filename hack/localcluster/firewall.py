"""Taking back what an engine did to the machine's packet filter and does not take back itself."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from localcluster import process

COMMAND_SECONDS = 30
FAMILIES = ("iptables", "ip6tables")
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


def snapshot() -> dict[str, str]:
    """Return the rules of both families and the forwarding switch."""
    state = {name: _save(name) for name in FAMILIES}
    state["ip_forward"] = _FORWARDING.read_text().strip()
    return state


def restore(before: dict[str, str], bridge: str) -> None:
    """Delete the engine's chains and rules, and undo the policy that it set.

    Only what was not there before *and* is the engine's own is touched: its chains are named
    DOCKER*, its other rules name a DOCKER chain or its bridge. Rules of others stay.
    """
    for family in FAMILIES:
        old = set(_lines(before.get(family, "")))
        new = [line for line in _lines(_save(family)) if line not in old]
        for table, line in new:
            if line.startswith("-A") and ("DOCKER" in line or bridge in line):
                words = shlex.split(line)
                _change(family, table, "-D", *words[1:])
        chains = [
            (table, match.group(1))
            for table, line in new
            if (match := re.match(r":(DOCKER\S*) ", line))
            and not any(t == table and o.startswith(f"{match.group(0)}") for t, o in old)
        ]
        for action in ("-F", "-X"):
            for table, chain in chains:
                _change(family, table, action, chain)
        for table, line in new:
            policy = re.match(r":(FORWARD) (ACCEPT|DROP)", line)
            if policy and (_policy(old, table) or "ACCEPT") != policy.group(2):
                _change(family, table, "-P", "FORWARD", _policy(old, table) or "ACCEPT")
    if _FORWARDING.read_text().strip() != before.get("ip_forward", "1"):
        _FORWARDING.write_text(before["ip_forward"])


def _save(family: str) -> str:
    command = shutil.which(f"{family}-save", path="/usr/sbin:/sbin")
    if command is None:
        return ""
    return process.run([command], timeout=COMMAND_SECONDS, check=False)


def _lines(text: str) -> Iterator[tuple[str, str]]:
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith((":", "-")):
            # Counters of packets and bytes differ from one look to the next.
            yield table, re.sub(r" \[\d+:\d+\]$", "", line)


def _policy(lines: set[tuple[str, str]], table: str) -> str | None:
    for name, line in lines:
        if name == table and (match := re.match(r":FORWARD (ACCEPT|DROP)", line)):
            return match.group(1)
    return None


def _change(family: str, table: str, *arguments: str) -> None:
    command = shutil.which(family, path="/usr/sbin:/sbin") or family
    process.run([command, "-w", "5", "-t", table, *arguments], timeout=COMMAND_SECONDS, check=False)
