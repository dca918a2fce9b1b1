import json
from typing import Any

import pytest

from bench.measure import Row
from bench.report import Goal, Rows, goals, page
from bench.rig import Side

KUBELET = {"count": 10, "p50": 1.0, "p99": 2.0}
COMPARED = ["1 in flight", "10 in flight", "burst 500"]
ALONE = (
    "1 in flight, no refill",
    "1 in flight, refill",
    "10 in flight, no refill",
    "10 in flight, refill",
    "1 in flight, alone",
    "1 in flight, burst of 500 in another pool",
)


def row(scenario: str, side: Side = "operator", number: int = 0, **given: Any) -> Row:
    fields: dict[str, Any] = {
        "seconds": 1.0,
        "samples_ms": [10.0] * 100,
        "unbound": 0,
        "refused": 0,
        "post_p99_ms": 5.0,
        "wait_p99_ms": 7.0,
        "cpu_ms": 1.0,
        "generator_cpu_ms": 0.5,
        "kubelet_share": 0.1,
        "busy": 0.9,
        "writes": {"PATCH pods": 1.0, "PATCH sandboxclaims/status": 1.0},
        "lag_ms": 1.0 if side == "operator" else None,
        "resident_mib": 90.0,
        **given,
    }
    return Row(scenario=scenario, side=side, round=number, **fields)


def rows() -> list[Row]:
    both: tuple[Side, Side] = ("floor", "operator")
    return [*(row(name, side) for name in COMPARED for side in both), *map(row, ALONE)]


def test_an_operator_as_fast_as_the_floor_meets_every_goal() -> None:
    assert [goal.what for goal in goals(Rows(rows()), 500) if not goal.met] == []


@pytest.mark.parametrize(
    ("scenario", "changed", "missed"),
    [
        ("1 in flight", {"samples_ms": [14.0] * 100}, ["p50 at 1 in flight, to the floor"]),
        ("10 in flight", {"seconds": 1.3}, ["claims/s at 10 in flight, to the floor"]),
        ("burst 500", {"seconds": 1.3}, ["claims/s in a burst of 500, to the floor"]),
        (
            "burst 500",
            {"samples_ms": [10.0] * 98 + [14.0] * 2},
            ["p99 of a burst of 500, to the floor"],
        ),
        ("burst 500", {"cpu_ms": 1.6}, ["operator CPU a claim, burst of 500"]),
        (
            "1 in flight, refill",
            {"samples_ms": [21.0] * 100},
            ["p99 at 1 in flight with a refill in flight, to without"],
        ),
        (
            "1 in flight, burst of 500 in another pool",
            {"samples_ms": [21.0] * 100},
            ["p99 of a pool's claims in another pool's burst of 500, to alone"],
        ),
    ],
)
def test_what_is_slower_than_wanted_misses_its_goal(
    scenario: str, changed: dict[str, Any], missed: list[str]
) -> None:
    slower = [
        row(scenario, **changed) if (r.scenario, r.side) == (scenario, "operator") else r
        for r in rows()
    ]
    assert [goal.what for goal in goals(Rows(slower), 500) if not goal.met] == missed


def test_a_goal_shows_by_how_much() -> None:
    assert Goal("CPU", [1.8], 1.5, unit="ms").line() == (
        "| CPU | <= 1.5 ms | 1.80 ms | **missed by 20 %** |"
    )
    assert Goal("rate", [0.7, 0.9, 1.0], 0.8, at_most=False).line() == (
        "| rate | >= 0.8 x | 0.90 x (0.70 to 1.00) | met, 12 % to spare |"
    )
    assert Goal("difference", [-900], 50, unit="ms").line() == (
        "| difference | <= 50 ms | -900.00 ms | met |"
    )


def test_rounds_are_compared_with_themselves() -> None:
    slow_machine = [
        row("1 in flight", "floor", 0, samples_ms=[10.0]),
        row("1 in flight", "operator", 0, samples_ms=[12.0]),
        row("1 in flight", "floor", 1, samples_ms=[100.0]),
        row("1 in flight", "operator", 1, samples_ms=[120.0]),
    ]
    assert Rows(slow_machine).ratios("p50", "1 in flight") == pytest.approx([1.2, 1.2])


def test_a_page_shows_every_scenario_and_what_was_not_bound() -> None:
    text = page(
        {"machine": "2 CPUs"},
        [*rows(), row("75/s, refill on", unbound=3)],
        KUBELET,
        command="make bench",
        names=COMPARED,
        burst=500,
        findings="## What was found\n\nSomething.",
    )
    for name in (*COMPARED, *ALONE):
        assert f"| {name} |" in text
    assert "| 75/s, refill on (3 not bound) |" in text
    assert "- machine: 2 CPUs" in text
    assert text.endswith("Something.\n")


def test_a_row_that_was_kept_is_the_same_row() -> None:
    one = row("burst 500", samples_ms=[1.0, 2.5])
    assert Row.of(json.loads(json.dumps(one.as_dict()))) == one
