"""Claimed sandboxes survive whatever happens to the operator's release and to its nodes."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from demo import install
from localcluster import images, kindcluster, process
from sandboxpool.api import names
from support import Api, eventually, objects
from support.applications import Application
from support.deployed import DeployedOperator
from support.history import PodHistory
from support.realnodes import GVISOR_NODES, pool, template
from support.releases import (
    ADOPT,
    CRDS,
    FORMER_CHART,
    SHARED_VALUES,
    VALUES,
    Release,
    build_former_image,
)
from support.sandboxes import phase, pool_status
from support.survivors import Survivor

LIFE_SECONDS = 420
DRAIN_SECONDS = 90
# A stopped leader releases the lease; one that died would be waited for.
TAKE_OVER_SECONDS = 10
CRD = "CustomResourceDefinition"


def remove_everything(api: Api, release: Release) -> None:
    """Removes the release and the CRDs, as docs/upgrading.md says."""
    left = [*api.list("SandboxPool", everywhere=True), *api.list("SandboxClaim", everywhere=True)]
    assert left == [], "the CRDs are not deleted together with somebody's sandboxes"
    release.uninstall()
    for name in CRDS:
        api.delete(CRD, name)
    for name in CRDS:
        eventually(
            partial(api.find, CRD, name), until=lambda crd: crd is None, message=f"no CRD {name}"
        )


@pytest.fixture
def release(
    admin: Api, kubeconfig: Path, deployed: DeployedOperator, tmp_path: Path
) -> Iterator[Release]:
    """The release, which the test may do anything to."""
    deployed.keep(deployed.log())
    yield Release(kubeconfig, tmp_path)
    install.install_operator(kubeconfig, SHARED_VALUES)
    deployed.wait_ready()


@pytest.fixture
def former(admin: Api, release: Release) -> Release:
    """A cluster that had nothing, and then the former version with two replicas."""
    values = install.values_for(build_former_image(), VALUES)
    remove_everything(admin, release)
    release.install(FORMER_CHART, {**values, "replicas": 2})
    return release


@pytest.mark.timeout(LIFE_SECONDS, func_only=True)
def test_claims_survive_upgrade_rollback_and_uninstallation(
    former: Release, api: Api, deployed: DeployedOperator, history: PodHistory
) -> None:
    values = install.values_for(images.build_operator_image(), VALUES)
    api.create(pool(replicas=2))
    pool_status(api, warm=2, timeout=90)
    survivors = [Survivor.claimed(api, "by-the-former")]

    def through(change: Callable[[], None], name: str) -> None:
        with Application(api) as application:
            change()
            deployed.wait_ready()
        assert application.waits, "claims were made meanwhile, and bound"
        survivors.append(Survivor.claimed(api, name))
        pool_status(api, warm=2, claimed=len(survivors), timeout=60)
        for survivor in survivors:
            survivor.check()

    first = former.revision()
    with pytest.raises(process.CommandError) as refused:
        former.upgrade(install.CHART, values)
    assert "invalid ownership metadata" in refused.value.output
    through(lambda: former.upgrade(install.CHART, values, *ADOPT), "after-the-upgrade")
    through(lambda: former.rollback(first), "after-the-rollback")
    through(lambda: former.upgrade(install.CHART, values), "after-another-upgrade")

    former.uninstall()
    eventually(deployed.pods, until=lambda pods: not pods, message="no operator", timeout=60)
    api.create(objects.claim("without-operator"))
    for survivor in survivors:
        survivor.check()
    former.install(install.CHART, values)
    deployed.wait_ready()
    survivors.append(Survivor.claimed(api, "after-another-installation"))
    phase(api, "Bound", "without-operator", 60)
    for survivor in survivors:
        survivor.check()
    assert {s.claim["status"]["podUID"] for s in survivors} & history.deleted() == set()

    # They still belong to their claims.
    for survivor in survivors:
        api.delete("SandboxClaim", survivor.claim["metadata"]["name"])
    pool_status(api, warm=2, claimed=1, timeout=60)


@pytest.mark.usefixtures("nodes_restored")
def test_a_drain_of_the_leaders_node_delays_claims_and_costs_none(
    api: Api, deployed: DeployedOperator
) -> None:
    former = deployed.leader()
    node = former["spec"]["nodeName"]
    # The drain evicts the sandboxes of the node, too; the claimed ones are elsewhere.
    host = min(GVISOR_NODES - {node})
    api.create(pool(replicas=2, pod=template(nodeSelector={names.HOSTNAME_LABEL: host})))
    pool_status(api, warm=2, timeout=60)
    survivor = Survivor.claimed(api, "claim")
    deployed.keep(deployed.log())
    with Application(api) as application:
        options = ("--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={DRAIN_SECONDS}s")
        said = kindcluster.kubectl("drain", node, *options, timeout=DRAIN_SECONDS + 30)
        deployed.wait_ready()
    assert f"pod/{former['metadata']['name']} evicted" in said
    assert deployed.leader()["metadata"]["name"] != former["metadata"]["name"]
    assert node not in {pod["spec"]["nodeName"] for pod in deployed.pods()}
    assert max(application.waits) < TAKE_OVER_SECONDS, application.waits
    survivor.check()


def test_helm_test_passes_and_leaves_nothing_behind(
    kubeconfig: Path, deployed: DeployedOperator, tmp_path: Path
) -> None:
    """That it fails for an operator that does not work is shown in tests/unit/app."""
    before = deployed.pods()
    assert "Phase:          Succeeded" in Release(kubeconfig, tmp_path).test()
    assert [pod["metadata"]["uid"] for pod in deployed.pods()] == [
        pod["metadata"]["uid"] for pod in before
    ]
    assert deployed.api.find("Pod", "sandboxpool-test", install.NAMESPACE) is None
