"""The models: names on the wire, bounds, what is tolerated and what is not."""

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sandboxpool.api.markers import quote, wire_name
from sandboxpool.api.v1alpha1 import (
    ClaimPhase,
    ClaimRuntime,
    Condition,
    ConditionStatus,
    SandboxClaim,
    SandboxClaimStatus,
    SandboxPool,
    UpdateType,
    is_reserved_metadata_key,
)
from sandboxpool.api.v1alpha1.reserved import reserved_key_cel
from support.builders import claim_body
from support.schema import validate

METADATA = {"name": "example", "namespace": "default", "uid": "1234"}
TEMPLATE = {"spec": {"containers": [{"name": "main"}]}}


def pool(**spec: Any) -> SandboxPool:
    return SandboxPool.model_validate(
        {"metadata": METADATA, "spec": {"runtimeClassName": "gvisor", "template": TEMPLATE, **spec}}
    )


@pytest.mark.parametrize(
    ("python", "wire"),
    [
        ("replicas", "replicas"),
        ("default_ttl_seconds", "defaultTTLSeconds"),
        ("podUID", "podUID"),
        ("runtime_class_name", "runtimeClassName"),
    ],
)
def test_fields_are_spelt_as_kubernetes_does(python: str, wire: str) -> None:
    assert wire_name(python) == wire


NO_MAX_UNAVAILABLE: tuple[Any, ...] = (
    *(0, 10001, 1.5, True, None, []),
    *("5", "0%", "101%", "05%", "5%\n", "-5%"),
)


def test_a_minimal_pool_gets_the_defaults() -> None:
    spec = pool().spec
    assert spec.replicas == 1
    assert spec.max_sandboxes is None
    assert (spec.startup.timeout_seconds, spec.startup.max_starting) == (300, 10)
    assert (spec.update.type, spec.update.max_unavailable) == (UpdateType.ROLLING_UPDATE, 1)
    assert spec.claims.ttl_seconds_after_finished == 3600
    assert spec.claims.allowed_metadata_prefixes == ()
    assert not spec.paused


def test_a_template_is_kept_as_it_is() -> None:
    template = {"containers": [{"name": "main", "env": [{"name": "A"}]}], "hostUsers": False}
    parsed = pool(template={"spec": template})
    assert parsed.spec.template.spec == template


