"""How much an operator remembers: the sizes of all that it keeps, by name.

Whatever is a collection and hangs somewhere below the operator is counted, so that what is added
to it later is counted, too. What belongs to objects that are gone has to be gone as well.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from typing import Any

import msgspec

PARTS = "sandboxpool"
SERIES = "prometheus_client"
# These grow up to a limit of their own, whatever becomes of the objects, or with what is still
# there: nodes, classes, events of kubelets.
BOUNDED = (
    ".events._recent",
    ".records",
    # Of the last minutes.
    "._seen",
    ".pools._deleted_uids",
    ".cluster._host_states",
    "._issues",
    "_informers[events]._objects",
    "components.nodes._objects",
    ".cluster.events",
    ".cluster.evidence",
    # Series without a pool in their labels.
    "sandboxpool_api_requests",
    "sandboxpool_api_request_duration_seconds",
    "sandboxpool_watch_restarts",
    "sandboxpool_startup_duration_seconds",
    "sandboxpool_probes",
    "sandboxpool_breaker_transitions",
)


def footprint(operator: object) -> dict[str, int]:
    """The size of each collection below an operator, by the path of attributes to it."""
    sizes: Counter[str] = Counter()
    seen: set[int] = set()
    # The nearest first, so that the shortest path names each.
    left: deque[tuple[str, object]] = deque([("", operator)])
    while left:
        path, found = left.popleft()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if _is_part(found):
            left += [(f"{path}.{name}".lstrip("."), part) for name, part in _attributes(found)]
            continue
        if type(found).__module__.startswith(SERIES) and hasattr(found, "_name"):
            sizes[str(found._name)] += len(getattr(found, "_metrics", ()))
            continue
        size = _size(found)
        if size is None:
            continue
        sizes[path] += size
        if path.endswith("._informers") and isinstance(found, Mapping):
            left += [(f"{path}[{name}]", informer) for name, informer in found.items()]
            continue
        items = found.values() if isinstance(found, Mapping) else found
        if isinstance(items, Collection):
            left += [(f"{path}[]", item) for item in items if _holds_more(item)]
    return dict(sizes)


def growth(before: Mapping[str, int], after: Mapping[str, int]) -> list[str]:
    """What has become larger, a line each, but for what may."""
    return [
        f"{path}: {before.get(path, 0)} -> {size}"
        for path, size in sorted(after.items())
        if size > before.get(path, 0) and not any(part in f".{path}" for part in BOUNDED)
    ]


def _is_part(found: object) -> bool:
    """Part of the operator, and no object of the API."""
    ours = any(type_.__module__.startswith(PARTS) for type_ in type(found).__mro__)
    return ours and not isinstance(found, msgspec.Struct | Enum | type)


def _holds_more(item: object) -> bool:
    return _is_part(item) or (isinstance(item, Collection) and not isinstance(item, str | bytes))


def _attributes(part: object) -> Iterator[tuple[str, object]]:
    names = set(getattr(part, "__dict__", ()))
    for type_ in type(part).__mro__:
        slots = type_.__dict__.get("__slots__", ())
        names.update([slots] if isinstance(slots, str) else slots)
    for name in sorted(name for name in names if not name.startswith("__")):
        value: Any = getattr(part, name, None)
        if value is not None:
            yield name, value


def _size(found: object) -> int | None:
    if isinstance(found, asyncio.Queue):
        return found.qsize()
    if isinstance(found, Collection) and not isinstance(found, str | bytes | tuple | frozenset):
        return len(found)
    return None
