"""What may be said of a claim without asking anybody."""

from typing import Any

import msgspec
import pytest

from sandboxpool.api.reasons import Reason
from sandboxpool.api.times import timestamp
from sandboxpool.api.v1alpha1 import (
    ClaimPhase,
    ClaimSource,
    Condition,
    SandboxClaim,
    SandboxClaimStatus,
)
from sandboxpool.claims import decide
from sandboxpool.runtimes.host_state import HostState
from support.builders import NOW, claim, claim_body, facts, pod, spec
from support.schema import check_written

BOUND: dict[str, Any] = {
    "phase": "Bound",
    "podName": "pod-1",
    "podUID": "pod-1-uid",
    "podIP": "10.0.0.7",
    "nodeName": "node-1",
    "runtime": {"className": "gvisor", "handler": "runsc"},
    "source": "Warm",
    "boundAt": timestamp(NOW),
}


def test_what_is_written_fits_the_api() -> None:
    it = claim(status=BOUND)
    for status in (
        decide.bound_status(
            it,
            pod(),
            HostState(facts(), "runsc"),
            source=ClaimSource.WARM,
            bound_at=NOW,
            expires=NOW + 9,
            evidence="a kernel of its own",
            now=NOW,
        ),
        decide.pending_status(it, Reason.STARTING_COLD, "one is being started", NOW),
        decide.finished_status(it, ClaimPhase.LOST, Reason.POD_LOST, "x" * 4000, NOW),
    ):
        check_written(SandboxClaimStatus, status.to_wire())


# --- Refusing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "prefixes", "reason"),
    [
        ({}, [], None),
        ({"runtimeClassName": "gvisor"}, [], None),
        ({"runtimeClassName": "kata"}, [], Reason.RUNTIME_CLASS_MISMATCH),
        ({"metadata": {"labels": {"example.com/a": ""}}}, ["example.com/"], None),
        ({"metadata": {"annotations": {"example.com/a": ""}}}, ["b/", "example.com/"], None),
        ({"metadata": {"labels": {"example.com/a": ""}}}, [], Reason.METADATA_NOT_ALLOWED),
        ({"metadata": {"annotations": {"other/a": ""}}}, ["b/"], Reason.METADATA_NOT_ALLOWED),
        (
            {"metadata": {"annotations": {"io.katacontainers.config/a": ""}}},
            ["io.katacontainers.config/"],
            Reason.METADATA_NOT_ALLOWED,
        ),
        (
            {"metadata": {"labels": {"sandboxpool.io/claim-uid": "x"}}},
            ["sandboxpool.io/"],
            Reason.METADATA_NOT_ALLOWED,
        ),
        ({"config": {"a": "b"}}, [], None),
        # Without a slash there is no prefix that could allow it.
        ({"metadata": {"annotations": {"a.crio.io": ""}}}, ["a/"], Reason.METADATA_NOT_ALLOWED),
    ],
)
def test_refusals(fields: dict[str, Any], prefixes: list[str], reason: Reason | None) -> None:
    policy = spec(claims={"allowedMetadataPrefixes": prefixes})
    refusal = decide.refusal_for(claim(**fields), policy)
    assert (refusal.reason if refusal else None) == reason


def test_a_configuration_needs_a_place_in_the_sandboxes() -> None:
    nowhere = spec(claims={"configPath": ""})
    assert decide.refusal_for(claim(), nowhere) is None
    refusal = decide.refusal_for(claim(config={"a": "b"}), nowhere)
    assert refusal is not None
    assert refusal.reason is Reason.CONFIG_NOT_MOUNTED
    assert all(text in refusal.message for text in ("spec.config", "pool 'pool'", "configPath"))


def test_a_configuration_becomes_one_text_whatever_its_order() -> None:
    assert decide.reference(claim()).config == ""
    texts = [{"b": "é\n", "a": ""}, {"a": "", "b": "é\n"}]
    assert {decide.reference(claim(config=config)).config for config in texts} == {
        '{"a":"","b":"é\\n"}'
    }


@pytest.mark.parametrize(
    ("asserted", "pool_has", "served"),
    [
        (None, "None", True),
        ("PerNode", "None", False),
        ("PerNode", "PerNode", True),
        ("PerNode", "PerSandbox", True),
        ("PerSandbox", "None", False),
        ("PerSandbox", "PerNode", False),
        ("PerSandbox", "PerSandbox", True),
        # A newer API's word: nobody can say that it holds.
        ("PerSyscall", "PerSandbox", False),
    ],
)
def test_an_asserted_proof_holds_at_least(
    asserted: str | None, pool_has: str, served: bool
) -> None:
    refusal = decide.refusal_for(claim(isolationProof=asserted), spec(isolationProof=pool_has))
    assert (refusal is None) == served
    if refusal is not None:
        assert refusal.reason is Reason.ISOLATION_PROOF_MISMATCH
        in_message = (
            f"isolationProof asserts at least {asserted!r}",
            f"has {pool_has!r}",
            "name a pool",
        )
        assert all(text in refusal.message for text in in_message)


