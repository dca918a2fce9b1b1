"""Files, where the sandbox is not to be trusted."""

from __future__ import annotations

import io as iolib
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from sandboxpool.client import files, secrets
from sandboxpool.client.blocking import run
from sandboxpool.client.commands import Target
from sandboxpool.client.errors import FileError, FilesUnsupported, SecretsUnsupported
from sandboxpool.client.wire.remotecommand import V5
from support.scriptedcluster import api_of, claim, pod
from support.scriptedio import Asked, ScriptedIo, Step, answer, exited, server_frame, upgraded

ABSENT = server_frame(b'\x03{"status":"Failure","reason":"InternalError","message":"no such file"}')


class Image:
    """A sandbox whose programs answer with bytes; those it has not are not found."""

    def __init__(self, *, without: tuple[str, ...] = (), **programs: bytes) -> None:
        """Create one; scripts do not find the programs that it is `without`."""
        self.programs = programs
        self.without = without
        self.ran: list[list[str]] = []

    def __call__(self, asked: Asked) -> list[Step]:
        if not asked.path.endswith("/exec"):
            return answer(pod() if asked.path.endswith("/pods/pod") else claim("Bound"))
        command = [value for key, value in asked.query if key == "command"]
        self.ran.append(command)
        if command[0] not in self.programs:
            return upgraded(asked, V5, ABSENT)
        if command[0] == "sh" and command[2].split()[0] in self.without:
            return upgraded(asked, V5, exited(127))
        return upgraded(asked, V5, server_frame(b"\x01" + self.programs[command[0]]), exited(0))

    def target(self) -> tuple[Target, ScriptedIo]:
        api, io = api_of(self)
        return Target(api, claim("Bound")), io


def packed(*members: tuple[str, str, Any]) -> bytes:
    """An archive: names with what they are, and a content or a target."""
    buffer = iolib.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind, value in members:
            member = tarfile.TarInfo(name)
            if kind == "dir":
                member.type = tarfile.DIRTYPE
            elif kind == "file":
                member.size = len(value)
            else:
                member.type = tarfile.SYMTYPE if kind == "link" else tarfile.LNKTYPE
                member.linkname = value
            archive.addfile(member, iolib.BytesIO(value) if kind == "file" else None)
    return buffer.getvalue()


def test_a_folder_is_unpacked_without_its_own_name(tmp_path: Path) -> None:
    data = packed(
        ("d", "dir", None),
        ("d/a", "file", b"x"),
        ("d/b", "hard", "d/a"),
        ("d/c", "link", "a"),
    )
    image = Image(tar=data)
    run(files.read(image.target()[0], "/some/d", tmp_path / "copy"))
    assert image.ran == [["tar", "-cf", "-", "-C", "/some", "--", "d"]]
    assert {
        path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()
    } == dict.fromkeys("abc", b"x")


