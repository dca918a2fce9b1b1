"""Infers the failed component and the kind of fault from a message that ``patterns`` does not know.

Errors are wrapped from the inside to the outside: the VMM's error by its shim, that by containerd,
that by the kubelet. The innermost component that can be recognized is taken as the one that
failed, and the kind of fault is recognized by phrases of kernels and common libraries. That is less
certain than a known message, so it never proves a node broken: a probe decides.

Faults outside the runtime come first: those of the kubelet, network plugins and registries, and
those of the node's disk, memory and limits never blame the runtime, whichever component reports
them.

As in ``patterns``, only the beginning of a text is searched, and every quantifier is bounded, so
that matching takes linear time.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from sandboxpool.api.reasons import Reason
from sandboxpool.runtimes.patterns import MAX_SEARCHED, Cause, match, searched


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


@dataclass(frozen=True, slots=True)
class Inference:
    """What was inferred from a message.

    Attributes:
        component: the component that failed.
        name: the name of the program, such as "qemu"; empty if the message does not have it.
        category: the kind of fault; None if it is not recognized.
        transient: by the message the fault is transient, and the kubelet retries.
        cause: the resulting cause.
    """

    component: Component
    name: str
    category: FaultCategory | None
    transient: bool
    cause: Cause


# Pools and probes look up the same events at every reconciliation.
@lru_cache(maxsize=512)
def cause_of(event: str) -> Cause | None:
    """Return the cause of an event, by a known message first, else by inference.

    Args:
        event: the message of a FailedCreatePodSandBox event.
    """
    row = match(event)
    inference = infer(event)
    if row is not None:
        uncertain = row.cause.blames_runtime and not row.cause.proves_broken
        if uncertain and inference is not None and inference.category in _NODE_RESOURCES:
            return inference.cause
        return row.cause
    if _CALL not in event[:MAX_SEARCHED]:
        # The kubelet failed before it called the container runtime.
        return _cause(Component.KUBELET, "", _category(searched(event), Component.KUBELET), False)
    return inference.cause if inference is not None else None


def infer(text: str) -> Inference | None:
    """Infer the component and the kind of fault; None if neither is recognized.

    Args:
        text: a message, or a part of it as in a log.
    """
    said = _TRACE.split(searched(text), maxsplit=1)[0]
    component, certain = _reporting_component(said)
    category = _category(said, component)
    if category is None and not certain:
        return None
    if component is None:
        component = Component.CONTAINER_RUNTIME
    transient = category in _MAY_BE_TRANSIENT and bool(_TRANSIENT.search(said))
    name = _name(said, component)
    cause = _cause(component, name, category, transient)
    return Inference(component, name, category, transient, cause)


# The kubelet's prefix of an error that its call to the container runtime returned.
_CALL = "rpc error: "
# A stack trace or usage text of the failed program follows.
_TRACE = re.compile(r"Stack backtrace:|\bgoroutine \d|\bUsage:")


def _pattern(*words: str) -> re.Pattern[str]:
    return re.compile("|".join(words), re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ComponentPatterns:
    """The phrases by which a component is recognized.

    Attributes:
        component: the component.
        own: phrases of its own errors.
        wrapping: phrases with which it also wraps others' errors. They count only where the kind of
            fault is recognized too.
    """

    component: Component
    own: re.Pattern[str]
    wrapping: re.Pattern[str] | None = None


# The first match counts, whichever other components are named.
EXTERNAL_COMPONENTS: tuple[ComponentPatterns, ...] = (
    ComponentPatterns(
        Component.KUBELET,
        _pattern(
            r"unable to ensure pod container exists",
            r"error syncing pod",
            r"error making pod data director",
            r"failed to generate sandbox config",
            r"resolvconfpath|rewrite resolv\.conf",
            r"mkdir /var/lib/kubelet/",
            # The message begins with the node's own error: there was no call to the runtime.
            r"(?:^|create pod sandbox: )(?:open|mkdir|stat|lstat|read|write|remove|symlink) /",
        ),
    ),
    ComponentPatterns(
        Component.NETWORK_PLUGIN,
        _pattern(
            r"\bCNI\b(?![-/])|/(?:etc|opt)/cni/",
            r'plugin type="',
            r"networkplugin",
            r"network plugin",
            r"pod network",
            r"no ip addresses? available",
            r"\bIPAM\b",
        ),
    ),
    ComponentPatterns(
        Component.REGISTRY,
        _pattern(
            r"failed to (?:resolve reference|do request|pull)",
            r"error pinging container registry",
            r"unexpected status code",
            r"initializing source docker",
            r"pull access denied",
            r"toomanyrequests",
        ),
    ),
)

# The component whose phrase begins last is the innermost.
RUNTIME_COMPONENTS: tuple[ComponentPatterns, ...] = (
    ComponentPatterns(
        Component.CONTAINER_RUNTIME,
        _pattern(
            r"network namespace for sandbox",
            r"setup netns",
            r"apparmor_parser",
            r"spec opt",
            r"no running task found",
            r"write child: broken pipe",
            r"json message",
            r"conmon",
            r"error creating cgroup path",
            r"task for sandbox",
        ),
        _pattern(
            r"error response from daemon",
            r"sandbox container for pod",
            r"failed to start sandbox ",
            r"error creating pod sandbox",
            r"a sandbox for pod",
        ),
    ),
    ComponentPatterns(
        Component.SNAPSHOTTER,
        _pattern(
            r"snapshot",
            r"rootfs component",
            r"thin (?:pool|device)",
            r"devmapper|dmsetup",
            r"tmpmounts",
            r"\bunpack",
            r"extract layer",
            r"apply layer",
            r"content digest",
            r"create instance \d",
            r"overlaybd|nydus|stargz|blockfile",
            r"error creating (?:overlay )?(?:read-write )?(?:layer|mount)",
        ),
        _pattern(r"containerd container:"),
    ),
    ComponentPatterns(
        Component.SHIM,
        _pattern(
            r"(?:create|start|starting) shim",
            r"containerd-shim",
            r"shim (?:error|closed|disconnected|management)",
            r"CreateContainer failed:",
            r"init runtime (?:instance|handler)",
            r"in task handler",
            r"handler? message",
            r"resource controller",
            r"to sandbox cgroup",
            r"sandbox cgroup",
            r"tap interface|internetworking",
        ),
        _pattern(r"containerd task", r"sandbox container task"),
    ),
    ComponentPatterns(
        Component.OCI_RUNTIME,
        _pattern(
            r"OCI runtime",
            r"container(?: create| creation) (?:failed|error):",
            r"(?:container|process|rootfs|rootfs_init)_linux\.go",
            r"(?<![\w.-])(?:docker-|sysbox-)?(?:runc|runsc|crun|youki|runv|kata-runtime)\b(?!\.v\d)",
            r"(?:creating|starting) container:",
            r"container (?:init\b|process)",
            r"\binit-p\b|init pipe|exec setns",
            r"client sync file|containerManager",
            r"sd-bus call",
            r"\bgofer\b|\bsentry\b|libcontainer",
            r"sysbox-(?:fs|mgr)|nvidia-container|running (?:\w{1,20} )?hook",
        ),
    ),
    ComponentPatterns(
        Component.VMM,
        _pattern(
            r"\bqemu|nemu-system|\bQMP\b",
            r"cloud-hypervisor|\bclh\b|\bApiError\(|error: [45]\d\d {1,2}reason:",
            r"firecracker|fault_?message|microvm|\[(?:PUT|PATCH|GET) /",
            r"dragonball|stratovirt|openvmm",
            r"virtiofsd|virtio-fs|vhost fds|\bvhost[-_](?:net|user|fs)",
            r"hypervisor call",
            r"(?<!after )\bstart(?:ing)?(?: the)? vm\b|\bcreate ?vm\b|\bboot vm\b|vmm server",
            r"\bvcpus? (?:of|were|failed)|hot ?(?:add|plug)",
            r"/run/vc/vm/|connection to vm\b",
            r"\bkvm\b",
            r"guest (?:memory|RAM)",
        ),
    ),
    ComponentPatterns(
        Component.GUEST_AGENT,
        _pattern(
            r"agent (?:server|ttrpc|create|start|connect)|connect agent|kata-agent",
            r"grpc server is working",
            r"kataShared|/run/kata-containers/shared/containers",
            r"vsocket|\bvsock\b",
            r"rpc status: code|code = internal desc",
            r"Create(?:Container|Sandbox)Request",
            r"systemd unit \S{1,200} exists",
        ),
    ),
)

# The first match counts: an exhausted resource comes before its consequences.
FAULT_PATTERNS: tuple[tuple[FaultCategory, re.Pattern[str]], ...] = (
    (
        FaultCategory.DISK,
        _pattern(
            r"no space left on device",
            r"\bENOSPC\b|os error 28\b",
            r"disk quota exceeded|\bEDQUOT\b",
            r"free (?:data|metadata) blocks",
            r"out of (?:disk )?space",
        ),
    ),
    (
        FaultCategory.FILE_HANDLES,
        _pattern(r"too many open files", r"\bE[MN]FILE\b|os error 2[34]\b"),
    ),
    (
        FaultCategory.PROCESSES,
        _pattern(
            r"(?:fork|exec|clone|thread)[^:]{0,300}: resource temporarily unavailable",
            r"failed to create new OS thread",
            r"cannot fork",
        ),
    ),
    (
        FaultCategory.MEMORY,
        _pattern(
            r"cannot allocate memory",
            r"\bENOMEM\b|os error 12\b",
            r"out of memory|\boom[- ]?kill",
            r"(?:not enough|insufficient) (?:free )?memory",
            # The kernel's limit of memory for compiled filters.
            r"seccomp filter: errno 524",
        ),
    ),
    (
        FaultCategory.HANDLER,
        _pattern(
            r"no runtime for|find runtime handler",
            r"runtime ?handler \S{1,253} (?:is )?not",
            r"(?:unknown|invalid) runtime (?:name|handler|type)",
        ),
    ),
    (FaultCategory.ANNOTATION, _pattern(r"annotation \S{1,253} (?:is )?not (?:enabled|allowed)")),
    (
        FaultCategory.KVM,
        _pattern(
            r"/dev/kvm",
            r"\bkvm (?:object|support|module|kernel module|device|is not)",
            r"initialize kvm|\bKvm\(",
        ),
    ),
    (FaultCategory.VSOCK, _pattern(r"vhost[-_]vsock")),
    (
        FaultCategory.GUEST_IMAGE,
        _pattern(
            r"(?:vmlinu[xz]|bzimage|initrd|\.img\b|(?:guest|kernel|rootfs) image)"
            r".{0,200}(?:does not exist|no such file|not found|failed to open|cannot open)",
            r"(?:could not|cannot|failed to) (?:open|load|find) .{0,40}"
            r"(?:vmlinu[xz]|bzimage|initrd|\.img\b|kernel)",
        ),
    ),
    (
        FaultCategory.KERNEL_FEATURE,
        _pattern(
            r"/proc/self/exe: invalid argument",
            r"(?:seccomp|protocol|operation|namespace \w{1,20}) (?:is )?not supported",
            r"function not implemented|\bENOSYS\b|os error 38\b",
            r"\bENODEV\b",
            r"unknown filesystem type",
        ),
    ),
    (
        FaultCategory.CONFIGURATION,
        _pattern(
            r"flag provided but not defined|unknown (?:flag|option|shorthand|command|field)",
            r"invalid (?:command|character|value|configuration|internetworking|option)",
            r"(?:is|are) not (?:supported|enabled)|does not support|not implemented",
            r"unsupported|unrecognized",
            r"cannot (?:un)?marshal|missing field|deserialize",
            r"cannot find usable config|parse config|decode config",
            r"running hook",
            r"exec format error",
            # A shim whose protocol is newer than containerd's.
            r'dial unix .{0,3}\{"version"',
        ),
    ),
    (
        FaultCategory.CGROUP,
        _pattern(r"cgroup", r"\bsd-bus\b|\bD-Bus\b", r"systemd unit"),
    ),
    (
        FaultCategory.PROCESS,
        _pattern(
            r"\bEOF\b|broken pipe|unexpected end of file|lost connection|command cancell?ed",
            r"ttrpc: closed|transport is closing|shim (?:closed|disconnected)",
            r"\bexit(?:ed)?(?: with)? (?:status|code):? \d|exited unexpectedly",
            r"signal: |\bkilled\b|segmentation fault|panick?",
            r"\binit-p\b",
            r"has (?:stopped|exited)|no running task|is not running",
            r"/proc/0/",
        ),
    ),
    (
        FaultCategory.BINARY,
        _pattern(
            r"executable file not found",
            r"(?:fork/exec|binary path: stat) \S{1,300}: no such file",
            r"\bnot installed\b",
            r"\bfile \S{1,400} does not exist",
            r"command not found",
        ),
    ),
    (
        FaultCategory.PERMISSION,
        _pattern(
            r"permission denied|operation not permitted",
            r"\bE(?:PERM|ACCES)\b|os error (?:1|13)\)",
            r"/proc/(?:self|\d{1,10})/attr|\bselinux\b|\bapparmor\b",
        ),
    ),
    (
        FaultCategory.TIME,
        _pattern(
            r"deadline ?exceeded|timed out|time-?out\b",
            r"context cancell?ed",
            r"cannot connect to agent|connect agent server",
        ),
    ),
    (
        FaultCategory.CONNECTION,
        _pattern(
            r"connection (?:refused|reset|closed|error)",
            r"\bdial (?:unix|tcp|vsock)\b",
            r"\bsocket\b.{0,300}(?:not found|no such file)",
            r"resource temporarily unavailable",
        ),
    ),
    (
        FaultCategory.ROOT_FILESYSTEM,
        _pattern(r"block device", r"\brootfs\b", r"read-only file ?system", r"input/output error"),
    ),
    # The process ended for an unknown reason.
    (FaultCategory.PROCESS, _pattern(r"did not terminate suc", r"container init caused")),
)

_TRANSIENT = _pattern(
    r"context cancell?ed", r"\(probably exited\)", r"cgroup.{0,200}\b(?:alreadyexists|file exists)"
)

_MAY_BE_TRANSIENT = frozenset({FaultCategory.TIME, FaultCategory.PROCESS, FaultCategory.CGROUP})

# Resources of the node: the runtime is not at fault.
_NODE_RESOURCES = frozenset(
    {FaultCategory.DISK, FaultCategory.MEMORY, FaultCategory.FILE_HANDLES, FaultCategory.PROCESSES}
)
# The only faults that the kubelet and the snapshotter have of their own.
_OF_KUBELET = _NODE_RESOURCES | {
    FaultCategory.CGROUP,
    FaultCategory.CONNECTION,
    FaultCategory.PERMISSION,
    FaultCategory.TIME,
}
_OF_SNAPSHOTTER = _NODE_RESOURCES | {
    FaultCategory.CONNECTION,
    FaultCategory.PERMISSION,
    FaultCategory.TIME,
}

_NAMES: dict[Component, re.Pattern[str]] = {
    Component.CONTAINER_RUNTIME: _pattern(r"\bconmon\b"),
    Component.SNAPSHOTTER: _pattern(
        r"devmapper|nydus|stargz|overlaybd|overlayfs|erofs|blockfile|btrfs|zfs"
    ),
    Component.OCI_RUNTIME: _pattern(r"(?<![\w.-])(?:sysbox-)?(?:runc|runsc|crun|youki|runv)\b"),
    Component.VMM: _pattern(
        r"qemu|cloud-hypervisor|firecracker|dragonball|stratovirt|openvmm|virtiofsd"
    ),
}


def _reporting_component(said: str) -> tuple[Component | None, bool]:
    """Find the innermost component, and whether the phrase is one of its own errors."""
    for patterns in EXTERNAL_COMPONENTS:
        if patterns.own.search(said):
            return patterns.component, True
    innermost, own = None, False
    begins = -1
    for patterns in RUNTIME_COMPONENTS:
        for pattern in (patterns.own, patterns.wrapping):
            if pattern is None:
                continue
            last = max((found.start() for found in pattern.finditer(said)), default=-1)
            if last > begins:
                innermost, own, begins = patterns.component, pattern is patterns.own, last
    return innermost, own


def _category(said: str, component: Component | None) -> FaultCategory | None:
    possible: frozenset[FaultCategory] | None = None
    default: FaultCategory | None = None
    if component is Component.SNAPSHOTTER:
        possible, default = _OF_SNAPSHOTTER, FaultCategory.ROOT_FILESYSTEM
    elif component is Component.KUBELET:
        possible, default = _OF_KUBELET, FaultCategory.CONFIGURATION
    for category, pattern in FAULT_PATTERNS:
        if (possible is None or category in possible) and pattern.search(said):
            return category
    return default


def _name(said: str, component: Component) -> str:
    names = _NAMES.get(component)
    found = names.search(said) if names is not None else None
    return found[0].lower() if found else ""


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
# Every reason of an Inference.
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


def _cause(
    component: Component, name: str, category: FaultCategory | None, transient: bool
) -> Cause:
    fault, cure = _MESSAGES[category]
    subject = f"{name} (the {component})" if name else f"the {component}"
    cure = f"{subject} {fault}: {cure}"
    if component is Component.NETWORK_PLUGIN:
        return Cause(Reason.POD_NETWORK_FAILED, f"{subject} failed: {_NETWORK_CURE}")
    if category in _NODE_RESOURCES:
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
