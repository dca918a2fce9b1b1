"""The plugin's commands about the fleet, on a real cluster with the operator."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import Api, eventually
from support.realnodes import GVISOR, pool
from support.sandboxes import pool_status, wait_for_pool_condition

Object = dict[str, Any]
_RUN = "from sandboxpool.cli.main import main; main()"
_ABSENT = "absent-of-the-plugins-test"


class Plugin:
    """Runs the plugin in one namespace."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        self._options = ("--kubeconfig", str(kubeconfig), "-n", namespace)

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", _RUN, *arguments, *self._options]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def findings(self, *arguments: str) -> list[Object]:
        done = self("doctor", "-o", "json", *arguments)
        assert done.returncode in (0, 3, 4), done.stderr
        found: list[Object] = json.loads(done.stdout)["findings"]
        return found


@pytest.fixture
def plugin(kubeconfig: Path, namespace: str) -> Plugin:
    return Plugin(kubeconfig, namespace)


def test_doctor_finds_nothing_about_a_pool_that_is_warm(
    api: Api, plugin: Plugin, namespace: str
) -> None:
    api.create(pool(replicas=1))
    pool_status(api, warm=1, timeout=60)
    found = plugin.findings()
    # Other classes of this cluster are broken on purpose.
    about = ("cluster", "customresourcedefinition/", "deployment/", f"sandboxpool/{namespace}/")
    assert not [
        one
        for one in found
        if one["severity"] != "Info"
        and (one["where"].startswith(about) or one["where"] == f"runtimeclass/{GVISOR}")
    ]
    assert "warm 1" in plugin("status", "pool").stdout
    assert GVISOR in plugin("runtimes").stdout
    assert "pool" in plugin("top").stdout


def test_doctor_finds_a_class_that_no_node_serves(admin: Api, plugin: Plugin) -> None:
    admin.create(
        {
            "apiVersion": "node.k8s.io/v1",
            "kind": "RuntimeClass",
            "metadata": {"name": _ABSENT},
            "handler": _ABSENT,
        }
    )
    try:
        eventually(
            lambda: any(
                (one["what"], one["where"]) == ("ClassWithoutNodes", f"runtimeclass/{_ABSENT}")
                for one in plugin.findings()
            ),
            timeout=60,
        )
    finally:
        admin.delete("RuntimeClass", _ABSENT)


def test_status_names_a_class_that_is_missing(api: Api, plugin: Plugin, tmp_path: Path) -> None:
    made = pool(runtime_class=_ABSENT)
    file = tmp_path / "pool.yaml"
    file.write_text(yaml.safe_dump(made))
    found = plugin.findings("--pool", str(file))
    assert "ClassMissing" in [one["what"] for one in found]
    assert plugin("doctor", "--pool", str(file)).returncode == 4

    api.create(made)
    wait_for_pool_condition(api, "Ready", "False", "RuntimeClassNotFound")
    shown = plugin("status", "pool").stdout
    causes = shown.split("CAUSES\n")[1].splitlines()
    assert causes[1].split()[:3] == ["RuntimeResolved", "False", "RuntimeClassNotFound"]


def test_a_manifest_that_works_here_has_no_finding(plugin: Plugin, tmp_path: Path) -> None:
    file = tmp_path / "pool.yaml"
    file.write_text(yaml.safe_dump(pool()))
    done = plugin("doctor", "--pool", str(file))
    assert (done.returncode, done.stdout.strip()) == (0, "No findings."), done.stderr
