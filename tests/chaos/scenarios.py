"""One fault each, at the worst moment. Each plays on a stage and returns what went wrong.

A scenario only waits for what the operator does with all its guards in place or without one of
them, so that a test of the guard reaches the verdict, too.
"""

from __future__ import annotations

from typing import Any

from chaos.stage import Object, Stage
from support import invariants, objects
from support.history import Change
from support.sandboxes import claim_pod, phase, pool_status, warm_pool

POD = r"/pods/pool-"
POD_CREATE = r"/pods$"
POD_LIST = r"^/api/v1/pods\?.*limit="
POD_WATCH = r"^/api/v1/pods\?.*watch="
CLAIM_WATCH = r"/sandboxclaims\?.*watch="
CLAIM_STATUS = r"/sandboxclaims/claim/status"
# A pool that does not exist: the operator has no sandbox for its claims.
ELSEWHERE = "elsewhere"


# --- Bindings ---


def a_pod_is_taken_while_it_is_being_bound(stage: Stage) -> list[str]:
    """Write 1 arrives when the pod is another claim's."""
    (pod,) = _warm(stage, 1)
    other = stage.api.create(objects.claim("other", ELSEWHERE))
    held = stage.proxy.hold("PATCH", POD)
    stage.api.create(objects.claim())
    held.wait_reached()
    stage.take(pod, other)
    held.release()
    return stage.verdict()


def the_answer_to_a_binding_is_lost(stage: Stage) -> list[str]:
    """Write 1 took effect, and nobody says so."""
    _warm(stage, 2)
    rule = stage.proxy.lose_response("PATCH", POD)
    stage.api.create(objects.claim())
    rule.wait_reached()
    return stage.verdict()


def a_claim_is_made_again_while_it_is_being_bound(stage: Stage) -> list[str]:
    """Write 2 arrives when the name is another claim's."""
    _warm(stage, 2)
    held = stage.proxy.hold("PATCH", CLAIM_STATUS)
    stage.api.create(objects.claim())
    held.wait_reached()
    stage.api.delete("SandboxClaim", "claim")
    stage.api.create(objects.claim())
    held.release()
    return stage.verdict()


def a_claim_is_told_late(stage: Stage) -> list[str]:
    """Write 2 fails so often that the claim is looked at again, and no watch shows the pod."""
    _warm(stage, 2)
    stall = stage.proxy.stall_watches(POD_WATCH)
    rule = stage.proxy.refuse("PATCH", CLAIM_STATUS, 500, times=4)
    stage.api.create(objects.claim())
    rule.wait_reached()
    phase(stage.api, "Bound")
    stall.release()
    return stage.verdict()


def a_bound_claim_is_looked_at_before_any_watch_shows_it(stage: Stage) -> list[str]:
    """Both writes have been made, and the caches know of neither."""
    _warm(stage, 2)
    held = stage.proxy.hold("PATCH", POD)
    stage.api.create(objects.claim())
    held.wait_reached()
    stall = stage.proxy.stall_watches(f"{POD_WATCH}|{CLAIM_WATCH}")
    held.release()
    phase(stage.api, "Bound")
    # A change of the pool has all claims looked at that are not done.
    stage.api.patch_spec("SandboxPool", "pool", maxAgeSeconds=86400)
    pool_status(stage.api, observedGeneration=2)
    stall.release()
    return stage.verdict()


def a_claim_expires_while_it_is_given_more_time(stage: Stage) -> list[str]:
    """Expired is written on the strength of a TTL that is no longer so."""
    _warm(stage, 1)
    claim_pod(stage.api, ttlSeconds=2)
    held = stage.proxy.hold("PATCH", CLAIM_STATUS)
    held.wait_reached()
    stage.api.patch_spec("SandboxClaim", "claim", ttlSeconds=3600)
    seen = len(stage.proxy.requests("PATCH", CLAIM_STATUS))
    held.release()
    stage.until(
        lambda: len(stage.proxy.requests("PATCH", CLAIM_STATUS)) > seen, "it has come through"
    )
    found = stage.verdict()
    was = stage.api.get("SandboxClaim", "claim")["status"]["phase"]
    return found if was == "Bound" else [*found, f"the claim is {was}, with time left"]


def a_second_pod_carries_a_claim(stage: Stage) -> list[str]:
    """A write of long ago arrives: a bound claim has one pod more."""
    _warm(stage, 2)
    claim = claim_pod(stage.api)
    second = stage.warm()[0]
    stage.excused.add(second["metadata"]["uid"])
    stage.take(second, claim)
    found = stage.verdict()
    held = [
        pod["metadata"]["name"]
        for pod in stage.api.list("Pod")
        if claim["metadata"]["uid"] in invariants.claim_uids(pod)
    ]
    return found if held == [claim["status"]["podName"]] else [*found, f"it has kept {held}"]


# --- Refill and deletes ---


def a_pod_is_taken_while_it_is_being_deleted(stage: Stage) -> list[str]:
    """The pool is scaled down, and the DELETE arrives when the pod is a claim's."""
    (pod,) = _warm(stage, 1)
    other = stage.api.create(objects.claim("other", ELSEWHERE))
    held = stage.proxy.hold("DELETE", POD)
    stage.api.scale("SandboxPool", "pool", 0)
    held.wait_reached()
    stage.take(pod, other)
    phase(stage.api, "Bound", "other")
    held.release()
    return stage.verdict()


def a_claim_comes_while_the_last_pod_is_being_deleted(stage: Stage) -> list[str]:
    """The pool is scaled down, and a claim comes before the DELETE arrives."""
    _warm(stage, 1)
    held = stage.proxy.hold("DELETE", POD)
    stage.api.scale("SandboxPool", "pool", 0)
    held.wait_reached()
    stage.api.create(objects.claim())
    stage.soon(lambda: _is_bound(stage.api.get("SandboxClaim", "claim")))
    held.release()
    stage.until(lambda: stage.proxy.requests("DELETE", POD), "the delete has come through")
    return stage.verdict()


def the_answer_to_a_create_is_lost(stage: Stage) -> list[str]:
    """A pod was made, and nobody says so; there is no room for one more."""
    rule = stage.proxy.lose_response("POST", POD_CREATE)
    _pool(stage, 2, maxSandboxes=2)
    rule.wait_reached()
    return stage.verdict()


def a_cold_start_arrives_after_its_sender_has_died(stage: Stage) -> list[str]:
    """The POST of a claim's own pod is on its way when the next process makes another."""
    _pool(stage, 0)
    pool_status(stage.api, observedGeneration=1)
    held = stage.proxy.hold("POST", POD_CREATE)
    stage.api.create(objects.claim(onEmpty="Create"))
    held.wait_reached()
    stage.operator.kill()
    stage.operator.start()
    phase(stage.api, "Bound")
    made = len(stage.proxy.requests("POST", POD_CREATE))
    held.release()
    stage.until(lambda: len(stage.proxy.requests("POST", POD_CREATE)) > made, "it has come through")
    return stage.verdict()


def the_target_rises_while_no_watch_shows_the_new_pods(stage: Stage) -> list[str]:
    """What was asked for is not seen, and each change has the pool looked at again."""
    _warm(stage, 2, maxSandboxes=4)
    stall = stage.proxy.stall_watches(POD_WATCH)
    for generation, replicas in enumerate((3, 4), start=2):
        stage.api.scale("SandboxPool", "pool", replicas)
        pool_status(stage.api, observedGeneration=generation)
    stall.release()
    return stage.verdict()


def a_pod_takes_long_to_go(stage: Stage) -> list[str]:
    """A pod that is terminating still takes room on its node, and under the ceiling."""
    _warm(stage, 2, maxSandboxes=2)
    stage.nodes.behaviour.delay_stop("runsc", 3.0)
    stage.delete_pod(stage.warm()[0])
    pool_status(stage.api, stopping=1)
    return stage.verdict()


# --- Views ---


def a_start_with_a_slow_list(stage: Stage) -> list[str]:
    """An operator starts, and everything but the pods is there at once."""
    _warm(stage, 2, maxSandboxes=2)
    stage.operator.kill()
    held = stage.proxy.hold("GET", POD_LIST)
    stage.operator.start(ready=False)
    held.wait_reached(30)
    creates = len(stage.proxy.requests("POST", POD_CREATE))
    # Nothing says that nothing will happen, so it is given time to.
    stage.soon(lambda: len(stage.proxy.requests("POST", POD_CREATE)) > creates, 3.0)
    held.release()
    stage.operator.wait_ready()
    return stage.verdict()


