"""Builders of what the operator's parts take in: a valid whole, with the fields that matter set.

Everything here is pure. Times are seconds since the epoch; `NOW` is the present of most tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from sandboxpool.api import names
from sandboxpool.api.core import Node, Pod, Taint, Toleration
from sandboxpool.api.reasons import Reason
from sandboxpool.api.times import timestamp
from sandboxpool.api.v1alpha1 import SandboxClaim, SandboxPoolSpec
from sandboxpool.api.v1alpha1.pool import DEFAULT_CONFIG_PATH
from sandboxpool.cluster.pool import Pool, revision_of
from sandboxpool.cluster.pools import parse
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.pools.plan import CreateBackoff, PoolInput, TemplateCheckResult, TemplateState
from sandboxpool.runtimes.diagnosis import Failure
from sandboxpool.runtimes.evidence import Evidence, Isolation, software_of
from sandboxpool.runtimes.host_state import HostState
from sandboxpool.runtimes.nodes import NodeFacts, node_facts
from sandboxpool.runtimes.probe import SANDBOX_PROBE_CONTAINER
from sandboxpool.runtimes.quarantine import Quarantine
from sandboxpool.runtimes.resolve import Resolution, Runtime, resolve
from sandboxpool.runtimes.verdict import Verdict
from sandboxpool.sandboxes.members import Member, Members

Object = dict[str, Any]

NOW = 1_700_000_000.0
POOL_UID = "pool-uid"
CLASS_UID = "class-uid"
NAMESPACE = "default"
TEMPLATE: Object = {"spec": {"containers": [{"name": "main", "image": "registry.example/a:1"}]}}
REVISION = revision_of(TEMPLATE, config_path=DEFAULT_CONFIG_PATH)


# --- Nodes and classes ---------------------------------------------------------------------------


def node(
    name: str = "node-1",
    *,
    handlers: Iterable[str] | None = ("", "runc", "runsc"),
    labels: Mapping[str, str] | None = None,
    taints: Iterable[Taint] = (),
    ready: bool = True,
    unschedulable: bool = False,
    leaving: bool = False,
    uid: str | None = None,
    boot_id: str | None = None,
    container_runtime: str = "containerd://2.1.9",
    joined: float | None = None,
    version: int = 1,
) -> Node:
    """A Node as the API server shows it.

    Args:
        labels: all of them, the hostname's included.
        joined: epoch seconds; long ago unless given.
    """
    body: Object = {
        "metadata": {
            "name": name,
            "uid": uid or f"{name}-uid",
            "resourceVersion": str(version),
            "creationTimestamp": "" if joined is None else timestamp(joined),
            "labels": {names.HOSTNAME_LABEL: name} if labels is None else dict(labels),
            "deletionTimestamp": timestamp(NOW) if leaving else None,
        },
        "spec": {"unschedulable": unschedulable, "taints": msgspec.to_builtins(list(taints))},
        "status": {
            "conditions": [{"type": "Ready", "status": "True" if ready else "Unknown"}],
            "nodeInfo": {
                "bootID": boot_id or f"{name}-boot",
                "containerRuntimeVersion": container_runtime,
            },
        },
    }
    if handlers is not None:
        body["status"]["runtimeHandlers"] = [{"name": handler} for handler in handlers]
    return msgspec.convert(body, Node)


def facts(name: str = "node-1", **given: Any) -> NodeFacts:
    """What the verdict needs of a `node`."""
    return node_facts(node(name, **given))


def runtime(
    name: str = "gvisor",
    handler: str = "runsc",
    uid: str = CLASS_UID,
    *,
    overhead: Iterable[tuple[str, str]] = (),
    selector: Mapping[str, str] | None = None,
    tolerations: Iterable[Toleration] = (),
) -> Runtime:
    """A resolved RuntimeClass."""
    return Runtime(
        class_name=name,
        uid=uid,
        handler=handler,
        overhead=tuple(overhead),
        node_selector=tuple(sorted((selector or {}).items())),
        tolerations=tuple(tolerations),
    )


def runtime_class(
    name: str = "gvisor", handler: str = "runsc", *, uid: str = CLASS_UID, version: int = 1
) -> Object:
    """A RuntimeClass as the API server shows it."""
    return {
        "metadata": {"name": name, "uid": uid, "resourceVersion": str(version)},
        "handler": handler,
    }


# --- Pools ---------------------------------------------------------------------------------------


def pool_body(
    name: str = "pool",
    *,
    uid: str = POOL_UID,
    version: int = 1,
    generation: int = 1,
    template: Object | None = None,
    status: Any = None,
    deleting: bool = False,
    **spec: Any,
) -> Object:
    """A SandboxPool as the API server shows it; further fields of the spec by their API names."""
    body: Object = {
        "apiVersion": names.API_VERSION,
        "kind": names.POOL_KIND,
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "uid": uid,
            "resourceVersion": str(version),
            "generation": generation,
        },
        "spec": {
            "runtimeClassName": "gvisor",
            "template": template or TEMPLATE,
            # Tests of proofs ask for them.
            "isolationProof": "None",
            **spec,
        },
    }
    if status is not None:
        body["status"] = status
    if deleting:
        body["metadata"]["deletionTimestamp"] = timestamp(NOW)
    return body


def pool(name: str = "pool", **given: Any) -> Pool:
    """A Pool as the store holds it."""
    return parse(pool_body(name, **given), None)


def spec(**fields: Any) -> SandboxPoolSpec:
    """A pool's spec; fields by their API names."""
    return SandboxPoolSpec.model_validate(pool_body(**fields)["spec"])


