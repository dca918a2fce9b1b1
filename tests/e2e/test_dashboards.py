"""The dashboards of the chart against a real Prometheus, during load, beside the API's own figures.

The dashboards are read from the ConfigMaps that the chart has installed. No Grafana renders them.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from demo.install import NAMESPACE
from sandboxpool.api.times import epoch
from sandboxpool.observability.metrics import CLAIM_BUCKETS, STARTUP_BUCKETS
from sandboxpool.sandboxes.startup import STAGES
from support import Api, condition, eventually, objects
from support.deployed import DeployedOperator
from support.grafana import Dashboard
from support.prometheus import JOB, SCRAPE_SECONDS, Prometheus, running
from support.realnodes import pool, template
from support.sandboxes import claim_pod, phase, pool_status, wait_for_pool_condition
from support.screen import Screen

Object = dict[str, Any]

# A handler that one node has, without its shim.
BROKEN = "kata-qemu"
LOAD_SECONDS = 20.0
CLAIM_PAUSE_SECONDS = 0.5
HELD = 2
WAITING = 2
# Statuses are written once a second, and scraped as often.
AGREE_SECONDS = 30.0
VALUE_OF = {"True": 1.0, "False": 0.0, "Unknown": -1.0}
ANSWERS = {
    "Serving": "serving",
    "Not serving": "notServing",
    "Unknown": "unknown",
    "Quarantined": "quarantined",
    "Not isolating": "notIsolating",
    "Unproven": "unproven",
}
AVOIDED = "notServing", "quarantined", "notIsolating", "unproven"
# A sandbox that starts for a claim is claimed in a status, and cold in the metrics.
OWN_STATES = (
    *("warm", "starting", "unproven", "unready", "stranded", "failed"),
    *("claimed", "ended", "stopping"),
)


@pytest.fixture(scope="module")
def prometheus(admin: Api, deployed: DeployedOperator) -> Iterator[Prometheus]:
    with running(admin, {}) as prometheus:
        eventually(
            lambda: prometheus.targets_up() == len(deployed.pods()),
            message="each replica is scraped",
        )
        yield prometheus


@pytest.fixture(scope="module")
def dashboards(admin: Api) -> dict[str, Dashboard]:
    """The installed dashboards, by the last word of their titles."""
    found = admin.list("ConfigMap", NAMESPACE, labelSelector="grafana_dashboard=1")
    boards = [Dashboard.parse(text) for each in found for text in each["data"].values()]
    return {board.model["title"].rpartition(" ")[2]: board for board in boards}


@dataclass
class Load:
    """Claims of a pool, one after another, until it is stopped."""

    api: Api
    bound: int = 0
    slowest: float = 0.0
    errors: list[BaseException] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        assert not self.errors, self.errors

    def _run(self) -> None:
        try:
            while not self._stop.wait(CLAIM_PAUSE_SECONDS):
                began = time.monotonic()
                name = f"load-{self.bound}"
                claim_pod(self.api, name, "busy")
                self.slowest = max(self.slowest, time.monotonic() - began)
                self.bound += 1
                self.api.delete("SandboxClaim", name)
        except BaseException as error:
            self.errors.append(error)


def agree(figure: Callable[[], object], own: Callable[[], object], message: str) -> None:
    """Waits until a dashboard and the API say the same."""
    eventually(
        lambda: (figure(), own()),
        until=lambda pair: pair[0] == pair[1],
        message=f"{message}: the dashboard's figure, then the API's",
        timeout=AGREE_SECONDS,
    )


def bucket_above(seconds: float, bounds: tuple[float, ...]) -> float:
    """The upper bound of the bucket that a duration is counted in."""
    return next(bound for bound in bounds if seconds <= bound)


@pytest.fixture
def broken_class(admin: Api, class_name: str) -> Iterator[str]:
    """A RuntimeClass whose handler fails on the one node that has it."""
    name = f"{class_name}-broken"
    admin.create(objects.runtime_class(name, BROKEN))
    yield name
    admin.delete("RuntimeClass", name)


def make_pools(api: Api, class_name: str, broken_class: str) -> None:
    """A pool that serves claims, one that is dry, one that fails, one whose runtime is broken."""
    api.create(objects.runtime_class(class_name, "runsc"))
    ends = template()
    ends["spec"]["containers"][0]["command"] = ["false"]
    api.create_all(
        pool("busy", class_name, 3),
        pool("dry", class_name, 0),
        pool("failing", class_name, 1, pod=ends),
        pool("broken", broken_class, 1, isolationProof="None"),
    )
    wait_for_pool_condition(api, "Ready", "False", "ShimMissing", name="broken", timeout=60)
    pool_status(api, name="busy", warm=3, timeout=60)


def every_kind_of_claim(api: Api, number: int) -> None:
    """Claims with each result: warm, cold, and failed."""
    cold, failed = f"cold-{number}", f"failed-{number}"
    api.create(objects.claim(cold, "dry", onEmpty="Create"))
    phase(api, "Bound", cold, timeout=30)
    api.delete("SandboxClaim", cold)
    api.create(objects.claim(failed, "dry", onEmpty="Fail"))
    phase(api, "Failed", failed)


@pytest.mark.timeout(240, func_only=True)
def test_every_figure_is_there_during_load_and_is_the_apis_own(
    api: Api,
    namespace: str,
    class_name: str,
    broken_class: str,
    deployed: DeployedOperator,
    prometheus: Prometheus,
    dashboards: dict[str, Dashboard],
) -> None:
    assert dashboards.keys() == {"Fleet", "Pools", "Operator"}
    everything = ".*"
    classes = f"{class_name}|{broken_class}"
    pools = Screen(
        dashboards["Pools"],
        prometheus,
        {"namespace": namespace, "pool": everything, "runtime_class": everything},
    )
    fleet = Screen(dashboards["Fleet"], prometheus, {"runtime_class": classes})
    operator = Screen(dashboards["Operator"], prometheus, {"job": JOB})

    make_pools(api, class_name, broken_class)
    for number in range(HELD):
        claim_pod(api, f"held-{number}", "busy")
    # A rate begins with the second scrape of a series: each has to be there before.
    every_kind_of_claim(api, 0)
    eventually(
        lambda: pools.by("Claims by result", "result", "source").keys(),
        until=lambda found: found == {("Bound", "Warm"), ("Bound", "Cold"), ("NoWarmSandbox", "")},
        message="each kind of claim is counted",
    )
    time.sleep(2 * SCRAPE_SECONDS)
    began = time.time()
    with Load(api) as load:
        every_kind_of_claim(api, 1)
        # They wait for a sandbox that nobody makes.
        for number in range(WAITING):
            api.create(objects.claim(f"waiting-{number}", "dry"))
        time.sleep(max(0.0, began + LOAD_SECONDS - time.time()))
        for screen in (pools, fleet, operator):
            for query in screen.dashboard.queries():
                assert screen.values(query.expr), f"{query.panel}: {query.name} is empty"
    api.patch_spec("SandboxPool", "failing", paused=True)
    time.sleep(2 * SCRAPE_SECONDS)
    for screen in (pools, fleet, operator):
        screen.window_seconds = math.ceil(time.time() - began)

    check_rates(pools, fleet, load)
    check_pools(api, pools, broken_class)
    check_fleet(api, fleet, class_name, broken_class)
    check_operator(deployed, operator)
    check_variables(pools, fleet, operator, namespace, class_name, broken_class)


def check_rates(pools: Screen, fleet: Screen, load: Load) -> None:
    """What has happened since the load began, beside what the test has done."""
    seconds = pools.window_seconds
    ended = pools.by("Claims by result", "result", "source")
    # The ends of a window are extrapolated.
    assert ended["Bound", "Warm"] * seconds == pytest.approx(load.bound, rel=0.1, abs=0.5)
    assert ended["Bound", "Cold"] * seconds == pytest.approx(1, abs=0.2)
    assert ended["NoWarmSandbox", ""] * seconds == pytest.approx(1, abs=0.2)
    warm = pools.figure("Share of claims that were bound well", "from the warm stock")
    assert warm == pytest.approx(load.bound / (load.bound + 1), abs=0.02)
    quick = pools.figure("Share of claims that were bound well", "within 100 ms")
    assert 0 <= quick <= warm

    slow = bucket_above(load.slowest, CLAIM_BUCKETS)
    half, most = (pools.figure("Time to bind a claim", name) for name in ("p50", "p95"))
    assert 0 < half <= most <= slow
    # The cold start is one of few claims, and by far the slowest.
    assert most <= pools.figure("Time to bind a claim", "p99")

    failures = pools.by("Failures by reason", "reason")
    assert failures["ContainersExited" if "ContainersExited" in failures else "PodFailed"] > 0


@dataclass(frozen=True)
class OwnPools:
    """What the API says of the pools of a namespace, by their names."""

    api: Api

    def status(self, key: str) -> dict[str, float]:
        return {name: one["status"][key] for name, one in self._pools().items()}

    def serving(self) -> dict[str, float]:
        runtimes = {name: one["status"]["runtime"] for name, one in self._pools().items()}
        return {name: runtime["nodes"]["serving"] for name, runtime in runtimes.items()}

    def ready(self) -> dict[str, float]:
        return {name: holds("Ready", one) for name, one in self._pools().items()}

    def waiting(self) -> dict[str, float]:
        claims = self.api.list("SandboxClaim")
        of_pools = [c["spec"]["poolName"] for c in claims if c["status"]["phase"] == "Pending"]
        return {name: of_pools.count(name) for name in self._pools()}

    def not_true(self) -> dict[tuple[str, ...], float]:
        return {
            (name, found["type"], found["reason"]): VALUE_OF[found["status"]]
            for name, one in self._pools().items()
            for found in one["status"]["conditions"]
            if found["status"] != "True"
        }

    def lag(self) -> dict[str, float]:
        """For how long the condition Warm has been False."""
        lags = {}
        for name, one in self._pools().items():
            warm = condition(one, "Warm")
            assert warm is not None
            since = time.time() - epoch(warm["lastTransitionTime"])
            lags[name] = since if warm["status"] == "False" else 0.0
        return lags

    def _pools(self) -> dict[str, Object]:
        return {one["metadata"]["name"]: one for one in self.api.list("SandboxPool")}


@dataclass(frozen=True)
class OwnRuntimes:
    """What the API says of some RuntimeClasses, by their names."""

    api: Api
    classes: tuple[str, ...]

    def condition(self, kind: str) -> dict[str, float]:
        return {name: holds(kind, self._get(name)) for name in self.classes}

    def nodes(self, answer: str) -> dict[str, float]:
        return {name: self._get(name)["status"]["nodes"][answer] for name in self.classes}

    def sandboxes(self, state: str) -> dict[str, float]:
        return {name: self._get(name)["status"]["sandboxes"][state] for name in self.classes}

    def avoided(self) -> dict[tuple[str, str], float]:
        return {
            (name, answer): count
            for answer in AVOIDED
            for name, count in self.nodes(answer).items()
        }

    def _get(self, name: str) -> Object:
        return self.api.get("SandboxRuntime", name)


def holds(kind: str, obj: Object) -> float:
    """A condition as the metrics show it."""
    found = condition(obj, kind)
    assert found is not None, obj
    return VALUE_OF[found["status"]]


def total(figures: Callable[[], dict[str, float]]) -> float:
    return sum(figures().values())


def below_one(figures: Callable[[], dict[str, float]]) -> int:
    return sum(value < 1 for value in figures().values())


def check_pools(api: Api, pools: Screen, broken_class: str) -> None:
    """The stock of the moment, pool by pool and in sum."""
    own, table = OwnPools(api), "Pools of the selection"
    counts = {key: partial(own.status, key) for key in OWN_STATES}
    columns: dict[str, Callable[[], object]] = {
        "Ready": own.ready,
        "Warm": counts["warm"],
        "Target": partial(own.status, "target"),
        "Starting": counts["starting"],
        "Claimed": counts["claimed"],
        "Waiting": own.waiting,
        "Nodes": own.serving,
        "Lag": partial(approximate, own.lag),
    }
    queries = [query for query in pools.dashboard.queries() if query.panel == table]
    assert {query.name for query in queries} == columns.keys()
    for column, figures in columns.items():
        agree(partial(pools.by, table, "pool", name=column), figures, f"{table}, {column}")
    assert pools.by(table, "pool", name="Claimed")["busy"] == HELD
    assert pools.by(table, "pool", name="Waiting")["dry"] == WAITING
    assert pools.by(table, "pool", name="Lag")["broken"] > 0

    totals: dict[str, Callable[[], float]] = {
        "Pools": lambda: len(own.ready()),
        "Pools not ready": partial(below_one, own.ready),
        "Warm sandboxes": partial(total, counts["warm"]),
        "Target": partial(total, partial(own.status, "target")),
        "Claimed sandboxes": partial(total, counts["claimed"]),
        "Claims waiting": partial(total, own.waiting),
    }
    for panel, figure in totals.items():
        agree(partial(pools.figure, panel), figure, panel)
    assert pools.figure("Pools not ready") >= 2
    for name in ("warm", "target"):
        shown = partial(pools.figure, "Warm sandboxes and target", name)
        agree(shown, partial(total, partial(own.status, name)), f"{name} over time")

    curves: dict[str, Callable[[], object]] = {
        "Readiness of 20 pools, those not ready first": own.ready,
        "Claims waiting, 20 pools": own.waiting,
        "Refill lag, 20 pools": partial(approximate, own.lag),
    }
    for panel, figures in curves.items():
        agree(partial(pools.by, panel, "pool"), figures, panel)
    agree(
        lambda: {k: v for k, v in pools.by("Sandboxes by state", "state").items() if k in counts},
        lambda: {key: total(figures) for key, figures in counts.items()},
        "sandboxes by state",
    )
    agree(
        partial(pools.by, "Conditions that are not True", "pool", "condition", "reason"),
        own.not_true,
        "conditions that are not True",
    )

    # The class is a label of few metrics; the others are selected by it too.
    of_broken = pools.select(runtime_class=broken_class)
    for panel in ("Pools", "Pools not ready", "Target"):
        assert of_broken.figure(panel) == 1
    assert of_broken.by(table, "pool", name="Waiting") == {"broken": 0}
    assert of_broken.select(pool="busy").series("Pools") == []


def approximate(seconds: Callable[[], dict[str, float]]) -> object:
    """Durations that grow from one look to the next."""
    return pytest.approx(seconds(), abs=3)


def check_fleet(api: Api, fleet: Screen, works: str, broken: str) -> None:
    """Nodes, conditions and sandboxes by RuntimeClass."""
    own, table = OwnRuntimes(api, (works, broken)), "Nodes by RuntimeClass"
    columns = {
        "Ready": partial(own.condition, "Ready"),
        "Healthy": partial(own.condition, "Healthy"),
        "Isolation": partial(own.condition, "IsolationProven"),
        **{column: partial(own.nodes, answer) for column, answer in ANSWERS.items()},
        "Warm": partial(own.sandboxes, "warm"),
        "Starting": partial(own.sandboxes, "starting"),
        "Claimed": partial(own.sandboxes, "claimed"),
    }
    queries = [query for query in fleet.dashboard.queries() if query.panel == table]
    assert {query.name for query in queries} == columns.keys()
    for column, figures in columns.items():
        shown = partial(fleet.by, table, "runtime_class", name=column)
        agree(shown, figures, f"{table}, {column}")
    assert fleet.by(table, "runtime_class", name="Serving")[works] == 2
    assert fleet.by(table, "runtime_class", name="Quarantined")[broken] == 1

    for panel, figures in {
        "Readiness of RuntimeClasses": columns["Ready"],
        "Health of RuntimeClasses": columns["Healthy"],
        "Nodes that serve": columns["Serving"],
    }.items():
        agree(partial(fleet.by, panel, "runtime_class"), figures, panel)
    panel = "Nodes that sandboxes keep away from"
    agree(partial(fleet.by, panel, "runtime_class", "answer"), own.avoided, panel)
    totals: dict[str, Callable[[], float]] = {
        "RuntimeClasses not ready": partial(below_one, columns["Ready"]),
        "Quarantined": partial(total, columns["Quarantined"]),
        "Not isolating": partial(total, columns["Not isolating"]),
        "Warm sandboxes": partial(total, columns["Warm"]),
        "Claimed sandboxes": partial(total, columns["Claimed"]),
    }
    for panel, figure in totals.items():
        agree(partial(fleet.figure, panel), figure, panel)
    assert fleet.figure("RuntimeClasses") == 2
    assert fleet.by("Quarantined nodes by handler", "handler")[BROKEN] == 1

    # A histogram knows a duration to within its bucket.
    stages = api.get("SandboxRuntime", works)["status"]["startup"]["stages"]
    p95 = fleet.by("Time to start a sandbox, p95", "runtime_class")[works]
    slowest = stages["ready"]["p99Milliseconds"] / 1000
    assert 0 < p95 <= bucket_above(slowest, STARTUP_BUCKETS)
    means = fleet.by("Mean time until each stage", "runtime_class", "stage")
    in_order = [means[works, stage] for stage in STAGES]
    assert in_order == sorted(in_order)
    assert in_order[-1] <= slowest


def check_operator(deployed: DeployedOperator, operator: Screen) -> None:
    """The replicas, and that nothing is wrong where nothing is."""
    replicas = len(deployed.pods())
    assert operator.figure("Replicas") == replicas == 2
    assert operator.figure("Leaders") == 1
    leads = operator.by("Leader and standbys", "pod")
    assert len(leads) == replicas
    leader = deployed.leader()["metadata"]["name"]
    assert [pod for pod, value in leads.items() if value == 1] == [leader]
    assert 0 <= operator.figure("Oldest watch") < 120
    assert operator.figure("Throttled") == 0
    # Two writes a claim, and two for its sandbox and the pool's status at least.
    verbs = operator.by("Requests by verb", "verb")
    assert verbs["PATCH"] > verbs.get("DELETE", 0) > 0
    assert sum(verbs.values()) == pytest.approx(operator.figure("Requests"), rel=0.2)
    assert operator.by("Keys that wait", "name").keys() >= {"pools", "claims", "runtimes"}


def check_variables(
    pools: Screen,
    fleet: Screen,
    operator: Screen,
    namespace: str,
    class_name: str,
    broken_class: str,
) -> None:
    """What the variables offer."""
    assert namespace in pools.options("namespace")
    assert pools.options("runtime_class") == {class_name, broken_class}
    assert pools.options("pool") == {"busy", "dry", "failing", "broken"}
    assert pools.select(runtime_class=broken_class).options("pool") == {"broken"}
    assert {class_name, broken_class} <= fleet.options("runtime_class")
    assert operator.options("job") == {JOB}


def test_no_figure_counts_two_leaders(
    api: Api,
    namespace: str,
    deployed: DeployedOperator,
    prometheus: Prometheus,
    dashboards: dict[str, Dashboard],
) -> None:
    everything = {"namespace": namespace, "pool": ".*", "runtime_class": ".*"}
    pools = Screen(dashboards["Pools"], prometheus, everything)
    operator = Screen(dashboards["Operator"], prometheus, {"job": JOB})
    api.create(pool(replicas=2))
    pool_status(api, warm=2, timeout=60)
    agree(lambda: pools.figure("Warm sandboxes"), lambda: 2, "warm sandboxes")
    seen: set[tuple[float, ...]] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            seen.add(tuple(sample.value for sample in pools.series("Warm sandboxes")))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        deployed.replace()
        agree(lambda: operator.figure("Leaders"), lambda: 1, "leaders")
        agree(lambda: pools.figure("Warm sandboxes"), lambda: 2, "warm sandboxes")
    finally:
        over.set()
        looking.join()
    # Nothing is known while no replica leads.
    assert seen <= {(2.0,), ()}
