"""The chart's admission policies on a real API server: what they refuse, and what they let pass.

Everybody acts with all rights here, as far as RBAC is concerned: only the policies refuse.
"""

import copy
import json
import os
import re
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from crdgen.__main__ import REPOSITORY
from localcluster import tools
from localcluster.controlplane import ControlPlane
from sandboxpool.api import names
from support.waiting import eventually

CHART = REPOSITORY / "charts" / "sandboxpool"
RELEASE = "sandboxpool"
SYSTEM = "admission-system"
NAMESPACE = "team"
BY_NAME = "tenant-by-name"
BY_LABEL = "tenant-by-label"

OPERATOR = f"system:serviceaccount:{SYSTEM}:{RELEASE}"
TENANT = "tenant"
COLLECTOR = "system:serviceaccount:kube-system:generic-garbage-collector"
REPLICAS = "system:serviceaccount:kube-system:replicaset-controller"

Body = dict[str, Any]

STRICT: Body = {
    "admission": {
        "namespaces": [
            {
                "names": [BY_NAME],
                "runtimeClasses": ["gvisor", "kata"],
                "leastIsolationProof": "PerNode",
            },
            {
                "namespaceSelector": {"matchLabels": {"tenant": "true"}},
                "leastIsolationProof": "PerSandbox",
            },
        ]
    }
}
RELAXED: Body = {
    "admission": {
        "templates": {
            "allowHostNamespaces": True,
            "allowHostPath": True,
            "allowPrivileged": True,
            "allowedServiceAccounts": ["robot"],
            "allowedPriorityClasses": ["urgent"],
        }
    }
}
OFF: Body = {"admission": {"enabled": False}}


@dataclass(frozen=True)
class ClusterCache:
    """A control plane with the chart, and ways to speak to it."""

    plane: ControlPlane
    home: Path

    def send(
        self, method: str, path: str, body: Body | None = None, *, user: str = TENANT
    ) -> tuple[int, Body]:
        """Send one request in the name of somebody who may do everything."""
        request = urllib.request.Request(
            self.plane.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self.plane.admin_token}",
                "Impersonate-User": user,
                "Impersonate-Group": "system:masters",
                "Content-Type": (
                    "application/merge-patch+json" if method == "PATCH" else "application/json"
                ),
            },
        )
        context = ssl.create_default_context(cafile=str(self.plane.ca_file))
        try:
            answer = urllib.request.urlopen(request, timeout=15, context=context)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            return answer.status, json.loads(answer.read())

    def helm(self, *arguments: str, values: Body | None = None) -> None:
        """Run Helm on the release."""
        path = self.home / "values.yaml"
        path.write_text(json.dumps(values or {}))
        environment = {
            **os.environ,
            "KUBECONFIG": str(self.plane.kubeconfig),
            "HELM_CACHE_HOME": str(self.home / "cache"),
            "HELM_CONFIG_HOME": str(self.home / "config"),
            "HELM_DATA_HOME": str(self.home / "data"),
        }
        given = ("--values", str(path)) if values is not None else ()
        answer = subprocess.run(
            [str(tools.path("helm")), *arguments, *given, "--namespace", SYSTEM],
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
            env=environment,
        )
        assert answer.returncode == 0, answer.stderr

    def upgrade(self, values: Body) -> None:
        """Change the values of the release."""
        self.helm("upgrade", RELEASE, str(CHART), values=values)


def pods(namespace: str = NAMESPACE, name: str = "") -> str:
    return f"/api/v1/namespaces/{namespace}/pods" + (f"/{name}" if name else "")


def pools(namespace: str = NAMESPACE, name: str = "") -> str:
    base = f"/apis/{names.API_VERSION}/namespaces/{namespace}/{names.POOLS}"
    return base + (f"/{name}" if name else "")


DRY = "?dryRun=All"
OWNER: Body = {
    "apiVersion": names.API_VERSION,
    "kind": names.POOL_KIND,
    "name": "pool",
    "uid": "9a3f9e0e-0000-4000-8000-000000000001",
    "controller": True,
}
OTHER: Body = {
    "apiVersion": "apps/v1",
    "kind": "ReplicaSet",
    "name": "other",
    "uid": "9a3f9e0e-0000-4000-8000-000000000002",
}
ABSENT = None


