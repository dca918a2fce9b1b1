"""The operator's shell: kopf's settings, environment variables, logs, conditions."""

import contextlib
import itertools
import json
import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxpool.__main__ import main
from sandboxpool.app import handlers
from sandboxpool.app.settings import Settings, load
from sandboxpool.kube.lease import LeaderElectionTimes
from sandboxpool.observability.logs import JsonFormatter
from sandboxpool.runtimes.probe import ProbeOptions
from sandboxpool.util.environment import SettingsError


def test_the_delays_between_attempts_grow_are_capped_and_never_end() -> None:
    backoff = handlers.EndlessBackoff()
    delays = list(itertools.islice(backoff, 10_000))
    assert all(earlier <= later for earlier, later in itertools.pairwise(delays))
    assert delays[0] < 1
    assert delays[-1] == 15.0
    assert next(iter(backoff)) == delays[0], "each request starts with the first delay"


def test_kopf_is_told_to_write_nothing_and_never_to_give_up() -> None:
    settings = handlers.settings()
    assert isinstance(settings.networking.error_backoffs, handlers.EndlessBackoff)
    assert settings.peering.standalone
    assert not settings.posting.enabled


# The one thing that nobody can choose in the operator's stead.
IMAGE = {"SANDBOXPOOL_PROBE_IMAGE": "registry.example/probe:1"}


def test_without_variables_the_defaults_apply() -> None:
    assert load(IMAGE) == Settings(probe_image="registry.example/probe:1")


@pytest.mark.parametrize("given", [{}, {"SANDBOXPOOL_PROBE_IMAGE": " "}])
def test_without_a_probe_image_the_operator_does_not_start(given: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"SANDBOXPOOL_PROBE_IMAGE.*probe\.image"):
        load(given)


def test_what_probes_have_is_one_variable() -> None:
    wanted = {
        "labels": {"team": "blue"},
        "annotations": {"a": "b"},
        "resources": {"limits": {"cpu": "100m"}},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "priorityClassName": "probes",
        "podSecurityContext": {"runAsUser": 1000680000},
        "securityContext": {"runAsNonRoot": True},
    }
    found = load({**IMAGE, "SANDBOXPOOL_PROBE": json.dumps(wanted)})
    assert found.to_probe_image().security_context == {"runAsNonRoot": True}
    assert found.to_probe_options() == ProbeOptions(
        labels={"team": "blue"},
        annotations={"a": "b"},
        resources={"limits": {"cpu": "100m"}},
        tolerations=({"key": "gpu", "operator": "Exists"},),
        priority_class="probes",
        security_context={"runAsUser": 1000680000},
    )


@pytest.mark.parametrize(
    ("value", "in_message"),
    [
        ("", "Invalid JSON"),
        ("[]", r"probe\)=\[\]: .*use a JSON object with any of labels, "),
        ('{"label": {}}', r"probe\.label\).*not permitted"),
        ('{"labels": {"a": 1}}', r"probe\.labels\.a\)=1: "),
        ('{"tolerations": ["all"]}', r"probe\.tolerations\.0\)='all': "),
        ('{"priorityClassName": null}', r"probe\.priorityClassName\)=None: "),
        ('{"labels": {"sandboxpool.io/probe": "x"}}', r"probe\.labels.*the operator's own"),
        (
            '{"annotations": {"runtime.sandboxpool.io/x": "x"}}',
            r"probe\.annotations.*leave out 'runtime",
        ),
    ],
)
def test_what_probes_cannot_have_is_named(value: str, in_message: str) -> None:
    with pytest.raises(SettingsError, match=in_message) as caught:
        load({**IMAGE, "SANDBOXPOOL_PROBE": value})
    assert "SANDBOXPOOL_PROBE (Helm: probe" in str(caught.value)


