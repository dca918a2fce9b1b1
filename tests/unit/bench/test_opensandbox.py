"""What the page of `make bench-opensandbox` says of its figures."""

from __future__ import annotations

from bench import opensandbox

FIGURES = {
    "one in flight: sdk, of it the bridge": [40.0, 44.0, 60.0],
    opensandbox.BRIDGE_WRITES: [3.0],
    opensandbox.RATE: [20.0, 30.0],
    opensandbox.BARE_RATE: [50.0, 50.0],
    opensandbox.CPU: [6.0],
}


def test_goals() -> None:
    share, writes, rate, cpu = opensandbox.goals(FIGURES)
    assert (share.measured, share.met) == (44.0, True)
    assert (writes.measured, writes.met) == (6.0, True), "server 1, operator 2, bridge 3"
    assert (rate.measured, rate.met) == (0.5, True), "within each round"
    assert (cpu.measured, cpu.met) == (6.0, False)


def test_each_figure_has_a_row() -> None:
    page = opensandbox.report({"date": "today"}, FIGURES)
    assert "- date: today" in page
    assert "| one in flight: sdk, of it the bridge | 3 | 40.0 | 44.0 | 60.0 | 60.0 |" in page
