"""The host state of a sandbox, in all combinations: only allocatable hosts count."""

import itertools

import pytest

from sandboxpool.runtimes.evidence import Isolation
from sandboxpool.runtimes.host_state import HostState
from sandboxpool.runtimes.nodes import NodeFacts
from support.builders import facts

WELL = facts()
NODES = [
    None,
    WELL,
    facts(handlers=None),
    facts(handlers=["runc"]),
    facts(ready=False),
    facts(unschedulable=True),
    facts(leaving=True),
]
ISOLATIONS = [None, *Isolation]


def test_in_every_combination_only_an_allocatable_and_proven_host_qualifies() -> None:
    """Spelt out once more, so that the parts cannot drift apart."""
    good = 0
    for node, quarantined, isolation, wanted in itertools.product(
        NODES, [False, True], ISOLATIONS, [False, True]
    ):
        host_state = HostState(node, "runsc", quarantined, isolation, wanted)
        assert host_state.isolation_failed == (wanted and isolation is Isolation.NOT_PROVEN)
        assert host_state.isolation_proven == (not wanted or isolation is Isolation.PROVEN)
        assert not (host_state.isolation_failed and host_state.isolation_proven)
        well = node is not None and node in NODES[1:3]
        assert host_state.allocatable == (
            well and not quarantined and not host_state.isolation_failed
        )
        good += host_state.allocatable and host_state.isolation_proven
    # Two nodes: five of eight combinations of evidence would do, were none quarantined.
    assert good == 2 * 5


@pytest.mark.parametrize(
    ("node", "served"),
    [
        (WELL, True),
        (facts(handlers=None), True),
        (facts(handlers=["runc"]), False),
        (facts(handlers=[]), False),
        (None, False),
    ],
)
def test_a_node_that_cannot_say_may_serve_and_one_that_is_gone_does_not(
    node: NodeFacts | None, served: bool
) -> None:
    assert HostState(node, "runsc").handler_served is served


def test_a_pod_without_a_handler_of_its_own_stands_on_the_default_one() -> None:
    assert HostState(facts(handlers=["", "runc"]), "").handler_served
    assert not HostState(facts(handlers=["runc"]), "").handler_served
