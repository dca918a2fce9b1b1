"""The dashboards: fresh, complete, and about metrics that the operator has.

That their queries have right answers is shown by tests/e2e/test_dashboards.py.
"""

import asyncio
import re
import time
from itertools import combinations, pairwise
from pathlib import Path

import msgspec
import pytest
import yaml
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from crdgen.__main__ import REPOSITORY
from dashboards.__main__ import DIRECTORY, main
from sandboxpool.allocation.allocator import Allocator
from sandboxpool.allocation.candidate_tracker import CandidateTracker
from sandboxpool.api.v1alpha1 import SandboxRuntime
from sandboxpool.api.v1alpha1.claim import ClaimSource
from sandboxpool.cli.main import COMMANDS
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.observability.metrics import CLAIM_BUCKETS, ClusterCollector, Metrics
from sandboxpool.runtimes.verdict import HandlerState
from sandboxpool.sandboxes.startup import STAGES
from support.builders import pool_body, runtime
from support.grafana import Dashboard

FILES = sorted((REPOSITORY / DIRECTORY).glob("*.json"))
NAMES = [path.stem for path in FILES]

# What Prometheus knows of a target by itself.
OF_TARGETS = {"job", "instance", "pod"}
UP = {"up": OF_TARGETS}
NOT_SHOWN = {
    # The quarantines themselves are shown.
    "sandboxpool_breaker_transitions_total",
    # For developers.
    "sandboxpool_asyncio_tasks",
}
# The values that a label can have, where the operator knows them all.
VALUES = {
    "state": {state.value for state in SandboxState},
    "answer": {state.value for state in HandlerState},
    "stage": set(STAGES),
    "source": {source.value for source in ClaimSource},
}

_SELECTOR = re.compile(r"\b(up|(?:sandboxpool|workqueue)_\w+)(?:\{(.*?)\})?")
_MATCHER = re.compile(r'(\w+)(=~|=|!=|!~)"([^"]*)"')
_GROUPED = re.compile(r"\b(?:by|on) \(([^)]*)\)")
_VALUES_OF = re.compile(r"^label_values\(.*, (\w+)\)$")


def dashboard(name: str) -> Dashboard:
    return Dashboard.parse((REPOSITORY / DIRECTORY / f"{name}.json").read_text())


def expressions(board: Dashboard) -> list[str]:
    """The queries of panels, and those of variables."""
    return [*(query.expr for query in board.queries()), *board.variables.values()]


def selectors(expression: str) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """The metrics of an expression, with their matchers."""
    return [(m[1], _MATCHER.findall(m[2] or "")) for m in _SELECTOR.finditer(expression)]


def runtime_body() -> SandboxRuntime:
    """A SandboxRuntime with a condition."""
    condition = {"type": "Ready", "status": "True", "reason": "HandlerServed"}
    status = {"handler": "runsc", "conditions": [condition]}
    metadata = {"name": "gvisor", "uid": "u", "resourceVersion": "1"}
    return msgspec.convert({"metadata": metadata, "status": status}, SandboxRuntime)


