"""Hints: sandboxes whose failure may be the fault of the node's runtime. A hint requests a probe.

Hints come from users' sandboxes, so any user can cause any number of them. Hence:

- The next hint is taken from the namespace with the fewest recent wrong hints, and among equals
  from the one that has waited longest. A flood of hints delays only the namespace that causes it.
- A namespace whose hints are wrong waits increasingly long between two probes, up to a minute. A
  right hint, or an hour without a wrong one, resets the delay.
- The result of a probe answers all hints about its node and handler that are older than the probe.

Where a probe is inconclusive, the namespaces of the hints are remembered as witnesses.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import chain, zip_longest

from sandboxpool.runtimes.nodes import NodeHandler
from sandboxpool.util.backoff import delay_after

# This many wrong hints in a row cause no delay.
FREE_WRONG = 3
LONGEST_PAUSE_SECONDS = 60.0
QUIET_SECONDS = 3600.0
# A node and handler are not probed for hints again within this time after an answer.
ANSWERED_SECONDS = 10.0
MAX_NAMESPACES = 2000
MAX_HINTS_OF_A_NAMESPACE = 200
MAX_ANSWERS = 20_000
# More witnesses add no information.
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
    """The hints that no probe has answered yet. Times are seconds since the epoch."""

    def __init__(self) -> None:
        self._namespaces: OrderedDict[str, _Namespace] = OrderedDict()
        self._answered: OrderedDict[NodeHandler, float] = OrderedDict()
        self._witnesses: OrderedDict[NodeHandler, dict[str, float]] = OrderedDict()

    def add(self, namespace: str, pair: NodeHandler, at: float) -> None:
        """Record that a sandbox of a namespace has failed, possibly by the runtime's fault."""
        known = self._namespaces.setdefault(namespace, _Namespace())
        self._namespaces.move_to_end(namespace)
        if len(self._namespaces) > MAX_NAMESPACES:
            self._namespaces.popitem(last=False)
        known.hints[pair] = at
        if len(known.hints) > MAX_HINTS_OF_A_NAMESPACE:
            known.hints.popitem(last=False)

    def next_probes(self, now: float) -> list[NodeHandler]:
        """Nodes and handlers to probe now, the most urgent first, each once.

        The order is round-robin over the namespaces.
        """
        for known in self._namespaces.values():
            if known.wrong and not 0 <= now - known.wrong_at <= QUIET_SECONDS:
                known.wrong = 0
        ranked = sorted(self._namespaces.values(), key=lambda n: (n.wrong, n.taken_at))
        queues = [list(known.hints) for known in ranked if not now < known.not_before()]
        in_turn = dict.fromkeys(chain.from_iterable(zip_longest(*queues)))
        return [pair for pair in in_turn if pair is not None and self._may_be_probed(pair, now)]

    def _may_be_probed(self, pair: NodeHandler, now: float) -> bool:
        answered = self._answered.get(pair)
        return answered is None or not 0 <= now - answered < ANSWERED_SECONDS

    def probe_started(self, pair: NodeHandler, now: float) -> None:
        """Record the start of a probe."""
        for known in self._namespaces.values():
            if pair in known.hints:
                known.taken_at = now

    def probe_finished(
        self, pair: NodeHandler, started_at: float, *, confirmed: bool | None, now: float
    ) -> None:
        """Record the result of a probe.

        Args:
            pair: node and handler.
            started_at: when the probe was created.
            confirmed: the runtime fails; False if it works, None if the probe was inconclusive.
            now: the current time.
        """
        self._answered[pair] = now
        self._answered.move_to_end(pair)
        if len(self._answered) > MAX_ANSWERS:
            self._answered.popitem(last=False)
        earlier = self._witnesses.get(pair, {})
        witnesses = {name: at for name, at in earlier.items() if 0 <= now - at <= QUIET_SECONDS}
        self._witnesses[pair] = witnesses
        for name, known in self._namespaces.items():
            hinted = known.hints.get(pair)
            if hinted is None:
                continue
            if confirmed is None and (name in witnesses or len(witnesses) < MAX_WITNESSES):
                witnesses[name] = now
            if hinted <= started_at or hinted > now:
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
        """How many namespaces had failures here within the hour that no probe could confirm."""
        seen = self._witnesses.get(pair, {})
        return sum(0 <= now - at <= QUIET_SECONDS for at in seen.values())

    def forget_node(self, node: str) -> None:
        """Drop the hints about a node that was deleted or replaced."""
        for known in self._namespaces.values():
            for pair in [pair for pair in known.hints if pair[0] == node]:
                del known.hints[pair]
        for pair in [pair for pair in {*self._answered, *self._witnesses} if pair[0] == node]:
            self._answered.pop(pair, None)
            self._witnesses.pop(pair, None)
