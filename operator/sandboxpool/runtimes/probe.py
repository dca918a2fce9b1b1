"""Builds the pods and containers that read a kernel's boot id inside a sandbox.

A probe pod tests whether a sandbox starts on the node, and whether its kernel is another one than
the node's. The result is the exit code, which is reported even where a termination message is not
(Kata without a shared file system); the message adds the kernel's name.
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

# The handler of the positive control: the node's default runtime, which does not isolate.
CONTROL = ""

PROBE_CONTAINER = "probe"
SANDBOX_PROBE_CONTAINER = "sandboxpool-probe"

# The exit codes of a probe pod's container. None is 0, with which a replaced image or command
# would exit.
OWN_KERNEL = 42
NODES_KERNEL = 10
UNREADABLE = 11

# Ends the probe if the operator is gone; the operator itself ends probes earlier. The kubelet
# counts from admission, so a pod that was never scheduled remains until the operator is back.
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
_SUCCEED = "exit 0\n"


# Satisfies the Pod Security level "restricted". The uid is the image's, or one that the cluster
# assigns (OpenShift's restricted-v2 admits only uids of the namespace's range).
SECURITY_CONTEXT: Final[Mapping[str, Any]] = {
    "runAsNonRoot": True,
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
# The memory limit must include a virtual machine monitor where the class declares no overhead.
RESOURCES: Final[Mapping[str, Any]] = {
    "requests": {"cpu": "10m", "memory": "16Mi"},
    "limits": {"memory": "256Mi"},
}
# Runtimes are probed on tainted nodes too.
TOLERATIONS: Final[tuple[Mapping[str, Any], ...]] = ({"operator": "Exists"},)
# Replaces root in a sandbox's init container, see `sandbox_probe_container`.
UNPRIVILEGED_USER = 65532


@dataclass(frozen=True, slots=True)
class ProbeImage:
    """The image of probes, in probe pods and in sandboxes.

    Attributes:
        name: the image; it must contain /bin/sh.
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
    """Settings of probe pods for the policies, quotas and sidecar injectors of a cluster.

    Attributes:
        labels: of the pod, besides the operator's own.
        annotations: of the pod, besides the operator's own.
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


def release_labels(release: str) -> dict[str, str]:
    """The labels that distinguish the probe pods of a release from others in its namespace."""
    return {names.LABEL_RELEASE: release} if release != names.DEFAULT_RELEASE else {}


def probe_selector(release: str) -> str:
    """The label selector of the probe pods of a release."""
    of_release = release_labels(release)
    if not of_release:
        return f"{LABEL_PROBE},!{names.LABEL_RELEASE}"
    return ",".join((LABEL_PROBE, *(f"{key}={value}" for key, value in of_release.items())))


def probe_name(seed: str) -> str:
    """Derive the name of a probe pod from a seed, so that a repeated create makes no second pod."""
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

    The pod is pinned by node affinity instead of nodeName, so that the scheduler accounts for its
    resources. Without a class the pod is the positive control, which must see the node's boot id.
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
    """Build the init container that tests a single sandbox, to be put before all others.

    The node is not known when the pod is created, so the container only reports what it reads and
    always succeeds; the operator compares.

    Args:
        image: the probe image, which the pool's namespace must be able to pull.
        resources: those of the template's first container. Init containers run before the
            others, so the pod's effective requests and its QoS class do not change.
        pod_security_context: the template's. Where it sets root, which the kubelet rejects
            together with runAsNonRoot, the probe runs as `UNPRIVILEGED_USER`.
    """
    container = _container(SANDBOX_PROBE_CONTAINER, image, _READ + _SUCCEED)
    security = container["securityContext"]
    # The template is not validated here.
    of_pod = pod_security_context if isinstance(pod_security_context, Mapping) else {}
    if security.get("runAsNonRoot") and of_pod.get("runAsUser") == 0:
        security.setdefault("runAsUser", UNPRIVILEGED_USER)
    return {**container, "resources": dict(resources or {})}


def architecture_hint(cause: str) -> str:
    """Say what to do about an image for another architecture, as an addition to the cause."""
    if "exec format error" not in cause:
        return ""
    return (
        ": the probe image does not support this node's architecture; use a multi-platform image "
        "for all nodes (SANDBOXPOOL_PROBE_IMAGE, Helm: probe.image)"
    )


def _container(name: str, image: ProbeImage, script: str) -> dict[str, Any]:
    return {
        "name": name,
        "image": image.name,
        "imagePullPolicy": image.pull_policy,
        "command": ["/bin/sh", "-c", script],
        # If the shell cannot be executed, the error is only in the log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": dict(image.security_context),
    }


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
