"""The dashboard of the fleet: nodes by runtime, and how the runtimes start sandboxes."""

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.models import units

from dashboards.board import (
    BAD_IF_ANY,
    Panel,
    Query,
    board,
    graph,
    mark,
    number,
    rows_of,
    runbook,
    states,
    variable,
)
from dashboards.promql import RATE, gauge, quantile

_CLASS = 'runtime_class=~"$runtime_class"'
_READY = {1: ("Ready", "green"), 0: ("Not ready", "red"), -1: ("Unknown", "orange")}
_HEALTHY = {1: ("Healthy", "green"), 0: ("Unhealthy", "red"), -1: ("Unknown", "orange")}
_PROVEN = {1: ("Proven", "green"), 0: ("Not proven", "red"), -1: ("Unknown", "orange")}


def build() -> Dashboard:
    """Return the dashboard."""
    classes = "label_values(sandboxpool_runtimeclass_nodes, runtime_class)"
    return board(
        "SandboxPool / Fleet",
        "sandboxpool-fleet",
        "What the nodes do with each RuntimeClass, and how long sandboxes take to start.",
        [variable("runtime_class", "RuntimeClass", classes)],
        [
            ("Now", _figures()),
            ("Nodes", _nodes()),
            ("Start of sandboxes", _startup()),
            ("Probes", _probes()),
        ],
    )


def _nodes_in(answers: str) -> str:
    labels = "runtime_class", "handler", "answer"
    return gauge(f'sandboxpool_runtimeclass_nodes{{{_CLASS},answer=~"{answers}"}}', *labels)


def _condition(name: str) -> str:
    matchers = f'{_CLASS},condition="{name}"'
    return gauge(f"sandboxpool_runtimeclass_condition{{{matchers}}}", "runtime_class")


def _sandboxes(state: str, by: str = "runtime_class") -> str:
    labels = "namespace", "pool", "runtime_class"
    pods = gauge(f'sandboxpool_pods{{{_CLASS},state="{state}"}}', *labels)
    return f"sum by ({by}) ({pods})" if by else f"sum({pods})"


def _figures() -> list[Panel]:
    ready = _condition("Ready")
    return [
        number(
            "RuntimeClasses",
            "RuntimeClasses that exist, or that a pool names. No data: Prometheus does not scrape "
            "the operator, or no replica leads; see SandboxPool / Operator.",
            f"count({ready})",
            units.Short,
        ),
        number(
            "RuntimeClasses not ready",
            "RuntimeClasses of which no node can take a sandbox that may be claimed. "
            "`kubectl sandboxpool runtimes CLASS` names the cause and the cure.",
            f"sum({ready} < bool 1)",
            units.Short,
            BAD_IF_ANY,
        ),
        number(
            "Quarantined",
            "Nodes on which probes of a runtime fail, once for each RuntimeClass. They get no "
            "sandboxes of it until a probe works there again. `kubectl sandboxpool runtimes CLASS` "
            "names the nodes." + runbook("SandboxPoolRuntimeBroken"),
            f"sum({_nodes_in('quarantined')})",
            units.Short,
            BAD_IF_ANY,
        ),
        number(
            "Not isolating",
            "Nodes on which sandboxes share the node's kernel although pools require isolation. "
            "Treat it as a security incident: correct the handler in the container runtime's "
            "configuration on these nodes." + runbook("SandboxPoolIsolationNotProven"),
            f"sum({_nodes_in('notIsolating')})",
            units.Short,
            BAD_IF_ANY,
        ),
        number(
            "Warm sandboxes",
            "Sandboxes of all pools that can be claimed at once.",
            _sandboxes("warm", by=""),
            units.Short,
        ),
        number(
            "Claimed sandboxes",
            "Sandboxes of all pools that are bound to claims.",
            _sandboxes("claimed", by=""),
            units.Short,
        ),
    ]


