"""Conditions; lastTransitionTime changes only with the status, as Kubernetes requires."""

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
    """A condition without its time; the status None means Unknown."""

    type: str
    status: bool | None
    reason: Reason
    message: str


def conditions(
    results: Iterable[ConditionResult], before: Mapping[str, Any], generation: int, now: float
) -> list[dict[str, Any]]:
    """Write results as conditions.

    Args:
        results: all conditions, in their order in the status.
        before: the status on the server, possibly changed by others.
        generation: the observed generation.
        now: seconds since the epoch.
    """
    known = {}
    listed = before.get("conditions")
    for old in listed if isinstance(listed, list) else ():
        if isinstance(old, dict):
            known[str(old.get("type"))] = old
    written = []
    for result in results:
        status = {True: "True", False: "False", None: "Unknown"}[result.status]
        old = known.get(result.type, {})
        since = old.get("lastTransitionTime") if old.get("status") == status else None
        if not (isinstance(since, str) and _TIMESTAMP.fullmatch(since)):
            since = None
        written.append(
            {
                "type": result.type,
                "status": status,
                "reason": str(result.reason),
                "message": result.message[:MAX_MESSAGE],
                "lastTransitionTime": since or timestamp(now),
                "observedGeneration": generation,
            }
        )
    return written