@pytest.mark.parametrize("field", ["labels", "annotations"])
@pytest.mark.parametrize("value", ["isolated", "open"])
def test_a_claim_cannot_set_what_the_template_sets(field: str, value: str) -> None:
    """Network policies select sandboxes by it."""
    mine = {"example.com/network": value}
    template = {
        "metadata": {field: {"example.com/network": "isolated"}},
        "spec": {"containers": [{"name": "main"}]},
    }
    policy = spec(claims={"allowedMetadataPrefixes": ["example.com/"]}, template=template)
    refusal = decide.refusal_for(claim(metadata={field: mine}), policy)
    assert refusal is not None
    assert refusal.reason is Reason.METADATA_NOT_ALLOWED
    assert f"spec.metadata.{field}['example.com/network']" in refusal.message
    assert "the template of pool 'pool' sets it" in refusal.message
    other = "annotations" if field == "labels" else "labels"
    assert decide.refusal_for(claim(metadata={other: mine}), policy) is None


# --- Time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "default", "longest", "ttl"),
    [
        (None, None, None, None),
        (60, None, None, 60),
        (None, 30, None, 30),
        (60, 30, None, 60),
        (None, None, 100, 100),
        (60, None, 100, 60),
        (600, 30, 100, 100),
        (None, 30, 100, 30),
    ],
)
def test_lifetimes(
    wanted: int | None, default: int | None, longest: int | None, ttl: int | None
) -> None:
    policy = spec(claims={"defaultTTLSeconds": default, "maxTTLSeconds": longest})
    assert decide.ttl_seconds(claim(ttlSeconds=wanted), policy) == ttl


def test_nothing_expires_before_it_is_bound() -> None:
    assert decide.expiry(claim(ttlSeconds=1), spec()) is None
    assert decide.expiry(claim(ttlSeconds=1, status={"boundAt": "soon"}), spec()) is None


def promised(seconds: int | None, **fields: Any) -> SandboxClaim:
    """A claim that was bound with this ttl; the fields given were changed after that."""
    status = BOUND | {"observedGeneration": 0 if fields else 1}
    if seconds is not None:
        status["expiresAt"] = timestamp(NOW + seconds)
    return claim(status=status, **fields)


@pytest.mark.parametrize("seconds", [None, 77])
@pytest.mark.parametrize(
    "policy",
    [{}, {"defaultTTLSeconds": 1}, {"maxTTLSeconds": 1}, {"maxTTLSeconds": 9000}, None],
    ids=str,
)
def test_the_expiry_set_at_the_binding_does_not_change_with_the_pool(
    seconds: int | None, policy: dict[str, int] | None
) -> None:
    pool = None if policy is None else spec(claims=policy)
    assert decide.expiry(promised(seconds), pool) == (None if seconds is None else NOW + seconds)


@pytest.mark.parametrize(
    ("seconds", "wanted", "longest", "ends"),
    [
        (77, 5, None, 5),
        (77, 500, None, 500),
        (None, 500, None, 500),
        # Within the pool's limit of now, be it higher than at the binding or lower.
        (77, 500, 100, 100),
        (100, 500, 300, 300),
        # A limit that was lowered takes nothing back; nor is it a reason to get more.
        (77, 500, 50, 77),
        (77, 60, 50, 60),
        (None, 500, 50, 500),
    ],
)
def test_the_owner_of_a_claim_changes_its_expiry(
    seconds: int | None, wanted: int, longest: int | None, ends: int
) -> None:
    policy = spec(claims={"maxTTLSeconds": longest})
    assert decide.expiry(promised(seconds, ttlSeconds=wanted), policy) == NOW + ends


@pytest.mark.parametrize(
    ("policy", "ends"),
    [({}, None), ({"defaultTTLSeconds": 30}, 30), ({"maxTTLSeconds": 90}, 90)],
)
def test_a_claim_without_ttl_seconds_gets_the_pools_default(
    policy: dict[str, int], ends: int | None
) -> None:
    it = promised(77, ttlSeconds=None)
    assert decide.expiry(it, spec(claims=policy)) == (None if ends is None else NOW + ends)


def test_a_deleted_pool_has_no_limit() -> None:
    assert decide.expiry(promised(77, ttlSeconds=5), None) == NOW + 5
    assert decide.expiry(promised(77, ttlSeconds=500), None) == NOW + 500
    assert decide.expiry(promised(77, ttlSeconds=None), None) == NOW + 77


@pytest.mark.parametrize("age", [-3600, 0, 0.9, 1.5, 11])
def test_only_time_that_has_certainly_passed_counts(age: float) -> None:
    """A creation time has whole seconds, and may be of another clock."""
    assert max(0.0, age - 2) <= decide.minimum_wait(claim(age=age), NOW) <= max(0.0, age)


