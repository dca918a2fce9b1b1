"""What a soak calls growth."""

from __future__ import annotations

from bench.soak import RestSample, growth


def rests(*memory: float, series: int = 500) -> list[RestSample]:
    """One rest every five minutes."""
    return [
        RestSample(5.0 * n, mib, 48, 1, 66, series, cpu_percent=8.0, claims=1000 * n)
        for n, mib in enumerate(memory, 1)
    ]


def test_what_fills_up_once_is_no_growth() -> None:
    assert growth(rests(100, 110, 112, 113, 113, 112, 114, 113)) == []


def test_what_goes_on_growing_is_named() -> None:
    (found,) = growth(rests(100, 105, 110, 115, 120, 125, 130, 135))
    assert found == "resident_mib grew from 105 to 135"


def test_a_soak_that_was_too_short_is_no_proof() -> None:
    assert growth(rests(100)) == ["there were not two rests to compare"]