@pytest.mark.parametrize(
    "evil",
    [
        [("d/../../escaped", "file", b"x")],
        [("d//abs/../../../escaped", "file", b"x")],
        [("d/l", "link", ".."), ("d/l/escaped", "file", b"x")],
        [("d/l", "link", "/"), ("d/l/tmp/escaped", "file", b"x")],
        [("d/l", "hard", "d/../../outside")],
    ],
)
def test_an_archive_cannot_write_outside_of_the_folder(tmp_path: Path, evil: Any) -> None:
    (tmp_path / "outside").write_text("secret")
    image = Image(tar=packed(("d", "dir", None), *evil))
    with pytest.raises(FileError, match="cannot be unpacked"):
        run(files.read(image.target()[0], "/d", tmp_path / "copy"))
    assert not (tmp_path / "escaped").exists()
    assert [path.name for path in (tmp_path / "copy").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("data", [b"", b"no archive", packed(("l", "hard", "/etc/passwd"))])
def test_what_is_no_archive_of_files_is_told_of(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(FileError, match="cannot be unpacked"):
        run(files.read(Image(tar=data).target()[0], "/d", tmp_path / "copy"))


def test_a_link_is_followed_in_the_sandbox_and_not_here(tmp_path: Path) -> None:
    image = Image(tar=packed(("l", "link", "/etc/passwd")), cat=b"theirs")
    run(files.read(image.target()[0], "/d/l", tmp_path / "copy"))
    assert not (tmp_path / "copy").is_symlink()
    assert (tmp_path / "copy").read_bytes() == b"theirs"


@pytest.mark.parametrize("entry", [b"f../escaped", b"f/etc/escaped", b"fa/../../escaped"])
def test_a_listing_cannot_write_outside_of_the_folder(tmp_path: Path, entry: bytes) -> None:
    image = Image(sh=b"d\0" + entry + b"\0", cat=b"x")
    with pytest.raises(FileError, match="leads out"):
        run(files.read(image.target()[0], "/d", tmp_path / "copy"))
    assert not (tmp_path / "escaped").exists()


def test_nothing_is_written_through_a_link_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "l").symlink_to(tmp_path)
    image = Image(sh=b"d\0fl/escaped\0", cat=b"x")
    with pytest.raises(FileError, match="through a link"):
        run(files.read(image.target()[0], "/d", tmp_path / "copy"))
    assert not (tmp_path / "escaped").exists()


def test_a_pipe_is_written_with_its_length() -> None:
    class Pipe(iolib.BytesIO):
        def seekable(self) -> bool:
            return False

    image = Image(sh=b"")
    target, io = image.target()
    run(files.write(target, "/d/x", Pipe(b"content")))
    sent = b"".join(message[1:] for message in io.channels[0].messages if message[0] == 0)
    with tarfile.open(fileobj=iolib.BytesIO(sent)) as archive:
        assert [(member.name, member.size) for member in archive] == [("d/x", 7)]


def programs_of(image: Image) -> list[str]:
    return [command[2].split()[0] if command[0] == "sh" else command[0] for command in image.ran]


def test_a_file_is_written_with_what_the_image_has() -> None:
    full, no_tar, no_shell = Image(sh=b""), Image(sh=b"", without=("tar",)), Image(tar=b"")
    for image in (full, no_tar, no_shell):
        run(files.write(image.target()[0], "/d/x", b"content"))
    assert programs_of(full) == ["tar"]
    assert programs_of(no_tar) == ["tar", "write()"]
    assert programs_of(no_shell) == ["tar", "tar"]
    assert [command[0] for command in no_shell.ran] == ["sh", "tar"]
    with pytest.raises(FilesUnsupported, match="neither tar nor a shell"):
        run(files.write(Image().target()[0], "/d/x", b"content"))


def run_script(text: str, *arguments: str, stdin: bytes) -> tuple[int, bytes]:
    """Run a script as a sandbox would and return its exit code and what it says.

    Raises:
        BrokenPipeError: It left input unread.
    """
    command = ["sh", "-c", text, "sh", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stderr is not None
        running.stdin.write(stdin)
        running.stdin.close()
        stderr = running.stderr.read()
    return running.returncode, stderr


def test_a_script_that_fails_reads_its_input_to_the_end(tmp_path: Path) -> None:
    much = bytes(4 << 20)
    (tmp_path / "file").write_bytes(b"")
    members = packed(("x", "file", much), ("y", "file", much))
    size = str(len(much))
    for arguments, stdin in (
        ((files._UNPACK, str(tmp_path / "absent")), members),
        ((files._WRITE, str(tmp_path / "file/x"), "644", size), much),
        ((files._WRITE, str(tmp_path), "644", size), much),
        ((files._WRITE, f"{tmp_path}/{'n' * 300}", "644", size), much),
        ((files._WRITE, str(tmp_path / "x"), "rubbish", size), much),
    ):
        code, stderr = run_script(*arguments, stdin=stdin)
        assert code not in (0, 127)
        assert stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert run_script(files._WRITE, f"{tmp_path}/new/ x", "640", size, stdin=much) == (0, b"")
    assert (tmp_path / "new/ x").read_bytes() == much
    assert (tmp_path / "new/ x").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("source", ["text", 5, None])
def test_what_cannot_be_written_is_refused(source: Any) -> None:
    with pytest.raises(TypeError, match="bytes"):
        run(files.write(Image().target()[0], "/x", source))


def mounted(*mounts: Any, **annotations: str) -> Any:
    volumes = [
        {"name": "memory", "emptyDir": {"medium": "Memory"}},
        {"name": "disk", "emptyDir": {}},
    ]
    containers = [{"name": "a", "volumeMounts": list(mounts)}, {"name": "b"}]
    return {
        "metadata": {"annotations": annotations},
        "spec": {"volumes": volumes, "containers": containers},
    }


def test_which_mounts_are_memory() -> None:
    seen = mounted(
        {"name": "memory", "mountPath": "/m/"},
        {"name": "memory", "mountPath": "/ro", "readOnly": True},
        {"name": "disk", "mountPath": "/d"},
    )
    assert secrets.memory_mounts(seen) == ["/m"]
    assert secrets.memory_mounts(seen, "b") == []


@pytest.mark.parametrize(
    ("directory", "mounts", "text"),
    [
        (None, [], "no memory volume"),
        (None, ["/a", "/b"], "several"),
        ("/disk", ["/a"], "reach the node's disk"),
        ("/ab", ["/a"], "reach the node's disk"),
        ("/a/../etc", ["/a"], "reach the node's disk"),
    ],
)
def test_secrets_are_written_to_memory_or_not_at_all(
    directory: str | None, mounts: list[str], text: str
) -> None:
    there = mounted(*({"name": "memory", "mountPath": place} for place in mounts))
    api, io = api_of(lambda asked: answer(there))
    with pytest.raises(SecretsUnsupported, match=text):
        run(secrets.write(Target(api, claim("Bound")), {"token": b"x"}, directory))
    assert len(io.asked) == 1


@pytest.mark.parametrize("name", ["", "a/b", "..", "."])
def test_a_secret_has_the_name_of_a_file(name: str) -> None:
    with pytest.raises(ValueError, match="file name"):
        run(secrets.write(Image().target()[0], {name: b"x"}, None))
