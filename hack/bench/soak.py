"""An operator under mixed load for long: whether anything of it grows.

    python -m bench.soak --minutes 60

Claims come and go, expire and start cold; pools are scaled, changed, made and deleted; nodes are
cordoned, lost, added and removed; runtimes fail and heal. Real kube-apiserver, etcd, scheduler and
garbage collector; the nodes and their kubelets are fake.

Every few minutes the load is drained and the operator is measured at rest, each time with the
same few pools and nodes and with no claim: what is more at the end than it was after a quarter of
the time has leaked. By then what fills up once, such as a series for each reason, is full.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench import machine
from fakekubelet import FakeNode, FakeNodes
from localcluster.controlplane import ControlPlane
from localcluster.progress import say
from support import Api, ApiError, invariants, objects
from support.controllers import Controllers
from support.crds import apply_crds
from support.operator_process import Operator

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "docs" / "benchmarks" / "soak.md"
SYSTEM, NAMESPACE = "sandboxpool-system", "soak"
PROBE_IMAGE = "registry.example/probe:1"
HANDLERS = {"gvisor": "runsc", "kata-qemu": "kata-qemu"}
POOLS = {"gvisor-a": ("gvisor", 12), "gvisor-b": ("gvisor", 6), "kata": ("kata-qemu", 6)}
NODES = 12
SHIM_MISSING = (
    'rpc error: code = Unknown desc = failed to start sandbox "0": failed to create containerd '
    "task: failed to start shim: failed to resolve runtime path: runtime "
    '"io.containerd.runsc.v1" binary not installed "containerd-shim-runsc-v1": file does not exist'
)
# One claim lives for so long, in seconds, unless it expires.
CLAIM_SECONDS = (1.0, 12.0)
PERIOD_SECONDS = 240.0
DRAIN_SECONDS = 180.0
# What is left over from before, such as the task of an object that was heard of, is given so long
# at rest to be collected.
REST_SECONDS = 10.0
# Growth is judged after this part of the time.
WARM_UP = 0.25
# What of it is taken for noise: memory has fragments, and a reason that never was before makes a
# series of its own.
TOLERANCE = {"resident_mib": 1.05, "descriptors": 1.05, "tasks": 1.05, "series": 1.02}
# Names of what comes and goes begin so: at rest no series may speak of them.
TRANSIENT_PREFIXES = ("pool-", "extra-node-")


@dataclass(frozen=True)
class RestSample:
    """The operator at rest.

    Attributes:
        minute: since the start of the load.
        descriptors: open files and connections.
        threads: of the process.
        tasks: of its event loop.
        series: time series that /metrics shows.
        cpu_percent: of one core since the last rest.
        claims: that were made up to now.
    """

    minute: float
    resident_mib: float
    descriptors: int
    threads: int
    tasks: int
    series: int
    cpu_percent: float
    claims: int


class Soak:
    """The load, and what it stands on."""

    def __init__(self, api: Api, nodes: FakeNodes, operator: Operator, seed: int) -> None:
        self._api = api
        self._nodes = nodes
        self._operator = operator
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._numbers, self._turns = itertools.count(), itertools.count()
        self._living: list[tuple[float, str]] = []
        self.claims = 0
        self._acts = self._endless_acts()

    def prepare(self) -> None:
        """Make nodes, classes and pools."""
        self._nodes.add(
            *(FakeNode(f"node-{i}", {"runc", "runsc", "kata-qemu"}) for i in range(NODES))
        )
        for name, handler in HANDLERS.items():
            self._api.create(objects.runtime_class(name, handler))
        for name, (class_name, replicas) in POOLS.items():
            self._api.create(_pool(name, class_name, replicas))

    # --- Load ------------------------------------------------------------------------------------

    def load(self, until: float) -> None:
        """Everything at its own pace, until a time of the monotonic clock."""
        next_act = time.monotonic() + 5.0
        while (now := time.monotonic()) < until:
            self._claim(now)
            while self._living and self._living[0][0] < now:
                self._delete("SandboxClaim", self._living.pop(0)[1])
            if now > next_act:
                next(self._acts)()
                next_act = now + 5.0
            time.sleep(self._random.expovariate(8.0))

    def _claim(self, now: float) -> None:
        draw = self._random
        name = f"claim-{next(self._numbers)}"
        spec: dict[str, Any] = {"bindTimeoutSeconds": draw.choice((5, 60))}
        if draw.random() < 0.2:
            spec["onEmpty"] = draw.choice(("Create", "Fail"))
        if draw.random() < 0.3:
            spec["ttlSeconds"] = draw.randint(1, 5)
        self._api.create(objects.claim(name, draw.choice(list(POOLS)), **spec))
        self.claims += 1
        self._living.append((now + draw.uniform(*CLAIM_SECONDS), name))
        self._living.sort()

    def _endless_acts(self) -> Iterator[Callable[[], object]]:
        """What changes besides claims, one after the other, for ever."""
        draw, nodes, api = self._random, self._nodes, self._api
        for turn in self._turns:
            node, pool = f"node-{turn % NODES}", list(POOLS)[turn % len(POOLS)]
            extra, short = (
                FakeNode(f"{TRANSIENT_PREFIXES[1]}{turn}", {"runc", "runsc"}),
                f"{TRANSIENT_PREFIXES[0]}{turn}",
            )
            yield partial(api.scale, "SandboxPool", pool, draw.randint(2, 16))
            yield partial(nodes.cordon, node)
            yield partial(api.create, _pool(short, "gvisor", 3))
            yield partial(nodes.cordon, node, on=False)
            yield partial(nodes.add, extra)
            yield partial(self._roll, pool, turn)
            yield partial(nodes.fail, "runsc", SHIM_MISSING, [node])
            yield partial(api.create, objects.claim(f"of-{short}", short))
            yield partial(nodes.lose, node)
            yield self._delete_some_pod
            yield partial(nodes.recover, node)
            yield nodes.heal
            yield partial(nodes.set_handlers, node, {"runc"})
            yield partial(self._delete, "SandboxClaim", f"of-{short}")
            yield partial(nodes.set_handlers, node, {"runc", *HANDLERS.values()})
            yield partial(self._delete, "SandboxPool", short)
            yield partial(self._remove, extra.name)

    def _remove(self, node: str) -> None:
        """Remove a node and its pods, as the pod garbage collector would, which is not here."""
        self._nodes.remove(node)
        for namespace in (NAMESPACE, SYSTEM):
            for pod in self._api.list("Pod", namespace, fieldSelector=f"spec.nodeName={node}"):
                name = pod["metadata"]["name"]
                self._api.delete("Pod", name, namespace, gracePeriodSeconds=0)

    def _roll(self, pool: str, turn: int) -> None:
        template = objects.pod_template(f"registry.example/sandbox:{turn + 2}")
        self._api.patch_spec("SandboxPool", pool, template=template)

    def _delete_some_pod(self) -> None:
        pods = self._api.list("Pod")
        if pods:
            self._delete("Pod", self._random.choice(pods)["metadata"]["name"])

    def _delete(self, kind: str, name: str) -> None:
        try:
            self._api.delete(kind, name)
        except ApiError as error:
            if error.status != 404:
                raise

    # --- Rest ------------------------------------------------------------------------------------

    def drain(self) -> list[str]:
        """Go back to the beginning: no claim, the same pools and nodes, all quiet.

        Returns what is not as it should be.
        """
        self._nodes.behaviour.reset()
        for name in self._nodes.names():
            if name.startswith(TRANSIENT_PREFIXES):
                self._remove(name)
            else:
                self._nodes.recover(name)
                self._nodes.cordon(name, on=False)
                self._nodes.set_handlers(name, {"runc", *HANDLERS.values()})
        for claim in self._api.list("SandboxClaim"):
            self._delete("SandboxClaim", claim["metadata"]["name"])
        self._living.clear()
        # What is left of the present turn is of nodes and pools that are gone.
        self._acts = self._endless_acts()
        for pool in self._api.list("SandboxPool"):
            name = pool["metadata"]["name"]
            if name in POOLS:
                self._api.scale("SandboxPool", name, POOLS[name][1])
            else:
                self._delete("SandboxPool", name)
        deadline = time.monotonic() + DRAIN_SECONDS
        while left := self._left():
            if time.monotonic() > deadline:
                return left
            time.sleep(1.0)
        time.sleep(REST_SECONDS)
        return []

    def _left(self) -> list[str]:
        seen = invariants.snapshot(self._api, NAMESPACE)
        claims = [f"claim {claim['metadata']['name']} is still there" for claim in seen.claims]
        return [*claims, *invariants.violations(seen), *invariants.not_converged(seen)]

    def stale(self) -> list[str]:
        """The series that speak of what is gone."""
        return [
            f"a series is left over: {name} {dict(labels)}"
            for name, labels in self._operator.metrics()
            if any(value.startswith(TRANSIENT_PREFIXES) for _, value in labels)
        ]

    def measure(self, minute: float, cpu_percent: float) -> RestSample:
        """What the operator holds now."""
        process = Path(f"/proc/{self.pid}")
        return RestSample(
            minute=round(minute, 1),
            resident_mib=round(machine.resident_mib(self.pid), 1),
            descriptors=len(list((process / "fd").iterdir())),
            threads=len(list((process / "task").iterdir())),
            tasks=int(self._operator.metric("sandboxpool_asyncio_tasks")),
            series=len(self._operator.metrics()),
            cpu_percent=round(cpu_percent, 1),
            claims=self.claims,
        )

    @property
    def pid(self) -> int:
        """The operator's process; it must be the same one all along."""
        assert self._operator.pid is not None, f"it has ended:\n{self._operator.tail()}"
        return self._operator.pid