def pod(name: str = "pod", **metadata: Any) -> Body:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, **metadata},
        "spec": {"containers": [{"name": "main", "image": "example.com/image"}]},
    }


SANDBOX: Body = {
    "labels": {names.LABEL_POOL_UID: "uid", "app": "x"},
    "annotations": {names.ANNOTATION_HANDLER: "runsc"},
    "ownerReferences": [OWNER],
}


def pool(name: str = "pool", template: Body | None = None, **spec: Any) -> Body:
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.POOL_KIND,
        "metadata": {"name": name},
        "spec": {
            "runtimeClassName": "gvisor",
            "template": {"spec": {**pod()["spec"], **(template or {})}},
            **spec,
        },
    }


def refused(answer: tuple[int, Body], *in_message: str) -> bool:
    """Tell whether a policy has refused; it must then say what is expected."""
    status, body = answer
    if status in (200, 201):
        return False
    assert status == 403, body["message"]
    assert [text for text in in_message if text not in body["message"]] == [], body["message"]
    return True


def accepted(answer: tuple[int, Body]) -> bool:
    """Tell whether a request was taken; a refusal must be a policy's."""
    return not refused(answer)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterCache]:
    """A control plane of its own: policies hold for everybody in it, and a moment longer."""
    with ControlPlane() as plane:
        it = ClusterCache(plane, tmp_path_factory.mktemp("helm"))
        for name, labels in (
            *((name, {}) for name in (SYSTEM, NAMESPACE, BY_NAME)),
            (BY_LABEL, {"tenant": "true"}),
        ):
            metadata = {"name": name, "labels": labels}
            body = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
            assert it.send("POST", "/api/v1/namespaces", body)[0] == 201
        it.helm("install", RELEASE, str(CHART), values=STRICT)
        strict(it)
        yield it


def strict(cluster: ClusterCache) -> None:
    """Wait until every policy is in force: the API server takes some seconds."""
    for path, body in (
        (pods(), pod(**SANDBOX)),
        (pools(), pool(template={"hostPID": True})),
        (pools(BY_NAME), pool(isolationProof="None")),
        (pools(BY_LABEL), pool(isolationProof="None")),
    ):

        def in_force(path: str = path, body: Body = body) -> bool:
            status, _ = cluster.send("POST", path + DRY, body)
            return status == 403

        eventually(in_force, timeout=60, message=f"a policy on {path}")


@pytest.fixture
def sandbox(cluster: ClusterCache) -> Iterator[str]:
    """A sandbox that the operator has made."""
    status, body = cluster.send("POST", pods(), pod("sandbox", **SANDBOX), user=OPERATOR)
    assert status == 201, body
    yield pods(NAMESPACE, "sandbox")
    status, body = cluster.send("DELETE", pods(NAMESPACE, "sandbox") + "?gracePeriodSeconds=0")
    assert status == 200, body


# --- Pods ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forgery:
    name: str
    metadata: Body
    in_message: tuple[str, ...] = field(default=())


FORGERIES = [
    Forgery(
        "a label",
        {"labels": {names.LABEL_CLAIM_UID: "x"}},
        ("metadata.labels: only the operator", names.LABEL_CLAIM_UID, "create a SandboxClaim"),
    ),
    Forgery(
        "a label of a subdomain",
        {"labels": {"runtime.sandboxpool.io/runsc": "true"}},
        ("metadata.labels: ", "runtime.sandboxpool.io/runsc", "admission.pods"),
    ),
    Forgery(
        "an annotation",
        {"annotations": {names.ANNOTATION_HANDLER: "runc"}},
        ("metadata.annotations: only the operator", names.ANNOTATION_HANDLER),
    ),
    Forgery(
        "an owner",
        {"ownerReferences": [OWNER]},
        ("metadata.ownerReferences: only the operator", "SandboxClaim", "admission.pods"),
    ),
    Forgery(
        "an owner of a later version",
        {"ownerReferences": [OTHER, {**OWNER, "apiVersion": "sandboxpool.io/v2"}]},
        ("metadata.ownerReferences: ",),
    ),
    Forgery(
        "an owner without a version",
        {"ownerReferences": [{**OWNER, "apiVersion": "sandboxpool.io"}]},
        ("metadata.ownerReferences: ",),
    ),
]


