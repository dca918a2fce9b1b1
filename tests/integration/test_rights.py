"""What the operator sends, compared with what the chart grants it: neither is more than the other.

That is so for all namespaces, and for a release that is limited to some, with and without the
SandboxRuntimes. The operator runs with the rights of the chart's own account and does all that it
can do. Whoever gives it something new to do adds a step to the drive, a right to
`sandboxpool.app.permissions` and a rule to the chart; without any of these a test here or in
tests/unit/test_chart.py fails.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from fakekubelet import FakeNodes, texts
from localcluster.controlplane import ControlPlane
from sandboxpool.api import names
from sandboxpool.cluster.pools import parse
from sandboxpool.pools.disruption_budget import budget_of
from support import Api, chart, eventually, objects
from support.controllers import Controllers
from support.faultproxy import FaultProxy
from support.operator_process import Operator
from support.rights import sent
from support.sandboxes import gvisor_class, phase, pool_status, warm_pool

NAMESPACE = "chart-rights"
# What can be switched on is, so that all rights are there. The namespace is that of the test.
SCOPES = {
    "all": ("publishOnNodes=true", "metrics.authentication=true"),
    "some": (
        *("watchNamespaces={NAMESPACE}", "publishOnNodes=true"),
        "metrics.authentication=true",
    ),
    "some, without runtimes": (
        *("watchNamespaces={NAMESPACE}", "sandboxRuntimes.manage=false"),
        "metrics.authentication=true",
    ),
}
# What any account may do, by Kubernetes' own roles.
EVERYBODY = {("authorization.k8s.io", "selfsubjectaccessreviews", "create")}
DRIVE_SECONDS = 180


@dataclass
class Drive:
    """An operator with the chart's rights and settings, and the world around it."""

    api: Api
    plane: ControlPlane
    proxy: FaultProxy
    nodes: FakeNodes
    folder: Path
    own: str
    manages_runtimes: bool

    def start(self, name: str) -> Operator:
        """Starts a replica as the Deployment does."""
        return chart.operator_of(self.plane, self.proxy, self.folder, self.own, name=name)

    def lose_an_answer(self, method: str, pattern: str) -> None:
        """Makes the operator look after a write whose outcome it does not know."""
        self.proxy.lose_response(method, pattern)

    def seen(self, method: str, pattern: str) -> None:
        """Waits until the operator has sent such a request."""
        eventually(
            lambda: bool(self.proxy.requests(method, pattern)),
            message=f"{method} {pattern} is sent",
            timeout=30,
        )


@pytest.fixture
def drive(
    control_plane: ControlPlane,
    controllers: Controllers,
    api: Api,
    proxy: FaultProxy,
    nodes: FakeNodes,
    namespace: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Drive]:
    del controllers  # They run.
    values = [value.replace("NAMESPACE", namespace) for value in SCOPES[request.param]]
    own = f"{NAMESPACE}-{namespace}"
    with chart.installed(control_plane, tmp_path, own, *values):
        manages = "sandboxRuntimes.manage=false" not in values
        yield Drive(api, control_plane, proxy, nodes, tmp_path, own, manages)
    api.delete("Namespace", own)
    for runtime in api.list("SandboxRuntime"):
        api.delete("SandboxRuntime", runtime["metadata"]["name"])


# --- The steps -----------------------------------------------------------------------------------


def prove(drive: Drive) -> None:
    """Pools are made warm and proven; what is known is published and written down."""
    if drive.manages_runtimes:
        drive.lose_an_answer("POST", r"/sandboxruntimes$")
        blind = drive.proxy.stall_watches(r"/sandboxruntimes")
        gvisor_class(drive.api)
        drive.seen("GET", r"/sandboxruntimes/gvisor$")
        blind.release()
    warm_pool(drive.api, isolationProof="PerNode", claims={"ttlSecondsAfterFinished": 1})
    drive.seen("DELETE", rf"/namespaces/{drive.own}/pods/")
    if drive.manages_runtimes:
        drive.seen("PATCH", r"/api/v1/nodes/[^/]+/status$")
    drive.seen("POST", r"/configmaps$")


def claim(drive: Drive) -> None:
    """A claim is bound by a write whose answer is lost, ends, and is deleted."""
    drive.lose_an_answer("PATCH", r"/pods/pool-")
    drive.api.create(objects.claim(ttlSeconds=2))
    phase(drive.api, "Bound")
    drive.seen("DELETE", r"/sandboxclaims/claim$")


def claim_in_vain(drive: Drive) -> None:
    """A claim that can never be served is ended after a look at the pool itself."""
    drive.api.create(objects.claim("wrong", runtimeClassName="another"))
    phase(drive.api, "Failed", "wrong")
    drive.api.delete("SandboxClaim", "wrong")


def find_none_to_hand_out(drive: Drive) -> None:
    """A claim that does not wait fails after a look at the node of what is kept from it."""
    drive.api.patch_spec("SandboxPool", "pool", replicas=1)
    pool_status(drive.api, warm=1)
    (pod,) = eventually(
        partial(drive.api.list, "Pod"), until=lambda pods: len(pods) == 1, message="one is left"
    )
    drive.api.patch_spec("SandboxPool", "pool", paused=True)
    drive.nodes.cordon(pod["spec"]["nodeName"])
    pool_status(drive.api, warm=0)
    drive.api.create(objects.claim("in-haste", onEmpty="Fail"))
    phase(drive.api, "Failed", "in-haste")
    drive.seen("GET", r"/api/v1/nodes/[^/]+$")
    drive.api.delete("SandboxClaim", "in-haste")
    drive.nodes.cordon(pod["spec"]["nodeName"], on=False)
    drive.api.patch_spec("SandboxPool", "pool", paused=False)


