"""Conditions, with Kubernetes' rule for time: it moves only when the status does."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from sandboxpool.api import core
from sandboxpool.api.reasons import Reason
from sandboxpool.api.times import timestamp
from sandboxpool.api.v1alpha1 import Condition, ConditionStatus

MAX_MESSAGE = 1024
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_STATUS = {
    True: ConditionStatus.TRUE,
    False: ConditionStatus.FALSE,
    None: ConditionStatus.UNKNOWN,
}


@dataclass(frozen=True, slots=True)
class ConditionResult:
    """A condition before it has a time; ``holds`` None means that nobody can say."""

    type: str
    status: bool | None
    reason: Reason
    message: str


def conditions(
    findings: Iterable[ConditionResult],
    before: Iterable[core.Condition | Condition],
    generation: int | None,
    now: float,
) -> list[Condition]:
    """Write findings as conditions.

    Args:
        findings: all of them, in the order in which they shall stand.
        before: the conditions as they stand on the server.
        generation: the generation that the findings are about; None where conditions have none.
        now: seconds since the epoch.
    """
    known = {old.type: old for old in before}
    result = []
    for finding in findings:
        status = _STATUS[finding.status]
        old = known.get(finding.type)
        since = old.lastTransitionTime if old is not None and old.status == status else None
        if since is None or not _TIMESTAMP.fullmatch(since):
            since = timestamp(now)
        result.append(
            Condition(
                type=finding.type,
                status=status,
                reason=str(finding.reason),
                message=finding.message[:MAX_MESSAGE],
                lastTransitionTime=since,
                observedGeneration=generation,
            )
        )
    return result


def stored_conditions(status: Mapping[str, Any]) -> list[core.Condition]:
    """The conditions of a status as it stands on the server; damage counts as absence."""
    listed = status.get("conditions")
    known = []
    for condition in listed if isinstance(listed, list) else ():
        try:
            known.append(msgspec.convert(condition, core.Condition))
        except msgspec.ValidationError:
            continue
    return known
