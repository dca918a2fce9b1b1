"""Cold starts: sandboxes that a pool starts for a single claim.

Claims that request a cold start wait in the same queue as those that wait for a warm sandbox, and
the pool's decision takes them in turn, so the limits, the pause and the backoff apply to both.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sandboxpool.allocation.refusal import Refusal
from sandboxpool.api.reasons import Reason
from sandboxpool.pools.conditions import HELD_BY_LOST_NODES
from sandboxpool.pools.plan import PoolInput, PoolPlan
from sandboxpool.runtimes.advice import exclusion_pending_message
from sandboxpool.sandboxes.template import ClaimRef


@dataclass
class ColdStartRequests:
    """The requests of one pool, by the claim's uid.

    Attributes:
        refusal: why pending requests wait, as of the last decision; None if none had to.
    """

    refusal: Refusal | None = None
    _pending: dict[str, ClaimRef] = field(default_factory=dict)
    _pod_names: dict[str, str] = field(default_factory=dict)
    _name_conflicts: dict[str, int] = field(default_factory=dict)

    def request_start(self, claim: ClaimRef) -> bool:
        """Add the request of a queued claim; return whether it is new."""
        is_new = claim.uid not in self._pending
        self._pending[claim.uid] = claim
        return is_new

    @property
    def pending(self) -> list[str]:
        """The uids of the claims whose pod is not being created yet."""
        return list(self._pending)

    def in_queue(self, queue: Iterable[str]) -> list[tuple[str, ClaimRef | None]]:
        """Pair the queued claims with their requests, if any; drop requests of other claims."""
        if not self._pending:
            return []
        found = [(uid, self._pending.get(uid)) for uid in queue]
        self._pending = {uid: claim for uid, claim in found if claim is not None}
        return found

    def start(self, claim: ClaimRef, name: str) -> None:
        """The claim's pod is being created under this name."""
        self._pending.pop(claim.uid, None)
        self._pod_names[claim.uid] = name

    def pod_name_of(self, uid: str) -> str | None:
        """The name of the pod that is being created for a claim; None if there is none."""
        return self._pod_names.get(uid)

    def pop_finished(self, is_creating: Callable[[str], bool]) -> list[str]:
        """Forget the pods that are no longer expected; return the uids of their claims."""
        finished = [uid for uid, name in self._pod_names.items() if not is_creating(name)]
        for uid in finished:
            del self._pod_names[uid]
        self._name_conflicts = {
            uid: count
            for uid, count in self._name_conflicts.items()
            if uid in self._pending or uid in self._pod_names or uid in finished
        }
        return finished

    def note_name_conflict(self, uid: str) -> None:
        """Another pod has the name of the claim's pod: the next attempt uses a new name."""
        self._name_conflicts[uid] = self._name_conflicts.get(uid, 0) + 1

    def seed(self, uid: str, former: Iterable[str]) -> str:
        """The seed for the name of a claim's next pod.

        The seed is the same for all attempts of one start, also after a restart of the operator, so
        that a claim never gets two pods.

        Args:
            uid: the claim's uid.
            former: the uids of the claim's pods that are terminating.
        """
        tries = self._name_conflicts.get(uid, 0)
        return "/".join([uid, *sorted(former), *([str(tries)] if tries else [])])


def cold_start_refusal(given: PoolInput, plan: PoolPlan, pool: str) -> Refusal | None:
    """Why the pending requests for cold starts wait; None if none has to."""
    reason = plan.cold_blocked_by
    if reason is None:
        return None
    if reason is Reason.PAUSED:
        text = f"pool {pool!r} is paused and starts no sandboxes: set spec.paused to false"
    elif reason is Reason.MAX_SANDBOXES_REACHED:
        text = (
            f"pool {pool!r} has reached spec.maxSandboxes ({given.spec.max_sandboxes}): waiting "
            "until another sandbox ends or a warm one is ready"
        )
    elif reason is Reason.MAX_STARTING_REACHED:
        text = (
            f"pool {pool!r} starts at most {given.spec.startup.max_starting} sandboxes at once "
            "(spec.startup.maxStarting), and only one after failures: waiting in the queue"
        )
    elif reason is Reason.CACHE_STALE:
        text = f"pool {pool!r} starts no sandboxes while the operator's watch of pods is stale"
    elif reason is Reason.HELD_BY_LOST_NODES:
        text = f"pool {pool!r}: {HELD_BY_LOST_NODES}"
    elif reason is given.template.reason:
        text = given.template.message
    elif not given.resolution.usable:
        text = given.resolution.message
    elif reason is Reason.EXCLUSION_PENDING:
        pending = exclusion_pending_message(given.verdict.exclusions_pending)
        text = f"sandboxes of pool {pool!r} {pending}"
    elif not given.verdict.has_candidate_nodes:
        text = f"no node can run a sandbox of pool {pool!r}, and one is pending for such a node"
    else:
        text = (
            f"the last sandbox of pool {pool!r} failed, and the next start waits for an "
            f"exponential backoff: {given.backoff.message}"
        )
    return Refusal(reason, text)
