"""The rest of a cluster: garbage collector, scheduler, kubelets, and the nodes they run on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from sandboxpool.api.names import HOSTNAME_LABEL
from sandboxpool.api.times import timestamp
from sandboxpool.runtimes.probe import NODES_KERNEL, OWN_KERNEL, PROBE_CONTAINER
from support.simulation.apiserver import ApiServer, Change, Object, owners

# The owners that the garbage collector has to look for, by kind.
OWNERS = {"SandboxPool": "sandboxpools", "SandboxClaim": "sandboxclaims"}
RETRY_SECONDS = 10.0
NODE_GONE_SECONDS = 40.0
NO_SHIM = (
    "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to start sandbox: "
    "failed to create containerd task: failed to start shim: start failed: exit status 1"
)


class Start(Enum):
    """What becomes of a sandbox that is to start on a node."""

    FINE = "fine"
    FAILS = "fails"
    HANGS = "hangs"


@dataclass
class FakeNode:
    """A node's kubelet and its container runtime."""

    name: str
    alive: bool = True
    starts: Start = Start.FINE
    seconds: tuple[float, float] = (0.1, 2.0)
    isolates: bool = True


@dataclass
class Controllers:
    """Whoever else acts on what stands in the API server.

    Attributes:
        collects: whether the garbage collector runs.
        unstartable: images whose sandboxes the runtime fails on every node, whoever asks.
    """

    server: ApiServer
    random: random.Random
    wall: Callable[[], float]
    collects: bool = True
    unstartable: set[str] = field(default_factory=set)
    nodes: dict[str, FakeNode] = field(default_factory=dict)
    _addresses: int = 0
    _boots: int = 0

    def __post_init__(self) -> None:
        self.server.listeners.append(self._see)

    def _later(self, least: float, most: float, act: Callable[..., None], *args: Any) -> None:
        asyncio.get_running_loop().call_later(self.random.uniform(least, most), act, *args)

    def _see(self, change: Change) -> None:
        if change.resource in OWNERS.values() and change.new is None:
            self._later(0.05, 2.0, self._collect)
        if change.resource == "nodes":
            self._later(0.1, 1.0, self._reschedule)
        if change.resource != "pods":
            return
        if change.new is None:
            return
        uid = change.new["metadata"]["uid"]
        was = change.old
        if was is None:
            self._later(0.01, 0.5, self._schedule, uid)
            self._later(1.0, 3.0, self._collect)
        elif list(owners(was)) != list(owners(change.new)):
            self._later(0.05, 2.0, self._collect)
        terminating = "deletionTimestamp" in change.new["metadata"]
        if terminating and "deletionTimestamp" not in (was or change.new)["metadata"]:
            self._later(0.05, 3.0, self._stop, uid)

    # --- Garbage ---------------------------------------------------------------------------------

    def collect_from_now_on(self) -> None:
        """Let the garbage collector do its work."""
        self.collects = True
        self._collect()

    def _collect(self) -> None:
        if not self.collects:
            return
        for pod in self.server.all("pods"):
            owned_by = list(owners(pod))
            orphaned = owned_by and not any(self._exists(pod, owner) for owner in owned_by)
            if orphaned and "deletionTimestamp" not in pod["metadata"]:
                self.server.delete("pods", pod, by="collector")

    def _exists(self, pod: Object, owner: Object) -> bool:
        resource = OWNERS.get(owner["kind"])
        if resource is None:
            return True
        found = self.server.find(resource, owner["name"], pod["metadata"]["namespace"])
        return found is not None and bool(found["metadata"]["uid"] == owner["uid"])

    # --- Scheduler -------------------------------------------------------------------------------

    def _pod(self, uid: str) -> Object | None:
        return next((p for p in self.server.all("pods") if p["metadata"]["uid"] == uid), None)

    def _reschedule(self) -> None:
        for pod in self.server.all("pods"):
            if not pod["spec"].get("nodeName"):
                self._schedule(pod["metadata"]["uid"])

    def _schedule(self, uid: str) -> None:
        pod = self._pod(uid)
        if pod is None or pod["spec"].get("nodeName"):
            return
        fitting = [name for name in self.nodes if self._fits(pod, name)]
        if not fitting:
            no_node = {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/3 nodes are available",
            }
            status = {**pod["status"], "conditions": [no_node]}
            self.server.update("pods", pod, "scheduler", status=status)
            return
        chosen = self.random.choice(fitting)
        condition = {"type": "PodScheduled", "status": "True"}
        self.server.update(
            "pods",
            pod,
            "scheduler",
            spec={**pod["spec"], "nodeName": chosen},
            status={**pod["status"], "conditions": [condition]},
        )
        self._start(uid)

    def _fits(self, pod: Object, name: str) -> bool:
        node = self.server.find("nodes", name)
        if node is None or not _is_ready(node):
            return False
        if node["spec"].get("unschedulable") and not pod["spec"].get("tolerations"):
            return False
        required = (
            pod["spec"]
            .get("affinity", {})
            .get("nodeAffinity", {})
            .get("requiredDuringSchedulingIgnoredDuringExecution", {})
        )
        terms = required.get("nodeSelectorTerms", [])
        return not terms or any(_matches(term, name) for term in terms)

    # --- Kubelets --------------------------------------------------------------------------------

    def _start(self, uid: str) -> None:
        pod = self._pod(uid)
        node = self.nodes.get(pod["spec"]["nodeName"]) if pod is not None else None
        if pod is not None and node is not None:
            self._later(*node.seconds, self._try, uid, node.name)

    def _try(self, uid: str, name: str) -> None:
        """The container runtime is asked for the sandbox; where that fails, again and again."""
        pod, node = self._pod(uid), self.nodes.get(name)
        if pod is None or node is None or "deletionTimestamp" in pod["metadata"]:
            return
        if not node.alive or node.starts is Start.HANGS:
            self._later(RETRY_SECONDS, RETRY_SECONDS * 1.5, self._try, uid, name)
            return
        containers = (c for c in pod["spec"].get("containers") or () if isinstance(c, dict))
        images = {str(container.get("image")) for container in containers}
        hopeless = not self._serves(pod, name) or bool(images & self.unstartable)
        if node.starts is Start.FAILS or hopeless:
            self._say(pod, name, NO_SHIM)
            self._later(RETRY_SECONDS, RETRY_SECONDS * 1.5, self._try, uid, name)
            return
        self._addresses += 1
        address = f"10.0.{self._addresses >> 8}.{self._addresses & 255}"
        self.server.update("pods", pod, "kubelet", status=self._started(pod, node, address))

    def _serves(self, pod: Object, name: str) -> bool:
        class_name = pod["spec"].get("runtimeClassName")
        if not class_name:
            # The node's default runtime.
            return True
        found = self.server.find("runtimeclasses", class_name)
        node = self.server.find("nodes", name)
        if found is None or node is None:
            return False
        listed = {handler["name"] for handler in node["status"].get("runtimeHandlers", [])}
        return found["handler"] in listed

    def _started(self, pod: Object, node: FakeNode, address: str) -> Object:
        now = timestamp(self.wall())
        # A template may hold anything; what the real server would refuse has no name here.
        named = (c for c in pod["spec"].get("containers") or () if isinstance(c, dict))
        names = [str(container.get("name")) for container in named]
        states: dict[str, Object] = {name: {"running": {"startedAt": now}} for name in names}
        if PROBE_CONTAINER in names:
            isolated = node.isolates and pod["spec"].get("runtimeClassName")
            code = OWN_KERNEL if isolated else NODES_KERNEL
            states[PROBE_CONTAINER] = {"terminated": {"exitCode": code}}
        # None of a probe's answers is 0, so that every one ends its pod as failed.
        ends = PROBE_CONTAINER in names
        conditions = {"PodScheduled", "PodReadyToStartContainers", "Initialized"}
        conditions |= set() if ends else {"Ready"}
        return {
            "phase": "Failed" if ends else "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [
                {"type": type_, "status": "True", "lastTransitionTime": now}
                for type_ in sorted(conditions)
            ],
            "containerStatuses": [
                {"name": name, "restartCount": 0, "state": state} for name, state in states.items()
            ],
        }

    def _say(self, pod: Object, node: str, message: str) -> None:
        now = timestamp(self.wall())
        name, metadata = f"{pod['metadata']['name']}.sandbox", pod["metadata"]
        old = self.server.find("events", name, metadata["namespace"])
        if old is not None:
            self.server.update("events", old, "kubelet", lastTimestamp=now, message=message)
            return
        body = {
            "metadata": {"name": name, "namespace": metadata["namespace"]},
            "involvedObject": {
                "kind": "Pod",
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
            "reason": "FailedCreatePodSandBox",
            "message": message,
            "source": {"host": node},
            "lastTimestamp": now,
        }
        self.server.create("events", body, by="kubelet")

    def _stop(self, uid: str) -> None:
        pod = self._pod(uid)
        if pod is None:
            return
        node = self.nodes.get(pod["spec"].get("nodeName", ""))
        if node is not None and not node.alive:
            self._later(5.0, 10.0, self._stop, uid)
            return
        self.server.remove("pods", pod, by="kubelet")

    def end(self, pod: Object) -> None:
        """A pod's containers end, as if its program had."""
        ready = {"type": "Ready", "status": "False", "reason": "PodFailed"}
        status = {**pod["status"], "phase": "Failed", "conditions": [ready]}
        self.server.update("pods", pod, "kubelet", status=status)

    # --- Nodes -----------------------------------------------------------------------------------

    def add_node(self, name: str, handlers: tuple[str, ...] = ("runc", "runsc")) -> FakeNode:
        """A machine joins."""
        self._boots += 1
        body = {
            "metadata": {"name": name, "labels": {HOSTNAME_LABEL: name}},
            "spec": {},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "nodeInfo": {
                    "bootID": f"boot-{self._boots}",
                    "containerRuntimeVersion": "containerd://2.1.4",
                    "kubeletVersion": "v1.36.2",
                },
                "runtimeHandlers": [{"name": handler} for handler in handlers],
            },
        }
        self.server.create("nodes", body, by="kubelet")
        node = self.nodes[name] = FakeNode(name)
        return node

    def lose_node(self, name: str) -> None:
        """A machine is cut off: its kubelet is silent, and its pods are no longer Ready."""
        self.nodes[name].alive = False
        self._set_ready(name, "Unknown")
        for pod in self.server.all("pods"):
            if pod["spec"].get("nodeName") == name:
                conditions = [c for c in pod["status"]["conditions"] if c["type"] != "Ready"]
                conditions.append({"type": "Ready", "status": "False", "reason": "NodeLost"})
                status = {**pod["status"], "conditions": conditions}
                self.server.update("pods", pod, "node controller", status=status)

    def bring_back(self, name: str) -> None:
        """A lost machine is there again, with what ran on it."""
        self.nodes[name].alive = True
        self._set_ready(name, "True")
        for pod in self.server.all("pods"):
            running = pod["status"].get("phase") == "Running"
            if pod["spec"].get("nodeName") == name and running:
                node = self.nodes[name]
                status = self._started(pod, node, pod["status"]["podIP"])
                self.server.update("pods", pod, "kubelet", status=status)

    def remove_node(self, name: str) -> None:
        """A machine is gone for good; in time its pods go, too."""
        node = self.server.find("nodes", name)
        if node is not None:
            del self.nodes[name]
            self.server.remove("nodes", node, by="user")
            self._later(NODE_GONE_SECONDS, NODE_GONE_SECONDS * 2, self._forget_pods_of, name)

    def _forget_pods_of(self, name: str) -> None:
        if name in self.nodes:
            return
        for pod in self.server.all("pods"):
            if pod["spec"].get("nodeName") == name:
                self.server.delete("pods", pod, by="node controller", grace=0)

    def set_node(self, name: str, *, cordoned: bool, serves: bool = True) -> None:
        """Cordon a node or not, and have its list of handlers hold gVisor's or not."""
        node = self.server.find("nodes", name)
        if node is not None:
            handlers = [{"name": "runc"}, *([{"name": "runsc"}] if serves else [])]
            self.server.update(
                "nodes",
                node,
                "user",
                spec={**node["spec"], "unschedulable": cordoned},
                status={**node["status"], "runtimeHandlers": handlers},
            )

    def _set_ready(self, name: str, value: str) -> None:
        node = self.server.find("nodes", name)
        if node is not None:
            status = {**node["status"], "conditions": [{"type": "Ready", "status": value}]}
            self.server.update("nodes", node, "node controller", status=status)


def _is_ready(node: Object) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"]["conditions"])


def _matches(term: Object, name: str) -> bool:
    for requirement in (*term.get("matchExpressions", ()), *term.get("matchFields", ())):
        inside = name in requirement["values"]
        if inside != (requirement["operator"] == "In"):
            return False
    return True