def _nodes() -> list[Panel]:
    by_class = {"runtime_class": "RuntimeClass"}

    def nodes(answer: str) -> str:
        return gauge(f'sandboxpool_runtimeclass_nodes{{{_CLASS},answer="{answer}"}}', *by_class)

    table = rows_of(
        "Nodes by RuntimeClass",
        "The Ready, schedulable nodes that each RuntimeClass admits, by what they do with its "
        "handler. *Serving*: it is configured. *Not serving*: it is not; install it, or give the "
        "class a `scheduling.nodeSelector`. *Unknown*: the node does not report its handlers. "
        "*Quarantined*, *Not isolating*, *Unproven*: probes failed, showed the node's kernel, or "
        "have no answer. `kubectl sandboxpool runtimes CLASS` names the nodes.",
        Query(_condition("Ready"), "Ready"),
        Query(_condition("Healthy"), "Healthy"),
        Query(_condition("IsolationProven"), "Isolation"),
        Query(nodes("serving"), "Serving"),
        Query(nodes("notServing"), "Not serving"),
        Query(nodes("unknown"), "Unknown"),
        Query(nodes("quarantined"), "Quarantined"),
        Query(nodes("notIsolating"), "Not isolating"),
        Query(nodes("unproven"), "Unproven"),
        Query(_sandboxes("warm"), "Warm"),
        Query(_sandboxes("starting"), "Starting"),
        Query(_sandboxes("claimed"), "Claimed"),
        labels=by_class,
    )
    for column, texts in (("Ready", _READY), ("Healthy", _HEALTHY), ("Isolation", _PROVEN)):
        mark(table, column, texts)
    return [
        table,
        graph(
            "Nodes that serve",
            "Nodes on which sandboxes of each RuntimeClass can run. A drop that no change of the "
            "fleet explains: an installer or an update of the container runtime has removed the "
            "handler.",
            Query(_nodes_in("serving"), "{{runtime_class}} ({{handler}})"),
            unit=units.Short,
        ),
        graph(
            "Nodes that sandboxes keep away from",
            "Nodes that a RuntimeClass admits and that cannot be used for it, by cause. "
            "`kubectl sandboxpool doctor` lists what to do.",
            Query(
                _nodes_in("notServing|quarantined|notIsolating|unproven"),
                "{{runtime_class}} {{answer}}",
            ),
            unit=units.Short,
        ),
        states(
            "Readiness of RuntimeClasses",
            "When some node could take a sandbox of the class that may be claimed.",
            Query(_condition("Ready"), "{{runtime_class}}"),
            _READY,
        ),
        states(
            "Health of RuntimeClasses",
            "When no node had an issue of the runtime. The message of the condition `Healthy` has "
            "the node and the cause: `kubectl describe sbr CLASS`.",
            Query(_condition("Healthy"), "{{runtime_class}}"),
            _HEALTHY,
        ),
    ]


def _startup() -> list[Panel]:
    def buckets(*labels: str) -> str:
        stage = ',stage="ready"'
        rate = f"rate(sandboxpool_startup_duration_seconds_bucket{{{_CLASS}{stage}}}{RATE})"
        return f"sum by ({', '.join(labels)}) ({rate})"

    by = "by (runtime_class, stage)"
    total, count = (
        f"sum {by} (rate(sandboxpool_startup_duration_seconds_{part}{{{_CLASS}}}{RATE}))"
        for part in ("sum", "count")
    )
    started = f'rate(sandboxpool_startup_duration_seconds_count{{{_CLASS},stage="ready"}}{RATE})'
    failures = f"rate(sandboxpool_failures_total{{{_CLASS}}}{RATE})"
    return [
        graph(
            "Time to start a sandbox, p95",
            "From the creation of the pod to Ready. It decides how much stock a pool needs: for "
            "each claim per second, this many warm sandboxes. A rise without a change of the "
            "template: see which stage grew." + runbook("SandboxPoolStartupSlow"),
            Query(quantile(0.95, buckets("le", "runtime_class")), "{{runtime_class}}"),
            unit=units.Seconds,
            thirds=1,
        ),
        graph(
            "Mean time until each stage",
            "All from the creation of the pod. `scheduled` grows: capacity, or the scheduler. "
            "`sandbox` grows: the runtime or the network plugin. `started`: images and volumes. "
            "`ready`: the program and its readiness probe.",
            Query(f"{total} / {count}", "{{runtime_class}} {{stage}}"),
            unit=units.Seconds,
            thirds=1,
        ),
        graph(
            "Sandboxes started and failed",
            "Sandboxes that became ready, and those that did not start or could not be created, by "
            "reason. docs/reference/reasons.md says what each one means.",
            Query(f"60 * sum by (runtime_class) ({started})", "{{runtime_class}} ready"),
            Query(
                f"60 * sum by (runtime_class, reason) ({failures})", "{{runtime_class}} {{reason}}"
            ),
            unit=units.CountsPerMinute,
            thirds=1,
        ),
    ]


def _probes() -> list[Panel]:
    return [
        graph(
            "Quarantined nodes by handler",
            "Nodes that get no sandboxes of a handler because probes of it fail there, the nodes "
            "that are not eligible now included.",
            Query(gauge("sandboxpool_quarantined_nodes", "handler"), "{{handler}}"),
            unit=units.Short,
        ),
        graph(
            "Probes by outcome",
            "Probe pods in the last hour; the positive controls have no handler. `Unavailable`: "
            "the probe could not run; `kubectl describe sbr CLASS` has the cause. `NotProven`: the "
            "sandbox had the node's kernel.",
            Query(
                "sum by (handler, outcome) (increase(sandboxpool_probes_total[1h]))",
                "{{handler}} {{outcome}}",
            ),
            unit=units.Short,
        ),
    ]
