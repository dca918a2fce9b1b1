"""`kubectl sandboxpool exec`: a command in the sandbox of a claim."""

from typing import Annotated

import typer

from sandboxpool.cli import completion, terminal
from sandboxpool.cli.claim import Container, Quiet, Stdin, Tty
from sandboxpool.cli.cluster import Cluster
from sandboxpool.cli.command import Invocation, command
from sandboxpool.cli.errors import ExitCode
from sandboxpool.client import binding
from sandboxpool.client.blocking import run as finish
from sandboxpool.client.commands import Target
from sandboxpool.client.sync import Sandbox

ClaimName = Annotated[
    str,
    typer.Argument(metavar="CLAIM", help="The SandboxClaim.", autocompletion=completion.claims),
]


def sandbox_of(cluster: Cluster, claim: str, container: str | None) -> Sandbox:
    """Return the sandbox of a claim, once it has one.

    Raises:
        ApiError: There is no such claim.
        ClaimError: It will get no sandbox.
        SandboxLost: It has none any more.
    """
    bound = finish(binding.attach(cluster.api, cluster.namespace, claim))
    return Sandbox(Target(cluster.api, bound, container or ""), keep=True)


@command(
    "exec",
    examples="""
        # Run a command in the sandbox of claim mine
        kubectl sandboxpool exec mine -- date

        # A shell
        kubectl sandboxpool exec -it mine -- sh
    """,
    failure=ExitCode.NO_SANDBOX,
)
def execute(
    run: Invocation,
    claim: ClaimName,
    words: Annotated[list[str], typer.Argument(metavar="-- COMMAND [ARGS...]")],
    stdin: Stdin = False,
    tty: Tty = False,
    container: Container = None,
    quiet: Quiet = False,
) -> None:
    """Run a command in the sandbox of a claim.

    The exit code is the command's. Exit codes of its own: 125 no sandbox, 126 the command cannot be
    run, 127 there is no such command, 130 Ctrl-C, after which the command may go on.
    """
    sandbox = sandbox_of(run.cluster, claim, container)
    with terminal.ended_by_signals():
        code = terminal.run_command(sandbox, words, stdin=stdin, tty=tty, quiet=quiet)
    raise typer.Exit(code)
