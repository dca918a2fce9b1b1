"""`kubectl sandboxpool dashboard`: a page that shows what tables cannot."""

import socket
import webbrowser
from typing import Annotated

import typer

from sandboxpool.cli import terminal
from sandboxpool.cli.command import Invocation, command
from sandboxpool.cli.errors import CommandFailure

_ADDRESS = "127.0.0.1"
_MISSING = (
    "the page needs packages that are not installed ({name}): pip install 'sandboxpool[dashboard]'"
)


@command(
    "dashboard",
    examples="""
        # Print the URL of the page, and serve it until Ctrl-C
        kubectl sandboxpool dashboard

        # On this port, opened in the browser, with the nodes grouped by a label of one's own
        kubectl sandboxpool dashboard --port 8700 --open --group-by example.com/rack
    """,
)
def dashboard(
    run: Invocation,
    port: Annotated[
        int,
        typer.Option("--port", min=0, max=65535, help="The port on 127.0.0.1; 0 for any free one."),
    ] = 0,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    group_by: Annotated[
        str | None,
        typer.Option(
            "--group-by",
            metavar="LABEL",
            help="The node label that groups nodes; if unset, the one of GKE, EKS, AKS or Karpenter"
            " that most nodes have.",
        ),
    ] = None,
) -> None:
    """Serve a page with the fleet, the pools and the causes of the moment.

    It is served on 127.0.0.1 until Ctrl-C, and read from the cluster with the rights of the
    kubeconfig. It changes nothing. The URL has a token: who knows it, and can connect to this
    machine's loopback address, can read the page.

    All namespaces are shown where the rights suffice, else the one of -n.
    """
    try:
        # Here, because only this command needs the packages.
        from sandboxpool.cli.dashboard import serve
    except ModuleNotFoundError as error:
        raise CommandFailure(_MISSING.format(name=error.name)) from None
    try:
        listener = socket.create_server((_ADDRESS, port))
    except OSError as error:
        raise CommandFailure(f"cannot listen on {_ADDRESS}:{port}: {error.strerror}") from None
    with listener:
        made = serve.prepare(run.cluster.api.settings, group_by, listener)
        print(f"Dashboard: {made.url}", flush=True)
        if open_:
            webbrowser.open(made.url)
        with terminal.ended_by_signals():
            made.run()
