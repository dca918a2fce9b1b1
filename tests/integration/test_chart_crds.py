"""The chart's CRDs through the life of a release, on a real API server.

The first release is of the chart that left the CRDs to Helm's directory `crds/`, which Helm
installs once. Pools and claims that exist then are there at the end.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from localcluster import tools
from localcluster.controlplane import ControlPlane
from localcluster.paths import REPOSITORY
from sandboxpool.api import names
from support import Api, chart, eventually, objects

Object = dict[str, Any]

FORMER_CHART = REPOSITORY / "tests" / "e2e" / "fixtures" / "sandboxpool-0.1.0.tgz"
SYSTEM = "sandboxpool-system"
CRD = "CustomResourceDefinition"
POOLS = f"sandboxpools.{names.GROUP}"
CRDS = {POOLS, f"sandboxclaims.{names.GROUP}", f"sandboxruntimes.{names.GROUP}"}
ADOPT = ("--take-ownership", "--force-conflicts")
KUBECTL_SECONDS = 60


@dataclass
class Release:
    """A release of the chart on an API server of its own."""

    plane: ControlPlane
    api: Api
    home: Path

    def helm(self, *arguments: str) -> None:
        """Runs Helm in the operator's namespace."""
        chart.run_helm(self.plane, self.home, *arguments, "--namespace", SYSTEM)

    def install(self, package: Path) -> None:
        """Installs a chart and waits until its CRDs are served."""
        self.helm("install", chart.RELEASE, str(package), "--create-namespace")
        eventually(lambda: self.api.list("SandboxPool", "default") is not None, message="served")

    def upgrade(self, package: Path, *options: str) -> None:
        """Upgrades to a chart."""
        self.helm("upgrade", chart.RELEASE, str(package), *options)

    def apply(self, crd: Object) -> None:
        """Applies a CRD as the former instructions said."""
        subprocess.run(
            [
                *(str(tools.path("kubectl")), "--kubeconfig", str(self.plane.kubeconfig)),
                *("apply", "--server-side", "--force-conflicts", "-f", "-"),
            ],
            input=json.dumps(crd),
            capture_output=True,
            text=True,
            check=True,
            timeout=KUBECTL_SECONDS,
        )

    def column(self) -> str:
        """The description of the pools' first column, which the tests change."""
        (version,) = self.api.get(CRD, POOLS)["spec"]["versions"]
        return str(version["additionalPrinterColumns"][0]["description"])

    def uids(self) -> dict[str, str]:
        """The identity of all that users have made."""
        found = [
            *(self.api.get(CRD, name) for name in CRDS),
            self.api.get("SandboxPool", "pool", "default"),
            self.api.get("SandboxClaim", "claim", "default"),
        ]
        return {f"{o['kind']} {o['metadata']['name']}": o["metadata"]["uid"] for o in found}


def changed(tmp_path: Path, description: str) -> Path:
    """A chart like this one but for a column's description, as the next version might be."""
    copy = tmp_path / description / "sandboxpool"
    shutil.copytree(chart.CHART, copy)
    file = copy / "templates" / "crds" / f"{names.GROUP}_sandboxpools.yaml"
    text = file.read_text()
    columns = yaml.safe_load((REPOSITORY / "crds" / file.name).read_text())["spec"]["versions"][0]
    present = f"description: {columns['additionalPrinterColumns'][0]['description']}\n"
    assert present in text
    file.write_text(text.replace(present, f"description: {description}\n", 1))
    return copy


@pytest.fixture
def release(tmp_path: Path) -> Iterator[Release]:
    with ControlPlane() as plane, Api(plane.kubeconfig) as api:
        yield Release(plane, api, tmp_path / "helm")


@pytest.fixture
def former(release: Release) -> Release:
    """A release of the former chart with a pool and a claim."""
    release.install(FORMER_CHART)
    release.api.within("default").create_all(objects.pool("pool"), objects.claim("claim", "pool"))
    return release


@pytest.mark.parametrize("applied", [False, True])
def test_a_release_takes_over_crds_that_it_did_not_install(
    former: Release, tmp_path: Path, *, applied: bool
) -> None:
    """Also where they were applied by hand before an upgrade: kubectl then owns their fields."""
    if applied:
        crd = former.api.get(CRD, POOLS)
        body = {key: crd[key] for key in ("apiVersion", "kind", "spec")}
        body["spec"]["versions"][0]["additionalPrinterColumns"][0]["description"] = "Applied"
        former.apply({**body, "metadata": {"name": POOLS}})
        assert former.column() == "Applied"
        with pytest.raises(AssertionError, match='conflict with "kubectl"'):
            former.upgrade(chart.CHART, "--take-ownership")
    before = former.uids()
    with pytest.raises(AssertionError, match="invalid ownership metadata"):
        former.upgrade(chart.CHART)
    former.upgrade(changed(tmp_path, "Adopted"), *ADOPT)
    assert former.column() == "Adopted"
    # From now on an upgrade is one command, and the chart brings its CRDs.
    former.upgrade(changed(tmp_path, "Upgraded"))
    assert former.column() == "Upgraded"
    assert former.uids() == before


def test_crds_pools_and_claims_survive_rollback_and_uninstallation(
    former: Release, tmp_path: Path
) -> None:
    before = former.uids()
    newer = changed(tmp_path, "Newer")
    former.upgrade(newer, *ADOPT)
    # The former chart has no CRDs among its templates: Helm would delete them.
    former.helm("rollback", chart.RELEASE, "1")
    assert former.uids() == before
    assert former.column() == "Newer", "the older operator works with the newer CRDs"
    former.upgrade(chart.CHART)
    assert former.column() != "Newer"
    former.upgrade(chart.CHART, "--set", "crds.install=false")
    assert former.uids() == before
    former.upgrade(newer)
    former.helm("uninstall", chart.RELEASE)
    assert former.uids() == before
    former.install(newer)
    assert former.uids() == before
