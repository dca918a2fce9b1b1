"""Judges how claims end: never with a reason that was true at no moment of their lives.

What the operator sees of one kind may be far behind what it sees of another. The judge sees
everything at once, and notes for each claim what could be said of it from its creation on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

from sandboxpool.api import names
from support.invariants import claim_uids, full_name
from support.simulation.apiserver import ApiServer, Change, Object, labels
from support.simulation.machines import ENDED, is_true

# What a pool wants, and what may be asserted of it.
ASSERTABLE = {
    "None": set[str](),
    "PerNode": {"PerNode"},
    "PerSandbox": {"PerNode", "PerSandbox"},
}
# A sandbox may still be held for a claim that went so short a time ago.
HELD_SECONDS = 120.0
# A pool whose spec has changed so short a time ago may be exchanging its sandboxes.
CHANGING_SECONDS = 600.0
# What a pod's condition DisruptionTarget makes of its claim, and what the kubelet's own reason.
DISRUPTIONS = {
    "EvictionByEvictionAPI": "EvictionByEvictionAPI",
    "PreemptionByScheduler": "PreemptionByScheduler",
    "DeletionByTaintManager": "DeletionByTaintManager",
    "DeletionByPodGC": "DeletionByPodGC",
}
KUBELET = {"Evicted": "Evicted", "Terminated": "NodeShutdown"}
# How long a claim may live, and how long it waits, is held against the clock elsewhere.
OF_TIME = {"BindTimeout", "TTLExpired"}


class Verdicts:
    """Told of each change, knows what held of each claim.

    Args:
        server: where the objects are.
        clock: virtual time, in seconds.
        is_good: whether sandboxes on a node are beyond doubt.
        judged: whether an object is judged at all.
    """

    def __init__(
        self,
        server: ApiServer,
        clock: Callable[[], float],
        is_good: Callable[[str], bool],
        judged: Callable[[Object], bool],
    ) -> None:
        self._server = server
        self._clock = clock
        self._is_good = is_good
        self._judged = judged
        self._held: defaultdict[str, set[str]] = defaultdict(set)
        self._gone_at: dict[str, tuple[str, str, float]] = {}
        self._changed_at: dict[str, float] = {}

    def see(self, change: Change) -> Iterator[str]:
        """Take a change in; yield what was wrong with it."""
        old, new = change.old, change.new
        match change.resource:
            case "pods":
                self._note_pod(change)
            case "nodes" if new is None:
                for claim in self._server.all("sandboxclaims"):
                    if _status(claim).get("nodeName") == change.object["metadata"]["name"]:
                        self._held[_uid(claim)].add("NodeLost")
            case "sandboxpools" if old is not None and new is not None:
                if old["spec"] != new["spec"]:
                    self._changed_at[_uid(new)] = self._clock()
            case "sandboxclaims":
                if new is None:
                    where = (
                        change.object["metadata"]["namespace"],
                        change.object["spec"]["poolName"],
                    )
                    self._gone_at[_uid(change.object)] = *where, self._clock()
                elif old is not None and change.by == "operator":
                    yield from self._judge(old, new)
        self._note_pools()

    def _judge(self, old: Object, new: Object) -> Iterator[str]:
        phase = _status(new).get("phase")
        if phase not in ("Failed", "Lost") or phase == _status(old).get("phase"):
            return
        if not self._judged(new):
            return
        reason = next(c["reason"] for c in _status(new)["conditions"] if c["type"] == "Bound")
        held = self._held[_uid(new)] | OF_TIME
        if self._server.find("nodes", _status(new).get("nodeName", "")) is None:
            held.add("NodeLost")
        if reason not in held:
            known = sorted(held - OF_TIME)
            yield f"claim {full_name(new)} is {phase} for {reason}, which never was: {known}"

    # --- What holds ------------------------------------------------------------------------------

    def _note_pod(self, change: Change) -> None:
        pod = change.object
        told = {"PodLost"} if change.new is None else set(_said_by(pod))
        for uid in claim_uids(pod):
            self._held[uid] |= told

    def _note_pools(self) -> None:
        for claim in self._server.all("sandboxclaims"):
            if _status(claim).get("phase") not in (None, "", "Pending"):
                continue
            namespace, name = claim["metadata"]["namespace"], claim["spec"]["poolName"]
            pool = self._server.find("sandboxpools", name, namespace)
            if pool is not None:
                self._held[_uid(claim)] |= set(_refusals(claim, pool))
            if claim["spec"].get("onEmpty") == "Fail" and not (pool and self._serves(claim, pool)):
                self._held[_uid(claim)].add("NoWarmSandbox")

    def _serves(self, claim: Object, pool: Object) -> bool:
        """There is certainly a sandbox for a claim, however many other claims there are."""
        now, spec = self._clock(), pool["spec"]
        lately = now - self._changed_at.get(_uid(pool), float("-inf")) < CHANGING_SECONDS
        there = self._server.find("runtimeclasses", spec["runtimeClassName"]) is not None
        if lately or not there or spec.get("isolationProof", "PerNode") != "None":
            return False
        free = [p for p in self._server.all("pods") if self._is_free(p, pool)]
        where = pool["metadata"]["namespace"], pool["metadata"]["name"]
        others = [
            other
            for other in self._server.all("sandboxclaims")
            if (other["metadata"]["namespace"], other["spec"]["poolName"]) == where
            and _status(other).get("phase") in (None, "", "Pending")
            and other is not claim
        ]
        gone = [at for *of, at in self._gone_at.values() if tuple(of) == where]
        held = len(others) + sum(now - at < HELD_SECONDS for at in gone)
        return min(len(free), int(spec.get("replicas", 0))) > held

    def _is_free(self, pod: Object, pool: Object) -> bool:
        return (
            labels(pod).get(names.LABEL_POOL_UID) == _uid(pool)
            and not claim_uids(pod)
            and "deletionTimestamp" not in pod["metadata"]
            and self._judged(pod)
            and is_true(pod, "Ready")
            and pod["spec"].get("runtimeClassName") == pool["spec"]["runtimeClassName"]
            and self._is_good(pod["spec"].get("nodeName", ""))
        )


def _refusals(claim: Object, pool: Object) -> Iterator[str]:
    """Why a pool will never serve a claim, as the API's objects say."""
    wants, has = claim["spec"], pool["spec"]
    if wants.get("runtimeClassName") not in (None, has["runtimeClassName"]):
        yield "RuntimeClassMismatch"
    assertable = ASSERTABLE[has.get("isolationProof", "PerNode")]
    if wants.get("isolationProof") not in {None, *assertable}:
        yield "IsolationProofMismatch"
    prefixes = tuple((has.get("claims") or {}).get("allowedMetadataPrefixes", ()))
    keys = [key for part in (wants.get("metadata") or {}).values() for key in part]
    if not all(key.startswith(prefixes or ("\0",)) for key in keys):
        yield "MetadataNotAllowed"
    if wants.get("config") and not (has.get("claims") or {}).get("configPath", "/run/sandbox"):
        yield "ConfigNotMounted"


def _said_by(pod: Object) -> Iterator[str]:
    """What a pod says of its end."""
    status = pod["status"]
    for condition in status.get("conditions") or ():
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            yield DISRUPTIONS.get(condition["reason"], "Disrupted")
    if "deletionTimestamp" in pod["metadata"]:
        yield "PodDeleted"
    if status.get("phase") not in ENDED:
        return
    if status.get("reason") in KUBELET:
        yield KUBELET[status["reason"]]
    ended = [c["state"].get("terminated") for c in status.get("containerStatuses") or ()]
    if any(state and state.get("reason") == "OOMKilled" for state in ended):
        yield "OOMKilled"
    elif any(ended) or status.get("phase") == "Succeeded":
        yield "ContainersExited"
    else:
        yield "PodFailed"


def _status(claim: Object) -> Object:
    found: Object = claim.get("status") or {}
    return found


def _uid(obj: Object) -> str:
    return str(obj["metadata"]["uid"])
