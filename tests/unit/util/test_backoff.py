"""Delays after failures in a row."""

import itertools

import pytest

from sandboxpool.util.backoff import delay_after, spread


@pytest.mark.parametrize("factor", [2.0, 4.0])
def test_delays_grow_by_the_factor_up_to_the_longest_and_stay_there(factor: float) -> None:
    delays = [delay_after(n, 0.5, 60.0, factor=factor) for n in range(2000)]
    assert delays[0] == 0.5
    below = list(itertools.takewhile(lambda delay: delay < 60.0, delays))
    assert all(after == before * factor for before, after in itertools.pairwise(below))
    assert set(delays[len(below) :]) == {60.0}


def test_a_delay_is_spread_below_itself_and_not_far() -> None:
    spread_out = [spread(8.0) for _ in range(200)]
    assert all(6.0 <= delay <= 8.0 for delay in spread_out)
    assert max(spread_out) - min(spread_out) > 1.0
