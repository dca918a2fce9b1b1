"""Gauges of RuntimeClasses, as their SandboxRuntimes report them.

The gauges of pools count the nodes that a pool's template admits as well; these count the fleet's,
and do not grow with the number of pools.
"""

from collections.abc import Iterable
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric

from sandboxpool.api.conditions import stored_conditions
from sandboxpool.api.v1alpha1 import SandboxRuntime
from sandboxpool.runtimes.verdict import HandlerState

# The value of a condition's gauge; any other status is Unknown.
VALUE_OF_STATUS = {"True": 1.0, "False": 0.0}
UNKNOWN = -1.0


def runtime_gauges(runtimes: Iterable[SandboxRuntime]) -> tuple[Metric, ...]:
    """Return the gauges; what other clients have damaged in a status counts as 0 or is left out."""
    nodes = GaugeMetricFamily(
        "sandboxpool_runtimeclass_nodes",
        "Nodes that a RuntimeClass admits, by the state of its handler on them.",
        labels=("runtime_class", "handler", "answer"),
    )
    conditions = GaugeMetricFamily(
        "sandboxpool_runtimeclass_condition",
        "Conditions of a SandboxRuntime: 1 if True, 0 if False, -1 if Unknown.",
        labels=("runtime_class", "condition", "reason"),
    )
    for runtime in runtimes:
        name, status = runtime.metadata.name, runtime.status
        counts, handler = status.get("nodes"), str(status.get("handler", ""))
        for state in HandlerState:
            nodes.add_metric([name, handler, state.value], _count(counts, state.value))
        for condition in stored_conditions(status):
            value = VALUE_OF_STATUS.get(condition.status, UNKNOWN)
            conditions.add_metric([name, condition.type, condition.reason], value)
    return nodes, conditions


def _count(counts: Any, name: str) -> float:
    count = counts.get(name) if isinstance(counts, dict) else None
    return float(count) if isinstance(count, int) else 0.0
