"""What kubelets, container runtimes, shims and VMMs say when a sandbox cannot be made.

One table. No row is a guess: the tests hold, for each, the very texts that it was taken from and
where those were seen. What no row knows is read by ``structure``. To add a row, first get a sample.

The order matters, the first row that matches counts. What comes from outside the node's runtime
(the kubelet itself, network plugins, registries) is told apart first, because its words can be
anything and must never speak against the runtime.

A text is partly under the influence of others: only its beginning is searched, and no pattern has
a quantifier without a bound, so that the time is linear.
"""

import re
from dataclasses import dataclass, replace

from sandboxpool.api.reasons import Reason

# Kubelets and runtimes say the cause well before this; what follows are stack traces.
MAX_SEARCHED = 4096


@dataclass(frozen=True, slots=True)
class Cause:
    """What a text means.

    Attributes:
        reason: from the shared vocabulary.
        cure: what an SRE should do, to stand before the node's own words.
        blames_runtime: it speaks against the node's runtime.
        proves_broken: no other pod can succeed on this node until somebody has mended it.
        self_healing: the kubelet goes on trying and will succeed by itself; another pod would not
            fare better.
    """

    reason: Reason
    cure: str
    blames_runtime: bool = False
    proves_broken: bool = False
    self_healing: bool = False


@dataclass(frozen=True, slots=True)
class Pattern:
    """A row of the table.

    Attributes:
        name: under which the tests keep its samples.
        text: searched for anywhere in what was said, with all white space made single blanks.
        cause: what it means.
    """

    name: str
    text: re.Pattern[str]
    cause: Cause


def searched(text: str) -> str:
    """Give the part of a text that is looked at, with all white space made single blanks."""
    return " ".join(text[:MAX_SEARCHED].split())


def match(text: str) -> Pattern | None:
    """Find the row that knows a text, if one does."""
    said = searched(text)
    return next((row for row in TABLE if row.text.search(said)), None)


def _broken(reason: Reason, cure: str) -> Cause:
    return Cause(reason, cure, blames_runtime=True, proves_broken=True)


def _failing(reason: Reason, cure: str) -> Cause:
    return Cause(reason, cure, blames_runtime=True)


_NETWORK = Cause(
    Reason.POD_NETWORK_FAILED, "see to the node's network plugin (CNI), the runtime is not at fault"
)
_PAUSE_IMAGE = Cause(
    Reason.IMAGE_PULL_FAILED,
    "give the node its sandbox (pause) image, or a way to the registry",
    self_healing=True,
)
_CLASS_GONE = Cause(
    Reason.RUNTIME_CLASS_NOT_FOUND,
    "create the RuntimeClass that the pod names again",
    self_healing=True,
)
_NO_USER_NAMESPACES = Cause(
    Reason.USER_NAMESPACES_UNSUPPORTED,
    "remove hostUsers from the template, or use a runtime that supports user namespaces",
)
_RESTARTING = Cause(
    Reason.RUNTIME_RESTARTING,
    "wait until the node's container runtime answers again, and start it if it does not",
    self_healing=True,
)
# Not healing: that attempt may never end, and a pod of another name has nothing to wait for.
_NAME_RESERVED = Cause(
    Reason.SANDBOX_START_TIMEOUT,
    "an earlier attempt for this pod has not ended: if none ever does, restart the node's "
    "container runtime",
)
_START_TIMEOUT = _failing(
    Reason.SANDBOX_START_TIMEOUT,
    "read the container runtime's log on the node: its storage, the pod's network or the runtime "
    "does not answer",
)
_NO_HANDLER = _broken(
    Reason.HANDLER_NOT_CONFIGURED,
    "configure the handler in the node's container runtime and restart that",
)
_NO_SHIM = _broken(
    Reason.SHIM_MISSING, "install the handler's shim on the node, where its configuration says"
)
_NO_OCI_RUNTIME = _broken(
    Reason.OCI_RUNTIME_MISSING,
    "install the binary that the handler's configuration names on the node",
)
_NO_KVM = _broken(
    Reason.KVM_UNAVAILABLE,
    "give the node /dev/kvm: enable (nested) virtualization and load the kernel module kvm",
)
_NO_VSOCK = _broken(
    Reason.VSOCK_UNAVAILABLE, "load the kernel module vhost_vsock on the node (modprobe)"
)
_NO_VHOST_NET = _broken(
    Reason.VMM_START_FAILED, "load the kernel module vhost_net on the node (modprobe)"
)
_CGROUP_DRIVER = _broken(
    Reason.CGROUP_DRIVER_MISMATCH,
    "set the kubelet, the container runtime and the handler to one cgroup driver",
)
_NO_SNAPSHOTTER = _broken(
    Reason.SNAPSHOTTER_MISSING,
    "set up the snapshotter that the handler names (kata-fc: devmapper) and restart containerd",
)
_SNAPSHOTTER_AWAY = _failing(
    Reason.SNAPSHOTTER_MISSING,
    "start the service of the snapshotter that the handler names on the node",
)
_VMM = _failing(
    Reason.VMM_START_FAILED,
    "read the VMM's own words in the container runtime's log on the node; /dev/kvm may be missing",
)
_VM_TIMEOUT = _failing(
    Reason.VM_START_TIMEOUT,
    "the VM or its agent did not answer: see that the node virtualizes at speed and has free "
    "memory, also in /dev/shm",
)
_VM_LOST = _failing(
    Reason.VM_LOST,
    "the VM died while it started: look for a killed VMM in the node's kernel log, and raise the "
    "pod's memory limit or the class's overhead",
)

