"""Breakers: by example, and against what must hold whatever happens, in virtual time."""

import dataclasses
import itertools
import json
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxpool.reasons import Reason
from sandboxpool.runtimes.breaker import (
    JITTER,
    LONGEST_DELAY_SECONDS,
    MAX_KEPT_MESSAGE,
    MAX_MESSAGE,
    QUIET_SECONDS,
    Breaker,
    Breakers,
    Strike,
)
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.suspects import (
    MAX_NODES_OF_A_TEMPLATE,
    MAX_SUSPICIONS,
    MAX_TEMPLATES,
    SUSPECT_SECONDS,
    Suspects,
)
from support.builders import NOW, facts

RUNSC, KATA = "runsc", "kata-qemu"
REASON, OTHER_REASON = Reason.SANDBOX_CREATE_FAILED, Reason.VM_START_TIMEOUT
PROOF = Reason.SHIM_MISSING
MINE, THEIRS, PROBE = "pool-uid/rev-1", "other-uid/rev-1", ""
MANY = 1000

moderate = settings(max_examples=40, deadline=None)


def machine(name: str = "node-1", life: int = 0, uid: str = "") -> NodeFacts:
    return dataclasses.replace(
        facts(name), uid=uid or f"{name}-uid", boot_id=f"{name}-boot-{life}", created=0.0
    )


def strike(
    pod: str, at: float, template: str = THEIRS, *, proves: bool = False, message: str = "text"
) -> Strike:
    return Strike(pod, template, at, PROOF if proves else REASON, message, proves)


class Fleet:
    """Breakers with a clock, told in few words."""

    def __init__(self, jitter: float = 0.0, serving: int = MANY) -> None:
        self.breakers = Breakers(lambda: jitter)
        self.serving = serving
        self.now = NOW
        self._pods = itertools.count()

    def fail(
        self,
        pod: str | None = None,
        node: str = "node-1",
        *,
        template: str = THEIRS,
        proves: bool = False,
        reason: Reason | None = None,
        life: int = 0,
        ago: float = 0.0,
    ) -> bool:
        pod = pod if pod is not None else f"pod-{next(self._pods)}"
        failed = strike(pod, math.floor(self.now - ago), template, proves=proves)
        if reason is not None:
            failed = dataclasses.replace(failed, reason=reason)
        return self.tell(failed, machine(node, life))

    def tell(self, failed: Strike, node: NodeFacts | None = None) -> bool:
        return self.breakers.strike(
            node or machine(), RUNSC, failed, serving=self.serving, now=self.now
        )

    def work(
        self, node: str = "node-1", *, age: float = 0.0, template: str = THEIRS, life: int = 0
    ) -> bool:
        return self.breakers.succeed(
            machine(node, life),
            RUNSC,
            made_at=math.floor(self.now - age),
            template=template,
            now=self.now,
        )

    def after(self, seconds: float) -> "Fleet":
        self.now += seconds
        return self

    def opens(self, node: str = "node-1", **how: Any) -> "Fleet":
        """Open it by three failures that prove nothing."""
        for _ in range(3):
            opened = self.fail(node=node, **how)
        assert opened
        return self

    def get(self, node: str = "node-1") -> Breaker:
        found = self.breakers.get(node, RUNSC)
        assert found is not None
        return found

    @property
    def delay(self) -> float:
        return self.get().retry_at - self.now

    @property
    def open(self) -> list[str]:
        return sorted(node for (node, handler), _ in self.breakers.open() if handler == RUNSC)


# --- Opening -------------------------------------------------------------------------------------


def test_it_opens_at_the_third_pod_that_fails() -> None:
    fleet = Fleet()
    assert [fleet.fail() for _ in range(3)] == [False, False, True]
    assert fleet.open == ["node-1"]
    assert fleet.get().opened_at == fleet.get().changed_at == NOW
    assert fleet.get().reason is REASON
    assert not fleet.get().proven
    assert not fleet.breakers.is_open("node-1", KATA)
    assert not fleet.breakers.is_open("node-2", RUNSC)


def test_a_pod_that_fails_again_and_again_counts_once() -> None:
    fleet = Fleet()
    assert not any(fleet.after(12).fail("the same") for _ in range(20))
    assert len(fleet.get().strikes) == 1


def test_failures_reported_once_and_without_a_pod_are_different_ones() -> None:
    fleet = Fleet()
    assert [fleet.fail("", template=PROBE) for _ in range(3)] == [False, False, True]


