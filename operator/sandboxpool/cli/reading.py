"""Fields of objects that anybody may have damaged: what is not of the right type reads as empty."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sandboxpool.cli import times

Object = dict[str, Any]

_CONDITION = ("type", "status", "reason", "message", "lastTransitionTime")


@dataclass(frozen=True, slots=True)
class ConditionText:
    """A condition as the status has it; `since` is when its status last changed."""

    type: str
    status: str
    reason: str
    message: str
    since: str = ""


def mapping(value: Any, *path: str) -> Object:
    """Return the object at a path; empty where there is none."""
    found = value_at(value, *path)
    return found if isinstance(found, dict) else {}


def objects(value: Any, *path: str) -> list[Object]:
    """Return the objects of the list at a path; empty where there is none."""
    found = value_at(value, *path)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def strings(value: Any, *path: str) -> list[str]:
    """Return the strings of the list at a path; empty where there is none."""
    found = value_at(value, *path)
    return [item for item in found if isinstance(item, str)] if isinstance(found, list) else []


def text(value: Any, *path: str) -> str:
    """Return the string at a path; empty where there is none."""
    found = value_at(value, *path)
    return found if isinstance(found, str) else ""


def number(value: Any, *path: str) -> int | None:
    """Return the whole number at a path; None where there is none."""
    found = value_at(value, *path)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def shown(value: Any, *path: str) -> str:
    """Return the whole number at a path as text; empty where there is none."""
    found = number(value, *path)
    return "" if found is None else str(found)


def moment(value: Any, *path: str) -> datetime | None:
    """Return the time at a path; None where there is none or it has no time zone."""
    try:
        found = times.moment(text(value, *path))
    except ValueError:
        return None
    return found if found is not None and found.tzinfo is not None else None


def conditions(obj: Object) -> list[ConditionText]:
    """Return the conditions of a status, in its order."""
    return [
        ConditionText(*(text(item, key) for key in _CONDITION))
        for item in objects(obj, "status", "conditions")
    ]


def condition(obj: Object, type_: str) -> ConditionText | None:
    """Return one condition; None where the status does not have it."""
    return next((found for found in conditions(obj) if found.type == type_), None)


def name(obj: Object) -> str:
    """Return the name of an object."""
    return text(obj, "metadata", "name")


def namespaced_name(obj: Object) -> str:
    """Return `namespace/name` of an object."""
    return f"{text(obj, 'metadata', 'namespace')}/{name(obj)}"


def stages(obj: Object) -> Iterator[tuple[str, Object]]:
    """Yield the measured stages of the start-up in the status, in their order in a pod's life."""
    measured = mapping(obj, "status", "startup", "stages")
    for stage in ("scheduled", "sandbox", "started", "ready"):
        if isinstance(timing := measured.get(stage), dict):
            yield stage, timing


def value_at(value: Any, *path: str) -> Any:
    """Return whatever is at a path; None where there is nothing."""
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value
