"""`make bench`: the operator's claims beside the floor's, and what refill and neighbours change.

Both sides hand out the same pods, which the operator made, to the same claims, in turn: floor,
operator, operator, floor, ... In what is compared the pool is paused, so that nobody refills it:
the floor does not. What refill changes is measured for the operator alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import machine, plots, report
from bench.load import Generator, Result
from bench.measure import Pattern, Row, measure
from bench.rig import Rig, Side
from localcluster.progress import say

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "benchmarks"
# A run of fewer rounds is for the eye: it does not replace the page.
SHORT = ROOT / ".cache" / "bench"
ROUNDS = 3

MAIN, NEXT = "bench-a", "bench-b"
BURST = 500
REFILL = 600
RATES = (25, 50, 75, 100, 150)
RATE_SECONDS = 8
# Beyond this a rate is not sustained.
SATURATED_MS = 1000


@dataclass(frozen=True)
class Scenario:
    """A pattern, and how many pods it takes."""

    name: str
    claims: int
    pattern: Pattern


def _closed(in_flight: int, count: int) -> Scenario:
    name = f"{in_flight} in flight"
    return Scenario(name, count, lambda generator: generator.closed(in_flight, count))


def _burst(count: int) -> Scenario:
    return Scenario(f"burst {count}", count, lambda generator: generator.burst(count))


COMPARED = (
    _closed(1, 100),
    _closed(10, 300),
    _closed(50, 300),
    _burst(100),
    _burst(BURST),
)
# Once: to make so many sandboxes takes longer than all the rest of it.
LARGE = (_burst(2000),)


@dataclass
class Run:
    """All that was measured."""

    rows: list[Row] = field(default_factory=list)
    kubelet: dict[str, Any] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Keep a row, and show it."""
        self.rows.append(row)
        s = row.summary
        say(
            f"  {row.round + 1} {row.side:8} {row.scenario:28} {s.rate:6.0f}/s  p50 {s.p50:7.1f}  "
            f"p99 {s.p99:7.1f} ms  cpu {row.cpu_ms:5.2f} ms/claim"
            + (f"  UNBOUND {row.unbound} REFUSED {row.refused}" * bool(row.unbound or row.refused))
        )


def run(rounds: int, folder: Path, keep: Callable[[Run], None]) -> Run:
    """Measure everything, so many times; what there is, is kept after each round."""
    done = Run()
    with Rig(folder) as rig:
        rig.add_pool(MAIN)
        rig.add_pool(NEXT)
        for number in range(rounds):
            _compared(rig, done, number, COMPARED)
            _refill(rig, done, number)
            _neighbours(rig, done, number)
            _sustained(rig, done, number)
            keep(done)
        _compared(rig, done, 0, LARGE)
    done.kubelet = json.loads((folder / "kubelet.json").read_text())
    return done


def _turns(scenarios: Sequence[Scenario]) -> Iterator[tuple[Side, Scenario]]:
    """Floor, operator, operator, floor, ...: what drifts weighs on both, and restarts are few."""
    order: tuple[Side, Side] = ("floor", "operator")
    for scenario in scenarios:
        for side in order:
            yield side, scenario
        order = order[1], order[0]


def _compared(rig: Rig, done: Run, number: int, scenarios: Sequence[Scenario]) -> None:
    needed = 2 * sum(scenario.claims for scenario in scenarios)
    say(f"round {number + 1}: {needed} warm sandboxes ...")
    say(f"  ... in {rig.fill(MAIN, needed):.0f} s")
    rig.set_pool(MAIN, paused=True)
    for side, scenario in _turns(scenarios):
        done.add(measure(rig, side, MAIN, scenario.name, number, scenario.pattern))
    rig.clear(MAIN)


