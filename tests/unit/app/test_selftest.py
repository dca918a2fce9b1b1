"""What `helm test` concludes from two looks at a deployed operator."""

import asyncio

import pytest

from sandboxpool.api import names
from sandboxpool.app import selftest
from sandboxpool.app.selftest import Seen, problems
from sandboxpool.kube.errors import ApiError
from support.scriptedapi import Call, ScriptedApi

pytestmark = pytest.mark.looptime

CLASSES = "/apis/node.k8s.io/v1/runtimeclasses"
RUNTIMES = f"/apis/{names.API_VERSION}/sandboxruntimes"
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/system/leases/{names.DEFAULT_RELEASE}"


def seen(leader: str = "pod-a_1", renewed: str = "t0", **found: set[str]) -> Seen:
    classes = frozenset(found.get("classes", {"gvisor"}))
    return Seen(leader, renewed, classes, frozenset(found.get("runtimes", {"gvisor"})))


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (seen(renewed="t1"), ""),
        (seen("pod-b_2"), ""),
        (seen(renewed="t1", runtimes={"gvisor", "deleted"}), ""),
        (seen(), "pod-a_1 holds the lease and does not renew it"),
        (seen(""), "no replica leads"),
        (seen(renewed="t1", classes={"gvisor", "kata", "clh"}), "RuntimeClasses clh, kata"),
    ],
)
def test_what_is_missing(now: Seen, expected: str) -> None:
    found = problems(seen(), now)
    assert [expected in one for one in found] == ([True] if expected else [])


class Cluster(ScriptedApi):
    """One whose leader renews its lease each time that somebody looks, if it works."""

    def __init__(self, *, working: bool = True) -> None:
        super().__init__(lambda: 0.0)
        self.renewals = 0
        self.objects[CLASSES] = self.objects[RUNTIMES] = {
            "items": [{"metadata": {"name": "gvisor"}}]
        }
        self.before = self.renew
        if working:
            self.put(LEASE, {"spec": {"holderIdentity": "pod-a_1"}})

    def renew(self, call: Call) -> None:
        if call.path == LEASE and LEASE in self.objects:
            self.renewals += 1
            self.objects[LEASE]["spec"]["renewTime"] = f"t{self.renewals}"


async def run(cluster: Cluster, *, runtimes: bool = True) -> list[str]:
    return await selftest.test(
        cluster, "system", names.DEFAULT_RELEASE, runtimes=runtimes, seconds=60
    )


async def test_an_operator_that_works_passes_after_two_looks() -> None:
    cluster = Cluster()
    assert await run(cluster) == []
    assert cluster.renewals == 2


async def test_one_that_has_just_been_installed_is_waited_for() -> None:
    cluster = Cluster(working=False)
    cluster.objects[RUNTIMES] = {"items": []}
    cluster.fail("GET", LEASE, ApiError(503, "", "not yet"))
    asyncio.get_running_loop().call_later(
        20, lambda: cluster.put(LEASE, {"spec": {"holderIdentity": "pod-a_1"}})
    )
    asyncio.get_running_loop().call_later(
        40, lambda: cluster.put(RUNTIMES, cluster.objects[CLASSES])
    )
    assert await run(cluster) == []
    assert 40 <= asyncio.get_running_loop().time() < 45


async def test_one_that_is_away_is_told_of_after_a_minute() -> None:
    cluster = Cluster(working=False)
    assert await run(cluster) == ["no replica leads: see `kubectl logs` of the operator's pods"]
    assert 60 <= asyncio.get_running_loop().time() < 62


async def test_one_that_writes_no_sandboxruntimes_is_not_asked_for_them() -> None:
    cluster = Cluster()
    cluster.objects[RUNTIMES] = {"items": []}
    assert await run(cluster, runtimes=False) == []
    assert cluster.sent("GET", "sandboxruntimes") == []
