"""Claims that want a sandbox to be started for them, in the pool's one line."""

from typing import Any

import pytest

from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.pools.cold_start import ColdStartRequests, cold_start_refusal
from sandboxpool.pools.decide import decide
from sandboxpool.pools.plan import CreateBackoff
from sandboxpool.runtimes.verdict import Verdict
from sandboxpool.sandboxes.template import ClaimRef
from support.builders import MISSING, NOW, REJECTED, members, pool_input

OWN, WAIT = True, False
FAILED = CreateBackoff(1, NOW + 30.0, Reason.POD_FAILED, "exit code 1")


@pytest.mark.parametrize(
    ("line", "stock", "fields", "cold", "create"),
    [
        pytest.param([OWN] * 3, [], {"replicas": 0}, 3, 0, id="each is started its own"),
        pytest.param([OWN] * 3, [], {"replicas": 2}, 3, 2, id="beside the stock"),
        pytest.param([WAIT] * 3, [], {"replicas": 0}, 0, 0, id="who only waits is started none"),
        pytest.param(
            [OWN] * 3, [], {"replicas": 5, "startup": {"maxStarting": 2}}, 2, 0, id="maxStarting"
        ),
        pytest.param(
            [OWN] * 3,
            members(SandboxState.COLD, 2),
            {"replicas": 0, "startup": {"maxStarting": 3}},
            1,
            0,
            id="those that start already count",
        ),
        pytest.param([OWN] * 3, [], {"replicas": 0, "maxSandboxes": 2}, 2, 0, id="the ceiling"),
        pytest.param(
            [WAIT, OWN], [], {"replicas": 1, "maxSandboxes": 1}, 0, 1, id="first come, first served"
        ),
        pytest.param(
            [WAIT, OWN],
            members(SandboxState.STARTING, 1),
            {"replicas": 1, "maxSandboxes": 2},
            1,
            0,
            id="what starts already is for the first",
        ),
        pytest.param([OWN] * 3, [], {"replicas": 0, "paused": True}, 0, 0, id="paused"),
        pytest.param([OWN] * 3, [], {"replicas": 0, "verdict": Verdict()}, 1, 0, id="no node"),
        pytest.param([OWN], [], {"replicas": 1, "trouble": FAILED}, 0, 0, id="after a failure"),
        pytest.param([OWN], [], {"replicas": 1, "template": REJECTED}, 0, 0, id="a bad template"),
        pytest.param([OWN], [], {"replicas": 1, "resolution": MISSING}, 0, 0, id="no class"),
    ],
)
def test_one_decision_has_the_limits_for_both(
    line: list[bool], stock: Any, fields: dict[str, Any], cold: int, create: int
) -> None:
    given = pool_input(stock, line=line, **fields)
    plan = decide(given)
    assert (plan.cold, plan.create) == (cold, create)
    refusal = cold_start_refusal(given, plan, "pool")
    assert (refusal is not None) == (cold < sum(line)), "who waits is told why"


def test_who_leaves_the_line_wants_none_any_more() -> None:
    demand = ColdStartRequests()
    for name in ("a", "b"):
        assert demand.request_start(ClaimRef(name, f"{name}-uid"))
    assert not demand.request_start(ClaimRef("a", "a-uid"))
    found = demand.in_queue(["x-uid", "b-uid"])
    assert [(uid, ref is not None) for uid, ref in found] == [("x-uid", False), ("b-uid", True)]
    assert demand.pending == ["b-uid"]


def test_the_name_of_a_start_stays_until_it_is_on_its_way_out_or_taken() -> None:
    demand = ColdStartRequests()
    claim = ClaimRef("a", "a-uid")
    demand.request_start(claim)
    first = demand.seed("a-uid", [])
    assert first == demand.seed("a-uid", [])
    assert first != demand.seed("a-uid", ["pod-1-uid"])
    demand.start(claim, "pod-1")
    demand.name_taken("a-uid")
    assert demand.seed("a-uid", []) != first
    assert demand.pop_finished(lambda name: True) == []
    assert demand.pop_finished(lambda name: False) == ["a-uid"]
    assert demand.pod_name_of("a-uid") is None
