"""Quarantines, by example; against a model in ``unit/model``."""

import json
import logging
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxpool.api.reasons import Reason
from sandboxpool.runtimes.diagnosis import MAX_TEXT
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.quarantine import (
    FIRST_DELAY_SECONDS,
    FIRST_WITNESSED_DELAY_SECONDS,
    JITTER,
    LONGEST_DELAY_SECONDS,
    MAX_KEPT_MESSAGE,
    QUIET_SECONDS,
    Quarantine,
    Quarantines,
)
from support.builders import NOW, facts

RUNSC, KATA = "runsc", "kata-qemu"


class Fleet:
    """Quarantines with a clock, told in few words."""

    def __init__(self, jitter: float = 0.0) -> None:
        self.quarantines = Quarantines(lambda: jitter)
        self.now = NOW

    def record_failure(
        self, node: str | NodeFacts = "node-1", handler: str = RUNSC, **given: Any
    ) -> bool:
        at = facts(node) if isinstance(node, str) else node
        given = {"reason": Reason.SHIM_MISSING, "message": "no shim", "now": self.now, **given}
        return self.quarantines.record_failure(at, handler, **given)

    def witness(self, node: str = "node-1", handler: str = RUNSC) -> bool:
        return self.record_failure(node, handler, reason=Reason.PROBE_UNANSWERED, witnessed=True)

    def record_success(self, node: str = "node-1", handler: str = RUNSC) -> bool:
        return self.quarantines.record_success(facts(node), handler, now=self.now)

    def after(self, seconds: float) -> "Fleet":
        self.now += seconds
        return self

    def get(self, node: str = "node-1", handler: str = RUNSC) -> Quarantine:
        found = self.quarantines.get(node, handler)
        assert found is not None
        return found

    def reborn(self) -> "Fleet":
        """The next process, that knows what this one has written down."""
        other = Fleet()
        other.now = self.now
        for name in ("node-1", "node-2", "node-3"):
            record = self.quarantines.dump(name)
            other.quarantines.load(name, json.loads(json.dumps(record or {})))
        return other

    @property
    def delay(self) -> float:
        return self.get().retry_at - self.now

    @property
    def open(self) -> list[tuple[str, str]]:
        return sorted(key for key, _ in self.quarantines.open())

    @property
    def due(self) -> list[tuple[str, str]]:
        return self.quarantines.due(self.now)


# --- Opening and closing -------------------------------------------------------------------------


def test_a_failed_probe_opens_and_is_reported_once() -> None:
    fleet = Fleet()
    assert fleet.quarantines.get("node-1", RUNSC) is None
    assert fleet.record_failure()
    assert not fleet.record_failure()
    assert fleet.quarantines.is_open("node-1", RUNSC)
    found = fleet.get()
    assert (found.open, found.witnessed, found.changed_at) == (True, False, NOW)
    assert (found.reason, found.message) == (Reason.SHIM_MISSING, "no shim")


def test_each_node_and_handler_has_one_of_its_own() -> None:
    fleet = Fleet()
    fleet.record_failure("node-1", RUNSC)
    fleet.record_failure("node-2", KATA)
    assert fleet.open == [("node-1", RUNSC), ("node-2", KATA)]
    assert not fleet.quarantines.is_open("node-1", KATA)
    assert not fleet.quarantines.is_open("node-2", RUNSC)
    assert not fleet.record_success("node-2", RUNSC)
    assert fleet.record_success("node-1", RUNSC)
    assert fleet.open == [("node-2", KATA)]


def test_a_successful_probe_closes_and_is_reported_once() -> None:
    fleet = Fleet()
    assert not fleet.record_success()
    fleet.record_failure()
    fleet.after(10)
    assert fleet.record_success()
    assert not fleet.record_success()
    assert fleet.open == fleet.after(1e6).due == []
    found = fleet.get()
    assert (found.open, found.changed_at, found.tries) == (False, NOW + 10, 1)
    assert (found.reason, found.message) == (Reason.OK, "")


def test_the_last_probes_words_stand_and_the_opening_keeps_its_time() -> None:
    fleet = Fleet()
    fleet.record_failure()
    fleet.after(60).record_failure(reason=Reason.KVM_UNAVAILABLE, message="no /dev/kvm")
    found = fleet.get()
    assert (found.reason, found.message) == (Reason.KVM_UNAVAILABLE, "no /dev/kvm")
    assert (found.changed_at, found.tries) == (NOW, 2)


