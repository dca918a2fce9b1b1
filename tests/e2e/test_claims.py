"""The life of claims on real nodes."""

from __future__ import annotations

from functools import partial

from sandboxpool.api import names
from support import Api, condition, consistently, eventually, invariants
from support.history import PodHistory
from support.realnodes import node_kernel, pool, proc_version
from support.sandboxes import claim_pod, live_pods, phase, pool_status


def gone(api: Api, name: str) -> None:
    """Waits until the kubelet has ended a pod and it is deleted."""
    eventually(lambda: api.find("Pod", name) is None, message=f"pod {name} is gone", timeout=60)


def test_a_claim_runs_under_gvisor_and_its_sandbox_is_never_used_again(
    api: Api, history: PodHistory
) -> None:
    api.create(pool(replicas=2))
    pool_status(api, warm=2, timeout=60)
    claim = claim_pod(api)
    assert claim["status"]["source"] == "Warm"
    ready = condition(claim, "Ready")
    assert ready is not None
    assert ready["status"] == "True"
    pod = api.get("Pod", claim["status"]["podName"])
    assert pod["status"]["podIP"] == claim["status"]["podIP"]
    version = proc_version(pod)
    assert "gvisor" in version
    assert node_kernel(api, claim["status"]["nodeName"]) not in version
    pool_status(api, warm=2, claimed=1, timeout=60)

    api.delete("SandboxClaim", "claim")
    gone(api, claim["status"]["podName"])
    pool_status(api, warm=2, claimed=0, timeout=60)
    for number in range(3):
        other = claim_pod(api, f"claim-{number}")
        assert other["status"]["podUID"] != claim["status"]["podUID"]
    holders = {
        holder
        for state in history.states()
        if state["metadata"]["uid"] == claim["status"]["podUID"]
        and (holder := state["metadata"]["labels"].get(names.LABEL_CLAIM_UID))
    }
    assert holders == {claim["metadata"]["uid"]}
    invariants.check(api)


def test_a_pool_deleted_before_its_claim_leaves_it_its_sandbox(api: Api) -> None:
    api.create(pool(replicas=2))
    pool_status(api, warm=2, timeout=60)
    claim = claim_pod(api)
    name = claim["status"]["podName"]
    api.delete("SandboxPool", "pool")
    eventually(
        lambda: [pod["metadata"]["name"] for pod in api.list("Pod")],
        until=partial([name].__eq__),
        message="only the claimed pod is left",
        timeout=60,
    )
    consistently(lambda: phase(api, "Bound"), seconds=2)
    assert "gvisor" in proc_version(api.get("Pod", name))
    api.delete("SandboxClaim", "claim")
    gone(api, name)


def test_a_pool_deleted_after_its_claim_leaves_nothing(api: Api) -> None:
    api.create(pool())
    pool_status(api, warm=1, timeout=60)
    name = claim_pod(api)["status"]["podName"]
    pool_status(api, warm=1, claimed=1, timeout=60)
    api.delete("SandboxClaim", "claim")
    gone(api, name)
    assert len(live_pods(api)) == 1
    api.delete("SandboxPool", "pool")
    eventually(lambda: not api.list("Pod"), message="nothing is left", timeout=60)
