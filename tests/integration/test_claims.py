"""Claims against a real API server: how they are bound, refused, expire and are retired."""

from __future__ import annotations

import json
from functools import partial

from fakekubelet import FakeNodes
from sandboxpool.api import names
from support import Api, condition, consistently, eventually, invariants, objects
from support.operator_process import Operator
from support.sandboxes import bound_reason, claim_pod, live_pods, phase, pool_status, warm_pool


def queued(operator: Operator, claims: int) -> bool:
    return operator.metric("workqueue_adds_total", name="claims") >= claims


def test_a_claim_gets_a_warm_pod_and_the_stock_recovers(api: Api, operator: Operator) -> None:
    pool = warm_pool(api)
    warm_before = {pod["metadata"]["name"] for pod in api.list("Pod")}
    claim = claim_pod(api)

    assert claim["status"]["podName"] in warm_before
    assert claim["status"]["source"] == "Warm"
    assert claim["status"]["runtime"] == {"className": "gvisor", "handler": "runsc"}
    pod = api.get("Pod", claim["status"]["podName"])
    assert claim["status"]["podIP"] == pod["status"]["podIP"]
    (owner,) = pod["metadata"]["ownerReferences"]
    assert owner["uid"] == claim["metadata"]["uid"]
    assert pod["metadata"]["labels"][names.LABEL_POOL_UID] == pool["metadata"]["uid"]
    ready = condition(claim, "Ready")
    assert ready is not None
    assert ready["status"] == "True"
    pool_status(api, warm=2, claimed=1)
    invariants.check(api)


def test_a_deleted_claim_takes_its_pod_with_it(api: Api, operator: Operator) -> None:
    warm_pool(api)
    name = claim_pod(api)["status"]["podName"]
    api.delete("SandboxClaim", "claim")
    eventually(lambda: api.find("Pod", name) is None, message="the pod is gone")
    pool_status(api, warm=2, claimed=0)
    assert name not in {pod["metadata"]["name"] for pod in api.list("Pod")}


def test_a_new_claim_is_pending_before_anyone_has_looked_at_it(api: Api, nodes: FakeNodes) -> None:
    created = api.create(objects.claim())
    assert created["status"] == {"phase": "Pending"}


def test_a_claim_waits_for_its_pool_and_is_served_when_it_comes(
    api: Api, operator: Operator
) -> None:
    api.create(objects.claim())
    pending = eventually(
        lambda: api.get("SandboxClaim", "claim"),
        until=lambda claim: condition(claim, "Bound") is not None,
    )
    assert bound_reason(pending) == "PoolNotFound"
    warm_pool(api, replicas=1)
    phase(api, "Bound")


def test_claims_beyond_the_stock_wait_in_order_and_are_all_served(
    api: Api, operator: Operator
) -> None:
    warm_pool(api, replicas=2, maxSandboxes=2)
    for number in range(4):
        api.create(objects.claim(f"claim-{number}"))
        eventually(partial(queued, operator, number + 1), message="the operator has seen it")
    phase(api, "Bound", "claim-0")
    phase(api, "Bound", "claim-1")
    assert api.get("SandboxClaim", "claim-2")["status"] == {"phase": "Pending"}
    api.delete("SandboxClaim", "claim-0")
    phase(api, "Bound", "claim-2")
    assert api.get("SandboxClaim", "claim-3")["status"] == {"phase": "Pending"}
    api.delete("SandboxClaim", "claim-1")
    phase(api, "Bound", "claim-3")
    invariants.check(api)


def test_on_empty_fail_fails_at_once(api: Api, operator: Operator) -> None:
    warm_pool(api, replicas=0)
    api.create(objects.claim(onEmpty="Fail"))
    failed = phase(api, "Failed")
    assert bound_reason(failed) == "NoWarmSandbox"
    assert failed["status"]["finishedAt"]


def test_on_empty_create_makes_one_sandbox_for_the_claim(api: Api, operator: Operator) -> None:
    warm_pool(api, replicas=0)
    claim = claim_pod(api, onEmpty="Create")
    assert claim["status"]["source"] == "Cold"
    (pod,) = api.list("Pod")
    assert pod["metadata"]["name"] == claim["status"]["podName"]
    assert pod["metadata"]["ownerReferences"][0]["uid"] == claim["metadata"]["uid"]
    pool_status(api, warm=0, claimed=1)
    api.delete("SandboxClaim", "claim")
    eventually(lambda: api.list("Pod") == [], message="the cold pod is gone")


def test_on_empty_create_stays_below_the_ceiling(api: Api, operator: Operator) -> None:
    warm_pool(api, replicas=0, maxSandboxes=1)
    claim_pod(api, "first", onEmpty="Create")
    api.create(objects.claim("second", onEmpty="Create"))
    waiting = eventually(
        lambda: api.get("SandboxClaim", "second"),
        until=lambda claim: condition(claim, "Bound") is not None,
    )
    assert bound_reason(waiting) == "MaxSandboxesReached"
    consistently(lambda: len(api.list("Pod")) == 1, message="one pod")
    api.delete("SandboxClaim", "first")
    phase(api, "Bound", "second")


