"""Several releases of the chart in one cluster, each with namespaces of its own.

All of them run with the accounts and the settings that Helm has installed, each through a proxy of
its own, which shows what it has asked for.
"""

import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from fakekubelet import FakeNodes, texts
from localcluster.controlplane import ControlPlane
from sandboxpool.api import names
from support import Api, ApiError, chart, eventually, objects
from support.controllers import Controllers
from support.faultproxy import FaultProxy, Seen
from support.fixtures import OPERATORS, empty
from support.operator_process import Operator
from support.sandboxes import gvisor_class, phase, pool_status, warm_pool

# Of one namespace that is refused a request is sent every ten seconds.
OPENING_SECONDS = 40.0


@dataclass
class Release:
    """A release of the chart with one replica of its operator.

    Attributes:
        name: Of its Deployment, its Lease and its account.
        own: The namespace that it is installed in.
        namespaces: Those that it is limited to.
    """

    name: str
    own: str
    namespaces: tuple[str, ...]
    proxy: FaultProxy
    operator: Operator

    def namespaces_asked(self) -> set[str]:
        """The namespaces of all objects that it has read or written."""
        found = (re.search(r"/namespaces/([^/]+)/", seen.path) for seen in self.proxy.requests())
        return {match[1] for match in found if match is not None}

    def forbidden(self) -> list[Seen]:
        """Its requests that RBAC or admission has refused."""
        return [seen for seen in self.proxy.requests() if seen.status == 403]

    def asked_for_all(self) -> set[str]:
        """The resources that it has listed or watched without a namespace."""
        return {
            seen.path.rsplit("/", 1)[-1]
            for seen in self.proxy.requests("GET")
            if "/namespaces/" not in seen.path and seen.query
        }


class World:
    """The cluster, and the releases that a test has installed in it."""

    def __init__(
        self, plane: ControlPlane, admin: Api, nodes: FakeNodes, folder: Path, stack: ExitStack
    ) -> None:
        self.plane = plane
        self.admin = admin
        self.nodes = nodes
        self.folder = folder
        self.operators: list[Operator] = []
        self._stack = stack
        self._namespaces: set[str] = set()

    def namespace(self, name: str) -> Api:
        """Create a namespace if it does not exist; return its client."""
        if name not in self._namespaces:
            self.admin.create(objects.namespace(name))
            self._namespaces.add(name)
            self._stack.callback(self.admin.delete, "Namespace", name)
            self._stack.callback(empty, self.admin, name)
        return self.admin.within(name)

    def release(
        self, name: str, own: str, *namespaces: str, manages: bool = True, start: bool = True
    ) -> Release:
        """Install a release, and start its operator."""
        for namespace in (own, *namespaces):
            self.namespace(namespace)
        values = (
            f"watchNamespaces={{{','.join(namespaces)}}}",
            f"sandboxRuntimes.manage={str(manages).lower()}",
            "admission.enabled=true",
        )
        self._stack.enter_context(chart.release(self.plane, self.folder, own, *values, name=name))
        proxy = self._stack.enter_context(FaultProxy(self.plane.url, self.plane.ca_file))
        fullname = name if "sandboxpool" in name else f"{name}-sandboxpool"
        operator = chart.operator_of(
            self.plane, proxy, self.folder, own, fullname=fullname, name=f"operator-{name}"
        )
        self.operators.append(operator)
        self._stack.callback(operator.kill)
        if start:
            operator.start()
        return Release(fullname, own, namespaces, proxy, operator)


