"""The image of kind's nodes, made here: Debian, kind's own files, our binaries, the images.

What kind's Dockerfile for its base image does is done to a debootstrap root instead, and the
images that kubeadm wants are put into the root's containerd before the engine imports it all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from localcluster import archive, builds, cache, host, process, progress, rootfs
from localcluster.engine import Engine

REPOSITORY = "localhost/sandboxpool-node"
SAMPLE_IMAGE = "localhost/sandboxpool-sample:demo"
COMMAND_SECONDS = 300
IMPORT_SECONDS = 900

PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "conntrack", "iptables", "nftables", "iproute2"),
    *("ethtool", "util-linux", "mount", "kmod", "libseccomp2", "pigz", "e2fsprogs", "bash"),
    *("ca-certificates", "curl", "jq", "procps", "runc", "busybox-static"),
)
PLACES = {
    **{name: f"usr/bin/{name}" for name in ("kubelet", "kubeadm", "kubectl")},
    **{
        name: f"usr/local/bin/{name}"
        for name in (
            *("containerd", "ctr", "containerd-shim-runc-v2", "crictl"),
            *("runsc", "containerd-shim-runsc-v1"),
        )
    },
    **{name: f"opt/cni/bin/{name}" for name in ("bridge", "loopback", "host-local", "portmap")},
}
CONTROL_PLANE = (
    *("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"),
    *("etcd", "pause"),
)
# Programs that kube-proxy calls.
PACKET_FILTER = ("xtables-nft-multi", "xtables-legacy-multi", "nft", "conntrack")
MULTI_CALL = ("iptables", "ip6tables")

STORAGE_CLASS = """\
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: standard
  annotations:
    storageclass.kubernetes.io/is-default-class: "true"
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
"""

# What kind's Dockerfile takes away: units that are pointless or harmful in a container.
UNWANTED_UNITS = (
    "lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service",
    "lib/systemd/system/multi-user.target.wants/*",
    "etc/systemd/system/*.wants/*",
    "lib/systemd/system/local-fs.target.wants/*",
    "lib/systemd/system/sockets.target.wants/*udev*",
    "lib/systemd/system/sockets.target.wants/*initctl*",
    "lib/systemd/system/basic.target.wants/*",
)
UNITS = ("kubelet", "containerd", "undo-mount-hacks")


def ensure(engine: Engine) -> str:
    """Return the tag of the node image, building and importing it if the engine lacks it."""
    binaries = builds.ensure([*PLACES, *CONTROL_PLANE])
    base = _kind_base()
    key = cache.digest(
        *(str(path.parent.name) for path in binaries.values()),
        *(Path(__file__).with_name(f"{n}.py").read_bytes() for n in ("nodeimage", "archive")),
        builds.module_version("kind", "sigs.k8s.io/kind"),
        rootfs.SUITE,
        *PACKAGES,
        str(host.has_sys_resource()),
    )
    tag = f"{REPOSITORY}:{key}"
    if engine.has_image(tag):
        return tag
    tar = rootfs.archive("node", PACKAGES)
    with (
        progress.step("build the node image") as step,
        tempfile.TemporaryDirectory(prefix=".node-", dir=tar.parent) as scratch,
    ):
        root = Path(scratch) / "root"
        rootfs.extract(tar, root, step)
        _install(root, base, binaries)
        _import_images(step, root, binaries, Path(scratch))
        _import_root(step, engine, root, tag)
    return tag


def _kind_base() -> Path:
    base = builds.module_dir("kind", "sigs.k8s.io/kind") / "images/base/files"
    if not (base / "usr/local/bin/entrypoint").exists():
        raise OSError(f"kind's module has no base image files in {base}")
    return base


def _install(root: Path, base: Path, binaries: dict[str, Path]) -> None:
    for source in sorted(base.rglob("*")):
        if source.is_dir() or "LICENSES" in source.parts:
            continue
        name = source.relative_to(base)
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o755 if "bin" in name.parts else 0o644)
    for binary, place in PLACES.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(binaries[binary], root / place)
    for pattern in UNWANTED_UNITS:
        for unit in root.glob(pattern):
            unit.unlink()
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    for service in UNITS:
        (wants / f"{service}.service").symlink_to(f"/etc/systemd/system/{service}.service")
    # This unit would register interpreters in the kernel that all containers share.
    (root / "etc/systemd/system/systemd-binfmt.service").symlink_to("/dev/null")
    with (root / "etc/systemd/journald.conf").open("a") as stream:
        stream.write("ReadKMsg=no\n")
    for directory in ("etc/kubernetes/manifests", "kind/manifests", "var/log/journal"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    (root / "kind/version").write_text(builds.kubernetes_version())
    (root / "kind/manifests/default-storage.yaml").write_text(STORAGE_CLASS)
    (root / "etc/machine-id").write_text("")
    (root / "etc/hostname").unlink(missing_ok=True)
    _configure_containerd(root, binaries)


def _configure_containerd(root: Path, binaries: dict[str, Path]) -> None:
    spec = json.loads(process.run([str(binaries["ctr"]), "oci", "spec"], timeout=COMMAND_SECONDS))
    spec["process"].pop("rlimits", None)
    hooks = spec.setdefault("hooks", {}).setdefault("createContainer", [])
    hooks.append({"path": "/kind/bin/mount-product-files.sh"})
    (root / "etc/containerd/cri-base.json").write_text(json.dumps(spec))
    config = root / "etc/containerd/config.toml"
    text = re.sub(
        r'sandbox_image = ".*"', f'sandbox_image = "{_tags(binaries)["pause"]}"', config.read_text()
    )
    if not host.has_sys_resource():
        text = text.replace("restrict_oom_score_adj = false", "restrict_oom_score_adj = true")
    config.write_text(text)


def _tags(binaries: dict[str, Path]) -> dict[str, str]:
    """Return the image names that kubeadm expects, by the name of the program inside."""
    kubeadm = [str(binaries["kubeadm"]), "config", "images", "list"]
    listed = process.run(
        [*kubeadm, "--kubernetes-version", builds.kubernetes_version()], timeout=COMMAND_SECONDS
    )
    tags = {line.rpartition("/")[2].partition(":")[0]: line for line in listed.split()}
    return {name: tags[name] for name in CONTROL_PLANE}


def _images(root: Path, binaries: dict[str, Path]) -> Iterator[archive.Image]:
    for name, tag in _tags(binaries).items():
        place = "pause" if name == "pause" else f"usr/local/bin/{name}"
        files = {place: binaries[name]}
        links: dict[str, str] = {}
        if name == "kube-proxy":
            more, links = _packet_filter(root)
            files.update(more)
        yield archive.Image(tag, files, links, command=[f"/{place}"])
    busybox = root / "bin/busybox"
    listed = process.run([str(busybox), "--list"], timeout=COMMAND_SECONDS).split()
    yield archive.Image(
        SAMPLE_IMAGE,
        {"bin/busybox": busybox},
        {f"bin/{applet}": "busybox" for applet in listed if applet != "busybox"},
        command=["/bin/sleep", "infinity"],
        directories=("tmp", "root", "etc", "var/www"),
    )


def _packet_filter(root: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Return what kube-proxy needs beside itself: the programs and all their libraries."""
    programs = [f"usr/sbin/{name}" for name in PACKET_FILTER]
    extensions = [
        str(path.relative_to(root))
        for path in sorted((root / "usr/lib/x86_64-linux-gnu/xtables").glob("*.so"))
    ]
    names: set[str] = set(programs) | set(extensions)
    listed = process.run(
        ["chroot", str(root), "ldd", *(f"/{n}" for n in [*programs, *extensions])],
        timeout=COMMAND_SECONDS,
    )
    libraries = {line.strip() for line in re.findall(r"(/\S+\.so\S*) \(0x", listed)}
    files = {name: root / name for name in names}
    # Where the loader looks for them, whatever links lie between; real files in the image.
    files |= {name.lstrip("/"): (root / name.lstrip("/")).resolve() for name in libraries}
    links = {
        f"usr/sbin/{name}{suffix}": "xtables-nft-multi"
        for name in MULTI_CALL
        for suffix in ("", "-save", "-restore")
    }
    return files, links


