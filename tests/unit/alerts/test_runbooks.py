"""The runbooks: one for each alert, and what they name exists."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
import yaml

from localcluster.paths import REPOSITORY
from sandboxpool.api.reasons import Reason
from sandboxpool.cli.main import NAME, build
from sandboxpool.observability.metrics import Metrics, cluster_families
from sandboxpool.opensandbox.metrics import BridgeMetrics
from sandboxpool.opensandbox.reasons import BridgeReason
from support import rules

PAGES = sorted(set(rules.RUNBOOKS.glob("*.md")) - {rules.RUNBOOKS / "README.md"})
CRDS = {
    crd["metadata"]["name"]: crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for crd in (yaml.safe_load(path.read_text()) for path in (REPOSITORY / "crds").glob("*.yaml"))
}
# What pages put into code that looks like a reason and is none.
CONDITIONS = {
    "Ready",
    "Warm",
    "IsolationProven",
    "Wait",
    "Create",
    "Fail",
    "None",
    "POST",
    "CAUSES",
}


def every_page() -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "page", [p.read_text() for p in PAGES], ids=[p.stem for p in PAGES]
    )


def commands(page: str) -> list[str]:
    """The commands of a page, those with continued lines as one line."""
    text = "\n".join(rules.shell_blocks(page)).replace("\\\n", " ")
    return [line for line in text.splitlines() if line]


def test_each_alert_has_a_page_and_each_page_an_alert() -> None:
    assert {page.stem for page in PAGES} == set(rules.alerts())


def test_the_table_of_alerts_is_right() -> None:
    table = (rules.RUNBOOKS / "README.md").read_text()
    rows = re.findall(
        r"^\| \[(\w+)\]\(\1\.md\) \| (\w+) \| (\w+) \| ([^|]+) \|", table, re.MULTILINE
    )
    assert [row[:3] for row in rows] == [
        (name, alert["labels"]["severity"], alert["for"]) for name, alert in rules.alerts().items()
    ]
    on_a_cluster = "".join(
        (REPOSITORY / "tests" / "e2e" / f"test_{name}.py").read_text()
        for name in ("alerts", "broken_runtime")
    )
    for name, _, _, by in rows:
        caused = f'"{name}"' in on_a_cluster
        assert by == ("promtool, its cause" if caused else "promtool"), name


@every_page()
def test_a_page_leads_from_the_meaning_to_the_mitigation(page: str) -> None:
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == [
        "Meaning",
        "Impact",
        "Diagnosis",
        "Mitigation",
    ]
    diagnosis = page.split("## Diagnosis")[1].split("## Mitigation")[0]
    assert rules.shell_blocks(diagnosis)


@every_page()
def test_the_plugin_takes_its_commands(page: str) -> None:
    group: Any = typer.main.get_command(build())
    for line in commands(page):
        words = shlex.split(line)
        if words[:2] != NAME.split():
            continue
        context = group.make_context(NAME, words[2:])
        name, command, arguments = group.resolve_command(context, words[2:])
        command.make_context(name, arguments, parent=context)


@every_page()
def test_the_resources_exist(page: str) -> None:
    named = re.findall(r"\b[\w-]+\.sandboxpool\.io\b", page)
    assert set(named) <= set(CRDS)
    # Others have kinds with these names, which kubectl would look for.
    for line in commands(page):
        assert not re.search(r"\bsandbox(?:pools|claims|runtimes)\b(?!\.sandboxpool\.io)", line), (
            line
        )


@every_page()
def test_the_fields_exist(page: str) -> None:
    ours = "\n".join(line for line in page.splitlines() if "kubectl get leases" not in line)
    for path in re.findall(r"(?<![\w.])\.?((?:spec|status)(?:\.\w+)+)", ours):
        fields = path.split(".")
        assert any(_has(schema, fields) for schema in CRDS.values()), path


def _has(schema: dict[str, Any], fields: list[str]) -> bool:
    if not fields:
        return True
    schema = schema.get("items", schema)
    if schema.get("x-kubernetes-preserve-unknown-fields") or "properties" not in schema:
        return True
    below = schema["properties"].get(fields[0])
    return below is not None and _has(below, fields[1:])


@every_page()
def test_the_reasons_exist(page: str) -> None:
    known = set(Reason) | set(BridgeReason) | CONDITIONS
    assert [word for word in re.findall(r"`([A-Z][A-Za-z]+)`", page) if word not in known] == []


@every_page()
def test_the_values_and_metrics_exist(page: str) -> None:
    values = yaml.safe_load((rules.FILES.parent / "values.yaml").read_text())
    for path in _code(page, r"(?:metrics|networkPolicy|apiPriority|lease|opensandbox)\.[\w.]+"):
        value = values
        for name in path.split("."):
            assert name in value, path
            value = value[name]
    families = [
        *Metrics().registry.collect(),
        *cluster_families(),
        *BridgeMetrics().registry.collect(),
    ]
    exported = {family.name for family in families}
    for metric in re.findall(r"\bsandboxpool_\w+", page):
        assert re.sub(r"_(?:total|bucket|count)$", "", metric) in exported, metric


def _code(page: str, pattern: str) -> Iterator[str]:
    for code in re.findall(r"`([^`\n]+)`", page):
        if re.fullmatch(pattern, code):
            yield code
