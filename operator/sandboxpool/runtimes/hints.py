"""Hints: sandboxes that the runtime of a node seems to fail. They order a probe, and do no more.

A hint comes from somebody's sandbox, so anybody may cause hints, and as many as he likes. Hence:

- The next hint is taken from the namespace whose hints have proven wrong least often lately, and
  of equals from the one that has waited longest. A flood delays nobody but who caused it.
- A namespace whose hints prove wrong waits ever longer between two of them, up to a minute. One
  that proves right, or an hour without any, ends that.
- What a probe finds answers all hints about that node and handler that are older than the probe.

Where a probe could not tell, the namespaces that had asked are remembered as witnesses.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import chain, zip_longest

from sandboxpool.util.backoff import delay_after

NodeHandler = tuple[str, str]

# So many wrong hints in a row cost a namespace nothing.
FREE_WRONG = 3
LONGEST_PAUSE_SECONDS = 60.0
QUIET_SECONDS = 3600.0
# A node and handler are not probed for hints again within so many seconds of an answer.
ANSWERED_SECONDS = 10.0
MAX_NAMESPACES = 2000
MAX_HINTS_OF_A_NAMESPACE = 200
MAX_ANSWERS = 20_000
# More say no more than these.
MAX_WITNESSES = 8


@dataclass(slots=True)
class _Namespace:
    """Times are seconds since the epoch."""

    hints: OrderedDict[NodeHandler, float] = field(default_factory=OrderedDict)
    wrong: int = 0
    wrong_at: float = 0.0
    taken_at: float = 0.0

    def not_before(self) -> float:
        if self.wrong <= FREE_WRONG:
            return 0.0
        pause = delay_after(self.wrong - FREE_WRONG, 1.0, LONGEST_PAUSE_SECONDS)
        return self.taken_at + pause


class Hints:
    """The hints that no probe has answered yet."""

    def __init__(self) -> None:
        self._namespaces: OrderedDict[str, _Namespace] = OrderedDict()
        self._answered: OrderedDict[NodeHandler, float] = OrderedDict()
        self._witnesses: OrderedDict[NodeHandler, dict[str, float]] = OrderedDict()

    def add(self, namespace: str, pair: NodeHandler, at: float) -> None:
        """A sandbox of a namespace has failed, in a way that may be its runtime's fault.

        Args:
            namespace: whose sandbox it was.
            pair: node and handler.
            at: epoch seconds of now.
        """
        known = self._namespaces.setdefault(namespace, _Namespace())
        self._namespaces.move_to_end(namespace)
        if len(self._namespaces) > MAX_NAMESPACES:
            self._namespaces.popitem(last=False)
        known.hints[pair] = at
        if len(known.hints) > MAX_HINTS_OF_A_NAMESPACE:
            known.hints.popitem(last=False)

    def next_probes(self, now: float) -> list[NodeHandler]:
        """Nodes and handlers to probe now, the most urgent first; each once.

        The first of each namespace, then the second of each, and so on: who asks takes the first
        that can be probed at all.
        """
        for known in self._namespaces.values():
            if known.wrong and not 0 <= now - known.wrong_at <= QUIET_SECONDS:
                known.wrong = 0
        ranked = sorted(self._namespaces.values(), key=lambda n: (n.wrong, n.taken_at))
        lines = [list(known.hints) for known in ranked if not now < known.not_before()]
        in_turn = dict.fromkeys(chain.from_iterable(zip_longest(*lines)))
        return [pair for pair in in_turn if pair is not None and self._may_be_asked(pair, now)]

    def _may_be_asked(self, pair: NodeHandler, now: float) -> bool:
        answered = self._answered.get(pair)
        return answered is None or not 0 <= now - answered < ANSWERED_SECONDS

    def probe_started(self, pair: NodeHandler, now: float) -> None:
        """A probe of this node and handler is sent."""
        for known in self._namespaces.values():
            if pair in known.hints:
                known.taken_at = now

    def probe_finished(
        self, pair: NodeHandler, asked_at: float, *, confirmed: bool | None, now: float
    ) -> None:
        """A probe has ended.

        Args:
            pair: node and handler.
            asked_at: epoch seconds at which the probe was sent.
            confirmed: the runtime fails; False if it works, None if the probe could not tell.
            now: epoch seconds.
        """
        self._answered[pair] = now
        self._answered.move_to_end(pair)
        if len(self._answered) > MAX_ANSWERS:
            self._answered.popitem(last=False)
        told = self._witnesses.get(pair, {})
        witnesses = {name: at for name, at in told.items() if 0 <= now - at <= QUIET_SECONDS}
        self._witnesses[pair] = witnesses
        for name, known in self._namespaces.items():
            hinted = known.hints.get(pair)
            if hinted is None:
                continue
            if confirmed is None and (name in witnesses or len(witnesses) < MAX_WITNESSES):
                witnesses[name] = now
            if hinted <= asked_at or hinted > now:
                del known.hints[pair]
            if confirmed is True:
                known.wrong = 0
            elif confirmed is False:
                known.wrong += 1
                known.wrong_at = now
        if confirmed is not None or not witnesses:
            del self._witnesses[pair]
        if len(self._witnesses) > MAX_ANSWERS:
            self._witnesses.popitem(last=False)

    def count_witnesses(self, pair: NodeHandler, now: float) -> int:
        """How many namespaces have had sandboxes fail here within the hour, as no probe told."""
        seen = self._witnesses.get(pair, {})
        return sum(0 <= now - at <= QUIET_SECONDS for at in seen.values())

    def forget_node(self, node: str) -> None:
        """The node is gone, or another machine."""
        for known in self._namespaces.values():
            for pair in [pair for pair in known.hints if pair[0] == node]:
                del known.hints[pair]
        for pair in [pair for pair in {*self._answered, *self._witnesses} if pair[0] == node]:
            self._answered.pop(pair, None)
            self._witnesses.pop(pair, None)
