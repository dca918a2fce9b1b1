"""`make bench-opensandbox`: how soon an application of OpenSandbox has a sandbox of a pool.

On the local cluster, with OpenSandbox's own server and SDK in one pod, the bridge, and stand-ins
for what runs in OpenSandbox's sandboxes. Sandboxes run with runc, so that the processors that all
of this shares are not spent on starting them. Bare claims take turns with the SDK.
"""

from __future__ import annotations

import argparse
import json
import statistics
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import machine
from bench.report import Goal
from bench.stats import percentile
from demo import install
from localcluster import kindcluster, nodes, opensandbox
from localcluster.progress import say
from support import Api, eventually, objects
from support.deployed import DeployedOperator, Process
from support.opensandbox import server as servers
from support.opensandbox.kinds import ensure_opensandbox_crds
from support.opensandbox.server import executor_template, opened
from support.realnodes import WITH_GVISOR, pool
from support.sandboxes import pool_status

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "docs" / "benchmarks" / "opensandbox.md"
INSIDE = Path(__file__).with_name("opensandbox_inside.py").read_text()
BRIDGE = f"{install.RELEASE}-opensandbox"
POOL = "bench"
WARM = 100
SINGLE = 20
AT_ONCE = 10
WARM_SECONDS = 600.0
WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
# A CPU tick of Linux, as /proc counts.
TICKS = 100

# Figures by name, in the order of the rounds: milliseconds, unless the name says otherwise.
Figures = dict[str, list[float]]

ONE = "one in flight"
TEN = f"{AT_ONCE} in flight"
BURST = f"{WARM} at once"
# What the bridge measures of each request, by its steps.
STEPS = {
    "mean of a burst: claim bound, from the sight of the request": "claim",
    "mean of a burst: task delivered": "task",
    "mean of a burst: execd answers": "execd",
    "mean of a burst: published": "publish",
}
RATE, BARE_RATE = f"{BURST}: sandboxes a second", f"{BURST}: bare claims a second"
BRIDGE_WRITES, CPU = "bridge: API writes a sandbox", "bridge: CPU a sandbox"


class Bench:
    """A namespace with a pool and OpenSandbox's server, for as long as it takes to measure.

    Attributes:
        figures: What was measured.
    """

    def __init__(self, api: Api, server: servers.Server, bridge: DeployedOperator) -> None:
        self.figures: Figures = {}
        self._api = api
        self._server = server
        self._bridge = bridge

    def round(self, number: int) -> None:
        """Measure everything once; SDK and bare claims take turns at being first."""
        self._await_warm()
        seen = self._inside(f"one_by_one({POOL!r}, {SINGLE})")
        self._end_all()
        for way in ("sdk", "bare"):
            self._note_moments(f"{ONE}: {way}", seen[way])
        self._at_once(TEN, AT_ONCE * 3, AT_ONCE, "sdk")
        self._end_all()
        sides = ["sdk", "bare"]
        for side in sides if number % 2 else reversed(sides):
            if side == "sdk":
                self._burst_of_sdk()
            else:
                seen = self._at_once(BURST, WARM, WARM, "bare")
                self._end_all()
                self._note(BARE_RATE, WARM / seen["seconds"])

    def _burst_of_sdk(self) -> None:
        self._await_warm()
        process = self._bridge.process()
        before = self._counted(process)
        seen = self._at_once(BURST, WARM, WARM, "sdk")
        # Before the sandboxes end: what is counted is what creating them took.
        after = self._counted(process)
        self._end_all()
        change = {name: after[name] - before[name] for name in after}
        self._note(RATE, WARM / seen["seconds"])
        self._note(CPU, 1000 * change["cpu"] / WARM)
        self._note(BRIDGE_WRITES, change["writes"] / WARM)
        for name, step in STEPS.items():
            self._note(name, 1000 * change[f"{step} sum"] / change[f"{step} count"])

    def _at_once(self, what: str, number: int, in_flight: int, way: str) -> dict[str, Any]:
        self._await_warm()
        seen = self._inside(f"at_once({POOL!r}, {number}, {in_flight}, {way!r})")
        self._note_moments(f"{what}: {way}", seen[way])
        return seen

    def _inside(self, call: str) -> dict[str, Any]:
        printed = self._server.exec("application", "python3", "-c", f"{INSIDE}\n{call}\n")
        return dict(json.loads(printed.splitlines()[-1]))

    def _end_all(self) -> None:
        self._inside("end_all()")

    def _counted(self, process: Process) -> dict[str, float]:
        stat = nodes.exec_on(process.node, "cat", f"/proc/{process.pid}/stat")
        fields = stat.rpartition(")")[2].split()
        metric = self._bridge.metric
        counted = {
            "cpu": (int(fields[11]) + int(fields[12])) / TICKS,
            "writes": sum(metric("sandboxpool_api_requests_total", verb=verb) for verb in WRITES),
        }
        for step in STEPS.values():
            for part in ("sum", "count"):
                name = f"sandboxpool_opensandbox_step_duration_seconds_{part}"
                counted[f"{step} {part}"] = metric(name, step=step)
        return counted

    def _await_warm(self) -> None:
        pool_status(self._api, name=POOL, warm=WARM, claimed=0, timeout=WARM_SECONDS)

    def _note_moments(self, what: str, moments: Sequence[Mapping[str, float]]) -> None:
        for one in moments:
            for part, figure in one.items():
                self._note(what if part == "total" else f"{what}, of it the {part}", figure)

    def _note(self, what: str, figure: float) -> None:
        self.figures.setdefault(what, []).append(figure)


