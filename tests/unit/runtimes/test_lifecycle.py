"""What is announced of a node, and what merely says which pods it is for."""

import msgspec
import pytest

from sandboxpool.api.core import Condition, Node, Taint
from sandboxpool.runtimes.host_state import HostState
from sandboxpool.runtimes.lifecycle import PLANNED_CONDITION, REMOVAL_CONDITIONS, REMOVAL_TAINTS
from sandboxpool.runtimes.nodes import NodeFacts, node_facts
from support.builders import facts, node


def with_condition(type_: str, status: str = "True") -> NodeFacts:
    plain = node()
    listed = [*plain.status.conditions, Condition(type_, status)]
    changed: Node = msgspec.structs.replace(
        plain, status=msgspec.structs.replace(plain.status, conditions=listed)
    )
    return node_facts(changed)


def with_taint(key: str, effect: str = "NoSchedule") -> NodeFacts:
    return facts(taints=[Taint(key=key, effect=effect, value="any")])


def stands(given: NodeFacts) -> tuple[bool, bool]:
    """Whether a sandbox there is handed out, and whether it is where there is no better one."""
    host_state = HostState(given, "runsc")
    return host_state.allocatable, host_state.ignoring_cordon().allocatable


@pytest.mark.parametrize("effect", ["NoSchedule", "NoExecute"])
@pytest.mark.parametrize("key", sorted(REMOVAL_TAINTS))
def test_a_taint_of_whoever_removes_nodes_is_the_end(key: str, effect: str) -> None:
    given = with_taint(key, effect)
    assert stands(given) == (False, False)
    assert given.being_removed
    assert given.unschedulable_reason == f"is about to go (taint {key})"


@pytest.mark.parametrize("type_", sorted(REMOVAL_CONDITIONS))
def test_so_is_a_condition_once_it_is_true(type_: str) -> None:
    assert stands(with_condition(type_)) == (False, False)
    for status in ("False", "Unknown"):
        assert with_condition(type_, status) == facts()


@pytest.mark.parametrize(
    "given", [facts(unschedulable=True), with_condition(PLANNED_CONDITION)], ids=["cordon", "plan"]
)
def test_what_is_only_closed_will_do_where_there_is_no_better(given: NodeFacts) -> None:
    assert stands(given) == (False, True)
    assert not given.being_removed
    assert given.unschedulable_reason


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
    assert (given.being_removed, given.unschedulable_reason) == (False, "")


def test_a_node_that_is_cordoned_and_about_to_go_is_about_to_go() -> None:
    taint = Taint(key="karpenter.sh/disrupted", effect="NoSchedule")
    assert stands(facts(unschedulable=True, taints=[taint])) == (False, False)
    assert stands(facts(leaving=True)) == (False, False)
