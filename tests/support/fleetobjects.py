"""Objects of a fleet, as the API server shows them to the dashboard."""

from __future__ import annotations

from typing import Any

from sandboxpool.api import names

Object = dict[str, Any]

CONTAINERD = "containerd://2.4.2"
KUBELET = "v1.36.3"
SINCE = "2026-01-01T11:50:00Z"


def node(
    name: str,
    *handlers: str,
    labels: dict[str, str] | None = None,
    ready: bool = True,
    reports: bool = True,
    excluded: dict[str, str] | None = None,
    cordoned: bool = False,
) -> Object:
    """A node that lists handlers; `excluded` are the operator's labels by handler."""
    made = {f"{names.EXCLUSION_PREFIX}{key}": value for key, value in (excluded or {}).items()}
    listed = [{"name": ""}, *({"name": handler} for handler in handlers)]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "uid": f"{name}-uid", "labels": {**(labels or {}), **made}},
        "spec": {"unschedulable": True} if cordoned else {},
        "status": {
            "conditions": [{"type": "Ready", "status": "True" if ready else "Unknown"}],
            "nodeInfo": {"containerRuntimeVersion": CONTAINERD, "kubeletVersion": KUBELET},
            **({"runtimeHandlers": listed} if reports else {}),
        },
    }


def condition(type_: str, status: str, reason: str, message: str = "") -> Object:
    return {
        "type": type_,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": SINCE,
    }


def stage(p50: int, p95: int, p99: int, samples: int = 40) -> Object:
    return {
        "p50Milliseconds": p50,
        "p95Milliseconds": p95,
        "p99Milliseconds": p99,
        "samples": samples,
    }


STARTUP = {
    "windowSeconds": 3600,
    "stages": {
        "scheduled": stage(5, 12, 30),
        "sandbox": stage(310, 520, 900),
        "started": stage(480, 700, 1200),
        "ready": stage(900, 1500, 2600),
    },
}


def runtime(
    name: str,
    handler: str,
    *conditions: Object,
    proven: int = 0,
    issues: list[Object] | None = None,
    **status: Any,
) -> Object:
    """A SandboxRuntime; `proven` nodes of the usual software have proof."""
    evidence = [
        {
            "containerRuntime": CONTAINERD,
            "kubelet": KUBELET,
            "isolation": "Proven",
            "nodes": proven,
            "exampleNode": "node",
            "lastProbed": SINCE,
        }
    ]
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.RUNTIME_KIND,
        "metadata": {"name": name, "uid": f"{name}-uid"},
        "status": {
            "handler": handler,
            "evidence": evidence if proven else [],
            "issues": issues or [],
            "conditions": list(conditions),
            "nodes": {},
            **status,
        },
    }


def issue(reason: str, *nodes: str, message: str = "", count: int | None = None) -> Object:
    return {
        "reason": reason,
        "count": count or len(nodes),
        "nodes": list(nodes),
        "firstSeen": SINCE,
        "lastSeen": SINCE,
        "since": SINCE,
        "message": message,
    }


def runtime_class(name: str, handler: str, node_selector: dict[str, str] | None = None) -> Object:
    made: Object = {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": name, "uid": f"{name}-uid"},
        "handler": handler,
    }
    return made | ({"scheduling": {"nodeSelector": node_selector}} if node_selector else {})


def pool(
    name: str,
    *conditions: Object,
    namespace: str = "team",
    runtime_class: str = "gvisor",
    warm: int = 3,
    target: int = 3,
    **status: Any,
) -> Object:
    ready = condition("Ready", "True", "SandboxWarm", f"{warm} of {target} sandboxes are warm")
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.POOL_KIND,
        "metadata": {
            "namespace": namespace,
            "name": name,
            "uid": f"{namespace}-{name}-uid",
            "generation": 1,
            "creationTimestamp": SINCE,
        },
        "spec": {"runtimeClassName": runtime_class, "replicas": target, "template": {"spec": {}}},
        "status": {
            "observedGeneration": 1,
            "warm": warm,
            "target": target,
            "claimed": 0,
            "startup": STARTUP,
            "conditions": list(conditions) or [ready],
            **status,
        },
    }


def claim(
    name: str,
    phase: str = "Bound",
    *,
    namespace: str = "team",
    pool: str = "python",
    created: str = "2026-01-01T11:59:00Z",
    bound: str = "2026-01-01T11:59:00Z",
    source: str = "Warm",
    **status: Any,
) -> Object:
    made: Object = {"phase": phase, **status}
    if phase != "Pending":
        made |= {
            "podName": f"{pool}-{name}",
            "nodeName": "node-a",
            "source": source,
            "boundAt": bound,
        }
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.CLAIM_KIND,
        "metadata": {
            "namespace": namespace,
            "name": name,
            "uid": f"{name}-uid",
            "creationTimestamp": created,
        },
        "spec": {"poolName": pool},
        "status": made,
    }


