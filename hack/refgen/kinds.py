"""The reference of the kinds, from the schemas of their CRDs."""

from collections.abc import Iterator
from typing import Any

from crdgen.crd import custom_resource_definition
from crdgen.structural import INT_OR_STRING, VALIDATIONS
from refgen.text import cell, head, module_path, paragraph
from sandboxpool.api.v1alpha1 import KINDS, Kind

Schema = dict[str, Any]
_TABLE = "| Field | Type | Description |\n|---|---|---|"
# Of the top level: what every object of Kubernetes has.
_STANDARD = ("apiVersion", "kind", "metadata")


def render() -> dict[str, str]:
    """Return a page for each kind, as Markdown, by file name."""
    return {f"{model.resource.kind.lower()}.md": _page(model) for model in KINDS}


def _page(model: Kind) -> str:
    definition = custom_resource_definition(model)["spec"]
    names, (version,) = definition["names"], definition["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    parts = [
        head(f"Reference: {names['kind']}", module_path(model.__module__)),
        paragraph(schema.get("description", "")),
        "",
        "| | |",
        "|---|---|",
        f"| API version | `{definition['group']}/{version['name']}` |",
        f"| Scope | {definition['scope']} |",
        f"| Names for kubectl | `{names['plural']}`, `{names['singular']}`, "
        + ", ".join(f"`{name}`" for name in names["shortNames"])
        + " |",
        f"| Category | {', '.join(f'`{name}`' for name in names['categories'])} |",
        f"| Subresources | {', '.join(f'`{name}`' for name in version['subresources'])} |",
        "",
        *_rules(schema),
    ]
    for name, child in schema["properties"].items():
        if name not in _STANDARD:
            parts += _section(name, child)
    parts += ["## Columns of `kubectl get`", "", "| Column | Field | Meaning |", "|---|---|---|"]
    parts += [
        f"| {column['name'].upper()} | `{column['jsonPath'].removeprefix('.')}` "
        f"| {cell(column.get('description', ''))} |"
        for column in version["additionalPrinterColumns"]
    ]
    return "\n".join(parts).rstrip() + "\n"


def _section(path: str, schema: Schema) -> Iterator[str]:
    """Yield an object with its fields, then the objects in it."""
    yield f"{'##' if '.' not in path else '###'} {path}"
    yield ""
    if text := schema.get("description"):
        yield paragraph(text)
        yield ""
    yield from _rules(schema)
    fields = schema["properties"]
    required = schema.get("required", ())
    yield _TABLE
    for name, child in fields.items():
        yield f"| `{name}` | {_type(child, name in required)} | {_description(child)} |"
    yield ""
    for name, child in fields.items():
        below = _described_below(f"{path}.{name}", child)
        if below is not None:
            yield from _section(*below)


def _described_below(path: str, schema: Schema) -> tuple[str, Schema] | None:
    """Return the object with fields of its own that a field is, or is a list or a map of."""
    if "properties" in schema:
        return path, schema
    for keyword, mark in (("items", "[]"), ("additionalProperties", ".*")):
        inner = schema.get(keyword)
        if isinstance(inner, dict) and "properties" in inner:
            return f"{path}{mark}", inner
    return None


def _type(schema: Schema, required: bool) -> str:
    words = [_type_name(schema)]
    if required:
        words.append("required")
    if schema.get("default") not in (None, {}):
        words.append(f"default `{_literal(schema['default'])}`")
    return ", ".join(words)


def _type_name(schema: Schema) -> str:
    if schema.get(INT_OR_STRING):
        return "integer or string"
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        return f"list of {_type_name(schema['items'])}s"
    if isinstance(inner := schema.get("additionalProperties"), dict):
        return f"map of {_type_name(inner)}s"
    return "time" if schema.get("format") == "date-time" else kind


def _description(schema: Schema) -> str:
    parts = [cell(schema.get("description", ""))]
    if "enum" in schema:
        parts.append("One of " + ", ".join(f"`{value}`" for value in schema["enum"]) + ".")
    if "minimum" in schema and "maximum" in schema:
        parts.append(f"From {schema['minimum']} to {schema['maximum']}.")
    if "maxLength" in schema:
        parts.append(f"At most {schema['maxLength']} characters.")
    if "maxItems" in schema or "maxProperties" in schema:
        parts.append(f"At most {schema.get('maxItems', schema.get('maxProperties'))} entries.")
    if "properties" not in schema:
        parts += (
            f'Else refused: "{cell(rule["message"])}".' for rule in schema.get(VALIDATIONS, ())
        )
    return " ".join(filter(None, parts))


def _rules(schema: Schema) -> Iterator[str]:
    """Yield the rules that concern more than one field, as a list."""
    rules = schema.get(VALIDATIONS, ())
    if not rules:
        return
    yield "The API server refuses what breaks a rule, with these messages:"
    yield ""
    for rule in rules:
        at = f"`{rule['fieldPath'].removeprefix('.')}`: " if "fieldPath" in rule else ""
        yield f"- {at}{paragraph(rule['message'])}"
    yield ""


def _literal(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
