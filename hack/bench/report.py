"""The page that `make bench` writes: goals, measured values, and by how much they are met. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measure import Row
from bench.rig import Side
from bench.stats import median_summary, ratios

# What the operator writes for its own two steps of a claim, as the API server counts it.
CONTROLLER_WRITES = ("PATCH pods", "PATCH sandboxclaims/status")
# Not the operator's: the load, and what the fake kubelets do.
OTHERS_WRITES = ("POST sandboxclaims", "POST pods/binding", "PATCH pods/status")
COALESCED = ("PATCH sandboxpools/status", "PATCH sandboxruntimes/status")


@dataclass(frozen=True, slots=True)
class Goal:
    """A wanted value and the measured one.

    Attributes:
        rounds: what was measured, in each round; the median counts.
        at_most: the measured value may not be above the goal; else not below.
    """

    what: str
    rounds: Sequence[float]
    goal: float
    at_most: bool = True
    unit: str = "x"

    @property
    def measured(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rounds)

    @property
    def met(self) -> bool:
        """Whether the goal is met."""
        return self.measured <= self.goal if self.at_most else self.measured >= self.goal

    def line(self) -> str:
        """A row of the table of goals."""
        sign = "<=" if self.at_most else ">="
        apart = 100 * abs(self.measured - self.goal) / self.goal
        verdict = f"met, {apart:.0f} % to spare" if self.met else f"**missed by {apart:.0f} %**"
        if self.met and apart > 100:
            # A rate, or a difference below zero: per cent say nothing of it.
            verdict = "met"
        spread = ""
        if len(self.rounds) > 1:
            spread = f" ({min(self.rounds):.2f} to {max(self.rounds):.2f})"
        wanted = f"{sign} {self.goal:g} {self.unit}".strip()
        measured = f"{self.measured:.2f} {self.unit}".strip() + spread
        return f"| {self.what} | {wanted} | {measured} | {verdict} |"


class Rows:
    """All rows of a run, by scenario and side, in the order of the rounds."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows: dict[tuple[str, Side], list[Row]] = {}
        for row in sorted(rows, key=lambda row: row.round):
            self._rows.setdefault((row.scenario, row.side), []).append(row)

    def of(self, scenario: str, side: Side = "operator") -> list[Row]:
        """The rounds of one scenario on one side."""
        return self._rows.get((scenario, side), [])

    def others(self, compared: Sequence[str]) -> list[str]:
        """Scenarios that only the operator has, in the order of their first round."""
        return [name for name, _ in self._rows if name not in compared]

    def ratios(self, figure: str, scenario: str, *, to: str | None = None) -> list[float]:
        """A figure over the floor's, or over that of another scenario, in each round."""
        below = self.of(scenario, "floor") if to is None else self.of(to)
        return ratios(
            [getattr(row.summary, figure) for row in self.of(scenario)],
            [getattr(row.summary, figure) for row in below],
        )


def goals(rows: Rows, burst: int) -> list[Goal]:
    """The goals of the claim path."""
    big = f"burst {burst}"
    at_rest = rows.of(big) + rows.of("10 in flight")
    beside = f"1 in flight, burst of {burst} in another pool"
    return [
        Goal("p50 at 1 in flight, to the floor", rows.ratios("p50", "1 in flight"), 1.3),
        Goal(
            "claims/s at 10 in flight, to the floor",
            rows.ratios("rate", "10 in flight"),
            0.8,
            at_most=False,
        ),
        Goal(
            f"claims/s in a burst of {burst}, to the floor",
            rows.ratios("rate", big),
            0.8,
            at_most=False,
        ),
        Goal(f"p99 of a burst of {burst}, to the floor", rows.ratios("p99", big), 1.3),
        Goal(
            "controller writes a claim",
            [sum(row.writes.get(name, 0.0) for name in CONTROLLER_WRITES) for row in at_rest],
            2,
            unit="",
        ),
        Goal(
            f"operator CPU a claim, burst of {burst}",
            [row.cpu_ms for row in rows.of(big)],
            1.5,
            unit="ms",
        ),
        *(
            Goal(
                f"p99 at {n} in flight with a refill in flight, to without",
                rows.ratios("p99", f"{n} in flight, refill", to=f"{n} in flight, no refill"),
                2,
            )
            for n in (1, 10)
        ),
        Goal(
            f"p99 of a pool's claims in another pool's burst of {burst}, to alone",
            rows.ratios("p99", beside, to="1 in flight, alone"),
            2,
        ),
    ]


