"""Which field of an object says that it was served. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Self

_STEP = re.compile(r"([^.\[\]]+)(?:\[([^=\]]+)=([^\]]*)\])?(?:\.|$)")


@dataclass(frozen=True, slots=True)
class _Step:
    name: str
    # Of a list, the element whose key has this value.
    key: str = ""
    value: str = ""

    def into(self, value: Any) -> Any:
        found = value.get(self.name) if isinstance(value, dict) else None
        if not self.key:
            return found
        elements = found if isinstance(found, list) else []
        return next((e for e in elements if str(e.get(self.key)) == self.value), None)


@dataclass(frozen=True, slots=True)
class BoundField:
    """A path into an object, and the value that it has once the object was served."""

    steps: tuple[_Step, ...]
    value: str | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``status.phase=Bound``, or ``status.conditions[type=Ready].status=True``.

        Without a value the field only has to be there and not empty.

        Raises:
            ValueError: the text is no such path.
        """
        path, equals, value = text.strip().removeprefix(".").partition("=")
        if path.count("[") > path.count("]"):
            # The first = stands within brackets: the value follows the last bracket.
            head, _, tail = text.strip().removeprefix(".").rpartition("]")
            rest, equals, value = tail.partition("=")
            path = f"{head}]{rest}"
        steps = []
        position = 0
        while position < len(path):
            match = _STEP.match(path, position)
            if match is None:
                raise ValueError(f"{text!r} is not a path such as status.phase=Bound")
            steps.append(_Step(match[1], match[2] or "", match[3] or ""))
            position = match.end()
        if not steps:
            raise ValueError(f"{text!r} names no field")
        return cls(tuple(steps), value if equals else None)

    def holds(self, obj: Any) -> bool:
        """Whether the object was served."""
        for step in self.steps:
            obj = step.into(obj)
            if obj is None:
                return False
        if self.value is None:
            return bool(obj)
        text = str(obj).lower() if isinstance(obj, bool) else str(obj)
        return text == self.value
