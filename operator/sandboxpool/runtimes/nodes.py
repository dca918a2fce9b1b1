"""The facts of a node that decide about sandboxes, without those that every heartbeat changes.

No pool is reconciled for a node whose ``NodeFacts`` are unchanged, so status updates every few
seconds, or handlers listed in another order, cause no work.
"""

import re
from dataclasses import dataclass, field

from sandboxpool.api.core import Node, Taint
from sandboxpool.api.names import EXCLUSION_PREFIX, HOSTNAME_LABEL, OS_LABEL
from sandboxpool.api.times import epoch
from sandboxpool.runtimes.lifecycle import cordon_reason, removal_reason

CORDON_TAINT = "node.kubernetes.io/unschedulable"
# Kubernetes itself adds and removes these taints with the state of the node.
TRANSIENT_TAINT_PREFIX = "node.kubernetes.io/"

# The name of a node and a handler.
NodeHandler = tuple[str, str]

_VERSION = re.compile(r"v([0-9]{1,4})\.([0-9]{1,4})")


@dataclass(frozen=True, slots=True)
class Machine:
    """One boot of one node: a reboot, or a new machine of the same name, is another Machine."""

    uid: str
    boot_id: str


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node as the verdict sees it.

    Attributes:
        handlers: the names of the listed handlers; None if the node publishes no list (containerd
            before 2.0).
        ready: the Ready condition is True; the list of handlers is reliable only then.
        schedulable: the node is neither cordoned, nor planned for maintenance, nor being removed.
        being_removed: the node is about to be removed, together with its pods.
        cordoned: ``spec.unschedulable`` is set.
        unschedulable_reason: why the node is not schedulable, in words that follow its name; empty
            if it is.
        hostname: the value of the hostname label, which can differ from the node's name.
        created: epoch seconds at which the node joined.
        container_runtime: name and version, such as ``containerd://2.1.4``.
        kubelet: version, such as ``v1.36.2``.
        exclusions: the exclusion labels of the node.
        without_user_namespaces: the handlers that do not support user namespaces according to the
            kubelet, which may say nothing about a handler.
    """

    name: str
    uid: str
    labels: frozenset[tuple[str, str]]
    taints: tuple[Taint, ...]
    ready: bool
    schedulable: bool
    handlers: frozenset[str] | None
    boot_id: str
    being_removed: bool = False
    cordoned: bool = False
    unschedulable_reason: str = ""
    created: float = 0.0
    container_runtime: str = ""
    kubelet: str = ""
    without_user_namespaces: frozenset[str] = frozenset()
    hostname: str | None = field(init=False, compare=False)
    exclusions: dict[str, str] = field(init=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        """Extract the labels that are read most often."""
        hostname = next((value for key, value in self.labels if key == HOSTNAME_LABEL), None)
        object.__setattr__(self, "hostname", hostname)
        ours = {key: value for key, value in self.labels if key.startswith(EXCLUSION_PREFIX)}
        object.__setattr__(self, "exclusions", ours)

    @property
    def tells_of_sandboxes(self) -> bool:
        """The kubelet reports a new sandbox at once; before 1.36 only after pulling the images."""
        found = _VERSION.match(self.kubelet)
        return found is not None and (int(found[1]), int(found[2])) >= (1, 36)

    @property
    def machine(self) -> Machine:
        """The machine that evidence and quarantines of this node are about."""
        return Machine(self.uid, self.boot_id)

    @property
    def maintenance_planned(self) -> bool:
        """Maintenance is planned for some later time, and the node runs pods until then."""
        return self.ready and not (self.schedulable or self.being_removed or self.cordoned)

    @property
    def usable(self) -> bool:
        """A warm sandbox on this node may be allocated."""
        return self.ready and self.schedulable


def runs_linux(node: Node) -> bool:
    """Whether Linux pods can run on the node; a node without a known system may run them."""
    system = node.metadata.labels.get(OS_LABEL) or node.status.nodeInfo.operatingSystem
    return system in ("", "linux")


def node_facts(node: Node) -> NodeFacts:
    """Extract the facts of a Node."""
    ready = any(c.type == "Ready" and c.status == "True" for c in node.status.conditions)
    removal = removal_reason(node)
    unschedulable_reason = removal or cordon_reason(node)
    listed = node.status.runtimeHandlers
    return NodeFacts(
        name=node.metadata.name,
        uid=node.metadata.uid,
        labels=frozenset(node.metadata.labels.items()),
        taints=tuple(sorted(node.spec.taints, key=lambda t: (t.key, t.value, t.effect))),
        ready=ready,
        schedulable=not unschedulable_reason,
        being_removed=bool(removal),
        unschedulable_reason=unschedulable_reason,
        cordoned=node.spec.unschedulable,
        handlers=None if listed is None else frozenset(handler.name for handler in listed),
        boot_id=node.status.nodeInfo.bootID,
        created=epoch(node.metadata.creationTimestamp),
        container_runtime=node.status.nodeInfo.containerRuntimeVersion,
        kubelet=node.status.nodeInfo.kubeletVersion,
        without_user_namespaces=frozenset(
            handler.name
            for handler in listed or ()
            if handler.features is not None and handler.features.userNamespaces is False
        ),
    )