def test_variables() -> None:
    found = load(
        {
            **IMAGE,
            "SANDBOXPOOL_LISTEN": "127.0.0.1:9000",
            "SANDBOXPOOL_HEALTH_LISTEN": "[::1]:9001",
            "SANDBOXPOOL_METRICS_AUTH": "True",
            "SANDBOXPOOL_LOG_LEVEL": "debug",
            "SANDBOXPOOL_CLAIM_WORKERS": "7",
            "SANDBOXPOOL_POOL_WORKERS": "3",
            "SANDBOXPOOL_NAMESPACE": "ours",
            "SANDBOXPOOL_LEASE": "30/20/5",
            "SANDBOXPOOL_RELEASE": "team-a",
            "SANDBOXPOOL_WATCH_NAMESPACES": " one,two,,one ",
            "SANDBOXPOOL_MANAGE_RUNTIMES": "false",
            "SANDBOXPOOL_EXCLUSION_LABELS": "false",
        }
    )
    assert found.lease == LeaderElectionTimes(lease_duration=30, renew_deadline=20, retry_period=5)
    assert found.listen == ("127.0.0.1", 9000)
    assert found.health_listen == ("::1", 9001)
    assert found.metrics_auth
    assert found.log_level == "DEBUG"
    assert found.watch_namespaces == ("one", "two")
    assert (found.release, found.manage_runtimes) == ("team-a", False)
    assert (found.claim_workers, found.pool_workers, found.namespace) == (7, 3, "ours")


@pytest.mark.parametrize("writes", ["EXCLUSION_LABELS", "PUBLISH_ON_NODES"])
def test_nodes_are_written_by_the_operator_that_manages_runtimes_only(writes: str) -> None:
    given = dict.fromkeys(("EXCLUSION_LABELS", "PUBLISH_ON_NODES"), "false")
    given |= {"MANAGE_RUNTIMES": "false", writes: "true"}
    with pytest.raises(SettingsError, match="MANAGE_RUNTIMES=false"):
        load({**IMAGE, **{f"SANDBOXPOOL_{name}": value for name, value in given.items()}})


@pytest.mark.parametrize("listen", [":9000", "9000"])
def test_a_port_alone_listens_on_all_addresses_of_all_families(listen: str) -> None:
    found = load({**IMAGE, "SANDBOXPOOL_LISTEN": listen})
    assert found.listen == (None, 9000)
    found = load({**IMAGE, "SANDBOXPOOL_HEALTH_LISTEN": listen})
    assert found.health_listen == (None, 9000)


@pytest.mark.parametrize(
    ("metrics", "health", "works"),
    [
        (":9000", ":9000", False),
        (":8080", "8080", False),
        (":9000", "127.0.0.1:9000", False),
        ("127.0.0.1:9000", "127.0.0.1:9000", False),
        ("127.0.0.1:9000", "[::1]:9000", True),
        ("127.0.0.1:0", "127.0.0.1:0", True),
        (":8081", ":8080", True),
    ],
)
def test_one_port_is_not_used_twice(metrics: str, health: str, works: bool) -> None:
    given = {**IMAGE, "SANDBOXPOOL_LISTEN": metrics, "SANDBOXPOOL_HEALTH_LISTEN": health}
    if works:
        load(given)
        return
    with pytest.raises(SettingsError, match="SANDBOXPOOL_LISTEN and SANDBOXPOOL_HEALTH_LISTEN"):
        load(given)


