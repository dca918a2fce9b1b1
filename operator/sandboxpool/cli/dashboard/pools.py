"""The pools, with their stock, and the claims that wait or were served. Pure."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sandboxpool.cli import reading
from sandboxpool.cli.cluster import Object
from sandboxpool.cli.reading import ConditionText
from sandboxpool.cli.status import causes
from sandboxpool.cli.top import hit_rate, latency

# Pools that are not ready come first, so that what is cut works. The first page shows fewer.
MAX_POOL_ROWS = 500
FIRST_ROWS = 25
# States of sandboxes beside warm and claimed, in the order of a sandbox's life.
_OTHER_STATES = ("starting", "unproven", "unready", "stranded", "failed", "ended", "stopping")
_UNSEEN = ConditionText(
    "Ready", "Unknown", "", "the operator has not seen the pool: kubectl sandboxpool doctor"
)


@dataclass(frozen=True, slots=True)
class PoolRow:
    """A pool.

    Attributes:
        ready: Its condition Ready.
        warm: Sandboxes that can be claimed; None where the status does not say.
        others: Sandboxes in other states, as pairs of state and count, without zeros.
        waiting: Claims that have no sandbox yet.
        hit_rate: Of the claims that exist, the share that got a warm sandbox.
        claim_p50: Of the same claims, the median time to the binding.
        ready_p50: Milliseconds within which half of the sandboxes are ready.
        cause: The first condition that does not hold.
    """

    namespace: str
    name: str
    runtime: str
    ready: ConditionText
    warm: int | None
    target: int | None
    claimed: int | None
    others: Sequence[tuple[str, int]]
    waiting: int
    hit_rate: str
    claim_p50: str
    ready_p50: int | None
    cause: ConditionText | None

    @property
    def fill(self) -> float:
        """The share of the target that is warm, from 0 to 1."""
        if not self.target:
            return 1.0
        return min(1.0, (self.warm or 0) / self.target)


@dataclass(frozen=True, slots=True)
class Pools:
    """The pools.

    Attributes:
        rows: Those that are not ready first.
        omitted: How many are not shown.
        total: How many there are.
        ready: How many are ready, or are scaled to zero.
        warm, target, claimed, waiting: Sums over all pools.
    """

    rows: Sequence[PoolRow]
    omitted: int
    total: int
    ready: int
    warm: int
    target: int
    claimed: int
    waiting: int


def summary(pools: Sequence[Object], claims: Sequence[Object], most: int = MAX_POOL_ROWS) -> Pools:
    """Return the table of pools, with so many rows at most."""
    by_pool: Mapping[tuple[str, str], list[Object]] = claims_by_pool(claims)
    rows = [row(pool, by_pool.get(key(pool), [])) for pool in pools]
    rows.sort(key=lambda one: (one.ready.status == "True", one.namespace, one.name))
    return Pools(
        rows[:most],
        max(0, len(rows) - most),
        len(rows),
        sum(one.ready.status == "True" for one in rows),
        sum(one.warm or 0 for one in rows),
        sum(one.target or 0 for one in rows),
        sum(one.claimed or 0 for one in rows),
        sum(one.waiting for one in rows),
    )


def row(pool: Object, claims: Sequence[Object]) -> PoolRow:
    """Return what is shown of one pool, given its claims."""
    counts = {state: reading.number(pool, "status", state) or 0 for state in _OTHER_STATES}
    stages = dict(reading.stages(pool))
    phases = Counter(reading.text(claim, "status", "phase") for claim in claims)
    return PoolRow(
        *key(pool),
        reading.text(pool, "spec", "runtimeClassName"),
        reading.condition(pool, "Ready") or _UNSEEN,
        reading.number(pool, "status", "warm"),
        reading.number(pool, "status", "target"),
        reading.number(pool, "status", "claimed"),
        [(state, count) for state, count in counts.items() if count],
        phases["Pending"],
        hit_rate(claims),
        latency(claims),
        reading.number(stages.get("ready"), "p50Milliseconds"),
        next(iter(causes(pool)), None),
    )


def claims_by_pool(claims: Sequence[Object]) -> dict[tuple[str, str], list[Object]]:
    """Return the claims by the namespace and name of their pool."""
    found: defaultdict[tuple[str, str], list[Object]] = defaultdict(list)
    for claim in claims:
        namespace = reading.text(claim, "metadata", "namespace")
        found[namespace, reading.text(claim, "spec", "poolName")].append(claim)
    return found


def key(obj: Object) -> tuple[str, str]:
    """Return namespace and name of an object."""
    return reading.text(obj, "metadata", "namespace"), reading.name(obj)
