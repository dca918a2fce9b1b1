"""The alerts and recording rules in virtual time: promtool evaluates them over invented series."""

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from localcluster import prometheus
from sandboxpool.api.reasons import Reason
from sandboxpool.observability.metrics import Metrics, cluster_families
from sandboxpool.opensandbox.metrics import SERVED, WITHDRAWN, BridgeMetrics
from sandboxpool.opensandbox.outlook import DEFECTS
from sandboxpool.opensandbox.reasons import BridgeReason
from support import rules

_SECONDS = 120
POOL = {"namespace": "team-a", "pool": "tasks"}
CLAIMS = "sandboxpool_claims_total"
DURATION = "sandboxpool_claim_duration_seconds_bucket"
STARTUP = "sandboxpool_startup_duration_seconds"


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run promtool to its end."""
    command = [str(prometheus.program("promtool")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)


def series(name: str, /, **labels: str) -> str:
    """A series of the leader."""
    labels = {"job": rules.JOB, "pod": "sandboxpool-1", **labels}
    return f"{name}{{{','.join(f'{key}={json.dumps(labels[key])}' for key in labels)}}}"


def of_bridge(name: str, /, **labels: str) -> str:
    """A series of the bridge's leader."""
    of = {"job": rules.JOB_OPENSANDBOX, "pod": "sandboxpool-opensandbox-1"}
    return series(f"sandboxpool_opensandbox_{name}", **(of | labels))


def condition(type_: str, reason: str) -> str:
    return series("sandboxpool_pool_condition", **POOL, condition=type_, reason=reason)


@dataclass(frozen=True)
class Case:
    """Series, and when an alert fires.

    Attributes:
        alert: the alert.
        given: the samples of each series in promtool's notation. A series that is not written ends
            with `stale`; `_` alone is a scrape that was missed.
        labels: the labels of the alert, beside its name and job.
        quiet: times at which it does not fire, such as ``14m``.
        firing: times at which it does.
        interval: the time between two samples, and between two evaluations.
    """

    alert: str
    given: Mapping[str, str]
    labels: Mapping[str, str]
    quiet: Sequence[str]
    firing: Sequence[str] = ()
    interval: str = "1m"
    name: str = ""

    @property
    def job(self) -> str:
        """The job whose metrics the alert reads."""
        of_bridge = any(
            rule["alert"] == self.alert for rule in rules.rules(rules.ALERTS_OPENSANDBOX)
        )
        return rules.JOB_OPENSANDBOX if of_bridge else rules.JOB

    def __str__(self) -> str:
        return f"{self.alert}-{self.name}" if self.name else self.alert

    def test(self) -> dict[str, Any]:
        """The case in the format of promtool."""
        alert = rules.alerts()[self.alert]
        labels = {
            "alertname": self.alert,
            "alertstate": "firing",
            "job": self.job,
            **alert["labels"],
            **self.labels,
        }
        sample = ",".join(f"{key}={json.dumps(labels[key])}" for key in labels)
        return {
            "interval": self.interval,
            "input_series": [{"series": k, "values": v} for k, v in self.given.items()],
            "promql_expr_test": [
                {
                    "expr": f'ALERTS{{alertname="{self.alert}", alertstate="firing"}}',
                    "eval_time": time,
                    "exp_samples": [{"labels": f"ALERTS{{{sample}}}", "value": 1}] * fires,
                }
                for times, fires in ((self.quiet, 0), (self.firing, 1))
                for time in times
            ],
        }