@pytest.mark.parametrize("user", [TENANT, REPLICAS, COLLECTOR])
@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda forgery: forgery.name)
def test_only_the_operator_makes_a_sandbox(
    cluster: ClusterCache, forgery: Forgery, user: str
) -> None:
    body = pod(**forgery.metadata)
    assert refused(cluster.send("POST", pods() + DRY, body, user=user), *forgery.in_message)
    assert accepted(cluster.send("POST", pods() + DRY, body, user=OPERATOR))


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda forgery: forgery.name)
def test_no_pod_becomes_a_sandbox_afterwards(cluster: ClusterCache, forgery: Forgery) -> None:
    name = "plain"
    assert cluster.send("POST", pods(), pod(name))[0] == 201
    try:
        patch = {"metadata": forgery.metadata}
        path = pods(NAMESPACE, name)
        assert refused(cluster.send("PATCH", path + DRY, patch), *forgery.in_message)
        assert accepted(cluster.send("PATCH", path + DRY, patch, user=OPERATOR))
    finally:
        cluster.send("DELETE", pods(NAMESPACE, name) + "?gracePeriodSeconds=0")


@pytest.mark.parametrize(
    ("metadata", "in_message"),
    [
        ({"labels": {names.LABEL_POOL_UID: "other"}}, names.LABEL_POOL_UID),
        ({"labels": {names.LABEL_POOL_UID: ABSENT}}, names.LABEL_POOL_UID),
        ({"labels": {names.LABEL_CLAIM_UID: "x"}}, names.LABEL_CLAIM_UID),
        ({"labels": ABSENT}, names.LABEL_POOL_UID),
        ({"annotations": {names.ANNOTATION_HANDLER: "runc"}}, names.ANNOTATION_HANDLER),
        ({"annotations": {names.ANNOTATION_HANDLER: ABSENT}}, names.ANNOTATION_HANDLER),
        ({"ownerReferences": ABSENT}, "metadata.ownerReferences"),
        ({"ownerReferences": [{**OWNER, "name": "other"}]}, "metadata.ownerReferences"),
        ({"ownerReferences": [{**OWNER, "controller": False}]}, "metadata.ownerReferences"),
        ({"ownerReferences": [{**OWNER, "uid": "other"}]}, "metadata.ownerReferences"),
    ],
)
def test_what_is_the_operators_on_a_sandbox_stays(
    cluster: ClusterCache, sandbox: str, metadata: Body, in_message: str
) -> None:
    patch = {"metadata": metadata}
    assert refused(cluster.send("PATCH", sandbox + DRY, patch), in_message, "only the operator")
    assert accepted(cluster.send("PATCH", sandbox + DRY, patch, user=OPERATOR))


@pytest.mark.parametrize(
    "metadata",
    [
        {"labels": {"foo": "bar", "app": ABSENT}},
        {"annotations": {"example.com/a": "b"}},
        {"ownerReferences": [OTHER, OWNER]},
        {"finalizers": ["example.com/finalizer"]},
    ],
)
def test_everything_else_on_a_sandbox_is_as_it_was(
    cluster: ClusterCache, sandbox: str, metadata: Body
) -> None:
    assert accepted(cluster.send("PATCH", sandbox + DRY, {"metadata": metadata}))


def test_a_sandbox_goes_through_its_life(cluster: ClusterCache, sandbox: str) -> None:
    """Who updates it: the scheduler, the kubelet, and at its end whoever deletes it."""
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": "sandbox"},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "node-1"},
    }
    assert accepted(
        cluster.send("POST", f"{sandbox}/binding", binding, user="system:kube-scheduler")
    )
    status = {"status": {"phase": "Running", "podIP": "10.0.0.1"}}
    assert accepted(cluster.send("PATCH", f"{sandbox}/status", status, user="system:node:node-1"))
    image = {"spec": {"containers": [{"name": "main", "image": "example.com/other"}]}}
    assert accepted(cluster.send("PATCH", sandbox + DRY, image))
    assert accepted(cluster.send("DELETE", sandbox + DRY, user=COLLECTOR))
    assert accepted(cluster.send("DELETE", sandbox + DRY))


