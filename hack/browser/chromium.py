"""Debian's Chromium: the one that is installed, or one unpacked into the cache.

Packages that the machine lacks are downloaded and unpacked, and not installed: that needs no rights
and changes nothing outside the cache. apt checks their signatures.
"""

import os
import re
import shutil
import stat
from pathlib import Path

from localcluster import cache, paths, process, progress

PACKAGES = ("chromium", "fonts-dejavu-core")
# Set it to a Chromium to use.
VARIABLE = "SANDBOXPOOL_CHROMIUM"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_DOWNLOAD_SECONDS = 900
_UNPACK_SECONDS = 300
_LOCK_SECONDS = 1200


def find() -> Path:
    """Return an executable Chromium, fetching it if need be.

    Raises:
        progress.StepError: It can neither be found nor fetched.
    """
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    if installed := shutil.which("chromium"):
        return Path(installed)
    with progress.step("find Chromium") as step:
        # What apt would install names the versions, and so what is in the cache.
        simulated = step.run(
            ["apt-get", "install", "--simulate", "--no-install-recommends", *PACKAGES],
            timeout=_UNPACK_SECONDS,
        )
        missing = re.findall(r"^Inst (\S+) \((\S+) ", simulated, re.MULTILINE)
        wanted = [f"{name}={version}" for name, version in missing]
        if not any(name == "chromium" for name, _ in missing):
            raise progress.StepError("find Chromium", "apt knows no package chromium")
        target = paths.cache_dir() / "chromium" / cache.digest(*wanted)
        with cache.lock(target.with_suffix(".lock"), timeout=_LOCK_SECONDS):
            if not target.exists():
                _unpack(step, wanted, target)
    return target / "chromium"


def _unpack(step: progress.Step, wanted: list[str], target: Path) -> None:
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    downloads = partial / "debs"
    downloads.mkdir(parents=True)
    step.run(["apt-get", "download", *wanted], timeout=_DOWNLOAD_SECONDS, cwd=downloads)
    for package in sorted(downloads.glob("*.deb")):
        step.run(["dpkg-deb", "--extract", str(package), str(partial)], timeout=_UNPACK_SECONDS)
    shutil.rmtree(downloads)
    libraries = partial / _LIBRARIES
    directories = sorted({file.parent for file in libraries.rglob("*.so*")})
    search = ":".join(f"$here/{one.relative_to(partial)}" for one in directories)
    start = partial / "chromium"
    start.write_text(
        "#!/bin/sh\n"
        'here=$(dirname "$(readlink -f "$0")")\n'
        f'LD_LIBRARY_PATH="{search}" exec "$here/usr/lib/chromium/chromium" "$@"\n'
    )
    start.chmod(start.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    cache.publish(partial, target)


def version(executable: Path) -> str:
    """Return what a Chromium says it is."""
    return process.run([str(executable), "--version"], timeout=60).strip()
