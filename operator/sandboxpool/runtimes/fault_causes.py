"""The reason and the remedy for each component and kind of fault that ``heuristics`` infers."""

from enum import StrEnum

from sandboxpool.api.reasons import Reason
from sandboxpool.runtimes.patterns import Cause


class Component(StrEnum):
    """The components that create a sandbox, from the outside to the inside."""

    KUBELET = "kubelet"
    NETWORK_PLUGIN = "network plugin"
    REGISTRY = "registry"
    CONTAINER_RUNTIME = "container runtime"
    SNAPSHOTTER = "snapshotter"
    SHIM = "shim"
    OCI_RUNTIME = "OCI runtime"
    VMM = "VMM"
    GUEST_AGENT = "guest agent"


class FaultCategory(StrEnum):
    """What a component lacked, or what failed in it."""

    HANDLER = "handler"
    BINARY = "binary"
    GUEST_IMAGE = "guest image"
    KVM = "KVM"
    VSOCK = "vsock"
    CGROUP = "cgroup"
    DISK = "disk"
    MEMORY = "memory"
    FILE_HANDLES = "file handles"
    PROCESSES = "processes"
    TIME = "time"
    CONNECTION = "connection"
    CONFIGURATION = "configuration"
    ANNOTATION = "annotation"
    PERMISSION = "permission"
    KERNEL_FEATURE = "kernel feature"
    ROOT_FILESYSTEM = "root filesystem"
    PROCESS = "process"


# Resources of the node: the runtime is not at fault.
NODE_RESOURCES = frozenset(
    {FaultCategory.DISK, FaultCategory.MEMORY, FaultCategory.FILE_HANDLES, FaultCategory.PROCESSES}
)

# What happened to the component, and what to do.
_MESSAGES: dict[FaultCategory | None, tuple[str, str]] = {
    FaultCategory.HANDLER: (
        "does not know the handler",
        "configure it in the node's container runtime and restart it",
    ),
    FaultCategory.BINARY: (
        "lacks a binary",
        "install the binary named in the message on the node, at the path in the handler's "
        "configuration",
    ),
    FaultCategory.GUEST_IMAGE: (
        "lacks the guest's kernel or image",
        "install it on the node, at the path in the handler's configuration",
    ),
    FaultCategory.KVM: (
        "cannot use KVM",
        "give the node /dev/kvm: enable (nested) virtualization and load the kernel module kvm",
    ),
    FaultCategory.VSOCK: (
        "cannot use vsock",
        "load the kernel module vhost_vsock on the node (modprobe)",
    ),
    FaultCategory.CGROUP: (
        "does not work with the node's cgroups",
        "set the kubelet, the container runtime and the handler to one cgroup driver and version",
    ),
    FaultCategory.DISK: (
        "ran out of disk space on the node",
        "free disk space and inodes, also on /run and in the snapshotter's pool; else raise the "
        "kernel's limits",
    ),
    FaultCategory.MEMORY: (
        "could not get memory",
        "free memory or huge pages on the node, or raise the pod's memory limit",
    ),
    FaultCategory.FILE_HANDLES: (
        "ran out of file handles",
        "raise the limits of open files and inotify on the node",
    ),
    FaultCategory.PROCESSES: (
        "could not start a process",
        "raise the node's and the container runtime's limits of processes (pids, TasksMax)",
    ),
    FaultCategory.TIME: (
        "got no answer in time",
        "check whether the node is overloaded, and read the container runtime's log on it",
    ),
    FaultCategory.CONNECTION: (
        "could not connect",
        "start the service that should listen at the address named in the message on the node",
    ),
    FaultCategory.CONFIGURATION: (
        "is misconfigured, or its version is incompatible",
        "use compatible versions, and correct the handler's configuration",
    ),
    FaultCategory.ANNOTATION: (
        "does not allow an annotation of the pod",
        "remove it from the template, or enable it in the handler's configuration",
    ),
    FaultCategory.PERMISSION: (
        "was denied permission",
        "look for denials of SELinux, AppArmor or seccomp in the node's audit log",
    ),
    FaultCategory.KERNEL_FEATURE: (
        "needs a feature that the kernel does not have",
        "use a kernel, on the node or in the guest, that the runtime supports",
    ),
    FaultCategory.ROOT_FILESYSTEM: (
        "could not provide the root filesystem",
        "check the snapshotter and its storage on the node; removing the node's sandbox (pause) "
        "image may help",
    ),
    FaultCategory.PROCESS: (
        "ended while it started the sandbox",
        "look for a killed process in the node's kernel log, and raise the pod's memory limit or "
        "the class's overhead",
    ),
    None: ("failed", "read the container runtime's log on the node"),
}
_KUBELET_CURE = "check the node's kubelet, its log and configuration; the runtime is not at fault"
_NETWORK_CURE = "check the node's network plugin (CNI); the runtime is not at fault"
_REGISTRY_CURE = (
    "load the sandbox (pause) image on the node, or give the node access to the registry"
)
_TRANSIENT_CURE = "no action is needed: the fault is transient, and the kubelet retries"

