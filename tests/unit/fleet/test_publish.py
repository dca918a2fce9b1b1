"""What is told of runtimes on the nodes themselves, against an API server in memory."""

from typing import Any

import msgspec
import pytest

from sandboxpool.api.core import Node
from sandboxpool.cache import Cluster
from sandboxpool.fleet.publish import NodePublisher, handler_labels
from sandboxpool.kube.errors import ApiError
from sandboxpool.reasons import Reason
from sandboxpool.runtimes.evidence import Evidence, Isolation, software_of
from sandboxpool.runtimes.nodes import NodeFacts
from support.builders import NOW, facts, node, runtime

PATH = "/api/v1/nodes/node-1"
LABEL = "runtime.sandboxpool.io/"


class Nodes:
    """Takes patches of one node; applies none, so that tests say themselves what is there."""

    def __init__(self) -> None:
        self.labels: list[Any] = []
        self.conditions: list[Any] = []
        self.error: ApiError | None = None

    async def merge_patch(self, path: str, body: Any) -> bytes:
        assert path == PATH
        if self.error is not None:
            raise self.error
        self.labels.append(body["metadata"]["labels"])
        return b"{}"

    async def strategic_patch(self, path: str, body: Any) -> bytes:
        assert path == PATH + "/status"
        self.conditions.append(body["status"]["conditions"])
        return b"{}"


class World:
    def __init__(self, of_node: Node, *handlers: str) -> None:
        self.api = Nodes()
        self.cluster = Cluster()
        self.node = of_node
        self.cluster.nodes.put(None, of_node)
        for handler in handlers or ("runsc",):
            self.cluster.classes[handler] = runtime(handler, handler)
        self.publisher = NodePublisher(
            client=self.api,  # type: ignore[arg-type]  # the two methods that it calls
            cluster=self.cluster,
            get=lambda name: self.node if name == self.node.metadata.name else None,
            wall=lambda: NOW,
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
    found = handler_labels(facts(handlers=handlers, labels={"zone": "a", **labels}), {"runsc"})
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
    assert world.cluster.quarantines.fail(
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


async def test_a_node_without_the_handler_says_so() -> None:
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