def test_a_proof_opens_at_once_and_says_what_it_was() -> None:
    fleet = Fleet()
    fleet.fail()
    assert fleet.fail(proves=True)
    assert fleet.get().proven
    assert (fleet.get().reason, fleet.get().message) == (PROOF, "text")


@pytest.mark.parametrize(("made_after", "opens"), [(1.0, False), (0.0, False), (-1.0, True)])
def test_a_success_wipes_out_the_failures_before_its_creation(
    made_after: float, opens: bool
) -> None:
    fleet = Fleet()
    fleet.fail()
    fleet.fail()
    fleet.after(5).work(age=5 - made_after)
    assert fleet.fail() == opens


def test_what_has_run_for_long_excuses_nothing_however_often_it_is_told() -> None:
    fleet = Fleet()
    fleet.fail()
    for _ in range(2):
        fleet.after(5).work(age=86400)
        opened = fleet.fail()
    assert opened


def test_failures_told_after_the_success_of_a_younger_pod_do_not_count() -> None:
    fleet = Fleet()
    fleet.work()
    fleet.work(age=60)
    assert not any(fleet.fail(ago=seconds) for seconds in range(5))
    assert not fleet.fail(ago=1, proves=True)
    assert fleet.breakers.get("node-1", RUNSC) is None


def test_a_message_is_bounded_and_keeps_its_end() -> None:
    fleet = Fleet()
    text = "start " + "x" * 1000 + " no such file"
    fleet.tell(strike("pod", NOW, proves=True, message=text))
    message = fleet.get().message
    assert len(message) == MAX_MESSAGE
    assert message.startswith("start x")
    assert message.endswith("x no such file")
    kept = restarted(fleet.breakers, ["node-1"]).get("node-1", RUNSC)
    assert kept is not None
    assert len(kept.message) == MAX_KEPT_MESSAGE
    assert kept.message.endswith("x no such file")


def test_nothing_happens_in_the_future_whatever_clocks_say() -> None:
    fleet = Fleet()
    fleet.tell(strike("pod", NOW + 3600))
    fleet.fail()
    fleet.after(5).work()
    assert not any(fleet.after(1).fail() for _ in range(2))
    fleet.work(age=-3600)
    assert fleet.after(1).fail(proves=True)


def test_of_more_failures_than_are_kept_the_latest_are() -> None:
    fleet = Fleet(serving=2).opens("node-2", template=PROBE)
    fleet.after(20)
    for ago in (3, 2, 1, 10):
        fleet.fail(f"pod-{ago}", ago=ago)
    assert [s.pod for s in fleet.get().strikes] == ["pod-3", "pod-2", "pod-1"]


# --- The budget ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("serving", "quarantined"), [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2), (9, 4), (10, 5)]
)
def test_failures_without_proof_quarantine_half_of_the_nodes(
    serving: int, quarantined: int
) -> None:
    fleet = Fleet(serving=serving)
    for i in range(12):
        for _ in range(5):
            fleet.fail(node=f"node-{i}", template=PROBE)
    assert len(fleet.open) == quarantined


def test_proof_needs_no_budget_and_takes_none() -> None:
    fleet = Fleet(serving=4)
    for i in range(4):
        assert fleet.fail(node=f"node-{i}", proves=True)
    for i in range(4, 6):
        fleet.opens(f"node-{i}", template=PROBE)
    assert not any(fleet.fail(node="node-6", template=PROBE) for _ in range(4))
    assert len(fleet.open) == 6


def test_a_closed_breaker_gives_back_what_it_took() -> None:
    fleet = Fleet(serving=2)
    for _ in range(3):
        fleet.after(5).fail(proves=True)
        fleet.after(5).work(template=PROBE)
    fleet.after(1).opens("node-1", template=PROBE)
    assert not any(fleet.fail(node="node-2", template=PROBE) for _ in range(3))
    assert fleet.after(5).work("node-1", template=PROBE)
    assert fleet.after(1).fail(node="node-2", template=PROBE)


def test_what_had_no_budget_opens_when_there_is_room_and_it_is_told_again() -> None:
    fleet = Fleet(serving=2)
    fleet.opens("node-1", template=PROBE)
    assert not any(fleet.fail(f"pod-{i}", "node-2", template=PROBE) for i in range(3))
    assert fleet.after(5).work("node-1", template=PROBE)
    assert fleet.fail("pod-0", "node-2", template=PROBE)