def test_the_collector_may_take_owners_away_and_give_none(
    cluster: ClusterCache, sandbox: str
) -> None:
    """With `--cascade=orphan` the pool's end waits for it."""

    def patch(**metadata: Any) -> tuple[int, Body]:
        return cluster.send("PATCH", sandbox + DRY, {"metadata": metadata}, user=COLLECTOR)

    assert accepted(patch(ownerReferences=ABSENT))
    assert accepted(patch(ownerReferences=[{**OWNER, "blockOwnerDeletion": False}]))
    another = {**OWNER, "uid": "other", "controller": False}
    assert refused(patch(ownerReferences=[OWNER, another]), "ownerReferences")
    assert refused(patch(labels={names.LABEL_POOL_UID: ABSENT}), "metadata.labels")


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"labels": {"app": "x"}, "annotations": {"example.com/sandboxpool.io": ""}},
        {"labels": {"notsandboxpool.io/a": "b"}},
        {"ownerReferences": [OTHER]},
        {"ownerReferences": [{**OWNER, "apiVersion": "other.example/v1"}]},
        {"annotations": {f"example.com/a{number}": "x" * 20 for number in range(4000)}},
    ],
)
def test_other_pods_are_none_of_its_business(cluster: ClusterCache, metadata: Body) -> None:
    assert accepted(cluster.send("POST", pods() + DRY, pod(**metadata)))


# --- Templates -----------------------------------------------------------------------------------

PRIVILEGED: Body = {"name": "init", "image": "i", "securityContext": {"privileged": True}}
TEMPLATES: list[tuple[Body, Body, str]] = [
    ({"hostNetwork": True}, {"hostNetwork": False}, "allowHostNamespaces"),
    ({"hostPID": True}, {"hostPID": False}, "allowHostNamespaces"),
    ({"hostIPC": True}, {"hostIPC": False}, "allowHostNamespaces"),
    (
        {"volumes": [{"name": "a", "emptyDir": {}}, {"name": "b", "hostPath": {"path": "/"}}]},
        {"volumes": [{"name": "a", "emptyDir": {}}]},
        "allowHostPath",
    ),
    (
        {"containers": [PRIVILEGED]},
        {"containers": [{**PRIVILEGED, "securityContext": {"privileged": False}}]},
        "allowPrivileged",
    ),
    (
        {"initContainers": [PRIVILEGED]},
        {"initContainers": [{**PRIVILEGED, "securityContext": {"runAsUser": 1000}}]},
        "allowPrivileged",
    ),
    ({"ephemeralContainers": [PRIVILEGED]}, {"ephemeralContainers": []}, "allowPrivileged"),
    (
        {"serviceAccountName": "robot"},
        {"serviceAccountName": "default"},
        "allowedServiceAccounts",
    ),
    ({"serviceAccount": "robot"}, {"serviceAccount": "default"}, "allowedServiceAccounts"),
    ({"priorityClassName": "urgent"}, {"priorityClassName": ""}, "allowedPriorityClasses"),
]


@pytest.mark.parametrize(("bad", "good", "value"), TEMPLATES)
def test_a_template_may_not_open_the_node(
    cluster: ClusterCache, bad: Body, good: Body, value: str
) -> None:
    in_message = ("spec.template.spec", f"admission.templates.{value}", "remove the field")
    if "volumes" in bad:
        in_message = (*in_message[:2], "use another kind of volume")
    assert refused(cluster.send("POST", pools() + DRY, pool(template=bad)), *in_message)
    assert accepted(cluster.send("POST", pools() + DRY, pool(template=good)))
    # Not even the operator, which has no right to write pools.
    assert refused(cluster.send("POST", pools() + DRY, pool(template=bad), user=OPERATOR))


def test_a_template_that_could_not_become_a_pod_does_not_slip_through(
    cluster: ClusterCache,
) -> None:
    odd = pool(template={"volumes": "all"})
    assert not 200 <= cluster.send("POST", pools() + DRY, odd)[0] < 300


