"""Gauges of RuntimeClasses."""

from typing import Any

import msgspec
import pytest

from sandboxpool.api.v1alpha1 import SandboxRuntime
from sandboxpool.observability.runtime_gauges import runtime_gauges


def values(status: dict[str, Any]) -> dict[tuple[str, ...], float]:
    """The samples by their names and labels, in the order of the labels."""
    runtime = msgspec.convert(
        {"metadata": {"name": "gvisor", "uid": "u", "resourceVersion": "1"}, "status": status},
        SandboxRuntime,
    )
    return {
        (sample.name.removeprefix("sandboxpool_runtimeclass_"), *sample.labels.values()): (
            sample.value
        )
        for family in runtime_gauges([runtime])
        for sample in family.samples
    }


def test_nodes_and_conditions_are_those_of_the_status() -> None:
    found = values(
        {
            "handler": "runsc",
            "nodes": {"eligible": 6, "serving": 3, "notServing": 2, "quarantined": 1},
            "conditions": [
                {"type": "Ready", "status": "True", "reason": "HandlerServed"},
                {"type": "Healthy", "status": "False", "reason": "ShimMissing"},
                {"type": "IsolationProven", "status": "Unknown", "reason": "EvidencePending"},
            ],
        }
    )
    assert found == {
        ("nodes", "gvisor", "runsc", "serving"): 3,
        ("nodes", "gvisor", "runsc", "notServing"): 2,
        ("nodes", "gvisor", "runsc", "unknown"): 0,
        ("nodes", "gvisor", "runsc", "quarantined"): 1,
        ("nodes", "gvisor", "runsc", "notIsolating"): 0,
        ("nodes", "gvisor", "runsc", "unproven"): 0,
        ("condition", "gvisor", "Ready", "HandlerServed"): 1,
        ("condition", "gvisor", "Healthy", "ShimMissing"): 0,
        ("condition", "gvisor", "IsolationProven", "EvidencePending"): -1,
    }


@pytest.mark.parametrize(
    "status", [{}, {"nodes": 3, "conditions": "none"}, {"nodes": {"serving": "many"}}]
)
def test_a_status_that_is_empty_or_damaged_counts_as_zero(status: dict[str, Any]) -> None:
    found = values(status)
    assert set(found.values()) == {0}
    assert {name for name, *_ in found} == {"nodes"}