def test_a_scout_that_proves_the_fault_gives_budget_back() -> None:
    fleet = Fleet(serving=2).opens("node-1", template=PROBE)
    fleet.after(2).fail("scout", "node-1", template=PROBE, proves=True)
    fleet.opens("node-2", template=PROBE)


# --- Scouts --------------------------------------------------------------------------------------


def test_the_first_scout_comes_soon_and_sooner_without_proof() -> None:
    fleet = Fleet().opens()
    assert fleet.delay == 1.0
    assert fleet.breakers.due(fleet.now + 0.9) == []
    assert fleet.breakers.due(fleet.now + 1.0) == [("node-1", RUNSC)]
    proven = Fleet()
    proven.fail(proves=True)
    assert proven.delay == 5.0


@pytest.mark.parametrize("proves", [False, True])
@pytest.mark.parametrize("jitter", [0.0, 0.5, math.nextafter(1.0, 0.0)])
def test_failed_scouts_double_the_delay_up_to_its_cap(proves: bool, jitter: float) -> None:
    fleet = Fleet(jitter)
    fleet.opens() if not proves else fleet.fail(proves=True)
    delays = [fleet.delay]
    for i in range(60):
        fleet.after(fleet.delay)
        fleet.after(2).fail(f"scout-{i}", template=PROBE, proves=proves)
        delays.append(fleet.delay)
    stretched = 1 + JITTER * jitter
    longest = LONGEST_DELAY_SECONDS / (1 + JITTER) * stretched
    assert longest <= LONGEST_DELAY_SECONDS
    for i, delay in enumerate(delays):
        assert delay == pytest.approx(min((5 if proves else 1) * 2**i * stretched, longest))


def test_only_scouts_count_while_it_is_open_and_each_of_them_once() -> None:
    fleet = Fleet().opens()
    before = fleet.get()
    fleet.after(3)
    assert not any(fleet.fail() for _ in range(5))
    assert not fleet.fail(proves=True)
    assert fleet.get() == before
    for _ in range(3):
        fleet.after(12).fail("scout-1", template=PROBE)
    assert fleet.get().trips == 2
    fleet.after(12).fail("scout-2", template=PROBE)
    after = fleet.get()
    assert after.trips == 3
    fleet.fail("scout-1", template=PROBE, ago=30)
    assert fleet.get() == after


def test_the_longest_due_comes_first() -> None:
    fleet = Fleet()
    for name in ("node-2", "node-3", "node-1"):
        fleet.after(1).fail(node=name, proves=True)
    order = [("node-2", RUNSC), ("node-3", RUNSC), ("node-1", RUNSC)]
    assert fleet.breakers.due(NOW + 7) == order[:2]
    assert fleet.breakers.due(NOW + 60) == order


def test_a_clock_that_is_put_back_silences_no_breaker() -> None:
    fleet = Fleet()
    fleet.fail(proves=True)
    assert fleet.breakers.due(NOW - 86400) == [("node-1", RUNSC)]


@pytest.mark.parametrize("proves", [False, True])
@pytest.mark.parametrize("back", [0.5, 600.0, 86400.0])
def test_a_clock_that_is_put_back_keeps_no_breaker_open(proves: bool, back: float) -> None:
    fleet = Fleet()
    fleet.opens() if not proves else fleet.fail(proves=True)
    fleet.after(10).fail("scout", template=PROBE)
    fleet.after(-back - 10)
    # The first that is told after it may be of the time before.
    closed = [fleet.after(2).work(template=PROBE) for _ in range(2)]
    assert any(closed)
    assert fleet.open == []


@pytest.mark.parametrize("back", [600.0, 86400.0])
def test_scouts_that_fail_after_the_clock_was_put_back_count(back: float) -> None:
    fleet = Fleet()
    fleet.fail(proves=True)
    fleet.after(10).fail("scout", template=PROBE)
    fleet.after(-back)
    for i in range(3):
        fleet.after(2).fail(f"late-scout-{i}", template=PROBE)
    assert fleet.get().trips >= 4
    assert fleet.breakers.due(fleet.now) == []


def test_failures_count_after_the_clock_was_put_back() -> None:
    fleet = Fleet()
    fleet.fail(proves=True)
    fleet.after(10).work(template=PROBE)
    fleet.after(-86400).work(age=60)
    assert fleet.after(2).fail(proves=True)