def test_each_rule_can_be_relaxed_and_what_was_taken_before_stays_usable(
    cluster: ClusterCache,
) -> None:
    cluster.upgrade(RELAXED)
    path = pools(NAMESPACE, "relaxed")
    try:
        for bad, _, value in TEMPLATES:
            body = pool(template=bad)
            eventually(
                lambda body=body: accepted(cluster.send("POST", pools() + DRY, body)),  # type: ignore[misc]
                timeout=60,
                message=f"{value} relaxed",
            )
        other = pool(template={"serviceAccountName": "other"})
        assert refused(cluster.send("POST", pools() + DRY, other), "allowedServiceAccounts")
        status, _ = cluster.send("POST", pools(), pool("relaxed", template={"hostPID": True}))
        assert status == 201
        cluster.upgrade(STRICT)
        strict(cluster)
        changed = {"metadata": {"labels": {"a": "b"}}, "spec": {"replicas": 5, "paused": True}}
        assert accepted(cluster.send("PATCH", path, changed))
        assert accepted(cluster.send("PATCH", f"{path}/scale", {"spec": {"replicas": 2}}))
        annotated = {"spec": {"template": {"metadata": {"labels": {"a": "b"}}}}}
        assert refused(cluster.send("PATCH", path, annotated), "spec.template.spec.hostPID")
        cured = {"spec": {"template": {"spec": {"hostPID": ABSENT}}}}
        assert accepted(cluster.send("PATCH", path, cured))
        again = {"spec": {"template": {"spec": {"hostPID": True}}}}
        assert refused(cluster.send("PATCH", path, again), "spec.template.spec.hostPID")
    finally:
        cluster.send("DELETE", path)
        cluster.upgrade(STRICT)
        strict(cluster)


# --- Namespaces ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("namespace", "spec", "in_message"),
    [
        (BY_NAME, {"runtimeClassName": "gvisor"}, ""),
        (BY_NAME, {"runtimeClassName": "kata", "isolationProof": "PerSandbox"}, ""),
        (BY_NAME, {"runtimeClassName": "runc"}, "spec.runtimeClassName: "),
        (BY_NAME, {"isolationProof": "None"}, "spec.isolationProof: "),
        (BY_LABEL, {"runtimeClassName": "runc", "isolationProof": "PerSandbox"}, ""),
        (BY_LABEL, {}, "spec.isolationProof: "),
        (NAMESPACE, {"runtimeClassName": "runc", "isolationProof": "None"}, ""),
    ],
)
def test_a_namespace_is_bound_to_classes_and_proof(
    cluster: ClusterCache, namespace: str, spec: Body, in_message: str
) -> None:
    answer = cluster.send("POST", pools(namespace) + DRY, pool(**spec))
    assert refused(answer, in_message, "pools of this namespace") is bool(in_message)


def test_a_pool_cannot_leave_what_its_namespace_is_bound_to(cluster: ClusterCache) -> None:
    assert cluster.send("POST", pools(BY_NAME), pool("bound"))[0] == 201
    path = pools(BY_NAME, "bound")
    try:
        for change, in_message in (
            ({"runtimeClassName": "runc"}, "gvisor or kata"),
            ({"isolationProof": "None"}, "PerNode at least"),
        ):
            assert refused(cluster.send("PATCH", path + DRY, {"spec": change}), in_message)
        for change in ({"runtimeClassName": "kata"}, {"isolationProof": "PerSandbox"}):
            assert accepted(cluster.send("PATCH", path + DRY, {"spec": change}))
    finally:
        cluster.send("DELETE", path)


# --- Off -----------------------------------------------------------------------------------------


def test_without_the_policies_everything_is_as_it_was(cluster: ClusterCache) -> None:
    cluster.upgrade(OFF)
    try:
        for path, body in (
            (pods(), pod(**copy.deepcopy(SANDBOX))),
            (pools(), pool(template={"hostPID": True})),
            (pools(BY_NAME), pool(isolationProof="None")),
        ):

            def taken(path: str = path, body: Body = body) -> bool:
                return accepted(cluster.send("POST", path + DRY, body))

            eventually(taken, timeout=60, message=f"nothing refused on {path}")
    finally:
        cluster.upgrade(STRICT)
        strict(cluster)


# --- Nodes ---------------------------------------------------------------------------------------

NODE_PATH = "/api/v1/nodes/node-1"


@pytest.fixture
def node(cluster: ClusterCache) -> Iterator[str]:
    """A node with labels of others, and somebody's taint."""
    body = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "node-1", "labels": {"zone": "a"}, "annotations": {"a": "b"}},
        "spec": {"taints": [{"key": "dedicated", "effect": "NoSchedule"}]},
    }
    assert cluster.send("POST", "/api/v1/nodes", body)[0] == 201
    yield NODE_PATH
    assert cluster.send("DELETE", NODE_PATH)[0] == 200


def labelled(**labels: str | None) -> Body:
    return {"metadata": {"labels": labels}}