def _refill(rig: Rig, done: Run, number: int) -> None:
    """The same load while nothing is refilled, and while a large refill is in flight."""
    rig.fill(MAIN, 500)
    rig.set_pool(MAIN, paused=True)
    for scenario in (_closed(1, 100), _closed(10, 200)):
        done.add(
            measure(rig, "operator", MAIN, f"{scenario.name}, no refill", number, scenario.pattern)
        )
        rig.set_pool(MAIN, paused=False, replicas=rig.warm(MAIN) + REFILL)
        time.sleep(1)
        name = f"{scenario.name}, refill"
        row = measure(rig, "operator", MAIN, name, number, scenario.pattern)
        done.add(row)
        rig.set_pool(MAIN, paused=True)
        # What was asked for comes all the same.
        rig.settle(MAIN)


def _neighbours(rig: Rig, done: Run, number: int) -> None:
    """One pool's claims alone, and while another pool, of another namespace, has a burst."""
    rig.fill(MAIN, BURST)
    rig.fill(NEXT, 400)
    for namespace in (MAIN, NEXT):
        rig.set_pool(namespace, paused=True)
    alone = _closed(1, 100)
    done.add(measure(rig, "operator", NEXT, "1 in flight, alone", number, alone.pattern))

    async def beside_a_burst(generator: Generator) -> Result:
        async with Generator(rig.access, rig.subject(MAIN)) as neighbour:
            burst = asyncio.create_task(neighbour.burst(BURST))
            result = await generator.closed(1, 300, until=burst.done)
            await burst
            return result

    name = f"1 in flight, burst of {BURST} in another pool"
    done.add(measure(rig, "operator", NEXT, name, number, beside_a_burst))
    for namespace in (MAIN, NEXT):
        rig.clear(namespace)


def _sustained(rig: Rig, done: Run, number: int) -> None:
    """Ever higher rates with refill on, until they are not sustained."""
    rig.fill(MAIN, 300)
    for rate in RATES:

        async def pattern(generator: Generator, rate: float = rate) -> Result:
            return await generator.rate(rate, RATE_SECONDS, seconds=30)

        row = measure(rig, "operator", MAIN, f"{rate}/s, refill on", number, pattern)
        done.add(row)
        if row.unbound or row.refused or row.summary.p99 > SATURATED_MS:
            break
    rig.clear(MAIN)


def main() -> None:
    """Measure, print, plot and write."""
    parser = argparse.ArgumentParser(prog="python -m bench.claims")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--again", type=Path, help="write the page of figures kept before")
    given = parser.parse_args()
    if given.again is not None:
        kept = json.loads(given.again.read_text())
        rows = [Row.of(row) for row in kept["rows"]]
        _write(given.again.resolve().parent, kept["about"], Run(rows, kept["kubelet"]))
        return
    folder = DOCS if given.rounds >= ROUNDS else SHORT
    about = machine.describe()
    about["load average before"] = f"{os.getloadavg()[0]:.1f}"
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)

    def keep(done: Run) -> None:
        raw = {"about": about, "kubelet": done.kubelet, "rows": [r.as_dict() for r in done.rows]}
        (folder / "claims.json").write_text(json.dumps(raw, separators=(",", ":")) + "\n")

    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        done = run(given.rounds, Path(scratch), keep)
    about["took"] = f"{(time.monotonic() - began) / 60:.0f} min"
    keep(done)
    _write(folder, about, done)


def _write(folder: Path, about: dict[str, str], done: Run) -> None:
    """The page and the plots."""
    rounds = 1 + max(row.round for row in done.rows)
    names = [scenario.name for scenario in COMPARED + LARGE]
    page = report.page(
        about,
        done.rows,
        done.kubelet,
        command=f"make bench ROUNDS={rounds}",
        names=names,
        burst=BURST,
        findings=report.findings(DOCS / "findings.md"),
    )
    plots.latencies(done.rows, names, folder / "latency.svg")
    path = DOCS.parent / "benchmarks.md" if folder == DOCS else folder / "benchmarks.md"
    path.write_text(page)
    say(page)
    say(f"wrote {path} and {folder}/")


if __name__ == "__main__":
    main()