# --- Closing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("made_after", "closes"), [(1.0, True), (0.0, False), (-60.0, False)])
@pytest.mark.parametrize("template", [PROBE, THEIRS])
def test_a_sandbox_made_after_the_opening_closes(
    made_after: float, closes: bool, template: str
) -> None:
    fleet = Fleet().opens()
    assert fleet.after(5).work(age=5 - made_after, template=template) == closes
    assert fleet.open == ([] if closes else ["node-1"])
    if closes:
        assert fleet.get() == Breaker(machine().machine, changed_at=fleet.now, trips=1)
        assert fleet.breakers.due(math.inf) == []


def test_flapping_makes_the_delay_grow_and_quiet_ends_it() -> None:
    fleet = Fleet()
    delays = []
    for pause in (60, QUIET_SECONDS - 120, QUIET_SECONDS, QUIET_SECONDS * 2):
        fleet.fail(proves=True)
        delays.append(fleet.delay)
        assert fleet.after(30).work()
        fleet.after(pause)
    assert delays == [5, 10, 20, 40]
    fleet.fail(proves=True)
    assert fleet.delay == 5


def test_a_breaker_that_has_been_quiet_is_forgotten_with_the_next_success() -> None:
    fleet = Fleet()
    fleet.fail(proves=True)
    fleet.after(30).work()
    fleet.after(QUIET_SECONDS).work()
    assert fleet.get().trips == 1
    fleet.after(1).work()
    assert fleet.breakers.get("node-1", RUNSC) is None


def test_failures_that_are_wiped_out_leave_no_breaker() -> None:
    fleet = Fleet()
    fleet.fail()
    fleet.after(1).work()
    assert fleet.breakers.get("node-1", RUNSC) is None


# --- Machines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [machine(life=1), machine(uid="new"), None])
def test_what_is_about_another_machine_is_dropped(other: NodeFacts | None) -> None:
    fleet = Fleet(serving=2).opens()
    kata = strike("pod", NOW, proves=True)
    fleet.breakers.strike(machine(), KATA, kata, serving=2, now=NOW)
    fleet.breakers.strike(machine(), "closed", strike("pod", NOW), serving=2, now=NOW)
    assert fleet.breakers.observe_node("node-1", machine()) == []
    assert fleet.breakers.observe_node("node-1", other) == [KATA, RUNSC]
    assert fleet.breakers.observe_node("node-1", other) == []
    assert fleet.open == []
    assert list(fleet.breakers.open()) == []
    assert [fleet.breakers.get("node-1", handler) for handler in (RUNSC, KATA, "closed")] == [
        None
    ] * 3
    assert fleet.breakers.dump("node-1") is None
    # Nor does it take any budget.
    fleet.opens("node-2")


def test_another_machine_is_noticed_by_whatever_is_told_of_it() -> None:
    failing = Fleet().opens()
    assert not failing.after(1).fail(life=1)
    assert failing.open == []
    working = Fleet().opens()
    assert not working.after(1).work(life=1)
    assert working.open == []


def test_failures_from_before_a_reboot_do_not_count_after_it() -> None:
    fleet = Fleet()
    told = [strike(f"pod-{i}", NOW + i, proves=i == 2) for i in range(3)]
    fleet.after(3)
    for failed in told:
        fleet.tell(failed)
    fleet.breakers.observe_node("node-1", machine(life=1))
    fleet.after(20)
    assert not any(fleet.tell(failed, machine(life=1)) for failed in told)
    assert fleet.fail(proves=True, life=1)
    assert fleet.get().trips == 1


def test_failures_from_before_a_node_joined_do_not_count() -> None:
    fleet = Fleet()
    young = dataclasses.replace(machine(), created=NOW)
    assert not fleet.tell(strike("pod", NOW - 1, proves=True), young)
    assert fleet.after(1).tell(strike("pod", NOW + 1, proves=True), young)


# --- Templates -----------------------------------------------------------------------------------


def test_a_template_that_fails_on_every_node_quarantines_none() -> None:
    fleet = Fleet()
    for i, j in itertools.product(range(5), range(10)):
        assert not fleet.fail(node=f"node-{j}", template=MINE), i
    assert fleet.open == []


