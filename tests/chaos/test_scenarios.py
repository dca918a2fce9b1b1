"""One fault at the worst moment: nothing is lost, doubled or leaked. And each guard is needed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from chaos import scenarios
from chaos.conftest import StageMaker
from chaos.stage import Stage
from fakekubelet import FakeNode, FakeNodes

Scenario = Callable[[Stage], list[str]]

# How long an operator without a guard is given to settle: what it breaks shows at once.
_SABOTAGE_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Case:
    """A scenario, and the guards that it needs.

    Attributes:
        guards: Names of changes in `support.sabotage` that take one out, and what is found then.
        needs: Changes that only make long times short, or move the clock.
        own: It needs an operator that no other scenario has.
        full: It is left to `make chaos`.
    """

    play: Scenario
    guards: dict[tuple[str, ...], str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    own: bool = False
    full: bool = False


# One of each family is looked at in each run of the tests: binding, answers, deletes, ceilings,
# memory, lists. `make chaos` takes out all.
_ALWAYS = {
    "binding_ignores_versions",
    "unknown_outcomes_are_failures",
    "deletes_without_conditions",
    "leaving_pods_make_room",
    "expectations_are_forgotten",
    "lists_only_add",
}


def _marks(without: tuple[str, ...]) -> list[pytest.MarkDecorator]:
    return [] if without[0] in _ALWAYS else [pytest.mark.full]


CASES = [
    Case(
        scenarios.a_pod_is_taken_while_it_is_being_bound,
        {("binding_ignores_versions",): "went from claim uid"},
    ),
    Case(
        scenarios.the_answer_to_a_binding_is_lost,
        {("unknown_outcomes_are_failures",): "has 2 pods"},
    ),
    Case(
        scenarios.a_binding_arrives_late,
        {("lost_bindings_go_elsewhere",): "has 2 pods"},
    ),
    Case(
        scenarios.a_claim_is_made_again_while_it_is_being_bound,
        {("status_ignores_uids",): "not its own"},
    ),
    Case(
        scenarios.a_claim_is_told_late,
        {("taken_pods_are_forgotten",): "has 2 pods"},
    ),
    Case(
        scenarios.a_bound_claim_is_looked_at_before_any_watch_shows_it,
        {("bindings_are_forgotten",): "has 2 pods"},
    ),
    Case(
        scenarios.a_claim_expires_while_it_is_given_more_time,
        {("status_ignores_versions",): "is Expired, with time left"},
    ),
    Case(
        scenarios.a_second_pod_carries_a_claim,
        {("second_pods_are_kept",): "it has kept"},
    ),
    Case(
        scenarios.a_pod_is_taken_while_it_is_being_deleted,
        {("deletes_without_conditions",): "deleted under its claim"},
    ),
    Case(
        scenarios.a_claim_comes_while_the_last_pod_is_being_deleted,
        # Either of the two alone is enough.
        {("leaving_pods_are_offered", "deletes_without_conditions"): "deleted under its claim"},
    ),
    Case(
        scenarios.the_answer_to_a_create_is_lost,
        {("retries_take_new_names",): "over maxSandboxes"},
    ),
    Case(
        scenarios.a_cold_start_arrives_after_its_sender_has_died,
        {("cold_names_are_random",): "has 2 pods"},
    ),
    Case(
        scenarios.the_target_rises_while_no_watch_shows_the_new_pods,
        {("expectations_are_forgotten",): "over maxSandboxes"},
    ),
    Case(
        scenarios.a_pod_takes_long_to_go,
        {("leaving_pods_make_room",): "over maxSandboxes"},
    ),
    Case(
        scenarios.a_start_with_a_slow_list,
        {("half_a_view_is_enough",): "over maxSandboxes"},
    ),
    Case(scenarios.lists_come_in_small_pages),
    Case(
        scenarios.a_pod_vanishes_while_the_watch_is_told_that_it_is_too_late,
        {("lists_only_add",): "in truth it is"},
    ),
    Case(
        scenarios.the_labels_of_a_claimed_pod_are_stripped,
        {("unseen_pods_are_lost",): "Lost, and its pod lives"},
    ),
    Case(
        scenarios.a_node_is_cordoned_under_warm_pods,
        {("nodes_do_not_matter",): "on a cordoned node"},
    ),
    Case(
        scenarios.more_claims_than_pods,
        {
            ("last_come_is_first_served",): "was served as number",
            ("waiting_is_reported",): "writes of their own",
        },
    ),
    Case(
        scenarios.a_crowd_at_another_pool,
        {("one_claim_at_a_time_and_in_line",): "came before theirs"},
        full=True,
    ),
    # These need an operator of their own.
    Case(
        scenarios.a_watch_falls_silent,
        {("silence_is_patience",): "was not missed"},
        needs=("impatient_watches",),
    ),
    Case(scenarios.the_owner_of_a_claimed_pod_is_taken_away),
    Case(scenarios.the_status_of_a_bound_claim_is_wiped),
    Case(
        scenarios.a_claim_leaves_its_pod_an_orphan,
        needs=("frequent_sweeps",),
    ),
    Case(
        scenarios.strangers_carry_the_labels_of_a_pool_and_of_a_claim,
        needs=("frequent_sweeps",),
    ),
    Case(
        scenarios.a_claim_is_bound_before_it_is_seen,
        {("orphans_are_guessed",): "deleted under its claim"},
        needs=("frequent_sweeps",),
    ),
    Case(
        scenarios.the_clock_goes_back_after_a_failure,
        {("set_back_clocks_are_trusted",): "in truth it is"},
        needs=("shifted_clock",),
    ),
    Case(
        scenarios.two_operators_run_with_one_lease,
        {("everybody_leads",): "over maxSandboxes"},
        own=True,
    ),
]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.play.__name__, marks=[pytest.mark.full] if case.full else [])
        for case in CASES
    ],
)
def test_nothing_is_lost_doubled_or_leaked(case: Case, make_stage: StageMaker) -> None:
    assert case.play(make_stage(*case.needs, own=case.own)) == []


@pytest.mark.parametrize(
    ("case", "without", "found"),
    [
        pytest.param(case, without, found, id="-".join(without), marks=_marks(without))
        for case in CASES
        for without, found in case.guards.items()
    ],
)
def test_it_is_noticed_when_the_guard_is_missing(
    case: Case, without: tuple[str, ...], found: str, make_stage: StageMaker
) -> None:
    # What takes a guard out comes last: it may undo what the scenario only makes quicker.
    stage = make_stage(*case.needs, *without, patience=_SABOTAGE_PATIENCE_SECONDS, hasty=True)
    violations = case.play(stage)
    assert any(re.search(found, text) for text in violations), violations


@pytest.mark.full
def test_five_thousand_claims_on_a_hundred_pods(make_stage: StageMaker, nodes: FakeNodes) -> None:
    nodes.add(*(FakeNode(f"more-{number}", {"runsc"}) for number in range(4)))
    stage = make_stage(patience=300)
    assert scenarios.more_claims_than_pods(stage, claims=5000, replicas=100) == []


def test_a_hundred_claims_on_twenty_pods(make_stage: StageMaker) -> None:
    stage = make_stage(patience=120)
    assert scenarios.more_claims_than_pods(stage, claims=100, replicas=20) == []
