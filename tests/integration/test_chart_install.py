"""The chart installed by Helm on a real API server: what RBAC and admission make of it."""

import json
import os
import subprocess
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crdgen.__main__ import REPOSITORY
from localcluster import tools
from localcluster.controlplane import ControlPlane
from sandboxpool.api import names

CHART = REPOSITORY / "charts" / "sandboxpool"
RELEASE = "sandboxpool"
NAMESPACE = "chart-install"
SOMEWHERE = "default"


@pytest.fixture(scope="module")
def installed(
    control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControlPlane]:
    """Install the chart in a namespace that admits restricted pods only."""
    home: Path = tmp_path_factory.mktemp("helm")
    environment = {
        **os.environ,
        "KUBECONFIG": str(control_plane.kubeconfig),
        "HELM_CACHE_HOME": str(home / "cache"),
        "HELM_CONFIG_HOME": str(home / "config"),
        "HELM_DATA_HOME": str(home / "data"),
    }

    def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(tools.path("helm")), *arguments, "--namespace", NAMESPACE],
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
            env=environment,
        )

    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    metadata = {"name": NAMESPACE, "labels": labels}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
    control_plane.request("POST", "/api/v1/namespaces", body)
    answer = helm("install", RELEASE, str(CHART))
    assert answer.returncode == 0, answer.stderr
    yield control_plane
    answer = helm("uninstall", RELEASE)
    assert answer.returncode == 0, answer.stderr


def allowed(plane: ControlPlane, verb: str, group: str, resource: str, **user: Any) -> bool:
    name, _, subresource = resource.partition("/")
    attributes = {"verb": verb, "group": group, "resource": name, "namespace": SOMEWHERE}
    if subresource:
        attributes["subresource"] = subresource
    answer = plane.request(
        "POST",
        "/apis/authorization.k8s.io/v1/subjectaccessreviews",
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"resourceAttributes": attributes, **user},
        },
    )
    return bool(answer["status"]["allowed"])


OPERATOR = {
    "user": f"system:serviceaccount:{NAMESPACE}:{RELEASE}",
    "groups": ["system:serviceaccounts", "system:authenticated"],
}
GROUP = names.GROUP


@pytest.mark.parametrize(
    ("verb", "group", "resource"),
    [
        ("watch", GROUP, "sandboxpools"),
        ("watch", GROUP, "sandboxclaims"),
        ("delete", GROUP, "sandboxclaims"),
        ("patch", GROUP, "sandboxpools/status"),
        ("patch", GROUP, "sandboxclaims/status"),
        ("create", "", "pods"),
        ("patch", "", "pods"),
        ("delete", "", "pods"),
        ("watch", "", "nodes"),
        ("watch", "node.k8s.io", "runtimeclasses"),
        ("create", "", "events"),
        ("list", "", "namespaces"),
    ],
)
def test_the_operator_may(installed: ControlPlane, verb: str, group: str, resource: str) -> None:
    assert allowed(installed, verb, group, resource, **OPERATOR)


@pytest.mark.parametrize(
    ("verb", "group", "resource"),
    [
        ("get", "", "secrets"),
        ("get", "", "configmaps"),
        ("create", "", "pods/exec"),
        ("get", "", "pods/log"),
        ("update", "", "pods"),
        ("deletecollection", "", "pods"),
        ("patch", "", "nodes"),
        ("create", "", "serviceaccounts/token"),
        ("create", GROUP, "sandboxpools"),
        ("patch", GROUP, "sandboxpools"),
        ("delete", GROUP, "sandboxpools"),
        ("create", GROUP, "sandboxclaims"),
        ("patch", GROUP, "sandboxclaims"),
        ("create", "node.k8s.io", "runtimeclasses"),
        ("list", "apiextensions.k8s.io", "customresourcedefinitions"),
        ("bind", "rbac.authorization.k8s.io", "clusterroles"),
    ],
)
def test_the_operator_may_not(
    installed: ControlPlane, verb: str, group: str, resource: str
) -> None:
    assert not allowed(installed, verb, group, resource, **OPERATOR)


@pytest.mark.parametrize(
    ("role", "pools", "claims"),
    [("sandboxpool-pool-editor", True, False), ("sandboxpool-claim-editor", False, True)],
)
def test_pool_editors_and_claim_editors_differ(
    installed: ControlPlane, role: str, pools: bool, claims: bool
) -> None:
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": role},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": role,
        },
        "subjects": [
            {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": f"holder-of-{role}"}
        ],
    }
    path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{SOMEWHERE}/rolebindings"
    installed.request("POST", path, binding)
    try:
        user = {"user": f"holder-of-{role}"}
        assert allowed(installed, "create", GROUP, "sandboxpools", **user) is pools
        assert allowed(installed, "update", GROUP, "sandboxpools/scale", **user) is pools
        assert allowed(installed, "create", GROUP, "sandboxclaims", **user) is claims
        assert allowed(installed, "get", GROUP, "sandboxpools", **user)
        assert not allowed(installed, "patch", GROUP, "sandboxpools/status", **user)
        assert not allowed(installed, "patch", GROUP, "sandboxclaims/status", **user)
    finally:
        installed.request("DELETE", f"{path}/{role}")


def test_a_restricted_namespace_admits_the_pod(installed: ControlPlane) -> None:
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{RELEASE}"
    template = installed.request("GET", path)["spec"]["template"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**template["metadata"], "name": "probe"},
        "spec": template["spec"],
    }
    pods = f"/api/v1/namespaces/{NAMESPACE}/pods?dryRun=All&fieldValidation=Strict"
    installed.request("POST", pods, pod)
    pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    with pytest.raises(urllib.error.HTTPError) as caught:
        installed.request("POST", pods, pod)
    with caught.value as refusal:
        assert "restricted" in json.loads(refusal.read())["message"]
