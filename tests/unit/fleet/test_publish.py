"""What is told of runtimes on the nodes themselves, against an API server in memory."""

import contextlib
from typing import Any

import msgspec
import pytest

from sandboxpool.api.core import Node
from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.fleet.publish import (
    DENIED_SECONDS,
    LABEL_PREFIX,
    NodePublisher,
    handler_labels,
    label_changes,
)
from sandboxpool.kube.errors import ApiError, KubeError, UnknownOutcomeError
from sandboxpool.runtimes.evidence import Evidence, Isolation, software_of
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.verdict import Verdict
from support.builders import NOW, facts, node, pool, runtime

PATH = "/api/v1/nodes/node-1"
LABEL = "runtime.sandboxpool.io/"


class Nodes:
    """Takes patches of one node; applies none, so that tests say themselves what is there."""

    def __init__(self) -> None:
        self.labels: list[Any] = []
        self.conditions: list[Any] = []
        self.error: KubeError | None = None
        self.obeys = True

    async def merge_patch(self, path: str, body: Any) -> bytes:
        assert path == PATH
        if self.error is not None:
            raise self.error
        self.labels.append(body["metadata"]["labels"])
        return msgspec.json.encode(body if self.obeys else {})

    async def strategic_patch(self, path: str, body: Any) -> bytes:
        assert path == PATH + "/status"
        self.conditions.append(body["status"]["conditions"])
        return b"{}"


class World:
    def __init__(self, of_node: Node, *handlers: str, exclude: bool = False) -> None:
        self.api = Nodes()
        self.now = 0.0
        self.cluster = ClusterCache(wall=lambda: NOW)
        self.node = of_node
        self.cluster.nodes.put(None, of_node)
        for handler in handlers or ("runsc",):
            self.cluster.classes[handler] = runtime(handler, handler)
        self.publisher = NodePublisher(
            client=self.api,  # type: ignore[arg-type]  # the two methods that it calls
            cluster=self.cluster,
            get=lambda name: self.node if name == self.node.metadata.name else None,
            wall=lambda: NOW,
            clock=lambda: self.now,
            exclude=exclude,
            publish=not exclude,
            on_change=lambda: None,
        )

    @property
    def facts(self) -> NodeFacts:
        found = self.cluster.nodes.get("node-1")
        assert found is not None
        return found

    async def condition(self) -> tuple[str, str]:
        await self.publisher.reconcile("node-1")
        ((condition,),) = self.api.conditions
        assert condition["type"] == "sandboxpool.io/runsc"
        return condition["status"], condition["reason"]


def shown(of_node: Node, *conditions: tuple[str, str, str]) -> Node:
    body = msgspec.to_builtins(of_node)
    body["status"]["conditions"] += [
        {"type": type_, "status": status, "reason": reason} for type_, status, reason in conditions
    ]
    return msgspec.convert(body, Node)


@pytest.mark.parametrize(
    ("handlers", "present", "changes"),
    [
        (["runc", "runsc"], {}, {"runsc": "true"}),
        (["runc", "runsc"], {"runsc": "true"}, {}),
        (["runc"], {"runsc": "true"}, {"runsc": None}),
        (["runsc"], {"runsc": "no", "kata": "true"}, {"runsc": "true", "kata": None}),
        (None, {"runsc": "true"}, {"runsc": None}),
        (None, {}, {}),
    ],
)
def test_labels_say_what_the_node_lists(
    handlers: list[str] | None, present: dict[str, str], changes: dict[str, str | None]
) -> None:
    labels = {LABEL + key: value for key, value in present.items()}
    of_node = facts(handlers=handlers, labels={"zone": "a", **labels})
    found = label_changes(of_node, LABEL_PREFIX, handler_labels(of_node, {"runsc"}))
    assert found == {LABEL + key: value for key, value in changes.items()}


async def test_what_stands_there_already_is_not_written_again() -> None:
    at_rest = shown(
        node(labels={LABEL + "runsc": "true"}),
        ("sandboxpool.io/runsc", "Unknown", "EvidencePending"),
    )
    world = World(at_rest)
    again = await world.publisher.reconcile("node-1")
    assert not world.api.labels
    assert not world.api.conditions
    # Somebody else may write there, of which nobody is told.
    assert again is not None
    assert 60 < again < 1000


