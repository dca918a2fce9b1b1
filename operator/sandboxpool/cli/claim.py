"""`kubectl sandboxpool claim`: a sandbox for as long as a command runs."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Annotated

import typer

from sandboxpool.cli import completion, terminal, times
from sandboxpool.cli.cluster import CLAIMS, Object
from sandboxpool.cli.command import Invocation, command, duration
from sandboxpool.cli.errors import CommandFailure, ExitCode, in_flags
from sandboxpool.cli.output import Column, Table
from sandboxpool.client import claims, core
from sandboxpool.client.blocking import run as finish
from sandboxpool.client.claims import SandboxInfo
from sandboxpool.client.core import ClaimOptions
from sandboxpool.client.errors import SandboxPoolError
from sandboxpool.client.sync import Sandbox

Stdin = Annotated[bool, typer.Option("--stdin", "-i", help="Pass stdin to the command.")]
Tty = Annotated[bool, typer.Option("--tty", "-t", help="Stdin is a TTY; goes with -i.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Only print output from the sandbox, and errors.")
]
Container = Annotated[
    str | None, typer.Option("--container", "-c", help="The container; the default one if unset.")
]


class OnEmpty(StrEnum):
    """What a claim does when no sandbox is warm."""

    WAIT = "Wait"
    CREATE = "Create"
    FAIL = "Fail"


def whole_seconds(text: str) -> int:
    """Read a length of time that the API has in seconds.

    Raises:
        typer.BadParameter: It is none, or less than a second.
    """
    seconds = round(duration(text))
    if seconds < 1:
        raise typer.BadParameter(f"{text!r} is less than a second")
    return seconds


@command(
    "claim",
    examples="""
        # Run a command in a sandbox of pool python, which is released afterwards
        kubectl sandboxpool claim python -- python3 -c 'print(6 * 7)'

        # A shell
        kubectl sandboxpool claim python -it -- sh

        # Send a script to it
        kubectl sandboxpool claim python -i -- python3 - < script.py

        # A sandbox that stays for an hour, whatever becomes of this terminal
        kubectl sandboxpool claim python --keep --ttl 1h
    """,
    output=True,
    failure=ExitCode.NO_SANDBOX,
)
def claim(
    run: Invocation,
    pool: Annotated[
        str,
        typer.Argument(metavar="POOL", help="The SandboxPool.", autocompletion=completion.pools),
    ],
    words: Annotated[list[str] | None, typer.Argument(metavar="-- COMMAND [ARGS...]")] = None,
    stdin: Stdin = False,
    tty: Tty = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the sandbox: its TTL or `kubectl delete` ends it.")
    ] = False,
    ttl: Annotated[
        int | None,
        typer.Option(
            "--ttl",
            parser=whole_seconds,
            metavar="DURATION",
            help="How long the sandbox lives, such as 90s or 2h; 1h if unset, with --keep what the"
            " pool says.",
        ),
    ] = None,
    bind_timeout: Annotated[
        int | None,
        typer.Option(
            "--bind-timeout",
            parser=whole_seconds,
            metavar="DURATION",
            help="How long to wait for a sandbox; 5m if unset.",
        ),
    ] = None,
    on_empty: Annotated[
        OnEmpty | None,
        typer.Option("--on-empty", help="What to do when no sandbox is warm; Wait if unset."),
    ] = None,
    runtime_class: Annotated[
        str | None,
        typer.Option(
            "--runtime-class", help="Fail unless the pool has this RuntimeClass; it chooses none."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="The claim's name; made from the pool's if unset."),
    ] = None,
    container: Container = None,
    quiet: Quiet = False,
) -> None:
    """Claim a sandbox, run a command in it, and release it.

    The exit code is the command's. The sandbox is released when the command ends, at Ctrl-C,
    SIGTERM and SIGHUP, and at errors; should this process be killed, the TTL ends it. Without a
    command the sandbox is there until Ctrl-C, or with --keep until its TTL.

    Exit codes of its own: 125 no sandbox, 126 the command cannot be run, 127 there is no such
    command, 130 Ctrl-C.
    """
    options: ClaimOptions = {
        "bind_timeout": bind_timeout,
        "on_empty": on_empty.value if on_empty else None,
        "runtime_class": runtime_class,
        "container": container,
        "keep": keep,
    }
    if ttl is not None:
        options["ttl"] = ttl
    if run.out.format is not None and (words or not keep):
        raise CommandFailure("-o shows the claim that --keep leaves: it goes with no command")
    sandbox: Sandbox | None = None
    with terminal.ended_by_signals():
        try:
            with _progress(pool, quiet) as told:
                options["on_change"] = told
                sandbox = Sandbox(finish(core.claim(run.cluster.api, pool, name, options)))
            _say(quiet, _bound(sandbox))
            if words:
                code = terminal.run_command(sandbox, words, stdin=stdin, tty=tty, quiet=quiet)
            else:
                code = _hold(run, sandbox, keep, quiet)
        finally:
            if sandbox is not None and not keep:
                _release(sandbox, quiet)
            elif sandbox is not None and words:
                _say(quiet, _kept(sandbox))
    raise typer.Exit(code)


def _hold(run: Invocation, sandbox: Sandbox, keep: bool, quiet: bool) -> int:
    name = sandbox.info.claim
    if keep:
        claim = run.cluster.get(CLAIMS, name)
        run.out.objects([claim], lambda: _table(sandbox.info), single=True)
        return 0
    _say(quiet, f"`kubectl sandboxpool exec -it {name} -- sh` works in it; Ctrl-C releases it")
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    return 0


def _table(info: SandboxInfo) -> Table:
    expires = "never" if info.expires_at is None else ""
    if info.expires_at is not None:
        expires = times.span((info.expires_at - times.now()).total_seconds())
    columns = ("NAME", "POOL", "POD", "IP", "RUNTIME", "SOURCE", "EXPIRES IN")
    table = Table([*map(Column, columns), Column("NODE", wide=True), Column("EVIDENCE", wide=True)])
    table.add(
        *(info.claim, info.pool, info.pod, info.ips[0] if info.ips else ""),
        *(info.runtime_class, info.source, expires, info.node, info.evidence),
    )
    return table


def _release(sandbox: Sandbox, quiet: bool) -> None:
    info = sandbox.info
    try:
        sandbox.release()
    except SandboxPoolError as error:
        print(
            f"warning: claim {info.claim} is not released: {in_flags(error.message)}. Its TTL ends"
            f" it, or `kubectl delete sbc {info.claim} -n {info.namespace}`",
            file=sys.stderr,
        )
    else:
        _say(quiet, f"released claim {info.claim}")


def _bound(sandbox: Sandbox) -> str:
    info = sandbox.info
    said = [f"RuntimeClass {info.runtime_class}" if info.runtime_class else "", info.source.lower()]
    details = ", ".join(filter(None, said))
    return f"claim {info.claim} has pod {info.pod}" + (f" ({details})" if details else "")


def _kept(sandbox: Sandbox) -> str:
    info = sandbox.info
    return f"claim {info.claim} is kept: `kubectl delete sbc {info.claim} -n {info.namespace}`"


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        print(text, file=sys.stderr)


@contextlib.contextmanager
def _progress(pool: str, quiet: bool) -> Iterator[Callable[[Object], None] | None]:
    """Show on stderr that a claim waits, and what the operator says about it.

    Yields what is to be told each state of the claim.
    """
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        last = ""

        def tell(claim: Object) -> None:
            nonlocal last
            _, message = claims.condition(claim)
            if message and message != last and not claims.is_bound(claim):
                last = message
                print(f"waiting: {message}", file=sys.stderr)

        yield tell
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False)
    console = Console(stderr=True, highlight=False)
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(f"claiming a sandbox of pool {pool}", total=None)

        def show(claim: Object) -> None:
            _, message = claims.condition(claim)
            if message:
                shown.update(task, description=message)

        yield show
