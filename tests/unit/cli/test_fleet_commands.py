"""The commands about the fleet and its pools: findings and tables from objects."""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from sandboxpool.api.opensandbox import LABEL_OPENSANDBOX
from sandboxpool.cli import checks, doctor, findings, manifest, report, runtimes, status, top
from sandboxpool.cli.checks import Access, Snapshot
from sandboxpool.cli.findings import Finding, Outcome, Severity
from sandboxpool.cli.output import Output
from sandboxpool.cli.releases import lease_name
from sandboxpool.cli.report import Section
from support.scriptedcli import Cli
from support.scriptedio import answer, failure

Object = dict[str, Any]
GOLDEN = Path(__file__).parent / "golden"
NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


def condition(type_: str, status_: str, reason: str, message: str = "") -> Object:
    return {"type": type_, "status": status_, "reason": reason, "message": message}


def pool(*conditions: Object, **fields: Any) -> Object:
    return {
        "metadata": {"namespace": "team", "name": "python", "uid": "p1", "generation": 2},
        "spec": {"runtimeClassName": "gvisor"},
        "status": {
            "observedGeneration": 2,
            "target": 3,
            "warm": 0,
            "starting": 1,
            "claimed": 2,
            "conditions": list(conditions),
            **fields,
        },
    }


BROKEN = pool(
    condition("Ready", "False", "TemplateNotChecked", "not checked yet"),
    condition("RuntimeResolved", "True", "RuntimeClassFound"),
    condition("NodesServing", "False", "NoNodeServes", "0 of 2 nodes have handler runsc"),
    condition("TemplateAccepted", "Unknown", "TemplateNotChecked", "not checked yet"),
    condition("UpToDate", "False", "Rolling", "1 of 3 sandboxes is outdated"),
    condition("Warm", "False", "Filling", "0 of 3 sandboxes are warm"),
    runtime={
        "issues": [
            {
                "reason": "HandlerNotConfigured",
                "count": 2,
                "nodes": ["node-a", "node-b"],
                "since": "2026-01-01T11:50:00Z",
                "message": "no runtime for runsc is configured: add it to containerd",
            }
        ]
    },
    startup={
        "windowSeconds": 3600,
        "stages": {
            "ready": {
                "p50Milliseconds": 900,
                "p95Milliseconds": 1500,
                "p99Milliseconds": 2000,
                "samples": 40,
            },
            "scheduled": {
                "p50Milliseconds": 10,
                "p95Milliseconds": 20,
                "p99Milliseconds": 30,
                "samples": 40,
            },
        },
    },
)
HEALTHY = pool(condition("Ready", "True", "SandboxWarm"), warm=3)


def claim(name: str, **fields: Any) -> Object:
    return {
        "metadata": {
            "namespace": "team",
            "name": name,
            "creationTimestamp": "2026-01-01T11:00:00Z",
        },
        "spec": {"poolName": "python"},
        "status": fields,
    }


CLAIMS = [
    claim("a", phase="Bound", source="Warm", boundAt="2026-01-01T11:00:00Z"),
    claim("b", phase="Bound", source="Warm", boundAt="2026-01-01T11:00:01Z"),
    claim("c", phase="Bound", source="Cold", boundAt="2026-01-01T11:00:09Z"),
    claim(
        "d",
        phase="Failed",
        finishedAt="2026-01-01T11:58:00Z",
        conditions=[condition("Bound", "False", "BindTimeout", "no sandbox within 300 s")],
    ),
]


def pod(node: str, *, ready: bool = True, claimed: bool = False, **metadata: Any) -> Object:
    labels = {"sandboxpool.io/claim-uid": "c1"} if claimed else {}
    return {
        "metadata": {"name": "x", "labels": labels, **metadata},
        "spec": {"nodeName": node},
        "status": {
            "phase": "Running",
            "conditions": [condition("Ready", "True" if ready else "False", "")],
        },
    }


PODS = [pod("node-b"), pod("node-a", ready=False), pod("node-b"), pod("node-a", claimed=True)]


