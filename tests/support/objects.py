"""Builders of the objects that tests create: as little as the API allows, the rest by keyword."""

from __future__ import annotations

from typing import Any

from sandboxpool.api import names

Object = dict[str, Any]

IMAGE = "registry.example/sandbox:1"
PROBE_IMAGE = "registry.example/probe:1"


def pool(
    name: str = "pool",
    runtime_class: str = "gvisor",
    replicas: int = 1,
    *,
    template: Object | None = None,
    **spec: Any,
) -> Object:
    """A SandboxPool; further fields of the spec by their API names.

    Isolation proofs are off unless asked for: most tests are about something else.
    """
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.POOL_KIND,
        "metadata": {"name": name},
        "spec": {
            "runtimeClassName": runtime_class,
            "replicas": replicas,
            "template": template or pod_template(),
            "isolationProof": "None",
            **spec,
        },
    }


def pod_template(image: str = IMAGE, **pod_spec: Any) -> Object:
    """A pool's pod template with one container."""
    return {"spec": {"containers": [{"name": "sandbox", "image": image}], **pod_spec}}


def large_template(image: str = IMAGE, **pod_spec: Any) -> Object:
    """A template of sandboxes that take a tenth of a fake node each, so that they are spread."""
    template = pod_template(image, **pod_spec)
    template["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "100"}}
    return template


def pinned_template(node: str, image: str = IMAGE) -> Object:
    """A template of sandboxes that only one node can take."""
    return pod_template(image, nodeSelector={names.HOSTNAME_LABEL: node})


def claim(name: str = "claim", pool: str = "pool", **spec: Any) -> Object:
    """A SandboxClaim; further fields of the spec by their API names."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.CLAIM_KIND,
        "metadata": {"name": name},
        "spec": {"poolName": pool, **spec},
    }


def runtime_class(name: str = "gvisor", handler: str = "runsc", **fields: Any) -> Object:
    """A RuntimeClass; `overhead` and `scheduling` by keyword."""
    return {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": name},
        "handler": handler,
        **fields,
    }


def pod(
    name: str,
    *,
    runtime_class: str | None = None,
    node: str | None = None,
    image: str = IMAGE,
    owner: Object | None = None,
    **spec: Any,
) -> Object:
    """A plain pod, owned by another object if one is given."""
    metadata: Object = {"name": name}
    if owner is not None:
        metadata["ownerReferences"] = [owner_reference(owner)]
    full_spec: Object = {"containers": [{"name": "main", "image": image}], **spec}
    if runtime_class is not None:
        full_spec["runtimeClassName"] = runtime_class
    if node is not None:
        full_spec["nodeName"] = node
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": full_spec}


def owner_reference(owner: Object) -> Object:
    """A controller reference to an object."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": False,
    }


def namespace(name: str, **labels: str) -> Object:
    """A namespace."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
