"""What a pool's decision depends on, and what it says. Pure."""

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
    """What the API server's dry run said."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, slots=True)
class TemplateCheckResult:
    """The dry run's outcome, for the template and class of this moment.

    Attributes:
        placement: what limits the nodes of the pods that came back; None if none did.
    """

    state: TemplateState
    reason: Reason
    message: str
    placement: NodeConstraints | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class CreateBackoff:
    """Why creating is held off for a while.

    Attributes:
        failures: how many rounds failed in a row, without a success between.
        until: epoch seconds before which nothing is created.
        reason: of the last failure.
        message: of the last failure.
    """

    failures: int = 0
    until: float = 0.0
    reason: Reason = Reason.OK
    message: str = ""


@dataclass(frozen=True, slots=True)
class PoolInput:
    """Everything that the decision depends on.

    Attributes:
        revision: the template's revision now.
        hostnames_since: epoch seconds since when pods name the hostnames that they name now; 0
            where they name none, because nodes are labelled.
        quarantines: the quarantines of the nodes that the verdict calls quarantined.
        creating: pods that were asked for and are not yet seen.
        creating_cold: the same, for claims: they are not of the stock.
        line: the claims that wait, the first in line at the front: whether each wants a sandbox to
            be started for it.
        stuck_nodes: nodes on which sandboxes of this pool were stuck of late.
        giving_way: uids of its pods that make room for a probe, or have done so: their places are
            not to be taken yet.
        awaits_probe: nothing is to be made meanwhile, for it would take the place of a probe.
        guarded: an admission policy lets nobody else forge what stands on the pool's pods.
        now: seconds since the epoch, by the API server's clock.
        clock: seconds of our own monotonic clock.
        blind: the cache of pods is too old to create anything by.
        slow_seconds: a start that takes longer than this is slow for the pool.
        pending_event_reads: uids of the pods whose events are just being read.
        budget_condition: the condition of the budget over its claimed sandboxes; None if it has
            none.
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
        failed: it goes because it did not work, so the next ones are made with care.
    """

    member: Member
    reason: Reason
    message: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """What to do now.

    Attributes:
        target: how many warm sandboxes are aimed at: replicas, clamped by maxSandboxes.
        create: how many pods to create.
        delete: the pods to delete.
        held: why fewer are created than are missing; None if nothing holds.
        requeue_at: epoch seconds at which the answer may change by itself; None for never.
        cold: for how many of the claims that want it a pod is to be created, the first in line.
        cold_blocked_by: why not for all of them; None if for all.
        stuck_nodes: nodes on which sandboxes of this pool are stuck now.
        avoid: the nodes that its next sandboxes shall keep away from, and why.
        awaits_probe: pods go that wait for room, because they would take the place of a probe.
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
    """The pod is of an older template, or was made with another overhead of its class.

    The same for all of its kind, as is `foreign`.
    """
    runtime = given.resolution.runtime
    return member.revision != given.revision or (
        runtime is not None
        and member.runtime_uid == runtime.uid
        and member.overhead != runtime.overhead
    )


def of_other_runtime(member: Member, given: PoolInput) -> bool:
    """The pod is of another class than the pool's of now: it must never be handed out."""
    runtime = given.resolution.runtime
    return runtime is not None and (
        member.runtime_uid != runtime.uid or member.class_name != runtime.class_name
    )
