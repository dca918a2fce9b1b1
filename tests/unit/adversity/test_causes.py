"""Sandboxes that cannot start for a cause of their own: it is named, and concerns nobody else."""

from __future__ import annotations

from support.simulation.apiserver import Object, labels
from support.simulation.network import SimulatedClient
from support.simulation.world import World

LACKING = "registry.example/lacking:1"
HOUR = 3600.0


def condition(world: World, type_: str, pool: str) -> tuple[str, str, str]:
    found = world.pool(pool)
    assert found is not None
    (one,) = [c for c in found["status"]["conditions"] if c["type"] == type_]
    return one["status"], one["reason"], one["message"]


def uids(pods: list[Object]) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods}


def count_looks(monkeypatch: object) -> list[str]:
    """The paths of what is read with a selector of one pod, from now on."""
    looked: list[str] = []
    send = SimulatedClient._send

    async def counted(self: SimulatedClient, method: str, path: str, *rest: object) -> bytes:
        params = rest[1] if len(rest) > 1 else None
        if isinstance(params, dict) and "involvedObject.uid" in params.get("fieldSelector", ""):
            looked.append(params["fieldSelector"])
        return await send(self, method, path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(SimulatedClient, "_send", counted)  # type: ignore[attr-defined]
    return looked


def test_a_missing_secret_is_named_moves_nothing_and_is_seldom_asked_about(
    monkeypatch: object,
) -> None:
    looked = count_looks(monkeypatch)
    with World(seed=1) as world:
        world.make_pool("healthy", 4)
        world.run(60)
        healthy = uids(world.ready("healthy"))
        world.controllers.unmountable.add(LACKING)
        for index in range(5):
            world.make_pool(f"lacking-{index}", 3, image=LACKING, startup={"timeoutSeconds": 10})
        world.run(60)
        made = uids(world.pods())
        assert len(made) == 4 + 5 * 3
        for index in range(5):
            status, reason, message = condition(world, "Warm", f"lacking-{index}")
            assert (status, reason) == ("False", "VolumeMountFailed")
            assert 'secret "absent" not found' in message
        world.run(HOUR)
        # No sandbox was made again, whoever it belongs to, and no node is kept from anybody.
        assert uids(world.pods()) == made
        assert uids(world.ready("healthy")) == healthy
        for index in range(5):
            assert condition(world, "NodesServing", f"lacking-{index}")[1] == "HandlerServed"
        # Once when they were slow, and ever more seldom while they are held.
        assert len(set(looked)) == 15
        assert 15 <= len(looked) <= 15 * 8
        world.controllers.unmountable.clear()
        world.run(60)
        assert uids(world.pods()) == made
        assert condition(world, "Warm", "lacking-0")[0] == "True"
        leader = world.leader()
        assert leader is not None
        assert not leader.operator.components.event_reader._known


def test_a_cold_start_reports_what_it_waits_for_and_is_bound_when_that_exists() -> None:
    with World(seed=2) as world:
        world.controllers.unmountable.add(LACKING)
        world.make_pool("pool", 0, image=LACKING, startup={"timeoutSeconds": 10})
        world.make_claim("claim", onEmpty="Create", bindTimeoutSeconds=600)
        world.run(60)
        claim = world.claim("claim")
        assert claim is not None
        (bound,) = [c for c in claim["status"]["conditions"] if c["type"] == "Bound"]
        assert bound["reason"] == "VolumeMountFailed"
        assert 'secret "absent" not found' in bound["message"]
        world.controllers.unmountable.clear()
        world.run(60)
        assert world.phase("claim") == "Bound"


def test_a_sandbox_without_a_known_cause_is_given_up_with_what_was_checked() -> None:
    with World(seed=3) as world:
        for node in world.controllers.nodes.values():
            node.seconds = (50.0, 60.0)
        world.make_pool("pool", 1, startup={"timeoutSeconds": 15})
        world.run(40)
        status, reason, message = condition(world, "Warm", "pool")
        assert (status, reason) == ("False", "SandboxStartTimeout")
        assert "no cause was found in the pod's conditions, containers and 0 events" in message
        assert all(labels(pod) for pod in world.pods())