# The reason of a fault, where it is the same for all components.
_REASONS: dict[FaultCategory, Reason] = {
    FaultCategory.HANDLER: Reason.HANDLER_NOT_CONFIGURED,
    FaultCategory.GUEST_IMAGE: Reason.GUEST_IMAGE_MISSING,
    FaultCategory.KVM: Reason.KVM_UNAVAILABLE,
    FaultCategory.VSOCK: Reason.VSOCK_UNAVAILABLE,
    FaultCategory.CGROUP: Reason.CGROUP_DRIVER_MISMATCH,
    FaultCategory.CONFIGURATION: Reason.RUNTIME_MISCONFIGURED,
    FaultCategory.ANNOTATION: Reason.RUNTIME_MISCONFIGURED,
    FaultCategory.PERMISSION: Reason.RUNTIME_MISCONFIGURED,
    FaultCategory.KERNEL_FEATURE: Reason.RUNTIME_MISCONFIGURED,
    FaultCategory.BINARY: Reason.RUNTIME_MISCONFIGURED,
    FaultCategory.PROCESS: Reason.SANDBOX_DIED,
    FaultCategory.TIME: Reason.SANDBOX_START_TIMEOUT,
    FaultCategory.ROOT_FILESYSTEM: Reason.SNAPSHOTTER_FAILED,
}
# The reason, where it depends on the component.
_REASONS_OF: dict[tuple[Component, FaultCategory], Reason] = {
    (Component.SHIM, FaultCategory.BINARY): Reason.SHIM_MISSING,
    (Component.OCI_RUNTIME, FaultCategory.BINARY): Reason.OCI_RUNTIME_MISSING,
    (Component.VMM, FaultCategory.BINARY): Reason.VMM_START_FAILED,
    (Component.VMM, FaultCategory.PROCESS): Reason.VM_LOST,
    (Component.VMM, FaultCategory.TIME): Reason.VM_START_TIMEOUT,
    (Component.VMM, FaultCategory.ROOT_FILESYSTEM): Reason.VMM_START_FAILED,
    (Component.GUEST_AGENT, FaultCategory.PROCESS): Reason.VM_LOST,
    (Component.GUEST_AGENT, FaultCategory.TIME): Reason.VM_START_TIMEOUT,
    (Component.GUEST_AGENT, FaultCategory.CONNECTION): Reason.VM_START_TIMEOUT,
    (Component.SNAPSHOTTER, FaultCategory.CONNECTION): Reason.SNAPSHOTTER_MISSING,
}
# The reason of all other faults of a component.
_DEFAULT_REASONS: dict[Component, Reason] = {
    Component.SNAPSHOTTER: Reason.SNAPSHOTTER_FAILED,
    Component.VMM: Reason.VMM_START_FAILED,
}
# Every reason that ``cause_for`` gives.
REASONS: frozenset[Reason] = frozenset(
    {
        *_REASONS.values(),
        *_REASONS_OF.values(),
        *_DEFAULT_REASONS.values(),
        Reason.SANDBOX_CREATE_FAILED,
        Reason.NODE_RESOURCE_EXHAUSTED,
        Reason.KUBELET_FAILED,
        Reason.POD_NETWORK_FAILED,
        Reason.IMAGE_PULL_FAILED,
    }
)


def cause_for(
    component: Component, name: str, category: FaultCategory | None, transient: bool
) -> Cause:
    """Return the cause of a fault.

    Args:
        component: the component that failed.
        name: the name of the program; empty if it is not known.
        category: the kind of fault; None if it is not recognized.
        transient: by the message the fault is transient.
    """
    fault, cure = _MESSAGES[category]
    subject = f"{name} (the {component})" if name else f"the {component}"
    cure = f"{subject} {fault}: {cure}"
    if component is Component.NETWORK_PLUGIN:
        return Cause(Reason.POD_NETWORK_FAILED, f"{subject} failed: {_NETWORK_CURE}")
    if category in NODE_RESOURCES:
        return Cause(Reason.NODE_RESOURCE_EXHAUSTED, cure)
    if component is Component.REGISTRY:
        cure = f"{subject} failed: {_REGISTRY_CURE}"
        return Cause(Reason.IMAGE_PULL_FAILED, cure, self_healing=True)
    if component is Component.KUBELET:
        return Cause(Reason.KUBELET_FAILED, f"{subject} failed: {_KUBELET_CURE}")
    if transient:
        # Only a canceled call is certainly nobody's fault.
        blames = category is FaultCategory.CGROUP
        cure = f"{subject} failed: {_TRANSIENT_CURE}"
        return Cause(Reason.SANDBOX_CREATE_FAILED, cure, blames_runtime=blames, self_healing=True)
    blames = category is not FaultCategory.ANNOTATION
    return Cause(_reason(component, category), cure, blames_runtime=blames)


def _reason(component: Component, category: FaultCategory | None) -> Reason:
    default = _DEFAULT_REASONS.get(component, Reason.SANDBOX_CREATE_FAILED)
    if category is None:
        return default
    specific = _REASONS_OF.get((component, category))
    if specific is not None:
        return specific
    # A snapshotter has neither a handler nor a configuration.
    return default if component is Component.SNAPSHOTTER else _REASONS.get(category, default)
