"""The bridge in a simulated cluster: it stands whatever happens, and without a guard it does not.

`make model SIMULATIONS=5000` is a longer search.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from sandboxpool.kube.client import ApiClient
from sandboxpool.opensandbox import decide, reconcile
from sandboxpool.opensandbox.kinds import BatchSandbox
from sandboxpool.opensandbox.mirror import STATUS_SECONDS
from sandboxpool.opensandbox.names import ANNOTATION_ENDPOINTS
from sandboxpool.opensandbox.outlook import READY_SECONDS
from sandboxpool.opensandbox.reconcile import SandboxReconciler
from support.simulation.apiserver import Place
from support.simulation.bridgestorm import bridge_hand_over, bridge_storm, renewals
from support.simulation.bridgeworld import OPEN, BridgeWorld
from support.simulation.effort import SIMULATIONS
from support.simulation.opensandbox import Answer

# So many at most until one shows that a guard is missing.
ENOUGH = 150


@pytest.mark.parametrize("seed", range(math.ceil(SIMULATIONS / 2)))
def test_the_bridge_stands_a_storm(seed: int) -> None:
    bridge_storm(seed)


@pytest.mark.parametrize("seed", range(SIMULATIONS))
def test_the_last_request_of_a_dead_bridge_does_no_harm(seed: int) -> None:
    bridge_hand_over(seed)


@pytest.mark.parametrize("seed", range(math.ceil(SIMULATIONS / 4)))
def test_a_renewal_in_time_wins_against_the_expiry(seed: int) -> None:
    renewals(seed)


CREATE = {
    ("POST", "sandboxclaims", ""): 1,
    ("PATCH", "batchsandboxes", ""): 1,
    ("PATCH", "batchsandboxes", "status"): 1,
}


@pytest.mark.parametrize(("slow", "least", "most"), [(0.05, 0.0, 1.0), (0.6, 1.5, READY_SECONDS)])
def test_a_warm_sandbox_costs_three_writes_also_if_the_cluster_is_slow(
    slow: float, least: float, most: float
) -> None:
    with BridgeWorld() as world:
        world.make_pool(replicas=10, labels=OPEN)
        world.run(30.0)
        world.weather.slow = slow
        before = len(world.network.writes)
        names = [f"sandbox-{i}" for i in range(5)]
        for name in names:
            assert world.post(name)
        world.run(most)
        requests = world.opensandbox.requests.values()
        assert {request.answer for request in requests} == {Answer.RUNNING}
        took = [request.answered_at - request.posted_at for request in requests]
        assert least < max(took) < most
        world.run(60.0 - most)
        writes = bridge_writes(world, before)
        for name in names:
            assert Counter(what for what, of in writes if of == name) == CREATE
        # Whatever the number of requests: at most one for each time that people may have to wait.
        mirrored = [what for what, of in writes if of == "pool"]
        assert set(mirrored) == {("PATCH", "pools", "status")}
        assert len(mirrored) <= 60.0 / STATUS_SECONDS
        for name in names:
            world.kill(name)
        world.converge()
        assert not world.server.all("sandboxclaims")


def bridge_writes(world: BridgeWorld, before: int) -> list[tuple[tuple[str, str, str], str]]:
    """What the bridge has written since: verb, resource and subresource, and the name."""
    found = []
    for _, request in world.network.writes[before:]:
        place = Place.of(request.path)
        by_bridge = place.resource in ("batchsandboxes", "pools") or (
            place.resource == "sandboxclaims" and request.method in ("POST", "DELETE")
        )
        if by_bridge:
            name = place.name or request.body["metadata"]["name"]
            found.append(((request.method, place.resource, place.subresource), name))
    return found


# --- Without a guard -----------------------------------------------------------------------------


def without_the_order_of_writes(patch: pytest.MonkeyPatch) -> None:
    """The status is written before the address."""
    annotate, write = SandboxReconciler._annotate, SandboxReconciler._write_status
    put_off: dict[str, Any] = {}

    async def put_it_off(
        self: SandboxReconciler, sandbox: BatchSandbox, annotations: Any
    ) -> BatchSandbox | None:
        put_off[sandbox.uid] = annotations
        return sandbox

    async def then_annotate(self: SandboxReconciler, sandbox: BatchSandbox, wanted: Any) -> bool:
        written = await write(self, sandbox, wanted)
        latest = self._latest(sandbox.key)
        if latest is not None and sandbox.uid in put_off:
            await annotate(self, latest, put_off.pop(sandbox.uid))
        return written

    patch.setattr(SandboxReconciler, "_annotate", put_it_off)
    patch.setattr(SandboxReconciler, "_write_status", then_annotate)


def without_the_version_at_expiry(patch: pytest.MonkeyPatch) -> None:
    async def delete(self: ApiClient, path: str, *, uid: str, **_: Any) -> bytes:
        return await self._request("DELETE", path, body={"preconditions": {"uid": uid}})

    patch.setattr(ApiClient, "delete", delete)


def without_owners_of_claims(patch: pytest.MonkeyPatch) -> None:
    made = reconcile._claim_of

    def nobodys(*given: Any) -> Any:
        claim: Any = made(*given)
        del claim["metadata"]["ownerReferences"]
        return claim

    patch.setattr(reconcile, "_claim_of", nobodys)


def without_a_second_look_at_the_claim(patch: pytest.MonkeyPatch) -> None:
    """A claim that the cache does not show is gone."""
    lose = SandboxReconciler._lose

    async def at_once(self: SandboxReconciler, *given: Any, verify: bool) -> float | None:
        del verify
        return await lose(self, *given, verify=False)

    patch.setattr(SandboxReconciler, "_lose", at_once)


def without_taking_the_address_back(patch: pytest.MonkeyPatch) -> None:
    annotate = SandboxReconciler._annotate

    async def keep(
        self: SandboxReconciler, sandbox: BatchSandbox, annotations: Any
    ) -> BatchSandbox | None:
        if annotations == {ANNOTATION_ENDPOINTS: "[]"}:
            return sandbox
        return await annotate(self, sandbox, annotations)

    patch.setattr(SandboxReconciler, "_annotate", keep)


def without_the_version_of_the_status(patch: pytest.MonkeyPatch) -> None:
    sent = ApiClient.replace_status

    async def replace(self: ApiClient, path: str, *given: Any, **how: Any) -> bytes:
        conditions = {} if "/batchsandboxes/" in path else how
        return await sent(self, path, *given, **conditions)

    patch.setattr(ApiClient, "replace_status", replace)


def without_the_version_of_the_address(patch: pytest.MonkeyPatch) -> None:
    sent = ApiClient.merge_patch

    async def unconditional(self: ApiClient, path: str, body: Any) -> bytes:
        if "/batchsandboxes/" in path:
            metadata = {k: v for k, v in body["metadata"].items() if k != "resourceVersion"}
            body = {**body, "metadata": metadata}
        return await sent(self, path, body)

    patch.setattr(ApiClient, "merge_patch", unconditional)


def without_the_address_before_the_status(patch: pytest.MonkeyPatch) -> None:
    """An address counts as given away only when the status says that the sandbox runs."""
    read = vars(BatchSandbox)["endpoints"].fget
    patch.setattr(
        BatchSandbox, "endpoints", property(lambda self: read(self) if self.published else None)
    )


def without_the_uid_of_owners(patch: pytest.MonkeyPatch) -> None:
    """The claim of a former request of the same name is this one's."""
    patch.setattr(decide.View, "has_claim", property(lambda self: self.claim is not None))


def without_giving_back(patch: pytest.MonkeyPatch) -> None:
    """A request that has failed keeps its claim."""

    async def keep(*_: Any) -> None:
        return

    patch.setattr(SandboxReconciler, "_delete_claim", keep)


@pytest.mark.parametrize(
    ("take_out", "play"),
    [
        (without_the_order_of_writes, bridge_storm),
        (without_the_version_at_expiry, renewals),
        (without_owners_of_claims, bridge_storm),
        (without_a_second_look_at_the_claim, bridge_storm),
        (without_taking_the_address_back, bridge_storm),
        (without_the_version_of_the_status, bridge_hand_over),
        (without_the_version_of_the_address, bridge_hand_over),
        (without_the_address_before_the_status, bridge_hand_over),
        (without_the_uid_of_owners, bridge_storm),
        (without_giving_back, bridge_storm),
    ],
)
def test_a_missing_guard_is_missed(
    take_out: Callable[[pytest.MonkeyPatch], None],
    play: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take_out(monkeypatch)
    for seed in range(ENOUGH):
        try:
            play(seed)
        except AssertionError:
            return
    pytest.fail("nothing went wrong without it")
