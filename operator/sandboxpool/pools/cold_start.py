"""The claims of one pool that want a sandbox to be started for them, and what they are told.

They stand in the pool's line with those that only wait, and the pool's decision says when it is
their turn: one place keeps the ceiling, the pause, the order and the growing delays.
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
    """Who wants one, and what was asked for, by the claim's uid.

    Attributes:
        refusal: why those that want one wait, as of the last decision; None if all had their turn.
    """

    refusal: Refusal | None = None
    _wanted: dict[str, ClaimRef] = field(default_factory=dict)
    _asked: dict[str, str] = field(default_factory=dict)
    _taken: dict[str, int] = field(default_factory=dict)

    def request_start(self, claim: ClaimRef) -> bool:
        """A claim in line wants one; return whether that is new."""
        is_new = claim.uid not in self._wanted
        self._wanted[claim.uid] = claim
        return is_new

    @property
    def pending(self) -> list[str]:
        """Who wants one and has not had its turn."""
        return list(self._wanted)

    def in_queue(self, line: Iterable[str]) -> list[tuple[str, ClaimRef | None]]:
        """The claims in line, and how those that want one are called; others are forgotten."""
        if not self._wanted:
            return []
        found = [(uid, self._wanted.get(uid)) for uid in line]
        self._wanted = {uid: claim for uid, claim in found if claim is not None}
        return found

    def start(self, claim: ClaimRef, name: str) -> None:
        """It is a claim's turn: a pod of this name is asked for."""
        self._wanted.pop(claim.uid, None)
        self._asked[claim.uid] = name

    def pod_name_of(self, uid: str) -> str | None:
        """The name of the pod that was asked for; None if none was."""
        return self._asked.get(uid)

    def pop_finished(self, is_creating: Callable[[str], bool]) -> list[str]:
        """Forget what is not expected any more; return whose pod it was to be."""
        settled = [uid for uid, name in self._asked.items() if not is_creating(name)]
        for uid in settled:
            del self._asked[uid]
        self._taken = {
            uid: tries
            for uid, tries in self._taken.items()
            if uid in self._wanted or uid in self._asked or uid in settled
        }
        return settled

    def name_taken(self, uid: str) -> None:
        """Somebody else's pod has the name that was asked for: the next try uses another."""
        self._taken[uid] = self._taken.get(uid, 0) + 1

    def seed(self, uid: str, former: Iterable[str]) -> str:
        """What the name of a claim's next pod is made from.

        The same for each try of one start, and after a restart, so that no start is made twice.

        Args:
            uid: the claim's uid.
            former: the uids of its pods that are on their way out.
        """
        tries = self._taken.get(uid, 0)
        return "/".join([uid, *sorted(former), *([str(tries)] if tries else [])])


def cold_start_refusal(given: PoolInput, plan: PoolPlan, pool: str) -> Refusal | None:
    """What the claims that are still to have one started are told."""
    reason = plan.cold_blocked_by
    if reason is None:
        return None
    if reason is Reason.PAUSED:
        text = f"pool {pool!r} is paused (spec.paused): nothing is started"
    elif reason is Reason.MAX_SANDBOXES_REACHED:
        text = (
            f"pool {pool!r} has reached spec.maxSandboxes ({given.spec.max_sandboxes}): waiting "
            "for room, or for a warm sandbox"
        )
    elif reason is Reason.MAX_STARTING_REACHED:
        text = (
            f"pool {pool!r} starts no more sandboxes at once (spec.startup.maxStarting is "
            f"{given.spec.startup.max_starting}, and one while they fail): waiting in line"
        )
    elif reason is Reason.CACHE_STALE:
        text = f"nothing is started in pool {pool!r} while the operator's watch of pods is stale"
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
        text = f"no node can take a sandbox of pool {pool!r}, and one waits for such a node already"
    else:
        text = (
            f"the last sandbox of pool {pool!r} failed, the next try waits for a growing delay: "
            f"{given.backoff.message}"
        )
    return Refusal(reason, text)
