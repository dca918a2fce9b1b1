"""Judges what the bridge does, from the API's objects and the tasks that sandboxes are given."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Callable, Iterator

from sandboxpool.api.opensandbox import LABEL_OPENSANDBOX
from support.invariants import claim_uids
from support.simulation.apiserver import ApiServer, Change, Object, labels, owners
from support.simulation.machines import ENDED
from support.simulation.opensandbox import Answer, OpenSandbox, Request, endpoints_of, phase_of

# What the bridge may write, and how.
RIGHTS = {
    "sandboxclaims": {"create", "delete"},
    "batchsandboxes": {"patch", "delete"},
    "pools": {"create", "patch", "delete"},
    "events": {"create"},
    "leases": {"create", "patch"},
}
# Within so long, while all is well, what is over must be put right: the collector takes two
# seconds, and the bridge waits ten for it.
PUT_RIGHT_SECONDS = 20.0
# So long a bound claim may be unpublished: the task is delivered for ten seconds, execd is waited
# for for ten, and both are slow.
PUBLISH_SECONDS = 30.0
EXPIRY_SECONDS = 5.0
# What was amiss may have left something that is under way for so long.
SETTLE_SECONDS = 30.0


class BridgeJudge:
    """Sees each change.

    Args:
        server: where the objects are.
        opensandbox: whose requests there are.
        clock: virtual time, in seconds.
        wall: the API server's clock.
        well: for how many seconds the network, the operator and the bridge have been well.
        is_spoiled: whether somebody has changed an object as nobody should.
    """

    def __init__(
        self,
        server: ApiServer,
        opensandbox: OpenSandbox,
        clock: Callable[[], float],
        wall: Callable[[], float],
        well: Callable[[], float],
        is_spoiled: Callable[[Object], bool],
    ) -> None:
        self._server = server
        self._opensandbox = opensandbox
        self._clock = clock
        self._wall = wall
        self._well = well
        self._is_spoiled = is_spoiled
        # By the uid of a claim: the BatchSandbox that it belongs to.
        self._owner_of: dict[str, str] = {}
        # By the uid of a BatchSandbox: the pods that its claims were bound to.
        self.pods_of: defaultdict[str, set[str]] = defaultdict(set)
        self._claims_taken: defaultdict[str, int] = defaultdict(int)
        self._expired: set[str] = set()
        # By the uid of a pod.
        self._ip_of: dict[str, str] = {}
        # The BatchSandbox that has named an address first.
        self._named_by: dict[str, str] = {}
        self._since: dict[tuple[str, str], float] = {}
        # Since when a pool and its mirror are open to OpenSandbox.
        self._open_since: dict[str, float] = {}
        self._wrong_answers: list[str] = []
        opensandbox.on_answer.append(self._see_answer)

    def see(self, change: Change) -> Iterator[str]:
        """Take a change in; yield what was wrong with it."""
        if change.by == "bridge":
            verb = "create" if change.old is None else "delete" if change.new is None else "patch"
            if verb not in RIGHTS.get(change.resource, ()):
                yield f"the bridge may not {verb} {change.resource}"
        match change.resource:
            case "pods":
                address = change.object["status"].get("podIP")
                if address:
                    self._ip_of[change.object["metadata"]["uid"]] = address
            case "sandboxclaims":
                yield from self._see_claim(change)
            case "batchsandboxes":
                yield from self._see_sandbox(change)
            case "sandboxpools" | "pools":
                self._note_pool(change.object["metadata"]["name"])

    # --- Claims and tasks ------------------------------------------------------------------------

    def _see_claim(self, change: Change) -> Iterator[str]:
        claim = change.object
        uid, status = claim["metadata"]["uid"], claim.get("status") or {}
        owner = next((o["uid"] for o in owners(claim) if o["kind"] == "BatchSandbox"), "")
        if change.by == "bridge" and change.old is None and not owner:
            yield f"claim {_name(claim)} is nobody's"
        self._owner_of.setdefault(uid, owner)
        owner = self._owner_of[uid]
        if not owner:
            return
        if change.new is None and change.by != "bridge":
            self._claims_taken[owner] += 1
        if status.get("phase") == "Expired":
            self._expired.add(owner)
        if status.get("phase") == "Bound":
            pods = self.pods_of[owner]
            pods.add(status["podUID"])
            if len(pods) > 1 + self._claims_taken[owner] and not self._is_spoiled(claim):
                yield f"BatchSandbox {_name(claim)} got {len(pods)} pods"

    def see_task(self, pod: Object, name: str, process: Object) -> Iterator[str]:
        """Take in that a pod was given a task; yield what was wrong with it."""
        of = {self._owner_of.get(uid, "") for uid in claim_uids(pod)}
        meant_for = self._opensandbox.whose(process)
        if of != {meant_for}:
            yield f"pod {_name(pod)} of {of} was given the task of {meant_for}"
        request = self._opensandbox.requests.get(meant_for)
        if request is not None and name != f"{request.name}-0":
            yield f"the task of BatchSandbox {request.name} is named {name}"

    # --- BatchSandboxes --------------------------------------------------------------------------

    def _see_sandbox(self, change: Change) -> Iterator[str]:
        old, new = change.old, change.new
        if new is None:
            if change.by == "bridge" and old is not None:
                yield from self._see_deletion(old)
            return
        name, uid, addresses = _name(new), new["metadata"]["uid"], endpoints_of(new)
        yield from self._see_addresses(name, uid, addresses)
        if old is None:
            return
        if change.by == "bridge" and old["spec"] != new["spec"]:
            yield f"the bridge has changed the spec of BatchSandbox {name}"
        was, now = phase_of(old), phase_of(new)
        if now == "Failed" and addresses:
            yield f"BatchSandbox {name} has failed and names {addresses}"
        if was == now:
            return
        if now == "Succeed" and not addresses:
            yield f"BatchSandbox {name} runs and has no address"
        if was == "Failed" or (was == "Succeed" and now != "Failed"):
            yield f"BatchSandbox {name} was {was} and is {now} now"
        if was == "Succeed" and now == "Failed" and self._is_bound(new):
            yield f"BatchSandbox {name} has failed, and its claim is bound"

    def _see_addresses(self, name: str, uid: str, addresses: list[str]) -> Iterator[str]:
        rightful = {self._ip_of.get(pod) for pod in self.pods_of[uid]}
        for address in addresses:
            if address not in rightful:
                yield f"BatchSandbox {name} names {address}, and its pods are at {rightful}"
            first = self._named_by.setdefault(address, uid)
            if first != uid:
                yield f"BatchSandbox {name} names {address}, which was that of another"
        known = [a for a, named_by in self._named_by.items() if named_by == uid]
        if len(known) > 1:
            yield f"BatchSandbox {name} has named {known}, one after another"

    def _see_deletion(self, old: Object) -> Iterator[str]:
        left = expires_at(old) - self._wall()
        if left > 0.0 and old["metadata"]["uid"] not in self._expired:
            yield f"BatchSandbox {_name(old)} is deleted {left:.1f} s before its time"

    def _see_answer(self, request: Request) -> None:
        now = self._clock()
        open_for = now - self._open_since.get(request.pool, now)
        asked_for = now - request.posted_at
        if request.answer is Answer.TIMEOUT and min(self._well(), open_for) > (
            asked_for + SETTLE_SECONDS
        ):
            self._wrong_answers.append(f"BatchSandbox {request.name} was never answered")

    def _note_pool(self, name: str) -> None:
        pools = [p for p in self._server.all("sandboxpools") if p["metadata"]["name"] == name]
        mirrors = [p for p in self._server.all("pools") if p["metadata"]["name"] == name]
        uids = {p["metadata"]["uid"] for p in pools if is_open(p)}
        if any(owner["uid"] in uids for mirror in mirrors for owner in owners(mirror)):
            self._open_since.setdefault(name, self._clock())
        else:
            self._open_since.pop(name, None)

    def _claim_of(self, sandbox: Object) -> Object | None:
        metadata = sandbox["metadata"]
        found = self._server.find("sandboxclaims", metadata["name"], metadata["namespace"])
        mine = found is not None and self._owner_of[found["metadata"]["uid"]] == metadata["uid"]
        return found if mine else None

    def _is_bound(self, sandbox: Object) -> bool:
        claim = self._claim_of(sandbox)
        if claim is None or self._is_spoiled(claim):
            return False
        return bool((claim.get("status") or {}).get("phase") == "Bound")

    # --- What takes too long ---------------------------------------------------------------------

    def look(self) -> Iterator[str]:
        """Yield what has been amiss for too long while all was well."""
        yield from self._wrong_answers
        self._wrong_answers.clear()
        now, well = self._clock(), self._well()
        found = {(what, name): limit for what, name, limit in self._amiss()}
        self._since = {key: self._since.get(key, now) for key in found}
        for key, limit in found.items():
            if min(now - self._since[key], well - SETTLE_SECONDS) > limit:
                what, name = key
                yield f"for {now - self._since[key]:.0f} s BatchSandbox {name} {what}"
                self._since[key] = now

    def _amiss(self) -> Iterator[tuple[str, str, float]]:
        there = {s["metadata"]["uid"] for s in self._server.all("batchsandboxes")}
        for sandbox in self._server.all("batchsandboxes"):
            name, phase = _name(sandbox), phase_of(sandbox)
            claim = self._claim_of(sandbox)
            if claim is not None and self._is_spoiled(claim):
                continue
            status = (claim or {}).get("status") or {}
            ours = claim is not None or phase or endpoints_of(sandbox)
            if ours and expires_at(sandbox) < self._wall() - 2.0:
                yield "is there and has expired", name, EXPIRY_SECONDS
            if endpoints_of(sandbox) and status.get("phase") != "Bound":
                yield "names the address of a pod that is not its own", name, PUT_RIGHT_SECONDS
            if phase == "Failed" and status.get("phase") in (None, "Pending", "Bound") and claim:
                yield "has failed and has a claim", name, PUT_RIGHT_SECONDS
            if status.get("phase") == "Bound" and phase not in ("Succeed", "Failed"):
                yield "has a sandbox and does not say so", name, PUBLISH_SECONDS
        for claim in self._server.all("sandboxclaims"):
            owner = self._owner_of[claim["metadata"]["uid"]]
            if owner and owner not in there and not self._is_spoiled(claim):
                yield "is gone, and its claim is there", _name(claim), PUT_RIGHT_SECONDS

    # --- In the end ------------------------------------------------------------------------------

    def not_converged(self, namespace: str) -> Iterator[str]:
        """What is not yet as it should be, a sentence each."""
        pods = {p["metadata"]["uid"]: p for p in self._server.all("pods")}
        for what, name, _ in self._amiss():
            yield f"BatchSandbox {name} {what}"
        for sandbox in self._server.all("batchsandboxes"):
            yield from self._sandbox_not_converged(sandbox, pods)
        open_pools = {
            p["metadata"]["name"]: p
            for p in self._server.all("sandboxpools")
            if is_open(p) and p["metadata"]["namespace"] == namespace
        }
        ours = {}
        for mirror in self._server.all("pools"):
            if any(owners(mirror)):
                ours[_name(mirror)] = mirror
            else:
                open_pools.pop(_name(mirror), None)
        for name in open_pools.keys() ^ ours.keys():
            yield f"pool {name}: {'no ' if name in open_pools else 'a '}Pool mirrors it"
        for name in open_pools.keys() & ours.keys():
            status, given = ours[name].get("status") or {}, open_pools[name].get("status") or {}
            told = status.get("allocated"), status.get("available")
            real = given.get("claimed", 0), given.get("warm", 0)
            if told != real:
                yield f"Pool {name} says {told}, and its SandboxPool {real}"

    def _sandbox_not_converged(self, sandbox: Object, pods: dict[str, Object]) -> Iterator[str]:
        name, phase, uid = _name(sandbox), phase_of(sandbox), sandbox["metadata"]["uid"]
        claim = self._claim_of(sandbox)
        if claim is not None and self._is_spoiled(claim):
            return
        if phase == "Succeed":
            status = (claim or {}).get("status") or {}
            pod = pods.get(status.get("podUID", ""))
            if pod is None or endpoints_of(sandbox) != [pod["status"].get("podIP")]:
                yield f"BatchSandbox {name} runs, and its address is not that of its pod"
        alive = [
            pods[pod]
            for pod in self.pods_of[uid] & pods.keys()
            if pods[pod]["status"].get("phase") not in ENDED
        ]
        if phase == "Failed" and alive:
            yield f"BatchSandbox {name} has failed and has {len(alive)} pods"
        request = self._opensandbox.requests.get(uid)
        if request is not None and request.answer is None:
            yield f"the user of BatchSandbox {name} waits"


def is_open(pool: Object) -> bool:
    """Whether OpenSandbox may use a SandboxPool."""
    return labels(pool).get(LABEL_OPENSANDBOX) in ("Executor", "Prestarted")


def expires_at(sandbox: Object) -> float:
    text = sandbox["spec"].get("expireTime")
    return datetime.datetime.fromisoformat(text).timestamp() if text else float("inf")


def _name(obj: Object) -> str:
    return str(obj["metadata"]["name"])
