"""The fixtures of all tests against a real API server: fake nodes, the operator as a process."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from fakekubelet import FakeNode, FakeNodes
from localcluster.controlplane import ControlPlane
from support import Api, ApiError, objects
from support.controllers import Controllers
from support.crds import apply_crds
from support.faultproxy import FaultProxy
from support.operator_process import Operator, StartOperator

# A test that runs operators leaves them here, for the report.
OPERATORS = pytest.StashKey[list[Operator]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for operator in item.stash.get(OPERATORS, []):
            report.sections.append((f"log of {operator.name}", operator.tail(150)))
    return report


# The cluster.


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """kube-apiserver and etcd with the CRDs, and nothing else."""
    with ControlPlane() as plane:
        with Api(plane.kubeconfig) as api:
            apply_crds(api)
        yield plane


@pytest.fixture(scope="session")
def controllers(control_plane: ControlPlane) -> Iterator[Controllers]:
    """The real scheduler, garbage collector, namespace and quota controllers."""
    with Controllers(control_plane.kubeconfig) as running:
        yield running


@pytest.fixture(scope="session")
def admin(control_plane: ControlPlane) -> Iterator[Api]:
    """A client with all rights and no default namespace."""
    with Api(control_plane.kubeconfig) as api:
        yield api


_numbers = itertools.count(1)


@pytest.fixture
def namespace(admin: Api) -> Iterator[str]:
    """A fresh namespace; what is in it is gone, or going, after the test."""
    name = f"test-{next(_numbers)}"
    admin.create(objects.namespace(name))
    yield name
    empty(admin, name)
    admin.delete("Namespace", name)


def empty(api: Api, namespace: str) -> None:
    """Deletes claims, pools and pods at once.

    The namespace controller would do it too, but later, and the next test's operator would still
    see them.
    """
    for kind in ("SandboxClaim", "SandboxPool", "Pod"):
        try:
            for obj in api.list(kind, namespace):
                name = obj["metadata"]["name"]
                api.delete(kind, name, namespace, gracePeriodSeconds=0)
        except ApiError as error:
            if error.status != 404:  # The CRD is not there.
                raise


@pytest.fixture
def api(admin: Api, namespace: str) -> Api:
    """A client with all rights whose default namespace is the test's."""
    return admin.within(namespace)


# The nodes.


@pytest.fixture(scope="session")
def _fake_nodes(control_plane: ControlPlane) -> Iterator[FakeNodes]:
    # Fast tries, and no rationing of events at that pace: tests of either set their own.
    with FakeNodes(control_plane.kubeconfig, retry_seconds=0.3, event_burst=1000) as fake:
        yield fake


@pytest.fixture
def nodes(_fake_nodes: FakeNodes, admin: Api, namespace: str) -> Iterator[FakeNodes]:
    """Three fake nodes with gVisor (`gvisor-0` to `-2`) and two with runc only (`plain-0`, `-1`).

    After the test nothing is left of them, nor of any RuntimeClass.
    """
    _fake_nodes.behaviour.reset()
    _fake_nodes.add(*(FakeNode(f"gvisor-{i}", {"runc", "runsc"}) for i in range(3)))
    _fake_nodes.add(*(FakeNode(f"plain-{i}", {"runc"}) for i in range(2)))
    yield _fake_nodes
    empty(admin, namespace)
    _fake_nodes.remove(*_fake_nodes.names())
    for runtime_class in admin.list("RuntimeClass"):
        admin.delete("RuntimeClass", runtime_class["metadata"]["name"])


# The operator.


def operator_token(control_plane: ControlPlane) -> str:
    """The token that the operator under test uses.

    The one place that decides its rights: an administrator's until the chart has a ClusterRole.
    """
    return control_plane.admin_token


@pytest.fixture
def proxy(control_plane: ControlPlane) -> Iterator[FaultProxy]:
    """A proxy to the API server that fails on request."""
    with FaultProxy(control_plane.url, control_plane.ca_file) as running:
        yield running


@contextmanager
def operators(
    control_plane: ControlPlane, admin: Api, own_namespace: str, started: list[Operator]
) -> Iterator[StartOperator]:
    """Starts replicas of the operator, all in one fresh namespace of their own.

    Each is added to the list, so that others may find its log. They end with the context.
    """
    admin.create(objects.namespace(own_namespace))
    token = operator_token(control_plane)
    with tempfile.TemporaryDirectory(prefix="operator-") as folder:

        def start(
            *,
            through: FaultProxy | None = None,
            name: str = "operator",
            env: dict[str, str] | None = None,
            ready: bool = True,
            changes: Sequence[str] = (),
        ) -> Operator:
            kubeconfig = through.kubeconfig(token) if through else control_plane.kubeconfig
            settings = {"SANDBOXPOOL_PROBE_IMAGE": objects.PROBE_IMAGE, **(env or {})}
            operator = Operator(kubeconfig, Path(folder), own_namespace, settings, name, changes)
            started.append(operator)
            operator.start(ready=ready)
            return operator

        try:
            yield start
        finally:
            for operator in started:
                operator.kill()
    empty(admin, own_namespace)
    admin.delete("Namespace", own_namespace)
    for runtime in admin.list("SandboxRuntime"):
        admin.delete("SandboxRuntime", runtime["metadata"]["name"])


@pytest.fixture
def start_operator(
    control_plane: ControlPlane,
    controllers: Controllers,
    admin: Api,
    namespace: str,
    request: pytest.FixtureRequest,
) -> Iterator[StartOperator]:
    """Starts replicas of the operator, which end with the test."""
    started: list[Operator] = request.node.stash.setdefault(OPERATORS, [])
    with operators(control_plane, admin, f"{namespace}-system", started) as start:
        yield start


@pytest.fixture
def operator(start_operator: StartOperator, nodes: FakeNodes) -> Operator:
    """One running operator, with the fake nodes and the real controllers."""
    return start_operator()


@pytest.fixture
def served(admin: Api) -> Callable[[str], bool]:
    """Whether a kind is served: for tests that can do without a CRD."""

    def ask(kind: str) -> bool:
        try:
            admin.list(kind, everywhere=True)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    return ask
