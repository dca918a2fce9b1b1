"""The reasons of conditions, events, metrics and logs.

A reason in a condition is the same in the logs and in the label matcher of an alert. No other
module spells a reason as a string.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why a condition has its status, an event was posted or a pod failed."""

    # Nothing is wrong.
    OK = "AsExpected"

    # The RuntimeClass (condition RuntimeResolved).
    RUNTIME_CLASS_FOUND = "RuntimeClassFound"
    RUNTIME_CLASS_NOT_FOUND = "RuntimeClassNotFound"
    HANDLER_MISMATCH = "HandlerMismatch"
    RUNTIME_CHANGED = "RuntimeChanged"

    # The nodes (condition NodesServing).
    HANDLER_SERVED = "HandlerServed"
    HANDLERS_UNKNOWN = "HandlersUnknown"
    SOME_NODES_NOT_SERVING = "SomeNodesNotServing"
    NO_NODE_SERVES = "NoNodeServes"
    NO_ELIGIBLE_NODE = "NoEligibleNode"
    EXCLUDED_BY_HOSTNAME = "ExcludedByHostname"
    EXCLUSION_PENDING = "ExclusionPending"
    NODE_QUARANTINED = "NodeQuarantined"
    QUARANTINE_LIFTED = "QuarantineLifted"
    NODE_AVOIDED = "NodeAvoided"
    ALL_NODES_QUARANTINED = "AllNodesQuarantined"
    AUTOSCALER_ADDS_WRONG_NODES = "AutoscalerAddsWrongNodes"
    HANDLER_REMOVED = "HandlerRemoved"

    # Whether the runtime isolates (condition IsolationProven).
    ISOLATION_PROVEN = "IsolationProven"
    ISOLATION_NOT_PROVEN = "IsolationNotProven"
    EVIDENCE_PENDING = "EvidencePending"
    EVIDENCE_UNAVAILABLE = "EvidenceUnavailable"
    PROBE_UNANSWERED = "ProbeUnanswered"
    PROBE_TERMINATING = "ProbeTerminating"
    PROOF_NOT_WANTED = "ProofNotWanted"

    # The pod template (condition TemplateAccepted).
    TEMPLATE_ACCEPTED = "TemplateAccepted"
    TEMPLATE_REJECTED = "TemplateRejected"
    TEMPLATE_NOT_CHECKED = "TemplateNotChecked"
    POD_NAME_TOO_LONG = "PodNameTooLong"
    POD_ALTERED = "PodAltered"
    NAMESPACE_TERMINATING = "NamespaceTerminating"

    # Whether labels and annotations of pods are protected from forgery (condition PodsGuarded).
    ADMISSION_POLICY_INSTALLED = "AdmissionPolicyInstalled"
    NO_ADMISSION_POLICY = "NoAdmissionPolicy"

    # Whether claimed sandboxes are protected from evictions (condition ClaimsProtected).
    BUDGET_KEPT = "DisruptionBudgetKept"
    BUDGET_PENDING = "DisruptionBudgetPending"
    BUDGET_CONFLICT = "DisruptionBudgetConflict"
    BUDGET_REFUSED = "DisruptionBudgetRefused"

    # The warm stock (conditions Warm and UpToDate).
    AT_TARGET = "AtTarget"
    SCALED_TO_ZERO = "ScaledToZero"
    FILLING = "Filling"
    CLAMPED_BY_MAX_SANDBOXES = "ClampedByMaxSandboxes"
    CEILING_HELD_BY_LOST_NODE = "CeilingHeldByLostNode"
    PUT_ON_LOST_NODE = "PutOnLostNode"
    HELD_BY_LOST_NODES = "HeldByLostNodes"
    QUOTA_EXCEEDED = "QuotaExceeded"
    PAUSED = "Paused"
    CREATE_FAILED = "CreateFailed"
    CACHE_STALE = "CacheStale"
    ROLLING = "Rolling"
    WAITING_FOR_CLAIMS = "WaitingForClaims"
    SANDBOX_WARM = "SandboxWarm"

    # A pod that does not start.
    SANDBOX_CREATE_FAILED = "SandboxCreateFailed"
    SANDBOX_START_TIMEOUT = "SandboxStartTimeout"
    HANDLER_NOT_CONFIGURED = "HandlerNotConfigured"
    SHIM_MISSING = "ShimMissing"
    OCI_RUNTIME_MISSING = "OCIRuntimeMissing"
    RUNTIME_MISCONFIGURED = "RuntimeMisconfigured"
    GUEST_IMAGE_MISSING = "GuestImageMissing"
    KVM_UNAVAILABLE = "KVMUnavailable"
    VSOCK_UNAVAILABLE = "VsockUnavailable"
    CGROUP_DRIVER_MISMATCH = "CgroupDriverMismatch"
    SNAPSHOTTER_MISSING = "SnapshotterMissing"
    SNAPSHOTTER_FAILED = "SnapshotterFailed"
    VMM_START_FAILED = "VMMStartFailed"
    VM_START_TIMEOUT = "VMStartTimeout"
    VM_LOST = "VMLost"
    SANDBOX_DIED = "SandboxDied"
    NODE_RESOURCE_EXHAUSTED = "NodeResourceExhausted"
    KUBELET_FAILED = "KubeletFailed"
    RUNTIME_RESTARTING = "RuntimeRestarting"
    USER_NAMESPACES_UNSUPPORTED = "UserNamespacesUnsupported"
    POD_NETWORK_FAILED = "PodNetworkFailed"
    EVICTED = "Evicted"
    REJECTED_BY_KUBELET = "RejectedByKubelet"
    UNSCHEDULABLE = "Unschedulable"
    SCHEDULING_GATED = "SchedulingGated"
    VOLUME_MOUNT_FAILED = "VolumeMountFailed"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CONTAINER_CONFIG_ERROR = "ContainerConfigError"
    CONTAINER_START_ERROR = "ContainerStartError"
    CONTAINER_FAILED = "ContainerFailed"
    INIT_CONTAINER_RUNNING = "InitContainerRunning"
    LIFECYCLE_HOOK_FAILED = "LifecycleHookFailed"
    STARTUP_PROBE_FAILING = "StartupProbeFailing"
    READINESS_PROBE_FAILING = "ReadinessProbeFailing"
    LIVENESS_PROBE_FAILING = "LivenessProbeFailing"
    POD_FAILED = "PodFailed"

    # The pool as a whole.
    INVALID_OBJECT = "InvalidObject"

    # Claims.
    BOUND = "SandboxBound"
    STARTING_COLD = "StartingCold"
    BINDING_REFUSED = "BindingRefused"
    POOL_NOT_FOUND = "PoolNotFound"
    RUNTIME_CLASS_MISMATCH = "RuntimeClassMismatch"
    ISOLATION_PROOF_MISMATCH = "IsolationProofMismatch"
    METADATA_NOT_ALLOWED = "MetadataNotAllowed"
    CONFIG_NOT_MOUNTED = "ConfigNotMounted"
    NO_WARM_SANDBOX = "NoWarmSandbox"
    MAX_SANDBOXES_REACHED = "MaxSandboxesReached"
    MAX_STARTING_REACHED = "MaxStartingReached"
    BIND_TIMEOUT = "BindTimeout"
    TTL_EXPIRED = "TTLExpired"

    # A claimed sandbox that has ended or is terminating. Where Kubernetes' condition
    # DisruptionTarget or the kubelet has a reason, it is the same.
    EVICTION_BY_EVICTION_API = "EvictionByEvictionAPI"
    PREEMPTION_BY_SCHEDULER = "PreemptionByScheduler"
    PREEMPTION_BY_KUBELET = "PreemptionByKubelet"
    DELETION_BY_TAINT_MANAGER = "DeletionByTaintManager"
    DELETION_BY_POD_GC = "DeletionByPodGC"
    DISRUPTED = "Disrupted"
    NODE_SHUTDOWN = "NodeShutdown"
    NODE_LOST = "NodeLost"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    OOM_KILLED = "OOMKilled"
    CONTAINERS_EXITED = "ContainersExited"
    POD_DELETED = "PodDeleted"
    POD_LOST = "PodLost"

    # The sandbox of a claim.
    POD_RESTARTED = "PodRestarted"
    POD_READY = "PodReady"
    POD_NOT_READY = "PodNotReady"

    # Actions of the operator (events).
    SANDBOX_REPLACED = "SandboxReplaced"
