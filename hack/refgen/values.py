"""The reference of the chart's values, from the comments of values.yaml and their schema."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from refgen.text import head, paragraph

CHART = Path("charts/sandboxpool")
_HEAD = (
    head("Reference: chart values", f"`{CHART}/values.yaml`")
    + """
Set them with `--set NAME=VALUE` or in a file for `--values`. The chart's schema refuses names that
it does not know. `helm show values charts/sandboxpool` prints all defaults.
"""
)
# A mapping of more than these characters is shown as a block.
_LONG = 60

Schema = dict[str, Any]


@dataclass(frozen=True)
class Value:
    """A value of the chart.

    Attributes:
        name: Its path, such as `probe.image`.
        default: Its default, or None for a group of values.
        comment: The lines of the comment above it, without `#`.
        schema: Its part of the chart's schema, without references.
    """

    name: str
    default: Any
    comment: tuple[str, ...]
    schema: Schema
    is_group: bool


def render(chart: Path) -> str:
    """Return the page, as Markdown."""
    parts = [_HEAD]
    for value in read(chart):
        depth = "##" if "." not in value.name else "###"
        parts.append(f"{depth} {value.name}\n")
        parts += _comment(value.comment)
        if not value.is_group:
            parts += _facts(value)
    return "\n".join(parts).rstrip() + "\n"


def read(chart: Path) -> list[Value]:
    """Return the values in the order of the file, groups before what is in them."""
    text = (chart / "values.yaml").read_text()
    schema = json.loads((chart / "values.schema.json").read_text())
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    return list(_values(root, "", schema, schema["definitions"], text.splitlines()))


def _values(
    node: yaml.MappingNode, prefix: str, schema: Schema, definitions: Schema, lines: list[str]
) -> Iterator[Value]:
    for key, value in node.value:
        name = prefix + key.value
        own = _resolved(schema["properties"][key.value], definitions)
        # What the schema names a field of is a group; other mappings are values as a whole.
        is_group = isinstance(value, yaml.MappingNode) and "properties" in own and "$ref" not in own
        comment = tuple(_comment_above(lines, key.start_mark.line))
        default = None if is_group else yaml.safe_load(yaml.serialize(value))
        yield Value(name, default, comment, own, is_group)
        if is_group:
            yield from _values(value, f"{name}.", own, definitions, lines)


def _resolved(schema: Schema, definitions: Schema) -> Schema:
    """Return a schema with what it refers to, and with the reference if it has one."""
    reference = schema.get("$ref")
    if reference is None:
        return schema
    return {**definitions[reference.rpartition("/")[2]], **schema}


def _comment_above(lines: list[str], line: int) -> list[str]:
    first = line
    while first > 0 and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return [text.lstrip()[1:].removeprefix(" ") for text in lines[first:line]]


def _comment(lines: tuple[str, ...]) -> Iterator[str]:
    """Yield the text of a comment as paragraphs, and its examples, which are indented, as code."""
    block: list[str] = []
    is_example = False
    for line in (*lines, ""):
        if line.startswith("  ") != is_example or not line:
            if block and is_example:
                yield "```yaml\n" + "\n".join(text[2:] for text in block) + "\n```\n"
            elif block:
                yield paragraph(" ".join(block)) + "\n"
            block, is_example = [], line.startswith("  ")
        if line:
            block.append(line)


def _facts(value: Value) -> Iterator[str]:
    facts = [_allowed(value.schema)]
    shown = json.dumps(value.default)
    if isinstance(value.default, dict | list) and len(shown) > _LONG:
        yield "; ".join(filter(None, [*facts, "default:"])).capitalize() + "\n"
        block = yaml.safe_dump(value.default, sort_keys=False).rstrip()
        yield f"```yaml\n{block}\n```\n"
        return
    facts.append(f"default `{shown}`")
    text = "; ".join(filter(None, facts))
    yield f"{text[0].upper()}{text[1:]}.\n"


def _allowed(schema: Schema) -> str:
    """Say in a few words what a value may be."""
    if "enum" in schema:
        return "one of " + ", ".join(f"`{json.dumps(item)}`" for item in schema["enum"])
    kind = schema.get("type", "")
    if kind == "" and "allOf" in schema:
        return "list"
    if "minimum" in schema and "maximum" in schema:
        return f"{kind} from {schema['minimum']} to {schema['maximum']}"
    if "minimum" in schema:
        return f"{kind} of at least {schema['minimum']}"
    return {"object": "mapping", "array": "list"}.get(str(kind), str(kind))
