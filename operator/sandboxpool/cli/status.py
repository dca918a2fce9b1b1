"""`kubectl sandboxpool status`: why a pool is not ready, and what its sandboxes do."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

import typer

from sandboxpool.api import names
from sandboxpool.api.opensandbox import LABEL_OPENSANDBOX
from sandboxpool.cli import completion, reading, report, times
from sandboxpool.cli.cluster import CLAIMS, PODS, POOLS, Object
from sandboxpool.cli.command import Invocation, command
from sandboxpool.cli.output import NONE, Cell, Column, Table, Tone
from sandboxpool.cli.reading import ConditionText
from sandboxpool.cli.report import Section

# The operator looks for the cause of a pool that is not ready in this order; the other conditions
# follow in the order of the status.
_CAUSES = ("RuntimeResolved", "TemplateAccepted", "NodesServing", "IsolationProven", "Warm")
_TONES = {"True": Tone.GOOD, "False": Tone.BAD, "Unknown": Tone.WARNING}
_STATES = (
    "warm",
    "starting",
    "unproven",
    "unready",
    "stranded",
    "failed",
    "claimed",
    "ended",
    "stopping",
)
_FAILURES = 5


@command(
    "status",
    examples="""
        # All pools of the namespace
        kubectl sandboxpool status

        # Why one pool is not ready
        kubectl sandboxpool status python

        # The same, until Ctrl-C
        kubectl sandboxpool status python --watch
    """,
    output=True,
    all_namespaces=True,
)
def status(
    run: Invocation,
    pool: Annotated[
        str | None, typer.Argument(help="A pool; all if unset.", autocompletion=completion.pools)
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show changes as they come.")
    ] = False,
) -> None:
    """Show why a pool is not ready: the causes in their order, its sandboxes, its last failures."""
    if pool is None:
        if watch:
            report.watch(run.out, lambda: [_all(run.cluster.list(POOLS, run.scope))])
        found = run.cluster.list(POOLS, run.scope)
        run.out.objects(found, lambda: summary(found), nothing="No pools found.")
        return

    def read() -> Sequence[Section]:
        return _read(run, run.cluster.get(POOLS, pool))

    if watch:
        report.watch(run.out, read)
    obj = run.cluster.get(POOLS, pool)
    if run.out.format is None or run.out.wide:
        report.show(run.out, _read(run, obj))
    else:
        run.out.objects([obj], lambda: summary([obj]), single=True)


def _all(pools: Sequence[Object]) -> Section:
    return Section("", summary(pools))


def _read(run: Invocation, pool: Object) -> Sequence[Section]:
    uid = reading.text(pool, "metadata", "uid")
    namespace = reading.text(pool, "metadata", "namespace") or run.namespace
    pods = run.cluster.list(PODS, namespace, labels=f"{names.LABEL_POOL_UID}={uid}")
    claims = [
        claim
        for claim in run.cluster.list(CLAIMS, namespace)
        if reading.text(claim, "spec", "poolName") == reading.name(pool)
    ]
    return sections(pool, pods, claims, times.now())


def summary(pools: Sequence[Object]) -> Table:
    """Return the table of pools, each with the cause for which it is not ready."""
    table = Table(
        [
            Column("NAMESPACE"),
            Column("NAME"),
            Column("READY"),
            Column("REASON"),
            Column("WARM", right=True),
            Column("TARGET", right=True),
            Column("CLAIMED", right=True),
            Column("MESSAGE", fold=True, wide=True),
        ]
    )
    for pool in pools:
        ready = _ready(pool)
        table.add(
            reading.text(pool, "metadata", "namespace"),
            reading.name(pool),
            Cell(ready.status, _TONES.get(ready.status, Tone.PLAIN)),
            ready.reason,
            *(reading.shown(pool, "status", key) for key in ("warm", "target", "claimed")),
            ready.message,
        )
    return table


def sections(
    pool: Object, pods: Sequence[Object], claims: Sequence[Object], now: datetime
) -> list[Section]:
    """Return what is said of one pool.

    Args:
        pool: The SandboxPool.
        pods: Its sandboxes.
        claims: The claims that name it.
        now: The time that ages are counted to.
    """
    ready = _ready(pool)
    head = [
        f"Pool:     {reading.namespaced_name(pool)}",
        f"Runtime:  {reading.text(pool, 'spec', 'runtimeClassName') or '<none>'}",
        f"Ready:    {ready.status}" + (f" ({ready.reason})" if ready.reason else ""),
    ]
    head += [f"          {ready.message}"] if ready.message else []
    observed = reading.number(pool, "status", "observedGeneration")
    generation = reading.number(pool, "metadata", "generation")
    if observed is not None and generation is not None and observed < generation:
        head.append(
            f"          The status is of generation {observed}, the spec of {generation}: the"
            " operator has not answered the last change yet."
        )
    if opened := reading.text(pool, "metadata", "labels", LABEL_OPENSANDBOX):
        head.append(f"Open to:  OpenSandbox ({opened})")
    made = [Section("", head)]
    if found := causes(pool):
        made.append(Section("CAUSES", _causes_table(found)))
    made.append(Section("SANDBOXES", [counts(pool, ("target", *_STATES), "status")]))
    if pods:
        made.append(Section("SANDBOXES BY NODE", _nodes_table(pods)))
    if failures := _failures_table(pool, claims, now):
        made.append(Section("LAST FAILURES", failures))
    if startup := startup_table(pool):
        made.append(Section("START-UP", startup))
    return made


def causes(pool: Object) -> list[ConditionText]:
    """Return the conditions that are not True, the first cause first; without the summary."""
    wrong = [
        found
        for found in reading.conditions(pool)
        if found.type != "Ready" and found.status != "True"
    ]
    ranks = {type_: rank for rank, type_ in enumerate(_CAUSES)}
    return sorted(wrong, key=lambda found: ranks.get(found.type, len(_CAUSES)))


def sandbox_state(pod: Object) -> str:
    """Return what a pod says of itself; what only the operator knows is in the pool's status."""
    labels = reading.mapping(pod, "metadata", "labels")
    phase = reading.text(pod, "status", "phase")
    if reading.text(pod, "metadata", "deletionTimestamp"):
        return "stopping"
    if phase in ("Failed", "Succeeded"):
        return "ended"
    if labels.get(names.LABEL_CLAIM_UID):
        return "claimed"
    ready = reading.condition(pod, "Ready")
    return "ready" if ready is not None and ready.status == "True" else "not ready"


