"""Who spoke and what was lacking, in a text that no row of ``patterns`` knows.

Errors are passed on from the inside to the outside: a VMM's words come in those of its shim, these
in those of containerd, these in those of the kubelet. The innermost component that can be told is
taken for the one that spoke, and what it lacked is told by words that kernels and libraries use
everywhere. That is less than a row knows, so it never proves a node broken: a probe is to tell.

What lies outside the runtime comes first: the kubelet itself, network plugins, registries, and the
node's disk, memory and limits are never held against the runtime, whoever passed the words on.

As in ``patterns``, only the beginning of a text is read, and no pattern has a quantifier without a
bound, so that the time is linear.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from sandboxpool.api.reasons import Reason
from sandboxpool.runtimes.patterns import MAX_SEARCHED, Cause, match, searched


class Component(StrEnum):
    """What takes part in making a sandbox, from the outside to the inside."""

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
    """What a component did not have, get or find."""

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
    """What a text says by its structure.

    Attributes:
        component: who spoke.
        name: the program's own name where the text has it, such as "qemu"; else empty.
        lacks: what was lacking; None if the words do not say.
        transient: by its own words the trouble is over soon, and the kubelet tries again.
        cause: what that means for the node and what to do.
    """

    component: Component
    name: str
    category: FaultCategory | None
    transient: bool
    cause: Cause


# Pools and probes ask about the same events again at every look.
@lru_cache(maxsize=512)
def cause_of(event: str) -> Cause | None:
    """Say what an event means: by the table of exact texts first, else by its structure.

    Args:
        event: the message of a FailedCreatePodSandBox.
    """
    row = match(event)
    reading = read(event)
    if row is not None:
        doubtful = row.cause.blames_runtime and not row.cause.proves_broken
        if doubtful and reading is not None and reading.category in _OF_THE_NODE:
            return reading.cause
        return row.cause
    if _CALL not in event[:MAX_SEARCHED]:
        # The kubelet did not come as far as to ask the container runtime.
        return _cause(Component.KUBELET, "", _lack(searched(event), Component.KUBELET), False)
    return reading.cause if reading is not None else None


def read(text: str) -> Inference | None:
    """Say who spoke and what was lacking; None if that cannot be told.

    Args:
        text: what was said, whole or a part of it as it stands in a log.
    """
    said = _TRACE.split(searched(text), maxsplit=1)[0]
    component, sure = _reporting_component(said)
    lacks = _lack(said, component)
    if lacks is None and not sure:
        return None
    if component is None:
        component = Component.CONTAINER_RUNTIME
    transient = lacks in _CAN_PASS and bool(_PASSES.search(said))
    name = _name(said, component)
    return Inference(component, name, lacks, transient, _cause(component, name, lacks, transient))


# So the kubelet passes on what came back from its call.
_CALL = "rpc error: "
# What follows are the innards of the program that failed, or the help that it printed.
_TRACE = re.compile(r"Stack backtrace:|\bgoroutine \d|\bUsage:")


def _pattern(*words: str) -> re.Pattern[str]:
    return re.compile("|".join(words), re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ComponentPatterns:
    """By which words a component is told.

    Attributes:
        component: whose words they are.
        own: only it says these.
        wrapping: others' words are passed on in these as well, so that they are worth something
            only where it can be told what was lacking.
    """

    component: Component
    own: re.Pattern[str]
    wrapping: re.Pattern[str] | None = None


# Whoever else is named: the first of these that is found spoke.
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
            # It begins with the node's own answer: there was no call to the runtime.
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

# The one whose words begin last is the innermost.
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

# The first that is found counts: what a node runs out of, before what that led to.
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
            # The kernel's room for the programs that filters are compiled to.
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
            # A shim that answers in a newer form than containerd reads.
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
    # It ended, and nothing says why.
    (FaultCategory.PROCESS, _pattern(r"did not terminate suc", r"container init caused")),
)

_PASSES = _pattern(
    r"context cancell?ed", r"\(probably exited\)", r"cgroup.{0,200}\b(?:alreadyexists|file exists)"
)

_CAN_PASS = frozenset({FaultCategory.TIME, FaultCategory.PROCESS, FaultCategory.CGROUP})

# The node's and nobody else's.
_OF_THE_NODE = frozenset(
    {FaultCategory.DISK, FaultCategory.MEMORY, FaultCategory.FILE_HANDLES, FaultCategory.PROCESSES}
)
# All that these two can lack for reasons of their own.
_OF_KUBELET = _OF_THE_NODE | {
    FaultCategory.CGROUP,
    FaultCategory.CONNECTION,
    FaultCategory.PERMISSION,
    FaultCategory.TIME,
}
_OF_SNAPSHOTTER = _OF_THE_NODE | {
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
    """Tell who spoke, and whether the words were its own."""
    for words in EXTERNAL_COMPONENTS:
        if words.own.search(said):
            return words.component, True
    inmost, own = None, False
    begins = -1
    for words in RUNTIME_COMPONENTS:
        for pattern in (words.own, words.wrapping):
            if pattern is None:
                continue
            last = max((found.start() for found in pattern.finditer(said)), default=-1)
            if last > begins:
                inmost, own, begins = words.component, pattern is words.own, last
    return inmost, own


def _lack(said: str, component: Component | None) -> FaultCategory | None:
    possible: frozenset[FaultCategory] | None = None
    otherwise: FaultCategory | None = None
    if component is Component.SNAPSHOTTER:
        possible, otherwise = _OF_SNAPSHOTTER, FaultCategory.ROOT_FILESYSTEM
    elif component is Component.KUBELET:
        possible, otherwise = _OF_KUBELET, FaultCategory.CONFIGURATION
    for lack, words in FAULT_PATTERNS:
        if (possible is None or lack in possible) and words.search(said):
            return lack
    return otherwise


def _name(said: str, component: Component) -> str:
    names = _NAMES.get(component)
    found = names.search(said) if names is not None else None
    return found[0].lower() if found else ""


# What to say of a lack, and what to do about it.
_SAYINGS: dict[FaultCategory | None, tuple[str, str]] = {
    FaultCategory.HANDLER: (
        "does not know the handler",
        "configure it in the node's container runtime and restart that",
    ),
    FaultCategory.BINARY: (
        "lacks a binary",
        "install the one that it names on the node, where the handler's configuration says",
    ),
    FaultCategory.GUEST_IMAGE: (
        "lacks the guest's kernel or image",
        "install it on the node, where the handler's configuration says",
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
        "and the node's cgroups do not fit",
        "set the kubelet, the container runtime and the handler to one cgroup driver and version",
    ),
    FaultCategory.DISK: (
        "found no room on the node",
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
        "see whether the node is overloaded, and read the container runtime's log on it",
    ),
    FaultCategory.CONNECTION: (
        "could not connect",
        "start what should answer at the address that it names on the node",
    ),
    FaultCategory.CONFIGURATION: (
        "and its configuration do not fit",
        "use versions that belong together, and correct the handler's configuration",
    ),
    FaultCategory.ANNOTATION: (
        "does not allow an annotation of the pod",
        "remove it from the template, or enable it in the handler's configuration",
    ),
    FaultCategory.PERMISSION: (
        "was not permitted",
        "look for denials of SELinux, AppArmor or seccomp in the node's audit log",
    ),
    FaultCategory.KERNEL_FEATURE: (
        "needs what the kernel does not have",
        "use a kernel, on the node or in the guest, that the runtime supports",
    ),
    FaultCategory.ROOT_FILESYSTEM: (
        "could not provide the root filesystem",
        "see to the snapshotter and its storage on the node; removing the node's sandbox (pause) "
        "image may help",
    ),
    FaultCategory.PROCESS: (
        "ended while it started the sandbox",
        "look for a killed process in the node's kernel log, and raise the pod's memory limit or "
        "the class's overhead",
    ),
    None: ("failed", "read the container runtime's log on the node"),
}
_KUBELET_CURE = (
    "see to the node's kubelet, its log and its configuration; the runtime is not at fault"
)
_NETWORK_CURE = "see to the node's network plugin (CNI), the runtime is not at fault"
_REGISTRY_CURE = "give the node its sandbox (pause) image, or a way to the registry"
_PASSES_CURE = "nothing: by its words that passes, and the kubelet tries again"

# What it is called, by what was lacking, where it is the same for all components.
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
# Where it depends on who spoke.
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
# What the rest of a component's failures is called.
_OTHERWISE: dict[Component, Reason] = {
    Component.SNAPSHOTTER: Reason.SNAPSHOTTER_FAILED,
    Component.VMM: Reason.VMM_START_FAILED,
}
# Every reason that a reading can have.
REASONS: frozenset[Reason] = frozenset(
    {
        *_REASONS.values(),
        *_REASONS_OF.values(),
        *_OTHERWISE.values(),
        Reason.SANDBOX_CREATE_FAILED,
        Reason.NODE_RESOURCE_EXHAUSTED,
        Reason.KUBELET_FAILED,
        Reason.POD_NETWORK_FAILED,
        Reason.IMAGE_PULL_FAILED,
    }
)


def _cause(component: Component, name: str, lacks: FaultCategory | None, transient: bool) -> Cause:
    saying, cure = _SAYINGS[lacks]
    who = f"{name} (the {component})" if name else f"the {component}"
    said = f"{who} {saying}: "
    if component is Component.NETWORK_PLUGIN:
        return Cause(Reason.POD_NETWORK_FAILED, f"{who} failed: {_NETWORK_CURE}")
    if lacks in _OF_THE_NODE:
        return Cause(Reason.NODE_RESOURCE_EXHAUSTED, said + cure)
    if component is Component.REGISTRY:
        return Cause(Reason.IMAGE_PULL_FAILED, f"{who} failed: {_REGISTRY_CURE}", self_healing=True)
    if component is Component.KUBELET:
        return Cause(Reason.KUBELET_FAILED, f"{who} failed: {_KUBELET_CURE}")
    if transient:
        # Only the words of a call that was given up say that nobody is at fault.
        blames = lacks is FaultCategory.CGROUP
        cure = f"{who} failed: {_PASSES_CURE}"
        return Cause(Reason.SANDBOX_CREATE_FAILED, cure, blames_runtime=blames, self_healing=True)
    return Cause(
        _reason(component, lacks), said + cure, blames_runtime=lacks is not FaultCategory.ANNOTATION
    )


def _reason(component: Component, lacks: FaultCategory | None) -> Reason:
    general = _OTHERWISE.get(component, Reason.SANDBOX_CREATE_FAILED)
    if lacks is None:
        return general
    of_both = _REASONS_OF.get((component, lacks))
    if of_both is not None:
        return of_both
    # The image's layers have no handler and no configuration.
    return general if component is Component.SNAPSHOTTER else _REASONS.get(lacks, general)
