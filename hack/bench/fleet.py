"""A large fleet: what the operator costs, writes and stores when most nodes serve a runtime.

`make bench-fleet`. Real kube-apiserver, etcd and scheduler; the nodes and their kubelets are fake.
40 % of the nodes lack gVisor's handler, and on 1 % it is listed and has no shim.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import machine
from fakekubelet import FakeNode, FakeNodes
from localcluster.controlplane import ControlPlane
from localcluster.progress import say
from sandboxpool.runtimes.exclusion import handler_key
from support import Api, objects
from support.controllers import Controllers
from support.crds import apply_crds
from support.operator_process import Operator

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "docs" / "benchmarks" / "fleet.md"
NAMESPACE = "sandboxpool-system"
PROBE_IMAGE = "registry.example/probe:1"
BROKEN = (
    'rpc error: code = Unknown desc = failed to start sandbox "0": failed to create containerd '
    "task: failed to start shim: failed to resolve runtime path: runtime "
    '"io.containerd.runsc.v1" binary not installed "containerd-shim-runsc-v1": file does not exist'
)
# Class, handler, number of pools, isolationProof.
CLASSES = (
    ("gvisor", "runsc", 6, "PerNode"),
    ("kata-qemu", "kata-qemu", 3, "PerNode"),
    ("runc", "runc", 3, "None"),
)


@dataclass
class Fleet:
    """The pieces of one run."""

    api: Api
    nodes: FakeNodes
    operator: Operator
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        """The operator's process."""
        assert self.operator.pid is not None, "it runs as long as the benchmark does"
        return self.operator.pid

    def writes(self) -> float:
        """Requests of the operator that change something, up to now."""
        return sum(
            value
            for (name, labels), value in self.operator.metrics().items()
            if name == "sandboxpool_api_requests_total" and dict(labels)["verb"] not in _READS
        )

    def reconciles(self) -> float:
        """Keys that were given to the pools' workers, up to now."""
        return self.operator.metric("workqueue_work_duration_seconds_count", name="pools")


_READS = ("GET", "WATCH")


@contextmanager
def measured(fleet: Fleet, name: str, events: int = 0) -> Iterator[None]:
    """Measure what happens inside, and a little after it: writes are gathered for a moment."""
    say(f"{name} ...")
    cpu, writes, reconciles = (
        machine.cpu_seconds(fleet.pid),
        fleet.writes(),
        fleet.reconciles(),
    )
    began = time.monotonic()
    yield
    time.sleep(3)
    seconds = time.monotonic() - began
    used = machine.cpu_seconds(fleet.pid) - cpu
    fleet.figures[name] = {
        "seconds": round(seconds, 1),
        "events": events,
        "cpu_seconds": round(used, 2),
        "cpu_percent": round(100 * used / seconds, 1),
        "cpu_ms_per_event": round(1000 * used / events, 2) if events else None,
        "writes": int(fleet.writes() - writes),
        "writes_per_minute": round(60 * (fleet.writes() - writes) / seconds),
        "pool_reconciles": int(fleet.reconciles() - reconciles),
    }
    say(f"  {fleet.figures[name]}")


