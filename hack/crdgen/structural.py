"""JSON schema, as pydantic makes it, to a structural schema, as a CRD wants it.

What has no counterpart raises `UnsupportedSchemaError` instead of being dropped: a bound that
silently vanished from the CRD would be found by a user.
"""

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]

VALIDATIONS = "x-kubernetes-validations"
PRESERVE_UNKNOWN = "x-kubernetes-preserve-unknown-fields"
INT_OR_STRING = "x-kubernetes-int-or-string"

# Keywords of a CRD, in the order in which a reader wants them.
_ORDER = (
    "description",
    "type",
    "format",
    "default",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "required",
    PRESERVE_UNKNOWN,
    INT_OR_STRING,
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    "properties",
    "additionalProperties",
    "items",
    VALIDATIONS,
)
_NESTED = frozenset({"properties", "additionalProperties", "items"})
_KEPT = frozenset(_ORDER) - _NESTED
_DROPPED = frozenset({"title"})
_FORMATS = {"integer": "int64", "number": "double"}


class UnsupportedSchemaError(ValueError):
    """A model uses something that a CRD cannot say."""


def structural(schema: Schema, definitions: Mapping[str, Schema], path: str = "") -> Schema:
    """Turn a JSON schema into a structural one.

    Args:
        schema: The schema of one node.
        definitions: The `$defs` that its references point into.
        path: Where the node stands, for errors.

    Returns:
        A new schema without references and unions.

    Raises:
        UnsupportedSchemaError: The schema has no structural counterpart.
    """
    return _convert(schema, definitions, path, ())


def _convert(
    schema: Schema, definitions: Mapping[str, Schema], path: str, within: tuple[str, ...]
) -> Schema:
    flat, within = _flatten(schema, definitions, path, within)
    result: Schema = {}
    for keyword, value in flat.items():
        if keyword == "properties":
            result["properties"] = {
                name: _convert(child, definitions, f"{path}.{name}", within)
                for name, child in value.items()
            }
        elif keyword == "items":
            result["items"] = _convert(value, definitions, f"{path}[]", within)
        elif keyword == "additionalProperties":
            _convert_additional(flat, definitions, path, within, result)
        elif keyword == "description":
            result["description"] = _unwrap(value)
        elif keyword in _KEPT:
            result[keyword] = value
        elif keyword not in _DROPPED:
            raise UnsupportedSchemaError(f"{path}: a CRD has no counterpart of {keyword!r}")
    _check_type(result, path)
    if result.get("type") in _FORMATS:
        result.setdefault("format", _FORMATS[result["type"]])
    _settle_default(result)
    return {keyword: result[keyword] for keyword in _ORDER if keyword in result}


def _flatten(
    schema: Schema, definitions: Mapping[str, Schema], path: str, within: tuple[str, ...]
) -> tuple[Schema, tuple[str, ...]]:
    """Inline references and optional types, down to a node that has a type of its own."""
    flat = dict(schema)
    while "$ref" in flat or "anyOf" in flat:
        if "$ref" in flat:
            name = flat.pop("$ref").removeprefix("#/$defs/")
            if name in within:
                raise UnsupportedSchemaError(f"{path}: {name} contains itself")
            within = (*within, name)
            flat = _merge(definitions[name], flat)
        else:
            branches = [branch for branch in flat.pop("anyOf") if branch != {"type": "null"}]
            if len(branches) != 1:
                raise UnsupportedSchemaError(f"{path}: a union of {len(branches)} types")
            flat = _merge(branches[0], flat)
    return flat, within


def _merge(inner: Schema, outer: Schema) -> Schema:
    """Lay what stands beside a reference over what it refers to; rules of both count."""
    rules = [*inner.get(VALIDATIONS, []), *outer.get(VALIDATIONS, [])]
    merged = {**inner, **outer}
    if rules:
        merged[VALIDATIONS] = rules
    return merged


def _convert_additional(
    flat: Schema,
    definitions: Mapping[str, Schema],
    path: str,
    within: tuple[str, ...],
    result: Schema,
) -> None:
    """Convert the values of a map; a map of anything keeps whatever it is given."""
    value = flat["additionalProperties"]
    if value is True:
        result[PRESERVE_UNKNOWN] = True
    elif value is not False:
        if "properties" in flat:
            raise UnsupportedSchemaError(f"{path}: both properties and additionalProperties")
        result["additionalProperties"] = _convert(value, definitions, f"{path}{{}}", within)


def _check_type(schema: Schema, path: str) -> None:
    """Every node of a structural schema has one type, unless it takes anything, or just two."""
    kind = schema.get("type")
    if kind is None and not schema.get(PRESERVE_UNKNOWN) and not schema.get(INT_OR_STRING):
        raise UnsupportedSchemaError(f"{path}: no type")
    if kind is not None and not isinstance(kind, str):
        raise UnsupportedSchemaError(f"{path}: several types, {kind!r}")


def _settle_default(schema: Schema) -> None:
    """Keep the defaults that the API server should write into objects.

    An object's default becomes `{}`: the API server then fills in the defaults of its fields, which
    stand there already. Empty values mean the same as absent ones and are left out, so that stored
    objects hold no noise.
    """
    if "default" not in schema:
        return
    value = schema["default"]
    if isinstance(value, dict):
        if _has_default(schema):
            schema["default"] = {}
            return
        value = None
    if value in (None, "", [], ()):
        del schema["default"]


def _has_default(schema: Schema) -> bool:
    return any(
        "default" in child or _has_default(child) for child in schema.get("properties", {}).values()
    )


def _unwrap(text: str) -> str:
    """Undo the line breaks of the source; blank lines stay."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
