"""Nodes and runtimes: what each cell says, and how a large fleet is summed up."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxpool.api import names
from sandboxpool.cli.dashboard.matrix import (
    GROUP_LABELS,
    MAX_NODE_ROWS,
    UNGROUPED,
    CellState,
    Fleet,
    matrix,
    node_rows,
)
from support.fleetobjects import SHIM, issue, node, runtime, runtime_class

Object = dict[str, Any]
GKE, EKS, *_ = GROUP_LABELS


def state(
    made: Object, of: Object, *, nodes: list[Object] | None = None, **fleet: Any
) -> CellState:
    every = [made, *(nodes or [])]
    rows = node_rows(Fleet(runtimes=[of], nodes=every, **fleet))
    return next(row for row in rows if row.name == made["metadata"]["name"]).cells[0].state


GVISOR = runtime("gvisor", "runsc")


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (node("n", "runsc"), CellState.SERVING),
        (node("n", "runc"), CellState.MISSING),
        (node("n", "runsc", reports=False), CellState.UNKNOWN),
        # The list of a node that is not Ready may be old.
        (node("n", "runsc", ready=False), CellState.UNKNOWN),
        (node("n", "runsc", excluded={"runsc": "Quarantined"}), CellState.QUARANTINED),
        (node("n", "runsc", excluded={"runsc": "Unavailable"}), CellState.UNPROVEN),
        (node("n", "runsc", excluded={"runsc": "NotIsolating"}), CellState.NOT_ISOLATING),
        (
            node("n", "runsc", excluded={"runsc": "NotIsolatingNoUserNamespaces"}),
            CellState.NOT_ISOLATING,
        ),
        (node("n", reports=False, excluded={"runsc": "NotServing"}), CellState.MISSING),
        # It excludes the node for pools with user namespaces only.
        (node("n", "runsc", excluded={"runsc": "NoUserNamespaces"}), CellState.SERVING),
        (node("n", "runsc", excluded={"kata": "Quarantined"}), CellState.SERVING),
    ],
)
def test_a_cell_says_what_the_node_and_the_operator_say(made: Object, expected: CellState) -> None:
    assert state(made, GVISOR) is expected


def test_a_class_that_is_missing_makes_every_cell_unknown() -> None:
    assert state(node("n", "runsc"), runtime("gvisor", "")) is CellState.UNKNOWN


def test_a_node_that_the_class_does_not_select_is_no_failure() -> None:
    classes = [runtime_class("gvisor", "runsc", {"sandbox": "yes"})]
    made = node("n", "runc")
    chosen = node("n", "runc", labels={"sandbox": "yes"})
    assert state(made, GVISOR, classes=classes) is CellState.NOT_SELECTED
    assert state(chosen, GVISOR, classes=classes) is CellState.MISSING


def test_nodes_are_proven_where_the_proofs_are_as_many_as_the_nodes_that_serve() -> None:
    others = [node("m", "runsc"), node("o", "runc")]
    two, one = runtime("gvisor", "runsc", proven=2), runtime("gvisor", "runsc", proven=1)
    assert state(node("n", "runsc"), two, nodes=others) is CellState.PROVEN
    # Which of the two it is, the API does not say.
    assert state(node("n", "runsc"), one, nodes=others) is CellState.SERVING
    assert state(node("n", "runc"), two, nodes=others) is CellState.MISSING


def test_a_node_with_other_software_has_no_proof() -> None:
    made = node("n", "runsc")
    made["status"]["nodeInfo"]["kubeletVersion"] = "v1.37.0"
    of = runtime("gvisor", "runsc", proven=5)
    assert state(made, of, nodes=[node("m", "runsc")]) is CellState.SERVING


def test_the_operators_condition_on_the_node_names_it_proven() -> None:
    made = node("n", "runsc")
    published = {"type": f"{names.GROUP}/runsc", "status": "True", "message": "other kernel"}
    made["status"]["conditions"].append(published)
    rows = node_rows(Fleet(runtimes=[GVISOR], nodes=[made, node("m", "runsc")]))
    cells = {row.name: row.cells[0] for row in rows}
    assert (cells["n"].state, cells["n"].detail) == (CellState.PROVEN, "other kernel")
    assert cells["m"].state is CellState.SERVING


def test_a_node_that_an_issue_names_is_suspected_with_the_words_of_the_issue() -> None:
    of = runtime("gvisor", "runsc", proven=2, issues=[issue("ShimMissing", "n", message=SHIM)])
    rows = node_rows(Fleet(runtimes=[of], nodes=[node("n", "runsc"), node("m", "runsc")]))
    cells = {row.name: row.cells[0] for row in rows}
    assert (cells["n"].state, cells["n"].detail) == (CellState.SUSPECTED, f"ShimMissing: {SHIM}")
    assert cells["m"].state is CellState.PROVEN


def test_a_quarantine_outweighs_the_issue_that_explains_it() -> None:
    of = runtime("gvisor", "runsc", issues=[issue("ShimMissing", "n", message=SHIM)])
    made = node("n", "runsc", excluded={"runsc": "Quarantined"})
    cell = node_rows(Fleet(runtimes=[of], nodes=[made]))[0].cells[0]
    assert (cell.state, cell.detail) == (CellState.QUARANTINED, f"ShimMissing: {SHIM}")


def test_quarantined_nodes_that_no_label_names_are_counted() -> None:
    of = runtime("gvisor", "runsc", nodes={"quarantined": 3})
    made = [node("n", "runsc", excluded={"runsc": "Quarantined"}), node("m", "runsc")]
    assert matrix(Fleet(runtimes=[of], nodes=made)).columns[0].unnamed == 2
    # Without the right to read nodes, there is nothing that could name them.
    assert matrix(Fleet(runtimes=[of], nodes=None)).columns[0].unnamed == 0


def test_without_the_right_to_read_nodes_the_counts_are_left() -> None:
    of = runtime("gvisor", "runsc", nodes={"eligible": 3, "serving": 2, "broken": "x"})
    made = matrix(Fleet(runtimes=[of], nodes=None))
    assert made.total is None
    assert made.columns[0].counts == {"eligible": 3, "serving": 2}


def test_the_label_that_most_nodes_have_groups_them() -> None:
    made = [
        node("a", "runsc", labels={GKE: "pool-1"}),
        node("b", "runsc", labels={EKS: "group-1"}),
        node("c", "runsc", labels={EKS: "group-1"}),
    ]
    grid = matrix(Fleet(runtimes=[GVISOR], nodes=made))
    assert grid.label == EKS
    assert {(group.name, group.total) for group in grid.groups} == {
        ("group-1", 2),
        (UNGROUPED, 1),
    }
    chosen = matrix(Fleet(runtimes=[GVISOR], nodes=made, label="rack"))
    assert [group.name for group in chosen.groups] == [UNGROUPED]


def test_groups_with_problems_come_first() -> None:
    made = [
        node("a", "runsc", labels={GKE: "a-fine"}),
        node("b", "runsc", labels={GKE: "b-broken"}, excluded={"runsc": "Quarantined"}),
        node("c", "runsc", labels={GKE: "c-down"}, ready=False),
    ]
    groups = matrix(Fleet(runtimes=[GVISOR], nodes=made)).groups
    assert [group.name for group in groups] == ["b-broken", "c-down", "a-fine"]
    assert groups[0].cells == [[(CellState.QUARANTINED, 1)]]
    assert groups[1].not_ready == 1


def test_of_many_nodes_those_with_problems_have_rows() -> None:
    made = [node(f"n{index:04}", "runsc") for index in range(MAX_NODE_ROWS + 1)]
    made[7] = node("n0007", "runsc", excluded={"runsc": "Quarantined"})
    made[8] = node("n0008", "runsc", ready=False)
    grid = matrix(Fleet(runtimes=[GVISOR], nodes=made))
    assert not grid.complete
    # A node that is not ready is worse than a runtime on it.
    assert [row.name for row in grid.nodes] == ["n0008", "n0007"]
    assert (grid.problems, grid.total) == (2, MAX_NODE_ROWS + 1)
    assert matrix(Fleet(runtimes=[GVISOR], nodes=made[1:])).complete


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
some_nodes = st.lists(
    st.builds(
        lambda name, handlers, group, ready, reports: node(
            name, *handlers, labels=group, ready=ready, reports=reports
        ),
        st.text("abc", min_size=1, max_size=4),
        st.lists(st.sampled_from(["runsc", "kata"]), max_size=2),
        st.sampled_from([{}, {GKE: "a"}, {GKE: "b"}]),
        st.booleans(),
        st.booleans(),
    ),
    max_size=8,
    unique_by=lambda made: made["metadata"]["name"],
)


@given(made=some_nodes, proven=st.integers(0, 9))
def test_each_node_is_counted_once_for_each_runtime(made: list[Object], proven: int) -> None:
    of = [runtime("gvisor", "runsc", proven=proven), runtime("kata", "kata")]
    grid = matrix(Fleet(runtimes=of, nodes=made))
    assert sum(group.total for group in grid.groups) == len(made)
    for index in range(len(of)):
        summed: Counter[CellState] = Counter()
        for group in grid.groups:
            summed.update(dict(group.cells[index]))
        assert summed == Counter(row.cells[index].state for row in grid.nodes)


@given(made=anything, of=anything)
def test_objects_that_somebody_has_damaged_still_make_a_page(made: Any, of: Any) -> None:
    damaged = {"metadata": {"name": "n"}, "spec": made, "status": made}
    strange = {"metadata": made, "status": of}
    matrix(Fleet(runtimes=[strange, {"metadata": {}, "status": made}], nodes=[damaged, strange]))
