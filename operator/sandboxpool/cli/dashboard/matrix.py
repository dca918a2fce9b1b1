"""The matrix of nodes and runtimes, from the objects of a cluster. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from sandboxpool.api import names
from sandboxpool.cli import reading
from sandboxpool.cli.cluster import Object
from sandboxpool.cli.runtimes import handlers_of

# Labels by which providers and provisioners group nodes.
GROUP_LABELS = (
    "cloud.google.com/gke-nodepool",
    "eks.amazonaws.com/nodegroup",
    "kubernetes.azure.com/agentpool",
    "karpenter.sh/nodepool",
)
# So many nodes have a row each; more are counted by group.
MAX_NODE_ROWS = 60
MAX_PROBLEM_ROWS = 15
MAX_GROUPS = 30
UNGROUPED = "(no label)"


class CellState(StrEnum):
    """What is known of a runtime on a node, the worst first."""

    QUARANTINED = "quarantined"
    NOT_ISOLATING = "not isolating"
    SUSPECTED = "suspected"
    UNPROVEN = "no proof"
    MISSING = "missing"
    UNKNOWN = "unknown"
    SERVING = "serving"
    PROVEN = "proven"
    NOT_SELECTED = "not selected"


MEANINGS: Mapping[CellState, str] = {
    CellState.PROVEN: "the node has the handler, and a probe has seen a kernel of its own there",
    CellState.SERVING: "the node has the handler configured; that it isolates is not shown",
    CellState.SUSPECTED: "the node has the handler, and sandboxes have failed there",
    CellState.UNPROVEN: "probes have no result there, while they have one on other nodes",
    CellState.NOT_ISOLATING: "sandboxes share the node's kernel there",
    CellState.QUARANTINED: "not used until a probe works there again",
    CellState.MISSING: "the node's container runtime does not have the handler",
    CellState.UNKNOWN: "the node is not ready, or does not report its handlers",
    CellState.NOT_SELECTED: "the node is not selected by the RuntimeClass's scheduling",
}
# What somebody has to look at.
PROBLEMS = frozenset(
    {
        CellState.QUARANTINED,
        CellState.NOT_ISOLATING,
        CellState.SUSPECTED,
        CellState.UNPROVEN,
    }
)
_RANK = {state: rank for rank, state in enumerate(CellState)}
# The values of the operator's exclusion labels.
_EXCLUSIONS = {
    "Quarantined": CellState.QUARANTINED,
    "NotServing": CellState.MISSING,
    "Unavailable": CellState.UNPROVEN,
    "NotIsolating": CellState.NOT_ISOLATING,
    "NotIsolatingNoUserNamespaces": CellState.NOT_ISOLATING,
}


@dataclass(frozen=True, slots=True)
class Cell:
    """A runtime on a node.

    Attributes:
        state: What is known.
        detail: The words of the API about it; empty where it has none.
    """

    state: CellState
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A runtime, as a column of the matrix.

    Attributes:
        name: The RuntimeClass.
        handler: What it resolves to; empty where the class is missing.
        counts: The SandboxRuntime's own counts of nodes, which need no right to read nodes.
        unnamed: Quarantined nodes that no label names.
    """

    name: str
    handler: str
    counts: Mapping[str, int]
    unnamed: int = 0


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node, as a row of the matrix."""

    name: str
    group: str
    ready: bool
    schedulable: bool
    software: str
    cells: Sequence[Cell]

    @property
    def worst(self) -> int:
        """How bad its worst cell is; a smaller number is worse."""
        return min((_RANK[cell.state] for cell in self.cells), default=len(_RANK))

    @property
    def has_problem(self) -> bool:
        """Somebody has to look at it."""
        states = {cell.state for cell in self.cells}
        # A node that no runtime selects is none of ours, whether it is ready or not.
        return not PROBLEMS.isdisjoint(states) or (
            not self.ready and states != {CellState.NOT_SELECTED}
        )


@dataclass(frozen=True, slots=True)
class GroupRow:
    """Nodes with the same label, as a row of the matrix.

    Attributes:
        name: The label's value.
        total: How many there are.
        not_ready: How many of them are not ready.
        cells: For each runtime how many nodes are in which state, the worst first.
    """

    name: str
    total: int
    not_ready: int
    cells: Sequence[Sequence[tuple[CellState, int]]]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Nodes and runtimes.

    Attributes:
        columns: The runtimes.
        label: The label that groups the nodes; empty where none does.
        groups: The groups, those with the worst state first.
        omitted_groups: How many groups are not shown.
        nodes: The rows of nodes: all where there are few, else those with problems.
        complete: `nodes` has all.
        problems: How many nodes have a problem.
        total: How many nodes there are; None where nodes cannot be read.
    """

    columns: Sequence[Column]
    label: str
    groups: Sequence[GroupRow]
    omitted_groups: int
    nodes: Sequence[NodeRow]
    complete: bool
    problems: int
    total: int | None


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The objects that the matrix is made of; None for what cannot be read."""

    runtimes: Sequence[Object] | None
    nodes: Sequence[Object] | None
    classes: Sequence[Object] | None = None
    label: str | None = None


def matrix(fleet: Fleet) -> Matrix:
    """Return the matrix of nodes and runtimes."""
    rows = node_rows(fleet)
    columns = _columns(fleet, rows)
    if fleet.nodes is None:
        return Matrix(columns, "", [], 0, [], complete=False, problems=0, total=None)
    groups = _groups(rows, len(columns))
    problems = [row for row in rows if row.has_problem]
    complete = len(rows) <= MAX_NODE_ROWS
    shown = rows if complete else sorted(problems, key=_by_worst)[:MAX_PROBLEM_ROWS]
    return Matrix(
        columns,
        _label(fleet),
        groups[:MAX_GROUPS],
        max(0, len(groups) - MAX_GROUPS),
        shown,
        complete=complete,
        problems=len(problems),
        total=len(rows),
    )


def node_rows(fleet: Fleet) -> list[NodeRow]:
    """Return the row of each node, by group and name."""
    judges = [_Judge(runtime, fleet) for runtime in _runtimes(fleet)]
    label = _label(fleet)
    rows = []
    for node in fleet.nodes or ():
        labels = reading.mapping(node, "metadata", "labels")
        ready = reading.condition(node, "Ready")
        is_ready = ready is not None and ready.status == "True"
        rows.append(
            NodeRow(
                reading.name(node),
                (reading.text(labels, label) or UNGROUPED) if label else "",
                is_ready,
                reading.mapping(node, "spec").get("unschedulable") is not True,
                " ".join(_software(node)),
                [judge.cell(node, labels, is_ready) for judge in judges],
            )
        )
    return sorted(rows, key=lambda row: (row.group, row.name))


def _by_worst(row: NodeRow) -> tuple[bool, int, str]:
    return row.ready, row.worst, row.name


def _runtimes(fleet: Fleet) -> list[Object]:
    return sorted(fleet.runtimes or (), key=reading.name)


def _columns(fleet: Fleet, rows: Sequence[NodeRow]) -> list[Column]:
    columns = []
    for index, runtime in enumerate(_runtimes(fleet)):
        counts = {
            key: value
            for key, value in reading.mapping(runtime, "status", "nodes").items()
            if isinstance(value, int)
        }
        named = sum(row.cells[index].state is CellState.QUARANTINED for row in rows)
        unnamed = max(0, counts.get("quarantined", 0) - named) if fleet.nodes is not None else 0
        columns.append(
            Column(
                reading.name(runtime), reading.text(runtime, "status", "handler"), counts, unnamed
            )
        )
    return columns


def _groups(rows: Iterable[NodeRow], columns: int) -> list[GroupRow]:
    by_group: dict[str, list[NodeRow]] = {}
    for row in rows:
        by_group.setdefault(row.group, []).append(row)
    groups = []
    for name, members in by_group.items():
        cells = []
        for index in range(columns):
            counts = Counter(row.cells[index].state for row in members)
            cells.append(sorted(counts.items(), key=lambda one: _RANK[one[0]]))
        not_ready = sum(not row.ready for row in members)
        groups.append(GroupRow(name, len(members), not_ready, cells))

    def worst(group: GroupRow) -> tuple[bool, str]:
        bad = group.not_ready or any(state in PROBLEMS for cell in group.cells for state, _ in cell)
        return not bad, group.name

    return sorted(groups, key=worst)


def _label(fleet: Fleet) -> str:
    """Return the label that groups the nodes: the one asked for, or the one most of them have."""
    if fleet.label is not None:
        return fleet.label
    counts = Counter(
        label
        for node in fleet.nodes or ()
        for label in GROUP_LABELS
        if label in reading.mapping(node, "metadata", "labels")
    )
    return max(GROUP_LABELS, key=lambda label: counts[label]) if counts else ""


def _software(node: Object) -> tuple[str, str]:
    info = reading.mapping(node, "status", "nodeInfo")
    return reading.text(info, "containerRuntimeVersion"), reading.text(info, "kubeletVersion")


@dataclass(slots=True)
class _Judge:
    """Says what is known of one runtime on a node."""

    runtime: Object
    fleet: Fleet
    handler: str = field(init=False)
    selector: Mapping[str, str] = field(init=False)
    suspects: Mapping[str, str] = field(init=False)
    proven: set[tuple[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        self.handler = reading.text(self.runtime, "status", "handler")
        class_ = next(
            (
                one
                for one in self.fleet.classes or ()
                if reading.name(one) == reading.name(self.runtime)
            ),
            None,
        )
        self.selector = {
            key: value
            for key, value in reading.mapping(class_, "scheduling", "nodeSelector").items()
            if isinstance(value, str)
        }
        self.suspects = {
            node: f"{reading.text(issue, 'reason')}: {reading.text(issue, 'message')}"
            for issue in reversed(reading.objects(self.runtime, "status", "issues"))
            for node in reading.strings(issue, "nodes")
        }
        self.proven = self._proven_software()

    def cell(self, node: Object, labels: Object, ready: bool) -> Cell:
        if any(labels.get(key) != value for key, value in self.selector.items()):
            return Cell(CellState.NOT_SELECTED)
        if not ready:
            return Cell(CellState.UNKNOWN, "the node is not ready")
        if not self.handler:
            return Cell(CellState.UNKNOWN, "the RuntimeClass is missing")
        suspicion = self.suspects.get(reading.name(node), "")
        excluded = labels.get(names.EXCLUSION_PREFIX + self.handler)
        if isinstance(excluded, str) and (state := _EXCLUSIONS.get(excluded)):
            return Cell(state, suspicion or self._published(node)[1])
        state = self._listed(node)
        if suspicion and state is not CellState.MISSING:
            return Cell(CellState.SUSPECTED, suspicion)
        if state is not CellState.SERVING:
            return Cell(state)
        published, message = self._published(node)
        if published == "True" or _software(node) in self.proven:
            return Cell(CellState.PROVEN, message)
        return Cell(CellState.SERVING, message)

    def _listed(self, node: Object) -> CellState:
        listed = handlers_of(node)
        if listed is None:
            return CellState.UNKNOWN
        return CellState.SERVING if self.handler in listed else CellState.MISSING

    def _published(self, node: Object) -> tuple[str, str]:
        """The operator's condition on the node, which it writes if `publishOnNodes` is set."""
        found = reading.condition(node, f"{names.GROUP}/{self.handler}")
        return (found.status, found.message) if found else ("", "")

    def _proven_software(self) -> set[tuple[str, str]]:
        """The software whose nodes are all proven.

        A SandboxRuntime counts its evidence by the software of the nodes and does not name them.
        Where it counts as many proofs as there are nodes that serve, each of them is proven.
        """
        proofs: Counter[tuple[str, str]] = Counter()
        for row in reading.objects(self.runtime, "status", "evidence"):
            if reading.text(row, "isolation") == "Proven":
                kind = (reading.text(row, "containerRuntime"), reading.text(row, "kubelet"))
                proofs[kind] += reading.number(row, "nodes") or 0
        if not proofs:
            return set()
        serving = Counter(
            _software(node)
            for node in self.fleet.nodes or ()
            if self._listed(node) is CellState.SERVING
        )
        return {kind for kind, count in proofs.items() if count >= serving[kind]}
