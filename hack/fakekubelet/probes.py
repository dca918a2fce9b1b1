"""What the operator's own probes do in a sandbox: their scripts, played.

The fake runs no shell. The unit tests of `sandboxpool.runtimes.probe` run the scripts themselves.
"""

from __future__ import annotations

from fakekubelet.behaviour import ContainerRun, Exit
from sandboxpool.runtimes.probe import (
    NODES_KERNEL,
    OWN_KERNEL,
    PROBE_CONTAINER,
    SANDBOX_PROBE_CONTAINER,
    UNREADABLE,
)

_EXPECTED = "EXPECTED_BOOT_ID"


def read(run: ContainerRun) -> Exit | None:
    """How a probe's container ends; None for any other container."""
    message = f"{run.boot_id}\n{run.kernel}\n"
    if run.container.name == SANDBOX_PROBE_CONTAINER:
        return Exit(0, message)
    if run.container.name != PROBE_CONTAINER or _EXPECTED not in run.env:
        return None
    expected = run.env[_EXPECTED]
    if not expected:
        return Exit(UNREADABLE, message)
    return Exit(NODES_KERNEL if run.boot_id == expected else OWN_KERNEL, message)
