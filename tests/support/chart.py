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

CHART = paths.REPOSITORY / "charts" / "sandboxpool"
RELEASE = "sandboxpool"

_HELM_SECONDS = 100


@contextmanager
def installed(plane: ControlPlane, home: Path, namespace: str, *values: str) -> Iterator[None]:
    """Installs the chart in a new namespace that admits restricted pods only, and removes it.

    The API server has the CRDs already.

    Args:
        plane: Where.
        home: A directory for Helm's own files.
        namespace: Its name.
        values: `key=value` as for `--set`.
    """
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    metadata = {"name": namespace, "labels": labels}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
    plane.request("POST", "/api/v1/namespaces", body)
    chosen = [word for value in ("crds.install=false", *values) for word in ("--set", value)]
    run_helm(plane, home, "install", RELEASE, str(CHART), "--namespace", namespace, *chosen)
    yield
    run_helm(plane, home, "uninstall", RELEASE, "--namespace", namespace)


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
