"""Quarantines against a model simple enough to be seen to be right."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sandboxpool.api.reasons import Reason
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.quarantine import Quarantines
from support.builders import NOW, facts
from support.simulation.effort import SIMULATIONS

NODES = ["node-1", "node-2", "node-3"]
HANDLERS = ["runsc", "kata"]
SPANS = st.sampled_from([0.0, 1.0, 4.0, 30.0, 61.0, 1000.0, 1801.0, 3600.0, 3601.0, 1e5])
BACK = st.sampled_from([1.0, 300.0, 1801.0, 1e6])
REASONS = [Reason.SHIM_MISSING, Reason.KVM_UNAVAILABLE]

# The contract, in numbers of its own.
QUIET = 3600.0
LONGEST = 1800.0
FIRST = {False: 5.0, True: 60.0}
JITTER = 0.2

Key = tuple[str, str]


@dataclass
class Judged:
    """One handler in one life of a node."""

    open: bool = False
    witnessed: bool = False
    since: float = 0.0
    level: int = 0
    retry_at: float = 0.0
    reason: Reason = Reason.OK


@dataclass
class Life:
    """One life of a node."""

    number: int = 0
    judged: dict[str, Judged] = field(default_factory=dict)


class QuarantineMachine(RuleBasedStateMachine):
    """Probes fail and work on nodes that are rebooted, under operators that are replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.jitter = 0.0
        self.real = Quarantines(lambda: self.jitter)
        self.lives = {name: Life() for name in NODES}

    def facts(self, name: str) -> NodeFacts:
        return replace(facts(name), boot_id=f"boot-{self.lives[name].number}")

    def all(self) -> list[tuple[Key, Judged]]:
        return [
            ((name, handler), judged)
            for name, life in self.lives.items()
            for handler, judged in life.judged.items()
        ]

    def is_over(self, judged: Judged) -> bool:
        return judged.retry_at <= self.now or judged.retry_at > self.now + LONGEST

    # --- What happens ----------------------------------------------------------------------------

    @rule(span=SPANS)
    def time_passes(self, span: float) -> None:
        self.now += span

    @rule(span=BACK)
    def the_clock_is_put_back(self, span: float) -> None:
        self.now -= span

    @rule(
        name=st.sampled_from(NODES),
        handler=st.sampled_from(HANDLERS),
        witnessed=st.booleans(),
        reason=st.sampled_from(REASONS),
        jitter=st.sampled_from([0.0, 0.5, 0.99]),
    )
    def fails(
        self, name: str, handler: str, *, witnessed: bool, reason: Reason, jitter: float
    ) -> None:
        self.jitter = jitter
        opened = self.real.record_failure(
            self.facts(name), handler, reason, "text", now=self.now, witnessed=witnessed
        )
        known = self.lives[name].judged.setdefault(handler, Judged())
        assert opened == (not known.open)
        if known.open and witnessed:
            return
        if known.open or 0 <= self.now - known.since <= QUIET:
            known.level += 1
        else:
            known.level = 1
        if not known.open:
            known.since = self.now
        known.open, known.witnessed, known.reason = True, witnessed, reason
        delay = FIRST[witnessed]
        for _ in range(known.level - 1):
            delay = min(2 * delay, LONGEST)
        known.retry_at = self.now + delay * (1 - JITTER * jitter)

    @rule(name=st.sampled_from(NODES), handler=st.sampled_from(HANDLERS))
    def works(self, name: str, handler: str) -> None:
        known = self.lives[name].judged.get(handler)
        was_open = known is not None and known.open
        assert self.real.record_success(self.facts(name), handler, now=self.now) == was_open
        if known is not None and was_open:
            self.close(known)

    def close(self, known: Judged) -> None:
        known.open, known.witnessed, known.since = False, False, self.now

    @rule()
    def witnessed_ones_expire(self) -> None:
        over = {key: j for key, j in self.all() if j.open and j.witnessed and self.is_over(j)}
        assert sorted(self.real.expire(self.now)) == sorted(over)
        for known in over.values():
            self.close(known)

    @rule(name=st.sampled_from(NODES), gone=st.booleans())
    def a_life_ends(self, name: str, *, gone: bool) -> None:
        life = self.lives[name]
        were_open = sorted(handler for handler, judged in life.judged.items() if judged.open)
        self.lives[name] = Life(life.number + 1)
        now = None if gone else self.facts(name)
        assert self.real.observe_node(name, now) == were_open

    @rule(name=st.sampled_from(NODES), ready=st.booleans())
    def a_node_changes_and_stays_what_it_is(self, name: str, *, ready: bool) -> None:
        assert self.real.observe_node(name, replace(self.facts(name), ready=ready)) == []

    @rule()
    def another_process_takes_over(self) -> None:
        kept = {name: json.dumps(self.real.dump(name)) for name in NODES}
        self.real = Quarantines(lambda: self.jitter)
        for name, record in kept.items():
            self.real.load(name, json.loads(record) or {})
        assert kept == {name: json.dumps(self.real.dump(name)) for name in NODES}

    # --- What must hold --------------------------------------------------------------------------

    @invariant()
    def the_open_ones_are_the_models(self) -> None:
        expected = {key: judged for key, judged in self.all() if judged.open}
        found = dict(self.real.open())
        assert found.keys() == expected.keys()
        for key, quarantine in found.items():
            assert quarantine == self.real.get(*key)
            judged = expected[key]
            assert quarantine.machine == self.facts(key[0]).machine
            assert (quarantine.witnessed, quarantine.reason, quarantine.changed_at) == (
                judged.witnessed,
                judged.reason,
                judged.since,
            )
            assert quarantine.tries == judged.level
            # The model doubles step by step, the other by a power of two.
            assert abs(quarantine.retry_at - judged.retry_at) < 1e-3
        for name in NODES:
            for handler in HANDLERS:
                assert self.real.is_open(name, handler) == ((name, handler) in expected)

    @invariant()
    def those_without_a_probes_word_are_counted(self) -> None:
        for handler in HANDLERS:
            witnessed = [k for k, j in self.all() if k[1] == handler and j.open and j.witnessed]
            assert len(self.real.witnessed(handler)) == len(witnessed)

    @invariant()
    def what_is_due_is_over_and_the_longest_due_comes_first(self) -> None:
        due = self.real.due(self.now)
        assert sorted(due) == sorted(k for k, j in self.all() if j.open and self.is_over(j))
        times = dict(self.real.open())
        assert [times[key].retry_at for key in due] == sorted(times[key].retry_at for key in due)

    def teardown(self) -> None:
        """Whatever has happened: probes that work, and time, leave nothing open."""
        for (name, handler), judged in self.all():
            if judged.open and not judged.witnessed:
                assert self.real.record_success(self.facts(name), handler, now=self.now)
        for wait in (0.0, LONGEST):
            self.real.expire(self.now + wait)
        assert not list(self.real.open())
        assert not any(len(self.real.witnessed(handler)) for handler in HANDLERS)


QuarantineMachine.TestCase.settings = settings(max_examples=8 * SIMULATIONS, stateful_step_count=40)
TestQuarantines = QuarantineMachine.TestCase
