"""Breakers: a node on which a runtime is broken stops being used for it, and is tried again.

There is one breaker for each node and handler, for one life of the node: after a reboot, or with
a new machine under the old name, everything starts anew.

*Opening.* A breaker opens at once for a failure that proves the configuration wrong. Else it opens
when sandboxes of three different pods have failed and none has worked between. What counts is when
things happened, not when we hear of them: a failure counts if it was reported after the last
opening or closing, and after the creation of every pod that has worked. So events that are told
again after a relist change nothing, and a pod that has been running for a week does not excuse a
failure of today.

*Budget.* Failures that prove nothing may come from a template, or from a fleet under load. They
may quarantine half of the nodes that serve the handler at that moment, and at least one. Beyond
that they are remembered, and the breaker opens when the budget allows and the failure is told
again. Proof is not limited: another pod could not start there either.

*Scouts.* While a breaker is open a probe of the operator's own is due now and then; all other
failures are ignored. The first comes soon: after a second if nothing was proven, because a neutral
probe tells a broken node from a broken template. Each failed scout doubles the delay, up to half
an hour. One that is due stays so until it is heard of: whoever sends them sees to it that there is
only one at a time.

*Closing.* A sandbox that works closes the breaker, whoever made it, if it was made after the
opening. A breaker that opens again within an hour goes on with the longer delay, so that flapping
slows down; after an hour it is as if it had never been open. (That is longer than the longest
delay, and as long as the API server keeps events unless told otherwise.)

*Templates.* When a scout works on a node that opened without proof, the templates that had failed
there come under suspicion: see ``suspects``.

*Memory.* Breakers exist only where something has failed and not worked since, and for that hour.
What is kept for the next process is those that have opened, with a shorter message and without the
failures: events and pods tell of these again.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import msgspec

from sandboxpool.reasons import Reason
from sandboxpool.runtimes.nodes import Machine, NodeFacts
from sandboxpool.runtimes.suspects import Suspects

logger = logging.getLogger(__name__)

STRIKES_TO_OPEN = 3
FIRST_DELAY_SECONDS = 1.0
FIRST_DELAY_AFTER_PROOF_SECONDS = 5.0
LONGEST_DELAY_SECONDS = 1800.0
# Delays are stretched by up to this part of them, never shortened: a scout made in the second of
# the opening could not be told from a pod made before.
JITTER = 0.25
QUIET_SECONDS = 3600.0
MAX_MESSAGE = 512
# What is kept of it, for thousands of nodes: enough for the cause.
MAX_KEPT_MESSAGE = 200


@dataclass(frozen=True, slots=True)
class Strike:
    """A sandbox that a node's runtime could not make.

    Attributes:
        pod: uid, by which failures of one pod are counted once; empty for one that is reported
            only once, such as that of a probe.
        template: who made it, as ``pool uid/revision``; empty for the operator's own probe.
        at: epoch seconds at which the failure was reported.
        reason: from the shared vocabulary.
        message: the container runtime's words.
        proves: they leave no doubt that the runtime cannot work on this node.
    """

    pod: str
    template: str
    at: float
    reason: Reason
    message: str
    proves: bool


@dataclass(frozen=True, slots=True)
class Breaker:
    """The state of one handler on one node. Times are seconds since the epoch.

    Attributes:
        machine: the life of the node that this is about.
        strikes: while closed, the last ones since a success, of different pods. While open, what
            opened it, or else the last scout that failed.
        opened_at: None while closed.
        changed_at: the last opening or closing; 0 if there was none.
        trips: openings and failed scouts in a row: the delay grows with it.
        retry_at: no scout is sent before; has a meaning only while open.
        reason: why it is open, by the last strike that counted.
        message: as the reason.
        proven: it is open by a proof, and does not count against the budget.
    """

    machine: Machine
    strikes: tuple[Strike, ...] = ()
    opened_at: float | None = None
    changed_at: float = 0.0
    trips: int = 0
    retry_at: float = 0.0
    reason: Reason = Reason.OK
    message: str = ""
    proven: bool = False


class _SavedBreaker(msgspec.Struct, omit_defaults=True, rename="camel"):
    changed_at: float
    trips: Annotated[int, msgspec.Meta(ge=1)]
    open: bool = False
    retry_at: float = 0.0
    reason: Reason = Reason.OK
    message: str = ""
    proven: bool = False


class _SavedNode(msgspec.Struct):
    uid: str
    bootID: str
    handlers: dict[str, _SavedBreaker]


@dataclass(slots=True)
class _Node:
    """What is known of one life of a node.

    Attributes:
        since: what happened up to then belongs to another life.
        worked: for each handler, the creation of the youngest pod whose sandbox worked.
    """

    machine: Machine
    since: float
    breakers: dict[str, Breaker] = field(default_factory=dict)
    worked: dict[str, float] = field(default_factory=dict)


class Breakers:
    """All breakers of a fleet.

    ``observe_node`` is to be told of a node's change before anything else is told of the node.

    Args:
        random: numbers in [0, 1), for the jitter.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._suspects = Suspects()
        self._nodes: dict[str, _Node] = {}
        self._open: dict[tuple[str, str], Breaker] = {}
        self._uncertain: Counter[str] = Counter()
        self._now = 0.0

    # --- What is told --------------------------------------------------------------------------

    def strike(
        self, node: NodeFacts, handler: str, strike: Strike, *, serving: int, now: float
    ) -> bool:
        """A sandbox could not be made; return whether the breaker has opened.

        Args:
            node: where it happened.
            handler: the handler that was asked for.
            strike: the failure.
            serving: how many nodes serve the handler now, quarantined ones included.
            now: seconds since the epoch.
        """
        self._now = now
        known = self._known(node)
        breaker = known.breakers.get(handler, Breaker(known.machine))
        # A node's clock may be ahead of ours; nothing has happened in the future.
        strike = replace(strike, at=min(strike.at, now), message=_cut(strike.message, MAX_MESSAGE))
        heard = max(known.since, breaker.changed_at, known.worked.get(handler, 0.0))
        if strike.at <= heard:
            return False
        if breaker.opened_at is not None:
            self._scout_failed(node.name, handler, breaker, strike)
            return False
        if strike.proves:
            self._trip(node.name, handler, breaker, (strike,))
            return True
        if self._ignores(node.name, strike):
            return False
        if not any(_same_pod(strike, other) for other in breaker.strikes):
            others = {other.template for other in breaker.strikes} - {strike.template}
            self._suspects.failed(strike.template, node.name, strike.reason, others, now)
            # Where there is no room for all, those go first that do not count.
            ranked = sorted(
                (*breaker.strikes, strike), key=lambda s: (not self._ignores(node.name, s), s.at)
            )
            breaker = replace(breaker, strikes=tuple(ranked[-STRIKES_TO_OPEN:]))
            self._put(node.name, handler, breaker)
        counting = tuple(s for s in breaker.strikes if not self._ignores(node.name, s))
        if len(counting) < STRIKES_TO_OPEN or self._uncertain[handler] >= max(1, serving // 2):
            return False
        self._trip(node.name, handler, breaker, counting)
        return True

    def succeed(
        self, node: NodeFacts, handler: str, *, made_at: float, template: str, now: float
    ) -> bool:
        """A sandbox works; return whether that has closed the breaker.

        To be told of every sandbox that works, also where no breaker is known. It may be told
        again at any time: what counts is when the pod was made.

        Args:
            node: where it runs.
            handler: the handler that made it.
            made_at: epoch seconds at which its pod was created.
            template: as in a Strike.
            now: seconds since the epoch.
        """
        self._now = now
        known = self._known(node)
        made_at = min(made_at, now)
        known.worked[handler] = max(made_at, known.worked.get(handler, 0.0))
        if template:
            self._suspects.worked(template, node.name, made_at)
        breaker = known.breakers.get(handler)
        if breaker is None:
            return False
        if breaker.opened_at is None:
            trips = 0 if now - breaker.changed_at > QUIET_SECONDS else breaker.trips
            strikes = tuple(s for s in breaker.strikes if s.at > made_at)
            left = replace(breaker, trips=trips, strikes=strikes)
            self._put(node.name, handler, left if trips or strikes else None)
            return False
        if made_at <= breaker.opened_at:
            return False
        if not template and not breaker.proven:
            for blamed in {s.template for s in breaker.strikes} - {""}:
                self._suspects.cleared(node.name, blamed, now)
        closed = Breaker(known.machine, changed_at=now, trips=breaker.trips)
        self._put(node.name, handler, closed)
        return True

    def observe_node(self, name: str, node: NodeFacts | None) -> list[str]:
        """A node has changed, or is gone; return the handlers whose open breaker went with it."""
        known = self._nodes.get(name)
        if known is None or (node is not None and node.machine == known.machine):
            return []
        were_open = sorted(h for h, b in known.breakers.items() if b.opened_at is not None)
        for handler in list(known.breakers):
            self._put(name, handler, None)
        if node is None:
            del self._nodes[name]
        else:
            # Of a reboot we know no time but the last at which we were told anything.
            self._nodes[name] = _Node(node.machine, since=self._now)
        return were_open

    # --- What is known -------------------------------------------------------------------------

    def get(self, node: str, handler: str) -> Breaker | None:
        """The breaker; None if nothing is held against this handler on this node."""
        known = self._nodes.get(node)
        return known.breakers.get(handler) if known is not None else None

    def is_open(self, node: str, handler: str) -> bool:
        """Whether the node is quarantined for the handler."""
        return (node, handler) in self._open

    def open(self) -> Iterator[tuple[tuple[str, str], Breaker]]:
        """The open breakers, by node and handler."""
        return iter(list(self._open.items()))

    def due(self, now: float) -> list[tuple[str, str]]:
        """Nodes and handlers that a scout may be sent to now, the longest due first."""
        due = [
            (breaker.retry_at, key)
            for key, breaker in self._open.items()
            # Further ahead than any delay means that the clock was put back.
            if not now < breaker.retry_at <= now + LONGEST_DELAY_SECONDS
        ]
        return [key for _, key in sorted(due)]

    # --- What is kept --------------------------------------------------------------------------

    def dump(self, node: str) -> dict[str, Any] | None:
        """What the next process should know of a node, as plain JSON; None if that is nothing."""
        known = self._nodes.get(node)
        handlers = {
            handler: _SavedBreaker(
                changed_at=breaker.changed_at,
                trips=breaker.trips,
                open=breaker.opened_at is not None,
                retry_at=breaker.retry_at,
                reason=breaker.reason,
                message=_cut(breaker.message, MAX_KEPT_MESSAGE),
                proven=breaker.proven,
            )
            for handler, breaker in (known.breakers.items() if known is not None else ())
            if breaker.trips
        }
        if known is None or not handlers:
            return None
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
        self._nodes[node] = _Node(machine, since=0.0)
        for handler, kept in saved.handlers.items():
            breaker = Breaker(
                machine,
                opened_at=kept.changed_at if kept.open else None,
                changed_at=kept.changed_at,
                trips=kept.trips,
                retry_at=kept.retry_at,
                reason=kept.reason,
                message=kept.message,
                proven=kept.proven,
            )
            self._put(node, handler, breaker)

    # --- Inside --------------------------------------------------------------------------------

    def _known(self, node: NodeFacts) -> _Node:
        self.observe_node(node.name, node)
        known = self._nodes.setdefault(node.name, _Node(node.machine, since=node.created))
        self._forget_future(node.name, known)
        return known

    def _forget_future(self, node: str, known: _Node) -> None:
        """Nothing has happened in the future: where it seems so, the clock was put back.

        Until it had caught up no failure would count, and no sandbox that works close a breaker.
        """
        now = self._now
        known.since = min(known.since, now)
        known.worked = {handler: min(at, now) for handler, at in known.worked.items()}
        for handler, breaker in list(known.breakers.items()):
            if all(at <= now for at in (breaker.changed_at, *(s.at for s in breaker.strikes))):
                continue
            changed_at = min(breaker.changed_at, now)
            past = replace(
                breaker,
                strikes=tuple(replace(s, at=min(s.at, now)) for s in breaker.strikes),
                opened_at=None if breaker.opened_at is None else changed_at,
                changed_at=changed_at,
            )
            self._put(node, handler, past)

    def _trip(self, node: str, handler: str, breaker: Breaker, strikes: tuple[Strike, ...]) -> None:
        quiet = self._now - breaker.changed_at > QUIET_SECONDS
        last = strikes[-1]
        opened = Breaker(
            breaker.machine,
            strikes=strikes,
            opened_at=self._now,
            changed_at=self._now,
            trips=1 if quiet else breaker.trips + 1,
            reason=last.reason,
            message=last.message,
            proven=last.proves,
        )
        self._put(node, handler, replace(opened, retry_at=self._now + self._delay(opened)))

    def _scout_failed(self, node: str, handler: str, breaker: Breaker, strike: Strike) -> None:
        # Only one scout is on its way at a time, so an older failure is told again.
        if strike.template or any(
            _same_pod(strike, other) or strike.at <= other.at for other in breaker.strikes
        ):
            return
        failed = replace(
            breaker,
            strikes=(strike,),
            trips=breaker.trips + 1,
            reason=strike.reason,
            message=strike.message,
            proven=breaker.proven or strike.proves,
        )
        self._put(node, handler, replace(failed, retry_at=self._now + self._delay(failed)))

    def _ignores(self, node: str, strike: Strike) -> bool:
        return self._suspects.ignores(strike.template, node, self._now)

    def _delay(self, breaker: Breaker) -> float:
        first = FIRST_DELAY_AFTER_PROOF_SECONDS if breaker.proven else FIRST_DELAY_SECONDS
        longest = LONGEST_DELAY_SECONDS / (1 + JITTER)
        # The exponent is bounded because a float is.
        delay = min(first * 2.0 ** min(breaker.trips - 1, 32), longest)
        return delay * (1 + JITTER * self._random())

    def _put(self, node: str, handler: str, breaker: Breaker | None) -> None:
        """Replace one breaker; every index is kept up to date here and nowhere else."""
        key = node, handler
        old = self._open.pop(key, None)
        if old is not None:
            self._uncertain[handler] -= not old.proven
        if breaker is None:
            self._nodes[node].breakers.pop(handler, None)
        else:
            self._nodes[node].breakers[handler] = breaker
        if breaker is not None and breaker.opened_at is not None:
            self._open[key] = breaker
            self._uncertain[handler] += not breaker.proven


def _same_pod(strike: Strike, other: Strike) -> bool:
    return strike.pod != "" and strike.pod == other.pod


def _cut(text: str, longest: int) -> str:
    """Bound a message, keeping more of its end: there the cause is."""
    if len(text) <= longest:
        return text
    head = longest // 4
    return f"{text[:head]} ... {text[head + 5 - longest :]}"