async def test_a_quarantine_is_a_condition_and_no_change_of_the_label() -> None:
    """A probe obeys the class's selector: without the label the node could never recover."""
    world = World(node(labels={LABEL + "runsc": "true"}))
    assert world.cluster.quarantines.record_failure(
        world.facts, "runsc", Reason.SHIM_MISSING, "no shim", now=NOW
    )
    assert await world.condition() == ("False", "ShimMissing")
    assert not world.api.labels


@pytest.mark.parametrize(
    ("isolation", "status", "reason"),
    [
        (Isolation.PROVEN, "True", "IsolationProven"),
        (Isolation.NOT_PROVEN, "False", "IsolationNotProven"),
        (Isolation.UNAVAILABLE, "Unknown", "EvidenceUnavailable"),
    ],
)
async def test_evidence_is_a_condition(isolation: Isolation, status: str, reason: str) -> None:
    world = World(node())
    seen = Evidence(isolation, NOW, software_of(world.facts), "class-uid", "", "seen")
    world.cluster.evidence.put("node-1", "runsc", seen)
    assert await world.condition() == (status, reason)


async def test_a_node_without_the_handler_is_labelled() -> None:
    assert await World(node(handlers=["runc"])).condition() == ("False", "NoNodeServes")


async def test_a_node_that_cannot_say_is_unknown() -> None:
    assert await World(node(handlers=None)).condition() == ("Unknown", "HandlersUnknown")


async def test_conditions_of_handlers_that_no_class_names_go() -> None:
    world = World(
        shown(
            node(labels={LABEL + "runsc": "true"}),
            ("sandboxpool.io/runsc", "Unknown", "EvidencePending"),
            ("sandboxpool.io/kata", "True", "IsolationProven"),
            ("example.com/mine", "True", "Fine"),
        )
    )
    await world.publisher.reconcile("node-1")
    assert world.api.conditions == [[{"$patch": "delete", "type": "sandboxpool.io/kata"}]]


async def test_a_node_that_is_not_ready_keeps_what_was_known() -> None:
    world = World(node(ready=False))
    await world.publisher.reconcile("node-1")
    assert not world.api.labels
    assert not world.api.conditions


async def test_a_node_that_is_gone_is_no_error() -> None:
    world = World(node())
    assert await world.publisher.reconcile("other") is None
    world.api.error = ApiError(404, "NotFound", "gone")
    assert await world.publisher.reconcile("node-1") is None
    world.api.error = ApiError(403, "Forbidden", "no")
    with pytest.raises(ApiError):
        await world.publisher.reconcile("node-1")


# --- Labels that keep pods away ------------------------------------------------------------------

EXCLUDED = "excluded.sandboxpool.io/runsc"
FORBIDDEN = ApiError(
    403,
    "Forbidden",
    'nodes "node-1" is forbidden: User "system:serviceaccount:a:b" cannot patch resource "nodes" '
    'in API group "" at the cluster scope',
)


class Excluding(World):
    """A pool that has been looked at, and one node."""

    def __init__(self, of_node: Node, **of_pool: Any) -> None:
        super().__init__(of_node, exclude=True)
        self.marked: list[str] = []
        self.cluster.nodes.on_exclusion_change = self.marked.append
        self.pool = pool(**of_pool)

    def judge(self) -> Verdict:
        return self.cluster.verdict(self.pool, self.cluster.classes["runsc"])

    def show(self, of_node: Node) -> None:
        self.cluster.nodes.put(self.node, of_node)
        self.node = of_node

    async def written(self) -> dict[str, str | None]:
        self.api.labels.clear()
        await self.publisher.reconcile("node-1")
        return self.api.labels[0] if self.api.labels else {}


@pytest.mark.parametrize(
    ("of_node", "label"),
    [
        (node(), None),
        (node(handlers=None), None),
        (node(handlers=["runc"]), "NotServing"),
        (node(handlers=["runc"], ready=False), "NotServing"),
        (node(unschedulable=True), None),
    ],
)
async def test_a_node_that_must_not_be_used_is_labelled_and_so_no_longer(
    of_node: Node, label: str | None
) -> None:
    world = Excluding(of_node)
    world.judge()
    assert await world.written() == ({EXCLUDED: label} if label else {})
    labels = {EXCLUDED: "Forged", "excluded.sandboxpool.io/gone": "NotServing", "zone": "a"}
    world.show(node(labels=labels))
    assert await world.written() == dict.fromkeys(labels.keys() - {"zone"})


