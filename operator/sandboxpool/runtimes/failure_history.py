"""Recent failures of each runtime, by node; bounded in size."""

import heapq
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

from sandboxpool.api.reasons import Reason
from sandboxpool.runtimes.diagnosis import truncate

MAX_FAILURES = 20_000
MAX_EXAMPLES = 5
WINDOW_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class FailureSummary:
    """The failures of one handler with one reason, over all nodes.

    Attributes:
        count: how many nodes are affected now.
        nodes: some of them, the first by name.
        first_seen: epoch seconds of the first failure.
        last_seen: epoch seconds of the last failure.
        message: the newest message.
    """

    reason: Reason
    handler: str
    count: int
    nodes: tuple[str, ...]
    first_seen: float
    last_seen: float
    message: str


@dataclass(frozen=True, slots=True)
class _Failure:
    first_seen: float
    last_seen: float
    message: str


class FailureHistory:
    """The latest failure for each handler, node and reason."""

    def __init__(self) -> None:
        self._failures: defaultdict[str, dict[str, dict[Reason, _Failure]]] = defaultdict(dict)
        # Handler, node and reason of each failure, the least recently recorded first.
        self._order: OrderedDict[tuple[str, str, Reason], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._order)

    def record(self, handler: str, node: str, reason: Reason, message: str, at: float) -> None:
        """Record a failure.

        Args:
            handler: the handler of the sandbox.
            node: where it happened.
            reason: the diagnosis.
            message: the raw text; it is truncated.
            at: epoch seconds. Failures may be recorded out of order.
        """
        failures = self._failures[handler].setdefault(node, {})
        known = failures.get(reason)
        if known is None or at - known.last_seen > WINDOW_SECONDS:
            failures[reason] = _Failure(at, at, truncate(message))
        elif at < known.last_seen:
            failures[reason] = replace(known, first_seen=min(at, known.first_seen))
        else:
            failures[reason] = _Failure(known.first_seen, at, truncate(message))
        key = handler, node, reason
        self._order[key] = None
        self._order.move_to_end(key)
        if len(self._order) > MAX_FAILURES:
            self._remove(*next(iter(self._order)))

    def clear(self, handler: str, node: str, only: Reason | None = None) -> None:
        """Remove the failures of a handler on a node that works again, or those of one reason."""
        for reason in list(self._failures.get(handler, {}).get(node, ())):
            if only in (None, reason):
                self._remove(handler, node, reason)

    def forget_node(self, node: str) -> None:
        """Remove the failures on a deleted node."""
        for handler in list(self._failures):
            self.clear(handler, node)

    def summaries(
        self, handler: str, now: float, include_node: Callable[[str], bool] = lambda node: True
    ) -> tuple[FailureSummary, ...]:
        """Summarize the failures of the last hour by reason, the most widespread first.

        Args:
            handler: the runtime.
            now: epoch seconds.
            include_node: whether to count a node, by its name.
        """
        groups: defaultdict[Reason, dict[str, _Failure]] = defaultdict(dict)
        for node, failures in list(self._failures.get(handler, {}).items()):
            for reason, failure in list(failures.items()):
                if now - failure.last_seen > WINDOW_SECONDS:
                    self._remove(handler, node, reason)
                elif include_node(node):
                    groups[reason][node] = failure
        found = [_summary(handler, reason, by_node) for reason, by_node in groups.items()]
        return tuple(sorted(found, key=lambda summary: (-summary.count, summary.reason)))

    def _remove(self, handler: str, node: str, reason: Reason) -> None:
        nodes = self._failures[handler]
        del nodes[node][reason]
        if not nodes[node]:
            del nodes[node]
        if not nodes:
            del self._failures[handler]
        del self._order[handler, node, reason]


def _summary(handler: str, reason: Reason, by_node: dict[str, _Failure]) -> FailureSummary:
    _, newest = max(by_node.items(), key=lambda item: (item[1].last_seen, item[0]))
    return FailureSummary(
        reason=reason,
        handler=handler,
        count=len(by_node),
        nodes=tuple(heapq.nsmallest(MAX_EXAMPLES, by_node)),
        first_seen=min(failure.first_seen for failure in by_node.values()),
        last_seen=newest.last_seen,
        message=newest.message,
    )
