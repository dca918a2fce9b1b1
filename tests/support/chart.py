"""The chart on a real API server: installed by Helm, and the rights that it grants."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from localcluster import paths, tools
from localcluster.controlplane import ControlPlane
from sandboxpool.app.permissions import Permission
from support.faultproxy import FaultProxy
from support.operator_process import Operator

CHART = paths.REPOSITORY / "charts" / "sandboxpool"
RELEASE = "sandboxpool"
_RBAC = "/apis/rbac.authorization.k8s.io/v1"

_HELM_SECONDS = 100


@contextmanager
def release(
    plane: ControlPlane, home: Path, namespace: str, *values: str, name: str = RELEASE
) -> Iterator[None]:
    """Installs a release of the chart in a namespace that exists, and removes it.

    The API server has the CRDs already.

    Args:
        plane: Where.
        home: A directory for Helm's own files.
        namespace: Where it is installed.
        values: `key=value` as for `--set`.
        name: That of the release.
    """
    chosen = [word for value in ("crds.install=false", *values) for word in ("--set", value)]
    run_helm(plane, home, "install", name, str(CHART), "--namespace", namespace, *chosen)
    yield
    run_helm(plane, home, "uninstall", name, "--namespace", namespace)


@contextmanager
def installed(plane: ControlPlane, home: Path, namespace: str, *values: str) -> Iterator[None]:
    """Installs the chart in a new namespace that admits restricted pods only, and removes it.

    The arguments are those of `release`.
    """
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    metadata = {"name": namespace, "labels": labels}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
    plane.request("POST", "/api/v1/namespaces", body)
    with release(plane, home, namespace, *values):
        yield


def operator_of(
    plane: ControlPlane,
    proxy: FaultProxy,
    folder: Path,
    namespace: str,
    *,
    fullname: str = RELEASE,
    name: str = "operator",
) -> Operator:
    """A replica with the settings and the account that a release's Deployment gives it."""
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/{fullname}"
    pod = plane.request("GET", path)["spec"]["template"]["spec"]
    account = f"/api/v1/namespaces/{namespace}/serviceaccounts/{pod['serviceAccountName']}/token"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = plane.request("POST", account, body)["status"]["token"]
    (container,) = pod["containers"]
    env = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    for variable in ("SANDBOXPOOL_LISTEN", "SANDBOXPOOL_HEALTH_LISTEN"):
        del env[variable]
    return Operator(proxy.kubeconfig(token), folder, namespace, env, name)


def granted_to(plane: ControlPlane, namespace: str, account: str) -> set[Permission]:
    """Everything that bindings grant a service account, and nothing that all accounts have."""
    subject = {"kind": "ServiceAccount", "name": account, "namespace": namespace}
    found: set[Permission] = set()
    for bindings in ("clusterrolebindings", "rolebindings"):
        for binding in plane.request("GET", f"{_RBAC}/{bindings}")["items"]:
            if subject not in binding.get("subjects", ()):
                continue
            where = binding["metadata"].get("namespace")
            kind = binding["roleRef"]["kind"].lower() + "s"
            path = f"{_RBAC}/namespaces/{where}/{kind}" if where else f"{_RBAC}/{kind}"
            found |= granted(plane.request("GET", f"{path}/{binding['roleRef']['name']}"))
    return found


def run_helm(plane: ControlPlane, home: Path, *arguments: str) -> None:
    """Runs Helm, with its own files in a directory.

    Raises:
        AssertionError: It failed; the text is what it says.
    """
    environment = {
        **os.environ,
        "KUBECONFIG": str(plane.kubeconfig),
        "HELM_CACHE_HOME": str(home / "cache"),
        "HELM_CONFIG_HOME": str(home / "config"),
        "HELM_DATA_HOME": str(home / "data"),
    }
    answer = subprocess.run(
        [str(tools.path("helm")), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=_HELM_SECONDS,
        env=environment,
    )
    assert answer.returncode == 0, answer.stderr


def granted(role: Mapping[str, Any]) -> set[Permission]:
    """The rules of a role as the operator's own code knows them."""
    where = role["metadata"].get("namespace", "")
    return {
        Permission(group, resource, verb, where, tuple(rule.get("resourceNames", ())))
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