BROKEN = (
    condition("Ready", "False", "NodeQuarantined", "no node can take a sandbox"),
    condition("NodesServing", "False", "NodeQuarantined", "2 of 2 nodes are quarantined"),
    condition("Warm", "False", "Filling", "0 of 3 sandboxes are warm"),
)
SHIM = "the shim binary containerd-shim-kata-v2 is not on the PATH: install it beside containerd"


def pod(name: str = "python-first", *, pool: str = "python", claim: str = "first") -> Object:
    """A sandbox that a claim has, with all that happened to it."""
    at = "2026-01-01T11:58:0{}Z".format
    steps = {
        "PodScheduled": 0,
        "PodReadyToStartContainers": 1,
        "Initialized": 1,
        "ContainersReady": 2,
        "Ready": 2,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": "team",
            "name": name,
            "uid": f"{name}-uid",
            "creationTimestamp": at(0),
            "labels": {
                names.LABEL_POOL: pool,
                names.LABEL_POOL_UID: f"team-{pool}-uid",
                **({names.LABEL_CLAIM: claim, names.LABEL_CLAIM_UID: "uid"} if claim else {}),
            },
            "annotations": {names.ANNOTATION_HANDLER: "runsc"},
        },
        "spec": {"nodeName": "node-a", "runtimeClassName": "gvisor"},
        "status": {
            "phase": "Running",
            "conditions": [
                {"type": type_, "status": "True", "lastTransitionTime": at(second)}
                for type_, second in steps.items()
            ],
            "containerStatuses": [{"name": "main", "state": {"running": {"startedAt": at(2)}}}],
        },
    }


def event(reason: str, message: str, *, of: Object, at: str, type_: str = "Normal") -> Object:
    metadata = of["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": "team", "name": f"{metadata['name']}.{reason}", "uid": reason},
        "involvedObject": {
            "kind": of["kind"],
            "namespace": "team",
            "name": metadata["name"],
            "uid": metadata["uid"],
        },
        "type": type_,
        "reason": reason,
        "message": message,
        "firstTimestamp": at,
        "count": 1,
    }


def operator() -> list[Object]:
    """The operator's Deployment and its Lease, renewed long after the tests run."""
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {
                "namespace": "sandboxpool-system",
                "name": "sandboxpool",
                "labels": {"app.kubernetes.io/name": "sandboxpool"},
            },
            "spec": {"replicas": 2},
            "status": {"readyReplicas": 2},
        },
        {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"namespace": "sandboxpool-system", "name": "sandboxpool"},
            "spec": {
                "holderIdentity": "sandboxpool-0",
                "renewTime": "2100-01-01T00:00:00Z",
                "leaseDurationSeconds": 15,
            },
        },
    ]


def healthy() -> list[Object]:
    """A small fleet without troubles."""
    sandbox = pod()
    return [
        *operator(),
        node("node-a", "runsc", "kata-qemu"),
        node("node-b", "runsc", "kata-qemu"),
        node("node-c", "runsc"),
        runtime("gvisor", "runsc", proven=3, nodes={"eligible": 3, "serving": 3}, startup=STARTUP),
        runtime("kata-qemu", "kata-qemu", proven=2, nodes={"eligible": 3, "serving": 2}),
        runtime_class("gvisor", "runsc"),
        runtime_class("kata-qemu", "kata-qemu"),
        pool("python"),
        pool("browser", runtime_class="kata-qemu", warm=2, target=2),
        claim("first", podUID="python-first-uid", expiresAt="2100-01-01T12:00:00Z"),
        claim("second", bound="2026-01-01T11:59:03Z", source="Cold"),
        sandbox,
        pod("python-a1b2c3d4e5", claim=""),
        event("Started", "Started container main", of=sandbox, at="2026-01-01T11:58:02Z"),
    ]


def broken() -> list[Object]:
    """The same, with one runtime broken: its shim is missing on two nodes."""
    shim = issue("ShimMissing", "node-a", "node-b", message=SHIM)
    quarantined = {"kata-qemu": "Quarantined"}
    counts = {"eligible": 3, "serving": 0, "quarantined": 2, "notServing": 1}
    return [
        *healthy(),
        node("node-a", "runsc", "kata-qemu", excluded=quarantined),
        node("node-b", "runsc", "kata-qemu", excluded=quarantined),
        runtime("kata-qemu", "kata-qemu", issues=[shim], nodes=counts),
        pool(
            "browser",
            *BROKEN,
            runtime_class="kata-qemu",
            warm=0,
            target=2,
            starting=2,
            runtime={"issues": [shim]},
        ),
        claim(
            "waits",
            "Pending",
            pool="browser",
            conditions=[condition("Bound", "False", "NoWarmSandbox", "no sandbox is warm")],
        ),
        claim(
            "gone",
            "Lost",
            finishedAt="2026-01-01T11:59:30Z",
            conditions=[condition("Ready", "False", "NodeLost", "node-a is lost")],
        ),
    ]
