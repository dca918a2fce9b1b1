"""Everyday failures on real nodes: each names its cause, and concerns nobody but its own pool."""

from __future__ import annotations

from typing import Any

import pytest

from localcluster.nodeimage import SAMPLE_IMAGE
from support import Api, consistently, eventually, objects
from support.api import condition
from support.history import PodHistory
from support.realnodes import GVISOR, pool, template
from support.sandboxes import live_pods, phase, pool_status, wait_for_pool_condition

Object = dict[str, Any]

# Several times the pools' start-up timeouts.
NOTHING_CHURNS_SECONDS = 30.0
LONG_ENOUGH = 60.0
ABSENT = ["cat", "/absent"]


def container(**fields: Any) -> Object:
    return {"name": "sandbox", "image": SAMPLE_IMAGE, "imagePullPolicy": "IfNotPresent", **fields}


def with_secret(name: str) -> Object:
    return template(
        containers=[container(volumeMounts=[{"name": "credentials", "mountPath": "/credentials"}])],
        volumes=[{"name": "credentials", "secret": {"secretName": name}}],
    )


def uids(pods: list[Object]) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods}


def untouched(api: Api) -> bool:
    """No node is quarantined for anything, and nothing is wrong with the runtime."""
    status = api.get("SandboxRuntime", GVISOR)["status"]
    working = condition({"status": status}, "Working")
    return status["nodes"].get("quarantined", 0) == 0 and (
        working is None or working["status"] != "False"
    )


@pytest.mark.timeout(400, func_only=True)
def test_a_missing_secret_is_named_and_concerns_no_node_no_runtime_and_no_other_pool(
    api: Api, history: PodHistory
) -> None:
    api.create(pool("healthy", replicas=4))
    pool_status(api, name="healthy", warm=4, timeout=90)
    healthy = uids(live_pods(api))
    lacking = [f"lacking-{index}" for index in range(5)]
    for name in lacking:
        api.create(
            pool(name, replicas=3, pod=with_secret(f"{name}-key"), startup={"timeoutSeconds": 10})
        )
    for name in lacking:
        said = wait_for_pool_condition(
            api, "Warm", "False", "VolumeMountFailed", name=name, timeout=LONG_ENOUGH
        )
        assert f'secret "{name}-key" not found' in said
    consistently(lambda: untouched(api), seconds=NOTHING_CHURNS_SECONDS, message="all stay")
    assert healthy <= uids(live_pods(api))
    assert len(history.created()) == 4 + 3 * len(lacking)
    api.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"{lacking[0]}-key"}})
    # The kubelet tries again after two minutes at the latest.
    pool_status(api, name=lacking[0], warm=3, timeout=130)


@pytest.mark.parametrize(
    ("pod", "reason", "words"),
    [
        pytest.param(
            template(
                containers=[
                    container(readinessProbe={"exec": {"command": ABSENT}, "periodSeconds": 1})
                ]
            ),
            "ReadinessProbeFailing",
            ["container sandbox", "Readiness probe failed", "/absent"],
            id="readiness probe",
        ),
        pytest.param(
            template(
                containers=[
                    container(
                        startupProbe={
                            "exec": {"command": ABSENT},
                            "periodSeconds": 1,
                            "failureThreshold": 100,
                        }
                    )
                ]
            ),
            "StartupProbeFailing",
            ["container sandbox", "Startup probe failed", "/absent"],
            id="startup probe",
        ),
        pytest.param(
            template(initContainers=[{**container(), "name": "wait"}]),
            "InitContainerRunning",
            ["init container wait"],
            id="init container",
        ),
        pytest.param(
            template(
                containers=[container(lifecycle={"postStart": {"exec": {"command": ABSENT}}})]
            ),
            "LifecycleHookFailed",
            ["postStart", "container sandbox", "exit code"],
            id="postStart hook",
        ),
        pytest.param(
            template(containers=[container(command=["/absent"])]),
            "ContainerStartError",
            ["/absent"],
            id="no such program",
        ),
    ],
)
def test_what_keeps_a_sandbox_from_being_ready_is_named(
    api: Api, pod: Object, reason: str, words: list[str]
) -> None:
    api.create(pool(replicas=2, pod=pod, startup={"timeoutSeconds": 12}))
    said = wait_for_pool_condition(api, "Warm", "False", reason, timeout=LONG_ENOUGH)
    for word in words:
        assert word in said
    assert untouched(api)


def test_a_cold_start_reports_what_it_waits_for(api: Api) -> None:
    api.create(pool(replicas=0, pod=with_secret("claims-key"), startup={"timeoutSeconds": 10}))
    api.create(objects.claim(onEmpty="Create"))
    claim = eventually(
        lambda: api.get("SandboxClaim", "claim"),
        until=lambda claim: (condition(claim, "Bound") or {}).get("reason") == "VolumeMountFailed",
        message="the claim is told",
        timeout=LONG_ENOUGH,
    )
    bound = condition(claim, "Bound")
    assert bound is not None
    assert 'secret "claims-key" not found' in bound["message"]
    phase(api, "Pending")


def test_a_gated_sandbox_waits_for_whoever_holds_the_gate(api: Api, history: PodHistory) -> None:
    gates = [{"name": "example.com/quota"}]
    api.create(
        pool(replicas=2, pod=template(schedulingGates=gates), startup={"timeoutSeconds": 12})
    )
    said = wait_for_pool_condition(api, "Warm", "False", "SchedulingGated")
    assert "example.com/quota" in said
    consistently(
        lambda: len(history.created()) == 2,
        seconds=NOTHING_CHURNS_SECONDS,
        message="they are kept",
    )
    for pod in live_pods(api):
        lifted = [{"op": "remove", "path": "/spec/schedulingGates"}]
        api.patch("Pod", pod["metadata"]["name"], lifted)
    pool_status(api, warm=2, timeout=60)
    assert len(history.created()) == 2
