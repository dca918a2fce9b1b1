"""Prometheus and promtool from this machine's distribution, and a container image of them.

Both are dynamically linked, so the image holds this machine's own C library: it is the one that the
package was built for.
"""

import os
import re
import shutil
import tempfile
from pathlib import Path

from localcluster import archive, cache, host, images, paths, process, progress
from localcluster import engine as engines

PACKAGE = "prometheus"
PROGRAMS = ("prometheus", "promtool")
DOWNLOAD_SECONDS = 300
COMMAND_SECONDS = 60
LOAD_SECONDS = 300
REPOSITORY = "localhost/sandboxpool-prometheus"


def program(name: str) -> Path:
    """Return the path of `prometheus` or `promtool`; the package is fetched once a machine.

    Raises:
        StepError: The package cannot be fetched; the text says what to install.
    """
    if (installed := shutil.which(name)) is not None:
        return Path(installed)
    folder = _folder()
    with cache.lock(folder.with_suffix(".lock"), timeout=2 * DOWNLOAD_SECONDS):
        if not folder.exists():
            _fetch(folder)
    return folder / name


def _folder() -> Path:
    """Return where the programs of this release of the distribution are cached."""
    release = Path("/etc/os-release").read_text()
    key = cache.digest(PACKAGE, *re.findall(r"^(?:ID|VERSION_ID)=.*$", release, re.MULTILINE))
    return paths.cache_dir() / "bin" / PACKAGE / key


def _fetch(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        progress.step(f"download the package {PACKAGE}") as step,
        tempfile.TemporaryDirectory(dir=folder.parent) as scratch,
    ):
        if shutil.which("apt-get") is None:
            raise OSError(f"please install {' and '.join(PROGRAMS)}")
        # apt verifies the package by the signed list; nothing is installed.
        download = ["apt-get", "download", "-o", "APT::Sandbox::User=root", PACKAGE]
        try:
            step.run(download, timeout=DOWNLOAD_SECONDS, cwd=Path(scratch))
        except process.CommandError:
            # The lists are missing, or so old that the file has left the mirror.
            host.require_root(f"`apt-get update`, without which {PACKAGE} is not found,")
            step.run(["apt-get", "update"], timeout=DOWNLOAD_SECONDS)
            step.run(download, timeout=DOWNLOAD_SECONDS, cwd=Path(scratch))
        (package,) = Path(scratch).glob("*.deb")
        unpacked = Path(scratch) / "unpacked"
        step.run(["dpkg-deb", "-x", str(package), str(unpacked)], timeout=COMMAND_SECONDS)
        kept = Path(scratch) / "programs"
        kept.mkdir()
        for name in PROGRAMS:
            shutil.copy(unpacked / "usr/bin" / name, kept / name)
        cache.publish(kept, folder)


def load_image() -> str:
    """Put an image of Prometheus into all nodes that do not have it, and return its tag."""
    engine = engines.current()
    if engine is None:
        raise progress.StepError("images", "no cluster is up: `python -m localcluster up`")
    files = _files(program("prometheus"))
    tag = f"{REPOSITORY}:{cache.digest(*(file.read_bytes() for file in files.values()))}"
    if not engine.has_image(tag):
        with (
            progress.step("make the image of Prometheus") as step,
            tempfile.TemporaryDirectory(prefix="localcluster-prometheus-") as scratch,
        ):
            tar = Path(scratch) / "image.tar"
            image = archive.Image(tag, files, directories=("tmp", "data"), command=["/prometheus"])
            archive.write(image, tar)
            engine.docker("load", "-i", str(tar), timeout=LOAD_SECONDS, log=step.log)
    images.load_image(tag)
    return tag


def _files(binary: Path) -> dict[str, Path]:
    """Return the binary and what it is linked with, by their paths in the image."""
    listed = process.run(["ldd", str(binary)], timeout=COMMAND_SECONDS, env={**os.environ})
    libraries = re.findall(r"(/\S+) \(0x", listed)
    # Where the loader looks for them, whatever links lie between; real files in the image.
    return {
        "prometheus": binary,
        **{library.lstrip("/"): Path(library).resolve() for library in libraries},
    }