def node(name: str, *handlers: str) -> Object:
    return {
        "metadata": {"name": name},
        "spec": {},
        "status": {
            "conditions": [condition("Ready", "True", "KubeletReady")],
            "nodeInfo": {"containerRuntimeVersion": "containerd://2.1.0"},
            "runtimeHandlers": [{"name": handler} for handler in ("", *handlers)],
        },
    }


NODES = [node("node-b", "runc"), node("node-a", "runc", "runsc")]


def runtime(name: str = "gvisor", *, serving: int = 1, used: int = 1, bad: int = 0) -> Object:
    return {
        "metadata": {"name": name},
        "status": {
            "exists": True,
            "handler": "runsc",
            "nodes": {
                "eligible": 2,
                "serving": serving,
                "notServing": 1,
                "unknown": 0,
                "quarantined": bad,
                "notIsolating": 0,
                "unproven": 0,
            },
            "servingOfEligible": f"{serving}/2",
            "pools": ["team/python"],
            "poolCount": used,
            "sandboxes": {"warm": 3},
            "issues": [
                {
                    "reason": "ShimMissing",
                    "handler": "runsc",
                    "count": 1,
                    "nodes": ["node-a"],
                    "lastSeen": "2026-01-01T11:59:00Z",
                    "message": "containerd-shim-runsc-v1 not found",
                }
            ]
            if bad
            else [],
            "evidence": [
                {
                    "isolation": "Proven",
                    "kernel": "Linux 4.4.0",
                    "nodes": 1,
                    "exampleNode": "node-a",
                    "lastProbed": "2026-01-01T11:00:00Z",
                    "message": "",
                }
            ],
            "conditions": [
                condition("Ready", "True", "HandlerServed"),
                condition("Healthy", "True", "AsExpected"),
                condition("IsolationProven", "True", "IsolationProven"),
            ],
        },
    }


def runtime_class(name: str = "gvisor") -> Object:
    return {"metadata": {"name": name}, "handler": "runsc"}


def crd(plural: str, version: str = "0.1.0") -> Object:
    return {
        "metadata": {
            "name": f"{plural}.sandboxpool.io",
            "annotations": {"sandboxpool.io/version": version},
        },
        "spec": {"group": "sandboxpool.io", "versions": [{"name": "v1alpha1", "served": True}]},
    }


def operator(
    namespace: str = "system", ready: int = 2, name: str = "sandboxpool", **env: str
) -> Object:
    variables = [{"name": f"SANDBOXPOOL_{key}", "value": value} for key, value in env.items()]
    return {
        "metadata": {
            "namespace": namespace,
            "name": name,
            "labels": {"app.kubernetes.io/version": "0.1.0"},
        },
        "spec": {
            "replicas": 2,
            "template": {"spec": {"containers": [{"env": variables}]}},
        },
        "status": {"readyReplicas": ready},
    }


def limited(name: str, *namespaces: str) -> Object:
    """An operator of a release that is limited to namespaces."""
    return operator(name=name, RELEASE=name, WATCH_NAMESPACES=",".join(namespaces))


def lease(
    namespace: str = "system",
    renewed: str = "2026-01-01T11:59:58.000000Z",
    name: str = "sandboxpool",
) -> Object:
    return {
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "holderIdentity": "pod-1",
            "leaseDurationSeconds": 15,
            "renewTime": renewed,
        },
    }


def suspected() -> Object:
    """Sandboxes have failed on a node that is still used."""
    made = runtime(bad=1)
    made["status"]["nodes"]["quarantined"] = 0
    return made


def unproven(isolation: str, *, serving: int = 1) -> Object:
    made = runtime(serving=serving)
    made["status"]["evidence"][0] |= {"isolation": isolation, "message": "the node's kernel"}
    made["status"]["conditions"][2] = condition("IsolationProven", "False", "Any")
    return made


def missing() -> Object:
    """A class that pools name and that does not exist."""
    made = runtime(serving=0)
    made["status"]["exists"] = False
    return made