def test_a_message_is_bounded_and_keeps_both_ends() -> None:
    fleet = Fleet()
    fleet.record_failure(message="start " + "x" * 100_000 + " end")
    assert len(fleet.get().message) <= MAX_TEXT
    record = fleet.quarantines.dump("node-1")
    assert record is not None
    kept = record["handlers"][RUNSC]["message"]
    assert len(kept) <= MAX_KEPT_MESSAGE
    assert (kept[:5], kept[-3:]) == ("start", "end")


# --- Delays --------------------------------------------------------------------------------------


def test_each_failure_doubles_the_delay_up_to_the_longest() -> None:
    fleet = Fleet()
    delays = []
    for _ in range(40):
        fleet.record_failure()
        delays.append(fleet.delay)
        fleet.after(fleet.delay)
    doubling = [FIRST_DELAY_SECONDS * 2**i for i in range(9)]
    assert delays[:9] == doubling
    assert set(delays[9:]) == {LONGEST_DELAY_SECONDS}


def test_however_long_it_fails_the_delay_stays_a_number() -> None:
    fleet = Fleet()
    for _ in range(3000):
        fleet.record_failure()
    assert fleet.delay == LONGEST_DELAY_SECONDS


@pytest.mark.parametrize("jitter", [0.0, 0.5, 0.999])
def test_a_delay_is_only_ever_shortened_by_chance(jitter: float) -> None:
    fleet = Fleet(jitter)
    for tries in range(1, 20):
        fleet.record_failure()
        full = min(FIRST_DELAY_SECONDS * 2 ** (tries - 1), LONGEST_DELAY_SECONDS)
        assert fleet.delay == pytest.approx(full * (1 - JITTER * jitter))


def test_a_probe_is_due_when_the_delay_is_over_and_the_longest_due_comes_first() -> None:
    fleet = Fleet()
    fleet.record_failure("node-2")
    fleet.after(1).record_failure("node-1")
    assert fleet.due == []
    fleet.after(FIRST_DELAY_SECONDS - 1.5)
    assert fleet.due == []
    fleet.after(0.5)
    assert fleet.due == [("node-2", RUNSC)]
    fleet.after(1)
    assert fleet.due == [("node-2", RUNSC), ("node-1", RUNSC)]


def test_one_that_flaps_within_the_hour_goes_on_with_the_longer_delay() -> None:
    fleet = Fleet()
    delays = []
    for _ in range(5):
        assert fleet.record_failure()
        delays.append(fleet.delay)
        fleet.after(30).record_success()
        fleet.after(QUIET_SECONDS)
    assert delays == [FIRST_DELAY_SECONDS * 2**i for i in range(5)]


def test_after_an_hour_it_is_as_if_it_had_never_been_open() -> None:
    fleet = Fleet()
    for _ in range(6):
        fleet.record_failure()
    fleet.record_success()
    fleet.after(QUIET_SECONDS + 1)
    assert fleet.record_failure()
    assert (fleet.delay, fleet.get().tries) == (FIRST_DELAY_SECONDS, 1)


def test_an_open_one_never_restarts_however_long_no_probe_ran() -> None:
    fleet = Fleet()
    for _ in range(4):
        fleet.record_failure()
    fleet.after(10 * QUIET_SECONDS).record_failure()
    assert fleet.get().tries == 5


# --- The clock -----------------------------------------------------------------------------------


@pytest.mark.parametrize("back", [LONGEST_DELAY_SECONDS, 86_400.0, NOW])
def test_a_clock_that_is_put_back_keeps_no_probe_from_being_due(back: float) -> None:
    fleet = Fleet()
    fleet.record_failure()
    fleet.after(-back)
    assert fleet.due == [("node-1", RUNSC)]
    fleet.record_failure()
    assert fleet.due == []
    assert 0 < fleet.delay <= LONGEST_DELAY_SECONDS


def test_a_clock_that_is_put_back_a_little_delays_a_probe_no_longer_than_any() -> None:
    fleet = Fleet()
    fleet.record_failure()
    fleet.after(-60)
    assert fleet.due == []
    fleet.after(LONGEST_DELAY_SECONDS)
    assert fleet.due == [("node-1", RUNSC)]


def test_a_clock_that_is_put_back_does_not_keep_a_witnessed_one_open() -> None:
    fleet = Fleet()
    fleet.witness()
    fleet.after(-86_400)
    assert fleet.quarantines.expire(fleet.now) == [("node-1", RUNSC)]


def test_what_closed_in_the_future_is_no_reason_for_a_longer_delay() -> None:
    fleet = Fleet()
    for _ in range(5):
        fleet.record_failure()
    fleet.record_success()
    fleet.after(-60).record_failure()
    assert fleet.get().tries == 1


# --- Witnessed ones ------------------------------------------------------------------------------


