"""Quarantines: a node on which a runtime is broken is not used for it until a probe succeeds.

There is one quarantine for each node and handler, for one boot of the node: a reboot, or a new
machine of the same name, resets everything.

Only the operator's own probes decide. A probe that the runtime fails opens the quarantine, and a
probe that succeeds closes it. Failing sandboxes only request a probe (see ``hints``), because the
author of a template decides how its sandboxes fail.

Where no probe gets an answer, failing sandboxes of two namespaces open a *witnessed* quarantine.
The caller bounds how many there are, and each ends after its delay, since no probe could close it.

While a quarantine is open, probes are retried with exponential backoff, up to half an hour. One
that opens again within an hour continues with the longer delay; after an hour it is forgotten.

The caller lifts a quarantine whose handler nobody uses there any more: no probe would close it.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from sandboxpool.api.reasons import Reason
from sandboxpool.runtimes.diagnosis import truncate
from sandboxpool.runtimes.nodes import Machine, NodeFacts
from sandboxpool.util.backoff import delay_after

logger = logging.getLogger(__name__)

FIRST_DELAY_SECONDS = 5.0
# No probe closes a witnessed quarantine early.
FIRST_WITNESSED_DELAY_SECONDS = 60.0
LONGEST_DELAY_SECONDS = 1800.0
# Delays are shortened by up to this fraction, so that probes of a fleet do not coincide.
JITTER = 0.2
QUIET_SECONDS = 3600.0
# Messages are saved for thousands of nodes: this much is enough for the cause.
MAX_KEPT_MESSAGE = 200


@dataclass(frozen=True, slots=True)
class Quarantine:
    """The state of one handler on one node. Times are seconds since the epoch.

    Attributes:
        machine: the boot of the node.
        open: the node is not used for the handler.
        changed_at: when it last opened or closed.
        tries: consecutive openings and failed probes; the delay grows with it.
        retry_at: no probe is due before; valid only while open.
        reason: why it is open.
        message: the node's message to the reason.
        witnessed: failing sandboxes opened it, because no probe got an answer.
    """

    machine: Machine
    open: bool
    changed_at: float
    tries: int
    retry_at: float = 0.0
    reason: Reason = Reason.OK
    message: str = ""
    witnessed: bool = False


class _Saved(msgspec.Struct, omit_defaults=True, rename="camel"):
    changed_at: float
    tries: Annotated[int, msgspec.Meta(ge=1)]
    open: bool = False
    retry_at: float = 0.0
    reason: Reason = Reason.OK
    message: str = ""
    witnessed: bool = False


class _SavedNode(msgspec.Struct):
    uid: str
    bootID: str
    handlers: dict[str, _Saved]


@dataclass(slots=True)
class _Node:
    machine: Machine
    quarantines: dict[str, Quarantine] = field(default_factory=dict)


class Quarantines:
    """All quarantines of a fleet.

    Args:
        random: numbers in [0, 1), for the jitter.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._nodes: dict[str, _Node] = {}
        self._open: dict[tuple[str, str], Quarantine] = {}

    # --- Recording -----------------------------------------------------------------------------

    def record_failure(
        self,
        node: NodeFacts,
        handler: str,
        reason: Reason,
        message: str,
        *,
        now: float,
        witnessed: bool = False,
    ) -> bool:
        """Record a failed probe; return whether it has opened the quarantine.

        Args:
            node: where the probe failed.
            handler: the handler of the probe.
            reason: the diagnosis.
            message: the container runtime's message.
            now: seconds since the epoch.
            witnessed: sandboxes of several namespaces failed, and no probe got an answer.
        """
        old = self._known(node).quarantines.get(handler)
        was_open = old is not None and old.open
        if was_open and witnessed:
            return False
        continues = old is not None and (was_open or 0 <= now - old.changed_at <= QUIET_SECONDS)
        tries = old.tries + 1 if old is not None and continues else 1
        first = FIRST_WITNESSED_DELAY_SECONDS if witnessed else FIRST_DELAY_SECONDS
        delay = delay_after(tries - 1, first, LONGEST_DELAY_SECONDS)
        opened = Quarantine(
            node.machine,
            open=True,
            changed_at=old.changed_at if old is not None and was_open else now,
            tries=tries,
            retry_at=now + delay * (1 - JITTER * self._random()),
            reason=reason,
            message=truncate(message),
            witnessed=witnessed,
        )
        self._put(node.name, handler, opened)
        return not was_open

    def record_success(self, node: NodeFacts, handler: str, *, now: float) -> bool:
        """Record a successful probe; return whether it has closed the quarantine."""
        old = self._known(node).quarantines.get(handler)
        if old is None or not old.open:
            return False
        self._put(node.name, handler, Quarantine(old.machine, False, now, old.tries))
        return True

    def lift(self, node: str, handler: str, *, now: float) -> bool:
        """Close the quarantine of a handler that nobody uses there; return whether it was open."""
        old = self._open.get((node, handler))
        if old is not None:
            self._put(node, handler, Quarantine(old.machine, False, now, old.tries))
        return old is not None

    def expire(self, now: float) -> list[tuple[str, str]]:
        """Close the witnessed quarantines whose delay is over; return their nodes and handlers."""
        expired = [
            key
            for key, quarantine in self._open.items()
            if quarantine.witnessed and _is_due(quarantine, now)
        ]
        for name, handler in expired:
            old = self._open[name, handler]
            self._put(name, handler, Quarantine(old.machine, False, now, old.tries))
        return expired

    def observe_node(self, name: str, node: NodeFacts | None) -> list[str]:
        """Drop the quarantines of another boot of a node; return the handlers of the open ones.

        Args:
            name: the node's name.
            node: its facts; None if the node is gone.
        """
        known = self._nodes.get(name)
        if known is None or (node is not None and node.machine == known.machine):
            return []
        were_open = sorted(handler for handler, q in known.quarantines.items() if q.open)
        for handler in list(known.quarantines):
            self._put(name, handler, None)
        del self._nodes[name]
        return were_open

    # --- Reading -------------------------------------------------------------------------------

    def get(self, node: str, handler: str) -> Quarantine | None:
        """The quarantine of the handler on the node, open or closed; None if there was none."""
        known = self._nodes.get(node)
        return known.quarantines.get(handler) if known is not None else None

    def is_open(self, node: str, handler: str) -> bool:
        """Whether the node is quarantined for the handler."""
        return (node, handler) in self._open

    def open(self) -> Iterator[tuple[tuple[str, str], Quarantine]]:
        """The open quarantines, by node and handler."""
        return iter(list(self._open.items()))

    def witnessed(self, handler: str) -> list[str]:
        """The nodes with a witnessed quarantine for the handler."""
        return [n for (n, h), known in self._open.items() if h == handler and known.witnessed]

    def due(self, now: float) -> list[tuple[str, str]]:
        """Nodes and handlers whose next probe is due, the longest due first."""
        due = [
            (quarantine.retry_at, key)
            for key, quarantine in self._open.items()
            if _is_due(quarantine, now)
        ]
        return [key for _, key in sorted(due)]

    # --- Persistence ---------------------------------------------------------------------------

    def dump(self, node: str) -> dict[str, Any] | None:
        """The quarantines of a node as plain JSON, for the next process; None if there are none."""
        known = self._nodes.get(node)
        if known is None or not known.quarantines:
            return None
        handlers = {
            handler: _Saved(
                changed_at=quarantine.changed_at,
                tries=quarantine.tries,
                open=quarantine.open,
                retry_at=quarantine.retry_at,
                reason=quarantine.reason,
                message=truncate(quarantine.message, MAX_KEPT_MESSAGE),
                witnessed=quarantine.witnessed,
            )
            for handler, quarantine in known.quarantines.items()
        }
        saved: dict[str, Any] = msgspec.to_builtins(
            _SavedNode(known.machine.uid, known.machine.boot_id, handlers)
        )
        return saved

    def load(self, node: str, record: Mapping[str, Any]) -> None:
        """Restore what an earlier process dumped; a damaged record is skipped."""
        if not record:
            return
        try:
            saved = msgspec.convert(record, _SavedNode)
        except msgspec.ValidationError as error:
            logger.warning(
                "the saved quarantines of node %s are malformed, ignored: %s", node, error
            )
            return
        self.observe_node(node, None)
        machine = Machine(saved.uid, saved.bootID)
        self._nodes[node] = _Node(machine)
        for handler, record_of_handler in saved.handlers.items():
            fields = msgspec.structs.asdict(record_of_handler)
            self._put(node, handler, Quarantine(machine, **fields))

    # --- Internals -----------------------------------------------------------------------------

    def _known(self, node: NodeFacts) -> _Node:
        self.observe_node(node.name, node)
        return self._nodes.setdefault(node.name, _Node(node.machine))

    def _put(self, node: str, handler: str, quarantine: Quarantine | None) -> None:
        """Replace one quarantine; only this method changes the indexes."""
        key = node, handler
        self._open.pop(key, None)
        if quarantine is None:
            self._nodes[node].quarantines.pop(handler, None)
            return
        self._nodes[node].quarantines[handler] = quarantine
        if quarantine.open:
            self._open[key] = quarantine


def _is_due(quarantine: Quarantine, now: float) -> bool:
    # A time further ahead than any delay means that the clock was set back.
    return not now < quarantine.retry_at <= now + LONGEST_DELAY_SECONDS
