"""What went wrong with each runtime lately, and where; bounded, however much goes wrong."""

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
    """One cause of trouble of one handler, over all nodes.

    Attributes:
        count: how many nodes are affected now.
        nodes: some of them, the first by name.
        first_seen: epoch seconds since when it has stood.
        last_seen: epoch seconds at which it showed last.
        message: the newest text.
    """

    reason: Reason
    handler: str
    count: int
    nodes: tuple[str, ...]
    first_seen: float
    last_seen: float
    message: str


@dataclass(frozen=True, slots=True)
class _Issue:
    first_seen: float
    last_seen: float
    message: str


class FailureHistory:
    """The latest trouble for each handler, node and reason."""

    def __init__(self) -> None:
        self._issues: defaultdict[str, dict[str, dict[Reason, _Issue]]] = defaultdict(dict)
        # Handler, node and reason of each, the one that was recorded longest ago first.
        self._order: OrderedDict[tuple[str, str, Reason], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._order)

    def record(self, handler: str, node: str, reason: Reason, message: str, at: float) -> None:
        """Take note of a failure.

        Args:
            handler: the runtime that the sandbox was to have.
            node: where it happened.
            reason: what it was diagnosed as.
            message: the raw text; it is cut to a bound.
            at: epoch seconds. Failures may be told out of order.
        """
        here = self._issues[handler].setdefault(node, {})
        known = here.get(reason)
        if known is None or at - known.last_seen > WINDOW_SECONDS:
            here[reason] = _Issue(at, at, truncate(message))
        elif at < known.last_seen:
            here[reason] = replace(known, first_seen=min(at, known.first_seen))
        else:
            here[reason] = _Issue(known.first_seen, at, truncate(message))
        key = handler, node, reason
        self._order[key] = None
        self._order.move_to_end(key)
        if len(self._order) > MAX_FAILURES:
            self._remove(*next(iter(self._order)))

    def clear(self, handler: str, node: str, only: Reason | None = None) -> None:
        """A sandbox of this handler works on the node again, or one cause of trouble is no more."""
        for reason in list(self._issues.get(handler, {}).get(node, ())):
            if only in (None, reason):
                self._remove(handler, node, reason)

    def forget_node(self, node: str) -> None:
        """The node is gone."""
        for handler in list(self._issues):
            self.clear(handler, node)

    def rows(
        self, handler: str, now: float, include_node: Callable[[str], bool] = lambda node: True
    ) -> tuple[FailureSummary, ...]:
        """What has shown within the window and was not cleared, by cause, the worst first.

        Args:
            handler: the runtime.
            now: epoch seconds.
            include_node: whether a node, by name, is of interest.
        """
        groups: defaultdict[Reason, dict[str, _Issue]] = defaultdict(dict)
        for node, issues in list(self._issues.get(handler, {}).items()):
            for reason, issue in list(issues.items()):
                if now - issue.last_seen > WINDOW_SECONDS:
                    self._remove(handler, node, reason)
                elif include_node(node):
                    groups[reason][node] = issue
        rows = [_row(handler, reason, by_node) for reason, by_node in groups.items()]
        return tuple(sorted(rows, key=lambda row: (-row.count, row.reason)))

    def _remove(self, handler: str, node: str, reason: Reason) -> None:
        nodes = self._issues[handler]
        del nodes[node][reason]
        if not nodes[node]:
            del nodes[node]
        if not nodes:
            del self._issues[handler]
        del self._order[handler, node, reason]


def _row(handler: str, reason: Reason, by_node: dict[str, _Issue]) -> FailureSummary:
    _, newest = max(by_node.items(), key=lambda item: (item[1].last_seen, item[0]))
    return FailureSummary(
        reason=reason,
        handler=handler,
        count=len(by_node),
        nodes=tuple(heapq.nsmallest(MAX_EXAMPLES, by_node)),
        first_seen=min(issue.first_seen for issue in by_node.values()),
        last_seen=newest.last_seen,
        message=newest.message,
    )
