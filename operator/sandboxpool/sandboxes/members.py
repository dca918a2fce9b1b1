"""Classifies the pods of a pool: each has exactly one state."""

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from sandboxpool.api import names
from sandboxpool.api.core import Pod
from sandboxpool.api.reasons import Reason
from sandboxpool.api.times import epoch
from sandboxpool.cluster.ownership import claim_uid_of
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.runtimes.diagnosis import Failure, diagnose, truncate
from sandboxpool.runtimes.host_state import HostState
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.podevents import PodEvents, no_cause_message


@dataclass(frozen=True, slots=True)
class Member:
    """A pod as the pool's decision sees it.

    Attributes:
        version: the pod's resourceVersion.
        created: the creation time, in epoch seconds.
        since: when the pod was first observed with its current state, node and kind of failure
            (self-healing or not), in seconds of the operator's clock.
        ready: whether the pod is Ready.
        ready_since: since when the pod has been observed ready, in seconds of the operator's clock;
            None if it is not ready.
        was_ready: whether the pod was ever observed ready.
        host_state: the pod's node and the state of the runtime there.
        overhead: the overhead that the class added to the pod.
        failure: why the pod is not ready; None if unknown.
        revision: the template's revision that the pod was created from.
        class_name: the pod's RuntimeClass.
        runtime_uid: the uid of the RuntimeClass that the pod was created from.
        no_cause_message: says that no failure was found, and what was checked; empty if there is a
            failure, or if the pod's events were not read.
        acknowledged: whether the kubelet has reported a status of the pod.
        misplaced: whether the pod has been stranded since before it was first ready: the scheduler
            chose an unsuitable node, and may do so again.
    """

    name: str
    uid: str
    version: str
    state: SandboxState
    created: float
    since: float
    ready: bool
    ready_since: float | None
    was_ready: bool
    node_name: str
    host_state: HostState
    overhead: tuple[tuple[str, str], ...]
    failure: Failure | None
    revision: str
    class_name: str
    runtime_uid: str
    no_cause_message: str = ""
    acknowledged: bool = True
    misplaced: bool = False

    @property
    def node(self) -> NodeFacts | None:
        """The pod's node; None if the pod has none, or if the node is not in the cache."""
        return self.host_state.node

    @property
    def group_key(self) -> "GroupKey":
        """The state, and what the pod was created from."""
        return self.state, self.revision, self.class_name, self.runtime_uid, self.overhead

    @property
    def unclaimed(self) -> bool:
        """Whether the pod belongs to the pool and to no claim, and is not terminating."""
        return self.state not in (
            SandboxState.COLD,
            SandboxState.CLAIMED,
            SandboxState.ENDED,
            SandboxState.STOPPING,
        )

    @property
    def in_stock(self) -> bool:
        """Whether the pod counts towards the target."""
        return self.state in STOCK


UNREADY_TEXT = "it is no longer ready: its readiness probe fails"

# The states that count towards the target: warm, or may become warm.
STOCK = (SandboxState.STARTING, SandboxState.WARM, SandboxState.UNREADY, SandboxState.UNPROVEN)

GroupKey = tuple[SandboxState, str, str, str, tuple[tuple[str, str], ...]]


def is_ready_on_host(pod: Pod, host_state: HostState) -> bool:
    """Whether a pod is ready on an allocatable host with the isolation proof that it requires."""
    return (
        pod.ready
        and pod.metadata.deletionTimestamp is None
        and host_state.allocatable
        and host_state.isolation_proven
    )


def classify_pod(
    pod: Pod,
    *,
    host_state: HostState,
    sandbox_event: str | None,
    deleting: bool,
    being_bound: bool,
    pod_events: PodEvents | None = None,
    previous: Member | None = None,
    clock: float = 0.0,
) -> Member:
    """Classify one pod.

    Args:
        pod: the pod, from the cache.
        host_state: the state of the pod's host.
        sandbox_event: the message of its last FailedCreatePodSandBox event.
        deleting: whether the operator has requested its deletion.
        being_bound: whether the pod is allocated, though the cache may not show it yet.
        pod_events: the result of the last read of its events, if any.
        previous: the last classification, if any; only it knows that the pod was ready before.
        clock: seconds of the operator's monotonic clock.
    """
    metadata = pod.metadata
    was_ready = pod.ready or (previous is not None and previous.was_ready)
    ready_before = previous.was_ready if previous is not None else pod.ready
    if deleting or metadata.deletionTimestamp is not None:
        # A terminating pod that has ended uses no resources of its node any more.
        state = SandboxState.ENDED if pod.finished else SandboxState.STOPPING
    elif being_bound or claim_uid_of(pod) is not None:
        state = _claimed_state(pod, was_ready=was_ready)
    else:
        state = _stock_state(pod, host_state, was_ready=was_ready)
    failure = _failure(pod, state, sandbox_event, pod_events)
    stage = state, pod.spec.nodeName, _is_self_healing(failure)
    since = previous.since if previous is not None and _stage(previous) == stage else clock
    ready_since = None
    if pod.ready:
        known = previous.ready_since if previous is not None else None
        ready_since = clock if known is None else known
    return Member(
        name=metadata.name,
        uid=metadata.uid,
        version=metadata.resourceVersion,
        state=state,
        created=epoch(metadata.creationTimestamp),
        since=since,
        ready=pod.ready,
        ready_since=ready_since,
        was_ready=was_ready,
        node_name=pod.spec.nodeName,
        host_state=host_state,
        overhead=tuple(sorted(pod.spec.overhead.items())),
        failure=failure,
        no_cause_message=no_cause_message(pod_events)
        if failure is None and pod_events is not None
        else "",
        revision=metadata.labels.get(names.LABEL_REVISION, ""),
        class_name=pod.spec.runtimeClassName,
        runtime_uid=metadata.annotations.get(names.ANNOTATION_RUNTIME_UID, ""),
        acknowledged=_is_acknowledged(pod),
        misplaced=state is SandboxState.STRANDED
        and (not ready_before or (previous is not None and previous.misplaced)),
    )


