"""Reasons that only the bridge gives; those of the pool and of the claim are passed on."""

from enum import StrEnum


class BridgeReason(StrEnum):
    """Why a BatchSandbox is not served, or an event of the bridge."""

    PODS_READY = "PodsReady"
    # A request that cannot be served.
    REPLICAS_NOT_SUPPORTED = "ReplicasNotSupported"
    POOL_REF_REQUIRED = "PoolRefRequired"
    TASK_NOT_SUPPORTED = "TaskNotSupported"
    PAUSE_NOT_SUPPORTED = "PauseNotSupported"
    NAME_TAKEN = "NameTaken"
    CLAIM_REFUSED = "ClaimRefused"
    # The task in the sandbox.
    TASK_NOT_DELIVERED = "TaskNotDelivered"
    TASK_FAILED = "TaskFailed"
    # Events on a SandboxPool.
    LABEL_INVALID = "OpenSandboxLabelInvalid"
    OTHER_CONTROLLER = "OtherControllerActive"
    # Events on a BatchSandbox.
    EXPIRED = "Expired"
