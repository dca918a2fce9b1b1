"""`kubectl sandboxpool runtimes`: what the fleet shows of its RuntimeClasses."""

from collections.abc import Sequence
from typing import Annotated

import typer

from sandboxpool.cli import completion, reading, report
from sandboxpool.cli.cluster import NODES, RUNTIMES, Object
from sandboxpool.cli.command import Invocation, command
from sandboxpool.cli.output import Cell, Column, Table, Tone
from sandboxpool.cli.report import Section
from sandboxpool.cli.status import counts, milliseconds, startup_table

_TONES = {"True": Tone.GOOD, "False": Tone.BAD, "Unknown": Tone.WARNING}
_NODES = ("eligible", "serving", "notServing", "unknown", "quarantined", "notIsolating", "unproven")


@command(
    "runtimes",
    examples="""
        # All runtimes
        kubectl sandboxpool runtimes

        # One in full, with the nodes that report its handler
        kubectl sandboxpool runtimes gvisor
    """,
    output=True,
)
def runtimes(
    run: Invocation,
    runtime_class: Annotated[
        str | None,
        typer.Argument(
            metavar="CLASS",
            autocompletion=completion.runtimes,
            help="A RuntimeClass; all if unset.",
        ),
    ] = None,
) -> None:
    """Show the RuntimeClasses and the nodes that serve them."""
    if runtime_class is None:
        found = run.cluster.list(RUNTIMES, None)
        run.out.objects(found, lambda: fleet(found), nothing="No runtimes found.")
        return
    obj = run.cluster.get(RUNTIMES, runtime_class)
    if run.out.format is None or run.out.wide:
        report.show(run.out, sections(obj, run.cluster.list(NODES, None)))
    else:
        run.out.objects([obj], lambda: fleet([obj]), single=True)


def fleet(found: Sequence[Object]) -> Table:
    """Return the table of runtimes."""
    table = Table(
        [
            Column("NAME"),
            Column("HANDLER"),
            Column("NODES"),
            Column("QUARANTINED", right=True, wide=True),
            Column("POOLS", right=True),
            Column("WARM", right=True),
            Column("P50 READY", right=True, wide=True),
            Column("READY"),
            Column("HEALTHY"),
            Column("EVIDENCE", wide=True),
            Column("REASON", fold=True),
        ]
    )
    for obj in found:
        isolation = reading.condition(obj, "IsolationProven")
        ready = reading.condition(obj, "Ready")
        stages = dict(reading.stages(obj))
        table.add(
            reading.name(obj),
            reading.text(obj, "status", "handler"),
            reading.text(obj, "status", "servingOfEligible"),
            reading.shown(obj, "status", "nodes", "quarantined"),
            reading.shown(obj, "status", "poolCount"),
            reading.shown(obj, "status", "sandboxes", "warm"),
            milliseconds(stages.get("ready", {}), "p50Milliseconds"),
            _status(obj, "Ready"),
            _status(obj, "Healthy"),
            isolation.reason if isolation else "",
            ready.reason if ready else "",
        )
    return table


def sections(obj: Object, nodes: Sequence[Object]) -> list[Section]:
    """Return what is said of one runtime.

    Args:
        obj: The SandboxRuntime.
        nodes: All nodes.
    """
    handler = reading.text(obj, "status", "handler")
    made = [
        Section(
            "",
            [
                f"RuntimeClass:  {reading.name(obj)}",
                f"Handler:       {handler or '<none>'}",
                f"Pools:         {', '.join(reading.strings(obj, 'status', 'pools')) or '<none>'}",
            ],
        ),
        Section("CONDITIONS", _conditions(obj)),
    ]
    made.append(Section("NODES", [counts(obj, _NODES, "status", "nodes")]))
    if nodes and handler:
        made.append(Section("HANDLER BY NODE", handler_by_node(handler, nodes)))
    if (issues := _issues(obj)).rows:
        made.append(Section("ISSUES", issues))
    if (evidence := _evidence(obj)).rows:
        made.append(Section("EVIDENCE", evidence))
    if startup := startup_table(obj):
        made.append(Section("START-UP", startup))
    if advice := reading.mapping(obj, "status", "advice", "nodeSelector"):
        made.append(
            Section(
                "ADVICE",
                [
                    "scheduling.nodeSelector of the RuntimeClass: "
                    + ",".join(f"{key}={value}" for key, value in advice.items())
                ],
            )
        )
    return made


def handlers_of(node: Object) -> set[str] | None:
    """Return the handlers that a node reports; None where it reports none.

    Nodes before Kubernetes 1.31 or containerd 2.0 report none. The default handler has no name.
    """
    listed = reading.objects(node, "status", "runtimeHandlers")
    return {reading.text(item, "name") for item in listed} if listed else None


def handler_by_node(handler: str, nodes: Sequence[Object]) -> Table:
    """Return what each node says of a handler."""
    table = Table(
        [
            Column("NODE"),
            Column("READY"),
            Column("SCHEDULABLE"),
            Column("HANDLER"),
            Column("CONTAINER RUNTIME"),
        ]
    )
    for node in sorted(nodes, key=reading.name):
        listed = handlers_of(node)
        reported = "not reported" if listed is None else "yes" if handler in listed else "no"
        table.add(
            reading.name(node),
            _status(node, "Ready"),
            "no" if reading.mapping(node, "spec").get("unschedulable") is True else "yes",
            Cell(reported, Tone.GOOD if reported == "yes" else Tone.WARNING),
            reading.text(node, "status", "nodeInfo", "containerRuntimeVersion"),
        )
    return table


def _status(obj: Object, type_: str) -> Cell:
    found = reading.condition(obj, type_)
    return Cell(found.status, _TONES.get(found.status, Tone.PLAIN)) if found else Cell("")


def _conditions(obj: Object) -> Table:
    table = Table(
        [Column("CONDITION"), Column("STATUS"), Column("REASON"), Column("MESSAGE", fold=True)]
    )
    for one in reading.conditions(obj):
        table.add(
            one.type, Cell(one.status, _TONES.get(one.status, Tone.PLAIN)), one.reason, one.message
        )
    return table


def _issues(obj: Object) -> Table:
    table = Table(
        [
            Column("REASON"),
            Column("NODES", right=True),
            Column("EXAMPLES"),
            Column("LAST SEEN"),
            Column("MESSAGE", fold=True),
        ]
    )
    for issue in reading.objects(obj, "status", "issues"):
        table.add(
            reading.text(issue, "reason"),
            reading.shown(issue, "count"),
            ",".join(reading.strings(issue, "nodes")),
            reading.text(issue, "lastSeen"),
            reading.text(issue, "message"),
        )
    return table


def _evidence(obj: Object) -> Table:
    table = Table(
        [
            Column("ISOLATION"),
            Column("NODES", right=True),
            Column("EXAMPLE"),
            Column("KERNEL"),
            Column("LAST PROBED"),
            Column("MESSAGE", fold=True),
        ]
    )
    for seen in reading.objects(obj, "status", "evidence"):
        table.add(
            reading.text(seen, "isolation"),
            reading.shown(seen, "nodes"),
            reading.text(seen, "exampleNode"),
            reading.text(seen, "kernel"),
            reading.text(seen, "lastProbed"),
            reading.text(seen, "message"),
        )
    return table
