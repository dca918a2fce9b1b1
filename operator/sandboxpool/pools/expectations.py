"""What was asked of the API server and is not yet seen in the caches.

A decision that forgot it would create a pod twice. A create is expected under the name that we
chose, a delete under the pod's uid; the watch ends both, and so does a deadline, because a watch
may be down for long and a pool must not stand still for ever.
"""

from collections.abc import Callable

DEADLINE_SECONDS = 120.0


class Expectations:
    """Of one pool.

    Args:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._creating: dict[str, tuple[float, bool]] = {}
        self._doubted: set[str] = set()
        self._deleting: dict[str, float] = {}

    def creating(self, name: str, *, cold: bool = False) -> None:
        """A pod of this name is being asked for; a cold one is a claim's and not of the stock."""
        self._creating[name] = self._clock() + DEADLINE_SECONDS, cold
        self._doubted.discard(name)

    def doubt(self, name: str) -> None:
        """Nobody can say whether a pod was made: it takes room, and may be asked for again."""
        self._doubted.add(name)

    def is_creating(self, name: str) -> bool:
        """A pod of this name was asked for and is not seen yet."""
        expected = self._creating.get(name)
        return expected is not None and expected[0] > self._clock()

    def is_doubted(self, name: str) -> bool:
        """What was asked for under this name may be asked for again."""
        return name in self._doubted

    def doubted(self) -> list[str]:
        """The names of the stock's pods that are in doubt, oldest first."""
        return [n for n, (_, cold) in self._creating.items() if n in self._doubted and not cold]

    def deleting(self, uid: str) -> None:
        """This pod's deletion is being asked for."""
        self._deleting[uid] = self._clock() + DEADLINE_SECONDS

    def settle_create(self, name: str) -> None:
        """The pod was seen, or was certainly not made."""
        self._creating.pop(name, None)
        self._doubted.discard(name)

    def settle_delete(self, uid: str) -> None:
        """The pod's end was seen, or its deletion was certainly refused."""
        self._deleting.pop(uid, None)

    def is_deleting(self, uid: str) -> bool:
        """The pod's deletion was asked for."""
        deadline = self._deleting.get(uid)
        return deadline is not None and deadline > self._clock()

    def leaving(self) -> frozenset[str]:
        """The uids of all pods whose deletion was asked for."""
        return frozenset(self._deleting)

    def next_deadline(self) -> float | None:
        """Seconds until something that is expected is overdue; None if nothing is expected."""
        deadlines = [*(at for at, _ in self._creating.values()), *self._deleting.values()]
        return max(0.0, min(deadlines) - self._clock()) if deadlines else None

    def count_creating(self) -> tuple[int, int]:
        """How many pods were asked for and not seen: for the stock, and cold ones for claims."""
        now = self._clock()
        self._creating = {name: e for name, e in self._creating.items() if e[0] > now}
        self._doubted &= self._creating.keys()
        self._deleting = {uid: at for uid, at in self._deleting.items() if at > now}
        cold = sum(is_cold for _, is_cold in self._creating.values())
        return len(self._creating) - cold, cold
