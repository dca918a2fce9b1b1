"""The dashboard of pools: stock, claims, and what keeps pools from being ready."""

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import DynamicConfigValue

from dashboards.board import (
    BAD_IF_ANY,
    Colours,
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
from dashboards.promql import POOLS, gauge, of_class, pool_gauge, pool_rate, quantile

_LISTED = 20
_READY = {1: ("Ready", "green"), 0: ("Not ready", "red"), -1: ("Unknown", "orange")}


def build() -> Dashboard:
    """Return the dashboard."""
    namespaces = "label_values(sandboxpool_target, namespace)"
    classes = 'label_values(sandboxpool_pods{namespace=~"$namespace"}, runtime_class)'
    pools = (
        'label_values(sandboxpool_pods{namespace=~"$namespace",runtime_class=~"$runtime_class"},'
        " pool)"
    )
    return board(
        "SandboxPool / Pools",
        "sandboxpool-pools",
        "The stock of the pools, the claims that they serve, and why pools are not ready.",
        [
            variable("namespace", "Namespace", namespaces),
            variable("runtime_class", "RuntimeClass", classes),
            variable("pool", "Pool", pools),
        ],
        [
            ("Now", _figures()),
            ("Pools", _pools()),
            ("Claims", _claims()),
            ("Stock", _stock()),
        ],
    )


def _state(state: str) -> str:
    return pool_gauge("sandboxpool_pods", f'state="{state}"')


_TARGET = pool_gauge("sandboxpool_target")
_WAITING = pool_gauge("sandboxpool_claims_waiting")
_LAG = pool_gauge("sandboxpool_refill_lag_seconds")
_IS_READY = pool_gauge("sandboxpool_pool_condition", 'condition="Ready"')
_BUCKETS = pool_rate("sandboxpool_claim_duration_seconds_bucket", "le")


def _figures() -> list[Panel]:
    return [
        number(
            "Pools",
            "Pools of the selection. No data: Prometheus does not scrape the operator, or no "
            "replica leads; see the dashboard SandboxPool / Operator.",
            f"count({_TARGET})",
            units.Short,
        ),
        number(
            "Pools not ready",
            "Pools that cannot serve a claim now. The table below names the reasons; "
            "`kubectl sandboxpool status POOL -n NAMESPACE` says what to do."
            + runbook("SandboxPoolNotReady"),
            f"sum({of_class(_unready())})",
            units.Short,
            BAD_IF_ANY,
        ),
        number(
            "Warm sandboxes",
            "Sandboxes that can be claimed at once. Below the target while pools refill; if it "
            "stays there, see the refill lag.",
            f"sum({_state('warm')})",
            units.Short,
        ),
        number(
            "Target",
            "Warm sandboxes that the pools are to have: `spec.replicas`, limited by "
            "`spec.maxSandboxes`. Change it with `kubectl scale sbp POOL --replicas N`, or let a "
            "HorizontalPodAutoscaler do so.",
            f"sum({_TARGET})",
            units.Short,
        ),
        number(
            "Claimed sandboxes",
            "Sandboxes that are bound to claims. `kubectl get sbc -A` lists the claims.",
            f"sum({_state('claimed')})",
            units.Short,
        ),
        number(
            "Claims waiting",
            "Claims that have no sandbox yet. If it stays above 0, raise `spec.replicas` of the "
            "pools that are dry, or find out why they do not refill."
            + runbook("SandboxPoolClaimsWaiting"),
            f"sum({_WAITING})",
            units.Short,
            Colours(((1, "orange"),)),
        ),
    ]


def _unready() -> str:
    ready = gauge(f'sandboxpool_pool_condition{{{POOLS},condition="Ready"}}', "namespace", "pool")
    return f"({ready} < bool 1)"


def _pools() -> list[Panel]:
    table = rows_of(
        "Pools of the selection",
        "Each pool as it is now. *Lag*: for how long it has had fewer warm "
        "sandboxes than `spec.replicas`. *Nodes*: those that serve its runtime. For one pool: "
        "`kubectl sandboxpool status POOL -n NAMESPACE`.",
        Query(_IS_READY, "Ready"),
        Query(_state("warm"), "Warm"),
        Query(_TARGET, "Target"),
        Query(_state("starting"), "Starting"),
        Query(_state("claimed"), "Claimed"),
        Query(_WAITING, "Waiting"),
        Query(_LAG, "Lag"),
        Query(pool_gauge("sandboxpool_runtime_nodes", 'answer="serving"'), "Nodes"),
        labels={"namespace": "Namespace", "pool": "Pool"},
    )
    table.override_by_name("Lag", [DynamicConfigValue(id_val="unit", value=units.Seconds)])
    mark(table, "Ready", _READY)
    labels = "namespace", "pool", "condition", "reason"
    false = of_class(gauge(f"sandboxpool_pool_condition{{{POOLS}}}", *labels) + " < 1")
    causes = rows_of(
        "Conditions that are not True",
        "The causes of the moment. `Filling` and `Rolling` are ordinary work; "
        "docs/reference/reasons.md says what to do about the others."
        + runbook("SandboxPoolRefillFailing", "SandboxPoolQuotaExceeded"),
        Query(f"topk({10 * _LISTED}, {false})", "Status"),
        labels={
            "namespace": "Namespace",
            "pool": "Pool",
            "condition": "Condition",
            "reason": "Reason",
        },
        width=12,
    )
    mark(causes, "Status", {0: ("False", "red"), -1: ("Unknown", "orange")})
    return [
        table,
        causes,
        states(
            f"Readiness of {_LISTED} pools, those not ready first",
            "When pools were ready. Short gaps after a change of the runtime are replacements; "
            "for others `kubectl sandboxpool events -n NAMESPACE` shows what happened.",
            Query(f"bottomk({_LISTED}, {_IS_READY})", "{{namespace}}/{{pool}}"),
            _READY,
        ),
    ]


def _claims() -> list[Panel]:
    bound = pool_rate("sandboxpool_claim_duration_seconds_count")
    warm = pool_rate("sandboxpool_claim_duration_seconds_count", matchers='source="Warm"')
    quick = pool_rate("sandboxpool_claim_duration_seconds_bucket", matchers='le="0.1"')
    return [
        graph(
            "Claims by result",
            "Claims that were bound, from the warm stock or by a cold start, and claims that ended "
            "otherwise, by reason. `kubectl sandboxpool events -n NAMESPACE` names the claims.",
            Query(
                pool_rate("sandboxpool_claims_total", "result", "source"), "{{result}} {{source}}"
            ),
            unit=units.CountsPerSecond,
        ),
        graph(
            "Time to bind a claim",
            "From the first observation of a claim to the write of its bound status, waiting "
            "included. Tens of milliseconds while pools are warm. Seconds: pools run dry; raise "
            "`spec.replicas`. If claims do not wait, see the API latency on SandboxPool / "
            "Operator.",
            *(Query(quantile(q, _BUCKETS), f"p{q * 100:.0f}") for q in (0.5, 0.95, 0.99)),
            unit=units.Seconds,
        ),
        graph(
            "Share of claims that were bound well",
            "Of the bound claims, those that got a warm sandbox, and those that were bound within "
            "100 ms. If the shares fall, the stock is too small for the bursts: raise "
            "`spec.replicas`. Nothing is shown while no claim is bound."
            + runbook("SandboxPoolHitRateLow"),
            Query(f"{warm} / {bound}", "from the warm stock"),
            Query(f"{quick} / {bound}", "within 100 ms"),
            unit=units.PercentUnit,
        ),
        graph(
            f"Claims waiting, {_LISTED} pools",
            "Claims that have no sandbox yet, in the pools where most wait. Compare with the "
            "starting sandboxes and the failures below.",
            Query(f"topk({_LISTED}, {_WAITING})", "{{namespace}}/{{pool}}"),
            unit=units.Short,
        ),
    ]


def _stock() -> list[Panel]:
    labels = "namespace", "pool", "state"
    pods = gauge(
        f'sandboxpool_pods{{{POOLS},runtime_class=~"$runtime_class"}}',
        *labels,
    )
    failures = pool_rate("sandboxpool_failures_total", "reason")
    return [
        graph(
            "Sandboxes by state",
            "All sandboxes. `unproven`, `unready`, `stranded` and `failed` ones cannot be claimed: "
            "`kubectl sandboxpool status POOL` lists them by node, with the cause.",
            Query(f"sum by (state) ({pods})", "{{state}}"),
            unit=units.Short,
            stacked=True,
        ),
        graph(
            "Warm sandboxes and target",
            "Both over all selected pools. A gap that stays means that pools do not refill: see "
            "the failures, and `Warm` among the conditions." + runbook("SandboxPoolDry"),
            Query(f"sum({_state('warm')})", "warm"),
            Query(f"sum({_TARGET})", "target"),
            unit=units.Short,
        ),
        graph(
            f"Refill lag, {_LISTED} pools",
            "For how long pools have had fewer warm sandboxes than `spec.replicas`. Some seconds "
            "after each claim are ordinary. If it rises steadily, the condition `Warm` has the "
            "cause: `kubectl sandboxpool status POOL`." + runbook("SandboxPoolRefillFailing"),
            Query(f"topk({_LISTED}, {_LAG})", "{{namespace}}/{{pool}}"),
            unit=units.Seconds,
        ),
        graph(
            "Failures by reason",
            "Sandboxes that did not start, or could not be created. No data: there were none. "
            "docs/reference/reasons.md says what each one means.",
            Query(f"60 * {failures}", "{{reason}}"),
            unit=units.CountsPerMinute,
        ),
    ]
