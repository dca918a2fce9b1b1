"""`kubectl sandboxpool cp`: files and folders, into a sandbox and out of it."""

import posixpath
from pathlib import Path
from typing import Annotated

import typer

from sandboxpool.cli.claim import Container
from sandboxpool.cli.command import Invocation, command
from sandboxpool.cli.errors import CommandFailure, ExitCode
from sandboxpool.cli.execute import sandbox_of
from sandboxpool.client.errors import CommandNotStarted
from sandboxpool.client.sync import Sandbox


def split(place: str) -> tuple[str, str]:
    """Return claim and path of a place; the claim is empty for a local one.

    A local path with a colon begins with `./` or `/`, as for kubectl.
    """
    claim, colon, path = place.partition(":")
    return (claim, path) if colon and "/" not in claim else ("", place)


@command(
    "cp",
    examples="""
        # A file, and a folder, into the sandbox of claim mine
        kubectl sandboxpool cp data.csv mine:/tmp/data.csv
        kubectl sandboxpool cp ./project mine:/work

        # A folder out of it
        kubectl sandboxpool cp mine:/work/results ./results
    """,
)
def copy(
    run: Invocation,
    source: Annotated[str, typer.Argument(metavar="SRC", help="A path, or CLAIM:PATH.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="A path, or CLAIM:PATH.")],
    container: Container = None,
) -> None:
    """Copy a file or folder into the sandbox of a claim, or out of it.

    Where the destination is a directory, the copy is put into it. The image needs tar, or a shell
    with cat.
    """
    (from_claim, from_path), (to_claim, to_path) = split(source), split(target)
    if bool(from_claim) == bool(to_claim):
        raise CommandFailure(
            "one of SRC and DST is in a sandbox, as CLAIM:PATH, and the other is not",
            ExitCode.USAGE,
        )
    if not from_path or not to_path:
        raise CommandFailure("the path after the colon is missing", ExitCode.USAGE)
    sandbox = sandbox_of(run.cluster, from_claim or to_claim, container)
    if to_claim:
        local = Path(from_path)
        if not local.exists():
            raise CommandFailure(f"{from_path}: there is no such file or directory")
        if to_path.endswith("/") or _is_directory(sandbox, to_path):
            to_path = posixpath.join(to_path, local.resolve().name)
        sandbox.write(to_path, local)
        return
    into = Path(to_path)
    if into.is_dir() or to_path.endswith("/"):
        into /= posixpath.basename(posixpath.normpath(from_path))
    sandbox.read(from_path, into)


def _is_directory(sandbox: Sandbox, path: str) -> bool:
    try:
        return sandbox.run(["test", "-d", path]).exit_code == 0
    except CommandNotStarted:
        # An image without programs: whatever cannot be done there is said by the copy itself.
        return False
