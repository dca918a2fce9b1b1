"""`make bench-handover`: how long a claim waits when the leader goes.

Two replicas, with the lease that the chart gives them. The leader gets a signal, and a claim is
created at the same moment: the next leader gives it one of the pool's warm sandboxes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from bench import machine
from bench.report import Goal
from bench.rig import POOL, Rig, wait
from localcluster.progress import say
from sandboxpool.api import names
from support import objects
from support.operator_process import Operator

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "docs" / "benchmarks" / "handover.md"
NAMESPACE = "bench"
LONGEST_SECONDS = {"SIGTERM": 2.0, "SIGKILL": 20.0}
POLL_SECONDS = 0.005

Figures = Mapping[str, Sequence[float]]


def run(rounds: int, warm: int) -> dict[str, list[float]]:
    """Hand over so often in each way, with so many warm sandboxes; return the seconds."""
    found: dict[str, list[float]] = {how: [] for how in LONGEST_SECONDS}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, Rig(Path(folder)) as rig:
        rig.add_pool(NAMESPACE, replicas=warm, isolationProof="None")
        first = rig.operator
        second = Operator(first.kubeconfig, Path(folder), first.namespace, first.env, "second")
        try:
            for operator in (first, second):
                operator.start()
                wait(lambda: any(map(_leads, (first, second))), 60, "a leader")
            for count, how in enumerate(itertools.chain(*[LONGEST_SECONDS] * rounds)):
                leader, standby = (first, second) if _leads(first) else (second, first)
                wait(lambda: rig.warm(NAMESPACE) == warm, 120, "a warm pool")
                seconds = _hand_over(rig, leader, how, f"claim-{count}")
                say(f"{how}: {seconds:.2f} s")
                found[how].append(seconds)
                # Gone by now, one way or the other.
                leader.kill()
                wait(partial(_leads, standby), 60, "the next leader")
                leader.start()
        finally:
            second.kill()
    return found


def _leads(operator: Operator) -> bool:
    return operator.running and operator.metric("sandboxpool_leader") == 1


def _hand_over(rig: Rig, leader: Operator, how: str, claim: str) -> float:
    pid = leader.pid
    assert pid is not None, "a leader runs"
    began = time.monotonic()
    os.kill(pid, signal.Signals[how])
    body = objects.claim(claim, POOL)
    rig.api.create({**body, "metadata": {"name": claim, "namespace": NAMESPACE}})

    def bound() -> bool:
        status = rig.api.get(names.CLAIM_KIND, claim, NAMESPACE).get("status") or {}
        return bool(status.get("phase") == "Bound")

    wait(bound, 120, "the claim is bound", poll=POLL_SECONDS)
    return time.monotonic() - began


def report(about: Mapping[str, str], found: Figures, command: str, warm: int) -> str:
    """The figures as a page."""
    goals = [Goal(how, [max(found[how])], most, unit="s") for how, most in LONGEST_SECONDS.items()]
    lines = [
        "# A leader that goes",
        "",
        f"By `{command}`. Real kube-apiserver and etcd; nodes and kubelets are fake.",
        f"Two replicas and a pool of {warm} warm sandboxes. From the signal to the leader until a",
        "claim that was created right after it is bound by the next one; the longest of all rounds",
        "counts.",
        "",
        *(f"- {key}: {value}" for key, value in about.items()),
        "",
        "| signal | wanted | longest | |",
        "|---|---|---|---|",
        *(goal.line() for goal in goals),
        "",
        "| signal | rounds | shortest s | median s | longest s |",
        "|---" * 5 + "|",
    ]
    for how, seconds in found.items():
        figures = (min(seconds), statistics.median(seconds), max(seconds))
        cells = (how, str(len(seconds)), *(f"{value:.2f}" for value in figures))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the page, with the raw figures beside it."""
    parser = argparse.ArgumentParser(prog="python -m bench.handover")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", type=int, default=50)
    given = parser.parse_args()
    about = machine.describe()
    found = run(given.rounds, given.warm)
    page = report(about, found, "make bench-handover", given.warm)
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(page)
    raw = {"about": about, "warm": given.warm, "seconds": found}
    REPORT.with_suffix(".json").write_text(json.dumps(raw, indent=1) + "\n")
    say(page)
    say(f"wrote {REPORT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
