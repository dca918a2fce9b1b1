"""Single files of npm packages, cached: scripts for a page of ours, no part of the product."""

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

from localcluster import cache, paths, process

_SECONDS = 120


@dataclass(frozen=True)
class Script:
    """A script in a package.

    Attributes:
        package: The package's name.
        version: Its version.
        integrity: The digest of its archive, as npm states it.
        file: The path of the script in the package.
    """

    package: str
    version: str
    integrity: str
    file: str

    def source(self) -> str:
        """Return the script, fetching it if need be.

        Raises:
            process.CommandError: npm is missing or cannot fetch it.
            ValueError: The package is not the one that was pinned.
        """
        target = paths.cache_dir() / self.package / f"{self.version}.js"
        if not target.exists():
            with cache.lock(target.with_suffix(".lock"), timeout=_SECONDS):
                if not target.exists():
                    self._fetch(target)
        return target.read_text()

    def _fetch(self, target: Path) -> None:
        wanted = f"{self.package}@{self.version}"
        directory = target.parent
        command = ["npm", "pack", wanted, "--json", "--pack-destination", str(directory)]
        packed = json.loads(process.run(command, timeout=_SECONDS))[0]
        if packed["integrity"] != self.integrity:
            raise ValueError(f"{wanted} is not what it was: {packed['integrity']}")
        with tarfile.open(directory / packed["filename"]) as archive:
            script = archive.extractfile(f"package/{self.file}")
            assert script is not None, f"{wanted} has always had {self.file}"
            partial = target.with_suffix(".partial")
            partial.write_bytes(script.read())
        (directory / packed["filename"]).unlink()
        cache.publish(partial, target)


# Judges how accessible a page is.
AXE = Script(
    "axe-core",
    "4.14.1",
    "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09"
    "a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
    "axe.min.js",
)
# Draws diagrams.
MERMAID = Script(
    "mermaid",
    "11.17.2",
    "sha512-V6K3C8EBdEsPFZXSKMJe6ppQOENxuHARr9GvHX4h"
    "h47lAbhMRD9qf4oEK7LoaRQxULMa80/qt5gHO73aCleBBg==",
    "dist/mermaid.min.js",
)
