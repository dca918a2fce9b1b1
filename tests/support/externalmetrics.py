"""The API external.metrics.k8s.io in the cluster, answered from the Prometheus of the tests."""

import base64
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from localcluster import images, paths, process
from support import objects, prometheus
from support.api import Api, is_true
from support.waiting import eventually

Object = dict[str, Any]

NAME = "external-metrics"
NAMESPACE = prometheus.MONITORING
API_SERVICE = "v1beta1.external.metrics.k8s.io"

_PROGRAM = paths.REPOSITORY / "tests" / "e2e" / "fixtures" / "external_metrics.py"
_PORT = 6443
_UID = 65534
_SECONDS = 60.0


@contextmanager
def served(api: Api, expressions: Mapping[str, str]) -> Iterator[None]:
    """Serves metrics until the block ends; a Prometheus runs meanwhile.

    Args:
        api: A client with all rights.
        expressions: What each metric is to Prometheus, by the metric's name.
    """
    address = api.get("Pod", prometheus.NAME, NAMESPACE)["status"]["podIP"]
    host = f"[{address}]" if ":" in address else address
    environment = {
        "EXPRESSIONS": json.dumps(expressions),
        "PROMETHEUS": f"http://{host}:{prometheus.PORT}",
    }
    api.create_all(_certificate(), _program(), _pod(environment), _service())
    try:
        eventually(
            lambda: is_true(api.get("Pod", NAME, NAMESPACE), "Ready"),
            message="the metrics are served",
            timeout=_SECONDS,
        )
        api.create(_api_service())
        eventually(
            lambda: is_true(api.get("APIService", API_SERVICE), "Available"),
            message="the API server reaches them",
            timeout=_SECONDS,
        )
        yield
    finally:
        # One that nobody answers for would keep every namespace from being deleted.
        api.delete("APIService", API_SERVICE)


def _certificate() -> Object:
    """A certificate that nobody has to believe: the APIService says so."""
    with tempfile.TemporaryDirectory(prefix="external-metrics-") as folder:
        key, certificate = Path(folder) / "tls.key", Path(folder) / "tls.crt"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
        command += ["-subj", f"/CN={NAME}", "-keyout", str(key), "-out", str(certificate)]
        process.run(command, timeout=_SECONDS)
        data = {
            path.name: base64.b64encode(path.read_bytes()).decode() for path in (key, certificate)
        }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "data": data,
    }


def _program() -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "data": {"serve.py": _PROGRAM.read_text()},
    }


def _pod(environment: Mapping[str, str]) -> Object:
    pod = objects.pod(NAME, image=images.OPERATOR_IMAGE, dnsPolicy="Default")
    pod["metadata"].update(namespace=NAMESPACE, labels={"app": NAME})
    pod["spec"].update(
        terminationGracePeriodSeconds=1,
        securityContext={"runAsUser": _UID, "runAsGroup": _UID, "fsGroup": _UID},
        volumes=[
            {"name": "program", "configMap": {"name": NAME}},
            {"name": "tls", "secret": {"secretName": NAME}},
        ],
    )
    (container,) = pod["spec"]["containers"]
    container.update(
        imagePullPolicy="Never",
        command=["python3", "/program/serve.py"],
        env=[{"name": name, "value": value} for name, value in environment.items()],
        readinessProbe={"tcpSocket": {"port": _PORT}, "periodSeconds": 1},
        volumeMounts=[
            {"name": "program", "mountPath": "/program"},
            {"name": "tls", "mountPath": "/tls"},
        ],
    )
    return pod


def _service() -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {"selector": {"app": NAME}, "ports": [{"port": 443, "targetPort": _PORT}]},
    }


def _api_service() -> Object:
    version, _, group = API_SERVICE.partition(".")
    return {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": API_SERVICE},
        "spec": {
            "group": group,
            "version": version,
            "service": {"name": NAME, "namespace": NAMESPACE},
            "insecureSkipTLSVerify": True,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
        },
    }
