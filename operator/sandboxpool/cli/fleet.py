"""The checks of `doctor` on the nodes and their runtimes: from objects to findings."""

from collections.abc import Iterator, Sequence

from sandboxpool.cli import reading
from sandboxpool.cli.cluster import Object
from sandboxpool.cli.findings import Finding, Severity
from sandboxpool.cli.runtimes import handlers_of

_KEPT_OUT = ("quarantined", "notIsolating", "unproven")
# Of the nodes that a finding is about, so many are named.
_MAX_EXAMPLES = 3
# What `status.evidence` says of nodes that sandboxes keep away from, and what to do about it.
_UNPROVEN = {
    "NotProven": (
        "NodesNotIsolating",
        "correct the configuration of the handler on these nodes, or, if sandboxes may share the"
        " node's kernel, set spec.isolationProof of the pools to None",
    ),
    "Unavailable": (
        "NodesWithoutProof",
        "remove what keeps the probe from starting there; it is tried again by itself",
    ),
}


def check(
    classes: Sequence[Object] | None, runtimes: Sequence[Object], nodes: Sequence[Object]
) -> Iterator[Finding]:
    """Yield what is wrong with nodes and runtimes.

    Args:
        classes: The RuntimeClasses; None if they cannot be read.
        runtimes: The SandboxRuntimes.
        nodes: The nodes.
    """
    yield from _not_ready(nodes, classes)
    yield from _without_nodes(classes or (), runtimes, nodes)
    known = None if classes is None else {reading.name(one) for one in classes}
    for one in runtimes:
        if reading.mapping(one, "status").get("exists") is False:
            if known is None or reading.name(one) not in known:
                yield _missing_class(one)
            continue
        yield from _failing(one)
        yield from _unproven(one)


def _not_ready(nodes: Sequence[Object], classes: Sequence[Object] | None) -> Iterator[Finding]:
    """One finding for all nodes that are not ready, with the kubelets' reasons."""
    selectors = None if classes is None else [_selector(one) for one in classes]
    of_interest = [one for one in nodes if selectors is None or _is_selected(one, selectors)]
    by_reason: dict[str, list[str]] = {}
    since = []
    for node in of_interest:
        ready = reading.condition(node, "Ready")
        if ready is not None and ready.status == "True":
            continue
        said = f"{ready.reason}: {ready.message}".strip(": ") if ready else "it has not reported"
        by_reason.setdefault(said, []).append(reading.name(node))
        since += [ready.since] if ready is not None and ready.since else []
    if not by_reason:
        return
    count = sum(map(len, by_reason.values()))
    first = min(min(names) for names in by_reason.values())
    why = "; ".join(
        _named(sorted(names)) + (f" ({said})" if said else "")
        for said, names in sorted(by_reason.items(), key=lambda one: -len(one[1]))[:_MAX_EXAMPLES]
    )
    yield Finding(
        Severity.WARNING,
        "NodesNotReady",
        f"node/{first}" if count == 1 else "nodes",
        f"{count} of {len(of_interest)} nodes that may run sandboxes"
        f" {'is' if count == 1 else 'are'} not ready: {why}",
        f"kubectl describe node {first} shows what the kubelet reported last: start the kubelet and"
        " the container runtime there, or delete the Node if its machine is gone",
        min(since, default=""),
    )


def _without_nodes(
    classes: Sequence[Object], runtimes: Sequence[Object], nodes: Sequence[Object]
) -> Iterator[Finding]:
    """RuntimeClasses whose handler some or all nodes lack."""
    known = {reading.name(one): one for one in runtimes}
    for one in classes:
        name, handler = reading.name(one), reading.text(one, "handler")
        counts = reading.mapping(known.get(name), "status", "nodes")
        used = _pools_of(known.get(name))
        serving, unknown, eligible = (
            reading.number(counts, key) for key in ("serving", "unknown", "eligible")
        )
        cure = (
            "configure the handler in the container runtime of a node, or correct the class:"
            " its handler cannot be changed, so delete it and create it again"
        )
        if serving is None:
            listed = [handlers_of(node) for node in nodes]
            if not listed or any(found is None or handler in found for found in listed):
                continue
            why = f"no node reports its handler {handler!r}"
        elif serving or unknown:
            if used:
                yield from _partly(name, handler, counts)
            continue
        elif any(reading.number(counts, key) for key in _KEPT_OUT):
            # They have the handler; other findings say why they are not used.
            continue
        elif not eligible:
            why = "no node that is Ready and schedulable is selected by its scheduling"
            cure = "correct scheduling.nodeSelector of the class, or add or repair such a node"
        else:
            why = f"none of its {eligible} eligible nodes has handler {handler!r}"
        yield Finding(
            Severity.ERROR if used else Severity.WARNING,
            "ClassWithoutNodes",
            f"runtimeclass/{name}",
            f"{why}; pools that use the class: {used}",
            cure,
        )


