"""The chart: lint, what it renders, and what the operator may do."""

import ipaddress
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from crdgen.__main__ import REPOSITORY
from crdgen.output import template
from localcluster import builds, tools
from sandboxpool.api import names
from sandboxpool.app import preflight, selftest
from sandboxpool.app.permissions import Permission, required_permissions
from sandboxpool.app.settings import Settings, load
from sandboxpool.kube import lease
from sandboxpool.observability import web
from sandboxpool.opensandbox import settings as bridge_settings
from sandboxpool.runtimes.probe import ProbeImage, ProbeOptions, build_probe
from support import rules
from support.builders import facts, runtime
from support.chart import granted
from support.documents import Block, is_values, yaml_blocks

CHART = REPOSITORY / "charts" / "sandboxpool"
RELEASE = "sandboxpool"
DEFAULTS = Settings(probe_image="image")
NAMESPACE = "sandboxpool-system"

Manifest = dict[str, Any]
Helm = Callable[..., subprocess.CompletedProcess[str]]
Render = Callable[..., list[Manifest]]


@cache
def helm_binary() -> Path:
    """Find Helm: the one that the local cluster uses, else the machine's, else build it, once."""
    found = shutil.which("helm")
    if found is not None and not builds.location("helm").is_file():
        return Path(found)
    return tools.path("helm")


@pytest.fixture
def helm(tmp_path: Path) -> Helm:
    binary = helm_binary()
    environment = {
        **os.environ,
        "HELM_CACHE_HOME": str(tmp_path / "cache"),
        "HELM_CONFIG_HOME": str(tmp_path / "config"),
        "HELM_DATA_HOME": str(tmp_path / "data"),
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(binary), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env=environment,
        )

    return run


@pytest.fixture
def render(helm: Helm) -> Render:
    def run(*arguments: str) -> list[Manifest]:
        answer = helm("template", RELEASE, str(CHART), "--namespace", NAMESPACE, *arguments)
        assert answer.returncode == 0, answer.stderr
        return [document for document in yaml.safe_load_all(answer.stdout) if document]

    return run


