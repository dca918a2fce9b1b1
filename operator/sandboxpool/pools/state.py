"""The in-memory state of each pool between decisions; it does not survive a restart."""

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
# A sandbox counts as a success once it has been ready for this long.
MIN_READY_SECONDS = 30.0
# Each attempt may make an autoscaler add a node that cannot run the sandbox.
FIRST_AUTOSCALER_BACKOFF_SECONDS = 600.0
LONGEST_AUTOSCALER_BACKOFF_SECONDS = 6 * 3600.0
# A rejected create costs little, and a quota may have room at any time.
LONGEST_QUOTA_BACKOFF_SECONDS = 30.0
# A terminating namespace accepts no pods until it is gone.
TERMINATING_BACKOFF_SECONDS = 300.0

# By reason, the first and the longest delay; others use the general ones.
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
    """One pool's expectations, members, start-up times and backoff.

    Attributes:
        failed_at: epoch seconds of the last failure.
        cold: the claims that request a cold start.
        hostnames: the hostnames that new pods exclude, and since when, in epoch seconds; None
            before the first reconcile that excludes by hostname.
        had_candidate_nodes: whether the last reconcile found a node that can run a pod.
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
    # The backoff by kind: True for AutoscalerAddsWrongNodes, False for all other reasons.
    _backoffs: dict[bool, CreateBackoff] = field(default_factory=dict)

    def start_resync_if_due(self, proof: IsolationProof, now: float) -> bool:
        """Return whether a resync of all members is due, and start its next period if so.

        A changed isolation proof changes the state of every member. The periodic resync corrects
        what a missed notification has left stale.

        Args:
            proof: the pool's current spec.isolationProof.
            now: seconds of a monotonic clock.
        """
        former = self._last_resync
        if former is not None and former[0] is proof and now - former[1] < MEMBER_RESYNC_SECONDS:
            return False
        self._last_resync = proof, now
        return True

    def back_off(self, reason: Reason, message: str, now: float) -> None:
        """Delay creates after a failure, longer with each consecutive one."""
        if self.backoff == CreateBackoff():
            # Reset after a success.
            self._backoffs.clear()
        # The backoff for an autoscaler takes hours, the others take seconds: neither lengthens or
        # ends the other.
        by_autoscaler = reason is Reason.AUTOSCALER_ADDS_WRONG_NODES
        failures = self._backoffs.get(by_autoscaler, CreateBackoff()).failures + 1
        first, longest = _DELAYS.get(reason, (FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS))
        delay = spread(delay_after(failures - 1, first, longest))
        self.failed_at = now
        self.backoff = CreateBackoff(failures, now + delay, reason, truncate(message))
        self._backoffs[by_autoscaler] = self.backoff

    def note_hostnames(self, hostnames: tuple[str, ...], now: float) -> float:
        """Record the hostnames that new pods exclude; return since when they are the same."""
        if self.hostnames is None or self.hostnames[0] != hostnames:
            self.hostnames = hostnames, now
        return self.hostnames[1]

    def note_failure(self, reason: Reason, message: str, now: float) -> None:
        """Record a failure outside of creates and deletes; several within one delay count once."""
        if self.backoff.until <= now:
            self.back_off(reason, message, now)

    def refresh_backoff(self, now: float) -> None:
        """Switch to the longer backoff of another kind once the current one is over.

        A wall clock that was set back restarts the delay once and does not lengthen it further.
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
        """End the backoff of an exceeded quota after a pod has ended; return whether there was one.

        The quota's usage is updated some moments later, so the backoff restarts with short delays.
        """
        if self.backoff.reason is not Reason.QUOTA_EXCEEDED:
            return False
        self.backoff = replace(self.backoff, failures=1, until=now)
        self._backoffs[False] = self.backoff
        return True

    def note_success(self, members: Members, runtime: Runtime | None, clock: float) -> None:
        """End the backoff if a sandbox was created since the last failure and has stayed ready.

        A sandbox of another class does not count: admission changed it, as it may change the next.

        Args:
            members: the pool's pods.
            runtime: the runtime of the pool's class; None if the class is missing.
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
        """Record that sandboxes are stuck on these nodes, at this time of a monotonic clock."""
        self._stuck.update(dict.fromkeys(nodes, clock))

    def stuck_nodes(self, clock: float) -> frozenset[str]:
        """The nodes on which sandboxes were recently stuck."""
        self._stuck = {n: at for n, at in self._stuck.items() if clock - at < AVOID_SECONDS}
        return frozenset(self._stuck)

    def note_started(self, node: str) -> None:
        """A sandbox of the pool has become ready on this node."""
        self._stuck.pop(node, None)

    def note_claim_succeeded(self, created: float) -> None:
        """End the backoff if the sandbox of an ended claim was created since the last failure."""
        if created >= self.failed_at:
            self.backoff = CreateBackoff()


def _earlier(backoff: CreateBackoff, seconds: float) -> CreateBackoff:
    return replace(backoff, until=backoff.until - seconds)


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
        """A pod, or something that its classification depends on, may have changed."""
        state = self._states.get(pool_uid)
        if state is not None:
            state.member_index.mark_dirty(pod_uid)

    def is_deleting(self, pool_uid: str, pod_uid: str) -> bool:
        """Whether the operator has requested the pod's deletion."""
        state = self._states.get(pool_uid)
        return state is not None and state.expectations.is_deleting(pod_uid)

    def note_external_deletion(self, pool_uid: str, pod: Pod, now: float) -> None:
        """A starting pod was deleted: a failure unless the operator deleted it."""
        state = self._states.get(pool_uid)
        if state is None or state.expectations.is_deleting(pod.metadata.uid):
            return
        text = f"pod {pod.metadata.name} was deleted by another client before it was ready"
        state.note_failure(Reason.POD_LOST, text, now)

    def note_started(self, pool_uid: str, pod: Pod) -> None:
        """A pod has become ready."""
        state = self._states.get(pool_uid)
        if state is not None:
            state.note_started(pod.spec.nodeName)

    def note_claim_succeeded(self, pool_uid: str, pod: Pod) -> None:
        """A claim has ended while its sandbox was running."""
        state = self._states.get(pool_uid)
        if state is not None:
            state.note_claim_succeeded(epoch(pod.metadata.creationTimestamp))

    def creation_observed(self, pool_uid: str, pod_name: str) -> None:
        """A pod was observed; pods of a deleted pool do not create a new state."""
        state = self._states.get(pool_uid)
        if state is not None:
            state.expectations.creation_observed(pod_name)

    def deletion_observed(self, pool_uid: str, pod_uid: str) -> None:
        """The deletion of a pod was observed."""
        state = self._states.get(pool_uid)
        if state is not None:
            state.expectations.deletion_observed(pod_uid)

    def forget(self, pool_uid: str) -> None:
        """Forget a deleted pool."""
        self._states.pop(pool_uid, None)