def test_it_is_no_template_if_others_fail_there_too() -> None:
    fleet = Fleet()
    names = ("node-1", "node-2", "node-3")
    for template in (THEIRS, MINE, MINE):
        assert not any(fleet.fail(node=name, template=template) for name in names)
    assert all(fleet.fail(node=name, template=MINE) for name in names)


def test_a_node_where_others_failed_later_speaks_for_the_template_too() -> None:
    fleet = Fleet()
    fleet.fail(node="node-1", template=MINE)
    fleet.fail(node="node-2", template=MINE)
    fleet.fail(node="node-1", template=PROBE)
    fleet.opens("node-3", template=MINE)


def test_a_node_counts_against_a_template_as_it_is_now() -> None:
    fleet = Fleet()
    fleet.fail(node="node-1", template=MINE)
    fleet.after(5).work("node-1", template=PROBE)
    fleet.after(5).fail(node="node-1", template=THEIRS)
    fleet.fail(node="node-1", template=MINE)
    fleet.fail(node="node-2", template=MINE)
    fleet.opens("node-3", template=MINE)


def test_it_is_no_template_if_the_reasons_differ() -> None:
    fleet = Fleet()
    fleet.fail(node="node-1", template=MINE, reason=OTHER_REASON)
    fleet.fail(node="node-2", template=MINE)
    fleet.fail(node="node-3", template=MINE)
    fleet.fail(node="node-3", template=MINE)
    assert fleet.fail(node="node-3", template=MINE)


def test_a_template_that_has_ever_worked_is_no_suspect() -> None:
    fleet = Fleet()
    fleet.work("node-9", template=MINE, age=86400)
    for i, j in itertools.product(range(3), range(4)):
        assert fleet.fail(node=f"node-{j}", template=MINE) == (i == 2)


def test_suspicion_ends_at_once_when_the_template_works_anywhere() -> None:
    fleet = Fleet()
    for i in range(4):
        fleet.fail(node=f"node-{i}", template=MINE)
    assert not any(fleet.fail(node="node-1", template=MINE) for _ in range(5))
    fleet.work("node-9", template=MINE, age=100)
    fleet.after(1).opens("node-8", template=MINE)


def test_proof_counts_whoever_is_under_suspicion() -> None:
    fleet = Fleet()
    for i in range(4):
        fleet.fail(node=f"node-{i}", template=MINE)
    assert fleet.fail(node="node-1", template=MINE, proves=True)


def cleared(template: str = MINE) -> Fleet:
    """A template that works elsewhere, and a node that only a probe could rehabilitate."""
    fleet = Fleet()
    fleet.work("node-9", template=template)
    fleet.opens(template=template)
    assert fleet.after(2).work(template=PROBE)
    return fleet.after(1)


def test_a_probe_that_works_where_a_template_failed_makes_it_a_suspect_everywhere() -> None:
    fleet = cleared()
    for name in ("node-1", "node-2"):
        assert not any(fleet.fail(node=name, template=MINE) for _ in range(5))
        assert fleet.breakers.get(name, RUNSC) == (fleet.get() if name == "node-1" else None)
    fleet.opens("node-2", template=THEIRS)
    fleet.after(SUSPECT_SECONDS).opens("node-3", template=MINE)


def test_suspicion_does_not_last_longer_because_the_clock_was_put_back() -> None:
    cleared().after(-86400).opens("node-3", template=MINE)


def test_what_it_had_failed_elsewhere_no_longer_counts_either_nor_takes_room() -> None:
    fleet = Fleet()
    fleet.work("node-9", template=MINE)
    fleet.after(1).fail(node="node-2", template=THEIRS)
    fleet.after(1).fail(node="node-2", template=MINE)
    fleet.opens(template=MINE)
    fleet.after(2).work(template=PROBE)
    assert not fleet.fail(node="node-2", template=THEIRS)
    assert fleet.fail(node="node-2", template=THEIRS)


def test_a_cleared_template_must_work_with_a_new_sandbox_and_on_the_very_node() -> None:
    fleet = cleared()
    fleet.work("node-9", template=MINE, age=600)
    assert not any(fleet.fail(node="node-2", template=MINE) for _ in range(3))
    fleet.work("node-9", template=MINE)
    fleet.opens("node-2", template=MINE)
    assert not any(fleet.fail(node="node-1", template=MINE) for _ in range(3))
    fleet.work("node-1", template=MINE)
    fleet.after(1).opens("node-1", template=MINE)


