"""Conditions, with Kubernetes' rule for time: it moves only when the status does."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sandboxpool.api.reasons import Reason
from sandboxpool.api.times import timestamp

MAX_MESSAGE = 1024
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@dataclass(frozen=True, slots=True)
class ConditionResult:
    """A condition before it has a time; ``holds`` None means that nobody can say."""

    type: str
    status: bool | None
    reason: Reason
    message: str


def conditions(
    findings: Iterable[ConditionResult], before: Mapping[str, Any], generation: int, now: float
) -> list[dict[str, Any]]:
    """Write findings as conditions.

    Args:
        findings: all of them, in the order in which they shall stand.
        before: the status as it stands on the server, possibly damaged by others.
        generation: the generation that the findings are about.
        now: seconds since the epoch.
    """
    known = {}
    listed = before.get("conditions")
    for old in listed if isinstance(listed, list) else ():
        if isinstance(old, dict):
            known[str(old.get("type"))] = old
    result = []
    for finding in findings:
        status = {True: "True", False: "False", None: "Unknown"}[finding.status]
        old = known.get(finding.type, {})
        since = old.get("lastTransitionTime") if old.get("status") == status else None
        if not (isinstance(since, str) and _TIMESTAMP.fullmatch(since)):
            since = None
        result.append(
            {
                "type": finding.type,
                "status": status,
                "reason": str(finding.reason),
                "message": finding.message[:MAX_MESSAGE],
                "lastTransitionTime": since or timestamp(now),
                "observedGeneration": generation,
            }
        )
    return result