def silent() -> Object:
    """Its nodes report no handlers."""
    made = runtime(serving=0)
    made["status"]["nodes"] |= {"notServing": 0, "unknown": 2}
    return made


def lost(name: str, labels: Object | None = None) -> Object:
    made = node(name, "runsc")
    made["metadata"]["labels"] = labels or {}
    made["status"]["conditions"] = [
        {
            **condition("Ready", "Unknown", "NodeStatusUnknown", "Kubelet stopped posting status."),
            "lastTransitionTime": "2026-01-01T11:40:00Z",
        }
    ]
    return made


def pending(created: str, name: str = "first", *conditions: Object) -> Object:
    made = claim(name, phase="Pending", conditions=list(conditions))
    made["metadata"]["creationTimestamp"] = f"2026-01-01T{created}Z"
    return made


def seen(**changes: Any) -> Snapshot:
    whole: dict[str, Any] = {
        "version": {"major": "1", "minor": "33", "gitVersion": "v1.33.1"},
        "crds": [crd(plural) for plural in ("sandboxpools", "sandboxclaims", "sandboxruntimes")],
        "deployments": [operator()],
        "leases": [lease()],
        "classes": [runtime_class()],
        "runtimes": [runtime()],
        "nodes": NODES,
        "pools": [HEALTHY],
        "access": [],
        "now": NOW,
    }
    return Snapshot(**{**whole, **changes})


SICK = {
    "deployments": [operator(), operator("other", ready=0)],
    "leases": [lease(renewed="2026-01-01T11:00:00Z")],
    "runtimes": [runtime(serving=0, bad=1)],
    "pools": [BROKEN],
    "access": [Access(verb="create", resource="pods/exec", namespace="team", allowed=False)],
}


def of_operators(deployments: list[Object], leases: list[Object]) -> list[tuple[str, str]]:
    """What is found about operators, and where."""
    found = checks.check(seen(deployments=deployments, leases=leases))
    wanted = ("SeveralOperators", "SeveralLeaders", "NoLeader", "OperatorNotReady")
    return [(one.what, one.where) for one in found if one.what in wanted]


def test_releases_with_namespaces_of_their_own_have_a_leader_each() -> None:
    deployments = [limited("one", "a", "b"), limited("two", "c")]
    assert of_operators(deployments, [lease(name="one"), lease(name="two")]) == []
    assert of_operators(deployments, [lease(name="one")]) == [("NoLeader", "deployment/system/two")]
    old = lease(name="two", renewed="2026-01-01T11:00:00Z")
    assert of_operators(deployments, [lease(name="one"), old]) == [
        ("NoLeader", "deployment/system/two")
    ]


@pytest.mark.parametrize("other", [limited("two", "b", "c"), operator(name="two")])
def test_releases_that_process_the_same_namespace_are_named(other: Object) -> None:
    apart = limited("three", "d") if other == limited("two", "b", "c") else None
    deployments = [limited("one", "a", "b"), other, *([apart] if apart else [])]
    leases = [lease(name=lease_name(deployment)) for deployment in deployments]
    assert of_operators(deployments, leases) == [("SeveralOperators", "cluster")]
    (text,) = [
        one.why
        for one in checks.check(seen(deployments=deployments))
        if one.what == "SeveralOperators"
    ]
    assert "system/one, system/two" in text
    assert "three" not in text


def test_a_healthy_cluster_has_no_finding_that_changes_the_exit_code() -> None:
    found = checks.check(seen())
    assert [one.what for one in found] == ["NodesWithoutHandler"]
    assert findings.outcome(found) is Outcome.HEALTHY


