"""The application: `kubectl sandboxpool`."""

import os
import shlex
import sys

import typer

from sandboxpool.cli import (
    claim,
    copy,
    doctor,
    events,
    execute,
    logs,
    portforward,
    runtimes,
    status,
    top,
)
from sandboxpool.cli.command import (
    Connection,
    Context,
    Kubeconfig,
    Namespace,
    RequestTimeout,
)
from sandboxpool.cli.dashboard import command as dashboard

# In the order of `--help`.
COMMANDS = (
    doctor.doctor,
    status.status,
    runtimes.runtimes,
    top.top,
    dashboard.dashboard,
    claim.claim,
    execute.execute,
    copy.copy,
    portforward.port_forward,
    logs.logs,
    events.events,
)

NAME = "kubectl sandboxpool"


def build() -> typer.Typer:
    """Return the application with its commands."""
    app = typer.Typer(
        name=NAME,
        help="Look into SandboxPools, and use their sandboxes.",
        # Plain help, as kubectl's, which is the same in a terminal and elsewhere.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )

    @app.callback()
    def connection(
        ctx: typer.Context,
        namespace: Namespace = None,
        context: Context = None,
        kubeconfig: Kubeconfig = None,
        request_timeout: RequestTimeout = None,
    ) -> None:
        # kubectl takes them before and after the command.
        ctx.obj = Connection(namespace, context, kubeconfig, request_timeout)

    for command in COMMANDS:
        command.add_to(app)
    return app


def main() -> None:
    """Run the command of the command line and exit."""
    build()(prog_name=NAME)


def complete() -> None:
    """Complete a command line for kubectl, which calls this program for plugins.

    The arguments are those of the plugin, the last of them incomplete. Each suggestion is a line;
    the last line is a directive of cobra's: 4, do not complete file names.
    """
    words = ["kubectl-sandboxpool", *sys.argv[1:]]
    os.environ["COMP_WORDS"] = shlex.join(words)
    os.environ["COMP_CWORD"] = str(len(words) - 1)
    os.environ["_KUBECTL_SANDBOXPOOL_COMPLETE"] = "complete_bash"
    try:
        build()(prog_name="kubectl-sandboxpool", complete_var="_KUBECTL_SANDBOXPOOL_COMPLETE")
    finally:
        print(":4")
