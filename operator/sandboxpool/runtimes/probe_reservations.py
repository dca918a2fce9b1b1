"""Room for a probe on a node that is full of sandboxes which wait for its answer.

Of the sandboxes that cannot be handed out before the probe has answered one gives way, and its
place is kept free until the probe has ended. In memory: after a restart it is asked for anew.
"""

from dataclasses import dataclass

from sandboxpool.runtimes.evidence import Software
from sandboxpool.util.backoff import delay_after

NodeHandler = tuple[str, str]

# A probe ends within its deadline; the positive control goes before it.
RESERVATION_SECONDS = 300.0
# One that has been given room and has brought no proof is given room again after so long, and
# then each time later.
FIRST_PAUSE_SECONDS = 600.0
LONGEST_PAUSE_SECONDS = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class _Reservation:
    pool: str
    pod: str
    until: float


@dataclass(frozen=True, slots=True)
class _Asked:
    software: Software
    tries: int
    not_before: float


class ProbeReservations:
    """The places that are kept free, by node and handler. Times are seconds since the epoch."""

    def __init__(self) -> None:
        self._places: dict[NodeHandler, _Reservation] = {}
        self._asked: dict[NodeHandler, _Asked] = {}
        # Pools that make nothing meanwhile, because it would be quicker.
        self._held_back: set[str] = set()

    def is_reserved(self, pair: NodeHandler) -> bool:
        """Whether a sandbox gives way already."""
        return pair in self._places

    def may_preempt(self, pair: NodeHandler, software: Software, now: float) -> bool:
        """Whether a sandbox may be asked to give way: seldom, where that has not helped."""
        asked = self._asked.get(pair)
        return asked is None or asked.software != software or now >= asked.not_before

    def preempt(
        self, pair: NodeHandler, software: Software, pool: str, pod: str, now: float
    ) -> None:
        """A sandbox is to give way.

        Args:
            pair: node and handler.
            software: what the probe is about.
            pool: the uid of the sandbox's pool.
            pod: the sandbox's uid.
            now: epoch seconds.
        """
        asked = self._asked.get(pair)
        tries = asked.tries + 1 if asked is not None and asked.software == software else 1
        pause = delay_after(tries - 1, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        self._asked[pair] = _Asked(software, tries, now + pause)
        self._places[pair] = _Reservation(pool, pod, now + RESERVATION_SECONDS)

    def end(self, pair: NodeHandler, *, proven: bool) -> str | None:
        """The probe has ended; return the uid of the pool whose place it had."""
        if proven:
            self._asked.pop(pair, None)
        return self._free(pair) if pair in self._places else None

    def _free(self, pair: NodeHandler) -> str:
        pool = self._places.pop(pair).pool
        if not self.of(pool):
            self._held_back.discard(pool)
        return pool

    def expire(self, now: float) -> list[str]:
        """Keep nothing for longer than a probe lasts; return the uids of the pools concerned."""
        over = [pair for pair, place in self._places.items() if now >= place.until]
        return [self._free(pair) for pair in over]

    def forget_node(self, node: str) -> list[str]:
        """The node is gone; return the uids of the pools concerned."""
        for pair in [pair for pair in self._asked if pair[0] == node]:
            del self._asked[pair]
        return [self._free(pair) for pair in list(self._places) if pair[0] == node]

    def hold_back(self, pool: str) -> None:
        """Pods of the pool that waited for room are deleted for the probe's sake."""
        if self.of(pool):
            self._held_back.add(pool)

    def is_held_back(self, pool: str) -> bool:
        """Whether nothing is to be made for the pool before its places are its own again."""
        return pool in self._held_back

    def of(self, pool: str) -> frozenset[str]:
        """The uids of the pool's pods that give way, or have done so."""
        return frozenset(place.pod for place in self._places.values() if place.pool == pool)
