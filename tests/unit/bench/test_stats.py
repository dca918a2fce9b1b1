import pytest

from bench.stats import (
    Summary,
    cumulative,
    difference,
    median_summary,
    percentile,
    ratios,
    summarise,
)


def test_a_percentile_is_a_sample() -> None:
    ordered = [float(n) for n in range(1, 101)]
    assert [percentile(ordered, p) for p in (1, 50, 90, 99, 100)] == [1, 50, 90, 99, 100]
    assert percentile([3.0], 99) == 3.0
    assert percentile([1.0, 2.0], 50) == 1.0


def test_no_samples_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 50)


def test_a_summary_orders_its_samples() -> None:
    assert summarise([30.0, 10.0, 20.0, 40.0], 2.0) == Summary(4, 20.0, 40.0, 40.0, 40.0, 2.0)


def test_nothing_bound_is_nought_and_no_error() -> None:
    assert summarise([], 1.0).rate == 0.0


def test_the_median_of_rounds_is_taken_for_each_figure_alone() -> None:
    rounds = [
        Summary(10, 1.0, 9.0, 20.0, 30.0, 100.0),
        Summary(10, 2.0, 8.0, 10.0, 20.0, 300.0),
        Summary(10, 3.0, 7.0, 30.0, 40.0, 200.0),
    ]
    assert median_summary(rounds) == Summary(30, 2.0, 8.0, 20.0, 30.0, 200.0)


def test_a_slow_round_does_not_count_against_either_side() -> None:
    floor = [10.0, 10.0, 100.0]
    assert ratios([12.0, 12.0, 120.0], floor) == pytest.approx([1.2, 1.2, 1.2])


def test_a_ratio_needs_both_sides_of_each_round() -> None:
    with pytest.raises(ValueError, match="both sides"):
        ratios([1.0], [1.0, 2.0])


def test_a_cumulative_distribution_ends_at_one() -> None:
    assert cumulative([3.0, 1.0]) == ([1.0, 3.0], [0.5, 1.0])


def test_counters_that_stand_still_are_left_out() -> None:
    after = {("PATCH", "pods"): 7.0, ("POST", "pods"): 2.0, ("POST", "events"): 1.0}
    before = {("PATCH", "pods"): 3.0, ("POST", "pods"): 2.0}
    assert difference(after, before) == {("PATCH", "pods"): 4.0, ("POST", "events"): 1.0}
