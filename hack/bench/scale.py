"""`make bench-scale`: what the operator needs for a large cluster, and what a claim costs in it.

The warm pods are created as the operator would have made them, and the operator is started on
what is there. A claim is measured in three layouts; it should cost the same in all of them. Pools
are paused meanwhile, and want no proof of isolation: that of 5,000 nodes takes its time, and is
measured by `make bench-fleet`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import machine
from bench.load import Generator, Result
from bench.report import Goal
from bench.rig import CLASS, Rig, wait
from bench.stats import summarise
from fakekubelet.client import Client
from localcluster.progress import say
from sandboxpool.api import names
from sandboxpool.cluster.pools import parse
from sandboxpool.runtimes.probe import ProbeImage
from sandboxpool.runtimes.resolve import Runtime
from sandboxpool.runtimes.verdict import Verdict
from sandboxpool.sandboxes.template import build_pod, pod_name
from support import objects

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "docs" / "benchmarks" / "scale.md"
NAMESPACES = 20
# Claims of one pool, one after the other, on so many pools.
CLAIMS, MEASURED_POOLS = 40, 5
QUIET_SECONDS = 30
LATE_CLASS = "late"


@dataclass(frozen=True)
class Layout:
    """How many pods in how many pools, on how many nodes."""

    pods: int
    pools: int
    nodes: int

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.pods:,} pods in {self.pools} pools, {self.nodes:,} nodes"

    def pool(self, number: int) -> tuple[str, str]:
        """Namespace and name of one of the pools."""
        return f"bench-{number % NAMESPACES:02}", f"pool-{number:03}"


def layouts(nodes: int) -> tuple[Layout, ...]:
    """A small cluster, the large one, and the large one with all pods in one pool."""
    return Layout(250, 1, 10), Layout(10_000, 200, nodes), Layout(10_000, 1, nodes)


def run(layout: Layout, folder: Path) -> dict[str, Any]:
    """Measure one layout on a control plane of its own."""
    say(f"{layout.name} ...")
    with Rig(folder, nodes=layout.nodes) as rig:
        for number in range(layout.pools):
            namespace, name = layout.pool(number)
            rig.add_pool(
                namespace,
                name,
                layout.pods // layout.pools,
                paused=True,
                isolationProof="None",
            )
        asyncio.run(_create_pods(rig, layout))
        synced = rig.start_operator()
        pid = rig.operator.pid
        assert pid is not None, "it is ready, so it runs"
        wait(lambda: _warm(rig) == layout.pods, 120, "all pods in the pools' status")
        time.sleep(5)
        used, began = machine.cpu_seconds(pid), time.monotonic()
        time.sleep(QUIET_SECONDS)
        idle = (machine.cpu_seconds(pid) - used) / (time.monotonic() - began)
        figures = {
            "syncedSeconds": synced,
            "idlePercent": 100 * idle,
            **_claims(rig, layout, pid),
            "firstPodSeconds": _late_class(rig),
            "residentMiB": machine.resident_mib(pid),
        }
    say(f"  {figures}")
    return figures


async def _create_pods(rig: Rig, layout: Layout) -> None:
    """Create the warm pods as the operator makes them; the kubelets have them run."""
    found = rig.api.get("RuntimeClass", CLASS)
    runtime = Runtime(CLASS, found["metadata"]["uid"], found["handler"])
    async with Client(rig.access, concurrency=16) as client:

        async def one(body: Mapping[str, Any]) -> None:
            namespace = body["metadata"]["namespace"]
            await client.send("POST", f"/api/v1/namespaces/{namespace}/pods", body=body)

        for number in range(layout.pools):
            namespace, name = layout.pool(number)
            pool = parse(rig.api.get(names.POOL_KIND, name, namespace), None)
            bodies = (
                build_pod(
                    pool,
                    runtime,
                    Verdict(),
                    pod_name(name, str(count)),
                    probe=ProbeImage(""),
                )
                for count in range(layout.pods // layout.pools)
            )
            await asyncio.gather(*map(one, bodies))
    wait(lambda: not rig.count("/api/v1/pods?fieldSelector=status.phase%3DPending"), 120, "pods")


def _warm(rig: Rig) -> int:
    pools = rig.api.list(names.POOL_KIND, everywhere=True)
    return sum((pool.get("status") or {}).get("warm", 0) for pool in pools)


def _claims(rig: Rig, layout: Layout, pid: int) -> dict[str, Any]:
    """One claim after the other, on one pool after the other."""

    async def load(namespace: str, name: str) -> Result:
        async with Generator(rig.access, rig.subject(namespace, name)) as generator:
            return await generator.closed(1, CLAIMS)

    used = machine.cpu_seconds(pid)
    results = [
        asyncio.run(load(*layout.pool(number % layout.pools))) for number in range(MEASURED_POOLS)
    ]
    time.sleep(2)
    used = machine.cpu_seconds(pid) - used
    samples = [sample for result in results for sample in result.samples_ms]
    if len(samples) < CLAIMS * MEASURED_POOLS:
        raise RuntimeError(f"only {len(samples)} claims were bound:\n{rig.operator.tail(20)}")
    seconds = sum(result.seconds for result in results)
    return {
        "claimCpuMs": 1000 * used / len(samples),
        "claims": summarise(samples, seconds).as_dict(),
    }


def _late_class(rig: Rig) -> float:
    """Seconds from the creation of a RuntimeClass to the first pod of a pool that waits for it."""
    namespace = "bench-late"
    rig.add_pool(namespace, LATE_CLASS, 1, runtimeClassName=LATE_CLASS, isolationProof="None")
    wait(
        lambda: bool(rig.api.get(names.POOL_KIND, LATE_CLASS, namespace).get("status")),
        30,
        "a pool that waits for its class",
    )
    pods = f"/api/v1/namespaces/{namespace}/pods"
    began = time.monotonic()
    rig.api.create(objects.runtime_class(LATE_CLASS, "runsc"))
    wait(lambda: rig.count(pods) == 1, 60, "the first pod", poll=0.01)
    return time.monotonic() - began


def goals(found: Mapping[Layout, Mapping[str, Any]]) -> list[Goal]:
    """The goals of a large cluster."""
    small, large, one_pool = found.values()
    return [
        Goal("caches synced after its start", [large["syncedSeconds"]], 10, unit="s"),
        Goal("memory", [large["residentMiB"]], 200, unit="MiB"),
        Goal("CPU of an idle operator", [large["idlePercent"]], 2, unit="% of a core"),
        Goal("RuntimeClass appears to first pod created", [large["firstPodSeconds"]], 1, unit="s"),
        Goal(
            "CPU of a claim with many pools, to one small pool",
            [large["claimCpuMs"] / small["claimCpuMs"]],
            1.2,
        ),
        Goal(
            "CPU of a claim in one large pool, to one small pool",
            [one_pool["claimCpuMs"] / small["claimCpuMs"]],
            1.2,
        ),
    ]


def report(
    about: Mapping[str, str], found: Mapping[Layout, Mapping[str, Any]], command: str
) -> str:
    """The figures as a page."""
    lines = [
        "# A large cluster",
        "",
        f"By `{command}`. Real kube-apiserver and etcd; nodes and kubelets are fake. The operator",
        "is started on pods that are there; claims come one after the other, on paused pools.",
        "",
        *(f"- {key}: {value}" for key, value in about.items()),
        "",
        "| goal | wanted | measured | |",
        "|---|---|---|---|",
        *(goal.line() for goal in goals(found)),
        "",
        "| layout | synced s | idle CPU % | CPU ms/claim | p50 ms | p99 ms | first pod s | MiB |",
        "|---" * 8 + "|",
    ]
    for layout, row in found.items():
        cells = (
            layout.name,
            f"{row['syncedSeconds']:.1f}",
            f"{row['idlePercent']:.1f}",
            f"{row['claimCpuMs']:.2f}",
            f"{row['claims']['p50']:.1f}",
            f"{row['claims']['p99']:.1f}",
            f"{row['firstPodSeconds']:.2f}",
            f"{row['residentMiB']:.0f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the page, with the raw figures beside it."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale")
    parser.add_argument("--nodes", type=int, default=5000)
    given = parser.parse_args()
    about = machine.describe()
    found: dict[Layout, dict[str, Any]] = {}
    for layout in layouts(given.nodes):
        with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
            found[layout] = run(layout, Path(scratch))
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    page = report(about, found, f"make bench-scale NODES={given.nodes}")
    REPORT.write_text(page)
    raw = {"about": about, "layouts": {layout.name: row for layout, row in found.items()}}
    REPORT.with_suffix(".json").write_text(json.dumps(raw, indent=1) + "\n")
    say(page)
    say(f"wrote {REPORT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