def lists_come_in_small_pages(stage: Stage) -> list[str]:
    """An operator starts, and each list comes in pages of two, each after a while."""
    _warm(stage, 7, maxSandboxes=7)
    stage.operator.kill()
    stage.proxy.page_lists(2)
    slow = stage.proxy.delay("GET", "limit=2", 0.2)
    stage.operator.start()
    assert slow.hits > 4, "the lists did not come in pages"
    return stage.verdict()


def a_pod_vanishes_while_the_watch_is_told_that_it_is_too_late(stage: Stage) -> list[str]:
    """The watch ends with 410 Gone: only a list can tell what is no more."""
    _warm(stage, 2)
    stall = stage.proxy.stall_watches(POD_WATCH)
    gone = stage.warm()[0]
    stage.delete_pod(gone, gracePeriodSeconds=0)
    expired = stage.proxy.refuse("GET", POD_WATCH, 410)
    stage.proxy.cut_watches(POD_WATCH)
    expired.wait_reached()
    stall.release()
    return stage.verdict()


def a_watch_falls_silent(stage: Stage) -> list[str]:
    """No byte comes any more, and the connection stays."""
    _warm(stage, 2)
    stage.proxy.stall_watches(POD_WATCH, future=False)
    stage.delete_pod(stage.warm()[0], gracePeriodSeconds=0)
    # Not `verdict` yet: it would end the stall.
    stage.soon(lambda: len(stage.warm()) == 2, stage.patience)
    return [*([] if len(stage.warm()) == 2 else ["what vanished was not missed"]), *stage.verdict()]


# --- People ---


def the_labels_of_a_claimed_pod_are_stripped(stage: Stage) -> list[str]:
    """A pod without labels is not in the watch, and yet it lives."""
    _warm(stage, 1)
    claim = claim_pod(stage.api)
    name = claim["status"]["podName"]
    labels = stage.api.get("Pod", name)["metadata"]["labels"]
    stage.api.patch("Pod", name, {"metadata": {"labels": dict.fromkeys(labels)}})
    stage.soon(lambda: stage.proxy.requests("GET", f"/pods/{name}$"))
    found = stage.verdict()
    was = stage.api.get("SandboxClaim", "claim")["status"]["phase"]
    return found if was == "Bound" else [*found, f"the claim is {was}"]


def the_owner_of_a_claimed_pod_is_taken_away(stage: Stage) -> list[str]:
    """The label alone says whose it is; nobody else gets it."""
    _warm(stage, 1)
    claim = claim_pod(stage.api)
    stage.excused.add(claim["status"]["podUID"])
    stage.api.patch("Pod", claim["status"]["podName"], {"metadata": {"ownerReferences": None}})
    stage.api.create(objects.claim("next"))
    phase(stage.api, "Bound", "next")
    return stage.verdict()


def the_status_of_a_bound_claim_is_wiped(stage: Stage) -> list[str]:
    """It has its pod still, and is told so again."""
    _warm(stage, 1)
    claim = claim_pod(stage.api)
    stage.excused.add(claim["metadata"]["uid"])
    path = [{"op": "remove", "path": "/status"}]
    stage.api.patch("SandboxClaim", "claim", path, subresource="status")
    again = phase(stage.api, "Bound")
    found = stage.verdict()
    same = again["status"]["podUID"] == claim["status"]["podUID"]
    return found if same else [*found, "the claim was given another pod"]


def a_claim_leaves_its_pod_an_orphan(stage: Stage) -> list[str]:
    """`kubectl delete --cascade=orphan`: no collector takes the pod."""
    _warm(stage, 1)
    claim = claim_pod(stage.api)
    stage.excused.add(claim["status"]["podUID"])
    stage.api.delete("SandboxClaim", "claim", propagationPolicy="Orphan")
    stage.until(
        lambda: stage.api.find("SandboxClaim", "claim") is None, "the collector has let it go"
    )
    return stage.verdict()


