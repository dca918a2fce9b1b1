"""What is shown of a RuntimeClass: total, truthful and bounded."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxpool.api.reasons import Reason
from sandboxpool.api.times import timestamp
from sandboxpool.api.v1alpha1 import (
    PoolStartup,
    SandboxCounts,
    SandboxRuntimeStatus,
    StageTiming,
)
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.fleet.status import RuntimeStatusInput, runtime_status, urgent_part
from sandboxpool.runtimes.evidence import Isolation
from sandboxpool.runtimes.evidence_store import EvidenceSummary
from sandboxpool.runtimes.failure_history import FailureSummary
from sandboxpool.runtimes.resolve import Runtime
from sandboxpool.runtimes.verdict import Verdict
from sandboxpool.sandboxes.startup import STAGES
from support.builders import NOW
from support.schema import check_written

RUNTIME = Runtime("gvisor", "class-uid", "runsc", overhead=(("memory", "20Mi"),))
READY = StageTiming(p50Milliseconds=300, p95Milliseconds=500, p99Milliseconds=900, samples=7)
STARTUP = PoolStartup(stages={"ready": READY}, windowSeconds=3600)


def fleet(verdict: Verdict | None = None, **changes: Any) -> RuntimeStatusInput:
    given: dict[str, Any] = {
        "class_name": "gvisor",
        "runtime": RUNTIME,
        "verdict": verdict or Verdict(serving=("a", "b")),
        "pools": ("team/pool",),
        "now": NOW,
    }
    return RuntimeStatusInput(**{**given, **changes})


def issue(**changes: Any) -> FailureSummary:
    given: dict[str, Any] = {
        "reason": Reason.SHIM_MISSING,
        "handler": "runsc",
        "count": 1,
        "nodes": ("c",),
        "first_seen": NOW - 60,
        "last_seen": NOW,
        "message": "binary not installed",
    }
    return FailureSummary(**{**given, **changes})


def kind(isolation: Isolation = Isolation.PROVEN, **changes: Any) -> EvidenceSummary:
    given: dict[str, Any] = {
        "container_runtime": "containerd://2.1.4",
        "kubelet": "v1.36.2",
        "isolation": isolation,
        "kernel": "4.19.0-gvisor",
        "nodes": 2,
        "example": "a",
        "at": NOW - 5,
        "message": "what was seen",
    }
    return EvidenceSummary(**{**given, **changes})


def condition(status: dict[str, Any], type_: str) -> dict[str, Any]:
    found: dict[str, Any]
    (found,) = [c for c in status["conditions"] if c["type"] == type_]
    return found


def status_and_reason(given: RuntimeStatusInput, type_: str) -> tuple[str, str]:
    found = condition(runtime_status(given, {}), type_)
    return found["status"], found["reason"]


def test_a_runtime_that_is_well() -> None:
    status = runtime_status(
        fleet(
            Verdict(serving=("a", "b"), unknown=("c",)),
            sandboxes={SandboxState.WARM: 3, SandboxState.CLAIMED: 1},
            startup=STARTUP,
            evidence=[kind()],
            proof_wanted=True,
            proven=True,
        ),
        {},
    )
    conditions = status.pop("conditions")
    assert status == {
        "exists": True,
        "classUID": "class-uid",
        "handler": "runsc",
        "overhead": {"memory": "20Mi"},
        "nodes": {
            "eligible": 3,
            "serving": 2,
            "notServing": 0,
            "unknown": 1,
            "quarantined": 0,
            "notIsolating": 0,
            "unproven": 0,
        },
        "servingOfEligible": "2/3",
        "issues": [],
        "pools": ["team/pool"],
        "poolCount": 1,
        "sandboxes": {
            "warm": 3,
            "starting": 0,
            "unready": 0,
            "unproven": 0,
            "stranded": 0,
            "failed": 0,
            "claimed": 1,
            "ended": 0,
            "stopping": 0,
        },
        "startup": STARTUP.to_wire(),
        "evidence": [
            {
                "containerRuntime": "containerd://2.1.4",
                "kubelet": "v1.36.2",
                "isolation": "Proven",
                "kernel": "4.19.0-gvisor",
                "nodes": 2,
                "exampleNode": "a",
                "lastProbed": timestamp(NOW - 5),
                "message": "what was seen",
            }
        ],
    }
    assert [(c["type"], c["status"], c["reason"]) for c in conditions] == [
        ("Ready", "True", "HandlerServed"),
        ("Healthy", "True", "AsExpected"),
        ("IsolationProven", "True", "IsolationProven"),
    ]


def test_every_state_of_a_sandbox_has_a_field() -> None:
    """But what is being started for a claim, which is counted as the claim's."""
    assert set(SandboxCounts.__struct_fields__) == {state.value for state in SandboxState} - {
        "cold"
    }


