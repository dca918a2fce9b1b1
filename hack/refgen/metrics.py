"""The reference of metrics, from the objects that the operator registers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client.metrics import MetricWrapperBase

from refgen.text import cell, head, module_path
from sandboxpool.observability import metrics as source

_HEAD = (
    head("Reference: metrics", module_path(source.__name__))
    + """
The operator serves them on the port `http` (8080) at `/metrics`, in each replica; only the
leader's show what claims do. Names of claims, pods and nodes are never labels. The series of a
pool end with it.
"""
)
_TYPES = {"counter": "Counter", "gauge": "Gauge", "histogram": "Histogram"}


@dataclass(frozen=True)
class _Row:
    name: str
    type: str
    labels: tuple[str, ...]
    text: str
    buckets: tuple[float, ...] = ()


def render() -> str:
    """Return the page, as Markdown."""
    rows = sorted([*_registered(), *_collected()], key=lambda row: row.name)
    parts = [_HEAD, "| Metric | Type | Labels | Meaning |", "|---|---|---|---|"]
    for row in rows:
        labels = ", ".join(f"`{label}`" for label in row.labels)
        parts.append(f"| `{row.name}` | {_TYPES[row.type]} | {labels} | {cell(row.text)} |")
    parts += ["", "## Buckets", "", "In seconds; the last bucket of each is `+Inf`:", ""]
    parts += [
        f"- `{row.name}`: " + ", ".join(f"{bound:g}" for bound in row.buckets)
        for row in rows
        if row.buckets
    ]
    return "\n".join(parts) + "\n"


def _registered() -> Iterator[_Row]:
    """Yield what components count. The client library has no public way to the labels."""
    for metric in vars(source.Metrics()).values():
        if not isinstance(metric, MetricWrapperBase):
            continue
        described: Any = metric
        (family,) = metric.describe()
        suffix = "_total" if family.type == "counter" else ""
        buckets = described._kwargs.get("buckets", ())
        yield _Row(
            family.name + suffix,
            family.type,
            tuple(described._labelnames),
            family.documentation,
            tuple(buckets),
        )


def _collected() -> Iterator[_Row]:
    """Yield what is counted from the caches at a scrape."""
    for family in source.cluster_families():
        described: Any = family
        yield _Row(family.name, family.type, tuple(described._labelnames), family.documentation)
