"""SandboxClaims as the client writes and reads them. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sandboxpool.api import names
from sandboxpool.api.reasons import Reason
from sandboxpool.client.errors import (
    BindTimeout,
    ClaimConflict,
    ClaimError,
    SandboxExpired,
    SandboxLost,
    claim_error_for,
)

Object = dict[str, Any]

# A process that dies leaves its claim behind for so long.
DEFAULT_TTL_SECONDS = 3600
# What a claim was made by: where the answer is lost, it is found again by it.
REQUEST_LABEL = f"client.{names.GROUP}/request"
_CURES: dict[str, str] = {
    Reason.POOL_NOT_FOUND: "`kubectl get sandboxpools.sandboxpool.io` lists the pools of a"
    " namespace; a claim is made in its pool's namespace (namespace=)",
    Reason.NO_WARM_SANDBOX: "try again later, wait with on_empty='Wait', or raise the pool's"
    " spec.replicas",
    Reason.MAX_SANDBOXES_REACHED: "release what is not needed, or raise the pool's"
    " spec.maxSandboxes",
    Reason.BIND_TIMEOUT: "wait longer (bind_timeout=), raise the pool's spec.replicas, or see what"
    " the pool's conditions say: `kubectl describe sandboxpool.sandboxpool.io`",
}


@dataclass(frozen=True, slots=True)
class SandboxInfo:
    """What is known of a sandbox, as its claim says.

    Attributes:
        claim: The claim's name; deleting it deletes the sandbox.
        claim_uid: Its uid.
        namespace: Where the claim and the pod are.
        pool: The pool that it came from.
        pod: The pod that is the sandbox.
        pod_uid: Its uid.
        node: The node that it runs on.
        ips: Its addresses, the primary one first.
        runtime_class: The RuntimeClass that it runs with.
        handler: The handler that the class stood for when the sandbox was made.
        evidence: What proves that it does not share the node's kernel; empty where the pool wants
            no proof.
        source: `Warm` where it was waiting, `Cold` where it was made for the claim.
        bound_at: When the claim got it.
        expires_at: When it will be deleted; None for one that lives until its claim is deleted.
    """

    claim: str
    claim_uid: str
    namespace: str
    pool: str
    pod: str
    pod_uid: str
    node: str
    ips: tuple[str, ...]
    runtime_class: str
    handler: str
    evidence: str
    source: str
    bound_at: datetime | None
    expires_at: datetime | None


def manifest(
    pool: str,
    *,
    name: str | None = None,
    ttl: int | None = None,
    bind_timeout: int | None = None,
    on_empty: str | None = None,
    runtime_class: str | None = None,
    isolation_proof: str | None = None,
    config: Mapping[str, str] | None = None,
    pod_labels: Mapping[str, str] | None = None,
    pod_annotations: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Object:
    """Return the claim to create; what is None is left to the API server and the pool."""
    pod_metadata = {"labels": pod_labels, "annotations": pod_annotations}
    spec = {
        "poolName": pool,
        "ttlSeconds": ttl,
        "bindTimeoutSeconds": bind_timeout,
        "onEmpty": on_empty,
        "runtimeClassName": runtime_class,
        "isolationProof": isolation_proof,
        "config": dict(config) if config else None,
        "metadata": {key: dict(value) for key, value in pod_metadata.items() if value} or None,
    }
    metadata: Object = {"name": name} if name else {"generateName": f"{pool}-"[:58]}
    metadata |= {
        key: dict(value)
        for key, value in {"labels": labels, "annotations": annotations}.items()
        if value
    }
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.CLAIM_KIND,
        "metadata": metadata,
        "spec": {key: value for key, value in spec.items() if value is not None},
    }


def check_same(existing: Object, wanted: Object) -> None:
    """See that a claim of the name is the one that is wanted.

    Raises:
        ClaimConflict: It is another one.
    """
    name = existing["metadata"]["name"]
    there = existing.get("spec") or {}
    for field, value in wanted["spec"].items():
        # The time to live can be changed; what was changed since the first try stands.
        if field != "ttlSeconds" and there.get(field) != value:
            raise ClaimConflict(
                f"claim {name!r} exists with spec.{field} {there.get(field)!r} instead of"
                f" {value!r}: choose another name, or delete that claim",
                "AlreadyExists",
                name,
            )


def is_bound(claim: Object) -> bool:
    """Tell whether a claim has its sandbox.

    Raises:
        ClaimError: It will never get one.
        SandboxLost: It had one, which is no more.
    """
    status = claim.get("status") or {}
    phase = status.get("phase")
    if phase in ("Failed", "Expired", "Lost"):
        raise ended(claim)
    return phase == "Bound" and bool(status.get("podName"))


def ended(claim: Object) -> ClaimError | SandboxLost:
    """Return the error that a finished claim stands for."""
    name = claim["metadata"]["name"]
    status = claim.get("status") or {}
    reason, message = condition(claim)
    if status.get("phase") == "Expired":
        return SandboxExpired(
            f"the sandbox of claim {name!r} has expired: {message}; claim with a longer ttl=, or"
            " call extend() in time",
            reason or Reason.TTL_EXPIRED,
        )
    if status.get("phase") == "Lost":
        return SandboxLost(
            f"the sandbox of claim {name!r} is lost: {message}; claim another one", reason
        )
    pool = (claim.get("spec") or {}).get("poolName")
    cure = f"; {_CURES[reason]}" if reason in _CURES else ""
    return claim_error_for(reason)(
        f"claim {name!r} of pool {pool!r} failed: {message or reason}{cure}", reason, name
    )


def lacks_pool(claim: Object) -> bool:
    """Tell whether the operator has found no pool for the claim, so far."""
    return condition(claim)[0] == Reason.POOL_NOT_FOUND


def timed_out(claim: Object, seconds: float) -> ClaimError:
    """Return the error for a claim that waits in vain, though it has not failed yet."""
    reason, message = condition(claim)
    reason = reason or Reason.BIND_TIMEOUT
    name, pool = claim["metadata"]["name"], claim["spec"]["poolName"]
    error = claim_error_for(reason)
    if error is ClaimError:
        # Why it waits, which is no verdict.
        error = BindTimeout
    if not message:
        message = f"no sandbox within {seconds:g} s, and the operator has said nothing of it"
        cure = "see that the operator runs, and that its CRDs are of its version"
    else:
        cure = _CURES.get(reason, _CURES[Reason.BIND_TIMEOUT])
    return error(f"claim {name!r} of pool {pool!r} waits in vain: {message}; {cure}", reason, name)


def condition(claim: Object, kind: str = "Bound") -> tuple[str, str]:
    """Return reason and message of a condition; empty where it is not there."""
    for entry in (claim.get("status") or {}).get("conditions") or ():
        if entry.get("type") == kind:
            return str(entry.get("reason") or ""), str(entry.get("message") or "")
    return "", ""


def info(claim: Object) -> SandboxInfo:
    """Read what a bound claim says of its sandbox."""
    metadata, status = claim["metadata"], claim.get("status") or {}
    runtime = status.get("runtime") or {}
    ips = tuple(status.get("podIPs") or ()) or tuple(filter(None, [status.get("podIP")]))
    return SandboxInfo(
        claim=metadata["name"],
        claim_uid=metadata["uid"],
        namespace=metadata["namespace"],
        pool=claim["spec"]["poolName"],
        pod=status.get("podName") or "",
        pod_uid=status.get("podUID") or "",
        node=status.get("nodeName") or "",
        ips=ips,
        runtime_class=runtime.get("className") or "",
        handler=runtime.get("handler") or "",
        evidence=runtime.get("evidence") or "",
        source=status.get("source") or "",
        bound_at=moment(status.get("boundAt")),
        expires_at=moment(status.get("expiresAt")),
    )


def moment(text: str | None) -> datetime | None:
    """Read a time as Kubernetes writes it."""
    return datetime.fromisoformat(text) if text else None


def pod_is_ending(pod: Object, uid: str) -> bool:
    """Tell whether a pod is not, or will soon not be, the sandbox any more."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    return (
        metadata["uid"] != uid
        or "deletionTimestamp" in metadata
        or status.get("phase") in ("Succeeded", "Failed")
    )