@pytest.mark.parametrize(
    ("variable", "value", "cure"),
    [
        ("LISTEN", "somewhere", "use host:port"),
        ("LISTEN", "0.0.0.0:99999", "a port from 0 to 65535"),
        ("LISTEN", "", "use host:port"),
        ("LISTEN", "::1:9000", "an IPv6 address in brackets"),
        ("HEALTH_LISTEN", "somewhere", "use host:port"),
        ("NAMESPACE", "", "name the namespace"),
        ("WATCH_NAMESPACES", "one,Two", "'Two' cannot be the name of a namespace"),
        ("RELEASE", "", "as a Lease may be named"),
        ("RELEASE", "a.b", "as a Lease may be named"),
        ("RELEASE", "x" * 64, "at most 63"),
        ("METRICS_AUTH", "yes", "use true or false"),
        ("METRICS_AUTH", "", "use true or false"),
        ("LOG_LEVEL", "loud", "'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
        ("CLAIM_WORKERS", "0", "from 1 to 1000"),
        ("CLAIM_WORKERS", "-1", "from 1 to 1000"),
        ("CLAIM_WORKERS", "1001", "from 1 to 1000"),
        ("POOL_WORKERS", "1.5", "a whole number"),
        ("POOL_WORKERS", "²", "a whole number"),
        ("PROOF_MAX_AGE", "1h", "from 600 to"),
        ("PROBE_PULL_POLICY", "Sometimes", "'Always', 'IfNotPresent' or 'Never'"),
        ("LEASE", "", "15/10/2"),
        ("LEASE", "15", "15/10/2"),
        ("LEASE", "15/10/2/1", "15/10/2"),
        ("LEASE", "15/10/two", "15/10/2"),
        # Who stops when the next begins has begun to stop too late.
        ("LEASE", "10/10/2", "each less than the one before"),
        ("LEASE", "15/10/10", "each less than the one before"),
        ("LEASE", "15/10/0", "each less than the one before"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_the_cure(
    variable: str, value: str, cure: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        load({**IMAGE, f"SANDBOXPOOL_{variable}": value})
    assert str(caught.value).startswith(f"SANDBOXPOOL_{variable}={value!r}: ")
    assert cure in str(caught.value)


def test_a_number_of_any_length_is_a_wrong_setting() -> None:
    with pytest.raises(SettingsError) as caught:
        load({**IMAGE, "SANDBOXPOOL_CLAIM_WORKERS": "9" * 5000})
    assert "from 1 to 1000" in str(caught.value)
    assert len(str(caught.value)) < 300


def test_all_wrong_settings_are_named_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SANDBOXPOOL_PROBE_IMAGE", raising=False)
    monkeypatch.setenv("SANDBOXPOOL_LEASE", "15")
    monkeypatch.setenv("SANDBOXPOOL_PROBE", '{"labels": {"a": 1}, "label": {}}')
    assert main() == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("=")[0] for line in lines] == [
        "sandboxpool: SANDBOXPOOL_PROBE_IMAGE",
        "sandboxpool: SANDBOXPOOL_PROBE (Helm: probe.labels.a)",
        "sandboxpool: SANDBOXPOOL_PROBE (Helm: probe.label)",
        "sandboxpool: SANDBOXPOOL_LEASE",
    ]


def test_only_the_variables_themselves_are_read() -> None:
    assert load({**IMAGE, "namespace": "other", "sandboxpool_namespace": "other"}) == load(IMAGE)


@given(
    st.sampled_from(
        [
            "LISTEN",
            "HEALTH_LISTEN",
            "METRICS_AUTH",
            "LOG_LEVEL",
            "CLAIM_WORKERS",
            "POOL_WORKERS",
            "LEASE",
            "NAMESPACE",
            "PROBE",
        ]
    ),
    st.text(max_size=9) | st.from_regex(r"[0-9]{1,3}/[0-9]{1,3}/[0-9]{1,3}", fullmatch=True),
)
def test_no_value_of_a_variable_breaks_anything_else(variable: str, value: str) -> None:
    with contextlib.suppress(SettingsError):
        load({**IMAGE, f"SANDBOXPOOL_{variable}": value})


def formatted(**given: object) -> dict[str, object]:
    record = logging.LogRecord("name", logging.WARNING, "path", 1, "%s fails", ("a",), None)
    for key, value in given.items():
        setattr(record, key, value)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    parsed = json.loads(line)
    assert isinstance(parsed, dict)
    return parsed


def test_a_log_line_is_one_json_object() -> None:
    line = formatted()
    assert (line["level"], line["logger"], line["message"]) == ("WARNING", "name", "a fails")
    assert str(line["time"]).endswith("Z")
    assert "object" not in line


def test_a_log_line_holds_the_traceback_and_the_object() -> None:
    reference = {"kind": "SandboxPool", "name": "pool"}
    try:
        int("first line\nsecond line")
    except ValueError:
        line = formatted(exc_info=sys.exc_info(), object=reference)
    assert "second line" in str(line["traceback"])
    assert line["object"] == reference
    assert formatted(k8s_ref=reference)["object"] == reference
