"""The requests that the client makes, as values."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from sandboxpool.api import names

MERGE_PATCH = "application/merge-patch+json"
_JSON = "application/json"
_CLAIMS = f"{names.CLAIMS}.{names.GROUP}"


@dataclass(frozen=True, slots=True)
class Request:
    """A request to the API server.

    Attributes:
        verb: The verb and resource that a Role has to allow for it.
        repeatable: It may be sent again where nobody knows whether it arrived.
    """

    method: str
    path: str
    verb: str
    resource: str
    namespace: str
    query: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    content_type: str = ""
    repeatable: bool = True

    @property
    def target(self) -> str:
        """Path and query."""
        return f"{self.path}?{urlencode(self.query)}" if self.query else self.path


def _claims(namespace: str, name: str = "") -> str:
    path = f"/apis/{names.API_VERSION}/namespaces/{quote(namespace, safe='')}/{names.CLAIMS}"
    return f"{path}/{quote(name, safe='')}" if name else path


def _pod(namespace: str, name: str, subresource: str = "") -> str:
    path = f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{quote(name, safe='')}"
    return f"{path}/{subresource}" if subresource else path


def create_claim(namespace: str, manifest: Mapping[str, Any]) -> Request:
    """Create a claim; only one with a name of its own can be created again by mistake."""
    return Request(
        *("POST", _claims(namespace), "create", _CLAIMS, namespace),
        body=json.dumps(manifest).encode(),
        content_type=_JSON,
        repeatable="name" in manifest["metadata"],
    )


def get_claim(namespace: str, name: str) -> Request:
    """Read a claim."""
    return Request("GET", _claims(namespace, name), "get", _CLAIMS, namespace)


def list_claims(namespace: str, selector: str) -> Request:
    """Read the claims that a label selector selects."""
    query = (("labelSelector", selector),)
    return Request("GET", _claims(namespace), "list", _CLAIMS, namespace, query)


def watch_claims(
    namespace: str, version: str, *, name: str = "", selector: str = "", seconds: int
) -> Request:
    """Watch one claim, or those that a label selector selects, from a resourceVersion on."""
    query = [
        ("watch", "true"),
        ("resourceVersion", version),
        ("timeoutSeconds", str(max(1, seconds))),
    ]
    query += [("fieldSelector", f"metadata.name={name}")] if name else []
    query += [("labelSelector", selector)] if selector else []
    return Request("GET", _claims(namespace), "watch", _CLAIMS, namespace, tuple(query))


def patch_claim(namespace: str, name: str, patch: Mapping[str, Any]) -> Request:
    """Change a claim; the patch carries the resourceVersion that it is based on."""
    return Request(
        *("PATCH", _claims(namespace, name), "patch", _CLAIMS, namespace),
        body=json.dumps(patch).encode(),
        content_type=MERGE_PATCH,
    )


def delete_claim(namespace: str, name: str, uid: str) -> Request:
    """Delete a claim, and no other of the same name."""
    return Request(
        *("DELETE", _claims(namespace, name), "delete", _CLAIMS, namespace),
        body=json.dumps({"preconditions": {"uid": uid}}).encode(),
        content_type=_JSON,
    )


def get_pod(namespace: str, name: str) -> Request:
    """Read a pod."""
    return Request("GET", _pod(namespace, name), "get", "pods", namespace)


def read_log(namespace: str, pod: str, query: Sequence[tuple[str, str]]) -> Request:
    """Read what a container of a pod has written, or writes."""
    path = _pod(namespace, pod, "log")
    return Request("GET", path, "get", "pods/log", namespace, tuple(query))


def execute(
    namespace: str,
    pod: str,
    command: Sequence[str],
    *,
    container: str = "",
    stdin: bool = False,
    tty: bool = False,
) -> Request:
    """Run a command in a pod; to be upgraded to a WebSocket."""
    query = [("command", argument) for argument in command]
    query += [("container", container)] if container else []
    query += [("stdout", "true"), ("stdin", str(stdin).lower()), ("tty", str(tty).lower())]
    # A terminal has one output.
    query += [("stderr", str(not tty).lower())]
    path = _pod(namespace, pod, "exec")
    return Request("GET", path, "get", "pods/exec", namespace, tuple(query), repeatable=False)


def forward(namespace: str, pod: str, port: int) -> Request:
    """Forward one connection to a port of a pod; to be upgraded to a WebSocket."""
    path = _pod(namespace, pod, "portforward")
    query = (("ports", str(port)),)
    return Request("GET", path, "get", "pods/portforward", namespace, query, repeatable=False)