@pytest.fixture(scope="module")
def exposed() -> dict[str, set[str]]:
    """Every series that the operator can expose, with its labels."""
    metrics, cluster = Metrics(), ClusterCache()
    cluster.classes["gvisor"] = runtime()
    pools = PoolStore(lambda old, new: None)
    body = pool_body("pool", uid="u")
    body["status"] = {"conditions": [{"type": "Ready", "status": "True", "reason": "SandboxWarm"}]}
    pools.observe(body)
    pool = pools.by_uid("u")
    assert pool is not None
    metrics.request("GET", "200", 0.1)
    metrics.watch_restarted("pods", "410")
    metrics.claim_bound(pool, "Warm", 0.1)
    metrics.claim_finished("default", "pool", "Failed", "BindTimeout")
    metrics.sandbox_failed(pool, "ShimMissing")
    metrics.startup(pool, "runsc", "ready", 0.1)
    metrics.quarantine_changed("runsc", "open")
    metrics.probed("runsc", "Proven")
    metrics.watch_age.labels("pods").set(0)
    metrics.restarts.labels("sweep").inc()
    queue = metrics.queue("pools")
    queue.added(1)
    allocator = Allocator()
    tracker = CandidateTracker(
        cluster,
        pools,
        allocator,
        is_deleting=lambda a, b: False,
        on_allocated=lambda claim: None,
    )
    collector = ClusterCollector(
        cluster, pools, allocator, tracker, time.time, runtimes=[runtime_body()]
    )
    asyncio.run(collector.refresh())
    metrics.registry.register(collector)
    families = list(text_string_to_metric_families(generate_latest(metrics.registry).decode()))
    assert [family.name for family in families if not family.samples] == []
    return UP | {
        sample.name: set(sample.labels)
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_the_files_are_what_the_generator_writes(capsys: pytest.CaptureFixture[str]) -> None:
    assert NAMES == ["fleet", "operator", "pools"]
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_a_missing_and_a_left_over_file_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--root", str(tmp_path)]) == 0
    assert main(["--root", str(tmp_path), "--check"]) == 0
    (tmp_path / DIRECTORY / "fleet.json").write_text("{}")
    (tmp_path / DIRECTORY / "pools.json").unlink()
    (tmp_path / DIRECTORY / "nodes.json").write_text("{}")
    assert main(["--root", str(tmp_path), "--check"]) == 1
    named = re.findall(r"(\w+)\.json does not match", capsys.readouterr().err)
    assert named == ["fleet", "nodes", "pools"]
    assert main(["--root", str(tmp_path)]) == 0
    assert main(["--root", str(tmp_path), "--check"]) == 0


@pytest.mark.parametrize("name", NAMES)
def test_queries_are_about_metrics_and_labels_that_exist(
    name: str, exposed: dict[str, set[str]]
) -> None:
    board = dashboard(name)
    for expression in expressions(board):
        found = selectors(expression)
        assert found, expression
        for metric, matchers in found:
            assert metric in exposed, expression
            for label, operator, value in matchers:
                assert label in exposed[metric] | OF_TARGETS, expression
                if label in VALUES and not value.startswith("$"):
                    wanted = value.split("|") if operator == "=~" else [value]
                    assert set(wanted) <= VALUES[label], expression
                if label == "le":
                    assert metric == "sandboxpool_claim_duration_seconds_bucket"
                    assert float(value) in CLAIM_BUCKETS, expression
        known = set().union(*(exposed[metric] for metric, _ in found), OF_TARGETS)
        for labels in [*_GROUPED.findall(expression), *_VALUES_OF.findall(expression)]:
            assert set(labels.split(", ")) <= known, expression


@pytest.mark.parametrize("name", NAMES)
def test_the_names_of_series_are_labels_of_the_result(name: str) -> None:
    for query in dashboard(name).queries():
        named = set(re.findall(r"\{\{(\w+)\}\}", query.name))
        grouped = {label for labels in _GROUPED.findall(query.expr) for label in labels.split(", ")}
        assert named <= grouped, query


def test_every_metric_is_shown(exposed: dict[str, set[str]]) -> None:
    shown = {
        metric
        for name in NAMES
        for query in dashboard(name).queries()
        for metric, _ in selectors(query.expr)
    }
    suffixes = ("_bucket", "_sum", "_count")
    families = {re.sub(f"({'|'.join(suffixes)})$", "", metric) for metric in shown}
    all_families = {re.sub(f"({'|'.join(suffixes)})$", "", metric) for metric in exposed}
    assert all_families - families == NOT_SHOWN


def test_the_reference_has_every_metric(exposed: dict[str, set[str]]) -> None:
    page = (REPOSITORY / "docs" / "reference" / "metrics.md").read_text()
    listed = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert {re.sub("_(bucket|sum|count)$", "", metric) for metric in exposed.keys() - UP} == listed


@pytest.mark.parametrize("name", NAMES)
def test_commands_of_the_plugin_that_are_named_exist(name: str) -> None:
    text = " ".join(panel["description"] for panel in dashboard(name).panels)
    named = set(re.findall(r"`kubectl sandboxpool ([\w-]+)", text))
    assert named <= {command.name for command in COMMANDS}
    assert named or name == "operator"


def test_each_alert_has_a_panel_that_names_its_runbook() -> None:
    rules = yaml.safe_load((REPOSITORY / "charts/sandboxpool/files/alerts.yaml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    text = " ".join(panel["description"] for name in NAMES for panel in dashboard(name).panels)
    pages = set(re.findall(r"docs/runbooks/\w+\.md", text))
    assert pages == {f"docs/runbooks/{alert}.md" for alert in alerts}
    assert [page for page in pages if not (REPOSITORY / page).is_file()] == []


@pytest.mark.parametrize("name", NAMES)
def test_panels_say_what_they_show_and_what_to_do(name: str) -> None:
    found = dashboard(name).panels
    for panel in found:
        assert panel["title"]
        assert len(panel["description"]) > 40, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        refs = [target["refId"] for target in panel["targets"]]
        assert refs
        assert len(set(refs)) == len(refs)
    titles = [panel["title"] for panel in found]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("name", NAMES)
def test_panels_have_ids_and_places_of_their_own(name: str) -> None:
    board = dashboard(name)
    ids = [panel["id"] for panel in board.model["panels"]]
    assert len(set(ids)) == len(ids)
    for one, other in combinations([panel["gridPos"] for panel in board.model["panels"]], 2):
        assert (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        ), (one, other)
    for one, other in pairwise(panel["gridPos"] for panel in board.model["panels"]):
        assert other["x"] + other["w"] <= 24
        assert (other["y"], other["x"]) > (one["y"], one["x"])


def test_dashboards_have_uids_of_their_own_and_link_to_each_other() -> None:
    boards = [dashboard(name) for name in NAMES]
    assert len({board.model["uid"] for board in boards}) == len(boards)
    for board in boards:
        (link,) = [link for link in board.model["links"] if link["type"] == "dashboards"]
        assert all(set(link["tags"]) <= set(other.model["tags"]) for other in boards)


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_is_used_and_defined(name: str) -> None:
    board = dashboard(name)
    used = set(re.findall(r"\$([a-z]\w*)", " ".join(expressions(board))))
    assert used == board.variables.keys()
    (datasource,) = [v for v in board.model["templating"]["list"] if v["type"] == "datasource"]
    assert datasource["name"] == "datasource"


@pytest.mark.parametrize("name", NAMES)
def test_queries_of_work_queues_are_about_the_operators(name: str) -> None:
    """client-go's metrics of the same names come from every controller of the cluster."""
    for variable in dashboard(name).model["templating"]["list"]:
        # All of them are then the jobs that the operator has, and not any job.
        assert ("allValue" in variable) == (variable["name"] not in ("datasource", "job"))
    for query in dashboard(name).queries():
        for metric, matchers in selectors(query.expr):
            if metric == "up" or metric.startswith("workqueue_"):
                assert ("job", "=~", "$job") in matchers, query.expr
