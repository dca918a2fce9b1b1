"""What tests do to nodes: run commands, change runtime handlers, kill and start them again."""

from __future__ import annotations

from collections.abc import Sequence

from localcluster import containerd, kindcluster
from localcluster import engine as engines
from localcluster.engine import Engine

COMMAND_SECONDS = 60.0


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


def kill(node: str) -> None:
    """Kill a node's container, as if its machine lost power."""
    _engine().docker("kill", node)


def start(node: str) -> None:
    """Start a killed node, restore the network, and wait until all nodes are Ready."""
    _engine().docker("start", node)
    kindcluster.settle(_engine())


def restore(node: str) -> None:
    """Make a node what `up` made it: running and with its own handlers."""
    engine = _engine()
    if engine.docker("inspect", "-f", "{{.State.Running}}", node).strip() != "true":
        engine.docker("start", node)
    wanted = set(kindcluster.HANDLERS[kindcluster.role_of(node)])
    present = set(containerd.handlers_in(containerd.read(engine, node))) - containerd.BUILT_IN
    if present != wanted:
        containerd.change(engine, node, add=wanted - present, remove=present - wanted)
    kindcluster.settle(engine)
    kindcluster.await_handlers({node: wanted})
