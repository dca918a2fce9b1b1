"""Which pool and which claim a pod belongs to."""

from sandboxpool.api import names
from sandboxpool.api.core import OwnerReference, Pod


def controller_of(pod: Pod, kind: str) -> OwnerReference | None:
    """The pod's controller, if it is one of our kinds, of this kind.

    Labels and annotations own nothing: whoever may create pods writes them.
    """
    owner = pod.metadata.controller
    if owner is None or owner.kind != kind or owner.apiVersion.partition("/")[0] != names.GROUP:
        return None
    return owner


def claim_uid_of(pod: Pod) -> str | None:
    """The uid of the claim that owns a pod; it means a claim of the pod's own namespace only."""
    owner = controller_of(pod, names.CLAIM_KIND)
    return owner.uid if owner is not None else None


def pool_uid_of(pod: Pod) -> str | None:
    """The uid of the pool that a pod belongs to: its owner, or, once a claim owns it, its label.

    It means a pool of the pod's own namespace only. A pod that somebody took, by making himself
    its owner, or set free, by taking the owner away, is no longer the pool's.
    """
    owner = controller_of(pod, names.POOL_KIND)
    if owner is not None:
        return owner.uid
    if controller_of(pod, names.CLAIM_KIND) is None:
        return None
    return pod.metadata.labels.get(names.LABEL_POOL_UID)


def pool_identity_of(pod: Pod) -> tuple[str, str]:
    """Namespace and uid of the pool that a pod belongs to; an empty uid if it is no pool's."""
    return pod.metadata.namespace, pool_uid_of(pod) or ""
