"""Conditions; lastTransitionTime changes only with the status, as Kubernetes requires."""

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
    """A condition without its time; the status None means Unknown."""

    type: str
    status: bool | None
    reason: Reason
    message: str


def conditions(
    results: Iterable[ConditionResult],
    before: Iterable[core.Condition | Condition],
    generation: int | None,
    now: float,
) -> list[Condition]:
    """Write results as conditions.

    Args:
        results: all conditions, in their order in the status.
        before: the conditions on the server.
        generation: the observed generation; None where conditions have none.
        now: seconds since the epoch.
    """
    known = {old.type: old for old in before}
    written = []
    for result in results:
        status = _STATUS[result.status]
        old = known.get(result.type)
        since = old.lastTransitionTime if old is not None and old.status == status else None
        if since is None or not _TIMESTAMP.fullmatch(since):
            since = timestamp(now)
        written.append(
            Condition(
                type=result.type,
                status=status,
                reason=str(result.reason),
                message=result.message[:MAX_MESSAGE],
                lastTransitionTime=since,
                observedGeneration=generation,
            )
        )
    return written


def stored_conditions(status: Mapping[str, Any]) -> list[core.Condition]:
    """The conditions of a status on the server; malformed ones are left out."""
    listed = status.get("conditions")
    known = []
    for condition in listed if isinstance(listed, list) else ():
        try:
            known.append(msgspec.convert(condition, core.Condition))
        except msgspec.ValidationError:
            continue
    return known
