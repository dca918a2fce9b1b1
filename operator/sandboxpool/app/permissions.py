"""What the operator asks of the API server, as rights: the chart grants these and no others.

A unit test compares them with the chart's rules, an integration test with what is sent.
"""

from dataclasses import dataclass
from typing import Literal

from sandboxpool.api import names
from sandboxpool.fleet import records
from sandboxpool.kube import lease

# What a right is for, beside what every installation needs: see the settings of the same names.
Purpose = Literal["", "exclusion_labels", "publish_on_nodes", "metrics_auth"]


@dataclass(frozen=True, slots=True, order=True)
class Permission:
    """One verb on one resource.

    Attributes:
        group: the API group; empty for the core.
        resource: its plural, with a subresource after a slash.
        verb: as RBAC calls it.
        own: in the operator's own namespace only.
        names: of these objects only; of all if there are none.
        purpose: only where the setting of this name is on.
    """

    group: str
    resource: str
    verb: str
    own: bool = False
    names: tuple[str, ...] = ()
    purpose: Purpose = ""

    @property
    def is_optional(self) -> bool:
        """Without it the operator works otherwise, and conditions of pools say what that costs."""
        return self.purpose == "exclusion_labels"

    def __str__(self) -> str:
        resource = f"{self.resource}.{self.group}" if self.group else self.resource
        where = " in the operator's own namespace" if self.own else ""
        return f"{self.verb} {resource}{where}"


def _rights(group: str, resource: str, verbs: str, *, purpose: Purpose = "") -> list[Permission]:
    return [Permission(group, resource, verb, purpose=purpose) for verb in verbs.split()]


def _own_rights(group: str, resource: str, verbs: str, called: tuple[str, ...]) -> list[Permission]:
    """Rights on objects of these names; RBAC cannot restrict a create to a name."""
    return [
        Permission(group, resource, verb, own=True, names=() if verb == "create" else called)
        for verb in verbs.split()
    ]


PERMISSIONS: tuple[Permission, ...] = (
    *_rights(names.GROUP, names.POOLS, "get list watch"),
    *_rights(names.GROUP, f"{names.POOLS}/status", "patch"),
    *_rights(names.GROUP, names.CLAIMS, "get list watch delete"),
    *_rights(names.GROUP, f"{names.CLAIMS}/status", "patch"),
    *_rights(names.GROUP, names.RUNTIMES, "get list watch create delete"),
    *_rights(names.GROUP, f"{names.RUNTIMES}/status", "patch"),
    *_rights("", "pods", "get list watch create patch delete"),
    *_rights("policy", "poddisruptionbudgets", "get create patch delete"),
    *_rights("", "nodes", "get list watch"),
    *_rights("", "events", "list watch create"),
    *_rights("node.k8s.io", "runtimeclasses", "get list watch"),
    *_own_rights("", "configmaps", "get create patch", records.NAMES),
    *_own_rights("coordination.k8s.io", "leases", "get watch create patch", (lease.NAME,)),
    *_rights("", "nodes", "patch", purpose="exclusion_labels"),
    *_rights("", "nodes", "patch", purpose="publish_on_nodes"),
    *_rights("", "nodes/status", "patch", purpose="publish_on_nodes"),
    *_rights("authentication.k8s.io", "tokenreviews", "create", purpose="metrics_auth"),
    *_rights("authorization.k8s.io", "subjectaccessreviews", "create", purpose="metrics_auth"),
)
