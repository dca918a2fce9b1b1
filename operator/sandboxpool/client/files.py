"""Files and folders, into a sandbox and out of it.

Nothing is installed in the sandbox for it: files travel as tar archives where the image has tar,
and through a shell with `cat` where it has not.
"""

import contextlib
import os
import shutil
import stat
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from sandboxpool.client import commands
from sandboxpool.client.commands import Input, Result, Target
from sandboxpool.client.errors import CommandNotStarted, FileError, FilesUnsupported
from sandboxpool.client.io import CHUNK
from sandboxpool.client.wire import archive

Source = bytes | bytearray | BinaryIO | Path
RemotePath = str | PurePosixPath

DEFAULT_READ_LIMIT = 256 * 1024 * 1024
_IN_MEMORY = 4 * 1024 * 1024

# Scripts read their input to its end when they fail, too: containerd may never end a command that
# leaves input unread (containerd issue 12734).
_UNPACK = 'tar -xf - -C "$1" || { code=$?; cat >/dev/null; exit "$code"; }'
# What a shell says of a program that is not there.
_NOT_FOUND = 127
# $1: the file, $2: its mode, $3: its size. A file that is there is replaced when the new one is
# complete.
_WRITE = (
    'write() { d=${1%/*}; [ "$d" = "$1" ] || [ -z "$d" ] || mkdir -p "$d" || return; '
    '[ ! -d "$1" ] || { echo "$1: Is a directory" >&2; return 1; }; '
    't="$1.$$.tmp"; { cat >"$t" && [ "$(wc -c <"$t")" -eq "$3" ] && chmod "$2" "$t"'
    ' && mv -f "$t" "$1"; } || { rm -f "$t"; return 1; }; }; '
    'write "$@" || { cat >/dev/null; exit 1; }'
)
_MAKE = 'mkdir -p "$1" && chmod "$2" "$1"'
# Prints each file and directory, with a letter in front and a zero byte behind.
_LIST = (
    'w() { for f in "$1"/* "$1"/.[!.]* "$1"/..?*; do '
    'if [ -d "$f" ] && [ ! -L "$f" ]; then printf "d%s\\0" "$f"; w "$f"; '
    'elif [ -f "$f" ]; then printf "f%s\\0" "$f"; fi; done; }; '
    'if [ -d "$1" ]; then printf "d\\0"; cd "$1" && w .; '
    'elif [ -e "$1" ]; then printf "f\\0"; else echo "$1: No such file or directory" >&2; '
    "exit 1; fi"
)


async def write(
    target: Target, path: RemotePath, source: Source, *, mode: int | None = None
) -> None:
    """Write a file or a folder into a sandbox; directories on the way are made.

    Raises:
        FileError: The sandbox could not write it.
        FilesUnsupported: The image has neither tar nor a shell.
    """
    place = str(path)
    archive.place(place)
    if isinstance(source, Path):
        if source.is_dir():
            await _write_folder(target, place, source)
            return
        with source.open("rb") as file:
            own = stat.S_IMODE(source.stat().st_mode)
            await _write_file(target, place, file, own if mode is None else mode)
        return
    if not isinstance(source, bytes | bytearray) and not hasattr(source, "read"):
        raise TypeError("what is written is bytes, a binary file or a pathlib.Path; encode text")
    await _write_file(target, place, source, 0o644 if mode is None else mode)


async def read(
    target: Target,
    path: RemotePath,
    into: BinaryIO | Path | None = None,
    *,
    limit: int | None = None,
) -> bytes:
    """Read a file of a sandbox, or copy a file or folder out of it.

    Args:
        target: The sandbox.
        path: The file or folder.
        into: A binary file to write to, or the local path that the copy is to have. Of a folder,
            the contents are put there. Nothing is ever written outside of it.
        limit: The most bytes to read; unset: 256 MiB without `into`, else whatever there is.

    Returns:
        The content, without `into`.

    Raises:
        FileError: There is no such file, or it cannot be read, or it is larger than the limit.
        FilesUnsupported: The image has nothing that could read it.
    """
    archive.place(str(path))
    if into is None:
        with tempfile.SpooledTemporaryFile(_IN_MEMORY) as spool:
            await _read_file(target, str(path), spool, limit or DEFAULT_READ_LIMIT)
            spool.seek(0)
            return spool.read()
    if isinstance(into, Path):
        await _copy(target, str(path), into, limit)
    else:
        await _read_file(target, str(path), into, limit)
    return b""


# Into the sandbox.