def test_a_witnessed_one_ends_by_itself() -> None:
    fleet = Fleet()
    assert fleet.witness()
    assert fleet.get().witnessed
    assert fleet.delay == FIRST_WITNESSED_DELAY_SECONDS
    assert len(fleet.quarantines.witnessed(RUNSC)) == 1
    assert fleet.after(FIRST_WITNESSED_DELAY_SECONDS - 1).quarantines.expire(fleet.now) == []
    assert fleet.after(1).quarantines.expire(fleet.now) == [("node-1", RUNSC)]
    assert fleet.open == []
    assert len(fleet.quarantines.witnessed(RUNSC)) == 0
    assert fleet.quarantines.expire(fleet.now) == []


def test_a_proven_one_does_not_end_by_itself() -> None:
    fleet = Fleet()
    fleet.record_failure()
    assert fleet.after(100 * QUIET_SECONDS).quarantines.expire(fleet.now) == []
    assert fleet.open == [("node-1", RUNSC)]


def test_a_witnessed_one_does_not_take_a_proven_ones_place() -> None:
    fleet = Fleet()
    fleet.record_failure()
    before = fleet.get()
    assert not fleet.after(1).witness()
    assert fleet.get() == before
    assert len(fleet.quarantines.witnessed(RUNSC)) == 0


def test_witnesses_do_not_prolong_a_witnessed_one() -> None:
    fleet = Fleet()
    fleet.witness()
    before = fleet.get()
    assert not fleet.after(30).witness()
    assert fleet.get() == before


def test_a_probes_word_takes_a_witnessed_ones_place() -> None:
    fleet = Fleet()
    fleet.witness()
    assert not fleet.after(1).record_failure(), "it was open before"
    assert not fleet.get().witnessed
    assert len(fleet.quarantines.witnessed(RUNSC)) == 0
    assert fleet.after(100 * QUIET_SECONDS).quarantines.expire(fleet.now) == []


def test_a_probe_that_works_closes_a_witnessed_one_too() -> None:
    fleet = Fleet()
    fleet.witness()
    assert fleet.record_success()
    assert len(fleet.quarantines.witnessed(RUNSC)) == 0


def test_a_witnessed_one_that_comes_back_within_the_hour_lasts_longer() -> None:
    fleet = Fleet()
    delays = []
    for _ in range(8):
        fleet.witness()
        delays.append(fleet.delay)
        fleet.after(fleet.delay).quarantines.expire(fleet.now)
    assert delays[:5] == [FIRST_WITNESSED_DELAY_SECONDS * 2**i for i in range(5)]
    assert set(delays[5:]) == {LONGEST_DELAY_SECONDS}


def test_witnessed_ones_are_counted_by_handler() -> None:
    fleet = Fleet()
    for name in ("node-1", "node-2"):
        fleet.witness(name)
    fleet.witness("node-1", KATA)
    fleet.record_failure("node-3")
    counts = [len(fleet.quarantines.witnessed(h)) for h in (RUNSC, KATA, "other")]
    assert counts == [2, 1, 0]


# --- Nodes ---------------------------------------------------------------------------------------

REBOOTED: dict[str, Any]
REPLACED: dict[str, Any]
REBOOTED, REPLACED = {"boot_id": "after-the-reboot"}, {"uid": "another"}


@pytest.mark.parametrize("change", [REBOOTED, REPLACED, None])
def test_a_life_that_ends_takes_its_quarantines_along(change: dict[str, Any] | None) -> None:
    fleet = Fleet()
    fleet.record_failure(handler=RUNSC)
    fleet.record_failure(handler="a")
    fleet.witness(handler="w")
    fleet.record_failure(handler=KATA)
    fleet.record_success(handler=KATA)
    now = replace(facts(), **change) if change is not None else None
    assert fleet.quarantines.observe_node("node-1", now) == ["a", RUNSC, "w"]
    assert fleet.open == []
    assert len(fleet.quarantines.witnessed("w")) == 0
    assert [fleet.quarantines.get("node-1", h) for h in ("a", RUNSC, KATA)] == [None] * 3
    assert fleet.quarantines.dump("node-1") is None
    assert fleet.quarantines.observe_node("node-1", now) == []


@pytest.mark.parametrize("change", [REBOOTED, REPLACED])
def test_a_probe_of_a_changed_node_starts_over(change: dict[str, Any]) -> None:
    fleet = Fleet()
    for _ in range(5):
        fleet.record_failure()
    assert fleet.record_failure(replace(facts(), **change))
    assert fleet.get().tries == 1


