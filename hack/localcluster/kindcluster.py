"""The kind cluster: one control-plane node and three workers with different runtime handlers.

| node (`NAME-...`) | label `sandboxpool.io/demo-handlers` | handlers beside runc |
|---|---|---|
| `control-plane` (tainted as usual) | | |
| `worker`  | `gvisor` | `runsc` |
| `worker2` | `none` | |
| `worker3` | `gvisor-kata` | `runsc`, and a `kata-qemu` whose shim does not exist |

Three workers and a control plane apart: a control plane that also runs sandboxes would make the
demo's nodes unlike those of users. No RuntimeClass is made here and none should use that label;
it only lets a demo name a node by what it serves.

With an engine that can pull, kind's stock node image is used and gVisor is copied into the
workers; that path has not been run on the machine where this was written, which could not pull.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from localcluster import (
    builds,
    cache,
    containerd,
    host,
    network,
    nodeimage,
    paths,
    process,
    progress,
)
from localcluster import engine as engines
from localcluster.engine import Engine

NAME = "sandboxpool"
# The default of kind v0.33.0. kind accepts any of its own images; this one it was made with.
STOCK_IMAGE = (
    "kindest/node:v1.37.0@sha256:a1ed56cfb0e7b93589bdf97c8cd566405a265939e3620fc4f5de89adff580ae5"
)
LABEL = "sandboxpool.io/demo-handlers"
HANDLERS: dict[str, tuple[str, ...]] = {
    "control-plane": (),
    "worker": ("runsc",),
    "worker2": (),
    "worker3": ("runsc", "kata-qemu"),
}
LABELS = {"worker": "gvisor", "worker2": "none", "worker3": "gvisor-kata"}

CREATE_SECONDS = 600
DELETE_SECONDS = 300
READY_SECONDS = 300
CIDR_SECONDS = 300
KUBECTL_SECONDS = 60
UP_SECONDS = 7200


def kubeconfig() -> Path:
    """Return where the kubeconfig of the cluster is, up or not."""
    return paths.state_dir() / "kubeconfig"


def role_of(node: str) -> str:
    """Return the part of a node's name that says which of the four it is."""
    return node.removeprefix(f"{NAME}-")


def node_names() -> list[str]:
    """Return the names of the nodes."""
    return [f"{NAME}-{role}" for role in HANDLERS]


def up() -> Path:
    """Make the cluster run, whatever state it is in, and return its kubeconfig's path.

    Raises:
        StepError: A step failed; its name and the tail of its log are in the text.
    """
    with cache.lock(paths.state_dir() / "lock", timeout=UP_SECONDS):
        tools = builds.ensure(["kind", "kubectl"])
        engine = engines.acquire(STOCK_IMAGE)
        states = _containers(engine)
        if states and (set(states) != set(node_names()) or not _repaired(engine, states)):
            with progress.step("remove the broken cluster") as step:
                _delete(engine, tools["kind"], step)
            states = {}
        if not states:
            _create(engine, tools["kind"])
        return kubeconfig()


def down() -> None:
    """Remove the cluster, and the engine if it is our own; what is cached stays."""
    with cache.lock(paths.state_dir() / "lock", timeout=UP_SECONDS):
        engine = engines.current()
        if engine is not None and _containers(engine):
            with progress.step("delete the cluster") as step:
                _delete(engine, builds.ensure(["kind"])["kind"], step)
        engines.release()
        kubeconfig().unlink(missing_ok=True)


def status() -> str:
    """Return what runs, for people: engine, containers, nodes and their handlers."""
    engine = engines.current()
    if engine is None:
        return "nothing runs: `python -m localcluster up`"
    lines = [f"engine      {'our own' if engine.owned else 'of this machine'}"]
    lines.append(f"kubeconfig  {kubeconfig()}")
    states = _containers(engine)
    found: dict[str, Mapping[str, Any]] = {}
    if states.get(f"{NAME}-control-plane") == "running":
        try:
            found = node_objects()
        except process.CommandError as error:
            lines.append(f"the API server does not answer: {error.reason}")
    for name in sorted(states):
        node = found.get(name)
        ready = "-" if node is None else ("Ready" if _is_ready(node) else "NotReady")
        handlers = ", ".join(sorted(h or '""' for h in reported_handlers(node or {})))
        lines.append(f"{name:<28}{states[name]:<9}{ready:<10}{handlers}")
    return "\n".join(lines)


