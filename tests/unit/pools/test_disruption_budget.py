"""The budget over claimed sandboxes: made, mended, removed, and told of."""

from typing import Any

import pytest

from sandboxpool.api import names
from sandboxpool.api.reasons import Reason
from sandboxpool.kube.errors import ApiError
from sandboxpool.pools.disruption_budget import BUDGET_RESYNC_SECONDS, MAX_INT32, budget_of
from support.builders import NAMESPACE, POOL_UID, pool
from support.simulation.apiserver import Object, Request
from support.simulation.world import World

BUDGETS = "poddisruptionbudgets"
PROTECT: dict[str, Any] = {"claims": {"disruption": "Protect"}}
ALLOW: dict[str, Any] = {"claims": {"disruption": "Allow"}}


def budget(world: World) -> Object | None:
    return world.server.find(BUDGETS, "pool-claims", "default")


def said(world: World) -> tuple[str, str] | None:
    found = world.pool()
    assert found is not None
    conditions = (found.get("status") or {}).get("conditions", [])
    listed = [c for c in conditions if c["type"] == "ClaimsProtected"]
    return (listed[0]["status"], listed[0]["reason"]) if listed else None


def requests(world: World) -> list[Request]:
    return [r for _, r in world.network.writes if r.resource == BUDGETS]


def test_it_covers_the_pools_claimed_pods_and_is_deleted_with_it() -> None:
    body = budget_of(pool())
    assert body["spec"]["selector"] == {
        "matchLabels": {names.LABEL_POOL_UID: POOL_UID},
        "matchExpressions": [{"key": names.LABEL_CLAIM_UID, "operator": "Exists"}],
    }
    # More than there can be: the disruption controller lets none of them go.
    assert body["spec"]["minAvailable"] == MAX_INT32 == 2_147_483_647
    assert "maxUnavailable" not in body["spec"]
    assert body["spec"]["unhealthyPodEvictionPolicy"] == "IfHealthyBudget"
    (owner,) = body["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("SandboxPool", POOL_UID)
    assert owner["blockOwnerDeletion"] is False
    assert body["metadata"]["namespace"] == NAMESPACE


def test_a_pool_that_allows_disruption_asks_for_nothing() -> None:
    with World(seed=1) as world:
        world.make_pool("pool", 1)
        world.run(200)
        assert (budget(world), said(world), requests(world)) == (None, None, [])


def test_the_budget_is_repaired_and_costs_claims_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with World(seed=1) as world:
        handle, looks = type(world.server).handle, []

        def count(server: Any, request: Request, **how: Any) -> bytes:
            looks.extend(["GET"] * (request.method == "GET" and request.resource == BUDGETS))
            return handle(server, request, **how)

        monkeypatch.setattr(type(world.server), "handle", count)
        world.make_pool("pool", 2, **PROTECT)
        world.run(10)
        assert said(world) == ("True", "DisruptionBudgetKept")
        for index in range(5):
            world.make_claim(f"claim-{index}")
            world.run(20)
        assert [r.method for r in requests(world)] == ["POST"]
        assert len(looks) <= 3, "one a minute, however much the pool has to do"

        # Somebody deletes it, or has it let go.
        made = budget(world)
        assert made is not None
        world.delete(BUDGETS, made)
        world.run(BUDGET_RESYNC_SECONDS + 5)
        made = budget(world)
        assert made is not None
        for spec in ({**made["spec"], "minAvailable": 0}, {**made["spec"], "maxUnavailable": 1}):
            world.change(BUDGETS, made, spec=spec)
            world.run(BUDGET_RESYNC_SECONDS + 5)
            mended = budget(world)
            assert mended is not None
            assert mended["spec"] == made["spec"]

        world.change_pool("pool", **ALLOW)
        world.run(5)
        assert (budget(world), said(world)) == (None, None)
        before = len(requests(world))
        world.run(600)
        assert len(requests(world)) == before


def test_the_next_leader_removes_what_the_former_one_made() -> None:
    with World(seed=1) as world:
        world.make_pool("pool", 1, **PROTECT)
        # Whenever the former one ends: there is none that the status does not tell of.
        while budget(world) is None:
            world.run(0.05)
        assert said(world) is not None
        world.crash()
        world.change_pool("pool", **ALLOW)
        world.run(60)
        assert (budget(world), said(world)) == (None, None)


def test_a_budget_of_somebody_else_is_reported_and_left_alone() -> None:
    other = {
        "metadata": {"name": "pool-claims", "namespace": "default"},
        "spec": {"minAvailable": 1},
    }
    with World(seed=1) as world:
        world.server.create(BUDGETS, other, by="user")
        world.make_pool("pool", 1, **PROTECT)
        world.run(20)
        assert said(world) == ("False", "DisruptionBudgetConflict")
        world.change_pool("pool", **ALLOW)
        world.run(20)
        assert said(world) is None
        found = budget(world)
        assert found is not None
        assert found["spec"] == other["spec"]
        # Once it is gone, there is nothing in the way.
        world.change_pool("pool", **PROTECT)
        world.run(20)
        world.delete(BUDGETS, found)
        world.run(20)
        assert said(world) == ("True", "DisruptionBudgetKept")


@pytest.mark.parametrize("status", [403, 500])
def test_without_the_permission_the_pool_works_and_names_it(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with World(seed=1) as world:
        handle = type(world.server).handle

        def refuse(server: Any, request: Request, **how: Any) -> bytes:
            if request.resource == BUDGETS:
                raise ApiError(status, "Refused", "poddisruptionbudgets: no")
            return handle(server, request, **how)

        monkeypatch.setattr(type(world.server), "handle", refuse)
        world.make_pool("pool", 2, **PROTECT)
        world.run(60)
        reason = Reason.BUDGET_REFUSED if status == 403 else Reason.BUDGET_PENDING
        assert said(world) == ("False" if status == 403 else "Unknown", reason)
        found = world.pool()
        assert found is not None
        (one,) = [c for c in found["status"]["conditions"] if c["type"] == "ClaimsProtected"]
        assert ("ClusterRole" in one["message"]) is (status == 403)
        assert len(world.ready()) == 2
        world.change_pool("pool", **ALLOW)
        world.run(20)
        assert said(world) == ("True", Reason.BUDGET_REFUSED), "it may still be there"
        monkeypatch.setattr(type(world.server), "handle", handle)
        world.run(120)
        assert said(world) is None
