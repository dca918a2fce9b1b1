"""Releases of the chart in the local cluster, by Helm's own commands; also of the former version.

The former version is chart and operator of 0.1.0, as they were before the chart had the CRDs among
its templates. The fixtures are `helm package` of that chart and the operator's sources.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import install
from localcluster import engine as engines
from localcluster import images, paths, process, tools
from sandboxpool.api import names
from support import prometheus

FIXTURES = paths.REPOSITORY / "tests" / "e2e" / "fixtures"
FORMER_CHART = FIXTURES / "sandboxpool-0.1.0.tgz"
FORMER_IMAGE = "localhost/sandboxpool:0.1.0"
CRDS = tuple(f"{plural}.{names.GROUP}" for plural in (names.POOLS, names.CLAIMS, names.RUNTIMES))
# OpenShift's restricted-v2 gives each namespace a range of users, which no image knows.
_ANYBODY = {"runAsUser": 1_000_680_000, "runAsGroup": 0, "fsGroup": 1_000_680_000}
VALUES = {
    "podSecurityContext": _ANYBODY,
    "probe": {"image": images.PROBE_IMAGE, "podSecurityContext": _ANYBODY},
    # For network plugins that enforce policies.
    "networkPolicy": {"metricsFrom": prometheus.METRICS_FROM},
}
# Of the release that all other tests share; the former chart has not got them all.
SHARED_VALUES = {**VALUES, "dashboards": {"enabled": True}}
ADOPT = ("--take-ownership", "--force-conflicts")

_FORMER_SOURCES = FIXTURES / "operator-0.1.0.tar.xz"
_HELM_SECONDS = 150
_BUILD_SECONDS = 300


@dataclass(frozen=True)
class Release:
    """The release of the local cluster.

    Attributes:
        kubeconfig: The cluster's.
        folder: Where the values are written.
    """

    kubeconfig: Path
    folder: Path

    def install(self, chart: Path, values: Mapping[str, Any]) -> None:
        """Installs a chart and waits until it is ready."""
        self._helm("install", install.RELEASE, str(chart), *self._values(values), "--wait")

    def upgrade(self, chart: Path, values: Mapping[str, Any], *options: str) -> None:
        """Upgrades to a chart and waits until it is ready.

        Raises:
            CommandError: Helm refuses, or it is not ready in time.
        """
        given = (*self._values(values), *options, "--wait")
        self._helm("upgrade", install.RELEASE, str(chart), *given)

    def rollback(self, revision: int) -> None:
        """Goes back to a revision and waits until it is ready."""
        self._helm("rollback", install.RELEASE, str(revision), "--wait")

    def test(self) -> str:
        """Runs `helm test`; returns what it says.

        Raises:
            CommandError: The test fails.
        """
        return self._helm("test", install.RELEASE)

    def uninstall(self) -> None:
        """Removes the release and waits until its objects are gone."""
        self._helm("uninstall", install.RELEASE, "--wait")

    def revision(self) -> int:
        """The number of the present revision."""
        (listed,) = json.loads(self._helm("list", "--output", "json"))
        return int(listed["revision"])

    def _values(self, values: Mapping[str, Any]) -> tuple[str, str]:
        file = self.folder / "values.json"
        file.write_text(json.dumps(values))
        return ("--values", str(file))

    def _helm(self, *arguments: str) -> str:
        command = [str(tools.path("helm")), "--kubeconfig", str(self.kubeconfig)]
        command += ["--namespace", install.NAMESPACE, *arguments]
        return process.run(command, timeout=_HELM_SECONDS)


def build_former_image() -> str:
    """Builds the image of the former operator and loads it into the nodes; returns its tag.

    It has the dependencies of the present image: the former sources are all that differs.
    """
    engine = engines.current()
    if engine is None:
        raise OSError("no cluster is up: `python -m localcluster up`")
    dockerfile = (
        f"FROM {images.build_operator_image()}\n"
        f"ADD {_FORMER_SOURCES.name} /opt/former\n"
        "ENV PYTHONPATH=/opt/former/operator:/opt/dependencies\n"
    )
    engine.docker(
        *("build", "-t", FORMER_IMAGE, "-f", "-", str(FIXTURES)),
        stdin=dockerfile,
        timeout=_BUILD_SECONDS,
    )
    images.load_image(FORMER_IMAGE)
    return FORMER_IMAGE
