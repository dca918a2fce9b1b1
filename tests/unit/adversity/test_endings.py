"""Sandboxes in use that come to an end: whoever ends them, their claims say who and why."""

from __future__ import annotations

import pytest

from support.invariants import claim_uids
from support.simulation.apiserver import Object
from support.simulation.world import World


def told(world: World, type_: str = "Bound") -> str:
    """The reason of a condition of the claim."""
    claim = world.claim("claim") or {}
    return str(next(c["reason"] for c in claim["status"]["conditions"] if c["type"] == type_))


def message(world: World) -> str:
    claim = world.claim("claim") or {}
    return str(claim["status"]["conditions"][0]["message"])


def in_use(world: World) -> Object:
    """The claim's pod, once it has one."""
    world.make_pool(replicas=2)
    world.run(30.0)
    world.make_claim("claim")
    world.run(10.0)
    return next(pod for pod in world.pods() if claim_uids(pod))


@pytest.mark.parametrize(
    "reason",
    [
        "EvictionByEvictionAPI",
        "PreemptionByScheduler",
        "DeletionByTaintManager",
        "DeletionByPodGC",
    ],
)
@pytest.mark.parametrize("grace", [None, 0])
@pytest.mark.parametrize("seed", range(3))
def test_the_message_with_which_a_sandbox_is_ended_is_quoted(
    seed: int, grace: int | None, reason: str
) -> None:
    with World(seed) as world:
        world.nature("disrupt", in_use(world), reason, grace)
        world.run(60.0)
        assert world.phase("claim") == "Lost"
        assert told(world) == told(world, "Ready") == reason
        assert f"by {reason}" in message(world)
        (metric,) = [
            sample
            for family in world.processes[0].operator.metrics.registry.collect()
            for sample in family.samples
            if sample.name.endswith("_total") and sample.labels.get("result") == reason
        ]
        assert metric.value == 1.0
        posted = [e for e in world.server.all("events") if e["reason"] == reason]
        assert [e["involvedObject"]["name"] for e in posted] == ["claim"]


@pytest.mark.parametrize(
    ("how", "reason"),
    [("relieve", "Evicted"), ("run_out_of_memory", "OOMKilled"), ("end", "ContainersExited")],
)
def test_what_ends_on_its_node_is_told_by_its_kubelet(how: str, reason: str) -> None:
    with World() as world:
        world.nature(how, in_use(world))
        world.run(10.0)
        assert (world.phase("claim"), told(world)) == ("Lost", reason)


def test_a_drain_evicts_and_is_named() -> None:
    with World() as world:
        pod = in_use(world)
        world.nature("drain_node", pod["spec"]["nodeName"])
        world.run(60.0)
        assert (world.phase("claim"), told(world)) == ("Lost", "EvictionByEvictionAPI")
        assert "claims.disruption: Protect" in message(world)


def test_a_node_that_is_gone_takes_its_sandboxes_with_it() -> None:
    with World() as world:
        pod = in_use(world)
        world.nature("remove_node", pod["spec"]["nodeName"])
        world.run(120.0)
        assert (world.phase("claim"), told(world)) == ("Lost", "DeletionByPodGC")


def test_a_sandbox_that_somebody_deletes_is_said_to_be_deleted() -> None:
    with World() as world:
        world.delete("pods", in_use(world))
        world.run(30.0)
        assert (world.phase("claim"), told(world)) == ("Lost", "PodDeleted")


def test_while_a_sandbox_terminates_its_claim_has_the_cause_and_the_next_process_keeps_it() -> None:
    with World() as world:
        pod = in_use(world)
        # Its kubelet does not stop it yet.
        world.controllers.nodes[pod["spec"]["nodeName"]].alive = False
        world.nature("disrupt", pod, "PreemptionByScheduler")
        world.run(2.0)
        assert (world.phase("claim"), told(world, "Ready")) == ("Bound", "PreemptionByScheduler")
        world.restart_seconds = 60.0
        world.crash()
        world.controllers.nodes[pod["spec"]["nodeName"]].alive = True
        world.run(30.0)
        assert pod["metadata"]["name"] not in [p["metadata"]["name"] for p in world.pods()]
        world.run(120.0)
        assert (world.phase("claim"), told(world)) == ("Lost", "PreemptionByScheduler")


@pytest.mark.parametrize(("node_is_deleted", "reason"), [(False, "PodLost"), (True, "NodeLost")])
def test_what_ended_while_nobody_watched_is_not_guessed(node_is_deleted: bool, reason: str) -> None:
    with World() as world:
        pod = in_use(world)
        world.restart_seconds = 60.0
        world.crash()
        world.run(1.0)
        world.nature("disrupt", pod, "EvictionByEvictionAPI", 0)
        if node_is_deleted:
            world.nature("remove_node", pod["spec"]["nodeName"])
        world.run(120.0)
        assert (world.phase("claim"), told(world)) == ("Lost", reason)


@pytest.mark.parametrize("late", ["sandboxclaims", "nodes", "sandboxpools"])
def test_the_cause_does_not_depend_on_what_is_seen_first(late: str) -> None:
    with World() as world:
        pod = in_use(world)
        world.network.sight.delay[late] = 5.0, 20.0
        world.nature("disrupt", pod, "EvictionByEvictionAPI", 0)
        world.run(60.0)
        assert (world.phase("claim"), told(world)) == ("Lost", "EvictionByEvictionAPI")
