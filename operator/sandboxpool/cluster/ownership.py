"""Which pool and which claim a pod belongs to."""

from sandboxpool.api import names
from sandboxpool.api.core import OwnerReference, Pod


def controller_of(pod: Pod, kind: str) -> OwnerReference | None:
    """The controller owner of a pod, if it is of this kind and of our API group.

    Labels and annotations prove no ownership: any user who may create pods can set them.
    """
    owner = pod.metadata.controller
    if owner is None or owner.kind != kind or owner.apiVersion.partition("/")[0] != names.GROUP:
        return None
    return owner


def claim_uid_of(pod: Pod) -> str | None:
    """The uid of the claim that owns a pod; valid only in the pod's own namespace."""
    owner = controller_of(pod, names.CLAIM_KIND)
    return owner.uid if owner is not None else None


def pool_uid_of(pod: Pod) -> str | None:
    """The uid of the pod's pool: of its owner, or of its label once a claim owns the pod.

    The uid is valid only in the pod's own namespace. A pod whose owner reference to the pool was
    replaced by one to another object, or removed, does not belong to the pool any more.
    """
    owner = controller_of(pod, names.POOL_KIND)
    if owner is not None:
        return owner.uid
    if controller_of(pod, names.CLAIM_KIND) is None:
        return None
    return pod.metadata.labels.get(names.LABEL_POOL_UID)


def pool_identity_of(pod: Pod) -> tuple[str, str]:
    """Namespace and uid of the pod's pool; the uid is empty if the pod belongs to no pool."""
    return pod.metadata.namespace, pool_uid_of(pod) or ""
