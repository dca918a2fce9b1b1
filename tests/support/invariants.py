"""What must hold in every moment, judged from the objects in the API alone.

The judging functions are pure, so a test may also feed them a history of snapshots.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sandboxpool.api import names
from sandboxpool.api.times import epoch
from support.api import Api, is_true

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The pods, claims and pools of a moment."""

    pods: list[Object]
    claims: list[Object]
    pools: list[Object] = field(default_factory=list)


def snapshot(api: Api, namespace: str | None = None) -> Snapshot:
    """Reads what is there now.

    Claims are read before pods. A binding writes the pod first, so a bound claim that is seen
    has its pod's label in the later list.
    """
    claims = api.list("SandboxClaim", namespace, everywhere=namespace is None)
    pods = api.list("Pod", namespace, everywhere=namespace is None)
    pools = api.list("SandboxPool", namespace, everywhere=namespace is None)
    return Snapshot(list(pods), list(claims), list(pools))


def check(api: Api, namespace: str | None = None) -> None:
    """Fails with everything that is wrong now.

    Raises:
        AssertionError: If an invariant does not hold.
    """
    wrong = violations(snapshot(api, namespace))
    assert not wrong, "invariants do not hold:\n  " + "\n  ".join(wrong)


def violations(seen: Snapshot) -> list[str]:
    """Everything that is wrong in a snapshot, a sentence each."""
    ours = [pod for pod in seen.pods if _is_ours(pod)]
    return [
        *_claims_with_two_pods(ours),
        *_pods_with_two_claims(ours),
        *_pods_without_owner(ours),
        *_bound_claims_without_their_pod(seen.claims, ours),
        *other_runtimes(seen),
    ]


def not_converged(seen: Snapshot) -> list[str]:
    """What is yet to happen, or will never: a sentence each; nothing once all is quiet."""
    claims = {claim["metadata"]["uid"]: claim for claim in seen.claims}
    pools = {pool["metadata"]["uid"]: pool for pool in seen.pools}
    pods: dict[str, list[Object]] = defaultdict(list)
    found = []
    # Whose owner was taken off is nobody's, whatever its labels say.
    for pod in (pod for pod in seen.pods if _is_ours(pod) and _owners(pod)):
        pool_uid = _labels(pod).get(names.LABEL_POOL_UID, "")
        pods[pool_uid].append(pod)
        for uid in claim_uids(pod):
            phase = claims[uid].get("status", {}).get("phase") if uid in claims else "gone"
            if phase not in ("Bound", "Lost"):
                found.append(f"pod {full_name(pod)} belongs to a claim that is {phase}")
        if not claim_uids(pod) and pool_uid not in pools:
            found.append(f"pod {full_name(pod)} belongs to a pool that is gone")
    for uid, pool in pools.items():
        found += _pool_not_converged(pool, pods[uid])
    for claim in seen.claims:
        place = claim["metadata"]["namespace"], claim["spec"]["poolName"]
        pool_of = [p for p in seen.pools if _place(p) == place]
        status = claim.get("status", {})
        if status.get("phase") in (None, "", "Pending") and any(
            _is_warm(pod) for pool in pool_of for pod in pods[pool["metadata"]["uid"]]
        ):
            found.append(f"claim {full_name(claim)} waits, and a sandbox is warm")
    return found


def _pool_not_converged(pool: Object, pods: list[Object]) -> list[str]:
    status = pool.get("status", {})
    stock = [pod for pod in pods if not claim_uids(pod)]
    ended = sum(bool(claim_uids(p)) and _has_ended(p) for p in pods)
    real = {
        "observedGeneration": pool["metadata"]["generation"],
        "replicas": len(stock),
        "target": len(stock),
        "warm": sum(map(_is_warm, stock)),
        "claimed": len(pods) - len(stock) - ended,
        "ended": ended,
        **dict.fromkeys(("starting", "stopping", "failed", "unproven", "unready", "stranded"), 0),
    }
    wrong = [
        f"pool {full_name(pool)} says {key}={status.get(key)}, in truth it is {value}"
        for key, value in real.items()
        if status.get(key) != value
    ]
    if real["warm"] != len(stock):
        wrong.append(f"pool {full_name(pool)} has {len(stock)} unclaimed pods, {real['warm']} warm")
    return wrong


# What a waiting claim is told if it stands in no line: another sandbox would not serve it.
NOT_IN_LINE = frozenset(
    {
        "BindingRefused",
        "RuntimeClassMismatch",
        "IsolationProofMismatch",
        "MetadataNotAllowed",
        "ConfigNotMounted",
        "PoolNotFound",
    }
)


def waits(claim: Object) -> bool:
    """A claim stands in the line of its pool, for a warm or a cold sandbox."""
    status = claim.get("status") or {}
    if claim["metadata"].get("deletionTimestamp"):
        return False
    told = {c.get("reason") for c in status.get("conditions", [])}
    return status.get("phase") in (None, "", "Pending") and not told & NOT_IN_LINE


def overtaken(bound: Object, claims: Iterable[Object], pods: Iterable[Object]) -> list[Object]:
    """The claims that came before one of the same line and wait, without a pod of their own.

    Who wants a cold sandbox where there is no warm one stands in the line for both; who does not
    stands in the line for warm ones only. Creation times have whole seconds, so that what came
    within the same two is of one age.
    """
    pods = list(pods)
    served = set().union(*map(claim_uids, pods))
    cold = is_cold(bound, pods)
    return [
        claim
        for claim in claims
        if waits(claim)
        and claim["metadata"]["namespace"] == bound["metadata"]["namespace"]
        and claim["spec"]["poolName"] == bound["spec"]["poolName"]
        and claim["metadata"]["uid"] not in served
        and (not cold or claim["spec"].get("onEmpty") == "Create")
        and _created(claim) + 2 <= _created(bound)
    ]


