"""What the operator remembers of one pool between decisions; none of it outlives the process."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from sandboxpool.api.core import Pod
from sandboxpool.api.reasons import Reason
from sandboxpool.api.times import epoch
from sandboxpool.api.v1alpha1 import IsolationProof
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.pools.cold_start import ColdStartRequests
from sandboxpool.pools.expectations import Expectations
from sandboxpool.pools.member_index import MemberIndex
from sandboxpool.pools.plan import CreateBackoff
from sandboxpool.runtimes.avoidance import AVOID_SECONDS
from sandboxpool.runtimes.diagnosis import truncate
from sandboxpool.runtimes.resolve import Runtime
from sandboxpool.sandboxes.members import Members
from sandboxpool.sandboxes.startup import StartupTimes
from sandboxpool.util.backoff import delay_after, spread

FIRST_BACKOFF_SECONDS = 1.0
LONGEST_BACKOFF_SECONDS = 300.0
MEMBER_RESYNC_SECONDS = 60.0
# A sandbox that ends some seconds after it was ready is no success.
MIN_READY_SECONDS = 30.0
# Each try may make an autoscaler buy a node that is of no use.
FIRST_AUTOSCALER_BACKOFF_SECONDS = 600.0
LONGEST_AUTOSCALER_BACKOFF_SECONDS = 6 * 3600.0
# To be refused costs little, and others may make room under a quota at any time.
LONGEST_QUOTA_BACKOFF_SECONDS = 30.0
# A namespace that is being deleted takes nothing in any more, however often it is asked.
TERMINATING_BACKOFF_SECONDS = 300.0

# The first and the longest delay after failures of a reason.
_DELAYS = {
    Reason.AUTOSCALER_ADDS_WRONG_NODES: (
        FIRST_AUTOSCALER_BACKOFF_SECONDS,
        LONGEST_AUTOSCALER_BACKOFF_SECONDS,
    ),
    Reason.QUOTA_EXCEEDED: (FIRST_BACKOFF_SECONDS, LONGEST_QUOTA_BACKOFF_SECONDS),
    Reason.NAMESPACE_TERMINATING: (TERMINATING_BACKOFF_SECONDS, TERMINATING_BACKOFF_SECONDS),
}


@dataclass
class PoolState:
    """One pool's expectations, members, start-up times and the trouble it is in.

    Attributes:
        failed_at: epoch seconds of the last failure.
        cold: the claims that want a sandbox to be started for them.
        had_candidate_nodes: whether some node could take a pod at the last look.
        hostnames: what pods have to name that keep away from nodes by hostname, and since when, in
            epoch seconds; None as long as nobody has asked.
    """

    expectations: Expectations
    member_index: MemberIndex = field(default_factory=MemberIndex)
    times: StartupTimes = field(default_factory=StartupTimes)
    backoff: CreateBackoff = field(default_factory=CreateBackoff)
    failed_at: float = 0.0
    cold: ColdStartRequests = field(default_factory=ColdStartRequests)
    hostnames: tuple[tuple[str, ...], float] | None = None
    had_candidate_nodes: bool | None = None
    _stuck: dict[str, float] = field(default_factory=dict)
    _last_resync: tuple[IsolationProof, float] | None = None
    # The last failure of either kind: whether it is an autoscaler's, and what followed.
    _backoffs: dict[bool, CreateBackoff] = field(default_factory=dict)

    def start_resync_if_due(self, proof: IsolationProof, now: float) -> bool:
        """Whether to sort all members, not just those of which a change was told; then it is done.

        With another proof each stands otherwise. And whatever nobody has told of, it shall not be
        believed for ever.

        Args:
            proof: what the pool wants now.
            now: seconds of a monotonic clock.
        """
        former = self._last_resync
        if former is not None and former[0] is proof and now - former[1] < MEMBER_RESYNC_SECONDS:
            return False
        self._last_resync = proof, now
        return True

    def back_off(self, reason: Reason, message: str, now: float) -> None:
        """A round has failed: wait before the next, longer with each failure in a row."""
        if self.backoff == CreateBackoff():
            # A success has ended whatever there was.
            self._backoffs.clear()
        # An autoscaler has delays of hours, all else of seconds: neither makes the other's longer,
        # and neither ends the other's.
        buys = reason is Reason.AUTOSCALER_ADDS_WRONG_NODES
        failures = self._backoffs.get(buys, CreateBackoff()).failures + 1
        first, longest = _DELAYS.get(reason, (FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS))
        delay = spread(delay_after(failures - 1, first, longest))
        self.failed_at = now
        self.backoff = CreateBackoff(failures, now + delay, reason, truncate(message))
        self._backoffs[buys] = self.backoff

    def note_hostnames(self, hostnames: tuple[str, ...], now: float) -> float:
        """The hostnames that pods have to name now; return since when that is so."""
        if self.hostnames is None or self.hostnames[0] != hostnames:
            self.hostnames = hostnames, now
        return self.hostnames[1]

    def note_failure(self, reason: Reason, message: str, now: float) -> None:
        """Something has failed beside the rounds: several at once are one failure."""
        if self.backoff.until <= now:
            self.back_off(reason, message, now)

    def refresh_backoff(self, now: float) -> None:
        """A delay is over, and a longer one may stand behind it.

        A wall clock that was set back does not make a wait longer: it begins anew, once.
        """
        if self.backoff == CreateBackoff():
            return
        if now < self.failed_at:
            back = self.failed_at - now
            self.failed_at, self.backoff = now, _earlier(self.backoff, back)
            self._backoffs = {kind: _earlier(one, back) for kind, one in self._backoffs.items()}
        if self.backoff.until <= now:
            latest = max(self._backoffs.values(), key=lambda one: one.until, default=self.backoff)
            if latest.until > now:
                failures = max(one.failures for one in self._backoffs.values())
                self.backoff = replace(latest, failures=failures)

    def note_quota_freed(self, now: float) -> bool:
        """Room may have been made under a quota; whether that ends the wait, so that it is used.

        What counts against a quota is counted some moments later: the first tries are soon again.
        """
        if self.backoff.reason is not Reason.QUOTA_EXCEEDED:
            return False
        self.backoff = replace(self.backoff, failures=1, until=now)
        self._backoffs[False] = self.backoff
        return True

    def note_success(self, members: Members, runtime: Runtime | None, clock: float) -> None:
        """A sandbox that was made since the last failure and has lasted ends the trouble.

        One of another class than was asked for is none: it was altered, as its successor may be.

        Args:
            members: the pool's pods.
            runtime: what its class stands for.
            clock: seconds of a monotonic clock.
        """
        if self.backoff == CreateBackoff():
            return
        for member in members.of(SandboxState.WARM, SandboxState.CLAIMED):
            is_own = runtime is not None and member.class_name == runtime.class_name
            is_new = member.created >= self.failed_at
            since = member.ready_since
            if is_own and is_new and since is not None and clock - since >= MIN_READY_SECONDS:
                self.backoff = CreateBackoff()
                return

    def note_stuck(self, nodes: Iterable[str], clock: float) -> None:
        """Sandboxes are stuck on these nodes, at this time of a monotonic clock."""
        self._stuck.update(dict.fromkeys(nodes, clock))

    def stuck_nodes(self, clock: float) -> frozenset[str]:
        """Where sandboxes were stuck of late: none is made again just to be stuck there."""
        self._stuck = {n: at for n, at in self._stuck.items() if clock - at < AVOID_SECONDS}
        return frozenset(self._stuck)

    def note_started(self, node: str) -> None:
        """A sandbox of the pool has become ready on this node."""
        self._stuck.pop(node, None)

    def note_claim_succeeded(self, created: float) -> None:
        """A claim has ended with its sandbox, made at this time, alive: that is a success too."""
        if created >= self.failed_at:
            self.backoff = CreateBackoff()


def _earlier(trouble: CreateBackoff, seconds: float) -> CreateBackoff:
    return replace(trouble, until=trouble.until - seconds)


class PoolStates:
    """The state of each pool, by its uid.

    Args:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._states: dict[str, PoolState] = {}

    def __getitem__(self, pool_uid: str) -> PoolState:
        state = self._states.get(pool_uid)
        if state is None:
            state = self._states[pool_uid] = PoolState(Expectations(self._clock))
        return state

    def mark_dirty(self, pool_uid: str, pod_uid: str) -> None:
        """A pod, or what it is judged by, may have changed."""
        state = self._states.get(pool_uid)
        if state is not None:
            state.member_index.mark_dirty(pod_uid)

    def is_deleting(self, pool_uid: str, pod_uid: str) -> bool:
        """Whether the pod's deletion was asked for."""
        state = self._states.get(pool_uid)
        return state is not None and state.expectations.is_deleting(pod_uid)

    def note_external_deletion(self, pool_uid: str, pod: Pod, now: float) -> None:
        """A pod that was starting is deleted; if not by us, the next one may fare the same."""
        state = self._states.get(pool_uid)
        if state is None or state.expectations.is_deleting(pod.metadata.uid):
            return
        text = f"{pod.metadata.name} was deleted by somebody else before it was ready"
        state.note_failure(Reason.POD_LOST, text, now)

    def note_started(self, pool_uid: str, pod: Pod) -> None:
        """A pod has become ready."""
        state = self._states.get(pool_uid)
        if state is not None:
            state.note_started(pod.spec.nodeName)

    def note_claim_succeeded(self, pool_uid: str, pod: Pod) -> None:
        """A claim has ended with its sandbox alive."""
        state = self._states.get(pool_uid)
        if state is not None:
            state.note_claim_succeeded(epoch(pod.metadata.creationTimestamp))

    def creation_observed(self, pool_uid: str, pod_name: str) -> None:
        """A pod of this name was seen; pods of a pool that is gone bring no state back."""
        state = self._states.get(pool_uid)
        if state is not None:
            state.expectations.creation_observed(pod_name)

    def deletion_observed(self, pool_uid: str, pod_uid: str) -> None:
        """The end of a pod was seen."""
        state = self._states.get(pool_uid)
        if state is not None:
            state.expectations.deletion_observed(pod_uid)

    def forget(self, pool_uid: str) -> None:
        """The pool is gone."""
        self._states.pop(pool_uid, None)
