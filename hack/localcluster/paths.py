"""Where things are kept: the repository, the cache and the state of what runs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
REPOSITORY = PACKAGE.parent.parent
COMPONENTS = PACKAGE / "components"


def cache_dir() -> Path:
    """Return the directory of what is slow to make and never changes once made."""
    if override := os.environ.get("SANDBOXPOOL_CACHE"):
        return Path(override).resolve()
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base).resolve() / "sandboxpool"


def state_dir() -> Path:
    """Return the directory of what belongs to a running cluster: kubeconfig, logs, locks."""
    if override := os.environ.get("SANDBOXPOOL_STATE"):
        return Path(override).resolve()
    return cache_dir() / "state"


def log_dir() -> Path:
    """Return the directory of the steps' log files."""
    return state_dir() / "logs"


def runtime_dir() -> Path:
    """Return a short path for sockets: a Unix socket's path must fit in 107 bytes."""
    name = hashlib.sha256(str(state_dir()).encode()).hexdigest()[:8]
    return Path("/run") / f"sandboxpool-{name}"
