"""The pods and containers that read a kernel's boot id from inside a sandbox.

Two questions, one pod: does a sandbox start here, and is its kernel another one than the node's?
The answer is the exit code, which comes through even where a termination message does not (Kata
without a shared file system); the message, where it arrives, adds the kernel's name.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sandboxpool.api import names
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.resolve import Runtime

LABEL_PROBE = f"{names.GROUP}/probe"
ANNOTATION_NODE = f"{names.GROUP}/node"
ANNOTATION_NODE_UID = f"{names.GROUP}/node-uid"
ANNOTATION_BOOT_ID = f"{names.GROUP}/boot-id"

# Stands in the place of a handler: the node's default runtime, which isolates from nothing.
CONTROL = ""

PROBE_CONTAINER = "probe"
SANDBOX_PROBE_CONTAINER = "sandboxpool-probe"

# What a probe pod's container says by its exit code. None is 0: whatever did not do its work, a
# replaced image or command, ends with that.
OWN_KERNEL = 42
NODES_KERNEL = 10
UNREADABLE = 11

# A backstop for when the operator is gone; it ends probes earlier by itself. The kubelet counts
# from the moment it takes the pod, so one that was never scheduled waits for the next operator.
ACTIVE_DEADLINE_SECONDS = 300

# Shell builtins only: any image with /bin/sh will do. The message is best effort.
_READ = """\
{ read -r seen < /proc/sys/kernel/random/boot_id; read -r kernel < /proc/version; } 2>/dev/null
{ printf '%s\\n%s\\n' "$seen" "$kernel" > /dev/termination-log; } 2>/dev/null
"""
_ANSWER = f"""\
[ -n "$EXPECTED_BOOT_ID" ] || exit {UNREADABLE}
case "$seen" in ????????-????-????-????-????????????) ;; *) exit {UNREADABLE} ;; esac
[ "$seen" = "$EXPECTED_BOOT_ID" ] && exit {NODES_KERNEL}
exit {OWN_KERNEL}
"""
_CARRY_ON = "exit 0\n"


# What Pod Security's level "restricted" asks for. No uid: that of the image is used, or the one
# that the cluster gives (OpenShift's restricted-v2 admits only those of the namespace's own range).
SECURITY_CONTEXT: Final[Mapping[str, Any]] = {
    "runAsNonRoot": True,
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
# Requests are what it takes from the node. The limit has to hold a virtual machine's monitor too,
# where the class declares no overhead for it.
RESOURCES: Final[Mapping[str, Any]] = {
    "requests": {"cpu": "10m", "memory": "16Mi"},
    "limits": {"memory": "256Mi"},
}
# A node's taints keep others away; a probe is to say what its runtimes are worth all the same.
TOLERATIONS: Final[tuple[Mapping[str, Any], ...]] = ({"operator": "Exists"},)
# Takes the place of root in a sandbox's init container, see `sandbox_probe_container`.
UNPRIVILEGED_USER = 65532


@dataclass(frozen=True, slots=True)
class ProbeImage:
    """What probes run, in pods of their own and in sandboxes.

    Attributes:
        name: the image, which has /bin/sh.
        pull_policy: as in a container.
        pull_secrets: names of secrets in the operator's namespace.
        security_context: as in a container.
    """

    name: str = ""
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    security_context: Mapping[str, Any] = field(default_factory=lambda: SECURITY_CONTEXT)


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """What a cluster's policies, quotas and sidecar injectors want of probe pods.

    Attributes:
        labels: of the pod, beside the operator's own.
        annotations: of the pod, beside the operator's own.
        resources: of its container.
        tolerations: of the pod.
        priority_class: as in a pod; empty for the cluster's default.
        security_context: of the pod, not of its container.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, Any] = field(default_factory=lambda: RESOURCES)
    tolerations: tuple[Mapping[str, Any], ...] = TOLERATIONS
    priority_class: str = ""
    security_context: Mapping[str, Any] = field(default_factory=dict)


NO_OPTIONS: Final = ProbeOptions()


