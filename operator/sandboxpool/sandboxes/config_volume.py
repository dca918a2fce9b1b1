"""The volume by which a sandbox sees its claim's configuration. Pure.

It shows one annotation and two labels that write 1 sets, so the kubelet updates it as soon as the
pod is bound. All files change at once.
"""

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from sandboxpool.api import names
from sandboxpool.api.config_files import CLAIM_NAME_FILE, CLAIM_UID_FILE, CONFIG_FILE, VOLUME

_FIELDS = {
    CONFIG_FILE: f"metadata.annotations['{names.ANNOTATION_CONFIG}']",
    CLAIM_NAME_FILE: f"metadata.labels['{names.LABEL_CLAIM}']",
    CLAIM_UID_FILE: f"metadata.labels['{names.LABEL_CLAIM_UID}']",
}


def add_config_volume(spec: dict[str, Any], path: str) -> None:
    """Add the volume to a pod's spec, and mount it in each container that lives with the sandbox.

    Init containers end before a warm sandbox is claimed, so only those that are sidecars get it.
    """
    items = [
        {"path": name, "fieldRef": {"apiVersion": "v1", "fieldPath": field}}
        for name, field in _FIELDS.items()
    ]
    volume = {"name": VOLUME, "downwardAPI": {"items": items}}
    _append(spec, "volumes", volume)
    for _, container in _mounting(spec):
        mount = {"name": VOLUME, "mountPath": path, "readOnly": True}
        _append(container, "volumeMounts", mount)


def config_conflict(spec: Any, path: str) -> str:
    """Describe what in a template's spec prevents the volume; empty if nothing does."""
    if not isinstance(spec, Mapping):
        return ""
    for index, volume in enumerate(_mappings(spec.get("volumes"))):
        if volume.get("name") == VOLUME:
            return (
                f"spec.template.spec.volumes[{index}].name: {VOLUME!r} is the volume that the "
                "operator adds for spec.claims.configPath: rename the template's volume"
            )
    for field, container in _mounting(spec):
        for index, mount in enumerate(_mappings(container.get("volumeMounts"))):
            there = posixpath.normpath(str(mount.get("mountPath") or "/"))
            if f"{there}/".startswith(f"{path}/"):
                return (
                    f"spec.template.spec.{field}.volumeMounts[{index}].mountPath: {there!r} is in "
                    f"the directory {path!r}, where the operator mounts the configuration of the "
                    "claim: mount it elsewhere, or set spec.claims.configPath to another "
                    'directory, or to "" for none'
                )
    return ""


def _mounting(spec: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for index, container in enumerate(_mappings(spec.get("containers"))):
        yield f"containers[{index}]", container
    for index, container in enumerate(_mappings(spec.get("initContainers"))):
        if container.get("restartPolicy") == "Always":
            yield f"initContainers[{index}]", container


def _append(parent: dict[str, Any], key: str, item: Mapping[str, Any]) -> None:
    """Append to a list; what is no list stays, for the API server to refuse."""
    there = parent.get(key) or []
    if isinstance(there, list):
        parent[key] = [*there, item]


def _mappings(value: Any) -> list[Any]:
    """The items of a list; a malformed template is for the API server to refuse."""
    if not isinstance(value, list):
        return []
    return [item if isinstance(item, dict) else {} for item in value]