def kubectl(*arguments: str, timeout: float = KUBECTL_SECONDS, stdin: str | None = None) -> str:
    """Run kubectl against the cluster and return what it prints."""
    binary = builds.ensure(["kubectl"])["kubectl"]
    command = [str(binary), "--kubeconfig", str(kubeconfig()), *arguments]
    return process.run(command, timeout=timeout, stdin=stdin)


def node_objects() -> dict[str, Mapping[str, Any]]:
    """Return the Node objects by name."""
    listed = json.loads(kubectl("get", "nodes", "-o", "json", "--request-timeout=10s"))
    return {node["metadata"]["name"]: node for node in listed["items"]}


def reported_handlers(node: Mapping[str, Any]) -> set[str]:
    """Return the runtime handlers that a node's status names; "" is the default."""
    listed = node.get("status", {}).get("runtimeHandlers") or []
    return {str(handler.get("name", "")) for handler in listed}


def _is_ready(node: Mapping[str, Any]) -> bool:
    conditions = node["status"].get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _containers(engine: Engine) -> dict[str, str]:
    """Return the state of the node containers by name."""
    listed = engine.docker(
        *("ps", "--all", "--filter", f"label=io.x-k8s.kind.cluster={NAME}"),
        *("--format", "{{.Names}} {{.State}}"),
    )
    return dict(line.split(maxsplit=1) for line in listed.splitlines())


def _delete(engine: Engine, kind: Path, step: progress.Step) -> None:
    command = [str(kind), "delete", "cluster", "--name", NAME, "--kubeconfig", str(kubeconfig())]
    step.run(command, timeout=DELETE_SECONDS, env=engine.env)


def _repaired(engine: Engine, states: Mapping[str, str]) -> bool:
    stopped = [name for name, state in states.items() if state != "running"]
    try:
        if not stopped and _settled_now():
            return True
        with progress.step("repair the cluster"):
            for name in stopped:
                engine.docker("start", name)
            settle(engine)
    except (progress.StepError, process.CommandError, TimeoutError) as error:
        progress.say(f"the cluster cannot be repaired: {str(error).splitlines()[0]}")
        return False
    return True


def _settled_now() -> bool:
    try:
        return _settled(node_objects())
    except process.CommandError:
        # Also while an API server that was restarted is not up yet.
        return False


def _settled(found: Mapping[str, Mapping[str, Any]]) -> bool:
    return set(found) == set(node_names()) and all(_is_ready(node) for node in found.values())


def settle(engine: Engine) -> None:
    """Restore routes and packet filter of the nodes and wait until all are Ready."""
    found = _until(
        lambda found: (
            len(found) == len(HANDLERS)
            and all("podCIDR" in node["spec"] for node in found.values())
        ),
        CIDR_SECONDS,
        "not all nodes have registered",
    )
    if _own_network(engine):
        # The addresses that nodes report lag behind a restart; the engine knows at once.
        for name, node in found.items():
            address = engine.docker(
                "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name
            )
            _set_address(node, address.strip())
        network.apply(engine, found)
    started = _started(engine)
    _until(
        lambda found: (
            _settled(found)
            # A node that was just killed looks Ready until somebody notices.
            and all(_heartbeat(node) >= started[name] for name, node in found.items())
        ),
        READY_SECONDS,
        "not all nodes are Ready",
    )


def _started(engine: Engine) -> dict[str, str]:
    """Return when each node's container started, in UTC to the second."""
    listed = engine.docker("inspect", "-f", "{{.Name}} {{.State.StartedAt}}", *node_names())
    pairs = (line.split() for line in listed.splitlines())
    return {name.lstrip("/"): moment[: len("2000-01-01T00:00:00")] for name, moment in pairs}


def _heartbeat(node: Mapping[str, Any]) -> str:
    """Return when the kubelet last confirmed that its node is ready, in UTC to the second."""
    conditions = node["status"].get("conditions") or []
    found = (c.get("lastHeartbeatTime") for c in conditions if c["type"] == "Ready")
    return str(next(found, None) or "").rstrip("Z")


def await_handlers(wanted: Mapping[str, set[str]], *, seconds: float = READY_SECONDS) -> None:
    """Wait until the nodes report exactly these handlers beside those of every kind node.

    Raises:
        TimeoutError: They do not within the time.
    """

    def reported(found: Mapping[str, Mapping[str, Any]]) -> bool:
        return all(
            name in found and reported_handlers(found[name]) - containerd.BUILT_IN == handlers
            for name, handlers in wanted.items()
        )

    _until(reported, seconds, "the nodes do not report their runtime handlers")