def run(count: int, seconds: int) -> dict[str, Any]:
    """Run all phases on so many nodes; those that wait take so many seconds."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        ControlPlane() as plane,
        Api(plane.kubeconfig, "default") as api,
    ):
        apply_crds(api)
        with Controllers(plane.kubeconfig), FakeNodes(plane.kubeconfig) as nodes:
            say(f"{count} nodes ...")
            nodes.add(*_nodes(count))
            api.create(objects.namespace(NAMESPACE))
            operator = Operator(
                plane.kubeconfig,
                Path(folder),
                NAMESPACE,
                {"SANDBOXPOOL_PROBE_IMAGE": PROBE_IMAGE, "SANDBOXPOOL_LOG_LEVEL": "info"},
            )
            began = time.monotonic()
            operator.start(ready=False)
            operator.wait_ready(120)
            fleet = Fleet(api, nodes, operator)
            fleet.figures["caches synced after s"] = round(time.monotonic() - began, 1)
            try:
                _phases(fleet, count, seconds)
            finally:
                operator.kill()
            return fleet.figures


def _nodes(count: int) -> Iterator[FakeNode]:
    for i in range(count):
        handlers = {"runc"}
        if i % 5 < 3:
            handlers.add("runsc")
        if i % 10 == 0:
            handlers.add("kata-qemu")
        yield FakeNode(f"node-{i:05}", handlers, labels={"zone": f"z{i % 3}", "pool": f"p{i % 20}"})


def _phases(fleet: Fleet, count: int, seconds: int) -> None:
    serving = [name for i, name in enumerate(fleet.nodes.names()) if i % 5 < 3]
    # Every node that lacks one of the handlers has a label that says so.
    unfit = sum(i % 5 >= 3 or i % 10 != 0 for i in range(count))
    fleet.nodes.fail("runsc", BROKEN, serving[:: max(1, len(serving) * 100 // count)])
    for name, handler, _, _ in CLASSES:
        fleet.api.create(objects.runtime_class(name, handler))
    with measured(fleet, "nodes are labelled", events=0):
        for name, _, pools, proof in CLASSES:
            for i in range(pools):
                fleet.api.create(objects.pool(f"{name}-{i}", name, 0, isolationProof=proof))
        _wait(lambda: len(_unlabelled(fleet)) <= count - unfit, 600)
    with measured(fleet, "pools fill", events=0):
        for name, _, pools, _ in CLASSES:
            for i in range(pools):
                fleet.api.scale("SandboxPool", f"{name}-{i}", 50)
        _wait(lambda: _warm(fleet) == 50 * 12, 600)
    with measured(fleet, "first probes", events=0):
        time.sleep(seconds)
    some = fleet.nodes.names()[:: max(1, count // 500)]
    with measured(fleet, "heartbeats", events=len(some)):
        for name in some:
            _heartbeat(fleet.api, name)
    with measured(fleet, "handler lists in another order", events=len(some)):
        for name in some:
            _shuffle(fleet.api, name)
    few = fleet.nodes.names()[:: max(1, count // 100)]
    with measured(fleet, "nodes lose their handlers", events=len(few)):
        for name in few:
            fleet.nodes.set_handlers(name, {"runc"})
    with measured(fleet, "pools double", events=0):
        for name, _, pools, _ in CLASSES:
            for i in range(pools):
                fleet.api.scale("SandboxPool", f"{name}-{i}", 100)
        _wait(lambda: _warm(fleet) == 100 * 12, 600)
    # Nothing changes, but most nodes have still to be proven, a few each second; `make bench-scale`
    # measures an operator that has nothing to do.
    with measured(fleet, "nodes are being proven", events=0):
        time.sleep(seconds)
    _sizes(fleet)


def _unlabelled(fleet: Fleet) -> list[dict[str, Any]]:
    """The nodes that have no label which keeps sandboxes away."""
    selector = ",".join(f"!{handler_key(handler)}" for _, handler, _, _ in CLASSES)
    return fleet.api.list("Node", labelSelector=selector)


def _warm(fleet: Fleet) -> int:
    pools = fleet.api.list("SandboxPool")
    return sum(pool.get("status", {}).get("warm", 0) for pool in pools)


def _heartbeat(api: Api, name: str) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    node = api.get("Node", name)
    for condition in node["status"]["conditions"]:
        condition["lastHeartbeatTime"] = now
    api.patch_status("Node", name, {"conditions": node["status"]["conditions"]})


def _shuffle(api: Api, name: str) -> None:
    handlers = api.get("Node", name)["status"]["runtimeHandlers"]
    api.patch_status("Node", name, {"runtimeHandlers": handlers[::-1]})


def _wait(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            say("  (not reached in time; the figures are those up to here)")
            return
        time.sleep(1)


def _sizes(fleet: Fleet) -> None:
    figures = fleet.figures
    figures["resident MiB"] = round(machine.resident_mib(fleet.pid))
    labelled = len(fleet.nodes.names()) - len(_unlabelled(fleet))
    figures["nodes with exclusion labels"] = labelled
    figures["quarantined nodes"] = int(fleet.operator.metric("sandboxpool_quarantined_nodes"))
    for kind in ("SandboxRuntime", "SandboxPool"):
        found = fleet.api.list(kind)
        figures[f"largest {kind} bytes"] = max(len(json.dumps(obj)) for obj in found)
    maps = [
        obj
        for obj in fleet.api.list("ConfigMap", NAMESPACE)
        if obj["metadata"]["name"].startswith("sandboxpool-nodes-")
    ]
    sizes = [len(json.dumps(obj)) for obj in maps]
    figures["ConfigMaps"] = len(sizes)
    figures["largest ConfigMap bytes"] = max(sizes, default=0)
    figures["nodes kept"] = sum(len(obj.get("data", {})) for obj in maps)


def report(about: dict[str, str], count: int, figures: dict[str, Any]) -> str:
    """The figures as a page."""
    lines = [
        f"# A fleet of {count} nodes",
        "",
        f"By `make bench-fleet NODES={count}`. Real kube-apiserver, etcd and kube-scheduler; nodes",
        "and kubelets are fake. 60 % of the nodes list gVisor's handler and 10 % Kata's; on 1 % of",
        "all nodes gVisor's shim is missing. 12 pools of three classes. CPU is the operator's own.",
        "",
        *(f"- {key}: {value}" for key, value in about.items()),
        "",
        "| phase | s | events | CPU s | CPU % | CPU ms/event | writes | writes/min | reconciles |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in figures.items():
        if isinstance(row, dict):
            cells = (name, *("" if value is None else value for value in _cells(row)))
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "| at the end | |", "|---|---|"]
    lines += [
        f"| {key} | {value} |" for key, value in figures.items() if not isinstance(value, dict)
    ]
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> tuple[Any, ...]:
    return (
        row["seconds"],
        row["events"] or None,
        row["cpu_seconds"],
        row["cpu_percent"],
        row["cpu_ms_per_event"],
        row["writes"],
        row["writes_per_minute"],
        row["pool_reconciles"],
    )


def main() -> None:
    """Measure and write the page, with the raw figures beside it."""
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__)
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--seconds", type=int, default=60, help="length of the phases that wait")
    given = parser.parse_args()
    about = machine.describe()
    figures = run(given.nodes, given.seconds)
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(report(about, given.nodes, figures))
    raw = {"about": about, "nodes": given.nodes, "figures": figures}
    REPORT.with_suffix(".json").write_text(json.dumps(raw, indent=1) + "\n")
    say(f"wrote {REPORT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
