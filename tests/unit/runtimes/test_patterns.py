"""The table of failure texts, held against the very texts that its rows were taken from.

Each sample says where it was seen: a run of the named versions by this project, an issue of the
named project, or the source file whose format string makes the text. Only directories and ids were
made neutral. A row without a sample does not pass.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from sandboxpool.api.reasons import Reason
from sandboxpool.runtimes.patterns import MAX_SEARCHED, TABLE, Cause, Pattern, match

ID = "0f8418bd23f2dcc140353eddfe891780c980a94ac42fbe044b4ea6dae4f0848a"
RPC = "rpc error: code = Unknown desc = "
TASK = f"{RPC}failed to create containerd task: "
SHIM_TASK = f"{TASK}failed to create shim task: "
# containerd 2.x, and 1.7 with ENABLE_CRI_SANDBOXES.
SANDBOX = f'{RPC}failed to start sandbox "{ID}": '
SANDBOX_SHIM_TASK = f"{SANDBOX}failed to create containerd task: failed to create shim task: "
LOG_JSON = f"/run/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/log.json"


@dataclass(frozen=True)
class Sample:
    where: str
    text: str


SAMPLES: dict[str, tuple[Sample, ...]] = {
    "network-containerd": (
        Sample(
            "run: containerd 2.4.2 without a network configuration",
            f'{RPC}failed to setup network for sandbox "{ID}": cni plugin not initialized',
        ),
        Sample(
            "run: containerd 1.6.20, 1.7.32 and 2.4.2 without the plugin's binary",
            f'{RPC}failed to setup network for sandbox "{ID}": plugin type="loopback" failed '
            '(add): failed to find plugin "loopback" in path [/opt/cni/bin]',
        ),
        Sample(
            "flannel-io/flannel#2253",
            f'{RPC}failed to setup network for sandbox "{ID}": plugin type="flannel" failed (add): '
            "loadFlannelSubnetEnv failed: open /run/flannel/subnet.env: no such file or directory",
        ),
    ),
    "network-crio": (
        Sample(
            "containerd/containerd#7689, which is about CRI-O",
            f"{RPC}failed to create pod network sandbox k8s_nginx_default_hdishd83djaidwnduwk28bcsb"
            f'_1({ID}): error adding pod default_nginx to CNI network "k8s-pod-network": pods '
            '"nginx" not found',
        ),
        Sample(
            "cri-o/cri-o#7008",
            f"{RPC}failed to get network status for pod sandbox k8s_argocd-server-67b55cf99f-pg4tn_"
            f"argo-cd_2b09c73b-ae84-4d96-8e9c-a49e64a83f0a_0({ID}): error checking pod "
            'argo-cd_argocd-server-67b55cf99f-pg4tn for CNI network "crio": Interface veth53193e1d '
            "Mac doesn't match: 7e:10:77:0b:8b:d5 not found",
        ),
    ),
    "network-dockershim": (
        Sample(
            "projectcalico/calico#6716",
            f'{RPC}failed to set up sandbox container "{ID}" network for pod "restic-2jsjf": '
            'networkPlugin cni failed to set up pod "restic-2jsjf_psc-velero" network: error '
            'getting ClusterInformation: Get "https://[10.43.0.1]:443/apis/crd.projectcalico.org/'
            'v1/clusterinformations/default": dial tcp 10.43.0.1:443: i/o timeout',
        ),
        Sample(
            "kubernetes/kubernetes#62451",
            f'{RPC}NetworkPlugin cni failed to set up pod "kube-dns-86f4d74b45-kgjbk_kube-system" '
            "network: stat /var/lib/calico/nodename: no such file or directory: check that the "
            "calico/node container is running and has mounted /var/lib/calico/",
        ),
    ),
    "pause-image": (
        Sample(
            "run: containerd 1.6.20, its sandbox image at a registry that is down",
            f'{RPC}failed to get sandbox image "localhost:1/nope:1": failed to pull image '
            '"localhost:1/nope:1": failed to pull and unpack image "localhost:1/nope:1": failed to '
            'resolve reference "localhost:1/nope:1": failed to do request: Head '
            '"http://localhost:1/v2/nope/manifests/1": dial tcp 127.0.0.1:1: connect: connection '
            "refused",
        ),
        Sample(
            "k3s-io/k3s#10926",
            "rpc error: code = DeadlineExceeded desc = failed to get sandbox image "
            '"rancher/mirrored-pause:3.6": failed to pull image "rancher/mirrored-pause:3.6": '
            'failed to pull and unpack image "docker.io/rancher/mirrored-pause:3.6": failed to '
            'resolve reference "docker.io/rancher/mirrored-pause:3.6": failed to do request: Head '
            '"https://registry-1.docker.io/v2/rancher/mirrored-pause/manifests/3.6": dial tcp '
            "116.89.243.8:443: i/o timeout",
        ),
    ),
    "class-gone": (
        Sample(
            "run: kubelet 1.36.2, the class deleted under a pod",
            'runtimeclass.node.k8s.io "tmpclass" not found',
        ),
    ),
    "handler-unknown-to-kubelet": (
        Sample(
            "kubernetes v1.36.3 pkg/kubelet/userns/userns_manager.go with kubelet_getters.go",
            'can\'t set `spec.hostUsers: false`, RuntimeClass handler "runsc" does not support '
            'user namespaces: the handler "runsc" is not known',
        ),
    ),
    "user-namespaces": (
        Sample(
            "kubernetes v1.36.3 pkg/kubelet/userns/userns_manager.go",
            'can\'t set `spec.hostUsers: false`, RuntimeClass handler "runsc" does not support '
            "user namespaces",
        ),
        Sample(
            "orbstack/orbstack#2312",
            "can't set `spec.hostUsers: false`, runtime does not support user namespaces",
        ),
    ),
    "runtime-away": (
        Sample(
            "run: containerd 2.1.9 restarting",
            'rpc error: code = Unavailable desc = connection error: desc = "transport: Error while '
            "dialing: dial unix /run/containerd/containerd.sock: connect: no such file or "
            'directory"',
        ),
        Sample(
            "run: containerd 2.4.2, killed",
            'rpc error: code = Unavailable desc = connection error: desc = "transport: Error while '
            'dialing: dial unix /run/containerd/containerd.sock: connect: connection refused"',
        ),
        Sample(
            "run: containerd 2.4.2, killed during RunPodSandbox",
            "rpc error: code = Unavailable desc = error reading from server: EOF",
        ),
        Sample(
            "run: containerd 2.4.2, starting",
            "rpc error: code = Unavailable desc = server is not initialized yet: unavailable",
        ),
    ),
    "name-reserved-containerd": (
        Sample(
            "run: containerd 2.4.2, after RunPodSandbox was given up",
            "rpc error: code = FailedPrecondition desc = failed to reserve sandbox name "
            f'"p91_default_u91_0": name "p91_default_u91_0" is reserved for "{ID}"',
        ),
        Sample(
            "microsoft/debug-gym#285",
            f'{RPC}failed to reserve sandbox name "dbg-gym.django--django-13821.f6085e6a_mtl-eval_'
            '95514fde-ef27-4ef3-a483-ff3e9b242363_0": name "dbg-gym.django--django-13821.f6085e6a_'
            f'mtl-eval_95514fde-ef27-4ef3-a483-ff3e9b242363_0" is reserved for "{ID}"',
        ),
    ),
    "name-reserved-crio": (
        Sample(
            "cri-o/cri-o#2984",
            f"{RPC}error reserving pod name k8s_authentication-operator-54f5d6c8c9-qpmd5_openshift-"
            f"authentication-operator_45d93718-e90f-4888-bad6-660cf9c37a87_0 for id {ID}",
        ),
    ),
    "handler-containerd": (
        Sample(
            "run: containerd 1.6.20 and 1.7.32",
            f'{RPC}failed to get sandbox runtime: no runtime for "not-configured" is configured',
        ),
        Sample(
            "run: containerd 2.1.9 and 2.4.2, and 1.7.32 with ENABLE_CRI_SANDBOXES",
            f'{RPC}unable to get OCI runtime for sandbox "{ID}": no runtime for "not-configured" '
            "is configured",
        ),
    ),
    "handler-crio": (
        Sample(
            "cri-o internal/oci/oci.go, and a public report on CRI-O 1.35.4",
            f"{RPC}failed to find runtime handler runsc from runtime list map[crun:0xc000518c60 "
            "runc:0xc000518d80]",
        ),
    ),
    "handler-old": (
        Sample("gvisor g3doc/user_guide/FAQ.md", f'{RPC}RuntimeHandler "runsc" not supported'),
    ),
    "shim-not-in-path": (
        Sample(
            "run: containerd 1.6.20 and 1.7.32",
            f'{TASK}failed to start shim: failed to resolve runtime path: runtime "io.containerd.'
            'runsc.v1" binary not installed "containerd-shim-runsc-v1": file does not exist: '
            "unknown",
        ),
        Sample(
            "run: containerd 2.1.9 and 2.4.2",
            f"{SANDBOX}failed to create containerd task: failed to start shim: failed to resolve "
            'runtime path: runtime "io.containerd.runsc.v1" binary not installed "containerd-shim-'
            'runsc-v1": file does not exist',
        ),
    ),
    "shim-not-at-path": (
        Sample(
            "run: containerd 1.7.32",
            f"{TASK}failed to start shim: failed to resolve runtime path: invalid custom binary "
            "path: stat /opt/kata/bin/containerd-shim-kata-v2: no such file or directory: unknown",
        ),
        Sample(
            "run: containerd 2.1.9 and 2.4.2",
            f"{SANDBOX}failed to create containerd task: failed to start shim: failed to resolve "
            "runtime path: invalid custom binary path: stat /opt/kata/bin/containerd-shim-kata-v2: "
            "no such file or directory",
        ),
    ),
    "shim-vanished": (
        Sample(
            "run: containerd 2.4.2, the shim removed after it had been used",
            f"{SANDBOX}failed to create containerd task: failed to start shim: start failed: "
            "fork/exec /usr/local/bin/containerd-shim-runsc-v1: no such file or directory",
        ),
    ),
    "oci-runc-shim": (
        Sample(
            "run: containerd 1.6.20 and 1.7.32, BinaryName a path",
            f"{SHIM_TASK}OCI runtime create failed: unable to retrieve OCI runtime error (open "
            f"{LOG_JSON}: no such file or directory): fork/exec /nonexistent/runsc: no such file "
            "or directory: unknown",
        ),
        Sample(
            "run: containerd 2.4.2, BinaryName a name",
            f"{SANDBOX_SHIM_TASK}OCI runtime create failed: unable to retrieve OCI runtime error "
            f'(open {LOG_JSON}: no such file or directory): exec: "not-in-path-runsc": executable '
            "file not found in $PATH",
        ),
    ),
    "oci-runsc-shim": (
        Sample(
            "run: containerd 2.4.2 with gVisor's shim of 2026-05, binary_name a path",
            f"{SANDBOX_SHIM_TASK}OCI runtime create failed: fork/exec /nonexistent/runsc: no such "
            f"file or directory (unable to retrieve OCI runtime error: open {LOG_JSON}: no such "
            "file or directory)",
        ),
    ),
    "cgroup-slice-wanted": (
        Sample(
            "run: containerd 1.6.20 with runc 1.1.5, SystemdCgroup where the kubelet has cgroupfs",
            f"{SHIM_TASK}OCI runtime create failed: runc create failed: expected cgroupsPath to be "
            'of format "slice:prefix:name" for systemd cgroups, got "/kubepods/besteffort/podx/'
            f'{ID}" instead: unknown',
        ),
        Sample(
            "google/gvisor#7671",
            f"{SHIM_TASK}OCI runtime create failed: creating container: cannot set up cgroup for "
            'root: expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, '
            'got "/kubepods/besteffort/pod152d5fd3-cb35-458c-88aa-de207aa5386f" instead: unknown',
        ),
    ),
    "cgroup-runsc": (
        Sample(
            "run: containerd 2.4.2 with runsc of 2026-05, systemd-cgroup, kubelet with cgroupfs",
            f"{SANDBOX_SHIM_TASK}OCI runtime create failed: creating container: cannot set up "
            'cgroup for root: invalid systemd path: "/kubepods/besteffort/podx"',
        ),
    ),
    "cgroup-crio": (
        Sample(
            "google/gvisor#193",
            f"{RPC}cri-o configured with cgroupfs cgroup manager, but received systemd slice as "
            "parent: /kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pode9fd6274_"
            "59d1_11e9_af90_9e3c8464d679.slice",
        ),
    ),
    "cgroup-runsc-current": (
        Sample(
            "google/gvisor#7334",
            f"{TASK}OCI runtime create failed: creating container: finding current cgroups: Rel: "
            "can't make . relative to /: unknown",
        ),
        Sample(
            "run: kind with containerd 2.4.2, runsc of 2026-05, the kubelet with systemd's driver",
            "finding current cgroups: Rel: can't make ../system.slice/containerd.service relative "
            "to /kubelet.slice",
        ),
        Sample(
            "run: kind with containerd 2.4.2, runsc of 2026-05 without ignore-cgroups on cgroup v1",
            f"{SANDBOX_SHIM_TASK}OCI runtime create failed: creating container: Rel: can't make "
            "../system.slice/containerd.service relative to /kubelet.slice",
        ),
    ),
    "snapshotter-unpack": (
        Sample(
            "run: containerd 2.4.2; zero-day-ai/setec#335",
            f"{SANDBOX}failed to create containerd container: error unpacking image: unable to "
            "initialize unpacker: snapshotter must be provided to unpack",
        ),
    ),
    "snapshotter-not-found": (
        Sample(
            "run: containerd 1.7.32",
            "rpc error: code = NotFound desc = failed to create containerd container: error "
            "unpacking image: snapshotter devmapper was not found: not found",
        ),
    ),
    "snapshotter-not-loaded": (
        Sample(
            "a public report on Kata 3.0.0 with kata-fc; containerd services/snapshots/service.go",
            "error unpacking image: failed to stat snapshot sha256:bce45ce613d34bff6a3404a4c2d56a5f"
            "72640f804c3d0bd67e2cf0bf97cb950c: snapshotter not loaded: devmapper: invalid argument",
        ),
    ),
    "snapshotter-away": (
        Sample(
            "run: containerd 2.4.2, a proxy snapshotter that does not run",
            f'rpc error: code = Unavailable desc = failed to start sandbox "{ID}": failed to '
            "create containerd container: error unpacking image: failed to prepare extraction "
            "snapshot "
            '"extract-803375006-Rufq sha256:7939de3e54256ad98c0f655148ae5a89eb9e88e8d74147afe92a5f6'
            'e0b030af3": connection error: desc = "transport: Error while dialing: dial '
            'unix:///run/containerd-stargz-grpc/containerd-stargz-grpc.sock: timeout"',
        ),
    ),
    "snapshotter-without-blocks": (
        Sample(
            "kata-containers/kata-containers#8764",
            f"{SHIM_TASK}failed to mount /run/kata-containers/shared/containers/{ID}/rootfs to "
            f"/run/kata-containers/{ID}/rootfs, with error: ENOENT: No such file or "
            "directory\n\nStack backtrace:\n   0: <unknown>\n   1: <unknown>: unknown",
        ),
        Sample(
            "kata-containers/kata-containers#1679",
            f'rpc error: code = Internal desc = failed to mount "/run/kata-containers/shared/'
            f'containers/{ID}/rootfs" to "/run/kata-containers/{ID}/rootfs", with error: No such '
            "file or directory (os error 2)",
        ),
    ),
    "kvm-runsc": (
        Sample(
            "run: containerd 2.4.2 with runsc of 2026-05, platform kvm, without /dev/kvm",
            f"{SANDBOX_SHIM_TASK}OCI runtime create failed: creating container: cannot create "
            "sandbox: cannot create sandbox process: opening device file for platform "
            '"kvm": error opening KVM device file (/dev/kvm): no such file or directory',
        ),
    ),
    "kvm-qemu": (
        Sample(
            "a public report on Kata 1.x; kata-containers/runtime#1079 has it in its log",
            "OCI runtime create failed: failed to launch qemu: exit status 1, error messages from "
            "qemu log: Could not access KVM kernel module: No such file or directory\n"
            "qemu-vanilla-system-x86_64: failed to initialize kvm: No such file or directory: "
            "unknown.",
        ),
    ),
    "kvm-dragonball": (
        Sample(
            "kata-containers/kata-containers#6752",
            'failed to create shim task: Others("failed to handler message try init runtime '
            r"instance\n\nCaused by:\n    0: init runtime handler\n    1: start sandbox\n    2: "
            r"start vm\n    3: start vmm server\n    4: run vmm server\n    5: No such file or "
            'directory (os error 2)"): unknown',
        ),
        Sample(
            "a public report on Kata 3.29.0 without /dev/kvm",
            'failed to create shim task: Others("failed to handle message start sandbox in task '
            r"handler\n\nCaused by:\n    0: start vm\n    1: start vmm server\n    2: run vmm "
            r"server\n    3: No such file or directory (os error 2)\n\nStack backtrace:\n   0: "
            "anyhow::error",
        ),
    ),
    "vsock-go": (
        Sample(
            "kata-containers/kata-containers#3459",
            f"{TASK}failed to create shim: open /dev/vhost-vsock: no such device: unknown",
        ),
    ),
    "vsock-rs": (
        Sample(
            "kata-containers src/runtime-rs/crates/hypervisor/src/device/driver/virtio_vsock.rs",
            "failed to open /dev/vhost-vsock, try to run modprobe vhost_vsock.",
        ),
    ),
    "vhost-net": (
        Sample(
            "kata-containers/kata-containers#6451, with CRI-O",
            f"{RPC}CreateContainer failed: Could not setup vhost fds eth0 : open /dev/vhost-net: "
            "no such file or directory: unknown",
        ),
    ),
    "vmm-qemu": (
        Sample(
            "kata-containers/tests#2699",
            "failed to create containerd task: failed to launch qemu: exit status 1, error "
            "messages from qemu log: qemu-system-x86_64: error: failed to set MSR 0x48b to "
            "0x1582e00000000\nqemu-system-x86_64: /root/qemu/target/i386/kvm.c:2695: "
            "kvm_buf_set_msrs: Assertion `ret == cpu->kvm_msr_buf->nmsrs' failed.\n: unknown",
        ),
    ),
    "vmm-clh": (
        Sample(
            "siderolabs/extensions#368",
            'failed to create shim task: failed to launch cloud-hypervisor: "Failed to connect to '
            r"API (timeout 10s): error: Get \"http://localhost/api/v1/vmm.ping\": dial unix "
            rf"/run/vc/vm/{ID}/clh-api.sock: connect: no such file or directory reason: "
            '": unknown',
        ),
    ),
    "vmm-clh-boot": (
        Sample(
            "siderolabs/extensions#404",
            f"{SHIM_TASK}error: 500  reason: ApiError(VmBoot(DeviceManager(CreateInterrupt"
            "Controller(CreateGic(CreateVgic(Vgic error CreateGic(CreateDevice(No such device (os "
            "error 19))))))))): unknown",
        ),
    ),
    "vmm-clh-rs": (
        Sample(
            "kata-containers src/runtime-rs/crates/hypervisor/src/ch/inner_hypervisor.rs",
            "API socket connect timed out after 10 seconds",
        ),
    ),
    "vmm-fc": (
        Sample(
            "kata-containers/kata-containers#1499",
            f"{TASK}Failed to connect to firecrackerinstance (timeout 10s): unknown",
        ),
    ),
    "vm-lost-qmp": (
        Sample(
            "kata-containers/kata-containers#6421",
            "failed to create shim task: exitting QMP loop, command cancelled: unknown",
        ),
        Sample(
            "kata-containers/kata-containers#12533",
            "exiting QMP loop, command cancelled",
        ),
    ),
    "vm-lost-connection": (
        Sample(
            "kata-containers/kata-containers#7470, the VMM killed for want of memory; govmm's "
            "qemu/qmp.go",
            "lost connection to VM",
        ),
    ),
    "vm-lost-agent": (
        Sample(
            "kata-containers/kata-containers#5753",
            f"{SHIM_TASK}Failed to Check if grpc server is working: ttrpc: closed: unknown",
        ),
        Sample(
            "kata-containers/runtime#2340",
            f"{TASK}Failed to check if grpc server is working: rpc error: code = Unavailable desc "
            "= transport is closing: unknown",
        ),
    ),
    "vm-silent-vsock": (
        Sample(
            "kata-containers/kata-containers#11861",
            f"{SHIM_TASK}Failed to Check if grpc server is working: rpc error: code = "
            "DeadlineExceeded desc = timed out connecting to vsock 2968858607:1024: unknown",
        ),
        Sample(
            "kata-containers/kata-containers#2499, with CRI-O",
            f"{RPC}CreateContainer failed: Failed to check if grpc server is working: rpc error: "
            "code = DeadlineExceeded desc = timed out connecting to vsock 1217660058:1024: unknown",
        ),
        Sample(
            "kata-containers/kata-containers#3270, with Cloud Hypervisor",
            "failed to create shim: Failed to Check if grpc server is working: rpc error: code = "
            "DeadlineExceeded desc = timed out connecting to hybrid vsocket "
            "hvsock:/run/vc/vm/hello1/clh.sock: unknown",
        ),
    ),
    "vm-silent-agent": (
        Sample(
            "kata-containers/kata-containers#28",
            "Failed to check if grpc server is working: rpc error: code = DeadlineExceeded desc = "
            "context deadline exceeded",
        ),
        Sample(
            "Metarget/cloud-native-security-book#4",
            "OCI runtime create failed: Failed to check if grpc server is working: context "
            "deadline exceeded: unknown.",
        ),
    ),
    "vm-silent-vsock-rs": (
        Sample(
            "kata-containers/kata-containers#11709",
            f'{SHIM_TASK}Others("failed to handle message start sandbox in task handler'
            r"\n\nCaused by:\n    0: connect to address \"vsock://3746705066\"\n    1: connect "
            r"agent server\n    2: connect\n    3: vsock: failed to connect to Vsock { vsock_cid: "
            "3746705066, port: 1024 }, err failed to connect to cid: 3746705066 port: 1024",
        ),
    ),
    "vm-silent-container": (
        Sample(
            "kata-containers/kata-containers#10628, with CRI-O",
            f"{RPC}CreateContainer failed: CreateContainerRequest timed out: unknown",
        ),
    ),
    "call-timed-out": (
        Sample(
            "kata-containers/kata-containers#9540",
            "rpc error: code = DeadlineExceeded desc = context deadline exceeded",
        ),
        Sample(
            "kata-containers/kata-containers#3621",
            "rpc error: code = DeadlineExceeded desc = failed to create containerd task: context "
            "deadline exceeded",
        ),
        Sample(
            "run: containerd 2.4.2; k3s-io/k3s#14078",
            "rpc error: code = DeadlineExceeded desc = stream terminated by RST_STREAM with error "
            "code: CANCEL",
        ),
    ),
}

# Known messages that have no row on purpose: heuristics interprets them, see test_heuristics.
UNKNOWN = (
    Sample(
        "run: containerd 2.4.2, the shim's file not a program",
        f"{SANDBOX}failed to create containerd task: failed to start shim: start failed: "
        "fork/exec /opt/kata/bin/containerd-shim-kata-v2: exec format error",
    ),
    Sample(
        "run: containerd 1.6.20 with a shim of 2026-05, which it does not understand",
        f"{TASK}failed to start shim: start failed: dial unix \0"
        '{"version":2,"address":"unix:///run/containerd/s/baf511e4","protocol":"ttrpc"}: connect: '
        "invalid argument: unknown",
    ),
    Sample(
        "google/gvisor#8269",
        f"{SHIM_TASK}OCI runtime create failed: creating container: write /sys/fs/cgroup/kubepods/"
        "besteffort/pod88bcf96e-7b92-4ce5-a3c0-2a6d098a1c33/cgroup.procs: device or resource busy: "
        "unknown",
    ),
    Sample(
        "siderolabs/talos#8554",
        f'{RPC}failed to create network namespace for sandbox "{ID}": failed to start noop process '
        "for unshare: fork/exec /proc/self/exe: no space left on device",
    ),
    Sample(
        "kata-containers/kata-containers#3456",
        "rpc error: code = NotFound desc = failed to create containerd task: failed to create "
        "shim: not found",
    ),
    Sample(
        "google/gvisor#5865, the binary there but failing",
        "OCI runtime create failed: unable to retrieve OCI runtime error (open "
        f"{LOG_JSON}: no such file or directory): /usr/local/bin/runsc did not terminate "
        "successfully: unknown.",
    ),
)


def every_sample() -> Iterator[tuple[str, Sample]]:
    for name, samples in SAMPLES.items():
        for sample in samples:
            yield name, sample


EACH_SAMPLE = pytest.mark.parametrize(
    ("name", "sample"), [pytest.param(n, s, id=f"{n}-{s.where}") for n, s in every_sample()]
)


def row_of(text: str) -> str | None:
    row = match(text)
    return row.name if row else None


def test_every_row_has_a_sample_and_every_sample_a_row() -> None:
    names = [row.name for row in TABLE]
    assert len(set(names)) == len(names)
    assert set(names) == set(SAMPLES)
    assert all(SAMPLES.values())


@EACH_SAMPLE
def test_a_sample_belongs_to_its_row_also_in_an_event_and_in_a_folded_one(
    name: str, sample: Sample
) -> None:
    event = f"Failed to create pod sandbox: {sample.text}"
    for text in (sample.text, event, f"(combined from similar events): {event}"):
        assert row_of(text) == name


@pytest.mark.parametrize("name", ["runtime-away", "call-timed-out"])
def test_what_a_runtime_passes_on_is_not_about_the_call_to_it(name: str) -> None:
    for sample in SAMPLES[name]:
        assert row_of(SHIM_TASK + sample.text) is None


@pytest.mark.parametrize("name", ["kvm-dragonball", "vm-silent-vsock-rs"])
def test_lines_of_a_rust_error_may_be_real_lines(name: str) -> None:
    """Some runtimes pass an error on with its line ends escaped, others do not."""
    text = SAMPLES[name][0].text
    assert r"\n" in text
    assert row_of(text.replace(r"\n", "\n")) == name


@pytest.mark.parametrize("outside", ["network-containerd", "network-crio", "pause-image"])
def test_a_text_of_a_plugin_or_a_registry_never_blames_the_runtime(outside: str) -> None:
    said = SAMPLES[outside][0].text.partition(": ")[2]
    for _, sample in every_sample():
        found = match(f"{RPC}{said}: {sample.text}")
        assert found is not None
        assert not found.cause.blames_runtime


@pytest.mark.parametrize("sample", UNKNOWN, ids=lambda sample: sample.where)
def test_what_no_row_knows_stays_unknown(sample: Sample) -> None:
    assert row_of(sample.text) is None


BROKEN = Cause(Reason.OK, "", blames_runtime=True, proves_broken=True)
FAILING = Cause(Reason.OK, "", blames_runtime=True)
SELF_HEALING = Cause(Reason.OK, "", self_healing=True)
ELSEWHERE = Cause(Reason.OK, "")

# What each row says of the node.
MEANT: dict[str, tuple[Reason, Cause]] = {
    "network-containerd": (Reason.POD_NETWORK_FAILED, ELSEWHERE),
    "network-crio": (Reason.POD_NETWORK_FAILED, ELSEWHERE),
    "network-dockershim": (Reason.POD_NETWORK_FAILED, ELSEWHERE),
    "pause-image": (Reason.IMAGE_PULL_FAILED, SELF_HEALING),
    "class-gone": (Reason.RUNTIME_CLASS_NOT_FOUND, SELF_HEALING),
    "handler-unknown-to-kubelet": (Reason.HANDLER_NOT_CONFIGURED, BROKEN),
    "user-namespaces": (Reason.USER_NAMESPACES_UNSUPPORTED, ELSEWHERE),
    "runtime-away": (Reason.RUNTIME_RESTARTING, SELF_HEALING),
    "name-reserved-containerd": (Reason.SANDBOX_START_TIMEOUT, ELSEWHERE),
    "name-reserved-crio": (Reason.SANDBOX_START_TIMEOUT, ELSEWHERE),
    "handler-containerd": (Reason.HANDLER_NOT_CONFIGURED, BROKEN),
    "handler-crio": (Reason.HANDLER_NOT_CONFIGURED, BROKEN),
    "handler-old": (Reason.HANDLER_NOT_CONFIGURED, BROKEN),
    "shim-not-in-path": (Reason.SHIM_MISSING, BROKEN),
    "shim-not-at-path": (Reason.SHIM_MISSING, BROKEN),
    "shim-vanished": (Reason.SHIM_MISSING, BROKEN),
    "oci-runc-shim": (Reason.OCI_RUNTIME_MISSING, BROKEN),
    "oci-runsc-shim": (Reason.OCI_RUNTIME_MISSING, BROKEN),
    "cgroup-slice-wanted": (Reason.CGROUP_DRIVER_MISMATCH, BROKEN),
    "cgroup-runsc": (Reason.CGROUP_DRIVER_MISMATCH, BROKEN),
    "cgroup-crio": (Reason.CGROUP_DRIVER_MISMATCH, BROKEN),
    "cgroup-runsc-current": (Reason.CGROUP_DRIVER_MISMATCH, FAILING),
    "snapshotter-unpack": (Reason.SNAPSHOTTER_MISSING, BROKEN),
    "snapshotter-not-found": (Reason.SNAPSHOTTER_MISSING, BROKEN),
    "snapshotter-not-loaded": (Reason.SNAPSHOTTER_MISSING, BROKEN),
    "snapshotter-away": (Reason.SNAPSHOTTER_MISSING, FAILING),
    "snapshotter-without-blocks": (Reason.SNAPSHOTTER_MISSING, FAILING),
    "kvm-runsc": (Reason.KVM_UNAVAILABLE, BROKEN),
    "kvm-qemu": (Reason.KVM_UNAVAILABLE, BROKEN),
    "kvm-dragonball": (Reason.KVM_UNAVAILABLE, FAILING),
    "vsock-go": (Reason.VSOCK_UNAVAILABLE, BROKEN),
    "vsock-rs": (Reason.VSOCK_UNAVAILABLE, BROKEN),
    "vhost-net": (Reason.VMM_START_FAILED, BROKEN),
    "vmm-qemu": (Reason.VMM_START_FAILED, FAILING),
    "vmm-clh": (Reason.VMM_START_FAILED, FAILING),
    "vmm-clh-boot": (Reason.VMM_START_FAILED, FAILING),
    "vmm-clh-rs": (Reason.VMM_START_FAILED, FAILING),
    "vmm-fc": (Reason.VMM_START_FAILED, FAILING),
    "vm-lost-qmp": (Reason.VM_LOST, FAILING),
    "vm-lost-connection": (Reason.VM_LOST, FAILING),
    "vm-lost-agent": (Reason.VM_LOST, FAILING),
    "vm-silent-vsock": (Reason.VM_START_TIMEOUT, FAILING),
    "vm-silent-agent": (Reason.VM_START_TIMEOUT, FAILING),
    "vm-silent-vsock-rs": (Reason.VM_START_TIMEOUT, FAILING),
    "vm-silent-container": (Reason.VM_START_TIMEOUT, FAILING),
    "call-timed-out": (Reason.SANDBOX_START_TIMEOUT, FAILING),
}


def flags(cause: Cause) -> tuple[bool, bool, bool]:
    return cause.blames_runtime, cause.proves_broken, cause.self_healing


def test_each_row_means_what_it_should() -> None:
    found = {row.name: (row.cause.reason, flags(row.cause)) for row in TABLE}
    assert found == {name: (reason, flags(meant)) for name, (reason, meant) in MEANT.items()}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_cure_is_one_short_line(row: Pattern) -> None:
    assert 20 < len(row.cause.cure) <= 150
    assert "\n" not in row.cause.cure
    assert not row.cause.cure.endswith(".")


def test_no_pattern_can_run_away() -> None:
    """Without unbounded quantifiers the time is linear in the text, which others can influence."""
    for row in TABLE:
        assert not re.search(r"(?<!\\)[*+]|\{\d*,\}", row.text.pattern), row.name


def test_only_the_beginning_of_a_text_is_searched() -> None:
    text = SAMPLES["vmm-fc"][0].text
    room = MAX_SEARCHED - len(text)
    assert row_of("x" * room + text) == "vmm-fc"
    assert row_of("x" * (room + len(text)) + text) is None