async def _write_file(target: Target, path: str, source: Input | BinaryIO, mode: int) -> None:
    with contextlib.ExitStack() as stack:
        if isinstance(source, bytes | bytearray | memoryview):
            size = len(source)
            content: Callable[[], Iterator[bytes]] = partial(_pieces, bytes(source))
        else:
            file, size = await _sized(target, source, stack)
            content = _Content(file, size).read

        directory, name = archive.place(path)
        done = await _unpack_there(
            target, directory, lambda: _one_member(name, size, mode, content()), path
        )
        if done is None:
            done = await _shell(target, _WRITE, path, f"{mode:o}", str(size), stdin=content())
        _check(done, path)


async def _write_folder(target: Target, path: str, source: Path) -> None:
    directory, name = archive.place(path)
    done = await _unpack_there(target, directory, lambda: _folder_members(name, source), path)
    if done is not None:
        _check(done, path)
        return
    _check(await _shell(target, _MAKE, path, f"{_mode(source):o}"), path)
    for relative, local in _walk(source):
        there = f"{path.rstrip('/')}/{relative}"
        if local.is_dir():
            _check(await _shell(target, _MAKE, there, f"{_mode(local):o}"), there)
        else:
            with local.open("rb") as file:
                await _write_file(target, there, file, _mode(local))


async def _unpack_there(
    target: Target, directory: str, members: Callable[[], Iterator[bytes]], path: str
) -> Result | None:
    """Unpack an archive in the sandbox; None where a shell is there, but no tar."""
    try:
        shell = ["sh", "-c", _UNPACK, "sh", directory]
        done = await commands.run(target, shell, stdin=members())
    except CommandNotStarted:
        try:
            tar = ["tar", "-xf", "-", "-C", directory]
            return await commands.run(target, tar, stdin=members())
        except CommandNotStarted as error:
            raise _unsupported(path) from error
    return None if done.exit_code == _NOT_FOUND else done


async def _sized(
    target: Target, source: Input, stack: contextlib.ExitStack
) -> tuple[IO[bytes], int]:
    """Return a file that can be read again, and how much of it is left to read."""
    seekable = getattr(source, "seekable", None)
    if seekable is not None and seekable():
        file: IO[bytes] = source  # type: ignore[assignment]
    else:
        # A pipe says how much there is only when it is read.
        file = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - the caller closes it
        stack.callback(file.close)
        reader = commands.InputReader(target.api.io, source)
        while part := await reader.next_part():
            file.write(part)
        file.seek(0)
    start = file.tell()
    size = file.seek(0, os.SEEK_END) - start
    file.seek(start)
    return file, size


class _Content:
    """The rest of a file, which can be read again.

    Who reads it may be another thread, which nobody waits for when its command is given up.
    """

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._size = size
        self._start = file.tell()
        self._lock = threading.Lock()
        self._reader: object = None

    def read(self) -> Iterator[bytes]:
        """Return the content from its beginning; whoever read it before reads no more."""
        reader = object()
        with self._lock:
            self._reader = reader
            self._file.seek(self._start)
        return self._read(reader)

    def _read(self, reader: object) -> Iterator[bytes]:
        pieces = _read_exactly(self._file, self._size)
        while True:
            with self._lock:
                piece = next(pieces, b"") if self._reader is reader else b""
            if not piece:
                return
            yield piece


def _pieces(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), CHUNK):
        yield data[start : start + CHUNK]


def _read_exactly(file: IO[bytes], size: int) -> Iterator[bytes]:
    left = size
    while left:
        part = file.read(min(CHUNK, left))
        if not part:
            raise FileError(f"the file to be written has become {left} bytes shorter meanwhile")
        left -= len(part)
        yield part


def _one_member(name: str, size: int, mode: int, content: Iterator[bytes]) -> Iterator[bytes]:
    yield archive.header(name, size=size, mode=mode)
    yield from content
    yield archive.padding(size) + archive.END


def _folder_members(name: str, source: Path) -> Iterator[bytes]:
    yield archive.header(name, mode=_mode(source), directory=True)
    for relative, local in _walk(source):
        there = f"{name}/{relative}"
        if local.is_symlink():
            yield archive.link(there, os.readlink(local))
        elif local.is_dir():
            yield archive.header(there, mode=_mode(local), directory=True)
        else:
            with local.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                yield archive.header(there, size=size, mode=_mode(local))
                yield from _read_exactly(file, size)
                yield archive.padding(size)
    yield archive.END


def _walk(source: Path) -> Iterator[tuple[str, Path]]:
    """Return what is in a folder, directories before what is in them; links are not followed."""
    for directory, names, files in os.walk(source):
        names.sort()
        for name in sorted([*names, *files]):
            local = Path(directory) / name
            if local.is_symlink() or local.is_dir() or local.is_file():
                yield local.relative_to(source).as_posix(), local


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Out of the sandbox.


async def _read_file(target: Target, path: str, into: IO[bytes], limit: int | None) -> None:
    shown = path if path.startswith("/") else f"./{path}"
    done = await _run_into(target, ["cat", shown], into, limit, path)
    _check(done, path)


