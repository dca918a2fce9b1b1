"""Patches and selectors, as the API server applies them: pure functions of objects.

They are as strict as the real ones, and know only what the operator uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sandboxpool.kube.errors import ApiError

Object = dict[str, Any]


def merge_patched(old: Object, patch: Object) -> Object:
    """Apply a merge patch, conditional on a uid or version in it.

    Raises:
        ApiError: the object is another one, or has changed.
    """
    wanted = patch.get("metadata", {})
    for name in ("uid", "resourceVersion"):
        if wanted.get(name) not in (None, old["metadata"][name]):
            raise ApiError(409, "Conflict", "the object has been modified")
    merged: Object = merge(old, patch)
    return merged


def json_patched(old: Object, patch: list[Object]) -> Object:
    """Apply a JSON patch of tests and of replacements at the top.

    Raises:
        ApiError: a test fails.
    """
    new = old
    for step in patch:
        *parents, name = step["path"].strip("/").split("/")
        if step["op"] == "test":
            (parent,) = parents
            if old[parent][name] != step["value"]:
                raise ApiError(422, "Invalid", "the server rejected our request")
        else:
            assert step["op"] == "add", step
            assert not parents, step
            new = {**new, name: step["value"]}
    return new


def merge(old: Any, patch: Any) -> Any:
    """Apply a merge patch; what it does not touch is shared with the old object."""
    if not isinstance(patch, dict):
        return patch
    result = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def selector(namespace: str, params: Mapping[str, str]) -> Callable[[Object], bool]:
    """What a list or watch lets through: the selectors that the operator uses, and no others."""
    label = [part for part in params.get("labelSelector", "").split(",") if part]
    fields = [part.split("=") for part in params.get("fieldSelector", "").split(",") if part]

    def selects(obj: Object) -> bool:
        if namespace and obj["metadata"].get("namespace", "") != namespace:
            return False
        labels = obj["metadata"].get("labels") or {}
        if not all(_fulfils(labels, requirement) for requirement in label):
            return False
        return all(_field(obj, path) == value for path, value in fields)

    return selects


def _fulfils(labels: Mapping[str, str], requirement: str) -> bool:
    key, equals, value = requirement.partition("=")
    if equals:
        return labels.get(key) == value
    return (key.removeprefix("!") in labels) != key.startswith("!")


def _field(obj: Any, path: str) -> Any:
    for part in path.split("."):
        obj = obj.get(part, {})
    return obj