def test_fields_of_a_newer_version_are_ignored() -> None:
    parsed = pool(somethingNew={"a": 1}, startup={"timeoutSeconds": 5, "alsoNew": True})
    assert parsed.spec.startup.timeout_seconds == 5


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"runtimeClassName": ""}, "spec.runtimeClassName"),
        ({"runtimeClassName": "Kata"}, "spec.runtimeClassName"),
        ({"runtimeClassName": "kata\n"}, "spec.runtimeClassName"),
        ({"runtimeClassName": None}, "spec.runtimeClassName"),
        ({"expectedHandler": "a.b"}, "spec.expectedHandler"),
        ({"replicas": -1}, "spec.replicas"),
        ({"replicas": 10001}, "spec.replicas"),
        ({"replicas": "many"}, "spec.replicas"),
        ({"maxSandboxes": 0}, "spec.maxSandboxes"),
        ({"template": None}, "spec.template"),
        ({"template": {}}, "spec.template.spec"),
        ({"startup": {"timeoutSeconds": 0}}, "spec.startup.timeoutSeconds"),
        ({"startup": {"maxStarting": 1001}}, "spec.startup.maxStarting"),
        ({"update": {"type": "Sometimes"}}, "spec.update.type"),
        *(
            ({"update": {"maxUnavailable": value}}, "spec.update.maxUnavailable")
            for value in NO_MAX_UNAVAILABLE
        ),
        ({"placement": "packed"}, "spec.placement"),
        ({"maxAgeSeconds": 59}, "spec.maxAgeSeconds"),
        ({"isolationProof": "Never"}, "spec.isolationProof"),
        ({"claims": {"maxTTLSeconds": 0}}, "spec.claims.maxTTLSeconds"),
        ({"claims": {"ttlSecondsAfterFinished": -1}}, "spec.claims.ttlSecondsAfterFinished"),
        *(
            (
                {"claims": {"allowedMetadataPrefixes": ["example.com/", prefix]}},
                "spec.claims.allowedMetadataPrefixes.1",
            )
            for prefix in ("", "io.", "example.com", "example.com/a", "Example.com/", "a/\n")
        ),
    ],
)
def test_a_damaged_pool_raises_one_error_that_names_the_field(
    spec: dict[str, Any], field: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        pool(**spec)
    assert [".".join(map(str, error["loc"])) for error in caught.value.errors()] == [field]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"poolName": ""}, "spec.poolName"),
        ({"poolName": "a" * 53}, "spec.poolName"),
        ({"ttlSeconds": 0}, "spec.ttlSeconds"),
        ({"bindTimeoutSeconds": 86401}, "spec.bindTimeoutSeconds"),
        ({"metadata": {"labels": {"a": "b" * 64}}}, "spec.metadata.labels.a"),
    ],
)
def test_a_damaged_claim_raises_one_error_that_names_the_field(
    spec: dict[str, Any], field: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        validate(SandboxClaim, {"metadata": METADATA, "spec": {"poolName": "pool", **spec}})
    assert [".".join(map(str, error["loc"])) for error in caught.value.errors()] == [field]


def test_an_object_without_a_spec_is_damaged() -> None:
    with pytest.raises(ValidationError, match="spec"):
        SandboxPool.model_validate({"metadata": METADATA})


def test_what_was_read_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        pool().spec.replicas = 3


def test_a_status_on_the_wire_has_no_nulls() -> None:
    status = SandboxClaimStatus(
        phase=ClaimPhase.BOUND,
        podIPs=["10.0.0.1"],
        runtime=ClaimRuntime(className="gvisor", handler="runsc"),
        conditions=[
            Condition(
                type="Bound",
                status=ConditionStatus.TRUE,
                reason="SandboxBound",
                message="",
                lastTransitionTime="2026-01-02T00:00:00Z",
            )
        ],
    )
    assert status.to_wire() == {
        "phase": "Bound",
        "podIPs": ["10.0.0.1"],
        "runtime": {"className": "gvisor", "handler": "runsc"},
        "conditions": [
            {
                "type": "Bound",
                "status": "True",
                "reason": "SandboxBound",
                "message": "",
                "lastTransitionTime": "2026-01-02T00:00:00Z",
            }
        ],
    }


def test_a_word_of_a_newer_version_makes_no_claim_unreadable() -> None:
    body = claim_body(onEmpty="Queue") | {"status": {"phase": "Parked"}}
    read = msgspec.json.decode(msgspec.json.encode(body), type=SandboxClaim)
    assert (read.spec.onEmpty, read.status.phase) == ("Queue", "Parked")
    assert not read.finished
    assert read.status.to_wire() == body["status"]


@pytest.mark.parametrize("phase", ClaimPhase)
def test_a_claim_is_finished_when_nothing_more_will_happen(phase: ClaimPhase) -> None:
    body = claim_body() | {"status": {"phase": phase}}
    finished = msgspec.convert(body, SandboxClaim).finished
    assert finished == (phase not in (ClaimPhase.PENDING, ClaimPhase.BOUND))


@pytest.mark.parametrize(
    ("key", "reserved"),
    [
        ("io.katacontainers.config.hypervisor.kernel_params", True),
        ("dev.gvisor.flag.debug", True),
        ("io.kubernetes.cri-o.userns-mode", True),
        ("run.oci.handler", True),
        ("kubernetes.io/hostname", True),
        ("cluster-autoscaler.kubernetes.io/safe-to-evict", True),
        ("k8s.io/a", True),
        ("cdi.k8s.io/gpu", True),
        ("sandboxpool.io/claim", True),
        ("other.sandboxpool.io/claim", True),
        ("katacontainers.io/a", True),
        ("gvisor.dev/a", True),
        ("dev.gvisor/a", True),
        ("containerd.io/a", True),
        ("crio.io/a", True),
        ("unified-cgroup.crio.io/main", True),
        ("seccomp-profile.kubernetes.cri-o.io/POD", True),
        ("io.kubernetes.cri-o.seccompNotifierAction/main", True),
        ("module.wasm.image/variant", True),
        ("Other.SandboxPool.IO/claim", True),
        ("KUBERNETES.IO/a", True),
        ("Io.Katacontainers.config", True),
        ("devices.crio.io", False),
        ("mycrio.io/a", False),
        ("run.ocid/a", False),
        ("example.com/kubernetes.io", False),
        ("notkubernetes.io/a", False),
        ("kubernetes.io", False),
        ("app", False),
        ("", False),
    ],
)
def test_reserved_keys(key: str, reserved: bool) -> None:
    assert is_reserved_metadata_key(key) is reserved


def evaluate(expression: str, key: str) -> bool:
    """Evaluate the small part of CEL that the reserved keys are written in."""
    for term in expression.split(" || "):
        match = re.fullmatch(r"key\.(startsWith|contains)\('([^']*)'\)", term)
        assert match, term
        hit = key.startswith(match[2]) if match[1] == "startsWith" else match[2] in key
        if hit:
            return True
    return False


_PIECES = st.sampled_from(
    ["kubernetes.io", "cri-o.io", "sandboxpool.io", "io.katacontainers", "a", ".", "/", "run.oci"]
)


@given(st.lists(_PIECES, max_size=5).map("".join).filter(lambda key: key.count("/") <= 1))
def test_the_api_server_and_the_operator_agree_on_reserved_keys(key: str) -> None:
    assert evaluate(reserved_key_cel("key"), key) == is_reserved_metadata_key(key)


def test_quoting_for_cel() -> None:
    assert quote("it's \\.") == "'it\\'s \\\\.'"