def test_a_node_that_stays_the_same_machine_keeps_its_quarantines() -> None:
    fleet = Fleet()
    fleet.record_failure()
    changed = replace(facts(), ready=False, kubelet="v1.37.0", handlers=frozenset())
    assert fleet.quarantines.observe_node("node-1", changed) == []
    assert fleet.quarantines.observe_node("node-2", None) == []
    assert fleet.open == [("node-1", RUNSC)]


# --- What is kept --------------------------------------------------------------------------------


def test_the_next_process_goes_on_where_the_last_one_was() -> None:
    fleet = Fleet()
    for _ in range(3):
        fleet.record_failure("node-1")
    fleet.witness("node-1", KATA)
    fleet.record_failure("node-2")
    fleet.record_success("node-2")
    other = fleet.reborn()
    for name, handler in (("node-1", RUNSC), ("node-1", KATA), ("node-2", RUNSC)):
        assert other.get(name, handler) == fleet.get(name, handler)
    assert other.open == fleet.open
    assert len(other.quarantines.witnessed(KATA)) == 1
    assert other.quarantines.dump("node-1") == fleet.quarantines.dump("node-1")
    other.after(20).record_failure("node-2")
    assert other.get("node-2").tries == 2
    other.after(QUIET_SECONDS)
    assert other.quarantines.expire(other.now) == [("node-1", KATA)]


def test_what_was_kept_of_a_former_life_is_dropped_with_it() -> None:
    fleet = Fleet()
    fleet.record_failure()
    other = fleet.reborn()
    assert other.quarantines.observe_node("node-1", facts()) == []
    rebooted = replace(facts(), **REBOOTED)
    assert other.quarantines.observe_node("node-1", rebooted) == [RUNSC]
    assert other.open == []


def test_nothing_is_kept_of_a_node_of_which_nothing_is_known() -> None:
    fleet = Fleet()
    fleet.record_success("node-1")
    assert fleet.quarantines.dump("node-1") is None
    assert fleet.quarantines.dump("unheard-of") is None


def test_to_load_takes_the_place_of_all_that_was_known_of_the_node() -> None:
    fleet = Fleet()
    fleet.record_failure("node-1", RUNSC)
    record = fleet.quarantines.dump("node-1")
    assert record is not None
    other = Fleet()
    other.witness("node-1", KATA)
    other.quarantines.load("node-1", record)
    assert other.open == [("node-1", RUNSC)]
    assert len(other.quarantines.witnessed(KATA)) == 0


GOOD = {"changedAt": NOW, "tries": 2, "open": True, "retryAt": NOW + 10, "reason": "ShimMissing"}


@pytest.mark.parametrize(
    "record",
    [
        {"uid": "u"},
        {"uid": "u", "bootID": None, "handlers": {}},
        {"uid": "u", "bootID": "b", "handlers": []},
        {"uid": "u", "bootID": "b", "handlers": {RUNSC: {}}},
        {"uid": "u", "bootID": "b", "handlers": {RUNSC: {**GOOD, "tries": 0}}},
        {"uid": "u", "bootID": "b", "handlers": {RUNSC: {**GOOD, "tries": "2"}}},
        {"uid": "u", "bootID": "b", "handlers": {RUNSC: {**GOOD, "open": 1}}},
        {"uid": "u", "bootID": "b", "handlers": {RUNSC: {**GOOD, "reason": "Unheard of"}}},
    ],
)
def test_a_damaged_record_is_as_good_as_none_and_is_logged(
    record: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    fleet = Fleet()
    with caplog.at_level(logging.WARNING):
        fleet.quarantines.load("node-1", record)
    assert "node-1" in caplog.text
    assert fleet.open == []
    assert fleet.record_failure()
    assert fleet.get().tries == 1


def test_an_empty_record_is_nothing_to_speak_of(caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet()
    fleet.quarantines.load("node-1", {})
    assert (caplog.text, fleet.open) == ("", [])


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@given(st.sampled_from([*GOOD, "message", "witnessed"]), anything)
def test_whatever_was_kept_a_probe_works_and_a_quarantine_can_be_left(key: str, value: Any) -> None:
    fleet = Fleet()
    record = {"uid": "node-1-uid", "bootID": "node-1-boot", "handlers": {RUNSC: {**GOOD}}}
    record["handlers"][RUNSC][key] = value  # type: ignore[index]
    fleet.quarantines.load("node-1", record)
    fleet.after(LONGEST_DELAY_SECONDS)
    assert fleet.due == fleet.open
    fleet.record_failure()
    assert 0 < fleet.delay <= LONGEST_DELAY_SECONDS
    assert fleet.record_success()
    assert fleet.open == []