@pytest.fixture
def world(
    control_plane: ControlPlane,
    controllers: Controllers,
    admin: Api,
    nodes: FakeNodes,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[World]:
    del controllers  # They run.
    with ExitStack() as stack:
        world = World(control_plane, admin, nodes, tmp_path, stack)
        request.node.stash[OPERATORS] = world.operators
        yield world
    for runtime in admin.list("SandboxRuntime"):
        admin.delete("SandboxRuntime", runtime["metadata"]["name"])


def holder(api: Api, release: Release) -> str:
    found = api.find("Lease", release.name, release.own)
    return str(found["spec"].get("holderIdentity") or "") if found is not None else ""


@pytest.mark.parametrize("apart", [True, False], ids=["own namespaces", "one namespace"])
def test_releases_side_by_side_do_not_meet(world: World, apart: bool) -> None:
    """Both probe, quarantine and replace on the same nodes, and bind claims, at the same time."""
    stem = "apart" if apart else "together"
    one = world.release("sandboxpool", f"{stem}-one", f"{stem}-a", f"{stem}-b")
    two = world.release("team", f"{stem}-two" if apart else one.own, f"{stem}-c", manages=False)
    api, (a, c) = world.admin, map(world.namespace, (f"{stem}-a", f"{stem}-c"))
    gvisor_class(api)
    for mine in (a, c):
        mine.create(objects.pool(replicas=2, isolationProof="PerNode"))
    for mine in (a, c):
        pool_status(mine, warm=2, timeout=40)
        mine.create(objects.claim())
        phase(mine, "Bound")
    world.nodes.fail("runsc", texts.SHIM_MISSING, ["gvisor-0"])
    for mine in (a, c):
        mine.create(objects.pool("pinned", template=objects.pinned_template("gvisor-0")))
    for release in (one, two):
        # Each finds out by a probe of its own, and writes that down for itself.
        eventually(
            partial(_quarantines, api, release),
            until=lambda found: "gvisor-0" in found,
            message=f"{release.name} has quarantined gvisor-0",
            timeout=40,
        )
    label = f"{names.EXCLUSION_PREFIX}runsc"
    eventually(
        lambda: label in api.get("Node", "gvisor-0")["metadata"]["labels"],
        message="the release that manages runtimes labels the node",
    )
    for mine in (a, c):
        mine.delete("SandboxPool", "pinned")

    assert one.forbidden() == []
    assert two.forbidden() == []
    assert one.namespaces_asked() == {one.own, *one.namespaces, "default"}
    assert two.namespaces_asked() == {two.own, *two.namespaces}
    assert one.asked_for_all() == {"nodes", "runtimeclasses", "sandboxruntimes"}
    assert two.asked_for_all() == {"nodes", "runtimeclasses"}
    assert not two.proxy.requests("*", r"/sandboxruntimes")
    assert not two.proxy.writes(r"/nodes/")
    assert len({holder(api, one), holder(api, two)} - {""}) == 2
    # A probe that is deleted twice is one that both have taken for a leftover of their own.
    deleted = [
        {seen.path for seen in release.proxy.requests("DELETE", rf"/{release.own}/pods/")}
        for release in (one, two)
    ]
    assert all(deleted)
    assert deleted[0] & deleted[1] == set()
    eventually(
        lambda: api.get("SandboxRuntime", "gvisor")["status"]["pools"],
        until=lambda pools: pools == [f"{stem}-a/pool"],
        message="it names the pools of the release that manages it",
    )


def _quarantines(api: Api, release: Release) -> set[str]:
    """The nodes with a quarantine in the release's records."""
    return {
        node
        for found in api.list("ConfigMap", release.own)
        if found["metadata"]["name"].startswith(f"{release.name}-nodes-")
        for node, record in (found.get("data") or {}).items()
        if json.loads(record)["quarantines"]
    }


def test_a_namespace_that_does_not_exist_stops_no_other_and_is_watched_once_it_does(
    world: World,
) -> None:
    release = world.release("sandboxpool", "late-own", "late-a", "late-b", start=False)
    world.admin.delete("Namespace", "late-b")
    eventually(lambda: world.admin.find("Namespace", "late-b") is None, message="it is gone")
    release.operator.start()
    a = world.namespace("late-a")
    warm_pool(a)
    a.create(objects.claim())
    phase(a, "Bound")
    log = release.operator.log.read_text()
    assert "namespace late-b is not watched" in log
    assert "namespace late-a is watched" in log
    assert {"late-b"} == {
        seen.path.split("/namespaces/")[1].split("/")[0] for seen in release.forbidden()
    }

    world.admin.create(objects.namespace("late-b"))
    b = world.admin.within("late-b")
    b.create(objects.pool())
    # Without permissions it is like a namespace that does not exist.
    assert not b.list("Pod")
    chart.run_helm(
        world.plane, world.folder, "upgrade", "sandboxpool", str(chart.CHART),
        *("--namespace", "late-own", "--reuse-values"),
    )  # fmt: skip
    began = time.monotonic()
    pool_status(b, warm=1, timeout=OPENING_SECONDS)
    b.create(objects.claim())
    phase(b, "Bound")
    assert time.monotonic() - began < OPENING_SECONDS
    assert "namespace late-b is watched" in release.operator.log.read_text()


def refused(api: Api, name: str, **labels: str) -> bool:
    """Whether admission refuses an administrator's pod with labels of the operator."""
    body = objects.pod(name)
    body["metadata"]["labels"] = {f"{names.GROUP}/{k}": v for k, v in labels.items()}
    try:
        api.create(body, dryRun="All")
    except ApiError as error:
        if error.status != 403:
            raise
        return True
    return False


def test_policies_guard_the_namespaces_of_their_release_and_no_others(world: World) -> None:
    world.release("team", "guard-own", "guard-a", manages=False, start=False)
    a, own, other = map(world.namespace, ("guard-a", "guard-own", "guard-other"))
    ours = "team-sandboxpool"
    # A policy takes effect a moment after it was created.
    eventually(lambda: refused(a, "forged", pool="pool"), message="its sandboxes are guarded")
    assert refused(a, "forged", pool="pool", release="another"), "no label is a way around it"
    assert refused(own, "forged", probe="x", release=ours)
    assert not refused(own, "probe", probe="x", release="another"), "that release guards it itself"
    assert not refused(other, "free", pool="pool")


def test_helm_refuses_a_release_that_meets_another(world: World) -> None:
    world.release("sandboxpool", "met-own", "met-a", start=False)
    world.namespace("met-other")
    for values in (
        ("watchNamespaces={met-a}", "sandboxRuntimes.manage=false"),
        ("watchNamespaces={met-other}", "sandboxRuntimes.manage=true", "rbac.userRoles=false"),
    ):
        second = chart.release(world.plane, world.folder, "met-other", *values, name="second")
        with pytest.raises(AssertionError, match="cannot be imported into the current release"):
            second.__enter__()
