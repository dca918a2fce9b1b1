"""The dashboard of the operator itself: replicas, watches, requests, work queues."""

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.models import units

from dashboards.board import Colours, Panel, Query, board, graph, number, runbook, states, variable
from dashboards.promql import JOB, RATE, gauge, quantile

# As in the operator: a replica whose watch is older does not lead.
_STALE_SECONDS = 120
_LEADS = {1: ("Leader", "green"), 0: ("Standby", "blue")}


def build() -> Dashboard:
    """Return the dashboard."""
    return board(
        "SandboxPool / Operator",
        "sandboxpool-operator",
        "Whether the operator itself works: its replicas, watches, requests and work queues.",
        # All must be the operator's jobs only: others have metrics of the same names.
        [variable("job", "Job", "label_values(sandboxpool_leader, job)", anything=False)],
        [
            ("Now", _figures()),
            ("Replicas and watches", _replicas()),
            ("Requests to the API server", _requests()),
            ("Work queues", _queues()),
        ],
    )


def _rate(metric: str, *labels: str, matchers: str = "") -> str:
    selector = ",".join(filter(None, (JOB, matchers)))
    return f"sum by ({', '.join(labels)}) (rate({metric}{{{selector}}}{RATE}))"


def _p95(metric: str, label: str) -> str:
    return quantile(0.95, _rate(f"{metric}_bucket", "le", label))


def _figures() -> list[Panel]:
    def total(metric: str, matchers: str = "") -> str:
        selector = ",".join(filter(None, (JOB, matchers)))
        return f"sum(rate({metric}{{{selector}}}{RATE}))"

    throttled = total("sandboxpool_api_requests_total", 'code="429"')
    return [
        number(
            "Replicas",
            "Replicas of each release that Prometheus scrapes. Fewer than `replicas` of the chart: "
            "`kubectl -n sandboxpool-system get pods`. None: see `networkPolicy.metricsFrom`."
            + runbook("SandboxPoolOperatorDown"),
            f"sum by (job) (up{{{JOB}}})",
            units.Short,
            Colours(((1, "green"),), base="red"),
            name="{{job}}",
        ),
        number(
            "Leaders",
            "Exactly one replica of each release leads. 0 for more than some seconds: no claim is "
            "bound; the operator's log says why no replica acquires the lease "
            "(`kubectl -n sandboxpool-system get lease,pods`)." + runbook("SandboxPoolNoLeader"),
            f"sum by (job) (sandboxpool_leader{{{JOB}}})",
            units.Short,
            Colours(((1, "green"), (2, "red")), base="red"),
            name="{{job}}",
        ),
        number(
            "Oldest watch",
            "Seconds since a watch received anything. Above 120 the replica gives up the lease, "
            "because it may act on a stale view: check its connection to the API server."
            + runbook("SandboxPoolWatchStale"),
            f"max(sandboxpool_watch_age_seconds{{{JOB}}})",
            units.Seconds,
            Colours(((90, "orange"), (_STALE_SECONDS, "red"))),
        ),
        number(
            "Event loop lag",
            "How late the event loop ran a timer. Seconds: raise the operator's CPU.",
            f"max(sandboxpool_loop_lag_seconds{{{JOB}}})",
            units.Seconds,
            Colours(((0.5, "orange"), (2, "red"))),
        ),
        number(
            "Requests",
            "Requests to the API server by all replicas.",
            total("sandboxpool_api_requests_total"),
            units.RequestsPerSecond,
        ),
        number(
            "Throttled",
            "Requests that the API server refused with 429. Give the operator a priority level of "
            "its own: `apiPriority.enabled` of the chart." + runbook("SandboxPoolApiThrottled"),
            f"{throttled} or vector(0)",
            units.RequestsPerSecond,
            Colours(((0.001, "orange"), (1, "red"))),
        ),
    ]