def run(minutes: float, seed: int) -> tuple[list[RestSample], list[str]]:
    """Load, rest, load, rest; return all rests, and what went wrong."""
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as folder,
        ControlPlane() as plane,
        Api(plane.kubeconfig, NAMESPACE) as api,
    ):
        apply_crds(api)
        for name in (SYSTEM, NAMESPACE):
            api.create(objects.namespace(name))
        with Controllers(plane.kubeconfig), FakeNodes(plane.kubeconfig, retry_seconds=1) as nodes:
            env = {"SANDBOXPOOL_PROBE_IMAGE": PROBE_IMAGE, "SANDBOXPOOL_LOG_LEVEL": "info"}
            operator = Operator(plane.kubeconfig, Path(folder), SYSTEM, env)
            operator.start()
            try:
                return _cycles(Soak(api, nodes, operator, seed), minutes)
            finally:
                operator.kill()


def _cycles(soak: Soak, minutes: float) -> tuple[list[RestSample], list[str]]:
    soak.prepare()
    pid, began = soak.pid, time.monotonic()
    rests: list[RestSample] = []
    wrong: list[str] = []
    end = began + 60 * minutes
    while time.monotonic() < end:
        since, used = time.monotonic(), machine.cpu_seconds(pid)
        soak.load(min(since + PERIOD_SECONDS, end))
        wrong += [*soak.drain(), *soak.stale()]
        if soak.pid != pid:
            wrong.append("the operator was restarted")
            break
        percent = 100 * (machine.cpu_seconds(pid) - used) / (time.monotonic() - since)
        rests.append(soak.measure((time.monotonic() - began) / 60, percent))
        say(f"  {rests[-1]} {wrong or ''}")
    return rests, wrong + growth(rests)