def a_claim_is_bound_before_it_is_seen(stage: Stage) -> list[str]:
    """The pod's watch is ahead of the claim's: a sweep meets a pod of a claim it does not know."""
    (pod,) = _warm(stage, 1)
    stall = stage.proxy.stall_watches(CLAIM_WATCH)
    other = stage.api.create(objects.claim("other", ELSEWHERE))
    stage.take(pod, other)
    status = {
        "phase": "Bound",
        "podName": pod["metadata"]["name"],
        "podUID": pod["metadata"]["uid"],
    }
    stage.api.patch_status("SandboxClaim", "other", status)
    # Sweeps ask for the claim by its name, or delete without asking.
    stage.soon(
        lambda: (
            stage.proxy.requests("GET", "/sandboxclaims/other$")
            or stage.proxy.requests("DELETE", POD)
        )
    )
    stall.release()
    return stage.verdict()


# --- Nodes ---


def a_node_is_cordoned_under_warm_pods(stage: Stage) -> list[str]:
    """What stands there is not handed out, though it is ready and stays."""
    pods = _warm(stage, 6, template=objects.large_template())
    stage.api.patch_spec("SandboxPool", "pool", paused=True)
    pool_status(stage.api, observedGeneration=2)
    node = pods[0]["spec"]["nodeName"]
    elsewhere = sum(pod["spec"]["nodeName"] != node for pod in pods)
    stage.nodes.cordon(node)
    pool_status(stage.api, warm=elsewhere)
    for number in range(len(pods)):
        stage.api.create(objects.claim(f"claim-{number}"))
    # As many as there are pods elsewhere are served, and then, with the guard, no more.
    stage.until(lambda: _bound(stage) >= elsewhere, "the others are handed out")
    stage.soon(lambda: _bound(stage) > elsewhere, 1.0)
    wrong = [
        f"claim {claim['metadata']['name']} was given a pod on a cordoned node"
        for claim in stage.api.list("SandboxClaim")
        if claim.get("status", {}).get("nodeName") == node
    ]
    stage.nodes.cordon(node, on=False)
    stage.api.patch_spec("SandboxPool", "pool", paused=False)
    stage.until(lambda: _bound(stage) == len(pods), "all are handed out")
    return [*wrong, *stage.verdict()]


# --- Overload ---


def more_claims_than_pods(stage: Stage, *, claims: int = 12, replicas: int = 1) -> list[str]:
    """Claims wait in line: they are served in order, and waiting costs no write."""
    _pool(stage, 0, maxSandboxes=claims + replicas)
    pool_status(stage.api, observedGeneration=1)
    for number in range(claims):
        stage.api.create(objects.claim(f"claim-{number:05}", bindTimeoutSeconds=3600))
    # A change of the pool has all that wait looked at again.
    stage.api.scale("SandboxPool", "pool", replicas)
    stage.soon(lambda: _bound(stage) == claims, stage.patience + claims / 5)
    # A claim's binding is one write on its pod and one on itself.
    writes = len(stage.proxy.writes(r"/sandboxclaims/.*/status"))
    wrong = [] if writes == claims else [f"{claims} claims cost {writes} writes of their own"]
    found = stage.verdict()
    return [*wrong, *found, *_out_of_order(stage.history.changes(), slack=replicas - 1)]


def _out_of_order(changes: list[Change], slack: int) -> list[str]:
    """The claims that were bound earlier or later than it was their turn."""
    created: list[str] = []
    bound: list[str] = []
    for change in sorted(changes, key=lambda c: c.version):
        if change.kind != "SandboxClaim" or change.deleted:
            continue
        if change.uid not in created:
            created.append(change.uid)
        if change.object.get("status", {}).get("phase") == "Bound" and change.uid not in bound:
            bound.append(change.uid)
    places = {uid: place for place, uid in enumerate(created)}
    return [
        f"claim number {places[uid]} was served as number {place}"
        for place, uid in enumerate(bound)
        if abs(places[uid] - place) > slack
    ]


# --- Small things ---


def _pool(stage: Stage, replicas: int, **spec: Any) -> None:
    stage.api.create(objects.runtime_class())
    stage.api.create(objects.pool(replicas=replicas, **spec))


def _warm(stage: Stage, replicas: int, **spec: Any) -> list[Object]:
    """A pool with so many warm pods; returns them. What it took does not count."""
    warm_pool(stage.api, replicas, **spec)
    stage.proxy.clear()
    return stage.warm()


def _is_bound(claim: Object) -> bool:
    return bool(claim.get("status", {}).get("phase") == "Bound")


def _bound(stage: Stage) -> int:
    return sum(map(_is_bound, stage.api.list("SandboxClaim")))