@pytest.mark.parametrize(
    ("changes", "what", "severity"),
    [
        ({"version": {"major": "1", "minor": "29+"}}, "KubernetesTooOld", Severity.ERROR),
        ({"crds": []}, "CRDMissing", Severity.ERROR),
        ({"crds": [crd("sandboxpools", "0.0.9")]}, "CRDVersionDiffers", Severity.WARNING),
        ({"deployments": [operator(), operator("b")]}, "SeveralOperators", Severity.ERROR),
        ({"deployments": [operator(ready=1)]}, "OperatorNotReady", Severity.WARNING),
        ({"deployments": [operator(ready=0)]}, "OperatorNotReady", Severity.ERROR),
        ({"leases": []}, "NoLeader", Severity.ERROR),
        ({"leases": [lease(renewed="2026-01-01T11:58:00Z")]}, "NoLeader", Severity.ERROR),
        ({"leases": [lease(), lease("b")]}, "SeveralLeaders", Severity.ERROR),
        ({"runtimes": [runtime(serving=0)]}, "ClassWithoutNodes", Severity.ERROR),
        ({"runtimes": [runtime(serving=0, used=0)]}, "ClassWithoutNodes", Severity.WARNING),
        (
            {"runtimes": [], "nodes": [node("a", "runc")]},
            "ClassWithoutNodes",
            Severity.WARNING,
        ),
        ({"runtimes": [runtime(bad=1)]}, "NodesQuarantined", Severity.WARNING),
        ({"runtimes": [runtime(serving=0, bad=1)]}, "NodesQuarantined", Severity.ERROR),
        ({"runtimes": [suspected()]}, "NodesSuspected", Severity.WARNING),
        ({"runtimes": [unproven("NotProven")]}, "NodesNotIsolating", Severity.WARNING),
        ({"runtimes": [unproven("NotProven", serving=0)]}, "NodesNotIsolating", Severity.ERROR),
        ({"runtimes": [unproven("Unavailable")]}, "NodesWithoutProof", Severity.WARNING),
        ({"nodes": [*NODES, lost("node-c")]}, "NodesNotReady", Severity.WARNING),
        ({"classes": [], "runtimes": [missing()]}, "RuntimeClassMissing", Severity.ERROR),
        ({"runtimes": [silent()]}, "HandlersNotReported", Severity.INFO),
        ({"claims": [pending("11:58:00")]}, "ClaimsWaiting", Severity.WARNING),
        ({"pools": [BROKEN]}, "PoolNotReady", Severity.ERROR),
        ({"pools": [pool()]}, "PoolNotSeen", Severity.WARNING),
        (
            {
                "pools": [
                    pool(
                        condition("Ready", "True", "A"),
                        condition("Warm", "False", "QuotaExceeded"),
                    )
                ]
            },
            "PoolAtRisk",
            Severity.WARNING,
        ),
        ({"access": SICK["access"]}, "MissingRight", Severity.WARNING),
    ],
)
def test_what_is_wrong_is_found(changes: Object, what: str, severity: Severity) -> None:
    found = {one.what: one for one in checks.check(seen(**changes))}
    assert found[what].severity is severity
    assert all((found[what].where, found[what].why, found[what].cure))


def only(what: str, **changes: Any) -> Finding:
    """The one finding of a kind."""
    (found,) = [one for one in checks.check(seen(**changes)) if one.what == what]
    return found


def test_nodes_that_are_not_ready_are_one_finding_with_the_kubelets_words_and_age() -> None:
    found = only("NodesNotReady", nodes=[*NODES, *(lost(f"lost-{n}") for n in range(5))])
    assert found.where == "nodes"
    assert found.why.startswith("5 of 7 nodes")
    assert "lost-0, lost-1, lost-2 and 2 more" in found.why
    assert "NodeStatusUnknown: Kubelet stopped posting status." in found.why
    assert found.since == "2026-01-01T11:40:00Z"
    assert "kubectl describe node lost-0" in found.cure
    assert only("NodesNotReady", nodes=[*NODES, lost("one")]).where == "node/one"


def test_a_node_that_no_class_selects_is_no_concern() -> None:
    class_ = {**runtime_class(), "scheduling": {"nodeSelector": {"sandboxes": "yes"}}}
    nodes = [*NODES, lost("other")]
    found = checks.check(seen(classes=[class_], nodes=nodes))
    assert "NodesNotReady" not in [one.what for one in found]
    chosen = lost("chosen", {"sandboxes": "yes"})
    assert only("NodesNotReady", classes=[class_], nodes=[*nodes, chosen]).where == "node/chosen"