ACCEPTED = TemplateCheckResult(TemplateState.ACCEPTED, Reason.TEMPLATE_ACCEPTED, "accepted")
REJECTED = TemplateCheckResult(
    TemplateState.REJECTED, Reason.TEMPLATE_REJECTED, "no such field: correct spec.template"
)
NOT_CHECKED = TemplateCheckResult(
    TemplateState.NOT_CHECKED, Reason.TEMPLATE_NOT_CHECKED, "the API server is away"
)
FOUND = resolve("gvisor", None, {"gvisor": runtime()})
MISSING = resolve("gvisor", None, {})
MISMATCH = resolve("gvisor", "kata", {"gvisor": runtime()})
SERVED = Verdict(serving=("node-1", "node-2"))


def member(
    name: str = "pod-1",
    state: SandboxState = SandboxState.WARM,
    *,
    age: float = 30.0,
    now: float = NOW,
    node: NodeFacts | None = None,
    node_name: str | None = None,
    ready: bool | None = None,
    since: float | None = None,
    was_ready: bool | None = None,
    quarantined: bool = False,
    isolation: Isolation | None = None,
    proof_wanted: bool = False,
    evidence: str = "",
    overhead: tuple[tuple[str, str], ...] = (),
    failure: Failure | None = None,
    revision: str = REVISION,
    class_name: str = "gvisor",
    runtime_uid: str = CLASS_UID,
    acknowledged: bool = True,
    misplaced: bool = False,
) -> Member:
    """A pool's pod after sorting; `ready` follows the state, and it stands as it does since it was
    made, unless given."""
    unscheduled = failure is not None and failure.reason is Reason.UNSCHEDULABLE
    if (
        node is None
        and node_name is None
        and state is not SandboxState.STRANDED
        and not unscheduled
    ):
        node = facts()
    if ready is None:
        ready = state in (SandboxState.WARM, SandboxState.UNPROVEN, SandboxState.CLAIMED)
    return Member(
        name=name,
        uid=f"{name}-uid",
        version="1",
        state=state,
        created=now - age,
        since=now - age if since is None else since,
        ready_since=now - age if ready else None,
        was_ready=ready or state is SandboxState.UNREADY if was_ready is None else was_ready,
        node_name=node_name if node_name is not None else (node.name if node else ""),
        ready=ready,
        host_state=HostState(node, "runsc", quarantined, isolation, proof_wanted, evidence),
        overhead=overhead,
        failure=failure,
        revision=revision,
        class_name=class_name,
        runtime_uid=runtime_uid,
        acknowledged=acknowledged,
        misplaced=misplaced,
    )


def members(state: SandboxState, count: int, prefix: str = "", **given: Any) -> list[Member]:
    """Several alike, each a second older than the one before."""
    age = given.pop("age", 30.0)
    return [
        member(f"{prefix or state.value}-{i}", state, age=age + i, **given) for i in range(count)
    ]


def pool_input(
    stock: Iterable[Member] = (),
    *,
    resolution: Resolution = FOUND,
    verdict: Verdict = SERVED,
    template: TemplateCheckResult = ACCEPTED,
    hostnames_since: float = 0.0,
    quarantines: Iterable[tuple[str, Quarantine]] = (),
    creating: int = 0,
    creating_cold: int = 0,
    claim_queue: Iterable[bool] = (),
    stuck_nodes: Iterable[str] = (),
    backoff: CreateBackoff | None = None,
    guarded: bool = True,
    now: float = NOW,
    **fields: Any,
) -> PoolInput:
    """What `decide` takes; fields of the pool's spec by their API names."""
    return PoolInput(
        spec=spec(**fields),
        revision=REVISION,
        resolution=resolution,
        verdict=verdict,
        hostnames_since=hostnames_since,
        template=template,
        members=Members(stock),
        quarantines=tuple(quarantines),
        creating=creating,
        creating_cold=creating_cold,
        claim_queue=tuple(claim_queue),
        stuck_nodes=frozenset(stuck_nodes),
        backoff=backoff or CreateBackoff(),
        guarded=guarded,
        now=now,
        clock=now,
    )


