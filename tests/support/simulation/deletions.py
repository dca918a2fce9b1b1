"""Judges each deletion of a sandbox that was ready once."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator

from sandboxpool.api import names
from support.invariants import claim_uids
from support.simulation.apiserver import ApiServer, Change, Object, labels
from support.simulation.machines import is_true
from support.simulation.reasons import Case, unexplained

# What was so a short while ago may be what the operator sees: kopf's watch may be down, and each
# minute's list fail.
LATELY_SECONDS = 240.0
# What somebody takes from the stock at the same moment is not the operator's doing.
MEANWHILE_SECONDS = 3.0
# While messages are lost, and so long after, nobody knows what the operator has seen.
WELL_SECONDS = 60.0


class Deletions:
    """Knows which pods were ready, and what stood otherwise a short while ago.

    Args:
        server: where the objects are.
        clock: virtual time, in seconds.
        well: for how many seconds the network and the operator have been well.
        said: what the operator has said of a pod: a word, and a text.
        is_spoiled: whether somebody has changed an object as nobody should.
    """

    def __init__(
        self,
        server: ApiServer,
        clock: Callable[[], float],
        well: Callable[[], float],
        said: Callable[[Object], tuple[str, str]],
        is_spoiled: Callable[[Object], bool],
    ) -> None:
        self._server = server
        self._clock = clock
        self._well = well
        self._said = said
        self._is_spoiled = is_spoiled
        self._was_ready: set[str] = set()
        self._unready_since: dict[str, float] = {}
        self._targets: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
        # When pods left a pool's ready stock by somebody else's doing, by the pool's uid.
        self._taken: defaultdict[str, deque[float]] = defaultdict(deque)
        self._nodes_away: dict[str, float] = {}
        self._unserved: dict[str, float] = {}
        self._classes_changed = float("-inf")

    def see(self, change: Change) -> Iterator[str]:
        """Take a change in; yield what was wrong with it."""
        new = change.new
        match change.resource:
            case "sandboxpools" if new is not None:
                self._see_pool(change.old, new)
            case "runtimeclasses":
                self._classes_changed = self._clock()
            case "nodes":
                name = change.object["metadata"]["name"]
                if new is None:
                    self._nodes_away[name] = self._clock()
                elif not _serves(new) or (change.old is not None and not _serves(change.old)):
                    self._unserved[name] = self._clock()
            case "pods" if names.LABEL_POOL_UID in labels(change.object):
                yield from self._see_pod(change)

    def _see_pool(self, old: Object | None, new: Object) -> None:
        spec = new["spec"]
        self._targets[new["metadata"]["uid"]].append((self._clock(), spec.get("replicas", 0)))
        if old is not None and old["spec"].get("runtimeClassName") != spec["runtimeClassName"]:
            self._classes_changed = self._clock()

    def _see_pod(self, change: Change) -> Iterator[str]:
        was, pod, now = change.old, change.new, self._clock()
        uid = change.object["metadata"]["uid"]
        leaves = was is not None and not _leaving(was) and (pod is None or _leaving(pod))
        judged = change.by == "operator" and not change.late and uid in self._was_ready
        if was is not None and leaves and judged and not self._is_spoiled(was):
            word, text = self._said(was)
            case = self._case(was)
            if unexplained(case, word):
                yield f"pod {was['metadata']['name']} was ready once and is deleted: {text}"
        if was is not None and _in_stock(was) and is_true(was, "Ready"):
            still = pod is not None and _in_stock(pod) and is_true(pod, "Ready")
            if not still and not (leaves and change.by == "operator"):
                self._taken[labels(was)[names.LABEL_POOL_UID]].append(now)
        if pod is None:
            self._was_ready.discard(uid)
            self._unready_since.pop(uid, None)
        elif is_true(pod, "Ready"):
            self._was_ready.add(uid)
            self._unready_since.pop(uid, None)
        elif uid in self._was_ready:
            self._unready_since.setdefault(uid, now)

    def _case(self, pod: Object) -> Case:
        now, uid = self._clock(), pod["metadata"]["uid"]
        namespace = pod["metadata"]["namespace"]
        pool = self._by_uid("sandboxpools", namespace, {labels(pod)[names.LABEL_POOL_UID]})
        held_by = claim_uids(pod)
        node = pod["spec"].get("nodeName", "")
        since = self._unready_since.get(uid)
        recent = now - LATELY_SECONDS
        return Case(
            pod=pod,
            pool=pool,
            claim=self._by_uid("sandboxclaims", namespace, held_by),
            claimed=bool(held_by),
            node_gone=self._nodes_away.get(node, recent) > recent,
            unserved=self._unserved.get(node, recent) > recent or not self._serves(node),
            class_changed=self._classes_changed > recent or self._of_another_class(pod, pool),
            unready_for=None if since is None else now - since,
            excess=self._excess(pool) if pool is not None else 0,
            spare=self._spare(pool) if pool is not None else None,
        )

    def _by_uid(self, resource: str, namespace: str, uids: set[str]) -> Object | None:
        listed = self._server.all(resource)
        return next(
            (
                o
                for o in listed
                if o["metadata"]["uid"] in uids and o["metadata"]["namespace"] == namespace
            ),
            None,
        )

    def _serves(self, node: str) -> bool:
        found = self._server.find("nodes", node)
        return found is not None and _serves(found)

    def _of_another_class(self, pod: Object, pool: Object | None) -> bool:
        wanted = pool["spec"].get("runtimeClassName") if pool is not None else None
        return bool(pod["spec"].get("runtimeClassName") != wanted)

    def _members(self, pool: Object) -> list[Object]:
        uid, pods = pool["metadata"]["uid"], self._server.all("pods")
        return [p for p in pods if labels(p).get(names.LABEL_POOL_UID) == uid]

    def _lowest_target(self, pool: Object) -> int:
        known, now = self._targets[pool["metadata"]["uid"]], self._clock()
        since = max((at for at, _ in known if at <= now - LATELY_SECONDS), default=0.0)
        lowest = min((target for at, target in known if at >= since), default=0)
        ceiling: int | None = pool["spec"].get("maxSandboxes")
        if ceiling is None:
            return lowest
        claimed = sum(bool(claim_uids(p)) for p in self._members(pool))
        return max(0, min(lowest, ceiling - claimed))

    def _excess(self, pool: Object) -> int | None:
        if self._well() < WELL_SECONDS:
            return None
        # The pod itself is leaving by now.
        stock = [p for p in self._members(pool) if _in_stock(p)]
        return len(stock) + 1 + self._lately_taken(pool) - self._lowest_target(pool)

    def _lately_taken(self, pool: Object) -> int:
        """How many of the stock were handed out or lost while the request was on its way."""
        now, taken = self._clock(), self._taken[pool["metadata"]["uid"]]
        while taken and taken[0] < now - MEANWHILE_SECONDS:
            taken.popleft()
        return len(taken)

    def _spare(self, pool: Object) -> int | None:
        if self._well() < WELL_SECONDS:
            return None
        stock = [p for p in self._members(pool) if _in_stock(p)]
        ready = sum(is_true(p, "Ready") for p in stock)
        floor = self._lowest_target(pool)
        ceiling: int | None = pool["spec"].get("maxSandboxes")
        if ceiling is not None:
            # What is not ready and stays leaves no room to make others first.
            floor = min(floor, ceiling - (len(stock) - ready))
        unavailable: int = pool["spec"].get("update", {}).get("maxUnavailable", 1)
        floor -= unavailable
        return ready + 1 + self._lately_taken(pool) - max(0, floor)


def _serves(node: Object) -> bool:
    return any(h["name"] == "runsc" for h in node["status"].get("runtimeHandlers", []))


def _leaving(pod: Object) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def _in_stock(pod: Object) -> bool:
    return not claim_uids(pod) and not _leaving(pod)