EXCLUDED = "excluded.sandboxpool.io/runsc"
PUBLISHED = "runtime.sandboxpool.io/runsc"
CONDITION = {"type": "sandboxpool.io/runsc", "status": "True"}
CHANGES_BY_OTHERS: list[tuple[str, Body, str]] = [
    ("", labelled(zone="b"), "metadata.labels: "),
    ("", labelled(zone=None), "metadata.labels: "),
    ("", labelled(**{"node-role.kubernetes.io/control-plane": ""}), "metadata.labels: "),
    ("", labelled(**{"excluded.sandboxpool.io.evil/x": ""}), "metadata.labels: "),
    ("", {"metadata": {"annotations": {"a": "c"}}}, "metadata: "),
    ("", {"metadata": {"finalizers": ["example.com/hold"]}}, "metadata: "),
    ("", {"spec": {"unschedulable": True}}, "spec: "),
    ("", {"spec": {"taints": []}}, "spec: "),
    ("/status", labelled(zone="b"), "metadata.labels: "),
    ("/status", {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}, "status"),
    ("/status", {"status": {"capacity": {"cpu": "100"}}}, "status"),
    ("/status", {"status": {"runtimeHandlers": [{"name": "runsc"}]}}, "status"),
]


def test_the_operator_changes_nothing_on_nodes_but_its_own_labels(
    cluster: ClusterCache, node: str
) -> None:
    for subresource, change, in_message in CHANGES_BY_OTHERS:
        answer = cluster.send("PATCH", node + subresource + DRY, change, user=OPERATOR)
        assert refused(answer, in_message, "the operator of SandboxPools"), change
        assert accepted(cluster.send("PATCH", node + subresource + DRY, change)), "nobody else is"
    for value in ("NotServing", "Quarantined", None):
        change = labelled(**{EXCLUDED: value})
        assert accepted(cluster.send("PATCH", node, change, user=OPERATOR))
    own_condition = {"status": {"conditions": [CONDITION]}}
    for path, change in (
        (node, labelled(**{PUBLISHED: "true"})),
        (f"{node}/status", own_condition),
    ):
        answer = cluster.send("PATCH", path + DRY, change, user=OPERATOR)
        assert refused(answer), "only where it publishes on nodes"


def test_an_operator_that_publishes_on_nodes_changes_its_own_conditions_too(
    cluster: ClusterCache, node: str
) -> None:
    cluster.upgrade({"publishOnNodes": True})
    try:
        published = labelled(**{PUBLISHED: "true", EXCLUDED: "NotServing"})
        eventually(
            lambda: accepted(cluster.send("PATCH", node + DRY, published, user=OPERATOR)),
            timeout=60,
            message="publishing is allowed",
        )
        change = {"status": {"conditions": [CONDITION]}}
        assert accepted(cluster.send("PATCH", f"{node}/status", change, user=OPERATOR))
        for subresource, change, in_message in CHANGES_BY_OTHERS:
            answer = cluster.send("PATCH", node + subresource + DRY, change, user=OPERATOR)
            assert refused(answer, in_message), change
    finally:
        cluster.upgrade(STRICT)
        strict(cluster)


def test_the_documented_command_removes_the_labels_of_all_nodes(
    cluster: ClusterCache, node: str
) -> None:
    text = (REPOSITORY / "docs" / "upgrading.md").read_text()
    (command,) = re.findall(r"```sh\n(kubectl get nodes -o go-template=.*?)```", text, re.DOTALL)
    labels = {EXCLUDED: "NotServing", "excluded.sandboxpool.io/pool-x": "Avoided", "zone": "a"}
    assert accepted(cluster.send("PATCH", node, labelled(**labels)))
    other = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-2", "labels": labels}}
    assert cluster.send("POST", "/api/v1/nodes", other)[0] == 201
    try:
        answer = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            env={
                **os.environ,
                "KUBECONFIG": str(cluster.plane.kubeconfig),
                "PATH": f"{tools.path('kubectl').parent}:{os.environ['PATH']}",
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert answer.returncode == 0, answer.stderr
        for name in ("node-1", "node-2"):
            _, body = cluster.send("GET", f"/api/v1/nodes/{name}")
            left = body["metadata"]["labels"]
            assert left["zone"] == "a"
            assert not [key for key in left if key.startswith("excluded.")]
    finally:
        cluster.send("DELETE", "/api/v1/nodes/node-2")
