"""Which nodes a pod could land on: the scheduler's own rules, for what decides for ever."""

from typing import Any

import msgspec
import pytest

from sandboxpool.api.core import Taint, Toleration
from sandboxpool.api.names import OS_LABEL
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.runtimes.node_constraints import NodeConstraints, is_feasible, node_constraints_of
from sandboxpool.runtimes.nodes import node_facts
from support.builders import facts, node, runtime

HOSTNAME = "kubernetes.io/hostname"


def affinity(*terms: Any) -> dict[str, Any]:
    required = {"nodeSelectorTerms": list(terms)}
    return {
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
    }


def expressions(*requirements: Any) -> dict[str, Any]:
    return {
        "matchExpressions": [
            {"key": key, "operator": operator, "values": list(values)}
            for key, operator, *values in requirements
        ]
    }


def fits(spec: dict[str, Any], *, now: bool = True, **of_node: Any) -> bool:
    return is_feasible(node_constraints_of(spec, runtime()), facts(**of_node), now=now)


def test_a_template_without_constraints_fits_any_node() -> None:
    assert fits({})


@pytest.mark.parametrize("labels", [{}, {"zone": "b"}, {"zone": "a"}])
def test_a_selector_of_the_template_and_one_of_the_class_must_both_hold(
    labels: dict[str, str],
) -> None:
    placement = node_constraints_of(
        {"nodeSelector": {"zone": "a"}}, runtime(selector={"kvm": "yes"})
    )
    assert not is_feasible(placement, facts(labels=labels), now=True)
    assert is_feasible(placement, facts(labels={"zone": "a", "kvm": "yes"}), now=True)


def test_terms_are_alternatives_and_their_requirements_are_not() -> None:
    both = expressions(("zone", "In", "a"), ("disk", "In", "ssd"))
    other = expressions(("zone", "In", "b"))
    spec = affinity(both, other)
    assert fits(spec, labels={"zone": "a", "disk": "ssd"})
    assert fits(spec, labels={"zone": "b"})
    assert not fits(spec, labels={"zone": "a"})
    assert not fits(spec, labels={"disk": "ssd"})


@pytest.mark.parametrize(
    ("operator", "values", "label", "holds"),
    [
        ("In", ["a", "b"], "b", True),
        ("In", ["a"], "b", False),
        ("In", ["a"], None, False),
        ("NotIn", ["a"], "b", True),
        ("NotIn", ["a"], "a", False),
        ("NotIn", ["a"], None, True),
        ("Exists", [], "", True),
        ("Exists", [], None, False),
        ("DoesNotExist", [], None, True),
        ("DoesNotExist", [], "a", False),
        ("Gt", ["5"], "6", True),
        ("Gt", ["5"], "5", False),
        ("Gt", ["5"], None, False),
        ("Gt", ["5"], "many", False),
        ("Lt", ["5"], "4", True),
        ("Lt", ["5"], "5", False),
        ("Lt", ["few"], "4", False),
        ("Lt", ["5"], None, False),
        ("Newer", ["5"], "5", False),
    ],
)
def test_operators(operator: str, values: list[str], label: str | None, holds: bool) -> None:
    spec = affinity(expressions(("key", operator, *values)))
    assert fits(spec, labels={} if label is None else {"key": label}) is holds


def test_a_field_requirement_is_about_the_name_and_not_the_hostname_label() -> None:
    field = {"key": "metadata.name", "operator": "In", "values": ["node-1"]}
    spec = affinity({"matchFields": [field]})
    assert fits(spec, labels={HOSTNAME: "another"})
    assert not is_feasible(node_constraints_of(spec, runtime()), facts("node-2"), now=True)


@pytest.mark.parametrize("terms", [[], [{}], [{"matchExpressions": []}]])
def test_an_affinity_without_requirements_matches_no_node(terms: list[Any]) -> None:
    assert not fits(affinity(*terms))


def test_an_empty_term_beside_another_does_not_open_it() -> None:
    spec = affinity({}, expressions(("zone", "In", "a")))
    assert fits(spec, labels={"zone": "a"})
    assert not fits(spec, labels={"zone": "b"})