def _import_images(
    step: progress.Step, root: Path, binaries: dict[str, Path], scratch: Path
) -> None:
    with _containerd(step, root, binaries, scratch) as address:
        for number, image in enumerate(_images(root, binaries)):
            tar = scratch / f"{number}.tar"
            archive.write(image, tar)
            step.run(
                [
                    *(str(binaries["ctr"]), "--address", address, "-n", "k8s.io"),
                    *("images", "import", "--local", "--no-unpack", str(tar)),
                ],
                timeout=COMMAND_SECONDS,
            )
            tar.unlink()


@contextmanager
def _containerd(
    step: progress.Step, root: Path, binaries: dict[str, Path], scratch: Path
) -> Iterator[str]:
    """Run a containerd whose content is the root's until the block ends."""
    state = Path(tempfile.mkdtemp(prefix="lc-"))
    address = str(state / "containerd.sock")
    config = scratch / "containerd.toml"
    config.write_text(
        "version = 3\n"
        f"root = {json.dumps(str(root / 'var/lib/containerd'))}\n"
        f"state = {json.dumps(str(state / 'state'))}\n"
        'disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",'
        ' "io.containerd.grpc.v1.cri", "io.containerd.nri.v1.nri"]\n'
        f"[grpc]\naddress = {json.dumps(address)}\n"
        f"[ttrpc]\naddress = {json.dumps(address + '.ttrpc')}\n"
    )
    child = process.spawn([str(binaries["containerd"]), "-c", str(config)], log=step.log)
    try:
        _await(child, binaries["ctr"], address)
        yield address
    finally:
        process.terminate(child, grace=10)
        shutil.rmtree(state, ignore_errors=True)