def _set_address(node: Mapping[str, Any], address: str) -> None:
    for entry in node["status"]["addresses"]:
        if entry["type"] == "InternalIP":
            entry["address"] = address


def _own_network(engine: Engine) -> bool:
    image = engine.docker("inspect", "-f", "{{.Config.Image}}", f"{NAME}-control-plane")
    return image.startswith(nodeimage.REPOSITORY)


def _until(
    condition: Callable[[Mapping[str, Mapping[str, Any]]], bool], seconds: float, complaint: str
) -> dict[str, Mapping[str, Any]]:
    deadline = time.monotonic() + seconds
    found: dict[str, Mapping[str, Any]] = {}
    while time.monotonic() < deadline:
        try:
            found = node_objects()
        except process.CommandError:
            found = {}
        if condition(found):
            return found
        time.sleep(0.3)
    raise TimeoutError(f"{complaint} after {seconds:.0f} s")


def _create(engine: Engine, kind: Path) -> None:
    image = nodeimage.ensure(engine) if engine.owned else STOCK_IMAGE
    engines.ensure_network(engine)
    with progress.step("create the kind cluster") as step:
        config = paths.state_dir() / "kind.yaml"
        config.write_text(yaml.safe_dump_all([_configuration(own_image=engine.owned)]))
        step.run(
            [
                *(str(kind), "create", "cluster", "--name", NAME, "--image", image),
                *("--config", str(config), "--kubeconfig", str(kubeconfig())),
            ],
            timeout=CREATE_SECONDS,
            env=engine.env,
        )
    with progress.step("set runtime handlers and network"):
        _in_parallel(_prepare, (name for name in node_names() if HANDLERS[role_of(name)]))
        settle(engine)
        await_handlers({name: set(HANDLERS[role_of(name)]) for name in node_names()})
    if engine.owned:
        nodeimage.remove_others(engine, image)


def _in_parallel(work: Callable[[str], None], names: Iterable[str]) -> None:
    with ThreadPoolExecutor(max_workers=len(HANDLERS)) as pool:
        for future in [pool.submit(work, name) for name in names]:
            future.result()


def _prepare(node: str) -> None:
    """Give a node its handlers, before it is Ready: so its first report names them."""
    engine = engines.current()
    if engine is None:
        raise OSError("the engine is gone")
    containerd.change(engine, node, add=HANDLERS[role_of(node)])


def _configuration(*, own_image: bool) -> dict[str, Any]:
    members = []
    for role in HANDLERS:
        member: dict[str, Any] = {"role": "control-plane" if role not in LABELS else "worker"}
        if role in LABELS:
            member["labels"] = {LABEL: LABELS[role]}
        members.append(member)
    configuration: dict[str, Any] = {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "nodes": members,
        "kubeadmConfigPatches": _kubeadm_patches(own_image=own_image),
    }
    if own_image:
        configuration["networking"] = {
            "disableDefaultCNI": True,
            "kubeProxyMode": "iptables",
            "podSubnet": network.CLUSTER_CIDR,
        }
    if host.cgroup_v1():
        table = 'plugins."io.containerd.grpc.v1.cri".containerd.runtimes'
        configuration["containerdConfigPatches"] = [
            f"[{table}.{name}.options]\n  SystemdCgroup = false\n"
            for name in ("runc", "test-handler")
        ]
    return configuration


def _kubeadm_patches(*, own_image: bool) -> list[str]:
    # A patch replaces whole lists, so kind's own entries stand here again.
    no_election = [{"name": "leader-elect", "value": "false"}]
    manager = [{"name": "enable-hostpath-provisioner", "value": "true"}]
    cluster = {
        "kind": "ClusterConfiguration",
        # Alone there is nobody to lose to, but on a busy machine a lease can be lost.
        "controllerManager": {"extraArgs": manager + no_election},
        "scheduler": {"extraArgs": no_election},
        "etcd": {"local": {"extraArgs": [{"name": "unsafe-no-fsync", "value": "true"}]}},
    }
    patches: list[dict[str, Any]] = [cluster]
    if own_image:
        for kind in ("InitConfiguration", "JoinConfiguration"):
            skipped = ["preflight"]
            if kind == "InitConfiguration":
                skipped.append("addon/coredns")
            patches.append({"kind": kind, "skipPhases": skipped})
    if host.cgroup_v1():
        kubelet = {"failCgroupV1": False, "cgroupDriver": "cgroupfs"}
        patches.append({"kind": "KubeletConfiguration", **kubelet})
    return [yaml.safe_dump(patch) for patch in patches]
