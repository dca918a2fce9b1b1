"""What all commands have in common: kubectl's options, help with examples, and errors."""

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sandboxpool.cli import cluster, errors
from sandboxpool.cli.cluster import Cluster
from sandboxpool.cli.errors import ExitCode
from sandboxpool.cli.output import Format, Output
from sandboxpool.client import config

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")


def duration(text: str) -> float:
    """Read a length of time as kubectl takes it, in seconds: `30`, `30s`, `1m30s`.

    Raises:
        typer.BadParameter: It is none.
    """
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not text or _DURATION.sub("", text):
        raise typer.BadParameter(f"{text!r} is no duration: write 30s, 5m or 1h30m")
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))


Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", help="The namespace; that of the context if unset."),
]
Context = Annotated[
    str | None, typer.Option("--context", help="The context of the kubeconfig to use.")
]
Kubeconfig = Annotated[
    Path | None,
    typer.Option("--kubeconfig", help="The kubeconfig; $KUBECONFIG, then ~/.kube/config if unset."),
]
RequestTimeout = Annotated[
    float | None,
    typer.Option(
        "--request-timeout",
        parser=duration,
        metavar="DURATION",
        help="How long one request to the API server may take, such as 5s or 2m; 0 for the"
        " default of 30s. Streams and watches take as long as they take.",
    ),
]
AllNamespaces = Annotated[
    bool, typer.Option("--all-namespaces", "-A", help="In all namespaces, whatever -n says.")
]
OutputFormat = Annotated[Format | None, typer.Option("--output", "-o", help="The output format.")]


@dataclass(frozen=True, slots=True)
class Connection:
    """The options that choose the cluster; unset ones are None."""

    namespace: str | None = None
    context: str | None = None
    kubeconfig: Path | None = None
    request_timeout: float | None = None

    def over(self, other: "Connection") -> "Connection":
        """Return these options, and those of another where they are unset."""
        return Connection(
            self.namespace or other.namespace,
            self.context or other.context,
            self.kubeconfig or other.kubeconfig,
            other.request_timeout if self.request_timeout is None else self.request_timeout,
        )


class Invocation:
    """What one run of a command works with.

    Attributes:
        out: Where it prints to.
        all_namespaces: -A was given.
    """

    def __init__(self, connection: Connection, out: Output, *, all_namespaces: bool) -> None:
        self.out = out
        self.all_namespaces = all_namespaces
        self._connection = connection

    @functools.cached_property
    def cluster(self) -> Cluster:
        """The cluster that the options choose.

        Raises:
            ConfigurationError: There is none, or the kubeconfig is unusable.
        """
        chosen = self._connection
        settings = config.load(chosen.context, chosen.kubeconfig, chosen.namespace)
        return Cluster(cluster.connect(settings, chosen.request_timeout or None))

    @property
    def namespace(self) -> str:
        """The namespace that is chosen, or that of the context."""
        return self.cluster.namespace

    @property
    def scope(self) -> str | None:
        """Where to look: a namespace, or None for all."""
        return None if self.all_namespaces else self.namespace


@dataclass(frozen=True, slots=True)
class Command:
    """A command that can be added to the application."""

    name: str
    callback: Callable[..., None]
    examples: str
    run: Callable[..., None]

    def add_to(self, app: typer.Typer) -> None:
        """Make it one of the application's commands."""
        app.command(
            self.name,
            help=inspect.getdoc(self.run),
            # \b keeps the lines of a paragraph as they are.
            epilog="\b\nExamples:\n" + inspect.cleandoc(self.examples).replace("\n\n", "\n\n\b\n"),
        )(self.callback)


def command(
    name: str,
    *,
    examples: str,
    output: bool = False,
    all_namespaces: bool = False,
    failure: int = ExitCode.ERROR,
) -> Callable[[Callable[..., None]], Command]:
    """Make a function a command.

    The function gets an `Invocation`, and its other parameters from the command line, as typer's
    annotations say.

    Args:
        name: The command's name.
        examples: Shown by `--help`: a line of comment and a command, as often as needed.
        output: It has -o.
        all_namespaces: It has -A.
        failure: The exit code where something goes wrong with the cluster.
    """

    def decorate(function: Callable[..., None]) -> Command:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]

        def callback(ctx: typer.Context, **values: Any) -> None:
            given = ctx.obj if isinstance(ctx.obj, Connection) else Connection()
            chosen = Connection(*(values.pop(parameter.name) for parameter in _CONNECTION))
            made = Invocation(
                chosen.over(given),
                Output(values.pop("output_format", None)),
                all_namespaces=values.pop("all_namespaces", False),
            )
            with errors.reported(failure):
                function(made, **values)

        extra = [_ALL_NAMESPACES] if all_namespaces else []
        extra += [_OUTPUT] if output else []
        parameters = [_CONTEXT, *own, *extra, *_CONNECTION]
        # typer reads what a command takes from its signature and its annotations.
        signed = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        callback.__signature__ = inspect.Signature(signed)  # type: ignore[attr-defined]
        callback.__annotations__ = {p.name: p.annotation for p in parameters}
        return Command(name, callback, examples, function)

    return decorate


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, annotation=annotation, default=default)


_CONTEXT = _parameter("ctx", typer.Context, inspect.Parameter.empty)
_ALL_NAMESPACES = _parameter("all_namespaces", AllNamespaces, False)
_OUTPUT = _parameter("output_format", OutputFormat, None)
_CONNECTION = (
    _parameter("namespace", Namespace, None),
    _parameter("context", Context, None),
    _parameter("kubeconfig", Kubeconfig, None),
    _parameter("request_timeout", RequestTimeout, None),
)
