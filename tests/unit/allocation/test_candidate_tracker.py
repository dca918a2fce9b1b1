"""Which sandboxes may be handed out: each reason that speaks against one, alone."""

from collections.abc import Callable
from typing import Any

import pytest

from sandboxpool.allocation.allocator import Allocator
from sandboxpool.allocation.candidate_tracker import CandidateTracker
from sandboxpool.api.core import Pod
from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.pool import Pool
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.runtimes.evidence import Isolation
from support.builders import NOW, evidence, node, pod, pool, pool_body, runtime


class World:
    """One pool that requires proof, one node with proof, one allocatable sandbox."""

    def __init__(self) -> None:
        self.cluster = ClusterCache()
        self.cluster.classes["gvisor"] = runtime()
        self.cluster.nodes.put(None, node())
        self.learn(Isolation.PROVEN, "a kernel of its own")
        self.pools = PoolStore(lambda old, new: None)
        self.pools.observe(pool_body(isolationProof="PerNode"))
        self.allocator = Allocator()
        self.leaving: set[str] = set()
        self.candidate_tracker = CandidateTracker(
            self.cluster,
            self.pools,
            self.allocator,
            is_deleting=lambda pool, pod: pod in self.leaving,
            on_allocated=lambda claim: None,
        )

    def learn(self, isolation: Isolation, message: str = "seen") -> None:
        at = self.cluster.nodes.get("node-1")
        self.cluster.evidence.put("node-1", "runsc", evidence(isolation, at, message=message))

    def quarantine(self) -> None:
        at = self.cluster.nodes.get("node-1")
        assert at is not None
        self.cluster.quarantines.record_failure(
            at, "runsc", Reason.SHIM_MISSING, "no shim", now=NOW
        )

    def put_node(self, **given: Any) -> None:
        self.cluster.nodes.put(node(), node(**given))

    def cordon(self) -> None:
        """While another node serves the handler."""
        self.cluster.nodes.put(None, node("node-2"))
        self.put_node(unschedulable=True)

    def put_class(self, **given: Any) -> None:
        self.cluster.classes["gvisor"] = runtime(**given)

    def put_pool(self, **given: Any) -> None:
        self.pools.observe(
            pool_body(version=2, generation=2, **{"isolationProof": "PerNode", **given})
        )

    @property
    def pool(self) -> Pool:
        (found,) = self.pools
        return found


def nothing(world: World) -> None:
    """Change nothing."""


AGAINST: dict[str, tuple[Callable[[World], Any], dict[str, Any]]] = {
    "it is not ready": (nothing, {"ready": False}),
    "it is being deleted": (nothing, {"deleting": True}),
    "it is another claim's": (nothing, {"claim": "other"}),
    "it is of a class of another life": (nothing, {"runtime_uid": "former"}),
    "admission gave it another class": (nothing, {"class_name": "runc"}),
    "its node is not known": (nothing, {"node": "unseen"}),
    "we are deleting it": (lambda w: w.leaving.add("pod-1-uid"), {}),
    "its node is not ready": (lambda w: w.put_node(ready=False), {}),
    "its node is cordoned": (lambda w: w.cordon(), {}),
    "its node has lost the handler": (lambda w: w.put_node(handlers=["runc"]), {}),
    "its node is quarantined": (lambda w: w.quarantine(), {}),
    "its node does not isolate": (lambda w: w.learn(Isolation.NOT_PROVEN), {}),
    "its node was rebooted": (lambda w: w.put_node(boot_id="after the reboot"), {}),
    "the class is gone": (lambda w: w.cluster.classes.clear(), {}),
    "the class was made again": (lambda w: w.put_class(uid="remade"), {}),
    "the pool is of another class": (lambda w: w.put_pool(runtimeClassName="kata"), {}),
    "the pool pins another handler": (lambda w: w.put_pool(expectedHandler="kata"), {}),
    "the pool wants each sandbox proven": (lambda w: w.put_pool(isolationProof="PerSandbox"), {}),
    "the pool is going": (lambda w: w.put_pool(deleting=True), {}),
    "the pool does not fit the API": (lambda w: w.put_pool(replicas=-1), {}),
}


def test_an_allocatable_pod_is_a_candidate() -> None:
    world = World()
    assert world.candidate_tracker.is_allocatable(pod(), world.pool)
    world.candidate_tracker.refresh([pod()])
    assert world.allocator.free("pool-uid") == 1


def test_if_every_node_is_cordoned_their_pods_are_allocatable() -> None:
    world = World()
    world.put_node(unschedulable=True)
    assert world.candidate_tracker.is_allocatable(pod(), world.pool)
    world.put_node(unschedulable=True, leaving=True)
    assert not world.candidate_tracker.is_allocatable(pod(), world.pool), "it is about to go"
    world.put_node(unschedulable=True, handlers=["runc"])
    assert not world.candidate_tracker.is_allocatable(pod(), world.pool), "no other hold is lifted"


