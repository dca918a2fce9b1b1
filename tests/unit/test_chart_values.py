"""The chart's values: each has an effect, and the schema knows each and nothing else."""

import json
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import yaml

from localcluster import tools
from localcluster.paths import REPOSITORY

CHART = REPOSITORY / "charts" / "sandboxpool"
HELM_SECONDS = 60

Values = dict[str, Any]

SCHEMA: Values = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS: Values = yaml.safe_load((CHART / "values.yaml").read_text())

# What switches on the parts that other values are about.
EVERYTHING: Values = {
    "admission": {"enabled": True},
    "apiPriority": {"enabled": True},
    "dashboards": {"enabled": True},
    "metrics": {"monitor": {"kind": "ServiceMonitor"}, "prometheusRule": {"enabled": True}},
    "opensandbox": {"enabled": True, "namespaces": ["team-a"]},
    "sandboxNetworkPolicy": {"namespaces": ["team-a"]},
}
PEER = {"podSelector": {"matchLabels": {"app": "example"}}}
# Where a value of the same type would not do.
EXAMPLES: dict[str, Any] = {
    "admission.namespaces": [{"names": ["team-a"], "runtimeClasses": ["gvisor"]}],
    "admission.pods.exemptUsers": ["example"],
    "admission.templates.allowedPriorityClasses": ["example"],
    "admission.templates.allowedServiceAccounts": ["example"],
    "affinity": {"nodeAffinity": {}},
    "extraEnv": [{"name": "EXAMPLE", "value": "example"}],
    "healthPort": 9090,
    "imagePullSecrets": [{"name": "example"}],
    "metrics.monitor.authorization": {"credentials": {"name": "example", "key": "token"}},
    "metrics.monitor.interval": "30s",
    "metrics.monitor.metricRelabelings": [{"action": "drop", "regex": "example"}],
    "metrics.monitor.scrapeTimeout": "10s",
    "metrics.prometheusRule.disabledAlerts": ["SandboxPoolNotReady"],
    "metrics.prometheusRule.runbookUrl": "https://runbooks.example/{alert}",
    "networkPolicy.healthFrom": [PEER],
    "networkPolicy.metricsFrom": [PEER],
    "opensandbox.namespaces": ["team-a", "team-b"],
    "port": 9090,
    "probe.tolerations": [{"key": "example"}],
    "sandboxNetworkPolicy.egressExcept": ["10.0.0.0/8"],
    "sandboxNetworkPolicy.egressTo": [PEER],
    "sandboxNetworkPolicy.ingressFrom": [PEER],
    "sandboxNetworkPolicy.namespaces": ["team-a", "team-b"],
    "tolerations": [{"key": "example"}],
    "watchNamespaces": ["team-a"],
}
# What a value needs beside it.
NEEDS: dict[str, Values] = {
    # A ServiceMonitor needs the Service.
    "metrics.service.enabled": {"metrics": {"monitor": {"kind": "PodMonitor"}}},
    "dashboards.folderAnnotation": {"dashboards": {"folder": "example"}},
    "serviceAccount.create": {"serviceAccount": {"name": "example"}},
}


def resolved(schema: Values) -> Values:
    """Follow a reference to a definition."""
    reference = schema.get("$ref")
    return SCHEMA["definitions"][reference.rpartition("/")[2]] if reference else schema


def leaves(
    schema: Values, values: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Values, Any]]:
    """List the values that the schema does not take apart, with their schemas and defaults."""
    schema = resolved(schema)
    if "properties" not in schema:
        yield path, schema, values
        return
    for name, child in schema["properties"].items():
        if name in (values or {}):
            yield from leaves(child, values[name], (*path, name))


LEAVES = {".".join(path): (schema, default) for path, schema, default in leaves(SCHEMA, DEFAULTS)}


def merged(base: Values, more: Values) -> Values:
    """Merge values as Helm does."""
    result = dict(base)
    for key, value in more.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def nested(path: str, value: Any) -> Values:
    """Return values with one set."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return dict(value)


def at(values: Values, path: str) -> Any:
    """Return one of the values."""
    found: Any = values
    for name in path.split("."):
        found = found[name]
    return found


def another(path: str, schema: Values, present: Any) -> Any:
    """Return a valid value other than the present one."""
    if path in EXAMPLES:
        return EXAMPLES[path]
    if "enum" in schema:
        return next(value for value in schema["enum"] if value != present)
    match present:
        case bool():
            return not present
        case int():
            return present + 1
        case str():
            return "example"
        case dict():
            return {"example": "example"}
    raise AssertionError(f"{path} needs an example")


def rendered(values: Values) -> str:
    """Render the chart.

    Raises:
        AssertionError: Helm refuses.
    """
    return _rendered(json.dumps(values))


@cache
def _rendered(values: str) -> str:
    answer = subprocess.run(
        [str(tools.path("helm")), "template", "example", str(CHART), "--values", "-"],
        input=values,
        capture_output=True,
        text=True,
        timeout=HELM_SECONDS,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.mark.parametrize("path", LEAVES)
def test_a_value_changes_what_is_installed(path: str) -> None:
    schema, _ = LEAVES[path]
    base = merged(EVERYTHING, NEEDS.get(path, {}))
    value = another(path, schema, at(merged(DEFAULTS, base), path))
    assert rendered(merged(base, nested(path, value))) != rendered(base)


def test_the_schema_knows_every_value() -> None:
    def unknown(schema: Values, values: Any, path: str = "") -> Iterator[str]:
        properties = resolved(schema).get("properties")
        if properties is None or not isinstance(values, dict):
            return
        for name, value in values.items():
            if name not in properties:
                yield f"{path}{name}"
            else:
                yield from unknown(properties[name], value, f"{path}{name}.")

    assert list(unknown(SCHEMA, DEFAULTS)) == []
    assert set(DEFAULTS) == set(SCHEMA["properties"]) - {"global"}


def test_the_schema_refuses_typos_at_every_level() -> None:
    """Objects of Kubernetes, such as an affinity, are left to the API server."""

    def tolerant(schema: Any, path: str = "") -> Iterator[str]:
        if isinstance(schema, dict):
            if "properties" in schema and schema.get("additionalProperties") is not False:
                yield path
            for key, child in schema.items():
                yield from tolerant(child, f"{path}/{key}")

    assert list(tolerant(SCHEMA)) == []
