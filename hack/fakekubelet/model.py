"""The parts of a Pod and a RuntimeClass that a fake kubelet reads."""

from __future__ import annotations

from typing import Any

import msgspec


class Meta(msgspec.Struct, rename="camel"):
    """An object's metadata."""

    name: str = ""
    uid: str = ""
    resource_version: str = ""
    namespace: str = ""
    deletion_timestamp: str | None = None
    annotations: dict[str, str] = {}


class Container(msgspec.Struct, rename="camel"):
    """A container of a pod."""

    name: str
    image: str = ""
    env: list[dict[str, Any]] = []
    restart_policy: str | None = None


class PodSpec(msgspec.Struct, rename="camel"):
    """What decides how a pod runs."""

    node_name: str = ""
    runtime_class_name: str | None = None
    restart_policy: str = "Always"
    containers: list[Container] = []
    init_containers: list[Container] = []


class Pod(msgspec.Struct):
    """A pod that is bound to a node."""

    metadata: Meta
    spec: PodSpec
    status: dict[str, Any] = {}

    @property
    def path(self) -> str:
        """The pod's URL path."""
        return f"/api/v1/namespaces/{self.metadata.namespace}/pods/{self.metadata.name}"


class RuntimeClass(msgspec.Struct):
    """A RuntimeClass."""

    metadata: Meta
    handler: str = ""


class ListMeta(msgspec.Struct, rename="camel"):
    """A list's metadata."""

    resource_version: str = ""


class Bookmark(msgspec.Struct):
    """An object of which only the version counts."""

    metadata: Meta


class WatchEvent(msgspec.Struct):
    """One line of a watch; the object is decoded once its kind of event is known."""

    type: str
    object: msgspec.Raw