def test_claims_that_wait_for_long_are_told_by_pool_with_the_reason_of_the_oldest() -> None:
    why = condition("Bound", "False", "WaitingForSandbox", "no sandbox is warm")
    claims = [pending("11:59:00", "later"), pending("11:50:00", "oldest", why)]
    found = only("ClaimsWaiting", claims=[*claims, pending("11:59:45", "new"), *CLAIMS])
    assert found.where == "sandboxpool/team/python"
    assert found.why.startswith("2 waiting")
    assert "oldest: WaitingForSandbox: no sandbox is warm" in found.why
    assert found.since == "2026-01-01T11:50:00Z"
    nowhere = condition("Bound", "False", "PoolNotFound", "no pool python")
    found = only("ClaimsWaiting", claims=[pending("11:50:00", "first", nowhere)])
    assert "create the pool" in found.cure


def test_a_claim_that_has_just_come_is_no_finding() -> None:
    assert findings.outcome(checks.check(seen(claims=[pending("11:59:45")]))) is Outcome.HEALTHY


def test_what_could_not_be_read_is_no_finding_about_the_cluster() -> None:
    unread = dict.fromkeys(
        (
            *("version", "crds", "deployments", "leases"),
            *("classes", "runtimes", "nodes", "pools", "claims"),
        )
    )
    assert checks.check(seen(**unread)) == []


def for_opensandbox(value: str) -> Object:
    """A pool of the namespace team with the label."""
    made = copy.deepcopy(HEALTHY)
    made["metadata"]["labels"] = {LABEL_OPENSANDBOX: value}
    return made


@pytest.mark.parametrize(
    ("value", "bridges", "found"),
    [
        ("Executor", [operator(OPENSANDBOX_NAMESPACES="other,team")], []),
        ("Prestarted", [operator(OPENSANDBOX_NAMESPACES="team")], []),
        ("Executor", [operator(OPENSANDBOX_NAMESPACES="other")], ["OpenSandboxNotServed"]),
        ("Executor", [], ["OpenSandboxNotServed"]),
        ("executor", [operator(OPENSANDBOX_NAMESPACES="team")], ["OpenSandboxLabelInvalid"]),
        (
            "Executor",
            [operator(ready=0, OPENSANDBOX_NAMESPACES="team")],
            ["OpenSandboxBridgeNotReady"],
        ),
        ("Executor", None, []),
        ("", [], []),
    ],
)
def test_doctor_says_what_keeps_opensandbox_from_a_pool(
    value: str, bridges: list[Object] | None, found: list[str]
) -> None:
    snapshot = seen(pools=[for_opensandbox(value)], bridges=bridges)
    made = [one for one in checks.check(snapshot) if one.what.startswith("OpenSandbox")]
    assert [one.what for one in made] == found
    assert all(one.severity is Severity.ERROR and one.cure for one in made)


def test_status_says_that_a_pool_is_open_to_opensandbox() -> None:
    def head(one: Object) -> list[str]:
        return report.lines(status.sections(one, [], [], NOW), wide=False)

    assert "Open to:  OpenSandbox (Prestarted)" in head(for_opensandbox("Prestarted"))
    assert not any("OpenSandbox" in line for line in head(HEALTHY))


def test_a_pool_that_fills_is_at_no_risk() -> None:
    filling = pool(condition("Ready", "True", "A"), condition("Warm", "False", "Filling"))
    found = checks.check(seen(pools=[filling]))
    assert findings.outcome(found) is Outcome.HEALTHY


def test_a_lease_that_the_clocks_may_explain_is_no_finding() -> None:
    assert not [
        one
        for one in checks.check(seen(leases=[lease(renewed="2026-01-01T11:59:00Z")]))
        if one.what == "NoLeader"
    ]


