"""The dashboards of the chart against a real Prometheus, during load, beside the API's own figures.

The dashboards are read from the ConfigMaps that the chart has installed. No Grafana renders them.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from demo.install import NAMESPACE
from sandboxpool.api.times import epoch
from sandboxpool.kube.lease import NAME as LEASE
from sandboxpool.observability.metrics import CLAIM_BUCKETS, STARTUP_BUCKETS
from support import Api, condition, eventually, objects
from support.deployed import DeployedOperator
from support.grafana import Dashboard, fill
from support.prometheus import JOB, SCRAPE_SECONDS, Prometheus, Sample, running
from support.realnodes import pool, template
from support.sandboxes import claim_pod, phase, pool_status, wait_for_pool_condition

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
class Screen:
    """What somebody sees who opens a dashboard."""

    dashboard: Dashboard
    prometheus: Prometheus
    variables: dict[str, str]
    window_seconds: int = 30

    def select(self, **variables: str) -> Screen:
        """The same dashboard with other values of variables."""
        everything = self.variables | variables
        return Screen(self.dashboard, self.prometheus, everything, self.window_seconds)

    def series(self, panel: str, name: str | None = None) -> list[Sample]:
        """The series of a query, those without a value left out."""
        return self.values(self.dashboard.query(panel, name).expr)

    def values(self, expression: str) -> list[Sample]:
        filled = fill(expression, self.variables, f"{self.window_seconds}s")
        return [each for each in self.prometheus.query(filled) if math.isfinite(each.value)]

    def figure(self, panel: str, name: str | None = None) -> float:
        """The value of a query with one series."""
        (sample,) = self.series(panel, name)
        return sample.value

    def by(self, panel: str, *labels: str, name: str | None = None) -> dict[Any, float]:
        """The values of a query by one label or several."""
        found = {
            tuple(sample.labels.get(label, "") for label in labels): sample.value
            for sample in self.series(panel, name)
        }
        return {key[0] if len(labels) == 1 else key: value for key, value in found.items()}

    def options(self, variable: str) -> set[str]:
        """What a variable offers."""
        query = fill(self.dashboard.variables[variable], self.variables, "")
        selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()  # type: ignore[union-attr]
        return set(self.prometheus.ask(f"label/{label}/values", **{"match[]": selector}))


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
    operator = Screen(dashboards["Operator"], prometheus, {"job": everything})

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
    check_fleet(api, fleet, (class_name, broken_class))
    check_operator(api, deployed, operator)
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


def check_pools(api: Api, pools: Screen, broken_class: str) -> None:
    """The stock of the moment, pool by pool and in sum."""

    def statuses(key: str) -> dict[str, float]:
        return {p["metadata"]["name"]: p["status"][key] for p in api.list("SandboxPool")}

    def ready() -> dict[str, float]:
        found = {p["metadata"]["name"]: condition(p, "Ready") for p in api.list("SandboxPool")}
        return {name: VALUE_OF[c["status"]] for name, c in found.items() if c is not None}

    def pending() -> dict[str, float]:
        claims = api.list("SandboxClaim")
        waiting = [c["spec"]["poolName"] for c in claims if c["status"]["phase"] == "Pending"]
        return {name: waiting.count(name) for name in statuses("warm")}

    table = "Pools of the selection"
    for column, own in (
        ("Warm", lambda: statuses("warm")),
        ("Target", lambda: statuses("target")),
        ("Starting", lambda: statuses("starting")),
        ("Claimed", lambda: statuses("claimed")),
        ("Waiting", pending),
        ("Ready", ready),
        ("Nodes", lambda: serving(api)),
    ):
        agree(lambda c=column: pools.by(table, "pool", name=c), own, f"{table}, {column}")
    assert pools.by(table, "pool", name="Claimed")["busy"] == HELD
    assert pools.by(table, "pool", name="Waiting")["dry"] == WAITING

    for panel, own in (
        ("Pools", lambda: len(ready())),
        ("Pools not ready", lambda: sum(value < 1 for value in ready().values())),
        ("Warm sandboxes", lambda: sum(statuses("warm").values())),
        ("Target", lambda: sum(statuses("target").values())),
        ("Claimed sandboxes", lambda: sum(statuses("claimed").values())),
        ("Claims waiting", lambda: sum(pending().values())),
    ):
        agree(lambda p=panel: pools.figure(p), own, panel)
    assert pools.figure("Pools not ready") >= 2
    for name in ("warm", "target"):
        agree(
            lambda n=name: pools.figure("Warm sandboxes and target", n),
            lambda n=name: sum(statuses(n).values()),
            f"{name} over time",
        )
    agree(
        lambda: pools.by("Readiness of 20 pools, those not ready first", "pool"), ready, "readiness"
    )
    agree(lambda: pools.by("Claims waiting, 20 pools", "pool"), pending, "claims waiting, by pool")
    states = "warm", "starting", "unproven", "unready", "stranded", "failed", "claimed", "stopping"
    agree(
        lambda: {s: pools.by("Sandboxes by state", "state")[s] for s in states},
        lambda: {s: sum(statuses(s).values()) for s in states},
        "sandboxes by state",
    )
    agree(
        lambda: pools.by("Conditions that are not True", "pool", "condition", "reason"),
        lambda: {
            (p["metadata"]["name"], c["type"], c["reason"]): VALUE_OF[c["status"]]
            for p in api.list("SandboxPool")
            for c in p["status"]["conditions"]
            if c["status"] != "True"
        },
        "conditions that are not True",
    )
    for panel, column in ((table, "Lag"), ("Refill lag, 20 pools", None)):
        check_lag(api, pools.by(panel, "pool", name=column))

    # The class is a label of few metrics; the others are chosen by it too.
    of_broken = pools.select(runtime_class=broken_class)
    for panel in ("Pools", "Pools not ready", "Target"):
        assert of_broken.figure(panel) == 1
    assert of_broken.by(table, "pool", name="Waiting") == {"broken": 0}
    assert of_broken.select(pool="busy").series("Pools") == []


def serving(api: Api) -> dict[str, float]:
    """The nodes that serve each pool's runtime."""
    return {
        p["metadata"]["name"]: p["status"]["runtime"]["nodes"]["serving"]
        for p in api.list("SandboxPool")
    }


