"""axe-core from npm, cached: it is put into a page by tests and is no part of the product."""

import json
import tarfile
from pathlib import Path

from localcluster import cache, paths, process

VERSION = "4.14.1"
INTEGRITY = (
    "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09"
    "a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
)
_SECONDS = 120


def source() -> str:
    """Return the script of axe-core, fetching it if need be.

    Raises:
        process.CommandError: npm is missing or cannot fetch it.
    """
    target = paths.cache_dir() / "axe-core" / f"axe-{VERSION}.min.js"
    if not target.exists():
        with cache.lock(target.with_suffix(".lock"), timeout=_SECONDS):
            if not target.exists():
                _fetch(target)
    return target.read_text()


def _fetch(target: Path) -> None:
    directory = target.parent
    command = ["npm", "pack", f"axe-core@{VERSION}", "--json", "--pack-destination", str(directory)]
    packed = json.loads(process.run(command, timeout=_SECONDS))[0]
    if packed["integrity"] != INTEGRITY:
        raise ValueError(f"axe-core {VERSION} is not what it was: {packed['integrity']}")
    with tarfile.open(directory / packed["filename"]) as archive:
        script = archive.extractfile("package/axe.min.js")
        assert script is not None, "axe-core has always had this file"
        partial = target.with_suffix(".partial")
        partial.write_bytes(script.read())
    (directory / packed["filename"]).unlink()
    cache.publish(partial, target)