@pytest.mark.parametrize(
    ("given", "ready", "healthy"),
    [
        (
            fleet(Verdict(), runtime=None),
            ("False", "RuntimeClassNotFound"),
            ("False", "RuntimeClassNotFound"),
        ),
        (fleet(Verdict()), ("False", "NoEligibleNode"), ("False", "NoEligibleNode")),
        (
            fleet(Verdict(not_serving=("a",))),
            ("False", "NoNodeServes"),
            ("False", "NoNodeServes"),
        ),
        (
            fleet(Verdict(not_serving=("a",), unknown=("b",))),
            ("Unknown", "HandlersUnknown"),
            ("Unknown", "HandlersUnknown"),
        ),
        (
            fleet(Verdict(unknown=("b",)), sandboxes={SandboxState.CLAIMED: 1}),
            ("True", "HandlersUnknown"),
            ("True", "AsExpected"),
        ),
        (
            fleet(Verdict(quarantined=("a",), not_isolating=("b",), not_serving=("c",))),
            ("False", "AllNodesQuarantined"),
            ("False", "AllNodesQuarantined"),
        ),
        (
            fleet(Verdict(quarantined=("a",)), issues=[issue()]),
            ("False", "ShimMissing"),
            ("False", "ShimMissing"),
        ),
        (
            fleet(
                Verdict(quarantined=("a", "b")),
                issues=[issue(), issue(reason=Reason.KVM_UNAVAILABLE)],
            ),
            ("False", "AllNodesQuarantined"),
            ("False", "AllNodesQuarantined"),
        ),
        (
            fleet(Verdict(not_isolating=("b",), not_serving=("c",))),
            ("False", "IsolationNotProven"),
            ("False", "IsolationNotProven"),
        ),
        (
            fleet(Verdict(serving=("a",), not_serving=("b",))),
            ("True", "SomeNodesNotServing"),
            ("True", "AsExpected"),
        ),
        (
            fleet(Verdict(serving=("a",), quarantined=("b",)), issues=[issue()]),
            ("True", "HandlerServed"),
            ("False", "NodeQuarantined"),
        ),
        (
            fleet(issues=[issue(), issue(reason=Reason.KVM_UNAVAILABLE)]),
            ("True", "HandlerServed"),
            ("False", "ShimMissing"),
        ),
        (
            fleet(
                Verdict(serving=("a",), not_isolating=("b",)),
                evidence=[kind(Isolation.NOT_PROVEN), kind()],
                issues=[issue()],
                proof_wanted=True,
                proven=True,
            ),
            ("True", "HandlerServed"),
            ("False", "IsolationNotProven"),
        ),
        (
            # Sandboxes start, and none of them is handed out.
            fleet(evidence=[kind(Isolation.UNAVAILABLE)], proof_wanted=True),
            ("False", "EvidenceUnavailable"),
            ("False", "EvidenceUnavailable"),
        ),
        (fleet(proof_wanted=True), ("Unknown", "EvidencePending"), ("Unknown", "EvidencePending")),
        (
            # What was seen elsewhere says nothing of the nodes that may take one now.
            fleet(evidence=[kind()], proof_wanted=True),
            ("Unknown", "EvidencePending"),
            ("Unknown", "EvidencePending"),
        ),
        (
            fleet(Verdict(serving=("a",), quarantined=("b",)), issues=[issue()], proof_wanted=True),
            ("Unknown", "EvidencePending"),
            ("False", "NodeQuarantined"),
        ),
        (
            fleet(Verdict(unknown=("b",)), evidence=[kind()], proof_wanted=True, proven=True),
            ("True", "HandlersUnknown"),
            ("True", "AsExpected"),
        ),
        (
            fleet(evidence=[kind(Isolation.NOT_PROVEN)]),
            ("True", "HandlerServed"),
            ("True", "AsExpected"),
        ),
    ],
)
def test_whether_it_is_ready_and_well(
    given: RuntimeStatusInput, ready: tuple[str, str], healthy: tuple[str, str]
) -> None:
    assert status_and_reason(given, "Ready") == ready
    assert status_and_reason(given, "Healthy") == healthy