def page(
    about: Mapping[str, str],
    rows: Sequence[Row],
    kubelet: Mapping[str, Any],
    *,
    command: str,
    names: Sequence[str],
    burst: int,
    findings: str,
) -> str:
    """The whole page."""
    table = Rows(rows)
    rounds = 1 + max(row.round for row in rows)
    operator = [row for row in rows if row.side == "operator"]
    lines = [
        "# Claims",
        "",
        f"By `{command}`: medians over {rounds} rounds; ratios are taken within each round.",
        "Latency is from the POST of a claim to the watch showing it bound, both seen by the load",
        "generator, by one clock. The **floor** is a bare loop in Python that does the same two",
        "writes to the same pods and claims: a list of warm pods in memory, a watch of claims, no",
        "checks, no memory, no refill. Both take turns on one kube-apiserver and etcd (no fsync);",
        "kubelets are fake. All of it, the load generator included, shares the machine",
        "below: absolute figures are its figures, ratios are what counts.",
        "",
        *(f"- {key}: {value}" for key, value in about.items()),
        "",
        "| goal | wanted | median (least to most of the rounds) | |",
        "|---|---|---|---|",
        *(goal.line() for goal in goals(table, burst)),
        "",
        "## Beside the floor",
        "",
        "The pool is paused, so nothing is refilled. CPU is the binder's own, for each claim.",
        "",
        "![latencies](benchmarks/latency.svg)",
        "",
        *_header(),
    ]
    for name in names:
        for side in ("floor", "operator"):
            lines += _line(name, side, table.of(name, side))
    lines += [
        "",
        "## The operator alone",
        "",
        "Refill: sandboxes are made at the same time, as fast as the API server takes them. A rate",
        "is kept up whatever happens, and a latency counts from when its claim was due.",
        "",
        *_header(),
    ]
    for name in table.others(names):
        lines += _line(name, "operator", table.of(name))
    lines += [
        "",
        "## Writes of a claim",
        "",
        "As the API server counted them.",
        "",
        "| | " + " | ".join((*CONTROLLER_WRITES, "coalesced status", "all else")) + " |",
        "|---" * (len(CONTROLLER_WRITES) + 3) + "|",
        *(_writes(name, side, table.of(name, side)) for name in names for side in _SIDES),
        "",
        "## What measured it",
        "",
        f"- Load generator: {_middle(row.generator_cpu_ms for row in rows):.2f} ms CPU a claim.",
        f"- Fake kubelets: {kubelet['count']} pods, from seen to ready "
        f"p50 {kubelet['p50']:.0f} ms, p99 {kubelet['p99']:.0f} ms; at most "
        f"{100 * max(row.kubelet_share for row in rows):.0f} % of a core in any scenario.",
        f"- Cores in use during a burst of {burst}: "
        f"{100 * _middle(r.busy for r in table.of(f'burst {burst}', 'floor')):.0f} % with the "
        f"floor, {100 * _middle(r.busy for r in table.of(f'burst {burst}')):.0f} % with the "
        "operator.",
        f"- Operator's memory at the most: {max(row.resident_mib for row in operator):.0f} MiB.",
        "",
    ]
    if findings:
        lines += [findings]
    return "\n".join(lines).rstrip() + "\n"


def findings(path: Path) -> str:
    """The conclusions, written by hand; they are kept when the figures are measured again."""
    return path.read_text().strip() + "\n" if path.exists() else ""


_SIDES: tuple[Side, Side] = ("floor", "operator")


def _header() -> list[str]:
    return [
        "| load | side | claims | claims/s | p50 ms | p90 ms | p99 ms | max ms | POST p99 ms "
        "| after it p99 ms | CPU ms/claim | loop lag ms | RSS MiB |",
        "|---" * 13 + "|",
    ]


def _line(name: str, side: Side, rounds: Sequence[Row]) -> list[str]:
    if not rounds:
        return []
    s = median_summary([row.summary for row in rounds])
    lags = [row.lag_ms for row in rounds if row.lag_ms is not None]
    lost = sum(row.unbound + row.refused for row in rounds)
    cells = (
        name + (f" ({lost} not bound)" if lost else ""),
        side,
        s.count,
        f"{s.rate:.0f}",
        *(f"{value:.1f}" for value in (s.p50, s.p90, s.p99, s.max)),
        f"{_middle(row.post_p99_ms for row in rounds):.1f}",
        f"{_middle(row.wait_p99_ms for row in rounds):.1f}",
        f"{_middle(row.cpu_ms for row in rounds):.2f}",
        f"{statistics.median(lags):.0f}" if lags else "",
        f"{max(row.resident_mib for row in rounds):.0f}",
    )
    return ["| " + " | ".join(map(str, cells)) + " |"]


def _writes(name: str, side: Side, rounds: Sequence[Row]) -> str:
    def of(*wanted: str) -> float:
        return _middle(sum(row.writes.get(w, 0.0) for w in wanted) for row in rounds)

    known = (*CONTROLLER_WRITES, *COALESCED, *OTHERS_WRITES)
    rest = _middle(sum(n for w, n in row.writes.items() if w not in known) for row in rounds)
    cells = (*(of(w) for w in CONTROLLER_WRITES), of(*COALESCED), rest)
    return f"| {name}, {side} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |"


def _middle(values: Any) -> float:
    listed = list(values)
    return float(statistics.median(listed)) if listed else 0.0
