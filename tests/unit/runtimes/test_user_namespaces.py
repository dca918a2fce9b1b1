"""Templates with hostUsers: false, and what nodes say of their handlers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from sandboxpool.api.core import Node
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.pools.conditions import pool_conditions
from sandboxpool.pools.plan import PoolInput, PoolPlan
from sandboxpool.runtimes.node_constraints import node_constraints_of
from sandboxpool.runtimes.nodes import NodeFacts, node_facts
from sandboxpool.runtimes.verdict import Verdict, assess_node, summarize
from support.builders import TEMPLATE, node, pool_input, runtime

OWN_USERS = {**TEMPLATE["spec"], "hostUsers": False}


def saying(name: str, features: dict[str, Any] | None) -> NodeFacts:
    body = msgspec.to_builtins(node(name))
    body["status"]["runtimeHandlers"] = [{"name": "runsc", "features": features}]
    return node_facts(msgspec.convert(body, Node))


def verdict(fleet: list[NodeFacts], spec: dict[str, Any]) -> Verdict:
    placement = node_constraints_of(spec, runtime())
    found = (
        assess_node(n, "runsc", placement, quarantined=False, not_isolating=False) for n in fleet
    )
    return summarize(one for one in found if one is not None)


FLEET = [
    saying("denies", {"recursiveReadOnlyMounts": True, "userNamespaces": False}),
    saying("supports", {"userNamespaces": True}),
    saying("silent", {}),
    saying("older", None),
]


def test_a_node_whose_handler_denies_user_namespaces_does_not_serve_a_template_with_them() -> None:
    found = verdict(FLEET, OWN_USERS)
    assert found.not_serving == ("denies",)
    assert found.serving == ("older", "silent", "supports")


@pytest.mark.parametrize("spec", [TEMPLATE["spec"], {**TEMPLATE["spec"], "hostUsers": True}])
def test_other_templates_are_served_by_all(spec: dict[str, Any]) -> None:
    assert verdict(FLEET, spec).not_serving == ()


@pytest.mark.parametrize("fleet", [FLEET, FLEET[:1]])
def test_the_condition_names_what_such_a_node_lacks(fleet: list[NodeFacts]) -> None:
    given = pool_input(verdict=verdict(fleet, OWN_USERS))
    template = given.spec.template.model_copy(update={"spec": OWN_USERS})
    spec = given.spec.model_copy(update={"template": template})
    assert "hostUsers is false" in nodes_serving(replace(given, spec=spec))
    assert "hostUsers" not in nodes_serving(given)


def nodes_serving(given: PoolInput) -> str:
    plan = PoolPlan(1, 0, (), None, None)
    found = pool_conditions(given, plan, dict.fromkeys(SandboxState, 0), [])
    (message,) = [finding.message for finding in found if finding.type == "NodesServing"]
    return message
