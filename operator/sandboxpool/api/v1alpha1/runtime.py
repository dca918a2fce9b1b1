"""A SandboxRuntime: what the fleet shows of one RuntimeClass."""

from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import Field

from sandboxpool.api import names
from sandboxpool.api.core import Metadata
from sandboxpool.api.markers import LIST_ATOMIC, Column, Resource
from sandboxpool.api.structs import ShownAs, Status, Struct
from sandboxpool.api.v1alpha1.common import (
    AGE,
    READY,
    Conditions,
    Count,
    NodeCounts,
    PoolStartup,
    Timestamp,
    condition_path,
)


class RuntimeIssue(Struct, frozen=True, kw_only=True):
    """A cause of failures of the runtime, with some of the nodes on which it was observed."""

    reason: Annotated[str, Field(max_length=128)]
    """The cause, as a reason in CamelCase."""
    handler: Annotated[str, Field(max_length=63)]
    """The handler that failed."""
    count: Count
    """How many nodes are affected."""
    nodes: Annotated[list[str], Field(max_length=5), LIST_ATOMIC] = []
    """Examples of affected nodes."""
    firstSeen: Timestamp
    """When the failures began."""
    lastSeen: Timestamp
    """When it was last observed. The issue ends an hour later, or once a sandbox works there
    again."""
    message: Annotated[str, Field(max_length=512)] = ""
    """The last message of Kubernetes, truncated."""


class SandboxCounts(Status, frozen=True, kw_only=True):
    """The sandboxes of all pools of the class, by state."""

    warm: Count
    """Unclaimed sandboxes that can be allocated."""
    starting: Count
    """Unclaimed sandboxes that are not ready yet."""
    unproven: Count
    """Ready sandboxes that lack the proof of isolation that their pool requires."""
    unready: Count
    """Unclaimed sandboxes that were ready and are not now."""
    stranded: Count
    """Unclaimed sandboxes that cannot be allocated on their node: it is lost, cordoned or
    quarantined, its runtime does not serve or does not isolate, or they are of another runtime than
    their pool's."""
    failed: Count
    """Unclaimed sandboxes that failed and are not yet removed."""
    claimed: Count
    """Sandboxes that belong to a claim."""
    ended: Count
    """Sandboxes of claims whose containers have ended, which are kept for their logs."""
    stopping: Count
    """Sandboxes that are terminating."""


class Isolation(StrEnum):
    """What a probe has read about the kernel of sandboxes."""

    PROVEN = "Proven"
    NOT_PROVEN = "NotProven"
    UNAVAILABLE = "Unavailable"


class IsolationEvidence(Struct, frozen=True, kw_only=True):
    """The results on nodes with the same software."""

    containerRuntime: Annotated[str, Field(max_length=256)] = ""
    """Name and version of the nodes' container runtime."""
    kubelet: Annotated[str, Field(max_length=256)] = ""
    """Version of the nodes' kubelet."""
    isolation: Isolation
    """`Proven`: a sandbox has another kernel than its node. `NotProven`: it has the node's own.
    `Unavailable`: there is no result."""
    kernel: Annotated[str, Field(max_length=256)] = ""
    """The kernel that the sandbox reads, if known."""
    nodes: Count
    """How many nodes have this result."""
    exampleNode: Annotated[str, Field(max_length=253)] = ""
    """One of them."""
    lastProbed: Timestamp
    """When it was last observed."""
    message: Annotated[str, Field(max_length=256)] = ""
    """What was observed on the example, or why there is no result."""


class RuntimeAdvice(Struct, frozen=True, kw_only=True):
    """What to change in the RuntimeClass."""

    nodeSelector: Annotated[dict[str, str], Field(max_length=1)]
    """A label that every serving node has and none of the others: as `scheduling.nodeSelector` of
    the RuntimeClass it keeps sandboxes away from nodes that do not serve the handler."""


class SandboxRuntimeStatus(Status, frozen=True, kw_only=True, omit_defaults=True):
    """The observed state of the runtime."""

    exists: bool
    """Whether the RuntimeClass exists. False: it is missing, and pools name it."""
    classUID: str
    """The uid of the RuntimeClass, or of the last there was: one that was deleted and created again
    is another one."""
    handler: str
    """The handler that container runtimes know it by."""
    overhead: dict[str, str]
    """What the class adds to each sandbox's resources, by resource name."""
    nodes: NodeCounts
    """The nodes that the constraints of the class admit, by what they report about the handler."""
    servingOfEligible: str
    """`serving/eligible` nodes, for the column NODES."""
    issues: Annotated[list[RuntimeIssue], Field(max_length=16), LIST_ATOMIC]
    """The issues of the runtime, by cause, most severe first."""
    pools: Annotated[list[str], Field(max_length=20), LIST_ATOMIC]
    """Pools that use the class, as namespace/name, the first by name."""
    poolCount: Count
    """How many pools use the class."""
    sandboxes: SandboxCounts
    """The sandboxes of all pools of the class, by state."""
    startup: PoolStartup | None = None
    """Measured start-up times of the sandboxes of all pools of the class."""
    evidence: Annotated[list[IsolationEvidence], Field(max_length=8), LIST_ATOMIC]
    """The evidence about isolation, by kind of node, most severe first."""
    advice: RuntimeAdvice | None = None
    """What to change in the RuntimeClass, if a label separates the nodes that serve it."""
    conditions: Conditions
    """`Ready`: some node can take a sandbox that may be allocated, with the proof that pools of the
    class require. `Healthy`: in addition, no node has an issue of the runtime. `IsolationProven`:
    sandboxes were observed to have kernels of their own."""


class SandboxRuntime(Struct, frozen=True, kw_only=True):
    """The observed state of the RuntimeClass of the same name; only the operator writes it."""

    resource: ClassVar[Resource] = Resource(
        kind=names.RUNTIME_KIND,
        plural=names.RUNTIMES,
        singular="sandboxruntime",
        short_names=("sbr",),
        categories=(names.CATEGORY,),
        scope="Cluster",
        columns=(
            Column("Handler", ".status.handler", description="What the class resolves to"),
            Column(
                "Nodes",
                ".status.servingOfEligible",
                description="Nodes that serve the handler, of those that could take a sandbox",
            ),
            Column(
                "Quarantined",
                ".status.nodes.quarantined",
                type="integer",
                description="Nodes that are kept out because sandboxes failed on them",
            ),
            Column(
                "Pools", ".status.poolCount", type="integer", description="Pools that use the class"
            ),
            Column(
                "Warm", ".status.sandboxes.warm", type="integer", description="Ready to be claimed"
            ),
            Column(
                "P50 Ready (ms)",
                ".status.startup.stages.ready.p50Milliseconds",
                type="integer",
                description="Milliseconds within which half of the sandboxes are ready",
            ),
            Column(
                "Ready",
                f"{READY}.status",
                description="Whether some node can take a sandbox that may be allocated",
            ),
            Column("Reason", f"{READY}.reason", description="Why the runtime is ready or not"),
            Column(
                "Healthy",
                f"{condition_path('Healthy')}.status",
                description="Whether nothing speaks against the runtime on any node",
            ),
            Column(
                "Evidence",
                f"{condition_path('IsolationProven')}.reason",
                description="Whether sandboxes were seen to have kernels of their own",
            ),
            AGE,
        ),
    )

    metadata: Annotated[Metadata, ShownAs(dict)]
    # Whatever is there: anybody may have damaged it.
    status: Annotated[dict[str, Any], ShownAs(SandboxRuntimeStatus)] = {}
    """The observed state of the runtime."""
