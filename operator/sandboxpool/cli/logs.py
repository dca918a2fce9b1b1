"""`kubectl sandboxpool logs`: what the sandbox of a claim has written."""

import sys
from typing import Annotated

import typer

from sandboxpool.cli.claim import Container, whole_seconds
from sandboxpool.cli.command import Invocation, command
from sandboxpool.cli.execute import ClaimName, sandbox_of
from sandboxpool.client import requests
from sandboxpool.client.blocking import run as finish


@command(
    "logs",
    examples="""
        # What the sandbox of claim mine has written
        kubectl sandboxpool logs mine

        # The last 20 lines, and what comes
        kubectl sandboxpool logs mine -f --tail 20
    """,
)
def logs(
    run: Invocation,
    claim: ClaimName,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is written.")
    ] = False,
    tail: Annotated[
        int, typer.Option("--tail", help="How many of the latest lines; -1 for all.", min=-1)
    ] = -1,
    since: Annotated[
        int | None,
        typer.Option(
            "--since",
            parser=whole_seconds,
            metavar="DURATION",
            help="Only what is newer than this, such as 5m.",
        ),
    ] = None,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", help="Put the time before each line.")
    ] = False,
    previous: Annotated[
        bool, typer.Option("--previous", "-p", help="Of the container before it restarted.")
    ] = False,
    container: Container = None,
) -> None:
    """Print the log of the sandbox of a claim.

    It is that of the pool's container: what commands write is not in it.
    """
    info = sandbox_of(run.cluster, claim, container).info
    query = [("container", container)] if container else []
    query += [("follow", "true")] if follow else []
    query += [("tailLines", str(tail))] if tail >= 0 else []
    query += [("sinceSeconds", str(since))] if since is not None else []
    query += [("timestamps", "true")] if timestamps else []
    query += [("previous", "true")] if previous else []
    body = finish(run.cluster.api.stream(requests.read_log(info.namespace, info.pod, query)))
    try:
        while (part := finish(body.next_part())) is not None:
            sys.stdout.buffer.write(part)
            sys.stdout.buffer.flush()
    finally:
        body.close()
