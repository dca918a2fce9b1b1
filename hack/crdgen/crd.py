"""A CustomResourceDefinition from a model and its `Resource`."""

import tomllib
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from crdgen.structural import Schema, structural
from sandboxpool.api import names
from sandboxpool.api.markers import Column, Resource
from sandboxpool.api.v1alpha1 import Kind

# What the API server knows better than any CRD.
_STANDARD: dict[str, Schema] = {
    "apiVersion": {
        "type": "string",
        "description": "The version of the schema of this object.",
    },
    "kind": {"type": "string", "description": "The kind of this object."},
    "metadata": {"type": "object"},
}

_PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def version() -> str:
    """Return the version of the project."""
    return str(tomllib.loads(_PROJECT.read_text())["project"]["version"])


def custom_resource_definition(model: Kind) -> dict[str, Any]:
    """Build the CRD of a kind."""
    resource = model.resource
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{resource.plural}.{names.GROUP}",
            "annotations": {names.ANNOTATION_VERSION: version()},
        },
        "spec": {
            "group": names.GROUP,
            "names": {
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
                "plural": resource.plural,
                "singular": resource.singular,
                "shortNames": list(resource.short_names),
                "categories": list(resource.categories),
            },
            "scope": resource.scope,
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [_column(column) for column in resource.columns],
                    "subresources": _subresources(resource),
                    "schema": {"openAPIV3Schema": root_schema(model)},
                }
            ],
        },
    }


def root_schema(model: Kind) -> Schema:
    """Build the structural schema of a whole object."""
    schema = TypeAdapter(model).json_schema(by_alias=True)
    definitions = schema.pop("$defs", {})
    properties = {
        name: child for name, child in schema["properties"].items() if name not in _STANDARD
    }
    # Defaults of spec and status would turn an absent object into an empty one.
    properties = {
        name: {k: v for k, v in child.items() if k != "default"}
        for name, child in properties.items()
    }
    required = [name for name in schema.get("required", []) if name not in _STANDARD]
    schema = {**schema, "properties": properties, "required": required}
    if not required:
        del schema["required"]
    result = structural(schema, definitions)
    result["properties"] = {**_STANDARD, **result["properties"]}
    _drop_defaults(result["properties"]["status"])
    if model.resource.first_status is not None:
        result["properties"]["status"]["default"] = dict(model.resource.first_status)
    return result


def _drop_defaults(schema: Schema) -> None:
    """Remove all defaults: a status says what the operator wrote and nothing else."""
    schema.pop("default", None)
    for child in (
        *schema.get("properties", {}).values(),
        *(schema[key] for key in ("items", "additionalProperties") if key in schema),
    ):
        _drop_defaults(child)


def _column(column: Column) -> dict[str, Any]:
    result: dict[str, Any] = {
        "name": column.name,
        "type": column.type,
        "jsonPath": column.json_path,
    }
    if column.description:
        result["description"] = column.description
    if column.priority:
        result["priority"] = column.priority
    return result


def _subresources(resource: Resource) -> dict[str, Any]:
    result: dict[str, Any] = {"status": {}}
    if resource.scale is not None:
        result["scale"] = {
            "specReplicasPath": resource.scale.spec_replicas,
            "statusReplicasPath": resource.scale.status_replicas,
            "labelSelectorPath": resource.scale.selector,
        }
    return result