def quarantine(
    reason: Reason = Reason.SHIM_MISSING,
    *,
    message: str = "no shim binary",
    age: float = 60.0,
    now: float = NOW,
) -> Quarantine:
    """An open quarantine."""
    return Quarantine(
        facts().machine,
        open=True,
        changed_at=now - age,
        tries=1,
        retry_at=now + age,
        reason=reason,
        message=message,
    )


def evidence(
    isolation: Isolation = Isolation.PROVEN,
    node: NodeFacts | None = None,
    *,
    message: str = "the sandbox has a kernel of its own",
    at: float = NOW,
) -> Evidence:
    """What was learned on a node as it is now."""
    return Evidence(isolation, at, software_of(node or facts()), CLASS_UID, "", message)


# --- Pods ----------------------------------------------------------------------------------------

# A boot id that is no node's.
OWN_BOOT_ID = "0a1b2c3d-0000-4000-8000-00000000feed"


def probed(seen: str = OWN_BOOT_ID, *, exit_code: int = 0) -> Object:
    """Status of a pod's own probe, for `initContainerStatuses`, that has read this boot id."""
    message = f"{seen}\nLinux version 4.19.0-gvisor"
    ended = {"exitCode": exit_code, "reason": "Completed", "message": message}
    return {"name": SANDBOX_PROBE_CONTAINER, "state": {"terminated": ended}}


def pod_body(
    name: str = "pod-1",
    *,
    uid: str | None = None,
    version: int = 1,
    pool_uid: str = POOL_UID,
    claim: str | None = None,
    claim_uid: str | None = None,
    node: str = "node-1",
    ready: bool = True,
    phase: str = "Running",
    age: float = 30.0,
    now: float = NOW,
    deleting: bool = False,
    revision: str = REVISION,
    class_name: str = "gvisor",
    runtime_uid: str = CLASS_UID,
    handler: str = "runsc",
    overhead: Mapping[str, str] | None = None,
    source: str | None = None,
    conditions: Mapping[str, str] | None = None,
    **status: Any,
) -> Object:
    """A pool's pod as the API server shows it; further fields of the status by their API names."""
    labels = {
        names.LABEL_POOL: "pool",
        names.LABEL_POOL_UID: pool_uid,
        names.LABEL_REVISION: revision,
    }
    annotations = {names.ANNOTATION_RUNTIME_UID: runtime_uid, names.ANNOTATION_HANDLER: handler}
    if source is not None:
        annotations[names.ANNOTATION_SOURCE] = source
    owner = {"kind": names.POOL_KIND, "name": "pool", "uid": pool_uid}
    if claim is not None:
        claim_uid = claim_uid or f"{claim}-uid"
        labels |= {names.LABEL_CLAIM: claim, names.LABEL_CLAIM_UID: claim_uid}
        owner = {"kind": names.CLAIM_KIND, "name": claim, "uid": claim_uid}
    listed = {"PodScheduled": "True" if node else "False", "Ready": "True" if ready else "False"}
    body: Object = {
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "uid": uid or f"{name}-uid",
            "resourceVersion": str(version),
            "creationTimestamp": timestamp(now - age),
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [{"apiVersion": names.API_VERSION, "controller": True, **owner}],
        },
        "spec": {
            "nodeName": node,
            "runtimeClassName": class_name,
            "overhead": dict(overhead or {}),
        },
        "status": {
            "phase": phase,
            "podIP": "10.0.0.7",
            "podIPs": [{"ip": "10.0.0.7"}],
            "conditions": [
                {"type": type_, "status": value}
                for type_, value in {**listed, **(conditions or {})}.items()
            ],
            **status,
        },
    }
    if deleting:
        body["metadata"]["deletionTimestamp"] = timestamp(now)
    return body


def pod(name: str = "pod-1", **given: Any) -> Pod:
    """A pool's pod as the cache holds it."""
    return msgspec.convert(pod_body(name, **given), Pod)


# --- Claims --------------------------------------------------------------------------------------


def claim_body(
    name: str = "claim",
    *,
    uid: str | None = None,
    version: int = 1,
    age: float = 0.0,
    now: float = NOW,
    deleting: bool = False,
    status: Object | None = None,
    pool: str = "pool",
    **spec: Any,
) -> Object:
    """A SandboxClaim as the API server shows it; further fields of the spec by API names."""
    body: Object = {
        "apiVersion": names.API_VERSION,
        "kind": names.CLAIM_KIND,
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "uid": uid or f"{name}-uid",
            "resourceVersion": str(version),
            "generation": 1,
            "creationTimestamp": timestamp(now - age),
        },
        "spec": {"poolName": pool, **spec},
        "status": status or {},
    }
    if deleting:
        body["metadata"]["deletionTimestamp"] = timestamp(now)
    return body


def claim(name: str = "claim", **given: Any) -> SandboxClaim:
    """A SandboxClaim as the cache holds it."""
    return msgspec.convert(claim_body(name, **given), SandboxClaim)
