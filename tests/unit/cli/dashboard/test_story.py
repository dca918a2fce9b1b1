"""The story of one sandbox."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sandboxpool.cli.dashboard.story import Story, story
from support.fleetobjects import claim, condition, event, pod

Object = dict[str, Any]
NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


def whats(told: Story) -> list[str]:
    return [step.what for step in told.steps]


def test_a_sandbox_from_its_creation_to_its_expiry() -> None:
    made = claim("first", expiresAt="2026-01-01T12:30:00Z")
    told = story(made, pod(), [], NOW)
    assert whats(told) == [
        "Created",
        "Scheduled",
        "Sandbox and network are there",
        "Init containers are done",
        "Containers are ready",
        "Ready",
        "Container started",
        "Claimed",
        "Bound (Warm)",
        "Expires",
    ]
    assert [step.after for step in told.steps][4:] == ["2s", "2s", "2s", "60s", "60s", ""]
    assert told.steps[1].detail == "on node-a"
    facts = dict(told.facts)
    assert (facts["Pool"], facts["Claim"], facts["Node"]) == ("python", "first", "node-a")
    assert (facts["RuntimeClass"], facts["Handler"]) == ("gvisor", "runsc")


def test_a_container_that_fails_ends_the_story_badly() -> None:
    made = pod()
    ended = {
        "startedAt": "2026-01-01T11:58:02Z",
        "finishedAt": "2026-01-01T11:59:10Z",
        "exitCode": 137,
        "reason": "OOMKilled",
    }
    made["status"]["containerStatuses"][0]["state"] = {"terminated": ended}
    lost = claim(
        "first",
        "Lost",
        finishedAt="2026-01-01T11:59:11Z",
        expiresAt="2026-01-01T12:30:00Z",
        conditions=[condition("Ready", "False", "OOMKilled", "out of memory")],
    )
    *_, container, last = story(lost, made, [], NOW).steps
    assert (container.what, container.tone) == ("Container ended", "bad")
    assert container.detail == "OOMKilled, exit code 137"
    # It does not expire any more.
    assert (last.what, last.detail) == ("Lost", "OOMKilled: out of memory")


def test_a_claim_that_waits_says_what_for() -> None:
    waits = claim(
        "first",
        "Pending",
        conditions=[condition("Bound", "False", "NoWarmSandbox", "none is warm")],
    )
    told = story(waits, None, [], NOW)
    assert [(step.what, step.detail) for step in told.steps] == [
        ("Waits", "NoWarmSandbox: none is warm"),
        ("Claimed", ""),
    ]


def test_events_tell_what_the_pod_does_not() -> None:
    made = pod()
    failed = event(
        "FailedCreatePodSandBox",
        'no runtime for "kata" is configured',
        of=made,
        at="2026-01-01T11:58:01Z",
        type_="Warning",
    )
    failed["count"] = 4
    step = next(one for one in story(None, made, [failed], NOW).steps if "Failed" in one.what)
    assert (step.what, step.tone) == ("FailedCreatePodSandBox (4 times)", "bad")
    assert step.source == "event of pod python-first"


def test_a_pod_that_is_gone_leaves_the_claims_story() -> None:
    told = story(claim("first"), None, [], NOW)
    assert whats(told) == ["Claimed", "Bound (Warm)"]
    assert dict(told.facts)["Pod"] == "python-first"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@given(status=anything, metadata=anything)
def test_damaged_objects_tell_what_they_can(status: Any, metadata: Any) -> None:
    damaged: Object = {"metadata": metadata, "status": status, "spec": status}
    story(damaged, damaged, [damaged, {"metadata": metadata}], NOW)