async def _copy(target: Target, path: str, into: Path, limit: int | None) -> None:
    directory, name = archive.split(path)
    with tempfile.TemporaryFile() as spool:
        command = ["tar", "-cf", "-", "-C", directory, "--", name]
        try:
            done = await _run_into(target, command, spool, limit, path)
        except CommandNotStarted:
            await _copy_by_shell(target, path, into, limit)
            return
        _check(done, path)
        spool.seek(0)
        try:
            unpacked = await target.api.io.call_blocking(lambda: _unpack(spool, into))
        except tarfile.TarError as error:
            raise FileError(f"{path}: the sandbox's archive cannot be unpacked: {error}") from error
        if not unpacked:
            # The archive has the link, and what is wanted is the file that it leads to.
            with into.open("wb") as file:
                await _read_file(target, path, file, limit)


def _unpack(spool: IO[bytes], into: Path) -> bool:
    """Unpack an archive; false where it holds only a symbolic link."""
    with tarfile.open(fileobj=spool, mode="r:", encoding="utf-8") as packed:
        first = packed.next()
        if first is None:
            raise tarfile.ReadError("it is empty")
        if first.isdir():
            into.mkdir(parents=True, exist_ok=True)
            # What ran in the sandbox wrote the archive. The filter keeps it within the folder.
            packed.extractall(into, archive.without_first_part(iter(packed)), filter="data")
            return True
        into.parent.mkdir(parents=True, exist_ok=True)
        if first.issym():
            return False
        content = packed.extractfile(first) if first.isreg() else None
        if content is None:
            raise tarfile.ReadError(f"it holds neither a file nor a folder: {first.name!r}")
        with content, into.open("wb") as file:
            shutil.copyfileobj(content, file)
    return True


async def _copy_by_shell(target: Target, path: str, into: Path, limit: int | None) -> None:
    listed = await _shell(target, _LIST, path)
    _check(listed, path)
    first, *entries = os.fsdecode(listed.stdout).split("\0")[:-1]
    if first == "f":
        into.parent.mkdir(parents=True, exist_ok=True)
        with into.open("wb") as file:
            await _read_file(target, path, file, limit)
        return
    for relative in _make_folders(path, into, entries):
        with (into / relative).open("wb") as file:
            await _read_file(target, f"{path.rstrip('/')}/{relative}", file, limit)


def _make_folders(path: str, into: Path, entries: list[str]) -> list[PurePosixPath]:
    """Make the folders of a listing and return its files; what ran in the sandbox wrote it."""
    into.mkdir(parents=True, exist_ok=True)
    found: list[PurePosixPath] = []
    for entry in entries:
        relative = PurePosixPath(entry[1:])
        local = into / relative
        if relative.is_absolute() or ".." in relative.parts:
            raise FileError(f"{path}: the sandbox lists {entry[1:]!r}, which leads out of it")
        if any(part.is_symlink() for part in (local, *local.parents) if part != into):
            raise FileError(f"{local} leads through a link: nothing is written there")
        if entry[0] == "d":
            local.mkdir(parents=True, exist_ok=True)
        else:
            found.append(relative)
    return found


async def _run_into(
    target: Target, command: list[str], into: IO[bytes], limit: int | None, path: str
) -> Result:
    stderr, size = bytearray(), 0
    running = await commands.start(target, command)
    try:
        while (chunk := await running.next_chunk()) is not None:
            if chunk.stream == "stderr":
                stderr = (stderr + chunk.data)[-_IN_MEMORY:]
                continue
            size += len(chunk.data)
            if limit is not None and size > limit:
                raise FileError(f"{path} is larger than {limit} bytes: raise limit=, or use into=")
            into.write(chunk.data)
    except CommandNotStarted as error:
        if command[0] == "cat":
            raise FilesUnsupported(
                f"{path}: the image has no program `cat` to read it with; put one in, or have the"
                " sandbox send the file itself"
            ) from error
        raise
    finally:
        await running.close()
    assert running.exit_code is not None
    return Result(b"", bytes(stderr), running.exit_code)


async def _shell(
    target: Target, script: str, *arguments: str, stdin: Input | None = None
) -> Result:
    try:
        return await commands.run(target, ["sh", "-c", script, "sh", *arguments], stdin=stdin)
    except CommandNotStarted as error:
        raise _unsupported(arguments[0]) from error


def _unsupported(path: str) -> FilesUnsupported:
    return FilesUnsupported(
        f"{path}: the image has neither tar nor a shell to move files with; put one in, or mount a"
        " volume"
    )


def _check(result: Result, path: str) -> None:
    if result.exit_code != 0:
        said = result.stderr[-1000:].decode(errors="replace").strip()
        raise FileError(f"{path}: {said or f'exit code {result.exit_code}'}")
