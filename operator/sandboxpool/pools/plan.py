"""The input and the output of a pool's decision. Pure."""

from dataclasses import dataclass, field
from enum import Enum

from sandboxpool.api.conditions import ConditionResult
from sandboxpool.api.reasons import Reason
from sandboxpool.api.v1alpha1 import SandboxPoolSpec
from sandboxpool.runtimes.node_constraints import NodeConstraints
from sandboxpool.runtimes.quarantine import Quarantine
from sandboxpool.runtimes.resolve import Resolution
from sandboxpool.runtimes.verdict import Verdict
from sandboxpool.sandboxes.members import Member, Members


class TemplateState(Enum):
    """The outcome of the server-side dry run."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, slots=True)
class TemplateCheckResult:
    """The result of the dry run for the current template and class.

    Attributes:
        state: whether the template is accepted.
        reason: the reason of the condition TemplateAccepted.
        message: its message.
        node_constraints: the node constraints of the pod as admission left it; None if unknown.
    """

    state: TemplateState
    reason: Reason
    message: str
    node_constraints: NodeConstraints | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class CreateBackoff:
    """The delay of creates after failures.

    Attributes:
        failures: the number of consecutive failed reconciles.
        until: epoch seconds before which no pod is created.
        reason: the reason of the last failure.
        message: the message of the last failure.
    """

    failures: int = 0
    until: float = 0.0
    reason: Reason = Reason.OK
    message: str = ""


@dataclass(frozen=True, slots=True)
class PoolInput:
    """Everything that the decision depends on.

    Attributes:
        revision: the current revision of the template.
        hostnames_since: epoch seconds since when new pods exclude the same hostnames; 0 where nodes
            are excluded by label.
        quarantines: the quarantines of the verdict's quarantined nodes.
        creating: the number of expected pods of the stock that are not observed yet.
        creating_cold: the number of expected pods for claims that are not observed yet.
        claim_queue: the waiting claims in their order: whether each requests a cold start.
        stuck_nodes: nodes on which sandboxes of this pool were recently stuck.
        preempted: uids of pods that are preempted by a probe; they are not replaced yet.
        awaits_probe: whether creates wait, because a new pod would take the probe's room.
        guarded: whether the admission policy protects the operator's metadata on the pool's pods.
        now: seconds since the epoch, by the API server's clock.
        clock: seconds of the operator's monotonic clock.
        cache_stale: whether the pod cache is too old to create pods.
        slow_seconds: a start that takes longer than this is slow for the pool.
        pending_event_reads: uids of the pods whose events are being read.
        budget_condition: the condition of the PodDisruptionBudget over the claimed sandboxes; None
            without a budget.
    """

    spec: SandboxPoolSpec
    revision: str
    resolution: Resolution
    verdict: Verdict
    hostnames_since: float
    template: TemplateCheckResult
    members: Members
    quarantines: tuple[tuple[str, Quarantine], ...]
    creating: int
    creating_cold: int
    claim_queue: tuple[bool, ...]
    stuck_nodes: frozenset[str]
    backoff: CreateBackoff
    guarded: bool
    now: float
    clock: float
    cache_stale: bool = False
    slow_seconds: float = 10.0
    pending_event_reads: frozenset[str] = frozenset()
    preempted: frozenset[str] = frozenset()
    awaits_probe: bool = False
    budget_condition: ConditionResult | None = None


@dataclass(frozen=True, slots=True)
class Deletion:
    """A pod to delete, and why.

    Attributes:
        failed: whether the deletion counts as a failure, which delays the next creates.
    """

    member: Member
    reason: Reason
    message: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """What to do now.

    Attributes:
        target: the desired number of warm sandboxes: replicas, clamped by maxSandboxes.
        create: how many pods to create for the stock.
        delete: the pods to delete.
        blocked_by: why fewer pods are created than are missing; None if none are missing then.
        requeue_at: epoch seconds at which time alone may change the decision; None for never.
        cold: how many cold starts to make, for the first claims that request one.
        cold_blocked_by: why not all requested cold starts are made; None if all are.
        stuck_nodes: nodes on which sandboxes of this pool are stuck now.
        avoid: the nodes that the pool's next sandboxes avoid, and why.
        awaits_probe: whether pending pods are deleted because they would take a probe's room.
    """

    target: int
    create: int
    delete: tuple[Deletion, ...]
    blocked_by: Reason | None
    requeue_at: float | None
    cold: int = 0
    cold_blocked_by: Reason | None = None
    stuck_nodes: frozenset[str] = frozenset()
    avoid: tuple[tuple[str, str], ...] = ()
    awaits_probe: bool = False


def outdated(member: Member, given: PoolInput) -> bool:
    """Whether the pod has an older revision of the template, or another overhead of its class.

    The result is the same for all members of a group, as is that of `of_other_runtime`.
    """
    runtime = given.resolution.runtime
    return member.revision != given.revision or (
        runtime is not None
        and member.runtime_uid == runtime.uid
        and member.overhead != runtime.overhead
    )


def of_other_runtime(member: Member, given: PoolInput) -> bool:
    """Whether the pod has another RuntimeClass than the pool now: it must never be allocated."""
    runtime = given.resolution.runtime
    return runtime is not None and (
        member.runtime_uid != runtime.uid or member.class_name != runtime.class_name
    )
