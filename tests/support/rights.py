"""Requests as the API server's authorizer sees them, to compare them with what roles grant."""

from __future__ import annotations

from dataclasses import dataclass

from sandboxpool.app.permissions import Permission
from support.faultproxy import Seen


@dataclass(frozen=True)
class Sent:
    """A request as RBAC sees it."""

    group: str
    resource: str
    verb: str
    namespace: str
    name: str

    def is_covered_by(self, right: Permission) -> bool:
        """Whether this right is enough for it."""
        return (
            (self.group, self.resource, self.verb) == (right.group, right.resource, right.verb)
            and right.namespace in ("", self.namespace)
            and (not right.names or self.name in right.names)
        )


def sent(seen: Seen) -> Sent | None:
    """Read a request as the API server's authorizer does; None if it is about no resource."""
    first, *parts = seen.path.strip("/").split("/")
    if (first, len(parts) > 1) == ("api", True):
        group, parts = "", parts[1:]
    elif (first, len(parts) > 2) == ("apis", True):
        group, parts = parts[0], parts[2:]
    else:
        return None
    namespace = ""
    if parts[0] == "namespaces" and len(parts) > 2:
        namespace, parts = parts[1], parts[2:]
    resource, name, subresource = (*parts, "", "")[:3]
    verb = {"POST": "create", "PATCH": "patch", "PUT": "update"}.get(seen.method, "")
    if seen.method == "GET":
        verb = "get" if name else "list"
        if "watch=" in seen.query:
            verb = "watch"
            name = name or seen.query.partition("metadata.name%3D")[2].partition("&")[0]
            name = name or seen.query.partition("metadata.name=")[2].partition("&")[0]
    elif seen.method == "DELETE":
        verb = "delete" if name else "deletecollection"
    return Sent(group, f"{resource}/{subresource}".rstrip("/"), verb, namespace, name)