def scale_to_nothing(drive: Drive) -> None:
    """Sandboxes that are too many are deleted."""
    drive.api.patch_spec("SandboxPool", "pool", replicas=0)
    pool_status(drive.api, warm=0)
    eventually(partial(drive.api.list, "Pod"), until=lambda pods: not pods, message="all are gone")


def create_on_claim(drive: Drive) -> None:
    """A sandbox is made for a claim, fails, and gives way if the claim is still there."""
    drive.nodes.hang("runsc")
    drive.api.create(objects.claim("cold", onEmpty="Create"))
    (pod,) = eventually(partial(drive.api.list, "Pod"), until=bool, message="one is made")
    drive.api.patch_status("Pod", pod["metadata"]["name"], {"phase": "Failed"})
    drive.seen("GET", r"/sandboxclaims/cold$")
    drive.nodes.heal("runsc")
    phase(drive.api, "Bound", "cold")


def break_a_runtime(drive: Drive) -> None:
    """A node's runtime breaks: a probe finds out, and what is known changes."""
    drive.nodes.fail("runsc", texts.SHIM_MISSING, ["gvisor-0"])
    drive.api.create(
        objects.pool("pinned", template=objects.pinned_template("gvisor-0"), replicas=1)
    )
    drive.seen("PATCH", r"/configmaps/sandboxpool-nodes-")
    drive.api.delete("SandboxPool", "pinned")


def protect(drive: Drive) -> None:
    """A budget over claimed sandboxes is made, put right where it was altered, and removed."""
    pool = drive.api.create(objects.pool("guarded", claims={"disruption": "Protect"}, replicas=0))
    budget = f"/apis/policy/v1/namespaces/{pool['metadata']['namespace']}/poddisruptionbudgets"
    drive.seen("POST", r"/poddisruptionbudgets$")
    drive.api.patch_spec("SandboxPool", "guarded", claims={"disruption": "Allow"})
    drive.seen("DELETE", r"/poddisruptionbudgets/guarded-claims$")
    body = budget_of(parse(pool, None))
    drive.plane.request("POST", budget, {**body, "spec": {**body["spec"], "minAvailable": 1}})
    drive.api.patch_spec("SandboxPool", "guarded", claims={"disruption": "Protect"})
    drive.seen("PATCH", r"/poddisruptionbudgets/guarded-claims$")
    drive.api.delete("SandboxPool", "guarded")


def remove_a_class(drive: Drive) -> None:
    """What is told of a class goes with it."""
    if not drive.manages_runtimes:
        return
    drive.api.create(objects.runtime_class("short-lived", "runsc"))
    eventually(partial(drive.api.get, "SandboxRuntime", "short-lived"), message="it is told of")
    drive.api.delete("RuntimeClass", "short-lived")
    drive.seen("GET", r"/runtimeclasses/short-lived$")
    drive.seen("DELETE", r"/sandboxruntimes/short-lived$")


STEPS: tuple[Callable[[Drive], None], ...] = (
    prove,
    claim,
    claim_in_vain,
    find_none_to_hand_out,
    scale_to_nothing,
    create_on_claim,
    break_a_runtime,
    protect,
    remove_a_class,
)


def scrape(drive: Drive, operator: Operator) -> None:
    """Metrics are read by somebody who may; the API server says so."""
    request = urllib.request.Request(
        f"{operator.url}/metrics", headers={"Authorization": f"Bearer {drive.plane.admin_token}"}
    )
    with urllib.request.urlopen(request, timeout=15) as answer:
        assert answer.status == 200


def change_leaders(drive: Drive, first: Operator, second: Operator) -> None:
    """One stands by, watches the lease, and takes over."""

    def holder() -> str:
        found = drive.api.get("Lease", names.DEFAULT_RELEASE, drive.own)
        return str(found["spec"].get("holderIdentity") or "")

    former = holder()
    second.start()
    drive.seen("GET", r"/leases\?.*watch=")
    assert first.terminate() == 0
    eventually(holder, until=lambda now: now not in ("", former), message="the other leads")


# --- The comparison ------------------------------------------------------------------------------


@pytest.mark.timeout(DRIVE_SECONDS)
@pytest.mark.parametrize("drive", SCOPES, indirect=True)
def test_what_is_sent_is_granted_and_what_is_granted_is_sent(drive: Drive) -> None:
    first, second = drive.start("first"), drive.start("second")
    try:
        first.start()
        for step in STEPS:
            step(drive)
        scrape(drive, first)
        change_leaders(drive, first, second)
    finally:
        for operator in (first, second):
            operator.kill()
    forbidden = [seen for seen in drive.proxy.requests() if seen.status == 403]
    assert forbidden == []

    granted = chart.granted_to(drive.plane, drive.own, chart.RELEASE)
    # A dry run asks for the same right, but what asks for a right just to see it does not need it.
    did = [s for seen in drive.proxy.requests() if (s := sent(seen)) is not None]
    real = {
        s
        for seen in drive.proxy.requests()
        if "dryRun" not in seen.query and (s := sent(seen)) is not None
    }
    unasked = {
        (s.group, s.resource, s.verb)
        for s in did
        if not any(s.is_covered_by(right) for right in granted)
    }
    assert unasked - EVERYBODY == set(), "sent and not granted"
    unused = {right for right in granted if not any(s.is_covered_by(right) for s in real)}
    assert {str(right) for right in unused} == set(), "granted and never used"