def test_preferred_affinity_forbids_nothing() -> None:
    preferred = [{"weight": 1, "preference": expressions(("zone", "In", "a"))}]
    spec = {
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
    }
    assert fits(spec)


TAINT = Taint(key="sandbox", value="gvisor", effect="NoSchedule")


@pytest.mark.parametrize(
    ("toleration", "tolerated"),
    [
        ({}, False),
        ({"operator": "Exists"}, True),
        ({"key": "sandbox", "operator": "Exists"}, True),
        ({"key": "sandbox", "value": "gvisor"}, True),
        ({"key": "sandbox", "operator": "Equal", "value": "gvisor", "effect": "NoSchedule"}, True),
        ({"key": "sandbox", "value": "kata"}, False),
        ({"key": "sandbox", "operator": "Exists", "effect": "NoExecute"}, False),
        ({"key": "other", "operator": "Exists"}, False),
    ],
)
def test_tolerations(toleration: dict[str, str], tolerated: bool) -> None:
    assert fits({"tolerations": [toleration]}, taints=[TAINT]) is tolerated


def test_tolerations_of_the_class_count() -> None:
    placement = node_constraints_of(
        {}, runtime(tolerations=[Toleration(key="sandbox", value="gvisor")])
    )
    assert is_feasible(placement, facts(taints=[TAINT]), now=True)


def test_every_taint_must_be_tolerated_and_a_preference_is_none() -> None:
    tolerations = {"tolerations": [{"key": "sandbox", "operator": "Exists"}]}
    second = Taint(key="gpu", effect="NoExecute")
    preference = Taint(key="other", effect="PreferNoSchedule")
    assert not fits(tolerations, taints=[TAINT, second])
    assert fits(tolerations, taints=[TAINT, preference])


@pytest.mark.parametrize(
    "trouble",
    [
        {"unschedulable": True},
        {"taints": [Taint(key="node.kubernetes.io/not-ready", effect="NoExecute")]},
        {"taints": [Taint(key="node.kubernetes.io/memory-pressure", effect="NoSchedule")]},
    ],
)
def test_what_comes_and_goes_counts_now_and_not_for_ever(trouble: dict[str, Any]) -> None:
    assert not fits({}, now=True, **trouble)
    assert fits({}, now=False, **trouble)


def test_a_lasting_taint_counts_for_ever() -> None:
    assert not fits({}, now=False, taints=[TAINT])


def test_a_cordoned_node_takes_pods_that_tolerate_the_cordon() -> None:
    spec = {"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]}
    assert fits(spec, unschedulable=True)


def test_equal_constraints_give_equal_placements_so_verdicts_are_shared() -> None:
    first = node_constraints_of({"nodeSelector": {"a": "1", "b": "2"}}, runtime())
    second = node_constraints_of({"nodeSelector": {"b": "2", "a": "1"}}, runtime())
    assert first == second
    assert hash(first) == hash(second)
    assert node_constraints_of({}, runtime()) == NodeConstraints()


def test_the_nodes_own_facts_are_read_from_its_labels() -> None:
    assert node_facts(node(labels={HOSTNAME: "ip-10-0-0-1"})).hostname == "ip-10-0-0-1"
    assert node_facts(node(labels={})).hostname is None


@pytest.mark.parametrize(
    ("label", "said", "counts"),
    [
        ("windows", "windows", False),
        (None, "windows", False),
        ("linux", "linux", True),
        (None, "", True),
    ],
)
def test_a_node_that_does_not_run_linux_is_in_no_verdict(
    label: str | None, said: str, counts: bool
) -> None:
    linux = node("windows-0", labels={OS_LABEL: label} if label else {})
    status = msgspec.structs.replace(
        linux.status, nodeInfo=msgspec.structs.replace(linux.status.nodeInfo, operatingSystem=said)
    )
    cluster = ClusterCache()
    assert cluster.nodes.put(None, msgspec.structs.replace(linux, status=status)) is counts
    assert (cluster.nodes.get("windows-0") is not None) is counts
