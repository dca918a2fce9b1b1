"""What is kept of an object: the fields that the page shows.

A fleet of 5,000 nodes and 10,000 claims does not fit into memory comfortably as the API server
sends it, and most changes, such as a node's heartbeat, change nothing that is shown.
"""

from typing import Any

from sandboxpool.api import names
from sandboxpool.cli import reading
from sandboxpool.cli.cluster import DEPLOYMENTS, NODES, POOLS, Object, Resource

_METADATA = ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "generation")
# Of images and volumes a node lists hundreds; its labels select and group it.
_NODE_STATUS = ("runtimeHandlers",)
_NODE_INFO = ("containerRuntimeVersion", "kubeletVersion")


def prune(resource: Resource, obj: Object) -> Object:
    """Return the fields of an object that the page shows."""
    metadata = reading.mapping(obj, "metadata")
    kept: Object = {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": _only(metadata, *_METADATA),
    }
    if resource is NODES:
        return _node(obj, kept)
    if resource is DEPLOYMENTS:
        # They have the version of the operator.
        kept["metadata"]["labels"] = reading.mapping(metadata, "labels")
    kept |= _only(obj, "spec", "status", "handler", "scheduling", "overhead")
    if resource is POOLS:
        spec = reading.mapping(obj, "spec")
        kept["spec"] = {key: value for key, value in spec.items() if key != "template"}
    return kept


def _node(obj: Object, kept: Object) -> Object:
    status = reading.mapping(obj, "status")
    kept["metadata"]["labels"] = reading.mapping(obj, "metadata", "labels")
    kept["spec"] = _only(reading.mapping(obj, "spec"), "unschedulable")
    kept["status"] = {
        **_only(status, *_NODE_STATUS),
        "nodeInfo": _only(reading.mapping(status, "nodeInfo"), *_NODE_INFO),
        "conditions": [
            # The heartbeat's time changes every few minutes and is not shown.
            _only(one, "type", "status", "reason", "message", "lastTransitionTime")
            for one in reading.objects(status, "conditions")
            if one.get("type") == "Ready" or _is_own(one.get("type"))
        ],
    }
    return kept


def _is_own(type_: Any) -> bool:
    return isinstance(type_, str) and type_.startswith(f"{names.GROUP}/")


def _only(value: Object, *keys: str) -> Object:
    return {key: value[key] for key in keys if key in value}