async def test_no_label_is_written_for_what_no_pool_uses() -> None:
    world = Excluding(node(handlers=["runc"]))
    assert await world.written() == {}
    world.judge()
    assert world.marked == ["node-1"], "a new pool has nodes labelled"
    world.marked.clear()
    world.cluster.forget_pool(world.pool.uid)
    assert world.marked == ["node-1"], "and the last that goes has them freed"
    world.show(node(handlers=["runc"], labels={EXCLUDED: "NotServing"}))
    assert await world.written() == {EXCLUDED: None}


async def test_a_handler_that_no_class_names_any_more_keeps_pods_off_no_node() -> None:
    world = Excluding(node(handlers=["runc"], labels={EXCLUDED: "NotServing"}))
    world.judge()
    assert await world.written() == {}
    world.cluster.classes.clear()
    assert await world.written() == {EXCLUDED: None}


async def test_what_one_pool_keeps_away_from_has_that_pools_label() -> None:
    world = Excluding(node())
    world.cluster.nodes.put(None, node("node-2"))
    world.cluster.avoided_nodes.add(world.pool.uid, "node-1", NOW)
    assert world.judge().exclusions_pending == 1
    assert world.marked == ["node-1"]
    key = f"excluded.sandboxpool.io/pool-{world.pool.uid}"
    assert await world.written() == {key: "Avoided"}
    world.show(node(labels={key: "Avoided"}))
    assert world.judge().exclusions_pending == 0
    world.cluster.avoided_nodes.forget_node("node-1")
    world.judge()
    assert world.marked == ["node-1", "node-1"]
    assert await world.written() == {key: None}


async def test_pods_wait_until_the_label_is_seen() -> None:
    world = Excluding(node(handlers=["runc"]), isolationProof="PerNode")
    world.cluster.nodes.put(None, node("node-2"))
    assert world.judge().exclusions_pending == 1
    world.show(node(handlers=["runc"], labels={EXCLUDED: "NotIsolating"}))
    assert world.judge().exclusions_pending == 0, (
        "whatever it says keeps those away that want proof"
    )
    no_proof = Excluding(node(handlers=["runc"]), isolationProof="None")
    assert no_proof.judge().exclusions_pending == 1
    no_proof.show(node(handlers=["runc"], labels={EXCLUDED: "NotIsolating"}))
    assert no_proof.judge().exclusions_pending == 1


@pytest.mark.parametrize(
    "error",
    [
        ApiError(422, "Invalid", "a webhook says no"),
        ApiError(500, "InternalError", "failed calling webhook"),
        ApiError(404, "NotFound", "the cache shows a node that is gone"),
        UnknownOutcomeError("no answer"),
        None,
    ],
)
async def test_pods_wait_for_no_label_that_a_node_does_not_get(error: KubeError | None) -> None:
    world = Excluding(node(handlers=["runc"]))
    assert world.judge().exclusions_pending == 1
    world.api.error = error
    # Without an error a plugin takes the label off again.
    world.api.obeys = error is not None
    with contextlib.suppress(KubeError):
        await world.publisher.reconcile("node-1")
    assert world.judge().exclusions_pending == 0
    world.api.error, world.api.obeys = None, True
    await world.publisher.reconcile("node-1")
    assert world.judge().exclusions_pending == 1, "it comes after all"


async def test_where_nodes_may_not_be_patched_pods_name_hostnames_until_they_may() -> None:
    world = Excluding(node(handlers=["runc"]))
    world.judge()
    world.api.error = FORBIDDEN
    assert await world.written() == {}
    assert (world.judge().by_hostname, world.judge().excluded) == (True, ("node-1",))
    assert world.judge().exclusions_pending == 0
    world.api.error = None
    assert await world.written() == {}, "it is not tried for each node and change"
    world.now = DENIED_SECONDS
    assert await world.written() == {EXCLUDED: "NotServing"}
    assert (world.judge().by_hostname, world.judge().excluded) == (False, ())


async def test_a_node_that_has_just_joined_is_looked_at_again_when_its_time_is_over() -> None:
    joined = node(handlers=["runc"], joined=NOW - 100)
    world = Excluding(joined)
    world.judge()
    assert await world.written() == {}
    again = await world.publisher.reconcile("node-1")
    assert again == pytest.approx(201.0)