def test_an_asserted_class_that_is_another_is_refused(api: Api, operator: Operator) -> None:
    warm_pool(api)
    api.create(objects.claim(runtimeClassName="kata-qemu"))
    failed = phase(api, "Failed")
    assert bound_reason(failed) == "RuntimeClassMismatch"
    message = condition(failed, "Bound")["message"]  # type: ignore[index]
    assert "'kata-qemu'" in message
    assert "'gvisor'" in message
    assert claim_pod(api, "right", runtimeClassName="gvisor")


def test_metadata_goes_onto_the_pod_within_the_pools_list_only(
    api: Api, operator: Operator
) -> None:
    warm_pool(api, claims={"allowedMetadataPrefixes": ["team.example/"]})
    allowed = {"labels": {"team.example/name": "red"}, "annotations": {"team.example/task": "7"}}
    claim = claim_pod(api, metadata=allowed)
    pod = api.get("Pod", claim["status"]["podName"])
    assert pod["metadata"]["labels"]["team.example/name"] == "red"
    assert pod["metadata"]["annotations"]["team.example/task"] == "7"

    api.create(objects.claim("other", metadata={"labels": {"app": "x"}}))
    failed = phase(api, "Failed", "other")
    assert bound_reason(failed) == "MetadataNotAllowed"


def test_a_configuration_is_on_the_pod_and_each_container_may_read_it(
    api: Api, operator: Operator
) -> None:
    warm_pool(api, replicas=1)
    (pod,) = api.list("Pod")
    assert "sandboxpool.io/config" not in pod["metadata"]["annotations"]
    claim = claim_pod(api, config={"task.json": '{"n": "é"}', "empty": ""})
    pod = api.get("Pod", claim["status"]["podName"])
    written = json.loads(pod["metadata"]["annotations"]["sandboxpool.io/config"])
    assert written == {"task.json": '{"n": "é"}', "empty": ""}
    (volume,) = [v for v in pod["spec"]["volumes"] if v["name"] == "sandboxpool-config"]
    assert [item["path"] for item in volume["downwardAPI"]["items"]] == [
        "config.json",
        "claim-name",
        "claim-uid",
    ]
    for container in pod["spec"]["containers"]:
        assert "/run/sandbox" in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_the_largest_configuration_fits_into_the_annotations(api: Api, operator: Operator) -> None:
    """A control character takes six bytes in JSON: no other takes more."""
    warm_pool(api)
    claim = claim_pod(api, config={"a": "\x01" * 32767})
    pod = api.get("Pod", claim["status"]["podName"])
    assert len(pod["metadata"]["annotations"]["sandboxpool.io/config"]) > 6 * 32767


def test_a_pool_without_a_place_for_configurations_refuses_them(
    api: Api, operator: Operator
) -> None:
    warm_pool(api, replicas=1, claims={"configPath": ""})
    (pod,) = api.list("Pod")
    assert "sandboxpool-config" not in [v["name"] for v in pod["spec"].get("volumes", [])]
    api.create(objects.claim(config={"a": "b"}))
    failed = phase(api, "Failed")
    assert bound_reason(failed) == "ConfigNotMounted"
    assert "spec.claims.configPath" in condition(failed, "Bound")["message"]  # type: ignore[index]


def test_a_claim_that_is_not_bound_in_time_fails_with_the_cause(
    api: Api, operator: Operator
) -> None:
    api.create(objects.pool(runtime_class="nosuch"))
    api.create(objects.claim(bindTimeoutSeconds=2))
    failed = phase(api, "Failed")
    assert bound_reason(failed) == "BindTimeout"
    assert "'nosuch' does not exist" in condition(failed, "Bound")["message"]  # type: ignore[index]


def test_a_claim_expires_and_its_pod_is_deleted(api: Api, operator: Operator) -> None:
    warm_pool(api, claims={"maxTTLSeconds": 3})
    claim = claim_pod(api, ttlSeconds=9999)
    assert claim["status"]["expiresAt"] > claim["status"]["boundAt"]
    expired = phase(api, "Expired")
    assert bound_reason(expired) == "TTLExpired"
    assert expired["status"]["podName"] == claim["status"]["podName"]
    eventually(lambda: api.find("Pod", claim["status"]["podName"]) is None, message="pod gone")


def test_the_lifetime_of_a_bound_claim_can_be_changed(api: Api, operator: Operator) -> None:
    warm_pool(api)
    claim = claim_pod(api, ttlSeconds=9999)
    api.patch_spec("SandboxClaim", "claim", ttlSeconds=1)
    phase(api, "Expired")
    eventually(lambda: api.find("Pod", claim["status"]["podName"]) is None, message="pod gone")


def test_a_finished_claim_is_kept_and_then_deleted(api: Api, operator: Operator) -> None:
    warm_pool(api, claims={"ttlSecondsAfterFinished": 2})
    api.create(objects.claim(runtimeClassName="other"))
    phase(api, "Failed")
    eventually(lambda: api.find("SandboxClaim", "claim") is None, message="the claim is deleted")


