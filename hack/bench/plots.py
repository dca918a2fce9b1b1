"""Plots of a benchmark; the only part that needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.measure import Row
from bench.stats import cumulative

# A curve of more points looks the same and makes a large file.
_POINTS = 200
_COLUMNS = 3
_COLOURS = {"floor": "#888888", "operator": "#1f77b4"}


def latencies(rows: Sequence[Row], scenarios: Sequence[str], path: Path) -> None:
    """The cumulative distribution of each scenario's latencies, floor and operator, all rounds."""
    import matplotlib as mpl

    mpl.use("svg")
    # The same figures make the same file.
    mpl.rcParams["svg.hashsalt"] = "bench"
    # Text stays text.
    mpl.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot as plt

    lines = -(-len(scenarios) // _COLUMNS)
    figure, axes = plt.subplots(lines, _COLUMNS, figsize=(4 * _COLUMNS, 3 * lines), squeeze=False)
    for axis, scenario in zip(axes.flat, scenarios, strict=False):
        for side, colour in _COLOURS.items():
            samples = [
                sample
                for row in rows
                if row.scenario == scenario and row.side == side
                for sample in row.samples_ms
            ]
            if samples:
                axis.plot(*_thinned(*cumulative(samples)), color=colour, label=side)
        axis.set_title(scenario, fontsize=10)
        axis.set_xlim(left=0)
        axis.set_ylim(0, 1)
        axis.grid(visible=True, alpha=0.3)
        axis.set_xlabel("ms from POST to bound", fontsize=8)
        axis.tick_params(labelsize=8)
    axes.flat[0].legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _thinned(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    step = max(1, len(xs) // _POINTS)
    picked = [*range(0, len(xs) - 1, step), len(xs) - 1]
    return [xs[i] for i in picked], [ys[i] for i in picked]