def test_a_claim_without_a_creation_time_has_not_waited() -> None:
    body = claim_body()
    body["metadata"]["creationTimestamp"] = ""
    assert decide.minimum_wait(msgspec.convert(body, SandboxClaim), NOW) == 0


def test_a_claim_is_retained_from_its_end_on() -> None:
    ended = claim(age=500, status={"phase": "Failed", "finishedAt": timestamp(NOW)})
    assert decide.cleanup_time(ended, spec(claims={"ttlSecondsAfterFinished": 7})) == NOW + 7
    assert decide.cleanup_time(ended, None) == NOW + 3600


# --- Status --------------------------------------------------------------------------------------


def condition(status: SandboxClaimStatus, type_: str) -> Condition:
    (found,) = [c for c in status.conditions if c.type == type_]
    return found


def bound_status(
    it: SandboxClaim, now: float = NOW, host_state: HostState | None = None, **of_pod: Any
) -> SandboxClaimStatus:
    return decide.bound_status(
        it,
        pod(**of_pod),
        host_state or HostState(facts(), "runsc"),
        source=ClaimSource.WARM,
        bound_at=NOW,
        expires=None,
        evidence=None,
        now=now,
    )


@pytest.mark.parametrize(
    ("of_node", "ready"),
    [
        ({"handlers": ["runsc"]}, "True"),
        ({"handlers": None}, "True"),
        ({"handlers": ["runc"]}, "False"),
        ({"handlers": ["runc"], "ready": False}, "True"),
    ],
)
def test_a_bound_claim_reports_that_its_node_has_lost_the_handler(of_node: Any, ready: str) -> None:
    """The list of handlers of a node that is not Ready is not trusted."""
    status = bound_status(claim(), host_state=HostState(facts(**of_node), "runsc"))
    found = condition(status, "Ready")
    assert found.status == ready
    assert (found.reason == "HandlerRemoved") == (ready == "False")


@pytest.mark.parametrize(
    ("of_pod", "ready", "reason", "in_message"),
    [
        ({}, "True", "PodReady", "ready"),
        ({"ready": False}, "False", "PodNotReady", "not ready"),
        ({"deleting": True}, "False", "PodDeleted", "deleted through the API"),
        (
            {
                "containerStatuses": [
                    {
                        "name": "main",
                        "restartCount": 1,
                        "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
                    }
                ]
            },
            "False",
            "PodRestarted",
            "main (OOMKilled, exit code 137) was restarted",
        ),
        (
            {
                "ready": False,
                "containerStatuses": [
                    {"name": "main", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
                ],
            },
            "False",
            "PodNotReady",
            "CrashLoopBackOff",
        ),
    ],
)
def test_readiness_of_a_bound_claim(
    of_pod: dict[str, Any], ready: str, reason: str, in_message: str
) -> None:
    status = bound_status(claim(), **of_pod)
    found = condition(status, "Ready")
    assert (found.status, found.reason) == (ready, reason)
    assert in_message in found.message
    assert condition(status, "Bound").status == "True"


def test_a_finished_status_keeps_what_was_bound() -> None:
    it = claim(status=BOUND | {"expiresAt": timestamp(NOW + 5)})
    body = decide.finished_status(
        it, ClaimPhase.EXPIRED, Reason.TTL_EXPIRED, "over", NOW + 5
    ).to_wire()
    kept = {k: v for k, v in BOUND.items() if k not in ("phase", "podIP")}
    assert body.items() >= (kept | {"phase": "Expired"}).items()
    assert body["finishedAt"] == timestamp(NOW + 5)
    assert "podIP" not in body, "the address may be another's soon"


def test_transition_times_move_only_with_the_status() -> None:
    first = bound_status(claim())
    again = bound_status(claim(status=first.to_wire()), now=NOW + 60)
    assert again == first
    worse = bound_status(claim(status=first.to_wire()), now=NOW + 60, ready=False)
    assert condition(worse, "Ready").lastTransitionTime == timestamp(NOW + 60)
    assert condition(worse, "Bound").lastTransitionTime == timestamp(NOW)


def test_of_several_pods_the_named_one_is_kept_or_the_oldest() -> None:
    old, young = pod("old", age=90), pod("young", age=10)
    leaving = pod("leaving", age=99, deleting=True)
    it = claim()
    assert decide.choose(it, [young, leaving, old]) == (old, [young, leaving])
    assert decide.choose(claim(status=BOUND | {"podName": "young"}), [old, young])[0] == young
    assert decide.choose(it, [leaving]) == (leaving, [])


def test_a_reported_termination_cause_is_read_from_the_status() -> None:
    goes = bound_status(claim(), deleting=True)
    told = decide.reported_cause(claim(status=msgspec.to_builtins(goes)))
    assert told is not None
    assert told.reason is Reason.POD_DELETED
    unready = bound_status(claim(), ready=False)
    assert decide.reported_cause(claim(status=msgspec.to_builtins(unready))) is None
