"""`kubectl sandboxpool events`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from support.scriptedcli import Cli
from support.scriptedio import failure

Object = dict[str, Any]
GROUP = "/apis/sandboxpool.io/v1alpha1/namespaces/ns"
POOLS, CLAIMS, EVENTS = (
    f"{GROUP}/sandboxpools",
    f"{GROUP}/sandboxclaims",
    "/api/v1/namespaces/ns/events",
)
LONG = "node worker3 does not serve handler runsc: install it there, or keep the pool away from it"


def obj(name: str, **status: Any) -> Object:
    return {"metadata": {"name": name, "namespace": "ns", "uid": f"{name}-uid"}, "status": status}


def event(kind: str, name: str, reason: str, minute: int, **other: Any) -> Object:
    return {
        "metadata": {"name": f"{name}.{minute}", "namespace": "ns"},
        "involvedObject": {"kind": kind, "namespace": "ns", "name": name, "uid": f"{name}-uid"},
        "type": "Normal",
        "reason": reason,
        "message": f"{reason} was said",
        "lastTimestamp": f"2026-01-01T00:{minute:02}:00Z",
        "reportingComponent": "sandboxpool",
        **other,
    }


@pytest.fixture(autouse=True)
def cluster(cli: Cli) -> None:
    cli.has(POOLS, obj("python"))
    cli.has(CLAIMS, obj("mine", podName="python-0123456789"))
    cli.has(
        EVENTS,
        event("Pod", "python-0123456789", "Started", 5),
        event("Pod", "python-abcdef0123", "Pulled", 9),
        event("Pod", "else-0123456789", "Other", 4),
        event("Deployment", "python", "Scaled", 3),
        event("SandboxClaim", "mine", "Bound", 2),
        event("SandboxPool", "python", "NoNodeServes", 1, type="Warning", message=LONG),
    )


def reasons(cli: Cli, *arguments: str) -> list[str]:
    result = cli("events", "-o", "json", *arguments)
    assert result.exit_code == 0, result.output
    return [item["reason"] for item in json.loads(result.stdout)["items"]]


def test_events_of_everything_are_those_of_the_kinds_and_of_their_pods_in_order(cli: Cli) -> None:
    assert reasons(cli) == ["NoNodeServes", "Bound", "Started", "Pulled"]


@pytest.mark.parametrize("name", ["python", "pool/python", "sbp/python"])
def test_events_of_a_pool_are_its_own_and_those_of_its_pods(cli: Cli, name: str) -> None:
    cli.has(CLAIMS)
    assert reasons(cli, name) == ["NoNodeServes", "Started", "Pulled"]


def test_events_of_a_claim_are_its_own_and_those_of_its_sandbox(cli: Cli) -> None:
    assert reasons(cli, "claim/mine") == ["Bound", "Started"]


def test_a_name_that_nothing_has_is_an_error_that_says_where_to_look(cli: Cli) -> None:
    cli.has(POOLS)
    cli.has(CLAIMS)
    result = cli("events", "nope")
    assert result.exit_code == 1
    assert result.stderr == (
        "error: there is no pool and no claim 'nope' in namespace 'ns': `kubectl get sbp,sbc -A`"
        " lists what there is\n"
    )


def test_missing_rights_are_named_in_one_line(cli: Cli) -> None:
    message = 'events is forbidden: User "app" cannot list resource "events" in API group ""'
    cli.says(f"GET {EVENTS}", failure(403, message, "Forbidden"))
    result = cli("events")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: no right to list events in namespace 'ns'")
    assert result.stderr.count("\n") == 1


def test_missing_rights_in_all_namespaces_want_a_cluster_role(cli: Cli) -> None:
    refused = failure(403, 'User "app" cannot list resource "sandboxpools" in API group "x"')
    cli.says("GET /apis/sandboxpool.io/v1alpha1/sandboxpools", refused)
    said = cli("events", "-A").stderr
    assert "no right to list sandboxpools.x in the whole cluster: bind a ClusterRole" in said


def test_the_namespace_is_taken_before_and_after_the_command(cli: Cli) -> None:
    cli.has(f"{GROUP}/sandboxpools".replace("/ns/", "/other/"))
    cli.has(f"{GROUP}/sandboxclaims".replace("/ns/", "/other/"))
    for arguments in (("-n", "other", "events"), ("events", "--namespace=other")):
        assert "in namespace 'other'" in cli(*arguments, "nope").stderr


def test_plain_output_has_whole_columns_and_no_colour(
    cli: Cli, golden: Callable[..., None]
) -> None:
    golden("events", cli("events").stdout)


@pytest.mark.parametrize("columns", [80, 140])
def test_a_terminal_gets_a_table_that_fits(
    cli: Cli, golden: Callable[..., None], terminal: Callable[[int], None], columns: int
) -> None:
    terminal(columns)
    golden(f"events-{columns}", cli("events").stdout)


def test_names_are_for_xargs(cli: Cli) -> None:
    assert cli("events", "claim/mine", "-o", "name").stdout.splitlines() == [
        "event/mine.2",
        "event/python-0123456789.5",
    ]
