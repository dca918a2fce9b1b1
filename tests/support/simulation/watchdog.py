"""Judges every change that is made to the simulated cluster, from the API's objects alone."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable

from sandboxpool.api import names
from sandboxpool.runtimes.probe import LABEL_PROBE
from support.invariants import Snapshot, claim_uids, violations
from support.simulation.apiserver import ApiServer, Change, Object, labels
from support.simulation.machines import ENDED

# So long after a request of a sender that had given up, or was no more, was carried out, what it
# has caused must have been put right.
PUT_RIGHT_SECONDS = 90.0
# So long a change of a pool may go unseen: kopf's watch is down, and each minute's list fails.
UNSEEN_SECONDS = 240.0
WINDOW_SECONDS = 60.0
# Creates and deletes a minute that need no cause, and those that each cause may bring.
UNCAUSED = 30
FOR_EACH_CAUSE = 6
HOUR_SECONDS = 3600.0
# Times in the API have whole seconds.
TIME_GRAIN_SECONDS = 1.1
# How often in an hour a pool may try, whatever is broken: while nothing helps, the pauses between
# its rounds double from one second to five minutes (nine rounds in the first ten minutes) and stay
# there (sixteen more, as they vary). A round is at most what may start at once, or the target.
ROUNDS_AN_HOUR = 25
MAX_STARTING = 10
# What each cause may bring in an hour: a sandbox, and another one if it is lost on the way.
FOR_EACH_CAUSE_AN_HOUR = 2


class Watchdog:
    """Keeps a list of what was wrong at some moment.

    Args:
        server: what it looks at.
        clock: virtual time, in seconds.
        slowest: the longest that a message takes now, in seconds.
    """

    def __init__(
        self, server: ApiServer, clock: Callable[[], float], slowest: Callable[[], float]
    ) -> None:
        self.wrong: list[str] = []
        self._server = server
        self._clock = clock
        self._slowest = slowest
        self._late: dict[str, float] = {}
        # Namespaces in which the operator has nothing to write.
        self.unchecked_namespaces: set[str] = set()
        self._spoiled: set[str] = set()
        self._ceilings: defaultdict[str, list[tuple[float, int | None]]] = defaultdict(list)
        self._writes: dict[str, deque[float]] = {"create": deque(), "delete": deque()}
        self._causes: deque[float] = deque()
        self._made: deque[float] = deque()
        self._causes_of_hour: deque[float] = deque()
        # How many sandboxes one round of a pool may be, by the pool's uid.
        self._rounds: dict[str, int] = {}
        self._told_of_hour = float("-inf")
        # Since when a claim is there or, once it is bound, since when it is.
        self._claims_since: dict[str, float] = {}
        # Further judges: told of each change, they return what was wrong.
        self.judges: list[Callable[[Change], Iterable[str]]] = []
        server.listeners.append(self._see)

    def spoil(self, obj: Object) -> None:
        """Somebody has changed an object as nobody should: it is not judged from now on."""
        self._spoiled.add(obj["metadata"]["uid"])

    def is_spoiled(self, obj: Object) -> bool:
        """Whether somebody has changed it as nobody should."""
        return obj["metadata"]["uid"] in self._spoiled

    def cause(self, count: int = 1) -> None:
        """Something has happened that gives the operator work."""
        self._causes.extend([self._clock()] * count)
        self._causes_of_hour.extend([self._clock()] * count)

    def _see(self, change: Change) -> None:
        for judge in self.judges:
            for found in judge(change):
                self._say(found)
        if change.object["metadata"].get("namespace") in self.unchecked_namespaces:
            if change.by == "operator":
                self._say(f"the operator has written to {_name(change.object)}, which is not its")
            return
        if change.resource == "sandboxpools" and change.new is not None:
            ceiling = change.new["spec"].get("maxSandboxes")
            self._ceilings[change.new["metadata"]["uid"]].append((self._clock(), ceiling))
        if change.resource == "sandboxpools":
            self._note_rounds(change.object)
        if change.resource == "pods" and change.old is None and change.by == "operator":
            self._count_of_hour(change.object)
        if change.resource == "pods" and labels(change.object).get(names.LABEL_POOL_UID):
            if change.by == "operator":
                self._see_pod_written(change)
            self._look()
        if change.resource == "sandboxclaims":
            if change.old is None:
                self._claims_since[change.object["metadata"]["uid"]] = self._clock()
            if change.by == "operator" and change.new is not None and change.old is not None:
                self._see_claim_told(change.old, change.new)
            self._look()

    def say(self, found: Iterable[str]) -> None:
        """Note what somebody else has seen to be wrong."""
        for text in found:
            self._say(text)

    def _say(self, text: str) -> None:
        self.wrong.append(f"at {self._clock():.3f} s: {text}")

    def _look(self) -> None:
        """Hold the whole cluster against the invariants that tests with a real server use, too."""
        now = self._clock()
        pods = [p for p in self._server.all("pods") if not self._excused(p, now)]
        claims = [c for c in self._server.all("sandboxclaims") if not self.is_spoiled(c)]
        for found in violations(Snapshot([*pods], [*claims])):
            if not any(found in known for known in self.wrong):
                self._say(found)

    def _excused(self, pod: Object, now: float) -> bool:
        if pod["metadata"].get("namespace") in self.unchecked_namespaces:
            return True
        return self.is_spoiled(pod) or self._late.get(pod["metadata"]["uid"], 0.0) > now

    # --- Pods ------------------------------------------------------------------------------------

    def _see_pod_written(self, change: Change) -> None:
        pod, was = change.object, change.old
        if change.late:
            self._late[pod["metadata"]["uid"]] = self._clock() + PUT_RIGHT_SECONDS
        if was is None:
            self._count("create")
            if not change.late:
                self._hold_against_ceiling(pod)
        elif change.new is None or (_leaving(change.new) and not _leaving(was)):
            self._count("delete")
            self._hold_against_claims(was)
        elif not claim_uids(was) and claim_uids(pod) and (not _ready(was) or _leaving(was)):
            self._say(f"pod {_name(pod)} was handed out though it was not ready")

    def _hold_against_ceiling(self, pod: Object) -> None:
        uid, now = labels(pod)[names.LABEL_POOL_UID], self._clock()
        known = self._ceilings[uid]
        since = max((at for at, _ in known if at <= now - UNSEEN_SECONDS), default=0.0)
        lately = [ceiling for at, ceiling in known if at >= since]
        if not lately or any(ceiling is None for ceiling in lately):
            return
        highest = max(ceiling for ceiling in lately if ceiling is not None)
        there = [
            p
            for p in self._server.all("pods")
            if labels(p).get(names.LABEL_POOL_UID) == uid
            and p["metadata"]["uid"] not in self._late
            and not self.is_spoiled(p)
            and p["metadata"].get("namespace") not in self.unchecked_namespaces
            # Its node has freed what it held.
            and p["status"].get("phase") not in ENDED
        ]
        if len(there) > highest:
            self._say(f"{len(there)} pods of a pool that may have {highest}, with {_name(pod)}")

    def _hold_against_claims(self, pod: Object) -> None:
        for claim in self._server.all("sandboxclaims"):
            status, metadata = claim.get("status") or {}, claim["metadata"]
            if (
                metadata["uid"] in claim_uids(pod)
                and "deletionTimestamp" not in metadata
                and status.get("phase") == "Bound"
                and status.get("podUID") == pod["metadata"]["uid"]
                and not self.is_spoiled(claim)
                and not self.is_spoiled(pod)
            ):
                self._say(f"pod {_name(pod)} was deleted, and {_name(claim)} uses it")

    def _count(self, verb: str) -> None:
        now, lately = self._clock(), self._writes[verb]
        lately.append(now)
        while lately[0] < now - WINDOW_SECONDS:
            lately.popleft()
        while self._causes and self._causes[0] < now - UNSEEN_SECONDS:
            self._causes.popleft()
        if len(lately) > UNCAUSED + FOR_EACH_CAUSE * len(self._causes):
            self._say(f"{len(lately)} pods {verb}d within a minute: {len(self._causes)} causes")

    def _note_rounds(self, pool: Object) -> None:
        uid, spec = pool["metadata"]["uid"], pool["spec"]
        at_once = spec.get("startup", {}).get("maxStarting", MAX_STARTING)
        size = max(1, min(spec.get("replicas", 0), at_once))
        self._rounds[uid] = max(size, self._rounds.get(uid, 0))

    def _count_of_hour(self, pod: Object) -> None:
        """Count what is made, whatever became of its labels; probes have limits of their own."""
        if LABEL_PROBE in labels(pod):
            return
        now = self._clock()
        self._made.append(now)
        for times in (self._made, self._causes_of_hour):
            while times and times[0] < now - HOUR_SECONDS:
                times.popleft()
        allowed = ROUNDS_AN_HOUR * sum(self._rounds.values())
        allowed += FOR_EACH_CAUSE_AN_HOUR * len(self._causes_of_hour)
        if len(self._made) > allowed and now > self._told_of_hour + HOUR_SECONDS:
            self._told_of_hour = now
            self._say(f"{len(self._made)} pods made within an hour, {allowed} are allowed")

    # --- Claims ----------------------------------------------------------------------------------

    def _see_claim_told(self, old: Object, new: Object) -> None:
        self._hold_against_time(old, new)
        before = (old.get("status") or {}).get("podUID")
        after = (new.get("status") or {}).get("podUID")
        if before and before != after and not self.is_spoiled(new):
            self._say(f"claim {_name(new)} had pod {before} and was told of {after}")

    def _hold_against_time(self, old: Object, new: Object) -> None:
        """Whatever the clocks say, a claim has the time that it was promised."""
        uid, spec, now = new["metadata"]["uid"], new["spec"], self._clock()
        phase = (new.get("status") or {}).get("phase")
        if phase == (old.get("status") or {}).get("phase") or self.is_spoiled(new):
            return
        told = {c.get("reason") for c in new["status"].get("conditions", [])}
        since = self._claims_since.get(uid, now)
        if phase == "Bound":
            # The time counts from before the write that tells of it was sent.
            self._claims_since[uid] = now - self._slowest()
        elif phase == "Expired":
            self._hold_to(new, "has expired", now - since, spec.get("ttlSeconds"))
        elif phase == "Failed" and "BindTimeout" in told:
            self._hold_to(new, "has timed out", now - since, spec.get("bindTimeoutSeconds"))

    def _hold_to(self, claim: Object, what: str, seconds: float, promised: float | None) -> None:
        if promised is not None and seconds < promised - TIME_GRAIN_SECONDS:
            self._say(f"claim {_name(claim)} {what} after {seconds:.1f} of {promised} s")


def _ready(pod: Object) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"]["conditions"])


def _leaving(pod: Object) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def _name(obj: Object) -> str:
    return str(obj["metadata"]["name"])