def startup_table(obj: Object) -> Table | None:
    """Return the start-up times of a pool or runtime; None where nothing was measured."""
    table = Table(
        [
            Column("STAGE"),
            Column("P50", right=True),
            Column("P95", right=True),
            Column("P99", right=True),
            Column("SAMPLES", right=True),
        ]
    )
    for stage, timing in reading.stages(obj):
        table.add(
            stage,
            *(milliseconds(timing, f"p{share}Milliseconds") for share in (50, 95, 99)),
            reading.shown(timing, "samples"),
        )
    return table if table.rows else None


def milliseconds(timing: Object, key: str) -> str:
    """Return a time with its unit; empty where there is none."""
    found = reading.number(timing, key)
    return "" if found is None else f"{found}ms"


def _ready(pool: Object) -> ConditionText:
    return reading.condition(pool, "Ready") or ConditionText(
        "Ready",
        "Unknown",
        "",
        "the pool's status has no condition Ready: the operator has not seen the pool;"
        " `kubectl sandboxpool doctor` looks for the operator",
    )


def _causes_table(found: Sequence[ConditionText]) -> Table:
    table = Table(
        [Column("CONDITION"), Column("STATUS"), Column("REASON"), Column("MESSAGE", fold=True)]
    )
    for one in found:
        tone = _TONES.get(one.status, Tone.PLAIN)
        table.add(one.type, Cell(one.status, tone), one.reason, one.message)
    return table


def counts(obj: Object, keys: Sequence[str], *path: str) -> str:
    """Return the counts that a status has at a path, in one line; what it lacks is left out."""
    known = [(key, reading.shown(obj, *path, key)) for key in keys]
    return ", ".join(f"{key} {count}" for key, count in known if count) or NONE


def _nodes_table(pods: Sequence[Object]) -> Table:
    counts = Counter((reading.text(pod, "spec", "nodeName"), sandbox_state(pod)) for pod in pods)
    table = Table([Column("NODE"), Column("STATE"), Column("COUNT", right=True)])
    for (node, state), count in sorted(counts.items()):
        table.add(node, state, str(count))
    return table


def _failures_table(pool: Object, claims: Sequence[Object], now: datetime) -> Table | None:
    table = Table(
        [
            Column("AGE"),
            Column("WHAT"),
            Column("REASON"),
            Column("NODES"),
            Column("MESSAGE", fold=True),
        ]
    )
    for issue in reading.objects(pool, "status", "runtime", "issues"):
        table.add(
            _age(issue, now, "since"),
            f"{reading.shown(issue, 'count') or '?'} affected",
            reading.text(issue, "reason"),
            ",".join(reading.strings(issue, "nodes")),
            reading.text(issue, "message"),
        )
    failed = [
        claim for claim in claims if reading.text(claim, "status", "phase") in ("Failed", "Lost")
    ]
    failed.sort(key=lambda claim: reading.text(claim, "status", "finishedAt"), reverse=True)
    for claim in failed[:_FAILURES]:
        cause = next(
            (one for one in reading.conditions(claim) if one.status == "False"),
            ConditionText("", "", "", ""),
        )
        table.add(
            _age(claim, now, "status", "finishedAt"),
            f"claim/{reading.name(claim)}",
            cause.reason,
            reading.text(claim, "status", "nodeName"),
            cause.message,
        )
    return table if table.rows else None


def _age(obj: Object, now: datetime, *path: str) -> str:
    then = reading.moment(obj, *path)
    return "" if then is None else times.span((now - then).total_seconds())