def test_a_claim_whose_pod_is_deleted_is_lost_and_not_given_another(
    api: Api, operator: Operator
) -> None:
    warm_pool(api)
    claim = claim_pod(api)
    api.delete("Pod", claim["status"]["podName"])
    lost = phase(api, "Lost")
    assert bound_reason(lost) == "PodDeleted"
    assert lost["status"]["podName"] == claim["status"]["podName"]
    consistently(lambda: api.get("SandboxClaim", "claim")["status"]["phase"] == "Lost")


def test_a_claim_whose_pod_ends_is_lost_with_the_cause(
    api: Api, operator: Operator, nodes: FakeNodes
) -> None:
    warm_pool(api)
    name = claim_pod(api)["status"]["podName"]
    nodes.kill_container(api.get("Pod", name)["metadata"]["namespace"], name, reason="OOMKilled")
    lost = phase(api, "Lost")
    assert bound_reason(lost) == "OOMKilled"
    assert api.get("Pod", name), "a lost claim's pod is kept for its logs"


def test_a_claim_whose_pod_is_evicted_is_reported_lost(api: Api, operator: Operator) -> None:
    warm_pool(api)
    claim = claim_pod(api)
    name, namespace = claim["status"]["podName"], claim["metadata"]["namespace"]
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name, "namespace": namespace},
    }
    api.raw("POST", f"/api/v1/namespaces/{namespace}/pods/{name}/eviction", eviction)
    lost = phase(api, "Lost")
    assert bound_reason(lost) == "EvictionByEvictionAPI"
    message = condition(lost, "Bound")["message"]  # type: ignore[index]
    assert "claims.disruption: Protect" in message
    assert operator.metric("sandboxpool_claims_total", result="EvictionByEvictionAPI") == 1
    eventually(lambda: api.events_for(lost, "EvictionByEvictionAPI"), message="an event")


def test_a_claim_whose_pod_went_while_nobody_watched_does_not_guess(
    api: Api, operator: Operator
) -> None:
    warm_pool(api)
    name = claim_pod(api)["status"]["podName"]
    operator.terminate()
    api.delete("Pod", name, gracePeriodSeconds=0)
    operator.start()
    lost = phase(api, "Lost")
    assert bound_reason(lost) == "PodLost"
    assert "the cause is not known" in condition(lost, "Bound")["message"]  # type: ignore[index]


def test_a_claimed_pod_that_lost_its_labels_is_still_the_claims(
    api: Api, operator: Operator
) -> None:
    warm_pool(api)
    claim = claim_pod(api)
    labels = dict.fromkeys((names.LABEL_POOL_UID, names.LABEL_CLAIM_UID))
    api.patch("Pod", claim["status"]["podName"], {"metadata": {"labels": labels}})
    consistently(lambda: api.get("SandboxClaim", "claim")["status"]["phase"] == "Bound", seconds=2)


def test_a_claims_status_that_others_destroyed_is_restored_to_the_same_pod(
    api: Api, operator: Operator
) -> None:
    warm_pool(api)
    claim = claim_pod(api)
    api.patch_status("SandboxClaim", "claim", {"phase": "Pending", "podName": None, "podUID": None})
    again = phase(api, "Bound")
    assert again["status"]["podUID"] == claim["status"]["podUID"]
    invariants.check(api)


def test_a_pod_that_is_orphaned_on_purpose_is_nobodys_and_left_alone(
    api: Api, operator: Operator
) -> None:
    """Its owner is taken off, and labels own nothing: not even a new start sweeps it."""
    warm_pool(api)
    name = claim_pod(api)["status"]["podName"]
    api.delete("SandboxClaim", "claim", propagationPolicy="Orphan")
    eventually(lambda: api.find("SandboxClaim", "claim") is None, message="the claim is gone")
    assert "ownerReferences" not in api.get("Pod", name)["metadata"]
    operator.restart()
    pool_status(api, warm=2, claimed=0)
    consistently(
        lambda: name in {pod["metadata"]["name"] for pod in live_pods(api)},
        seconds=3,
        message="the orphan is left alone",
    )


def test_a_pool_that_is_deleted_before_its_claims_leaves_them_their_pods(
    api: Api, operator: Operator
) -> None:
    warm_pool(api)
    claim = claim_pod(api, ttlSeconds=600)
    api.delete("SandboxPool", "pool")
    eventually(lambda: len(api.list("Pod")) == 1, message="only the claimed pod is left")
    assert api.get("SandboxClaim", "claim")["status"]["phase"] == "Bound"
    api.delete("SandboxClaim", "claim")
    eventually(lambda: api.find("Pod", claim["status"]["podName"]) is None, message="pod gone")


def test_a_claim_of_a_deleted_pool_is_not_served_by_its_pods(api: Api, operator: Operator) -> None:
    warm_pool(api)
    api.delete("SandboxPool", "pool", propagationPolicy="Orphan")
    eventually(lambda: api.find("SandboxPool", "pool") is None, message="the pool is gone")
    api.create(objects.claim(bindTimeoutSeconds=2))
    assert bound_reason(phase(api, "Failed")) == "BindTimeout"