@pytest.mark.parametrize(
    ("evidence", "wanted", "expected"),
    [
        ([kind(Isolation.NOT_PROVEN)], False, ("Unknown", "ProofNotWanted")),
        ([], True, ("Unknown", "EvidencePending")),
        ([kind()], True, ("True", "IsolationProven")),
        ([kind(Isolation.UNAVAILABLE), kind()], True, ("False", "EvidenceUnavailable")),
        (
            [kind(Isolation.NOT_PROVEN), kind(Isolation.UNAVAILABLE), kind()],
            True,
            ("False", "IsolationNotProven"),
        ),
    ],
)
def test_whether_it_isolates(
    evidence: list[EvidenceSummary], wanted: bool, expected: tuple[str, str]
) -> None:
    assert (
        status_and_reason(fleet(evidence=evidence, proof_wanted=wanted), "IsolationProven")
        == expected
    )


def test_messages_name_cause_place_and_cure() -> None:
    def message(given: RuntimeStatusInput, type_: str) -> str:
        return str(condition(runtime_status(given, {}), type_)["message"])

    missing = message(fleet(Verdict(), runtime=None, pools=("b/y", "a/x")), "Ready")
    assert "'gvisor' does not exist, but pools name it (a/x, b/y): create it" in missing
    unequal = Verdict(serving=("a",), not_serving=("b",), advice=("example.com/gvisor", "yes"))
    assert "1 of 2 eligible nodes" in message(fleet(unequal), "Ready")
    assert "scheduling.nodeSelector of the RuntimeClass to {example.com/gvisor: 'yes'}" in message(
        fleet(unequal), "Ready"
    )
    broken = fleet(Verdict(serving=("a",), quarantined=("c", "d")), issues=[issue(count=4)])
    assert message(broken, "Healthy") == (
        "quarantined after failures: c, d; ShimMissing on c and 3 more: binary not installed"
    )
    shared = fleet(evidence=[kind(Isolation.NOT_PROVEN), kind()], proof_wanted=True)
    assert "on a and 1 more: what was seen. Such" in message(shared, "IsolationProven")
    assert "isolationProof" in message(shared, "IsolationProven")


def test_the_advice_is_a_node_selector() -> None:
    advised = Verdict(serving=("a",), not_serving=("b",), advice=("k", "v"))
    assert runtime_status(fleet(advised), {})["advice"] == {"nodeSelector": {"k": "v"}}
    assert "advice" not in runtime_status(fleet(), {})


def test_a_class_that_is_missing_is_remembered_as_it_was() -> None:
    before = runtime_status(fleet(), {})
    missing = runtime_status(fleet(Verdict(), runtime=None), before)
    assert (missing["exists"], missing["classUID"], missing["handler"]) == (
        False,
        "class-uid",
        "runsc",
    )
    assert missing["overhead"] == {}


def test_trouble_keeps_its_beginning_over_a_restart_of_the_operator() -> None:
    long_ago = runtime_status(fleet(issues=[issue(first_seen=NOW - 5000, last_seen=NOW - 100)]), {})
    restarted = fleet(issues=[issue(first_seen=NOW - 10)])
    assert runtime_status(restarted, long_ago)["issues"][0]["firstSeen"] == timestamp(NOW - 5000)
    other = fleet(issues=[issue(first_seen=NOW - 10, reason=Reason.KVM_UNAVAILABLE)])
    assert runtime_status(other, long_ago)["issues"][0]["firstSeen"] == timestamp(NOW - 10)


def test_an_issue_that_returns_has_a_new_start() -> None:
    over = runtime_status(fleet(issues=[issue(first_seen=NOW - 9000, last_seen=NOW - 8000)]), {})
    back = runtime_status(fleet(issues=[issue(first_seen=NOW - 10)]), over)
    assert back["issues"][0]["firstSeen"] == timestamp(NOW - 10)


@pytest.mark.parametrize(
    "former",
    [
        {"issues": 3, "conditions": "x", "handler": None, "classUID": 7},
        {"issues": [None, {}, {"handler": "runsc", "reason": "ShimMissing", "firstSeen": 5}]},
        {"issues": [{"handler": "runsc", "reason": "ShimMissing", "firstSeen": "soon"}]},
        {"conditions": [{}, None, {"type": "Ready"}]},
    ],
)
def test_a_damaged_status_is_no_obstacle(former: dict[str, Any]) -> None:
    given = fleet(issues=[issue()])
    assert runtime_status(given, former) == runtime_status(given, {})


def test_times_move_only_with_what_they_are_about() -> None:
    first = runtime_status(fleet(issues=[issue()]), {})
    later = fleet(issues=[issue()], now=NOW + 100)
    assert runtime_status(later, first) == first