def test_nodes_that_report_no_handlers_may_serve_any() -> None:
    old = node("old")
    old["status"]["runtimeHandlers"] = []
    found = checks.check(seen(runtimes=[], nodes=[old]))
    assert found == []


def test_a_pool_that_is_not_ready_names_the_first_cause() -> None:
    assert [one.type for one in status.causes(BROKEN)] == [
        "TemplateAccepted",
        "NodesServing",
        "Warm",
        "UpToDate",
    ]


@pytest.mark.parametrize(
    ("sandbox", "state"),
    [
        (pod("a"), "ready"),
        (pod("a", ready=False), "not ready"),
        (pod("a", claimed=True), "claimed"),
        (pod("a", claimed=True, deletionTimestamp="2026-01-01T11:00:00Z"), "stopping"),
        ({"status": {"phase": "Failed"}}, "ended"),
    ],
)
def test_states_are_those_that_the_pod_says(sandbox: Object, state: str) -> None:
    assert status.sandbox_state(sandbox) == state


def test_the_claims_that_failed_last_come_first_and_lost_ones_are_among_them() -> None:
    lost = claim("lost", phase="Lost", finishedAt="2026-01-01T11:59:00Z")
    older = claim("older", phase="Failed", finishedAt="2026-01-01T11:00:00Z")
    said = report.lines(status.sections(pool(), [], [older, *CLAIMS, lost], NOW), wide=False)
    named = [word for line in said for word in line.split() if word.startswith("claim/")]
    assert named == ["claim/lost", "claim/d", "claim/older"]


def test_rates_are_of_claims_that_were_bound() -> None:
    assert (top.hit_rate(CLAIMS), top.latency(CLAIMS)) == ("66%", "1s")
    assert (top.hit_rate(CLAIMS[3:]), top.latency(CLAIMS[3:])) == ("", "")
    # Times in objects are whole seconds.
    assert top.latency(CLAIMS[:1]) == "<1s"


def test_a_warning_and_an_error_end_differently() -> None:
    warning = Finding(Severity.WARNING, "a", "b", "c", "d")
    error = Finding(Severity.ERROR, "a", "b", "c", "d")
    assert [findings.outcome(found) for found in ([], [warning], [warning, error])] == [0, 3, 4]
    assert findings.ordered([warning, error]) == [error, warning]


MANIFEST = {
    "apiVersion": "sandboxpool.io/v1alpha1",
    "kind": "SandboxPool",
    "metadata": {"name": "python"},
    "spec": {
        "runtimeClassName": "gvisor",
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}},
    },
}


def test_a_manifest_is_judged_by_classes_and_nodes() -> None:
    classes = [runtime_class()]
    assert manifest.check_runtime(MANIFEST, classes, NODES) == []
    assert manifest.check_runtime(MANIFEST, None, None) == []
    (missing,) = manifest.check_runtime(MANIFEST, [runtime_class("other")], NODES)
    assert missing.what == "ClassMissing"
    assert "other" in missing.cure
    (unserved,) = manifest.check_runtime(MANIFEST, classes, [node("a", "runc")])
    assert unserved.what == "ClassWithoutNodes"


def test_the_pod_of_a_manifest_has_its_template_and_class() -> None:
    made = manifest.pod_of(MANIFEST)
    assert made["metadata"]["labels"] == {"a": "b"}
    assert made["spec"] == {"containers": [], "runtimeClassName": "gvisor"}


@pytest.mark.parametrize(
    "documents",
    [[], [MANIFEST, MANIFEST], ["text"], [{"kind": "Pod"}], [{**MANIFEST, "metadata": 1}]],
)
def test_what_is_no_manifest_is_refused(documents: Sequence[object]) -> None:
    assert manifest.problem_of(documents)
    assert manifest.problem_of([MANIFEST]) == ""