def _await(child: subprocess.Popen[bytes], ctr: Path, address: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and child.poll() is None:
        try:
            process.run([str(ctr), "--address", address, "version"], timeout=10)
        except process.CommandError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError("containerd, run to import the images, does not answer")


def _import_root(step: progress.Step, engine: Engine, root: Path, tag: str) -> None:
    # Through a pipe, so that a gigabyte is not written once more.
    pack = ["tar", "--numeric-owner", "-C", str(root), "-cf", "-", "."]
    load = ["docker", "import", "--change", "ENV container=docker"]
    load += ["--change", 'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]', "-", tag]
    environment = {**os.environ, **engine.env}
    with step.log.open("ab") as log:
        packer = subprocess.Popen(pack, stdout=subprocess.PIPE, stderr=log, start_new_session=True)
        loader = subprocess.Popen(
            load,
            stdin=packer.stdout,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
        try:
            if packer.stdout is not None:
                packer.stdout.close()
            status = loader.wait(timeout=IMPORT_SECONDS) or packer.wait(timeout=COMMAND_SECONDS)
        finally:
            for child in (packer, loader):
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait(timeout=10)
    if status != 0:
        raise OSError(f"docker import ended with status {status}")


def base_image(engine: Engine) -> str:
    """Return the tag of a Debian with Python, the base of the operator's image here."""
    packages = ("python3", "python3-venv", "ca-certificates")
    tar = rootfs.archive("python", packages)
    tag = f"localhost/sandboxpool-python:{tar.stem.rpartition('-')[2]}"
    if not engine.has_image(tag):
        with progress.step("import the base image") as step:
            engine.docker("import", str(tar), tag, timeout=IMPORT_SECONDS, log=step.log)
    return tag


def remove_others(engine: Engine, keep: str) -> None:
    """Remove node images of other contents; each takes about a gigabyte."""
    for tag in engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}").split():
        if tag.startswith(f"{REPOSITORY}:") and tag != keep:
            engine.docker("rmi", tag, check=False)