_MAY_FAIL = (
    SandboxState.STARTING,
    SandboxState.UNREADY,
    SandboxState.STRANDED,
    SandboxState.FAILED,
    SandboxState.COLD,
)


def _is_acknowledged(pod: Pod) -> bool:
    status = pod.status
    return bool(status.podIP or status.containerStatuses or status.initContainerStatuses)


def _failure(
    pod: Pod, state: SandboxState, sandbox_event: str | None, pod_events: PodEvents | None
) -> Failure | None:
    if state not in _MAY_FAIL:
        return None
    failure = diagnose(pod, sandbox_event, pod_events)
    if state is SandboxState.UNREADY and (failure is None or failure.from_events):
        text = f"{UNREADY_TEXT}: {failure.message}" if failure is not None else UNREADY_TEXT
        return Failure(Reason.POD_NOT_READY, truncate(text), pod.spec.nodeName)
    return failure


def _is_self_healing(failure: Failure | None) -> bool:
    return failure is not None and failure.self_healing


def _stage(member: Member) -> tuple[SandboxState, str, bool]:
    return member.state, member.node_name, _is_self_healing(member.failure)


def _claimed_state(pod: Pod, *, was_ready: bool) -> SandboxState:
    if pod.finished:
        return SandboxState.ENDED
    # A running cold pod counts as started: a restarted operator does not know if it was ready.
    is_cold = pod.metadata.annotations.get(names.ANNOTATION_SOURCE) == "Cold"
    return (
        SandboxState.COLD if is_cold and not was_ready and not pod.running else SandboxState.CLAIMED
    )


def _stock_state(pod: Pod, host_state: HostState, *, was_ready: bool) -> SandboxState:
    if pod.finished:
        return SandboxState.FAILED
    if pod.spec.nodeName and not host_state.allocatable:
        return SandboxState.STRANDED
    if not pod.ready:
        return SandboxState.UNREADY if was_ready else SandboxState.STARTING
    return SandboxState.WARM if host_state.isolation_proven else SandboxState.UNPROVEN


def _age_key(member: Member) -> tuple[float, str, str]:
    return (*oldest_first(member), member.uid)


def oldest_first(member: Member) -> tuple[float, str]:
    """Sort key: creation, then name, so that equal ages have a stable order."""
    return member.created, member.name


class Members:
    """The pods of a pool, grouped by state and by what they were created from.

    A large pool has few groups, so queries over groups do not depend on the number of pods.
    """

    def __init__(self, members: Iterable[Member] = ()) -> None:
        self._groups: dict[GroupKey, dict[str, Member]] = {}
        # The warm members, the oldest first.
        self._ages: list[tuple[float, str, str]] = []
        self._warm: dict[str, Member] = {}
        for member in members:
            self.put(member)

    def __iter__(self) -> Iterator[Member]:
        return chain.from_iterable(group.values() for group in self._groups.values())

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def put(self, member: Member) -> None:
        """Add a new member."""
        self._groups.setdefault(member.group_key, {})[member.uid] = member
        if member.state is SandboxState.WARM:
            self._warm[member.uid] = member
            insort(self._ages, _age_key(member))

    def remove(self, member: Member) -> None:
        """Remove an existing member."""
        group = self._groups[member.group_key]
        del group[member.uid]
        if not group:
            del self._groups[member.group_key]
        if self._warm.pop(member.uid, None) is not None:
            del self._ages[bisect_left(self._ages, _age_key(member))]

    def warm_by_age(self) -> Iterator[Member]:
        """The warm members, the oldest first; the iterator is lazy."""
        return (self._warm[uid] for _, _, uid in self._ages)

    def count(self, *states: SandboxState) -> int:
        """The number of members in any of these states."""
        return sum(len(group) for kind, group in self._groups.items() if kind[0] in states)

    def of(self, *states: SandboxState) -> Iterator[Member]:
        """The members in any of these states."""
        return self.where(lambda member: member.state in states)

    def where(self, predicate: Callable[[Member], bool]) -> Iterator[Member]:
        """The members for which a predicate holds that is the same for all of a group."""
        groups = list(self._groups.values())
        return chain.from_iterable(g.values() for g in groups if predicate(next(iter(g.values()))))

    def only(self, *states: SandboxState) -> "Members":
        """A new collection of the members in any of these states."""
        kept = Members()
        kept._groups = {k: dict(group) for k, group in self._groups.items() if k[0] in states}
        if SandboxState.WARM in states:
            kept._ages, kept._warm = list(self._ages), dict(self._warm)
        return kept

    def without(self, removed: Collection[Member]) -> "Members":
        """A collection without these members."""
        if not removed:
            return self
        left = self.only(*SandboxState)
        for member in removed:
            left.remove(member)
        return left