def probe_name(seed: str) -> str:
    """Name a probe pod: the same seed, the same name, so a repeated create cannot double it."""
    return f"sandboxpool-probe-{_hash(seed)}"


def build_probe(
    name: str,
    namespace: str,
    node: NodeFacts,
    runtime: Runtime | None,
    image: ProbeImage,
    options: ProbeOptions = NO_OPTIONS,
) -> dict[str, Any]:
    """Build a probe pod for one node and one class.

    It is pinned by affinity, not by nodeName, so that the scheduler still counts resources.
    Without a class it is the positive control: it has to see the node's own boot id.
    """
    pinned = {"key": "metadata.name", "operator": "In", "values": [node.name]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {
                **options.labels,
                LABEL_PROBE: _hash(node.uid, runtime.uid if runtime is not None else ""),
                "app.kubernetes.io/managed-by": "sandboxpool",
            },
            "annotations": {
                **options.annotations,
                names.ANNOTATION_RUNTIME_UID: runtime.uid if runtime is not None else "",
                names.ANNOTATION_HANDLER: runtime.handler if runtime is not None else CONTROL,
                names.ANNOTATION_SAFE_TO_EVICT: "true",
                ANNOTATION_NODE: node.name,
                ANNOTATION_NODE_UID: node.uid,
                ANNOTATION_BOOT_ID: node.boot_id,
            },
        },
        "spec": {
            **({"runtimeClassName": runtime.class_name} if runtime is not None else {}),
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [{"matchFields": [pinned]}]
                    }
                }
            },
            "tolerations": [dict(toleration) for toleration in options.tolerations],
            **({"priorityClassName": options.priority_class} if options.priority_class else {}),
            **(
                {"securityContext": dict(options.security_context)}
                if options.security_context
                else {}
            ),
            "restartPolicy": "Never",
            "activeDeadlineSeconds": ACTIVE_DEADLINE_SECONDS,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "dnsPolicy": "Default",
            "imagePullSecrets": [{"name": secret} for secret in image.pull_secrets],
            "containers": [
                {
                    **_container(PROBE_CONTAINER, image, _READ + _ANSWER),
                    "env": [{"name": "EXPECTED_BOOT_ID", "value": node.boot_id}],
                    "resources": dict(options.resources),
                }
            ],
        },
    }


def sandbox_probe_container(
    image: ProbeImage,
    *,
    resources: Mapping[str, Any] | None = None,
    pod_security_context: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build the init container that proves a single sandbox, to be put before all others.

    The node is not known when the pod is made, so it only tells what it reads, and always lets
    the pod go on: the operator judges.

    Args:
        image: the probe image, which the pool's own namespace must be able to pull.
        resources: those of the template's first container. Init containers run before the
            others, so the pod asks for no more than it did, and its QoS class stays.
        pod_security_context: the template's. Where that makes everything root, which the kubelet
            would refuse together with runAsNonRoot, the probe is somebody else.
    """
    container = _container(SANDBOX_PROBE_CONTAINER, image, _READ + _CARRY_ON)
    security = container["securityContext"]
    # A template holds whatever its author wrote.
    of_pod = pod_security_context if isinstance(pod_security_context, Mapping) else {}
    if security.get("runAsNonRoot") and of_pod.get("runAsUser") == 0:
        security.setdefault("runAsUser", UNPRIVILEGED_USER)
    return {**container, "resources": dict(resources or {})}


def architecture_hint(cause: str) -> str:
    """What to do about an image that was built for other nodes, as an addition to the cause."""
    if "exec format error" not in cause:
        return ""
    return (
        ": the probe image is not for this node's architecture; name one that has those of all "
        "nodes (SANDBOXPOOL_PROBE_IMAGE, Helm: probe.image)"
    )


def _container(name: str, image: ProbeImage, script: str) -> dict[str, Any]:
    return {
        "name": name,
        "image": image.name,
        "imagePullPolicy": image.pull_policy,
        "command": ["/bin/sh", "-c", script],
        # A shell that cannot be executed says so in its log only.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": dict(image.security_context),
    }


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
