"""Completes the names of objects on the command line."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import typer

from sandboxpool.cli.cluster import CLAIMS, POOLS, RUNTIMES, Resource
from sandboxpool.cli.command import Connection, Invocation
from sandboxpool.cli.output import Output
from sandboxpool.client.errors import SandboxPoolError

# Nobody waits longer than that for the shell.
_REQUEST_SECONDS = 2.0


def names_of(resource: Resource) -> Callable[[typer.Context], list[str]]:
    """Return what names all objects of a kind; typer's `autocompletion` offers what fits."""

    def complete(ctx: typer.Context) -> list[str]:
        # A shell that completes has no place for errors.
        with contextlib.suppress(SandboxPoolError, OSError):
            cluster = Invocation(_connection(ctx), Output(None), all_namespaces=False).cluster
            found = cluster.list(resource, cluster.namespace)
            return sorted(item["metadata"]["name"] for item in found)
        return []

    return complete


pools = names_of(POOLS)
claims = names_of(CLAIMS)
runtimes = names_of(RUNTIMES)


def _connection(ctx: typer.Context) -> Connection:
    # kubectl takes the options before and after the command.
    before = _options(ctx.parent.params) if ctx.parent is not None else Connection()
    return _options(ctx.params).over(before)


def _options(params: Mapping[str, Any]) -> Connection:
    return Connection(
        params.get("namespace"), params.get("context"), params.get("kubeconfig"), _REQUEST_SECONDS
    )
