"""Content hashes, atomic publication of files, and locks between processes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_POLL_SECONDS = 0.2


def digest(*parts: str | bytes) -> str:
    """Return a short hash of the parts; where one ends and the next begins matters."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(f"{len(data)}:".encode())
        total.update(data)
    return total.hexdigest()[:16]


def tree_digest(roots: Iterable[Path], *, base: Path) -> str:
    """Return a hash of the names, modes and contents of files and of all files in directories."""
    parts: list[str | bytes] = []
    for root in roots:
        files = sorted(root.rglob("*")) if root.is_dir() else [root]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                executable = os.access(file, os.X_OK)
                parts += [f"{file.relative_to(base)} {executable}", file.read_bytes()]
    return digest(*parts)


def publish(source: Path, target: Path) -> None:
    """Move a finished file into the cache so that nobody ever sees half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)


@contextmanager
def lock(path: Path, *, timeout: float) -> Iterator[None]:
    """Hold an exclusive lock; it vanishes with the process, so it can never be stale."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout
    with path.open("w") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another process has held {path} for too long") from None
                time.sleep(LOCK_POLL_SECONDS)
        yield
