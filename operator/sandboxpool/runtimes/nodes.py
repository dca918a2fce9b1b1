"""What matters about a node, and nothing that its heartbeat changes.

Two equal ``NodeFacts`` mean that no pool has to be looked at again, so a node's status updates
every few seconds, or a handler list in another order, cause no work.
"""

import re
from dataclasses import dataclass, field

from sandboxpool.api.core import Node, Taint
from sandboxpool.api.names import EXCLUSION_PREFIX, HOSTNAME_LABEL, OS_LABEL
from sandboxpool.api.times import epoch
from sandboxpool.runtimes.lifecycle import cordon_reason, removal_reason

CORDON_TAINT = "node.kubernetes.io/unschedulable"
# Set and removed by Kubernetes itself as a node's state comes and goes.
TRANSIENT_TAINT_PREFIX = "node.kubernetes.io/"

_VERSION = re.compile(r"v([0-9]{1,4})\.([0-9]{1,4})")


@dataclass(frozen=True, slots=True)
class Machine:
    """One life of one node: a new machine under an old name, or a reboot, is another one."""

    uid: str
    boot_id: str


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node as the verdict sees it.

    Attributes:
        handlers: the names it lists; None if it cannot say (containerd before 2.0).
        ready: its Ready condition is True; only then is its list to be trusted.
        schedulable: nothing keeps new sandboxes away: it is neither cordoned, nor to be maintained,
            nor about to go.
        leaving: about to go, and its pods with it.
        cordoned: it is marked as unschedulable.
        unschedulable_reason: why it is not schedulable, in words that follow its name; empty if it
            is.
        hostname: the value of the hostname label, which can differ from the node's name.
        created: epoch seconds at which it joined.
        container_runtime: name and version, such as ``containerd://2.1.4``.
        kubelet: version, such as ``v1.36.2``.
        exclusions: those of its labels that keep pods away.
        without_user_namespaces: the handlers of which its kubelet says that they do not support
            user namespaces; of others it may say nothing.
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
        """Look for the labels that are asked for all the time."""
        hostname = next((value for key, value in self.labels if key == HOSTNAME_LABEL), None)
        object.__setattr__(self, "hostname", hostname)
        ours = {key: value for key, value in self.labels if key.startswith(EXCLUSION_PREFIX)}
        object.__setattr__(self, "exclusions", ours)

    @property
    def tells_of_sandboxes(self) -> bool:
        """Its kubelet says at once that a sandbox was made; before 1.36 only after the images."""
        found = _VERSION.match(self.kubelet)
        return found is not None and (int(found[1]), int(found[2])) >= (1, 36)

    @property
    def machine(self) -> Machine:
        """What is learned of its runtimes is about this."""
        return Machine(self.uid, self.boot_id)

    @property
    def maintenance_planned(self) -> bool:
        """It is to be maintained some day, and takes pods until then."""
        return self.ready and not (self.schedulable or self.being_removed or self.cordoned)

    @property
    def usable(self) -> bool:
        """A warm sandbox on this node may be handed out."""
        return self.ready and self.schedulable


def runs_linux(node: Node) -> bool:
    """Sandboxes and probes are Linux pods; a node that has not said what it runs may take them."""
    said = node.metadata.labels.get(OS_LABEL) or node.status.nodeInfo.operatingSystem
    return said in ("", "linux")


def node_facts(node: Node) -> NodeFacts:
    """Take from a Node what the verdict needs."""
    ready = any(c.type == "Ready" and c.status == "True" for c in node.status.conditions)
    leaving = removal_reason(node)
    unschedulable_reason = leaving or cordon_reason(node)
    listed = node.status.runtimeHandlers
    return NodeFacts(
        name=node.metadata.name,
        uid=node.metadata.uid,
        labels=frozenset(node.metadata.labels.items()),
        taints=tuple(sorted(node.spec.taints, key=lambda t: (t.key, t.value, t.effect))),
        ready=ready,
        schedulable=not unschedulable_reason,
        being_removed=bool(leaving),
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