REPORTS: dict[str, Callable[[], Sequence[Section]]] = {
    "doctor": lambda: doctor.sections(
        checks.facts(seen(**SICK)), findings.ordered(checks.check(seen(**SICK)))
    ),
    "doctor-healthy": lambda: doctor.sections(checks.facts(seen()), []),
    "status": lambda: status.sections(BROKEN, PODS, CLAIMS, NOW),
    "status-all": lambda: [Section("", status.summary([BROKEN, HEALTHY]))],
    "runtimes": lambda: [Section("", runtimes.fleet([runtime(bad=1)]))],
    "runtime": lambda: runtimes.sections(runtime(bad=1), NODES),
    "top": lambda: [Section("", top.usage([BROKEN, HEALTHY], CLAIMS))],
}


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("name", REPORTS)
def test_reports_look_as_in_the_golden_files(name: str, width: int) -> None:
    """SANDBOXPOOL_GOLDEN=1 writes them; look at the difference before it is committed."""
    written = io.StringIO()
    console = Console(file=written, width=width, color_system=None, highlight=False)
    console.print(report.renderable(Output(), REPORTS[name]()))
    text = "".join(f"{line.rstrip()}\n" for line in written.getvalue().splitlines())
    golden = GOLDEN / f"{name}-{width}.txt"
    if os.environ.get("SANDBOXPOOL_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["name", "status", "spec", "type"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@st.composite
def damaged(draw: st.DrawFn, whole: Object) -> Object:
    """An object in which some values are something else."""
    made = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        at: Any = made
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if not isinstance(at[key], dict | list) or draw(st.booleans()):
                at[key] = draw(ANYTHING)
                break
            at = at[key]
    return made


@settings(max_examples=150)
@given(
    st.fixed_dictionaries(
        {
            "pools": st.lists(damaged(BROKEN), max_size=2),
            "runtimes": st.lists(damaged(runtime(bad=1)), max_size=2),
            "nodes": st.lists(damaged(NODES[1]), max_size=2),
            "leases": st.lists(damaged(lease()), max_size=2),
            "deployments": st.lists(damaged(operator()), max_size=2),
            "bridges": st.lists(damaged(operator(OPENSANDBOX_NAMESPACES="a")), max_size=2),
            "classes": st.lists(damaged(runtime_class()), max_size=2),
            "crds": st.lists(damaged(crd("sandboxpools")), max_size=2),
        }
    ),
    st.lists(damaged(CLAIMS[3]) | damaged(CLAIMS[0]), max_size=2),
    st.lists(damaged(PODS[0]), max_size=2),
    damaged(MANIFEST),
)
def test_no_damaged_object_raises(
    read: Object, claims: list[Object], pods: list[Object], made: Object
) -> None:
    snapshot = seen(**read)
    found = checks.check(snapshot)
    report.lines(doctor.sections(checks.facts(snapshot), findings.ordered(found)), wide=True)
    for one in read["pools"]:
        report.lines(status.sections(one, pods, claims, NOW), wide=True)
    for one in read["runtimes"]:
        report.lines(runtimes.sections(one, read["nodes"]), wide=True)
    report.lines([Section("", runtimes.fleet(read["runtimes"]))], wide=True)
    report.lines([Section("", top.usage(read["pools"], claims))], wide=True)
    if not manifest.problem_of([made]):
        manifest.pod_of(made)
        manifest.check_runtime(made, read["classes"], read["nodes"])


DENIED = (
    'sandboxpools.sandboxpool.io is forbidden: User "u" cannot list resource "sandboxpools" in API'
    ' group "sandboxpool.io" at the cluster scope'
)
REVIEWS = "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


def test_doctor_looks_at_the_pools_of_a_namespace_where_it_may_not_at_all(cli: Cli) -> None:
    pools = "/apis/sandboxpool.io/v1alpha1"
    cli.says(f"GET {pools}/sandboxpools", failure(403, DENIED, "Forbidden"))
    cli.says(REVIEWS, answer({"status": {"allowed": True}}))
    cli.has(f"{pools}/namespaces/ns/sandboxpools", BROKEN)
    done = cli("doctor", "-o", "json")
    assert "sandboxpool/team/python" in done.stdout, done.stderr
