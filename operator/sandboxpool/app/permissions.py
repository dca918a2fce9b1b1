"""The permissions that the operator needs: the chart's RBAC rules grant exactly these.

A unit test compares them with the chart's rules, an integration test with the requests sent.
"""

from dataclasses import dataclass
from typing import Literal

from sandboxpool.api import names
from sandboxpool.fleet import records
from sandboxpool.kube import lease

# The setting for which a permission is needed; empty if every installation needs it.
Purpose = Literal["", "exclusion_labels", "publish_on_nodes", "metrics_auth"]


@dataclass(frozen=True, slots=True, order=True)
class Permission:
    """One verb on one resource.

    Attributes:
        group: the API group; empty for the core group.
        resource: the plural name, with a subresource after a slash.
        verb: the verb in RBAC.
        own: whether the permission is for the operator's own namespace only.
        names: the names of the objects that it is for; empty for all.
        purpose: the setting that must be on for the permission to be needed.
    """

    group: str
    resource: str
    verb: str
    own: bool = False
    names: tuple[str, ...] = ()
    purpose: Purpose = ""

    @property
    def is_optional(self) -> bool:
        """Whether the operator works without it; conditions of pools report the limitations."""
        return self.purpose == "exclusion_labels"

    def __str__(self) -> str:
        resource = f"{self.resource}.{self.group}" if self.group else self.resource
        where = " in the operator's own namespace" if self.own else ""
        return f"{self.verb} {resource}{where}"


def _permissions(
    group: str, resource: str, verbs: str, *, purpose: Purpose = ""
) -> list[Permission]:
    return [Permission(group, resource, verb, purpose=purpose) for verb in verbs.split()]


def _own_permissions(
    group: str, resource: str, verbs: str, object_names: tuple[str, ...]
) -> list[Permission]:
    """Permissions on objects of these names; RBAC cannot restrict a create to a name."""
    return [
        Permission(group, resource, verb, own=True, names=() if verb == "create" else object_names)
        for verb in verbs.split()
    ]


PERMISSIONS: tuple[Permission, ...] = (
    *_permissions(names.GROUP, names.POOLS, "get list watch"),
    *_permissions(names.GROUP, f"{names.POOLS}/status", "patch"),
    *_permissions(names.GROUP, names.CLAIMS, "get list watch delete"),
    *_permissions(names.GROUP, f"{names.CLAIMS}/status", "patch"),
    *_permissions(names.GROUP, names.RUNTIMES, "get list watch create delete"),
    *_permissions(names.GROUP, f"{names.RUNTIMES}/status", "patch"),
    *_permissions("", "pods", "get list watch create patch delete"),
    *_permissions("policy", "poddisruptionbudgets", "get create patch delete"),
    *_permissions("", "nodes", "get list watch"),
    *_permissions("", "events", "list watch create"),
    *_permissions("node.k8s.io", "runtimeclasses", "get list watch"),
    *_own_permissions("", "configmaps", "get create patch", records.NAMES),
    *_own_permissions("coordination.k8s.io", "leases", "get watch create patch", (lease.NAME,)),
    *_permissions("", "nodes", "patch", purpose="exclusion_labels"),
    *_permissions("", "nodes", "patch", purpose="publish_on_nodes"),
    *_permissions("", "nodes/status", "patch", purpose="publish_on_nodes"),
    *_permissions("authentication.k8s.io", "tokenreviews", "create", purpose="metrics_auth"),
    *_permissions("authorization.k8s.io", "subjectaccessreviews", "create", purpose="metrics_auth"),
)