def checked(tmp_path: Path, case: Case) -> None:
    """Let promtool evaluate a case.

    Raises:
        AssertionError: the alert fires at another time, or with other labels.
    """
    file = tmp_path / "test.yaml"
    content = {
        "rule_files": [str(path) for path in rules.ALL],
        # In no order of its own, promtool may evaluate an alert before what it reads is recorded:
        # that sample is an interval old then, and a sample of more than five minutes is none.
        "group_eval_order": rules.groups(),
        "evaluation_interval": case.interval,
        "tests": [case.test()],
    }
    file.write_text(yaml.safe_dump(content))
    done = promtool("test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


def claims(hits: str, bound: str, **failed: str) -> dict[str, str]:
    """Claims of the pool as counters: warm ones within a second, all bound ones, failed ones."""
    return {
        series(DURATION, **POOL, source="Warm", le="1.0"): hits,
        series(CLAIMS, **POOL, result="Bound", source="Warm"): bound,
        **{series(CLAIMS, **POOL, result=key, source=""): failed[key] for key in failed},
    }


def starts(*, slow: str, fast: str) -> dict[str, str]:
    """Starts of sandboxes as counters: within a second, and within three."""
    of = {"runtime_class": "gvisor", "handler": "runsc", "stage": "ready"}
    return {
        series(f"{STARTUP}_bucket", **of, le="1.0"): fast,
        series(f"{STARTUP}_bucket", **of, le="3.0"): slow,
        series(f"{STARTUP}_bucket", **of, le="+Inf"): slow,
        series(f"{STARTUP}_count", **of): slow,
    }


def creates(fast: str, **outcomes: str) -> dict[str, str]:
    """OpenSandbox's creates as counters: served within ten seconds, and all by their outcome."""
    return {
        of_bridge("request_duration_seconds_bucket", **POOL, le="10.0"): fast,
        **{of_bridge("requests_total", **POOL, outcome=key): outcomes[key] for key in outcomes},
    }


RUNTIME = {"runtime_class": "gvisor", "handler": "runsc"}
WARM = series("sandboxpool_pods", **POOL, **RUNTIME, state="warm")
TARGET = series("sandboxpool_target", **POOL)
REQUESTS = "sandboxpool_api_requests_total"

# One for each alert: it is quiet, fires for its cause, and is quiet again.
FIRE_AND_RESOLVE = (
    Case(
        "SandboxPoolNotReady",
        {
            condition("Ready", "SandboxWarm"): "1+0x4 stale _x19 1+0x9",
            # The cause changes meanwhile, which must not begin the time anew.
            condition("Ready", "RuntimeClassNotFound"): "_x5 0+0x5 stale",
            condition("Ready", "NoNodeServes"): "_x11 0+0x13 stale",
        },
        POOL,
        quiet=("4m", "14m", "31m"),
        firing=("16m", "24m"),
    ),
    Case(
        "SandboxPoolDry",
        {WARM: "2 0+0x5 1+0x5", TARGET: "2+0x11"},
        POOL,
        quiet=("0m", "2m", "8m"),
        firing=("4m", "6m"),
    ),
    Case(
        "SandboxPoolClaimsWaiting",
        {series("sandboxpool_claims_waiting", **POOL): "0 3+0x9 0+0x5"},
        POOL,
        quiet=("0m", "5m", "12m"),
        firing=("7m",),
    ),
    Case(
        "SandboxPoolHitRateLow",
        # Of ten claims a minute all get a warm sandbox, then half of them, then all again.
        claims("0+10x60 605+5x59 905+10x90", "0+10x210"),
        POOL,
        quiet=("60m", "65m", "200m"),
        firing=("100m",),
    ),
    Case(
        "SandboxPoolRefillFailing",
        {
            condition("Warm", "AtTarget"): "1 stale _x20 1+0x9",
            condition("Warm", "TemplateRejected"): "_ 0+0x20 stale",
        },
        POOL,
        quiet=("0m", "15m", "24m"),
        firing=("17m", "21m"),
    ),
    Case(
        "SandboxPoolQuotaExceeded",
        {
            condition("Warm", "AtTarget"): "1 stale _x15 1+0x9",
            condition("Warm", "QuotaExceeded"): "_ 0+0x15 stale",
        },
        POOL,
        quiet=("0m", "10m", "19m"),
        firing=("12m", "16m"),
    ),
    Case(
        "SandboxPoolIsolationNotProven",
        {
            condition("IsolationProven", "IsolationProven"): "1 stale _x5 1+0x5",
            condition("IsolationProven", "IsolationNotProven"): "_ 0+0x5 stale",
        },
        POOL,
        quiet=("0m", "2m", "8m"),
        firing=("4m",),
    ),
    Case(
        "SandboxPoolRuntimeBroken",
        {series("sandboxpool_quarantined_nodes", handler="runsc"): "0 2+0x9 0+0x5"},
        {"handler": "runsc"},
        quiet=("0m", "5m", "12m"),
        firing=("7m",),
    ),
    Case(
        "SandboxPoolStartupSlow",
        # Nine days of starts within a second, six hours of slower ones, then fast ones again.
        starts(slow="0+10x1400", fast="0+10x1296 12960+0x35 12970+10x67"),
        RUNTIME | {"stage": "ready"},
        quiet=("6h", "3d", "216h", "226h"),
        firing=("219h", "221h"),
        interval="10m",
    ),
    Case(
        "SandboxPoolOperatorDown",
        {series("sandboxpool_leader"): "1 stale _x8 1+0x5"},
        {},
        quiet=("0m", "5m", "11m"),
        firing=("7m", "9m"),
    ),
    Case(
        "SandboxPoolNoLeader",
        {series("sandboxpool_leader"): "1 0+0x5 1+0x5"},
        {},
        quiet=("0m", "2m", "8m"),
        firing=("4m",),
    ),
    Case(
        "SandboxPoolWatchStale",
        {series("sandboxpool_watch_age_seconds", resource="pods"): "30 60 120 180+60x6 0+0x5"},
        {"pod": "sandboxpool-1", "resource": "pods"},
        quiet=("2m", "4m", "12m"),
        firing=("6m",),
    ),
    Case(
        "SandboxPoolApiThrottled",
        {
            series(REQUESTS, verb="PATCH", code="200"): "0+60x60",
            series(REQUESTS, verb="PATCH", code="429"): "0+0x9 2+2x30 62+0x20",
        },
        {},
        quiet=("9m", "15m", "50m"),
        firing=("30m",),
    ),
    Case(
        "SandboxPoolOpenSandboxDown",
        # The leader is gone and the standby does not take over; later both are gone.
        {
            of_bridge("leader"): "1 stale _x20 1+0x5",
            of_bridge("leader", pod="sandboxpool-opensandbox-2"): "0+0x9 stale _x20",
        },
        {},
        quiet=("0m", "3m", "24m"),
        firing=("5m", "9m", "12m", "20m"),
    ),
    Case(
        "SandboxPoolOpenSandboxFailing",
        # Of ten creates a minute none fails, then a third, then none again.
        creates("0+10x90", Served="0+10x90", RuntimeClassNotFound="0+0x30 5+5x20 105+0x40"),
        POOL,
        quiet=("30m", "90m"),
        firing=("40m", "50m"),
    ),
    Case(
        "SandboxPoolOpenSandboxSlow",
        # Of ten creates a minute all are fast, then half of them late, then all fast.
        creates("0+10x30 305+5x20 415+10x60", Served="0+10x110"),
        POOL,
        quiet=("30m", "90m"),
        firing=("42m", "52m"),
    ),
)

STAYS_QUIET = (
    Case(
        "SandboxPoolNotReady",
        {condition("Ready", "Paused"): "0+0x60"},
        POOL,
        quiet=("60m",),
        name="paused",
    ),
    Case(
        "SandboxPoolDry",
        {WARM: "0+0x60", TARGET: "0+0x60"},
        POOL,
        quiet=("60m",),
        name="scaled-to-zero",
    ),
    Case(
        "SandboxPoolHitRateLow",
        claims("0+0x60", "0+0.2x60"),
        POOL,
        quiet=("60m",),
        name="too-few-claims-to-tell",
    ),
    Case(
        "SandboxPoolRefillFailing",
        {condition("Warm", "Filling"): "0+0x60"},
        POOL,
        quiet=("60m",),
        name="claims-take-them-steadily",
    ),
    Case(
        "SandboxPoolIsolationNotProven",
        {condition("IsolationProven", "EvidencePending"): "-1+0x60"},
        POOL,
        quiet=("60m",),
        name="nothing-is-known-yet",
    ),
    Case(
        "SandboxPoolStartupSlow",
        starts(slow="0+10x100", fast="0+0x100"),
        RUNTIME | {"stage": "ready"},
        quiet=("15h",),
        interval="10m",
        name="a-new-cluster-has-no-week-before",
    ),
    Case(
        "SandboxPoolOperatorDown",
        {series("sandboxpool_leader", pod="sandboxpool-2"): "0+0x60"},
        {},
        quiet=("60m",),
        name="a-standby-is-left",
    ),
    Case(
        "SandboxPoolNoLeader",
        {
            series("sandboxpool_leader"): "1+0x60",
            series("sandboxpool_leader", pod="sandboxpool-2"): "0+0x60",
        },
        {},
        quiet=("60m",),
        name="a-standby",
    ),
    Case(
        "SandboxPoolApiThrottled",
        {
            series(REQUESTS, verb="PATCH", code="200"): "0+600x60",
            series(REQUESTS, verb="PATCH", code="429"): "0+1x60",
        },
        {},
        quiet=("60m",),
        name="now-and-then",
    ),
    Case(
        "SandboxPoolOpenSandboxDown",
        {
            of_bridge("leader"): "1 stale _x20",
            of_bridge("leader", pod="sandboxpool-opensandbox-2"): "0 0 1+0x20",
        },
        {},
        quiet=("5m", "20m"),
        name="a-standby-takes-over",
    ),
    Case(
        "SandboxPoolOpenSandboxFailing",
        creates("0+1x60", Served="0+1x60", RuntimeClassMismatch="0+20x60", TaskFailed="0+20x60"),
        POOL,
        quiet=("30m", "60m"),
        name="applications-ask-for-what-there-is-not",
    ),
    Case(
        "SandboxPoolOpenSandboxFailing",
        creates("0+100x60", Served="0+100x60", TaskNotDelivered="0+1x60"),
        POOL,
        quiet=("30m", "60m"),
        name="one-of-a-hundred",
    ),
    Case(
        "SandboxPoolOpenSandboxFailing",
        {of_bridge("requests_total", **POOL, outcome="BindTimeout"): "0+0x10 1+0x50"},
        POOL,
        quiet=("12m", "60m"),
        name="a-single-failure",
    ),
    Case(
        "SandboxPoolOpenSandboxFailing",
        {of_bridge("requests_total", namespace="", pool="", outcome="NoNodeServes"): "0+9x60"},
        POOL,
        quiet=("60m",),
        name="no-pool-that-is-open",
    ),
    Case(
        "SandboxPoolOpenSandboxSlow",
        creates("0+10x60", Served="0+10x60", RuntimeClassNotFound="0+10x60"),
        POOL,
        quiet=("60m",),
        name="what-fails-at-once-does-not-wait",
    ),
    Case(
        "SandboxPoolOpenSandboxSlow",
        creates("0+0x60", Served="0+0.2x60"),
        POOL,
        quiet=("60m",),
        name="too-few-creates-to-tell",
    ),
)

ALSO_FIRES = (
    Case(
        "SandboxPoolHitRateLow",
        # No claim has ever been bound, so that a series of hits is missing.
        {series(CLAIMS, **POOL, result="NoWarmSandbox", source=""): "0+10x60"},
        POOL,
        quiet=("5m",),
        firing=("45m",),
        name="nothing-but-failures",
    ),
    Case(
        "SandboxPoolOperatorDown",
        {series("sandboxpool_leader"): "_x10"},
        {},
        quiet=("4m",),
        firing=("6m",),
        name="never-scraped",
    ),
    Case(
        "SandboxPoolOpenSandboxDown",
        {of_bridge("leader"): "_x10"},
        {},
        quiet=("2m",),
        firing=("4m",),
        name="never-scraped",
    ),
    Case(
        "SandboxPoolOpenSandboxFailing",
        {of_bridge("requests_total", **POOL, outcome="NoNodeServes"): "0+1x60"},
        POOL,
        quiet=("2m",),
        firing=("30m",),
        name="nothing-but-failures",
    ),
    Case(
        "SandboxPoolOpenSandboxSlow",
        # The pool is empty, and the server gives each create up: there is no duration.
        {of_bridge("requests_total", **POOL, outcome="Withdrawn"): "0+2x60"},
        POOL,
        quiet=("5m",),
        firing=("30m",),
        name="nobody-is-served",
    ),
)


@pytest.mark.parametrize("case", FIRE_AND_RESOLVE, ids=str)
def test_it_fires_for_its_cause_and_resolves(case: Case, tmp_path: Path) -> None:
    first, last = min(map(_minutes, case.firing)), max(map(_minutes, case.firing))
    assert min(map(_minutes, case.quiet)) < first, "it is quiet at first"
    assert last < max(map(_minutes, case.quiet)), "it resolves"
    checked(tmp_path, case)


def _minutes(time: str) -> float:
    return float(time[:-1]) * {"m": 1, "h": 60, "d": 1440}[time[-1]]


def test_every_alert_is_made_to_fire() -> None:
    assert sorted(case.alert for case in FIRE_AND_RESOLVE) == sorted(rules.alerts())


@pytest.mark.parametrize("case", [*STAYS_QUIET, *ALSO_FIRES], ids=str)
def test_it_fires_then_and_not_else(case: Case, tmp_path: Path) -> None:
    checked(tmp_path, case)


def test_an_alert_names_the_cause_and_the_cure(tmp_path: Path) -> None:
    """The reason is looked up when the alert fires, so that it is no label."""
    alert = rules.alerts()["SandboxPoolNotReady"]
    file = tmp_path / "test.yaml"
    expected = {
        "summary": "Pool team-a/tasks cannot serve claims.",
        "description": (
            "Its condition Ready is not True, because of RuntimeClassNotFound. "
            "`kubectl sandboxpool status tasks -n team-a` shows the first cause and what to do "
            "about it."
        ),
        "runbook_url": "docs/runbooks/SandboxPoolNotReady.md",
    }
    labels = {**POOL, **alert["labels"], "job": rules.JOB}
    test = {
        "interval": "1m",
        "input_series": [
            {"series": condition("Ready", "RuntimeClassNotFound"), "values": "0+0x20"}
        ],
        "alert_rule_test": [
            {
                "eval_time": "15m",
                "alertname": alert["alert"],
                "exp_alerts": [{"exp_labels": labels, "exp_annotations": expected}],
            }
        ],
    }
    file.write_text(yaml.safe_dump({"rule_files": [str(rules.ALERTS)], "tests": [test]}))
    done = promtool("test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_alert_on_creates_names_their_outcomes(tmp_path: Path) -> None:
    alert = rules.alerts()["SandboxPoolOpenSandboxFailing"]
    file = tmp_path / "test.yaml"
    expected = {
        "summary": "50% of OpenSandbox's creates in pool team-a/tasks fail.",
        "description": (
            "Applications get 500 POD_FAILED, for causes that are not theirs. Beside creates that"
            " were served, the last ten minutes had: NoNodeServes, BindTimeout."
            " `kubectl sandboxpool status tasks -n team-a` shows what is wrong with the pool."
        ),
        "runbook_url": "docs/runbooks/SandboxPoolOpenSandboxFailing.md",
    }
    labels = {**POOL, **alert["labels"], "job": rules.JOB_OPENSANDBOX}
    given = creates("0+4x40", Served="0+4x40", NoNodeServes="0+3x40", BindTimeout="0+1x40")
    test = {
        "interval": "1m",
        "input_series": [{"series": key, "values": given[key]} for key in given],
        "alert_rule_test": [
            {
                "eval_time": "30m",
                "alertname": alert["alert"],
                "exp_alerts": [{"exp_labels": labels, "exp_annotations": expected}],
            }
        ],
    }
    content = {"rule_files": [str(rules.ALERTS_OPENSANDBOX)], "tests": [test]}
    file.write_text(yaml.safe_dump(content))
    done = promtool("test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_nothing_wrong() -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", *rules.ALL)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_what_people_need() -> None:
    for name, alert in rules.alerts().items():
        assert alert["labels"] == {"severity": alert["labels"]["severity"]}
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
        assert alert["annotations"]["runbook_url"] == f"docs/runbooks/{name}.md"
        assert "for" in alert


def test_the_rules_read_what_the_operator_exports() -> None:
    """A metric that is renamed would leave an alert silent for ever."""
    named = {
        name
        for file in rules.ALL
        for rule in rules.rules(file)
        for name in re.findall(r"(?<![\w:])sandboxpool_\w+(?=[{\[])", rule["expr"])
    }
    assert len(named) > 8
    endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count")}
    families = [
        *Metrics().registry.collect(),
        *cluster_families(),
        *BridgeMetrics().registry.collect(),
    ]
    exported = {family.name + end for family in families for end in endings[family.type]}
    assert named - exported == set()


def test_the_outcomes_that_are_not_counted_as_failures_exist_and_are_no_defects() -> None:
    alert = rules.alerts()["SandboxPoolOpenSandboxFailing"]
    left_out = {
        name
        for group in re.findall(r'outcome!~"([^"]+)"', alert["expr"])
        for name in group.split("|")
    }
    assert left_out <= {SERVED, WITHDRAWN, *Reason, *BridgeReason}
    assert {SERVED, WITHDRAWN} < left_out
    assert not left_out & DEFECTS
    assert not left_out & {
        Reason.BIND_TIMEOUT,
        BridgeReason.CLAIM_REFUSED,
        BridgeReason.TASK_NOT_DELIVERED,
    }


def test_no_recorded_series_grows_with_the_pools_unless_wanted() -> None:
    for rule in rules.rules(rules.RECORDING):
        for by in re.findall(r"\bby \(([^)]*)\)", rule["expr"]):
            assert not {"namespace", "pool", "pod"} & set(by.split(", ")), rule["record"]
    for rule in rules.rules(rules.RECORDING_POOLS):
        assert rule["record"].startswith("job_namespace_pool:")
