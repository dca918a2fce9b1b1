"""Hints: who is asked for next, however many there are, and what their wrongness costs."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxpool.runtimes import hints as hints_module
from sandboxpool.runtimes.hints import (
    ANSWERED_SECONDS,
    FREE_WRONG,
    LONGEST_PAUSE_SECONDS,
    MAX_HINTS_OF_A_NAMESPACE,
    MAX_NAMESPACES,
    MAX_WITNESSES,
    QUIET_SECONDS,
    Hints,
)
from sandboxpool.runtimes.nodes import NodeHandler
from support.builders import NOW

HERE: NodeHandler = ("node-1", "runsc")


def pair(i: int) -> NodeHandler:
    return f"node-{i}", "runsc"


class Desk:
    """Hints with a clock; a probe is answered a second after it is sent."""

    def __init__(self) -> None:
        self.hints = Hints()
        self.now = NOW

    def after(self, seconds: float) -> "Desk":
        self.now += seconds
        return self

    def hint(self, namespace: str, where: NodeHandler = HERE) -> "Desk":
        self.hints.add(namespace, where, self.now)
        return self

    @property
    def next_probes(self) -> list[NodeHandler]:
        return self.hints.next_probes(self.now)

    def probe(self, where: NodeHandler = HERE, *, confirmed: bool | None) -> "Desk":
        self.hints.probe_started(where, self.now)
        sent_at = self.now
        self.now += 1
        self.hints.probe_finished(where, sent_at, confirmed=confirmed, now=self.now)
        return self

    def wrong(self, namespace: str, times: int) -> "Desk":
        """So many hints of a namespace, each at another place, prove wrong."""
        for i in range(times):
            where = f"{namespace}-{i}", "runsc"
            self.hint(namespace, where).probe(where, confirmed=False)
        return self

    def witnesses(self, where: NodeHandler = HERE) -> int:
        return self.hints.count_witnesses(where, self.now)


# --- Order ---------------------------------------------------------------------------------------


def test_a_hint_is_wanted_until_it_is_answered() -> None:
    desk = Desk()
    assert desk.next_probes == []
    desk.hint("a")
    assert desk.next_probes == [HERE]
    assert desk.after(100).next_probes == [HERE]
    desk.probe(confirmed=False)
    assert desk.after(100).next_probes == []


def test_the_same_place_is_wanted_once_whoever_asks() -> None:
    desk = Desk()
    for name in ("a", "b", "c"):
        desk.hint(name)
    assert desk.next_probes == [HERE]


def test_of_a_namespace_the_oldest_hint_comes_first() -> None:
    desk = Desk().hint("a", pair(1)).hint("a", pair(2)).hint("a", pair(1))
    assert desk.next_probes == [pair(1), pair(2)]
    desk.probe(pair(1), confirmed=True)
    assert desk.next_probes == [pair(2)]


def test_who_has_been_wrong_least_often_comes_first() -> None:
    desk = Desk().wrong("twice", 2).wrong("once", 1)
    desk.hint("twice", pair(1)).hint("once", pair(2)).hint("never", pair(3))
    assert desk.next_probes == [pair(3), pair(2), pair(1)]


def test_of_equals_who_has_waited_longest_comes_first() -> None:
    desk = Desk()
    serial = itertools.count()
    owners: dict[NodeHandler, str] = {}

    def ask(name: str) -> None:
        where = pair(next(serial))
        owners[where] = name
        desk.hint(name, where)

    for name in "abc":
        ask(name)
    turns = []
    for _ in range(9):
        where = desk.next_probes[0]
        desk.probe(where, confirmed=True)
        turns.append(owners[where])
        # Each asks for the next as soon as the last is answered.
        ask(owners[where])
    assert turns == ["a", "b", "c"] * 3


def test_a_flood_of_two_hundred_namespaces_delays_nobody_else() -> None:
    desk = Desk()
    for i in range(200):
        desk.wrong(f"flood-{i}", 1)
    for i in range(200):
        for j in range(20):
            desk.hint(f"flood-{i}", pair(1000 + 20 * i + j))
    desk.hint("honest")
    assert desk.next_probes[0] == HERE
    numbers = (int(node.removeprefix("node-")) for node, _ in desk.next_probes[1:201])
    first = {(number - 1000) // 20 for number in numbers}
    assert len(first) == 200, "one of each namespace, before the second of any"


def test_a_flood_of_one_namespace_delays_nobody_else() -> None:
    desk = Desk()
    for i in range(MAX_HINTS_OF_A_NAMESPACE):
        desk.hint("flood", pair(100 + i))
    desk.probe(desk.next_probes[0], confirmed=None)
    desk.hint("honest")
    assert desk.next_probes[0] == HERE, "the flood has had its turn"


# --- Wrong hints ---------------------------------------------------------------------------------


def pause_of(desk: Desk, namespace: str) -> int:
    """After how many seconds a namespace is next listened to."""
    desk.hint(namespace, pair(999))
    return next(s for s in range(200) if desk.hints.next_probes(desk.now + s) == [pair(999)])


def test_a_few_wrong_hints_cost_nothing() -> None:
    desk = Desk().wrong("a", FREE_WRONG)
    assert pause_of(desk, "a") == 0


def test_more_of_them_cost_ever_more_up_to_a_minute() -> None:
    # A second has gone since the last was sent.
    pauses = [pause_of(Desk().wrong("a", FREE_WRONG + more), "a") + 1 for more in range(1, 10)]
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert max(pauses) == LONGEST_PAUSE_SECONDS


def test_however_often_it_is_wrong_it_is_listened_to_every_minute() -> None:
    desk = Desk().wrong("a", 2000)
    assert pause_of(desk, "a") == LONGEST_PAUSE_SECONDS - 1


def test_one_that_proves_right_ends_the_pauses() -> None:
    desk = Desk().wrong("a", FREE_WRONG + 5)
    desk.hint("a").probe(confirmed=True)
    desk.hint("a", pair(2)).hint("new", pair(3))
    assert desk.next_probes == [pair(3), pair(2)], (
        "no pause, and no rank behind others but by its turn"
    )


def test_an_hour_without_a_wrong_one_ends_the_pauses() -> None:
    desk = Desk().wrong("a", FREE_WRONG + 10).after(QUIET_SECONDS + 1)
    assert desk.next_probes == []
    desk.hint("a").probe(confirmed=False)
    assert pause_of(desk, "a") == 0


def test_a_probe_that_cannot_tell_makes_nobody_wrong() -> None:
    desk = Desk()
    for i in range(50):
        desk.hint("a", pair(i)).probe(pair(i), confirmed=None)
    assert pause_of(desk, "a") == 0


def test_only_those_who_asked_are_wrong() -> None:
    desk = Desk().hint("b", pair(2)).wrong("a", FREE_WRONG + 6)
    assert desk.next_probes == [pair(2)]


# --- Answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("confirmed", [True, False, None])
def test_what_was_just_answered_is_not_asked_again_for_a_while(confirmed: bool | None) -> None:
    desk = Desk().hint("a").probe(confirmed=confirmed).hint("b")
    assert desk.next_probes == []
    assert desk.after(ANSWERED_SECONDS - 1).next_probes == []
    assert desk.after(1).next_probes == [HERE]


def test_who_asks_for_what_was_just_answered_may_ask_for_another_place() -> None:
    desk = Desk().hint("a").probe(confirmed=False)
    desk.hint("a").hint("a", pair(2))
    assert desk.next_probes == [pair(2)]


@pytest.mark.parametrize("confirmed", [True, False, None])
def test_a_hint_that_is_newer_than_the_probe_stays(confirmed: bool | None) -> None:
    desk = Desk().hint("a")
    desk.hints.probe_started(HERE, desk.now)
    sent_at = desk.now
    desk.after(2).hint("a")
    desk.after(1).hints.probe_finished(HERE, sent_at, confirmed=confirmed, now=desk.now)
    assert desk.next_probes == []
    assert desk.after(ANSWERED_SECONDS).next_probes == [HERE]


def test_a_hint_of_the_probes_own_moment_is_answered() -> None:
    desk = Desk().hint("a").probe(confirmed=False)
    assert desk.after(100).next_probes == []


def test_an_answer_is_about_its_own_node_and_handler() -> None:
    desk = Desk().hint("a").hint("b", ("node-1", "kata")).hint("c", pair(2))
    desk.probe(confirmed=False)
    assert desk.after(100).next_probes == [("node-1", "kata"), pair(2)]


def test_an_answer_that_nobody_asked_for_is_no_harm() -> None:
    desk = Desk().probe(confirmed=None).probe(confirmed=True).probe(confirmed=False)
    assert (desk.next_probes, desk.witnesses()) == ([], 0)


# --- Witnesses -----------------------------------------------------------------------------------


def test_namespaces_that_no_probe_could_answer_are_witnesses_each_once() -> None:
    desk = Desk()
    for name in ("a", "a", "b"):
        desk.hint(name).probe(confirmed=None).after(ANSWERED_SECONDS)
    assert desk.witnesses() == 2
    assert desk.witnesses(pair(2)) == 0


def test_a_witness_is_one_for_an_hour() -> None:
    desk = Desk().hint("a").probe(confirmed=None)
    desk.after(QUIET_SECONDS - 60).hint("b").probe(confirmed=None)
    assert desk.witnesses() == 2
    assert desk.after(60).witnesses() == 1
    assert desk.after(QUIET_SECONDS).witnesses() == 0


def test_a_witness_that_fails_again_is_one_from_then() -> None:
    desk = Desk().hint("a").probe(confirmed=None)
    desk.after(QUIET_SECONDS - 60).hint("a").probe(confirmed=None)
    assert desk.after(QUIET_SECONDS - 60).witnesses() == 1


def test_witnesses_whose_hour_is_over_make_room_for_others() -> None:
    desk = Desk()
    for i in range(MAX_WITNESSES):
        desk.hint(f"n-{i}")
    desk.probe(confirmed=None).after(2 * QUIET_SECONDS)
    desk.hint("a").hint("b").hint("n-0").probe(confirmed=None)
    assert desk.witnesses() == 3


@pytest.mark.parametrize("confirmed", [True, False])
def test_a_probe_that_tells_needs_no_witnesses(confirmed: bool) -> None:
    desk = Desk().hint("a").hint("b").probe(confirmed=None)
    assert desk.witnesses() == 2
    desk.probe(confirmed=confirmed)
    assert desk.witnesses() == 0


# --- Bounds --------------------------------------------------------------------------------------


def test_the_hints_of_a_namespace_are_bounded_and_the_oldest_give_way() -> None:
    desk = Desk()
    for i in range(MAX_HINTS_OF_A_NAMESPACE + 50):
        desk.hint("a", pair(i))
    assert len(desk.hints._namespaces["a"].hints) == MAX_HINTS_OF_A_NAMESPACE
    assert desk.next_probes[0] == pair(50)


def test_the_namespaces_are_bounded_and_those_that_are_quiet_give_way() -> None:
    desk = Desk()
    for i in range(MAX_NAMESPACES + 50):
        desk.hint("steady", pair(0))
        desk.hint(f"n-{i}", pair(i))
    assert len(desk.hints._namespaces) == MAX_NAMESPACES
    assert "steady" in desk.hints._namespaces
    assert "n-0" not in desk.hints._namespaces


def test_the_witnesses_of_a_place_are_bounded() -> None:
    desk = Desk()
    for i in range(3 * MAX_WITNESSES):
        desk.hint(f"n-{i}")
    desk.probe(confirmed=None)
    assert desk.witnesses() == MAX_WITNESSES


def test_the_memory_of_answers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints_module, "MAX_ANSWERS", 10)
    desk = Desk()
    for i in range(50):
        desk.hint("a", pair(i)).probe(pair(i), confirmed=None)
    assert len(desk.hints._answered) == len(desk.hints._witnesses) == 10
    assert desk.witnesses(pair(49)) == 1
    assert desk.witnesses(pair(0)) == 0


# --- Nodes and clocks ----------------------------------------------------------------------------


def test_a_node_that_is_gone_takes_all_along() -> None:
    desk = Desk().hint("a").hint("b").probe(confirmed=None)
    desk.hint("a").hint("a", pair(2)).hint("c", ("node-1", "kata"))
    desk.hints.forget_node("node-1")
    assert desk.next_probes == [pair(2)]
    assert desk.witnesses() == 0
    desk.hint("b")
    assert sorted(desk.next_probes) == [HERE, pair(2)], "a new node may be asked at once"


@pytest.mark.parametrize("back", [QUIET_SECONDS + 1, 86_400.0, NOW])
def test_a_clock_that_is_put_back_keeps_nobody_waiting(back: float) -> None:
    desk = Desk().wrong("a", FREE_WRONG + 20)
    desk.hint("b").probe(confirmed=False)
    desk.after(-back).hint("a", pair(2)).hint("b")
    assert sorted(desk.next_probes) == [HERE, pair(2)]


def test_a_hint_of_the_future_is_answered_by_the_next_probe() -> None:
    desk = Desk().hint("a")
    desk.after(-3600).probe(confirmed=False)
    assert desk.after(ANSWERED_SECONDS).next_probes == []


def test_a_witness_of_the_future_is_none() -> None:
    desk = Desk().hint("a").probe(confirmed=None).after(-3600)
    assert desk.witnesses() == 0


# --- All together --------------------------------------------------------------------------------

steps = st.tuples(
    st.sampled_from(["hint", "probe", "probe", "wait", "forget"]),
    st.sampled_from(["a", "b", "c"]),
    st.integers(0, 3),
    st.sampled_from([True, False, None]),
)


@settings(max_examples=150)
@given(st.lists(steps, max_size=30))
def test_whatever_happens_each_place_is_named_once_and_each_hint_gets_its_answer(
    history: list[tuple[str, str, int, bool | None]],
) -> None:
    desk = Desk()
    asked: dict[tuple[str, NodeHandler], None] = {}
    for what, name, i, right in history:
        if what == "hint":
            desk.hint(name, pair(i))
            asked[name, pair(i)] = None
        elif what == "wait":
            desk.after(1 + 10 * i)
        elif what == "forget":
            desk.hints.forget_node(pair(i)[0])
            asked = {key: None for key in asked if key[1] != pair(i)}
        elif desk.next_probes:
            where = desk.next_probes[0]
            desk.probe(where, confirmed=right)
            asked = {key: None for key in asked if key[1] != where}
        found = desk.next_probes
        assert len(found) == len(set(found))
        assert set(found) <= {where for _, where in asked}
    # Nobody waits for ever: in a minute everybody who still asks is listened to.
    for _ in range(12):
        desk.after(LONGEST_PAUSE_SECONDS)
        for where in desk.next_probes:
            desk.probe(where, confirmed=False)
            asked = {key: None for key in asked if key[1] != where}
    assert asked == {}
