"""The rest of a cluster: garbage collector, scheduler, autoscaler, and the nodes."""

from __future__ import annotations

from dataclasses import dataclass, field

from sandboxpool.api import names
from support.simulation.apiserver import Change, Object, owners
from support.simulation.kubelets import NO_SHIM as NO_SHIM
from support.simulation.kubelets import Kubelets
from support.simulation.machines import FakeNode, is_true, node_body, with_condition
from support.simulation.machines import Start as Start

# The owners that the garbage collector has to look for, by kind.
OWNERS = {
    "SandboxPool": "sandboxpools",
    "SandboxClaim": "sandboxclaims",
    "BatchSandbox": "batchsandboxes",
}
# The kinds beside pods that it collects.
OWNED = ("sandboxclaims", "pools")
NODE_GONE_SECONDS = 40.0
# What fitted nowhere is tried again from time to time, whatever has happened.
RESCHEDULE_SECONDS = 30.0, 60.0


@dataclass
class Controllers(Kubelets):
    """Whoever else acts on what stands in the API server.

    Attributes:
        collects: whether the garbage collector runs.
        autoscales: how many seconds after a pod has no room another node joins, at least and at
            most; None if none ever does.
        autoscales_to: how many nodes it may add.
        autoscaled_room: how many pods fit on each of them.
        prefers_empty: the scheduler takes the emptiest node, as the real one likes to; else any.
        stop_seconds: how long a pod takes to end, at least and at most.
        leaving: the nodes that are being drained, and will be removed.
    """

    collects: bool = True
    autoscales: tuple[float, float] | None = None
    autoscales_to: int = 3
    autoscaled_room: int | None = None
    prefers_empty: bool = False
    stop_seconds: tuple[float, float] = (0.05, 3.0)
    leaving: set[str] = field(default_factory=set)
    _retried: set[str] = field(default_factory=set)
    _boots: int = 0
    _growing: bool = False
    _grown: int = 0

    def __post_init__(self) -> None:
        self.server.listeners.append(self._see)

    def _see(self, change: Change) -> None:
        if change.resource in OWNERS.values() and change.new is None:
            self._later(0.05, 2.0, self._collect)
        if change.resource in OWNED and change.old is None and any(owners(change.object)):
            self._later(1.0, 3.0, self._collect)
        if change.resource == "nodes":
            self._later(0.1, 1.0, self._reschedule)
        if change.resource != "pods":
            return
        if change.new is None:
            if any(node.room is not None for node in self.nodes.values()):
                self._later(0.1, 1.0, self._reschedule)
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
            self._later(*self.stop_seconds, self._stop, uid)

    # --- Garbage ---------------------------------------------------------------------------------

    def collect_from_now_on(self) -> None:
        """Let the garbage collector do its work."""
        self.collects = True
        self._collect()

    def _collect(self) -> None:
        if not self.collects:
            return
        for resource in (*OWNED, "pods"):
            for obj in self.server.all(resource):
                owned_by = list(owners(obj))
                orphaned = owned_by and not any(self._exists(obj, owner) for owner in owned_by)
                if orphaned and "deletionTimestamp" not in obj["metadata"]:
                    self.server.delete(resource, obj, by="collector")

    def _exists(self, obj: Object, owner: Object) -> bool:
        resource = OWNERS.get(owner["kind"])
        if resource is None:
            return True
        found = self.server.find(resource, owner["name"], obj["metadata"]["namespace"])
        return found is not None and bool(found["metadata"]["uid"] == owner["uid"])

    # --- Scheduler -------------------------------------------------------------------------------

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
                "message": "0/3 nodes are available: 3 Too many pods.",
            }
            status = {**pod["status"], "conditions": [no_node]}
            self.server.update("pods", pod, "scheduler", status=status)
            if uid not in self._retried:
                self._retried.add(uid)
                self._later(*RESCHEDULE_SECONDS, self._schedule_again, uid)
            if self.autoscales is not None and not self._growing:
                self._growing = True
                self._later(*self.autoscales, self._grow)
            return
        chosen = self.random.choice(fitting)
        if self.prefers_empty:
            chosen = min(fitting, key=self.load_of)
        status = with_condition({"phase": "Pending"}, "PodScheduled", True, self._now())
        self.server.update(
            "pods",
            pod,
            "scheduler",
            spec={**pod["spec"], "nodeName": chosen},
            status={**pod["status"], "conditions": status["conditions"]},
        )
        self._start(uid)

    def _schedule_again(self, uid: str) -> None:
        self._retried.discard(uid)
        self._schedule(uid)

    def _fits(self, pod: Object, name: str) -> bool:
        node = self.server.find("nodes", name)
        if node is None:
            return False
        tolerations = pod["spec"].get("tolerations") or ()
        tolerates_all = any(not t.get("key") and t.get("operator") == "Exists" for t in tolerations)
        if not tolerates_all and (not is_true(node, "Ready") or node["spec"].get("taints")):
            return False
        room = self.nodes[name].room
        if room is not None and self.load_of(name) >= room:
            return False
        if node["spec"].get("unschedulable") and not pod["spec"].get("tolerations"):
            return False
        node_labels = node["metadata"].get("labels", {})
        if not pod["spec"].get("nodeSelector", {}).items() <= node_labels.items():
            return False
        required = (
            pod["spec"]
            .get("affinity", {})
            .get("nodeAffinity", {})
            .get("requiredDuringSchedulingIgnoredDuringExecution", {})
        )
        terms = required.get("nodeSelectorTerms", [])
        return not terms or any(_matches(term, node) for term in terms)

    # --- Nodes -----------------------------------------------------------------------------------

    def add_node(self, name: str, handlers: tuple[str, ...] = ("runc", "runsc")) -> FakeNode:
        """A machine joins."""
        self._boots += 1
        self.server.create("nodes", node_body(name, self._boots, handlers), by="kubelet")
        node = self.nodes[name] = FakeNode(name)
        return node

    def _grow(self) -> None:
        """The autoscaler's machine joins, if a pod still waits for one."""
        self._growing = False
        waits = any(not p["spec"].get("nodeName") for p in self.server.all("pods"))
        if waits and self.autoscales is not None and self._grown < self.autoscales_to:
            self._grown += 1
            node = self.add_node(f"scaled-{self._grown}")
            node.room = self.autoscaled_room

    def lose_node(self, name: str) -> None:
        """A machine is cut off: its kubelet is silent, and its pods are no longer Ready."""
        self.nodes[name].alive = False
        self._set_ready(name, "Unknown")
        for pod in self._on(name):
            now = self._now()
            status = with_condition(pod["status"], "Ready", False, now, reason="NodeLost")
            self.server.update("pods", pod, "node controller", status=status)

    def bring_back(self, name: str, pods_after: float = 0.0) -> None:
        """A lost machine is there again, with what ran on it.

        Args:
            name: which it is.
            pods_after: seconds after which its kubelet has reported its pods, too.
        """
        self.nodes[name].alive = True
        self._set_ready(name, "True")
        for pod in self._on(name):
            if pods_after:
                self._later(pods_after, pods_after, self._recover, pod["metadata"]["uid"])
            else:
                self._recover(pod["metadata"]["uid"])

    def remove_node(self, name: str) -> None:
        """A machine is gone for good; in time its pods go, too."""
        node = self.server.find("nodes", name)
        if node is not None:
            self.leaving.discard(name)
            del self.nodes[name]
            self.server.remove("nodes", node, by="user")
            self._later(NODE_GONE_SECONDS, NODE_GONE_SECONDS * 2, self._forget_pods_of, name)

    def drain_node(self, name: str, seconds: float = 30.0) -> None:
        """A machine leaves in good order: it is cordoned, emptied after a while, and removed."""
        self.cordon(name)
        self.leaving.add(name)
        self._later(seconds, seconds, self._empty, name)

    def _empty(self, name: str) -> None:
        if name in self.leaving:
            for pod in self._on(name):
                self.disrupt(pod, "EvictionByEvictionAPI")
            self._later(5.0, 5.0, self._leave, name)

    def _leave(self, name: str) -> None:
        if name in self.leaving:
            self.leaving.remove(name)
            self.remove_node(name)

    def _on(self, name: str) -> list[Object]:
        return [p for p in self.server.all("pods") if p["spec"].get("nodeName") == name]

    def _forget_pods_of(self, name: str) -> None:
        if name not in self.nodes:
            for pod in self._on(name):
                self.disrupt(pod, "DeletionByPodGC", grace=0)

    def cordon(self, *names: str, cordoned: bool = True) -> None:
        """Cordon nodes, or end that; all there are unless named."""
        for name in names or list(self.nodes):
            node = self.server.find("nodes", name)
            if node is not None:
                spec = {**node["spec"], "unschedulable": cordoned}
                self.server.update("nodes", node, "user", spec=spec)

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

    def taint(self, name: str, *keys: str) -> None:
        """Have a node have these taints, and no others."""
        node = self.server.find("nodes", name)
        if node is not None:
            taints = [{"key": key, "effect": "NoSchedule"} for key in keys]
            self.server.update("nodes", node, "user", spec={**node["spec"], "taints": taints})

    def announce(self, name: str, condition: str, value: bool = True) -> None:
        """Set a condition of a node."""
        node = self.server.find("nodes", name)
        if node is not None:
            status = with_condition(node["status"], condition, value, self._now())
            self.server.update("nodes", node, "user", status=status)

    def upgrade(self, name: str, *handlers: str, **node_info: str) -> None:
        """A node's kubelet or container runtime is replaced, or has these handlers, too."""
        node = self.server.find("nodes", name)
        assert node is not None
        status = node["status"]
        listed = [*status["runtimeHandlers"], *({"name": handler} for handler in handlers)]
        info = {**status["nodeInfo"], **node_info}
        status = {**status, "runtimeHandlers": listed, "nodeInfo": info}
        self.server.update("nodes", node, "kubelet", status=status)

    def _set_ready(self, name: str, value: str) -> None:
        node = self.server.find("nodes", name)
        if node is not None:
            status = {**node["status"], "conditions": [{"type": "Ready", "status": value}]}
            self.server.update("nodes", node, "node controller", status=status)


def _matches(term: Object, node: Object) -> bool:
    name = node["metadata"]["name"]
    labels = {names.HOSTNAME_LABEL: name, **node["metadata"].get("labels", {})}
    for requirement in (*term.get("matchExpressions", ()), *term.get("matchFields", ())):
        value = (
            name if requirement in term.get("matchFields", ()) else labels.get(requirement["key"])
        )
        inside = value is not None and value in requirement.get("values", [value])
        if inside != (requirement["operator"] in ("In", "Exists")):
            return False
    return True