def _partly(name: str, handler: str, counts: Object) -> Iterator[Finding]:
    missing, unknown, eligible = (
        reading.number(counts, key) or 0 for key in ("notServing", "unknown", "eligible")
    )
    if missing:
        yield Finding(
            Severity.INFO,
            "NodesWithoutHandler",
            f"runtimeclass/{name}",
            f"{missing} of {eligible} eligible nodes do not have handler {handler!r};"
            " its sandboxes run on the others",
            f"kubectl sandboxpool runtimes {name} shows the nodes: configure the handler"
            " there, or set scheduling.nodeSelector of the class",
        )
    if unknown:
        yield Finding(
            Severity.INFO,
            "HandlersNotReported",
            f"runtimeclass/{name}",
            f"{unknown} of {eligible} eligible nodes report no handlers, so only a sandbox that"
            f" starts there shows that they have {handler!r}",
            "Kubernetes 1.31 or newer with containerd 2.0 or CRI-O 1.30 reports them",
        )


def _missing_class(runtime: Object) -> Finding:
    ready = reading.condition(runtime, "Ready")
    pools = reading.strings(runtime, "status", "pools")
    return Finding(
        Severity.ERROR,
        "RuntimeClassMissing",
        f"runtimeclass/{reading.name(runtime)}",
        f"the RuntimeClass does not exist; pools that name it: {_named(pools)}",
        "create the RuntimeClass, or set spec.runtimeClassName of the pools to one that exists",
        ready.since if ready else "",
    )


def _failing(runtime: Object) -> Iterator[Finding]:
    """Nodes on which sandboxes fail: kept out, or still in use while a probe is on its way."""
    name = reading.name(runtime)
    count = reading.number(runtime, "status", "nodes", "quarantined") or 0
    issues = reading.objects(runtime, "status", "issues")
    if not count and not issues:
        return
    said = "; ".join(
        f"{reading.text(issue, 'reason')} on {_some_of(issue)}: {reading.text(issue, 'message')}"
        for issue in issues
    )
    shown = f"on the nodes that kubectl sandboxpool runtimes {name} shows"
    if count:
        what, why = "NodesQuarantined", f"quarantined nodes: {count}; "
        cure = f"mend the runtime {shown}; the quarantine ends when a probe works there"
    else:
        what, why = "NodesSuspected", "sandboxes have failed, and the nodes are still used; "
        cure = (
            f"look at the runtime {shown}; the suspicion ends when a sandbox works there, or an"
            " hour after the last failure"
        )
    yield Finding(
        _severity(runtime),
        what,
        f"sandboxruntime/{name}",
        why + (said or "the status names no cause"),
        cure,
        min((reading.text(one, "firstSeen") for one in issues), default=""),
    )


def _unproven(runtime: Object) -> Iterator[Finding]:
    """Nodes that lack the proof of isolation which pools want."""
    proof = reading.condition(runtime, "IsolationProven")
    if proof is None or proof.status != "False":
        return
    evidence = reading.objects(runtime, "status", "evidence")
    for isolation, (what, cure) in _UNPROVEN.items():
        rows = [row for row in evidence if reading.text(row, "isolation") == isolation]
        if rows:
            count = sum(reading.number(row, "nodes") or 0 for row in rows)
            example, said = (reading.text(rows[0], key) for key in ("exampleNode", "message"))
            yield Finding(
                _severity(runtime),
                what,
                f"sandboxruntime/{reading.name(runtime)}",
                f"{count} nodes, such as {example}: {said}",
                cure,
                proof.since,
            )


def _severity(runtime: Object) -> Severity:
    """Whether pools are without any node, or only with fewer."""
    serving = reading.number(runtime, "status", "nodes", "serving")
    return Severity.ERROR if serving == 0 and _pools_of(runtime) else Severity.WARNING


def _pools_of(runtime: Object | None) -> int:
    return reading.number(runtime, "status", "poolCount") or 0


def _some_of(issue: Object) -> str:
    names = reading.strings(issue, "nodes")
    return _named(names, reading.number(issue, "count") or len(names))


def _named(names: Sequence[str], count: int = 0) -> str:
    """The first of some names, and how many there are beyond them."""
    shown = names[:_MAX_EXAMPLES]
    more = max(count, len(names)) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _selector(class_: Object) -> Object:
    return reading.mapping(class_, "scheduling", "nodeSelector")


def _is_selected(node: Object, selectors: Sequence[Object]) -> bool:
    labels = reading.mapping(node, "metadata", "labels")
    return any(all(labels.get(key) == value for key, value in one.items()) for one in selectors)
