"""The chart installed by Helm on a real API server: what RBAC and admission make of it."""

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from localcluster.controlplane import ControlPlane
from sandboxpool.api import names
from sandboxpool.app.settings import load
from sandboxpool.runtimes.probe import build_probe
from support import chart
from support.builders import facts

RELEASE = chart.RELEASE
NAMESPACE = "chart-install"
SOMEWHERE = "default"


@pytest.fixture(scope="module")
def installed(
    control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControlPlane]:
    """Install the chart in a namespace that admits restricted pods only."""
    home = tmp_path_factory.mktemp("helm")
    values = ("apiPriority.enabled=true", f"sandboxNetworkPolicy.namespaces={{{SOMEWHERE}}}")
    with chart.installed(control_plane, home, NAMESPACE, *values):
        yield control_plane


def allowed(
    plane: ControlPlane,
    verb: str,
    group: str,
    resource: str,
    *,
    namespace: str = SOMEWHERE,
    called: str = "",
    **user: Any,
) -> bool:
    name, _, subresource = resource.partition("/")
    attributes = {"verb": verb, "group": group, "resource": name, "namespace": namespace}
    attributes["name"] = called
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


OPERATOR: dict[str, Any] = {
    "user": f"system:serviceaccount:{NAMESPACE}:{RELEASE}",
    "groups": ["system:serviceaccounts", "system:authenticated"],
}
GROUP = names.GROUP


def test_the_api_server_takes_the_policy_for_sandboxes(installed: ControlPlane) -> None:
    policies = f"/apis/networking.k8s.io/v1/namespaces/{SOMEWHERE}/networkpolicies"
    spec = installed.request("GET", f"{policies}/{RELEASE}-sandboxes")["spec"]
    assert spec["podSelector"]["matchExpressions"][0]["key"] == names.LABEL_POOL_UID
    assert [rule["to"][0]["ipBlock"]["cidr"] for rule in spec["egress"]] == ["0.0.0.0/0"]


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
        ("patch", "", "nodes"),
        ("watch", "node.k8s.io", "runtimeclasses"),
        ("create", "", "events"),
    ],
)
def test_the_operator_may(installed: ControlPlane, verb: str, group: str, resource: str) -> None:
    assert allowed(installed, verb, group, resource, **OPERATOR)


@pytest.mark.parametrize(
    ("verb", "group", "resource"),
    [
        ("get", "", "secrets"),
        ("list", "", "namespaces"),
        ("update", GROUP, "sandboxpools/status"),
        ("get", "", "configmaps"),
        ("create", "", "pods/exec"),
        ("get", "", "pods/log"),
        ("update", "", "pods"),
        ("deletecollection", "", "pods"),
        ("update", "", "nodes"),
        ("patch", "", "nodes/status"),
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
    ("verb", "namespace", "called", "expected"),
    [
        ("get", NAMESPACE, names.DEFAULT_RELEASE, True),
        ("watch", NAMESPACE, names.DEFAULT_RELEASE, True),
        ("patch", NAMESPACE, names.DEFAULT_RELEASE, True),
        ("create", NAMESPACE, "", True),
        ("get", NAMESPACE, "another", False),
        ("patch", NAMESPACE, "another", False),
        ("delete", NAMESPACE, names.DEFAULT_RELEASE, False),
        ("patch", "kube-system", names.DEFAULT_RELEASE, False),
        ("create", "kube-system", "", False),
    ],
)
def test_the_operator_may_write_its_own_lease_only(
    installed: ControlPlane, verb: str, namespace: str, called: str, *, expected: bool
) -> None:
    group = "coordination.k8s.io"
    answer = allowed(
        installed, verb, group, "leases", namespace=namespace, called=called, **OPERATOR
    )
    assert answer is expected


def as_the_operator(plane: ControlPlane, method: str, path: str) -> tuple[int, str | None]:
    """Return the answer's status, and the uid of the flow schema that sorted the request."""
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    account = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{RELEASE}"
    token = plane.request("POST", f"{account}/token", body)["status"]["token"]
    request = urllib.request.Request(
        plane.url + path,
        method=method,
        data=None if method == "GET" else b"{}",
        headers={
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/merge-patch+json",
        },
    )
    context = ssl.create_default_context(cafile=str(plane.ca_file))
    try:
        answer = urllib.request.urlopen(request, timeout=15, context=context)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, answer.headers.get("X-Kubernetes-Pf-Flowschema-Uid")


def test_the_lease_can_be_watched_by_its_name(installed: ControlPlane) -> None:
    """A watch of one object is one of the collection, with a selector that RBAC understands."""
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases?watch=1&timeoutSeconds=1"
    named = f"{leases}&fieldSelector=metadata.name%3D{names.DEFAULT_RELEASE}"
    assert as_the_operator(installed, "GET", named)[0] == 200
    assert as_the_operator(installed, "GET", leases)[0] == 403


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("PATCH", f"/api/v1/namespaces/{SOMEWHERE}/pods/x", True),
        ("PATCH", f"/apis/{GROUP}/v1alpha1/namespaces/{SOMEWHERE}/sandboxclaims/x/status", True),
        ("GET", f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/x", True),
        ("GET", "/api/v1/pods?limit=1", False),
        ("PATCH", f"/apis/{GROUP}/v1alpha1/namespaces/{SOMEWHERE}/sandboxpools/x/status", False),
    ],
)
def test_what_claims_wait_for_has_a_queue_of_its_own(
    installed: ControlPlane, method: str, path: str, *, expected: bool
) -> None:
    schemas = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas"
    uid = installed.request("GET", f"{schemas}/{RELEASE}-claims")["metadata"]["uid"]
    assert (as_the_operator(installed, method, path)[1] == uid) is expected


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


def deployed(plane: ControlPlane) -> dict[str, Any]:
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{RELEASE}"
    template = plane.request("GET", path)["spec"]["template"]
    metadata = {**template["metadata"], "name": "operator"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def probe(plane: ControlPlane) -> dict[str, Any]:
    """A positive control as the operator that is deployed there would make it."""
    (container,) = deployed(plane)["spec"]["containers"]
    settings = load({e["name"]: e["value"] for e in container["env"] if "value" in e})
    return build_probe(
        "probe", NAMESPACE, facts(), None, settings.to_probe_image(), settings.to_probe_options()
    )


@pytest.mark.parametrize("body", [deployed, probe])
def test_a_restricted_namespace_admits_the_pods(
    installed: ControlPlane, body: Callable[[ControlPlane], dict[str, Any]]
) -> None:
    pod = body(installed)
    pods = f"/api/v1/namespaces/{NAMESPACE}/pods?dryRun=All&fieldValidation=Strict"
    # Nobody else makes pods with labels of the operator.
    installed.request("POST", pods, pod, user=OPERATOR["user"])
    pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    with pytest.raises(urllib.error.HTTPError) as caught:
        installed.request("POST", pods, pod, user=OPERATOR["user"])
    with caught.value as refusal:
        assert "restricted" in json.loads(refusal.read())["message"]
