"""What must hold at every moment, judged from all writes in the order in which they took effect.

Where `invariants` judges a snapshot, this judges a history: what was wrong for a moment counts,
and so does what changed that never may. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sandboxpool.api import names
from support.history import Change
from support.invariants import claim_uids, full_name

Object = Mapping[str, Any]

_ENDED = ("Succeeded", "Failed")


class Timeline:
    """Takes in changes, oldest first, and notes what is wrong.

    Attributes:
        violations: What was wrong, a sentence each, in the order of time.
    """

    def __init__(self, excused: Collection[str] = ()) -> None:
        """Begins with nothing.

        Args:
            excused: The uids of objects that the test itself took apart: pods that it deleted or
                whose owners it removed, claims whose status it changed.
        """
        self.violations: list[str] = []
        self._excused = excused
        self._pods: dict[str, Object] = {}
        self._claims: dict[str, Object] = {}
        self._pools: dict[str, Object] = {}
        self._of_pool: defaultdict[str, set[str]] = defaultdict(set)
        self._of_claim: defaultdict[str, set[str]] = defaultdict(set)
        # What a pod or a claim once had, it never exchanges for something else.
        self._claim_of_pod: dict[str, str] = {}
        self._pod_of_claim: dict[str, str] = {}

    def take(self, change: Change) -> None:
        """Takes in one change."""
        match change.kind:
            case "Pod":
                self._pod(change)
            case "SandboxClaim":
                self._claim(change)
            case "SandboxPool":
                self._put(self._pools, change)

    def _put(self, objects: dict[str, Object], change: Change) -> None:
        if change.deleted:
            objects.pop(change.uid, None)
        else:
            objects[change.uid] = change.object

    def _wrong(self, change: Change, text: str) -> None:
        self.violations.append(f"at version {change.version}: {text}")

    # --- Pods ----------------------------------------------------------------------------------

    def _pod(self, change: Change) -> None:
        pod, uid = change.object, change.uid
        before = self._pods.get(uid)
        self._put(self._pods, change)
        ends = change.deleted or _is_going(pod)
        if ends and (before is None or not _is_going(before)):
            self._ends(change)
        pool = (pod["metadata"].get("labels") or {}).get(names.LABEL_POOL_UID, "")
        if change.deleted:
            self._of_pool[pool].discard(uid)
        elif before is None and pool:
            self._of_pool[pool].add(uid)
            self._ceiling(change, pool)
        for claim in claim_uids(pod):
            self._belongs(change, claim, gone=ends)
        if not change.deleted and pool and uid not in self._excused:
            self._owned(change)

    def _ends(self, change: Change) -> None:
        """Nobody but the test takes a sandbox from a claim that is bound and wants it."""
        for uid in claim_uids(change.object):
            claim = self._claims.get(uid)
            if (
                claim is not None
                and not _is_going(claim)
                and _status(claim).get("phase") == "Bound"
                and _status(claim).get("podUID") == change.uid
                and change.uid not in self._excused
            ):
                self._wrong(change, f"pod {full_name(change.object)} was deleted under its claim")

    def _ceiling(self, change: Change, pool_uid: str) -> None:
        pool = self._pools.get(pool_uid)
        ceiling = pool["spec"].get("maxSandboxes") if pool is not None else None
        held = len(self._of_pool[pool_uid])
        if ceiling is not None and held > ceiling:
            self._wrong(
                change, f"pod {full_name(change.object)} is number {held}, over maxSandboxes"
            )

    def _belongs(self, change: Change, claim: str, *, gone: bool) -> None:
        pod = full_name(change.object)
        was = self._claim_of_pod.setdefault(change.uid, claim)
        if was != claim:
            self._wrong(change, f"pod {pod} went from claim uid {was} to {claim}")
            self._claim_of_pod[change.uid] = claim
        held = self._of_claim[claim]
        if gone or change.uid in self._excused:
            held.discard(change.uid)
        elif change.uid not in held:
            held.add(change.uid)
            if len(held) > 1:
                pods = sorted(full_name(self._pods[uid]) for uid in held)
                self._wrong(change, f"claim uid {claim} has {len(held)} pods: {', '.join(pods)}")

    def _owned(self, change: Change) -> None:
        owners = change.object["metadata"].get("ownerReferences") or []
        if sum(bool(owner.get("controller")) for owner in owners) != 1:
            self._wrong(change, f"pod {full_name(change.object)} has no single owner: {owners}")

    # --- Claims --------------------------------------------------------------------------------

    def _claim(self, change: Change) -> None:
        claim, uid = change.object, change.uid
        before = self._claims.get(uid)
        self._put(self._claims, change)
        if change.deleted or uid in self._excused:
            return
        status, was = _status(claim), _status(before) if before is not None else {}
        phase, pod_uid = status.get("phase"), status.get("podUID") or ""
        if pod_uid:
            known = self._pod_of_claim.setdefault(uid, pod_uid)
            if known != pod_uid:
                self._wrong(change, f"claim {full_name(claim)} was given another pod")
        if phase == "Bound" and was.get("phase") != "Bound":
            self._bound(change, pod_uid)
        if was.get("phase") == "Bound" and phase in (None, "", "Pending"):
            self._wrong(change, f"claim {full_name(claim)} was bound and is not any more")
        if phase == "Lost" and was.get("phase") != "Lost":
            pod = self._pods.get(pod_uid)
            if pod is not None and not _is_going(pod) and _status(pod).get("phase") not in _ENDED:
                self._wrong(change, f"claim {full_name(claim)} is Lost, and its pod lives")

    def _bound(self, change: Change, pod_uid: str) -> None:
        # One that nobody had, and that is gone, is a matter of time; one of somebody else is a
        # fault, whatever has become of it.
        owner = self._claim_of_pod.get(pod_uid, "")
        if owner != change.uid and (owner or pod_uid in self._pods):
            self._wrong(change, f"claim {full_name(change.object)} was bound to a pod not its own")


def judge(changes: Iterable[Change], excused: Collection[str] = ()) -> list[str]:
    """Everything that was ever wrong, a sentence each."""
    timeline = Timeline(excused)
    for change in sorted(changes, key=lambda c: c.version):
        timeline.take(change)
    return timeline.violations


def _status(obj: Object) -> Mapping[str, Any]:
    return obj.get("status") or {}


def _is_going(obj: Object) -> bool:
    return obj["metadata"].get("deletionTimestamp") is not None