def test_restless_parts_are_not_of_the_essence() -> None:
    def of(**changes: Any) -> dict[str, Any]:
        given: dict[str, Any] = {"issues": [issue()], "evidence": [kind()], "proof_wanted": True}
        return urgent_part(runtime_status(fleet(**{**given, **changes}), {}))

    quiet = of()
    assert of(startup=STARTUP) == quiet
    assert of(sandboxes={SandboxState.WARM: 1}) == quiet
    assert of(issues=[issue(last_seen=NOW + 1, message="another id")]) == quiet
    assert of(evidence=[kind(at=NOW + 1)]) == quiet
    assert of(issues=[issue(count=2)]) != quiet
    assert of(issues=[]) != quiet
    assert of(evidence=[kind(Isolation.NOT_PROVEN)]) != quiet
    assert of(verdict=Verdict(serving=("a",), quarantined=("b",))) != quiet
    assert of(pools=()) != quiet


def long(prefix: str, i: int) -> str:
    return f"{prefix}-{i:04}-".ljust(253, "x")


def test_it_is_as_small_for_five_thousand_nodes_as_for_five() -> None:
    names = [long("node", i) for i in range(5000)]
    reasons = list(Reason)[:30]
    given = fleet(
        Verdict(
            serving=tuple(names[:1000]),
            not_serving=tuple(names[1000:2000]),
            unknown=tuple(names[2000:3000]),
            quarantined=tuple(names[3000:4000]),
            not_isolating=tuple(names[4000:]),
            advice=("d" * 253 + "/" + "n" * 63, "v" * 63),
        ),
        pools=[f"{'n' * 59}{i:04}/{'p' * 63}" for i in range(500)],
        issues=[
            issue(reason=reason, count=5000, nodes=tuple(names[:5]), message="m" * 512)
            for reason in reasons
        ],
        evidence=[
            kind(
                isolation=Isolation.NOT_PROVEN,
                container_runtime="c" * 300,
                kubelet="k" * 64,
                kernel="l" * 120,
                example=names[i],
                message="m" * 512,
            )
            for i in range(8)
        ],
        startup=PoolStartup(stages=dict.fromkeys(STAGES, READY), windowSeconds=3600),
        proof_wanted=True,
    )
    status = runtime_status(given, {})
    assert len(msgspec.json.encode(status)) < 32 * 1024
    check_written(SandboxRuntimeStatus, status)
    assert status["poolCount"] == 500
    assert len(status["pools"]) == 20
    assert len(status["issues"]) == 16
    assert all(len(row["nodes"]) == 1 for row in status["issues"])
    assert status["nodes"]["eligible"] == 5000


def test_names_of_ordinary_length_are_all_given() -> None:
    nodes = tuple(f"ip-10-0-0-{i}.eu-central-1.compute.internal" for i in range(5))
    status = runtime_status(fleet(issues=[issue(count=9, nodes=nodes)]), {})
    assert status["issues"][0]["nodes"] == list(nodes)


_NAMES = st.lists(st.text("abc", min_size=1, max_size=3), max_size=4).map(tuple)
_VERDICTS = st.builds(
    Verdict,
    serving=_NAMES,
    not_serving=_NAMES,
    unknown=_NAMES,
    quarantined=_NAMES,
    not_isolating=_NAMES,
    advice=st.none() | st.just(("key", "value")),
)
_ISSUES = st.lists(
    st.builds(
        issue,
        reason=st.sampled_from(Reason),
        count=st.integers(1, 9000),
        nodes=_NAMES.filter(bool),
        first_seen=st.floats(0, NOW),
        message=st.text(max_size=512),
    ),
    max_size=20,
    unique_by=lambda row: row.reason,
)


@settings(max_examples=60)
@given(
    st.builds(
        fleet,
        _VERDICTS,
        runtime=st.none() | st.just(RUNTIME),
        issues=_ISSUES,
        evidence=st.lists(st.builds(kind, st.sampled_from(Isolation)), max_size=8),
        pools=_NAMES,
        sandboxes=st.dictionaries(st.sampled_from(SandboxState), st.integers(0, 9)),
        startup=st.none() | st.just(STARTUP),
        proof_wanted=st.booleans(),
        proven=st.booleans(),
    )
)
def test_it_always_fits_the_api_and_stands_still(given: RuntimeStatusInput) -> None:
    status = runtime_status(given, {})
    check_written(SandboxRuntimeStatus, status)
    assert runtime_status(given, status) == status
    nodes = dict(status["nodes"])
    assert nodes.pop("eligible") == sum(nodes.values())
    ready, healthy = (condition(status, type_)["status"] for type_ in ("Ready", "Healthy"))
    assert healthy in {"True": ("True", "False"), "Unknown": ("Unknown", "False")}.get(
        ready, ("False",)
    )
    if given.proof_wanted and not given.proven:
        assert ready != "True"
