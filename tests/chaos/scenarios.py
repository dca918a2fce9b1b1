"""One fault each, at the worst moment. Each plays on a stage and returns what went wrong.

A scenario only waits for what the operator does with all its guards in place or without one of
them, so that a test of the guard reaches the verdict, too.
"""

from __future__ import annotations

from typing import Any

from chaos.stage import Object, Stage
from chaos.weather import set_clock
from sandboxpool.api import names
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


def a_binding_arrives_late(stage: Stage) -> list[str]:
    """Write 1 is given up while it is on its way, and takes effect when all seems to be done."""
    _warm(stage, 2)
    held = stage.proxy.hold("PATCH", POD, hang_up=True)
    stage.api.create(objects.claim())
    phase(stage.api, "Bound")
    sent = len(stage.proxy.requests("PATCH", POD))
    held.release()
    stage.until(lambda: len(stage.proxy.requests("PATCH", POD)) > sent, "it has come through")
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
    held = stage.proxy.hold("PATCH", CLAIM_STATUS, body='"Expired"')
    claim_pod(stage.api, ttlSeconds=2)
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
    stall = stage.proxy.stall_watches(POD_WATCH)
    rule = stage.proxy.lose_response("POST", POD_CREATE)
    _pool(stage, 2, maxSandboxes=2)
    rule.wait_reached()
    # One for each pod, and the one that is repeated.
    stage.until(lambda: len(stage.proxy.requests("POST", POD_CREATE)) > 2, "it is repeated")
    stall.release()
    return stage.verdict()


def a_cold_start_arrives_after_its_sender_has_died(stage: Stage) -> list[str]:
    """The POST of a claim's own pod is on its way when the next process makes another."""
    _pool(stage, 0)
    pool_status(stage.api, observedGeneration=1)
    held = stage.proxy.hold("POST", POD_CREATE)
    stage.api.create(objects.claim(onEmpty="Create"))
    held.wait_reached()
    stage.operator.kill()
    phase(stage.api, "Bound", timeout=60)
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
    # Those that stand by list, too; the list that counts is the one under the lease.
    held = stage.proxy.hold("GET", POD_LIST, times=None)
    stage.operator.terminate()
    held.wait_reached(30)
    creates = len(stage.proxy.requests("POST", POD_CREATE))
    # Nothing says that nothing will happen, so it is given time to.
    stage.soon(lambda: len(stage.proxy.requests("POST", POD_CREATE)) > creates, 5.0)
    held.release()
    return stage.verdict()


def lists_come_in_small_pages(stage: Stage) -> list[str]:
    """An operator starts, and each list comes in pages of two, each after a while."""
    _warm(stage, 7, maxSandboxes=7)
    stage.proxy.page_lists(2)
    slow = stage.proxy.delay("GET", "limit=2", 0.1)
    stage.operator.terminate()
    stage.until(lambda: slow.hits > 12, "lists come in pages", timeout=60)
    stage.api.scale("SandboxPool", "pool", 6)
    pool_status(stage.api, observedGeneration=2, timeout=60)
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
    """It is nobody's then, whatever its labels say, and nobody else gets it."""
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
    """`kubectl delete --cascade=orphan`: the pod is nobody's, and no sweep takes it."""
    _warm(stage, 1)
    claim = claim_pod(stage.api)
    stage.excused.add(claim["status"]["podUID"])
    stage.api.delete("SandboxClaim", "claim", propagationPolicy="Orphan")
    stage.until(
        lambda: stage.api.find("SandboxClaim", "claim") is None, "the collector has let it go"
    )
    found = stage.verdict()
    if stage.api.find("Pod", claim["status"]["podName"]) is None:
        found.append("what was orphaned on purpose was deleted")
    return found


def strangers_carry_the_labels_of_a_pool_and_of_a_claim(stage: Stage) -> list[str]:
    """Pods of another namespace, and one of a ReplicaSet in the pool's own, say they are its."""
    pool = warm_pool(stage.api, replicas=1, maxSandboxes=3)
    waiting = stage.api.create(objects.claim("waiting", ELSEWHERE))
    labels = {
        names.LABEL_POOL_UID: pool["metadata"]["uid"],
        names.LABEL_CLAIM_UID: waiting["metadata"]["uid"],
        names.LABEL_CLAIM: "gone",
    }
    stranger = stage.api.within(f"{stage.namespace}-stranger")
    stage.api.create(objects.namespace(f"{stage.namespace}-stranger"))
    for number in range(4):
        forged = objects.pod(f"forged-{number}")
        forged["metadata"]["labels"] = labels
        stranger.create(forged)
    # As many sandboxes as the pool may have: strangers take no room.
    stage.api.scale("SandboxPool", "pool", 3)
    found = stage.verdict()
    if len(stranger.list("Pod")) != 4:
        found.append("a stranger was deleted")
    told = stage.api.get("SandboxClaim", "waiting").get("status", {})
    if told.get("podName") is not None:
        found.append("a claim was given a stranger")
    stage.api.delete("Namespace", f"{stage.namespace}-stranger")
    return found


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


