"""A scripted cluster for the client."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from sandboxpool.client.api import Api
from sandboxpool.client.config import Settings
from support.scriptedio import Answer, Asked, ScriptedIo, Step, answer

Object = dict[str, Any]

CLAIMS = "/apis/sandboxpool.io/v1alpha1/namespaces/ns/sandboxclaims"


def settings(**changes: Any) -> Settings:
    """A cluster over plain HTTP, with a token."""
    configuration = SimpleNamespace(
        host="http://api.test",
        proxy=None,
        proxy_headers=None,
        no_proxy=None,
        refresh_api_key_hook=None,
        username=None,
        password=None,
        tls_server_name=None,
        get_api_key_with_prefix=lambda name, alias=None: "Bearer t0ken",
    )
    configuration.__dict__.update(changes)
    return Settings(configuration, "ns")


def api_of(server: Answer) -> tuple[Api, ScriptedIo]:
    """A client of a scripted API server."""
    io = ScriptedIo(server)
    return Api(io, settings()), io


def script(*answers: Sequence[Step]) -> Answer:
    """A server that answers in order; what comes then is a mistake of the client."""
    left = list(answers)

    def respond(asked: Asked) -> Sequence[Step]:
        assert left, f"nobody expects {asked.method} {asked.path}"
        return left.pop(0)

    return respond


def claim(
    phase: str = "Pending",
    version: int = 1,
    *,
    name: str = "c",
    reason: str = "",
    message: str = "",
    generation: int = 1,
    observed: int = 1,
    **spec: Any,
) -> Object:
    """A claim as the API server shows it."""
    status: Object = {"phase": phase, "observedGeneration": observed}
    if phase != "Pending":
        status |= {
            "podName": "pod",
            "podUID": "pod-uid",
            "podIP": "10.0.0.1",
            "boundAt": "2026-01-01T00:00:00Z",
            "expiresAt": "2026-01-01T01:00:00Z",
        }
    if reason:
        status["conditions"] = [{"type": "Bound", "reason": reason, "message": message}]
    return {
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": f"{name}-uid",
            "resourceVersion": str(version),
            "generation": generation,
        },
        "spec": {"poolName": "p", "bindTimeoutSeconds": 300, **spec},
        "status": status,
    }


def pod(**metadata: Any) -> Object:
    return {
        "metadata": {"name": "pod", "uid": "pod-uid", **metadata},
        "status": {"phase": "Running"},
    }


DELETED = answer({"kind": "Status", "status": "Success"})
