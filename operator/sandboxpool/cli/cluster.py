"""The objects of a cluster, read through the client's own HTTP."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from typing_extensions import override

from sandboxpool.api import names
from sandboxpool.client import config
from sandboxpool.client.api import REQUEST_SECONDS, Api
from sandboxpool.client.blocking import BlockingIo, run
from sandboxpool.client.requests import Request

Object = dict[str, Any]

_PAGE = 500


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of objects.

    Attributes:
        api_version: Group and version, as `apiVersion` has it.
        plural: The resource.
        kind: The kind of one.
        namespaced: They are in namespaces.
    """

    api_version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def group(self) -> str:
        """The API group; empty for that of Kubernetes' core."""
        group, slash, _ = self.api_version.partition("/")
        return group if slash else ""

    @property
    def qualified(self) -> str:
        """The resource with its group, as kubectl and Roles name it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str | None, name: str = "") -> str:
        """Return the path of one object, or of all in a namespace, or in all of them (None)."""
        root = "apis" if "/" in self.api_version else "api"
        path = f"/{root}/{self.api_version}"
        if self.namespaced and namespace is not None:
            path += f"/namespaces/{quote(namespace, safe='')}"
        path += f"/{self.plural}"
        return f"{path}/{quote(name, safe='')}" if name else path


POOLS = Resource(names.API_VERSION, names.POOLS, names.POOL_KIND)
CLAIMS = Resource(names.API_VERSION, names.CLAIMS, names.CLAIM_KIND)
RUNTIMES = Resource(names.API_VERSION, names.RUNTIMES, names.RUNTIME_KIND, namespaced=False)
PODS = Resource("v1", "pods", "Pod")
EVENTS = Resource("v1", "events", "Event")
NODES = Resource("v1", "nodes", "Node", namespaced=False)
CLASSES = Resource("node.k8s.io/v1", "runtimeclasses", "RuntimeClass", namespaced=False)
LEASES = Resource("coordination.k8s.io/v1", "leases", "Lease")
DEPLOYMENTS = Resource("apps/v1", "deployments", "Deployment")
CRDS = Resource(
    "apiextensions.k8s.io/v1",
    "customresourcedefinitions",
    "CustomResourceDefinition",
    namespaced=False,
)
ACCESS_REVIEWS = Resource(
    "authorization.k8s.io/v1",
    "selfsubjectaccessreviews",
    "SelfSubjectAccessReview",
    namespaced=False,
)


class _TimedApi(Api):
    """An API server that is given up on after so many seconds a request."""

    def __init__(self, settings: config.Settings, within: float) -> None:
        super().__init__(BlockingIo(), settings)
        self._within = within

    @override
    async def call(self, request: Request, within: float = REQUEST_SECONDS) -> Object:
        return await super().call(request, min(within, self._within))


def connect(settings: config.Settings, within: float | None) -> Api:
    """Return the API server of a cluster.

    Args:
        settings: Where it is.
        within: Seconds that a request may take; None for the client's own limit.
    """
    return _TimedApi(settings, math.inf if within is None else within)


class Cluster:
    """A cluster, as the options of a command choose it.

    Attributes:
        api: Its API server, as the client's functions take it.
    """

    def __init__(self, api: Api) -> None:
        self.api = api

    @property
    def namespace(self) -> str:
        """The namespace that is chosen, or that of the context."""
        return self.api.settings.namespace

    def get(self, resource: Resource, name: str, namespace: str | None = None) -> Object:
        """Read an object.

        Args:
            resource: Its kind.
            name: Its name.
            namespace: Where; that of the command if unset.

        Raises:
            ApiError: There is none, or the rights do not suffice.
        """
        return self._call("get", resource, namespace or self.namespace, name)

    def list(
        self, resource: Resource, namespace: str | None, *, labels: str = "", fields: str = ""
    ) -> list[Object]:
        """Read objects, each complete with `apiVersion` and `kind`.

        Args:
            resource: Their kind.
            namespace: Where; None for all namespaces.
            labels: A label selector.
            fields: A field selector.
        """
        query = [("limit", str(_PAGE))]
        query += [("labelSelector", labels)] if labels else []
        query += [("fieldSelector", fields)] if fields else []
        found: list[Object] = []
        following = ""
        while True:
            pages = [*query, ("continue", following)] if following else query
            answer = self._call("list", resource, namespace, query=tuple(pages))
            head = {"apiVersion": resource.api_version, "kind": resource.kind}
            found += [{**head, **item} for item in answer.get("items") or ()]
            following = (answer.get("metadata") or {}).get("continue") or ""
            if not following:
                return found

    def watch(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        version: str = "",
        fields: str = "",
        within: float = 300.0,
    ) -> Iterator[tuple[str, Object]]:
        """Yield changes, as their type and the object, until nothing changes for so many seconds.

        Args:
            resource: The kind.
            namespace: Where; None for all namespaces.
            version: The resourceVersion to begin after; unset: with what there is.
            fields: A field selector.
            within: Seconds.
        """
        query = [("watch", "true"), ("timeoutSeconds", str(math.ceil(within)))]
        query += [("resourceVersion", version)] if version else []
        query += [("fieldSelector", fields)] if fields else []
        request = self._request("watch", resource, namespace, query=tuple(query))
        watch = run(self.api.watch(request))
        try:
            while (event := run(watch.next_event(within))) is not None:
                yield event
        finally:
            watch.close()

    def create(
        self,
        resource: Resource,
        body: Object,
        namespace: str | None = None,
        *,
        dry_run: bool = False,
    ) -> Object:
        """Create an object, such as a review of rights, and return the answer.

        Args:
            resource: Its kind.
            body: The object.
            namespace: Where; that of the command if unset.
            dry_run: The API server judges the object, unknown fields too, and keeps nothing.
        """
        query = (("dryRun", "All"), ("fieldValidation", "Strict")) if dry_run else ()
        request = self._request(
            "create", resource, namespace or self.namespace, query=query, method="POST", body=body
        )
        return run(self.api.call(request))

    def _call(
        self,
        verb: str,
        resource: Resource,
        namespace: str | None,
        name: str = "",
        query: tuple[tuple[str, str], ...] = (),
    ) -> Object:
        return run(self.api.call(self._request(verb, resource, namespace, name, query)))

    def _request(
        self,
        verb: str,
        resource: Resource,
        namespace: str | None,
        name: str = "",
        query: tuple[tuple[str, str], ...] = (),
        *,
        method: str = "GET",
        body: Object | None = None,
    ) -> Request:
        return Request(
            method,
            resource.path(namespace, name),
            verb,
            resource.qualified,
            (namespace or "") if resource.namespaced else "",
            query,
            body=json.dumps(body).encode() if body is not None else b"",
            content_type="application/json" if body is not None else "",
        )
