"""What a figure was measured on: without it a figure says nothing."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from localcluster import builds, process

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = resource.getpagesize()
CORES = os.cpu_count() or 1


def describe() -> dict[str, str]:
    """Date, machine and versions, as the head of a report."""
    apiserver = str(builds.ensure(["kube-apiserver"])["kube-apiserver"])
    etcd = str(builds.ensure(["etcd"])["etcd"])
    return {
        **here(),
        "kube-apiserver": _version(apiserver, "--version"),
        "etcd": _version(etcd, "--version"),
    }


def here() -> dict[str, str]:
    """Date and machine alone, for a benchmark on a cluster that has its own versions."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": process.run(["git", "rev-parse", "--short", "HEAD"], timeout=10).strip(),
        "machine": f"{CORES} CPUs, {_model()}, {_memory_gib():.0f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def resident_mib(pid: int) -> float:
    """Memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES / 2**20


def _version(*command: str) -> str:
    answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    lines = answer.stdout.splitlines()
    return lines[0].partition(":")[2].strip() or lines[0] if lines else "unknown"


def _model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_gib() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal"):
            return int(line.split()[1]) / 2**20
    return 0.0
