"""The operator's real parts in a simulated cluster, where everything goes wrong at random.

What hypothesis finds it shrinks, and prints as a script of a few lines. SANDBOXPOOL_SIMULATIONS is
how many histories are tried; `make model SIMULATIONS=5000` is a longer search.
"""

from __future__ import annotations

import random
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from support.simulation.apiserver import Object
from support.simulation.controllers import Start
from support.simulation.effort import SIMULATIONS
from support.simulation.faults import FAULTS
from support.simulation.network import Fate
from support.simulation.world import GVISOR, World

POOLS = st.sampled_from(["one", "two"])
CLAIMS = st.sampled_from([f"claim-{i}" for i in range(6)])
NODES = st.sampled_from([f"node-{i}" for i in range(3)])
PICKS = st.integers(0, 11)
KINDS = st.sampled_from(
    ["bind", "tell", "create pods", "delete pods", "patch sandboxpools", "read pods", "check"]
)
WATCHED = st.sampled_from(["pods", "sandboxclaims", "sandboxpools", "runtimeclasses", "nodes"])
SECONDS = st.sampled_from([0.02, 0.1, 0.3, 1.0, 3.0, 10.0, 40.0])


class ClusterMachine(RuleBasedStateMachine):
    """People, nature and the network, each step as small as it can be."""

    world: World

    @initialize(
        seed=st.integers(0, 2**16),
        rough=st.sampled_from([0.0, 0.0, 0.05, 0.2]),
        slow=st.sampled_from([0.01, 0.1, 1.0]),
        replicas=st.integers(1, 4),
        ceiling=st.none() | st.integers(1, 6),
        per_node=st.booleans(),
        operators=st.integers(1, 2),
        pace=st.sampled_from([0.0, 0.05, 0.5, 3.0]),
    )
    def begin(
        self,
        seed: int,
        rough: float,
        slow: float,
        replicas: int,
        ceiling: int | None,
        per_node: bool,
        operators: int,
        pace: float,
    ) -> None:
        self.pace = pace
        self.world = World(seed, replicas=operators)
        self.world.__enter__()
        self.world.weather.rough, self.world.weather.slow = rough, slow
        proof = "PerNode" if per_node else "None"
        limit: dict[str, Any] = {} if ceiling is None else {"maxSandboxes": ceiling}
        self.world.make_pool("one", replicas, isolationProof=proof, **limit)

    def teardown(self) -> None:
        """Whatever was done, in the end all is well."""
        if not hasattr(self, "world"):
            return
        try:
            self.world.check()
            self.world.converge()
        finally:
            self.world.__exit__(None, None, None)

    # --- Time ------------------------------------------------------------------------------------

    @invariant()
    def time_passes(self) -> None:
        if hasattr(self, "world"):
            self.world.run(self.pace)

    @rule(seconds=SECONDS)
    def wait(self, seconds: float) -> None:
        self.world.run(seconds)

    # --- Applications ----------------------------------------------------------------------------

    @rule(
        name=CLAIMS,
        pool=POOLS,
        on_empty=st.sampled_from(["Wait", "Wait", "Create", "Fail"]),
        ttl=st.none() | st.sampled_from([5, 60]),
        patience=st.sampled_from([3, 300]),
        asserts=st.booleans(),
    )
    def claim(
        self, name: str, pool: str, on_empty: str, ttl: int | None, patience: int, asserts: bool
    ) -> None:
        spec: dict[str, Any] = {"onEmpty": on_empty, "bindTimeoutSeconds": patience}
        there = self.world.pool(pool)
        if asserts and there is not None:
            spec["runtimeClassName"] = there["spec"]["runtimeClassName"]
        if ttl is not None:
            spec["ttlSeconds"] = ttl
        old = self.world.claim(name)
        if old is not None:
            self.world.delete("sandboxclaims", old)
        self.world.make_claim(name, pool, **spec)

    @rule(name=CLAIMS)
    def delete_claim(self, name: str) -> None:
        claim = self.world.claim(name)
        if claim is not None:
            self.world.delete("sandboxclaims", claim)

    # --- SREs ------------------------------------------------------------------------------------

    @rule(name=POOLS, replicas=st.integers(0, 4), ceiling=st.none() | st.integers(1, 6))
    def make_or_scale_pool(self, name: str, replicas: int, ceiling: int | None) -> None:
        if self.world.pool(name) is not None:
            self.world.change_pool(name, replicas=replicas, maxSandboxes=ceiling)
        elif ceiling is None:
            self.world.make_pool(name, replicas)
        else:
            self.world.make_pool(name, replicas, maxSandboxes=ceiling)

    @rule(name=POOLS, image=st.sampled_from(["a", "b"]))
    def change_template(self, name: str, image: str) -> None:
        if self.world.pool(name) is not None:
            containers = [{"name": "main", "image": f"registry.example/{image}:2"}]
            self.world.change_pool(name, template={"spec": {"containers": containers}})

    @rule(name=POOLS, class_name=st.sampled_from(["gvisor", "gvisor-2"]))
    def change_class(self, name: str, class_name: str) -> None:
        if self.world.pool(name) is not None:
            self.world.make_class(class_name)
            self.world.change_pool(name, runtimeClassName=class_name)

    @rule(name=POOLS, paused=st.booleans())
    def pause(self, name: str, paused: bool) -> None:
        if self.world.pool(name) is not None:
            self.world.change_pool(name, paused=paused or None)

    @rule(name=POOLS)
    def delete_pool(self, name: str) -> None:
        pool = self.world.pool(name)
        if pool is not None:
            self.world.delete("sandboxpools", pool)

    @rule(again=st.booleans())
    def delete_class(self, again: bool) -> None:
        world = self.world
        found = world.server.find("runtimeclasses", "gvisor")
        world.watchdog.cause(10)
        if found is not None:
            world.delete("runtimeclasses", found)
        if again or found is None:
            world._do(lambda: world.server.create("runtimeclasses", GVISOR, by="user"))

    # --- People who know no better ---------------------------------------------------------------

    def pod(self, pick: int) -> Object | None:
        pods = self.world.pods()
        return pods[pick % len(pods)] if pods else None

    @rule(pick=PICKS, at_once=st.booleans())
    def delete_pod(self, pick: int, at_once: bool) -> None:
        pod = self.pod(pick)
        if pod is not None:
            self.world.delete("pods", pod, 0 if at_once else None)

    @rule(pick=PICKS)
    def touch_pod(self, pick: int) -> None:
        pod = self.pod(pick)
        if pod is not None:
            self.world.touch("pods", pod)

    @rule(pick=PICKS, what=st.sampled_from(["labels", "owners", "stolen"]))
    def spoil_pod(self, pick: int, what: str) -> None:
        pod = self.pod(pick)
        if pod is None:
            return
        thief = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x", "uid": "x"}
        changes: dict[str, Object] = {
            "labels": {"labels": {}},
            "owners": {"ownerReferences": []},
            "stolen": {"ownerReferences": [{**thief, "controller": True}]},
        }
        self.world.change("pods", pod, metadata={**pod["metadata"], **changes[what]})

    @rule(
        name=CLAIMS,
        status=st.sampled_from([{}, {"phase": "Bound"}, {"phase": "Bound", "podUID": "x"}]),
    )
    def spoil_claim(self, name: str, status: dict[str, str]) -> None:
        claim = self.world.claim(name)
        if claim is not None:
            self.world.change("sandboxclaims", claim, status=status)

    # --- Nature ----------------------------------------------------------------------------------

    @rule(name=NODES, what=st.sampled_from(["lose", "back", "remove", "join", "cordon", "unlist"]))
    def node(self, name: str, what: str) -> None:
        nature, known = self.world.nature, self.world.controllers.nodes
        if what == "join" and name not in known:
            nature("add_node", name)
        elif name not in known:
            return
        elif what == "lose" and known[name].alive:
            nature("lose_node", name)
        elif what == "back" and not known[name].alive:
            nature("bring_back", name)
        elif what == "remove":
            nature("remove_node", name)
        elif what in ("cordon", "unlist"):
            nature("set_node", name, cordoned=what == "cordon", serves=what != "unlist")

    @rule(
        name=NODES,
        starts=st.sampled_from(Start),
        seconds=st.sampled_from([(0.1, 0.3), (5.0, 30.0), (100.0, 400.0)]),
    )
    def start_ups(self, name: str, starts: Start, seconds: tuple[float, float]) -> None:
        node = self.world.controllers.nodes.get(name)
        if node is not None:
            self.world.watchdog.cause(10)
            node.starts, node.seconds = starts, seconds

    @rule(pick=PICKS)
    def pod_ends(self, pick: int) -> None:
        pod = self.pod(pick)
        if pod is not None and pod["status"]["phase"] == "Running":
            self.world.nature("end", pod)

    @rule(collects=st.booleans())
    def collector(self, collects: bool) -> None:
        self.world.controllers.collects = collects

    # --- The network and the process -------------------------------------------------------------

    @rule(kind=KINDS, fate=st.sampled_from(Fate), times=st.integers(1, 3))
    def next_requests(self, kind: str, fate: Fate, times: int) -> None:
        if fate.name.startswith("CRASH"):
            times = 1
        self.world.weather.next.setdefault(kind, []).extend([fate] * times)

    @rule(resource=WATCHED, how=st.sampled_from(["cut", "stall", "end", "expire"]))
    def break_watches(self, resource: str, how: str) -> None:
        self.world.break_watches(resource, how)

    @rule(seconds=st.sampled_from([0.0, 1.0, 20.0]))
    def crash(self, seconds: float) -> None:
        self.world.restart_seconds = seconds
        self.world.crash()

    @rule(name=st.sampled_from(sorted(FAULTS)), seed=st.integers(0, 2**16))
    def fault(self, name: str, seed: int) -> None:
        FAULTS[name](self.world, random.Random(seed))

    @rule()
    def calm(self) -> None:
        self.world.calm()


ClusterMachine.TestCase.settings = settings(
    max_examples=SIMULATIONS,
    stateful_step_count=40,
    suppress_health_check=list(HealthCheck),
)
TestCluster = ClusterMachine.TestCase
