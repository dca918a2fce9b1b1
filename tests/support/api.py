"""A small blocking client for tests: plain dicts in and out, any kind by its name."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import msgspec

from fakekubelet import Access, ApiError, Client
from fakekubelet.client import JSON_PATCH, MERGE_PATCH
from fakekubelet.loopthread import LoopThread

_STARTING_SECONDS = 20.0

Object = dict[str, Any]
# Inside Api the name `list` means its method.
Objects = list[Object]
_Patch = Mapping[str, Any] | list[Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """Where objects of a kind live."""

    group_version: str
    plural: str
    namespaced: bool = True

    @property
    def root(self) -> str:
        prefix = "/apis" if "/" in self.group_version else "/api"
        return f"{prefix}/{self.group_version}"


_RBAC = "rbac.authorization.k8s.io/v1"
_ADMISSION = "admissionregistration.k8s.io/v1"
_OPENSANDBOX = "sandbox.opensandbox.io/v1alpha1"

# Tests that need another kind add it here: a table is easier to follow than discovery.
KINDS = {
    "Pod": Kind("v1", "pods"),
    "Event": Kind("v1", "events"),
    "ConfigMap": Kind("v1", "configmaps"),
    "Secret": Kind("v1", "secrets"),
    "ServiceAccount": Kind("v1", "serviceaccounts"),
    "ResourceQuota": Kind("v1", "resourcequotas"),
    "LimitRange": Kind("v1", "limitranges"),
    "Node": Kind("v1", "nodes", namespaced=False),
    "Namespace": Kind("v1", "namespaces", namespaced=False),
    "Service": Kind("v1", "services"),
    "Deployment": Kind("apps/v1", "deployments"),
    "Job": Kind("batch/v1", "jobs"),
    "NetworkPolicy": Kind("networking.k8s.io/v1", "networkpolicies"),
    "Lease": Kind("coordination.k8s.io/v1", "leases"),
    "RuntimeClass": Kind("node.k8s.io/v1", "runtimeclasses", namespaced=False),
    "PriorityClass": Kind("scheduling.k8s.io/v1", "priorityclasses", namespaced=False),
    "Role": Kind(_RBAC, "roles"),
    "RoleBinding": Kind(_RBAC, "rolebindings"),
    "ClusterRole": Kind(_RBAC, "clusterroles", namespaced=False),
    "ClusterRoleBinding": Kind(_RBAC, "clusterrolebindings", namespaced=False),
    "ValidatingAdmissionPolicy": Kind(_ADMISSION, "validatingadmissionpolicies", namespaced=False),
    "ValidatingAdmissionPolicyBinding": Kind(
        _ADMISSION, "validatingadmissionpolicybindings", namespaced=False
    ),
    "CustomResourceDefinition": Kind(
        "apiextensions.k8s.io/v1", "customresourcedefinitions", namespaced=False
    ),
    "HorizontalPodAutoscaler": Kind("autoscaling/v2", "horizontalpodautoscalers"),
    "APIService": Kind("apiregistration.k8s.io/v1", "apiservices", namespaced=False),
    "SandboxPool": Kind("sandboxpool.io/v1alpha1", "sandboxpools"),
    "SandboxClaim": Kind("sandboxpool.io/v1alpha1", "sandboxclaims"),
    "SandboxRuntime": Kind("sandboxpool.io/v1alpha1", "sandboxruntimes", namespaced=False),
    "BatchSandbox": Kind(_OPENSANDBOX, "batchsandboxes"),
    "Pool": Kind(_OPENSANDBOX, "pools"),
    "SandboxSnapshot": Kind(_OPENSANDBOX, "sandboxsnapshots"),
}


class Api:
    """The API server as a test sees it.

    Errors are `ApiError`s, with `status` and `body`. A namespace may be left out for kinds that
    have none and for objects that name their own; else the default one of `within` is used.
    """

    def __init__(self, kubeconfig: Path, namespace: str | None = None) -> None:
        self._access = Access.from_kubeconfig(kubeconfig)
        self._namespace = namespace
        self._thread = LoopThread("test-api")
        self._stack = AsyncExitStack()
        self._client: Client | None = None

    def __enter__(self) -> Self:
        self._thread.call(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.call(self._stack.aclose())
        self._thread.stop()

    async def _open(self) -> None:
        self._client = await self._stack.enter_async_context(Client(self._access))

    def within(self, namespace: str) -> Api:
        """The same client with another default namespace."""
        other = object.__new__(Api)
        other.__dict__ = {**self.__dict__, "_namespace": namespace}
        return other

    def create(self, obj: Mapping[str, Any], **query: str) -> Object:
        """Creates an object; `dryRun="All"` or `fieldValidation="Strict"` go into the query."""
        metadata = obj["metadata"]
        path = self._path(obj["kind"], None, metadata.get("namespace"))
        return self._object("POST", path, obj, query)

    def create_all(self, *objects: Mapping[str, Any]) -> Objects:
        """Creates several objects in order."""
        return [self.create(obj) for obj in objects]

    def replace(self, obj: Mapping[str, Any], **query: str) -> Object:
        """Replaces an object (PUT)."""
        metadata = obj["metadata"]
        path = self._path(obj["kind"], metadata["name"], metadata.get("namespace"))
        return self._object("PUT", path, obj, query)

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object:
        """Reads an object."""
        return self._object("GET", self._path(kind, name, namespace))

    def find(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """Reads an object; None if there is none."""
        try:
            return self.get(kind, name, namespace)
        except ApiError as error:
            if error.status != 404:
                raise
            return None

    def list(
        self, kind: str, namespace: str | None = None, *, everywhere: bool = False, **query: str
    ) -> Objects:
        """Lists objects; `labelSelector` and `fieldSelector` go into the query."""
        path = self._path(kind, None, namespace, everywhere=everywhere)
        answer = self._send("GET", path, None, query)
        api_version = KINDS[kind].group_version
        # Items of a list do not say what they are; a test is easier to read when they do.
        return [{"apiVersion": api_version, "kind": kind, **item} for item in answer["items"]]

    def patch(
        self,
        kind: str,
        name: str,
        patch: _Patch,
        namespace: str | None = None,
        *,
        subresource: str = "",
    ) -> Object:
        """Patches an object: a dict is a merge patch, a list a JSON patch."""
        path = self._path(kind, name, namespace) + (f"/{subresource}" if subresource else "")
        content_type = JSON_PATCH if isinstance(patch, list) else MERGE_PATCH
        return self._object("PATCH", path, patch, content_type=content_type)

    def patch_spec(
        self, kind: str, name: str, namespace: str | None = None, **fields: Any
    ) -> Object:
        """Changes fields of the spec."""
        return self.patch(kind, name, {"spec": fields}, namespace)

    def patch_status(
        self, kind: str, name: str, status: Mapping[str, Any], namespace: str | None = None
    ) -> Object:
        """Changes fields of the status."""
        return self.patch(kind, name, {"status": status}, namespace, subresource="status")

    def scale(self, kind: str, name: str, replicas: int, namespace: str | None = None) -> Object:
        """Writes the scale subresource, as `kubectl scale` and autoscalers do."""
        patch = {"spec": {"replicas": replicas}}
        return self.patch(kind, name, patch, namespace, subresource="scale")

    def delete(self, kind: str, name: str, namespace: str | None = None, **options: Any) -> None:
        """Deletes an object; what is gone already is fine. Options are DeleteOptions fields."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", **options}
        try:
            self._send("DELETE", self._path(kind, name, namespace), body)
        except ApiError as error:
            if error.status != 404:
                raise

    def events_for(self, obj: Mapping[str, Any], reason: str | None = None) -> Objects:
        """The core/v1 Events about an object, oldest first."""
        metadata = obj["metadata"]
        found = self.list(
            "Event",
            # Events about objects without a namespace live in `default`.
            metadata.get("namespace") or "default",
            fieldSelector=f"involvedObject.uid={metadata['uid']}",
        )
        found.sort(key=lambda e: (e.get("lastTimestamp") or "", e["metadata"]["name"]))
        return [e for e in found if reason in {None, e.get("reason")}]

    def raw(self, method: str, path: str, body: Any = None) -> Any:
        """Sends anything anywhere."""
        return self._send(method, path, body)

    def _path(
        self, kind: str, name: str | None, namespace: str | None, *, everywhere: bool = False
    ) -> str:
        where = KINDS[kind]
        parts = [where.root]
        if where.namespaced and not everywhere:
            namespace = namespace or self._namespace
            if namespace is None:
                raise ValueError(f"a {kind} needs a namespace")
            parts += ["namespaces", namespace]
        parts.append(where.plural)
        if name is not None:
            parts.append(name)
        return "/".join(parts)

    def _object(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        return dict(self._send(method, path, body, query, content_type))

    def _send(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Any:
        if self._client is None:
            raise RuntimeError("the client is used outside of its `with`")
        if query:
            path = f"{path}?{urlencode(query)}"
        deadline = time.monotonic() + _STARTING_SECONDS
        while True:
            try:
                answer = self._thread.call(
                    self._client.send(method, path, body=body, content_type=content_type)
                )
                break
            except ApiError as error:
                # An API server that has just started, ready or not. Nothing was done.
                if "storage is (re)initializing" not in error.body or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)
        try:
            return msgspec.json.decode(answer)
        except msgspec.DecodeError:
            return answer.decode()


def condition(obj: Mapping[str, Any], kind: str) -> Object | None:
    """A condition of an object's status; None if it is not there."""
    # A CRD just made has `conditions: null`.
    conditions = (obj.get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c["type"] == kind), None)


def is_true(obj: Mapping[str, Any], kind: str) -> bool:
    """Whether a condition is there and True."""
    found = condition(obj, kind)
    return found is not None and found["status"] == "True"
