"""A real Prometheus in the cluster that scrapes the deployed operator and evaluates rules.

Its targets have the labels that the Prometheus Operator gives those of the chart's ServiceMonitor.
Debian builds Prometheus without discovery in Kubernetes, so a container beside it reads the
EndpointSlices of the chart's Service. Queries go through the API server's proxy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import yaml

from demo.install import NAMESPACE, RELEASE
from localcluster import images
from localcluster import prometheus as programs
from support import objects
from support.api import Api, is_true
from support.waiting import eventually

Object = dict[str, Any]

MONITORING = "sandboxpool-monitoring"
NAME = "prometheus"
LABELS = {"app.kubernetes.io/name": NAME}
# What the chart's value `networkPolicy.metricsFrom` needs for this Prometheus.
METRICS_FROM = [
    {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": MONITORING}},
        "podSelector": {"matchLabels": LABELS},
    }
]
JOB = f"{RELEASE}-metrics"
PORT = 9090
SCRAPE_SECONDS = 1
_PROXY = f"/api/v1/namespaces/{MONITORING}/pods/{NAME}:{PORT}/proxy"
_UID = 65534
_READY_SECONDS = 60.0
_GONE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One series of an instant vector."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus that runs in the cluster.

    Attributes:
        api: A client with all rights.
    """

    api: Api

    def ask(self, path: str, **parameters: str) -> Any:
        """The data that an endpoint of the HTTP API answers with, such as `targets`.

        Raises:
            ApiError: It refuses, for example because the expression is wrong.
        """
        query = f"?{urlencode(parameters)}" if parameters else ""
        answer = self.api.raw("GET", f"{_PROXY}/api/v1/{path}{query}")
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[Sample]:
        """The value of an expression now; a scalar is one sample without labels."""
        data = self.ask("query", query=expression)
        if data["resultType"] == "scalar":
            return [Sample({}, float(data["result"][1]))]
        assert data["resultType"] == "vector", data["resultType"]
        return [Sample(each["metric"], float(each["value"][1])) for each in data["result"]]

    def value(self, expression: str) -> float:
        """The value of an expression that has one series.

        Raises:
            LookupError: It has none, or several.
        """
        found = self.query(expression)
        if len(found) != 1:
            raise LookupError(f"{expression} has {len(found)} series")
        return found[0].value

    def alerts(self, name: str, state: str = "firing", **labels: str) -> list[Object]:
        """The alerts of a name in a state that have these labels."""
        return [
            alert
            for alert in self.ask("alerts")["alerts"]
            if alert["labels"]["alertname"] == name
            and alert["state"] == state
            and labels.items() <= alert["labels"].items()
        ]

    def targets_up(self) -> int:
        """How many replicas of the operator were scraped successfully the last time."""
        return sum(t["health"] == "up" for t in self.ask("targets")["activeTargets"])

    def rule_errors(self) -> list[str]:
        """What went wrong the last time that the rules were evaluated."""
        return [
            f"{rule['name']}: {rule['lastError']}"
            for group in self.ask("rules")["groups"]
            for rule in group["rules"]
            if rule.get("lastError")
        ]


@contextmanager
def running(api: Api, rules: Mapping[str, str]) -> Iterator[Prometheus]:
    """Runs a Prometheus in a namespace of its own until the block ends.

    Args:
        api: A client with all rights.
        rules: Rule files by their names, such as the chart's.
    """
    image = programs.load_image()
    _remove(api)
    api.create(objects.namespace(MONITORING))
    try:
        api.create_all(*_rights(), _configuration(rules), _pod(image))
        prometheus = Prometheus(api)
        eventually(
            lambda: is_true(api.get("Pod", NAME, MONITORING), "Ready"),
            message="Prometheus is ready",
            timeout=_READY_SECONDS,
        )
        eventually(prometheus.targets_up, message="the operator is scraped", timeout=_READY_SECONDS)
        yield prometheus
    finally:
        _remove(api)


def _remove(api: Api) -> None:
    for kind in ("Role", "RoleBinding"):
        api.delete(kind, _ROLE, NAMESPACE)
    api.delete("Namespace", MONITORING)
    eventually(
        lambda: api.find("Namespace", MONITORING) is None,
        message="the namespace of Prometheus is gone",
        timeout=_GONE_SECONDS,
    )


_ROLE = "prometheus-of-the-tests"