@pytest.mark.parametrize("why", AGAINST)
def test_each_single_obstacle_makes_a_pod_unallocatable(why: str) -> None:
    world = World()
    world.candidate_tracker.refresh([pod()])
    happens, of_pod = AGAINST[why]
    happens(world)
    it = pod(**of_pod)
    assert not world.candidate_tracker.is_allocatable(it, world.pool)
    world.candidate_tracker.refresh([it])
    assert world.allocator.free("pool-uid") == 0


@pytest.mark.parametrize(
    ("happens", "of_pod"),
    [
        (nothing, {"revision": "old"}),
        (nothing, {"overhead": {"memory": "130Mi"}}),
        (lambda w: w.put_node(handlers=None), {}),
        (lambda w: w.put_node(labels={}), {}),
        (lambda w: w.put_class(overhead=[("memory", "1Mi")]), {}),
        (lambda w: w.put_pool(isolationProof="None"), {}),
        (lambda w: w.put_pool(expectedHandler="runsc"), {}),
        (lambda w: w.put_pool(paused=True), {}),
    ],
)
def test_a_minor_deviation_does_not_make_a_pod_unallocatable(
    happens: Callable[[World], Any], of_pod: dict[str, Any]
) -> None:
    world = World()
    happens(world)
    # Where the node's software has changed there is proof of that too.
    world.learn(Isolation.PROVEN)
    assert world.candidate_tracker.is_allocatable(pod(**of_pod), world.pool)


@pytest.mark.parametrize(
    ("happens", "of_pod", "fit", "replaced"),
    [
        (nothing, {}, True, False),
        (nothing, {"ready": False}, False, False),
        (nothing, {"node": "", "ready": False}, False, False),
        (lambda w: w.quarantine(), {}, False, True),
        (lambda w: w.learn(Isolation.NOT_PROVEN), {}, False, True),
        (lambda w: w.put_node(handlers=["runc"]), {}, False, False),
        (lambda w: w.put_node(ready=False), {}, False, False),
        (lambda w: w.put_class(uid="remade"), {}, False, True),
        (lambda w: w.cluster.classes.clear(), {}, False, False),
        (lambda w: w.put_pool(expectedHandler="kata"), {}, False, False),
        (nothing, {"class_name": "runc"}, False, True),
        # A pool on its way out still serves whom it has promised a sandbox.
        (lambda w: w.put_pool(deleting=True), {}, True, False),
    ],
)
def test_a_cold_pod_is_bound_or_waited_for_or_replaced(
    happens: Callable[[World], Any], of_pod: dict[str, Any], fit: bool, replaced: bool
) -> None:
    world = World()
    happens(world)
    it = pod(claim="claim", source="Cold", **of_pod)
    assert world.candidate_tracker.is_ready_for_claim(it, world.pool) is fit
    assert world.candidate_tracker.should_replace_cold_pod(it, world.pool) is replaced


def test_for_a_deleted_pool_the_default_proof_is_assumed() -> None:
    world = World()
    it: Pod = pod(claim="claim", source="Cold")
    assert world.candidate_tracker.is_ready_for_claim(it, None), "there is proof"
    world.learn(Isolation.NOT_PROVEN)
    assert not world.candidate_tracker.is_ready_for_claim(it, None)
    assert world.candidate_tracker.should_replace_cold_pod(it, None)


def test_the_evidence_is_a_message_if_proof_is_required() -> None:
    world = World()
    assert world.candidate_tracker.evidence(pod(), world.pool) == "a kernel of its own"
    assert world.candidate_tracker.evidence(pod(), pool(isolationProof="None")) is None
    assert world.candidate_tracker.evidence(pod(node="unseen"), world.pool) is None


def test_a_changed_pool_adds_and_removes_all_its_candidates() -> None:
    world = World()
    for name in ("pod-1", "pod-2"):
        world.cluster.pods.put(None, pod(name))
    world.candidate_tracker.refresh_pool(world.pool)
    assert world.allocator.free("pool-uid") == 2
    world.put_pool(runtimeClassName="kata")
    world.candidate_tracker.refresh_pool(world.pool)
    assert world.allocator.free("pool-uid") == 0


def test_a_finished_sandbox_does_not_count_on_its_node() -> None:
    """It is kept for its logs, and its node has freed its resources."""
    world = World()
    for phase, held in (("Running", True), ("Failed", False), ("Failed", False)):
        claimed = pod(claim="claim", ready=False, phase=phase)
        world.candidate_tracker.refresh([claimed])
        assert world.allocator.is_allocated("pod-1-uid") is held
