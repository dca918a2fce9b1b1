"""OpenSandbox's own server in the cluster, and an application beside it that uses its SDK."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from localcluster import kindcluster, paths, process
from localcluster.opensandbox import OpenSandboxImages
from support.api import Api, is_true
from support.waiting import eventually

Object = dict[str, Any]

SAMPLES = paths.REPOSITORY / "samples" / "opensandbox"
NAME = "opensandbox-server"
# The namespace that the sample of the server's configuration names.
SAMPLE_NAMESPACE = "team-a"
_READY_SECONDS = 90.0
_CONFIG = "config.toml"
# What scripts of the application begin with. The SDK wants an image and the server ignores it.
_PRELUDE = Path(__file__).with_name("application.py").read_text()


@dataclass(frozen=True)
class Server:
    """The pod of server and application."""

    namespace: str

    def run(self, script: str) -> Any:
        """Runs a script in the application's container; returns what it tells.

        The script has what `application.py` defines, and tells by `tell(...)`.
        """
        text = f"{_PRELUDE}\n{script}"
        printed = self.exec("application", "python3", "-c", text)
        return json.loads(printed.splitlines()[-1])

    def exec(self, container: str, *command: str) -> str:
        """Runs a command in one of the containers."""
        where = ("-n", self.namespace, "exec", NAME, "-c", container, "--")
        try:
            return kindcluster.kubectl(*where, *command)
        except process.CommandError as error:
            raise AssertionError(error.output) from None

    def log(self) -> str:
        """What the server has logged."""
        return kindcluster.kubectl("-n", self.namespace, "logs", NAME, "-c", "server")


def deploy(api: Api, namespace: str, images: OpenSandboxImages) -> Server:
    """Deploys the server with the rights and the configuration of the samples, and awaits it."""
    api = api.within(namespace)
    for rights in yaml.safe_load_all((SAMPLES / "server-role.yaml").read_text()):
        for subject in rights.get("subjects", ()):
            subject["namespace"] = namespace
        api.create(rights)
    config = (SAMPLES / _CONFIG).read_text().replace(SAMPLE_NAMESPACE, namespace)
    api.create(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": NAME},
            "data": {_CONFIG: config},
        }
    )
    api.create(_pod(images.server))
    eventually(
        lambda: is_true(api.get("Pod", NAME), "Ready"),
        message="OpenSandbox's server is ready",
        timeout=_READY_SECONDS,
    )
    return Server(namespace)


def _pod(image: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": NAME, "labels": {"app.kubernetes.io/name": NAME}},
        "spec": {
            "serviceAccountName": NAME,
            "dnsPolicy": "Default",
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "server",
                    "image": image,
                    "args": ["--config", f"/etc/opensandbox/{_CONFIG}"],
                    # Nobody but this cluster's pods reaches it, and it wants a word on its keys.
                    "env": [{"name": "OPENSANDBOX_INSECURE_SERVER", "value": "YES"}],
                    "readinessProbe": {
                        "httpGet": {"path": "/health", "port": 8080},
                        "periodSeconds": 1,
                    },
                    "volumeMounts": [{"name": "config", "mountPath": "/etc/opensandbox"}],
                },
                {"name": "application", "image": image, "command": ["sleep", "infinity"]},
            ],
            "volumes": [{"name": "config", "configMap": {"name": NAME}}],
        },
    }


def executor_template(image: str) -> Object:
    """The pod template of a pool whose sandboxes take a task.

    Warm means there that a task can be delivered.
    """
    return {
        "metadata": {"labels": {"app.kubernetes.io/part-of": "opensandbox-sandboxes"}},
        "spec": {
            "dnsPolicy": "Default",
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "sandbox",
                    "image": image,
                    "readinessProbe": {
                        "httpGet": {"path": "/health", "port": 5758},
                        "periodSeconds": 1,
                    },
                }
            ],
        },
    }


def opened(pool: Mapping[str, Any], how: str = "Executor") -> Object:
    """A SandboxPool that OpenSandbox may use."""
    labels = {"sandboxpool.io/opensandbox": how}
    return {**pool, "metadata": {**pool["metadata"], "labels": labels}}
