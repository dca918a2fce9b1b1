"""Tar archives as they stream through a command's input and output, without I/O."""

import posixpath
import tarfile
import time
from collections.abc import Iterator

_BLOCK = 512
END = bytes(2 * _BLOCK)


def header(name: str, *, size: int = 0, mode: int = 0o644, directory: bool = False) -> bytes:
    """Return the header of a member.

    In GNU's format: BusyBox passes over names in the headers of POSIX's.
    """
    member = tarfile.TarInfo(name)
    member.size = 0 if directory else size
    member.mode = mode
    member.mtime = int(time.time())
    member.type = tarfile.DIRTYPE if directory else tarfile.REGTYPE
    return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def link(name: str, target: str) -> bytes:
    """Return the header of a symbolic link, which is all there is of it."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mtime = tarfile.SYMTYPE, target, int(time.time())
    return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def padding(size: int) -> bytes:
    """Return what follows a member's content."""
    return bytes(-size % _BLOCK)


def place(path: str) -> tuple[str, str]:
    """Return the directory to unpack in and the member's name, for a path in the sandbox.

    Raises:
        ValueError: The path names no file, or one outside the working directory.
    """
    if not path or "\0" in path:
        raise ValueError(f"{path!r} is no path")
    clean = posixpath.normpath(path)
    if clean.startswith("/"):
        return "/", clean.lstrip("/") or "."
    if clean.split("/")[0] == "..":
        raise ValueError(f"{path!r} leads out of the working directory: use an absolute path")
    return ".", clean


def split(path: str) -> tuple[str, str]:
    """Return a path's directory and its last part, for `tar -C`."""
    base, name = place(path)
    whole = posixpath.join(base, name)
    directory, last = posixpath.split(posixpath.normpath(whole))
    return directory or ".", last or "."


def without_first_part(members: Iterator[tarfile.TarInfo]) -> Iterator[tarfile.TarInfo]:
    """Return the members of a directory under names that begin in it; the directory falls away."""
    for member in members:
        _, _, name = _relative(member.name).partition("/")
        if not name:
            continue
        linkname = member.linkname
        if member.islnk():
            linkname = _relative(linkname).partition("/")[2]
        yield member.replace(name=name, linkname=linkname, deep=False)


def _relative(name: str) -> str:
    return name.removeprefix("./")
