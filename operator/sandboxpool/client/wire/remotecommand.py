"""The `channel.k8s.io` protocols that run a command in a container, without I/O."""

import json
from dataclasses import dataclass
from enum import IntEnum

V5 = "v5.channel.k8s.io"
V4 = "v4.channel.k8s.io"
# Version 5 is the first that can close one direction, which is how a command learns that its input
# has ended. API servers have it since Kubernetes 1.30.
PROTOCOLS = (V5, V4)


class Channel(IntEnum):
    """The first byte of each message."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2
    ERROR = 3
    RESIZE = 4
    CLOSE = 255


@dataclass(frozen=True, slots=True)
class Ending:
    """How a command ended.

    Attributes:
        exit_code: The command's; None where it never ran or nobody knows.
        reason: The reason of the API server's status, for instance `NonZeroExitCode`.
        message: The API server's words, where the command has not simply ended.
    """

    exit_code: int | None
    reason: str = ""
    message: str = ""


def stdin(data: bytes) -> tuple[bytes, bytes]:
    """Return the parts of a message that carries input."""
    return bytes((Channel.STDIN,)), data


def end_of_stdin() -> bytes:
    """Return the message that ends the input (version 5)."""
    return bytes((Channel.CLOSE, Channel.STDIN))


def resize(columns: int, rows: int) -> bytes:
    """Return the message that says how large the terminal is."""
    size = json.dumps({"Width": columns, "Height": rows})
    return bytes((Channel.RESIZE,)) + size.encode()


def decode_ending(payload: bytes) -> Ending:
    """Read what comes on the error channel: a `Status`, when the command has ended."""
    try:
        status = json.loads(payload)
        if status.get("status") == "Success":
            return Ending(0)
        reason = str(status.get("reason") or "")
        message = str(status.get("message") or "")
        causes = (status.get("details") or {}).get("causes") or []
    except (ValueError, AttributeError, TypeError):
        return Ending(None, "InternalError", payload.decode(errors="replace").strip())
    for cause in causes:
        text = str(cause.get("message") or "")
        if cause.get("reason") == "ExitCode" and text.lstrip("-").isdecimal():
            return Ending(int(text), reason, message)
    return Ending(None, reason or "InternalError", message)
