"""Virtual environments for programs that do not fit into the project's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from localcluster import cache
from localcluster.paths import cache_dir

_INSTALL_SECONDS = 600
_CHECK_SECONDS = 30


def find_python(least: tuple[int, int]) -> Path | None:
    """Return an interpreter that is at least of a version; None where there is none."""
    check = f"import sys; sys.exit(sys.version_info < {least})"
    for candidate in _candidates(least):
        # A shim of pyenv is there for each version, and fails for those that are not selected.
        done = subprocess.run([candidate, "-c", check], capture_output=True, timeout=_CHECK_SECONDS)
        if done.returncode == 0:
            return Path(candidate)
    return None


def _candidates(least: tuple[int, int]) -> Iterator[str]:
    yield sys.executable
    for minor in range(least[1], least[1] + 5):
        if found := shutil.which(f"python{least[0]}.{minor}"):
            yield found
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from (str(path) for path in sorted(pyenv.glob("versions/3.*/bin/python3")))


def environment(python: Path, requirements: Path) -> Path:
    """Return the programs of a virtual environment with just these requirements, from the cache."""
    version = subprocess.run(
        [python, "-VV"], check=True, capture_output=True, text=True, timeout=_CHECK_SECONDS
    ).stdout
    name = cache.digest(version, str(python), requirements.read_bytes())
    place = cache_dir() / "environments" / name
    complete = place / "complete"
    with cache.lock(place.with_suffix(".lock"), timeout=_INSTALL_SECONDS):
        if not complete.exists():
            subprocess.run(
                [python, "-m", "venv", "--clear", place], check=True, timeout=_INSTALL_SECONDS
            )
            subprocess.run(
                [
                    *(sys.executable, "-m", "uv", "pip", "install", "--quiet"),
                    *("--python", place / "bin/python"),
                    *("--require-hashes", "-r", requirements),
                ],
                check=True,
                timeout=_INSTALL_SECONDS,
            )
            complete.touch()
    return place / "bin"