def growth(rests: list[RestSample]) -> list[str]:
    """What was more at the last rest than when all had filled up, beyond noise."""
    warm = [rest for rest in rests if rest.minute >= WARM_UP * rests[-1].minute]
    if len(warm) < 2:
        return ["there were not two rests to compare"]
    first, last = asdict(warm[0]), asdict(warm[-1])
    return [
        f"{name} grew from {first[name]} to {last[name]}"
        for name, factor in TOLERANCE.items()
        if last[name] > first[name] * factor
    ]


def _pool(name: str, class_name: str, replicas: int) -> dict[str, Any]:
    return objects.pool(
        name,
        class_name,
        replicas,
        maxSandboxes=60,
        isolationProof="PerNode",
        claims={"ttlSecondsAfterFinished": 5},
        startup={"timeoutSeconds": 20, "maxStarting": 10},
    )


def report(about: dict[str, str], minutes: float, rests: list[RestSample], wrong: list[str]) -> str:
    """The figures as a page."""
    names = list(RestSample.__dataclass_fields__)
    return "\n".join([
        f"# {minutes:g} minutes of mixed load",
        "",
        f"By `make soak MINUTES={minutes:g}`: claims come and go, expire and start cold; pools are",
        "scaled, rolled, made and deleted; nodes are cordoned, lost, added and removed; runtimes",
        "fail and heal. Real kube-apiserver, etcd, scheduler and garbage collector; fake nodes.",
        "Each line is the operator at rest, after the load was drained: the same pools and nodes,",
        "no claim. One process all along.",
        "",
        *(f"- {key}: {value}" for key, value in about.items()),
        "",
        "| " + " | ".join(name.replace("_", " ") for name in names) + " |",
        "|" + "---|" * len(names),
        *("| " + " | ".join(str(getattr(rest, name)) for name in names) + " |" for rest in rests),
        "",
        "Verdict: " + ("; ".join(wrong) or f"flat, from {WARM_UP:.0%} of the time on; noise is "
        + ", ".join(f"{limit - 1:.0%} of {name}" for name, limit in TOLERANCE.items()) + "."),
    ]) + "\n"  # fmt: skip


def main() -> None:
    """Soak and write the page, with the raw figures beside it."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    about = machine.describe()
    rests, wrong = run(given.minutes, given.seed)
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(report(about, given.minutes, rests, wrong))
    raw = {"about": about, "minutes": given.minutes, "rests": [asdict(r) for r in rests]}
    REPORT.with_suffix(".json").write_text(json.dumps({**raw, "wrong": wrong}, indent=1) + "\n")
    say(f"wrote {REPORT.relative_to(ROOT)}")
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
