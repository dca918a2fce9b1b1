"""The label that is advised for a class's scheduling.nodeSelector."""

import dataclasses
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxpool.api.names import HOSTNAME_LABEL
from sandboxpool.runtimes.advice import separating_label
from sandboxpool.runtimes.nodes import NodeFacts
from support.builders import facts

KATA = ("katacontainers.io/kata-runtime", "true")


def nodes(prefix: str, count: int, **labels: str) -> list[NodeFacts]:
    return [
        facts(f"{prefix}-{i}", labels={HOSTNAME_LABEL: f"{prefix}-{i}", **labels})
        for i in range(count)
    ]


def with_labels(name: str, *labels: tuple[str, str]) -> NodeFacts:
    return facts(name, labels=dict(labels))


def test_a_label_of_all_serving_nodes_and_of_no_other_is_found() -> None:
    serving = nodes("a", 3, pool="sandboxes", arch="amd64")
    others = nodes("b", 3, pool="web", arch="amd64")
    assert separating_label(serving, others) == ("pool", "sandboxes")


def test_without_such_a_label_there_is_no_advice() -> None:
    assert separating_label(nodes("a", 2, pool="x"), nodes("b", 2, pool="x")) is None
    serving = [*nodes("a", 2, pool="x"), *nodes("c", 1)]
    assert separating_label(serving, nodes("b", 2, pool="y")) is None
    others = [*nodes("b", 2, pool="y"), *nodes("d", 1, pool="x")]
    assert separating_label(nodes("a", 2, pool="x"), others) is None


@pytest.mark.parametrize(("serving", "others"), [(0, 2), (2, 0), (0, 0)])
def test_where_nothing_is_to_be_separated_there_is_no_advice(serving: int, others: int) -> None:
    assert separating_label(nodes("a", serving, pool="x"), nodes("b", others)) is None


@pytest.mark.parametrize(
    "label",
    [
        (HOSTNAME_LABEL, "kata-runtime"),
        ("example.com/node", "a.example"),
        ("example.com/node", "a"),
        ("example.com/instance-id", "i-1"),
        ("example.com/rack-slot", "slot-1"),
    ],
)
def test_what_names_one_machine_is_never_advised(label: tuple[str, str]) -> None:
    serving = [with_labels("a.example", label)]
    others = [with_labels(f"b-{i}", (label[0], f"slot-{i}9")) for i in range(2)]
    assert separating_label(serving, others) is None


def test_what_several_serving_nodes_share_is_no_id() -> None:
    serving = [with_labels(name, ("example.com/node-pool-id", "7")) for name in ("a", "b")]
    others = [with_labels(f"c-{i}", ("example.com/node-pool-id", str(i))) for i in range(2)]
    assert separating_label(serving, others) == ("example.com/node-pool-id", "7")


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (KATA, ("pool", "x")),
        (("example.com/node-of-the-gVisor-kind", ""), ("a", "b")),
        (("example.com/some-long-key", "x"), ("kubernetes.io/arch", "arm64")),
        (("example.com/some-long-key", "x"), ("topology.kubernetes.io/zone", "a")),
        (("node-role.kubernetes.io/sandbox", ""), ("pool", "x")),
        (("pool", "x"), ("example.com/pool", "x")),
        (("pool-a", "x"), ("pool-b", "x")),
    ],
)
def test_the_label_that_will_last_is_preferred(
    better: tuple[str, str], worse: tuple[str, str]
) -> None:
    for labels in ((better, worse), (worse, better)):
        serving = [with_labels(name, *labels) for name in ("a", "b")]
        assert separating_label(serving, [with_labels("c")]) == better


_LABELS = st.dictionaries(st.sampled_from(["a", "b", "runtime", "c/d"]), st.sampled_from("xy"))


@settings(max_examples=50)
@given(st.lists(_LABELS, max_size=4), st.lists(_LABELS, max_size=4), st.randoms())
def test_the_advice_holds_whatever_the_order(
    with_it: list[dict[str, str]], without: list[dict[str, str]], shuffled: random.Random
) -> None:
    serving = [facts(f"s-{i}", labels=labels) for i, labels in enumerate(with_it)]
    others = [facts(f"o-{i}", labels=labels) for i, labels in enumerate(without)]
    advice = separating_label(serving, others)
    if advice is not None:
        assert all(advice in node.labels for node in serving)
        assert not any(advice in node.labels for node in others)
    shuffled.shuffle(serving)
    shuffled.shuffle(others)
    assert separating_label(serving, others) == advice


@pytest.mark.parametrize("serving", [1, 2500])
def test_a_large_fleet_is_looked_through_at_once(serving: int) -> None:
    common = {f"example.com/label-{i}": "value" for i in range(18)}
    model = facts()
    fleet = [
        dataclasses.replace(
            model,
            name=f"n-{i}",
            labels=frozenset(
                {**common, HOSTNAME_LABEL: f"n-{i}", "pool": str(i >= serving)}.items()
            ),
        )
        for i in range(5000)
    ]
    took = []
    for _ in range(5):
        began = time.process_time()
        assert separating_label(fleet[:serving], fleet[serving:]) == ("pool", "False")
        took.append(time.process_time() - began)
    assert min(took) < 0.05