# --- Clocks and leases ---


def the_clock_goes_back_after_a_failure(stage: Stage) -> list[str]:
    """A pool waits for a moment after refusals, and the wall clock is set back by an hour."""
    set_clock(stage, 3600.0)
    stage.proxy.refuse("POST", POD_CREATE, 403, times=2)
    _pool(stage, 2)
    # It has taken in the second refusal, after which it waits for longer than this takes to see.
    stage.until(lambda: stage.operator.metric("sandboxpool_failures_total") == 2, "two refusals")
    set_clock(stage, 0.0)
    return stage.verdict()


def two_operators_run_with_one_lease(stage: Stage) -> list[str]:
    """Somebody has started a second one: only one of the two fills the pool."""
    stage.another()
    held = stage.proxy.hold("POST", POD_CREATE, times=None)
    _pool(stage, 6, maxSandboxes=6)
    held.wait_reached(60)
    stage.soon(lambda: held.hits > 1, 3.0)
    held.release()
    return stage.verdict()


# --- Overload ---


def more_claims_than_pods(stage: Stage, *, claims: int = 12, replicas: int = 1) -> list[str]:
    """Claims wait in line: they are served in order, and waiting costs no write."""
    _pool(stage, 0, maxSandboxes=claims + replicas)
    pool_status(stage.api, observedGeneration=1)
    for number in range(claims):
        stage.api.create(objects.claim(f"claim-{number:05}", bindTimeoutSeconds=3600))
    # A change of the pool has all that wait looked at again.
    stage.api.scale("SandboxPool", "pool", replicas)
    stage.soon(lambda: len(_served(stage)) == claims, stage.patience + claims / 5)
    # A claim's binding is one write on its pod and one on itself.
    writes = len(stage.proxy.writes(r"/sandboxclaims/.*/status"))
    wrong = [] if writes == claims else [f"{claims} claims cost {writes} writes of their own"]
    found = stage.verdict()
    return [*wrong, *found, *_out_of_order(stage, slack=2 * (replicas - 1))]


def a_crowd_at_another_pool(stage: Stage, *, crowd: int = 120, few: int = 10) -> list[str]:
    """Long lines at one pool do not keep the claims of another one waiting."""
    stage.api.create(objects.runtime_class())
    stage.api.create(objects.pool("crowded", replicas=2, maxSandboxes=crowd + 2))
    stage.api.create(objects.pool("calm", replicas=few, maxSandboxes=2 * few))
    for pool, warm in (("crowded", 2), ("calm", few)):
        pool_status(stage.api, name=pool, warm=warm, timeout=60)
    # All of the crowd stand in line when the few come.
    stage.api.patch_spec("SandboxPool", "crowded", paused=True)
    pool_status(stage.api, name="crowded", observedGeneration=2)
    for number in range(crowd):
        stage.api.create(objects.claim(f"crowd-{number}", "crowded", bindTimeoutSeconds=3600))
    for number in range(few):
        stage.api.create(objects.claim(f"calm-{number}", "calm", bindTimeoutSeconds=3600))
    stage.soon(lambda: len(_served(stage)) >= few + 2)
    stage.api.patch_spec("SandboxPool", "crowded", paused=False)
    stage.soon(lambda: len(_served(stage)) == crowd + few, stage.patience + crowd / 5)
    found = stage.verdict()
    names = [change.object["metadata"]["name"] for change in _served(stage)]
    if len(names) != crowd + few:
        return [*found, f"only {len(names)} claims were served"]
    # Of the calm pool's claims the last one comes long before the line at the other one ends.
    last = max(place for place, name in enumerate(names) if name.startswith("calm"))
    before = sum(name.startswith("crowd") for name in names[:last])
    late = [f"{before} of {crowd} claims of another pool came before theirs"]
    return [*found, *(late if before > crowd // 2 else [])]


def _served(stage: Stage) -> list[Change]:
    """For each claim that was ever bound the write that bound it, in the order of these."""
    served: dict[str, Change] = {}
    for change in sorted(stage.history.changes(), key=lambda c: c.version):
        if change.kind == "SandboxClaim" and _is_bound(change.object):
            served.setdefault(change.uid, change)
    return list(served.values())


def _out_of_order(stage: Stage, slack: int) -> list[str]:
    """The claims that were bound earlier or later than it was their turn."""
    changes = sorted(stage.history.changes(), key=lambda c: c.version)
    created = dict.fromkeys(change.uid for change in changes if change.kind == "SandboxClaim")
    turns = {uid: turn for turn, uid in enumerate(created)}
    return [
        f"claim number {turns[change.uid]} was served as number {place}"
        for place, change in enumerate(_served(stage))
        if abs(turns[change.uid] - place) > slack
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
