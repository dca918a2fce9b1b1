"""What a pool says of nodes that are kept out, of proof, and of what is wrong."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxpool.api.reasons import Reason
from sandboxpool.api.v1alpha1 import SandboxPoolStatus
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.pools.decide import decide
from sandboxpool.pools.plan import CreateBackoff, PoolInput
from sandboxpool.pools.status import pool_status
from sandboxpool.runtimes.diagnosis import SEVERITY, Failure
from sandboxpool.runtimes.evidence import Isolation
from sandboxpool.runtimes.quarantine import Quarantine
from sandboxpool.runtimes.verdict import Verdict
from sandboxpool.sandboxes.members import Member
from support.builders import (
    MISSING,
    NOW,
    facts,
    member,
    members,
    pool,
    pool_input,
    quarantine,
)
from support.schema import check_written

W, S, U, STRANDED = (
    SandboxState.WARM,
    SandboxState.STARTING,
    SandboxState.UNPROVEN,
    SandboxState.STRANDED,
)
NO_SHIM, NO_KVM = quarantine(), quarantine(Reason.KVM_UNAVAILABLE, message="no /dev/kvm", age=90)


def computed(given: PoolInput) -> dict[str, Any]:
    status = pool_status(pool(), given, decide(given), None)
    check_written(SandboxPoolStatus, status)
    return status


def of(given: PoolInput, type_: str) -> dict[str, Any]:
    (found,) = [c for c in computed(given)["conditions"] if c["type"] == type_]
    return dict(found)


def has(given: PoolInput, type_: str, status: str, reason: str, *in_message: str) -> None:
    found = of(given, type_)
    assert (found["status"], found["reason"]) == (status, reason), found["message"]
    for text in in_message:
        assert text in found["message"]


def kept_out(*quarantines: tuple[str, Quarantine], **verdict: Any) -> dict[str, Any]:
    nodes = tuple(sorted(node for node, _ in quarantines))
    return {"verdict": Verdict(quarantined=nodes, **verdict), "quarantines": quarantines}


# --- NodesServing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "status", "reason", "in_message"),
    [
        pytest.param(
            kept_out(("a", NO_SHIM), ("b", NO_SHIM)),
            "False",
            "ShimMissing",
            ["kept out: 2 quarantined", "'runsc'", "such as a: ShimMissing: no shim binary"],
            id="all quarantined for one cause",
        ),
        pytest.param(
            kept_out(("a", NO_SHIM), ("b", NO_KVM), not_serving=("c",)),
            "False",
            "AllNodesQuarantined",
            ["kept out: 2 quarantined", "such as a"],
            id="all quarantined for several",
        ),
        pytest.param(
            {"verdict": Verdict(quarantined=("a",))},
            "False",
            "AllNodesQuarantined",
            ["no longer known"],
            id="all quarantined and nobody knows why",
        ),
        pytest.param(
            kept_out(("a", NO_SHIM), serving=("b", "c"), not_serving=("d",)),
            "True",
            "NodeQuarantined",
            ["2 of 4", "1 quarantined", "such as a: ShimMissing"],
            id="some quarantined",
        ),
        pytest.param(
            kept_out(("a", NO_SHIM), unknown=("b",)),
            "Unknown",
            "HandlersUnknown",
            ["1 of 2", "1.31", "quarantined, such as a: ShimMissing"],
            id="quarantined where none can say",
        ),
        pytest.param(
            {"verdict": Verdict(unknown=("a",), not_serving=("b", "c"))},
            "Unknown",
            "HandlersUnknown",
            ["1 of 3", "do not report"],
            id="some cannot say and the others do not serve",
        ),
        pytest.param(
            {"verdict": Verdict(not_isolating=("a", "b"))},
            "False",
            "IsolationNotProven",
            ["a, b", "own kernel", "isolationProof to None"],
            id="none isolates",
        ),
        pytest.param(
            kept_out(("a", NO_SHIM), not_isolating=("b",)),
            "False",
            "ShimMissing",
            ["such as a"],
            id="quarantined comes before not isolating",
        ),
        pytest.param(
            {"verdict": Verdict(serving=("a",), not_isolating=("b",))},
            "True",
            "HandlerServed",
            ["1 of 2"],
            id="one does not isolate",
        ),
        pytest.param(
            {"verdict": Verdict(serving=("a",), unproven=("b", "c"))},
            "True",
            "HandlerServed",
            ["1 of 3", "2 give no proof", "(b, c)"],
            id="some give no proof",
        ),
        pytest.param(
            {
                "verdict": Verdict(not_serving=("a",)),
                "backoff": CreateBackoff(1, NOW + 600, Reason.AUTOSCALER_ADDS_WRONG_NODES, "wrong"),
            },
            "False",
            "AutoscalerAddsWrongNodes",
            ["scheduling.nodeSelector", "'runsc'"],
            id="an autoscaler adds wrong nodes",
        ),
        pytest.param(
            {
                "verdict": Verdict(serving=("a",)),
                "backoff": CreateBackoff(1, NOW + 600, Reason.AUTOSCALER_ADDS_WRONG_NODES, "wrong"),
            },
            "True",
            "HandlerServed",
            [],
            id="it has added the right one at last",
        ),
        pytest.param(
            {"verdict": Verdict(serving=("a",), not_serving=("b",), advice=("rt", "gvisor"))},
            "True",
            "SomeNodesNotServing",
            ["1 of 2", "(b)", "nodeSelector", "{rt: 'gvisor'}"],
            id="advice names the label",
        ),
        pytest.param(
            {"verdict": Verdict(serving=("a",), not_serving=("b",))},
            "True",
            "SomeNodesNotServing",
            ["label the nodes that serve it"],
            id="or to make one",
        ),
        pytest.param(
            {"verdict": Verdict(serving=("a",), by_hostname=True, excluded=("b", "c"))},
            "True",
            "ExcludedByHostname",
            ["1 of 1", "2 excluded hostnames", "Karpenter", "nodes.exclusionLabels"],
            id="what hostnames cost",
        ),
    ],
)
def test_nodes_serving(
    fields: dict[str, Any], status: str, reason: str, in_message: list[str]
) -> None:
    has(pool_input(replicas=2, **fields), "NodesServing", status, reason, *in_message)


# --- IsolationProven -----------------------------------------------------------------------------


def unproven(name: str, isolation: Isolation | None, node: str = "a") -> Member:
    given: dict[str, Any] = {"isolation": isolation, "proof_wanted": True, "evidence": f"by {name}"}
    return member(name, U, node=facts(node), **given)


REFUTED = member(
    "refuted", STRANDED, node=facts("b"), isolation=Isolation.NOT_PROVEN, proof_wanted=True
)
PROVEN = member("proven", W, isolation=Isolation.PROVEN, proof_wanted=True)


@pytest.mark.parametrize(
    ("stock", "fields", "status", "reason", "in_message"),
    [
        pytest.param([], {}, "Unknown", "EvidencePending", ["no sandbox"], id="nothing is there"),
        pytest.param(
            members(S, 2), {}, "Unknown", "EvidencePending", ["no sandbox"], id="nothing is ready"
        ),
        pytest.param([PROVEN], {}, "True", "IsolationProven", ["every warm"], id="proven"),
        pytest.param(
            [unproven("x", None), PROVEN],
            {},
            "Unknown",
            "EvidencePending",
            ["1 ready", "of a"],
            id="one waits",
        ),
        pytest.param(
            [unproven("x", None, "b"), unproven("y", Isolation.UNAVAILABLE), PROVEN],
            {},
            "False",
            "EvidenceUnavailable",
            ["1 ready", "on a: by y"],
            id="one will never be proven",
        ),
        pytest.param(
            [unproven("y", Isolation.UNAVAILABLE), PROVEN],
            {"verdict": Verdict(serving=("b",), unproven=("a",))},
            "False",
            "EvidenceUnavailable",
            ["replaced on nodes with evidence"],
            id="another node is proven",
        ),
        pytest.param(
            [unproven("y", Isolation.UNAVAILABLE), REFUTED, PROVEN],
            {},
            "False",
            "IsolationNotProven",
            ["on b ", "own kernel"],
            id="one is refuted",
        ),
        pytest.param(
            [PROVEN],
            {"verdict": Verdict(serving=("a",), not_isolating=("c",))},
            "False",
            "IsolationNotProven",
            ["on c "],
            id="a node is refuted, though nothing of the pool is on it",
        ),
        pytest.param(
            [
                member(
                    "claimed",
                    SandboxState.CLAIMED,
                    proof_wanted=True,
                    isolation=Isolation.NOT_PROVEN,
                )
            ],
            {},
            "Unknown",
            "EvidencePending",
            [],
            id="what is claimed was judged when it was handed out",
        ),
        pytest.param(
            [PROVEN],
            {"resolution": MISSING, "verdict": Verdict()},
            "True",
            "IsolationProven",
            [],
            id="without its class",
        ),
    ],
)
def test_isolation_proven(
    stock: list[Member], fields: dict[str, Any], status: str, reason: str, in_message: list[str]
) -> None:
    given = pool_input(stock, replicas=2, isolationProof="PerNode", **fields)
    has(given, "IsolationProven", status, reason, *in_message)


def test_a_pool_that_requires_no_proof_does_not_report_any() -> None:
    status = computed(pool_input([REFUTED], isolationProof="None"))
    assert "IsolationProven" not in [c["type"] for c in status["conditions"]]


# --- Ready and Warm ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stock", "fields", "reason"),
    [
        ([], kept_out(("a", NO_SHIM)), "ShimMissing"),
        ([], {"verdict": Verdict(not_isolating=("a",))}, "IsolationNotProven"),
        ([unproven("x", Isolation.UNAVAILABLE)], {}, "EvidenceUnavailable"),
        ([unproven("x", None)], {}, "Filling"),
        (
            [unproven("x", Isolation.UNAVAILABLE)],
            kept_out(("a", NO_SHIM), not_serving=("b",)),
            "ShimMissing",
        ),
        ([unproven("x", Isolation.UNAVAILABLE)], {"resolution": MISSING}, "RuntimeClassNotFound"),
    ],
)
def test_a_pool_that_is_not_ready_names_the_first_cause(
    stock: list[Member], fields: dict[str, Any], reason: str
) -> None:
    given = pool_input(stock, isolationProof="PerNode", **fields)
    has(given, "Ready", "False", reason)
    types = [c["type"] for c in computed(given)["conditions"]]
    assert types == [
        "Ready",
        "RuntimeResolved",
        "NodesServing",
        "TemplateAccepted",
        "IsolationProven",
        "Warm",
        "UpToDate",
        "PodsGuarded",
    ]


def test_what_goes_wrong_elsewhere_does_not_make_a_pool_unready_that_has_something_warm() -> None:
    given = pool_input([PROVEN, REFUTED], replicas=3, isolationProof="PerNode")
    has(given, "Ready", "True", "SandboxWarm", "1 of 3")


@pytest.mark.parametrize(
    ("stuck", "reason", "in_message"),
    [
        (
            member("stuck", STRANDED, node=facts("a"), ready=False, quarantined=True),
            "NodeQuarantined",
            "node a is quarantined",
        ),
        (member("late", S, age=999), "SandboxStartTimeout", "no cause was found"),
    ],
)
def test_while_a_failed_pod_is_deleted_its_cause_is_reported(
    stuck: Member, reason: str, in_message: str
) -> None:
    has(pool_input([stuck]), "Warm", "False", reason, in_message)


# --- Issues --------------------------------------------------------------------------------------


def issues(given: PoolInput) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = computed(given)["runtime"]["issues"]
    return listed


def test_quarantined_nodes_are_issues_by_cause_and_the_worst_comes_first() -> None:
    many = [(f"n{i}", quarantine(Reason.VM_START_TIMEOUT, age=i)) for i in range(1, 8)]
    found = issues(pool_input(**kept_out(("z", NO_SHIM), *many)))
    assert [(i["reason"], i["count"]) for i in found] == [
        ("ShimMissing", 1),
        ("VMStartTimeout", 7),
    ]
    assert found[1]["nodes"] == ["n1", "n2", "n3", "n4", "n5"]
    assert found[1]["since"] == "2023-11-14T22:13:13Z"
    assert found[0]["message"] == "no shim binary"


def test_a_reason_is_reported_once_for_nodes_or_else_for_sandboxes() -> None:
    failure = Failure(Reason.SHIM_MISSING, "from a sandbox", "a")
    pulling = Failure(Reason.IMAGE_PULL_FAILED, "ErrImagePull", "b", self_healing=True)
    stock = [
        member("one", S, node=facts("a"), failure=failure),
        member("two", S, node=facts("b"), failure=pulling),
    ]
    found = issues(pool_input(stock, **kept_out(("a", NO_SHIM))))
    assert [(i["reason"], i["message"]) for i in found] == [
        ("ShimMissing", "no shim binary"),
        ("ImagePullFailed", "ErrImagePull"),
    ]


def test_issues_are_bounded() -> None:
    stock = [
        member(f"pod-{i}", S, node=facts("a"), failure=Failure(reason, "x" * 512, "a"))
        for i, reason in enumerate(SEVERITY)
    ]
    assert len(issues(pool_input(stock, replicas=99))) == 8


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(Reason)), max_size=6),
    st.lists(st.sampled_from(SEVERITY), max_size=5),
    st.sampled_from(["None", "PerNode", "PerSandbox"]),
    st.booleans(),
)
def test_every_reason_can_be_an_issue(
    quarantines: list[tuple[str, Reason]], failures: list[Reason], proof: str, some_serve: bool
) -> None:
    """Also not one that no failure is named by: a record may be damaged."""
    serving = ("node-1",) if some_serve else ()
    fields = kept_out(
        *((node, quarantine(reason)) for node, reason in quarantines), serving=serving
    )
    stock = [
        member(f"pod-{i}", state, node=facts("a"), failure=Failure(reason, "text", "a"))
        for i, (reason, state) in enumerate(
            (r, s) for r in failures for s in (S, SandboxState.FAILED)
        )
    ]
    status = computed(pool_input(stock, isolationProof=proof, **fields))
    assert all(c["reason"] and c["message"] for c in status["conditions"])


@pytest.mark.parametrize(
    ("guarded", "status", "reason"),
    [(True, "True", "AdmissionPolicyInstalled"), (False, "False", "NoAdmissionPolicy")],
)
def test_a_pool_reports_whether_its_pods_can_be_forged(
    guarded: bool, status: str, reason: str
) -> None:
    given = pool_input(members(SandboxState.WARM, 2), guarded=guarded, replicas=2)
    has(given, "PodsGuarded", status, reason)
    assert of(given, "Ready")["status"] == "True", "it is no reason to page anybody"
