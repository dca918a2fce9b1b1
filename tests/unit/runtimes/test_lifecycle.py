"""What is announced of a node, and what merely says which pods it is for."""

import msgspec
import pytest

from sandboxpool.api.core import Condition, Node, Taint
from sandboxpool.runtimes.ground import Ground
from sandboxpool.runtimes.lifecycle import LEAVING_CONDITIONS, LEAVING_TAINTS, PLANNED_CONDITION
from sandboxpool.runtimes.nodes import NodeFacts, facts_of
from support.builders import facts, node


def with_condition(type_: str, status: str = "True") -> NodeFacts:
    plain = node()
    listed = [*plain.status.conditions, Condition(type_, status)]
    changed: Node = msgspec.structs.replace(
        plain, status=msgspec.structs.replace(plain.status, conditions=listed)
    )
    return facts_of(changed)


def with_taint(key: str, effect: str = "NoSchedule") -> NodeFacts:
    return facts(taints=[Taint(key=key, effect=effect, value="any")])


def stands(given: NodeFacts) -> tuple[bool, bool]:
    """Whether a sandbox there is handed out, and whether it is where there is no better one."""
    ground = Ground(given, "runsc")
    return ground.firm, ground.uncordoned().firm


@pytest.mark.parametrize("effect", ["NoSchedule", "NoExecute"])
@pytest.mark.parametrize("key", sorted(LEAVING_TAINTS))
def test_a_taint_of_whoever_removes_nodes_is_the_end(key: str, effect: str) -> None:
    given = with_taint(key, effect)
    assert stands(given) == (False, False)
    assert given.leaving
    assert given.notice == f"is about to go (taint {key})"


@pytest.mark.parametrize("type_", sorted(LEAVING_CONDITIONS))
def test_so_is_a_condition_once_it_is_true(type_: str) -> None:
    assert stands(with_condition(type_)) == (False, False)
    for status in ("False", "Unknown"):
        assert with_condition(type_, status) == facts()


@pytest.mark.parametrize(
    "given", [facts(unschedulable=True), with_condition(PLANNED_CONDITION)], ids=["cordon", "plan"]
)
def test_what_is_only_closed_will_do_where_there_is_no_better(given: NodeFacts) -> None:
    assert stands(given) == (False, True)
    assert not given.leaving
    assert given.notice


@pytest.mark.parametrize(
    "given",
    [
        with_taint("example.com/dedicated"),
        with_taint("nvidia.com/gpu", "NoExecute"),
        with_taint("DeletionCandidateOfClusterAutoscaler", "PreferNoSchedule"),
        with_taint("karpenter.sh/disruption", "PreferNoSchedule"),
        with_condition("Drained"),
        with_condition(PLANNED_CONDITION, "False"),
        with_condition("MemoryPressure"),
    ],
)
def test_what_announces_nothing_costs_no_stock(given: NodeFacts) -> None:
    assert stands(given) == (True, True)
    assert (given.leaving, given.notice) == (False, "")


def test_a_node_that_is_cordoned_and_about_to_go_is_about_to_go() -> None:
    taint = Taint(key="karpenter.sh/disrupted", effect="NoSchedule")
    assert stands(facts(unschedulable=True, taints=[taint])) == (False, False)
    assert stands(facts(leaving=True)) == (False, False)
