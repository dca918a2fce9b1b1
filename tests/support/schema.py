"""Whether an object would pass what the CRDs say of it."""

from functools import cache
from typing import Any

import msgspec
from pydantic import TypeAdapter

from sandboxpool.api.structs import Struct


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def validate(kind: Any, wire: Any) -> None:
    """Check an object against the bounds that the CRD has.

    Raises:
        pydantic.ValidationError: it breaks one.
    """
    _adapter(kind).validate_python(wire)


def check_written(kind: type[Struct], wire: dict[str, Any]) -> None:
    """Check what is sent: it keeps the bounds, and the operator reads back just what it wrote."""
    validate(kind, wire)
    assert msgspec.convert(wire, kind).to_wire() == wire
