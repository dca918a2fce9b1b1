"""What is announced of a node: that its pods will end soon, or that it takes no new ones.

Every list here is short on purpose. Most taints only say which pods a node is for, and whoever runs
there goes on running: a sandbox behind such a taint is handed out. What deletes its pods at once,
as a NoExecute taint does, needs no announcement.
"""

from sandboxpool.api.core import Node

# Whoever sets one of these removes the node's pods next, or the machine with them. A cluster
# autoscaler's DeletionCandidateOfClusterAutoscaler is not among them: it is often taken back.
REMOVAL_TAINTS = frozenset(
    {
        "ToBeDeletedByClusterAutoscaler",
        # Karpenter, since its version 1 and before.
        "karpenter.sh/disrupted",
        "karpenter.sh/disruption",
        # AWS: the node termination handler sets them right before it drains.
        "aws-node-termination-handler/spot-itn",
        "aws-node-termination-handler/scheduled-maintenance",
        "aws-node-termination-handler/asg-lifecycle-termination",
        "aws-node-termination-handler/rebalance-recommendation",
        # GKE: a machine that is preempted, or whose host is maintained.
        "cloud.google.com/impending-node-termination",
        # AKS: the automatic drain for scheduled events.
        "remediator.kubernetes.azure.com/unschedulable",
        # OpenShift's and others' node maintenance operator, for as long as it drains and maintains.
        "medik8s.io/drain",
        # The machine is off, says somebody, or the cloud.
        "node.kubernetes.io/out-of-service",
        "node.cloudprovider.kubernetes.io/shutdown",
    }
)
# Lifecycle conditions of KEP-5683. `Drained` is not among them: it may stay when a node is taken
# into service again, and until then the node is cordoned.
REMOVAL_CONDITIONS = frozenset(
    {"DrainInProgress", "MaintenanceInProgress", "GracefulNodeShutdownInProgress"}
)
PLANNED_CONDITION = "MaintenancePlanned"


def removal_reason(node: Node) -> str:
    """Why the node's pods will end soon, in words; empty if nothing says so."""
    if node.metadata.deletionTimestamp is not None:
        return "is being deleted"
    for taint in node.spec.taints:
        # With PreferNoSchedule they are candidates, and may be passed over.
        if taint.key in REMOVAL_TAINTS and taint.effect != "PreferNoSchedule":
            return f"is about to go (taint {taint.key})"
    for condition in node.status.conditions:
        if condition.type in REMOVAL_CONDITIONS and condition.status == "True":
            return f"is about to go (condition {condition.type})"
    return ""


def cordon_reason(node: Node) -> str:
    """Why the node is not for new sandboxes, though its pods may run on; empty if nothing does."""
    if node.spec.unschedulable:
        return "is cordoned or being drained"
    for condition in node.status.conditions:
        if condition.type == PLANNED_CONDITION and condition.status == "True":
            return f"is to be maintained (condition {condition.type})"
    return ""