def only(manifests: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    (found,) = [
        manifest
        for manifest in manifests
        if manifest["kind"] == kind and name in (None, manifest["metadata"]["name"])
    ]
    return found


def rights(role: Manifest) -> set[tuple[str, str]]:
    """Return the rules of a role as pairs of resource and verb."""
    return {
        (f"{group}/{resource}".lstrip("/"), verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


USER_ROLES = {f"sandboxpool-{name}" for name in ("pool-editor", "claim-editor", "viewer", "client")}


def account_of(manifests: list[Manifest]) -> Manifest:
    """The account of the rendered pod, as the subject of a binding."""
    pod = only(manifests, "Deployment")["spec"]["template"]["spec"]
    return {"kind": "ServiceAccount", "name": pod["serviceAccountName"], "namespace": NAMESPACE}


def grant(resource: str, verbs: str) -> set[tuple[str, str]]:
    return {(resource, verb) for verb in verbs.split()}


def test_lint_is_clean(helm: Helm) -> None:
    answer = helm("lint", "--strict", str(CHART))
    assert answer.returncode == 0, answer.stdout + answer.stderr


CRD = "CustomResourceDefinition"


def test_the_package_installs_the_crds_and_never_deletes_them(helm: Helm, tmp_path: Path) -> None:
    answer = helm("package", str(CHART), "--destination", str(tmp_path))
    assert answer.returncode == 0, answer.stderr
    (package,) = tmp_path.glob("*.tgz")
    answer = helm("template", RELEASE, str(package))
    assert answer.returncode == 0, answer.stderr
    rendered = {
        m["metadata"]["name"]: m for m in yaml.safe_load_all(answer.stdout) if m["kind"] == CRD
    }
    plain = [yaml.safe_load(path.read_text()) for path in (REPOSITORY / "crds").glob("*.yaml")]
    assert rendered.keys() == {crd["metadata"]["name"] for crd in plain}
    for crd in plain:
        metadata = rendered[crd["metadata"]["name"]].pop("metadata")
        expected = crd.pop("metadata")["annotations"]
        assert metadata["annotations"] == {**expected, "helm.sh/resource-policy": "keep"}
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "Helm"
        assert rendered[f"{crd['spec']['names']['plural']}.{names.GROUP}"] == crd


def test_the_crds_can_be_left_to_others(render: Render) -> None:
    manifests = render("--set", "crds.install=false")
    assert CRD not in {manifest["kind"] for manifest in manifests}


def test_helm_renders_the_braces_of_a_crd_as_they_are(helm: Helm, tmp_path: Path) -> None:
    crd = yaml.safe_load((REPOSITORY / "crds" / "sandboxpool.io_sandboxpools.yaml").read_text())
    text = "{{ .Values }} and self.matches('^a{{1}}$')"
    crd["spec"]["versions"][0]["additionalPrinterColumns"][0]["description"] = text
    chart = tmp_path / "chart"
    shutil.copytree(CHART, chart)
    (chart / "templates" / "crds" / "sandboxpool.io_sandboxpools.yaml").write_text(template(crd))
    answer = helm("template", RELEASE, str(chart))
    assert answer.returncode == 0, answer.stderr
    manifests = [document for document in yaml.safe_load_all(answer.stdout) if document]
    assert only(manifests, CRD, crd["metadata"]["name"])["spec"] == crd["spec"]


def granted_to(manifests: list[Manifest], account: Manifest) -> list[Permission]:
    """What the rendered roles grant an account by their bindings, with what is granted twice."""
    found: list[Permission] = []
    bound = set()
    for binding in manifests:
        if not binding["kind"].endswith("RoleBinding"):
            continue
        assert binding["subjects"] == [account]
        reference = binding["roleRef"]
        (role,) = [
            manifest
            for manifest in manifests
            if (manifest["kind"], manifest["metadata"]["name"])
            == (reference["kind"], reference["name"])
            and manifest["metadata"].get("namespace") == binding["metadata"].get("namespace")
        ]
        found += granted(role)
        bound.add((role["kind"], role["metadata"]["name"], role["metadata"].get("namespace")))
    roles = [m for m in manifests if m["kind"].endswith("Role")]
    for_users = {m["metadata"]["name"] for m in roles} & USER_ROLES
    assert len(bound) + len(for_users) == len(roles), "no role is left without its binding"
    return found


@pytest.mark.parametrize(
    "watched", [(), ("one", "two"), ("one", NAMESPACE), ("default", "one")], ids=",".join
)
@pytest.mark.parametrize(
    "values",
    [
        "publishOnNodes=false,nodes.exclusionLabels=false",
        "publishOnNodes=false,nodes.exclusionLabels=true",
        "publishOnNodes=true,nodes.exclusionLabels=false",
        "publishOnNodes=true,metrics.authentication=true",
        "sandboxRuntimes.manage=false",
    ],
)
def test_the_chart_grants_what_the_operator_asks_for_and_nothing_else(
    render: Render, watched: tuple[str, ...], values: str
) -> None:
    """What it asks for is compared with what it sends on a real API server."""
    manifests = render("--set", values, *watching(*watched))
    asked = {replace(r, is_optional=False) for r in required_permissions(settings_of(manifests))}
    found = granted_to(manifests, account_of(manifests))
    assert (set(found) - asked, asked - set(found)) == (set(), set())
    assert len(found) == len(set(found)), "granted twice"


def test_nodes_are_written_only_where_that_is_wanted(render: Render) -> None:
    off = ("--set", "nodes.exclusionLabels=false")
    published = ("--set", "publishOnNodes=true")
    for values, verbs, labels, publishes in (
        ((), {"nodes"}, "true", "false"),
        (published, {"nodes", "nodes/status"}, "true", "true"),
        (off, set(), "false", "false"),
        ((*off, *published), {"nodes", "nodes/status"}, "false", "true"),
    ):
        manifests = render(*values)
        granted = rights(only(manifests, "ClusterRole", RELEASE))
        assert {what for what, verb in granted if verb == "patch" and "nodes" in what} == verbs
        container = only(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0]
        env = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert env["SANDBOXPOOL_EXCLUSION_LABELS"] == labels
        assert env["SANDBOXPOOL_PUBLISH_ON_NODES"] == publishes


@pytest.mark.parametrize("scope", ["Cluster", ""])
def test_the_roles_are_bound_to_the_account_that_the_pod_uses(render: Render, scope: str) -> None:
    manifests = render()
    account = only(manifests, "ServiceAccount")["metadata"]
    binding = only(manifests, f"{scope}RoleBinding")
    role = only(manifests, f"{scope}Role", RELEASE)
    assert binding["metadata"].get("namespace") == role["metadata"].get("namespace")
    assert binding["roleRef"] == {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": f"{scope}Role",
        "name": role["metadata"]["name"],
    }
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": account["name"], "namespace": NAMESPACE}
    ]
    pod = only(manifests, "Deployment")["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == account["name"]


def test_applications_cannot_edit_pools(render: Render) -> None:
    manifests = render()
    aggregate = "rbac.authorization.k8s.io/aggregate-to-"
    writes = {"create", "update", "patch", "delete", "deletecollection"}

    def role(name: str) -> tuple[set[str], set[tuple[str, str]]]:
        manifest = only(manifests, "ClusterRole", name)
        labels = manifest["metadata"]["labels"]
        into = {label.removeprefix(aggregate) for label in labels if label.startswith(aggregate)}
        return into, {pair for pair in rights(manifest) if pair[1] in writes}

    pools, claims = f"{names.GROUP}/sandboxpools", f"{names.GROUP}/sandboxclaims"
    assert role("sandboxpool-claim-editor") == (
        {"edit"},
        grant(claims, "create update patch delete deletecollection"),
    )
    assert role("sandboxpool-pool-editor") == (
        {"admin"},
        grant(pools, "create update patch delete deletecollection")
        | grant(f"{pools}/scale", "update patch"),
    )
    assert role("sandboxpool-viewer") == ({"view"}, set())


def test_the_roles_of_users_can_be_bound_by_hand(render: Render) -> None:
    def roles(*arguments: str) -> dict[str, Manifest]:
        found = [m for m in render(*arguments) if m["kind"] == "ClusterRole"]
        return {m["metadata"]["name"]: m for m in found}

    aggregated, alone = roles(), roles("--set", "rbac.aggregate=false")
    assert alone.keys() == aggregated.keys()
    for name, role in alone.items():
        assert role["rules"] == aggregated[name]["rules"]
        assert not [label for label in role["metadata"]["labels"] if "aggregate-to" in label], name


def test_a_back_end_may_what_the_client_does_and_is_added_to_no_role(render: Render) -> None:
    manifest = only(render(), "ClusterRole", "sandboxpool-client")
    assert not [label for label in manifest["metadata"]["labels"] if "aggregate" in label]
    assert rights(manifest) == {
        *grant(f"{names.GROUP}/sandboxclaims", "create get list watch patch delete"),
        *grant("pods", "get"),
        *grant("pods/exec", "get create"),
        *grant("pods/portforward", "get create"),
    }


def test_whoever_may_look_sees_all_three_kinds(render: Render) -> None:
    kinds = ("sandboxpools", "sandboxclaims", "sandboxruntimes")
    assert rights(only(render(), "ClusterRole", "sandboxpool-viewer")) == {
        *(pair for kind in kinds for pair in grant(f"{names.GROUP}/{kind}", "get list watch")),
        *(pair for kind in kinds for pair in grant(f"{names.GROUP}/{kind}/status", "get")),
        *grant(f"{names.GROUP}/sandboxpools/scale", "get"),
    }


def test_a_new_replica_is_ready_before_the_leader_terminates(render: Render) -> None:
    manifests = render()
    spec = only(manifests, "Deployment")["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }
    budget = only(manifests, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    (spread,) = spec["template"]["spec"]["topologySpreadConstraints"]
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
    labels = spec["template"]["metadata"]["labels"].items()
    for selector in (budget["selector"], spread["labelSelector"]):
        assert selector["matchLabels"].items() <= labels


def test_one_replica_needs_no_budget(render: Render) -> None:
    manifests = render("--set", "replicas=1")
    assert only(manifests, "Deployment")["spec"]["replicas"] == 1
    assert "PodDisruptionBudget" not in {manifest["kind"] for manifest in manifests}


def test_the_claim_path_has_a_queue_of_its_own_where_that_is_wanted(render: Render) -> None:
    assert {m["kind"] for m in render()}.isdisjoint({"FlowSchema", "PriorityLevelConfiguration"})
    manifests = render("--set", "apiPriority.enabled=true")
    level = only(manifests, "PriorityLevelConfiguration")
    schema = only(manifests, "FlowSchema")["spec"]
    assert schema["priorityLevelConfiguration"]["name"] == level["metadata"]["name"]
    (rule,) = schema["rules"]
    account = only(manifests, "ServiceAccount")["metadata"]["name"]
    assert rule["subjects"] == [
        {
            "kind": "ServiceAccount",
            "serviceAccount": {"name": account, "namespace": NAMESPACE},
        }
    ]
    claims = {
        f"{group}/{resource}".lstrip("/")
        for r in rule["resourceRules"]
        for group in r["apiGroups"]
        for resource in r["resources"]
        if "patch" in r["verbs"]
    }
    assert claims == {"pods", f"{names.GROUP}/sandboxclaims/status"}


def probe_of(settings: Settings) -> Manifest:
    return build_probe(
        "probe",
        NAMESPACE,
        facts(),
        runtime(),
        settings.to_probe_image(),
        settings.to_probe_options(),
    )


# What OpenShift's SCC restricted-v2 lets a pod have, as far as it can be said without a namespace,
# whose annotations say the uids, groups and SELinux levels: so nothing may name one.
VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim"),
    *("projected", "secret"),
}
CHOSEN_BY_OPENSHIFT = {
    *("runAsUser", "runAsGroup", "fsGroup", "supplementalGroups", "seLinuxOptions"),
}
OF_NO_ONE = {"hostNetwork", "hostPID", "hostIPC", "hostUsers", "shareProcessNamespace"}


@pytest.mark.parametrize("which", ["operator", "probe"])
def test_openshifts_restricted_scc_admits_the_pods(render: Render, which: str) -> None:
    manifests = render()
    pod = (
        only(manifests, "Deployment")["spec"]["template"]["spec"]
        if which == "operator"
        else probe_of(settings_of(manifests))["spec"]
    )
    assert not OF_NO_ONE & pod.keys()
    for volume in pod.get("volumes", []):
        assert volume.keys() - {"name"} <= VOLUMES
    of_pod = pod.get("securityContext", {})
    (container,) = pod["containers"]
    of_container = container["securityContext"]
    for context in (of_pod, of_container):
        assert not CHOSEN_BY_OPENSHIFT & context.keys()
        assert context.get("seccompProfile", {"type": "RuntimeDefault"}) == {
            "type": "RuntimeDefault"
        }
    assert of_container["capabilities"] == {"drop": ["ALL"]}
    assert of_container["allowPrivilegeEscalation"] is False
    assert {**of_pod, **of_container}["runAsNonRoot"] is True
    assert not any("hostPort" in port for port in container.get("ports", []))


def test_the_security_contexts_can_be_chosen(render: Render) -> None:
    user = ("podSecurityContext.runAsUser=1000680000", "securityContext.runAsGroup=0")
    manifests = render(
        *(word for value in user for word in ("--set", value, "--set", f"probe.{value}"))
    )
    operator = only(manifests, "Deployment")["spec"]["template"]["spec"]
    for pod in (operator, probe_of(settings_of(manifests))["spec"]):
        assert pod["securityContext"]["runAsUser"] == 1000680000
        (container,) = pod["containers"]
        assert container["securityContext"]["runAsGroup"] == 0
        assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_no_mesh_puts_a_sidecar_into_the_pods(render: Render) -> None:
    manifests = render("--set", "podLabels.team=blue", "--set", "probe.annotations.a=b")
    operator = only(manifests, "Deployment")["spec"]["template"]["metadata"]
    for metadata in (operator, probe_of(settings_of(manifests))["metadata"]):
        assert metadata["labels"]["sidecar.istio.io/inject"] == "false"
        assert metadata["labels"]["kuma.io/sidecar-injection"] == "disabled"
        assert metadata["annotations"]["sidecar.istio.io/inject"] == "false"
        assert metadata["annotations"]["linkerd.io/inject"] == "disabled"
        assert metadata["annotations"]["consul.hashicorp.com/connect-inject"] == "false"
    assert operator["labels"]["team"] == "blue"
    assert probe_of(settings_of(manifests))["metadata"]["annotations"]["a"] == "b"


def test_the_values_of_probes_are_what_the_operator_would_choose(render: Render) -> None:
    found = settings_of(render())
    none: dict[str, str] = {}
    assert replace(found.to_probe_options(), labels=none, annotations=none) == ProbeOptions()
    assert found.to_probe_image().security_context == ProbeImage().security_context


def test_probes_can_be_adapted(render: Render, tmp_path: Path) -> None:
    probe = {
        "labels": {"team": "blue"},
        "annotations": {"a": "b"},
        "resources": {"limits": {"cpu": "100m"}},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "priorityClassName": "probes",
    }
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump({"probe": probe}))
    body = probe_of(settings_of(render("--values", str(path))))
    assert body["metadata"]["labels"]["team"] == "blue"
    assert body["metadata"]["annotations"]["a"] == "b"
    assert body["spec"]["containers"][0]["resources"] == {
        "requests": {"cpu": "10m", "memory": "16Mi"},
        "limits": {"cpu": "100m", "memory": "256Mi"},
    }
    assert body["spec"]["tolerations"] == probe["tolerations"]
    assert body["spec"]["priorityClassName"] == "probes"


def test_the_operator_runs_on_linux(render: Render) -> None:
    pod = only(render("--set", "nodeSelector.role=system"), "Deployment")["spec"]["template"][
        "spec"
    ]
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux", "role": "system"}


def test_the_oldest_kubernetes_is_the_same_everywhere() -> None:
    oldest = ".".join(map(str, preflight.OLDEST_KUBERNETES))
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["kubeVersion"] == f">={oldest}.0-0"
    readme = (REPOSITORY / "README.md").read_text()
    assert f"Kubernetes {oldest} is the oldest" in readme
    assert "1.29" not in readme


@pytest.mark.parametrize("block", [b for b in yaml_blocks() if is_values(b)], ids=str)
def test_the_values_that_a_document_shows_are_accepted(
    block: Block, render: Render, tmp_path: Path
) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(block.text)
    assert yaml.safe_load(block.text)
    assert render("--values", str(file), "--set", "admission.enabled=true")


def test_the_ports_are_the_same_everywhere(render: Render) -> None:
    manifests = render("--set", "port=9090", "--set", "healthPort=9091")
    (container,) = only(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert environment["SANDBOXPOOL_LISTEN"] == ":9090"
    assert environment["SANDBOXPOOL_HEALTH_LISTEN"] == ":9091"
    assert container["ports"] == [
        {"name": "http", "containerPort": 9090},
        {"name": "health", "containerPort": 9091},
    ]
    assert container["startupProbe"]["httpGet"] == {"path": "/healthz", "port": "health"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "health"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "health"}
    assert only(manifests, "Service")["spec"]["ports"] == [
        {"name": "http", "port": 9090, "targetPort": "http"}
    ]


def test_what_listens_listens_on_all_families(render: Render) -> None:
    settings = settings_of(render())
    assert settings.listen == DEFAULTS.listen
    assert settings.health_listen == DEFAULTS.health_listen
    assert (settings.listen.host, settings.health_listen.host) == (None, None)


async def test_a_kubelet_reaches_the_probes_over_either_family(render: Render) -> None:
    """In the chart's own words, at the addresses that pods have in IPv4 and IPv6 clusters."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = settings_of(render("--set", f"healthPort={port}"))
    door = await web.serve_health(*settings.health_listen, list)
    try:
        async with aiohttp.ClientSession() as session:
            for address in ("127.0.0.1", "[::1]"):
                async with session.get(f"http://{address}:{port}/healthz") as response:
                    assert response.status == 200
    finally:
        await door.close()


def test_tokens_are_reviewed_only_where_that_is_wanted(render: Render) -> None:
    plain, wanted = render(), render("--set", "metrics.authentication=true")
    more = rights(only(wanted, "ClusterRole", RELEASE)) - rights(
        only(plain, "ClusterRole", RELEASE)
    )
    assert more == {
        *grant("authentication.k8s.io/tokenreviews", "create"),
        *grant("authorization.k8s.io/subjectaccessreviews", "create"),
    }
    assert not settings_of(plain).metrics_auth
    assert settings_of(wanted).metrics_auth


def test_only_who_is_named_may_scrape(render: Render, tmp_path: Path) -> None:
    manifests = render()
    policy = only(manifests, "NetworkPolicy")["spec"]
    labels = only(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["policyTypes"] == ["Ingress"], "nobody knows the API server's address"
    health: Manifest = {"ports": [{"protocol": "TCP", "port": "health"}]}
    assert policy["ingress"] == [health], "an empty `from` would let everybody in"

    peers = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    nodes = [{"ipBlock": {"cidr": "10.0.0.0/8"}}]
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump({"networkPolicy": {"metricsFrom": peers, "healthFrom": nodes}}))
    policy = only(render("--values", str(path)), "NetworkPolicy")["spec"]
    assert policy["ingress"] == [
        {**health, "from": nodes},
        {"ports": [{"protocol": "TCP", "port": "http"}], "from": peers},
    ]


def test_sandboxes_reach_the_internet_and_nothing_of_the_cluster(
    render: Render, tmp_path: Path
) -> None:
    wanted = "sandboxNetworkPolicy.namespaces={team-a,team-b}"
    policies = [m for m in render("--set", wanted) if m["metadata"]["name"].endswith("-sandboxes")]
    assert [policy["metadata"]["namespace"] for policy in policies] == ["team-a", "team-b"]
    spec = policies[0]["spec"]
    selector = {"key": names.LABEL_POOL_UID, "operator": "Exists"}
    assert spec["podSelector"] == {"matchExpressions": [selector]}
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in spec, "nobody reaches a sandbox over the pod network"
    (rule,) = spec["egress"]
    refused: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
    for peer, everything in zip(rule["to"], ("0.0.0.0/0", "::/0"), strict=True):
        assert peer["ipBlock"]["cidr"] == everything
        whole = ipaddress.ip_network(everything)
        ranges = [ipaddress.ip_network(text) for text in peer["ipBlock"]["except"]]
        # The API server refuses an exception outside of the range.
        assert {network.version for network in ranges} == {whole.version}
        refused += ranges
    for address in ("10.96.0.1", "169.254.169.254", "192.168.1.1", "fd00:10:96::1", "fe80::1"):
        assert any(ipaddress.ip_address(address) in network for network in refused), address

    dns = [{"podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}, "namespaceSelector": {}}]
    gateway = [{"podSelector": {"matchLabels": {"app": "gateway"}}}]
    path = tmp_path / "values.yaml"
    chosen = {"namespaces": ["team-a"], "ingressFrom": gateway, "egressTo": dns, "egressExcept": []}
    path.write_text(yaml.safe_dump({"sandboxNetworkPolicy": chosen}))
    spec = only(render("--values", str(path)), "NetworkPolicy", "sandboxpool-sandboxes")["spec"]
    assert spec["ingress"] == [{"from": gateway}]
    assert spec["egress"] == [
        {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}]},
        {"to": dns},
    ]


def dashboards(manifests: list[Manifest]) -> list[Manifest]:
    return [m for m in manifests if "-dashboard-" in m["metadata"]["name"]]


def test_dashboards_are_there_where_they_are_wanted(render: Render) -> None:
    assert dashboards(render()) == []
    found = dashboards(render("--set", "dashboards.enabled=true"))
    checked_in = sorted((CHART / "dashboards").glob("*.json"))
    assert len(found) == len(checked_in) == 3
    for manifest, path in zip(found, checked_in, strict=True):
        assert manifest["kind"] == "ConfigMap"
        metadata = manifest["metadata"]
        assert metadata["name"] == f"{RELEASE}-dashboard-{path.stem}"
        assert metadata["namespace"] == NAMESPACE
        assert metadata["labels"]["grafana_dashboard"] == "1"
        assert "annotations" not in metadata
        # Helm must not take the names of series for templates of its own.
        ((name, text),) = manifest["data"].items()
        assert name == f"sandboxpool-{path.name}"
        assert json.loads(text) == json.loads(path.read_text())


def test_dashboards_name_runbooks_where_they_are_published(render: Render) -> None:
    url = "https://docs.test/$/{alert}.html"
    values = (
        "--set",
        "dashboards.enabled=true",
        "--set",
        f"metrics.prometheusRule.runbookUrl={url}",
    )
    for manifest in dashboards(render(*values)):
        ((name, text),) = manifest["data"].items()
        own = (CHART / "dashboards" / name.removeprefix("sandboxpool-")).read_text()
        expected = re.sub(r"docs/runbooks/(\w+)\.md", r"https://docs.test/$/\1.html", own)
        assert expected != own
        assert json.loads(text) == json.loads(expected)


def test_dashboards_can_be_put_where_grafanas_sidecar_looks(render: Render, tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    values = {
        "enabled": True,
        "namespace": "monitoring",
        "labels": {"grafana_dashboard": None, "dashboards": "yes"},
        "folder": "Sandboxes",
        "folderAnnotation": "k8s-sidecar-target-directory",
        "annotations": {"team": "platform"},
    }
    path.write_text(yaml.safe_dump({"dashboards": values, "fullnameOverride": "n" * 63}))
    for manifest in dashboards(render("--values", str(path))):
        metadata = manifest["metadata"]
        assert metadata["namespace"] == "monitoring"
        assert metadata["labels"]["dashboards"] == "yes"
        assert "grafana_dashboard" not in metadata["labels"]
        assert metadata["annotations"] == {
            "k8s-sidecar-target-directory": "Sandboxes",
            "team": "platform",
        }
        assert len(metadata["name"]) <= 63


def test_the_service_selects_the_pod(render: Render) -> None:
    manifests = render()
    spec = only(manifests, "Deployment")["spec"]
    selector = only(manifests, "Service")["spec"]["selector"]
    assert selector == spec["selector"]["matchLabels"]
    assert selector.items() <= spec["template"]["metadata"]["labels"].items()


def test_the_image_and_the_log_level_come_from_the_values(render: Render) -> None:
    manifests = render(
        *("--set", "image.repository=localhost/sandboxpool", "--set", "image.tag=dev"),
        *("--set", "image.pullPolicy=Never", "--set", "logLevel=DEBUG"),
    )
    (container,) = only(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "localhost/sandboxpool:dev"
    assert container["imagePullPolicy"] == "Never"
    environment = {entry["name"]: entry for entry in container["env"]}
    assert environment["SANDBOXPOOL_LOG_LEVEL"]["value"] == "DEBUG"
    assert environment["SANDBOXPOOL_NAMESPACE"]["valueFrom"] == {
        "fieldRef": {"fieldPath": "metadata.namespace"}
    }


def test_helm_test_looks_at_this_release_and_is_no_replica_of_it(
    render: Render, tmp_path: Path
) -> None:
    common = {"nodeSelector": {"role": "system"}, "tolerations": [{"operator": "Exists"}]}
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump({**common, "imagePullSecrets": [{"name": "registry"}]}))
    manifests = render("--values", str(path))
    pod = only(manifests, "Pod")
    operator = only(manifests, "Deployment")["spec"]["template"]
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    for key in (
        *("serviceAccountName", "imagePullSecrets", "securityContext", "nodeSelector"),
        *("tolerations", "enableServiceLinks"),
    ):
        assert pod["spec"][key] == operator["spec"][key], key
    (container,), (operators,) = pod["spec"]["containers"], operator["spec"]["containers"]
    for key in ("image", "imagePullPolicy", "securityContext", "resources"):
        assert container[key] == operators[key], key
    assert container["command"] == ["python3", "-m", selftest.__name__]
    assert container["args"] == [
        f"--namespace={NAMESPACE}",
        f"--lease={names.DEFAULT_RELEASE}",
        "--runtimes",
    ]
    limited = render("--set", "watchNamespaces={team-a}", "--set", "sandboxRuntimes.manage=false")
    (container,) = only(limited, "Pod")["spec"]["containers"]
    assert container["args"][1:] == [f"--lease={settings_of(limited).release}", "--no-runtimes"]
    selectors = [
        only(manifests, "Service")["spec"]["selector"],
        *(
            only(manifests, kind)["spec"]["selector"]["matchLabels"]
            for kind in ("Deployment", "PodDisruptionBudget")
        ),
    ]
    for selector in selectors:
        assert not selector.items() <= pod["metadata"]["labels"].items()


def settings_of(manifests: list[Manifest]) -> Settings:
    """Read what the operator would read."""
    (container,) = only(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    return load({entry["name"]: entry["value"] for entry in container["env"] if "value" in entry})


def test_probes_run_the_operators_own_image_with_its_secrets(render: Render) -> None:
    settings = settings_of(
        render(
            *("--set", "image.repository=registry.example/sandboxpool", "--set", "image.tag=1.2"),
            *("--set", "image.pullPolicy=Always"),
            *("--set", "imagePullSecrets[0].name=one", "--set", "imagePullSecrets[1].name=two"),
        )
    )
    image = settings.to_probe_image()
    assert image.name == "registry.example/sandboxpool:1.2"
    assert (image.pull_policy, image.pull_secrets) == ("Always", ("one", "two"))


def test_probes_can_run_another_image(render: Render) -> None:
    settings = settings_of(
        render("--set", "probe.image=busybox:1.37", "--set", "probe.imagePullPolicy=Never")
    )
    image = settings.to_probe_image()
    assert (image.name, image.pull_policy, image.pull_secrets) == ("busybox:1.37", "Never", ())


def test_the_lease_lasts_as_long_as_the_values_say(render: Render) -> None:
    assert settings_of(render()).lease == DEFAULTS.lease
    wanted = ("durationSeconds=30", "renewDeadlineSeconds=20", "retrySeconds=5")
    changed = render(*(word for value in wanted for word in ("--set", f"lease.{value}")))
    assert settings_of(changed).lease == lease.LeaderElectionTimes(30, 20, 5)
    assert settings_of(render("--set", "lease=null")).lease == DEFAULTS.lease


BRIDGE = f"{RELEASE}-opensandbox"
WITH_BRIDGE = ("--set", "opensandbox.enabled=true", "--set", "opensandbox.namespaces={a,b}")


def test_the_bridge_is_there_where_it_is_wanted_and_may_nothing_on_pods(render: Render) -> None:
    assert not [manifest for manifest in render() if BRIDGE in manifest["metadata"]["name"]]
    bridge = [m for m in render(*WITH_BRIDGE) if BRIDGE in m["metadata"]["name"]]
    roles = [m for m in bridge if m["kind"] == "Role" and m["metadata"]["name"] != BRIDGE]
    assert [role["metadata"]["namespace"] for role in roles] == ["a", "b"]
    assert not [m for m in bridge if m["kind"].startswith("Cluster")]
    touched = {resource for role in roles for resource, _ in rights(role)}
    assert touched == {
        "sandboxpool.io/sandboxpools",
        "sandboxpool.io/sandboxclaims",
        "sandbox.opensandbox.io/pools",
        "sandbox.opensandbox.io/pools/status",
        "sandbox.opensandbox.io/batchsandboxes",
        "sandbox.opensandbox.io/batchsandboxes/status",
        "events",
    }
    own = granted(only(bridge, "Role", BRIDGE))
    assert {right.resource for right in own} == {"leases"}


def test_the_roles_of_the_bridge_are_bound_to_its_account(render: Render) -> None:
    bridge = [m for m in render(*WITH_BRIDGE) if BRIDGE in m["metadata"]["name"]]
    account = only(bridge, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"]
    assert only(bridge, "ServiceAccount")["metadata"]["name"] == account
    bindings = [m for m in bridge if m["kind"] == "RoleBinding"]
    assert len(bindings) == 3
    for binding in bindings:
        where = binding["metadata"]["namespace"]
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}
        ]
        assert (where, binding["roleRef"]["name"]) in {
            (m["metadata"]["namespace"], m["metadata"]["name"])
            for m in bridge
            if m["kind"] == "Role"
        }


def test_the_bridge_runs_with_the_settings_of_the_values(render: Render) -> None:
    manifests = render(*WITH_BRIDGE, "--set", "opensandbox.exclusive=true", "--set", "port=9090")
    bridge = only(manifests, "Deployment", BRIDGE)
    (container,) = bridge["spec"]["template"]["spec"]["containers"]
    env = {entry["name"]: entry.get("value", NAMESPACE) for entry in container["env"]}
    settings = bridge_settings.load(env)
    assert settings.opensandbox_namespaces == ("a", "b")
    assert settings.opensandbox_exclusive
    assert settings.listen.port == 9090
    (named,) = [r for r in granted(only(manifests, "Role", BRIDGE)) if r.verb == "get"]
    assert named.names == (f"{settings.release}-opensandbox",)


def test_no_selector_takes_a_pod_of_the_bridge_for_the_operator(render: Render) -> None:
    manifests = render(*WITH_BRIDGE)
    pods = {
        m["metadata"]["name"]: m["spec"]["template"]["metadata"]["labels"]
        for m in manifests
        if m["kind"] == "Deployment"
    }
    selectors = [
        (m, m["spec"]["selector"]) for m in manifests if m["kind"] in ("Service", "Deployment")
    ] + [(m, m["spec"]["podSelector"]) for m in manifests if m["kind"] == "NetworkPolicy"]
    assert len(selectors) == 6
    for manifest, selector in selectors:
        wanted = selector.get("matchLabels", selector)
        of_bridge = BRIDGE in manifest["metadata"]["name"]
        selected = [name for name, labels in pods.items() if wanted.items() <= labels.items()]
        assert selected == [BRIDGE if of_bridge else RELEASE]


def test_the_bridge_needs_namespaces(helm: Helm) -> None:
    answer = helm("template", RELEASE, str(CHART), "--set", "opensandbox.enabled=true")
    assert answer.returncode != 0
    assert "opensandbox.namespaces" in answer.stderr


def test_optional_parts_can_be_left_out(render: Render) -> None:
    manifests = render(
        *("--set", "replicas=1", "--set", "crds.install=false"),
        *("--set", "rbac.create=false", "--set", "rbac.userRoles=false"),
        *("--set", "serviceAccount.create=false", "--set", "serviceAccount.name=mine"),
        *("--set", "metrics.service.enabled=false", "--set", "networkPolicy.enabled=false"),
        "--skip-tests",
    )
    assert [manifest["kind"] for manifest in manifests] == ["Deployment"]
    assert manifests[0]["spec"]["template"]["spec"]["serviceAccountName"] == "mine"


def test_every_value_can_be_set(render: Render, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "imagePullSecrets": [{"name": "registry"}],
        "serviceAccount": {"annotations": {"a": "b"}},
        "metrics": {"service": {"annotations": {"prometheus.io/scrape": "true"}}},
        "podAnnotations": {"a": "b"},
        "podLabels": {"team": "blue"},
        "priorityClassName": "system-cluster-critical",
        "nodeSelector": {"role": "system"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "resources": {"limits": {"memory": "1Gi"}},
        "commonLabels": {"cost-centre": "42"},
        "deploymentAnnotations": {"reloader": "true"},
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.test:3128"}],
    }
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    manifests = render("--values", str(path))
    template = only(manifests, "Deployment")["spec"]["template"]
    pod = template["spec"]
    assert template["metadata"]["annotations"]["a"] == "b"
    assert template["metadata"]["labels"]["team"] == "blue"
    for name in ("imagePullSecrets", "priorityClassName", "tolerations", "affinity"):
        assert pod[name] == values[name]
    assert pod["nodeSelector"]["role"] == "system"
    assert pod["containers"][0]["resources"]["limits"] == {"memory": "1Gi"}
    assert only(manifests, "ServiceAccount")["metadata"]["annotations"] == {"a": "b"}
    assert only(manifests, "Deployment")["metadata"]["annotations"] == {"reloader": "true"}
    assert values["extraEnv"][0] in pod["containers"][0]["env"]
    for manifest in manifests:
        assert manifest["metadata"]["labels"]["cost-centre"] == "42", manifest["kind"]


# --- Several releases ----------------------------------------------------------------------------

MANAGES = ("--set", "sandboxRuntimes.manage=true")
ONLY_WATCHES = ("--set", "sandboxRuntimes.manage=false,crds.install=false")


def watching(*namespaces: str) -> tuple[str, str]:
    return "--set-json", f"watchNamespaces={json.dumps(namespaces)}"


def identities(helm: Helm, release: str, namespace: str, *arguments: str) -> set[tuple[str, ...]]:
    """What tells the objects of a release from all others in the cluster."""
    everything = ("--set", "apiPriority.enabled=true", "--set", "admission.enabled=true")
    answer = helm(
        "template", release, str(CHART), "--namespace", namespace, *everything, *arguments
    )
    assert answer.returncode == 0, answer.stderr
    found = [
        (m["kind"], m["metadata"].get("namespace", ""), m["metadata"]["name"])
        for m in yaml.safe_load_all(answer.stdout)
        if m
    ]
    assert len(found) == len(set(found))
    return set(found)


@pytest.mark.parametrize(
    ("release", "namespace"), [("other", "system"), (RELEASE, "other-system"), ("other", "other")]
)
def test_releases_with_namespaces_of_their_own_share_no_object(
    helm: Helm, release: str, namespace: str
) -> None:
    ours = identities(helm, RELEASE, "system", *watching("a", "b"), *MANAGES)
    theirs = identities(helm, release, namespace, *watching("c", "d"), *ONLY_WATCHES)
    assert ours & theirs == set()


def test_helm_refuses_a_second_release_where_one_is_enough(helm: Helm) -> None:
    """It installs no object that belongs to another release, so these have fixed names."""
    ours = identities(helm, RELEASE, "system", *watching("a", "b"), *MANAGES)
    second_watcher = identities(helm, "other", "system", *watching("b", "c"), *ONLY_WATCHES)
    assert ours & second_watcher == {
        ("Role", "b", "sandboxpool-operator"),
        ("RoleBinding", "b", "sandboxpool-operator"),
    }
    second_manager = identities(helm, "other", "system", *watching("c"), *MANAGES)
    assert ours & second_manager >= {
        ("ClusterRole", "", "sandboxpool-runtimes"),
        ("ClusterRoleBinding", "", "sandboxpool-runtimes"),
    }


def test_a_release_with_namespaces_has_a_lease_and_records_of_its_own(helm: Helm) -> None:
    def of(release: str, *arguments: str) -> Settings:
        answer = helm("template", release, str(CHART), "--namespace", NAMESPACE, *arguments)
        return settings_of([document for document in yaml.safe_load_all(answer.stdout) if document])

    ours = of("team", *watching("a", "b"), *ONLY_WATCHES)
    assert (ours.release, ours.watch_namespaces) == ("team-sandboxpool", ("a", "b"))
    assert (ours.manage_runtimes, ours.exclusion_labels) == (False, False)
    # With all namespaces the name has always been this: during an upgrade one process leads.
    assert of("team").release == names.DEFAULT_RELEASE
    assert of("team").watch_namespaces == ()


def test_only_the_release_that_manages_runtimes_has_roles_for_users(render: Render) -> None:
    def roles(*arguments: str) -> set[str]:
        return {m["metadata"]["name"] for m in render(*arguments) if m["kind"] == "ClusterRole"}

    assert roles(*watching("a")) >= USER_ROLES
    assert roles(*watching("a"), *ONLY_WATCHES) & USER_ROLES == set()


def test_who_does_not_manage_runtimes_cannot_publish_on_nodes(helm: Helm) -> None:
    answer = helm("template", RELEASE, str(CHART), *ONLY_WATCHES, "--set", "publishOnNodes=true")
    assert answer.returncode != 0
    assert "publishOnNodes: only the release that manages SandboxRuntimes" in answer.stderr


def test_nothing_on_nodes_is_written_without_managing_runtimes(render: Render) -> None:
    manifests = render(*watching("a"), *ONLY_WATCHES, *ADMISSION)
    roles = [m for m in manifests if m["kind"].endswith("Role")]
    assert not [r for role in roles for r in granted(role) if r.resource.startswith("nodes/")]
    assert not [
        r for role in roles for r in granted(role) if (r.resource, r.verb) == ("nodes", "patch")
    ]
    assert not [name for name in policies(manifests) if name.endswith("-nodes")]


def test_policies_of_a_release_hold_in_its_namespaces_only(render: Render, tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    rules = [
        {"names": ["a", "x"], "runtimeClasses": ["gvisor"]},
        {"namespaceSelector": {"matchLabels": {"t": "x"}}, "runtimeClasses": ["gvisor"]},
    ]
    path.write_text(yaml.safe_dump({"admission": {"namespaces": rules}}))
    manifests = render(*watching("a", "b"), *ADMISSION, "--values", str(path))
    name = f"{RELEASE}.{NAMESPACE}"

    def bound(policy: str) -> Manifest:
        binding = only(manifests, f"{POLICY}Binding", f"{name}-{policy}")
        return dict(binding["spec"]["matchResources"]["namespaceSelector"])

    def within(*values: str) -> Manifest:
        return {"key": "kubernetes.io/metadata.name", "operator": "In", "values": list(values)}

    assert policies(manifests) == {
        f"{name}-{policy}"
        for policy in ("nodes", "pods", "templates", "namespaces-0", "namespaces-1")
    }
    assert bound("pods") == {"matchExpressions": [within("a", "b", NAMESPACE)]}
    assert bound("templates") == {"matchExpressions": [within("a", "b")]}
    assert bound("namespaces-0") == {"matchExpressions": [within("a", "x"), within("a", "b")]}
    assert bound("namespaces-1") == {
        "matchLabels": {"t": "x"},
        "matchExpressions": [within("a", "b")],
    }
    conditions = only(manifests, POLICY, f"{name}-pods")["spec"]["matchConditions"]
    assert conditions[-1]["name"] == "not-of-another-release-in-this-namespace"
    # In a namespace of sandboxes, no label may be a way around the policy.
    manifests = render(*watching("a", NAMESPACE), *ADMISSION)
    assert len(only(manifests, POLICY, f"{name}-pods")["spec"]["matchConditions"]) == 2


# --- Monitoring ----------------------------------------------------------------------------------


def prometheus_rules(manifests: list[Manifest]) -> list[Manifest]:
    groups = only(manifests, "PrometheusRule")["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_nothing_of_the_prometheus_operator_is_installed_unless_wanted(render: Render) -> None:
    kinds = {manifest["kind"] for manifest in render()}
    assert kinds.isdisjoint({"ServiceMonitor", "PodMonitor", "PrometheusRule"})


def test_the_prometheus_rule_has_the_rules_of_the_files(render: Render) -> None:
    wanted = [rule for file in (rules.RECORDING, rules.ALERTS) for rule in rules.rules(file)]
    assert prometheus_rules(render("--set", "metrics.prometheusRule.enabled=true")) == wanted
    per_pool = render(
        *("--set", "metrics.prometheusRule.enabled=true"),
        *("--set", "metrics.prometheusRule.perPool=true"),
    )
    assert prometheus_rules(per_pool) == wanted + rules.rules(rules.RECORDING_POOLS)
    with_bridge = render("--set", "metrics.prometheusRule.enabled=true", *WITH_BRIDGE)
    assert prometheus_rules(with_bridge) == wanted + rules.rules(rules.ALERTS_OPENSANDBOX)


def test_the_rules_can_be_adapted(render: Render, tmp_path: Path) -> None:
    values = {
        "enabled": True,
        "labels": {"release": "stack"},
        "alertLabels": {"team": "platform", "severity": "ticket"},
        "disabledAlerts": ["SandboxPoolDry"],
        "runbookUrl": "https://docs.test/runbooks/{alert}.html",
        "job": "operators",
    }
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump({"metrics": {"prometheusRule": values}}))
    manifests = render("--values", str(path), *WITH_BRIDGE)
    assert only(manifests, "PrometheusRule")["metadata"]["labels"]["release"] == "stack"
    adapted = prometheus_rules(manifests)
    alerts = {rule["alert"]: rule for rule in adapted if "alert" in rule}
    assert set(alerts) == set(rules.alerts()) - {"SandboxPoolDry"}
    for name, alert in alerts.items():
        assert alert["labels"] == {"team": "platform", "severity": "ticket"}
        assert alert["annotations"]["runbook_url"] == f"https://docs.test/runbooks/{name}.html"
    for rule in adapted:
        assert set(re.findall(r'job="([^"]*)"', rule["expr"])) == {"operators"}


@pytest.mark.parametrize(
    ("kind", "endpoints"),
    [("ServiceMonitor", "endpoints"), ("PodMonitor", "podMetricsEndpoints")],
)
def test_a_monitor_selects_what_the_rules_read(
    render: Render, tmp_path: Path, kind: str, endpoints: str
) -> None:
    token = {"credentials": {"name": "prometheus-token", "key": "token"}}
    values = {
        "kind": kind,
        "labels": {"release": "stack"},
        "interval": "15s",
        "scrapeTimeout": "5s",
        "authorization": token,
        "metricRelabelings": [{"action": "labeldrop", "regex": "service"}],
    }
    path = tmp_path / "values.yaml"
    rule = {"enabled": True}
    path.write_text(yaml.safe_dump({"metrics": {"monitor": values, "prometheusRule": rule}}))
    manifests = render("--values", str(path), "--set", "fullnameOverride=other")
    monitor = only(manifests, kind)
    assert monitor["metadata"]["labels"]["release"] == "stack"
    assert monitor["spec"]["namespaceSelector"] == {"matchNames": [NAMESPACE]}
    selected = monitor["spec"]["selector"]["matchLabels"].items()
    service = only(manifests, "Service")
    pod = only(manifests, "Deployment")["spec"]["template"]
    source = service if kind == "ServiceMonitor" else pod
    assert selected <= source["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"][endpoints]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    ports = pod["spec"]["containers"][0]["ports"]
    assert endpoint["port"] in {port["name"] for port in ports}
    job = service["metadata"]["name"]
    assert endpoint == {
        "port": "http",
        "path": "/metrics",
        "honorLabels": True,
        "interval": "15s",
        "scrapeTimeout": "5s",
        "authorization": token,
        "relabelings": [{"targetLabel": "job", "replacement": job}],
        "metricRelabelings": values["metricRelabelings"],
    }
    assert all(f'job="{job}"' in rule["expr"] for rule in prometheus_rules(manifests))


@pytest.mark.parametrize(
    ("kind", "endpoints"),
    [("ServiceMonitor", "endpoints"), ("PodMonitor", "podMetricsEndpoints")],
)
def test_the_bridge_has_a_monitor_of_its_own(
    render: Render, tmp_path: Path, kind: str, endpoints: str
) -> None:
    token = {"credentials": {"name": "prometheus-token", "key": "token"}}
    monitor = {"kind": kind, "labels": {"release": "stack"}, "interval": "15s"}
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump({"metrics": {"monitor": {**monitor, "authorization": token}}}))
    assert only(render("--values", str(path)), kind), "none without the bridge"
    manifests = render("--values", str(path), *WITH_BRIDGE)
    operator, bridge = (only(manifests, kind, name) for name in (RELEASE, BRIDGE))
    sources = [
        m if m["kind"] == "Service" else m["spec"]["template"]
        for m in manifests
        if m["kind"] == ("Service" if kind == "ServiceMonitor" else "Deployment")
    ]
    assert len(sources) == 2
    for one, job in ((operator, f"{RELEASE}-metrics"), (bridge, f"{BRIDGE}-metrics")):
        selector = one["spec"]["selector"]["matchLabels"].items()
        (selected,) = [s for s in sources if selector <= s["metadata"]["labels"].items()]
        name = selected["metadata"]["labels"]["app.kubernetes.io/name"]
        assert name == one["metadata"]["name"]
        assert one["spec"]["namespaceSelector"] == {"matchNames": [NAMESPACE]}
        assert one["metadata"]["labels"]["release"] == "stack"
        (endpoint,) = one["spec"][endpoints]
        assert endpoint.pop("authorization", None) == (token if one is operator else None)
        assert endpoint == {
            "port": "http",
            "path": "/metrics",
            "honorLabels": True,
            "interval": "15s",
            "relabelings": [{"targetLabel": "job", "replacement": job}],
        }


def test_who_may_scrape_the_operator_may_scrape_the_bridge(render: Render, tmp_path: Path) -> None:
    peers = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump({"networkPolicy": {"metricsFrom": peers}}))
    manifests = render("--values", str(path), *WITH_BRIDGE)
    operator, bridge = (only(manifests, "NetworkPolicy", name) for name in (RELEASE, BRIDGE))
    assert bridge["spec"]["ingress"] == operator["spec"]["ingress"]
    assert {"ports": [{"protocol": "TCP", "port": "http"}], "from": peers} in bridge["spec"][
        "ingress"
    ]
    (container,) = only(manifests, "Deployment", BRIDGE)["spec"]["template"]["spec"]["containers"]
    assert {"http", "health"} <= {port["name"] for port in container["ports"]}


def test_releases_of_the_same_name_have_rules_of_their_own(render: Render) -> None:
    manifests = render(
        *("--set", "watchNamespaces={team-a}"),
        *("--set", "metrics.prometheusRule.enabled=true"),
        *("--set", "metrics.monitor.kind=ServiceMonitor"),
        *WITH_BRIDGE,
    )
    jobs = {name: f"{NAMESPACE}/{name}-metrics" for name in (RELEASE, BRIDGE)}
    for name, job in jobs.items():
        (endpoint,) = only(manifests, "ServiceMonitor", name)["spec"]["endpoints"]
        assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": job}]
    of_bridge = {rule["alert"] for rule in rules.rules(rules.ALERTS_OPENSANDBOX)}
    for rule in prometheus_rules(manifests):
        wanted = jobs[BRIDGE if rule.get("alert") in of_bridge else RELEASE]
        assert set(re.findall(r'job="([^"]*)"', rule["expr"])) == {wanted}


def test_a_service_monitor_needs_the_service(helm: Helm, render: Render) -> None:
    without = ("--set", "metrics.service.enabled=false")
    render(*without, "--set", "metrics.monitor.kind=PodMonitor")
    kind = ("--set", "metrics.monitor.kind=ServiceMonitor")
    answer = helm("template", RELEASE, str(CHART), *without, *kind)
    assert answer.returncode != 0
    assert "metrics.service.enabled" in answer.stderr


# --- Admission policies --------------------------------------------------------------------------

POLICY = "ValidatingAdmissionPolicy"
SERVED = ("--api-versions", f"admissionregistration.k8s.io/v1/{POLICY}")
ADMISSION = ("--set", "admission.enabled=true")


def policies(manifests: list[Manifest]) -> set[str]:
    """Return the names of the policies; each must have its binding."""
    found = {m["metadata"]["name"]: m["kind"] for m in manifests if m["kind"] == POLICY}
    bound = [m["spec"]["policyName"] for m in manifests if m["kind"] == f"{POLICY}Binding"]
    assert sorted(bound) == sorted(found)
    return set(found)


def texts(policy: Manifest) -> str:
    """Return everything that a policy evaluates or says, for a look at the words in it."""
    return json.dumps(policy["spec"])


@pytest.mark.parametrize(
    ("arguments", "expected", "told"),
    [
        ((), set(), "false"),
        (SERVED, {"sandboxpool-nodes", "sandboxpool-pods", "sandboxpool-templates"}, "true"),
        (ADMISSION, {"sandboxpool-nodes", "sandboxpool-pods", "sandboxpool-templates"}, "true"),
        ((*SERVED, "--set", "admission.enabled=false"), set(), "false"),
        (
            (*SERVED, "--set", "admission.pods.enabled=false"),
            {"sandboxpool-nodes", "sandboxpool-templates"},
            "false",
        ),
        (
            (*SERVED, "--set", "admission.nodes.enabled=false"),
            {"sandboxpool-pods", "sandboxpool-templates"},
            "true",
        ),
        (
            (*SERVED, "--set", "nodes.exclusionLabels=false"),
            {"sandboxpool-pods", "sandboxpool-templates"},
            "true",
        ),
        (
            (*SERVED, "--set", "admission.templates.enabled=false"),
            {"sandboxpool-nodes", "sandboxpool-pods"},
            "true",
        ),
    ],
)
def test_policies_are_there_where_they_are_served_and_wanted(
    render: Render, arguments: tuple[str, ...], expected: set[str], told: str
) -> None:
    manifests = render(*arguments)
    assert policies(manifests) == expected
    (container,) = only(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert env["SANDBOXPOOL_ADMISSION_POLICY"] == told


def test_the_policies_let_pass_the_account_that_the_pod_uses(render: Render) -> None:
    mine = ("--set", "serviceAccount.create=false", "--set", "serviceAccount.name=mine")
    more = ("--set", "admission.pods.exemptUsers={jane}")
    policy = only(render(*ADMISSION, *mine, *more), POLICY, "sandboxpool-pods")
    (who, _) = policy["spec"]["matchConditions"]
    users = f'["system:serviceaccount:{NAMESPACE}:mine","jane"]'
    assert who["expression"] == f"!(request.userInfo.username in {users})"
    assert policy["spec"]["matchConstraints"]["resourceRules"][0]["resources"] == ["pods"]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("allowHostNamespaces=true", ["hostNetwork", "hostPID", "hostIPC"]),
        ("allowHostPath=true", ["hostPath"]),
        ("allowPrivileged=true", ["privileged", "ephemeralContainers"]),
        ("allowedServiceAccounts={*}", ["serviceAccount"]),
        ("allowedPriorityClasses={*}", ["priorityClassName"]),
    ],
)
def test_what_is_allowed_is_not_looked_at(render: Render, setting: str, words: list[str]) -> None:
    name = "sandboxpool-templates"
    strict = texts(only(render(*ADMISSION), POLICY, name))
    relaxed = texts(
        only(render(*ADMISSION, "--set", f"admission.templates.{setting}"), POLICY, name)
    )
    assert all(word in strict and word not in relaxed for word in words)
    assert f"admission.templates.{setting.partition('=')[0]}" in strict, "the message names it"


def test_namespaces_are_bound_by_name_or_by_label(render: Render, tmp_path: Path) -> None:
    rules = [
        {"names": ["a", "b"], "runtimeClasses": ["gvisor", "kata"]},
        {"namespaceSelector": {"matchLabels": {"t": "x"}}, "leastIsolationProof": "PerSandbox"},
    ]
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump({"admission": {"namespaces": rules}}))
    manifests = render(*ADMISSION, "--values", str(path))
    first, second = (f"sandboxpool-namespaces-{index}" for index in range(2))
    assert policies(manifests) >= {first, second}
    assert "gvisor or kata" in texts(only(manifests, POLICY, first))
    assert "isolationProof in [" not in texts(only(manifests, POLICY, first))
    assert "runtimeClassName in [" not in texts(only(manifests, POLICY, second))
    selectors = [
        only(manifests, f"{POLICY}Binding", name)["spec"]["matchResources"]["namespaceSelector"]
        for name in (first, second)
    ]
    by_name = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["a", "b"]}
    assert selectors == [{"matchExpressions": [by_name]}, {"matchLabels": {"t": "x"}}]


@pytest.mark.parametrize(
    "rule",
    [
        {"names": ["a"]},
        {"runtimeClasses": ["gvisor"]},
        {"names": [], "runtimeClasses": ["gvisor"]},
        {"names": ["a"], "namespaceSelector": {"matchLabels": {}}, "runtimeClasses": ["gvisor"]},
        # It would bind every namespace, and hardly on purpose.
        {"namespaceSelector": {}, "runtimeClasses": ["gvisor"]},
        {"names": ["a"], "leastIsolationProof": "None"},
        {"names": ["a"], "runtimeClasses": ["gvisor"], "runtimeClass": "gvisor"},
    ],
)
def test_half_a_binding_is_refused(helm: Helm, tmp_path: Path, rule: Manifest) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump({"admission": {"namespaces": [rule]}}))
    answer = helm("template", RELEASE, str(CHART), "--values", str(path))
    assert answer.returncode != 0
    assert "schema" in answer.stderr


@pytest.mark.parametrize(
    ("setting", "in_message"),
    [
        ("replicas=two", "replicas"),
        ("crds.keep=true", "keep"),
        ("crds.install=maybe", "install"),
        ("watchNamespaces={a,a}", "watchNamespaces"),
        ("watchNamespaces={A}", "watchNamespaces"),
        ("watchNamespaces=a", "watchNamespaces"),
        ("sandboxRuntimes.manage=maybe", "manage"),
        ("sandboxRuntimes.manage=null", "manage"),
        ("admission.enabled=maybe", "enabled"),
        ("admission.templates.allowHostpath=true", "allowHostpath"),
        ("lease.durationSeconds=1", "durationSeconds"),
        ("lease.retrySeconds=null", "retrySeconds"),
        ("probe.label.a=b", "label"),
        ("probe.resources.limit.cpu=1", "limit"),
        ("podSecurityContext=1", "podSecurityContext"),
        ("apiPriority.shares=1", "shares"),
        ("image.repository=", "repository"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("logLevel=loud", "logLevel"),
        ("probe.imagePullPolicy=Sometimes", "imagePullPolicy"),
        ("probe.pullPolicy=Never", "pullPolicy"),
        ("publishOnNodes=maybe", "publishOnNodes"),
        ("port=80", "port"),
        ("healthPort=80", "healthPort"),
        ("metrics.authentication=maybe", "authentication"),
        ("networkPolicy.from=", "from"),
        ("networkPolicy.metricsFrom[0].namespace=monitoring", "namespace"),
        ("resource.limits=1", "resource"),
        ("sandboxNetworkPolicy.egressExcept[0]=everything", "egressExcept"),
        ("sandboxNetworkPolicy.namespace=team-a", "namespace"),
        ("dashboards.enable=true", "enable"),
        ("dashboards.folderAnnotation=", "folderAnnotation"),
        ("dashboards.labels.grafana_dashboard=1", "grafana_dashboard"),
        ("extraEnv[0].nane=A", "extraEnv"),
        ("opensandbox.namespace=a", "namespace"),
        ("metrics.monitor.interval=often", "interval"),
        ("metrics.monitor.kind=Monitor", "kind"),
        ("metrics.prometheusRule.runbookUrl=https://docs.test", "runbookUrl"),
        ("metrics.prometheusRule.disabledAlerts[0]=Dry", "disabledAlerts"),
    ],
)
def test_wrong_values_are_refused(helm: Helm, setting: str, in_message: str) -> None:
    answer = helm("template", RELEASE, str(CHART), "--set", setting)
    assert answer.returncode != 0
    assert in_message in answer.stderr
    assert "schema" in answer.stderr
