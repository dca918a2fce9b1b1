"""What a pool's status says, to people and to alerts."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxpool.api.reasons import Reason
from sandboxpool.api.times import timestamp
from sandboxpool.api.v1alpha1 import SandboxPoolStatus, UnfitPoolStatus
from sandboxpool.cluster.pools import parse, sandbox_counts
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.pools.decide import decide
from sandboxpool.pools.plan import CreateBackoff, PoolInput
from sandboxpool.pools.status import invalid_status, pool_status
from sandboxpool.runtimes.diagnosis import Failure
from sandboxpool.runtimes.resolve import resolve
from sandboxpool.runtimes.verdict import Verdict
from sandboxpool.sandboxes.members import Member
from support.builders import (
    CLASS_UID,
    MISMATCH,
    MISSING,
    NOT_CHECKED,
    NOW,
    REJECTED,
    REVISION,
    facts,
    member,
    members,
    pool,
    pool_body,
    pool_input,
    runtime,
)
from support.schema import check_written

TYPES = [
    "Ready",
    "RuntimeResolved",
    "NodesServing",
    "TemplateAccepted",
    "Warm",
    "UpToDate",
    "PodsGuarded",
]
NO_SANDBOX = Failure(Reason.SANDBOX_CREATE_FAILED, "no runtime for runsc is configured", "node-1")


def computed(given: PoolInput, before: Any = None, **of_pool: Any) -> dict[str, Any]:
    return pool_status(pool(status=before, **of_pool), given, decide(given), None)


def of(status: dict[str, Any], type_: str) -> dict[str, Any]:
    (found,) = [c for c in status["conditions"] if c["type"] == type_]
    return dict(found)


def brief(status: dict[str, Any], type_: str) -> tuple[str, str]:
    found = of(status, type_)
    return found["status"], found["reason"]


INPUTS: dict[str, PoolInput] = {
    "full": pool_input(members(SandboxState.WARM, 2), replicas=2),
    "empty": pool_input(replicas=2),
    "no class": pool_input(resolution=MISSING, verdict=Verdict()),
    "another handler": pool_input(resolution=MISMATCH),
    "refused": pool_input(template=REJECTED),
    "not checked": pool_input(template=NOT_CHECKED),
    "no node": pool_input(verdict=Verdict()),
    "none serves": pool_input(verdict=Verdict(not_serving=("a", "b"))),
    "none says": pool_input(verdict=Verdict(unknown=("a",))),
    "by hostname": pool_input(
        verdict=Verdict(serving=("a",), not_serving=("b",), by_hostname=True, excluded=("b",))
    ),
    "paused": pool_input(paused=True),
    "clamped": pool_input(members(SandboxState.CLAIMED, 2), replicas=3, maxSandboxes=2),
    "quota": pool_input(
        backoff=CreateBackoff(2, NOW + 9, Reason.QUOTA_EXCEEDED, "exceeded quota: p")
    ),
    "failing": pool_input([member(state=SandboxState.STARTING, node=facts(), failure=NO_SANDBOX)]),
    "zero": pool_input(replicas=0),
    "rolling": pool_input([member(revision="old")]),
}


@pytest.mark.parametrize("name", INPUTS)
def test_every_condition_is_set_every_time_and_fits_the_api(name: str) -> None:
    status = computed(INPUTS[name])
    assert [c["type"] for c in status["conditions"]] == TYPES
    assert all(c["reason"] and c["message"] for c in status["conditions"])
    check_written(SandboxPoolStatus, status)


@pytest.mark.parametrize(
    ("name", "type_", "status", "reason", "in_message"),
    [
        ("full", "Ready", "True", "SandboxWarm", "2 of 2 are warm"),
        ("full", "Warm", "True", "AtTarget", "2 of 2 are warm"),
        ("full", "UpToDate", "True", "AsExpected", "newest"),
        ("full", "NodesServing", "True", "HandlerServed", "2 of 2"),
        ("empty", "Ready", "False", "Filling", "0 of 2"),
        ("no class", "Ready", "False", "RuntimeClassNotFound", "create it"),
        ("no class", "NodesServing", "Unknown", "RuntimeClassNotFound", "cannot be checked"),
        ("no class", "Warm", "False", "RuntimeClassNotFound", "create it"),
        (
            "another handler",
            "Ready",
            "False",
            "HandlerMismatch",
            "until the class or spec.expectedHandler",
        ),
        ("refused", "Ready", "False", "TemplateRejected", "correct spec.template"),
        ("not checked", "TemplateAccepted", "Unknown", "TemplateNotChecked", "away"),
        ("no node", "NodesServing", "False", "NoEligibleNode", "add such a node"),
        ("none serves", "NodesServing", "False", "NoNodeServes", "configure it"),
        ("none serves", "Ready", "False", "NoNodeServes", "configure it"),
        ("none says", "NodesServing", "Unknown", "HandlersUnknown", "1.31"),
        ("by hostname", "NodesServing", "True", "ExcludedByHostname", "patch nodes"),
        ("paused", "Warm", "False", "Paused", "set spec.paused to false"),
        ("clamped", "Warm", "False", "ClampedByMaxSandboxes", "raise it"),
        ("quota", "Warm", "False", "QuotaExceeded", "exceeded quota"),
        ("failing", "Warm", "False", "SandboxCreateFailed", "no runtime for runsc"),
        ("failing", "Ready", "False", "SandboxCreateFailed", "node-1"),
        ("zero", "Ready", "True", "ScaledToZero", "0"),
        ("zero", "Warm", "True", "ScaledToZero", "0"),
        ("rolling", "UpToDate", "False", "Rolling", "1 of an older revision"),
    ],
)
def test_conditions_name_cause_and_cure(
    name: str, type_: str, status: str, reason: str, in_message: str
) -> None:
    found = computed(INPUTS[name])
    assert brief(found, type_) == (status, reason)
    assert in_message in of(found, type_)["message"]


def test_counts() -> None:
    stock = [
        *members(SandboxState.WARM, 3),
        *members(SandboxState.STARTING, 2, node=facts()),
        *members(SandboxState.CLAIMED, 4),
        *members(SandboxState.STOPPING, 1),
        member("old", revision="old"),
        member("bad", SandboxState.FAILED, failure=Failure(Reason.POD_FAILED, "exit code 1")),
    ]
    status = computed(pool_input(stock, replicas=9))
    counts = ("replicas", "warm", "starting", "claimed", "stopping", "outdated", "failed")
    assert [status[c] for c in counts] == [7, 4, 2, 4, 1, 1, 1]
    assert status["runtime"]["servingOfEligible"] == "2/2"


def test_what_is_kept_out_is_counted_apart() -> None:
    stock = [
        *members(SandboxState.WARM, 2),
        *members(SandboxState.UNPROVEN, 3),
        member("moving", SandboxState.STRANDED, node=facts("q"), ready=True, quarantined=True),
        member("former", SandboxState.WARM, runtime_uid="former"),
    ]
    verdict = Verdict(
        serving=("a",),
        not_serving=("b", "c"),
        unknown=("d",),
        quarantined=("q",),
        not_isolating=("u", "v"),
        unproven=("w",),
    )
    status = computed(pool_input(stock, replicas=9, verdict=verdict))
    assert [status[k] for k in ("replicas", "warm", "unproven", "stranded")] == [7, 2, 3, 2]
    assert status["runtime"]["nodes"] == {
        "eligible": 8,
        "serving": 1,
        "notServing": 2,
        "unknown": 1,
        "quarantined": 1,
        "notIsolating": 2,
        "unproven": 1,
    }
    assert status["runtime"]["servingOfEligible"] == "1/8"
    check_written(SandboxPoolStatus, status)


def test_a_class_shows_what_it_adds_to_each_sandbox() -> None:
    heavy = resolve("gvisor", None, {"gvisor": runtime(overhead=[("memory", "130Mi")])})
    status = computed(pool_input(members(SandboxState.WARM, 1), resolution=heavy))
    assert status["runtime"]["overhead"] == {"memory": "130Mi"}
    assert status["outdated"] == 1, "it was made without"
    assert brief(status, "UpToDate") == ("False", "Rolling")


def test_ready_stays_while_a_pool_refills() -> None:
    seen = set()
    for warm in (3, 2, 1, 2, 3):
        stock = [
            *members(SandboxState.WARM, warm),
            *members(SandboxState.STARTING, 3 - warm, node=facts()),
        ]
        seen.add(brief(computed(pool_input(stock, replicas=3)), "Ready"))
    assert seen == {("True", "SandboxWarm")}


def test_transition_times_move_only_with_the_status() -> None:
    first = computed(INPUTS["empty"])
    later = dataclasses.replace(INPUTS["no class"], now=NOW + 60)
    second = computed(later, first)
    times = {c["type"]: c["lastTransitionTime"] for c in second["conditions"]}
    assert times == {
        "Ready": timestamp(NOW),  # False before and after, for another reason
        "RuntimeResolved": timestamp(NOW + 60),
        "NodesServing": timestamp(NOW + 60),
        "TemplateAccepted": timestamp(NOW),
        "Warm": timestamp(NOW),
        "UpToDate": timestamp(NOW),
        "PodsGuarded": timestamp(NOW),
    }


@pytest.mark.parametrize("name", INPUTS)
def test_the_same_input_later_gives_the_same_status(name: str) -> None:
    first = computed(INPUTS[name])
    again = computed(dataclasses.replace(INPUTS[name], now=NOW + 3), first)
    assert again == first


def test_a_missing_class_does_not_erase_what_was_known_of_it() -> None:
    first = computed(INPUTS["full"])
    second = computed(INPUTS["no class"], first)
    assert (second["runtime"]["uid"], second["runtime"]["handler"]) == ("class-uid", "runsc")


def test_a_recreated_class_is_reported_while_its_former_sandboxes_live() -> None:
    renewed = resolve("gvisor", None, {"gvisor": runtime(uid="new", handler="kata")})
    stock = [member("claimed", SandboxState.CLAIMED), member("warm")]
    found = of(computed(pool_input(stock, resolution=renewed)), "RuntimeResolved")
    assert (found["status"], found["reason"]) == ("True", "RuntimeChanged")
    assert "'kata'" in found["message"]


def test_sandboxes_that_no_claim_may_have_do_not_make_a_paused_pool_ready() -> None:
    given = pool_input([member(runtime_uid="former")], paused=True)
    assert brief(computed(given), "Ready")[0] == "False"


UNCLAIMED = ("warm", "starting", "unproven", "unready", "stranded", "failed")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(SandboxState),
            st.sampled_from(["old", REVISION]),
            st.sampled_from(["former", CLASS_UID]),
        ),
        max_size=12,
    )
)
def test_the_counts_add_up(kinds: list[tuple[SandboxState, str, str]]) -> None:
    stock = [
        member(
            f"m{number}",
            state,
            revision=revision,
            runtime_uid=runtime_uid,
        )
        for number, (state, revision, runtime_uid) in enumerate(kinds)
    ]
    status = computed(pool_input(stock, replicas=5))
    assert status["replicas"] == sum(status[key] for key in UNCLAIMED)
    others = sum(status[key] for key in ("claimed", "ended", "stopping"))
    assert status["replicas"] + others == len(stock)
    assert status["outdated"] <= status["replicas"]
    # What is shown of the class says the same, in the same words.
    pool = parse(pool_body(status=status), None)
    shown = sandbox_counts(pool)
    assert {key: shown[SandboxState(key)] for key in UNCLAIMED} == {k: status[k] for k in UNCLAIMED}
    assert sum(shown.values()) == len(stock)


def test_sandboxes_of_another_runtime_count_as_outdated() -> None:
    assert computed(pool_input([member(runtime_uid="former")]))["outdated"] == 1


def stuck(name: str, node: str, failure: Failure) -> Member:
    return member(name, SandboxState.STARTING, node=facts(node), failure=failure)


def test_issues_are_grouped_by_cause_and_the_worst_comes_first() -> None:
    pulling = Failure(Reason.IMAGE_PULL_FAILED, "main: ErrImagePull", "a", self_healing=True)
    stock = [stuck(f"a{i}", "a", pulling) for i in range(3)]
    stock += [stuck(f"b{i}", f"n{i}", NO_SANDBOX) for i in range(7)]
    issues = computed(pool_input(stock, replicas=10))["runtime"]["issues"]
    assert [(i["reason"], i["count"]) for i in issues] == [
        ("SandboxCreateFailed", 7),
        ("ImagePullFailed", 3),
    ]
    assert issues[0]["nodes"] == ["n0", "n1", "n2", "n3", "n4"]
    assert issues[0]["message"] == NO_SANDBOX.message


def test_an_issue_keeps_its_start_time() -> None:
    given = INPUTS["failing"]
    first = computed(given)
    second = computed(dataclasses.replace(given, now=NOW + 90), first)
    assert second["runtime"]["issues"][0]["since"] == timestamp(NOW)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
conditions_like = st.lists(
    junk
    | st.fixed_dictionaries(
        {"type": st.sampled_from(TYPES) | junk},
        optional={"status": st.just("True") | junk, "lastTransitionTime": junk},
    ),
    max_size=4,
)
issues_like = st.lists(
    junk
    | st.fixed_dictionaries(
        {"reason": st.just("SandboxCreateFailed") | junk}, optional={"since": junk}
    ),
    max_size=3,
)
damaged = st.fixed_dictionaries(
    {},
    optional={
        "conditions": junk | conditions_like,
        "runtime": junk
        | st.fixed_dictionaries(
            {},
            optional={
                "className": st.just("gvisor") | junk,
                "uid": junk,
                "handler": junk,
                "issues": junk | issues_like,
            },
        ),
        "warm": junk,
    },
)


@settings(max_examples=60)
@given(damaged, st.sampled_from(sorted(INPUTS)))
def test_a_damaged_status_never_raises_and_is_mended(before: Any, name: str) -> None:
    check_written(SandboxPoolStatus, computed(INPUTS[name], before))
    check_written(UnfitPoolStatus, invalid_status(pool(status=before), NOW))


def test_a_pool_that_does_not_fit_the_api_reports_the_field() -> None:
    bad = pool(replicas=-1)
    (condition,) = invalid_status(bad, NOW)["conditions"]
    assert (condition["type"], condition["status"]) == ("Ready", "False")
    assert "spec.replicas" in condition["message"]
