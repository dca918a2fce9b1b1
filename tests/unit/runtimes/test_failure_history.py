"""Failures on record: grouped, bounded, expired in time."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxpool.api.reasons import Reason
from sandboxpool.runtimes import failure_history as issues
from sandboxpool.runtimes.failure_history import WINDOW_SECONDS, FailureHistory, FailureSummary

SHIM, KVM = Reason.SHIM_MISSING, Reason.KVM_UNAVAILABLE


def test_trouble_is_grouped_by_its_cause() -> None:
    history = FailureHistory()
    history.record("runsc", "b", SHIM, "second", 20.0)
    history.record("runsc", "a", SHIM, "first", 10.0)
    history.record("runsc", "b", KVM, "no kvm", 15.0)
    history.record("kata", "b", SHIM, "another handler", 30.0)
    assert history.summaries("runsc", 40.0) == (
        FailureSummary(SHIM, "runsc", 2, ("a", "b"), 10.0, 20.0, "second"),
        FailureSummary(KVM, "runsc", 1, ("b",), 15.0, 15.0, "no kvm"),
    )
    assert history.summaries("runc", 40.0) == ()


def test_a_cause_keeps_its_beginning_and_its_newest_text() -> None:
    history = FailureHistory()
    history.record("runsc", "a", SHIM, "x", 10.0)
    history.record("runsc", "a", SHIM, "newest", 50.0)
    history.record("runsc", "a", SHIM, "told late", 5.0)
    assert history.summaries("runsc", 60.0) == (
        FailureSummary(SHIM, "runsc", 1, ("a",), 5.0, 50.0, "newest"),
    )


def test_the_cause_on_most_nodes_comes_first_and_has_few_examples() -> None:
    history = FailureHistory()
    history.record("runsc", "z", Reason.CGROUP_DRIVER_MISMATCH, "", 1.0)
    for i in range(9):
        history.record("runsc", f"n{i}", SHIM, "", 1.0)
    worst, other = history.summaries("runsc", 1.0)
    assert (worst.reason, worst.count, worst.nodes) == (SHIM, 9, ("n0", "n1", "n2", "n3", "n4"))
    assert other.count == 1


def test_a_node_that_works_again_is_cleared_for_that_handler_alone() -> None:
    history = FailureHistory()
    for handler in ("runsc", "kata"):
        history.record(handler, "a", SHIM, "", 1.0)
        history.record(handler, "a", KVM, "", 1.0)
        history.record(handler, "b", SHIM, "", 1.0)
    history.clear("runsc", "a")
    history.clear("runsc", "unknown")
    history.clear("unknown", "a")
    assert [(row.reason, row.nodes) for row in history.summaries("runsc", 1.0)] == [(SHIM, ("b",))]
    assert len(history.summaries("kata", 1.0)) == 2
    history.forget_node("b")
    assert history.summaries("runsc", 1.0) == ()
    assert {row.nodes for row in history.summaries("kata", 1.0)} == {("a",)}
    history.forget_node("a")
    assert len(history) == 0


def test_trouble_that_has_not_shown_for_an_hour_is_over() -> None:
    history = FailureHistory()
    history.record("runsc", "a", SHIM, "", 100.0)
    history.record("runsc", "b", SHIM, "", 200.0)
    assert history.summaries("runsc", 100.0 + WINDOW_SECONDS)[0].count == 2
    (row,) = history.summaries("runsc", 101.0 + WINDOW_SECONDS)
    assert (row.nodes, row.first_seen) == (("b",), 200.0)
    assert history.summaries("runsc", 201.0 + WINDOW_SECONDS) == ()
    assert len(history) == 0


def test_a_failure_after_the_window_is_counted_from_one() -> None:
    history = FailureHistory()
    history.record("runsc", "a", SHIM, "", 100.0)
    history.record("runsc", "a", SHIM, "", 102.0 + WINDOW_SECONDS)
    assert (
        history.summaries("runsc", 200.0 + WINDOW_SECONDS)[0].first_seen == 102.0 + WINDOW_SECONDS
    )


def test_texts_are_cut() -> None:
    history = FailureHistory()
    history.record("runsc", "a", SHIM, "x" * 10_000, 1.0)
    assert len(history.summaries("runsc", 1.0)[0].message) <= 512


def test_memory_is_bounded_and_the_stalest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issues, "MAX_FAILURES", 3)
    history = FailureHistory()
    for node in ("a", "b", "c"):
        history.record("runsc", node, SHIM, "", 1.0)
    history.record("runsc", "a", SHIM, "", 2.0)
    history.record("kata", "d", SHIM, "", 3.0)
    assert len(history) == 3
    assert history.summaries("runsc", 3.0)[0].nodes == ("a", "c")


def test_a_broken_fleet_is_summed_up_at_once() -> None:
    history = FailureHistory()
    for i in range(5000):
        for reason in (SHIM, KVM, Reason.VM_START_TIMEOUT, Reason.SANDBOX_CREATE_FAILED):
            history.record("runsc", f"n{i:04}", reason, "text", float(i))
    assert len(history) == issues.MAX_FAILURES
    history.record("runsc", "one-more", SHIM, "text", 5000.0)
    assert len(history) == issues.MAX_FAILURES
    began = time.process_time()
    assert len(history.summaries("runsc", 5000.0 - 1)) == 4
    assert time.process_time() - began < 0.5


_RECORDS = st.lists(
    st.tuples(
        st.sampled_from(["runsc", "kata"]),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from([SHIM, KVM]),
        st.floats(0, 2 * WINDOW_SECONDS),
    ),
    max_size=30,
)


@settings(max_examples=50)
@given(_RECORDS, st.floats(0, 4 * WINDOW_SECONDS))
def test_rows_tell_only_of_the_window_and_of_real_nodes(
    records: list[tuple[str, str, Reason, float]], now: float
) -> None:
    history = FailureHistory()
    for handler, node, reason, at in records:
        history.record(handler, node, reason, "", at)
    for row in history.summaries("runsc", now):
        assert row.handler == "runsc"
        assert row.count == len(row.nodes) == len(set(row.nodes)) > 0
        assert row.first_seen <= row.last_seen
        assert now - row.last_seen <= WINDOW_SECONDS
        times = [
            at for handler, _, reason, at in records if (handler, reason) == ("runsc", row.reason)
        ]
        assert row.last_seen == max(times)
        assert row.first_seen in times
