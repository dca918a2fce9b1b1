"""What is known of one class, gathered from the caches and from what its pools say."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxpool.api.reasons import Reason
from sandboxpool.api.v1alpha1 import SandboxRuntimeStatus
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.fleet.gather import RuntimeStatusGatherer
from sandboxpool.fleet.status import runtime_status
from sandboxpool.runtimes.evidence import Isolation
from sandboxpool.runtimes.failure_history import FailureHistory
from sandboxpool.runtimes.nodes import node_facts
from sandboxpool.sandboxes.startup import WINDOW_SECONDS
from support.builders import NOW, evidence, facts, node, pool_body, runtime
from support.schema import check_written

COUNTED = {
    "replicas": 10,
    "warm": 3,
    "starting": 2,
    "unready": 1,
    "unproven": 1,
    "failed": 1,
    "stranded": 2,
    "claimed": 5,
    "ended": 1,
}


class World:
    def __init__(self) -> None:
        self.clock = 0.0
        self.cluster = ClusterCache()
        self.cluster.classes["gvisor"] = runtime()
        self.cluster.nodes.put(None, node("a"))
        self.cluster.nodes.put(None, node("b", handlers=["runc"]))
        self.pools = PoolStore(lambda old, new: None)
        self.issues = FailureHistory()
        self.fleet = RuntimeStatusGatherer(
            cluster=self.cluster,
            pools=self.pools,
            issues=self.issues,
            wall=lambda: NOW,
            clock=lambda: self.clock,
        )

    def pool(self, name: str, **given: Any) -> None:
        self.pools.observe(pool_body(name, uid=f"{name}-uid", **given))


@pytest.fixture
def world() -> World:
    return World()


def test_the_nodes_are_judged_by_the_class_alone(world: World) -> None:
    """What a template demands concerns its pool."""
    world.pool("picky", template={"spec": {"nodeSelector": {"zone": "x"}}})
    given = world.fleet.gather("gvisor")
    assert given is not None
    assert (given.verdict.serving, given.verdict.not_serving) == (("a",), ("b",))
    world.cluster.classes["gvisor"] = runtime(selector={"zone": "x"})
    given = world.fleet.gather("gvisor")
    assert given is not None
    assert given.verdict.eligible == 0


def test_what_is_known_of_nodes_of_another_class_of_the_handler_is_not_its_own(
    world: World,
) -> None:
    world.cluster.classes["gvisor-x"] = runtime("gvisor-x", uid="x", selector={"zone": "x"})
    at = node("x", labels={"zone": "x"})
    world.cluster.nodes.put(None, at)
    world.issues.record("runsc", "a", Reason.SHIM_MISSING, "no shim", NOW)
    world.cluster.evidence.put("a", "runsc", evidence(Isolation.NOT_PROVEN, facts("a")))
    world.cluster.evidence.put("x", "runsc", evidence(node=node_facts(at)))
    of_all, of_x = world.fleet.gather("gvisor"), world.fleet.gather("gvisor-x")
    assert of_all is not None
    assert of_x is not None
    assert [(row.reason, row.nodes) for row in of_all.issues] == [(Reason.SHIM_MISSING, ("a",))]
    assert of_x.issues == ()
    assert sum(kind.nodes for kind in of_all.evidence) == 2
    assert [kind.example for kind in of_x.evidence] == ["x"]


@pytest.mark.parametrize(
    ("proofs", "wanted"),
    [((), False), (("None",), False), (("None", "PerNode"), True), (("PerSandbox",), True)],
)
def test_proof_is_wanted_if_any_pool_wants_it(
    world: World, proofs: tuple[str, ...], wanted: bool
) -> None:
    world.cluster.evidence.put("a", "runsc", evidence(Isolation.NOT_PROVEN, facts("a")))
    for i, proof in enumerate(proofs):
        world.pool(f"pool-{i}", isolationProof=proof)
    given = world.fleet.gather("gvisor")
    assert given is not None
    assert given.proof_wanted == wanted
    assert given.verdict.not_isolating == (("a",) if wanted else ())
    assert [kind.isolation for kind in given.evidence] == [Isolation.NOT_PROVEN]


@pytest.mark.parametrize(
    ("isolation", "node_name", "pool", "proven"),
    [
        (Isolation.PROVEN, "a", {}, True),
        (Isolation.NOT_PROVEN, "a", {}, False),
        (Isolation.UNAVAILABLE, "a", {}, False),
        # It lists no such handler, whatever was seen there before.
        (Isolation.PROVEN, "b", {}, False),
        # A sandbox that has proven itself, where no probe of the node has answered.
        (None, "a", {"isolationProof": "PerSandbox", "status": {"warm": 1}}, True),
        (None, "a", {"isolationProof": "PerSandbox", "status": {"unproven": 1}}, False),
        # One of a pool that wants no proof says nothing.
        (None, "a", {"isolationProof": "None", "status": {"warm": 1}}, False),
    ],
)
def test_whether_some_sandbox_may_be_handed_out_with_proof(
    world: World, isolation: Isolation | None, node_name: str, pool: dict[str, Any], proven: bool
) -> None:
    if isolation is not None:
        handlers = ["runc"] if node_name == "b" else None
        seen = facts(node_name, handlers=handlers) if handlers else facts(node_name)
        world.cluster.evidence.put(node_name, "runsc", evidence(isolation, seen))
    world.pool("wanting")
    world.pool("pool", **pool)
    given = world.fleet.gather("gvisor")
    assert given is not None
    assert given.proven == proven


def test_only_pools_that_name_the_class_are_its_pools(world: World) -> None:
    world.pool("one", status={"warm": 1, "replicas": 1})
    world.pool("two", status={"warm": 2, "replicas": 2})
    world.pool("other", runtimeClassName="kata", status={"warm": 9, "replicas": 9})
    world.pool("broken", replicas=-1, status={"warm": 9, "replicas": 9})
    given = world.fleet.gather("gvisor")
    assert given is not None
    assert given.pools == ["default/one", "default/two"]
    assert given.sandboxes[SandboxState.WARM] == 3


def test_sandboxes_are_counted_as_their_pools_have_counted_them(world: World) -> None:
    world.pool("pool", status=COUNTED | {"stopping": 4})
    given = world.fleet.gather("gvisor")
    assert given is not None
    assert given.sandboxes == {
        SandboxState.WARM: 3,
        SandboxState.STARTING: 2,
        SandboxState.UNREADY: 1,
        SandboxState.UNPROVEN: 1,
        SandboxState.FAILED: 1,
        # Those that are started for claims are counted with the claimed.
        SandboxState.COLD: 0,
        SandboxState.CLAIMED: 5,
        SandboxState.ENDED: 1,
        SandboxState.STOPPING: 4,
        SandboxState.STRANDED: 2,
    }


def test_issues_and_evidence_are_those_of_its_handler(world: World) -> None:
    world.issues.record("runsc", "a", Reason.SHIM_MISSING, "no shim", NOW)
    world.issues.record("kata", "a", Reason.KVM_UNAVAILABLE, "no /dev/kvm", NOW)
    world.cluster.evidence.put("a", "kata", evidence(node=facts("a")))
    given = world.fleet.gather("gvisor")
    assert given is not None
    assert [row.reason for row in given.issues] == [Reason.SHIM_MISSING]
    assert not given.evidence


def test_a_missing_class_is_of_interest_while_a_pool_names_it(world: World) -> None:
    world.pool("pool", runtimeClassName="gone", status=COUNTED)
    given = world.fleet.gather("gone")
    assert given is not None
    assert (given.runtime, given.verdict.eligible, given.issues) == (None, 0, ())
    assert given.sandboxes[SandboxState.CLAIMED] == 5
    assert world.fleet.gather("nobody names it") is None


def test_a_class_without_pools_is_shown_too(world: World) -> None:
    given = world.fleet.gather("gvisor")
    assert given is not None
    assert (given.pools, given.startup, given.proof_wanted) == ([], None, False)


def test_start_up_times_go_with_their_class_and_with_time(world: World) -> None:
    world.fleet.measured("gvisor", "ready", 1.5)
    world.fleet.measured("kata", "ready", 9.0)
    given = world.fleet.gather("gvisor")
    assert given is not None
    assert given.startup is not None
    assert given.startup.stages["ready"].p50Milliseconds == 1500
    world.clock += WINDOW_SECONDS + 1
    later = world.fleet.gather("gvisor")
    assert later is not None
    assert later.startup is None
    world.fleet.measured("gvisor", "ready", 1.5)
    former = world.cluster.classes.pop("gvisor")
    assert world.fleet.gather("gvisor") is None
    world.cluster.classes["gvisor"] = former
    gathered = world.fleet.gather("gvisor")
    assert gathered is not None
    assert gathered.startup is None, "one made again under the name is another"


junk: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=3)
    | st.lists(st.none())
    | st.just({})
)


@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from(sorted(COUNTED)), junk) | junk)
def test_a_damaged_status_of_a_pool_counts_for_nothing(status: Any) -> None:
    world = World()
    world.pool("damaged", status=status)
    world.pool("well", status=COUNTED)
    given = world.fleet.gather("gvisor")
    assert given is not None
    assert all(count >= 0 for count in given.sandboxes.values())
    assert given.sandboxes[SandboxState.WARM] >= 3
    check_written(SandboxRuntimeStatus, runtime_status(given, {}))
