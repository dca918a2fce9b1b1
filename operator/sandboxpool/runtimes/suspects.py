"""Templates that fail for reasons of their own, which must not be held against nodes.

A template falls under suspicion in two ways. It has never worked anywhere and fails for the same
reason on several nodes on which no other template fails. Or a neutral probe works on a node that
was quarantined for its failures. While under suspicion, failures of it that prove nothing count
nowhere. That ends after an hour, or at once when a sandbox of it works that was made after the
probe. On a node that was cleared by a probe it has to work on that very node: a template may well
work on large nodes and never on small ones, and those must not be quarantined over and over.
"""

import math
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field

from sandboxpool.reasons import Reason

SUSPECT_NODES = 3
SUSPECT_SECONDS = 3600.0
# The oldest are forgotten, and found again if need be.
MAX_TEMPLATES = 1000
MAX_SUSPICIONS = 10_000
MAX_NODES_OF_A_TEMPLATE = 16

EVERYWHERE = ""


@dataclass(slots=True)
class _History:
    """How a template has fared: whether it ever worked, if not where it failed, and it alone."""

    worked: bool = False
    failed_on: dict[str, Reason] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Suspicion:
    since: float
    until: float


class Suspects:
    """What is held against templates. Times are seconds since the epoch."""

    def __init__(self) -> None:
        self._histories: OrderedDict[str, _History] = OrderedDict()
        self._suspicions: OrderedDict[tuple[str, str], _Suspicion] = OrderedDict()

    def failed(
        self, template: str, node: str, reason: Reason, others: Collection[str], now: float
    ) -> None:
        """Take in a failure that proves nothing; those of the probe speak for the templates.

        Args:
            template: who made the sandbox.
            node: where it failed.
            reason: the cause.
            others: who else has failed on the node since anything worked there.
            now: seconds since the epoch.
        """
        for shared in (template, *others) if others else ():
            if shared in self._histories:
                self._histories[shared].failed_on.pop(node, None)
        if not template or others:
            return
        history = self._history(template)
        if history.worked:
            return
        history.failed_on[node] = reason
        if len(history.failed_on) > MAX_NODES_OF_A_TEMPLATE:
            del history.failed_on[next(iter(history.failed_on))]
        if sum(seen is reason for seen in history.failed_on.values()) >= SUSPECT_NODES:
            # Whatever works of it, however old, will show that this was wrong.
            self._put(template, EVERYWHERE, _Suspicion(-math.inf, now + SUSPECT_SECONDS))

    def worked(self, template: str, node: str, made_at: float) -> None:
        """A sandbox of the template, made at this time, works on a node."""
        history = self._history(template)
        history.worked = True
        history.failed_on.clear()
        for key in ((template, node), (template, EVERYWHERE)):
            suspicion = self._suspicions.get(key)
            if suspicion is not None and made_at > suspicion.since:
                del self._suspicions[key]

    def cleared(self, node: str, template: str, now: float) -> None:
        """A probe works on a node where sandboxes of the template did not."""
        for where in (node, EVERYWHERE):
            self._put(template, where, _Suspicion(now, now + SUSPECT_SECONDS))

    def ignores(self, template: str, node: str, now: float) -> bool:
        """Whether failures of the template that prove nothing do not count on this node."""
        for where in (node, EVERYWHERE):
            suspicion = self._suspicions.get((template, where))
            # One that is to last longer than any began before the clock was put back.
            if suspicion is not None and now < suspicion.until <= now + SUSPECT_SECONDS:
                return True
        return False

    def _put(self, template: str, where: str, suspicion: _Suspicion) -> None:
        key = template, where
        self._suspicions[key] = suspicion
        self._suspicions.move_to_end(key)
        if len(self._suspicions) > MAX_SUSPICIONS:
            self._suspicions.popitem(last=False)

    def _history(self, template: str) -> _History:
        history = self._histories.setdefault(template, _History())
        self._histories.move_to_end(template)
        if len(self._histories) > MAX_TEMPLATES:
            self._histories.popitem(last=False)
        return history
