"""The permissions that the operator needs: the chart's RBAC rules grant exactly these.

A unit test compares them with the chart's rules, an integration test with the requests sent.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from sandboxpool.api import names
from sandboxpool.app.settings import Settings
from sandboxpool.fleet.records import record_names
from sandboxpool.kube.events import NAMESPACE_OF_CLUSTER_SCOPED


@dataclass(frozen=True, slots=True, order=True)
class Permission:
    """One verb on one resource.

    Attributes:
        group: the API group; empty for the core group.
        resource: the plural name, with a subresource after a slash.
        verb: the verb in RBAC.
        namespace: the namespace that it is for; empty for the whole cluster.
        names: the names of the objects that it is for; empty for all.
        is_optional: whether the operator works without it; conditions of pools report the
            limitations.
    """

    group: str
    resource: str
    verb: str
    namespace: str = ""
    names: tuple[str, ...] = ()
    is_optional: bool = False

    def __str__(self) -> str:
        resource = f"{self.resource}.{self.group}" if self.group else self.resource
        where = f" in namespace {self.namespace}" if self.namespace else ""
        return f"{self.verb} {resource}{where}"


def required_permissions(settings: Settings) -> tuple[Permission, ...]:
    """The permissions that an operator with these settings needs."""
    found = [*_of_cluster(settings), *_of_own_namespace(settings)]
    for namespace in settings.watch_namespaces or ("",):
        found += permissions_in(namespace)
    return tuple(found)


def permissions_in(namespace: str) -> tuple[Permission, ...]:
    """The permissions on pools, claims and their pods in a namespace; empty for all namespaces."""
    rules = (
        (names.GROUP, names.POOLS, "get list watch"),
        (names.GROUP, f"{names.POOLS}/status", "patch"),
        (names.GROUP, names.CLAIMS, "get list watch delete"),
        (names.GROUP, f"{names.CLAIMS}/status", "patch"),
        ("", "pods", "get list watch create patch delete"),
        ("policy", "poddisruptionbudgets", "get create patch delete"),
        ("", "events", "list watch create"),
    )
    return tuple(_in(namespace, rules))


def _of_cluster(settings: Settings) -> Iterator[Permission]:
    yield from _in("", (("", "nodes", "get list watch"),))
    yield from _in("", (("node.k8s.io", "runtimeclasses", "get list watch"),))
    if settings.manage_runtimes:
        yield from _in("", ((names.GROUP, names.RUNTIMES, "get list watch create delete"),))
        yield from _in("", ((names.GROUP, f"{names.RUNTIMES}/status", "patch"),))
    if settings.publish_on_nodes:
        yield from _in("", (("", "nodes", "patch"), ("", "nodes/status", "patch")))
    elif settings.exclusion_labels:
        yield Permission("", "nodes", "patch", is_optional=True)
    if settings.metrics_auth:
        yield from _in("", (("authentication.k8s.io", "tokenreviews", "create"),))
        yield from _in("", (("authorization.k8s.io", "subjectaccessreviews", "create"),))


def _of_own_namespace(settings: Settings) -> Iterator[Permission]:
    own = settings.namespace
    named = (
        ("", "configmaps", "get create patch", record_names(settings.release)),
        ("coordination.k8s.io", "leases", "get watch create patch", (settings.release,)),
    )
    for group, resource, verbs, objects in named:
        for right in _in(own, ((group, resource, verbs),)):
            # RBAC cannot restrict a create to a name.
            yield right if right.verb == "create" else replace(right, names=objects)
    if not settings.watch_namespaces:
        return
    if own not in settings.watch_namespaces:
        # For probes; otherwise the permissions for sandboxes include these.
        yield from _in(own, (("", "pods", "list watch create delete"),))
        yield from _in(own, (("", "events", "list watch"),))
    if settings.manage_runtimes and NAMESPACE_OF_CLUSTER_SCOPED not in settings.watch_namespaces:
        yield from _in(NAMESPACE_OF_CLUSTER_SCOPED, (("", "events", "create"),))


def _in(namespace: str, rules: Iterable[tuple[str, str, str]]) -> Iterator[Permission]:
    for group, resource, verbs in rules:
        for verb in verbs.split():
            yield Permission(group, resource, verb, namespace)
