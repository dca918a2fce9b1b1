"""Start-up times on one scale."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sandboxpool.cli.dashboard.startup import shown, startup
from support.fleetobjects import STARTUP, runtime, stage


def test_stages_are_in_order_on_a_scale_of_decades() -> None:
    made = startup([runtime("kata", "kata"), runtime("gvisor", "runsc", startup=STARTUP)])
    assert [(row.of, row.stage) for row in made.rows] == [
        ("gvisor", "scheduled"),
        ("gvisor", "sandbox"),
        ("gvisor", "started"),
        ("gvisor", "ready"),
    ]
    assert made.rows[3].milliseconds == (900, 1500, 2600)
    assert [text for _, text in made.ticks] == ["1 ms", "10 ms", "100 ms", "1 s", "10 s"]
    assert [place for place, _ in made.ticks] == [0, 25, 50, 75, 100]
    # log10(900) of four decades.
    assert made.rows[3].places[0] == 73.9
    assert made.hours == 1


def test_a_stage_without_all_percentiles_is_left_out() -> None:
    broken = {"stages": {"ready": {"p50Milliseconds": 5}, "sandbox": stage(1, 2, 3)}}
    rows = startup([runtime("gvisor", "runsc", startup=broken)]).rows
    assert [row.stage for row in rows] == ["sandbox"]


times = st.integers(0, 10**8)


@given(st.lists(st.tuples(times, times, times), max_size=4))
def test_every_place_is_on_the_scale(measured: list[tuple[int, int, int]]) -> None:
    objects = [
        runtime(f"r{index}", "h", startup={"stages": {"ready": stage(*sorted(one))}})
        for index, one in enumerate(measured)
    ]
    made = startup(objects)
    assert len(made.rows) == len(measured)
    for row in made.rows:
        assert 0 <= row.places[0] <= row.places[1] <= row.places[2] <= 100
    assert made.ticks[0][0] == 0
    assert made.ticks[-1][0] == 100


def test_times_have_units() -> None:
    assert [shown(value) for value in (0, 999, 1000, 1500, 10_500, 120_000)] == [
        "0 ms",
        "999 ms",
        "1 s",
        "1.5 s",
        "10 s",
        "120 s",
    ]