# Said by the kubelet about its call to the runtime, and not deep inside an answer of the runtime.
_CALL = r"(?:^|Failed to create pod sandbox: )rpc error: code = "


def _row(name: str, text: str, cause: Cause) -> Pattern:
    return Pattern(name, re.compile(text), cause)


TABLE: tuple[Pattern, ...] = (
    # Not the runtime's.
    _row("network-containerd", r"failed to setup network for sandbox ", _NETWORK),
    _row(
        "network-crio",
        r"failed to (?:create pod network sandbox|get network status for pod sandbox) ",
        _NETWORK,
    ),
    _row("network-dockershim", r"[Nn]etworkPlugin cni failed to ", _NETWORK),
    _row("pause-image", r'failed to get sandbox image "', _PAUSE_IMAGE),
    _row("class-gone", r'runtimeclass\.node\.k8s\.io "[^"]{1,253}" not found', _CLASS_GONE),
    _row("handler-unknown-to-kubelet", r'the handler "[^"]{1,253}" is not known', _NO_HANDLER),
    _row(
        "user-namespaces",
        r"can't set `spec\.hostUsers: false`, .{1,300} does not support user namespaces",
        _NO_USER_NAMESPACES,
    ),
    _row(
        "runtime-away",
        _CALL + r"Unavailable desc = (?:connection error: |error reading from server: "
        r"|server is not initialized yet)",
        _RESTARTING,
    ),
    _row("name-reserved-containerd", r"failed to reserve sandbox name ", _NAME_RESERVED),
    _row("name-reserved-crio", r"error reserving pod name ", _NAME_RESERVED),
    # The runtime is not there, or not as it is configured.
    _row("handler-containerd", r'no runtime for "[^"]{1,253}" is configured', _NO_HANDLER),
    _row(
        "handler-crio", r"failed to find runtime handler \S{1,253} from runtime list ", _NO_HANDLER
    ),
    _row("handler-old", r'RuntimeHandler "[^"]{1,253}" not supported', _NO_HANDLER),
    _row("shim-not-in-path", r'binary not installed "[^"]{1,300}": file does not exist', _NO_SHIM),
    _row(
        "shim-not-at-path",
        r"invalid custom binary path: stat [^:]{1,300}: no such file or directory",
        _NO_SHIM,
    ),
    # It was there when containerd last looked for it.
    _row(
        "shim-vanished",
        r"failed to start shim: start failed: fork/exec \S{1,300}: no such file or directory",
        _NO_SHIM,
    ),
    _row(
        "oci-runc-shim",
        r"unable to retrieve OCI runtime error \(open [^()]{1,600}\): "
        r'(?:fork/exec \S{1,300}: no such file or directory|exec: "[^"]{1,300}": executable file '
        r"not found)",
        _NO_OCI_RUNTIME,
    ),
    _row(
        "oci-runsc-shim",
        r"fork/exec \S{1,300}: no such file or directory \(unable to retrieve OCI runtime error",
        _NO_OCI_RUNTIME,
    ),
    _row(
        "cgroup-slice-wanted",
        r'expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups',
        _CGROUP_DRIVER,
    ),
    _row("cgroup-runsc", r'invalid systemd path: "', _CGROUP_DRIVER),
    _row(
        "cgroup-crio",
        r"cri-o configured with \w{1,20} cgroup manager, but received ",
        _CGROUP_DRIVER,
    ),
    _row(
        "cgroup-runsc-current",
        r"(?:finding current cgroups|creating container): Rel: can't make \S{1,300} relative to /",
        replace(_CGROUP_DRIVER, proves_broken=False),
    ),
    _row("snapshotter-unpack", r"snapshotter must be provided to unpack", _NO_SNAPSHOTTER),
    _row("snapshotter-not-found", r"snapshotter \S{1,100} was not found", _NO_SNAPSHOTTER),
    _row("snapshotter-not-loaded", r"snapshotter not loaded: ", _NO_SNAPSHOTTER),
    _row(
        "snapshotter-away",
        r"failed to prepare extraction snapshot .{1,300}: connection error: ",
        _SNAPSHOTTER_AWAY,
    ),
    _row(
        "snapshotter-without-blocks",
        r"failed to mount \W{0,4}/run/kata-containers/shared/containers/\S{1,200} to "
        r"\S{1,200}, with error: (?:ENOENT: )?No such file or directory",
        replace(_NO_SNAPSHOTTER, proves_broken=False),
    ),
    # The VM.
    _row("kvm-runsc", r"error opening KVM device file \(", _NO_KVM),
    _row("kvm-qemu", r"Could not access KVM kernel module: No such file or directory", _NO_KVM),
    _row(
        "kvm-dragonball",
        r"run vmm server(?:\\n)? \d: No such file or directory \(os error 2\)",
        replace(_NO_KVM, proves_broken=False),
    ),
    _row("vsock-go", r"open /dev/vhost-vsock: no such device", _NO_VSOCK),
    _row("vsock-rs", r"failed to open /dev/vhost-vsock, try to run modprobe", _NO_VSOCK),
    _row("vhost-net", r"open /dev/vhost-net: no such file or directory", _NO_VHOST_NET),
    _row("vmm-qemu", r"failed to launch qemu: ", _VMM),
    _row("vmm-clh", r"failed to launch cloud-hypervisor: ", _VMM),
    _row("vmm-clh-boot", r"reason: ApiError\(VmBoot\(", _VMM),
    _row("vmm-clh-rs", r"API socket connect timed out after \d{1,6} seconds", _VMM),
    _row("vmm-fc", r"Failed to connect to firecrackerinstance \(timeout ", _VMM),
    _row("vm-lost-qmp", r"exitt?ing QMP loop, command cancelled", _VM_LOST),
    _row("vm-lost-connection", r"lost connection to VM\b", _VM_LOST),
    _row(
        "vm-lost-agent",
        r"Failed to [Cc]heck if grpc server is working: (?:ttrpc: closed|rpc error: code = "
        r"Unavailable)",
        _VM_LOST,
    ),
    _row("vm-silent-vsock", r"timed out connecting to (?:hybrid vsocket|vsock) ", _VM_TIMEOUT),
    _row(
        "vm-silent-agent",
        r"Failed to [Cc]heck if grpc server is working: (?:rpc error: code = DeadlineExceeded desc "
        r"= )?context deadline exceeded",
        _VM_TIMEOUT,
    ),
    _row("vm-silent-vsock-rs", r"failed to connect to Vsock \{", _VM_TIMEOUT),
    _row("vm-silent-container", r"CreateContainerRequest timed out", _VM_TIMEOUT),
    # Whoever it was, it took too long.
    _row("call-timed-out", _CALL + r"DeadlineExceeded desc = ", _START_TIMEOUT),
)
