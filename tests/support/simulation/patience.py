"""Judges how long claims wait while nothing stands in their way, and who is served before whom.

A claim that waits beside a warm sandbox is a matter of a second; one that needs a new sandbox is a
matter of minutes, as long as a single node is healthy. Both are measured only while the network,
the operator and the policies that the claim meets are well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sandboxpool.api import names
from support.invariants import claim_uids, is_cold, overtaken, waits
from support.simulation.admission import CHANGE, CHECK, CREATE
from support.simulation.apiserver import ApiServer, Change, Object, labels
from support.simulation.kubelets import Kubelets
from support.simulation.machines import images_of, is_true

# Within so long a claim is bound beside a warm sandbox. Messages take up to 0.3 s each way.
BIND_SECONDS = 2.0
# So long a pool may need for a claim's sandbox, where one node is healthy: its longest pause after
# failures, the time a start is given, and the start itself.
SERVE_SECONDS = 700.0
# What was amiss may have left something that is under way for so long.
SETTLE_SECONDS = 10.0
# A node that was not good may be quarantined for as long as the longest breaker stays open.
TRUST_SECONDS = 2400.0
# Who has waited for less may be in the middle of being served; after a cold start that has failed
# a claim pauses for up to half a minute.
IN_LINE_SECONDS = 5.0
IN_COLD_LINE_SECONDS = 35.0


@dataclass
class Wait:
    """Since when a claim waits: beside a warm sandbox, beside a healthy node, in line at all."""

    warm: float | None = None
    served: float | None = None
    line: float | None = None


class WaitChecker:
    """Looks at all claims at each change, and whenever a test looks.

    Args:
        server: where the objects are.
        kubelets: what the nodes and images are like.
        clock: virtual time, in seconds.
        well: for how many seconds the network and the operator have been well.
        judged: whether an object is judged at all.
    """

    def __init__(
        self,
        server: ApiServer,
        kubelets: Kubelets,
        clock: Callable[[], float],
        well: Callable[[], float],
        judged: Callable[[Object], bool],
    ) -> None:
        self._server = server
        self._kubelets = kubelets
        # When a node was last seen not to be good.
        self._bad_at: dict[str, float] = {}
        self._clock = clock
        self._well = well
        self._judged = judged
        self._waits: defaultdict[str, Wait] = defaultdict(Wait)
        self._told: set[str] = set()

    def see(self, change: Change) -> list[str]:
        """Take a change in; return what was wrong."""
        wrong = []
        if change.resource == "sandboxclaims" and change.new is not None:
            old = (change.old or {}).get("status") or {}
            new = change.new.get("status") or {}
            if new.get("phase") == "Bound" != old.get("phase") and change.by == "operator":
                wrong = self._out_of_turn(change.new)
        return wrong + self.look()

    def _out_of_turn(self, bound: Object) -> list[str]:
        now = self._clock()
        pods = self._server.all("pods")
        found = overtaken(bound, self._server.all("sandboxclaims"), pods)
        least = IN_COLD_LINE_SECONDS if is_cold(bound, pods) else IN_LINE_SECONDS
        wrong = []
        for claim in found:
            since = self._waits[claim["metadata"]["uid"]].line
            if since is not None and now - since > least:
                wrong.append(
                    f"claim {_name(bound)} is bound, and {_name(claim)}, which came before it and "
                    f"has waited for {now - since:.1f} s, is not"
                )
        return wrong

    def look(self) -> list[str]:
        """See which claims wait for what, and which have waited for too long."""
        claims = [c for c in self._server.all("sandboxclaims") if waits(c) and self._judged(c)]
        known = {c["metadata"]["uid"] for c in claims}
        for uid in self._waits.keys() - known:
            del self._waits[uid]
        self._note_nodes()
        now, well = self._clock(), self._well()
        if not claims:
            return []
        stocks, members = self._stocks()
        # Who has a sandbox of its own that may yet become ready does not wait for another.
        staying = (p for p in self._server.all("pods") if "deletionTimestamp" not in p["metadata"])
        served = set().union(*map(claim_uids, staying))
        wrong = []
        for claim in sorted(claims, key=lambda c: int(c["metadata"]["uid"].removeprefix("uid-"))):
            metadata, wait = claim["metadata"], self._waits[claim["metadata"]["uid"]]
            pool = self._pool_of(claim)
            fair = pool is not None and well > SETTLE_SECONDS and self._is_let(claim, pool)
            uid = pool["metadata"]["uid"] if pool is not None else ""
            needs = metadata["uid"] not in served
            wait.line = _since(wait.line, fair and needs, now)
            wait.warm = _since(wait.warm, fair and needs and stocks[uid] > 0, now)
            stocks[uid] -= needs
            serves = fair and pool is not None and self._can_serve(pool, members[uid])
            wait.served = _since(wait.served, serves and needs, now)
            for since, most, beside in (
                (wait.warm, BIND_SECONDS, "a warm sandbox"),
                (wait.served, SERVE_SECONDS, "a healthy node"),
            ):
                if since is not None and now - since > most and metadata["uid"] not in self._told:
                    self._told.add(metadata["uid"])
                    wrong.append(
                        f"claim {_name(claim)} has waited for {now - since:.1f} s beside {beside}"
                    )
        return wrong

    def _pool_of(self, claim: Object) -> Object | None:
        namespace = claim["metadata"]["namespace"]
        pool = self._server.find("sandboxpools", claim["spec"]["poolName"], namespace)
        return pool if pool is not None and "deletionTimestamp" not in pool["metadata"] else None

    def _is_let(self, claim: Object, pool: Object) -> bool:
        """Nothing refuses this claim, or holds it up."""
        wanted = claim["spec"].get("runtimeClassName")
        metadata, admission = pool["metadata"], self._server.admission
        return (
            claim["spec"].get("onEmpty") != "Fail"
            and wanted in (None, pool["spec"]["runtimeClassName"])
            and not any(
                plugin.concerns(what, metadata["namespace"], f"{metadata['name']}-x")
                for plugin in admission.plugins
                for what in (CREATE, CHECK, CHANGE)
            )
        )

    def _stocks(self) -> tuple[defaultdict[str, int], defaultdict[str, list[Object]]]:
        """How many pods of each pool are warm, by what it says and by what they are."""
        members: defaultdict[str, list[Object]] = defaultdict(list)
        for pod in self._server.all("pods"):
            members[labels(pod).get(names.LABEL_POOL_UID, "")].append(pod)
        stocks: defaultdict[str, int] = defaultdict(int)
        for pool in self._server.all("sandboxpools"):
            uid = pool["metadata"]["uid"]
            said = (pool.get("status") or {}).get("warm", 0)
            stocks[uid] = min(said, sum(self._is_warm(p, pool) for p in members[uid]))
        return stocks, members

    def _is_warm(self, pod: Object, pool: Object) -> bool:
        return (
            not claim_uids(pod)
            and "deletionTimestamp" not in pod["metadata"]
            and self._judged(pod)
            and is_true(pod, "Ready")
            and pod["spec"].get("runtimeClassName") == pool["spec"]["runtimeClassName"]
            and self._is_open(pod["spec"].get("nodeName", ""))
        )

    def _is_open(self, name: str) -> bool:
        """A node is ready, takes pods, and lists the handler."""
        node = self._server.find("nodes", name)
        return (
            node is not None
            and is_true(node, "Ready")
            and not node["spec"].get("unschedulable")
            and any(h["name"] == "runsc" for h in node["status"].get("runtimeHandlers", []))
        )

    def _can_serve(self, pool: Object, members: Iterable[Object]) -> bool:
        """The pool may make a sandbox, and there is a healthy node with room for it."""
        spec, members = pool["spec"], list(members)
        ceiling = spec.get("maxSandboxes")
        images = images_of(spec["template"])
        return (
            not spec.get("paused")
            and spec.get("replicas", 0) > 0
            and (ceiling is None or len([p for p in members if claim_uids(p)]) < ceiling)
            and self._server.find("runtimeclasses", spec["runtimeClassName"]) is not None
            and not images & self._kubelets.never_ready
            and any(self.is_good(name) for name in self._kubelets.nodes)
        )

    def _note_nodes(self) -> None:
        for name, node in self._kubelets.nodes.items():
            if not (node.healthy and self._is_open(name)):
                self._bad_at[name] = self._clock()

    def is_good(self, name: str) -> bool:
        """A node is healthy, has been so for long, and has room."""
        if name not in self._kubelets.nodes:
            return False
        room = self._kubelets.nodes[name].room
        since = self._clock() - self._bad_at.get(name, float("-inf"))
        return since > TRUST_SECONDS and (room is None or room > self._kubelets.load_of(name))


def _since(since: float | None, holds: bool, now: float) -> float | None:
    """Since when something holds without a pause."""
    return (now if since is None else since) if holds else None


def _name(obj: Mapping[str, Any]) -> str:
    return f"{obj['metadata']['namespace']}/{obj['metadata']['name']}"