def is_cold(claim: Object, pods: Iterable[Object]) -> bool:
    """The claim's sandbox was made for it."""
    uid = claim["metadata"]["uid"]
    sources = (
        (pod["metadata"].get("annotations") or {}).get(names.ANNOTATION_SOURCE)
        for pod in pods
        if uid in claim_uids(pod)
    )
    return "Cold" in sources


def _created(obj: Object) -> float:
    return epoch(obj["metadata"]["creationTimestamp"])


def _place(obj: Object) -> tuple[str, str]:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def _is_warm(pod: Object) -> bool:
    return (
        not claim_uids(pod)
        and not pod["metadata"].get("deletionTimestamp")
        and is_true(pod, "Ready")
    )


def other_runtimes(seen: Snapshot) -> list[str]:
    """Every claim that was given a pod of another class than its pool's, or than it was told.

    A pool whose class was changed after a claim was bound counts as wrong, too: a snapshot cannot
    tell, and no test that checks does that.
    """
    classes = {pool["metadata"]["uid"]: pool["spec"]["runtimeClassName"] for pool in seen.pools}
    claims = {claim["metadata"]["uid"]: claim for claim in seen.claims}
    wrong = []
    for pod in filter(_is_ours, seen.pods):
        given = pod["spec"].get("runtimeClassName")
        for uid in claim_uids(pod):
            wanted = {"its pool": classes.get(_labels(pod).get(names.LABEL_POOL_UID, ""))}
            if uid in claims:
                claim = claims[uid]
                wanted["its claim"] = claim["spec"].get("runtimeClassName")
                status = claim.get("status", {})
                if status.get("podUID") == pod["metadata"]["uid"]:
                    # Another one that was made for it may still be on its way out.
                    wanted["the claim's status"] = status.get("runtime", {}).get("className")
            wrong += [
                f"pod {full_name(pod)} of claim uid {uid} has class {given!r}, "
                f"but {who} says {name!r}"
                for who, name in wanted.items()
                if name is not None and name != given
            ]
    return wrong


def _is_ours(pod: Object) -> bool:
    labels = _labels(pod)
    return names.LABEL_POOL_UID in labels or names.LABEL_CLAIM_UID in labels


def _claims_with_two_pods(pods: Iterable[Object]) -> list[str]:
    # Both by label and by owner reference: either alone makes a second pod.
    by_claim: dict[str, set[str]] = defaultdict(set)
    for pod in pods:
        if pod["metadata"].get("deletionTimestamp"):
            continue
        for uid in claim_uids(pod):
            by_claim[uid].add(full_name(pod))
    return [
        f"claim uid {uid} has {len(held)} pods: {', '.join(sorted(held))}"
        for uid, held in by_claim.items()
        if len(held) > 1
    ]


def _pods_with_two_claims(pods: Iterable[Object]) -> list[str]:
    return [
        f"pod {full_name(pod)} belongs to {len(uids)} claims: {', '.join(sorted(uids))}"
        for pod in pods
        if len(uids := claim_uids(pod)) > 1
    ]


def _pods_without_owner(pods: Iterable[Object]) -> list[str]:
    wrong = []
    for pod in pods:
        owners = _owners(pod)
        controllers = [o for o in owners if o.get("controller")]
        if not owners:
            wrong.append(f"pod {full_name(pod)} has no owner")
        elif len(controllers) != 1:
            wrong.append(f"pod {full_name(pod)} has {len(controllers)} controllers")
        label = _labels(pod).get(names.LABEL_CLAIM_UID)
        if label and all(o["uid"] != label for o in owners):
            wrong.append(
                f"pod {full_name(pod)} is labelled with claim uid {label} but not owned by it"
            )
    return wrong


def _bound_claims_without_their_pod(claims: Iterable[Object], pods: list[Object]) -> list[str]:
    by_name = {full_name(pod): pod for pod in pods}
    holders: dict[str, str] = {}
    wrong = []
    for claim in claims:
        status = claim.get("status", {})
        if status.get("phase") != "Bound":
            continue
        key = f"{claim['metadata']['namespace']}/{status.get('podName')}"
        if key in holders:
            wrong.append(
                f"claims {holders[key]} and {full_name(claim)} are both bound to pod {key}"
            )
        holders[key] = full_name(claim)
        pod = by_name.get(key)
        # A pod that is gone is a matter of time (Lost), one of somebody else is a fault.
        if pod is not None and claim["metadata"]["uid"] not in claim_uids(pod):
            wrong.append(f"claim {full_name(claim)} is bound to pod {key}, which is not its own")
    return wrong


def _has_ended(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") in ("Failed", "Succeeded")


def claim_uids(pod: Object) -> set[str]:
    """The uids of all claims that a pod says to belong to, by label or by owner."""
    uids = {o["uid"] for o in _owners(pod) if o["kind"] == names.CLAIM_KIND}
    label = _labels(pod).get(names.LABEL_CLAIM_UID)
    return uids | {label} if label else uids


def _owners(pod: Object) -> list[Mapping[str, Any]]:
    return list(pod["metadata"].get("ownerReferences") or [])


def _labels(pod: Object) -> Mapping[str, str]:
    return pod["metadata"].get("labels") or {}


def full_name(obj: Object) -> str:
    """Namespace and name, for reports."""
    return f"{obj['metadata']['namespace']}/{obj['metadata']['name']}"
