"""Nodes that must not be used, under a whole operator that labels them."""

from __future__ import annotations

from typing import Any

import pytest

from sandboxpool.kube.errors import ApiError
from support.simulation.admission import CHECK, CREATE, Plugin
from support.simulation.apiserver import Object
from support.simulation.network import SimulatedClient
from support.simulation.people import template_of
from support.simulation.world import World

EXCLUDED = "excluded.sandboxpool.io/runsc"


def tolerating() -> Object:
    template = template_of("registry.example/a:1")
    template["spec"]["tolerations"] = [{"operator": "Exists"}]
    return template


def exclusions(world: World, node: str) -> dict[str, str]:
    found = world.server.find("nodes", node)
    assert found is not None
    labels = found["metadata"].get("labels", {})
    return {key: value for key, value in labels.items() if key.startswith("excluded.")}


def relabel(world: World, node: str, **labels: str) -> None:
    found = world.server.find("nodes", node)
    assert found is not None
    changed = {**found["metadata"].get("labels", {}), **labels}
    world.change("nodes", found, metadata={**found["metadata"], "labels": changed})


def creates(world: World) -> int:
    return sum(r.method == "POST" and r.path.endswith("/pods") for _, r in world.network.writes)


def node_writes(world: World) -> int:
    return sum("/api/v1/nodes/" in request.path for _, request in world.network.writes)


def on(world: World, node: str) -> list[Object]:
    return [pod for pod in world.pods() if pod["spec"].get("nodeName") == node]


def serving(world: World) -> str:
    pool = world.pool()
    assert pool is not None
    found = {c["type"]: c for c in pool["status"]["conditions"]}["NodesServing"]
    return f"{found['reason']}: {found['message']}"


@pytest.mark.parametrize("act", ["cordon", "lose_node"])
def test_a_template_that_tolerates_everything_makes_no_storm(act: str) -> None:
    """kube-scheduler puts its pods on such a node, which is soon the emptiest."""
    with World(seed=1) as world:
        world.make_pool("pool", 4, template=tolerating())
        world.run(60)
        (first, *_) = world.controllers.nodes
        world.nature(act, first)
        world.run(5)
        assert exclusions(world, first) == {EXCLUDED: "Unavailable"}
        before = creates(world)
        world.run(300)
        assert creates(world) - before <= 4, "each is replaced once at most"
        assert len(world.ready()) >= 4


def test_nodes_have_the_labels_that_are_true_and_no_others() -> None:
    with World(seed=1) as world:
        first, second, third = world.controllers.nodes
        relabel(world, third, **{EXCLUDED: "Forged", "excluded.sandboxpool.io/gone": "NotServing"})
        world.make_pool("pool", 2)
        world.nature("set_node", second, cordoned=False, serves=False)
        world.run(30)
        assert [exclusions(world, n) for n in (first, second, third)] == [
            {},
            {EXCLUDED: "NotServing"},
            {},
        ]
        relabel(world, second, **{EXCLUDED: "NotIsolating"})
        world.run(5)
        assert exclusions(world, second) == {EXCLUDED: "NotServing"}, "corrected at once"
        world.crash()
        before = node_writes(world)
        world.run(120)
        assert node_writes(world) == before, "a new leader takes none away by mistake"
        pool = world.pool()
        assert pool is not None
        world.delete("sandboxpools", pool)
        world.run(30)
        assert exclusions(world, second) == {}, "nobody minds any more"


def test_no_sandbox_is_put_on_a_node_that_does_not_serve_before_that_has_its_label() -> None:
    with World(seed=1, nodes=4) as world:
        *others, good = world.controllers.nodes
        for node in others:
            world.nature("set_node", node, cordoned=False, serves=False)
        world.make_pool("pool", 6)
        world.run(60)
        assert len(world.ready()) == 6
        assert {pod["spec"]["nodeName"] for pod in world.pods()} == {good}
        assert creates(world) == 6, "none was in vain"


FORBIDDEN = ApiError(
    403,
    "Forbidden",
    'nodes "node" is forbidden: User "operator" cannot patch resource "nodes" in API group ""',
)


def test_without_the_right_to_label_nodes_pods_name_hostnames(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    patch = SimulatedClient.merge_patch
    denied = True

    async def deny(client: SimulatedClient, path: str, body: Any) -> bytes:
        if denied and path.startswith("/api/v1/nodes/"):
            raise FORBIDDEN
        return await patch(client, path, body)

    monkeypatch.setattr(SimulatedClient, "merge_patch", deny)
    with World(seed=1) as world:
        *_, bad = world.controllers.nodes
        world.nature("set_node", bad, cordoned=False, serves=False)
        world.make_pool("pool", 4)
        world.run(60)
        assert len(world.ready()) == 4
        assert on(world, bad) == []
        assert serving(world).startswith("ExcludedByHostname: ")
        assert "Karpenter" in serving(world)
        denied = False
        world.run(1500)
        assert exclusions(world, bad) == {EXCLUDED: "NotServing"}
        assert serving(world).startswith("SomeNodesNotServing: ")


def selects(team: str) -> Plugin:
    """Adds a node selector, as PodNodeSelector does for a namespace."""

    def answer(pod: Object) -> Object:
        return {**pod, "spec": {**pod["spec"], "nodeSelector": {"team": team}}}

    return Plugin(answer, on=frozenset({CREATE, CHECK}))


def test_a_namespaces_node_selector_counts_as_admission_adds_it() -> None:
    """The pool's own nodes are those that its pods can go to, whatever the template says."""
    with World(seed=1) as world:
        first, second, third = world.controllers.nodes
        relabel(world, first, team="a")
        plugin = world.server.admission.add(selects("a"))
        world.make_pool("pool", 2)
        world.run(60)
        assert {pod["spec"]["nodeName"] for pod in world.pods()} == {first}
        assert serving(world) == "HandlerServed: 1 of 1 eligible nodes serve 'runsc'"
        # The selector is changed, and the next pod that is made shows it.
        world.server.admission.remove(plugin)
        world.server.admission.add(selects("b"))
        relabel(world, second, team="b")
        relabel(world, third, team="b")
        world.change_pool("pool", replicas=3)
        world.run(120)
        assert serving(world) == "HandlerServed: 2 of 2 eligible nodes serve 'runsc'"
        # Where nobody makes a pod, it is found out in the end.
        world.server.admission.plugins[:] = [selects("a")]
        world.run(1000)
        assert serving(world) == "HandlerServed: 1 of 1 eligible nodes serve 'runsc'"


def test_a_class_that_changes_counts_before_admission_knows_it() -> None:
    """Admission caches classes: the dry run after a change may not have its scheduling yet."""
    with World(seed=1) as world:
        first, *_ = world.controllers.nodes
        relabel(world, first, team="a")
        node = world.server.find("nodes", first)
        assert node is not None
        taint = {"key": "team", "value": "a", "effect": "NoSchedule"}
        world.change("nodes", node, spec={**node["spec"], "taints": [taint]})
        world.make_pool("pool", 1)
        world.run(60)
        assert serving(world) == "HandlerServed: 2 of 2 eligible nodes serve 'runsc'"
        pool = world.pool()
        assert pool is not None
        changed = world.server.find("runtimeclasses", pool["spec"]["runtimeClassName"])
        assert changed is not None
        scheduling = {
            "nodeSelector": {"team": "a"},
            "tolerations": [{"key": "team", "operator": "Exists"}],
        }
        world.server.update("runtimeclasses", changed, "user", scheduling=scheduling)
        world.run(60)
        assert serving(world) == "HandlerServed: 1 of 1 eligible nodes serve 'runsc'"
