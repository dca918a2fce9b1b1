"""Quarantines: a node on which a runtime is broken stops being used for it, and is tried again.

There is one for each node and handler, for one life of the node: after a reboot, or with a new
machine under the old name, everything starts anew.

Only the operator's own probe judges. A probe that the runtime fails opens the quarantine, and a
probe that works closes it. What sandboxes do orders a probe (see ``hints``) and nothing else,
because whoever writes a template decides how its sandboxes fail.

Where no probe can answer, two namespaces whose sandboxes the runtime fails are the weaker witness.
Such a quarantine is *witnessed*: its caller bounds how many there are, and it ends by itself after
its delay, since no probe could close it.

While a quarantine is open a probe is due now and then. Each that fails doubles the delay, up to
half an hour. One that opens again within an hour goes on with the longer delay, so that flapping
slows down; after an hour it is as if it had never been open.

One that concerns nobody any more is ended by its caller: no probe would ever be sent there.
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
# Nobody closes a witnessed one before its time.
FIRST_WITNESSED_DELAY_SECONDS = 60.0
LONGEST_DELAY_SECONDS = 1800.0
# Delays are shortened by up to this part of them, so that a fleet is not tried all at once.
JITTER = 0.2
QUIET_SECONDS = 3600.0
# What is kept of a message, for thousands of nodes: enough for the cause.
MAX_KEPT_MESSAGE = 200


@dataclass(frozen=True, slots=True)
class Quarantine:
    """The state of one handler on one node. Times are seconds since the epoch.

    Attributes:
        machine: the life of the node that this is about.
        open: the node is not used for the handler.
        changed_at: the last opening or closing.
        tries: openings and failed probes in a row: the delay grows with it.
        retry_at: no probe is due before; has a meaning only while open.
        reason: why it is open.
        message: as the reason, in the node's words.
        witnessed: sandboxes opened it, because no probe could answer.
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

    # --- What is told --------------------------------------------------------------------------

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
        """A probe could not start a sandbox; return whether that has opened the quarantine.

        Args:
            node: where it happened.
            handler: the handler that was asked for.
            reason: from the shared vocabulary.
            message: the container runtime's words.
            now: seconds since the epoch.
            witnessed: it was sandboxes of several namespaces, as no probe can answer.
        """
        old = self._known(node).quarantines.get(handler)
        was_open = old is not None and old.open
        if was_open and witnessed:
            return False
        goes_on = old is not None and (was_open or 0 <= now - old.changed_at <= QUIET_SECONDS)
        tries = old.tries + 1 if old is not None and goes_on else 1
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
        """A probe has started a sandbox; return whether that has closed the quarantine."""
        old = self._known(node).quarantines.get(handler)
        if old is None or not old.open:
            return False
        self._put(node.name, handler, Quarantine(old.machine, False, now, old.tries))
        return True

    def lift(self, node: str, handler: str, *, now: float) -> bool:
        """Nobody uses the handler there any more; return whether that has closed the quarantine."""
        old = self._open.get((node, handler))
        if old is not None:
            self._put(node, handler, Quarantine(old.machine, False, now, old.tries))
        return old is not None

    def expire(self, now: float) -> list[tuple[str, str]]:
        """Close the witnessed ones whose delay is over; return their nodes and handlers."""
        over = [
            key
            for key, quarantine in self._open.items()
            if quarantine.witnessed and _is_over(quarantine, now)
        ]
        for name, handler in over:
            old = self._open[name, handler]
            self._put(name, handler, Quarantine(old.machine, False, now, old.tries))
        return over

    def observe_node(self, name: str, node: NodeFacts | None) -> list[str]:
        """A node has changed, or is gone; return the handlers whose quarantine went with it."""
        known = self._nodes.get(name)
        if known is None or (node is not None and node.machine == known.machine):
            return []
        were_open = sorted(handler for handler, q in known.quarantines.items() if q.open)
        for handler in list(known.quarantines):
            self._put(name, handler, None)
        del self._nodes[name]
        return were_open

    # --- What is known -------------------------------------------------------------------------

    def get(self, node: str, handler: str) -> Quarantine | None:
        """What is held against this handler on this node, or was within the hour."""
        known = self._nodes.get(node)
        return known.quarantines.get(handler) if known is not None else None

    def is_open(self, node: str, handler: str) -> bool:
        """Whether the node is quarantined for the handler."""
        return (node, handler) in self._open

    def open(self) -> Iterator[tuple[tuple[str, str], Quarantine]]:
        """The open quarantines, by node and handler."""
        return iter(list(self._open.items()))

    def witnessed(self, handler: str) -> list[str]:
        """The nodes that are quarantined for the handler without a probe's word."""
        return [n for (n, h), known in self._open.items() if h == handler and known.witnessed]

    def due(self, now: float) -> list[tuple[str, str]]:
        """Nodes and handlers that a probe may be sent to now, the longest due first."""
        due = [
            (quarantine.retry_at, key)
            for key, quarantine in self._open.items()
            if _is_over(quarantine, now)
        ]
        return [key for _, key in sorted(due)]

    # --- What is kept --------------------------------------------------------------------------

    def dump(self, node: str) -> dict[str, Any] | None:
        """What the next process should know of a node, as plain JSON; None if that is nothing."""
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
        """Take over what an earlier process dumped; a damaged record is as good as none."""
        if not record:
            return
        try:
            saved = msgspec.convert(record, _SavedNode)
        except msgspec.ValidationError as error:
            logger.warning("what was kept of node %s is damaged and skipped: %s", node, error)
            return
        self.observe_node(node, None)
        machine = Machine(saved.uid, saved.bootID)
        self._nodes[node] = _Node(machine)
        for handler, kept in saved.handlers.items():
            fields = msgspec.structs.asdict(kept)
            self._put(node, handler, Quarantine(machine, **fields))

    # --- Inside --------------------------------------------------------------------------------

    def _known(self, node: NodeFacts) -> _Node:
        self.observe_node(node.name, node)
        return self._nodes.setdefault(node.name, _Node(node.machine))

    def _put(self, node: str, handler: str, quarantine: Quarantine | None) -> None:
        """Replace one quarantine; every index is kept up to date here and nowhere else."""
        key = node, handler
        self._open.pop(key, None)
        if quarantine is None:
            self._nodes[node].quarantines.pop(handler, None)
            return
        self._nodes[node].quarantines[handler] = quarantine
        if quarantine.open:
            self._open[key] = quarantine


def _is_over(quarantine: Quarantine, now: float) -> bool:
    # Further ahead than any delay means that the clock was put back.
    return not now < quarantine.retry_at <= now + LONGEST_DELAY_SECONDS
