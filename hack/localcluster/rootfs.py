"""Debian root file systems made by debootstrap, cached as tar files."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from localcluster import cache, host, paths, progress

# systemd 252: newer ones refuse control groups of version 1.
SUITE = "bookworm"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
BOOTSTRAP_SECONDS = 1800
TAR_SECONDS = 600

# Nobody reads these in a container.
UNREAD = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/bash-completion",
    "usr/share/zoneinfo",
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/cache/debconf",
    "var/log",
)


def archive(name: str, packages: Sequence[str]) -> Path:
    """Return a tar file of a minimal Debian with the packages, making it if need be."""
    key = cache.digest(SUITE, *packages, *UNREAD)
    target = paths.cache_dir() / "rootfs" / f"{name}-{key}.tar"
    if target.exists():
        return target
    host.ensure_commands({"debootstrap": "debootstrap"})
    with progress.step(f"debootstrap {name}") as step:
        host.require_root("debootstrap")
        root = target.parent / f".{name}-{key}"
        shutil.rmtree(root, ignore_errors=True)
        try:
            _bootstrap(step, root, packages)
            partial = target.with_suffix(".partial")
            step.run(
                ["tar", "--numeric-owner", "-C", str(root), "-cf", str(partial), "."],
                timeout=TAR_SECONDS,
            )
            cache.publish(partial, target)
        finally:
            shutil.rmtree(root, ignore_errors=True)
    return target


def _bootstrap(step: progress.Step, root: Path, packages: Sequence[str]) -> None:
    mirror = host.debian_mirror()
    downloads = paths.cache_dir() / "debs"
    downloads.mkdir(parents=True, exist_ok=True)
    root.mkdir(parents=True)
    step.run(
        [
            *("debootstrap", "--variant=minbase", f"--keyring={KEYRING}"),
            *(f"--cache-dir={downloads}", f"--include={','.join(packages)}"),
            *(SUITE, str(root), *([mirror] if mirror else [])),
        ],
        timeout=BOOTSTRAP_SECONDS,
        env={"DEBIAN_FRONTEND": "noninteractive", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    # The mirror is this machine's business, not that of who gets the image.
    (root / "etc/apt/sources.list").write_text("")
    for name in UNREAD:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir(parents=True, exist_ok=True)


def extract(tar: Path, root: Path, step: progress.Step) -> None:
    """Unpack a root file system into a fresh directory."""
    root.mkdir(parents=True)
    step.run(["tar", "--numeric-owner", "-C", str(root), "-xpf", str(tar)], timeout=TAR_SECONDS)
