"""Detects that the pods of a node will end soon, or that it takes no new pods.

The lists are short on purpose. Most taints only select which pods may run on a node and do not end
running pods, so sandboxes on such nodes remain allocatable. A NoExecute taint deletes pods at once
and needs no detection.
"""

from sandboxpool.api.core import Node

# The component that sets one of these taints removes the node's pods or the machine next. The
# cluster autoscaler's DeletionCandidateOfClusterAutoscaler is left out: it is often withdrawn.
REMOVAL_TAINTS = frozenset(
    {
        "ToBeDeletedByClusterAutoscaler",
        # Karpenter since version 1, and before.
        "karpenter.sh/disrupted",
        "karpenter.sh/disruption",
        # AWS: the node termination handler sets them right before it drains.
        "aws-node-termination-handler/spot-itn",
        "aws-node-termination-handler/scheduled-maintenance",
        "aws-node-termination-handler/asg-lifecycle-termination",
        "aws-node-termination-handler/rebalance-recommendation",
        # GKE: preemption of the machine or maintenance of its host.
        "cloud.google.com/impending-node-termination",
        # AKS: the automatic drain for scheduled events.
        "remediator.kubernetes.azure.com/unschedulable",
        # The node maintenance operator (also OpenShift's), during drain and maintenance.
        "medik8s.io/drain",
        # The machine is off, according to an administrator or the cloud provider.
        "node.kubernetes.io/out-of-service",
        "node.cloudprovider.kubernetes.io/shutdown",
    }
)
# Lifecycle conditions of KEP-5683. `Drained` is left out: it may remain after the node is back in
# service, and until then the node is cordoned.
REMOVAL_CONDITIONS = frozenset(
    {"DrainInProgress", "MaintenanceInProgress", "GracefulNodeShutdownInProgress"}
)
PLANNED_CONDITION = "MaintenancePlanned"


def removal_reason(node: Node) -> str:
    """Say why the node's pods will end soon; empty if there is no sign of it."""
    if node.metadata.deletionTimestamp is not None:
        return "is being deleted"
    for taint in node.spec.taints:
        # With PreferNoSchedule the node is only a candidate for removal.
        if taint.key in REMOVAL_TAINTS and taint.effect != "PreferNoSchedule":
            return f"is about to be removed (taint {taint.key})"
    for condition in node.status.conditions:
        if condition.type in REMOVAL_CONDITIONS and condition.status == "True":
            return f"is about to be removed (condition {condition.type})"
    return ""


def cordon_reason(node: Node) -> str:
    """Say why the node takes no new sandboxes though its pods keep running; empty if it does."""
    if node.spec.unschedulable:
        return "is cordoned or being drained"
    for condition in node.status.conditions:
        if condition.type == PLANNED_CONDITION and condition.status == "True":
            return f"is scheduled for maintenance (condition {condition.type})"
    return ""
