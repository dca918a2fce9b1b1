"""What tests do to nodes: run commands, change runtime handlers, kill and start them again."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from localcluster import containerd, kindcluster
from localcluster import engine as engines
from localcluster.engine import Engine

COMMAND_SECONDS = 60.0
_TAKEN = f"{containerd.RUNSC_SHIM}.taken"


def _engine() -> Engine:
    engine = engines.current()
    if engine is None:
        raise OSError("no cluster is up: `python -m localcluster up`")
    return engine


def exec_on(node: str, *command: str, timeout: float = COMMAND_SECONDS, check: bool = True) -> str:
    """Run a command in a node's container and return its standard output."""
    return _engine().docker("exec", node, *command, timeout=timeout, check=check)


def set_handlers(
    node: str, *, add: Sequence[str] = (), remove: Sequence[str] = (), wait: bool = True
) -> None:
    """Change the runtime handlers of a node and restart its containerd; pods go on running.

    The handler `runsc` works; any other that is added is listed by the node, but its shim does
    not exist, so pods fail with it.

    Args:
        node: Name of the node.
        add: Handlers to define.
        remove: Handlers to delete.
        wait: Whether to return only when the Node's status says the same.
    """
    engine = _engine()
    containerd.change(engine, node, add=add, remove=remove)
    if wait:
        handlers = set(containerd.handlers_in(containerd.read(engine, node)))
        kindcluster.await_handlers({node: handlers - containerd.BUILT_IN})


def take_gvisor_shim(node: str) -> None:
    """Rename the shim of the handler `runsc`: what runs goes on, and no new sandbox can start."""
    exec_on(node, "mv", containerd.RUNSC_SHIM, _TAKEN)


def give_kata_shim(node: str) -> None:
    """Put a stand-in where the broken handlers look for Kata's shim: that of runc, by a link.

    They start pods then. No virtual machine runs, and nothing is isolated.
    """
    exec_on(node, "mkdir", "-p", posixpath.dirname(containerd.KATA_SHIM))
    exec_on(node, "ln", "-s", containerd.RUNC_SHIM, containerd.KATA_SHIM)


def restore_shims(node: str) -> None:
    """Undo what was done to a node's shims; containerd looks for them each time it needs one."""
    exec_on(node, "rm", "-f", containerd.KATA_SHIM)
    exec_on(node, "sh", "-c", f"[ ! -e {_TAKEN} ] || mv {_TAKEN} {containerd.RUNSC_SHIM}")


def kill(node: str) -> None:
    """Kill a node's container, as if its machine lost power."""
    _engine().docker("kill", node)


def start(node: str) -> None:
    """Start a killed node, restore the network, and wait until all nodes are Ready."""
    _engine().docker("start", node)
    kindcluster.settle(_engine())


def restore(node: str) -> None:
    """Make a node what `up` made it: running, with its own handlers and their shims."""
    engine = _engine()
    if engine.docker("inspect", "-f", "{{.State.Running}}", node).strip() != "true":
        engine.docker("start", node)
    restore_shims(node)
    wanted = set(kindcluster.HANDLERS[kindcluster.role_of(node)])
    present = set(containerd.handlers_in(containerd.read(engine, node))) - containerd.BUILT_IN
    if present != wanted:
        containerd.change(engine, node, add=wanted - present, remove=present - wanted)
    kindcluster.settle(engine)
    kindcluster.await_handlers({node: wanted})
