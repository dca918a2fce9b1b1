"""The reasons of conditions, events, metrics and logs.

A reason in a condition is the same in the logs and in the label matcher of an alert. No other
module spells a reason as a string.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why a condition has its status, an event was posted or a pod failed."""

    # Nothing is wrong.
    OK = "AsExpected"
    """Nothing is wrong."""

    # The RuntimeClass (condition RuntimeResolved).
    RUNTIME_CLASS_FOUND = "RuntimeClassFound"
    """The RuntimeClass exists, and its handler is the expected one."""
    RUNTIME_CLASS_NOT_FOUND = "RuntimeClassNotFound"
    """The RuntimeClass does not exist.

    Create the class, or correct `spec.runtimeClassName`. The pool then continues automatically.
    """
    HANDLER_MISMATCH = "HandlerMismatch"
    """The class's handler differs from `spec.expectedHandler`. No sandbox is created or allocated.

    Find out who changed the class, and correct one of the two.
    """
    RUNTIME_CHANGED = "RuntimeChanged"
    """The class was deleted and recreated, or the pool names another class. Warm sandboxes are
    being replaced; claimed ones are not.

    Decide about the claimed sandboxes: delete the claims that must not use the former runtime.
    """

    # The nodes (condition NodesServing).
    HANDLER_SERVED = "HandlerServed"
    """Nodes list the handler, and none is known to fail."""
    HANDLERS_UNKNOWN = "HandlersUnknown"
    """The nodes do not report their handlers, which needs Kubernetes 1.31 with containerd 2.0 or
    CRI-O 1.30. Whether the runtime works shows only when a sandbox or a probe starts.

    Upgrade the nodes, or accept that nodes without the handler are found by their failures.
    """
    SOME_NODES_NOT_SERVING = "SomeNodesNotServing"
    """Informational: some eligible nodes do not list the handler. New sandboxes avoid the nodes
    named."""
    NO_NODE_SERVES = "NoNodeServes"
    """No eligible node lists the handler. One sandbox stays pending meanwhile, so that an
    autoscaler can add a node.

    Configure the handler in containerd or CRI-O and restart it, or add nodes that have it.
    """
    NO_ELIGIBLE_NODE = "NoEligibleNode"
    """No node that is Ready and schedulable (not cordoned, about to be removed, or due for
    maintenance) matches the selectors, affinity and tolerations of class and template.

    Correct the constraints, or add nodes that match them.
    """
    EXCLUDED_BY_HOSTNAME = "ExcludedByHostname"
    """The operator is not permitted to label nodes, so sandboxes exclude nodes by hostname.
    Autoscalers such as Karpenter create no nodes for such pods.

    Set the chart's `nodes.exclusionLabels`, or grant the operator's service account `patch` on
    nodes.
    """
    EXCLUSION_PENDING = "ExclusionPending"
    """Sandboxes are created once the labels that exclude nodes are set on them; that takes moments.

    If it persists, read the operator's log: its requests to patch nodes fail.
    """
    NODE_QUARANTINED = "NodeQuarantined"
    """The operator's own probe fails on the nodes named; the message has the cause. Their warm
    sandboxes are replaced on other nodes.

    Fix the cause on the node. The operator probes again with exponential backoff (30 minutes at
    most), and uses the node again once a probe succeeds.
    """
    QUARANTINE_LIFTED = "QuarantineLifted"
    """Informational, an event: a probe succeeded on the node, which is used again."""
    NODE_AVOIDED = "NodeAvoided"
    """An event: the runtime fails this pool's sandboxes on the node and works for the probe. The
    pool does not use the node for half an hour.

    Compare the template with the node: its image, resources, volumes and security settings.
    """
    ALL_NODES_QUARANTINED = "AllNodesQuarantined"
    """Every eligible node that lists the handler is quarantined, for different causes. If all have
    the same cause, the reason is that cause.

    Fix the causes that the message names; the operator probes again.
    """
    AUTOSCALER_ADDS_WRONG_NODES = "AutoscalerAddsWrongNodes"
    """The autoscaler adds nodes for the pending sandbox that lack the handler.

    Set the class's `scheduling.nodeSelector` to the node group that has it.
    """
    HANDLER_REMOVED = "HandlerRemoved"
    """The node of the sandbox no longer lists the handler. Running processes continue, but `kubectl
    exec` and restarts of containers fail.

    Configure the handler on the node again, or delete the claim.
    """

    # Whether the runtime isolates (condition IsolationProven).
    ISOLATION_PROVEN = "IsolationProven"
    """A container was seen to run on another kernel than its node's, in every kind of node that was
    probed."""
    ISOLATION_NOT_PROVEN = "IsolationNotProven"
    """Sandboxes see the node's own kernel, and none is allocated.

    Correct the handler's configuration on the node, or set `isolationProof: None` if sharing the
    kernel is intended.
    """
    EVIDENCE_PENDING = "EvidencePending"
    """Informational: a probe is running or about to run."""
    EVIDENCE_UNAVAILABLE = "EvidenceUnavailable"
    """The probe got no answer; the message says why (image, quota, policy, no room). Sandboxes
    wait. After five minutes, if other nodes are proven, such a node counts as `unproven`: new
    sandboxes avoid it, and those that wait there are replaced one at a time. If no node is proven,
    sandboxes stay where they are.

    Remove the cause that the message names. Values under `probe` adapt probe pods to a cluster's
    policies.
    """
    PROBE_UNANSWERED = "ProbeUnanswered"
    """Sandboxes fail on a node on which no probe can run; the message has the cause (no capacity,
    quota, policy, image).

    Make room for the probe, or allow it: until then nobody knows whether the runtime is at fault.
    """
    PROBE_TERMINATING = "ProbeTerminating"
    """A probe pod is stuck in termination on its node and prevents other probes there.

    Check the node's kubelet and container runtime; delete the pod with `--force` if the node is
    lost.
    """
    PROOF_NOT_WANTED = "ProofNotWanted"
    """Informational: no pool of the class requires proof."""

    # The pod template (condition TemplateAccepted).
    TEMPLATE_ACCEPTED = "TemplateAccepted"
    """The API server accepts the pods of the pool, as a dry run shows."""
    TEMPLATE_REJECTED = "TemplateRejected"
    """The API server refuses the pods of the pool; the message is the API server's.

    Correct `spec.template`, or the policy that refuses it. The operator retries with exponential
    backoff, from one second to five minutes.
    """
    TEMPLATE_NOT_CHECKED = "TemplateNotChecked"
    """The API server has not answered yet, or what the template names (its class, ServiceAccount,
    PriorityClass) does not exist.

    Create what is missing. The operator retries.
    """
    POD_NAME_TOO_LONG = "PodNameTooLong"
    """The pool predates the limit on names: the names of its pods do not fit.

    Recreate it with a name of at most 52 characters.
    """
    POD_ALTERED = "PodAltered"
    """An admission plugin changes the labels, owner or RuntimeClass that the operator gives its
    pods; the message names the fields.

    Exempt these pods in the plugin.
    """
    NAMESPACE_TERMINATING = "NamespaceTerminating"
    """The namespace is being deleted: no more sandboxes are created in it."""

    # Whether labels and annotations of pods are protected from forgery (condition PodsGuarded).
    ADMISSION_POLICY_INSTALLED = "AdmissionPolicyInstalled"
    """An admission policy ensures that only the operator marks pods as sandboxes."""
    NO_ADMISSION_POLICY = "NoAdmissionPolicy"
    """Anyone who can create pods in the pool's namespace can pass one off as a sandbox.

    Install the chart's policies (docs/admission.md).
    """

    # Whether claimed sandboxes are protected from evictions (condition ClaimsProtected).
    BUDGET_KEPT = "DisruptionBudgetKept"
    """Informational: the PodDisruptionBudget that protects claimed sandboxes exists."""
    BUDGET_PENDING = "DisruptionBudgetPending"
    """Informational: the PodDisruptionBudget is about to be created."""
    BUDGET_CONFLICT = "DisruptionBudgetConflict"
    """A PodDisruptionBudget named `POOL-claims` exists that the operator does not own.

    Rename it.
    """
    BUDGET_REFUSED = "DisruptionBudgetRefused"
    """The operator is not permitted to write PodDisruptionBudgets, or a policy refuses this one.
    Drains evict claimed sandboxes.

    Grant the right, or exempt the budget.
    """

    # The warm stock (conditions Warm and UpToDate).
    AT_TARGET = "AtTarget"
    """As many sandboxes are warm as `spec.replicas` asks for."""
    SCALED_TO_ZERO = "ScaledToZero"
    """Informational: `spec.replicas` is 0."""
    FILLING = "Filling"
    """Informational: sandboxes are starting."""
    CLAMPED_BY_MAX_SANDBOXES = "ClampedByMaxSandboxes"
    """`spec.maxSandboxes` leaves room for fewer warm sandboxes than `spec.replicas`.

    Raise it, or wait until claims end: claimed and terminating sandboxes count too.
    """
    CEILING_HELD_BY_LOST_NODE = "CeilingHeldByLostNode"
    """`spec.maxSandboxes` is reached, and sandboxes on a lost node count towards it.

    Bring the node back, or delete the Node object and its pods.
    """
    PUT_ON_LOST_NODE = "PutOnLostNode"
    """The scheduler places sandboxes on nodes that are not Ready, because the template or the class
    tolerates it, such as with `operator: Exists` without a key.

    Tolerate specific taints only.
    """
    HELD_BY_LOST_NODES = "HeldByLostNodes"
    """So many sandboxes were placed on lost nodes that no more are created.

    Delete the Node objects of machines that are lost, and tolerate specific taints only.
    """
    QUOTA_EXCEEDED = "QuotaExceeded"
    """A ResourceQuota of the namespace refuses more pods.

    Raise the quota, or lower `spec.replicas`. The operator retries at least every half minute, and
    as soon as a sandbox of the namespace has ended.
    """
    PAUSED = "Paused"
    """Informational: `spec.paused` is true. No sandbox is created or deleted."""
    CREATE_FAILED = "CreateFailed"
    """The API server did not create a pod; the message is the API server's. The operator retries
    with backoff and checks the template again.

    Read the message: often an admission webhook or policy, or an overloaded API server.
    """
    CACHE_STALE = "CacheStale"
    """The operator's watch of pods has received nothing for two minutes, and no sandbox is created
    meanwhile.

    Read the operator's log: it has the cause.
    """
    ROLLING = "Rolling"
    """Informational: outdated sandboxes are being replaced."""
    WAITING_FOR_CLAIMS = "WaitingForClaims"
    """Informational: with `update.type: OnClaim`, outdated sandboxes wait to be claimed."""
    SANDBOX_WARM = "SandboxWarm"
    """At least one sandbox is warm: claims are served."""

    # A pod that does not start.
    SANDBOX_CREATE_FAILED = "SandboxCreateFailed"
    """The node's container runtime cannot create the sandbox; the message is the runtime's, with
    the node.

    Read the message, and the container runtime's log on the node.
    """
    SANDBOX_START_TIMEOUT = "SandboxStartTimeout"
    """The sandbox is not ready within `startup.timeoutSeconds`, and its conditions, containers and
    events name no cause; the message has the last event.

    Check the node's kubelet and the container runtime's log, or raise the timeout.
    """
    HANDLER_NOT_CONFIGURED = "HandlerNotConfigured"
    """The node's container runtime does not know the handler.

    Configure the handler in containerd or CRI-O on the node and restart it.
    """
    SHIM_MISSING = "ShimMissing"
    """The handler is configured, and its shim is not installed.

    Install the shim on the node, where the handler's configuration says.
    """
    OCI_RUNTIME_MISSING = "OCIRuntimeMissing"
    """The binary that the handler's configuration names is not installed.

    Install it on the node, or correct the path.
    """
    RUNTIME_MISCONFIGURED = "RuntimeMisconfigured"
    """The handler's configuration, its binaries, the node's kernel or its security modules are
    incompatible; the message names the program that reported it.

    Use compatible versions, and correct the handler's configuration.
    """
    GUEST_IMAGE_MISSING = "GuestImageMissing"
    """The guest's kernel or image is missing at the path in the handler's configuration.

    Install it there, or correct the path.
    """
    KVM_UNAVAILABLE = "KVMUnavailable"
    """The VMM cannot use KVM.

    Give the node `/dev/kvm`: enable (nested) virtualization and load the kernel module `kvm`.
    """
    VSOCK_UNAVAILABLE = "VsockUnavailable"
    """The VMM cannot use vsock.

    Load the kernel module `vhost_vsock` on the node.
    """
    CGROUP_DRIVER_MISMATCH = "CgroupDriverMismatch"
    """The kubelet, the container runtime and the handler do not use the same cgroup driver.

    Set the three to one driver, `systemd` or `cgroupfs`.
    """
    SNAPSHOTTER_MISSING = "SnapshotterMissing"
    """The snapshotter that the handler names is not set up, or its service does not run.

    Set it up (`kata-fc` needs devmapper or another block-device snapshotter) and restart
    containerd.
    """
    SNAPSHOTTER_FAILED = "SnapshotterFailed"
    """The snapshotter could not provide the sandbox's root filesystem.

    Check the snapshotter and its storage on the node.
    """
    VMM_START_FAILED = "VMMStartFailed"
    """The virtual machine monitor did not start.

    Read its messages in the container runtime's log on the node; `/dev/kvm` or a kernel module may
    be missing.
    """
    VM_START_TIMEOUT = "VMStartTimeout"
    """The virtual machine or its agent did not answer in time.

    Check that the node has hardware virtualization and free memory, also in `/dev/shm`.
    """
    VM_LOST = "VMLost"
    """The virtual machine exited while it started the sandbox.

    Look for an OOM-killed VMM in the node's kernel log; raise the pod's memory limit or the class's
    overhead.
    """
    SANDBOX_DIED = "SandboxDied"
    """The runtime exited while it started the sandbox.

    Look for an OOM-killed process in the node's kernel log; raise the pod's memory limit or the
    class's overhead.
    """
    NODE_RESOURCE_EXHAUSTED = "NodeResourceExhausted"
    """The node has run out of disk, memory, processes or file handles. This never counts against
    the runtime.

    Free some of it on the node, or raise the node's limits.
    """
    KUBELET_FAILED = "KubeletFailed"
    """The kubelet itself could not prepare the pod (its cgroup, its directories, `resolv.conf`).
    This never counts against the runtime.

    Check the node's kubelet, its log and its configuration.
    """
    RUNTIME_RESTARTING = "RuntimeRestarting"
    """The node's container runtime does not answer, as while it restarts. The kubelet retries.

    If it persists, start the container runtime on the node.
    """
    USER_NAMESPACES_UNSUPPORTED = "UserNamespacesUnsupported"
    """The template sets `hostUsers: false`, and the handler does not support user namespaces on the
    node.

    Remove `hostUsers` from the template, or use a runtime that supports user namespaces.
    """
    POD_NETWORK_FAILED = "PodNetworkFailed"
    """The network plugin (CNI) failed. This never counts against the runtime.

    Check the network plugin on the node.
    """
    EVICTED = "Evicted"
    """The kubelet evicted the sandbox, because the node ran short of the resource that the message
    names.

    Set requests and limits that match what sandboxes use.
    """
    REJECTED_BY_KUBELET = "RejectedByKubelet"
    """The node's kubelet rejected the pod that the scheduler had bound to it (`OutOfcpu`,
    `NodeAffinity`, `SysctlForbidden`, `UnexpectedAdmissionError`, ...); the message is the
    kubelet's.

    If it persists, the node's devices or sysctls do not match the template.
    """
    UNSCHEDULABLE = "Unschedulable"
    """The scheduler finds no node; the message is the scheduler's.

    Add capacity, or relax the template's constraints.
    """
    SCHEDULING_GATED = "SchedulingGated"
    """The pods have the scheduling gates named. The sandboxes are kept.

    The controller that set the gates has to remove them: check that it runs.
    """
    VOLUME_MOUNT_FAILED = "VolumeMountFailed"
    """A volume cannot be mounted; the message names it and what is missing. The sandboxes are kept:
    the kubelet retries, at intervals of up to two minutes.

    Create the Secret, ConfigMap or claim, or check the volume's driver.
    """
    IMAGE_PULL_FAILED = "ImagePullFailed"
    """An image cannot be pulled. The kubelet retries; after a minute replacements are created on
    nodes without the failure (event `NodeAvoided`), unless every node has it.

    Correct the image or the pull secret, or give the node access to the registry.
    """
    CONTAINER_CONFIG_ERROR = "ContainerConfigError"
    """A container cannot be configured, as when a ConfigMap or Secret that it names is missing. The
    kubelet retries.

    Create what the message names, or correct the template.
    """
    CONTAINER_START_ERROR = "ContainerStartError"
    """A container could not be created or started.

    Check its command and its image.
    """
    CONTAINER_FAILED = "ContainerFailed"
    """A container of the sandbox exited; the message has its exit code.

    A sandbox has to keep running until it is deleted: correct its program.
    """
    INIT_CONTAINER_RUNNING = "InitContainerRunning"
    """The init container named has not ended.

    Find out what it waits for. A sidecar needs `restartPolicy: Always`.
    """
    LIFECYCLE_HOOK_FAILED = "LifecycleHookFailed"
    """The postStart hook of the container named failed, and the kubelet killed the container.

    Correct the hook: its output is in the kubelet's log only.
    """
    STARTUP_PROBE_FAILING = "StartupProbeFailing"
    """The startup probe of the container named fails; the message has its result.

    Correct the probe or the program, or raise `startup.timeoutSeconds`.
    """
    READINESS_PROBE_FAILING = "ReadinessProbeFailing"
    """The readiness probe of the container named fails; the message has its result.

    Correct the probe or the program, or raise `startup.timeoutSeconds`.
    """
    LIVENESS_PROBE_FAILING = "LivenessProbeFailing"
    """The liveness probe of the container named fails; the message has its result.

    Correct the probe or the program, or raise `startup.timeoutSeconds`.
    """
    POD_FAILED = "PodFailed"
    """The pod has failed; the message has the kubelet's reason.

    Read the message and the logs of the sandbox.
    """

    # The pool as a whole.
    INVALID_OBJECT = "InvalidObject"
    """The stored object violates its schema, as after an upgrade of the CRDs. Nothing is created,
    deleted or allocated for it; the message names the field.

    Correct the field.
    """

    # Claims.
    BOUND = "SandboxBound"
    """The claim is bound to a sandbox."""
    STARTING_COLD = "StartingCold"
    """Informational: with `onEmpty: Create`, a sandbox is starting for the claim."""
    BINDING_REFUSED = "BindingRefused"
    """A policy refuses the metadata that the claim puts on its pod; the message is the API
    server's. The operator retries with backoff, and other claims get the sandbox meanwhile.

    Correct the claim's `spec.metadata`, or the policy.
    """
    POOL_NOT_FOUND = "PoolNotFound"
    """The namespace has no pool of that name. The claim waits until it is created or until
    `bindTimeoutSeconds`.

    Correct `spec.poolName`, or create the pool: claims get sandboxes of their own namespace only.
    """
    RUNTIME_CLASS_MISMATCH = "RuntimeClassMismatch"
    """The claim asserts another class than the pool's.

    Claim from another pool, or correct `spec.runtimeClassName` of the claim.
    """
    ISOLATION_PROOF_MISMATCH = "IsolationProofMismatch"
    """The claim asserts more proof than the pool requires.

    Claim from a pool with more proof, or have `isolationProof` of the pool raised.
    """
    METADATA_NOT_ALLOWED = "MetadataNotAllowed"
    """A key of `spec.metadata` is outside `claims.allowedMetadataPrefixes` of the pool, or the
    template sets it.

    Remove the key, or have its domain allowed in the pool.
    """
    CONFIG_NOT_MOUNTED = "ConfigNotMounted"
    """The claim has a `config`. Failed: the pool has `claims.configPath: ""`. Pending: the next
    warm sandbox was made without the volume; the pool replaces it, with `update.type: OnClaim` only
    once it is claimed.

    Set `claims.configPath` in the pool, or remove the claim's `config`.
    """
    NO_WARM_SANDBOX = "NoWarmSandbox"
    """`onEmpty: Fail`, and no sandbox is warm.

    Retry later, use `onEmpty: Wait`, or raise `replicas` of the pool.
    """
    MAX_SANDBOXES_REACHED = "MaxSandboxesReached"
    """`onEmpty: Create` is queued: the pool has `maxSandboxes` sandboxes.

    Wait until claims end, or raise `maxSandboxes`.
    """
    MAX_STARTING_REACHED = "MaxStartingReached"
    """`onEmpty: Create` is queued: `startup.maxStarting` sandboxes of the pool are starting.

    Wait. A higher value is rarely faster.
    """
    BIND_TIMEOUT = "BindTimeout"
    """No sandbox became available in time; the message includes the pool's.

    Follow the pool's message, raise `replicas`, or wait longer (`bindTimeoutSeconds`).
    """
    TTL_EXPIRED = "TTLExpired"
    """The claim's time to live has passed, and its sandbox was deleted.

    Raise `ttlSeconds` of the claim while it is bound; `claims.maxTTLSeconds` of the pool is the
    limit.
    """

    # A claimed sandbox that has ended or is terminating. Where Kubernetes' condition
    # DisruptionTarget or the kubelet has a reason, it is the same.
    EVICTION_BY_EVICTION_API = "EvictionByEvictionAPI"
    """A drain, an autoscaler or a descheduler evicted the sandbox.

    Set `claims.disruption: Protect` in the pool.
    """
    PREEMPTION_BY_SCHEDULER = "PreemptionByScheduler"
    """A pod of higher priority preempted the sandbox.

    Set a `priorityClassName` in the template.
    """
    PREEMPTION_BY_KUBELET = "PreemptionByKubelet"
    """A critical pod of its node preempted the sandbox."""
    DELETION_BY_TAINT_MANAGER = "DeletionByTaintManager"
    """A `NoExecute` taint removed the sandbox: its node was not ready or unreachable, or was
    tainted by someone.

    Add tolerations with `tolerationSeconds` to the template.
    """
    DELETION_BY_POD_GC = "DeletionByPodGC"
    """The node of the sandbox was removed, and the pod with it."""
    DISRUPTED = "Disrupted"
    """Another controller disrupted the sandbox; the message is that controller's."""
    NODE_SHUTDOWN = "NodeShutdown"
    """The node of the sandbox was shut down."""
    NODE_LOST = "NodeLost"
    """The node of the sandbox was removed."""
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    """The sandbox reached `activeDeadlineSeconds` of the template.

    Remove the field, or raise it; `ttlSeconds` of claims limits their lifetime.
    """
    OOM_KILLED = "OOMKilled"
    """The sandbox exceeded its memory limit.

    Raise the memory limit in the template.
    """
    CONTAINERS_EXITED = "ContainersExited"
    """The program of the sandbox exited; the message has the exit code.

    A sandbox has to keep running until its claim is deleted.
    """
    POD_DELETED = "PodDeleted"
    """Somebody deleted the pod.

    The API server's audit log shows who.
    """
    POD_LOST = "PodLost"
    """The pod disappeared, and its end was not observed."""

    # The sandbox of a claim.
    POD_RESTARTED = "PodRestarted"
    """A container of the claimed sandbox was restarted: the state in it is lost.

    Leave `restartPolicy` at its default, `Never`, if that must not happen.
    """
    POD_READY = "PodReady"
    """The claimed sandbox is ready."""
    POD_NOT_READY = "PodNotReady"
    """The sandbox was ready and its readiness probe fails now; the message has the probe's result.
    An unclaimed one is replaced after a minute.

    Correct the probe or the program.
    """

    # Actions of the operator (events).
    SANDBOX_REPLACED = "SandboxReplaced"
    """A sandbox is replaced. If it recurs, the scheduler places sandboxes on nodes that are
    cordoned or about to be removed, because the template or the class tolerates it.

    Tolerate specific taints only, not `operator: Exists` without a key.
    """