def test_a_template_is_not_blamed_once_a_probe_has_failed_too() -> None:
    fleet = Fleet()
    fleet.work("node-9", template=MINE)
    fleet.opens(template=MINE)
    fleet.after(2).fail("scout", template=PROBE)
    assert fleet.after(10).work(template=PROBE)
    fleet.after(1).opens(template=MINE)


def test_a_template_is_not_blamed_for_what_was_proven_nor_by_other_sandboxes() -> None:
    proven = Fleet()
    proven.fail(template=MINE, proves=True)
    assert proven.after(10).work(template=PROBE)
    proven.after(1).opens(template=MINE)
    other = Fleet().opens(template=MINE)
    assert other.after(10).work(template=THEIRS)
    other.after(1).opens(template=MINE)


def test_what_is_held_against_templates_is_bounded() -> None:
    suspects = Suspects()
    for i in range(MAX_SUSPICIONS + 10):
        suspects.failed(f"template-{i}", f"node-{i}", REASON, (), NOW)
        suspects.failed("one", f"node-{i}", REASON, (), NOW)
        suspects.cleared(f"node-{i}", f"template-{i}", NOW)
    assert len(suspects._histories) == MAX_TEMPLATES
    assert len(suspects._suspicions) == MAX_SUSPICIONS
    assert len(suspects._histories["one"].failed_on) == MAX_NODES_OF_A_TEMPLATE
    assert not suspects.ignores("template-0", "node-0", NOW)
    assert suspects.ignores(f"template-{MAX_SUSPICIONS}", "any node", NOW)


# --- What is kept --------------------------------------------------------------------------------


def restarted(breakers: Breakers, nodes: list[str]) -> Breakers:
    """The next process, by way of JSON."""
    new = Breakers(lambda: 0.0)
    for name in nodes:
        record = breakers.dump(name)
        if record is not None:
            new.load(name, json.loads(json.dumps(record)))
    return new


def test_what_opened_survives_and_what_did_not_is_not_kept() -> None:
    fleet = Fleet(serving=2).opens("node-1")
    fleet.fail(node="node-2", proves=True)
    fleet.fail(node="node-3", proves=True)
    fleet.after(10).work("node-3")
    fleet.fail(node="node-4")
    names = ["node-1", "node-2", "node-3", "node-4"]
    new = restarted(fleet.breakers, names)
    for name in names[:3]:
        assert new.get(name, RUNSC) == dataclasses.replace(fleet.get(name), strikes=())
    assert new.get("node-4", RUNSC) is None
    assert fleet.breakers.dump("node-4") is None
    assert {key for key, _ in new.open()} == {("node-1", RUNSC), ("node-2", RUNSC)}
    assert new.observe_node("node-1", machine("node-1")) == []
    # The budget is as it was.
    fleet.breakers = new
    assert not any(fleet.fail(node="node-5", template=PROBE) for _ in range(3))


def test_what_is_loaded_replaces_what_was_known() -> None:
    fleet = Fleet().opens()
    record = fleet.breakers.dump("node-1")
    assert record is not None
    kata = strike("pod", NOW, proves=True)
    fleet.breakers.strike(machine(), KATA, kata, serving=MANY, now=NOW)
    fleet.breakers.load("node-1", record)
    assert [key for key, _ in fleet.breakers.open()] == [("node-1", RUNSC)]


def test_a_scout_closes_what_an_earlier_process_opened() -> None:
    fleet = Fleet().opens()
    fleet.breakers = restarted(fleet.breakers, ["node-1"])
    assert fleet.after(5).work(template=PROBE)


def test_the_record_of_a_former_machine_is_worth_nothing() -> None:
    breakers = restarted(Fleet().opens().breakers, ["node-1"])
    assert breakers.observe_node("node-1", machine(life=1)) == [RUNSC]
    assert list(breakers.open()) == []


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"uid": "u"},
        {"uid": "u", "bootID": "b", "handlers": []},
        {"uid": "u", "bootID": "b", "handlers": {"runsc": None}},
        {"uid": "u", "bootID": "b", "handlers": {"runsc": {"changedAt": "now", "trips": 1}}},
        {"uid": "u", "bootID": "b", "handlers": {"runsc": {"changedAt": 1.0, "trips": 0}}},
        {
            "uid": "u",
            "bootID": "b",
            "handlers": {"runsc": {"changedAt": 1.0, "trips": 1, "reason": "FromTheFuture"}},
        },
    ],
)
def test_a_damaged_record_is_as_good_as_none(record: dict[str, Any]) -> None:
    breakers = Breakers(lambda: 0.0)
    breakers.load("node-1", record)
    assert list(breakers.open()) == []
    assert breakers.dump("node-1") is None


