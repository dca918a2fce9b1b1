"""Container images written without an engine, in the format of ``docker save``."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Of the same inputs the same image: no time of making may enter.
EPOCH = "1970-01-01T00:00:00Z"
COMPRESSION = 1


@dataclass(frozen=True)
class Image:
    """What an image holds.

    Attributes:
        tag: Full name with a tag.
        files: Path in the image -> file to copy.
        links: Path in the image -> target of a symbolic link.
        directories: Empty directories.
        command: Default command.
        env: Environment, as NAME=value.
    """

    tag: str
    files: Mapping[str, Path]
    links: Mapping[str, str] = field(default_factory=dict)
    directories: Sequence[str] = ("tmp",)
    command: Sequence[str] = ()
    env: Sequence[str] = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",)


def write(image: Image, target: Path) -> None:
    """Write the image as a tar file that ``ctr images import`` and ``docker load`` read."""
    layer = _layer(image)
    configuration = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": EPOCH,
            "config": {"Cmd": list(image.command) or None, "Env": list(image.env)},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_sha256(layer)}"]},
            "history": [{"created": EPOCH, "created_by": "localcluster"}],
        }
    ).encode()
    name = f"{_sha256(configuration)}.json"
    manifest = [{"Config": name, "RepoTags": [image.tag], "Layers": ["layer.tar.gz"]}]
    with tarfile.open(target, "w") as tar:
        _add(tar, name, configuration)
        _add(tar, "layer.tar.gz", gzip.compress(layer, COMPRESSION, mtime=0))
        _add(tar, "manifest.json", json.dumps(manifest).encode())


def _layer(image: Image) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        parents = {
            str(parent)
            for path in [*image.files, *image.links, *(f"{d}/x" for d in image.directories)]
            for parent in Path(path).parents
            if str(parent) != "."
        }
        for directory in sorted(parents):
            entry = tarfile.TarInfo(directory)
            entry.type = tarfile.DIRTYPE
            entry.mode = 0o1777 if directory == "tmp" else 0o755
            tar.addfile(entry)
        for path, source in sorted(image.files.items()):
            _add(tar, path, source.read_bytes(), mode=source.stat().st_mode & 0o777)
        for path, to in sorted(image.links.items()):
            entry = tarfile.TarInfo(path)
            entry.type = tarfile.SYMTYPE
            entry.linkname = to
            tar.addfile(entry)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    entry.mode = mode
    tar.addfile(entry, io.BytesIO(data))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
