"""What a benchmark says of its samples. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

K = TypeVar("K")


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: a value that was measured, never one between two.

    Args:
        ordered: samples in ascending order, at least one.
        percent: above 0, at most 100.
    """
    if not ordered:
        raise ValueError("no samples")
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(frozen=True, slots=True)
class Summary:
    """Latencies in milliseconds, and a rate per second."""

    count: int
    p50: float
    p90: float
    p99: float
    max: float
    rate: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def summarise(samples_ms: Iterable[float], seconds: float) -> Summary:
    """Sum up latencies; without any, everything is nought."""
    ordered = sorted(samples_ms)
    if not ordered:
        return Summary(0, 0.0, 0.0, 0.0, 0.0, 0.0)
    return Summary(
        count=len(ordered),
        p50=percentile(ordered, 50),
        p90=percentile(ordered, 90),
        p99=percentile(ordered, 99),
        max=ordered[-1],
        rate=len(ordered) / seconds if seconds > 0 else 0.0,
    )


def median_summary(rounds: Sequence[Summary]) -> Summary:
    """The median of each figure over rounds of the same scenario; counts are added."""
    if not rounds:
        raise ValueError("no rounds")

    def middle(name: str) -> float:
        return float(statistics.median(getattr(one, name) for one in rounds))

    return Summary(
        count=sum(one.count for one in rounds),
        p50=middle("p50"),
        p90=middle("p90"),
        p99=middle("p99"),
        max=middle("max"),
        rate=middle("rate"),
    )


def ratios(measured: Sequence[float], floor: Sequence[float]) -> list[float]:
    """Measured / floor of each round: what slows a whole round down slows both sides of it."""
    if len(measured) != len(floor) or not measured:
        raise ValueError("each round needs both sides")
    return [a / b for a, b in zip(measured, floor, strict=True)]


def cumulative(samples_ms: Iterable[float]) -> tuple[list[float], list[float]]:
    """The samples in order, and the share of all that is not above each."""
    ordered = sorted(samples_ms)
    return ordered, [rank / len(ordered) for rank in range(1, len(ordered) + 1)]


def difference(after: Mapping[K, float], before: Mapping[K, float]) -> dict[K, float]:
    """What counters have grown by, without those that have not."""
    grown = {key: value - before.get(key, 0.0) for key, value in after.items()}
    return {key: value for key, value in grown.items() if value}
