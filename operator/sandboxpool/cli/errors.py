"""Errors of a command: one line on stderr, and an exit code.

The exit codes, which scripts may rely on:

- 0: done, or a `doctor` without findings;
- 1: not done, for the reason on stderr;
- 2: wrong usage;
- 130, 143, 129: interrupted by SIGINT, SIGTERM, SIGHUP;
- 141: whoever read the output has gone.

`claim` and `exec` return the exit code of the command in the sandbox. Their own failures are, as
with `docker run` and `env`: 125 no sandbox or connection, 126 the command cannot be run, 127 there
is no such command.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import typer

from sandboxpool.client.errors import SandboxPoolError


class ExitCode(IntEnum):
    """How a command ends; see the module."""

    ERROR = 1
    USAGE = 2
    NO_SANDBOX = 125
    NOT_RUNNABLE = 126
    NOT_FOUND = 127
    INTERRUPTED = 130
    OUTPUT_CLOSED = 141


# What the client's messages name, which are arguments of Python functions, as flags. The order
# matters: some begin with others.
_FLAGS = {
    "on_empty='Wait'": "--on-empty=Wait",
    "bind_timeout=": "--bind-timeout",
    "namespace=": "-n",
    "kubeconfig=": "--kubeconfig",
    "a longer ttl=": "a longer --ttl",
    ", or call extend() in time": "",
}


class CommandFailure(Exception):
    """A command cannot do what it is asked; the message names the cause and the cure.

    Attributes:
        message: What is shown.
        exit_code: How the process ends.
    """

    def __init__(self, message: str, exit_code: int = ExitCode.ERROR) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = int(exit_code)


@contextmanager
def reported(exit_code: int = ExitCode.ERROR) -> Iterator[None]:
    """Turn errors into a line on stderr and an exit code.

    Args:
        exit_code: That of errors that have none of their own.

    Raises:
        typer.Exit: Something went wrong and was reported.
    """
    try:
        yield
    except CommandFailure as error:
        report(error.message)
        raise typer.Exit(error.exit_code) from None
    except SandboxPoolError as error:
        report(in_flags(error.message))
        raise typer.Exit(int(exit_code)) from None
    except KeyboardInterrupt as error:
        raise typer.Exit(getattr(error, "exit_code", int(ExitCode.INTERRUPTED))) from None
    except BrokenPipeError:
        # Nothing may be flushed at the end: it would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(int(ExitCode.OUTPUT_CLOSED)) from None
    except OSError as error:
        report(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        raise typer.Exit(int(exit_code)) from None


def report(message: str) -> None:
    """Write an error to stderr, in one line."""
    typer.echo(f"error: {' '.join(message.split())}", err=True)


def in_flags(message: str) -> str:
    """Return a message of the client with the names of flags instead of arguments."""
    for argument, flag in _FLAGS.items():
        message = message.replace(argument, flag)
    return message
