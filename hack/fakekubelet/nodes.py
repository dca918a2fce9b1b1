"""What a fake node says about itself, as the Node object that a kubelet would keep."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

KERNEL = "6.12.0-fake"
KUBELET = "v1.36.3"

_NAMESPACE = uuid.UUID("6f7a3c0e-58a1-4b7e-9a53-2b1f6f6f0c11")

# What the node lifecycle controller, which does not run here, would put on such nodes. The
# scheduler looks at these taints and not at the conditions.
UNSCHEDULABLE_TAINT = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
NOT_READY_TAINT = {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}
UNREACHABLE_TAINT = {"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"}

_LIFECYCLE_TAINTS = {"True": None, "False": NOT_READY_TAINT, "Unknown": UNREACHABLE_TAINT}


def boot_id(name: str, boots: int = 0) -> str:
    """The boot id of a node: stable for a name, another after each reboot."""
    return str(uuid.uuid5(_NAMESPACE, f"{name}/{boots}"))


@dataclass
class FakeNode:
    """One node and its container runtime.

    Attributes:
        name: The node's name.
        handlers: What `status.runtimeHandlers` says besides the unnamed default; None leaves the
            field out, as containerd 1.x and CRI-O before 1.30 do.
        serves: What the container runtime really has configured, where that differs from
            `handlers`. By default it is the same, and everything when `handlers` is None.
        labels: Labels besides the hostname, arch and os ones; they may override those.
        taints: Taints that were put on the node by hand.
        boots: Counts reboots; the boot id follows from it.
        runtime: Name and version of the container runtime; None for one that says of handlers what
            `handlers` does.
        kubelet: Version of the kubelet.
        ready: Status of the Ready condition: True, False or Unknown.
        unschedulable: Whether the node is cordoned.
        alive: Whether a kubelet runs there at all. Pods of a dead one neither start nor go.
    """

    name: str
    handlers: set[str] | None = field(default_factory=lambda: {"runc"})
    serves: set[str] | None = None
    labels: dict[str, str] = field(default_factory=dict)
    taints: list[dict[str, str]] = field(default_factory=list)
    boots: int = 0
    runtime: str | None = None
    kubelet: str = KUBELET
    ready: str = "True"
    unschedulable: bool = False
    alive: bool = True

    def has(self, handler: str) -> bool:
        """Whether the node's container runtime has a handler configured."""
        configured = self.handlers if self.serves is None else self.serves
        return not handler or configured is None or handler in configured

    @property
    def boot_id(self) -> str:
        """What `/proc/sys/kernel/random/boot_id` says on the node."""
        return boot_id(self.name, self.boots)

    @property
    def container_runtime(self) -> str:
        """The runtime's version: one that fills `runtimeHandlers`, or one that does not."""
        if self.runtime is not None:
            return self.runtime
        return "containerd://1.7.27" if self.handlers is None else "containerd://2.1.9"


def manifest(node: FakeNode) -> dict[str, Any]:
    """The Node object to create. The API server keeps `status` of a node on creation."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": all_labels(node)},
        "spec": spec(node),
        "status": status(node),
    }


def all_labels(node: FakeNode) -> dict[str, str]:
    """The labels that a kubelet sets, and those of the test over them."""
    return {
        "kubernetes.io/hostname": node.name,
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/os": "linux",
        **node.labels,
    }


def spec(node: FakeNode) -> dict[str, Any]:
    """The part of the spec that changes: cordon and taints."""
    taints = list(node.taints)
    if node.unschedulable:
        taints.append(UNSCHEDULABLE_TAINT)
    if lifecycle := _LIFECYCLE_TAINTS[node.ready]:
        taints.append(lifecycle)
    return {"unschedulable": node.unschedulable, "taints": taints}


def status(node: FakeNode) -> dict[str, Any]:
    """The node's status as a kubelet reports it."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    amounts = {
        "cpu": "1000",
        "memory": "4000Gi",
        "ephemeral-storage": "4000Gi",
        "pods": "1000",
    }
    return {
        "capacity": amounts,
        "allocatable": amounts,
        "addresses": [
            {"type": "InternalIP", "address": host_ip(node.name)},
            {"type": "Hostname", "address": node.name},
        ],
        "conditions": [_ready_condition(node.ready, now)],
        "nodeInfo": {
            "architecture": "amd64",
            "bootID": node.boot_id,
            "containerRuntimeVersion": node.container_runtime,
            "kernelVersion": KERNEL,
            "kubeProxyVersion": "",
            "kubeletVersion": node.kubelet,
            "machineID": boot_id(node.name, -1).replace("-", ""),
            "operatingSystem": "linux",
            "osImage": "Fake OS",
            "systemUUID": boot_id(node.name, -2),
        },
        "runtimeHandlers": runtime_handlers(node.handlers),
    }


def runtime_handlers(handlers: set[str] | None) -> list[dict[str, Any]] | None:
    """`status.runtimeHandlers`: the unnamed default first, then each name in order."""
    if handlers is None:
        return None
    return [
        {
            "name": name,
            "features": {
                # Only runtimes that containerd can introspect say true; no other runtime does,
                # healthy or broken.
                "recursiveReadOnlyMounts": name in {"", "runc"},
                "userNamespaces": False,
            },
        }
        for name in ["", *sorted(handlers)]
    ]


@functools.cache
def host_ip(name: str) -> str:
    """An address for a node, stable for its name."""
    digest = uuid.uuid5(_NAMESPACE, name).bytes
    return f"10.{200 + digest[0] % 50}.{digest[1]}.{1 + digest[2] % 250}"


def _ready_condition(ready: str, now: str) -> Mapping[str, str]:
    reasons = {
        "True": ("KubeletReady", "kubelet is posting ready status"),
        "False": ("KubeletNotReady", "container runtime is down"),
        "Unknown": ("NodeStatusUnknown", "Kubelet stopped posting node status."),
    }
    reason, message = reasons[ready]
    return {
        "type": "Ready",
        "status": ready,
        "reason": reason,
        "message": message,
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }
