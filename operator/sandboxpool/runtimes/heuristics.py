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
from functools import lru_cache

from sandboxpool.runtimes.fault_causes import (
    NODE_RESOURCES,
    Component,
    FaultCategory,
    cause_for,
)
from sandboxpool.runtimes.patterns import MAX_SEARCHED, Cause, match, searched


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
        if uncertain and inference is not None and inference.category in NODE_RESOURCES:
            return inference.cause
        return row.cause
    if _CALL not in event[:MAX_SEARCHED]:
        # The kubelet failed before it called the container runtime.
        return cause_for(
            Component.KUBELET, "", _category(searched(event), Component.KUBELET), False
        )
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
    cause = cause_for(component, name, category, transient)
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

# The only faults that the kubelet and the snapshotter have of their own.
_OF_KUBELET = NODE_RESOURCES | {
    FaultCategory.CGROUP,
    FaultCategory.CONNECTION,
    FaultCategory.PERMISSION,
    FaultCategory.TIME,
}
_OF_SNAPSHOTTER = NODE_RESOURCES | {
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
