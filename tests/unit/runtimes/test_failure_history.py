"""The book of what went wrong: grouped, bounded, forgotten in time."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxpool.api.reasons import Reason
from sandboxpool.runtimes import failure_history as issues
from sandboxpool.runtimes.failure_history import WINDOW_SECONDS, FailureHistory, FailureSummary

SHIM, KVM = Reason.SHIM_MISSING, Reason.KVM_UNAVAILABLE


def test_trouble_is_grouped_by_its_cause() -> None:
    book = FailureHistory()
    book.record("runsc", "b", SHIM, "second", 20.0)
    book.record("runsc", "a", SHIM, "first", 10.0)
    book.record("runsc", "b", KVM, "no kvm", 15.0)
    book.record("kata", "b", SHIM, "another handler", 30.0)
    assert book.rows("runsc", 40.0) == (
        FailureSummary(SHIM, "runsc", 2, ("a", "b"), 10.0, 20.0, "second"),
        FailureSummary(KVM, "runsc", 1, ("b",), 15.0, 15.0, "no kvm"),
    )
    assert book.rows("runc", 40.0) == ()


def test_a_cause_keeps_its_beginning_and_its_newest_text() -> None:
    book = FailureHistory()
    book.record("runsc", "a", SHIM, "x", 10.0)
    book.record("runsc", "a", SHIM, "newest", 50.0)
    book.record("runsc", "a", SHIM, "told late", 5.0)
    assert book.rows("runsc", 60.0) == (
        FailureSummary(SHIM, "runsc", 1, ("a",), 5.0, 50.0, "newest"),
    )


def test_the_cause_on_most_nodes_comes_first_and_has_few_examples() -> None:
    book = FailureHistory()
    book.record("runsc", "z", Reason.CGROUP_DRIVER_MISMATCH, "", 1.0)
    for i in range(9):
        book.record("runsc", f"n{i}", SHIM, "", 1.0)
    worst, other = book.rows("runsc", 1.0)
    assert (worst.reason, worst.count, worst.nodes) == (SHIM, 9, ("n0", "n1", "n2", "n3", "n4"))
    assert other.count == 1


def test_a_node_that_works_again_is_cleared_for_that_handler_alone() -> None:
    book = FailureHistory()
    for handler in ("runsc", "kata"):
        book.record(handler, "a", SHIM, "", 1.0)
        book.record(handler, "a", KVM, "", 1.0)
        book.record(handler, "b", SHIM, "", 1.0)
    book.clear("runsc", "a")
    book.clear("runsc", "unknown")
    book.clear("unknown", "a")
    assert [(row.reason, row.nodes) for row in book.rows("runsc", 1.0)] == [(SHIM, ("b",))]
    assert len(book.rows("kata", 1.0)) == 2
    book.forget_node("b")
    assert book.rows("runsc", 1.0) == ()
    assert {row.nodes for row in book.rows("kata", 1.0)} == {("a",)}
    book.forget_node("a")
    assert len(book) == 0


def test_trouble_that_has_not_shown_for_an_hour_is_over() -> None:
    book = FailureHistory()
    book.record("runsc", "a", SHIM, "", 100.0)
    book.record("runsc", "b", SHIM, "", 200.0)
    assert book.rows("runsc", 100.0 + WINDOW_SECONDS)[0].count == 2
    (row,) = book.rows("runsc", 101.0 + WINDOW_SECONDS)
    assert (row.nodes, row.first_seen) == (("b",), 200.0)
    assert book.rows("runsc", 201.0 + WINDOW_SECONDS) == ()
    assert len(book) == 0


def test_what_comes_back_after_the_window_begins_anew() -> None:
    book = FailureHistory()
    book.record("runsc", "a", SHIM, "", 100.0)
    book.record("runsc", "a", SHIM, "", 102.0 + WINDOW_SECONDS)
    assert book.rows("runsc", 200.0 + WINDOW_SECONDS)[0].first_seen == 102.0 + WINDOW_SECONDS


def test_texts_are_cut() -> None:
    book = FailureHistory()
    book.record("runsc", "a", SHIM, "x" * 10_000, 1.0)
    assert len(book.rows("runsc", 1.0)[0].message) <= 512


def test_memory_is_bounded_and_the_stalest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issues, "MAX_FAILURES", 3)
    book = FailureHistory()
    for node in ("a", "b", "c"):
        book.record("runsc", node, SHIM, "", 1.0)
    book.record("runsc", "a", SHIM, "", 2.0)
    book.record("kata", "d", SHIM, "", 3.0)
    assert len(book) == 3
    assert book.rows("runsc", 3.0)[0].nodes == ("a", "c")


def test_a_broken_fleet_is_summed_up_at_once() -> None:
    book = FailureHistory()
    for i in range(5000):
        for reason in (SHIM, KVM, Reason.VM_START_TIMEOUT, Reason.SANDBOX_CREATE_FAILED):
            book.record("runsc", f"n{i:04}", reason, "text", float(i))
    assert len(book) == issues.MAX_FAILURES
    book.record("runsc", "one-more", SHIM, "text", 5000.0)
    assert len(book) == issues.MAX_FAILURES
    began = time.process_time()
    assert len(book.rows("runsc", 5000.0 - 1)) == 4
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


@settings(max_examples=50, deadline=None)
@given(_RECORDS, st.floats(0, 4 * WINDOW_SECONDS))
def test_rows_tell_only_of_the_window_and_of_real_nodes(
    records: list[tuple[str, str, Reason, float]], now: float
) -> None:
    book = FailureHistory()
    for handler, node, reason, at in records:
        book.record(handler, node, reason, "", at)
    for row in book.rows("runsc", now):
        assert row.handler == "runsc"
        assert row.count == len(row.nodes) == len(set(row.nodes)) > 0
        assert row.first_seen <= row.last_seen
        assert now - row.last_seen <= WINDOW_SECONDS
        times = [
            at for handler, _, reason, at in records if (handler, reason) == ("runsc", row.reason)
        ]
        assert row.last_seen == max(times)
        assert row.first_seen in times