@contextmanager
def prepared() -> Iterator[Bench]:
    """The local cluster with operator and bridge, and a namespace that is removed at the end."""
    kubeconfig = kindcluster.up()
    images = opensandbox.build_images()
    namespace = f"bench-{uuid.uuid4().hex[:8]}"
    with Api(kubeconfig) as api:
        ensure_opensandbox_crds(api)
        api.create(objects.namespace(namespace))
        api.create(objects.runtime_class(namespace, "runc"))
        served = {"enabled": True, "namespaces": [namespace]}
        install.install_operator(kubeconfig, {"opensandbox": served})
        bridge = DeployedOperator(api, BRIDGE, BRIDGE, "sandboxpool_opensandbox")
        bridge.wait_ready()
        try:
            server = servers.deploy(api, namespace, images)
            _allow_claims(api.within(namespace))
            waiting = pool(
                *(POOL, namespace, WARM),
                pod=executor_template(images.sandbox),
                # The ceiling keeps the sandboxes that take their places from starting meanwhile.
                maxSandboxes=WARM,
                isolationProof="None",
            )
            api.within(namespace).create(opened(waiting))
            yield Bench(api.within(namespace), server, bridge)
        finally:
            api.delete("SandboxPool", POOL, namespace)
            api.delete("Namespace", namespace)
            eventually(
                lambda: not api.list("Pod", namespace), message="the pods are gone", timeout=300
            )
            api.delete("RuntimeClass", namespace)
            install.install_operator(kubeconfig)


def _allow_claims(api: Api) -> None:
    """Lets the application make bare claims."""
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "bare-claims"},
        "rules": [
            {
                "apiGroups": ["sandboxpool.io"],
                "resources": ["sandboxclaims"],
                "verbs": ["create", "list", "watch", "deletecollection"],
            }
        ],
    }
    api.create(role)
    api.create(
        {
            **{key: role[key] for key in ("apiVersion", "metadata")},
            "kind": "RoleBinding",
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "Role",
                "name": "bare-claims",
            },
            "subjects": [{"kind": "ServiceAccount", "name": servers.NAME}],
        }
    )


def about(rounds: int) -> dict[str, str]:
    """Date, machine and versions."""
    node = kindcluster.node_objects()[WITH_GVISOR]["status"]["nodeInfo"]
    pins = opensandbox.REQUIREMENTS.read_text().splitlines()
    found = [
        line.split()[0] for line in pins if line.startswith(("opensandbox==", "opensandbox-s"))
    ]
    return {
        **machine.here(),
        "Kubernetes": f"{node['kubeletVersion']}, {node['containerRuntimeVersion']}",
        "OpenSandbox": ", ".join(found),
        "rounds": str(rounds),
    }


def goals(figures: Mapping[str, Sequence[float]]) -> list[Goal]:
    """The goals."""
    shares = figures[f"{ONE}: sdk, of it the bridge"]
    rates = [own / claims for own, claims in zip(figures[RATE], figures[BARE_RATE], strict=True)]
    return [
        Goal("the bridge's share of a create, one in flight", shares, 45, unit="ms"),
        # The server writes one, the operator two.
        Goal(
            "API writes a sandbox, with the server's one and the operator's two",
            [writes + 3 for writes in figures[BRIDGE_WRITES]],
            6,
            unit="",
        ),
        Goal(f"rate of {BURST}, to that of bare claims", rates, 0.5, at_most=False),
        Goal("the bridge's CPU a sandbox", figures[CPU], 5, unit="ms"),
    ]


def report(versions: Mapping[str, str], figures: Mapping[str, Sequence[float]]) -> str:
    """The figures as a page."""
    lines = [
        "# OpenSandbox",
        "",
        "By `make bench-opensandbox`, on the local cluster: `Sandbox.create` of the Python SDK,",
        "from the call to its return, beside a **bare** SandboxClaim, from its POST to the sight",
        "of the bound claim. All parts of the cluster, the server and the application share the",
        "machine below. Sandboxes run with runc, with stand-ins of this project for task-executor",
        "and execd. One in flight, watches say when the BatchSandbox, the claim, the bound claim",
        "and the running status are there: the **bridge**'s share is from the BatchSandbox to the",
        "claim and from the bound claim to the running status, so that the start of the task in",
        "the sandbox is in it. CPU and writes of the bridge are those of a burst, from its first",
        "request until all have their sandboxes; what the end of the sandboxes takes is not in it.",
        "The writes of the Pool that mirrors the SandboxPool are, one in five seconds at most.",
        "",
        *(f"- {key}: {value}" for key, value in versions.items()),
        "",
        "| goal | wanted | median (least to most) | |",
        "|---|---|---|---|",
        *(goal.line() for goal in goals(figures)),
        "",
        "| ms, if not said otherwise | n | least | p50 | p95 | most |",
        "|---" * 6 + "|",
    ]
    for what, samples in figures.items():
        ordered = sorted(samples)
        cells = (ordered[0], statistics.median(ordered), percentile(ordered, 95), ordered[-1])
        shown = " | ".join(f"{value:.1f}" for value in cells)
        lines.append(f"| {what} | {len(ordered)} | {shown} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the page, with the raw figures beside it."""
    parser = argparse.ArgumentParser(prog="python -m bench.opensandbox")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with prepared() as bench:
        for number in range(given.rounds):
            say(f"round {number + 1} of {given.rounds}")
            bench.round(number)
        versions = about(given.rounds)
    page = report(versions, bench.figures)
    REPORT.write_text(page)
    raw = {"about": versions, "figures": bench.figures}
    REPORT.with_suffix(".json").write_text(json.dumps(raw, indent=1) + "\n")
    say(page)
    say(f"wrote {REPORT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
