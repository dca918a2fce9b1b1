"""Templates on real nodes: those that change, and those that cannot work."""

from __future__ import annotations

import time
from typing import Any

import pytest

from support import Api, consistently, eventually
from support.history import PodHistory
from support.realnodes import RUNC, pool, template
from support.sandboxes import claim_pod, live_pods, pool_status, wait_for_pool_condition

Object = dict[str, Any]

VERSION = "example.com/version"
NOTHING_CHURNS_SECONDS = 6.0


def changed() -> Object:
    return {"metadata": {"annotations": {VERSION: "2"}}, **template()}


def is_new(pod: Object) -> bool:
    return VERSION in pod["metadata"].get("annotations", {})


def is_ready(pod: Object) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def updated_pool(api: Api, kind: str) -> None:
    """Makes a pool of three, and changes its template."""
    api.create(pool(runtime_class=RUNC, replicas=3, update={"type": kind}))
    pool_status(api, warm=3, timeout=60)
    api.patch_spec("SandboxPool", "pool", template=changed())


def test_a_rolling_update_keeps_the_stock_but_one(api: Api) -> None:
    updated_pool(api, "RollingUpdate")
    least, deadline = 3, time.monotonic() + 90
    while not (len(pods := live_pods(api)) == 3 and all(map(is_new, pods))):
        assert time.monotonic() < deadline, "the roll does not end"
        least = min(least, sum(map(is_ready, pods)))
    assert least >= 2
    pool_status(api, warm=3, outdated=0, timeout=60)
    wait_for_pool_condition(api, "UpToDate", "True", "AsExpected")


def test_on_claim_hands_outdated_pods_out_and_makes_new_ones(api: Api, history: PodHistory) -> None:
    updated_pool(api, "OnClaim")
    wait_for_pool_condition(api, "UpToDate", "False", "WaitingForClaims")
    before = history.created()
    assert len(before) == 3
    assert claim_pod(api)["status"]["podUID"] in before
    pool_status(api, warm=3, outdated=2, claimed=1, timeout=60)
    assert len(history.created()) == 4
    (new,) = [pod for pod in live_pods(api) if pod["metadata"]["uid"] not in before]
    assert is_new(new)


def test_recreate_replaces_all_at_once(api: Api, history: PodHistory) -> None:
    updated_pool(api, "Recreate")
    eventually(
        lambda: live_pods(api),
        until=lambda pods: len(pods) == 3 and all(map(is_new, pods)),
        message="three new pods",
        timeout=60,
    )
    pool_status(api, warm=3, outdated=0, timeout=60)
    assert len(history.created()) == 6


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"restartPolcy": "Never"}, 'unknown field "spec.restartPolcy"'),
        ({"terminationGracePeriodSeconds": "soon"}, "terminationGracePeriodSeconds"),
    ],
    ids=["unknown field", "wrong type"],
)
def test_a_template_that_is_no_pod_is_rejected_in_words(
    api: Api, history: PodHistory, wrong: Object, words: str
) -> None:
    api.create(pool(pod=template(**wrong)))
    assert words in wait_for_pool_condition(api, "TemplateAccepted", "False", "TemplateRejected")
    assert words in wait_for_pool_condition(api, "Ready", "False", "TemplateRejected")
    consistently(
        lambda: not history.created(), seconds=NOTHING_CHURNS_SECONDS, message="no pod is made"
    )
    corrected = [{"op": "replace", "path": "/spec/template", "value": template()}]
    api.patch("SandboxPool", "pool", corrected)
    pool_status(api, warm=1, timeout=60)


def test_a_template_that_admission_forbids_is_rejected_in_its_words(
    api: Api, namespace: str, history: PodHistory
) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    api.patch("Namespace", namespace, {"metadata": {"labels": labels}})
    api.create(pool(replicas=2))
    words = 'violates PodSecurity "restricted'
    assert words in wait_for_pool_condition(api, "TemplateAccepted", "False", "TemplateRejected")
    assert words in wait_for_pool_condition(api, "Ready", "False", "TemplateRejected")
    consistently(
        lambda: not history.created(), seconds=NOTHING_CHURNS_SECONDS, message="no pod is made"
    )


def test_an_image_that_does_not_exist_is_said_and_pods_are_left_alone(
    api: Api, history: PodHistory
) -> None:
    # Short, for it is not to matter: another pod would not find the image either.
    startup = {"timeoutSeconds": 10}
    api.create(pool(replicas=2, pod=template("localhost/no-such-image:1"), startup=startup))
    message = wait_for_pool_condition(api, "Warm", "False", "ImagePullFailed", timeout=60)
    assert "no-such-image" in message
    assert "no-such-image" in wait_for_pool_condition(api, "Ready", "False", "ImagePullFailed")
    consistently(
        lambda: len(history.created()) == 2,
        # For longer than the start-up timeout.
        seconds=startup["timeoutSeconds"] + NOTHING_CHURNS_SECONDS,
        message="no pod is replaced",
    )
