"""One measurement: a pattern of load on one side, and what it cost whom."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from bench import machine
from bench.counters import per_claim
from bench.load import Generator, Result
from bench.rig import Rig, Side
from bench.stats import Summary, difference, summarise

# After a load the binder sees its own writes come back, and coalesced status follows.
SETTLE_SECONDS = 1.5
_LAG = "sandboxpool_loop_lag_seconds"

Pattern = Callable[[Generator], Awaitable[Result]]


@dataclass(frozen=True)
class Row:
    """What came out of one pattern, in one round, on one side.

    Attributes:
        post_p99_ms: p99 of the API server's answers to the POSTs, in which no binder has part.
        wait_p99_ms: p99 of the time from there to the claim seen bound.
        cpu_ms: CPU of the binder for each claim, what follows a binding included.
        generator_cpu_ms: CPU of the load generator for each claim.
        kubelet_share: part of one core that the fake kubelets took.
        busy: part of all cores that was in use by anybody.
        writes: requests that write, for each claim, by what they are; the generator's too.
        lag_ms: the worst lateness of the operator's loop; None for the floor.
        resident_mib: memory of the binder.
    """

    scenario: str
    side: Side
    round: int
    seconds: float
    samples_ms: list[float]
    unbound: int
    refused: int
    post_p99_ms: float
    wait_p99_ms: float
    cpu_ms: float
    generator_cpu_ms: float
    kubelet_share: float
    busy: float
    writes: dict[str, float]
    lag_ms: float | None
    resident_mib: float

    @property
    def summary(self) -> Summary:
        """The figures."""
        return summarise(self.samples_ms, self.seconds)

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Self:
        """A row as ``as_dict`` has kept it."""
        return cls(**{field.name: kept[field.name] for field in fields(cls)})

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        samples = [round(sample, 1) for sample in sorted(self.samples_ms)]
        return {**asdict(self), "summary": self.summary.as_dict(), "samples_ms": samples}


def measure(
    rig: Rig, side: Side, namespace: str, scenario: str, number: int, pattern: Pattern
) -> Row:
    """Have a side bind the claims of one pattern, and measure."""

    async def load() -> Result:
        async with Generator(rig.access, rig.subject(namespace)) as generator:
            return await pattern(generator)

    pid = rig.start(side, namespace)
    writes = rig.writes()
    time.sleep(SETTLE_SECONDS)
    cpu, kubelet = machine.cpu_seconds(pid), machine.cpu_seconds(rig.kubelet_pid)
    busy, began = _busy_seconds(), time.monotonic()
    result = asyncio.run(load())
    lasted = time.monotonic() - began
    kubelet = machine.cpu_seconds(rig.kubelet_pid) - kubelet
    busy = _busy_seconds() - busy
    time.sleep(SETTLE_SECONDS)
    cpu = machine.cpu_seconds(pid) - cpu
    bound = max(1, len(result.samples_ms))
    return Row(
        scenario=scenario,
        side=side,
        round=number,
        seconds=result.seconds,
        samples_ms=result.samples_ms,
        unbound=result.unbound,
        refused=result.refused,
        post_p99_ms=summarise(result.posts_ms, 0).p99,
        wait_p99_ms=summarise(result.waits_ms, 0).p99,
        cpu_ms=1000 * cpu / bound,
        generator_cpu_ms=1000 * result.cpu_seconds / bound,
        kubelet_share=kubelet / lasted,
        busy=busy / lasted / machine.CORES,
        writes=per_claim(difference(rig.writes(), writes), bound),
        lag_ms=1000 * rig.operator.metric(_LAG) if side == "operator" else None,
        resident_mib=machine.resident_mib(pid),
    )


def _busy_seconds() -> float:
    """CPU time that the whole machine has used."""
    fields = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / machine.CLOCK_TICKS