def _rights() -> list[Object]:
    """An account that may discover the operator's pods."""
    group = "rbac.authorization.k8s.io"
    at = {"name": _ROLE, "namespace": NAMESPACE}
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": NAME, "namespace": MONITORING},
        },
        {
            "apiVersion": f"{group}/v1",
            "kind": "Role",
            "metadata": at,
            "rules": [
                {
                    "apiGroups": ["discovery.k8s.io"],
                    "resources": ["endpointslices"],
                    "verbs": ["list"],
                },
            ],
        },
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": at,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": _ROLE},
            "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": MONITORING}],
        },
    ]


def _configuration(rules: Mapping[str, str]) -> Object:
    configuration = {
        "global": {
            "scrape_interval": f"{SCRAPE_SECONDS}s",
            "scrape_timeout": f"{SCRAPE_SECONDS}s",
            "evaluation_interval": f"{SCRAPE_SECONDS}s",
        },
        "rule_files": [f"/etc/prometheus/{name}" for name in rules],
        "scrape_configs": [_scrape_config()],
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": NAME, "namespace": MONITORING},
        "data": {"prometheus.yml": yaml.safe_dump(configuration), **rules},
    }


def _scrape_config() -> Object:
    return {
        "job_name": JOB,
        # The metrics of pools name the pool's namespace, which is not the operator's.
        "honor_labels": True,
        "file_sd_configs": [{"files": [_TARGETS]}],
    }


_TARGETS = "/targets/operator.json"

# Replaces the file as often as it changes, and at once: Prometheus watches the directory.
_DISCOVERY = f"""\
import json, os, ssl, time, urllib.request
account = "/var/run/secrets/kubernetes.io/serviceaccount"
host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
host = f"[{{host}}]" if ":" in host else host
path = "/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"
query = "labelSelector=kubernetes.io%2Fservice-name%3D{JOB}"
context = ssl.create_default_context(cafile=f"{{account}}/ca.crt")
before = None
while True:
    request = urllib.request.Request(f"https://{{host}}:{{port}}{{path}}?{{query}}")
    request.add_header("Authorization", "Bearer " + open(f"{{account}}/token").read())
    try:
        with urllib.request.urlopen(request, timeout=5, context=context) as answer:
            slices = json.load(answer)["items"]
    except OSError as error:
        print(error, flush=True)
        slices = None
    if slices is not None:
        targets = [
            {{
                "targets": [f"{{endpoint['addresses'][0]}}:{{port['port']}}"],
                "labels": {{
                    "namespace": "{NAMESPACE}",
                    "service": "{JOB}",
                    "pod": endpoint["targetRef"]["name"],
                }},
            }}
            for piece in slices
            for port in piece["ports"] or ()
            for endpoint in piece["endpoints"] or ()
        ]
        text = json.dumps(targets)
        if text != before:
            with open("{_TARGETS}.new", "w") as file:
                file.write(text)
            os.replace("{_TARGETS}.new", "{_TARGETS}")
            before = text
    time.sleep({SCRAPE_SECONDS})
"""


def _pod(image: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": NAME, "namespace": MONITORING, "labels": LABELS},
        "spec": {
            "serviceAccountName": NAME,
            "dnsPolicy": "Default",
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsUser": _UID, "runAsGroup": _UID, "fsGroup": _UID},
            "containers": [
                {
                    "name": NAME,
                    "image": image,
                    "imagePullPolicy": "Never",
                    "command": [
                        "/prometheus",
                        "--config.file=/etc/prometheus/prometheus.yml",
                        "--storage.tsdb.path=/data",
                        f"--web.listen-address=:{PORT}",
                    ],
                    "ports": [{"containerPort": PORT}],
                    "readinessProbe": {
                        "httpGet": {"path": "/-/ready", "port": PORT},
                        "periodSeconds": 1,
                    },
                    "volumeMounts": [
                        {"name": "config", "mountPath": "/etc/prometheus"},
                        {"name": "data", "mountPath": "/data"},
                        {"name": "targets", "mountPath": "/targets"},
                    ],
                },
                {
                    "name": "discovery",
                    "image": images.OPERATOR_IMAGE,
                    "imagePullPolicy": "Never",
                    "command": ["python3", "-c", _DISCOVERY],
                    "volumeMounts": [{"name": "targets", "mountPath": "/targets"}],
                },
            ],
            "volumes": [
                {"name": "config", "configMap": {"name": NAME}},
                {"name": "data", "emptyDir": {}},
                {"name": "targets", "emptyDir": {}},
            ],
        },
    }
