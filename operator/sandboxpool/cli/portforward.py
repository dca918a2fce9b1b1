"""`kubectl sandboxpool port-forward`: ports of a sandbox, through the API server."""

import contextlib
import re
import sys
import time
from typing import Annotated

import typer

from sandboxpool.cli import terminal
from sandboxpool.cli.command import Invocation, command
from sandboxpool.cli.errors import in_flags
from sandboxpool.cli.execute import ClaimName, sandbox_of
from sandboxpool.client.errors import SandboxPoolError

_LOOK_SECONDS = 0.5
# How often is asked whether the sandbox is still there.
_REFRESH_SECONDS = 10.0
_PORTS = re.compile(r"(?:(\d*):)?(\d+)")


def ports(text: str) -> tuple[int, int]:
    """Read `[LOCAL_PORT:]REMOTE_PORT` as kubectl does; an empty local port is 0, any free one.

    Raises:
        typer.BadParameter: It is none.
    """
    found = _PORTS.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"{text!r}: write PORT, LOCAL:PORT, or :PORT for any free one")
    remote = int(found[2])
    local = remote if found[1] is None else int(found[1] or 0)
    if not (0 < remote < 65536 and local < 65536):
        raise typer.BadParameter(f"{text!r}: ports are from 1 to 65535")
    return local, remote


@command(
    "port-forward",
    examples="""
        # Port 8080 here is port 8080 of the sandbox of claim mine
        kubectl sandboxpool port-forward mine 8080

        # Port 8888 here is its port 5000, and any free port its 6000
        kubectl sandboxpool port-forward mine 8888:5000 :6000
    """,
)
def port_forward(
    run: Invocation,
    claim: ClaimName,
    wanted: Annotated[list[str], typer.Argument(metavar="[LOCAL_PORT:]REMOTE_PORT")],
    address: Annotated[
        str, typer.Option("--address", help="The local address to listen on.")
    ] = "127.0.0.1",
) -> None:
    """Forward local ports to the sandbox of a claim, until Ctrl-C or until the sandbox is gone.

    Where a sandbox has a network of its own, as with gVisor, the image needs nc, socat or python3.
    """
    pairs = [ports(text) for text in wanted]
    sandbox = sandbox_of(run.cluster, claim, None)
    forwards = [sandbox.forward(to, local_port=local, host=address) for local, to in pairs]
    with terminal.ended_by_signals(), contextlib.ExitStack() as opened:
        for forward, (_, remote) in zip(forwards, pairs, strict=True):
            host, port = opened.enter_context(forward)
            shown = f"[{host}]" if ":" in host else host
            print(f"Forwarding from {shown}:{port} -> {remote}", flush=True)
        told: list[SandboxPoolError | None] = [None] * len(forwards)
        refreshed = time.monotonic()
        while True:
            time.sleep(_LOOK_SECONDS)
            for at, forward in enumerate(forwards):
                if forward.error is not None and forward.error is not told[at]:
                    told[at] = forward.error
                    print(f"error: {in_flags(forward.error.message)}", file=sys.stderr)
            if time.monotonic() - refreshed > _REFRESH_SECONDS:
                refreshed = time.monotonic()
                sandbox.refresh()