def check_lag(api: Api, lags: dict[str, float]) -> None:
    """A pool lags for as long as its condition Warm has been False."""
    now = time.time()
    for one in api.list("SandboxPool"):
        lag, warm = lags[one["metadata"]["name"]], condition(one, "Warm")
        assert warm is not None
        if warm["status"] == "False":
            since = now - epoch(warm["lastTransitionTime"])
            assert lag == pytest.approx(since, abs=5), one["metadata"]["name"]
        else:
            assert lag == 0, one["metadata"]["name"]
    assert lags["broken"] > 0


def check_fleet(api: Api, fleet: Screen, classes: tuple[str, ...]) -> None:
    """Nodes, conditions and sandboxes by RuntimeClass."""

    def own(read: Callable[[Object], float]) -> dict[str, float]:
        return {name: read(api.get("SandboxRuntime", name)) for name in classes}

    def holds(kind: str) -> Callable[[Object], float]:
        return lambda runtime: VALUE_OF[(condition(runtime, kind) or {})["status"]]

    table = "Nodes by RuntimeClass"
    columns: dict[str, Callable[[Object], float]] = {
        "Ready": holds("Ready"),
        "Healthy": holds("Healthy"),
        "Isolation": holds("IsolationProven"),
        **{
            column: lambda runtime, a=answer: runtime["status"]["nodes"][a]
            for column, answer in ANSWERS.items()
        },
        **{
            state.capitalize(): lambda runtime, s=state: runtime["status"]["sandboxes"][s]
            for state in ("warm", "starting", "claimed")
        },
    }
    for column, read in columns.items():
        agree(
            lambda c=column: fleet.by(table, "runtime_class", name=c),
            lambda r=read: own(r),
            f"{table}, {column}",
        )
    works, broken = classes
    assert fleet.by(table, "runtime_class", name="Serving")[works] == 2
    assert fleet.by(table, "runtime_class", name="Quarantined")[broken] == 1
    agree(
        lambda: fleet.by("Readiness of RuntimeClasses", "runtime_class"),
        lambda: own(holds("Ready")),
        "readiness",
    )
    agree(
        lambda: fleet.by("Health of RuntimeClasses", "runtime_class"),
        lambda: own(holds("Healthy")),
        "health",
    )
    agree(
        lambda: fleet.by("Nodes that serve", "runtime_class"),
        lambda: own(lambda runtime: runtime["status"]["nodes"]["serving"]),
        "nodes that serve",
    )
    away = "notServing", "quarantined", "notIsolating", "unproven"
    agree(
        lambda: fleet.by("Nodes that sandboxes keep away from", "runtime_class", "answer"),
        lambda: {
            (name, answer): api.get("SandboxRuntime", name)["status"]["nodes"][answer]
            for name in classes
            for answer in away
        },
        "nodes that sandboxes keep away from",
    )
    for panel, read in (
        ("RuntimeClasses", lambda runtime: 1),
        ("RuntimeClasses not ready", lambda runtime: holds("Ready")(runtime) < 1),
        ("Quarantined", lambda runtime: runtime["status"]["nodes"]["quarantined"]),
        ("Not isolating", lambda runtime: runtime["status"]["nodes"]["notIsolating"]),
        ("Warm sandboxes", lambda runtime: runtime["status"]["sandboxes"]["warm"]),
        ("Claimed sandboxes", lambda runtime: runtime["status"]["sandboxes"]["claimed"]),
    ):
        agree(lambda p=panel: fleet.figure(p), lambda r=read: sum(own(r).values()), panel)
    assert fleet.by("Quarantined nodes by handler", "handler")[BROKEN] == 1

    # A histogram knows a duration to within its bucket.
    stages = api.get("SandboxRuntime", works)["status"]["startup"]["stages"]
    p95 = fleet.by("Time to start a sandbox, p95", "runtime_class")[works]
    slowest = stages["ready"]["p99Milliseconds"] / 1000
    assert 0 < p95 <= bucket_above(slowest, STARTUP_BUCKETS)
    means = fleet.by("Mean time until each stage", "runtime_class", "stage")
    in_order = [means[works, stage] for stage in ("scheduled", "sandbox", "started", "ready")]
    assert in_order == sorted(in_order)
    assert in_order[-1] <= slowest


def check_operator(api: Api, deployed: DeployedOperator, operator: Screen) -> None:
    """The replicas, and that nothing is wrong where nothing is."""
    replicas = len(deployed.pods())
    assert operator.figure("Replicas") == replicas == 2
    assert operator.figure("Leaders") == 1
    leads = operator.by("Leader and standbys", "pod")
    assert len(leads) == replicas
    holder = api.get("Lease", LEASE, NAMESPACE)["spec"]["holderIdentity"]
    assert [pod for pod, value in leads.items() if value == 1] == [holder.rpartition("_")[0]]
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
    operator = Screen(dashboards["Operator"], prometheus, {"job": ".*"})
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
