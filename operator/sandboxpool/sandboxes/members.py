"""The pods of a pool, each put into exactly one state."""

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
    """A pod and what the decision needs to know of it.

    Attributes:
        created: seconds since the epoch.
        since: seconds of our own clock at which it was first seen as it stands now: in this state,
            on this node, and waiting for the kubelet or the scheduler or not.
        ready: every container passes its readiness.
        ready_since: seconds of our own clock at which it was first seen ready without a break;
            None if it is not ready.
        was_ready: it was seen ready once.
        host_state: its node, and what is known of its runtime there.
        overhead: what the class added to its resources when it was made.
        failure: what keeps it from being ready, if anything is known.
        revision: the template revision that it was made from.
        class_name: the RuntimeClass that it names.
        runtime_uid: the uid of the RuntimeClass that it was made from.
        silence: that nothing is known to keep it from being ready, and what was looked at; empty if
            something is, or if its events were not read.
        acknowledged: the kubelet of its node has begun with it.
        misplaced: it is stranded, and was before it was ready for the first time: it was put where
            it could not be handed out, and so may the next one be.
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
        """The facts of its node; None if it has none, or if the node is gone."""
        return self.host_state.node

    @property
    def group_key(self) -> "GroupKey":
        """Its state, and all that it was made from."""
        return self.state, self.revision, self.class_name, self.runtime_uid, self.overhead

    @property
    def unclaimed(self) -> bool:
        """It belongs to the pool's own stock, and is not on its way out."""
        return self.state not in (
            SandboxState.COLD,
            SandboxState.CLAIMED,
            SandboxState.ENDED,
            SandboxState.STOPPING,
        )

    @property
    def in_stock(self) -> bool:
        """It is warm, or may yet become so."""
        return self.state in STOCK


UNREADY_TEXT = "it was ready and is not any more: its readiness probe fails"

# What counts towards the target: it is warm, or may yet become so.
STOCK = (SandboxState.STARTING, SandboxState.WARM, SandboxState.UNREADY, SandboxState.UNPROVEN)

GroupKey = tuple[SandboxState, str, str, str, tuple[tuple[str, str], ...]]


def is_ready_on_host(pod: Pod, host_state: HostState) -> bool:
    """A ready pod, on a node that is well, whose runtime works and is proven as wanted."""
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
    """Sort one pod.

    Args:
        pod: the pod, from the cache.
        host_state: what it stands on.
        sandbox_event: its last FailedCreatePodSandBox message.
        deleting: we sent its DELETE and have not seen the effect yet.
        being_bound: it is being handed out at this moment, though the cache does not show it.
        pod_events: what its events said, if they were read.
        previous: as it was sorted last, if it was: no pod tells that it was ready before.
        clock: seconds of our own monotonic clock.
    """
    metadata = pod.metadata
    was_ready = pod.ready or (previous is not None and previous.was_ready)
    ready_before = previous.was_ready if previous is not None else pod.ready
    failure = None
    if pod.finished and (deleting or metadata.deletionTimestamp is not None):
        # Its node has freed what it held, whatever keeps the object.
        state = SandboxState.ENDED
    elif deleting or metadata.deletionTimestamp is not None:
        state = SandboxState.STOPPING
    elif being_bound or claim_uid_of(pod) is not None:
        state = _claimed_state(pod, was_ready=was_ready)
    else:
        state = _stock_state(pod, host_state, was_ready=was_ready)
    if state in _MAY_FAIL:
        failure = diagnose(pod, sandbox_event, pod_events)
        if state is SandboxState.UNREADY and (failure is None or failure.from_events):
            text = f"{UNREADY_TEXT}: {failure.message}" if failure is not None else UNREADY_TEXT
            failure = Failure(Reason.POD_NOT_READY, truncate(text), pod.spec.nodeName)
    if previous is not None and _stands(previous) == (state, pod.spec.nodeName, _waits(failure)):
        since = previous.since
    else:
        since = clock
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


def _waits(failure: Failure | None) -> bool:
    return failure is not None and failure.self_healing


def _stands(member: Member) -> tuple[SandboxState, str, bool]:
    return member.state, member.node_name, _waits(member.failure)


def _claimed_state(pod: Pod, *, was_ready: bool) -> SandboxState:
    if pod.finished:
        return SandboxState.ENDED
    # One that runs has started; after a restart of ours nobody knows whether it was ready before.
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
    """The pods of a pool, in groups that are alike in state and in what they were made from.

    A large pool has few groups. What is asked of groups does not cost more where there are more
    pods; only those that are not as they should be, or are asked for their age, are passed over.
    """

    def __init__(self, members: Iterable[Member] = ()) -> None:
        self._groups: dict[GroupKey, dict[str, Member]] = {}
        # The warm ones, the oldest first.
        self._ages: list[tuple[float, str, str]] = []
        self._warm: dict[str, Member] = {}
        for member in members:
            self.put(member)

    def __iter__(self) -> Iterator[Member]:
        return chain.from_iterable(group.values() for group in self._groups.values())

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def put(self, member: Member) -> None:
        """Take in a member that is not there yet."""
        self._groups.setdefault(member.group_key, {})[member.uid] = member
        if member.state is SandboxState.WARM:
            self._warm[member.uid] = member
            insort(self._ages, _age_key(member))

    def remove(self, member: Member) -> None:
        """Take out a member that is there."""
        group = self._groups[member.group_key]
        del group[member.uid]
        if not group:
            del self._groups[member.group_key]
        if self._warm.pop(member.uid, None) is not None:
            del self._ages[bisect_left(self._ages, _age_key(member))]

    def warm_by_age(self) -> Iterator[Member]:
        """The warm ones, the oldest first; to look at the first few costs as much in any pool."""
        return (self._warm[uid] for _, _, uid in self._ages)

    def count(self, *states: SandboxState) -> int:
        """How many are in one of these states."""
        return sum(len(group) for kind, group in self._groups.items() if kind[0] in states)

    def of(self, *states: SandboxState) -> Iterator[Member]:
        """Those in one of these states."""
        return self.where(lambda member: member.state in states)

    def where(self, alike: Callable[[Member], bool]) -> Iterator[Member]:
        """Those for which something holds that is the same for all of a kind."""
        groups = list(self._groups.values())
        return chain.from_iterable(g.values() for g in groups if alike(next(iter(g.values()))))

    def only(self, *states: SandboxState) -> "Members":
        """Those in one of these states, as a collection of its own."""
        kept = Members()
        kept._groups = {k: dict(group) for k, group in self._groups.items() if k[0] in states}
        if SandboxState.WARM in states:
            kept._ages, kept._warm = list(self._ages), dict(self._warm)
        return kept

    def without(self, going: Collection[Member]) -> "Members":
        """The others."""
        if not going:
            return self
        left = self.only(*SandboxState)
        for member in going:
            left.remove(member)
        return left
