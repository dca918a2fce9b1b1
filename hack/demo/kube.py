"""The cluster, asked with kubectl: shown commands, quiet reads, waits with deadlines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from demo import terminal
from demo.install import NAMESPACE, RELEASE
from localcluster import process
from localcluster.kindcluster import kubectl

POLL_SECONDS = 0.3
COMMAND_SECONDS = 60.0
LOG_LINES = 25

Object = Mapping[str, Any]


class DemoError(Exception):
    """Something did not become true in time; the text says what to look at."""


def shown(*arguments: str, timeout: float = COMMAND_SECONDS) -> str:
    """Run kubectl before the user's eyes: the command as typed, then what it prints."""
    terminal.command(["kubectl", *arguments])
    text = kubectl(*arguments, timeout=timeout)
    terminal.output(text)
    return text


def read(kind: str, name: str) -> dict[str, Any] | None:
    """Read an object without showing it; None when there is none."""
    text = kubectl("get", kind, name, "-o", "json", "--ignore-not-found", timeout=COMMAND_SECONDS)
    return dict(json.loads(text)) if text.strip() else None


def condition(obj: Object | None, kind: str) -> Mapping[str, str]:
    """Return a condition of an object's status, empty when there is none."""
    conditions = ((obj or {}).get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c["type"] == kind), {})


def until(
    kind: str, name: str, good: Callable[[Object], bool], *, seconds: float, expectation: str
) -> dict[str, Any]:
    """Wait until an object is as hoped and return it.

    Raises:
        DemoError: It is not in time. The text has the object's conditions and the end of the
            operator's log.
    """
    terminal.aside(f"waiting until {expectation} (at most {seconds:.0f} s)")
    deadline = time.monotonic() + seconds
    found: dict[str, Any] | None = None
    while time.monotonic() < deadline:
        found = read(kind, name)
        if found is not None and good(found):
            return found
        time.sleep(POLL_SECONDS)
    raise DemoError(f"not within {seconds:.0f} s: {expectation}\n{evidence(kind, name, found)}")


def evidence(kind: str, name: str, found: Object | None) -> str:
    """Collect what explains why an object is not as hoped: its conditions, the operator's log."""
    lines = [f"--- conditions of {kind} {name}"]
    conditions = ((found or {}).get("status") or {}).get("conditions") or []
    lines += [f"{c['type']}={c['status']} {c['reason']}: {c['message']}" for c in conditions]
    if not conditions:
        lines.append("none: has the operator seen it?")
    lines += ["--- the operator's log ends with", operator_log()]
    lines.append(f"--- look further with: kubectl describe {kind} {name}; kubectl get events")
    return "\n".join(lines)


def operator_log(lines: int = LOG_LINES) -> str:
    """Return the end of the operator's log, or why it cannot be read."""
    try:
        return kubectl(
            *("--namespace", NAMESPACE, "logs", f"deployment/{RELEASE}", f"--tail={lines}"),
            timeout=COMMAND_SECONDS,
        )
    except process.CommandError as error:
        return f"cannot be read: {error.reason}\n{error.output}"
