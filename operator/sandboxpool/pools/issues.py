"""What is wrong with a pool's sandboxes and its runtime, grouped by cause. Pure."""

from collections import defaultdict
from collections.abc import Mapping

from sandboxpool.api.reasons import Reason
from sandboxpool.api.times import timestamp
from sandboxpool.api.v1alpha1 import PoolIssue
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.pools.conditions import MAX_EXAMPLES
from sandboxpool.pools.plan import PoolInput
from sandboxpool.runtimes.diagnosis import SEVERITY
from sandboxpool.runtimes.quarantine import Quarantine
from sandboxpool.sandboxes.members import Member, Members


def severity(reason: Reason) -> int:
    """Sort key, the worst first; what no failure is named by, such as of a damaged record, last."""
    return SEVERITY.index(reason) if reason in SEVERITY else len(SEVERITY)


def quarantine_issues(given: PoolInput) -> list[PoolIssue]:
    """Group the quarantined nodes by cause, the worst first."""
    groups: dict[Reason, list[tuple[str, Quarantine]]] = defaultdict(list)
    for node, quarantine in given.quarantines:
        groups[quarantine.reason].append((node, quarantine))
    return [
        PoolIssue(
            reason=str(reason),
            count=len(groups[reason]),
            nodes=[node for node, _ in groups[reason][:MAX_EXAMPLES]],
            since=timestamp(min(known.changed_at for _, known in groups[reason])),
            message=groups[reason][0][1].message,
        )
        for reason in sorted(groups, key=severity)
    ]


def startup_issues(members: Members, former: Mapping[str, str], now: float) -> list[PoolIssue]:
    """Group the pods in trouble by cause, the worst first."""
    groups: dict[Reason, list[Member]] = defaultdict(list)
    for member in members.of(
        SandboxState.STARTING, SandboxState.UNREADY, SandboxState.STRANDED, SandboxState.FAILED
    ):
        if member.failure is not None:
            groups[member.failure.reason].append(member)
    found = []
    for reason in sorted(groups, key=severity):
        group = sorted(groups[reason], key=lambda m: (m.created, m.name))
        first = group[0].failure
        found.append(
            PoolIssue(
                reason=str(reason),
                count=len(group),
                nodes=sorted({m.node_name for m in group if m.node_name})[:MAX_EXAMPLES],
                since=former.get(reason) or timestamp(now),
                message=first.message if first else "",
            )
        )
    return found