def _replicas() -> list[Panel]:
    def gauges(metric: str, *labels: str) -> str:
        return gauge(f"{metric}{{{JOB}}}", *labels)

    def increase(metric: str) -> str:
        return f"sum(increase({metric}{{{JOB}}}{RATE})) or vector(0)"

    return [
        states(
            "Leader and standbys",
            "One line for each replica. Hand-overs after an update or a drain take two seconds; "
            "frequent ones without a cause mean that the leader cannot renew its lease in time: "
            "`kubectl -n sandboxpool-system logs POD --previous`.",
            Query(gauges("sandboxpool_leader", "instance", "pod"), "{{instance}} {{pod}}"),
            _LEADS,
        ),
        graph(
            "Age of watches",
            "Seconds since each watch received anything, bookmarks of the API server included, in "
            "the replica where it is oldest. Above the line the replica does not lead.",
            Query(gauges("sandboxpool_watch_age_seconds", "resource"), "{{resource}}"),
            unit=units.Seconds,
            limit=_STALE_SECONDS,
        ),
        graph(
            "Event loop lag by replica",
            "How late the event loop ran a timer, the worst of ten seconds. It delays every claim: "
            "raise `resources.requests.cpu` of the chart.",
            Query(gauges("sandboxpool_loop_lag_seconds", "instance"), "{{instance}}"),
            unit=units.Seconds,
        ),
        graph(
            "Restarts of parts",
            "Components of the process that ended or failed and were restarted, watches that had "
            "to start again, and events that were dropped because too many were queued. Watches "
            "restart now and then; components do not: the operator's log has the traceback.",
            Query(increase("sandboxpool_restarts_total"), "components"),
            Query(increase("sandboxpool_watch_restarts_total"), "watches"),
            Query(increase("sandboxpool_events_dropped_total"), "dropped events"),
            unit=units.Short,
        ),
    ]


def _requests() -> list[Panel]:
    return [
        graph(
            "Requests by code",
            "409 and 404 are ordinary outcomes of guarded writes. 403: the ClusterRole does not "
            "match the operator; upgrade the chart. 429: see Throttled. 5xx and `<error>`: the API "
            "server, or the way to it.",
            Query(_rate("sandboxpool_api_requests_total", "code"), "{{code}}"),
            unit=units.RequestsPerSecond,
            thirds=1,
        ),
        graph(
            "Requests by verb",
            "A claim costs two PATCH requests. Writes without claims and without refills mean that "
            "another controller changes the operator's objects.",
            Query(_rate("sandboxpool_api_requests_total", "verb"), "{{verb}}"),
            unit=units.RequestsPerSecond,
            thirds=1,
        ),
        graph(
            "Duration of requests, p95",
            "Watches excluded. Claims take at least twice the duration of a PATCH: if it rises, "
            "look at the API server and etcd.",
            Query(_p95("sandboxpool_api_request_duration_seconds", "verb"), "{{verb}}"),
            unit=units.Seconds,
            thirds=1,
        ),
    ]


def _queues() -> list[Panel]:
    return [
        graph(
            "Keys that wait",
            "Objects that wait for their reconciliation. A queue that only grows: the operator "
            "lacks CPU, or the API server throttles it.",
            Query(f"sum by (name) (workqueue_depth{{{JOB}}})", "{{name}}"),
            unit=units.Short,
        ),
        graph(
            "Keys added and failed",
            "Failed keys are retried with a growing delay; the operator's log has the cause.",
            Query(_rate("workqueue_adds_total", "name"), "{{name}} added"),
            Query(_rate("workqueue_retries_total", "name"), "{{name}} failed"),
            unit=units.CountsPerSecond,
        ),
        graph(
            "Time in the queue, p95",
            "How long keys waited for a worker. For `claims` it is a part of the time to bind.",
            Query(_p95("workqueue_queue_duration_seconds", "name"), "{{name}}"),
            unit=units.Seconds,
        ),
        graph(
            "Time of a reconciliation, p95",
            "How long workers took for a key, requests to the API server included.",
            Query(_p95("workqueue_work_duration_seconds", "name"), "{{name}}"),
            unit=units.Seconds,
        ),
    ]
