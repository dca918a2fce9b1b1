"""Projections of Kubernetes' own kinds: only the fields that the operator reads.

Unknown fields are skipped while decoding, so a cached pod takes a few hundred bytes instead of tens
of kilobytes. Names are spelled as in the API.
"""

# ruff: noqa: D101 - the API's spelling; the kinds are Kubernetes' own

import msgspec


class OwnerReference(msgspec.Struct, frozen=True, gc=False):
    apiVersion: str
    kind: str
    name: str
    uid: str
    controller: bool = False


class Metadata(msgspec.Struct, frozen=True):
    name: str
    uid: str
    resourceVersion: str
    namespace: str = ""
    creationTimestamp: str = ""
    deletionTimestamp: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    ownerReferences: list[OwnerReference] = []

    @property
    def controller(self) -> OwnerReference | None:
        """The owner that manages the object, or None."""
        return next((owner for owner in self.ownerReferences if owner.controller), None)


class Condition(msgspec.Struct, frozen=True, gc=False):
    type: str
    status: str
    reason: str = ""
    message: str = ""
    lastTransitionTime: str | None = None


class Waiting(msgspec.Struct, frozen=True, gc=False):
    reason: str = ""
    message: str = ""


class Terminated(msgspec.Struct, frozen=True, gc=False):
    exitCode: int = 0
    reason: str = ""
    message: str = ""


class Running(msgspec.Struct, frozen=True, gc=False):
    startedAt: str | None = None


class ContainerState(msgspec.Struct, frozen=True):
    waiting: Waiting | None = None
    running: Running | None = None
    terminated: Terminated | None = None


class ContainerStatus(msgspec.Struct, frozen=True):
    name: str
    restartCount: int = 0
    ready: bool = False
    # None until the kubelet has set it.
    started: bool | None = None
    state: ContainerState = ContainerState()
    # The end of the previous run, if the container was restarted.
    lastState: ContainerState = ContainerState()


class PodIP(msgspec.Struct, frozen=True, gc=False):
    ip: str


class SchedulingGate(msgspec.Struct, frozen=True, gc=False):
    name: str = ""


class PodSpec(msgspec.Struct, frozen=True):
    nodeName: str = ""
    runtimeClassName: str = ""
    # Admission copies it from the class.
    overhead: dict[str, str] = {}
    schedulingGates: list[SchedulingGate] = []


class PodStatus(msgspec.Struct, frozen=True):
    phase: str = ""
    reason: str = ""
    message: str = ""
    podIP: str = ""
    podIPs: list[PodIP] = []
    conditions: list[Condition] = []
    containerStatuses: list[ContainerStatus] = []
    initContainerStatuses: list[ContainerStatus] = []


class Pod(msgspec.Struct, frozen=True):
    metadata: Metadata
    spec: PodSpec
    status: PodStatus = PodStatus()

    def condition(self, type_: str) -> Condition | None:
        """The condition of this type, or None."""
        return next((c for c in self.status.conditions if c.type == type_), None)

    @property
    def ready(self) -> bool:
        """The condition Ready is True."""
        condition = self.condition("Ready")
        return condition is not None and condition.status == "True"

    @property
    def running(self) -> bool:
        """All containers of the pod are running."""
        states = [container.state for container in self.status.containerStatuses]
        return bool(states) and all(state.running is not None for state in states)

    @property
    def finished(self) -> bool:
        """The pod has ended and will never run again."""
        return self.status.phase in ("Failed", "Succeeded")


class Taint(msgspec.Struct, frozen=True, gc=False):
    key: str
    effect: str
    value: str = ""


class NodeSpec(msgspec.Struct, frozen=True):
    unschedulable: bool = False
    taints: list[Taint] = []


class HandlerFeatures(msgspec.Struct, frozen=True, gc=False):
    userNamespaces: bool | None = None


class RuntimeHandler(msgspec.Struct, frozen=True):
    name: str = ""
    features: HandlerFeatures | None = None


class NodeInfo(msgspec.Struct, frozen=True, gc=False):
    bootID: str = ""
    containerRuntimeVersion: str = ""
    kubeletVersion: str = ""
    operatingSystem: str = ""


class NodeStatus(msgspec.Struct, frozen=True):
    conditions: list[Condition] = []
    nodeInfo: NodeInfo = NodeInfo()
    # None, unlike an empty list: the kubelet or container runtime is too old to list handlers.
    runtimeHandlers: list[RuntimeHandler] | None = None


class Node(msgspec.Struct, frozen=True):
    metadata: Metadata
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class InvolvedObject(msgspec.Struct, frozen=True, gc=False):
    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""
    fieldPath: str = ""


class EventSource(msgspec.Struct, frozen=True, gc=False):
    host: str = ""
    component: str = ""


class Event(msgspec.Struct, frozen=True):
    metadata: Metadata
    involvedObject: InvolvedObject = InvolvedObject()
    reason: str = ""
    message: str = ""
    source: EventSource = EventSource()
    reportingInstance: str = ""
    reportingComponent: str = ""
    lastTimestamp: str | None = None


class Toleration(msgspec.Struct, frozen=True, gc=False):
    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""


class Overhead(msgspec.Struct, frozen=True):
    podFixed: dict[str, str] = {}


class Scheduling(msgspec.Struct, frozen=True):
    nodeSelector: dict[str, str] = {}
    tolerations: list[Toleration] = []


class RuntimeClass(msgspec.Struct, frozen=True):
    metadata: Metadata
    handler: str
    overhead: Overhead | None = None
    scheduling: Scheduling | None = None
