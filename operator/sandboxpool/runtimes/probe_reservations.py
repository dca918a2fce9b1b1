"""Reserves room for a probe on a node that is full of sandboxes which wait for its answer.

One of the sandboxes that cannot be allocated before the probe has answered is preempted, and its
place stays reserved until the probe has ended. Reservations are lost at a restart and made again.
"""

from dataclasses import dataclass

from sandboxpool.runtimes.evidence import Software
from sandboxpool.runtimes.nodes import NodeHandler
from sandboxpool.util.backoff import delay_after

# Long enough for the positive control and the probe, which each have a deadline.
RESERVATION_SECONDS = 300.0
# The pause between two preemptions for a probe that has brought no proof; it grows.
FIRST_PAUSE_SECONDS = 600.0
LONGEST_PAUSE_SECONDS = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class _Reservation:
    pool: str
    pod: str
    until: float


@dataclass(frozen=True, slots=True)
class _Preemption:
    software: Software
    tries: int
    not_before: float


class ProbeReservations:
    """The reservations by node and handler. Times are seconds since the epoch."""

    def __init__(self) -> None:
        self._reservations: dict[NodeHandler, _Reservation] = {}
        self._preemptions: dict[NodeHandler, _Preemption] = {}
        # Pools that create no pods meanwhile: these would take the room before the probe does.
        self._held_back: set[str] = set()

    def is_reserved(self, pair: NodeHandler) -> bool:
        """Whether a sandbox is preempted already."""
        return pair in self._reservations

    def may_preempt(self, pair: NodeHandler, software: Software, now: float) -> bool:
        """Whether a sandbox may be preempted; backs off where that has not helped."""
        last = self._preemptions.get(pair)
        return last is None or last.software != software or now >= last.not_before

    def preempt(
        self, pair: NodeHandler, software: Software, pool: str, pod: str, now: float
    ) -> None:
        """Reserve the place of a sandbox, which is deleted.

        Args:
            pair: node and handler.
            software: the node's software.
            pool: the uid of the sandbox's pool.
            pod: the sandbox's uid.
            now: epoch seconds.
        """
        last = self._preemptions.get(pair)
        tries = last.tries + 1 if last is not None and last.software == software else 1
        pause = delay_after(tries - 1, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        self._preemptions[pair] = _Preemption(software, tries, now + pause)
        self._reservations[pair] = _Reservation(pool, pod, now + RESERVATION_SECONDS)

    def end(self, pair: NodeHandler, *, proven: bool) -> str | None:
        """Release the place after the probe; return the uid of the pool that gets it back."""
        if proven:
            self._preemptions.pop(pair, None)
        return self._release(pair) if pair in self._reservations else None

    def _release(self, pair: NodeHandler) -> str:
        pool = self._reservations.pop(pair).pool
        if not self.of(pool):
            self._held_back.discard(pool)
        return pool

    def expire(self, now: float) -> list[str]:
        """Release expired reservations; return the uids of the pools concerned."""
        expired = [pair for pair, known in self._reservations.items() if now >= known.until]
        return [self._release(pair) for pair in expired]

    def forget_node(self, node: str) -> list[str]:
        """Release the reservations on a deleted node; return the uids of the pools concerned."""
        for pair in [pair for pair in self._preemptions if pair[0] == node]:
            del self._preemptions[pair]
        return [self._release(pair) for pair in list(self._reservations) if pair[0] == node]

    def hold_back(self, pool: str) -> None:
        """Stop creating pods of a pool whose pending pods were deleted in favor of the probe."""
        if self.of(pool):
            self._held_back.add(pool)

    def is_held_back(self, pool: str) -> bool:
        """Whether no pod of the pool may be created before its places are released."""
        return pool in self._held_back

    def of(self, pool: str) -> frozenset[str]:
        """The uids of the pool's pods that are being preempted or have been."""
        return frozenset(known.pod for known in self._reservations.values() if known.pool == pool)
