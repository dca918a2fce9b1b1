"""`kubectl sandboxpool top`: stock, claims and times of pools."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated

import typer

from sandboxpool.cli import reading, report, times
from sandboxpool.cli.cluster import CLAIMS, POOLS, Object
from sandboxpool.cli.command import Invocation, command
from sandboxpool.cli.output import Column, Table
from sandboxpool.cli.report import Section
from sandboxpool.cli.status import milliseconds


@command(
    "top",
    examples="""
        # Pools of the namespace
        kubectl sandboxpool top

        # All pools, until Ctrl-C
        kubectl sandboxpool top -A --watch
    """,
    all_namespaces=True,
)
def top(
    run: Invocation,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show changes as they come.")
    ] = False,
) -> None:
    """Show the stock, the claims and the start-up times of pools.

    START P50 is the time from a sandbox's creation until it is ready, from the pool's status.
    HIT RATE and CLAIM P50 are of the claims that exist and have had a sandbox: the share that got
    a warm one, and the time from a claim's creation to its binding. The API server keeps times in
    whole seconds. Claims that are deleted do not count; the operator's metrics
    (sandboxpool_claim_duration_seconds) count all, and finer.
    """

    def read() -> Sequence[Section]:
        return [
            Section(
                "", usage(run.cluster.list(POOLS, run.scope), run.cluster.list(CLAIMS, run.scope))
            )
        ]

    if watch:
        report.watch(run.out, read)
    report.show(run.out, read())


def usage(pools: Sequence[Object], claims: Sequence[Object]) -> Table:
    """Return the table of pools.

    Args:
        pools: The SandboxPools.
        claims: The SandboxClaims of their namespaces.
    """
    table = Table(
        [
            Column("NAMESPACE"),
            Column("NAME"),
            *(
                Column(title, right=True)
                for title in (
                    "WARM",
                    "TARGET",
                    "CLAIMED",
                    "HIT RATE",
                    "CLAIM P50",
                    "START P50",
                )
            ),
        ]
    )
    for pool in pools:
        own = [
            claim
            for claim in claims
            if reading.text(claim, "spec", "poolName") == reading.name(pool)
            and reading.text(claim, "metadata", "namespace")
            == reading.text(pool, "metadata", "namespace")
        ]
        ready = dict(reading.stages(pool)).get("ready", {})
        table.add(
            reading.text(pool, "metadata", "namespace"),
            reading.name(pool),
            *(reading.shown(pool, "status", key) for key in ("warm", "target", "claimed")),
            hit_rate(own),
            latency(own),
            milliseconds(ready, "p50Milliseconds"),
        )
    return table


def hit_rate(claims: Sequence[Object]) -> str:
    """Return the share of bound claims that got a warm sandbox; empty where none was bound."""
    sources = [reading.text(claim, "status", "source") for claim in claims]
    known = [source for source in sources if source in ("Warm", "Cold")]
    return f"{100 * known.count('Warm') // len(known)}%" if known else ""


def latency(claims: Sequence[Object]) -> str:
    """Return the median time from creation to binding; empty where no claim was bound."""
    waited: list[timedelta] = []
    for claim in claims:
        bound = reading.moment(claim, "status", "boundAt")
        created = reading.moment(claim, "metadata", "creationTimestamp")
        if bound is not None and created is not None:
            waited.append(bound - created)
    if not waited:
        return ""
    median = sorted(waited)[(len(waited) - 1) // 2].total_seconds()
    return times.span(median) if median >= 1 else "<1s"
