"""A burst of claims under a fault that lasts: nothing is lost, doubled or leaked."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import pytest

from chaos import weather
from chaos.burst import burst, outcome, two_pools
from chaos.conftest import StageMaker
from chaos.stage import Stage
from chaos.weather import Weather

FULL = bool(os.environ.get("CHAOS_FULL"))
CLAIMS = 60 if FULL else 20
# How long a fault goes on after the last claim was made.
LASTS_SECONDS = 10.0 if FULL else 2.0
# In how many bursts the operator is killed.
KILLS = int(os.environ.get("CHAOS_KILLS") or (50 if FULL else 2))
ROUND_CLAIMS = 12
# What was asked for unheard is expected for two minutes, and retries pause for up to one.
_PATIENCE_SECONDS = 240.0


@dataclass(frozen=True)
class Case:
    """A fault.

    Attributes:
        changes: What the operator has to be started with for it.
        ends: Phases in which claims may end that do not end so without it.
        full: It is left to `make chaos`.
        gaps: No watch can tell of all of it.
    """

    fault: Weather
    changes: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    full: bool = False
    gaps: bool = False


CASES = [
    Case(weather.the_operator_is_killed, full=True),
    Case(weather.the_api_server_restarts, full=True, gaps=True),
    Case(weather.etcd_is_paused, full=True),
    Case(weather.watches_are_cut),
    Case(weather.watches_are_late),
    Case(weather.watches_are_told_that_it_is_too_late),
    Case(weather.answers_are_lost),
    Case(weather.requests_are_lost),
    Case(weather.requests_are_throttled),
    Case(weather.others_edit_the_same_pods),
    Case(weather.people_strip_labels),
    Case(weather.pods_are_deleted, ends=("Lost",)),
    Case(weather.the_collector_stands_still),
    Case(weather.nodes_are_lost),
    Case(weather.everything_at_once, full=True),
    Case(weather.the_wall_clock_jumps, changes=("shifted_clock",)),
]


def under(stage: Stage, case: Case) -> list[str]:
    """Plays a burst under a fault; returns what went wrong."""
    two_pools(stage, CLAIMS)
    with case.fault(stage):
        burst(stage, CLAIMS)
        # It goes on while sandboxes are made and claims wait for them.
        time.sleep(LASTS_SECONDS)
    return outcome(stage, also=case.ends)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.fault.__name__, marks=[pytest.mark.full] if case.full else [])
        for case in CASES
    ],
)
def test_a_burst_comes_through(case: Case, make_stage: StageMaker) -> None:
    stage = make_stage(*case.changes, patience=_PATIENCE_SECONDS, gaps=case.gaps)
    assert under(stage, case) == []


def test_the_operator_may_die_at_any_moment_of_a_burst(make_stage: StageMaker) -> None:
    stage = make_stage(patience=_PATIENCE_SECONDS)
    two_pools(stage, ROUND_CLAIMS)
    for number in range(KILLS):
        wrong = killed_in(stage, f"round-{number}")
        assert wrong == [], f"in round {number} of {KILLS}"


def killed_in(stage: Stage, prefix: str) -> list[str]:
    """One burst in which the operator dies; afterwards all its claims are gone."""
    with weather.later(stage, stage.operator.kill, within=0.8):
        burst(stage, ROUND_CLAIMS, prefix)
    wrong = outcome(stage)
    for claim in stage.api.list("SandboxClaim"):
        stage.api.delete("SandboxClaim", claim["metadata"]["name"])
    return wrong