# --- Properties ----------------------------------------------------------------------------------

short = st.integers(0, 30)


@st.composite
def failures(draw: st.DrawFn) -> list[tuple[str, Strike]]:
    """Failures on some nodes, each of a pod of its own; no template among them is a suspect."""
    return [
        (
            draw(st.sampled_from(["node-1", "node-2", "node-3"])),
            strike(f"pod-{i}", NOW + draw(short), PROBE, proves=draw(st.booleans())),
        )
        for i in range(draw(st.integers(0, 12)))
    ]


@moderate
@given(failures(), st.randoms(use_true_random=False))
def test_the_order_among_nodes_does_not_matter(
    told: list[tuple[str, Strike]], order: random.Random
) -> None:
    def result(shuffled: bool) -> dict[str, Breaker | None]:
        by_node = {name: [s for n, s in told if n == name] for name, _ in told}
        names = [name for name, _ in told]
        if shuffled:
            order.shuffle(names)
        breakers = Breakers(lambda: 0.0)
        for name in names:
            failed = by_node[name].pop(0)
            breakers.strike(machine(name), RUNSC, failed, serving=MANY, now=NOW + 60)
        return {name: breakers.get(name, RUNSC) for name in by_node}

    assert result(shuffled=True) == result(shuffled=False)


@moderate
@given(failures(), st.integers(0, 3), st.randoms(use_true_random=False))
def test_telling_all_again_after_the_closing_changes_nothing(
    told: list[tuple[str, Strike]], serving: int, order: random.Random
) -> None:
    breakers = Breakers(lambda: 0.0)
    for name, failed in told:
        breakers.strike(machine(name), RUNSC, failed, serving=serving, now=NOW + 60)
    names = sorted({name for name, _ in told})
    for name in names:
        node = machine(name)
        breakers.succeed(node, RUNSC, made_at=NOW + 70, template=PROBE, now=NOW + 75)
    closed = {name: breakers.get(name, RUNSC) for name in names}
    again = [*told, *told]
    order.shuffle(again)
    for name, failed in again:
        assert not breakers.strike(machine(name), RUNSC, failed, serving=serving, now=NOW + 80)
    assert {name: breakers.get(name, RUNSC) for name in names} == closed
    assert list(breakers.open()) == []


anything = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(max_size=12)


@st.composite
def calls(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    nodes = st.builds(
        lambda name, life, created: dataclasses.replace(machine(name, life), created=created),
        st.sampled_from(["", "a"]),
        st.integers(0, 1),
        anything,
    )
    strikes = st.builds(
        Strike, text, text, anything, st.sampled_from(Reason), st.text(), st.booleans()
    )
    handler = st.sampled_from(["", "h"])
    return draw(
        st.lists(
            st.one_of(
                st.tuples(st.just("strike"), nodes, handler, strikes, st.integers(), anything),
                st.tuples(st.just("succeed"), nodes, handler, anything, text, anything),
                st.tuples(st.just("observe_node"), handler, st.none() | nodes),
                st.tuples(st.just("load"), st.sampled_from(["", "a"]), anything, st.integers()),
                st.tuples(st.just("due"), anything),
            ),
            max_size=20,
        )
    )


@settings(max_examples=30, deadline=None)
@given(calls())
def test_nothing_finite_is_refused(told: list[tuple[Any, ...]]) -> None:
    breakers = Breakers(lambda: 0.5)
    for name, *args in told:
        match name:
            case "strike":
                node, handler, failed, serving, now = args
                breakers.strike(node, handler, failed, serving=serving, now=now)
            case "succeed":
                node, handler, made_at, template, now = args
                breakers.succeed(node, handler, made_at=made_at, template=template, now=now)
            case "load":
                node, at, trips = args
                kept = {"changedAt": at, "trips": trips, "open": True, "retryAt": at}
                breakers.load(node, {"uid": "u", "bootID": "b", "handlers": {"h": kept}})
            case _:
                getattr(breakers, name)(*args)
        for (node, handler), open_ in breakers.open():
            assert breakers.get(node, handler) == open_
            assert breakers.is_open(node, handler)
            assert breakers.dump(node)
