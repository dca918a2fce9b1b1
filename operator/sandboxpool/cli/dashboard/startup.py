"""Start-up times by runtime and stage, placed on one logarithmic scale. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sandboxpool.cli import reading
from sandboxpool.cli.cluster import Object

_PERCENTILES = ("p50Milliseconds", "p95Milliseconds", "p99Milliseconds")
# What each stage ends with; each is counted from the pod's creation.
STAGES = {
    "scheduled": "a node is chosen",
    "sandbox": "the sandbox and its network are made",
    "started": "the containers run",
    "ready": "the pod is ready",
}


@dataclass(frozen=True, slots=True)
class StageRow:
    """A stage of one runtime or pool.

    Attributes:
        milliseconds: p50, p95 and p99.
        places: Where they are on the scale, from 0 to 100.
    """

    of: str
    stage: str
    milliseconds: tuple[int, int, int]
    places: tuple[float, float, float]
    samples: int


@dataclass(frozen=True, slots=True)
class Startup:
    """Start-up times.

    Attributes:
        rows: By runtime, and by stage in its order.
        ticks: The decades of the scale, as place and text.
        hours: How far back the samples reach.
    """

    rows: Sequence[StageRow]
    ticks: Sequence[tuple[float, str]]
    hours: float


def startup(objects: Sequence[Object]) -> Startup:
    """Return the start-up times that SandboxRuntimes or SandboxPools have in their status."""
    found = [
        (reading.name(obj), stage, measured, reading.number(timing, "samples") or 0)
        for obj in sorted(objects, key=reading.name)
        for stage, timing in reading.stages(obj)
        if (measured := _measured(timing)) is not None
    ]
    values = [value for _, _, measured, _ in found for value in measured]
    low = math.floor(math.log10(max(1, min(values, default=1))))
    high = max(low + 1, math.ceil(math.log10(max(1, *values, 1))))

    def place(value: float) -> float:
        return round(100 * (math.log10(max(1, value)) - low) / (high - low), 1)

    windows = [reading.number(obj, "status", "startup", "windowSeconds") or 0 for obj in objects]
    return Startup(
        [
            StageRow(of, stage, (p50, p95, p99), (place(p50), place(p95), place(p99)), samples)
            for of, stage, (p50, p95, p99), samples in found
        ],
        [(place(10**power), shown(10**power)) for power in range(low, high + 1)],
        max(windows, default=0) / 3600,
    )


def shown(milliseconds: float) -> str:
    """Return a time with its unit."""
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    return f"{seconds:.1f} s" if seconds < 10 and seconds % 1 else f"{seconds:.0f} s"


def _measured(timing: Object) -> tuple[int, int, int] | None:
    first, second, third = (reading.number(timing, key) for key in _PERCENTILES)
    if first is None or second is None or third is None:
        return None
    return max(0, first), max(0, second), max(0, third)
