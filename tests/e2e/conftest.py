"""Fixtures of the end-to-end tests: real kubelets and gVisor, the operator installed by Helm."""

from __future__ import annotations

import os
import shutil
import sys
import time
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from demo import install
from localcluster import images, kindcluster, nodes, process, tools
from sandboxpool.api.times import epoch
from sandboxpool.runtimes.exclusion import INSTALL_GRACE_SECONDS
from support import Api, eventually, objects
from support.deployed import DeployedOperator
from support.history import PodHistory
from support.operator_process import Operator
from support.realnodes import CLASSES, GVISOR_NODES, remove_samples, restore_nodes
from support.releases import SHARED_VALUES

HERE = Path(__file__).resolve().parent

_TEST_SECONDS = 180
_EMPTY_SECONDS = 60.0
_LAST = "test_rights.py"
# Set it to have the cluster removed when the tests are over.
_DOWN = "SANDBOXPOOL_E2E_DOWN"
_NAMESPACE = pytest.StashKey[str]()
# A test that runs the operator on this machine leaves it here, for the report.
OPERATOR = pytest.StashKey[Operator]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            if item.get_closest_marker("timeout") is None:
                # Fixtures are exempt: the first on a machine builds a cluster.
                item.add_marker(pytest.mark.timeout(_TEST_SECONDS, func_only=True))
    # What the operator's log says is judged when all other tests have made it work.
    items.sort(key=lambda item: item.path == HERE / _LAST)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    namespace = item.stash.get(_NAMESPACE, None)
    if report.failed and namespace is not None:
        for title, command in {
            "pods": ("get", "pods", "-o", "wide"),
            "pools and claims": ("describe", "sandboxpools,sandboxclaims"),
            "runtimes": ("describe", "sandboxruntimes"),
            "operator": ("-n", install.NAMESPACE, "logs", "deployment/sandboxpool", "--tail=60"),
        }.items():
            report.sections.append((title, _asked("-n", namespace, *command)))
        if (operator := item.stash.get(OPERATOR, None)) is not None:
            report.sections.append(("operator on this machine", operator.tail(100)))
    return report


def _asked(*command: str) -> str:
    try:
        return kindcluster.kubectl(*command)
    except process.CommandError as error:
        return f"{error}\n{error.output}"


# The cluster.


@pytest.fixture(scope="session")
def kubeconfig() -> Iterator[Path]:
    """A cluster with the operator in it; it goes on running for the next session."""
    path = kindcluster.up()
    images.load_sample_image()
    install.install_operator(path, SHARED_VALUES)
    yield path
    if os.environ.get(_DOWN):
        kindcluster.down()


@pytest.fixture(scope="session")
def admin(kubeconfig: Path) -> Iterator[Api]:
    """A client with all rights and no default namespace; nodes and classes are in order."""
    with Api(kubeconfig) as api:
        remove_samples(api)
        restore_nodes(api)
        for name, handler in CLASSES.items():
            if api.find("RuntimeClass", name) is None:
                api.create(objects.runtime_class(name, handler))
        yield api


@pytest.fixture(scope="session")
def deployed(admin: Api) -> DeployedOperator:
    """The operator in the cluster."""
    operator = DeployedOperator(admin)
    operator.wait_ready()
    return operator


@pytest.fixture(scope="session")
def nodes_not_new(admin: Api) -> None:
    """Nodes are old enough to be excluded for handlers that they lack.

    Until then their runtimes may yet be installed, and sandboxes may be put on them.
    """
    eventually(
        lambda: (
            time.time()
            - max(epoch(node["metadata"]["creationTimestamp"]) for node in admin.list("Node"))
        ),
        until=lambda age: age > INSTALL_GRACE_SECONDS,
        message="the youngest node has had the time to install its runtimes",
        timeout=INSTALL_GRACE_SECONDS + 30,
    )


# A test's own.


@pytest.fixture
def namespace(
    admin: Api, deployed: DeployedOperator, request: pytest.FixtureRequest
) -> Iterator[str]:
    """A fresh namespace; nothing runs in it any more when the test is over."""
    name = f"e2e-{uuid.uuid4().hex[:8]}"
    request.node.stash[_NAMESPACE] = name
    admin.create(objects.namespace(name))
    yield name
    for kind in ("SandboxPool", "SandboxClaim"):
        for obj in admin.list(kind, name):
            admin.delete(kind, obj["metadata"]["name"], name)
    admin.delete("Namespace", name)
    # The next test's figures, and its kubelets, should not have this one's pods to bear.
    eventually(
        lambda: admin.list("Pod", name),
        until=lambda pods: not pods,
        message="the pods are gone",
        timeout=_EMPTY_SECONDS,
    )


@pytest.fixture
def api(admin: Api, namespace: str) -> Api:
    """A client with all rights whose default namespace is the test's."""
    return admin.within(namespace)


@pytest.fixture
def history(kubeconfig: Path, namespace: str) -> Iterator[PodHistory]:
    """Every state of every pod of the test."""
    with PodHistory(kubeconfig, namespace) as watching:
        yield watching


@pytest.fixture
def class_name(admin: Api, namespace: str) -> Iterator[str]:
    """The name of a RuntimeClass that the test may make and change."""
    yield namespace
    admin.delete("RuntimeClass", namespace)


@pytest.fixture
def nodes_restored(admin: Api) -> Iterator[None]:
    """Nodes that the test may change."""
    yield
    restore_nodes(admin)


@pytest.fixture
def shims_restored() -> Iterator[None]:
    """Shims that the test may take from nodes, or put there."""
    yield
    for node in GVISOR_NODES:
        nodes.restore_shims(node)


@pytest.fixture
def terminal(kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands find kubectl, its plugin, Helm, and a kubeconfig that they may change."""
    own = tmp_path / "kubeconfig"
    shutil.copy(kubeconfig, own)
    monkeypatch.setenv("KUBECONFIG", str(own))
    programs = (tools.path("kubectl"), tools.path("helm"), sys.executable)
    path = [*(str(Path(program).parent) for program in programs), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(path))
