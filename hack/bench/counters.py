"""What the API server counted: whose requests they are must follow from what they are."""

from __future__ import annotations

import re
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

_NAME = "apiserver_request_total"
_READS = ("GET", "LIST", "WATCH", "CONNECT")

# verb, resource with its subresource
Request = tuple[str, str]
_LINE = re.compile(rf"^{_NAME}\{{.*$", re.MULTILINE)


def writes(metrics: str) -> dict[Request, float]:
    """Requests that write, by verb and resource, of an API server's /metrics."""
    # Of several megabytes only these lines are wanted.
    lines = "\n".join(_LINE.findall(metrics))
    counted: dict[Request, float] = {}
    for family in text_string_to_metric_families(lines + "\n"):
        for sample in family.samples:
            labels = sample.labels
            if labels["verb"] in _READS:
                continue
            resource = "/".join(filter(None, (labels["resource"], labels.get("subresource"))))
            key = labels["verb"], resource
            counted[key] = counted.get(key, 0.0) + sample.value
    return counted


def per_claim(grown: Mapping[Request, float], claims: int) -> dict[str, float]:
    """Writes for each claim, by what they are."""
    return {f"{verb} {what}": round(n / claims, 3) for (verb, what), n in sorted(grown.items())}
